//! The admin server over real sockets, asked by a real client and by ones that misbehave.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgsluice::admin::status::{
    ClientCounts, ConnectionCounts, Event, EventLevel, NodeStatus, PoolStatus, Role, Status,
};
use pgsluice::admin::status_client::{FetchError, fetch};
use pgsluice::admin::status_command::{Format, show};
use pgsluice::admin::{AdminSource, serve};
use pgsluice::metrics::{self, Metrics};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Longer than anything here takes, so that a hang fails the test.
const DEADLINE: Duration = Duration::from_secs(20);

/// A proxy that says what it was told to.
struct Fake {
    status: Status,
    metrics: Metrics,
    not_ready: Mutex<Option<String>>,
}

impl AdminSource for Fake {
    fn status(&self) -> Status {
        self.status.clone()
    }

    fn metrics_text(&self) -> String {
        self.metrics.render()
    }

    fn readiness(&self) -> Result<(), String> {
        self.not_ready.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

fn fake() -> Arc<Fake> {
    let node = NodeStatus {
        name: "one".to_owned(),
        address: "127.0.0.1:15432".to_owned(),
        role: Role::Primary,
        up: true,
        serving: true,
        why: "primary".to_owned(),
        lag_seconds: Some(0.0),
        timeline: Some(3),
        connections: ConnectionCounts { idle: 2, active: 1 },
        ..NodeStatus::default()
    };
    let status = Status {
        version: "9.9.9".to_owned(),
        uptime_seconds: 90.5,
        epoch: 4,
        primary: Some("one".to_owned()),
        timeline: Some(3),
        listen: vec!["127.0.0.1:5432".to_owned()],
        clients: ClientCounts {
            total: 3,
            max: 10,
            idle: 2,
            active: 1,
            ..ClientCounts::default()
        },
        nodes: vec![
            node,
            NodeStatus {
                name: "two".to_owned(),
                role: Role::StalePrimary,
                why: "fenced".to_owned(),
                ..NodeStatus::default()
            },
        ],
        pools: vec![PoolStatus {
            node: "one".to_owned(),
            size: 20,
            ..PoolStatus::default()
        }],
        events: vec![Event {
            seconds_ago: 2.0,
            level: EventLevel::Error,
            message: "split".to_owned(),
        }],
        ..Status::default()
    };
    Arc::new(Fake {
        status,
        metrics: Metrics::new(),
        not_ready: Mutex::new(None),
    })
}

/// Serves until the test's runtime ends.
async fn start(source: Arc<Fake>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, source, pending()));
    address
}

/// Sends a request's bytes and reads to the connection's end.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let talk = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that refuses what it has not read to the end may reset the connection after its answer.
        let _ = socket.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    tokio::time::timeout(DEADLINE, talk).await.expect("the connection ends")
}

async fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let text = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let answer = exchange(address, &text).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status line");
    (status, head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn the_status_is_json_that_reads_back_as_it_was() {
    let source = fake();
    let address = start(Arc::clone(&source)).await;
    let (code, head, body) = request(address, "GET", "/status").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    assert_eq!(serde_json::from_str::<Status>(&body).unwrap(), source.status);

    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["nodes"][1]["role"], "stale_primary");
    assert_eq!(json["nodes"][0]["connections"]["idle"], 2);
    assert_eq!(json["nodes"][1]["lag_seconds"], serde_json::Value::Null);
    assert_eq!(json["clients"]["active"], 1);
}

#[tokio::test]
async fn metrics_are_in_prometheus_text() {
    let source = fake();
    source
        .metrics
        .gauge(metrics::NODE_UP, &[("node", "one".to_owned())])
        .set(1.0);
    let (code, head, body) = request(start(source).await, "GET", "/metrics").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("pgsluice_node_up{node=\"one\"} 1\n"), "{body}");
}

#[tokio::test]
async fn readiness_says_why_not_while_liveness_stays() {
    let source = fake();
    let address = start(Arc::clone(&source)).await;
    assert_eq!(request(address, "GET", "/readyz").await.0, 200);
    *source.not_ready.lock().unwrap() = Some("no node is known yet".to_owned());
    let (code, _, body) = request(address, "GET", "/readyz").await;
    assert_eq!((code, body.as_str()), (503, "not ready: no node is known yet\n"));
    assert_eq!(request(address, "GET", "/livez").await.0, 200);
}

