//! `pgsluice demo`: a lab, the proxy in front of it, a few statements with where they went, and a live table until Ctrl-C.
//!
//! The proxy is a child process (`pgsluice serve`), as it would be in earnest; the lab knows nothing of it but its command line, its
//! port and its HTTP addresses. Whatever ends the demo, the proxy ends first and then the lab; nothing stays behind. What a demo that
//! was killed did leave, the next one removes.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `claim` | one demo at a time: the lock file |
//! | `proxy_process` | the proxy as a child |
//! | `tour` | the statements that show where writes and reads go |
//! | `live` | the table |

mod claim;
mod live;
mod proxy_process;
mod tour;

use std::future::Future;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use nix::unistd::geteuid;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::command::fail;
use super::error::{LabError, Tried};
use super::lab::{Lab, LabOptions};
use super::ports;
use super::progress::{Quiet, Written};
use claim::{Claim, Claimed, Running};
use live::Live;
use proxy_process::ProxyProcess;

/// How long a proxy may take from its start to its first answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Shows pgsluice at work: builds a cluster, runs the proxy in front of it, and takes all of it down on Ctrl-C
#[derive(Debug, Clone, Args)]
pub struct DemoCommand {
    /// The demo's folder [default: /var/tmp/pgsluice-demo-<uid>]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The proxy's port; the next free one if it is taken
    #[arg(long, value_name = "P", default_value_t = 5432)]
    port: u16,
    /// The status page's port; the next free one if it is taken
    #[arg(long, value_name = "P", default_value_t = 9432)]
    admin_port: u16,
    /// Hot standbys
    #[arg(long, value_name = "N", default_value_t = 2)]
    standbys: usize,
    /// The folder of PostgreSQL's programs, when they are not found or not the ones wanted
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Another program than this one for `serve`
    #[arg(long, value_name = "FILE", hide = true)]
    proxy_program: Option<PathBuf>,
}

/// Where the demo's parts are.
#[derive(Debug, Clone, Copy)]
struct Ports {
    listen: u16,
    admin: u16,
    /// `None` where the lab's usual ports are taken.
    base: Option<u16>,
}

/// Runs until Ctrl-C or SIGTERM, which are exit status 0.
pub fn run(command: DemoCommand) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime
        .tried(|| "can't start".into())
        .and_then(|runtime| runtime.block_on(demo(&command)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn demo(command: &DemoCommand) -> Result<(), LabError> {
    let mut stop = Stop::listen()?;
    let dir = command
        .dir
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("/var/tmp/pgsluice-demo-{}", geteuid())));
    let mut claim = match Claim::take(&dir)? {
        Claimed::Ours(claim) => claim,
        Claimed::Running(running) => {
            say!(
                "A demo is running already (process {}).\n{}",
                running.pid,
                running.how_to_reach()
            );
            return Ok(());
        }
    };
    claim.remove_leftovers(&dir)?;
    let ports = choose_ports(command)?;
    let Some(lab) = build(command, dir, ports, &mut stop).await? else {
        return Ok(());
    };
    let shown = show(command, &lab, ports, &mut claim, &mut stop).await;
    let taken_down = in_background(move || lab.down(&mut Written(io::stdout()))).await;
    shown.and(taken_down)
}

/// The proxy's life, from its start to its end.
async fn show(
    command: &DemoCommand,
    lab: &Lab,
    ports: Ports,
    claim: &mut Claim,
    stop: &mut Stop,
) -> Result<(), LabError> {
    lab.write_config(&local(ports.listen), &local(ports.admin))?;
    let mut proxy = ProxyProcess::start(command.proxy_program.as_deref(), lab, ports.listen)?;
    let running = Running::new(&proxy, lab, ports);
    claim.record(&running)?;
    let shown = tokio::select! {
        shown = explain_and_watch(lab, ports, &running) => shown,
        said = proxy.ended() => Err(LabError::ProxyGone { said }),
        () = stop.asked() => {
            say!("\nTaking everything down.");
            Ok(())
        }
    };
    proxy.end().await;
    shown
}

/// Shows what there is to see, and then the table for as long as it is let.
async fn explain_and_watch(lab: &Lab, ports: Ports, running: &Running) -> Result<(), LabError> {
    until_it_answers(lab, ports.listen).await?;
    say!("\npgsluice is up.\n");
    let touring = lab.clone();
    in_background(move || tour::show_where_statements_go(&touring, ports.listen)).await?;
    say!(
        "\n{}\n\n{}\n",
        running.how_to_reach(),
        tour::what_to_try(lab, ports.listen)
    );
    let mut live = Live::new(io::stdout().is_terminal());
    let mut tick = tokio::time::interval(live.interval());
    loop {
        tick.tick().await;
        let watched = lab.clone();
        let sample = in_background(move || Ok(live::Sample::take(&watched, ports.admin))).await?;
        live.show(&sample);
    }
}

