//! The first reading of what may be a read: its tokens, without a parser.
//!
//! Every token has to be harmless where it stands. What can't be told from tokens alone (whether `x (` is a call, or an alias with
//! a list of columns) is left to the syntax tree as [`Findings::unresolved`].

use super::class::Reason;
use super::lexer::Kind;
use super::names::{BuiltIn, Catalog, FunctionRoute, Name, SEQUENCE_COLUMNS, is_only_in_grammar};
use super::rules::is_temporary_schema;
use super::statement::Statement;
use super::{SqlContext, embedded};

/// What was found against a statement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    /// The first reason that a hint can't overrule.
    pub(crate) hard: Option<Reason>,
    /// The first reason that a `standby` hint overrules.
    pub(crate) soft: Option<Reason>,
    /// The first reason that counts where the statement is only planned: a function or a relation that is known, and no read.
    pub(crate) planned: Option<Reason>,
    /// Uses the clock.
    pub(crate) now_sensitive: bool,
    /// Some reason, whether or not it is the strongest, is code of which nothing is known.
    pub(crate) unknown_code: bool,
    /// Some reason is that it creates a table.
    pub(crate) creates_table: bool,
    /// Some reason is code that may draw from sequences, even if it does nothing else to the session.
    pub(crate) may_draw: bool,
    /// Settings that functions may leave changed.
    pub(crate) settings: Vec<Box<str>>,
    /// Names in front of a parenthesis that are no known function: the tree must know them as aliases.
    pub(crate) unresolved: Vec<String>,
    /// Names of relations that aren't read safely: the tree must know them as something else.
    pub(crate) relations: Vec<(String, Reason)>,
}

impl Findings {
    /// Notes a reason against the statement.
    pub(crate) fn add(&mut self, reason: Reason) {
        self.unknown_code |= reason.runs_unknown_code();
        self.creates_table |= reason == Reason::SelectInto;
        self.may_draw |= matches!(reason, Reason::VolatileFunction { .. });
        if self.planned.is_none() && reason.holds_when_planned() {
            self.planned = Some(reason.clone());
        }
        let place = if reason.yields_to_hint() {
            &mut self.soft
        } else {
            &mut self.hard
        };
        place.get_or_insert(reason);
    }

    /// Whatever may be a relation's name is one.
    pub(crate) fn without_tree(mut self) -> Self {
        for (_, reason) in std::mem::take(&mut self.relations) {
            self.add(reason);
        }
        self
    }

    /// The strongest reason.
    pub(crate) fn reason(self) -> Option<Reason> {
        self.hard.or(self.soft)
    }
}

