//! Asks an HTTP API: one request on a connection of its own, encrypted or not. Whoever calls sets the deadline; what is read is bounded.
//!
//! For the few things that the proxy asks of others: Patroni, Kubernetes, another pgsluice's status.

use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::rt::{Read, Write};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::config::ApiUrl;

/// What is asked, and as whom.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Where the API is.
    pub url: &'a ApiUrl,
    /// What is asked of it, with its query, from the slash on.
    pub path: &'a str,
    /// As whom.
    pub login: Option<Login<'a>>,
    /// For `https` URLs.
    pub tls: Option<&'a Arc<ClientConfig>>,
    /// JSON to POST; without it the request is a GET.
    pub body: Option<&'a str>,
}

/// How a request shows who asks.
#[derive(Clone, Copy)]
pub enum Login<'a> {
    /// A bearer token.
    Token(&'a str),
    /// RFC 7617.
    Basic {
        /// Without a colon.
        user: &'a str,
        /// Whatever it is.
        password: &'a str,
    },
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

/// A connection on which nothing was asked yet.
pub struct Connected<'a> {
    request: Request<'a>,
    sender: SendRequest<Full<Bytes>>,
    connection: Connection,
}

/// An answer that has begun.
pub struct Answer {
    /// How it went.
    pub status: StatusCode,
    /// What is said.
    pub body: Body,
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

impl<'a> Request<'a> {
    /// Asks, and reads the whole answer, no more than `limit` bytes of it. Must be called inside of a tokio runtime.
    ///
    /// # Errors
    /// [`HttpError`], also for any status but 200.
    pub async fn fetch(self, limit: usize) -> Result<Bytes, HttpError> {
        self.open().await?.whole(limit).await
    }

    /// Asks, and answers as soon as the answer begins. Must be called inside of a tokio runtime.
    ///
    /// # Errors
    /// [`HttpError`], also for any status but 200.
    pub async fn open(self) -> Result<Body, HttpError> {
        let Answer { status, body } = self.connect().await?.send().await?;
        match status {
            StatusCode::OK => Ok(body),
            other => Err(HttpError::Status(other)),
        }
    }

    /// Only connects, for who must know whether anything was asked. Must be called inside of a tokio runtime.
    ///
    /// # Errors
    /// [`HttpError`]
    pub async fn connect(self) -> Result<Connected<'a>, HttpError> {
        let address = &self.url.address;
        let socket = TcpStream::connect((&*address.host, address.port))
            .await
            .map_err(HttpError::Connect)?;
        if !self.url.encrypted {
            return self.shake_hands(TokioIo::new(socket)).await;
        }
        let config = self.tls.ok_or_else(|| HttpError::Tls("is not set up".to_owned()))?;
        let name = ServerName::try_from(address.host.clone()).map_err(|error| HttpError::Tls(error.to_string()))?;
        let encrypted = TlsConnector::from(Arc::clone(config)).connect(name, socket).await;
        let encrypted = encrypted.map_err(|error| HttpError::Tls(error.to_string()))?;
        self.shake_hands(TokioIo::new(encrypted)).await
    }

    /// HTTP/1.1 sends nothing for it.
    async fn shake_hands<S: Read + Write + Send + Unpin + 'static>(
        self,
        socket: S,
    ) -> Result<Connected<'a>, HttpError> {
        let (sender, connection): (SendRequest<Full<Bytes>>, _) = http1::handshake(socket).await.map_err(broken)?;
        let connection = Connection(tokio::spawn(async move {
            let _ = connection.await;
        }));
        Ok(Connected {
            request: self,
            sender,
            connection,
        })
    }

    fn as_sent(&self) -> Result<hyper::Request<Full<Bytes>>, HttpError> {
        let method = if self.body.is_some() { Method::POST } else { Method::GET };
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(format!("{}{}", self.url.prefix, self.path))
            .header(HOST, self.url.address.to_string())
            .header(USER_AGENT, concat!("pgsluice/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json");
        if let Some(login) = self.login {
            request = request.header(AUTHORIZATION, login.value()?);
        }
        if self.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::from(self.body.unwrap_or_default().to_owned());
        request.body(body).map_err(broken)
    }
}

