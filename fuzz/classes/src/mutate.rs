//! Makes a new text of seeds: splices, swaps, wraps, disguises.

use crate::dice::Dice;
use crate::pieces;
use crate::seeds::Seeds;

/// Pieces that change what a statement is, by themselves.
const SNIPPETS: &[&str] = &[
    "into t9",
    "into temp t9",
    "into unlogged table t9",
    "for update",
    "for share of t",
    "for no key update skip locked",
    "for key share nowait",
    "for read only",
    ":: int",
    ":: d",
    ":: s.d",
    ":: int [ ]",
    ":: regclass",
    "operator ( s . + )",
    "operator ( pg_catalog . + )",
    "### 1",
    "&> nextval ( 's' )",
    "end",
    "as end",
    "as",
    "as nextval",
    "collate \"C\"",
    "collate s . c",
    "at time zone 'utc'",
    "over ( )",
    "over ( order by vf ( ) )",
    "filter ( where vf ( ) )",
    "within group ( order by vf ( ) )",
    ", lateral vf ( )",
    "rows from ( vf ( ) )",
    "tablesample vf ( 1 )",
    "tablesample system ( vf ( ) )",
    ". nextval",
    ". pg_advisory_lock",
    ". \"setseed\"",
    ". f",
    ". *",
    "[ 1 ]",
    "[ vf ( ) ]",
    "[ 1 : 2 ]",
    "limit vf ( )",
    "offset nextval ( 's' )",
    "fetch first ( vf ( ) ) rows only",
    "uescape '!'",
    "is document",
    "isnull",
    "notnull",
    "order by a using <<<",
    "order by a using operator ( s . < )",
    "using",
    "variadic",
    "distinct on ( vf ( ) )",
    "union all select nextval ( 's' )",
    "union all ( select 1 for update )",
    "except table pg_locks",
    ", pg_stat_activity",
    ", pg_catalog . pg_locks",
    ", pg_temp . t",
    ", pg_temp_3 . t",
    "from pg_settings",
    ", last_value",
    "treat ( 's' as nextval )",
    "xmltable ( '//a' passing '<a/>' columns b d path 'c' default vf ( ) )",
    "xmlelement ( name x , vf ( ) )",
    "xmlserialize ( content vf ( ) as d )",
    "array ( select vf ( ) )",
    "row ( vf ( ) )",
    "row ( 1 ) :: d",
    "null :: d",
    "cast ( 1 as d )",
    "d 'x'",
    "s . d 'x'",
    "interval '1' day",
    "exists ( delete from t returning 1 )",
    "with x as ( delete from t returning * )",
    "where current of c",
    "$1 . f",
    "( $1 ) . nextval",
    "case when vf ( ) then 1 end",
    "like any ( vf ( ) )",
    "between symmetric vf ( ) and 1",
    "between vf ( ) and nextval ( 's' )",
    "grouping ( vf ( ) )",
    "group by rollup ( vf ( ) )",
    "group by grouping sets ( ( vf ( ) ) )",
    "window w as ( partition by vf ( ) )",
    "json_populate_record ( null :: d , vf ( ) )",
    "; delete from t",
    "; select vf ( )",
    ";",
    "; ;",
    "begin atomic",
    "search depth first by a set b",
    "cycle a set b to vf ( ) default 1 using c",
    "not materialized",
    "recursive",
    "/* x */",
    "/* pgsluice: standby */",
    "/* /* */ */",
    "-- x\n",
    "-- x\r",
    "e'\\''",
    "'a'\n'b'",
    "U&'\\0061'",
    "U&\"next\\0076al\"",
    "$$ ; $$",
    "$a$ $b$ $a$",
    "\"a\"\"b\"",
    "1_000",
    "0x1F",
    "1e",
    "1.",
    "a.b.c.vf ( )",
    "a . lower ( 'x' )",
    "pg_catalog . lower ( 'x' )",
    "pg_catalog . vf ( )",
    "\"lower\" ( 'x' )",
    "\"LOWER\" ( 'x' )",
    "lower ( 'x' ) ( 1 )",
    "current_schema",
    "current_user",
    "session_user",
    "current_catalog",
    "user",
    "localtimestamp ( 3 )",
    "collation for ( vf ( ) )",
    "substring ( vf ( ) from 1 for vf ( ) )",
    "position ( vf ( ) in 'a' )",
    "overlay ( 'a' placing vf ( ) from 1 )",
    "trim ( leading vf ( ) from 'a' )",
    "extract ( vf from now ( ) )",
    "normalize ( vf ( ) )",
    "coalesce ( vf ( ) )",
    "nullif ( vf ( ) , 1 )",
    "greatest ( vf ( ) )",
    "to stdout",
    "to '/tmp/x'",
    "to program 'x'",
    "set_config ( 'a.b' , 'c' , false )",
];

