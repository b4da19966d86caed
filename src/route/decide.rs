//! The whole decision, in one pure function.

use std::time::{Duration, Instant};

use super::balancer::{Candidate, Load, power_of_two};
use super::consistency::{History, floor};
use super::reason::RouteReason;
use crate::cluster::{
    Epoch, NoPrimary, NodeId, NodeRole, NodeState, Position, Reach, RoutingTable, ServerIdentity, Serving,
};
use crate::config::{Consistency, ReadFromPrimary, StaleReads};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// The primary and nothing else.
    Primary(RouteReason),
    /// A fresh enough node.
    Read,
    /// A standby by the application's own word, whatever the statement reads; the primary only if there is none.
    Standby,
    /// This node: what is asked for is about a server process that runs on it. The primary if it serves no more.
    Node(NodeId),
}

/// The rules that apply to one decision.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What a read must see.
    pub consistency: Consistency,
    /// A standby that lags further gets nothing.
    pub max_lag: Duration,
    /// How old it may be while there is no primary.
    pub stale_reads: StaleReads,
    /// When the primary takes reads.
    pub read_from_primary: ReadFromPrimary,
    /// How long a read waits for a standby that is fresh enough, before the primary takes it.
    pub wait_for_standby: Duration,
    /// What it must see beside its session's history, at any level.
    pub position: Option<Position>,
    /// It must see everything that was flushed before this too.
    pub since: Option<Instant>,
}

/// A read that a standby has no table or function for waits this long for one that is known to be current, before the primary is asked.
const WAIT_FOR_CURRENT: Duration = Duration::from_millis(200);

impl Rules {
    /// Only a node will do that has everything that was flushed before `moment`, also at `eventual`.
    pub fn be_current(&mut self, moment: Instant) {
        self.since = Some(moment);
        self.wait_for_standby = self.wait_for_standby.max(WAIT_FOR_CURRENT);
    }

    /// The latest moment of which a read may have to see everything.
    pub fn moment(&self, history: &History) -> Option<Instant> {
        history.moment(self.consistency).max(self.since)
    }
}

/// The kind of node a route leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The table's primary.
    Primary,
    /// A hot standby.
    Standby,
}

/// Where a statement goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Which node.
    pub node: NodeId,
    /// What it is.
    pub target: Target,
    /// The epoch of the table that says so.
    pub epoch: Epoch,
    /// Why.
    pub reason: RouteReason,
    /// Which run of the node's server was meant.
    pub server: Option<ServerIdentity>,
    /// Since when that run is known.
    pub run_since: Option<Instant>,
    /// When the node was last asked, as far as this was decided by.
    pub seen: Option<Instant>,
}

impl Route {
    /// Whether its node is still what it was chosen as.
    pub fn holds(&self, table: &RoutingTable) -> bool {
        match self.target {
            Target::Primary => table.primary == Some(self.node) && table.epoch == self.epoch,
            Target::Standby => table.node(self.node).is_some_and(|node| node.role == NodeRole::Standby),
        }
    }
}

/// A route, or why there is none yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Send it there.
    Go(Route),
    /// It needs a primary and there is none: hold it.
    AwaitPrimary,
    /// It may not go to the primary, and no standby is fit: hold it.
    AwaitStandby,
    /// It is to see what no node of this cluster can have: another cluster's position.
    Impossible,
}

/// Up to this many standbys are weighed; a cluster with more is served by the first of them.
const MOST: usize = 32;

