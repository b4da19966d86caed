//! Writes go on through failovers, through the real proxy and on real servers, and whoever has led before gets none of them.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pgsluice::admin::status::Role;
use pgsluice::lab::{LabGuard, Quiet, StopMode};
use support::journal::{Journals, audit};
use support::{PATIENCE, Proxy, ended, eventually, sqlstate, until_replayed};

const CLIENTS: i64 = 8;

/// Who promotes.
#[derive(Debug, Clone, Copy)]
enum Promotion {
    /// An operator, who has the other standby follow.
    Operator,
    /// `pg_promote()` on the standby, and nothing else.
    Function,
    /// The proxy, asked by the trigger file.
    TriggerFile,
}

/// A lab of three nodes with a proxy that has the lab's trigger file, and that holds statements for as long as a slow machine needs.
fn with_trigger_file() -> (LabGuard, Proxy) {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::with(
        &lab,
        &format!(
            "[failover]\nhold_timeout = \"60s\"\ntrigger_file = \"{}\"\n",
            lab.trigger_file().display()
        ),
    );
    (lab, proxy)
}

/// The standby that has received most: the one to promote where the primary was killed.
fn most_advanced(lab: &LabGuard) -> String {
    let received = |name: &str| {
        let sql = "select pg_last_wal_receive_lsn() - '0/0'";
        let bytes = lab.sql(name, sql).ok()?;
        bytes.parse::<u64>().ok()
    };
    let names = lab.nodes().iter().map(|node| node.name());
    let most = names.max_by_key(|name| received(name));
    most.expect("a standby").to_owned()
}

fn promote(lab: &LabGuard, promotion: Promotion) {
    match promotion {
        Promotion::Operator => lab.promote(&most_advanced(lab), &mut Quiet).expect("a promotion"),
        Promotion::Function => {
            let answer = lab.sql(&most_advanced(lab), "select pg_promote()");
            assert_eq!(answer.expect("a promotion"), "t");
        }
        Promotion::TriggerFile => fs::write(lab.trigger_file(), "").expect("the trigger file"),
    }
}

/// One failover under load: the primary is lost, every client comes to wait, a standby is promoted, every client goes on.
fn fail_over(lab: &LabGuard, proxy: &Proxy, journals: &Journals, mode: StopMode, promotion: Promotion) {
    let old = lab.primary().expect("a primary").name().to_owned();
    let (epoch, failovers) = epoch_and_failovers(proxy);
    lab.stop(&old, mode, &mut Quiet).expect("stopped");
    eventually("every client waits for a primary", || {
        proxy.metric("pgsluice_held_statements") == CLIENTS as f64
    });
    // They wait from the first connection that is refused; the monitor concludes a moment later.
    eventually("the proxy knows that it has no primary", || {
        proxy.status().primary.is_none()
    });
    promote(lab, promotion);
    journals.all_go_on();
    let new = proxy.status().primary.expect("a primary");
    assert_ne!(new, old, "{promotion:?}");
    assert_eq!(lab.primary().expect("a primary").name(), new);
    let (epoch_now, failovers_now) = epoch_and_failovers(proxy);
    assert!(epoch_now > epoch, "{promotion:?}: the epoch is {epoch_now}");
    assert_eq!(failovers_now, failovers + 1.0, "{promotion:?}");
    assert!(!lab.trigger_file().exists(), "the trigger file is still there");
}

fn epoch_and_failovers(proxy: &Proxy) -> (f64, f64) {
    (
        proxy.metric("pgsluice_routing_epoch"),
        proxy.metric("pgsluice_failovers_total"),
    )
}

