//! A session's own say in where its statements go, and what it is told of it.

mod support;

use support::scene::{Scene, until};
use support::wire::*;

const WHERE: &str = "/* pgsluice: standby */ select pg_is_in_recovery()";

async fn furnished(sections: &str) -> (Scene, Wire) {
    // A probe that a busy machine delays must not look like a node that has failed.
    let scene = Scene::start(&format!("{sections}[monitor]\ntimeout = \"10s\"\n")).await;
    scene.direct().await.run("create table t (n int)").await;
    scene.caught_up().await;
    let mut client = scene.wire().await;
    until("reads go to the standby", async || {
        route(&mut client, "select n from t").await.contains("standby")
    })
    .await;
    (scene, client)
}

/// Where a statement would go.
async fn route(client: &mut Wire, sql: &str) -> String {
    let answer = client.query(&format!("explain (route) {sql}")).await;
    assert_eq!(tags(&answer).replace('D', ""), "TCZ", "{}", show(&answer));
    let lines = firsts(&answer);
    lines
        .last()
        .and_then(|line| line.strip_prefix("goes to: "))
        .expect("a destination")
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_says_where_its_reads_go() {
    let (scene, mut client) = furnished("").await;
    let primary = format!("{} (primary; ", scene.primary().name());
    let standby = format!("{} (standby; ", scene.standby().name());
    for (set, read, hinted_primary, write) in [
        ("set pgsluice.route = 'primary'", &primary, &primary, &primary),
        ("set pgsluice.route = standby", &standby, &primary, &primary),
        ("set pgsluice.route to auto", &standby, &primary, &primary),
        (
            "set pgsluice.consistency = 'linearizable'",
            &primary,
            &primary,
            &primary,
        ),
        ("reset pgsluice.consistency", &standby, &primary, &primary),
    ] {
        client.run(set).await;
        for (sql, expected) in [
            ("select n from t", read),
            ("/* pgsluice: primary */ select n from t", hinted_primary),
            ("insert into t values (1)", write),
        ] {
            let told = route(&mut client, sql).await;
            assert!(told.starts_with(expected.as_str()), "{set}; {sql}: {told}");
        }
    }
    // And that is where they go.
    client.run("set pgsluice.route = 'primary'").await;
    let before = scene.proxy.statements(scene.standby().name()).0;
    for _ in 0..10 {
        client.run("select n from t").await;
    }
    assert_eq!(scene.proxy.statements(scene.standby().name()).0, before);
    // A hint stands above the setting.
    assert_eq!(client.value(WHERE).await, "t");
    // It is undone as any setting is.
    client.run("begin; set pgsluice.route = 'standby'; rollback").await;
    assert_eq!(client.value("show pgsluice.route").await, "primary");
    client.run("discard all").await;
    assert_eq!(client.value("show pgsluice.route").await, "auto");
    let mut other = scene
        .wire_with(&[("options", "-c pgsluice.route=primary -c pgsluice.consistency=session")])
        .await;
    assert_eq!(other.value("show pgsluice.route").await, "primary");
    assert_eq!(other.value("show pgsluice.consistency").await, "session");
    drop((client, other));
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_says_what_one_statement_must_see() {
    let (_scene, mut client) = furnished("").await;
    let linearizable = "/* pgsluice: consistency=linearizable */ select n from t";
    assert!(
        route(&mut client, linearizable)
            .await
            .ends_with("(primary; linearizable)")
    );
    client.run("set pgsluice.consistency = linearizable").await;
    let eventual = "-- pgsluice: consistency=eventual\n select n from t";
    assert!(route(&mut client, eventual).await.ends_with("(standby; read)"));
    assert!(
        route(&mut client, "select n from t")
            .await
            .ends_with("(primary; linearizable)")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxys_own_settings_are_shown_by_every_protocol_and_in_every_state() {
    let scene = Scene::start("[routing]\nconsistency = \"session\"\n[monitor]\ntimeout = \"10s\"\n").await;
    let mut client = scene.wire().await;
    for (name, value) in [("consistency", "session"), ("route", "auto"), ("explain", "off")] {
        let sql = format!("show pgsluice.{name}");
        let answer = client.query(&sql).await;
        assert_eq!(tags(&answer), "TDCZ", "{}", show(&answer));
        assert_eq!(firsts(&answer), [value]);
        let answer = client.ask(&[extended(&sql, &[]), sync()].concat()).await;
        assert_eq!(
            (tags(&answer).as_str(), firsts(&answer)),
            ("12TDCZ", vec![value.to_owned()]),
            "{}",
            show(&answer)
        );
        // Prepared and described first, executed later.
        let answer = client
            .ask(&[parse(name, &sql, &[]), describe(b'S', name), sync()].concat())
            .await;
        assert_eq!(tags(&answer), "1tTZ", "{}", show(&answer));
        let answer = client
            .ask(&[bind("", name, &[]), execute("", 0), sync()].concat())
            .await;
        assert_eq!(
            (tags(&answer).as_str(), firsts(&answer)),
            ("2DCZ", vec![value.to_owned()]),
            "{}",
            show(&answer)
        );
    }
    // What was prepared tells what is now.
    client.run("set pgsluice.route = 'standby'").await;
    let answer = client
        .ask(&[bind("", "route", &[]), execute("", 0), sync()].concat())
        .await;
    assert_eq!(firsts(&answer), ["standby"]);
    client.run("begin").await;
    assert_eq!(client.value("show pgsluice.route").await, "standby");
    client.query("select 1/0").await;
    assert_eq!(codes(&client.query("show pgsluice.route").await), ["25P02"]);
    client.run("rollback").await;
    // Beside other statements it is a server's to answer, which knows what was set.
    let answer = client.query("select 1; show pgsluice.route").await;
    assert_eq!(firsts(&answer), ["1", "standby"]);
    assert_eq!(codes(&client.query("show pgsluice.nothing").await), ["42704"]);
    for (set, hint) in [
        (
            "set pgsluice.route = 'elsewhere'",
            "pgsluice.route is one of auto, primary, standby.",
        ),
        (
            "set pgsluice.consistency = 'some'",
            "eventual, read_your_writes, session, linearizable.",
        ),
        ("set pgsluice.explain = 7", "pgsluice.explain is on or off."),
        (
            "set pgsluice.nothing = 1",
            "There are pgsluice.consistency, pgsluice.explain, pgsluice.min_position and pgsluice.route.",
        ),
    ] {
        let answer = client.query(set).await;
        assert_eq!(codes(&answer), ["22023"], "{set}");
        let told = answer[0].field(b'H').expect("a hint");
        assert!(told.ends_with(hint), "{set}: {told}");
    }
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_tells_where_each_statement_goes_and_why() {
    let (scene, mut client) = furnished("").await;
    client.run("set pgsluice.explain = on").await;
    let notices = |answer: &[Message]| -> Vec<String> {
        let notices = answer.iter().filter(|message| message.tag == b'N');
        notices.filter_map(|notice| notice.field(b'M')).collect()
    };
    let (primary, standby) = (scene.primary().name().to_owned(), scene.standby().name().to_owned());
    let answer = client.query("select n from t").await;
    let expected = format!(
        "pgsluice: goes to {standby} (standby; read): it only reads, and everything it names is known to be safe"
    );
    assert_eq!(notices(&answer), [expected], "{}", show(&answer));
    let answer = client
        .ask(&[extended("insert into t values ($1)", &[Some("1")]), sync()].concat())
        .await;
    let expected = format!("pgsluice: goes to {primary} (primary; needs_primary): INSERT belongs to the primary");
    assert_eq!(notices(&answer), [expected], "{}", show(&answer));
    client.run("begin").await;
    let answer = client.query("select n from t").await;
    assert_eq!(notices(&answer).len(), 1, "{}", show(&answer));
    assert!(notices(&answer)[0].starts_with(&format!("pgsluice: goes to {primary} (primary; attached): ")));
    client.run("rollback").await;
    client.run("set pgsluice.explain = off").await;
    assert_eq!(notices(&client.query("select n from t").await), Vec::<String>::new());
    // The reasons of EXPLAIN (ROUTE) are whole clauses.
    let answer = client.query("explain (route) select pg_advisory_lock(1)").await;
    assert_eq!(
        firsts(&answer)[..3],
        [
            "class: write",
            "because: function pg_advisory_lock handles advisory locks, which a standby doesn't share",
            "effects: pin advisory_lock",
        ]
    );
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defaults_for_some_sessions_hold_until_they_say_otherwise() {
    let defaults = "[[routing.default]]\nuser = \"reader\"\nroute = \"standby\"\n\
        [[routing.default]]\ndatabase = \"postgres\"\nconsistency = \"linearizable\"\nroute = \"primary\"\n";
    let (scene, mut anybody) = furnished(defaults).await;
    let role = "do $$ begin create role reader login; exception when duplicate_object then null; end $$";
    scene.direct().await.run(role).await;
    scene.caught_up().await;
    let login = async |user: &str, database: &str| {
        Wire::login_with(scene.proxy.port, &[("user", user), ("database", database)]).await
    };
    for (user, database, shown) in [
        ("reader", &*scene.database, ["standby", "read_your_writes"]),
        // Of each key the first that fits.
        ("reader", "postgres", ["standby", "linearizable"]),
        ("postgres", "postgres", ["primary", "linearizable"]),
        ("postgres", &*scene.database, ["auto", "read_your_writes"]),
    ] {
        let mut client = login(user, database).await;
        assert_eq!(
            client.value("show pgsluice.route").await,
            shown[0],
            "{user} in {database}"
        );
        assert_eq!(
            client.value("show pgsluice.consistency").await,
            shown[1],
            "{user} in {database}"
        );
        let goes = route(&mut client, "select 1").await;
        let reason = match shown[0] {
            "standby" => "(standby; hint_standby)",
            "primary" => "(primary; hint_primary)",
            _ => "(standby; read)",
        };
        assert!(goes.ends_with(reason), "{user} in {database}: {goes}");
    }
    let mut reader = login("reader", &scene.database).await;
    reader.run("set pgsluice.route = 'primary'").await;
    assert!(
        route(&mut reader, "select 1")
            .await
            .ends_with("(primary; hint_primary)")
    );
    reader.run("reset pgsluice.route").await;
    assert!(
        route(&mut reader, "select 1")
            .await
            .ends_with("(standby; hint_standby)")
    );
    assert!(route(&mut anybody, "select 1").await.ends_with("(standby; read)"));
}
