//! Configuration as an operator meets it: what is understood, and what is said of what isn't.

use std::path::Path;
use std::time::Duration;

use pgsluice::config::{
    AuthMethod, Config, ConfigErrors, Consistency, Environment, ListenTls, NodeAddress, Overrides, Place, PoolMode,
    Promote, ReadFromPrimary, Secret, SslMode, check_config, keys,
};

const NODES: &str = "cluster.nodes = [\"127.0.0.1:15432\"]\n";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, "p.toml", &Overrides::default())
}

/// The problems as an operator reads them.
fn problems(text: &str) -> Vec<String> {
    let errors = parse(text).expect_err(&format!("this should be refused:\n{text}"));
    errors.problems().iter().map(ToString::to_string).collect()
}

/// The one problem of a text that is fine but for `extra`, which stands from line 2 on.
fn problem(extra: &str) -> String {
    let problems = problems(&format!("{NODES}{extra}"));
    assert_eq!(problems.len(), 1, "{extra}: {problems:#?}");
    problems.into_iter().next().unwrap()
}

fn environment(variables: &'static [(&'static str, &'static str)]) -> Environment {
    Environment::from_variables(|name| {
        variables
            .iter()
            .find(|(set, _)| *set == name)
            .map(|(_, text)| (*text).to_owned())
    })
}

#[test]
fn nodes_may_be_left_out_where_others_know_them() {
    let text = "[cluster.discovery]\ndns = [\"db.example.com:5432\"]\npatroni = [\"http://db1:8008\", \"https://db2:8008/\"]\n\
                patroni_user = \"pgsluice\"\npatroni_password = \"a:b\"\nfrom_primary = true\nstandby_port = 5433\nforget_after = \"1min\"\ninterval = \"1s\"\n\
                kubernetes.service = \"pg\"\nkubernetes.namespace = \"db\"\nkubernetes.port = \"5432\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.cluster.nodes, []);
    let discovery = config.cluster.discovery;
    assert_eq!(discovery.dns[0].to_string(), "db.example.com:5432");
    let patroni = discovery.patroni.unwrap();
    let urls: Vec<String> = patroni.urls.iter().map(ToString::to_string).collect();
    assert_eq!(urls, ["http://db1:8008", "https://db2:8008"]);
    let login = patroni.login.unwrap();
    assert_eq!((login.user.as_str(), login.password.0.as_str()), ("pgsluice", "a:b"));
    let servers = discovery.servers.unwrap();
    assert_eq!(
        (servers.standby_port, servers.forget_after),
        (Some(5433), Duration::from_secs(60))
    );
    let kubernetes = discovery.kubernetes.unwrap();
    assert_eq!(
        (kubernetes.service.as_str(), kubernetes.namespace.as_deref()),
        ("pg", Some("db"))
    );
    assert_eq!(
        kubernetes.account,
        Path::new("/var/run/secrets/kubernetes.io/serviceaccount")
    );
    assert_eq!(discovery.interval, Duration::from_secs(1));

    let discovery = parse(NODES).unwrap().cluster.discovery;
    assert!(discovery.is_empty());
    // A candidate may be found later.
    parse(&format!("{text}[failover]\ncandidate = \"pg-3\"\n")).unwrap();
    let environment = environment(&[
        ("PGSLUICE_CLUSTER_DISCOVERY_PATRONI", "http://db1:8008, http://db2:8008"),
        ("PGSLUICE_CLUSTER_DISCOVERY_FROM_PRIMARY", "on"),
    ]);
    let overrides = Overrides {
        environment,
        ..Overrides::default()
    };
    let discovery = Config::from_overrides(&overrides).unwrap().cluster.discovery;
    assert_eq!(discovery.names(), ["patroni", "servers"]);
}

