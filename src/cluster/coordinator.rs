//! The one task that decides: takes readings and orders, lets `knowledge` conclude, publishes the table, and says what changed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::activity::LOOK_EVERY;
use super::announce::announce;
use super::knowledge::Knowledge;
use super::lsn::Timeline;
use super::node::NodeId;
use super::position::Fork;
use super::probe_connection::Target;
use super::reading::Reading;
use super::routing_table::{NoPrimary, NodeState, RoutingTable};
use super::state_file::Remembered;
use super::{Shared, history};

/// What the coordinator is told.
#[derive(Debug)]
pub(super) enum Event {
    /// A monitor has asked its node.
    Reading(NodeId, Reading),
    /// A promotion begins: hold writes. Answers, once that is published, with the timeline that the promotion leaves, or `None`
    /// if no primary was ever seen; then nothing is held.
    Hold(oneshot::Sender<Option<Timeline>>),
    /// The promotion did certainly not happen.
    Release,
    /// The promotion may have happened.
    HoldOn,
    /// Where the timelines before this one ended.
    History(Timeline, Vec<Fork>),
}

/// While a claim waits for the others to contradict, the clock is looked at this often.
const RECONSIDER: Duration = Duration::from_millis(50);

/// Owns what is known.
pub(super) struct Coordinator {
    pub(super) knowledge: Knowledge,
    pub(super) shared: Arc<Shared>,
    pub(super) events: mpsc::Receiver<Event>,
    /// What the state file should hold.
    pub(super) remember: watch::Sender<Option<Remembered>>,
    pub(super) histories: Histories,
}

/// Asks each primary once where the timelines before its own ended.
pub(super) struct Histories {
    pub(super) targets: Vec<Target>,
    pub(super) tell: mpsc::WeakSender<Event>,
    /// The primary that was asked last.
    pub(super) asked: Option<(NodeId, Timeline)>,
}

impl Histories {
    fn look_at(&mut self, table: &RoutingTable) {
        let (Some(primary), Some(timeline)) = (table.primary, table.timeline) else {
            return;
        };
        if timeline <= Timeline(1) || self.asked == Some((primary, timeline)) {
            return;
        }
        self.asked = Some((primary, timeline));
        if let Some(target) = self.targets.get(primary.index()) {
            tokio::spawn(history::find_out(target.clone(), timeline, self.tell.clone()));
        }
    }
}

impl Coordinator {
    /// Runs until aborted, or until nobody can tell it anything any more.
    pub(super) async fn run(mut self) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        loop {
            tokio::select! {
                _ = look.tick() => self.look_at_activity(),
                event = self.next_event() => match event {
                    Ok(Some(event)) => self.handle(event),
                    Ok(None) => return,
                    Err(Reconsider) => self.reconsider(),
                },
            }
        }
    }

    /// The next event, or the moment at which a claim may have waited long enough. Dropping the future loses nothing.
    async fn next_event(&mut self) -> Result<Option<Event>, Reconsider> {
        let why_no_primary = self.shared.table.load().why_no_primary;
        match why_no_primary {
            Some(NoPrimary::Confirming(_)) => timeout(RECONSIDER, self.events.recv()).await.map_err(|_| Reconsider),
            Some(_) | None => Ok(self.events.recv().await),
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Reading(node, reading) => self.knowledge.take(node, reading, now),
            Event::Release => self.knowledge.release(now),
            Event::HoldOn => self.knowledge.hold_on(now),
            Event::History(timeline, forks) => self.knowledge.learn_history(timeline, forks),
            Event::Hold(done) => {
                let above = self.knowledge.hold(now);
                self.publish();
                // Whoever asked may be gone; the hold is then released by nobody, so don't begin it.
                if done.send(above).is_err() {
                    self.knowledge.release(now);
                }
            }
        }
        self.publish();
    }

    fn reconsider(&mut self) {
        self.knowledge.look_again(Instant::now());
        self.publish();
    }

    fn look_at_activity(&self) {
        if self.shared.activity.look() {
            tracing::debug!("no statement for a while: the nodes are asked less often");
        }
    }

    /// Makes what is known now the table that statements live by. First the table, then the news of it.
    fn publish(&mut self) {
        let table = Arc::new(self.knowledge.table());
        let before = self.shared.table.swap(Arc::clone(&table));
        if before.why_no_primary != table.why_no_primary && wants_to_hear_all(&before, &table) {
            self.shared.wake_all();
        }
        if is_news(&before, &table) {
            self.shared.version.send_modify(|version| *version += 1);
        }
        let sampled = before.sample.map(|sample| sample.asked_at) != table.sample.map(|sample| sample.asked_at);
        if sampled && self.shared.standbys_next.swap(false, Ordering::Relaxed) {
            self.shared.wake_standbys();
        }
        self.shared.published.send_modify(|count| *count += 1);
        self.histories.look_at(&table);
        announce(&before, &table);
        let to_remember = self.knowledge.to_remember();
        self.remember
            .send_if_modified(|remembered| std::mem::replace(remembered, to_remember) != to_remember);
    }
}

struct Reconsider;

/// Whether the other nodes should be asked at once: a primary was lost, or one claims to be it.
fn wants_to_hear_all(before: &RoutingTable, after: &RoutingTable) -> bool {
    let confirming = matches!(after.why_no_primary, Some(NoPrimary::Confirming(_)));
    confirming || (before.primary.is_some() && after.primary.is_none())
}

/// Whether anyone who waits should look again.
fn is_news(before: &RoutingTable, after: &RoutingTable) -> bool {
    let fitness = |node: &NodeState| (node.role, node.serving);
    before.primary != after.primary
        || before.epoch != after.epoch
        || before.why_no_primary != after.why_no_primary
        || before.nodes.iter().map(fitness).ne(after.nodes.iter().map(fitness))
}
