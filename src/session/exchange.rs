//! One unit's way to the server and its answer's way back.
//!
//! Bytes are passed on as they came: the scanner names the messages, and only what the proxy must know (or must not pass on) is looked
//! into. While the answer comes the client's socket is watched too, so that one that went away is noticed; what it sends meanwhile waits
//! in the inbox, unless the server waits for it (copy data, a batch without its Sync).

mod judging;
mod sending;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use smallvec::SmallVec;
use tokio::io::AsyncWriteExt;

use super::aim::Shot;
use super::cancel::CancelSlot;
use super::danger::Signals;
use super::expect::{Expectations, Fate};
use super::inbox::{Buffers, Inbox, poll_read};
use super::login::Told;
use super::meant::Progress;
use super::notifiers::Notifiers;
use super::outcome::{Answer, Left, Outcome};
use super::plan::Plan;
use super::request::{CAP, FrameAt, TEXT_CAP, Tail};
use super::resets;
use super::retry::{Attempt, Failure, NextStep, Parting, after};
use super::statements::Statements;
use super::translate::{Translator, Untold};
use crate::cluster::Cluster;
use crate::pool::{BackendConn, PreparedRegistry, Settings};
use crate::sql::{Effect, SqlContext, StatementClass};
use crate::wire::backend::{ReplyScanner, Step, TransactionStatus, put_ready};
use crate::wire::frame::HEADER;
use crate::wire::frontend;
use crate::wire::sqlstate::SqlState;
use crate::wire::stream::Stream;

/// While an answer comes, this much of what the client sends is taken in.
const LOOK_AHEAD: usize = CAP;

/// Bytes of an answer that are held back at most.
const HELD_BACK: usize = 64 * 1024;

/// The parts of a session that an exchange works with.
pub struct Parties<'a> {
    /// The client's socket.
    pub client: &'a mut Stream,
    /// What it has sent.
    pub inbox: &'a mut Inbox,
    /// Who notifies whom.
    pub notifiers: &'a Notifiers,
    /// Its statements.
    pub statements: &'a mut Statements,
    /// What it has been told of the server's parameters.
    pub told: &'a mut Told,
    /// The settings it started with.
    pub startup: &'a Settings,
    /// The server connection.
    pub conn: &'a mut BackendConn,
    /// Spare buffers.
    pub buffers: &'a Buffers,
    /// Who aims at the session.
    pub slot: &'a CancelSlot,
    /// Identities of statements.
    pub registry: &'a PreparedRegistry,
    /// How the client's texts are read.
    pub context: &'a SqlContext,
    /// What the names in texts mean for this client.
    pub scope: &'a str,
    /// Who is told of what servers say about themselves.
    pub cluster: &'a Cluster,
}

/// One exchange.
pub struct Exchange<'a, C> {
    parties: Parties<'a>,
    classify: C,
    /// What its statement is to signal.
    shot: Option<Shot>,
    /// It may be its own session that it ends.
    signals: bool,
    /// With this the server has ended the session.
    last_words: Option<Box<[u8]>>,
    /// What a retry would be judged by.
    attempt: Attempt,
    expect: Expectations,
    /// Bytes of the unit that are sent as they are from the inbox: sent, and in all.
    raw: (usize, usize),
    /// Bytes of the unit that still stand in the inbox, for a retry.
    unit_len: usize,
    /// Bytes for the server that aren't in the inbox, and how many of them are sent.
    out: Vec<u8>,
    out_sent: usize,
    /// Where in `out` to stop until the server has described a statement.
    stops: VecDeque<usize>,
    /// Portals of statements of which the client has been told nothing yet.
    untold: Vec<Untold>,
    unflushed: bool,
    unnamed_is_ours: bool,
    /// Answers up to ReadyForQuery still to come.
    owed: u32,
    tail: Tail,
    /// The exchange began in a block that has failed.
    failed_block: bool,
    /// A statement whose plan is out of date can be prepared anew, and the unit run again: an error has undone all of it.
    heals: bool,
    /// The batch has no Sync yet.
    open: bool,
    /// The last request is of the extended protocol.
    extended: bool,
    copy_in: bool,
    /// An error has come in a batch whose Sync has not been sent: the server passes over everything up to it.
    failed_batch: bool,
    /// Of the message that is passed on in parts, the rest isn't sent.
    drop_cut: bool,
    /// Bytes still to come of a message of the client's that is passed on in parts.
    cut: usize,
    scanner: ReplyScanner,
    /// Of the server's message that comes in parts, none is for the client.
    swallows_rest: bool,
    answer: Answer,
    forwarded: bool,
    /// An error that is kept from the client, since the unit may run again.
    refused: Option<SqlState>,
    parting: Parting,
    completes: Completes,
    /// A statement's CommandComplete has come.
    completed: bool,
    client_out: Vec<u8>,
    /// What came behind the answer to the prelude.
    came_early: BytesMut,
    later: SmallVec<[Arc<StatementClass>; 1]>,
    /// What the unit does, if it resets a setting.
    resets: SmallVec<[Arc<StatementClass>; 1]>,
}

