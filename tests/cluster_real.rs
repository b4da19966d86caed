//! The cluster module against real PostgreSQL servers: a primary and two standbys on 127.0.0.1, in a directory of their own.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsluice::cluster::{
    Cluster, Hint, NoPrimary, NodeId, NodeRole, NodeState, RoutingTable, Serving, Switched, SwitchoverError,
};
use pgsluice::config::{self, Config, Promote};
use pgsluice::wire::tls::NodeTlsConnector;

/// Long enough for a slow machine; nothing waits this long when it works.
const PATIENCE: Duration = Duration::from_secs(30);

/// The newest PostgreSQL installed.
fn binaries() -> PathBuf {
    let version = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let installed = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed where Debian puts it");
    let candidates = installed
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists());
    candidates.max_by_key(version).expect("a PostgreSQL with initdb")
}

/// PostgreSQL won't run as root, so as root everything runs as its own user.
fn postgres(program: impl AsRef<Path>) -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"])
            .arg(program.as_ref());
        command
    } else {
        Command::new(program.as_ref())
    };
    command.current_dir("/");
    command
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the command can be started");
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

struct Server {
    bin: PathBuf,
    data: PathBuf,
    port: u16,
}

impl Server {
    fn start(&self) {
        let log = self.data.with_extension("log");
        succeed(self.pg_ctl().arg("-l").arg(log).args(["-w", "start"]));
    }

    fn stop(&self, mode: &str) {
        succeed(self.pg_ctl().args(["-w", "-m", mode, "stop"]));
    }

    fn pg_ctl(&self) -> Command {
        let mut command = postgres(self.bin.join("pg_ctl"));
        // Without a terminal to keep open: a server inherits what its starter has.
        command
            .arg("-D")
            .arg(&self.data)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command
    }

    fn configure(&self, lines: &str) {
        let path = self.data.join("postgresql.auto.conf");
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, format!("{before}\n{lines}\n")).unwrap();
    }

    fn sql(&self, statement: &str) -> String {
        let mut command = Command::new(self.bin.join("psql"));
        command.args([
            "-XAt",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            statement,
            "-p",
        ]);
        let output = succeed(command.arg(self.port.to_string()).arg("postgres"));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn postmaster(&self) -> Pid {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        Pid::from_raw(file.lines().next().unwrap().parse().unwrap())
    }

    /// Stops or continues every process, as a machine that hangs would.
    fn signal_all(&self, signal: Signal) {
        let postmaster = self.postmaster();
        let children = Command::new("pgrep")
            .arg("-P")
            .arg(postmaster.to_string())
            .output()
            .unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let pids = children.lines().map(|pid| Pid::from_raw(pid.parse().unwrap()));
        for pid in std::iter::once(postmaster).chain(pids) {
            // A child may have ended since it was listed.
            let _ = kill(pid, signal);
        }
    }

    /// Lets this server (stopped or running) follow another one.
    fn follow(&self, upstream: &Server) {
        std::fs::write(self.data.join("standby.signal"), "").unwrap();
        self.configure(&format!(
            "primary_conninfo = 'host=127.0.0.1 port={} user=postgres'",
            upstream.port
        ));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be stopped already; then this fails and all is well.
        let _ = self.pg_ctl().args(["-w", "-m", "immediate", "stop"]).output();
    }
}

/// Node 0 is the primary, the others follow it.
struct Lab {
    servers: Vec<Server>,
    directory: tempfile::TempDir,
}

