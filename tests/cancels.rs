//! Cancel requests that come close to their statement's beginning or end: they reach it, and nothing after it, and nobody else.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::dice::Dice;
use support::scene::Scene;
use support::wire::*;
use tokio::task::JoinHandle;

const ON_PRIMARY: &str = "/* pgsluice: primary */";

/// Clients that are at work all the time, until they are told that it is enough. None of them may ever see an error.
struct Others {
    enough: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<usize>>,
}

impl Others {
    async fn start(scene: &Scene, count: usize, sql: &'static str) -> Others {
        let enough = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for _ in 0..count {
            let (mut wire, enough) = (scene.wire().await, Arc::clone(&enough));
            tasks.push(tokio::spawn(async move {
                let mut rounds = 0;
                while !enough.load(Ordering::Relaxed) {
                    wire.run(sql).await;
                    rounds += 1;
                }
                rounds
            }));
        }
        Others { enough, tasks }
    }

    async fn stop(self) {
        self.enough.store(true, Ordering::Relaxed);
        for task in self.tasks {
            assert!(task.await.expect("no errors") > 0);
        }
    }
}

/// Sends `request`, and a cancel request right behind it on a connection that stands already. Answers what came, and how long it took.
async fn cancelled_at_once(client: &mut Wire, port: u16, request: &[u8]) -> (Vec<Message>, Duration) {
    let mut canceller = Wire::open(port).await;
    let asked = cancel_request(&client.key);
    let since = Instant::now();
    client.send(request).await;
    canceller.send(&asked).await;
    let answer = client.answer().await;
    canceller.rest_of_bytes().await;
    (answer, since.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_right_behind_a_statement_reaches_it() {
    let scene = Scene::start("").await;
    let port = scene.proxy.port;
    let others = Others::start(&scene, 3, "select count(*) from generate_series(1, 2000)").await;
    let mut client = scene.wire().await;
    let sleeps = [
        ("a read", query("select pg_sleep(8)")),
        (
            "a write",
            query(&format!("{ON_PRIMARY} select pg_sleep(8), txid_current()")),
        ),
        ("a batch", [extended("select pg_sleep(8)", &[]), sync()].concat()),
        (
            "two batches",
            [
                extended("select pg_sleep(8)", &[]),
                sync(),
                extended("select 1", &[]),
                sync(),
            ]
            .concat(),
        ),
        ("several statements", query("select 1; select pg_sleep(8); select 2")),
    ];
    for round in 0..300 {
        let (what, request) = &sleeps[round % sleeps.len()];
        // Half of the rounds have a block.
        let in_block = round % 2 == 1;
        if in_block {
            client.run("begin").await;
        } else if round % 3 == 0 {
            // Its settings go in front of the statement.
            client.run(&format!("set application_name = 'round {round}'")).await;
        }
        let (answer, took) = cancelled_at_once(&mut client, port, request).await;
        assert_eq!(codes(&answer), ["57014"], "{what}, round {round}: {}", show(&answer));
        assert!(took < Duration::from_secs(5), "{what}, round {round}: {took:?}");
        if *what == "two batches" {
            let second = client.answer().await;
            let expected: &[&str] = if in_block { &["25P02"] } else { &[] };
            assert_eq!(codes(&second), expected, "round {round}: {}", show(&second));
        }
        if in_block {
            client.run("rollback").await;
        }
        assert_eq!(client.value("select 1").await, "1", "round {round}");
    }
    others.stop().await;
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_behind_a_statement_that_waits_for_a_connection_reaches_it() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    let port = scene.proxy.port;
    let (mut first, mut client) = (scene.wire().await, scene.wire().await);
    first.run("begin").await;
    first.run("create table held (n int)").await;
    for round in 0..50 {
        let request = query(&format!("{ON_PRIMARY} select pg_sleep(8), txid_current()"));
        let (answer, took) = cancelled_at_once(&mut client, port, &request).await;
        assert_eq!(codes(&answer), ["57014"], "round {round}: {}", show(&answer));
        assert!(took < Duration::from_secs(5), "round {round}: {took:?}");
    }
    first.run("commit").await;
    drop((first, client));
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_about_when_a_statement_ends_hits_neither_the_next_one_nor_a_stranger() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let port = scene.proxy.port;
    let others = Others::start(&scene, 4, "/* pgsluice: primary */ select pg_sleep(0.002)").await;
    let mut client = scene.wire().await;
    let mut dice = Dice::new(57014);
    let (mut hit, mut missed) = (0, 0);
    for round in 0..400 {
        let mut canceller = Wire::open(port).await;
        let asked = cancel_request(&client.key);
        let statement = [
            "select pg_sleep(0.001)",
            "select 1",
            "set application_name = 'x'",
            "show application_name",
            "rollback",
        ][round % 5];
        let pause = Duration::from_micros(dice.below(4000) as u64);
        let cancel = async {
            tokio::time::sleep(pause).await;
            canceller.send(&asked).await;
            canceller.rest_of_bytes().await;
        };
        let text = format!("{ON_PRIMARY} {statement}");
        let (answer, ()) = tokio::join!(client.query(&text), cancel);
        match &*codes(&answer) {
            [] => missed += 1,
            [code] if code == "57014" => hit += 1,
            _ => panic!("round {round}: {}", show(&answer)),
        }
        // The request is done with.
        client
            .run(&format!("{ON_PRIMARY} select pg_sleep(0.004), {round}"))
            .await;
    }
    assert!(hit > 0 && missed > 0, "{hit} hit, {missed} missed");
    others.stop().await;
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_that_nothing_was_sent_before_is_done_at_once() {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    for in_block in [false, true] {
        if in_block {
            client.run("begin").await;
        }
        let since = Instant::now();
        for _ in 0..20 {
            let mut canceller = Wire::open(scene.proxy.port).await;
            canceller.send(&cancel_request(&client.key)).await;
            canceller.rest_of_bytes().await;
            client.run("select pg_sleep(0.001)").await;
        }
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    }
    client.run("rollback").await;
    // One that has begun to send a statement is waited for, but not for long.
    let whole = query("select 1");
    client.send(&whole[..4]).await;
    let mut canceller = Wire::open(scene.proxy.port).await;
    canceller.send(&cancel_request(&client.key)).await;
    canceller.rest_of_bytes().await;
    client.send(&whole[4..]).await;
    assert!(codes(&client.answer().await).is_empty());
    drop(client);
    scene.settled().await;
}
