//! The session's loop: take what the client wants, carry it out, settle what it changed.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Instant;

use smallvec::SmallVec;

use super::block_end;
use super::cancel::{Registered, ServerProcess};
use super::client_link::ClientLink;
use super::control::Order;
use super::error::SessionError;
use super::exchange::{Answer, Exchange, Left, Outcome, Parties};
use super::inbox::poll_read;
use super::login::{Told, farewell};
use super::overhear::{Alive, overhear};
use super::phase::{Attached, Block, Phase, Pins};
pub use super::placing::{Placed, Placing};
use super::plan::{Danger, Ends, Plan, begins_on_standby, plan};
use super::request::{FrameAt, Gathered, Tail, Unit};
use super::retry::{Attempt, Failure, NextStep, Progress, Verdict, after};
use super::settle;
use super::statements::{self, Statements};
use super::worker::{Present, Worker};
use crate::cluster::Hint;
use crate::config::{Config, PoolMode};
use crate::pool::{ConnError, Lease, PrincipalPools, Settings};
use crate::route::consistency::History;
use crate::route::decide::Rules;
use crate::route::{Route, RouteReason, Target, Want};
use crate::sql::{Access, PinReason, SqlContext, StatementClass};
use crate::wire::backend::{CLOSE_COMPLETE, TransactionStatus, put_parameter_status, put_ready};
use crate::wire::frame::HEADER;
use crate::wire::frontend::{self, Named};
use crate::wire::stream::Stream;

/// One logged-in client.
pub struct ClientSession {
    worker: Rc<Worker>,
    present: Present,
    client: ClientLink,
    principal: Arc<PrincipalPools>,
    registered: Registered,
    phase: Phase,
    pub(super) state: SessionState,
}

/// What a session has of its own, wherever it runs.
pub struct SessionState {
    /// Its prepared statements.
    pub statements: Statements,
    /// What it has been told of the server's parameters.
    pub told: Told,
    /// The settings it started with, which RESET goes back to.
    pub startup: Arc<Settings>,
    /// The settings it has.
    pub settings: Arc<Settings>,
    /// What its next read must see.
    pub history: History,
    /// What binds it to its connection.
    pub pins: Pins,
    /// Whether a function's bare name means the built-in one.
    pub pg_catalog_first: bool,
}

/// How a session ends.
enum End {
    /// The client is gone, or said goodbye.
    Left,
    /// The proxy ends it, with these words.
    Fatal(SessionError),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Left
    }
}

/// What came first while the session waited.
enum News {
    Client(io::Result<usize>),
    Server(io::Result<usize>),
    Order,
}

/// The rules of routing that a configuration sets.
pub fn rules(config: &Config) -> Rules {
    Rules {
        consistency: config.routing.consistency,
        max_lag: config.routing.max_lag,
        read_from_primary: config.routing.read_from_primary,
    }
}

impl ClientSession {
    /// A client that has been greeted.
    pub fn new(
        worker: &Rc<Worker>,
        present: Present,
        client: Stream,
        principal: Arc<PrincipalPools>,
        settings: Arc<Settings>,
        told: Told,
        registered: Registered,
    ) -> ClientSession {
        let pg_catalog_first = settle::pg_catalog_first(&settings);
        ClientSession {
            worker: Rc::clone(worker),
            present,
            client: ClientLink::new(client, Rc::clone(&worker.buffers)),
            principal,
            registered,
            phase: Phase::Idle,
            state: SessionState {
                statements: Statements::default(),
                told,
                startup: Arc::clone(&settings),
                settings,
                history: History::default(),
                pins: Pins::default(),
                pg_catalog_first,
            },
        }
    }

    /// Serves the client until it leaves.
    pub async fn run(mut self) {
        let end = loop {
            if let Err(end) = self.next().await {
                break end;
            }
        };
        for reason in PinReason::ALL {
            if self.state.pins.has(reason) {
                self.worker.shared.counters.pin(reason, -1.0);
            }
        }
        // A connection in a block or with somebody's state on it is closed, not cleaned.
        self.phase = Phase::Idle;
        if let End::Fatal(error) = end {
            self.worker.shared.count_error(error.sqlstate());
            let mut out = Vec::new();
            error.fatal().encode_error(&mut out);
            farewell(&mut self.client.stream, &out).await;
        }
    }

