//! Cancel requests: from the key that a client was given to the server process that works for it now, and to no other.
//!
//! The race that every pooler has: a request looks up the server process, the statement ends, the connection goes to somebody else, and the
//! stranger's statement is cancelled. Here a request holds the slot while it is on its way, and a session that has finished waits until
//! no request is under way before its connection goes back.

use std::sync::Arc;

use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

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

/// Whom a cancel request of one client would reach.
#[derive(Debug, Default)]
pub struct CancelSlot {
    inner: Mutex<Slot>,
    settled: Notify,
    cancelled: Notify,
}

#[derive(Debug, Default)]
struct Slot {
    working: Option<ServerProcess>,
    under_way: usize,
    /// A statement waits for a place to run: it can be cancelled without any server.
    waiting: bool,
    cancelled: bool,
}

impl CancelSlot {
    /// `process` works for the client from now on.
    pub fn arm(&self, process: ServerProcess) {
        self.inner.lock().working = Some(process);
    }

    /// Nobody works for the client any more. Answers whether a request is still on its way; then [`CancelSlot::settled`] must be awaited
    /// before the connection is used for anything else.
    pub fn disarm(&self) -> bool {
        let mut slot = self.inner.lock();
        slot.working = None;
        slot.under_way > 0
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
            // Above every process id that there can be (2^22 on Linux): whoever takes it for the server's, as for pg_cancel_backend(), finds
            // nobody, and no stranger.
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
        assert!(client.slot.disarm());
        assert!(registry.find(&client.key).is_none());
        let settled = tokio::time::timeout(std::time::Duration::from_millis(10), client.slot.settled()).await;
        assert!(settled.is_err());
        drop(under_way);
        client.slot.settled().await;
        assert!(!client.slot.disarm());
    }
}
