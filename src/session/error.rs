//! What the proxy itself says to a client that is logged in. One variant per cause; the SQLSTATE and the words follow from it.

use std::time::Duration;

use super::retry::Verdict;
use crate::cluster::NoPrimary;
use crate::wire::error_response::ErrorFields;
use crate::wire::sqlstate::SqlState;

/// A cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The client's bytes are not the protocol.
    #[error("{0}")]
    Protocol(String),
    /// No primary came in time.
    #[error("no primary within {waited:?}: {}", why.map_or_else(|| "reason unknown".to_owned(), |why| why.to_string()))]
    NoPrimary {
        /// How long the statement was held.
        waited: Duration,
        /// The table's own word for it.
        why: Option<NoPrimary>,
    },
    /// No standby came in time, and the primary takes no reads.
    #[error("no standby is fit for this read within {waited:?}")]
    NoStandby {
        /// How long the statement was held.
        waited: Duration,
    },
    /// It is to see what no server that the proxy knows has come to.
    #[error("no server is known to have reached the position that this session is to see, within {waited:?}")]
    PositionAhead {
        /// How long the statement was held.
        waited: Duration,
    },
    /// Too many statements are held already.
    #[error("there is no primary, and {0} statements wait for one already")]
    HoldFull(usize),
    /// All server connections are taken.
    #[error("no server connection became free within {0:?}")]
    PoolExhausted(Duration),
    /// A cancel request came before the statement had a place to run.
    #[error("canceling statement due to user request")]
    Cancelled,
    /// A node did not let us in; its own words and code.
    #[error("{message}")]
    NodeLogin {
        /// The code.
        code: SqlState,
        /// The words.
        message: String,
    },
    /// The node was lost while a statement ran.
    #[error("the connection to node {node} was lost {}", match verdict {
        Verdict::CertainlyNotCommitted => "and the transaction was rolled back",
        Verdict::Unknown => "while a commit was in flight: it is not known whether it took effect",
    })]
    NodeLost {
        /// Its name.
        node: String,
        /// What is known.
        verdict: Verdict,
    },
    /// The block is lost; the client hasn't ended it yet.
    #[error("current transaction is aborted, commands ignored until end of transaction block")]
    BlockLost,
    /// State that only a lost connection had.
    #[error("terminating connection: the connection to node {node} was lost, and with it session state that cannot be rebuilt{}", match verdict {
        Verdict::CertainlyNotCommitted => "",
        Verdict::Unknown => "; a commit was in flight: it is not known whether it took effect",
    })]
    PinnedLost {
        /// Its name.
        node: String,
        /// What is known of what ran when it was lost.
        verdict: Verdict,
    },
    /// A READ ONLY block on a standby came to something that only the primary can do, and can't be moved.
    #[error("this READ ONLY transaction runs on a standby, and the statement needs the primary")]
    BlockOnStandby,
    /// Settings that the server had taken before, it takes no more.
    #[error("{message}")]
    Settings {
        /// The server's code.
        code: SqlState,
        /// The server's words.
        message: String,
    },
    /// `SET pgsluice.…` to something that it can't be.
    #[error("invalid value for parameter \"{name}\": \"{value}\"")]
    BadSetting {
        /// The setting.
        name: String,
        /// The value.
        value: String,
        /// What it can be, as a sentence.
        allowed: &'static str,
    },
    /// Its prepared statements are too much to keep.
    #[error("too many prepared statements: their names and texts take more than {0} MiB")]
    TooManyStatements(usize),
    /// A transaction block, where there are none.
    #[error("transaction blocks are not allowed in statement pooling mode")]
    NoBlocks,
    /// The client has left its block waiting for too long.
    #[error("terminating connection due to idle-in-transaction timeout")]
    IdleInTransaction,
    /// The client has asked for nothing for too long.
    #[error("terminating connection due to idle-session timeout")]
    IdleSession,
    /// The proxy shuts down.
    #[error("terminating connection due to administrator command")]
    Draining,
    /// Too many clients.
    #[error("sorry, too many clients already")]
    TooManyClients,
    /// Asked for what isn't done.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl SessionError {
    /// Its SQLSTATE.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            SessionError::Protocol(_) => SqlState::PROTOCOL_VIOLATION,
            SessionError::NoPrimary { .. }
            | SessionError::NoStandby { .. }
            | SessionError::PositionAhead { .. }
            | SessionError::HoldFull(_) => SqlState::CANNOT_CONNECT_NOW,
            SessionError::PoolExhausted(_) | SessionError::TooManyClients => SqlState::TOO_MANY_CONNECTIONS,
            SessionError::Cancelled => SqlState::QUERY_CANCELED,
            SessionError::NodeLogin { code, .. } | SessionError::Settings { code, .. } => *code,
            SessionError::NodeLost { verdict, .. } => verdict.sqlstate(),
            SessionError::BlockLost => SqlState::IN_FAILED_SQL_TRANSACTION,
            SessionError::PinnedLost {
                verdict: Verdict::CertainlyNotCommitted,
                ..
            }
            | SessionError::Draining => SqlState::ADMIN_SHUTDOWN,
            SessionError::PinnedLost {
                verdict: verdict @ Verdict::Unknown,
                ..
            } => verdict.sqlstate(),
            SessionError::TooManyStatements(_) => SqlState::OUT_OF_MEMORY,
            SessionError::IdleInTransaction => SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            SessionError::IdleSession => SqlState::IDLE_SESSION_TIMEOUT,
            SessionError::BadSetting { .. } => SqlState::INVALID_PARAMETER_VALUE,
            SessionError::BlockOnStandby | SessionError::NoBlocks | SessionError::Unsupported(_) => {
                SqlState::FEATURE_NOT_SUPPORTED
            }
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            SessionError::NoPrimary { .. } | SessionError::NoStandby { .. } | SessionError::HoldFull(_) => {
                Some("Try again when the failover has ended. [failover] hold_timeout and hold_max bound the wait.")
            }
            SessionError::PositionAhead { .. } => Some(
                "The position is of a timeline that this proxy hasn't heard of: try again when the failover has ended, or RESET pgsluice.min_position.",
            ),
            SessionError::PoolExhausted(_) => {
                Some("Shorten transactions, or raise [pool] size; [pool] checkout_timeout bounds the wait.")
            }
            SessionError::NodeLost {
                verdict: Verdict::CertainlyNotCommitted,
                ..
            } => Some("Run the transaction again."),
            SessionError::NodeLost {
                verdict: Verdict::Unknown,
                ..
            } => Some("Look whether its effects are there before running it again."),
            SessionError::PinnedLost {
                verdict: Verdict::CertainlyNotCommitted,
                ..
            } => Some("Connect again."),
            SessionError::PinnedLost {
                verdict: Verdict::Unknown,
                ..
            } => Some("Connect again, and look whether its effects are there before running it again."),
            SessionError::BlockOnStandby => {
                Some("Begin the transaction READ WRITE, or put /* pgsluice: primary */ into its first statement.")
            }
            SessionError::BadSetting { allowed, .. } => Some(allowed),
            SessionError::TooManyStatements(_) => Some("Close the statements that are no longer needed."),
            SessionError::NoBlocks => Some("[pool] mode = \"transaction\" allows them."),
            SessionError::IdleInTransaction => Some("[pool] idle_in_transaction_timeout is the limit."),
            SessionError::IdleSession => Some("[pool] client_idle_timeout is the limit."),
            SessionError::TooManyClients => Some("[listen] max_clients is the limit."),
            SessionError::Protocol(_)
            | SessionError::Cancelled
            | SessionError::NodeLogin { .. }
            | SessionError::BlockLost
            | SessionError::Settings { .. }
            | SessionError::Draining
            | SessionError::Unsupported(_) => None,
        }
    }

    /// As an ERROR: the connection stays.
    pub fn error(&self) -> ErrorFields {
        self.with_hint(ErrorFields::error(self.sqlstate(), self.to_string()))
    }

    /// As a FATAL error: the connection ends.
    pub fn fatal(&self) -> ErrorFields {
        self.with_hint(ErrorFields::fatal(self.sqlstate(), self.to_string()))
    }

    fn with_hint(&self, fields: ErrorFields) -> ErrorFields {
        match self.hint() {
            Some(hint) => fields.with_hint(hint),
            None => fields,
        }
    }
}
