//! A session's settings follow it, and nobody else: over one server connection that all clients share.

mod support;

use pgsluice::lab::LabGuard;
use support::scene::{Scene, until};
use support::wire::*;
use support::{Proxy, client};
use tokio_postgres::{Client, SimpleQueryMessage};

async fn show(client: &Client, name: &str) -> String {
    let answer = client.simple_query(&format!("show {name}")).await.expect("SHOW");
    answer
        .iter()
        .find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .expect("a value")
}

async fn run(client: &Client, statements: &[&str]) {
    for sql in statements {
        client
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

/// Each conversation runs through the proxy and directly; what a setting is afterwards must be the same, and a stranger must see its
/// default.
#[tokio::test]
async fn settings_end_as_they_do_on_a_connection_of_ones_own() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[pool]\nsize = 1\n");
    let conversations: &[&[&str]] = &[
        &["set work_mem = '13MB'"],
        &["begin", "set work_mem = '13MB'", "commit"],
        &["begin", "set work_mem = '13MB'", "rollback"],
        &["begin", "set work_mem = '13MB'", "commit; begin", "rollback"],
        &["begin", "set work_mem = '13MB'", "savepoint a", "rollback"],
        &[
            "begin",
            "set work_mem = '13MB'",
            "savepoint a",
            "rollback to a",
            "rollback",
        ],
        &[
            "begin",
            "set work_mem = '13MB'",
            "savepoint a",
            "rollback to a",
            "commit",
        ],
        &[
            "begin",
            "savepoint a",
            "set work_mem = '13MB'",
            "rollback to a",
            "commit",
        ],
        &["begin", "set work_mem = '13MB'", "rollback; select 1"],
        &[
            "begin",
            "set work_mem = '13MB'",
            "set statement_timeout = '9s'; rollback",
        ],
        &["begin", "set work_mem = '13MB'", "set statement_timeout = '9s'; commit"],
        &["begin; set work_mem = '13MB'; commit; set statement_timeout = '9s'"],
        &["begin; set work_mem = '13MB'; rollback; set statement_timeout = '9s'"],
        &["begin", "set work_mem = '13MB'", "commit and chain", "rollback"],
        &["begin", "set work_mem = '13MB'", "rollback and chain", "commit"],
        &["begin", "set local work_mem = '13MB'", "commit"],
        &["set work_mem = '13MB'", "reset work_mem"],
        &["set work_mem = '13MB'", "reset all"],
        &["set work_mem = '13MB'", "discard all"],
        &["reset work_mem; set statement_timeout = '9s'"],
        &["begin", "reset work_mem", "set statement_timeout = '9s'", "commit"],
        &["create temp table tt()", "reset all"],
        &["select set_config('work_mem', '13MB', false)"],
        &["select set_config('Work_Mem', (12 + 1) || 'MB', false), set_config('statement_timeout', '7', true)"],
        &["select set_config('work_mem', '13MB', false) where 1 = 2"],
        &["begin", "select set_config('work_mem', '13MB', false)", "rollback"],
        &["begin", "select set_config('work_mem', '13MB', false)", "commit"],
        &["begin", "select set_config('work_mem', '13MB', true)", "commit"],
        &["select set_config('work_mem', '13MB', false); reset work_mem"],
        &["set statement_timeout = '9s'; select set_config('work_mem', '13MB', false)"],
        &["set session characteristics as transaction isolation level repeatable read"],
    ];
    let options = "options='-c work_mem=14MB'";
    let node = &lab.nodes()[0];
    for conversation in conversations {
        let direct = client(&format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres {options}",
            node.port()
        ))
        .await;
        let proxied = client(&format!("{} {options}", proxy.dsn())).await;
        run(&direct, conversation).await;
        run(&proxied, conversation).await;
        for name in ["work_mem", "statement_timeout", "transaction_isolation"] {
            let (expected, got) = (show(&direct, name).await, show(&proxied, name).await);
            assert_eq!(got, expected, "{name} after {conversation:?}");
        }
        // A session that is pinned keeps the one connection until it leaves.
        drop(proxied);
        {
            let stranger = proxy.client().await;
            assert_eq!(
                show(&stranger, "work_mem").await,
                "4MB",
                "a stranger's, after {conversation:?}"
            );
            assert_eq!(
                show(&stranger, "statement_timeout").await,
                "0",
                "a stranger's, after {conversation:?}"
            );
        }
    }
}

