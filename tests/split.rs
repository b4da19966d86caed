//! Where statements run, by the proxy's word, the metrics' and the nodes' own.

mod support;

use pgsluice::lab::LabGuard;
use support::{Proxy, client, direct, node_port};

/// Transactions in the test's database, by a node's own statistics.
async fn transactions(node: &pgsluice::lab::Node) -> i64 {
    let client = direct(node).await;
    let sql = "select xact_commit from pg_stat_database where datname = 'split'";
    // A standby may not have the database yet.
    client
        .query_opt(sql, &[])
        .await
        .expect("statistics")
        .map_or(0, |row| row.get(0))
}

fn pgbench(proxy: &Proxy, arguments: &[&str]) -> String {
    let pg_bin = std::process::Command::new("sh")
        .args([
            "-c",
            "command -v pgbench || ls -d /usr/lib/postgresql/*/bin/pgbench | tail -1",
        ])
        .output()
        .expect("a shell");
    let program = String::from_utf8(pg_bin.stdout).expect("a path");
    let output = std::process::Command::new(program.trim())
        .args(["-n", "-h", "127.0.0.1", "-U", "postgres", "-p", &proxy.port.to_string()])
        .args(arguments)
        .arg("split")
        .output()
        .expect("pgbench");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_load_writes_on_the_primary_and_reads_on_both_standbys() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::start(&lab);
    proxy
        .client()
        .await
        .batch_execute("create database split")
        .await
        .expect("a database");
    pgbench(&proxy, &["-i", "-q", "-s", "1"]);
    let before = (transactions(&lab.nodes()[1]).await, transactions(&lab.nodes()[2]).await);
    for mode in ["simple", "extended", "prepared"] {
        for script in ["select-only", "tpcb-like"] {
            let text = pgbench(&proxy, &["-b", script, "-M", mode, "-c", "8", "-j", "2", "-t", "200"]);
            assert!(
                text.contains("number of failed transactions: 0"),
                "{mode} {script}: {text}"
            );
            assert!(!text.to_lowercase().contains("error"), "{mode} {script}: {text}");
        }
    }
    let (first, second) = (proxy.statements("node2"), proxy.statements("node3"));
    assert_eq!((first.1, second.1), (0, 0), "a write went to a standby");
    let reads = first.0 + second.0;
    assert!(reads >= 4000, "{reads} of 4800 reads on standbys");
    assert!(
        first.0 * 4 > reads && second.0 * 4 > reads,
        "reads are uneven: {first:?} {second:?}"
    );
    // The metrics say the same, and so do the nodes: each read is a transaction of its own there.
    let labelled = "pgsluice_statements_total{node=\"node2\",role=\"standby\",access=\"read\"}";
    assert_eq!(proxy.metric(labelled) as u64, first.0);
    assert_eq!(proxy.metric(&labelled.replace("read\"", "write\"")) as u64, 0);
    support::eventually("the nodes' statistics agree", || {
        let now = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                (
                    transactions(&lab.nodes()[1]).await - before.0,
                    transactions(&lab.nodes()[2]).await - before.1,
                )
            })
        });
        now.0 + now.1 >= reads as i64
    });
    // The load is the same in the database: every history row, once.
    let split = client(&format!(
        "host=127.0.0.1 port={} user=postgres dbname=split",
        proxy.port
    ))
    .await;
    let rows: i64 = split
        .query_one("select count(*) from pgbench_history", &[])
        .await
        .expect("rows")
        .get(0);
    assert_eq!(rows, 3 * 8 * 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answering_node_is_the_one_that_the_proxy_says() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::start(&lab);
    let client = proxy.client().await;
    let ports: Vec<i32> = lab.nodes().iter().map(|node| i32::from(node.port())).collect();
    assert_eq!(
        node_port(&client, "").await,
        ports[0],
        "a question about the node is the primary's to answer"
    );
    let mut seen = [0; 3];
    for _ in 0..300 {
        let port = node_port(&client, "/* pgsluice: standby */").await;
        seen[ports
            .iter()
            .position(|known| *known == port)
            .expect("a node of the lab")] += 1;
    }
    assert_eq!(seen[0], 0);
    assert!(seen[1] > 5 && seen[2] > 5, "{seen:?}");
    assert_eq!(node_port(&client, "/* pgsluice: primary */").await, ports[0]);
}