impl Login<'_> {
    fn value(self) -> Result<HeaderValue, HttpError> {
        let text = match self {
            Login::Token(token) => format!("Bearer {token}"),
            Login::Basic { user, password } => format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))),
        };
        let mut value = HeaderValue::try_from(text).map_err(broken)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl Connected<'_> {
    /// Asks, and answers as soon as the answer begins, whatever its status.
    ///
    /// # Errors
    /// [`HttpError::Broken`]
    pub async fn send(mut self) -> Result<Answer, HttpError> {
        let request = self.request.as_sent()?;
        let response = self.sender.send_request(request).await.map_err(broken)?;
        Ok(Answer {
            status: response.status(),
            body: Body {
                incoming: response.into_body(),
                _connection: self.connection,
            },
        })
    }
}

impl Body {
    /// All of it, no more than `limit` bytes.
    ///
    /// # Errors
    /// [`HttpError::Broken`]: it broke off, or is longer.
    pub async fn whole(self, limit: usize) -> Result<Bytes, HttpError> {
        let Body { incoming, _connection } = self;
        let collected = Limited::new(incoming, limit).collect().await;
        let whole = collected.map_err(|error| HttpError::Broken(error.to_string()))?;
        Ok(whole.to_bytes())
    }

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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with these bytes; says what came.
    async fn server(answer: &'static str) -> (ApiUrl, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/api", listener.local_addr().expect("an address"));
        let heard = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let mut heard = Vec::new();
            while !(heard.ends_with(b"}") || heard.ends_with(b"\r\n\r\n")) {
                assert_ne!(socket.read_buf(&mut heard).await.expect("a request"), 0);
            }
            socket.write_all(answer.as_bytes()).await.expect("an answer");
            String::from_utf8(heard).expect("a text").to_lowercase()
        });
        (url.parse().expect("a URL"), heard)
    }

    #[tokio::test]
    async fn a_post_has_its_login_and_its_body_and_gets_whatever_the_answer_is() {
        let (url, heard) = server("HTTP/1.1 412 Precondition Failed\r\nContent-Length: 3\r\n\r\nno!").await;
        let request = Request {
            url: &url,
            path: "/switchover",
            login: Some(Login::Basic {
                user: "Aladdin",
                password: "open sesame",
            }),
            tls: None,
            body: Some("{\"leader\":\"pg1\"}"),
        };
        let answer = request.connect().await.expect("connected").send().await.expect("sent");
        assert_eq!(answer.status, StatusCode::PRECONDITION_FAILED);
        assert_eq!(answer.body.whole(3).await.expect("a body"), "no!");
        let heard = heard.await.expect("a request");
        assert!(heard.starts_with("post /api/switchover http/1.1\r\n"), "{heard}");
        assert!(heard.ends_with("\r\n\r\n{\"leader\":\"pg1\"}"), "{heard}");
        for header in [
            "content-length: 16",
            "content-type: application/json",
            // As in RFC 7617.
            "authorization: basic qwxhzgrpbjpvcgvuihnlc2ftzq==",
        ] {
            assert!(heard.contains(header), "{header} in {heard}");
        }
    }

    #[tokio::test]
    async fn a_get_is_answered_with_200_and_no_more_than_fits_or_fails() {
        let ask = async |answer, limit| {
            let (url, heard) = server(answer).await;
            let request = Request {
                url: &url,
                path: "/",
                login: Some(Login::Token("t")),
                tls: None,
                body: None,
            };
            let body = request.fetch(limit).await.map_err(|error| error.to_string());
            let heard = heard.await.expect("a request");
            assert!(
                heard.starts_with("get /api/ ") && heard.contains("authorization: bearer t\r\n"),
                "{heard}"
            );
            body
        };
        let good = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(ask(good, 2).await, Ok(Bytes::from("{}")));
        assert!(ask(good, 1).await.is_err());
        let refused = ask("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", 2).await;
        assert_eq!(refused, Err("HTTP 403 Forbidden".to_owned()));
    }
}
