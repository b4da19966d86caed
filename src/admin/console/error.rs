//! What the console has against a statement. One variant per cause; the SQLSTATE and the words follow from it.

use super::command::VERBS;
use crate::wire::error_response::ErrorFields;
use crate::wire::sqlstate::SqlState;

/// A cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConsoleError {
    /// It begins with something else than a command.
    #[error("the admin console has no command \"{0}\"")]
    UnknownCommand(String),
    /// `SHOW` of something that there isn't.
    #[error("the admin console can't show \"{0}\"")]
    UnknownTopic(String),
    /// `SET` of something that isn't set here.
    #[error("the admin console has no setting \"{0}\"")]
    UnknownSetting(String),
    /// More than the command takes.
    #[error("syntax error at or near \"{0}\"")]
    Unexpected(String),
    /// Less than the command takes.
    #[error("syntax error at end of input")]
    Ends,
    /// A quote or a comment has no end.
    #[error("unterminated quote or comment")]
    Unterminated,
    /// Longer than any sequence of commands.
    #[error("the statement is too long")]
    TooLong,
    /// A node's name that none has.
    #[error("there is no node \"{name}\"")]
    UnknownNode {
        /// As written.
        name: String,
        /// Those that there are.
        nodes: Vec<String>,
    },
    /// Parse of several statements.
    #[error("cannot insert multiple commands into a prepared statement")]
    Several,
    /// Parse of a name that is taken.
    #[error("prepared statement \"{0}\" already exists")]
    StatementExists(String),
    /// A name that no statement has.
    #[error("prepared statement \"{0}\" does not exist")]
    NoStatement(String),
    /// Bind of a name that is taken.
    #[error("portal \"{0}\" already exists")]
    PortalExists(String),
    /// A name that no portal has.
    #[error("portal \"{0}\" does not exist")]
    NoPortal(String),
    /// Execute once more.
    #[error("portal \"{0}\" cannot be run")]
    PortalDone(String),
    /// More than a console needs.
    #[error("too many prepared statements or portals")]
    TooMany,
    /// Bind of values to what has no parameters.
    #[error("bind message supplies {0} parameters, but the console's statements take none")]
    Parameters(usize),
    /// Bind asks for formats of more or fewer columns than there are.
    #[error("bind message has {formats} result formats but query has {columns} columns")]
    Formats {
        /// Asked for.
        formats: usize,
        /// There are.
        columns: usize,
    },
    /// A message's inside isn't what the protocol says.
    #[error("invalid message format")]
    Malformed,
    /// A FunctionCall.
    #[error("the admin console has no functions")]
    FunctionCall,
    /// A cancel request came while a switchover ran.
    #[error("canceling statement due to user request")]
    Cancelled,
    /// The proxy is going, and doesn't wait any longer.
    #[error("terminating connection due to administrator command")]
    Leaving,
    /// Whoever carries a command out is gone.
    #[error("the command broke off")]
    Broken,
}

impl ConsoleError {
    fn sqlstate(&self) -> SqlState {
        match self {
            ConsoleError::UnknownCommand(_)
            | ConsoleError::UnknownTopic(_)
            | ConsoleError::Unexpected(_)
            | ConsoleError::Ends
            | ConsoleError::Unterminated
            | ConsoleError::Several => SqlState::SYNTAX_ERROR,
            ConsoleError::UnknownSetting(_) | ConsoleError::UnknownNode { .. } => SqlState::UNDEFINED_OBJECT,
            ConsoleError::TooLong | ConsoleError::TooMany => SqlState::PROGRAM_LIMIT_EXCEEDED,
            ConsoleError::StatementExists(_) => SqlState::DUPLICATE_PREPARED_STATEMENT,
            ConsoleError::NoStatement(_) => SqlState::INVALID_SQL_STATEMENT_NAME,
            ConsoleError::PortalExists(_) => SqlState::DUPLICATE_CURSOR,
            ConsoleError::NoPortal(_) => SqlState::INVALID_CURSOR_NAME,
            ConsoleError::PortalDone(_) => SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            ConsoleError::Parameters(_) | ConsoleError::Formats { .. } | ConsoleError::Malformed => {
                SqlState::PROTOCOL_VIOLATION
            }
            ConsoleError::FunctionCall => SqlState::FEATURE_NOT_SUPPORTED,
            ConsoleError::Cancelled => SqlState::QUERY_CANCELED,
            ConsoleError::Leaving => SqlState::ADMIN_SHUTDOWN,
            ConsoleError::Broken => SqlState::INTERNAL_ERROR,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ConsoleError::UnknownCommand(_) | ConsoleError::UnknownTopic(_) => {
                let verbs: Vec<&str> = VERBS.iter().map(|verb| verb.syntax).collect();
                Some(format!("There are {}.", verbs.join(", ")))
            }
            ConsoleError::UnknownSetting(_) => {
                Some("Settings of pgsluice stand in its configuration file, which RELOAD reads again.".to_owned())
            }
            ConsoleError::UnknownNode { nodes, .. } => Some(format!("There are {}.", nodes.join(", "))),
            ConsoleError::Cancelled => Some("What it has begun goes on; SHOW NODES tells how it ends.".to_owned()),
            ConsoleError::Unexpected(_)
            | ConsoleError::Ends
            | ConsoleError::Unterminated
            | ConsoleError::Several
            | ConsoleError::TooLong
            | ConsoleError::TooMany
            | ConsoleError::StatementExists(_)
            | ConsoleError::NoStatement(_)
            | ConsoleError::PortalExists(_)
            | ConsoleError::NoPortal(_)
            | ConsoleError::PortalDone(_)
            | ConsoleError::Parameters(_)
            | ConsoleError::Formats { .. }
            | ConsoleError::Malformed
            | ConsoleError::FunctionCall
            | ConsoleError::Leaving
            | ConsoleError::Broken => None,
        }
    }

    /// As the client is told; the connection ends only where the proxy does.
    pub(super) fn fields(&self) -> ErrorFields {
        let fields = match self {
            ConsoleError::Leaving => ErrorFields::fatal(self.sqlstate(), self.to_string()),
            _ => ErrorFields::error(self.sqlstate(), self.to_string()),
        };
        match self.hint() {
            Some(hint) => fields.with_hint(hint),
            None => fields,
        }
    }
}

impl From<ConsoleError> for ErrorFields {
    fn from(error: ConsoleError) -> ErrorFields {
        error.fields()
    }
}
