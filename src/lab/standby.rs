//! What makes a base backup of a primary its hot standby.
//!
//! Manual: "Log-Shipping Standby Servers" (Setting Up a Standby Server). Version differences are in `versions`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use super::error::{LabError, Tried};
use super::lab::Lab;
use super::node::{Node, SUPERUSER};
use super::primary;
use super::server::Server;
use super::settings::Settings;
use super::tool;
use super::versions::{Repoint, TriggerFile};

/// A base backup of small clusters takes seconds.
const BACKUP_DEADLINE: Duration = Duration::from_secs(300);

/// Copies a running primary into `data`, with the WAL that was written meanwhile.
pub(super) fn base_backup(lab: &Lab, primary: &Node, data: &Path) -> Result<(), LabError> {
    let mut command = lab.command("pg_basebackup");
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &primary.port().to_string(),
        "-U",
        SUPERUSER,
        "--no-password",
    ]);
    command.args(["-X", "stream", "-c", "fast", "-D"]).arg(data);
    if lab.is_fast() {
        command.arg("--no-sync");
    }
    tool::run(
        command,
        &format!("pg_basebackup of {}", primary.name()),
        BACKUP_DEADLINE,
    )?;
    Ok(())
}

/// The settings that make `node` follow `primary`: a primary's, and where its WAL comes from.
pub(super) fn settings(lab: &Lab, node: &Node, primary: &Node) -> Settings {
    let mut settings = primary::settings(lab, node);
    settings.set("primary_conninfo", primary.conninfo(node.name()));
    settings.set(
        "restore_command",
        format!("cp \"{}/%f\" \"%p\"", lab.archive_of(primary).display()),
    );
    settings.set("recovery_target_timeline", "latest");
    // The default, 5 s, is how long a standby stays away after every restart of its primary.
    settings.set("wal_retrieve_retry_interval", "500ms");
    match lab.dialect().trigger_file {
        TriggerFile::Watched => {
            settings.set("promote_trigger_file", lab.promote_file(node).display().to_string());
        }
        TriggerFile::Gone => {}
    }
    settings
}

/// Makes `node`, a copy of `primary`, its standby from the next start on.
pub(super) fn configure(lab: &Lab, node: &Node, primary: &Node) -> Result<Settings, LabError> {
    let settings = settings(lab, node, primary);
    settings.write_to(&node.data().join("postgresql.conf"), lab.run_as())?;
    lab.run_as().write(&node.data().join("standby.signal"), "")?;
    // One that was left over would promote the standby as soon as it starts.
    let trigger = lab.promote_file(node);
    match fs::remove_file(&trigger) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).tried(|| format!("can't remove {}", trigger.display()))
        }
        _ => Ok(settings),
    }
}

/// Makes a standby follow `primary`; one that isn't running follows it from its next start on. Returns what was done, in words.
pub(super) fn repoint(lab: &Lab, node: &Node, primary: &Node) -> Result<&'static str, LabError> {
    configure(lab, node, primary)?;
    let server = Server::of(lab, node);
    if server.pid().is_none() {
        return Ok("from its next start on");
    }
    match lab.dialect().repoint {
        Repoint::Reload => {
            server.reload()?;
            Ok("after a reload")
        }
        Repoint::Restart => {
            server.stop(super::StopMode::Fast)?;
            server.start()?;
            Ok("after a restart")
        }
    }
}
