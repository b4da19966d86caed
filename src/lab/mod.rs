//! The lab: a replicated PostgreSQL cluster on this machine, made with the installed programs, and taken apart again.
//!
//! [`Lab::up`] does the five steps of the usual recipe: find the programs and initdb, configure the primary, base backups, configure
//! the standbys, start all and show the log lines that prove it. Every other verb acts on what [`Lab::open`] finds in the folder: the
//! servers' own files are the truth, and `lab.json` says only which nodes there are. It all runs synchronously and talks to the servers
//! through `psql`, so that the lab depends on nothing of the proxy that it is there to test.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `command`, `progress`, `error` | the command line; what is told on the way; what can go wrong |
//! | `lab`, `steps`, `promote`, `rejoin`, `status` | the verbs |
//! | `primary`, `standby`, `settings`, `versions` | a server's configuration |
//! | `server`, `node`, `manifest` | a server as a process; its files; `lab.json` |
//! | `binaries`, `run_as`, `folder`, `ports`, `tool` | the machine: programs, users, folders, ports |
//! | `guard` | a lab for a test, gone when the test ends |
//! | `demo` | the lab and the proxy in front of it, explained |

/// Prints a line. Unlike `println!` it doesn't mind that the reader has gone: a panic would leave the servers behind.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod binaries;
mod command;
mod demo;
mod error;
mod folder;
mod guard;
#[expect(clippy::module_inception, reason = "STYLE: a file is named for the noun it holds")]
mod lab;
mod manifest;
mod node;
mod ports;
mod primary;
mod progress;
mod promote;
mod proxy_config;
mod rejoin;
mod run_as;
mod server;
mod settings;
mod standby;
mod status;
mod steps;
mod tool;
mod versions;

pub use binaries::pg_bin;
pub use command::{LabCommand, run};
pub use demo::{DemoCommand, run as run_demo};
pub use error::LabError;
pub use guard::LabGuard;
pub use lab::{Lab, LabOptions, StopMode};
pub use node::Node;
pub use ports::anywhere as free_ports;
pub use progress::{Progress, Quiet, Told, Written};
pub use run_as::RunAs;
pub use status::{NodeStatus, Role, WalPosition};
