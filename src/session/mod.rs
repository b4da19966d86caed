//! One client's life: log in, take requests, carry them out, leave.
//!
//! A session is one task on one worker's runtime. It owns the client's socket and, while it needs one, a lease on a server connection;
//! the lease lives inside [`phase::Phase`], so that holding one without a reason can't be written. One request's walk:
//!
//! 1. [`request`] cuts what has arrived into a unit: a query, or a batch up to Sync or Flush.
//! 2. [`plan`] classes the unit: what it wants, what it does to the session, whether it could run again.
//! 3. [`crate::route::decide()`] says where (pure).
//! 4. [`exchange`] sends it and relays the answer, translating statement names by [`translate`].
//! 5. [`retry`] judges failures (pure); [`client_session`] settles what the unit changed.

mod abandon;
pub mod aim;
mod block_end;
pub mod cancel;
pub mod client_link;
pub mod client_session;
pub mod control;
pub mod danger;
pub mod error;
pub mod exchange;
pub mod expect;
pub mod inbox;
pub mod login;
pub mod meant;
pub mod notifiers;
pub mod outcome;
pub mod overhear;
mod own_settings;
pub mod phase;
pub mod placing;
pub mod plan;
mod prepared_view;
pub mod process_ids;
mod replication;
pub mod request;
mod resets;
pub mod retry;
mod settle;
pub mod statements;
pub mod translate;
pub mod visitor;
pub mod worker;
