//! A monitor's connection: logs in, sends one simple Query at a time, and notices when the server says good-bye.
//!
//! Bounded: an answer is at most so long a message and so many rows ([`Bounds`]), and whoever calls sets the deadline. After any
//! error the connection is of no use any more.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::probe::{self, BadRow, Look};
use super::reading::{Answer, FailureKind, ServerState, Unreachable};
use crate::auth::secret::NodeSecret;
use crate::auth::server_login::{self, ServerLogin, ServerLoginError};
use crate::config::NodeAddress;
use crate::wire::backend::parameter_status;
use crate::wire::error_response::ErrorView;
use crate::wire::replies::{NoReply, next_reply};
use crate::wire::rows::row_values;
use crate::wire::sqlstate::SqlState;
use crate::wire::stream::Stream;
use crate::wire::tls::NodeTlsConnector;

/// No message of an answer to us is longer, and no answer has more rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) message: usize,
    pub(super) rows: usize,
}

/// Of the monitor's own questions.
const BOUNDS: Bounds = Bounds {
    message: 64 * 1024,
    rows: 16,
};

/// The parameter by which a server says that it is in recovery.
const IN_HOT_STANDBY: &str = "in_hot_standby";

/// A whole message.
const SYNC: [u8; 5] = *b"S\0\0\0\x04";

/// Where and as whom to log in.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) address: NodeAddress,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) secret: Option<NodeSecret>,
    pub(super) tls: NodeTlsConnector,
    /// For the login.
    pub(super) timeout: Duration,
}

/// A connection that is logged in.
pub(super) struct ProbeConnection {
    stream: Stream,
    received: BytesMut,
    bounds: Bounds,
    /// Somebody has said that he moves the writes away, and whether he still does isn't known.
    notified: bool,
    listens: bool,
    /// What the server last reported of itself; PostgreSQL 14 and later do.
    in_hot_standby: Option<bool>,
}

/// What went wrong with a question.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// The connection broke, or the server ended it.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The statement failed.
    #[error("{message} ({code})")]
    Sql { code: SqlState, message: String },
    /// Not what the protocol or the statement promise.
    #[error("unexpected answer: {0}")]
    Unexpected(String),
}

/// The columns of a row, as text.
pub(super) type Row = Vec<Option<Bytes>>;

impl ProbeConnection {
    /// Logs in.
    pub(super) async fn open(target: &Target) -> Result<ProbeConnection, Unreachable> {
        let login = ServerLogin {
            address: &target.address,
            user: &target.user,
            database: &target.database,
            parameters: &[("application_name", "pgsluice monitor")],
            secret: target.secret.as_ref(),
            tls: &target.tls,
            timeout: target.timeout,
        };
        match server_login::connect(login).await {
            Ok(session) => Ok(ProbeConnection {
                stream: session.stream,
                received: BytesMut::new(),
                bounds: BOUNDS,
                notified: false,
                listens: false,
                in_hot_standby: reported(&session.parameters),
            }),
            Err(error) => Err(Unreachable {
                kind: kind_of_login_failure(&error),
                message: Arc::from(error.to_string()),
            }),
        }
    }

    /// The same connection for longer answers.
    pub(super) fn with_bounds(self, bounds: Bounds) -> ProbeConnection {
        ProbeConnection { bounds, ..self }
    }

    /// Asks [`probe::statement`]; once more if the server left recovery while it answered.
    pub(super) async fn ask(&mut self) -> Result<Answer, AskError> {
        let look = if std::mem::take(&mut self.notified) {
            Look::Anyway
        } else {
            Look::IfReadOnly
        };
        let answer = self.ask_and(look).await?;
        // For as long as it is so, it is looked at.
        self.notified |= matches!(answer.state, ServerState::Primary { yields: true, .. });
        Ok(answer)
    }

    async fn ask_and(&mut self, look: Look) -> Result<Answer, AskError> {
        let statement = probe::statement(look);
        let rows = match self.query(&statement).await {
            Err(AskError::Sql {
                code: SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                ..
            }) => self.query(&statement).await?,
            other => other?,
        };
        let [row] = &rows[..] else {
            return Err(AskError::Unexpected(format!("{} rows", rows.len())));
        };
        let columns: Vec<Option<&[u8]>> = row.iter().map(Option::as_deref).collect();
        Ok(probe::read_row(&columns)?)
    }

