//! Server connections: who has one, who waits for one, and what is known of each.
//!
//! One [`pool::Pool`] per node, database and user. A connection is [`BackendConn`]; whoever holds one holds it through a [`Lease`], and a
//! lease that isn't checked in closes its connection: nothing of doubtful state can come back by accident. The invariants that callers
//! needn't remember: a connection from an older epoch is never handed out for writes unless it is to the very server that leads now, one
//! whose node was fenced never at all, and one on which something unasked has arrived never either.

mod backend_conn;
mod node_link;
mod own_answer;
#[expect(clippy::module_inception, reason = "the pool is what the folder is named for")]
mod pool;
mod pools;
mod prepared;
mod quota;
mod settings;
mod shape;

pub use backend_conn::{BackendConn, Bonds, ConnError, CurrentSetting};
pub use node_link::NodeLink;
pub use pool::{CheckoutError, Lease, Pool, Purpose};
pub use pools::{Login, Pools, PrincipalPools, REAP_INTERVAL, Welcome};
pub use prepared::{Evicted, Prepared, PreparedRegistry, PreparedSet, SERVER_NAME};
pub use quota::Place as Slot;
pub use settings::{SettingValue, Settings};
pub use shape::Shape;
