//! The configuration as it is written: TOML taken apart into entries that know their line, with the overrides laid over them.
//!
//! Serde isn't used for it: it stops at the first thing that it doesn't like, and an operator wants to see all of them at once.
//! Nothing is judged here but TOML's own syntax.

use std::fmt;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys;
use super::overrides::Overrides;
use super::problem::{Place, Problem};

/// A whole file, or what flags and variables say without one.
#[derive(Debug)]
pub(super) struct Document {
    /// For what is missing.
    pub(super) whole: Place,
    /// All keys with their values, those of [`keys::LISTS`] excepted.
    pub(super) entries: Vec<Entry>,
    /// The tables of [`keys::LISTS`], in order.
    pub(super) tables: Vec<ListedTable>,
}

/// One `[[cluster.node]]`, or another table of which there may be several.
#[derive(Debug)]
pub(super) struct ListedTable {
    /// Which list it is of.
    pub(super) list: &'static str,
    /// Where it starts.
    pub(super) place: Place,
    /// Its keys, with whole paths as `cluster.node.address`.
    pub(super) entries: Vec<Entry>,
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    /// As `routing.max_lag`; not necessarily one that exists.
    pub(super) path: String,
    /// Where the key stands.
    pub(super) place: Place,
    /// What it is set to.
    pub(super) value: Value,
}

/// A value, before anyone has asked what it should be.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    /// A float, or an integer out of range, as written.
    Number(String),
    Flag(bool),
    Date(String),
    /// Items with the place of each.
    List(Vec<(Place, Value)>),
    Table,
    /// From a flag or a variable, where all is text.
    Untyped(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => write!(f, "the text {text:?}"),
            Value::Integer(number) => write!(f, "the number {number}"),
            Value::Number(number) => write!(f, "the number {number}"),
            Value::Flag(flag) => write!(f, "{flag}"),
            Value::Date(date) => write!(f, "the date {date}"),
            Value::List(_) => f.write_str("a list"),
            Value::Table => f.write_str("a table"),
            Value::Untyped(texts) => write!(f, "{:?}", texts.join(",")),
        }
    }
}

impl Document {
    /// Takes the text apart. `name` is what places are told with. Of syntax errors only the first is told: an open bracket
    /// makes an error of every line that follows.
    pub(super) fn parse(text: &str, name: &str) -> Result<Document, Problem> {
        let walk = Walk {
            lines: Lines::new(text, name.into()),
        };
        let table = DeTable::parse(text).map_err(|error| walk.syntax_problem(&error))?;
        let mut document = Document::empty(name);
        walk.table("", table.get_ref(), &mut document);
        Ok(document)
    }

    /// No file.
    pub(super) fn empty(name: &str) -> Document {
        Document {
            whole: Place::Whole(name.into()),
            entries: Vec::new(),
            tables: Vec::new(),
        }
    }

    /// Replaces what the file says by what flags and the environment say, and by the last of these what the others do.
    pub(super) fn apply(&mut self, overrides: &Overrides) {
        for (path, place, texts) in overrides.settings() {
            self.entries
                .retain(|entry| entry.path != path && !excludes(path, &entry.path, &entry.place));
            if path == "cluster.nodes" {
                self.tables.retain(|table| table.list != keys::NODE);
            }
            self.entries.push(Entry {
                path: path.to_owned(),
                place,
                value: Value::Untyped(texts),
            });
        }
    }
}

/// Whether setting one key from outside takes another one that the file has out of force. Two variables that
/// contradict each other stay, to be refused.
fn excludes(path: &str, other: &str, place: &Place) -> bool {
    const PAIRS: [[&str; 2]; 2] = [
        ["monitor.password", "monitor.password_file"],
        [
            "cluster.discovery.patroni_password",
            "cluster.discovery.patroni_password_file",
        ],
    ];
    let stands_for = |pair: &[&str; 2]| pair.contains(&path) && pair.contains(&other);
    place.line().is_some() && path != other && PAIRS.iter().any(stands_for)
}

/// Where offsets into the text are, in lines and columns.
struct Lines<'a> {
    text: &'a str,
    file: Arc<str>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str, file: Arc<str>) -> Lines<'a> {
        Lines { text, file }
    }

    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::Line {
            file: Arc::clone(&self.file),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).map_or(0, |line| line.chars().count()) + 1,
        }
    }
}

/// Goes through the tables.
struct Walk<'a> {
    lines: Lines<'a>,
}

impl Walk<'_> {
    /// Adds a table's keys. Only tables that are sections are gone into, so that a misspelled one is one entry.
    fn table(&self, section: &str, table: &DeTable<'_>, into: &mut Document) {
        for (key, value) in table {
            let path = join(section, key.get_ref());
            match value.get_ref() {
                DeValue::Array(items)
                    if items.iter().all(|item| item.get_ref().is_table()) && keys::list(&path).is_some() =>
                {
                    let list = keys::list(&path).unwrap_or_default();
                    into.tables
                        .extend(items.iter().map(|item| self.listed_table(list, item)));
                }
                DeValue::Table(inner) if keys::list(&path).is_none() && keys::is_section(&path) => {
                    self.table(&path, inner, into);
                }
                _ => into.entries.push(self.entry(path, key.span().start, value)),
            }
        }
    }

    fn listed_table(&self, list: &'static str, item: &Spanned<DeValue<'_>>) -> ListedTable {
        let entries = item.get_ref().as_table().into_iter().flatten();
        ListedTable {
            list,
            place: self.lines.place(item.span().start),
            entries: entries
                .map(|(key, value)| self.entry(join(list, key.get_ref()), key.span().start, value))
                .collect(),
        }
    }

    fn entry(&self, path: String, offset: usize, value: &Spanned<DeValue<'_>>) -> Entry {
        Entry {
            path,
            place: self.lines.place(offset),
            value: self.value(value.get_ref()),
        }
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::Number(integer.to_string()),
            },
            DeValue::Float(number) => Value::Number(number.as_str().to_owned()),
            DeValue::Boolean(flag) => Value::Flag(*flag),
            DeValue::Datetime(date) => Value::Date(date.to_string()),
            DeValue::Array(items) => Value::List(
                items
                    .iter()
                    .map(|item| (self.lines.place(item.span().start), self.value(item.get_ref())))
                    .collect(),
            ),
            DeValue::Table(_) => Value::Table,
        }
    }

    fn syntax_problem(&self, error: &toml::de::Error) -> Problem {
        Problem {
            place: match error.span() {
                Some(span) => self.lines.place(span.start),
                None => Place::Whole(Arc::clone(&self.lines.file)),
            },
            key: String::new(),
            message: format!("not TOML: {}", error.message()),
            suggestion: None,
        }
    }
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}
