//! What one unit wants, and what it does. Pure, but for the cache of classes.

use std::sync::Arc;

use smallvec::SmallVec;

use super::danger::{
    Danger, Signals, begins_on_standby, danger, one_after_another, reads_sequence_state, refused_alike, signals,
    stays_in_block, stronger,
};
use super::request::{FrameAt, Tail, Unit};
use super::statements::Statements;
use crate::config::Consistency;
use crate::route::{RouteReason, Want};
use crate::sql::{Access, Effect, Hint, Reason, StatementClass};
use crate::wire::frame::HEADER;
use crate::wire::frontend::{self, Named};

/// One unit, judged.
#[derive(Debug)]
pub struct Plan {
    /// Its frames and bytes: the unit's, or fewer when a later request must be carried out on its own.
    pub frames: usize,
    /// See `frames`.
    pub len: usize,
    /// How it ends.
    pub tail: Tail,
    /// Which node.
    pub want: Want,
    /// Read or write, for metrics and for what the session must see afterwards.
    pub access: Access,
    /// If its node is lost.
    pub danger: Danger,
    /// The classes of what changes the session or the catalog, in order; where there is any, the plan is one request.
    pub effects: SmallVec<[Arc<StatementClass>; 1]>,
    /// It begins a block and doesn't end it: lost before its answer, none of it is committed.
    pub begins: bool,
    /// Statement names in it must be translated.
    pub translate: bool,
    /// Answers that end in ReadyForQuery.
    pub ready: u32,
    /// It is extended protocol (its last request, if there are several).
    pub extended: bool,
    /// A server is needed to answer it.
    pub needs_server: bool,
    /// It asks for the connection's last value of a sequence.
    pub sequence_state: bool,
    /// It inserts rows.
    pub inserts: bool,
    /// It runs code of which nothing is known.
    pub unknown_code: bool,
    /// Whether something in it signals server processes.
    pub signals: Signals,
    /// Something in it tells the client the process id of its server.
    pub tells_process: bool,
    /// It closes a statement that the proxy doesn't know: one that was made by SQL PREPARE, perhaps.
    pub closes_unknown: bool,
    /// Statements that run in it.
    pub executes: u32,
    /// What it leaves behind can't be known.
    pub unknown: bool,
    /// It may change what reading a name does.
    pub changes_names: bool,
    /// Nobody but the proxy is asked anything in it.
    pub own: bool,
    /// Something in it may be a COPY.
    pub copies: bool,
    /// What a hint wants it to see.
    pub consistency: Option<Consistency>,
    /// A hint names a position that it must see.
    pub positioned: bool,
    /// The one statement that runs in it, if its text has a fingerprint; else 0.
    pub fingerprint: u64,
    /// Everything in it that runs is a plain read, or ends a block: fit for a standby that a READ ONLY block is on.
    pub block_safe: bool,
    /// A standby in a READ ONLY transaction refuses it exactly as the primary would.
    pub refused_alike: bool,
}

/// Longer units wait until their settings are there: a server that doesn't read on must not be waited for.
const MOST_BEHIND_SETTINGS: usize = 16 * 1024;

/// How a unit ends its block, if it does nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// COMMIT, or PREPARE TRANSACTION.
    Commit,
    /// ROLLBACK.
    Rollback,
}

impl Plan {
    /// Answers up to ReadyForQuery that the client waits for. In a batch whose Sync it has not sent, it waits for none.
    pub fn owed(&self) -> u32 {
        if self.tail == Tail::Closed { self.ready } else { 0 }
    }

    /// Whether it ends its block and does nothing else, and how. Not one that chains another to it.
    pub fn ends_block(&self) -> Option<Ends> {
        let ends = match self.only_effect()? {
            Effect::Commit { chain: false } | Effect::PrepareTransaction => Ends::Commit,
            Effect::Rollback { chain: false } => Ends::Rollback,
            _ => return None,
        };
        (self.executes == 1 && self.effects[0].statements == 1).then_some(ends)
    }

    /// Settings may go in front of it in one write: whatever refuses them refuses all of it too. Nothing in it ends a block.
    pub fn may_follow_settings(&self) -> bool {
        let plain = self.effects.is_empty() && !self.copies && !self.may_be_done_in_part();
        plain && self.tail == Tail::Closed && self.len <= MOST_BEHIND_SETTINGS
    }

