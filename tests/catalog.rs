//! What a database has of its own: functions, types, operators, views and tables that are more than tables. What only reads goes to a
//! standby, the rest to the primary, and both follow every change.

mod support;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::scene::{Scene, until};
use support::wire::*;

/// Where a query ran: on the standby, if it says so.
async fn is_on_standby(client: &mut Wire, sql: &str) -> bool {
    let answer = client.query(sql).await;
    assert_eq!(codes(&answer), Vec::<String>::new(), "{sql}: {}", show(&answer));
    last_ran_on_standby(client, sql, &answer)
}

/// Each query that is asked here answers in its first row whether the server that ran it is in recovery.
fn last_ran_on_standby(_: &Wire, sql: &str, answer: &[Message]) -> bool {
    match firsts(answer).first().map(String::as_str) {
        Some("t") => true,
        Some("f") => false,
        other => panic!("{sql} answered {other:?}"),
    }
}

/// Objects of all kinds. `where_am_i()` is declared STABLE, so that it may be used like any other read, and tells where it ran.
const OBJECTS: &str = "
    create schema other;
    create sequence s;
    create table t (n int, owner text);
    insert into t values (1, 'postgres');
    create function where_am_i() returns boolean stable language plpgsql as $$ begin return pg_is_in_recovery(); end $$;
    create function reads_by_sql() returns boolean language sql as 'select where_am_i() from t limit 1';
    create function reads_by_standard_sql() returns boolean language sql return (select where_am_i() from t limit 1);
    create function reads_by_plpgsql() returns boolean language plpgsql as
        $$ declare found_it boolean; begin select where_am_i() into found_it from t; return found_it; end $$;
    create function volatile() returns boolean language plpgsql as $$ begin return pg_is_in_recovery(); end $$;
    create function listed() returns boolean language plpgsql as $$ begin return pg_is_in_recovery(); end $$;
    create function draws() returns boolean language sql as 'select nextval(''s'') is null or where_am_i()';
    create function other.overloaded(int) returns boolean stable language sql as 'select where_am_i()';
    create function overloaded(text) returns boolean volatile language plpgsql as $$ begin return pg_is_in_recovery(); end $$;
    create function two_of_them(int) returns boolean stable language sql as 'select where_am_i()';
    create function two_of_them(int, int) returns boolean volatile language plpgsql as $$ begin return pg_is_in_recovery(); end $$;
    create type mood as enum ('sad', 'happy');
    create domain positive as int check (value > 0);
    create function logs(int) returns boolean volatile language plpgsql as $$ begin perform pg_advisory_lock(1), pg_advisory_unlock(1); return true; end $$;
    create domain checked_by_volatile as int check (logs(value));
    create function plus(mood, mood) returns boolean stable language sql as 'select where_am_i()';
    create operator + (leftarg = mood, rightarg = mood, function = plus);
    create operator === (leftarg = int, rightarg = int, function = int4eq);
    create aggregate here(boolean) (sfunc = booland_statefunc, stype = boolean);
    create view here_view as select where_am_i() as here, n from t;
    create view nested as select here from here_view;
    create view secretly_locking as select pg_is_in_recovery() as here, pg_advisory_xact_lock_shared(4) is null as locked;
    create unlogged table fast (n int);
    insert into fast values (1);
    create table parent (n int);
    create table child () inherits (parent);
    alter table child set unlogged;
    create table guarded (n int, owner text);
    insert into guarded values (1, 'postgres');
    alter table guarded enable row level security, force row level security;
    create policy own on guarded using (owner = current_user);
    create materialized view stored as select 1 as n;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_a_databases_own_things_go_to_standbys_and_nothing_else_does() {
    let scene = Scene::start(
        "[routing]\nconsistency = \"eventual\"\nread_only_functions = [\"listed\"]\n[monitor]\ntimeout = \"10s\"\n",
    )
    .await;
    scene.direct().await.run(OBJECTS).await;
    scene.caught_up().await;
    let mut client = scene.wire().await;
    until("the database's names are known", async || {
        is_on_standby(&mut client, "select where_am_i()").await
    })
    .await;
    for (sql, on_standby) in [
        ("select where_am_i() from t where n = 1", true),
        ("select public.where_am_i()", true),
        ("with w as (select where_am_i() as here) select here from w", true),
        ("select reads_by_sql()", true),
        ("select reads_by_standard_sql()", true),
        ("select reads_by_plpgsql()", true),
        ("select listed()", true),
        ("select volatile()", false),
        ("select draws()", false),
        ("select two_of_them(1)", true),
        ("select two_of_them(1, 2)", false),
        // By its schema it can't be the other one.
        ("select other.overloaded(1)", true),
        ("select overloaded('a')", false),
        ("select where_am_i() where 'sad'::mood = 'sad'", true),
        ("select where_am_i() where cast(1 as positive) = 1", true),
        ("select where_am_i() where cast(1 as checked_by_volatile) = 1", false),
        ("select 'sad'::mood + 'happy'::mood", true),
        ("select where_am_i() where 1 === 1", true),
        ("select here(where_am_i()) from t", true),
        ("select here from here_view", true),
        ("select here from nested", true),
        ("table nested", true),
        ("select here from secretly_locking", false),
        ("select where_am_i() from fast", false),
        ("select where_am_i() from t, parent right join t as u on true", false),
        ("select where_am_i() from guarded", true),
        ("select where_am_i() from stored", true),
        // A column or an alias of a name that a table has.
        ("select fast.here from (select where_am_i() as here) as fast", true),
        ("select where_am_i() from (values (1)) as v (s)", true),
    ] {
        assert_eq!(is_on_standby(&mut client, sql).await, on_standby, "{sql}");
        let answer = client.ask(&[extended(sql, &[]), sync()].concat()).await;
        assert_eq!(
            last_ran_on_standby(&client, sql, &answer),
            on_standby,
            "{sql}, extended"
        );
    }
    // Nothing of this had to be refused by the standby first.
    assert_eq!(scene.proxy.metric("pgsluice_retries_total{reason=\"25006\"}"), 0.0);
    assert_eq!(scene.proxy.metric("pgsluice_retries_total{reason=\"55000\"}"), 0.0);
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_followed_from_the_moment_that_it_is_asked_for() {
    let scene = Scene::start("[routing]\nconsistency = \"eventual\"\n[monitor]\ntimeout = \"10s\"\n").await;
    let (mut client, mut changer) = (scene.wire().await, scene.wire().await);
    let define = |volatility: &str| {
        format!(
            "create or replace function changes() returns boolean {volatility} language plpgsql \
             as $$ begin return pg_is_in_recovery(); end $$"
        )
    };
    changer.run(&define("stable")).await;
    scene.caught_up().await;
    let read = "select changes()";
    client.ask(&[parse("known", read, &[]), sync()].concat()).await;
    let prepared = [bind("", "known", &[]), execute("", 0), sync()].concat();
    for round in 0..3 {
        until("it is known to read", async || is_on_standby(&mut client, read).await).await;
        let answer = client.ask(&prepared).await;
        assert!(last_ran_on_standby(&client, read, &answer), "round {round}");
        // From here on, and not only from its end.
        changer.run("begin").await;
        changer.run(&define("volatile")).await;
        assert!(!is_on_standby(&mut client, read).await, "round {round}");
        let answer = client.ask(&prepared).await;
        assert!(
            !last_ran_on_standby(&client, read, &answer),
            "round {round}: what was prepared before"
        );
        if round % 2 == 0 {
            changer.run("commit").await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(!is_on_standby(&mut client, read).await, "round {round}");
            changer.run(&define("stable")).await;
        } else {
            changer.run("rollback").await;
        }
    }
    until("it is known to read", async || is_on_standby(&mut client, read).await).await;
    // Plain tables are no reason to forget anything.
    changer
        .run("create table plain (n int); create index on plain (n); drop table plain")
        .await;
    changer.run("create temp table plain (n int)").await;
    assert!(is_on_standby(&mut client, read).await);
    // Past the proxy: a name that isn't known is looked for at once.
    scene
        .direct()
        .await
        .run("create function appears() returns boolean stable language sql as 'select changes()'")
        .await;
    let begun = Instant::now();
    until("it is found", async || {
        is_on_standby(&mut client, "select appears()").await
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(10), "after {:?}", begun.elapsed());
    drop((client, changer));
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_past_the_proxy_is_noticed_in_time() {
    let scene =
        Scene::start("[routing]\nconsistency = \"eventual\"\ncatalog_refresh = \"1s\"\n[monitor]\ntimeout = \"10s\"\n")
            .await;
    let (mut client, mut direct) = (scene.wire().await, scene.direct().await);
    direct.run(OBJECTS).await;
    scene.caught_up().await;
    until("it is known", async || {
        is_on_standby(&mut client, "select here from here_view").await
    })
    .await;
    direct
        .run("create or replace view here_view as select volatile() as here, n from t")
        .await;
    until("it is noticed", async || {
        !is_on_standby(&mut client, "select here from here_view").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_standby_has_refused_is_not_sent_there_again() {
    let scene = Scene::start("[routing]\nconsistency = \"eventual\"\n[monitor]\ntimeout = \"10s\"\n").await;
    // Declared STABLE, it is believed, and yet a standby refuses it.
    scene
        .direct()
        .await
        .run(
            "create function lies() returns boolean stable language plpgsql as $$ begin
                 perform txid_current(); return pg_is_in_recovery(); end $$",
        )
        .await;
    scene.caught_up().await;
    let refused = || scene.proxy.metric("pgsluice_retries_total{reason=\"25006\"}");
    let mut client = scene.wire().await;
    until("it is believed, and refused", async || {
        assert!(!is_on_standby(&mut client, "select lies()").await);
        refused() > 0.0
    })
    .await;
    let prepared = [parse("lies", "select lies()", &[]), sync()].concat();
    client.ask(&prepared).await;
    for n in 0..20 {
        assert!(!is_on_standby(&mut client, &format!("select lies() where {n} = {n}")).await);
        assert!(!is_on_standby(&mut client, "select lies()").await);
        client
            .ask(&[bind("", "lies", &[]), execute("", 0), sync()].concat())
            .await;
    }
    // Each text once.
    assert_eq!(refused(), 2.0);
    let label = "pgsluice_routing_decisions_total{target=\"primary\",reason=\"refused_before\"}";
    assert_eq!(scene.proxy.metric(label), 59.0);
    // What it is now may be something else.
    client
        .run("create or replace function lies() returns boolean stable language sql as 'select pg_is_in_recovery()'")
        .await;
    until("it is no longer remembered", async || {
        is_on_standby(&mut client, "select lies()").await
    })
    .await;
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_sends_all_to_the_primary_and_counts_what_need_not() {
    let scene = Scene::start("[routing]\nmode = \"observe\"\n[monitor]\ntimeout = \"10s\"\n").await;
    let mut client = scene.wire().await;
    client.run("create table observed (n int)").await;
    for _ in 0..5 {
        client.run("select n from observed").await;
        client.run("insert into observed values (1)").await;
        client.run("/* pgsluice: standby */ select n from observed").await;
    }
    let metric = |reason: &str| {
        let name = format!("pgsluice_routing_decisions_total{{target=\"primary\",reason=\"{reason}\"}}");
        scene.proxy.metric(&name)
    };
    assert_eq!(metric("observed"), 10.0);
    assert_eq!(scene.proxy.statements(scene.standby().name()), (0, 0));
    drop(client);
    scene.settled().await;
}

/// What `pgsluice explain` prints, or complains of.
fn explain(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pgsluice"))
        .arg("explain")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgsluice runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_asks_the_servers_what_a_databases_own_names_mean() {
    let scene = Scene::start(
        "[routing]\nread_only_functions = [\"listed\"]\n[[routing.default]]\nuser = \"careful\"\nroute = \"primary\"\n",
    )
    .await;
    scene.direct().await.run(OBJECTS).await;
    let file = scene.proxy.config_file();
    let known = ["-c", file.to_str().expect("a path"), "--database", &scene.database];
    let of = |sql: &str, more: &[&str]| explain(&[&known[..], more, &[sql]].concat(), "");
    let read = "because: it only reads, and everything it names is known to be safe\n";
    for (sql, because) in [
        ("select where_am_i(), listed()", read),
        ("select volatile()", "because: function public.volatile() is VOLATILE\n"),
        (
            "select two_of_them(1, 2)",
            "because: function public.two_of_them(integer, integer) is VOLATILE\n",
        ),
        (
            "table fast",
            "because: public.fast is UNLOGGED: standbys don't have it\n",
        ),
    ] {
        assert!(of(sql, &[]).contains(because), "{sql}: {}", of(sql, &[]));
    }
    // Without the servers nothing of it is known.
    assert!(explain(&["select where_am_i()"], "").contains("function where_am_i isn't known to be safe"));
    assert!(
        of("select 1", &["--user", "careful"])
            .ends_with("goes to: the primary, as is configured for its user or database\n")
    );
    let batch = explain(
        &[&known[..], &["--batch"]].concat(),
        "{\"sql\": \"select volatile()\"}\n{\"sql\": \"table nested\"}\n",
    );
    let accesses: Vec<String> = batch
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["access"].to_string())
        .collect();
    assert_eq!(accesses, ["\"write\"", "\"read\""], "{batch}");
    let nowhere = explain(
        &[
            "-c",
            file.to_str().expect("a path"),
            "--database",
            "nowhere",
            "select 1",
        ],
        "",
    );
    assert!(
        nowhere.contains("error: the names of database nowhere can't be looked up: "),
        "{nowhere}"
    );
    assert!(explain(&["--database", "postgres", "select 1"], "").contains("give -c FILE"));
}
