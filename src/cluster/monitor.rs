//! One task per node: keeps one connection, asks, reports; asks at once when woken.
//!
//! Between two questions it reads its connection, so that a server that stops or crashes is noticed when it does and not with the
//! next question. A server that is promoted says nothing by itself, so a standby is asked in between whether it still is one, by a Sync: that
//! runs nothing, and PostgreSQL 14 and later report what has changed in front of its answer. After a failure it tries again at once, then at growing, jittered pauses; a wake-up cuts every pause short. A
//! failure is reported before the next attempt, so that nobody relies on a server that may be restarting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Shared;
use super::coordinator::{Event, Watch};
use super::probe_connection::{AskError, ProbeConnection, Target};
use super::reading::{FailureKind, Outcome, Reading, Unreachable};

/// How often to ask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Normally.
    pub(super) interval: Duration,
    /// When no client has sent a statement for a while.
    pub(super) idle_interval: Duration,
    /// A question that takes longer has failed.
    pub(super) timeout: Duration,
}

/// No more often than this, however many hints come.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// A standby is asked this many times between two questions whether it still is one.
const TICKS: u32 = 5;
/// But no more often than this.
const SHORTEST_TICK: Duration = Duration::from_millis(20);
/// While there is no primary the next one is looked for this often.
const HURRY: Duration = Duration::from_millis(50);
/// But no longer than this after the last one went: by then statements that waited for it have given up.
const HURRY_FOR: Duration = Duration::from_secs(15);
/// The first pause after a second failure in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(25);
/// The longest pause between attempts.
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// Watches one node.
pub(super) struct Monitor {
    pub(super) watch: Watch,
    pub(super) target: Target,
    pub(super) pace: Pace,
    pub(super) shared: Arc<Shared>,
    pub(super) readings: mpsc::Sender<Event>,
}

/// Nobody takes the readings any more.
struct NobodyListens;

/// How a pause ended.
#[derive(Debug, PartialEq, Eq)]
enum Paused {
    /// The time was up.
    InFull,
    /// Somebody knows something.
    Woken,
}

impl Monitor {
    /// Runs until nobody takes the readings any more.
    pub(super) async fn run(self) {
        let mut failures = 0;
        while self.connect_and_ask(&mut failures).await.is_ok() {
            failures += 1;
            self.pause(jittered(backoff(failures, self.hurries()))).await;
        }
    }

    /// One connection's life. `failures` is back at zero as soon as a question was answered.
    async fn connect_and_ask(&self, failures: &mut u32) -> Result<(), NobodyListens> {
        let asked_at = Instant::now();
        let mut connection = match ProbeConnection::open(&self.target).await {
            Ok(connection) => connection,
            Err(failure) => return self.report(asked_at, Outcome::Unreachable(failure)).await,
        };
        loop {
            let asked_at = Instant::now();
            let answer = match timeout(self.pace.timeout, connection.ask()).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    return self
                        .report(asked_at, Outcome::Unreachable(error.into_unreachable()))
                        .await;
                }
                Err(_) => return self.report(asked_at, Outcome::Unreachable(self.timed_out())).await,
            };
            *failures = 0;
            let listening = timeout(self.pace.timeout, connection.listen(&answer)).await;
            self.report(asked_at, Outcome::Reached(answer)).await?;
            let waited = match listening {
                Ok(Ok(())) => self.wait(&mut connection).await,
                Ok(Err(error)) => Err(error),
                Err(_) => return self.report(asked_at, Outcome::Unreachable(self.timed_out())).await,
            };
            if let Err(lost) = waited {
                return self
                    .report(Instant::now(), Outcome::Unreachable(lost.into_unreachable()))
                    .await;
            }
        }
    }

    /// Until the next question is due, or the connection is lost. It is due at once when a standby is none any more, and when a primary says
    /// that something is up.
    async fn wait(&self, connection: &mut ProbeConnection) -> Result<(), AskError> {
        let interval = self.interval();
        let mut left = jittered(interval);
        loop {
            let ticks = connection.tells_of_promotion() && !self.shared.activity.is_idle();
            let pause = if ticks { left.min(tick(interval)) } else { left };
            let paused = tokio::select! {
                news = connection.until_news() => {
                    // Anybody may notify, as often as he likes.
                    tokio::time::sleep(SHORTEST_PAUSE).await;
                    return news;
                }
                paused = self.pause(pause) => paused,
            };
            left -= pause;
            if paused == Paused::Woken || left.is_zero() {
                return Ok(());
            }
            match timeout(self.pace.timeout, connection.still_stands_by()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Ok(()),
                Ok(Err(lost)) => return Err(lost),
                Err(_) => return Err(AskError::Lost(self.timed_out().message.to_string())),
            }
        }
    }

    /// Waits for this long, or until woken.
    async fn pause(&self, pause: Duration) -> Paused {
        tokio::time::sleep(pause.min(SHORTEST_PAUSE)).await;
        let rest = pause.saturating_sub(SHORTEST_PAUSE);
        match timeout(rest, self.shared.wake[self.watch.node.index()].notified()).await {
            Ok(()) => Paused::Woken,
            Err(_) => Paused::InFull,
        }
    }

    fn interval(&self) -> Duration {
        if self.shared.activity.is_idle() {
            self.pace.idle_interval
        } else if self.hurries() {
            self.pace.interval.min(HURRY)
        } else {
            self.pace.interval
        }
    }

    fn hurries(&self) -> bool {
        let since = self.shared.table.load().without_primary_since;
        since.is_some_and(|since| since.elapsed() < HURRY_FOR) && !self.shared.activity.is_idle()
    }

    async fn report(&self, asked_at: Instant, outcome: Outcome) -> Result<(), NobodyListens> {
        let reading = Reading {
            asked_at,
            taken_at: Instant::now(),
            outcome,
        };
        self.readings
            .send(Event::Reading(self.watch, reading))
            .await
            .map_err(|_| NobodyListens)
    }

    fn timed_out(&self) -> Unreachable {
        let message = format!("no answer within {:?}", self.pace.timeout);
        Unreachable {
            kind: FailureKind::Lost,
            message: message.into(),
        }
    }
}

