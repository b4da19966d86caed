//! Transaction control (manual, BEGIN, COMMIT, ROLLBACK, SAVEPOINT, SET TRANSACTION).

use super::Verdict;
use crate::sql::class::Reason;
use crate::sql::effects::{Effect, Isolation};
use crate::sql::statement::Statement;

/// A statement whose first word is one of transaction control's.
pub(super) fn control(statement: &Statement<'_>) -> Verdict {
    let verdict = Verdict::write(Reason::TransactionControl);
    match statement.identifier(0).as_ref() {
        "begin" | "start" => verdict.with(begin(statement)),
        "commit" | "end" | "rollback" | "abort" => end(statement, verdict),
        "savepoint" => verdict.with(Effect::Savepoint {
            name: statement.identifier(1).into_owned(),
        }),
        "release" => {
            let name = 1 + usize::from(statement.is_word(1, "savepoint") && statement.len() > 2);
            verdict.with(Effect::Release {
                name: statement.identifier(name).into_owned(),
            })
        }
        _ => verdict,
    }
}

fn begin(statement: &Statement<'_>) -> Effect {
    let modes = Modes::read(statement, behind_work(statement));
    Effect::Begin {
        read_only: modes.read_only,
        isolation: modes.isolation,
        deferrable: modes.deferrable,
    }
}

fn behind_work(statement: &Statement<'_>) -> usize {
    1 + usize::from(statement.is_any_word(1, &["work", "transaction"]))
}

fn end(statement: &Statement<'_>, verdict: Verdict) -> Verdict {
    let commits = statement.is_any_word(0, &["commit", "end"]);
    if statement.is_word(1, "prepared") {
        return Verdict::write(Reason::Verb(if commits {
            "COMMIT PREPARED"
        } else {
            "ROLLBACK PREPARED"
        }));
    }
    let next = behind_work(statement);
    if !commits && statement.is_word(next, "to") {
        let name = next + 1 + usize::from(statement.is_word(next + 1, "savepoint") && statement.len() > next + 2);
        return verdict.with(Effect::RollbackTo {
            name: statement.identifier(name).into_owned(),
        });
    }
    let chain = statement.is_word(next, "and") && statement.is_word(next + 1, "chain");
    verdict.with(if commits {
        Effect::Commit { chain }
    } else {
        Effect::Rollback { chain }
    })
}

/// The modes of BEGIN and SET TRANSACTION.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Modes {
    pub(super) read_only: Option<bool>,
    pub(super) isolation: Option<Isolation>,
    pub(super) deferrable: bool,
}

impl Modes {
    /// Reads the modes from token `index` on. What it doesn't know the server refuses.
    pub(super) fn read(statement: &Statement<'_>, mut index: usize) -> Modes {
        let mut modes = Modes::default();
        while index < statement.len() {
            let next = |word: &str| statement.is_word(index + 1, word);
            if statement.is_word(index, "read") && next("only") {
                modes.read_only = Some(true);
                index += 2;
            } else if statement.is_word(index, "read") && next("write") {
                modes.read_only = Some(false);
                index += 2;
            } else if statement.is_word(index, "isolation") && next("level") {
                modes.isolation = isolation(&format!(
                    "{} {}",
                    statement.identifier(index + 2),
                    statement.identifier(index + 3)
                ))
                .or(modes.isolation);
                index += 3;
            } else if statement.is_word(index, "not") && next("deferrable") {
                modes.deferrable = false;
                index += 2;
            } else if statement.is_word(index, "deferrable") {
                modes.deferrable = true;
                index += 1;
            } else {
                index += 1;
            }
        }
        modes
    }
}

/// An isolation level at the beginning of `text`.
pub(super) fn isolation(text: &str) -> Option<Isolation> {
    let mut words = text.split_ascii_whitespace().map(str::to_ascii_lowercase);
    match (words.next().as_deref(), words.next().as_deref()) {
        (Some("serializable"), _) => Some(Isolation::Serializable),
        (Some("repeatable"), Some("read")) => Some(Isolation::RepeatableRead),
        (Some("read"), Some("committed")) => Some(Isolation::ReadCommitted),
        (Some("read"), Some("uncommitted")) => Some(Isolation::ReadUncommitted),
        _ => None,
    }
}
