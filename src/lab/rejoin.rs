//! Making a node follow the current primary, whatever it has been doing.
//!
//! A standby that holds nothing that the primary never had is only told whom to follow. An old primary, or a standby that went past
//! the point where the timelines part, has WAL that is no part of the cluster's history: `pg_rewind` takes it back to before that
//! point, and where it can't, a new base backup replaces the node.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use super::StopMode;
use super::error::{LabError, Tried};
use super::lab::{Lab, tell_lines};
use super::node::Node;
use super::progress::{Progress, Told};
use super::server::{LogPosition, Server};
use super::status::{NodeStatus, Role};
use super::versions::Rewind;
use super::{primary, standby, tool};

const FOLLOW_DEADLINE: Duration = Duration::from_secs(15);
const REWIND_DEADLINE: Duration = Duration::from_secs(300);

/// What a server says that can never follow as it is.
const ASTRAY: [&str; 4] = [
    "is not in this server's history",
    "is not a child of this server's history",
    "before current recovery point",
    "is ahead of the WAL flush position",
];

/// Makes `node` a standby of the primary, and waits until it streams.
pub(super) fn rejoin(lab: &Lab, node: &Node, progress: &mut dyn Progress) -> Result<(), LabError> {
    let primary = primary_for(lab, node)?;
    let (name, followed) = (node.name(), primary.name());
    if is_following(lab, node, primary)? {
        progress.doing(&format!("{name}: streams from {followed} already"));
        return Ok(());
    }
    if node.data().join("standby.signal").exists() && only_repoint(lab, node, primary, progress)? {
        return Ok(());
    }
    progress.doing(&format!("{name}: stopping it, to take back what {followed} never had"));
    Server::of(lab, node).stop(StopMode::Fast)?;
    Server::of(lab, node).clear_after_kill()?;
    // pg_rewind reads the primary's timeline from its control file, which only a checkpoint brings up to date.
    Server::of(lab, primary).sql("checkpoint")?;
    if let Err(error) = rewind(lab, node, primary, progress) {
        progress.warn(&format!(
            "pg_rewind can't ({error}); a new base backup replaces the node"
        ));
        replace(lab, node, primary)?;
    }
    primary::configure(lab, node)?;
    standby::configure(lab, node, primary)?;
    let server = Server::of(lab, node);
    let before = server.log_position();
    server.start()?;
    wait_until_following(lab, node, primary, FOLLOW_DEADLINE)?;
    tell_following(lab, node, primary, before, progress);
    Ok(())
}

/// Waits until `node` streams from `primary`, on its timeline. Ends early when the node's log says that this can't be.
pub(super) fn wait_until_following(lab: &Lab, node: &Node, primary: &Node, deadline: Duration) -> Result<(), LabError> {
    let server = Server::of(lab, node);
    let before = server.log_position();
    let what = format!("streaming from {} to {}", primary.name(), node.name());
    let waited = tool::wait_for(&what, deadline, || {
        if server.pid().is_none() {
            return Err(server.not_running());
        }
        if is_following(lab, node, primary)? {
            return Ok(Some(()));
        }
        match astray(&server.log_since(before)) {
            Some(output) => Err(LabError::Tool {
                what: what.clone(),
                output,
            }),
            None => Ok(None),
        }
    });
    waited.map_err(|error| server.with_log(error))
}

/// The running primary on the highest timeline, other than `node`. A node on a higher timeline than all others is the primary
/// itself; on the same one, that's a split brain, and the caller has chosen who has to give way.
fn primary_for<'a>(lab: &'a Lab, node: &Node) -> Result<&'a Node, LabError> {
    let all = lab.status();
    let runs_as_primary = |status: &&NodeStatus| matches!(status.role, Role::Primary | Role::StalePrimary);
    let own = all
        .iter()
        .filter(runs_as_primary)
        .find(|status| status.name == node.name())
        .and_then(|own| own.timeline);
    let others = all
        .iter()
        .filter(runs_as_primary)
        .filter(|status| status.name != node.name());
    let best = others.max_by_key(|status| status.timeline);
    match best {
        Some(best) if own <= best.timeline => lab.node(&best.name),
        _ if own.is_some() => Err(LabError::IsPrimary {
            node: node.name().to_owned(),
        }),
        _ => Err(LabError::NoPrimary),
    }
}

