//! The file whose appearance asks for a promotion.
//!
//! A file is one request: it is acted upon once, and removed after a success. After a failure it stays, and nothing more happens
//! until it is removed and created again. A file that is already there when the proxy starts is no request, since nobody can
//! tell whether it is a new one or what a failure left behind, and a promotion can't be taken back.
//!
//! A PostgreSQL up to 15 may watch the same file and remove it first; that is fine.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::promotion::Promoter;

/// How often to look. PostgreSQL itself looks every 5 s.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Which file it is: one that was removed and created again is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

/// A path, and what is there now.
pub(super) struct TriggerFile {
    path: PathBuf,
    known: Option<FileIdentity>,
}

impl TriggerFile {
    /// Looks at once: what comes from here on is a request.
    pub(super) fn at(path: &Path) -> TriggerFile {
        let known = std::fs::metadata(path).ok().and_then(|metadata| identity(&metadata));
        if known.is_some() {
            tracing::warn!(path = %path.display(), "the trigger file is there already: ignored until it is created again");
        }
        TriggerFile {
            path: path.to_owned(),
            known,
        }
    }
}

/// Watches the path for ever.
pub(super) async fn watch(file: TriggerFile, promoter: Arc<Promoter>) {
    let TriggerFile { path, mut known } = file;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let found = look(&path).await;
        let is_request = found.is_some() && found != known;
        known = found;
        if is_request {
            tracing::info!(path = %path.display(), "the trigger file has appeared");
            if promoter.run().await.is_ok() {
                remove(&path, found).await;
            }
        }
    }
}

/// The file at the path, if there is one. A directory is none. One that can't be looked at isn't there.
async fn look(path: &Path) -> Option<FileIdentity> {
    identity(&tokio::fs::metadata(path).await.ok()?)
}

fn identity(metadata: &std::fs::Metadata) -> Option<FileIdentity> {
    (!metadata.is_dir()).then(|| FileIdentity {
        device: metadata.dev(),
        inode: metadata.ino(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

/// Removes the file that was acted upon, and not one that has taken its place.
async fn remove(path: &Path, acted_upon: Option<FileIdentity>) {
    if look(path).await != acted_upon {
        return;
    }
    match tokio::fs::remove_file(path).await {
        Ok(()) => tracing::info!(path = %path.display(), "the trigger file was removed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(
            path = %path.display(), %error,
            "the trigger file can't be removed; it is ignored until it is created again"
        ),
    }
}
