//! Every metric that pgsluice has: name, kind, unit, labels and help in one table, and the handles that write to them.
//!
//! The table is the only place where a name is spelled; `docs/metrics.md` is checked against it. Handles come from a
//! [`Metrics`] that is passed in (there is no process-wide recorder, so two proxies in one test count apart). Resolve a handle
//! once and keep it: a resolved counter costs a few nanoseconds, looking one up by its labels a hundred times that.
//!
//! Serving the text over HTTP isn't done here; see `admin::http`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// What a metric is, as its readers know it.
#[derive(Debug, PartialEq, Eq)]
pub struct Spec {
    /// `pgsluice_<noun>_<unit>`, with `_total` for counters.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What one of it is.
    pub unit: Unit,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// One sentence for `# HELP` and the manual.
    pub help: &'static str,
}

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only up, from 0 at start.
    Counter,
    /// Up and down.
    Gauge,
    /// Counted into the buckets of [`SECONDS_BUCKETS`].
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        })
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Seconds, as a float.
    Seconds,
    /// Bytes.
    Bytes,
    /// 1 for yes, 0 for no.
    Flag,
    /// A number that only compares: an epoch, a timeline, a point in time.
    Number,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unit::Count => "count",
            Unit::Seconds => "seconds",
            Unit::Bytes => "bytes",
            Unit::Flag => "0 or 1",
            Unit::Number => "number",
        })
    }
}

impl Unit {
    fn for_exporter(self) -> Option<metrics::Unit> {
        match self {
            Unit::Count => Some(metrics::Unit::Count),
            Unit::Seconds => Some(metrics::Unit::Seconds),
            Unit::Bytes => Some(metrics::Unit::Bytes),
            Unit::Flag | Unit::Number => None,
        }
    }
}

