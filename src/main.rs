//! The command line, to one call in the library.
use std::process::ExitCode;

use clap::Parser;
use pgsluice::lab;

#[derive(Parser)]
enum Command {
    /// A replicated cluster on this machine
    Lab(lab::LabCommand),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Lab(command) => lab::run(command),
    }
}
