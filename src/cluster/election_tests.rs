//! The rules one by one, and then thousands of histories of a simulated cluster.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::lsn::Lsn;
use super::super::node_view::Took;
use super::super::reading::{Answer, FailureKind, Outcome, Reading, ReplayProgress, ServerState, Unreachable};
use super::*;

const SETTINGS: Settings = Settings {
    failures_before_out: 2,
    interval: Duration::from_millis(250),
    timeout: Duration::from_secs(1),
};
const OURS: SystemIdentifier = SystemIdentifier(7);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn answer(system_identifier: SystemIdentifier, server: i64, state: ServerState) -> Outcome {
    Outcome::Reached(Answer {
        system_identifier,
        server: ServerIdentity(server),
        version: 150_018,
        state,
    })
}

fn primary(timeline: u32) -> ServerState {
    ServerState::Primary {
        timeline: Timeline(timeline),
        insert: Lsn(100),
        flush: Lsn(100),
        synchronous: false,
        yields: false,
    }
}

fn standby(timeline: Option<u32>) -> ServerState {
    ServerState::Standby {
        replayed: Some(Lsn(100)),
        received: Some(Lsn(100)),
        received_timeline: timeline.map(Timeline),
        recovered_timeline: Some(Timeline(1)),
        progress: ReplayProgress::Running,
    }
}

fn failure(kind: FailureKind) -> Outcome {
    Outcome::Unreachable(Unreachable {
        kind,
        message: "as the test wants it".into(),
    })
}

/// A cluster under test: what was read so far and what was elected.
struct Bench {
    start: Instant,
    now: u64,
    views: Vec<NodeView>,
    elected: Elected,
}

impl Bench {
    fn new(nodes: usize) -> Bench {
        let start = Instant::now();
        let views = vec![NodeView::default(); nodes];
        let elected = elect(&ClusterState::default(), &views, start, &SETTINGS);
        Bench {
            start,
            now: 0,
            views,
            elected,
        }
    }

    fn read(&mut self, node: usize, outcome: Outcome) -> &Elected {
        self.now += 1;
        let at = self.start + ms(self.now);
        self.views[node].take(Reading {
            asked_at: at,
            taken_at: at,
            outcome,
        });
        self.elect()
    }

    fn wait(&mut self, millis: u64) -> &Elected {
        self.now += millis;
        self.elect()
    }

    fn elect(&mut self) -> &Elected {
        self.elected = elect(&self.elected.state, &self.views, self.start + ms(self.now), &SETTINGS);
        &self.elected
    }

    fn primary(&self) -> Option<u16> {
        self.elected.state.current.map(|term| term.node.0)
    }

    fn epoch(&self) -> u64 {
        self.elected.state.epoch.0
    }

    /// One primary and two standbys on timeline 1.
    fn usual() -> Bench {
        let mut bench = Bench::new(3);
        bench.read(0, answer(OURS, 1, primary(1)));
        bench.read(1, answer(OURS, 2, standby(Some(1))));
        bench.read(2, answer(OURS, 3, standby(Some(1))));
        assert_eq!((bench.primary(), bench.epoch()), (Some(0), 1));
        bench
    }
}

#[test]
fn nobody_leads_until_every_node_was_asked() {
    let mut bench = Bench::new(3);
    assert_eq!(bench.elected.why_no_primary, Some(NoPrimary::Starting));
    assert_eq!(
        bench.read(0, answer(OURS, 1, primary(1))).why_no_primary,
        Some(NoPrimary::Starting)
    );
    assert_eq!(
        bench.read(1, failure(FailureKind::NotRunning)).why_no_primary,
        Some(NoPrimary::Starting)
    );
    bench.read(2, answer(OURS, 3, standby(None)));
    assert_eq!(bench.primary(), Some(0));
    assert_eq!(
        bench.elected.roles,
        [NodeRole::Primary, NodeRole::Unreachable, NodeRole::Standby]
    );
}

