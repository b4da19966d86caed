//! What can go wrong with a lab, each cause with what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a lab's verb did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// No folder holds the server's programs.
    #[error("no PostgreSQL server programs found (looked in {looked})")]
    NoBinaries {
        /// The places, as a list for people.
        looked: String,
    },
    /// A folder that was asked for lacks programs.
    #[error("{dir} has no {missing}")]
    IncompleteBinaries {
        /// The folder.
        dir: PathBuf,
        /// The programs that it lacks.
        missing: String,
    },
    /// A version without `standby.signal`.
    #[error("PostgreSQL {version} is too old for the lab")]
    TooOld {
        /// As the server tells it.
        version: String,
    },
    /// Root, and nobody to drop to.
    #[error("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")]
    NoUnprivilegedUser,
    /// The folder, or one above it, is closed to the user that the servers run as.
    #[error("{dir} can't be entered by the user {user}, who runs the servers")]
    Unreachable {
        /// The lab's folder.
        dir: PathBuf,
        /// The servers' user.
        user: String,
    },
    /// The folder holds no `lab.json`.
    #[error("{dir} is not a lab's folder")]
    NotALab {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder holds something that isn't a lab.
    #[error("{dir} is not empty, and not a lab's folder")]
    NotEmpty {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder belongs to somebody else.
    #[error("{dir} belongs to {owner}")]
    NotYours {
        /// The folder.
        dir: PathBuf,
        /// Its owner.
        owner: String,
    },
    /// A character that archive_command's shell or postgresql.conf would read as something else.
    #[error("the lab's folder may not have {character:?} in its path: {dir}")]
    BadPath {
        /// The folder.
        dir: PathBuf,
        /// The first such character.
        character: char,
    },
    /// Another `up` is at work on the same folder.
    #[error("process {pid} is building the lab in {dir}")]
    BeingBuilt {
        /// The folder.
        dir: PathBuf,
        /// The builder.
        pid: i32,
    },
    /// Somebody listens there.
    #[error("port {port} is taken{}", by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default())]
    PortTaken {
        /// The port.
        port: u16,
        /// By whom, where that can be seen.
        by: Option<String>,
    },
    /// A base port that leaves no room for all nodes, or is for root only.
    #[error("{nodes} nodes can't have the ports from {base_port} up")]
    PortRange {
        /// As asked for.
        base_port: u16,
        /// Primary and standbys.
        nodes: usize,
    },
    /// No node of that name or port.
    #[error("no node {name}; the lab has {known}")]
    UnknownNode {
        /// As asked for.
        name: String,
        /// The lab's nodes.
        known: String,
    },
    /// The verb needs a running server.
    #[error("{node} is not running")]
    NotRunning {
        /// The node.
        node: String,
    },
    /// The verb is for standbys.
    #[error("{node} is a primary")]
    IsPrimary {
        /// The node.
        node: String,
    },
    /// No running server is out of recovery.
    #[error("no primary is running")]
    NoPrimary,
    /// One of PostgreSQL's programs failed.
    #[error("{what} failed: {output}")]
    Tool {
        /// The program, and what for.
        what: String,
        /// What it said.
        output: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {}s{detail}", after.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
        /// The last that was seen: a log's last lines, or nothing.
        detail: String,
    },
    /// The file system said no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// `lab.json` isn't what `up` writes.
    #[error("{path} can't be read: {source}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The demo's proxy did not live.
    #[error("pgsluice stopped: {said}")]
    ProxyGone {
        /// Its exit status and last log lines.
        said: String,
    },
}

impl LabError {
    /// What to do about it, where that isn't in the message.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoBinaries { .. } => {
                "install the server (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server), \
                 or name its folder with --pg-bin"
                    .into()
            }
            Self::IncompleteBinaries { .. } => "name the folder that has initdb, postgres and pg_ctl".into(),
            Self::TooOld { .. } => {
                "before 12 a standby is made with recovery.conf, there is no pg_promote(), and a standby must be restarted \
                 to follow another primary; install 12 or newer, or name it with --pg-bin"
                    .into()
            }
            Self::NoUnprivilegedUser => "run pgsluice as an ordinary user, or add a user named postgres".into(),
            Self::Unreachable { .. } => "choose another folder with --dir, for instance below /var/tmp".into(),
            Self::NotALab { dir } => format!("`pgsluice lab up --dir {}` builds one", dir.display()),
            Self::NotEmpty { .. } | Self::BadPath { .. } => "choose another folder with --dir".into(),
            Self::NotYours { .. } => "be that user, or choose another folder with --dir".into(),
            Self::BeingBuilt { .. } => "wait for it".into(),
            Self::PortTaken { .. } => "choose other ports with --base-port".into(),
            Self::PortRange { .. } => "choose a port from 1024 to 65535, with room for all nodes, with --base-port".into(),
            Self::NotRunning { node } => format!("`pgsluice lab start {node}` starts it"),
            Self::NoPrimary => "start one, or promote a standby: `pgsluice lab promote node2`".into(),
            Self::UnknownNode { .. }
            | Self::IsPrimary { .. }
            | Self::Tool { .. }
            | Self::Timeout { .. }
            | Self::Io { .. }
            | Self::Manifest { .. }
            | Self::ProxyGone { .. } => return None,
        };
        Some(hint)
    }
}

/// Names what was tried when the file system says no.
pub(super) trait Tried<T> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T> Tried<T> for io::Result<T> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|source| LabError::Io { what: what(), source })
    }
}
