//! What lives in the session: prepared statements, cursors, channels, SHOW, DISCARD, LOAD.

use std::ops::Range;

use super::{Verdict, explain};
use crate::sql::class::Reason;
use crate::sql::effects::{Effect, PinReason};
use crate::sql::lexer::PlainStrings;
use crate::sql::own;
use crate::sql::statement::{Statement, Statements};

/// A statement whose first word is one of these commands'.
pub(super) fn session(statement: &Statement<'_>) -> Verdict {
    match statement.identifier(0).as_ref() {
        // `PREPARE transaction AS …` has a statement of that name.
        "prepare"
            if statement.is_word(1, "transaction") && !statement.is_word(2, "as") && !statement.is_punct(2, b'(') =>
        {
            Verdict::write(Reason::Verb("PREPARE TRANSACTION")).with(Effect::PrepareTransaction)
        }
        "prepare" => Verdict::write(Reason::SessionState("PREPARE")).with_pin(PinReason::Prepare),
        "execute" => Verdict::write(Reason::SessionState("EXECUTE")).with_calls(statement),
        "deallocate" => Verdict::write(Reason::SessionState("DEALLOCATE")).with(deallocate(statement)),
        "discard" => {
            let all = statement.is_word(1, "all");
            let effect = if all { Effect::DiscardAll } else { Effect::DiscardPart };
            Verdict::write(Reason::SessionState("DISCARD")).with(effect)
        }
        "listen" => Verdict::write(Reason::Verb("LISTEN")).with_pin(PinReason::Listen),
        "unlisten" => Verdict::write(Reason::Verb("UNLISTEN")).with(Effect::MayUnpin(PinReason::Listen)),
        "load" => Verdict::write(Reason::SessionState("LOAD")).with_pin(PinReason::Load),
        "show" if own::own_setting(statement).is_some() => {
            Verdict::write(Reason::SessionState("SHOW pgsluice")).with(Effect::Own)
        }
        "show" if shows_what_follows_the_session(statement) => Verdict::read(Reason::PlainRead),
        "show" => Verdict::write(Reason::SessionState("SHOW")),
        "close" => Verdict::write(Reason::Cursor).with(Effect::MayUnpin(PinReason::WithHoldCursor)),
        // FETCH, MOVE
        _ => Verdict::write(Reason::Cursor),
    }
}

/// Whether SHOW is asked for a setting that every connection gets from its session. Others may be the node's own.
fn shows_what_follows_the_session(statement: &Statement<'_>) -> bool {
    const FOLLOWING: &[&str] = &[
        "application_name",
        "client_encoding",
        "datestyle",
        "intervalstyle",
        "search_path",
        "standard_conforming_strings",
        "timezone",
        "transaction_isolation",
    ];
    match statement.len() {
        2 => FOLLOWING.contains(&statement.identifier(1).as_ref()),
        3 => statement.is_word(1, "time") && statement.is_word(2, "zone"),
        4 => ["transaction", "isolation", "level"]
            .iter()
            .zip(1..)
            .all(|(word, index)| statement.is_word(index, word)),
        _ => false,
    }
}

/// Where in `text` the names of prepared statements stand that are executed or deallocated, and the names.
pub(crate) fn prepared_names(text: &[u8], plain_strings: PlainStrings) -> Vec<(Range<usize>, String)> {
    let statements = Statements::new(text, plain_strings);
    statements
        .filter_map(|statement| {
            let name = executed(&statement).or_else(|| {
                let name = name_index(&statement);
                (statement.is_word(0, "deallocate") && !statement.is_word(name, "all")).then_some(name)
            })?;
            let token = statement.tokens.get(name)?;
            Some((token.start..token.end, statement.identifier(name).into_owned()))
        })
        .collect()
}

/// Where the name stands in EXECUTE name, EXPLAIN … EXECUTE name, and CREATE TABLE … AS EXECUTE name.
fn executed(statement: &Statement<'_>) -> Option<usize> {
    let from = if statement.is_word(0, "explain") {
        explain::options(statement).0
    } else {
        0
    };
    let at = match statement.identifier(from).as_ref() {
        "execute" => from,
        "create" => {
            let after_as = |&index: &usize| statement.is_word(index - 1, "as") && statement.is_word(index, "execute");
            (from + 1..statement.len()).find(after_as)?
        }
        _ => return None,
    };
    (at + 1 < statement.len()).then_some(at + 1)
}

/// The statement that it executes, if any.
pub(super) fn execute(statement: &Statement<'_>) -> Option<Effect> {
    let name = executed(statement)?;
    Some(Effect::Execute {
        name: statement.identifier(name).into_owned(),
    })
}

/// DEALLOCATE [PREPARE] name
fn name_index(statement: &Statement<'_>) -> usize {
    1 + usize::from(statement.is_word(1, "prepare") && statement.len() > 2)
}

/// DEALLOCATE [PREPARE] { name | ALL }
fn deallocate(statement: &Statement<'_>) -> Effect {
    let name = name_index(statement);
    if statement.is_word(name, "all") {
        Effect::DeallocateAll
    } else {
        Effect::Deallocate {
            name: statement.identifier(name).into_owned(),
        }
    }
}

/// DECLARE name … CURSOR [{ WITH | WITHOUT } HOLD] FOR query
///
/// Never a read by itself: it needs a block, and stays on the node of that block whatever it is called.
pub(super) fn declare(statement: &Statement<'_>) -> Verdict {
    let verdict = Verdict::write(Reason::Cursor).with_calls(statement);
    let options = (1..statement.len()).take_while(|&index| !statement.is_word(index, "for"));
    let with_hold = options
        .into_iter()
        .any(|index| statement.is_word(index, "with") && statement.is_word(index + 1, "hold"));
    if with_hold {
        verdict.with_pin(PinReason::WithHoldCursor)
    } else {
        verdict
    }
}