const KEYWORDS: &[&str] = &[
    "select",
    "with",
    "from",
    "where",
    "as",
    "into",
    "for",
    "update",
    "delete",
    "insert",
    "merge",
    "values",
    "table",
    "explain",
    "analyze",
    "copy",
    "to",
    "stdout",
    "declare",
    "cursor",
    "prepare",
    "execute",
    "create",
    "temp",
    "begin",
    "end",
    "case",
    "when",
    "then",
    "else",
    "union",
    "all",
    "any",
    "some",
    "distinct",
    "on",
    "using",
    "join",
    "left",
    "natural",
    "cross",
    "lateral",
    "only",
    "order",
    "by",
    "group",
    "having",
    "limit",
    "offset",
    "fetch",
    "first",
    "next",
    "row",
    "rows",
    "over",
    "window",
    "partition",
    "filter",
    "within",
    "and",
    "or",
    "not",
    "is",
    "null",
    "true",
    "like",
    "ilike",
    "similar",
    "escape",
    "between",
    "in",
    "exists",
    "array",
    "operator",
    "collate",
    "cast",
    "interval",
    "date",
    "time",
    "timestamp",
    "zone",
    "set",
    "reset",
    "show",
    "local",
    "session",
    "default",
    "returning",
    "recursive",
    "materialized",
    "ordinality",
    "tablesample",
    "system",
    "rollup",
    "cube",
    "grouping",
    "sets",
    "search",
    "cycle",
    "depth",
    "variadic",
    "do",
    "call",
    "commit",
    "rollback",
    "savepoint",
    "lock",
    "verbose",
    "name",
    "value",
    "zone",
    "share",
    "key",
    "no",
    "nowait",
    "skip",
    "locked",
    "of",
    "read",
    "binary",
    "hold",
    "path",
    "columns",
    "passing",
];

/// A new text.
pub(crate) fn mutant(seeds: &Seeds, dice: &mut Dice) -> String {
    let mut pieces = dice.pick(&seeds.statements).clone();
    // Few changes, since most of them end in a syntax error, and now and then many.
    loop {
        mutate(&mut pieces, seeds, dice);
        if dice.once_in(2) || pieces.len() > 400 {
            break;
        }
    }
    write(&pieces, dice)
}

fn mutate(pieces: &mut Vec<String>, seeds: &Seeds, dice: &mut Dice) {
    match dice.roll(20) {
        0..=3 => {
            let call = call(seeds, dice);
            replace(pieces, dice, call);
        }
        4 => {
            let fragment = dice.pick(&seeds.subqueries).clone();
            replace(pieces, dice, fragment);
        }
        5 => {
            let fragment = dice.pick(&seeds.calls).clone();
            replace(pieces, dice, fragment);
        }
        6 => {
            let clause = dice.pick(&seeds.clauses).clone();
            insert(pieces, dice, clause);
        }
        7..=9 => {
            let snippet = pieces::cut(dice.pick::<&str>(SNIPPETS));
            if dice.once_in(2) {
                insert(pieces, dice, snippet);
            } else {
                replace(pieces, dice, snippet);
            }
        }
        10 => swap_group(pieces, seeds, dice),
        11 => swap_keyword(pieces, dice),
        12 => {
            let at = dice.roll(pieces.len());
            pieces.drain(at..(at + 1 + dice.roll(3)).min(pieces.len()));
        }
        13 => {
            let other = dice.pick(&seeds.statements);
            let from = dice.roll(other.len());
            let to = (from + 1 + dice.roll(8)).min(other.len());
            insert(pieces, dice, other[from..to].to_vec());
        }
        14 | 15 => wrap(pieces, seeds, dice),
        16 => functional_notation(pieces, seeds, dice),
        17 => {
            let other = dice.pick(&seeds.statements).clone();
            pieces.push(";".to_owned());
            pieces.extend(other);
        }
        18 => duplicate(pieces, dice),
        _ => disguise(pieces, seeds, dice),
    }
    if pieces.is_empty() {
        pieces.push("select".to_owned());
    }
}

