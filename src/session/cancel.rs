//! Cancel requests: from the key that a client was given to the server process that works for it now, and to no other. And signals of
//! other clients ([`super::aim`]), which mean it by its process id.
//!
//! The race that every pooler has: a request looks up the server process, the statement ends, the connection goes to somebody else, and the
//! stranger's statement is cancelled. Here a request holds the slot while it is on its way, and a session that has finished waits until
//! no request is under way before its connection goes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use std::time::Instant;

use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::aim::{Aimed, Standing};
use super::process_ids::ProcessIds;
use crate::cluster::NodeId;
use crate::wire::startup::CancelKey;

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
    cancelled: Notify,
    /// For those who aim at the session: it has a connection, or they are done.
    aim: Notify,
    /// The session is to look at who aims at it.
    called: AtomicBool,
    /// Its task.
    ear: OnceLock<Waker>,
}

#[derive(Debug, Default)]
struct Slot {
    working: Option<ServerProcess>,
    under_way: usize,
    /// A statement waits for a place to run: it can be cancelled without any server.
    waiting: bool,
    cancelled: bool,
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
    /// `process` works for the client from now on.
    pub fn arm(&self, process: ServerProcess) {
        let mut slot = self.inner.lock();
        slot.working = Some(process);
        if slot.aimed.is_held() {
            self.aim.notify_waiters();
        }
    }

    /// Nobody works for the client any more. Answers who still has something to do with the connection.
    pub fn disarm(&self) -> Disarmed {
        let mut slot = self.inner.lock();
        let (process, aimed) = (slot.working.take(), slot.aimed.is_marked());
        if let Some(process) = process.filter(|_| aimed) {
            slot.aimed.keep(process);
        }
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

    /// Waits until a request comes for a statement that waits for a place to run. Dropping it ends that state.
    pub async fn cancelled_while_waiting(&self) {
        struct Waiting<'a>(&'a CancelSlot);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                let mut slot = self.0.inner.lock();
                slot.waiting = false;
                slot.cancelled = false;
            }
        }
        self.inner.lock().waiting = true;
        let _waiting = Waiting(self);
        loop {
            let cancelled = self.cancelled.notified();
            if self.inner.lock().cancelled {
                return;
            }
            cancelled.await;
        }
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
        self.working.as_ref().or(self.aimed.kept())
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

/// A cancel request on its way; over when dropped.
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

    /// The server process that works for the client of this key. `None` if the key is nobody's, or nobody works; if the client's statement
    /// still waits for a place to run, that wait is over.
    pub fn find(&self, key: &CancelKey) -> Option<UnderWay> {
        let slot = {
            let by_pid = self.by_pid.lock();
            let (secret, slot) = by_pid.get(&key.pid)?;
            if !bool::from(subtle::ConstantTimeEq::ct_eq(secret.as_slice(), key.secret.as_slice())) {
                return None;
            }
            Arc::clone(slot)
        };
        let mut inner = slot.inner.lock();
        let Some(process) = inner.working.clone() else {
            inner.cancelled = inner.waiting;
            drop(inner);
            slot.cancelled.notify_waiters();
            return None;
        };
        inner.under_way += 1;
        drop(inner);
        Some(UnderWay { slot, process })
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

    #[test]
    fn a_request_reaches_who_works_now_and_nobody_with_a_wrong_key() {
        let registry = Arc::new(CancelRegistry::default());
        let client = registry.register(4).unwrap();
        assert!(registry.find(&client.key).is_none());
        client.slot.arm(process(7));
        assert_eq!(registry.find(&client.key).unwrap().process, process(7));
        let forged = CancelKey {
            pid: client.key.pid,
            secret: vec![0; 5],
        };
        assert!(registry.find(&forged).is_none());
        let key = client.key.clone();
        drop(client);
        assert!(registry.find(&key).is_none());
    }

    #[tokio::test]
    async fn a_statement_that_waits_for_a_place_can_be_cancelled() {
        let registry = Arc::new(CancelRegistry::default());
        let client = registry.register(4).unwrap();
        // Before it waits, a request is for nobody.
        assert!(registry.find(&client.key).is_none());
        let mut waiting = std::pin::pin!(client.slot.cancelled_while_waiting());
        let moment = std::time::Duration::from_millis(10);
        assert!(tokio::time::timeout(moment, waiting.as_mut()).await.is_err());
        assert!(registry.find(&client.key).is_none());
        waiting.await;
    }

    #[tokio::test]
    async fn a_connection_waits_for_the_request_on_its_way() {
        let registry = Arc::new(CancelRegistry::default());
        let client = registry.register(4).unwrap();
        client.slot.arm(process(7));
        let under_way = registry.find(&client.key).unwrap();
        assert!(client.slot.disarm().under_way);
        assert!(registry.find(&client.key).is_none());
        let settled = tokio::time::timeout(std::time::Duration::from_millis(10), client.slot.settled()).await;
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
        client.slot.arm(process(8));
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
