//! All pools: found once per client login, and swept by one reaper.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use foldhash::HashMap;
use parking_lot::Mutex;

use super::node_link::NodeLink;
use super::pool::Pool;
use super::prepared::PreparedRegistry;
use super::quota::{Quota, Quotas};
use super::settings::Settings;
use crate::auth::secret::NodeSecret;
use crate::cluster::{Book, NodeId, PLACES};
use crate::config;
use crate::wire::tls::NodeTlsConnector;

/// How often idle connections are looked at.
pub const REAP_INTERVAL: Duration = Duration::from_millis(250);

/// What a server told a client of some settings at its login; the next client with the same settings is told the same without asking.
#[derive(Debug)]
pub struct Welcome {
    /// `ParameterStatus`, in the server's order.
    pub parameters: Vec<(Box<str>, Box<str>)>,
    /// Notices about the settings, as whole messages.
    pub notices: Vec<u8>,
}

/// How the pools of one database and user log in.
#[derive(Debug)]
pub struct Login {
    /// Database name.
    pub database: Box<str>,
    /// Role.
    pub user: Box<str>,
    secret: Mutex<Option<NodeSecret>>,
    tls: NodeTlsConnector,
    limits: Arc<ArcSwap<config::Pool>>,
}

impl Login {
    pub(super) fn limits(&self) -> arc_swap::Guard<Arc<config::Pool>> {
        self.limits.load()
    }

    pub(super) fn secret(&self) -> Option<NodeSecret> {
        self.secret.lock().clone()
    }

    pub(super) fn tls(&self) -> &NodeTlsConnector {
        &self.tls
    }
}

/// The pools of one database and user, one per node.
pub struct PrincipalPools {
    /// How they log in.
    pub login: Arc<Login>,
    /// Made when first asked for, since nodes come and go.
    by_node: Box<[OnceLock<Arc<Pool>>]>,
    shared: Arc<SharedByPools>,
    welcomes: Mutex<HashMap<Settings, Arc<Welcome>>>,
}

/// Combinations of start-up settings for which the server's answer is remembered, per database and user.
const WELCOMES: usize = 64;

impl PrincipalPools {
    /// The pool towards `node`.
    pub fn at(&self, node: NodeId) -> &Arc<Pool> {
        self.by_node[node.index()].get_or_init(|| self.shared.pool(&self.login, node))
    }

    /// All that there are yet.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.by_node.iter().filter_map(OnceLock::get)
    }

    /// What clients of these start-up settings are told, if it is known.
    pub fn welcome(&self, settings: &Settings) -> Option<Arc<Welcome>> {
        self.welcomes.lock().get(settings).cloned()
    }

    /// Remembers what a server said.
    pub fn remember_welcome(&self, settings: &Settings, welcome: Arc<Welcome>) {
        let mut welcomes = self.welcomes.lock();
        if welcomes.len() >= WELCOMES {
            welcomes.clear();
        }
        welcomes.insert(settings.clone(), welcome);
    }

    /// Connections that were opened before `now` are used no more once they are free, and what servers said then is forgotten.
    fn renew(&self, now: Instant) {
        self.forget_welcomes();
        for pool in self.iter() {
            pool.renew(now);
        }
    }

    /// After a failover the servers may say something else (their version, for one).
    fn forget_welcomes(&self) {
        self.welcomes.lock().clear();
    }
}

/// A database and a user.
type Principal = (Box<str>, Box<str>);

/// Whose connections count together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Holder {
    User(Box<str>),
    Database(Box<str>),
}

/// What all pools share.
struct SharedByPools {
    links: Box<[Arc<NodeLink>]>,
    workers: usize,
    quotas: Mutex<HashMap<(Holder, NodeId), Weak<Quota>>>,
}

impl SharedByPools {
    fn pool(&self, login: &Arc<Login>, node: NodeId) -> Arc<Pool> {
        let link = &self.links[node.index()];
        let quotas = Quotas {
            user: self.quota(Holder::User(login.user.clone()), node),
            database: self.quota(Holder::Database(login.database.clone()), node),
            node: Arc::clone(&link.quota),
        };
        Arc::new(Pool::new(Arc::clone(login), Arc::clone(link), quotas, self.workers))
    }

    /// What all pools of one user, or to one database, count towards at a node.
    fn quota(&self, holder: Holder, node: NodeId) -> Arc<Quota> {
        let mut quotas = self.quotas.lock();
        quotas.retain(|_, quota| quota.strong_count() > 0);
        if let Some(known) = quotas.get(&(holder.clone(), node)).and_then(Weak::upgrade) {
            return known;
        }
        let quota = Arc::default();
        quotas.insert((holder, node), Arc::downgrade(&quota));
        quota
    }
}

