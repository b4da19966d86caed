//! Asks a running proxy for its [`Status`] over HTTP.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::status::Status;

/// For connecting, asking and reading together.
const TIMEOUT: Duration = Duration::from_secs(5);
/// No status is longer; what is, comes from something else.
const MAX_BYTES: usize = 8 << 20;

/// Why there is no status to show.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL can't be used.
    #[error("{url:?} is not a URL like http://127.0.0.1:9432")]
    Url {
        /// As given.
        url: String,
    },
    /// Nobody listens, or the host isn't found.
    #[error("can't connect to {address}: {source}; is pgsluice running, with [admin] http set to that address?")]
    Connect {
        /// Host and port.
        address: String,
        /// The socket's error.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{address} didn't answer within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// Host and port.
        address: String,
    },
    /// It isn't HTTP, or it broke off.
    #[error("{address} didn't answer as pgsluice does: {reason}")]
    Answer {
        /// Host and port.
        address: String,
        /// What was wrong.
        reason: String,
    },
}

/// The status of the proxy whose `[admin] http` is at this URL, such as `http://127.0.0.1:9432`, with or without `/status`.
pub async fn fetch(url: &str) -> Result<Status, FetchError> {
    let authority = authority(url).ok_or_else(|| FetchError::Url { url: url.to_owned() })?;
    match tokio::time::timeout(TIMEOUT, ask(&authority)).await {
        Ok(result) => result,
        Err(_) => Err(FetchError::Timeout { address: authority }),
    }
}

/// Host and port of a URL that can be asked.
fn authority(url: &str) -> Option<String> {
    let with_scheme = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let uri: Uri = with_scheme.parse().ok()?;
    let fits = uri.scheme_str() == Some("http") && matches!(uri.path(), "/" | "/status") && uri.query().is_none();
    let (host, port) = (
        uri.host().filter(|host| !host.is_empty())?,
        uri.port_u16().unwrap_or(80),
    );
    fits.then(|| format!("{host}:{port}"))
}

async fn ask(authority: &str) -> Result<Status, FetchError> {
    let address = || authority.to_owned();
    let unusual = |reason: String| FetchError::Answer {
        address: address(),
        reason,
    };
    let socket = TcpStream::connect(authority)
        .await
        .map_err(|source| FetchError::Connect {
            address: address(),
            source,
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|error| unusual(error.to_string()))?;
    let request = Request::get("/status")
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| unusual(error.to_string()))?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| unusual(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
        let body = body.map_err(|error| unusual(error.to_string()))?.to_bytes();
        if status != StatusCode::OK {
            return Err(unusual(format!("HTTP {status}")));
        }
        serde_json::from_slice(&body).map_err(|error| unusual(format!("no status in it: {error}")))
    };
    // The connection does the reading and writing for the exchange, and has nothing left to do after it.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        result = &mut exchange => result,
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_people_write_them() {
        for (url, expected) in [
            ("http://127.0.0.1:9432", Some("127.0.0.1:9432")),
            ("http://127.0.0.1:9432/", Some("127.0.0.1:9432")),
            ("http://127.0.0.1:9432/status", Some("127.0.0.1:9432")),
            ("127.0.0.1:9432", Some("127.0.0.1:9432")),
            ("http://[::1]:9432", Some("[::1]:9432")),
            ("http://proxy", Some("proxy:80")),
            ("https://proxy", None),
            ("http://proxy/metrics", None),
            ("http://", None),
            ("", None),
        ] {
            assert_eq!(authority(url).as_deref(), expected, "{url}");
        }
    }
}
