//! Answers that the session gives itself: errors of the proxy's own, the end of a lost block, and what needs no server.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::super::block_end;
use super::super::error::SessionError;
use super::super::outcome::Left;
use super::super::phase::Phase;
use super::super::plan::{Ends, Plan};
use super::super::request::{FrameAt, Tail, Unit};
use super::super::retry::Verdict;
use super::super::settle;
use super::super::statements::{self};
use super::{ClientSession, End};
use crate::route::Route;
use crate::sql::{self, Access};
use crate::wire::backend::{CLOSE_COMPLETE, TransactionStatus, put_ready};
use crate::wire::frame::HEADER;
use crate::wire::frontend::{self, Named};

impl ClientSession {
    /// COMMIT or ROLLBACK without a block: a warning, as from a server, and none is needed for it.
    pub(super) async fn answer_end_of_nothing(&mut self, plan: &Plan, unit: &Unit) -> Result<(), End> {
        let tag = if plan.ends_block() == Some(Ends::Commit) {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        self.note_statements(&unit.frames[..plan.frames]);
        let out = block_end::nothing_ended(&unit.frames[..plan.frames], self.client.inbox.bytes(), tag);
        self.client.inbox.consume(plan.len);
        self.say(&out).await
    }

    /// Answers a unit that nothing runs in: Sync alone, or Close of statements. Also in a block that is lost: a driver that closes a statement
    /// pays no attention to errors, so this is no place to tell it.
    pub(super) async fn answer_here(&mut self, plan: &Plan, unit: &Unit) -> Result<(), End> {
        self.note_statements(&unit.frames[..plan.frames]);
        let mut out = Vec::new();
        for frame in &unit.frames[..plan.frames] {
            match frame.tag {
                b'C' => out.extend_from_slice(&CLOSE_COMPLETE),
                b'S' => put_ready(&mut out, self.status()),
                _ => {}
            }
        }
        self.client.inbox.consume(plan.len);
        self.say(&out).await
    }

    /// Follows Parse and Close in a unit that no server sees.
    pub(super) fn note_statements(&mut self, frames: &[FrameAt]) {
        let (context, scope, names) = (self.sql_context(), self.statement_scope(), Rc::clone(&self.names));
        for frame in frames {
            let body = &self.client.inbox.bytes()[frame.start + HEADER..frame.end];
            match frame.tag {
                b'P' => {
                    if let Some(parse) = frontend::parse(body).filter(|parse| !parse.name.is_empty()) {
                        let registry = &self.worker.shared.pools.statements;
                        let prepared = registry.intern(parse.sql, parse.types, &scope);
                        let class = self.worker.classify(parse.sql, &context, &names);
                        let since = self.state.statements.time(SystemTime::now());
                        self.state.statements.insert(
                            parse.name.into(),
                            statements::Named {
                                prepared,
                                class,
                                context,
                                told: None,
                                since,
                            },
                        );
                    }
                }
                b'C' => match frontend::named(body) {
                    Some(Named::Statement([])) => self.state.statements.forget_unnamed(),
                    Some(Named::Statement(name)) => drop(self.state.statements.remove(name)),
                    Some(Named::Portal(_)) | None => {}
                },
                _ => {}
            }
        }
    }

    /// Whether it is a Query that ends a lost block and goes on. A server can run it: to that, there is no block to roll back.
    pub(super) fn rolls_back_first(&self, plan: &Plan, unit: &Unit) -> bool {
        match unit.frames[..plan.frames] {
            [frame] if frame.tag == b'Q' && plan.tail == Tail::Closed => {
                let body = &self.client.inbox.bytes()[frame.start + HEADER..frame.end];
                frontend::query(body).is_some_and(|sql| sql::rolls_back_first(sql, &self.sql_context()))
            }
            _ => false,
        }
    }

    /// In a block that is lost with its node: 25P02 to everything but its end.
    pub(super) async fn answer_aborted(&mut self, plan: &Plan, unit: &Unit) -> Result<(), End> {
        let Phase::Aborted { untold, settings } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        if plan.ends_block().is_some() && !(untold && plan.ends_block() == Some(Ends::Commit)) {
            self.note_statements(&unit.frames[..plan.frames]);
            let out = block_end::rolled_back(&unit.frames[..plan.frames], self.client.inbox.bytes());
            self.client.inbox.consume(plan.len);
            settle::set(&mut self.state, settings);
            return self.say(&out).await;
        }
        if untold && plan.ends_block() == Some(Ends::Commit) {
            // The client believes that it commits: it must hear that nothing was.
            let error = SessionError::NodeLost {
                node: "of the transaction".into(),
                verdict: Verdict::CertainlyNotCommitted,
            };
            return self.report(error, plan, &unit.frames).await;
        }
        self.phase = Phase::Aborted {
            untold: false,
            settings,
        };
        let error = if untold {
            SessionError::NodeLost {
                node: "of the transaction".into(),
                verdict: Verdict::CertainlyNotCommitted,
            }
        } else {
            SessionError::BlockLost
        };
        self.report(error, plan, &unit.frames).await
    }

    /// Answers a unit of which nothing was sent with an error, in the protocol's order.
    pub(super) async fn report(&mut self, error: SessionError, plan: &Plan, frames: &[FrameAt]) -> Result<(), End> {
        let last = frames[..plan.frames].last();
        // What is cut in the middle of a Query has no Sync to wait for.
        let cut_query = plan.tail == Tail::Cut && last.is_some_and(|frame| matches!(frame.tag, b'Q' | b'F'));
        let left = Left {
            owed: plan.owed() + u32::from(cut_query),
            inbox: plan.len,
            cut: last.map_or(0, |frame| frame.end.saturating_sub(plan.len)),
        };
        self.refuse_block(plan);
        let status = self.status();
        self.refuse(&error, left, status).await
    }

    /// A BEGIN that was refused: what the client has sent behind it must not run on its own. A server's BEGIN doesn't fail, and so the
    /// client may not have waited to see.
    fn refuse_block(&mut self, plan: &Plan) {
        if plan.begins && matches!(self.phase, Phase::Idle) {
            self.phase = Phase::Aborted {
                untold: false,
                settings: Arc::clone(&self.state.settings),
            };
        }
    }

    /// Answers what is still owed of a unit whose node was lost.
    pub(super) async fn report_loss(
        &mut self,
        plan: &Plan,
        route: Route,
        verdict: Verdict,
        left: Left,
        status: TransactionStatus,
    ) -> Result<(), End> {
        self.refuse_block(plan);
        let status = match self.phase {
            Phase::Aborted { .. } => TransactionStatus::Failed,
            Phase::Idle | Phase::Attached(_) => status,
        };
        if plan.access == Access::Write {
            self.state.history.last_write = Some(Instant::now());
        }
        let error = SessionError::NodeLost {
            node: self.node_name(route),
            verdict,
        };
        self.refuse(&error, left, status).await
    }

    pub(super) async fn refuse(
        &mut self,
        error: &SessionError,
        left: Left,
        status: TransactionStatus,
    ) -> Result<(), End> {
        let fields = error.error();
        self.worker.shared.count_error(fields.code);
        Ok(self.client.refuse(&fields, left, status).await?)
    }
}
