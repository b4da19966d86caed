//! The one door to a node, for the monitor and for the pools: reach it, encrypt, log in, and read until it is ready.
//!
//! ```text
//! dial ─▶ TLS ─▶ StartupMessage ─▶ exchange (trust, password, md5, SCRAM) ─▶ ParameterStatus… BackendKeyData ReadyForQuery ─▶ session
//! ```
//!
//! `dial` finds a host's addresses, `exchange` speaks. Asks for protocol 3.0. All of it shares one deadline. Whatever goes wrong is a
//! [`ServerLoginError`], which knows whether the node is down or only this login was refused.

mod dial;
mod exchange;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use self::exchange::Exchange;
use super::scram::ScramError;
use super::secret::NodeSecret;
use crate::config::NodeAddress;
use crate::wire::error_response::ErrorView;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::CancelKey;
use crate::wire::stream::Stream;
use crate::wire::tls::{HandshakeError, NodeTlsConnector};

/// How long a cancel request may take, all in all.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Whom to reach and as whom.
#[derive(Debug, Clone, Copy)]
pub struct ServerLogin<'a> {
    /// The node.
    pub address: &'a NodeAddress,
    /// The role.
    pub user: &'a str,
    /// The database.
    pub database: &'a str,
    /// More start-up parameters, such as `application_name`.
    pub parameters: &'a [(&'a str, &'a str)],
    /// What proves the role, if the node asks.
    pub secret: Option<&'a NodeSecret>,
    /// Whether and how to encrypt.
    pub tls: &'a NodeTlsConnector,
    /// For everything together, from the look-up of the name to ReadyForQuery.
    pub timeout: Duration,
}

/// A connection that is ready for its first query.
#[derive(Debug)]
pub struct ServerSession {
    /// Nothing that the node has sent so far is unread.
    pub stream: Stream,
    /// For a cancel request; 0 if the node gave none.
    pub pid: i32,
    /// For a cancel request; empty if the node gave none.
    pub secret_key: Vec<u8>,
    /// ParameterStatus, in the order reported. Text that isn't UTF-8 has replacement characters.
    pub parameters: Vec<(String, String)>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ServerLoginError {
    /// No such host, connection refused or lost.
    #[error("{0}")]
    Unreachable(#[source] io::Error),
    /// The deadline passed.
    #[error("timed out")]
    TimedOut,
    /// Reached, but not encrypted as `sslmode` asks.
    #[error("{0}")]
    Tls(#[source] HandshakeError),
    /// The node said no.
    #[error("{message} ({code})")]
    Refused {
        /// Why, for programs.
        code: SqlState,
        /// The ErrorResponse's body as it came, for a client that should read it.
        fields: Bytes,
        /// Why, for people.
        message: String,
    },
    /// The node asks for a proof, and there is none for this user.
    #[error("the node asks for a password, and pgsluice has none for this user")]
    PasswordNeeded,
    /// There is a proof, but of a kind that this method can't use.
    #[error("the node asks for {asked}, and pgsluice only has {have}")]
    SecretUnfit {
        /// The method.
        asked: &'static str,
        /// What the users file or the client's login gave.
        have: &'static str,
    },
    /// The SCRAM exchange failed on our side; a wrong password is [`ServerLoginError::Refused`].
    #[error("{0}")]
    Scram(#[source] ScramError),
    /// GSSAPI, SSPI, SCRAM-SHA-256-PLUS alone, …: AuthenticationRequest's code.
    #[error("the node asks for authentication method {0}, which pgsluice doesn't know")]
    UnsupportedAuth(i32),
    /// It doesn't speak as PostgreSQL does.
    #[error("protocol violation: {0}")]
    Protocol(String),
}

impl ServerLoginError {
    /// Whether the node takes nobody at the moment, as opposed to not taking this login. A node that is starting, stopping or in
    /// recovery without hot standby (57P03 and its kin) counts as down; one that is full (53300) is not.
    pub fn is_node_down(&self) -> bool {
        match self {
            ServerLoginError::Unreachable(_) | ServerLoginError::TimedOut => true,
            ServerLoginError::Refused { code, .. } => [
                SqlState::ADMIN_SHUTDOWN,
                SqlState::CRASH_SHUTDOWN,
                SqlState::CANNOT_CONNECT_NOW,
            ]
            .contains(code),
            ServerLoginError::Tls(_)
            | ServerLoginError::PasswordNeeded
            | ServerLoginError::SecretUnfit { .. }
            | ServerLoginError::Scram(_)
            | ServerLoginError::UnsupportedAuth(_)
            | ServerLoginError::Protocol(_) => false,
        }
    }

    /// For the client that waits for this connection.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            ServerLoginError::Unreachable(_) | ServerLoginError::TimedOut => SqlState::CANNOT_CONNECT_NOW,
            ServerLoginError::Refused { code, .. } => *code,
            ServerLoginError::Tls(_) => SqlState::UNABLE_TO_CONNECT,
            ServerLoginError::PasswordNeeded | ServerLoginError::SecretUnfit { .. } | ServerLoginError::Scram(_) => {
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION
            }
            ServerLoginError::UnsupportedAuth(_) => SqlState::FEATURE_NOT_SUPPORTED,
            ServerLoginError::Protocol(_) => SqlState::PROTOCOL_VIOLATION,
        }
    }

    /// What the operator can do about it, where that isn't plain from the message.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ServerLoginError::PasswordNeeded => {
                Some("List the user in the users file, or let the node trust pgsluice.")
            }
            ServerLoginError::SecretUnfit { .. } | ServerLoginError::Scram(ScramError::KeysDontFit) => Some(
                "Put the user's verifier from the node's pg_authid.rolpassword, or the password, into the users file.",
            ),
            _ => None,
        }
    }

    fn refused(body: Bytes) -> ServerLoginError {
        let Some(view) = ErrorView::parse(&body) else {
            return ServerLoginError::Protocol("malformed ErrorResponse".into());
        };
        let (code, message) = (view.code, view.message_text().into_owned());
        ServerLoginError::Refused {
            code,
            message,
            fields: body,
        }
    }
}