/// Decides by one snapshot of the routing table. `load` tells how busy a node is, `avoid` is a standby that has just refused, `dice` is 64
/// random bits.
#[expect(
    clippy::too_many_arguments,
    reason = "all that a decision depends on stands in its signature"
)]
pub fn decide(
    want: Want,
    rules: &Rules,
    history: &History,
    table: &RoutingTable,
    load: impl Fn(NodeId) -> Load,
    avoid: Option<NodeId>,
    now: Instant,
    dice: u64,
) -> Decision {
    let go = |node: NodeId, target, reason| {
        let state = table.node(node);
        Decision::Go(Route {
            node,
            target,
            epoch: table.epoch,
            reason,
            server: state.and_then(|state| state.server_start),
            run_since: state.and_then(|state| state.run_since),
            seen: state.and_then(|state| state.last_seen),
        })
    };
    let primary = |reason| match table.primary {
        Some(node) => go(node, Target::Primary, reason),
        None => Decision::AwaitPrimary,
    };
    if let Want::Primary(reason) = want {
        return primary(reason);
    }
    let limit = age_limit(table, rules.max_lag, rules.stale_reads);
    if let Want::Node(id) = want {
        let standby = table
            .nodes
            .iter()
            .find(|node| node.id == id && table.primary != Some(id));
        return match standby.and_then(|node| usable_lag(node, limit, now)) {
            Some(_) => go(id, Target::Standby, RouteReason::Signal),
            None => primary(RouteReason::Signal),
        };
    }
    // A position that was lost, of which there is nothing to see, is as none.
    let position = match rules.position.map(|position| position.reach(table)) {
        Some(Reach::At(lsn)) => Some(lsn),
        Some(Reach::Ahead) => return Decision::AwaitPrimary,
        Some(Reach::Elsewhere) => return Decision::Impossible,
        Some(Reach::Lost) | None => None,
    };
    if want == Want::Read && rules.consistency == Consistency::Linearizable {
        return primary(RouteReason::Linearizable);
    }
    // A standby may show a commit that still waits for others of its kind, and that the primary doesn't show: for how long nobody knows.
    if want == Want::Read && rules.consistency == Consistency::Session && table.synchronous {
        return primary(RouteReason::Synchronous);
    }

    let mut candidates = smallvec::SmallVec::<[Candidate; 8]>::new();
    let mut some_standby = false;
    for node in table.members().take(MOST) {
        let Some(lag) = usable_lag(node, limit, now).filter(|_| avoid != Some(node.id)) else {
            continue;
        };
        some_standby = true;
        // What was committed is flushed by then, or of no weight: a primary may hold back for long what else it has written.
        let current = rules
            .since
            .is_none_or(|since| node.durable_as_of.is_some_and(|durable| durable > since));
        let fresh = match (want, floor(rules.consistency, history, node)) {
            (Want::Standby, _) | (_, None) => true,
            (_, Some(floor)) => node.fresh_as_of.is_some_and(|fresh| fresh > floor),
        };
        let far_enough = position.is_none_or(|lsn| node.wal_position.is_some_and(|replayed| replayed >= lsn));
        if fresh && current && far_enough {
            let lag_share = lag.as_secs_f64() / rules.max_lag.as_secs_f64().max(1e-3);
            candidates.push(Candidate {
                node: node.id,
                load: load(node.id),
                lag_share,
                weight: node.weight,
            });
        }
    }
    let standbys = candidates.len();
    if want == Want::Read
        && rules.read_from_primary == ReadFromPrimary::Also
        && let Some(node) = table.primary
    {
        let weight = table.nodes[node.index()].weight.max(1);
        candidates.push(Candidate {
            node,
            load: load(node),
            lag_share: 0.0,
            weight,
        });
    }
    if let Some(chosen) = power_of_two(&candidates, dice) {
        let target = if table.primary == Some(chosen.node) {
            Target::Primary
        } else {
            Target::Standby
        };
        let reason = match (target, want) {
            (Target::Standby, Want::Standby) => RouteReason::HintStandby,
            (Target::Standby, _) => RouteReason::Read,
            (Target::Primary, _) if standbys > 0 => RouteReason::PrimaryAlso,
            (Target::Primary, _) => no_candidate(some_standby),
        };
        return go(chosen.node, target, reason);
    }
    match rules.read_from_primary {
        ReadFromPrimary::Never => Decision::AwaitStandby,
        ReadFromPrimary::Fallback | ReadFromPrimary::Also => primary(no_candidate(some_standby)),
    }
}

fn no_candidate(some_standby: bool) -> RouteReason {
    if some_standby {
        RouteReason::NotFreshEnough
    } else {
        RouteReason::NoStandby
    }
}

/// How old what a standby answers may be; [`Duration::MAX`] is any age, `None` is not at all. While writes move on purpose there is a primary to
/// compare with.
pub fn age_limit(table: &RoutingTable, max_lag: Duration, stale_reads: StaleReads) -> Option<Duration> {
    let compared = table.primary.is_some() || table.why_no_primary == Some(NoPrimary::SwitchingOver);
    match stale_reads {
        _ if compared => Some(max_lag),
        StaleReads::UpTo(bound) => Some(bound),
        StaleReads::Allow => Some(Duration::MAX),
        StaleReads::Deny => None,
    }
}