#[test]
fn a_promoted_standby_leads_at_once_and_the_old_primary_is_stale() {
    let mut bench = Bench::usual();
    bench.read(1, answer(OURS, 2, primary(2)));
    assert_eq!((bench.primary(), bench.epoch()), (Some(1), 2));
    assert_eq!(
        bench.elected.roles,
        [NodeRole::StalePrimary, NodeRole::Primary, NodeRole::Standby]
    );
    // The old one comes back alone, healthy as ever.
    bench.read(1, failure(FailureKind::NotRunning));
    bench.read(2, failure(FailureKind::NotRunning));
    bench.read(0, answer(OURS, 9, primary(1)));
    assert_eq!(bench.wait(60_000).why_no_primary, Some(NoPrimary::OnlyStale));
}

#[test]
fn a_remembered_timeline_keeps_a_stale_primary_out_after_a_restart_of_the_proxy() {
    let mut bench = Bench::new(1);
    bench.elected.state.highest_timeline = Some(Timeline(2));
    bench.elected.state.system_identifier = Some(OURS);
    assert_eq!(
        bench.read(0, answer(OURS, 1, primary(1))).why_no_primary,
        Some(NoPrimary::OnlyStale)
    );
    bench.read(0, answer(OURS, 1, primary(2)));
    assert_eq!(bench.primary(), Some(0));
    bench.read(0, answer(SystemIdentifier(8), 1, primary(3)));
    assert_eq!(bench.elected.why_no_primary, Some(NoPrimary::OnlyForeign));
}

#[test]
fn why_there_is_no_primary_tells_what_to_look_at() {
    let mut bench = Bench::new(2);
    bench.read(0, failure(FailureKind::Refused));
    bench.read(1, failure(FailureKind::Refused));
    assert_eq!(bench.elected.why_no_primary, Some(NoPrimary::NoneReachable));
    bench.read(1, answer(OURS, 1, standby(None)));
    assert_eq!(bench.elected.why_no_primary, Some(NoPrimary::NoneOutOfRecovery));
    // Nobody leads, and yet the standby's timeline is known: it has recovered to it.
    assert_eq!(bench.elected.timeline, Some(Timeline(1)));
}

#[test]
fn a_standby_that_streams_a_higher_timeline_proves_the_primary_stale() {
    let mut bench = Bench::usual();
    bench.read(1, answer(OURS, 2, standby(Some(2))));
    assert_eq!(bench.elected.why_no_primary, Some(NoPrimary::OnlyStale));
    bench.read(2, answer(OURS, 3, primary(2)));
    assert_eq!(bench.primary(), Some(2));
}

#[test]
fn in_a_split_brain_the_one_routed_to_stays() {
    let mut bench = Bench::usual();
    bench.read(1, answer(OURS, 2, primary(1)));
    assert_eq!(
        (bench.primary(), bench.epoch(), bench.elected.split_brain),
        (Some(0), 1, true)
    );
    assert_eq!(bench.elected.roles[1], NodeRole::StalePrimary);
    bench.read(1, answer(OURS, 2, standby(Some(1))));
    assert!(!bench.elected.split_brain);
}

#[test]
fn one_server_under_two_addresses_is_one_node() {
    let mut bench = Bench::new(4);
    bench.read(0, answer(OURS, 1, primary(1)));
    bench.read(1, answer(OURS, 1, primary(1)));
    bench.read(2, answer(OURS, 2, standby(Some(1))));
    bench.read(3, answer(OURS, 2, standby(Some(1))));
    assert_eq!((bench.primary(), bench.elected.split_brain), (Some(0), false));
    let roles = [
        NodeRole::Primary,
        NodeRole::Unknown,
        NodeRole::Standby,
        NodeRole::Unknown,
    ];
    assert_eq!(bench.elected.roles, roles);
    assert_eq!(bench.elected.twin_of, [None, Some(NodeId(0)), None, Some(NodeId(2))]);
    // Whichever address works is the node: the one that is routed to stays, also when the first works again.
    bench.read(0, failure(FailureKind::NotRunning));
    bench.wait(1000);
    assert_eq!((bench.primary(), bench.elected.split_brain), (Some(1), false));
    bench.read(0, answer(OURS, 1, primary(1)));
    bench.wait(1000);
    assert_eq!((bench.primary(), bench.elected.split_brain), (Some(1), false));
    assert_eq!(bench.elected.twin_of[..2], [Some(NodeId(1)), None]);
    // A server of its own, promoted from the standby, is none of it.
    bench.read(2, answer(OURS, 2, primary(2)));
    bench.read(3, answer(OURS, 2, primary(2)));
    assert_eq!((bench.primary(), bench.elected.split_brain), (Some(2), false));
}

