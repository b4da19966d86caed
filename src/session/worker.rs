//! What the sessions of one worker share without locks, and what all of them share with locks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use foldhash::HashMap;
use metrics::{Counter, Gauge, Histogram};
use tokio_rustls::TlsAcceptor;

use super::cancel::CancelRegistry;
use super::control::{Control, Order};
use super::inbox::Buffers;
use super::notifiers::Notifiers;
use crate::auth::userlist::UserList;
use crate::catalog::{Catalogs, Names};
use crate::cluster::{Book, Cluster, NodeId, PLACES};
use crate::config::{Config, Consistency};
use crate::metrics::{self as names, Metrics};
use crate::pool::Pools;
use crate::route::{RouteReason, Target};
use crate::sql::{Access, ClassCache, SqlContext, StatementClass};
use crate::wire::tls::NodeTlsConnector;

/// Texts whose class a worker remembers, and the bytes that may take.
const CLASSES: (usize, usize) = (20_000, 16 << 20);

/// What all sessions of the proxy share.
pub struct Shared {
    /// The configuration as it is now; a reload replaces it.
    pub config: ArcSwap<Config>,
    /// The nodes.
    pub cluster: Cluster,
    /// The server connections.
    pub pools: Pools,
    /// What the databases' names mean.
    pub catalogs: Catalogs,
    /// Who has sent a notification.
    pub notifiers: Notifiers,
    /// Every client's cancel key.
    pub cancels: Arc<CancelRegistry>,
    /// The users file.
    pub users: ArcSwap<UserList>,
    /// TLS towards clients.
    pub tls: ArcSwapOption<TlsAcceptor>,
    /// TLS towards nodes, for cancel requests.
    pub node_tls: NodeTlsConnector,
    /// Clients that are connected, those logging in included.
    pub clients: AtomicUsize,
    /// Statements that wait for a primary.
    pub held: AtomicUsize,
    /// The proxy is shutting down.
    pub draining: AtomicBool,
    /// All metrics.
    pub metrics: Metrics,
    /// Those that every statement touches, resolved.
    pub counters: Counters,
}

/// Handles that are resolved once.
pub struct Counters {
    /// By node.
    statements: Box<[ArcSwapOption<NodeStatements>]>,
    book: Book,
    all: Metrics,
    durations: [[Histogram; 2]; 2],
    decisions: [Vec<Counter>; 2],
    pool_wait: Histogram,
    /// By [`Consistency`] and [`ReadOutcome`], in their order.
    reads: [[Counter; 3]; 4],
    standby_wait: Histogram,
    lost_positions: Counter,
    /// By [`crate::sql::PinReason`], in its order.
    pins: Vec<Gauge>,
    class_hits: Counter,
    class_misses: Counter,
}

/// By role and access.
struct NodeStatements([[Counter; 2]; 2]);

impl NodeStatements {
    fn of(metrics: &Metrics, node: &str) -> NodeStatements {
        let counter = |role: &str, access: Access| {
            let labels = [
                ("node", node.to_owned()),
                ("role", role.to_owned()),
                ("access", access.as_str().to_owned()),
            ];
            metrics.counter(names::STATEMENTS, &labels)
        };
        NodeStatements(TARGETS.map(|(_, role)| ACCESSES.map(|access| counter(role, access))))
    }
}

/// What came of a read that any node could have taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// A standby took it.
    Standby,
    /// A standby took it, which it had waited for.
    Waited,
    /// The primary took it.
    Primary,
}

const READ_OUTCOMES: [&str; 3] = ["standby", "waited", "primary"];
const LEVELS: [Consistency; 4] = [
    Consistency::Eventual,
    Consistency::ReadYourWrites,
    Consistency::Session,
    Consistency::Linearizable,
];

const TARGETS: [(Target, &str); 2] = [(Target::Primary, "primary"), (Target::Standby, "standby")];
const ACCESSES: [Access; 2] = [Access::Read, Access::Write];

impl Counters {
    /// Resolves them; those of a node when it is first sent something.
    pub fn new(metrics: &Metrics, book: &Book) -> Counters {
        let durations = TARGETS.map(|(_, role)| {
            ACCESSES.map(|access| {
                metrics.histogram(
                    names::STATEMENT_DURATION,
                    &[("role", role.to_owned()), ("access", access.as_str().to_owned())],
                )
            })
        });
        let decisions = TARGETS.map(|(_, target)| {
            let labels = |reason: RouteReason| [("target", target.to_owned()), ("reason", reason.label().to_owned())];
            RouteReason::ALL
                .iter()
                .map(|reason| metrics.counter(names::ROUTING_DECISIONS, &labels(*reason)))
                .collect()
        });
        let pins = crate::sql::PinReason::ALL
            .iter()
            .map(|reason| metrics.gauge(names::PINS, &[("reason", reason.as_str().to_owned())]))
            .collect();
        Counters {
            statements: (0..PLACES).map(|_| ArcSwapOption::empty()).collect(),
            book: book.clone(),
            all: metrics.clone(),
            durations,
            decisions,
            pool_wait: metrics.histogram(names::POOL_WAIT, &[]),
            reads: LEVELS.map(|level| {
                READ_OUTCOMES.map(|outcome| {
                    let labels = [("level", level.name().to_owned()), ("outcome", outcome.to_owned())];
                    metrics.counter(names::READS, &labels)
                })
            }),
            standby_wait: metrics.histogram(names::STANDBY_WAIT, &[]),
            lost_positions: metrics.counter(names::LOST_POSITIONS, &[]),
            pins,
            class_hits: metrics.counter(names::CLASS_CACHE_HITS, &[]),
            class_misses: metrics.counter(names::CLASS_CACHE_MISSES, &[]),
        }
    }

