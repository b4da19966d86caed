//! A client proves who it is.
//!
//! An unknown user, one without a usable secret and one with a wrong password go through the same messages and get the same answer;
//! only the log can tell them apart. Manual: "Start-up", section 55.2.1, and "Password Authentication", 21.5.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::md5::Md5Hash;
use super::message::{self, request};
use super::scram::{self, ScramError, server::Challenge};
use super::secret::NodeSecret;
use super::userlist::{UserList, UserSecret};
use crate::config::AuthMethod;
use crate::wire::error_response::ErrorFields;
use crate::wire::sqlstate::SqlState;
use crate::wire::stream::Stream;

/// The longest answer that is read from someone who hasn't logged in.
const MAX_ANSWER: usize = 10_000;

/// A client that has logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Its role.
    pub user: String,
    /// What logs the proxy in to nodes as this role; `None` where only nodes that trust the proxy can be used.
    pub node_secret: Option<NodeSecret>,
}

/// Why a login failed. The caller sends [`LoginFailure::fields`] and closes.
#[derive(Debug, thiserror::Error)]
pub enum LoginFailure {
    /// The client closed or its connection broke: psql does, to ask its user for a password.
    #[error("the client went away while logging in")]
    Gone(#[source] io::Error),
    /// Not the message that was due, or a malformed one.
    #[error("{0}")]
    Protocol(String),
    /// The SCRAM exchange went against the RFC, or asked for what isn't supported.
    #[error("{0}")]
    Scram(ScramError),
    /// Not proven.
    #[error("password authentication failed for user \"{user}\"")]
    Password {
        /// Who it claimed to be.
        user: String,
        /// For the log only.
        reason: PasswordReason,
    },
}

/// Why a password was no good: never told to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordReason {
    /// It isn't the right one.
    #[error("wrong password")]
    Wrong,
    /// Not in the users file.
    #[error("the user is not in the users file")]
    UnknownUser,
    /// In the users file with an empty secret.
    #[error("the user has no password in the users file")]
    NoPassword,
    /// The file has an md5 hash, and the method is scram-sha-256.
    #[error("the users file has an md5 hash for the user, which scram-sha-256 can't check")]
    Md5Secret,
}

impl LoginFailure {
    /// What the client is told, if it is still there.
    pub fn fields(&self) -> Option<ErrorFields> {
        let code = match self {
            LoginFailure::Gone(_) => return None,
            LoginFailure::Protocol(_) => SqlState::PROTOCOL_VIOLATION,
            LoginFailure::Scram(error) => error.sqlstate(),
            LoginFailure::Password { .. } => SqlState::INVALID_PASSWORD,
        };
        Some(ErrorFields::fatal(code, self.to_string()))
    }
}

/// Asks for a proof and checks it. Ends with AuthenticationOk; what follows (ParameterStatus, BackendKeyData, ReadyForQuery) and
/// what a failed client is told is the caller's. Has no time limit of its own: bound it with `login_timeout`. Once dropped, the
/// connection is of no use.
///
/// # Errors
/// [`LoginFailure`]
pub async fn authenticate(
    stream: &mut Stream,
    user: &str,
    method: AuthMethod,
    users: &UserList,
) -> Result<ClientIdentity, LoginFailure> {
    let secret = users.lookup(user);
    let (node_secret, mut last) = match (method, secret) {
        (AuthMethod::Trust, _) => (users.node_secret(user), Vec::new()),
        // As PostgreSQL: an md5 challenge is of no use against a SCRAM verifier, and a client that can do one can do the other.
        (AuthMethod::ScramSha256, _) | (AuthMethod::Md5, Some(UserSecret::Scram(_))) => {
            by_scram(stream, user, users).await?
        }
        (AuthMethod::Md5, _) => (by_md5(stream, user, secret).await?, Vec::new()),
    };
    message::put_request(request::OK, &[], &mut last);
    send(stream, &last).await?;
    Ok(ClientIdentity {
        user: user.to_owned(),
        node_secret,
    })
}

