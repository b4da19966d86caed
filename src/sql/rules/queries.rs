//! SELECT, WITH, VALUES, TABLE and COPY … TO: what may be a read.

use super::{Verdict, head, judge_by_head, names_temporary_schema};
use crate::sql::SqlContext;
use crate::sql::class::{Access, Reason};
use crate::sql::effects::{Effect, PinReason};
use crate::sql::names::Catalog;
use crate::sql::statement::Statement;
use crate::sql::tokens::{self, Findings};
use crate::sql::{plpgsql, simplify, tree};

/// A statement that begins with SELECT, WITH, VALUES or TABLE, perhaps in parentheses.
pub(super) fn query(statement: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Verdict {
    let mut findings = both_readings(statement, context, catalog);
    let (now_sensitive, unknown_code, may_draw) = (findings.now_sensitive, findings.unknown_code, findings.may_draw);
    let settings = std::mem::take(&mut findings.settings);
    let creates_table = findings.creates_table;
    let mut verdict = match findings.reason() {
        None => Verdict::read(Reason::PlainRead),
        Some(reason) => Verdict::write(reason),
    };
    verdict.now_sensitive = now_sensitive;
    verdict.unknown_code = unknown_code;
    if verdict.access == Access::Read {
        return verdict;
    }
    verdict = verdict.with_calls(statement);
    if may_draw {
        verdict = verdict.with(Effect::NextVal);
    }
    verdict = verdict.with_settings(settings);
    if creates_table {
        verdict.ddl = true;
        verdict.changes_names = super::ddl::changes_names(statement, "SELECT INTO");
        if creates_temporary(statement) {
            verdict = verdict.with_pin(PinReason::TemporaryTable);
        }
    }
    if names_temporary_schema(statement) {
        verdict.with_pin(PinReason::TemporaryTable)
    } else {
        verdict
    }
}

fn both_readings(statement: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Findings {
    let mut findings = tokens::scan(statement, context, catalog);
    if findings.hard.is_some() {
        findings.unknown_code |= !findings.unresolved.is_empty();
        return findings;
    }
    let Some(tree) = tree::read(|| simplify::simplify(statement), context, catalog) else {
        findings.add(Reason::Unparsed);
        return findings;
    };
    // What the tokens take for a keyword may be a function's name.
    for setting in tree.findings.settings {
        if !findings.settings.contains(&setting) {
            findings.settings.push(setting);
        }
    }
    if let Some(reason) = tree.findings.hard {
        findings.add(reason);
    }
    for name in std::mem::take(&mut findings.unresolved) {
        if !tree.aliases.contains(&name) {
            findings.add(Reason::UnknownFunction { name });
        }
    }
    if let Some(reason) = tree.findings.soft {
        findings.add(reason);
    }
    for (name, reason) in std::mem::take(&mut findings.relations) {
        if tree.relations.contains(&name) {
            findings.add(reason);
        }
    }
    findings
}

/// INSERT, UPDATE, DELETE or MERGE: a write, and perhaps code of which nothing is known, called by name or as a trigger. The table's name may
/// stand in front of a parenthesis too.
pub(super) fn change(statement: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Verdict {
    let mut verdict = judge_by_head(statement);
    verdict.unknown_code = (0..statement.len())
        .any(|index| statement.is_name(index) && catalog.triggers_leave_traces(&statement.identifier(index)));
    let mut settings = Vec::new();
    let mut note = |part: &Statement<'_>| {
        let findings = tokens::scan(part, context, catalog);
        let is_call = |name: &String| !["conflict", "insert", "returning", "set"].contains(&name.as_str());
        verdict.unknown_code |= findings.unknown_code || findings.unresolved.iter().any(is_call);
        settings.extend(findings.settings);
        findings.may_draw
    };
    let may_draw = match (0..statement.len()).find(|&index| statement.is_word(index, "into")) {
        None => note(statement),
        Some(into) => {
            let mut behind = into + 2;
            while statement.is_punct(behind, b'.') {
                behind += 2;
            }
            note(&statement.slice(0, into)) | note(&statement.tail(behind))
        }
    };
    if may_draw {
        verdict = verdict.with(Effect::NextVal);
    }
    verdict.with_settings(settings)
}

/// DO: a read if its block can be seen to be one.
pub(super) fn block(statement: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Verdict {
    let by_head = judge_by_head(statement);
    let Some(block) = block_of(statement) else {
        return by_head;
    };
    let findings = plpgsql::scan(&block, context, catalog);
    let now_sensitive = findings.now_sensitive;
    match findings.reason() {
        None => Verdict {
            now_sensitive,
            ..Verdict::read(Reason::PlainRead)
        },
        Some(_) => by_head,
    }
}

/// The text of DO [LANGUAGE plpgsql] 'text' [LANGUAGE plpgsql].
fn block_of(statement: &Statement<'_>) -> Option<String> {
    let says_language = |index| statement.is_word(index, "language") && statement.identifier(index + 1) == "plpgsql";
    let text = match statement.len() {
        2 => 1,
        4 if says_language(1) => 3,
        4 if says_language(2) => 1,
        _ => return None,
    };
    statement.string(text)
}

/// INTO [LOCAL] TEMP[ORARY]
fn creates_temporary(statement: &Statement<'_>) -> bool {
    (0..statement.len()).any(|index| {
        let local = usize::from(statement.is_any_word(index + 1, &["local", "global"]));
        statement.is_word(index, "into") && statement.is_any_word(index + 1 + local, &["temp", "temporary"])
    })
}

/// COPY { table [(columns)] | (query) } { TO | FROM } { STDOUT | STDIN | 'file' | PROGRAM 'command' } …
pub(super) fn copy(statement: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Verdict {
    if statement.is_punct(1, b'(') {
        return copy_query(statement, context, catalog);
    }
    let mut at = 1 + usize::from(statement.is_word(1, "binary") && statement.is_name(2));
    let name_from = at;
    at += 1;
    while statement.is_punct(at, b'.') {
        at += 2;
    }
    let name = statement.slice(name_from, at);
    if statement.is_punct(at, b'(') {
        at = statement.behind_parenthesis(at);
    }
    if !goes_to_client(statement, at) {
        return elsewhere(statement, at);
    }
    match tokens::scan(&name, context, catalog).without_tree().reason() {
        None => Verdict::read(Reason::PlainRead),
        Some(Reason::TemporarySchema) => Verdict::write(Reason::TemporarySchema).with_pin(PinReason::TemporaryTable),
        Some(reason) => Verdict::write(reason),
    }
}

fn copy_query(statement: &Statement<'_>, context: &SqlContext, catalog: &dyn Catalog) -> Verdict {
    let behind = statement.behind_parenthesis(1);
    if !goes_to_client(statement, behind) {
        return elsewhere(statement, behind);
    }
    let inner = statement.slice(2, behind - 1);
    match head(&inner).1 {
        super::Command::Query => query(&inner, context, catalog),
        _ => judge_by_head(&inner),
    }
}

fn goes_to_client(statement: &Statement<'_>, at: usize) -> bool {
    statement.is_word(at, "to") && statement.is_word(at + 1, "stdout")
}

fn elsewhere(statement: &Statement<'_>, at: usize) -> Verdict {
    let to = statement.is_word(at, "to");
    let verdict = Verdict::write(Reason::Verb(if to {
        "COPY TO a server's file or program"
    } else {
        "COPY"
    }))
    .with_calls(statement);
    if names_temporary_schema(statement) {
        verdict.with_pin(PinReason::TemporaryTable)
    } else {
        verdict
    }
}

#[cfg(test)]
mod tests {
    use crate::sql::{SqlContext, classify};

    #[test]
    fn code_of_which_nothing_is_known_is_found_wherever_it_is_called() {
        for (sql, unknown) in [
            ("select lower(a) from t", false),
            ("select mine(a) from t", true),
            ("select mine(a) from t for update", true),
            ("begin; select mine(1); commit", true),
            ("insert into t (a, b) values (1, lower('X'))", false),
            (
                "insert into s.t (a, b) values (1, now()) on conflict (a) do update set b = excluded.b",
                false,
            ),
            ("insert into t (a) select mine(1)", true),
            ("insert into t values (mine(1))", true),
            ("update t set a = coalesce(b, 'x') where c in (1, 2)", false),
            ("update t set (a, b) = (1, 2) where c = 3 returning (a)", false),
            (
                "merge into t using s on (t.a = s.a) when not matched then insert (a) values (s.a)",
                false,
            ),
            ("update t set a = mine(b)", true),
            ("delete from t where s.mine(a)", true),
            ("call mine()", true),
            ("do 'begin perform mine(); end'", true),
            ("select query_to_xml('select mine()', true, false, '')", true),
        ] {
            assert_eq!(
                classify(sql.as_bytes(), &SqlContext::default()).unknown_code,
                unknown,
                "{sql}"
            );
        }
    }
}
