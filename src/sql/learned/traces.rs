//! What a function's body may leave on its server connection: settings, locks, temporary tables, channels, cursors, statements.

use super::Learned;
use crate::sql::lexer::{Kind, PlainStrings};
use crate::sql::names::{Catalog, FunctionRoute, Name};
use crate::sql::statement::{Statement, Statements};
use crate::sql::tokens::{PLPGSQL_BEFORE_PARENTHESIS, takes_parenthesis};

/// Words that leave something behind wherever they stand, or run what can't be read (EXECUTE, CALL, DO).
const LEAVES: &[&str] = &[
    "call",
    "copy",
    "create",
    "discard",
    "do",
    "execute",
    "hold",
    "listen",
    "load",
    "prepare",
    "reset",
    "temp",
    "temporary",
    "unlisten",
];

/// Behind these a statement of PL/pgSQL begins.
const STATEMENT_BEGINS: &[&str] = &["begin", "else", "loop", "then"];

/// The settings that a body in SQL or PL/pgSQL may leave changed; `None` if it may leave anything else.
pub(super) fn settings_left(body: &str, names: &Learned) -> Option<Vec<Box<str>>> {
    let mut settings = Vec::new();
    for statement in Statements::new(body.as_bytes(), PlainStrings::Conforming) {
        if statement.unterminated || statement.truncated {
            return None;
        }
        for index in 0..statement.len() {
            settings.extend(left_by(&statement, index, names)?);
        }
    }
    settings.sort_unstable();
    settings.dedup();
    Some(settings)
}

/// What one token leaves.
fn left_by(statement: &Statement<'_>, index: usize, names: &Learned) -> Option<Vec<Box<str>>> {
    let nothing = Some(Vec::new());
    match statement.kind(index) {
        Some(Kind::Word) if !behind_dot(statement, index) && is_leaving_word(statement, index) => {
            match statement.is_word(index, "set") {
                true => set(statement, index),
                false => None,
            }
        }
        Some(Kind::Word | Kind::Quoted) if statement.is_punct(index + 1, b'(') => called(statement, index, names),
        Some(Kind::UnicodeQuoted | Kind::BackslashString | Kind::Unterminated | Kind::Other) => None,
        _ => nothing,
    }
}

/// SET [SESSION] name { = | TO } …; nothing outlives SET LOCAL.
fn set(statement: &Statement<'_>, index: usize) -> Option<Vec<Box<str>>> {
    if statement.is_word(index + 1, "local") {
        return Some(Vec::new());
    }
    let mut at = index + 1 + usize::from(statement.is_word(index + 1, "session"));
    let mut name = statement.identifier(at).to_ascii_lowercase();
    while statement.is_punct(at + 1, b'.') {
        at += 2;
        name = format!("{name}.{}", statement.identifier(at).to_ascii_lowercase());
    }
    let assigns = statement.is_operator(at + 1, "=") || statement.is_word(at + 1, "to");
    (assigns && can_be_followed(&name)).then(|| vec![name.into()])
}

/// Whether a setting's name is plain, and it isn't one that is about something else than its own value.
fn can_be_followed(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
    let about_more = name.starts_with("transaction_") || ["session_authorization", "seed", "role"].contains(&name);
    !name.is_empty() && name.chars().all(plain) && !about_more
}

/// The setting that `set_config('name', …)` names.
fn configured(statement: &Statement<'_>, index: usize) -> Option<Vec<Box<str>>> {
    let literal = std::str::from_utf8(statement.bytes(index + 2)).ok()?;
    let name = literal.strip_prefix('\'')?.strip_suffix('\'')?;
    let plain = statement.kind(index + 2) == Some(Kind::String) && statement.is_punct(index + 3, b',');
    let name = name.to_ascii_lowercase();
    (plain && can_be_followed(&name)).then(|| vec![name.into()])
}

fn behind_dot(statement: &Statement<'_>, index: usize) -> bool {
    index > 0 && statement.is_punct(index - 1, b'.')
}

fn is_leaving_word(statement: &Statement<'_>, index: usize) -> bool {
    let word = statement.identifier(index);
    match word.as_ref() {
        // SET of a setting, not of an UPDATE's columns.
        "set" => index == 0 || statement.is_any_word(index - 1, STATEMENT_BEGINS),
        word => LEAVES.contains(&word),
    }
}

/// What a call leaves, if what stands before a parenthesis is one.
fn called(statement: &Statement<'_>, index: usize, names: &Learned) -> Option<Vec<Box<str>>> {
    let word = statement.identifier(index);
    let qualified = behind_dot(statement, index);
    // Most of them may be names too.
    let keyword = !qualified
        && (takes_parenthesis(&word) || PLPGSQL_BEFORE_PARENTHESIS.contains(&word.as_ref()))
        && !names.functions.contains_key(word.as_ref());
    let table = index > 0 && statement.is_word(index - 1 - 2 * usize::from(qualified && index > 2), "into");
    if keyword || table {
        return Some(Vec::new());
    }
    let schema = (qualified && index > 1).then(|| statement.identifier(index - 2));
    let name = Name {
        schema: schema.as_deref(),
        name: &word,
    };
    match names.function(name, None) {
        FunctionRoute::Safe
        | FunctionRoute::Writes
        | FunctionRoute::NodeLocal
        | FunctionRoute::MovesSequence
        | FunctionRoute::SessionSequence
        | FunctionRoute::AdvisoryTransaction => Some(Vec::new()),
        FunctionRoute::VolatileWithoutTraces => Some(names.settings_left(name, None)),
        FunctionRoute::SetConfig => configured(statement, index),
        _ => names.type_is_safe(name).then(Vec::new),
    }
}