    /// Takes one step: whatever the inbox begins with, or waiting for more.
    async fn next(&mut self) -> Result<(), End> {
        let gathered = self
            .client
            .gather()
            .map_err(|bad| End::Fatal(SessionError::Protocol(bad.to_string())))?;
        match gathered {
            Gathered::More => self.wait().await,
            Gathered::Terminate => Err(End::Left),
            Gathered::Skip(count) => {
                self.client.discard(count);
                Ok(())
            }
            Gathered::Unit(unit) if self.client.skips() => {
                let status = self.status();
                Ok(self.client.skip(&unit, status).await?)
            }
            Gathered::Unit(unit) => self.carry_out(unit).await,
        }
    }

    /// Waits for the client, and for whatever the server says unasked on a connection that is held.
    async fn wait(&mut self) -> Result<(), End> {
        let mut heard = None;
        let news = poll_fn(|cx| {
            match self.present.control.listen(cx) {
                Order::Serve => {}
                Order::Leave => return Poll::Ready(News::Order),
                Order::Drain if !self.in_block() => return Poll::Ready(News::Order),
                Order::Drain => {}
            }
            if let Phase::Attached(attached) = &mut self.phase {
                let buffer = heard.get_or_insert_with(|| self.worker.buffers.take());
                if let Poll::Ready(read) = poll_read(&mut attached.lease.conn().stream, buffer, cx) {
                    return Poll::Ready(News::Server(read));
                }
                if buffer.is_empty()
                    && let Some(buffer) = heard.take()
                {
                    self.worker.buffers.give(buffer);
                }
            }
            let ClientLink { stream, inbox, .. } = &mut self.client;
            inbox.poll_fill(stream, cx).map(News::Client)
        })
        .await;
        match news {
            News::Client(Ok(count)) if count > 0 => Ok(()),
            News::Client(_) => Err(End::Left),
            News::Order => Err(End::Fatal(SessionError::Draining)),
            News::Server(read) => {
                let mut bytes = heard.unwrap_or_default();
                let alive = match (&mut self.phase, read) {
                    (Phase::Attached(attached), Ok(count)) if count > 0 => {
                        let cluster = &self.worker.shared.cluster;
                        let conn = attached.lease.conn();
                        overhear(&mut bytes, conn, &mut self.client, &mut self.state.told, cluster).await?
                    }
                    _ => Alive::No,
                };
                self.worker.buffers.give(bytes);
                match alive {
                    Alive::Yes => Ok(()),
                    Alive::No => self.held_connection_lost(),
                }
            }
        }
    }

    fn in_block(&self) -> bool {
        match &self.phase {
            Phase::Attached(attached) => attached.block.is_some(),
            Phase::Aborted { .. } => true,
            Phase::Idle => false,
        }
    }

    /// The connection that the session holds is gone, and nothing was running on it.
    fn held_connection_lost(&mut self) -> Result<(), End> {
        let Phase::Attached(attached) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        self.worker
            .shared
            .cluster
            .hint(attached.route.node, Hint::ConnectionLost);
        if self.state.pins.any() {
            return Err(End::Fatal(SessionError::PinnedLost(self.node_name(attached.route))));
        }
        if let Some(block) = attached.block {
            self.state.settings = Arc::clone(&block.settings_before);
            self.phase = Phase::Aborted {
                untold: true,
                settings: block.settings_before,
            };
        }
        Ok(())
    }

    fn node_name(&self, route: Route) -> String {
        let table = self.worker.shared.cluster.table();
        table
            .node(route.node)
            .map_or_else(|| route.node.to_string(), |node| node.name.to_string())
    }

    fn sql_context(&self) -> SqlContext {
        SqlContext {
            standard_conforming_strings: self.state.told.value("standard_conforming_strings") != Some("off"),
            pg_catalog_first: self.state.pg_catalog_first,
        }
    }

    fn status(&self) -> TransactionStatus {
        match &self.phase {
            Phase::Idle => TransactionStatus::Idle,
            Phase::Aborted { .. } => TransactionStatus::Failed,
            Phase::Attached(attached) => match &attached.block {
                None => TransactionStatus::Idle,
                Some(block) if block.failed => TransactionStatus::Failed,
                Some(_) => TransactionStatus::InBlock,
            },
        }
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), End> {
        Ok(self.client.say(bytes).await?)
    }

