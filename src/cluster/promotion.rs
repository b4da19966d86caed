//! The promotion that the trigger file asks for.
//!
//! ```text
//! hold writes, fence the old primary ─▶ hold back who else writes to it ─▶ read every node ─▶ choose
//!                                                    ─▶ let the chosen one catch up ─▶ have it promoted
//!                                                    ─▶ wait until it leads on a higher timeline
//! ```
//!
//! Who promotes is an [`Agent`]: this proxy with `pg_promote()`, Patroni where it runs the servers, or somebody who can't be asked.
//!
//! Every step is bounded and logged with the time it took. What matters when one fails is whether the promotion may have
//! happened, or may happen yet: if certainly not, the old primary gets its writes back; otherwise it stays fenced, because what
//! it took could be lost, and writes are held until a node leads on a higher timeline (or an operator asks again).
//!
//! A server that watches the same file itself (PostgreSQL up to 15), or an HA manager that is faster, is no error: promoting a
//! server that has just been promoted is done.

pub(super) mod agent;
pub(super) mod by_patroni;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::Shared;
use super::coordinator::Event;
use super::handover::Side;
use super::lsn::{Lsn, Timeline};
use super::node::{NodeId, NodeRole};
use super::patroni::{Move, Patroni};
use super::probe_connection::{AskError, ProbeConnection};
use super::routing_table::{NodeState, RoutingTable};
use super::targets::Targets;
use crate::wire::sqlstate::SqlState;
use agent::Agent;
use by_patroni::{Members, PatroniError};

/// How long a promotion may take, once asked for. A standby first replays all that it has received.
pub(super) const PROMOTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the candidate may take to receive what the old primary, if it still runs, has written.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it may take to keep others from writing to an old primary that still runs.
const HOLDING_BACK: Duration = Duration::from_millis(1500);
/// How often to look while waiting. Each look wakes the monitors.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(10);
/// And how often when that has taken [`A_WHILE`]: Patroni stops a server first, which takes seconds.
const LOOK_LATER_EVERY: Duration = Duration::from_millis(50);
/// A promotion is over within this, as a rule.
const A_WHILE: Duration = Duration::from_secs(1);
/// Signals the server and returns; whether it worked is seen by the monitors, sooner than by waiting in the function (100 ms).
const PROMOTE: &str = "SELECT pg_catalog.pg_promote(false)";

/// Promotes a standby on request.
pub(super) struct Promoter {
    pub(super) shared: Arc<Shared>,
    pub(super) orders: mpsc::Sender<Event>,
    /// Where and as whom to ask.
    pub(super) targets: Targets,
    /// Who promotes.
    pub(super) agent: Agent,
    /// The configured candidate's name.
    pub(super) candidate: Option<String>,
    /// How long a switchover waits for what is under way.
    pub(super) patience: Duration,
    /// How long clients wait for a primary.
    pub(super) hold_timeout: Duration,
    /// One promotion at a time.
    pub(super) turn: Mutex<()>,
}

/// Who leads after a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Promoted {
    pub(super) node: Arc<str>,
    pub(super) timeline: Timeline,
}

/// Why nobody was promoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PromotionError {
    #[error("the proxy is stopping")]
    Stopping,
    #[error("no node of the cluster was ever reached")]
    NothingKnown,
    #[error("{0}")]
    NoCandidate(#[from] NoCandidate),
    #[error("{node} can't be asked to promote itself: {why}")]
    NotAsked { node: Arc<str>, why: String },
    #[error("no node was promoted within {PROMOTION_TIMEOUT:?} by whoever else should do it (promote = \"never\")")]
    NobodyElseDid,
    #[error("{0}")]
    ByPatroni(#[from] PatroniError),
    #[error("{node} was asked to promote itself, and it isn't known whether it will: {why}")]
    Uncertain { node: Arc<str>, why: String },
}

/// Why no standby can be promoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoCandidate {
    #[error("no standby on timeline {0} can be reached")]
    NoneFit(Timeline),
    #[error("of the standbys that can be reached Patroni lets none lead (no member, nofailover, or not synchronous)")]
    NoneAllowed,
    #[error("the configured candidate {name} is no standby on timeline {timeline} that can be reached")]
    ConfiguredUnfit { name: String, timeline: Timeline },
}

