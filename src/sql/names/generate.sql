-- Lists the functions that text can call, with their volatilities: the raw material of functions.tsv.
-- On a fresh PostgreSQL 15: psql -At -F '<TAB>' -f generate.sql. How routes are given is told in mod.rs.
SELECT n.nspname, p.proname, string_agg(DISTINCT p.provolatile::text, '' ORDER BY p.provolatile::text)
FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname IN ('pg_catalog', 'information_schema')
  AND p.prokind IN ('f', 'a', 'w')
GROUP BY 1, 2
HAVING NOT bool_or(p.prorettype::regtype::text IN
         ('trigger', 'event_trigger', 'internal', 'fdw_handler', 'index_am_handler', 'tsm_handler', 'table_am_handler',
          'language_handler')
       OR 'internal'::regtype = ANY (p.proargtypes))
ORDER BY 1, 2;
