//! What a statement is, and why: the answer of [`classify`](super::classify).

use std::fmt;

use smallvec::SmallVec;

use super::effects::Effect;
use super::hint::Hint;
use crate::config::Consistency;

/// Where a text may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Provably answers the same on any standby that is fresh enough, and leaves nothing behind.
    Read,
    /// Everything else: it belongs to the primary.
    Write,
}

impl Access {
    /// `read` or `write`, as in metrics and `pgsluice explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::Write => "write",
        }
    }
}

/// What one text (a simple query, or the text of a Parse message) is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementClass {
    /// The strongest access of the text's statements.
    pub access: Access,
    /// Only reads, but was kept from standbys since its answer describes a node or a name in it isn't known to be safe: a
    /// `standby` hint may send it there. Never true for a known write, session effect, lock, or for what wasn't parsed.
    pub standby_by_hint: bool,
    /// What a comment in the text asks for.
    pub hint: Option<Hint>,
    /// What a comment in the text asks it to see.
    pub consistency: Option<Consistency>,
    /// A comment asks for a position that it must see ([`position_hint`](super::position_hint)).
    pub positioned: bool,
    /// What it does to the session, in order.
    pub effects: SmallVec<[Effect; 1]>,
    /// How many statements it holds; 0 is the empty query. Saturates.
    pub statements: u16,
    /// May change the catalog, but for rights, comments and indexes: what is prepared after it means something else.
    pub ddl: bool,
    /// May change what reading a name does: functions, types, operators, views, and what makes a table more than a table.
    pub changes_names: bool,
    /// A single plain read without effects: may run again on another node as long as nothing was forwarded to the client.
    pub retry_safe: bool,
    /// Uses the clock (`now()`, `CURRENT_DATE`, …), which is the node's own.
    pub now_sensitive: bool,
    /// Calls code of which nothing is known: it may leave anything on its server connection. What a trigger calls doesn't count.
    pub unknown_code: bool,
    /// Calls `pg_terminate_backend()` or `pg_cancel_backend()`.
    pub signals: bool,
    /// Calls `pg_backend_pid()`.
    pub tells_process: bool,
    /// Names the view `pg_prepared_statements`.
    pub reads_prepared: bool,
    /// Of the text's normal form; 0 where it has none.
    pub fingerprint: u64,
    /// Why: the reason of the first statement that decided `access`.
    pub reason: Reason,
}

