//! One server as a process: start, stop, kill, its log, and asking it something through `psql`.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::StopMode;
use super::error::{LabError, Tried};
use super::lab::Lab;
use super::node::Node;
use super::ports;
use super::tool;

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// What a server says when its port is taken.
const PORT_TAKEN: &str = "could not bind IPv4 address";

/// One node's server.
#[derive(Clone, Copy)]
pub(super) struct Server<'a> {
    lab: &'a Lab,
    node: &'a Node,
}

/// How far a log had been written: what comes after it is news.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogPosition(u64);

impl<'a> Server<'a> {
    pub(super) fn of(lab: &'a Lab, node: &'a Node) -> Self {
        Self { lab, node }
    }

    /// The postmaster, if it lives: `postmaster.pid` outlives a kill, and its number may by then be another program's.
    pub(super) fn pid(&self) -> Option<Pid> {
        let file = fs::read_to_string(self.lock_file()).ok()?;
        let pid = Pid::from_raw(file.lines().next()?.trim().parse().ok()?);
        let ours = kill(pid, None).is_ok() && !works_elsewhere(pid, &self.node.data());
        (ours && is_alive(pid)).then_some(pid)
    }

    /// Starts it and waits until it answers; one that runs is left alone.
    pub(super) fn start(&self) -> Result<(), LabError> {
        if self.pid().is_none() {
            self.clear_after_kill()?;
            ports::check_free(self.node.port())?;
            self.pg_ctl_start()?;
        }
        let what = format!("an answer from {}", self.node.name());
        let answered = tool::wait_for(&what, START_DEADLINE, || match self.pid() {
            None => Err(self.start_failed("it stopped again")),
            Some(_) => Ok(self.sql("select 1").ok()),
        });
        answered.map(drop).map_err(|error| self.with_log(error))
    }

    /// Stops it and waits until it is gone; one that doesn't run is left alone.
    pub(super) fn stop(&self, mode: StopMode) -> Result<(), LabError> {
        let Some(postmaster) = self.pid() else { return Ok(()) };
        let signal = match mode {
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
            StopMode::Kill => return self.kill_all(),
        };
        send(postmaster, signal)?;
        let stopped = tool::wait_for(&format!("the end of {}", self.node.name()), STOP_DEADLINE, || {
            Ok((!is_alive(postmaster)).then_some(()))
        });
        stopped.map_err(|error| self.with_log(error))
    }

    /// SIGKILL for the postmaster and all that it started, as if the machine were lost: `postmaster.pid` stays. The postmaster is
    /// stopped first, or it would start others in the meantime.
    pub(super) fn kill_all(&self) -> Result<(), LabError> {
        if let Some(postmaster) = self.pid() {
            send(postmaster, Signal::SIGSTOP)?;
        }
        let all = self.processes();
        for &process in &all {
            send(process, Signal::SIGKILL)?;
        }
        tool::wait_for(&format!("the death of {}", self.node.name()), STOP_DEADLINE, || {
            Ok(all.iter().all(|&process| !is_alive(process)).then_some(()))
        })
    }

    /// Stops all of its processes where they are: it answers nobody, and nobody is told that it won't.
    pub(super) fn freeze(&self) -> Result<(), LabError> {
        let Some(postmaster) = self.pid() else {
            return Err(self.not_running());
        };
        send(postmaster, Signal::SIGSTOP)?;
        self.processes()
            .into_iter()
            .try_for_each(|process| send(process, Signal::SIGSTOP))
    }

    /// Has all of its processes go on.
    pub(super) fn thaw(&self) -> Result<(), LabError> {
        self.processes()
            .into_iter()
            .try_for_each(|process| send(process, Signal::SIGCONT))
    }

    /// Has it read its configuration again.
    pub(super) fn reload(&self) -> Result<(), LabError> {
        match self.pid() {
            Some(postmaster) => send(postmaster, Signal::SIGHUP),
            None => Err(self.not_running()),
        }
    }

    /// Ends recovery, and waits for that.
    pub(super) fn promote(&self) -> Result<(), LabError> {
        let mut command = self.lab.command("pg_ctl");
        command.args(["promote", "-w", "-t", "60", "-D"]).arg(self.node.data());
        tool::run(
            command,
            &format!("pg_ctl promote of {}", self.node.name()),
            START_DEADLINE,
        )?;
        let what = format!("the end of recovery on {}", self.node.name());
        tool::wait_for(&what, START_DEADLINE, || {
            Ok((self.sql("select pg_is_in_recovery()")? == "f").then_some(()))
        })
    }

    /// The answer to one statement; columns are separated by `|`.
    pub(super) fn sql(&self, statement: &str) -> Result<String, LabError> {
        self.lab
            .psql(self.node.port(), &format!("psql on {}", self.node.name()), statement)
    }

    /// Where the log ends now.
    pub(super) fn log_position(&self) -> LogPosition {
        LogPosition(fs::metadata(self.node.log()).map_or(0, |found| found.len()))
    }

