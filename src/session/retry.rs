//! What to do when a node fails in the middle of something. Pure.
//!
//! Two rules stand above the rest: a statement that may have written is never sent twice, and once a byte of an answer has been forwarded
//! there is no going back. What a client is told says exactly how much is known: 40001 (it certainly did not commit; run it again) or
//! 08007 (nobody knows).

use super::danger::Danger;
use crate::route::Target;
use crate::wire::sqlstate::SqlState;

/// How far the request had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// No byte of it has left for a node.
    NothingSent,
    /// A node may have it.
    SentToNode,
    /// The client has a part of the answer.
    ForwardedToClient,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection to the node could be had.
    NoConnection,
    /// The connection broke. `farewell` is the SQLSTATE of a FATAL error that the server sent first: it had ended the transaction.
    Lost {
        /// What the server said.
        farewell: Option<SqlState>,
    },
    /// The node answered with this error, and is fine.
    Refused(SqlState),
}

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// How far it had come.
    pub progress: Progress,
    /// What running it twice could do.
    pub danger: Danger,
    /// Whether it ran in a transaction block that had begun before it.
    pub in_block: bool,
    /// The kind of node it was sent to.
    pub target: Target,
    /// How often it has been retried after having been sent.
    pub retries: u8,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Decide anew and send it again, to whichever node.
    Retry,
    /// Send it again, to the primary.
    RetryOnPrimary,
    /// Pass the node's own error on.
    Forward,
    /// Tell the client this; its connection stays open.
    Report(Verdict),
}

/// What is known of a request whose node was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It did nothing, or what it did is undone: 40001.
    CertainlyNotCommitted,
    /// It may or may not have committed: 08007.
    Unknown,
}

impl Verdict {
    /// Its SQLSTATE.
    pub fn sqlstate(self) -> SqlState {
        match self {
            Verdict::CertainlyNotCommitted => SqlState::SERIALIZATION_FAILURE,
            Verdict::Unknown => SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
        }
    }
}

/// Judges one failure.
pub fn after(attempt: Attempt, failure: Failure) -> NextStep {
    let may_rerun = attempt.danger == Danger::None
        && !attempt.in_block
        && attempt.retries == 0
        && attempt.progress != Progress::ForwardedToClient;
    match failure {
        Failure::NoConnection => NextStep::Retry,
        Failure::Refused(code) => match refusal(code) {
            Some(step) if may_rerun && attempt.target == Target::Standby => step,
            _ => NextStep::Forward,
        },
        Failure::Lost { farewell } => {
            let unsent = attempt.progress == Progress::NothingSent && !attempt.in_block;
            if unsent || may_rerun {
                NextStep::Retry
            } else {
                NextStep::Report(verdict(attempt, farewell))
            }
        }
    }
}

fn verdict(attempt: Attempt, farewell: Option<SqlState>) -> Verdict {
    if attempt.progress == Progress::NothingSent || attempt.target == Target::Standby {
        return Verdict::CertainlyNotCommitted;
    }
    match attempt.danger {
        Danger::None => Verdict::CertainlyNotCommitted,
        // A block that was open before takes what it ran with it when it is lost.
        Danger::Write if attempt.in_block => Verdict::CertainlyNotCommitted,
        // A FATAL answer means that the server rolled back before it said goodbye: one that had committed would have said so first.
        Danger::Write | Danger::Commit if farewell.is_some() => Verdict::CertainlyNotCommitted,
        Danger::Write | Danger::Commit | Danger::Several => Verdict::Unknown,
    }
}