#[test]
fn sources_that_cannot_be_asked_are_refused() {
    let section = "[cluster.discovery]\n";
    for (extra, expected) in [
        (
            "dns = [\"db\"]",
            "p.toml:3:8: cluster.discovery.dns: \"db\" has no port; did you mean \"db:5432\"?",
        ),
        (
            "dns = [\"db:1\", \"db:1\"]",
            "p.toml:3:16: cluster.discovery.dns: \"db:1\" stands there twice",
        ),
        (
            "patroni = [\"db1:8008\"]",
            "p.toml:3:12: cluster.discovery.patroni: \"db1:8008\" is no URL like http://db1:8008; did you mean \"http://db1:8008\"?",
        ),
        (
            "patroni = [\"http://db1:8008\", \"http://db1:8008/\"]",
            "p.toml:3:31: cluster.discovery.patroni: \"http://db1:8008/\" stands there twice",
        ),
        (
            "patroni = [\"http://db1\"]\npatroni_user = \"a\"",
            "p.toml:4:1: cluster.discovery.patroni_user: means nothing alone; set cluster.discovery.patroni_password or \
             cluster.discovery.patroni_password_file",
        ),
        (
            "patroni = [\"http://db1\"]\npatroni_password = \"b\"",
            "p.toml:4:1: cluster.discovery.patroni_password: means nothing alone; set cluster.discovery.patroni_user",
        ),
        (
            "patroni = [\"http://db1\"]\npatroni_user = \"a:b\"\npatroni_password = \"b\"",
            "p.toml:4:1: cluster.discovery.patroni_user: must be without a colon",
        ),
        (
            "standby_port = 5433",
            "p.toml:3:1: cluster.discovery.standby_port: means nothing alone; set cluster.discovery.from_primary",
        ),
        (
            "kubernetes.port = \"postgresql\"",
            "p.toml:3:12: cluster.discovery.kubernetes.port: means nothing alone; set cluster.discovery.kubernetes.service",
        ),
        (
            "kubernetes.service = \"a/b\"",
            "p.toml:3:12: cluster.discovery.kubernetes.service: \"a/b\" is no name in Kubernetes",
        ),
        (
            "from_primry = true",
            "p.toml:3:1: cluster.discovery.from_primry: there is no such key; did you mean `from_primary`?",
        ),
        (
            "interval = \"10ms\"",
            "p.toml:3:1: cluster.discovery.interval: must be from 100ms to 1h, not 10ms",
        ),
    ] {
        assert_eq!(problem(&format!("{section}{extra}\n")), expected);
    }
    let alone = problems("[cluster.discovery]\nfrom_primary = true\n");
    assert!(
        alone[0].contains("must name at least one node, to ask it for the others"),
        "{alone:?}"
    );
}

#[test]
fn nodes_are_all_that_must_be_said() {
    let config = parse(NODES).unwrap();
    assert_eq!(config.listen.addresses, ["127.0.0.1:5432".parse().unwrap()]);
    assert_eq!(config.listen.max_clients, 10_000);
    assert!(config.listen.threads >= 1);
    assert_eq!(config.listen.tls, None);
    assert_eq!(config.cluster.nodes.len(), 1);
    assert_eq!(config.cluster.nodes[0].name, "127.0.0.1:15432");
    assert_eq!(config.cluster.nodes[0].weight, 1);
    assert_eq!(config.cluster.tls.mode, SslMode::Prefer);
    assert_eq!(
        (config.monitor.user.as_str(), config.monitor.database.as_str()),
        ("postgres", "postgres")
    );
    assert_eq!(config.monitor.interval, Duration::from_millis(250));
    assert_eq!(config.auth.method, AuthMethod::Trust);
    assert_eq!(
        (config.pool.mode, config.pool.size, config.pool.max_per_node),
        (PoolMode::Transaction, 20, None)
    );
    assert_eq!(config.routing.consistency, Consistency::ReadYourWrites);
    assert_eq!(config.routing.read_from_primary, ReadFromPrimary::Fallback);
    assert_eq!(config.routing.max_lag, Duration::from_secs(10));
    assert_eq!(
        (config.failover.promote, config.failover.hold_max),
        (Promote::Auto, 1000)
    );
    assert_eq!(config.admin.http, Some("127.0.0.1:9432".parse().unwrap()));
    assert_eq!((&*config.admin.database, config.admin.users.len()), ("pgsluice", 0));
}