impl PromotionError {
    /// Whether the old primary may safely go on: nobody was promoted, or nobody is as long as it runs.
    fn leaves_the_old_primary(&self) -> bool {
        match self {
            PromotionError::Stopping
            | PromotionError::NothingKnown
            | PromotionError::NoCandidate(_)
            | PromotionError::NotAsked { .. }
            | PromotionError::ByPatroni(_)
            | PromotionError::NobodyElseDid => true,
            PromotionError::Uncertain { .. } => false,
        }
    }
}

impl Promoter {
    /// All the steps; ends within some 65 seconds. Writes are no longer held at its end, unless the outcome is uncertain.
    pub(super) async fn run(&self) -> Result<Promoted, PromotionError> {
        let _turn = self.turn.lock().await;
        let began = Instant::now();
        let above = self.hold().await?;
        tracing::info!(
            timeline = above.0,
            took_ms = millis(began),
            "promotion: writes are held, the old primary is fenced"
        );
        let mut old = self.hold_others_back(above).await;
        let outcome = self.promote_above(above, old.as_mut()).await;
        match &outcome {
            Ok(promoted) => tracing::info!(
                node = %promoted.node, timeline = promoted.timeline.0, took_ms = millis(began), "promotion: done"
            ),
            Err(error) if error.leaves_the_old_primary() => {
                if let Some(old) = &mut old {
                    let _ = old.take_writes_again().await;
                }
                self.order(Event::Release).await?;
                tracing::error!(%error, took_ms = millis(began), "promotion: failed, the old primary goes on if it is alive");
            }
            Err(error) => {
                self.order(Event::HoldOn).await?;
                tracing::error!(
                    %error, took_ms = millis(began),
                    "promotion: outcome unknown; writes stay held until a node leads on a higher timeline"
                );
            }
        }
        outcome
    }

    /// An old primary that still runs gets no more writes from anybody, as far as that can be had in a moment: other proxies haven't seen
    /// the file. One that doesn't run needs no such thing, and of one that Patroni stops nothing is lost: only the proxies are told.
    async fn hold_others_back(&self, above: Timeline) -> Option<Side> {
        let began = Instant::now();
        let (id, name) = {
            let table = self.shared.table.load();
            let left = |node: &&NodeState| node.role == NodeRole::StalePrimary && node.timeline == Some(above);
            let node = table.nodes.iter().find(left).filter(|node| node.last_error.is_none())?;
            (node.id, Arc::clone(&node.name))
        };
        let is_stopped_by_patroni = match self.agent {
            Agent::Ourselves => false,
            Agent::Patroni(_) => true,
            Agent::Others => return None,
        };
        let mut old = Side::open(&self.targets, id, &name).await.ok()?;
        let held_back = async {
            old.can_be_left().await?;
            old.tell_the_others().await?;
            if is_stopped_by_patroni {
                return Ok(());
            }
            old.take_no_new_writes().await?;
            // What others have under way there is rolled back, or done by now.
            old.until_quiet(Duration::ZERO).await.map(drop)
        };
        match timeout(HOLDING_BACK, held_back).await {
            Ok(Ok(())) => tracing::info!(
                node = %name, took_ms = millis(began), "promotion: others are kept from writing to the old primary"
            ),
            Ok(Err(error)) => tracing::warn!(%error, "promotion: the old primary may take writes past this proxy yet"),
            Err(_) => tracing::warn!(
                node = %name, "promotion: the old primary may take writes past this proxy yet: it didn't answer in time"
            ),
        }
        Some(old)
    }

