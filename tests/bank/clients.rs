//! All clients of a bank together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::ledger::{Books, History, LeftBehind, Row, Try, judge};
use super::support::{Proxy, ended, eventually};
use super::teller::{ACCOUNTS, Bank, Idle, OPENING, Reader, SCHEMA, Teller};

const TELLERS: usize = 12;
const READERS: usize = 3;
const IDLERS: usize = 4;

/// Server connections to a node: fewer than there are clients, so that some of them always wait for one.
pub const POOL: usize = 6;
/// Longer than any round without a primary.
pub const HOLD_TIMEOUT: Duration = Duration::from_secs(60);

/// Clients at work.
pub struct Clients {
    bank: Arc<Bank>,
    /// What each teller has had acknowledged.
    done: Vec<Arc<AtomicUsize>>,
    tasks: Vec<JoinHandle<History>>,
    idle: Vec<Idle>,
}

impl Clients {
    /// Founds the bank, and lets everybody work.
    pub async fn start(proxy: &Proxy, seed: u64) -> Clients {
        proxy.client().await.batch_execute(SCHEMA).await.expect("a schema");
        let mut clients = Clients {
            bank: Arc::default(),
            done: Vec::new(),
            tasks: Vec::new(),
            idle: Vec::new(),
        };
        for number in 0..IDLERS {
            clients.idle.push(Idle::login(proxy.port, number).await);
        }
        for number in 0..TELLERS {
            let done = Arc::default();
            let teller = Teller::login(proxy.port, number, seed, &clients.bank, &done).await;
            clients.done.push(done);
            clients.tasks.push(tokio::spawn(teller.work()));
        }
        for number in 0..READERS {
            let reader = Reader::login(proxy.port, number, seed, &clients.bank).await;
            clients.tasks.push(tokio::spawn(reader.work()));
        }
        clients
    }

    /// Waits until every teller has had more transfers acknowledged.
    #[track_caller]
    pub fn all_go_on(&self) {
        let now = || self.done.iter().map(|done| done.load(Ordering::Relaxed));
        let before: Vec<usize> = now().collect();
        eventually("every teller goes on", || {
            now().zip(&before).all(|(now, before)| now >= before + 2)
        });
    }

    /// Ends everything.
    pub async fn finish(self) -> History {
        self.bank.close();
        let mut history = History::default();
        for task in self.tasks {
            history.extend(ended("the last transfer", task).await);
        }
        for idle in self.idle {
            history.extend(idle.wake().await);
        }
        history
    }
}

/// Holds what the clients were told against what `primary` has.
pub async fn audit(history: &History, primary: &Client, left: &[LeftBehind]) {
    let books = books(primary).await;
    let verdict = judge(history, &books, left, HOLD_TIMEOUT);
    println!(
        "{} tries, {} booked, {} left behind though acknowledged, {} looks, {} totals",
        history.attempts.len(),
        books.rows.len(),
        verdict.left_behind.len(),
        history.looks.len(),
        history.totals.len()
    );
    let violations = verdict.violations();
    assert!(violations.is_empty(), "{violations:#?}");
}

async fn books(primary: &Client) -> Books {
    let sql = "select id, try, giver, taker, amount from transfer";
    let rows = primary.query(sql, &[]).await.expect("the ledger");
    let sql = "select balance from account order by id";
    let balances = primary.query(sql, &[]).await.expect("the accounts");
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
