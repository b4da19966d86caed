//! The list of what splitters get wrong, row by row on a live primary and its standbys: each statement of `tests/data/facts.txt`, which
//! `tests/sql_facts.rs` classifies, and the rows about the protocol, about time and about the nodes themselves, which are told here.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pgsluice::lab::{LabGuard, Quiet, StopMode};
use support::facts::{Fact, facts};
use support::scene::until;
use support::wire::*;
use support::{PATIENCE, Proxy};

/// Rows that take more than a statement to be told.
const TOLD_HERE: &[u16] = &[
    43, 53, 63, 83, 99, 100, 118, 119, 120, 121, 129, 133, 134, 135, 136, 137,
];

/// The list's rows.
const ROWS: u16 = 140;

/// A primary, a standby to read from, and one that is stopped and promoted.
struct Nodes {
    primary: u16,
    standby: u16,
    spare: u16,
}

impl Nodes {
    /// A session in the database of the facts.
    async fn login(port: u16) -> Wire {
        Wire::login(port, "facts").await
    }

    async fn caught_up(&self, standby: u16) {
        let end = "select pg_current_wal_flush_lsn()";
        let lsn = Wire::login(self.primary, "postgres").await.value(end).await;
        let mut there = Wire::login(standby, "postgres").await;
        let replayed = format!("select pg_last_wal_replay_lsn() >= '{lsn}'");
        until("a standby has caught up", async || there.value(&replayed).await == "t").await;
    }

    /// Logical decoding and two-phase commit are turned on; a standby that has fewer of either than its primary would stop.
    fn turned_on(lab: &LabGuard) -> Nodes {
        for node in lab.nodes().iter().rev() {
            for setting in ["wal_level = logical", "max_prepared_transactions = 5"] {
                lab.sql(node.name(), &format!("alter system set {setting}"))
                    .expect("a setting");
            }
            lab.stop(node.name(), StopMode::Fast, &mut Quiet).expect("a stop");
            lab.start(node.name(), &mut Quiet).expect("a start");
        }
        let [primary, standby, spare] = [0, 1, 2].map(|node: usize| lab.nodes()[node].port());
        Nodes {
            primary,
            standby,
            spare,
        }
    }

    async fn set_up(&self) {
        let mut postgres = Wire::login(self.primary, "postgres").await;
        for database in ["facts", "spare", "doomed"] {
            postgres.run(&format!("create database {database}")).await;
        }
        let setup = include_str!("data/facts_setup.sql").replace("{port}", &self.primary.to_string());
        Nodes::login(self.primary).await.run(&setup).await;
        self.caught_up(self.standby).await;
        self.caught_up(self.spare).await;
    }
}

/// What a node said: rows, lines and tags, or the SQLSTATE of its error.
type Answer = Result<Vec<String>, String>;

/// Sends bytes that a ReadyForQuery follows; a COPY from the client has no rows.
async fn ask(wire: &mut Wire, bytes: &[u8]) -> Answer {
    wire.send(bytes).await;
    let mut messages = wire.until(b'Z').await;
    if let Some(code) = codes(&messages).into_iter().next() {
        return Err(code);
    }
    messages.retain(|message| matches!(message.tag, b'D' | b'd' | b'C' | b'I'));
    Ok(messages.iter().map(Message::to_string).collect())
}

async fn run(wire: &mut Wire, fact: &Fact) -> Answer {
    if fact.values.is_empty() {
        let done = if fact.sql.contains("FROM STDIN") {
            copy_done()
        } else {
            Vec::new()
        };
        return ask(wire, &[query(&fact.sql), done].concat()).await;
    }
    let values: Vec<Option<&str>> = fact.values.iter().map(|value| Some(value.as_str())).collect();
    ask(wire, &[extended(&fact.sql, &values), sync()].concat()).await
}

async fn prepared(port: u16, fact: &Fact) -> Wire {
    let mut wire = Nodes::login(port).await;
    if let Some(path) = &fact.path {
        wire.run(&format!("set search_path = {path}")).await;
    }
    for sql in &fact.before {
        wire.run(sql).await;
    }
    wire
}

