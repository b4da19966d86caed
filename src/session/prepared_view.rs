//! What stands in place of `pg_prepared_statements` in a text of the client's: its own statements. On a server connection the view has the
//! proxy's names, others' statements, and not all of the session's. Pure.
//!
//! The rows are written out, and nothing is prepared for them: so the view shows the same on every connection, and fails on none. What only
//! the server knows, such as how often it has made a plan, is that of the connection, and nothing where that hasn't the statement. What the
//! session has made by SQL PREPARE is the server's to tell: it is bound to its connection then, and nobody else's are there.

use std::io::Write as _;

use super::statements::{Named, Statements};
use crate::sql::PreparedView;

/// Bytes of texts that are written out; of further statements the text is the server's to tell.
const MOST_TEXT: usize = 1 << 20;
/// Bytes of rows: further statements aren't shown.
const MOST: usize = 4 << 20;

/// What stands for the view where it stands like this.
pub(super) fn instead(form: PreparedView, listing: &[u8]) -> Vec<u8> {
    match form {
        PreparedView::Aliased => listing.to_vec(),
        PreparedView::Bare => [listing, b" AS pg_prepared_statements"].concat(),
        PreparedView::Command => [b"SELECT * FROM ", listing, b" AS pg_prepared_statements"].concat(),
    }
}

/// A query in parentheses with the view's columns on a server of this `version`, as it has reported it, and the session's statements.
pub(super) fn listing(statements: &Statements, version: Option<&str>) -> Vec<u8> {
    let major = version.map_or(0, major);
    let mut rows: Vec<_> = statements.all_named().collect();
    rows.sort_by_key(|(_, named)| named.since);
    let columns = [
        "(SELECT m.name, COALESCE(m.statement, p.statement) AS statement, pg_catalog.to_timestamp(m.since) AS prepare_time, \
         COALESCE(m.types, p.parameter_types) AS parameter_types",
        if major >= 16 { ", p.result_types" } else { "" },
        ", false AS from_sql",
        if major >= 14 {
            ", COALESCE(p.generic_plans, 0::pg_catalog.int8) AS generic_plans, \
             COALESCE(p.custom_plans, 0::pg_catalog.int8) AS custom_plans"
        } else {
            ""
        },
    ];
    let mut out = columns.concat().into_bytes();
    // The first row gives the columns their types, and isn't shown.
    out.extend_from_slice(b" FROM (VALUES (NULL, NULL, NULL, 0, NULL::pg_catalog.regtype[])");
    let mut texts = 0;
    for (name, named) in rows {
        if out.len() + name.len() > MOST {
            break;
        }
        let sql = &named.prepared.sql;
        let fits = texts + sql.len() <= MOST_TEXT;
        texts += if fits { sql.len() } else { 0 };
        put_row(&mut out, name, named, fits);
    }
    out.extend_from_slice(
        b") AS m (server, name, statement, since, types) \
          LEFT JOIN pg_catalog.pg_prepared_statements AS p ON p.name OPERATOR(pg_catalog.=) m.server \
          WHERE m.name IS NOT NULL \
          UNION ALL SELECT * FROM pg_catalog.pg_prepared_statements AS s WHERE s.from_sql)",
    );
    out
}

fn put_row(out: &mut Vec<u8>, name: &[u8], named: &Named, with_text: bool) {
    out.extend_from_slice(b", ('");
    out.extend_from_slice(&named.prepared.server_name());
    out.extend_from_slice(b"', ");
    put_text(out, name);
    out.extend_from_slice(b", ");
    if with_text {
        put_text(out, &named.prepared.sql);
    } else {
        out.extend_from_slice(b"NULL");
    }
    let (seconds, micros) = (named.since / 1_000_000, named.since % 1_000_000);
    // Writing to a Vec never fails.
    let _ = write!(out, ", {seconds}.{micros:06}, ");
    match named.prepared.parameters() {
        Some(types) => put_types(out, types),
        None => out.extend_from_slice(b"NULL"),
    }
    out.push(b')');
}

