//! How an exchange with a server ended.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::retry::Parting;
use crate::sql::StatementClass;
use crate::wire::backend::TransactionStatus;
use crate::wire::frame::BadFrame;
use crate::wire::sqlstate::SqlState;

/// How an exchange ended.
#[derive(Debug)]
pub enum Outcome {
    /// The server has answered and is ready.
    Done {
        /// How.
        answer: Answer,
        /// The classes of what ran beyond the plan: the rest of a batch that was sent piece by piece.
        later: SmallVec<[Arc<StatementClass>; 1]>,
    },
    /// The server refused with this error, which the client has not seen; the connection is ready. Only where a retry was possible.
    Refused {
        /// The error's.
        code: SqlState,
        /// The block that it began is still open, and has failed.
        in_block: bool,
    },
    /// The server refused the session's settings, and did nothing else; the connection is ready.
    Unsettled {
        /// The server's code.
        code: SqlState,
        /// The server's words.
        message: String,
    },
    /// The connection to the server is lost.
    NodeLost {
        /// What it said first.
        parting: Parting,
        /// The client has a part of the answer.
        forwarded: bool,
        /// What the client still waits for, and what of its bytes is still about.
        left: Left,
    },
    /// The server has ended the session and not itself, as somebody has asked it to, with this FATAL error.
    Ended(Box<[u8]>),
    /// The connection to the server is lost in the middle of a message that the client has a part of: nothing more can be told it.
    Torn,
    /// The client is gone.
    ClientGone {
        /// In a batch whose Sync it had not sent: none of it will be committed.
        open: bool,
    },
    /// The client sent something that is not the protocol, where the server waited for it.
    Violation(BadFrame),
}

impl Outcome {
    /// Whether the server connection is ready for more.
    pub fn leaves_ready(&self) -> bool {
        matches!(
            self,
            Outcome::Done { .. } | Outcome::Refused { .. } | Outcome::Unsettled { .. }
        )
    }
}

/// What is left of a unit that will not be carried out any further.
#[derive(Debug, Clone, Copy)]
pub struct Left {
    /// Answers up to ReadyForQuery that the client waits for; 0 in a batch whose Sync it has not sent.
    pub owed: u32,
    /// Bytes of the unit at the front of the inbox.
    pub inbox: usize,
    /// Bytes still to come of a message that was cut.
    pub cut: usize,
}

/// A complete answer.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// The server's transaction status.
    pub status: TransactionStatus,
    /// There was an error in it.
    pub failed: bool,
    /// What ran beyond the plan may have left something behind that can't be known.
    pub unknown: bool,
    /// Whether the last CommandComplete was that of ROLLBACK.
    pub rolled_back: bool,
    /// When the first byte came.
    pub first_byte: Option<Instant>,
}
