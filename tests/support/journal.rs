//! Clients that keep a journal: each writes entries of its own, looks for each at once, and remembers what it was told. In the end the
//! journals are held against the table.
//!
//! Every second client writes one row by itself, the others two rows in a transaction block, so that a block that is torn apart shows.
//! The table has no unique key: a write that is carried out twice shows as a row too many, and not as one more error. The statements are
//! prepared once, and the connections are never replaced.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pgsluice::lab::Node;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, Statement};

use super::{Proxy, direct, ended, eventually, sqlstate};

/// What a client does between two entries, so that a few clients don't take all of a machine.
const PACE: Duration = Duration::from_millis(5);
/// Entries are numbered from here on for each client.
const ENTRIES: i64 = 1_000_000;

/// Clients at work.
pub struct Journals {
    stop: Arc<AtomicBool>,
    clients: Vec<(Arc<AtomicUsize>, JoinHandle<Journal>)>,
}

/// What one client was told.
#[derive(Debug, Default)]
pub struct Journal {
    /// Entries whose end was reported as a success.
    pub acknowledged: Vec<i64>,
    /// Entries that ended with an error, and its SQLSTATE.
    pub failed: Vec<(i64, String)>,
    /// Acknowledged entries that the same session did not find afterwards.
    pub unseen: Vec<i64>,
    /// What failed beside that: reads, which can run again, and ROLLBACK, which has nothing to lose.
    pub others: Vec<String>,
    /// The connection was closed.
    pub closed: bool,
}

/// How a client writes an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Alone,
    InBlock,
}

impl Manner {
    fn of(client: i64) -> Manner {
        if client % 2 == 0 {
            Manner::Alone
        } else {
            Manner::InBlock
        }
    }

    /// Rows of an entry.
    fn rows(self) -> i64 {
        match self {
            Manner::Alone => 1,
            Manner::InBlock => 2,
        }
    }
}

impl Journals {
    /// Makes the table, and lets this many clients write.
    pub async fn start(proxy: &Proxy, count: i64) -> Journals {
        proxy
            .client()
            .await
            .batch_execute("create table journal (entry bigint not null); create index on journal (entry)")
            .await
            .expect("a table");
        Journals::join(proxy, 0..count).await
    }

    /// Lets the clients of these numbers write, of whom there are none yet, into the table that there is.
    pub async fn join(proxy: &Proxy, numbers: std::ops::Range<i64>) -> Journals {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for number in numbers {
            let (client, entries) = (proxy.client().await, Arc::new(AtomicUsize::new(0)));
            let keeping = keep(client, number, Arc::clone(&stop), Arc::clone(&entries));
            clients.push((entries, tokio::spawn(keeping)));
        }
        Journals { stop, clients }
    }

    /// Waits until every client has had more entries acknowledged.
    #[track_caller]
    pub fn all_go_on(&self) {
        let before = self.acknowledged();
        eventually("every client writes on", || {
            let now = self.acknowledged();
            now.iter().zip(&before).all(|(now, before)| *now >= before + 3)
        });
    }

    /// How many entries each client has had acknowledged.
    pub fn acknowledged(&self) -> Vec<usize> {
        let clients = self.clients.iter();
        clients.map(|(entries, _)| entries.load(Ordering::Relaxed)).collect()
    }

    /// Lets every client end its entry.
    pub async fn finish(self) -> Vec<Journal> {
        self.stop.store(true, Ordering::Relaxed);
        let mut journals = Vec::new();
        for (_, task) in self.clients {
            journals.push(ended("the last entry", task).await);
        }
        journals
    }
}

/// A client that only reads, whose statements are a standby's at once: those who write read what they have just written, which is mostly
/// the primary's to answer.
pub struct Reader {
    stop: Arc<AtomicBool>,
    reads: JoinHandle<()>,
}

impl Reader {
    /// Reads the journal on and on.
    pub async fn start(proxy: &Proxy) -> Reader {
        let (client, stop) = (proxy.client().await, Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let reads = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let read = client.query_one("select count(*) from journal", &[]).await;
                read.expect("a read, which no failover ends");
                tokio::time::sleep(PACE).await;
            }
        });
        Reader { stop, reads }
    }

    /// None of its reads has failed.
    pub async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        ended("the last read", self.reads).await;
    }
}

