//! What an answered unit has changed: the block, the settings, the pins, what the next read must see. No I/O.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::client_session::SessionState;
use super::error::SessionError;
use super::outcome::Answer;
use super::own_settings::{self, OwnSettings};
use super::phase::{Attached, Beginning, Block, Pins};
use super::plan::Plan;
use crate::cluster::SystemIdentifier;
use crate::pool::{CurrentSetting, SettingValue, Settings};
use crate::route::Target;
use crate::route::consistency::LastRead;
use crate::sql::{Access, Effect, Isolation, PinReason, Reason, StatementClass};
use crate::wire::backend::TransactionStatus;

/// A setting, and what the server says that it is.
pub(super) type Asked = (String, CurrentSetting);

/// Follows one answered unit.
///
/// `later` is what ran beyond the plan, in a batch that was sent piece by piece; `asked` are the settings that the server was asked for
/// since ([`to_ask`]).
pub(super) fn settle(
    state: &mut SessionState,
    attached: &mut Attached,
    plan: &Plan,
    later: &[Arc<StatementClass>],
    answer: Answer,
    asked: &[Asked],
    now: Instant,
) {
    let was_in_block = attached.block.is_some();
    let (settings_before, pins_before) = (Arc::clone(&state.settings), state.pins);
    let effects: SmallVec<[&StatementClass; 2]> = plan.effects.iter().chain(later).map(|class| &**class).collect();
    follow_effects(state, attached, &effects, answer, asked);
    if plan.unknown_code {
        attached.lease.conn().suspect(attached.session);
        state.may_pin = true;
    }
    if (plan.unknown || answer.unknown) && !answer.failed {
        state.pins.add(PinReason::Unknown);
    }
    let several = plan.effects.iter().any(|class| class.statements > 1);
    state.may_unpin |= state.pins != pins_before && (was_in_block || several);
    let wrote = plan.access == Access::Write && !only_control(plan);
    if let Some(block) = &mut attached.block {
        block.wrote |= wrote;
    }
    let unclear = attached.block.as_mut().map(|block| std::mem::take(&mut block.unclear));
    follow_block(state, attached, answer, settings_before);
    match &mut attached.block {
        Some(block) => block.unclear = unclear.unwrap_or_default(),
        None => clear_up(state, attached, &unclear.unwrap_or_default(), asked),
    }
    follow_history(state, attached, plan, was_in_block, wrote, now);
}

/// For whom a change of the catalog is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Meant {
    /// Only for the session itself: a temporary table, as far as can be told.
    ForItself,
    /// For every session.
    ForAll,
}

/// Whether a unit may have changed what texts mean, and for whom. A session with temporary tables that drops something is taken to drop one:
/// there are applications that make and drop one for each request, and what all sessions have prepared must not go each time. Nothing is
/// lost by that, since whatever takes the place of what was dropped is created.
pub(super) fn catalog_changes(plan: &Plan, later: &[Arc<StatementClass>], pins: Pins) -> Option<Meant> {
    let meant = |class: &Arc<StatementClass>| {
        let is_own = |effect: &Effect| match effect {
            Effect::Pin(PinReason::TemporaryTable) => true,
            Effect::MayUnpin(PinReason::TemporaryTable) => pins.has(PinReason::TemporaryTable),
            _ => false,
        };
        match class.statements == 1 && class.effects.iter().any(is_own) {
            true => Meant::ForItself,
            false => Meant::ForAll,
        }
    };
    let classes = plan.effects.iter().chain(later);
    classes.filter(|class| class.ddl).map(meant).max()
}

/// Transaction control and settings write nothing by themselves.
fn only_control(plan: &Plan) -> bool {
    !plan.effects.is_empty()
        && plan.executes as usize == plan.effects.len()
        && plan.effects.iter().all(|class| {
            matches!(
                class.reason,
                Reason::TransactionControl | Reason::SessionState("SET" | "RESET")
            ) && class.statements == 1
        })
}

fn follow_history(
    state: &mut SessionState,
    attached: &Attached,
    plan: &Plan,
    was_in_block: bool,
    wrote: bool,
    now: Instant,
) {
    match attached.route.target {
        // What a block has written shows when it ends, and its end is a write of its own here.
        Target::Primary if wrote || (was_in_block && plan.access == Access::Write) => {
            state.history.last_write = Some(now);
        }
        target => {
            state.history.last_read = Some(LastRead {
                node: attached.route.node,
                server: attached.route.server,
                on_standby: target == Target::Standby,
                at: now,
            });
        }
    }
}