/// What is wrong with a fact.
async fn judge(nodes: &Nodes, fact: &Fact) -> Result<(), String> {
    if let Some(first) = &fact.first {
        Nodes::login(nodes.primary).await.run(first).await;
    }
    nodes.caught_up(nodes.standby).await;
    let seen_by = async |port| match &fact.shows {
        Some(shows) => Some(ask(&mut Nodes::login(port).await, &query(shows)).await),
        None => None,
    };
    let written = seen_by(nodes.primary).await;
    let mut wire = prepared(nodes.standby, fact).await;
    let on_standby = run(&mut wire, fact).await;
    let left = match &fact.shows {
        Some(shows) => Some(ask(&mut wire, &query(shows)).await),
        None => None,
    };
    let others_see = seen_by(nodes.standby).await;
    let primary_shows = seen_by(nodes.primary).await;
    if let Some(after) = &fact.after {
        wire.run(after).await;
    }
    drop(wire);
    let mut wire = prepared(nodes.primary, fact).await;
    let on_primary = run(&mut wire, fact).await;
    if let Some(after) = &fact.after {
        wire.run(after).await;
    }
    let expected = fact.primary.clone().map_or(Ok(()), Err);
    if on_primary.clone().map(drop) != expected {
        return Err(format!("the primary answers {on_primary:?}"));
    }
    let told = match fact.standby.as_str() {
        "works" => on_standby.is_ok(),
        "same" => on_standby.is_ok() && on_standby == on_primary,
        "node" if left.is_some() => on_standby.is_ok() && left != primary_shows,
        "node" => on_standby.is_ok() && on_standby != on_primary,
        "session" => on_standby.is_ok() && left != others_see,
        "remote" => on_standby.is_ok() && written != primary_shows,
        code => on_standby.as_ref().err().is_some_and(|it| it == code),
    };
    if told {
        return Ok(());
    }
    Err(format!(
        "the standby answers {on_standby:.300?}\n      and the primary {on_primary:.300?}\n      shown {left:?}, to others {others_see:?}, on the primary \
         {written:?} and then {primary_shows:?}"
    ))
}

#[tokio::test]
async fn a_live_pair_does_what_the_list_says() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let nodes = Nodes::turned_on(&lab);
    nodes.set_up().await;
    let facts = facts(nodes.primary);
    let rows: BTreeSet<u16> = facts
        .iter()
        .map(|fact| fact.row)
        .chain(TOLD_HERE.iter().copied())
        .collect();
    assert!(
        rows.iter().copied().eq(1..=ROWS),
        "rows of the list are missing: {rows:?}"
    );

    let (mut tried, mut wrong, mut left_out) = (0, Vec::new(), Vec::new());
    for fact in &facts {
        if let Some(why) = &fact.why {
            left_out.push(format!("{}: {}: {why}", fact.row, fact.sql));
            continue;
        }
        tried += 1;
        let began = Instant::now();
        while let Err(why) = judge(&nodes, fact).await {
            // A session's statistics are counted a moment after its end.
            if fact.standby != "node" || fact.shows.is_some() || began.elapsed() > Duration::from_secs(5) {
                wrong.push(format!(
                    "{}: {} is not {}:\n      {why}",
                    fact.row, fact.sql, fact.standby
                ));
                break;
            }
        }
    }
    println!(
        "{ROWS} rows; {tried} statements tried on both nodes, {} not: {}",
        left_out.len(),
        left_out.join("; ")
    );
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));

    the_proxy_finds_what_texts_hide(&nodes, &lab, &facts).await;
    portals_and_statements_are_their_connections(&nodes).await;
    function_calls_are_judged_by_their_function(&nodes).await;
    pipelines_are_one_transaction(&nodes).await;
    snapshots_pids_and_keys_are_their_nodes(&nodes).await;
    replication_and_ssl_are_asked_of_any_node(&nodes).await;
    a_dropped_database_ends_the_standbys_sessions(&nodes).await;
    replay_can_be_paused_and_a_standby_promoted(&nodes).await;
}