/// Reads all tokens of a statement that begins with SELECT, WITH, VALUES or TABLE.
pub(crate) fn scan(statement: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Findings {
    Scan::new(statement, context, catalog, Language::Sql).all()
}

/// Reads all tokens of a statement of PL/pgSQL: INTO names variables there, and END ends blocks.
pub(crate) fn scan_plpgsql(statement: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Findings {
    let mut findings = Scan::new(statement, context, catalog, Language::PlPgSql).all();
    for name in std::mem::take(&mut findings.unresolved) {
        findings.add(Reason::UnknownFunction { name });
    }
    findings
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Sql,
    PlPgSql,
}

struct Scan<'a> {
    statement: &'a Statement<'a>,
    context: &'a SqlContext,
    catalog: &'a dyn Catalog,
    language: Language,
    findings: Findings,
    open_cases: usize,
}

impl<'a> Scan<'a> {
    fn new(
        statement: &'a Statement<'a>,
        context: &'a SqlContext,
        catalog: &'a dyn Catalog,
        language: Language,
    ) -> Scan<'a> {
        Scan {
            statement,
            context,
            catalog,
            language,
            findings: Findings::default(),
            open_cases: 0,
        }
    }

    fn all(mut self) -> Findings {
        for index in 0..self.statement.len() {
            self.token(index);
        }
        self.findings
    }

    fn token(&mut self, index: usize) {
        let Some(kind) = self.statement.kind(index) else { return };
        match kind {
            Kind::Word => {
                if !self.behind_dot(index) {
                    self.keyword(index);
                }
                self.name(index);
            }
            Kind::Quoted => self.name(index),
            Kind::Operator => self.operator(index, None),
            Kind::Cast => self.cast(index + 1),
            // Between the bounds of a loop.
            Kind::Other if self.language == Language::PlPgSql && self.statement.bytes(index) == b".." => {}
            Kind::UnicodeQuoted
            | Kind::BackslashString
            | Kind::Unterminated
            | Kind::Other
            | Kind::Hint(_)
            | Kind::Punct(b';') => self.findings.add(Reason::Unparsed),
            Kind::String => self.string(index),
            Kind::Number | Kind::Param | Kind::Punct(_) | Kind::ColonEquals => {}
        }
    }

    fn behind_dot(&self, index: usize) -> bool {
        index > 0 && self.statement.is_punct(index - 1, b'.')
    }

    fn behind_word(&self, index: usize, word: &str) -> bool {
        index > 0 && self.statement.is_word(index - 1, word)
    }

    fn string(&mut self, index: usize) {
        if super::names::literal_is_node_local(self.statement.bytes(index)) {
            self.findings.add(Reason::NodeLocal {
                name: "a named source".to_owned(),
            });
        }
        if index > 0 && self.statement.is_punct(index - 1, b')') {
            self.behind_modifiers(index - 1);
        }
    }

    /// `name (…) 'literal'`: a type with modifiers, whatever function has its name.
    fn behind_modifiers(&mut self, close: usize) {
        let open = self.statement.parenthesis_before(close);
        let Some(name) = open.and_then(|open| open.checked_sub(1)) else {
            return self.findings.add(Reason::Unparsed);
        };
        // `x OPERATOR(pg_catalog.~) 'a'`, `character varying(3) 'a'`
        if !self.statement.is_any_word(name, &["operator", "varying"]) {
            let called = self.statement.identifier(name);
            self.before_string(name, &called);
        }
    }

    fn behind_string(&self, index: usize) -> bool {
        index > 0 && self.statement.kind(index - 1) == Some(Kind::String)
    }

    /// Words that do something by themselves.
    fn keyword(&mut self, index: usize) {
        let labelled = self.behind_word(index, "as");
        match self.statement.identifier(index).as_ref() {
            "into" | "end" if self.language == Language::PlPgSql => {}
            "execute" if self.language == Language::PlPgSql => self.findings.add(Reason::EmbeddedSql {
                name: "EXECUTE".to_owned(),
            }),
            "into" => self.findings.add(Reason::SelectInto),
            "for" if self.statement.is_any_word(index + 1, &["update", "share", "no", "key"]) => {
                self.findings.add(Reason::LockingClause);
            }
            "insert" | "update" | "delete" | "merge" if !labelled => self.findings.add(Reason::DataModifyingCte),
            "case" if !labelled => self.open_cases += 1,
            "end" if !labelled => match self.open_cases.checked_sub(1) {
                Some(left) => self.open_cases = left,
                // A bare label `END`, where the parser would stop.
                None => self.findings.add(Reason::Unparsed),
            },
            // TREAT(x AS f) calls f.
            "treat" if self.statement.is_punct(index + 1, b'(') => self.findings.add(Reason::Unparsed),
            "current_date" | "current_time" | "current_timestamp" | "localtime" | "localtimestamp" => {
                self.findings.now_sensitive = true;
            }
            _ => {}
        }
    }

    /// Any name, quoted or not.
    fn name(&mut self, index: usize) {
        let name = self.statement.identifier(index);
        if is_temporary_schema(&name) {
            self.findings.add(Reason::TemporarySchema);
        }
        if self.statement.is_punct(index + 1, b'(') {
            self.before_parenthesis(index, &name);
            return;
        }
        if self.behind_dot(index) {
            self.field(index, &name);
        }
        let schema = self.behind_dot(index).then(|| self.schema_before(index));
        let relation = Name {
            // More parts than two may have a schema anywhere.
            schema: schema.as_deref().filter(|schema| !schema.is_empty()),
            name: &name,
        };
        let doubt = self.catalog.relation_doubt(relation);
        if let Some(reason @ Reason::Relation { .. }) = doubt {
            // A column or an alias may have the name too.
            if self.is_relation(index) {
                self.findings.add(reason);
            } else {
                self.findings.relations.push((name.into_owned(), reason));
            }
        } else if let Some(reason) = doubt {
            self.findings.add(reason);
        } else if SEQUENCE_COLUMNS.contains(&name.as_ref()) {
            self.findings.add(Reason::SequenceState {
                name: name.into_owned(),
            });
        } else if self.statement.kind(index + 1) == Some(Kind::String) {
            self.before_string(index, &name);
        }
    }

    /// Whether a name, perhaps behind its schema, stands where only a relation can.
    fn is_relation(&self, index: usize) -> bool {
        let mut first = index;
        while first >= 2 && self.behind_dot(first) {
            first -= 2;
        }
        ["from", "join", "only", "table"]
            .iter()
            .any(|word| self.behind_word(first, word))
    }

    /// A field of a value, or, if the value has none of that name, a function called with it: `('s'::regclass).nextval`, `(1).f`. In `t.f`
    /// it would be called with a row of t, as only a database's own functions are.
    fn field(&mut self, index: usize, name: &str) {
        let Some(reason) = field_reason(name, self.context, self.catalog) else {
            return;
        };
        let may_call = match &reason {
            Reason::VolatileFunction { signature, .. } if !self.statement.is_of_value(index) => {
                takes_row(signature) && !self.is_relation(index)
            }
            _ => self.statement.is_of_value(index),
        };
        if !may_call {
            return;
        }
        if matches!(reason, Reason::VolatileFunction { .. }) {
            let called = Name { schema: None, name };
            self.findings
                .settings
                .extend(self.catalog.settings_left(called, Some(1)));
        }
        self.findings.add(reason);
    }

    fn before_parenthesis(&mut self, index: usize, name: &str) {
        let unquoted = self.statement.kind(index) == Some(Kind::Word);
        let qualified = self.behind_dot(index);
        if unquoted && !qualified {
            if name == "operator" {
                return self.operator_call(index);
            }
            if self.behind_word(index, "tablesample") {
                if !matches!(name, "system" | "bernoulli") {
                    self.findings.add(Reason::UnknownFunction { name: name.to_owned() });
                }
                return;
            }
            let precision = name == "second" && (self.behind_word(index, "to") || self.behind_string(index));
            // `f(x) AS g(y)`, without AS.
            let alias = index > 0 && self.statement.is_punct(index - 1, b')');
            let control = self.language == Language::PlPgSql && (alias || PLPGSQL_BEFORE_PARENTHESIS.contains(&name));
            if precision || takes_parenthesis(name) || control {
                return;
            }
        }
        let schema = qualified.then(|| self.schema_before(index));
        let called = Name {
            schema: schema.as_deref(),
            name,
        };
        let arguments = argument_count(self.statement, index + 1);
        self.findings.now_sensitive |= CLOCKS.contains(&name);
        match function_reason(called, arguments, self.context, self.catalog) {
            None => {}
            Some(Reason::UnknownFunction { .. }) if !qualified && self.is_type(index) => {}
            Some(Reason::UnknownFunction { .. }) if !qualified => self.findings.unresolved.push(name.to_owned()),
            Some(Reason::EmbeddedSql { .. })
                if embedded::reads_only(self.statement, name, index + 1, self.context, self.catalog) => {}
            Some(reason) => {
                if matches!(reason, Reason::VolatileFunction { .. }) {
                    self.findings
                        .settings
                        .extend(self.catalog.settings_left(called, arguments));
                }
                self.findings.add(reason);
            }
        }
    }

    fn is_type(&self, index: usize) -> bool {
        let name = self.statement.identifier(index);
        (self.context.pg_catalog_first || self.catalog.knows_all_schemas())
            && self.catalog.type_is_safe(Name {
                schema: None,
                name: &name,
            })
    }

    /// The schema in `schema.name`, where `index` is the name; empty, and so unknown, where there are more parts.
    fn schema_before(&self, index: usize) -> String {
        let Some(schema) = index.checked_sub(2) else {
            return String::new();
        };
        if self.behind_dot(schema) {
            String::new()
        } else {
            self.statement.identifier(schema).into_owned()
        }
    }

    /// `name 'literal'`: a keyword, or a type.
    fn before_string(&mut self, index: usize, name: &str) {
        let schema = self.behind_dot(index).then(|| self.schema_before(index));
        let unquoted = self.statement.kind(index) == Some(Kind::Word);
        let control = self.language == Language::PlPgSql
            && (PLPGSQL_BEFORE_STRING.contains(&name) || self.behind_word(index, "raise"));
        let known = schema.is_none()
            && unquoted
            && (control || WORDS_BEFORE_STRING.contains(&name) || self.is_keyword_before_string(index, name));
        let called = Name {
            schema: schema.as_deref(),
            name,
        };
        let misspelt = !unquoted && is_only_in_grammar(name);
        if !known && (misspelt || !type_is_known(called, self.context, self.catalog)) {
            self.findings.add(Reason::UnknownType { name: name.to_owned() });
        }
    }

    /// Whether a word that could name a type is a keyword where it stands in front of a string.
    fn is_keyword_before_string(&self, index: usize, name: &str) -> bool {
        let Some(before) = index.checked_sub(1) else {
            return false;
        };
        let behind = |words: &[&str]| self.statement.is_any_word(before, words);
        let inside = |calls: &[&str]| {
            let open = self.statement.enclosing_parenthesis(index);
            open.is_some_and(|open| open > 0 && self.statement.is_any_word(open - 1, calls))
        };
        match name {
            "by" => behind(&["order", "group", "partition"]),
            "ref" | "value" => behind(&["by"]) && before > 0 && self.behind_word(before, "passing"),
            "varying" => behind(&["character", "char", "bit", "nchar"]),
            "zone" => behind(&["time"]),
            "content" | "document" => self.statement.is_punct(before, b'(') && inside(&["xmlparse", "xmlserialize"]),
            "version" => self.statement.is_punct(before, b',') && inside(&["xmlroot"]),
            "passing" => inside(&["xmlexists", "xmltable"]),
            "path" => inside(&["xmltable"]),
            "uescape" => self.statement.kind(before) == Some(Kind::String),
            "like" | "ilike" if behind(&["not"]) => behind_operand(self.statement, before),
            "like" | "ilike" | "similar" | "escape" => behind_operand(self.statement, index),
            _ => false,
        }
    }

    fn cast(&mut self, index: usize) {
        let found = match type_name(self.statement, index) {
            Some(found) => found,
            None => return self.findings.add(Reason::Unparsed),
        };
        let called = Name {
            schema: found.schema.as_deref(),
            name: &found.name,
        };
        if !type_is_known(called, self.context, self.catalog) && !self.takes_no_scalar(index - 1) {
            self.findings.add(Reason::UnknownType { name: found.name });
        }
    }

    /// Whether hardly anything but a row type, a range or an enum fits behind the `::` at `cast`, as in `jsonb_populate_record(NULL::t,
    /// …)`, `enum_last('a'::t)`, `'[a,b)'::t` and `ROW(1, 2)::t`: making one of these runs nothing. A domain is possible even here,
    /// and its CHECK would run; a standby then refuses what it writes, as it does for a view that text can't see through.
    fn takes_no_scalar(&self, cast: usize) -> bool {
        const ROW_TAKERS: &[&str] = &[
            "json_populate_record",
            "json_populate_recordset",
            "jsonb_populate_record",
            "jsonb_populate_recordset",
        ];
        const ENUM_TAKERS: &[&str] = &["enum_first", "enum_last", "enum_range"];
        let Some(value) = cast.checked_sub(1) else { return false };
        let statement = self.statement;
        if statement.is_punct(value, b']') {
            // An array of no elements.
            return value >= 2 && statement.is_punct(value - 1, b'[') && statement.is_word(value - 2, "array");
        }
        if statement.kind(value) == Some(Kind::String) && is_structured(statement.bytes(value)) {
            return true;
        }
        if statement.is_word(value, "null") || statement.kind(value) == Some(Kind::String) {
            let first = value >= 2 && statement.is_punct(value - 1, b'(');
            let further = value >= 4 && statement.is_punct(value - 1, b',');
            return (first && statement.is_any_word(value - 2, ENUM_TAKERS))
                || (first && statement.is_word(value, "null") && statement.is_any_word(value - 2, ROW_TAKERS))
                || (further && statement.is_punct(value - 3, b'(') && statement.is_word(value - 4, "enum_range"));
        }
        let open = statement.parenthesis_before(value);
        open.is_some_and(|open| open >= 1 && statement.is_word(open - 1, "row") && !self.behind_dot(open - 1))
    }

    fn operator(&mut self, index: usize, schema: Option<&str>) {
        let written = self.statement.written(index, index + 1);
        let known = self.catalog.operator_is_safe(Name { schema, name: &written });
        let trusted = schema.is_some() || self.context.pg_catalog_first || self.catalog.knows_all_schemas();
        // `=>` names an argument.
        if !(known && trusted) && written != "=>" {
            self.findings.add(Reason::UnknownOperator {
                name: written.into_owned(),
            });
        }
    }

    /// OPERATOR(schema.+)
    fn operator_call(&mut self, index: usize) {
        let schema = self.statement.identifier(index + 2);
        let well_formed = self.statement.is_punct(index + 3, b'.')
            && self.statement.kind(index + 4) == Some(Kind::Operator)
            && self.statement.is_punct(index + 5, b')');
        if well_formed {
            self.operator(index + 4, Some(&schema));
        } else if self.statement.kind(index + 2) != Some(Kind::Operator) {
            self.findings.add(Reason::Unparsed);
        }
    }
}