/// Upper bounds of every histogram's buckets, in seconds: 100 µs to 60 s.
pub const SECONDS_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Writes a constant for each metric, and [`ALL`] with all of them, so that none can be left out.
macro_rules! table {
    ($($constant:ident = $kind:ident $name:literal ($unit:ident) [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: &Spec = &Spec {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// All metrics, in the manual's order.
        pub const ALL: &[&Spec] = &[$($constant),*];
    };
}

table! {
    // Statements and where they went.
    STATEMENTS = Counter "pgsluice_statements_total" (Count) ["node", "role", "access"]
        "Statements sent to a node, by its role and by what they need (read or write).";
    STATEMENT_DURATION = Histogram "pgsluice_statement_duration_seconds" (Seconds) ["role", "access"]
        "From a statement's last byte to ReadyForQuery, waiting for a connection included.";
    ROUTING_DECISIONS = Counter "pgsluice_routing_decisions_total" (Count) ["target", "reason"]
        "Decisions where a statement goes, and why.";
    READS = Counter "pgsluice_reads_total" (Count) ["level", "outcome"]
        "Reads by consistency level and what came of it: standby, waited (for a standby to catch up) or primary.";
    STANDBY_WAIT = Histogram "pgsluice_standby_wait_seconds" (Seconds) []
        "How long reads waited for a standby to catch up, those included that then went to the primary.";
    LOST_POSITIONS = Counter "pgsluice_lost_positions_total" (Count) []
        "Positions that sessions were to see and that a failover has lost.";
    CLASS_CACHE_HITS = Counter "pgsluice_class_cache_hits_total" (Count) []
        "Statements whose class was remembered.";
    CLASS_CACHE_MISSES = Counter "pgsluice_class_cache_misses_total" (Count) []
        "Statements that had to be parsed.";
    RETRIES = Counter "pgsluice_retries_total" (Count) ["reason"]
        "Reads that ran again on another node, by what went wrong on the first.";
    ERRORS = Counter "pgsluice_errors_total" (Count) ["sqlstate"]
        "Errors that pgsluice itself, not a server, reported to clients.";
    PINS = Gauge "pgsluice_pins" (Count) ["reason"]
        "Clients that are bound to one server connection by state that only it has.";

    // Nodes.
    NODE_UP = Gauge "pgsluice_node_up" (Flag) ["node"]
        "The last reading of the node succeeded.";
    NODE_ROLE = Gauge "pgsluice_node_role" (Flag) ["node", "role"]
        "1 for the role that the node has, 0 for the others.";
    NODE_SERVING = Gauge "pgsluice_node_serving" (Flag) ["node"]
        "The node is sent statements.";
    NODE_TIMELINE = Gauge "pgsluice_node_timeline" (Number) ["node"]
        "The node's timeline.";
    REPLAY_LAG_SECONDS = Gauge "pgsluice_replay_lag_seconds" (Seconds) ["node"]
        "Age of the newest state that the standby is known to hold; NaN while unknown.";
    DISCOVERY_SOURCE_UP = Gauge "pgsluice_discovery_source_up" (Flag) ["source"]
        "The source of nodes has answered when it was last asked; while it doesn't, the nodes that it named stay.";
    FRESHNESS_SECONDS = Gauge "pgsluice_freshness_seconds" (Seconds) ["node"]
        "Age of the newest moment of which the standby is known to hold every commit, as read_your_writes looks at it; NaN while unknown.";
    REPLAY_LAG_BYTES = Gauge "pgsluice_replay_lag_bytes" (Bytes) ["node"]
        "WAL that the standby has yet to replay.";

    // The cluster.
    ROUTING_EPOCH = Gauge "pgsluice_routing_epoch" (Number) []
        "Grows with every change of primary.";
    FAILOVERS = Counter "pgsluice_failovers_total" (Count) []
        "Changes from one primary to another.";
    FAILOVER_LOST_BYTES = Gauge "pgsluice_failover_lost_wal_bytes" (Bytes) []
        "Log of the old primary that the last failover has lost, as far as it was sampled; NaN where that isn't known.";
    FAILOVER_DURATION = Histogram "pgsluice_failover_duration_seconds" (Seconds) []
        "From the loss of a primary to the first routing table with the next.";
    HELD_STATEMENTS = Gauge "pgsluice_held_statements" (Count) []
        "Statements that wait for a primary.";
    SPLIT_BRAIN = Gauge "pgsluice_split_brain" (Flag) []
        "Two nodes are out of recovery on the same timeline.";

    // Connections.
    POOL_CONNECTIONS = Gauge "pgsluice_pool_connections" (Count) ["node", "state"]
        "Server connections that are connecting, idle or active.";
    POOL_WAIT = Histogram "pgsluice_pool_wait_seconds" (Seconds) []
        "How long a statement waited for a server connection.";
    POOL_WAITING = Gauge "pgsluice_pool_waiting" (Count) ["node"]
        "Statements that wait for a server connection.";
    CLIENTS = Gauge "pgsluice_clients" (Count) ["state"]
        "Client connections that are logging_in, idle, active (a statement runs or a transaction is open) or waiting.";
    CLIENT_CONNECTIONS = Counter "pgsluice_client_connections_total" (Count) ["outcome"]
        "Client connections by how their login ended.";

    // The process.
    BUILD_INFO = Gauge "pgsluice_build_info" (Flag) ["version"]
        "Always 1; the label says which version runs.";
    START_TIME = Gauge "pgsluice_start_time_seconds" (Seconds) []
        "When the process started, in Unix time.";
    CONFIG_RELOADS = Counter "pgsluice_config_reloads_total" (Count) ["outcome"]
        "Reloads of the configuration, taken over or refused.";
}

/// One proxy's metrics. A clone shares them.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// Where the metrics crate's levels and targets are of no use to us.
const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

impl Metrics {
    /// A recorder of its own that knows all of [`ALL`]. Those without labels appear at once, as 0.
    pub fn new() -> Metrics {
        let recorder = histogram_buckets(PrometheusBuilder::new()).build_recorder();
        let metrics = Metrics {
            handle: recorder.handle(),
            recorder: Arc::new(recorder),
        };
        for spec in ALL {
            metrics.describe(spec);
            if spec.labels.is_empty() {
                metrics.touch(spec);
            }
        }
        metrics
    }

    /// The counter of these label values, which are named as in the table and in its order.
    pub fn counter(&self, spec: &'static Spec, labels: &[(&'static str, String)]) -> Counter {
        self.recorder
            .register_counter(&key(spec, Kind::Counter, labels), &METADATA)
    }

    /// The gauge of these label values.
    pub fn gauge(&self, spec: &'static Spec, labels: &[(&'static str, String)]) -> Gauge {
        self.recorder.register_gauge(&key(spec, Kind::Gauge, labels), &METADATA)
    }

    /// The histogram of these label values; record seconds.
    pub fn histogram(&self, spec: &'static Spec, labels: &[(&'static str, String)]) -> Histogram {
        self.recorder
            .register_histogram(&key(spec, Kind::Histogram, labels), &METADATA)
    }

    /// All of them, in Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Sorts recorded durations into their buckets. Until this (or a `render`) runs, each one takes memory, so it must run
    /// regularly; [`Metrics::run_upkeep`] does.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Runs [`Metrics::upkeep`] at an interval, for ever. Dropping it loses nothing.
    pub async fn run_upkeep(&self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.upkeep();
        }
    }

    fn describe(&self, spec: &'static Spec) {
        let (name, unit, help) = (
            KeyName::from_const_str(spec.name),
            spec.unit.for_exporter(),
            spec.help.into(),
        );
        match spec.kind {
            Kind::Counter => self.recorder.describe_counter(name, unit, help),
            Kind::Gauge => self.recorder.describe_gauge(name, unit, help),
            Kind::Histogram => self.recorder.describe_histogram(name, unit, help),
        }
    }

    fn touch(&self, spec: &'static Spec) {
        match spec.kind {
            Kind::Counter => self.counter(spec, &[]).absolute(0),
            Kind::Gauge => self.gauge(spec, &[]).set(0.0),
            Kind::Histogram => drop(self.histogram(spec, &[])),
        }
    }
}

