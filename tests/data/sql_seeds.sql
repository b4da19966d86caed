select a, b from t where a = 1 and b = 'x' order by 2 limit 10

select * from t join u using (a) where exists (select 1 from v where v.a = t.a)

with recursive r(n) as (select 1 union all select n + 1 from r where n < 5) select sum(n) over (order by n) from r

select count(*) filter (where a > 1), array_agg(b order by b), jsonb_build_object('k', 1) from t group by rollup (a)

select case when a is null then 'x' else lower(b) end, a::numeric(10, 2), interval '1' day from only t

select xmlelement(name x, xmlattributes(a as b), xmlforest(c)), extract(year from now()) from t

insert into t (a, b) values (1, 'x'), (2, 'y') on conflict do nothing returning a

update t set a = a + 1 where b like 'x%'

delete from t using u where t.a = u.a

select nextval('s'), set_config('a.b', 'c', false)

set search_path = a, "B"

begin isolation level repeatable read, read only; select 1; commit

explain (analyze, costs off) select 1

copy (select a from t) to stdout with (format csv)

declare c cursor with hold for select 1

create function f() returns int language sql begin atomic select 1; end

do $body$ begin null; end $body$

select 'pg_locks'::regclass, * from pg_stat_activity