#[test]
fn everything_can_be_said() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("s.crt", ""),
        ("s.key", ""),
        ("root.crt", ""),
        ("users.txt", ""),
        ("monitor.pw", "geheim\n"),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let path = folder.path().join("p.toml");
    std::fs::write(
        &path,
        r#"
        [listen]
        addresses = ["0.0.0.0:6432", "[::1]:6432"]
        max_clients = 5
        threads = 2
        login_timeout = "1m"
        drain_timeout = "0s"
        [listen.tls]
        cert = "s.crt"
        key = "s.key"
        required = true
        [cluster]
        state_file = "state"
        tls = { mode = "verify-full", root_cert = "root.crt", cert = "s.crt", key = "s.key" }
        [[cluster.node]]
        address = "db1:5432"
        name = "one"
        weight = 0
        [[cluster.node]]
        address = "[2001:db8::2]:5433"
        [monitor]
        user = "sluice"
        password_file = "monitor.pw"
        database = "app"
        interval = "1s"
        timeout = "2s"
        idle_interval = "1min"
        [auth]
        method = "scram-sha-256"
        users = "users.txt"
        [pool]
        mode = "session"
        size = 3
        max_per_node = 30
        checkout_timeout = "100ms"
        idle_timeout = "1h"
        max_lifetime = "1d"
        connect_timeout = "2s"
        [routing]
        consistency = "linearizable"
        max_lag = "1h30m"
        wait_for_standby = "0ms"
        read_from_primary = "never"
        defer_begin = false
        balancer = "power_of_two_choices"
        [failover]
        trigger_file = "/tmp/trigger"
        promote = "never"
        candidate = "[2001:db8::2]:5433"
        hold_timeout = "0ms"
        hold_max = 0
        [admin]
        http = "off"
        database = "console"
        users = ["postgres", "Ops"]
        "#,
    )
    .unwrap();
    let config = Config::load(&path, &Overrides::default()).unwrap_or_else(|errors| panic!("{errors}"));
    let file = |name: &str| folder.path().join(name);
    assert_eq!(
        config.listen.addresses,
        ["0.0.0.0:6432".parse().unwrap(), "[::1]:6432".parse().unwrap()]
    );
    assert_eq!((config.listen.max_clients, config.listen.threads), (5, 2));
    assert_eq!(config.listen.drain_timeout, Duration::ZERO);
    assert_eq!(
        config.listen.tls,
        Some(ListenTls {
            cert: file("s.crt"),
            key: file("s.key"),
            required: true
        })
    );
    assert_eq!(config.cluster.state_file, Some(file("state")));
    assert_eq!(config.cluster.tls.mode, SslMode::VerifyFull);
    assert_eq!(config.cluster.tls.client, Some((file("s.crt"), file("s.key"))));
    assert_eq!(
        (config.cluster.nodes[0].name.as_str(), config.cluster.nodes[0].weight),
        ("one", 0)
    );
    assert_eq!(
        config.cluster.nodes[1].address,
        NodeAddress {
            host: "2001:db8::2".to_owned(),
            port: 5433
        }
    );
    assert_eq!(config.monitor.password, Some(Secret("geheim".to_owned())));
    assert_eq!(config.monitor.idle_interval, Duration::from_secs(60));
    assert_eq!(
        (config.auth.method, config.auth.users),
        (AuthMethod::ScramSha256, Some(file("users.txt")))
    );
    assert_eq!(
        (config.pool.mode, config.pool.max_per_node),
        (PoolMode::Session, Some(30))
    );
    assert_eq!(config.routing.max_lag, Duration::from_secs(5400));
    assert_eq!(config.routing.read_from_primary, ReadFromPrimary::Never);
    assert_eq!(config.failover.trigger_file.as_deref(), Some(Path::new("/tmp/trigger")));
    assert_eq!(config.failover.candidate.as_deref(), Some("[2001:db8::2]:5433"));
    assert_eq!(config.failover.hold_timeout, Duration::ZERO);
    assert_eq!(config.admin.http, None);
    assert_eq!(config.admin.database, "console");
    assert_eq!(config.admin.users, ["postgres", "Ops"]);
}