/// A client of the proxy gets the primary's answer where the text alone promises a standby's.
async fn the_proxy_finds_what_texts_hide(nodes: &Nodes, lab: &LabGuard, facts: &[Fact]) {
    nodes.caught_up(nodes.standby).await;
    nodes.caught_up(nodes.spare).await;
    let proxy = Proxy::start(lab);
    for fact in facts.iter().filter(|fact| fact.access == "hidden") {
        let expected = fact.primary.clone().map_or(Ok(()), Err);
        for _ in 0..2 {
            let answer = run(&mut prepared(proxy.port, fact).await, fact).await;
            assert_eq!(answer.map(drop), expected, "{}: {}", fact.row, fact.sql);
        }
    }
}

/// Rows 43, 53, 120, 121.
async fn portals_and_statements_are_their_connections(nodes: &Nodes) {
    let mut here = Nodes::login(nodes.standby).await;
    let mut there = Nodes::login(nodes.standby).await;

    here.run("begin").await;
    let opened = [
        parse("s", "select generate_series(1, 3)", &[]),
        bind("p", "s", &[]),
        execute("p", 1),
        sync(),
    ]
    .concat();
    let suspended = here.ask(&opened).await;
    assert!(tags(&suspended).contains('s'), "{}", show(&suspended));
    let more = [execute("p", 1), sync()].concat();
    assert_eq!(codes(&there.ask(&more).await), ["34000"]);
    assert!(codes(&here.ask(&more).await).is_empty());
    here.run("commit").await;
    assert_eq!(codes(&here.ask(&more).await), ["34000"]);

    let later = [bind("", "s", &[]), execute("", 0), sync()].concat();
    assert!(codes(&here.ask(&later).await).is_empty());
    assert_eq!(codes(&there.ask(&later).await), ["26000"]);

    let unnamed = [parse("", "select 1", &[]), sync()].concat();
    assert!(codes(&here.ask(&unnamed).await).is_empty());
    let later = [bind("", "", &[]), execute("", 0), sync()].concat();
    assert!(codes(&here.ask(&later).await).is_empty());
    assert_eq!(codes(&there.ask(&later).await), ["26000"]);

    let described = [describe(b'S', "s"), sync()].concat();
    assert!(codes(&here.ask(&described).await).is_empty());
    assert_eq!(codes(&there.ask(&described).await), ["26000"]);
    let closed = [close(b'S', "s"), sync()].concat();
    assert!(
        codes(&there.ask(&closed).await).is_empty(),
        "to close what isn't there is no error"
    );
}

/// Row 83.
async fn function_calls_are_judged_by_their_function(nodes: &Nodes) {
    let mut primary = Nodes::login(nodes.primary).await;
    let mut standby = Nodes::login(nodes.standby).await;
    let oid = |name: &str| format!("select '{name}'::regproc::oid");
    let create = primary.value(&oid("lo_create")).await.parse().expect("an OID");
    let length = primary.value(&oid("pg_client_encoding")).await.parse().expect("an OID");
    assert!(codes(&primary.ask(&function_call(create, &["0"])).await).is_empty());
    assert_eq!(codes(&standby.ask(&function_call(create, &["0"])).await), ["XX000"]);
    assert!(codes(&standby.ask(&function_call(length, &[])).await).is_empty());
}

/// Rows 118 and 119.
async fn pipelines_are_one_transaction(nodes: &Nodes) {
    let read = extended("select 1", &[]);
    let write = extended("insert into counted values (1)", &[]);
    let mut standby = Nodes::login(nodes.standby).await;
    let answer = standby.ask(&[&read[..], &write, &sync()].concat()).await;
    assert_eq!((rows(&answer).len(), codes(&answer)), (1, vec!["25006".to_owned()]));

    standby.send(&[&read[..], &flush()].concat()).await;
    let flushed = standby.until(b'C').await;
    assert_eq!(rows(&flushed).len(), 1, "before any Sync");
    assert_eq!(codes(&standby.ask(&[&write[..], &sync()].concat()).await), ["25006"]);

    let mut primary = Nodes::login(nodes.primary).await;
    let before = primary.value("select count(*) from counted").await;
    let fails = extended("select 1 / 0", &[]);
    assert_eq!(
        codes(&primary.ask(&[&write[..], &fails, &sync()].concat()).await),
        ["22012"]
    );
    assert_eq!(primary.value("select count(*) from counted").await, before);
}

