//! What names mean: which functions, types, operators and relations are known to be safe.
//!
//! [`Catalog`] is the door: classification asks nothing else about names. [`BuiltIn`] answers from pg_catalog of PostgreSQL 15
//! alone; [`Learned`](super::Learned), loaded from a server, answers for a database's own functions, types and views too.
//!
//! `functions.tsv` holds every function of pg_catalog that text can call and that is known to be safe, or known not to be, sorted
//! by bytes, as `name<TAB>route`; `name/2` overrides `name` for calls with two arguments, and functions of information_schema
//! are written with their schema. It was generated with `generate.sql` on PostgreSQL 15.18: immutable functions and the stable
//! aggregates are `safe`; each stable or volatile one was tried on a live primary and standby and has its own route, and those
//! that couldn't be tried are absent. Absent too are triggers, handlers, and type input functions (`domain_in` runs CHECK
//! constraints). A name with one unsafe overload is unsafe as a whole unless the number of arguments tells them apart. Names that
//! read like node-local ones (`pg_wal_…`, `pg_current_…`) are `node_local` even where they only compute.

use std::cmp::Ordering;

use super::class::Reason;

/// What is known of a function, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionRoute {
    /// Answers the same on any fresh standby, and does nothing else.
    Safe,
    /// Writes, or is refused by a standby.
    Writes,
    /// Acts on the server that it runs on, in silence also on a standby.
    Admin,
    /// Its answer describes the node.
    NodeLocal,
    /// Depends on, or changes, the server connection.
    Session,
    /// Runs SQL given as text, or reads relations given by name.
    RunsSql,
    /// `nextval` and `setval`.
    MovesSequence,
    /// `currval` and `lastval`: depend on the connection on which `nextval` ran.
    SessionSequence,
    /// Takes a session-level advisory lock.
    AdvisorySession,
    /// Takes an advisory lock until the transaction ends.
    AdvisoryTransaction,
    /// Gives session-level advisory locks back.
    AdvisoryUnlock,
    /// `set_config`.
    SetConfig,
    /// `setseed`.
    SetSeed,
    /// Leaves something that ends with the connection: an exported snapshot, a backup under way.
    Pinning,
    /// A database's own function that is VOLATILE.
    Volatile,
    /// The same, where its text shows that it leaves nothing on its connection but what sequences remember.
    VolatileWithoutTraces,
    /// Nothing is known.
    Unknown,
}

impl FunctionRoute {
    fn from_label(label: &str) -> FunctionRoute {
        match label {
            "safe" => FunctionRoute::Safe,
            "writes" => FunctionRoute::Writes,
            "admin" => FunctionRoute::Admin,
            "node_local" => FunctionRoute::NodeLocal,
            "session" => FunctionRoute::Session,
            "runs_sql" => FunctionRoute::RunsSql,
            "nextval" | "setval" => FunctionRoute::MovesSequence,
            "session_sequence" => FunctionRoute::SessionSequence,
            "advisory_session" => FunctionRoute::AdvisorySession,
            "advisory_xact" => FunctionRoute::AdvisoryTransaction,
            "advisory_unlock" => FunctionRoute::AdvisoryUnlock,
            "set_config" => FunctionRoute::SetConfig,
            "setseed" => FunctionRoute::SetSeed,
            "pinning" => FunctionRoute::Pinning,
            _ => FunctionRoute::Unknown,
        }
    }
}

/// A name as it stands in the text: folded as PostgreSQL folds identifiers, with its schema if it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a> {
    /// The schema, if the name is qualified.
    pub schema: Option<&'a str>,
    /// The name itself.
    pub name: &'a str,
}