    /// A hint wants it to see more than its session.
    pub fn asks_for_more(&self) -> bool {
        self.positioned || self.consistency.is_some_and(|level| level > Consistency::Eventual)
    }

    /// One statement at most, which an error undoes whole.
    pub fn heals(&self) -> bool {
        self.executes <= 1 && !self.may_be_done_in_part()
    }

    /// An error in it need not undo all of it.
    fn may_be_done_in_part(&self) -> bool {
        matches!(self.danger, Danger::Writes | Danger::Several)
    }

    /// A plain COMMIT or ROLLBACK by Query, and nothing else: outside a block it needs no server.
    pub fn only_ends_block(&self) -> bool {
        let plain = !matches!(self.only_effect(), Some(Effect::PrepareTransaction));
        plain && self.ends_block().is_some() && !self.extended && self.tail == Tail::Closed
    }

    /// It calls `nextval()`, in so many words or perhaps by a column's default.
    pub fn draws_from_sequences(&self) -> bool {
        let mut effects = self.effects.iter().flat_map(|class| &class.effects);
        self.inserts || effects.any(|effect| *effect == Effect::NextVal)
    }

    fn only_effect(&self) -> Option<&Effect> {
        let [class] = &self.effects[..] else { return None };
        let [effect] = &class.effects[..] else { return None };
        Some(effect)
    }
}

/// The client sent something that is not the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// What the requests so far add up to.
struct Sum {
    want: Want,
    access: Access,
    danger: Danger,
    translate: bool,
    needs_server: bool,
    block_safe: bool,
    refused_alike: bool,
    sequence_state: bool,
    inserts: bool,
    unknown_code: bool,
    signals: Signals,
    tells_process: bool,
    closes_unknown: bool,
    changes_names: bool,
    own: bool,
    elsewhere: bool,
    consistency: Option<Consistency>,
    positioned: bool,
    fingerprint: u64,
    executes: u32,
    copies: bool,
    ends: bool,
    unknown: bool,
    begins: bool,
    effects: SmallVec<[Arc<StatementClass>; 1]>,
}

impl Sum {
    fn nothing() -> Sum {
        Sum {
            want: Want::Read,
            access: Access::Read,
            danger: Danger::None,
            translate: false,
            needs_server: false,
            block_safe: true,
            refused_alike: true,
            sequence_state: false,
            inserts: false,
            unknown_code: false,
            signals: Signals::None,
            tells_process: false,
            closes_unknown: false,
            changes_names: false,
            own: false,
            elsewhere: false,
            consistency: None,
            positioned: false,
            fingerprint: 0,
            executes: 0,
            copies: false,
            ends: false,
            unknown: false,
            begins: false,
            effects: SmallVec::new(),
        }
    }

    fn primary(&mut self, reason: RouteReason) {
        if !matches!(self.want, Want::Primary(_)) {
            self.want = Want::Primary(reason);
        }
    }

    /// A statement is to be understood by the server, whether or not it runs.
    fn names(&mut self, class: &StatementClass) {
        self.needs_server = true;
        let own = class.statements == 1 && matches!(class.effects[..], [Effect::Own]);
        self.own |= own;
        self.elsewhere |= !own;
        self.consistency = self.consistency.max(class.consistency);
        self.positioned |= class.positioned;
        self.translate |= class.reads_prepared;
        match wanted(class) {
            Want::Primary(reason) => self.primary(reason),
            Want::Standby => self.standby(),
            // A class says nothing of nodes.
            Want::Read | Want::Node(_) => {}
        }
    }

    fn standby(&mut self) {
        if self.want == Want::Read {
            self.want = Want::Standby;
        }
    }

