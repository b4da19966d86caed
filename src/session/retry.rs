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
    /// The connection broke.
    Lost(Parting),
    /// The node answered with this error, and is fine.
    Refused(SqlState),
}

/// What the server said before its connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// Nothing: what it was running may be the very reason.
    Silent,
    /// A warning that it stops at once. What it was running is not the reason; how that ended is not known.
    Announced,
    /// A FATAL error: it had ended the transaction.
    Farewell,
}

/// How often what can run again runs again, whatever happens: more nodes than that aren't lost one after another in the time that a
/// statement takes.
pub const RERUNS: u8 = 4;

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
    /// How often it has been retried after having been sent. From [`RERUNS`] on, it isn't any more.
    pub retries: u8,
    /// Whether its connection was lost without a word before: what takes its server with it must not go round the cluster.
    pub suspect: bool,
    /// Whether its standby is known to have everything that was committed before the request came: what it doesn't know isn't there.
    pub current: bool,
    /// Whether a refusal because the transaction is read-only comes before anything of that transaction has run.
    pub refused_first: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Decide anew and send it again, to whichever node.
    Retry,
    /// Send it again, to a standby that is known to have everything that was committed before it came.
    RetryOnCurrent,
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
        && attempt.retries < RERUNS
        && attempt.progress != Progress::ForwardedToClient;
    // By the primary: a switchover may be moving the writes elsewhere. Nothing has run, so nothing runs twice.
    let may_move = attempt.target == Target::Primary
        && attempt.refused_first
        && matches!(attempt.danger, Danger::None | Danger::Write)
        && attempt.retries == 0
        && attempt.progress != Progress::ForwardedToClient;
    match failure {
        Failure::Refused(SqlState::READ_ONLY_SQL_TRANSACTION) if may_move => NextStep::RetryOnPrimary,
        Failure::NoConnection => NextStep::Retry,
        Failure::Refused(code) => match refusal(code) {
            Some(NextStep::RetryOnCurrent) if attempt.current => NextStep::Forward,
            // The second standby to refuse it is the last that is asked.
            Some(_) if may_rerun && attempt.retries > 0 && attempt.target == Target::Standby => {
                NextStep::RetryOnPrimary
            }
            Some(step) if may_rerun && attempt.target == Target::Standby => step,
            _ => NextStep::Forward,
        },
        Failure::Lost(parting) => {
            let unsent = attempt.progress == Progress::NothingSent && !attempt.in_block;
            let innocent = parting != Parting::Silent || !attempt.suspect;
            if unsent || (may_rerun && innocent) {
                NextStep::Retry
            } else {
                NextStep::Report(verdict(attempt, parting))
            }
        }
    }
}

