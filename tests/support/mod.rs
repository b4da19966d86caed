//! What the tests of the whole proxy stand on: a lab, `pgsluice serve` as a process of its own in front of it, and clients.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod dice;
pub mod facts;
pub mod forwarder;
pub mod journal;
pub mod patroni;
pub mod scene;
pub mod simple;
pub mod wire;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsluice::admin::status::{NodeStatus, Status};
use pgsluice::lab::{LabGuard, Node};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// How long anything that must happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// A proxy that is older is killed, so that a test that waits for its answer fails and doesn't hang.
const LONGEST_LIFE: Duration = Duration::from_secs(240);

/// A proxy in front of a lab; ends with the test, also by a panic.
pub struct Proxy {
    child: Child,
    /// Dropped with the proxy, which ends the thread that would kill it.
    _lives: mpsc::Sender<()>,
    dir: PathBuf,
    /// Where clients connect.
    pub port: u16,
    /// Where the admin server is.
    pub admin: SocketAddr,
}

impl Proxy {
    /// Serves all nodes of `lab` with the defaults.
    pub fn start(lab: &LabGuard) -> Proxy {
        Proxy::with(lab, "")
    }

    /// Serves all nodes of `lab`; `sections` is more TOML (any section but listen.addresses, cluster and admin).
    pub fn with(lab: &LabGuard, sections: &str) -> Proxy {
        let ports: Vec<u16> = lab.nodes().iter().map(Node::port).collect();
        Proxy::by_way_of(lab, &ports, sections)
    }

    /// As [`Proxy::with`], but reaches each node of `lab` by another port.
    pub fn by_way_of(lab: &LabGuard, ports: &[u16], sections: &str) -> Proxy {
        let nodes: String = lab
            .nodes()
            .iter()
            .zip(ports)
            .map(|(node, port)| {
                format!(
                    "[[cluster.node]]\nname = \"{}\"\naddress = \"127.0.0.1:{port}\"\n",
                    node.name()
                )
            })
            .collect();
        let listen = if sections.contains("[listen]") {
            ""
        } else {
            "[listen]\n"
        };
        let config = format!("{sections}\n{listen}{nodes}\n");
        Proxy::serve(lab.dir(), &config, lab.nodes().len())
    }

    /// Serves what `config` says, from a folder of its own in `parent`; ready when so many nodes serve.
    pub fn serve(parent: &Path, config: &str, nodes: usize) -> Proxy {
        Proxy::serve_by(&[], parent, config, nodes)
    }

