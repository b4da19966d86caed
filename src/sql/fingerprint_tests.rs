//! What normal forms leave out doesn't matter: a text read as it is has the class of its normal form, and so have all texts with that form.
//!
//! `classify` always goes through the normal form, so that only here, inside of the crate, the two can be compared. Statements are varied by
//! their tokens: other values, other spellings of them, other blanks and comments. `PGSLUICE_FUZZ_SECONDS` makes it run for longer.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::class::Reason;
use super::fingerprint;
use super::lexer::{Kind, Lexer};
use super::{BuiltIn, SqlContext, StatementClass, classify_normal_form, classify_normalised};

const STRINGS: &[&str] = &[
    "''",
    "'x'",
    "'it''s; delete from t'",
    "E'\\'\\\\'",
    "e'a' ",
    "U&'\\0061'",
    "$$ ; $$",
    "$t$ $$ ' $t$",
    "B'01'",
    "x'ff'",
    "N'n'",
    "'a'\n 'b'",
    "'a' -- '\n 'b'",
    "'pg_locks'",
    "'pg_catalog.pg_stat_activity'",
    "'nextval(''s'')'",
    "'2000-01-01'",
    "'/* pgsluice: standby */'",
    "'\\'",
];

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "42",
    "1.5",
    ".5",
    "1.",
    "1e10",
    "1.5e-3",
    "99999999999999999999",
    "0x1F",
    "1_000",
];

const BLANKS: &[&str] = &[
    " ",
    "\n",
    "\t\r\n",
    "/* ' */",
    " -- ;\n",
    "/* /* nested */ */",
    "/* pgsluice: primary */",
    "/* pgsluice: standby */",
    "/* pgsluice: consistency=session */",
];

fn seeds() -> Vec<String> {
    let shared = std::env::var_os("PGSLUICE_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    let corpus = std::fs::read_to_string(shared.join("data/ground_truth_dev.jsonl")).unwrap_or_default();
    let rows = corpus.lines().filter_map(|line| {
        let row: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(row["sql"].as_str()?.to_owned())
    });
    let own = include_str!("../../tests/data/sql_seeds.sql").split("\n\n");
    own.map(str::to_owned).chain(rows).collect()
}

/// The same dice in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.roll(choices.len())]
    }
}

/// The text with other values, blanks and comments; now and then with another spelling of a name.
fn vary(sql: &str, context: &SqlContext, dice: &mut Dice) -> String {
    let mut out = String::new();
    let mut end = 0;
    let odd = dice.roll(4) == 0;
    for token in Lexer::new(sql.as_bytes(), context.plain_strings()) {
        let (Some(written), Some(between)) = (sql.get(token.start..token.end), sql.get(end..token.start)) else {
            return out;
        };
        end = token.end;
        match between.is_empty() {
            false if dice.roll(6) == 0 => out.push_str(dice.pick(if odd { BLANKS } else { &BLANKS[..6] })),
            _ => out.push_str(between),
        }
        match token.kind {
            Kind::String if dice.roll(2) == 0 => out.push_str(dice.pick(STRINGS)),
            Kind::Number if dice.roll(2) == 0 => out.push_str(dice.pick(NUMBERS)),
            // A negative number, or another kind of value: they needn't have the same form, but must have their own class.
            Kind::Number | Kind::String if dice.roll(12) == 0 => {
                let others = [
                    "-1",
                    "NULL",
                    "true",
                    "$1",
                    "'1'::int",
                    "interval '1' day",
                    "date '2000-01-01'",
                    "1, 2",
                ];
                out.push_str(dice.pick(&others));
            }
            Kind::Param if dice.roll(2) == 0 => out.push_str(dice.pick(&["$1", "$2", "$10"])),
            Kind::Word if odd && dice.roll(8) == 0 => out.push_str(&written.to_uppercase()),
            Kind::Word if odd && dice.roll(16) == 0 => out.push_str(&format!("\"{written}\"")),
            _ => out.push_str(written),
        }
    }
    out
}

/// The class of the text itself, and that of its normal form, with its key.
fn both(sql: &str, context: &SqlContext) -> Option<(StatementClass, StatementClass, Vec<u8>)> {
    let mut key = Vec::new();
    if !fingerprint::normalise(sql.as_bytes(), context, &mut key) {
        return None;
    }
    let direct = classify_normal_form(sql.as_bytes(), context, &BuiltIn);
    let normalised = StatementClass {
        fingerprint: 0,
        ..classify_normalised(&key, context, &BuiltIn)
    };
    // A long list of values has a short normal form.
    (direct.reason != Reason::TooManyTokens).then_some((direct, normalised, key))
}

#[test]
fn what_a_normal_form_leaves_out_does_not_matter() {
    let seconds = std::env::var("PGSLUICE_FUZZ_SECONDS")
        .ok()
        .and_then(|value| value.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    let seeds = seeds();
    let mut dice = Dice(0x5851_f42d_4c95_7f2d);
    let (mut texts, mut shared) = (0, 0);
    while Instant::now() < end {
        let seed = &seeds[dice.roll(seeds.len())];
        let context = SqlContext {
            standard_conforming_strings: dice.roll(4) > 0,
            pg_catalog_first: dice.roll(4) > 0,
        };
        let mut classes: HashMap<Vec<u8>, (String, StatementClass)> = HashMap::new();
        for _ in 0..8 {
            let text = vary(seed, &context, &mut dice);
            let Some((direct, normalised, key)) = both(&text, &context) else {
                continue;
            };
            texts += 1;
            assert_eq!(direct, normalised, "{text}\nread as {}", String::from_utf8_lossy(&key));
            match classes.get(&key) {
                Some((first, class)) => {
                    shared += 1;
                    assert_eq!(*class, direct, "{first}\nand\n{text}");
                }
                None => {
                    classes.insert(key, (text, direct));
                }
            }
        }
    }
    println!("{texts} texts, {shared} of them with the normal form of another");
    assert!(shared > 0);
}
