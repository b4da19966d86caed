//! What a read must see, as one moment in time: a standby is good enough if everything that was committed before that moment is on it.

use std::time::Instant;

use crate::cluster::NodeId;
use crate::config::Consistency;

/// What a session's history asks of its next read.
#[derive(Debug, Clone, Copy, Default)]
pub struct History {
    /// When the last statement ended that may have written: anything sent to the primary that isn't provably read-only.
    pub last_write: Option<Instant>,
    /// Where the last read on a standby ran, and when it ended.
    pub last_read: Option<(NodeId, Instant)>,
}

/// What `node` must have: everything committed before the moment, if there is one. [`Consistency::Linearizable`] reads never come here.
pub fn floor(level: Consistency, history: &History, node: NodeId) -> Option<Instant> {
    match level {
        Consistency::Eventual => None,
        Consistency::ReadYourWrites => history.last_write,
        Consistency::Session | Consistency::Linearizable => {
            // What another standby showed was committed before that read ended. The same standby only moves forward.
            let seen = history
                .last_read
                .filter(|(seen_on, _)| *seen_on != node)
                .map(|(_, at)| at);
            history.last_write.max(seen)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_level_asks_for_more() {
        let t = Instant::now();
        let (wrote, read) = (t, t + Duration::from_secs(1));
        let history = History {
            last_write: Some(wrote),
            last_read: Some((NodeId(1), read)),
        };
        let (same, other) = (NodeId(1), NodeId(2));
        assert_eq!(floor(Consistency::Eventual, &history, other), None);
        assert_eq!(floor(Consistency::ReadYourWrites, &history, other), Some(wrote));
        assert_eq!(floor(Consistency::Session, &history, other), Some(read));
        assert_eq!(floor(Consistency::Session, &history, same), Some(wrote));
    }
}
