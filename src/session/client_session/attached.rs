//! A session that holds a connection: everything goes there, for as long as it lives.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::super::error::SessionError;
use super::super::outcome::Outcome;
use super::super::phase::{Attached, Block, Phase};
use super::super::placing::{Placed, Placing, Wish};
use super::super::plan::{Ends, Plan};
use super::super::request::{FrameAt, Unit};
use super::super::retry::{Attempt, Failure, NextStep, Progress, RERUNS, Verdict, after};
use super::super::settle;
use super::aiming::{settle_aim, take_aim};
use super::{ClientSession, End, rules};
use crate::cluster::{Hint, NoPrimary};
use crate::route::{Route, RouteReason, Target, Want};
use crate::sql::Access;
use crate::wire::backend::TransactionStatus;

use crate::pool::Settings;

impl ClientSession {
    /// The session holds a connection: everything goes there.
    pub(super) async fn run_attached(&mut self, plan: &Plan, unit: &Unit, arrived: Instant) -> Result<(), End> {
        let worker = Rc::clone(&self.worker);
        // Inside a block the server knows of its transaction already.
        let sending = self.may_begin().then(|| worker.shared.cluster.sending(worker.index));
        if sending.is_none() || !self.must_stand_back() {
            return self.run_held(plan, unit, arrived).await;
        }
        drop(sending);
        if let Err(error) = Box::pin(self.stand_back()).await? {
            return self.report(error, plan, &unit.frames).await;
        }
        match &self.phase {
            Phase::Attached(_) => self.run_held(plan, unit, arrived).await,
            Phase::Idle | Phase::Aborted { .. } => Box::pin(self.place_and_run(plan, unit, arrived)).await,
        }
    }

