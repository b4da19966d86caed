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

use crate::pool::{Bonds, Lease, Settings};
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
    /// Somebody has aimed at the session: a signal may still come for the server process, and whoever has the connection then.
    pub aimed: bool,
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
    /// There is, or was, a savepoint in it, and so a rollback may undo a part of what is set.
    pub has_savepoints: bool,
    /// Settings of which the server is asked when the block ends: they were changed while there was a savepoint.
    pub unclear: Vec<String>,
    /// For a block that was begun READ ONLY on a standby: the text that began it, while all that it did is plain reads under READ
    /// COMMITTED, so that it can still begin again on the primary.
    pub movable: Option<Box<[u8]>>,
    /// For a block on the primary in which nothing has run yet: what began it.
    pub fresh: Option<Beginning>,
}

/// A plain BEGIN, which doesn't say whether the block writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    /// The level, if it names one.
    pub isolation: Option<Isolation>,
}

impl Block {
    /// A block that has just begun.
    pub fn begun(settings_before: Arc<Settings>) -> Block {
        Block {
            failed: false,
            wrote: false,
            settings_before,
            has_savepoints: false,
            unclear: Vec::new(),
            movable: None,
            fresh: None,
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

    /// Whether the server can tell of every reason that stands whether it still does.
    pub fn can_be_asked_for(self) -> bool {
        const ASKABLE: [PinReason; 5] = [
            PinReason::TemporaryTable,
            PinReason::AdvisoryLock,
            PinReason::Listen,
            PinReason::WithHoldCursor,
            PinReason::Prepare,
        ];
        self.any()
            && ASKABLE
                .iter()
                .fold(self.0, |rest, reason| rest & !(1 << *reason as u16))
                == 0
    }

    /// Of the reasons that the server can tell of, those stand of which it says so.
    pub fn follow(&mut self, bonds: Bonds) {
        let standing = [
            (PinReason::TemporaryTable, bonds.temporary_table),
            (PinReason::AdvisoryLock, bonds.advisory_lock),
            (PinReason::Listen, bonds.listen),
            (PinReason::WithHoldCursor, bonds.with_hold_cursor),
            (PinReason::Prepare, bonds.prepare),
        ];
        for (reason, stands) in standing {
            if stands {
                self.add(reason);
            } else {
                self.0 &= !(1 << reason as u16);
            }
        }
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
