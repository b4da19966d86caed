//! The server connections of one node, database and user.
//!
//! A checkout takes an idle connection, opens one if there is room, or waits its turn. Idle connections are kept by worker, since one
//! that another worker's runtime watches costs two system calls to move. Whoever waits is served in order, except that a connection goes
//! to a waiter of its own worker if the one in front of the queue has not been waiting for longer than [`PATIENCE`].

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::backend_conn::BackendConn;
use super::node_link::NodeLink;
use super::pools::{Login, REAP_INTERVAL};
use super::quota::{Counted, Need, Place, Places, Quota, Quotas};
use crate::auth::server_login::{self, ServerLogin, ServerLoginError};
use crate::cluster::Epoch;
use crate::wire::backend::TransactionStatus;
use crate::wire::sqlstate::SqlState;

/// How long the front of the queue may be passed over for a waiter of the connection's own worker.
const PATIENCE: Duration = Duration::from_millis(2);
/// How many waiters are looked at for one of the own worker.
const LOOK_AHEAD: usize = 8;

/// How long a pool that has connections, but not enough, waits for one that others don't use before it makes them give one up.
const MODESTY: Duration = Duration::from_millis(500);

/// What a connection is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Anything that needs the primary. The connection must be of the current epoch, or to the very run of the server that leads now, from when
    /// it was a standby: opened since that run is known. A promotion ends no connection.
    Write {
        /// Since when the run is known.
        run_since: Option<Instant>,
    },
    /// Reads: any epoch will do.
    Read,
}

impl Purpose {
    fn takes(self, conn: &BackendConn, epoch: Epoch) -> bool {
        match self {
            Purpose::Write { run_since } => conn.epoch == epoch || run_since.is_some_and(|since| conn.opened() > since),
            Purpose::Read => true,
        }
    }
}

/// One pool.
#[derive(Debug)]
pub struct Pool {
    login: Arc<Login>,
    /// What it shares with the node's other pools.
    pub link: Arc<NodeLink>,
    quotas: Quotas,
    /// Its own connections.
    own: Arc<Quota>,
    /// Those that reads have that overflow to the primary.
    overflow: Arc<Quota>,
    /// How many of its clients can't wait for those that it has, if any.
    starving: AtomicUsize,
    inner: Mutex<Inner>,
}

// Connections change hands by pointer: moving one would copy half a kilobyte.
type IdleList = Vec<Box<BackendConn>>;

#[derive(Debug)]
struct Inner {
    /// Idle connections by worker; the most recently used last.
    idle: Box<[IdleList]>,
    /// Connections that exist or are being opened, and those promised to a waiter.
    taken: usize,
    waiters: VecDeque<Waiter>,
    /// Connections that were opened before are out of date.
    renewed: Option<Instant>,
}

#[derive(Debug)]
struct Waiter {
    worker: usize,
    since: Instant,
    hand_over: oneshot::Sender<Lease>,
}

/// Why a checkout failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// Nobody gave one back in time.
    #[error("no server connection became free within {0:?}")]
    TimedOut(Duration),
    /// The node could not be reached or did not let us in.
    #[error(transparent)]
    Login(#[from] ServerLoginError),
}

/// Room in a pool, with a connection or for one. Dropped, it closes what it holds and passes the room on.
#[derive(Debug)]
pub struct Lease {
    // Closed before the room is passed on, so that a pool never has more connections than its size.
    conn: Option<Box<BackendConn>>,
    room: Option<Arc<Pool>>,
    /// Of those that reads may take up at the primary.
    slot: Option<Place>,
}

impl Lease {
    fn of(pool: &Arc<Pool>, conn: Box<BackendConn>) -> Lease {
        Lease {
            conn: Some(conn),
            room: Some(Arc::clone(pool)),
            slot: None,
        }
    }

    /// Keeps a slot for as long as the connection isn't given back.
    pub fn keep(&mut self, slot: Option<Place>) {
        self.slot = slot;
    }

    /// Gives up a room in which nothing can be opened now, without passing it on.
    fn leave(mut self) {
        if let Some(pool) = self.room.take() {
            pool.inner.lock().taken -= 1;
        }
    }