/// Gives each histogram its buckets by name: without any, the exporter would make summaries of them.
fn histogram_buckets(builder: PrometheusBuilder) -> PrometheusBuilder {
    ALL.iter()
        .filter(|spec| spec.kind == Kind::Histogram)
        .fold(builder, |builder, spec| {
            builder
                .set_buckets_for_metric(Matcher::Full(spec.name.to_owned()), SECONDS_BUCKETS)
                .expect("SECONDS_BUCKETS isn't empty, which is all that can be wrong")
        })
}

/// Checks in debug builds that a metric is used as the table says.
fn key(spec: &'static Spec, kind: Kind, labels: &[(&'static str, String)]) -> Key {
    debug_assert_eq!(spec.kind, kind, "{} is a {}", spec.name, spec.kind);
    debug_assert!(
        labels.iter().map(|(name, _)| *name).eq(spec.labels.iter().copied()),
        "{} has the labels {:?}, not {labels:?}",
        spec.name,
        spec.labels,
    );
    let labels: Vec<Label> = labels
        .iter()
        .map(|(name, value)| Label::new(*name, value.clone()))
        .collect();
    Key::from_parts(spec.name, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_kind_and_unit() {
        for spec in ALL {
            assert!(spec.name.starts_with("pgsluice_"), "{}", spec.name);
            assert_eq!(
                spec.name.ends_with("_total"),
                spec.kind == Kind::Counter,
                "{}",
                spec.name
            );
            if spec.kind == Kind::Histogram {
                assert!(spec.name.ends_with("_seconds"), "{}", spec.name);
            }
            assert!(spec.help.ends_with('.'), "{}", spec.help);
            assert_eq!(
                ALL.iter().filter(|other| other.name == spec.name).count(),
                1,
                "{} stands twice",
                spec.name
            );
        }
    }

    #[test]
    fn what_was_recorded_is_rendered() {
        let metrics = Metrics::new();
        let labels = [
            ("node", "n1".to_owned()),
            ("role", "primary".to_owned()),
            ("access", "write".to_owned()),
        ];
        metrics.counter(STATEMENTS, &labels).increment(3);
        metrics
            .gauge(REPLAY_LAG_SECONDS, &[("node", "n2".to_owned())])
            .set(0.25);
        metrics.histogram(POOL_WAIT, &[]).record(0.0002);
        metrics.upkeep();

        let text = metrics.render();
        for line in [
            "# TYPE pgsluice_statements_total counter",
            "pgsluice_statements_total{node=\"n1\",role=\"primary\",access=\"write\"} 3",
            "pgsluice_replay_lag_seconds{node=\"n2\"} 0.25",
            "# TYPE pgsluice_pool_wait_seconds histogram",
            "pgsluice_pool_wait_seconds_bucket{le=\"0.0001\"} 0",
            "pgsluice_pool_wait_seconds_bucket{le=\"0.00025\"} 1",
            "pgsluice_pool_wait_seconds_bucket{le=\"60\"} 1",
            "pgsluice_pool_wait_seconds_count 1",
            "pgsluice_failovers_total 0",
            "# HELP pgsluice_split_brain Two nodes are out of recovery on the same timeline.",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} is missing from:\n{text}");
        }
    }

    #[test]
    fn equal_labels_share_a_counter_and_two_proxies_do_not() {
        let (ours, theirs) = (Metrics::new(), Metrics::new());
        ours.counter(FAILOVERS, &[]).increment(1);
        ours.clone().counter(FAILOVERS, &[]).increment(1);
        assert!(ours.render().contains("pgsluice_failovers_total 2\n"));
        assert!(theirs.render().contains("pgsluice_failovers_total 0\n"));
    }

    #[test]
    #[should_panic(expected = "has the labels")]
    fn a_forgotten_label_is_found_in_debug_builds() {
        drop(Metrics::new().counter(RETRIES, &[]));
    }

    #[test]
    fn the_manual_has_the_table_as_it_is_here() {
        let manual = include_str!("../docs/metrics.md");
        let rows: Vec<&str> = manual.lines().filter(|line| line.starts_with("| `pgsluice_")).collect();
        let expected: Vec<String> = ALL.iter().map(|spec| manual_row(spec)).collect();
        let wanted = expected.join("\n");
        assert!(rows == expected, "docs/metrics.md should have these rows:\n{wanted}");
    }

    fn manual_row(spec: &Spec) -> String {
        let labels: Vec<String> = spec.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() {
            "none".to_owned()
        } else {
            labels.join(", ")
        };
        format!(
            "| `{}` | {} | {} | {labels} | {} |",
            spec.name, spec.kind, spec.unit, spec.help
        )
    }
}