impl Lab {
    fn up(standbys: usize) -> Lab {
        let directory = tempfile::tempdir().unwrap();
        if let Some(user) = nix::unistd::User::from_name("postgres").unwrap() {
            std::os::unix::fs::chown(directory.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        // Below those that the kernel gives to outgoing connections, one of which could have it when the server starts.
        let ports = pgsluice::lab::free_ports(standbys + 1).unwrap();
        let server = |(index, port): (usize, u16)| Server {
            bin: binaries(),
            data: directory.path().join(format!("node{index}")),
            port,
        };
        let servers: Vec<Server> = ports.into_iter().enumerate().map(server).collect();
        let primary = &servers[0];
        succeed(
            postgres(primary.bin.join("initdb"))
                .args(["-A", "trust", "-U", "postgres", "-N", "-D"])
                .arg(&primary.data),
        );
        primary.configure(&format!(
            "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\nshared_buffers = 16MB\n\
             wal_keep_size = 256MB\nwal_retrieve_retry_interval = 200ms\nmax_connections = 30",
            primary.port
        ));
        primary.start();
        primary.sql("CREATE ROLE monitor LOGIN");
        primary.sql("CREATE TABLE t (x int)");
        for standby in &servers[1..] {
            let mut backup = postgres(standby.bin.join("pg_basebackup"));
            backup.args(["-R", "-c", "fast", "-h", "127.0.0.1", "-U", "postgres", "-p"]);
            succeed(backup.arg(primary.port.to_string()).arg("-D").arg(&standby.data));
            standby.configure(&format!("port = {}", standby.port));
            standby.start();
        }
        Lab { servers, directory }
    }

    fn privileged(self) -> Lab {
        self.servers[0].sql("GRANT pg_monitor TO monitor");
        self.servers[0].sql("GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO monitor");
        self
    }

    /// What the manual asks for to switch over.
    fn may_switch_over(self) -> Lab {
        let lab = self.privileged();
        for grant in [
            "GRANT ALTER SYSTEM ON PARAMETER default_transaction_read_only TO monitor",
            "GRANT EXECUTE ON FUNCTION pg_reload_conf() TO monitor",
            "GRANT pg_signal_backend TO monitor",
        ] {
            lab.servers[0].sql(grant);
        }
        let there = "SELECT count(*) FROM pg_parameter_acl";
        while lab.servers[1].sql(there) != "1" {}
        lab
    }

    fn config(&self) -> Config {
        let node = |(index, server): (usize, &Server)| config::NodeConfig {
            address: config::NodeAddress {
                host: "127.0.0.1".into(),
                port: server.port,
            },
            name: format!("node{index}"),
            weight: 1,
        };
        Config {
            listen: config::Listen {
                addresses: vec![],
                max_clients: 10,
                threads: 1,
                login_timeout: PATIENCE,
                drain_timeout: PATIENCE,
                tls: None,
            },
            cluster: config::Cluster {
                nodes: self.servers.iter().enumerate().map(node).collect(),
                discovery: config::Discovery::default(),
                state_file: Some(self.directory.path().join("state")),
                tls: config::NodeTls::default(),
            },
            monitor: config::Monitor {
                user: "monitor".into(),
                password: None,
                database: "postgres".into(),
                interval: Duration::from_millis(250),
                timeout: Duration::from_secs(1),
                idle_interval: Duration::from_secs(5),
            },
            auth: config::Auth {
                method: config::AuthMethod::Trust,
                users: None,
            },
            pool: config::Pool {
                mode: config::PoolMode::Transaction,
                size: 1,
                max_per_node: None,
                max_per_user: None,
                max_per_database: None,
                overflow: 1,
                checkout_timeout: PATIENCE,
                idle_timeout: PATIENCE,
                max_lifetime: PATIENCE,
                connect_timeout: PATIENCE,
                query_timeout: None,
                idle_in_transaction_timeout: None,
                client_idle_timeout: None,
            },
            routing: config::Routing {
                defaults: Vec::new(),
                mode: config::RoutingMode::Split,
                read_only_functions: Vec::new(),
                catalog_refresh: Duration::from_secs(60),
                consistency: config::Consistency::ReadYourWrites,
                max_lag: Duration::from_secs(10),
                wait_for_standby: Duration::ZERO,
                read_from_primary: config::ReadFromPrimary::Fallback,
            },
            failover: config::Failover {
                trigger_file: None,
                promote: Promote::Auto,
                hold_timeout: PATIENCE,
                stale_reads: config::StaleReads::Deny,
                switchover_timeout: Duration::from_secs(2),
                hold_max: 10,
                candidate: None,
            },
            admin: config::Admin {
                http: None,
                database: "pgsluice".to_owned(),
                users: Vec::new(),
            },
        }
    }
}

/// A running watch, on a runtime and a thread of its own, and ways to wait for what it finds.
struct Watch {
    cluster: Cluster,
    /// Dropping it ends the runtime.
    _until_dropped: tokio::sync::oneshot::Sender<()>,
}

impl Watch {
    fn start(config: &Config) -> Watch {
        let config = config.clone();
        let (started, starting) = std::sync::mpsc::channel();
        let (until_dropped, dropped) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let tls = NodeTlsConnector::new(&config.cluster.tls).unwrap();
                started.send(Cluster::start(&config, &tls).unwrap()).unwrap();
                let _ = dropped.await;
            });
        });
        Watch {
            cluster: starting.recv().unwrap(),
            _until_dropped: until_dropped,
        }
    }

    fn table(&self) -> RoutingTable {
        RoutingTable::clone(&self.cluster.table())
    }

    /// Waits for this, and returns how long it took.
    fn until(&self, what: &str, is_so: impl Fn(&RoutingTable) -> bool) -> Duration {
        let began = Instant::now();
        while !is_so(&self.cluster.table()) {
            assert!(
                began.elapsed() < PATIENCE,
                "{what}: still waiting, with {:#?}",
                self.table()
            );
            self.cluster.note_statement();
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("{what}: {:?}", began.elapsed());
        began.elapsed()
    }

    fn until_all_serve(&self, primary: u16) -> Duration {
        self.until(&format!("node{primary} leads and all standbys serve"), |table| {
            table.primary == Some(NodeId(primary)) && serving(table).len() == table.nodes.len()
        })
    }
}

