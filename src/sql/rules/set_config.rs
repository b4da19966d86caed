//! `set_config(name, value, is_local)`: SET as a function (manual, 9.27.1). Which setting it is about must stand in the text; the value need not.

use smallvec::SmallVec;

use crate::sql::effects::{Effect, PinReason};
use crate::sql::lexer::Kind;
use crate::sql::statement::Statement;

/// What the calls in `statement` do to the session, in order.
pub(super) fn effects(statement: &Statement<'_>) -> SmallVec<[Effect; 1]> {
    let calls: SmallVec<[usize; 1]> = (0..statement.len())
        .filter(|&at| {
            statement.is_name(at) && statement.identifier(at) == "set_config" && statement.is_punct(at + 1, b'(')
        })
        .collect();
    if calls.is_empty() || statement.truncated {
        return [Effect::Pin(PinReason::SessionGuc)].into_iter().collect();
    }
    calls.into_iter().map(|at| effect(statement, at + 1)).collect()
}

/// What the call does whose arguments begin with the parenthesis at `open`.
fn effect(statement: &Statement<'_>, open: usize) -> Effect {
    let unclear = Effect::Pin(PinReason::SessionGuc);
    let close = statement.behind_parenthesis(open) - 1;
    let Some(name) = plain_string(statement, open + 1).filter(|_| statement.is_punct(open + 2, b',')) else {
        return unclear;
    };
    // These aren't followed as other settings are.
    if name.starts_with("transaction_") || ["session_authorization", "seed"].contains(&name.as_str()) {
        return unclear;
    }
    if !statement.is_punct(close, b')') || !statement.is_punct(close.saturating_sub(2), b',') {
        return unclear;
    }
    if statement.is_word(close - 1, "true") {
        Effect::SetLocal { name }
    } else if statement.is_word(close - 1, "false") {
        Effect::SetConfig { name }
    } else {
        unclear
    }
}

/// A setting's name, in lower case, where it is written as a plain string.
fn plain_string(statement: &Statement<'_>, index: usize) -> Option<String> {
    if statement.kind(index) != Some(Kind::String) {
        return None;
    }
    let written = std::str::from_utf8(statement.bytes(index)).ok()?;
    let name = written.strip_prefix('\'')?.strip_suffix('\'')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
    (!name.is_empty() && name.chars().all(plain)).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{SqlContext, classify};

    #[test]
    fn the_setting_must_be_named_and_the_scope_too() {
        let set = |name: &str| vec![Effect::SetConfig { name: name.to_owned() }];
        let local = |name: &str| vec![Effect::SetLocal { name: name.to_owned() }];
        let pin = || vec![Effect::Pin(PinReason::SessionGuc)];
        for (sql, effects) in [
            ("select set_config('app.user', '7', false)", set("app.user")),
            (
                "select pg_catalog.set_config('search_path', '', false)",
                set("search_path"),
            ),
            ("SELECT Set_Config('JIT', $1, FALSE)", set("jit")),
            (
                "select current_setting('jit') as cur, set_config('jit', 'off', false) as new",
                set("jit"),
            ),
            (
                "select set_config('a.b', (select max(x)::text from t), false) from s where y = 1",
                set("a.b"),
            ),
            ("select set_config('a.b', lower(f), true) from t", local("a.b")),
            ("insert into t select set_config('a.b', 'c', false)", set("a.b")),
            (
                "select set_config('a.b', 'c', false), set_config('a.d', 'c', true)",
                [set("a.b"), local("a.d")].concat(),
            ),
            ("select set_config($1, $2, false)", pin()),
            ("select set_config('a.b', 'c', $1)", pin()),
            ("select set_config('a.' || 'b', 'c', false)", pin()),
            ("select set_config('a.b', 'c', not true)", pin()),
            ("select set_config(E'a.b', 'c', false)", pin()),
            ("select set_config('role', 'c', false)", set("role")),
            ("select set_config('session_authorization', 'c', false)", pin()),
            (
                "select set_config(is_local => true, setting_name => 'a.b', new_value => 'c')",
                pin(),
            ),
        ] {
            let class = classify(sql.as_bytes(), &SqlContext::default());
            assert_eq!(class.effects.to_vec(), effects, "{sql}");
            assert_eq!(class.access, crate::sql::Access::Write, "{sql}");
        }
    }
}