    fn room(pool: &Arc<Pool>) -> Lease {
        Lease {
            conn: None,
            room: Some(Arc::clone(pool)),
            slot: None,
        }
    }

    /// The connection.
    pub fn conn(&mut self) -> &mut BackendConn {
        self.conn
            .as_mut()
            .expect("a lease that was given out holds a connection until it is checked in")
    }

    /// The node's link.
    pub fn link(&self) -> &Arc<NodeLink> {
        &self
            .room
            .as_ref()
            .expect("a lease has its room until it is checked in")
            .link
    }

    /// Gives the connection back. The caller vouches that the server is idle, outside a block, with no answer outstanding, and that
    /// the connection's record of settings and statements is true.
    pub fn check_in(mut self, now: Instant) {
        self.slot = None;
        let (Some(conn), Some(pool)) = (self.conn.as_mut(), self.room.clone()) else {
            return;
        };
        conn.last_used = now;
        let worker = conn.worker();
        if !conn.is_fit() || conn.age(now) > pool.login.limits().max_lifetime || pool.must_share() {
            return;
        }
        if conn.status != TransactionStatus::Idle {
            // Should a caller be wrong, the next user must still not be in a stranger's transaction.
            tracing::error!(
                node = pool.link.name(),
                "a connection came back in a transaction block, and is closed"
            );
            return;
        }
        loop {
            let mut inner = pool.inner.lock();
            if self
                .conn
                .as_ref()
                .is_some_and(|conn| Some(conn.opened()) <= inner.renewed)
            {
                return;
            }
            let Some(next) = inner.next_waiter(worker, now) else {
                inner.idle[worker].extend(self.conn.take());
                self.room = None; // The idle connection keeps it.
                return;
            };
            drop(inner);
            match next.hand_over.send(self) {
                Ok(()) => return,
                Err(lease) => self = lease, // That one gave up; the next in line.
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.conn = None;
        self.slot = None;
        let Some(pool) = self.room.take() else { return };
        loop {
            let mut inner = pool.inner.lock();
            let Some(next) = inner.next_waiter(usize::MAX, Instant::now()) else {
                inner.taken -= 1;
                return;
            };
            drop(inner);
            match next.hand_over.send(Lease::room(&pool)) {
                Ok(()) => return,
                Err(mut lease) => lease.room = None, // Still ours.
            }
        }
    }
}

/// What is full when there is no room for another connection.
enum Full {
    /// A limit of ours.
    Here,
    /// The node.
    Node,
}

enum Taken {
    Ready(Box<BackendConn>),
    Room,
    Wait(oneshot::Receiver<Lease>),
}

impl Inner {
    /// An idle connection, one of `worker`'s own rather than another's. Those that aren't fit for it leave.
    fn take_idle(
        &mut self,
        worker: usize,
        purpose: Purpose,
        epoch: Epoch,
        unfit: &mut IdleList,
    ) -> Option<Box<BackendConn>> {
        let workers = self.idle.len();
        for turn in 0..workers {
            let list = (worker + turn) % workers;
            while let Some(conn) = self.idle[list].pop() {
                if purpose.takes(&conn, epoch) && conn.is_fit() {
                    return Some(conn);
                }
                self.taken -= 1;
                unfit.push(conn);
            }
        }
        None
    }

    /// Whose turn it is when `worker` gives something back.
    fn next_waiter(&mut self, worker: usize, now: Instant) -> Option<Waiter> {
        let front = self.waiters.front()?;
        if front.worker != worker && now.saturating_duration_since(front.since) < PATIENCE {
            let own = self
                .waiters
                .iter()
                .take(LOOK_AHEAD)
                .position(|waiter| waiter.worker == worker);
            if let Some(own) = own {
                return self.waiters.remove(own);
            }
        }
        self.waiters.pop_front()
    }
}

impl Pool {
    /// A pool with nothing in it.
    pub(super) fn new(login: Arc<Login>, link: Arc<NodeLink>, quotas: Quotas, workers: usize) -> Pool {
        let idle = (0..workers).map(|_| Vec::new()).collect();
        Pool {
            login,
            link,
            quotas,
            own: Arc::default(),
            overflow: Arc::default(),
            starving: AtomicUsize::new(0),
            inner: Mutex::new(Inner {
                idle,
                taken: 0,
                waiters: VecDeque::new(),
                renewed: None,
            }),
        }
    }

    /// As [`Pool::checkout`], but only what is there already: what most statements find.
    pub fn checkout_idle(self: &Arc<Self>, worker: usize, purpose: Purpose, epoch: Epoch) -> Option<Lease> {
        let mut unfit = IdleList::new();
        let conn = self.inner.lock().take_idle(worker, purpose, epoch, &mut unfit)?;
        // Its room goes with it from here on, and is passed on by drop.
        let mut lease = Lease::room(self);
        if conn.age(Instant::now()) <= self.login.limits().max_lifetime {
            lease.conn = Some(conn.adopt(worker).ok()?);
            return Some(lease);
        }
        None
    }

    /// Takes a connection for `worker`, whose thread this must run on.
    ///
    /// Safe to drop: a connection that was promised goes to the next in line.
    ///
    /// # Errors
    /// [`CheckoutError::TimedOut`] after the configured checkout timeout; [`CheckoutError::Login`] if a new connection was tried and failed.
    pub async fn checkout(
        self: &Arc<Self>,
        worker: usize,
        purpose: Purpose,
        epoch: Epoch,
    ) -> Result<Lease, CheckoutError> {
        let size = self.login.limits().size;
        let (mut lease, mut places) = match self.take(worker, purpose, epoch, size) {
            Taken::Ready(conn) => (Lease::of(self, conn), None),
            Taken::Room => (Lease::room(self), None),
            Taken::Wait(promise) => (self.wait_for(promise).await?, None),
        };
        loop {
            if let Some(conn) = lease.conn.take()
                && self.fits(&conn, purpose, epoch, Instant::now())
                && let Ok(conn) = conn.adopt(worker)
            {
                lease.conn = Some(conn);
                return Ok(lease);
            }
            places = places.or_else(|| self.quotas.try_places(&self.login.limits()));
            let full = match places.take() {
                None if self.has_connections() => Full::Here,
                None => {
                    places = Some(self.starve().await?);
                    continue;
                }
                Some(places) => match self.open_pooled(worker, epoch, places).await {
                    Ok(conn) => {
                        lease.conn = Some(conn);
                        return Ok(lease);
                    }
                    Err(ServerLoginError::Refused { code, .. })
                        if code == SqlState::TOO_MANY_CONNECTIONS && self.has_connections() =>
                    {
                        Full::Node
                    }
                    Err(error) => return Err(error.into()),
                },
            };
            // There is no room for another, but there are some: one of those will do. Room without a place is of no use to whoever waits.
            lease.leave();
            (lease, places) = match (self.take(worker, purpose, epoch, 0), full) {
                (Taken::Ready(conn), _) => (Lease::of(self, conn), None),
                (Taken::Room, _) => (Lease::room(self), None),
                (Taken::Wait(promise), Full::Node) => (self.wait_for(promise).await?, None),
                (Taken::Wait(promise), Full::Here) => self.wait_or_grow(promise).await?,
            };
        }
    }

    /// Leave for one more read that goes to the primary for want of a standby, at most [`config::Pool::overflow`](crate::config::Pool) of
    /// which run at once. Safe to drop.
    ///
    /// # Errors
    /// [`CheckoutError::TimedOut`] after the configured checkout timeout.
    pub async fn overflow_slot(&self) -> Result<Place, CheckoutError> {
        let limits = Arc::clone(&self.login.limits());
        if let Some(slot) = self.overflow.try_place(Some(limits.overflow)) {
            return Ok(slot);
        }
        let slot = self.overflow.place(Some(limits.overflow), Need::None);
        let in_time = tokio::time::timeout(limits.checkout_timeout, slot).await;
        in_time.map_err(|_| CheckoutError::TimedOut(limits.checkout_timeout))
    }

    /// The connection with the server process `pid`, if it is idle and `session` was the last that drew from a sequence on it.
    pub fn reclaim(self: &Arc<Self>, session: u64, pid: i32, worker: usize, epoch: Epoch) -> Option<Lease> {
        let mut inner = self.inner.lock();
        let list = inner.idle.iter_mut().find_map(|list| {
            let at = list
                .iter()
                .position(|conn| conn.pid == pid && conn.drawn_by == session && conn.epoch == epoch)?;
            Some(list.remove(at))
        });
        drop(inner);
        // Its room goes with it from here on.
        let conn = list?;
        let mut lease = Lease::room(self);
        if !conn.is_fit() {
            return None; // The room is passed on by drop.
        }
        lease.conn = Some(conn.adopt(worker).ok()?);
        Some(lease)
    }

    async fn wait_for(&self, promise: oneshot::Receiver<Lease>) -> Result<Lease, CheckoutError> {
        let limit = self.login.limits().checkout_timeout;
        match tokio::time::timeout(limit, promise).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(_)) | Err(_) => Err(CheckoutError::TimedOut(limit)),
        }
    }

