//! SQL that a function is given as text: `ts_stat('select …')`, `query_to_xml('select …', …)`, `table_to_xml('t', …)`. Where the text
//! is a literal it is judged like any other.

use super::lexer::Kind;
use super::names::{BuiltIn, Catalog, FunctionRoute, Name};
use super::rules;
use super::statement::{Statement, Statements};
use super::{Access, SqlContext};

/// What the argument at `place` of these functions holds. (The PostgreSQL manual, 12.4 and 9.15.3.)
const TAKERS: &[(&str, usize, Holds)] = &[
    ("query_to_xml", 0, Holds::Query),
    ("query_to_xml_and_xmlschema", 0, Holds::Query),
    ("query_to_xmlschema", 0, Holds::Query),
    ("table_to_xml", 0, Holds::Relation),
    ("table_to_xml_and_xmlschema", 0, Holds::Relation),
    ("table_to_xmlschema", 0, Holds::Relation),
    ("ts_rewrite", 1, Holds::Query),
    ("ts_stat", 0, Holds::Query),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Query,
    Relation,
}

/// Whether this is the name of a function whose literal argument is judged.
pub(crate) fn takes_sql(bare: &[u8]) -> bool {
    // Nearly every word is told by its first letter.
    matches!(bare.first(), Some(b'q' | b'Q' | b't' | b'T'))
        && TAKERS
            .iter()
            .any(|(taker, ..)| bare.eq_ignore_ascii_case(taker.as_bytes()))
}

/// Whether the call of `name`, whose opening parenthesis is token `open`, is given the text of a read as a literal.
pub(crate) fn reads_only(
    statement: &Statement<'_>,
    name: &str,
    open: usize,
    context: &SqlContext,
    catalog: &dyn Catalog,
) -> bool {
    let Some(&(_, place, holds)) = TAKERS.iter().find(|(taker, ..)| *taker == name) else {
        return false;
    };
    let text = argument(statement, open, place).and_then(|index| statement.string(index));
    let Some(text) = text else { return false };
    let mut statements = Statements::new(text.as_bytes(), context.plain_strings());
    let (Some(inner), None) = (statements.next(), statements.next()) else {
        return false;
    };
    if inner.unterminated || inner.truncated || inner.backslash_string {
        return false;
    }
    match holds {
        Holds::Query => is_read(&inner, context, catalog),
        Holds::Relation => is_harmless_relation(&inner, catalog),
    }
}

fn is_read(inner: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> bool {
    // SQL in SQL in SQL isn't followed, so that the depth has a bound.
    let nests = (0..inner.len()).any(|index| {
        let name = inner.identifier(index);
        BuiltIn.function(
            Name {
                schema: None,
                name: &name,
            },
            None,
        ) == FunctionRoute::RunsSql
            || takes_sql(name.as_bytes())
    });
    if nests {
        return false;
    }
    let verdict = rules::judge(inner, context, catalog);
    verdict.access == Access::Read && verdict.effects.is_empty()
}

/// `t` or `s.t`
fn is_harmless_relation(inner: &Statement<'_>, catalog: &dyn Catalog) -> bool {
    let plain = |index| matches!(inner.kind(index), Some(Kind::Word | Kind::Quoted));
    let last = match inner.len() {
        1 if plain(0) => 0,
        3 if plain(0) && inner.is_punct(1, b'.') && plain(2) => 2,
        _ => return false,
    };
    let (schema, name) = (inner.identifier(0), inner.identifier(last));
    let schema = (last > 0).then_some(schema.as_ref());
    !rules::names_temporary_schema(inner) && catalog.relation_doubt(Name { schema, name: &name }).is_none()
}

/// Where argument `place` begins, if it is nothing but one string, perhaps cast to text.
fn argument(statement: &Statement<'_>, open: usize, place: usize) -> Option<usize> {
    let end = statement.behind_parenthesis(open);
    let (mut depth, mut commas) = (0usize, 0usize);
    let mut first = open + 1;
    for index in open..end {
        match statement.kind(index)? {
            Kind::Punct(b'(' | b'[') => depth += 1,
            Kind::Punct(b')' | b']') => depth = depth.saturating_sub(1),
            Kind::Punct(b',') if depth == 1 && commas < place => {
                commas += 1;
                first = index + 1;
            }
            _ => {}
        }
    }
    let cast = statement.kind(first + 1) == Some(Kind::Cast) && statement.is_word(first + 2, "text");
    let behind = if cast { first + 3 } else { first + 1 };
    let ends = statement.is_punct(behind, b',') || behind + 1 == end;
    (commas == place && ends && statement.kind(first) == Some(Kind::String)).then_some(first)
}

#[cfg(test)]
mod tests {
    use crate::sql::{Access, SqlContext, classify};

    #[test]
    fn a_literal_text_is_judged_as_if_it_were_sent() {
        for (sql, reads) in [
            ("select query_to_xml('select 1', true, false, '')", true),
            ("select query_to_xml('select ''a''', true, false, '')", true),
            ("select * from ts_stat('select v from t'::text, 'ab')", true),
            ("select \"ts_stat\"('select v from t')", true),
            ("select ts_rewrite('a & b', 'select q, s from aliases')", true),
            (
                "select ts_rewrite(q, 'select q, s from aliases') from to_tsquery('a') as q",
                true,
            ),
            ("select ts_rewrite('a'::tsquery, 'b'::tsquery, 'c'::tsquery)", true),
            ("select table_to_xml('s.t', true, false, '')", true),
            ("select query_to_xml('select nextval(''s'')', true, false, '')", false),
            ("select query_to_xml('select mine()', true, false, '')", false),
            ("select query_to_xml('select 1; select 2', true, false, '')", false),
            (
                "select query_to_xml('delete from t returning a', true, false, '')",
                false,
            ),
            (
                "select query_to_xml('select a from t for update', true, false, '')",
                false,
            ),
            ("select query_to_xml('select ' || a, true, false, '') from t", false),
            ("select query_to_xml(a, true, false, 'select 1') from t", false),
            ("select query_to_xml($1, true, false, '')", false),
            ("select query_to_xml(e'select 1', true, false, '')", false),
            ("select query_to_xml('select '\n'nextval(1)', true, false, '')", false),
            (
                "select query_to_xml('select query_to_xml(''select 1'', true, false, '''')', true, false, '')",
                false,
            ),
            ("select ts_rewrite('select 1', q) from t", false),
            ("select ts_rewrite('a', 'select mine()')", false),
            ("select table_to_xml('pg_locks', true, false, '')", false),
            ("select table_to_xml('pg_temp.t', true, false, '')", false),
            ("select table_to_xml(17, true, false, '')", false),
            ("select cursor_to_xml('c', 1, true, false, '')", false),
            ("select schema_to_xml('s', true, false, '')", false),
        ] {
            let class = classify(sql.as_bytes(), &SqlContext::default());
            assert_eq!(class.access == Access::Read, reads, "{sql}: {}", class.reason);
        }
    }
}
