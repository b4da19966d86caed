//! The routing table: one immutable answer to "which node is what", replaced as a whole.
//!
//! A statement loads it once and lives by that snapshot. It holds nothing that is needed to build the next one; that is
//! `election`'s and the coordinator's business.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::loss::LostLog;
use super::lsn::{Epoch, Lsn, SystemIdentifier, Timeline};
use super::node::{NodeId, NodeRole};
use super::position::Fork;
use super::reading::ServerIdentity;
use super::serving::Serving;
use crate::config;

/// What every node is, as of one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingTable {
    /// Grows with every change of primary. Stays while there is none.
    pub epoch: Epoch,
    /// Where writes go; `None` holds them.
    pub primary: Option<NodeId>,
    /// The highest timeline seen on any node. A primary is always on it.
    pub timeline: Option<Timeline>,
    /// The cluster's identity, once every node was asked.
    pub system_identifier: Option<SystemIdentifier>,
    /// The newest sample of the primary's position; the last one where there is no primary.
    pub sample: Option<PrimarySample>,
    /// Where the timelines before `timeline` ended; empty where that isn't known.
    pub forks: Arc<[Fork]>,
    /// Commits wait for standbys (`synchronous_standby_names`), which may show them before the primary does.
    pub synchronous: bool,
    /// A row per node, and one for each that has left lately; [`NodeId`] is the index.
    pub nodes: Box<[NodeState]>,
    /// Set exactly when `primary` is `None`.
    pub why_no_primary: Option<NoPrimary>,
    /// Since when there is none. Set exactly when `primary` is `None`.
    pub without_primary_since: Option<Instant>,
    /// Two nodes are out of recovery on the highest timeline.
    pub split_brain: bool,
    /// Counted since the proxy started.
    pub stats: ClusterStats,
}

/// A primary's position: whatever was committed before `asked_at` lies before `insert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrimarySample {
    /// The primary.
    pub node: NodeId,
    /// The timeline that it wrote.
    pub timeline: Timeline,
    /// Its insert position.
    pub insert: Lsn,
    /// Just before it was asked, by the proxy's own clock.
    pub asked_at: Instant,
}

impl RoutingTable {
    /// The table before anything is known.
    pub fn at_start(nodes: &[config::NodeConfig], now: Instant) -> RoutingTable {
        RoutingTable {
            epoch: Epoch::default(),
            primary: None,
            timeline: None,
            system_identifier: None,
            sample: None,
            forks: Arc::default(),
            synchronous: false,
            nodes: (0..)
                .map(NodeId)
                .zip(nodes)
                .map(|(id, node)| NodeState::unknown(id, node))
                .collect(),
            why_no_primary: Some(NoPrimary::Starting),
            without_primary_since: Some(now),
            split_brain: false,
            stats: ClusterStats::default(),
        }
    }

    /// The row of `node`; `None` for an id of another configuration.
    pub fn node(&self, node: NodeId) -> Option<&NodeState> {
        self.nodes.get(node.index())
    }

    /// The primary's row.
    pub fn primary_state(&self) -> Option<&NodeState> {
        self.primary.and_then(|node| self.node(node))
    }

    /// The nodes as they are now, without those that have left.
    pub fn members(&self) -> impl Iterator<Item = &NodeState> {
        self.nodes.iter().filter(|node| node.role != NodeRole::Departed)
    }

    /// The standbys of the cluster, fit for reads or not.
    pub fn standbys(&self) -> impl Iterator<Item = &NodeState> {
        self.nodes.iter().filter(|node| node.role == NodeRole::Standby)
    }
}

/// One node's row.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeState {
    /// Its index.
    pub id: NodeId,
    /// `[cluster] nodes`' name for it.
    pub name: Arc<str>,
    /// What it is.
    pub role: NodeRole,
    /// Its configured share of reads; 0 takes none.
    pub weight: u32,
    /// Whether it takes reads.
    pub serving: Serving,
    /// On a standby: it holds everything that was committed before this. Frozen while there is no primary to compare with, and
    /// `None` where nothing is known. On the primary always `None`: a primary is as fresh as the moment.
    pub fresh_as_of: Option<Instant>,
    /// As `fresh_as_of`, but for what was flushed before this: everything except commits under `synchronous_commit = off` of
    /// the last instants. Never earlier than `fresh_as_of`, and the honest measure of lag, since it doesn't stand still while an
    /// open transaction leaves records unflushed on an otherwise idle primary (up to 15 s).
    pub durable_as_of: Option<Instant>,
    /// Which run of the server was last reached.
    pub server_start: Option<ServerIdentity>,
    /// Since when this run is known: a connection that was opened later, and lives, is one to it.
    pub run_since: Option<Instant>,
    /// How long its last answer took.
    pub round_trip: Option<Duration>,
    /// On a standby: bytes of log that the primary has flushed and it hasn't replayed.
    pub lag_bytes: Option<u64>,
    /// The timeline that it writes or follows, where known.
    pub timeline: Option<Timeline>,
    /// A primary's insert position, a standby's replay position.
    pub wal_position: Option<Lsn>,
    /// On a standby: how far it has received log, replayed or not. What it would have after a promotion.
    pub received: Option<Lsn>,
    /// `pg_wal_replay_pause()` was called on it.
    pub replay_paused: bool,
    /// `server_version_num` of its last answer.
    pub version: Option<u32>,
    /// When its last answer came.
    pub last_seen: Option<Instant>,
    /// When it was last asked, whether it answered or not, as far as the outcome is known.
    pub last_asked: Option<Instant>,
    /// Why it could not be asked, if the last attempt failed.
    pub last_error: Option<Arc<str>>,
}

