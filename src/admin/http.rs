//! A small HTTP server: `/metrics` for scrapers, `/livez` and `/readyz` for supervisors, `/status` and a page for people.
//!
//! It only reads. Nothing that a peer does holds up another: each connection is a task, requests have no body that is read,
//! headers are bounded in size and time, connections in number and age. A client that doesn't read its answer goes with its
//! connection's age.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::status::Status;

/// What is asked of the proxy. Called for each request on the server's thread, so it must not block.
pub trait AdminSource: Send + Sync + 'static {
    /// For `/status`.
    fn status(&self) -> Status;
    /// For `/metrics`, in Prometheus' text format.
    fn metrics_text(&self) -> String;
    /// For `/readyz`: `Err` says why clients should not be sent here now.
    fn readiness(&self) -> Result<(), String>;
}

/// Connections at once; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 128;
/// Request line and headers together. hyper takes no less.
const MAX_HEADER_BYTES: usize = 8192;
/// From the first moment of waiting for a request to the end of its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// After this a connection ends with its current answer. Browsers and scrapers open another.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// Then, and at shutdown, how long that answer may still take.
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// Before accepting again, when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The page for people. It asks for `/status` each second and needs nothing else.
const STATUS_PAGE: &str = include_str!("status_page/index.html");

/// Serves until `shutdown` is done and the last answers are given. Dropping it ends all connections at once.
pub async fn serve(listener: TcpListener, source: Arc<dyn AdminSource>, shutdown: impl Future<Output = ()>) {
    let (stop, stopped) = watch::channel(());
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        // Dropping `accept` loses no connection: it takes none before it is ready.
        let socket = tokio::select! {
            () = &mut shutdown => break,
            socket = accept(&listener, &slots) => socket,
            Some(_) = connections.join_next() => continue,
        };
        let (source, stopped) = (Arc::clone(&source), stopped.clone());
        connections.spawn(async move {
            let (socket, _slot) = socket;
            serve_connection(socket, source, stopped).await;
        });
    }
    drop(listener);
    drop(stop);
    while connections.join_next().await.is_some() {}
}

/// The next connection, with the slot that it holds.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return (socket, slot),
            Err(error) => {
                warn!(%error, "the admin server can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection's requests, to its end, its age or the server's end, whichever is first.
async fn serve_connection(socket: TcpStream, source: Arc<dyn AdminSource>, mut stopped: watch::Receiver<()>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, source.as_ref());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = pin!(connection);
    let ended = async {
        tokio::select! {
            _ = stopped.changed() => {}
            () = tokio::time::sleep(CONNECTION_AGE) => {}
        }
    };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = ended => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        debug!(%error, "an admin connection ended");
    }
}

/// One request's answer.
fn answer(request: &Request<Incoming>, source: &dyn AdminSource) -> Response<Full<Bytes>> {
    let page = match request.uri().path() {
        "/" => Page::html(STATUS_PAGE),
        "/status" => Page::json(&source.status()),
        "/metrics" => Page::new("text/plain; version=0.0.4; charset=utf-8", source.metrics_text()),
        "/livez" => Page::text(StatusCode::OK, "alive\n"),
        "/readyz" => match source.readiness() {
            Ok(()) => Page::text(StatusCode::OK, "ready\n"),
            Err(why) => Page::text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        _ => Page::text(
            StatusCode::NOT_FOUND,
            "there are /, /status, /metrics, /livez and /readyz\n",
        ),
    };
    // hyper leaves the body of an answer to HEAD out.
    if page.status == StatusCode::NOT_FOUND || matches!(*request.method(), Method::GET | Method::HEAD) {
        return page.into_response();
    }
    let mut response = Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n").into_response();
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// An answer before it is one.
struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

impl Page {
    fn new(content_type: &'static str, body: impl Into<Bytes>) -> Page {
        Page {
            status: StatusCode::OK,
            content_type,
            body: body.into(),
        }
    }

    fn html(body: &'static str) -> Page {
        Page::new("text/html; charset=utf-8", body)
    }

    fn text(status: StatusCode, body: impl Into<Bytes>) -> Page {
        Page {
            status,
            ..Page::new("text/plain; charset=utf-8", body)
        }
    }

    fn json(status: &Status) -> Page {
        match serde_json::to_vec(status) {
            Ok(body) => Page::new("application/json", body),
            Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // The page's own script and style stand inside of it; nothing else may be loaded or run.
        headers.insert(
            CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(
                "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                 frame-ancestors 'none'",
            ),
        );
        response
    }
}