/// Why a text is a read, or why not. Shown after "because", so that each is a full clause.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Every function, operator, type and relation in it is known to be safe.
    PlainRead,
    /// Nothing in it but blanks, comments and semicolons.
    Empty,
    /// EXPLAIN without ANALYZE plans and doesn't execute.
    ExplainOnly,
    /// Calls a built-in function that writes, or fails on a standby.
    Function {
        /// As it is in pg_proc.
        name: String,
    },
    /// Calls a built-in function that acts on the server it runs on, also on a standby.
    ServerAction {
        /// As it is in pg_proc.
        name: String,
    },
    /// Calls a function that runs SQL given as text, or reads relations given by name.
    EmbeddedSql {
        /// As it is in pg_proc.
        name: String,
    },
    /// Takes or gives back an advisory lock, which on a standby would exclude nobody.
    AdvisoryLock {
        /// As it is in pg_proc.
        name: String,
    },
    /// Calls a function that depends on, or changes, the server connection it runs on.
    SessionFunction {
        /// As it is in pg_proc.
        name: String,
    },
    /// Calls a function that isn't known to be safe.
    UnknownFunction {
        /// As it was written, folded.
        name: String,
    },
    /// Calls a function of the database's own that is VOLATILE.
    VolatileFunction {
        /// Schema, name and argument types.
        signature: String,
        /// It may leave something on its server connection.
        leaves_traces: bool,
    },
    /// Reads a relation that is more than a table.
    Relation {
        /// Schema and name.
        name: String,
        /// A clause: `is UNLOGGED`.
        why: String,
        /// A standby would refuse it, or answer for itself, and do no harm.
        yields_to_hint: bool,
    },
    /// Uses a type that isn't built in: a domain's CHECK may do anything.
    UnknownType {
        /// As it was written, folded.
        name: String,
    },
    /// Uses an operator that isn't built in.
    UnknownOperator {
        /// As it was written.
        name: String,
    },
    /// The answer describes the node that gives it.
    NodeLocal {
        /// The function, view or command.
        name: String,
    },
    /// Reads a sequence's own columns, which run ahead on a standby.
    SequenceState {
        /// The column.
        name: String,
    },
    /// Names the session's temporary schema.
    TemporarySchema,
    /// FOR UPDATE and its like lock rows.
    LockingClause,
    /// A CTE, or something deeper, inserts, updates, deletes or merges.
    DataModifyingCte,
    /// SELECT INTO creates a table.
    SelectInto,
    /// A command that writes, by its first word.
    Verb(&'static str),
    /// The first word is no SQL command of PostgreSQL.
    UnknownVerb,
    /// BEGIN, COMMIT, SAVEPOINT, SET TRANSACTION and their like.
    TransactionControl,
    /// Changes or reads what belongs to the session: SET, PREPARE, DISCARD, LISTEN.
    SessionState(&'static str),
    /// Cursors live in their transaction, or on their connection.
    Cursor,
    /// The parser doesn't know it, or the parser and the lexer disagree about it.
    Unparsed,
    /// A quote or a comment doesn't end, or the text isn't UTF-8.
    BadText,
    /// standard_conforming_strings is off, and a plain string holds a backslash.
    BackslashString,
    /// Longer than is looked into.
    TooLong,
    /// More tokens than are looked into.
    TooManyTokens,
}

impl Reason {
    /// A closed, low-cardinality label for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Reason::PlainRead => "plain_read",
            Reason::Empty => "empty",
            Reason::ExplainOnly => "explain_only",
            Reason::Function { .. } => "function",
            Reason::ServerAction { .. } => "server_action",
            Reason::EmbeddedSql { .. } => "embedded_sql",
            Reason::AdvisoryLock { .. } => "advisory_lock",
            Reason::SessionFunction { .. } => "session_function",
            Reason::UnknownFunction { .. } => "unknown_function",
            Reason::VolatileFunction { .. } => "volatile_function",
            Reason::Relation { .. } => "relation",
            Reason::UnknownType { .. } => "unknown_type",
            Reason::UnknownOperator { .. } => "unknown_operator",
            Reason::NodeLocal { .. } => "node_local",
            Reason::SequenceState { .. } => "sequence_state",
            Reason::TemporarySchema => "temporary_schema",
            Reason::LockingClause => "locking_clause",
            Reason::DataModifyingCte => "data_modifying_cte",
            Reason::SelectInto => "select_into",
            Reason::Verb(_) => "verb",
            Reason::UnknownVerb => "unknown_verb",
            Reason::TransactionControl => "transaction_control",
            Reason::SessionState(_) => "session_state",
            Reason::Cursor => "cursor",
            Reason::Unparsed => "unparsed",
            Reason::BadText => "bad_text",
            Reason::BackslashString => "backslash_string",
            Reason::TooLong => "too_long",
            Reason::TooManyTokens => "too_many_tokens",
        }
    }

    /// Whether code runs of which nothing is known: it may leave anything on its server connection.
    pub(crate) fn runs_unknown_code(&self) -> bool {
        matches!(
            self,
            Reason::UnknownFunction { .. }
                | Reason::VolatileFunction {
                    leaves_traces: true,
                    ..
                }
                | Reason::EmbeddedSql { .. }
                | Reason::Verb("CALL" | "DO")
        )
    }

    /// Whether it holds for a statement that is planned and not executed: planning may call what is not volatile.
    pub(crate) fn holds_when_planned(&self) -> bool {
        match self {
            // VOLATILE, as most that write are; but not all of them.
            Reason::Function { name } => !matches!(name.as_str(), "nextval" | "setval"),
            Reason::NodeLocal { .. } | Reason::ServerAction { .. } | Reason::EmbeddedSql { .. } => true,
            _ => false,
        }
    }

    /// Whether a name in it isn't known at all.
    pub fn is_about_unknown_name(&self) -> bool {
        matches!(
            self,
            Reason::UnknownFunction { .. } | Reason::UnknownType { .. } | Reason::UnknownOperator { .. }
        )
    }

    /// Whether a `standby` hint may overrule it: the statement is known to have no effect but its answer, or would be refused
    /// by a standby if it had one.
    pub(crate) fn yields_to_hint(&self) -> bool {
        matches!(
            self,
            Reason::UnknownFunction { .. }
                | Reason::UnknownType { .. }
                | Reason::UnknownOperator { .. }
                | Reason::NodeLocal { .. }
                | Reason::VolatileFunction { .. }
                | Reason::Relation {
                    yields_to_hint: true,
                    ..
                }
        )
    }
}

