//! From an accepted socket to a session or a cancel request: encryption first, then the start-up packet.
//!
//! ```text
//!          ┌──── 0x16: direct TLS (ALPN "postgresql") ───────┐
//! accepted ┤                                                 ├─ StartupMessage ─▶ Opening::Startup
//!          └─┬─ GSSENCRequest: N ─┬─ SSLRequest: S, TLS ─────┘└ CancelRequest ──▶ Opening::Cancel
//!            └────── (each at most once, in either order) ───┘
//! ```
//!
//! Reads exactly what it needs: what follows the packet stays in the socket. Nothing that arrived in the clear is ever taken for
//! something that was encrypted. Manual: "Start-up" and "SSL Session Encryption", sections 55.2.1 and 55.2.10.

mod options;
mod packet;

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};

pub use options::{OptionsError, parse_options};
pub use packet::{CancelKey, Opening, SSL_REQUEST, StartupParams, encode_startup, negotiate_version_message};

use self::packet::{Packet, body_length};
use super::error_response::ErrorFields;
use super::sqlstate::SqlState;
use super::stream::Stream;

/// The name by which PostgreSQL 17 and later know each other in TLS (ALPN).
pub const ALPN: &[u8] = b"postgresql";

/// Why a connection never came to be.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The client closed, or its connection broke. A port scan and a health check look like this; there is nobody to tell.
    #[error("the client went away during start-up")]
    Gone(#[source] io::Error),
    /// TLS could not be agreed on.
    #[error("TLS handshake with the client failed: {0}")]
    Handshake(#[source] io::Error),
    /// Direct TLS without ALPN, which would let another protocol's traffic be mistaken for ours.
    #[error("received direct SSL connection request without ALPN protocol negotiation extension")]
    NoAlpn,
    /// TLS from the first byte, and no certificate is configured.
    #[error("received a direct TLS connection, but TLS is not configured")]
    TlsNotConfigured,
    /// Bytes followed a request for encryption before it was answered: CVE-2021-23222's kind of injection.
    #[error("received unencrypted data after SSL request")]
    DataInTheClear,
    /// `[listen.tls] required`, and the client doesn't encrypt.
    #[error("this connection is not encrypted, and pgsluice only takes encrypted ones")]
    TlsRequired,
    /// The length field.
    #[error("invalid length of startup packet: {0}")]
    PacketLength(u32),
    /// The text inside.
    #[error("invalid startup packet layout: {0}")]
    Layout(&'static str),
    /// The key inside.
    #[error("invalid length of cancel request: {0} bytes of process id and key")]
    CancelLength(usize),
    /// Only 3.x is spoken.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    UnsupportedProtocol {
        /// Asked for.
        major: u16,
        /// Asked for.
        minor: u16,
    },
    /// A name or a value isn't UTF-8.
    #[error("startup packet: {0} is not valid UTF-8")]
    NotUtf8(String),
    /// `user` is missing or empty.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// `replication` is neither a boolean nor `database`.
    #[error("invalid value for parameter \"replication\": \"{0}\"")]
    Replication(String),
}

#[cfg(test)]
impl PartialEq for StartupError {
    /// Variants with the same data say the same.
    fn eq(&self, other: &StartupError) -> bool {
        self.to_string() == other.to_string()
    }
}

impl StartupError {
    /// What the client is told, if anybody is there to be told.
    pub fn fields(&self) -> Option<ErrorFields> {
        let code = match self {
            StartupError::Gone(_) | StartupError::Handshake(_) | StartupError::TlsNotConfigured => return None,
            StartupError::NoAlpn
            | StartupError::DataInTheClear
            | StartupError::PacketLength(_)
            | StartupError::Layout(_)
            | StartupError::CancelLength(_)
            | StartupError::NotUtf8(_) => SqlState::PROTOCOL_VIOLATION,
            StartupError::UnsupportedProtocol { .. } => SqlState::FEATURE_NOT_SUPPORTED,
            StartupError::TlsRequired | StartupError::NoUser => SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            StartupError::Replication(_) => SqlState::INVALID_PARAMETER_VALUE,
        };
        let fields = ErrorFields::fatal(code, self.to_string());
        Some(match self {
            StartupError::TlsRequired => fields.with_hint("Connect with sslmode=require, or stronger."),
            StartupError::DataInTheClear => fields.with_detail(
                "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
            ),
            StartupError::Replication(_) => {
                fields.with_hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
            }
            _ => fields,
        })
    }
}

/// Settles encryption and reads the first packet. A client that is refused **has been told** why when this returns: the error is for
/// the log. A cancel request is taken unencrypted even where TLS is `required`, since libpq before 17 never encrypts one.
///
/// Has no time limit of its own: bound it with `login_timeout`. Dropping it closes the connection.
///
/// # Errors
/// [`StartupError`], one variant per cause.
pub async fn negotiate(
    tcp: TcpStream,
    tls: Option<&TlsAcceptor>,
    required: bool,
) -> Result<(Stream, Opening), StartupError> {
    let mut stream = if begins_with_tls(&tcp).await? {
        direct_tls(tcp, tls).await?
    } else {
        Stream::Plain(tcp)
    };
    let (mut ssl_answered, mut gssenc_answered) = (stream.is_tls(), stream.is_tls());
    let refusal = loop {
        match read_packet(&mut stream).await {
            Ok(Packet::SslRequest) if !ssl_answered => {
                stream = answer_ssl_request(stream, tls).await?;
                ssl_answered = true;
                gssenc_answered |= stream.is_tls();
            }
            Ok(Packet::GssEncRequest) if !gssenc_answered => {
                stream.write_all(b"N").await.map_err(StartupError::Gone)?;
                gssenc_answered = true;
            }
            Ok(Packet::SslRequest) => {
                break StartupError::UnsupportedProtocol {
                    major: 1234,
                    minor: 5679,
                };
            }
            Ok(Packet::GssEncRequest) => {
                break StartupError::UnsupportedProtocol {
                    major: 1234,
                    minor: 5680,
                };
            }
            Ok(Packet::Opening(Opening::Startup(_))) if required && !stream.is_tls() => {
                break StartupError::TlsRequired;
            }
            Ok(Packet::Opening(opening)) => return Ok((stream, opening)),
            Err(error) => break error,
        }
    };
    Err(tell(&mut stream, refusal).await)
}

/// Whether the first byte is a TLS record's. Takes nothing out of the socket.
async fn begins_with_tls(tcp: &TcpStream) -> Result<bool, StartupError> {
    const HANDSHAKE_RECORD: u8 = 0x16;
    let mut first = [0];
    match tcp.peek(&mut first).await {
        Ok(0) => Err(StartupError::Gone(io::ErrorKind::UnexpectedEof.into())),
        Ok(_) => Ok(first == [HANDSHAKE_RECORD]),
        Err(error) => Err(StartupError::Gone(error)),
    }
}

/// PostgreSQL 17's `sslnegotiation=direct`.
async fn direct_tls(tcp: TcpStream, tls: Option<&TlsAcceptor>) -> Result<Stream, StartupError> {
    let acceptor = tls.ok_or(StartupError::TlsNotConfigured)?;
    let encrypted = acceptor.accept(tcp).await.map_err(StartupError::Handshake)?;
    let speaks_postgresql = encrypted.get_ref().1.alpn_protocol() == Some(ALPN);
    let mut stream = Stream::Tls(Box::new(TlsStream::Server(encrypted)));
    if !speaks_postgresql {
        return Err(tell(&mut stream, StartupError::NoAlpn).await);
    }
    Ok(stream)
}

/// `S` and a handshake, or `N`.
async fn answer_ssl_request(mut stream: Stream, tls: Option<&TlsAcceptor>) -> Result<Stream, StartupError> {
    if stream.has_unread() {
        return Err(tell(&mut stream, StartupError::DataInTheClear).await);
    }
    let (acceptor, mut tcp) = match (tls, stream) {
        (Some(acceptor), Stream::Plain(tcp)) => (acceptor, tcp),
        (_, mut stream) => {
            stream.write_all(b"N").await.map_err(StartupError::Gone)?;
            return Ok(stream);
        }
    };
    tcp.write_all(b"S").await.map_err(StartupError::Gone)?;
    let encrypted = acceptor.accept(tcp).await.map_err(StartupError::Handshake)?;
    Ok(Stream::Tls(Box::new(TlsStream::Server(encrypted))))
}

async fn read_packet(stream: &mut (impl AsyncRead + Unpin)) -> Result<Packet, StartupError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(StartupError::Gone)?;
    let mut body = vec![0; body_length(length)?];
    stream.read_exact(&mut body).await.map_err(StartupError::Gone)?;
    Packet::parse(&body)
}

/// Sends the reason and gives it back. A client that can't be told is as refused as one that can.
async fn tell(stream: &mut Stream, error: StartupError) -> StartupError {
    if let Some(fields) = error.fields() {
        let mut message = Vec::new();
        fields.encode_error(&mut message);
        let _ = stream.write_all(&message).await;
        let _ = stream.shutdown().await;
    }
    error
}
