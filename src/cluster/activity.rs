//! Whether clients send statements: so that a proxy without traffic costs its cluster little.
//!
//! A statement's share of this is one relaxed load, so there is no clock in it: a timer looks every [`LOOK_EVERY`] whether
//! anything came since it last looked, and after [`IDLE_LOOKS`] looks without, probing slows down until the next statement.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// How often the coordinator looks.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After this many looks that found no statement (so after 30 to 40 seconds) the proxy counts as idle.
const IDLE_LOOKS: u8 = 3;

/// How many looks in a row have found no statement, up to [`IDLE_LOOKS`].
pub(super) struct Activity(AtomicU8);

impl Activity {
    /// Starts as busy: the first seconds are when clients come.
    pub(super) fn new() -> Activity {
        Activity(AtomicU8::new(0))
    }

    /// A statement came. True if it ends an idle time, once: somebody should ask the nodes now.
    pub(super) fn note(&self) -> bool {
        // Writing only on a change keeps the cache line shared between threads.
        self.0.load(Ordering::Relaxed) != 0 && self.0.swap(0, Ordering::Relaxed) >= IDLE_LOOKS
    }

    /// The timer looks. True if this is the look that finds the proxy idle.
    pub(super) fn look(&self) -> bool {
        let looks = self.0.load(Ordering::Relaxed);
        // A statement that comes between the load and the store is forgotten until the next one; no harm at this pace.
        self.0.store(looks.saturating_add(1).min(IDLE_LOOKS), Ordering::Relaxed);
        looks + 1 == IDLE_LOOKS
    }

    /// Whether no statement came for a while.
    pub(super) fn is_idle(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= IDLE_LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_looks_without_a_statement_are_idle_and_the_next_statement_ends_it_once() {
        let activity = Activity::new();
        assert!(!activity.note());
        assert!(!activity.look() && !activity.look() && !activity.is_idle());
        assert!(activity.look() && activity.is_idle());
        assert!(!activity.look() && activity.is_idle());
        assert!(activity.note());
        assert!(!activity.note() && !activity.is_idle());
    }

    #[test]
    fn statements_between_looks_keep_it_busy() {
        let activity = Activity::new();
        for _ in 0..10 {
            activity.note();
            assert!(!activity.look());
        }
        assert!(!activity.is_idle());
    }
}