    async fn carry_out(&mut self, unit: Unit) -> Result<(), End> {
        let arrived = Instant::now();
        let context = self.sql_context();
        let worker = Rc::clone(&self.worker);
        let classify = |sql: &[u8]| worker.classify(sql, &context);
        let plan = plan(&unit, self.client.inbox.bytes(), &mut self.state.statements, classify)
            .map_err(|violation| End::Fatal(SessionError::Protocol(violation.0)))?;
        self.worker.shared.cluster.note_statement();
        if let Some(error) = settle::refused_setting(&plan.effects) {
            return self.report(error, &plan, &unit.frames).await;
        }
        let mut plan = plan;
        if plan.begins
            && matches!(plan.want, Want::Read)
            && self.state.settings.value("default_transaction_isolation").is_some()
        {
            // Its READ ONLY block may need one snapshot throughout, and could not be moved.
            plan.want = Want::Primary(RouteReason::NeedsPrimary);
        }
        match &self.phase {
            _ if !plan.needs_server => self.answer_here(&plan, &unit).await,
            Phase::Idle if plan.only_ends_block() => self.answer_end_of_nothing(&plan, &unit).await,
            Phase::Aborted { .. } => self.answer_aborted(&plan, &unit).await,
            Phase::Idle => self.place_and_run(&plan, &unit.frames, arrived).await,
            Phase::Attached(_) => self.run_attached(&plan, &unit, arrived).await,
        }
    }

