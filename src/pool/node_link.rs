//! What all pools of one node share: its address, how loaded it is, and a way to cut every connection to it at once.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::quota::Quota;
use crate::cluster::{Book, NodeId};
use crate::config::NodeAddress;
use crate::sql::Access;

/// After this many microseconds without an answer a third of what was known of a node's latency is left.
const FADES_US: f64 = 1e6;

/// One node, as the pools see it.
#[derive(Debug)]
pub struct NodeLink {
    /// Its identity in the routing table.
    pub id: NodeId,
    /// Where all nodes are.
    book: Book,
    /// Connections open to it, over all pools.
    open: AtomicUsize,
    /// Reads and writes that it was sent.
    reads: AtomicU64,
    writes: AtomicU64,
    /// Statements that run on it now.
    in_flight: AtomicU32,
    /// Peak-sensitive moving average of the time to the first byte of an answer, µs, and when it was last fed, µs after `since`.
    latency_us: AtomicU32,
    latency_at: AtomicU64,
    since: Instant,
    /// Grows whenever all connections are cut: what was opened before is never used again.
    generation: AtomicU64,
    /// A second descriptor of every open socket, by connection, so that another thread can shut it down.
    sockets: Mutex<HashMap<u64, OwnedFd>>,
    next_socket: AtomicU64,
    /// What `[pool] max_per_node` bounds.
    pub(super) quota: Arc<Quota>,
}

impl NodeLink {
    /// A node with no connections.
    pub fn new(id: NodeId, book: Book) -> NodeLink {
        NodeLink {
            id,
            book,
            open: AtomicUsize::new(0),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            latency_us: AtomicU32::new(0),
            latency_at: AtomicU64::new(0),
            since: Instant::now(),
            generation: AtomicU64::new(0),
            sockets: Mutex::default(),
            next_socket: AtomicU64::new(0),
            quota: Arc::default(),
        }
    }

    /// Where it is; `None` if it is no node any more.
    pub fn address(&self) -> Option<NodeAddress> {
        self.book.address(self.id)
    }

    /// What people call it.
    pub fn name(&self) -> String {
        let node = self.book.node(self.id);
        node.map_or_else(|| "a former node".to_owned(), |node| node.name.clone())
    }

    /// Connections open to it.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Statements that run on it now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The moving average of the time to the first byte, as far as it can still be believed at `now`: a node that looked slow gets
    /// another chance after a while, since nothing but a statement can show that it has recovered.
    pub fn latency(&self, now: Instant) -> Duration {
        let known = Duration::from_micros(u64::from(self.latency_us.load(Ordering::Relaxed)));
        let age = self.micros(now).saturating_sub(self.latency_at.load(Ordering::Relaxed));
        known.mul_f64((-(age as f64) / FADES_US).exp())
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.since).as_micros()).unwrap_or(u64::MAX)
    }

    /// Reads and writes that it was sent since the start.
    pub fn statements(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.writes.load(Ordering::Relaxed))
    }

    /// Another node has its place now.
    pub(super) fn forget(&self) {
        for count in [&self.reads, &self.writes] {
            count.store(0, Ordering::Relaxed);
        }
        self.latency_us.store(0, Ordering::Relaxed);
    }

    /// `count` statements were sent to it, together.
    pub fn started(&self, access: Access, count: u64) {
        match access {
            Access::Read => self.reads.fetch_add(count, Ordering::Relaxed),
            Access::Write => self.writes.fetch_add(count, Ordering::Relaxed),
        };
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Its answer is complete, or will never come.
    pub fn finished(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// One answer's time to its first byte, which came at `now`. A slower one counts at once, faster ones by an eighth each. Races
    /// between threads lose a sample now and then, which an average can bear.
    pub fn observe(&self, first_byte: Duration, now: Instant) {
        let sample = u32::try_from(first_byte.as_micros()).unwrap_or(u32::MAX).max(1);
        let old = u32::try_from(self.latency(now).as_micros()).unwrap_or(u32::MAX);
        // A report of half a minute, or a moment without a processor, says little about the next lookup: one sample doubles the average
        // at most, and a node that is slow indeed gets there in a few.
        let sample = if old == 0 {
            sample
        } else {
            sample.min(old.saturating_mul(2))
        };
        let new = if sample > old {
            sample
        } else {
            old - (old - sample).div_ceil(8)
        };
        self.latency_us.store(new, Ordering::Relaxed);
        self.latency_at.store(self.micros(now), Ordering::Relaxed);
    }

    /// What a connection opened now belongs to.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Shuts down every connection to it, whoever holds it: a "connection refused" does not prove that an old primary has stopped
    /// committing, so what still talks to one must be stopped from here.
    pub fn cut(&self) -> usize {
        self.generation.fetch_add(1, Ordering::AcqRel);
        let sockets = self.sockets.lock();
        for socket in sockets.values() {
            let _ = socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Both);
        }
        sockets.len()
    }
}

/// A connection's place among its node's sockets; leaves when dropped.
#[derive(Debug)]
pub(super) struct Registration {
    link: Arc<NodeLink>,
    id: u64,
    /// The node's generation when the connection was opened.
    pub(super) generation: u64,
}

impl Registration {
    /// Enters a fresh connection.
    pub(super) fn enter(link: &Arc<NodeLink>, tcp: &TcpStream, generation: u64) -> std::io::Result<Registration> {
        let second = tcp.as_fd().try_clone_to_owned()?;
        let id = link.next_socket.fetch_add(1, Ordering::Relaxed);
        link.sockets.lock().insert(id, second);
        link.open.fetch_add(1, Ordering::Relaxed);
        Ok(Registration {
            link: Arc::clone(link),
            id,
            generation,
        })
    }

    /// Whether the node was cut since.
    pub(super) fn is_cut(&self) -> bool {
        self.generation != self.link.generation()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.link.sockets.lock().remove(&self.id);
        self.link.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_counts_at_once_and_fades() {
        let link = NodeLink::new(NodeId(0), Book::of(&[]));
        let now = Instant::now();
        link.observe(Duration::from_micros(100), now);
        link.observe(Duration::from_micros(400), now);
        link.observe(Duration::from_micros(400), now);
        assert_eq!(link.latency(now), Duration::from_micros(400));
        for _ in 0..60 {
            link.observe(Duration::from_micros(100), now);
        }
        assert_eq!(link.latency(now), Duration::from_micros(100));
        link.observe(Duration::from_secs(30), now);
        assert_eq!(link.latency(now), Duration::from_micros(200));
        assert!(link.latency(now + Duration::from_secs(5)) < Duration::from_micros(10));
    }
}
