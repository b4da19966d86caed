//! No text may bring the classifier down, and no literal may change what it says.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pgsluice::sql::{Access, BuiltIn, ClassCache, MAX_LENGTH, SqlContext, classify};
use proptest::prelude::*;

const CONTEXTS: [SqlContext; 3] = [
    SqlContext {
        standard_conforming_strings: true,
        pg_catalog_first: true,
    },
    SqlContext {
        standard_conforming_strings: false,
        pg_catalog_first: true,
    },
    SqlContext {
        standard_conforming_strings: true,
        pg_catalog_first: false,
    },
];

/// A few statements of each kind, and the whole corpus where it is at hand.
fn seeds() -> Vec<String> {
    let shared = std::env::var_os("PGSLUICE_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    let corpus = std::fs::read_to_string(shared.join("data/ground_truth_dev.jsonl")).unwrap_or_default();
    let rows = corpus.lines().filter_map(|line| {
        let row: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(row["sql"].as_str()?.to_owned())
    });
    include_str!("data/sql_seeds.sql")
        .split("\n\n")
        .map(str::to_owned)
        .chain(rows)
        .collect()
}

/// Runs on a thread with half of a worker's stack, so that an overflow shows.
fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(work)
        .expect("a thread")
        .join()
        .expect("no panic");
}

#[test]
fn chains_and_nests_do_not_overflow_the_stack() {
    on_a_small_stack(|| {
        let chains: &[(&str, &str, &str)] = &[
            ("select 1", "+1", ""),
            ("select 1", " or a=2", ""),
            ("select a", "::int", ""),
            ("select a", " is null", ""),
            ("select a", "[1]", ""),
            ("select a", ".b", ""),
            ("select 1::int", "[]", ""),
            ("select 1", " union all select 1", ""),
            ("select ", "not ", "true"),
            ("select ", "- ", "1"),
            ("select ", "(", "1"),
            ("", "(", "select 1"),
            ("select ", "(select ", "1"),
            ("select ", "f(", "1"),
            ("select ", "array[", "1"),
            ("select ", "case when a then ", "1"),
            ("select 1 from a", " join a on true", ""),
            ("select 1 from a", ",a", ""),
            ("select 1 from ", "(", "a"),
            ("select 1 where a in (1", ",1", ")"),
            ("select '", "''", "'"),
            ("select a", " collate \"C\"", ""),
            ("select a", " between 1 and 2 and b", ""),
            ("with a as (", "with a as (", "select 1"),
            ("select 1", ";select 1", ""),
            ("/*", "/*", ""),
            ("select $", "$", ""),
            ("explain ", "explain ", "select 1"),
            ("copy (", "copy (", "select 1"),
            ("explain analyze ", "(", "select 1"),
            ("select row(1)", "::x", ""),
            ("set a = b", ",b", ""),
            ("set a", ".b", " = 1"),
        ];
        for (before, link, after) in chains {
            for length in [100, 1000, 4000, 100_000] {
                let sql = format!("{before}{}{after}", link.repeat(length));
                let started = Instant::now();
                for context in &CONTEXTS {
                    classify(sql.as_bytes(), context);
                }
                assert!(
                    started.elapsed() < Duration::from_secs(10),
                    "{before}{link}… took {:?}",
                    started.elapsed()
                );
            }
        }
    });
}

#[test]
fn long_texts_are_writes_with_their_effects() {
    let blanks = " ".repeat(MAX_LENGTH);
    let class = classify(
        format!("select 1 {blanks}; set a = 1; begin").as_bytes(),
        &SqlContext::default(),
    );
    assert_eq!(
        (class.access, class.effects.len(), class.statements),
        (Access::Write, 2, 3)
    );
    assert_eq!(class.reason.label(), "too_long");
    let many = format!("select {}1", "1,".repeat(3000));
    assert_eq!(
        classify(many.as_bytes(), &SqlContext::default()).reason.label(),
        "too_many_tokens"
    );
}

#[test]
fn texts_in_other_encodings_are_writes() {
    assert_eq!(classify(b"select '\xe9'", &SqlContext::default()).access, Access::Write);
    assert_eq!(classify(b"\xff\xfe", &SqlContext::default()).access, Access::Write);
    assert_eq!(classify(b"set a = '\xe9'", &SqlContext::default()).effects.len(), 1);
}

/// A small generator of pseudo-random numbers, so that a failure can be run again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }
}

