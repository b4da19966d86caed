//! The same bank with servers that a real Patroni looks after: it promotes, and the proxy follows.

use std::time::Instant;

use nix::sys::signal::Signal;

use super::clients::{Clients, HOLD_TIMEOUT, POOL, audit};
use super::support::patroni::{Api, PatroniCluster};
use super::support::scene::until;
use super::support::{Proxy, eventually};

/// How a leader goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Patroni is asked for another.
    Switchover,
    /// Patroni and its server are killed.
    Kill,
    /// Both hang for longer than the leader's key lasts, and then are killed, as by a watchdog: a Patroni that wakes up late may take the key
    /// back, and the cluster to where it was before.
    Freeze,
}

/// Takes one leader after another from a cluster in which commits wait for the standby that Patroni would promote: nothing is lost.
pub async fn rounds(losses: &[Loss]) {
    let mut cluster = PatroniCluster::start(3, Api::Http);
    cluster.configure(&[
        "synchronous_mode=true",
        "synchronous_mode_strict=true",
        // One that was killed may have what no other has.
        "postgresql.use_pg_rewind=true",
    ]);
    let config = format!(
        "[pool]\nsize = {POOL}\n[failover]\npromote = \"never\"\nhold_timeout = \"{}s\"\n\
         [cluster.discovery]\npatroni = [\"{}\"]\ninterval = \"500ms\"\n",
        HOLD_TIMEOUT.as_secs(),
        cluster.url("pg1")
    );
    let proxy = Proxy::serve(cluster.dir(), &config, 3);
    let mut standby = synchronous(&cluster, "pg1").await;
    let clients = Clients::start(&proxy, 1).await;
    let mut leader = "pg1".to_owned();
    for loss in losses {
        clients.all_go_on();
        let began = Instant::now();
        match loss {
            Loss::Switchover => cluster.switchover(&leader, &standby),
            Loss::Kill => cluster.kill(&leader),
            Loss::Freeze => cluster.signal(&leader, Signal::SIGSTOP),
        }
        let mut next = None;
        eventually("the proxy follows", || {
            next = proxy.status().primary.filter(|primary| *primary != leader);
            next.is_some()
        });
        let next = next.expect("a leader");
        clients.all_go_on();
        println!(
            "Patroni: {loss:?} of {leader}, to {next}: all went on after {:.1?}",
            began.elapsed()
        );
        match loss {
            Loss::Switchover => {}
            Loss::Kill => cluster.revive(&leader),
            Loss::Freeze => {
                cluster.kill(&leader);
                cluster.revive(&leader);
            }
        }
        proxy.until_serving(3);
        standby = synchronous(&cluster, &next).await;
        leader = next;
    }
    clients.all_go_on();
    let history = clients.finish().await;
    audit(&history, &cluster.member(&leader).client().await, &[]).await;
}

/// Waits until the leader's commits wait for a standby, and answers its name: no other may be switched over to.
async fn synchronous(cluster: &PatroniCluster, leader: &str) -> String {
    let client = cluster.member(leader).client().await;
    let sql = "select application_name from pg_stat_replication where sync_state = 'sync'";
    let mut name = None;
    until("commits wait for a standby", async || {
        let row = client.query_opt(sql, &[]).await.expect("one row at most");
        name = row.map(|row| row.get(0));
        name.is_some()
    })
    .await;
    name.expect("a standby")
}
