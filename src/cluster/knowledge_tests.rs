//! From readings to tables.

use super::super::lsn::SystemIdentifier;
use super::super::reading::{Answer, FailureKind, Outcome, ServerIdentity, Unreachable};
use super::super::routing_table::NoPrimary;
use super::*;
use crate::config;

const OURS: SystemIdentifier = SystemIdentifier(7);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

struct Bench {
    start: Instant,
    now: u64,
    knowledge: Knowledge,
}

fn primary(timeline: u32, lsn: u64) -> ServerState {
    ServerState::Primary {
        timeline: Timeline(timeline),
        insert: Lsn(lsn),
        flush: Lsn(lsn),
        synchronous: false,
        yields: false,
    }
}

fn standby(timeline: u32, lsn: u64) -> ServerState {
    ServerState::Standby {
        replayed: Some(Lsn(lsn)),
        received: Some(Lsn(lsn)),
        received_timeline: Some(Timeline(timeline)),
        recovered_timeline: None,
        progress: ReplayProgress::Running,
    }
}

impl Bench {
    fn new(nodes: u16) -> Bench {
        let start = Instant::now();
        let node = |port| config::NodeConfig {
            address: config::NodeAddress { host: "h".into(), port },
            name: format!("node {port}"),
            weight: 1,
        };
        let nodes = (0..nodes).map(node).collect();
        let cluster = config::Cluster {
            nodes,
            discovery: Default::default(),
            state_file: None,
            tls: config::NodeTls::default(),
        };
        let election = election::Settings {
            failures_before_out: 2,
            interval: ms(250),
            timeout: ms(1000),
        };
        let settings = Settings {
            election,
            max_lag: Duration::from_secs(10),
        };
        let knowledge = Knowledge::new(settings, &RoutingTable::at_start(&cluster.nodes, start), None, start);
        Bench {
            start,
            now: 0,
            knowledge,
        }
    }

    fn at(&self) -> Instant {
        self.start + ms(self.now)
    }

    fn take(&mut self, node: u16, outcome: Outcome) -> RoutingTable {
        self.now += 1;
        let reading = Reading {
            asked_at: self.at(),
            taken_at: self.at(),
            outcome,
        };
        self.knowledge.take(NodeId(node), reading, self.at());
        self.knowledge.table()
    }

    fn reach(&mut self, node: u16, state: ServerState) -> RoutingTable {
        self.reach_run(node, ServerIdentity(i64::from(node)), state)
    }

    fn reach_run(&mut self, node: u16, server: ServerIdentity, state: ServerState) -> RoutingTable {
        self.take(
            node,
            Outcome::Reached(Answer {
                system_identifier: OURS,
                server,
                version: 150_018,
                state,
            }),
        )
    }

    fn lose(&mut self, node: u16, kind: FailureKind) -> RoutingTable {
        self.take(
            node,
            Outcome::Unreachable(Unreachable {
                kind,
                message: "gone".into(),
            }),
        )
    }

    fn usual() -> Bench {
        let mut bench = Bench::new(2);
        bench.reach(0, primary(1, 100));
        let table = bench.reach(1, standby(1, 100));
        assert_eq!(table.primary, Some(NodeId(0)));
        let table = bench.reach(1, standby(1, 100));
        assert_eq!(table.nodes[1].serving, Serving::Serving);
        bench
    }
}

#[test]
fn a_standby_serves_as_soon_as_it_has_reached_a_sample() {
    let mut bench = Bench::new(2);
    bench.reach(0, primary(1, 100));
    let table = bench.reach(1, standby(1, 90));
    assert_eq!(
        (table.nodes[1].serving, table.nodes[1].fresh_as_of),
        (Serving::LagUnknown, None)
    );
    assert_eq!(table.nodes[1].lag_bytes, Some(10));
    let table = bench.reach(1, standby(1, 100));
    assert_eq!(table.nodes[1].serving, Serving::Serving);
    assert_eq!(table.nodes[1].fresh_as_of, Some(bench.start + ms(1)));
}

#[test]
fn a_standby_that_never_reaches_the_first_sample_lags_in_the_end() {
    let mut bench = Bench::new(2);
    bench.reach(0, primary(1, 100));
    bench.reach(1, standby(1, 90));
    bench.now += 10_100;
    assert_eq!(bench.reach(1, standby(1, 90)).nodes[1].serving, Serving::Lagging);
}

