//! How many connections may be open at once, over several pools: to a node, for a user, to a database.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::config;

/// Connections that count together. Without a limit they are counted all the same, so that one that is set later holds at once.
#[derive(Debug, Default)]
pub(super) struct Quota {
    taken: AtomicUsize,
    /// Pools without a connection that may not open one, and pools that would like more.
    starving: AtomicUsize,
    wanting: AtomicUsize,
    left: Notify,
}

/// How badly a pool needs a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// Not at all.
    None,
    /// It has some, and clients that wait for them: what others don't use would help.
    Wanting,
    /// It has none: others must give one up.
    Starving,
}

impl Quota {
    /// A place, if fewer than `max` are taken.
    pub(super) fn try_place(self: &Arc<Self>, max: Option<usize>) -> Option<Place> {
        let max = max.unwrap_or(usize::MAX);
        let more = |taken| (taken < max).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        taken.is_ok().then(|| Place(Arc::clone(self)))
    }

    pub(super) async fn place(self: &Arc<Self>, max: Option<usize>, need: Need) -> Place {
        let _counted = match need {
            Need::None => None,
            Need::Wanting => Some(Counted::one(&self.wanting)),
            Need::Starving => Some(Counted::one(&self.starving)),
        };
        loop {
            let left = self.left.notified();
            if let Some(place) = self.try_place(max) {
                return place;
            }
            left.await;
        }
    }

    /// Places that are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    fn need(&self) -> Need {
        match (
            self.starving.load(Ordering::Relaxed),
            self.wanting.load(Ordering::Relaxed),
        ) {
            (0, 0) => Need::None,
            (0, _) => Need::Wanting,
            (_, _) => Need::Starving,
        }
    }
}

/// One connection's place; free again when dropped.
#[derive(Debug)]
pub struct Place(Arc<Quota>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
        self.0.left.notify_one();
    }
}

/// One more of something, until dropped.
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a AtomicUsize);

impl Counted<'_> {
    /// Until dropped.
    pub(super) fn one(count: &AtomicUsize) -> Counted<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All that the connections of one pool count towards.
#[derive(Debug, Clone)]
pub(super) struct Quotas {
    /// The user's, at this node.
    pub user: Arc<Quota>,
    /// The database's, at this node.
    pub database: Arc<Quota>,
    /// The node's.
    pub node: Arc<Quota>,
}

/// A connection's places.
pub(super) type Places = Vec<Place>;

impl Quotas {
    // The narrowest comes first: who waits for it keeps none of the wider ones from others. All wait in this order, so never in a circle.
    fn limits(&self, config: &config::Pool) -> [(&Arc<Quota>, Option<usize>); 3] {
        [
            (&self.user, config.max_per_user),
            (&self.database, config.max_per_database),
            (&self.node, config.max_per_node),
        ]
    }

    /// A place in each, if there is one now.
    pub(super) fn try_places(&self, config: &config::Pool) -> Option<Places> {
        let limits = self.limits(config);
        limits.into_iter().map(|(quota, max)| quota.try_place(max)).collect()
    }

    /// A place in each, when there is one. Safe to drop.
    pub(super) async fn places(&self, config: &config::Pool, need: Need) -> Places {
        let mut places = Places::new();
        for (quota, max) in self.limits(config) {
            places.push(quota.place(max, need).await);
        }
        places
    }

    /// How badly pools that share a limit with this one need what it has.
    pub(super) fn need(&self) -> Need {
        let needs = [self.user.need(), self.database.need(), self.node.need()];
        needs.into_iter().max().unwrap_or(Need::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_that_becomes_free_goes_to_whoever_waits() {
        let quota = Arc::new(Quota::default());
        let one = quota.try_place(Some(2)).expect("a place");
        let two = quota.try_place(Some(2)).expect("a place");
        assert!(quota.try_place(Some(2)).is_none());
        let waiting = tokio::spawn({
            let quota = Arc::clone(&quota);
            async move { quota.place(Some(2), Need::Starving).await }
        });
        while quota.need() == Need::None {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        drop(one);
        drop(waiting.await.expect("a place"));
        assert_eq!(quota.need(), Need::None);
        drop(two);
        assert_eq!(quota.taken(), 0);
    }

    #[test]
    fn places_taken_without_a_limit_count_when_there_is_one() {
        let quota = Arc::new(Quota::default());
        let _one = quota.try_place(None).expect("a place");
        assert!(quota.try_place(Some(1)).is_none());
        assert!(quota.try_place(Some(2)).is_some());
    }
}
