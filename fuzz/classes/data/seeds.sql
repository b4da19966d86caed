select a, t.b, (c).d, e[1] from s.t as t(a, b) where a = $1 and b like 'x%' escape '!' order by 1 using < nulls first

select (row(1, 2)).f1, (array[1, 2])[1], ($1).f, (select 1).f from t

select f.* from rows from (generate_series(1, 2), unnest(array[1])) with ordinality as f(a, b, c)

select * from json_to_record('{}') as x(a int, b text), lateral jsonb_each(x.b::jsonb) as y(k, v)

select * from t tablesample system (10) repeatable (1) left join u on t.a operator(pg_catalog.=) u.a

select x from xmltable('//r' passing by ref '<r/>'::xml columns a int path '@a' default 1 not null, n for ordinality) as x

select count(*) filter (where a > 1) over w, percentile_cont(0.5) within group (order by a) from t group by grouping sets ((a), ()) window w as (partition by b order by c range between unbounded preceding and current row exclude ties)

with recursive a(n) as materialized (select 1 union all select n + 1 from a) search depth first by n set o cycle n set c using p select * from a

select cast(a as numeric(10, 2)), b::timestamp(3) with time zone at time zone 'utc', interval '1' day to second(2), date '2000-01-01' from t

select overlay('a' placing 'b' from 1 for 1), substring('a' similar 'b' escape '#'), position('a' in 'b'), trim(both 'x' from 'y'), extract(day from now()), normalize('a', nfc) from t

select a is distinct from b, a not between symmetric 1 and 2, a isnull, b notnull, a is document, (a, b) overlaps (c, d), a = any (array[1]), a <> all (select 1) from t

select case a when 1 then 2 else 3 end as "end", coalesce(a, b), nullif(a, b), greatest(1, 2), current_date, current_role, localtime(2) from t fetch first 3 rows with ties

select 1 into temporary table t9 from t

select * from t for no key update of t skip locked

select * from (select * from t for share nowait) x

explain (analyze off, costs, format json) select 1

explain verbose insert into t select 1

copy (select a from t) to stdout with (format csv, header)

copy s.t (a, b) to stdout

copy t from stdin

prepare p(int) as select $1

execute p(1)

declare c binary insensitive scroll cursor with hold for select 1

create temp table x on commit drop as select 1

create table y as execute p(1)

create function g() returns int language sql begin atomic select case when true then 1 end; select 2; end

create rule r as on insert to t do also (select 1; select 2)

set local a.b to 'x', 'y'

set session characteristics as transaction read only

reset all; discard all; deallocate all; listen x; unlisten *; notify x, 'y'; lock t; load 'x'

begin isolation level serializable read only deferrable; savepoint a; rollback to a; release a; commit and chain

select set_config('a.b', '1', false), pg_advisory_lock(1), setseed(0.5), nextval('s'), pg_export_snapshot()

table only (t)

values (1, 'a'), (default, U&'\0061' uescape '!')

merge into t using u on t.a = u.a when matched and u.b > 1 then update set b = 1 when not matched then insert values (1)

insert into t as x (a) overriding system value values (1) on conflict (a) where b do update set a = excluded.a returning *, x.a

call p(1, a => 2)

do language plpgsql 'begin end'

select f(a := 1, b => 2, variadic c => array[1]), g(distinct a order by b), h(all a) from only t *

select e'\'', U&"d\0061ta", $x$ ; $x$, b'01', x'ff', n'a', 1e10, .5 from "T"
