//! The lab against the installed PostgreSQL: every verb, and what it leaves behind.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use pgsluice::lab::{Lab, LabError, LabGuard, LabOptions, NodeStatus, Progress, Quiet, Role, StopMode, Told};

/// Keeps what it is told.
#[derive(Default)]
struct Heard(Vec<String>);

impl Progress for Heard {
    fn told(&mut self, what: Told<'_>) {
        self.0.push(match what {
            Told::Step { number, title } => format!("{number} {title}"),
            Told::Doing(text) => text.to_owned(),
            Told::Proof { source, line } => format!("{source} | {line}"),
            Told::Warning(text) => format!("warning: {text}"),
        });
    }
}

impl Heard {
    fn has(&self, phrase: &str) -> bool {
        self.0.iter().any(|line| line.contains(phrase))
    }
}

fn roles(lab: &Lab) -> Vec<Role> {
    lab.status().iter().map(|status| status.role).collect()
}

fn one(lab: &Lab, name: &str) -> NodeStatus {
    lab.status()
        .into_iter()
        .find(|status| status.name == name)
        .expect("the lab has this node")
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn count(lab: &Lab, node: &str, table: &str) -> String {
    lab.sql(node, &format!("select count(*) from {table}"))
        .unwrap_or_else(|error| error.to_string())
}

/// Processes whose command line has this text: postmasters have their data directory in it.
fn processes_of(dir: &Path) -> usize {
    let dir = dir.to_str().expect("a plain path");
    let all = fs::read_dir("/proc").expect("Linux").flatten();
    let lines = all.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| line.contains("postgres") && line.contains(dir))
        .count()
}

/// The real programs, without one of them.
fn programs_without(missing: &str) -> tempfile::TempDir {
    let lab = LabGuard::fresh(0).expect("a lab");
    let dir = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in("/tmp")
        .expect("a folder");
    for entry in fs::read_dir(lab.pg_bin())
        .expect("programs")
        .flatten()
        .filter(|entry| entry.file_name() != missing)
    {
        symlink(entry.path(), dir.path().join(entry.file_name())).expect("a link");
    }
    dir
}

