//! A place in the cluster's history that travels: what a session has seen, as text that another session, service or proxy can wait for.
//!
//! `3:0/5A01D28@7431260389410123456`: a timeline, a position in its log, and the system identifier of the cluster, so that a position
//! of another cluster can be told. The identifier may be left out. Manual: "Continuous Archiving", Timelines.

use std::fmt;
use std::str::FromStr;

use super::lsn::{Lsn, SystemIdentifier, Timeline};
use super::routing_table::RoutingTable;

/// Everything that was committed before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The timeline that was being written.
    pub timeline: Timeline,
    /// How far.
    pub lsn: Lsn,
    /// Of which cluster, if it says so.
    pub cluster: Option<SystemIdentifier>,
}

/// Where a timeline ended, and the next one began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// The last position that the next one shares with it.
    pub end: Lsn,
}

/// What a position means to a cluster as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Whoever has replayed this far has it.
    At(Lsn),
    /// It lies behind the end of its timeline: what was written there didn't survive the failover.
    Lost,
    /// It is of a timeline that this proxy hasn't heard of yet.
    Ahead,
    /// It is another cluster's.
    Elsewhere,
}

impl Position {
    /// What it means where `table` is how things are.
    pub fn reach(&self, table: &RoutingTable) -> Reach {
        if self.cluster.is_some() && table.system_identifier.is_some() && self.cluster != table.system_identifier {
            return Reach::Elsewhere;
        }
        if table.timeline.is_none_or(|timeline| timeline < self.timeline) {
            return Reach::Ahead;
        }
        let fork = table.forks.iter().find(|fork| fork.timeline == self.timeline);
        match fork {
            Some(fork) if self.lsn > fork.end => Reach::Lost,
            Some(_) | None => Reach::At(self.lsn),
        }
    }
}

/// Text that is no position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a position of the form TIMELINE:X/Y or TIMELINE:X/Y@SYSTEM_IDENTIFIER")]
pub struct NotAPosition;

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Position, NotAPosition> {
        let (place, cluster) = match text.split_once('@') {
            Some((place, cluster)) => (place, Some(number(cluster).ok_or(NotAPosition)?)),
            None => (text, None),
        };
        let (timeline, lsn) = place.split_once(':').ok_or(NotAPosition)?;
        let timeline = number(timeline).and_then(|timeline| u32::try_from(timeline).ok());
        Ok(Position {
            timeline: Timeline(timeline.filter(|timeline| *timeline != 0).ok_or(NotAPosition)?),
            lsn: lsn.parse().map_err(|_| NotAPosition)?,
            cluster: cluster.map(SystemIdentifier),
        })
    }
}

fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.timeline, self.lsn)?;
        match self.cluster {
            Some(cluster) => write!(f, "@{cluster}"),
            None => Ok(()),
        }
    }
}

/// Reads a timeline's history file (`00000003.history`): a line for each timeline before it. What isn't understood is left out.
pub fn forks(history: &str) -> Vec<Fork> {
    let fork = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        Some(Fork {
            timeline: Timeline(words.next()?.parse().ok()?),
            end: words.next()?.parse().ok()?,
        })
    };
    history.lines().filter_map(fork).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::time::Instant;

    fn position(text: &str) -> Position {
        text.parse().expect(text)
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "1:0/0",
            "3:1F/5A01D28",
            "4294967295:FFFFFFFF/FFFFFFFF@18446744073709551615",
        ] {
            assert_eq!(position(text).to_string(), text);
        }
        for text in [
            "",
            "1",
            "0/0",
            "1:",
            "0:0/1",
            "1:0/0@",
            "1:0/0@x",
            "-1:0/0",
            "+1:0/0",
            "1:0/g",
            "1: 0/0",
            "4294967296:0/0",
        ] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition), "{text}");
        }
    }

    #[test]
    fn a_position_is_reached_lost_or_unheard_of() {
        let cluster = config::Cluster {
            nodes: vec![],
            discovery: Default::default(),
            state_file: None,
            tls: config::NodeTls::default(),
        };
        let mut table = RoutingTable::at_start(&cluster.nodes, Instant::now());
        assert_eq!(position("1:0/0").reach(&table), Reach::Ahead);
        table.timeline = Some(Timeline(3));
        table.system_identifier = Some(SystemIdentifier(7));
        table.forks = forks("1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-11-26\n").into();
        let at = |lsn| Reach::At(Lsn(lsn));
        for (text, reach) in [
            ("3:0/9000000", at(0x900_0000)),
            ("3:0/9000000@7", at(0x900_0000)),
            ("3:0/9000000@8", Reach::Elsewhere),
            ("4:0/1", Reach::Ahead),
            ("1:0/3000148", at(0x300_0148)),
            ("1:0/3000149", Reach::Lost),
            ("2:0/3000149", at(0x300_0149)),
            ("2:0/5000001", Reach::Lost),
        ] {
            assert_eq!(position(text).reach(&table), reach, "{text}");
        }
        // Without the history nothing is known to be lost.
        table.forks = [].into();
        assert_eq!(position("1:0/3000149").reach(&table), at(0x300_0149));
    }
}