#[tokio::test]
async fn the_page_stands_alone() {
    let (code, head, body) = request(start(fake()).await, "GET", "/").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: text/html"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(body.trim_end().ends_with("</html>"));
    for external in ["http://", "https://", "src=", "@import", "url(", "innerHTML"] {
        assert!(!body.contains(external), "{external}");
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let address = start(fake()).await;
    assert_eq!(request(address, "GET", "/nowhere").await.0, 404);
    assert_eq!(request(address, "GET", "/status/").await.0, 404);
    assert_eq!(request(address, "GET", "/status?pretty").await.0, 200);
    assert_eq!(request(address, "POST", "/nowhere").await.0, 404);
    for method in ["POST", "DELETE", "OPTIONS", "BREW"] {
        let (code, head, _) = request(address, method, "/status").await;
        assert_eq!(code, 405, "{method}");
        assert!(head.contains("allow: get, head"), "{head}");
    }
    let (code, head, body) = request(address, "HEAD", "/livez").await;
    assert_eq!((code, body.as_str()), (200, ""));
    assert!(head.contains("content-length: 6"), "{head}");
}

#[tokio::test]
async fn what_is_too_long_or_not_http_is_refused_and_harms_nobody() {
    let address = start(fake()).await;
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let answer = exchange(address, &long_path).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let long_header = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    let answer = exchange(address, &long_header).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let answer = exchange(address, "\x00\x00\x00\x08\x04\u{d2}\x16/").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(request(address, "GET", "/livez").await.0, 200);
}

#[tokio::test]
async fn slow_clients_hold_up_nobody() {
    let address = start(fake()).await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET /status HT").await.unwrap();
        slow.push(socket);
    }
    let answered = tokio::time::timeout(DEADLINE, request(address, "GET", "/livez")).await;
    assert_eq!(answered.expect("answered at once").0, 200);
}

#[tokio::test]
async fn a_client_that_never_ends_its_headers_is_sent_away() {
    let address = start(fake()).await;
    // exchange() has a deadline above the server's.
    let answer = exchange(address, "GET /status HTTP/1.1\r\nHost: x\r\n").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_closes_the_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, fake(), async {
        let _ = stopped.await;
    }));
    let mut kept_alive = TcpStream::connect(address).await.unwrap();
    kept_alive
        .write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 1024];
    assert!(kept_alive.read(&mut answer).await.unwrap() > 0);

    stop.send(()).unwrap();
    tokio::time::timeout(DEADLINE, server)
        .await
        .expect("the server ends")
        .unwrap();
    assert_eq!(kept_alive.read(&mut answer).await.unwrap(), 0);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn the_client_fetches_what_the_server_says() {
    let source = fake();
    let address = start(Arc::clone(&source)).await;
    assert_eq!(fetch(&format!("http://{address}")).await.unwrap(), source.status);

    let (mut table, mut json) = (Vec::new(), Vec::new());
    show(&format!("http://{address}/"), Format::Table, &mut table)
        .await
        .unwrap();
    show(&format!("http://{address}/"), Format::Json, &mut json)
        .await
        .unwrap();
    let table = String::from_utf8(table).unwrap();
    assert!(table.contains("stale primary"), "{table}");
    assert_eq!(serde_json::from_slice::<Status>(&json).unwrap(), source.status);
}

#[tokio::test]
async fn the_client_says_what_to_do_when_nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = fetch(&format!("http://{address}")).await.unwrap_err();
    assert!(matches!(error, FetchError::Connect { .. }));
    let message = error.to_string();
    assert!(
        message.contains(&address.to_string()) && message.contains("is pgsluice running"),
        "{message}"
    );
    assert!(matches!(fetch("ftp://x").await.unwrap_err(), FetchError::Url { .. }));
}

#[tokio::test]
async fn the_client_is_told_when_it_asks_something_else() {
    for answer in [
        &b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
        b"E\x00\x00\x00\x10unsupported\x00",
        b"",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            let _ = socket.read(&mut asked).await;
            let _ = socket.write_all(answer).await;
        });
        let error = tokio::time::timeout(DEADLINE, fetch(&address.to_string()))
            .await
            .unwrap()
            .unwrap_err();
        assert!(matches!(error, FetchError::Answer { .. }), "{error}");
    }
}

#[test]
fn a_status_of_another_version_is_still_read() {
    let status: Status = serde_json::from_str(
        r#"{"epoch": 7, "new": [1], "nodes": [{"name": "a", "role": "witness", "lag_seconds": 1}]}"#,
    )
    .unwrap();
    assert_eq!((status.epoch, status.nodes[0].role), (7, Role::Unknown));
    assert_eq!(status.nodes[0].lag_seconds, Some(1.0));
}
