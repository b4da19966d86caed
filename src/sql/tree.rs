//! The second reading of what may be a read: the syntax tree that sqlparser makes of the simplified tokens.

use std::ops::ControlFlow;

use sqlparser::ast::{
    AccessExpr, DataType, Expr, Function, FunctionArguments, Ident, ObjectName, Query, Select, SetExpr, Statement,
    TableAlias, TableFactor, Visit, Visitor, XmlTableColumnOption,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;

use super::SqlContext;
use super::class::Reason;
use super::names::{Catalog, Name, is_only_in_grammar};
use super::tokens::{Findings, field_reason, function_reason, type_is_known};

/// What the tree says.
#[derive(Debug)]
pub(crate) struct TreeReading {
    /// Reasons against a read.
    pub(crate) findings: Findings,
    /// Names that stand in front of a list of columns.
    pub(crate) aliases: Vec<String>,
    /// Names of relations, without their schemas.
    pub(crate) relations: Vec<String>,
}

/// How deep sqlparser may recurse on the caller's stack. Real statements hardly ever need more (none of 10,675 from PostgreSQL's
/// regression suite does), and a debug build's frames are so large that 16 overflow 1 MiB.
const SHALLOW: usize = 12;

/// How deep it may recurse where it has [`DEEP_STACK`] for itself: sqlparser's own default.
const DEEP: usize = 50;

const DEEP_STACK: usize = 16 << 20;

/// Parses one statement to the end of the tokens that are made of it. `None` if sqlparser doesn't understand all of them.
///
/// What nests deeply is parsed again, on a thread of its own, which is slow (some 50 µs) and rare: the result is cached by the caller.
pub(crate) fn read(
    make_tokens: impl Fn() -> Option<Vec<Token>>,
    context: &SqlContext,
    catalog: &dyn Catalog,
) -> Option<TreeReading> {
    match read_to_depth(make_tokens()?, SHALLOW, context, catalog) {
        Ok(reading) => Some(reading),
        Err(ParserError::RecursionLimitExceeded) => std::thread::scope(|scope| {
            let tokens = make_tokens()?;
            let deep = std::thread::Builder::new()
                .name("sql-parse".to_owned())
                .stack_size(DEEP_STACK);
            let handle = deep.spawn_scoped(scope, || read_to_depth(tokens, DEEP, context, catalog).ok());
            handle.ok()?.join().ok()?
        }),
        Err(_) => None,
    }
}

fn read_to_depth(
    tokens: Vec<Token>,
    depth: usize,
    context: &SqlContext,
    catalog: &dyn Catalog,
) -> Result<TreeReading, ParserError> {
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect).with_recursion_limit(depth).with_tokens(tokens);
    let statement = parser.parse_statement()?;
    if parser.peek_token_ref().token != Token::EOF {
        return Err(ParserError::ParserError("more tokens follow".to_owned()));
    }
    let mut walk = Walk {
        context,
        catalog,
        findings: Findings::default(),
        aliases: Vec::new(),
        relations: Vec::new(),
    };
    let ControlFlow::Continue(()) = statement.visit(&mut walk);
    Ok(TreeReading {
        findings: walk.findings,
        aliases: walk.aliases,
        relations: walk.relations,
    })
}

struct Walk<'a> {
    context: &'a SqlContext,
    catalog: &'a dyn Catalog,
    findings: Findings,
    aliases: Vec<String>,
    relations: Vec<String>,
}