#[test]
fn idle_probing_of_an_idle_cluster_shows_a_lag_below_two_intervals_and_no_verdict_changes() {
    let mut bench = Bench::usual();
    let hours = 4;
    for _ in 0..hours * 720 {
        bench.now += 2_500;
        bench.reach(0, primary(1, 100));
        bench.now += 2_500;
        let table = bench.reach(1, standby(1, 100));
        assert_eq!(table.nodes[1].serving, Serving::Serving);
        assert!(table.nodes[1].lag(bench.at()).unwrap() <= ms(10_000));
    }
}

#[test]
fn the_lag_of_a_paused_standby_grows_by_a_second_a_second_for_hours() {
    let mut bench = Bench::usual();
    bench.reach(0, primary(1, 100));
    bench.reach(1, standby(1, 100));
    let paused = bench.now;
    // Twice a second, for four hours: the older it is the coarser what is remembered of it, by a thirty-second at most.
    for round in 1..=4 * 7_200 {
        bench.now += 250;
        bench.reach(0, primary(1, 100 + round));
        bench.now += 250;
        let table = bench.reach(1, standby(1, 100));
        let (lag, real) = (table.nodes[1].lag(bench.at()).unwrap(), ms(bench.now - paused));
        assert!(
            lag + ms(500) >= real && lag <= real + real / 32 + ms(500),
            "{lag:?} after {real:?}"
        );
    }
}

#[test]
fn slow_probing_of_a_busy_cluster_is_not_lag() {
    let mut bench = Bench::usual();
    for round in 1..100 {
        bench.now += 12_000;
        let table = bench.reach(1, standby(1, 100 + round * 100));
        assert_eq!(table.nodes[1].serving, Serving::Serving, "round {round}");
        bench.now += 3_000;
        bench.reach(0, primary(1, 100 + round * 100 + 50));
    }
}

#[test]
fn a_paused_standby_is_dropped_after_max_lag_and_returns_with_two_readings() {
    let mut bench = Bench::usual();
    let mut dropped_after = None;
    for round in 1..100 {
        bench.now += 250;
        bench.reach(0, primary(1, 100 + round));
        let table = bench.reach(1, standby(1, 100));
        if table.nodes[1].serving == Serving::Lagging {
            dropped_after.get_or_insert(bench.now);
        }
    }
    let dropped_after = dropped_after.unwrap();
    assert!((10_000..11_000).contains(&dropped_after), "{dropped_after}");
    assert_eq!(bench.reach(1, standby(1, 500)).nodes[1].serving, Serving::Lagging);
    assert_eq!(bench.reach(1, standby(1, 500)).nodes[1].serving, Serving::Serving);
}

#[test]
fn without_a_primary_lag_is_unknown_and_freshness_stands_still() {
    let mut bench = Bench::usual();
    let before = bench.knowledge.table().nodes[1].fresh_as_of;
    let table = bench.lose(0, FailureKind::NotRunning);
    assert_eq!(table.why_no_primary, Some(NoPrimary::Unreachable(NodeId(0))));
    assert_eq!(table.without_primary_since, Some(bench.at()));
    assert_eq!(table.nodes[1].serving, Serving::LagUnknown);
    bench.now += 60_000;
    let table = bench.reach(1, standby(1, 100));
    assert_eq!(
        (table.nodes[1].serving, table.nodes[1].fresh_as_of),
        (Serving::LagUnknown, before)
    );
    // It comes back, and the standby needs some seconds to reconnect: it isn't dropped for the outage.
    bench.reach(0, primary(1, 200));
    let table = bench.reach(1, standby(1, 100));
    assert_eq!((table.primary, table.stats.failovers), (Some(NodeId(0)), 0));
    assert_eq!(table.nodes[1].serving, Serving::Serving);
    assert_eq!(table.nodes[1].fresh_as_of, before);
}

#[test]
fn a_primary_that_refuses_the_monitor_leads_on_and_measures_nobody() {
    let mut bench = Bench::usual();
    bench.now += 100;
    bench.lose(0, FailureKind::Refused);
    assert_eq!(bench.reach(1, standby(1, 100)).nodes[1].serving, Serving::Serving);
    bench.now += 1000;
    let table = bench.reach(1, standby(1, 100));
    assert_eq!(
        (table.primary, table.nodes[1].serving),
        (Some(NodeId(0)), Serving::LagUnknown)
    );
    bench.reach(0, primary(1, 100));
    assert_eq!(bench.reach(1, standby(1, 100)).nodes[1].serving, Serving::Serving);
}

