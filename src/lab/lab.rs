//! A lab and its verbs.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};

use super::binaries::Binaries;
use super::error::{LabError, Tried};
use super::manifest::{Manifest, NodeEntry, Stage};
use super::node::{self, Node};
use super::progress::{Progress, Quiet, Told};
use super::run_as::RunAs;
use super::server::Server;
use super::status::{self, NodeStatus, Role};
use super::versions::Dialect;
use super::{folder, ports, promote, proxy_config, rejoin, steps, tool};

/// How often `up` starts over when somebody was quicker to a port that was free a moment ago.
const PORT_RACES: usize = 3;

/// How long replay may take to pause or go on.
const REPLAY_DEADLINE: Duration = Duration::from_secs(10);

const SQL_DEADLINE: Duration = Duration::from_secs(30);

/// A replicated cluster in a folder. Dropping it leaves the servers running.
#[derive(Debug, Clone)]
pub struct Lab {
    dir: PathBuf,
    binaries: Binaries,
    dialect: Dialect,
    run_as: RunAs,
    fast: bool,
    nodes: Vec<Node>,
}

/// What [`Lab::up`] builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabOptions {
    /// The lab's folder: a new one, an empty one, or an earlier lab's.
    pub dir: PathBuf,
    /// The primary's port, the standbys' following it; `None` takes free ports anywhere.
    pub base_port: Option<u16>,
    /// Hot standbys beside the primary.
    pub standbys: usize,
    /// The folder of PostgreSQL's programs; `None` looks for them.
    pub pg_bin: Option<PathBuf>,
    /// fsync off: quicker, and a lost machine loses the data.
    pub fast: bool,
}

impl LabOptions {
    /// The command line's defaults, in this folder.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            base_port: Some(15432),
            standbys: 2,
            pg_bin: None,
            fast: false,
        }
    }

    /// For tests: free ports, and fsync off.
    pub fn for_test(dir: impl Into<PathBuf>) -> Self {
        Self {
            base_port: None,
            fast: true,
            ..Self::in_dir(dir)
        }
    }
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum StopMode {
    /// Sessions are cut, and the standbys get the last of the WAL.
    #[default]
    Fast,
    /// At once; the next start recovers.
    Immediate,
    /// SIGKILL for the postmaster and all of its processes, as if the machine were lost.
    Kill,
}

impl Lab {
    /// The folder that the command line uses unless told otherwise: one a user, outside of private folders, so that root's servers
    /// can reach it.
    pub fn default_dir() -> PathBuf {
        PathBuf::from(format!("/var/tmp/pgsluice-lab-{}", geteuid()))
    }

    /// Builds the cluster and starts it; when it is there already, starts what is stopped. What fails half-way is removed again.
    pub fn up(options: LabOptions, progress: &mut dyn Progress) -> Result<Self, LabError> {
        let dir = folder::prepare(&options.dir)?;
        if Manifest::exists_in(&dir) {
            match Manifest::read(&dir)?.stage {
                Stage::Ready => return Self::up_again(&dir, progress),
                Stage::Building { pid } if is_running(pid) => {
                    return Err(LabError::BeingBuilt { dir, pid });
                }
                Stage::Building { .. } => {
                    progress.warn("an earlier `up` did not finish here; what it left is removed");
                    Self::open_at_any_stage(&dir)?.down(&mut Quiet)?;
                }
            }
        }
        let mut races = 0;
        loop {
            match Self::build(&dir, &options, progress) {
                Err(LabError::PortTaken { .. }) if options.base_port.is_none() && races < PORT_RACES => races += 1,
                built => return built,
            }
        }
    }

