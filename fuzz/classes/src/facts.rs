//! What is known of pg_catalog's names, from the files below `data/` and nothing of the product's.

use std::collections::{HashMap, HashSet};

/// One function of pg_catalog or information_schema.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) schema: &'static str,
    pub(crate) name: &'static str,
    pub(crate) least: usize,
    pub(crate) most: usize,
    pub(crate) volatile: bool,
    /// `safe`, or why it isn't.
    pub(crate) verdict: &'static str,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) functions: HashMap<&'static str, Vec<Function>>,
    pub(crate) operators: HashSet<&'static str>,
    pub(crate) types: HashSet<&'static str>,
    pub(crate) node_local_views: HashSet<&'static str>,
}

impl Facts {
    /// Reads the files that are compiled in.
    pub(crate) fn load() -> Facts {
        let mut functions: HashMap<&'static str, Vec<Function>> = HashMap::new();
        for line in include_str!("../data/functions.tsv").lines() {
            let fields: Vec<&'static str> = line.split('\t').collect();
            let [schema, name, least, most, volatility, verdict] = fields[..] else {
                panic!("functions.tsv: {line}");
            };
            functions.entry(name).or_default().push(Function {
                schema,
                name,
                least: least.parse().expect("a number of arguments"),
                most: most.parse().expect("a number of arguments"),
                volatile: volatility == "v",
                verdict,
            });
        }
        Facts {
            functions,
            operators: include_str!("../data/operators.txt").lines().collect(),
            types: include_str!("../data/types.txt").lines().collect(),
            node_local_views: include_str!("../data/node_local_views.txt").lines().collect(),
        }
    }
}
