//! Whether a standby is fit for reads: the verdict, and why not.
//!
//! A lag near the limit would flip the verdict with every reading, so it has hysteresis: out when the lag is above `max_lag`,
//! back in when it was below half of that in two readings in a row.

use std::fmt;

/// Whether a node takes reads, as far as the node itself is concerned; a session's consistency level may ask for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Serving {
    /// It does. (On a primary: it would, `read_from_primary` decides.)
    Serving,
    /// It lags further than `max_lag`, or hasn't been back within half of it for long enough.
    Lagging,
    /// There is no recent position of a primary to measure it against: no primary, or one that has just come back and to which
    /// the standbys are still reconnecting. What it has replayed stays what it was, so `fresh_as_of` still tells the truth.
    LagUnknown,
    /// It isn't known to follow the primary's timeline. It may have gone another way, and show rows that no longer exist.
    OtherTimeline,
    /// A stale primary.
    Fenced,
    /// A server of another cluster.
    Foreign,
    /// Could not be asked lately, or not yet.
    Unreachable,
}

impl Serving {
    /// The name in logs, metrics and `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Serving::Serving => "serving",
            Serving::Lagging => "lagging",
            Serving::LagUnknown => "lag_unknown",
            Serving::OtherTimeline => "other_timeline",
            Serving::Fenced => "fenced",
            Serving::Foreign => "foreign",
            Serving::Unreachable => "unreachable",
        }
    }
}

impl fmt::Display for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
