//! What a failover has lost, as far as can be told from outside: how much log of the old primary's timeline the new one doesn't have.
//!
//! The old primary's position was sampled with every reading; the new one's history file says where the timelines part. What lies
//! between the two is gone with the old primary. It is a lower bound, since nobody knows what was written after the last
//! sample, and counts bytes of log and not transactions: vacuum writes too. Pure.

use super::lsn::{Lsn, Timeline};
use super::position::Fork;
use super::routing_table::PrimarySample;

/// Log that the primary of today doesn't have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostLog {
    /// The timeline that was left.
    pub timeline: Timeline,
    /// The old primary had come at least to this.
    pub sampled: Lsn,
    /// The new one's log goes its own way from here on.
    pub end: Lsn,
}

impl LostLog {
    /// Compares the last sample of a primary that was left with where its timeline ended. `None` where that isn't known.
    pub fn of(left: &PrimarySample, forks: &[Fork]) -> Option<LostLog> {
        // Two promotions may have come one after the other, unseen: the first of them ended the timeline.
        let fork = forks.iter().find(|fork| fork.timeline == left.timeline)?;
        Some(LostLog {
            timeline: left.timeline,
            sampled: left.insert,
            end: fork.end,
        })
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.sampled.0.saturating_sub(self.end.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::NodeId;
    use std::time::Instant;

    #[test]
    fn what_was_sampled_beyond_the_end_of_its_timeline_is_lost() {
        let left = |timeline, insert| PrimarySample {
            node: NodeId(0),
            timeline: Timeline(timeline),
            insert: Lsn(insert),
            asked_at: Instant::now(),
        };
        let forks = [(1, 50), (2, 100), (3, 300)].map(|(timeline, end)| Fork {
            timeline: Timeline(timeline),
            end: Lsn(end),
        });
        let bytes = |left: PrimarySample| LostLog::of(&left, &forks).map(|lost| lost.bytes());
        assert_eq!(bytes(left(2, 130)), Some(30));
        assert_eq!(bytes(left(2, 100)), Some(0));
        assert_eq!(bytes(left(3, 10)), Some(0));
        assert_eq!(bytes(left(4, 10)), None);
    }
}
