//! A text's normal form: what is left of it when inlined values and ordinary comments are taken out.
//!
//! The normal form is SQL again, and **the class of a text is the class of its normal form**: nothing that was left out can
//! change it, by construction. It is also the cache's key as it is, so that two texts with one key are never told apart by
//! anything but their literals, and no collision of a hash can lend one statement the class of another.
//!
//! Literals are left out only in texts whose statements all begin with SELECT, INSERT, UPDATE, DELETE, WITH, VALUES or TABLE: no
//! value in them can change class or effects, unless they call `set_config` or a function that runs
//! SQL. Two things of a string survive: that it spells the name of something that describes the node (`'pg_locks'::regclass`), and that
//! it reads as a range or a row where it is cast (`'[a,b)'::t`). Any other text (SET, EXPLAIN, COPY, …) is its own normal form.

use std::hash::BuildHasher;

use super::lexer::{Kind, Lexer, PlainStrings};
use super::{MAX_LENGTH, SqlContext, embedded, names, tokens};

/// The first byte of a normal form: the context under which it was read, and which of the two forms it is.
const CONFORMING_STRINGS: u8 = 1;
const PG_CATALOG_FIRST: u8 = 2;
const EXACT: u8 = 4;

/// Stands for a string literal that names something node-local.
const NODE_LOCAL_LITERAL: &[u8] = b"'pg_locks' ";

/// Stands for a string, with a cast behind it, that reads as a range or a row.
const STRUCTURED_LITERAL: &[u8] = b"'(,)' ";

/// Stands for any other string.
const LITERAL: &[u8] = b"'' ";

/// Writes the normal form of `sql` into `out`, which is cleared first. Returns whether it may be kept in a cache: longer texts
/// than [`MAX_LENGTH`] are not worth it.
pub(crate) fn normalise(sql: &[u8], context: &SqlContext, out: &mut Vec<u8>) -> bool {
    out.clear();
    if sql.len() > MAX_LENGTH {
        return false;
    }
    let flags = context_flags(context);
    out.push(flags);
    if !without_literals(sql, context.plain_strings(), out) {
        out.clear();
        out.push(flags | EXACT);
        out.extend_from_slice(sql);
    }
    true
}

/// What stands for a normal form where it would be too long; never 0.
pub(crate) fn hash(normal_form: &[u8]) -> u64 {
    foldhash::fast::FixedState::default().hash_one(normal_form).max(1)
}

/// The text of a normal form, without its first byte.
pub(crate) fn text(normal_form: &[u8]) -> &[u8] {
    normal_form.get(1..).unwrap_or_default()
}

fn context_flags(context: &SqlContext) -> u8 {
    let mut flags = 0;
    if context.standard_conforming_strings {
        flags |= CONFORMING_STRINGS;
    }
    if context.pg_catalog_first {
        flags |= PG_CATALOG_FIRST;
    }
    flags
}

/// False if literals matter, or if the text is not understood well enough to say.
fn without_literals(sql: &[u8], plain_strings: PlainStrings, out: &mut Vec<u8>) -> bool {
    if std::str::from_utf8(sql).is_err() {
        return false;
    }
    let mut at_statement_start = true;
    let mut in_list = InList::Outside;
    let mut structured = false;
    for token in Lexer::new(sql, plain_strings) {
        let bytes = token.bytes(sql);
        in_list = in_list.next(token.kind, bytes, out.len());
        match token.kind {
            Kind::Word => {
                if at_statement_start {
                    if !values_cannot_matter_after(bytes) {
                        return false;
                    }
                    at_statement_start = false;
                }
                if takes_a_telling_text(bytes) {
                    return false;
                }
                out.extend_from_slice(bytes);
                out.push(b' ');
            }
            Kind::String if names::literal_is_node_local(bytes) => out.extend_from_slice(NODE_LOCAL_LITERAL),
            Kind::String => {
                structured = tokens::is_structured(bytes);
                out.extend_from_slice(LITERAL);
                in_list.drop_repetition(out);
                continue;
            }
            Kind::Cast if structured => {
                out.truncate(out.len() - LITERAL.len());
                out.extend_from_slice(STRUCTURED_LITERAL);
                out.extend_from_slice(b":: ");
            }
            Kind::Number => out.extend_from_slice(b"1 "),
            Kind::Hint(hint) => out.extend_from_slice(hint.as_comment()),
            Kind::Punct(byte) => {
                at_statement_start |= byte == b';';
                out.push(byte);
                out.push(b' ');
            }
            Kind::Param if in_list != InList::Outside => out.extend_from_slice(b"$1 "),
            Kind::Quoted if takes_a_telling_text(bytes) => return false,
            Kind::Quoted | Kind::UnicodeQuoted | Kind::Param | Kind::Operator | Kind::Cast | Kind::ColonEquals => {
                out.extend_from_slice(bytes);
                out.push(b' ');
            }
            Kind::BackslashString | Kind::Unterminated | Kind::Other => return false,
        }
        structured = false;
        in_list.drop_repetition(out);
    }
    true
}

