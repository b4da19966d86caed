//! From rows to names: what can be shown to only read is safe, and everything else isn't.
//!
//! Views, functions in SQL, policies and domains are judged by their texts, as a client's statement is. They build upon each other, so that
//! all begin as doubtful, and each round takes those for safe that stand on safe ones alone.

use foldhash::HashMap;

use super::rows::{CatalogRows, FunctionRow, RelationRow, TypeRow, Volatility};
use super::traces::settings_left;
use super::{Doubt, Function, Learned, Operator, Relation, Type};
use crate::sql::class::{Access, Reason};
use crate::sql::classify::classify_with;
use crate::sql::lexer::PlainStrings;
use crate::sql::{SqlContext, StatementClass, plpgsql};

/// What stands on more layers than this stays doubtful.
const ROUNDS: usize = 32;

impl Learned {
    /// Names of a database, of which these functions are reads because its owner says so: `schema.name`, or a name in any schema.
    pub fn from_rows(rows: &CatalogRows, read_only_functions: &[String]) -> Learned {
        let mut learned = Learned::default();
        for row in &rows.functions {
            learned.add_function(row, read_only_functions);
        }
        for row in &rows.operators {
            let operator = Operator {
                schema: row.schema.as_str().into(),
                safe: row.volatility != Volatility::Volatile,
            };
            learned
                .operators
                .entry(row.name.as_str().into())
                .or_default()
                .push(operator);
        }
        for row in &rows.types {
            let kind = Type {
                schema: row.schema.as_str().into(),
                safe: row.volatility != Volatility::Volatile && row.checks.is_none() && row.parts.is_none(),
            };
            learned.types.entry(row.name.as_str().into()).or_default().push(kind);
        }
        for row in &rows.relations {
            learned.add_relation(row);
        }
        for row in &rows.children {
            // A plain table of which only its children tell.
            learned.relation(&row.parent.0, &row.parent.1);
        }
        for _ in 0..ROUNDS {
            let changes = learned.settle_functions(rows)
                | learned.settle_types(rows)
                | learned.settle_relations(rows)
                | learned.settle_traces(rows);
            if !changes {
                break;
            }
        }
        learned.doubt_what_casts_touch(rows);
        learned.doubt_parents(rows);
        learned
    }

    fn add_function(&mut self, row: &FunctionRow, read_only_functions: &[String]) {
        let qualified = format!("{}.{}", row.schema, row.name);
        let declared = row.volatility != Volatility::Volatile;
        let allowed = read_only_functions
            .iter()
            .any(|name| *name == row.name || *name == qualified);
        let function = Function {
            schema: row.schema.as_str().into(),
            arguments: row.arguments.as_str().into(),
            least: row.least,
            most: row.most,
            safe: declared || allowed,
            leaves_traces: !(declared || allowed),
            settings: Vec::new(),
        };
        self.functions
            .entry(row.name.as_str().into())
            .or_default()
            .push(function);
    }

    fn relation(&mut self, schema: &str, name: &str) -> &mut Relation {
        let named = self.relations.entry(name.into()).or_default();
        let at = named.iter().position(|relation| *relation.schema == *schema);
        let at = at.unwrap_or_else(|| {
            named.push(Relation {
                schema: schema.into(),
                doubt: None,
                triggers_leave_traces: false,
            });
            named.len() - 1
        });
        &mut named[at]
    }

    fn add_relation(&mut self, row: &RelationRow) {
        let refused = |why: &str| {
            Some(Doubt {
                why: why.into(),
                yields_to_hint: true,
            })
        };
        let doubt = match row.kind.as_str() {
            "f" => Some(Doubt {
                why: "is a foreign table".into(),
                yields_to_hint: false,
            }),
            "S" => refused("is a sequence, whose columns run ahead on a standby"),
            _ if row.unlogged => refused("is UNLOGGED: standbys don't have it"),
            "v" => refused("is a view that isn't known to only read"),
            _ if row.policies.is_some() => refused("has row security that isn't known to only read"),
            _ => None,
        };
        let relation = self.relation(&row.schema, &row.name);
        relation.doubt = doubt;
        relation.triggers_leave_traces = row.triggers.is_some();
    }

    /// What a text is, as far as is known by now.
    fn judge(&self, text: &str) -> StatementClass {
        classify_with(text.as_bytes(), &SqlContext::default(), self)
    }

    fn judge_expressions(&self, expressions: &[String]) -> StatementClass {
        let columns: Vec<String> = expressions.iter().map(|expression| format!("({expression})")).collect();
        self.judge(&format!("SELECT {}", columns.join(", ")))
    }

    fn function_mut(&mut self, row: &FunctionRow) -> Option<&mut Function> {
        let named = self.functions.get_mut(row.name.as_str())?;
        named.iter_mut().find(|function| is_it(function, row))
    }

    /// The statements of a function that isn't known to be safe, where its text can be read.
    fn doubtful_body(&self, row: &FunctionRow) -> Option<String> {
        let named = self.functions.get(row.name.as_str())?;
        let doubtful = named
            .iter()
            .find(|function| is_it(function, row))
            .filter(|function| !function.safe);
        doubtful.and(row.body.as_deref()).map(statements_of)
    }

    fn settle_functions(&mut self, rows: &CatalogRows) -> bool {
        let mut changes = false;
        for row in &rows.functions {
            let Some(body) = self.doubtful_body(row) else { continue };
            if self.only_reads(&body, &row.language)
                && let Some(function) = self.function_mut(row)
            {
                (function.safe, function.leaves_traces) = (true, false);
                changes = true;
            }
        }
        changes
    }

