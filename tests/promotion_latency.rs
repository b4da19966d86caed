//! How long a writer waits after a promotion: from `pg_promote()` returning on the standby to the first write that the new primary
//! acknowledges through the proxy.
//!
//! `PGSLUICE_LATENCY_RUNS` has it measure more often, and `PGSLUICE_LATENCY_BOUND_MS` is what the median must be below. The numbers mean
//! something with a release build on a machine that does nothing else: `make soak` takes them so.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgsluice::lab::{LabGuard, Quiet, StopMode};
use support::wire::{Wire, codes, firsts};
use support::{Proxy, direct, ended, eventually, until_replayed};

/// What the old primary does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Old {
    /// It was killed before, and the proxy knows it.
    Gone,
    /// It goes on, and so does the writer.
    Alive,
}

/// One measurement; seconds, below zero if the write was quicker than the function, which looks every 100 ms whether it is done.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Since `pg_promote()` returned.
    returned: f64,
    /// Since the standby was out of recovery.
    recovered: f64,
}

fn setting(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Writes without a pause, and notes when a node first acknowledged a write: by its port.
async fn write(mut wire: Wire, port: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Option<Instant> {
    let mut first = None;
    while !stop.load(Ordering::Relaxed) {
        let answer = wire
            .query("insert into t values (1) returning inet_server_port()")
            .await;
        if codes(&answer).is_empty() && first.is_none() {
            let by = firsts(&answer).remove(0);
            let wanted = port.load(Ordering::Relaxed).to_string();
            first = (by == wanted).then(Instant::now);
        }
    }
    first
}

/// When the server is out of recovery, to a millisecond or so.
async fn recovered(client: tokio_postgres::Client) -> Instant {
    loop {
        let row = client
            .query_one("select pg_is_in_recovery()", &[])
            .await
            .expect("an answer");
        if !row.get::<_, bool>(0) {
            return Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn measure(lab: &LabGuard, proxy: &Proxy, old: Old) -> Sample {
    let primary = lab.primary().expect("a primary").name().to_owned();
    let new = lab
        .nodes()
        .iter()
        .find(|node| node.name() != primary)
        .expect("a standby")
        .clone();
    let (port, stop) = (
        Arc::new(AtomicU64::new(new.port().into())),
        Arc::new(AtomicBool::new(false)),
    );
    let wire = Wire::login(proxy.port, "postgres").await;
    let (promoter, watcher) = (direct(&new).await, direct(&new).await);
    until_replayed(lab);
    let writing = tokio::spawn(write(wire, port, Arc::clone(&stop)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    if old == Old::Gone {
        lab.stop(&primary, StopMode::Kill, &mut Quiet).expect("stopped");
        eventually("the writer waits", || {
            proxy.status().primary.is_none() && proxy.metric("pgsluice_held_statements") == 1.0
        });
        // At any moment between two looks of the monitor's.
        let pause = lab.nodes().len() as u64 * 17 % 50;
        tokio::time::sleep(Duration::from_millis(300 + pause)).await;
    }
    let watching = tokio::spawn(recovered(watcher));
    let row = promoter
        .query_one("select pg_promote()", &[])
        .await
        .expect("a promotion");
    let returned = Instant::now();
    assert!(row.get::<_, bool>(0));
    let recovered = ended("the end of recovery", watching).await;
    eventually("the proxy follows", || {
        proxy.status().primary.as_deref() == Some(new.name())
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.store(true, Ordering::Relaxed);
    let first = ended("the writer", writing).await.expect("a write on the new primary");
    for node in lab.nodes().iter().filter(|node| node.name() != new.name()) {
        lab.rejoin(node.name(), &mut Quiet).expect("a standby again");
    }
    proxy.until_serving(3);
    Sample {
        returned: between(returned, first),
        recovered: between(recovered, first),
    }
}

fn between(from: Instant, to: Instant) -> f64 {
    match to.checked_duration_since(from) {
        Some(later) => later.as_secs_f64(),
        None => -(from - to).as_secs_f64(),
    }
}

/// The one in the middle, and the largest; milliseconds.
fn median_and_worst(mut samples: Vec<f64>) -> (f64, f64) {
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2] * 1e3, samples[samples.len() - 1] * 1e3)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_acknowledged_soon_after_a_promotion() {
    let runs = setting("PGSLUICE_LATENCY_RUNS", 2);
    // Others may have the machine too.
    let bound = setting("PGSLUICE_LATENCY_BOUND_MS", 2000) as f64;
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
    proxy
        .client()
        .await
        .batch_execute("create table t (n int)")
        .await
        .expect("a table");
    for old in [Old::Gone, Old::Alive] {
        let mut samples = Vec::new();
        for _ in 0..runs {
            samples.push(measure(&lab, &proxy, old).await);
        }
        let (median, worst) = median_and_worst(samples.iter().map(|sample| sample.returned).collect());
        let (since_recovery, worst_since) = median_and_worst(samples.iter().map(|sample| sample.recovered).collect());
        println!(
            "old primary {old:?}: {median:.0} ms after pg_promote() returned (at most {worst:.0}), \
             {since_recovery:.0} ms after the end of recovery (at most {worst_since:.0}), medians of {runs}"
        );
        assert!(median < bound, "{old:?}: {samples:#?}");
    }
}

/// A standby says so itself, as soon as it is asked anything, and a question that costs nothing is asked five times as often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_beside_a_living_primary_is_noticed_long_before_the_next_question() {
    for _ in 0..3 {
        let lab = LabGuard::fresh(1).expect("a lab");
        let major = lab.version().split('.').next().and_then(|major| major.parse().ok());
        if major.is_some_and(|major: u32| major < 14) {
            return;
        }
        let proxy = Proxy::with(&lab, "[monitor]\ninterval = \"5s\"\n");
        let promoter = direct(lab.node("node2").expect("a node")).await;
        promoter.query("select pg_promote()", &[]).await.expect("a promotion");
        let promoted = Instant::now();
        eventually("the proxy follows", || {
            proxy.status().primary.as_deref() == Some("node2")
        });
        let took = promoted.elapsed();
        assert!(took < Duration::from_millis(1600), "{took:?}");
    }
}
