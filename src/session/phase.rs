//! What a session holds between two requests.
//!
//! ```text
//!            unit ends idle, nothing pinned
//!        ┌───────────────────────────────────────┐
//!        ▼                                       │
//!      Idle ── checkout ──▶ (exchange) ──────▶ Attached: a block is open, or state pins the session
//!                               │                │
//!                               └─ node lost ────┴─▶ Aborted: 25P02 until the client ends its block
//! ```

use crate::pool::{Lease, Settings};
use crate::route::Route;
use crate::sql::{Isolation, PinReason};
use std::sync::Arc;

/// Between requests a session is in one of these.
#[derive(Debug)]
pub enum Phase {
    /// It holds nothing.
    Idle,
    /// It holds a server connection. Boxed: most clients, most of the time, are idle.
    Attached(Box<Attached>),
    /// Its transaction block is lost with its node. The client doesn't know, or has been told; either way everything but the end of the
    /// block is refused, as a server does after an error.
    Aborted {
        /// The client has not been told yet: the next answer says 40001.
        untold: bool,
        /// The settings from before the block.
        settings: Arc<Settings>,
    },
}

/// Why and what a session holds.
#[derive(Debug)]
pub struct Attached {
    /// The connection.
    pub lease: Lease,
    /// The session's number.
    pub session: u64,
    /// How it was chosen.
    pub route: Route,
    /// What its sequences remember is the session's own, or nothing.
    pub known: bool,
    /// The transaction block that is open on it.
    pub block: Option<Block>,
}

/// A transaction block.
#[derive(Debug)]
pub struct Block {
    /// Something in it failed: the server refuses everything but its end.
    pub failed: bool,
    /// Something in it may have written.
    pub wrote: bool,
    /// The settings to go back to if it is rolled back.
    pub settings_before: Arc<Settings>,
    /// Settings were changed in it while a savepoint was set: which of them a rollback to it undoes isn't followed.
    pub unclear_settings: bool,
    /// For a block that was begun READ ONLY on a standby: the text that began it, while all that it did is plain reads under READ
    /// COMMITTED, so that it can still begin again on the primary.
    pub movable: Option<Box<[u8]>>,
}

impl Block {
    /// A block that has just begun.
    pub fn begun(settings_before: Arc<Settings>) -> Block {
        Block {
            failed: false,
            wrote: false,
            settings_before,
            unclear_settings: false,
            movable: None,
        }
    }
}

/// The reasons that pin a session to its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pins(u16);

impl Pins {
    /// Adds a reason. Answers whether it is new.
    pub fn add(&mut self, reason: PinReason) -> bool {
        let bit = 1 << reason as u16;
        let new = self.0 & bit == 0;
        self.0 |= bit;
        new
    }

    /// Whether any reason stands.
    pub fn any(self) -> bool {
        self.0 != 0
    }

    /// Whether this reason stands.
    pub fn has(self, reason: PinReason) -> bool {
        self.0 & (1 << reason as u16) != 0
    }

    /// Whatever was pinned is gone.
    pub fn clear(&mut self) {
        self.0 = 0;
    }
}

/// Whether a block of this isolation level can run on a standby and still be moved: each statement sees the newest state anyway.
pub fn sees_anew(isolation: Option<Isolation>) -> bool {
    match isolation {
        None | Some(Isolation::ReadCommitted | Isolation::ReadUncommitted) => true,
        Some(Isolation::RepeatableRead | Isolation::Serializable) => false,
    }
}
