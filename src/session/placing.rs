//! From a want to a server connection that is ready for the statement: decide, hold while there is no node for it, check out, bring the
//! settings along. Nothing of the statement has been sent by then, so all of it may be tried again.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::error::SessionError;
use super::own_settings::OTHER_CLUSTER;
use super::worker::Worker;
use crate::auth::server_login::ServerLoginError;
use crate::cluster::{Hint, NodeId, NodeState, RoutingTable};
use crate::pool::{BackendConn, CheckoutError, Lease, Pool, PrincipalPools, Purpose, Settings, Slot};
use crate::route::balancer::Load;
use crate::route::consistency::History;
use crate::route::decide::Rules;
use crate::route::{Decision, Route, RouteReason, Target, Want, decide};
use crate::wire::sqlstate::SqlState;

/// While held, the decision is looked at again this often even if the table hasn't changed: lags change without a word.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What a node says of itself is waited for no longer than this.
const HEARING: Duration = Duration::from_secs(1);
/// Between two attempts at a node that doesn't take connections but isn't known to be down yet.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection, and how it was chosen.
#[derive(Debug)]
pub struct Placed {
    /// The connection, with the session's settings.
    pub lease: Lease,
    /// The way to it.
    pub route: Route,
    /// What the server reported when the settings were applied.
    pub reported: Vec<(String, String)>,
    /// It hasn't the settings yet: this request goes in front of the unit.
    pub prelude: Option<Vec<u8>>,
}

/// What a unit needs.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Which node.
    pub want: Want,
    /// The rules of routing.
    pub rules: &'a Rules,
    /// What it must see.
    pub history: &'a History,
    /// The settings to run under.
    pub settings: &'a Arc<Settings>,
    /// The settings may be applied in one write with the unit.
    pub defer: bool,
    /// The session's number; 0 if it is nobody's.
    pub session: u64,
    /// Rather the connection of this server process, on which the session was the last to draw from a sequence.
    pub reclaim: Option<i32>,
}

/// One unit's search for a place. Its patience is counted from the first moment without one.
pub struct Placing<'a> {
    worker: &'a Rc<Worker>,
    held: Option<Held<'a>>,
    /// A node on which a connection was lost, and when: its older connections are most likely lost too.
    lost: Option<(NodeId, Instant)>,
    /// A standby that refused the login.
    avoid: Option<NodeId>,
    /// Since when the primary has had no connection left for us.
    crowded: Option<Instant>,
    /// Since when it has waited for a standby to catch up.
    catching_up: Option<Instant>,
    /// What it is to see is of a timeline that isn't known here.
    ahead: bool,
    /// It has waited once for the nodes to say what they are now.
    woke: bool,
}

struct Held<'a> {
    since: Instant,
    changes: watch::Receiver<u64>,
    _counted: Counted<'a>,
}