/// Two proxies that share nothing, when all nodes serve.
fn two_watches(lab: &Lab) -> (Watch, Watch) {
    let config = lab.config();
    let mut elsewhere = config.clone();
    elsewhere.cluster.state_file = None;
    let watches = (Watch::start(&config), Watch::start(&elsewhere));
    watches.0.until_all_serve(0);
    watches.1.until_all_serve(0);
    watches
}

/// Has the proxy move the writes.
fn switch_over(watch: &Watch, to: Option<&str>) -> Result<Switched, SwitchoverError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(watch.cluster.switch_over(to))
}

/// Somebody who writes past all proxies, until it is refused: the rows that were acknowledged, and the last answer.
fn writes_directly(server: &Server) -> std::thread::JoinHandle<(i64, String)> {
    let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", server.port);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await.unwrap();
            drop(tokio::spawn(connection));
            for row in 0.. {
                if let Err(error) = client.execute(&format!("INSERT INTO t VALUES ({row})"), &[]).await {
                    return (
                        row,
                        error
                            .code()
                            .map_or_else(|| error.to_string(), |code| code.code().to_owned()),
                    );
                }
            }
            unreachable!("it is refused")
        })
    })
}

fn serving(table: &RoutingTable) -> Vec<u16> {
    let serves = |node: &&NodeState| node.serving == Serving::Serving;
    table.nodes.iter().filter(serves).map(|node| node.id.0).collect()
}

#[test]
fn a_promotion_elsewhere_moves_the_table_and_the_old_primary_is_fenced_for_good() {
    let lab = Lab::up(2).privileged();
    let config = lab.config();
    let watch = Watch::start(&config);
    assert_eq!(watch.table().why_no_primary, Some(NoPrimary::Starting));
    watch.until_all_serve(0);
    let table = watch.table();
    assert_eq!((table.epoch.0, table.stats.failovers, table.split_brain), (1, 0, false));

    // Both answer and both take writes now: only the timeline tells.
    lab.servers[1].sql("SELECT pg_promote()");
    watch.until("promotion elsewhere, unhinted", |table| {
        table.primary == Some(NodeId(1))
    });
    let table = watch.table();
    assert_eq!((table.epoch.0, table.stats.failovers), (2, 1));
    assert_eq!(
        (table.nodes[0].role, table.nodes[0].serving),
        (NodeRole::StalePrimary, Serving::Fenced)
    );
    assert_eq!(table.nodes[2].serving, Serving::OtherTimeline);

    // The other standby is told to follow, and serves again.
    lab.servers[2].follow(&lab.servers[1]);
    lab.servers[2].sql("SELECT pg_reload_conf()");
    watch.until("the other standby follows", |table| serving(table) == [1, 2]);

    // The old primary restarts and is as stale as before, also for a proxy that sees nothing else.
    lab.servers[0].stop("fast");
    lab.servers[0].start();
    watch.until("the old primary is back", |table| {
        table.nodes[0].role == NodeRole::StalePrimary
    });
    drop(watch);
    let mut alone = config.clone();
    alone.cluster.nodes.truncate(1);
    let watch = Watch::start(&alone);
    watch.until("a restarted proxy", |table| {
        table.why_no_primary == Some(NoPrimary::OnlyStale)
    });
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(watch.table().primary, None);
}

