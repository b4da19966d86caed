//! The address book: where each node is and what it is called, for everybody who opens connections.
//!
//! The coordinator writes it before it publishes a table with the same node, so an id from a table is always in it.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::membership::PLACES;
use super::node::NodeId;
use crate::config::{NodeAddress, NodeConfig};

/// Cheap to clone, and the same for all clones.
#[derive(Clone)]
pub struct Book(Arc<[ArcSwapOption<NodeConfig>]>);

impl Book {
    /// Nodes by their place in the list.
    ///
    /// # Panics
    /// More nodes than a configuration may have.
    pub fn of(nodes: &[NodeConfig]) -> Book {
        let book = Book((0..PLACES).map(|_| ArcSwapOption::empty()).collect());
        for (id, node) in (0..).map(NodeId).zip(nodes) {
            book.enter(id, Some(Arc::new(node.clone())));
        }
        book
    }

    /// What is known of a node; `None` if there is none with this id.
    pub fn node(&self, id: NodeId) -> Option<Arc<NodeConfig>> {
        self.0.get(id.index())?.load_full()
    }

    /// Where a node is.
    pub fn address(&self, id: NodeId) -> Option<NodeAddress> {
        self.node(id).map(|node| node.address.clone())
    }

    pub(super) fn enter(&self, id: NodeId, node: Option<Arc<NodeConfig>>) {
        self.0[id.index()].store(node);
    }
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().filter_map(|node| node.load_full()))
            .finish()
    }
}
