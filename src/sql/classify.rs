//! From a text to its class: every statement is judged by itself, and the text is the strongest of them.

use smallvec::SmallVec;

use super::class::{Access, Reason, StatementClass};
use super::effects::{Effect, PinReason};
use super::names::{BuiltIn, Catalog};
use super::rules::{self, Verdict};
use super::statement::{Statement, Statements};
use super::{MAX_LENGTH, SqlContext, fingerprint};

/// A text of more effects than this is not followed any further: the session stays where it is.
const MAX_EFFECTS: usize = 1024;

/// What `sql` is, by its text and PostgreSQL's built-in names alone.
pub fn classify(sql: &[u8], context: &SqlContext) -> StatementClass {
    classify_with(sql, context, &BuiltIn)
}

/// What `sql` is, where `catalog` says what names mean.
pub fn classify_with(sql: &[u8], context: &SqlContext, catalog: &dyn Catalog) -> StatementClass {
    let mut normal_form = Vec::new();
    if fingerprint::normalise(sql, context, &mut normal_form) {
        classify_normalised(&normal_form, context, catalog)
    } else {
        classify_normal_form(sql, context, catalog)
    }
}

/// What a text of this normal form is.
pub(crate) fn classify_normalised(normal_form: &[u8], context: &SqlContext, catalog: &dyn Catalog) -> StatementClass {
    StatementClass {
        fingerprint: fingerprint::hash(normal_form),
        ..classify_normal_form(fingerprint::text(normal_form), context, catalog)
    }
}

/// What a text is that has been through [`fingerprint::normalise`], or is too long for it.
pub(crate) fn classify_normal_form(text: &[u8], context: &SqlContext, catalog: &dyn Catalog) -> StatementClass {
    let outer_doubt = doubt_about(text);
    let mut statements = Statements::new(text, context.plain_strings());
    let mut class = StatementClass {
        access: Access::Read,
        standby_by_hint: true,
        hint: None,
        consistency: None,
        positioned: false,
        effects: SmallVec::new(),
        statements: 0,
        ddl: false,
        changes_names: false,
        retry_safe: false,
        now_sensitive: false,
        unknown_code: false,
        signals: false,
        tells_process: false,
        reads_prepared: false,
        fingerprint: 0,
        reason: Reason::Empty,
    };
    for statement in statements.by_ref() {
        class.signals |= statement.signals;
        class.tells_process |= statement.tells_process;
        class.reads_prepared |= statement.reads_prepared;
        let verdict = match doubt_about_statement(&statement).or_else(|| outer_doubt.clone()) {
            Some(doubt) => rules::judge_by_head(&statement).unless_sure(doubt),
            None => rules::judge(&statement, context, catalog),
        };
        add(&mut class, verdict);
    }
    class.hint = statements.hint;
    class.consistency = statements.consistency;
    class.positioned = statements.positioned;
    let plain = class.access == Access::Read && class.effects.is_empty();
    class.standby_by_hint &= class.access == Access::Write && class.effects.is_empty();
    class.retry_safe = plain && class.statements <= 1;
    class
}

/// Why nothing in this text can be trusted to be a read.
fn doubt_about(text: &[u8]) -> Option<Reason> {
    if text.len() > MAX_LENGTH {
        Some(Reason::TooLong)
    } else if std::str::from_utf8(text).is_err() {
        Some(Reason::BadText)
    } else {
        None
    }
}

fn doubt_about_statement(statement: &Statement<'_>) -> Option<Reason> {
    if statement.unterminated {
        Some(Reason::BadText)
    } else if statement.backslash_string {
        Some(Reason::BackslashString)
    } else if statement.truncated {
        Some(Reason::TooManyTokens)
    } else {
        None
    }
}

fn add(class: &mut StatementClass, verdict: Verdict) {
    class.unknown_code |= verdict.unknown_code || verdict.reason.runs_unknown_code();
    let stronger = match (class.access, verdict.access) {
        (Access::Read, Access::Write) => true,
        (Access::Read, Access::Read) => class.statements == 0,
        // A known write tells more than a name that isn't known.
        (Access::Write, Access::Write) => class.reason.yields_to_hint() && !verdict.reason.yields_to_hint(),
        (Access::Write, Access::Read) => false,
    };
    class.standby_by_hint &= verdict.access == Access::Read || verdict.reason.yields_to_hint();
    if stronger {
        class.access = verdict.access;
        class.reason = verdict.reason;
    }
    class.statements = class.statements.saturating_add(1);
    class.ddl |= verdict.ddl;
    class.changes_names |= verdict.changes_names;
    class.now_sensitive |= verdict.now_sensitive;
    for effect in verdict.effects {
        if class.effects.len() < MAX_EFFECTS {
            class.effects.push(effect);
        } else if class.effects.len() == MAX_EFFECTS {
            class.effects.push(Effect::Pin(PinReason::Unknown));
        }
    }
}