fn write_program(path: PathBuf, text: &str) {
    fs::write(&path, text).expect("a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("made executable");
}

#[test]
fn up_tells_five_steps_and_the_standbys_stream() {
    let mut heard = Heard::default();
    let lab = Lab::up(LabOptions::for_test(LabGuard::fresh_dir().unwrap()), &mut heard).unwrap();
    let lab = LabGuard::adopt(lab);
    for phrase in ["1 ", "2 ", "3 ", "4 ", "5 "] {
        assert!(
            heard.0.iter().any(|line| line.starts_with(phrase)),
            "{phrase}: {:#?}",
            heard.0
        );
    }
    let proofs = |phrase: &str| heard.0.iter().filter(|line| line.contains(phrase)).count();
    assert_eq!(proofs("replication connection authorized"), 2);
    assert_eq!(proofs("started streaming WAL"), 2);
    assert_eq!(roles(&lab), [Role::Primary, Role::Standby, Role::Standby]);
    assert_eq!(one(&lab, "node3").streaming_from.as_deref(), Some("node1"));

    lab.sql("primary", "create table t as select 1 as i").unwrap();
    eventually("the row on both standbys", || {
        ["node2", "node3"].iter().all(|node| count(&lab, node, "t") == "1")
    });
    lab.sql("node1", "select pg_switch_wal()").unwrap();
    let archive = lab.dir().join("archive/node1");
    eventually("a segment in the archive", || {
        fs::read_dir(&archive).unwrap().count() > 0
    });

    let config = fs::read_to_string(lab.config_path()).unwrap();
    let config: toml::Table = config.parse().unwrap();
    assert_eq!(config["cluster"]["node"].as_array().unwrap().len(), 3);
}

#[test]
fn repeating_up_starts_what_is_stopped_and_nothing_else() {
    let lab = LabGuard::fresh(1).unwrap();
    let pid = one(&lab, "node1").pid;
    lab.stop("node2", StopMode::Fast, &mut Quiet).unwrap();
    let mut heard = Heard::default();
    let again = Lab::up(LabOptions::for_test(lab.dir()), &mut heard).unwrap();
    assert!(heard.has("is there already"), "{:#?}", heard.0);
    assert_eq!(again.nodes(), lab.nodes());
    assert_eq!(roles(&again), [Role::Primary, Role::Standby]);
    assert_eq!(one(&again, "node1").pid, pid);
}

#[test]
fn a_node_stopped_in_any_mode_starts_again_as_what_it_was() {
    let lab = LabGuard::fresh(1).unwrap();
    lab.sql("node1", "create table t as select 1 as i").unwrap();
    for mode in [StopMode::Fast, StopMode::Immediate, StopMode::Kill] {
        for (node, role) in [("node1", Role::Primary), ("node2", Role::Standby)] {
            let data = lab.node(node).unwrap().data();
            lab.stop(node, mode, &mut Quiet).unwrap();
            assert_eq!(one(&lab, node).role, Role::Stopped, "{node} {mode:?}");
            assert_eq!(
                data.join("postmaster.pid").exists(),
                mode == StopMode::Kill,
                "{node} {mode:?}"
            );
            assert_eq!(processes_of(&data), 0, "{node} {mode:?}");
            lab.stop(node, mode, &mut Quiet).unwrap();
            lab.start(node, &mut Quiet).unwrap();
            lab.start(node, &mut Quiet).unwrap();
            assert_eq!(one(&lab, node).role, role, "{node} {mode:?}");
            assert_eq!(count(&lab, node, "t"), "1", "{node} {mode:?}");
        }
    }
    eventually("streaming again", || one(&lab, "node2").streaming_from.is_some());
}

#[test]
fn a_lock_file_with_the_number_of_another_programs_process_is_no_obstacle() {
    let lab = LabGuard::fresh(0).unwrap();
    lab.stop("node1", StopMode::Kill, &mut Quiet).unwrap();
    let lock = lab.node("node1").unwrap().data().join("postmaster.pid");
    let stale = fs::read_to_string(&lock).unwrap();
    let (_, rest) = stale.split_once('\n').unwrap();
    fs::write(&lock, format!("{}\n{rest}", std::process::id())).unwrap();
    assert_eq!(one(&lab, "node1").role, Role::Stopped);
    lab.start("node1", &mut Quiet).unwrap();
    assert_eq!(one(&lab, "node1").role, Role::Primary);
}

#[test]
fn after_a_promotion_the_other_standby_follows_and_the_old_primary_rejoins_without_its_extra_rows() {
    let lab = LabGuard::fresh(2).unwrap();
    lab.sql("node1", "create table t(i int)").unwrap();
    let mut heard = Heard::default();
    lab.promote("node2", &mut heard).unwrap();
    assert!(heard.has("node3: follows node2"), "{:#?}", heard.0);
    assert!(heard.has("node1 still runs as a primary"), "{:#?}", heard.0);
    assert_eq!(roles(&lab), [Role::StalePrimary, Role::Primary, Role::Standby]);
    assert_eq!(lab.primary().unwrap().name(), "node2");
    assert!(matches!(
        lab.promote("node2", &mut Quiet),
        Err(LabError::IsPrimary { .. })
    ));
    assert!(matches!(
        lab.rejoin("node2", &mut Quiet),
        Err(LabError::IsPrimary { .. })
    ));

    lab.sql("node1", "insert into t select generate_series(1, 1000)")
        .unwrap();
    lab.sql("node2", "insert into t values (1)").unwrap();
    eventually("the new primary's row on node3", || count(&lab, "node3", "t") == "1");

    let mut heard = Heard::default();
    lab.rejoin("node1", &mut heard).unwrap();
    assert!(heard.has("diverged"), "{:#?}", heard.0);
    assert_eq!(roles(&lab), [Role::Standby, Role::Primary, Role::Standby]);
    assert_eq!(one(&lab, "node1").streaming_from.as_deref(), Some("node2"));
    eventually("the new primary's row alone on node1", || {
        count(&lab, "node1", "t") == "1"
    });

    // And back, from a lost machine.
    lab.stop("node2", StopMode::Kill, &mut Quiet).unwrap();
    lab.promote("node1", &mut Quiet).unwrap();
    lab.sql("primary", "insert into t values (2)").unwrap();
    let mut heard = Heard::default();
    lab.rejoin("node2", &mut heard).unwrap();
    assert!(heard.has("pg_rewind") && !heard.has("base backup"), "{:#?}", heard.0);
    assert_eq!(roles(&lab), [Role::Primary, Role::Standby, Role::Standby]);
    eventually("all rows everywhere", || {
        ["node2", "node3"].iter().all(|node| count(&lab, node, "t") == "2")
    });
    let mut heard = Heard::default();
    lab.rejoin("node2", &mut heard).unwrap();
    assert!(heard.has("streams from node1 already"), "{:#?}", heard.0);
}

#[test]
fn after_a_promotion_from_outside_standbys_rejoin_rewound_only_if_they_went_astray() {
    let lab = LabGuard::fresh(3).unwrap();
    lab.sql("node1", "create table t(i int)").unwrap();
    lab.stop("node4", StopMode::Fast, &mut Quiet).unwrap();
    assert_eq!(lab.sql("node2", "select pg_promote()").unwrap(), "t");
    // node3 follows the old primary past the point where the timelines part; node4 was away.
    lab.sql("node1", "insert into t select generate_series(1, 1000)")
        .unwrap();
    eventually("the old primary's rows on node3", || {
        count(&lab, "node3", "t") == "1000"
    });

    let mut heard = Heard::default();
    lab.rejoin("node4", &mut heard).unwrap();
    assert!(!heard.has("pg_rewind"), "{:#?}", heard.0);
    let mut heard = Heard::default();
    lab.rejoin("node3", &mut heard).unwrap();
    assert!(heard.has("pg_rewind"), "{:#?}", heard.0);
    lab.rejoin("node1", &mut Quiet).unwrap();
    assert_eq!(
        roles(&lab),
        [Role::Standby, Role::Primary, Role::Standby, Role::Standby]
    );
    for node in ["node1", "node3", "node4"] {
        assert_eq!(one(&lab, node).streaming_from.as_deref(), Some("node2"), "{node}");
        eventually("the new primary's rows", || count(&lab, node, "t") == "0");
    }
}

#[test]
fn without_pg_rewind_a_node_rejoins_from_a_new_base_backup() {
    let programs = programs_without("pg_rewind");
    let options = LabOptions {
        standbys: 1,
        ..LabOptions::for_test(LabGuard::fresh_dir().unwrap())
    };
    let lab = LabGuard::up(LabOptions {
        pg_bin: Some(programs.path().into()),
        ..options
    })
    .unwrap();
    lab.promote("node2", &mut Quiet).unwrap();
    lab.sql("node1", "create table lost(i int)").unwrap();
    let mut heard = Heard::default();
    lab.rejoin("node1", &mut heard).unwrap();
    assert!(heard.has("new base backup"), "{:#?}", heard.0);
    assert_eq!(roles(&lab), [Role::Standby, Role::Primary]);
    assert!(lab.sql("node1", "select from lost").is_err());
}

#[test]
fn a_paused_standby_receives_and_does_not_replay() {
    let lab = LabGuard::fresh(1).unwrap();
    lab.pause_replay("node2").unwrap();
    assert!(one(&lab, "node2").replay_paused);
    lab.sql("node1", "create table t as select generate_series(1, 1000)")
        .unwrap();
    eventually("lag", || one(&lab, "node2").lag_bytes > Some(0));
    assert!(lab.sql("node2", "select from t").is_err());
    lab.resume_replay("node2").unwrap();
    eventually("the rows", || count(&lab, "node2", "t") == "1000");
    assert!(matches!(lab.pause_replay("node1"), Err(LabError::IsPrimary { .. })));
}

#[test]
fn nodes_are_known_by_name_and_port_and_an_unknown_one_is_told_the_choice() {
    let lab = LabGuard::fresh(1).unwrap();
    let port = lab.nodes()[1].port();
    assert_eq!(lab.node(&port.to_string()).unwrap().name(), "node2");
    assert_eq!(lab.node("primary").unwrap().name(), "node1");
    let refused = lab.node("node9").unwrap_err().to_string();
    assert!(refused.contains("node2"), "{refused}");
    lab.stop("node1", StopMode::Immediate, &mut Quiet).unwrap();
    assert!(matches!(lab.primary(), Err(LabError::NoPrimary)));
    assert!(matches!(
        lab.promote("node1", &mut Quiet),
        Err(LabError::NotRunning { .. })
    ));
    assert!(matches!(lab.rejoin("node2", &mut Quiet), Err(LabError::NoPrimary)));
}

#[test]
fn a_taken_port_is_named_before_anything_is_made() {
    let dir = LabGuard::fresh_dir().unwrap();
    // Two neighbours of which the second is taken: the first must be free, so look until that is so.
    let (holding, base_port) = (20_000..30_000)
        .step_by(7)
        .find_map(|port| {
            let _first = TcpListener::bind(("127.0.0.1", port)).ok()?;
            Some((TcpListener::bind(("127.0.0.1", port + 1)).ok()?, port))
        })
        .expect("two free ports");
    let options = LabOptions {
        base_port: Some(base_port),
        standbys: 1,
        ..LabOptions::for_test(&dir)
    };
    let refused = Lab::up(options, &mut Quiet).unwrap_err();
    let port = holding.local_addr().unwrap().port();
    assert!(
        matches!(refused, LabError::PortTaken { port: taken, .. } if taken == port),
        "{refused}"
    );
    assert!(
        refused.to_string().contains(&std::process::id().to_string()),
        "{refused}"
    );
    assert!(!dir.exists());
}

#[test]
fn a_folder_that_is_not_a_labs_is_left_as_it_is() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::write(dir.path().join("precious"), "x").unwrap();
    assert!(matches!(
        Lab::up(LabOptions::for_test(dir.path()), &mut Quiet),
        Err(LabError::NotEmpty { .. })
    ));
    assert!(matches!(Lab::open(dir.path()), Err(LabError::NotALab { .. })));
    assert!(matches!(
        Lab::open(dir.path().join("absent")),
        Err(LabError::NotALab { .. })
    ));
    assert!(dir.path().join("precious").exists());
    let quoted = LabOptions::for_test(dir.path().join("it's"));
    assert!(matches!(
        Lab::up(quoted, &mut Quiet),
        Err(LabError::BadPath { character: '\'', .. })
    ));
}

