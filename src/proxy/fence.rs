//! Cuts every connection to a node that is no longer what its connections were opened for: an old primary that was left behind by a
//! promotion may go on committing for a while (a server that "refuses connections" still has those it had), and whatever it answers
//! from then on is lost.

use std::sync::Arc;

use crate::cluster::{NodeId, NodeRole, RoutingTable};
use crate::session::worker::Shared;

/// Follows the routing table for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut changes = shared.cluster.subscribe();
    let mut before = shared.cluster.table().clone();
    loop {
        if changes.changed().await.is_err() {
            return;
        }
        let now = shared.cluster.table().clone();
        for node in fallen(&before, &now) {
            let cut = shared.pools.cut(node);
            let name = now.node(node).map(|row| row.name.to_string()).unwrap_or_default();
            tracing::info!(node = %name, epoch = now.epoch.0, connections = cut, "connections to the node were cut");
        }
        before = now;
    }
}

/// The nodes whose connections must go, by what changed between two tables. Pure.
fn fallen(before: &RoutingTable, now: &RoutingTable) -> Vec<NodeId> {
    let outcast = |role: NodeRole| matches!(role, NodeRole::StalePrimary | NodeRole::Foreign);
    now.nodes
        .iter()
        .filter(|node| {
            let was = before.node(node.id).map_or(NodeRole::Unknown, |row| row.role);
            let newly_outcast = outcast(node.role) && !outcast(was);
            // The primary of before, when another has taken its place, whatever it is now.
            let dethroned =
                now.epoch != before.epoch && before.primary == Some(node.id) && now.primary != before.primary;
            newly_outcast || dethroned
        })
        .map(|node| node.id)
        .collect()
}