impl NodeState {
    /// The row of a node that was never asked.
    pub fn unknown(id: NodeId, node: &config::NodeConfig) -> NodeState {
        NodeState {
            id,
            name: Arc::from(node.name.as_str()),
            role: NodeRole::Unknown,
            weight: node.weight,
            serving: Serving::Unreachable,
            fresh_as_of: None,
            durable_as_of: None,
            server_start: None,
            run_since: None,
            round_trip: None,
            lag_bytes: None,
            timeline: None,
            wal_position: None,
            received: None,
            replay_paused: false,
            version: None,
            last_seen: None,
            last_asked: None,
            last_error: None,
        }
    }

    /// How far a standby's answers are behind the primary, at `now`: an upper bound, exact to one sampling interval. `None` where
    /// nothing is known, and on a primary.
    pub fn lag(&self, now: Instant) -> Option<Duration> {
        self.durable_as_of.map(|as_of| now.saturating_duration_since(as_of))
    }
}

/// Why writes are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPrimary {
    /// The proxy has just started and hasn't heard from every node.
    Starting,
    /// Every node that can be reached is in recovery.
    NoneOutOfRecovery,
    /// No node can be reached, and none could since the proxy started.
    NoneReachable,
    /// The nodes that can be reached are another cluster's than the one known, as by the state file.
    OnlyForeign,
    /// The last primary can't be reached, and no other node has taken its place.
    Unreachable(NodeId),
    /// This node is out of recovery, and the others get a moment to contradict it.
    Confirming(NodeId),
    /// Only nodes on a lower timeline than one seen are out of recovery: they were left behind by a promotion.
    OnlyStale,
    /// Two nodes are out of recovery on the same timeline, and neither was routed to.
    SplitBrain,
    /// The writes are being moved to a standby on purpose; the old primary still ends what is under way.
    SwitchingOver,
    /// A promotion is under way.
    Promoting,
    /// A promotion was asked for and its end is unknown. The old primary stays fenced: what it took now could be lost.
    PromotionUncertain,
}

impl NoPrimary {
    /// The name in logs and `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            NoPrimary::Starting => "starting",
            NoPrimary::NoneOutOfRecovery => "none_out_of_recovery",
            NoPrimary::NoneReachable => "none_reachable",
            NoPrimary::OnlyForeign => "only_foreign",
            NoPrimary::Unreachable(_) => "primary_unreachable",
            NoPrimary::Confirming(_) => "confirming",
            NoPrimary::OnlyStale => "only_stale_primaries",
            NoPrimary::SplitBrain => "split_brain",
            NoPrimary::SwitchingOver => "switching_over",
            NoPrimary::Promoting => "promoting",
            NoPrimary::PromotionUncertain => "promotion_uncertain",
        }
    }
}

impl fmt::Display for NoPrimary {
    /// Fits behind "there is no primary: ".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoPrimary::Starting => "the proxy has just started and is still asking the nodes",
            NoPrimary::NoneOutOfRecovery => "every node that can be reached is in recovery",
            NoPrimary::NoneReachable => "no node can be reached",
            NoPrimary::OnlyForeign => "the nodes that can be reached have another system identifier than the cluster",
            NoPrimary::Unreachable(_) => "the last primary cannot be reached and no standby has been promoted",
            NoPrimary::Confirming(_) => "a node has just left recovery and the others are being asked",
            NoPrimary::OnlyStale => "the only nodes out of recovery are on a timeline that a promotion has left behind",
            NoPrimary::SplitBrain => "two nodes are out of recovery on the same timeline (split brain)",
            NoPrimary::SwitchingOver => "the writes are being moved to a standby (switchover)",
            NoPrimary::Promoting => "a standby is being promoted",
            NoPrimary::PromotionUncertain => "a promotion was asked for and it is not known whether it happened",
        })
    }
}

/// Counters for metrics and `/status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClusterStats {
    /// Changes of the primary's node or timeline, the first election left out.
    pub failovers: u64,
    /// From the last failover's first moment without a primary until the next one was published; zero when there was none.
    pub last_failover: Option<Duration>,
    /// What the last failover has lost, as far as was sampled; `None` where that isn't known, and where there was none.
    pub lost: Option<LostLog>,
    /// As in the table, for a gauge.
    pub split_brain: bool,
}