/// One client's statements and what a last query of its answers, with another client on the same server connection after each of them.
async fn told_between_others(scene: &Scene, statements: &[&str], last: &str) -> String {
    let (mut client, mut other) = (scene.wire().await, scene.wire().await);
    for sql in statements {
        client.run(sql).await;
        other.run("set datestyle = 'German'; set work_mem = '9MB'").await;
        other.run("select nextval('others')").await;
    }
    client.value(last).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_means_on_another_connection_what_it_meant_where_it_was_set() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    scene.direct().await.run("create sequence others").await;
    scene.caught_up().await;
    for (statements, last) in [
        (
            &["set datestyle = 'SQL, DMY'", "set datestyle = iso"][..],
            "select current_setting('datestyle') || ' ' || date '01/02/2020'",
        ),
        (
            &[
                "set standard_conforming_strings = off",
                r"set app.x = 'a\'b\\c'",
                "set standard_conforming_strings = on",
            ],
            "select current_setting('app.x')",
        ),
        (&[r"set app.x = U&'d\0061t\+000061'"], "select current_setting('app.x')"),
        (
            &["set app.x = $tag$it's & that$tag$"],
            "select current_setting('app.x')",
        ),
        (
            &["set search_path = a, \"B c\", 'd'"],
            "select current_setting('search_path')",
        ),
    ] {
        let mut direct = scene.direct().await;
        for sql in statements {
            direct.run(sql).await;
        }
        let expected = direct.value(last).await;
        assert_eq!(
            told_between_others(&scene, statements, last).await,
            expected,
            "{statements:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_is_refused_by_now_can_be_reset() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    let (mut client, mut other) = (scene.wire().await, scene.wire().await);
    other.run("create text search configuration gone (copy = simple)").await;
    for reset in ["reset default_text_search_config", "reset all", "discard all"] {
        client.run("set default_text_search_config = 'gone'").await;
        other.run("drop text search configuration gone").await;
        assert_eq!(
            codes(&client.query("/* pgsluice: primary */ select 1").await),
            ["22023"]
        );
        client.run(reset).await;
        assert_eq!(client.value("select 1").await, "1");
        other.run("create text search configuration gone (copy = simple)").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequences_are_remembered_as_on_a_connection_of_ones_own() {
    let scene = Scene::start("[pool]\nsize = 3\n").await;
    let (mut pinned, mut drawing, mut other) = (scene.wire().await, scene.wire().await, scene.wire().await);
    other
        .run("create sequence others; create sequence s start 100; select nextval('others')")
        .await;
    pinned.run("create temp table x (id serial, a int)").await;
    assert_eq!(
        codes(&pinned.query("select lastval()").await),
        ["55000"],
        "a stranger's"
    );
    pinned.run("insert into x (a) values (1)").await;
    assert_eq!(pinned.value("select lastval()").await, "1");
    // From here on it is known to go by what it draws.
    drawing.query("select lastval()").await;
    for expected in ["100", "101", "102"] {
        drawing.run("select nextval('s')").await;
        other.run("select nextval('others')").await;
        assert_eq!(drawing.value("select currval('s')").await, expected);
        assert_eq!(drawing.value("select lastval()").await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_function_leaves_on_a_connection_is_for_no_stranger() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let (mut client, mut stranger) = (scene.wire().await, scene.wire().await);
    client
        .run(
            "create table mine as select 'everybody'::text as whose;
             create function leave() returns void language plpgsql as $$ begin
                 perform set_config('app.tenant', '42', false), pg_advisory_lock(77);
                 set work_mem = '7MB';
                 create temp table if not exists mine as select 'a stranger'::text as whose;
                 listen news;
             end $$",
        )
        .await;
    let left = "select coalesce(current_setting('app.tenant', true), '') || current_setting('work_mem')
        || (select whose from mine) || (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())
        || (select count(*) from pg_listening_channels())";
    for leave in [
        query("select leave()"),
        query("do $$ begin perform leave(); end $$"),
        query("begin; select leave(); commit"),
        [extended("select leave()", &[]), sync()].concat(),
    ] {
        let what = leave.escape_ascii();
        assert_eq!(codes(&client.ask(&leave).await), Vec::<String>::new());
        assert_eq!(stranger.value(left).await, "4MBeverybody00", "beside {what}");
        // For its own session it is there.
        assert_eq!(client.value(left).await, "427MBa stranger11", "after {what}");
        client
            .run("drop table pg_temp.mine; select pg_advisory_unlock_all(); unlisten *")
            .await;
        let others = [scene.wire().await, scene.wire().await].map(|mut other| async move { other.value(left).await });
        assert_eq!(
            futures_util::future::join_all(others).await,
            ["4MBeverybody00", "4MBeverybody00"],
            "after the end of {what}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_function_sets_follows_its_session() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    let mut direct = scene.direct().await;
    direct
        .run(
            "create function set_tenant(text) returns void language plpgsql as $$ begin
                 perform set_config('app.tenant', $1, false); end $$;
             create function become(text) returns void language sql as 'select set_tenant($1)';
             create function probe() returns int stable language sql as 'select 1';
             create table owned (tenant text default current_setting('app.tenant', true))",
        )
        .await;
    scene.caught_up().await;
    let mut clients = Vec::new();
    for tenant in ["one", "two", "three"] {
        clients.push((tenant, scene.wire().await));
    }
    until("the functions are known", async || {
        let told = clients[0].1.query("explain (route) select probe()").await;
        firsts(&told)[0] == "class: read"
    })
    .await;
    // One connection on each node, for all.
    for round in 0..3 {
        for (number, (tenant, client)) in clients.iter_mut().enumerate() {
            let set = if number % 2 == 0 { "set_tenant" } else { "become" };
            if round == 0 {
                client.run(&format!("select {set}('{tenant}')")).await;
            }
        }
        for (tenant, client) in &mut clients {
            for node in ["primary", "standby"] {
                let sql = format!("/* pgsluice: {node} */ select current_setting('app.tenant', true)");
                assert_eq!(client.value(&sql).await, *tenant, "{node}, round {round}");
            }
            client.run("insert into owned default values").await;
        }
    }
    // It is undone with its block.
    let (_, client) = &mut clients[0];
    client.run("begin").await;
    client.run("select set_tenant('never')").await;
    client.run("rollback").await;
    assert_eq!(client.value("select current_setting('app.tenant', true)").await, "one");
    let count = "select string_agg(tenant || n, ' ' order by tenant) from (select tenant, count(*) as n from owned group by 1) as o";
    assert_eq!(client.value(count).await, "one3 three3 two3");
    drop(clients);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_own_limit_of_idleness_ends_the_session_in_the_servers_words() {
    let scene = Scene::start("").await;
    for (set, idles, code) in [
        (
            "set idle_in_transaction_session_timeout = '200ms'",
            "begin; select 1",
            "25P03",
        ),
        ("set idle_session_timeout = '200ms'", "listen news", "57P05"),
    ] {
        let mut client = scene.wire().await;
        client.run(set).await;
        client.run(idles).await;
        let told = client.rest().await;
        assert_eq!(codes(&told), [code], "{told:?}");
        assert_eq!(told[0].field(b'S').as_deref(), Some("FATAL"));
    }
    // Who holds no connection has none that could end.
    let mut client = scene.wire().await;
    client.run("set idle_session_timeout = '100ms'").await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(client.value("/* pgsluice: primary */ select 1").await, "1");
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_alter_role_sets_is_there_at_the_next_login() {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    let database = &scene.database;
    for (alter, value) in [
        (
            format!("alter role postgres in database {database} set work_mem = '5MB'"),
            "5MB",
        ),
        (
            format!("begin; alter role postgres in database {database} set work_mem = '6MB'; commit"),
            "6MB",
        ),
        (
            format!("alter role postgres in database {database} reset work_mem"),
            "4MB",
        ),
        (format!("alter database {database} set work_mem = '7MB'"), "7MB"),
    ] {
        client.run(&alter).await;
        assert_eq!(scene.wire().await.value("show work_mem").await, value, "{alter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pinned_a_session_may_end_and_then_it_shares_again() {
    let scene = Scene::start("[pool]\nsize = 1\ncheckout_timeout = \"200ms\"\n").await;
    let (mut client, mut other) = (scene.wire().await, scene.wire().await);
    let busy = "/* pgsluice: primary */ select 1";
    for (pins, ends) in [
        ("create temp table t (n int)", "drop table t"),
        ("create temp table t (n int)", "discard temp"),
        ("create temp view v as select 1", "drop view v"),
        (
            "create temp table t (n int); create temp table u (n int)",
            "drop table t, u",
        ),
        ("listen a; listen b", "unlisten *"),
        ("select pg_advisory_lock(1)", "select pg_advisory_unlock(1)"),
        (
            "select pg_advisory_lock(1), pg_advisory_lock(1)",
            "select pg_advisory_unlock_all()",
        ),
        ("begin; declare c cursor with hold for select 1; commit", "close c"),
        ("prepare p as select 1", "deallocate p"),
        ("prepare p as select 1; listen a", "deallocate all; unlisten a"),
    ] {
        client.run(pins).await;
        assert_eq!(codes(&other.query(busy).await), ["53300"], "{pins}");
        client.run(ends).await;
        assert_eq!(
            codes(&other.query(busy).await),
            Vec::<String>::new(),
            "{pins}, then {ends}"
        );
    }
    // A part of it is not the end.
    client.run("select pg_advisory_lock(1), pg_advisory_lock(2)").await;
    client.run("select pg_advisory_unlock(1)").await;
    assert_eq!(codes(&other.query(busy).await), ["53300"]);
    client.run("select pg_advisory_unlock(2)").await;
    other.run(busy).await;
    // What a block takes with it never pins.
    for block in [
        "begin; create temp table t (n int) on commit drop; insert into t values (1); commit",
        "begin; create temp table t (n int); listen a; rollback",
    ] {
        client.run(block).await;
        assert_eq!(codes(&other.query(busy).await), Vec::<String>::new(), "{block}");
        for statement in block.split(';') {
            client.run(statement).await;
        }
        assert_eq!(codes(&other.query(busy).await), Vec::<String>::new(), "{block}");
    }
    let pins = scene.proxy.get("/metrics").expect("metrics").1;
    assert!(
        pins.lines()
            .filter(|line| line.starts_with("pgsluice_pins{"))
            .all(|line| line.ends_with(" 0")),
        "{pins}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_and_settings_beside_savepoints_follow_their_sessions() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    let name = format!("r_{}", scene.database);
    let mut maker = scene.wire().await;
    maker
        .run(&format!("create role {name}_a; create role {name}_b superuser"))
        .await;
    scene.caught_up().await;
    let who = "select session_user || ' ' || current_user || ' ' || current_setting('work_mem')";
    let (a, b) = (format!("{name}_a"), format!("{name}_b"));
    let conversations = [
        vec![format!("set role {a}")],
        vec![format!("set role {a}"), "set role none".into()],
        vec![format!("set role '{a}'"), "reset role".into()],
        vec![format!("set role {a}"), "reset all".into()],
        vec![format!("set role {a}"), "discard all".into()],
        vec![
            format!("set session authorization {b}"),
            format!("set role {a}"),
            "set work_mem = '5MB'".into(),
        ],
        vec![format!("set role {a}"), format!("set session authorization {b}")],
        vec![
            format!("set session authorization {b}"),
            "reset session authorization".into(),
        ],
        vec!["begin".into(), format!("set role {a}"), "rollback".into()],
        vec!["begin".into(), format!("set local role {a}"), "commit".into()],
        vec![
            "begin".into(),
            "savepoint s".into(),
            "set work_mem = '5MB'".into(),
            "rollback to s".into(),
            "commit".into(),
        ],
        vec![
            "begin".into(),
            "savepoint s".into(),
            "set work_mem = '5MB'".into(),
            "release s".into(),
            "commit".into(),
        ],
        vec![
            "begin".into(),
            "set work_mem = '5MB'".into(),
            "savepoint s".into(),
            "set work_mem = '6MB'".into(),
            "rollback to s".into(),
            "commit".into(),
        ],
        vec![
            "begin".into(),
            "savepoint s".into(),
            "set work_mem = '5MB'".into(),
            "rollback".into(),
        ],
        vec![
            "set work_mem = '7MB'".into(),
            "begin; savepoint s; set work_mem = '5MB'; rollback to s; commit".into(),
        ],
    ];
    for conversation in conversations {
        let (mut client, mut direct) = (scene.wire().await, scene.direct().await);
        for sql in &conversation {
            direct.run(sql).await;
            client.run(sql).await;
        }
        assert_eq!(
            maker.value(who).await,
            "postgres postgres 4MB",
            "a stranger, after {conversation:?}"
        );
        assert_eq!(client.value(who).await, direct.value(who).await, "{conversation:?}");
        assert_eq!(
            maker.value(who).await,
            "postgres postgres 4MB",
            "a stranger, after {conversation:?}"
        );
    }
    maker.run(&format!("drop role {a}; drop role {b}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_come_and_go_through_the_proxy() {
    let scene = Scene::start("").await;
    let (old, new) = (format!("{}_old", scene.database), format!("{}_new", scene.database));
    let mut maker = scene.wire().await;
    let client = async |database: &str| scene.wire_with(&[("database", database)]).await;
    maker.run(&format!("create database {old}")).await;
    client(&old).await.run("create table t as select 42 as n").await;
    maker.run(&format!("create database {new} template = {old}")).await;
    assert_eq!(client(&new).await.value("select n from t").await, "42");
    maker.run(&format!("drop database {old}")).await;
    maker.run(&format!("alter database {new} rename to {old}")).await;
    assert_eq!(client(&old).await.value("select n from t").await, "42");
    maker.run(&format!("drop database if exists {old}")).await;
    let mut late = Wire::open(scene.proxy.port).await;
    late.send(&startup(0, &[("user", "postgres"), ("database", &old)]))
        .await;
    assert_eq!(codes(&late.rest().await), ["3D000"]);
}

#[tokio::test]
async fn set_config_binds_nobody_to_a_connection() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[pool]\nsize = 1\ncheckout_timeout = \"5s\"\n");
    let (one, other) = (proxy.client().await, proxy.client().await);
    let set = "select set_config('app.tenant', $1, false)";
    for round in 0..3 {
        for (client, name) in [(&one, "one"), (&other, "other")] {
            client
                .query(set, &[&format!("{name} {round}")])
                .await
                .expect("a setting");
        }
        for (client, name) in [(&one, "one"), (&other, "other")] {
            assert_eq!(show(client, "app.tenant").await, format!("{name} {round}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_taken_by_a_statement_that_failed_stays_with_its_session() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, "[pool]\nsize = 2\n");
    let (holder, other) = (proxy.client().await, proxy.client().await);
    let failed = holder
        .batch_execute("select pg_advisory_lock(n), 1 / (2 - n) from generate_series(1, 2) n")
        .await;
    assert!(failed.is_err());
    let free = "select pg_try_advisory_lock(1)";
    let row = other.query_one(free, &[]).await.expect("an answer");
    assert!(!row.get::<_, bool>(0), "the lock is the other session's");
    // Gone with its session, as on a connection of one's own.
    drop(holder);
    support::eventually("the lock is free", || {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let third = proxy.client().await;
                third.query_one(free, &[]).await.expect("an answer").get::<_, bool>(0)
            })
        })
    });
}

#[tokio::test]
async fn a_read_only_block_moves_to_the_primary_unless_it_has_one_snapshot_throughout() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::start(&lab);
    let admin = proxy.client().await;
    run(
        &admin,
        &[
            "create role steady superuser login",
            "alter role steady set default_transaction_isolation = 'repeatable read'",
        ],
    )
    .await;
    let asks = "select pg_is_in_recovery()";
    for (user, moves) in [("postgres", true), ("steady", false)] {
        let client = client(&format!(
            "host=127.0.0.1 port={} user={user} dbname=postgres",
            proxy.port
        ))
        .await;
        run(&client, &["begin read only", "select count(*) from pg_class"]).await;
        match client.simple_query(asks).await {
            Ok(_) => assert!(moves, "a snapshot was changed in the middle of {user}'s block"),
            Err(error) => {
                assert!(!moves, "{error:?}");
                assert_eq!(error.code().map(|code| code.code()), Some("0A000"));
            }
        }
        run(&client, &["rollback", "select 1"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_time_hold_and_say_so() {
    let scene = Scene::start(
        "[pool]\nquery_timeout = \"300ms\"\nidle_in_transaction_timeout = \"400ms\"\nclient_idle_timeout = \"1500ms\"\n",
    )
    .await;
    scene.direct().await.run("create table slow (n int)").await;
    let mut client = scene.wire().await;
    for sql in [
        "select pg_sleep(60)",
        "insert into slow select 1 from pg_sleep(60)",
        "begin; insert into slow values (1); select pg_sleep(60)",
    ] {
        let asked = std::time::Instant::now();
        assert_eq!(codes(&client.query(sql).await), ["57014"], "{sql}");
        assert!(asked.elapsed() >= std::time::Duration::from_millis(300), "{sql}");
        client.run("rollback").await;
        assert_eq!(client.value("select 1").await, "1");
    }
    client.run("begin; insert into slow values (2)").await;
    assert_eq!(codes(&client.rest().await), ["25P03"]);
    let mut idle = scene.wire().await;
    idle.run("select 1").await;
    let idle_since = std::time::Instant::now();
    assert_eq!(codes(&idle.rest().await), ["57P05"]);
    assert!(idle_since.elapsed() >= std::time::Duration::from_millis(1400));
    assert_eq!(scene.wire().await.value("select count(*) from slow").await, "0");
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_full_is_waited_for() {
    let scene = Scene::start("[pool]\ncheckout_timeout = \"20s\"\n").await;
    let role = format!("limited_{}", scene.database);
    let mut direct = scene.direct().await;
    direct
        .run(&format!("create role {role} login connection limit 1"))
        .await;
    scene.caught_up().await;
    let parameters = [("user", &*role), ("database", &*scene.database)];
    let holder = Wire::login_with(scene.primary().port(), &parameters).await;
    let port = scene.proxy.port;
    let late = tokio::spawn({
        let (role, database) = (role.clone(), scene.database.clone());
        async move {
            let mut late = Wire::login_with(port, &[("user", &*role), ("database", &*database)]).await;
            late.value("/* pgsluice: primary */ select 42").await
        }
    });
    let refused = scene.lab.clone();
    support::eventually("it was refused once", || {
        let log = std::fs::read_to_string(refused.nodes()[0].log()).unwrap_or_default();
        log.contains(&format!("too many connections for role \"{role}\""))
    });
    holder.vanish();
    assert_eq!(support::ended("the late one", late).await, "42");
    direct.run(&format!("alter role {role} connection limit 0")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_no_longer_log_in_is_refused_at_its_next_login() {
    let scene = Scene::start("").await;
    let role = format!("leaver_{}", scene.database);
    let mut maker = scene.wire().await;
    let login = async || {
        let mut client = Wire::open(scene.proxy.port).await;
        let parameters = [("user", &*role), ("database", &*scene.database)];
        client.send(&startup(0, &parameters)).await;
        client
    };
    let refused = async || codes(&login().await.rest().await);
    maker.run(&format!("create role {role} login")).await;
    for (takes, gives, code) in [
        (
            format!("alter role {role} nologin"),
            format!("alter role {role} login"),
            "28000",
        ),
        (
            format!("revoke connect on database {} from public", scene.database),
            format!("grant connect on database {} to public", scene.database),
            "42501",
        ),
        (
            format!("drop role {role}"),
            format!("create role {role} login"),
            "28000",
        ),
    ] {
        let mut client = login().await;
        client.greeted().await;
        assert_eq!(client.value("/* pgsluice: primary */ select 1").await, "1");
        drop(client);
        maker.run(&takes).await;
        assert_eq!(refused().await, [code], "after {takes}");
        maker.run(&gives).await;
    }
    let mut again = login().await;
    again.greeted().await;
    assert_eq!(again.value("/* pgsluice: primary */ select current_user").await, role);
    drop(again);
    maker.run(&format!("drop role {role}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_runs_under_settings_that_a_server_has_come_to_refuse() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    let role = format!("leaving_{}", scene.database);
    let mut direct = scene.direct().await;
    direct
        .run(&format!(
            "create table ruled (n int); create role {role}; grant all on ruled to {role}"
        ))
        .await;
    scene.caught_up().await;
    let (mut client, mut other) = (scene.wire().await, scene.wire().await);
    client.run(&format!("set role {role}")).await;
    assert_eq!(client.value("select current_user").await, role);
    direct.run(&format!("drop owned by {role}; drop role {role}")).await;
    let requests = [
        query("insert into ruled values (1)"),
        [extended("insert into ruled values (2)", &[]), sync()].concat(),
        // A pipeline: whatever is refused, each Sync has its answer.
        [
            extended("insert into ruled values (3)", &[]),
            sync(),
            extended("insert into ruled values (4)", &[]),
            sync(),
        ]
        .concat(),
        query("insert into ruled values (5); insert into ruled values (6)"),
    ];
    for request in requests {
        // Somebody else has the connection in between, and leaves it with other settings.
        other.run("insert into ruled values (0)").await;
        let syncs = 1 + request
            .windows(5)
            .filter(|bytes| *bytes == [b'S', 0, 0, 0, 4])
            .count()
            .saturating_sub(1);
        client.send(&request).await;
        for answer in client.answers(syncs).await {
            assert_eq!(codes(&answer), ["22023"], "{}", request.escape_ascii());
        }
    }
    assert_eq!(other.value("select sum(n) from ruled").await, "0");
    // And it can go back.
    client.run("reset role").await;
    client.run("insert into ruled values (7)").await;
    assert_eq!(other.value("select sum(n) from ruled").await, "7");
    drop((client, other));
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_come_with_whatever_is_asked_under_them() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    scene.direct().await.run("create table told (n int)").await;
    scene.caught_up().await;
    let mut clients = Vec::new();
    for name in ["one", "two"] {
        let mut client = scene.wire().await;
        client
            .run(&format!("set application_name = '{name}'; set datestyle = 'SQL, DMY'"))
            .await;
        client
            .ask(
                &[
                    parse("mine", "select current_setting('application_name') || $1::text", &[]),
                    sync(),
                ]
                .concat(),
            )
            .await;
        clients.push((name, client));
    }
    let own = "current_setting('application_name')";
    for _ in 0..3 {
        for (name, client) in &mut clients {
            for node in ["primary", "standby"] {
                let sql = format!("/* pgsluice: {node} */ select {own}");
                assert_eq!(client.value(&sql).await, *name, "{node}");
            }
            let returning = format!("insert into told values (1) returning {own}");
            assert_eq!(client.value(&returning).await, *name);
            let prepared = [bind("", "mine", &[Some("!")]), execute("", 0), sync()].concat();
            assert_eq!(firsts(&client.ask(&prepared).await), [format!("{name}!")]);
            let many = format!("select {own} from generate_series(1, 3000)");
            let answer = client.query(&many).await;
            assert_eq!(firsts(&answer), vec![name.to_string(); 3000]);
            // What is in no way plain.
            client.run("begin").await;
            assert_eq!(client.value(&format!("select {own}")).await, *name);
            client.run("commit").await;
            let answer = client.query(&format!("select {own}; select {own}")).await;
            assert_eq!(firsts(&answer), [*name, *name]);
            client.send(&query("copy told from stdin")).await;
            client.until(b'G').await;
            assert_eq!(
                tags(&client.ask(&[copy_data(b"2\n"), copy_done()].concat()).await),
                "CZ"
            );
            assert_eq!(codes(&client.query("select 1/0").await), ["22012"]);
        }
    }
    drop(clients);
    scene.settled().await;
}

/// A server connection goes back to the server's default; the session's client hears of what it started with, as on a connection of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reset_its_client_is_told_what_it_started_with() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    let conversations: &[&[&str]] = &[
        &["set timezone = 'Asia/Tokyo'", "reset timezone", "show timezone"],
        &["set datestyle = 'German'", "set datestyle to default"],
        &["set timezone = 'Asia/Tokyo'", "reset all", "select 1"],
        &["discard all", "select 1"],
        &["begin", "set application_name = 'x'", "reset all", "rollback"],
        &[
            "begin",
            "reset all",
            "set timezone = 'Asia/Tokyo'",
            "commit",
            "discard all",
        ],
        &["reset timezone; set timezone = 'Asia/Tokyo'", "reset all"],
        &["set intervalstyle = 'iso_8601'", "reset intervalstyle"],
    ];
    for conversation in conversations {
        let mut heard = Vec::new();
        for port in [scene.primary().port(), scene.proxy.port] {
            let parameters = [
                ("user", "postgres"),
                ("database", &*scene.database),
                ("application_name", "it's"),
                ("TimeZone", "Europe/Vienna"),
                ("options", "-c DateStyle=SQL,DMY"),
            ];
            let mut client = Wire::login_with(port, &parameters).await;
            let mut reports = Vec::new();
            for sql in *conversation {
                let mut said = client.query(sql).await;
                assert_eq!(codes(&said), Vec::<String>::new(), "{sql}");
                said.retain(|message| message.tag == b'S');
                reports.extend(
                    said.into_iter()
                        .map(|message| String::from_utf8_lossy(&message.body).into_owned()),
                );
            }
            reports.sort();
            heard.push(reports);
        }
        assert_eq!(heard[0], heard[1], "{conversation:?}");
    }
}