    async fn run_held(&mut self, plan: &Plan, unit: &Unit, arrived: Instant) -> Result<(), End> {
        let Phase::Attached(mut attached) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        if self.must_leave_standby(&attached, plan) {
            match self.move_to_primary(attached).await? {
                Ok(moved) => attached = moved,
                Err(error) => return self.report(error, plan, &unit.frames).await,
            }
        }
        let status = match &attached.block {
            None => Some(TransactionStatus::Idle),
            Some(block) if block.failed => None,
            Some(_) => Some(TransactionStatus::InBlock),
        };
        // A reset took the connection to the server's defaults, and the session back to what it started with.
        if let Some(status) = status
            && !Settings::same(&attached.lease.conn().settings, &self.state.settings)
            && let Ok(reported) = attached.lease.conn().apply_settings(&self.state.settings, status).await
        {
            self.tell(reported).await?;
        }
        if self.forget_strangers_sequences(&mut attached, plan).await.is_err() {
            // The statement will find the connection lost, and say so.
            tracing::debug!("a held connection was lost");
        }
        if let Some(block) = &mut attached.block
            && plan.access == Access::Write
        {
            block.movable = None;
        }
        let worker = Rc::clone(&self.worker);
        let in_block = attached.block.is_some();
        let fresh = attached.block.as_mut().and_then(|block| block.fresh.take());
        let route = Route {
            reason: RouteReason::Attached,
            ..attached.route
        };
        self.worker.shared.counters.decided(route.target, route.reason);
        if self.state.own.explain {
            let why = self.reasons(plan, unit);
            self.tell_route(&why, route).await?;
        }
        let attempt = Attempt {
            progress: Progress::SentToNode,
            danger: plan.danger,
            in_block,
            target: route.target,
            // What is attached has no other place to run, but for a block that is as good as not begun.
            retries: if fresh.is_some() { 0 } else { RERUNS },
            suspect: false,
            current: false,
            refused_first: fresh.is_some() && plan.refused_alike,
        };
        let frames: SmallVec<[FrameAt; 8]> = unit.frames.clone();
        let mut aim = self.aim(plan, unit);
        let shot = take_aim(&mut aim, &mut attached).await.unwrap_or_default();
        let outcome = self.exchange(&mut attached, plan, &frames, attempt, None, shot).await;
        settle_aim(&mut aim, &outcome);
        match outcome {
            Outcome::Done { answer, later } => {
                self.worker
                    .shared
                    .counters
                    .answered(route.target, plan.access, arrived.elapsed());
                let mode = self.worker.shared.config.load().pool.mode;
                self.settle(attached, plan, later, answer, mode).await
            }
            Outcome::Torn => {
                self.worker.shared.cluster.hint(route.node, Hint::ConnectionLost);
                Err(End::Left)
            }
            Outcome::Ended(words) => Err(End::ByServer(words)),
            // The primary takes no more writes, and the block has come to its first statement.
            Outcome::Refused { .. } if fresh.is_some() => {
                self.worker.shared.count_retry("read_only_primary");
                Box::pin(Placing::new(&worker).hear_from(route.node)).await;
                let begin = fresh.map(settle::begin_again).unwrap_or_default();
                match self.begin_on_primary(attached, begin).await? {
                    Ok(moved) => {
                        self.phase = Phase::Attached(moved);
                        Box::pin(self.run_attached(plan, unit, arrived)).await
                    }
                    Err(error) => self.report(error, plan, &unit.frames).await,
                }
            }
            Outcome::Refused { .. } | Outcome::Unsettled { .. } => Err(End::Left),
            Outcome::NodeLost {
                parting,
                forwarded,
                left,
            } => {
                self.worker.shared.cluster.hint(route.node, Hint::ConnectionLost);
                let progress = if forwarded {
                    Progress::ForwardedToClient
                } else {
                    Progress::SentToNode
                };
                let verdict = match after(Attempt { progress, ..attempt }, Failure::Lost(parting)) {
                    NextStep::Report(verdict) => verdict,
                    NextStep::Retry | NextStep::RetryOnCurrent | NextStep::RetryOnPrimary | NextStep::Forward => {
                        Verdict::Unknown
                    }
                };
                let block = attached.block.take();
                drop(attached);
                if self.state.pins.any() {
                    let node = self.node_name(route);
                    return Err(End::Fatal(SessionError::PinnedLost { node, verdict }));
                }
                let Some(block) = block else {
                    return self
                        .report_loss(plan, route, verdict, left, TransactionStatus::Idle)
                        .await;
                };
                settle::set(&mut self.state, Arc::clone(&block.settings_before));
                self.state.history.last_write = Some(Instant::now());
                let ends = plan.ends_block();
                if ends == Some(Ends::Rollback) && !forwarded {
                    // A lost block is rolled back: that is what was asked for.
                    self.phase = Phase::Aborted {
                        untold: false,
                        settings: block.settings_before,
                    };
                    return self.answer_aborted(plan, unit).await;
                }
                // Several may have ended it or not: until the client ends it, nothing of what it has sent runs on its own.
                if ends.is_some() {
                    return self
                        .report_loss(plan, route, verdict, left, TransactionStatus::Idle)
                        .await;
                }
                self.phase = Phase::Aborted {
                    untold: false,
                    settings: block.settings_before,
                };
                self.report_loss(plan, route, verdict, left, TransactionStatus::Failed)
                    .await
            }
            Outcome::ClientGone { open } => {
                self.client_gone(*attached, plan, open);
                Err(End::Left)
            }
            Outcome::Violation(bad) => {
                self.client_gone(*attached, plan, false);
                Err(End::Fatal(SessionError::Protocol(bad.to_string())))
            }
        }
    }

    /// Whether what comes next may begin a transaction on the primary.
    fn may_begin(&self) -> bool {
        matches!(&self.phase, Phase::Attached(attached) if attached.block.is_none() && attached.route.target == Target::Primary)
    }

    /// Whether what begins on the primary now has to wait: the writes are moving, or may have moved unnoticed.
    fn must_stand_back(&self) -> bool {
        let cluster = &self.worker.shared.cluster;
        let table = cluster.table();
        table.why_no_primary == Some(NoPrimary::SwitchingOver) || cluster.is_out_of_date(&table, Instant::now())
    }

    /// Waits until it is clear who takes writes, with a connection that may be to the primary that was, and is lost then.
    async fn stand_back(&mut self) -> Result<Result<(), SessionError>, End> {
        let worker = Rc::clone(&self.worker);
        let rules = rules(&worker.shared.config.load());
        let mut placing = Placing::new(&worker);
        let slot = Arc::clone(&self.registered.slot);
        let there_is_one = tokio::select! {
            biased;
            there_is_one = Box::pin(placing.await_primary(&rules)) => there_is_one,
            () = slot.cancelled_while_waiting() => Err(SessionError::Cancelled),
            () = self.client.gone() => return Err(End::Left),
        };
        if let Phase::Attached(attached) = &mut self.phase
            && (!attached.lease.conn().is_fit() || worker.shared.cluster.table().primary != Some(attached.route.node))
        {
            self.held_connection_lost()?;
        }
        Ok(there_is_one)
    }

