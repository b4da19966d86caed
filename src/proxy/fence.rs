//! Cuts every connection to a node that is no longer what its connections were opened for: an old primary that was left behind by a
//! promotion may go on committing for a while (a server that "refuses connections" still has those it had), and whatever it answers
//! from then on is lost. And a standby that hangs would keep the reads that run on it for ever.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::warm;
use super::workers::Workers;
use crate::cluster::{NodeId, NodeRole, NodeState, RoutingTable};
use crate::metrics;
use crate::session::worker::Shared;

/// A standby that can't be asked for so long is lost, and what runs on it runs again elsewhere. A busy one that is slow to let the monitor in
/// must not lose what it is busy with.
const SILENT_FOR: Duration = Duration::from_secs(10);
/// How often to look for such standbys.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Follows the routing table for ever.
pub(super) async fn run(shared: Arc<Shared>, workers: Arc<Workers>) {
    let mut changes = shared.cluster.subscribe();
    let mut before = shared.cluster.table().clone();
    let mut last_primary = before.primary;
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            _ = look.tick() => {
                cut_silent(&shared, last_primary);
                continue;
            }
        }
        let now = shared.cluster.table().clone();
        warm::prepare(&shared, &workers, &before, &now);
        for node in newcomers(&before, &now) {
            shared.pools.replace(node);
            shared.counters.replace(node);
        }
        for node in fallen(&before, last_primary, &now) {
            let cut = shared.pools.cut(node);
            let name = now.node(node).map(|row| row.name.to_string()).unwrap_or_default();
            tracing::info!(node = %name, epoch = now.epoch.0, connections = cut, "connections to the node were cut");
        }
        if now.stats.failovers > before.stats.failovers
            && let Some(took) = now.stats.last_failover
        {
            shared.metrics.histogram(metrics::FAILOVER_DURATION, &[]).record(took);
        }
        last_primary = now.primary.or(last_primary);
        before = now;
    }
}

fn cut_silent(shared: &Shared, last_primary: Option<NodeId>) {
    let table = shared.cluster.table();
    for node in silent(&table, last_primary, Instant::now()) {
        if shared.pools.link(node).open() == 0 {
            continue;
        }
        let cut = shared.pools.cut(node);
        let name = table.node(node).map(|row| row.name.to_string()).unwrap_or_default();
        tracing::warn!(node = %name, connections = cut, "the standby has been silent for too long: connections to it were cut");
    }
}

/// Standbys that can't be asked for long. Not the last primary: what runs there may be done, and done once more elsewhere, so it is waited
/// for until there is another. Pure.
fn silent(table: &RoutingTable, last_primary: Option<NodeId>, at: Instant) -> Vec<NodeId> {
    let long_ago = |seen: Instant| at.saturating_duration_since(seen) >= SILENT_FOR;
    table
        .nodes
        .iter()
        .filter(|node| node.role == NodeRole::Unreachable && last_primary != Some(node.id))
        .filter(|node| node.last_seen.is_some_and(long_ago))
        .map(|node| node.id)
        .collect()
}

/// The nodes whose connections must go, by what changed between two tables. `last_primary` is the newest that there was: before a promotion
/// there is often none for a while, and the old one, hung or cut off, is merely unreachable. Pure.
fn fallen(before: &RoutingTable, last_primary: Option<NodeId>, now: &RoutingTable) -> Vec<NodeId> {
    let outcast = |role: NodeRole| matches!(role, NodeRole::StalePrimary | NodeRole::Foreign | NodeRole::Departed);
    now.nodes
        .iter()
        .filter(|node| {
            let was = before.node(node.id).map_or(NodeRole::Unknown, |row| row.role);
            let newly_outcast = outcast(node.role) && !outcast(was);
            let dethroned = last_primary == Some(node.id) && now.primary.is_some_and(|primary| primary != node.id);
            newly_outcast || dethroned
        })
        .map(|node| node.id)
        .collect()
}

/// The places whose node isn't the one that it was, or has another name. Pure.
fn newcomers(before: &RoutingTable, now: &RoutingTable) -> Vec<NodeId> {
    let is_new = |node: &&NodeState| {
        let was = before.node(node.id);
        was.is_none_or(|was| was.role == NodeRole::Departed || was.name != node.name)
    };
    now.members().filter(is_new).map(|node| node.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Epoch;
    use crate::config::{Config, Overrides};

    fn table(primary: Option<u16>, epoch: u64, roles: [NodeRole; 2]) -> RoutingTable {
        let text = "[cluster]\nnodes = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n";
        let config = Config::parse(text, "test", &Overrides::default()).expect("a configuration");
        let mut table = RoutingTable::at_start(&config.cluster.nodes, std::time::Instant::now());
        table.primary = primary.map(NodeId);
        table.epoch = Epoch(epoch);
        for (node, role) in table.nodes.iter_mut().zip(roles) {
            node.role = role;
        }
        table
    }

    #[test]
    fn an_old_primary_that_was_unreachable_before_the_promotion_is_cut_when_another_takes_its_place() {
        use NodeRole::{Primary, Standby, Unreachable};
        let served = table(Some(0), 1, [Primary, Standby]);
        let lost = table(None, 1, [Unreachable, Standby]);
        let promoted = table(Some(1), 2, [Unreachable, Primary]);
        assert_eq!(fallen(&served, Some(NodeId(0)), &lost), []);
        assert_eq!(fallen(&lost, Some(NodeId(0)), &promoted), [NodeId(0)]);
        assert_eq!(fallen(&served, Some(NodeId(0)), &promoted), [NodeId(0)]);
    }

    #[test]
    fn a_node_that_leaves_is_cut_and_what_comes_in_its_place_begins_anew() {
        use NodeRole::{Departed, Primary, Standby, Unknown};
        let served = table(Some(0), 1, [Primary, Standby]);
        let left = table(Some(0), 1, [Primary, Departed]);
        let back = table(Some(0), 1, [Primary, Unknown]);
        assert_eq!(fallen(&served, Some(NodeId(0)), &left), [NodeId(1)]);
        assert_eq!(newcomers(&served, &left), []);
        assert_eq!(newcomers(&left, &back), [NodeId(1)]);
        assert_eq!(newcomers(&served, &served), []);
    }

    #[test]
    fn a_standby_that_is_silent_for_long_is_cut_and_a_primary_is_not() {
        use NodeRole::{Standby, Unreachable};
        let now = Instant::now();
        let mut lost = table(None, 1, [Unreachable, Unreachable]);
        for node in &mut lost.nodes {
            node.last_seen = Some(now);
        }
        assert_eq!(silent(&lost, Some(NodeId(0)), now + SILENT_FOR / 2), []);
        assert_eq!(silent(&lost, Some(NodeId(0)), now + SILENT_FOR), [NodeId(1)]);
        lost.nodes[1].role = Standby;
        assert_eq!(silent(&lost, Some(NodeId(0)), now + SILENT_FOR), []);
    }

    #[test]
    fn a_primary_that_comes_back_keeps_its_connections_and_a_stale_one_loses_them() {
        use NodeRole::{Primary, StalePrimary, Standby, Unreachable};
        let lost = table(None, 1, [Unreachable, Standby]);
        let back = table(Some(0), 1, [Primary, Standby]);
        assert_eq!(fallen(&lost, Some(NodeId(0)), &back), []);
        let fenced = table(None, 1, [StalePrimary, Standby]);
        assert_eq!(fallen(&back, Some(NodeId(0)), &fenced), [NodeId(0)]);
    }
}