/// What classification asks about names.
pub trait Catalog: Sync {
    /// What a call of this function does. `arguments` is the number of arguments where the text tells it.
    fn function(&self, name: Name<'_>, arguments: Option<usize>) -> FunctionRoute;
    /// Whether casting to this type only computes.
    fn type_is_safe(&self, name: Name<'_>) -> bool;
    /// Whether this operator only computes.
    fn operator_is_safe(&self, name: Name<'_>) -> bool;
    /// Why reading this relation is no read.
    fn relation_doubt(&self, name: Name<'_>) -> Option<Reason>;
    /// The signature of a function that makes this call no read.
    fn unsafe_signature(&self, _name: Name<'_>, _arguments: Option<usize>) -> Option<String> {
        None
    }
    /// Settings that a call of this function may leave changed, beside what its route says.
    fn settings_left(&self, _name: Name<'_>, _arguments: Option<usize>) -> Vec<Box<str>> {
        Vec::new()
    }
    /// Whether changing a relation of this name may run code that leaves something on its connection.
    fn triggers_leave_traces(&self, _name: &str) -> bool {
        false
    }
    /// Whether no type, of whatever name, does anything but compute.
    fn all_types_are_safe(&self) -> bool {
        false
    }
    /// Whether names of all schemas are known: then none hides another that is worse.
    fn knows_all_schemas(&self) -> bool {
        false
    }
}

/// pg_catalog of PostgreSQL 15, and nothing else.
///
/// An unqualified name is taken for pg_catalog's: whether that schema comes first in `search_path` is for the caller to know
/// ([`SqlContext::pg_catalog_first`](super::SqlContext::pg_catalog_first)).
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltIn;

impl Catalog for BuiltIn {
    fn function(&self, name: Name<'_>, arguments: Option<usize>) -> FunctionRoute {
        match self.listed(name, arguments) {
            Some(FunctionRoute::Unknown) | None if acts_outside(name.name) => FunctionRoute::Admin,
            Some(route) => route,
            None => FunctionRoute::Unknown,
        }
    }

    fn type_is_safe(&self, name: Name<'_>) -> bool {
        match name.schema {
            None | Some("pg_catalog") => is_built_in_type(name.name),
            Some("information_schema") => INFORMATION_SCHEMA_TYPES.contains(&name.name),
            Some(_) => false,
        }
    }

    fn operator_is_safe(&self, name: Name<'_>) -> bool {
        matches!(name.schema, None | Some("pg_catalog")) && OPERATORS.contains(&name.name)
    }

    fn relation_doubt(&self, name: Name<'_>) -> Option<Reason> {
        relation_is_node_local(name.name).then(|| Reason::NodeLocal {
            name: name.name.to_owned(),
        })
    }
}

impl BuiltIn {
    /// What the table says, if the function is in it.
    pub(crate) fn listed(&self, name: Name<'_>, arguments: Option<usize>) -> Option<FunctionRoute> {
        match name.schema {
            None | Some("pg_catalog") => {
                let by_count = arguments.and_then(|count| built_in_function(&format!("{}/{count}", name.name)));
                by_count.or_else(|| built_in_function(name.name))
            }
            Some("information_schema") => built_in_function(&format!("information_schema.{}", name.name)),
            Some(_) => None,
        }
    }
}

/// Whether reading this relation of pg_catalog describes the node.
fn relation_is_node_local(name: &str) -> bool {
    name.starts_with("pg_stat") || NODE_LOCAL_RELATIONS.contains(&name)
}

const FUNCTIONS: &str = include_str!("functions.tsv");

/// Bisects the sorted table in place.
fn built_in_function(name: &str) -> Option<FunctionRoute> {
    let (mut low, mut high) = (0, FUNCTIONS.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let start = FUNCTIONS[..middle].rfind('\n').map_or(0, |newline| newline + 1);
        let end = FUNCTIONS[middle..]
            .find('\n')
            .map_or(FUNCTIONS.len(), |newline| middle + newline);
        let (entry, route) = FUNCTIONS[start..end].split_once('\t')?;
        match name.as_bytes().cmp(entry.as_bytes()) {
            Ordering::Less => high = start,
            Ordering::Greater => low = end + 1,
            Ordering::Equal => return Some(FunctionRoute::from_label(route)),
        }
    }
    None
}

/// Functions of well-known extensions that do something outside of the transaction, so that a standby doesn't refuse them.
pub(crate) fn acts_outside(name: &str) -> bool {
    [
        "dblink",
        "pg_file_",
        "pg_background_",
        "http",
        "pg_stat_statements_reset",
        "pg_prewarm",
        "pg_buffercache_evict",
        "lo_",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

fn is_built_in_type(name: &str) -> bool {
    TYPES.contains(&name) || (name.starts_with('_') && TYPES.contains(&&name[1..]))
}

/// Whether a name of [`TYPES`] is the grammar's alone, so that in quotes it is somebody's own type.
pub(crate) fn is_only_in_grammar(name: &str) -> bool {
    name.contains(' ')
        || [
            "bigint",
            "boolean",
            "character",
            "dec",
            "decimal",
            "float",
            "int",
            "integer",
            "nchar",
            "real",
            "smallint",
        ]
        .contains(&name)
}

/// Whether a string literal spells the name of something that describes the node, as in `'pg_locks'::regclass` or
/// `has_function_privilege(…, 'pg_ls_waldir()', …)`.
pub(crate) fn literal_is_node_local(literal: &[u8]) -> bool {
    let mut rest = literal;
    while let Some(at) = find_pg_prefix(rest) {
        rest = &rest[at..];
        let len = rest
            .iter()
            .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
            .unwrap_or(rest.len());
        let (word, behind) = rest.split_at(len);
        let name = String::from_utf8_lossy(word).to_ascii_lowercase();
        if relation_is_node_local(&name) || built_in_function(&name) == Some(FunctionRoute::NodeLocal) {
            return true;
        }
        rest = behind;
    }
    false
}

/// Where `pg_` begins. Looks for the underscore, which few literals hold.
fn find_pg_prefix(text: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(offset) = text.get(from..)?.iter().position(|&byte| byte == b'_') {
        let at = from + offset;
        if at >= 2 && text[at - 2..at].eq_ignore_ascii_case(b"pg") {
            return Some(at - 2);
        }
        from = at + 1;
    }
    None
}

/// pg_catalog's views over the state of one server; those that begin with `pg_stat` are told by their name.
const NODE_LOCAL_RELATIONS: &[&str] = &[
    "pg_aios",
    "pg_available_extension_versions",
    "pg_available_extensions",
    "pg_backend_memory_contexts",
    "pg_buffercache",
    "pg_config",
    "pg_cursors",
    "pg_dsm_registry_allocations",
    "pg_file_settings",
    "pg_hba_file_rules",
    "pg_ident_file_mappings",
    "pg_locks",
    "pg_prepared_statements",
    "pg_prepared_xacts",
    "pg_replication_origin_status",
    "pg_replication_slots",
    "pg_sequences",
    "pg_settings",
    "pg_shmem_allocations",
    "pg_shmem_allocations_numa",
    "pg_timezone_abbrevs",
    "pg_timezone_names",
    "pg_wait_events",
];

/// A sequence's own columns: read from the relation they run ahead on a standby (WAL logs 32 values ahead).
pub(crate) const SEQUENCE_COLUMNS: &[&str] = &["last_value", "is_called", "log_cnt"];

/// Names of pg_operator in pg_catalog, PostgreSQL 15, and `!=`, which the lexer there turns into `<>`.
const OPERATORS: &[&str] = &[
    "!!", "!~", "!~*", "!~~", "!~~*", "#", "##", "#-", "#>", "#>>", "%", "&", "&&", "&<", "&<|", "&>", "*", "*<",
    "*<=", "*<>", "*=", "*>", "*>=", "+", "-", "->", "->>", "-|-", "/", "<", "<->", "<<", "<<=", "<<|", "<=", "<>",
    "<@", "<^", "=", ">", ">=", ">>", ">>=", ">^", "?", "?#", "?&", "?-", "?-|", "?|", "?||", "@", "@-@", "@>", "@?",
    "@@", "@@@", "^", "^@", "|", "|&>", "|/", "|>>", "||", "||/", "~", "~*", "~<=~", "~<~", "~=", "~>=~", "~>~", "~~",
    "~~*", "!=",
];

/// Names of pg_type in pg_catalog, PostgreSQL 15, without pseudo-types, and the SQL names of the grammar (several words with
/// single blanks).
const TYPES: &[&str] = &[
    "aclitem",
    "anyarray",
    "bigint",
    "bit",
    "bit varying",
    "bool",
    "boolean",
    "box",
    "bpchar",
    "bytea",
    "char",
    "character",
    "character varying",
    "cid",
    "cidr",
    "circle",
    "cstring",
    "date",
    "datemultirange",
    "daterange",
    "dec",
    "decimal",
    "double precision",
    "float",
    "float4",
    "float8",
    "gtsvector",
    "inet",
    "int",
    "int2",
    "int2vector",
    "int4",
    "int4multirange",
    "int4range",
    "int8",
    "int8multirange",
    "int8range",
    "integer",
    "interval",
    "json",
    "jsonb",
    "jsonpath",
    "line",
    "lseg",
    "macaddr",
    "macaddr8",
    "money",
    "name",
    "national char",
    "national char varying",
    "national character",
    "national character varying",
    "nchar",
    "nchar varying",
    "numeric",
    "nummultirange",
    "numrange",
    "oid",
    "oidvector",
    "path",
    "pg_lsn",
    "pg_node_tree",
    "pg_snapshot",
    "point",
    "polygon",
    "real",
    "record",
    "refcursor",
    "regclass",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
    "smallint",
    "text",
    "tid",
    "time",
    "time with time zone",
    "time without time zone",
    "timestamp",
    "timestamp with time zone",
    "timestamp without time zone",
    "timestamptz",
    "timetz",
    "tsmultirange",
    "tsquery",
    "tsrange",
    "tstzmultirange",
    "tstzrange",
    "tsvector",
    "txid_snapshot",
    "unknown",
    "uuid",
    "varbit",
    "varchar",
    "char varying",
    "xid",
    "xid8",
    "xml",
];

/// Domains of information_schema, whose constraints are built in.
const INFORMATION_SCHEMA_TYPES: &[&str] = &[
    "cardinal_number",
    "character_data",
    "sql_identifier",
    "time_stamp",
    "yes_or_no",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str) -> FunctionRoute {
        BuiltIn.function(Name { schema: None, name }, None)
    }

    #[test]
    fn the_table_is_sorted_and_every_entry_is_found() {
        let names: Vec<&str> = FUNCTIONS
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names.len(), FUNCTIONS.lines().count());
        assert!(names.windows(2).all(|pair| pair[0].as_bytes() < pair[1].as_bytes()));
        for line in FUNCTIONS.lines() {
            let (name, label) = line.split_once('\t').expect("checked above");
            let route = built_in_function(name);
            assert_eq!(route, Some(FunctionRoute::from_label(label)), "{name}");
            assert_ne!(
                route,
                Some(FunctionRoute::Unknown),
                "{name} has the unknown route {label}"
            );
        }
    }

    #[test]
    fn functions_have_the_route_that_was_found_by_trying() {
        for (name, expected) in [
            ("lower", FunctionRoute::Safe),
            ("count", FunctionRoute::Safe),
            ("random", FunctionRoute::Safe),
            ("gen_random_uuid", FunctionRoute::Safe),
            ("json_agg", FunctionRoute::Safe),
            ("nextval", FunctionRoute::MovesSequence),
            ("txid_current", FunctionRoute::Writes),
            ("pg_advisory_lock", FunctionRoute::AdvisorySession),
            ("pg_try_advisory_xact_lock", FunctionRoute::AdvisoryTransaction),
            ("pg_is_in_recovery", FunctionRoute::NodeLocal),
            ("pg_promote", FunctionRoute::Admin),
            ("dblink_exec", FunctionRoute::Admin),
            ("query_to_xml", FunctionRoute::RunsSql),
            ("domain_in", FunctionRoute::Unknown),
            ("", FunctionRoute::Unknown),
            ("zzz", FunctionRoute::Unknown),
            ("aaa", FunctionRoute::Unknown),
        ] {
            assert_eq!(route(name), expected, "{name}");
        }
        assert_eq!(
            BuiltIn.function(
                Name {
                    schema: Some("evil"),
                    name: "lower"
                },
                None
            ),
            FunctionRoute::Unknown
        );
        assert_eq!(
            BuiltIn.function(
                Name {
                    schema: None,
                    name: "ts_rewrite"
                },
                Some(2)
            ),
            FunctionRoute::RunsSql
        );
        assert_eq!(
            BuiltIn.function(
                Name {
                    schema: None,
                    name: "ts_rewrite"
                },
                Some(3)
            ),
            FunctionRoute::Safe
        );
    }

    #[test]
    fn literals_are_searched_for_names() {
        assert!(literal_is_node_local(b"'pg_catalog.PG_LOCKS'"));
        assert!(literal_is_node_local(b"'pg_x pg_ls_waldir()'"));
        assert!(!literal_is_node_local(b"'pg_catalog'"));
        assert!(!literal_is_node_local(b"'pg_class'"));
    }
}
