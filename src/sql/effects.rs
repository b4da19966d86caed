//! What a statement does to the session besides answering: the session loop mirrors these instead of reading SQL itself.

use std::fmt;

/// One thing a statement does to the session, or leaves behind. A class lists them in the order of the text.
///
/// They are what the text *asks for*: whether a block really began or ended is told by the status byte of ReadyForQuery.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// `BEGIN` or `START TRANSACTION`, with the modes it names.
    Begin {
        /// `READ ONLY` (`Some(true)`) or `READ WRITE` (`Some(false)`); `None` leaves it to `default_transaction_read_only`.
        read_only: Option<bool>,
        /// `ISOLATION LEVEL …`; `None` leaves it to `default_transaction_isolation`.
        isolation: Option<Isolation>,
        /// `DEFERRABLE`.
        deferrable: bool,
    },
    /// `COMMIT` or `END`.
    Commit {
        /// `AND CHAIN`: a new transaction with the same modes follows at once.
        chain: bool,
    },
    /// `ROLLBACK` or `ABORT`.
    Rollback {
        /// `AND CHAIN`: a new transaction with the same modes follows at once.
        chain: bool,
    },
    /// `SAVEPOINT name`.
    Savepoint {
        /// Folded as PostgreSQL folds identifiers.
        name: String,
    },
    /// `ROLLBACK TO name`: undoes SET and SET LOCAL since that savepoint.
    RollbackTo {
        /// Folded as PostgreSQL folds identifiers.
        name: String,
    },
    /// `RELEASE name`.
    Release {
        /// Folded as PostgreSQL folds identifiers.
        name: String,
    },
    /// `PREPARE TRANSACTION`: the block ends, its locks and changes stay with the primary.
    PrepareTransaction,
    /// `SET TRANSACTION …` (also `SET LOCAL transaction_read_only` and its like are `SetLocal`, not this).
    SetTransaction {
        /// `READ ONLY` (`Some(true)`) or `READ WRITE` (`Some(false)`).
        read_only: Option<bool>,
        /// `ISOLATION LEVEL …`.
        isolation: Option<Isolation>,
    },
    /// `SET [SESSION] name = value`, where the value isn't DEFAULT.
    SetGuc {
        /// Lower case, also for dotted custom names (`pgsluice.consistency`).
        name: String,
        /// The value list as it was written, so that `SET name = value` sets the same again.
        value: String,
    },
    /// `set_config(name, …, false)`: what it sets `name` to, and whether it was called at all, only the server knows.
    SetConfig {
        /// Lower case.
        name: String,
    },
    /// `SET LOCAL name …`, or `set_config(name, …, true)`.
    SetLocal {
        /// Lower case.
        name: String,
    },
    /// `RESET name` or `SET name TO DEFAULT`.
    ResetGuc {
        /// Lower case.
        name: String,
    },
    /// `RESET ALL`.
    ResetAll,
    /// `DISCARD ALL`.
    DiscardAll,
    /// `DISCARD TEMP`, `PLANS` or `SEQUENCES`: part of what pins a session may be gone, never more than that.
    DiscardPart,
    /// The proxy answers it: `SHOW pgsluice.…`, `EXPLAIN (ROUTE) …`.
    Own,
    /// `DEALLOCATE ALL`.
    DeallocateAll,
    /// EXECUTE, also by EXPLAIN or CREATE TABLE AS.
    Execute {
        /// The statement's name.
        name: String,
    },
    /// `DEALLOCATE name`.
    Deallocate {
        /// Folded as PostgreSQL folds identifiers.
        name: String,
    },
    /// What pins the session for this reason may be gone: UNLISTEN, `pg_advisory_unlock…()`, DROP, CLOSE. The server knows.
    MayUnpin(PinReason),
    /// `DROP DATABASE`, or what else needs it to be nobody's: renaming it, moving it, copying it.
    NeedsDatabaseAlone {
        /// Folded as PostgreSQL folds identifiers.
        name: String,
    },
    /// `nextval()` or `setval()` is called in so many words, so that `currval()` and `lastval()` now mean something on this
    /// server connection. The defaults of serial columns do the same without a trace in the text.
    NextVal,
    /// ALTER or DROP ROLE, ALTER DATABASE, REVOKE … ON DATABASE: who may log in may have changed, or the settings with which sessions begin.
    LoginDefaults,
    /// Leaves state that lives on the server connection.
    Pin(PinReason),
}