    /// Has a primary tell, from now on, when somebody moves the writes away from it. A standby can't.
    pub(super) async fn listen(&mut self, answer: &Answer) -> Result<(), AskError> {
        if self.listens || matches!(answer.state, ServerState::Standby { .. }) {
            return Ok(());
        }
        self.listens = true;
        match self.query(&format!("LISTEN {}", probe::CHANNEL)).await {
            // It is a convenience.
            Ok(_) | Err(AskError::Sql { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Runs one statement and collects its rows.
    pub(super) async fn query(&mut self, statement: &str) -> Result<Vec<Row>, AskError> {
        let mut message = Vec::with_capacity(statement.len() + 6);
        message.push(b'Q');
        message.extend(
            u32::try_from(statement.len() + 5)
                .expect("our own statements are short")
                .to_be_bytes(),
        );
        message.extend(statement.as_bytes());
        message.push(0);
        self.stream.write_all(&message).await?;
        self.stream.flush().await?;

        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            let (tag, body) = match (self.next_message().await, failure.take()) {
                // A FATAL error is followed by the connection's end, not by ReadyForQuery.
                (Err(AskError::Lost(_)), Some(last_word)) => {
                    return Err(AskError::Lost(AskError::to_string(&last_word)));
                }
                (message, before) => {
                    failure = before;
                    message?
                }
            };
            match tag {
                b'D' if rows.len() < self.bounds.rows => rows.push(row(body)?),
                b'D' => return Err(AskError::Unexpected("too many rows".into())),
                b'E' => failure = Some(sql_error(&body)),
                b'Z' => return failure.map_or(Ok(rows), Err),
                // RowDescription, CommandComplete, EmptyQueryResponse, notices, parameters
                b'T' | b'C' | b'I' | b'N' | b'S' => {}
                b'A' => self.notified = true,
                other => return Err(AskError::Unexpected(format!("message {:?}", char::from(other)))),
            }
        }
    }

    /// Whether it is a standby that can be asked in passing whether it still is one.
    pub(super) fn tells_of_promotion(&self) -> bool {
        self.in_hot_standby == Some(true)
    }

    /// Whether it still is a standby. A Sync runs nothing, and yet the server reports what has changed in front of its answer.
    pub(super) async fn still_stands_by(&mut self) -> Result<bool, AskError> {
        self.stream.write_all(&SYNC).await?;
        self.stream.flush().await?;
        loop {
            match self.next_message().await? {
                (b'Z', _) => return Ok(self.tells_of_promotion()),
                (b'E', body) => return Err(AskError::Lost(sql_error(&body).to_string())),
                _ => {}
            }
        }
    }

    /// Reads what the server says unasked, until it notifies or the connection ends. Dropping the future loses nothing.
    pub(super) async fn until_news(&mut self) -> Result<(), AskError> {
        loop {
            match self.next_message().await {
                Ok((b'E', body)) => return Err(AskError::Lost(sql_error(&body).to_string())),
                Ok((b'A', _)) => {
                    self.notified = true;
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next whole message: its tag and its body. Dropping the future loses nothing.
    async fn next_message(&mut self) -> Result<(u8, Bytes), AskError> {
        let message = next_reply(&mut self.stream, &mut self.received, self.bounds.message);
        let (tag, body) = message.await.map_err(|none| match none {
            NoReply::Closed | NoReply::Lost(_) => AskError::Lost(none.to_string()),
            NoReply::Length(_) => AskError::Unexpected(none.to_string()),
        })?;
        if tag == b'S'
            && let Some((IN_HOT_STANDBY, value)) = parameter_status(&body)
        {
            self.in_hot_standby = Some(value == "on");
        }
        Ok((tag, body))
    }
}

impl AskError {
    /// What the failure says about the server. A connection that ends proves nothing, not even with 57P01: an administrator may
    /// have ended just this one. The next login tells.
    pub(super) fn into_unreachable(self) -> Unreachable {
        let kind = match &self {
            AskError::Lost(_) => FailureKind::Lost,
            AskError::Sql { .. } | AskError::Unexpected(_) => FailureKind::Refused,
        };
        Unreachable {
            kind,
            message: Arc::from(self.to_string()),
        }
    }
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> AskError {
        AskError::Lost(error.to_string())
    }
}

impl From<BadRow> for AskError {
    fn from(error: BadRow) -> AskError {
        AskError::Unexpected(error.to_string())
    }
}

fn reported(parameters: &[(String, String)]) -> Option<bool> {
    let mut values = parameters.iter().filter(|(name, _)| name == IN_HOT_STANDBY);
    values.next_back().map(|(_, value)| value == "on")
}

fn sql_error(body: &[u8]) -> AskError {
    match ErrorView::parse(body) {
        Some(view) => AskError::Sql {
            code: view.code,
            message: view.message_text().into_owned(),
        },
        None => AskError::Unexpected("a malformed ErrorResponse".into()),
    }
}

fn row(body: Bytes) -> Result<Row, AskError> {
    row_values(body).ok_or_else(|| AskError::Unexpected("a short DataRow".into()))
}

fn kind_of_login_failure(error: &ServerLoginError) -> FailureKind {
    match error {
        ServerLoginError::Unreachable(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            FailureKind::NotRunning
        }
        ServerLoginError::Unreachable(_) | ServerLoginError::TimedOut => FailureKind::Lost,
        ServerLoginError::Refused { .. } if error.is_node_down() => FailureKind::NotRunning,
        ServerLoginError::Refused { .. }
        | ServerLoginError::Tls(_)
        | ServerLoginError::PasswordNeeded
        | ServerLoginError::SecretUnfit { .. }
        | ServerLoginError::Scram(_)
        | ServerLoginError::UnsupportedAuth(_)
        | ServerLoginError::Protocol(_) => FailureKind::Refused,
    }
}
