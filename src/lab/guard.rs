//! A lab for one test: a folder of its own, free ports, fsync off, and gone when it goes out of scope, also by a panic.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process;

use super::error::{LabError, Tried};
use super::lab::{Lab, LabOptions, is_running};
use super::progress::Quiet;

/// How the folders of tests' labs begin; the test process's id and a random number follow.
const PREFIX: &str = "pgsluice-test-lab-";

/// A lab that is taken down on drop.
#[derive(Debug)]
pub struct LabGuard {
    lab: Lab,
}

impl LabGuard {
    /// A primary and this many standbys. Labs that killed test processes left behind are removed first.
    pub fn fresh(standbys: usize) -> Result<Self, LabError> {
        Self::up(LabOptions {
            standbys,
            ..LabOptions::for_test(Self::fresh_dir()?)
        })
    }

    /// What these options say.
    pub fn up(options: LabOptions) -> Result<Self, LabError> {
        Lab::up(options, &mut Quiet).map(Self::adopt)
    }

    /// A lab that was made elsewhere.
    pub fn adopt(lab: Lab) -> Self {
        Self { lab }
    }

    /// A path for a lab, which nothing uses yet and which root's servers can reach.
    pub fn fresh_dir() -> Result<PathBuf, LabError> {
        let parent = Path::new("/tmp");
        remove_leftovers(parent);
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes)
            .map_err(std::io::Error::other)
            .tried(|| "no random numbers".into())?;
        Ok(parent.join(format!("{PREFIX}{}-{:08x}", process::id(), u32::from_ne_bytes(bytes))))
    }
}

impl Deref for LabGuard {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Drop for LabGuard {
    fn drop(&mut self) {
        if !self.lab.dir().exists() {
            return;
        }
        if let Err(error) = self.lab.down(&mut Quiet) {
            eprintln!("the lab in {} is still there: {error}", self.lab.dir().display());
        }
    }
}

/// Takes down the labs of test processes that are no more.
fn remove_leftovers(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if owner.is_some_and(|pid: i32| !is_running(pid)) {
            // Somebody else's, or being removed by another test at this moment: neither is ours to report.
            let _ = Lab::open_at_any_stage(&entry.path()).and_then(|lab| lab.down(&mut Quiet));
        }
    }
}
