//! What the functions, types, operators and relations of a database do, as its catalog says: the second answer to [`Catalog`], beside
//! [`BuiltIn`].
//!
//! Names are looked up without a search path: one without a schema may mean whatever has that name in any schema, and is safe if all of them
//! are. So no path, no role and no overload can make a read of what is none, and one cache serves all sessions of a database.
//!
//! `rows` is what a server tells, `build` makes names of it (what is declared STABLE or IMMUTABLE is believed; what isn't is read, where it is
//! SQL), and `traces` finds what a function may leave on its connection.

mod build;
mod rows;
mod traces;

use foldhash::HashMap;

pub use rows::{CastRow, CatalogRows, ChildRow, FunctionRow, OperatorRow, RelationRow, TypeRow, Volatility};

use super::class::Reason;
use super::names::{BuiltIn, Catalog, FunctionRoute, Name};

/// Names of one database.
#[derive(Debug, Default)]
pub struct Learned {
    functions: HashMap<Box<str>, Vec<Function>>,
    operators: HashMap<Box<str>, Vec<Operator>>,
    types: HashMap<Box<str>, Vec<Type>>,
    relations: HashMap<Box<str>, Vec<Relation>>,
}

#[derive(Debug)]
struct Function {
    schema: Box<str>,
    arguments: Box<str>,
    least: usize,
    most: Option<usize>,
    /// It only reads.
    safe: bool,
    /// It may leave something on its connection that outlives the statement, beside settings.
    leaves_traces: bool,
    /// Settings that it may leave changed.
    settings: Vec<Box<str>>,
}

#[derive(Debug)]
struct Operator {
    schema: Box<str>,
    safe: bool,
}

#[derive(Debug)]
struct Type {
    schema: Box<str>,
    safe: bool,
}

#[derive(Debug)]
struct Relation {
    schema: Box<str>,
    /// Why reading it is no read; `None` if it is.
    doubt: Option<Doubt>,
    /// Changing it may run code that leaves something on its connection.
    triggers_leave_traces: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Doubt {
    why: Box<str>,
    /// A standby would refuse it, or answer for itself, and do no harm.
    yields_to_hint: bool,
}

fn fits(schema: Option<&str>, other: &str) -> bool {
    schema.is_none_or(|schema| schema == other)
}

impl Learned {
    /// Functions that a call may mean.
    fn candidates<'a>(&'a self, name: Name<'a>, arguments: Option<usize>) -> impl Iterator<Item = &'a Function> + 'a {
        let named = self.functions.get(name.name).map_or(&[][..], Vec::as_slice);
        named.iter().filter(move |function| {
            let takes = |count| count >= function.least && function.most.is_none_or(|most| count <= most);
            fits(name.schema, &function.schema) && arguments.is_none_or(takes)
        })
    }

    /// How many functions, operators, types and relations there are.
    pub fn len(&self) -> usize {
        fn count<T>(map: &HashMap<Box<str>, Vec<T>>) -> usize {
            map.values().map(Vec::len).sum()
        }
        count(&self.functions) + count(&self.operators) + count(&self.types) + count(&self.relations)
    }

    /// Whether the database has nothing of its own but tables.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Catalog for Learned {
    fn function(&self, name: Name<'_>, arguments: Option<usize>) -> FunctionRoute {
        let (mut known, mut safe, mut leaves_traces) = (false, true, false);
        for function in self.candidates(name, arguments) {
            known = true;
            safe &= function.safe;
            leaves_traces |= function.leaves_traces;
        }
        let built_in = BuiltIn.listed(name, arguments);
        match (built_in, known, safe) {
            (Some(FunctionRoute::Safe) | None, true, true) => FunctionRoute::Safe,
            (Some(FunctionRoute::Safe) | None, true, false) if super::names::acts_outside(name.name) => {
                FunctionRoute::Admin
            }
            (Some(FunctionRoute::Safe) | None, true, false) if leaves_traces => FunctionRoute::Volatile,
            (Some(FunctionRoute::Safe) | None, true, false) => FunctionRoute::VolatileWithoutTraces,
            (Some(route), ..) => route,
            (None, false, _) => BuiltIn.function(name, arguments),
        }
    }

    fn unsafe_signature(&self, name: Name<'_>, arguments: Option<usize>) -> Option<String> {
        let function = self.candidates(name, arguments).find(|function| !function.safe)?;
        Some(format!("{}.{}({})", function.schema, name.name, function.arguments))
    }

    fn settings_left(&self, name: Name<'_>, arguments: Option<usize>) -> Vec<Box<str>> {
        let candidates = self.candidates(name, arguments);
        candidates.flat_map(|function| function.settings.clone()).collect()
    }

    fn type_is_safe(&self, name: Name<'_>) -> bool {
        let named = self.types.get(name.name).map_or(&[][..], Vec::as_slice);
        let mut candidates = named.iter().filter(|found| fits(name.schema, &found.schema)).peekable();
        let known = candidates.peek().is_some() || BuiltIn.type_is_safe(name);
        known && candidates.all(|found| found.safe)
    }

    fn all_types_are_safe(&self) -> bool {
        self.types.values().flatten().all(|found| found.safe)
    }

    fn operator_is_safe(&self, name: Name<'_>) -> bool {
        let named = self.operators.get(name.name).map_or(&[][..], Vec::as_slice);
        let mut candidates = named.iter().filter(|found| fits(name.schema, &found.schema)).peekable();
        let known = candidates.peek().is_some() || BuiltIn.operator_is_safe(name);
        known && candidates.all(|found| found.safe)
    }

    fn relation_doubt(&self, name: Name<'_>) -> Option<Reason> {
        let named = self.relations.get(name.name).map_or(&[][..], Vec::as_slice);
        let doubt = named
            .iter()
            .filter(|relation| fits(name.schema, &relation.schema))
            .find_map(|relation| Some((&relation.schema, relation.doubt.as_ref()?)));
        match doubt {
            Some((schema, doubt)) => Some(Reason::Relation {
                name: format!("{schema}.{}", name.name),
                why: doubt.why.to_string(),
                yields_to_hint: doubt.yields_to_hint,
            }),
            None => BuiltIn.relation_doubt(name),
        }
    }

    fn triggers_leave_traces(&self, name: &str) -> bool {
        self.relations
            .get(name)
            .is_some_and(|named| named.iter().any(|relation| relation.triggers_leave_traces))
    }

    fn knows_all_schemas(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
