//! The five steps from nothing to a replicated cluster, each told while it is done and shown to have worked.

use std::fs;
use std::thread;
use std::time::Duration;

use super::error::{LabError, Tried};
use super::lab::{Lab, tell_lines};
use super::node::{Node, SUPERUSER};
use super::progress::{Progress, Told};
use super::server::Server;
use super::{primary, proxy_config, standby, tool};

const INITDB_DEADLINE: Duration = Duration::from_secs(120);
const STREAM_DEADLINE: Duration = Duration::from_secs(60);

/// All of it, from initdb on, in a folder that `lab.json` has marked.
pub(super) fn build(lab: &Lab, progress: &mut dyn Progress) -> Result<(), LabError> {
    let (first, standbys) = lab.nodes().split_first().ok_or(LabError::NoPrimary)?;
    make_folders(lab)?;
    initdb(lab, first, progress)?;
    configure_primary(lab, first, progress)?;
    back_up(lab, first, standbys, progress)?;
    configure_standbys(lab, first, standbys, progress)?;
    start_all(lab, first, standbys, progress)?;
    lab.write_config(proxy_config::LISTEN, proxy_config::ADMIN)?;
    Ok(())
}

fn make_folders(lab: &Lab) -> Result<(), LabError> {
    let archives = lab.nodes().iter().map(|node| lab.archive_of(node));
    let nodes = lab.nodes().iter().map(|node| node.dir().to_path_buf());
    for dir in [lab.dir().join("archive")].into_iter().chain(archives).chain(nodes) {
        fs::create_dir(&dir).tried(|| format!("can't make {}", dir.display()))?;
        lab.run_as().give(&dir)?;
    }
    Ok(())
}

fn initdb(lab: &Lab, first: &Node, progress: &mut dyn Progress) -> Result<(), LabError> {
    let data = first.data();
    let mut command = lab.command("initdb");
    command
        .args([
            "-U",
            SUPERUSER,
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--data-checksums",
            "-D",
        ])
        .arg(&data);
    if lab.is_fast() {
        command.arg("--no-sync");
    }
    progress.doing(&format!("initdb -U {SUPERUSER} -D {}", data.display()));
    let said = tool::run(command, "initdb", INITDB_DEADLINE)?;
    let phrases = [
        "belonging to this database system",
        "creating directory",
        "running bootstrap script",
    ];
    for line in said
        .lines()
        .filter(|line| phrases.iter().any(|phrase| line.contains(phrase)))
    {
        progress.told(Told::Proof { source: "initdb", line });
    }
    Ok(())
}

fn configure_primary(lab: &Lab, first: &Node, progress: &mut dyn Progress) -> Result<(), LabError> {
    progress.told(Told::Step {
        number: 2,
        title: "configure the primary (postgresql.conf, pg_hba.conf), and start it",
    });
    let settings = primary::configure(lab, first)?;
    tell_settings(
        progress,
        settings.lines(),
        &[
            "listen_addresses",
            "port",
            "wal_level",
            "archive_",
            "max_wal_senders",
            "wal_keep",
            "hot_standby",
        ],
    );
    progress.doing("pg_hba.conf: trust on this machine, for replication too");
    let server = Server::of(lab, first);
    let before = server.log_position();
    server.start()?;
    tell_lines(
        progress,
        first,
        &server.log_since(before),
        &["ready to accept connections"],
    );
    Ok(())
}

fn back_up(lab: &Lab, first: &Node, standbys: &[Node], progress: &mut dyn Progress) -> Result<(), LabError> {
    progress.told(Told::Step {
        number: 3,
        title: "copy the primary with base backups (pg_basebackup)",
    });
    for node in standbys {
        progress.doing(&format!(
            "pg_basebackup -p {} -X stream -D {}",
            first.port(),
            node.data().display()
        ));
    }
    at_once(standbys, |node| standby::base_backup(lab, first, &node.data()))?;
    for node in standbys {
        let label = fs::read_to_string(node.data().join("backup_label")).unwrap_or_default();
        tell_lines(progress, node, &label, &["START WAL LOCATION", "START TIME"]);
    }
    Ok(())
}

fn configure_standbys(lab: &Lab, first: &Node, standbys: &[Node], progress: &mut dyn Progress) -> Result<(), LabError> {
    progress.told(Told::Step {
        number: 4,
        title: "configure the standbys (standby.signal, primary_conninfo, restore_command)",
    });
    for node in standbys {
        let settings = standby::configure(lab, node, first)?;
        progress.doing(&format!("{}: standby.signal, and in postgresql.conf:", node.name()));
        tell_settings(
            progress,
            settings.lines(),
            &[
                "port",
                "primary_conninfo",
                "restore_command",
                "promote_trigger",
                "recovery_target",
            ],
        );
    }
    Ok(())
}

fn start_all(lab: &Lab, first: &Node, standbys: &[Node], progress: &mut dyn Progress) -> Result<(), LabError> {
    progress.told(Told::Step {
        number: 5,
        title: "start all, and see them stream",
    });
    let primary = Server::of(lab, first);
    let before = primary.log_position();
    at_once(standbys, |node| Server::of(lab, node).start())?;
    let what = "streaming to all standbys";
    tool::wait_for(what, STREAM_DEADLINE, || {
        let streaming = primary.sql("select count(*) from pg_stat_replication where state = 'streaming'")?;
        Ok((streaming == standbys.len().to_string()).then_some(()))
    })?;
    let authorized = primary.log_since(before);
    tell_lines(progress, first, &authorized, &["replication connection authorized"]);
    for node in standbys {
        let log = fs::read_to_string(node.log()).unwrap_or_default();
        tell_lines(progress, node, &log, &["started streaming WAL"]);
    }
    Ok(())
}

fn tell_settings(progress: &mut dyn Progress, lines: impl Iterator<Item = String>, names: &[&str]) {
    for line in lines.filter(|line| names.iter().any(|name| line.starts_with(name))) {
        progress.doing(&format!("  {line}"));
    }
}

/// Does the same for all nodes at once; the first error in their order is the one that counts.
fn at_once(nodes: &[Node], work: impl Fn(&Node) -> Result<(), LabError> + Sync) -> Result<(), LabError> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = nodes.iter().map(|node| scope.spawn(move || work(node))).collect();
        let done: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().expect("a step does not panic"))
            .collect();
        done.into_iter().collect()
    })
}
