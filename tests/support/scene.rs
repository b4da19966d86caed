//! What a test of one proxy's behaviour needs: nodes that all tests of the process share, and a database and a proxy of its own, so that
//! whatever is counted is the test's.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use pgsluice::lab::{LabGuard, Node};

use super::wire::Wire;
use super::{PATIENCE, Proxy};

/// A proxy, a database, and the nodes.
pub struct Scene {
    /// In front of all nodes.
    pub proxy: Proxy,
    /// Which nobody else uses.
    pub database: String,
    /// A primary and one standby; the last test that holds them takes them down.
    pub lab: Arc<LabGuard>,
}

/// The process's nodes.
fn lab() -> Arc<LabGuard> {
    static SHARED: Mutex<Weak<LabGuard>> = Mutex::new(Weak::new());
    // A test that failed while it made them has left nothing.
    let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let fresh = Arc::new(LabGuard::fresh(1).expect("a lab"));
        *shared = Arc::downgrade(&fresh);
        fresh
    })
}

impl Scene {
    /// A proxy with these sections of configuration, as [`Proxy::with`] takes them.
    pub async fn start(sections: &str) -> Scene {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let lab = lab();
        let database = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Wire::login(lab.nodes()[0].port(), "postgres")
            .await
            .run(&format!("create database {database}"))
            .await;
        let mut standby = Wire::login(lab.nodes()[1].port(), "postgres").await;
        let is_there = format!("select count(*) from pg_database where datname = '{database}'");
        until("the standby has the database", async || {
            standby.value(&is_there).await == "1"
        })
        .await;
        Scene {
            proxy: Proxy::with(&lab, sections),
            database,
            lab,
        }
    }

    /// A client of the proxy.
    pub async fn wire(&self) -> Wire {
        Wire::login(self.proxy.port, &self.database).await
    }

    /// A client of the proxy with more start-up parameters.
    pub async fn wire_with(&self, parameters: &[(&str, &str)]) -> Wire {
        let own = [("user", "postgres"), ("database", &*self.database)];
        Wire::login_with(self.proxy.port, &[&own, parameters].concat()).await
    }

    /// A client of the primary itself.
    pub async fn direct(&self) -> Wire {
        Wire::login(self.primary().port(), &self.database).await
    }

    /// The primary.
    pub fn primary(&self) -> &Node {
        &self.lab.nodes()[0]
    }

    /// The standby.
    pub fn standby(&self) -> &Node {
        &self.lab.nodes()[1]
    }

    /// Waits until the standby has all that the primary has written so far.
    pub async fn caught_up(&self) {
        let lsn = self.direct().await.value("select pg_current_wal_insert_lsn()").await;
        let mut standby = Wire::login(self.standby().port(), "postgres").await;
        // The insert position may stand behind a page's header, which replay doesn't reach.
        let sql = format!("select pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn - 64");
        until("the standby has caught up", async || standby.value(&sql).await == "t").await;
    }

    /// Answers of one query on each node's database.
    pub async fn on_each_node(&self, sql: &str) -> Vec<String> {
        let mut answers = Vec::new();
        for node in self.lab.nodes() {
            answers.push(Wire::login(node.port(), "postgres").await.value(sql).await);
        }
        answers
    }

    /// Connections that the nodes have for the test's database, in this condition.
    pub async fn backends(&self, condition: &str) -> Vec<String> {
        let sql = format!(
            "select count(*) from pg_stat_activity where datname = '{}' and {condition}",
            self.database
        );
        self.on_each_node(&sql).await
    }

    /// Whatever the clients have done, the proxy serves: a write, and a read of it.
    pub async fn serves(&self) {
        let mut client = self.wire().await;
        client.run("set pgsluice.consistency = read_your_writes").await;
        client
            .run("create table if not exists still_serving (n int); truncate still_serving")
            .await;
        client.run("insert into still_serving values (42)").await;
        assert_eq!(client.value("select n from still_serving").await, "42");
        let answer = client
            .ask(
                &[
                    super::wire::extended("select $1::text", &[Some("here")]),
                    super::wire::sync(),
                ]
                .concat(),
            )
            .await;
        assert_eq!(super::wire::firsts(&answer), ["here"]);
    }

    /// It serves, and when its clients have left nothing of theirs stays: no client, no connection in use, nothing that runs or waits.
    pub async fn settled(&self) {
        self.serves().await;
        until("nothing is in use", async || {
            let Some(status) = self.proxy.try_status() else {
                return false;
            };
            status.clients.total == 0
                && status.nodes.iter().all(|node| node.connections.active == 0)
                && status
                    .pools
                    .iter()
                    .all(|pool| pool.connections.active == 0 && pool.waiting == 0)
        })
        .await;
        until("the nodes have nothing left to do", async || {
            self.backends("state <> 'idle'").await.iter().all(|count| count == "0")
        })
        .await;
        let log = self.proxy.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    /// What the proxy's process has in memory, in KB.
    pub fn memory_kb(&self) -> u64 {
        let path = format!("/proc/{}/status", self.proxy.pid());
        let status = std::fs::read_to_string(path).expect("the proxy's process");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number of KB")
    }
}

/// Waits until it is so, and lets others run meanwhile.
#[track_caller]
pub fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + PATIENCE;
        while !is_so().await {
            assert!(Instant::now() < deadline, "{caller}: not within {PATIENCE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
