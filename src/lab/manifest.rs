//! `lab.json`: the mark that a folder is a lab's, and what has to be known to use it again.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::binaries::PgVersion;
use super::error::{LabError, Tried};
use super::run_as::RunAs;

/// What is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) stage: Stage,
    pub(super) pg_bin: PathBuf,
    pub(super) version: PgVersion,
    /// The servers' user. For people: the file's owner is what counts.
    pub(super) user: String,
    /// Whether fsync is off.
    pub(super) fast: bool,
    pub(super) nodes: Vec<NodeEntry>,
}

/// How far `up` got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// This process is at it; if it doesn't live any more, what there is has to go.
    Building {
        pid: i32,
    },
    Ready,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeEntry {
    pub(super) name: String,
    pub(super) port: u16,
}

impl Manifest {
    pub(super) fn path_in(dir: &Path) -> PathBuf {
        dir.join("lab.json")
    }

    pub(super) fn exists_in(dir: &Path) -> bool {
        Self::path_in(dir).is_file()
    }

    pub(super) fn read(dir: &Path) -> Result<Self, LabError> {
        let path = Self::path_in(dir);
        if !path.is_file() {
            return Err(LabError::NotALab { dir: dir.to_path_buf() });
        }
        let text = fs::read_to_string(&path).tried(|| format!("can't read {}", path.display()))?;
        serde_json::from_str(&text).map_err(|source| LabError::Manifest { path, source })
    }

    pub(super) fn write(&self, dir: &Path, run_as: &RunAs) -> Result<(), LabError> {
        let path = Self::path_in(dir);
        let text = serde_json::to_string_pretty(self).map_err(|source| LabError::Manifest {
            path: path.clone(),
            source,
        })?;
        run_as.write(&path, &format!("{text}\n"))
    }
}
