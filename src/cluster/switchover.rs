//! Moving the writes to a standby on purpose, so that no write that was acknowledged is lost and clients see nothing but a pause.
//!
//! ```text
//! look before ─▶ tell the other proxies ─▶ hold writes ─▶ transactions under way end ─▶ the new one is promoted ─▶ it leads ─▶ release
//! ```
//!
//! How it is promoted depends on who does it, the [`Agent`]: `ourselves` tells it for `pg_promote()`, `by_patroni` for Patroni, which
//! stops the old primary itself. Nobody else can be asked.
//!
//! Other proxies are told by a notification on the old primary, where their monitors listen, and find an advisory lock there; they hold
//! their clients' writes until it is gone ([`super::probe`]).

mod by_patroni;
mod ourselves;

use std::sync::Arc;
use std::time::Duration;

use super::coordinator::Event;
use super::handover::CATCH_UP_TIMEOUT;
use super::lsn::Timeline;
use super::node::NodeId;
use super::patroni::NotMoved;
use super::promotion::agent::Agent;
use super::promotion::by_patroni::PatroniError;
use super::promotion::{NoCandidate, Promoter, choose_candidate};
use super::routing_table::{NoPrimary, RoutingTable};
use crate::wire::sqlstate::SqlState;

/// A standby that is further behind is not asked to lead: clients would wait for all of that.
const MOST_BEHIND: u64 = 64 << 20;

/// What a client's statement takes at most to reach a server and have it begin.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// The writes have moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switched {
    /// Who led before.
    pub from: Arc<str>,
    /// Who leads now.
    pub to: Arc<str>,
    /// On this timeline.
    pub timeline: Timeline,
    /// For so long writes were held.
    pub held: Duration,
    /// Transactions that did not end in time and were ended.
    pub ended: usize,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// The writes have not moved. The old primary goes on, except after [`SwitchoverError::Uncertain`], and as long as Patroni lets it after
/// [`SwitchoverError::ByPatroni`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwitchoverError {
    /// Another promotion is under way in this proxy.
    #[error("a promotion or a switchover is under way already")]
    Busy,
    /// Another proxy holds the lock.
    #[error("another proxy is moving the writes of this cluster")]
    Elsewhere,
    /// `promote = "never"`.
    #[error(
        "somebody else promotes in this cluster (failover.promote = \"never\"): ask that one to switch over; pgsluice follows"
    )]
    NotOurs,
    /// There is no primary to move the writes from.
    #[error("there is no primary: {0}")]
    NoPrimary(NoPrimary),
    /// No node has this name.
    #[error("there is no node {name}; there are {}", nodes.join(", "))]
    UnknownNode {
        /// As it was asked for.
        name: String,
        /// Those that there are.
        nodes: Vec<String>,
    },
    /// The node can't lead, or none can.
    #[error("{0}")]
    Unfit(String),
    /// A node doesn't let the monitor's role do this.
    #[error("{node} refuses: {why}")]
    Refused {
        /// The node.
        node: Arc<str>,
        /// Its words, and what to grant.
        why: String,
    },
    /// A node was lost, or has answered something strange.
    #[error("{node}: {why}")]
    Lost {
        /// The node.
        node: Arc<str>,
        /// What was seen.
        why: String,
    },
    /// Transactions go on.
    #[error("{0} transactions are still under way on the primary, and can't be ended")]
    NeverQuiet(usize),
    /// It did not get there in time.
    #[error("{node} did not replay everything within {CATCH_UP_TIMEOUT:?}")]
    Behind {
        /// The standby.
        node: Arc<str>,
    },
    /// Patroni has not done it, as far as is known. Writes aren't held for it any more: whatever it does, it lets no two lead.
    #[error("{0}")]
    ByPatroni(#[from] PatroniError),
    /// It may have happened.
    #[error("{0}; writes stay held until a node leads on a higher timeline")]
    Uncertain(String),
    /// Nobody is left who could.
    #[error("the proxy is stopping")]
    Stopping,
}

