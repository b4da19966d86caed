//! Whether a standby is fit for reads: the verdict, and why not.
//!
//! A lag near the limit would flip the verdict with every reading, so it has hysteresis: out when the lag is above `max_lag`,
//! back in when it was no more than half of that in two readings in a row.

use std::fmt;
use std::time::Duration;

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

/// A standby's lag, as measured with one of its readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lag {
    /// It had not replayed what the primary had had for this long.
    Known(Duration),
    /// Nothing to measure against.
    Unknown,
}

/// The verdict on a standby that follows the primary, with what the next one needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The verdict.
    pub serving: Serving,
    /// Readings in a row with no more than half of the lag allowed.
    good_readings: u8,
}

/// So many good readings in a row bring a lagging standby back.
const READINGS_TO_RETURN: u8 = 2;

impl Verdict {
    /// A verdict for a reason that has nothing to do with lag; what was known of the lag ends with it.
    pub fn because(serving: Serving) -> Verdict {
        Verdict {
            serving,
            good_readings: 0,
        }
    }

    /// The verdict after one more reading. A standby of which nothing was known serves with its first reading below `max_lag`.
    #[must_use]
    pub fn after(self, lag: Lag, max_lag: Duration) -> Verdict {
        match (lag, self.serving) {
            (Lag::Unknown, _) => Verdict::because(Serving::LagUnknown),
            (Lag::Known(lag), _) if lag > max_lag => Verdict::because(Serving::Lagging),
            (Lag::Known(lag), Serving::Lagging) if lag > max_lag / 2 => Verdict::because(Serving::Lagging),
            (Lag::Known(_), Serving::Lagging) => match self.good_readings + 1 {
                READINGS_TO_RETURN.. => Verdict::because(Serving::Serving),
                good_readings => Verdict {
                    serving: Serving::Lagging,
                    good_readings,
                },
            },
            (
                Lag::Known(_),
                Serving::Serving
                | Serving::LagUnknown
                | Serving::OtherTimeline
                | Serving::Fenced
                | Serving::Foreign
                | Serving::Unreachable,
            ) => Verdict::because(Serving::Serving),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(10);

    fn known(seconds: u64) -> Lag {
        Lag::Known(Duration::from_secs(seconds))
    }

    #[test]
    fn a_standby_goes_out_above_the_limit_and_returns_after_two_readings_within_half_of_it() {
        let mut verdict = Verdict::because(Serving::Unreachable);
        for (lag, serving) in [
            (known(9), Serving::Serving),
            (known(10), Serving::Serving),
            (known(11), Serving::Lagging),
            (known(9), Serving::Lagging),
            (known(4), Serving::Lagging),
            (known(6), Serving::Lagging), // above half: counts from the start again
            (known(4), Serving::Lagging),
            (known(4), Serving::Serving),
            (known(9), Serving::Serving),
            (Lag::Unknown, Serving::LagUnknown),
            (known(9), Serving::Serving),
            (known(3600), Serving::Lagging),
            (Lag::Unknown, Serving::LagUnknown),
        ] {
            verdict = verdict.after(lag, MAX);
            assert_eq!(verdict.serving, serving, "{lag:?}");
        }
    }

    #[test]
    fn a_limit_of_zero_lets_a_standby_serve_that_has_everything() {
        let verdict = Verdict::because(Serving::Unreachable).after(known(0), Duration::ZERO);
        assert_eq!(verdict.serving, Serving::Serving);
        assert_eq!(verdict.after(known(1), Duration::ZERO).serving, Serving::Lagging);
    }
}
