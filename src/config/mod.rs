//! The configuration as it is meant: parsed, checked and immutable.
//!
//! `keys` is the table of all keys. `file` takes the TOML apart as it is written and lays `overrides` (flags, environment) over
//! it, `reader` reads single values, `check` makes a [`Config`] of them or says all that is wrong, by line and with a suggestion.
//! `units` reads durations and addresses, `choices` names, `discovery` a section of its own. Nothing outside this folder sees the file's own shape, and nothing in
//! a [`Config`] needs checking again.

mod check;
mod choices;
mod discovery;
mod file;
pub mod keys;
mod overrides;
mod problem;
mod reader;
mod units;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub use discovery::{ApiUrl, Discovery, Kubernetes, Patroni, PatroniLogin, Servers};
pub use overrides::{Environment, Overrides};
pub use problem::{ConfigErrors, Place, Problem};

/// Nodes that a cluster may have.
pub const MAX_NODES: usize = 64;

/// All of one proxy's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[listen]`
    pub listen: Listen,
    /// `[cluster]`
    pub cluster: Cluster,
    /// `[monitor]`
    pub monitor: Monitor,
    /// `[auth]`
    pub auth: Auth,
    /// `[pool]`
    pub pool: Pool,
    /// `[routing]`
    pub routing: Routing,
    /// `[failover]`
    pub failover: Failover,
    /// `[admin]`
    pub admin: Admin,
}

impl Config {
    /// Reads and checks a file. Relative paths in it start from its folder.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Config, ConfigErrors> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&text, &name, overrides),
            Err(error) => Err(ConfigErrors::new(vec![Problem {
                place: Place::Whole(name.into()),
                key: String::new(),
                message: format!("can't be read: {error}"),
                suggestion: None,
            }])),
        }
    }

    /// Checks a file's text. `source_name` is the file's path: problems are told with it, and relative paths start from its
    /// folder.
    pub fn parse(text: &str, source_name: &str, overrides: &Overrides) -> Result<Config, ConfigErrors> {
        let mut document =
            file::Document::parse(text, source_name).map_err(|problem| ConfigErrors::new(vec![problem]))?;
        document.apply(overrides);
        check::check(document, Path::new(source_name).parent().unwrap_or(Path::new("")))
    }

    /// Without a file. Relative paths start from the working directory.
    pub fn from_overrides(overrides: &Overrides) -> Result<Config, ConfigErrors> {
        let mut document = file::Document::empty("settings");
        document.apply(overrides);
        check::check(document, Path::new(""))
    }
}

/// What `pgsluice check-config` says of a file, and its exit code: 0 and a summary for standard output, or 2 and the
/// problems, one a line, for standard error.
pub fn check_config(path: &Path, overrides: &Overrides) -> (String, i32) {
    match Config::load(path, overrides) {
        Ok(config) => (format!("{}: {}", path.display(), config.summary()), 0),
        Err(errors) => (errors.to_string(), 2),
    }
}

impl Config {
    /// One line that shows an operator what was understood.
    fn summary(&self) -> String {
        let listen: Vec<String> = self.listen.addresses.iter().map(ToString::to_string).collect();
        let mut nodes: Vec<String> = self.cluster.nodes.iter().map(|node| node.name.clone()).collect();
        let sources = self.cluster.discovery.names();
        nodes.extend(sources.into_iter().map(|source| format!("those from {source}")));
        format!(
            "ok: listens on {} ({}), nodes {}, {} pools of {}, {} reads up to {} of lag",
            listen.join(", "),
            self.auth.method.name(),
            nodes.join(", "),
            self.pool.mode.name(),
            self.pool.size,
            self.routing.consistency.name(),
            units::show_duration(self.routing.max_lag),
        )
    }
}

/// Where clients connect, and how many may.
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// TCP addresses to listen on; `localhost:5432` has been resolved.
    pub addresses: Vec<SocketAddr>,
    /// Clients at once, over all addresses; the next one gets 53300.
    pub max_clients: usize,
    /// Worker threads, each a runtime of its own. Never 0.
    pub threads: usize,
    /// From the first byte to the end of authentication.
    pub login_timeout: Duration,
    /// On SIGTERM, how long running transactions may take to end.
    pub drain_timeout: Duration,
    /// TLS towards clients; `None` answers SSLRequest with `N`.
    pub tls: Option<ListenTls>,
}

/// `[listen.tls]`
#[derive(Debug, Clone, PartialEq)]
pub struct ListenTls {
    /// PEM certificate chain.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    /// Refuse clients that don't encrypt (28000).
    pub required: bool,
}

/// The nodes of the one cluster that this proxy fronts.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// In the order of the file, which is also the order of `NodeId`s. Empty only where [`Cluster::discovery`] finds the first;
    /// addresses and names are unique.
    pub nodes: Vec<NodeConfig>,
    /// Where more of them are found.
    pub discovery: Discovery,
    /// Where the highest timeline seen survives a restart of the proxy.
    pub state_file: Option<PathBuf>,
    /// TLS towards the nodes.
    pub tls: NodeTls,
}