/// What a CommandComplete says, where no ReadyForQuery follows it. A server that is told to stop while it commits does that first, and by
/// the extended protocol says so, and only then that it ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Completes {
    /// All is done: it was for the one statement that ends a block.
    All,
    /// All may be done: the statement is one of those that don't wait for Sync, or may be.
    Perhaps,
    /// Nothing yet.
    Nothing,
}

impl Completes {
    fn by(plan: &Plan, frames: &[FrameAt]) -> Completes {
        let runs_last = match frames {
            [.., execute, sync] => (execute.tag, sync.tag) == (b'E', b'S'),
            [query] => query.tag == b'Q',
            [] => false,
        };
        if plan.ends_block().is_some() && plan.tail == Tail::Closed && runs_last {
            Completes::All
        } else if plan.effects.is_empty() {
            Completes::Nothing
        } else {
            Completes::Perhaps
        }
    }
}

enum Event {
    Sent,
    FromServer(io::Result<usize>),
    FromClient(io::Result<usize>),
}

impl<'a, C: FnMut(&[u8]) -> Arc<StatementClass>> Exchange<'a, C> {
    /// Prepares to carry out the first `len` bytes of the inbox. `frames` are given if they must be translated; what they signal is `shot`.
    pub fn new(
        parties: Parties<'a>,
        classify: C,
        attempt: Attempt,
        plan: &Plan,
        frames: &[FrameAt],
        failed_block: bool,
        shot: Option<Shot>,
    ) -> Exchange<'a, C> {
        let closed = matches!(plan.tail, Tail::Closed | Tail::Prepared);
        let mut exchange = Exchange {
            parties,
            classify,
            shot,
            signals: plan.signals != Signals::None,
            last_words: None,
            attempt,
            expect: Expectations::default(),
            raw: (0, 0),
            unit_len: plan.len,
            out: Vec::new(),
            out_sent: 0,
            stops: VecDeque::new(),
            untold: Vec::new(),
            unflushed: false,
            unnamed_is_ours: false,
            owed: plan.ready,
            tail: plan.tail,
            failed_block,
            heals: closed && plan.heals() && !attempt.in_block && attempt.retries == 0,
            open: !closed,
            extended: plan.extended,
            copy_in: false,
            failed_batch: false,
            drop_cut: false,
            cut: 0,
            scanner: ReplyScanner::default(),
            swallows_rest: false,
            answer: Answer {
                status: TransactionStatus::Idle,
                failed: false,
                unknown: false,
                rolled_back: false,
                first_byte: None,
            },
            forwarded: false,
            refused: None,
            parting: Parting::Silent,
            completes: Completes::by(plan, frames),
            completed: false,
            client_out: Vec::new(),
            came_early: BytesMut::new(),
            later: SmallVec::new(),
            resets: if resets::any_reset(effects(&plan.effects)) {
                plan.effects.clone()
            } else {
                SmallVec::new()
            },
        };
        if plan.translate {
            for &frame in frames {
                exchange.translate(frame);
                exchange.cut = frame.end.saturating_sub(plan.len);
            }
            if exchange.cut > 0 && frames.last().is_some_and(|frame| matches!(frame.tag, b'Q' | b'F')) {
                // Nothing follows it that the server would wait for.
                exchange.owed += 1;
                exchange.open = false;
                exchange.extended = false;
            }
            if !closed {
                exchange.leave_unit();
            }
        } else {
            exchange.note_unnamed(frames);
            exchange.raw = (0, plan.len);
        }
        exchange
    }

    fn translate(&mut self, frame: FrameAt) {
        Translator {
            statements: self.parties.statements,
            connection: &mut self.parties.conn.prepared,
            registry: self.parties.registry,
            context: self.parties.context,
            shot: self.shot,
            scope: self.parties.scope,
            told: self.parties.told,
            stops: &mut self.stops,
            untold: &mut self.untold,
            expect: &mut self.expect,
            out: &mut self.out,
            unnamed_is_ours: &mut self.unnamed_is_ours,
            failed_block: self.failed_block,
            flush_is_sync: self.tail == Tail::Prepared,
        }
        .message(frame, self.parties.inbox.bytes(), &mut self.classify);
    }

    /// In a unit that is sent as it is, a Parse of the unnamed statement stands first in its batch: nothing keeps the server from it.
    fn note_unnamed(&mut self, frames: &[FrameAt]) {
        let bytes = self.parties.inbox.bytes();
        let parsed = frames.iter().rev().find(|frame| frame.tag == b'P');
        let Some(parse) = parsed.and_then(|frame| frontend::parse(&bytes[frame.start + HEADER..frame.end])) else {
            return;
        };
        let class = (self.classify)(parse.sql);
        self.parties
            .statements
            .set_unnamed(parse.sql, parse.types, class, *self.parties.context);
    }

    /// From here on the unit can't run again.
    fn leave_unit(&mut self) {
        self.parties.inbox.consume(self.unit_len);
        self.unit_len = 0;
    }

    /// Carries it out. A complete answer leaves the server connection ready; every other outcome but [`Outcome::Refused`] leaves it in a
    /// state that only closing it can mend.
    ///
    /// Not safe to drop half-way: the server connection must then be closed.
    pub async fn run(mut self) -> Outcome {
        let mut replies = self.parties.buffers.take();
        let outcome = self.relay(&mut replies).await;
        self.parties.buffers.give(replies);
        if !matches!(outcome, Outcome::Done { .. }) {
            self.expect.give_up(self.parties.statements, self.forwarded);
        }
        if self.unit_len > 0 && !matches!(outcome, Outcome::Refused { .. } | Outcome::NodeLost { .. }) {
            self.leave_unit();
        }
        outcome
    }

    async fn relay(&mut self, replies: &mut BytesMut) -> Outcome {
        self.expect.answer_known(&mut self.client_out);
        if !self.came_early.is_empty() {
            replies.extend_from_slice(&std::mem::take(&mut self.came_early));
            self.answer.first_byte = Some(Instant::now());
            match self.digest(replies) {
                Ok(end) if self.forward(replies, end).await.is_err() => return self.client_gone(),
                Ok(_) => {}
                Err(Malformed) => return self.node_lost(),
            }
            if let Some(words) = self.last_words.take() {
                return Outcome::Ended(words);
            }
        }
        let mut took_client = false;
        loop {
            // What came with, or right behind, that which makes the server wait for more stands in the inbox already.
            if self.takes_client()
                && !took_client
                && let Err(violation) = self.pass_on()
            {
                return Outcome::Violation(violation);
            }
            took_client = self.takes_client();
            if !self.client_out.is_empty() && self.open && !self.holds_back() && self.forward(replies, 0).await.is_err()
            {
                return self.client_gone();
            }
            // What came behind the answer, such as the front of a notification, belongs to the stream.
            if self.is_complete() && replies.is_empty() {
                return match self.refused {
                    Some(code) => Outcome::Refused {
                        code,
                        in_block: self.answer.status != TransactionStatus::Idle,
                    },
                    None => Outcome::Done {
                        answer: self.answer,
                        later: std::mem::take(&mut self.later),
                    },
                };
            }
            match self.next_event(replies).await {
                // The server has taken what it was sent: what waits in the inbox can follow.
                Event::Sent => {
                    if let Err(violation) = self.pass_on() {
                        return Outcome::Violation(violation);
                    }
                }
                Event::FromServer(Ok(count)) if count > 0 => {
                    if self.answer.first_byte.is_none() {
                        self.answer.first_byte = Some(Instant::now());
                    }
                    match self.digest(replies) {
                        Ok(end) if self.holds_back() => {
                            self.client_out.extend_from_slice(&replies[..end]);
                            replies.advance(end);
                        }
                        Ok(end) => {
                            if self.forward(replies, end).await.is_err() {
                                return self.client_gone();
                            }
                        }
                        Err(Malformed) => return self.node_lost(),
                    }
                    if let Some(words) = self.last_words.take() {
                        return Outcome::Ended(words);
                    }
                }
                Event::FromServer(_) if self.lacks_ready_only() => return self.end_alone(replies).await,
                Event::FromServer(_) => return self.node_lost(),
                Event::FromClient(Ok(count)) if count > 0 => {
                    if self.takes_client()
                        && let Err(violation) = self.pass_on()
                    {
                        return Outcome::Violation(violation);
                    }
                }
                Event::FromClient(_) => return self.client_gone(),
            }
        }
    }

    /// The server has said that it stops, in the middle of an answer of which the client has nothing yet: with that, it flushes what it had
    /// ready. The unit will run again, and answer as a whole.
    fn holds_back(&self) -> bool {
        self.parting != Parting::Silent
            && self.last_words.is_none()
            && self.owed > 0
            && self.client_out.len() < HELD_BACK
            && after(self.attempt_now(), Failure::Lost(self.parting)) == NextStep::Retry
    }

    fn attempt_now(&self) -> Attempt {
        let progress = if self.forwarded {
            super::retry::Progress::ForwardedToClient
        } else {
            self.attempt.progress
        };
        Attempt {
            progress,
            ..self.attempt
        }
    }

    fn is_complete(&self) -> bool {
        self.owed == 0 && !self.open && !self.copy_in && self.cut == 0 && self.all_sent() && self.scanner.at_boundary()
    }

    fn all_sent(&self) -> bool {
        self.raw.0 == self.raw.1 && self.out_sent == self.out.len() && !self.unflushed
    }

    /// Whether nothing more is sent until the server has described a statement.
    fn is_stopped(&self) -> bool {
        !self.unflushed && self.stops.front() == Some(&self.out_sent)
    }

    /// Whether the server waits for more from the client.
    fn takes_client(&self) -> bool {
        self.open || self.copy_in || self.cut > 0
    }

    /// The server has said what became of the block's end, and is gone before it was ready for more.
    fn lacks_ready_only(&self) -> bool {
        self.completes == Completes::All && self.completed && self.owed == 1 && self.scanner.at_boundary()
    }

    /// Says in the server's place that the block is over, which is all that is missing.
    async fn end_alone(&mut self, replies: &mut BytesMut) -> Outcome {
        self.parties.conn.part();
        self.owed = 0;
        self.answer.failed = false;
        self.answer.status = TransactionStatus::Idle;
        put_ready(&mut self.client_out, TransactionStatus::Idle);
        if self.forward(replies, 0).await.is_err() {
            return self.client_gone();
        }
        Outcome::Done {
            answer: self.answer,
            later: std::mem::take(&mut self.later),
        }
    }

    fn client_gone(&self) -> Outcome {
        Outcome::ClientGone {
            open: self.open && self.extended,
        }
    }

    fn node_lost(&self) -> Outcome {
        if self.forwarded && !self.scanner.at_boundary() {
            return Outcome::Torn;
        }
        let owed = if self.tail == Tail::Prepared { 0 } else { self.owed };
        let left = Left {
            owed,
            inbox: self.unit_len,
            cut: self.cut,
        };
        Outcome::NodeLost {
            parting: self.parting,
            forwarded: self.forwarded,
            left,
        }
    }

    /// Sends what is to be sent, and waits for what comes first. Dropping it loses nothing.
    async fn next_event(&mut self, replies: &mut BytesMut) -> Event {
        poll_fn(|cx| {
            while !self.all_sent() && !self.is_stopped() {
                match self.poll_send(cx) {
                    Poll::Ready(Ok(())) if self.all_sent() && self.takes_client() => return Poll::Ready(Event::Sent),
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => break, // What the server said before it closed is still to be read.
                    Poll::Pending => break,
                }
            }
            if let Poll::Ready(read) = poll_read(&mut self.parties.conn.stream, replies, cx) {
                return Poll::Ready(Event::FromServer(read));
            }
            let limit = if self.takes_client() { 2 * TEXT_CAP } else { LOOK_AHEAD };
            let unsent = self.out.len() - self.out_sent;
            if unsent < CAP
                && self.parties.inbox.bytes().len() < limit
                && let Poll::Ready(read) = self.parties.inbox.poll_fill(self.parties.client, cx)
            {
                return Poll::Ready(Event::FromClient(read));
            }
            Poll::Pending
        })
        .await
    }

    /// Goes through what the server has sent. Answers where what can be passed on ends; what isn't for the client is taken out on the way
    /// (then it stands in `client_out`, and the answer is where it was taken from).
    fn digest(&mut self, replies: &mut BytesMut) -> Result<usize, Malformed> {
        let (mut at, mut span) = (0, 0);
        loop {
            if at == replies.len() {
                break;
            }
            match self.scanner.step(replies, at) {
                Step::Opaque { end } => {
                    if self.swallows_rest {
                        self.client_out.extend_from_slice(&replies[span..at]);
                        span = end;
                        self.swallows_rest = !self.scanner.at_boundary();
                    }
                    at = end;
                }
                Step::Incomplete => break,
                Step::Malformed => return Err(Malformed),
                Step::Message { tag, body, end } => {
                    let fate = self.judge(tag, body);
                    match fate {
                        Fate::Forward => {}
                        Fate::Swallow | Fate::Replace(_) => {
                            self.client_out.extend_from_slice(&replies[span..at]);
                            if let Fate::Replace(instead) = fate {
                                self.client_out.extend_from_slice(&instead);
                            }
                            span = end;
                            self.swallows_rest = !self.scanner.at_boundary();
                        }
                    }
                    at = end;
                    if !self.expect.is_empty() {
                        let mut known = Vec::new();
                        self.expect.answer_known(&mut known);
                        if !known.is_empty() {
                            self.client_out.extend_from_slice(&replies[span..at]);
                            self.client_out.extend_from_slice(&known);
                            span = at;
                        }
                    }
                }
            }
        }
        if self.refused.is_some() {
            // The client sees nothing of an answer that will be given again.
            self.client_out.clear();
            replies.advance(at);
            return Ok(0);
        }
        if span > 0 || !self.client_out.is_empty() {
            self.client_out.extend_from_slice(&replies[span..at]);
            replies.advance(at);
            return Ok(0);
        }
        Ok(at)
    }

    async fn forward(&mut self, replies: &mut BytesMut, end: usize) -> io::Result<()> {
        if self.is_complete() && self.refused.is_none() {
            self.parties.slot.progress(Progress::Answered);
        }
        if !self.client_out.is_empty() {
            let out = std::mem::take(&mut self.client_out);
            self.parties.client.write_all(&out).await?;
            self.forwarded = true;
            self.client_out = out;
            self.client_out.clear();
        }
        if end > 0 {
            self.parties.client.write_all(&replies[..end]).await?;
            self.forwarded = true;
            replies.advance(end);
        }
        if self.parties.client.is_tls() {
            self.parties.client.flush().await?;
        }
        Ok(())
    }
}

fn effects(classes: &[Arc<StatementClass>]) -> impl Iterator<Item = &Effect> {
    classes.iter().flat_map(|class| &class.effects)
}

/// The server's bytes can't be followed.
struct Malformed;
