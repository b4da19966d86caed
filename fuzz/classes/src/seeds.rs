//! What mutation starts from: statements, and fragments of them by what they are.

use std::path::PathBuf;

use crate::facts::Facts;
use crate::pieces;

/// Statements and fragments, each as its pieces.
#[derive(Debug, Default)]
pub(crate) struct Seeds {
    pub(crate) statements: Vec<Vec<String>>,
    /// `( SELECT … )` and its like, with parentheses.
    pub(crate) subqueries: Vec<Vec<String>>,
    /// Other parentheses with what they hold.
    pub(crate) groups: Vec<Vec<String>>,
    /// Calls: a name and its parentheses.
    pub(crate) calls: Vec<Vec<String>>,
    /// From a keyword of a clause up to the next one: `ORDER BY …`, `FROM …`.
    pub(crate) clauses: Vec<Vec<String>>,
    /// Functions of pg_catalog by name, with how many arguments they take at least.
    pub(crate) functions: Vec<(&'static str, usize)>,
    /// Those of them that aren't safe.
    pub(crate) unsafe_functions: Vec<(&'static str, usize)>,
    /// Names of types.
    pub(crate) types: Vec<&'static str>,
}

/// Longer statements are left out: they are slow, and what is mutated in them is mostly more of the same.
const LONGEST: usize = 150;

impl Seeds {
    /// The corpus below `PGSLUICE_SHARED` or `../shared` where it is there, and what the project has.
    pub(crate) fn load(facts: &Facts) -> Seeds {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        let shared = std::env::var_os("PGSLUICE_SHARED").map_or_else(|| root.join("../shared"), PathBuf::from);
        let corpus = std::fs::read_to_string(shared.join("data/ground_truth_dev.jsonl")).unwrap_or_default();
        let rows = corpus.lines().filter_map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(row["sql"].as_str()?.to_owned())
        });
        let own = [
            include_str!("../data/seeds.sql"),
            include_str!("../../../tests/data/sql_seeds.sql"),
        ];
        let own = own.into_iter().flat_map(|file| file.split("\n\n")).map(str::to_owned);
        let mut seeds = Seeds::default();
        for text in own.chain(rows) {
            seeds.add(&text);
        }
        seeds.add_names(facts);
        seeds
    }

    fn add(&mut self, text: &str) {
        let pieces = pieces::cut(text);
        if pieces.is_empty() || pieces.len() > LONGEST {
            return;
        }
        for (index, piece) in pieces.iter().enumerate() {
            if piece == "("
                && let Some(end) = pieces::behind_parenthesis(&pieces, index)
            {
                self.add_group(&pieces, index, end);
            }
            if is_clause(piece) {
                let rest = pieces
                    .iter()
                    .skip(index + 1)
                    .take_while(|piece| !is_clause(piece))
                    .count();
                self.clauses.push(pieces[index..=index + rest].to_vec());
            }
        }
        self.statements.push(pieces);
    }

    fn add_group(&mut self, pieces: &[String], open: usize, end: usize) {
        let first = pieces
            .get(open + 1)
            .map(|piece| piece.to_lowercase())
            .unwrap_or_default();
        if matches!(
            first.as_str(),
            "select" | "with" | "values" | "table" | "insert" | "update" | "delete" | "merge"
        ) {
            self.subqueries.push(pieces[open..end].to_vec());
        } else if end - open < 20 {
            self.groups.push(pieces[open..end].to_vec());
            if open > 0 && pieces::is_name(&pieces[open - 1]) {
                self.calls.push(pieces[open - 1..end].to_vec());
            }
        }
    }

    fn add_names(&mut self, facts: &Facts) {
        let mut functions: Vec<_> = facts.functions.values().flatten().collect();
        functions.sort_by_key(|function| (function.name, function.least, function.verdict));
        for function in functions {
            let entry = (function.name, function.least);
            match function.verdict {
                "internal" => continue,
                "safe" => {}
                _ => self.unsafe_functions.push(entry),
            }
            self.functions.push(entry);
        }
        self.types = facts.types.iter().copied().collect();
        self.types.sort_unstable();
    }
}

fn is_clause(piece: &str) -> bool {
    [
        "from",
        "where",
        "group",
        "having",
        "order",
        "limit",
        "offset",
        "fetch",
        "for",
        "window",
        "union",
        "intersect",
        "except",
        "into",
        "returning",
        "set",
        "values",
        "on",
        "using",
        "with",
        "join",
        "over",
        "filter",
    ]
    .iter()
    .any(|clause| piece.eq_ignore_ascii_case(clause))
}
