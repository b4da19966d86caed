//! Positions that travel between sessions and proxies, and reads that wait for a standby to come to one.

mod support;

use std::time::{Duration, Instant};

use pgsluice::lab::{LabGuard, Quiet, StopMode};
use support::scene::until;
use support::wire::*;
use support::{Proxy, until_replayed};

const EVENTUAL: &str = "[routing]\nconsistency = \"eventual\"\nmax_lag = \"10min\"\n[monitor]\ninterval = \"100ms\"\n";

async fn login(proxy: &Proxy) -> Wire {
    Wire::login(proxy.port, "postgres").await
}

/// `TIMELINE:X/Y@SYSTEM_IDENTIFIER`
async fn position_of(client: &mut Wire) -> String {
    client.value("show pgsluice.position").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_makes_another_proxys_session_see_what_this_one_wrote() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let (here, there) = (Proxy::with(&lab, EVENTUAL), Proxy::with(&lab, EVENTUAL));
    let mut writer = login(&here).await;
    assert_eq!(position_of(&mut writer).await, "", "of a session that has done nothing");
    writer.run("create table t (n int)").await;
    until_replayed(&lab);
    lab.pause_replay("node2").expect("paused");
    writer.run("set synchronous_commit = off").await;
    writer.run("insert into t values (42)").await;
    let position = position_of(&mut writer).await;

    let count = "select count(*) from t";
    let mut careless = login(&there).await;
    assert_eq!(
        careless.value(count).await,
        "0",
        "the standby stands still, and anything goes"
    );
    let mut by_setting = login(&there).await;
    by_setting
        .run(&format!("set pgsluice.min_position = '{position}'"))
        .await;
    assert_eq!(by_setting.value("show pgsluice.min_position").await, position);
    let options = format!("-c pgsluice.min_position={position}");
    let mut by_option = Wire::login_with(
        there.port,
        &[("user", "postgres"), ("database", "postgres"), ("options", &options)],
    )
    .await;
    let hinted = format!("/* pgsluice: min_position={position} */ {count}");
    for _ in 0..10 {
        assert_eq!(by_setting.value(count).await, "1");
        assert_eq!(by_option.value(count).await, "1");
        assert_eq!(careless.value(&hinted).await, "1");
        assert_eq!(
            firsts(&careless.ask(&[extended(&hinted, &[]), sync()].concat()).await),
            ["1"]
        );
    }
    assert_eq!(careless.value(count).await, "0");
    // What it is to see it hands on, also without a write of its own.
    assert_eq!(position_of(&mut by_setting).await, position);
    // A block on a standby that comes to such a read moves.
    careless.run("begin read only").await;
    assert_eq!(careless.value(count).await, "0");
    assert_eq!(careless.value(&hinted).await, "1");
    careless.run("commit").await;

    // Where the standby has come so far it reads as ever.
    lab.resume_replay("node2").expect("resumed");
    let recovers = "select pg_is_in_recovery() /* pgsluice: standby */";
    until("the standby takes the read", async || {
        by_setting.value(recovers).await == "t"
    })
    .await;
    until("the standby takes plain reads", async || {
        let before = there.statements("node2").0;
        assert_eq!(by_setting.value(count).await, "1");
        there.statements("node2").0 > before
    })
    .await;
    by_setting.run("reset pgsluice.min_position").await;
    assert_eq!(by_setting.value("show pgsluice.min_position").await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_position_of_this_cluster_is_refused() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"1s\"\n");
    let mut client = login(&proxy).await;
    for bad in ["0/5", "1:0/5@17", "x", "1:0/5@"] {
        let answer = client.query(&format!("set pgsluice.min_position = '{bad}'")).await;
        assert_eq!(codes(&answer), ["22023"], "{bad}: {}", show(&answer));
        let answer = client
            .query(&format!("/* pgsluice: min_position={bad} */ select 1"))
            .await;
        assert_eq!(codes(&answer), ["22023"], "{bad}: {}", show(&answer));
        let options = format!("-c pgsluice.min_position={bad}");
        let mut refused = Wire::open(proxy.port).await;
        refused
            .send(&startup(
                0,
                &[("user", "postgres"), ("database", "postgres"), ("options", &options)],
            ))
            .await;
        assert_eq!(codes(&refused.rest().await), ["22023"], "{bad}");
    }
    assert_eq!(client.value("select 1").await, "1");
    // A timeline that only others have heard of: the read waits for news of it, and says so when none comes.
    client.run("set pgsluice.min_position = '7:0/5'").await;
    let answer = client.query("select 1").await;
    assert_eq!(codes(&answer), ["57P03"], "{}", show(&answer));
    assert!(show(&answer).contains("position"), "{}", show(&answer));
    client.run("set pgsluice.min_position = ''").await;
    assert_eq!(client.value("select 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_from_before_a_failover_is_reached_or_lost_and_never_waited_for_in_vain() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, EVENTUAL);
    let mut client = login(&proxy).await;
    client.run("create table t (n int); insert into t values (1)").await;
    let position = position_of(&mut client).await;
    let (place, cluster) = position.split_once('@').expect("a system identifier");
    assert!(place.starts_with("1:"), "{position}");
    until_replayed(&lab);
    lab.stop("node1", StopMode::Fast, &mut Quiet).expect("stopped");
    lab.promote("node2", &mut Quiet).expect("a promotion");
    lab.rejoin("node1", &mut Quiet).expect("a standby again");
    proxy.until_serving(2);

    let mut reader = login(&proxy).await;
    reader.run(&format!("set pgsluice.min_position = '{position}'")).await;
    let before = proxy.statements("node1").0;
    until("the new standby has it", async || {
        let answer = reader.query("select n from t").await;
        assert_eq!(firsts(&answer), ["1"], "{}", show(&answer));
        assert!(!tags(&answer).contains('N'), "{}", show(&answer));
        proxy.statements("node1").0 > before
    })
    .await;
    // Behind the end of its timeline: whoever was told of it must know.
    let lost = format!("1:FFFF/0@{cluster}");
    until("the proxy knows where the timeline ended", async || {
        reader.run(&format!("set pgsluice.min_position = '{lost}'")).await;
        let before = proxy.statements("node1").0;
        let answer = reader.query("select n from t").await;
        assert_eq!(firsts(&answer), ["1"], "{}", show(&answer));
        tags(&answer).contains('N') && show(&answer).contains("lost") && proxy.statements("node1").0 > before
    })
    .await;
    let answer = reader.query("select n from t").await;
    assert!(!tags(&answer).contains('N'), "told twice: {}", show(&answer));
    assert!(proxy.metric("pgsluice_lost_positions_total") >= 1.0);
    assert!(position_of(&mut reader).await.starts_with("1:FFFF/0"));
    reader.run("insert into t values (2)").await;
    assert!(position_of(&mut reader).await.starts_with("2:"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_waits_for_a_standby_to_catch_up_as_long_as_it_may() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(
        &lab,
        "[routing]\nwait_for_standby = \"20s\"\nmax_lag = \"10min\"\n[monitor]\ninterval = \"5s\"\n",
    );
    let hasty = Proxy::with(&lab, "[routing]\nwait_for_standby = \"300ms\"\nmax_lag = \"10min\"\n");
    let mut client = login(&proxy).await;
    client.run("create table t (n int)").await;
    let outcome = |proxy: &Proxy, outcome: &str| {
        let line = format!("pgsluice_reads_total{{level=\"read_your_writes\",outcome=\"{outcome}\"}}");
        proxy.metric(&line)
    };
    // On a healthy cluster the wait is short, whatever the monitor's interval: the nodes are asked for it.
    let began = Instant::now();
    for n in 1..=20 {
        client.run(&format!("insert into t values ({n})")).await;
        assert_eq!(client.value("select count(*) from t").await, n.to_string());
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(outcome(&proxy, "waited") + outcome(&proxy, "standby") >= 20.0);
    assert_eq!(outcome(&proxy, "primary"), 0.0);

    lab.pause_replay("node2").expect("paused");
    client.run("insert into t values (21)").await;
    let waits = tokio::spawn(async move {
        let count = client.value("select count(*) from t").await;
        (client, count)
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waits.is_finished());
    lab.resume_replay("node2").expect("resumed");
    let (_client, count) = support::ended("the read", waits).await;
    assert_eq!(count, "21");
    assert_eq!(outcome(&proxy, "primary"), 0.0);
    assert!(proxy.metric("pgsluice_standby_wait_seconds_count") >= 1.0);

    // One that may not wait for so long goes to the primary.
    lab.pause_replay("node2").expect("paused");
    let mut client = login(&hasty).await;
    client.run("insert into t values (22)").await;
    let began = Instant::now();
    assert_eq!(client.value("select count(*) from t").await, "22");
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    assert_eq!(outcome(&hasty, "primary"), 1.0);
    lab.resume_replay("node2").expect("resumed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_find_no_standby_leave_connections_for_writes() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[pool]\nsize = 3\noverflow = 2\n[routing]\nmax_lag = \"1s\"\n");
    let mut writer = login(&proxy).await;
    writer.run("create table t (n int)").await;
    lab.stop("node2", StopMode::Fast, &mut Quiet).expect("stopped");
    until("the standby is out", async || !proxy.node("node2").serving).await;
    let mut readers = Vec::new();
    for _ in 0..6 {
        let mut reader = login(&proxy).await;
        readers.push(tokio::spawn(async move {
            reader
                .value("select count(pg_sleep(1)) from t right join (values (1)) v on true")
                .await
        }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    for n in 0..5 {
        writer.run(&format!("insert into t values ({n})")).await;
    }
    assert!(
        began.elapsed() < Duration::from_millis(700),
        "writes waited for reads: {:?}",
        began.elapsed()
    );
    for reader in readers {
        support::ended("a read", reader).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_transaction_has_the_level_that_its_begin_asks_for() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, EVENTUAL);
    let mut client = login(&proxy).await;
    let where_am_i = "select pg_is_in_recovery() /* pgsluice: standby */";
    for (begin, on_standby) in [
        ("begin read only", "t"),
        ("begin read only /* pgsluice: consistency=linearizable */", "f"),
        ("/* pgsluice: consistency=eventual */ begin read only", "t"),
    ] {
        client.run(begin).await;
        assert_eq!(client.value(where_am_i).await, on_standby, "{begin}");
        client.run("commit").await;
    }
    // What asks for more in a block moves it.
    client.run("begin read only").await;
    assert_eq!(client.value("select 1").await, "1");
    client.run("set local pgsluice.consistency = linearizable").await;
    assert_eq!(client.value("select pg_is_in_recovery()").await, "f");
    client.run("commit").await;
}

/// The manual's example, as it stands there but for the ports and the position.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readmes_example_of_a_position_runs() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let (here, there) = (Proxy::start(&lab), Proxy::start(&lab));
    login(&here).await.run("create table orders (id int)").await;
    let readme = include_str!("../README.md");
    let psql = |line: &str, position: &str| {
        let line = line
            .replace("-p 5432", &format!("-p {}", here.port))
            .replace("-p 5433", &format!("-p {}", there.port))
            .replace("1:0/3041F98@7431260389410123456", position)
            .replace(
                "$ psql",
                &format!("{}/psql -X -U postgres -d postgres", lab.pg_bin().display()),
            );
        let output = std::process::Command::new("sh")
            .args(["-c", &line])
            .output()
            .expect("psql");
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    let lines: Vec<&str> = readme
        .lines()
        .filter(|line| line.starts_with("$ psql") && line.contains("pgsluice."))
        .collect();
    let [insert, select] = lines[..] else {
        panic!("{lines:?}")
    };
    let told = psql(insert, "");
    let position = told.lines().last().expect("a position");
    assert!(told.starts_with("INSERT 0 1\n1:") && position.contains('@'), "{told}");
    assert_eq!(psql(select, position), "SET\n7\n");
}
