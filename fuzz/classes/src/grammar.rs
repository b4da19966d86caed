//! PostgreSQL's own parser, from the C library that `pg_query` builds, by its tree in JSON.
//!
//! The crate's typed trees are walked by code that names each field it descends into, and a field that it forgets is a hole in an oracle.
//! JSON has no such fields: whoever walks it sees everything. So the one function that answers in JSON is called directly.

use std::ffi::{CString, c_char, c_int};

use serde_json::Value;

// Links the C library.
use pg_query as _;

#[repr(C)]
struct ParseError {
    message: *mut c_char,
    funcname: *mut c_char,
    filename: *mut c_char,
    lineno: c_int,
    cursorpos: c_int,
    context: *mut c_char,
}

/// `PgQueryParseResult` in pg_query.h.
#[repr(C)]
struct ParseResult {
    parse_tree: *mut c_char,
    stderr_buffer: *mut c_char,
    error: *mut ParseError,
}

unsafe extern "C" {
    fn pg_query_parse(input: *const c_char) -> ParseResult;
    fn pg_query_free_parse_result(result: ParseResult);
}

/// The statements of a text as PostgreSQL reads it, each an object with one key, its kind; `None` if it has a syntax error.
pub(crate) fn parse(sql: &str) -> Option<Vec<Value>> {
    let input = CString::new(sql).ok()?;
    // SAFETY: the input ends with NUL and outlives the call; the result is copied before it is freed, once.
    let tree = unsafe {
        let result = pg_query_parse(input.as_ptr());
        let tree = result.error.is_null().then(|| {
            std::ffi::CStr::from_ptr(result.parse_tree)
                .to_string_lossy()
                .into_owned()
        });
        pg_query_free_parse_result(result);
        tree
    }?;
    let mut reader = serde_json::Deserializer::from_str(&tree);
    reader.disable_recursion_limit();
    let mut tree: Value = serde::Deserialize::deserialize(&mut reader).ok()?;
    let statements = tree.get_mut("stmts").map(Value::take).unwrap_or_default();
    let Value::Array(statements) = statements else {
        return Some(Vec::new());
    };
    Some(statements.into_iter().map(|mut raw| raw["stmt"].take()).collect())
}