    async fn promote_above(&self, above: Timeline, old: Option<&mut Side>) -> Result<Promoted, PromotionError> {
        match &self.agent {
            Agent::Ourselves => {
                let candidate = self.choose(above, |_| true).await?;
                self.catch_up_with(old, candidate, above).await;
                let node = self.name(candidate);
                self.ask(candidate, &node).await?;
                let why = || format!("nothing was seen of it within {PROMOTION_TIMEOUT:?}");
                self.led_above(above, PROMOTION_TIMEOUT)
                    .await
                    .ok_or_else(|| PromotionError::Uncertain { node, why: why() })
            }
            Agent::Patroni(patroni) => self.fail_over_by_patroni(patroni, above).await,
            Agent::Others => self
                .led_above(above, PROMOTION_TIMEOUT)
                .await
                .ok_or(PromotionError::NobodyElseDid),
        }
    }

    /// Patroni sees to it that the candidate has what an old leader that is alive has written.
    async fn fail_over_by_patroni(&self, patroni: &Patroni, above: Timeline) -> Result<Promoted, PromotionError> {
        let table = self.shared.table.load_full();
        let members = Members::ask(patroni, &table, &self.targets).await?;
        let candidate = self.choose(above, |node| members.may_lead(node)).await?;
        let wanted = Move::Failover {
            candidate: members.name_of(candidate, &self.name(candidate))?,
        };
        let promoted = self.have_patroni(patroni, &members, wanted, above, PROMOTION_TIMEOUT);
        Ok(promoted.await?)
    }

    pub(super) async fn hold(&self) -> Result<Timeline, PromotionError> {
        let (done, held) = oneshot::channel();
        self.order(Event::Hold(done)).await?;
        held.await
            .map_err(|_| PromotionError::Stopping)?
            .ok_or(PromotionError::NothingKnown)
    }

    pub(super) async fn order(&self, event: Event) -> Result<(), PromotionError> {
        self.orders.send(event).await.map_err(|_| PromotionError::Stopping)
    }

    /// The most advanced standby by readings from after the hold; nodes that don't answer get one time-out.
    async fn choose(&self, above: Timeline, may_lead: impl Fn(NodeId) -> bool) -> Result<NodeId, PromotionError> {
        let began = Instant::now();
        let heard = |node: &NodeState| node.last_seen.is_some_and(|seen| seen > began) || node.last_error.is_some();
        let all_heard = |table: &RoutingTable| table.members().all(heard).then_some(());
        let _ = self.wait_for(self.targets.timeout(), all_heard).await;
        let table = self.shared.table.load_full();
        let candidate = choose_candidate(&table.nodes, above, self.candidate.as_deref(), may_lead)?;
        tracing::info!(
            node = %self.name(candidate), took_ms = millis(began),
            received = table.node(candidate).and_then(position).map(|lsn| lsn.to_string()),
            "promotion: candidate chosen"
        );
        Ok(candidate)
    }

    /// An old primary that still runs has written what the candidate may not have received. Waiting a moment loses less.
    async fn catch_up_with(&self, old: Option<&mut Side>, candidate: NodeId, above: Timeline) {
        let began = Instant::now();
        let goal = match old {
            Some(old) => old.position().await.ok(),
            None => old_primary_position(&self.shared.table.load(), above),
        };
        let Some(goal) = goal else { return };
        let arrived = |table: &RoutingTable| (table.node(candidate).and_then(position)? >= goal).then_some(());
        match self.wait_for(CATCH_UP_TIMEOUT, arrived).await {
            Some(()) => tracing::info!(lsn = %goal, took_ms = millis(began), "promotion: the candidate has caught up"),
            None => {
                tracing::warn!(lsn = %goal, "promotion: the candidate lacks some of what the old primary has written")
            }
        }
    }