    fn only_reads(&self, body: &str, language: &str) -> bool {
        match language {
            "sql" => {
                let class = self.judge(body);
                class.access == Access::Read && class.effects.is_empty()
            }
            "plpgsql" => plpgsql::scan(body, &SqlContext::default(), self).reason().is_none(),
            _ => false,
        }
    }

    fn settle_traces(&mut self, rows: &CatalogRows) -> bool {
        let mut changes = false;
        for row in &rows.functions {
            // What is safe is done; what leaves settings may come to call what leaves more of them.
            let Some(body) = self.doubtful_body(row) else { continue };
            let Some(settings) = settings_left(&body, self) else {
                continue;
            };
            if let Some(function) = self.function_mut(row) {
                changes |= function.leaves_traces || function.settings != settings;
                (function.leaves_traces, function.settings) = (false, settings);
            }
        }
        for row in &rows.relations {
            let Some(triggers) = &row.triggers else { continue };
            let leave = triggers.iter().any(|(schema, name)| {
                let named = self.functions.get(name.as_str()).map_or(&[][..], Vec::as_slice);
                let mut functions = named.iter().filter(|function| *function.schema == **schema);
                functions.any(|function| function.leaves_traces || !function.settings.is_empty())
            });
            let relation = self.relation(&row.schema, &row.name);
            changes |= relation.triggers_leave_traces != leave;
            relation.triggers_leave_traces = leave;
        }
        changes
    }

    fn settle_types(&mut self, rows: &CatalogRows) -> bool {
        let mut changes = false;
        for row in &rows.types {
            if row.volatility == Volatility::Volatile || !self.is_made_of_safe_parts(row) {
                continue;
            }
            let named = self.types.get_mut(row.name.as_str());
            let found = named.and_then(|named| named.iter_mut().find(|kind| *kind.schema == *row.schema));
            if let Some(kind) = found
                && !kind.safe
            {
                kind.safe = true;
                changes = true;
            }
        }
        changes
    }

    fn is_made_of_safe_parts(&self, row: &TypeRow) -> bool {
        let parts = row.parts.as_deref().unwrap_or_default();
        let safe = |part: &String| {
            let named = self.types.get(part.as_str());
            named.is_none_or(|named| named.iter().all(|kind| kind.safe))
        };
        let checks = row.checks.as_deref().unwrap_or_default();
        parts.iter().all(safe) && (checks.is_empty() || self.judge_expressions(checks).access == Access::Read)
    }

    fn settle_relations(&mut self, rows: &CatalogRows) -> bool {
        let mut changes = false;
        for row in &rows.relations {
            if row.unlogged || matches!(row.kind.as_str(), "f" | "S") {
                continue;
            }
            let class = match (&row.query, &row.policies) {
                (Some(query), _) => self.judge(query),
                (None, Some(policies)) => self.judge_expressions(policies),
                (None, None) => continue,
            };
            let relation = self.relation(&row.schema, &row.name);
            let doubt = (class.access == Access::Write).then(|| Doubt {
                why: what_it_does(row, &class.reason).into(),
                yields_to_hint: class.reason.yields_to_hint(),
            });
            // Only ever from doubt to trust: the words of a doubt are no change.
            changes |= relation.doubt.is_some() && doubt.is_none();
            if relation.doubt.is_some() {
                relation.doubt = doubt;
            }
        }
        changes
    }

    /// A value may be cast without a word of it in the text.
    fn doubt_what_casts_touch(&mut self, rows: &CatalogRows) {
        for name in rows.casts.iter().flat_map(|cast| &cast.between) {
            for kind in self.types.get_mut(name.as_str()).into_iter().flatten() {
                kind.safe = false;
            }
        }
    }

    fn doubt_parents(&mut self, rows: &CatalogRows) {
        let mut doubts: HashMap<&(String, String), Doubt> = HashMap::default();
        for _ in 0..ROUNDS {
            let before = doubts.len();
            for row in &rows.children {
                let (schema, name) = &row.child;
                let of_child = doubts.get(&row.child).cloned().or_else(|| {
                    let named = self.relations.get(name.as_str())?;
                    named.iter().find(|child| *child.schema == **schema)?.doubt.clone()
                });
                if let Some(doubt) = of_child {
                    let why = format!("reads {schema}.{name}, which {}", doubt.why);
                    let yields_to_hint = doubt.yields_to_hint;
                    doubts.entry(&row.parent).or_insert(Doubt {
                        why: why.into(),
                        yields_to_hint,
                    });
                }
            }
            if doubts.len() == before {
                break;
            }
        }
        for ((schema, name), doubt) in doubts {
            self.relation(schema, name).doubt.get_or_insert(doubt);
        }
    }
}

fn is_it(function: &Function, row: &FunctionRow) -> bool {
    *function.schema == *row.schema && *function.arguments == *row.arguments
}

fn what_it_does(row: &RelationRow, reason: &Reason) -> String {
    match row.kind.as_str() {
        "v" => format!("is a view: {reason}"),
        _ => format!("has row security: {reason}"),
    }
}

/// The statements of a function's body: `RETURN expression` and `BEGIN ATOMIC … END` are SQL only there (manual, CREATE FUNCTION).
fn statements_of(body: &str) -> String {
    use crate::sql::statement::Statements;
    let text = body.trim();
    let mut statements = Statements::new(text.as_bytes(), PlainStrings::Conforming);
    match statements.next() {
        Some(first) if first.is_word(0, "return") => format!("SELECT {}", &text[first.tokens[0].end..]),
        Some(first) if first.is_word(0, "begin") && first.is_word(1, "atomic") => {
            let inner = &text[first.tokens[1].end..];
            let end = inner.to_ascii_lowercase().rfind("end").unwrap_or(inner.len());
            inner[..end].to_owned()
        }
        _ => text.to_owned(),
    }
}
