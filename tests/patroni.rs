//! A real Patroni, and a proxy that knows one URL.

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::journal::{Journals, Reader, audit_at, nobody_noticed};
use support::patroni::{Api, LOGIN, PatroniCluster};
use support::{PATIENCE, Proxy, ended, eventually, free_port, sqlstate, switch_over};

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
    let reader = Reader::start(&proxy).await;
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

    reader.finish().await;
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
    // The table, at least, is to outlive its server.
    let (standby, asked) = (cluster.member("pg2").client().await, Instant::now());
    while standby.query("select from journal", &[]).await.is_err() {
        assert!(asked.elapsed() < PATIENCE, "nothing is replicated");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.kill("pg1");
    journals.all_go_on();
    assert_eq!(proxy.status().primary.as_deref(), Some("pg2"));
    let journals = journals.finish().await;
    // What the lost leader alone had is lost with it.
    audit_at(&journals, &cluster.member("pg2").client().await).await;
}

/// A proxy whose console lets the tests' user in, and that logs in to Patroni with this password.
fn operated(cluster: &PatroniCluster, password: &str, failover: &str, nodes: usize) -> Proxy {
    let file = cluster.dir().join(format!("password {password}"));
    std::fs::write(&file, format!("{password}\n")).expect("a file");
    let config = format!(
        "[admin]\nusers = [\"postgres\"]\n[failover]\nswitchover_timeout = \"2s\"\n{failover}\n[cluster.discovery]\n\
         patroni = [\"{}\"]\npatroni_root_cert = \"{}\"\npatroni_user = \"{}\"\npatroni_password_file = \"{}\"\n",
        cluster.url("pg1"),
        cluster.certificate().display(),
        LOGIN.0,
        file.display()
    );
    Proxy::serve(cluster.dir(), &config, nodes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_is_patronis_to_carry_out_and_clients_notice_nothing() {
    let cluster = PatroniCluster::start(2, Api::Https);
    // All the rights that it takes; before PostgreSQL 15 nobody can be let write checkpoints.
    let leader = cluster.member("pg1").client().await;
    let created = "create role watcher login; grant pg_monitor to watcher";
    leader.batch_execute(created).await.expect("a role");
    let may_checkpoint = leader.batch_execute("grant pg_checkpoint to watcher").await.is_ok();
    let monitor = "hold_timeout = \"60s\"\n[monitor]\nuser = \"watcher\"\n";
    let here = operated(&cluster, LOGIN.1, &format!("promote = \"never\"\n{monitor}"), 2);
    // Another proxy, which doesn't know of Patroni, and has names of its own for the nodes.
    let ports = ["pg1", "pg2"].map(|name| format!("\"127.0.0.1:{}\"", cluster.member(name).port));
    let config = format!("[failover]\n{monitor}[cluster]\nnodes = [{}]\n", ports.join(", "));
    let elsewhere = Proxy::serve(cluster.dir(), &config, 2);
    let ours = Journals::start(&here, 6).await;
    let theirs = Journals::join(&elsewhere, 6..10).await;
    // One transaction doesn't end in time.
    let slow = here.client().await;
    slow.batch_execute("create table slow (n int)").await.expect("a table");
    slow.batch_execute("begin; insert into slow values (1)")
        .await
        .expect("a block");
    for (command, from, to, ended) in [
        ("SWITCHOVER TO pg2", "pg1", "pg2", "1"),
        ("SWITCHOVER", "pg2", "pg1", "0"),
    ] {
        ours.all_go_on();
        theirs.all_go_on();
        let row = switch_over(here.port, command).await.expect("a switchover");
        println!("{command}: {row:?}");
        assert_eq!((&*row[0], &*row[1], &*row[4]), (to, from, ended), "{row:?}");
        assert_eq!(here.status().primary.as_deref(), Some(to));
        ours.all_go_on();
        theirs.all_go_on();
        here.until_serving(2);
        elsewhere.until_serving(2);
        assert_eq!(cluster.leader(to), to);
    }
    let mut journals = ours.finish().await;
    journals.extend(theirs.finish().await);
    nobody_noticed(&journals);
    let primary = cluster.member("pg1").client().await;
    assert_eq!(audit_at(&journals, &primary).await, [0; 0]);
    assert_eq!(here.metric("pgsluice_failovers_total"), 2.0);
    let checkpoints = here.log().matches("the old primary has written a checkpoint").count();
    assert_eq!(checkpoints, if may_checkpoint { 2 } else { 0 });
    // It is told once, on the connection that it had.
    let told = slow
        .batch_execute("insert into slow values (2)")
        .await
        .expect_err("it was ended");
    assert_eq!(sqlstate(&told), "40001");
    slow.batch_execute("rollback").await.expect("its end");
    slow.batch_execute("insert into slow values (3)")
        .await
        .expect("it goes on");
    let rows = primary.query_one("select sum(n) from slow", &[]).await.expect("a row");
    assert_eq!(rows.get::<_, i64>(0), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_no_longer_for_what_patroni_does_not_bring_to_an_end() {
    let cluster = PatroniCluster::start(2, Api::Https);
    let proxy = operated(&cluster, LOGIN.1, "", 2);
    let journals = Journals::start(&proxy, 4).await;
    journals.all_go_on();
    let slow = proxy.client_after("create table slow (n int)").await;
    slow.batch_execute("begin; insert into slow values (1)")
        .await
        .expect("a block");
    let port = proxy.port;
    let switchover = tokio::spawn(async move { switch_over(port, "SWITCHOVER TO pg2").await });
    // The members are known, and then the store is lost: Patroni neither says yes nor no, and stops the leader, which it can't vouch for.
    eventually("writes are held", || proxy.status().primary.is_none());
    cluster.signal_etcd(Signal::SIGSTOP);
    let (code, words) = ended("the switchover", switchover).await.expect_err("nobody leads");
    assert_eq!(code, "08007", "{words}");
    assert!(
        words.starts_with("Patroni was asked to make pg2 the leader, and nobody leads on a higher timeline after 10s"),
        "{words}"
    );
    cluster.signal_etcd(Signal::SIGCONT);
    journals.all_go_on();
    let primary = proxy.status().primary.expect("a primary");
    let journals = journals.finish().await;
    let primary = cluster.member(&primary).client().await;
    assert_eq!(audit_at(&journals, &primary).await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_that_patroni_refuses_leaves_everything_as_it_was() {
    let mut cluster = PatroniCluster::start(2, Api::Https);
    cluster.add("nofailover: true");
    let loner = format!(
        "hold_timeout = \"60s\"\n[[cluster.node]]\nname = \"loner\"\naddress = \"127.0.0.1:{}\"",
        cluster.member("pg3").port
    );
    let proxy = operated(&cluster, LOGIN.1, &loner, 3);
    let journals = Journals::start(&proxy, 4).await;
    journals.all_go_on();
    let told = async |proxy: &Proxy, command| switch_over(proxy.port, command).await.expect_err("it is refused");

    // A member by another name, which Patroni doesn't let lead.
    let (code, words) = told(&proxy, "SWITCHOVER TO loner").await;
    assert_eq!(code, "55000", "{words}");
    assert!(words.contains("Patroni refuses: switchover is not possible"), "{words}");
    journals.all_go_on();
    let stranger = operated(&cluster, "wrong", "", 3);
    let (code, words) = told(&stranger, "SWITCHOVER TO pg2").await;
    assert_eq!(code, "42501", "{words}");
    assert!(words.contains("not authenticated (HTTP 401)"), "{words}");
    journals.all_go_on();
    cluster.abandon("pg3");
    let (code, words) = told(&proxy, "SWITCHOVER TO loner").await;
    assert_eq!(code, "55000", "{words}");
    assert_eq!(words, "loner is no member of Patroni's; there are pg1, pg2");

    let ports = ["pg1", "pg2"].map(|name| format!("\"127.0.0.1:{}\"", cluster.member(name).port));
    let nowhere = format!(
        "[admin]\nusers = [\"postgres\"]\n[cluster]\nnodes = [{}]\n[cluster.discovery]\npatroni = [\"http://127.0.0.1:{}\"]\n",
        ports.join(", "),
        free_port()
    );
    let nowhere = Proxy::serve(cluster.dir(), &nowhere, 2);
    let (code, words) = told(&nowhere, "SWITCHOVER").await;
    assert_eq!(code, "08006", "{words}");
    assert!(
        words.starts_with("Patroni can't be asked: http://127.0.0.1:"),
        "{words}"
    );
    journals.all_go_on();
    assert_eq!(proxy.status().primary.as_deref(), Some("pg1"));
    let journals = journals.finish().await;
    nobody_noticed(&journals);
    let primary = cluster.member("pg1").client().await;
    assert_eq!(audit_at(&journals, &primary).await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trigger_file_has_patroni_fail_over() {
    let mut cluster = PatroniCluster::start(2, Api::Https);
    let file = cluster.dir().join("trigger");
    let proxy = operated(
        &cluster,
        LOGIN.1,
        &format!("hold_timeout = \"60s\"\ntrigger_file = \"{}\"", file.display()),
        2,
    );
    let journals = Journals::start(&proxy, 4).await;
    journals.all_go_on();
    std::fs::write(&file, "").expect("a file");
    eventually("the file is removed", || !file.exists());
    assert_eq!(proxy.status().primary.as_deref(), Some("pg2"));
    journals.all_go_on();
    assert_eq!(cluster.leader("pg2"), "pg2");

    // The leader is lost, and before Patroni itself would notice somebody asks for a failover.
    proxy.until_serving(2);
    cluster.kill("pg2");
    std::fs::write(&file, "").expect("a file");
    eventually("the file is removed", || !file.exists());
    assert_eq!(proxy.status().primary.as_deref(), Some("pg1"));
    journals.all_go_on();
    let journals = journals.finish().await;
    // What the lost leader alone had is lost with it.
    audit_at(&journals, &cluster.member("pg1").client().await).await;
}
