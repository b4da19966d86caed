//! What clients see of standbys that lag: nothing that is older than they allow, and never less than what they wrote themselves.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pgsluice::lab::LabGuard;
use support::{PATIENCE, Proxy, direct, ended};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// What a measured age may be above its limit: two monitor intervals, and what a busy machine adds.
const SLACK: Duration = Duration::from_secs(3);

fn proxy_with_max_lag(lab: &LabGuard, max_lag: &str) -> Proxy {
    let sections = format!("[routing]\nmax_lag = \"{max_lag}\"\n[monitor]\ninterval = \"100ms\"\n");
    Proxy::with(lab, &sections)
}

/// A counter that somebody raises all the time.
struct Beat {
    /// When each value was acknowledged; the first is value 1.
    acknowledged: Arc<Mutex<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Beat {
    async fn start(proxy: &Proxy) -> Beat {
        let writer = proxy.client_after("create table beat as select 0::bigint as n").await;
        let (acknowledged, stop) = (Arc::<Mutex<Vec<Instant>>>::default(), Arc::<AtomicBool>::default());
        let (log, until) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            while !until.load(Ordering::Relaxed) {
                writer
                    .batch_execute("update beat set n = n + 1")
                    .await
                    .expect("a write");
                log.lock().push(Instant::now());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Beat {
            acknowledged,
            stop,
            task,
        }
    }

    /// The newest value that was acknowledged.
    fn now(&self) -> i64 {
        i64::try_from(self.acknowledged.lock().len()).expect("a small number")
    }

    /// How long the value that follows `seen` had been acknowledged at `asked`: what a reader that saw `seen` had missed, and for how long.
    fn age(&self, seen: i64, asked: Instant) -> Duration {
        let acknowledged = self.acknowledged.lock();
        let missed = usize::try_from(seen).ok().and_then(|next| acknowledged.get(next));
        missed.map_or(Duration::ZERO, |&at| asked.saturating_duration_since(at))
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        ended("every write", self.task).await;
    }
}

async fn value(client: &Client) -> i64 {
    let row = client.query_one("select n from beat", &[]).await.expect("a read");
    row.get(0)
}

async fn with_consistency(proxy: &Proxy, level: &str) -> Client {
    let client = proxy.client().await;
    let set = format!("set pgsluice.consistency = '{level}'");
    client.batch_execute(&set).await.expect("a level");
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_standby_gets_no_reads_until_it_has_caught_up() {
    let max_lag = Duration::from_secs(1);
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = proxy_with_max_lag(&lab, "1s");
    let beat = Beat::start(&proxy).await;
    let reader = with_consistency(&proxy, "eventual").await;
    // Reads until it is so; nothing that is read may be too old, whichever node it comes from.
    let read_until = async |what: &str, is_so: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            for _ in 0..10 {
                let asked = Instant::now();
                let age = beat.age(value(&reader).await, asked);
                assert!(age <= max_lag + SLACK, "a value was read that is {age:?} old");
            }
        }
        began.elapsed()
    };
    let reads = |node: &str| proxy.statements(node).0;
    let grows_by_100 = |node: &'static str| {
        let before = reads(node);
        move || reads(node) >= before + 100
    };
    for node in ["node2", "node3"] {
        read_until("both standbys read", &grows_by_100(node)).await;
    }

    lab.pause_replay("node2").expect("paused");
    let took = read_until("the paused standby is out", &|| !proxy.node("node2").serving).await;
    assert!(took <= max_lag + SLACK, "{took:?} until it was out");
    let (before, its_lag) = (
        reads("node2"),
        proxy.metric("pgsluice_replay_lag_seconds{node=\"node2\"}"),
    );
    assert!(its_lag >= 1.0, "{its_lag}");
    read_until("the other one reads", &grows_by_100("node3")).await;
    assert_eq!(reads("node2"), before, "a lagging standby was read from");
    assert_eq!(proxy.node("node2").why, "lagging");

    lab.pause_replay("node3").expect("paused");
    read_until("both are out", &|| !proxy.node("node3").serving).await;
    let before = (reads("node2"), reads("node3"));
    read_until("the primary reads", &grows_by_100("node1")).await;
    assert_eq!(
        (reads("node2"), reads("node3")),
        before,
        "lagging standbys were read from"
    );

