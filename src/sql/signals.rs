//! Which server process a text signals: the argument of its one call of `pg_terminate_backend()` or `pg_cancel_backend()`.

use std::ops::Range;

use super::SqlContext;
use super::lexer::Kind;
use super::statement::{Statement, Statements};

/// Built-in functions that end a session, or cancel what it runs (manual, "Server Signaling Functions").
const SIGNALLING: [&str; 2] = ["pg_cancel_backend", "pg_terminate_backend"];

/// The process id that a signalling function is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignalArgument {
    /// Written out.
    Literal {
        /// Where it stands in the text.
        at: Range<usize>,
        /// What it is.
        number: i32,
    },
    /// The value of a parameter, counted from 0.
    Parameter(usize),
}

/// Whether a function of this name signals a server process.
pub(super) fn signals(name: &str) -> bool {
    SIGNALLING.contains(&name)
}

/// The argument of the one call in `sql`; `None` if there are several, or if it is anything but a number or a parameter.
pub fn signal_argument(sql: &[u8], context: &SqlContext) -> Option<SignalArgument> {
    let statements = Statements::new(sql, context.plain_strings());
    let mut calls = statements.flat_map(|statement| {
        let names = 0..statement.len();
        let calls = names.filter(|&at| signals(&statement.identifier(at)));
        calls.map(|at| argument(&statement, at + 1)).collect::<Vec<_>>()
    });
    match (calls.next(), calls.next()) {
        (Some(argument), None) => argument,
        _ => None,
    }
}

/// The number or the parameter behind the parenthesis at `open`, perhaps cast to another type, where nothing is done with it.
fn argument(statement: &Statement<'_>, open: usize) -> Option<SignalArgument> {
    let (at, mut behind) = (open + 1, open + 2);
    if statement.kind(behind) == Some(Kind::Cast) && statement.is_name(behind + 1) {
        behind += 2;
    }
    if !statement.is_punct(open, b'(') || !(statement.is_punct(behind, b')') || statement.is_punct(behind, b',')) {
        return None;
    }
    let token = statement.tokens.get(at)?;
    let written = std::str::from_utf8(statement.bytes(at)).ok()?;
    match token.kind {
        Kind::Param => Some(SignalArgument::Parameter(
            written.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)?,
        )),
        Kind::Number | Kind::String => Some(SignalArgument::Literal {
            at: token.start..token.end,
            number: written.trim_matches('\'').parse().ok()?,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_says_whether_there_is_anything_to_look_for() {
        for (sql, signals, tells_process) in [
            ("select pg_terminate_backend(1)", true, false),
            ("explain analyze select pg_catalog.pg_cancel_backend(1)", true, false),
            (
                "select count(pg_terminate_backend(pid)) from t where pid <> pg_backend_pid()",
                true,
                true,
            ),
            ("select mine.pg_terminate_backend(1), 'pg_backend_pid()'", false, false),
            ("select 1; select PG_BACKEND_PID ()", false, true),
        ] {
            let class = super::super::classify(sql.as_bytes(), &SqlContext::default());
            assert_eq!((class.signals, class.tells_process), (signals, tells_process), "{sql}");
        }
    }

    #[test]
    fn the_one_argument_is_found() {
        let literal = |at, number| Some(SignalArgument::Literal { at, number });
        let parameter = |index| Some(SignalArgument::Parameter(index));
        for (sql, argument) in [
            ("select pg_terminate_backend(1234)", literal(28..32, 1234)),
            (
                "SELECT PG_CATALOG.\"pg_cancel_backend\" ( '12' , 5000)",
                literal(40..44, 12),
            ),
            (
                "begin; select pg_terminate_backend(7::int4); commit",
                literal(35..36, 7),
            ),
            ("select pg_terminate_backend($2), $1", parameter(1)),
            ("select count(pg_cancel_backend($1::integer)) from t", parameter(0)),
            ("select pg_terminate_backend($1 + 1)", None),
            ("select pg_terminate_backend(-1)", None),
            ("select pg_terminate_backend(1.5)", None),
            ("select pg_terminate_backend(99999999999)", None),
            ("select pg_terminate_backend(pid) from pg_stat_activity", None),
            ("select pg_terminate_backend(1), pg_terminate_backend(2)", None),
            ("select pg_terminate_backend(1); select pg_cancel_backend(1)", None),
            ("select 'pg_terminate_backend(1)'", None),
            ("select 1", None),
        ] {
            assert_eq!(
                signal_argument(sql.as_bytes(), &SqlContext::default()),
                argument,
                "{sql}"
            );
        }
    }
}
