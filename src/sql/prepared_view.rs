//! Where a text reads the view `pg_prepared_statements`, which on a server tells of one connection.

use std::ops::Range;

use super::lexer::{Kind, Token};
use super::statement::{Statement, Statements, identifier};
use super::{MAX_LENGTH, SqlContext};

const VIEW: &str = "pg_prepared_statements";

/// A text that reads it in more places than this is left as it is: what stands there instead may be long.
const MAX_PLACES: usize = 8;

/// How the view stands where it is read, and so what may stand there instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreparedView {
    /// Before an alias.
    Aliased,
    /// By its own name.
    Bare,
    /// `TABLE pg_prepared_statements`.
    Command,
}

/// Whether a token is the view's name.
pub(super) fn is_view(token: &Token, text: &[u8]) -> bool {
    // Most tokens are told apart by their length.
    matches!(token.kind, Kind::Word | Kind::Quoted)
        && matches!(token.end - token.start, 22 | 24)
        && identifier(token.kind, token.bytes(text)) == VIEW
}

/// Where `sql` reads the view, in order. Not where its text is kept for later, as that of a view or a function; nor where something else
/// may be meant, or in a text that is longer than what is looked into.
pub fn prepared_views(sql: &[u8], context: &SqlContext) -> Vec<(Range<usize>, PreparedView)> {
    if sql.len() > MAX_LENGTH {
        return Vec::new();
    }
    let statements = Statements::new(sql, context.plain_strings());
    let places: Vec<_> = statements
        .filter(|statement| statement.reads_prepared && runs_at_once(statement))
        .flat_map(|statement| {
            let bare_means_it = context.pg_catalog_first && !names_a_cte(&statement);
            let places = (0..statement.len()).filter_map(|index| place(&statement, index, bare_means_it));
            places.collect::<Vec<_>>()
        })
        .take(MAX_PLACES + 1)
        .collect();
    if places.len() > MAX_PLACES { Vec::new() } else { places }
}

/// Whether all that it reads is read when it is carried out. EXPLAIN tells what the server would do with the text as it is.
fn runs_at_once(statement: &Statement<'_>) -> bool {
    const VERBS: [&str; 10] = [
        "select", "with", "table", "values", "copy", "declare", "insert", "update", "delete", "merge",
    ];
    const BEFORE_TABLE: [&str; 5] = ["global", "local", "temp", "temporary", "unlogged"];
    if statement.is_word(0, "create") {
        let words = (1..statement.len()).take_while(|&index| statement.is_any_word(index, &BEFORE_TABLE));
        return statement.is_word(1 + words.count(), "table");
    }
    statement.is_punct(0, b'(') || statement.is_any_word(0, &VERBS)
}

/// Whether a CTE has the view's name: `name [(columns)] AS [[NOT] MATERIALIZED] (query)`.
fn names_a_cte(statement: &Statement<'_>) -> bool {
    (0..statement.len()).any(|index| {
        if !is_view(&statement.tokens[index], statement.text) {
            return false;
        }
        let mut at = index + 1;
        if statement.is_punct(at, b'(') {
            at = statement.behind_parenthesis(at);
        }
        statement.is_word(at, "as")
            && (statement.is_punct(at + 1, b'(') || statement.is_any_word(at + 1, &["not", "materialized"]))
    })
}

fn place(statement: &Statement<'_>, index: usize, bare_means_it: bool) -> Option<(Range<usize>, PreparedView)> {
    if !is_view(&statement.tokens[index], statement.text) {
        return None;
    }
    let mut first = index;
    if index >= 2 && statement.is_punct(index - 1, b'.') {
        first = index - 2;
        let qualified = statement.identifier(first) == "pg_catalog";
        if !qualified || (first > 0 && statement.is_punct(first - 1, b'.')) {
            return None;
        }
    } else if !bare_means_it {
        return None;
    }
    // A call, a schema, or `name *`.
    let behind = index + 1;
    if [b'(', b'.'].iter().any(|&punct| statement.is_punct(behind, punct)) || statement.is_operator(behind, "*") {
        return None;
    }
    if first > 0 && statement.is_word(first - 1, "only") {
        first -= 1;
    }
    let form = if is_command(statement, first) {
        first -= 1;
        PreparedView::Command
    } else if !is_read(statement, first) {
        return None;
    } else if has_alias(statement, behind) {
        PreparedView::Aliased
    } else {
        PreparedView::Bare
    };
    Some((statement.tokens[first].start..statement.tokens[index].end, form))
}

/// Whether the relation whose name begins at `first` is all of a query: `TABLE name`.
fn is_command(statement: &Statement<'_>, first: usize) -> bool {
    let Some(table) = first.checked_sub(1).filter(|&table| statement.is_word(table, "table")) else {
        return false;
    };
    let Some(before) = table.checked_sub(1) else {
        return true;
    };
    statement.is_punct(before, b'(')
        || statement.is_punct(before, b')')
        || statement.is_any_word(
            before,
            &["as", "union", "intersect", "except", "all", "distinct", "for"],
        )
}

/// Whether a name that begins at `first` stands in a FROM clause.
fn is_read(statement: &Statement<'_>, first: usize) -> bool {
    let Some(before) = first.checked_sub(1) else {
        return false;
    };
    if statement.is_word(before, "join") {
        return true;
    }
    if statement.is_word(before, "from") {
        let compares = statement.is_word(before.wrapping_sub(1), "distinct")
            && statement.is_any_word(before.wrapping_sub(2), &["is", "not"]);
        return !compares && !statement.is_word(before.wrapping_sub(1), "delete");
    }
    statement.is_punct(before, b',') && is_in_from(statement, before)
}