fn verdict(attempt: Attempt, parting: Parting) -> Verdict {
    if attempt.progress == Progress::NothingSent || attempt.target == Target::Standby {
        return Verdict::CertainlyNotCommitted;
    }
    match attempt.danger {
        Danger::None => Verdict::CertainlyNotCommitted,
        // A block that was open before takes what it ran with it when it is lost.
        Danger::Write | Danger::Writes if attempt.in_block => Verdict::CertainlyNotCommitted,
        // A FATAL answer means that the server rolled back before it said goodbye: one that had committed would have said so first.
        Danger::Write | Danger::Commit if parting == Parting::Farewell => Verdict::CertainlyNotCommitted,
        Danger::Write | Danger::Writes | Danger::Commit | Danger::Several => Verdict::Unknown,
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
    if NOT_THERE_YET.contains(&code) {
        Some(NextStep::RetryOnCurrent)
    } else if WRONG_NODE.contains(&code) {
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
    const DANGER: [Danger; 5] = [
        Danger::None,
        Danger::Write,
        Danger::Writes,
        Danger::Commit,
        Danger::Several,
    ];

    fn attempts() -> impl Iterator<Item = Attempt> {
        PROGRESS.into_iter().flat_map(|progress| {
            DANGER.into_iter().flat_map(move |danger| {
                [false, true].into_iter().flat_map(move |in_block| {
                    [Target::Primary, Target::Standby].into_iter().flat_map(move |target| {
                        [0, 1, RERUNS].map(|retries| Attempt {
                            progress,
                            danger,
                            in_block,
                            target,
                            retries,
                            suspect: false,
                            current: false,
                            refused_first: false,
                        })
                    })
                })
            })
        })
    }

    #[test]
    fn nothing_that_may_have_written_is_ever_sent_twice() {
        let failures = [
            Failure::Lost(Parting::Silent),
            Failure::Lost(Parting::Announced),
            Failure::Lost(Parting::Farewell),
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
    fn what_a_primary_refuses_before_it_runs_is_sent_once_more_and_no_more() {
        let refused = Failure::Refused(SqlState::READ_ONLY_SQL_TRANSACTION);
        for attempt in attempts().filter(|attempt| attempt.target == Target::Primary) {
            let step = after(
                Attempt {
                    refused_first: true,
                    ..attempt
                },
                refused,
            );
            let fit = matches!(attempt.danger, Danger::None | Danger::Write)
                && attempt.retries == 0
                && attempt.progress != Progress::ForwardedToClient;
            assert_eq!(step == NextStep::RetryOnPrimary, fit, "{attempt:?}");
            assert_eq!(after(attempt, refused), NextStep::Forward, "{attempt:?}");
        }
    }

    #[test]
    fn nothing_runs_again_after_a_byte_was_forwarded_or_in_a_block() {
        for attempt in attempts().filter(|a| a.in_block || a.progress == Progress::ForwardedToClient) {
            for failure in [
                Failure::Lost(Parting::Silent),
                Failure::Lost(Parting::Farewell),
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
            suspect: false,
            current: false,
            refused_first: false,
        };
        let lost = Failure::Lost(Parting::Silent);
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
            after(base, Failure::Lost(Parting::Farewell)),
            NextStep::Report(Verdict::CertainlyNotCommitted)
        );
        // Writes in a row are a part of a block that is lost, and outside of one each stands for itself.
        let row = Attempt {
            danger: Danger::Writes,
            ..base
        };
        assert_eq!(after(row, lost), NextStep::Report(Verdict::CertainlyNotCommitted));
        let row = Attempt { in_block: false, ..row };
        assert_eq!(after(row, lost), NextStep::Report(Verdict::Unknown));
        let farewell = Failure::Lost(Parting::Farewell);
        assert_eq!(after(row, farewell), NextStep::Report(Verdict::Unknown));
        // A warning doesn't say that the commit was not carried out.
        assert_eq!(
            after(base, Failure::Lost(Parting::Announced)),
            NextStep::Report(Verdict::Unknown)
        );
    }

    #[test]
    fn a_read_outlives_several_stops_but_does_not_take_one_node_after_another_with_it() {
        let read = Attempt {
            progress: Progress::SentToNode,
            danger: Danger::None,
            in_block: false,
            target: Target::Standby,
            retries: 1,
            suspect: false,
            current: false,
            refused_first: false,
        };
        let given_up = NextStep::Report(Verdict::CertainlyNotCommitted);
        for parting in [Parting::Silent, Parting::Announced, Parting::Farewell] {
            assert_eq!(after(read, Failure::Lost(parting)), NextStep::Retry);
            let last = Attempt {
                retries: RERUNS,
                ..read
            };
            assert_eq!(after(last, Failure::Lost(parting)), given_up);
        }
        let suspect = Attempt { suspect: true, ..read };
        assert_eq!(after(suspect, Failure::Lost(Parting::Silent)), given_up);
        assert_eq!(after(suspect, Failure::Lost(Parting::Announced)), NextStep::Retry);
    }

    #[test]
    fn a_read_that_a_standby_refuses_runs_on_the_primary_once() {
        let read = Attempt {
            progress: Progress::SentToNode,
            danger: Danger::None,
            in_block: false,
            target: Target::Standby,
            retries: 0,
            suspect: false,
            current: false,
            refused_first: false,
        };
        let refused = Failure::Refused(SqlState::READ_ONLY_SQL_TRANSACTION);
        assert_eq!(after(read, refused), NextStep::RetryOnPrimary);
        assert_eq!(
            after(
                Attempt {
                    retries: RERUNS,
                    ..read
                },
                refused
            ),
            NextStep::Forward
        );
        // What one doesn't know may not be there yet, and where all is there it isn't at all.
        let unknown = Failure::Refused(SqlState::UNDEFINED_TABLE);
        assert_eq!(after(read, unknown), NextStep::RetryOnCurrent);
        let again = Attempt {
            retries: 1,
            current: true,
            ..read
        };
        assert_eq!(after(again, unknown), NextStep::Forward);
        // A conflict with replay on the second standby too: the primary has none.
        let conflict = Failure::Refused(SqlState::SERIALIZATION_FAILURE);
        assert_eq!(after(read, conflict), NextStep::Retry);
        assert_eq!(
            after(Attempt { retries: 1, ..read }, conflict),
            NextStep::RetryOnPrimary
        );
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
        assert_eq!(after(read, Failure::Lost(Parting::Silent)), NextStep::Retry);
        assert_eq!(
            after(read, Failure::Refused(SqlState::UNIQUE_VIOLATION)),
            NextStep::Forward
        );
    }
}
