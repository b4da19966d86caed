//! Signals between clients of the proxy, by the process ids that they know each other by: who is meant is hit, and nobody else.

mod support;

use std::time::{Duration, Instant};

use support::scene::{Scene, until};
use support::wire::*;
use tokio::task::JoinSet;

const ON_PRIMARY: &str = "/* pgsluice: primary */";
/// Words of a server's that has been told to end a session.
const KILLED: &str = "terminating connection due to administrator command";

/// The client gets the server's own FATAL, and the end of its connection.
#[track_caller]
fn is_ended(mut client: Wire) -> impl Future<Output = Vec<Message>> {
    let caller = std::panic::Location::caller();
    async move {
        let said = client.rest().await;
        let last = said.last().unwrap_or_else(|| panic!("{caller}: no word"));
        assert_eq!(last.tag, b'E', "{caller}: {}", show(&said));
        assert_eq!(last.code(), "57P01", "{caller}: {}", show(&said));
        assert_eq!(last.field(b'S').as_deref(), Some("FATAL"), "{caller}");
        assert_eq!(last.field(b'M').as_deref(), Some(KILLED), "{caller}");
        said
    }
}

async fn kill(killer: &mut Wire, pid: i32) -> String {
    killer.value(&format!("select pg_terminate_backend({pid})")).await
}

async fn server_pid(client: &mut Wire) -> i32 {
    let pid = client.value(&format!("{ON_PRIMARY} select pg_backend_pid()")).await;
    pid.parse().expect("a number")
}

/// Waits until the primary or the standby runs this.
async fn runs(scene: &Scene, what: &str) {
    let condition = format!("state = 'active' and query like '%{what}%'");
    until("it runs", async || {
        scene.backends(&condition).await.iter().any(|count| count != "0")
    })
    .await;
}

#[tokio::test]
async fn whoever_ends_its_own_session_is_told_so_and_left() {
    let scene = Scene::start("").await;
    let sql = "select pg_terminate_backend(pg_backend_pid())";
    let mut simple = scene.wire().await;
    simple.send(&query(sql)).await;
    is_ended(simple).await;
    let mut batch = scene.wire().await;
    batch.send(&[extended(sql, &[]), sync()].concat()).await;
    let said = is_ended(batch).await;
    assert!(tags(&said).starts_with('1'), "{}", show(&said));
    let mut in_block = scene.wire().await;
    in_block.run("begin").await;
    in_block.send(&query(sql)).await;
    is_ended(in_block).await;
    let mut by_told_id = scene.wire().await;
    let sql = format!("select pg_terminate_backend({})", by_told_id.key.0);
    by_told_id.send(&query(&sql)).await;
    is_ended(by_told_id).await;
    scene.settled().await;
}

#[tokio::test]
async fn an_idle_session_is_ended_by_the_process_id_it_was_told() {
    let scene = Scene::start("").await;
    let mut killer = scene.wire().await;
    for _ in 0..3 {
        let idle = scene.wire().await;
        assert_eq!(kill(&mut killer, idle.key.0).await, "t");
        is_ended(idle).await;
    }
    let mut used = scene.wire().await;
    used.run("select 1; create temporary table t (a int); drop table t")
        .await;
    assert_eq!(kill(&mut killer, used.key.0).await, "t");
    is_ended(used).await;
    // With the second argument the function waits for the end.
    let waited_for = scene.wire().await;
    let sql = format!("select pg_terminate_backend({}, 10000)", waited_for.key.0);
    let began = Instant::now();
    assert_eq!(killer.value(&sql).await, "t");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    is_ended(waited_for).await;
    drop(killer);
    scene.settled().await;
}