    /// Waits for a connection of the pool's own, or for others who share a limit with it to leave one: first one that they don't use; after
    /// a while any, since its own may be somebody's for good.
    async fn wait_or_grow(
        self: &Arc<Self>,
        promise: oneshot::Receiver<Lease>,
    ) -> Result<(Lease, Option<Places>), CheckoutError> {
        let limits = Arc::clone(&self.login.limits());
        let mut promised = pin!(self.wait_for(promise));
        let grows = async {
            match tokio::time::timeout(MODESTY, self.quotas.places(&limits, Need::Wanting)).await {
                Ok(places) => Ok(places),
                Err(_) => self.starve().await,
            }
        };
        let places = tokio::select! {
            biased;
            lease = promised.as_mut() => return Ok((lease?, None)),
            places = grows => places?,
        };
        if let Some(lease) = self.grow(limits.size) {
            return Ok((lease, Some(places)));
        }
        drop(places);
        Ok((promised.await?, None))
    }

    fn grow(self: &Arc<Self>, size: usize) -> Option<Lease> {
        let mut inner = self.inner.lock();
        (inner.taken < size).then(|| {
            inner.taken += 1;
            Lease::room(self)
        })
    }

    fn fits(&self, conn: &BackendConn, purpose: Purpose, epoch: Epoch, now: Instant) -> bool {
        purpose.takes(conn, epoch) && conn.is_fit() && conn.age(now) <= self.login.limits().max_lifetime
    }

