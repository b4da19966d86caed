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
        // Whoever is somebody else may not be allowed to make settings: back first, and at the very end forth again. Resetting the session's
        // user resets the role too.
        let differ = self != wanted;
        if let Some(name) = IDENTITY.iter().find(|name| differ && self.value(name).is_some()) {
            let _ = write!(sql, "RESET {name};");
        }
        self.others_towards(wanted, &mut sql);
        for name in IDENTITY {
            if let Some(value) = wanted.value(name).filter(|_| differ) {
                put(&mut sql, name, value);
            }
        }
        sql
    }

    /// Who the session is: the settings that RESET ALL leaves alone.
    #[must_use]
    pub fn identity(&self) -> Settings {
        let mut entries = self.entries.clone();
        entries.retain(|(name, _)| IDENTITY.contains(&&**name));
        Settings { entries }
    }

    /// The same set, of somebody's who is as in `other`.
    #[must_use]
    pub fn with_identity_of(&self, other: &Settings) -> Settings {
        let mut entries = self.entries.clone();
        entries.retain(|(name, _)| !IDENTITY.contains(&&**name));
        entries.extend(other.identity().entries);
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Settings { entries }
    }

    fn others_towards(&self, wanted: &Settings, sql: &mut String) {
        let is_other = |name: &str| !IDENTITY.contains(&name);
        for (name, _) in self.entries.iter().filter(|(name, _)| is_other(name)) {
            if wanted.value(name).is_none() {
                let _ = write!(sql, "RESET {};", quoted_name(name));
            }
        }
        for (name, value) in wanted.entries.iter().filter(|(name, _)| is_other(name)) {
            if self.value(name) == Some(value) {
                continue;
            }
            // Two settings in one, of which a value may leave the other as it is.
            if &**name == "datestyle" && self.value(name).is_some() {
                sql.push_str("RESET datestyle;");
            }
            put(sql, name, value);
        }
    }
}

/// In the order in which they are set: changing the session's user takes the role away.
const IDENTITY: [&str; 2] = ["session_authorization", "role"];

fn put(sql: &mut String, name: &str, value: &SettingValue) {
    let _ = match value {
        SettingValue::Sql(text) => write!(sql, "SET {} = {text};", quoted_name(name)),
        SettingValue::Raw(text) => write!(
            sql,
            "SELECT pg_catalog.set_config({}, {}, false);",
            literal(name),
            literal(text)
        ),
    };
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
    fn settings_are_made_by_the_user_who_logged_in() {
        let role = |name: &str| ("role", SettingValue::Sql(name.into()));
        let memory = ("work_mem", SettingValue::Sql("'1MB'".into()));
        let (a, b) = (set(&[role("a")]), set(&[role("b"), memory.clone()]));
        assert_eq!(
            a.sql_towards(&b),
            "RESET role;SET \"work_mem\" = '1MB';SET \"role\" = b;"
        );
        assert_eq!(b.sql_towards(&a), "RESET role;RESET \"work_mem\";SET \"role\" = a;");
        assert_eq!(a.sql_towards(&a), "");
        let both = set(&[role("a"), ("session_authorization", SettingValue::Sql("s".into()))]);
        let sql = "SET \"work_mem\" = '1MB';";
        assert_eq!(
            both.sql_towards(&set(&[memory])),
            format!("RESET session_authorization;{sql}")
        );
        assert_eq!(
            a.sql_towards(&both),
            "RESET role;SET \"session_authorization\" = s;SET \"role\" = a;"
        );
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
