//! What the nodes are: which one is the primary, how fresh each standby is, and when that changes.
//!
//! One `monitor` task per node asks one cheap statement (`probe`) at an interval, and at once when something hints at a change.
//! Each answer is a `reading`. The `coordinator` takes the readings, lets `election`, `freshness` and `serving` decide (pure
//! functions, time is an argument), and publishes a [`RoutingTable`] that replaces the last one as a whole. Which nodes there are
//! comes from the configuration and from `discovery`; `membership` gives each its place. Consensus is left to those who do it well:
//! this module follows what PostgreSQL and its HA manager have decided, except for what people ask for: a promotion by the trigger
//! file (`promotion`), and moving the writes on purpose (`switchover`).
//!
//! The tasks are spawned with [`tokio::spawn`] on the runtime that calls [`Cluster::start`] and end with the last [`Cluster`].
//! A [`Cluster`] can be used from any thread and any runtime.

pub mod election;
pub mod freshness;
pub mod knowledge;
pub mod loss;
pub mod lsn;
pub mod node;
pub mod node_view;
pub mod position;
pub mod probe;
pub mod reading;
pub mod routing_table;
pub mod serving;
pub mod state_file;

mod activity;
mod announce;
mod asker;
mod book;
mod coordinator;
mod discovery;
mod handover;
mod history;
mod membership;
mod monitor;
mod patroni;
mod probe_connection;
mod promotion;
mod switchover;
mod targets;
mod trigger_file;
mod under_way;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::config::{Config, NodeConfig};
use crate::wire::tls::NodeTlsConnector;

use activity::Activity;
pub use asker::{Asker, Unanswered};
pub use book::Book;
use coordinator::{Coordinator, Event, Histories, Watches};
use discovery::Search;
pub use discovery::SourceState;
use knowledge::Knowledge;
pub use lsn::{Epoch, Lsn, SystemIdentifier, Timeline};
pub use membership::PLACES;
use monitor::Pace;
pub use node::{NodeId, NodeRole};
pub use patroni::NotMoved;
use patroni::Patroni;
pub use position::{Position, Reach};
use promotion::Promoter;
use promotion::agent::Agent;
pub use promotion::by_patroni::PatroniError;
pub use reading::ServerIdentity;
pub use routing_table::{ClusterStats, NoPrimary, NodeState, PrimarySample, RoutingTable};
pub use serving::Serving;
pub use state_file::StateFileError;
pub use switchover::{Switched, SwitchoverError};
use targets::Targets;
use trigger_file::TriggerFile;
pub use under_way::Sending;
use under_way::UnderWay;

/// The cluster as this proxy sees it: a handle, cheap to clone, for every thread.
#[derive(Clone)]
pub struct Cluster(Arc<Watched>);

/// The tasks end with the last handle.
struct Watched {
    shared: Arc<Shared>,
    /// The nodes that the configuration names.
    fixed: watch::Sender<Arc<[NodeConfig]>>,
    book: Book,
    /// Those who are asked which nodes there are.
    sources: watch::Sender<Vec<SourceState>>,
    /// None where nobody watches.
    promoter: Option<(Arc<Promoter>, Handle)>,
    _tasks: JoinSet<()>,
}

/// What all handles and all tasks share.
pub(crate) struct Shared {
    /// The table that statements live by.
    table: ArcSwap<RoutingTable>,
    /// Bumped when the primary, its epoch or a node's fitness for reads changes.
    version: watch::Sender<u64>,
    /// Bumped with every table.
    published: watch::Sender<u64>,
    /// When a read last asked for fresher readings without waiting for them, in milliseconds since `started`.
    nudged: AtomicU64,
    started: Instant,
    /// When the last idle time ended, or the last in which the process was frozen, in milliseconds since `started`; 0 before.
    woke: AtomicU64,
    /// When a node was last heard of, as `woke`.
    last_heard: AtomicU64,
    /// A table whose primary was asked longer ago may tell of the past.
    current_for: Duration,
    /// As soon as the primary has answered, standbys are to be asked whether they have come so far.
    standbys_next: AtomicBool,
    /// One for each place; wakes its monitor.
    wake: Box<[Notify]>,
    /// Whether clients send statements.
    activity: Activity,
    /// What they have sent to the primary, and isn't answered.
    under_way: UnderWay,
}

