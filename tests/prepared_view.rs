//! The view pg_prepared_statements, and what else names prepared statements in SQL: through the proxy as on a connection of one's own.

mod support;

use support::scene::Scene;
use support::wire::*;

const LISTED: &str =
    "select name, statement, parameter_types, from_sql from pg_prepared_statements order by prepare_time";
const ONE_CONNECTION: &str = "[pool]\nsize = 1\n";

fn batch(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), sync()].concat()
}

fn prepare(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    batch(&[parse(name, sql, types)])
}

fn run(name: &str, values: &[Option<&str>]) -> Vec<u8> {
    batch(&[bind("", name, values), execute("", 0)])
}

fn unnamed(sql: &str) -> Vec<u8> {
    batch(&[extended(sql, &[])])
}

/// Client and a client of the primary itself are sent the same, one message or batch after another, and must be answered the same.
async fn same(scene: &Scene, client: &mut Wire, steps: &[(&str, Vec<u8>)]) {
    let mut direct = scene.direct().await;
    for (number, (what, bytes)) in steps.iter().enumerate() {
        let (ours, theirs) = (client.ask(bytes).await, direct.ask(bytes).await);
        let context = format!("step {number}, {what}:\n{}\ndirectly:\n{}", show(&ours), show(&theirs));
        assert_eq!(tags(&ours), tags(&theirs), "{context}");
        assert_eq!(rows(&ours), rows(&theirs), "{context}");
        assert_eq!(codes(&ours), codes(&theirs), "{context}");
    }
}

fn q(sql: &str) -> (&str, Vec<u8>) {
    (sql, query(sql))
}

#[tokio::test]
async fn a_session_sees_its_own_statements_in_its_own_order() {
    let scene = Scene::start(ONE_CONNECTION).await;
    let mut other = scene.wire().await;
    // The connection has these, under the proxy's names.
    for (name, sql) in [
        ("a", "select 'theirs'"),
        ("b", "select 2"),
        ("x", "select 'only theirs'"),
    ] {
        other.ask(&prepare(name, sql, &[])).await;
    }
    let mut client = scene.wire().await;
    let steps = [
        q(LISTED),
        ("Parse b", prepare("b", "select 2", &[])),
        ("Parse a", prepare("a", "select $1::int + $2, $3", &[0, 20, 0])),
        q(LISTED),
        ("by the extended protocol", unnamed(LISTED)),
        (
            "Parse and look",
            batch(&[parse("c", "select $1::text", &[]), extended(LISTED, &[])]),
        ),
        ("a Parse that fails", prepare("d", "select nonsense", &[])),
        q("table pg_prepared_statements limit 0"),
        q("select count(*) from pg_prepared_statements where prepare_time > now() - interval '1 min'"),
        q("deallocate a"),
        q(LISTED),
        ("Close b", batch(&[close(b'S', "b")])),
        ("Close b", batch(&[close(b'S', "b")])),
        q(LISTED),
        (
            "Parse and Close",
            batch(&[parse("e", "select 1", &[]), close(b'S', "c"), extended(LISTED, &[])]),
        ),
        q("deallocate all"),
        q(LISTED),
        ("Parse f", prepare("f", "select 1", &[])),
        q("discard all"),
        q(LISTED),
        ("Parse g", prepare("g", "select 1", &[])),
        ("DEALLOCATE ALL", unnamed("deallocate all")),
        ("by the extended protocol", unnamed(LISTED)),
    ];
    same(&scene, &mut client, &steps).await;
    assert_eq!(
        firsts(
            &other
                .query("select name from pg_prepared_statements order by prepare_time")
                .await
        ),
        ["a", "b", "x"]
    );
    drop((client, other));
    scene.settled().await;
}

#[tokio::test]
async fn what_sql_prepare_has_made_is_shown_with_the_rest() {
    let scene = Scene::start(ONE_CONNECTION).await;
    let mut client = scene.wire().await;
    let steps = [
        ("Parse a", prepare("a", "select $1::int", &[])),
        q("prepare b (int, text) as select $1, $2"),
        ("Parse c", prepare("c", "select 3", &[])),
        q(LISTED),
        ("Bind b", run("b", &[Some("1"), Some("x")])),
        ("Close a, b", batch(&[close(b'S', "a"), close(b'S', "b")])),
        q(LISTED),
        ("Bind b", run("b", &[Some("1"), Some("x")])),
    ];
    same(&scene, &mut client, &steps).await;
    // What bound it to its connection is gone.
    let mut other = scene.wire().await;
    assert_eq!(other.value("select count(*) from pg_prepared_statements").await, "0");
    drop((client, other));
    scene.settled().await;
}