/// A call of some function, mostly of one that isn't safe, written somehow.
fn call(seeds: &Seeds, dice: &mut Dice) -> Vec<String> {
    let (name, least) = match dice.roll(4) {
        0 => ("vf", dice.roll(3)),
        1 => *dice.pick(&seeds.functions),
        _ => *dice.pick(&seeds.unsafe_functions),
    };
    let mut call = Vec::new();
    match dice.roll(10) {
        0 => call.extend(["pg_catalog".to_owned(), ".".to_owned()]),
        1 => call.extend([
            dice.pick(&["s", "public", "\"pg_catalog\"", "PG_CATALOG", "information_schema"])
                .to_string(),
            ".".to_owned(),
        ]),
        _ => {}
    }
    call.push(match dice.roll(8) {
        0 => name.to_uppercase(),
        1 => format!("\"{name}\""),
        2 if dice.once_in(4) => format!("U&\"{name}\""),
        _ => name.to_owned(),
    });
    call.push("(".to_owned());
    for index in 0..least {
        if index > 0 {
            call.push(",".to_owned());
        }
        call.push(dice.pick(&["1", "'x'", "null", "a", "$1", "true"]).to_string());
    }
    call.push(")".to_owned());
    call
}

/// Puts `fragment` where a value, a name, or anything stands.
fn replace(pieces: &mut Vec<String>, dice: &mut Dice, fragment: Vec<String>) {
    let start = dice.roll(pieces.len());
    let fitting = (0..pieces.len())
        .map(|offset| (start + offset) % pieces.len())
        .find(|&index| pieces::is_value(&pieces[index]) || (dice.once_in(3) && pieces::is_name(&pieces[index])));
    let at = if dice.once_in(6) {
        start
    } else {
        fitting.unwrap_or(start)
    };
    pieces.splice(at..=at, fragment);
}

fn insert(pieces: &mut Vec<String>, dice: &mut Dice, fragment: Vec<String>) {
    let at = if dice.once_in(3) {
        pieces.len()
    } else {
        dice.roll(pieces.len() + 1)
    };
    pieces.splice(at..at, fragment);
}

fn swap_group(pieces: &mut Vec<String>, seeds: &Seeds, dice: &mut Dice) {
    let start = dice.roll(pieces.len());
    let open = (0..pieces.len())
        .map(|offset| (start + offset) % pieces.len())
        .find(|&index| pieces[index] == "(");
    if let Some(open) = open
        && let Some(end) = pieces::behind_parenthesis(pieces, open)
    {
        let fragment = if dice.once_in(2) {
            dice.pick(&seeds.subqueries)
        } else {
            dice.pick(&seeds.groups)
        };
        pieces.splice(open..end, fragment.iter().cloned());
    }
}

fn swap_keyword(pieces: &mut [String], dice: &mut Dice) {
    let names: Vec<usize> = (0..pieces.len())
        .filter(|&index| pieces::is_name(&pieces[index]))
        .collect();
    if !names.is_empty() {
        let index = *dice.pick(&names);
        pieces[index] = dice.pick(KEYWORDS).to_string();
    }
}

fn duplicate(pieces: &mut Vec<String>, dice: &mut Dice) {
    let from = dice.roll(pieces.len());
    let to = (from + 1 + dice.roll(6)).min(pieces.len());
    let copy = pieces[from..to].to_vec();
    insert(pieces, dice, copy);
}

/// `x` becomes `(x).f`.
fn functional_notation(pieces: &mut Vec<String>, seeds: &Seeds, dice: &mut Dice) {
    let name = match dice.roll(3) {
        0 => "vf",
        1 => dice.pick(&seeds.functions).0,
        _ => dice.pick(&seeds.unsafe_functions).0,
    };
    let at = dice.roll(pieces.len());
    let value = pieces[at].clone();
    pieces.splice(at..=at, ["(", &value, ")", ".", name].map(str::to_owned));
}

