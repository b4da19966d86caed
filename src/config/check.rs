//! From the configuration as written to the configuration as meant: sections that fit together, or all that is wrong.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::discovery::discovery;
use super::file::{Document, ListedTable};
use super::keys::{self, nearest, quoted};
use super::problem::{ConfigErrors, Place, Unfit};
use super::reader::Reader;
use super::units::{parse_address, parse_duration, parse_listen, show_duration};
use super::{
    Admin, Auth, AuthMethod, Cluster, Config, Consistency, Discovery, Failover, Listen, ListenTls, MAX_NODES, Monitor,
    NodeAddress, NodeConfig, NodeTls, Pool, PoolMode, Promote, ReadFromPrimary, RoutePreference, Routing,
    RoutingDefault, RoutingMode, Secret, SslMode, StaleReads,
};

/// Checks everything, whatever is found on the way. `folder` is where relative paths start.
pub(super) fn check(document: Document, folder: &Path) -> Result<Config, ConfigErrors> {
    let Document { whole, entries, tables } = document;
    let mut reader = Reader::new(entries, whole, folder);
    let listen = listen(&mut reader);
    let auth = auth(&mut reader, &listen.addresses);
    let (nodes, defaults): (Vec<_>, Vec<_>) = tables.into_iter().partition(|table| table.list == keys::NODE);
    let cluster = cluster(&mut reader, nodes, folder);
    let monitor = monitor(&mut reader);
    let routing = routing(&mut reader, &monitor, defaults, folder);
    let config = Config {
        pool: pool(&mut reader),
        failover: failover(&mut reader, &cluster, routing.max_lag),
        routing,
        admin: admin(&mut reader),
        listen,
        cluster,
        monitor,
        auth,
    };
    refuse_own_address(&mut reader, &config);
    let problems = reader.into_problems();
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigErrors::new(problems))
    }
}

fn listen(reader: &mut Reader<'_>) -> Listen {
    Listen {
        addresses: listen_addresses(reader),
        max_clients: reader.count("listen.max_clients"),
        threads: reader
            .count_if_set("listen.threads")
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        login_timeout: reader.duration("listen.login_timeout"),
        drain_timeout: reader.duration("listen.drain_timeout"),
        tls: listen_tls(reader),
    }
}

fn listen_addresses(reader: &mut Reader<'_>) -> Vec<SocketAddr> {
    const KEY: &str = "listen.addresses";
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let texts = reader.texts(KEY);
    if texts.is_empty() {
        reader.refuse(
            KEY,
            Unfit::new("must have an address").suggest("leave it out to listen on 127.0.0.1:5432"),
        );
    }
    for (place, text) in texts {
        match parse_listen(&text) {
            Ok(found)
                if found
                    .iter()
                    .any(|address| address.port() != 0 && addresses.contains(address)) =>
            {
                reader.refuse_at(place, KEY, Unfit::new(format!("{text:?} stands there twice")));
            }
            Ok(found) => addresses.extend(found),
            Err(unfit) => reader.refuse_at(place, KEY, unfit),
        }
    }
    addresses
}

fn listen_tls(reader: &mut Reader<'_>) -> Option<ListenTls> {
    let required = reader.flag("listen.tls.required");
    let pair = cert_and_key(reader, "listen.tls.cert", "listen.tls.key");
    if required && !reader.has("listen.tls.cert") {
        reader.refuse(
            "listen.tls.required",
            Unfit::new("needs a certificate").suggest("set listen.tls.cert and listen.tls.key"),
        );
    }
    pair.map(|(cert, key)| ListenTls { cert, key, required })
}

/// Both or none of two files.
fn cert_and_key(reader: &mut Reader<'_>, cert: &'static str, key: &'static str) -> Option<(PathBuf, PathBuf)> {
    let pair = (reader.file(cert), reader.file(key));
    match (reader.has(cert), reader.has(key)) {
        (true, false) => reader.refuse(cert, Unfit::new("needs its private key").suggest(format!("set {key}"))),
        (false, true) => reader.refuse(key, Unfit::new("needs its certificate").suggest(format!("set {cert}"))),
        (true, true) | (false, false) => {}
    }
    Some((pair.0?, pair.1?))
}

fn auth(reader: &mut Reader<'_>, addresses: &[SocketAddr]) -> Auth {
    let chosen = reader.choice_if_set("auth.method", AuthMethod::from_name);
    let users = reader.file("auth.users");
    let open = addresses.iter().find(|address| !address.ip().is_loopback());
    match (chosen, open) {
        (None, Some(open)) if !reader.has("auth.method") => reader.refuse(
            "auth.method",
            Unfit::new(format!(
                "must be set, since others than this machine can connect to {open}"
            ))
            .suggest("set \"scram-sha-256\" with a users file, or \"trust\" to let in whoever can connect"),
        ),
        (Some(AuthMethod::ScramSha256 | AuthMethod::Md5), _) if !reader.has("auth.users") => {
            reader.refuse(
                "auth.method",
                Unfit::new("needs a file of users").suggest("set auth.users"),
            );
        }
        _ => {}
    }
    Auth {
        method: chosen.unwrap_or(AuthMethod::Trust),
        users,
    }
}