    /// As [`Proxy::serve`], by a program with arguments that in the end becomes the proxy.
    pub fn serve_by(before: &[&str], parent: &Path, config: &str, nodes: usize) -> Proxy {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = parent.join(format!("proxy-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&dir).expect("a folder for the proxy");
        fs::write(dir.join("pgsluice.toml"), config).expect("the proxy's configuration");
        let log = File::create(dir.join("log")).expect("the proxy's log");
        let mut words = before.iter().copied().chain([env!("CARGO_BIN_EXE_pgsluice")]);
        let child = Command::new(words.next().expect("a program"))
            .args(words)
            .arg("serve")
            .arg("-c")
            .arg(dir.join("pgsluice.toml"))
            .args(["--listen", "127.0.0.1:0"])
            .env("PGSLUICE_HTTP", "127.0.0.1:0")
            .env("PGSLUICE_LOG", "pgsluice=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("pgsluice serve");
        let mut proxy = Proxy {
            _lives: watch_over(&child),
            child,
            dir,
            port: 0,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        eventually("the proxy serves all nodes", || {
            if let Ok(Some(status)) = proxy.child.try_wait() {
                panic!("pgsluice serve ended with {status}: {}", proxy.log());
            }
            // Ports that the kernel chose: one that was free a moment ago may be somebody's by now.
            let (Some(clients), Some(admin)) = (
                proxy.address_after("listening for clients address="),
                proxy.address_after("status page and metrics address="),
            ) else {
                return false;
            };
            (proxy.port, proxy.admin) = (clients.port(), admin);
            proxy
                .try_status()
                .is_some_and(|status| status.nodes.iter().filter(|node| node.serving).count() == nodes)
        });
        proxy
    }

    fn address_after(&self, words: &str) -> Option<SocketAddr> {
        let log = self.log();
        let (_, after) = log.split_once(words)?;
        after.split_once('\n')?.0.trim().parse().ok()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are small")
    }

    /// The file it was configured with.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("pgsluice.toml")
    }

    /// `GET path`: the status line's code, and the body.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut tcp = TcpStream::connect_timeout(&self.admin, Duration::from_secs(2)).ok()?;
        tcp.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(tcp, "GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// `/status`, if it answers.
    pub fn try_status(&self) -> Option<Status> {
        serde_json::from_str(&self.get("/status")?.1).ok()
    }

    /// `/status`.
    pub fn status(&self) -> Status {
        self.try_status().expect("the proxy answers /status")
    }

    /// The value of a metric's line: name and labels as they stand in `/metrics`, such as `pgsluice_routing_epoch`.
    pub fn metric(&self, line: &str) -> f64 {
        let (_, text) = self.get("/metrics").expect("the proxy answers /metrics");
        text.lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or(0.0)
    }

    /// Statements that `node` was sent by this proxy: reads and writes.
    pub fn statements(&self, node: &str) -> (u64, u64) {
        let node = self.node(node);
        (node.statements_read, node.statements_write)
    }

    /// What the proxy says of a node.
    pub fn node(&self, name: &str) -> NodeStatus {
        let mut nodes = self.status().nodes.into_iter();
        nodes.find(|node| node.name == name).expect("a node of the lab")
    }

    /// Waits until this many nodes are sent statements.
    #[track_caller]
    pub fn until_serving(&self, count: usize) {
        eventually("the nodes serve", || {
            let nodes = self.status().nodes;
            nodes.iter().filter(|node| node.serving).count() == count
        });
    }

    /// libpq's connection string.
    pub fn dsn(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// A logged-in client.
    pub async fn client(&self) -> tokio_postgres::Client {
        client(&self.dsn()).await
    }

    /// A client that has run this.
    pub async fn client_after(&self, sql: &str) -> tokio_postgres::Client {
        let client = self.client().await;
        let ran = client.batch_execute(sql).await;
        ran.unwrap_or_else(|error| panic!("{sql:.200}: {error}"));
        client
    }

    /// Sends a signal to the proxy's process.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the proxy's process");
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the proxy did not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the proxy's log ends with");
            for line in tail.into_iter().rev() {
                eprintln!("{line}");
            }
            return;
        }
        // Nothing that a client does may bring it to either.
        let log = self.log();
        let wrong = log
            .lines()
            .find(|line| line.contains("panicked at") || line.contains("in a transaction block, and is closed"));
        assert_eq!(wrong, None, "in the proxy's log");
    }
}

/// Kills a process that outlives [`LONGEST_LIFE`] while somebody holds what is returned.
fn watch_over(child: &Child) -> mpsc::Sender<()> {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids are small"));
    let (lives, life) = mpsc::channel();
    std::thread::spawn(move || {
        if life.recv_timeout(LONGEST_LIFE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    lives
}

/// A logged-in client of whatever listens there.
pub async fn client(dsn: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls)
        .await
        .unwrap_or_else(|error| panic!("{dsn}: {error}"));
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

/// A logged-in client, and how its connection ends: without an error where the client leaves.
pub async fn watched(dsn: &str) -> (tokio_postgres::Client, Ending) {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls)
        .await
        .unwrap_or_else(|error| panic!("{dsn}: {error}"));
    (client, tokio::spawn(connection))
}

/// How a connection ended.
pub type Ending = tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>;

/// The SQLSTATE of the server's last words on a connection.
pub async fn last_words(ending: Ending) -> String {
    ended("the connection ends", ending)
        .await
        .map_or_else(|error| sqlstate(&error), |()| "none".to_owned())
}

/// The SQLSTATE of an error; its text if it isn't the server's.
pub fn sqlstate(error: &tokio_postgres::Error) -> String {
    error
        .code()
        .map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

/// Has a proxy move the writes, by this command in its console. Answers the console's row, or the error's code and words.
pub async fn switch_over(port: u16, command: &str) -> Result<Vec<String>, (String, String)> {
    let dsn = format!("host=127.0.0.1 port={port} user=postgres dbname=pgsluice");
    let console = client(&dsn).await;
    let answer = console.simple_query(command).await.map_err(|error| {
        let words = error.as_db_error().map_or("", |error| error.message()).to_owned();
        (sqlstate(&error), words)
    })?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.expect("a row");
    Ok((0..row.len())
        .map(|at| row.get(at).unwrap_or_default().to_owned())
        .collect())
}

/// A client of a node itself.
pub async fn direct(node: &Node) -> tokio_postgres::Client {
    client(&format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        node.port()
    ))
    .await
}

/// A port that nobody uses at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// What a task comes to, within [`PATIENCE`].
pub async fn ended<T>(what: &str, task: tokio::task::JoinHandle<T>) -> T {
    wire::within(what, task).await.expect("a task that does not panic")
}

/// Waits until it is so.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the standbys have all that the primary has: replication is asynchronous, and a killed primary takes the rest with it.
#[track_caller]
pub fn until_replayed(lab: &LabGuard) {
    let end = lab
        .sql("primary", "select pg_current_wal_flush_lsn()")
        .expect("a position");
    let there = format!("select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() >= '{end}' else true end");
    eventually("the standbys have replayed everything", || {
        let nodes = lab.nodes().iter();
        nodes
            .map(|node| lab.sql(node.name(), &there))
            .all(|answer| answer.is_ok_and(|it| it == "t"))
    });
}

/// The port of the node that answers, as told by the node.
pub async fn node_port(client: &tokio_postgres::Client, hint: &str) -> i32 {
    client
        .query_one(&format!("{hint} select inet_server_port()"), &[])
        .await
        .expect("an answer")
        .get(0)
}
