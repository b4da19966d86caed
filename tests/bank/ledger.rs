//! Whether what the tellers were told is true, held against what the bank has in the end. Pure.
//!
//! Every try of a transfer writes a row of its own, so that it is known of each try, and not only of each transfer, whether it took effect.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

/// A try: the transfer's number, and how many tries it had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Try {
    pub transfer: u64,
    pub number: u32,
}

impl fmt::Display for Try {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transfer {} try {}", self.transfer, self.number)
    }
}

/// How a try ended, as its teller was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It was reported as done.
    Acknowledged,
    /// The first SQLSTATE that it was answered with.
    Refused(String),
    /// The connection was closed instead.
    Closed,
    /// The server, or the proxy, said what it can't say.
    Absurd(String),
}

/// What a step that failed could have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It, or what was sent together with it, may end the transaction.
    MayCommit,
    /// It stands in a block of which the end wasn't sent.
    Inside,
}

/// One try, as its teller saw it.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub what: Try,
    /// How it was sent, and how far it came, for whoever reads a failure.
    pub how: String,
    pub reach: Reach,
    pub began: Instant,
    pub ended: Instant,
    pub ending: Ending,
}

/// An answer to "is it there?", which a teller asks when it was told that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The last try before it. The question is for the transfer.
    pub after: Try,
    pub found: bool,
}

/// All that the tellers were told.
#[derive(Debug, Default)]
pub struct History {
    pub attempts: Vec<Attempt>,
    pub looks: Vec<Look>,
    /// Transfers that their own session didn't see, though it was told that they were done.
    pub unseen: Vec<u64>,
    /// What the balances added up to, as often as somebody asked.
    pub totals: Vec<i64>,
    /// What was told instead of an answer to a read, and to whom.
    pub failed_reads: Vec<String>,
    /// Connections that were closed while nothing was asked on them.
    pub closed_idle: Vec<String>,
    /// Anything else that must not be.
    pub strange: Vec<String>,
}

impl History {
    /// Adds what another teller was told.
    pub fn extend(&mut self, other: History) {
        self.attempts.extend(other.attempts);
        self.looks.extend(other.looks);
        self.unseen.extend(other.unseen);
        self.totals.extend(other.totals);
        self.failed_reads.extend(other.failed_reads);
        self.closed_idle.extend(other.closed_idle);
        self.strange.extend(other.strange);
    }
}

/// A row of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub what: Try,
    pub from: usize,
    pub to: usize,
    pub amount: i64,
}

/// What the last primary has.
#[derive(Debug, Default, Clone)]
pub struct Books {
    /// What each account began with.
    pub opening: i64,
    /// By account.
    pub balances: Vec<i64>,
    pub rows: Vec<Row>,
}

/// What a server that was left behind by a promotion has and its successor hasn't: lost by PostgreSQL's replication, not by the proxy.
#[derive(Debug, Clone)]
pub struct LeftBehind {
    pub tries: BTreeSet<Try>,
    /// By then the proxy knew the successor: what was begun later has no excuse.
    pub known_since: Instant,
}

/// What is wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged, not there, and not left behind with an old primary.
    pub lost: Vec<Try>,
    /// Acknowledged, and left behind with an old primary: what asynchronous replication may lose.
    pub left_behind: Vec<Try>,
    /// There more than once.
    pub twice: Vec<u64>,
    /// Told something that isn't so, or isn't told so.
    pub misreported: Vec<String>,
    /// A teller looked for it and didn't find it, and it is there.
    pub overlooked: Vec<Try>,
    /// Acknowledged, there, and not seen by its own session.
    pub unseen: Vec<u64>,
    /// Sums that aren't right.
    pub unbalanced: Vec<String>,
    /// Connections closed.
    pub closed: Vec<String>,
    /// Whatever else must not be.
    pub strange: Vec<String>,
}