fn cluster(reader: &mut Reader<'_>, tables: Vec<ListedTable>, folder: &Path) -> Cluster {
    let discovery = discovery(reader);
    Cluster {
        nodes: nodes(reader, tables, &discovery, folder),
        discovery,
        state_file: reader.file("cluster.state_file"),
        tls: NodeTls {
            mode: reader.choice("cluster.tls.mode", SslMode::from_name),
            root_cert: reader.file("cluster.tls.root_cert"),
            client: cert_and_key(reader, "cluster.tls.cert", "cluster.tls.key"),
        },
    }
}

fn nodes(reader: &mut Reader<'_>, tables: Vec<ListedTable>, discovery: &Discovery, folder: &Path) -> Vec<NodeConfig> {
    const KEY: &str = "cluster.nodes";
    if !tables.is_empty() && reader.has(KEY) {
        reader.refuse(
            KEY,
            Unfit::new("stands beside [[cluster.node]] tables").suggest("keep one of the two"),
        );
    }
    let mut nodes = Vec::new();
    let listed = reader.texts(KEY);
    if listed.is_empty() && tables.is_empty() && !discovery.finds_first_node() {
        let unfit = Unfit::new(if discovery.is_empty() {
            "must name at least one node"
        } else {
            "must name at least one node, to ask it for the others"
        });
        reader.refuse(
            KEY,
            unfit.suggest("write nodes = [\"127.0.0.1:15432\"], or give --node or PGSLUICE_NODES"),
        );
    }
    for (place, text) in listed {
        match node_address(&text) {
            Ok(address) => nodes.push((
                place,
                NodeConfig {
                    name: address.to_string(),
                    address,
                    weight: 1,
                },
            )),
            Err(unfit) => reader.refuse_at(place, KEY, unfit),
        }
    }
    for table in tables {
        let place = table.place.clone();
        let mut inner = Reader::new(table.entries, table.place, folder);
        nodes.extend(node(&mut inner).map(|node| (place, node)));
        reader.add_problems(inner.into_problems());
    }
    if let Some((place, _)) = nodes.get(MAX_NODES) {
        let unfit = Unfit::new(format!("names {} nodes, and {MAX_NODES} is the most", nodes.len()));
        reader.refuse_at(place.clone(), KEY, unfit);
    }
    refuse_twins(reader, &nodes);
    nodes.into_iter().map(|(_, node)| node).collect()
}

/// One `[[cluster.node]]` table.
fn node(reader: &mut Reader<'_>) -> Option<NodeConfig> {
    const ADDRESS: &str = "cluster.node.address";
    let text = reader.text(ADDRESS);
    if text.is_none() && !reader.has(ADDRESS) {
        reader.refuse(
            ADDRESS,
            Unfit::new("is missing").suggest("write address = \"127.0.0.1:15432\""),
        );
    }
    let address = text.and_then(|text| node_address(&text).map_err(|unfit| reader.refuse(ADDRESS, unfit)).ok());
    let name = reader.text("cluster.node.name");
    if let Some(name) = name.as_ref().filter(|name| !NodeConfig::is_name(name)) {
        let unfit = Unfit::new(format!("{name:?} can't be a name"));
        reader.refuse(
            "cluster.node.name",
            unfit.suggest("use up to 64 letters, digits and any of . : _ - [ ]"),
        );
    }
    let weight = reader.count("cluster.node.weight");
    let address = address?;
    Some(NodeConfig {
        name: name.unwrap_or_else(|| address.to_string()),
        address,
        weight: u32::try_from(weight).expect("the table's range ends at 1000"),
    })
}

pub(super) fn node_address(text: &str) -> Result<NodeAddress, Unfit> {
    let address = parse_address(text)?;
    match (address.port, address.host.contains('*')) {
        (0, _) => Err(Unfit::new(format!("{text:?} has the port 0")).suggest("a node's port is from 1 to 65535")),
        (_, true) => Err(Unfit::new(format!("{text:?} has no host that can be connected to"))),
        (_, false) => Ok(address),
    }
}

