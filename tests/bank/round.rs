//! The bank's servers, and what is done to them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use pgsluice::admin::status::Role;
use pgsluice::lab::{LabGuard, Quiet, StopMode};

use super::clients::{Clients, HOLD_TIMEOUT, POOL, audit};
use super::ledger::{History, LeftBehind, Try};
use super::support::dice::Dice;
use super::support::forwarder::Forwarder;
use super::support::{Proxy, direct, eventually, until_replayed};

/// Whether a commit waits for a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    Asynchronous,
    /// Of two standbys either will do, and the one that has received more is promoted.
    Synchronous,
}

/// How a primary is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Fast,
    Immediate,
    Kill,
    /// It hangs: its connections stay, and nothing comes any more.
    Freeze,
    /// Nothing gets through between the proxy and it, while it goes on.
    Cut,
    /// It isn't.
    Nothing,
}

/// Who makes another one the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promotion {
    /// Nobody: the old one comes back.
    Nobody,
    /// `pg_promote()`, and nothing else.
    Function,
    /// An operator, who has the other standby follow.
    Operator,
    /// The proxy, asked by its trigger file.
    TriggerFile,
    /// The server, asked by a trigger file of its own, as PostgreSQL up to 15 knows it.
    ServersFile,
    /// The proxy, asked to switch over.
    Switchover,
}

const LOSSES: [Loss; 6] = [
    Loss::Fast,
    Loss::Immediate,
    Loss::Kill,
    Loss::Freeze,
    Loss::Cut,
    Loss::Nothing,
];
const PROMOTIONS: [Promotion; 6] = [
    Promotion::Function,
    Promotion::Operator,
    Promotion::TriggerFile,
    Promotion::ServersFile,
    Promotion::Switchover,
    Promotion::Nobody,
];

/// What happens in a round.
#[derive(Debug, Clone, Copy)]
pub struct Failover {
    pub loss: Loss,
    /// Until somebody does something about it.
    pub pause: Duration,
    pub promotion: Promotion,
}

impl fmt::Display for Failover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failover { loss, pause, promotion } = self;
        write!(f, "{loss:?}, {pause:?} later {promotion:?}")
    }
}

impl Failover {
    fn drawn(dice: &mut Dice) -> Failover {
        Failover {
            loss: dice.of(&LOSSES),
            pause: Duration::from_millis(dice.of(&[0, 0, 100, 1000, 2500])),
            promotion: dice.of(&PROMOTIONS),
        }
    }

    /// One with a pause of so many milliseconds.
    pub fn new(loss: Loss, pause: u64, promotion: Promotion) -> Failover {
        Failover {
            loss,
            pause: Duration::from_millis(pause),
            promotion,
        }
    }

    /// Whether it is one for these servers. A promotion beside a living primary that nobody has fenced leaves two, and each may have a standby
    /// that its commits wait for: no replication helps against that.
    fn suits(self, lab: &LabGuard, replication: Replication) -> bool {
        let fences = matches!(
            self.promotion,
            Promotion::TriggerFile | Promotion::Switchover | Promotion::Nobody
        );
        let watches_file = lab
            .version()
            .split('.')
            .next()
            .is_some_and(|major| major.parse::<u32>().is_ok_and(|major| major <= 15));
        (self.loss, self.promotion) != (Loss::Nothing, Promotion::Nobody)
            && (self.promotion != Promotion::ServersFile || watches_file)
            // Only from a primary that is there.
            && (self.promotion != Promotion::Switchover || self.loss == Loss::Nothing)
            && (self.loss != Loss::Nothing || fences || replication == Replication::Asynchronous)
    }

    /// Whether acknowledged commits may be missing afterwards. A server that stops in order sends all that it has first, and before the proxy
    /// itself promotes it waits for what a living primary has written.
    fn may_lose(self, replication: Replication) -> bool {
        let sends_all = match self.loss {
            Loss::Fast => true,
            Loss::Nothing => matches!(self.promotion, Promotion::TriggerFile | Promotion::Switchover),
            Loss::Immediate | Loss::Kill | Loss::Freeze | Loss::Cut => false,
        };
        !sends_all && self.promotion != Promotion::Nobody && replication == Replication::Asynchronous
    }
}

