//! The settings (GUCs) that a session wants, or that a server connection has, beyond the server's own defaults.
//!
//! A set is immutable and shared: the thousand clients of one application usually want one and the same, so comparing a session's with a
//! connection's is comparing two pointers.

use std::fmt::Write as _;
use std::sync::Arc;

/// A value, as it came.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SettingValue {
    /// From a start-up packet: the raw string, as `set_config()` takes it.
    Raw(Box<str>),
    /// From `SET name = …`: the SQL after the equals sign, which may be a list.
    Sql(Box<str>),
}

/// A set of settings, sorted by name. Names are lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Settings {
    entries: Vec<(Box<str>, SettingValue)>,
}

impl Settings {
    /// The value of `name`, if it is set.
    pub fn value(&self, name: &str) -> Option<&SettingValue> {
        let at = self.entries.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(&self.entries[at].1)
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The same set with `name` set to `value`.
    #[must_use]
    pub fn with(&self, name: &str, value: SettingValue) -> Settings {
        let mut entries = self.entries.clone();
        match entries.binary_search_by(|(known, _)| (**known).cmp(name)) {
            Ok(at) => entries[at].1 = value,
            Err(at) => entries.insert(at, (name.into(), value)),
        }
        Settings { entries }
    }

    /// The same set without `name`.
    #[must_use]
    pub fn without(&self, name: &str) -> Settings {
        Settings {
            entries: self
                .entries
                .iter()
                .filter(|(known, _)| **known != *name)
                .cloned()
                .collect(),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &SettingValue)> {
        self.entries.iter().map(|(name, value)| (&**name, value))
    }

    /// Whether two shared sets are equal, most often without looking into them.
    pub fn same(a: &Arc<Settings>, b: &Arc<Settings>) -> bool {
        Arc::ptr_eq(a, b) || **a == **b
    }

    /// The SQL that turns a connection that has `self` into one that has `wanted`; one text, so that it is applied whole or not at all.
    pub fn sql_towards(&self, wanted: &Settings) -> String {
        let mut sql = String::new();
        for (name, _) in &self.entries {
            if wanted.value(name).is_none() {
                let _ = write!(sql, "RESET {};", quoted_name(name));
            }
        }
        for (name, value) in &wanted.entries {
            if self.value(name) == Some(value) {
                continue;
            }
            // Two settings in one, of which a value may leave the other as it is.
            if &**name == "datestyle" && self.value(name).is_some() {
                sql.push_str("RESET datestyle;");
            }
            let _ = match value {
                SettingValue::Sql(text) => write!(sql, "SET {} = {text};", quoted_name(name)),
                SettingValue::Raw(text) => {
                    write!(
                        sql,
                        "SELECT pg_catalog.set_config({}, {}, false);",
                        literal(name),
                        literal(text)
                    )
                }
            };
        }
        sql
    }
}

/// A setting's name as SQL takes it: each part of a dotted name is quoted on its own.
fn quoted_name(name: &str) -> String {
    name.split('.')
        .map(|part| format!("\"{}\"", part.replace('"', "\"\"")))
        .collect::<Vec<_>>()
        .join(".")
}

/// A string constant that reads the same whatever `standard_conforming_strings` is.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(entries: &[(&str, SettingValue)]) -> Settings {
        entries
            .iter()
            .fold(Settings::default(), |set, (name, value)| set.with(name, value.clone()))
    }

    #[test]
    fn only_what_differs_is_applied() {
        let has = set(&[
            ("a", SettingValue::Sql("1".into())),
            ("b", SettingValue::Sql("2".into())),
        ]);
        let wants = set(&[
            ("b", SettingValue::Sql("2".into())),
            ("x.c", SettingValue::Raw("it's \\".into())),
        ]);
        assert_eq!(
            has.sql_towards(&wants),
            "RESET \"a\";SELECT pg_catalog.set_config('x.c', E'it''s \\\\', false);"
        );
        assert_eq!(wants.sql_towards(&wants), "");
    }

    #[test]
    fn half_a_datestyle_is_set_on_top_of_the_default() {
        let one = set(&[("datestyle", SettingValue::Raw("ymd".into()))]);
        let other = set(&[("datestyle", SettingValue::Raw("German".into()))]);
        let sql = one.sql_towards(&other);
        assert_eq!(
            sql,
            "RESET datestyle;SELECT pg_catalog.set_config('datestyle', 'German', false);"
        );
    }

    #[test]
    fn order_of_setting_does_not_matter() {
        let one = set(&[
            ("b", SettingValue::Sql("2".into())),
            ("a", SettingValue::Sql("1".into())),
        ]);
        let two = set(&[
            ("a", SettingValue::Sql("1".into())),
            ("b", SettingValue::Sql("2".into())),
        ]);
        assert_eq!(one, two);
        assert_eq!(one.without("a").without("b"), Settings::default());
    }
}