    /// Asks the server. An error means that it certainly wasn't asked, unless it says "uncertain".
    pub(super) async fn ask(&self, candidate: NodeId, node: &Arc<str>) -> Result<(), PromotionError> {
        let began = Instant::now();
        let not_asked = |why: String| PromotionError::NotAsked {
            node: Arc::clone(node),
            why,
        };
        let uncertain = |why: String| PromotionError::Uncertain {
            node: Arc::clone(node),
            why,
        };
        let target = self
            .targets
            .of(candidate)
            .ok_or_else(|| not_asked("it is no node any more".into()))?;
        let mut connection = ProbeConnection::open(&target)
            .await
            .map_err(|error| not_asked(error.message.to_string()))?;
        let answer = timeout(target.timeout, connection.query(PROMOTE)).await;
        let rows = match answer.map_err(|_| uncertain(format!("no answer within {:?}", target.timeout)))? {
            Ok(rows) => rows,
            // Not in recovery any more: somebody else was faster.
            Err(AskError::Sql {
                code: SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                ..
            }) => return Ok(()),
            Err(AskError::Sql {
                code: SqlState::INSUFFICIENT_PRIVILEGE,
                message,
            }) => {
                let grant = "GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO the monitor's role";
                return Err(not_asked(format!("{message}; {grant}")));
            }
            Err(error @ AskError::Sql { .. }) => return Err(not_asked(error.to_string())),
            Err(error @ (AskError::Lost(_) | AskError::Unexpected(_))) => return Err(uncertain(error.to_string())),
        };
        match rows.first().and_then(|row| row.first()).and_then(Option::as_deref) {
            Some(b"t") => {
                tracing::info!(%node, took_ms = millis(began), "promotion: the candidate was asked");
                Ok(())
            }
            Some(_) | None => Err(not_asked("pg_promote() could not signal the server".into())),
        }
    }

    /// Waits until a primary leads on a timeline above this one.
    pub(super) async fn led_above(&self, above: Timeline, longest: Duration) -> Option<Promoted> {
        let leads = |table: &RoutingTable| {
            let timeline = table.timeline.filter(|timeline| *timeline > above)?;
            Some(Promoted {
                node: Arc::clone(&table.primary_state()?.name),
                timeline,
            })
        };
        self.wait_for(longest, leads).await
    }

    async fn wait_for<T>(&self, longest: Duration, look: impl Fn(&RoutingTable) -> Option<T>) -> Option<T> {
        let began = Instant::now();
        loop {
            self.shared.wake_all();
            let is_early = began.elapsed() < A_WHILE;
            sleep(if is_early { LOOK_EVERY } else { LOOK_LATER_EVERY }).await;
            if let Some(found) = look(&self.shared.table.load()) {
                return Some(found);
            }
            if began.elapsed() >= longest {
                return None;
            }
        }
    }

    fn name(&self, node: NodeId) -> Arc<str> {
        self.shared
            .table
            .load()
            .node(node)
            .map_or_else(|| Arc::from("?"), |node| Arc::clone(&node.name))
    }
}

/// The standby that loses least: the one that has received most on the timeline `above`, or else replayed most, or else comes
/// first, of those that `may_lead`. A configured one is taken or nobody is.
pub(super) fn choose_candidate(
    nodes: &[NodeState],
    above: Timeline,
    configured: Option<&str>,
    may_lead: impl Fn(NodeId) -> bool,
) -> Result<NodeId, NoCandidate> {
    let fit = |node: &&NodeState| node.role == NodeRole::Standby && node.timeline == Some(above);
    match configured {
        Some(name) => {
            let node = nodes.iter().filter(fit).find(|node| &*node.name == name);
            let unfit = || NoCandidate::ConfiguredUnfit {
                name: name.to_owned(),
                timeline: above,
            };
            node.map(|node| node.id).ok_or_else(unfit)
        }
        None => {
            let advance = |node: &&NodeState| (position(node), node.wal_position);
            let mut fit = nodes.iter().rev().filter(fit).peekable();
            if fit.peek().is_none() {
                return Err(NoCandidate::NoneFit(above));
            }
            let best = fit.filter(|node| may_lead(node.id)).max_by_key(advance);
            best.map(|node| node.id).ok_or(NoCandidate::NoneAllowed)
        }
    }
}

/// How far a standby would be after replaying all that it has.
fn position(node: &NodeState) -> Option<Lsn> {
    node.received.max(node.wal_position)
}

fn old_primary_position(table: &RoutingTable, above: Timeline) -> Option<Lsn> {
    let left = |node: &&NodeState| node.role == NodeRole::StalePrimary && node.timeline == Some(above);
    table
        .nodes
        .iter()
        .filter(left)
        .filter_map(|node| node.wal_position)
        .max()
}