/// Each class of mistake, with its line, its key and what to write instead.
#[test]
fn a_mistake_is_told_with_its_line_and_what_to_write() {
    for (extra, expected) in [
        // Keys.
        (
            "[routing]\nmax_lga = \"1s\"",
            "p.toml:3:1: routing.max_lga: there is no such key; did you mean `max_lag`?",
        ),
        (
            "[routng]\nmax_lag = \"1s\"",
            "p.toml:2:2: routng: there is no such section; did you mean `routing`?",
        ),
        (
            "[pool]\nmax_lag = \"1s\"",
            "p.toml:3:1: pool.max_lag: there is no such key; `max_lag` belongs in [routing]",
        ),
        (
            "[listen]\n  tls.crt = \"a\"",
            "p.toml:3:7: listen.tls.crt: there is no such key; did you mean `cert`?",
        ),
        (
            "routing = 5",
            "p.toml:2:1: routing: is a section, not the number 5; write [routing] and its keys below",
        ),
        (
            "[auth]\nauth_query = \"q\"",
            "p.toml:3:1: auth.auth_query: is not supported yet: users are read from a file",
        ),
        (
            "[admin]\nusers = \"u\"",
            "p.toml:3:1: admin.users: must be a list; did you mean [\"u\"]?",
        ),
        // Numbers, flags, texts, lists.
        (
            "[pool]\nsize = 0",
            "p.toml:3:1: pool.size: must be a whole number from 1 to 100000, not the number 0",
        ),
        (
            "pool.size = -1",
            "p.toml:2:6: pool.size: must be a whole number from 1 to 100000, not the number -1",
        ),
        (
            "pool.size = 1.5",
            "p.toml:2:6: pool.size: must be a whole number from 1 to 100000, not the number 1.5",
        ),
        (
            "pool.size = \"20\"",
            "p.toml:2:6: pool.size: must be a whole number from 1 to 100000, not the text \"20\"; write 20 without quotes",
        ),
        (
            "pool.size = 99999999999999999999",
            "p.toml:2:6: pool.size: must be a whole number from 1 to 100000, not the number 99999999999999999999",
        ),
        (
            "routing.defer_begin = 1",
            "p.toml:2:9: routing.defer_begin: must be true or false, not the number 1",
        ),
        (
            "monitor.user = 5",
            "p.toml:2:9: monitor.user: must be a text; put it in quotes",
        ),
        ("monitor.user = \"\"", "p.toml:2:9: monitor.user: must not be empty"),
        (
            "listen.addresses = \"127.0.0.1:1, [::1]:1\"",
            "p.toml:2:8: listen.addresses: must be a list; did you mean [\"127.0.0.1:1\", \"[::1]:1\"]?",
        ),
        (
            "listen.addresses = [5432]",
            "p.toml:2:8: listen.addresses: must be a list of texts, but has the number 5432 in it",
        ),
        // Durations.
        (
            "routing.max_lag = 10",
            "p.toml:2:9: routing.max_lag: must be a duration with a unit, in quotes; did you mean \"10s\"?",
        ),
        (
            "routing.max_lag = \"10\"",
            "p.toml:2:9: routing.max_lag: \"10\" has no unit; did you mean \"10s\"?",
        ),
        (
            "routing.max_lag = \"soon\"",
            "p.toml:2:9: routing.max_lag: \"soon\" is not a duration; write it like \"250ms\", \"10s\", \"1m\" or \"1h\"",
        ),
        (
            "monitor.interval = \"1ms\"",
            "p.toml:2:9: monitor.interval: must be from 10ms to 1h, not 1ms",
        ),
        // Choices.
        (
            "routing.consistency = \"read-your-writes\"",
            "p.toml:2:9: routing.consistency: \"read-your-writes\" is not one of `eventual`, `read_your_writes`, `session`, \
             `linearizable`; did you mean \"read_your_writes\"?",
        ),
        (
            "pool.mode = \"bouncy\"",
            "p.toml:2:6: pool.mode: \"bouncy\" is not one of `transaction`, `session`, `statement`",
        ),
        // Addresses.
        (
            "listen.addresses = [\n\"127.0.0.1:1\",\n\"::1\"]",
            "p.toml:4:1: listen.addresses: \"::1\" has no port; did you mean \"[::1]:5432\"?",
        ),
        (
            "listen.addresses = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
            "p.toml:2:36: listen.addresses: \"127.0.0.1:1\" stands there twice",
        ),
        (
            "listen.addresses = []",
            "p.toml:2:8: listen.addresses: must have an address; leave it out to listen on 127.0.0.1:5432",
        ),
        (
            "admin.http = \"9432\"",
            "p.toml:2:7: admin.http: \"9432\" has no host; write it like \"127.0.0.1:9432\", or \"off\" to serve none",
        ),
        (
            "admin.http = \"nein\"",
            "p.toml:2:7: admin.http: \"nein\" has no port; write it like \"127.0.0.1:9432\", or \"off\" to serve none",
        ),
        // Not supported yet.
        (
            "auth.method = \"cert\"",
            "p.toml:2:6: auth.method: \"cert\" is not supported yet: client certificates don't log in; choose one of \
             `trust`, `scram-sha-256`, `md5`",
        ),
        (
            "auth.method = \"hba\"",
            "p.toml:2:6: auth.method: \"hba\" is not supported yet: pg_hba.conf files are not read; choose one of \
             `trust`, `scram-sha-256`, `md5`",
        ),
        (
            "routing.defer_begin = true",
            "p.toml:2:9: routing.defer_begin: is not supported yet: a plain transaction starts on the primary; leave it \
             out, or write false",
        ),
        // What doesn't fit together.
        (
            "auth.method = \"md5\"",
            "p.toml:2:6: auth.method: needs a file of users; set auth.users",
        ),
        (
            "listen.addresses = [\"0.0.0.0:5432\"]",
            "p.toml: auth.method: must be set, since others than this machine can connect to 0.0.0.0:5432; set \
             \"scram-sha-256\" with a users file, or \"trust\" to let in whoever can connect",
        ),
        (
            "listen.tls.required = true",
            "p.toml:2:12: listen.tls.required: needs a certificate; set listen.tls.cert and listen.tls.key",
        ),
        (
            "auth.users = \"nobody.txt\"",
            "p.toml:2:6: auth.users: nobody.txt is not there",
        ),
        (
            "failover.candidate = \"127.0.0.1:15433\"",
            "p.toml:2:10: failover.candidate: no node is called \"127.0.0.1:15433\"; did you mean \"127.0.0.1:15432\"?",
        ),
        (
            "routing.max_lag = \"100ms\"",
            "p.toml:2:9: routing.max_lag: max_lag must not be shorter than monitor.interval, 250ms: lag isn't known \
             better; lengthen the one or shorten the other",
        ),
        (
            "monitor.idle_interval = \"100ms\"",
            "p.toml:2:9: monitor.idle_interval: must not be shorter than monitor.interval, 250ms",
        ),
        (
            "listen.addresses = [\"127.0.0.1:15432\"]",
            "p.toml:2:8: listen.addresses: the node 127.0.0.1:15432 is the proxy's own address 127.0.0.1:15432; listen on \
             another port",
        ),
        (
            "admin.http = \"127.0.0.1:5432\"",
            "p.toml:2:7: admin.http: 127.0.0.1:5432 is listened on for clients; choose another port",
        ),
    ] {
        assert_eq!(problem(extra), expected, "{extra}");
    }
}