/// Whether a string reads as a range, a multirange or a row: `'[a,b)'`, `'{(1,2)}'`, `'(1,x)'`.
pub(crate) fn is_structured(literal: &[u8]) -> bool {
    let Some(inner) = literal.strip_prefix(b"'").and_then(|rest| rest.strip_suffix(b"'")) else {
        return false;
    };
    match inner.trim_ascii() {
        [b'{', b'}'] | [b'{', b'[' | b'(', .., b']' | b')', b'}'] => true,
        [b'[' | b'(', within @ .., b']' | b')'] => within.contains(&b','),
        _ => false,
    }
}

/// Whether the token before this one may end an expression, so that none begins here.
fn behind_operand(statement: &Statement<'_>, index: usize) -> bool {
    let Some(before) = index.checked_sub(1) else {
        return false;
    };
    match statement.kind(before) {
        Some(Kind::String | Kind::Number | Kind::Param | Kind::Quoted | Kind::Punct(b')' | b']')) => true,
        Some(Kind::Word) => {
            let word = statement.identifier(before);
            before > 0 && statement.is_punct(before - 1, b'.') || !EXPRESSION_FOLLOWS.contains(&word.as_ref())
        }
        _ => false,
    }
}

/// Why a call of this function is no read.
pub(crate) fn function_reason(
    name: Name<'_>,
    arguments: Option<usize>,
    context: &SqlContext,
    catalog: &dyn Catalog,
) -> Option<Reason> {
    let owned = || name.name.to_owned();
    let route = catalog.function(name, arguments);
    Some(match route {
        FunctionRoute::Safe if name.schema.is_some() || context.pg_catalog_first || catalog.knows_all_schemas() => {
            return None;
        }
        FunctionRoute::Volatile | FunctionRoute::VolatileWithoutTraces => Reason::VolatileFunction {
            signature: catalog.unsafe_signature(name, arguments).unwrap_or_else(owned),
            leaves_traces: route == FunctionRoute::Volatile,
        },
        FunctionRoute::Safe | FunctionRoute::Unknown => Reason::UnknownFunction { name: owned() },
        FunctionRoute::Writes | FunctionRoute::MovesSequence => Reason::Function { name: owned() },
        FunctionRoute::Admin => Reason::ServerAction { name: owned() },
        FunctionRoute::NodeLocal => Reason::NodeLocal { name: owned() },
        FunctionRoute::RunsSql => Reason::EmbeddedSql { name: owned() },
        FunctionRoute::AdvisorySession | FunctionRoute::AdvisoryTransaction | FunctionRoute::AdvisoryUnlock => {
            Reason::AdvisoryLock { name: owned() }
        }
        FunctionRoute::Session
        | FunctionRoute::SessionSequence
        | FunctionRoute::SetConfig
        | FunctionRoute::SetSeed
        | FunctionRoute::Pinning => Reason::SessionFunction { name: owned() },
    })
}