/// Mutates statements by bytes and by pieces of others. `PGSLUICE_FUZZ_SECONDS` makes it run for longer.
#[test]
fn mutated_statements_do_not_panic() {
    let seconds = std::env::var("PGSLUICE_FUZZ_SECONDS")
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(2);
    on_a_small_stack(move || {
        let seeds = seeds();
        let mut cache = ClassCache::new(500, 1 << 20);
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let end = Instant::now() + Duration::from_secs(seconds);
        let (mut runs, mut slowest) = (0u64, Duration::ZERO);
        while Instant::now() < end {
            let mut sql = seeds[dice.roll(seeds.len())].clone().into_bytes();
            for _ in 0..=dice.roll(4) {
                mutate(&mut sql, &seeds, &mut dice);
            }
            let context = &CONTEXTS[dice.roll(CONTEXTS.len())];
            let started = Instant::now();
            let class = classify(&sql, context);
            slowest = slowest.max(started.elapsed());
            assert_eq!(
                *cache.classify(&sql, context, &BuiltIn, 0),
                class,
                "{}",
                String::from_utf8_lossy(&sql)
            );
            if class.access == Access::Read {
                assert!(class.effects.is_empty(), "{}", String::from_utf8_lossy(&sql));
            }
            runs += 1;
        }
        println!("{runs} mutants, slowest {slowest:?}");
    });
}

fn mutate(sql: &mut Vec<u8>, seeds: &[String], dice: &mut Dice) {
    const PIECES: &[&[u8]] = &[
        b"'",
        b"\"",
        b"$$",
        b"/*",
        b"*/",
        b"--",
        b"\n",
        b"(",
        b")",
        b";",
        b"::",
        b"\\",
        b"E'",
        b"U&\"",
        b" END ",
        b" INTO ",
        b" FOR UPDATE ",
        b" nextval('s') ",
        b"/* pgsluice: standby */",
        b" AS ",
        b"[",
        b"]",
        b".",
        b" CASE ",
        b" TABLE ",
        b" * ",
        b"\xff",
        b" XMLTABLE(",
    ];
    let at = dice.roll(sql.len() + 1);
    match dice.roll(5) {
        0 if at < sql.len() => {
            sql.remove(at);
        }
        1 if at < sql.len() => sql[at] = dice.roll(256) as u8,
        2 => {
            let other = seeds[dice.roll(seeds.len())].as_bytes();
            let from = dice.roll(other.len() + 1);
            let to = (from + dice.roll(40)).min(other.len());
            sql.splice(at..at, other[from..to].iter().copied());
        }
        3 => sql.truncate(at),
        _ => {
            sql.splice(at..at, PIECES[dice.roll(PIECES.len())].iter().copied());
        }
    }
}

/// Puts other values, blanks and comments into a statement: what the cache takes for the same text.
#[test]
fn one_fingerprint_is_one_class() {
    let seeds = seeds();
    let mut dice = Dice(42);
    let mut compared = 0;
    for seed in &seeds {
        for context in &CONTEXTS {
            let mut cache = ClassCache::new(10, 1 << 20);
            let first = cache.classify(seed.as_bytes(), context, &BuiltIn, 0);
            for variant in 0..3 {
                let varied = vary(seed, variant, &mut dice);
                let misses = cache.misses();
                let cached = cache.classify(varied.as_bytes(), context, &BuiltIn, 0);
                if cache.misses() == misses {
                    compared += 1;
                    assert_eq!(*cached, classify(varied.as_bytes(), context), "{seed}\n--\n{varied}");
                    assert_eq!(*cached, *first);
                }
            }
        }
    }
    println!("{compared} variants had the fingerprint of another text");
    assert!(compared > 0);
}

fn vary(sql: &str, variant: usize, dice: &mut Dice) -> String {
    let mut out = String::new();
    for part in sql.split_inclusive(' ') {
        match (variant, part.trim_end()) {
            (0, number) if number.parse::<u32>().is_ok() => out.push_str(&format!("{} ", dice.roll(100_000))),
            (1, _) => out.push_str(&part.replace(' ', [" ", "\n", "/* x */", " -- y\n"][dice.roll(4)])),
            (2, string) if string.len() >= 2 && string.starts_with('\'') && string.ends_with('\'') => {
                out.push_str(["'delete' ", "'' ", "$$;$$ ", "E'\\'' "][dice.roll(4)]);
            }
            _ => out.push_str(part),
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_have_a_class(sql in proptest::collection::vec(any::<u8>(), 0..200)) {
        for context in &CONTEXTS {
            classify(&sql, context);
        }
    }

    #[test]
    fn words_in_any_order_have_a_class(words in proptest::collection::vec(
        prop::sample::select(vec!["select", "from", "(", ")", ",", "'a'", "1", "as", "t", "with", "x", "::", "int", "[", "]", "case", "end",
            "table", "xmltable", "lateral", "rows", "over", "using", ".", "*", "=", "any", "interval", "day", "null", "row", "operator",
            "substring", "similar", "search", "cycle", "set", "explain", "analyze", "copy", "to", "stdout", "values", "union", "is", "not"]), 0..40)) {
        let sql = words.join(" ");
        let class = classify(sql.as_bytes(), &SqlContext::default());
        prop_assert!(class.access == Access::Write || class.effects.is_empty());
    }
}