    /// A statement runs.
    fn runs(&mut self, class: &Arc<StatementClass>) {
        self.names(class);
        let begins =
            matches!(&class.effects[..], [Effect::Begin { .. }]) && class.statements == 1 && self.executes == 0;
        self.begins |= begins;
        self.executes += 1;
        self.ends |= class.effects.iter().any(|effect| {
            matches!(
                effect,
                Effect::Commit { .. } | Effect::Rollback { .. } | Effect::PrepareTransaction
            )
        });
        self.unknown_code |= class.unknown_code;
        self.signals = self.signals.max(signals(class));
        self.translate |= class.signals;
        self.tells_process |= class.tells_process;
        self.changes_names |= class.changes_names;
        self.fingerprint = if self.executes == 1 { class.fingerprint } else { 0 };
        self.copies |= matches!(class.reason, Reason::Verb("COPY"));
        if class.access == Access::Write && !(class.hint == Some(Hint::Standby) && class.standby_by_hint) {
            self.access = Access::Write;
            self.danger = stronger(self.danger, danger(class));
            self.block_safe &= stays_in_block(class);
            // A BEGIN that comes first has done nothing when what follows it is refused.
            self.refused_alike &= begins || refused_alike(class);
            self.sequence_state |= reads_sequence_state(class);
            self.inserts |= matches!(
                class.reason,
                Reason::Verb("INSERT" | "MERGE") | Reason::DataModifyingCte
            );
        }
        if must_be_followed(class) {
            self.effects.push(Arc::clone(class));
        }
    }

    /// Names of statements that the client has prepared by the protocol stand in a text.
    fn by_sql(&mut self, class: &StatementClass, statements: &Statements) {
        for effect in &class.effects {
            if let Effect::Execute { name } | Effect::Deallocate { name } = effect
                && statements.named(name.as_bytes()).is_some()
            {
                self.translate = true;
                self.unknown_code |= matches!(effect, Effect::Execute { .. });
            }
        }
    }

    /// Everything that isn't known to be harmless.
    fn opaque(&mut self) {
        self.needs_server = true;
        self.elsewhere = true;
        self.primary(RouteReason::NeedsPrimary);
        self.access = Access::Write;
        self.danger = Danger::Several;
        self.block_safe = false;
        self.refused_alike = false;
    }
}

/// Where a statement of this class wants to run.
pub(super) fn wanted(class: &StatementClass) -> Want {
    match (class.hint, class.access) {
        (Some(Hint::Primary), _) => Want::Primary(RouteReason::HintPrimary),
        (Some(Hint::Standby), Access::Read) => Want::Standby,
        (Some(Hint::Standby), Access::Write) if class.standby_by_hint => Want::Standby,
        (_, Access::Write) if !begins_on_standby(class) => Want::Primary(RouteReason::NeedsPrimary),
        (_, Access::Read | Access::Write) => Want::Read,
    }
}