/// The types of parameters, from their count and OIDs.
fn put_types(out: &mut Vec<u8>, types: &[u8]) {
    let oids = types.get(2..).unwrap_or_default().chunks_exact(4);
    let oids: Vec<String> = oids
        .map(|oid| u32::from_be_bytes(oid.try_into().expect("four bytes")).to_string())
        .collect();
    let _ = write!(out, "'{{{}}}'", oids.join(","));
}

/// A text as SQL that means it whatever `standard_conforming_strings` is, and in any encoding of the client's: in some of them a byte that
/// looks like a backslash is half of a letter, and can't be doubled.
fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    if text.contains(&b'\\') {
        out.extend_from_slice(b"pg_catalog.convert_from(pg_catalog.decode('");
        put_hex(out, text);
        out.extend_from_slice(b"', 'hex'), pg_catalog.current_setting('client_encoding'))");
        return;
    }
    out.push(b'\'');
    for &byte in text {
        if byte == b'\'' {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'\'');
}

fn put_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
}

/// The major version in what a server reports, such as `15.8 (Debian 15.8-0+deb12u1)` or `17beta1`.
fn major(version: &str) -> u32 {
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::pool::PreparedRegistry;
    use crate::sql::{SqlContext, classify};

    fn with(names: &[(&str, &str)]) -> Statements {
        let (registry, context) = (PreparedRegistry::default(), SqlContext::default());
        let mut statements = Statements::default();
        for (name, sql) in names {
            let prepared = registry.intern(sql.as_bytes(), &[0, 0], "");
            prepared.learn_parameters(&[0, 2, 0, 0, 0, 23, 0, 0, 0, 25]);
            let since = statements.time(UNIX_EPOCH + Duration::from_micros(5_000_042));
            let named = Named {
                prepared,
                class: Arc::new(classify(sql.as_bytes(), &context)),
                context,
                told: None,
                since,
            };
            statements.insert(name.as_bytes().into(), named);
        }
        statements
    }

    #[test]
    fn rows_are_in_the_sessions_order_and_mean_the_same_under_all_settings() {
        let statements = with(&[("b", "select 'x'"), ("a", r"select E'\n'")]);
        let listing = String::from_utf8(listing(&statements, Some("15.8 (Debian 15.8-0+deb12u1)"))).unwrap();
        let rows = "(VALUES (NULL, NULL, NULL, 0, NULL::pg_catalog.regtype[]), \
                    ('pgsluice_1', 'b', 'select ''x''', 5.000042, '{23,25}'), \
                    ('pgsluice_2', 'a', pg_catalog.convert_from(pg_catalog.decode('73656c6563742045275c6e27', 'hex'), \
                    pg_catalog.current_setting('client_encoding')), 5.000043, '{23,25}'))";
        assert!(listing.contains(rows), "{listing}");
    }

    #[test]
    fn the_columns_are_those_of_the_servers_version() {
        for (version, results, counts) in [
            ("13.12", false, false),
            ("14.1", false, true),
            ("15.8 (Debian)", false, true),
            ("16.0", true, true),
            ("18beta1", true, true),
        ] {
            let listing = String::from_utf8(listing(&Statements::default(), Some(version))).unwrap();
            assert_eq!(listing.contains("result_types"), results, "{version}");
            assert_eq!(listing.contains("generic_plans"), counts, "{version}");
        }
    }

    #[test]
    fn what_is_listed_is_bounded() {
        let sql = format!("select '{}'", "x".repeat(MOST_TEXT));
        let statements = with(&[("a", &sql), ("b", "select 1")]);
        let listing = String::from_utf8(listing(&statements, Some("15.8"))).unwrap();
        assert!(listing.contains("'a', NULL, "), "{} bytes", listing.len());
        assert!(listing.contains("'b', 'select 1', "), "{} bytes", listing.len());
    }
}
