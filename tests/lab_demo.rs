//! `pgsluice demo` with a stand-in for the proxy: a relay to the lab's first node.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsluice::lab::{Lab, LabGuard, Quiet, StopMode};

const DEADLINE: Duration = Duration::from_secs(60);

/// A demo under test, ended on drop.
struct Demo {
    child: Child,
    lines: Receiver<String>,
    heard: String,
}

impl Demo {
    fn start(dir: &Path, proxy_program: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgsluice"));
        command
            .args([
                "demo",
                "--standbys",
                "1",
                "--port",
                "26432",
                "--admin-port",
                "26932",
                "--dir",
            ])
            .arg(dir);
        command.arg("--proxy-program").arg(proxy_program);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("pgsluice runs");
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Self {
            child,
            lines,
            heard: String::new(),
        }
    }

    /// The first line with this in it.
    fn hear(&mut self, phrase: &str) -> String {
        let began = Instant::now();
        loop {
            let left = DEADLINE.saturating_sub(began.elapsed());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("never said {phrase:?}, but:\n{}", self.heard)
            };
            self.heard += &format!("{line}\n");
            if line.contains(phrase) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("the demo is there");
    }

    fn ends(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(began.elapsed() < DEADLINE, "the demo does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// A program that runs `stand_in` below with what `serve` was given. The configuration stays on its command line, as a second
/// name that no test has: by it a demo knows another one's proxy.
fn relay(dir: &Path) -> std::path::PathBuf {
    let this = std::env::current_exe().expect("this test");
    write_program(
        dir,
        &format!(
            "RELAY=\"$3 $5\" exec {} --ignored --exact stand_in \"$3\" --nocapture",
            this.display()
        ),
    )
}

fn write_program(dir: &Path, line: &str) -> std::path::PathBuf {
    let path = dir.join("proxy");
    fs::write(&path, format!("#!/bin/sh\n{line}\n")).expect("a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("made executable");
    path
}

#[test]
#[ignore = "not a test: the proxy of the demo under test"]
fn stand_in() {
    let Ok(arguments) = std::env::var("RELAY") else { return };
    let (config, listen) = arguments.split_once(' ').expect("two arguments");
    let config: toml::Table = fs::read_to_string(config).expect("a file").parse().expect("TOML");
    let node = config["cluster"]["node"][0]["address"]
        .as_str()
        .expect("an address")
        .to_owned();
    for client in TcpListener::bind(listen).expect("a free port").incoming().flatten() {
        if let Ok(server) = TcpStream::connect(&node) {
            copy(&client, &server);
            copy(&server, &client);
        }
    }
}

fn copy(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
        let _ = io::stderr().flush();
    });
}

/// One test, since there is one port for all of them to begin at, and each step needs the one before.
#[test]
fn the_demo_shows_a_second_one_where_it_is_and_ends_without_leaving_anything() {
    let programs = tempfile::tempdir().unwrap();
    let relay = relay(programs.path());
    let dir = LabGuard::fresh_dir().unwrap();
    let mut demo = Demo::start(&dir, &relay);
    demo.hear("[5/5]");
    demo.hear("pgsluice is up");
    demo.hear("answered by node1");
    let dsn = demo.hear("connect ");
    assert!(dsn.contains("postgresql://postgres@127.0.0.1:26"), "{dsn}");
    demo.hear("Ctrl-C takes everything down");
    demo.hear("node1 primary (timeline 1), node2 standby");

    let mut second = Demo::start(&dir, &relay);
    assert!(second.hear("running already").contains(&demo.child.id().to_string()));
    assert_eq!(second.hear("connect "), dsn);
    assert!(second.ends().success());

    let lab = Lab::open(&dir).unwrap();
    lab.stop("node2", StopMode::Immediate, &mut Quiet).unwrap();
    demo.hear("node2 stopped");

    demo.signal(Signal::SIGTERM);
    assert!(demo.ends().success());
    assert!(!dir.exists());

    // Killed, it leaves the lab and the proxy; the next one removes both.
    let mut killed = Demo::start(&dir, &relay);
    killed.hear("Ctrl-C takes everything down");
    let port = dsn_port(&killed.heard);
    killed.signal(Signal::SIGKILL);
    killed.ends();
    let mut next = Demo::start(&dir, &relay);
    next.hear("did not end properly");
    next.hear("Ctrl-C takes everything down");
    assert_eq!(
        dsn_port(&next.heard),
        port,
        "the killed demo's proxy still has its port"
    );
    next.signal(Signal::SIGINT);
    assert!(next.ends().success());
    assert!(!dir.exists());
    fs::remove_file(dir.with_extension("lock")).unwrap();
}

fn dsn_port(heard: &str) -> String {
    let after = heard.split("postgresql://postgres@127.0.0.1:").nth(1).expect("a DSN");
    after.split('/').next().expect("a port").to_owned()
}

#[test]
fn a_proxy_that_dies_is_told_with_its_last_words_and_takes_the_lab_along() {
    let programs = tempfile::tempdir().unwrap();
    let proxy = write_program(programs.path(), "echo 'no such setting: foo'; exit 3");
    let dir = LabGuard::fresh_dir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgsluice"));
    command
        .args([
            "demo",
            "--standbys",
            "0",
            "--port",
            "27432",
            "--admin-port",
            "27932",
            "--dir",
        ])
        .arg(&dir);
    let output = command.arg("--proxy-program").arg(proxy).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains("exit status: 3") && told.contains("no such setting: foo"),
        "{told}"
    );
    assert!(!dir.exists());
    fs::remove_file(dir.with_extension("lock")).unwrap();
}