    for node in ["node2", "node3"] {
        lab.resume_replay(node).expect("resumed");
        read_until("it serves again", &|| proxy.node(node).serving).await;
        read_until("it is read from again", &grows_by_100(node)).await;
    }
    assert_eq!(proxy.node("node2").statements_write, 0);
    beat.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_sees_its_own_writes_while_a_standby_stands_still() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = proxy_with_max_lag(&lab, "10min");
    let client = proxy.client_after("create table beat as select 0::bigint as n").await;
    lab.pause_replay("node2").expect("paused");
    let (still, moving) = (proxy.statements("node2").0, proxy.statements("node3").0);
    let mut standby_reads = 0;
    let deadline = Instant::now() + PATIENCE;
    for n in 1_i64.. {
        client.execute("update beat set n = $1", &[&n]).await.expect("a write");
        assert_eq!(value(&client).await, n, "right after its own write");
        // Until a standby is known to have it; that may take some readings.
        let before = proxy.statements("node3").0;
        while proxy.statements("node3").0 == before {
            assert!(
                Instant::now() < deadline,
                "no read came to node3: {:?}",
                proxy.node("node3")
            );
            assert_eq!(value(&client).await, n, "a while after its own write");
        }
        standby_reads += 1;
        if standby_reads >= 10 {
            break;
        }
    }
    assert!(proxy.statements("node3").0 >= moving + 10);
    assert_eq!(
        proxy.statements("node2").0,
        still,
        "a standby without the session's writes was read from"
    );

    // One that has asked for less gets less: the standby that stands still is within max_lag.
    let careless = with_consistency(&proxy, "eventual").await;
    let mut seen = BTreeSet::new();
    eventually_async("old and new are read", async || {
        seen.insert(value(&careless).await);
        seen.len() > 1
    })
    .await;
    assert_eq!(*seen.first().expect("a value"), 0, "{seen:?}");
    assert!(proxy.statements("node2").0 > still);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_asks_for_it_never_reads_back_in_time() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = proxy_with_max_lag(&lab, "10min");
    let beat = Beat::start(&proxy).await;
    lab.pause_replay("node2").expect("paused");
    let (forward, anyhow, exact) = (
        with_consistency(&proxy, "session").await,
        with_consistency(&proxy, "eventual").await,
        with_consistency(&proxy, "linearizable").await,
    );
    let still = lab.sql("node2", "select n from beat").expect("an answer");
    let still: i64 = still.parse().expect("a number");
    let (mut newest, mut newest_anyhow, mut went_back) = (0, 0, 0);
    let (deadline, mut rounds) = (Instant::now() + PATIENCE, 0);
    while rounds < 300 || went_back < 5 {
        assert!(
            Instant::now() < deadline,
            "{rounds} rounds, {went_back} times back in time"
        );
        let seen = value(&forward).await;
        assert!(seen >= newest, "{seen} after {newest}");
        newest = seen;
        let seen = value(&anyhow).await;
        assert!(seen >= still, "{seen}, and the oldest standby has {still}");
        went_back += i32::from(seen < newest_anyhow);
        newest_anyhow = seen;
        let acknowledged = beat.now();
        let seen = value(&exact).await;
        assert!(
            seen >= acknowledged,
            "{seen} after {acknowledged} was acknowledged to another"
        );
        rounds += 1;
    }
    beat.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_primarys_standbys_do_not_grow_old() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = proxy_with_max_lag(&lab, "1s");
    proxy.client_after("create table t (n int)").await;
    // A transaction that has written and stays open leaves log behind that the standbys get much later.
    let open = direct(lab.node("node1").expect("a node")).await;
    for idle in ["nothing happens", "a transaction is open"] {
        if idle == "a transaction is open" {
            open.batch_execute("begin; insert into t select generate_series(1, 100)")
                .await
                .expect("rows");
        }
        let began = Instant::now();
        let mut looks = 0;
        while began.elapsed() < Duration::from_secs(4) {
            for node in ["node2", "node3"] {
                let lag = proxy.metric(&format!("pgsluice_replay_lag_seconds{{node=\"{node}\"}}"));
                assert!(
                    (0.0..1.0).contains(&lag),
                    "{idle}: {node} lags by {lag} s after {:?}",
                    began.elapsed()
                );
                assert!(proxy.node(node).serving, "{idle}: {:?}", proxy.node(node));
            }
            looks += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(looks >= 10, "{looks}");
    }
}

/// Waits until it is so.
async fn eventually_async(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
    }
}

