//! Finding the installed PostgreSQL.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::error::LabError;
use super::tool;

/// What a lab can't do without. `pg_rewind` is missed only by `rejoin`, which then takes a base backup.
const NEEDED: [&str; 5] = ["initdb", "postgres", "pg_ctl", "pg_basebackup", "psql"];

/// Where distributions keep one folder a major version, `*` standing for it.
const VERSIONED: [&str; 5] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/lib/postgresql*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
];

/// The folder of one PostgreSQL's programs, and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
    pub(super) version: PgVersion,
}

/// The folder of PostgreSQL's programs that a lab would use.
pub fn pg_bin() -> Result<PathBuf, LabError> {
    Binaries::find(None).map(|found| found.dir)
}

/// A server's version.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct PgVersion {
    pub(super) major: u32,
    /// As the server tells it: `15.18`, `19devel`.
    pub(super) text: String,
}

impl Binaries {
    /// The folder that was asked for, or else the first complete one of: `pg_ctl` in PATH, `pg_config --bindir`, and the
    /// distributions' folders, newest version first.
    pub(super) fn find(asked: Option<&Path>) -> Result<Self, LabError> {
        if let Some(dir) = asked {
            let missing = missing_in(dir);
            if !missing.is_empty() {
                return Err(LabError::IncompleteBinaries {
                    dir: dir.to_path_buf(),
                    missing: missing.join(", "),
                });
            }
            return Self::in_dir(dir);
        }
        let mut looked = vec!["PATH".to_owned(), "pg_config --bindir".to_owned()];
        looked.extend(VERSIONED.map(str::to_owned));
        let found = in_path().into_iter().chain(from_pg_config()).chain(in_versioned_dirs());
        match found.into_iter().find(|dir| missing_in(dir).is_empty()) {
            Some(dir) => Self::in_dir(&dir),
            None => Err(LabError::NoBinaries {
                looked: looked.join(", "),
            }),
        }
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn in_dir(dir: &Path) -> Result<Self, LabError> {
        let mut command = Command::new(dir.join("postgres"));
        command.arg("--version");
        let said = tool::run(command, "postgres --version", Duration::from_secs(10))?;
        let version = PgVersion::parse(&said).ok_or_else(|| LabError::Tool {
            what: "reading postgres --version".into(),
            output: said.clone(),
        })?;
        Ok(Self {
            dir: dir.to_path_buf(),
            version,
        })
    }
}

impl PgVersion {
    /// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-1)`.
    fn parse(said: &str) -> Option<Self> {
        let text = said
            .split_whitespace()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let digits = text.split(|c: char| !c.is_ascii_digit()).next()?;
        Some(Self {
            major: digits.parse().ok()?,
            text: text.to_owned(),
        })
    }
}

fn missing_in(dir: &Path) -> Vec<&'static str> {
    NEEDED.into_iter().filter(|name| !dir.join(name).is_file()).collect()
}

/// The folder that `pg_ctl` in PATH really stands in, since its neighbours may not be linked.
fn in_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|dir| dir.join("pg_ctl"))
        .filter_map(|file| fs::canonicalize(file).ok())
        .filter_map(|file| file.parent().map(Path::to_path_buf))
        .collect()
}

fn from_pg_config() -> Option<PathBuf> {
    let mut command = Command::new("pg_config");
    command.arg("--bindir");
    tool::run(command, "pg_config", Duration::from_secs(10))
        .ok()
        .map(PathBuf::from)
}

fn in_versioned_dirs() -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = VERSIONED.iter().flat_map(|pattern| matching(pattern)).collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, dir)| dir).collect()
}

/// The folders that a pattern with one `*` for a version matches.
fn matching(pattern: &str) -> Vec<(u32, PathBuf)> {
    let Some((before, after)) = pattern.split_once('*') else {
        return Vec::new();
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix(prefix)?.parse().ok()?;
            Some((version, PathBuf::from(format!("{parent}/{name}{after}"))))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_says() {
        for (said, major, text) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15, "15.18"),
            ("postgres (PostgreSQL) 18beta1", 18, "18beta1"),
            ("postgres (PostgreSQL) 9.6.24", 9, "9.6.24"),
        ] {
            assert_eq!(
                PgVersion::parse(said),
                Some(PgVersion {
                    major,
                    text: text.into()
                }),
                "{said}"
            );
        }
        assert_eq!(PgVersion::parse("nonsense"), None);
    }

    #[test]
    fn a_folder_without_the_programs_is_refused_by_name() {
        let empty = tempfile::tempdir().unwrap();
        let refused = Binaries::find(Some(empty.path())).unwrap_err();
        assert!(refused.to_string().contains("initdb, postgres, pg_ctl"), "{refused}");
    }
}
