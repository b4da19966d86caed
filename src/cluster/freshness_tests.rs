//! The claim "holds everything committed before `t`" against simulated primaries and standbys.

use std::time::Duration;

use proptest::prelude::*;

use super::super::lsn::WalLayout;
use super::*;

const NODE: NodeId = NodeId(0);
const TL1: Timeline = Timeline(1);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_standby_is_as_fresh_as_the_newest_sample_that_it_has_reached() {
    let start = Instant::now();
    let mut freshness = Freshness::default();
    assert_eq!(freshness.of(Lsn(100)), None);
    freshness.sample(NODE, TL1, start, Lsn(100), Lsn(100));
    freshness.sample(NODE, TL1, start + ms(250), Lsn(200), Lsn(150));
    let at = |lsn| freshness.of(Lsn(lsn)).unwrap();
    assert_eq!(at(99).fresh_as_of, None);
    assert_eq!(at(99).behind_since, Some(start));
    assert_eq!(at(100).fresh_as_of, Some(start));
    assert_eq!(at(100).behind_since, Some(start + ms(250)));
    assert_eq!(at(100).behind_bytes, 50);
    assert_eq!(at(150).fresh_as_of, Some(start));
    assert_eq!(at(150).durable_as_of, Some(start + ms(250)));
    assert_eq!(at(150).behind_since, None);
    assert_eq!(at(5000).fresh_as_of, Some(start + ms(250)));
}

#[test]
fn an_idle_primary_keeps_its_standbys_fresh_in_one_sample() {
    let start = Instant::now();
    let mut freshness = Freshness::default();
    for tick in 0..100_000u64 {
        let now = start + ms(250 * tick);
        freshness.sample(NODE, TL1, now, Lsn(100), Lsn(100));
        assert_eq!(freshness.of(Lsn(100)).unwrap().fresh_as_of, Some(now));
    }
    assert_eq!(freshness.inserted.0.len(), 1);
}

#[test]
fn an_open_transaction_on_an_idle_primary_is_not_lag() {
    let start = Instant::now();
    let mut freshness = Freshness::default();
    freshness.sample(NODE, TL1, start, Lsn(100), Lsn(100));
    for tick in 1..60 {
        freshness.sample(NODE, TL1, start + ms(250 * tick), Lsn(164), Lsn(100));
    }
    let fresh = freshness.of(Lsn(100)).unwrap();
    assert_eq!(fresh.fresh_as_of, Some(start));
    assert_eq!(fresh.durable_as_of, Some(start + ms(250 * 59)));
    assert_eq!(fresh.behind_since, None);
}

#[test]
fn a_paused_standby_falls_behind_by_a_second_each_second() {
    let start = Instant::now();
    let mut freshness = Freshness::default();
    let mut lsn = 1000;
    for tick in 0..40_000u64 {
        let now = start + ms(250 * tick);
        lsn += 10;
        freshness.sample(NODE, TL1, now, Lsn(lsn), Lsn(lsn));
        if tick >= 4 {
            let fresh = freshness.of(Lsn(1019)).unwrap(); // reached the sample of tick 0 and not that of tick 1
            // While the samples are exact so is the answer; when they get coarse it may only say "older".
            assert!(fresh.fresh_as_of <= Some(start));
            assert!(fresh.behind_since <= Some(start + ms(250)));
            if tick < 500 {
                assert_eq!(fresh.fresh_as_of, Some(start));
                assert_eq!(fresh.behind_since, Some(start + ms(250)));
            }
        }
    }
}

#[test]
fn memory_is_bounded_and_reaches_back_for_hours() {
    let start = Instant::now();
    let mut ring = SampleRing::default();
    let hours = 4 * 3600 * 4u64;
    for tick in 0..hours {
        ring.push(start + ms(250 * tick), Lsn(1000 + tick));
        assert!(ring.0.len() <= SampleRing::CAPACITY);
    }
    let now = start + ms(250 * hours);
    for (age, tolerance) in [(1, 250), (8, 250), (60, 2_500), (600, 20_000), (3600, 120_000)] {
        let then = now - Duration::from_secs(age);
        let replayed = Lsn(1000 + hours - age * 4);
        let as_of = ring.as_of(replayed).expect("it reaches back");
        assert!(as_of <= then, "{age} s: claims more than is true");
        assert!(then - as_of <= ms(tolerance), "{age} s: off by {:?}", then - as_of);
    }
}