/// One server under two names would be counted, and elected, twice.
fn refuse_twins(reader: &mut Reader<'_>, nodes: &[(Place, NodeConfig)]) {
    let (mut addresses, mut names) = (HashMap::new(), HashMap::new());
    for (place, node) in nodes {
        if let Some(first) = addresses.insert(&node.address, place) {
            let unfit = Unfit::new(format!("{} stands there twice{}", node.address, first_line(first)));
            reader.refuse_at(place.clone(), "cluster.nodes", unfit);
        } else if let Some(first) = names.insert(&node.name, place) {
            let unfit = Unfit::new(format!("two nodes have the name {:?}{}", node.name, first_line(first)));
            reader.refuse_at(
                place.clone(),
                "cluster.node.name",
                unfit.suggest("give each a name of its own"),
            );
        }
    }
}

fn first_line(first: &Place) -> String {
    first
        .line()
        .map_or(String::new(), |line| format!(" (first in line {line})"))
}

fn monitor(reader: &mut Reader<'_>) -> Monitor {
    const IDLE: &str = "monitor.idle_interval";
    let interval = reader.duration("monitor.interval");
    let idle_interval = reader.duration(IDLE);
    if reader.has(IDLE) && idle_interval < interval {
        let interval = show_duration(interval);
        reader.refuse(
            IDLE,
            Unfit::new(format!("must not be shorter than monitor.interval, {interval}")),
        );
    }
    Monitor {
        user: reader.text("monitor.user").unwrap_or_default(),
        password: password(reader, "monitor.password", "monitor.password_file"),
        database: reader.text("monitor.database").unwrap_or_default(),
        interval,
        timeout: reader.duration("monitor.timeout"),
        // The default gives way to an interval that is longer.
        idle_interval: idle_interval.max(interval),
    }
}

/// A password, or what the file has that holds it.
pub(super) fn password(reader: &mut Reader<'_>, key: &'static str, file_key: &'static str) -> Option<Secret> {
    let (password, file) = (reader.text(key), reader.file(file_key));
    if reader.has(key) && reader.has(file_key) {
        reader.refuse(
            file_key,
            Unfit::new(format!("stands beside {key}")).suggest("keep one of the two"),
        );
    }
    let Some(file) = file.filter(|file| file.is_file()) else {
        return password.map(Secret);
    };
    match std::fs::read_to_string(&file) {
        // Editors and `echo` end it with a newline that isn't part of it.
        Ok(text) if !text.trim_end_matches(['\r', '\n']).is_empty() => {
            Some(Secret(text.trim_end_matches(['\r', '\n']).to_owned()))
        }
        Ok(_) => {
            reader.refuse(file_key, Unfit::new(format!("{} is empty", file.display())));
            None
        }
        Err(error) => {
            reader.refuse(
                file_key,
                Unfit::new(format!("{} can't be read: {error}", file.display())),
            );
            None
        }
    }
}

fn pool(reader: &mut Reader<'_>) -> Pool {
    let size = reader.count("pool.size");
    Pool {
        mode: reader.choice("pool.mode", PoolMode::from_name),
        size,
        max_per_node: reader.count_if_set("pool.max_per_node"),
        max_per_user: reader.count_if_set("pool.max_per_user"),
        max_per_database: reader.count_if_set("pool.max_per_database"),
        overflow: reader.count_if_set("pool.overflow").unwrap_or(size.div_ceil(2)),
        checkout_timeout: reader.duration("pool.checkout_timeout"),
        idle_timeout: reader.duration("pool.idle_timeout"),
        max_lifetime: reader.duration("pool.max_lifetime"),
        connect_timeout: reader.duration("pool.connect_timeout"),
        query_timeout: limit(reader.duration("pool.query_timeout")),
        idle_in_transaction_timeout: limit(reader.duration("pool.idle_in_transaction_timeout")),
        client_idle_timeout: limit(reader.duration("pool.client_idle_timeout")),
    }
}

/// A limit that isn't one if it is zero.
fn limit(duration: std::time::Duration) -> Option<std::time::Duration> {
    (!duration.is_zero()).then_some(duration)
}

fn routing(reader: &mut Reader<'_>, monitor: &Monitor, defaults: Vec<ListedTable>, folder: &Path) -> Routing {
    let max_lag = reader.duration("routing.max_lag");
    if max_lag < monitor.interval {
        let interval = show_duration(monitor.interval);
        let key = if reader.has("routing.max_lag") {
            "routing.max_lag"
        } else {
            "monitor.interval"
        };
        reader.refuse(
            key,
            Unfit::new(format!(
                "max_lag must not be shorter than monitor.interval, {interval}: lag isn't known better"
            ))
            .suggest("lengthen the one or shorten the other"),
        );
    }
    if reader.flag("routing.defer_begin") {
        let unfit = Unfit::new("is not supported yet: a plain transaction starts on the primary");
        reader.refuse("routing.defer_begin", unfit.suggest("leave it out, or write false"));
    }
    reader.choice("routing.balancer", |name| {
        (name == "power_of_two_choices").then_some(())
    });
    Routing {
        consistency: reader.choice("routing.consistency", Consistency::from_name),
        max_lag,
        wait_for_standby: reader.duration("routing.wait_for_standby"),
        read_from_primary: reader.choice("routing.read_from_primary", ReadFromPrimary::from_name),
        defaults: routing_defaults(reader, defaults, folder),
        mode: reader.choice("routing.mode", RoutingMode::from_name),
        read_only_functions: reader
            .texts("routing.read_only_functions")
            .into_iter()
            .map(|(_, name)| name)
            .collect(),
        catalog_refresh: reader.duration("routing.catalog_refresh"),
    }
}

