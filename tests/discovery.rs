//! Nodes that no list names: found from one of them, in DNS, and in a Kubernetes service.

mod support;

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use pgsluice::lab::{LabGuard, Quiet, StopMode};
use support::journal::{Journals, audit};
use support::{Proxy, eventually, free_port, until_replayed};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

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

/// What listens at one address is a node of the lab.
async fn forward(from: String, port: u16) {
    let listener = TcpListener::bind(from)
        .await
        .expect("an address of the loopback network");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
}

/// What makes a program see another /etc/hosts; `None` where that isn't allowed.
fn with_hosts(file: &str) -> Option<[String; 7]> {
    let script = format!("mount --bind {file} /etc/hosts && exec \"$@\"");
    let words = ["unshare", "--map-root-user", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned);
    let allowed = Command::new(&words[0]).args(&words[1..]).arg("true").output();
    allowed.is_ok_and(|output| output.status.success()).then_some(words)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_address_of_a_name_is_a_node_while_it_is_one() {
    let lab = LabGuard::fresh(2).expect("a lab");
    let hosts = lab.dir().join("hosts");
    let name_has = |addresses: &[&str]| {
        let lines: String = addresses.iter().map(|address| format!("{address} pg.test\n")).collect();
        // In place: the proxy's /etc/hosts is this very file.
        fs::write(&hosts, format!("127.0.0.1 localhost\n{lines}")).expect("a hosts file");
    };
    name_has(&["127.0.0.2", "127.0.0.3"]);
    let Some(words) = with_hosts(hosts.to_str().expect("a path in ASCII")) else {
        eprintln!("skipped: no mount namespace can be made here, so no program can be shown another /etc/hosts");
        return;
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let port = free_port();
    for (number, node) in (2..).zip(lab.nodes()) {
        forward(format!("127.0.0.{number}:{port}"), node.port()).await;
    }
    let config = format!("[cluster.discovery]\ndns = [\"pg.test:{port}\"]\ninterval = \"200ms\"\n");
    let proxy = Proxy::serve_by(&words, lab.dir(), &config, 2);
    let at = |numbers: &[u8]| -> Vec<String> { numbers.iter().map(|last| format!("127.0.0.{last}:{port}")).collect() };
    assert_eq!(names(&proxy), at(&[2, 3]));

    name_has(&["127.0.0.4", "127.0.0.3", "127.0.0.2"]);
    proxy.until_serving(3);
    assert_eq!(names(&proxy), at(&[2, 3, 4]));
    name_has(&["127.0.0.4", "127.0.0.2"]);
    eventually("the address is none any more", || names(&proxy) == at(&[2, 4]));
    name_has(&[]);
    eventually("the name isn't found", || {
        proxy.log().contains("the source can't be asked")
    });
    assert_eq!(names(&proxy), at(&[2, 4]));
    proxy.client().await.simple_query("select 1").await.expect("an answer");
}

/// A slice with one pod, as the API server writes it.
fn slice(pod: &str, port: u16) -> String {
    format!(
        r#"{{"metadata":{{"name":"postgres-{pod}","resourceVersion":"7"}},"addressType":"IPv4","endpoints":[{{"addresses":["127.0.0.1"],
        "conditions":{{"ready":false,"serving":false,"terminating":false}},"targetRef":{{"kind":"Pod","namespace":"db","name":"{pod}"}}}}],
        "ports":[{{"name":"postgresql","port":{port},"protocol":"TCP"}}]}}"#
    )
    .replace('\n', "")
}

/// An API server that lists one slice, and streams these events to whoever watches.
async fn api(list: String, mut events: mpsc::Receiver<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await?);
            }
            socket.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await?;
            if !String::from_utf8_lossy(&head).contains("watch=1") {
                socket.write_all(list.as_bytes()).await?;
                continue;
            }
            while let Some(event) = events.recv().await {
                socket.write_all(event.as_bytes()).await?;
            }
        }
        std::io::Result::Ok(())
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoints_of_a_service_are_nodes_by_the_names_of_their_pods() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let (primary, standby) = (lab.nodes()[0].port(), lab.nodes()[1].port());
    let list = format!(
        r#"{{"metadata":{{"resourceVersion":"5"}},"items":[{}]}}"#,
        slice("pg-0", primary)
    );
    let (happen, events) = mpsc::channel(1);
    let url = api(list, events).await;
    let config = format!(
        "[cluster.discovery]\nkubernetes.service = \"postgres\"\nkubernetes.namespace = \"db\"\nkubernetes.api = \"{url}\"\n"
    );
    let proxy = Proxy::serve(lab.dir(), &config, 1);
    assert_eq!(
        (names(&proxy), proxy.status().primary),
        (vec!["pg-0".to_owned()], Some("pg-0".to_owned()))
    );
    let event = |kind: &str| format!("{{\"type\":\"{kind}\",\"object\":{}}}\n", slice("pg-1", standby));
    happen.send(event("ADDED")).await.expect("a watcher");
    proxy.until_serving(2);
    assert_eq!(names(&proxy), ["pg-0", "pg-1"]);
    happen.send(event("DELETED")).await.expect("a watcher");
    eventually("the pod is gone", || names(&proxy) == ["pg-0"]);

    // What a reload brings stands beside what is found.
    let nodes = format!("[[cluster.node]]\nname = \"file\"\naddress = \"127.0.0.1:{standby}\"\n");
    fs::write(proxy.config_file(), config + &nodes).expect("the proxy's configuration");
    proxy.signal(Signal::SIGHUP);
    proxy.until_serving(2);
    assert_eq!(names(&proxy), ["file", "pg-0"]);
    happen.send(event("ADDED")).await.expect("a watcher");
    happen.send(event("MODIFIED")).await.expect("a watcher");
    assert_eq!(names(&proxy), ["file", "pg-0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_see_the_standbys_is_told_what_it_lacks() {
    let lab = LabGuard::fresh(1).expect("a lab");
    name_addresses(&lab);
    let primary = &lab.nodes()[0];
    lab.sql(primary.name(), "create role watcher login").expect("a role");
    until_replayed(&lab);
    let config = format!(
        "[monitor]\nuser = \"watcher\"\n[cluster]\nnodes = [\"{}\"]\n[cluster.discovery]\nfrom_primary = true\ninterval = \"200ms\"\n",
        primary.address()
    );
    let proxy = Proxy::serve(lab.dir(), &config, 1);
    let asked_for = || proxy.log().matches("GRANT pg_monitor").count();
    eventually("it is told", || asked_for() == 1);
    lab.sql(primary.name(), "grant pg_monitor to watcher").expect("a grant");
    proxy.until_serving(2);
    assert_eq!((names(&proxy), asked_for()), (addresses(&lab), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_under_two_addresses_is_no_split_brain() {
    let lab = LabGuard::fresh(1).expect("a lab");
    let (primary, standby) = (lab.nodes()[0].port(), lab.nodes()[1].port());
    let config = format!(
        "cluster.nodes = [\"127.0.0.1:{primary}\", \"localhost:{primary}\", \"localhost:{standby}\", \"127.0.0.1:{standby}\"]\n"
    );
    let proxy = Proxy::serve(lab.dir(), &config, 2);
    let status = proxy.status();
    assert_eq!(status.primary, Some(format!("127.0.0.1:{primary}")));
    let serving: Vec<bool> = status.nodes.iter().map(|node| node.serving).collect();
    assert_eq!(serving, [true, false, true, false]);
    let log = proxy.log();
    assert!(
        log.contains("another address of") && !log.contains("split brain"),
        "{log}"
    );
    proxy
        .client_after("create table once (n int); insert into once values (1)")
        .await;
}