#[tokio::test]
async fn a_session_is_ended_while_it_waits_for_an_answer() {
    let scene = Scene::start("").await;
    let mut killer = scene.wire().await;
    for hint in [ON_PRIMARY, "/* pgsluice: standby */"] {
        let mut busy = scene.wire().await;
        busy.send(&query(&format!("{hint} select pg_sleep(60), 'sleeps'")))
            .await;
        runs(&scene, "sleeps").await;
        assert_eq!(kill(&mut killer, busy.key.0).await, "t", "{hint}");
        is_ended(busy).await;
    }
    // What belongs to the primary isn't sent where the target is.
    killer.run("create table ended (n int, was bool)").await;
    let mut busy = scene.wire().await;
    busy.send(&query("/* pgsluice: standby */ select pg_sleep(1), 'sleeps'"))
        .await;
    runs(&scene, "sleeps").await;
    let insert = format!("insert into ended select 1, pg_terminate_backend({})", busy.key.0);
    assert_eq!(tags(&killer.run(&insert).await), "NCZ");
    assert_eq!(codes(&busy.answer().await), [""; 0]);
    drop((killer, busy));
    scene.settled().await;
}

#[tokio::test]
async fn a_session_in_a_block_or_bound_to_its_connection_is_ended() {
    let scene = Scene::start("").await;
    let mut killer = scene.wire().await;
    let mut in_block = scene.wire().await;
    in_block.run("begin; create table undone (a int)").await;
    assert_eq!(kill(&mut killer, in_block.key.0).await, "t");
    is_ended(in_block).await;
    assert_eq!(killer.value("select to_regclass('undone') is null").await, "t");
    let mut bound = scene.wire().await;
    bound.run("create temporary table t (a int)").await;
    assert_eq!(kill(&mut killer, bound.key.0).await, "t");
    is_ended(bound).await;
    // The killer may be in a block too.
    let idle = scene.wire().await;
    killer.run("begin").await;
    assert_eq!(kill(&mut killer, idle.key.0).await, "t");
    is_ended(idle).await;
    killer.run("commit").await;
    drop(killer);
    scene.settled().await;
}

#[tokio::test]
async fn parameters_and_prepared_texts_are_understood() {
    let scene = Scene::start("").await;
    let mut killer = scene.wire().await;
    killer
        .ask(&[parse("kill", "select pg_terminate_backend($1)", &[]), sync()].concat())
        .await;
    for _ in 0..2 {
        let idle = scene.wire().await;
        let told = idle.key.0.to_string();
        let answer = killer
            .ask(&[bind("", "kill", &[Some(&told)]), execute("", 0), sync()].concat())
            .await;
        assert_eq!(firsts(&answer), ["t"], "{}", show(&answer));
        is_ended(idle).await;
    }
    // In binary, as an int4.
    let idle = scene.wire().await;
    let mut body = b"\0kill\0\0\x01\0\x01\0\x01\0\0\0\x04".to_vec();
    body.extend_from_slice(&idle.key.0.to_be_bytes());
    body.extend_from_slice(&[0, 0]);
    let answer = killer
        .ask(&[message(b'B', &body), execute("", 0), sync()].concat())
        .await;
    assert_eq!(firsts(&answer), ["t"], "{}", show(&answer));
    is_ended(idle).await;
    // With the unnamed statement, in one batch and in two.
    for batches in [1, 2] {
        let idle = scene.wire().await;
        let told = idle.key.0.to_string();
        let text = parse("", "select pg_terminate_backend($1::int)", &[]);
        let run = [bind("", "", &[Some(&told)]), execute("", 0), sync()].concat();
        if batches == 2 {
            killer.ask(&[text.clone(), sync()].concat()).await;
        }
        let answer = killer.ask(&if batches == 2 { run } else { [text, run].concat() }).await;
        assert_eq!(firsts(&answer), ["t"], "{}", show(&answer));
        is_ended(idle).await;
    }
    // A number in a text that is prepared under a name, and in an unnamed one; what the client has prepared stays as it is.
    for name in ["literal", ""] {
        let idle = scene.wire().await;
        let sql = format!("select pg_terminate_backend({}), $1::int", idle.key.0);
        let run = |value| {
            [
                bind("", name, &[Some(value)]),
                describe(b'P', ""),
                execute("", 0),
                sync(),
            ]
            .concat()
        };
        killer
            .ask(&[parse(name, &sql, &[]), describe(b'S', name), sync()].concat())
            .await;
        let answer = killer.ask(&run("5")).await;
        assert_eq!(
            rows(&answer),
            [[Some("t".into()), Some("5".into())]],
            "{}",
            show(&answer)
        );
        assert_eq!(tags(&answer), "2TDCZ");
        is_ended(idle).await;
        // Nobody has the number any more.
        until("it has left", async || {
            let answer = killer.ask(&run("6")).await;
            tags(&answer) == "2TNDCZ" && rows(&answer) == [[Some("f".into()), Some("6".into())]]
        })
        .await;
    }
    drop(killer);
    scene.settled().await;
}