#[tokio::test]
async fn a_query_of_the_view_that_is_prepared_itself_shows_what_there_is_each_time() {
    let scene = Scene::start(ONE_CONNECTION).await;
    let mut other = scene.wire().await;
    other.ask(&prepare("look", LISTED, &[])).await;
    let mut client = scene.wire().await;
    let counted = "select count(*) from pg_prepared_statements where name <> $1";
    let described = |name: &str| {
        batch(&[
            bind("p", name, &[]),
            describe(b'P', "p"),
            execute("p", 2),
            execute("p", 0),
        ])
    };
    let steps = [
        ("Parse look", prepare("look", LISTED, &[])),
        ("look", run("look", &[])),
        ("Parse a", prepare("a", "select 1", &[])),
        ("look", run("look", &[])),
        ("look, in parts", described("look")),
        (
            "Parse count",
            batch(&[parse("count", counted, &[]), describe(b'S', "count")]),
        ),
        ("count", run("count", &[Some("a")])),
        ("Close a", batch(&[close(b'S', "a")])),
        ("count", run("count", &[Some("a")])),
        (
            "Parse and count",
            batch(&[
                parse("b", "select 1", &[]),
                bind("", "count", &[Some("")]),
                execute("", 0),
            ]),
        ),
        ("an unnamed one", batch(&[parse("", counted, &[]), describe(b'S', "")])),
        (
            "later",
            batch(&[describe(b'S', ""), bind("", "", &[Some("b")]), execute("", 0)]),
        ),
        (
            "again",
            batch(&[
                bind("", "", &[Some("")]),
                execute("", 0),
                bind("", "", &[Some("b")]),
                execute("", 0),
            ]),
        ),
        q("begin"),
        (
            "in a block",
            batch(&[parse("c", "select 1", &[]), bind("held", "look", &[])]),
        ),
        ("Execute", batch(&[execute("held", 0)])),
        q("select nonsense"),
        ("in a failed block", run("look", &[])),
        q("rollback"),
        q("deallocate look"),
        ("look", run("look", &[])),
        ("count", run("count", &[Some("")])),
    ];
    same(&scene, &mut client, &steps).await;
    assert_eq!(firsts(&other.ask(&run("look", &[])).await), ["look"]);
    drop((client, other));
    scene.settled().await;
}

#[tokio::test]
async fn names_and_texts_are_shown_as_they_are() {
    let scene = Scene::start(ONE_CONNECTION).await;
    let mut client = scene.wire().await;
    let odd = [
        "it's",
        "\"quoted\"",
        "zwölf 東京",
        "back\\slash",
        "\\'; select 1 --",
        "$1",
        " ",
        "%s",
        "{}",
    ];
    let mut steps = Vec::new();
    for scheme in ["on", "off"] {
        let set = format!("set standard_conforming_strings = {scheme}; set client_min_messages = error");
        steps.push((format!("strings {scheme}"), query(&set)));
        for name in odd {
            let sql = format!(
                "select '{}'::text as \"{}\"",
                name.replace(['\'', '\\'], "/"),
                name.replace('"', "")
            );
            steps.push((format!("Parse {name}"), prepare(name, &sql, &[])));
        }
        steps.push((
            "prepare with a backslash".into(),
            prepare("back", r"select E'a\\b''c'::text", &[]),
        ));
        steps.push(("list".into(), query(LISTED)));
        steps.push(("list".into(), unnamed(LISTED)));
        steps.push(("all".into(), query("deallocate all")));
    }
    let steps: Vec<_> = steps.iter().map(|(what, bytes)| (&**what, bytes.clone())).collect();
    same(&scene, &mut client, &steps).await;
    drop(client);
    scene.settled().await;
}

