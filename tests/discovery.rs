//! Nodes that no list names: found from one of them, and from DNS.

mod support;

use pgsluice::lab::{LabGuard, Quiet, StopMode};
use support::journal::{Journals, audit};
use support::{Proxy, eventually, until_replayed};

/// Has every standby name its own address, as standbys must where several share a machine.
fn name_addresses(lab: &LabGuard) {
    for node in &lab.nodes()[1..] {
        let upstream = lab.nodes()[0].port();
        let conninfo = format!(
            "host=127.0.0.1 port={upstream} user=postgres application_name={} sslmode=disable gssencmode=disable",
            node.address()
        );
        let sql = format!("alter system set primary_conninfo = '{conninfo}'");
        lab.sql(node.name(), &sql).expect("another name");
        lab.sql(node.name(), "select pg_reload_conf()").expect("a reload");
    }
    let listed = "select count(*) from pg_stat_replication where application_name like '127.0.0.1:%'";
    let standbys = (lab.nodes().len() - 1).to_string();
    eventually("the primary lists them by their addresses", || {
        lab.sql(lab.nodes()[0].name(), listed)
            .is_ok_and(|count| count == standbys)
    });
}

/// Names of the nodes that the proxy has, in order.
fn names(proxy: &Proxy) -> Vec<String> {
    let mut names: Vec<String> = proxy.status().nodes.into_iter().map(|node| node.name).collect();
    names.sort();
    names
}

fn addresses(lab: &LabGuard) -> Vec<String> {
    let mut addresses: Vec<String> = lab.nodes().iter().map(|node| node.address()).collect();
    addresses.sort();
    addresses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_of_one_node_is_enough_whichever_it_is() {
    let lab = LabGuard::fresh(2).expect("a lab");
    name_addresses(&lab);
    for node in [&lab.nodes()[0], &lab.nodes()[2]] {
        let config = format!(
            "[cluster]\nnodes = [\"{}\"]\n[cluster.discovery]\nfrom_primary = true\ninterval = \"200ms\"\n",
            node.address()
        );
        let proxy = Proxy::serve(lab.dir(), &config, 3);
        assert_eq!(names(&proxy), addresses(&lab));
        assert!(!proxy.log().contains("split brain"));
    }

    let config = format!(
        "[failover]\nhold_timeout = \"60s\"\n[cluster]\nnodes = [\"{}\"]\n\
         [cluster.discovery]\nfrom_primary = true\ninterval = \"200ms\"\nforget_after = \"2s\"\n",
        lab.nodes()[0].address()
    );
    let proxy = Proxy::serve(lab.dir(), &config, 3);
    let journals = Journals::start(&proxy, 4).await;
    journals.all_go_on();
    // The only one that was named goes, and one of those that were found takes over.
    until_replayed(&lab);
    let (first, second, third) = (&lab.nodes()[0], &lab.nodes()[1], &lab.nodes()[2]);
    lab.stop(first.name(), StopMode::Fast, &mut Quiet).expect("stopped");
    lab.promote(second.name(), &mut Quiet).expect("a promotion");
    journals.all_go_on();
    assert_eq!(proxy.status().primary, Some(second.address()));
    let journals = journals.finish().await;
    assert_eq!(audit(&journals, second).await, [0; 0]);

    // A standby that goes for good is forgotten, after a while; what the file names stays.
    lab.stop(third.name(), StopMode::Fast, &mut Quiet).expect("stopped");
    let mut left = vec![first.address(), second.address()];
    left.sort();
    eventually("the standby is forgotten", || names(&proxy) == left);
}