/// Why reading a field of this name from a value is no read: there may be a function instead. What isn't known is taken for a field.
pub(crate) fn field_reason(name: &str, context: &SqlContext, catalog: &dyn Catalog) -> Option<Reason> {
    let reason = function_reason(Name { schema: None, name }, Some(1), context, catalog)?;
    (!matches!(reason, Reason::UnknownFunction { .. })).then_some(reason)
}

/// Whether the first argument of a signature may be a relation's row: it is of no built-in type.
fn takes_row(signature: &str) -> bool {
    let arguments = signature.split_once('(').map_or("", |(_, arguments)| arguments);
    let first = arguments.split([',', ')']).next().unwrap_or_default().trim();
    let built_in = Name {
        schema: None,
        name: first.trim_end_matches("[]"),
    };
    first == "record" || !BuiltIn.type_is_safe(built_in)
}

/// Whether a type is known to be safe. pg_catalog's types hide behind another schema's as its functions do.
pub(crate) fn type_is_known(name: Name<'_>, context: &SqlContext, catalog: &dyn Catalog) -> bool {
    let by_path = context.pg_catalog_first || catalog.knows_all_schemas();
    (name.schema.is_some() || by_path || GRAMMAR_TYPES.contains(&name.name)) && catalog.type_is_safe(name)
}

