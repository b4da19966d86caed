//! Which statement a cancel request means: the one that runs when it comes, or else what its client had sent before. Never one that is sent
//! after the request is done with. Pure.
//!
//! A request may be faster than the statement before it: the statement is still in the session's socket, or is looking for a place, or the
//! server hasn't read it yet, and a server that waits for its client passes over a cancel. So it is followed to where it runs, and is told
//! again while it is that young.

use std::time::Duration;

/// How old a statement is when its cancel is repeated. What is older than the last of these is surely with its server.
const AGES: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
];

/// Where the statement is that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// None is.
    #[default]
    Nowhere,
    /// The session has it, or its socket has, or there is none.
    Unseen,
    /// The session has it, or a part of it; no server does.
    Here,
    /// A server has it.
    Running,
}

/// How far the answer is of what a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of it has ended.
    Whole = 0,
    /// The first of several requests is answered, or something is cancelled: another cancel could hit the next one.
    Parted = 1,
    /// The client has it, or is about to: what it asks for from now on is something else.
    Answered = 2,
}

impl From<u8> for Progress {
    fn from(number: u8) -> Progress {
        match number {
            0 => Progress::Whole,
            1 => Progress::Parted,
            _ => Progress::Answered,
        }
    }
}

/// What the cancel requests for one client mean.
#[derive(Debug, Default)]
pub struct Meant {
    stage: Stage,
    /// How many statements were meant before.
    round: u64,
    /// Requests that mean it.
    requests: u32,
}

impl Meant {
    /// A request has come. Answers which statement it means, for [`Meant::stage`]. `runs` says that a server has one that isn't answered.
    pub fn ask(&mut self, runs: bool) -> u64 {
        if runs {
            self.stage = Stage::Running;
        } else {
            if self.stage == Stage::Running {
                self.over();
            }
            self.stage = Stage::Unseen;
        }
        self.requests += 1;
        self.round
    }

    /// Where the statement of this number is.
    pub fn stage(&self, round: u64) -> Stage {
        if round == self.round {
            self.stage
        } else {
            Stage::Nowhere
        }
    }

    /// Whether any is meant.
    pub fn any(&self) -> bool {
        self.stage != Stage::Nowhere
    }

    /// Whether the session is to look for it.
    pub fn is_unseen(&self) -> bool {
        self.stage == Stage::Unseen
    }

    /// A server gets what the session has. Answers whether it is meant.
    pub fn runs(&mut self) -> bool {
        if self.any() {
            self.stage = Stage::Running;
        }
        self.any()
    }

    /// No server has it any more. It may run again.
    pub fn pauses(&mut self) {
        if self.stage == Stage::Running {
            self.stage = Stage::Here;
        }
    }

    /// The session has answered what it had.
    pub fn ends(&mut self) {
        if self.stage == Stage::Here {
            self.over();
        }
    }

    /// The session, which had nothing to do, has looked whether something is there.
    pub fn looked(&mut self, found: bool) {
        match self.stage {
            Stage::Unseen | Stage::Here if found => self.stage = Stage::Here,
            Stage::Unseen | Stage::Here => self.over(),
            Stage::Nowhere | Stage::Running => {}
        }
    }

    /// Whether what the session has is to end before any server has it.
    pub fn strikes_here(&mut self) -> bool {
        let strikes = matches!(self.stage, Stage::Unseen | Stage::Here);
        if strikes {
            self.over();
        }
        strikes
    }

    /// A request isn't followed any further.
    pub fn leave(&mut self, round: u64) {
        if round == self.round && self.requests > 0 {
            self.requests -= 1;
            if self.requests == 0 {
                self.over();
            }
        }
    }

    /// No statement is meant any more.
    pub fn over(&mut self) {
        self.stage = Stage::Nowhere;
        self.round += 1;
        self.requests = 0;
    }
}

/// At which age a statement is told again that it is cancelled, if it was told at the age `told` and goes on.
pub fn again_at(told: Duration, progress: Progress) -> Option<Duration> {
    let age = AGES.into_iter().find(|age| *age > told);
    age.filter(|_| progress == Progress::Whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_meant_and_nothing_after_it() {
        let mut meant = Meant::default();
        let round = meant.ask(true);
        assert_eq!(meant.stage(round), Stage::Running);
        meant.pauses();
        meant.ends();
        assert_eq!(meant.stage(round), Stage::Nowhere);
        assert!(!meant.runs() && !meant.strikes_here());
    }

    #[test]
    fn what_was_sent_before_is_meant_where_it_comes_to_run() {
        let mut meant = Meant::default();
        let round = meant.ask(false);
        meant.looked(true);
        assert!(meant.runs());
        // Its node is lost, and it runs again.
        meant.pauses();
        assert!(meant.runs());
        assert_eq!(meant.stage(round), Stage::Running);
        // Or it has to wait for a place.
        meant.pauses();
        assert!(meant.strikes_here() && !meant.strikes_here());
        assert_eq!(meant.stage(round), Stage::Nowhere);
    }

    #[test]
    fn where_nothing_was_sent_nothing_is_meant() {
        let mut meant = Meant::default();
        let round = meant.ask(false);
        meant.looked(false);
        assert_eq!(meant.stage(round), Stage::Nowhere);
        assert!(!meant.runs());
    }

    #[test]
    fn what_comes_while_a_statement_ends_is_for_the_next_one_if_it_is_there() {
        let mut meant = Meant::default();
        let first = meant.ask(true);
        // Answered: who asks now means another one.
        let second = meant.ask(false);
        assert_eq!(meant.stage(first), Stage::Nowhere);
        meant.pauses();
        meant.ends();
        assert!(meant.is_unseen() && meant.stage(second) == Stage::Unseen);
        // Whoever has asked for the first has nothing to do with it.
        meant.leave(first);
        assert!(meant.runs());
    }

    #[test]
    fn with_the_last_request_it_is_over() {
        let mut meant = Meant::default();
        let (one, other) = (meant.ask(false), meant.ask(false));
        meant.leave(one);
        assert!(meant.is_unseen());
        meant.leave(other);
        assert!(!meant.any() && !meant.runs());
    }

    #[test]
    fn only_young_statements_are_told_again_and_only_as_a_whole() {
        let ms = Duration::from_millis;
        assert_eq!(again_at(ms(0), Progress::Whole), Some(ms(10)));
        assert_eq!(again_at(ms(10), Progress::Whole), Some(ms(50)));
        assert_eq!(again_at(ms(60), Progress::Whole), Some(ms(250)));
        assert_eq!(again_at(ms(251), Progress::Whole), None);
        assert_eq!(again_at(ms(0), Progress::Parted), None);
        assert_eq!(again_at(ms(0), Progress::Answered), None);
    }
}
