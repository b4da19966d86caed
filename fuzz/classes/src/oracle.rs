//! What PostgreSQL's own tree says of a text: whether something in it is certainly no plain read, and what it does to the session.
//!
//! Written without a look at the product's rules: it walks everything, knows statements by an allow-list, names by `facts`, and
//! has no idea of tokens. Where both err in the same way, `--live` may still tell.

use serde_json::Value;

use crate::facts::Facts;
use crate::grammar;

/// As many arguments as `functions.tsv` gives to what takes any number.
const VARIADIC: usize = 999;

/// How sure an objection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sure {
    /// No plain read.
    Certainly,
    /// Depends on what the database has, or is an exception that the product makes on purpose: neither a violation nor a missed read.
    Perhaps,
}

/// Something that is no plain read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Objection {
    pub(crate) sure: Sure,
    pub(crate) kind: &'static str,
    pub(crate) detail: String,
}

/// What the oracle thinks of a text that parses.
#[derive(Debug, Default)]
pub(crate) struct Opinion {
    pub(crate) statements: usize,
    pub(crate) objections: Vec<Objection>,
    /// What the product must say that the text does to the session, as `pgsluice explain` words it; a `|` parts alternatives.
    pub(crate) effects: Vec<String>,
}

impl Opinion {
    /// The first certain objection.
    pub(crate) fn certain(&self) -> Option<&Objection> {
        self.objections
            .iter()
            .find(|objection| objection.sure == Sure::Certainly)
    }
}

/// The oracle's opinion; `None` where the text has a syntax error.
pub(crate) fn ask(sql: &str, facts: &Facts) -> Option<Opinion> {
    let statements = grammar::parse(sql)?;
    let mut walk = Walk {
        facts,
        mode: Mode::Executed,
        opinion: Opinion {
            statements: statements.len(),
            ..Opinion::default()
        },
    };
    for statement in &statements {
        walk.mode = Mode::Executed;
        walk.statement(statement);
    }
    Some(walk.opinion)
}

/// What happens to the part of the tree that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Executed,
    /// Behind EXPLAIN: what isn't volatile may be called to estimate.
    Planned,
    /// A definition, whose names are made or changed.
    Defined,
    /// The body of a definition.
    Stored,
}

struct Walk<'a> {
    facts: &'a Facts,
    mode: Mode,
    opinion: Opinion,
}

/// A node: its kind and its fields.
fn node(value: &Value) -> Option<(&str, &Value)> {
    let object = value.as_object()?;
    let (kind, fields) = object.iter().next()?;
    (object.len() == 1 && kind.starts_with(char::is_uppercase)).then_some((kind.as_str(), fields))
}

/// The strings of a list of String nodes.
fn strings(list: &Value) -> Vec<&str> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(|item| item["String"]["sval"].as_str()).collect()
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn is_true(value: &Value) -> bool {
    value.as_bool() == Some(true)
}