impl Cluster {
    /// Starts watching the nodes of `config`, on the current runtime. Returns at once: the first table has no primary
    /// ([`NoPrimary::Starting`]).
    ///
    /// # Errors
    /// [`StartError`]: what was remembered of the cluster can't be used.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(config: &Config, tls: &NodeTlsConnector) -> Result<Cluster, StartError> {
        let now = Instant::now();
        let blank = RoutingTable::at_start(&[], now);
        let remembered = config
            .cluster
            .state_file
            .as_deref()
            .map(state_file::read)
            .transpose()?
            .flatten();
        let knowledge = Knowledge::new(settings(config), &blank, remembered, now);
        let shared = Arc::new(Shared::new(
            RoutingTable::at_start(&config.cluster.nodes, now),
            2 * (config.monitor.interval + config.monitor.timeout),
        ));
        let (sender, events) = mpsc::channel(EVENTS_QUEUED);
        let (remember, to_write) = watch::channel(remembered);
        let book = Book::of(&config.cluster.nodes);
        let targets = Targets::new(config, tls, book.clone());

        let mut tasks = JoinSet::new();
        let mut coordinator = Coordinator {
            knowledge,
            shared: Arc::clone(&shared),
            events,
            remember,
            histories: Histories {
                targets: targets.clone(),
                tell: sender.downgrade(),
                asked: None,
            },
            watches: Watches::new(book.clone(), targets.clone(), pace(config), sender.downgrade()),
        };
        coordinator.begin(&config.cluster.nodes, now);
        tasks.spawn(coordinator.run());
        let (fixed, nodes) = watch::channel(config.cluster.nodes.as_slice().into());
        let sources = watch::Sender::default();
        let patroni = config.cluster.discovery.patroni.clone();
        let patroni = patroni.map(|settings| Arc::new(Patroni::new(settings)));
        let nodes = with_those_found(config, nodes, patroni.as_ref(), &targets, &shared, &sources, &mut tasks);
        tasks.spawn(hand_on(nodes, sender.clone()));
        if let Some(path) = &config.cluster.state_file {
            tasks.spawn(state_file::keep(path.clone(), to_write));
        }
        let promoter = Arc::new(Promoter {
            shared: Arc::clone(&shared),
            orders: sender,
            targets,
            agent: Agent::of(config.failover.promote, patroni),
            candidate: config.failover.candidate.clone(),
            hold_timeout: config.failover.hold_timeout,
            patience: config.failover.switchover_timeout.min(config.failover.hold_timeout / 2),
            turn: Mutex::default(),
        });
        if let Some(path) = &config.failover.trigger_file {
            tasks.spawn(trigger_file::watch(TriggerFile::at(path), Arc::clone(&promoter)));
        }
        Ok(Cluster(Arc::new(Watched {
            shared,
            fixed,
            book,
            sources,
            promoter: Some((promoter, Handle::current())),
            _tasks: tasks,
        })))
    }

    /// A cluster that nobody watches, with this table for ever: for tests, and for explaining a route without a server.
    pub fn frozen(table: RoutingTable) -> Cluster {
        Cluster(Arc::new(Watched {
            shared: Arc::new(Shared::new(table, Duration::MAX)),
            fixed: watch::Sender::new(Arc::default()),
            book: Book::of(&[]),
            sources: watch::Sender::default(),
            promoter: None,
            _tasks: JoinSet::new(),
        }))
    }

    /// The current table. Load it once per statement; a guard held for long delays nothing but its own table's end.
    pub fn table(&self) -> Guard<Arc<RoutingTable>> {
        self.0.shared.table.load()
    }

    /// `worker` is about to send a statement to the primary that may begin a transaction there; until what is answered is dropped, it is on
    /// its way. The table has to be looked at behind this.
    pub fn sending(&self, worker: usize) -> Sending<'_> {
        self.0.shared.under_way.begin(worker)
    }

    /// Where the nodes are. Also those of an id in a table that was just published.
    pub fn book(&self) -> &Book {
        &self.0.book
    }

    /// Those who are asked which nodes there are, beside the configuration.
    pub fn sources(&self) -> Vec<SourceState> {
        self.0.sources.borrow().clone()
    }

    /// The configuration names these nodes from now on: new ones are watched, those left out get nothing any more. It is so a moment
    /// later.
    pub fn set_nodes(&self, nodes: &[NodeConfig]) {
        self.0.fixed.send_replace(nodes.into());
    }

    /// Moves the writes to the standby `to`, or to the configured or the most advanced one. What was begun goes on to its end also if the
    /// future is dropped.
    ///
    /// # Errors
    /// [`SwitchoverError`]: the primary goes on, as far as that is known.
    pub async fn switch_over(&self, to: Option<&str>) -> Result<Switched, SwitchoverError> {
        let Some((promoter, runtime)) = &self.0.promoter else {
            return Err(SwitchoverError::Stopping);
        };
        let (promoter, to) = (Arc::clone(promoter), to.map(str::to_owned));
        let run = runtime.spawn(async move { promoter.switch_over(to.as_deref()).await });
        run.await.unwrap_or(Err(SwitchoverError::Stopping))
    }

    /// A number that grows whenever the primary, the epoch, or a node's role or fitness for reads has changed. The table is
    /// already the new one when it does, so: subscribe, look at the table, and then wait for a change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.shared.version.subscribe()
    }

    /// Something happened on a connection to `node` that may mean a change: it is asked at once, and all of them are if it was
    /// the primary. Cheap enough to call from every connection that breaks; a storm of hints is one question.
    pub fn hint(&self, node: NodeId, hint: Hint) {
        self.0.shared.hint(node, hint);
    }

    /// A client has sent a statement. Keeps the probing at its full rate; costs one relaxed load in the steady state.
    pub fn note_statement(&self) {
        if self.0.shared.activity.note() {
            self.0.shared.woke_up();
            self.0.shared.wake_all();
        }
    }

    /// Whether a table may tell of the past: while no client sent anything the nodes were asked seldom, and a process that was frozen has
    /// asked nobody. A primary of then may be none any more, and yet take writes, and say that it is one: all others must have been asked
    /// too.
    pub fn is_out_of_date(&self, table: &RoutingTable, now: Instant) -> bool {
        let shared = &self.0.shared;
        let asked = table.primary_state().and_then(|row| row.last_asked);
        if asked.is_some_and(|asked| now.saturating_duration_since(asked) > shared.current_for) {
            return true;
        }
        match shared.woke.load(Ordering::Acquire) {
            0 => false,
            woke => {
                let woke = shared.started + Duration::from_millis(woke);
                table
                    .members()
                    .any(|row| row.last_asked.is_some_and(|asked| asked < woke))
            }
        }
    }

    /// Asks every node now.
    pub fn request_probe(&self) {
        self.0.shared.wake_all();
    }

    /// A number that grows with every table, also where nothing but positions has changed.
    pub fn published(&self) -> watch::Receiver<u64> {
        self.0.shared.published.subscribe()
    }

    /// Somebody waits for standbys to have what was committed before `floor`: they are asked now, the primary first unless it was asked since.
    /// All who wait share the answers, and no node is asked twice at once.
    pub fn freshen(&self, floor: Option<Instant>) {
        let shared = &self.0.shared;
        let table = shared.table.load();
        let sampled = |sample: &PrimarySample| floor.is_none_or(|floor| sample.asked_at > floor);
        match table.primary {
            Some(primary) if !table.sample.as_ref().is_some_and(sampled) => {
                shared.standbys_next.store(true, Ordering::Relaxed);
                shared.wake(primary);
            }
            Some(_) | None => shared.wake_standbys(),
        }
    }

    /// As [`Cluster::freshen`], for reads that didn't wait and those that will follow: no more often than every [`NUDGE_PAUSE`].
    pub fn nudge(&self, floor: Option<Instant>) {
        let shared = &self.0.shared;
        let now = shared.millis();
        let last = shared.nudged.load(Ordering::Relaxed);
        let due = now >= last.saturating_add(NUDGE_PAUSE.as_millis() as u64);
        if due
            && shared
                .nudged
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.freshen(floor);
        }
    }
}