fn is_following(lab: &Lab, node: &Node, primary: &Node) -> Result<bool, LabError> {
    if Server::of(lab, node).pid().is_none() {
        return Ok(false);
    }
    let all = lab.status();
    let timeline = |name: &str| {
        all.iter()
            .find(|status| status.name == name)
            .and_then(|status| status.timeline)
    };
    let follows = |status: &NodeStatus| {
        status.name == node.name()
            && status.role == Role::Standby
            && status.streaming_from.as_deref() == Some(primary.name())
    };
    Ok(all.iter().any(follows) && timeline(node.name()) == timeline(primary.name()))
}

/// Tells a standby whom to follow, and sees whether it can.
fn only_repoint(lab: &Lab, node: &Node, primary: &Node, progress: &mut dyn Progress) -> Result<bool, LabError> {
    let server = Server::of(lab, node);
    let before = server.log_position();
    standby::repoint(lab, node, primary)?;
    progress.doing(&format!("{}: told to follow {}", node.name(), primary.name()));
    let following = server
        .start()
        .and_then(|()| wait_until_following(lab, node, primary, FOLLOW_DEADLINE));
    match following {
        Ok(()) => {
            tell_following(lab, node, primary, before, progress);
            Ok(true)
        }
        Err(error) => {
            progress.doing(&format!("{}: can't follow as it is: {error}", node.name()));
            Ok(false)
        }
    }
}

fn rewind(lab: &Lab, node: &Node, primary: &Node, progress: &mut dyn Progress) -> Result<(), LabError> {
    if lab.dialect().rewind == Rewind::WantsCleanStop {
        let mut single = lab.command("postgres");
        single.args(["--single", "-F", "-D"]).arg(node.data()).arg("template1");
        tool::run(single, "crash recovery before pg_rewind", REWIND_DEADLINE)?;
    }
    let mut command = lab.command("pg_rewind");
    command.arg("--target-pgdata").arg(node.data());
    command
        .arg("--source-server")
        .arg(format!("{} dbname=postgres", primary.conninfo("pg_rewind")));
    if lab.is_fast() {
        command.arg("--no-sync");
    }
    progress.doing(&format!(
        "pg_rewind --target-pgdata {} --source-server 'port={} …'",
        node.data().display(),
        primary.port()
    ));
    let said = tool::run_loud(command, "pg_rewind", REWIND_DEADLINE)?;
    for line in said
        .lines()
        .filter(|line| line.contains("diverged") || line.contains("rewind") || line.contains("Done"))
    {
        progress.told(Told::Proof {
            source: node.name(),
            line,
        });
    }
    Ok(())
}

/// A new base backup in the place of the old data directory, which goes only once the new one is whole.
fn replace(lab: &Lab, node: &Node, primary: &Node) -> Result<(), LabError> {
    let (old, new) = (node.data(), node.dir().join("data.new"));
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).tried(|| format!("can't remove {}", new.display()));
        }
        _ => {}
    }
    standby::base_backup(lab, primary, &new)?;
    fs::remove_dir_all(&old).tried(|| format!("can't remove {}", old.display()))?;
    fs::rename(&new, &old).tried(|| format!("can't rename {}", new.display()))
}

fn tell_following(lab: &Lab, node: &Node, primary: &Node, before: LogPosition, progress: &mut dyn Progress) {
    let log = Server::of(lab, node).log_since(before);
    tell_lines(progress, node, &log, &["started streaming WAL"]);
    progress.doing(&format!("{}: streams from {}", node.name(), primary.name()));
}

/// The line of a log that says that the node can't follow as it is.
fn astray(log: &str) -> Option<String> {
    log.lines()
        .find(|line| ASTRAY.iter().any(|phrase| line.contains(phrase)))
        .map(str::to_owned)
}
