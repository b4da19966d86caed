//! How fresh a standby is, from positions alone: "it holds everything that was committed before `t`".
//!
//! The monitor samples the primary's position: `(t, lsn)`, `t` being the proxy's own monotonic clock *before* it asked. Whatever
//! was committed before `t` lies before `lsn`, so a standby that has replayed `lsn` holds it all:
//!
//! ```text
//! as_of(standby) = max { t : lsn(t) <= replayed(standby) }
//! ```
//!
//! No clocks are compared, an idle primary's standbys stay fresh, and a write costs nothing. Two positions are sampled, because
//! neither alone answers both questions:
//!
//! - the **insert** position is the sound one for "sees that commit": a commit under `synchronous_commit = off` is acknowledged
//!   before it is flushed, and only what is flushed reaches a standby;
//! - the **flush** position is the right one for lag: an open transaction's records may lie unflushed for up to 15 s on an
//!   otherwise idle primary, and measured by the insert position every standby would seem to fall behind for as long.
//!
//! Samples belong to one timeline of one node. When a restarted primary has lost its unflushed tail, its positions go back, and
//! the samples of what was lost go too. A standby's own restart needs no care here: nothing about standbys is remembered.

use std::collections::VecDeque;
use std::time::Instant;

use super::lsn::{Lsn, Timeline};
use super::node::NodeId;
use super::routing_table::PrimarySample;

/// The samples of the current primary.
#[derive(Debug, Clone, Default)]
pub struct Freshness {
    source: Option<(NodeId, Timeline)>,
    inserted: SampleRing,
    flushed: SampleRing,
}

/// What the samples say about one standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fresh {
    /// It holds everything that was committed before this. `None` if it hasn't reached the oldest sample.
    pub fresh_as_of: Option<Instant>,
    /// It holds everything that was flushed before this; never earlier than `fresh_as_of`.
    pub durable_as_of: Option<Instant>,
    /// Since when there has been flushed log that it hasn't replayed, as far as the samples tell. `None` if it has reached the
    /// newest sample.
    pub behind_since: Option<Instant>,
    /// How many bytes of log that is.
    pub behind_bytes: u64,
}

impl Freshness {
    /// Takes a sample of the primary `node`, asked for at `asked_at`. Samples of another node or timeline end here.
    pub fn sample(&mut self, node: NodeId, timeline: Timeline, asked_at: Instant, insert: Lsn, flush: Lsn) {
        if self.source != Some((node, timeline)) {
            *self = Freshness {
                source: Some((node, timeline)),
                ..Freshness::default()
            };
        }
        self.inserted.push(asked_at, insert);
        self.flushed.push(asked_at, flush.min(insert));
    }

    /// The newest sample of the insert position.
    pub fn newest(&self) -> Option<PrimarySample> {
        let (node, timeline) = self.source?;
        let newest = self.inserted.0.back()?;
        Some(PrimarySample {
            node,
            timeline,
            insert: newest.lsn,
            asked_at: newest.last,
        })
    }

    /// The timeline that was sampled.
    pub fn timeline(&self) -> Option<Timeline> {
        self.source.map(|(_, timeline)| timeline)
    }

    /// When the newest sample was asked for.
    pub fn sampled_at(&self) -> Option<Instant> {
        self.inserted.0.back().map(|newest| newest.last)
    }

    /// What is known of a standby *on the sampled timeline* that has replayed up to `replayed`. `None` without a sample.
    pub fn of(&self, replayed: Lsn) -> Option<Fresh> {
        let newest = self.flushed.newest()?;
        Some(Fresh {
            fresh_as_of: self.inserted.as_of(replayed),
            durable_as_of: self.flushed.as_of(replayed),
            behind_since: self.flushed.behind_since(replayed),
            behind_bytes: newest.0.saturating_sub(replayed.0),
        })
    }
}

/// A position, and when it was seen.
#[derive(Debug, Clone, Copy)]
struct Sample {
    lsn: Lsn,
    /// When log up to `lsn`, but beyond the sample before, was first seen to exist.
    first: Instant,
    /// When the primary was last known not to have gone beyond `lsn`: everything before this moment lies before `lsn`.
    last: Instant,
}

/// Samples in strictly rising order of both time and position, in bounded memory. When it is full, neighbours become one where
/// they are closer together than a share of their age: what is recent stays exact, what is old gets coarse, and at four samples
/// a second it reaches back for days. Only then does it forget its oldest.
#[derive(Debug, Clone, Default)]
struct SampleRing(VecDeque<Sample>);

impl SampleRing {
    const CAPACITY: usize = 512;
    /// A sample may be as wide as this fraction of its age: an old lag is exact to 3 %.
    const AGE_PER_WIDTH: u32 = 32;

    fn push(&mut self, asked_at: Instant, lsn: Lsn) {
        if self.0.back().is_some_and(|newest| asked_at < newest.last) {
            return; // a late answer; a newer sample stands
        }
        while self.0.back().is_some_and(|newest| newest.lsn > lsn) {
            self.0.pop_back(); // went back: that log was lost in a crash
        }
        match self.0.back_mut() {
            Some(newest) if newest.lsn == lsn => newest.last = asked_at,
            Some(_) | None => {
                if self.0.len() == Self::CAPACITY {
                    self.thin_out();
                }
                self.0.push_back(Sample {
                    lsn,
                    first: asked_at,
                    last: asked_at,
                });
            }
        }
    }

    /// Merging errs on the side of "older": the merged sample is reached at the later position, and began at the earlier time.
    fn thin_out(&mut self) {
        let Some(now) = self.0.back().map(|newest| newest.last) else {
            return;
        };
        let mut kept: VecDeque<Sample> = VecDeque::with_capacity(Self::CAPACITY);
        for sample in self.0.drain(..) {
            let age = now.saturating_duration_since(sample.last);
            // The oldest stays as it is: who has reached it and no more is known by it.
            let first = kept.len() <= 1;
            match kept.back_mut() {
                Some(earlier) if !first && (sample.last - earlier.first) * Self::AGE_PER_WIDTH <= age => {
                    *earlier = Sample {
                        first: earlier.first,
                        ..sample
                    };
                }
                Some(_) | None => kept.push_back(sample),
            }
        }
        if kept.len() == Self::CAPACITY {
            kept.pop_front();
        }
        self.0 = kept;
    }

    fn newest(&self) -> Option<Lsn> {
        self.0.back().map(|sample| sample.lsn)
    }

    fn as_of(&self, replayed: Lsn) -> Option<Instant> {
        let reached = self.0.partition_point(|sample| sample.lsn <= replayed);
        Some(self.0.get(reached.checked_sub(1)?)?.last)
    }

    fn behind_since(&self, replayed: Lsn) -> Option<Instant> {
        let reached = self.0.partition_point(|sample| sample.lsn <= replayed);
        self.0.get(reached).map(|sample| sample.first)
    }
}

#[cfg(test)]
#[path = "freshness_tests.rs"]
mod tests;
