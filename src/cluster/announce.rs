//! The log: one line for each change between two tables, none while nothing changes.

use super::loss::LostLog;
use super::node::NodeRole;
use super::routing_table::{NoPrimary, NodeState, RoutingTable};
use super::serving::Serving;

/// Logs what is different.
pub(super) fn announce(before: &RoutingTable, after: &RoutingTable) {
    for (old, new) in before.nodes.iter().zip(&after.nodes) {
        announce_role(old, new, after.why_no_primary);
        announce_serving(old, new);
    }
    announce_primary(before, after);
    if let Some(lost) = after.stats.lost
        && before.stats.lost != after.stats.lost
    {
        announce_loss(&lost);
    }
    if after.split_brain && !before.split_brain {
        let claimants: Vec<&str> = after
            .nodes
            .iter()
            .filter(|node| claims(node))
            .map(|node| &*node.name)
            .collect();
        tracing::error!(
            nodes = claimants.join(","),
            routed_to = after.primary_state().map_or("none", |node| &node.name),
            "split brain: several nodes are out of recovery on the highest timeline"
        );
    }
    let serving = |table: &RoutingTable| table.standbys().any(|node| node.serving == Serving::Serving);
    if serving(before) && !serving(after) {
        tracing::warn!("no standby is fit for reads any more");
    }
}

fn announce_loss(lost: &LostLog) {
    let (timeline, sampled, end, bytes) = (lost.timeline.0, lost.sampled, lost.end, lost.bytes());
    if bytes == 0 {
        tracing::info!(timeline, %sampled, %end, "failover: the new primary has all that was seen of the old one's log");
    } else {
        tracing::warn!(
            timeline, %sampled, %end, bytes,
            "failover: the new primary lacks log that the old one had written: what was committed in it is lost, as far as it was"
        );
    }
}

fn claims(node: &NodeState) -> bool {
    matches!(node.role, NodeRole::Primary | NodeRole::StalePrimary)
}

fn announce_primary(before: &RoutingTable, after: &RoutingTable) {
    match (after.primary_state(), after.why_no_primary) {
        (Some(node), _) if before.primary != after.primary || before.epoch != after.epoch => tracing::info!(
            node = %node.name,
            epoch = after.epoch.0,
            timeline = after.timeline.map(|timeline| timeline.0),
            without_primary_ms = before.without_primary_since.map(|since| since.elapsed().as_millis()),
            "primary"
        ),
        (None, Some(why)) if before.why_no_primary != after.why_no_primary => match why {
            NoPrimary::Starting | NoPrimary::Confirming(_) => tracing::debug!(why = why.as_str(), "no primary: {why}"),
            NoPrimary::SwitchingOver | NoPrimary::Promoting => tracing::info!(why = why.as_str(), "no primary: {why}"),
            NoPrimary::NoneOutOfRecovery
            | NoPrimary::NoneReachable
            | NoPrimary::OnlyForeign
            | NoPrimary::Unreachable(_)
            | NoPrimary::OnlyStale
            | NoPrimary::SplitBrain
            | NoPrimary::PromotionUncertain => {
                tracing::warn!(why = why.as_str(), "no primary, writes are held: {why}");
            }
        },
        (Some(_), _) | (None, _) => {}
    }
}

fn announce_role(old: &NodeState, new: &NodeState, why_no_primary: Option<NoPrimary>) {
    let node = &*new.name;
    if new.role == NodeRole::Unknown && new.last_error.is_some() {
        if old.last_error != new.last_error {
            tracing::warn!(node, why = new.last_error.as_deref(), "the node is left out");
        }
        return;
    }
    if old.role == new.role {
        if new.role == NodeRole::Unreachable && old.last_error != new.last_error {
            tracing::info!(
                node,
                error = new.last_error.as_deref(),
                "the node still can't be reached"
            );
        }
        return;
    }
    let timeline = new.timeline.map(|timeline| timeline.0);
    match new.role {
        NodeRole::Primary | NodeRole::Standby | NodeRole::Unknown => {
            tracing::info!(node, role = %new.role, timeline, "role")
        }
        // Said with its reason when it leaves.
        NodeRole::Departed => {}
        NodeRole::Unreachable => {
            tracing::warn!(node, error = new.last_error.as_deref(), was = %old.role, "the node can't be reached");
        }
        NodeRole::StalePrimary if why_no_primary == Some(NoPrimary::Promoting) => {
            tracing::info!(node, timeline, "the node is fenced while another is promoted");
        }
        NodeRole::StalePrimary => {
            tracing::error!(
                node,
                timeline,
                "the node is out of recovery and isn't the primary: it is fenced"
            );
        }
        NodeRole::Foreign => tracing::error!(
            node,
            "the node has another system identifier than the cluster: it is refused"
        ),
    }
}

fn announce_serving(old: &NodeState, new: &NodeState) {
    if old.serving == new.serving || new.role != NodeRole::Standby {
        return;
    }
    let node = &*new.name;
    let lag_ms = new.durable_as_of.map(|as_of| as_of.elapsed().as_millis());
    tracing::info!(node, serving = %new.serving, was = %old.serving, lag_ms, "fitness for reads");
}
