//! Counts, and what they come to in the end.

use std::collections::BTreeMap;

use crate::compare::{Comparison, Violation};

/// A text that shows a violation.
#[derive(Debug)]
pub(crate) struct Example {
    pub(crate) number: u64,
    pub(crate) text: String,
}

/// What one thread has seen, or all of them.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) tries: u64,
    pub(crate) parsed: u64,
    pub(crate) reads: u64,
    pub(crate) oracle_reads: u64,
    pub(crate) violations: u64,
    pub(crate) examples: BTreeMap<Violation, Example>,
    /// Reads that the product calls writes, by its reason.
    pub(crate) missed: BTreeMap<String, (u64, String)>,
    /// Called a read in spite of a doubt of the oracle's, by doubt.
    pub(crate) doubts: BTreeMap<&'static str, (u64, String)>,
}

impl Report {
    /// Counts a try.
    pub(crate) fn add(&mut self, number: u64, text: &str, comparison: &Comparison) {
        self.tries += 1;
        self.parsed += u64::from(comparison.opinion.is_some());
        self.reads += u64::from(comparison.is_read() && comparison.opinion.is_some());
        let missed = comparison.is_missed_read();
        self.oracle_reads += u64::from(
            missed || (comparison.is_read() && comparison.opinion.as_ref().is_some_and(|it| it.objections.is_empty())),
        );
        if missed {
            let example = (0, text.to_owned());
            count(
                self.missed
                    .entry(comparison.class.reason.label().to_owned())
                    .or_insert(example),
                text,
            );
        }
        if comparison.is_read()
            && let Some(doubt) = comparison.perhaps()
        {
            count(self.doubts.entry(doubt).or_insert((0, text.to_owned())), text);
        }
        if let Some(violation) = &comparison.violation {
            self.violations += 1;
            let example = self.examples.entry(violation.clone()).or_insert_with(|| Example {
                number,
                text: text.to_owned(),
            });
            if text.len() < example.text.len() {
                *example = Example {
                    number,
                    text: text.to_owned(),
                };
            }
        }
    }

    /// Takes over what another thread has seen.
    pub(crate) fn merge(&mut self, other: Report) {
        self.tries += other.tries;
        self.parsed += other.parsed;
        self.reads += other.reads;
        self.oracle_reads += other.oracle_reads;
        self.violations += other.violations;
        for (violation, example) in other.examples {
            self.examples.entry(violation).or_insert(example);
        }
        for (reason, (number, text)) in other.missed {
            let entry = self.missed.entry(reason).or_insert((0, text.clone()));
            count(entry, &text);
            entry.0 += number - 1;
        }
        for (doubt, (number, text)) in other.doubts {
            let entry = self.doubts.entry(doubt).or_insert((0, text.clone()));
            count(entry, &text);
            entry.0 += number - 1;
        }
    }

    /// One line of counts.
    pub(crate) fn line(&self) -> String {
        let missed: u64 = self.missed.values().map(|(number, _)| number).sum();
        format!(
            "{} tries, {} parse, {} called a read, {} violations of {} kinds; {} exact reads, {} of them called a write ({:.2} %)",
            self.tries,
            self.parsed,
            self.reads,
            self.violations,
            self.examples.len(),
            self.oracle_reads,
            missed,
            100.0 * missed as f64 / self.oracle_reads.max(1) as f64
        )
    }
}

/// One more, with the shortest text as its example.
fn count(entry: &mut (u64, String), text: &str) {
    entry.0 += 1;
    if text.len() < entry.1.len() {
        entry.1 = text.to_owned();
    }
}
