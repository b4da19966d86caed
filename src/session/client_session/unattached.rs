//! A session that holds nothing: finding a place for a unit, as often as it takes.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::aim::Shot;
use super::super::cancel::{CancelSlot, ServerProcess};
use super::super::danger::Signals;
use super::super::error::SessionError;
use super::super::exchange::{Exchange, Parties};
use super::super::login;
use super::super::outcome::{Answer, Outcome};
use super::super::phase::{Attached, Block};
use super::super::placing::{Placed, Placing, Wish};
use super::super::plan::Plan;
use super::super::request::{FrameAt, Unit};
use super::super::retry::{Attempt, Failure, NextStep, Parting, Progress, Verdict, after};
use super::super::settle;
use super::super::worker::Worker;
use super::aiming::{settle_aim, take_aim};
use super::{ClientSession, End, rules};
use crate::cluster::Hint;
use crate::config::{Config, PoolMode};
use crate::pool::{ConnError, Lease, Settings};
use crate::route::decide::Rules;
use crate::route::{Route, RouteReason, Target, Want};
use crate::sql::Access;
use crate::wire::backend::TransactionStatus;
use crate::wire::sqlstate::SqlState;

/// Has what runs for longer than `limit` cancelled, as the client itself would.
async fn limited(
    running: impl Future<Output = Outcome>,
    limit: Duration,
    worker: &Rc<Worker>,
    slot: &Arc<CancelSlot>,
) -> Outcome {
    let mut running = pin!(running);
    loop {
        match tokio::time::timeout(limit, running.as_mut()).await {
            Ok(outcome) => return outcome,
            // It goes on, to the server's error.
            Err(_) => {
                if let Some(under_way) = slot.strike() {
                    let worker = Rc::clone(worker);
                    drop(tokio::task::spawn_local(async move {
                        login::deliver(&worker, under_way).await
                    }));
                }
            }
        }
    }
}