/// Why a session must stay on its server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PinReason {
    /// A temporary table, view, sequence or function, or any mention of `pg_temp`.
    TemporaryTable,
    /// `pg_advisory_lock()` and its like, held until unlocked or until the connection ends.
    AdvisoryLock,
    /// `LISTEN`.
    Listen,
    /// `DECLARE … WITH HOLD`.
    WithHoldCursor,
    /// SQL-level `PREPARE`.
    Prepare,
    /// `setseed()`: the following `random()` calls depend on it.
    SetSeed,
    /// The session relies on the connection on which `nextval()` ran. Classification never says so by itself, since that would
    /// pin every session that calls `nextval()`: the session loop may, on [`Effect::NextVal`].
    Sequence,
    /// A setting that isn't mirrored: SET TIME ZONE INTERVAL, `set_config()` of something that isn't
    /// named in the text.
    SessionGuc,
    /// `LOAD`, which changes the server process.
    Load,
    /// A snapshot exported, or a backup under way: both end with the connection.
    ServerResource,
    /// A command that this version doesn't know, or a function whose name is written in escapes.
    Unknown,
}

impl PinReason {
    /// Every reason, in the order of the type.
    pub const ALL: [PinReason; 11] = [
        PinReason::TemporaryTable,
        PinReason::AdvisoryLock,
        PinReason::Listen,
        PinReason::WithHoldCursor,
        PinReason::Prepare,
        PinReason::SetSeed,
        PinReason::Sequence,
        PinReason::SessionGuc,
        PinReason::Load,
        PinReason::ServerResource,
        PinReason::Unknown,
    ];

    /// A closed, low-cardinality label for metrics and SHOW CLIENTS.
    pub fn as_str(self) -> &'static str {
        match self {
            PinReason::TemporaryTable => "temporary_table",
            PinReason::AdvisoryLock => "advisory_lock",
            PinReason::Listen => "listen",
            PinReason::WithHoldCursor => "with_hold_cursor",
            PinReason::Prepare => "prepare",
            PinReason::SetSeed => "setseed",
            PinReason::Sequence => "sequence",
            PinReason::SessionGuc => "session_guc",
            PinReason::Load => "load",
            PinReason::ServerResource => "server_resource",
            PinReason::Unknown => "unknown",
        }
    }
}

impl fmt::Display for PinReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A transaction's isolation level (manual, 13.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Treated by PostgreSQL as READ COMMITTED.
    ReadUncommitted,
    /// The default.
    ReadCommitted,
    /// One snapshot for the whole transaction.
    RepeatableRead,
    /// Not possible on a standby (0A000).
    Serializable,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isolation::ReadUncommitted => "read uncommitted",
            Isolation::ReadCommitted => "read committed",
            Isolation::RepeatableRead => "repeatable read",
            Isolation::Serializable => "serializable",
        })
    }
}

impl fmt::Display for Effect {
    /// One line for `pgsluice explain`, such as `begin read_only` or `set work_mem`. Values of settings are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Begin {
                read_only,
                isolation,
                deferrable,
            } => {
                f.write_str("begin")?;
                write_modes(f, *read_only, *isolation)?;
                if *deferrable {
                    f.write_str(" deferrable")
                } else {
                    Ok(())
                }
            }
            Effect::Commit { chain: false } => f.write_str("commit"),
            Effect::Commit { chain: true } => f.write_str("commit and chain"),
            Effect::Rollback { chain: false } => f.write_str("rollback"),
            Effect::Rollback { chain: true } => f.write_str("rollback and chain"),
            Effect::Savepoint { name } => write!(f, "savepoint {name}"),
            Effect::RollbackTo { name } => write!(f, "rollback to {name}"),
            Effect::Release { name } => write!(f, "release {name}"),
            Effect::PrepareTransaction => f.write_str("prepare transaction"),
            Effect::SetTransaction { read_only, isolation } => {
                f.write_str("set transaction")?;
                write_modes(f, *read_only, *isolation)
            }
            Effect::SetGuc { name, .. } | Effect::SetConfig { name } => write!(f, "set {name}"),
            Effect::SetLocal { name } => write!(f, "set local {name}"),
            Effect::ResetGuc { name } => write!(f, "reset {name}"),
            Effect::ResetAll => f.write_str("reset all"),
            Effect::DiscardAll => f.write_str("discard all"),
            Effect::DiscardPart => f.write_str("discard part"),
            Effect::Own => f.write_str("answered by the proxy"),
            Effect::DeallocateAll => f.write_str("deallocate all"),
            Effect::Execute { name } => write!(f, "execute {name}"),
            Effect::Deallocate { name } => write!(f, "deallocate {name}"),
            Effect::MayUnpin(reason) => write!(f, "may unpin {reason}"),
            Effect::NeedsDatabaseAlone { name } => write!(f, "needs database {name} alone"),
            Effect::NextVal => f.write_str("nextval"),
            Effect::LoginDefaults => f.write_str("login defaults"),
            Effect::Pin(reason) => write!(f, "pin {reason}"),
        }
    }
}

fn write_modes(f: &mut fmt::Formatter<'_>, read_only: Option<bool>, isolation: Option<Isolation>) -> fmt::Result {
    match read_only {
        Some(true) => f.write_str(" read only")?,
        Some(false) => f.write_str(" read write")?,
        None => {}
    }
    match isolation {
        Some(level) => write!(f, " {level}"),
        None => Ok(()),
    }
}
