//! What a server's catalog says, row by row, as [`super::Learned::from_rows`] takes it. Each field that may be missing stands for "none".

use serde::Deserialize;

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct CatalogRows {
    /// Functions, procedures and aggregates.
    pub functions: Vec<FunctionRow>,
    /// Operators.
    pub operators: Vec<OperatorRow>,
    /// Types, but for the row types of relations, and arrays.
    pub types: Vec<TypeRow>,
    /// Casts by a function that is VOLATILE.
    pub casts: Vec<CastRow>,
    /// Relations that aren't plain tables.
    pub relations: Vec<RelationRow>,
    /// Tables with children: reading one reads the others too.
    pub children: Vec<ChildRow>,
}

/// `pg_proc.provolatile` (manual, "Function Volatility Categories"). Ordered by how much it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Volatility {
    /// IMMUTABLE.
    #[serde(rename = "i")]
    Immutable,
    /// STABLE.
    #[serde(rename = "s")]
    Stable,
    /// VOLATILE.
    #[serde(rename = "v")]
    Volatile,
}

/// One function.
#[derive(Debug, Clone, Deserialize)]
pub struct FunctionRow {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its argument types, as in `integer, text`.
    pub arguments: String,
    /// The least number of arguments that it can be called with.
    pub least: usize,
    /// The most; `None` for VARIADIC.
    pub most: Option<usize>,
    /// An aggregate's is the strongest of its functions'.
    pub volatility: Volatility,
    /// `sql`, `plpgsql`, `c`, …
    pub language: String,
    /// The body's text; of VOLATILE functions in SQL and PL/pgSQL only.
    pub body: Option<String>,
}

/// One operator.
#[derive(Debug, Clone, Deserialize)]
pub struct OperatorRow {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its function's.
    pub volatility: Volatility,
}

/// One type.
#[derive(Debug, Clone, Deserialize)]
pub struct TypeRow {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Of its input and output functions.
    pub volatility: Volatility,
    /// What a domain checks: expressions.
    pub checks: Option<Vec<String>>,
    /// Names of other such types that it is made of.
    pub parts: Option<Vec<String>>,
}

/// One cast.
#[derive(Debug, Clone, Deserialize)]
pub struct CastRow {
    /// The types' names, from and to.
    pub between: Vec<String>,
}

/// One relation.
#[derive(Debug, Clone, Deserialize)]
pub struct RelationRow {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `pg_class.relkind`.
    pub kind: String,
    /// UNLOGGED: a standby doesn't have its rows.
    pub unlogged: bool,
    /// A view's text.
    pub query: Option<String>,
    /// What row security adds to each query: expressions.
    pub policies: Option<Vec<String>>,
    /// The functions of its triggers, as schema and name.
    pub triggers: Option<Vec<(String, String)>>,
}

/// One child of a table.
#[derive(Debug, Clone, Deserialize)]
pub struct ChildRow {
    /// The table's schema and name.
    pub parent: (String, String),
    /// The child's.
    pub child: (String, String),
}