/// A type as it is written behind `::`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TypeName {
    pub(crate) schema: Option<String>,
    /// Its words, with single blanks, without modifiers and array bounds.
    pub(crate) name: String,
    /// The index behind it.
    pub(crate) end: usize,
}

/// Reads a type at token `index`.
pub(crate) fn type_name(statement: &Statement<'_>, index: usize) -> Option<TypeName> {
    if !statement.is_name(index) || statement.kind(index) == Some(Kind::UnicodeQuoted) {
        return None;
    }
    let mut found = TypeName {
        schema: None,
        name: statement.identifier(index).into_owned(),
        end: index + 1,
    };
    if statement.is_punct(found.end, b'.') {
        found.schema = Some(std::mem::replace(
            &mut found.name,
            statement.identifier(index + 2).into_owned(),
        ));
        found.end = index + 3;
        if !statement.is_name(index + 2) || statement.is_punct(found.end, b'.') {
            return None;
        }
    } else if statement.kind(index) == Some(Kind::Word) {
        further_words(statement, &mut found);
    }
    if found.schema.is_none() && statement.kind(index) == Some(Kind::Quoted) && is_only_in_grammar(&found.name) {
        // No type of pg_catalog's.
        found.name = format!("\"{}\"", found.name);
    }
    modifiers(statement, &mut found);
    if found.schema.is_none() && matches!(found.name.as_str(), "time" | "timestamp") {
        for zone in ["with", "without"] {
            if statement.is_word(found.end, zone)
                && statement.is_word(found.end + 1, "time")
                && statement.is_word(found.end + 2, "zone")
            {
                found.name = format!("{} {zone} time zone", found.name);
                found.end += 3;
            }
        }
    }
    if found.schema.is_none() && found.name == "interval" {
        found.end = behind_interval_fields(statement, found.end);
    }
    array_bounds(statement, &mut found);
    Some(found)
}