fn routing_defaults(reader: &mut Reader<'_>, tables: Vec<ListedTable>, folder: &Path) -> Vec<RoutingDefault> {
    let mut defaults = Vec::new();
    for table in tables {
        let mut inner = Reader::new(table.entries, table.place, folder);
        defaults.push(RoutingDefault {
            user: inner.text("routing.default.user"),
            database: inner.text("routing.default.database"),
            consistency: inner.choice_if_set("routing.default.consistency", Consistency::from_name),
            route: inner.choice_if_set("routing.default.route", RoutePreference::from_name),
        });
        reader.add_problems(inner.into_problems());
    }
    defaults
}

fn stale_reads(reader: &mut Reader<'_>, max_lag: Duration) -> StaleReads {
    const KEY: &str = "failover.stale_reads";
    match reader.text(KEY).as_deref() {
        None => StaleReads::UpTo(max_lag),
        Some("allow") => StaleReads::Allow,
        Some("deny") => StaleReads::Deny,
        Some(text) => match parse_duration(text) {
            Ok(bound) => StaleReads::UpTo(bound),
            Err(_) => {
                let unfit = Unfit::new(format!("{text:?} is neither \"allow\" nor \"deny\" nor a duration"));
                reader.refuse(
                    KEY,
                    unfit.suggest("write it like \"30s\" to let reads be as old as that"),
                );
                StaleReads::UpTo(max_lag)
            }
        },
    }
}

fn failover(reader: &mut Reader<'_>, cluster: &Cluster, max_lag: Duration) -> Failover {
    const CANDIDATE: &str = "failover.candidate";
    let candidate = reader.text(CANDIDATE);
    let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    if let Some(name) = candidate
        .as_deref()
        .filter(|name| cluster.discovery.is_empty() && !names.is_empty() && !names.contains(name))
    {
        let unfit = Unfit::new(format!("no node is called {name:?}"));
        let suggestion = match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("there are {}", quoted(&names)),
        };
        reader.refuse(CANDIDATE, unfit.suggest(suggestion));
    }
    Failover {
        trigger_file: reader.file("failover.trigger_file"),
        promote: reader.choice("failover.promote", Promote::from_name),
        hold_timeout: reader.duration("failover.hold_timeout"),
        stale_reads: stale_reads(reader, max_lag),
        switchover_timeout: reader.duration("failover.switchover_timeout"),
        hold_max: reader.count("failover.hold_max"),
        candidate,
    }
}

fn admin(reader: &mut Reader<'_>) -> Admin {
    Admin {
        http: admin_http(reader),
        database: reader.text("admin.database").unwrap_or_default(),
        users: reader.texts("admin.users").into_iter().map(|(_, user)| user).collect(),
    }
}

fn admin_http(reader: &mut Reader<'_>) -> Option<SocketAddr> {
    const KEY: &str = "admin.http";
    let text = reader.text(KEY).filter(|text| text != "off")?;
    match parse_listen(&text) {
        Ok(addresses) => addresses.first().copied(),
        Err(unfit) => {
            reader.refuse(
                KEY,
                unfit.suggest("write it like \"127.0.0.1:9432\", or \"off\" to serve none"),
            );
            None
        }
    }
}

/// A proxy that takes itself for a node would answer its own monitor, and loop.
fn refuse_own_address(reader: &mut Reader<'_>, config: &Config) {
    for address in &config.listen.addresses {
        if let Some(node) = config.cluster.nodes.iter().find(|node| node.address.reaches(*address)) {
            let unfit = Unfit::new(format!(
                "the node {} is the proxy's own address {address}",
                node.address
            ));
            reader.refuse("listen.addresses", unfit.suggest("listen on another port"));
        }
        if config
            .admin
            .http
            .is_some_and(|http| http == *address && http.port() != 0)
        {
            let unfit = Unfit::new(format!("{address} is listened on for clients"));
            reader.refuse("admin.http", unfit.suggest("choose another port"));
        }
    }
}