/// The whole text inside of something else.
fn wrap(pieces: &mut Vec<String>, seeds: &Seeds, dice: &mut Dice) {
    const WRAPS: &[(&str, &str)] = &[
        ("explain", ""),
        ("explain analyze", ""),
        ("explain verbose", ""),
        ("explain ( analyze false )", ""),
        ("explain ( analyze )", ""),
        ("explain ( costs off , analyze 'off' , analyze )", ""),
        ("explain ( \"analyze\" )", ""),
        ("explain ( verbose true )", ""),
        ("prepare p as", ""),
        ("prepare p ( int ) as", ""),
        ("declare c cursor for", ""),
        ("declare c cursor with hold for", ""),
        ("copy (", ") to stdout"),
        ("copy (", ") to stdout with ( format csv )"),
        ("copy (", ") to program 'x'"),
        ("copy (", ") to '/tmp/x'"),
        ("create table x as", ""),
        ("create temp table x as", "with no data"),
        ("create materialized view x as", ""),
        ("create view x as", ""),
        ("with x as (", ") select * from x"),
        ("with x as materialized (", ") table x"),
        ("with recursive x ( a ) as (", ") select 1"),
        ("select * from (", ") as x"),
        ("select exists (", ")"),
        ("select array (", ")"),
        ("select (", ") . f"),
        ("select 1 = any (", ")"),
        ("(", ")"),
        ("( (", ") union select 1 )"),
        ("insert into t", ""),
        ("insert into t", "returning *"),
        ("select 1 union all", ""),
        ("", "union all select 1"),
        ("", "order by 1 limit 1"),
        ("select * from t , lateral (", ") x"),
        ("select 1 where a in (", ")"),
        ("values ( (", ") )"),
        ("create function g ( ) returns int begin atomic", "; end"),
        ("create rule r as on insert to t do (", ")"),
        ("begin ;", "; commit"),
        ("explain ( (", ") )"),
        ("execute p ( (", ") )"),
        ("call p ( (", ") )"),
        ("create table x ( a int default (", ") )"),
        ("select case when (", ") then 1 end"),
        ("select coalesce ( (", ") )"),
        ("select xmlforest ( (", ") as a )"),
        ("with x as (", ") , y as ( delete from t returning * ) select 1"),
        ("update t set a = (", ")"),
        ("set a = (", ")"),
        ("do", ""),
    ];
    let (before, behind) = *dice.pick(WRAPS);
    let mut wrapped = pieces::cut(before);
    // A statement of another in front.
    if dice.once_in(8) {
        wrapped = dice.pick(&seeds.statements).clone();
        wrapped.push(";".to_owned());
    }
    wrapped.append(pieces);
    wrapped.extend(pieces::cut(behind));
    *pieces = wrapped;
}

/// The same name or value, written in another way.
fn disguise(pieces: &mut [String], seeds: &Seeds, dice: &mut Dice) {
    let at = dice.roll(pieces.len());
    let piece = pieces[at].clone();
    pieces[at] = if pieces::is_value(&piece) {
        let bare = piece.trim_matches('\'');
        match dice.roll(6) {
            0 => format!("E'{bare}'"),
            1 => format!("$q${bare}$q$"),
            2 => format!("U&'{bare}'"),
            3 => format!("'{bare}'\n 'x'"),
            4 => format!("{} '{bare}'", dice.pick(&seeds.types)),
            _ => format!("'{bare}' :: {}", dice.pick(&seeds.types)),
        }
    } else if pieces::is_name(&piece) {
        let bare = piece.trim_matches('"');
        match dice.roll(6) {
            0 => format!("\"{bare}\""),
            1 => format!("U&\"{bare}\""),
            2 => bare.to_uppercase(),
            3 => format!("\"{}\"", bare.to_uppercase()),
            4 => format!("s . {bare}"),
            _ => format!("pg_catalog . {bare}"),
        }
    } else {
        format!("/* ; */ {piece} -- '\n")
    };
}

/// The text: pieces with something between them.
fn write(pieces: &[String], dice: &mut Dice) -> String {
    let odd = dice.once_in(8);
    let mut text = String::new();
    for (index, piece) in pieces.iter().enumerate() {
        if index > 0 {
            let punctuation = |piece: &str| piece.starts_with(|first| "(),;[]".contains(first));
            let tight = dice.once_in(2) && (punctuation(piece) || punctuation(&pieces[index - 1]));
            text.push_str(match () {
                () if odd => dice.pick::<&str>(&[
                    " ", "\n", "\t", "\x0c", "\r\n", "/**/", "/* ' */", " -- \"\n", " --;\r", "  ", "", "\u{b}",
                ]),
                () if tight => "",
                () => " ",
            });
        }
        if odd && dice.once_in(6) && pieces::is_name(piece) && !piece.starts_with('"') {
            text.push_str(&piece.to_uppercase());
        } else {
            text.push_str(piece);
        }
    }
    text
}