/// Reads that find no standby fresh enough have the nodes asked this often at most.
const NUDGE_PAUSE: Duration = Duration::from_millis(20);
/// Readings and orders that wait for the coordinator; more make the monitors wait.
const EVENTS_QUEUED: usize = 64;
/// Lost connections or time-outs in a row until a primary is given up.
const FAILURES_BEFORE_OUT: u32 = 2;

/// The nodes of the file and, where there are sources of more, those that they find.
fn with_those_found(
    config: &Config,
    fixed: watch::Receiver<Arc<[NodeConfig]>>,
    patroni: Option<&Arc<Patroni>>,
    targets: &Targets,
    shared: &Arc<Shared>,
    sources: &watch::Sender<Vec<SourceState>>,
    tasks: &mut JoinSet<()>,
) -> watch::Receiver<Arc<[NodeConfig]>> {
    if config.cluster.discovery.is_empty() {
        return fixed;
    }
    let (found, nodes) = watch::channel(Arc::clone(&fixed.borrow()));
    let shared = Arc::clone(shared);
    let search = Search {
        discovery: config.cluster.discovery.clone(),
        patroni: patroni.cloned(),
        fixed,
        own: config.listen.addresses.clone(),
        login: targets.anywhere().clone(),
        ask_nodes: Arc::new(move || shared.wake_all()),
        states: sources.clone(),
    };
    tasks.spawn(discovery::follow(search, found));
    nodes
}