/// The settings of a block with savepoints are what the server says, now that it is committed.
fn clear_up(state: &mut SessionState, attached: &mut Attached, unclear: &[String], asked: &[Asked]) {
    for (name, value) in asked.iter().filter(|(name, _)| unclear.contains(name)) {
        let (has, wanted) = match value {
            CurrentSetting::Is(value) => {
                let value = SettingValue::Raw(value.clone());
                let has = attached.lease.conn().settings.with(name, value.clone());
                (has, state.settings.with(name, value))
            }
            CurrentSetting::Missing => (
                attached.lease.conn().settings.without(name),
                state.settings.without(name),
            ),
            CurrentSetting::Unreadable => {
                state.pins.add(PinReason::SessionGuc);
                continue;
            }
        };
        change_settings(state, attached, name, wanted, has);
    }
}

fn follow_block(state: &mut SessionState, attached: &mut Attached, answer: Answer, settings_before: Arc<Settings>) {
    match answer.status {
        TransactionStatus::Idle => {
            if let Some(block) = attached.block.take()
                && (answer.rolled_back || answer.failed)
            {
                attached.lease.conn().settings = Arc::clone(&block.settings_before);
                set(state, block.settings_before);
            }
        }
        TransactionStatus::InBlock | TransactionStatus::Failed => {
            let block = attached.block.get_or_insert_with(|| Block::begun(settings_before));
            block.failed = answer.status == TransactionStatus::Failed;
        }
    }
}

/// What `SET` was given may mean something else on a connection with other settings than those under which it ran.
fn must_be_asked_for(name: &str, value: &str) -> bool {
    name == "datestyle" || value.contains('\\') || !value.is_ascii() || value.contains('&')
}

/// Names of settings whose values only the server knows, now that the unit is answered.
pub(super) fn to_ask(
    plan: &Plan,
    later: &[Arc<StatementClass>],
    block: Option<&Block>,
    answer: Answer,
) -> SmallVec<[String; 1]> {
    if answer.failed || answer.status == TransactionStatus::Failed {
        return SmallVec::new();
    }
    let classes = plan.effects.iter().chain(later).map(|class| &**class);
    let in_the_end = block.is_none() && answer.status == TransactionStatus::Idle && sets_between_blocks(classes);
    let ended = block.filter(|_| answer.status == TransactionStatus::Idle && !answer.rolled_back);
    let unclear = ended.into_iter().flat_map(|block| block.unclear.iter().cloned());
    let effects = plan.effects.iter().chain(later).flat_map(|class| &class.effects);
    effects
        .filter_map(|effect| match effect {
            Effect::SetConfig { name } => Some(name.clone()),
            Effect::SetGuc { name, .. } | Effect::ResetGuc { name } if in_the_end => Some(name.clone()),
            Effect::SetGuc { name, value } if must_be_asked_for(name, value) => Some(name.clone()),
            _ => None,
        })
        .chain(unclear)
        .collect()
}

fn follow_effects(
    state: &mut SessionState,
    attached: &mut Attached,
    classes: &[&StatementClass],
    answer: Answer,
    asked: &[Asked],
) {
    if answer.failed {
        follow_failure(state, classes);
        return;
    }
    if sets_between_blocks(classes.iter().copied()) {
        follow_in_the_end(state, attached, classes, answer, asked);
        return;
    }
    for effect in classes.iter().flat_map(|class| &class.effects) {
        follow(state, attached, effect, answer.rolled_back, asked);
    }
}

/// Settings and transaction control in one go: which of the settings outlived which of the blocks isn't followed.
fn sets_between_blocks<'a>(classes: impl Iterator<Item = &'a StatementClass> + Clone) -> bool {
    let several = classes
        .clone()
        .map(|class| usize::from(class.statements))
        .sum::<usize>()
        > 1;
    let mut effects = classes.clone().flat_map(|class| &class.effects);
    let sets = |effect: &Effect| {
        matches!(
            effect,
            Effect::SetGuc { .. } | Effect::SetConfig { .. } | Effect::ResetGuc { .. } | Effect::ResetAll
        )
    };
    several && effects.any(sets) && classes.flat_map(|class| &class.effects).any(is_control)
}

/// Follows what can only be judged by its end: the settings are what the server says, if all blocks began and ended in between.
fn follow_in_the_end(
    state: &mut SessionState,
    attached: &mut Attached,
    classes: &[&StatementClass],
    answer: Answer,
    asked: &[Asked],
) {
    if attached.block.is_some() || answer.status != TransactionStatus::Idle {
        state.pins.add(PinReason::Unknown);
        return;
    }
    for effect in classes.iter().flat_map(|class| &class.effects) {
        match effect {
            Effect::SetGuc { name, .. } | Effect::SetConfig { name } | Effect::ResetGuc { name } => {
                match asked.iter().find(|(known, _)| known == name) {
                    Some(one) => clear_up(state, attached, std::slice::from_ref(name), std::slice::from_ref(one)),
                    None => drop(state.pins.add(PinReason::Unknown)),
                }
            }
            Effect::ResetAll | Effect::DiscardAll => drop(state.pins.add(PinReason::Unknown)),
            Effect::Commit { .. } | Effect::Rollback { .. } | Effect::PrepareTransaction => {}
            effect => follow(state, attached, effect, answer.rolled_back, asked),
        }
    }
}