#[test]
fn a_lab_behind_a_link_is_the_same_lab() {
    let parent = LabGuard::fresh_dir().unwrap();
    fs::create_dir(&parent).unwrap();
    let link = parent.with_extension("link");
    symlink(&parent, &link).unwrap();
    let lab = LabGuard::up(LabOptions {
        standbys: 0,
        ..LabOptions::for_test(link.join("lab"))
    })
    .unwrap();
    assert_eq!(lab.dir(), parent.join("lab"));
    assert_eq!(roles(&Lab::open(link.join("lab")).unwrap()), [Role::Primary]);
    drop(lab);
    fs::remove_file(link).unwrap();
    fs::remove_dir(parent).unwrap();
}

#[test]
fn a_folder_that_the_servers_user_cant_enter_is_refused_and_not_left_behind() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let private = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(private.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let dir = private.path().join("lab");
    let refused = Lab::up(LabOptions::for_test(&dir), &mut Quiet).unwrap_err();
    assert!(matches!(refused, LabError::Unreachable { .. }), "{refused}");
    assert!(!dir.exists());
}

#[test]
fn what_fails_half_way_is_stopped_and_removed() {
    let programs = programs_without("pg_basebackup");
    write_program(
        programs.path().join("pg_basebackup"),
        "#!/bin/sh\necho 'no backup today' >&2\nexit 1\n",
    );
    let dir = LabGuard::fresh_dir().unwrap();
    let options = LabOptions {
        pg_bin: Some(programs.path().into()),
        ..LabOptions::for_test(&dir)
    };
    let failed = Lab::up(options, &mut Quiet).unwrap_err().to_string();
    assert!(failed.contains("no backup today"), "{failed}");
    assert!(!dir.exists());
    assert_eq!(processes_of(&dir), 0);
}

