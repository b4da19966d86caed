//! Who runs the servers. PostgreSQL refuses to run as root, so root drops to an unprivileged user and gives it the lab's folder.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid, User, chown, geteuid};

use super::error::{LabError, Tried};

/// Users that root drops to: the first that exists.
const UNPRIVILEGED: [&str; 4] = ["postgres", "_postgres", "pgsql", "nobody"];

/// The user that runs a lab's servers, and other servers of tests.
#[derive(Debug, Clone)]
pub struct RunAs {
    uid: Uid,
    gid: Gid,
    name: String,
}

impl RunAs {
    /// Us; or, for root, the first unprivileged user that exists.
    pub fn choose() -> Result<Self, LabError> {
        if !geteuid().is_root() {
            return Ok(Self {
                uid: geteuid(),
                gid: nix::unistd::getegid(),
                name: name_of(geteuid()),
            });
        }
        UNPRIVILEGED
            .into_iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .filter(|user| !user.uid.is_root())
            .map(|user| Self {
                uid: user.uid,
                gid: user.gid,
                name: user.name,
            })
            .ok_or(LabError::NoUnprivilegedUser)
    }

    /// The owner of a lab's file, if we may act for it: we are that user, or root and it is not.
    pub(super) fn owner_of(file: &Path) -> Result<Self, LabError> {
        let found = fs::metadata(file).tried(|| format!("can't look at {}", file.display()))?;
        let (uid, gid) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
        let owner = Self {
            uid,
            gid,
            name: name_of(uid),
        };
        let ours = uid == geteuid() || geteuid().is_root();
        if !ours || uid.is_root() {
            return Err(LabError::NotYours {
                dir: file.to_path_buf(),
                owner: owner.name,
            });
        }
        Ok(owner)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is(&self, uid: u32) -> bool {
        self.uid.as_raw() == uid
    }

    /// A program that will run as this user, knowing nothing of our own PostgreSQL settings, and speaking English.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C");
        if self.drops() {
            command
                .uid(self.uid.as_raw())
                .gid(self.gid.as_raw())
                .env("HOME", "/")
                .env("USER", &self.name);
        }
        command
    }

    /// Makes a file or folder this user's.
    pub fn give(&self, path: &Path) -> Result<(), LabError> {
        if !self.drops() {
            return Ok(());
        }
        chown(path, Some(self.uid), Some(self.gid))
            .map_err(io::Error::from)
            .tried(|| format!("can't give {} to {}", path.display(), self.name))
    }

    /// Writes a file that will be this user's.
    pub fn write(&self, path: &Path, contents: &str) -> Result<(), LabError> {
        fs::write(path, contents).tried(|| format!("can't write {}", path.display()))?;
        self.give(path)
    }

    fn drops(&self) -> bool {
        geteuid().is_root()
    }
}

fn name_of(uid: Uid) -> String {
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}