/// Whether the comma stands between the relations of a FROM clause.
fn is_in_from(statement: &Statement<'_>, comma: usize) -> bool {
    const OTHERS: [&str; 12] = [
        "select",
        "where",
        "group",
        "order",
        "by",
        "having",
        "window",
        "set",
        "values",
        "returning",
        "limit",
        "offset",
    ];
    let mut at = comma;
    while at > 0 {
        at -= 1;
        if statement.is_word(at, "from") {
            return true;
        }
        if statement.is_punct(at, b'(') || statement.is_any_word(at, &OTHERS) {
            return false;
        }
        if statement.is_punct(at, b')') {
            let Some(open) = statement.parenthesis_before(at) else {
                return false;
            };
            at = open;
        }
    }
    false
}

/// Whether what stands at `index`, behind a relation, is its alias.
fn has_alias(statement: &Statement<'_>, index: usize) -> bool {
    // What may follow a relation, of the words that can be no alias without AS (manual, appendix C).
    const NO_ALIAS: &[&str] = &[
        "cross",
        "except",
        "fetch",
        "for",
        "full",
        "group",
        "having",
        "inner",
        "intersect",
        "into",
        "join",
        "left",
        "limit",
        "natural",
        "offset",
        "on",
        "order",
        "returning",
        "right",
        "tablesample",
        "union",
        "using",
        "when",
        "where",
        "window",
        "with",
    ];
    statement.is_name(index) && !statement.is_any_word(index, NO_ALIAS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked_by(sql: &str, context: &SqlContext) -> String {
        let (mut out, mut taken) = (String::new(), 0);
        for (at, form) in prepared_views(sql.as_bytes(), context) {
            out += &sql[taken..at.start];
            out += match form {
                PreparedView::Aliased => "A",
                PreparedView::Bare => "B",
                PreparedView::Command => "C",
            };
            taken = at.end;
        }
        out + &sql[taken..]
    }

    #[test]
    fn the_view_is_found_where_it_is_read() {
        for (sql, marked) in [
            (
                "select name from pg_prepared_statements where name <> ''",
                "select name from B where name <> ''",
            ),
            ("SELECT 1 FROM \"pg_prepared_statements\"", "SELECT 1 FROM B"),
            (
                "select 1 from PG_Catalog.pg_prepared_statements p;",
                "select 1 from A p;",
            ),
            (
                "select (select count(*) from only pg_prepared_statements) from pg_prepared_statements as x(y)",
                "select (select count(*) from B) from A as x(y)",
            ),
            (
                "select 1 from a left join pg_prepared_statements on b, pg_prepared_statements q",
                "select 1 from a left join B on b, A q",
            ),
            (
                "select 1 from f(a, b) g, pg_prepared_statements",
                "select 1 from f(a, b) g, B",
            ),
            ("table pg_prepared_statements", "C"),
            (
                "(table pg_catalog.pg_prepared_statements) union all table pg_prepared_statements order by 1",
                "(C) union all C order by 1",
            ),
            (
                "with c as (select * from pg_prepared_statements) select * from c",
                "with c as (select * from B) select * from c",
            ),
            (
                "create temp table t as select * from pg_prepared_statements with no data",
                "create temp table t as select * from B with no data",
            ),
            (
                "declare c cursor for select * from pg_prepared_statements for read only",
                "declare c cursor for select * from B for read only",
            ),
            (
                "select 1; insert into t select name from pg_prepared_statements",
                "select 1; insert into t select name from B",
            ),
        ] {
            assert_eq!(marked_by(sql, &SqlContext::default()), marked);
        }
    }

    #[test]
    fn what_only_has_its_name_is_left() {
        for sql in [
            "select pg_prepared_statements, 'from pg_prepared_statements' from t",
            "select 1 from public.pg_prepared_statements",
            "select 1 from a.pg_catalog.pg_prepared_statements",
            "select 1 from pg_prepared_statements.t",
            "select 1 from pg_prepared_statements()",
            "with pg_prepared_statements as (select 1) select * from pg_prepared_statements",
            "with recursive a as (select 1), pg_prepared_statements (x) as materialized (select 1) table pg_prepared_statements",
            "create view v as select * from pg_prepared_statements",
            "create function f() returns table (a int) begin atomic select 1 from pg_prepared_statements; end",
            "prepare p as select * from pg_prepared_statements",
            "explain select * from pg_prepared_statements",
            "delete from pg_prepared_statements",
            "lock table pg_prepared_statements",
            "select a is distinct from pg_prepared_statements from t",
            "select 1 from t group by a, pg_prepared_statements",
        ] {
            assert_eq!(marked_by(sql, &SqlContext::default()), sql);
        }
        let elsewhere = SqlContext {
            pg_catalog_first: false,
            ..SqlContext::default()
        };
        let sql = "select 1 from pg_prepared_statements, pg_catalog.pg_prepared_statements";
        assert_eq!(marked_by(sql, &elsewhere), "select 1 from pg_prepared_statements, B");
        let long = format!(
            "select 1 from pg_prepared_statements where name = '{}'",
            "x".repeat(MAX_LENGTH)
        );
        assert_eq!(marked_by(&long, &SqlContext::default()), long);
        let many = format!("select 1 from a{}", ", pg_prepared_statements".repeat(MAX_PLACES + 1));
        assert_eq!(marked_by(&many, &SqlContext::default()), many);
    }

    #[test]
    fn a_class_says_whether_there_is_anything_to_look_for() {
        for (sql, reads) in [
            ("select * from pg_prepared_statements", true),
            ("select 1; table \"pg_prepared_statements\"", true),
            ("select 'pg_prepared_statements', pg_prepared_statementx from t", false),
        ] {
            let class = super::super::classify(sql.as_bytes(), &SqlContext::default());
            assert_eq!(class.reads_prepared, reads, "{sql}");
        }
    }
}
