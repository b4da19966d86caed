//! One demo at a time in a folder: a lock that the kernel drops with the process, on a file that says how to reach the demo.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::proxy_process::ProxyProcess;
use super::{Ports, local};
use crate::lab::error::{LabError, Tried};
use crate::lab::lab::{Lab, is_running};
use crate::lab::progress::Quiet;

/// The right to run the demo in a folder, until dropped.
pub(super) struct Claim {
    file: File,
    path: PathBuf,
}

/// Whose the folder is.
pub(super) enum Claimed {
    Ours(Claim),
    /// Another process's demo.
    Running(Running),
}

/// A running demo, as its lock file tells it. Empty while it is being built.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Running {
    pub(super) pid: u32,
    proxy_pid: Option<i32>,
    dsn: Option<String>,
    status_page: Option<String>,
    config: Option<PathBuf>,
}

impl Claim {
    pub(super) fn take(dir: &Path) -> Result<Claimed, LabError> {
        let path = dir.with_extension("lock");
        let cant = || format!("can't lock {}", path.display());
        let mut options = OpenOptions::new();
        // A link that someone else put in a shared folder must not have us write where it points.
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = options.open(&path).tried(cant)?;
        match file.try_lock() {
            Ok(()) => Ok(Claimed::Ours(Self { file, path })),
            Err(TryLockError::WouldBlock) => Ok(Claimed::Running(read(&file))),
            Err(TryLockError::Error(error)) => Err(error).tried(cant),
        }
    }

    /// Ends the proxy and the lab of a demo that was killed, and announces this one.
    pub(super) fn remove_leftovers(&mut self, dir: &Path) -> Result<(), LabError> {
        let earlier = read(&self.file);
        if let Some(proxy) = earlier.proxy_pid.filter(|&pid| earlier.is_proxy(pid)) {
            let _ = kill(Pid::from_raw(proxy), Signal::SIGKILL);
        }
        match Lab::open_for_down(dir) {
            Ok(lab) => {
                say!("An earlier demo did not end properly; what it left is removed.");
                lab.down(&mut Quiet)?;
            }
            // Not a lab's: `up` will say what it thinks of the folder.
            Err(LabError::NotALab { .. }) => {}
            Err(error) => return Err(error),
        }
        self.record(&Running {
            pid: std::process::id(),
            ..Running::default()
        })
    }

    pub(super) fn record(&mut self, running: &Running) -> Result<(), LabError> {
        let text = serde_json::to_string(running).map_err(|source| LabError::Manifest {
            path: self.path.clone(),
            source,
        })?;
        let written = self
            .file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .and_then(|_| self.file.write_all(text.as_bytes()));
        written.tried(|| format!("can't write {}", self.path.display()))
    }
}

impl Drop for Claim {
    /// Emptied, not removed: removing a locked file lets a third process lock a new one beside a second that waits for the old.
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
    }
}

impl Running {
    pub(super) fn new(proxy: &ProxyProcess, lab: &Lab, ports: Ports) -> Self {
        Self {
            pid: std::process::id(),
            proxy_pid: proxy.pid(),
            dsn: Some(format!("postgresql://postgres@{}/postgres", local(ports.listen))),
            status_page: Some(format!("http://{}/", local(ports.admin))),
            config: Some(lab.config_path()),
        }
    }

    pub(super) fn how_to_reach(&self) -> String {
        match (&self.dsn, &self.status_page) {
            (Some(dsn), Some(page)) => format!("  connect      psql {dsn}\n  status page  {page}"),
            _ => "It is still being built.".to_owned(),
        }
    }

    /// Whether a process is that demo's proxy: its command line names that demo's configuration.
    fn is_proxy(&self, pid: i32) -> bool {
        let Some(config) = self.config.as_deref().and_then(Path::to_str) else {
            return false;
        };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_running(pid) && String::from_utf8_lossy(&line).contains(config)
    }
}

fn read(file: &File) -> Running {
    let mut text = String::new();
    let mut file = file;
    let read = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_string(&mut text));
    read.ok()
        .and_then(|_| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}
