//! Code in PL/pgSQL, of a DO block or a function, that can be seen to only read. (The PostgreSQL manual, chapter 43.)
//!
//! It is no parser: a block is cut at its semicolons, every place where a statement may begin has to hold one of the statements below
//! or an assignment, and every name, operator and type has to be harmless wherever it stands. What is misread is taken for a write.

use super::SqlContext;
use super::class::Reason;
use super::lexer::Kind;
use super::names::{Catalog, Name};
use super::rules;
use super::statement::{Statement, Statements};
use super::tokens::{self, Findings};

/// Statements that only read, and words that stand in front of others.
const BEGINNINGS: &[&str] = &[
    "assert",
    "begin",
    "case",
    "close",
    "continue",
    "declare",
    "else",
    "elseif",
    "elsif",
    "end",
    "exception",
    "exit",
    "fetch",
    "for",
    "foreach",
    "get",
    "if",
    "loop",
    "move",
    "null",
    "open",
    "perform",
    "raise",
    "return",
    "select",
    "values",
    "when",
    "while",
    "with",
];

/// Behind these another statement begins, except in expressions.
const BEFORE_STATEMENTS: &[&str] = &["begin", "declare", "else", "loop", "then"];

/// Types of variables that only PL/pgSQL has.
const OWN_TYPES: &[&str] = &["record", "refcursor"];

/// What a block may do, for a session that reads under `context`.
pub(crate) fn scan(block: &str, context: &SqlContext, catalog: &dyn Catalog) -> Findings {
    let mut findings = Findings::default();
    let mut declares = false;
    for statement in Statements::new(block.as_bytes(), context.plain_strings()) {
        if statement.unterminated || statement.truncated || statement.backslash_string {
            findings.add(Reason::BadText);
            break;
        }
        let part = tokens::scan_plpgsql(&statement, context, catalog);
        findings.now_sensitive |= part.now_sensitive;
        let only_reads = |index| !may_begin(&statement, index) || reads_from(&statement, index, &mut declares, catalog);
        let doubt = match part.without_tree().reason() {
            None if (0..statement.len()).all(only_reads) => None,
            None => Some(Reason::Verb("a statement of PL/pgSQL")),
            doubt => doubt,
        };
        if let Some(doubt) = doubt {
            findings.add(doubt);
        }
    }
    findings
}

fn may_begin(statement: &Statement<'_>, index: usize) -> bool {
    index == 0 || statement.is_any_word(index - 1, BEFORE_STATEMENTS) || statement.is_operator(index - 1, ">>")
}

/// Whether what may begin at `index` only reads. `declares` tells whether variables are declared there.
fn reads_from(statement: &Statement<'_>, index: usize, declares: &mut bool, catalog: &dyn Catalog) -> bool {
    let word = statement.identifier(index);
    match word.as_ref() {
        "declare" => *declares = true,
        "begin" => *declares = false,
        _ if *declares => return declares_harmlessly(statement, index, catalog),
        _ => {}
    }
    let unquoted = statement.kind(index) == Some(Kind::Word);
    let label = statement.is_operator(index, "<<");
    label
        || (unquoted && BEGINNINGS.contains(&word.as_ref()))
        || assigns(statement, index)
        || is_expression(statement, index)
}

/// `a := …`, `a.b[1] = …`
fn assigns(statement: &Statement<'_>, index: usize) -> bool {
    let mut at = index + 1;
    loop {
        if statement.is_punct(at, b'.') {
            at += 2;
        } else if statement.is_punct(at, b'[') {
            at = (at..statement.len())
                .find(|&close| statement.is_punct(close, b']'))
                .unwrap_or(at)
                + 1;
        } else {
            return statement.is_name(index)
                && (statement.kind(at) == Some(Kind::ColonEquals) || statement.is_operator(at, "="));
        }
    }
}

/// Behind THEN and ELSE of CASE: anything that can't begin a command.
fn is_expression(statement: &Statement<'_>, index: usize) -> bool {
    let behind_branch = index > 0 && statement.is_any_word(index - 1, &["else", "then"]);
    behind_branch && !rules::is_command(&statement.identifier(index))
}

