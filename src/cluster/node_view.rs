//! What is known of one node: its newest reading, and what earlier ones leave behind.
//!
//! Pure. A reading that was asked for before the newest one is dropped, so a late answer never overrules a newer one.

use std::time::Instant;

use super::lsn::{SystemIdentifier, Timeline};
use super::reading::{Answer, FailureKind, Outcome, Reading, ServerIdentity, ServerState, Unreachable};

/// Everything that election looks at in a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeView {
    /// The newest attempt; `None` before the first.
    newest: Option<Reading>,
    /// The newest successful one.
    answered: Option<Answered>,
    /// Failed attempts since then.
    failures: u32,
    /// When the first of the readings in a row, without a failure between them, that say "out of recovery, on this timeline" was
    /// asked for.
    claiming_since: Option<Instant>,
    /// Since when this run of the server is known: when the answer was there that first told of it.
    run_since: Option<Instant>,
    /// It is no node any more: nothing that is still heard of it counts.
    departed: bool,
    /// The last timeline that this server was seen to stream. A WAL receiver that reconnects shows none for a while.
    streamed: Option<(ServerIdentity, Timeline)>,
}

/// A successful reading.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// See [`Reading::asked_at`].
    pub asked_at: Instant,
    /// See [`Reading::taken_at`].
    pub taken_at: Instant,
    /// What it said.
    pub answer: Answer,
}

/// What became of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Took {
    /// It is the newest now.
    AsNewest,
    /// A newer one stands, or the node has left.
    TooLate,
}

/// What a node is by itself, before it is compared with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Never asked.
    Unasked,
    /// Could not be asked, and what it said before no longer counts.
    Out,
    /// No node any more.
    Departed,
    /// In recovery.
    Recovering,
    /// Out of recovery.
    Claiming(Claim),
}

/// "I am out of recovery."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// On this timeline.
    pub timeline: Timeline,
    /// In this run of the server.
    pub server: ServerIdentity,
    /// Without a break since the reading that was asked for then.
    pub since: Instant,
}

impl NodeView {
    /// Of what is no node any more.
    pub fn departed() -> NodeView {
        NodeView {
            departed: true,
            ..NodeView::default()
        }
    }

    /// Whether it is no node any more.
    pub fn has_departed(&self) -> bool {
        self.departed
    }

    /// Takes a reading.
    pub fn take(&mut self, reading: Reading) -> Took {
        if self
            .newest
            .as_ref()
            .is_some_and(|newest| reading.asked_at <= newest.asked_at)
            || self.departed
        {
            return Took::TooLate;
        }
        match &reading.outcome {
            Outcome::Reached(answer) => self.take_answer(&reading, answer.clone()),
            Outcome::Unreachable(_) => self.failures = self.failures.saturating_add(1),
        }
        self.newest = Some(reading);
        Took::AsNewest
    }

    fn take_answer(&mut self, reading: &Reading, answer: Answer) {
        let claim = |answer: &Answer| answer.claimed_timeline().map(|timeline| (timeline, answer.server));
        let goes_on = self
            .answered
            .as_ref()
            .is_some_and(|before| claim(&before.answer) == claim(&answer));
        match claim(&answer) {
            None => self.claiming_since = None,
            Some(_) if goes_on && self.failures == 0 => {}
            Some(_) => self.claiming_since = Some(reading.asked_at),
        }
        if let ServerState::Standby {
            received_timeline: Some(timeline),
            ..
        } = answer.state
        {
            self.streamed = Some((answer.server, timeline));
        }
        if self
            .answered
            .as_ref()
            .is_none_or(|before| before.answer.server != answer.server)
        {
            self.run_since = Some(reading.taken_at);
        }
        self.failures = 0;
        self.answered = Some(Answered {
            asked_at: reading.asked_at,
            taken_at: reading.taken_at,
            answer,
        });
    }

    /// What the node is. A server that has claimed to be out of recovery keeps that standing through `failures_before_out` - 1
    /// lost connections or time-outs in a row, and for as long as it merely refuses the monitor: it may be taking writes. One
    /// that isn't running loses it at once.
    pub fn standing(&self, failures_before_out: u32) -> Standing {
        if self.departed {
            return Standing::Departed;
        }
        let Some(newest) = &self.newest else {
            return Standing::Unasked;
        };
        let Some(answered) = &self.answered else {
            return Standing::Out;
        };
        let state = match (&newest.outcome, answered.answer.claimed_timeline(), self.claiming_since) {
            (_, Some(timeline), Some(since)) => Standing::Claiming(Claim {
                timeline,
                server: answered.answer.server,
                since,
            }),
            (Outcome::Reached(_), _, _) => Standing::Recovering,
            (Outcome::Unreachable(_), _, _) => Standing::Out,
        };
        match self.failure().map(|failure| failure.kind) {
            None | Some(FailureKind::Refused) => state,
            Some(FailureKind::Lost) if self.failures < failures_before_out => state,
            Some(FailureKind::Lost | FailureKind::NotRunning) => Standing::Out,
        }
    }

    /// When the newest reading was asked for.
    pub fn asked_at(&self) -> Option<Instant> {
        self.newest.as_ref().map(|newest| newest.asked_at)
    }

    /// The newest reading, if it was a success.
    pub fn reached(&self) -> Option<&Answered> {
        self.answered.as_ref().filter(|_| self.failures == 0)
    }

    /// The newest success, however long ago.
    pub fn answered(&self) -> Option<&Answered> {
        self.answered.as_ref()
    }

    /// Since when the run of the server is known that has answered last.
    pub fn run_since(&self) -> Option<Instant> {
        self.run_since
    }

    /// The newest reading's failure.
    pub fn failure(&self) -> Option<&Unreachable> {
        match &self.newest.as_ref()?.outcome {
            Outcome::Reached(_) => None,
            Outcome::Unreachable(failure) => Some(failure),
        }
    }

    /// Which cluster it last said that it belongs to.
    pub fn system_identifier(&self) -> Option<SystemIdentifier> {
        self.answered.as_ref().map(|answered| answered.answer.system_identifier)
    }

    /// The timeline that it writes or follows, where known. On a standby the streamed one, also while the receiver reconnects,
    /// or what it has recovered to, which lags: a monitor that may not see the WAL receiver (`pg_monitor` may) knows for some
    /// minutes after a promotion only that a standby was on the timeline before.
    pub fn timeline(&self) -> Option<Timeline> {
        let answer = &self.answered.as_ref()?.answer;
        match answer.state {
            ServerState::Primary { timeline, .. } => Some(timeline),
            ServerState::Standby { recovered_timeline, .. } => recovered_timeline.max(self.streamed_timeline()),
        }
    }

    fn streamed_timeline(&self) -> Option<Timeline> {
        let running = self.answered.as_ref()?.answer.server;
        self.streamed
            .filter(|(server, _)| *server == running)
            .map(|(_, timeline)| timeline)
    }
}