pub(super) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cluster, NodeAddress, NodeConfig, NodeTls};

    const ABOVE: Timeline = Timeline(3);

    /// Standbys with (timeline, received, replayed).
    fn nodes(rows: &[(u32, Option<u64>, Option<u64>)]) -> Box<[NodeState]> {
        let config = |port| NodeConfig {
            address: NodeAddress { host: "h".into(), port },
            name: format!("node {port}"),
            weight: 1,
        };
        let nodes = (0..rows.len()).map(|index| config(index as u16)).collect();
        let cluster = Cluster {
            nodes,
            discovery: Default::default(),
            state_file: None,
            tls: NodeTls::default(),
        };
        let mut nodes = RoutingTable::at_start(&cluster.nodes, Instant::now()).nodes;
        for (node, (timeline, received, replayed)) in nodes.iter_mut().zip(rows) {
            node.role = NodeRole::Standby;
            node.timeline = Some(Timeline(*timeline));
            (node.received, node.wal_position) = (received.map(Lsn), replayed.map(Lsn));
        }
        nodes
    }

    fn choose(nodes: &[NodeState], above: Timeline, configured: Option<&str>) -> Result<NodeId, NoCandidate> {
        choose_candidate(nodes, above, configured, |_| true)
    }

    #[test]
    fn the_standby_that_has_received_most_is_chosen() {
        let rows = [
            (3, Some(10), Some(10)),
            (3, Some(30), Some(5)),
            (3, None, Some(20)),
            (2, Some(99), Some(99)),
        ];
        assert_eq!(choose(&nodes(&rows), ABOVE, None), Ok(NodeId(1)));
        let equal = [(3, Some(10), Some(9)), (3, Some(10), Some(10)), (3, Some(10), Some(10))];
        assert_eq!(choose(&nodes(&equal), ABOVE, None), Ok(NodeId(1)));
    }

    #[test]
    fn only_standbys_on_the_timeline_can_be_chosen() {
        let mut nodes = nodes(&[
            (2, Some(10), Some(10)),
            (3, Some(10), Some(10)),
            (3, Some(10), Some(10)),
        ]);
        nodes[1].role = NodeRole::Unreachable;
        nodes[2].role = NodeRole::StalePrimary;
        assert_eq!(choose(&nodes, ABOVE, None), Err(NoCandidate::NoneFit(ABOVE)));
        nodes[2].timeline = None;
        nodes[2].role = NodeRole::Standby;
        assert_eq!(choose(&nodes, ABOVE, None), Err(NoCandidate::NoneFit(ABOVE)));
    }

    #[test]
    fn a_configured_candidate_is_taken_or_nobody_is() {
        let mut nodes = nodes(&[(3, Some(99), Some(99)), (3, Some(10), Some(10))]);
        assert_eq!(choose(&nodes, ABOVE, Some("node 1")), Ok(NodeId(1)));
        nodes[1].role = NodeRole::Unreachable;
        let unfit = NoCandidate::ConfiguredUnfit {
            name: "node 1".into(),
            timeline: ABOVE,
        };
        assert_eq!(choose(&nodes, ABOVE, Some("node 1")), Err(unfit));
        assert!(choose(&nodes, ABOVE, Some("nobody")).is_err());
    }

    #[test]
    fn one_that_may_not_lead_is_passed_over_unless_it_is_asked_for() {
        let nodes = nodes(&[
            (3, Some(30), Some(30)),
            (3, Some(10), Some(10)),
            (2, Some(10), Some(10)),
        ]);
        let choose = |configured, only| choose_candidate(&nodes, ABOVE, configured, |node| node == NodeId(only));
        assert_eq!(choose(None, 1), Ok(NodeId(1)));
        assert_eq!(choose(None, 2), Err(NoCandidate::NoneAllowed));
        assert_eq!(choose(Some("node 0"), 1), Ok(NodeId(0)));
    }
}
