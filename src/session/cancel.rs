//! Cancel requests: from the key that a client was given to the server process that works for it now, and to no other. And signals of
//! other clients ([`super::aim`]), which mean it by its process id.
//!
//! The race that every pooler has: a request looks up the server process, the statement ends, the connection goes to somebody else, and the
//! stranger's statement is cancelled. Here a request holds the slot while it is on its way, and a session that has finished waits until
//! no request is under way before its connection goes back. Which statement is meant, if none runs when the request comes, says
//! [`super::meant`].

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::aim::{Aimed, Standing};
use super::meant::{Meant, Progress, Stage, again_at};
use super::process_ids::ProcessIds;
use crate::cluster::NodeId;
use crate::wire::startup::CancelKey;

/// A request whose statement no server has yet is followed no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// A server process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerProcess {
    /// The node it runs on.
    pub node: NodeId,
    /// Its process id there.
    pub pid: i32,
    /// Its secret.
    pub secret: Arc<[u8]>,
}

/// Whom a cancel request of one client would reach, and who aims at it.
#[derive(Debug, Default)]
pub struct CancelSlot {
    inner: Mutex<Slot>,
    settled: Notify,
    /// Where the statement is that is to be cancelled has changed.
    moved: Notify,
    /// Some statement is to be cancelled.
    meant: AtomicBool,
    /// A [`Progress`].
    progress: AtomicU8,
    /// For those who aim at the session: it has a connection, or they are done.
    aim: Notify,
    /// The session is to look at who aims at it.
    called: AtomicBool,
    /// Its task.
    ear: OnceLock<Waker>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Who works for the client, and since when.
    working: Option<(ServerProcess, Instant)>,
    under_way: usize,
    meant: Meant,
    aimed: Aimed,
}

/// What is still about when nobody works for a client any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disarmed {
    /// A cancel request is on its way: [`CancelSlot::settled`] must be awaited before the connection is used for anything else.
    pub under_way: bool,
    /// Somebody aims at the session, or has: its connection goes back only when [`CancelSlot::standing`] and [`CancelSlot::lives`] say so.
    pub aimed: bool,
}

impl CancelSlot {
    /// `process` works for the client from `now` on.
    pub fn arm(&self, process: ServerProcess, now: Instant) {
        let mut slot = self.inner.lock();
        self.progress(Progress::Whole);
        slot.working = Some((process, now));
        if slot.meant.runs() {
            self.moved.notify_waiters();
        }
        if slot.aimed.is_held() {
            self.aim.notify_waiters();
        }
    }

    /// How far the answer is of what the process works on.
    pub fn progress(&self, progress: Progress) {
        self.progress.store(progress as u8, Ordering::Release);
    }

    /// Nobody works for the client any more. Answers who still has something to do with the connection.
    pub fn disarm(&self) -> Disarmed {
        let mut slot = self.inner.lock();
        let (process, aimed) = (slot.working.take(), slot.aimed.is_marked());
        if let Some((process, _)) = process.filter(|_| aimed) {
            slot.aimed.keep(process);
        }
        slot.meant.pauses();
        Disarmed {
            under_way: slot.under_way > 0,
            aimed,
        }
    }

    /// Aims at the session from a connection to the node `near`. While that is held, the session keeps its connection, or takes one.
    pub fn hold(self: &Arc<Self>, near: NodeId) -> Hold {
        let mut slot = self.inner.lock();
        slot.aimed.begin(near, Instant::now());
        if slot.process().is_none() {
            self.call();
        }
        Hold {
            slot: Arc::clone(self),
            state: HoldState::Unsent,
        }
    }

    /// Where the session has a connection that can be aimed at.
    pub fn node(&self) -> Option<NodeId> {
        Some(self.inner.lock().process()?.node)
    }

    /// Has the session look at who aims at it.
    pub fn call(&self) {
        self.called.store(true, Ordering::Release);
        if let Some(ear) = self.ear.get() {
            ear.wake_by_ref();
        }
    }

