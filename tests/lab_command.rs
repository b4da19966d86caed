//! `pgsluice lab` as a person or a script meets it.

use std::path::Path;
use std::process::{Command, Output};

use pgsluice::lab::{Lab, LabGuard};
use serde_json::Value;

fn pgsluice(arguments: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgsluice"));
    command.arg("lab").args(arguments).arg("--dir").arg(dir);
    command.output().expect("pgsluice runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A base port with room for three nodes.
fn base_port() -> String {
    let free = |port: &u16| (*port..port + 3).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
    let found = (21_000..30_000)
        .step_by(11)
        .filter(free)
        .nth(usize::try_from(std::process::id()).unwrap() % 50);
    found.expect("three free ports in a row").to_string()
}

#[test]
fn json_is_alone_on_standard_output_and_says_how_to_reach_everything() {
    let dir = LabGuard::fresh_dir().unwrap();
    let up = pgsluice(
        &["up", "--json", "--fast", "--standbys", "1", "--base-port", &base_port()],
        &dir,
    );
    let told = stderr(&up);
    assert!(up.status.success(), "{told}");
    let lab = LabGuard::adopt(Lab::open(&dir).unwrap());
    assert!(
        told.contains("[5/5]") && told.contains("started streaming WAL"),
        "{told}"
    );
    let said: Value = serde_json::from_slice(&up.stdout).unwrap();
    let nodes = said["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes[1]["role"], "standby");
    assert_eq!(nodes[1]["dsn"], lab.nodes()[1].dsn());
    for file in [
        &said["config"],
        &said["pg_bin"],
        &nodes[0]["data_directory"],
        &nodes[0]["log_file"],
    ] {
        assert!(Path::new(file.as_str().unwrap()).exists(), "{file}");
    }

    let promoted = pgsluice(&["promote", "node2", "--json"], &dir);
    let said: Value = serde_json::from_slice(&promoted.stdout).unwrap();
    assert_eq!(said["nodes"][1]["role"], "primary");
    assert_eq!(said["nodes"][1]["timeline"], 2);

    let table = stdout(&pgsluice(&["status"], &dir));
    assert!(table.contains("stale primary"), "{table}");
    assert!(pgsluice(&["down"], &dir).status.success());
    assert!(!dir.exists());
}

#[test]
fn an_error_is_exit_status_2_with_what_to_do() {
    let empty = tempfile::tempdir_in("/tmp").unwrap();
    for arguments in [&["status"][..], &["down"], &["promote", "node2"]] {
        let failed = pgsluice(arguments, empty.path());
        assert_eq!(failed.status.code(), Some(2));
        assert!(stderr(&failed).contains("not a lab's folder"), "{}", stderr(&failed));
        assert!(
            stderr(&failed).contains("hint: `pgsluice lab up"),
            "{}",
            stderr(&failed)
        );
    }
    let failed = pgsluice(&["up", "--pg-bin", "/nonexistent"], &empty.path().join("lab"));
    assert_eq!(failed.status.code(), Some(2));
    assert!(stderr(&failed).contains("initdb"), "{}", stderr(&failed));
    assert!(!empty.path().join("lab").exists());
}
