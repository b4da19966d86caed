//! Which node has which [`NodeId`]: nodes come and go while the proxy runs.
//!
//! An id is a place in every table that has a row per node. A node that leaves leaves its place empty, and gets it again when it
//! comes back; another one gets it only after [`VACANT_FOR`], when nothing that was decided about the one before can still be under
//! way. Who finds no place waits for one. Pure: time is an argument.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::node::NodeId;
use crate::config::NodeConfig;

/// Places in all: those of the nodes, and of nodes that left lately.
pub const PLACES: usize = 2 * crate::config::MAX_NODES;

/// So long nobody else gets the place of a node that has left.
const VACANT_FOR: Duration = Duration::from_secs(600);

/// Who has which place.
#[derive(Debug, Default)]
pub(super) struct Membership {
    places: Vec<Place>,
    /// Those of the last list that there was no place for, in its order.
    waiting: Vec<NodeConfig>,
}

#[derive(Debug)]
struct Place {
    node: Arc<NodeConfig>,
    /// Since when it is empty.
    left: Option<Instant>,
}

/// What is different with a new list of nodes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// A node has a place now.
    Joined(NodeId, Arc<NodeConfig>),
    /// The node of this place has another name or weight.
    Renamed(NodeId, Arc<NodeConfig>),
    /// The node of this place is none any more.
    Left(NodeId, Arc<NodeConfig>),
    /// There is no place for this one, for now.
    NoPlace(NodeConfig),
}

