//! What every node is at this moment, asked of the nodes themselves.

use std::fmt;
use std::str::FromStr;
use std::thread;

use serde::{Serialize, Serializer};

use super::lab::Lab;
use super::node::Node;
use super::server::Server;

/// One row a node: in recovery, timeline, WAL position, whom it streams from, replay paused.
///
/// A standby's timeline is what it receives; while it receives nothing, the control file's, which may be behind.
const READING: &str = "\
select r,
       case when r then coalesce((select nullif(received_tli, 0) from pg_stat_wal_receiver where status = 'streaming'),
                                 (select greatest(min_recovery_end_timeline, timeline_id)
                                    from pg_control_recovery(), pg_control_checkpoint()))
            else ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int end,
       case when r then coalesce(pg_last_wal_replay_lsn(), '0/0') else pg_current_wal_lsn() end,
       (select sender_port from pg_stat_wal_receiver where status = 'streaming'),
       case when r then pg_is_wal_replay_paused() else false end
  from (select pg_is_in_recovery() as r) as recovery";

/// One node at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// `node1` and so on.
    pub name: String,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// What it is among the others.
    pub role: Role,
    /// The postmaster.
    pub pid: Option<i32>,
    /// The timeline that it writes or replays.
    pub timeline: Option<u32>,
    /// What it has written (a primary) or replayed (a standby).
    pub position: Option<WalPosition>,
    /// The node that it streams from.
    pub streaming_from: Option<String>,
    /// WAL that the primary has written and this standby has not replayed. Unknown without a primary on its timeline.
    pub lag_bytes: Option<u64>,
    /// Replay was paused.
    pub replay_paused: bool,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Out of recovery, on the highest timeline that is out of recovery.
    Primary,
    /// In recovery.
    Standby,
    /// Out of recovery on a lower timeline: the others have gone on without it.
    StalePrimary,
    /// It runs and does not answer.
    Silent,
    /// No process.
    Stopped,
}

/// A position in the WAL, which PostgreSQL writes as `0/3000148`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalPosition(pub u64);

/// All nodes, asked at once.
pub(super) fn of(lab: &Lab) -> Vec<NodeStatus> {
    let mut all: Vec<NodeStatus> = thread::scope(|scope| {
        let threads: Vec<_> = lab.nodes().iter().map(|node| scope.spawn(|| read(lab, node))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("reading a node does not panic"))
            .collect()
    });
    judge(&mut all);
    all
}

fn read(lab: &Lab, node: &Node) -> NodeStatus {
    let server = Server::of(lab, node);
    let mut status = NodeStatus {
        name: node.name().to_owned(),
        port: node.port(),
        role: Role::Stopped,
        pid: server.pid().map(|pid| pid.as_raw()),
        timeline: None,
        position: None,
        streaming_from: None,
        lag_bytes: None,
        replay_paused: false,
    };
    if status.pid.is_none() {
        return status;
    }
    status.role = Role::Silent;
    let Ok(row) = server.sql(READING) else { return status };
    let fields: Vec<&str> = row.split('|').collect();
    let &[recovery, timeline, position, sender, paused] = fields.as_slice() else {
        return status;
    };
    status.role = if recovery == "t" { Role::Standby } else { Role::Primary };
    status.timeline = timeline.parse().ok();
    status.position = position.parse().ok();
    status.streaming_from = name_of_port(lab, sender);
    status.replay_paused = paused == "t";
    status
}

fn name_of_port(lab: &Lab, port: &str) -> Option<String> {
    let port: u16 = port.parse().ok()?;
    let known = lab
        .nodes()
        .iter()
        .find(|node| node.port() == port)
        .map(|node| node.name().to_owned());
    Some(known.unwrap_or_else(|| format!("port {port}")))
}

/// What the nodes are only in each other's light: which primary is stale, and how far the standbys lag.
fn judge(all: &mut [NodeStatus]) {
    let newest = all
        .iter()
        .filter(|status| status.role == Role::Primary)
        .filter_map(|status| status.timeline)
        .max();
    for status in all
        .iter_mut()
        .filter(|status| status.role == Role::Primary && status.timeline < newest)
    {
        status.role = Role::StalePrimary;
    }
    let written = all
        .iter()
        .find(|status| status.role == Role::Primary)
        .and_then(|status| status.position);
    for status in all
        .iter_mut()
        .filter(|status| status.role == Role::Standby && status.timeline == newest)
    {
        if let (Some(WalPosition(written)), Some(WalPosition(replayed))) = (written, status.position) {
            status.lag_bytes = Some(written.saturating_sub(replayed));
        }
    }
}

/// A table for people.
pub(super) fn table(all: &[NodeStatus]) -> String {
    let head = [
        "node",
        "port",
        "role",
        "timeline",
        "WAL position",
        "streams from",
        "lag bytes",
        "pid",
    ]
    .map(str::to_owned);
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(all.iter().map(row)).collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..8).map(width).collect();
    let line = |row: &[String; 8]| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row(status: &NodeStatus) -> [String; 8] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let role = match (status.role, status.replay_paused) {
        (role, true) => format!("{role}, paused"),
        (role, false) => role.to_string(),
    };
    [
        status.name.clone(),
        status.port.to_string(),
        role,
        or_dash(status.timeline.map(|timeline| timeline.to_string())),
        or_dash(status.position.map(|position| position.to_string())),
        or_dash(status.streaming_from.clone()),
        or_dash(status.lag_bytes.map(|bytes| bytes.to_string())),
        or_dash(status.pid.map(|pid| pid.to_string())),
    ]
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::StalePrimary => "stale primary",
            Self::Silent => "silent",
            Self::Stopped => "stopped",
        })
    }
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for WalPosition {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').unwrap_or(("", text));
        let (high, low) = (u32::from_str_radix(high, 16)?, u32::from_str_radix(low, 16)?);
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

impl Serialize for WalPosition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: Role, timeline: u32, position: &str) -> NodeStatus {
        NodeStatus {
            name: name.into(),
            port: 1,
            role,
            pid: Some(1),
            timeline: Some(timeline),
            position: Some(position.parse().unwrap()),
            streaming_from: None,
            lag_bytes: None,
            replay_paused: false,
        }
    }

    #[test]
    fn a_primary_on_a_lower_timeline_is_stale() {
        let mut all = [node("a", Role::Primary, 1, "0/9"), node("b", Role::Primary, 2, "0/5")];
        judge(&mut all);
        assert_eq!(all.map(|status| status.role), [Role::StalePrimary, Role::Primary]);
    }

    #[test]
    fn lag_is_known_only_on_the_primarys_timeline() {
        let mut all = [
            node("a", Role::Primary, 2, "1/10"),
            node("b", Role::Standby, 2, "1/0"),
            node("c", Role::Standby, 1, "1/0"),
        ];
        judge(&mut all);
        assert_eq!(all.map(|status| status.lag_bytes), [None, Some(16), None]);
    }

    #[test]
    fn a_position_is_read_and_written_as_postgresql_does() {
        assert_eq!("16/B374D848".parse(), Ok(WalPosition(0x16_B374_D848)));
        assert_eq!(WalPosition(0x16_B374_D848).to_string(), "16/B374D848");
        assert!("3000".parse::<WalPosition>().is_err());
    }
}
