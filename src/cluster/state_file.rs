//! What must survive a restart of the proxy: the cluster's identity and the highest timeline that was ever seen.
//!
//! Without it a proxy that starts while only a stale primary can be reached would believe it: such a server looks perfectly
//! healthy. The file is small, is replaced as a whole (written beside, flushed, renamed), and one that can't be understood is an
//! error at start, not a fresh beginning.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::lsn::{SystemIdentifier, Timeline};

/// What is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// The cluster that this proxy fronts.
    pub system_identifier: SystemIdentifier,
    /// No primary below it is believed again.
    pub highest_timeline: Timeline,
}

/// The state file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// It is there and can't be read.
    #[error("state file {path}: {source}")]
    Unreadable {
        /// As configured.
        path: PathBuf,
        /// From the operating system.
        source: io::Error,
    },
    /// It holds something else, or was damaged.
    #[error(
        "state file {path} is damaged ({why}); check which node is the primary, then remove the file and start again"
    )]
    Damaged {
        /// As configured.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The file as written. The identifier is a string: TOML's integers have 63 bits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AsWritten {
    system_identifier: String,
    highest_timeline: u32,
}

/// More than this is not a file of ours.
const MAX_BYTES: u64 = 4096;

/// Reads what was remembered; `None` if there is no such file yet.
pub fn read(path: &Path) -> Result<Option<Remembered>, StateFileError> {
    let unreadable = |source| StateFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let damaged = |why: &str| StateFileError::Damaged {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    if length > MAX_BYTES {
        return Err(damaged("it is too long"));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is not text"))?;
    let written: AsWritten = toml::from_str(text).map_err(|error| damaged(error.message()))?;
    let identifier = written
        .system_identifier
        .parse()
        .map_err(|_| damaged("system_identifier is not a number"))?;
    if written.highest_timeline == 0 {
        return Err(damaged("highest_timeline is 0"));
    }
    Ok(Some(Remembered {
        system_identifier: SystemIdentifier(identifier),
        highest_timeline: Timeline(written.highest_timeline),
    }))
}

/// Replaces the file, so that a reader and a crash see the old one or the new one, never half of one. Blocks on the disk.
pub fn write(path: &Path, remembered: Remembered) -> io::Result<()> {
    let text = format!(
        "# Written by pgsluice: no primary on a lower timeline is believed again. Remove only after a rebuild.\n\
         system_identifier = \"{}\"\nhighest_timeline = {}\n",
        remembered.system_identifier, remembered.highest_timeline
    );
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = fs::File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::File::open(directory)?.sync_all()
}

/// Writes the newest of what is sent, each time something is, until the sender is gone. A slow disk delays nobody but this task:
/// routing doesn't wait for it, so a crash between a promotion and the write forgets that promotion.
pub(super) async fn keep(path: PathBuf, mut latest: watch::Receiver<Option<Remembered>>) {
    while latest.changed().await.is_ok() {
        let Some(remembered) = *latest.borrow_and_update() else {
            continue;
        };
        let target = path.clone();
        let written = tokio::task::spawn_blocking(move || write(&target, remembered)).await;
        match written {
            Ok(Ok(())) => {
                tracing::debug!(path = %path.display(), timeline = %remembered.highest_timeline, "state file written")
            }
            Ok(Err(error)) => tracing::error!(
                path = %path.display(), %error,
                "the state file can't be written: a restart of the proxy would forget the highest timeline"
            ),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: Remembered = Remembered {
        system_identifier: SystemIdentifier(u64::MAX),
        highest_timeline: Timeline(7),
    };

    #[test]
    fn what_was_written_is_read_back_and_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, SOME).unwrap();
        assert_eq!(read(&path).unwrap(), Some(SOME));
        let later = Remembered {
            highest_timeline: Timeline(8),
            ..SOME
        };
        write(&path, later).unwrap();
        assert_eq!(read(&path).unwrap(), Some(later));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it_and_not_a_fresh_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let long = "#".repeat(5000);
        for text in [
            "",
            "\0",
            "highest_timeline = 3",
            "system_identifier = \"x\"\nhighest_timeline = 3",
            "system_identifier = \"1\"\nhighest_timeline = 0",
            "system_identifier = \"1\"\nhighest_timeline = -1",
            "system_identifier = \"1\"\nhighest_timeline = 1\nmore = 1",
            long.as_str(),
        ] {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err();
            assert!(matches!(error, StateFileError::Damaged { .. }), "{text:?}: {error}");
            assert!(error.to_string().contains(path.to_str().unwrap()));
        }
        fs::write(&path, [0xFF, 0xFE]).unwrap();
        assert!(matches!(read(&path), Err(StateFileError::Damaged { .. })));
        assert!(matches!(read(directory.path()), Err(StateFileError::Unreadable { .. })));
    }

    #[tokio::test]
    async fn the_newest_state_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let (send, receive) = watch::channel(None);
        let task = tokio::spawn(keep(path.clone(), receive));
        send.send_replace(Some(SOME));
        send.send_replace(Some(Remembered {
            highest_timeline: Timeline(9),
            ..SOME
        }));
        drop(send);
        task.await.unwrap();
        // A watch whose sender is gone still delivers the last value if it wasn't seen.
        assert_eq!(read(&path).unwrap().map(|r| r.highest_timeline), Some(Timeline(9)));
    }
}
