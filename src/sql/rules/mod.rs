//! Commands by their first words, one file per family.

mod ddl;
mod explain;
mod queries;
pub(crate) mod session_state;
mod set;
mod set_config;
mod transaction;

use std::borrow::Cow;

use smallvec::SmallVec;

use super::SqlContext;
use super::class::{Access, Reason};
use super::effects::{Effect, PinReason};
use super::lexer::Kind;
use super::names::{Catalog, FunctionRoute};
use super::statement::Statement;

/// What one statement is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Whether it may run on a standby.
    pub(crate) access: Access,
    /// Why.
    pub(crate) reason: Reason,
    /// What it does to the session.
    pub(crate) effects: SmallVec<[Effect; 1]>,
    /// May change the catalog.
    pub(crate) ddl: bool,
    pub(crate) changes_names: bool,
    /// Uses the clock.
    pub(crate) now_sensitive: bool,
    /// Calls code of which nothing is known, also where the reason is another.
    pub(crate) unknown_code: bool,
}

impl Verdict {
    pub(crate) fn read(reason: Reason) -> Self {
        Verdict {
            access: Access::Read,
            reason,
            effects: SmallVec::new(),
            ddl: false,
            changes_names: false,
            now_sensitive: false,
            unknown_code: false,
        }
    }

    pub(crate) fn write(reason: Reason) -> Self {
        Verdict {
            access: Access::Write,
            ..Verdict::read(reason)
        }
    }

    pub(crate) fn with(mut self, effect: Effect) -> Self {
        self.effects.push(effect);
        self
    }

    pub(crate) fn with_pin(self, reason: PinReason) -> Self {
        self.with(Effect::Pin(reason))
    }

    /// Adds what the functions that the statement calls do to the session.
    fn with_calls(mut self, statement: &Statement<'_>) -> Self {
        for call in &statement.calls {
            match call {
                FunctionRoute::SetConfig => self.effects.extend(set_config::effects(statement)),
                call => self.effects.extend(effect_of_call(*call)),
            }
        }
        self
    }

    /// Adds the settings that functions may leave changed.
    fn with_settings(mut self, names: Vec<Box<str>>) -> Self {
        let effects = names.into_iter().map(|name| Effect::SetConfig { name: name.into() });
        self.effects.extend(effects);
        self
    }

    /// Adds which prepared statement it executes.
    fn with_execute(mut self, statement: &Statement<'_>) -> Self {
        let effect = session_state::execute(statement);
        self.effects
            .extend(effect.filter(|effect| !self.effects.contains(effect)));
        self
    }

    /// A write for `doubt`, unless it is one for a reason that says more.
    pub(crate) fn unless_sure(mut self, doubt: Reason) -> Self {
        if self.access == Access::Read || self.reason == Reason::Unparsed {
            self.access = Access::Write;
            self.reason = doubt;
        }
        self
    }
}

fn effect_of_call(route: FunctionRoute) -> Option<Effect> {
    match route {
        FunctionRoute::MovesSequence => Some(Effect::NextVal),
        FunctionRoute::AdvisorySession => Some(Effect::Pin(PinReason::AdvisoryLock)),
        FunctionRoute::AdvisoryUnlock => Some(Effect::MayUnpin(PinReason::AdvisoryLock)),
        FunctionRoute::SetSeed => Some(Effect::Pin(PinReason::SetSeed)),
        FunctionRoute::Pinning => Some(Effect::Pin(PinReason::ServerResource)),
        FunctionRoute::Unknown => Some(Effect::Pin(PinReason::Unknown)),
        FunctionRoute::SetConfig
        | FunctionRoute::Safe
        | FunctionRoute::Writes
        | FunctionRoute::Admin
        | FunctionRoute::NodeLocal
        | FunctionRoute::Session
        | FunctionRoute::RunsSql
        | FunctionRoute::SessionSequence
        | FunctionRoute::AdvisoryTransaction
        | FunctionRoute::Volatile
        | FunctionRoute::VolatileWithoutTraces => None,
    }
}

