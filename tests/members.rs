//! Nodes come and go while clients are served: by a reload of the configuration.

mod support;

use std::fs;

use nix::sys::signal::Signal;
use pgsluice::lab::{LabGuard, Quiet, StopMode};
use support::journal::{Journals, Reader, audit};
use support::{Proxy, eventually, until_replayed};

/// Has the proxy serve these nodes of the lab and no others.
fn serve_only(lab: &LabGuard, proxy: &Proxy, names: &[&str]) {
    let table = |name: &&str| {
        let node = lab.nodes().iter().find(|node| node.name() == *name).expect("a node");
        format!(
            "[[cluster.node]]\nname = \"{name}\"\naddress = \"{}\"\n",
            node.address()
        )
    };
    let tables: String = names.iter().map(table).collect();
    fs::write(proxy.config_file(), tables).expect("the proxy's configuration");
    proxy.signal(Signal::SIGHUP);
    eventually("the proxy knows these nodes", || {
        let mut known: Vec<String> = proxy.status().nodes.into_iter().map(|node| node.name).collect();
        known.sort();
        let mut wanted = names.to_vec();
        wanted.sort_unstable();
        known == wanted
    });
}

/// Connections of the proxy's to a node, the monitor's among them.
fn connections(lab: &LabGuard, node: &str) -> u32 {
    let mine =
        "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()";
    lab.sql(node, mine).expect("a count").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_gets_nothing_more_and_one_that_joins_takes_its_share() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::start(&lab);
    let names: Vec<&str> = lab.nodes().iter().map(|node| node.name()).collect();
    let (primary, stays, leaves) = (names[0], names[1], names[2]);
    let journals = Journals::start(&proxy, 8).await;
    journals.all_go_on();
    let reader = Reader::start(&proxy).await;
    eventually("both standbys are used", || {
        proxy.statements(stays).0 > 0 && proxy.statements(leaves).0 > 0
    });

    serve_only(&lab, &proxy, &[primary, stays]);
    eventually("nobody is connected to it any more", || connections(&lab, leaves) == 0);
    assert_eq!(proxy.metric(&format!("pgsluice_node_up{{node=\"{leaves}\"}}")), 0.0);
    journals.all_go_on();
    assert_eq!(connections(&lab, leaves), 0);

    serve_only(&lab, &proxy, &[leaves, stays, primary]);
    proxy.until_serving(3);
    eventually("it takes reads again", || proxy.statements(leaves).0 > 0);
    assert_eq!(proxy.metric(&format!("pgsluice_node_up{{node=\"{leaves}\"}}")), 1.0);
    journals.all_go_on();

    reader.finish().await;
    let journals = journals.finish().await;
    assert!(
        journals
            .iter()
            .all(|journal| !journal.closed && journal.failed.is_empty()),
        "{journals:?}"
    );
    assert_eq!(audit(&journals, lab.primary().expect("a primary")).await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_may_be_others_than_at_the_start_before_a_failover_to_one_of_them() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let proxy = Proxy::with(&lab, "[failover]\nhold_timeout = \"60s\"\n");
    let names: Vec<&str> = lab.nodes().iter().map(|node| node.name()).collect();
    serve_only(&lab, &proxy, &[names[0]]);
    let journals = Journals::start(&proxy, 4).await;
    journals.all_go_on();
    serve_only(&lab, &proxy, &[names[0], names[2]]);
    proxy.until_serving(2);
    journals.all_go_on();

    until_replayed(&lab);
    lab.stop(names[0], StopMode::Fast, &mut Quiet).expect("stopped");
    lab.promote(names[2], &mut Quiet).expect("a promotion");
    journals.all_go_on();
    assert_eq!(proxy.status().primary.as_deref(), Some(names[2]));
    // The one that is lost for good leaves, and nobody misses it.
    serve_only(&lab, &proxy, &[names[2]]);
    journals.all_go_on();
    let journals = journals.finish().await;
    assert!(journals.iter().all(|journal| !journal.closed), "{journals:?}");
    assert_eq!(audit(&journals, lab.primary().expect("a primary")).await, [0; 0]);
}
