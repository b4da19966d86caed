//! Connections to those who may lead next, opened while there is no primary: what is held then needn't wait for logins when one leads.
//! A promotion ends no connection, so those to a standby are as good as new ones ([`crate::pool::Purpose`]).

use std::rc::Rc;
use std::sync::Arc;

use super::workers::Workers;
use crate::cluster::{NodeId, NodeRole, RoutingTable};
use crate::pool::PrincipalPools;
use crate::session::worker::{Shared, Worker};

/// Connections that one database and user may soon need.
#[derive(Clone)]
pub(super) struct Warmth {
    pools: Arc<PrincipalPools>,
    node: NodeId,
    /// So many there should be, over all workers.
    connections: usize,
}

/// If the primary has just been lost, or is about to be left: has every standby that may lead get connections, as many as the primary had.
pub(super) fn prepare(shared: &Shared, workers: &Workers, before: &RoutingTable, now: &RoutingTable) {
    let (Some(left), None) = (before.primary, now.primary) else {
        return;
    };
    let size = shared.config.load().pool.size;
    for pools in shared.pools.snapshot() {
        let (idle, busy) = pools.at(left).occupancy();
        let connections = (idle + busy).min(size);
        for node in candidates(now) {
            workers.warm_all(&Warmth {
                pools: Arc::clone(&pools),
                node,
                connections,
            });
        }
    }
}

/// Those who may lead next. Pure.
fn candidates(table: &RoutingTable) -> impl Iterator<Item = NodeId> {
    let timeline = table.timeline;
    let fit = move |node: &&crate::cluster::NodeState| node.role == NodeRole::Standby && node.timeline == timeline;
    table.nodes.iter().filter(fit).map(|node| node.id)
}

/// Opens them together with the other workers, as far as there is room. What fails is left to whoever needs it.
pub(super) async fn warm(worker: Rc<Worker>, warmth: Warmth) {
    let pool = warmth.pools.at(warmth.node);
    let epoch = worker.shared.cluster.table().epoch;
    for _ in 0..warmth.connections {
        let (idle, busy) = pool.occupancy();
        if idle + busy >= warmth.connections || !pool.open_spare(worker.index, epoch).await {
            return;
        }
    }
}