#[test]
fn a_split_brain_between_strangers_has_no_primary() {
    let mut bench = Bench::usual();
    bench.read(0, failure(FailureKind::NotRunning));
    bench.views[1].take(Reading {
        asked_at: bench.start + ms(100),
        taken_at: bench.start + ms(100),
        outcome: answer(OURS, 2, primary(2)),
    });
    bench.now = 100;
    bench.read(2, answer(OURS, 3, primary(2)));
    assert_eq!((bench.primary(), bench.elected.split_brain), (None, true));
    assert_eq!(bench.wait(60_000).why_no_primary, Some(NoPrimary::SplitBrain));
    assert_eq!(
        bench.elected.roles,
        [NodeRole::Unreachable, NodeRole::StalePrimary, NodeRole::StalePrimary]
    );
    // The operator stops one of them.
    bench.read(2, failure(FailureKind::NotRunning));
    assert_eq!(bench.primary(), Some(1));
}

#[test]
fn a_primary_that_is_not_running_is_given_up_at_once_and_one_lost_connection_proves_nothing() {
    let mut bench = Bench::usual();
    bench.read(0, failure(FailureKind::Lost));
    assert_eq!(bench.primary(), Some(0));
    bench.read(0, failure(FailureKind::Lost));
    assert_eq!(bench.elected.why_no_primary, Some(NoPrimary::Unreachable(NodeId(0))));

    let mut bench = Bench::usual();
    bench.read(0, failure(FailureKind::NotRunning));
    assert_eq!(bench.elected.why_no_primary, Some(NoPrimary::Unreachable(NodeId(0))));

    let mut bench = Bench::usual();
    for _ in 0..100 {
        bench.read(0, failure(FailureKind::Refused));
    }
    assert_eq!(bench.primary(), Some(0));
}

#[test]
fn the_same_primary_after_an_outage_has_the_same_epoch_only_if_its_server_never_stopped() {
    let mut bench = Bench::usual();
    bench.read(0, failure(FailureKind::NotRunning));
    bench.read(0, answer(OURS, 1, primary(1)));
    assert_eq!((bench.primary(), bench.epoch()), (Some(0), 1));
    bench.read(0, failure(FailureKind::NotRunning));
    bench.read(0, answer(OURS, 4, primary(1)));
    assert_eq!((bench.primary(), bench.epoch()), (Some(0), 2));
}

#[test]
fn a_primary_that_comes_back_waits_until_the_others_were_asked_but_not_for_ever() {
    let back = |bench: &mut Bench| {
        for node in 0..3 {
            bench.read(node, failure(FailureKind::NotRunning));
        }
        bench.wait(60_000);
        bench.read(0, answer(OURS, 1, primary(1)));
        assert_eq!(bench.elected.why_no_primary, Some(NoPrimary::Confirming(NodeId(0))));
        assert_eq!(bench.elected.roles[0], NodeRole::Unknown);
    };
    let mut bench = Bench::usual();
    back(&mut bench);
    bench.read(1, answer(OURS, 2, standby(None)));
    assert_eq!(bench.primary(), None);
    bench.read(2, failure(FailureKind::Lost));
    assert_eq!((bench.primary(), bench.epoch()), (Some(0), 1));

    let mut bench = Bench::usual();
    back(&mut bench);
    bench.read(2, answer(OURS, 3, primary(2)));
    assert_eq!(bench.primary(), Some(2));

    let mut bench = Bench::usual();
    back(&mut bench);
    bench.wait(1000);
    assert_eq!(bench.primary(), Some(0));
}

