//! A real Patroni, and a proxy that knows one URL.

mod support;

use nix::sys::signal::Signal;
use support::journal::{Journals, audit_at};
use support::patroni::{Api, PatroniCluster};
use support::{Proxy, eventually};

/// Names and addresses of the nodes that the proxy has.
fn nodes(proxy: &Proxy) -> Vec<(String, String)> {
    let nodes = proxy.status().nodes.into_iter();
    let mut nodes: Vec<(String, String)> = nodes.map(|node| (node.name, node.address)).collect();
    nodes.sort();
    nodes
}

fn members(cluster: &PatroniCluster, names: &[&str]) -> Vec<(String, String)> {
    let address = |name: &&str| format!("127.0.0.1:{}", cluster.member(name).port);
    names.iter().map(|name| ((*name).to_owned(), address(name))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_are_patronis_members_whichever_of_them_come_and_go() {
    let mut cluster = PatroniCluster::start(2, Api::Http);
    let config = format!(
        "[failover]\npromote = \"never\"\nhold_timeout = \"60s\"\n[cluster.discovery]\npatroni = [\"{}\"]\ninterval = \"500ms\"\n",
        cluster.url("pg1")
    );
    let proxy = Proxy::serve(cluster.dir(), &config, 2);
    assert_eq!(nodes(&proxy), members(&cluster, &["pg1", "pg2"]));
    assert_eq!(proxy.status().primary.as_deref(), Some("pg1"));
    let journals = Journals::start(&proxy, 4).await;
    journals.all_go_on();

    cluster.switchover("pg1", "pg2");
    journals.all_go_on();
    assert_eq!(proxy.status().primary.as_deref(), Some("pg2"));

    // The only URL that was configured is lost with its machine: the others are known by now.
    cluster.kill("pg1");
    eventually("the lost member is none any more", || {
        nodes(&proxy) == members(&cluster, &["pg2"])
    });
    cluster.add("");
    eventually("the new member serves", || {
        let is_there = nodes(&proxy) == members(&cluster, &["pg2", "pg3"]);
        is_there && proxy.node("pg3").serving
    });
    journals.all_go_on();
    eventually("the new member takes reads", || proxy.statements("pg3").0 > 0);
    cluster.add("noloadbalance: true, nofailover: true");
    eventually("a member that is to take no reads is there", || {
        nodes(&proxy) == members(&cluster, &["pg2", "pg3", "pg4"])
    });

    cluster.switchover("pg2", "pg3");
    journals.all_go_on();
    assert_eq!(proxy.status().primary.as_deref(), Some("pg3"));
    assert_eq!(proxy.statements("pg4").0, 0);

    // Without its store Patroni answers nothing, and has no leader for a while: the nodes stay what they are.
    cluster.signal_etcd(Signal::SIGSTOP);
    eventually("Patroni is silent", || {
        proxy.log().contains("the source can't be asked")
    });
    assert_eq!(nodes(&proxy), members(&cluster, &["pg2", "pg3", "pg4"]));
    cluster.signal_etcd(Signal::SIGCONT);
    journals.all_go_on();
    assert_eq!(nodes(&proxy), members(&cluster, &["pg2", "pg3", "pg4"]));

    let journals = journals.finish().await;
    let primary = proxy.status().primary.expect("a primary");
    let primary = cluster.member(&primary).client().await;
    assert_eq!(audit_at(&journals, &primary).await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_lost_is_followed_by_the_one_that_patroni_chooses() {
    let mut cluster = PatroniCluster::start(2, Api::Https);
    let config = format!(
        "[failover]\npromote = \"never\"\nhold_timeout = \"60s\"\n[cluster.discovery]\npatroni = [\"{}\"]\n\
         patroni_root_cert = \"{}\"\ninterval = \"500ms\"\n",
        cluster.url("pg2"),
        cluster.certificate().display()
    );
    let proxy = Proxy::serve(cluster.dir(), &config, 2);
    let journals = Journals::start(&proxy, 4).await;
    journals.all_go_on();
    cluster.kill("pg1");
    journals.all_go_on();
    assert_eq!(proxy.status().primary.as_deref(), Some("pg2"));
    let journals = journals.finish().await;
    // What the lost leader alone had is lost with it.
    audit_at(&journals, &cluster.member("pg2").client().await).await;
}
