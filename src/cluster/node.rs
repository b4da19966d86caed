//! What a node is called inside the proxy, and what it was found to be.

use std::fmt;

/// A node's place in `[cluster] nodes`, and in every table that has a row per node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

impl NodeId {
    /// The index of this node's row.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a node is. Always derived from readings, never configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeRole {
    /// Out of recovery, on the highest timeline, elected: takes writes.
    Primary,
    /// In recovery.
    Standby,
    /// Out of recovery and yet not the primary: on a lower timeline than one seen, fenced by a promotion, or the other half of
    /// a split brain. Gets neither reads nor writes until it follows.
    StalePrimary,
    /// Has another system identifier: a server of another cluster. Gets nothing.
    Foreign,
    /// Could not be asked lately.
    Unreachable,
    /// Was a node, and is none any more: no source of nodes names it. Gets nothing.
    Departed,
    /// Not asked yet; or out of recovery and about to be elected, as soon as the others had a moment to contradict;
    /// or another address of another node's server.
    Unknown,
}

impl NodeRole {
    /// Every role of a node, in the order in which metrics list them.
    pub const ALL: [NodeRole; 6] = [
        NodeRole::Primary,
        NodeRole::Standby,
        NodeRole::StalePrimary,
        NodeRole::Foreign,
        NodeRole::Unreachable,
        NodeRole::Unknown,
    ];

    /// The name in logs, metrics and `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeRole::Primary => "primary",
            NodeRole::Standby => "standby",
            NodeRole::StalePrimary => "stale_primary",
            NodeRole::Foreign => "foreign",
            NodeRole::Unreachable => "unreachable",
            NodeRole::Departed => "departed",
            NodeRole::Unknown => "unknown",
        }
    }
}

impl fmt::Display for NodeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
