//! What a statement could do if it ran twice, and where else it could run: what a plan adds up. Pure.

use super::phase::sees_anew;
use crate::sql::{Effect, Reason, StatementClass};

/// What running a unit twice could do, and what is known if its node is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Danger {
    /// It only reads, or changes nothing but the session's own state.
    None,
    /// One transaction that may write.
    Write,
    /// Several such, one after another, of which none ends a block: in one they are a part of it, and else a part of them may be done.
    Writes,
    /// It ends a transaction block.
    Commit,
    /// It may commit more than once, so that a part of it may be done when the rest is not.
    Several,
}

/// Whether a unit signals server processes, and from where it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signals {
    /// It doesn't.
    None,
    /// From whichever node the process is on: it does nothing else that a standby would refuse.
    FromAnywhere,
    /// From where it belongs.
    FromPrimary,
}

pub(super) fn signals(class: &StatementClass) -> Signals {
    match &class.reason {
        _ if !class.signals => Signals::None,
        Reason::ServerAction { .. } if class.statements == 1 && class.effects.is_empty() => Signals::FromAnywhere,
        _ => Signals::FromPrimary,
    }
}

/// `BEGIN READ ONLY` with a level under which each statement sees the newest state.
pub(super) fn begins_on_standby(class: &StatementClass) -> bool {
    matches!(&class.effects[..], [Effect::Begin { read_only: Some(true), isolation, deferrable: false }] if sees_anew(*isolation))
}

pub(super) fn danger(class: &StatementClass) -> Danger {
    let controls = |effect: &Effect| {
        matches!(
            effect,
            Effect::Commit { .. } | Effect::PrepareTransaction | Effect::Begin { .. }
        )
    };
    let rolls_back = |effect: &Effect| matches!(effect, Effect::Rollback { .. });
    let several = class.statements > 1;
    let ends = class
        .effects
        .iter()
        .any(|effect| controls(effect) || (several && rolls_back(effect)));
    match &class.reason {
        // Before anything has happened in it, a block that is lost is no loss.
        Reason::TransactionControl if matches!(&class.effects[..], [Effect::Begin { .. }]) => Danger::None,
        // What they change is the session's, which has it wherever it goes.
        Reason::SessionState("SET" | "RESET" | "SHOW" | "PREPARE" | "DEALLOCATE" | "DISCARD") if !several => {
            Danger::None
        }
        // Of a session that has lost its server, they are all that is left, and stand with the one it goes on with.
        Reason::Verb("LISTEN" | "UNLISTEN") if !several => Danger::None,
        // Their bodies may commit.
        Reason::Verb("CALL" | "DO") => Danger::Several,
        _ if ends && several => Danger::Several,
        Reason::TransactionControl if ends => Danger::Commit,
        Reason::TooLong | Reason::TooManyTokens | Reason::BadText if class.statements != 1 => Danger::Several,
        _ => Danger::Write,
    }
}

/// Of statements that run in one transaction.
pub(super) fn stronger(a: Danger, b: Danger) -> Danger {
    match (a, b) {
        (Danger::None, other) | (other, Danger::None) => other,
        (Danger::Write, Danger::Write) => Danger::Write,
        _ => Danger::Several,
    }
}

/// Of requests that follow one another.
pub(super) fn one_after_another(a: Danger, b: Danger) -> Danger {
    match (a, b) {
        (Danger::None, other) | (other, Danger::None) => other,
        (Danger::Write | Danger::Writes, Danger::Write | Danger::Writes) => Danger::Writes,
        _ => Danger::Several,
    }
}

/// A READ ONLY block on a standby may end there. Whatever else isn't a plain read (savepoints, cursors, SET LOCAL included) takes the block
/// to the primary first, so that a block which stays has done nothing that a fresh beginning would lack.
pub(super) fn stays_in_block(class: &StatementClass) -> bool {
    matches!(&class.effects[..], [Effect::Commit { .. } | Effect::Rollback { .. }])
}

/// `currval()` and `lastval()` tell of the last `nextval()` on the connection, whoever called it.
pub(super) fn reads_sequence_state(class: &StatementClass) -> bool {
    matches!(&class.reason, Reason::SessionFunction { name } if name == "currval" || name == "lastval")
}

pub(super) fn refused_alike(class: &StatementClass) -> bool {
    class.statements == 1
        && match &class.reason {
            Reason::LockingClause | Reason::DataModifyingCte | Reason::SelectInto => true,
            Reason::Verb(verb) => matches!(*verb, "INSERT" | "UPDATE" | "DELETE" | "MERGE"),
            _ => false,
        }
}