impl ClientSession {
    /// The session holds nothing: finds a place for the unit, as often as it takes.
    pub(super) async fn place_and_run(&mut self, plan: &Plan, unit: &Unit, arrived: Instant) -> Result<(), End> {
        let frames = &unit.frames;
        let worker = Rc::clone(&self.worker);
        let config = worker.shared.config.load();
        let rules = Rules {
            consistency: plan.consistency.unwrap_or_else(|| self.consistency(&config)),
            position: self.state.own.min_position.as_deref().copied(),
            ..rules(&config)
        };
        let mode = config.pool.mode;
        drop(config);
        let mut aim = self.aim(plan, unit);
        // What only signals may follow its target to a standby.
        let follows = plan.signals == Signals::FromAnywhere && plan.want == Want::Primary(RouteReason::NeedsPrimary);
        let near = aim.as_ref().filter(|_| follows).and_then(|aim| aim.node());
        let mut want = if mode == PoolMode::Session {
            Want::Primary(RouteReason::Attached)
        } else {
            near.map_or(plan.want, Want::Node)
        };
        let mut rules = match self.with_hinted_position(rules, plan, unit) {
            Ok(rules) => rules,
            Err(error) => return self.report(error, plan, frames).await,
        };
        let mut settings = Arc::clone(&self.state.settings);
        let mut placing = Placing::new(&worker);
        let (mut retries, mut suspect) = (0, false);
        loop {
            let principal = Arc::clone(&self.principal);
            let slot = Arc::clone(&self.registered.slot);
            let wish = Wish {
                want,
                rules: &rules,
                history: &self.state.history,
                settings: &settings,
                defer: plan.may_follow_settings(),
                session: self.present.id,
                reclaim: self.state.drew_on.filter(|_| plan.sequence_state),
            };
            let placed = tokio::select! {
                biased;
                placed = placing.connect(&principal, wish) => placed,
                // Polled only when there is a wait.
                () = slot.cancelled_while_waiting() => Err(SessionError::Cancelled),
                () = self.client.gone() => return Err(End::Left),
            };
            let Placed {
                lease,
                route,
                reported,
                prelude,
            } = match placed {
                Ok(placed) => placed,
                // What can't be set any more can still be reset.
                Err(SessionError::Settings { .. }) if settle::needed(plan, &settings) != settings => {
                    settings = settle::needed(plan, &settings);
                    continue;
                }
                Err(error) => return self.report(error, plan, frames).await,
            };
            self.tell(reported).await?;
            if self.state.own.explain {
                let why = self.reasons(plan, unit);
                self.tell_route(&why, route).await?;
            }
            if rules.position.is_some() && plan.access == Access::Read {
                Box::pin(self.tell_of_lost_position(&rules, plan.positioned)).await?;
            }
            worker.shared.counters.decided(route.target, route.reason);
            if want == Want::Read {
                let waited = placing.caught_up_in();
                worker.shared.counters.read(rules.consistency, route.target, waited);
            }
            worker.shared.counters.waited(arrived.elapsed());
            let mut attached = Box::new(self.attach(lease, route, None));
            if self.forget_strangers_sequences(&mut attached, plan).await.is_err() {
                continue;
            }
            // The last look at the table before it is sent.
            let sending = (route.target == Target::Primary).then(|| worker.shared.cluster.sending(worker.index));
            if sending.is_some() && !route.holds(&worker.shared.cluster.table()) {
                self.give_back(attached);
                continue;
            }
            let shot = match take_aim(&mut aim, &mut attached).await {
                Ok(shot) => shot,
                Err(_) if !follows => None,
                Err(node) => {
                    attached.lease.check_in(Instant::now());
                    want = Want::Node(node);
                    continue;
                }
            };
            let attempt = Attempt {
                progress: Progress::SentToNode,
                danger: plan.danger,
                in_block: false,
                target: route.target,
                retries,
                suspect,
                current: route.target == Target::Standby && rules.since.is_some(),
                refused_first: plan.refused_alike,
            };
            let first = prelude.map(|request| (request, Arc::clone(&settings)));
            let outcome = self.exchange(&mut attached, plan, frames, attempt, first, shot).await;
            drop(sending);
            settle_aim(&mut aim, &outcome);
            match outcome {
                Outcome::Unsettled { code, message } => {
                    self.give_back(attached);
                    // The object that a setting names may be missing here: not replayed yet, or gone.
                    if route.target == Target::Primary {
                        return self
                            .report(SessionError::Settings { code, message }, plan, frames)
                            .await;
                    }
                    want = Want::Primary(RouteReason::NeedsPrimary);
                }
                Outcome::Done { answer, later } => {
                    worker
                        .shared
                        .counters
                        .answered(route.target, plan.access, arrived.elapsed());
                    return self.settle(attached, plan, later, answer, mode).await;
                }
                Outcome::Refused { code, in_block } => {
                    worker.shared.count_retry(code.as_str());
                    self.learn_from_refusal(plan, route, code);
                    retries += 1;
                    match after(attempt, Failure::Refused(code)) {
                        NextStep::RetryOnCurrent if want == Want::Read => rules.be_current(arrived),
                        NextStep::RetryOnCurrent | NextStep::RetryOnPrimary => {
                            want = Want::Primary(RouteReason::Retried);
                        }
                        NextStep::Retry | NextStep::Forward | NextStep::Report(_) => {}
                    }
                    self.give_back_after(attached, in_block).await;
                    if route.target == Target::Primary && code == SqlState::READ_ONLY_SQL_TRANSACTION {
                        Box::pin(placing.hear_from(route.node)).await;
                    }
                }
                Outcome::Ended(words) => return Err(End::ByServer(words)),
                Outcome::NodeLost {
                    parting,
                    forwarded,
                    left,
                } => {
                    worker.shared.cluster.hint(route.node, Hint::ConnectionLost);
                    drop(attached);
                    let progress = if forwarded {
                        Progress::ForwardedToClient
                    } else {
                        Progress::SentToNode
                    };
                    match after(Attempt { progress, ..attempt }, Failure::Lost(parting)) {
                        NextStep::Retry | NextStep::RetryOnCurrent | NextStep::RetryOnPrimary => {
                            worker.shared.count_retry("node_lost");
                            retries += 1;
                            suspect |= parting == Parting::Silent;
                            placing.distrust(route.node, &principal);
                        }
                        NextStep::Forward => return Err(End::Left),
                        NextStep::Report(verdict) => {
                            let verdict = if plan.begins {
                                Verdict::CertainlyNotCommitted
                            } else {
                                verdict
                            };
                            return self
                                .report_loss(plan, route, verdict, left, TransactionStatus::Idle)
                                .await;
                        }
                    }
                }
                Outcome::Torn => {
                    worker.shared.cluster.hint(route.node, Hint::ConnectionLost);
                    return Err(End::Left);
                }
                Outcome::ClientGone { open } => {
                    self.client_gone(*attached, plan, open);
                    return Err(End::Left);
                }
                Outcome::Violation(bad) => {
                    self.client_gone(*attached, plan, false);
                    return Err(End::Fatal(SessionError::Protocol(bad.to_string())));
                }
            }
        }
    }

    /// A standby has refused what looked like a read: it goes to the primary at once from now on, or a name in it is news.
    fn learn_from_refusal(&self, plan: &Plan, route: Route, code: SqlState) {
        const NOT_ON_STANDBYS: [SqlState; 3] = [
            SqlState::READ_ONLY_SQL_TRANSACTION,
            SqlState::FEATURE_NOT_SUPPORTED,
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        ];
        const NOT_FOUND: [SqlState; 3] = [
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_FUNCTION,
            SqlState::UNDEFINED_OBJECT,
        ];
        if route.target == Target::Standby && plan.fingerprint != 0 && NOT_ON_STANDBYS.contains(&code) {
            self.catalog.refusals.remember(plan.fingerprint);
        } else if NOT_FOUND.contains(&code) {
            self.catalog.puzzle();
        }
    }