async fn keep(client: Client, number: i64, stop: Arc<AtomicBool>, entries: Arc<AtomicUsize>) -> Journal {
    let write = client.prepare("insert into journal (entry) values ($1)").await;
    let look = client.prepare("select count(*) from journal where entry = $1").await;
    let (write, look) = (write.expect("a statement"), look.expect("a statement"));
    let (mut journal, manner) = (Journal::default(), Manner::of(number));
    for entry in number * ENTRIES.. {
        if stop.load(Ordering::Relaxed) || client.is_closed() {
            break;
        }
        match enter(&client, &write, manner, entry).await {
            Ok(()) => {
                journal.acknowledged.push(entry);
                entries.fetch_add(1, Ordering::Relaxed);
                match client.query_one(&look, &[&entry]).await {
                    Ok(row) if row.get::<_, i64>(0) == manner.rows() => {}
                    Ok(_) => journal.unseen.push(entry),
                    Err(error) => journal.others.push(format!("a look for {entry}: {}", sqlstate(&error))),
                }
            }
            Err(error) => {
                journal.failed.push((entry, sqlstate(&error)));
                if manner == Manner::InBlock
                    && let Err(after) = client.batch_execute("rollback").await
                {
                    let (after, error) = (sqlstate(&after), sqlstate(&error));
                    journal
                        .others
                        .push(format!("ROLLBACK of {entry} after {error}: {after}"));
                }
            }
        }
        tokio::time::sleep(PACE).await;
    }
    journal.closed = client.is_closed();
    journal
}

async fn enter(client: &Client, write: &Statement, manner: Manner, entry: i64) -> Result<(), Error> {
    match manner {
        Manner::Alone => client.execute(write, &[&entry]).await.map(drop),
        Manner::InBlock => {
            client.batch_execute("begin").await?;
            client.execute(write, &[&entry]).await?;
            client.execute(write, &[&entry]).await?;
            client.batch_execute("commit").await
        }
    }
}

/// No client was refused anything, lost its connection or missed a row.
pub fn nobody_noticed(journals: &[Journal]) {
    for (number, journal) in journals.iter().enumerate() {
        let quiet = journal.failed.is_empty() && journal.others.is_empty() && journal.unseen.is_empty();
        assert!(quiet && !journal.closed, "client {number}: {journal:?}");
    }
}

/// Holds what the clients were told against what `primary` has: nothing twice, no block torn apart, nothing there of what was reported
/// as certainly not done, every error one of the promised ones, no connection closed. Answers the acknowledged entries that are lost,
/// which may be some where a primary was killed; beside them every session must have seen its own.
pub async fn audit(journals: &[Journal], primary: &Node) -> Vec<i64> {
    audit_at(journals, &direct(primary).await).await
}

/// As [`audit`], by a client of the primary itself.
pub async fn audit_at(journals: &[Journal], primary: &Client) -> Vec<i64> {
    let sql = "select entry, count(*) from journal group by entry";
    let rows = primary.query(sql, &[]).await.expect("the journal");
    let there: BTreeMap<i64, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (&entry, &rows) in &there {
        let wanted = Manner::of(entry / ENTRIES).rows();
        assert_eq!(rows, wanted, "rows of entry {entry}: carried out twice, or torn apart");
    }
    let mut lost = Vec::new();
    for (number, journal) in journals.iter().enumerate() {
        assert!(!journal.closed, "client {number} lost its connection: {journal:?}");
        assert!(
            journal.others.is_empty(),
            "client {number} was refused what can't fail: {:?}",
            journal.others
        );
        for (entry, code) in &journal.failed {
            match code.as_str() {
                "08007" => {}
                "40001" | "25P02" | "57P03" => assert!(
                    !there.contains_key(entry),
                    "entry {entry} is there, and was reported as certainly not done: {code}"
                ),
                _ => panic!("client {number} was told {code} for entry {entry}"),
            }
        }
        lost.extend(journal.acknowledged.iter().filter(|entry| !there.contains_key(entry)));
        let unseen: Vec<&i64> = journal
            .unseen
            .iter()
            .filter(|entry| there.contains_key(entry))
            .collect();
        assert!(
            unseen.is_empty(),
            "client {number} did not find its own entries {unseen:?}"
        );
    }
    lost
}