/// A bank with its servers, its proxy and its clients.
pub struct Bench {
    // The lab stands last: it takes the logs with it.
    _servers_words: ServersWords,
    proxy: Proxy,
    ways: Vec<Forwarder>,
    lab: LabGuard,
    replication: Replication,
    dice: Dice,
    clients: Clients,
    left: Vec<LeftBehind>,
    rounds: usize,
}

/// What the servers logged last is shown when something has failed.
struct ServersWords(Vec<PathBuf>);

impl Drop for ServersWords {
    fn drop(&mut self) {
        for log in self.0.iter().filter(|_| std::thread::panicking()) {
            let words = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = words.lines().collect();
            eprintln!("--- {} ends with", log.display());
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Bench {
    /// Builds everything, and lets the clients work.
    pub async fn open(replication: Replication, seed: u64) -> Bench {
        println!("{replication:?} replication, seed {seed}");
        let lab = LabGuard::fresh(2).expect("a lab");
        if replication == Replication::Synchronous {
            wait_for_standbys(&lab);
        }
        let mut ways = Vec::new();
        for node in lab.nodes() {
            ways.push(Forwarder::to(node.port()).await);
        }
        let ports: Vec<u16> = ways.iter().map(|way| way.port).collect();
        let sections = format!(
            "[admin]\nusers = [\"postgres\"]\n[pool]\nsize = {POOL}\n[failover]\nhold_timeout = \"{}s\"\ntrigger_file = \"{}\"\n",
            HOLD_TIMEOUT.as_secs(),
            lab.trigger_file().display()
        );
        let proxy = Proxy::by_way_of(&lab, &ports, &sections);
        let clients = Clients::start(&proxy, seed).await;
        until_replayed(&lab);
        Bench {
            _servers_words: ServersWords(lab.nodes().iter().map(|node| node.log()).collect()),
            proxy,
            ways,
            lab,
            replication,
            dice: Dice::new(seed),
            clients,
            left: Vec::new(),
            rounds: 0,
        }
    }

    /// What the next round is to be.
    pub fn draw(&mut self) -> Failover {
        loop {
            let failover = Failover::drawn(&mut self.dice);
            if failover.suits(&self.lab, self.replication) {
                return failover;
            }
        }
    }

    /// A primary is lost, another is made, and the old one comes back as a standby. Answers when the loss began, and when it was complete.
    pub fn carry_out(&mut self, failover: Failover) -> (Instant, Instant) {
        self.rounds += 1;
        self.clients.all_go_on();
        let began = Instant::now();
        let old = self.proxy.status().primary.expect("a primary");
        let since = self.sql(&old, "select clock_timestamp() - interval '1min'");
        print!("round {}: {failover}, from {old}: ", self.rounds);
        let loses = Instant::now();
        self.lose(failover.loss, &old);
        let lost = Instant::now();
        std::thread::sleep(failover.pause);
        let story = if failover.promotion == Promotion::Nobody {
            self.bring_back(failover.loss, &old);
            String::new()
        } else {
            self.move_on(failover, &old, &since)
        };
        self.proxy.until_serving(3);
        println!("{story}over after {:.1?}", began.elapsed());
        (loses, lost)
    }

    /// Answers what there is to tell of it.
    fn move_on(&mut self, failover: Failover, old: &str, since: &str) -> String {
        self.promote(failover.promotion, old);
        let mut new = None;
        eventually("the proxy has another primary", || {
            new = self.proxy.status().primary.filter(|primary| primary != old);
            new.is_some()
        });
        let (new, known_since) = (new.expect("a primary"), Instant::now());
        let mut story = format!("to {new}, ");
        // Where commits wait for a standby, they wait for one that follows.
        if self.replication == Replication::Asynchronous {
            self.clients.all_go_on();
            story += &format!("all went on after {:.1?}, ", known_since.elapsed());
        }
        self.bring_back(failover.loss, old);
        eventually("the old primary is known as one", || {
            self.proxy.node(old).role == Role::StalePrimary
        });
        assert!(!self.proxy.node(old).serving, "{:?}", self.proxy.node(old));
        let tries = self.left_behind(old, &new, since);
        story += &format!("{} tries left behind, ", tries.len());
        if failover.may_lose(self.replication) {
            self.left.push(LeftBehind { tries, known_since });
        }
        for node in self.lab.nodes().iter().filter(|node| node.name() != new) {
            self.lab.rejoin(node.name(), &mut Quiet).expect("a standby again");
        }
        story
    }

    /// Ends everything, and holds what was told against what is there.
    pub async fn close(self) -> History {
        self.clients.all_go_on();
        let history = self.clients.finish().await;
        let primary = self.proxy.status().primary.expect("a primary");
        let primary = direct(self.lab.node(&primary).expect("a node")).await;
        print!("{} rounds: ", self.rounds);
        audit(&history, &primary, &self.left).await;
        history
    }

    fn sql(&self, node: &str, sql: &str) -> String {
        self.lab
            .sql(node, sql)
            .unwrap_or_else(|error| panic!("{node}: {sql}: {error}"))
    }

    fn way(&self, node: &str) -> &Forwarder {
        let index = self.lab.nodes().iter().position(|known| known.name() == node);
        &self.ways[index.expect("a node of the lab")]
    }

    fn lose(&self, loss: Loss, node: &str) {
        let stop = |mode| self.lab.stop(node, mode, &mut Quiet).expect("stopped");
        match loss {
            Loss::Fast => stop(StopMode::Fast),
            Loss::Immediate => stop(StopMode::Immediate),
            Loss::Kill => stop(StopMode::Kill),
            Loss::Freeze => self.lab.freeze(node).expect("frozen"),
            Loss::Cut => self.way(node).cut(),
            Loss::Nothing => {}
        }
    }

    /// The lost primary runs again, as what it was.
    fn bring_back(&self, loss: Loss, node: &str) {
        match loss {
            Loss::Fast | Loss::Immediate | Loss::Kill => {
                self.lab.start(node, &mut Quiet).expect("started");
            }
            Loss::Freeze => self.lab.thaw(node).expect("thawed"),
            Loss::Cut => self.way(node).mend(),
            Loss::Nothing => {}
        }
    }

    fn promote(&self, promotion: Promotion, old: &str) {
        match promotion {
            Promotion::Function => {
                let answer = self.sql(&self.most_advanced(old), "select pg_promote()");
                assert_eq!(answer, "t");
            }
            Promotion::Operator => {
                let node = self.most_advanced(old);
                self.lab.promote(&node, &mut Quiet).expect("a promotion");
            }
            Promotion::TriggerFile => std::fs::write(self.lab.trigger_file(), "").expect("the trigger file"),
            Promotion::ServersFile => {
                let file = self.sql(&self.most_advanced(old), "show promote_trigger_file");
                std::fs::write(file, "").expect("the server's trigger file");
            }
            Promotion::Switchover => self.switch_over(),
            Promotion::Nobody => {}
        }
    }

    fn switch_over(&self) {
        let output = Command::new(env!("CARGO_BIN_EXE_pgsluice"))
            .args([
                "switchover",
                "--user",
                "postgres",
                "--port",
                &self.proxy.port.to_string(),
            ])
            .output()
            .expect("pgsluice switchover");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The standby that has received most.
    fn most_advanced(&self, old: &str) -> String {
        let names = self.lab.nodes().iter().map(|node| node.name());
        let received = |name: &&str| {
            let sql = "select greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'";
            self.sql(name, sql).parse::<u64>().expect("a position")
        };
        let most = names.filter(|name| *name != old).max_by_key(received);
        most.expect("a standby").to_owned()
    }

    /// What the old primary has and the new one hasn't.
    fn left_behind(&self, old: &str, new: &str, since: &str) -> BTreeSet<Try> {
        let tries = |node: &str| -> BTreeSet<Try> {
            let sql = format!("select id, try from transfer where booked > '{since}'");
            let text = self.sql(node, &sql);
            text.lines().map(read_try).collect()
        };
        // The new one is asked last: it goes on.
        let before = tries(old);
        before.difference(&tries(new)).copied().collect()
    }
}

/// From now on a commit waits until a standby has it, whoever is the primary.
fn wait_for_standbys(lab: &LabGuard) {
    for node in lab.nodes() {
        for sql in [
            "alter system set synchronous_standby_names = 'any 1 (*)'",
            "select pg_reload_conf()",
        ] {
            lab.sql(node.name(), sql).expect("a setting");
        }
    }
    eventually("commits wait for a standby", || {
        let sql = "select count(*) from pg_stat_replication where sync_state = 'quorum'";
        lab.sql("primary", sql).is_ok_and(|count| count == "2")
    });
}

fn read_try(line: &str) -> Try {
    let (transfer, number) = line.split_once('|').expect("two columns");
    Try {
        transfer: transfer.parse().expect("a number"),
        number: number.parse().expect("a number"),
    }
}