    /// Statements were sent to `node`.
    pub fn sent(&self, node: NodeId, target: Target, access: Access, count: u64) {
        let place = &self.statements[node.index()];
        let known = place.load();
        match &*known {
            Some(known) => known.0[target as usize][access as usize].increment(count),
            None => {
                let Some(config) = self.book.node(node) else { return };
                let counters = Arc::new(NodeStatements::of(&self.all, &config.name));
                counters.0[target as usize][access as usize].increment(count);
                place.store(Some(counters));
            }
        }
    }

    /// Another node has this place now, or it has another name.
    pub fn replace(&self, node: NodeId) {
        self.statements[node.index()].store(None);
    }

    /// A unit is answered.
    pub fn answered(&self, target: Target, access: Access, took: Duration) {
        self.durations[target as usize][access as usize].record(took);
    }

    /// A decision was made.
    pub fn decided(&self, target: Target, reason: RouteReason) {
        self.decisions[target as usize][reason as usize].increment(1);
    }

    /// A read found its place, perhaps after it has waited for a standby.
    pub fn read(&self, level: Consistency, target: Target, waited: Option<Duration>) {
        let outcome = match (target, waited) {
            (Target::Standby, None) => ReadOutcome::Standby,
            (Target::Standby, Some(_)) => ReadOutcome::Waited,
            (Target::Primary, _) => ReadOutcome::Primary,
        };
        self.reads[level as usize][outcome as usize].increment(1);
        if let Some(waited) = waited {
            self.standby_wait.record(waited);
        }
    }

    /// A session was to see a position that a failover has lost.
    pub fn lost_position(&self) {
        self.lost_positions.increment(1);
    }

    /// A statement waited for its connection.
    pub fn waited(&self, took: Duration) {
        self.pool_wait.record(took);
    }

    /// Sessions pinned for a reason: one more, or one less.
    pub fn pin(&self, reason: crate::sql::PinReason, change: f64) {
        self.pins[reason as usize].increment(change);
    }
}

impl Shared {
    /// Counts an error that the proxy itself reports.
    pub fn count_error(&self, code: crate::wire::sqlstate::SqlState) {
        self.metrics
            .counter(names::ERRORS, &[("sqlstate", code.as_str().to_owned())])
            .increment(1);
    }

    /// Counts a read that runs again.
    pub fn count_retry(&self, reason: &str) {
        self.metrics
            .counter(names::RETRIES, &[("reason", reason.to_owned())])
            .increment(1);
    }

    /// Counts how a client's login ended.
    pub fn count_login(&self, outcome: &str) {
        self.metrics
            .counter(names::CLIENT_CONNECTIONS, &[("outcome", outcome.to_owned())])
            .increment(1);
    }
}

/// One worker: its sessions run on one thread and share this without locks.
pub struct Worker {
    /// Its number, from 0.
    pub index: usize,
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Spare buffers.
    pub buffers: Rc<Buffers>,
    classes: RefCell<ClassCache>,
    dice: Cell<u64>,
    controls: RefCell<HashMap<u64, Rc<Control>>>,
    next_session: Cell<u64>,
}

/// A session's place among its worker's; leaves when dropped.
pub struct Present {
    worker: Rc<Worker>,
    /// The session's number, which no other session of the process has; never 0.
    pub id: u64,
    /// How the worker reaches the session.
    pub control: Rc<Control>,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.worker.controls.borrow_mut().remove(&self.id);
        self.worker.shared.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    /// A worker without sessions.
    pub fn new(index: usize, shared: Arc<Shared>) -> Worker {
        let mut seed = [0; 8];
        // Without randomness the balancer's choices are merely the same each time.
        let _ = getrandom::fill(&mut seed);
        Worker {
            index,
            shared,
            buffers: Rc::default(),
            classes: RefCell::new(ClassCache::new(CLASSES.0, CLASSES.1)),
            dice: Cell::new(u64::from_ne_bytes(seed) | 1),
            controls: RefCell::default(),
            next_session: Cell::new(0),
        }
    }

    /// Enters a session, which the acceptor has counted already.
    pub fn enter(self: &Rc<Self>) -> Present {
        let count = self.next_session.get() + 1;
        self.next_session.set(count);
        let id = count << 16 | self.index as u64;
        let control = Rc::new(Control::default());
        if self.shared.draining.load(Ordering::Relaxed) {
            control.order(Order::Drain);
        }
        self.controls.borrow_mut().insert(id, Rc::clone(&control));
        Present {
            worker: Rc::clone(self),
            id,
            control,
        }
    }

    /// Gives every session an order.
    pub fn order_all(&self, order: Order) {
        let controls: Vec<_> = self.controls.borrow().values().cloned().collect();
        for control in controls {
            control.order(order);
        }
    }

    /// Sessions that are here.
    pub fn sessions(&self) -> usize {
        self.controls.borrow().len()
    }

    /// What a text is.
    pub fn classify(&self, sql: &[u8], context: &SqlContext, names: &Names) -> Arc<StatementClass> {
        let mut classes = self.classes.borrow_mut();
        let misses = classes.misses();
        let class = classes.classify(sql, context, names.catalog(), names.version);
        if classes.misses() == misses {
            self.shared.counters.class_hits.increment(1);
        } else {
            self.shared.counters.class_misses.increment(1);
            if class.reason.is_about_unknown_name() {
                names.puzzle();
            }
        }
        class
    }

    /// 64 random bits, good enough to spread load (xorshift64: Marsaglia, "Xorshift RNGs", 2003).
    pub fn dice(&self) -> u64 {
        let mut x = self.dice.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.dice.set(x);
        x
    }
}
