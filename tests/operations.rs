//! What an operator does to a proxy that serves: signals, reloads, probes, the command line, users and certificates.

mod support;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pgsluice::lab::{LabGuard, Quiet, StopMode};
use serde_json::Value;
use support::simple::Simple;
use support::{Ending, Proxy, ended, eventually, last_words, sqlstate, watched};
use tokio_postgres::{Client, Error};

/// `pgsluice` with these arguments and this standard input.
fn pgsluice(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pgsluice"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgsluice runs");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes())
        .expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Both streams of psql, and whether it was content.
fn psql(lab: &LabGuard, proxy: &Proxy, conninfo: &str, password: &str, command: &str) -> (bool, String) {
    let output = Command::new(lab.pg_bin().join("psql"))
        .args(["-X", "-w", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", command])
        .arg(format!("host=localhost port={} dbname=postgres {conninfo}", proxy.port))
        .env("PGPASSWORD", password)
        .output()
        .expect("psql");
    let both = [output.stdout, output.stderr].concat();
    (output.status.success(), text(&both))
}

async fn rows_of(lab: &LabGuard, table: &str) -> String {
    let sql = format!("select coalesce(string_agg(row, ',' order by row), 'none') from {table}");
    lab.sql("primary", &sql).expect("rows")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_proxy_lets_transactions_end_and_takes_no_more() {
    let lab = LabGuard::fresh(0).expect("a lab");
    let mut proxy = Proxy::start(&lab);
    let (idle, idle_ending) = watched(&proxy.dsn()).await;
    idle.batch_execute("create table t (row text)").await.expect("a table");
    let (runs, runs_ending) = watched(&proxy.dsn()).await;
    let mut busy = Simple::login(proxy.port).await;
    busy.say("begin; insert into t values ('one')").await;
    busy.send("insert into t select 'two' from pg_sleep(0.5)").await;
    let running = tokio::spawn(async move {
        let sql = "insert into t select 'alone' from pg_sleep(1)";
        (runs.batch_execute(sql).await, runs)
    });
    eventually("both statements run", || {
        let sql = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
        lab.sql("node1", sql).expect("an answer") == "2"
    });

    proxy.signal(Signal::SIGTERM);
    assert_eq!(last_words(idle_ending).await, "57P01");
    assert!(idle.is_closed());
    eventually("it says that it isn't ready", || {
        proxy
            .get("/readyz")
            .is_some_and(|(code, body)| code == 503 && body.contains("draining"))
    });
    assert_eq!(proxy.get("/livez").map(|(code, _)| code), Some(200));
    assert!(proxy.status().draining);
    assert!(
        TcpStream::connect(("127.0.0.1", proxy.port)).is_err(),
        "a new client was taken"
    );

    let (answer, _runs) = ended("the statement", running).await;
    answer.expect("it ends in peace");
    assert_eq!(last_words(runs_ending).await, "57P01");
    let said = busy.hear().await;
    assert_eq!((said.commands, said.status), (vec!["INSERT 0 1".to_owned()], Some('T')));
    let said = busy.say("insert into t values ('three')").await;
    assert_eq!((said.codes, said.status), (vec![], Some('T')));
    let said = busy.say("commit").await;
    assert_eq!((said.commands, said.status), (vec!["COMMIT".to_owned()], Some('I')));
    let said = busy.hear().await;
    assert_eq!((said.codes, said.status), (vec!["57P01".to_owned()], None));
    assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.log());
    assert_eq!(rows_of(&lab, "t").await, "alone,one,three,two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_outlasts_drain_timeout_or_a_second_signal_is_cut() {
    let lab = LabGuard::fresh(0).expect("a lab");
    let setup = support::direct(lab.node("node1").expect("a node")).await;
    setup.batch_execute("create table t (row text)").await.expect("a table");
    for (drain_timeout, signals) in [("1s", 1), ("1h", 2)] {
        let mut proxy = Proxy::with(&lab, &format!("[listen]\ndrain_timeout = \"{drain_timeout}\"\n"));
        let mut busy = Simple::login(proxy.port).await;
        busy.say("begin; insert into t values ('lost')").await;
        let began = Instant::now();
        for _ in 0..signals {
            proxy.signal(Signal::SIGTERM);
            eventually("it drains", || proxy.try_status().is_none_or(|status| status.draining));
        }
        let said = busy.hear().await;
        assert_eq!((said.codes, said.status), (vec!["57P01".to_owned()], None));
        assert_eq!(proxy.wait().code(), Some(0), "{}", proxy.log());
        let took = began.elapsed();
        assert!(
            took < Duration::from_secs(20),
            "{took:?} with drain_timeout = {drain_timeout}"
        );
        assert!(signals == 2 || took >= Duration::from_secs(1), "{took:?}");
        assert_eq!(rows_of(&lab, "t").await, "none");
    }
}

/// Has the proxy read its configuration again, and waits for the outcome: `ok` or `refused`.
fn reload(proxy: &Proxy, outcome: &str) {
    let metric = format!("pgsluice_config_reloads_total{{outcome=\"{outcome}\"}}");
    let before = proxy.metric(&metric);
    proxy.signal(Signal::SIGHUP);
    eventually("it has reloaded", || proxy.metric(&metric) == before + 1.0);
}

fn rewrite(file: &Path, from: &str, to: &str) {
    let before = fs::read_to_string(file).expect("a file");
    assert!(before.contains(from), "{from} is not in {before}");
    fs::write(file, before.replace(from, to)).expect("a file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_takes_over_what_can_change_and_keeps_the_rest() {
    let lab = LabGuard::fresh(0).expect("a lab");
    let mut proxy = Proxy::with(
        &lab,
        "[pool]\nsize = 1\ncheckout_timeout = \"300ms\"\n[routing]\nmax_lag = \"10s\"\n",
    );
    let (one, other) = (proxy.client().await, proxy.client().await);
    one.batch_execute("create table t (n int); insert into t values (1)")
        .await
        .expect("a table");
    one.batch_execute("begin; insert into t values (2)")
        .await
        .expect("a block");
    let told = other.batch_execute("insert into t values (3)").await;
    assert_eq!(sqlstate(&told.expect_err("the only connection is taken")), "53300");
    rewrite(&proxy.config_file(), "size = 1", "size = 2");
    rewrite(&proxy.config_file(), "10s", "20s");
    reload(&proxy, "ok");
    other
        .batch_execute("insert into t values (3)")
        .await
        .expect("there is a second connection now");
    one.batch_execute("commit").await.expect("the block was left alone");
    assert!(
        proxy.log().contains("need a restart") && proxy.log().contains("routing.max_lag"),
        "{}",
        proxy.log()
    );

    // What is wrong with a file changes nothing.
    let good = fs::read_to_string(proxy.config_file()).expect("a file");
    for (broken, named) in [
        (good.replace("size = 2", "siez = 2"), "did you mean `size`"),
        (good.replace("size = 2", "size = "), "pgsluice.toml"),
    ] {
        fs::write(proxy.config_file(), broken).expect("a file");
        reload(&proxy, "refused");
        let log = proxy.log();
        let line = log.lines().find(|line| line.contains(named) && line.contains("ERROR"));
        assert!(line.is_some_and(|line| line.contains("not reloaded")), "{named}: {log}");
        one.batch_execute("begin; insert into t values (4)")
            .await
            .expect("a block");
        other
            .batch_execute("insert into t values (5)")
            .await
            .expect("two connections");
        one.batch_execute("rollback").await.expect("the end of the block");
    }
    fs::remove_file(proxy.config_file()).expect("a file");
    reload(&proxy, "refused");
    one.batch_execute("insert into t values (6)").await.expect("it lives");
    fs::write(proxy.config_file(), good).expect("a file");
    reload(&proxy, "ok");
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait().code(), Some(0));
}

/// A lab whose servers ask users for passwords, and a proxy that does too.
struct Guarded {
    lab: LabGuard,
    proxy: Proxy,
    users: PathBuf,
    _files: tempfile::TempDir,
}

impl Guarded {
    /// `alice`'s password stands in the users file in the clear, `bob`'s as the verifier that the servers have.
    async fn start(sections: &str) -> Guarded {
        let lab = LabGuard::fresh(1).expect("a lab");
        let superuser = support::direct(lab.node("node1").expect("a node")).await;
        superuser
            .batch_execute(
                "set password_encryption = 'scram-sha-256';
                 create role alice login password 'wonder';
                 create role bob login password 'builder';
                 create table t as select generate_series(1, 3) as n;
                 grant all on t to alice, bob",
            )
            .await
            .expect("two users");
        for node in lab.nodes() {
            let hba = node.data().join("pg_hba.conf");
            let rules = fs::read_to_string(&hba).expect("rules");
            let first = "host all alice,bob 127.0.0.1/32 scram-sha-256\n";
            fs::write(&hba, format!("{first}{rules}")).expect("rules");
            lab.sql(node.name(), "select pg_reload_conf()").expect("a reload");
        }
        let verifier = lab.sql("node1", "select rolpassword from pg_authid where rolname = 'bob'");
        let files = tempfile::tempdir().expect("a folder");
        let users = files.path().join("users.txt");
        let lines = format!("\"alice\" \"wonder\"\n\"bob\" \"{}\"\n", verifier.expect("a verifier"));
        fs::write(&users, lines).expect("a users file");
        let sections = format!(
            "[auth]\nmethod = \"scram-sha-256\"\nusers = \"{}\"\n{sections}",
            users.display()
        );
        let proxy = Proxy::with(&lab, &sections);
        Guarded {
            lab,
            proxy,
            users,
            _files: files,
        }
    }

    async fn log_in(&self, user: &str, password: &str) -> Result<(Client, Ending), Error> {
        let dsn = format!(
            "host=127.0.0.1 port={} dbname=postgres user={user} password={password}",
            self.proxy.port
        );
        let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await?;
        Ok((client, tokio::spawn(connection)))
    }

    async fn refused(&self, user: &str, password: &str) -> String {
        match self.log_in(user, password).await {
            Ok(_) => panic!("{user} was let in with {password}"),
            Err(error) => sqlstate(&error),
        }
    }
}

async fn name(client: &Client) -> String {
    let row = client
        .query_one("select session_user::text", &[])
        .await
        .expect("a name");
    row.get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_prove_themselves_with_scram_and_have_pools_of_their_own() {
    let guarded = Guarded::start("[pool]\nsize = 1\ncheckout_timeout = \"300ms\"\n").await;
    let (lab, proxy) = (&guarded.lab, &guarded.proxy);
    for (user, password) in [("alice", "wonder"), ("bob", "builder")] {
        let (client, _ending) = guarded.log_in(user, password).await.expect("a login");
        assert_eq!(name(&client).await, user);
        let rows = client.query_one("select count(*) from t", &[]).await;
        assert_eq!(rows.expect("a read").get::<_, i64>(0), 3);
        let command = "select session_user; select count(*) from t";
        let (content, said) = psql(lab, proxy, &format!("user={user}"), password, command);
        assert!(content && said == format!("{user}\n3\n"), "{said}");

        for wrong in ["wrong", "WONDER", ""] {
            let (content, said) = psql(lab, proxy, &format!("user={user}"), wrong, command);
            assert!(!content, "{user} was let in with {wrong}: {said}");
        }
        assert_eq!(guarded.refused(user, "wrong").await, "28P01");
    }
    assert_eq!(guarded.refused("alice", "builder").await, "28P01", "another's password");
    assert_eq!(guarded.refused("carol", "wonder").await, "28P01", "nobody");
    let (content, said) = psql(lab, proxy, "user=alice", "wrong", "select 1");
    assert!(
        !content && said.contains("password authentication failed for user \"alice\""),
        "{said}"
    );
    assert!(proxy.metric("pgsluice_client_connections_total{outcome=\"auth_failed\"}") >= 5.0);

    // One connection each: who holds it stands in the way of nobody else.
    let (alice, _ending) = guarded.log_in("alice", "wonder").await.expect("a login");
    let (also_alice, _also_ending) = guarded.log_in("alice", "wonder").await.expect("a login");
    let (bob, _bobs_ending) = guarded.log_in("bob", "builder").await.expect("a login");
    alice
        .batch_execute("begin; insert into t values (4)")
        .await
        .expect("a block");
    let told = also_alice.batch_execute("insert into t values (5)").await;
    assert_eq!(sqlstate(&told.expect_err("her connection is taken")), "53300");
    bob.batch_execute("insert into t values (6)")
        .await
        .expect("his connection is free");
    let sql =
        "select string_agg(distinct usename, ',' order by usename) from pg_stat_activity where usename <> 'postgres'";
    assert_eq!(lab.sql("node1", sql).expect("names"), "alice,bob");
    alice.batch_execute("commit").await.expect("the end of the block");
    assert_eq!((name(&alice).await, name(&bob).await), ("alice".into(), "bob".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_counts_from_the_next_reload_on() {
    let guarded = Guarded::start("").await;
    let (lab, proxy) = (&guarded.lab, &guarded.proxy);
    let (stays, _ending) = guarded.log_in("alice", "wonder").await.expect("a login");
    assert_eq!(name(&stays).await, "alice");
    rewrite(&guarded.users, "wonder", "changed");
    assert_eq!(guarded.refused("alice", "changed").await, "28P01", "before the reload");
    lab.sql("node1", "alter role alice password 'changed'")
        .expect("a new password");
    reload(proxy, "ok");
    assert_eq!(guarded.refused("alice", "wonder").await, "28P01", "the old password");
    let (client, _ending) = guarded.log_in("alice", "changed").await.expect("the new password");
    // The servers know the new one only, and old connections to them are gone.
    let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'alice'";
    lab.sql("node1", sql).expect("an end");
    eventually("her connections are gone", || {
        let sql = "select count(*) from pg_stat_activity where usename = 'alice'";
        lab.sql("node1", sql).expect("a count") == "0"
    });
    for client in [&client, &stays] {
        client
            .batch_execute("insert into t values (7)")
            .await
            .expect("a new server connection");
    }
    let (bob, _ending) = guarded
        .log_in("bob", "builder")
        .await
        .expect("nothing has changed for him");
    assert_eq!(name(&bob).await, "bob");

    fs::write(&guarded.users, "\"alice\" \"unfinished").expect("a broken file");
    reload(proxy, "refused");
    guarded.log_in("alice", "changed").await.expect("the users from before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_encrypt_and_a_new_certificate_counts_from_the_next_reload_on() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let files = tempfile::tempdir().expect("a folder");
    let (cert, key) = (files.path().join("own.crt"), files.path().join("own.key"));
    let certify = |root: &Path| {
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pair = rcgen::KeyPair::generate().expect("a key");
        let own = params.self_signed(&pair).expect("a certificate");
        fs::write(&cert, own.pem()).expect("a file");
        fs::write(root, own.pem()).expect("a file");
        fs::write(&key, pair.serialize_pem()).expect("a file");
    };
    let (first, second) = (files.path().join("first.crt"), files.path().join("second.crt"));
    certify(&first);
    let listen = |required: bool| {
        format!(
            "[listen]\ntls.cert = \"{}\"\ntls.key = \"{}\"\ntls.required = {required}\n",
            cert.display(),
            key.display()
        )
    };
    let proxy = Proxy::with(&lab, &listen(false));
    let try_psql = |conninfo: &str| {
        let (content, said) = psql(&lab, &proxy, &format!("user=postgres {conninfo}"), "", "\\conninfo");
        (content && said.contains("SSL connection"), said)
    };
    for conninfo in [
        "sslmode=require".to_owned(),
        format!("sslmode=verify-full sslrootcert={}", first.display()),
    ] {
        let (encrypted, said) = try_psql(&conninfo);
        assert!(encrypted, "{conninfo}: {said}");
    }
    let (content, said) = psql(&lab, &proxy, "user=postgres sslmode=require", "", "select 6 * 7");
    assert!(content && said == "42\n", "{said}");
    // Encryption is the client's choice here.
    let (content, said) = psql(&lab, &proxy, "user=postgres sslmode=disable", "", "select 6 * 7");
    assert!(content && said == "42\n", "{said}");
    proxy
        .client()
        .await
        .batch_execute("select 1")
        .await
        .expect("a plain client");

    certify(&second);
    let trusting = |root: &Path| format!("sslmode=verify-full sslrootcert={}", root.display());
    assert!(
        !try_psql(&trusting(&second)).0,
        "the new certificate is shown before the reload"
    );
    reload(&proxy, "ok");
    let (encrypted, said) = try_psql(&trusting(&second));
    assert!(encrypted, "{said}");
    let (content, said) = try_psql(&trusting(&first));
    assert!(!content && said.contains("certificate verify failed"), "{said}");

    rewrite(&proxy.config_file(), "required = false", "required = true");
    reload(&proxy, "ok");
    let refused = tokio_postgres::connect(&proxy.dsn(), tokio_postgres::NoTls).await;
    assert_eq!(refused.err().map(|error| sqlstate(&error)).as_deref(), Some("28000"));
    assert!(try_psql("sslmode=require").0);
    fs::write(&key, "no key").expect("a file");
    reload(&proxy, "refused");
    assert!(try_psql("sslmode=require").0, "the certificate from before stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_status_tell_what_the_proxy_can_do() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let proxy = Proxy::start(&lab);
    let client = proxy.client_after("create table t (n int)").await;
    client.query("select count(*) from t", &[]).await.expect("a read");
    let code = |path: &str| proxy.get(path).map(|(code, _)| code);
    for path in ["/livez", "/readyz", "/metrics", "/status", "/"] {
        assert_eq!(code(path), Some(200), "{path}");
    }
    assert_eq!(code("/nothing"), Some(404));
    let (_, metrics) = proxy.get("/metrics").expect("metrics");
    for name in [
        "pgsluice_statements_total{node=\"node1\",role=\"primary\",access=\"write\"} 1",
        "pgsluice_node_up{node=\"node1\"} 1",
        "pgsluice_node_role{node=\"node2\",role=\"standby\"} 1",
        "pgsluice_routing_epoch 1",
        "pgsluice_failovers_total 0",
        "pgsluice_split_brain 0",
        "# TYPE pgsluice_statement_duration_seconds histogram",
        "# TYPE pgsluice_pool_wait_seconds histogram",
    ] {
        assert!(metrics.lines().any(|line| line == name), "{name} is not in:\n{metrics}");
    }
    let status = proxy.status();
    assert_eq!(status.primary.as_deref(), Some("node1"));
    assert_eq!((status.epoch, status.failovers, status.timeline), (1, 0, Some(1)));
    assert_eq!(status.clients.total, 1);

    let url = format!("http://{}", proxy.admin);
    let table = pgsluice(&["status", "--url", &url], "");
    assert_eq!(table.status.code(), Some(0), "{}", text(&table.stderr));
    let table = text(&table.stdout);
    for (node, role) in [("node1", "primary"), ("node2", "standby")] {
        let line = table.lines().find(|line| line.starts_with(node));
        assert!(line.is_some_and(|line| line.contains(role)), "{node} in:\n{table}");
    }
    let json = pgsluice(&["status", "--json", "--url", &url], "");
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["nodes"].as_array().map(Vec::len), Some(2));
    assert_eq!(json["nodes"][1]["role"], "standby");

    for node in ["node1", "node2"] {
        lab.stop(node, StopMode::Immediate, &mut Quiet).expect("stopped");
    }
    eventually("it is not ready", || code("/readyz") == Some(503));
    assert_eq!(code("/livez"), Some(200), "a restart of the proxy would mend nothing");
    let table = text(&pgsluice(&["status", "--url", &url], "").stdout);
    assert!(
        table.contains("there is no primary") && table.contains("unreachable"),
        "{table}"
    );
    lab.start("node1", &mut Quiet).expect("started");
    eventually("it is ready again", || code("/readyz") == Some(200));
    drop(proxy);
    let gone = pgsluice(&["status", "--url", &url], "");
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains("can't connect"), "{}", text(&gone.stderr));
}

#[test]
fn a_taken_port_is_named_and_the_process_fails() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    let free = format!("127.0.0.1:{}", support::free_port());
    for (listen, admin) in [(&taken, &free), (&free, &taken)] {
        let began = Instant::now();
        let output = Command::new(env!("CARGO_BIN_EXE_pgsluice"))
            .args(["serve", "--node", "127.0.0.1:1", "--listen", listen])
            .env("PGSLUICE_HTTP", admin)
            .output()
            .expect("pgsluice runs");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let named = format!("error: cannot listen on {taken}: Address already in use");
        assert!(said.contains(&named), "{said}");
        assert!(began.elapsed() < support::PATIENCE);
    }
}

#[test]
fn a_configuration_is_checked_with_an_exit_status() {
    let files = tempfile::tempdir().expect("a folder");
    let check = |content: &str| {
        let file = files.path().join("p.toml");
        fs::write(&file, content).expect("a file");
        let output = pgsluice(&["check-config", file.to_str().expect("a plain path")], "");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let good = "[cluster]\nnodes = [\"127.0.0.1:15432\", \"127.0.0.1:15433\"]\n";
    let (code, stdout, stderr) = check(good);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("p.toml: ok"), "{stdout}");
    let (code, stdout, stderr) = check(&format!("{good}[routing]\nmax_lga = \"1s\"\n[pool]\nsize = 0\n"));
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    for said in [
        "p.toml:4:1: routing.max_lga",
        "did you mean `max_lag`?",
        "p.toml:6:1: pool.size",
    ] {
        assert!(stderr.contains(said), "{said} is not in:\n{stderr}");
    }
    let missing = pgsluice(&["check-config", "/nowhere/p.toml"], "");
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("/nowhere/p.toml"));
    // What doesn't pass the check isn't served either.
    let output = pgsluice(&["serve", "-c", "/nowhere/p.toml"], "");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn explain_tells_people_and_programs_what_a_statement_is() {
    let told = |sql: &str| {
        let output = pgsluice(&["explain", sql], "");
        assert_eq!(output.status.code(), Some(0), "{sql}");
        text(&output.stdout)
    };
    let read = told("select count(*) from t");
    let lines: Vec<&str> = read.lines().collect();
    assert!(
        matches!(lines[..], ["class:   read", because, place]
            if because.starts_with("because: ") && place.starts_with("goes to: a standby")),
        "{read}"
    );
    let write = told("select pg_advisory_lock(1)");
    let lines: Vec<&str> = write.lines().collect();
    assert!(
        matches!(lines[..], ["class:   write", because, "effects: pin advisory_lock", "goes to: the primary"]
            if because.contains("pg_advisory_lock")),
        "{write}"
    );
    assert!(told("/* pgsluice: primary */ select 1").contains("goes to: the primary, as its hint asks"));

    let json = pgsluice(&["explain", "--json"], "update t set n = 1");
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(
        (&json["access"], &json["effects"]),
        (&"write".into(), &Value::Array(vec![]))
    );

    let input = "{\"sql\": \"select 1\"}\n\n{\"sql\": \"listen news\"}\n{\"sql\": \"select 'a\\nb'\"}\n";
    let batch = pgsluice(&["explain", "--batch"], input);
    assert_eq!(batch.status.code(), Some(0), "{}", text(&batch.stderr));
    let lines: Vec<Value> = text(&batch.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let accesses: Vec<&Value> = lines.iter().map(|line| &line["access"]).collect();
    assert_eq!(accesses, ["read", "write", "read"]);
    assert_eq!(lines[1]["effects"], serde_json::json!(["pin listen"]));
    assert!(lines.iter().all(|line| line["reason"].is_string()));

    let batch = pgsluice(&["explain", "--batch"], "{\"sql\": \"select 1\"}\nselect 1\n");
    assert_eq!(batch.status.code(), Some(2));
    assert!(text(&batch.stderr).contains("line 2"), "{}", text(&batch.stderr));
}
