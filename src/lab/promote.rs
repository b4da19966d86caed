//! A promotion by hand: one standby becomes the primary, and the other standbys follow it.
//!
//! An old primary is left as it is, running or not: whether its last commits may be thrown away is for `rejoin` to be asked.

use std::time::Duration;

use super::error::LabError;
use super::lab::{Lab, tell_lines};
use super::node::Node;
use super::progress::Progress;
use super::server::Server;
use super::{rejoin, standby};

/// How long a standby gets to follow the new primary.
const FOLLOW_DEADLINE: Duration = Duration::from_secs(10);

/// Ends recovery on `node`, and re-points the others.
pub(super) fn promote(lab: &Lab, node: &Node, progress: &mut dyn Progress) -> Result<(), LabError> {
    let server = Server::of(lab, node);
    if server.pid().is_none() {
        return Err(server.not_running());
    }
    if server.sql("select pg_is_in_recovery()")? == "f" {
        return Err(LabError::IsPrimary {
            node: node.name().to_owned(),
        });
    }
    progress.doing(&format!("{}: promoting it", node.name()));
    let before = server.log_position();
    server.promote()?;
    tell_lines(
        progress,
        node,
        &server.log_since(before),
        &["new timeline ID", "archive recovery complete"],
    );
    // pg_rewind reads the timeline from the control file, which only a checkpoint brings up to date.
    server.sql("checkpoint")?;
    let timeline = server.sql("select timeline_id from pg_control_checkpoint()")?;
    progress.doing(&format!("{}: takes writes, on timeline {timeline}", node.name()));
    for other in lab.nodes().iter().filter(|other| *other != node) {
        follow(lab, other, node, progress)?;
    }
    Ok(())
}

/// Has a standby follow the new primary; of an old primary it only says what it is.
fn follow(lab: &Lab, other: &Node, primary: &Node, progress: &mut dyn Progress) -> Result<(), LabError> {
    let server = Server::of(lab, other);
    if !other.data().join("standby.signal").exists() {
        let state = if server.pid().is_some() {
            "still runs as a primary"
        } else {
            "is an old primary, stopped"
        };
        progress.warn(&format!(
            "{} {state}; `rejoin {}` makes it follow {}",
            other.name(),
            other.name(),
            primary.name()
        ));
        return Ok(());
    }
    let when = standby::repoint(lab, other, primary)?;
    progress.doing(&format!("{}: follows {} {when}", other.name(), primary.name()));
    if server.pid().is_some() && rejoin::wait_until_following(lab, other, primary, FOLLOW_DEADLINE).is_err() {
        progress.warn(&format!(
            "{} does not stream from {}: it may hold WAL that {} never had; `rejoin {}` mends that",
            other.name(),
            primary.name(),
            primary.name(),
            other.name()
        ));
    }
    Ok(())
}