/// Sessions that think between their statements and write now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_load_has_its_reads_on_standbys_though_it_sees_its_own_writes() {
    const SESSIONS: i64 = 40;
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::start(&lab);
    let setup = "create table mixed (id bigint primary key, n bigint not null); insert into mixed select id, 0 from generate_series(1, 40) id";
    proxy.client().await.batch_execute(setup).await.expect("a table");
    support::until_replayed(&lab);
    let mut sessions = Vec::new();
    for id in 1..=SESSIONS {
        let client = proxy.client().await;
        sessions.push(tokio::spawn(async move {
            let mut dice = support::dice::Dice::new(id as u64);
            let mut written = 0;
            for _ in 0..100 {
                if dice.once_in(10) {
                    written += 1;
                    let update = format!("update mixed set n = {written} where id = {id}");
                    client.batch_execute(&update).await.expect("a write");
                } else {
                    let row = client.query_one("select n from mixed where id = $1", &[&id]).await;
                    assert_eq!(row.expect("a read").get::<_, i64>(0), written);
                }
                tokio::time::sleep(Duration::from_millis(20 + dice.below(60) as u64)).await;
            }
        }));
    }
    for session in sessions {
        ended("a session", session).await;
    }
    let reads = |outcome: &str| {
        proxy.metric(&format!(
            "pgsluice_reads_total{{level=\"read_your_writes\",outcome=\"{outcome}\"}}"
        ))
    };
    let (on_standbys, on_primary) = (reads("standby") + reads("waited"), reads("primary"));
    let share = 100.0 * on_standbys / (on_standbys + on_primary);
    println!("{share:.1} % of {} reads on standbys", on_standbys + on_primary);
    assert!(share > 80.0, "{share:.1} %");
}

/// A standby that applies late on purpose, and one that follows it and not the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_writes_are_seen_whatever_way_the_log_takes_to_a_standby() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let sql = |node: &str, statement: &str| lab.sql(node, statement).expect(statement);
    let upstream = lab.node("node2").expect("a standby").port();
    let conninfo = sql("node3", "select current_setting('primary_conninfo')");
    let primary = format!("port={}", lab.primary().expect("a primary").port());
    assert!(conninfo.contains(&primary), "{conninfo}");
    let cascaded = conninfo
        .replace(&primary, &format!("port={upstream}"))
        .replace('\'', "''");
    sql("node3", &format!("alter system set primary_conninfo = '{cascaded}'"));
    sql("node3", "alter system set primary_slot_name = ''");
    sql("node3", "select pg_reload_conf()");
    sql("node2", "alter system set recovery_min_apply_delay = '700ms'");
    sql("node2", "select pg_reload_conf()");
    let proxy = proxy_with_max_lag(&lab, "10min");
    eventually_async("the standby follows the other", async || {
        sql("node2", "select count(*) from pg_stat_replication") == "1"
    })
    .await;
    let client = proxy.client_after("create table beat as select 0::bigint as n").await;
    let before = ["node2", "node3"].map(|node| proxy.statements(node).0);
    for n in 1..=10_i64 {
        client.execute("update beat set n = $1", &[&n]).await.expect("a write");
        let until = Instant::now() + Duration::from_millis(1200);
        while Instant::now() < until {
            assert_eq!(value(&client).await, n);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    for (node, before) in ["node2", "node3"].into_iter().zip(before) {
        assert!(proxy.statements(node).0 > before, "{node} was never read from");
    }
}

/// A standby may show a commit that waits for another, and that the primary doesn't show yet: a session must not see it come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_reads_are_the_primarys_where_commits_wait_for_standbys() {
    let lab = LabGuard::fresh(1).expect("a lab");
    for statement in [
        "alter system set synchronous_standby_names = '*'",
        "select pg_reload_conf()",
    ] {
        lab.sql("node1", statement).expect(statement);
    }
    let proxy = proxy_with_max_lag(&lab, "10s");
    let (session, own_writes) = (
        with_consistency(&proxy, "session").await,
        with_consistency(&proxy, "read_your_writes").await,
    );
    let decided = "pgsluice_routing_decisions_total{target=\"primary\",reason=\"synchronous\"}";
    eventually_async("the proxy knows of it", async || {
        session.simple_query("select 1").await.expect("a read");
        proxy.metric(decided) > 0.0
    })
    .await;
    let before = proxy.statements("node2").0;
    for _ in 0..20 {
        session.simple_query("select 1").await.expect("a read");
    }
    assert_eq!(proxy.statements("node2").0, before);
    own_writes.simple_query("select 1").await.expect("a read");
    assert_eq!(proxy.statements("node2").0, before + 1);
}
