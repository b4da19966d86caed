//! The lab's part of a `postgresql.conf`: a block at its end, written anew whenever the node's part in the cluster changes.
//!
//! Not `ALTER SYSTEM`: `pg_rewind` and `pg_basebackup` copy `postgresql.auto.conf`, and what stands there beats the rest, so a
//! node would keep its source's port. It stays free for whoever tries things out on the lab.

use std::fs;
use std::path::Path;

use super::error::{LabError, Tried};
use super::run_as::RunAs;

const MARK: &str = "# ---- from here on written by `pgsluice lab`; ALTER SYSTEM beats it ----";

/// Names and values, in the order in which they are written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Settings(Vec<(String, String)>);

impl Settings {
    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.0
            .iter()
            .map(|(name, value)| format!("{name} = '{}'", value.replace('\'', "''")))
    }

    /// Replaces the block at the end of a `postgresql.conf`.
    pub(super) fn write_to(&self, conf: &Path, run_as: &RunAs) -> Result<(), LabError> {
        let written = fs::read_to_string(conf).tried(|| format!("can't read {}", conf.display()))?;
        run_as.write(conf, &self.replace_in(&written))
    }

    fn replace_in(&self, written: &str) -> String {
        let before = written.split(MARK).next().unwrap_or_default().trim_end();
        let block: Vec<String> = self.lines().collect();
        format!("{before}\n\n{MARK}\n{}\n", block.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_twice_leaves_one_block() {
        let mut first = Settings::default();
        first.set("port", "1");
        let mut second = Settings::default();
        second.set("port", "2");
        let twice = second.replace_in(&first.replace_in("max_connections = 100\n"));
        assert_eq!(twice, format!("max_connections = 100\n\n{MARK}\nport = '2'\n"));
    }

    #[test]
    fn quotes_in_a_value_are_doubled() {
        let mut settings = Settings::default();
        settings.set("cluster_name", "it's");
        assert_eq!(settings.lines().collect::<Vec<_>>(), ["cluster_name = 'it''s'"]);
    }
}