    /// Whether the session is to look at who aims at it. The task of `cx`, always the same, is woken when that changes.
    pub fn is_called(&self, cx: &Context<'_>) -> bool {
        self.ear.get_or_init(|| cx.waker().clone());
        self.called.load(Ordering::Acquire)
    }

    /// What the session has to do for those who aim at it; it need not look again before it is called again.
    pub fn standing(&self) -> Standing {
        self.called.store(false, Ordering::Release);
        self.inner.lock().aimed.standing()
    }

    /// The session keeps this connection for those who aim at it.
    pub fn keep(&self, process: ServerProcess) {
        self.inner.lock().aimed.keep(process);
        self.aim.notify_waiters();
    }

    /// Whether somebody has aimed at the session, and it isn't known yet how that has ended.
    pub fn is_marked(&self) -> bool {
        self.inner.lock().aimed.is_marked()
    }

    /// The server process has answered since nobody aims at it. Says whether the connection is the session's to give back.
    pub fn lives(&self) -> bool {
        self.inner.lock().aimed.lives()
    }

    /// The session's connection is gone.
    pub fn part(&self) {
        self.inner.lock().aimed.part();
    }

    /// Waits until nobody aims at the session.
    pub async fn released(&self) {
        loop {
            let changed = self.aim.notified();
            if !self.inner.lock().aimed.is_held() {
                return;
            }
            changed.await;
        }
    }

    /// The session has answered what it had: nothing of that is to be cancelled any more.
    pub fn answered(&self) {
        // A request that was for it has set this before its server was done with it.
        if self.meant.load(Ordering::Acquire) {
            self.change(Meant::ends);
            if self.is_unseen() {
                self.call();
            }
        }
    }

    /// Whether the session is to look for a statement that is to be cancelled.
    pub fn is_unseen(&self) -> bool {
        self.inner.lock().meant.is_unseen()
    }

    /// The session has looked for it.
    pub fn looked(&self, found: bool) {
        self.change(|meant| meant.looked(found));
    }

    fn change<R>(&self, change: impl FnOnce(&mut Meant) -> R) -> R {
        let mut slot = self.inner.lock();
        let changed = change(&mut slot.meant);
        self.meant.store(slot.meant.any(), Ordering::Release);
        self.moved.notify_waiters();
        changed
    }

    /// Waits until the statement that waits for a place to run is cancelled. Dropping it loses nothing.
    pub async fn cancelled_while_waiting(&self) {
        loop {
            let moved = self.moved.notified();
            if self.meant.load(Ordering::Acquire) && self.change(Meant::strikes_here) {
                return;
            }
            moved.await;
        }
    }

    /// Takes aim at who works for the client now, on the proxy's own account.
    pub fn strike(self: &Arc<Self>) -> Option<UnderWay> {
        let mut slot = self.inner.lock();
        let (process, _) = slot.working.clone()?;
        slot.under_way += 1;
        drop(slot);
        Some(UnderWay {
            slot: Arc::clone(self),
            process,
        })
    }

    fn ask(self: &Arc<Self>, now: Instant) -> Request {
        let mut slot = self.inner.lock();
        let runs = slot.working.is_some() && self.reached() != Progress::Answered;
        let round = slot.meant.ask(runs);
        self.meant.store(true, Ordering::Release);
        drop(slot);
        if !runs {
            self.moved.notify_waiters();
            self.call();
        }
        Request {
            slot: Arc::clone(self),
            round,
            until: now + PATIENCE,
            told: None,
        }
    }

    fn reached(&self) -> Progress {
        self.progress.load(Ordering::Acquire).into()
    }

    /// Waits until no request is on its way.
    pub async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.inner.lock().under_way == 0 {
                return;
            }
            settled.await;
        }
    }
}

impl Slot {
    fn process(&self) -> Option<&ServerProcess> {
        let working = self.working.as_ref().map(|(process, _)| process);
        working.or(self.aimed.kept())
    }
}

/// One who aims at a session; over when dropped.
#[derive(Debug)]
pub struct Hold {
    slot: Arc<CancelSlot>,
    state: HoldState,
}

