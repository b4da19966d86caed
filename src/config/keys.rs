//! Every key that a configuration may have, in one table: what it takes, what it is when left out, and what it means.
//!
//! Reading, the suggestions for misspelled keys, the environment's variables, the manual and the sample file all stand on it.

use std::time::Duration;

use super::{AuthMethod, Consistency, PoolMode, Promote, ReadFromPrimary, RoutePreference, RoutingMode, SslMode};

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Section and name, as `routing.max_lag`. Those of [`LISTS`] stand in each `[[cluster.node]]` table, for one.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is when left out.
    pub default: Unset,
    /// For the manual.
    pub meaning: &'static str,
}

/// What a key takes.
#[derive(Debug)]
pub enum Kind {
    /// A text.
    Text,
    /// A text that is never shown.
    Secret,
    /// `host:port`.
    Address,
    /// A list of `host:port`.
    Addresses,
    /// A list of texts.
    Texts,
    /// The path of a file that must be there.
    File,
    /// The path of a file that may appear later.
    FutureFile,
    /// `true` or `false`.
    Flag,
    /// A whole number in a range.
    Count(u64, u64),
    /// A duration in a range.
    Span(Duration, Duration),
    /// One of these names; the others are known but not supported yet, for the reason given.
    Choice {
        /// Supported.
        names: &'static [&'static str],
        /// Not yet.
        not_yet: &'static [(&'static str, &'static str)],
    },
}