#[test]
fn a_server_of_another_cluster_is_refused() {
    let foreign = SystemIdentifier(8);
    let mut bench = Bench::usual();
    bench.read(2, answer(foreign, 3, primary(9)));
    assert_eq!((bench.primary(), bench.elected.roles[2]), (Some(0), NodeRole::Foreign));
    assert_eq!(bench.elected.state.highest_timeline, Some(Timeline(1)));

    // Alone at first it is believed as long as it only follows, and forgotten when the others come.
    let mut bench = Bench::new(3);
    bench.read(2, answer(foreign, 3, standby(Some(9))));
    bench.read(0, failure(FailureKind::NotRunning));
    assert_eq!(
        bench.read(1, failure(FailureKind::NotRunning)).timeline,
        Some(Timeline(9))
    );
    bench.read(0, answer(OURS, 1, primary(1)));
    bench.read(1, answer(OURS, 2, standby(None)));
    assert_eq!((bench.primary(), bench.elected.roles[2]), (Some(0), NodeRole::Foreign));
    assert_eq!(bench.elected.state.highest_timeline, Some(Timeline(1)));

    // At start the many are right, whoever answers first.
    let mut bench = Bench::new(3);
    bench.read(2, answer(foreign, 3, primary(9)));
    bench.read(0, answer(OURS, 1, primary(1)));
    bench.read(1, answer(OURS, 2, standby(None)));
    assert_eq!((bench.primary(), bench.elected.roles[2]), (Some(0), NodeRole::Foreign));
}

#[test]
fn during_a_promotion_only_a_higher_timeline_counts() {
    for phase in [HoldPhase::Promoting, HoldPhase::Uncertain] {
        let mut bench = Bench::usual();
        bench.elected.state.hold = Some(Hold {
            above: Timeline(1),
            phase,
        });
        bench.read(0, answer(OURS, 1, primary(1)));
        assert_eq!(
            (bench.primary(), bench.elected.roles[0]),
            (None, NodeRole::StalePrimary)
        );
        bench.read(1, answer(OURS, 2, primary(2)));
        assert_eq!((bench.primary(), bench.elected.state.hold), (Some(1), None));
    }
    let mut bench = Bench::usual();
    bench.elected.state.hold = Some(Hold {
        above: Timeline(1),
        phase: HoldPhase::Promoting,
    });
    bench.elect();
    bench.elected.state.hold = None;
    bench.read(0, answer(OURS, 1, primary(1)));
    assert_eq!((bench.primary(), bench.epoch()), (Some(0), 1));
}

#[test]
fn a_late_answer_does_not_overrule_a_newer_one() {
    let mut bench = Bench::usual();
    let then = bench.start + ms(bench.now);
    bench.wait(500);
    bench.read(0, answer(OURS, 5, standby(Some(1))));
    let late = Reading {
        asked_at: then,
        taken_at: then + ms(900),
        outcome: answer(OURS, 1, primary(1)),
    };
    assert_eq!(bench.views[0].take(late), Took::TooLate);
    assert_eq!(bench.elect().roles[0], NodeRole::Standby);
}