impl Membership {
    /// Makes `wanted` the nodes; says what that changes, those who leave first.
    pub(super) fn become_these(&mut self, wanted: &[NodeConfig], now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, place) in (0..).map(NodeId).zip(&mut self.places) {
            let stays = wanted.iter().any(|node| node.address == place.node.address);
            if place.left.is_none() && !stays {
                place.left = Some(now);
                changes.push(Change::Left(id, Arc::clone(&place.node)));
            }
        }
        self.waiting.clear();
        for node in wanted {
            let change = self.admit(node, now);
            if let Some(Change::NoPlace(node)) = &change {
                self.waiting.push(node.clone());
            }
            changes.extend(change);
        }
        changes
    }

    /// Time has passed: whoever waits for a place may get one now. Says who has; that others still wait was said before.
    pub(super) fn admit_waiting(&mut self, now: Instant) -> Vec<Change> {
        let mut joined = Vec::new();
        for node in std::mem::take(&mut self.waiting) {
            match self.admit(&node, now) {
                Some(Change::NoPlace(node)) => self.waiting.push(node),
                change => joined.extend(change),
            }
        }
        joined
    }

    fn admit(&mut self, node: &NodeConfig, now: Instant) -> Option<Change> {
        let known = self.places.iter().position(|place| place.node.address == node.address);
        let shared = Arc::new(node.clone());
        if let Some(at) = known {
            let place = &mut self.places[at];
            let id = NodeId(at as u16);
            return match place.left.take() {
                Some(_) => {
                    place.node = Arc::clone(&shared);
                    Some(Change::Joined(id, shared))
                }
                None if *place.node == *node => None,
                None => {
                    place.node = Arc::clone(&shared);
                    Some(Change::Renamed(id, shared))
                }
            };
        }
        let place = Place {
            node: Arc::clone(&shared),
            left: None,
        };
        let at = match self.longest_empty(now) {
            Some(at) => {
                self.places[at] = place;
                at
            }
            None if self.places.len() < PLACES => {
                self.places.push(place);
                self.places.len() - 1
            }
            None => return Some(Change::NoPlace(node.clone())),
        };
        Some(Change::Joined(NodeId(at as u16), shared))
    }

    fn longest_empty(&self, now: Instant) -> Option<usize> {
        let empty = self
            .places
            .iter()
            .enumerate()
            .filter_map(|(at, place)| Some((at, place.left?)));
        let free = empty.filter(|(_, left)| now.saturating_duration_since(*left) >= VACANT_FOR);
        free.min_by_key(|(_, left)| *left).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeAddress;

    fn node(port: u16) -> NodeConfig {
        NodeConfig {
            address: NodeAddress { host: "h".into(), port },
            name: format!("node {port}"),
            weight: 1,
        }
    }

    fn nodes(ports: &[u16]) -> Vec<NodeConfig> {
        ports.iter().copied().map(node).collect()
    }

    /// What changed, as (place, port), positive for who joined and negative for who left.
    fn told(changes: &[Change]) -> Vec<(u16, i32)> {
        let told = changes.iter().map(|change| match change {
            Change::Joined(id, node) => (id.0, i32::from(node.address.port)),
            Change::Left(id, node) => (id.0, -i32::from(node.address.port)),
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    #[test]
    fn those_who_stay_keep_their_places_and_who_comes_back_gets_its_own() {
        let (mut members, start) = (Membership::default(), Instant::now());
        assert_eq!(
            told(&members.become_these(&nodes(&[1, 2, 3]), start)),
            [(0, 1), (1, 2), (2, 3)]
        );
        assert_eq!(members.become_these(&nodes(&[3, 2, 1]), start), []);
        assert_eq!(
            told(&members.become_these(&nodes(&[3, 4, 1]), start)),
            [(1, -2), (3, 4)]
        );
        assert_eq!(
            told(&members.become_these(&nodes(&[1, 2, 3]), start)),
            [(3, -4), (1, 2)]
        );
    }

    #[test]
    fn a_place_stays_empty_for_a_while_before_a_stranger_gets_it() {
        let (mut members, start) = (Membership::default(), Instant::now());
        members.become_these(&nodes(&[1, 2]), start);
        members.become_these(&nodes(&[1]), start);
        let soon = start + VACANT_FOR - Duration::from_secs(1);
        assert_eq!(told(&members.become_these(&nodes(&[1, 3]), soon)), [(2, 3)]);
        let later = start + VACANT_FOR;
        assert_eq!(told(&members.become_these(&nodes(&[1, 3, 4]), later)), [(1, 4)]);
    }

    #[test]
    fn another_name_or_weight_is_not_another_node() {
        let (mut members, start) = (Membership::default(), Instant::now());
        members.become_these(&nodes(&[1]), start);
        let renamed = NodeConfig {
            weight: 5,
            name: "other".into(),
            ..node(1)
        };
        let changes = members.become_these(std::slice::from_ref(&renamed), start);
        assert_eq!(changes, [Change::Renamed(NodeId(0), Arc::new(renamed))]);
    }

    #[test]
    fn when_every_place_is_taken_the_next_one_gets_none() {
        let (mut members, start) = (Membership::default(), Instant::now());
        let all: Vec<u16> = (1..=PLACES as u16).collect();
        members.become_these(&nodes(&all), start);
        let mut more = nodes(&all);
        more.push(node(9999));
        assert_eq!(members.become_these(&more, start), [Change::NoPlace(node(9999))]);
        assert_eq!(members.become_these(&nodes(&all[1..]), start).len(), 1);
        assert_eq!(
            members.become_these(&nodes(&[9999]), start + VACANT_FOR).last(),
            Some(&Change::Joined(NodeId(0), Arc::new(node(9999))))
        );
    }

    #[test]
    fn who_waits_for_a_place_gets_the_one_that_comes_free() {
        let (mut members, start) = (Membership::default(), Instant::now());
        let all: Vec<u16> = (1..=PLACES as u16).collect();
        let without_first = |more: &[u16]| nodes(&[&all[1..], more].concat());
        members.become_these(&nodes(&all), start);
        let changes = members.become_these(&without_first(&[9998, 9999]), start);
        let waits = |port| Change::NoPlace(node(port));
        assert_eq!(changes[1..], [waits(9998), waits(9999)]);
        assert_eq!(members.admit_waiting(start + VACANT_FOR - Duration::from_secs(1)), []);
        assert_eq!(told(&members.admit_waiting(start + VACANT_FOR)), [(0, 9998)]);
        assert_eq!(members.admit_waiting(start + VACANT_FOR * 2), []);
        // Who isn't wanted any more waits no longer.
        members.become_these(&without_first(&[]), start + VACANT_FOR * 2);
        assert_eq!(members.admit_waiting(start + VACANT_FOR * 4), []);
    }
}