/// Tells the coordinator of every new list of nodes.
async fn hand_on(mut nodes: watch::Receiver<Arc<[NodeConfig]>>, orders: mpsc::Sender<Event>) {
    while nodes.changed().await.is_ok() {
        let these = Arc::clone(&nodes.borrow_and_update());
        if orders.send(Event::Nodes(these)).await.is_err() {
            return;
        }
    }
}

fn settings(config: &Config) -> knowledge::Settings {
    knowledge::Settings {
        election: election::Settings {
            failures_before_out: FAILURES_BEFORE_OUT,
            interval: config.monitor.interval,
            timeout: config.monitor.timeout,
        },
        max_lag: config.routing.max_lag,
    }
}

fn pace(config: &Config) -> Pace {
    Pace {
        interval: config.monitor.interval,
        idle_interval: config.monitor.idle_interval.max(config.monitor.interval),
        timeout: config.monitor.timeout,
    }
}

/// Why a cluster can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state file is there and can't be read, or holds something else.
    #[error(transparent)]
    StateFile(#[from] StateFileError),
}

/// What a connection to a node has shown. A hint decides nothing; it makes the monitor ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// It was refused, reset, or ended without a word.
    ConnectionLost,
    /// 57P01, 57P02 or 57P03, as an error or as the notice before an immediate stop.
    ShuttingDown,
    /// 25006 from the node taken for the primary, or `default_transaction_read_only = on`. It has four meanings (a standby, a session
    /// read-only by choice, a transaction older than a promotion, a primary that another proxy is moving the writes away from).
    ReadOnlyRefusal,
    /// The server reported this `in_hot_standby` at login or after a change (PostgreSQL 14+).
    InHotStandby(bool),
}