/// One server.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeConfig {
    /// Its address.
    pub address: NodeAddress,
    /// What logs, metrics and the status page call it; the address as text unless configured.
    pub name: String,
    /// Share of reads relative to its peers, 1 unless configured; 0 takes no reads.
    pub weight: u32,
}

impl NodeConfig {
    /// Whether a text can be a node's name: names stand in labels, logs and commands, unquoted.
    pub fn is_name(text: &str) -> bool {
        let fits = |c: char| c.is_ascii_alphanumeric() || ".:_-[]".contains(c);
        !text.is_empty() && text.len() <= 64 && text.chars().all(fits)
    }
}

/// A host (a name, an IPv4 or an IPv6 address without brackets) and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeAddress {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl NodeAddress {
    /// A host that can be connected to, without brackets, and a port; `None` if it isn't one.
    pub fn new(host: &str, port: u16) -> Option<NodeAddress> {
        let address = NodeAddress {
            host: host.to_owned(),
            port,
        };
        address.to_string().parse().ok().filter(|parsed| *parsed == address)
    }

    /// Whether connecting to it would reach this listening address, as far as can be told without asking DNS.
    pub fn reaches(&self, listening: SocketAddr) -> bool {
        let same_host = match self.host.parse::<IpAddr>() {
            Ok(ip) => ip == listening.ip() || (ip.is_loopback() && listening.ip().is_unspecified()),
            Err(_) => self.host == "localhost" && (listening.ip().is_loopback() || listening.ip().is_unspecified()),
        };
        self.port == listening.port() && same_host
    }
}

/// The text isn't the address of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address like db1:5432")]
pub struct BadAddress(String);

impl FromStr for NodeAddress {
    type Err = BadAddress;

    /// Reads `host:port`, with an IPv6 address in brackets, as it stands in the file.
    fn from_str(text: &str) -> Result<NodeAddress, BadAddress> {
        check::node_address(text).map_err(|_| BadAddress(text.chars().take(200).collect()))
    }
}

/// libpq's `sslmode` (manual, "SSL Support", table 34.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslMode {
    /// Never encrypt.
    Disable,
    /// Encrypt only if the server refuses plain connections. pgsluice treats it as `prefer`, which encrypts at least as often.
    Allow,
    /// Encrypt if the server can.
    #[default]
    Prefer,
    /// Encrypt or fail; the certificate isn't checked unless `root_cert` is set (then as `verify-ca`), as libpq does.
    Require,
    /// Encrypt, and check the certificate's chain.
    VerifyCa,
    /// Encrypt, and check the chain and the host name.
    VerifyFull,
}

/// `[cluster.tls]`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeTls {
    /// libpq's name for how much TLS is asked for.
    pub mode: SslMode,
    /// Trusted roots, PEM. `None` with a `verify-…` mode means the system's store.
    pub root_cert: Option<PathBuf>,
    /// Client certificate chain and key, PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// How the monitor logs in to each node.
#[derive(Debug, Clone, PartialEq)]
pub struct Monitor {
    /// Role; needs no more than LOGIN (and `pg_monitor` to see `received_tli`).
    pub user: String,
    /// Its password, if the node asks for one.
    pub password: Option<Secret>,
    /// Database to connect to.
    pub database: String,
    /// Time between two readings of a node.
    pub interval: Duration,
    /// A reading that takes longer counts as unreachable.
    pub timeout: Duration,
    /// The interval when no client has sent a statement for a while.
    pub idle_interval: Duration,
}

/// A password: never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How clients prove who they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    /// For every client.
    pub method: AuthMethod,
    /// The users file (see `auth::userlist`), read at start and on reload.
    pub users: Option<PathBuf>,
}

/// Client authentication methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// Believe the user name. Only for sockets that only the application can reach.
    Trust,
    /// RFC 5802 and 7677.
    ScramSha256,
    /// PostgreSQL's md5 challenge.
    Md5,
}

/// Server connections: one pool per node, database and user.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// When a server connection goes back.
    pub mode: PoolMode,
    /// Connections per node, database and user.
    pub size: usize,
    /// Connections per node over all pools; `None` is no limit.
    pub max_per_node: Option<usize>,
    /// Server connections per node of one user.
    pub max_per_user: Option<usize>,
    /// Server connections per node to one database.
    pub max_per_database: Option<usize>,
    /// Connections to the primary that reads may have which find no standby.
    pub overflow: usize,
    /// A client that gets no connection for this long gets 53300.
    pub checkout_timeout: Duration,
    /// An unused connection is closed after this.
    pub idle_timeout: Duration,
    /// A connection older than this is closed when it comes back.
    pub max_lifetime: Duration,
    /// TCP connect, TLS and login to a node.
    pub connect_timeout: Duration,
    /// A statement that runs for longer is cancelled. `None` is no limit, here and below.
    pub query_timeout: Option<Duration>,
    /// A client that leaves its block waiting for longer is disconnected.
    pub idle_in_transaction_timeout: Option<Duration>,
    /// A client outside a block that asks for nothing for longer is disconnected.
    pub client_idle_timeout: Option<Duration>,
}

