//! What a function's body may leave on its server connection: settings, locks, temporary tables, channels, cursors, statements.

use super::Learned;
use crate::sql::lexer::{Kind, PlainStrings};
use crate::sql::names::{Catalog, FunctionRoute, Name};
use crate::sql::statement::{Statement, Statements};
use crate::sql::tokens::takes_parenthesis;

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

/// Words of PL/pgSQL in front of a parenthesis that is no call's.
const BEFORE_PARENTHESIS: &[&str] = &[
    "assert", "elseif", "elsif", "if", "into", "perform", "query", "raise", "return", "set", "while",
];

/// Whether a body in SQL or PL/pgSQL may leave something behind.
pub(super) fn leaves_traces(body: &str, names: &Learned) -> bool {
    let mut statements = Statements::new(body.as_bytes(), PlainStrings::Conforming);
    statements.any(|statement| {
        statement.unterminated
            || statement.truncated
            || (0..statement.len()).any(|index| leaves(&statement, index, names))
    })
}

fn leaves(statement: &Statement<'_>, index: usize, names: &Learned) -> bool {
    match statement.kind(index) {
        Some(Kind::Word) if !behind_dot(statement, index) && is_leaving_word(statement, index) => true,
        Some(Kind::Word | Kind::Quoted) if statement.is_punct(index + 1, b'(') => !is_harmless(statement, index, names),
        Some(Kind::UnicodeQuoted | Kind::BackslashString | Kind::Unterminated | Kind::Other) => true,
        _ => false,
    }
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

/// Whether what stands before a parenthesis is no call, or that of a function which leaves nothing.
fn is_harmless(statement: &Statement<'_>, index: usize, names: &Learned) -> bool {
    let word = statement.identifier(index);
    let qualified = behind_dot(statement, index);
    let keyword = !qualified && (takes_parenthesis(&word) || BEFORE_PARENTHESIS.contains(&word.as_ref()));
    let table = index > 0 && statement.is_word(index - 1 - 2 * usize::from(qualified && index > 2), "into");
    if keyword || table {
        return true;
    }
    let schema = (qualified && index > 1).then(|| statement.identifier(index - 2));
    let name = Name {
        schema: schema.as_deref(),
        name: &word,
    };
    matches!(
        names.function(name, None),
        FunctionRoute::Safe
            | FunctionRoute::Writes
            | FunctionRoute::NodeLocal
            | FunctionRoute::MovesSequence
            | FunctionRoute::SessionSequence
            | FunctionRoute::AdvisoryTransaction
            | FunctionRoute::VolatileWithoutTraces
    ) || names.type_is_safe(name)
}
