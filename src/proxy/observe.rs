//! What `/status`, `/readyz` and `/metrics` say of the running proxy.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::admin::http::AdminSource;
use crate::admin::status::{ClientCounts, ConnectionCounts, NodeStatus, PoolStatus, Role, Status};
use crate::cluster::{NodeRole, NodeState, RoutingTable, Serving};
use crate::metrics;
use crate::route::{age_limit, usable_lag};
use crate::session::worker::Shared;

/// Looks at the proxy when asked.
pub(super) struct Observer {
    shared: Arc<Shared>,
    listen: Vec<SocketAddr>,
    started: Instant,
    /// Names of nodes for which gauges stand.
    shown: Mutex<HashSet<Arc<str>>>,
}

impl Observer {
    pub(super) fn new(shared: Arc<Shared>, listen: Vec<SocketAddr>, started: Instant) -> Observer {
        Observer {
            shared,
            listen,
            started,
            shown: Mutex::default(),
        }
    }

    /// Gauges are set when somebody looks.
    fn set_gauges(&self) {
        let metrics = &self.shared.metrics;
        let table = self.shared.cluster.table().clone();
        let now = Instant::now();
        let limit = self.age_limit(&table);
        for node in table.members() {
            self.set_node_gauges(node, serves(node, limit, now), now);
        }
        self.clear_gauges_of_others(&table);
        for source in self.shared.cluster.sources() {
            metrics
                .gauge(metrics::DISCOVERY_SOURCE_UP, &[("source", source.name)])
                .set(f64::from(u8::from(source.is_up)));
        }
        metrics.gauge(metrics::ROUTING_EPOCH, &[]).set(table.epoch.0 as f64);
        metrics
            .gauge(metrics::SPLIT_BRAIN, &[])
            .set(f64::from(u8::from(table.split_brain)));
        metrics
            .gauge(metrics::HELD_STATEMENTS, &[])
            .set(self.shared.held.load(Ordering::Relaxed) as f64);
        let lost = table.stats.lost.map_or(f64::NAN, |lost| lost.bytes() as f64);
        metrics.gauge(metrics::FAILOVER_LOST_BYTES, &[]).set(lost);
        metrics.counter(metrics::FAILOVERS, &[]).absolute(table.stats.failovers);
        let clients = self.clients(&table);
        for (state, count) in [
            ("idle", clients.idle),
            ("active", clients.active),
            ("waiting", clients.waiting),
        ] {
            metrics
                .gauge(metrics::CLIENTS, &[("state", state.to_owned())])
                .set(count as f64);
        }
    }

    /// A series can't be taken back: those of former names go to zero.
    fn clear_gauges_of_others(&self, table: &RoutingTable) {
        let names: HashSet<Arc<str>> = table.members().map(|node| Arc::clone(&node.name)).collect();
        let mut shown = self.shown.lock();
        for name in shown.difference(&names) {
            let label = || [("node", name.to_string())];
            for gauge in [metrics::NODE_UP, metrics::NODE_SERVING, metrics::POOL_WAITING] {
                self.shared.metrics.gauge(gauge, &label()).set(0.0);
            }
            for role in NodeRole::ALL {
                let labels = [("node", name.to_string()), ("role", role.as_str().to_owned())];
                self.shared.metrics.gauge(metrics::NODE_ROLE, &labels).set(0.0);
            }
            for gauge in [
                metrics::REPLAY_LAG_SECONDS,
                metrics::REPLAY_LAG_BYTES,
                metrics::FRESHNESS_SECONDS,
            ] {
                self.shared.metrics.gauge(gauge, &label()).set(f64::NAN);
            }
            for state in ["idle", "active"] {
                let labels = [("node", name.to_string()), ("state", state.to_owned())];
                self.shared.metrics.gauge(metrics::POOL_CONNECTIONS, &labels).set(0.0);
            }
        }
        *shown = names;
    }

