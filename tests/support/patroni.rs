//! A real Patroni: an etcd and members, each a process of its own with a server, run by the user that runs the labs' servers.

use std::fs::{self, OpenOptions};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsluice::lab::{LabGuard, RunAs, free_ports, pg_bin};
use serde_json::Value;

use super::{client, eventually};

/// How long a leader's key lasts: a leader that is killed is replaced after this.
const TTL: u64 = 8;

/// An etcd and its members.
pub struct PatroniCluster {
    dir: PathBuf,
    user: RunAs,
    api: Api,
    etcd: Child,
    etcd_port: u16,
    members: Vec<PatroniMember>,
}

/// How the members' REST APIs are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// In the clear.
    Http,
    /// With one certificate for all, and whoever has it do something logs in as [`LOGIN`].
    Https,
}

/// User and password.
pub const LOGIN: (&str, &str) = ("operator", "s3cret:");

/// One member: Patroni, and the server that it runs.
pub struct PatroniMember {
    /// What Patroni calls it.
    pub name: String,
    /// The server's.
    pub port: u16,
    /// The REST API's.
    pub api: u16,
    dir: PathBuf,
    process: Child,
}

impl PatroniMember {
    fn config_file(&self) -> PathBuf {
        self.dir.join("patroni.yml")
    }

    /// A client of the server itself.
    pub async fn client(&self) -> tokio_postgres::Client {
        client(&format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            self.port
        ))
        .await
    }

    /// The server's postmaster.
    fn postmaster(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.dir.join("data/postmaster.pid")).ok()?;
        text.lines().next()?.parse().ok().map(Pid::from_raw)
    }
}

impl PatroniCluster {
    /// One etcd and this many members, `pg1` and up, the first of them the leader.
    pub fn start(members: usize, api: Api) -> PatroniCluster {
        let dir = LabGuard::fresh_dir().expect("a path for a folder");
        let user = RunAs::choose().expect("a user for servers");
        fs::create_dir(&dir).expect("a folder");
        user.give(&dir).expect("the user's folder");
        let ports = free_ports(2).expect("ports");
        let etcd = start_etcd(&user, &dir, ports[0], ports[1]);
        let mut cluster = PatroniCluster {
            dir,
            user,
            api,
            etcd,
            etcd_port: ports[0],
            members: Vec::new(),
        };
        if api == Api::Https {
            cluster.certify();
        }
        for _ in 0..members {
            cluster.add("");
        }
        cluster
    }

