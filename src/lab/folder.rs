//! The lab's folder, before it is one: whether a path may become a lab's, and whether the servers' user can enter it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::error::{LabError, Tried};
use super::manifest::Manifest;
use super::run_as::RunAs;

/// Lets others enter a folder whatever our umask: the servers' user is one of them.
pub(super) fn open_up(dir: &Path) -> Result<(), LabError> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).tried(|| format!("can't open up {}", dir.display()))
}

/// The folder as an absolute path without links, if it may become or is a lab's.
pub(super) fn prepare(dir: &Path) -> Result<PathBuf, LabError> {
    let dir = std::path::absolute(dir).tried(|| format!("can't use {}", dir.display()))?;
    let dir = without_links(&dir);
    // Both archive_command's shell and postgresql.conf read the path, each with its own idea of these.
    if let Some(character) = dir
        .to_string_lossy()
        .chars()
        .find(|c| "\"'\\$`%".contains(*c) || c.is_control())
    {
        return Err(LabError::BadPath { dir, character });
    }
    if Manifest::exists_in(&dir) {
        return Ok(dir);
    }
    match fs::read_dir(&dir) {
        Ok(mut entries) => match entries.next() {
            None => refuse_strangers(dir),
            Some(_) => Err(LabError::NotEmpty { dir }),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(dir),
        Err(error) => Err(error).tried(|| format!("can't look into {}", dir.display())),
    }
}

/// Resolves the links in that part of a path which exists. A server is known by the folder that it works in, which has none.
fn without_links(dir: &Path) -> PathBuf {
    for ancestor in dir.ancestors() {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(ancestor), dir.strip_prefix(ancestor)) {
            // `join` with nothing would add a slash.
            return if rest.as_os_str().is_empty() {
                real
            } else {
                real.join(rest)
            };
        }
    }
    dir.to_path_buf()
}

/// An empty folder in a shared place may have been put there by someone who is waiting for our files.
fn refuse_strangers(dir: PathBuf) -> Result<PathBuf, LabError> {
    let owner = fs::metadata(&dir)
        .tried(|| format!("can't look at {}", dir.display()))?
        .uid();
    let run_as = RunAs::choose()?;
    if run_as.is(owner) || owner == geteuid().as_raw() {
        return Ok(dir);
    }
    Err(LabError::NotYours {
        dir,
        owner: format!("uid {owner}"),
    })
}