impl SwitchoverError {
    /// Its code for a client who has asked for it.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            SwitchoverError::Busy | SwitchoverError::Elsewhere => SqlState::OBJECT_IN_USE,
            SwitchoverError::NotOurs | SwitchoverError::Unfit(_) | SwitchoverError::Behind { .. } => {
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE
            }
            SwitchoverError::NoPrimary(_) | SwitchoverError::Stopping => SqlState::CANNOT_CONNECT_NOW,
            SwitchoverError::UnknownNode { .. } => SqlState::UNDEFINED_OBJECT,
            SwitchoverError::Refused { .. } => SqlState::INSUFFICIENT_PRIVILEGE,
            SwitchoverError::Lost { .. } => SqlState::CONNECTION_FAILURE,
            SwitchoverError::NeverQuiet(_) => SqlState::OBJECT_IN_USE,
            SwitchoverError::ByPatroni(error) => error.sqlstate(),
            SwitchoverError::Uncertain(_) => SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
        }
    }
}

impl PatroniError {
    fn sqlstate(&self) -> SqlState {
        match self {
            PatroniError::NotMoved(NotMoved::Unheard(_)) => SqlState::CONNECTION_FAILURE,
            PatroniError::NotMoved(NotMoved::Forbidden(_)) => SqlState::INSUFFICIENT_PRIVILEGE,
            PatroniError::NotMoved(NotMoved::Refused(_) | NotMoved::GivenUp(_)) | PatroniError::NoMember { .. } => {
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE
            }
            PatroniError::NotMoved(NotMoved::Unknown(_)) | PatroniError::Late { .. } => {
                SqlState::TRANSACTION_RESOLUTION_UNKNOWN
            }
        }
    }
}

/// Who hands over to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parties {
    old: NodeId,
    old_name: Arc<str>,
    new: NodeId,
    new_name: Arc<str>,
    timeline: Timeline,
}

impl Promoter {
    /// All the steps; bounded in time.
    pub(super) async fn switch_over(&self, to: Option<&str>) -> Result<Switched, SwitchoverError> {
        let _turn = self.turn.try_lock().map_err(|_| SwitchoverError::Busy)?;
        match &self.agent {
            Agent::Ourselves => self.switch_over_ourselves(to).await,
            Agent::Patroni(patroni) => self.switch_over_by_patroni(patroni, to).await,
            Agent::Others => Err(SwitchoverError::NotOurs),
        }
    }

    /// Holds writes. What clients of this proxy have sent before is with the server when this ends.
    async fn pause(&self) -> Result<(), SwitchoverError> {
        self.tell(Event::Pause).await?;
        self.shared.under_way.are_over(ON_ITS_WAY).await;
        Ok(())
    }

    async fn tell(&self, event: Event) -> Result<(), SwitchoverError> {
        self.order(event).await.map_err(|_| SwitchoverError::Stopping)
    }
}