impl Walk<'_> {
    fn object(&mut self, kind: &'static str, detail: impl Into<String>) {
        self.note(Sure::Certainly, kind, detail.into());
    }

    fn note(&mut self, sure: Sure, kind: &'static str, detail: String) {
        self.opinion.objections.push(Objection { sure, kind, detail });
    }

    fn effect(&mut self, effect: impl Into<String>) {
        if self.mode == Mode::Executed {
            self.opinion.effects.push(effect.into());
        }
    }

    /// A statement at the top, or one that another executes.
    fn statement(&mut self, statement: &Value) {
        let Some((kind, fields)) = node(statement) else {
            return self.object("tree", "no node");
        };
        match kind {
            "SelectStmt" => {
                // The first SELECT of a UNION has it. Anywhere deeper it is an error.
                let mut first = fields;
                while !first["larg"].is_null() {
                    first = &first["larg"];
                }
                self.walk(&first["intoClause"]);
            }
            "ExplainStmt" => return self.explain(fields),
            "CopyStmt" => {
                let elsewhere =
                    is_true(&fields["is_from"]) || is_true(&fields["is_program"]) || fields["filename"].is_string();
                if elsewhere {
                    self.object("copy", "from, or to the server's own");
                }
                let is_select = fields["query"].get("SelectStmt").is_some();
                if !fields["query"].is_null() && !is_select {
                    return self.statement(&fields["query"]);
                }
            }
            // Its block is in another language, which this doesn't read.
            "DoStmt" => self.note(Sure::Perhaps, "block", kind.to_owned()),
            _ => {
                self.object("statement", kind);
                self.session(kind, fields);
                self.mode = match kind {
                    "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt" | "ExecuteStmt" | "DeclareCursorStmt" => {
                        Mode::Executed
                    }
                    "CreateTableAsStmt" if !is_true(&fields["into"]["skipData"]) => Mode::Executed,
                    "CreateFunctionStmt" | "RuleStmt" | "PrepareStmt" => Mode::Stored,
                    _ => Mode::Defined,
                };
            }
        }
        self.walk(fields);
    }

    fn explain(&mut self, fields: &Value) {
        let mut analyze = false;
        for option in items(&fields["options"]) {
            let option = &option["DefElem"];
            if option["defname"] == "analyze" || option["defname"] == "analyse" {
                analyze = option["defname"] == "analyze" && !is_off(&option["arg"]);
            }
        }
        let inner = node(&fields["query"]).map_or("", |(kind, _)| kind);
        if inner == "ExecuteStmt" {
            self.object("explain", "of EXECUTE");
        }
        if analyze {
            self.object("explain", "analyze");
            return self.statement(&fields["query"]);
        }
        if inner == "ExecuteStmt" {
            self.statement(&fields["query"]);
        }
        self.mode = Mode::Planned;
        self.walk(&fields["query"]);
    }

    /// What statements do to the session by themselves.
    fn session(&mut self, kind: &str, fields: &Value) {
        let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
        match kind {
            "VariableSetStmt" => {
                let name = text("name").to_lowercase();
                match fields["kind"].as_str().unwrap_or_default() {
                    "VAR_SET_VALUE" | "VAR_SET_CURRENT" if is_true(&fields["is_local"]) => {
                        self.effect(format!("set local {name}|set transaction|pin session_guc"));
                    }
                    "VAR_SET_VALUE" => self.effect(format!("set {name}|reset {name}|set transaction|pin session_guc")),
                    "VAR_SET_DEFAULT" | "VAR_RESET" if is_true(&fields["is_local"]) => {
                        self.effect(format!("set local {name}|reset {name}|set transaction|pin session_guc"));
                    }
                    "VAR_SET_DEFAULT" | "VAR_RESET" => {
                        self.effect(format!("reset {name}|set {name}|set transaction|pin session_guc"))
                    }
                    "VAR_RESET_ALL" => self.effect("reset all"),
                    _ => self.effect("set |reset |pin session_guc"),
                }
            }
            "PrepareStmt" => self.effect("pin prepare"),
            "ListenStmt" => self.effect("pin listen"),
            "LoadStmt" => self.effect("pin load"),
            "DeclareCursorStmt" if fields["options"].as_i64().unwrap_or_default() & 0x20 != 0 => {
                self.effect("pin with_hold_cursor")
            }
            "DiscardStmt" => self.effect("discard "),
            "ExecuteStmt" => self.effect(format!("execute {}", text("name"))),
            "DeallocateStmt" if fields["name"].is_string() => self.effect(format!("deallocate {}", text("name"))),
            "DeallocateStmt" => self.effect("deallocate all"),
            "TransactionStmt" => self.transaction(fields),
            _ => {}
        }
    }

    fn transaction(&mut self, fields: &Value) {
        let savepoint = fields["savepoint_name"].as_str().unwrap_or_default();
        match fields["kind"].as_str().unwrap_or_default() {
            "TRANS_STMT_BEGIN" | "TRANS_STMT_START" => self.effect("begin"),
            "TRANS_STMT_COMMIT" => self.effect("commit"),
            "TRANS_STMT_ROLLBACK" => self.effect("rollback"),
            "TRANS_STMT_SAVEPOINT" => self.effect(format!("savepoint {savepoint}")),
            "TRANS_STMT_RELEASE" => self.effect(format!("release {savepoint}")),
            "TRANS_STMT_ROLLBACK_TO" => self.effect(format!("rollback to {savepoint}")),
            "TRANS_STMT_PREPARE" => self.effect("prepare transaction"),
            _ => {}
        }
    }

    /// Everything below.
    fn walk(&mut self, value: &Value) {
        match value {
            Value::Array(list) => list.iter().for_each(|item| self.walk(item)),
            Value::Object(fields) => {
                if fields.contains_key("relname") {
                    self.relation(value);
                }
                if fields.contains_key("names") && fields.contains_key("typemod") {
                    self.data_type(value);
                }
                for (key, inner) in fields {
                    if key.starts_with(char::is_uppercase) {
                        self.node(key, inner);
                    } else if key != "intoClause" {
                        self.walk(inner);
                    } else if self.mode == Mode::Executed {
                        self.object("select into", "");
                    }
                }
            }
            _ => {}
        }
    }

    fn node(&mut self, kind: &str, fields: &Value) {
        match kind {
            "FuncCall" => self.function(fields),
            "A_Expr" => self.operator_of(fields),
            "SubLink" => self.operator(&fields["operName"]),
            "SortBy" => self.operator(&fields["useOp"]),
            "RangeTableSample" if self.mode == Mode::Executed => {
                let method = strings(&fields["method"]);
                if !matches!(
                    method[..],
                    ["system" | "bernoulli"] | ["pg_catalog", "system" | "bernoulli"]
                ) {
                    self.object("tablesample", method.join("."));
                }
            }
            "LockingClause" if self.mode == Mode::Executed => self.object("locking clause", ""),
            "ColumnRef" => self.column(fields),
            "A_Indirection" => self.functional_notation(fields),
            "TypeCast" => return self.cast(fields),
            "ExecuteStmt" if self.mode == Mode::Executed => self.session(kind, fields),
            _ if kind.ends_with("Stmt") && kind != "SelectStmt" && self.mode == Mode::Executed => {
                self.object("statement inside", kind);
            }
            _ => {}
        }
        self.walk(fields);
    }

    fn function(&mut self, fields: &Value) {
        let name = strings(&fields["funcname"]);
        let arguments = items(&fields["args"]);
        let open_ended = is_true(&fields["func_variadic"])
            || arguments.iter().any(|argument| argument.get("NamedArgExpr").is_some());
        // WITHIN GROUP (ORDER BY x): its arguments are the function's too.
        let ordered = if is_true(&fields["agg_within_group"]) {
            items(&fields["agg_order"]).len()
        } else {
            0
        };
        let count = if is_true(&fields["agg_star"]) {
            0
        } else {
            arguments.len() + ordered
        };
        if is_true(&fields["func_variadic"]) && name.last().is_some_and(|name| !self.takes_variadic(name)) {
            // An error, unless the database has such a function of its own.
            return self.note(Sure::Perhaps, "arity", name.join("."));
        }
        self.called(&name, (!open_ended).then_some(count));
    }

    /// Whether a built-in function may be called with VARIADIC; what isn't built in may.
    fn takes_variadic(&self, name: &str) -> bool {
        let known = self.facts.functions.get(name);
        known.is_none_or(|known| known.iter().any(|function| function.most == VARIADIC))
    }

    fn called(&mut self, name: &[&str], count: Option<usize>) {
        let (schema, bare) = match *name {
            [bare] => ("pg_catalog", bare),
            [schema, bare] => (schema, bare),
            _ => return self.unknown_function(name.join(".")),
        };
        let known = self.facts.functions.get(bare).map_or(&[][..], Vec::as_slice);
        let known: Vec<_> = known
            .iter()
            .filter(|function| function.schema == schema && function.verdict != "internal")
            .collect();
        if known.is_empty() {
            return self.unknown_function(name.join("."));
        }
        let fitting: Vec<_> = known
            .iter()
            .filter(|function| count.is_none_or(|count| (function.least..=function.most).contains(&count)))
            .collect();
        if fitting.is_empty() {
            return self.note(Sure::Perhaps, "arity", name.join("."));
        }
        let unsafe_one = fitting.iter().find(|function| function.verdict != "safe");
        if self.mode == Mode::Planned && unsafe_one.is_some_and(|function| function.verdict == "untried") {
            return self.note(Sure::Perhaps, "untried function", name.join("."));
        }
        if let Some(function) = unsafe_one
            && !(self.mode == Mode::Planned && function.volatile)
            && matches!(self.mode, Mode::Executed | Mode::Planned)
        {
            let detail = format!("{} ({})", function.name, function.verdict);
            self.object("function", detail);
        }
        self.effect_of_call(bare);
    }

    fn unknown_function(&mut self, name: String) {
        match self.mode {
            Mode::Executed => self.object("unknown function", name),
            // It may be IMMUTABLE, and then planning calls it: text can't know.
            Mode::Planned => self.note(Sure::Perhaps, "unknown function", name),
            Mode::Defined | Mode::Stored => {}
        }
    }

    fn effect_of_call(&mut self, name: &str) {
        match name {
            "pg_advisory_lock" | "pg_advisory_lock_shared" | "pg_try_advisory_lock" | "pg_try_advisory_lock_shared" => {
                self.effect("pin advisory_lock");
            }
            "setseed" => self.effect("pin setseed"),
            "pg_export_snapshot" | "pg_backup_start" => self.effect("pin server_resource"),
            "nextval" | "setval" => self.effect("nextval"),
            "set_config" => self.effect("set |pin session_guc"),
            _ => {}
        }
    }

    /// `(x).f` calls f, if x has no such column.
    fn functional_notation(&mut self, fields: &Value) {
        for name in strings(&fields["indirection"]) {
            let known = self.facts.functions.get(name).map_or(&[][..], Vec::as_slice);
            if known.is_empty() && self.mode != Mode::Stored {
                // A field, most likely; or a function of the database's own.
                self.note(Sure::Perhaps, "field", name.to_owned());
            }
            let bad = known.iter().any(|function| {
                function.schema == "pg_catalog"
                    && (function.least..=function.most).contains(&1)
                    && !matches!(function.verdict, "safe" | "internal" | "untried")
                    && !(self.mode == Mode::Planned && function.volatile)
            });
            if bad && matches!(self.mode, Mode::Executed | Mode::Planned) {
                self.object("functional notation", name);
                self.effect_of_call(name);
            }
        }
    }

    fn operator_of(&mut self, fields: &Value) {
        let by_name = matches!(
            fields["kind"].as_str().unwrap_or_default(),
            "AEXPR_OP" | "AEXPR_OP_ANY" | "AEXPR_OP_ALL"
        );
        if by_name {
            self.operator(&fields["name"]);
        }
    }

    fn operator(&mut self, name: &Value) {
        let name = strings(name);
        let known = match name[..] {
            [] => true,
            [bare] | ["pg_catalog", bare] => self.facts.operators.contains(bare),
            _ => false,
        };
        if !known && self.mode == Mode::Executed {
            self.object("operator", name.join("."));
        }
    }

    fn cast(&mut self, fields: &Value) {
        self.walk(&fields["arg"]);
        let of_null = is_true(&fields["arg"]["A_Const"]["isnull"]);
        let of_row = fields["arg"].get("RowExpr").is_some();
        let before = self.opinion.objections.len();
        self.walk(&fields["typeName"]);
        let string = &fields["arg"]["A_Const"]["sval"]["sval"];
        let of_structure = string
            .as_str()
            .is_some_and(|text| text.trim_ascii_start().starts_with(['[', '(', '{']));
        let of_nothing = fields["arg"]
            .get("A_ArrayExpr")
            .is_some_and(|array| array["elements"].is_null());
        if of_null || of_row || of_structure || of_nothing {
            // A row type, a range or an enum, most likely: the product takes them for what they look like.
            for objection in &mut self.opinion.objections[before..] {
                objection.sure = Sure::Perhaps;
            }
        }
    }

    fn data_type(&mut self, fields: &Value) {
        let name = strings(&fields["names"]);
        let known = match name[..] {
            [bare] => self.facts.types.contains(bare),
            // What isn't there is an error: nobody adds types to it.
            ["pg_catalog", _] => true,
            _ => self.facts.types.contains(name.join(".").as_str()),
        };
        if !known && self.mode == Mode::Executed {
            self.object("type", name.join("."));
        }
    }

    fn relation(&mut self, fields: &Value) {
        let schema = fields["schemaname"].as_str().unwrap_or_default();
        let name = fields["relname"].as_str().unwrap_or_default();
        if is_temporary(schema) {
            self.object("temporary schema", schema);
            self.opinion.effects.push("pin temporary_table".to_owned());
        }
        if fields["relpersistence"] == "t" && matches!(self.mode, Mode::Executed | Mode::Defined) {
            // Also of CREATE TEMP …, which is stored and not executed.
            self.opinion.effects.push("pin temporary_table".to_owned());
        }
        let in_catalog = matches!(schema, "" | "pg_catalog");
        if in_catalog && self.facts.node_local_views.contains(name) && self.mode == Mode::Executed {
            self.object("node-local view", name);
        }
    }

    fn column(&mut self, fields: &Value) {
        let name = strings(&fields["fields"]);
        if let Some(last @ ("last_value" | "is_called" | "log_cnt")) = name.last().copied()
            && self.mode == Mode::Executed
        {
            self.object("sequence column", last);
        }
        if name.len() > 1 && is_temporary(name[0]) {
            self.object("temporary schema", name[0]);
        }
    }
}

fn is_temporary(schema: &str) -> bool {
    schema == "pg_temp"
        || schema
            .strip_prefix("pg_temp_")
            .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `defGetBoolean` in PostgreSQL: what it takes for false.
fn is_off(argument: &Value) -> bool {
    let text = argument["String"]["sval"].as_str().unwrap_or_default().to_lowercase();
    let number = argument.get("Integer");
    matches!(text.as_str(), "false" | "off")
        || number.is_some_and(|number| number["ival"].as_i64().unwrap_or_default() == 0)
}
