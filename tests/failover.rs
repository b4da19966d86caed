//! What clients see of a failover, through the real proxy and on real servers: nothing but a pause, unless a transaction of theirs was
//! under way, and then the truth about it.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pgsluice::admin::status::Role;
use pgsluice::lab::{LabGuard, LabOptions, Quiet, StopMode};
use support::journal::{Journals, audit};
use support::simple::{Said, Simple};
use support::wire::{Message, Wire, bind, codes, execute, message, parse, query, show, sync, tags};
use support::{PATIENCE, Proxy, direct, ended, eventually, last_words, sqlstate, until_replayed, watched};
use tokio_postgres::Client;

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
async fn without_a_primary_writes_wait_for_hold_timeout_and_no_longer() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let patient = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\nhold_max = 2\n");
    let hasty = Proxy::with(&lab, "[failover]\nhold_timeout = \"500ms\"\n");
    patient
        .client()
        .await
        .batch_execute("create table t (n int)")
        .await
        .expect("a table");
    let (waiting, also_waiting, one_too_many) =
        (patient.client().await, patient.client().await, patient.client().await);
    let (soon_told, in_a_block) = (hasty.client().await, hasty.client().await);
    lab.stop("node1", StopMode::Fast, &mut Quiet).expect("stopped");

    let write = tokio::spawn(async move { waiting.execute("insert into t values (1)", &[]).await });
    let begin = tokio::spawn(async move {
        let sql = "begin; insert into t values (2); commit";
        also_waiting.batch_execute(sql).await
    });
    eventually("both are held", || patient.metric("pgsluice_held_statements") == 2.0);
    let asked = Instant::now();
    let refused = one_too_many.execute("insert into t values (3)", &[]).await;
    assert_eq!(sqlstate(&refused.expect_err("hold_max")), "57P03");
    assert!(asked.elapsed() < Duration::from_secs(10), "it waited");
    assert!(!one_too_many.is_closed());

    let asked = Instant::now();
    for client in [&soon_told, &in_a_block] {
        let told = client.batch_execute("insert into t values (4)").await;
        let told = told.expect_err("there is no primary");
        assert_eq!(sqlstate(&told), "57P03", "{told}");
        assert!(
            told.to_string().contains("no primary")
                || told.as_db_error().is_some_and(|e| e.message().contains("no primary"))
        );
    }
    let told = in_a_block
        .batch_execute("begin")
        .await
        .expect_err("there is no primary");
    assert_eq!(sqlstate(&told), "57P03");
    // What was meant for the block that didn't begin must not run by itself.
    let told = in_a_block.batch_execute("insert into t values (4)").await;
    assert_eq!(sqlstate(&told.expect_err("its block was refused")), "25P02");
    in_a_block
        .batch_execute("rollback")
        .await
        .expect("the end of the block");
    let took = asked.elapsed();
    assert!(took >= Duration::from_millis(1500), "only {took:?} for three");
    assert!(took < Duration::from_secs(15), "{took:?} for three");

    lab.promote("node2", &mut Quiet).expect("a promotion");
    ended("the held statement", write)
        .await
        .expect("the held statement ran");
    ended("the held block", begin).await.expect("the held block ran");
    assert_eq!(patient.metric("pgsluice_held_statements"), 0.0);
    eventually("the other proxy has found it too", || hasty.status().primary.is_some());
    for (client, n) in [(&soon_told, 5), (&in_a_block, 6), (&one_too_many, 7)] {
        assert!(!client.is_closed());
        let sql = format!("insert into t values ({n})");
        client.batch_execute(&sql).await.expect("it can be used again");
    }
    let rows = lab.sql("node2", "select string_agg(n::text, ',' order by n) from t");
    assert_eq!(rows.expect("rows"), "1,2,5,6,7", "what was refused was not written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_connection_to_a_primary_that_hangs_runs_on_the_next_as_soon_as_there_is_one() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(
        &lab,
        "[pool]\nsize = 2\nconnect_timeout = \"1min\"\n[failover]\nhold_timeout = \"60s\"\n",
    );
    let (mut one, mut another) = (
        Wire::login(proxy.port, "postgres").await,
        Wire::login(proxy.port, "postgres").await,
    );
    one.run("create table t (n int)").await;
    let mut waiting = Vec::new();
    for _ in 0..6 {
        waiting.push(Wire::login(proxy.port, "postgres").await);
    }
    until_replayed(&lab);
    lab.freeze("node1").expect("frozen");
    // Two have the pool's room, one of them for a connection that it waits for; the rest wait for theirs.
    for client in [&mut one, &mut another].into_iter().chain(&mut waiting) {
        client.send(&query("insert into t values (1)")).await;
    }
    eventually("the proxy gives the primary up", || proxy.status().primary.is_none());
    lab.sql("node2", "select pg_promote()").expect("a promotion");
    let promoted = Instant::now();
    let mut told = Vec::new();
    for client in [&mut one, &mut another].into_iter().chain(&mut waiting) {
        told.extend(codes(&client.answer().await));
    }
    let took = promoted.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?} for the last");
    assert!(told.len() <= 2 && told.iter().all(|code| code == "08007"), "{told:?}");
    let rows = lab.sql("node2", "select count(*) from t").expect("a count");
    assert_eq!(rows, (8 - told.len()).to_string());
}