#[tokio::test]
async fn a_statement_is_cancelled_by_the_process_id_its_session_was_told() {
    let scene = Scene::start("").await;
    let mut killer = scene.wire().await;
    for hint in [ON_PRIMARY, "/* pgsluice: standby */"] {
        let mut busy = scene.wire().await;
        busy.send(&query(&format!("{hint} select pg_sleep(60), 'sleeps'")))
            .await;
        runs(&scene, "sleeps").await;
        let sql = format!("select pg_cancel_backend({})", busy.key.0);
        assert_eq!(killer.value(&sql).await, "t", "{hint}");
        assert_eq!(codes(&busy.answer().await), ["57014"], "{hint}");
        assert_eq!(busy.value("select 1").await, "1");
        // Nothing runs: nothing is cancelled.
        assert_eq!(killer.value(&sql).await, "t", "{hint}");
        assert_eq!(busy.value("select 2").await, "2");
    }
    drop(killer);
    scene.settled().await;
}

#[tokio::test]
async fn whoever_was_told_its_servers_process_id_is_meant_and_not_who_has_the_connection_now() {
    let scene = Scene::start("").await;
    let (mut target, mut killer, mut direct) = (scene.wire().await, scene.wire().await, scene.direct().await);
    let pid = server_pid(&mut target).await;
    // Others take connections until one has that which the target has had.
    let taken = format!("select count(*) from pg_stat_activity where pid = {pid} and state = 'idle in transaction'");
    let mut strangers = Vec::new();
    while direct.value(&taken).await == "0" {
        assert!(strangers.len() < 15, "nobody gets it");
        let mut stranger = scene.wire().await;
        stranger.run("begin").await;
        strangers.push(stranger);
    }
    assert_eq!(kill(&mut killer, pid).await, "t");
    is_ended(target).await;
    for stranger in &mut strangers {
        assert_eq!(stranger.value("select 'unhurt'").await, "unhurt");
        stranger.run("commit").await;
    }
    drop((strangers, killer));
    scene.settled().await;
}

#[tokio::test]
async fn the_server_says_who_may_end_whom() {
    let scene = Scene::start("").await;
    let role = format!("weak_{}", scene.database);
    let mut direct = scene.direct().await;
    direct.run(&format!("create role {role} login")).await;
    let mut target = scene.wire().await;
    let mut weak = Wire::login_with(scene.proxy.port, &[("user", &role), ("database", &scene.database)]).await;
    let sql = format!("select pg_terminate_backend({})", target.key.0);
    for state in ["", "begin", "select 1; commit"] {
        if !state.is_empty() {
            target.run(state).await;
        }
        let answer = weak.query(&sql).await;
        assert_eq!(codes(&answer), ["42501"], "{}", show(&answer));
        assert_eq!(target.value("select 'lives'").await, "lives");
    }
    // Its own it may.
    let mut peer = Wire::login_with(scene.proxy.port, &[("user", &role), ("database", &scene.database)]).await;
    assert_eq!(peer.value("select 1").await, "1");
    assert_eq!(kill(&mut weak, peer.key.0).await, "t");
    is_ended(peer).await;
    drop((weak, target));
    scene.settled().await;
    direct.run(&format!("drop role {role}")).await;
}

