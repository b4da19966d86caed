//! Everything the proxy knows of its cluster, and what follows from it. Pure: readings and orders go in, tables come out.
//!
//! A reading is kept (`node_view`), an election is held (`election`), the primary's position is sampled (`freshness`), standbys
//! are judged (`serving`). The coordinator does nothing but feed this and publish what comes out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::election::{self, ClusterState, Elected, Hold, HoldPhase, Term};
use super::freshness::{Fresh, Freshness};
use super::loss::LostLog;
use super::lsn::{Lsn, Timeline};
use super::node::{NodeId, NodeRole};
use super::node_view::{Answered, NodeView, Took};
use super::position::Fork;
use super::reading::{Reading, ReplayProgress, ServerState};
use super::routing_table::{ClusterStats, NoPrimary, NodeState, PrimarySample, RoutingTable};
use super::serving::{Lag, Serving, Verdict};
use super::state_file::Remembered;
use crate::config::NodeConfig;

/// What the proxy knows.
pub struct Knowledge {
    settings: Settings,
    views: Vec<NodeView>,
    verdicts: Vec<Verdict>,
    freshness: Freshness,
    elected: Elected,
    failovers: u64,
    last_failover: Option<Duration>,
    /// Where the primary was when it was last asked that the last failover has left.
    left: Option<PrimarySample>,
    without_primary_since: Option<Instant>,
    /// The writes are to move to a standby, and wait until one leads on a timeline above this one, whatever becomes of the primary.
    paused: Option<Timeline>,
    /// Another proxy moves them, or has moved them or given up.
    yielding: Option<Yielding>,
    /// Where the timelines before this one ended, where that is known.
    history: Option<(Timeline, Arc<[Fork]>)>,
    /// Rows to fill in: name and weight.
    blank: Vec<NodeState>,
}

/// What decides besides readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// For who leads.
    pub election: election::Settings,
    /// For who serves reads.
    pub max_lag: Duration,
}

/// Longer than this nobody takes to move the writes away; by then the primary itself takes none ([`super::handover`]).
const YIELDS_AT_MOST: Duration = Duration::from_secs(120);

/// How far another proxy is that moves the writes away from the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Yielding {
    /// Under way, as was seen first then.
    Now(Instant),
    /// It was over, one way or the other, when the primary answered then.
    Until(Instant),
    /// Whoever it is has been at it for too long: he may be dead, and his lock not.
    Ignored,
}

impl Knowledge {
    /// Nothing but what was remembered; `blank` is the table at start.
    pub fn new(settings: Settings, blank: &RoutingTable, remembered: Option<Remembered>, now: Instant) -> Knowledge {
        let state = ClusterState {
            system_identifier: remembered.map(|remembered| remembered.system_identifier),
            highest_timeline: remembered.map(|remembered| remembered.highest_timeline),
            ..ClusterState::default()
        };
        let views = vec![NodeView::default(); blank.nodes.len()];
        Knowledge {
            elected: election::elect(&state, &views, now, &settings.election),
            verdicts: vec![Verdict::because(Serving::Unreachable); views.len()],
            settings,
            views,
            freshness: Freshness::default(),
            failovers: 0,
            last_failover: None,
            left: None,
            without_primary_since: Some(now),
            paused: None,
            yielding: None,
            history: None,
            blank: blank.nodes.to_vec(),
        }
    }

    /// A node takes this place, of which nothing is known yet.
    pub fn join(&mut self, id: NodeId, node: &NodeConfig, now: Instant) {
        let fresh = (
            NodeView::default(),
            Verdict::because(Serving::Unreachable),
            NodeState::unknown(id, node),
        );
        let index = id.index();
        if index == self.views.len() {
            self.views.push(fresh.0);
            self.verdicts.push(fresh.1);
            self.blank.push(fresh.2);
        } else {
            (self.views[index], self.verdicts[index], self.blank[index]) = fresh;
        }
        self.conclude(None, now);
    }

    /// The node of this place goes by another name or weight.
    pub fn rename(&mut self, id: NodeId, node: &NodeConfig) {
        self.blank[id.index()] = NodeState::unknown(id, node);
    }

