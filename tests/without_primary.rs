//! While there is no primary: writes wait, reads go on, and whoever may lead next is ready.

mod support;

use std::time::{Duration, Instant};

use pgsluice::lab::{LabGuard, Quiet, StopMode};
use support::wire::{Wire, codes, query};
use support::{PATIENCE, Proxy, ended, eventually, sqlstate, until_replayed, watched};
use tokio_postgres::Client;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_without_a_primary_reads_and_waits_to_write() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
    let first = proxy.client_after("create table t as select 1 as n").await;
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
    // In blocks that are open at once each has a connection of its own.
    let write = async || {
        for client in &clients {
            let sql = "begin; insert into t select pg_backend_pid()";
            client.batch_execute(sql).await.expect("a write");
        }
        for client in &clients {
            client.batch_execute("commit").await.expect("its end");
        }
    };
    write().await;
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
    write().await;
    let wrote = lab.sql("node2", "select string_agg(pid::text, ',' order by pid) from t");
    assert_eq!(wrote.expect("processes"), before);
}