#[test]
fn nodes_are_checked_one_by_one() {
    let table = |body: &str| format!("[[cluster.node]]\naddress = \"a:1\"\n[[cluster.node]]\n{body}");
    for (text, expected) in [
        ("", "p.toml: cluster.nodes: must name at least one node; write nodes = [\"127.0.0.1:15432\"], or give --node or PGSLUICE_NODES".to_owned()),
        ("cluster.nodes = [\"a:0\"]", "p.toml:1:18: cluster.nodes: \"a:0\" has the port 0; a node's port is from 1 to 65535".to_owned()),
        (
            "cluster.nodes = [\n\"a:1\",\n\"a:1\"]",
            "p.toml:3:1: cluster.nodes: a:1 stands there twice (first in line 2)".to_owned(),
        ),
        (
            "cluster.nodes = [\"postgres://a:1/db\"]",
            "p.toml:1:18: cluster.nodes: \"postgres://a:1/db\" is a URL, not an address; write it like \
             \"db1.example.com:5432\" or \"[2001:db8::1]:5432\"".to_owned(),
        ),
        (
            &table("name = \"b\""),
            "p.toml:3:1: cluster.node.address: is missing; write address = \"127.0.0.1:15432\"".to_owned(),
        ),
        (
            &table("address = \"b:1\"\nweight = 1001"),
            "p.toml:5:1: cluster.node.weight: must be a whole number from 0 to 1000, not the number 1001".to_owned(),
        ),
        (
            &table("address = \"b:1\"\nwieght = 1"),
            "p.toml:5:1: cluster.node.wieght: there is no such key; did you mean `weight`?".to_owned(),
        ),
        (
            &table("address = \"b:1\"\nzone = \"z\""),
            "p.toml:5:1: cluster.node.zone: is not supported yet: reads are not placed by zone".to_owned(),
        ),
        (
            &table("address = \"b:1\"\nname = \"a:1\""),
            "p.toml:3:1: cluster.node.name: two nodes have the name \"a:1\" (first in line 1); give each a name of its own"
                .to_owned(),
        ),
        (
            &table("address = \"b:1\"\nname = \"b 1\""),
            "p.toml:5:1: cluster.node.name: \"b 1\" can't be a name; use up to 64 letters, digits and any of . : _ - [ ]"
                .to_owned(),
        ),
        (
            &format!("[cluster]\nnodes = [\"b:1\"]\n{}", "[[cluster.node]]\naddress = \"a:1\""),
            "p.toml:2:1: cluster.nodes: stands beside [[cluster.node]] tables; keep one of the two".to_owned(),
        ),
        (
            "[cluster]\nnodes = [\"b:1\"]\n[cluster.node]\naddress = \"a:1\"",
            "p.toml:3:10: cluster.node: is a list of tables; write [[cluster.node]] above each node's address, name and \
             weight"
                .to_owned(),
        ),
    ] {
        assert_eq!(problems(text), [expected], "{text}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_their_lines() {
    let text = "[routing]\nmax_lga = \"1s\"\nconsistency = 5\n[pool]\nsize = \"many\"\nmode = \"statements\"\n[cluster]\nnodes = [\"a\"]\n";
    let errors = parse(text).unwrap_err();
    let lines: Vec<Option<usize>> = errors.problems().iter().map(|problem| problem.place.line()).collect();
    assert_eq!(lines, [Some(2), Some(3), Some(5), Some(6), Some(8)], "{errors}");
    assert_eq!(errors.to_string().lines().count(), 5);
}

#[test]
fn what_is_not_toml_is_told_with_line_and_column() {
    for (text, start) in [
        (
            "[cluster]\nnodes = [\"a:1\"\n[pool]\nsize = 1",
            "p.toml:3:1: not TOML: ",
        ),
        ("[cluster]\nnodes 5", "p.toml:2:7: not TOML: "),
        ("[pool]\nsize = 1\nsize = 2", "p.toml:3:1: not TOML: duplicate key"),
        ("size = \"ü\" \"", "p.toml:1:12: not TOML: "),
    ] {
        let problems = problems(text);
        assert!(problems[0].starts_with(start), "{problems:#?}");
        assert_eq!(problems.len(), 1, "{problems:#?}");
    }
}

#[test]
fn a_deep_nest_is_refused_without_harm() {
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(problems(&deep)[0].contains("not TOML"));
}

#[test]
fn two_flags_are_enough_without_a_file() {
    let overrides = Overrides {
        listen: vec!["127.0.0.1:6432".to_owned()],
        nodes: vec!["db1:5432".to_owned(), "db2:5432".to_owned()],
        ..Overrides::default()
    };
    let config = Config::from_overrides(&overrides).unwrap();
    assert_eq!(config.listen.addresses, ["127.0.0.1:6432".parse().unwrap()]);
    assert_eq!(config.cluster.nodes[1].name, "db2:5432");
}

#[test]
fn flags_come_before_the_environment_and_that_before_the_file() {
    let text = "[listen]\naddresses = [\"127.0.0.1:1\"]\n[[cluster.node]]\naddress = \"file:1\"\nname = \"n\"\n[routing]\nmax_lag = \"1s\"\n";
    let environment = environment(&[
        ("PGSLUICE_LISTEN", "127.0.0.1:2"),
        ("PGSLUICE_NODES", "env1:1, env2:1,"),
        ("PGSLUICE_ROUTING_MAX_LAG", "2s"),
        ("PGSLUICE_POOL_SIZE", "7"),
        ("PGSLUICE_LISTEN_TLS_REQUIRED", "no"),
        ("PGSLUICE_MONITOR_PASSWORD", "geheim"),
        ("PGSLUICE_TRIGGER_FILE", "/tmp/trigger"),
        ("PGSLUICE_HTTP", "off"),
        ("PGSLUICE_MONITOR_USER", ""),
        ("PGSLUICE_PORT", "tcp://10.0.0.1:5432"),
    ]);
    let overrides = Overrides {
        listen: vec!["127.0.0.1:3".to_owned()],
        environment,
        ..Overrides::default()
    };
    let config = Config::parse(text, "p.toml", &overrides).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.listen.addresses, ["127.0.0.1:3".parse().unwrap()]);
    assert_eq!(
        config
            .cluster
            .nodes
            .iter()
            .map(|node| node.name.as_str())
            .collect::<Vec<_>>(),
        ["env1:1", "env2:1"]
    );
    assert_eq!((config.routing.max_lag, config.pool.size), (Duration::from_secs(2), 7));
    assert_eq!((config.monitor.user.as_str(), config.admin.http), ("postgres", None));
    assert_eq!(config.monitor.password, Some(Secret("geheim".to_owned())));
    assert_eq!(config.failover.trigger_file.as_deref(), Some(Path::new("/tmp/trigger")));
}

#[test]
fn mistakes_in_flags_and_variables_are_told_by_their_names() {
    let overrides = Overrides {
        nodes: vec!["db1".to_owned()],
        environment: environment(&[
            ("PGSLUICE_POOL_SIZE", "many"),
            ("PGSLUICE_LISTEN_TLS_REQUIRED", "perhaps"),
        ]),
        ..Overrides::default()
    };
    let errors = Config::from_overrides(&overrides).unwrap_err();
    let mut problems: Vec<String> = errors.problems().iter().map(ToString::to_string).collect();
    problems.sort();
    assert_eq!(
        problems,
        [
            "--node: cluster.nodes: \"db1\" has no port; did you mean \"db1:5432\"?",
            "PGSLUICE_LISTEN_TLS_REQUIRED: listen.tls.required: must be true or false, not \"perhaps\"",
            "PGSLUICE_POOL_SIZE: pool.size: must be a whole number from 1 to 100000, not \"many\"",
        ]
    );
    assert_eq!(errors.problems()[0].place.line(), None);
    assert!(
        errors
            .problems()
            .iter()
            .any(|problem| problem.place == Place::Flag("--node"))
    );
}

#[test]
fn a_password_comes_from_one_place_and_is_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("p.toml").display().to_string();
    let text = format!("{NODES}[monitor]\npassword_file = \"pw\"\n");
    let errors = Config::parse(&text, &name, &Overrides::default()).unwrap_err();
    assert!(errors.to_string().contains("pw is not there"), "{errors}");

    std::fs::write(folder.path().join("pw"), "\n").unwrap();
    assert!(
        Config::parse(&text, &name, &Overrides::default())
            .unwrap_err()
            .to_string()
            .contains("is empty")
    );

    std::fs::write(folder.path().join("pw"), "from file\r\n").unwrap();
    let config = Config::parse(&text, &name, &Overrides::default()).unwrap();
    assert_eq!(config.monitor.password, Some(Secret("from file".to_owned())));
    assert!(!format!("{config:?}").contains("from file"));

    let environment = environment(&[("PGSLUICE_MONITOR_PASSWORD", "from environment")]);
    assert!(!format!("{environment:?}").contains("from"));
    let overrides = Overrides {
        environment,
        ..Overrides::default()
    };
    let config = Config::parse(&text, &name, &overrides).unwrap();
    assert_eq!(config.monitor.password, Some(Secret("from environment".to_owned())));

    let both = format!("{text}password = \"also\"\n");
    let errors = Config::parse(&both, &name, &Overrides::default()).unwrap_err();
    assert!(
        errors.to_string().contains("stands beside monitor.password"),
        "{errors}"
    );
    assert!(!problem("monitor.password = 12345").contains("12345"));
}

