//! What standbys have refused: the second time it goes to the primary at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use quick_cache::unsync::Cache;

/// Texts of one database that are remembered; those least used go first.
const LIMIT: usize = 1000;

/// Normal forms of texts, by their hash. Empty, it costs one relaxed load to ask.
#[derive(Debug)]
pub struct Refusals {
    count: AtomicUsize,
    refused: Mutex<Cache<u64, ()>>,
}

impl Default for Refusals {
    fn default() -> Self {
        Refusals {
            count: AtomicUsize::new(0),
            refused: Mutex::new(Cache::new(LIMIT)),
        }
    }
}

impl Refusals {
    /// A standby has refused a text of this fingerprint.
    pub fn remember(&self, fingerprint: u64) {
        let mut refused = self.refused.lock();
        refused.insert(fingerprint, ());
        self.count.store(refused.len(), Ordering::Relaxed);
    }

    /// Whether one has.
    pub fn knows(&self, fingerprint: u64) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.refused.lock().get(&fingerprint).is_some()
    }

    /// What was refused may be something else now.
    pub(super) fn clear(&self) {
        if self.count.swap(0, Ordering::Relaxed) > 0 {
            self.refused.lock().clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_forgets() {
        let refusals = Refusals::default();
        assert!(!refusals.knows(7));
        refusals.remember(7);
        assert!(refusals.knows(7));
        for fingerprint in 100..100 + 3 * LIMIT as u64 {
            refusals.remember(fingerprint);
        }
        assert!(refusals.count.load(Ordering::Relaxed) <= LIMIT);
        refusals.clear();
        assert!(!refusals.knows(7));
    }
}