    /// The lab in a folder.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, LabError> {
        let dir = dir.as_ref();
        let dir = fs::canonicalize(dir).map_err(|_| LabError::NotALab { dir: dir.to_path_buf() })?;
        match Manifest::read(&dir)?.stage {
            Stage::Ready => Self::open_at_any_stage(&dir),
            Stage::Building { pid } => Err(LabError::BeingBuilt { dir, pid }),
        }
    }

    /// The lab in a folder, to take it down: also one whose `up` was killed.
    pub(super) fn open_for_down(dir: &Path) -> Result<Self, LabError> {
        match Self::open(dir) {
            Err(LabError::BeingBuilt { dir, pid }) if !is_running(pid) => Self::open_at_any_stage(&dir),
            opened => opened,
        }
    }

    /// All nodes; the first was the first primary.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its name or its port; `primary` is the one that is primary now.
    pub fn node(&self, name: &str) -> Result<&Node, LabError> {
        if name == "primary" {
            return self.primary();
        }
        let port = name.parse().ok();
        self.nodes
            .iter()
            .find(|node| node.name() == name || Some(node.port()) == port)
            .ok_or_else(|| {
                let known: Vec<_> = self
                    .nodes
                    .iter()
                    .map(|node| format!("{} ({})", node.name(), node.port()))
                    .collect();
                LabError::UnknownNode {
                    name: name.to_owned(),
                    known: known.join(", "),
                }
            })
    }

    /// The node that is out of recovery on the highest timeline.
    pub fn primary(&self) -> Result<&Node, LabError> {
        let statuses = self.status();
        let primary = statuses
            .iter()
            .position(|status| status.role == Role::Primary)
            .ok_or(LabError::NoPrimary)?;
        self.nodes.get(primary).ok_or(LabError::NoPrimary)
    }

    /// What every node is now, in the order of [`Lab::nodes`].
    pub fn status(&self) -> Vec<NodeStatus> {
        status::of(self)
    }

    /// The answer of one node to one statement, as superuser; columns are separated by `|`, rows by line ends.
    pub fn sql(&self, name: &str, statement: &str) -> Result<String, LabError> {
        Server::of(self, self.node(name)?).sql(statement)
    }

    /// Ends recovery on a standby and has the other standbys follow it. An old primary that still runs is left as it is.
    pub fn promote(&self, name: &str, progress: &mut dyn Progress) -> Result<(), LabError> {
        promote::promote(self, self.node(name)?, progress)
    }

    /// Stops a server; one that isn't running stays so.
    pub fn stop(&self, name: &str, mode: StopMode, progress: &mut dyn Progress) -> Result<(), LabError> {
        let node = self.node(name)?;
        let server = Server::of(self, node);
        if server.pid().is_none() {
            progress.doing(&format!("{}: is not running", node.name()));
            return Ok(());
        }
        let how = match mode {
            StopMode::Fast => "stopping it (fast: sessions are cut, the standbys get the last of the WAL)",
            StopMode::Immediate => "stopping it (immediate: the next start recovers)",
            StopMode::Kill => "killing all of its processes, as if the machine were lost",
        };
        progress.doing(&format!("{}: {how}", node.name()));
        server.stop(mode)?;
        progress.doing(&format!("{}: gone", node.name()));
        Ok(())
    }

    /// Starts a server as what it was, and waits until it answers; one that runs is left alone.
    pub fn start(&self, name: &str, progress: &mut dyn Progress) -> Result<(), LabError> {
        let node = self.node(name)?;
        let server = Server::of(self, node);
        if let Some(pid) = server.pid() {
            progress.doing(&format!("{}: runs already (pid {pid})", node.name()));
            return Ok(());
        }
        progress.doing(&format!("{}: starting it on port {}", node.name(), node.port()));
        server.start()?;
        let role = if server.sql("select pg_is_in_recovery()")? == "t" {
            "standby"
        } else {
            "primary"
        };
        progress.doing(&format!("{}: answers, as a {role}", node.name()));
        Ok(())
    }

    /// Makes a node, an old primary or a standby that went astray, follow the current primary.
    pub fn rejoin(&self, name: &str, progress: &mut dyn Progress) -> Result<(), LabError> {
        rejoin::rejoin(self, self.node(name)?, progress)
    }

    /// Stops a standby's replay: it keeps receiving WAL and answers from the past.
    pub fn pause_replay(&self, name: &str) -> Result<(), LabError> {
        self.set_replay(name, "select pg_wal_replay_pause()", "t")
    }

    /// Has a standby's replay go on.
    pub fn resume_replay(&self, name: &str) -> Result<(), LabError> {
        self.set_replay(name, "select pg_wal_replay_resume()", "f")
    }

    /// Stops a server's processes where they are, as if its machine hung: its connections stay, and nothing comes from it any more.
    pub fn freeze(&self, name: &str) -> Result<(), LabError> {
        Server::of(self, self.node(name)?).freeze()
    }

    /// Has a server's processes go on where they were stopped.
    pub fn thaw(&self, name: &str) -> Result<(), LabError> {
        Server::of(self, self.node(name)?).thaw()
    }

    /// Stops all servers at once and removes the folder.
    pub fn down(&self, progress: &mut dyn Progress) -> Result<(), LabError> {
        progress.doing("stopping all servers");
        let stopped: Vec<_> = thread::scope(|scope| {
            let stops: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| self.end(node))).collect();
            stops
                .into_iter()
                .map(|stop| stop.join().expect("stopping a server does not panic"))
                .collect()
        });
        stopped.into_iter().collect::<Result<(), LabError>>()?;
        progress.doing(&format!("removing {}", self.dir.display()));
        fs::remove_dir_all(&self.dir).tried(|| format!("can't remove {}", self.dir.display()))
    }

    /// Writes the proxy's configuration with other addresses than 127.0.0.1:5432 and 127.0.0.1:9432.
    pub fn write_config(&self, listen: &str, admin: &str) -> Result<PathBuf, LabError> {
        let path = self.config_path();
        self.run_as.write(&path, &proxy_config::for_lab(self, listen, admin))?;
        Ok(path)
    }

    /// The lab's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// For `pgsluice serve -c`.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("pgsluice.toml")
    }

    /// The file whose appearance asks pgsluice for a failover.
    pub fn trigger_file(&self) -> PathBuf {
        self.dir.join("failover_trigger")
    }

    /// Where the servers' programs are.
    pub fn pg_bin(&self) -> &Path {
        &self.binaries.dir
    }

    /// The servers' version, as they tell it: `15.18`.
    pub fn version(&self) -> &str {
        &self.binaries.version.text
    }

    /// The user that runs the servers.
    pub fn user(&self) -> &str {
        self.run_as.name()
    }

    pub(super) fn is_fast(&self) -> bool {
        self.fast
    }

    pub(super) fn dialect(&self) -> &Dialect {
        &self.dialect
    }

    pub(super) fn run_as(&self) -> &RunAs {
        &self.run_as
    }

    /// Where a node's archive_command puts its WAL.
    pub(super) fn archive_of(&self, node: &Node) -> PathBuf {
        self.dir.join("archive").join(node.name())
    }

    /// The server's own trigger file. One for each node: a shared one would promote every standby that sees it.
    pub(super) fn promote_file(&self, node: &Node) -> PathBuf {
        self.dir.join(format!("promote_{}", node.name()))
    }

    /// One of PostgreSQL's programs, run as the servers' user in the lab's folder.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = self.run_as.command(self.binaries.program(program));
        command.current_dir(&self.dir);
        command
    }

    /// The answer of whatever listens on a port to one statement; columns are separated by `|`.
    pub(super) fn psql(&self, port: u16, what: &str, statement: &str) -> Result<String, LabError> {
        let mut command = self.command("psql");
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d"]);
        command.arg(format!(
            "{} dbname=postgres connect_timeout=3",
            node::conninfo(port, "pgsluice-lab")
        ));
        command.args(["-c", statement]);
        tool::run(command, what, SQL_DEADLINE)
    }

    fn build(dir: &Path, options: &LabOptions, progress: &mut dyn Progress) -> Result<Self, LabError> {
        progress.told(Told::Step {
            number: 1,
            title: "find PostgreSQL's programs, and make a database cluster (initdb)",
        });
        let binaries = Binaries::find(options.pg_bin.as_deref())?;
        let dialect = Dialect::of(&binaries.version)?;
        let run_as = RunAs::choose()?;
        progress.doing(&format!(
            "PostgreSQL {} in {}, run as {}",
            binaries.version.text,
            binaries.dir.display(),
            run_as.name()
        ));
        let count = options.standbys + 1;
        let ports = match options.base_port {
            Some(base_port) => ports::in_a_row(base_port, count)?,
            None => ports::anywhere(count)?,
        };
        let nodes = ports
            .iter()
            .zip(1..)
            .map(|(&port, number)| Node::new(dir, &format!("node{number}"), port))
            .collect();
        let lab = Self {
            dir: dir.to_path_buf(),
            binaries,
            dialect,
            run_as,
            fast: options.fast,
            nodes,
        };
        lab.claim_dir()?;
        let built = steps::build(&lab, progress).and_then(|()| lab.write_manifest(Stage::Ready));
        if built.is_err() {
            // The first error is the one to tell; this one would only hide it.
            let _ = lab.down(&mut Quiet);
        }
        built.map(|()| lab)
    }

    /// Creates the folder if need be, and marks it as a lab's before anything else stands in it.
    fn claim_dir(&self) -> Result<(), LabError> {
        let missing: Vec<&Path> = self.dir.ancestors().take_while(|dir| !dir.exists()).collect();
        for dir in missing.iter().rev() {
            fs::create_dir(dir).tried(|| format!("can't make {}", dir.display()))?;
            folder::open_up(dir)?;
        }
        folder::open_up(&self.dir)?;
        self.run_as.give(&self.dir)?;
        if let Err(error) = self.check_reach() {
            for dir in missing {
                let _ = fs::remove_dir(dir);
            }
            return Err(error);
        }
        self.write_manifest(Stage::Building {
            pid: std::process::id().cast_signed(),
        })
    }

    /// Whether the servers' user can enter the folder, by running something harmless there.
    fn check_reach(&self) -> Result<(), LabError> {
        let mut command = self.command("pg_ctl");
        command.arg("--version");
        match tool::run(command, "pg_ctl", Duration::from_secs(10)) {
            Err(LabError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                Err(LabError::Unreachable {
                    dir: self.dir.clone(),
                    user: self.user().to_owned(),
                })
            }
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }

    fn write_manifest(&self, stage: Stage) -> Result<(), LabError> {
        let entries = self.nodes.iter().map(|node| NodeEntry {
            name: node.name().to_owned(),
            port: node.port(),
        });
        let manifest = Manifest {
            stage,
            pg_bin: self.binaries.dir.clone(),
            version: self.binaries.version.clone(),
            user: self.run_as.name().to_owned(),
            fast: self.fast,
            nodes: entries.collect(),
        };
        manifest.write(&self.dir, &self.run_as)
    }

    pub(super) fn open_at_any_stage(dir: &Path) -> Result<Self, LabError> {
        let manifest = Manifest::read(dir)?;
        let run_as = RunAs::owner_of(&Manifest::path_in(dir))?;
        let dialect = Dialect::of(&manifest.version)?;
        let nodes = manifest
            .nodes
            .iter()
            .map(|entry| Node::new(dir, &entry.name, entry.port))
            .collect();
        let binaries = Binaries {
            dir: manifest.pg_bin,
            version: manifest.version,
        };
        Ok(Self {
            dir: dir.to_path_buf(),
            binaries,
            dialect,
            run_as,
            fast: manifest.fast,
            nodes,
        })
    }

    fn up_again(dir: &Path, progress: &mut dyn Progress) -> Result<Self, LabError> {
        let lab = Self::open(dir)?;
        progress.doing(&format!("the lab in {} is there already", dir.display()));
        for node in &lab.nodes {
            lab.start(node.name(), progress)?;
        }
        Ok(lab)
    }

    /// Stops one server for good, by force if need be.
    fn end(&self, node: &Node) -> Result<(), LabError> {
        let server = Server::of(self, node);
        // One that was frozen would not end.
        let _ = server.thaw();
        // What remains after either is killed: a backend whose postmaster was killed may still run.
        let _ = server.stop(StopMode::Immediate);
        server.kill_all()
    }

    fn set_replay(&self, name: &str, statement: &str, paused: &str) -> Result<(), LabError> {
        let node = self.node(name)?;
        let server = Server::of(self, node);
        if server.pid().is_none() {
            return Err(server.not_running());
        }
        if server.sql("select pg_is_in_recovery()")? == "f" {
            return Err(LabError::IsPrimary {
                node: node.name().to_owned(),
            });
        }
        server.sql(statement)?;
        let what = format!("pausing or resuming replay on {}", node.name());
        tool::wait_for(&what, REPLAY_DEADLINE, || {
            Ok((server.sql("select pg_is_wal_replay_paused()")? == paused).then_some(()))
        })
    }
}

/// Tells those lines of a log that hold one of the phrases.
pub(super) fn tell_lines(progress: &mut dyn Progress, node: &Node, log: &str, phrases: &[&str]) {
    for line in log
        .lines()
        .filter(|line| phrases.iter().any(|phrase| line.contains(phrase)))
    {
        progress.told(Told::Proof {
            source: node.name(),
            line,
        });
    }
}

/// Whether a process is there, ours or not.
pub(super) fn is_running(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}
