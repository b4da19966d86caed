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
    verdict.ddl = true;
    // ALTER { ROLE | USER | DATABASE } … { SET | RESET } …
    let sets = || (2..statement.len()).any(|index| statement.is_any_word(index, &["set", "reset"]));
    if verb == "ALTER" && statement.is_any_word(1, &["role", "user", "database"]) && sets() {
        return verdict.with(Effect::LoginDefaults);
    }
    if verb != "CREATE" {
        return verdict;
    }
    if runs_a_query(statement) {
        verdict = verdict.with_calls(statement);
        // `nextval` in the default of a column isn't called yet.
        verdict.effects.retain(|effect| *effect != Effect::NextVal);
    }
    if is_temporary(statement) {
        verdict.with_pin(PinReason::TemporaryTable)
    } else {
        verdict
    }
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
