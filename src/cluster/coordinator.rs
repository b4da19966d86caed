//! The one task that decides: takes readings and orders, lets `knowledge` conclude, publishes the table, and says what changed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::activity::LOOK_EVERY;
use super::announce::announce;
use super::book::Book;
use super::knowledge::Knowledge;
use super::lsn::Timeline;
use super::membership::{Change, Membership};
use super::monitor::{Monitor, Pace};
use super::node::NodeId;
use super::position::Fork;
use super::reading::Reading;
use super::routing_table::{NoPrimary, NodeState, RoutingTable};
use super::state_file::Remembered;
use super::targets::Targets;
use super::{Shared, history};
use crate::config::NodeConfig;

/// What the coordinator is told.
#[derive(Debug)]
pub(super) enum Event {
    /// A monitor has asked its node.
    Reading(Watch, Reading),
    /// These are the nodes from now on.
    Nodes(Arc<[NodeConfig]>),
    /// A promotion begins: hold writes. Answers, once that is published, with the timeline that the promotion leaves, or `None`
    /// if no primary was ever seen; then nothing is held.
    Hold(oneshot::Sender<Option<Timeline>>),
    /// A switchover begins: hold writes, and leave the primary what is under way.
    Pause,
    /// The promotion did certainly not happen.
    Release,
    /// The promotion may have happened.
    HoldOn,
    /// Where the timelines before this one ended.
    History(Timeline, Vec<Fork>),
}

/// One monitor's watch over one node; the next node in the same place has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watch {
    pub(super) node: NodeId,
    number: u64,
}

impl Watch {
    #[cfg(test)]
    pub(super) fn over(node: NodeId) -> Watch {
        Watch { node, number: 0 }
    }
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
    pub(super) watches: Watches,
}

/// Asks each primary once where the timelines before its own ended.
pub(super) struct Histories {
    pub(super) targets: Targets,
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
        if let Some(target) = self.targets.of(primary) {
            tokio::spawn(history::find_out(target, timeline, self.tell.clone()));
        }
    }
}

/// The nodes as they are, each with a monitor that watches it.
pub(super) struct Watches {
    members: Membership,
    book: Book,
    targets: Targets,
    pace: Pace,
    tell: mpsc::WeakSender<Event>,
    tasks: JoinSet<()>,
    /// By node: the watch, and how to end it.
    running: Vec<Option<(Watch, AbortHandle)>>,
    begun: u64,
}

impl Watches {
    pub(super) fn new(book: Book, targets: Targets, pace: Pace, tell: mpsc::WeakSender<Event>) -> Watches {
        Watches {
            members: Membership::default(),
            book,
            targets,
            pace,
            tell,
            tasks: JoinSet::new(),
            running: Vec::new(),
            begun: 0,
        }
    }

    fn is_on(&self, watch: Watch) -> bool {
        let running = self.running.get(watch.node.index());
        running.is_some_and(|running| running.as_ref().is_some_and(|(on, _)| *on == watch))
    }

    fn begin(&mut self, node: NodeId, shared: &Arc<Shared>) {
        let (Some(readings), Some(target)) = (self.tell.upgrade(), self.targets.of(node)) else {
            return;
        };
        self.begun += 1;
        let watch = Watch {
            node,
            number: self.begun,
        };
        let monitor = Monitor {
            watch,
            target,
            pace: self.pace,
            shared: Arc::clone(shared),
            readings,
        };
        let handle = self.tasks.spawn(monitor.run());
        self.running
            .resize_with(self.running.len().max(node.index() + 1), || None);
        self.running[node.index()] = Some((watch, handle));
    }

    fn end(&mut self, node: NodeId) {
        if let Some((_, handle)) = self.running.get_mut(node.index()).and_then(Option::take) {
            handle.abort();
        }
        while self.tasks.try_join_next().is_some() {}
    }
}

impl Coordinator {
    /// Takes up the first nodes.
    pub(super) fn begin(&mut self, nodes: &[NodeConfig], now: Instant) {
        self.become_these(nodes, now);
        self.publish();
    }

    /// Runs until aborted, or until nobody can tell it anything any more.
    pub(super) async fn run(mut self) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        loop {
            tokio::select! {
                _ = look.tick() => {
                    self.look_at_activity();
                    self.admit_waiting();
                }
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
            Event::Reading(watch, reading) if self.watches.is_on(watch) => {
                self.shared.heard();
                self.knowledge.take(watch.node, reading, now);
            }
            Event::Reading(..) => return,
            Event::Nodes(nodes) => self.become_these(&nodes, now),
            Event::Pause => self.knowledge.pause(now),
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

    /// Takes up the nodes that have come, and drops those that have gone: in the book, the monitors, and what is known.
    fn become_these(&mut self, nodes: &[NodeConfig], now: Instant) {
        let changes = self.watches.members.become_these(nodes, now);
        self.carry_out(changes, now);
    }

    /// A node that there was no place for gets one that has come free.
    fn admit_waiting(&mut self) {
        let now = Instant::now();
        let changes = self.watches.members.admit_waiting(now);
        if !changes.is_empty() {
            self.carry_out(changes, now);
            self.publish();
        }
    }

    fn carry_out(&mut self, changes: Vec<Change>, now: Instant) {
        for change in changes {
            match change {
                Change::Joined(id, node) => {
                    tracing::info!(node = %node.name, address = %node.address, "the node is one of the cluster's now");
                    self.knowledge.join(id, &node, now);
                    self.watches.book.enter(id, Some(node));
                    self.watches.begin(id, &self.shared);
                }
                Change::Renamed(id, node) => {
                    self.knowledge.rename(id, &node);
                    self.watches.book.enter(id, Some(node));
                }
                Change::Left(id, node) => {
                    tracing::info!(node = %node.name, address = %node.address, "the node is none of the cluster's any more");
                    self.watches.end(id);
                    self.knowledge.leave(id, now);
                    self.watches.book.enter(id, None);
                }
                Change::NoPlace(node) => tracing::error!(
                    node = %node.name, address = %node.address,
                    "the node is left out until a place comes free: there are too many, or too many have come and gone lately"
                ),
            }
        }
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
