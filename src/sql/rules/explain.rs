//! EXPLAIN: without ANALYZE nothing runs; with it the inner statement does, and the answer tells how that went on this node.

use super::{Command, Verdict, head, judge, names_temporary_schema, session_state};
use crate::sql::SqlContext;
use crate::sql::class::{Access, Reason};
use crate::sql::effects::{Effect, PinReason};
use crate::sql::lexer::Kind;
use crate::sql::names::Catalog;
use crate::sql::own;
use crate::sql::statement::Statement;
use crate::sql::tokens;

/// A statement that begins with EXPLAIN.
pub(super) fn explain(statement: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Verdict {
    if own::explained_route(statement).is_some() {
        return Verdict::write(Reason::SessionState("EXPLAIN (ROUTE)")).with(Effect::Own);
    }
    let (inner_from, analyze) = options(statement);
    let inner = statement.tail(inner_from);
    if analyze {
        return match head(&inner).1 {
            Command::Explain => Verdict::write(Reason::Unparsed),
            _ => executed(
                judge(&inner, context, catalog),
                tells_rows_only(statement, inner_from) && !joins(&inner),
            ),
        };
    }
    if names_temporary_schema(&inner) {
        return Verdict::write(Reason::TemporarySchema).with_pin(PinReason::TemporaryTable);
    }
    match head(&inner).1 {
        // Its arguments are worked out.
        _ if session_state::execute(statement).is_some() => {
            Verdict::write(Reason::SessionState("EXPLAIN EXECUTE")).with_calls(statement)
        }
        Command::Query
        | Command::Dml(_)
        | Command::Declare
        | Command::Ddl("CREATE")
        | Command::Utility("REFRESH MATERIALIZED VIEW") => planned(&inner, context, catalog),
        _ => Verdict::write(Reason::Unparsed),
    }
}

/// Buffers and times are those of the node that ran it, and so may be the plan where several relations meet: unless none of that is in
/// the answer, a read may go to a standby only when asked to.
fn executed(verdict: Verdict, same_anywhere: bool) -> Verdict {
    match verdict.access {
        Access::Read if !same_anywhere => Verdict::write(Reason::NodeLocal {
            name: "EXPLAIN ANALYZE".to_owned(),
        }),
        Access::Read | Access::Write => verdict,
    }
}

/// Whether nothing but the plan's shape and the numbers of rows is asked for.
fn tells_rows_only(statement: &Statement<'_>, inner_from: usize) -> bool {
    let says_off = |option: &str| {
        (2..inner_from)
            .any(|index| statement.is_word(index, option) && statement.is_any_word(index + 1, &["off", "false"]))
    };
    let asks_for_more = (2..inner_from)
        .any(|index| statement.is_any_word(index, &["buffers", "memory", "serialize", "settings", "wal"]));
    ["costs", "summary", "timing"].into_iter().all(says_off) && !asks_for_more
}

/// Whether a query reads more than one relation in one FROM.
fn joins(statement: &Statement<'_>) -> bool {
    const ENDS: &[&str] = &[
        "except",
        "fetch",
        "for",
        "group",
        "having",
        "intersect",
        "limit",
        "offset",
        "order",
        "union",
        "where",
        "window",
    ];
    // Of each open parenthesis, whether FROM's list is being read.
    let mut lists = vec![false];
    for index in 0..statement.len() {
        match statement.kind(index) {
            Some(Kind::Punct(b'(' | b'[')) => lists.push(false),
            Some(Kind::Punct(b')' | b']')) if lists.len() > 1 => drop(lists.pop()),
            Some(Kind::Punct(b',')) if lists.last() == Some(&true) => return true,
            _ if statement.is_word(index, "join") => return true,
            _ if statement.is_word(index, "from") => lists.last_mut().into_iter().for_each(|list| *list = true),
            _ if statement.is_any_word(index, ENDS) => lists.last_mut().into_iter().for_each(|list| *list = false),
            _ => {}
        }
    }
    false
}

/// Planning may call what is not volatile, so that functions known to be unsafe keep even a plan on the primary, and so do names in escapes.
fn planned(inner: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Verdict {
    if (0..inner.len()).any(|index| inner.kind(index) == Some(Kind::UnicodeQuoted)) {
        return Verdict::write(Reason::Unparsed);
    }
    match tokens::scan(inner, context, catalog).without_tree().planned {
        Some(reason) => Verdict::write(reason),
        None => Verdict::read(Reason::ExplainOnly),
    }
}

/// Where the inner statement begins, and whether it is executed.
pub(super) fn options(statement: &Statement<'_>) -> (usize, bool) {
    if statement.is_punct(1, b'(') && !opens_a_query(statement, 2) {
        let end = statement.behind_parenthesis(1);
        return (end, (2..end).any(|index| says_analyze(statement, index)));
    }
    let analyze = statement.is_any_word(1, &["analyze", "analyse"]);
    let mut inner = 1 + usize::from(analyze);
    inner += usize::from(statement.is_word(inner, "verbose"));
    (inner, analyze)
}

fn opens_a_query(statement: &Statement<'_>, index: usize) -> bool {
    // `values` may be an option's name.
    let values = statement.is_word(index, "values") && statement.is_punct(index + 1, b'(');
    values || statement.is_punct(index, b'(') || statement.is_any_word(index, &["select", "with", "table"])
}

/// `ANALYZE`, unless it is told to be off. Where it is said twice the server takes the last; any is enough here. Option names are
/// identifiers, so that `"analyze"` is one too.
fn says_analyze(statement: &Statement<'_>, index: usize) -> bool {
    if statement.kind(index) == Some(Kind::UnicodeQuoted) {
        return true;
    }
    let value = statement.written(index + 1, index + 2).to_ascii_lowercase();
    matches!(statement.identifier(index).as_ref(), "analyze" | "analyse")
        && !matches!(value.trim_matches('\''), "false" | "off" | "0")
}