/// The lag of a standby that takes reads by this [`age_limit`]; `None` if it takes none.
///
/// One whose lag can't be measured any more, since the primary is gone or has just come back, still holds what it held: it goes on serving
/// until that is older than the limit.
pub fn usable_lag(node: &NodeState, limit: Option<Duration>, now: Instant) -> Option<Duration> {
    let fit = match node.serving {
        Serving::Serving | Serving::LagUnknown => node.role == NodeRole::Standby && node.weight > 0,
        Serving::Lagging | Serving::OtherTimeline | Serving::Fenced | Serving::Foreign | Serving::Unreachable => false,
    };
    let limit = limit.filter(|_| fit)?;
    match node.lag(now) {
        Some(lag) => Some(lag).filter(|lag| *lag <= limit),
        None => (limit == Duration::MAX).then_some(Duration::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Lsn, Timeline};
    use crate::config::{Config, Overrides};

    /// A primary, and a standby that has replayed up to 100, which the primary was at a second ago.
    fn table(now: Instant) -> RoutingTable {
        let text = "[cluster]\nnodes = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n";
        let config = Config::parse(text, "test", &Overrides::default()).expect("a configuration");
        let mut table = RoutingTable::at_start(&config.cluster.nodes, now);
        let second_ago = now.checked_sub(Duration::from_secs(1));
        (table.primary, table.timeline) = (Some(NodeId(0)), Some(Timeline(2)));
        table.nodes[0].role = NodeRole::Primary;
        table.nodes[1].role = NodeRole::Standby;
        table.nodes[1].serving = Serving::Serving;
        (table.nodes[1].fresh_as_of, table.nodes[1].durable_as_of) = (second_ago, second_ago);
        table.nodes[1].wal_position = Some(Lsn(100));
        table
    }

    #[test]
    fn without_a_primary_reads_are_as_old_as_they_may_be() {
        let now = Instant::now();
        let mut table = table(now);
        let take = |table: &RoutingTable, stale_reads| {
            let rules = Rules {
                stale_reads,
                ..rules(Consistency::Eventual)
            };
            let idle = |_| Load::default();
            decide(Want::Read, &rules, &History::default(), table, idle, None, now, 0)
        };
        let second = Duration::from_secs(1);
        let is_read = |decision| {
            matches!(
                decision,
                Decision::Go(Route {
                    target: Target::Standby,
                    ..
                })
            )
        };
        // With a primary it is lag that counts, and so it is while the writes move.
        assert!(is_read(take(&table, StaleReads::Deny)));
        (table.primary, table.why_no_primary) = (None, Some(NoPrimary::SwitchingOver));
        assert!(is_read(take(&table, StaleReads::Deny)));
        table.why_no_primary = Some(NoPrimary::Unreachable(NodeId(0)));
        assert_eq!(take(&table, StaleReads::Deny), Decision::AwaitPrimary);
        assert!(is_read(take(&table, StaleReads::UpTo(second))));
        assert_eq!(take(&table, StaleReads::UpTo(second / 2)), Decision::AwaitPrimary);
        assert!(is_read(take(&table, StaleReads::Allow)));
        // Nothing is known of its age.
        table.nodes[1].durable_as_of = None;
        table.nodes[1].serving = Serving::LagUnknown;
        assert!(is_read(take(&table, StaleReads::Allow)));
        assert_eq!(take(&table, StaleReads::UpTo(second * 1000)), Decision::AwaitPrimary);
    }

    fn rules(consistency: Consistency) -> Rules {
        Rules {
            consistency,
            max_lag: Duration::from_secs(10),
            stale_reads: StaleReads::UpTo(Duration::from_secs(10)),
            read_from_primary: ReadFromPrimary::Fallback,
            wait_for_standby: Duration::ZERO,
            position: None,
            since: None,
        }
    }

    fn goes_to(
        want: Want,
        rules: &Rules,
        table: &RoutingTable,
        now: Instant,
    ) -> Result<(Target, RouteReason), Decision> {
        let history = History::default();
        match decide(want, rules, &history, table, |_| Load::default(), None, now, 7) {
            Decision::Go(route) => Ok((route.target, route.reason)),
            other => Err(other),
        }
    }

    #[test]
    fn a_position_is_where_a_standby_must_have_come_to_at_any_level() {
        let now = Instant::now();
        let table = table(now);
        let read = |position: &str| {
            let rules = Rules {
                position: Some(position.parse().expect(position)),
                ..rules(Consistency::Eventual)
            };
            goes_to(Want::Read, &rules, &table, now)
        };
        assert_eq!(read("2:0/64"), Ok((Target::Standby, RouteReason::Read)));
        assert_eq!(read("1:0/64"), Ok((Target::Standby, RouteReason::Read)));
        assert_eq!(read("2:0/65"), Ok((Target::Primary, RouteReason::NotFreshEnough)));
        assert_eq!(read("3:0/1"), Err(Decision::AwaitPrimary));
    }

    #[test]
    fn where_commits_wait_for_standbys_session_reads_are_the_primarys() {
        let now = Instant::now();
        let mut table = table(now);
        let session = rules(Consistency::Session);
        assert_eq!(
            goes_to(Want::Read, &session, &table, now),
            Ok((Target::Standby, RouteReason::Read))
        );
        table.synchronous = true;
        let synchronous = Ok((Target::Primary, RouteReason::Synchronous));
        assert_eq!(goes_to(Want::Read, &session, &table, now), synchronous);
        let own_writes = rules(Consistency::ReadYourWrites);
        assert_eq!(
            goes_to(Want::Read, &own_writes, &table, now),
            Ok((Target::Standby, RouteReason::Read))
        );
    }

    #[test]
    fn what_must_be_current_is_not_read_from_what_was_current_a_second_ago() {
        let now = Instant::now();
        let mut table = table(now);
        let mut current = rules(Consistency::Eventual);
        current.be_current(now);
        assert!(!current.wait_for_standby.is_zero());
        let not_yet = Ok((Target::Primary, RouteReason::NotFreshEnough));
        assert_eq!(goes_to(Want::Read, &current, &table, now), not_yet);
        let later = now + Duration::from_millis(1);
        table.nodes[1].durable_as_of = Some(later);
        assert_eq!(
            goes_to(Want::Read, &current, &table, later),
            Ok((Target::Standby, RouteReason::Read))
        );
    }
}