/// What was learned, and the last message, to be sent together with AuthenticationOk.
async fn by_scram(
    stream: &mut Stream,
    user: &str,
    users: &UserList,
) -> Result<(Option<NodeSecret>, Vec<u8>), LoginFailure> {
    let mut out = Vec::new();
    message::put_request(request::SASL, b"SCRAM-SHA-256\0\0", &mut out);
    send(stream, &out).await?;

    let answer = read_answer(stream).await?;
    let client_first = match message::sasl_initial(&answer) {
        Some((mechanism, data)) if mechanism == scram::MECHANISM.as_bytes() => data,
        Some(_) => {
            return Err(LoginFailure::Protocol(
                "client selected an invalid SASL authentication mechanism".into(),
            ));
        }
        None => return Err(LoginFailure::Protocol("malformed SASLInitialResponse".into())),
    };
    let verifier = users.scram_verifier(user).await;
    let challenge = Challenge::new(client_first, verifier, &scram::nonce()).map_err(LoginFailure::Scram)?;
    out.clear();
    message::put_request(request::SASL_CONTINUE, challenge.message().as_bytes(), &mut out);
    send(stream, &out).await?;

    let answer = read_answer(stream).await?;
    let proven = challenge.check(&answer).map_err(|error| match error {
        ScramError::Proof => refused(user, users.lookup(user)),
        other => LoginFailure::Scram(other),
    })?;
    out.clear();
    message::put_request(request::SASL_FINAL, proven.message.as_bytes(), &mut out);
    // A password in the file fits every node; keys only those with the same salt.
    let node_secret = users.node_secret(user).unwrap_or(NodeSecret::Scram(proven.keys));
    Ok((Some(node_secret), out))
}

async fn by_md5(
    stream: &mut Stream,
    user: &str,
    secret: Option<&UserSecret>,
) -> Result<Option<NodeSecret>, LoginFailure> {
    let salt: [u8; 4] = scram::random();
    let mut out = Vec::new();
    message::put_request(request::MD5, &salt, &mut out);
    send(stream, &out).await?;

    let body = read_answer(stream).await?;
    let answer = message::password(&body).ok_or(LoginFailure::Protocol("invalid password packet size".into()))?;
    let (hash, node_secret) = match secret {
        Some(UserSecret::Plain(password)) => (Md5Hash::of(password.text(), user), NodeSecret::Plain(password.clone())),
        Some(UserSecret::Md5(hash)) => (hash.clone(), NodeSecret::Md5(hash.clone())),
        Some(UserSecret::Scram(_) | UserSecret::Missing) | None => return Err(refused(user, secret)),
    };
    if !hash.accepts(salt, answer) {
        return Err(LoginFailure::Password {
            user: user.to_owned(),
            reason: PasswordReason::Wrong,
        });
    }
    Ok(Some(node_secret))
}

/// For those who went through an exchange that couldn't succeed, and for those who only failed it.
fn refused(user: &str, secret: Option<&UserSecret>) -> LoginFailure {
    let reason = match secret {
        None => PasswordReason::UnknownUser,
        Some(UserSecret::Missing) => PasswordReason::NoPassword,
        Some(UserSecret::Md5(_)) => PasswordReason::Md5Secret,
        Some(UserSecret::Plain(_) | UserSecret::Scram(_)) => PasswordReason::Wrong,
    };
    LoginFailure::Password {
        user: user.to_owned(),
        reason,
    }
}

async fn send(stream: &mut Stream, bytes: &[u8]) -> Result<(), LoginFailure> {
    stream.write_all(bytes).await.map_err(LoginFailure::Gone)?;
    stream.flush().await.map_err(LoginFailure::Gone)
}

/// The body of a `p` message; reads nothing behind it.
async fn read_answer(stream: &mut Stream) -> Result<Vec<u8>, LoginFailure> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).await.map_err(LoginFailure::Gone)?;
    let [tag, length @ ..] = header;
    if tag != b'p' {
        return Err(LoginFailure::Protocol(format!(
            "expected password response, got message type {tag}"
        )));
    }
    let length = u32::from_be_bytes(length);
    let body = usize::try_from(length).ok().and_then(|length| length.checked_sub(4));
    let Some(body) = body.filter(|body| *body <= MAX_ANSWER) else {
        return Err(LoginFailure::Protocol(format!("invalid message length {length}")));
    };
    let mut answer = vec![0; body];
    stream.read_exact(&mut answer).await.map_err(LoginFailure::Gone)?;
    Ok(answer)
}
