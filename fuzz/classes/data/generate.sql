-- What the files beside this hold, from a fresh PostgreSQL 15: psql -At -F '<TAB>' -f generate.sql. The verdicts of functions.tsv and the choice of
-- node_local_views.txt are judgements on top of it: see the README.

-- functions.tsv, with the arguments by which functions were tried, and whether text can't call it
select n.nspname, p.proname, p.pronargs - p.pronargdefaults, case when p.provariadic<>0 then 999 else p.pronargs end, p.provolatile, p.prokind,
 replace(oidvectortypes(p.proargtypes),', ',','), (p.prorettype::regtype::text in ('trigger','event_trigger','internal','fdw_handler','index_am_handler','tsm_handler','table_am_handler','language_handler') or 'internal'::regtype = any(p.proargtypes))
from pg_proc p join pg_namespace n on n.oid=p.pronamespace where nspname in ('pg_catalog','information_schema') order by 1,2,7;

-- the names of functions and views that a view's definition holds
select n.nspname||'.'||c.relname, (select string_agg(distinct w, ' ' order by w) from (select (regexp_matches(pg_get_viewdef(c.oid), '([a-z_0-9]+)', 'g'))[1] w) x where exists (select 1 from pg_proc p where p.proname=w) or exists (select 1 from pg_class k join pg_namespace kn on kn.oid=k.relnamespace where kn.nspname in ('pg_catalog','information_schema') and k.relkind='v' and k.relname=w))
from pg_class c join pg_namespace n on n.oid=c.relnamespace where n.nspname in ('pg_catalog','information_schema') and relkind='v' order by 1;

-- operators.txt
select distinct oprname from pg_operator where oprnamespace = 'pg_catalog'::regnamespace order by 1;

-- types.txt
select case when nspname = 'pg_catalog' then typname else nspname || '.' || typname end
from pg_type t join pg_namespace n on n.oid = typnamespace
where nspname = 'pg_catalog' or (nspname = 'information_schema' and typtype = 'd') order by 1;