impl From<io::Error> for ServerLoginError {
    /// rustls reports what it has against its peer, or its peer against it, as invalid data, also after the handshake: a node that wants
    /// a client certificate says so only then.
    fn from(error: io::Error) -> ServerLoginError {
        match error.kind() {
            io::ErrorKind::InvalidData => ServerLoginError::Tls(HandshakeError::Handshake(error)),
            _ => ServerLoginError::Unreachable(error),
        }
    }
}

impl From<HandshakeError> for ServerLoginError {
    /// A connection that breaks while it is being encrypted is a broken connection; what TLS itself has against it is kept apart.
    fn from(error: HandshakeError) -> ServerLoginError {
        match error {
            HandshakeError::Io(lost) | HandshakeError::Handshake(lost) => lost.into(),
            other => ServerLoginError::Tls(other),
        }
    }
}

/// Logs in. Dropping the future closes the connection.
///
/// # Errors
/// [`ServerLoginError`]
pub async fn connect(login: ServerLogin<'_>) -> Result<ServerSession, ServerLoginError> {
    let deadline = Instant::now() + login.timeout;
    let session = async {
        let tcp = dial::reach(login.address, deadline).await?;
        let stream = login.tls.secure(tcp, &login.address.host).await?;
        Exchange::new(stream).log_in(&login).await
    };
    tokio::time::timeout_at(deadline, session)
        .await
        .unwrap_or(Err(ServerLoginError::TimedOut))
}

/// Asks a node to cancel what the session with this process id and key runs, and waits until the node has taken the request: it closes
/// the connection then. At most 5 seconds.
///
/// # Errors
/// When the node can't be reached or encrypted to, or doesn't close. The request may still have been taken.
pub async fn cancel(address: &NodeAddress, tls: &NodeTlsConnector, pid: i32, key: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + CANCEL_TIMEOUT;
    let request = async {
        let tcp = dial::reach(address, deadline).await?;
        let mut stream = tls.secure(tcp, &address.host).await.map_err(io::Error::other)?;
        let mut packet = Vec::new();
        CancelKey {
            pid,
            secret: key.to_vec(),
        }
        .encode_cancel_request(&mut packet);
        stream.write_all(&packet).await?;
        stream.flush().await?;
        match stream.read(&mut [0; 64]).await {
            // Nothing is ever said here. A server that closes without TLS's farewell has closed all the same.
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error),
        }
    };
    tokio::time::timeout_at(deadline, request)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn packet(tcp: &mut TcpStream) -> Vec<u8> {
        let length = tcp.read_u32().await.expect("a length");
        let mut body = vec![0; length as usize - 4];
        tcp.read_exact(&mut body).await.expect("a packet");
        body
    }

    #[tokio::test]
    async fn a_node_that_speaks_3_2_gets_its_long_key_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = NodeAddress {
            host: "127.0.0.1".into(),
            port: listener.local_addr().expect("an address").port(),
        };
        let key: Vec<u8> = (0..=255).collect();
        let node = tokio::spawn({
            let key = key.clone();
            async move {
                let (mut tcp, _) = listener.accept().await.expect("a login");
                let asked = packet(&mut tcp).await;
                assert_eq!(asked[..4], 0x0003_0002_u32.to_be_bytes());
                let mut answer = b"R\0\0\0\x08\0\0\0\0K\0\0\x01\x08\0\0\0\x07".to_vec();
                answer.extend_from_slice(&key);
                answer.extend_from_slice(b"Z\0\0\0\x05I");
                tcp.write_all(&answer).await.expect("an answer");
                let (mut tcp, _) = listener.accept().await.expect("a cancel request");
                packet(&mut tcp).await
            }
        });
        let tls = NodeTlsConnector::disabled();
        let login = ServerLogin {
            address: &address,
            user: "u",
            database: "d",
            parameters: &[],
            secret: None,
            tls: &tls,
            timeout: Duration::from_secs(30),
        };
        let session = connect(login).await.expect("a session");
        assert_eq!((session.pid, &session.secret_key), (7, &key));
        cancel(&address, &tls, session.pid, &session.secret_key)
            .await
            .expect("the node has taken it");
        let request = node.await.expect("no panic");
        assert_eq!(request[..8], [0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 7]);
        assert_eq!(request[8..], key);
    }
}
