//! The conversation with an API server, with what such a server answers.

use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::cluster::discovery::merge::Answer;

const LIST: &str = include_str!("../../../tests/data/kubernetes/list.json");
const WATCH: &str = include_str!("../../../tests/data/kubernetes/watch.jsonl");
const GONE: &str = include_str!("../../../tests/data/kubernetes/gone.jsonl");
const QUERY: &str =
    "/apis/discovery.k8s.io/v1/namespaces/db/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dpostgres";

/// What the server answers to one request.
enum Play {
    /// A whole answer.
    Status(u16, String),
    /// A watch: pieces of its body, then its end.
    Pieces(Vec<String>),
}

/// A server that answers in turn, and a folder with the account that may ask it.
struct Api {
    account: tempfile::TempDir,
    url: ApiUrl,
    /// Paths and tokens, in the order in which they came.
    requests: mpsc::Receiver<(String, String)>,
    _server: JoinHandle<()>,
}

impl Api {
    async fn playing(plays: Vec<Play>) -> Api {
        let account = tempfile::tempdir().unwrap();
        let file = |name: &str| account.path().join(name);
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        fs::write(file("ca.crt"), made.cert.pem()).unwrap();
        fs::write(file("key"), made.signing_key.serialize_pem()).unwrap();
        fs::write(file("token"), "secret-1\n").unwrap();
        fs::write(file("namespace"), "db").unwrap();
        let acceptor = TlsAcceptor::from(tls::server_config(&file("ca.crt"), &file("key")).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (tell, requests) = mpsc::channel(100);
        let token = file("token");
        let _server = tokio::spawn(async move {
            for (number, play) in (2..).zip(plays) {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(socket).await else {
                    continue;
                };
                // Tokens are renewed now and then.
                let renewed = || fs::write(&token, format!("secret-{number}")).unwrap();
                answer(stream, play, &tell, renewed).await;
            }
        });
        Api {
            account,
            url,
            requests,
            _server,
        }
    }

    /// Follows the service `postgres` there.
    fn follow(&self) -> mpsc::Receiver<Report> {
        self.follow_with(self.account.path().to_owned(), Some(self.url.clone()))
    }

    fn follow_with(&self, account: PathBuf, api: Option<ApiUrl>) -> mpsc::Receiver<Report> {
        let (tell, told) = mpsc::channel(100);
        let kubernetes = Kubernetes {
            settings: config::Kubernetes {
                service: "postgres".to_owned(),
                namespace: None,
                port: None,
                api,
                account,
            },
            interval: Duration::from_millis(20),
            id: SourceId(0),
            tell,
            environment: |name| (name == "KUBERNETES_SERVICE_HOST").then(|| "10.96.0.1".to_owned()),
        };
        tokio::spawn(kubernetes.run());
        told
    }

    async fn request(&mut self) -> (String, String) {
        in_time(self.requests.recv()).await.unwrap()
    }
}

async fn answer(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    play: Play,
    tell: &mpsc::Sender<(String, String)>,
    renewed: impl FnOnce(),
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let token = head
        .lines()
        .find_map(|line| line.strip_prefix("authorization: Bearer "));
    renewed();
    tell.send((path, token.unwrap_or("none").to_owned())).await.unwrap();
    let kind = "content-type: application/json";
    match play {
        Play::Status(status, body) => {
            let length = body.len();
            let text = format!("HTTP/1.1 {status} \r\n{kind}\r\ncontent-length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(text.as_bytes()).await;
        }
        Play::Pieces(pieces) => {
            let begin = format!("HTTP/1.1 200 OK\r\n{kind}\r\ntransfer-encoding: chunked\r\n\r\n");
            let _ = stream.write_all(begin.as_bytes()).await;
            for piece in pieces {
                let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
                let _ = stream.write_all(chunk.as_bytes()).await;
                let _ = stream.flush().await;
                sleep(Duration::from_millis(5)).await;
            }
            let _ = stream.write_all(b"0\r\n\r\n").await;
        }
    }
    let _ = stream.shutdown().await;
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("not in time")
}

/// The names of the nodes in the next answer, without `pg-`; or what failed.
async fn told(reports: &mut mpsc::Receiver<Report>) -> Result<String, String> {
    let (_, answer) = in_time(reports.recv()).await.unwrap();
    answer.map(|Answer { nodes, .. }| {
        let mut names: Vec<&str> = nodes
            .iter()
            .filter_map(|found| found.name.as_deref()?.strip_prefix("pg-"))
            .collect();
        names.sort_unstable();
        names.join("")
    })
}

fn list() -> Play {
    Play::Status(200, LIST.to_owned())
}

fn watch(version: &str) -> String {
    format!("{QUERY}&watch=1&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds=60")
}

#[tokio::test]
async fn a_list_is_followed_by_watches_and_by_another_list_when_its_version_is_gone() {
    // Pieces end anywhere.
    let (one, other) = WATCH.split_at(WATCH.len() / 3);
    let mut api = Api::playing(vec![
        list(),
        Play::Pieces(vec![one.to_owned(), other.to_owned()]),
        Play::Pieces(vec![GONE.to_owned()]),
        list(),
        Play::Status(410, "{}".to_owned()),
        list(),
        Play::Pieces(Vec::new()),
    ])
    .await;
    let mut reports = api.follow();
    for expected in ["01", "012", "0123", "023", "02", "01", "01"] {
        assert_eq!(told(&mut reports).await.as_deref(), Ok(expected));
    }
    let expected = [
        QUERY.to_owned(),
        watch("184467"),
        watch("184720"),
        QUERY.to_owned(),
        watch("184467"),
        QUERY.to_owned(),
        watch("184467"),
    ];
    for (number, path) in (1..).zip(expected) {
        assert_eq!(api.request().await, (path, format!("secret-{number}")));
    }
}

#[tokio::test]
async fn what_cannot_be_watched_is_listed_again_and_again() {
    let forbidden = || Play::Status(403, "{}".to_owned());
    let api = Api::playing(vec![list(), forbidden(), list(), forbidden(), list(), forbidden()]).await;
    let mut reports = api.follow();
    for _ in 0..3 {
        assert_eq!(told(&mut reports).await.as_deref(), Ok("01"));
    }
}

#[tokio::test]
async fn what_cannot_be_listed_is_a_failure_until_it_can() {
    let answers = vec![
        Play::Status(403, "{}".to_owned()),
        Play::Status(200, "<html>".to_owned()),
        list(),
        Play::Pieces(vec!["{\"type\": \"ERROR\", \"object\": {\"code\": 500}}\n".to_owned()]),
        list(),
    ];
    let api = Api::playing(answers).await;
    let mut reports = api.follow();
    assert_eq!(told(&mut reports).await, Err("HTTP 403 Forbidden".to_owned()));
    let error = told(&mut reports).await.unwrap_err();
    assert!(error.contains("not a list of EndpointSlices"), "{error}");
    assert_eq!(told(&mut reports).await.as_deref(), Ok("01"));
    assert_eq!(told(&mut reports).await.as_deref(), Ok("01"));
}

#[tokio::test]
async fn a_server_that_is_not_the_one_meant_hears_no_token() {
    let (mut api, other) = (Api::playing(vec![list()]).await, Api::playing(Vec::new()).await);
    let mut reports = api.follow_with(other.account.path().to_owned(), Some(api.url.clone()));
    let error = told(&mut reports).await.unwrap_err();
    assert!(error.starts_with("TLS: "), "{error}");
    assert!(api.requests.try_recv().is_err());
}

#[tokio::test]
async fn what_is_missing_in_the_pod_is_named() {
    let api = Api::playing(Vec::new()).await;
    let account = api.account.path().to_owned();
    let mut reports = api.follow_with(account.clone(), None);
    let error = told(&mut reports).await.unwrap_err();
    assert!(error.contains("KUBERNETES_SERVICE_PORT"), "{error}");
    for missing in ["token", "ca.crt", "namespace"] {
        fs::remove_file(account.join(missing)).unwrap();
        let mut reports = api.follow();
        let error = told(&mut reports).await.unwrap_err();
        assert!(error.contains(missing), "{error}");
    }
}