    /// What the log has gained since.
    pub(super) fn log_since(&self, position: LogPosition) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut log) = File::open(self.node.log()) {
            let read = log
                .seek(SeekFrom::Start(position.0))
                .and_then(|_| log.read_to_end(&mut bytes));
            if read.is_err() {
                return String::new();
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(super) fn not_running(&self) -> LabError {
        LabError::NotRunning {
            node: self.node.name().to_owned(),
        }
    }

    /// An error that was waited for, with the log's last lines.
    pub(super) fn with_log(&self, error: LabError) -> LabError {
        match error {
            LabError::Timeout { what, after, .. } => LabError::Timeout {
                what,
                after,
                detail: format!("; its log ends with:\n{}", last_lines(&self.node.log(), 10)),
            },
            other => other,
        }
    }

    fn pg_ctl_start(&self) -> Result<(), LabError> {
        let before = self.log_position();
        let mut command = self.lab.command("pg_ctl");
        command
            .args(["start", "-w", "-s", "-t", "60", "-D"])
            .arg(self.node.data());
        command.arg("-l").arg(self.node.log());
        match tool::run(
            command,
            &format!("pg_ctl start of {}", self.node.name()),
            START_DEADLINE * 2,
        ) {
            Ok(_) => Ok(()),
            Err(_) if self.log_since(before).contains(PORT_TAKEN) => Err(LabError::PortTaken {
                port: self.node.port(),
                by: ports::holder(self.node.port()),
            }),
            Err(error) => Err(self.start_failed(&error.to_string())),
        }
    }

    fn start_failed(&self, why: &str) -> LabError {
        let log = last_lines(&self.node.log(), 10);
        LabError::Tool {
            what: format!("starting {}", self.node.name()),
            output: format!("{why}; its log ends with:\n{log}"),
        }
    }

    /// After a kill: ends what is left of the old server, which may still write, and removes a lock file that nobody holds.
    pub(super) fn clear_after_kill(&self) -> Result<(), LabError> {
        self.kill_all()?;
        match fs::remove_file(self.lock_file()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).tried(|| format!("can't remove {}", self.lock_file().display()))
            }
            _ => Ok(()),
        }
    }

    fn lock_file(&self) -> PathBuf {
        self.node.data().join("postmaster.pid")
    }

    /// The postmaster, its descendants (an archive_command too), and servers that lost their postmaster: they still work in the
    /// data directory. Without /proc it is the postmaster alone, whose children end when they see it gone.
    fn processes(&self) -> Vec<Pid> {
        let postmaster = self.pid();
        let all = all_processes();
        let mut found: Vec<Pid> = postmaster.into_iter().collect();
        let orphans = all
            .iter()
            .filter(|process| process.name == "postgres" && works_in(process.pid, &self.node.data()));
        found.extend(
            orphans
                .map(|process| process.pid)
                .filter(|&pid| Some(pid) != postmaster),
        );
        let mut next = 0;
        while let Some(&parent) = found.get(next) {
            let children: Vec<Pid> = all
                .iter()
                .filter(|process| process.parent == parent)
                .map(|process| process.pid)
                .collect();
            found.extend(
                children
                    .into_iter()
                    .filter(|child| !found.contains(child))
                    .collect::<Vec<_>>(),
            );
            next += 1;
        }
        found
    }
}

/// The last lines of a file, or that there is none.
pub(super) fn last_lines(file: &Path, count: usize) -> String {
    let text = fs::read(file)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// One line of /proc.
struct Process {
    pid: Pid,
    parent: Pid,
    name: String,
}

fn all_processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| {
        let (name, state_and_parent) = stat_of(Pid::from_raw(pid))?;
        let parent = state_and_parent.split_whitespace().nth(1)?.parse().ok()?;
        Some(Process {
            pid: Pid::from_raw(pid),
            parent: Pid::from_raw(parent),
            name,
        })
    })
    .collect()
}

/// `/proc/<pid>/stat` is `pid (name) state ppid …`, and the name may hold anything.
fn stat_of(pid: Pid) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, name) = before.split_once('(')?;
    Some((name.to_owned(), after.to_owned()))
}

/// Whether it runs. A zombie doesn't, though it can be signalled: where nobody reaps orphans (a container whose first process is
/// no init) it stays for good.
fn is_alive(pid: Pid) -> bool {
    if kill(pid, None) == Err(Errno::ESRCH) {
        return false;
    }
    !matches!(stat_of(pid), Some((_, state)) if state.starts_with('Z'))
}

fn works_in(pid: Pid, dir: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir)
}

/// Whether it is known to work in another folder. A postmaster works in its data directory.
fn works_elsewhere(pid: Pid, dir: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd != dir)
}

/// Signals a process; one that is gone already is no error.
fn send(pid: Pid, signal: Signal) -> Result<(), LabError> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()).tried(|| format!("can't send {signal} to process {pid}")),
    }
}