/// Errors by which a standby says that it is the wrong node for a read, or not in a state to answer it.
fn refusal(code: SqlState) -> Option<NextStep> {
    const WRONG_NODE: [SqlState; 4] = [
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::FEATURE_NOT_SUPPORTED,
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        SqlState::INTERNAL_ERROR,
    ];
    // Made a moment ago on the primary, and not replayed yet.
    const NOT_THERE_YET: [SqlState; 5] = [
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::UNDEFINED_FUNCTION,
        SqlState::UNDEFINED_OBJECT,
        SqlState::INVALID_SCHEMA_NAME,
    ];
    const ELSEWHERE: [SqlState; 6] = [
        SqlState::SERIALIZATION_FAILURE,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::UNDEFINED_FILE,
        SqlState::DEADLOCK_DETECTED,
    ];
    if WRONG_NODE.contains(&code) || NOT_THERE_YET.contains(&code) {
        Some(NextStep::RetryOnPrimary)
    } else if ELSEWHERE.contains(&code) {
        Some(NextStep::Retry)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRESS: [Progress; 3] = [Progress::NothingSent, Progress::SentToNode, Progress::ForwardedToClient];
    const DANGER: [Danger; 4] = [Danger::None, Danger::Write, Danger::Commit, Danger::Several];

    fn attempts() -> impl Iterator<Item = Attempt> {
        PROGRESS.into_iter().flat_map(|progress| {
            DANGER.into_iter().flat_map(move |danger| {
                [false, true].into_iter().flat_map(move |in_block| {
                    [Target::Primary, Target::Standby].into_iter().flat_map(move |target| {
                        [0, 1].map(|retries| Attempt {
                            progress,
                            danger,
                            in_block,
                            target,
                            retries,
                        })
                    })
                })
            })
        })
    }

    #[test]
    fn nothing_that_may_have_written_is_ever_sent_twice() {
        let failures = [
            Failure::Lost { farewell: None },
            Failure::Lost {
                farewell: Some(SqlState::ADMIN_SHUTDOWN),
            },
            Failure::Refused(SqlState::READ_ONLY_SQL_TRANSACTION),
            Failure::Refused(SqlState::SERIALIZATION_FAILURE),
        ];
        for attempt in attempts().filter(|a| a.danger != Danger::None && a.progress != Progress::NothingSent) {
            for failure in failures {
                let step = after(attempt, failure);
                assert!(
                    !matches!(step, NextStep::Retry | NextStep::RetryOnPrimary),
                    "{attempt:?} {failure:?}"
                );
            }
        }
    }

    #[test]
    fn nothing_runs_again_after_a_byte_was_forwarded_or_in_a_block() {
        for attempt in attempts().filter(|a| a.in_block || a.progress == Progress::ForwardedToClient) {
            for failure in [
                Failure::Lost { farewell: None },
                Failure::Refused(SqlState::READ_ONLY_SQL_TRANSACTION),
            ] {
                assert!(
                    !matches!(after(attempt, failure), NextStep::Retry | NextStep::RetryOnPrimary),
                    "{attempt:?}"
                );
            }
        }
    }

    #[test]
    fn a_commit_in_flight_is_unknown_and_a_lost_block_is_not() {
        let base = Attempt {
            progress: Progress::SentToNode,
            danger: Danger::Commit,
            in_block: true,
            target: Target::Primary,
            retries: 0,
        };
        let lost = Failure::Lost { farewell: None };
        assert_eq!(after(base, lost), NextStep::Report(Verdict::Unknown));
        assert_eq!(
            after(
                Attempt {
                    danger: Danger::Write,
                    ..base
                },
                lost
            ),
            NextStep::Report(Verdict::CertainlyNotCommitted)
        );
        assert_eq!(
            after(
                Attempt {
                    danger: Danger::Write,
                    in_block: false,
                    ..base
                },
                lost
            ),
            NextStep::Report(Verdict::Unknown)
        );
        assert_eq!(
            after(
                base,
                Failure::Lost {
                    farewell: Some(SqlState::ADMIN_SHUTDOWN)
                }
            ),
            NextStep::Report(Verdict::CertainlyNotCommitted)
        );
    }

    #[test]
    fn a_read_that_a_standby_refuses_runs_on_the_primary_once() {
        let read = Attempt {
            progress: Progress::SentToNode,
            danger: Danger::None,
            in_block: false,
            target: Target::Standby,
            retries: 0,
        };
        let refused = Failure::Refused(SqlState::READ_ONLY_SQL_TRANSACTION);
        assert_eq!(after(read, refused), NextStep::RetryOnPrimary);
        assert_eq!(after(Attempt { retries: 1, ..read }, refused), NextStep::Forward);
        assert_eq!(
            after(
                Attempt {
                    target: Target::Primary,
                    ..read
                },
                refused
            ),
            NextStep::Forward
        );
        assert_eq!(after(read, Failure::Lost { farewell: None }), NextStep::Retry);
        assert_eq!(
            after(read, Failure::Refused(SqlState::UNIQUE_VIOLATION)),
            NextStep::Forward
        );
    }
}
