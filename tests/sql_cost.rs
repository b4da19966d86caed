//! Classification costs about what docs/performance.md says: bounds ten times as high, so that a busy machine keeps them and a change
//! that makes it slower by an order of magnitude doesn't. `make bench-classify` has the figures.

#[allow(dead_code, unreachable_pub, reason = "only some of its chances are taken here")]
#[path = "support/dice.rs"]
mod dice;
#[allow(unreachable_pub, reason = "other tests have these as modules of a folder")]
#[path = "support/texts.rs"]
mod texts;

use std::time::{Duration, Instant};

use pgsluice::sql::{BuiltIn, ClassCache, SqlContext};

/// What is waived: a busy machine, and code that isn't optimised.
const SLACK: u32 = if cfg!(debug_assertions) { 10 * 20 } else { 10 };

/// The shortest of several runs, which is the one that nothing disturbed.
fn shortest(mut run: impl FnMut()) -> Duration {
    let once = |_| {
        let started = Instant::now();
        run();
        started.elapsed()
    };
    (0..5).map(once).min().expect("five runs")
}

fn cost(calls: u64, sql: &[u8], cache: &mut ClassCache, version: impl Fn(u64) -> u64) -> Duration {
    let context = SqlContext::default();
    let mut call = 0;
    let all = shortest(|| {
        for _ in 0..calls {
            call += 1;
            std::hint::black_box(cache.classify(sql, &context, &BuiltIn, version(call)));
        }
    });
    all / u32::try_from(calls).expect("few calls")
}

#[track_caller]
fn within(bound: Duration, what: &str, took: Duration) {
    assert!(
        took < bound * SLACK,
        "{what}: {took:?}, and {SLACK} times {bound:?} is the most"
    );
}

#[test]
fn a_class_that_is_remembered_costs_a_look_at_the_text() {
    for (name, sql) in texts::OLTP {
        let mut cache = ClassCache::new(100, 1 << 20);
        let took = cost(500, sql.as_bytes(), &mut cache, |_| 0);
        assert_eq!(cache.misses(), 1);
        within(Duration::from_nanos(300), name, took);
    }
}

#[test]
fn a_class_is_worked_out_in_microseconds() {
    for (name, sql) in texts::OLTP {
        let mut cache = ClassCache::new(100, 1 << 20);
        let took = cost(50, sql.as_bytes(), &mut cache, |call| call);
        assert_eq!(cache.hits(), 0);
        within(Duration::from_micros(20), name, took);
    }
}

#[test]
fn no_text_keeps_a_worker_for_long() {
    for (name, sql) in texts::hard() {
        let mut cache = ClassCache::new(100, 1 << 20);
        let took = cost(1, &sql, &mut cache, |call| call);
        within(Duration::from_millis(50), name, took);
    }
}