/// What a command is, as far as its first word tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Query,
    Explain,
    Copy,
    Declare,
    Dml(&'static str),
    Ddl(&'static str),
    Transaction,
    Set,
    Session,
    Utility(&'static str),
    Unknown,
}

/// Every command of PostgreSQL by its first word.
const COMMANDS: &[(&str, Command)] = &[
    ("abort", Command::Transaction),
    ("alter", Command::Ddl("ALTER")),
    ("analyse", Command::Utility("ANALYZE")),
    ("analyze", Command::Utility("ANALYZE")),
    ("begin", Command::Transaction),
    ("call", Command::Utility("CALL")),
    ("checkpoint", Command::Utility("CHECKPOINT")),
    ("close", Command::Session),
    ("cluster", Command::Utility("CLUSTER")),
    ("comment", Command::Ddl("COMMENT")),
    ("commit", Command::Transaction),
    ("copy", Command::Copy),
    ("create", Command::Ddl("CREATE")),
    ("deallocate", Command::Session),
    ("declare", Command::Declare),
    ("delete", Command::Dml("DELETE")),
    ("discard", Command::Session),
    ("do", Command::Utility("DO")),
    ("drop", Command::Ddl("DROP")),
    ("end", Command::Transaction),
    ("execute", Command::Session),
    ("explain", Command::Explain),
    ("fetch", Command::Session),
    ("grant", Command::Ddl("GRANT")),
    ("import", Command::Ddl("IMPORT FOREIGN SCHEMA")),
    ("insert", Command::Dml("INSERT")),
    ("listen", Command::Session),
    ("load", Command::Session),
    ("lock", Command::Utility("LOCK")),
    ("merge", Command::Dml("MERGE")),
    ("move", Command::Session),
    ("notify", Command::Utility("NOTIFY")),
    ("prepare", Command::Session),
    ("reassign", Command::Ddl("REASSIGN OWNED")),
    ("refresh", Command::Utility("REFRESH MATERIALIZED VIEW")),
    ("reindex", Command::Utility("REINDEX")),
    ("release", Command::Transaction),
    ("repack", Command::Utility("REPACK")),
    ("reset", Command::Set),
    ("revoke", Command::Ddl("REVOKE")),
    ("rollback", Command::Transaction),
    ("savepoint", Command::Transaction),
    ("security", Command::Ddl("SECURITY LABEL")),
    ("select", Command::Query),
    ("set", Command::Set),
    ("show", Command::Session),
    ("start", Command::Transaction),
    ("table", Command::Query),
    ("truncate", Command::Utility("TRUNCATE")),
    ("unlisten", Command::Session),
    ("update", Command::Dml("UPDATE")),
    ("vacuum", Command::Utility("VACUUM")),
    ("values", Command::Query),
    ("wait", Command::Utility("WAIT")),
    ("with", Command::Query),
];

/// The index of the first word, behind parentheses that open the statement, and the command that it names.
fn head(statement: &Statement<'_>) -> (usize, Command) {
    let parentheses = (0..statement.len())
        .take_while(|&index| statement.is_punct(index, b'('))
        .count();
    // In quotes it is a name, with which no statement begins.
    let word = match statement.kind(parentheses) {
        Some(Kind::Word) => statement.identifier(parentheses),
        _ => Cow::Borrowed(""),
    };
    let command = COMMANDS
        .binary_search_by(|(name, _)| (*name).cmp(word.as_ref()))
        .map_or(Command::Unknown, |found| COMMANDS[found].1);
    (parentheses, command)
}

/// Whether a command of PostgreSQL begins with this word.
pub(crate) fn is_command(word: &str) -> bool {
    COMMANDS.binary_search_by(|(name, _)| (*name).cmp(word)).is_ok()
}

/// Judges a statement that can be looked into.
pub(crate) fn judge(statement: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Verdict {
    match head(statement) {
        (_, Command::Query) => queries::query(statement, context, catalog),
        (_, Command::Explain) => explain::explain(statement, context, catalog).with_execute(statement),
        (_, Command::Copy) => queries::copy(statement, context, catalog),
        (_, Command::Utility("DO")) => queries::block(statement, context, catalog),
        (_, Command::Dml(_)) => queries::change(statement, context, catalog),
        _ => judge_by_head(statement),
    }
}

/// Judges a statement by its first words and the functions that it calls, without a parse. Never a read.
pub(crate) fn judge_by_head(statement: &Statement<'_>) -> Verdict {
    let (first, command) = head(statement);
    let verdict = match command {
        Command::Query | Command::Copy | Command::Explain => Verdict::write(Reason::Unparsed).with_calls(statement),
        Command::Declare => session_state::declare(statement),
        Command::Dml(verb) | Command::Utility(verb) => Verdict::write(Reason::Verb(verb)).with_calls(statement),
        Command::Ddl(verb) => ddl::ddl(statement, verb),
        Command::Transaction => transaction::control(statement),
        Command::Set => set::set_or_reset(statement),
        Command::Session => session_state::session(statement),
        Command::Unknown => Verdict::write(Reason::UnknownVerb),
    };
    let unknown_word = command == Command::Unknown && statement.is_name(first);
    let pinned = if unknown_word {
        verdict.with_pin(PinReason::Unknown)
    } else {
        verdict
    };
    if names_temporary_schema(statement) {
        pinned.with_pin(PinReason::TemporaryTable)
    } else {
        pinned
    }
    .with_execute(statement)
}

/// `pg_temp` or `pg_temp_3`, as a name.
pub(crate) fn names_temporary_schema(statement: &Statement<'_>) -> bool {
    (0..statement.len()).any(|index| statement.is_name(index) && is_temporary_schema(&statement.identifier(index)))
}

pub(crate) fn is_temporary_schema(name: &str) -> bool {
    name.strip_prefix("pg_temp").is_some_and(|rest| {
        rest.is_empty()
            || rest
                .strip_prefix('_')
                .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_sorted() {
        assert!(COMMANDS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
