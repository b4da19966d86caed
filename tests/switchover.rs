//! SWITCHOVER, through the console and the command line, as clients of one proxy and of two see it: a pause, and nothing else.

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsluice::lab::{LabGuard, Quiet};
use support::journal::{Journals, audit, nobody_noticed};
use support::{Proxy, client, ended, eventually, last_words, sqlstate, until_replayed, watched};

/// The console lets the tests' user in; a switchover waits for a second, on slow machines too.
const SECTIONS: &str =
    "[admin]\nusers = [\"postgres\"]\n[failover]\nhold_timeout = \"60s\"\nswitchover_timeout = \"1s\"\n";

/// The console's row, or the error's code.
async fn switch_over(port: u16, command: &str) -> Result<Vec<String>, String> {
    support::switch_over(port, command).await.map_err(|(code, _)| code)
}

/// The old primary and the other standbys follow the new one, as an operator would have them.
fn follow_the_new(lab: &LabGuard, new: &str) {
    for node in lab.nodes().iter().filter(|node| node.name() != new) {
        lab.rejoin(node.name(), &mut Quiet).expect("a standby again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_two_proxies_notice_nothing_of_three_switchovers() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let (here, elsewhere) = (Proxy::with(&lab, SECTIONS), Proxy::with(&lab, SECTIONS));
    let ours = Journals::start(&here, 8).await;
    let theirs = Journals::join(&elsewhere, 8..12).await;
    for (command, expected) in [
        ("SWITCHOVER TO node2", Some("node2")),
        ("switchover to node3;", Some("node3")),
        ("SWITCHOVER", None),
    ] {
        ours.all_go_on();
        theirs.all_go_on();
        let began = Instant::now();
        let row = switch_over(here.port, command).await.expect("a switchover");
        println!("{command}: {row:?} in {:?}", began.elapsed());
        assert!(expected.is_none_or(|expected| row[0] == expected), "{row:?}");
        assert_eq!(row[4], "0", "transactions were ended: {row:?}");
        ours.all_go_on();
        theirs.all_go_on();
        for proxy in [&here, &elsewhere] {
            assert_eq!(proxy.status().primary.as_deref(), Some(&*row[0]));
        }
        follow_the_new(&lab, &row[0]);
        here.until_serving(3);
        elsewhere.until_serving(3);
    }
    let mut journals = ours.finish().await;
    journals.extend(theirs.finish().await);
    nobody_noticed(&journals);
    assert_eq!(audit(&journals, lab.primary().expect("a primary")).await, [0; 0]);
    assert_eq!(here.metric("pgsluice_failovers_total"), 3.0);
    eventually("it is known that nothing of the log is lost", || {
        here.metric("pgsluice_failover_lost_wal_bytes") == 0.0
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_may_end_and_one_that_does_not_is_ended() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, SECTIONS);
    let setup = proxy.client().await;
    // The monitor may end anybody's but a superuser's transaction, and it is one itself.
    setup
        .batch_execute("create table t (who text); create role app login; grant all on t to app; grant create on schema public to app")
        .await
        .expect("a table");
    until_replayed(&lab);
    let dsn = format!("host=127.0.0.1 port={} user=app dbname=postgres", proxy.port);
    let (quick, slow, new) = (client(&dsn).await, client(&dsn).await, client(&dsn).await);
    for (who, session) in [("quick", &quick), ("slow", &slow)] {
        let sql = format!("begin; insert into t values ('{who}')");
        session.batch_execute(&sql).await.expect("a block");
    }
    let (pinned, pinned_ending) = watched(&dsn).await;
    pinned
        .batch_execute("create temporary table own (n int)")
        .await
        .expect("a table");
    let began = Instant::now();
    let port = proxy.port;
    let switchover = tokio::spawn(async move { switch_over(port, "SWITCHOVER TO node2").await });
    eventually("writes are held", || proxy.status().primary.is_none());
    let held = tokio::spawn(async move { new.execute("insert into t values ('new')", &[]).await });
    eventually("it waits", || proxy.metric("pgsluice_held_statements") == 1.0);
    quick
        .batch_execute("insert into t values ('quick'); commit")
        .await
        .expect("it may end");
    let row = ended("the switchover", switchover).await;
    let row = row.expect("a switchover");
    assert_eq!((&*row[0], &*row[4]), ("node2", "1"), "{row:?}");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    ended("the held write", held).await.expect("a write");
    // Told once, on the same connection.
    let told = slow
        .batch_execute("insert into t values ('slow')")
        .await
        .expect_err("it was ended");
    assert_eq!(sqlstate(&told), "40001");
    slow.batch_execute("rollback").await.expect("its end");
    slow.batch_execute("insert into t values ('slow again')")
        .await
        .expect("it goes on");
    assert_eq!(last_words(pinned_ending).await, "57P01");
    assert!(pinned.is_closed());
    let there = lab
        .sql("node2", "select string_agg(who, ',' order by who) from t")
        .expect("rows");
    assert_eq!(there, "new,quick,quick,slow again");
    // Nothing can be written to the old one by mistake.
    assert_eq!(
        lab.sql("node1", "show default_transaction_read_only")
            .expect("a setting"),
        "on"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_its_way_to_the_old_primary_is_carried_out_there() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, &format!("[pool]\nsize = 1\n{SECTIONS}"));
    let client = proxy
        .client_after(
            "create table t (n int); create function adds() returns void language sql as 'insert into t values (1)'",
        )
        .await;
    until_replayed(&lab);
    let row = client
        .query_one("/* pgsluice: primary */ select pg_backend_pid()", &[])
        .await;
    let process = Pid::from_raw(row.expect("a process").get(0));
    // The statement has been sent, and nobody has read it.
    kill(process, Signal::SIGSTOP).expect("the server process stops");
    let write = tokio::spawn(async move { client.batch_execute("select adds()").await });
    eventually("it was sent", || proxy.node("node1").connections.active == 1);
    let port = proxy.port;
    let switchover = tokio::spawn(async move { switch_over(port, "SWITCHOVER TO node2").await });
    eventually("writes are held", || proxy.status().primary.is_none());
    tokio::time::sleep(Duration::from_millis(50)).await;
    kill(process, Signal::SIGCONT).expect("the server process goes on");
    ended("the write", write).await.expect("a write like any other");
    let row = ended("the switchover", switchover).await;
    assert_eq!(row.expect("a switchover")[4], "0", "it was ended");
    assert_eq!(lab.sql("node2", "select count(*) from t").expect("a count"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_that_is_refused_or_given_up_leaves_everything_as_it_was() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::with(&lab, SECTIONS);
    let journals = Journals::start(&proxy, 4).await;
    journals.all_go_on();
    for (command, code) in [
        ("SWITCHOVER TO node1", "55000"),
        ("SWITCHOVER TO node9", "42704"),
        ("SWITCHOVER node2", "42601"),
    ] {
        assert_eq!(
            switch_over(proxy.port, command).await,
            Err(code.to_owned()),
            "{command}"
        );
    }
    lab.pause_replay("node3").expect("paused");
    let told = switch_over(proxy.port, "SWITCHOVER TO node3").await;
    assert_eq!(told, Err("55000".to_owned()));
    lab.resume_replay("node3").expect("resumed");
    // This one is found out only when writes are held.
    for sql in [
        "alter system set recovery_min_apply_delay = '60s'",
        "select pg_reload_conf()",
    ] {
        lab.sql("node3", sql).expect("a setting");
    }
    journals.all_go_on();
    let told = switch_over(proxy.port, "SWITCHOVER TO node3").await;
    assert_eq!(told, Err("55000".to_owned()));
    journals.all_go_on();
    assert_eq!(
        lab.sql("node1", "show default_transaction_read_only")
            .expect("a setting"),
        "off"
    );
    let journals = journals.finish().await;
    nobody_noticed(&journals);
    assert_eq!(audit(&journals, lab.primary().expect("a primary")).await, [0; 0]);
    assert_eq!(proxy.metric("pgsluice_failovers_total"), 0.0);
}