fn further_words(statement: &Statement<'_>, found: &mut TypeName) {
    let pairs: &[(&str, &[&str])] = &[
        ("double", &["precision"]),
        ("bit", &["varying"]),
        ("national", &["character", "char"]),
        ("character", &["varying"]),
        ("char", &["varying"]),
        ("nchar", &["varying"]),
        ("national character", &["varying"]),
        ("national char", &["varying"]),
    ];
    for (first, seconds) in pairs {
        if found.name == *first && statement.is_any_word(found.end, seconds) {
            found.name = format!("{first} {}", statement.identifier(found.end));
            found.end += 1;
        }
    }
}

/// `(10, 2)`
fn modifiers(statement: &Statement<'_>, found: &mut TypeName) {
    if !statement.is_punct(found.end, b'(') {
        return;
    }
    let end = statement.behind_parenthesis(found.end);
    let plain = (found.end + 1..end.saturating_sub(1)).all(|index| {
        matches!(
            statement.kind(index),
            Some(Kind::Number | Kind::String | Kind::Word | Kind::Punct(b','))
        ) || statement.is_operator(index, "-")
    });
    if plain {
        found.end = end;
    }
}

fn array_bounds(statement: &Statement<'_>, found: &mut TypeName) {
    if statement.is_word(found.end, "array") {
        found.end += 1;
    }
    while statement.is_punct(found.end, b'[') {
        let bound = usize::from(statement.kind(found.end + 1) == Some(Kind::Number));
        if !statement.is_punct(found.end + 1 + bound, b']') {
            return;
        }
        found.end += 2 + bound;
    }
}

