//! What a running proxy says about itself: the JSON of `/status`, which the status page and `pgsluice status` read.
//!
//! Fields are only ever added. A reader fills in what a proxy of another version doesn't send, so every one has a default.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A proxy at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Of pgsluice.
    pub version: String,
    /// Since the process started.
    pub uptime_seconds: f64,
    /// Grows with every change of primary.
    pub epoch: u64,
    /// The primary's name; `None` while there is none.
    pub primary: Option<String>,
    /// The highest timeline seen; `None` until a node was reached.
    pub timeline: Option<u32>,
    /// Two nodes are out of recovery on the same timeline.
    pub split_brain: bool,
    /// It takes no new clients and is about to end.
    pub draining: bool,
    /// Addresses that it listens on, the ports that the kernel chose included.
    pub listen: Vec<String>,
    /// Client connections by state.
    pub clients: ClientCounts,
    /// Statements that wait for a primary.
    pub held_statements: u64,
    /// Changes from one primary to another since the start.
    pub failovers: u64,
    /// Bytes of the old primary's log that the last failover has lost, as far as was sampled; none where that isn't known.
    pub lost_wal_bytes: Option<u64>,
    /// In the configuration's order.
    pub nodes: Vec<NodeStatus>,
    /// Pools that have, or wait for, connections.
    pub pools: Vec<PoolStatus>,
    /// What changed lately, newest first.
    pub events: Vec<Event>,
}

/// Client connections by state; each client is in one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientCounts {
    /// All of them.
    pub total: u64,
    /// The most there may be.
    pub max: u64,
    /// Not logged in yet.
    pub logging_in: u64,
    /// Between transactions, with no server connection.
    pub idle: u64,
    /// With a server connection: a statement runs, or a transaction is open.
    pub active: u64,
    /// For a server connection or a primary.
    pub waiting: u64,
    /// Among the active, bound to their server connection by state that only it has.
    pub pinned: u64,
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// As configured.
    pub name: String,
    /// Host and port.
    pub address: String,
    /// What it was found to be.
    pub role: Role,
    /// The last reading succeeded.
    pub up: bool,
    /// It is sent statements.
    pub serving: bool,
    /// Why it is, or isn't.
    pub why: String,
    /// Age of the newest state that it is known to hold; `None` while unknown, 0 for the primary.
    pub lag_seconds: Option<f64>,
    /// WAL that it has yet to replay.
    pub lag_bytes: Option<u64>,
    /// Its timeline.
    pub timeline: Option<u32>,
    /// Insert position of a primary, replay position of a standby, as PostgreSQL prints it.
    pub wal_position: Option<String>,
    /// `server_version`, such as 15.17.
    pub server_version: Option<String>,
    /// Round trip of the last reading.
    pub probe_seconds: Option<f64>,
    /// Share of reads relative to its peers.
    pub weight: u32,
    /// Server connections.
    pub connections: ConnectionCounts,
    /// Reads that it was sent since the start.
    pub statements_read: u64,
    /// Writes that it was sent since the start.
    pub statements_write: u64,
    /// Its part of all reads since the start, 0 to 1.
    pub share_of_reads: f64,
    /// What went wrong last, while it matters.
    pub last_error: Option<String>,
}

/// What a node was found to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Out of recovery on the highest timeline.
    Primary,
    /// In recovery.
    Standby,
    /// Out of recovery on a lower timeline, or second of two: fenced.
    StalePrimary,
    /// Not reached.
    Unreachable,
    /// Not read yet, or something that this version has no name for.
    #[default]
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Primary => "primary",
            Role::Standby => "standby",
            Role::StalePrimary => "stale primary",
            Role::Unreachable => "unreachable",
            Role::Unknown => "unknown",
        })
    }
}

/// Server connections by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionCounts {
    /// In the pool.
    pub idle: u64,
    /// With a client.
    pub active: u64,
}

/// The pool of one node, database and user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolStatus {
    /// The node's name.
    pub node: String,
    /// Database of its connections.
    pub database: String,
    /// User of its connections.
    pub user: String,
    /// Its connections.
    pub connections: ConnectionCounts,
    /// The most it may have.
    pub size: u64,
    /// Statements that wait for one.
    pub waiting: u64,
    /// For how long the first of them has been waiting.
    pub longest_wait_microseconds: u64,
}

/// A change that an operator may want to know of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// How long ago, so that the reader needs no synchronised clock.
    pub seconds_ago: f64,
    /// How much it matters.
    pub level: EventLevel,
    /// One sentence.
    pub message: String,
}

/// As in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventLevel {
    /// A change of state.
    #[default]
    Info,
    /// An operator may have to act.
    Warn,
    /// An operator must act.
    Error,
}