/// One statement that failed has changed nothing, but for what no rollback takes back. Of several, some may have.
fn follow_failure(state: &mut SessionState, classes: &[&StatementClass]) {
    let with_effects = classes.iter().filter(|class| !class.effects.is_empty()).count();
    let several = with_effects > 1 || classes.iter().any(|class| class.statements > 1);
    for effect in classes.iter().flat_map(|class| &class.effects) {
        match effect {
            Effect::Pin(reason @ (PinReason::AdvisoryLock | PinReason::Load | PinReason::SetSeed)) => {
                state.pins.add(*reason);
            }
            effect if several && !is_control(effect) => {
                state.pins.add(PinReason::Unknown);
            }
            _ => {}
        }
    }
}

fn is_control(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Begin { .. } | Effect::Commit { .. } | Effect::Rollback { .. } | Effect::PrepareTransaction
    )
}

fn follow(state: &mut SessionState, attached: &mut Attached, effect: &Effect, rolled_back: bool, asked: &[Asked]) {
    let mut set_to = |state: &mut SessionState, name: &str, value: SettingValue| {
        let (mut has, mut wanted) = (
            attached.lease.conn().settings.with(name, value.clone()),
            state.settings.with(name, value),
        );
        if name == "session_authorization" {
            (has, wanted) = (has.without("role"), wanted.without("role"));
        }
        change_settings(state, attached, name, wanted, has);
    };
    match effect {
        Effect::SetGuc { name, value } if !must_be_asked_for(name, value) => {
            set_to(state, name, SettingValue::Sql(value.as_str().into()));
        }
        Effect::SetGuc { name, .. } | Effect::SetConfig { name } => {
            match asked.iter().find(|(known, _)| known == name) {
                Some((_, CurrentSetting::Is(value))) => set_to(state, name, SettingValue::Raw(value.clone())),
                Some((_, CurrentSetting::Missing)) => {}
                Some((_, CurrentSetting::Unreadable)) | None => {
                    state.pins.add(PinReason::SessionGuc);
                }
            }
        }
        Effect::LoginDefaults => state.alters_logins = true,
        Effect::ResetGuc { name } => {
            let mut wanted = match state.startup.value(name) {
                Some(value) => state.settings.with(name, value.clone()),
                None => state.settings.without(name),
            };
            let mut has = attached.lease.conn().settings.without(name);
            if name == "session_authorization" {
                (has, wanted) = (has.without("role"), wanted.without("role"));
            }
            change_settings(state, attached, name, wanted, has);
        }
        Effect::ResetAll => {
            if attached.block.as_ref().is_some_and(|block| block.has_savepoints) {
                state.pins.add(PinReason::SessionGuc);
            }
            let wanted = state.startup.with_identity_of(&state.settings);
            let has = attached.lease.conn().settings.identity();
            change_settings(state, attached, "", wanted, has);
        }
        Effect::DiscardAll => {
            let wanted = Settings::clone(&state.startup);
            change_settings(state, attached, "", wanted, Settings::default());
            attached.lease.conn().prepared.clear();
            state.statements.clear();
            state.pins.clear();
        }
        Effect::DeallocateAll => {
            state.may_unpin = true;
            attached.lease.conn().prepared.clear();
            state.statements.clear();
        }
        Effect::Deallocate { name } => {
            state.may_unpin = true;
            if let Some(gone) = state.statements.remove(name.as_bytes()) {
                attached.lease.conn().prepared.remove(gone.prepared.id());
            }
        }
        Effect::Pin(reason) => {
            state.pins.add(*reason);
        }
        // From here on a SET may be undone in part, and one from before may have been.
        Effect::Savepoint { .. } | Effect::RollbackTo { .. } => {
            if let Some(block) = &mut attached.block {
                block.has_savepoints = true;
            }
        }
        Effect::MayUnpin(_) | Effect::DiscardPart => state.may_unpin = true,
        // What follows in the same text, or in a chained block, is not this block's to take back.
        Effect::Commit { .. } | Effect::PrepareTransaction => {
            if let Some(block) = &mut attached.block {
                if block.failed || rolled_back {
                    roll_back(state, attached);
                } else {
                    block.settings_before = Arc::clone(&state.settings);
                }
            }
        }
        Effect::Rollback { .. } => roll_back(state, attached),
        Effect::Begin { .. }
        | Effect::Release { .. }
        | Effect::SetTransaction { .. }
        | Effect::SetLocal { .. }
        | Effect::NeedsDatabaseAlone { .. }
        | Effect::Execute { .. }
        | Effect::Own
        | Effect::NextVal => {}
    }
}

