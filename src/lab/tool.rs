//! Running PostgreSQL's programs, and waiting: everything here ends by a deadline.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::error::{LabError, Tried};

/// Runs a program to its end and returns what it printed; kills it at the deadline.
pub(super) fn run(command: Command, what: &str, deadline: Duration) -> Result<String, LabError> {
    run_both(command, what, deadline).map(|(stdout, _)| stdout)
}

/// As [`run`], for a program that tells on standard error what it does.
pub(super) fn run_loud(command: Command, what: &str, deadline: Duration) -> Result<String, LabError> {
    run_both(command, what, deadline).map(|(stdout, stderr)| stderr + "\n" + &stdout)
}

fn run_both(mut command: Command, what: &str, deadline: Duration) -> Result<(String, String), LabError> {
    let output = output(&mut command, what, deadline)?;
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
    if output.status.success() {
        return Ok((stdout, stderr));
    }
    let said = [stderr, stdout, output.status.to_string()]
        .into_iter()
        .find(|said| !said.is_empty());
    Err(LabError::Tool {
        what: what.to_owned(),
        output: said.unwrap_or_default(),
    })
}

fn output(command: &mut Command, what: &str, deadline: Duration) -> Result<Output, LabError> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().tried(|| format!("can't run {what}"))?;
    // Read apart from the wait: a program whose pipe is full never ends.
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait().tried(|| format!("can't wait for {what}"))? {
            break status;
        }
        if began.elapsed() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(LabError::Timeout {
                what: what.to_owned(),
                after: deadline,
                detail: String::new(),
            });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    Ok(Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut all);
        }
        all
    })
}

/// Asks until there is an answer, or fails at the deadline. An error from `ask` ends the wait.
pub(super) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut ask: impl FnMut() -> Result<Option<T>, LabError>,
) -> Result<T, LabError> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if began.elapsed() > deadline {
            return Err(LabError::Timeout {
                what: what.to_owned(),
                after: deadline,
                detail: String::new(),
            });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
