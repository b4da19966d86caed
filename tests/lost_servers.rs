//! What was under way, or bound to its connection, when its server was lost, and what its client is told of it: the truth, on a
//! connection that stays open wherever it can.

mod support;

use std::time::Instant;

use pgsluice::lab::{LabGuard, LabOptions, Quiet, StopMode};
use support::simple::{Said, Simple};
use support::wire::{Message, Wire, bind, codes, execute, message, parse, query, show, sync, tags};
use support::{PATIENCE, Proxy, direct, ended, eventually, last_words, sqlstate, until_replayed, watched};
use tokio_postgres::Client;

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
        let mut goes_on = in_block(&proxy, "goes on").await;
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

        // To the server, its ROLLBACK ends nothing; the block before it is the proxy's to end.
        assert_eq!(goes_on.say("savepoint s").await, said(&[], &["40001"], 'E'), "{mode:?}");
        assert_eq!(
            goes_on.say("select 1; rollback; select 2").await,
            said(&[], &["25P02"], 'E')
        );
        let both = goes_on.say("/* anew */ abort; insert into t values ('goes on')").await;
        assert_eq!(both, said(&["ROLLBACK", "INSERT 0 1"], &[], 'I'));
        works_on_the_new_primary(&mut goes_on, "goes on again").await;

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
        let again = "asks again,commits again,commits late again,driver again,goes on,goes on again,\
             rolls back again,several again";
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
        proxy.client_after("create table t (row text)").await;
        let write = "insert into t select 'lost' from pg_sleep(1000)";
        let in_block = proxy.client_after("begin").await;
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
        "unlisten news",
        "listen news",
    ];
    let mut clients = Vec::new();
    for _ in texts {
        clients.push(Wire::login(proxy.port, "postgres").await);
    }
    // In blocks that are open at once each has a connection of its own.
    for sql in ["begin; select from pg_class", "commit"] {
        for client in &mut clients {
            client.run(sql).await;
        }
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
    lab.sql("node2", "notify news").expect("a notification");
    assert!(tags(&clients[7].until(b'A').await).ends_with('A'), "it isn't listening");
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
    let setup = proxy
        .client_after("create table t as select generate_series(1, 3) as n; create table u (n int)")
        .await;
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
    let client = proxy.client_after("create table t as select 1 as n").await;
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
    let client = proxy
        .client_after("create table t (n int); create temporary table own (n int)")
        .await;
    let write = tokio::spawn(async move { client.execute("insert into t select 1 from pg_sleep(60)", &[]).await });
    let runs = "select count(*) from pg_stat_activity where query like 'insert%' and wait_event = 'PgSleep'";
    eventually("it runs", || lab.sql("node1", runs).expect("a count") == "1");
    lab.stop("node1", StopMode::Immediate, &mut Quiet).expect("stopped");
    let told = ended("the write", write).await.expect_err("its node is gone");
    assert_eq!(sqlstate(&told), "08007");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_block_on_a_standby_outlives_the_primary() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"500ms\"\n");
    proxy.client_after("create table t as select 1 as n").await;
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