    /// A READ ONLY block was placed on a standby, and now comes something that a standby would do wrongly rather than refuse.
    pub(super) fn must_leave_standby(&self, attached: &Attached, plan: &Plan) -> bool {
        attached.route.target == Target::Standby
            && attached.block.as_ref().is_some_and(|block| !block.failed)
            && ((matches!(plan.want, Want::Primary(_)) && !plan.block_safe && !plan.refused_alike)
                || plan.asks_for_more())
    }

    /// Begins the block again on the primary, where it has done nothing yet that the standby's end takes away.
    pub(super) async fn move_to_primary(
        &mut self,
        mut attached: Box<Attached>,
    ) -> Result<Result<Box<Attached>, SessionError>, End> {
        let begin = attached.block.as_mut().and_then(|block| block.movable.take());
        let settings_before = attached.block.as_ref().map_or_else(
            || Arc::clone(&self.state.settings),
            |block| Arc::clone(&block.settings_before),
        );
        let Some(begin) = begin else {
            self.phase = Phase::Aborted {
                untold: false,
                settings: settings_before,
            };
            return Ok(Err(SessionError::BlockOnStandby));
        };
        // The server's or the role's default may be a level at which the whole block has one snapshot, which no other node has.
        if attached.lease.conn().sees_anew().await.is_err() {
            self.phase = Phase::Aborted {
                untold: false,
                settings: settings_before,
            };
            return Ok(Err(SessionError::BlockOnStandby));
        }
        self.begin_on_primary(attached, begin).await
    }

    /// Begins a block again on whoever is the primary, or will be; what it has done so far is rolled back.
    async fn begin_on_primary(
        &mut self,
        attached: Box<Attached>,
        begin: Box<[u8]>,
    ) -> Result<Result<Box<Attached>, SessionError>, End> {
        let settings_before = attached.block.as_ref().map_or_else(
            || Arc::clone(&self.state.settings),
            |block| Arc::clone(&block.settings_before),
        );
        self.give_back_after(attached, true).await;
        let worker = Rc::clone(&self.worker);
        let rules = rules(&worker.shared.config.load());
        let principal = Arc::clone(&self.principal);
        let mut placing = Placing::new(&worker);
        let want = Want::Primary(RouteReason::NeedsPrimary);
        let wish = Wish {
            want,
            rules: &rules,
            history: &self.state.history,
            settings: &self.state.settings,
            defer: false,
            session: self.present.id,
            reclaim: None,
        };
        let placed = placing.connect(&principal, wish).await;
        let Placed {
            mut lease,
            route,
            reported,
            prelude: _,
        } = match placed {
            Ok(placed) => placed,
            Err(error) => {
                self.phase = Phase::Aborted {
                    untold: false,
                    settings: settings_before,
                };
                return Ok(Err(error));
            }
        };
        self.tell(reported).await?;
        if lease.conn().begin(&begin).await.is_err() {
            self.phase = Phase::Aborted {
                untold: false,
                settings: settings_before,
            };
            return Ok(Err(SessionError::NodeLost {
                node: self.node_name(route),
                verdict: Verdict::CertainlyNotCommitted,
            }));
        }
        let block = Block::begun(settings_before);
        Ok(Ok(Box::new(self.attach(lease, route, Some(block)))))
    }

    /// The connection that the session holds is gone, and nothing was running on it.
    pub(super) fn held_connection_lost(&mut self) -> Result<(), End> {
        let Phase::Attached(attached) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        self.registered.slot.part();
        self.worker
            .shared
            .cluster
            .hint(attached.route.node, Hint::ConnectionLost);
        if self.state.pins.any() {
            return Err(End::Fatal(SessionError::PinnedLost {
                node: self.node_name(attached.route),
                verdict: Verdict::CertainlyNotCommitted,
            }));
        }
        if let Some(block) = attached.block {
            settle::set(&mut self.state, Arc::clone(&block.settings_before));
            self.phase = Phase::Aborted {
                untold: true,
                settings: block.settings_before,
            };
        }
        Ok(())
    }
}
