//! The session's loop: take what the client wants, carry it out, settle what it changed.

mod aiming;
mod answers;
mod attached;
mod own;
mod positions;
mod unattached;

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::BytesMut;
use smallvec::SmallVec;

use super::abandon::{Unfinished, abandon};
use super::cancel::Registered;
use super::client_link::ClientLink;
use super::control::Order;
use super::danger::{Danger, begins_on_standby};
use super::error::SessionError;
use super::inbox::poll_read;
use super::login::{Told, farewell};
use super::outcome::Answer;
use super::overhear::{Alive, Hearer, Until, in_clients_terms, overhear};
use super::own_settings::OwnSettings;
use super::phase::{Attached, Phase, Pins};
pub use super::placing::{Placed, Placing};
use super::plan::{Ends, Plan, plan};
use super::request::{Gathered, LINGER, Tail, Unit};
use super::retry::Verdict;
use super::settle::{self, Meant};
use super::statements::Statements;
use super::worker::{Present, Worker};
use crate::catalog::{Change, DatabaseNames, Names};
use crate::config::{Config, PoolMode, RoutingMode};
use crate::pool::{PrincipalPools, SettingValue, Settings};
use crate::route::consistency::History;
use crate::route::decide::Rules;
use crate::route::{Route, RouteReason, Target, Want};
use crate::sql::{Effect, PinReason, SqlContext, StatementClass};
use crate::wire::backend::{TransactionStatus, put_parameter_status};
use crate::wire::frame::HEADER;
use crate::wire::stream::Stream;

/// One logged-in client.
pub struct ClientSession {
    worker: Rc<Worker>,
    present: Present,
    client: ClientLink,
    principal: Arc<PrincipalPools>,
    catalog: Arc<DatabaseNames>,
    /// What the names in its texts mean.
    #[expect(
        clippy::redundant_allocation,
        reason = "counting references to what all workers share would cost each statement two contended writes"
    )]
    names: Rc<Arc<Names>>,
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
    /// Those among them that are for the proxy.
    pub own: OwnSettings,
    /// What its next read must see.
    pub history: History,
    /// It knows that the position that it has set was lost.
    pub told_of_loss: bool,
    /// What binds it to its connection.
    pub pins: Pins,
    /// Whether a function's bare name means the built-in one.
    pub pg_catalog_first: bool,
    /// It has called `currval()` or `lastval()`.
    pub reads_sequences: bool,
    /// The server process on which it has last drawn from a sequence.
    pub drew_on: Option<i32>,
    /// Something that pins it may be gone.
    pub may_unpin: bool,
    /// It has run code that may have left something that pins it.
    pub may_pin: bool,
    /// It has changed what names mean, as far as its block commits.
    pub change: Option<Change>,
    /// It has changed the settings with which sessions begin, as far as its block commits.
    pub alters_logins: bool,
    /// It has changed what others' texts mean, as far as its block commits.
    pub alters_catalog: bool,
    /// How often it has changed what its own texts mean.
    pub catalog_changes: u32,
}

/// How a session ends.
enum End {
    /// The client is gone, or said goodbye.
    Left,
    /// The proxy ends it, with these words.
    Fatal(SessionError),
    /// The server has ended it, with this error.
    ByServer(Box<[u8]>),
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
    /// Somebody aims at the session, or is done with it.
    Called,
    /// Nothing, while the front of a batch waits for its end.
    Lingered,
}

/// How a wait ended.
enum Waited {
    /// Something has come.
    ForNews,
    /// Nothing has, while the front of a batch was here.
    LongEnough,
}

