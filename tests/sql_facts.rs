//! The kinds of statement that splitters get wrong, one table row each; what a standby really does with them was tried on a live
//! pair. Numbers are those of the list of such facts; rows about the protocol rather than about a text are left to its tests.

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

/// number, text, read or write, effects
type Fact = (u16, &'static str, &'static str, &'static str);

const FACTS: &[Fact] = &[
    (1, "SELECT * INTO nt FROM rt", "write", ""),
    (1, "SELECT INTO nt FROM rt", "write", ""),
    (2, "CREATE TABLE a AS SELECT 1", "write", ""),
    (2, "SELECT 1 INTO TEMP a", "write", "pin temporary_table"),
    (
        2,
        "CREATE TEMPORARY TABLE a AS SELECT 1",
        "write",
        "pin temporary_table",
    ),
    (3, "CREATE TEMP TABLE tt(i int)", "write", "pin temporary_table"),
    (
        3,
        "create or replace local temp view v as select 1",
        "write",
        "pin temporary_table",
    ),
    (3, "create table pg_temp.x(i int)", "write", "pin temporary_table"),
    (4, "SELECT * FROM pg_temp.tt", "write", "pin temporary_table"),
    (5, "EXPLAIN ANALYZE INSERT INTO t VALUES (1)", "write", ""),
    (5, "EXPLAIN (ANALYZE) UPDATE t SET a = 1", "write", ""),
    (5, "explain analyze delete from t", "write", ""),
    (
        5,
        "explain (analyze on) merge into t using s on true when matched then do nothing",
        "write",
        "",
    ),
    (5, "explain (\"analyze\") delete from t", "write", ""),
    (6, "EXPLAIN INSERT INTO t VALUES (1)", "read", ""),
    (6, "EXPLAIN SELECT * FROM t FOR UPDATE", "read", ""),
    (7, "EXPLAIN (ANALYZE, BUFFERS) SELECT 1", "write", ""),
    (7, "EXPLAIN (ANALYZE false, COSTS off) DELETE FROM t", "read", ""),
    (7, "EXPLAIN (ANALYZE off) SELECT 1", "read", ""),
    (7, "EXPLAIN (COSTS) (SELECT 1)", "read", ""),
    (7, "EXPLAIN (SELECT 1)", "read", ""),
    (8, "EXPLAIN ANALYZE CREATE TABLE a AS SELECT 1", "write", ""),
    (9, "EXPLAIN ANALYZE EXECUTE w", "write", "execute w"),
    (9, "EXPLAIN EXECUTE w", "write", "execute w"),
    (
        10,
        "WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x",
        "write",
        "",
    ),
    (
        11,
        "WITH x AS (DELETE FROM t WHERE false RETURNING 1) SELECT 1",
        "write",
        "",
    ),
    (
        12,
        "WITH RECURSIVE a AS (SELECT 1), b AS (UPDATE t SET a = 1 RETURNING 1) SELECT 1",
        "write",
        "",
    ),
    (13, "INSERT INTO t SELECT 1", "write", ""),
    (13, "WITH q AS (SELECT 1) INSERT INTO t SELECT * FROM q", "write", ""),
    (14, "(WITH a AS (SELECT 1) SELECT * FROM a)", "read", ""),
    (14, "((SELECT 1))", "read", ""),
    (15, "VALUES (1)", "read", ""),
    (15, "TABLE rt", "read", ""),
    (16, "VALUES (nextval('sq'))", "write", "nextval"),
    (17, "SELECT (SELECT nextval('sq'))", "write", "nextval"),
    (17, "SELECT CASE WHEN false THEN nextval('sq') END", "write", "nextval"),
    (17, "SELECT pg_catalog . \"nextval\" ('sq')", "write", "nextval"),
    (18, "SELECT setval('sq', 1)", "write", "nextval"),
    (19, "SELECT currval('sq')", "write", ""),
    (20, "SELECT lastval()", "write", ""),
    (21, "SELECT last_value FROM sq", "write", ""),
    (21, "SELECT sq.is_called FROM sq", "write", ""),
    (21, "SELECT last_value(a) OVER () FROM t", "read", ""),
    (21, "SELECT * FROM pg_sequences", "write", ""),
    (21, "SELECT pg_sequence_last_value('sq'::regclass)", "write", ""),
    (22, "SELECT vf()", "write", ""),
    (23, "SELECT 1 FROM t WHERE vf()", "write", ""),
    (23, "SELECT 1 FROM t a JOIN t b ON vf(a.i)", "write", ""),
    (23, "SELECT 1 FROM t ORDER BY vf()", "write", ""),
    (23, "SELECT 1 FROM t LIMIT vf()", "write", ""),
    (24, "SELECT * FROM vf_setof()", "write", ""),
    (24, "SELECT * FROM t, LATERAL vf_setof(t.i) x", "write", ""),
    (
        24,
        "SELECT * FROM ROWS FROM (vf_setof(), generate_series(1, 2))",
        "write",
        "",
    ),
    (28, "SELECT 1 ### 2", "write", ""),
    (28, "SELECT 1 OPERATOR(public.+) 2", "write", ""),
    (28, "SELECT 1 OPERATOR(pg_catalog.+) 2", "read", ""),
    (30, "SELECT 1::int::dom", "write", ""),
    (30, "SELECT CAST(1 AS dom)", "write", ""),
    (30, "SELECT dom '1'", "write", ""),
    (30, "SELECT dom(1)", "write", ""),
    (30, "SELECT * FROM json_to_record('{}') AS x(a dom)", "write", ""),
    (
        30,
        "SELECT * FROM xmltable('/a' PASSING '<a/>' COLUMNS a dom)",
        "write",
        "",
    ),
    (31, "SELECT vagg(v) FROM t", "write", ""),
    (31, "SELECT vagg(v) OVER (PARTITION BY x) FROM t", "write", ""),
    (
        34,
        "SELECT * FROM xmltable('/a' PASSING '<a/>' COLUMNS a int DEFAULT nextval('sq'))",
        "write",
        "nextval",
    ),
    (
        35,
        "SELECT query_to_xml('select nextval(''s'')', true, false, '')",
        "write",
        "",
    ),
    (35, "SELECT query_to_xml('select 1', true, false, '')", "read", ""),
    (35, "SELECT * FROM ts_stat($1)", "write", ""),
    (35, "SELECT ts_rewrite('a'::tsquery, q) FROM t", "write", ""),
    (
        35,
        "SELECT ts_rewrite('a'::tsquery, 'a'::tsquery, 'b'::tsquery)",
        "read",
        "",
    ),
    (35, "SELECT cursor_to_xml('c', 1, false, false, '')", "write", ""),
    (36, "SELECT database_to_xml(true, true, '')", "write", ""),
    (36, "SELECT schema_to_xml('s', true, true, '')", "write", ""),
    (36, "SELECT table_to_xml($1, true, true, '')", "write", ""),
    (37, "SELECT * FROM t FOR UPDATE", "write", ""),
    (37, "SELECT * FROM t FOR NO KEY UPDATE", "write", ""),
    (37, "SELECT * FROM t FOR SHARE", "write", ""),
    (37, "SELECT * FROM t FOR KEY SHARE", "write", ""),
    (
        38,
        "SELECT * FROM (SELECT * FROM t FOR UPDATE SKIP LOCKED) x",
        "write",
        "",
    ),
    (39, "DECLARE c CURSOR FOR SELECT 1 FOR UPDATE", "write", ""),
    (40, "DECLARE c CURSOR FOR SELECT 1", "write", ""),
    (
        41,
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "write",
        "pin with_hold_cursor",
    ),
    (42, "FETCH 1 FROM c", "write", ""),
    (42, "MOVE c", "write", ""),
    (42, "CLOSE c", "write", "may unpin with_hold_cursor"),
    (44, "DO $$ BEGIN PERFORM f(); END $$", "write", ""),
    // A block that can be seen to only read is one.
    (44, "DO $$ BEGIN END $$", "read", ""),
    (45, "CALL pr()", "write", ""),
    (46, "COPY rt FROM STDIN", "write", ""),
    (47, "COPY rt TO STDOUT", "read", ""),
    (47, "COPY s.rt (a, b) TO STDOUT WITH (FORMAT csv)", "read", ""),
    (47, "COPY (SELECT 1) TO STDOUT", "read", ""),
    (48, "COPY (INSERT INTO t VALUES (1) RETURNING *) TO STDOUT", "write", ""),
    (49, "COPY (SELECT nextval('sq')) TO STDOUT", "write", "nextval"),
    (50, "COPY rt TO PROGRAM 'cat'", "write", ""),
    (50, "COPY (SELECT 1) TO '/tmp/x'", "write", ""),
    (51, "PREPARE b AS INSERT INTO t VALUES (1)", "write", "pin prepare"),
    (52, "EXECUTE b", "write", "execute b"),
    (52, "DEALLOCATE b", "write", "deallocate b"),
    (52, "DEALLOCATE PREPARE ALL", "write", "deallocate all"),
    (54, "LISTEN c", "write", "pin listen"),
    (55, "UNLISTEN *", "write", "may unpin listen"),
    (56, "NOTIFY c", "write", ""),
    (56, "SELECT pg_notify('c', 'x')", "write", ""),
    (57, "LOCK TABLE t IN ACCESS SHARE MODE", "write", ""),
    (58, "LOCK t", "write", ""),
    (59, "SELECT pg_advisory_lock(1)", "write", "pin advisory_lock"),
    (
        59,
        "SELECT pg_try_advisory_lock_shared(1, 2)",
        "write",
        "pin advisory_lock",
    ),
    (59, "SELECT pg_advisory_xact_lock(1)", "write", ""),
    (59, "SELECT pg_advisory_unlock(1)", "write", "may unpin advisory_lock"),
    (
        59,
        "INSERT INTO t SELECT pg_advisory_lock(1)",
        "write",
        "pin advisory_lock",
    ),
    (60, "SELECT txid_current()", "write", ""),
    (60, "SELECT pg_current_xact_id()", "write", ""),
    (61, "SELECT txid_current_snapshot()", "write", ""),
    (61, "SELECT pg_xact_status('1')", "write", ""),
    (62, "SELECT pg_export_snapshot()", "write", "pin server_resource"),
    (63, "SET TRANSACTION SNAPSHOT '1'", "write", "set transaction"),
    (65, "BEGIN ISOLATION LEVEL SERIALIZABLE", "write", "begin serializable"),
    (
        65,
        "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
        "write",
        "begin read only serializable deferrable",
    ),
    (
        66,
        "SET default_transaction_isolation = 'serializable'",
        "write",
        "set default_transaction_isolation",
    ),
    (67, "BEGIN READ WRITE", "write", "begin read write"),
    (67, "SET TRANSACTION READ WRITE", "write", "set transaction read write"),
    (
        67,
        "SET transaction_read_only = off",
        "write",
        "set transaction read write",
    ),
    (68, "BEGIN; SELECT 1; INSERT INTO t VALUES (1)", "write", "begin"),
    (69, "START TRANSACTION READ ONLY", "write", "begin read only"),
    (
        70,
        "SET LOCAL TRANSACTION READ ONLY",
        "write",
        "set transaction read only",
    ),
    (
        71,
        "SET default_transaction_read_only = on",
        "write",
        "set default_transaction_read_only",
    ),
    (
        71,
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "write",
        "set default_transaction_read_only",
    ),
    (72, "SAVEPOINT \"A\"", "write", "savepoint A"),
    (72, "ROLLBACK WORK TO SAVEPOINT Sp", "write", "rollback to sp"),
    (72, "ROLLBACK TO sp", "write", "rollback to sp"),
    (72, "RELEASE SAVEPOINT sp", "write", "release sp"),
    (73, "COMMIT AND CHAIN", "write", "commit and chain"),
    (73, "ROLLBACK WORK AND NO CHAIN", "write", "rollback"),
    (74, "ABORT", "write", "rollback"),
    (74, "END TRANSACTION", "write", "commit"),
    (74, "COMMIT WORK", "write", "commit"),
    (75, "PREPARE TRANSACTION 'x'", "write", "prepare transaction"),
    (75, "COMMIT PREPARED 'x'", "write", ""),
    (75, "ROLLBACK PREPARED 'x'", "write", ""),
    (
        78,
        "SELECT * FROM dblink('x', 'INSERT INTO t VALUES (1)') AS t(a int)",
        "write",
        "",
    ),
    (78, "SELECT public.dblink_exec('x', 'delete from t')", "write", ""),
    (79, "SELECT lo_create(0)", "write", ""),
    (79, "SELECT lo_put(1, 0, 'x')", "write", ""),
    (80, "SELECT lo_unlink(1)", "write", ""),
    (81, "SELECT lo_open(1, 131072)", "write", ""),
    (82, "SELECT lo_get(1)", "read", ""),
    (82, "SELECT loread(0, 1)", "write", ""),
    (84, "SET work_mem = '4MB'", "write", "set work_mem"),
    (84, "SET LOCAL work_mem TO '4MB'", "write", "set local work_mem"),
    (84, "RESET Work_Mem", "write", "reset work_mem"),
    (84, "SET a.B TO DEFAULT", "write", "reset a.b"),
    (84, "SET TIME ZONE 'UTC'", "write", "set timezone"),
    (84, "SET TIME ZONE LOCAL", "write", "reset timezone"),
    (84, "SET NAMES 'utf8'", "write", "set client_encoding"),
    (84, "SET SCHEMA 'x'", "write", "set search_path"),
    (85, "SELECT set_config('a.b', '1', false)", "write", "set a.b"),
    (85, "SELECT set_config('a.b', '1', true)", "write", "set local a.b"),
    (85, "SELECT set_config($1, '1', false)", "write", "pin session_guc"),
    (86, "SELECT current_setting('a.b', true)", "write", ""),
    (86, "SHOW a.b", "write", ""),
    (87, "SHOW transaction_read_only", "write", ""),
    (87, "SELECT * FROM pg_settings", "write", ""),
    (88, "SET ROLE x", "write", "set role"),
    (88, "SET SESSION AUTHORIZATION x", "write", "set session_authorization"),
    (89, "DISCARD ALL", "write", "discard all"),
    (89, "DISCARD TEMP", "write", "discard part"),
    (89, "RESET ALL", "write", "reset all"),
    (90, "SET CONSTRAINTS ALL DEFERRED", "write", ""),
    (91, "SET synchronous_commit = off", "write", "set synchronous_commit"),
    (93, "LOAD 'x'", "write", "pin load"),
    (94, "VACUUM t", "write", ""),
    (94, "ANALYZE", "write", ""),
    (95, "REFRESH MATERIALIZED VIEW v", "write", ""),
    (95, "TRUNCATE t", "write", ""),
    (95, "COMMENT ON TABLE t IS 'x'", "write", ""),
    (96, "CHECKPOINT", "write", ""),
    (97, "ALTER SYSTEM SET work_mem = '4MB'", "write", ""),
    (98, "SELECT pg_reload_conf()", "write", ""),
    (98, "SELECT pg_stat_reset()", "write", ""),
    (99, "SELECT pg_cancel_backend(1)", "write", ""),
    (100, "SELECT pg_promote()", "write", ""),
    (100, "SELECT pg_wal_replay_pause()", "write", ""),
    (101, "SELECT pg_create_physical_replication_slot('x')", "write", ""),
    (
        102,
        "SELECT * FROM pg_logical_slot_get_changes('x', NULL, NULL)",
        "write",
        "",
    ),
    (103, "SELECT pg_logical_emit_message(false, 'a', 'b')", "write", ""),
    (104, "SELECT pg_switch_wal()", "write", ""),
    (104, "SELECT pg_current_wal_lsn()", "write", ""),
    (105, "SELECT pg_backup_start('x')", "write", "pin server_resource"),
    (106, "SELECT pg_is_in_recovery()", "write", ""),
    (107, "SELECT pg_last_wal_replay_lsn()", "write", ""),
    (107, "SELECT * FROM pg_stat_wal_receiver", "write", ""),
    (108, "SELECT * FROM pg_stat_activity", "write", ""),
    (108, "SELECT * FROM \"pg_catalog\".\"pg_locks\" l", "write", ""),
    (108, "SELECT * FROM pg_replication_slots", "write", ""),
    (108, "COPY pg_stat_activity TO STDOUT", "write", ""),
    (109, "SELECT pg_relation_size('t')", "write", ""),
    (109, "SELECT pg_read_file('x')", "write", ""),
    (109, "SELECT * FROM pg_ls_waldir()", "write", ""),
    (110, "SELECT brin_summarize_new_values('i')", "write", ""),
    (111, "SELECT inet_server_addr()", "write", ""),
    (111, "SELECT pg_backend_pid()", "write", ""),
    (111, "SELECT version()", "read", ""),
    (
        112,
        "SELECT pg_sleep(0), random(), gen_random_uuid(), clock_timestamp(), timeofday()",
        "read",
        "",
    ),
    (112, "SELECT setseed(0.5)", "write", "pin setseed"),
    (113, "SELECT * FROM t WHERE created > now() - interval '1s'", "read", ""),
    (115, "SELECT 1; INSERT INTO t VALUES (1)", "write", ""),
    (116, "SELECT 1; SELECT 2", "read", ""),
    (117, "SET x = 1; SELECT 1", "write", "set x"),
    (117, "BEGIN; SELECT 1; COMMIT", "write", "begin, commit"),
    (122, "SELECT f($1)", "write", ""),
    (123, "/* INSERT */ SELECT 1", "read", ""),
    (123, "SELECT /* a /* b */ ; delete */ 1 -- ; delete", "read", ""),
    (
        124,
        "SELECT 'insert into x' AS \"update\", E'it\\'s; delete', $tag$ delete $tag$, U&'x'",
        "read",
        "",
    ),
    (126, ";", "read", ""),
    (126, "/* nothing */", "read", ""),
    (127, "SELECT a INTO_ FROM t GROUP BY \"for\"", "read", ""),
    (
        128,
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN SELECT 1 INTO x; END $$",
        "write",
        "",
    ),
    (129, "ALTER DATABASE d SET x = 1", "write", "login defaults"),
    (129, "ALTER ROLE r PASSWORD 'x'", "write", "login defaults"),
    (129, "DROP DATABASE d", "write", "needs database d alone"),
    (
        138,
        "SELECT pg_catalog.set_config('search_path', '', false)",
        "write",
        "set search_path",
    ),
    (139, "WAIT FOR LSN '0/0'", "write", ""),
    (140, "SELECT * FROM pg_prepared_xact()", "write", ""),
];

#[test]
fn statements_are_what_a_live_pair_showed() {
    let mut wrong = Vec::new();
    for (number, sql, access, expected) in FACTS {
        let class = class(sql);
        if class.access.as_str() != *access || effects(&class) != *expected {
            wrong.push(format!(
                "{number}: {sql}\n    {} [{}] since {}",
                class.access.as_str(),
                effects(&class),
                class.reason
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
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
    ] {
        assert_eq!(class(sql).access, Access::Write, "{sql}");
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