/// The pause before the next attempt: none after the first failure, which may just have been the old connection's end.
fn backoff(failures: u32, hurry: bool) -> Duration {
    let longest = if hurry {
        LONGEST_BACKOFF.min(HURRY * 2)
    } else {
        LONGEST_BACKOFF
    };
    match failures {
        0 | 1 => Duration::ZERO,
        _ => FIRST_BACKOFF.saturating_mul(1 << (failures - 2).min(10)).min(longest),
    }
}

/// How often a standby is asked whether it still is one.
fn tick(interval: Duration) -> Duration {
    (interval / TICKS).max(SHORTEST_TICK)
}

/// Give or take a tenth, so that many proxies don't ask in step.
fn jittered(pause: Duration) -> Duration {
    // Without randomness from the system there is no jitter, and no harm.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::NodeId;

    #[test]
    fn the_first_retry_is_at_once_and_the_pauses_grow_to_a_second() {
        assert_eq!(backoff(1, false), Duration::ZERO);
        assert_eq!(backoff(2, false), FIRST_BACKOFF);
        assert_eq!(backoff(3, false), FIRST_BACKOFF * 2);
        assert_eq!(backoff(u32::MAX, false), LONGEST_BACKOFF);
        assert_eq!(backoff(u32::MAX, true), HURRY * 2);
    }

    #[test]
    fn an_idle_proxy_asks_seldom_and_one_without_a_primary_often() {
        use crate::cluster::routing_table::RoutingTable;
        use crate::config::{Cluster, NodeAddress, NodeTls};
        use crate::wire::tls::NodeTlsConnector;

        let cluster = Cluster {
            nodes: vec![],
            discovery: Default::default(),
            state_file: None,
            tls: NodeTls::default(),
        };
        let mut table = RoutingTable::at_start(&cluster.nodes, Instant::now());
        let shared = Arc::new(Shared::new(table.clone(), Duration::MAX));
        let monitor = Monitor {
            watch: Watch::over(NodeId(0)),
            target: Target {
                address: NodeAddress {
                    host: "h".into(),
                    port: 1,
                },
                user: "u".into(),
                database: "d".into(),
                secret: None,
                tls: NodeTlsConnector::disabled(),
                timeout: Duration::from_secs(1),
            },
            pace: Pace {
                interval: Duration::from_millis(250),
                idle_interval: Duration::from_secs(5),
                timeout: Duration::from_secs(1),
            },
            shared: Arc::clone(&shared),
            readings: mpsc::channel(1).0,
        };
        assert_eq!(monitor.interval(), HURRY);
        table.without_primary_since = None;
        shared.table.store(Arc::new(table));
        assert_eq!(monitor.interval(), Duration::from_millis(250));
        while !shared.activity.look() {}
        assert_eq!(monitor.interval(), Duration::from_secs(5));
        shared.activity.note();
        assert_eq!(monitor.interval(), Duration::from_millis(250));
    }

    #[test]
    fn a_standby_is_asked_in_between_and_no_more_often_than_it_may() {
        let tick = |interval| tick(Duration::from_millis(interval)).as_millis();
        assert_eq!([10, 50, 250, 5000].map(tick), [20, 20, 50, 1000]);
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..1000 {
            let pause = jittered(Duration::from_millis(1000)).as_millis();
            assert!((900..=1100).contains(&pause), "{pause}");
        }
    }
}