/// The rules of routing that a configuration sets.
pub fn rules(config: &Config) -> Rules {
    Rules {
        consistency: config.routing.consistency,
        max_lag: config.routing.max_lag,
        stale_reads: config.failover.stale_reads,
        read_from_primary: config.routing.read_from_primary,
        wait_for_standby: config.routing.wait_for_standby,
        position: None,
        since: None,
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
        let catalog = worker.shared.catalogs.of(&principal.login.database);
        let names = Rc::new(catalog.current());
        ClientSession {
            worker: Rc::clone(worker),
            present,
            client: ClientLink::new(client, Rc::clone(&worker.buffers)),
            principal,
            catalog,
            names,
            registered,
            phase: Phase::Idle,
            state: SessionState {
                statements: Statements::default(),
                told,
                startup: Arc::clone(&settings),
                own: OwnSettings::of(&settings),
                settings,
                history: History::default(),
                told_of_loss: false,
                pins: Pins::default(),
                pg_catalog_first,
                reads_sequences: false,
                drew_on: None,
                may_unpin: false,
                may_pin: false,
                change: None,
                alters_logins: false,
                alters_catalog: false,
                catalog_changes: 0,
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
        if let Some(words) = self.last_words(end) {
            farewell(&mut self.client.stream, &words).await;
        }
    }

    /// The error that tells the client why its session ends.
    fn last_words(&self, end: End) -> Option<Box<[u8]>> {
        match end {
            End::Left => None,
            End::ByServer(error) => Some(error),
            End::Fatal(error) => {
                self.worker.shared.count_error(error.sqlstate());
                let mut out = Vec::new();
                error.fatal().encode_error(&mut out);
                Some(out.into())
            }
        }
    }

    /// Takes one step: whatever the inbox begins with, or waiting for more.
    async fn next(&mut self) -> Result<(), End> {
        let gathered = self
            .client
            .gather()
            .map_err(|bad| End::Fatal(SessionError::Protocol(bad.to_string())))?;
        match gathered {
            Gathered::More => match self.wait().await? {
                Waited::ForNews => Ok(()),
                Waited::LongEnough => match self.client.front() {
                    Some(front) => Box::pin(self.serve_unit(front)).await,
                    None => Ok(()),
                },
            },
            Gathered::Terminate => Err(End::Left),
            Gathered::Skip(count) => {
                self.client.discard(count);
                Ok(())
            }
            Gathered::Unit(unit) if self.client.skips() => {
                let status = self.status();
                self.client.skip(&unit, status).await?;
                self.registered.slot.answered();
                Ok(())
            }
            // Boxed: what it takes to carry something out is ten times what it takes to wait, which is what most sessions do.
            Gathered::Unit(unit) => Box::pin(self.serve_unit(unit)).await,
        }
    }

    /// Waits for the client, and for whatever the server says unasked on a connection that is held; no longer than is configured.
    async fn wait(&mut self) -> Result<Waited, End> {
        let limits = self.worker.shared.config.load();
        let (limit, error) = if self.in_block() {
            (limits.pool.idle_in_transaction_timeout, SessionError::IdleInTransaction)
        } else {
            (limits.pool.client_idle_timeout, SessionError::IdleSession)
        };
        drop(limits);
        let Some(limit) = limit else { return self.listen().await };
        // Boxed: most configurations have no limit, and waiting sessions are to be small.
        match Box::pin(tokio::time::timeout(limit, self.listen())).await {
            Ok(heard) => heard,
            Err(_) => Err(End::Fatal(error)),
        }
    }

    /// Waits for the client and the server. Dropped, it may have lost what the server has said.
    async fn listen(&mut self) -> Result<Waited, End> {
        let mut heard = None;
        let mut lingers = self.lingers().then(|| Box::pin(tokio::time::sleep(LINGER)));
        let news = poll_fn(|cx| {
            match self.present.control.listen(cx) {
                Order::Serve => {}
                Order::Leave => return Poll::Ready(News::Order),
                Order::Drain if !self.in_block() => return Poll::Ready(News::Order),
                Order::Drain => {}
            }
            if self.registered.slot.is_called(cx) {
                return Poll::Ready(News::Called);
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
            if let Poll::Ready(read) = inbox.poll_fill(stream, cx) {
                return Poll::Ready(News::Client(read));
            }
            match &mut lingers {
                Some(lingers) => lingers.as_mut().poll(cx).map(|()| News::Lingered),
                None => Poll::Pending,
            }
        })
        .await;
        match news {
            News::Client(Ok(count)) if count > 0 => Ok(Waited::ForNews),
            News::Lingered => Ok(Waited::LongEnough),
            News::Client(_) => Err(End::Left),
            // Boxed, as is what a server says unasked: both are rare, and waiting sessions are to be small.
            News::Called => Box::pin(self.answer_call()).await.map(|()| Waited::ForNews),
            News::Order => Err(End::Fatal(SessionError::Draining)),
            News::Server(read) => {
                let mut bytes = heard.unwrap_or_default();
                let alive = match read {
                    Ok(count) if count > 0 => Box::pin(self.overhear(&mut bytes, Until::Whole)).await?,
                    _ => Alive::No,
                };
                self.worker.buffers.give(bytes);
                match alive {
                    Alive::Yes => Ok(Waited::ForNews),
                    Alive::No => self.held_connection_lost().map(|()| Waited::ForNews),
                    Alive::Ended(error) => Err(End::ByServer(error)),
                }
            }
        }
    }

    /// Passes on what the server says unasked, on the connection that is held.
    async fn overhear(&mut self, bytes: &mut BytesMut, until: Until) -> io::Result<Alive> {
        let Phase::Attached(attached) = &mut self.phase else {
            return Ok(Alive::No);
        };
        let hearer = Hearer {
            client: &mut self.client,
            told: &mut self.state.told,
            slot: &self.registered.slot,
            notifiers: &self.worker.shared.notifiers,
            cluster: &self.worker.shared.cluster,
        };
        overhear(bytes, until, attached.lease.conn(), hearer).await
    }

    /// Whether the front of a batch is here that the primary may get without its end. What it is can't be known before, so a block on a
    /// standby waits.
    fn lingers(&self) -> bool {
        let on_standby = matches!(&self.phase, Phase::Attached(attached) if attached.route.target == Target::Standby);
        !on_standby && self.client.front().is_some()
    }

    fn in_block(&self) -> bool {
        match &self.phase {
            Phase::Attached(attached) => attached.block.is_some(),
            Phase::Aborted { .. } => true,
            Phase::Idle => false,
        }
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

    /// Names may mean something else by now, also those in statements that were prepared before.
    fn look_up_names(&mut self) {
        if self.catalog.is_current(&self.names) {
            return;
        }
        self.names = Rc::new(self.catalog.current());
        let (worker, names) = (&self.worker, &self.names);
        let classify = |sql: &[u8], context: &SqlContext| worker.classify(sql, context, names);
        self.state.statements.reclassify(classify);
    }

    /// What the names in this session's texts mean, for telling its prepared statements from those of others. Temporary tables are its own.
    fn statement_scope(&self) -> Cow<'static, str> {
        if self.state.pins.has(PinReason::TemporaryTable) {
            return Cow::Owned(format!("session {} {}", self.present.id, self.state.catalog_changes));
        }
        match self.state.settings.value("search_path") {
            None => Cow::Borrowed(""),
            Some(SettingValue::Raw(path) | SettingValue::Sql(path)) => Cow::Owned(path.to_string()),
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

    async fn serve_unit(&mut self, unit: Unit) -> Result<(), End> {
        self.carry_out(unit).await?;
        self.registered.slot.answered();
        Ok(())
    }

    async fn carry_out(&mut self, unit: Unit) -> Result<(), End> {
        let arrived = Instant::now();
        if matches!(self.phase, Phase::Idle) {
            self.state.change = None; // A block that was lost has changed nothing.
        }
        self.look_up_names();
        let context = self.sql_context();
        let (worker, names) = (Rc::clone(&self.worker), Rc::clone(&self.names));
        let classify = |sql: &[u8]| worker.classify(sql, &context, &names);
        let plan = plan(&unit, self.client.inbox.bytes(), &mut self.state.statements, classify)
            .map_err(|violation| End::Fatal(SessionError::Protocol(violation.0)))?;
        self.worker.shared.cluster.note_statement();
        let refused = (!plan.effects.is_empty())
            .then(|| settle::refused_setting(&plan.effects, worker.shared.cluster.table().system_identifier));
        if let Some(error) = refused.flatten() {
            return self.report(error, &plan, &unit.frames).await;
        }
        if self.state.statements.is_full() && plan.translate && self.names_statements(&unit) {
            let error = SessionError::TooManyStatements(Statements::LIMIT >> 20);
            return self.report(error, &plan, &unit.frames).await;
        }
        if plan.changes_names && self.state.change.is_none() {
            self.state.change = Some(self.catalog.change());
        }
        if plan.begins && worker.shared.config.load().pool.mode == PoolMode::Statement {
            return self.report(SessionError::NoBlocks, &plan, &unit.frames).await;
        }
        for effect in plan.effects.iter().flat_map(|class| &class.effects) {
            if let Effect::NeedsDatabaseAlone { name } = effect {
                worker.shared.pools.leave_database(name, arrived);
            }
        }
        let mut plan = plan;
        plan.want = self.adjusted(plan.want, plan.fingerprint);
        if plan.begins
            && matches!(plan.want, Want::Read)
            && self.state.settings.value("default_transaction_isolation").is_some()
        {
            // Its READ ONLY block may need one snapshot throughout, and could not be moved.
            plan.want = Want::Primary(RouteReason::NeedsPrimary);
        }
        if self.is_kept_for_others() {
            self.let_go().await?;
        }
        // It is on the connection to which it binds the session.
        let closes_there = plan.closes_unknown && self.state.pins.has(PinReason::Prepare);
        match &self.phase {
            _ if !plan.needs_server && !closes_there => self.answer_here(&plan, &unit).await,
            _ if plan.own && self.status() != TransactionStatus::Failed => self.answer_own(&plan, &unit).await,
            Phase::Idle if plan.only_ends_block() => self.answer_end_of_nothing(&plan, &unit).await,
            Phase::Aborted { settings, .. } if self.rolls_back_first(&plan, &unit) => {
                let settings = Arc::clone(settings);
                self.phase = Phase::Idle;
                settle::set(&mut self.state, settings);
                self.place_and_run(&plan, &unit, arrived).await
            }
            Phase::Aborted { .. } => self.answer_aborted(&plan, &unit).await,
            Phase::Idle => self.place_and_run(&plan, &unit, arrived).await,
            Phase::Attached(_) => self.run_attached(&plan, &unit, arrived).await,
        }
    }

    /// What is wanted of a unit, where the session, the configuration, or what a standby has said before have a say.
    fn adjusted(&self, want: Want, fingerprint: u64) -> Want {
        let config = self.worker.shared.config.load();
        let mode = config.routing.mode;
        let login = &self.principal.login;
        let route = config.routing.route_for(&login.user, &login.database);
        drop(config);
        match self.state.own.applied_to(want, route) {
            Want::Read if self.catalog.refusals.knows(fingerprint) => Want::Primary(RouteReason::RefusedBefore),
            Want::Read | Want::Standby if mode == RoutingMode::Observe => Want::Primary(RouteReason::Observed),
            want => want,
        }
    }

    /// Whether the unit gives a name to a statement.
    fn names_statements(&self, unit: &Unit) -> bool {
        let bytes = self.client.inbox.bytes();
        unit.frames
            .iter()
            .any(|frame| frame.tag == b'P' && bytes.get(frame.start + HEADER).is_some_and(|&first| first != 0))
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
        mode: PoolMode,
    ) -> Result<(), End> {
        let now = Instant::now();
        let pins_before = self.state.pins;
        let begin = plan.effects.first().filter(|class| begins_on_standby(class)).is_some();
        let names = settle::to_ask(plan, &later, attached.block.as_ref(), answer);
        let asked = self.ask_for_settings(&mut attached, names, answer).await?;
        settle::settle(&mut self.state, &mut attached, plan, &later, answer, &asked, now);
        self.follow_catalog(plan, &later, attached.block.is_some());
        if plan.tail == Tail::Prepared && answer.failed {
            self.client.skip_to_sync();
        }
        // An error doesn't undo what was drawn. What its connection remembers last is the session's own from here on.
        if plan.draws_from_sequences() || plan.unknown_code {
            let conn = attached.lease.conn();
            conn.drawn_by = self.present.id;
            self.state.drew_on = Some(conn.pid);
            attached.known = true;
        }
        let draws_or_tells = plan.draws_from_sequences() || plan.sequence_state;
        if draws_or_tells && self.state.reads_sequences && !answer.failed {
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
        if let Some(block) = &mut attached.block
            && attached.route.target == Target::Primary
            && !block.failed
        {
            block.fresh = settle::beginning(plan);
        }
        if attached.block.is_none() {
            self.state.may_unpin |= plan.closes_unknown;
            let may_unpin = std::mem::take(&mut self.state.may_unpin) && self.state.pins.can_be_asked_for();
            // A connection that is lost will be noticed by whoever uses it next.
            if (std::mem::take(&mut self.state.may_pin) || may_unpin)
                && let Ok(bonds) = attached.lease.conn().bonds().await
            {
                self.state.pins.follow(bonds);
            }
        }
        self.pass_on_overheard(&mut attached).await?;
        for reason in PinReason::ALL {
            match (pins_before.has(reason), self.state.pins.has(reason)) {
                (false, true) => self.worker.shared.counters.pin(reason, 1.0),
                (true, false) => self.worker.shared.counters.pin(reason, -1.0),
                (false, false) | (true, true) => {}
            }
        }
        if attached.block.is_none() {
            if later.iter().any(|class| class.changes_names) {
                drop(self.catalog.change());
            }
            self.state.change = None;
        }
        if self.state.alters_logins && attached.block.is_none() {
            self.state.alters_logins = false;
            self.worker.shared.pools.renew(now);
        }
        if attached.block.is_some() && mode == PoolMode::Statement {
            // It was not to be seen that this would begin one. With its connection it is rolled back.
            return Err(End::Fatal(SessionError::NoBlocks));
        }
        if attached.aimed {
            self.registered.slot.call();
        }
        if attached.block.is_none() && !self.state.pins.any() && mode != PoolMode::Session && !attached.aimed {
            attached.lease.check_in(now);
        } else {
            self.phase = Phase::Attached(attached);
        }
        if self.present.control.current() == Order::Leave {
            return Err(End::Fatal(SessionError::Draining));
        }
        Ok(())
    }

    /// What is prepared after a change of the catalog is prepared anew, in the block that has made it, and by all others once it is over:
    /// before, they prepare what was.
    fn follow_catalog(&mut self, plan: &Plan, later: &[Arc<StatementClass>], in_block: bool) {
        let changes = settle::catalog_changes(plan, later, self.state.pins);
        self.state.catalog_changes += u32::from(changes.is_some());
        let for_others = changes == Some(Meant::ForAll);
        self.state.alters_catalog |= for_others;
        if for_others || (self.state.alters_catalog && !in_block) {
            self.worker.shared.pools.statements.retire_all();
        }
        self.state.alters_catalog &= in_block;
    }

    /// Notifications that came while something was asked on the proxy's own account.
    async fn pass_on_overheard(&mut self, attached: &mut Attached) -> Result<(), End> {
        let conn = attached.lease.conn();
        let overheard = conn.take_overheard();
        if overheard.is_empty() || !self.state.pins.has(PinReason::Listen) {
            return Ok(());
        }
        let told = in_clients_terms(&overheard, &self.worker.shared.notifiers);
        self.say(&told).await
    }

    /// Asks the server what the session has set by `set_config()`.
    async fn ask_for_settings(
        &mut self,
        attached: &mut Attached,
        names: SmallVec<[String; 1]>,
        answer: Answer,
    ) -> Result<SmallVec<[settle::Asked; 1]>, End> {
        let mut asked = SmallVec::new();
        for name in names {
            match attached.lease.conn().setting(&name, answer.status).await {
                Ok(value) => asked.push((name, value)),
                // The client has been told that it is set.
                Err(_) => {
                    let node = self.node_name(attached.route);
                    let verdict = Verdict::CertainlyNotCommitted;
                    return Err(End::Fatal(SessionError::PinnedLost { node, verdict }));
                }
            }
        }
        Ok(asked)
    }

    /// The client went away while its statement ran: a read is cancelled, a write is allowed to end. The connection is closed either way.
    fn client_gone(&mut self, attached: Attached, plan: &Plan, open: bool) {
        let commits = plan.ends_block() == Some(Ends::Commit) || plan.danger == Danger::Several;
        let unfinished = if open || plan.danger == Danger::None || (attached.block.is_some() && !commits) {
            Unfinished::Cancel
        } else {
            Unfinished::LetEnd
        };
        abandon(&self.worker, attached.lease, unfinished);
    }
}