#[test]
fn the_trigger_file_promotes_the_most_advanced_standby() {
    let lab = Lab::up(2).privileged();
    let mut config = lab.config();
    let trigger = lab.directory.path().join("trigger");
    config.failover.trigger_file = Some(trigger.clone());
    let watch = Watch::start(&config);
    watch.until_all_serve(0);

    // Node 1 stops receiving, so node 2 has more.
    lab.servers[1].configure("primary_conninfo = ''");
    lab.servers[1].sql("SELECT pg_reload_conf()");
    let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
    while lab.servers[1].sql(receivers) != "0" {}
    lab.servers[0].sql("INSERT INTO t SELECT generate_series(1, 1000)");
    while lab.servers[2].sql("SELECT count(*) FROM t") != "1000" {}
    lab.servers[0].stop("immediate");
    watch.until("no primary", |table| {
        matches!(table.why_no_primary, Some(NoPrimary::Unreachable(_)))
    });
    let began = Instant::now();
    std::fs::write(&trigger, "").unwrap();
    watch.until("the trigger file promotes", |table| table.primary == Some(NodeId(2)));
    println!("trigger file to table: {:?}", began.elapsed());
    assert_eq!(lab.servers[2].sql("SELECT count(*) FROM t"), "1000");
    watch.until("the file is removed", |_| !trigger.exists());
    let table = watch.table();
    assert_eq!((table.epoch.0, table.stats.failovers), (2, 1));
    println!("without a primary: {:?}", table.stats.last_failover);
}

#[test]
fn a_failover_tells_how_much_of_the_old_primarys_log_is_lost() {
    let lab = Lab::up(1).privileged();
    lab.servers[0].sql("GRANT EXECUTE ON FUNCTION pg_read_file(text) TO monitor");
    lab.servers[0].sql("GRANT pg_read_server_files TO monitor");
    let watch = Watch::start(&lab.config());
    watch.until_all_serve(0);
    lab.servers[0].sql("INSERT INTO t VALUES (1)");
    while lab.servers[1].sql("SELECT count(*) FROM t") != "1" {}
    // The standby hears nothing more, and the primary writes on.
    lab.servers[1].configure("primary_conninfo = ''");
    lab.servers[1].sql("SELECT pg_reload_conf()");
    while lab.servers[1].sql("SELECT count(*) FROM pg_stat_wal_receiver") != "0" {}
    let position = |server: &Server, function: &str| -> u64 {
        let bytes = server.sql(&format!("SELECT {function}() - '0/0'"));
        bytes.parse().expect("a number")
    };
    lab.servers[0].sql("INSERT INTO t SELECT generate_series(2, 10000)");
    let written = position(&lab.servers[0], "pg_current_wal_insert_lsn");
    watch.until("it is sampled", |table| {
        table.sample.is_some_and(|sample| sample.insert.0 >= written)
    });
    let received = position(&lab.servers[1], "pg_last_wal_receive_lsn");
    lab.servers[0].stop("immediate");
    lab.servers[1].sql("SELECT pg_promote()");
    watch.until("it is known", |table| table.stats.lost.is_some());
    let lost = watch.table().stats.lost.expect("it is known");
    assert_eq!(lost.timeline.0, 1);
    let bytes = lost.bytes();
    assert!(
        bytes > 100_000 && bytes >= written - received - 100,
        "{lost:?}: {written}, {received}"
    );
}

#[test]
fn a_trigger_file_with_a_living_primary_moves_the_writes_and_fences_it() {
    let lab = Lab::up(1).privileged();
    let mut config = lab.config();
    let trigger = lab.directory.path().join("trigger");
    config.failover.trigger_file = Some(trigger.clone());
    // A file from before the start is no request.
    std::fs::write(&trigger, "").unwrap();
    let watch = Watch::start(&config);
    watch.until_all_serve(0);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(watch.table().primary, Some(NodeId(0)));

    std::fs::remove_file(&trigger).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    std::fs::write(&trigger, "").unwrap();
    watch.until("the trigger file promotes", |table| table.primary == Some(NodeId(1)));
    let table = watch.table();
    println!("without a primary: {:?}", table.stats.last_failover);
    assert_eq!(table.nodes[0].role, NodeRole::StalePrimary);
}