    /// The session takes hold of a connection.
    pub(super) fn attach(&self, mut lease: Lease, route: Route, block: Option<Block>) -> Attached {
        let conn = lease.conn();
        let known = conn.drawn_by == self.present.id && self.state.drew_on == Some(conn.pid);
        Attached {
            lease,
            session: self.present.id,
            route,
            known,
            aimed: false,
            block,
        }
    }

    /// On a connection that others have used since, `currval()` and `lastval()` would show a stranger's value: now they say that there is
    /// none. A session that has called one keeps the connections on which it draws from sequences. One that keeps its connection anyway has it cleaned before it first writes, since what it calls may draw.
    pub(super) async fn forget_strangers_sequences(
        &mut self,
        attached: &mut Attached,
        plan: &Plan,
    ) -> Result<(), ConnError> {
        if plan.sequence_state {
            self.state.reads_sequences = true;
        } else if !(self.state.pins.any() && plan.access == Access::Write) {
            return Ok(());
        }
        let status = match &attached.block {
            _ if attached.known => return Ok(()),
            // What the block has written may be what is asked for.
            Some(block) if block.wrote || block.failed => return Ok(()),
            Some(_) => TransactionStatus::InBlock,
            None => TransactionStatus::Idle,
        };
        attached.known = true;
        attached.lease.conn().drawn_by = 0;
        attached.lease.conn().discard_sequences(status).await
    }

    pub(super) fn consistency(&self, config: &Config) -> crate::config::Consistency {
        let login = &self.principal.login;
        let configured = || config.routing.consistency_for(&login.user, &login.database);
        self.state.own.consistency.unwrap_or_else(configured)
    }

    pub(super) async fn exchange(
        &mut self,
        attached: &mut Attached,
        plan: &Plan,
        frames: &[FrameAt],
        attempt: Attempt,
        first: Option<(Vec<u8>, Arc<Settings>)>,
        shot: Option<Shot>,
    ) -> Outcome {
        let worker = Rc::clone(&self.worker);
        let (context, names) = (self.sql_context(), Rc::clone(&self.names));
        let link = Arc::clone(attached.lease.link());
        let failed_block = attached.block.as_ref().is_some_and(|block| block.failed);
        let (conn, pid) = (attached.lease.conn(), self.registered.key.pid);
        // One that is pinned may listen to itself: it is never forgotten.
        if plan.access == Access::Write && (conn.writer != pid || self.state.pins.any()) {
            conn.writer = pid;
            worker.shared.notifiers.note(conn.pid, pid);
        }
        if plan.tells_process {
            self.registered.is_told(conn.pid);
        }
        let process = ServerProcess {
            node: conn.node,
            pid: conn.pid,
            secret: Arc::clone(&conn.secret),
        };
        let started = Instant::now();
        self.registered.slot.arm(process, started);
        worker
            .shared
            .counters
            .sent(conn.node, attempt.target, plan.access, u64::from(plan.ready.max(1)));
        link.started(plan.access, u64::from(plan.ready.max(1)));
        let warm = conn.warms_up();
        let scope = self.statement_scope();
        let parties = Parties {
            client: &mut self.client.stream,
            inbox: &mut self.client.inbox,
            notifiers: &worker.shared.notifiers,
            statements: &mut self.state.statements,
            told: &mut self.state.told,
            startup: &self.state.startup,
            conn,
            slot: &self.registered.slot,
            buffers: &worker.buffers,
            registry: &worker.shared.pools.statements,
            context: &context,
            scope: &scope,
            cluster: &worker.shared.cluster,
        };
        let classify = |sql: &[u8]| worker.classify(sql, &context, &names);
        let mut exchange = Exchange::new(
            parties,
            classify,
            attempt,
            plan,
            &frames[..plan.frames],
            failed_block,
            shot,
        );
        let limit = worker.shared.config.load().pool.query_timeout;
        let early = match first {
            None => None,
            // Boxed: most units need none.
            Some((prelude, settings)) => Box::pin(exchange.settle_first(&prelude, &settings)).await,
        };
        let outcome = match (early, limit) {
            (Some(outcome), _) => outcome,
            (None, None) => exchange.run().await,
            (None, Some(limit)) => Box::pin(limited(exchange.run(), limit, &worker, &self.registered.slot)).await,
        };
        link.finished();
        match &outcome {
            Outcome::Done {
                answer:
                    Answer {
                        first_byte: Some(first_byte),
                        failed: false,
                        ..
                    },
                ..
            } if warm => {
                link.observe(first_byte.saturating_duration_since(started), *first_byte);
            }
            // A node that fails fast must not look fast.
            Outcome::NodeLost { .. } => link.observe(std::time::Duration::from_secs(1), Instant::now()),
            _ => {}
        }
        let slot = &self.registered.slot;
        let disarmed = slot.disarm();
        attached.aimed |= disarmed.aimed;
        if disarmed.under_way {
            slot.settled().await;
        }
        if !outcome.leaves_ready() {
            slot.part();
        }
        outcome
    }
}