    /// The certificate of all APIs, which is its own root.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("api.crt")
    }

    fn certify(&self) {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
        for (path, text) in [
            (self.certificate(), made.cert.pem()),
            (self.dir.join("api.key"), made.signing_key.serialize_pem()),
        ] {
            self.user.write(&path, &text).expect("a file");
        }
    }

    /// The URL of a member's REST API.
    pub fn url(&self, name: &str) -> String {
        let scheme = match self.api {
            Api::Http => "http",
            Api::Https => "https",
        };
        format!("{scheme}://127.0.0.1:{}", self.member(name).api)
    }

    /// Where files of the test's may be.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A member by its name.
    pub fn member(&self, name: &str) -> &PatroniMember {
        self.members
            .iter()
            .find(|member| member.name == name)
            .expect("a member")
    }

    /// Starts one more member with these tags, as YAML, and waits until it runs, streaming from the leader.
    pub fn add(&mut self, tags: &str) -> &PatroniMember {
        let name = format!("pg{}", self.members.len() + 1);
        let ports = free_ports(2).expect("ports");
        let dir = self.dir.join(&name);
        fs::create_dir(&dir).expect("a folder");
        self.user.give(&dir).expect("the user's folder");
        let config = self.config(&name, ports[0], ports[1], tags);
        self.user
            .write(&dir.join("patroni.yml"), &config)
            .expect("a configuration");
        let process = self.run(&dir);
        self.members.push(PatroniMember {
            name,
            port: ports[0],
            api: ports[1],
            dir,
            process,
        });
        let leads = self.members.len() == 1;
        let (name, role) = (
            self.members.last().expect("one").name.clone(),
            if leads { "Leader" } else { "Replica" },
        );
        eventually("the member runs", || {
            let list = self.patronictl(&name, &["list", "--format", "json"]);
            let members: Value = serde_json::from_str(&list).unwrap_or_default();
            let mut members = members.as_array().into_iter().flatten();
            // A standby streams, in the words of later versions.
            let state = |member: &Value| member["State"] == "running" || member["State"] == "streaming";
            let runs = |member: &Value| state(member) && member["Role"] == role;
            members.any(|member| member["Member"] == name.as_str() && runs(member) && member["TL"].is_number())
        });
        // Until then what the leader writes is nowhere else.
        eventually("it streams", || leads || self.streams(&name));
        self.members.last().expect("one")
    }

    fn run(&self, dir: &Path) -> Child {
        let config = dir.join("patroni.yml");
        let config = config.to_str().expect("a path in ASCII");
        spawn(&self.user, "patroni", &[config], &dir.join("patroni.log"))
    }

    fn config(&self, name: &str, port: u16, api: u16, tags: &str) -> String {
        let dir = self.dir.join(name).display().to_string();
        let pg_bin = pg_bin().expect("PostgreSQL's programs").display().to_string();
        let etcd = self.etcd_port;
        let certificate = self.certificate().display().to_string();
        let key = certificate.replace(".crt", ".key");
        let (access, ctl) = match self.api {
            Api::Http => (String::new(), String::new()),
            Api::Https => {
                let (user, password) = LOGIN;
                let login = format!("authentication: {{username: '{user}', password: '{password}'}}");
                (
                    format!(", certfile: '{certificate}', keyfile: '{key}', {login}"),
                    format!("cacert: '{certificate}', {login}"),
                )
            }
        };
        format!(
            "scope: test
name: {name}
restapi: {{listen: '127.0.0.1:{api}', connect_address: '127.0.0.1:{api}'{access}}}
ctl: {{{ctl}}}
etcd3: {{hosts: '127.0.0.1:{etcd}'}}
bootstrap:
  dcs:
    ttl: {TTL}
    loop_wait: 1
    retry_timeout: 3
    postgresql: {{parameters: {{fsync: 'off', wal_keep_size: '256MB'}}}}
  initdb: [{{auth: trust}}, {{encoding: UTF8}}, 'no-sync']
postgresql:
  listen: '127.0.0.1:{port}'
  connect_address: '127.0.0.1:{port}'
  data_dir: '{dir}/data'
  bin_dir: '{pg_bin}'
  pgpass: '{dir}/pgpass'
  parameters: {{unix_socket_directories: ''}}
  authentication: {{superuser: {{username: postgres}}, replication: {{username: postgres}}}}
tags: {{{tags}}}
"
        )
    }

    /// Has Patroni make another member the leader.
    pub fn switchover(&self, from: &str, to: &str) {
        let said = self.patronictl(to, &["switchover", "--leader", from, "--candidate", to, "--force"]);
        assert!(said.contains("Successfully"), "{said}");
    }

    /// Whom a member takes for the leader.
    pub fn leader(&self, asked: &str) -> String {
        let list = self.patronictl(asked, &["list", "--format", "json"]);
        let members: Value = serde_json::from_str(&list).unwrap_or_default();
        let mut members = members.as_array().into_iter().flatten();
        let leader = members.find(|member| member["Role"] == "Leader");
        leader
            .map_or("none", |leader| leader["Member"].as_str().unwrap_or("?"))
            .to_owned()
    }

    /// What Patroni's command line says with a member's configuration.
    /// Whether it receives what its leader writes.
    fn streams(&self, name: &str) -> bool {
        let sql = "select status from pg_stat_wal_receiver";
        let query = ["query", "-m", name, "-d", "postgres", "-U", "postgres", "-c", sql];
        self.patronictl(name, &query).contains("streaming")
    }

    fn patronictl(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = self.user.command("patronictl");
        command.arg("-c").arg(self.member(name).config_file()).args(arguments);
        let output = command.output().expect("patronictl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Loses a member at once, as if its machine were lost.
    pub fn kill(&mut self, name: &str) {
        let member = self.members.iter_mut().find(|member| member.name == name);
        let member = member.expect("a member");
        let _ = member.process.kill();
        let _ = member.process.wait();
        if let Some(postmaster) = member.postmaster() {
            kill_server(postmaster);
        }
    }

    /// Starts a member again that was killed.
    pub fn revive(&mut self, name: &str) {
        let at = self.members.iter().position(|member| member.name == name);
        let at = at.expect("a member");
        self.members[at].process = self.run(&self.members[at].dir);
    }

    /// Sends a signal to a member's Patroni and to all processes of its server.
    pub fn signal(&self, name: &str, signal: Signal) {
        let member = self.member(name);
        let server = member.postmaster().map(server_processes).unwrap_or_default();
        for pid in std::iter::once(pid_of(&member.process)).chain(server) {
            let _ = kill(pid, signal);
        }
    }

    /// Has all members use other settings, such as `synchronous_mode=true`.
    pub fn configure(&self, settings: &[&str]) {
        let first = &self.members.first().expect("a member").name;
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let arguments: Vec<&str> = ["edit-config", "--force"].into_iter().chain(settings).collect();
        let said = self.patronictl(first, &arguments);
        assert!(said.contains("Configuration changed"), "{said}");
    }

    /// Has Patroni forget a member whose server runs on.
    pub fn abandon(&mut self, name: &str) {
        let member = self.members.iter_mut().find(|member| member.name == name);
        let member = member.expect("a member");
        let _ = member.process.kill();
        let _ = member.process.wait();
        let others = self.members.iter().find(|member| member.name != name);
        let other = others.expect("another member").name.clone();
        eventually("the member is none any more", || {
            !self
                .patronictl(&other, &["list", "--format", "json"])
                .contains(&format!("\"{name}\""))
        });
    }

    /// Stops the store, as if it were not to be reached, or lets it go on.
    pub fn signal_etcd(&self, signal: Signal) {
        kill(pid_of(&self.etcd), signal).expect("etcd");
    }
}

impl Drop for PatroniCluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in &self.members {
                let log = fs::read_to_string(member.dir.join("patroni.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                eprintln!("--- the log of Patroni's {} ends with", member.name);
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        let names: Vec<String> = self.members.iter().map(|member| member.name.clone()).collect();
        for name in names {
            self.kill(&name);
        }
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn start_etcd(user: &RunAs, dir: &Path, client_port: u16, peer_port: u16) -> Child {
    let (clients, peers) = (
        format!("http://127.0.0.1:{client_port}"),
        format!("http://127.0.0.1:{peer_port}"),
    );
    let data = dir.join("etcd").display().to_string();
    let arguments = [
        "--data-dir",
        &data,
        "--listen-client-urls",
        &clients,
        "--advertise-client-urls",
        &clients,
        "--listen-peer-urls",
        &peers,
        "--initial-advertise-peer-urls",
        &peers,
        "--initial-cluster",
        &format!("default={peers}"),
    ];
    let etcd = spawn(user, "etcd", &arguments, &dir.join("etcd.log"));
    eventually("etcd listens", || {
        TcpStream::connect(("127.0.0.1", client_port)).is_ok()
    });
    etcd
}

/// Starts a program that ends with the test's thread, whatever becomes of it.
fn spawn(user: &RunAs, program: &str, arguments: &[&str], log: &Path) -> Child {
    let is_there = Command::new(program).arg("--version").output().is_ok();
    assert!(
        is_there,
        "there is no {program} here: `scripts/setup.sh --tests` installs it"
    );
    let log = OpenOptions::new().create(true).append(true).open(log).expect("a log");
    user.command("setpriv")
        .args(["--pdeathsig", "TERM", program])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("setpriv")
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process ids are small"))
}

/// The postmaster first, so that it starts nothing anew; its children end when they notice.
fn kill_server(postmaster: Pid) {
    for pid in server_processes(postmaster) {
        let _ = kill(pid, Signal::SIGKILL);
    }
}

/// The postmaster, and then its children.
fn server_processes(postmaster: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(postmaster).chain(children.map(Pid::from_raw)).collect()
}
