//! The kinds of statement that splitters get wrong, and what else looks like a read and isn't one. What a standby really does with the
//! former is tried on a live pair by `tests/facts_live.rs`, from the same table.

#[allow(dead_code, unreachable_pub, reason = "some of it is for a live pair")]
#[path = "support/facts.rs"]
mod facts;

use facts::facts;
use pgsluice::sql::{Access, SqlContext, StatementClass, classify};

fn class(sql: &str) -> StatementClass {
    classify(sql.as_bytes(), &SqlContext::default())
}

fn effects(class: &StatementClass) -> String {
    class
        .effects
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

#[test]
fn statements_are_what_a_live_pair_showed() {
    let mut wrong = Vec::new();
    for fact in facts(5432) {
        let context = SqlContext {
            pg_catalog_first: fact.path.is_none(),
            ..SqlContext::default()
        };
        let class = classify(fact.sql.as_bytes(), &context);
        // Of what is hidden the text alone can't tell.
        let expected = if fact.access == "write" { "write" } else { "read" };
        if class.access.as_str() != expected || effects(&class) != fact.effects {
            wrong.push(format!(
                "{}: {}\n    {} [{}] since {}",
                fact.row,
                fact.sql,
                class.access.as_str(),
                effects(&class),
                class.reason
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn what_is_called_a_read_does_no_harm_on_a_standby() {
    for fact in facts(5432).iter().filter(|fact| fact.access == "read") {
        assert!(matches!(&*fact.standby, "same" | "works"), "{}: {}", fact.row, fact.sql);
    }
}

/// What parses as a harmless read elsewhere, and isn't one.
#[test]
fn traps_are_not_reads() {
    for sql in [
        "SELECT 1 END; DELETE FROM t",
        "SELECT 1 END, nextval('s')",
        "SELECT id END FROM t FOR UPDATE",
        "SELECT 1 END INTO t77",
        "SELECT 1 END UNION SELECT nextval('s')",
        "SELECT treat('s'::regclass AS nextval)",
        "SELECT 5 &>nextval('s')",
        "SELECT U&\"next\\0076al\"('s')",
        "SELECT 1into t9",
        "SELECT * FROM t TABLESAMPLE my_method(1)",
        "SELECT evil.lower('x')",
        "SELECT a.b.lower('x')",
        "WITH f(a) AS (SELECT 1) SELECT f(1) FROM f",
        "SELECT 1 FROM t AS nextval(a), nextval('s')",
        "SELECT xmlelement(name x, vf())",
        "SELECT xmlroot(vf(), version '1.0')",
        "SELECT xmlexists('//a' PASSING BY REF vf())",
        "SELECT substring('a' SIMILAR vf() ESCAPE '#')",
        "SELECT substring('a', escape('x'))",
        "SELECT sum(a) OVER (ORDER BY a ROWS vf() PRECEDING EXCLUDE TIES) FROM t",
        "SELECT a COLLATE \"C\" || vf() FROM t",
        "SELECT 1::numeric(10) + vf(1)",
        "SELECT trim(both from vf())",
        "SELECT interval '1' day + vf()",
        "SELECT array(SELECT vf())",
        "SELECT (vf()).*",
        "SELECT 1 WHERE EXISTS (SELECT FROM t WHERE vf())",
        "SELECT 1 = ANY (vf())",
        "SELECT x FROM t FETCH FIRST (vf()) ROWS ONLY",
        "SELECT grouping(vf()) FROM t GROUP BY ROLLUP (a)",
        "SELECT count(*) FILTER (WHERE vf()) FROM t",
        "SELECT percentile_cont(vf()) WITHIN GROUP (ORDER BY a) FROM t",
        "SELECT * FROM t JOIN LATERAL vf(t.a) x ON true",
        "SELECT f(VARIADIC ARRAY[vf()])",
        "SELECT lower('x') FROM t ORDER BY a USING <<<",
        "COPY (SELECT 1) TO STDOUT; DELETE FROM t",
        "SELECT 'a\\'; DELETE FROM t; --'",
        "SELECT 'open",
        "SELECT /* open",
        "EXPLAIN INSERT INTO t VALUES (txid_current())",
        "EXPLAIN SELECT my_function(pg_current_xact_id())",
        "EXPLAIN SELECT U&\"txid_current\"()",
        "EXPLAIN CREATE TABLE x AS EXECUTE p",
        "EXPLAIN (values) EXECUTE p",
        "SELECT FROM notnull('x')",
        "SELECT isnull(a, 0) FROM t",
    ] {
        assert_eq!(class(sql).access, Access::Write, "{sql}");
    }
}

#[test]
fn effects_are_found_however_they_are_written() {
    for (sql, access, expected) in [
        ("CREATE MATERIALIZED VIEW v AS SELECT nextval('sq')", "write", "nextval"),
        ("CREATE TABLE x (a int DEFAULT nextval('sq'))", "write", ""),
        (
            "SELECT nextval('sq') INTO TEMP x",
            "write",
            "nextval, pin temporary_table",
        ),
        ("PREPARE transaction AS SELECT 1", "write", "pin prepare"),
        (
            "COPY (SELECT a FROM pg_temp.t) TO '/tmp/x'",
            "write",
            "pin temporary_table",
        ),
        ("SAVEPOINT U&\"\\0061\"", "write", "savepoint a"),
        ("EXPLAIN SELECT execute FROM t", "read", ""),
        ("EXPLAIN (execute) SELECT 1", "read", ""),
        ("EXPLAIN EXECUTE b", "write", "execute b"),
        (
            "EXPLAIN EXECUTE b(pg_advisory_lock(1))",
            "write",
            "pin advisory_lock, execute b",
        ),
        ("SELECT U&\"pg_advisory_lock\"(1)", "write", "pin unknown"),
        ("SET local = 1", "write", "set local"),
        ("SET session.x TO 1", "write", "set session.x"),
        ("SET U&\"a\\0062\" = 1", "write", "pin session_guc"),
        ("RESET U&\"a\\0062\"", "write", "pin session_guc"),
    ] {
        let class = class(sql);
        assert_eq!(
            (class.access.as_str(), effects(&class).as_str()),
            (access, expected),
            "{sql}"
        );
    }
}

/// What `x.f` means if x has no field f (manual, 4.2.4 and 8.16.5).
#[test]
fn a_field_that_may_be_a_function_is_a_call() {
    for (sql, effect) in [
        ("SELECT ('s'::regclass).nextval", "nextval"),
        ("SELECT (a.r).nextval FROM (SELECT 's'::regclass) AS a(r)", "nextval"),
        ("SELECT (1).pg_advisory_lock", "pin advisory_lock"),
        ("SELECT (ARRAY[7])[1].\"pg_advisory_lock\"", "pin advisory_lock"),
        ("SELECT (t.a).b.pg_advisory_xact_lock FROM t", ""),
        ("SELECT $1.setseed", "pin setseed"),
        ("SELECT (SELECT 0.5).SetSeed", "pin setseed"),
        ("SELECT ('x').U&\"lo_unlink\"", "pin unknown"),
        ("INSERT INTO t SELECT (1).pg_advisory_lock", "pin advisory_lock"),
        ("EXPLAIN SELECT ('x').pg_stat_file", ""),
    ] {
        let class = class(sql);
        assert_eq!(
            (class.access, effects(&class).as_str()),
            (Access::Write, effect),
            "{sql}"
        );
    }
    for sql in [
        "SELECT (a).b, (ROW(1)).f1, $1.f, (x)[1].y FROM t",
        "SELECT ('abc'::text).length",
        "SELECT t.nextval FROM t",
    ] {
        assert_eq!(class(sql).access, Access::Read, "{sql}");
    }
}

/// Almost any word in front of a string names a type, and a type's name may have modifiers.
#[test]
fn types_of_literals_are_told_from_keywords_and_calls() {
    for sql in [
        "SELECT lower('x') 'y'",
        "SELECT pg_catalog.lower('x') 'y'",
        "SELECT ilike 'x'",
        "SELECT 1 WHERE NOT like 'x'",
        "SELECT value '1' FROM t",
        "SELECT a FROM t ORDER BY value '1'",
        "SELECT a, zone 'x' FROM t",
        "SELECT uescape '!'",
        "SELECT (document '1')",
        "SELECT varying 'x'",
        "SELECT coalesce(a, version '1.0') FROM t",
        "SELECT '1'::\"int\"",
        "SELECT \"integer\" '1'",
        "SELECT cast('1' AS \"real\")",
        "SELECT * FROM xmltable('/a' PASSING '<a/>' COLUMNS a \"TEXT\")",
    ] {
        assert_eq!(class(sql).access, Access::Write, "{sql}");
    }
    for sql in [
        "SELECT a FROM t WHERE b LIKE 'x' ESCAPE '!' AND NOT c ILIKE 'y' OR t.d NOT LIKE 'z'",
        "SELECT a AT TIME ZONE 'utc', timestamp(3) with time zone '2000-01-01', interval '1' day FROM t",
        "SELECT character varying(3) 'x', bit varying (3) '101', bit(3) '101', numeric(3, 1) '1', \"char\" 'x'",
        "SELECT xmlroot('<a/>', version '1.0'), xmlparse(content '<a/>'), xmlparse(document '<a/>')",
        "SELECT xmlexists('/a' PASSING BY VALUE '<a/>'), substring('a' SIMILAR 'b' ESCAPE '#')",
        "SELECT a FROM t WHERE b OPERATOR(pg_catalog.~) '^x$' ORDER BY a",
        "SELECT * FROM xmltable('/a' PASSING '<a/>' COLUMNS a text PATH 'b', c FOR ORDINALITY)",
        "SELECT a NOTNULL, b ISNULL FROM t",
    ] {
        assert_eq!(class(sql).access, Access::Read, "{sql}");
    }
}

/// Words of the grammar that are not reserved can name a function of the user's.
#[test]
fn words_that_can_name_functions_are_calls() {
    for word in [
        "by",
        "columns",
        "cross",
        "cube",
        "escape",
        "filter",
        "first",
        "full",
        "ilike",
        "inner",
        "is",
        "isnull",
        "join",
        "materialized",
        "natural",
        "next",
        "notnull",
        "outer",
        "over",
        "partition",
        "passing",
        "range",
        "repeatable",
        "rollup",
        "rows",
        "search",
        "sets",
        "similar",
        "zone",
        "exclude",
        "cycle",
        "uescape",
        "document",
        "content",
        "standalone",
    ] {
        for sql in [
            format!("SELECT {word}(1)"),
            format!("SELECT 1 + {word}(1, 2) FROM t"),
            format!("SELECT * FROM {word}(1) x"),
        ] {
            assert_eq!(class(&sql).access, Access::Write, "{sql}");
        }
    }
}

#[test]
fn names_are_trusted_only_while_pg_catalog_is_first() {
    let shadowed = SqlContext {
        pg_catalog_first: false,
        ..SqlContext::default()
    };
    for sql in [
        "SELECT lower('x')",
        "SELECT 1 + 1",
        "SELECT '1'::uuid",
        "SELECT left('x', 1)",
    ] {
        assert_eq!(classify(sql.as_bytes(), &shadowed).access, Access::Write, "{sql}");
    }
    for sql in [
        "SELECT a FROM t",
        "SELECT pg_catalog.lower('x')",
        "SELECT '1'::int",
        "SELECT (1, 2) OVERLAPS (3, 4)",
    ] {
        assert_eq!(classify(sql.as_bytes(), &shadowed).access, Access::Read, "{sql}");
    }
}

#[test]
fn strings_that_do_not_conform_are_never_reads_with_backslashes() {
    let escaping = SqlContext {
        standard_conforming_strings: false,
        ..SqlContext::default()
    };
    assert_eq!(classify(br"SELECT 'a\b'", &escaping).access, Access::Write);
    assert_eq!(classify(br"SELECT 'a\'; DELETE FROM t; --'", &escaping).statements, 1);
    assert_eq!(classify(b"SELECT 'a'", &escaping).access, Access::Read);
}

#[test]
fn a_standby_hint_lifts_what_only_reads() {
    for (sql, lifts) in [
        ("/* pgsluice: standby */ SELECT * FROM pg_stat_activity", true),
        ("SELECT my_function(1)", true),
        ("SELECT '1'::dom", true),
        ("EXPLAIN ANALYZE SELECT 1", true),
        ("SELECT 1", false),
        ("DELETE FROM t", false),
        ("SELECT my_function(1), nextval('s')", false),
        ("SELECT my_function(1); DELETE FROM t", false),
        ("SELECT my_function(1) FROM t FOR UPDATE", false),
        ("SELECT pg_advisory_xact_lock(1)", false),
        ("SELECT dblink_exec('x', 'y')", false),
        ("SELECT pg_promote()", false),
        ("SELECT my_function(1) END", false),
        ("LOCK t", false),
        ("SET a = 1", false),
    ] {
        assert_eq!(class(sql).standby_by_hint, lifts, "{sql}");
    }
}

#[test]
fn set_values_are_kept_as_they_were_written() {
    use pgsluice::sql::Effect;
    for (sql, name, value) in [
        ("SET search_path = a, \"B\" , 'c'", "search_path", "a, \"B\" , 'c'"),
        ("set session Work_Mem to '4MB' ;", "work_mem", "'4MB'"),
        (
            "SET pgsluice.consistency = eventual",
            "pgsluice.consistency",
            "eventual",
        ),
        ("SET extra_float_digits = -1 -- note", "extra_float_digits", "-1"),
        ("SET TIME ZONE 'Europe/Rome'", "timezone", "'Europe/Rome'"),
        ("SET XML OPTION DOCUMENT", "xmloption", "DOCUMENT"),
    ] {
        let expected = Effect::SetGuc {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        assert_eq!(class(sql).effects.as_slice(), [expected], "{sql}");
    }
}
