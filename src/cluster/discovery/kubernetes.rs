//! A Kubernetes service's endpoints: listed once, then watched; what they mean is told in `slices`.
//!
//! A watch is asked to end after [`WATCH_FOR`] and goes on where it was; one that is silent for longer is taken for dead, so that a
//! lost connection is no lasting ignorance. When the API server no longer keeps the version that a watch would start from, the slices
//! are listed anew, as they are after any failure. The service account's token is read for each request: it is renewed every hour.
//! Kubernetes' manual: "Kubernetes API Concepts", "Efficient detection of changes".

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Report;
use super::merge::SourceId;
use super::slices::{Event, Slices};
use crate::config::{self, ApiUrl, NodeAddress};
use crate::wire::http_client::{Body, HttpError, Login, Request};
use crate::wire::tls;

/// For connecting and for the answer to a list.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a watch lasts.
const WATCH_FOR: Duration = Duration::from_secs(60);
/// The most bytes of a list, and of one event.
const MAX_BYTES: usize = 8 << 20;

/// Follows a service.
pub(super) struct Kubernetes {
    pub(super) settings: config::Kubernetes,
    pub(super) interval: Duration,
    pub(super) id: SourceId,
    pub(super) tell: mpsc::Sender<Report>,
    /// How to look up a variable of the environment.
    pub(super) environment: fn(&str) -> Option<String>,
}

/// Nobody takes the answers any more.
struct NobodyListens;

/// Why a watch has ended.
enum Ended {
    /// As it was asked to: go on from the last version.
    InTime,
    /// Its version isn't kept any more: list anew.
    Expired,
    /// List anew, after a pause.
    Failed(String),
    NobodyListens,
}

/// How to ask.
struct Access {
    url: ApiUrl,
    /// Up to the query.
    path: String,
    token: Option<String>,
    tls: Option<Arc<ClientConfig>>,
}

impl Kubernetes {
    /// Follows until nobody takes the answers any more.
    pub(super) async fn run(self) {
        let mut watch_fails = false;
        loop {
            let slices = match self.list().await {
                Ok(slices) => slices,
                Err(error) => {
                    if self.tell.send((self.id, Err(error))).await.is_err() {
                        return;
                    }
                    sleep(self.interval).await;
                    continue;
                }
            };
            match self.follow(slices, &mut watch_fails).await {
                Ended::NobodyListens => return,
                Ended::InTime | Ended::Expired => {}
                Ended::Failed(error) => {
                    // Listing may go on working: then the list is good, and only late.
                    if !watch_fails {
                        tracing::warn!(error, "discovery: kubernetes can't be watched; it is listed instead");
                    }
                    watch_fails = true;
                }
            }
            sleep(self.interval).await;
        }
    }

    /// Tells of the nodes now, and after each event of watch after watch, until one of them ends otherwise than in time.
    async fn follow(&self, mut slices: Slices, watch_fails: &mut bool) -> Ended {
        if self.report(&slices).await.is_err() {
            return Ended::NobodyListens;
        }
        loop {
            let began = Instant::now();
            match self.watch(&mut slices, watch_fails).await {
                // One that ends at once, again and again, must not make a storm of questions.
                Ended::InTime => sleep(self.interval.saturating_sub(began.elapsed())).await,
                ended @ (Ended::Expired | Ended::Failed(_) | Ended::NobodyListens) => return ended,
            }
        }
    }

    async fn report(&self, slices: &Slices) -> Result<(), NobodyListens> {
        let answer = slices.answer(self.settings.port.as_deref());
        self.tell.send((self.id, answer)).await.map_err(|_| NobodyListens)
    }

    async fn list(&self) -> Result<Slices, String> {
        let access = self.access()?;
        let body = timeout(LIMIT, access.get(&access.path).fetch(MAX_BYTES)).await;
        Slices::from_list(&body.map_err(|_| no_answer())?.map_err(|error| error.to_string())?)
    }

    async fn watch(&self, slices: &mut Slices, watch_fails: &mut bool) -> Ended {
        let mut body = match self.open_watch(&slices.version).await {
            Ok(Some(body)) => body,
            Ok(None) => return Ended::Expired,
            Err(error) => return Ended::Failed(error),
        };
        *watch_fails = false;
        let deadline = Instant::now() + WATCH_FOR + LIMIT;
        let mut rest = Vec::new();
        loop {
            let piece = match timeout_at(deadline, body.next()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => return Ended::InTime,
                Ok(Err(error)) => return Ended::Failed(error.to_string()),
                Err(_) => return Ended::Failed(no_answer()),
            };
            rest.extend_from_slice(&piece);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                match slices.take(line.trim_ascii()) {
                    Ok(Event::Changed) if self.report(slices).await.is_err() => return Ended::NobodyListens,
                    Ok(Event::Changed | Event::Bookmark) => {}
                    Ok(Event::Expired) => return Ended::Expired,
                    Err(error) => return Ended::Failed(error),
                }
            }
            if rest.len() > MAX_BYTES {
                return Ended::Failed("an event that is too long".to_owned());
            }
        }
    }

    /// A watch from this version on; `None` if it isn't kept any more.
    async fn open_watch(&self, version: &str) -> Result<Option<Body>, String> {
        let access = self.access()?;
        let seconds = WATCH_FOR.as_secs();
        let path = format!(
            "{}&watch=1&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}",
            access.path
        );
        match timeout(LIMIT, access.get(&path).open()).await {
            Ok(Ok(body)) => Ok(Some(body)),
            Ok(Err(HttpError::Status(status))) if status.as_u16() == 410 => Ok(None),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(no_answer()),
        }
    }

    fn access(&self) -> Result<Access, String> {
        let url = match &self.settings.api {
            Some(url) => url.clone(),
            None => self.pods_api()?,
        };
        let account = &self.settings.account;
        let namespace = match &self.settings.namespace {
            Some(namespace) => namespace.clone(),
            None => read(account, "namespace")?,
        };
        let service = &self.settings.service;
        let path = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{service}"
        );
        // `kubectl proxy` takes no token, and none must go over the wire in the clear.
        let (token, tls) = if url.encrypted {
            let config = tls::https_config(Some(&account.join("ca.crt"))).map_err(|error| error.to_string())?;
            (Some(read(account, "token")?), Some(config))
        } else {
            (None, None)
        };
        Ok(Access { url, path, token, tls })
    }

    fn pods_api(&self) -> Result<ApiUrl, String> {
        let variable = |name: &str| (self.environment)(name).ok_or(format!("{name} isn't set: set kubernetes.api"));
        let (host, port) = (
            variable("KUBERNETES_SERVICE_HOST")?,
            variable("KUBERNETES_SERVICE_PORT")?,
        );
        let address = port.parse().ok().and_then(|port| NodeAddress::new(&host, port));
        Ok(ApiUrl {
            encrypted: true,
            address: address.ok_or(format!("{host} and {port} are no address"))?,
            prefix: String::new(),
        })
    }
}

impl Access {
    fn get<'a>(&'a self, path: &'a str) -> Request<'a> {
        Request {
            url: &self.url,
            path,
            login: self.token.as_deref().map(Login::Token),
            tls: self.tls.as_ref(),
            body: None,
        }
    }
}

fn read(account: &Path, name: &str) -> Result<String, String> {
    let path = account.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn no_answer() -> String {
    "no answer in time".to_owned()
}

#[cfg(test)]
#[path = "kubernetes_tests.rs"]
mod tests;