#[test]
fn another_timeline_or_node_ends_all_that_was_known() {
    let start = Instant::now();
    for (node, timeline) in [(NODE, Timeline(2)), (NodeId(1), TL1)] {
        let mut freshness = Freshness::default();
        freshness.sample(NODE, TL1, start, Lsn(100), Lsn(100));
        freshness.sample(node, timeline, start + ms(250), Lsn(300), Lsn(300));
        assert_eq!(freshness.of(Lsn(200)).unwrap().fresh_as_of, None);
        assert_eq!(freshness.timeline(), Some(timeline));
    }
}

#[test]
fn a_late_answer_changes_nothing() {
    let start = Instant::now();
    let mut freshness = Freshness::default();
    freshness.sample(NODE, TL1, start + ms(250), Lsn(200), Lsn(200));
    freshness.sample(NODE, TL1, start, Lsn(100), Lsn(100));
    assert_eq!(freshness.of(Lsn(150)).unwrap().fresh_as_of, None);
    assert_eq!(freshness.of(Lsn(200)).unwrap().fresh_as_of, Some(start + ms(250)));
}

/// A primary whose log is a list of records; times are milliseconds.
#[derive(Default)]
struct Primary {
    /// Where each record ends, and when its commit was acknowledged.
    records: Vec<(u64, u64)>,
    end: u64,
    flushed: u64,
}

impl Primary {
    fn insert(&mut self, bytes: u64, now: u64) {
        self.end = record_end(self.end, bytes);
        self.records.push((self.end, now));
    }

    /// As `pg_current_wal_insert_lsn()`: behind the header where a page has just been filled.
    fn insert_lsn(&self) -> Lsn {
        Lsn(match self.end {
            end if end % (1 << 20) == 0 => end + 40,
            end if end % 8192 == 0 => end + 24,
            end => end,
        })
    }

    /// A crash loses what was not flushed; what is written next takes its place.
    fn crash(&mut self) {
        let flushed = self.flushed;
        self.records.retain(|(end, _)| *end <= flushed);
        self.end = self.records.last().map_or(0, |(end, _)| *end);
        self.flushed = self.end;
    }
}

/// A record's end, with the page headers that it crosses; it ends *on* a boundary when it just fits.
fn record_end(start: u64, bytes: u64) -> u64 {
    let (mut at, mut left) = (start, bytes);
    loop {
        if at.is_multiple_of(8192) {
            at += if at.is_multiple_of(1 << 20) { 40 } else { 24 };
        }
        let room = 8192 - at % 8192;
        if left <= room {
            return at + left;
        }
        (at, left) = (at + room, left - room);
    }
}

#[derive(Debug, Clone)]
enum Event {
    Commit {
        bytes: u64,
    },
    /// Fills the page exactly, so that the insert position skips a header.
    FillPage,
    Flush,
    /// Asked now, answered later: whatever happens in between may be in the answer.
    Ask,
    Answer,
    Replay {
        permille: u64,
    },
    /// The standby comes back at an earlier position.
    StandbyRestart {
        permille: u64,
    },
    PrimaryCrash,
    Promotion,
    Wait {
        millis: u64,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1u64..3000).prop_map(|bytes| Event::Commit { bytes: bytes * 8 }),
        2 => Just(Event::FillPage),
        4 => Just(Event::Flush),
        5 => Just(Event::Ask),
        5 => Just(Event::Answer),
        5 => (0u64..=1000).prop_map(|permille| Event::Replay { permille }),
        1 => (0u64..=1000).prop_map(|permille| Event::StandbyRestart { permille }),
        1 => Just(Event::PrimaryCrash),
        1 => Just(Event::Promotion),
        5 => (1u64..400).prop_map(|millis| Event::Wait { millis }),
    ]
}