#[tokio::test]
async fn a_connection_that_was_aimed_at_in_vain_goes_back() {
    let scene = Scene::start("[pool]\nmax_per_node = 2\n").await;
    let (mut sender, target) = (scene.wire().await, scene.wire().await);
    let sql = format!("select pg_cancel_backend({})", target.key.0);
    for _ in 0..10 {
        assert_eq!(sender.value(&sql).await, "t");
    }
    until("both are idle", async || {
        let status = scene.proxy.try_status().expect("a status");
        status.pools.iter().all(|pool| pool.connections.active == 0)
    })
    .await;
    // With no room for the target's connection, the server is told what the client has said, and warns.
    let mut third = scene.wire().await;
    third.run("begin; select 1").await;
    let answer = sender.query(&sql).await;
    assert_eq!(firsts(&answer), ["f"], "{}", show(&answer));
    third.run("commit").await;
    drop((sender, target, third));
    scene.settled().await;
}

#[tokio::test]
async fn several_signals_in_one_statement_are_the_servers() {
    let scene = Scene::start("").await;
    let (mut sender, mut target) = (scene.wire().await, scene.wire().await);
    let sql = format!(
        "select pg_terminate_backend({0}), pg_terminate_backend({0})",
        target.key.0
    );
    let answer = sender.query(&sql).await;
    assert_eq!(tags(&answer), "TNNDCZ", "{}", show(&answer));
    assert_eq!(target.value("select 1").await, "1");
    let answer = sender
        .run("select pg_terminate_backend(pid) from pg_stat_activity where pid = 0")
        .await;
    assert_eq!(tags(&answer), "TCZ");
    drop((sender, target));
    scene.settled().await;
}

const ROUNDS: usize = 3;
const CROWD: usize = 20;

/// Rounds of clients that work on few connections while each second one of them is ended.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_crowd_no_stranger_is_hit() {
    let scene = Scene::start("[pool]\nmax_per_node = 8\n[listen]\nthreads = 3\n").await;
    for round in 0..ROUNDS {
        let mut living = JoinSet::new();
        let mut victims = Vec::new();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        for number in 0..CROWD {
            let mut client = scene.wire().await;
            if number % 2 == 0 {
                victims.push((client.key.0, client));
                continue;
            }
            let stopped = stopped.clone();
            living.spawn(async move {
                let mut count = 0;
                while !*stopped.borrow() {
                    let sql = match count % 3 {
                        0 => format!("{ON_PRIMARY} select {count}"),
                        1 => format!("begin; select {count}; commit"),
                        _ => format!("select {count}"),
                    };
                    assert_eq!(
                        client.value(&sql).await,
                        count.to_string(),
                        "client {number} in round {round}"
                    );
                    count += 1;
                }
                assert!(count > 0);
            });
        }
        let mut dying = JoinSet::new();
        for (number, (told, mut client)) in victims.into_iter().enumerate() {
            let mut killer = scene.wire().await;
            dying.spawn(async move {
                match number % 3 {
                    0 => client.send(&query(&format!("{ON_PRIMARY} select pg_sleep(60)"))).await,
                    1 => drop(client.run("begin").await),
                    _ => {}
                }
                let ended = tokio::spawn(is_ended(client));
                let mut tries = 0;
                while !ended.is_finished() && tries < 50 {
                    killer.query(&format!("select pg_terminate_backend({told})")).await;
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                ended.await.expect("it was ended");
            });
        }
        while let Some(done) = dying.join_next().await {
            done.expect("one that was to end");
        }
        stop.send(true).expect("clients");
        while let Some(done) = living.join_next().await {
            done.expect("one that was to live");
        }
    }
    // The servers have ended as many as were meant.
    let sql = format!(
        "select sessions_killed from pg_stat_database where datname = '{}'",
        scene.database
    );
    let meant = ROUNDS * CROWD / 2;
    until("the servers have counted", async || {
        let counts = scene.on_each_node(&sql).await;
        let killed: usize = counts
            .iter()
            .map(|count| count.parse::<usize>().expect("a number"))
            .sum();
        assert!(killed <= meant, "{killed} sessions were ended, and {meant} were meant");
        killed == meant
    })
    .await;
    scene.settled().await;
}