/// Pool modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// A connection is the client's for a transaction.
    Transaction,
    /// A connection, to the primary, is the client's until it leaves.
    Session,
    /// As `Transaction`, without transaction blocks.
    Statement,
}

/// How reads are placed.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// What a read must see.
    pub consistency: Consistency,
    /// A standby that lags further gets no reads.
    pub max_lag: Duration,
    /// How long a read waits for a standby that is fresh enough, before the primary takes it.
    pub wait_for_standby: Duration,
    /// When the primary takes reads.
    pub read_from_primary: ReadFromPrimary,
    /// What holds for some sessions instead; the first that fits, for each of its values.
    pub defaults: Vec<RoutingDefault>,
    /// Whether reads are spread.
    pub mode: RoutingMode,
    /// VOLATILE functions that only read: `schema.name`, or a name in any schema.
    pub read_only_functions: Vec<String>,
    /// How long a change to a database's functions and views that was made past the proxy may go unnoticed.
    pub catalog_refresh: Duration,
}

/// What holds for sessions of a user, in a database, or both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoutingDefault {
    /// Of this user; of any.
    pub user: Option<String>,
    /// In this database; in any.
    pub database: Option<String>,
    /// What their reads must see.
    pub consistency: Option<Consistency>,
    /// Where their reads go.
    pub route: Option<RoutePreference>,
}

impl Routing {
    /// What reads of such a session must see.
    pub fn consistency_for(&self, user: &str, database: &str) -> Consistency {
        self.first_for(user, database, |default| default.consistency)
            .unwrap_or(self.consistency)
    }

    /// Where reads of such a session go.
    pub fn route_for(&self, user: &str, database: &str) -> RoutePreference {
        self.first_for(user, database, |default| default.route)
            .unwrap_or_default()
    }

    fn first_for<T>(&self, user: &str, database: &str, value: impl Fn(&RoutingDefault) -> Option<T>) -> Option<T> {
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|wanted| wanted == name);
        let mut fitting = self.defaults.iter();
        fitting
            .find_map(|default| value(default).filter(|_| is(&default.user, user) && is(&default.database, database)))
    }
}

/// Where a session wants its reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoutePreference {
    /// Wherever the rules say.
    #[default]
    Auto,
    /// On the primary.
    Primary,
    /// On a standby, whatever it has of the session's writes; on the primary only if there is none.
    Standby,
}

/// Whether reads are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingMode {
    /// Reads go to standbys.
    Split,
    /// Everything goes to the primary, and what would have gone to a standby is counted.
    Observe,
}

/// Consistency levels, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Consistency {
    /// A standby below `max_lag` is good enough.
    Eventual,
    /// The session sees what it wrote.
    ReadYourWrites,
    /// Also, what the session has seen stays seen.
    Session,
    /// A read sees everything that was committed before it was sent.
    Linearizable,
}

/// When the primary takes reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFromPrimary {
    /// Not even when no standby is fit: the read waits, then fails with 57P03.
    Never,
    /// When no standby is fit.
    Fallback,
    /// As one more node among the standbys.
    Also,
}

/// What happens when the primary goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Failover {
    /// The file whose appearance asks for a promotion.
    pub trigger_file: Option<PathBuf>,
    /// Who promotes when it appears.
    pub promote: Promote,
    /// How long a statement that needs a primary waits for one.
    pub hold_timeout: Duration,
    /// How old reads may be while there is no primary.
    pub stale_reads: StaleReads,
    /// How long a switchover waits for transactions under way before it ends them; no longer than half of `hold_timeout`.
    pub switchover_timeout: Duration,
    /// Statements that may wait at once; the next one gets 57P03 at once.
    pub hold_max: usize,
    /// The node (by name) to promote; `None` is the most advanced standby.
    pub candidate: Option<String>,
}

/// What standbys may answer while there is no primary to compare them with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaleReads {
    /// Anything, however old it is.
    Allow,
    /// Nothing: reads wait like writes.
    Deny,
    /// What is no older than this.
    UpTo(Duration),
}

/// Who promotes when the trigger file appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promote {
    /// pgsluice calls `pg_promote()`.
    Auto,
    /// The server itself, or an HA manager; pgsluice waits for it.
    Never,
}

/// People and scrapers.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// `/metrics`, `/livez`, `/readyz`, `/status` and the status page; `None` (configured as "off") serves none.
    pub http: Option<SocketAddr>,
    /// The database that is the console.
    pub database: String,
    /// Who may use it.
    pub users: Vec<String>,
}
