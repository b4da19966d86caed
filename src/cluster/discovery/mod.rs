//! Which nodes there are: the ones of the file, and what others say.
//!
//! One task per source asks it again and again; [`follow`] takes the answers, lets `merge` make one list of them (pure), and
//! publishes it whenever it has changed. A source never decides what a node *is*: roles come from the servers themselves. All
//! that a source can do beside naming nodes is to have them asked at once ([`AskNodes`]).

mod census;
mod dns;
mod hearsay;
mod kubernetes;
mod merge;
mod patroni;
mod replication;
mod slices;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use self::dns::Dns;
use super::patroni::Patroni;
use super::probe_connection::Target;
use crate::config::{Discovery, MAX_NODES, NodeConfig};
use kubernetes::Kubernetes;
use merge::{Answer, Merge, SourceId};
use patroni::Members;
use replication::Servers;

/// A source of nodes, as far as others need to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceState {
    /// What it is called.
    pub name: String,
    /// Its last answer was one to go by.
    pub is_up: bool,
}

/// Has all nodes asked now what they are.
pub(super) type AskNodes = Arc<dyn Fn() + Send + Sync>;

/// What is needed to look for nodes.
pub(super) struct Search {
    /// Who is asked.
    pub(super) discovery: Discovery,
    /// The door to the Patroni that `discovery` names.
    pub(super) patroni: Option<Arc<Patroni>>,
    /// The nodes that the file names.
    pub(super) fixed: watch::Receiver<Arc<[NodeConfig]>>,
    /// Where the proxy listens: an address that leads back to it is no node.
    pub(super) own: Vec<SocketAddr>,
    /// How to log in to a node; its address is replaced by that of whoever is asked.
    pub(super) login: Target,
    /// For a source that has heard of a change.
    pub(super) ask_nodes: AskNodes,
    /// Where it is told which sources answer.
    pub(super) states: watch::Sender<Vec<SourceState>>,
}

/// The first list waits no longer than this for those who are slow to answer. It waits at all so that a node which several sources
/// name gets the name that the first of them in order has for it.
const FIRST_ANSWERS: Duration = Duration::from_secs(3);
/// Answers on their way.
const ANSWERS_QUEUED: usize = 16;

/// Follows all sources for ever. Publishes the list of nodes whenever it has changed: those of the file first, then what the
/// sources have found, one per address, names unique. Ends when nobody wants the list any more.
pub(super) async fn follow(search: Search, nodes: watch::Sender<Arc<[NodeConfig]>>) {
    let (tell, mut told) = mpsc::channel(ANSWERS_QUEUED);
    let mut tasks = JoinSet::new();
    let sources = start(&search, &nodes, &tell, &mut tasks);
    let mut fixed = search.fixed;
    let these = fixed.borrow_and_update().to_vec();
    let mut list = List {
        merge: Merge::new(these, search.own, sources.len()),
        sources,
        nodes,
        states: search.states,
        left_out: 0,
    };
    let deadline = Instant::now() + FIRST_ANSWERS;
    loop {
        tokio::select! {
            Some(report) = told.recv() => list.take(report),
            () = sleep_until(deadline.into()), if !list.is_due(deadline) => {}
            changed = fixed.changed() => match changed {
                Ok(()) => list.merge.set_fixed(fixed.borrow_and_update().to_vec()),
                Err(_) => return,
            },
        }
        if list.is_due(deadline) {
            list.publish();
        }
    }
}

/// Starts a task for each source; answers how they did so far, by [`SourceId`].
fn start(
    search: &Search,
    nodes: &watch::Sender<Arc<[NodeConfig]>>,
    tell: &mpsc::Sender<Report>,
    tasks: &mut JoinSet<()>,
) -> Vec<Heard> {
    let Discovery {
        patroni: _,
        kubernetes,
        dns,
        servers,
        interval,
    } = &search.discovery;
    let (interval, tell) = (*interval, || tell.clone());
    // As `Discovery::names` has them.
    let mut ids = (0..).map(SourceId);
    let mut next = || ids.next().expect("there are more numbers than sources");
    if let Some(patroni) = &search.patroni {
        let members = Members::new(Arc::clone(patroni), Arc::clone(&search.ask_nodes));
        tasks.spawn(poll(members, next(), interval, tell()));
    }
    if let Some(settings) = kubernetes {
        let kubernetes = Kubernetes {
            settings: settings.clone(),
            interval,
            id: next(),
            tell: tell(),
            environment: |name| std::env::var(name).ok(),
        };
        tasks.spawn(kubernetes.run());
    }
    for name in dns {
        let dns = Dns {
            name: name.clone(),
            resolver: dns::System,
        };
        tasks.spawn(poll(dns, next(), interval, tell()));
    }
    if let Some(settings) = servers {
        let servers = Servers::new(settings.clone(), search.login.clone(), nodes.subscribe());
        tasks.spawn(poll(servers, next(), interval, tell()));
    }
    search.discovery.names().into_iter().map(Heard::nothing_of).collect()
}

