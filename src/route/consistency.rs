//! What a read must see, as one moment in time: a standby is good enough if everything that was committed before that moment is on it.

use std::time::{Duration, Instant};

use crate::cluster::{NodeId, NodeState, ServerIdentity};
use crate::config::Consistency;

/// A commit is on a standby as soon as it is flushed, and a moment later it shows on the primary itself: this long after a read on a standby,
/// the primary is sure to show all that the read showed. (Where commits wait for standbys there is no such bound.)
pub const FLUSHED_AND_SHOWN: Duration = Duration::from_millis(100);

/// What a session's history asks of its next read.
#[derive(Debug, Clone, Copy, Default)]
pub struct History {
    /// When the last statement ended that may have written: anything sent to the primary that isn't provably read-only.
    pub last_write: Option<Instant>,
    /// The last read.
    pub last_read: Option<LastRead>,
}

/// Where a read ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRead {
    /// The node.
    pub node: NodeId,
    /// Which run of its server, where known: one that was restarted may be behind what it has shown.
    pub server: Option<ServerIdentity>,
    /// It was a standby.
    pub on_standby: bool,
    /// When it ended.
    pub at: Instant,
}

impl History {
    /// The latest moment of which a read at this level may have to see everything.
    pub fn moment(&self, level: Consistency) -> Option<Instant> {
        match level {
            Consistency::Eventual => None,
            Consistency::ReadYourWrites => self.last_write,
            Consistency::Session | Consistency::Linearizable => self.last_write.max(self.last_read.map(|read| read.at)),
        }
    }

    /// How long the primary may still not show what the session has seen on a standby.
    pub fn until_primary_shows(&self, level: Consistency, now: Instant) -> Option<Duration> {
        let read = self
            .last_read
            .filter(|read| read.on_standby && level == Consistency::Session)?;
        let since = now.saturating_duration_since(read.at);
        FLUSHED_AND_SHOWN.checked_sub(since).filter(|rest| !rest.is_zero())
    }
}

/// What `node` must have: everything committed before the moment, if there is one. [`Consistency::Linearizable`] reads never come here.
pub fn floor(level: Consistency, history: &History, node: &NodeState) -> Option<Instant> {
    match level {
        Consistency::Eventual | Consistency::ReadYourWrites => history.moment(level),
        Consistency::Session | Consistency::Linearizable => {
            // What another node showed was committed before that read ended. The same server only moves forward.
            let same =
                |read: &LastRead| read.node == node.id && read.server.is_some() && read.server == node.server_start;
            let seen = history.last_read.filter(|read| !same(read)).map(|read| read.at);
            history.last_write.max(seen)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::RoutingTable;
    use crate::config::{Config, Overrides};

    fn standby(server: i64) -> NodeState {
        let config = Config::parse("[cluster]\nnodes = [\"127.0.0.1:1\"]\n", "test", &Overrides::default());
        let table = RoutingTable::at_start(&config.expect("a configuration").cluster.nodes, Instant::now());
        NodeState {
            server_start: Some(ServerIdentity(server)),
            ..table.nodes[0].clone()
        }
    }

    #[test]
    fn each_level_asks_for_more() {
        let t = Instant::now();
        let (wrote, read) = (t, t + Duration::from_secs(1));
        let mut history = History {
            last_write: Some(wrote),
            last_read: Some(LastRead {
                node: NodeId(0),
                server: Some(ServerIdentity(1)),
                on_standby: true,
                at: read,
            }),
        };
        let (same, restarted) = (standby(1), standby(2));
        assert_eq!(floor(Consistency::Eventual, &history, &restarted), None);
        assert_eq!(floor(Consistency::ReadYourWrites, &history, &restarted), Some(wrote));
        assert_eq!(floor(Consistency::Session, &history, &restarted), Some(read));
        assert_eq!(floor(Consistency::Session, &history, &same), Some(wrote));
        history.last_read = history.last_read.map(|read| LastRead {
            node: NodeId(1),
            ..read
        });
        assert_eq!(floor(Consistency::Session, &history, &same), Some(read));
    }

    #[test]
    fn the_primary_gets_a_moment_to_show_what_a_standby_has_shown() {
        let t = Instant::now();
        let read = LastRead {
            node: NodeId(0),
            server: None,
            on_standby: true,
            at: t,
        };
        let history = |read| History {
            last_write: None,
            last_read: Some(read),
        };
        let after = |ms| t + Duration::from_millis(ms);
        let waits = |read, level, now| history(read).until_primary_shows(level, now);
        assert_eq!(
            waits(read, Consistency::Session, after(40)),
            Some(Duration::from_millis(60))
        );
        assert_eq!(waits(read, Consistency::Session, after(100)), None);
        assert_eq!(waits(read, Consistency::ReadYourWrites, after(0)), None);
        let on_primary = LastRead {
            on_standby: false,
            ..read
        };
        assert_eq!(waits(on_primary, Consistency::Session, after(0)), None);
    }
}
