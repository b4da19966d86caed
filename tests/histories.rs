//! What many sessions write and read while replay is paused, standbys restart and the primary changes, held against what each level of
//! consistency promises. Histories in the manner of Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental
//! Observations" (2020): versions tell the order of writes, and lists tell which of them a reader has seen.
//!
//! `PGSLUICE_HISTORIES_SECONDS` makes it longer.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pgsluice::lab::{LabGuard, Quiet, StopMode};
use support::dice::Dice;
use support::{Proxy, ended};
use tokio_postgres::{Client, SimpleQueryMessage};

const KEYS: usize = 8;
const SESSIONS: usize = 200;
const LEVELS: [&str; 4] = ["eventual", "read_your_writes", "session", "linearizable"];

/// Each register counts its writes, and each list holds the ids that were appended, in order.
const SCHEMA: &str = "
    create table register (k int primary key, v bigint not null);
    insert into register select k, 0 from generate_series(0, 7) k;
    create table list (k int primary key, ids bigint[] not null);
    insert into list select k, '{}' from generate_series(0, 7) k;
    create function write_by_function(which int) returns bigint language sql as
        'update register set v = v + 1 where k = which returning v';
    create procedure write_by_procedure(which int, inout version bigint) language plpgsql as
        $$ begin update register set v = v + 1 where k = which returning v into version; commit; end $$;";

/// What is known of all sessions together.
#[derive(Default)]
struct Known {
    /// By key: the newest version that some write, or some linearizable read, has completed with.
    completed: [AtomicI64; KEYS],
    /// By key: the longest list that was read.
    longest: Mutex<[Vec<i64>; KEYS]>,
    next_id: AtomicI64,
    reads: [AtomicU64; 4],
    violations: Mutex<BTreeMap<(&'static str, &'static str), Vec<String>>>,
    stop: AtomicBool,
}

impl Known {
    fn violates(&self, level: usize, what: &'static str, detail: String) {
        let mut violations = self.violations.lock();
        violations.entry((LEVELS[level], what)).or_default().push(detail);
    }

    fn complete(&self, key: usize, version: i64) {
        self.completed[key].fetch_max(version, Ordering::SeqCst);
    }
}

/// One client, and what it must not see less than.
struct Session {
    client: Client,
    known: Arc<Known>,
    level: usize,
    number: usize,
    dice: Dice,
    /// By key: the newest version that it wrote, and the newest that it wrote or saw.
    wrote: [i64; KEYS],
    saw: [i64; KEYS],
    /// By key: ids that it appended, and the longest list that it saw.
    appended: [Vec<i64>; KEYS],
    seen_ids: [usize; KEYS],
}