/// How far a signal has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HoldState {
    /// No server has it.
    Unsent,
    /// A server may be carrying it out.
    Sent,
    /// It is carried out, or refused.
    Answered,
}

impl Hold {
    /// Waits until the session has a connection. Dropping it loses nothing.
    pub async fn process(&self) -> ServerProcess {
        loop {
            let changed = self.slot.aim.notified();
            if let Some(process) = self.slot.inner.lock().process() {
                return process.clone();
            }
            changed.await;
        }
    }

    /// The statement is about to be sent.
    pub fn sent(&mut self) {
        self.state = HoldState::Sent;
    }

    /// The statement has been answered.
    pub fn answered(&mut self) {
        self.state = HoldState::Answered;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.slot.inner.lock().aimed.end(self.state == HoldState::Sent);
        self.slot.call();
        self.slot.aim.notify_waiters();
    }
}

/// A client's cancel request, which is followed until it is dropped.
#[derive(Debug)]
pub struct Request {
    slot: Arc<CancelSlot>,
    /// Which statement it means.
    round: u64,
    /// It isn't followed for longer while no server has that.
    until: Instant,
    /// The server that was told, by when it began with the statement, and how old that was.
    told: Option<(Instant, Duration)>,
}

/// What is to be done about a request.
enum Turn {
    /// A server is to be told.
    Tell(ServerProcess),
    /// Nothing before then, unless something changes.
    Wait(Instant),
    /// Nothing any more.
    Over,
}

impl Request {
    /// Waits until a server is to be told, for the first time or again. `None` when all is done that can be.
    pub async fn turn(&mut self) -> Option<UnderWay> {
        let slot = Arc::clone(&self.slot);
        loop {
            let moved = slot.moved.notified();
            match self.next(Instant::now()) {
                Turn::Over => return None,
                Turn::Tell(process) => {
                    let slot = Arc::clone(&slot);
                    return Some(UnderWay { slot, process });
                }
                // Both have to be looked at again.
                Turn::Wait(until) => drop(tokio::time::timeout_at(until.into(), moved).await),
            }
        }
    }

    fn next(&mut self, now: Instant) -> Turn {
        let mut slot = self.slot.inner.lock();
        match (slot.meant.stage(self.round), &slot.working) {
            (Stage::Nowhere, _) => Turn::Over,
            (Stage::Running, Some((process, since))) => {
                let (process, since) = (process.clone(), *since);
                if let Some((_, told)) = self.told.filter(|(began, _)| *began == since) {
                    match again_at(told, self.slot.reached()) {
                        None => return Turn::Over,
                        Some(age) if now < since + age => return Turn::Wait(since + age),
                        Some(_) => {}
                    }
                }
                self.told = Some((since, now.saturating_duration_since(since)));
                slot.under_way += 1;
                Turn::Tell(process)
            }
            _ if now < self.until => Turn::Wait(self.until),
            _ => Turn::Over,
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let round = self.round;
        self.slot.change(|meant| meant.leave(round));
    }
}

/// Somebody who tells a server process to cancel what it does; done when dropped.
#[derive(Debug)]
pub struct UnderWay {
    slot: Arc<CancelSlot>,
    /// Whom it is for.
    pub process: ServerProcess,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.slot.inner.lock().under_way -= 1;
        self.slot.settled.notify_waiters();
    }
}

/// A client's secret and its slot.
type Entry = (Vec<u8>, Arc<CancelSlot>);

/// Every client's slot, by the key it was given.
#[derive(Debug, Default)]
pub struct CancelRegistry {
    by_pid: Mutex<HashMap<i32, Entry>>,
    /// What else clients may be known by.
    told: Mutex<ProcessIds>,
}

/// A client's entry; leaves when dropped.
#[derive(Debug)]
pub struct Registered {
    registry: Arc<CancelRegistry>,
    /// What the client is told.
    pub key: CancelKey,
    /// Where its server process is noted.
    pub slot: Arc<CancelSlot>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.by_pid.lock().remove(&self.key.pid);
        self.registry.told.lock().leave(self.key.pid);
        self.slot.change(Meant::over);
    }
}