/// The settings are again what they were before the block.
fn roll_back(state: &mut SessionState, attached: &mut Attached) {
    if let Some(block) = &attached.block {
        let before = Arc::clone(&block.settings_before);
        attached.lease.conn().settings = Arc::clone(&before);
        set(state, before);
    }
}

/// The session wants other settings from now on, and its connection has others: not the same where a reset took the connection to the
/// server's default, and the session back to what it started with.
fn change_settings(state: &mut SessionState, attached: &mut Attached, name: &str, wanted: Settings, has: Settings) {
    if let Some(block) = attached.block.as_mut().filter(|block| block.has_savepoints)
        && !block.unclear.iter().any(|known| known == name)
        && !name.is_empty()
    {
        block.unclear.push(name.to_owned());
    }
    let wanted = Arc::new(wanted);
    attached.lease.conn().settings = if has == *wanted {
        Arc::clone(&wanted)
    } else {
        Arc::new(has)
    };
    set(state, wanted);
}

/// The session has these settings from now on.
pub(super) fn set(state: &mut SessionState, settings: Arc<Settings>) {
    state.pg_catalog_first = pg_catalog_first(&settings);
    let own = OwnSettings::of(&settings);
    state.told_of_loss &= own.min_position == state.own.min_position;
    state.own = own;
    state.settings = settings;
}

/// Whether `pg_catalog` is searched first: it is, unless a search path names it somewhere else than at its front.
pub(super) fn pg_catalog_first(settings: &Settings) -> bool {
    let text = match settings.value("search_path") {
        None => return true,
        Some(SettingValue::Raw(text) | SettingValue::Sql(text)) => text.to_ascii_lowercase(),
    };
    let first = text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '\'' | '"'));
    !text.contains("pg_catalog") || first.starts_with("pg_catalog")
}

/// A `SET pgsluice.…` with a value that isn't one.
pub(super) fn refused_setting(
    effects: &[Arc<StatementClass>],
    cluster: Option<SystemIdentifier>,
) -> Option<SessionError> {
    let mut effects = effects.iter().flat_map(|class| &class.effects);
    effects.find_map(|effect| match effect {
        Effect::SetGuc { name, value } => own_settings::refused(name, value, cluster),
        _ => None,
    })
}

/// The settings that a unit needs to run under: not those that it is about to reset, which a server may have come to refuse.
pub(super) fn needed(plan: &Plan, settings: &Arc<Settings>) -> Arc<Settings> {
    let [class] = &plan.effects[..] else {
        return Arc::clone(settings);
    };
    match &class.effects[..] {
        [Effect::ResetAll | Effect::DiscardAll] => Arc::default(),
        [Effect::ResetGuc { name }] => Arc::new(settings.without(name)),
        _ => Arc::clone(settings),
    }
}

/// What a unit has begun, if it is a BEGIN that doesn't say whether the block writes, and nothing else.
pub(super) fn beginning(plan: &Plan) -> Option<Beginning> {
    let [class] = &plan.effects[..] else { return None };
    match class.effects[..] {
        [
            Effect::Begin {
                isolation,
                read_only: None,
                deferrable: false,
            },
        ] if plan.executes == 1 && class.statements == 1 => Some(Beginning { isolation }),
        _ => None,
    }
}

/// The SQL that begins such a block again.
pub(super) fn begin_again(beginning: Beginning) -> Box<[u8]> {
    match beginning.isolation {
        None => &b"BEGIN"[..],
        Some(Isolation::ReadUncommitted) => b"BEGIN ISOLATION LEVEL READ UNCOMMITTED",
        Some(Isolation::ReadCommitted) => b"BEGIN ISOLATION LEVEL READ COMMITTED",
        Some(Isolation::RepeatableRead) => b"BEGIN ISOLATION LEVEL REPEATABLE READ",
        Some(Isolation::Serializable) => b"BEGIN ISOLATION LEVEL SERIALIZABLE",
    }
    .into()
}

/// The SQL that begins a READ ONLY block again.
pub(super) fn begin_text(effects: &SmallVec<[Arc<StatementClass>; 1]>) -> Box<[u8]> {
    let isolation = effects
        .iter()
        .flat_map(|class| &class.effects)
        .find_map(|effect| match effect {
            Effect::Begin { isolation, .. } => *isolation,
            _ => None,
        });
    match isolation {
        Some(Isolation::ReadUncommitted) => &b"BEGIN ISOLATION LEVEL READ UNCOMMITTED READ ONLY"[..],
        Some(Isolation::ReadCommitted) => b"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY",
        Some(Isolation::RepeatableRead | Isolation::Serializable) | None => b"BEGIN READ ONLY",
    }
    .into()
}