#[test]
fn one_lost_connection_takes_a_standby_out_and_no_primary() {
    let mut bench = Bench::usual();
    let table = bench.lose(1, FailureKind::Lost);
    assert_eq!(
        (table.nodes[1].role, table.nodes[1].serving),
        (NodeRole::Unreachable, Serving::Unreachable)
    );
    assert_eq!(
        (table.nodes[1].fresh_as_of, table.nodes[1].last_error.as_deref()),
        (None, Some("gone"))
    );
    // It comes back behind what it was, without having been seen to restart.
    let table = bench.reach(1, standby(1, 60));
    assert_eq!(
        (table.nodes[1].fresh_as_of, table.nodes[1].last_error.as_deref()),
        (None, None)
    );
    let table = bench.lose(0, FailureKind::Lost);
    assert_eq!(
        (table.primary, table.nodes[0].role),
        (Some(NodeId(0)), NodeRole::Primary)
    );
}

#[test]
fn after_a_promotion_a_standby_has_no_freshness_until_it_follows() {
    let mut bench = Bench::new(3);
    bench.reach(0, primary(1, 100));
    bench.reach(2, standby(1, 100));
    bench.reach(1, standby(1, 100));
    bench.lose(0, FailureKind::NotRunning);
    bench.now += 40;
    let table = bench.reach(1, primary(2, 150));
    assert_eq!((table.primary, table.epoch.0), (Some(NodeId(1)), 2));
    assert_eq!((table.stats.failovers, table.stats.last_failover), (1, Some(ms(41))));
    // Diverged: it has replayed more of the old timeline than the new primary had, so positions alone would call it fresh.
    let table = bench.reach(2, standby(1, 170));
    assert_eq!(
        (table.nodes[2].serving, table.nodes[2].fresh_as_of),
        (Serving::OtherTimeline, None)
    );
    let table = bench.reach(2, standby(2, 150));
    assert_eq!(table.nodes[2].serving, Serving::Serving);
    assert!(table.nodes[2].fresh_as_of.is_some());
}

#[test]
fn a_standby_keeps_its_timeline_while_its_receiver_reconnects() {
    let mut bench = Bench::usual();
    let reconnecting = ServerState::Standby {
        replayed: Some(Lsn(100)),
        received: Some(Lsn(100)),
        received_timeline: None,
        recovered_timeline: None,
        progress: ReplayProgress::Running,
    };
    assert_eq!(bench.reach(1, reconnecting.clone()).nodes[1].serving, Serving::Serving);
    // Another run of the server: nothing is known of it.
    let answer = Answer {
        system_identifier: OURS,
        server: ServerIdentity(99),
        version: 150_018,
        state: reconnecting,
    };
    assert_eq!(
        bench.take(1, Outcome::Reached(answer)).nodes[1].serving,
        Serving::OtherTimeline
    );
}

#[test]
fn a_promotion_that_failed_gives_the_old_primary_its_writes_back() {
    let mut bench = Bench::usual();
    assert_eq!(bench.knowledge.hold(bench.at()), Some(Timeline(1)));
    let table = bench.knowledge.table();
    assert_eq!(
        (table.primary, table.why_no_primary),
        (None, Some(NoPrimary::Promoting))
    );
    assert_eq!(
        (table.nodes[0].role, table.nodes[0].serving),
        (NodeRole::StalePrimary, Serving::Fenced)
    );
    bench.knowledge.release(bench.at());
    let table = bench.knowledge.table();
    assert_eq!(
        (table.primary, table.epoch.0, table.stats.failovers),
        (Some(NodeId(0)), 1, 0)
    );

    bench.knowledge.hold(bench.at());
    bench.knowledge.hold_on(bench.at());
    assert_eq!(
        bench.reach(0, primary(1, 200)).why_no_primary,
        Some(NoPrimary::PromotionUncertain)
    );
    assert_eq!(bench.reach(1, primary(2, 200)).primary, Some(NodeId(1)));
}

/// A primary of timeline 1 that another proxy moves the writes away from.
fn yielding(lsn: u64) -> ServerState {
    match primary(1, lsn) {
        ServerState::Primary {
            timeline,
            insert,
            flush,
            synchronous,
            ..
        } => ServerState::Primary {
            timeline,
            insert,
            flush,
            synchronous,
            yields: true,
        },
        other => other,
    }
}