    fn set_node_gauges(&self, node: &NodeState, serves: bool, now: Instant) {
        let metrics = &self.shared.metrics;
        let label = || [("node", node.name.to_string())];
        let up = !matches!(
            node.role,
            NodeRole::Unreachable | NodeRole::Departed | NodeRole::Unknown
        );
        metrics.gauge(metrics::NODE_UP, &label()).set(f64::from(u8::from(up)));
        for role in NodeRole::ALL {
            let labels = [("node", node.name.to_string()), ("role", role.as_str().to_owned())];
            metrics
                .gauge(metrics::NODE_ROLE, &labels)
                .set(f64::from(u8::from(role == node.role)));
        }
        metrics
            .gauge(metrics::NODE_SERVING, &label())
            .set(f64::from(u8::from(serves)));
        metrics
            .gauge(metrics::NODE_TIMELINE, &label())
            .set(node.timeline.map_or(0.0, |timeline| f64::from(timeline.0)));
        metrics
            .gauge(metrics::REPLAY_LAG_SECONDS, &label())
            .set(lag(node, now).unwrap_or(f64::NAN));
        let fresh = node
            .fresh_as_of
            .map(|as_of| now.saturating_duration_since(as_of).as_secs_f64());
        metrics
            .gauge(metrics::FRESHNESS_SECONDS, &label())
            .set(fresh.unwrap_or(f64::NAN));
        let bytes = node.lag_bytes.map_or(f64::NAN, |bytes| bytes as f64);
        metrics.gauge(metrics::REPLAY_LAG_BYTES, &label()).set(bytes);
        let (idle, active, waiting) = self.shared.pools.occupancy(node.id);
        for (state, count) in [("idle", idle), ("active", active)] {
            let labels = [("node", node.name.to_string()), ("state", state.to_owned())];
            metrics.gauge(metrics::POOL_CONNECTIONS, &labels).set(count as f64);
        }
        metrics.gauge(metrics::POOL_WAITING, &label()).set(waiting as f64);
    }

    /// How old what a standby answers may be as things are.
    fn age_limit(&self, table: &RoutingTable) -> Option<Duration> {
        let config = self.shared.config.load();
        age_limit(table, config.routing.max_lag, config.failover.stale_reads)
    }

    /// The pools that have or want a connection.
    fn pools(&self, table: &RoutingTable, now: Instant) -> Vec<PoolStatus> {
        let size = self.shared.config.load().pool.size as u64;
        let mut pools = Vec::new();
        for principal in self.shared.pools.snapshot() {
            for node in table.members() {
                let pool = principal.at(node.id);
                let ((idle, active), waiting) = (pool.occupancy(), pool.waiting() as u64);
                if (idle, active, waiting) == (0, 0, 0) {
                    continue;
                }
                pools.push(PoolStatus {
                    node: node.name.to_string(),
                    database: principal.login.database.to_string(),
                    user: principal.login.user.to_string(),
                    connections: ConnectionCounts {
                        idle: idle as u64,
                        active: active as u64,
                    },
                    size,
                    waiting,
                    longest_wait_microseconds: pool.waiting_since().map_or(0, |since| {
                        let waited = now.saturating_duration_since(since);
                        u64::try_from(waited.as_micros()).unwrap_or(u64::MAX)
                    }),
                });
            }
        }
        pools.sort_by(|a, b| (&a.database, &a.user, &a.node).cmp(&(&b.database, &b.user, &b.node)));
        pools
    }

    fn clients(&self, table: &RoutingTable) -> ClientCounts {
        let total = self.shared.clients.load(Ordering::Relaxed) as u64;
        let held = self.shared.held.load(Ordering::Relaxed) as u64;
        let (mut active, mut waiting) = (0, held);
        for node in &table.nodes {
            let (_, busy, queued) = self.shared.pools.occupancy(node.id);
            active += busy as u64;
            waiting += queued as u64;
        }
        ClientCounts {
            total,
            max: self.shared.config.load().listen.max_clients as u64,
            idle: total.saturating_sub(active + waiting),
            active,
            waiting,
            ..ClientCounts::default()
        }
    }
}

fn lag(node: &NodeState, now: Instant) -> Option<f64> {
    match node.role {
        NodeRole::Primary => Some(0.0),
        _ => node.lag(now).map(|lag| lag.as_secs_f64()),
    }
}