impl Registered {
    /// The client is about to be told of the server process `pid`.
    pub fn is_told(&self, pid: i32) {
        self.registry.told.lock().note(pid, self.key.pid);
    }
}

impl CancelRegistry {
    /// Gives a new client a key of its own, with a secret of `secret_length` bytes.
    ///
    /// # Errors
    /// The operating system has no randomness.
    pub fn register(self: &Arc<Self>, secret_length: usize) -> Result<Registered, getrandom::Error> {
        let mut secret = vec![0; secret_length];
        getrandom::fill(&mut secret)?;
        let slot = Arc::new(CancelSlot::default());
        loop {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes)?;
            // Above every process id that there can be (2^22 on Linux), so that a server's is never taken for a client's; and an int4.
            let pid = i32::from_ne_bytes(bytes) & 0x3fff_ffff | 0x4000_0000;
            let mut by_pid = self.by_pid.lock();
            if by_pid.contains_key(&pid) {
                continue;
            }
            by_pid.insert(pid, (secret.clone(), Arc::clone(&slot)));
            return Ok(Registered {
                registry: Arc::clone(self),
                key: CancelKey { pid, secret },
                slot,
            });
        }
    }

    /// The client that a process id stands for: its own, or a server's of which it was the last to be told.
    pub fn client(&self, pid: i32) -> Option<Arc<CancelSlot>> {
        let told = self.told.lock().client(pid);
        let by_pid = self.by_pid.lock();
        let (_, slot) = by_pid.get(&pid).or_else(|| by_pid.get(&told?))?;
        Some(Arc::clone(slot))
    }

    /// Takes a cancel request for the client of this key. `None` if the key is nobody's.
    pub fn ask(&self, key: &CancelKey) -> Option<Request> {
        let slot = {
            let by_pid = self.by_pid.lock();
            let (secret, slot) = by_pid.get(&key.pid)?;
            if !bool::from(subtle::ConstantTimeEq::ct_eq(secret.as_slice(), key.secret.as_slice())) {
                return None;
            }
            Arc::clone(slot)
        };
        Some(slot.ask(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32) -> ServerProcess {
        ServerProcess {
            node: NodeId(0),
            pid,
            secret: Arc::from([1, 2, 3, 4]),
        }
    }

    /// The server process that the request is for, if there is one now.
    async fn told(request: &mut Request) -> Option<UnderWay> {
        let moment = Duration::from_millis(5);
        tokio::time::timeout(moment, request.turn()).await.ok().flatten()
    }

    #[tokio::test]
    async fn a_request_reaches_who_works_now_and_nobody_with_a_wrong_key() {
        let registry = Arc::new(CancelRegistry::default());
        let client = registry.register(4).unwrap();
        client.slot.arm(process(7), Instant::now());
        let mut request = registry.ask(&client.key).unwrap();
        assert_eq!(told(&mut request).await.unwrap().process, process(7));
        let forged = CancelKey {
            pid: client.key.pid,
            secret: vec![0; 5],
        };
        assert!(registry.ask(&forged).is_none());
        let key = client.key.clone();
        drop(client);
        assert!(registry.ask(&key).is_none());
        assert!(request.turn().await.is_none());
    }

    #[tokio::test]
    async fn a_request_waits_for_the_statement_that_was_sent_before_it() {
        let registry = Arc::new(CancelRegistry::default());
        let client = registry.register(4).unwrap();
        let mut request = registry.ask(&client.key).unwrap();
        assert!(told(&mut request).await.is_none());
        assert!(client.slot.is_unseen());
        client.slot.looked(true);
        client.slot.arm(process(7), Instant::now());
        assert_eq!(told(&mut request).await.unwrap().process, process(7));
        // The server may have been told before it had it.
        assert_eq!(request.turn().await.unwrap().process, process(7));
        client.slot.disarm();
        // Lost with its server, it runs again.
        client.slot.arm(process(8), Instant::now());
        assert_eq!(told(&mut request).await.unwrap().process, process(8));
        client.slot.disarm();
        client.slot.answered();
        assert!(request.turn().await.is_none());
        client.slot.arm(process(8), Instant::now());
        assert!(request.turn().await.is_none());
    }

    #[tokio::test]
    async fn a_statement_of_some_age_is_told_once() {
        let registry = Arc::new(CancelRegistry::default());
        let client = registry.register(4).unwrap();
        let past = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        client.slot.arm(process(7), past);
        let mut request = registry.ask(&client.key).unwrap();
        assert!(request.turn().await.is_some());
        assert!(request.turn().await.is_none());
    }

    #[tokio::test]
    async fn where_nothing_was_sent_a_request_is_done_at_once() {
        let registry = Arc::new(CancelRegistry::default());
        let client = registry.register(4).unwrap();
        let mut request = registry.ask(&client.key).unwrap();
        client.slot.looked(false);
        assert!(request.turn().await.is_none());
        client.slot.arm(process(7), Instant::now());
        assert!(request.turn().await.is_none());
        // The client has its answer: what it asks for now is the next.
        client.slot.progress(Progress::Answered);
        let mut late = registry.ask(&client.key).unwrap();
        assert!(told(&mut late).await.is_none());
        client.slot.disarm();
        client.slot.answered();
        assert!(client.slot.is_unseen());
        drop(late);
        assert!(!client.slot.is_unseen());
    }

    #[tokio::test]
    async fn a_statement_that_waits_for_a_place_can_be_cancelled() {
        let registry = Arc::new(CancelRegistry::default());
        let client = registry.register(4).unwrap();
        // A request that isn't followed any more is for nobody.
        drop(registry.ask(&client.key).unwrap());
        let mut waiting = std::pin::pin!(client.slot.cancelled_while_waiting());
        let moment = Duration::from_millis(10);
        assert!(tokio::time::timeout(moment, waiting.as_mut()).await.is_err());
        let mut request = registry.ask(&client.key).unwrap();
        waiting.await;
        assert!(request.turn().await.is_none());
        // One that came before it waits counts too.
        let _request = registry.ask(&client.key).unwrap();
        client.slot.cancelled_while_waiting().await;
    }

    #[tokio::test]
    async fn a_connection_waits_for_the_request_on_its_way() {
        let registry = Arc::new(CancelRegistry::default());
        let client = registry.register(4).unwrap();
        client.slot.arm(process(7), Instant::now());
        let mut request = registry.ask(&client.key).unwrap();
        let under_way = request.turn().await.unwrap();
        assert!(client.slot.disarm().under_way);
        client.slot.answered();
        assert!(request.turn().await.is_none());
        let settled = tokio::time::timeout(Duration::from_millis(10), client.slot.settled()).await;
        assert!(settled.is_err());
        drop(under_way);
        client.slot.settled().await;
        assert!(!client.slot.disarm().under_way);
    }

    #[tokio::test]
    async fn who_is_aimed_at_shows_a_connection_and_keeps_it() {
        let registry = Arc::new(CancelRegistry::default());
        let client = registry.register(4).unwrap();
        client.is_told(7);
        let found = registry.client(7).expect("it was told");
        assert!(Arc::ptr_eq(&found, &registry.client(client.key.pid).unwrap()));
        let hold = found.hold(NodeId(0));
        assert_eq!(client.slot.standing(), Standing::Awaited(NodeId(0)));
        client.slot.arm(process(8), Instant::now());
        assert_eq!(hold.process().await, process(8));
        assert!(client.slot.disarm().aimed);
        assert_eq!(hold.process().await, process(8));
        drop(hold);
        client.slot.released().await;
        assert_eq!(client.slot.standing(), Standing::Released);
        assert!(client.slot.lives() && client.slot.node().is_none());
        drop(client);
        assert!(registry.client(7).is_none());
    }
}