/// The index behind `YEAR TO MONTH`, `SECOND(3)` and their like.
pub(crate) fn behind_interval_fields(statement: &Statement<'_>, from: usize) -> usize {
    const FIELDS: &[&str] = &["year", "month", "day", "hour", "minute", "second"];
    if !statement.is_any_word(from, FIELDS) {
        return from;
    }
    let mut end = from + 1;
    if statement.is_word(end, "to") && statement.is_any_word(end + 1, FIELDS) {
        end += 2;
    }
    if statement.is_word(end - 1, "second")
        && statement.is_punct(end, b'(')
        && statement.kind(end + 1) == Some(Kind::Number)
        && statement.is_punct(end + 2, b')')
    {
        end += 3;
    }
    end
}

/// The number of arguments of a call whose parenthesis is token `open`.
fn argument_count(statement: &Statement<'_>, open: usize) -> Option<usize> {
    let (mut depth, mut commas) = (0usize, 0usize);
    for index in open..statement.len() {
        match statement.kind(index)? {
            Kind::Punct(b'(' | b'[') => depth += 1,
            Kind::Punct(b')' | b']') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(if index == open + 1 { 0 } else { commas + 1 });
                }
            }
            Kind::Punct(b',') if depth == 1 => commas += 1,
            // An array may stand for any number of arguments.
            Kind::Word if depth == 1 && statement.is_word(index, "variadic") => return None,
            _ => {}
        }
    }
    None
}

/// Unquoted words of the grammar that may stand in front of a parenthesis without calling anything that has a name, or calling
/// only what is built in.
pub(crate) fn takes_parenthesis(word: &str) -> bool {
    WORDS_BEFORE_PARENTHESIS.binary_search(&word).is_ok()
}

const WORDS_BEFORE_PARENTHESIS: &[&str] = &[
    "all",
    "and",
    "any",
    "array",
    "as",
    "asymmetric",
    "between",
    "both",
    "by",
    "case",
    "cast",
    "character",
    "coalesce",
    "columns",
    "cross",
    "cube",
    "current_time",
    "current_timestamp",
    "dec",
    "decimal",
    "default",
    "distinct",
    "else",
    "escape",
    "except",
    "exists",
    "extract",
    "fetch",
    "filter",
    "first",
    "float",
    "for",
    "from",
    "full",
    "greatest",
    "group",
    "grouping",
    "having",
    "ilike",
    "in",
    "inner",
    "intersect",
    "interval",
    "is",
    "join",
    "lateral",
    "leading",
    "least",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "materialized",
    "national",
    "natural",
    "nchar",
    "next",
    "normalize",
    "not",
    "nullif",
    "numeric",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "over",
    "overlaps",
    "overlay",
    "partition",
    "passing",
    "placing",
    "position",
    "precision",
    "range",
    "repeatable",
    "right",
    "rollup",
    "row",
    "rows",
    "select",
    "sets",
    "similar",
    "some",
    "substring",
    "symmetric",
    "table",
    "then",
    "time",
    "timestamp",
    "to",
    "trailing",
    "trim",
    "union",
    "using",
    "values",
    "variadic",
    "varying",
    "when",
    "where",
    "window",
    "xmlattributes",
    "xmlconcat",
    "xmlelement",
    "xmlexists",
    "xmlforest",
    "xmlnamespaces",
    "xmlparse",
    "xmlpi",
    "xmlroot",
    "xmlserialize",
    "xmltable",
    "zone",
];

