//! The questions to a server's catalog, and its answers: rows as JSON texts, which [`CatalogRows`] is made of.
//!
//! Objects with an OID below 16384 are PostgreSQL's own (FirstNormalObjectId), and known already.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use crate::cluster::{Asker, NodeId, Unanswered};
use crate::sql::CatalogRows;

/// All questions together.
const LIMIT: Duration = Duration::from_secs(60);

/// Everything is asked of one snapshot, and names in what is shown are qualified.
const BEGIN: &str = "SET search_path = pg_catalog; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// `prosqlbody` came with PostgreSQL 14: before that it is as NULL.
const HAS_SQL_BODIES: &str = "SELECT count(*) FROM pg_proc WHERE proname = 'pg_get_function_sqlbody'";

const FUNCTIONS: &str = "SELECT to_json(r) FROM (
    SELECT n.nspname AS schema, p.proname AS name, oidvectortypes(p.proargtypes) AS arguments,
        CASE WHEN p.prokind = 'a' THEN 0
            ELSE p.pronargs - p.pronargdefaults - (p.provariadic <> 0)::int END AS least,
        CASE WHEN p.prokind <> 'a' AND p.provariadic = 0 THEN p.pronargs END AS most,
        CASE WHEN p.prokind <> 'a' THEN p.provolatile::text
            ELSE (SELECT max(f.provolatile::text) FROM pg_aggregate a, pg_proc f WHERE a.aggfnoid = p.oid
                AND f.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn,
                    a.aggminvtransfn, a.aggmfinalfn)) END AS volatility,
        l.lanname AS language,
        CASE WHEN p.provolatile = 'v' AND l.lanname IN ('sql', 'plpgsql') THEN $body END AS body
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
    WHERE p.oid >= 16384 ORDER BY p.oid) r";

const OPERATORS: &str = "SELECT to_json(r) FROM (
    SELECT n.nspname AS schema, o.oprname AS name, p.provolatile::text AS volatility
    FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace JOIN pg_proc p ON p.oid = o.oprcode
    WHERE o.oid >= 16384 ORDER BY o.oid) r";

const TYPES: &str = "SELECT to_json(r) FROM (
    SELECT n.nspname AS schema, t.typname AS name,
        coalesce((SELECT max(p.provolatile::text) FROM pg_proc p WHERE p.oid >= 16384
            AND p.oid IN (t.typinput, t.typoutput, t.typreceive, t.typsend, t.typmodin, t.typmodout)), 'i') AS volatility,
        (SELECT json_agg(regexp_replace(pg_get_constraintdef(c.oid), '^CHECK | NOT VALID$', '', 'g'))
            FROM pg_constraint c WHERE c.contypid = t.oid AND c.contype = 'c') AS checks,
        (SELECT json_agg(DISTINCT part.typname) FROM (
                SELECT t.typbasetype AS oid UNION ALL
                SELECT rngsubtype FROM pg_range WHERE rngtypid = t.oid UNION ALL
                SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) direct
            JOIN pg_type whole ON whole.oid = direct.oid
            JOIN pg_type part ON part.oid = CASE WHEN whole.typcategory = 'A' AND whole.typelem <> 0 THEN whole.typelem ELSE whole.oid END
            WHERE part.oid >= 16384) AS parts
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE t.oid >= 16384 AND NOT (t.typcategory = 'A' AND t.typelem <> 0) AND n.nspname !~ '^pg_(toast|temp)'
    ORDER BY t.oid) r";

const CASTS: &str = "SELECT to_json(r) FROM (
    SELECT json_build_array(s.typname, t.typname) AS between
    FROM pg_cast c JOIN pg_type s ON s.oid = c.castsource JOIN pg_type t ON t.oid = c.casttarget JOIN pg_proc p ON p.oid = c.castfunc
    WHERE c.oid >= 16384 AND p.provolatile = 'v' ORDER BY c.oid) r";

const RELATIONS: &str = "SELECT to_json(r) FROM (
    SELECT n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.relpersistence = 'u' AS unlogged,
        CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END AS query,
        CASE WHEN c.relrowsecurity THEN (SELECT json_agg(pg_get_expr(p.polqual, p.polrelid)) FROM pg_policy p
            WHERE p.polrelid = c.oid AND p.polcmd IN ('r', '*') AND p.polqual IS NOT NULL) END AS policies,
        (SELECT jsonb_agg(DISTINCT jsonb_build_array(f.schema, f.name)) FROM (
            SELECT fn.nspname AS schema, p.proname AS name
            FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace fn ON fn.oid = p.pronamespace
            WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgenabled <> 'D' AND p.oid >= 16384) f) AS triggers
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid >= 16384 AND c.relpersistence <> 't' AND n.nspname <> 'pg_toast' AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        AND (c.relkind IN ('v', 'f', 'S') OR c.relpersistence = 'u' OR c.relrowsecurity OR c.relhastriggers)
    ORDER BY c.oid) r";

const CHILDREN: &str = "SELECT to_json(r) FROM (
    SELECT json_build_array(pn.nspname, p.relname) AS parent, json_build_array(cn.nspname, c.relname) AS child
    FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
        JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
    WHERE p.relkind IN ('r', 'p', 'f') AND c.relkind IN ('r', 'p', 'f') ORDER BY i.inhrelid, i.inhseqno) r";

/// What a catalog says, and a hash of it: equal hashes, nothing has changed.
pub(super) struct Loaded {
    pub(super) rows: CatalogRows,
    pub(super) hash: u64,
}

/// Why nothing could be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    #[error("an answer that isn't understood: {0}")]
    NotUnderstood(#[from] serde_json::Error),
}

/// Asks a node what a database's names are.
pub(super) async fn load(asker: &Asker, node: NodeId, database: &str) -> Result<Loaded, LoadError> {
    let bodies = asker.ask(node, database, &[HAS_SQL_BODIES], LIMIT).await?;
    let has_sql_bodies = bodies.concat().concat() != "0";
    let body = if has_sql_bodies {
        "coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)"
    } else {
        "p.prosrc"
    };
    let functions = FUNCTIONS.replace("$body", body);
    let questions = [
        BEGIN, &functions, OPERATORS, TYPES, CASTS, RELATIONS, CHILDREN, "COMMIT",
    ];
    let answers = asker.ask(node, database, &questions, LIMIT).await?;
    // Thousands of texts: not while others wait for this thread.
    let understood = tokio::task::spawn_blocking(move || understand(&answers)).await;
    Ok(understood.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

fn understand(answers: &[Vec<String>]) -> Result<Loaded, serde_json::Error> {
    fn read<T: serde::de::DeserializeOwned>(texts: &[String]) -> Result<Vec<T>, serde_json::Error> {
        texts.iter().map(|text| serde_json::from_str(text)).collect()
    }
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    for text in answers.iter().flatten() {
        hasher.write(text.as_bytes());
        hasher.write_u8(0);
    }
    let answer = |index: usize| answers.get(index).map_or(&[][..], Vec::as_slice);
    Ok(Loaded {
        rows: CatalogRows {
            functions: read(answer(1))?,
            operators: read(answer(2))?,
            types: read(answer(3))?,
            casts: read(answer(4))?,
            relations: read(answer(5))?,
            children: read(answer(6))?,
        },
        hash: hasher.finish(),
    })
}