impl Shared {
    /// `current_for` is how old a reading of the primary may be that writes go by.
    fn new(table: RoutingTable, current_for: Duration) -> Shared {
        Shared {
            wake: (0..PLACES).map(|_| Notify::new()).collect(),
            table: ArcSwap::from_pointee(table),
            version: watch::Sender::new(0),
            published: watch::Sender::new(0),
            nudged: AtomicU64::new(0),
            started: Instant::now(),
            woke: AtomicU64::new(0),
            last_heard: AtomicU64::new(0),
            current_for,
            standbys_next: AtomicBool::new(false),
            activity: Activity::new(),
            under_way: UnderWay::default(),
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What was read before now may be outdated.
    fn woke_up(&self) {
        self.woke.store(self.millis().max(1), Ordering::Release);
    }

    /// A node was heard of. Where nothing was for long, though no node is asked seldom, the process was frozen. To be called before a table
    /// is published that tells of it.
    fn heard(&self) {
        let now = self.millis();
        let before = self.last_heard.swap(now, Ordering::Relaxed);
        let silence = Duration::from_millis(now.saturating_sub(before));
        if silence > self.current_for && !self.activity.is_idle() {
            self.woke_up();
        }
    }

    fn hint(&self, node: NodeId, hint: Hint) {
        let table = self.table.load();
        let is_primary = table.primary == Some(node);
        let news_for_all = match hint {
            Hint::ConnectionLost | Hint::ShuttingDown | Hint::ReadOnlyRefusal => is_primary,
            // Every login reports it: only what contradicts the table is news.
            Hint::InHotStandby(in_recovery) => {
                if in_recovery != is_primary {
                    return;
                }
                true
            }
        };
        drop(table);
        if news_for_all {
            self.wake_all();
        } else {
            self.wake(node);
        }
    }

    fn wake(&self, node: NodeId) {
        if let Some(wake) = self.wake.get(node.index()) {
            wake.notify_one();
        }
    }

    fn wake_standbys(&self) {
        self.table.load().standbys().for_each(|node| self.wake(node.id));
    }

    fn wake_all(&self) {
        for wake in &self.wake {
            wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;
    use crate::config::NodeAddress;

    const PAUSE: Duration = Duration::from_millis(30);

    fn node(name: &str) -> NodeConfig {
        NodeConfig {
            name: name.into(),
            address: NodeAddress {
                host: "h".into(),
                port: 1,
            },
            weight: 1,
        }
    }

    /// Whether writes may go by a table of a primary and a standby that were asked then.
    fn is_out_of_date(cluster: &Cluster, asked: [Instant; 2]) -> bool {
        let mut table = RoutingTable::at_start(&[node("a"), node("b")], Instant::now());
        table.primary = Some(table.nodes[0].id);
        for (row, asked) in table.nodes.iter_mut().zip(asked) {
            row.last_asked = Some(asked);
        }
        cluster.is_out_of_date(&table, Instant::now())
    }

    #[test]
    fn who_was_frozen_asks_all_nodes_before_it_writes_to_one_that_says_it_leads() {
        let empty = RoutingTable::at_start(&[], Instant::now());
        let mut cluster = Cluster::frozen(empty);
        let watched = Arc::get_mut(&mut cluster.0).expect("the only handle");
        Arc::get_mut(&mut watched.shared).expect("the only one").current_for = PAUSE;
        let shared = Arc::clone(&cluster.0.shared);
        let before = Instant::now();
        shared.heard();
        shared.heard();
        assert!(!is_out_of_date(&cluster, [Instant::now(), before]));
        sleep(2 * PAUSE);
        // Nobody has heard of any node yet: the primary's own reading is old.
        assert!(is_out_of_date(&cluster, [before, before]));
        // The primary answers first.
        shared.heard();
        sleep(Duration::from_millis(2));
        assert!(is_out_of_date(&cluster, [Instant::now(), before]));
        shared.heard();
        assert!(!is_out_of_date(&cluster, [Instant::now(), Instant::now()]));
    }
}