/// A server as it really is.
#[derive(Debug, Clone)]
struct Server {
    system_identifier: SystemIdentifier,
    timeline: u32,
    in_recovery: bool,
    run: i64,
    reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Reach {
    Open,
    Stopped,
    Partitioned,
    Refusing,
}

impl Server {
    fn look(&self) -> Outcome {
        match self.reach {
            Reach::Stopped => failure(FailureKind::NotRunning),
            Reach::Partitioned => failure(FailureKind::Lost),
            Reach::Refusing => failure(FailureKind::Refused),
            Reach::Open if self.in_recovery => answer(self.system_identifier, self.run, standby(Some(self.timeline))),
            Reach::Open => answer(self.system_identifier, self.run, primary(self.timeline)),
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Probe {
        proxy: usize,
        node: usize,
    },
    /// Asked now, answered at a later `Deliver`, perhaps out of order.
    Ask {
        proxy: usize,
        node: usize,
    },
    /// A proxy starts anew, with nothing but its state file.
    Forget {
        proxy: usize,
    },
    /// A proxy hears that the node is none any more.
    Leave {
        proxy: usize,
        node: usize,
    },
    /// A proxy hears that it is one again.
    Join {
        proxy: usize,
        node: usize,
    },
    Deliver {
        which: usize,
    },
    Promote {
        node: usize,
    },
    Reach {
        node: usize,
        reach: Reach,
    },
    Restart {
        node: usize,
    },
    /// Comes back as a standby of the newest primary.
    Follow {
        node: usize,
    },
    Hold,
    Release,
    Uncertain,
    Wait {
        millis: u64,
    },
}

fn event(nodes: usize) -> impl Strategy<Value = Event> {
    let (node, proxy) = (0..nodes, 0..PROXIES);
    let both = (proxy, node.clone());
    let reach = prop_oneof![
        3 => Just(Reach::Open), 1 => Just(Reach::Stopped), 1 => Just(Reach::Partitioned), 1 => Just(Reach::Refusing)
    ];
    prop_oneof![
        12 => both.clone().prop_map(|(proxy, node)| Event::Probe { proxy, node }),
        3 => both.clone().prop_map(|(proxy, node)| Event::Ask { proxy, node }),
        1 => (0..PROXIES).prop_map(|proxy| Event::Forget { proxy }),
        1 => both.clone().prop_map(|(proxy, node)| Event::Leave { proxy, node }),
        2 => both.prop_map(|(proxy, node)| Event::Join { proxy, node }),
        3 => (0usize..8).prop_map(|which| Event::Deliver { which }),
        2 => node.clone().prop_map(|node| Event::Promote { node }),
        4 => (node.clone(), reach).prop_map(|(node, reach)| Event::Reach { node, reach }),
        1 => node.clone().prop_map(|node| Event::Restart { node }),
        2 => node.prop_map(|node| Event::Follow { node }),
        1 => Just(Event::Hold),
        1 => Just(Event::Release),
        1 => Just(Event::Uncertain),
        6 => (0u64..1500).prop_map(|millis| Event::Wait { millis }),
    ]
}

/// So many proxies look at the same servers, each at moments of its own. Promotions are asked for by the first.
const PROXIES: usize = 2;

/// A cluster of servers, and what the proxies make of it.
struct World {
    servers: Vec<Server>,
    proxies: Vec<Proxy>,
    runs: i64,
    /// Answers under way: the proxy that has asked, when, the node, what it said.
    in_flight: Vec<(usize, u64, usize, Outcome)>,
}

/// One proxy's readings, and the promises that its elections have made so far.
struct Proxy {
    bench: Bench,
    terms: HashMap<u64, Term>,
}

impl World {
    fn new(nodes: usize, foreign: Option<usize>) -> World {
        let server = |index: usize| Server {
            system_identifier: if foreign == Some(index) {
                SystemIdentifier(666)
            } else {
                OURS
            },
            timeline: if foreign == Some(index) { 99 } else { 1 },
            in_recovery: index != 0 && foreign != Some(index),
            run: index as i64,
            reach: Reach::Open,
        };
        let servers: Vec<Server> = (0..nodes).map(server).collect();
        World {
            servers,
            proxies: std::iter::repeat_with(|| Proxy::new(nodes)).take(PROXIES).collect(),
            runs: 100,
            in_flight: Vec::new(),
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Probe { proxy, node } => {
                let seen = self.servers[node].look();
                let bench = self.tick(proxy);
                self.proxies[proxy].deliver(bench, node, seen);
            }
            Event::Ask { proxy, node } => {
                let asked = self.tick(proxy);
                let seen = self.servers[node].look();
                self.in_flight.push((proxy, asked, node, seen));
            }
            Event::Deliver { which } => {
                if !self.in_flight.is_empty() {
                    let (proxy, asked, node, outcome) = self.in_flight.swap_remove(which % self.in_flight.len());
                    self.tick(proxy);
                    self.proxies[proxy].deliver(asked, node, outcome);
                }
            }
            Event::Forget { proxy } => {
                self.in_flight.retain(|flight| flight.0 != proxy);
                let before = &self.proxies[proxy].bench;
                let (now, start, remembered) = (before.now, before.start, before.elected.state);
                let mut anew = Proxy::new(self.servers.len());
                (anew.bench.now, anew.bench.start) = (now, start);
                anew.bench.elected.state = ClusterState {
                    system_identifier: remembered.system_identifier,
                    highest_timeline: remembered.highest_timeline,
                    ..ClusterState::default()
                };
                self.proxies[proxy] = anew;
            }
            Event::Leave { proxy, node } => self.proxies[proxy].bench.views[node] = NodeView::departed(),
            Event::Join { proxy, node } => {
                let view = &mut self.proxies[proxy].bench.views[node];
                if view.has_departed() {
                    *view = NodeView::default();
                    // The watch over the node that was there before is over.
                    self.in_flight.retain(|flight| (flight.0, flight.2) != (proxy, node));
                }
            }
            Event::Promote { node } => {
                let server = &mut self.servers[node];
                if server.in_recovery && server.reach != Reach::Stopped {
                    server.in_recovery = false;
                    server.timeline += 1;
                }
            }
            Event::Reach { node, reach } => {
                if self.servers[node].reach == Reach::Stopped && reach == Reach::Open {
                    self.runs += 1;
                    self.servers[node].run = self.runs;
                }
                self.servers[node].reach = reach;
            }
            Event::Restart { node } => {
                self.runs += 1;
                self.servers[node].run = self.runs;
            }
            Event::Follow { node } => {
                let ours = self
                    .servers
                    .iter()
                    .filter(|server| server.system_identifier == OURS && !server.in_recovery);
                let newest = ours.map(|server| server.timeline).max();
                let server = &mut self.servers[node];
                if server.system_identifier == OURS
                    && newest.is_some_and(|newest| newest > server.timeline || server.in_recovery)
                {
                    self.runs += 1;
                    server.run = self.runs;
                    server.timeline = newest.unwrap().max(server.timeline);
                    server.in_recovery = true;
                }
            }
            Event::Hold => {
                let first = &mut self.proxies[0].bench.elected;
                if let Some(above) = first.timeline {
                    first.state.hold = Some(Hold {
                        above,
                        phase: HoldPhase::Promoting,
                    });
                }
            }
            Event::Release => self.proxies[0].bench.elected.state.hold = None,
            Event::Uncertain => {
                if let Some(hold) = &mut self.proxies[0].bench.elected.state.hold {
                    hold.phase = HoldPhase::Uncertain;
                }
            }
            Event::Wait { millis } => self.proxies.iter_mut().for_each(|proxy| proxy.bench.now += millis),
        }
        self.proxies.iter_mut().for_each(Proxy::elect_and_check);
    }

    /// A millisecond passes for a proxy. Answers what its clock says then.
    fn tick(&mut self, proxy: usize) -> u64 {
        let bench = &mut self.proxies[proxy].bench;
        bench.now += 1;
        bench.now
    }

    /// Everything can be reached again, and everybody is asked by everybody: then the newest primary leads, for all proxies.
    fn settle(&mut self) {
        self.apply(Event::Release);
        for node in 0..self.servers.len() {
            let reach = Reach::Open;
            self.apply(Event::Reach { node, reach });
            (0..PROXIES).for_each(|proxy| self.apply(Event::Join { proxy, node }));
        }
        for _ in 0..2 {
            self.apply(Event::Wait { millis: 10 });
            for node in 0..self.servers.len() {
                (0..PROXIES).for_each(|proxy| self.apply(Event::Probe { proxy, node }));
            }
        }
        for proxy in &self.proxies {
            let elected = &proxy.bench.elected;
            let ours = |server: &Server| Some(server.system_identifier) == elected.system_identifier;
            let highest = elected.timeline.map(|timeline| timeline.0);
            let claims: Vec<usize> = (0..self.servers.len())
                .filter(|index| ours(&self.servers[*index]) && !self.servers[*index].in_recovery)
                .filter(|index| Some(self.servers[*index].timeline) == highest)
                .collect();
            match claims[..] {
                [] => assert_eq!(proxy.bench.primary(), None),
                [only] => assert_eq!(proxy.bench.primary(), Some(only as u16), "{elected:?}"),
                [..] => assert!(elected.split_brain),
            }
        }
    }
}

impl Proxy {
    fn new(nodes: usize) -> Proxy {
        Proxy {
            bench: Bench::new(nodes),
            terms: HashMap::new(),
        }
    }

    fn deliver(&mut self, asked: u64, node: usize, outcome: Outcome) {
        let (asked_at, taken_at) = (self.bench.start + ms(asked), self.bench.start + ms(self.bench.now));
        let before = self.bench.views[node].clone();
        let took = self.bench.views[node].take(Reading {
            asked_at,
            taken_at,
            outcome,
        });
        if before.asked_at().is_some_and(|newest| newest >= asked_at) {
            assert_eq!((took, &before), (Took::TooLate, &self.bench.views[node]));
        }
    }

    fn elect_and_check(&mut self) {
        let before = self.bench.elected.state;
        let after = self.bench.elect().clone();
        let state = after.state;
        assert!(state.epoch >= before.epoch, "the epoch fell");
        assert!(
            state.highest_timeline >= before.highest_timeline,
            "the highest timeline fell"
        );
        assert!(before.system_identifier.is_none() || state.system_identifier == before.system_identifier);
        assert_eq!(state.current.is_none(), after.why_no_primary.is_some());
        let leaders = after.roles.iter().filter(|role| **role == NodeRole::Primary).count();
        assert_eq!(leaders, usize::from(state.current.is_some()));
        if let Some(term) = state.current {
            assert_eq!(after.roles[term.node.index()], NodeRole::Primary);
            assert_eq!(
                *self.terms.entry(state.epoch.0).or_insert(term),
                term,
                "two primaries in one epoch"
            );
            assert_eq!(
                Some(term.timeline),
                state.highest_timeline,
                "a lower timeline than one accepted"
            );
            assert!(
                before.hold.is_none_or(|hold| term.timeline > hold.above),
                "a fenced node was routed to"
            );
            let view = &self.bench.views[term.node.index()];
            assert_eq!(
                view.answered().unwrap().answer.claimed_timeline(),
                Some(term.timeline),
                "it never claimed that"
            );
            assert_eq!(view.system_identifier(), state.system_identifier, "a foreign primary");
            assert!(
                view.failure()
                    .is_none_or(|failure| failure.kind != FailureKind::NotRunning),
                "it isn't running"
            );
        }
        // What is decided stays decided while nothing new is read.
        let again = elect(
            &state,
            &self.bench.views,
            self.bench.start + ms(self.bench.now),
            &SETTINGS,
        );
        assert_eq!(again, after);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn whatever_happens_there_is_one_primary_an_epoch_and_in_the_end_the_newest_one(
        (nodes, foreign, events) in (1usize..5).prop_flat_map(|nodes| {
            let foreign = prop_oneof![4 => Just(None), 1 => (1..nodes.max(2)).prop_map(Some)];
            (Just(nodes), foreign, prop::collection::vec(event(nodes), 1..100))
        })
    ) {
        let mut world = World::new(nodes, foreign);
        for event in events {
            world.apply(event);
        }
        world.settle();
    }
}