/// `name [CONSTANT] type …`, `name CURSOR FOR query` or `name ALIAS FOR other`
fn declares_harmlessly(statement: &Statement<'_>, name: usize, catalog: &dyn Catalog) -> bool {
    let mut at = name + 1 + usize::from(statement.is_word(name + 1, "constant"));
    at += usize::from(statement.is_word(at, "no"));
    at += usize::from(statement.is_word(at, "scroll"));
    if statement.is_any_word(at, &["cursor", "alias"]) {
        return statement.is_word(at + 1, "for");
    }
    let Some(found) = tokens::type_name(statement, at) else {
        return false;
    };
    // `t`, `t%ROWTYPE` and `t.a%TYPE` may be of any type.
    if catalog.all_types_are_safe() {
        return statement.is_name(name);
    }
    let known = catalog.type_is_safe(Name {
        schema: found.schema.as_deref(),
        name: &found.name,
    });
    statement.is_name(name)
        && (known || OWN_TYPES.contains(&found.name.as_str()))
        && !statement.is_operator(found.end, "%")
}

#[cfg(test)]
mod tests {
    use crate::sql::{Access, SqlContext, classify};

    #[test]
    fn a_block_that_only_reads_is_told_from_others() {
        for (block, reads) in [
            ("begin end", true),
            ("begin raise notice 'x'; end", true),
            (
                "<<outer>> declare x int := 42; y constant text = 'a'; begin x := x + 1; end outer;",
                true,
            ),
            (
                "declare r record; begin for r in select a from t order by a loop raise notice '%', r.a; end loop; end",
                true,
            ),
            (
                "declare x int; begin select count(*) into strict x from t; if x > 1 then return; end if; end",
                true,
            ),
            (
                "declare x int[]; begin x[1] := case when true then 1 else 2 end; exit when x[1] > 3; end",
                true,
            ),
            (
                "declare c cursor for select 1; x int; begin open c; fetch c into x; close c; end",
                true,
            ),
            (
                "begin perform lower(a) from t; exception when division_by_zero or sqlstate '22012' then null; end",
                true,
            ),
            (
                "begin for i in 1..10 loop raise info 'i is %', i using errcode = '22012'; end loop; end",
                true,
            ),
            ("begin insert into t values (1); end", false),
            ("begin if true then delete from t; end if; end", false),
            ("begin if true then create table x (a int); end if; end", false),
            ("begin create table x (a int); end", false),
            ("<<l>> begin <<m>> truncate t; end", false),
            ("begin loop lock t; end loop; end", false),
            ("begin execute 'delete from t'; end", false),
            (
                "declare r record; begin for r in execute 'delete from t returning a' loop null; end loop; end",
                false,
            ),
            ("begin perform nextval('s'); end", false),
            ("begin perform mine(); end", false),
            ("begin perform set_config('a.b', 'c', false); end", false),
            ("begin perform a from t for update; end", false),
            ("begin call mine(); end", false),
            ("begin commit; end", false),
            ("begin set a.b = 'c'; end", false),
            ("begin notify c; end", false),
            ("begin case 1 when 1 then analyze; else null; end case; end", false),
            ("declare x mine; begin null; end", false),
            ("declare x mine := 1; begin null; end", false),
            ("declare x t.a%type; begin null; end", false),
            ("declare x t%rowtype; begin null; end", false),
            (
                "begin with gone as (delete from t returning a) select a into x from gone; end",
                false,
            ),
            ("begin x := 1 <~~> 2; end", false),
            ("begin x := 'a'::mine; end", false),
            ("begin raise notice '%', mine 'a'; end", false),
            ("begin perform a from pg_locks; end", false),
            ("begin perform 'x; end", false),
        ] {
            for sql in [
                format!("do $$ {block} $$"),
                format!("DO LANGUAGE plpgsql $b$ {block} $b$;"),
            ] {
                let class = classify(sql.as_bytes(), &SqlContext::default());
                assert_eq!(class.access == Access::Read, reads, "{sql}: {}", class.reason);
            }
        }
        for other in [
            "do $$ begin end $$ language plperl",
            "do language plperlu $$ begin end $$",
            "do $1",
            "do",
            "do e'begin end'",
        ] {
            assert_eq!(
                classify(other.as_bytes(), &SqlContext::default()).access,
                Access::Write,
                "{other}"
            );
        }
    }
}
