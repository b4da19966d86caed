//! What the nodes are: which one is the primary, how fresh each standby is, and when that changes.
//!
//! One `monitor` task per node asks one cheap statement (`probe`) at an interval, and at once when something hints at a change.
//! Each answer is a `reading`. The `coordinator` takes the readings, lets `election`, `freshness` and `serving` decide (pure
//! functions, time is an argument), and publishes a [`RoutingTable`] that replaces the last one as a whole. Consensus is left to
//! those who do it well: this module follows what PostgreSQL and its HA manager have decided, except for the one promotion that
//! the trigger file asks for (`promotion`).
//!
//! The tasks are spawned with [`tokio::spawn`] on the runtime that calls [`Cluster::start`] and end with the last [`Cluster`].
//! A [`Cluster`] can be used from any thread and any runtime.

pub mod election;
pub mod freshness;
pub mod lsn;
pub mod node;
pub mod node_view;
pub mod reading;
pub mod routing_table;
pub mod serving;
pub mod state_file;

mod activity;

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{Notify, watch};

use crate::config::Config;

use activity::Activity;
pub use lsn::{Epoch, Lsn, SystemIdentifier, Timeline};
pub use node::{NodeId, NodeRole};
pub use reading::ServerIdentity;
pub use routing_table::{ClusterStats, NoPrimary, NodeState, RoutingTable};
pub use serving::Serving;
pub use state_file::StateFileError;

/// The cluster as this proxy sees it: a handle, cheap to clone, for every thread.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

/// What all handles and all tasks share.
pub(crate) struct Shared {
    /// The table that statements live by.
    table: ArcSwap<RoutingTable>,
    /// Bumped when the primary, its epoch or a node's fitness for reads changes.
    version: watch::Sender<u64>,
    /// One for each node; wakes its monitor.
    wake: Box<[Notify]>,
    /// Whether clients send statements.
    activity: Activity,
}

impl Cluster {
    /// Starts watching the nodes of `config`, on the current runtime. Returns at once: the first table has no primary
    /// ([`NoPrimary::Starting`]).
    ///
    /// # Errors
    /// [`StartError`]: what was remembered of the cluster can't be used.
    pub fn start(config: &Arc<Config>) -> Result<Cluster, StartError> {
        Ok(Cluster::frozen(RoutingTable::at_start(&config.cluster)))
    }

    /// A cluster that nobody watches, with this table for ever: for tests, and for explaining a route without a server.
    pub fn frozen(table: RoutingTable) -> Cluster {
        Cluster(Arc::new(Shared::new(table)))
    }

    /// The current table. Load it once per statement; a guard held for long delays nothing but its own table's end.
    pub fn table(&self) -> Guard<Arc<RoutingTable>> {
        self.0.table.load()
    }

    /// A number that grows whenever the primary, the epoch, or a node's role or fitness for reads has changed. The table is
    /// already the new one when it does, so: subscribe, look at the table, and then wait for a change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// Something happened on a connection to `node` that may mean a change: it is asked at once, and all of them are if it was
    /// the primary. Cheap enough to call from every connection that breaks; a storm of hints is one question.
    pub fn hint(&self, node: NodeId, hint: Hint) {
        self.0.hint(node, hint);
    }

    /// A client has sent a statement. Keeps the probing at its full rate; costs one relaxed load in the steady state.
    pub fn note_statement(&self) {
        if self.0.activity.note() {
            self.0.wake_all();
        }
    }

    /// Asks every node now.
    pub fn request_probe(&self) {
        self.0.wake_all();
    }
}

/// Why a cluster can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state file is there and can't be read, or holds something else.
    #[error(transparent)]
    StateFile(#[from] StateFileError),
}

/// What a connection to a node has shown. A hint decides nothing; it makes the monitor ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// It was refused, reset, or ended without a word.
    ConnectionLost,
    /// 57P01, 57P02 or 57P03, as an error or as the notice before an immediate stop.
    ShuttingDown,
    /// 25006 from the node taken for the primary. It has three meanings (a standby, a session read-only by choice, a transaction
    /// older than a promotion).
    ReadOnlyRefusal,
    /// The server reported this `in_hot_standby` at login or after a change (PostgreSQL 14+).
    InHotStandby(bool),
}

impl Shared {
    fn new(table: RoutingTable) -> Shared {
        Shared {
            wake: table.nodes.iter().map(|_| Notify::new()).collect(),
            table: ArcSwap::from_pointee(table),
            version: watch::Sender::new(0),
            activity: Activity::new(),
        }
    }

    fn hint(&self, node: NodeId, hint: Hint) {
        let table = self.table.load();
        let is_primary = table.primary == Some(node);
        let news_for_all = match hint {
            Hint::ConnectionLost | Hint::ShuttingDown | Hint::ReadOnlyRefusal => is_primary,
            // Every login reports it: only what contradicts the table is news.
            Hint::InHotStandby(in_recovery) => {
                if in_recovery != is_primary {
                    return;
                }
                true
            }
        };
        drop(table);
        if news_for_all {
            self.wake_all();
        } else if let Some(wake) = self.wake.get(node.index()) {
            wake.notify_one();
        }
    }

    fn wake_all(&self) {
        for wake in &self.wake {
            wake.notify_one();
        }
    }
}