/// Rows 63, 99, 136.
async fn snapshots_pids_and_keys_are_their_nodes(nodes: &Nodes) {
    let mut exporter = Nodes::login(nodes.standby).await;
    exporter.run("begin isolation level repeatable read").await;
    let id = exporter.value("select pg_export_snapshot()").await;
    let import = format!("set transaction snapshot '{id}'");
    for (port, expected) in [(nodes.standby, vec![]), (nodes.primary, vec!["22023".to_owned()])] {
        let mut importer = Nodes::login(port).await;
        importer.run("begin isolation level repeatable read").await;
        assert_eq!(codes(&importer.query(&import).await), expected);
    }

    let mut worker = Nodes::login(nodes.standby).await;
    let mut primary = Nodes::login(nodes.primary).await;
    let mut standby = Nodes::login(nodes.standby).await;
    let busy = format!(
        "select count(*) from pg_stat_activity where pid = {} and wait_event = 'PgSleep'",
        worker.key.0
    );
    worker.send(&query("select pg_sleep(100)")).await;
    until("it sleeps", async || standby.value(&busy).await == "1").await;
    let mut stranger = Wire::open(nodes.primary).await;
    stranger.send(&cancel_request(&worker.key)).await;
    assert!(stranger.rest().await.is_empty());
    let cancel = format!("select pg_cancel_backend({})", worker.key.0);
    // The pid may be somebody's there, but hardly one that is ours to find.
    assert_eq!(primary.value(&cancel).await, "f");
    assert_eq!(standby.value(&busy).await, "1", "it still sleeps");
    assert_eq!(standby.value(&cancel).await, "t");
    assert_eq!(codes(&worker.answer().await), ["57014"]);
}

/// Rows 135 and 137.
async fn replication_and_ssl_are_asked_of_any_node(nodes: &Nodes) {
    for port in [nodes.primary, nodes.standby] {
        let mut walsender = Wire::login_with(
            port,
            &[("user", "postgres"), ("database", "facts"), ("replication", "database")],
        )
        .await;
        walsender.run("IDENTIFY_SYSTEM").await;
        let mut probe = Wire::open(port).await;
        probe.send(&packet(&[0x04, 0xD2, 0x16, 0x2F])).await;
        probe.finish().await;
        let answer = probe.rest_of_bytes().await;
        assert!(matches!(answer.first(), Some(b'N' | b'S')), "{answer:?}");
    }
}

/// Row 129.
async fn a_dropped_database_ends_the_standbys_sessions(nodes: &Nodes) {
    let mut there = Wire::login(nodes.standby, "doomed").await;
    let mut primary = Wire::login(nodes.primary, "postgres").await;
    primary.run("drop database doomed").await;
    assert_eq!(codes(&there.rest().await), ["57P04"]);
}

/// Rows 100, 133, 134: what a standby that doesn't follow shows, and that anybody may have it so.
async fn replay_can_be_paused_and_a_standby_promoted(nodes: &Nodes) {
    let mut primary = Nodes::login(nodes.primary).await;
    let mut spare = Nodes::login(nodes.spare).await;
    for sql in [
        "select pg_wal_replay_pause()",
        "select pg_wal_replay_resume()",
        "select pg_promote()",
    ] {
        assert_eq!(codes(&primary.query(sql).await), ["55000"], "{sql}");
    }
    spare.run("select pg_wal_replay_pause()").await;
    let state = "select pg_get_wal_replay_pause_state()";
    until("replay is paused", async || spare.value(state).await == "paused").await;
    let count = "select count(*) from counted";
    let before = spare.value(count).await;
    primary.run("insert into counted values (1)").await;
    primary.run("create table young (a int)").await;
    primary.run("alter table counted add column young int").await;
    assert_eq!(spare.value(count).await, before);
    assert_ne!(primary.value(count).await, before);
    assert_eq!(codes(&spare.query("select * from young").await), ["42P01"]);
    assert_eq!(codes(&spare.query("select young from counted").await), ["42703"]);
    spare.run("select pg_wal_replay_resume()").await;
    let began = Instant::now();
    while !codes(&spare.query("select young from counted, young").await).is_empty() {
        assert!(began.elapsed() < PATIENCE, "replay doesn't go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(spare.value("select pg_promote()").await, "t");
    assert_eq!(spare.value("select pg_is_in_recovery()").await, "f");
}