/// Who could lead: the one asked for, or the configured candidate, or the most advanced standby that `may_lead`. Pure.
fn parties(
    table: &RoutingTable,
    to: Option<&str>,
    candidate: Option<&str>,
    may_lead: impl Fn(NodeId) -> bool,
) -> Result<Parties, SwitchoverError> {
    let why = table.why_no_primary.unwrap_or(NoPrimary::Starting);
    let (Some(old), Some(timeline)) = (table.primary_state(), table.timeline) else {
        return Err(SwitchoverError::NoPrimary(why));
    };
    if let Some(name) = to {
        let known = table.members().find(|node| &*node.name == name);
        match known {
            None => {
                return Err(SwitchoverError::UnknownNode {
                    name: name.to_owned(),
                    nodes: table.members().map(|node| node.name.to_string()).collect(),
                });
            }
            Some(node) if node.id == old.id => {
                return Err(SwitchoverError::Unfit(format!("{name} is the primary already")));
            }
            Some(_) => {}
        }
    }
    let unfit = |error: NoCandidate| SwitchoverError::Unfit(error.to_string());
    let new = choose_candidate(&table.nodes, timeline, to.or(candidate), may_lead).map_err(unfit)?;
    let new = table.node(new).ok_or(SwitchoverError::Stopping)?;
    if new.replay_paused {
        return Err(SwitchoverError::Unfit(format!("{}'s replay is paused", new.name)));
    }
    match new.lag_bytes {
        Some(behind) if behind <= MOST_BEHIND => {}
        Some(behind) => {
            return Err(SwitchoverError::Unfit(format!(
                "{} is {} MiB behind",
                new.name,
                behind >> 20
            )));
        }
        None => {
            return Err(SwitchoverError::Unfit(format!(
                "how far {} is behind isn't known",
                new.name
            )));
        }
    }
    Ok(Parties {
        old: old.id,
        old_name: Arc::clone(&old.name),
        new: new.id,
        new_name: Arc::clone(&new.name),
        timeline,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::cluster::NodeRole;
    use crate::cluster::lsn::Lsn;
    use crate::config::{Config, Overrides};

    /// A primary and two standbys; the second one has more.
    fn table() -> RoutingTable {
        let text = "[cluster]\nnodes = [\"127.0.0.1:1\", \"127.0.0.1:2\", \"127.0.0.1:3\"]\n";
        let config = Config::parse(text, "test", &Overrides::default()).expect("a configuration");
        let mut table = RoutingTable::at_start(&config.cluster.nodes, Instant::now());
        (table.primary, table.timeline, table.why_no_primary) = (Some(NodeId(0)), Some(Timeline(3)), None);
        for (node, lsn) in table.nodes.iter_mut().zip([100, 90, 95]) {
            node.role = NodeRole::Standby;
            node.timeline = Some(Timeline(3));
            node.wal_position = Some(Lsn(lsn));
            node.lag_bytes = Some(100 - lsn);
        }
        table.nodes[0].role = NodeRole::Primary;
        table
    }

    fn chosen(table: &RoutingTable, to: Option<&str>, candidate: Option<&str>) -> Result<u16, SqlState> {
        let chosen = parties(table, to, candidate, |_| true);
        chosen.map(|parties| parties.new.0).map_err(|error| error.sqlstate())
    }

    #[test]
    fn the_one_asked_for_leads_or_the_candidate_or_the_most_advanced() {
        let table = table();
        assert_eq!(chosen(&table, None, None), Ok(2));
        assert_eq!(chosen(&table, None, Some("127.0.0.1:2")), Ok(1));
        assert_eq!(chosen(&table, Some("127.0.0.1:2"), Some("127.0.0.1:3")), Ok(1));
    }

    #[test]
    fn who_cannot_lead_is_refused_before_anything_happens() {
        let unfit = Err(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
        assert_eq!(chosen(&table(), Some("nobody"), None), Err(SqlState::UNDEFINED_OBJECT));
        assert_eq!(chosen(&table(), Some("127.0.0.1:1"), None), unfit);
        let mut without = table();
        (without.primary, without.why_no_primary) = (None, Some(NoPrimary::Starting));
        assert_eq!(chosen(&without, None, None), Err(SqlState::CANNOT_CONNECT_NOW));
        let changes: [fn(&mut RoutingTable); 5] = [
            |table| table.nodes[1].role = NodeRole::Unreachable,
            |table| table.nodes[1].timeline = Some(Timeline(2)),
            |table| table.nodes[1].replay_paused = true,
            |table| table.nodes[1].lag_bytes = Some(MOST_BEHIND + 1),
            |table| table.nodes[1].lag_bytes = None,
        ];
        for change in changes {
            let mut table = table();
            change(&mut table);
            assert_eq!(chosen(&table, Some("127.0.0.1:2"), None), unfit);
        }
    }
}