#[test]
fn a_promotion_that_is_refused_gives_the_primary_its_writes_back() {
    let lab = Lab::up(1);
    let mut config = lab.config();
    let trigger = lab.directory.path().join("trigger");
    config.failover.trigger_file = Some(trigger.clone());
    let watch = Watch::start(&config);
    watch.until_all_serve(0);
    let mut changes = watch.cluster.subscribe();
    std::fs::write(&trigger, "").unwrap();
    watch.until("held", |table| table.why_no_primary == Some(NoPrimary::Promoting));
    watch.until_all_serve(0);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    // It isn't tried again.
    std::thread::sleep(Duration::from_millis(600));
    assert!(!changes.has_changed().unwrap());
    assert!(trigger.exists());
    assert_eq!((watch.table().epoch.0, watch.table().stats.failovers), (1, 0));
}

#[test]
fn a_switchover_loses_nothing_that_anybody_wrote_and_other_proxies_hold_and_follow() {
    let lab = Lab::up(2).may_switch_over();
    let (watch, other) = two_watches(&lab);
    let writer = writes_directly(&lab.servers[0]);
    std::thread::sleep(Duration::from_millis(300));

    let switched = switch_over(&watch, Some("node2")).expect("a switchover");
    let (acknowledged, refused) = writer.join().unwrap();
    assert_eq!(refused, "25006");
    println!("{switched:?}, {acknowledged} rows");
    assert!(acknowledged > 0);
    assert_eq!(lab.servers[2].sql("SELECT count(*) FROM t"), acknowledged.to_string());
    assert_eq!(
        (&*switched.from, &*switched.to, switched.timeline.0, switched.ended),
        ("node0", "node2", 2, 0)
    );
    assert!(switched.held < Duration::from_secs(5), "{switched:?}");
    for proxy in [&watch, &other] {
        proxy.until("it follows", |table| table.primary == Some(NodeId(2)));
        assert_eq!(
            (proxy.table().epoch.0, proxy.table().nodes[0].role),
            (2, NodeRole::StalePrimary)
        );
    }
    // Nothing can be written to the old one by mistake.
    assert_eq!(lab.servers[0].sql("SHOW default_transaction_read_only"), "on");
    let error = switch_over(&watch, Some("node2")).unwrap_err();
    assert!(error.to_string().contains("is the primary already"), "{error}");
}

#[test]
fn other_proxies_hold_writes_for_as_long_as_one_moves_them() {
    let lab = Lab::up(1).may_switch_over();
    let (watch, other) = two_watches(&lab);
    // Somebody's transaction is under way for longer than it may.
    lab.servers[0].sql("CREATE ROLE app LOGIN");
    let script = "BEGIN; SELECT 1; SELECT pg_sleep(60)";
    let mut open = Command::new(lab.servers[0].bin.join("psql"));
    open.args(["-XAt", "-h", "127.0.0.1", "-U", "app", "-c", script, "-p"]);
    let open = open.arg(lab.servers[0].port.to_string()).arg("postgres");
    let open = open
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    while lab.servers[0].sql(sleeps) != "1" {}

    std::thread::scope(|scope| {
        let switching = scope.spawn(|| switch_over(&watch, None));
        for proxy in [&watch, &other] {
            proxy.until("writes are held", |table| {
                table.why_no_primary == Some(NoPrimary::SwitchingOver) && table.nodes[0].role == NodeRole::Primary
            });
        }
        assert_eq!(switch_over(&watch, None).unwrap_err(), SwitchoverError::Busy);
        let error = switch_over(&other, None).unwrap_err();
        assert!(matches!(error, SwitchoverError::NoPrimary(_)), "{error}");
        let switched = switching.join().unwrap().expect("a switchover");
        assert_eq!((&*switched.to, switched.ended), ("node1", 1));
    });
    let told = open.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&told.stderr).contains("terminating connection due to administrator command"));
    other.until("it follows", |table| table.primary == Some(NodeId(1)));
}