/// Three failovers in a row, the lost primary coming back as a standby after each, with the same client connections all the time. Answers
/// the acknowledged writes that are lost.
async fn three_failovers(mode: StopMode) -> Vec<i64> {
    let (lab, proxy) = with_trigger_file();
    let journals = Journals::start(&proxy, CLIENTS).await;
    until_replayed(&lab);
    for promotion in [Promotion::Operator, Promotion::Function, Promotion::TriggerFile] {
        journals.all_go_on();
        fail_over(&lab, &proxy, &journals, mode, promotion);
        let primary = lab.primary().expect("a primary").name();
        for node in lab.nodes().iter().filter(|node| node.name() != primary) {
            lab.rejoin(node.name(), &mut Quiet).expect("a standby again");
        }
        proxy.until_serving(3);
    }
    journals.all_go_on();
    let journals = journals.finish().await;
    audit(&journals, lab.primary().expect("a primary")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_write_on_through_fast_stops_and_no_write_is_lost() {
    let lost = three_failovers(StopMode::Fast).await;
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_write_on_through_immediate_stops() {
    let lost = three_failovers(StopMode::Immediate).await;
    // Replication is asynchronous: the last commits before a crash may not have reached any standby.
    assert!(lost.len() <= 8, "acknowledged and lost: {lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_write_on_through_kills() {
    let lost = three_failovers(StopMode::Kill).await;
    assert!(lost.len() <= 8, "acknowledged and lost: {lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_file_takes_the_writes_from_a_living_primary_without_losing_one() {
    let (lab, proxy) = with_trigger_file();
    let journals = Journals::start(&proxy, CLIENTS).await;
    journals.all_go_on();
    promote(&lab, Promotion::TriggerFile);
    eventually("the trigger file is removed", || !lab.trigger_file().exists());
    let status = proxy.status();
    let new = status.primary.expect("a primary").clone();
    assert_ne!(new, "node1");
    // From here on every client has had an answer from the new primary.
    journals.all_go_on();
    assert_gets_nothing(&lab, &proxy, &journals, "node1");
    let journals = journals.finish().await;
    let lost = audit(&journals, lab.node(&new).expect("a node")).await;
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

/// The node runs and is out of recovery, and yet the proxy has nothing to do with it while the clients go on.
fn assert_gets_nothing(lab: &LabGuard, proxy: &Proxy, journals: &Journals, node: &str) {
    let entries = || lab.sql(node, "select count(*) from journal").expect("an answer");
    assert_eq!(lab.sql(node, "select pg_is_in_recovery()").expect("an answer"), "f");
    eventually("the old primary is known as one", || {
        proxy.node(node).role == Role::StalePrimary
    });
    assert!(!proxy.node(node).serving, "{:?}", proxy.node(node));
    let (statements, there) = (proxy.statements(node), entries());
    journals.all_go_on();
    journals.all_go_on();
    assert_eq!(proxy.statements(node), statements, "{node} was sent statements");
    assert_eq!(entries(), there, "{node} has written");
    let connections = "select count(*) from pg_stat_activity where backend_type = 'client backend' \
                       and pid <> pg_backend_pid() and application_name <> 'pgsluice monitor'";
    assert_eq!(lab.sql(node, connections).expect("an answer"), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_file_that_one_proxy_sees_loses_no_write_of_another_one_either() {
    let (lab, proxy) = with_trigger_file();
    let other = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
    let ours = Journals::start(&proxy, 4).await;
    let theirs = Journals::join(&other, 4..12).await;
    ours.all_go_on();
    theirs.all_go_on();
    promote(&lab, Promotion::TriggerFile);
    eventually("the promotion is done", || !lab.trigger_file().exists());
    ours.all_go_on();
    theirs.all_go_on();
    let mut journals = ours.finish().await;
    journals.extend(theirs.finish().await);
    assert_eq!(other.status().primary, proxy.status().primary);
    let leads = proxy.status().primary.expect("a primary");
    assert_ne!(leads, "node1");
    assert_eq!(audit(&journals, lab.node(&leads).expect("a node")).await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_comes_back_gets_nothing_until_it_follows_and_then_reads() {
    let (lab, proxy) = with_trigger_file();
    let journals = Journals::start(&proxy, CLIENTS).await;
    journals.all_go_on();
    fail_over(&lab, &proxy, &journals, StopMode::Fast, Promotion::Operator);
    let new = proxy.status().primary;
    lab.start("node1", &mut Quiet).expect("it starts as what it was");
    assert_gets_nothing(&lab, &proxy, &journals, "node1");
    assert_eq!(proxy.status().primary, new);
    assert_eq!(proxy.metric("pgsluice_split_brain"), 0.0);

    lab.rejoin("node1", &mut Quiet).expect("a standby");
    eventually("it serves as a standby", || {
        let node = proxy.node("node1");
        node.role == Role::Standby && node.serving
    });
    let (reads, writes) = proxy.statements("node1");
    let reader = proxy.client().await;
    let deadline = Instant::now() + PATIENCE;
    while proxy.statements("node1").0 < reads + 10 {
        assert!(
            Instant::now() < deadline,
            "no reads for node1: {:?}",
            proxy.node("node1")
        );
        reader.query("select count(*) from journal", &[]).await.expect("a read");
    }
    assert_eq!(proxy.statements("node1").1, writes, "a standby was sent a write");
    let journals = journals.finish().await;
    let lost = audit(&journals, lab.primary().expect("a primary")).await;
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_beside_a_living_primary_moves_the_writes_and_fences_it() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::start(&lab);
    let journals = Journals::start(&proxy, CLIENTS).await;
    journals.all_go_on();
    let (epoch, failovers) = epoch_and_failovers(&proxy);
    lab.sql("node2", "select pg_promote()").expect("a promotion");
    let promoted = Instant::now();
    eventually("the proxy follows", || {
        proxy.status().primary.as_deref() == Some("node2")
    });
    let took = promoted.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?} until it was noticed");
    // From here on every client has had an answer from the new primary.
    journals.all_go_on();
    let before = journals.acknowledged();
    assert_gets_nothing(&lab, &proxy, &journals, "node1");
    let (epoch_now, failovers_now) = epoch_and_failovers(&proxy);
    assert!(epoch_now > epoch);
    assert_eq!(failovers_now, failovers + 1.0);
    // What the old primary acknowledged between the promotion and its discovery is lost: nobody had fenced it. All else is there.
    let journals = journals.finish().await;
    let lost = audit(&journals, lab.node("node2").expect("a node")).await;
    for (journal, before) in journals.iter().zip(before) {
        let since = &journal.acknowledged[before..];
        assert!(!since.is_empty());
        assert!(
            since.iter().all(|entry| !lost.contains(entry)),
            "lost after the discovery: {lost:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_slept_through_a_promotion_writes_nothing_to_the_old_primary() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[monitor]\ninterval = \"100ms\"\ntimeout = \"200ms\"\n");
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(proxy.client().await);
    }
    clients[0]
        .batch_execute("create table t (n int)")
        .await
        .expect("a table");
    for client in &clients {
        client.batch_execute("insert into t values (0)").await.expect("a row");
    }
    let pinned = proxy.client_after("create temporary table own (n int)").await;
    until_replayed(&lab);
    proxy.signal(Signal::SIGSTOP);
    lab.sql("node2", "select pg_promote()").expect("a promotion");
    // One that is bound to its connection is told that it is lost.
    let pinned = tokio::spawn(async move { pinned.execute("insert into t values (1)", &[]).await });
    // They wait in the sockets when the proxy wakes up.
    let writes: Vec<_> = clients
        .into_iter()
        .map(|client| tokio::spawn(async move { client.execute("insert into t values (1)", &[]).await }))
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.signal(Signal::SIGCONT);
    for write in writes {
        ended("a write", write).await.expect("a write");
    }
    let told = ended("the pinned session's write", pinned).await.expect_err("its node");
    assert_eq!(sqlstate(&told), "57P01");
    let count = |node: &str| lab.sql(node, "select count(*) from t where n = 1").expect("a count");
    assert_eq!((count("node1"), count("node2")), ("0".to_owned(), "4".to_owned()));
}
