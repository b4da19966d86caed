//! Statements whose truth was found by running them on a live primary and standby.
//!
//! The corpus isn't part of this repository. It is looked for in `../shared/data`, or below `PGSLUICE_SHARED`; without it the
//! test passes and says that it was skipped. With `PGSLUICE_CORPUS_MISSES` set, reads that weren't recognised are printed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pgsluice::sql::{Access, BuiltIn, ClassCache, SqlContext, classify};
use serde_json::Value;

struct Row {
    sql: String,
    truth: String,
    builtin_only: bool,
    hidden: bool,
}

fn corpus() -> Option<Vec<Row>> {
    let shared = std::env::var_os("PGSLUICE_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    let path = shared.join("data/ground_truth_dev.jsonl");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: no corpus at {}", path.display());
        return None;
    };
    let rows = text.lines().map(|line| {
        let row: Value = serde_json::from_str(line).expect("a line of JSON");
        Row {
            sql: row["sql"].as_str().expect("sql").to_owned(),
            truth: row["truth"].as_str().expect("truth").to_owned(),
            builtin_only: row["builtin_only"] == true,
            hidden: row["hidden"] == true,
        }
    });
    Some(rows.collect())
}

#[test]
fn nothing_but_reads_is_called_a_read() {
    let Some(rows) = corpus() else { return };
    let wrong: Vec<&Row> = rows
        .iter()
        .filter(|row| matches!(row.truth.as_str(), "write" | "session" | "node_local") && !row.hidden)
        .filter(|row| classify(row.sql.as_bytes(), &SqlContext::default()).access == Access::Read)
        .collect();
    for row in &wrong {
        println!("{} called a read: {}", row.truth, row.sql);
    }
    assert!(wrong.is_empty(), "{} statements", wrong.len());
}

#[test]
fn nearly_all_reads_are_found() {
    let Some(rows) = corpus() else { return };
    let reads: Vec<&Row> = rows
        .iter()
        .filter(|row| row.truth == "read" && row.builtin_only)
        .collect();
    let mut missed: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for row in &reads {
        let class = classify(row.sql.as_bytes(), &SqlContext::default());
        if class.access != Access::Read {
            missed
                .entry(class.reason.label())
                .or_default()
                .push(format!("{}: {:?}", class.reason, row.sql));
        }
    }
    let count: usize = missed.values().map(Vec::len).sum();
    let share = 100.0 - 100.0 * count as f64 / reads.len() as f64;
    println!("{share:.2} % of {} reads found", reads.len());
    for (label, rows) in &missed {
        println!("{label}: {}", rows.len());
        if std::env::var_os("PGSLUICE_CORPUS_MISSES").is_some() {
            rows.iter().for_each(|row| println!("  {row}"));
        }
    }
    assert!(share >= 99.0, "{share:.2} %");
}

#[test]
fn the_cache_answers_as_classify_does() {
    let Some(rows) = corpus() else { return };
    let mut cache = ClassCache::new(1000, 1 << 20);
    for row in &rows {
        let class = cache.classify(row.sql.as_bytes(), &SqlContext::default(), &BuiltIn, 0);
        assert_eq!(
            *class,
            classify(row.sql.as_bytes(), &SqlContext::default()),
            "{}",
            row.sql
        );
    }
    println!("{} hits, {} misses, {} held", cache.hits(), cache.misses(), cache.len());
}