impl Verdict {
    /// Everything but what PostgreSQL has lost, as lines.
    pub fn violations(&self) -> Vec<String> {
        let lines = |name: &'static str, list: Vec<String>| list.into_iter().map(move |line| format!("{name}: {line}"));
        let shown = |list: &[Try]| list.iter().map(Try::to_string).collect::<Vec<_>>();
        let numbers = |list: &[u64]| list.iter().map(|id| format!("transfer {id}")).collect::<Vec<_>>();
        lines("lost", shown(&self.lost))
            .chain(lines("twice", numbers(&self.twice)))
            .chain(lines("misreported", self.misreported.clone()))
            .chain(lines("overlooked", shown(&self.overlooked)))
            .chain(lines("unseen by its own session", numbers(&self.unseen)))
            .chain(lines("unbalanced", self.unbalanced.clone()))
            .chain(lines("closed", self.closed.clone()))
            .chain(lines("strange", self.strange.clone()))
            .collect()
    }
}

/// Judges. `hold_timeout` is how long a statement waits for a primary before 57P03 is the truth.
pub fn judge(history: &History, books: &Books, left: &[LeftBehind], hold_timeout: Duration) -> Verdict {
    let there: BTreeSet<Try> = books.rows.iter().map(|row| row.what).collect();
    let mut verdict = Verdict {
        strange: history.strange.clone(),
        closed: history.closed_idle.clone(),
        ..Verdict::default()
    };
    count(&mut verdict, books);
    let tried: BTreeSet<Try> = history.attempts.iter().map(|attempt| attempt.what).collect();
    let from_nowhere = there
        .difference(&tried)
        .map(|what| format!("{what} is there, and was never tried"));
    verdict.strange.extend(from_nowhere);
    for attempt in &history.attempts {
        hold_against(&mut verdict, attempt, &there, left, hold_timeout);
    }
    let rows_of = |transfer| move |what: &&Try| what.transfer == transfer;
    for Look { after, found } in &history.looks {
        let rows: Vec<Try> = there.iter().filter(rows_of(after.transfer)).copied().collect();
        // One that was left behind later was seen, and rightly.
        let was_there = || {
            left.iter()
                .any(|left| left.tries.iter().any(|what| what.transfer == after.transfer))
        };
        if *found && rows.is_empty() && !was_there() {
            let told = format!("transfer {} was found by a look, and isn't there", after.transfer);
            verdict.strange.push(told);
        }
        if !found {
            verdict.overlooked.extend(rows.iter().filter(|what| *what <= after));
        }
    }
    let has = |transfer: &u64| there.iter().any(|what| what.transfer == *transfer);
    verdict.unseen = history
        .unseen
        .iter()
        .filter(|transfer| has(transfer))
        .copied()
        .collect();
    let wanted = books.opening * books.balances.len() as i64;
    let wrong = history.totals.iter().filter(|total| **total != wanted);
    verdict
        .unbalanced
        .extend(wrong.map(|total| format!("somebody read a total of {total}, not {wanted}")));
    verdict.misreported.extend(history.failed_reads.iter().cloned());
    verdict
}

/// Rows and balances by themselves.
fn count(verdict: &mut Verdict, books: &Books) {
    let mut rows: BTreeMap<u64, usize> = BTreeMap::new();
    let mut balances = vec![books.opening; books.balances.len()];
    for row in &books.rows {
        *rows.entry(row.what.transfer).or_default() += 1;
        balances[row.from] -= row.amount;
        balances[row.to] += row.amount;
    }
    verdict.twice = rows
        .iter()
        .filter(|(_, count)| **count > 1)
        .map(|(transfer, _)| *transfer)
        .collect();
    for (account, (found, wanted)) in books.balances.iter().zip(&balances).enumerate() {
        if found != wanted {
            let told = format!("account {account} has {found}, and {wanted} by the ledger");
            verdict.unbalanced.push(told);
        }
    }
}