impl Walk<'_> {
    fn call(&mut self, name: &ObjectName, arguments: Option<usize>) {
        let parts: Option<Vec<String>> = name.0.iter().map(|part| part.as_ident().map(folded)).collect();
        let reason = match parts.as_deref() {
            Some([name]) if is_expression_keyword(name) => None,
            Some([name]) => self.called(Name { schema: None, name }, arguments),
            Some([schema, name]) => self.called(
                Name {
                    schema: Some(schema),
                    name,
                },
                arguments,
            ),
            _ => Some(Reason::UnknownFunction { name: name.to_string() }),
        };
        if let Some(reason) = reason {
            self.findings.add(reason);
        }
    }

    fn called(&mut self, name: Name<'_>, arguments: Option<usize>) -> Option<Reason> {
        // Of SQL that is given as text only the tokens know the text.
        let reason = function_reason(name, arguments, self.context, self.catalog)
            .filter(|reason| !matches!(reason, Reason::EmbeddedSql { .. }));
        if matches!(reason, Some(Reason::VolatileFunction { .. })) {
            self.findings
                .settings
                .extend(self.catalog.settings_left(name, arguments));
        }
        reason
    }

    fn function(&mut self, function: &Function) {
        let arguments = match &function.args {
            FunctionArguments::List(list) => Some(list.args.len()),
            FunctionArguments::None | FunctionArguments::Subquery(_) => None,
        };
        self.call(&function.name, arguments);
    }

    /// What may be functions, called as if they were fields.
    fn fields(&mut self, chain: &[AccessExpr]) {
        for access in chain {
            if let AccessExpr::Dot(Expr::Identifier(field)) = access
                && let Some(reason) = field_reason(&folded(field), self.context, self.catalog)
            {
                self.findings.add(reason);
            }
        }
    }

    fn data_type(&mut self, data_type: &DataType) {
        let written = data_type.to_string();
        if !self.type_is_known(&written) {
            self.findings.add(Reason::UnknownType { name: written });
        }
    }

    /// A type as sqlparser writes it: `TIMESTAMP(3) WITH TIME ZONE`, `pg_catalog.int4[]`, `"char"`.
    fn type_is_known(&self, written: &str) -> bool {
        let mut name = written.to_owned();
        while let (Some(open), Some(close)) = (name.find('('), name.find(')')) {
            if close < open {
                return false;
            }
            name.replace_range(open..=close, "");
        }
        let name = name.split('[').next().unwrap_or_default().trim();
        let (schema, name) = match name.split_once('.') {
            Some((schema, name)) => (Some(unquoted(schema)), name),
            None => (None, name),
        };
        let known = Name {
            schema: schema.as_deref(),
            name: &unquoted(name),
        };
        !(name.starts_with('"') && is_only_in_grammar(known.name)) && type_is_known(known, self.context, self.catalog)
    }

    fn alias(&mut self, alias: Option<&TableAlias>) {
        let Some(alias) = alias else { return };
        if !alias.columns.is_empty() {
            self.aliases.push(folded(&alias.name));
        }
        for column in &alias.columns {
            if let Some(data_type) = &column.data_type {
                self.data_type(data_type);
            }
        }
    }
}

/// One part of a type's name, folded unless it is quoted.
fn unquoted(part: &str) -> String {
    match part.strip_prefix('"') {
        Some(quoted) => quoted.trim_end_matches('"').to_owned(),
        None => part.to_ascii_lowercase(),
    }
}

fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        None => ident.value.to_ascii_lowercase(),
        Some(_) => ident.value.clone(),
    }
}

/// What the grammar knows by itself and sqlparser takes for a function.
fn is_expression_keyword(name: &str) -> bool {
    [
        "array",
        "coalesce",
        "current_catalog",
        "current_date",
        "current_role",
        "current_time",
        "current_timestamp",
        "current_user",
        "extract",
        "greatest",
        "grouping",
        "least",
        "localtime",
        "localtimestamp",
        "normalize",
        "nullif",
        "overlay",
        "position",
        "row",
        "session_user",
        "substring",
        "trim",
        "user",
        "xmlattributes",
        "xmlconcat",
        "xmlelement",
        "xmlexists",
        "xmlforest",
        "xmlparse",
        "xmlpi",
        "xmlroot",
    ]
    .contains(&name)
}

impl Visitor for Walk<'_> {
    type Break = std::convert::Infallible;

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<Self::Break> {
        if !matches!(statement, Statement::Query(_)) {
            self.findings.add(Reason::DataModifyingCte);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
        if !query.locks.is_empty() {
            self.findings.add(Reason::LockingClause);
        }
        if query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty()
        {
            self.findings.add(Reason::Unparsed);
        }
        if matches!(
            *query.body,
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_)
        ) {
            self.findings.add(Reason::DataModifyingCte);
        }
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.alias(Some(&cte.alias));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Self::Break> {
        if select.into.is_some() {
            self.findings.add(Reason::SelectInto);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Self::Break> {
        if let Some(name) = relation.0.last().and_then(|part| part.as_ident()) {
            self.relations.push(folded(name));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Self::Break> {
        match factor {
            TableFactor::Table { name, alias, args, .. } => {
                if let Some(args) = args {
                    self.call(name, Some(args.args.len()));
                }
                self.alias(alias.as_ref());
            }
            TableFactor::Function { name, args, alias, .. } => {
                self.call(name, Some(args.len()));
                self.alias(alias.as_ref());
            }
            TableFactor::Derived { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::UNNEST { alias, .. }
            | TableFactor::NestedJoin { alias, .. } => self.alias(alias.as_ref()),
            TableFactor::XmlTable { columns, alias, .. } => {
                for column in columns {
                    if let XmlTableColumnOption::NamedInfo { r#type, .. } = &column.option {
                        self.data_type(r#type);
                    }
                }
                self.alias(alias.as_ref());
            }
            // What other databases have.
            _ => self.findings.add(Reason::Unparsed),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
        match expr {
            Expr::Function(function) => self.function(function),
            Expr::CompoundFieldAccess { access_chain, .. } => self.fields(access_chain),
            Expr::Cast { data_type, .. } => self.data_type(data_type),
            Expr::TypedString(typed) => self.data_type(&typed.data_type),
            Expr::Convert { .. } => self.findings.add(Reason::Unparsed),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