#[test]
fn nobody_but_a_proxy_can_have_the_writes_wait() {
    let lab = Lab::up(1).privileged();
    lab.servers[0].sql("CREATE ROLE app LOGIN");
    let watch = Watch::start(&lab.config());
    watch.until_all_serve(0);
    let claims = |user: &str| {
        let script = "SELECT pg_advisory_lock(1885827948, 1969840997); NOTIFY pgsluice; SELECT pg_sleep(60)";
        let mut psql = Command::new(lab.servers[0].bin.join("psql"));
        psql.args(["-XAt", "-h", "127.0.0.1", "-U", user]);
        for statement in script.split("; ") {
            psql.args(["-c", statement]);
        }
        psql.args(["-p", &lab.servers[0].port.to_string(), "postgres"]);
        psql.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    let mut stranger = claims("app");
    while lab.servers[0].sql(held) != "1" {}
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        assert_eq!(watch.table().primary, Some(NodeId(0)));
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    lab.servers[0].sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
    while lab.servers[0].sql(held) != "0" {}

    let mut proxy = claims("monitor");
    watch.until("writes wait", |table| {
        table.why_no_primary == Some(NoPrimary::SwitchingOver)
    });
    proxy.kill().unwrap();
    proxy.wait().unwrap();
    lab.servers[0].sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
    watch.until("it is over", |table| table.primary == Some(NodeId(0)));
}

#[test]
fn a_switchover_that_cannot_be_gives_the_primary_its_writes_back() {
    let lab = Lab::up(1).may_switch_over();
    lab.servers[1].configure("recovery_min_apply_delay = '20s'");
    lab.servers[1].sql("SELECT pg_reload_conf()");
    let watch = Watch::start(&lab.config());
    watch.until_all_serve(0);
    lab.servers[0].sql("INSERT INTO t VALUES (1)");
    let error = switch_over(&watch, None).unwrap_err();
    assert!(matches!(error, SwitchoverError::Behind { .. }), "{error}");
    watch.until("the primary goes on", |table| table.primary == Some(NodeId(0)));
    lab.servers[0].sql("INSERT INTO t VALUES (2)");
    assert_eq!(watch.table().epoch.0, 1);
    // And one that isn't allowed does nothing at all.
    lab.servers[0].sql("REVOKE pg_monitor FROM monitor");
    lab.servers[1].configure("recovery_min_apply_delay = '0'");
    lab.servers[1].sql("SELECT pg_reload_conf()");
    let mut changes = watch.cluster.subscribe();
    changes.mark_unchanged();
    let error = switch_over(&watch, None).unwrap_err();
    assert!(error.to_string().contains("GRANT pg_monitor"), "{error}");
    assert!(!changes.has_changed().unwrap());
}

#[test]
fn a_paused_standby_stops_serving_and_returns_after_it_resumes() {
    let lab = Lab::up(2);
    let mut config = lab.config();
    config.routing.max_lag = Duration::from_secs(1);
    let watch = Watch::start(&config);
    watch.until_all_serve(0);
    lab.servers[2].sql("SELECT pg_wal_replay_pause()");
    lab.servers[0].sql("INSERT INTO t VALUES (1)");
    let took = watch.until("dropped", |table| table.nodes[2].serving == Serving::Lagging);
    assert!(took > Duration::from_millis(500), "too soon: {took:?}");
    let table = watch.table();
    assert!(table.nodes[2].replay_paused && table.nodes[2].lag_bytes.unwrap() > 0);
    assert_eq!(serving(&table), [0, 1]);
    let lag = watch.table().nodes[2].lag(Instant::now()).unwrap();
    assert!(lag >= Duration::from_secs(1), "{lag:?}");
    lab.servers[2].sql("SELECT pg_wal_replay_resume()");
    watch.until("back", |table| serving(table) == [0, 1, 2]);
}

#[test]
fn an_open_transaction_on_an_idle_primary_takes_no_standby_out() {
    let lab = Lab::up(1);
    let mut config = lab.config();
    config.routing.max_lag = Duration::from_secs(1);
    let watch = Watch::start(&config);
    watch.until_all_serve(0);
    let mut client = Command::new(lab.servers[0].bin.join("psql"));
    client.args([
        "-X",
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-p",
        &lab.servers[0].port.to_string(),
        "postgres",
    ]);
    let mut client = client
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    client
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"BEGIN;\nINSERT INTO t VALUES (1);\n")
        .unwrap();
    let unflushed = "SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()";
    while lab.servers[0].sql(unflushed) != "t" {}
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        watch.cluster.note_statement();
        assert_eq!(watch.table().nodes[1].serving, Serving::Serving);
        std::thread::sleep(Duration::from_millis(20));
    }
    let behind = watch.table().nodes[1].fresh_as_of.unwrap().elapsed();
    println!(
        "fresh as of {behind:?} ago, lag {:?}",
        watch.table().nodes[1].lag(Instant::now())
    );
    assert!(watch.table().nodes[1].lag(Instant::now()).unwrap() < Duration::from_secs(1));
    drop(client.stdin.take());
    client.wait().unwrap();
}