impl AdminSource for Observer {
    fn status(&self) -> Status {
        let table = self.shared.cluster.table().clone();
        let now = Instant::now();
        let reads: u64 = table
            .nodes
            .iter()
            .map(|node| self.shared.pools.link(node.id).statements().0)
            .sum();
        let limit = self.age_limit(&table);
        let nodes = table.members().map(|node| {
            let serves = serves(node, limit, now);
            let link = self.shared.pools.link(node.id);
            let (read, write) = link.statements();
            let (idle, active, _) = self.shared.pools.occupancy(node.id);
            NodeStatus {
                name: node.name.to_string(),
                address: link.address().map(|address| address.to_string()).unwrap_or_default(),
                role: match node.role {
                    NodeRole::Primary => Role::Primary,
                    NodeRole::Standby => Role::Standby,
                    NodeRole::StalePrimary => Role::StalePrimary,
                    NodeRole::Unreachable => Role::Unreachable,
                    NodeRole::Foreign | NodeRole::Departed | NodeRole::Unknown => Role::Unknown,
                },
                up: !matches!(node.role, NodeRole::Unreachable | NodeRole::Unknown),
                serving: serves,
                why: why(node, &table, serves),
                lag_seconds: lag(node, now),
                lag_bytes: node.lag_bytes,
                timeline: node.timeline.map(|timeline| timeline.0),
                wal_position: node.wal_position.map(|position| position.to_string()),
                server_version: node.version.map(version),
                probe_seconds: node.round_trip.map(|took| took.as_secs_f64()),
                weight: node.weight,
                connections: ConnectionCounts {
                    idle: idle as u64,
                    active: active as u64,
                },
                statements_read: read,
                statements_write: write,
                share_of_reads: if reads == 0 { 0.0 } else { read as f64 / reads as f64 },
                last_error: node.last_error.as_ref().map(ToString::to_string),
            }
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            epoch: table.epoch.0,
            primary: table.primary_state().map(|node| node.name.to_string()),
            timeline: table.timeline.map(|timeline| timeline.0),
            split_brain: table.split_brain,
            draining: self.shared.draining.load(Ordering::Relaxed),
            listen: self.listen.iter().map(ToString::to_string).collect(),
            clients: self.clients(&table),
            held_statements: self.shared.held.load(Ordering::Relaxed) as u64,
            failovers: table.stats.failovers,
            lost_wal_bytes: table.stats.lost.map(|lost| lost.bytes()),
            nodes: nodes.collect(),
            pools: self.pools(&table, now),
            ..Status::default()
        }
    }

    fn metrics_text(&self) -> String {
        self.set_gauges();
        self.shared.metrics.render()
    }

    fn readiness(&self) -> Result<(), String> {
        if self.shared.draining.load(Ordering::Relaxed) {
            return Err("draining".into());
        }
        let table = self.shared.cluster.table();
        let (limit, now) = (self.age_limit(&table), Instant::now());
        if table.primary.is_some() || table.members().any(|node| serves(node, limit, now)) {
            return Ok(());
        }
        Err(match table.why_no_primary {
            Some(why) => format!("no node can serve: {why}"),
            None => "no node can serve".into(),
        })
    }
}

/// Whether the node is sent statements as things are.
fn serves(node: &NodeState, limit: Option<Duration>, now: Instant) -> bool {
    node.role == NodeRole::Primary || usable_lag(node, limit, now).is_some()
}

fn why(node: &NodeState, table: &RoutingTable, serves: bool) -> String {
    match (node.role, node.serving) {
        (NodeRole::Primary, _) => "takes writes".into(),
        (NodeRole::Standby, _) if serves => "takes reads".into(),
        (NodeRole::Standby, Serving::Serving) => Serving::Lagging.as_str().into(),
        (_, Serving::LagUnknown) if table.primary.is_none() => "there is no primary to compare with".into(),
        (_, serving) => serving.as_str().replace('_', " "),
    }
}

/// 150018 is 15.18.
fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}