impl StatementClass {
    /// Whether it executes or deallocates prepared statements by their names.
    pub fn names_prepared(&self) -> bool {
        let names = |effect: &Effect| matches!(effect, Effect::Execute { .. } | Effect::Deallocate { .. });
        self.effects.iter().any(names)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::PlainRead => f.write_str("it only reads, and everything it names is known to be safe"),
            Reason::Empty => f.write_str("there is no statement in it"),
            Reason::ExplainOnly => f.write_str("EXPLAIN without ANALYZE doesn't execute"),
            Reason::Function { name } => write!(f, "function {name} writes"),
            Reason::ServerAction { name } => write!(f, "function {name} acts on the server that runs it"),
            Reason::EmbeddedSql { name } => write!(f, "function {name} runs SQL that is given as text"),
            Reason::AdvisoryLock { name } => write!(
                f,
                "function {name} handles advisory locks, which a standby doesn't share"
            ),
            Reason::SessionFunction { name } => write!(f, "function {name} depends on the server connection"),
            Reason::UnknownFunction { name } => write!(f, "function {name} isn't known to be safe"),
            Reason::VolatileFunction { signature, .. } => write!(f, "function {signature} is VOLATILE"),
            Reason::Relation { name, why, .. } => write!(f, "{name} {why}"),
            Reason::UnknownType { name } => {
                write!(f, "type {name} isn't built in, so that a cast to it may run anything")
            }
            Reason::UnknownOperator { name } => write!(f, "operator {name} isn't built in"),
            Reason::NodeLocal { name } => write!(f, "the answer of {name} describes the node that gives it"),
            Reason::SequenceState { name } => {
                write!(f, "column {name} may be a sequence's, which runs ahead on a standby")
            }
            Reason::TemporarySchema => f.write_str("it names the session's temporary schema"),
            Reason::LockingClause => f.write_str("a locking clause locks rows"),
            Reason::DataModifyingCte => f.write_str("a part of it inserts, updates, deletes or merges"),
            Reason::SelectInto => f.write_str("SELECT INTO creates a table"),
            Reason::Verb(verb) => write!(f, "{verb} belongs to the primary"),
            Reason::UnknownVerb => f.write_str("its first word is no known command"),
            Reason::TransactionControl => f.write_str("it controls a transaction"),
            Reason::SessionState(verb) => write!(f, "{verb} is about the session's own state"),
            Reason::Cursor => f.write_str("a cursor stays where it was opened"),
            Reason::Unparsed => f.write_str("the parser doesn't understand it"),
            Reason::BadText => f.write_str("a quote or comment in it doesn't end, or it isn't UTF-8"),
            Reason::BackslashString => f.write_str("standard_conforming_strings is off and a string holds a backslash"),
            Reason::TooLong => f.write_str("it is longer than what is looked into"),
            Reason::TooManyTokens => f.write_str("it has more tokens than what is looked into"),
        }
    }
}