#[test]
fn a_restarted_primary_leads_again_in_a_new_epoch_and_its_standbys_are_not_dropped() {
    let lab = Lab::up(2).privileged();
    let watch = Watch::start(&lab.config());
    watch.until_all_serve(0);
    for mode in ["fast", "immediate"] {
        let epoch = watch.table().epoch;
        lab.servers[0].stop(mode);
        watch.until("no primary", |table| table.primary.is_none());
        assert!(watch.table().standbys().all(|node| node.serving == Serving::LagUnknown));
        assert!(watch.table().standbys().all(|node| node.fresh_as_of.is_some()));
        lab.servers[0].start();
        watch.until("it leads again", |table| table.primary == Some(NodeId(0)));
        assert_eq!(watch.table().epoch, epoch.next());
        watch.until_all_serve(0);
    }
    assert_eq!(watch.table().stats.failovers, 0);
}

#[test]
fn a_killed_primary_is_noticed_at_once_and_a_promotion_with_the_first_hint() {
    let lab = Lab::up(2).privileged();
    let watch = Watch::start(&lab.config());
    watch.until_all_serve(0);
    kill(lab.servers[0].postmaster(), Signal::SIGKILL).unwrap();
    let noticed = watch.until("kill -9 noticed", |table| table.primary.is_none());
    assert!(noticed < Duration::from_secs(1), "{noticed:?}");
    let began = Instant::now();
    lab.servers[2].sql("SELECT pg_promote()");
    println!("pg_promote() took {:?}", began.elapsed());
    watch.cluster.hint(NodeId(2), Hint::InHotStandby(false));
    let noticed = watch.until("promotion noticed", |table| table.primary == Some(NodeId(2)));
    assert!(noticed < Duration::from_millis(500), "{noticed:?}");
    assert_eq!(watch.table().nodes[0].role, NodeRole::Unreachable);
}

#[test]
fn a_monitor_whose_session_is_ended_by_an_administrator_changes_nothing() {
    let lab = Lab::up(1);
    let watch = Watch::start(&lab.config());
    watch.until_all_serve(0);
    let epoch = watch.table().epoch;
    let all_along = watch.table().nodes[0].last_seen;
    let end =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'pgsluice monitor'";
    assert_eq!(lab.servers[0].sql(end), "1");
    watch.until("asked again", |table| table.nodes[0].last_seen > all_along);
    assert_eq!((watch.table().primary, watch.table().epoch), (Some(NodeId(0)), epoch));
    watch.until("on a new connection", |_| {
        lab.servers[0].sql(&end.replace("pg_terminate_backend", "")) == "1"
    });
}

#[test]
fn a_monitor_that_may_only_log_in_still_follows_a_promotion() {
    let lab = Lab::up(2);
    let watch = Watch::start(&lab.config());
    watch.until_all_serve(0);
    lab.servers[1].sql("SELECT pg_promote()");
    lab.servers[2].follow(&lab.servers[1]);
    lab.servers[2].sql("SELECT pg_reload_conf()");
    watch.until("promotion", |table| table.primary == Some(NodeId(1)));
    // The streamed timeline is hidden: the standby has to make a restart point on the new one.
    assert_eq!(watch.table().nodes[2].serving, Serving::OtherTimeline);
    lab.servers[1].sql("CHECKPOINT");
    let replayed = "SELECT pg_last_wal_replay_lsn() >= (SELECT redo_lsn FROM pg_control_checkpoint())";
    while lab.servers[2].sql(replayed) != "t" {}
    lab.servers[2].sql("CHECKPOINT");
    watch.until("serves again", |table| table.nodes[2].serving == Serving::Serving);
}