/// What a key is when left out.
#[derive(Debug)]
pub enum Unset {
    /// This text, read as if it had been written.
    Is(&'static str),
    /// Not a fixed value: this says which.
    Means(&'static str),
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

use Kind::{Address, Addresses, Choice, Count, File, Flag, FutureFile, Secret, Span, Text, Texts};
use Unset::{Is, Means};

macro_rules! keys {
    ($($path:literal: $kind:expr, $default:expr, $meaning:literal;)*) => {
        /// All keys, in the manual's order.
        pub const KEYS: &[Key] = &[$(Key { path: $path, kind: $kind, default: $default, meaning: $meaning }),*];
    };
}

keys! {
    "listen.addresses": Addresses, Is("127.0.0.1:5432"),
        "Where clients connect. `*:5432` is every IPv4 address, `[::]:5432` every address; port 0 lets the kernel choose.";
    "listen.max_clients": Count(1, 1_000_000), Is("10000"),
        "Clients at once; the next one is refused with 53300.";
    "listen.threads": Count(1, 1024), Means("one per CPU"),
        "Worker threads.";
    "listen.login_timeout": Span(SECOND, HOUR), Is("30s"),
        "How long a client may take to log in.";
    "listen.drain_timeout": Span(Duration::ZERO, HOUR), Is("30s"),
        "On SIGTERM, how long running transactions may take to end.";
    "listen.tls.cert": File, Means("no TLS"),
        "Certificate chain shown to clients, PEM.";
    "listen.tls.key": File, Means("no TLS"),
        "Its private key, PEM.";
    "listen.tls.required": Flag, Is("false"),
        "Refuse clients that don't encrypt (28000).";

    "cluster.nodes": Addresses, Means("none; needed unless there are `[[cluster.node]]` tables or `[cluster.discovery]`"),
        "The primary and its standbys, in any order: who is what is found out.";
    "cluster.state_file": FutureFile, Means("nothing is kept"),
        "Where the highest timeline seen survives a restart, so that an old primary that comes back alone is not believed.";
    "cluster.tls.mode": Choice { names: SslMode::NAMES, not_yet: &[] }, Is("prefer"),
        "How connections to the nodes are encrypted, as libpq's `sslmode`.";
    "cluster.tls.root_cert": File, Means("the system's store"),
        "Certificates that the nodes' are checked against, PEM.";
    "cluster.tls.cert": File, Means("none"),
        "Client certificate chain shown to the nodes, PEM.";
    "cluster.tls.key": File, Means("none"),
        "Its private key, PEM.";

    "cluster.discovery.dns": Addresses, Means("none"),
        "Names in DNS, each with a port: every address that a name has is a node.";
    "cluster.discovery.patroni": Texts, Means("none"),
        "URLs of Patroni's REST API, such as `http://db1:8008`. One is enough: the members that it names are asked as well.";
    "cluster.discovery.patroni_root_cert": File, Means("the system's store"),
        "Certificates that Patroni's are checked against where a URL is `https`, PEM.";
    "cluster.discovery.patroni_user": Text, Means("no login"),
        "As whom a switchover is asked of Patroni (its `restapi.authentication.username`). Finding nodes takes no login.";
    "cluster.discovery.patroni_password": Secret, Means("none"),
        "Its password.";
    "cluster.discovery.patroni_password_file": File, Means("none"),
        "A file that holds the password, instead.";
    "cluster.discovery.from_primary": Flag, Is("false"),
        "Ask the nodes for their standbys (`pg_stat_replication`) and for the server that they follow. `monitor.user` needs `pg_monitor` for it.";
    "cluster.discovery.standby_port": Count(1, 65_535), Means("that of the server that lists it"),
        "Port of standbys whose `application_name` isn't their `host:port`.";
    "cluster.discovery.forget_after": Span(SECOND, YEAR), Is("10min"),
        "A standby found so is forgotten when no primary has listed it for so long and it doesn't answer.";
    "cluster.discovery.kubernetes.service": Text, Means("none"),
        "Service whose endpoints are the nodes, ready or not.";
    "cluster.discovery.kubernetes.namespace": Text, Means("the pod's own"),
        "Its namespace.";
    "cluster.discovery.kubernetes.port": Text, Means("the only one, or the one called `postgresql`"),
        "Name or number of its port.";
    "cluster.discovery.kubernetes.api": Text, Means("the pod's own"),
        "URL of the API server.";
    "cluster.discovery.kubernetes.account": FutureFile, Is("/var/run/secrets/kubernetes.io/serviceaccount"),
        "Folder with the service account's `token`, `ca.crt` and `namespace`. The account must be allowed to list and watch `endpointslices`.";
    "cluster.discovery.interval": Span(Duration::from_millis(100), HOUR), Is("2s"),
        "Time between two questions to a source.";

    "cluster.node.address": Address, Means("none; needed"),
        "Where the node listens.";
    "cluster.node.name": Text, Means("its address"),
        "What logs, metrics and the status page call it.";
    "cluster.node.weight": Count(0, 1000), Is("1"),
        "Its share of reads relative to its peers'; 0 takes none.";

    "monitor.user": Text, Is("postgres"),
        "Role that asks each node what it is. It needs LOGIN, and EXECUTE on `pg_promote()` where pgsluice promotes.";
    "monitor.password": Secret, Means("none"),
        "Its password.";
    "monitor.password_file": File, Means("none"),
        "A file that holds the password, instead.";
    "monitor.database": Text, Is("postgres"),
        "Database that it connects to.";
    "monitor.interval": Span(Duration::from_millis(10), HOUR), Is("250ms"),
        "Time between two readings of a node. Replay lag is known to this precision.";
    "monitor.timeout": Span(Duration::from_millis(10), HOUR), Is("1s"),
        "A node whose answer takes longer counts as unreachable.";
    "monitor.idle_interval": Span(Duration::from_millis(10), HOUR), Is("5s"),
        "The interval while no client sends anything; at least `interval`.";

    "auth.method": Choice {
        names: AuthMethod::NAMES,
        not_yet: &[("cert", "client certificates don't log in"), ("hba", "pg_hba.conf files are not read")],
    }, Means("`trust` if only this machine can connect, otherwise needed"),
        "How clients prove who they are.";
    "auth.users": File, Means("none; needed for `scram-sha-256` and `md5`"),
        "Users and their secrets, a line `\"user\" \"secret\"` each.";

    "pool.mode": Choice {
        names: PoolMode::NAMES,
        not_yet: &[],
    }, Is("transaction"),
        "When a server connection goes back: at the end of each transaction; when the client leaves; or after each statement, which allows no transaction blocks.";
    "pool.size": Count(1, 100_000), Is("20"),
        "Server connections per node, database and user.";
    "pool.max_per_node": Count(1, 100_000), Means("no limit"),
        "Server connections per node over all pools. Keep it below the node's `max_connections`.";
    "pool.max_per_user": Count(1, 100_000), Means("no limit"),
        "Server connections per node of one user, over all databases.";
    "pool.max_per_database": Count(1, 100_000), Means("no limit"),
        "Server connections per node to one database, of all users.";
    "pool.overflow": Count(1, 100_000), Means("half of `size`"),
        "Connections to the primary that reads may take up at once, in each pool, because no standby is fit or fresh enough: the rest is for writes. Without standbys there is no such limit.";
    "pool.checkout_timeout": Span(MS, HOUR), Is("30s"),
        "A statement that gets no server connection for this long fails with 53300.";
    "pool.idle_timeout": Span(SECOND, YEAR), Is("10min"),
        "A server connection unused for this long is closed.";
    "pool.max_lifetime": Span(SECOND, YEAR), Is("1h"),
        "A server connection older than this is closed when it comes back.";
    "pool.connect_timeout": Span(MS, HOUR), Is("5s"),
        "Connecting and logging in to a node may take this long.";
    "pool.query_timeout": Span(Duration::ZERO, YEAR), Is("0ms"),
        "A statement that runs for longer on its server is cancelled there (57014). `0ms` is no limit.";
    "pool.idle_in_transaction_timeout": Span(Duration::ZERO, YEAR), Is("0ms"),
        "A client that leaves its transaction block waiting for longer is disconnected (25P03), and the block is rolled back. `0ms` is no limit.";
    "pool.client_idle_timeout": Span(Duration::ZERO, YEAR), Is("0ms"),
        "A client outside a block that asks for nothing for longer is disconnected (57P05). `0ms` is no limit.";

    "routing.mode": Choice { names: RoutingMode::NAMES, not_yet: &[] }, Is("split"),
        "Whether reads go to standbys, or everything goes to the primary and what would have gone to a standby is only counted.";
    "routing.consistency": Choice { names: Consistency::NAMES, not_yet: &[] }, Is("read_your_writes"),
        "What a read on a standby must see. A session can choose its own with `SET pgsluice.consistency`.";
    "routing.max_lag": Span(MS, YEAR), Is("10s"),
        "A standby that lags further gets no reads.";
    "routing.wait_for_standby": Span(Duration::ZERO, HOUR), Is("0ms"),
        "How long a read waits for a standby to catch up before it goes to the primary.";
    "routing.read_from_primary": Choice { names: ReadFromPrimary::NAMES, not_yet: &[] }, Is("fallback"),
        "Whether the primary takes reads: never, when no standby is fit, or also when some are.";
    "routing.defer_begin": Flag, Is("false"),
        "Start plain transactions on a standby and move them at their first write. Only `false` is supported so far.";
    "routing.read_only_functions": Texts, Means("none"),
        "Functions of your own that are VOLATILE and yet only read, where their text doesn't show it, as `name` or `schema.name`: calls of them may go to standbys.";
    "routing.catalog_refresh": Span(SECOND, YEAR), Is("1min"),
        "How long a change to functions, views and types that was made past pgsluice may go unnoticed. What goes through it is noticed at once.";
    "routing.balancer": Choice { names: &["power_of_two_choices"], not_yet: &[] }, Is("power_of_two_choices"),
        "How one of several fit standbys is chosen.";

    "routing.default.user": Text, Means("any"),
        "Sessions of this user.";
    "routing.default.database": Text, Means("any"),
        "Sessions in this database.";
    "routing.default.consistency": Choice { names: Consistency::NAMES, not_yet: &[] }, Means("`routing.consistency`"),
        "What their reads must see, until they `SET pgsluice.consistency`.";
    "routing.default.route": Choice { names: RoutePreference::NAMES, not_yet: &[] }, Means("`auto`"),
        "Where their reads go, until they `SET pgsluice.route`.";

    "failover.trigger_file": FutureFile, Means("none"),
        "The file whose appearance asks for a promotion.";
    "failover.promote": Choice { names: Promote::NAMES, not_yet: &[] }, Is("auto"),
        "Whether pgsluice then calls `pg_promote()`, or waits for the server or an HA manager to do it. With `cluster.discovery.patroni` it asks Patroni instead.";
    "failover.candidate": Text, Means("the most advanced standby"),
        "Name of the node to promote.";
    "failover.hold_timeout": Span(Duration::ZERO, HOUR), Is("10s"),
        "How long a statement that needs a primary waits for one; then it fails with 57P03.";
    "failover.stale_reads": Text, Means("`routing.max_lag`"),
        "How old what standbys answer may be while there is no primary: a duration, `allow` (any age), or `deny` (reads wait).";
    "failover.switchover_timeout": Span(Duration::ZERO, HOUR), Is("5s"),
        "How long a switchover waits for transactions under way, before it ends them; at most half of `hold_timeout`.";
    "failover.hold_max": Count(0, 1_000_000), Is("1000"),
        "Statements that may wait so at once; the next one fails with 57P03 without waiting.";

    "admin.http": Address, Is("127.0.0.1:9432"),
        "Where `/metrics`, `/livez`, `/readyz`, `/status` and the status page are served, or `off`.";
    "admin.database": Text, Is("pgsluice"),
        "The name by which clients reach the admin console instead of a database. A database that is really called so needs another name here.";
    "admin.users": Texts, Means("none"),
        "Who may use the admin console. They log in to it as to a database; with `auth.method = \"trust\"` anybody can claim to be one of them.";
}

/// The list of nodes.
pub(super) const NODE: &str = "cluster.node";
/// The list of defaults for some sessions.
pub(super) const DEFAULT: &str = "routing.default";
/// Sections that are lists of tables.
pub const LISTS: [&str; 2] = [NODE, DEFAULT];

/// Sections inside of others that the manual tells of by themselves.
pub const SUBSECTIONS: [&str; 1] = ["cluster.discovery"];

/// The list of this path.
pub(super) fn list(path: &str) -> Option<&'static str> {
    LISTS.into_iter().find(|list| *list == path)
}

/// Keys that the manual's readers may expect, and why they are refused.
pub(super) const NOT_YET: &[(&str, &str)] = &[
    ("auth.auth_query", "users are read from a file"),
    ("cluster.node.zone", "reads are not placed by zone"),
];

/// The key with this path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether some key's path goes through this one, as `listen` and `listen.tls`.
pub(super) fn is_section(path: &str) -> bool {
    KEYS.iter()
        .any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

impl Key {
    /// The environment's variable for it; none for what stands in a list of tables.
    pub fn variable(&self) -> Option<String> {
        match self.path {
            path if LISTS
                .iter()
                .any(|list| path.strip_prefix(list).is_some_and(|rest| rest.starts_with('.'))) =>
            {
                None
            }
            "listen.addresses" => Some("PGSLUICE_LISTEN".to_owned()),
            "cluster.nodes" => Some("PGSLUICE_NODES".to_owned()),
            "failover.trigger_file" => Some("PGSLUICE_TRIGGER_FILE".to_owned()),
            "admin.http" => Some("PGSLUICE_HTTP".to_owned()),
            path => Some(format!("PGSLUICE_{}", path.replace('.', "_").to_uppercase())),
        }
    }
}

/// What to write instead of a key that there isn't: the nearest in its own section, else in the others.
pub(super) fn suggestion(path: &str) -> Option<String> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let siblings = names_in(section);
    if let Some(sibling) = nearest(name, siblings.iter().copied()) {
        return Some(format!("did you mean `{sibling}`?"));
    }
    let elsewhere = KEYS
        .iter()
        .find(|key| key.path.rsplit_once('.').is_some_and(|(_, leaf)| leaf == name));
    match elsewhere.and_then(|key| key.path.rsplit_once('.')) {
        Some((section, leaf)) => Some(format!("`{leaf}` belongs in [{section}]")),
        None if siblings.is_empty() => None,
        None => Some(format!("there are {}", quoted(&siblings))),
    }
}

/// The candidate that a misspelling most likely stands for.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(&name.to_lowercase(), candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.85)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

/// `a`, `b`, `c`: for a message.
pub(super) fn quoted(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Keys and sections right below a section (below the whole file for "").
fn names_in(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = KEYS
        .iter()
        .filter_map(|key| match section {
            "" => Some(key.path),
            _ => key.path.strip_prefix(section)?.strip_prefix('.'),
        })
        .filter_map(|rest| rest.split('.').next())
        .collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_key_gets_the_nearest_one() {
        for (path, expected) in [
            ("routing.max_lga", Some("did you mean `max_lag`?")),
            ("routing.maxlag", Some("did you mean `max_lag`?")),
            ("routing.Consistency", Some("did you mean `consistency`?")),
            ("routng", Some("did you mean `routing`?")),
            ("listen.tls.certificate", Some("did you mean `cert`?")),
            ("listen.hold_max", Some("`hold_max` belongs in [failover]")),
            ("auth.zzz", Some("there are `method`, `users`")),
        ] {
            assert_eq!(suggestion(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn variables_are_unique_and_named_by_a_rule() {
        let variables: Vec<String> = KEYS.iter().filter_map(Key::variable).collect();
        assert!(
            variables
                .iter()
                .all(|name| variables.iter().filter(|other| *other == name).count() == 1)
        );
        for name in [
            "PGSLUICE_LISTEN",
            "PGSLUICE_NODES",
            "PGSLUICE_MONITOR_PASSWORD",
            "PGSLUICE_ROUTING_MAX_LAG",
        ] {
            assert!(variables.iter().any(|variable| variable == name), "{name}");
        }
    }
}