    /// The node of this place is none any more.
    pub fn leave(&mut self, id: NodeId, now: Instant) {
        self.views[id.index()] = NodeView::departed();
        self.conclude(None, now);
    }

    /// Takes a reading of `node` and draws the conclusions. One that came too late changes nothing.
    pub fn take(&mut self, node: NodeId, reading: Reading, now: Instant) {
        let Some(view) = self.views.get_mut(node.index()) else {
            return;
        };
        match view.take(reading) {
            Took::AsNewest => self.conclude(Some(node), now),
            Took::TooLate => {}
        }
    }

    /// Time has passed: a claim may count now.
    pub fn look_again(&mut self, now: Instant) {
        self.conclude(None, now);
    }

    /// A switchover begins: writes wait. The primary keeps its term, and what is under way on it.
    pub fn pause(&mut self, now: Instant) {
        self.paused = self.elected.timeline;
        self.conclude(None, now);
    }

    /// Whether writes wait although there is a primary: we move them away from it, or somebody else does.
    fn is_paused(&self) -> bool {
        let Some(term) = self.elected.state.current else {
            return false;
        };
        matches!(self.yielding, Some(Yielding::Now(_) | Yielding::Until(_)))
            || self.paused.is_some_and(|above| term.timeline <= above)
    }

    /// What the primary says of somebody else who moves the writes. When it says no more that they move, they may have moved: writes wait
    /// until all the others were asked since, and the one that leads now, if one does, has said so.
    fn follow_yielding(&mut self, before: Option<Term>) {
        let Some(term) = self.elected.state.current else {
            self.yielding = None;
            return;
        };
        let Some(answered) = self.primary_answered() else {
            return;
        };
        let at = answered.taken_at;
        if matches!(answered.answer.state, ServerState::Primary { yields: true, .. }) {
            self.yielding = Some(match self.yielding {
                Some(Yielding::Now(began)) if at.saturating_duration_since(began) > YIELDS_AT_MOST => Yielding::Ignored,
                Some(Yielding::Now(began)) => Yielding::Now(began),
                Some(Yielding::Ignored) => Yielding::Ignored,
                Some(Yielding::Until(_)) | None => Yielding::Now(at),
            });
            return;
        }
        let since = match self.yielding.filter(|_| before == Some(term)) {
            None | Some(Yielding::Ignored) => {
                self.yielding = None;
                return;
            }
            Some(Yielding::Now(_)) => at,
            Some(Yielding::Until(since)) => since,
        };
        let asked_since = |view: &NodeView| view.has_departed() || view.asked_at().is_some_and(|asked| asked > since);
        let mut others = self
            .views
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != term.node.index());
        let all_asked = others.all(|(_, view)| asked_since(view));
        self.yielding = (!all_asked).then_some(Yielding::Until(since));
    }

    /// The newest answer of the primary.
    fn primary_answered(&self) -> Option<&Answered> {
        let term = self.elected.state.current?;
        self.views.get(term.node.index())?.answered()
    }

    /// A promotion begins: nobody is the primary until one on a higher timeline is. Returns the timeline that it leaves; `None`
    /// if none is known, and then nothing is held.
    pub fn hold(&mut self, now: Instant) -> Option<Timeline> {
        let above = self.elected.timeline?;
        self.paused = None;
        self.elected.state.hold = Some(Hold {
            above,
            phase: HoldPhase::Promoting,
        });
        self.conclude(None, now);
        Some(above)
    }

    /// The promotion did certainly not happen: the old primary may go on.
    pub fn release(&mut self, now: Instant) {
        self.paused = None;
        self.elected.state.hold = None;
        self.conclude(None, now);
    }

    /// The promotion may have happened or happen yet: the old primary stays fenced.
    pub fn hold_on(&mut self, now: Instant) {
        self.paused = None;
        if let Some(hold) = &mut self.elected.state.hold {
            hold.phase = HoldPhase::Uncertain;
        }
        self.conclude(None, now);
    }

    /// Where the timelines before this one ended.
    pub fn learn_history(&mut self, timeline: Timeline, forks: Vec<Fork>) {
        self.history = Some((timeline, forks.into()));
    }

    /// What should survive a restart; `None` before the first primary.
    pub fn to_remember(&self) -> Option<Remembered> {
        let state = &self.elected.state;
        Some(Remembered {
            system_identifier: state.system_identifier?,
            highest_timeline: state.highest_timeline?,
        })
    }

    fn conclude(&mut self, read: Option<NodeId>, now: Instant) {
        let before = self.elected.state;
        self.elected = election::elect(&before, &self.views, now, &self.settings.election);
        self.follow_yielding(before.current);
        self.count_failover(before.last, now);
        self.sample_primary();
        for index in 0..self.views.len() {
            let was_read = read.is_some_and(|node| node.index() == index);
            self.verdicts[index] = self.verdict(index, was_read);
        }
    }

    fn count_failover(&mut self, before: Option<Term>, now: Instant) {
        let state = &self.elected.state;
        let moved = |before: Term, after: Term| (before.node, before.timeline) != (after.node, after.timeline);
        if let (Some(before), Some(after)) = (before, state.current)
            && moved(before, after)
        {
            self.failovers += 1;
            let of_before = |sample: &PrimarySample| (sample.node, sample.timeline) == (before.node, before.timeline);
            self.left = self.freshness.newest().filter(of_before);
            let waited = self
                .without_primary_since
                .map(|since| now.saturating_duration_since(since));
            self.last_failover = Some(waited.unwrap_or_default());
        }
        self.without_primary_since = match state.current {
            Some(_) if !self.is_paused() => None,
            Some(_) | None => self.without_primary_since.or(Some(now)),
        };
    }

    /// Taking the same reading twice is harmless.
    fn sample_primary(&mut self) {
        let Some(term) = self.elected.state.current else { return };
        let Some(answered) = self.views.get(term.node.index()).and_then(NodeView::reached) else {
            return;
        };
        if let ServerState::Primary {
            timeline,
            insert,
            flush,
            ..
        } = answered.answer.state
        {
            self.freshness
                .sample(term.node, timeline, answered.asked_at, insert, flush);
        }
    }

    fn verdict(&self, index: usize, was_read: bool) -> Verdict {
        let before = self.verdicts[index];
        match self.elected.roles[index] {
            NodeRole::Primary => Verdict::because(Serving::Serving),
            NodeRole::StalePrimary => Verdict::because(Serving::Fenced),
            NodeRole::Foreign => Verdict::because(Serving::Foreign),
            NodeRole::Unreachable | NodeRole::Departed | NodeRole::Unknown => Verdict::because(Serving::Unreachable),
            NodeRole::Standby if self.views[index].reached().is_none() => Verdict::because(Serving::Unreachable),
            NodeRole::Standby if !self.follows(index) => Verdict::because(Serving::OtherTimeline),
            NodeRole::Standby => match self.lag(index) {
                Lag::Unknown => before.after(Lag::Unknown, self.settings.max_lag),
                // Only a reading of its own is news of its lag.
                Lag::Known(_) if !was_read => before,
                lag @ Lag::Known(_) => before.after(lag, self.settings.max_lag),
            },
        }
    }

    /// Whether a standby is on the cluster's timeline.
    fn follows(&self, index: usize) -> bool {
        let timeline = self.views[index].timeline();
        timeline.is_some() && timeline == self.elected.timeline
    }

    /// What the samples say about a standby. A node that can't be asked now may be restarting, and then be behind what it was.
    fn fresh(&self, index: usize) -> Option<Fresh> {
        let comparable = self.follows(index) && self.freshness.timeline() == self.elected.timeline;
        let replayed = self.replayed(index).filter(|_| comparable)?;
        self.freshness.of(replayed)
    }

    fn replayed(&self, index: usize) -> Option<Lsn> {
        match self.views[index].reached()?.answer.state {
            ServerState::Standby { replayed, .. } => replayed,
            ServerState::Primary { .. } => None,
        }
    }

    /// The lag that decides about serving: for how long the primary had had, when the standby was read, what it hadn't replayed.
    /// Not `now - fresh_as_of`, which an idle proxy's slow sampling would inflate.
    fn lag(&self, index: usize) -> Lag {
        let (Some(fresh), Some(answered)) = (self.fresh(index), self.views[index].reached()) else {
            return Lag::Unknown;
        };
        if !self.has_reference(answered.taken_at) {
            return Lag::Unknown;
        }
        let lag = fresh.behind_since.map_or(Duration::ZERO, |since| {
            answered.taken_at.saturating_duration_since(since)
        });
        // One that hasn't reached the oldest sample may be further behind than the samples go.
        if fresh.durable_as_of.is_none() && lag <= self.settings.max_lag {
            Lag::Unknown
        } else {
            Lag::Known(lag)
        }
    }

    /// Whether there is a primary to measure a reading from `at` against. One that refuses the monitor keeps its standing, but
    /// what it was last known to have says less and less.
    fn has_reference(&self, at: Instant) -> bool {
        let Some(term) = self.elected.state.current else {
            return false;
        };
        let is_asked = self
            .views
            .get(term.node.index())
            .is_some_and(|view| view.reached().is_some());
        let sampled_at = self.freshness.sampled_at();
        is_asked || sampled_at.is_some_and(|sampled| at <= sampled + self.settings.election.timeout)
    }

    /// The table as of now.
    pub fn table(&self) -> RoutingTable {
        let state = &self.elected.state;
        let paused = self.is_paused();
        RoutingTable {
            epoch: state.epoch,
            primary: state.current.filter(|_| !paused).map(|term| term.node),
            timeline: self.elected.timeline,
            system_identifier: self.elected.system_identifier,
            sample: self.freshness.newest(),
            forks: self.forks(),
            synchronous: self.is_synchronous(),
            nodes: self.blank.iter().map(|blank| self.row(blank)).collect(),
            why_no_primary: if paused {
                Some(NoPrimary::SwitchingOver)
            } else {
                self.elected.why_no_primary
            },
            without_primary_since: self.without_primary_since,
            split_brain: self.elected.split_brain,
            stats: ClusterStats {
                failovers: self.failovers,
                last_failover: self.last_failover,
                lost: self.left.and_then(|left| LostLog::of(&left, &self.forks())),
                split_brain: self.elected.split_brain,
            },
        }
    }

    fn forks(&self) -> Arc<[Fork]> {
        match &self.history {
            Some((timeline, forks)) if Some(*timeline) == self.elected.timeline => Arc::clone(forks),
            Some(_) | None => Arc::default(),
        }
    }

    fn is_synchronous(&self) -> bool {
        let waits =
            |answered: &Answered| matches!(answered.answer.state, ServerState::Primary { synchronous: true, .. });
        self.primary_answered().is_some_and(waits)
    }

    /// The name of the node whose server this one's is.
    fn twin(&self, index: usize) -> Option<&str> {
        let other = self.elected.twin_of.get(index).copied().flatten()?;
        self.blank.get(other.index()).map(|row| &*row.name)
    }

    fn row(&self, blank: &NodeState) -> NodeState {
        let index = blank.id.index();
        let view = &self.views[index];
        let fresh = self.fresh(index);
        let mut row = NodeState {
            name: Arc::clone(&blank.name),
            role: self.elected.roles[index],
            serving: self.verdicts[index].serving,
            fresh_as_of: fresh.and_then(|fresh| fresh.fresh_as_of),
            durable_as_of: fresh.and_then(|fresh| fresh.durable_as_of),
            lag_bytes: fresh.map(|fresh| fresh.behind_bytes),
            timeline: view.timeline(),
            last_asked: view.asked_at(),
            last_error: match self.twin(index) {
                Some(other) => Some(format!("another address of {other}'s server").into()),
                None => view.failure().map(|failure| Arc::clone(&failure.message)),
            },
            ..*blank
        };
        if let Some(answered) = view.answered() {
            row.server_start = Some(answered.answer.server);
            row.run_since = view.run_since();
            row.version = Some(answered.answer.version);
            row.round_trip = Some(answered.taken_at.saturating_duration_since(answered.asked_at));
            row.last_seen = Some(answered.taken_at);
            match answered.answer.state {
                ServerState::Primary { insert, .. } => row.wal_position = Some(insert),
                ServerState::Standby {
                    replayed,
                    received,
                    progress,
                    ..
                } => {
                    row.wal_position = replayed;
                    row.received = received;
                    row.replay_paused = progress == ReplayProgress::Paused;
                }
            }
        }
        row
    }
}

#[cfg(test)]
#[path = "knowledge_tests.rs"]
mod tests;
