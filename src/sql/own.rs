//! What the proxy answers itself, without a server: `SHOW pgsluice.name` and `EXPLAIN (ROUTE) statement`.

use super::SqlContext;
use super::statement::{Statement, Statements};

/// What the proxy tells of a session, without `pgsluice.`: its own settings, and the position that the session has come to.
const OWN_SETTINGS: [&str; 5] = ["consistency", "explain", "min_position", "position", "route"];

/// A question to the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnQuery {
    /// What a setting is: its name without `pgsluice.`.
    Show(&'static str),
    /// Where this statement would go, and why.
    ExplainRoute(String),
}

/// The question that `sql` is, if it is one and nothing else.
pub fn own_query(sql: &[u8], context: &SqlContext) -> Option<OwnQuery> {
    let mut statements = Statements::new(sql, context.plain_strings());
    let statement = statements.next()?;
    if statements.next().is_some() {
        return None;
    }
    if let Some(name) = own_setting(&statement) {
        return Some(OwnQuery::Show(name));
    }
    let inner = explained_route(&statement)?;
    // With its comments, which may hold hints.
    let text = sql.get(statement.tokens[inner - 1].end..)?;
    Some(OwnQuery::ExplainRoute(String::from_utf8_lossy(text).trim().to_owned()))
}

/// `SHOW pgsluice.name`
pub(super) fn own_setting(statement: &Statement<'_>) -> Option<&'static str> {
    let shows = statement.is_word(0, "show") && statement.identifier(1) == "pgsluice" && statement.is_punct(2, b'.');
    let name = statement.identifier(3);
    let own = OWN_SETTINGS.into_iter().find(|own| *own == name)?;
    (shows && statement.len() == 4).then_some(own)
}

/// Where the statement behind `EXPLAIN (ROUTE)` begins.
pub(super) fn explained_route(statement: &Statement<'_>) -> Option<usize> {
    let asks = statement.is_word(0, "explain")
        && statement.is_punct(1, b'(')
        && statement.is_word(2, "route")
        && statement.is_punct(3, b')');
    (asks && statement.len() > 4).then_some(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_to_the_proxy_are_told_from_those_to_a_server() {
        for (sql, query) in [
            ("show pgsluice.route", Some(OwnQuery::Show("route"))),
            ("SHOW \"pgsluice\".Consistency;", Some(OwnQuery::Show("consistency"))),
            ("show pgsluice.nothing", None),
            ("show route", None),
            ("show pgsluice.route; select 1", None),
            (
                "explain (route) select 'a' -- b",
                Some(OwnQuery::ExplainRoute("select 'a' -- b".into())),
            ),
            ("explain (route)", None),
            ("explain (costs off) select 1", None),
        ] {
            assert_eq!(own_query(sql.as_bytes(), &SqlContext::default()), query, "{sql}");
        }
    }
}
