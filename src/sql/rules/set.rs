//! SET and RESET: which setting changes, for how long, and to what (manual, SET; `gram.y`, VariableSetStmt).

use super::Verdict;
use super::transaction::{Modes, isolation};
use crate::sql::class::Reason;
use crate::sql::effects::{Effect, PinReason};
use crate::sql::lexer::Kind;
use crate::sql::statement::Statement;

/// A statement that begins with SET or RESET.
pub(super) fn set_or_reset(statement: &Statement<'_>) -> Verdict {
    if statement.is_word(0, "reset") {
        let verdict = Verdict::write(Reason::SessionState("RESET"));
        return match reset(statement) {
            Some(_) if statement.kind(1) == Some(Kind::UnicodeQuoted) => verdict.with_pin(PinReason::SessionGuc),
            Some(effect) => verdict.with(effect),
            None => verdict,
        };
    }
    set(statement)
}

fn reset(statement: &Statement<'_>) -> Option<Effect> {
    let name = match statement.identifier(1).as_ref() {
        "all" => return Some(Effect::ResetAll),
        // RESET TRANSACTION ISOLATION LEVEL does nothing that outlives the statement.
        "transaction" => return None,
        "time" if statement.is_word(2, "zone") => "timezone".to_owned(),
        "session" if statement.is_word(2, "authorization") => "session_authorization".to_owned(),
        _ => setting_name(statement, 1).0,
    };
    Some(Effect::ResetGuc { name })
}

/// How long a SET lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Session,
    Local,
}

fn set(statement: &Statement<'_>) -> Verdict {
    let verdict = Verdict::write(Reason::SessionState("SET"));
    let next_is = |index, word| statement.is_word(index, word);
    // `SET local TO 1` and `SET session.x = 1` set what has that name.
    let is_name = assigns(statement, 2) || statement.is_punct(2, b'.');
    let (scope, at) = match () {
        () if is_name => (Scope::Session, 1),
        () if next_is(1, "local") => (Scope::Local, 2),
        () if next_is(1, "session") && !next_is(2, "authorization") && !next_is(2, "characteristics") => {
            (Scope::Session, 2)
        }
        () => (Scope::Session, 1),
    };
    let to = |name: &str, value: usize| effect(statement, scope, name.to_owned(), value);
    let setting = match statement.identifier(at).as_ref() {
        "transaction" if !assigns(statement, at + 1) => {
            let modes = Modes::read(statement, at + 1);
            let effect = Effect::SetTransaction {
                read_only: modes.read_only,
                isolation: modes.isolation,
            };
            return Verdict::write(Reason::TransactionControl).with(effect);
        }
        "constraints" if !assigns(statement, at + 1) => return Verdict::write(Reason::TransactionControl),
        "session" if next_is(at + 1, "authorization") => Some(to("session_authorization", at + 2)),
        // SET SESSION CHARACTERISTICS AS TRANSACTION …
        "session" if next_is(at + 1, "characteristics") => return characteristics(statement, at + 4),
        "role" if !assigns(statement, at + 1) => Some(to("role", at + 1)),
        "time" if next_is(at + 1, "zone") => Some(time_zone(statement, scope, at + 2)),
        "names" if !assigns(statement, at + 1) => Some(to("client_encoding", at + 1)),
        "schema" if !assigns(statement, at + 1) => Some(to("search_path", at + 1)),
        "xml" if next_is(at + 1, "option") => Some(to("xmloption", at + 2)),
        _ => {
            let (name, value) = setting_name(statement, at);
            if (at..value).any(|index| statement.kind(index) == Some(Kind::UnicodeQuoted)) {
                // A name in escapes.
                return verdict.with_pin(PinReason::SessionGuc);
            }
            assigns(statement, value).then(|| effect(statement, scope, name, value + 1))
        }
    };
    match setting {
        Some(effect) => verdict.with(effect),
        None => verdict,
    }
}

/// The session's defaults for its transactions are settings like others, by another name.
fn characteristics(statement: &Statement<'_>, modes: usize) -> Verdict {
    let modes = Modes::read(statement, modes);
    let set = |name: &str, value: String| Effect::SetGuc {
        name: name.to_owned(),
        value,
    };
    let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
    let isolation = modes
        .isolation
        .map(|level| set("default_transaction_isolation", format!("'{level}'")));
    let read_only = modes
        .read_only
        .map(|on| set("default_transaction_read_only", switch(on)));
    let deferrable = modes
        .deferrable
        .then(|| set("default_transaction_deferrable", switch(true)));
    [isolation, read_only, deferrable]
        .into_iter()
        .flatten()
        .fold(Verdict::write(Reason::SessionState("SET")), Verdict::with)
}

fn assigns(statement: &Statement<'_>, index: usize) -> bool {
    statement.is_operator(index, "=") || statement.is_word(index, "to")
}

/// A name of one or more parts at token `at`, in lower case, and the index behind it.
fn setting_name(statement: &Statement<'_>, at: usize) -> (String, usize) {
    let mut name = statement.identifier(at).to_ascii_lowercase();
    let mut next = at + 1;
    while statement.is_punct(next, b'.') && statement.is_name(next + 1) {
        name.push('.');
        name.push_str(&statement.identifier(next + 1).to_ascii_lowercase());
        next += 2;
    }
    (name, next)
}

/// What setting `name` to the value from token `value` on does.
fn effect(statement: &Statement<'_>, scope: Scope, name: String, value: usize) -> Effect {
    let written = statement.written(value, statement.len());
    match name.as_str() {
        "transaction_read_only" => {
            return Effect::SetTransaction {
                read_only: boolean(&written),
                isolation: None,
            };
        }
        "transaction_isolation" => {
            let level = written.trim_matches('\'').to_ascii_lowercase();
            return Effect::SetTransaction {
                read_only: None,
                isolation: isolation(&level),
            };
        }
        "transaction_deferrable" => {
            return Effect::SetTransaction {
                read_only: None,
                isolation: None,
            };
        }
        _ => {}
    }
    if scope == Scope::Local {
        return Effect::SetLocal { name };
    }
    match name.as_str() {
        "seed" => Effect::Pin(PinReason::SetSeed),
        _ if value >= statement.len() || is_default(statement, value) => Effect::ResetGuc { name },
        _ => Effect::SetGuc {
            name,
            value: written.into_owned(),
        },
    }
}

fn is_default(statement: &Statement<'_>, value: usize) -> bool {
    statement.is_word(value, "default") && statement.len() == value + 1
}

/// SET TIME ZONE { LOCAL | DEFAULT | value }
fn time_zone(statement: &Statement<'_>, scope: Scope, value: usize) -> Effect {
    let name = "timezone".to_owned();
    if scope == Scope::Local {
        Effect::SetLocal { name }
    } else if statement.is_word(value, "local") {
        Effect::ResetGuc { name }
    } else if statement.is_word(value, "interval") {
        // `SET timezone = INTERVAL …` is a syntax error, so that the value can't be mirrored.
        Effect::Pin(PinReason::SessionGuc)
    } else {
        effect(statement, scope, name, value)
    }
}

/// A boolean setting's value, where it is one of the usual spellings.
fn boolean(written: &str) -> Option<bool> {
    match written.trim_matches('\'').to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" | "t" | "y" => Some(true),
        "off" | "false" | "no" | "0" | "f" | "n" => Some(false),
        _ => None,
    }
}