    fn take(&self, worker: usize, purpose: Purpose, epoch: Epoch, size: usize) -> Taken {
        // Declared before the guard, so that what is unfit is closed after the lock is released.
        let mut unfit = IdleList::new();
        let mut inner = self.inner.lock();
        if let Some(conn) = inner.take_idle(worker, purpose, epoch, &mut unfit) {
            return Taken::Ready(conn);
        }
        if inner.taken < size {
            inner.taken += 1;
            return Taken::Room;
        }
        // Those who gave up are passed over when their turn comes; where it never comes, they are not to pile up.
        if inner.waiters.len() % 64 == 63 {
            inner.waiters.retain(|waiter| !waiter.hand_over.is_closed());
        }
        let (hand_over, promise) = oneshot::channel();
        inner.waiters.push_back(Waiter {
            worker,
            since: Instant::now(),
            hand_over,
        });
        Taken::Wait(promise)
    }

    /// Others that share a limit with this pool have nothing: what it gets back it must not keep.
    fn must_share(&self) -> bool {
        self.quotas.need() == Need::Starving && self.starving.load(Ordering::Relaxed) == 0
    }

    /// Whether it has connections, or is about to have one.
    fn has_connections(&self) -> bool {
        self.own.taken() > 0
    }

    /// Places for one more connection, for which others give one up.
    async fn starve(&self) -> Result<Places, CheckoutError> {
        let limits = Arc::clone(&self.login.limits());
        let _starving = Counted::one(&self.starving);
        let places = self.quotas.places(&limits, Need::Starving);
        let limit = limits.checkout_timeout;
        let in_time = tokio::time::timeout(limit, places).await;
        in_time.map_err(|_| CheckoutError::TimedOut(limit))
    }

    async fn open_pooled(
        &self,
        worker: usize,
        epoch: Epoch,
        mut places: Places,
    ) -> Result<Box<BackendConn>, ServerLoginError> {
        places.extend(self.own.try_place(None));
        self.open(worker, epoch, &[], places).await
    }

