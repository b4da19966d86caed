-- What the statements of facts.txt need. {port} is the primary's port.
CREATE EXTENSION dblink;
CREATE EXTENSION postgres_fdw;
CREATE EXTENSION pgcrypto;
CREATE EXTENSION "uuid-ossp";
CREATE EXTENSION amcheck;
CREATE ROLE limited;
CREATE SCHEMA unlogged;
CREATE UNLOGGED TABLE unlogged.u (a int);
CREATE VIEW unlogged_view AS SELECT * FROM unlogged.u;

CREATE TABLE t (i int, a int, v int, x int, "for" int, created timestamptz);
INSERT INTO t VALUES (1, 1, 1, 1, 1, now()), (2, 2, 2, 2, 2, now());
CREATE INDEX t_i ON t (i);
CREATE TABLE rt (a int, b int);
INSERT INTO rt VALUES (1, 2);
CREATE TABLE s (x int);
CREATE SCHEMA s;
CREATE TABLE s.rt (a int, b int);
CREATE MATERIALIZED VIEW v AS SELECT 1 AS one;
CREATE TABLE counted (a int);
INSERT INTO counted SELECT generate_series(1, 100);
CREATE VIEW locking_view AS SELECT * FROM t FOR UPDATE;

-- Drawn from once: its row in WAL is ahead of what the primary shows.
CREATE SEQUENCE sq;
SELECT nextval('sq');
CREATE SEQUENCE sq_set;
CREATE VIEW vv AS SELECT nextval('sq');

CREATE TABLE written (n int);
CREATE FUNCTION vf() RETURNS boolean LANGUAGE plpgsql AS 'begin insert into written values (1); return true; end';
CREATE FUNCTION vf(int) RETURNS boolean LANGUAGE sql AS 'select vf()';
CREATE FUNCTION vf_int() RETURNS int LANGUAGE sql AS 'select vf()::int';
CREATE FUNCTION vf_int(int, int) RETURNS int LANGUAGE sql AS 'select vf()::int';
CREATE FUNCTION vf_setof() RETURNS SETOF boolean LANGUAGE plpgsql AS 'begin return query select vf(); end';
CREATE FUNCTION vf_setof(int) RETURNS SETOF boolean LANGUAGE plpgsql AS 'begin return query select vf(); end';
CREATE FUNCTION labelled_stable() RETURNS boolean STABLE LANGUAGE plpgsql AS 'begin insert into written values (1); return true; end';
CREATE FUNCTION labelled_stable_wrapper() RETURNS boolean STABLE LANGUAGE plpgsql AS 'begin return vf(); end';
CREATE FUNCTION labelled_stable_dblink() RETURNS text STABLE LANGUAGE sql AS
    $$ SELECT dblink_exec('dbname=facts host=127.0.0.1 port={port} user=postgres', 'insert into written values (1)') $$;
CREATE FUNCTION pure_by_accident() RETURNS int LANGUAGE sql AS 'select 1';
CREATE FUNCTION f(what text) RETURNS void LANGUAGE plpgsql AS 'begin if what = ''delete'' then delete from written; end if; end';
CREATE FUNCTION definer() RETURNS boolean SECURITY DEFINER LANGUAGE sql AS 'select vf()';
CREATE PROCEDURE pr() LANGUAGE plpgsql AS 'begin perform 1; end';
CREATE PROCEDURE pw() LANGUAGE plpgsql AS 'begin insert into written values (1); end';

CREATE OPERATOR ### (leftarg = int, rightarg = int, function = vf_int);
CREATE OPERATOR + (leftarg = int, rightarg = int, function = vf_int);
CREATE FUNCTION vf_point(int) RETURNS point LANGUAGE plpgsql AS 'begin perform vf(); return point(0, 0); end';
CREATE CAST (int AS point) WITH FUNCTION vf_point(int);
CREATE DOMAIN dom AS int CHECK (nextval('sq') > 0);
CREATE FUNCTION vf_sum(int, int) RETURNS int LANGUAGE plpgsql AS 'begin perform vf(); return $1 + $2; end';
CREATE AGGREGATE vagg (int) (sfunc = vf_sum, stype = int, initcond = 0);

CREATE TABLE guarded (a int);
INSERT INTO guarded VALUES (1);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY guard ON guarded USING (vf());
GRANT SELECT ON guarded TO limited;
GRANT INSERT ON written TO limited;

CREATE SCHEMA evil;
CREATE FUNCTION evil.lower(text) RETURNS text LANGUAGE plpgsql AS 'begin perform public.vf(); return $1; end';
ALTER FUNCTION vf() SET search_path = public;

CREATE SERVER loop FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '{port}', dbname 'facts');
CREATE USER MAPPING FOR postgres SERVER loop OPTIONS (user 'postgres');
CREATE FOREIGN TABLE ft (a int) SERVER loop OPTIONS (table_name 'rt');
CREATE TABLE ruled (a int);
CREATE RULE instead AS ON INSERT TO ruled DO INSTEAD SELECT 1;
CREATE TABLE parted (a int) PARTITION BY LIST (a);
CREATE TABLE parted_logged PARTITION OF parted FOR VALUES IN (1);
CREATE UNLOGGED TABLE parted_unlogged PARTITION OF parted FOR VALUES IN (2);
CREATE TABLE parent (a int);
CREATE UNLOGGED TABLE child () INHERITS (parent);

CREATE TABLE indexed (a int, b text[]);
CREATE INDEX brin ON indexed USING brin (a);
CREATE INDEX gin ON indexed USING gin (b);
SELECT lo_from_bytea(4711, 'large'), lo_from_bytea(4712, 'large');