/// Waits for a login through the proxy. One attempt at a time is in the background, so that dropping this ends it soon.
async fn until_it_answers(lab: &Lab, port: u16) -> Result<(), LabError> {
    let began = Instant::now();
    loop {
        let asking = lab.clone();
        let Err(error) = in_background(move || tour::ask(&asking, port, "select 1")).await else {
            return Ok(());
        };
        if began.elapsed() > ANSWER_DEADLINE {
            let (what, detail) = ("an answer from pgsluice".into(), format!("; the last attempt: {error}"));
            return Err(LabError::Timeout {
                what,
                after: ANSWER_DEADLINE,
                detail,
            });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The lab; `None` when the demo was asked to stop meanwhile.
async fn build(command: &DemoCommand, dir: PathBuf, ports: Ports, stop: &mut Stop) -> Result<Option<Lab>, LabError> {
    say!(
        "pgsluice demo: a primary and {} hot standbys on this machine, and pgsluice in front of them.\n",
        command.standbys
    );
    let options = LabOptions {
        base_port: ports.base,
        standbys: command.standbys,
        pg_bin: command.pg_bin.clone(),
        fast: true,
        ..LabOptions::in_dir(dir)
    };
    let building = in_background(move || match Lab::up(options.clone(), &mut Written(io::stdout())) {
        // Free a moment ago, when they were chosen.
        Err(LabError::PortTaken { .. }) => Lab::up(
            LabOptions {
                base_port: None,
                ..options
            },
            &mut Written(io::stdout()),
        ),
        built => built,
    });
    tokio::pin!(building);
    tokio::select! {
        built = &mut building => return built.map(Some),
        () = stop.asked() => say!("\nTaking down what there is so far."),
    }
    // Ctrl-C at a terminal has interrupted initdb and its like too, so that this ends soon, often by an error that nobody asked about.
    if let Ok(lab) = building.await {
        in_background(move || lab.down(&mut Quiet)).await?;
    }
    Ok(None)
}

fn choose_ports(command: &DemoCommand) -> Result<Ports, LabError> {
    let listen = choose(command.port, None)?;
    let admin = choose(command.admin_port, Some(listen))?;
    let count = command.standbys + 1;
    let usual = LabOptions::in_dir("").base_port;
    let base = usual.filter(|&port| ports::in_a_row(port, count).is_ok());
    Ok(Ports { listen, admin, base })
}

/// `wanted`, or the next port that is free and not spoken for; says so when it is another one.
fn choose(wanted: u16, spoken_for: Option<u16>) -> Result<u16, LabError> {
    let taken = || LabError::PortTaken {
        port: wanted,
        by: ports::holder(wanted),
    };
    let mut found = ports::at_or_after(wanted).ok_or_else(taken)?;
    if Some(found) == spoken_for {
        found = found.checked_add(1).and_then(ports::at_or_after).ok_or_else(taken)?;
    }
    if found != wanted {
        say!(
            "Port {wanted} is taken{}: using {found}.",
            ports::holder(wanted).map(|by| format!(" by {by}")).unwrap_or_default()
        );
    }
    Ok(found)
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Runs what blocks, without keeping signals waiting. Not stopped when dropped.
fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LabError> + Send + 'static,
) -> impl Future<Output = Result<T, LabError>> {
    let working = tokio::task::spawn_blocking(work);
    async move {
        working
            .await
            .map_err(io::Error::from)
            .tried(|| "the demo broke off".into())?
    }
}

/// The signals that end a demo.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    /// `None` under `nohup`.
    hang_up: Option<Signal>,
}

impl Stop {
    fn listen() -> Result<Self, LabError> {
        let listen = |kind| signal(kind).tried(|| "can't listen for signals".into());
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: if hang_ups_are_ignored() {
                None
            } else {
                Some(listen(SignalKind::hangup())?)
            },
        })
    }

    /// Waits for one of them. Dropping it loses none.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            Some(_) = async { self.hang_up.as_mut()?.recv().await } => {}
        }
    }
}

/// Whether we were started with SIGHUP ignored: the lowest bit of the kernel's mask.
fn hang_ups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.is_some_and(|mask| mask.trim().ends_with(['1', '3', '5', '7', '9', 'b', 'd', 'f']))
}
