//! A class as `pgsluice explain --json` prints it.

use serde_json::{Value, json};

use super::{Catalog, SqlContext, StatementClass, classify_with};

/// `{"access": "read" | "write", "effects": […], "reason": "…", …}` for a text in a session with default settings.
pub fn explain_json(sql: &str, catalog: &dyn Catalog) -> Value {
    class_json(&classify_with(sql.as_bytes(), &SqlContext::default(), catalog))
}

fn class_json(class: &StatementClass) -> Value {
    let effects: Vec<String> = class.effects.iter().map(ToString::to_string).collect();
    json!({
        "access": class.access.as_str(),
        "effects": effects,
        "reason": class.reason.to_string(),
        "label": class.reason.label(),
        "statements": class.statements,
        "standby_by_hint": class.standby_by_hint,
        "hint": class.hint.map(|hint| hint.as_str()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::BuiltIn;

    #[test]
    fn a_class_is_told_in_json() {
        let read = explain_json("select 1", &BuiltIn);
        assert_eq!(read["access"], "read");
        assert_eq!(read["effects"], json!([]));
        let write = explain_json("select pg_advisory_lock(1)", &BuiltIn);
        assert_eq!(write["access"], "write");
        assert_eq!(write["effects"], json!(["pin advisory_lock"]));
        assert!(
            write["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("pg_advisory_lock"))
        );
    }
}