/// Unquoted words that may stand in front of a string and can't be types. Others are keywords in some places only.
const WORDS_BEFORE_STRING: &[&str] = &[
    "all",
    "and",
    "as",
    "asymmetric",
    "between",
    "both",
    "case",
    "collate",
    "default",
    "distinct",
    "else",
    "except",
    "for",
    "from",
    "group",
    "having",
    "in",
    "leading",
    "limit",
    "not",
    "offset",
    "on",
    "or",
    "order",
    "placing",
    "precision",
    "returning",
    "select",
    "symmetric",
    "then",
    "to",
    "trailing",
    "values",
    "variadic",
    "when",
    "where",
    "with",
];

/// Unquoted words behind which an expression begins.
const EXPRESSION_FOLLOWS: &[&str] = &[
    "all",
    "and",
    "any",
    "array",
    "asymmetric",
    "between",
    "both",
    "by",
    "case",
    "collate",
    "default",
    "distinct",
    "else",
    "escape",
    "first",
    "for",
    "from",
    "groups",
    "having",
    "ilike",
    "in",
    "interval",
    "is",
    "leading",
    "like",
    "limit",
    "next",
    "not",
    "offset",
    "on",
    "or",
    "overlaps",
    "passing",
    "placing",
    "range",
    "returning",
    "rows",
    "select",
    "similar",
    "some",
    "symmetric",
    "then",
    "to",
    "trailing",
    "using",
    "values",
    "variadic",
    "when",
    "where",
];

/// Words of PL/pgSQL that may stand in front of a parenthesis that is no call's.
pub(crate) const PLPGSQL_BEFORE_PARENTHESIS: &[&str] = &[
    "assert", "elseif", "elsif", "if", "into", "perform", "query", "raise", "return", "set", "while",
];

/// Words of PL/pgSQL that may stand in front of a string without being a type.
const PLPGSQL_BEFORE_STRING: &[&str] = &[
    "assert", "elseif", "elsif", "if", "perform", "raise", "return", "sqlstate", "while",
];

/// Types that the grammar itself turns into pg_catalog's, whatever `search_path` says.
const GRAMMAR_TYPES: &[&str] = &[
    "bigint",
    "bit",
    "bit varying",
    "boolean",
    "char",
    "char varying",
    "character",
    "character varying",
    "dec",
    "decimal",
    "double precision",
    "float",
    "int",
    "integer",
    "interval",
    "national char",
    "national char varying",
    "national character",
    "national character varying",
    "nchar",
    "nchar varying",
    "numeric",
    "real",
    "smallint",
    "time",
    "time with time zone",
    "time without time zone",
    "timestamp",
    "timestamp with time zone",
    "timestamp without time zone",
    "varchar",
];

/// Functions that answer with the time.
const CLOCKS: &[&str] = &[
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "clock_timestamp",
    "timeofday",
    "age",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::lexer::PlainStrings;
    use crate::sql::statement::Statements;

    #[test]
    fn words_are_sorted() {
        assert!(WORDS_BEFORE_PARENTHESIS.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn types_are_read_to_their_end() {
        for (text, name, behind) in [
            ("int", "int", ""),
            ("numeric(10, -2) x", "numeric", "x"),
            ("pg_catalog.int4[] x", "int4", "x"),
            ("timestamp(3) with time zone y", "timestamp with time zone", "y"),
            ("character varying(3)[2][] y", "character varying", "y"),
            ("double precision y", "double precision", "y"),
            ("interval day to second(3) y", "interval", "y"),
            ("text[] || x", "text", "||"),
            ("\"char\" y", "char", "y"),
        ] {
            let statement = Statements::new(text.as_bytes(), PlainStrings::Conforming)
                .next()
                .expect("one statement");
            let found = type_name(&statement, 0).expect(text);
            assert_eq!(found.name, name);
            assert_eq!(statement.bytes(found.end), behind.as_bytes(), "{text}");
        }
    }
}