    /// Opens one more connection and leaves it idle, if there is room for it. Answers whether it has.
    pub async fn open_spare(self: &Arc<Self>, worker: usize, epoch: Epoch) -> bool {
        let limits = Arc::clone(&self.login.limits());
        let Some(mut lease) = self.grow(limits.size) else {
            return false;
        };
        let Some(places) = self.quotas.try_places(&limits) else {
            return false;
        };
        match self.open_pooled(worker, epoch, places).await {
            Ok(conn) => lease.conn = Some(conn),
            Err(_) => return false,
        }
        lease.check_in(Instant::now());
        true
    }

    /// Opens a connection that the pool doesn't count and that never comes back to it, with more start-up `parameters`. The limits over
    /// several pools and the node's fence hold for it.
    ///
    /// # Errors
    /// As [`Pool::checkout`].
    pub async fn open_apart(
        &self,
        worker: usize,
        epoch: Epoch,
        parameters: &[(&str, &str)],
    ) -> Result<Box<BackendConn>, CheckoutError> {
        let places = self.starve().await?;
        Ok(self.open(worker, epoch, parameters, places).await?)
    }

    async fn open(
        &self,
        worker: usize,
        epoch: Epoch,
        parameters: &[(&str, &str)],
        places: Places,
    ) -> Result<Box<BackendConn>, ServerLoginError> {
        let connect_timeout = self.login.limits().connect_timeout;
        let generation = self.link.generation();
        let secret = self.login.secret();
        let departed = || ServerLoginError::Unreachable(std::io::ErrorKind::NotConnected.into());
        let address = self.link.address().ok_or_else(departed)?;
        let session = server_login::connect(ServerLogin {
            address: &address,
            user: &self.login.user,
            database: &self.login.database,
            parameters,
            secret: secret.as_ref(),
            tls: self.login.tls(),
            timeout: connect_timeout,
        })
        .await?;
        let conn = BackendConn::new(session, &self.link, generation, epoch, worker, places)
            .map_err(ServerLoginError::Unreachable)?;
        Ok(Box::new(conn))
    }

    /// Connections that were opened before `now` are used no more once they are free.
    pub(super) fn renew(&self, now: Instant) {
        self.inner.lock().renewed = Some(now);
        self.close_idle();
    }

    /// Closes all idle connections.
    pub fn close_idle(&self) {
        let mut inner = self.inner.lock();
        let closed: Vec<_> = inner.idle.iter_mut().flat_map(std::mem::take).collect();
        inner.taken -= closed.len();
        drop(inner);
    }

    /// Closes idle connections that are unfit, or have been idle for too long.
    pub(super) fn reap(&self, now: Instant) {
        let limits = self.login.limits();
        let need = self.quotas.need();
        let mut closed = Vec::new();
        let mut inner = self.inner.lock();
        for list in &mut inner.idle {
            closed.extend(list.extract_if(.., |conn| {
                let idle = now.saturating_duration_since(conn.last_used);
                let spare = match need {
                    Need::None => idle > limits.idle_timeout,
                    Need::Wanting => idle > REAP_INTERVAL,
                    Need::Starving => true,
                };
                spare || !conn.is_fit() || conn.age(now) > limits.max_lifetime
            }));
        }
        inner.taken -= closed.len();
        drop(inner);
    }

    /// Connections that are idle, and those that are in use or being opened.
    pub fn occupancy(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        let idle: usize = inner.idle.iter().map(Vec::len).sum();
        (idle, inner.taken - idle)
    }

    /// Clients that wait for a connection.
    pub fn waiting(&self) -> usize {
        let open = |waiter: &&Waiter| !waiter.hand_over.is_closed();
        self.inner.lock().waiters.iter().filter(open).count()
    }

    /// Since when the first of them has been waiting.
    pub fn waiting_since(&self) -> Option<Instant> {
        let open = |waiter: &&Waiter| !waiter.hand_over.is_closed();
        let inner = self.inner.lock();
        inner.waiters.iter().find(open).map(|waiter| waiter.since)
    }
}