/// Judges `unit`, whose bytes are the front of `bytes`. `attached` says that the session holds a connection, so that nothing depends on
/// where it would go.
///
/// # Errors
/// [`Violation`]: a message is malformed.
pub fn plan(
    unit: &Unit,
    bytes: &[u8],
    statements: &mut Statements,
    mut classify: impl FnMut(&[u8]) -> Arc<StatementClass>,
) -> Result<Plan, Violation> {
    let mut plan: Option<Plan> = None;
    let mut begin = 0;
    loop {
        let rest = &unit.frames[begin..];
        if rest.is_empty() {
            break;
        }
        let count = rest
            .iter()
            .position(|frame| matches!(frame.tag, b'Q' | b'F' | b'S'))
            .map_or(rest.len(), |at| at + 1);
        let request = &rest[..count];
        let prepared = begin + count == unit.frames.len() && unit.tail == Tail::Prepared;
        let cut = begin + count == unit.frames.len() && unit.tail == Tail::Cut;
        let closed = prepared || (!cut && matches!(request[count - 1].tag, b'Q' | b'F' | b'S'));
        // The unnamed statement is noted when its request is taken, so a request that is left for later must not be looked at twice.
        let alone = prepared || !closed || must_stand_alone(request, bytes, &mut classify);
        if plan.is_some() && alone {
            break;
        }
        let sum = judge(request, bytes, cut, statements, &mut classify)?;
        let alone = prepared || !closed || sum.copies || sum.translate || sum.own || !sum.effects.is_empty();
        begin += count;
        let len = if closed { request[count - 1].end } else { unit.len };
        let tail = if closed && !prepared { Tail::Closed } else { unit.tail };
        plan = Some(match plan {
            None => Plan {
                frames: begin,
                len,
                tail,
                want: if closed {
                    sum.want
                } else {
                    Want::Primary(RouteReason::NeedsPrimary)
                },
                access: if closed { sum.access } else { Access::Write },
                danger: if closed { sum.danger } else { Danger::Several },
                effects: sum.effects,
                begins: sum.begins,
                translate: sum.translate || !closed || prepared,
                ready: u32::from(closed),
                extended: request[count - 1].tag != b'Q' && request[count - 1].tag != b'F',
                needs_server: sum.needs_server || !closed,
                sequence_state: sum.sequence_state,
                inserts: sum.inserts,
                unknown_code: sum.unknown_code || !closed,
                signals: sum.signals,
                tells_process: sum.tells_process,
                closes_unknown: sum.closes_unknown,
                executes: sum.executes,
                unknown: sum.unknown,
                changes_names: sum.changes_names,
                own: sum.own && !sum.elsewhere && closed && !prepared,
                copies: sum.copies || sum.unknown || !closed,
                consistency: sum.consistency,
                positioned: sum.positioned,
                fingerprint: sum.fingerprint,
                block_safe: sum.block_safe && closed,
                refused_alike: sum.refused_alike && closed,
            },
            Some(before) => Plan {
                frames: begin,
                len,
                tail,
                want: match (before.want, sum.want) {
                    (Want::Primary(reason), _) | (_, Want::Primary(reason)) => Want::Primary(reason),
                    (Want::Standby, _) | (_, Want::Standby) => Want::Standby,
                    (Want::Read | Want::Node(_), Want::Read | Want::Node(_)) => Want::Read,
                },
                access: before.access.max(sum.access),
                danger: one_after_another(before.danger, sum.danger),
                effects: SmallVec::new(),
                begins: false,
                translate: before.translate || sum.translate,
                ready: before.ready + 1,
                extended: request[count - 1].tag == b'S',
                needs_server: before.needs_server || sum.needs_server,
                sequence_state: before.sequence_state || sum.sequence_state,
                inserts: before.inserts || sum.inserts,
                unknown_code: before.unknown_code || sum.unknown_code,
                signals: before.signals.max(sum.signals),
                tells_process: before.tells_process || sum.tells_process,
                closes_unknown: before.closes_unknown || sum.closes_unknown,
                executes: before.executes + sum.executes,
                unknown: false,
                changes_names: before.changes_names || sum.changes_names,
                own: false,
                copies: before.copies || sum.copies,
                consistency: before.consistency.max(sum.consistency),
                positioned: before.positioned || sum.positioned,
                fingerprint: 0,
                block_safe: before.block_safe && sum.block_safe,
                refused_alike: false,
            },
        });
        if alone {
            break;
        }
    }
    plan.ok_or_else(|| Violation("empty unit".into()))
}

/// Whether the session must take note that it has run.
fn must_be_followed(class: &StatementClass) -> bool {
    class.ddl || !class.effects.is_empty()
}

/// Whether a request that follows others must wait for their end: it changes the session or the catalog; or it names statements, of which
/// those before it may yet fail to make one, or lose one.
fn must_stand_alone(
    request: &[FrameAt],
    bytes: &[u8],
    classify: &mut impl FnMut(&[u8]) -> Arc<StatementClass>,
) -> bool {
    let mut changes = |sql| {
        let class: Arc<StatementClass> = classify(sql);
        must_be_followed(&class)
            || class.signals
            || class.reads_prepared
            || matches!(class.reason, Reason::Verb("COPY"))
    };
    let mut unnamed_here = false;
    request.iter().any(|frame| {
        let body = &bytes[frame.start + HEADER..frame.end];
        match frame.tag {
            b'Q' => request.len() > 1 || frontend::query(body).is_none_or(&mut changes),
            b'P' => {
                unnamed_here = true;
                frame.start != request[0].start
                    || frontend::parse(body).is_none_or(|parse| !parse.name.is_empty() || changes(parse.sql))
            }
            b'B' => frontend::bind(body).is_none_or(|bind| !bind.statement.is_empty() || !unnamed_here),
            b'D' | b'C' => {
                !matches!(frontend::named(body), Some(Named::Portal(_)) | Some(Named::Statement([])) if unnamed_here)
            }
            b'F' => true,
            _ => false,
        }
    })
}