#[test]
fn patronis_password_comes_from_one_place_too() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("p.toml").display().to_string();
    std::fs::write(folder.path().join("pw"), "from file\n").unwrap();
    let text =
        "[cluster.discovery]\npatroni = [\"http://db1:8008\"]\npatroni_user = \"u\"\npatroni_password_file = \"pw\"\n";
    let password = |overrides: &Overrides| {
        let config = Config::parse(text, &name, overrides).unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("from file") && !shown.contains("from environment"));
        config.cluster.discovery.patroni.unwrap().login.unwrap().password.0
    };
    assert_eq!(password(&Overrides::default()), "from file");
    let environment = environment(&[("PGSLUICE_CLUSTER_DISCOVERY_PATRONI_PASSWORD", "from environment")]);
    let overrides = Overrides {
        environment,
        ..Overrides::default()
    };
    assert_eq!(password(&overrides), "from environment");
}

#[test]
fn check_config_exits_with_0_or_2() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    let (text, code) = check_config(&path, &Overrides::default());
    assert!(
        code == 2 && text.contains("p.toml: can't be read: No such file"),
        "{text}"
    );

    std::fs::write(&path, "[cluster]\nnods = [\"a:1\"]\n").unwrap();
    let (text, code) = check_config(&path, &Overrides::default());
    assert_eq!((text.lines().count(), code), (2, 2), "{text}");
    assert!(
        text.contains("p.toml:2:1: cluster.nods: there is no such key; did you mean `nodes`?"),
        "{text}"
    );

    std::fs::write(&path, NODES).unwrap();
    let (text, code) = check_config(&path, &Overrides::default());
    assert_eq!(code, 0, "{text}");
    assert!(text.ends_with("p.toml: ok: listens on 127.0.0.1:5432 (trust), nodes 127.0.0.1:15432, transaction pools of 20, read_your_writes reads up to 10s of lag"), "{text}");
}

#[test]
fn the_idle_interval_follows_a_longer_interval() {
    let config = parse(&format!("{NODES}monitor.interval = \"8s\"")).unwrap();
    assert_eq!(config.monitor.idle_interval, Duration::from_secs(8));
}

/// A key that is in the table but never read would be taken, and ignored.
#[test]
fn every_key_of_the_table_is_read() {
    const DATE: &str = "1979-05-27";
    for key in keys::KEYS {
        let text = match key.path.strip_prefix("cluster.node.") {
            Some("address") => format!("[[cluster.node]]\naddress = {DATE}"),
            Some(name) => format!("[[cluster.node]]\naddress = \"a:1\"\n{name} = {DATE}"),
            None if key.path == "cluster.nodes" => format!("cluster.nodes = {DATE}"),
            None if key.path.starts_with("routing.default.") => {
                let name = key.path.trim_start_matches("routing.default.");
                format!("{NODES}[[routing.default]]\n{name} = {DATE}")
            }
            None => format!("{NODES}{} = {DATE}", key.path),
        };
        let errors = parse(&text).expect_err(key.path);
        assert!(
            errors.problems().iter().any(|problem| problem.key == key.path),
            "{}: {errors}",
            key.path
        );
    }
}
