//! What a monitor learned by asking a node once: the only thing that election and freshness ever see of a server.
//!
//! A [`Reading`] is a plain value, so histories of them can be made up by the thousand in tests. `probe` says how one is asked
//! for, `monitor` when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lsn::{Lsn, SystemIdentifier, Timeline};

/// One attempt to ask one node.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Just before the question was sent (or the connection attempted), by the proxy's own clock. What the answer says was true
    /// at some moment between this and `taken_at`.
    pub asked_at: Instant,
    /// When the answer, or the failure, was there.
    pub taken_at: Instant,
    /// What came back.
    pub outcome: Outcome,
}

impl Reading {
    /// From the question to its answer.
    pub fn round_trip(&self) -> Duration {
        self.taken_at.saturating_duration_since(self.asked_at)
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// An answer.
    Reached(Answer),
    /// None, and why.
    Unreachable(Unreachable),
}

/// What a server says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Which cluster it belongs to.
    pub system_identifier: SystemIdentifier,
    /// Which run of the server process this is.
    pub server: ServerIdentity,
    /// `server_version_num`: 150018 is 15.18.
    pub version: u32,
    /// What it is, and how far.
    pub state: ServerState,
}

/// In recovery or not, with the positions that exist in that state.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerState {
    /// Out of recovery.
    Primary {
        /// The timeline that it writes.
        timeline: Timeline,
        /// Where its next record goes, page header taken off: everything committed so far lies before it.
        insert: Lsn,
        /// Commits wait for standbys.
        synchronous: bool,
        /// A proxy is moving the writes away from it: it takes no new ones.
        yields: bool,
        /// What is safely on disk, and so what standbys can get. Behind `insert` while an open transaction's records wait for a
        /// commit to flush them.
        flush: Lsn,
    },
    /// In recovery.
    Standby {
        /// Everything before it is visible to queries. `None` until something has been replayed.
        replayed: Option<Lsn>,
        /// Everything before it has arrived from the upstream. `None` when nothing was streamed since the server started.
        received: Option<Lsn>,
        /// The timeline that it streams. `None` without a WAL receiver, or for a role that may not see it (`pg_monitor` may).
        received_timeline: Option<Timeline>,
        /// The timeline of its last restart point or of its minimum recovery end: a lower bound, often minutes late.
        recovered_timeline: Option<Timeline>,
        /// Whether replay was paused by `pg_wal_replay_pause()`.
        progress: ReplayProgress,
    },
}

/// Whether replay goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayProgress {
    /// It replays what arrives.
    Running,
    /// `pg_wal_replay_pause()` was called.
    Paused,
}

impl Answer {
    /// The timeline that a server out of recovery writes; `None` in recovery.
    pub fn claimed_timeline(&self) -> Option<Timeline> {
        match self.state {
            ServerState::Primary { timeline, .. } => Some(timeline),
            ServerState::Standby { .. } => None,
        }
    }
}

/// Which run of a server process answered: its `pg_postmaster_start_time()`, in microseconds since 1970 by the server's clock, with its `port` in
/// the upper bits: two servers of one machine may start in the same moment of a coarse clock.
///
/// Only equality means something. A standby that restarts may come back *behind* what it has served, so what was known about a
/// server dies with this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServerIdentity(pub i64);

/// A node that could not be asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Unreachable {
    /// How much the failure says about the server.
    pub kind: FailureKind,
    /// For people: no secrets, one line.
    pub message: Arc<str>,
}

/// How much a failure to ask says about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Nothing listens there, or the server says itself that it is starting, stopping or recovering (57P01, 57P02, 57P03). It
    /// takes no writes now.
    NotRunning,
    /// The connection broke, or no answer came in time. It may be running and taking writes; so one such failure proves nothing.
    Lost,
    /// The server is there and refuses the monitor: a wrong password, no such database, too many connections. It says nothing
    /// against the server, which may serve everybody else.
    Refused,
}