fn judge(
    request: &[FrameAt],
    bytes: &[u8],
    cut: bool,
    statements: &mut Statements,
    classify: &mut impl FnMut(&[u8]) -> Arc<StatementClass>,
) -> Result<Sum, Violation> {
    let mut sum = Sum::nothing();
    // Statements parsed in this very batch, so that a Bind finds its class before the server has confirmed them.
    let mut parsed = SmallVec::<[(&[u8], Arc<StatementClass>); 4]>::new();
    // Portals bound in this very batch: what they are of runs when they are executed.
    let mut portals = SmallVec::<[(&[u8], Arc<StatementClass>); 4]>::new();
    let mut unnamed_here = false;
    let malformed = |what: &str| Violation(format!("invalid {what} message"));
    let whole = if cut { &request[..request.len() - 1] } else { request };
    for frame in whole {
        let body = &bytes[frame.start + HEADER..frame.end];
        match frame.tag {
            b'Q' => {
                let sql = frontend::query(body).ok_or_else(|| malformed("Query"))?;
                // After an error in the batch before it, the server passes it over: that must be followed.
                sum.translate |= request.len() > 1;
                let class = classify(sql);
                sum.runs(&class);
                sum.by_sql(&class, statements);
            }
            b'P' => {
                let parse = frontend::parse(body).ok_or_else(|| malformed("Parse"))?;
                let class = classify(parse.sql);
                sum.names(&class);
                if parse.name.is_empty() {
                    unnamed_here = true;
                    // Behind something that may fail, it may never come to be: that must be followed.
                    sum.translate |= frame.start != request[0].start;
                } else {
                    sum.translate = true;
                }
                sum.by_sql(&class, statements);
                parsed.push((parse.name, class));
            }
            b'B' => {
                let bind = frontend::bind(body).ok_or_else(|| malformed("Bind"))?;
                let here = parsed
                    .iter()
                    .rev()
                    .find(|(name, _)| *name == bind.statement)
                    .map(|(_, class)| class);
                match here.or_else(|| statements.class(bind.statement)) {
                    Some(class) => {
                        let class = Arc::clone(class);
                        sum.names(&class);
                        sum.by_sql(&class, statements);
                        portals.push((bind.portal, class));
                    }
                    // The server will say that there is no such statement, or knows it by SQL PREPARE.
                    None => {
                        sum.executes += 1;
                        sum.opaque();
                    }
                }
                sum.translate |= !bind.statement.is_empty() || !unnamed_here;
            }
            b'D' | b'C' => {
                let named = frontend::named(body)
                    .ok_or_else(|| malformed(if frame.tag == b'D' { "Describe" } else { "Close" }))?;
                match named {
                    Named::Statement(name) => {
                        sum.translate |= !name.is_empty() || !unnamed_here;
                        let here = parsed
                            .iter()
                            .rev()
                            .find(|(known, _)| *known == name)
                            .map(|(_, class)| class);
                        let known = here.or_else(|| statements.class(name));
                        if frame.tag == b'C' {
                            sum.closes_unknown |= known.is_none() && !name.is_empty();
                        } else {
                            match known {
                                Some(class) => {
                                    let class = Arc::clone(class);
                                    sum.names(&class);
                                }
                                None => sum.opaque(),
                            }
                        }
                    }
                    // Portals live in a block, or in this batch; a Close of one that is gone does nothing on any node.
                    Named::Portal(_) => sum.needs_server = true,
                }
            }
            b'E' => {
                sum.needs_server = true;
                let portal = frontend::c_string(body).ok_or_else(|| malformed("Execute"))?.0;
                if let Some((_, class)) = portals.iter().rev().find(|(name, _)| *name == portal) {
                    sum.runs(class);
                }
            }
            b'F' => {
                sum.opaque();
                sum.translate |= request.len() > 1;
            }
            b'S' | b'H' => {}
            tag => return Err(Violation(format!("unexpected message type 0x{tag:02X}"))),
        }
    }
    if let (true, Some(last)) = (cut, request.last()) {
        // What a text does that isn't all here can't be known; a Bind is of a statement that is.
        let front = bytes.get(last.start + HEADER..).unwrap_or_default();
        let bound = frontend::bind(front).filter(|_| last.tag == b'B');
        match bound.and_then(|bind| statements.class(bind.statement).cloned()) {
            Some(class) => sum.runs(&class),
            None => sum.unknown = true,
        }
        if last.tag == b'P' {
            statements.forget_unnamed();
        }
        sum.opaque();
    }
    // Several statements in one batch are one transaction, unless one of them ends it.
    if sum.executes > 1 && sum.ends {
        sum.danger = Danger::Several;
    }
    sum.begins &= sum.danger != Danger::Several;
    Ok(sum)
}