/// All pools of the proxy.
pub struct Pools {
    shared: Arc<SharedByPools>,
    tls: NodeTlsConnector,
    limits: Arc<ArcSwap<config::Pool>>,
    by_principal: Mutex<HashMap<Principal, Arc<PrincipalPools>>>,
    /// Identities of prepared statements.
    pub statements: PreparedRegistry,
}

impl Pools {
    /// No connections yet, towards the nodes of `book`.
    pub fn new(book: &Book, tls: NodeTlsConnector, limits: config::Pool, workers: usize) -> Pools {
        let ids = (0..).map(NodeId).take(PLACES);
        Pools {
            shared: Arc::new(SharedByPools {
                links: ids.map(|id| Arc::new(NodeLink::new(id, book.clone()))).collect(),
                workers,
                quotas: Mutex::default(),
            }),
            tls,
            limits: Arc::new(ArcSwap::from_pointee(limits)),
            by_principal: Mutex::default(),
            statements: PreparedRegistry::default(),
        }
    }

    /// The pools of a client that has proven who it is. Its secret, if it has shown one, is what new connections log in with.
    pub fn of(&self, database: &str, user: &str, secret: Option<NodeSecret>) -> Arc<PrincipalPools> {
        let mut by_principal = self.by_principal.lock();
        let key = (Box::from(database), Box::from(user));
        if let Some(known) = by_principal.get(&key) {
            if secret.is_some() {
                *known.login.secret.lock() = secret;
            }
            return Arc::clone(known);
        }
        let login = Arc::new(Login {
            database: database.into(),
            user: user.into(),
            secret: Mutex::new(secret),
            tls: self.tls.clone(),
            limits: Arc::clone(&self.limits),
        });
        let pools = Arc::new(PrincipalPools {
            login,
            by_node: (0..PLACES).map(|_| OnceLock::new()).collect(),
            shared: Arc::clone(&self.shared),
            welcomes: Mutex::default(),
        });
        by_principal.insert(key, Arc::clone(&pools));
        pools
    }

    /// A node's link.
    pub fn link(&self, node: NodeId) -> &Arc<NodeLink> {
        &self.shared.links[node.index()]
    }

    /// New limits, from a reloaded configuration. Pools that are larger shrink as connections come back.
    pub fn set_limits(&self, limits: config::Pool) {
        self.limits.store(Arc::new(limits));
    }

    /// Cuts every connection to `node`: it is no longer what it was. Answers how many there were.
    pub fn cut(&self, node: NodeId) -> usize {
        let cut = self.link(node).cut();
        let now = Instant::now();
        for pools in self.snapshot() {
            pools.forget_welcomes();
            pools.at(node).reap(now);
        }
        cut
    }

    /// Another node has this place now: what was counted of the one before is not its own.
    pub fn replace(&self, node: NodeId) {
        self.link(node).forget();
    }

    /// What sessions begin with may have changed: connections that were opened before `now` are used no more once they are free.
    pub fn renew(&self, now: Instant) {
        for pools in self.snapshot() {
            pools.renew(now);
        }
    }

    /// A database is to be dropped, renamed or copied, which the server refuses while anybody else is connected to it: no idle connection
    /// shall stand in the way.
    pub fn leave_database(&self, name: &str, now: Instant) {
        for pools in self.snapshot().iter().filter(|pools| *pools.login.database == *name) {
            pools.renew(now);
        }
    }

    /// One sweep over idle connections. Pools that nobody uses and that hold nothing are forgotten, so that clients who try many
    /// names don't leave them behind.
    pub fn reap(&self, now: Instant) {
        for pools in self.snapshot() {
            for pool in pools.iter() {
                pool.reap(now);
            }
        }
        self.by_principal
            .lock()
            .retain(|_, pools| Arc::strong_count(pools) > 1 || pools.iter().any(|pool| pool.occupancy() != (0, 0)));
    }

    /// Idle and busy connections to `node`, and clients that wait for one.
    pub fn occupancy(&self, node: NodeId) -> (usize, usize, usize) {
        self.snapshot().iter().fold((0, 0, 0), |(idle, busy, waiting), pools| {
            let pool = pools.at(node);
            let (more_idle, more_busy) = pool.occupancy();
            (idle + more_idle, busy + more_busy, waiting + pool.waiting())
        })
    }

    /// The pools of every database and user that there are now.
    pub fn snapshot(&self) -> Vec<Arc<PrincipalPools>> {
        self.by_principal.lock().values().cloned().collect()
    }
}
