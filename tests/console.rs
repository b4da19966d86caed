//! The admin console through the clients that operators have: psql, drivers of the extended protocol, and `pgsluice` itself.

mod support;

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pgsluice::lab::{LabGuard, Quiet};
use support::wire::{Wire, cancel_request, codes, firsts, query, rows, show, tags};
use support::{Proxy, client, ended, eventually, last_words, sqlstate, until_replayed, watched};

const CONSOLE: &str = "[admin]\nusers = [\"postgres\"]\n";

fn console_dsn(proxy: &Proxy) -> String {
    format!("host=127.0.0.1 port={} user=postgres dbname=pgsluice", proxy.port)
}

/// Standard output and standard error of psql.
fn psql(lab: &LabGuard, proxy: &Proxy, conninfo: &str, password: &str, commands: &[&str]) -> (String, String) {
    let output = Command::new("timeout")
        .arg("60")
        .arg(lab.pg_bin().join("psql"))
        .args(["-X", "-w", "-A", "-t", "-F", " "])
        .args(commands.iter().flat_map(|command| ["-c", command]))
        .arg(format!("host=127.0.0.1 port={} {conninfo}", proxy.port))
        .env("PGPASSWORD", password)
        .output()
        .expect("psql");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_is_shown_nodes_and_pools_and_reaches_the_database_beside_them() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, CONSOLE);
    let _app = proxy.client_after("create table t ()").await;

    let (told, errors) = psql(
        &lab,
        &proxy,
        "user=postgres dbname=pgsluice",
        "",
        &["show nodes", "show pools; show version"],
    );
    assert_eq!(errors, "");
    let lines: Vec<Vec<&str>> = told.lines().map(|line| line.split(' ').collect()).collect();
    let [node1, node2, pool, version] = &lines[..] else {
        panic!("{told}");
    };
    assert_eq!((node1[0], node1[2], node1[3]), ("node1", "primary", "t"));
    assert_eq!(node1[1], lab.node("node1").expect("a node").address().to_string());
    assert_eq!((node2[0], node2[2], node2[3]), ("node2", "standby", "t"));
    assert_eq!(pool[..6], ["postgres", "postgres", "node1", "0", "0", "1"]);
    assert_eq!(version.join(" "), format!("pgsluice {}", env!("CARGO_PKG_VERSION")));

    // The console takes no server connection, and looks into no pool.
    let pools = proxy.status().pools;
    assert!(pools.iter().all(|pool| pool.database == "postgres"), "{pools:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_of_the_extended_protocol_get_typed_columns() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(&lab, CONSOLE);
    let mut console = client(&console_dsn(&proxy)).await;
    let nodes = console.prepare("show nodes").await.expect("a statement");
    for _ in 0..2 {
        let rows = console.query(&nodes, &[]).await.expect("nodes");
        let [first, second] = &rows[..] else {
            panic!("{rows:?}");
        };
        assert_eq!((first.get("name"), second.get("name")), ("node1", "node2"));
        assert_eq!((first.get("role"), second.get("role")), ("primary", "standby"));
        for row in [first, second] {
            assert!(row.get::<_, bool>("serving"));
            assert_eq!(row.get::<_, i64>("timeline"), 1);
            assert_eq!(row.get::<_, Option<&str>>("error"), None);
            let lag = row.get::<_, Option<f64>>("lag_seconds");
            assert!(lag.is_some_and(|lag| (0.0..10.0).contains(&lag)), "{lag:?}");
        }
    }
    let error = console.query("show tables", &[]).await.expect_err("there are none");
    assert_eq!(sqlstate(&error), "42601");
    let hint = error.as_db_error().and_then(|error| error.hint()).expect("a hint");
    assert!(
        hint.contains("SHOW NODES") && hint.contains("SWITCHOVER [TO node]"),
        "{hint}"
    );
    let error = console
        .query("switchover to node9", &[])
        .await
        .expect_err("there are two");
    assert_eq!(sqlstate(&error), "42704");
    assert_eq!(
        error.as_db_error().and_then(|error| error.hint()),
        Some("There are node1, node2.")
    );
    // What a driver without autocommit sends around a statement.
    let block = console.transaction().await.expect("BEGIN is taken");
    assert_eq!(block.query("show version", &[]).await.expect("a version").len(), 1);
    block.commit().await.expect("COMMIT is taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_admin_users_who_prove_who_they_are_get_in() {
    let lab = LabGuard::fresh(0).expect("a lab");
    let users = lab.dir().join("users.txt");
    fs::write(&users, "\"ops\" \"right\"\n\"app\" \"theirs\"\n").expect("the users");
    let auth = format!("[auth]\nmethod = \"scram-sha-256\"\nusers = \"{}\"\n", users.display());
    let proxy = Proxy::with(&lab, &format!("{auth}[admin]\nusers = [\"ops\", \"ghost\"]\n"));
    let try_psql = |user: &str, password: &str| {
        let conninfo = format!("user={user} dbname=pgsluice");
        psql(&lab, &proxy, &conninfo, password, &["show version"])
    };
    let (told, errors) = try_psql("ops", "right");
    assert_eq!((told.starts_with("pgsluice "), &*errors), (true, ""));
    for (user, password, expected) in [
        ("ops", "wrong", "password authentication failed for user \"ops\""),
        ("ghost", "any", "password authentication failed for user \"ghost\""),
        ("app", "wrong", "password authentication failed for user \"app\""),
        ("app", "theirs", "user \"app\" may not use the admin console"),
    ] {
        let (told, errors) = try_psql(user, password);
        assert_eq!(told, "", "{user}");
        assert!(
            errors.contains("FATAL") && errors.contains(expected),
            "{user}: {errors}"
        );
    }
}

/// `pgsluice` with these arguments: its exit status, standard output and standard error.
fn pgsluice(arguments: &[&str], password: Option<&str>) -> (Option<i32>, String, String) {
    let mut command = Command::new("timeout");
    command.arg("60").arg(env!("CARGO_BIN_EXE_pgsluice")).args(arguments);
    for variable in ["PGHOST", "PGPORT", "PGUSER", "PGPASSWORD"] {
        command.env_remove(variable);
    }
    let output = command
        .envs(password.map(|password| ("PGPASSWORD", password)))
        .output()
        .expect("pgsluice runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_asks_the_console_with_what_the_configuration_says() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let users = lab.dir().join("users.txt");
    fs::write(&users, "\"ops\" \"right\"\n\"app\" \"theirs\"\n").expect("the users");
    let auth = format!("[auth]\nmethod = \"scram-sha-256\"\nusers = \"{}\"\n", users.display());
    let proxy = Proxy::with(
        &lab,
        &format!("{auth}[admin]\nusers = [\"ops\"]\ndatabase = \"desk\"\n"),
    );
    let (file, port) = (proxy.config_file(), proxy.port.to_string());
    // The port is the kernel's choice, and so not in the file.
    let by_file = ["-c", file.to_str().expect("UTF-8"), "--port", &port];
    let by_flags = ["--host", "127.0.0.1", "--port", &port, "--database", "desk", "--user"];

    let (code, told, errors) = pgsluice(&[&["console"], &by_file[..], &["show nodes"]].concat(), None);
    assert_eq!((code, &*errors), (Some(0), ""));
    let words: Vec<Vec<&str>> = told.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words.len(), 3, "{told}");
    assert_eq!((words[0][0], words[0][2]), ("name", "role"));
    assert_eq!((words[1][0], words[1][2]), ("node1", "primary"));
    assert_eq!((words[2][0], words[2][2]), ("node2", "standby"));
    let (code, told, errors) = pgsluice(
        &[&["console"], &by_flags[..], &["ops", "show version"]].concat(),
        Some("right"),
    );
    assert_eq!((code, &*errors), (Some(0), ""));
    assert!(told.starts_with("version\npgsluice "), "{told}");

    for (arguments, password, expected) in [
        (
            &["ops", "show version"],
            Some("wrong"),
            "password authentication failed",
        ),
        (&["ops", "show version"], None, "hint: PGPASSWORD"),
        (
            &["app", "show version"],
            Some("theirs"),
            "hint: [admin] users = [\"app\"]",
        ),
        (
            &["ops", "show tables"],
            Some("right"),
            "can't show \"tables\" (42601)\nhint: There are SHOW",
        ),
    ] {
        let (code, told, errors) = pgsluice(&[&["console"], &by_flags[..], arguments].concat(), password);
        assert_eq!((code, &*told), (Some(1), ""), "{errors}");
        assert!(errors.starts_with("error: ") && errors.contains(expected), "{errors}");
    }
    let (code, told, errors) = pgsluice(&[&["switchover", "--to", "node\"9"], &by_file[..]].concat(), None);
    assert_eq!((code, &*told), (Some(1), ""));
    assert_eq!(
        errors,
        "error: there is no node \"node\"9\" (42704)\nhint: There are node1, node2.\n"
    );
    let (code, _, errors) = pgsluice(&["switchover", "--port", "1", "--user", "ops"], None);
    assert_eq!(code, Some(1));
    assert!(errors.contains("127.0.0.1:1"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_let_in_until_somebody_is_named_and_a_reload_names_him() {
    let lab = LabGuard::fresh(0).expect("a lab");
    let proxy = Proxy::start(&lab);
    let asked = [("user", "postgres"), ("database", "pgsluice")];
    let refused = async |parameters: &[(&str, &str)]| {
        let mut wire = Wire::open(proxy.port).await;
        wire.send(&support::wire::startup(0, parameters)).await;
        let answer = wire.rest().await;
        let last = answer.last().expect("an answer").clone();
        (last.code(), last.field(b'H').unwrap_or_default())
    };
    let (code, hint) = refused(&asked).await;
    assert_eq!(code, "42501");
    assert!(hint.contains("[admin] users = [\"postgres\"]"), "{hint}");

    let file = proxy.config_file();
    let before = fs::read_to_string(&file).expect("the configuration");
    fs::write(&file, format!("{CONSOLE}{before}")).expect("the configuration");
    proxy.signal(Signal::SIGHUP);
    eventually("the reload", || proxy.log().contains("configuration reloaded"));
    let mut console = Wire::login(proxy.port, "pgsluice").await;
    assert_eq!(firsts(&console.run("show version").await).len(), 1);
    let (code, _) = refused(&[&asked[..], &[("replication", "database")]].concat()).await;
    assert_eq!(code, "0A000");

    // A database that is really called so is reached when the console has another name.
    lab.sql("primary", "create database pgsluice").expect("a database");
    let renamed = format!("{}database = \"console\"\n{before}", CONSOLE);
    fs::write(&file, renamed).expect("the configuration");
    assert_eq!(tags(&console.run("reload").await), "CZ");
    let mut real = Wire::login(proxy.port, "pgsluice").await;
    assert_eq!(real.value("select current_database()").await, "pgsluice");
    let mut console = Wire::login(proxy.port, "console").await;
    assert_eq!(firsts(&console.run("show version").await).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_takes_over_what_can_be_and_says_what_cannot() {
    let lab = LabGuard::fresh(0).expect("a lab");
    let proxy = Proxy::with(&lab, CONSOLE);
    let mut console = Wire::login(proxy.port, "pgsluice").await;
    let file = proxy.config_file();
    let before = fs::read_to_string(&file).expect("the configuration");

    fs::write(
        &file,
        before.replace("[listen]\n", "[listen]\nthreads = 7\n[pool]\nsize = 3\n"),
    )
    .expect("a file");
    let answer = console.run("reload").await;
    assert_eq!(tags(&answer), "NCZ");
    let warning = answer[0].field(b'M').expect("a message");
    assert!(
        warning.contains("listen.threads") && !warning.contains("pool"),
        "{warning}"
    );
    let _app = proxy.client_after("create table t ()").await;
    let pools = rows(&console.run("show pools").await);
    assert_eq!(pools[0].last(), Some(&Some("3".to_owned())));

    fs::write(&file, "[pool]\nsize = 0\n").expect("a file");
    let answer = console.query("reload; show version").await;
    assert_eq!(codes(&answer), ["F0000"]);
    let detail = answer[0].field(b'D').expect("a detail");
    assert!(detail.contains("pool.size"), "{detail}");
    assert_eq!(tags(&answer), "EZ", "{}", show(&answer));
    assert_eq!(tags(&console.run("show version").await), "TDCZ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_is_there_when_the_proxy_is_full_and_goes_when_it_drains() {
    let lab = LabGuard::fresh(0).expect("a lab");
    let mut proxy = Proxy::with(&lab, &format!("[listen]\nmax_clients = 2\n{CONSOLE}"));
    let _one = proxy.client().await;
    let mut two = Wire::login(proxy.port, "postgres").await;
    two.run("begin").await;
    let error = tokio_postgres::connect(&proxy.dsn(), tokio_postgres::NoTls)
        .await
        .err()
        .expect("it is full");
    assert_eq!(sqlstate(&error), "53300");
    let (console, ending) = watched(&console_dsn(&proxy)).await;
    assert_eq!(console.query("show nodes", &[]).await.expect("nodes").len(), 1);
    // No one's cancel request, with nothing to cancel, harms what is asked next, and it is soon done with.
    let mut wire = Wire::login(proxy.port, "pgsluice").await;
    let mut took = Duration::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        cancel(&proxy, &wire).await;
        took = took.min(began.elapsed());
    }
    assert!(took < Duration::from_millis(900), "{took:?}");
    assert_eq!(tags(&wire.run("show version").await), "TDCZ");

    proxy.signal(Signal::SIGTERM);
    assert_eq!(last_words(ending).await, "57P01");
    assert_eq!(codes(&wire.rest().await), ["57P01"]);
    two.run("commit").await;
    assert_eq!(codes(&two.rest().await), ["57P01"]);
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.log());
}

/// Sends a cancel request for a connection, and waits until it has been seen to.
async fn cancel(proxy: &Proxy, of: &Wire) {
    let mut request = Wire::open(proxy.port).await;
    request.send(&cancel_request(&of.key)).await;
    assert_eq!(request.rest().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_protocol_ends_a_console_and_what_means_nothing_is_passed_over() {
    let lab = LabGuard::fresh(0).expect("a lab");
    let proxy = Proxy::with(&lab, CONSOLE);
    let mut console = Wire::login(proxy.port, "pgsluice").await;
    assert_eq!(console.parameter("client_encoding").as_deref(), Some("UTF8"));
    // Copy data and a Flush with nothing before them; then in pieces, as a network may cut them.
    let bytes = [&b"d\0\0\0\x05x"[..], b"H\0\0\0\x04", b"Q\0\0\0\x11show version\0"].concat();
    for piece in bytes.chunks(3) {
        console.send(piece).await;
    }
    assert_eq!(tags(&console.answer().await), "TDCZ");
    console.send(b"G\0\0\0\x04").await;
    assert_eq!(codes(&console.rest().await), ["08P01"]);
    let mut console = Wire::login(proxy.port, "pgsluice").await;
    console.send(b"X\0\0\0\x04").await;
    assert_eq!(console.rest().await, []);
    eventually("none is counted any more", || proxy.status().clients.total == 0);
}

/// A client that writes a row at a time through the proxy until told to stop; answers how many were acknowledged.
fn writes(
    proxy: &Proxy,
) -> (
    Arc<AtomicBool>,
    tokio::task::JoinHandle<Result<i64, tokio_postgres::Error>>,
) {
    let (stop, dsn) = (Arc::new(AtomicBool::new(false)), proxy.dsn());
    let stopped = Arc::clone(&stop);
    let writer = tokio::spawn(async move {
        let (client, mut acknowledged) = (client(&dsn).await, 0);
        while !stopped.load(Ordering::Relaxed) {
            client.execute("insert into t values (1)", &[]).await?;
            acknowledged += 1;
        }
        Ok(acknowledged)
    });
    (stop, writer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_in_the_console_is_a_pause_to_those_who_write() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::with(&lab, CONSOLE);
    let _app = proxy.client_after("create table t (i int)").await;
    until_replayed(&lab);
    let (stop, writer) = writes(&proxy);
    let begun = client(&console_dsn(&proxy)).await;
    let moved = begun.query_one("switchover to NODE3", &[]).await.expect("a switchover");
    assert_eq!((moved.get("primary"), moved.get("previous")), ("node3", "node1"));
    assert_eq!(
        (
            moved.get::<_, i64>("timeline"),
            moved.get::<_, i64>("ended_transactions")
        ),
        (2, 0)
    );
    let held: f64 = moved.get("held_seconds");
    assert!(held > 0.0 && held < 10.0, "{held}");
    let nodes = begun.query("show nodes", &[]).await.expect("nodes");
    let roles: Vec<&str> = nodes.iter().map(|node| node.get("role")).collect();
    assert_eq!((roles[0], roles[2]), ("stale primary", "primary"));

    stop.store(true, Ordering::Relaxed);
    let acknowledged = ended("the writer", writer).await.expect("no write fails");
    let count = lab.sql("node3", "select count(*) from t").expect("a count");
    assert_eq!(count, acknowledged.to_string());
    assert!(acknowledged > 0);

    let port = proxy.port.to_string();
    let (code, told, errors) = pgsluice(
        &["switchover", "--port", &port, "--user", "postgres", "--to", "node3"],
        None,
    );
    assert_eq!((code, &*told), (Some(1), ""));
    assert_eq!(errors, "error: node3 is the primary already (55000)\n");
    for node in ["node1", "node2"] {
        lab.rejoin(node, &mut Quiet).expect("a standby");
    }
    proxy.until_serving(3);
    let (code, told, errors) = pgsluice(
        &["switchover", "--port", &port, "--user", "postgres", "--to", "node1"],
        None,
    );
    assert_eq!(code, Some(0), "{errors}");
    assert!(
        told.starts_with("node1 has taken over from node3, on timeline 3; writes waited for "),
        "{told}"
    );
    assert!(
        errors.starts_with("warning: node3 runs on, as a primary that takes no writes"),
        "{errors}"
    );
    let error = begun.query("switchover to node3", &[]).await.expect_err("it is fenced");
    assert_eq!(sqlstate(&error), "55000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_goes_on_without_the_console_that_has_begun_it_and_there_is_one_at_a_time() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::with(
        &lab,
        &format!("{CONSOLE}[failover]\nswitchover_timeout = \"10s\"\nhold_timeout = \"20s\"\n"),
    );
    proxy.client_after("create table t (i int)").await;
    until_replayed(&lab);
    let mut busy = Wire::login(proxy.port, "postgres").await;
    busy.run("begin").await;
    busy.run("insert into t values (1)").await;

    let mut console = Wire::login(proxy.port, "pgsluice").await;
    console.send(&query("switchover; show version")).await;
    eventually("writes are held", || {
        proxy.log().contains("switchover: writes are held")
    });
    // It waits for the transaction. Meanwhile others are told, and shown what there is.
    let mut other = Wire::login(proxy.port, "pgsluice").await;
    assert_eq!(codes(&other.query("switchover").await), ["55006"]);
    assert_eq!(firsts(&other.run("show nodes").await), ["node1", "node2"]);
    cancel(&proxy, &console).await;
    let answer = console.answer().await;
    assert_eq!((codes(&answer), &*tags(&answer)), (vec!["57014".to_owned()], "EZ"));
    assert_eq!(tags(&console.run("show version").await), "TDCZ");
    console.vanish();

    busy.run("commit").await;
    eventually("node2 is the primary", || {
        proxy.status().primary.as_deref() == Some("node2")
    });
    let mut held = Wire::login(proxy.port, "postgres").await;
    assert_eq!(
        held.value("insert into t values (2) returning (select count(*) from t)")
            .await,
        "1"
    );
    assert_eq!(lab.sql("node2", "select count(*) from t").expect("a count"), "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_drains_lets_a_switchover_end_first() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let mut proxy = Proxy::with(&lab, &format!("{CONSOLE}[failover]\nswitchover_timeout = \"2s\"\n"));
    proxy.client_after("create table t (i int)").await;
    until_replayed(&lab);
    let node = support::direct(lab.node("node1").expect("a node")).await;
    node.batch_execute("begin; insert into t values (1)")
        .await
        .expect("a transaction past the proxy");
    let mut console = Wire::login(proxy.port, "pgsluice").await;
    console.send(&query("switchover")).await;
    eventually("writes are held", || {
        proxy.log().contains("switchover: writes are held")
    });
    proxy.signal(Signal::SIGTERM);
    let answer = console.answer().await;
    assert_eq!(codes(&answer), [] as [&str; 0], "{}", show(&answer));
    let row = rows(&answer).remove(0);
    assert_eq!((row[0].as_deref(), row[4].as_deref()), (Some("node2"), Some("1")));
    assert_eq!(codes(&console.rest().await), ["57P01"]);
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.log());
    assert_eq!(lab.sql("node2", "select pg_is_in_recovery()").expect("an answer"), "f");
}