/// One try by itself.
fn hold_against(
    verdict: &mut Verdict,
    attempt: &Attempt,
    there: &BTreeSet<Try>,
    left: &[LeftBehind],
    hold_timeout: Duration,
) {
    let (what, how) = (attempt.what, &attempt.how);
    let is_there = there.contains(&what);
    match &attempt.ending {
        Ending::Acknowledged if is_there => {}
        Ending::Acknowledged => {
            let behind = left.iter().find(|left| left.tries.contains(&what));
            match behind {
                Some(left) if attempt.began <= left.known_since => verdict.left_behind.push(what),
                Some(_) | None => verdict.lost.push(what),
            }
        }
        Ending::Refused(code) => {
            let certain = match code.as_str() {
                "40001" => true,
                "57P03" if attempt.ended - attempt.began >= hold_timeout => true,
                "08007" if attempt.reach == Reach::MayCommit => false,
                "08007" => {
                    let told = format!("{what} was told 08007 where its end hadn't been sent ({how})");
                    return verdict.misreported.push(told);
                }
                _ => return verdict.misreported.push(format!("{what} was told {code} ({how})")),
            };
            if certain && is_there {
                verdict
                    .misreported
                    .push(format!("{what} was told {code}, and is there ({how})"));
            }
        }
        Ending::Closed => verdict.closed.push(format!("{what} lost its connection ({how})")),
        Ending::Absurd(told) => verdict.strange.push(format!("{what}: {told} ({how})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(10);

    fn at(transfer: u64, number: u32) -> Try {
        Try { transfer, number }
    }

    /// A story of which everything is told at one moment.
    struct Story {
        history: History,
        books: Books,
        left: Vec<LeftBehind>,
        now: Instant,
    }

    impl Story {
        fn new() -> Story {
            Story {
                history: History::default(),
                books: Books {
                    opening: 100,
                    balances: vec![100; 3],
                    rows: Vec::new(),
                },
                left: Vec::new(),
                now: Instant::now(),
            }
        }

        /// A try, and what was told.
        fn told(mut self, what: Try, ending: Ending) -> Story {
            self.history.attempts.push(Attempt {
                what,
                how: "a test".into(),
                reach: Reach::MayCommit,
                began: self.now,
                ended: self.now,
                ending,
            });
            self
        }

        /// The same for an error.
        fn refused(self, what: Try, code: &str) -> Story {
            self.told(what, Ending::Refused(code.into()))
        }

        /// It took effect.
        fn booked(mut self, what: Try) -> Story {
            self.books.rows.push(Row {
                what,
                from: 0,
                to: 1,
                amount: 10,
            });
            self.books.balances[0] -= 10;
            self.books.balances[1] += 10;
            self
        }

        fn looked(mut self, after: Try, found: bool) -> Story {
            self.history.looks.push(Look { after, found });
            self
        }

        fn behind(mut self, what: Try, known_since: Instant) -> Story {
            self.left.push(LeftBehind {
                tries: BTreeSet::from([what]),
                known_since,
            });
            self
        }

        fn judged(&self) -> Verdict {
            judge(&self.history, &self.books, &self.left, HOLD)
        }

        /// The violations, and that there are no others than these.
        #[track_caller]
        fn shows(&self, wanted: &[&str]) {
            let found = self.judged().violations();
            assert_eq!(found.len(), wanted.len(), "{found:#?}");
            for (found, wanted) in found.iter().zip(wanted) {
                assert!(found.starts_with(wanted), "{found:?} is not {wanted:?}");
            }
        }
    }

    #[test]
    fn an_honest_history_has_no_violation() {
        let mut story = Story::new()
            .told(at(1, 0), Ending::Acknowledged)
            .booked(at(1, 0))
            // Certainly not done, tried again, done.
            .refused(at(2, 0), "40001")
            .told(at(2, 1), Ending::Acknowledged)
            .booked(at(2, 1))
            // Nobody knew, and it was.
            .refused(at(3, 0), "08007")
            .booked(at(3, 0))
            .looked(at(3, 0), true)
            // Nobody knew, it wasn't, and was tried again.
            .refused(at(4, 0), "08007")
            .looked(at(4, 0), false)
            .told(at(4, 1), Ending::Acknowledged)
            .booked(at(4, 1));
        story.history.totals.push(300);
        story.shows(&[]);
    }

    #[test]
    fn an_acknowledged_transfer_that_is_not_there_is_lost_unless_an_old_primary_has_it() {
        let story = Story::new().told(at(1, 0), Ending::Acknowledged);
        story.shows(&["lost: transfer 1 try 0"]);
        let now = story.now;
        let story = story.behind(at(1, 0), now);
        story.shows(&[]);
        assert_eq!(story.judged().left_behind, [at(1, 0)]);
    }

    #[test]
    fn what_was_begun_when_the_successor_was_known_has_no_excuse() {
        let story = Story::new().told(at(1, 0), Ending::Acknowledged);
        let before = story.now - Duration::from_millis(1);
        story.behind(at(1, 0), before).shows(&["lost: transfer 1 try 0"]);
    }

    #[test]
    fn a_transfer_that_is_there_twice_is_seen_whatever_was_told() {
        let story = Story::new()
            .refused(at(1, 0), "08007")
            .booked(at(1, 0))
            .told(at(1, 1), Ending::Acknowledged)
            .booked(at(1, 1));
        story.shows(&["twice: transfer 1"]);
        let same = Story::new()
            .told(at(1, 0), Ending::Acknowledged)
            .booked(at(1, 0))
            .booked(at(1, 0));
        same.shows(&["twice: transfer 1"]);
    }

    #[test]
    fn certainly_not_done_and_there_is_misreported() {
        let story = Story::new().refused(at(1, 0), "40001").booked(at(1, 0));
        story.shows(&["misreported: transfer 1 try 0 was told 40001, and is there"]);
    }

    #[test]
    fn no_primary_is_an_answer_only_after_hold_timeout() {
        let mut story = Story::new().refused(at(1, 0), "57P03");
        story.shows(&["misreported: transfer 1 try 0 was told 57P03"]);
        story.history.attempts[0].ended += HOLD;
        story.shows(&[]);
        story
            .booked(at(1, 0))
            .shows(&["misreported: transfer 1 try 0 was told 57P03, and is there"]);
    }

    #[test]
    fn any_other_code_is_misreported_and_so_is_doubt_where_there_is_none() {
        for code in ["57P01", "25P02", "08006", "XX000", "40P01"] {
            Story::new().refused(at(1, 0), code).shows(&["misreported"]);
        }
        let mut story = Story::new().refused(at(1, 0), "08007");
        story.history.attempts[0].reach = Reach::Inside;
        story.shows(&["misreported: transfer 1 try 0 was told 08007 where its end hadn't been sent"]);
    }

    #[test]
    fn money_that_comes_from_nowhere_or_goes_there_is_seen() {
        let mut story = Story::new().told(at(1, 0), Ending::Acknowledged).booked(at(1, 0));
        story.books.balances[1] -= 10;
        story.shows(&["unbalanced: account 1 has 100, and 110 by the ledger"]);
        let mut story = Story::new();
        story.history.totals.push(290);
        story.shows(&["unbalanced: somebody read a total of 290, not 300"]);
        let story = Story::new().booked(at(7, 0));
        story.shows(&["strange: transfer 7 try 0 is there, and was never tried"]);
    }

    #[test]
    fn a_look_that_errs_is_seen_both_ways() {
        let missed = Story::new()
            .refused(at(1, 0), "08007")
            .looked(at(1, 0), false)
            .booked(at(1, 0));
        missed.shows(&["overlooked: transfer 1 try 0"]);
        let dreamt = Story::new().refused(at(1, 0), "08007").looked(at(1, 0), true);
        dreamt.shows(&["strange: transfer 1 was found by a look, and isn't there"]);
        let (dreamt, now) = (
            Story::new().refused(at(1, 0), "08007").looked(at(1, 0), true),
            Instant::now(),
        );
        dreamt.behind(at(1, 0), now).shows(&[]);
    }

    #[test]
    fn closed_connections_failed_reads_and_own_writes_that_are_not_seen_are_violations() {
        Story::new()
            .told(at(1, 0), Ending::Closed)
            .shows(&["closed: transfer 1 try 0"]);
        Story::new()
            .told(at(1, 0), Ending::Absurd("COMMIT answered ROLLBACK".into()))
            .shows(&["strange: transfer 1 try 0: COMMIT answered ROLLBACK"]);
        let mut story = Story::new();
        story.history.closed_idle.push("an idle session".into());
        story.history.failed_reads.push("a reader was told 57P03".into());
        story.shows(&["misreported: a reader was told 57P03", "closed: an idle session"]);
        let mut story = Story::new().told(at(1, 0), Ending::Acknowledged);
        story.history.unseen.push(1);
        let now = story.now;
        let story = story.behind(at(1, 0), now);
        story.shows(&[]);
        story.booked(at(1, 0)).shows(&["unseen by its own session: transfer 1"]);
    }
}
