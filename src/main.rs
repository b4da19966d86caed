//! The command line, to one call in the library.
use std::process::ExitCode;

use clap::Parser;
use pgsluice::lab;

#[derive(Parser)]
enum Command {
    /// A replicated cluster on this machine
    Lab(lab::LabCommand),
    /// Shows pgsluice at work
    Demo(lab::DemoCommand),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Lab(command) => lab::run(command),
        Command::Demo(command) => lab::run_demo(command),
    }
}
