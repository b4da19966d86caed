//! The five characters that say what went wrong (manual, appendix A), as a type.
//!
//! Only the codes that pgsluice sends or decides on have names here. Any other code that a node sends is carried along as it is.

use std::fmt;

/// A SQLSTATE: five upper-case ASCII letters or digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SqlState([u8; 5]);

/// The table: a constant, its code, and the condition's name in the manual.
macro_rules! named_states {
    ($($constant:ident = $code:literal, $condition:literal;)*) => {
        impl SqlState {
            $(#[doc = concat!("`", $code, "`, ", $condition)]
            pub const $constant: SqlState = SqlState::literal($code);)*

            /// Every state with a name here, for tables and tests.
            pub const NAMED: &[(SqlState, &str)] = &[$((SqlState::$constant, $condition),)*];
        }
    };
}

named_states! {
    SUCCESSFUL_COMPLETION = "00000", "successful_completion";
    WARNING = "01000", "warning";
    CONNECTION_EXCEPTION = "08000", "connection_exception";
    UNABLE_TO_CONNECT = "08001", "sqlclient_unable_to_establish_sqlconnection";
    CONNECTION_DOES_NOT_EXIST = "08003", "connection_does_not_exist";
    CONNECTION_REJECTED = "08004", "sqlserver_rejected_establishment_of_sqlconnection";
    CONNECTION_FAILURE = "08006", "connection_failure";
    TRANSACTION_RESOLUTION_UNKNOWN = "08007", "transaction_resolution_unknown";
    PROTOCOL_VIOLATION = "08P01", "protocol_violation";
    FEATURE_NOT_SUPPORTED = "0A000", "feature_not_supported";
    INVALID_PARAMETER_VALUE = "22023", "invalid_parameter_value";
    ACTIVE_SQL_TRANSACTION = "25001", "active_sql_transaction";
    READ_ONLY_SQL_TRANSACTION = "25006", "read_only_sql_transaction";
    NO_ACTIVE_SQL_TRANSACTION = "25P01", "no_active_sql_transaction";
    IN_FAILED_SQL_TRANSACTION = "25P02", "in_failed_sql_transaction";
    TRANSACTION_TIMEOUT = "25P04", "transaction_timeout";
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = "25P03", "idle_in_transaction_session_timeout";
    INVALID_SQL_STATEMENT_NAME = "26000", "invalid_sql_statement_name";
    INVALID_AUTHORIZATION_SPECIFICATION = "28000", "invalid_authorization_specification";
    INVALID_PASSWORD = "28P01", "invalid_password";
    INVALID_CURSOR_NAME = "34000", "invalid_cursor_name";
    INVALID_CATALOG_NAME = "3D000", "invalid_catalog_name";
    SERIALIZATION_FAILURE = "40001", "serialization_failure";
    DEADLOCK_DETECTED = "40P01", "deadlock_detected";
    SYNTAX_ERROR = "42601", "syntax_error";
    INSUFFICIENT_PRIVILEGE = "42501", "insufficient_privilege";
    UNIQUE_VIOLATION = "23505", "unique_violation";
    INVALID_SCHEMA_NAME = "3F000", "invalid_schema_name";
    UNDEFINED_COLUMN = "42703", "undefined_column";
    UNDEFINED_OBJECT = "42704", "undefined_object";
    UNDEFINED_FUNCTION = "42883", "undefined_function";
    UNDEFINED_TABLE = "42P01", "undefined_table";
    DUPLICATE_CURSOR = "42P03", "duplicate_cursor";
    DUPLICATE_PREPARED_STATEMENT = "42P05", "duplicate_prepared_statement";
    OUT_OF_MEMORY = "53200", "out_of_memory";
    TOO_MANY_CONNECTIONS = "53300", "too_many_connections";
    PROGRAM_LIMIT_EXCEEDED = "54000", "program_limit_exceeded";
    OBJECT_NOT_IN_PREREQUISITE_STATE = "55000", "object_not_in_prerequisite_state";
    OBJECT_IN_USE = "55006", "object_in_use";
    CANT_CHANGE_RUNTIME_PARAM = "55P02", "cant_change_runtime_param";
    QUERY_CANCELED = "57014", "query_canceled";
    ADMIN_SHUTDOWN = "57P01", "admin_shutdown";
    CRASH_SHUTDOWN = "57P02", "crash_shutdown";
    CANNOT_CONNECT_NOW = "57P03", "cannot_connect_now";
    DATABASE_DROPPED = "57P04", "database_dropped";
    IDLE_SESSION_TIMEOUT = "57P05", "idle_session_timeout";
    SYSTEM_ERROR = "58000", "system_error";
    IO_ERROR = "58030", "io_error";
    UNDEFINED_FILE = "58P01", "undefined_file";
    CONFIG_FILE_ERROR = "F0000", "config_file_error";
    INTERNAL_ERROR = "XX000", "internal_error";
}

impl SqlState {
    /// For the table above: anything but five bytes doesn't compile.
    const fn literal(code: &str) -> SqlState {
        let bytes = code.as_bytes();
        assert!(bytes.len() == 5, "a SQLSTATE has five characters");
        SqlState([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]])
    }

    /// A code as it came over the wire; `None` unless it is five upper-case letters or digits.
    pub fn from_bytes(bytes: &[u8]) -> Option<SqlState> {
        let code: [u8; 5] = bytes.try_into().ok()?;
        let valid = code
            .iter()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
        valid.then_some(SqlState(code))
    }

    /// The five bytes.
    pub fn as_bytes(&self) -> &[u8; 5] {
        &self.0
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("only ASCII letters and digits get in")
    }

    /// The class: the first two characters, such as `08` for trouble with the connection.
    pub fn class(&self) -> [u8; 2] {
        [self.0[0], self.0[1]]
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_survives_the_wire_and_shows_itself() {
        let state = SqlState::from_bytes(b"57P03").unwrap();
        assert_eq!(state, SqlState::CANNOT_CONNECT_NOW);
        assert_eq!(state.to_string(), "57P03");
        assert_eq!(state.class(), *b"57");
    }

    #[test]
    fn what_is_no_code_is_refused() {
        for bad in [&b""[..], b"57P0", b"57P033", b"57p03", b"57 03", b"57P0\xff"] {
            assert_eq!(SqlState::from_bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn every_named_state_is_valid_and_named_once() {
        for (state, condition) in SqlState::NAMED {
            assert_eq!(SqlState::from_bytes(state.as_bytes()), Some(*state), "{condition}");
            assert_eq!(
                SqlState::NAMED.iter().filter(|(other, _)| other == state).count(),
                1,
                "{state} twice"
            );
        }
    }
}