fn said(commands: &[&str], codes: &[&str], status: char) -> Said {
    Said {
        commands: commands.iter().map(ToString::to_string).collect(),
        codes: codes.iter().map(ToString::to_string).collect(),
        status: Some(status),
    }
}

/// A client in a block that has written a row.
async fn in_block(proxy: &Proxy, row: &str) -> Simple {
    let mut client = Simple::login(proxy.port).await;
    assert_eq!(client.say("begin").await, said(&["BEGIN"], &[], 'T'));
    let insert = format!("insert into t values ('{row}')");
    assert_eq!(client.say(&insert).await, said(&["INSERT 0 1"], &[], 'T'));
    client
}

async fn works_on_the_new_primary(client: &mut Simple, row: &str) {
    let insert = format!("begin; insert into t values ('{row}'); commit");
    assert_eq!(
        client.say(&insert).await,
        said(&["BEGIN", "INSERT 0 1", "COMMIT"], &[], 'I')
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_is_lost_while_idle_says_so_once_and_never_commits() {
    for mode in [StopMode::Fast, StopMode::Kill] {
        let lab = LabGuard::fresh(1).expect("a lab");
        let proxy = Proxy::start(&lab);
        proxy
            .client()
            .await
            .batch_execute("create table t (row text)")
            .await
            .expect("a table");
        let mut asks = in_block(&proxy, "asks").await;
        let mut commits = in_block(&proxy, "commits").await;
        let mut commits_late = in_block(&proxy, "commits late").await;
        let mut rolls_back = in_block(&proxy, "rolls back").await;
        let mut has_savepoint = in_block(&proxy, "has savepoint").await;
        assert_eq!(has_savepoint.say("savepoint s").await, said(&["SAVEPOINT"], &[], 'T'));
        let mut commits_by_several = in_block(&proxy, "commits by several").await;
        let mut driver = proxy.client().await;
        let transaction = driver.transaction().await.expect("a block");
        let insert = transaction.prepare("insert into t values ('driver')").await;
        let insert = insert.expect("a statement");
        transaction.execute(&insert, &[]).await.expect("a row");

        until_replayed(&lab);
        lab.stop("node1", mode, &mut Quiet).expect("stopped");
        lab.promote("node2", &mut Quiet).expect("a promotion");

        assert_eq!(asks.say("select 1").await, said(&[], &["40001"], 'E'), "{mode:?}");
        for _ in 0..2 {
            assert_eq!(asks.say("insert into t values ('x')").await, said(&[], &["25P02"], 'E'));
        }
        assert_eq!(asks.say("rollback").await, said(&["ROLLBACK"], &[], 'I'));
        works_on_the_new_primary(&mut asks, "asks again").await;

        assert_eq!(commits.say("commit").await, said(&[], &["40001"], 'I'), "{mode:?}");
        works_on_the_new_primary(&mut commits, "commits again").await;

        assert_eq!(commits_late.say("select 1").await, said(&[], &["40001"], 'E'));
        assert_eq!(commits_late.say("commit").await, said(&["ROLLBACK"], &[], 'I'));
        works_on_the_new_primary(&mut commits_late, "commits late again").await;

        assert_eq!(rolls_back.say("rollback").await, said(&["ROLLBACK"], &[], 'I'));
        works_on_the_new_primary(&mut rolls_back, "rolls back again").await;

        // The savepoint is gone with the rest.
        assert_eq!(has_savepoint.say("rollback to s").await, said(&[], &["40001"], 'E'));
        assert_eq!(has_savepoint.say("rollback to s").await, said(&[], &["25P02"], 'E'));
        assert_eq!(has_savepoint.say("rollback").await, said(&["ROLLBACK"], &[], 'I'));

        let told = commits_by_several.say("insert into t values ('y'); commit").await;
        assert!(told.commands.is_empty() && told.codes == ["40001"], "{told:?}");
        if told.status == Some('E') {
            assert_eq!(commits_by_several.say("rollback").await, said(&["ROLLBACK"], &[], 'I'));
        }
        works_on_the_new_primary(&mut commits_by_several, "several again").await;

        // The driver closes the statement, and has no ear for an error of that.
        drop(insert);
        let told = transaction.commit().await.expect_err("a lost block does not commit");
        assert_eq!(sqlstate(&told), "40001", "{told}");
        driver
            .execute("insert into t values ('driver again')", &[])
            .await
            .expect("it works on the new primary");

        let rows = lab.sql("node2", "select string_agg(row, ',' order by row) from t");
        let again = "asks again,commits again,commits late again,driver again,rolls back again,several again";
        assert_eq!(rows.expect("rows"), again, "{mode:?}");
    }
}

/// Runs a statement that can't end by itself, and answers when the primary is at it.
async fn under_way(lab: &LabGuard, client: Client, sql: &str) -> tokio::task::JoinHandle<(Client, String)> {
    let running = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    let before = lab.sql("node1", running).expect("an answer");
    let sql = sql.to_owned();
    let task = tokio::spawn(async move {
        let ended = client.batch_execute(&sql).await;
        (
            client,
            ended.map_or_else(|error| sqlstate(&error), |()| "done".to_owned()),
        )
    });
    eventually("the statement runs", || {
        lab.sql("node1", running).expect("an answer") != before
    });
    task
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_while_it_runs_is_reported_for_what_it_may_have_done() {
    // A server that stops in order says goodbye, and then the transaction is certainly gone. One that is killed says nothing.
    // Of several statements a part may be done.
    for (mode, alone, block, several) in [
        (StopMode::Fast, "40001", "40001", "08007"),
        (StopMode::Kill, "08007", "40001", "08007"),
    ] {
        let lab = LabGuard::fresh(1).expect("a lab");
        let proxy = Proxy::start(&lab);
        let setup = proxy.client().await;
        setup.batch_execute("create table t (row text)").await.expect("a table");
        let write = "insert into t select 'lost' from pg_sleep(1000)";
        let in_block = proxy.client().await;
        in_block.batch_execute("begin").await.expect("a block");
        let tasks = [
            (alone, under_way(&lab, proxy.client().await, write).await),
            (block, under_way(&lab, in_block, write).await),
            (
                several,
                under_way(&lab, proxy.client().await, &format!("begin; {write}; commit")).await,
            ),
        ];
        until_replayed(&lab);
        lab.stop("node1", mode, &mut Quiet).expect("stopped");
        lab.promote("node2", &mut Quiet).expect("a promotion");
        for (number, (wanted, task)) in tasks.into_iter().enumerate() {
            let (client, told) = ended("an answer", task).await;
            assert_eq!(told, wanted, "{mode:?} {number}");
            client.batch_execute("rollback").await.expect("an answer");
            let insert = format!("insert into t values ('kept {number}')");
            client.batch_execute(&insert).await.expect("the connection works");
        }
        let rows = lab.sql("node2", "select string_agg(row, ',' order by row) from t");
        assert_eq!(rows.expect("rows"), "kept 0,kept 1,kept 2", "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_only_the_session_is_in_no_doubt_and_runs_again() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
    let texts = [
        "set work_mem = '5MB'",
        "reset work_mem",
        "show work_mem",
        "deallocate all",
        "discard all",
        "prepare p as select 1",
    ];
    let mut clients = Vec::new();
    for _ in texts {
        clients.push(Wire::login(proxy.port, "postgres").await);
    }
    for client in &mut clients {
        client
            .send(&query("/* pgsluice: primary */ select pg_sleep(0.1)"))
            .await;
    }
    for client in &mut clients {
        client.answer().await;
    }
    until_replayed(&lab);
    // Each now finds a connection that is open already.
    lab.freeze("node1").expect("frozen");
    for (client, text) in clients.iter_mut().zip(texts) {
        client.send(&query(text)).await;
    }
    eventually("all were sent", || {
        proxy.node("node1").connections.active == texts.len() as u64
    });
    lab.sql("node2", "select pg_promote()").expect("a promotion");
    for (client, text) in clients.iter_mut().zip(texts) {
        let answer = client.answer().await;
        assert!(codes(&answer).is_empty(), "{text}: {}", show(&answer));
    }
    assert_eq!(clients[0].value("show work_mem").await, "5MB");
}

/// A server that is told to stop while it commits finishes that, and by the extended protocol says both: that it has committed, and that it
/// ends the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_the_server_carries_out_on_its_way_down_is_not_said_to_be_undone() {
    let dir = LabGuard::fresh_dir().expect("a folder");
    let lab = LabGuard::up(LabOptions {
        standbys: 1,
        fast: false, // Without fsync a commit doesn't wait for company.
        ..LabOptions::for_test(dir)
    });
    let lab = lab.expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
    let mut clients = Vec::new();
    for row in 0..6 {
        let mut client = Wire::login(proxy.port, "postgres").await;
        if row == 0 {
            client.run("create table t (row int)").await;
        }
        client.ask(&[parse("end", "commit", &[]), sync()].concat()).await;
        client.run(&format!("begin; insert into t values ({row})")).await;
        clients.push(client);
    }
    // Each alone, since none of them can run in a block.
    for sql in [
        "alter system set commit_delay = 100000",
        "alter system set commit_siblings = 0",
    ] {
        lab.sql("node1", sql).expect("a setting");
    }
    lab.sql("node1", "select pg_reload_conf()").expect("a reload");
    let delay = "select setting from pg_settings where name = 'commit_delay'";
    eventually("commits take long", || {
        lab.sql("node1", delay).expect("a setting") == "100000"
    });
    for client in &mut clients {
        client
            .send(&[bind("", "end", &[]), execute("", 0), sync()].concat())
            .await;
    }
    until_waiting(&lab, "node1", &["WALWrite"; 5]);
    lab.stop("node1", StopMode::Fast, &mut Quiet).expect("stopped");
    lab.promote("node2", &mut Quiet).expect("a promotion");
    let mut committed = 0;
    for (row, client) in clients.iter_mut().enumerate() {
        let answer = client.answer().await;
        let code = codes(&answer).into_iter().next();
        let there = client.value(&format!("select count(*) from t where row = {row}")).await == "1";
        match code.as_deref() {
            None => assert!(there, "{row} was told that it is committed: {}", show(&answer)),
            Some("40001") => assert!(!there, "{row} was told that it isn't committed: {}", show(&answer)),
            code => assert_eq!(code, Some("08007"), "{row}: {}", show(&answer)),
        }
        committed += usize::from(there);
    }
    assert!(committed > 0, "the server was quicker to stop than to commit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_runs_on_a_lost_standby_runs_again_elsewhere() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::start(&lab);
    let setup = proxy.client().await;
    setup
        .batch_execute("create table t as select generate_series(1, 3) as n; create table u (n int)")
        .await
        .expect("tables");
    // A lock that the standbys have replayed keeps reads there waiting until it is given back.
    let locker = direct(lab.node("node1").expect("a node")).await;
    locker
        .batch_execute("begin; lock table t in access exclusive mode")
        .await
        .expect("a lock");
    setup
        .batch_execute("insert into u values (1)")
        .await
        .expect("a commit, so that the lock is sent");
    let on_standbys = |sql: &str| ["node2", "node3"].map(|node| lab.sql(node, sql).expect("an answer"));
    eventually("the lock is replayed", || {
        let sql = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and relation = 't'::regclass";
        on_standbys(sql) == ["1", "1"]
    });
    // As many reads as it takes for both to have some: the balancer may think little of one of them.
    let waiting = || {
        let sql = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
        on_standbys(sql).map(|count| count.parse::<usize>().expect("a count"))
    };
    let mut reads = Vec::new();
    while waiting().contains(&0) {
        assert!(reads.len() < 20, "all reads went to one: {:?}", waiting());
        let client = proxy.client().await;
        reads.push(tokio::spawn(async move {
            let answer = client.simple_query("select n from t").await;
            answer.map(|messages| messages.len())
        }));
        eventually("the read waits", || waiting().iter().sum::<usize>() == reads.len());
    }
    lab.stop("node2", StopMode::Kill, &mut Quiet).expect("stopped");
    locker.batch_execute("rollback").await.expect("the lock is given back");
    for read in reads {
        let messages = ended("the read", read).await.expect("an answer all the same");
        assert_eq!(messages, 5, "a description, three rows and a tag");
    }
    assert!(proxy.metric("pgsluice_retries_total{reason=\"node_lost\"}") >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_on_a_standby_that_hangs_runs_again_elsewhere_once_that_is_known() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[monitor]\ntimeout = \"300ms\"\n");
    let client = proxy.client().await;
    client
        .batch_execute("create table t as select 1 as n")
        .await
        .expect("a table");
    until_replayed(&lab);
    // Its own write is a moment too new for the standby.
    let sql = "/* pgsluice: standby */ select n from t";
    let deadline = Instant::now() + PATIENCE;
    while proxy.statements("node2").0 == 0 {
        assert!(Instant::now() < deadline, "no read on the standby");
        client.query_one(sql, &[]).await.expect("a read");
    }
    let (reads, _) = proxy.statements("node2");
    lab.freeze("node2").expect("frozen");
    let read = tokio::spawn(async move { client.simple_query(sql).await.map(|messages| messages.len()) });
    eventually("it was sent to the standby", || proxy.statements("node2").0 > reads);
    let messages = ended("the read", read).await.expect("an answer all the same");
    assert_eq!(messages, 3, "a description, a row and a tag");
    lab.thaw("node2").expect("thawed");
    proxy.until_serving(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_on_a_lost_primary_runs_again_on_the_next() {
    for mode in [StopMode::Fast, StopMode::Immediate, StopMode::Kill] {
        let lab = LabGuard::fresh(1).expect("a lab");
        let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
        let (simple, prepared, started) = (proxy.client().await, proxy.client().await, proxy.client().await);
        simple
            .batch_execute("create table t as select generate_series(1, 3) as n")
            .await
            .expect("a table");
        let sql = "/* pgsluice: primary */ select n from t";
        let statement = prepared.prepare(sql).await.expect("a statement");
        // What waits for a lock has not been bound; what sleeps has, and a server that stops says so to the client before it goes.
        let asleep = "/* pgsluice: primary */ select n, pg_sleep(1) from generate_series(1, 3) as n";
        let asleep = started.prepare(asleep).await.expect("a statement");
        let locker = direct(lab.node("node1").expect("a node")).await;
        locker
            .batch_execute("begin; lock table t in access exclusive mode")
            .await
            .expect("a lock");
        let reads = [
            tokio::spawn(async move { started.query(&asleep, &[]).await.map(|rows| rows.len()) }),
            tokio::spawn(async move { simple.simple_query(sql).await.map(|messages| messages.len() - 2) }),
            tokio::spawn(async move { prepared.query(&statement, &[]).await.map(|rows| rows.len()) }),
        ];
        eventually("two wait for the lock, and one sleeps", || {
            let sql = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' or wait_event = 'PgSleep'";
            lab.sql("node1", sql).expect("a count") == "3"
        });
        until_replayed(&lab);
        lab.stop("node1", mode, &mut Quiet).expect("stopped");
        lab.promote("node2", &mut Quiet).expect("a promotion");
        for read in reads {
            let rows = ended("the read", read).await;
            assert_eq!(rows.unwrap_or_else(|error| panic!("{mode:?}: {error}")), 3);
        }
    }
}

/// The one error of an answer that ends with ReadyForQuery outside of a block.
fn only_error(answer: &[Message]) -> String {
    let codes = codes(answer);
    let ready = answer.last().map(Message::encode);
    assert_eq!(ready.as_deref(), Some(&b"Z\0\0\0\x05I"[..]), "{}", show(answer));
    assert_eq!(codes.len(), 1, "{}", show(answer));
    codes.into_iter().next().expect("one")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_cut_half_way_leave_the_connection_in_step() {
    for mode in [StopMode::Fast, StopMode::Kill] {
        let lab = LabGuard::fresh(1).expect("a lab");
        let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
        let mut copies = Wire::login(proxy.port, "postgres").await;
        let mut queues = Wire::login(proxy.port, "postgres").await;
        copies.run("create table t (row text)").await;
        copies.send(&query("copy t from stdin")).await;
        copies.until(b'G').await;
        copies.send(&message(b'd', b"copied\n")).await;
        // Several requests sent at once, of which the first takes for ever.
        let rows = ["'first' from pg_sleep(1000)", "'second'", "'third'"];
        let inserts = rows.map(|row| query(&format!("insert into t select {row}")));
        queues.send(&inserts.concat()).await;
        until_waiting(&lab, "node1", &["ClientRead", "PgSleep"]);
        until_replayed(&lab);
        lab.stop("node1", mode, &mut Quiet).expect("stopped");
        lab.promote("node2", &mut Quiet).expect("a promotion");

        // The client may notice late, and go on for a while: a server passes over what belongs to a copy that has failed.
        let rest = [message(b'd', b"copied too\n"), message(b'c', b"")].concat();
        let told = only_error(&copies.ask(&rest).await);
        assert!(told == "40001" || told == "08007", "{mode:?}: {told}");
        let mut there = vec!["a", "b"];
        for (row, answer) in ["first", "second", "third"].iter().zip(queues.answers(3).await) {
            match codes(&answer).first().map(String::as_str) {
                None => there.push(*row),
                Some("40001" | "08007") => {}
                Some(code) => panic!("{mode:?}: {row} was told {code}"),
            }
        }
        for (client, row) in [(&mut copies, "a"), (&mut queues, "b")] {
            client.run(&format!("insert into t values ('{row}')")).await;
            assert_eq!(client.value("select 6 * 7").await, "42", "{mode:?}: {row}");
        }
        let rows = lab.sql("node2", "select string_agg(row, ',' order by row) from t");
        assert_eq!(rows.expect("rows"), there.join(","), "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_are_sent_at_once_are_in_doubt_alone_and_certainly_gone_with_their_block() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
    let (mut alone, mut in_block) = (
        Wire::login(proxy.port, "postgres").await,
        Wire::login(proxy.port, "postgres").await,
    );
    alone.run("create table t (row text)").await;
    in_block.run("begin").await;
    let both = [
        query("insert into t select 'first' from pg_sleep(1000)"),
        query("insert into t values ('second')"),
    ];
    for client in [&mut alone, &mut in_block] {
        client.send(&both.concat()).await;
    }
    until_waiting(&lab, "node1", &["PgSleep", "PgSleep"]);
    until_replayed(&lab);
    lab.stop("node1", StopMode::Kill, &mut Quiet).expect("stopped");
    lab.promote("node2", &mut Quiet).expect("a promotion");
    for (client, wanted) in [(&mut alone, "08007"), (&mut in_block, "40001")] {
        let answers = client.answers(2).await;
        assert_eq!(codes(&answers[0]), [wanted], "{}", show(&answers[0]));
    }
    let answer = in_block.query("rollback").await;
    assert!(codes(&answer).is_empty(), "{}", show(&answer));
    assert_eq!(in_block.value("select count(*) from t").await, "0");
}

/// Waits until a server's statements wait for these events, one for each.
#[track_caller]
fn until_waiting(lab: &LabGuard, node: &str, events: &[&str]) {
    let sql = "select string_agg(wait_event, ',' order by wait_event) from pg_stat_activity \
               where state = 'active' and backend_type = 'client backend' and pid <> pg_backend_pid()";
    eventually(&format!("statements wait for {events:?}"), || {
        lab.sql(node, sql).expect("an answer") == events.join(",")
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_cut_half_way_is_not_made_up_with_anything_else() {
    for mode in [StopMode::Fast, StopMode::Kill] {
        let lab = LabGuard::fresh(1).expect("a lab");
        let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
        let (mut many, mut one) = (
            Wire::login(proxy.port, "postgres").await,
            Wire::login(proxy.port, "postgres").await,
        );
        // Neither client takes its result, so that the server waits half-way.
        many.send(&query("/* pgsluice: primary */ select generate_series(1, 50000000)"))
            .await;
        one.send(&query("/* pgsluice: primary */ select repeat('x', 50000000)"))
            .await;
        until_waiting(&lab, "node1", &["ClientWrite", "ClientWrite"]);
        lab.stop("node1", mode, &mut Quiet).expect("stopped");
        lab.promote("node2", &mut Quiet).expect("a promotion");

        let mut rows = 0;
        let end = loop {
            let next = many.expect().await;
            match next.tag {
                b'T' => {}
                b'D' => {
                    rows += 1;
                    assert_eq!(
                        next.cells(),
                        [Some(rows.to_string())],
                        "{mode:?}: after {} rows",
                        rows - 1
                    );
                }
                _ => break next,
            }
        };
        let ready = many.expect().await;
        assert_eq!(only_error(&[end, ready]), "40001", "{mode:?}");
        assert!(rows > 1000, "{rows}");
        assert_eq!(many.value("select 6 * 7").await, "42", "{mode:?}");

        // Where a part of a row has been passed on, nothing but the connection's end can follow it.
        let answer = one.answer().await;
        let tags = tags(&answer);
        assert!(
            tags == "T" || tags == "TEZ" || tags == "EZ",
            "{mode:?}: {}",
            show(&answer)
        );
        if tags.ends_with('Z') {
            assert_eq!(only_error(&answer), "40001", "{mode:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_takes_its_settings_and_statements_to_the_next_primary() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::start(&lab);
    let dsn = format!("{} options='-c lock_timeout=1234'", proxy.dsn());
    let (client, _ending) = watched(&dsn).await;
    client
        .batch_execute(
            "create schema own; create table own.t (n int); set search_path = own; set statement_timeout = '5678ms'",
        )
        .await
        .expect("a schema");
    let insert = client
        .prepare("insert into t values ($1) returning n")
        .await
        .expect("a statement");
    let row = client.query_one(&insert, &[&1]).await.expect("a row");
    assert_eq!(row.get::<_, i32>(0), 1);
    client.batch_execute("begin").await.expect("a block");
    client
        .batch_execute("set statement_timeout = 1")
        .await
        .expect("a setting");
    until_replayed(&lab);
    lab.stop("node1", StopMode::Kill, &mut Quiet).expect("stopped");
    lab.promote("node2", &mut Quiet).expect("a promotion");
    let told = client.batch_execute("select 1").await.expect_err("the block is lost");
    assert_eq!(sqlstate(&told), "40001");
    client.batch_execute("rollback").await.expect("its end");

    let row = client
        .query_one(&insert, &[&2])
        .await
        .expect("the statement is known there");
    assert_eq!(row.get::<_, i32>(0), 2);
    for (name, value) in [
        ("lock_timeout", "1234ms"),
        ("statement_timeout", "5678ms"),
        ("search_path", "own"),
    ] {
        let row = client.query_one(&format!("show {name}"), &[]).await.expect("a setting");
        assert_eq!(row.get::<_, String>(0), value, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_without_a_primary_reads_and_waits_to_write() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
    let first = proxy.client().await;
    first
        .batch_execute("create table t as select 1 as n")
        .await
        .expect("a table");
    first.batch_execute("create database other").await.expect("a database");
    // So that standbys are known to have it.
    let deadline = Instant::now() + PATIENCE;
    while proxy.statements("node2").0 + proxy.statements("node3").0 == 0 {
        assert!(Instant::now() < deadline, "no read on a standby");
        first.query("select n from t", &[]).await.expect("a read");
    }
    lab.stop("node1", StopMode::Fast, &mut Quiet).expect("stopped");
    eventually("the loss is noticed", || proxy.status().primary.is_none());
    let late = proxy.client().await;
    let row = late.query_one("select n from t", &[]).await.expect("a read");
    assert_eq!(row.get::<_, i32>(0), 1);
    let write = tokio::spawn(async move { late.execute("insert into t values (2)", &[]).await });
    let elsewhere = proxy.dsn().replace("dbname=postgres", "dbname=other");
    let stranger = tokio::spawn(async move { watched(&elsewhere).await });
    eventually("the write waits", || proxy.metric("pgsluice_held_statements") >= 1.0);
    lab.promote("node2", &mut Quiet).expect("a promotion");
    ended("the write", write).await.expect("the write");
    let (stranger, _ending) = ended("the login", stranger).await;
    stranger.batch_execute("create table t (n int)").await.expect("a write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_with_state_that_is_lost_with_its_node_is_ended() {
    for mode in [StopMode::Fast, StopMode::Kill] {
        let lab = LabGuard::fresh(1).expect("a lab");
        let proxy = Proxy::start(&lab);
        let mut pinned = Vec::new();
        for sql in [
            "create temporary table own (n int)",
            "listen news",
            "select pg_advisory_lock(1)",
            "begin; declare c cursor with hold for select 1; commit",
        ] {
            let (client, ending) = watched(&proxy.dsn()).await;
            client
                .batch_execute(sql)
                .await
                .unwrap_or_else(|error| panic!("{sql}: {error}"));
            pinned.push((sql, client, ending));
        }
        let (free, _ending) = watched(&proxy.dsn()).await;
        free.batch_execute("create table t (n int)").await.expect("a table");
        until_replayed(&lab);
        lab.stop("node1", mode, &mut Quiet).expect("stopped");
        for (sql, client, ending) in pinned {
            assert_eq!(last_words(ending).await, "57P01", "{mode:?}: {sql}");
            assert!(client.is_closed());
        }
        lab.promote("node2", &mut Quiet).expect("a promotion");
        free.batch_execute("insert into t values (1)")
            .await
            .expect("nothing bound this one");
        eventually("nobody is pinned any more", || {
            let (_, text) = proxy.get("/metrics").expect("metrics");
            let mut pins = text.lines().filter(|line| line.starts_with("pgsluice_pins{"));
            pins.all(|line| line.ends_with(" 0"))
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_pinned_session_does_not_hide_that_its_write_may_have_taken_effect() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::start(&lab);
    let client = proxy.client().await;
    client
        .batch_execute("create table t (n int); create temporary table own (n int)")
        .await
        .expect("a table");
    let write = tokio::spawn(async move { client.execute("insert into t select 1 from pg_sleep(60)", &[]).await });
    let runs = "select count(*) from pg_stat_activity where query like 'insert%' and wait_event = 'PgSleep'";
    eventually("it runs", || lab.sql("node1", runs).expect("a count") == "1");
    lab.stop("node1", StopMode::Immediate, &mut Quiet).expect("stopped");
    let told = ended("the write", write).await.expect_err("its node is gone");
    assert_eq!(sqlstate(&told), "08007");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_on_without_a_primary_until_the_standbys_are_older_than_max_lag() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let max_lag = Duration::from_secs(5);
    let proxy = Proxy::with(
        &lab,
        "[routing]\nmax_lag = \"5s\"\n[failover]\nhold_timeout = \"500ms\"\n",
    );
    let (writer, reader) = (proxy.client().await, proxy.client().await);
    writer
        .batch_execute("create table t as select generate_series(1, 3) as n")
        .await
        .expect("a table");
    let read = async |client: &Client| -> Result<i64, String> {
        let row = client.query_one("select count(*) from t", &[]).await;
        row.map(|row| row.get(0)).map_err(|error| sqlstate(&error))
    };
    assert_eq!(read(&reader).await, Ok(3));
    writer.batch_execute("insert into t values (4)").await.expect("a row");
    let stopped = Instant::now();
    lab.stop("node1", StopMode::Fast, &mut Quiet).expect("stopped");
    eventually("the loss is noticed", || proxy.status().primary.is_none());

    let mut answers = 0;
    let refused = loop {
        let asked = stopped.elapsed();
        match read(&reader).await {
            Ok(rows) => {
                assert!(rows == 3 || rows == 4, "{rows} rows");
                assert!(
                    asked < max_lag * 2,
                    "a standby answered {asked:?} after the primary was stopped"
                );
                answers += 1;
            }
            Err(code) => break code,
        }
    };
    assert!(answers >= 10, "only {answers} reads were answered");
    assert_eq!(refused, "57P03");
    let held_until = stopped.elapsed();
    assert!(
        held_until >= max_lag - Duration::from_secs(1),
        "refused after {held_until:?}"
    );
    // Its own row is on a standby, or may not be: it is never told that it isn't there.
    match read(&writer).await {
        Ok(rows) => assert_eq!(rows, 4),
        Err(code) => assert_eq!(code, "57P03"),
    }
    lab.promote("node2", &mut Quiet).expect("a promotion");
    eventually("there is a primary again", || proxy.status().primary.is_some());
    assert_eq!(read(&writer).await, Ok(4));
    assert_eq!(read(&reader).await, Ok(4));
    assert!(!writer.is_closed() && !reader.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_block_on_a_standby_outlives_the_primary() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"500ms\"\n");
    let client = proxy.client().await;
    client
        .batch_execute("create table t as select 1 as n")
        .await
        .expect("a table");
    until_replayed(&lab);
    let mut reader = Simple::login(proxy.port).await;
    assert_eq!(reader.say("begin read only").await, said(&["BEGIN"], &[], 'T'));
    assert_eq!(
        reader.say("select count(*) from t").await,
        said(&["SELECT 1"], &[], 'T')
    );
    assert!(proxy.statements("node2").0 > 0, "the block is not on the standby");
    lab.stop("node1", StopMode::Fast, &mut Quiet).expect("stopped");
    eventually("the loss is noticed", || proxy.status().primary.is_none());
    assert_eq!(
        reader.say("select count(*) from t").await,
        said(&["SELECT 1"], &[], 'T')
    );
    assert_eq!(reader.say("commit").await, said(&["COMMIT"], &[], 'I'));
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
async fn without_a_primary_reads_are_as_old_as_is_allowed_or_wait() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let with = |stale_reads: &str| {
        let sections = format!(
            "[routing]\nmax_lag = \"2s\"\n[failover]\nstale_reads = \"{stale_reads}\"\nhold_timeout = \"500ms\"\n"
        );
        Proxy::with(&lab, &sections)
    };
    let proxies = [with("allow"), with("deny"), with("1h")];
    let mut clients = Vec::new();
    for proxy in &proxies {
        clients.push(proxy.client().await);
    }
    // Not by one of them, who would have to see its own write.
    lab.sql("node1", "create table t as select 1 as n").expect("a table");
    until_replayed(&lab);
    lab.stop("node1", StopMode::Fast, &mut Quiet).expect("stopped");
    for proxy in &proxies {
        eventually("the loss is noticed", || proxy.status().primary.is_none());
    }
    // Older than any standby may be while there is a primary.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut told = Vec::new();
    for client in &clients {
        let row = client.query_one("select n from t", &[]).await;
        told.push(row.map(|row| row.get::<_, i32>(0)).map_err(|error| sqlstate(&error)));
    }
    assert_eq!(told, [Ok(1), Err("57P03".to_owned()), Ok(1)]);
    let serving = proxies.each_ref().map(|proxy| proxy.node("node2").serving);
    assert_eq!(serving, [true, false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_lead_next_has_connections_before_it_leads() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(proxy.client().await);
    }
    clients[0]
        .batch_execute("create table t (pid int)")
        .await
        .expect("a table");
    let write = async |clients: Vec<Client>| {
        let writes = clients.into_iter().map(|client| {
            tokio::spawn(async move {
                let sql = "insert into t select pg_backend_pid() from pg_sleep(0.2)";
                client.execute(sql, &[]).await.expect("a write");
                client
            })
        });
        let mut back = Vec::new();
        for task in writes.collect::<Vec<_>>() {
            back.push(ended("a write", task).await);
        }
        back
    };
    let clients = write(clients).await;
    let connections = |node: &str| proxy.node(node).connections.idle + proxy.node(node).connections.active;
    assert_eq!((connections("node1"), connections("node2")), (4, 0));
    until_replayed(&lab);
    lab.stop("node1", StopMode::Kill, &mut Quiet).expect("stopped");
    eventually("the standby has connections", || connections("node2") == 4);
    assert!(proxy.status().primary.is_none());
    let there = "select string_agg(pid::text, ',' order by pid) from pg_stat_activity \
                 where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name !~ 'pgsluice'";
    let before = lab.sql("node2", there).expect("processes");
    assert_eq!(before.split(',').count(), 4, "{before}");
    lab.sql("node2", "truncate t").expect_err("it is a standby");

    lab.sql("node2", "select pg_promote()").expect("a promotion");
    lab.sql("node2", "truncate t").expect("it leads");
    write(clients).await;
    let wrote = lab.sql("node2", "select string_agg(pid::text, ',' order by pid) from t");
    assert_eq!(wrote.expect("processes"), before);
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
    let pinned = proxy.client().await;
    pinned
        .batch_execute("create temporary table own (n int)")
        .await
        .expect("a table");
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
