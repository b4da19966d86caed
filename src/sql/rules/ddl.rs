//! What changes the catalog: CREATE, ALTER, DROP, COMMENT, GRANT, REVOKE and their like.

use super::Verdict;
use crate::sql::class::Reason;
use crate::sql::effects::{Effect, PinReason};
use crate::sql::statement::Statement;

/// A statement of data definition. `verb` is its first word.
pub(super) fn ddl(statement: &Statement<'_>, verb: &'static str) -> Verdict {
    if verb == "ALTER" && statement.is_word(1, "system") {
        return Verdict::write(Reason::Verb("ALTER SYSTEM"));
    }
    let mut verdict = Verdict::write(Reason::Verb(verb));
    verdict.ddl = !is_about_rights(verb) && !statement.is_any_word(1, &["index", "unique"]);
    verdict.changes_names = changes_names(statement, verb);
    if decides_on_logins(statement, verb) {
        verdict = verdict.with(Effect::LoginDefaults);
    }
    if let Some(name) = database_needed_alone(statement, verb) {
        return verdict.with(Effect::NeedsDatabaseAlone { name });
    }
    if verb == "DROP" {
        return verdict.with(Effect::MayUnpin(PinReason::TemporaryTable));
    }
    if verb != "CREATE" {
        return verdict;
    }
    if runs_a_query(statement) {
        verdict = verdict.with_calls(statement);
        if !has_query(statement) {
            // `nextval` in the default of a column isn't called yet.
            verdict.effects.retain(|effect| *effect != Effect::NextVal);
        }
    }
    if is_temporary(statement) {
        verdict.with_pin(PinReason::TemporaryTable)
    } else {
        verdict
    }
}

fn is_about_rights(verb: &str) -> bool {
    matches!(verb, "COMMENT" | "GRANT" | "REVOKE" | "SECURITY LABEL")
}

/// Whether a statement of data definition may change what a read does that names something: anything but plain tables, their columns and
/// indexes, and rights.
pub(super) fn changes_names(statement: &Statement<'_>, verb: &str) -> bool {
    const WORDS: &[&str] = &[
        "aggregate",
        "cast",
        "domain",
        "extension",
        "foreign",
        "function",
        "inherit",
        "inherits",
        "language",
        "logged",
        "operator",
        "owned",
        "partition",
        "policy",
        "procedure",
        "rename",
        "routine",
        "row",
        "rule",
        "schema",
        "sequence",
        "server",
        "trigger",
        "type",
        "unlogged",
        "view",
    ];
    !is_about_rights(verb)
        && (statement.truncated || (1..statement.len()).any(|index| statement.is_any_word(index, WORDS)))
}

/// What changes who may log in, or what sessions begin with: { ALTER | DROP } { ROLE | USER | GROUP }, ALTER DATABASE, { GRANT | REVOKE } … ON
/// DATABASE.
fn decides_on_logins(statement: &Statement<'_>, verb: &str) -> bool {
    let of_role = statement.is_any_word(1, &["role", "user", "group"]) && !statement.is_word(2, "mapping");
    let on_database = || {
        let on = (1..statement.len()).find(|&index| statement.is_word(index, "on"));
        on.is_some_and(|on| statement.is_word(on + 1, "database"))
    };
    match verb {
        "DROP" => of_role,
        "ALTER" => of_role || statement.is_word(1, "database"),
        "GRANT" | "REVOKE" => on_database(),
        _ => false,
    }
}

/// DROP DATABASE [IF EXISTS] name, ALTER DATABASE name { RENAME | SET TABLESPACE } …, CREATE DATABASE … TEMPLATE [=] name: the server refuses
/// them while anybody else is connected to that database.
fn database_needed_alone(statement: &Statement<'_>, verb: &str) -> Option<String> {
    if !statement.is_word(1, "database") {
        return None;
    }
    let name = match verb {
        "DROP" if statement.is_word(2, "if") => 4,
        "DROP" => 2,
        "ALTER" if statement.is_word(3, "rename") => 2,
        "ALTER" if statement.is_word(3, "set") && statement.is_word(4, "tablespace") => 2,
        "CREATE" => {
            let Some(template) = (3..statement.len()).find(|&index| statement.is_word(index, "template")) else {
                return Some("template1".to_owned());
            };
            template + 1 + usize::from(statement.is_operator(template + 1, "="))
        }
        _ => return None,
    };
    Some(statement.identifier(name).into_owned()).filter(|name| !name.is_empty())
}

/// CREATE [OR REPLACE] [GLOBAL | LOCAL] TEMP[ORARY] …
fn is_temporary(statement: &Statement<'_>) -> bool {
    (1..statement.len())
        .take_while(|&index| statement.is_any_word(index, &["or", "replace", "global", "local", "temp", "temporary"]))
        .any(|index| statement.is_any_word(index, &["temp", "temporary"]))
}

/// CREATE TABLE AS, CREATE MATERIALIZED VIEW.
fn runs_a_query(statement: &Statement<'_>) -> bool {
    (1..statement.len().min(6)).any(|index| statement.is_any_word(index, &["table", "materialized"]))
}

/// Whether AS follows, outside of parentheses.
fn has_query(statement: &Statement<'_>) -> bool {
    let mut depth = 0usize;
    (1..statement.len()).any(|index| {
        depth += usize::from(statement.is_punct(index, b'('));
        depth = depth.saturating_sub(usize::from(statement.is_punct(index, b')')));
        depth == 0 && statement.is_word(index, "as")
    })
}
