//! The bank's servers, and what is done to them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pgsluice::admin::status::Role;
use pgsluice::lab::{LabGuard, Quiet, StopMode};
use tokio::task::JoinHandle;

use super::ledger::{Books, History, LeftBehind, Row, Try, judge};
use super::support::dice::Dice;
use super::support::forwarder::Forwarder;
use super::support::{Proxy, direct, ended, eventually, until_replayed};
use super::teller::{ACCOUNTS, Bank, Idle, OPENING, Reader, SCHEMA, Teller};

const TELLERS: usize = 12;
const READERS: usize = 3;
const IDLERS: usize = 4;
/// Server connections to a node: fewer than there are clients, so that some of them always wait for one.
const POOL: usize = 6;
/// Longer than any round without a primary.
const HOLD_TIMEOUT: Duration = Duration::from_secs(60);

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
}

const LOSSES: [Loss; 6] = [
    Loss::Fast,
    Loss::Immediate,
    Loss::Kill,
    Loss::Freeze,
    Loss::Cut,
    Loss::Nothing,
];
const PROMOTIONS: [Promotion; 5] = [
    Promotion::Function,
    Promotion::Operator,
    Promotion::TriggerFile,
    Promotion::ServersFile,
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
        let fences = matches!(self.promotion, Promotion::TriggerFile | Promotion::Nobody);
        let watches_file = lab
            .version()
            .split('.')
            .next()
            .is_some_and(|major| major.parse::<u32>().is_ok_and(|major| major <= 15));
        (self.loss, self.promotion) != (Loss::Nothing, Promotion::Nobody)
            && (self.promotion != Promotion::ServersFile || watches_file)
            && (self.loss != Loss::Nothing || fences || replication == Replication::Asynchronous)
    }

    /// Whether acknowledged commits may be missing afterwards. A server that stops in order sends all that it has first, and before the proxy
    /// itself promotes it waits for what a living primary has written.
    fn may_lose(self, replication: Replication) -> bool {
        let sends_all = match self.loss {
            Loss::Fast => true,
            Loss::Nothing => self.promotion == Promotion::TriggerFile,
            Loss::Immediate | Loss::Kill | Loss::Freeze | Loss::Cut => false,
        };
        !sends_all && self.promotion != Promotion::Nobody && replication == Replication::Asynchronous
    }
}

/// A bank with its servers, its proxy and its clients.
pub struct Bench {
    lab: LabGuard,
    replication: Replication,
    ways: Vec<Forwarder>,
    proxy: Proxy,
    dice: Dice,
    bank: Arc<Bank>,
    done: Vec<Arc<AtomicUsize>>,
    clients: Vec<JoinHandle<History>>,
    idle: Vec<Idle>,
    left: Vec<LeftBehind>,
    rounds: usize,
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
            "[pool]\nsize = {POOL}\n[failover]\nhold_timeout = \"{}s\"\ntrigger_file = \"{}\"\n",
            HOLD_TIMEOUT.as_secs(),
            lab.trigger_file().display()
        );
        let proxy = Proxy::by_way_of(&lab, &ports, &sections);
        proxy.client().await.batch_execute(SCHEMA).await.expect("a schema");
        until_replayed(&lab);
        let mut bench = Bench {
            lab,
            replication,
            ways,
            proxy,
            dice: Dice::new(seed),
            bank: Arc::default(),
            done: Vec::new(),
            clients: Vec::new(),
            idle: Vec::new(),
            left: Vec::new(),
            rounds: 0,
        };
        for number in 0..IDLERS {
            bench.idle.push(Idle::login(bench.proxy.port, number).await);
        }
        for number in 0..TELLERS {
            let done = Arc::default();
            let teller = Teller::login(bench.proxy.port, number, seed, &bench.bank, &done).await;
            bench.done.push(done);
            bench.clients.push(tokio::spawn(teller.work()));
        }
        for number in 0..READERS {
            let reader = Reader::login(bench.proxy.port, number, seed, &bench.bank).await;
            bench.clients.push(tokio::spawn(reader.work()));
        }
        bench
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
        self.all_go_on();
        let began = Instant::now();
        let old = self.proxy.status().primary.expect("a primary");
        let since = self.sql(&old, "select clock_timestamp() - interval '1min'");
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
        let (round, took) = (self.rounds, began.elapsed());
        println!("round {round}: {failover}, from {old}: {story}over after {took:.1?}");
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
        // Where commits wait for a standby, they wait for one that follows.
        if self.replication == Replication::Asynchronous {
            self.all_go_on();
        }
        let gone_on = known_since.elapsed();
        self.bring_back(failover.loss, old);
        eventually("the old primary is known as one", || {
            self.proxy.node(old).role == Role::StalePrimary
        });
        assert!(!self.proxy.node(old).serving, "{:?}", self.proxy.node(old));
        let tries = self.left_behind(old, &new, since);
        let story = format!(
            "to {new}, all went on after {gone_on:.1?}, {} tries left behind, ",
            tries.len()
        );
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
        self.all_go_on();
        self.bank.close();
        let mut history = History::default();
        for client in self.clients {
            history.extend(ended("the last transfer", client).await);
        }
        for idle in self.idle {
            history.extend(idle.wake().await);
        }
        let primary = self.proxy.status().primary.expect("a primary");
        let books = books(&self.lab, &primary).await;
        let verdict = judge(&history, &books, &self.left, HOLD_TIMEOUT);
        println!(
            "{} rounds: {} tries, {} booked, {} left behind though acknowledged, {} looks, {} totals",
            self.rounds,
            history.attempts.len(),
            books.rows.len(),
            verdict.left_behind.len(),
            history.looks.len(),
            history.totals.len()
        );
        let violations = verdict.violations();
        assert!(violations.is_empty(), "{violations:#?}");
        history
    }

    /// Waits until every teller has had more transfers acknowledged.
    #[track_caller]
    fn all_go_on(&self) {
        let now = || self.done.iter().map(|done| done.load(Ordering::Relaxed));
        let before: Vec<usize> = now().collect();
        eventually("every teller goes on", || {
            now().zip(&before).all(|(now, before)| now >= before + 2)
        });
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
            Promotion::Nobody => {}
        }
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

/// What a node has.
async fn books(lab: &LabGuard, node: &str) -> Books {
    let client = direct(lab.node(node).expect("a node")).await;
    let sql = "select id, try, giver, taker, amount from transfer";
    let rows = client.query(sql, &[]).await.expect("the ledger");
    let sql = "select balance from account order by id";
    let balances = client.query(sql, &[]).await.expect("the accounts");
    assert_eq!(balances.len(), ACCOUNTS);
    let account = |account: i32| usize::try_from(account).expect("an account");
    Books {
        opening: OPENING,
        balances: balances.iter().map(|row| row.get(0)).collect(),
        rows: rows
            .iter()
            .map(|row| Row {
                what: Try {
                    transfer: u64::try_from(row.get::<_, i64>(0)).expect("a number"),
                    number: u32::try_from(row.get::<_, i32>(1)).expect("a number"),
                },
                from: account(row.get(2)),
                to: account(row.get(3)),
                amount: row.get(4),
            })
            .collect(),
    }
}