#[tokio::test]
async fn the_view_is_read_in_any_place() {
    let scene = Scene::start(ONE_CONNECTION).await;
    let mut other = scene.wire().await;
    other.ask(&prepare("theirs", "select 7", &[])).await;
    let mut client = scene.wire().await;
    let steps = [
        ("Parse a", prepare("a", "select $1::int", &[])),
        ("Parse b", prepare("b", "select 2", &[])),
        q(
            "select p.name, pg_typeof(p.prepare_time), pg_typeof(parameter_types) from pg_prepared_statements as p order by 1",
        ),
        q("select pg_prepared_statements.name from pg_catalog.pg_prepared_statements order by 1"),
        q("select x, y from pg_prepared_statements t(x, y) order by 1"),
        q(
            "select l.name, r.name from pg_prepared_statements l join pg_prepared_statements r using (from_sql) order by 1, 2",
        ),
        q("select n, name from generate_series(1, 2) n, \"pg_prepared_statements\" order by 1, 2"),
        q("with w as (select * from pg_prepared_statements) select count(*) from w"),
        q(
            "select (select max(name) from pg_prepared_statements where name < 'b'), exists (table pg_prepared_statements)",
        ),
        q("select name from pg_prepared_statements union all select 'c' order by 1"),
        q(
            "create temp table kept as select * from pg_prepared_statements; select name, statement from kept order by 1",
        ),
        q("insert into kept (name) select name || '2' from pg_prepared_statements"),
        q("select name from kept order by 1; drop table kept"),
        q("begin; declare c cursor for select name from pg_prepared_statements order by 1; fetch all from c; commit"),
        q("copy (select name, parameter_types from pg_prepared_statements order by 1) to stdout"),
        q("with pg_prepared_statements as (select 5) select * from pg_prepared_statements"),
        q("set search_path = nowhere; select count(*) from pg_prepared_statements; reset search_path"),
        q("select 'from pg_prepared_statements' from pg_prepared_statements limit 1"),
        q("explain (costs off) select * from pg_prepared_statements"),
        q("select nonsense from pg_prepared_statements"),
        q("select generic_plans, custom_plans from pg_prepared_statements where name = 'b'"),
    ];
    same(&scene, &mut client, &steps).await;
    // All of its columns, as they are.
    let mut direct = scene.direct().await;
    let all = "select * from pg_prepared_statements limit 0";
    let names = |answer: Vec<Message>| {
        let columns = answer.into_iter().find(|message| message.tag == b'T').expect("columns");
        let words = String::from_utf8_lossy(&columns.body).into_owned();
        words
            .split(|c: char| !c.is_ascii_lowercase() && c != '_')
            .filter(|word| word.len() > 3)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (ours, theirs) = (names(client.query(all).await), names(direct.query(all).await));
    assert_eq!(ours, theirs);
    assert!(ours.contains(&"prepare_time".to_owned()), "{ours:?}");
    drop((client, other, direct));
    scene.settled().await;
}

#[tokio::test]
async fn statements_that_no_longer_work_are_listed_and_fail_nothing() {
    let scene = Scene::start(ONE_CONNECTION).await;
    let (mut client, mut other) = (scene.wire().await, scene.wire().await);
    client.run("create table gone (a int)").await;
    client.ask(&prepare("a", "select * from gone", &[])).await;
    client.run("drop table gone").await;
    other.run("discard all").await;
    client.run("begin").await;
    assert_eq!(client.value("select name from pg_prepared_statements").await, "a");
    client.run("commit").await;
    // More than a connection keeps.
    for number in 0..600 {
        client
            .ask(&prepare(
                &format!("s{number}"),
                &format!("select {number}, $1::int"),
                &[],
            ))
            .await;
    }
    let sql =
        "select count(*) from pg_prepared_statements where parameter_types = '{int}' and statement like 'select %'";
    assert_eq!(client.value(sql).await, "600");
    drop((client, other));
    scene.settled().await;
}

#[tokio::test]
async fn an_execute_in_sql_may_be_prepared_by_name() {
    let scene = Scene::start(ONE_CONNECTION).await;
    let mut other = scene.wire().await;
    other.ask(&prepare("foo", "select 'theirs'", &[])).await;
    other.ask(&prepare("run", "execute foo", &[])).await;
    let mut client = scene.wire().await;
    let steps = [
        ("before there is one", batch(&[parse("early", "execute foo(4)", &[])])),
        (
            "Parse foo",
            prepare("foo", "select $1::int * 2, 'mine'::text as mine", &[]),
        ),
        (
            "Parse run",
            batch(&[parse("run", "execute foo(4)", &[]), describe(b'S', "run")]),
        ),
        ("run", run("run", &[])),
        (
            "run early",
            batch(&[bind("", "early", &[]), describe(b'P', ""), execute("", 0)]),
        ),
        ("Close foo", batch(&[close(b'S', "foo")])),
        ("run", run("run", &[])),
        ("Parse foo anew", prepare("foo", "select 'anew ' || $1", &[])),
        (
            "run",
            batch(&[bind("", "run", &[]), describe(b'P', ""), execute("", 0)]),
        ),
        ("an unnamed one", batch(&[parse("", "execute foo(5)", &[])])),
        ("later", batch(&[describe(b'S', ""), bind("", "", &[]), execute("", 0)])),
        ("Parse drop", prepare("drop", "deallocate foo", &[])),
        ("drop", run("drop", &[])),
        ("drop", run("drop", &[])),
        ("run", run("run", &[])),
        q(LISTED),
    ];
    same(&scene, &mut client, &steps).await;
    assert_eq!(firsts(&other.ask(&run("run", &[])).await), ["theirs"]);
    drop((client, other));
    scene.settled().await;
}

#[tokio::test]
async fn nobody_closes_what_the_proxy_has_prepared() {
    let scene = Scene::start(ONE_CONNECTION).await;
    let (mut client, mut other) = (scene.wire().await, scene.wire().await);
    other.ask(&prepare("a", "select 'a'", &[])).await;
    let all: Vec<Vec<u8>> = (0..20)
        .map(|number| close(b'S', &format!("pgsluice_{number}")))
        .collect();
    for pin in ["", "prepare own as select 1"] {
        client.run(pin).await;
        let answer = client.ask(&batch(&[all.concat(), extended("select 1", &[])])).await;
        assert_eq!(firsts(&answer), ["1"], "{}", show(&answer));
        assert_eq!(tags(&answer).matches('3').count(), 20, "{}", show(&answer));
    }
    client.run("deallocate own").await;
    let answer = other.ask(&run("a", &[])).await;
    assert_eq!(firsts(&answer), ["a"], "{}", show(&answer));
    drop((client, other));
    scene.settled().await;
}