#[test]
fn a_primary_that_hangs_is_given_up_after_two_time_outs_and_returns_in_the_same_epoch() {
    let lab = Lab::up(1);
    let config = lab.config();
    let watch = Watch::start(&config);
    watch.until_all_serve(0);
    lab.servers[0].signal_all(Signal::SIGSTOP);
    let took = watch.until("hang noticed", |table| table.primary.is_none());
    lab.servers[0].signal_all(Signal::SIGCONT);
    assert!(
        took >= config.monitor.timeout && took < config.monitor.timeout * 4,
        "{took:?}"
    );
    watch.until_all_serve(0);
    assert_eq!(watch.table().epoch.0, 1);
}

#[test]
fn a_standby_that_is_fresh_as_of_a_commit_shows_it() {
    let lab = Lab::up(1);
    let watch = Watch::start(&lab.config());
    watch.until_all_serve(0);
    for round in 0..40 {
        let durability = if round % 2 == 0 { "off" } else { "on" };
        // Rows of many sizes, so that some commits end where a page does.
        let insert = format!(
            "SET synchronous_commit = {durability}; INSERT INTO t SELECT {round} FROM generate_series(0, {})",
            round * 7
        );
        lab.servers[0].sql(&insert);
        let acknowledged = Instant::now();
        let began = Instant::now();
        while watch.cluster.table().nodes[1]
            .fresh_as_of
            .is_none_or(|as_of| as_of <= acknowledged)
        {
            assert!(began.elapsed() < PATIENCE, "never fresh: {:#?}", watch.table());
            watch.cluster.request_probe();
            std::thread::sleep(Duration::from_millis(1));
        }
        let count = lab.servers[1].sql(&format!("SELECT count(*) FROM t WHERE x = {round}"));
        assert_eq!(count, (round * 7 + 1).to_string(), "round {round}");
    }
}

#[test]
fn a_node_that_accepts_and_never_answers_delays_the_first_primary_by_one_time_out() {
    let lab = Lab::up(0);
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = lab.config();
    config.cluster.nodes.push(config::NodeConfig {
        address: config::NodeAddress {
            host: "127.0.0.1".into(),
            port: mute.local_addr().unwrap().port(),
        },
        name: "mute".into(),
        weight: 1,
    });
    let watch = Watch::start(&config);
    let took = watch.until("leads", |table| table.primary == Some(NodeId(0)));
    assert!(took < config.monitor.timeout * 2, "{took:?}");
    assert_eq!(watch.table().nodes[1].role, NodeRole::Unreachable);
}

#[test]
fn with_promote_never_the_trigger_file_only_holds_until_somebody_else_promotes() {
    let lab = Lab::up(1);
    let mut config = lab.config();
    let trigger = lab.directory.path().join("trigger");
    config.failover.trigger_file = Some(trigger.clone());
    config.failover.promote = Promote::Never;
    let watch = Watch::start(&config);
    watch.until_all_serve(0);
    std::fs::write(&trigger, "").unwrap();
    watch.until("held", |table| table.why_no_primary == Some(NoPrimary::Promoting));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(watch.table().why_no_primary, Some(NoPrimary::Promoting));
    lab.servers[1].sql("SELECT pg_promote()");
    watch.until("led", |table| table.primary == Some(NodeId(1)));
    watch.until("the file is removed", |_| !trigger.exists());
}

#[test]
fn a_damaged_state_file_is_an_error_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let lab = Lab {
        servers: vec![],
        directory,
    };
    let config = lab.config();
    std::fs::write(config.cluster.state_file.as_ref().unwrap(), "highest_timeline").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    let error = Cluster::start(&config, &NodeTlsConnector::disabled()).err().unwrap();
    assert!(error.to_string().contains("damaged"), "{error}");
}
