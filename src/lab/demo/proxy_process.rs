//! The proxy as the demo's child.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::local;
use crate::lab::error::{LabError, Tried};
use crate::lab::lab::Lab;
use crate::lab::server::last_lines;

/// After SIGTERM the proxy lets transactions end; a demo's are short.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// A running `pgsluice serve`. Killed when dropped.
pub(super) struct ProxyProcess {
    child: Child,
    log: PathBuf,
}

impl ProxyProcess {
    /// Starts this program, or another one, on the lab's configuration.
    pub(super) fn start(program: Option<&Path>, lab: &Lab, port: u16) -> Result<Self, LabError> {
        let program = match program {
            Some(program) => program.to_path_buf(),
            None => std::env::current_exe().tried(|| "can't find this program".into())?,
        };
        let log = lab.dir().join("pgsluice.log");
        let cant = || format!("can't write {}", log.display());
        let stdout = File::create(&log).tried(cant)?;
        let stderr = stdout.try_clone().tried(cant)?;
        say!(
            "\nstarting {} serve -c {} --listen {}",
            program.display(),
            lab.config_path().display(),
            local(port)
        );
        let mut command = Command::new(&program);
        command
            .args(["serve", "-c"])
            .arg(lab.config_path())
            .args(["--listen", &local(port)]);
        command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .kill_on_drop(true);
        // Ctrl-C at the terminal is for the demo alone, which then ends its parts in their order.
        command.process_group(0);
        let child = command.spawn().tried(|| format!("can't run {}", program.display()))?;
        Ok(Self { child, log })
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.child.id().map(u32::cast_signed)
    }

    /// Waits until it ends by itself, and tells how. Dropping it loses nothing.
    pub(super) async fn ended(&mut self) -> String {
        let how = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        match last_lines(&self.log, 15) {
            log if log.is_empty() => format!("{how}, and its log is empty"),
            log => format!("{how}; its log ends with:\n{log}"),
        }
    }

    /// SIGTERM, and SIGKILL for one that doesn't heed it.
    pub(super) async fn end(mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if timeout(END_DEADLINE, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}