    /// COMMIT or ROLLBACK without a block: a warning, as from a server, and none is needed for it.
    async fn answer_end_of_nothing(&mut self, plan: &Plan, unit: &Unit) -> Result<(), End> {
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
    async fn answer_here(&mut self, plan: &Plan, unit: &Unit) -> Result<(), End> {
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
    fn note_statements(&mut self, frames: &[FrameAt]) {
        let context = self.sql_context();
        for frame in frames {
            let body = &self.client.inbox.bytes()[frame.start + HEADER..frame.end];
            match frame.tag {
                b'P' => {
                    if let Some(parse) = frontend::parse(body).filter(|parse| !parse.name.is_empty()) {
                        let prepared = self.worker.shared.pools.statements.intern(parse.sql, parse.types);
                        let class = self.worker.classify(parse.sql, &context);
                        self.state
                            .statements
                            .insert(parse.name.into(), statements::Named { prepared, class });
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

    /// The session holds nothing: finds a place for the unit, as often as it takes.
    async fn place_and_run(&mut self, plan: &Plan, frames: &[FrameAt], arrived: Instant) -> Result<(), End> {
        let worker = Rc::clone(&self.worker);
        let config = worker.shared.config.load();
        let rules = Rules {
            consistency: self.consistency(&config),
            ..rules(&config)
        };
        let session_pool = config.pool.mode == PoolMode::Session;
        drop(config);
        let mut want = if session_pool {
            Want::Primary(RouteReason::Attached)
        } else {
            plan.want
        };
        let mut placing = Placing::new(&worker);
        let mut retries = 0;
        loop {
            let principal = Arc::clone(&self.principal);
            let slot = Arc::clone(&self.registered.slot);
            let reclaim = plan.sequence_state.then_some(self.present.id);
            let placed = tokio::select! {
                biased;
                placed = placing.connect(&principal, want, &rules, &self.state.history, &self.state.settings, reclaim) => placed,
                // Polled only when there is a wait.
                () = slot.cancelled_while_waiting() => Err(SessionError::Cancelled),
            };
            let Placed { lease, route, reported } = match placed {
                Ok(placed) => placed,
                Err(error) => return self.report(error, plan, frames).await,
            };
            self.tell(reported).await?;
            worker.shared.counters.decided(route.target, route.reason);
            let mut attached = Box::new(self.attach(lease, route, None));
            if plan.sequence_state && self.forget_strangers_sequences(&mut attached).await.is_err() {
                continue;
            }
            let attempt = Attempt {
                progress: Progress::SentToNode,
                danger: plan.danger,
                in_block: false,
                target: route.target,
                retries,
            };
            match self.exchange(&mut attached, plan, frames, attempt).await {
                Outcome::Done { answer, later } => {
                    worker
                        .shared
                        .counters
                        .answered(route.target, plan.access, arrived.elapsed());
                    return self.settle(attached, plan, later, answer, session_pool).await;
                }
                Outcome::Refused(code) => {
                    worker.shared.count_retry(code.as_str());
                    retries += 1;
                    if after(Attempt { retries: 0, ..attempt }, Failure::Refused(code)) == NextStep::RetryOnPrimary {
                        want = Want::Primary(RouteReason::Retried);
                    }
                    attached.lease.check_in(Instant::now());
                }
                Outcome::NodeLost {
                    farewell,
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
                    match after(Attempt { progress, ..attempt }, Failure::Lost { farewell }) {
                        NextStep::Retry | NextStep::RetryOnPrimary => {
                            worker.shared.count_retry("node_lost");
                            retries += 1;
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
                Outcome::ClientGone => {
                    self.client_gone(attached, plan).await;
                    return Err(End::Left);
                }
                Outcome::Violation(bad) => return Err(End::Fatal(SessionError::Protocol(bad.to_string()))),
            }
        }
    }

    /// The session takes hold of a connection.
    fn attach(&self, mut lease: Lease, route: Route, block: Option<Block>) -> Attached {
        let known = lease.conn().last_session == self.present.id;
        lease.conn().last_session = self.present.id;
        Attached {
            lease,
            route,
            known,
            block,
        }
    }

    /// On a connection that others have used since, `currval()` and `lastval()` would show a stranger's value: now they say that there is
    /// none. From here on, sessions of this database and user keep the connections on which they draw from sequences.
    async fn forget_strangers_sequences(&self, attached: &mut Attached) -> Result<(), ConnError> {
        self.principal.reads_sequence_state.store(true, Ordering::Relaxed);
        let status = match &attached.block {
            _ if attached.known => return Ok(()),
            // What the block has written may be what is asked for.
            Some(block) if block.wrote || block.failed => return Ok(()),
            Some(_) => TransactionStatus::InBlock,
            None => TransactionStatus::Idle,
        };
        attached.known = true;
        attached.lease.conn().discard_sequences(status).await
    }

    fn consistency(&self, config: &Config) -> crate::config::Consistency {
        settle::session_consistency(&self.state.settings).unwrap_or(config.routing.consistency)
    }

    async fn exchange(
        &mut self,
        attached: &mut Attached,
        plan: &Plan,
        frames: &[FrameAt],
        attempt: Attempt,
    ) -> Outcome {
        let worker = Rc::clone(&self.worker);
        let context = self.sql_context();
        let link = Arc::clone(attached.lease.link());
        let conn = attached.lease.conn();
        self.registered.slot.arm(ServerProcess {
            node: conn.node,
            pid: conn.pid,
            secret: Arc::clone(&conn.secret),
        });
        worker
            .shared
            .counters
            .sent(conn.node, attempt.target, plan.access, u64::from(plan.ready.max(1)));
        link.started(plan.access, u64::from(plan.ready.max(1)));
        let started = Instant::now();
        let warm = conn.warms_up();
        let parties = Parties {
            client: &mut self.client.stream,
            inbox: &mut self.client.inbox,
            statements: &mut self.state.statements,
            told: &mut self.state.told,
            conn,
            buffers: &worker.buffers,
            registry: &worker.shared.pools.statements,
            cluster: &worker.shared.cluster,
        };
        let classify = |sql: &[u8]| worker.classify(sql, &context);
        let outcome = Exchange::new(parties, classify, attempt, plan, &frames[..plan.frames])
            .run()
            .await;
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
        if self.registered.slot.disarm() {
            self.registered.slot.settled().await;
        }
        outcome
    }

    /// The session holds a connection: everything goes there.
    async fn run_attached(&mut self, plan: &Plan, unit: &Unit, arrived: Instant) -> Result<(), End> {
        let Phase::Attached(mut attached) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        if self.must_leave_standby(&attached, plan) {
            match self.move_to_primary(attached).await? {
                Ok(moved) => attached = moved,
                Err(error) => return self.report(error, plan, &unit.frames).await,
            }
        }
        if plan.sequence_state && self.forget_strangers_sequences(&mut attached).await.is_err() {
            // The statement will find the connection lost, and say so.
            tracing::debug!("a held connection was lost");
        }
        if let Some(block) = &mut attached.block
            && plan.access == Access::Write
        {
            block.movable = None;
        }
        let in_block = attached.block.is_some();
        let route = Route {
            reason: RouteReason::Attached,
            ..attached.route
        };
        self.worker.shared.counters.decided(route.target, route.reason);
        let attempt = Attempt {
            progress: Progress::SentToNode,
            danger: plan.danger,
            in_block,
            target: route.target,
            retries: 1, // What is attached has no other place to run.
        };
        let frames: SmallVec<[FrameAt; 8]> = unit.frames.clone();
        match self.exchange(&mut attached, plan, &frames, attempt).await {
            Outcome::Done { answer, later } => {
                self.worker
                    .shared
                    .counters
                    .answered(route.target, plan.access, arrived.elapsed());
                let session_pool = self.worker.shared.config.load().pool.mode == PoolMode::Session;
                self.settle(attached, plan, later, answer, session_pool).await
            }
            Outcome::Refused(_) | Outcome::NodeLost { .. } if self.state.pins.any() => {
                self.worker.shared.cluster.hint(route.node, Hint::ConnectionLost);
                Err(End::Fatal(SessionError::PinnedLost(self.node_name(route))))
            }
            Outcome::Refused(_) => Err(End::Left),
            Outcome::NodeLost {
                farewell,
                forwarded,
                left,
            } => {
                self.worker.shared.cluster.hint(route.node, Hint::ConnectionLost);
                let progress = if forwarded {
                    Progress::ForwardedToClient
                } else {
                    Progress::SentToNode
                };
                let verdict = match after(Attempt { progress, ..attempt }, Failure::Lost { farewell }) {
                    NextStep::Report(verdict) => verdict,
                    NextStep::Retry | NextStep::RetryOnPrimary | NextStep::Forward => Verdict::Unknown,
                };
                let block = attached.block.take();
                drop(attached);
                let Some(block) = block else {
                    return self
                        .report_loss(plan, route, verdict, left, TransactionStatus::Idle)
                        .await;
                };
                self.state.settings = Arc::clone(&block.settings_before);
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
                if ends.is_some() || plan.danger == Danger::Several {
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
            Outcome::ClientGone => {
                self.client_gone(attached, plan).await;
                Err(End::Left)
            }
            Outcome::Violation(bad) => Err(End::Fatal(SessionError::Protocol(bad.to_string()))),
        }
    }

    /// A READ ONLY block was placed on a standby, and now comes something that a standby would do wrongly rather than refuse.
    fn must_leave_standby(&self, attached: &Attached, plan: &Plan) -> bool {
        attached.route.target == Target::Standby
            && attached.block.as_ref().is_some_and(|block| !block.failed)
            && matches!(plan.want, Want::Primary(_))
            && !plan.block_safe
            && !plan.refused_alike
    }

    /// Begins the block again on the primary, where it has done nothing yet that the standby's end takes away.
    async fn move_to_primary(
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
        if attached.lease.conn().run(b"ROLLBACK").await.is_ok() {
            attached.lease.check_in(Instant::now());
        }
        let worker = Rc::clone(&self.worker);
        let rules = rules(&worker.shared.config.load());
        let principal = Arc::clone(&self.principal);
        let mut placing = Placing::new(&worker);
        let want = Want::Primary(RouteReason::NeedsPrimary);
        let placed = placing
            .connect(
                &principal,
                want,
                &rules,
                &self.state.history,
                &self.state.settings,
                None,
            )
            .await;
        let Placed {
            mut lease,
            route,
            reported,
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

    /// Tells the client what it doesn't know yet of what a server has reported.
    async fn tell(&mut self, reported: Vec<(String, String)>) -> Result<(), End> {
        let mut out = Vec::new();
        for (name, value) in reported {
            if name != "in_hot_standby" && self.state.told.note(&name, &value) {
                put_parameter_status(&mut out, &name, &value);
            }
        }
        if out.is_empty() { Ok(()) } else { self.say(&out).await }
    }

    /// A unit was answered: follows what it changed, and gives the connection back if nothing holds it.
    async fn settle(
        &mut self,
        mut attached: Box<Attached>,
        plan: &Plan,
        later: SmallVec<[Arc<StatementClass>; 1]>,
        answer: Answer,
        session_pool: bool,
    ) -> Result<(), End> {
        let now = Instant::now();
        let pins_before = self.state.pins;
        let begin = plan.effects.first().filter(|class| begins_on_standby(class)).is_some();
        settle::settle(&mut self.state, &mut attached, plan, &later, answer, now);
        if plan.tail == Tail::Prepared && answer.failed {
            self.client.skip_to_sync();
        }
        if plan.draws_from_sequences() && !answer.failed && self.principal.reads_sequence_state.load(Ordering::Relaxed)
        {
            self.state.pins.add(PinReason::Sequence);
        }
        if let Some(block) = &mut attached.block
            && begin
            && attached.route.target == Target::Standby
            && plan.effects.len() == 1
            && block.movable.is_none()
            && !block.wrote
        {
            block.movable = Some(settle::begin_text(&plan.effects));
        }
        for reason in PinReason::ALL {
            match (pins_before.has(reason), self.state.pins.has(reason)) {
                (false, true) => self.worker.shared.counters.pin(reason, 1.0),
                (true, false) => self.worker.shared.counters.pin(reason, -1.0),
                (false, false) | (true, true) => {}
            }
        }
        if attached.block.is_none() && !self.state.pins.any() && !session_pool {
            attached.lease.check_in(now);
        } else {
            self.phase = Phase::Attached(attached);
        }
        if self.present.control.current() == Order::Leave {
            return Err(End::Fatal(SessionError::Draining));
        }
        Ok(())
    }

    /// The client went away while its statement ran: a read is cancelled, a write is allowed to end. The connection is closed either way.
    async fn client_gone(&mut self, mut attached: Box<Attached>, plan: &Plan) {
        let worker = Rc::clone(&self.worker);
        let conn = attached.lease.conn();
        if plan.danger == Danger::None || attached.block.is_some() {
            let address = worker.shared.pools.link(conn.node).address.clone();
            let (pid, secret) = (conn.pid, Arc::clone(&conn.secret));
            let _ = crate::auth::server_login::cancel(&address, &worker.shared.node_tls, pid, &secret).await;
        }
    }

    /// In a block that is lost with its node: 25P02 to everything but its end.
    async fn answer_aborted(&mut self, plan: &Plan, unit: &Unit) -> Result<(), End> {
        let Phase::Aborted { untold, settings } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        if plan.ends_block().is_some() && !(untold && plan.ends_block() == Some(Ends::Commit)) {
            self.note_statements(&unit.frames[..plan.frames]);
            let out = block_end::rolled_back(&unit.frames[..plan.frames], self.client.inbox.bytes());
            self.client.inbox.consume(plan.len);
            self.state.settings = settings;
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
    async fn report(&mut self, error: SessionError, plan: &Plan, frames: &[FrameAt]) -> Result<(), End> {
        let end = frames[..plan.frames].last().map_or(plan.len, |frame| frame.end);
        let left = Left {
            owed: plan.owed(),
            inbox: plan.len,
            cut: end.saturating_sub(plan.len),
        };
        let status = self.status();
        self.refuse(&error, left, status).await
    }

    /// Answers what is still owed of a unit whose node was lost.
    async fn report_loss(
        &mut self,
        plan: &Plan,
        route: Route,
        verdict: Verdict,
        left: Left,
        status: TransactionStatus,
    ) -> Result<(), End> {
        if plan.access == Access::Write {
            self.state.history.last_write = Some(Instant::now());
        }
        let error = SessionError::NodeLost {
            node: self.node_name(route),
            verdict,
        };
        self.refuse(&error, left, status).await
    }

    async fn refuse(&mut self, error: &SessionError, left: Left, status: TransactionStatus) -> Result<(), End> {
        let fields = error.error();
        self.worker.shared.count_error(fields.code);
        Ok(self.client.refuse(&fields, left, status).await?)
    }
}
