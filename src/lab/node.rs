//! One server of a lab: its name, its port, and where its files are.

use std::path::{Path, PathBuf};

/// The superuser of every lab; 127.0.0.1 is trusted.
pub(super) const SUPERUSER: &str = "postgres";

/// A path as a shell takes it. `up` refuses folders with quotes in them.
pub(super) fn for_shell(path: &Path) -> String {
    let path = path.display().to_string();
    if path.contains(char::is_whitespace) {
        format!("'{path}'")
    } else {
        path
    }
}

/// One server of a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    name: String,
    port: u16,
    dir: PathBuf,
}

impl Node {
    pub(super) fn new(lab: &Path, name: &str, port: u16) -> Self {
        Self {
            name: name.to_owned(),
            port,
            dir: lab.join(name),
        }
    }

    /// `node1` is the first primary, `node2` and up its standbys.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:15432`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Straight to the server, as superuser.
    pub fn dsn(&self) -> String {
        format!("postgresql://{SUPERUSER}@127.0.0.1:{}/postgres", self.port)
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The server's log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("postgresql.log")
    }

    /// What holds the data directory and the log.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// How another node's walreceiver, or a program, reaches this one.
    pub(super) fn conninfo(&self, application_name: &str) -> String {
        conninfo(self.port, application_name)
    }
}

/// A superuser's connection to a port of this machine. Neither TLS nor GSS is tried: the one would look for certificates in a home
/// that the servers' user may not read.
pub(super) fn conninfo(port: u16, application_name: &str) -> String {
    format!(
        "host=127.0.0.1 port={port} user={SUPERUSER} application_name={application_name} sslmode=disable gssencmode=disable"
    )
}