#[test]
fn a_pause_lasts_until_one_leads_on_a_later_timeline_whatever_becomes_of_the_primary() {
    let mut bench = Bench::usual();
    bench.knowledge.pause(bench.at());
    let why = |table: RoutingTable| (table.primary, table.why_no_primary);
    let waits = (None, Some(NoPrimary::SwitchingOver));
    assert_eq!(why(bench.reach(0, primary(1, 110))), waits);
    let stopped = (None, Some(NoPrimary::Unreachable(NodeId(0))));
    assert_eq!(why(bench.lose(0, FailureKind::NotRunning)), stopped);
    // It has only started again.
    bench.reach_run(0, ServerIdentity(7), primary(1, 110));
    assert_eq!(why(bench.reach(1, standby(1, 110))), waits);
    assert_eq!(why(bench.lose(0, FailureKind::NotRunning)), stopped);
    assert_eq!(why(bench.reach(1, primary(2, 120))), (Some(NodeId(1)), None));
    bench.knowledge.release(bench.at());
    assert_eq!(why(bench.reach(1, primary(2, 120))), (Some(NodeId(1)), None));
}

#[test]
fn a_pause_that_is_given_up_gives_the_primary_its_writes_back() {
    let mut bench = Bench::usual();
    bench.knowledge.pause(bench.at());
    assert_eq!(bench.reach(0, primary(1, 110)).primary, None);
    bench.knowledge.release(bench.at());
    let table = bench.knowledge.table();
    assert_eq!(
        (table.primary, table.why_no_primary, table.epoch.0),
        (Some(NodeId(0)), None, 1)
    );
}

#[test]
fn while_somebody_else_moves_the_writes_they_wait_and_reads_go_on() {
    let mut bench = Bench::usual();
    let table = bench.reach(0, yielding(100));
    assert_eq!(
        (table.primary, table.why_no_primary),
        (None, Some(NoPrimary::SwitchingOver))
    );
    assert_eq!(
        (table.nodes[0].role, table.nodes[1].serving),
        (NodeRole::Primary, Serving::Serving)
    );
    let table = bench.reach(1, primary(2, 100));
    assert_eq!((table.primary, table.epoch.0), (Some(NodeId(1)), 2));
}

#[test]
fn when_it_is_over_nobody_writes_until_the_others_were_asked_who_leads_now() {
    // Given up: the standby is one yet.
    let mut bench = Bench::usual();
    bench.reach(0, yielding(100));
    bench.reach(1, standby(1, 100));
    let table = bench.reach(0, primary(1, 100));
    assert_eq!(
        (table.primary, table.why_no_primary),
        (None, Some(NoPrimary::SwitchingOver))
    );
    let table = bench.reach(1, standby(1, 100));
    assert_eq!(
        (table.primary, table.why_no_primary, table.epoch.0),
        (Some(NodeId(0)), None, 1)
    );
    // Done, and the old primary was heard of first: not for a moment is it written to again.
    bench.reach(0, yielding(110));
    let table = bench.reach(0, primary(1, 110));
    assert_eq!(table.primary, None);
    let table = bench.reach(1, primary(2, 120));
    assert_eq!((table.primary, table.epoch.0), (Some(NodeId(1)), 2));
}

#[test]
fn somebody_who_never_comes_to_an_end_is_waited_for_no_longer() {
    let mut bench = Bench::usual();
    assert_eq!(bench.reach(0, yielding(100)).primary, None);
    bench.now += 60_000;
    assert_eq!(bench.reach(0, yielding(100)).primary, None);
    bench.now += 61_000;
    assert_eq!(bench.reach(0, yielding(100)).primary, Some(NodeId(0)));
    assert_eq!(bench.reach(0, yielding(100)).primary, Some(NodeId(0)));
    // The next one is another matter.
    bench.reach(0, primary(1, 100));
    assert_eq!(bench.reach(0, yielding(100)).primary, None);
}

#[test]
fn a_primary_that_is_lost_for_a_moment_yields_all_the_same() {
    let mut bench = Bench::usual();
    bench.reach(0, yielding(100));
    bench.lose(0, FailureKind::NotRunning);
    bench.reach(1, standby(1, 100));
    let table = bench.reach(0, yielding(100));
    assert_eq!(table.primary, None);
    bench.reach(1, standby(1, 100));
    assert_eq!(bench.reach(0, yielding(100)).primary, None);
}

#[test]
fn a_node_that_has_left_is_not_waited_for() {
    let mut bench = Bench::usual();
    bench.reach(0, yielding(100));
    bench.reach(0, primary(1, 100));
    let now = bench.at();
    bench.knowledge.leave(NodeId(1), now);
    assert_eq!(bench.knowledge.table().primary, Some(NodeId(0)));
}