/// Counts a held statement for as long as it is held.
struct Counted<'a>(&'a Worker);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.shared.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<'a> Placing<'a> {
    /// Nothing tried yet.
    pub fn new(worker: &'a Rc<Worker>) -> Placing<'a> {
        Placing {
            worker,
            held: None,
            lost: None,
            avoid: None,
            crowded: None,
            catching_up: None,
            ahead: false,
            woke: false,
        }
    }

    /// How long it has waited for a standby to catch up, if it has.
    pub fn caught_up_in(&self) -> Option<Duration> {
        self.catching_up.map(|since| since.elapsed())
    }

    /// Finds a place. Safe to drop.
    ///
    /// # Errors
    /// No node within `hold_timeout`, no connection within `checkout_timeout`, a node that refuses the login, or settings that the server
    /// doesn't take.
    pub async fn connect(&mut self, principal: &PrincipalPools, mut wish: Wish<'_>) -> Result<Placed, SessionError> {
        let shared = &self.worker.shared;
        loop {
            let route = self.route(wish.want, wish.rules, wish.history).await?;
            let purpose = match route.target {
                Target::Primary => Purpose::Write {
                    run_since: route.run_since,
                },
                Target::Standby => Purpose::Read,
            };
            let pool = principal.at(route.node);
            let at_once = if overflows(&route) || wish.reclaim.is_some() {
                None
            } else {
                pool.checkout_idle(self.worker.index, purpose, route.epoch)
            };
            let lease = match at_once {
                Some(lease) => Ok(lease),
                // Boxed: most find one at once.
                None => match Box::pin(self.checkout(pool, route, purpose, wish)).await {
                    Some(lease) => lease,
                    None => continue,
                },
            };
            let mut lease = match lease {
                Ok(lease) => lease,
                Err(CheckoutError::TimedOut(limit)) => return Err(SessionError::PoolExhausted(limit)),
                Err(CheckoutError::Login(error)) if error.is_node_down() => {
                    shared.cluster.hint(route.node, Hint::ConnectionLost);
                    self.pause(PAUSE).await?;
                    continue;
                }
                Err(CheckoutError::Login(error))
                    if route.target == Target::Standby && self.avoid != Some(route.node) =>
                {
                    // One that fails fast must not look fast; and what it says of this role may not be what the others say.
                    tracing::warn!(node = %shared.pools.link(route.node).name(), %error, "a standby refuses logins");
                    shared
                        .pools
                        .link(route.node)
                        .observe(Duration::from_secs(1), Instant::now());
                    // Another standby, and if that refuses too, the primary.
                    if self.avoid.replace(route.node).is_some() {
                        wish.want = Want::Primary(RouteReason::NeedsPrimary);
                    }
                    continue;
                }
                // Others have all of the node's connections: one of them will come free.
                Err(CheckoutError::Login(error))
                    if error.sqlstate() == SqlState::TOO_MANY_CONNECTIONS && self.may_wait_in_the_crowd() =>
                {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                Err(CheckoutError::Login(error)) => return Err(refused_login(&error)),
            };
            if let Some((node, at)) = self.lost
                && node == route.node
                && lease.conn().opened() <= at
            {
                continue;
            }
            // The wait for the connection may have seen the primary change.
            if route.target == Target::Primary && shared.cluster.table().epoch != route.epoch {
                lease.check_in(Instant::now());
                continue;
            }
            if route.target == Target::Standby && route.seen.is_none_or(|seen| seen <= lease.conn().opened()) {
                // It was opened since the standby was last asked: maybe to one that was restarted, and is behind what was decided by.
                lease.check_in(Instant::now());
                Box::pin(self.news(PAUSE, None)).await;
                continue;
            }
            if wish.defer
                && let Some(prelude) = lease.conn().prelude(wish.session, wish.settings)
            {
                self.held = None;
                return Ok(Placed {
                    lease,
                    route,
                    reported: Vec::new(),
                    prelude: Some(prelude),
                });
            }
            match lease.conn().make_ready(wish.session, wish.settings).await {
                Ok(reported) => {
                    self.held = None;
                    return Ok(Placed {
                        lease,
                        route,
                        reported,
                        prelude: None,
                    });
                }
                Err(crate::pool::ConnError::Lost(_)) => {
                    shared.cluster.hint(route.node, Hint::ConnectionLost);
                    drop(lease);
                    self.pause(PAUSE).await?;
                }
                // The object that a setting names may be missing here: not replayed yet, or gone.
                Err(crate::pool::ConnError::Refused { .. }) if route.target == Target::Standby => {
                    lease.check_in(Instant::now());
                    wish.want = Want::Primary(RouteReason::NeedsPrimary);
                }
                Err(crate::pool::ConnError::Refused { code, message }) => {
                    lease.check_in(Instant::now());
                    return Err(SessionError::Settings { code, message });
                }
            }
        }
    }

    /// A connection of `pool`, for as long as the route holds: it may be to a server that hangs, or others may have all that there are. Safe
    /// to drop.
    async fn checkout(
        &self,
        pool: &Arc<Pool>,
        route: Route,
        purpose: Purpose,
        wish: Wish<'_>,
    ) -> Option<Result<Lease, CheckoutError>> {
        tokio::select! {
            biased;
            lease = self.checkout_from(pool, route, purpose, wish) => Some(lease),
            () = self.until_gone(route) => None,
        }
    }

    /// The one that is to be reclaimed, if it is there.
    async fn checkout_from(
        &self,
        pool: &Arc<Pool>,
        route: Route,
        purpose: Purpose,
        wish: Wish<'_>,
    ) -> Result<Lease, CheckoutError> {
        let worker = self.worker.index;
        let slot = if overflows(&route) {
            self.overflow_slot(pool).await?
        } else {
            None
        };
        let reclaimed = wish
            .reclaim
            .and_then(|pid| pool.reclaim(wish.session, pid, worker, route.epoch));
        let mut lease = match reclaimed {
            Some(lease) => lease,
            None => pool.checkout(worker, purpose, route.epoch).await?,
        };
        lease.keep(slot);
        Ok(lease)
    }

    /// Waits until a route's node isn't what it was chosen as any more. Safe to drop.
    async fn until_gone(&self, route: Route) {
        let cluster = &self.worker.shared.cluster;
        let mut changes = cluster.subscribe();
        while route.holds(&cluster.table()) && changes.changed().await.is_ok() {}
    }

    /// A slot for a read on the primary, where there are standbys that should have taken it: all of them at once would leave writes without
    /// connections.
    async fn overflow_slot(&self, pool: &Arc<Pool>) -> Result<Option<Slot>, CheckoutError> {
        let alone = self.worker.shared.cluster.table().members().count() < 2;
        if alone {
            return Ok(None);
        }
        pool.overflow_slot().await.map(Some)
    }

    /// Has the nodes asked and waits for what they say, but no longer than `limit`.
    async fn news(&self, limit: Duration, floor: Option<Instant>) {
        let cluster = &self.worker.shared.cluster;
        let mut news = cluster.published();
        cluster.freshen(floor);
        let _ = tokio::time::timeout(limit, news.changed()).await;
    }

    /// Waits until `node` has been asked what it is since now, or is the primary no more.
    pub async fn hear_from(&self, node: NodeId) {
        self.hear(|table, began| {
            let asked_since = |row: &NodeState| {
                row.last_seen
                    .is_some_and(|seen| seen - row.round_trip.unwrap_or_default() > began)
            };
            table.primary != Some(node) || table.node(node).is_none_or(asked_since)
        })
        .await;
    }

    /// Waits until every node has been asked what it is since now.
    async fn hear_from_all(&self) {
        self.hear(|table, began| {
            let asked_since = |row: &NodeState| row.last_asked.is_some_and(|asked| asked > began);
            table.members().all(asked_since)
        })
        .await;
    }

    /// Has the nodes asked, and waits until the table says enough of what has been since then.
    async fn hear(&self, enough: impl Fn(&RoutingTable, Instant) -> bool) {
        let (cluster, began) = (&self.worker.shared.cluster, Instant::now());
        let mut news = cluster.published();
        cluster.request_probe();
        while !enough(&cluster.table(), began) && began.elapsed() < HEARING {
            let _ = tokio::time::timeout(LOOK_AGAIN, news.changed()).await;
        }
    }

    /// How long it is better to wait than to go to the primary: for a standby that catches up, or for the primary itself, which may not show yet
    /// what a standby has shown.
    fn waits_instead(&mut self, route: &Route, want: Want, rules: &Rules, history: &History) -> Option<Duration> {
        if want != Want::Read || route.target == Target::Standby {
            return None;
        }
        let (cluster, now) = (&self.worker.shared.cluster, Instant::now());
        if route.reason == RouteReason::NotFreshEnough && rules.wait_for_standby.is_zero() {
            cluster.nudge(rules.moment(history));
        } else if route.reason == RouteReason::NotFreshEnough {
            let since = self.catching_up.get_or_insert(now);
            let rest = rules
                .wait_for_standby
                .saturating_sub(now.saturating_duration_since(*since));
            if !rest.is_zero() {
                return Some(rest);
            }
        }
        history.until_primary_shows(rules.consistency, now)
    }

    fn may_wait_in_the_crowd(&mut self) -> bool {
        let since = *self.crowded.get_or_insert_with(Instant::now);
        since.elapsed() < self.worker.shared.config.load().pool.checkout_timeout
    }

    /// Opens a connection to the primary for one session alone, with `parameters` of its own. Safe to drop.
    ///
    /// # Errors
    /// As [`Placing::connect`].
    pub async fn connect_apart(
        &mut self,
        principal: &PrincipalPools,
        rules: &Rules,
        parameters: &[(&str, &str)],
    ) -> Result<Box<BackendConn>, SessionError> {
        let shared = &self.worker.shared;
        loop {
            let want = Want::Primary(RouteReason::NeedsPrimary);
            let route = self.route(want, rules, &History::default()).await?;
            let pool = principal.at(route.node);
            let opened = tokio::select! {
                biased;
                opened = pool.open_apart(self.worker.index, route.epoch, parameters) => opened,
                () = self.until_gone(route) => continue,
            };
            match opened {
                // The login may have seen the primary change.
                Ok(_) if shared.cluster.table().epoch != route.epoch => {}
                Ok(conn) => return Ok(conn),
                Err(CheckoutError::TimedOut(limit)) => return Err(SessionError::PoolExhausted(limit)),
                Err(CheckoutError::Login(error)) if error.is_node_down() => {
                    shared.cluster.hint(route.node, Hint::ConnectionLost);
                    self.pause(PAUSE).await?;
                }
                Err(CheckoutError::Login(error)) => return Err(refused_login(&error)),
            }
        }
    }

    /// A connection to `node` was lost: what was opened before isn't trusted with the next attempt, which must not be lost the same way.
    pub fn distrust(&mut self, node: NodeId, principal: &PrincipalPools) {
        self.lost = Some((node, Instant::now()));
        principal.at(node).close_idle();
    }

    /// Decides, and waits for a node if there is none.
    async fn route(&mut self, want: Want, rules: &Rules, history: &History) -> Result<Route, SessionError> {
        let shared = &self.worker.shared;
        loop {
            let now = Instant::now();
            let load = |node| {
                let link = shared.pools.link(node);
                Load {
                    in_flight: link.in_flight(),
                    latency: link.latency(now),
                }
            };
            let (decision, out_of_date) = {
                let table = shared.cluster.table();
                let decision = decide(want, rules, history, &table, load, self.avoid, now, self.worker.dice());
                let out_of_date = !self.woke && shared.cluster.is_out_of_date(&table, now);
                (decision, out_of_date)
            };
            match decision {
                Decision::Go(route) if out_of_date && route.target == Target::Primary => {
                    self.woke = true;
                    Box::pin(self.hear_from_all()).await;
                }
                Decision::Go(route) => match self.waits_instead(&route, want, rules, history) {
                    None => return Ok(route),
                    // Boxed, here and below: what is rare should take no room in every session.
                    Some(rest) => Box::pin(self.news(rest, rules.moment(history))).await,
                },
                Decision::AwaitPrimary | Decision::AwaitStandby if self.held.is_some() => {
                    self.ahead = decision == Decision::AwaitPrimary;
                    shared.cluster.freshen(rules.moment(history));
                    self.pause(LOOK_AGAIN).await?;
                }
                Decision::AwaitPrimary | Decision::AwaitStandby => self.hold()?,
                Decision::Impossible => {
                    return Err(SessionError::BadSetting {
                        name: "pgsluice.min_position".to_owned(),
                        value: rules.position.map(|position| position.to_string()).unwrap_or_default(),
                        allowed: OTHER_CLUSTER,
                    });
                }
            }
        }
    }

    /// Waits for a primary. Safe to drop.
    ///
    /// # Errors
    /// None within `hold_timeout`, or too many wait already.
    pub async fn await_primary(&mut self, rules: &Rules) -> Result<(), SessionError> {
        let want = Want::Primary(RouteReason::NeedsPrimary);
        self.route(want, rules, &History::default()).await.map(|_| ())
    }

    /// Starts to be held.
    fn hold(&mut self) -> Result<(), SessionError> {
        if self.held.is_some() {
            return Ok(());
        }
        let shared = &self.worker.shared;
        let most = shared.config.load().failover.hold_max;
        let before = shared.held.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self.worker);
        if before >= most {
            return Err(SessionError::HoldFull(before));
        }
        shared.cluster.request_probe();
        let changes = shared.cluster.subscribe();
        self.held = Some(Held {
            since: Instant::now(),
            changes,
            _counted: counted,
        });
        Ok(())
    }

    /// Waits for a change, but no longer than `limit`.
    async fn pause(&mut self, limit: Duration) -> Result<(), SessionError> {
        self.hold()?;
        let patience = self.worker.shared.config.load().failover.hold_timeout;
        let Some(held) = &mut self.held else { return Ok(()) };
        let waited = held.since.elapsed();
        if waited >= patience {
            let table = self.worker.shared.cluster.table();
            return Err(match table.primary {
                None => SessionError::NoPrimary {
                    waited,
                    why: table.why_no_primary,
                },
                Some(_) if self.ahead => SessionError::PositionAhead { waited },
                Some(_) => SessionError::NoStandby { waited },
            });
        }
        let _ = tokio::time::timeout(limit.min(patience - waited), held.changes.changed()).await;
        Ok(())
    }
}

/// A read that goes to the primary for want of a standby.
fn overflows(route: &Route) -> bool {
    matches!(route.reason, RouteReason::NotFreshEnough | RouteReason::NoStandby)
}

fn refused_login(error: &ServerLoginError) -> SessionError {
    let message = match error {
        ServerLoginError::Refused { message, .. } => message.clone(),
        other => format!("login to the server failed: {other}"),
    };
    SessionError::NodeLogin {
        code: error.sqlstate(),
        message,
    }
}
