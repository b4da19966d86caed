//! Asks a running proxy's console, as any PostgreSQL client does.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use crate::auth::secret::NodeSecret;
use crate::auth::server_login::{self, ServerLogin, ServerLoginError};
use crate::config::{NodeAddress, NodeTls};
use crate::wire::error_response::ErrorView;
use crate::wire::frontend::{TERMINATE, put_query};
use crate::wire::replies::{NoReply, next_reply};
use crate::wire::rows::{column_names, row_values};
use crate::wire::stream::Stream;
use crate::wire::tls::{NodeTlsConnector, TlsError};

/// For connecting and logging in.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// No message of a console is longer.
const LONGEST_MESSAGE: usize = 1 << 20;

/// Which console, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) address: NodeAddress,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) secret: Option<NodeSecret>,
}

/// What a console has said to one text.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// One for each statement that has rows, even if there were none.
    pub(super) tables: Vec<Table>,
    /// Notices and warnings.
    pub(super) notices: Vec<Refusal>,
}

/// Rows with their columns' names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Vec<Option<String>>>,
}

impl Table {
    /// A value of the first row.
    pub(super) fn first(&self, column: &str) -> Option<&str> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.rows.first()?.get(index)?.as_deref()
    }
}

/// An error or a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    code: String,
    pub(super) message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        for (label, more) in [("detail", &self.detail), ("hint", &self.hint)] {
            if let Some(more) = more {
                write!(f, "\n{label}: {more}")?;
            }
        }
        Ok(())
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("can't log in to the console at {address}: {source}{}", hint_of(source))]
    Login {
        address: NodeAddress,
        source: ServerLoginError,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Refused(Refusal),
    #[error("the connection to the console was lost: {0}")]
    Lost(String),
    #[error("the console has said what isn't understood")]
    Unexpected,
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> AskError {
        AskError::Lost(error.to_string())
    }
}

/// The proxy's own words, or what to do about those of the login.
fn hint_of(error: &ServerLoginError) -> String {
    match error {
        ServerLoginError::Refused { fields, .. } => match refusal(fields).and_then(|refusal| refusal.hint) {
            Some(hint) => format!("\nhint: {hint}"),
            None => String::new(),
        },
        ServerLoginError::PasswordNeeded | ServerLoginError::SecretUnfit { .. } => {
            "\nhint: PGPASSWORD may hold the user's password; so may the users file of the configuration that -c names."
                .to_owned()
        }
        _ => String::new(),
    }
}

/// Logs in, and has a text carried out. However long that takes.
///
/// # Errors
/// [`AskError`]; of several statements those before the one that failed have been carried out.
pub(super) async fn ask(access: &Access, sql: &str) -> Result<Reply, AskError> {
    // As psql does it: encrypted where the proxy can, without looking at its certificate.
    let tls = NodeTlsConnector::new(&NodeTls::default())?;
    let login = ServerLogin {
        address: &access.address,
        user: &access.user,
        database: &access.database,
        parameters: &[("application_name", "pgsluice")],
        secret: access.secret.as_ref(),
        tls: &tls,
        timeout: LOGIN_TIMEOUT,
    };
    let session = server_login::connect(login).await;
    let mut stream = session
        .map_err(|source| AskError::Login {
            address: access.address.clone(),
            source,
        })?
        .stream;
    let mut query = Vec::new();
    put_query(&mut query, sql.as_bytes());
    stream.write_all(&query).await?;
    stream.flush().await?;
    let reply = hear(&mut stream).await?;
    let _ = stream.write_all(&TERMINATE).await;
    let _ = stream.shutdown().await;
    Ok(reply)
}

async fn hear(stream: &mut Stream) -> Result<Reply, AskError> {
    let (mut received, mut reply, mut refused) = (BytesMut::new(), Reply::default(), None);
    loop {
        let (tag, body) = match next_reply(stream, &mut received, LONGEST_MESSAGE).await {
            Ok(message) => message,
            // A FATAL error is followed by the connection's end.
            Err(none) => {
                return Err(match (refused, none) {
                    (Some(refused), _) => AskError::Refused(refused),
                    (None, NoReply::Length(_)) => AskError::Unexpected,
                    (None, none) => AskError::Lost(none.to_string()),
                });
            }
        };
        match tag {
            b'T' => reply.tables.push(Table {
                columns: column_names(&body).ok_or(AskError::Unexpected)?,
                rows: Vec::new(),
            }),
            b'D' => {
                let table = reply.tables.last_mut().ok_or(AskError::Unexpected)?;
                table.rows.push(texts(body).ok_or(AskError::Unexpected)?);
            }
            b'N' => reply.notices.extend(refusal(&body)),
            b'E' => refused = Some(refusal(&body).ok_or(AskError::Unexpected)?),
            b'Z' => return refused.map_or(Ok(reply), |refused| Err(AskError::Refused(refused))),
            _ => {}
        }
    }
}

fn texts(body: Bytes) -> Option<Vec<Option<String>>> {
    let text = |value: Bytes| String::from_utf8_lossy(&value).into_owned();
    Some(row_values(body)?.into_iter().map(|value| value.map(text)).collect())
}

fn refusal(body: &[u8]) -> Option<Refusal> {
    let view = ErrorView::parse(body)?;
    let text = |field: Option<&[u8]>| field.map(|text| String::from_utf8_lossy(text).into_owned());
    Some(Refusal {
        code: view.code.to_string(),
        message: view.message_text().into_owned(),
        detail: text(view.detail),
        hint: text(view.hint),
    })
}
