//! `pgsluice lab`: the command line's words, to the library's verbs.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::error::LabError;
use super::lab::{Lab, LabOptions, StopMode};
use super::node::for_shell;
use super::ports;
use super::progress::{Progress, Written};
use super::status;

/// Builds a replicated PostgreSQL cluster on this machine, and plays with it
#[derive(Debug, Args)]
pub struct LabCommand {
    #[command(subcommand)]
    verb: Verb,
    /// The lab's folder [default: /var/tmp/pgsluice-lab-<uid>]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print one JSON document on standard output, and progress on standard error
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build the cluster and start it; when it is there, start what is stopped
    Up(UpArgs),
    /// Show what every node is
    Status,
    /// End recovery on a standby, and have the other standbys follow it
    Promote(NodeArg),
    /// Stop a node
    Stop(StopArgs),
    /// Start a node
    Start(NodeArg),
    /// Stop a node's processes where they are, as if its machine hung
    Freeze(NodeArg),
    /// Have a frozen node go on
    Thaw(NodeArg),
    /// Make an old primary, or a standby that went astray, follow the current primary
    Rejoin(NodeArg),
    /// Stop a standby's replay, so that it lags
    PauseReplay(NodeArg),
    /// Have a standby's replay go on
    ResumeReplay(NodeArg),
    /// Stop all nodes and remove the folder
    Down,
}

#[derive(Debug, Args)]
struct UpArgs {
    /// The primary's port; the standbys have the next ones
    #[arg(long, value_name = "P", default_value_t = 15432)]
    base_port: u16,
    /// Hot standbys
    #[arg(long, value_name = "N", default_value_t = 2)]
    standbys: usize,
    /// The folder of PostgreSQL's programs, when they are not found or not the ones wanted
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Turn fsync off: quicker, and a machine that is lost loses the data
    #[arg(long)]
    fast: bool,
}

#[derive(Debug, Args)]
struct NodeArg {
    /// node1, node2, …, a port, or `primary`
    node: String,
}

#[derive(Debug, Args)]
struct StopArgs {
    #[command(flatten)]
    node: NodeArg,
    /// fast, immediate, or kill: as if the machine were lost
    #[arg(long, value_enum, default_value_t)]
    mode: StopMode,
}

/// Does it. What goes wrong is told on standard error, with what to do about it, and is exit status 2.
pub fn run(command: LabCommand) -> ExitCode {
    let done = match command.json {
        true => perform(&command, &mut Written(io::stderr())),
        false => perform(&command, &mut Written(io::stdout())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Tells an error as all of the lab's commands do.
pub(super) fn fail(error: &LabError) -> ExitCode {
    eprintln!("error: {error}");
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(2)
}

fn perform(command: &LabCommand, progress: &mut dyn Progress) -> Result<(), LabError> {
    let dir = command.dir.clone().unwrap_or_else(Lab::default_dir);
    if let Verb::Up(arguments) = &command.verb {
        return up(dir, arguments, command.json, progress);
    }
    if let Verb::Down = &command.verb {
        return down(dir, progress);
    }
    let lab = Lab::open(dir)?;
    match &command.verb {
        Verb::Up(_) | Verb::Down => {}
        Verb::Status if command.json => {}
        Verb::Status => say!("{}", status::table(&lab.status())),
        Verb::Promote(NodeArg { node }) => lab.promote(node, progress)?,
        Verb::Stop(StopArgs {
            node: NodeArg { node },
            mode,
        }) => lab.stop(node, *mode, progress)?,
        Verb::Start(NodeArg { node }) => lab.start(node, progress)?,
        Verb::Rejoin(NodeArg { node }) => lab.rejoin(node, progress)?,
        Verb::Freeze(NodeArg { node }) => {
            lab.freeze(node)?;
            progress.doing(&format!(
                "{node}: hangs; its connections stay, and nothing comes from it"
            ));
        }
        Verb::Thaw(NodeArg { node }) => {
            lab.thaw(node)?;
            progress.doing(&format!("{node}: goes on"));
        }
        Verb::PauseReplay(NodeArg { node }) => {
            lab.pause_replay(node)?;
            progress.doing(&format!("{node}: receives WAL and does not replay it"));
        }
        Verb::ResumeReplay(NodeArg { node }) => {
            lab.resume_replay(node)?;
            progress.doing(&format!("{node}: replays again"));
        }
    }
    if command.json {
        say!("{:#}", json!({ "dir": lab.dir(), "nodes": lab.status() }));
    }
    Ok(())
}

fn up(dir: PathBuf, arguments: &UpArgs, as_json: bool, progress: &mut dyn Progress) -> Result<(), LabError> {
    let options = LabOptions {
        dir,
        base_port: Some(arguments.base_port),
        standbys: arguments.standbys,
        pg_bin: arguments.pg_bin.clone(),
        fast: arguments.fast,
    };
    let lab = Lab::up(options, progress)?;
    if as_json {
        say!("{:#}", describe(&lab));
        return Ok(());
    }
    say!("\n{}\n", status::table(&lab.status()));
    let dir = for_shell(lab.dir());
    say!("pgsluice serve -c {}", for_shell(&lab.config_path()));
    say!("pgsluice lab status --dir {dir}");
    say!("pgsluice lab down --dir {dir}");
    if let Some(holder) = ports::holder(5432) {
        say!("\nPort 5432 is taken by {holder}: add --listen 127.0.0.1:6432 to `serve`.");
    }
    Ok(())
}

/// Also takes down what an `up` that was killed has left.
fn down(dir: PathBuf, progress: &mut dyn Progress) -> Result<(), LabError> {
    Lab::open_for_down(&dir)?.down(progress)
}

fn describe(lab: &Lab) -> serde_json::Value {
    let statuses = lab.status();
    let nodes = lab.nodes().iter().zip(&statuses).map(|(node, status)| {
        json!({
            "name": node.name(),
            "host": "127.0.0.1",
            "port": node.port(),
            "role": status.role,
            "dsn": node.dsn(),
            "data_directory": node.data(),
            "log_file": node.log(),
        })
    });
    json!({
        "dir": lab.dir(),
        "config": lab.config_path(),
        "trigger_file": lab.trigger_file(),
        "pg_bin": lab.pg_bin(),
        "version": lab.version(),
        "user": lab.user(),
        "nodes": nodes.collect::<Vec<_>>(),
    })
}