#[test]
fn what_a_killed_up_left_is_replaced() {
    let lab = LabGuard::fresh(0).unwrap();
    let manifest = lab.dir().join("lab.json");
    let text = fs::read_to_string(&manifest).unwrap();
    assert!(text.contains(r#""stage": "ready""#), "{text}");
    let unfinished = |pid: u32| text.replace(r#""ready""#, &format!(r#"{{"building": {{"pid": {pid}}}}}"#));
    fs::write(&manifest, unfinished(std::process::id())).unwrap();
    assert!(matches!(
        Lab::up(LabOptions::for_test(lab.dir()), &mut Quiet),
        Err(LabError::BeingBuilt { .. })
    ));
    // No process has a number this high: the kernel's limit is 2^22.
    fs::write(&manifest, unfinished(1 << 30)).unwrap();
    let old = one(&lab, "node1").pid;
    let options = LabOptions {
        standbys: 1,
        ..LabOptions::for_test(lab.dir())
    };
    let again = LabGuard::up(options).unwrap();
    assert_eq!(roles(&again), [Role::Primary, Role::Standby]);
    assert_ne!(one(&again, "node1").pid, old);
}

#[test]
fn down_leaves_no_process_and_no_folder() {
    let lab = LabGuard::fresh(2).unwrap();
    let dir = lab.dir().to_path_buf();
    assert_eq!(processes_of(&dir), 3);
    lab.stop("node3", StopMode::Kill, &mut Quiet).unwrap();
    lab.down(&mut Quiet).unwrap();
    assert_eq!(processes_of(&dir), 0);
    assert!(!dir.exists());
}

#[test]
fn a_guard_takes_its_lab_down_also_when_the_test_panics() {
    let lab = LabGuard::fresh(0).unwrap();
    let dir = lab.dir().to_path_buf();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _lab = lab;
        std::panic::resume_unwind(Box::new("a test failed"));
    }));
    assert!(panicked.is_err());
    assert_eq!(processes_of(&dir), 0);
    assert!(!dir.exists());
}