/// The records that a standby may have got, up to a share of them.
fn share(primary: &Primary, permille: u64) -> u64 {
    let available = primary
        .records
        .iter()
        .filter(|(end, _)| *end <= primary.flushed)
        .count() as u64;
    match (available * permille / 1000).checked_sub(1) {
        Some(last) => primary.records[last as usize].0,
        None => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_standby_said_to_be_fresh_holds_everything_committed_before(events in prop::collection::vec(event(), 1..120)) {
        let start = Instant::now();
        let (mut primary, mut freshness, mut timeline) = (Primary::default(), Freshness::default(), TL1);
        let (mut replayed, mut now, mut asked): (u64, u64, Option<u64>) = (0, 0, None);
        for event in events {
            match event {
                Event::Commit { bytes } => primary.insert(bytes, now),
                Event::FillPage => {
                    let header = if primary.end.is_multiple_of(8192) { record_end(primary.end, 0) } else { primary.end };
                    primary.insert(8192 - header % 8192, now);
                    prop_assert!(primary.end.is_multiple_of(8192));
                }
                Event::Flush => primary.flushed = primary.end,
                Event::Ask => asked = asked.or(Some(now)),
                Event::Answer => if let Some(asked) = asked.take() {
                    let layout = WalLayout::new(8192, 1 << 20).unwrap();
                    let insert = layout.without_page_header(primary.insert_lsn());
                    freshness.sample(NODE, timeline, start + ms(asked), insert, Lsn(primary.flushed));
                },
                Event::Replay { permille } => replayed = replayed.max(share(&primary, permille)),
                Event::StandbyRestart { permille } => replayed = replayed.min(share(&primary, permille)),
                Event::PrimaryCrash => {
                    asked = None;
                    primary.crash();
                }
                Event::Promotion => {
                    // The standby's log up to here becomes the new timeline's; the rest is lost, and others wrote it meanwhile.
                    asked = None;
                    primary.records.retain(|(end, _)| *end <= replayed);
                    primary.end = replayed;
                    primary.flushed = replayed;
                    timeline = Timeline(timeline.0 + 1);
                }
                Event::Wait { millis } => now += millis,
            }
            if freshness.timeline() == Some(timeline) && let Some(fresh) = freshness.of(Lsn(replayed)) {
                if let Some(as_of) = fresh.fresh_as_of {
                    for (end, at) in &primary.records {
                        prop_assert!(start + ms(*at) >= as_of || *end <= replayed, "a commit is missing");
                    }
                }
                prop_assert!(fresh.durable_as_of >= fresh.fresh_as_of);
            }
        }
        // With nothing more going on, a standby that has replayed everything is fresh as of the last question.
        let layout = WalLayout::new(8192, 1 << 20).unwrap();
        let insert = layout.without_page_header(primary.insert_lsn());
        freshness.sample(NODE, timeline, start + ms(now), insert, Lsn(primary.end));
        prop_assert_eq!(freshness.of(Lsn(primary.end)).unwrap().fresh_as_of, Some(start + ms(now)));
        prop_assert_eq!(freshness.of(Lsn(primary.end)).unwrap().behind_since, None);
    }

    #[test]
    fn thinning_never_claims_more_than_the_full_record(
        steps in prop::collection::vec((1u64..1000, 0u64..50), 600..1500), replayed in 0u64..40_000,
    ) {
        let start = Instant::now();
        let (mut ring, mut all) = (SampleRing::default(), Vec::new());
        let (mut now, mut lsn) = (0, 1000);
        for (millis, bytes) in steps {
            now += millis;
            lsn += bytes;
            ring.push(start + ms(now), Lsn(lsn));
            all.push((start + ms(now), Lsn(lsn)));
        }
        let exact = all.iter().rev().find(|(_, lsn)| *lsn <= Lsn(replayed)).map(|(at, _)| *at);
        prop_assert!(ring.as_of(Lsn(replayed)) <= exact);
        let exact = all.iter().find(|(_, lsn)| *lsn > Lsn(replayed)).map(|(at, _)| *at);
        prop_assert_eq!(ring.behind_since(Lsn(replayed)).is_some(), exact.is_some());
        prop_assert!(ring.behind_since(Lsn(replayed)) <= exact);
    }
}