/// What a source has to say: an answer, or why there is none.
type Report = (SourceId, Result<Answer, String>);

/// One that is asked again and again.
trait Source: Send {
    /// Asks once. Bounded in time.
    fn ask(&mut self) -> impl Future<Output = Result<Answer, String>> + Send;

    /// Waits until it should be asked again.
    fn is_due(&mut self, interval: Duration) -> impl Future<Output = ()> + Send {
        sleep(interval)
    }
}

async fn poll<S: Source>(mut source: S, id: SourceId, interval: Duration, tell: mpsc::Sender<Report>) {
    loop {
        let answer = source.ask().await;
        if tell.send((id, answer)).await.is_err() {
            return;
        }
        source.is_due(interval).await;
    }
}

/// How a source did last; what is logged is when that changes.
struct Heard {
    name: String,
    state: HeardState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeardState {
    /// Not asked yet.
    Nothing,
    /// It has named nodes.
    Nodes,
    /// It has answered without naming any.
    Empty,
    /// It can't be asked.
    Failed,
}

impl Heard {
    fn nothing_of(name: String) -> Heard {
        Heard {
            name,
            state: HeardState::Nothing,
        }
    }

    fn state(&self) -> SourceState {
        SourceState {
            name: self.name.clone(),
            is_up: self.state == HeardState::Nodes,
        }
    }

    fn take(&mut self, answer: &Result<Answer, String>) {
        let state = match answer {
            Ok(answer) if answer.is_implausible() => HeardState::Empty,
            Ok(_) => HeardState::Nodes,
            Err(_) => HeardState::Failed,
        };
        if std::mem::replace(&mut self.state, state) == state {
            return;
        }
        let source = &*self.name;
        match answer {
            Ok(answer) if answer.is_implausible() => {
                tracing::warn!(
                    source,
                    "discovery: the source names no nodes; the last that it named stay"
                );
            }
            Ok(answer) => tracing::info!(source, nodes = answer.nodes.len(), "discovery: the source names nodes"),
            Err(error) => {
                tracing::warn!(source, %error, "discovery: the source can't be asked; the last nodes that it named stay");
            }
        }
    }
}

/// The list as it was published, and what the next one is made of.
struct List {
    merge: Merge,
    sources: Vec<Heard>,
    nodes: watch::Sender<Arc<[NodeConfig]>>,
    states: watch::Sender<Vec<SourceState>>,
    left_out: usize,
}

impl List {
    /// Whether the list may be published.
    fn is_due(&self, deadline: Instant) -> bool {
        self.merge.were_all_heard() || Instant::now() >= deadline
    }

    fn take(&mut self, (source, answer): Report) {
        if let Some(heard) = self.sources.get_mut(source.0) {
            heard.take(&answer);
        }
        let states: Vec<SourceState> = self.sources.iter().map(Heard::state).collect();
        self.states
            .send_if_modified(|before| std::mem::replace(before, states.clone()) != states);
        match answer {
            Ok(answer) => self.merge.take(source, &answer, Instant::now()),
            Err(_) => self.merge.take_failure(source),
        }
    }

    fn publish(&mut self) {
        let list = self.merge.nodes();
        self.nodes.send_if_modified(|published| {
            let is_news = published[..] != list[..];
            if is_news {
                *published = list.into();
            }
            is_news
        });
        let left_out = self.merge.left_out();
        if left_out.len() != self.left_out {
            self.left_out = left_out.len();
            if let Some(first) = left_out.first() {
                tracing::warn!(limit = MAX_NODES, left_out = left_out.len(), %first, "discovery: more nodes than the limit allows");
            }
        }
    }
}
