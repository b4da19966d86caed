//! Asks an HTTP API: one GET on a connection of its own, encrypted or not. Whoever calls sets the deadline; what is read is bounded.
//!
//! For the few questions that the proxy has for others: Patroni, Kubernetes, another pgsluice's status.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use hyper::rt::{Read, Write};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::config::ApiUrl;

/// What is asked, and as whom.
#[derive(Clone, Copy)]
pub struct Get<'a> {
    /// Where the API is.
    pub url: &'a ApiUrl,
    /// What is asked of it, with its query, from the slash on.
    pub path: &'a str,
    /// A bearer token.
    pub token: Option<&'a str>,
    /// For `https` URLs.
    pub tls: Option<&'a Arc<ClientConfig>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody listens, or the host isn't found.
    #[error("can't connect: {0}")]
    Connect(#[source] io::Error),
    /// The connection can't be encrypted, or the certificate isn't trusted.
    #[error("TLS: {0}")]
    Tls(String),
    /// It isn't HTTP, or it broke off.
    #[error("{0}")]
    Broken(String),
    /// It isn't what was asked for.
    #[error("HTTP {0}")]
    Status(StatusCode),
}

/// An answer's body, as it comes. Dropping it closes the connection.
pub struct Body {
    incoming: Incoming,
    _connection: Connection,
}

/// Does the reading and writing for an exchange, and ends with it.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Get<'_> {
    /// Asks, and reads the whole answer, no more than `limit` bytes of it. Must be called inside of a tokio runtime.
    ///
    /// # Errors
    /// [`HttpError`], also for any status but 200.
    pub async fn fetch(self, limit: usize) -> Result<Bytes, HttpError> {
        let Body { incoming, _connection } = self.open().await?;
        let collected = Limited::new(incoming, limit).collect().await;
        let whole = collected.map_err(|error| HttpError::Broken(error.to_string()))?;
        Ok(whole.to_bytes())
    }

    /// Asks, and answers as soon as the answer begins. Must be called inside of a tokio runtime.
    ///
    /// # Errors
    /// [`HttpError`], also for any status but 200.
    pub async fn open(self) -> Result<Body, HttpError> {
        let address = &self.url.address;
        let socket = TcpStream::connect((&*address.host, address.port))
            .await
            .map_err(HttpError::Connect)?;
        if !self.url.encrypted {
            return self.exchange(TokioIo::new(socket)).await;
        }
        let config = self.tls.ok_or_else(|| HttpError::Tls("is not set up".to_owned()))?;
        let name = ServerName::try_from(address.host.clone()).map_err(|error| HttpError::Tls(error.to_string()))?;
        let encrypted = TlsConnector::from(Arc::clone(config)).connect(name, socket).await;
        let encrypted = encrypted.map_err(|error| HttpError::Tls(error.to_string()))?;
        self.exchange(TokioIo::new(encrypted)).await
    }

    async fn exchange<S: Read + Write + Send + Unpin + 'static>(self, socket: S) -> Result<Body, HttpError> {
        let (mut sender, connection): (SendRequest<Empty<Bytes>>, _) =
            http1::handshake(socket).await.map_err(broken)?;
        let connection = Connection(tokio::spawn(async move {
            let _ = connection.await;
        }));
        let mut request = Request::get(format!("{}{}", self.url.prefix, self.path))
            .header(HOST, self.url.address.to_string())
            .header(USER_AGENT, concat!("pgsluice/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json");
        if let Some(token) = self.token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(broken)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Empty::new()).map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        match response.status() {
            StatusCode::OK => Ok(Body {
                incoming: response.into_body(),
                _connection: connection,
            }),
            other => Err(HttpError::Status(other)),
        }
    }
}

impl Body {
    /// The next piece; `None` at the end. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`HttpError`]: it broke off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        while let Some(frame) = self.incoming.frame().await {
            // What isn't data are trailers.
            if let Ok(data) = frame.map_err(broken)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

fn broken(error: impl std::error::Error) -> HttpError {
    // hyper's own words are seldom enough.
    match error.source() {
        Some(source) => HttpError::Broken(format!("{error}: {source}")),
        None => HttpError::Broken(error.to_string()),
    }
}
