//! What a statement is: a read that any fresh standby may answer, or something for the primary. Pure; no I/O, no clock.
//!
//! [`classify`] looks at text alone and keeps an allow-list: a text is a [`Access::Read`] only if everything in it is known to be
//! safe, by two readings that know nothing of each other:
//!
//! 1. our own lexer's tokens (`tokens`): every name in front of a parenthesis is a known function or keyword, every type,
//!    operator and relation is known, and no word stands where it could lock, write or create;
//! 2. the syntax tree (`tree`): sqlparser parses the statement's tokens, which it gets from our lexer and never from the text
//!    (`simplify`), to their end, and every call and type in the tree is known.
//!
//! Whatever else a text does to the session is told by its first words (`rules`), without a parser: [`Effect`]s, in order.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `lexer`, `statement` | bytes to tokens to statements |
//! | `rules/` | one file per family of commands |
//! | `tokens`, `simplify`, `tree` | the two readings of what may be a read |
//! | `names/`, `learned/` | what names mean: those of pg_catalog, and a database's own |
//! | `fingerprint`, `class_cache` | the normal form of a text, and the cache keyed by it |
//! | `class`, `effects`, `hint`, `explain` | the answer |
//! | `own` | what the proxy answers itself |
//! | `signals` | which server process a text signals |
//! | `prepared_view` | where a text reads `pg_prepared_statements` |
//!
//! Bounds before any parse: [`MAX_LENGTH`] bytes and [`MAX_TOKENS`] tokens a statement. They keep the parser's recursion, and
//! that of dropping its tree, within a small thread's stack.

mod class;
mod class_cache;
mod classify;
mod effects;
mod embedded;
mod explain;
mod fingerprint;
#[cfg(test)]
mod fingerprint_tests;
mod hint;
mod learned;
mod lexer;
mod names;
mod own;
mod plpgsql;
mod prepared_view;
mod rules;
mod signals;
mod simplify;
mod statement;
mod tokens;
mod tree;

pub use class::{Access, Reason, StatementClass};
pub use class_cache::ClassCache;
pub use classify::{classify, classify_with};
pub use effects::{Effect, Isolation, PinReason};
pub use explain::explain_json;
pub use hint::Hint;
pub use learned::{
    CastRow, CatalogRows, ChildRow, FunctionRow, Learned, OperatorRow, RelationRow, TypeRow, Volatility,
};
pub use names::{BuiltIn, Catalog, FunctionRoute, Name};
pub use own::{OwnQuery, own_query};
pub use prepared_view::{PreparedView, prepared_views};
pub use signals::{SignalArgument, signal_argument};

use classify::{classify_normal_form, classify_normalised};
pub(crate) use lexer::PlainStrings;
pub(crate) use statement::{Statement, Statements};

/// Texts longer than this many bytes are not looked into: a write, with the effects that its first words tell.
pub const MAX_LENGTH: usize = 16 * 1024;

/// Statements of more tokens than this are not looked into.
pub const MAX_TOKENS: usize = 4000;

/// Where in `sql` the names of prepared statements stand that it executes or deallocates (manual, EXECUTE and DEALLOCATE), and the names,
/// folded as PostgreSQL folds identifiers.
pub fn prepared_names(sql: &[u8], context: &SqlContext) -> Vec<(std::ops::Range<usize>, String)> {
    rules::session_state::prepared_names(sql, context.plain_strings())
}

/// Whether `sql` is several statements, and the first a plain ROLLBACK, in whichever words.
pub fn rolls_back_first(sql: &[u8], context: &SqlContext) -> bool {
    let mut statements = Statements::new(sql, context.plain_strings());
    let first = statements.next().map(|first| rules::judge_by_head(&first).effects);
    let rolls_back = first.is_some_and(|effects| matches!(effects[..], [Effect::Rollback { chain: false }]));
    rolls_back && statements.next().is_some()
}

/// The position that a comment in `sql` asks for (`/* pgsluice: min_position=… */`), as it is written there.
pub fn position_hint<'a>(sql: &'a [u8], context: &SqlContext) -> Option<&'a str> {
    hint::position(sql, context.plain_strings())
}

/// What of a session's state changes the meaning of its texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlContext {
    /// `standard_conforming_strings`, as the server last reported it.
    pub standard_conforming_strings: bool,
    /// `pg_catalog` is searched first: it isn't named in `search_path`, or stands first there. Otherwise another schema's
    /// function may hide a built-in one.
    pub pg_catalog_first: bool,
}

impl SqlContext {
    fn plain_strings(&self) -> PlainStrings {
        if self.standard_conforming_strings {
            PlainStrings::Conforming
        } else {
            PlainStrings::Escaping
        }
    }
}

impl Default for SqlContext {
    /// A session that has changed neither setting.
    fn default() -> Self {
        SqlContext {
            standard_conforming_strings: true,
            pg_catalog_first: true,
        }
    }
}