/// Whether a word, quoted or not, names a function that is given a setting's name (`set_config`) or SQL as text.
fn takes_a_telling_text(word: &[u8]) -> bool {
    let bare = match word {
        [b'"', bare @ .., b'"'] => bare,
        bare => bare,
    };
    bare.eq_ignore_ascii_case(b"set_config") || embedded::takes_sql(bare)
}

/// Follows `IN (1, 2, 3)`, so that lists of values have one normal form whatever their length. A function's arguments are never
/// touched: their number can matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InList {
    Outside,
    /// Behind `IN`.
    Announced,
    /// Behind the parenthesis, or behind a comma that follows nothing yet.
    Open,
    /// Behind a value that was written to `out` from this offset on.
    Value {
        from: usize,
    },
    /// Behind the comma at this offset, with the value before it.
    Comma {
        value_from: usize,
        comma: usize,
    },
    /// Behind a value that may repeat the one before it.
    Second {
        value_from: usize,
        comma: usize,
        from: usize,
    },
}

impl InList {
    /// The state behind a token that is about to be written at offset `at`.
    fn next(self, kind: Kind, bytes: &[u8], at: usize) -> InList {
        match (self, kind) {
            (_, Kind::Word) if bytes.eq_ignore_ascii_case(b"in") => InList::Announced,
            (InList::Announced, Kind::Punct(b'(')) => InList::Open,
            (InList::Open, Kind::String | Kind::Number | Kind::Param) => InList::Value { from: at },
            (InList::Value { from }, Kind::Punct(b',')) => InList::Comma {
                value_from: from,
                comma: at,
            },
            (InList::Comma { value_from, comma }, Kind::String | Kind::Number | Kind::Param) => InList::Second {
                value_from,
                comma,
                from: at,
            },
            (InList::Second { from, .. }, Kind::Punct(b',')) => InList::Comma {
                value_from: from,
                comma: at,
            },
            _ => InList::Outside,
        }
    }

    /// Takes a value back that reads like the one before it.
    fn drop_repetition(&mut self, out: &mut Vec<u8>) {
        if let InList::Second {
            value_from,
            comma,
            from,
        } = *self
            && out[value_from..comma] == out[from..]
        {
            out.truncate(comma);
            *self = InList::Value { from: value_from };
        }
    }
}

fn values_cannot_matter_after(head: &[u8]) -> bool {
    [
        &b"select"[..],
        b"insert",
        b"update",
        b"delete",
        b"with",
        b"values",
        b"table",
    ]
    .iter()
    .any(|word| head.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(sql: &str) -> String {
        let mut out = Vec::new();
        assert!(normalise(sql.as_bytes(), &SqlContext::default(), &mut out));
        String::from_utf8(text(&out).to_vec()).expect("UTF-8 in, UTF-8 out")
    }

    #[test]
    fn values_blanks_and_comments_are_left_out() {
        assert_eq!(
            normal("SELECT a FROM t WHERE b='x' -- note\n AND c = 42"),
            "SELECT a FROM t WHERE b = '' AND c = 1 "
        );
        assert_eq!(normal("select $1, E'\\n', $$x$$/* y */"), "select $1 , '' , '' ");
    }

    #[test]
    fn lists_of_values_have_one_length() {
        assert_eq!(
            normal("select 1 where a in (1, 2, 3) and b in ('x')"),
            "select 1 where a in ( 1 ) and b in ( '' ) "
        );
        assert_eq!(
            normal("select 1 where a in ($1,$2, 'x', 'y', $3)"),
            "select 1 where a in ( $1 , '' , $1 ) "
        );
        assert_eq!(
            normal("select 1 where a in (1, 2 + 3, 4, 5)"),
            "select 1 where a in ( 1 + 1 , 1 , 1 ) "
        );
        assert_eq!(normal("select f(1, 2, 3)"), "select f ( 1 , 1 , 1 ) ");
    }

    #[test]
    fn what_can_matter_stays() {
        assert_eq!(normal("set a = 'b'  -- c"), "set a = 'b'  -- c");
        assert_eq!(normal("select 1; set a = 'b'"), "select 1; set a = 'b'");
        assert_eq!(
            normal("/* pgsluice: standby */ select 1"),
            "/*pgsluice:standby*/select 1 "
        );
        assert_eq!(
            normal("select 'pg_stat_activity'::regclass"),
            "select 'pg_locks' :: regclass "
        );
        assert_eq!(
            normal("select '[1, 2)'::r, 'x'::r, '[1, 2)'"),
            "select '(,)' :: r , '' :: r , '' "
        );
        assert_eq!(
            normal("select 1 where a in ('[1,2)', '[3,4)'::r)"),
            "select 1 where a in ( '(,)' :: r ) "
        );
        let embedded = "select ts_stat('select a from t')";
        assert_eq!(normal(embedded), embedded);
    }

    #[test]
    fn a_normal_form_is_its_own_normal_form() {
        for sql in [
            "select 1.5, 'a'\n'b', x'ff'::bit, -1, a- -1, b|| 'c' from \"T\".u",
            "select - - 1",
            "values (.5)",
            "select '{[1,2)}'::r",
        ] {
            let once = normal(sql);
            assert_eq!(normal(&once), once, "{sql}");
        }
    }
}
