//! Statements on their way to the primary, so that whoever has taken it from the routing table can wait for those that went by the table
//! before.
//!
//! A session says that it sends before it looks at the table for the last time, and the table is changed before anybody asks whether
//! somebody sends. Whichever of the two comes first, the other sees it: no statement is on its way unseen.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use tokio::time::sleep;

/// Workers share counts if there are more of them.
const COUNTS: usize = 16;
/// How often somebody who waits looks.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// In a cache line of its own, so that workers don't slow each other down.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Count(AtomicUsize);

/// How many there are.
#[derive(Debug, Default)]
pub(super) struct UnderWay([Count; COUNTS]);

/// One of them, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Sending<'a>(&'a AtomicUsize);

impl UnderWay {
    /// `worker` is about to send one; the routing table has to be looked at once more.
    pub(super) fn begin(&self, worker: usize) -> Sending<'_> {
        let count = &self.0[worker % COUNTS].0;
        count.fetch_add(1, Ordering::Relaxed);
        // Before the table is loaded.
        fence(Ordering::SeqCst);
        Sending(count)
    }

    fn is_empty(&self) -> bool {
        // After the table was stored.
        fence(Ordering::SeqCst);
        self.0.iter().all(|count| count.0.load(Ordering::Acquire) == 0)
    }

    /// Waits until all that were sent by an older table are answered, but no longer than `limit`: what takes longer has been running for
    /// some time, and the server knows of it.
    pub(super) async fn are_over(&self, limit: Duration) {
        let began = Instant::now();
        while !self.is_empty() && began.elapsed() < limit {
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[tokio::test]
    async fn it_is_over_when_the_last_one_is_answered_or_it_takes_too_long() {
        let under_way = UnderWay::default();
        let (first, second) = (under_way.begin(0), under_way.begin(COUNTS + 3));
        drop(first);
        let began = Instant::now();
        under_way.are_over(Duration::from_millis(20)).await;
        assert!(began.elapsed() >= Duration::from_millis(20) && !under_way.is_empty());
        drop(second);
        under_way.are_over(Duration::MAX).await;
        assert!(under_way.is_empty());
    }

    /// The table is a flag here: who sees it gone by the time that it says that it sends doesn't send.
    #[test]
    fn none_goes_unseen() {
        for _ in 0..2_000 {
            let (under_way, holds) = (Arc::new(UnderWay::default()), Arc::new(AtomicBool::new(true)));
            let on_its_way = Arc::new(AtomicBool::new(false));
            let session = std::thread::spawn({
                let (under_way, holds, on_its_way) = (under_way.clone(), holds.clone(), on_its_way.clone());
                move || {
                    let sending = under_way.begin(1);
                    if holds.load(Ordering::Acquire) {
                        on_its_way.store(true, Ordering::SeqCst);
                        std::hint::spin_loop();
                        on_its_way.store(false, Ordering::SeqCst);
                    }
                    drop(sending);
                }
            });
            holds.store(false, Ordering::Release);
            while !under_way.is_empty() {
                std::hint::spin_loop();
            }
            assert!(!on_its_way.load(Ordering::SeqCst), "sent by the old table, and unseen");
            session.join().expect("a session");
        }
    }
}