impl Session {
    async fn run(mut self) {
        while !self.known.stop.load(Ordering::Relaxed) {
            match self.dice.below(20) {
                0 | 1 => self.write().await,
                2 => self.append().await,
                3..=5 => self.read_list().await,
                _ => self.read().await,
            }
            let pause = self.dice.below(30) as u64;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// The first value of an answer; `None` if the statement failed, as it may in a failover.
    async fn ask(&self, sql: &str) -> Option<String> {
        let answer = self.client.simple_query(sql).await.ok()?;
        answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    }

    async fn write(&mut self) {
        let key = self.dice.below(KEYS);
        let sql = match self.dice.below(4) {
            0 => format!("select write_by_function({key})"),
            1 => format!("call write_by_procedure({key}, null)"),
            2 => format!("begin; update register set v = v + 1 where k = {key} returning v; commit"),
            _ => format!("update register set v = v + 1 where k = {key} returning v"),
        };
        let Some(version) = self.ask(&sql).await.and_then(|text| text.parse().ok()) else {
            return;
        };
        self.wrote[key] = self.wrote[key].max(version);
        self.saw[key] = self.saw[key].max(version);
        self.known.complete(key, version);
    }

    async fn append(&mut self) {
        let (key, id) = (
            self.dice.below(KEYS),
            self.known.next_id.fetch_add(1, Ordering::Relaxed),
        );
        let sql = format!("update list set ids = ids || {id}::bigint where k = {key} returning k");
        if self.ask(&sql).await.is_some() {
            self.appended[key].push(id);
        }
    }

    async fn read(&mut self) {
        let key = self.dice.below(KEYS);
        let least = self.known.completed[key].load(Ordering::SeqCst);
        let sql = format!("select v from register where k = {key}");
        let Some(version) = self.ask(&sql).await.and_then(|text| text.parse().ok()) else {
            return;
        };
        self.known.reads[self.level].fetch_add(1, Ordering::Relaxed);
        let (level, number) = (self.level, self.number);
        let (wrote, saw) = (self.wrote[key], self.saw[key]);
        let told = |than: i64| format!("session {number} read version {version} of {key}, and not {than}");
        if version < wrote {
            self.known.violates(level, "own write", told(wrote));
        }
        if version < saw {
            self.known.violates(level, "back in time", told(saw));
        }
        if version < least {
            self.known.violates(level, "completed before", told(least));
        }
        self.saw[key] = self.saw[key].max(version);
        if LEVELS[level] == "linearizable" {
            self.known.complete(key, version);
        }
    }

    async fn read_list(&mut self) {
        let key = self.dice.below(KEYS);
        let sql = format!("select array_to_string(ids, ',') from list where k = {key}");
        let Some(text) = self.ask(&sql).await else { return };
        let ids: Vec<i64> = text.split(',').filter_map(|id| id.parse().ok()).collect();
        self.known.reads[self.level].fetch_add(1, Ordering::Relaxed);
        let (level, number) = (self.level, self.number);
        if let Some(missing) = self.appended[key].iter().find(|own| !ids.contains(own)) {
            let told = format!("session {number} read list {key} without its own {missing}");
            self.known.violates(level, "own write", told);
        }
        if ids.len() < self.seen_ids[key] {
            let told = format!(
                "session {number} read {} ids of list {key} after {}",
                ids.len(),
                self.seen_ids[key]
            );
            self.known.violates(level, "back in time", told);
        }
        self.seen_ids[key] = self.seen_ids[key].max(ids.len());
        let mut longest = self.known.longest.lock();
        let longest = &mut longest[key];
        let (short, long) = if ids.len() < longest.len() {
            (&ids, &*longest)
        } else {
            (&*longest, &ids)
        };
        if !long.starts_with(short) {
            let told = format!("session {number} read {ids:?} from list {key}, others {longest:?}");
            self.known.violates(level, "another order", told);
        }
        if ids.len() > longest.len() {
            *longest = ids;
        }
    }
}

async fn session(proxy: &Proxy, known: &Arc<Known>, number: usize) -> Session {
    let client = proxy.client().await;
    let level = number % LEVELS.len();
    client
        .batch_execute(&format!("set pgsluice.consistency = '{}'", LEVELS[level]))
        .await
        .expect("a level");
    if number % 8 < 4 {
        client
            .batch_execute("set synchronous_commit = off")
            .await
            .expect("a setting");
    }
    Session {
        client,
        known: Arc::clone(known),
        level,
        number,
        dice: Dice::new(number as u64 + 1),
        wrote: [0; KEYS],
        saw: [0; KEYS],
        appended: Default::default(),
        seen_ids: [0; KEYS],
    }
}

/// Pauses, restarts and slows standbys for a while; the primary stays.
async fn disturb_standbys(lab: &LabGuard, seconds: u64) {
    let mut dice = Dice::new(11);
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        let standby = dice.of(&["node2", "node3"]);
        match dice.below(4) {
            0 => {
                let mode = dice.of(&[StopMode::Fast, StopMode::Immediate, StopMode::Kill]);
                lab.stop(standby, mode, &mut Quiet).expect("stopped");
                lab.start(standby, &mut Quiet).expect("started");
            }
            _ => {
                lab.pause_replay(standby).expect("paused");
                tokio::time::sleep(Duration::from_millis(200 + dice.below(800) as u64)).await;
                lab.resume_replay(standby).expect("resumed");
            }
        }
        tokio::time::sleep(Duration::from_millis(dice.below(400) as u64)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_level_keeps_its_promise_and_eventual_shows_that_this_would_be_seen() {
    let seconds = std::env::var("PGSLUICE_HISTORIES_SECONDS").ok();
    let seconds = seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or(12);
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::with(
        &lab,
        "[routing]\nmax_lag = \"1min\"\nwait_for_standby = \"20ms\"\n[failover]\nhold_timeout = \"60s\"\n[monitor]\ninterval = \"100ms\"\n",
    );
    proxy.client().await.batch_execute(SCHEMA).await.expect("a schema");
    support::until_replayed(&lab);
    let known = Arc::new(Known::default());
    let mut tasks = Vec::new();
    for number in 0..SESSIONS {
        let session = session(&proxy, &known, number).await;
        tasks.push(tokio::spawn(session.run()));
    }
    disturb_standbys(&lab, seconds).await;
    // A failover that loses nothing: the old primary has sent all that it had when it stopped.
    lab.stop("node1", StopMode::Fast, &mut Quiet).expect("stopped");
    lab.promote("node2", &mut Quiet).expect("a promotion");
    tokio::time::sleep(Duration::from_secs(2)).await;
    lab.rejoin("node1", &mut Quiet).expect("a standby again");
    tokio::time::sleep(Duration::from_secs(seconds / 4)).await;
    known.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        ended("a session", task).await;
    }

    let violations = known.violations.lock();
    let reads = || known.reads.iter().map(|reads| reads.load(Ordering::Relaxed));
    let count = |level: &str, what: &str| {
        violations
            .iter()
            .filter(|((at, of), _)| *at == level && *of == what)
            .map(|(_, found)| found.len())
            .sum::<usize>()
    };
    for (level, reads) in LEVELS.iter().zip(reads()) {
        println!(
            "{level}: {reads} reads, {} without an own write, {} back in time, {} without what was completed before",
            count(level, "own write"),
            count(level, "back in time"),
            count(level, "completed before"),
        );
        assert!(reads > 500, "{level}: only {reads} reads");
    }
    let on_standbys = |level: &str| {
        let outcome = |outcome: &str| {
            proxy.metric(&format!(
                "pgsluice_reads_total{{level=\"{level}\",outcome=\"{outcome}\"}}"
            ))
        };
        let (standby, waited, primary) = (outcome("standby"), outcome("waited"), outcome("primary"));
        println!("{level}: {standby} on standbys, {waited} after a wait, {primary} on the primary");
        standby + waited
    };
    for level in ["eventual", "read_your_writes", "session"] {
        assert!(on_standbys(level) > 100.0, "{level} hardly used the standbys");
    }
    let broken: Vec<_> = violations
        .iter()
        .filter(|((level, what), _)| match *what {
            "another order" => true,
            "own write" => *level != "eventual",
            "back in time" => matches!(*level, "session" | "linearizable"),
            _ => *level == "linearizable",
        })
        .map(|(kind, found)| format!("{kind:?}, {} times: {}", found.len(), found[0]))
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
    for what in ["own write", "back in time"] {
        assert!(count("eventual", what) > 0, "nothing was found at eventual: {what}");
    }
}
