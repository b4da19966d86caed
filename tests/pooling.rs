//! Many clients over few server connections: each sees only what is its own, nobody is forgotten in the queue, and whoever dies on the way
//! takes all of its state along.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::dice::Dice;
use support::scene::{Scene, until};
use support::wire::*;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// Schemas with a table of the same name in each.
const SCHEMAS: usize = 7;
const LOGINS_AT_ONCE: usize = 50;
/// A probe that a busy machine delays must not look like a node that has failed.
const PATIENT_MONITOR: &str = "[monitor]\ntimeout = \"10s\"\n";

/// Lets this process have that many files open: a test's clients are sockets of its own.
fn room_for_files(needed: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    if soft < needed {
        assert!(
            hard >= needed,
            "this test needs {needed} open files, and the hard limit (ulimit -Hn) is {hard}"
        );
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard)
            .unwrap_or_else(|error| panic!("the limit of open files can't be raised from {soft} to {needed}: {error}"));
    }
}

/// What [`Honest`] clients work with: a row for each, and schemas that can only be told apart by the search path.
async fn furnish(scene: &Scene, clients: usize) {
    let mut direct = scene.direct().await;
    direct
        .run(&format!(
            "create table own (id int primary key, value int);
            insert into own select g, 0 from generate_series(0, {clients} - 1) g"
        ))
        .await;
    for schema in 0..SCHEMAS {
        direct
            .run(&format!(
                "create schema s{schema}; create table s{schema}.who as select 's{schema}'::text as name"
            ))
            .await;
    }
    scene.caught_up().await;
}

/// A time zone that no other client has, as POSIX writes one (manual, "POSIX Time Zone Specifications").
fn zone_of(number: usize) -> String {
    format!("<ZONE{number}>{}", number % 12)
}

/// How often a client of [`Honest`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// As often as it reads.
    Writes,
    /// Hardly ever, so that its reads are a standby's.
    Reads,
}

/// A client that knows what each answer must be, and works on nothing that is not its own.
struct Honest {
    wire: Wire,
    number: usize,
    dice: Dice,
    habit: Habit,
    /// Its `application_name`.
    name: String,
    /// Its `search_path`.
    schema: usize,
    /// What its row holds.
    value: usize,
    steps: usize,
}

impl Honest {
    /// Logs in, and prepares statements: the same names for all clients, and for one of them the same text.
    async fn start(scene: &Scene, number: usize, habit: Habit) -> Honest {
        let name = format!("honest {number}");
        let schema = number % SCHEMAS;
        let path = format!("s{schema}");
        let wire = scene
            .wire_with(&[("application_name", &name), ("search_path", &path)])
            .await;
        let zone = zone_of(number);
        let mut client = Honest {
            wire,
            number,
            dice: Dice::new(number as u64),
            habit,
            name,
            schema,
            value: 0,
            steps: 0,
        };
        let own = format!("select value, 'own {number}' from public.own where id = $1");
        let prepares = [
            parse("own", &own, &[]),
            parse("who", "select name from who", &[]),
            sync(),
        ];
        client.says(&prepares.concat(), "11Z", 'I', &[]).await;
        client.does(&format!("set timezone = '{zone}'"), 'I').await;
        client
    }

    /// Sends, and takes an answer of exactly these messages, transaction status and rows. What is reported of its settings must be its own.
    async fn says(&mut self, bytes: &[u8], shape: &str, status: char, values: &[&str]) {
        self.wire.send(bytes).await;
        self.hears(bytes, shape, status, values).await;
    }

    /// Takes the next answer to `bytes`.
    async fn hears(&mut self, bytes: &[u8], shape: &str, status: char, values: &[&str]) {
        let answer = self.wire.answer().await;
        let told = parameter(&answer, "application_name");
        let zone = parameter(&answer, "TimeZone");
        let others: String = tags(&answer).chars().filter(|tag| *tag != 'S').collect();
        let cells: Vec<String> = rows(&answer)
            .into_iter()
            .flatten()
            .map(|cell| cell.unwrap_or_else(|| "NULL".into()))
            .collect();
        let ready = answer.last().map(|last| last.body.clone());
        assert!(
            others == shape
                && cells == values
                && ready == Some(vec![status as u8])
                && told.as_ref().is_none_or(|told| *told == self.name)
                && zone.is_none_or(|zone| zone == zone_of(self.number)),
            "client {} ({}, schema {}, step {}) expected {shape} {status} {values:?} to\n  {}\nand got\n  {}",
            self.number,
            self.name,
            self.schema,
            self.steps,
            bytes.escape_ascii(),
            show(&answer)
        );
    }

    /// A simple query with one row of these values.
    async fn reads(&mut self, sql: &str, status: char, values: &[&str]) {
        self.says(&query(sql), "TDCZ", status, values).await;
    }

    /// A simple query without rows.
    async fn does(&mut self, sql: &str, status: char) {
        self.says(&query(sql), "CZ", status, &[]).await;
    }

    fn select_own(&self) -> String {
        format!("select value from public.own where id = {}", self.number)
    }

    /// One thing of all that it can do, by the dice.
    async fn step(&mut self) {
        self.steps += 1;
        let writes = self.habit == Habit::Writes || self.dice.once_in(20);
        match self.dice.below(if writes { 14 } else { 9 }) {
            0 => self.reads_its_row().await,
            1 => self.runs_its_prepared_statements().await,
            2 => self.sends_values().await,
            3 => self.pipelines().await,
            4 => self.takes_many_rows().await,
            5 => self.changes_its_path().await,
            6 => self.reads_in_a_read_only_block().await,
            7 => self.looks_at_its_settings_on_a_standby().await,
            8 => self.changes_its_name().await,
            9 => self.writes_alone().await,
            10 | 11 => self.writes_in_a_block().await,
            12 => self.takes_back_a_setting().await,
            _ => self.looks_for_strangers().await,
        }
    }

    async fn reads_its_row(&mut self) {
        let value = self.value.to_string();
        self.reads(&self.select_own(), 'I', &[&value]).await;
    }

    async fn runs_its_prepared_statements(&mut self) {
        let (id, value, own) = (
            self.number.to_string(),
            self.value.to_string(),
            format!("own {}", self.number),
        );
        let run = [bind("", "own", &[Some(&id)]), execute("", 0), sync()].concat();
        self.says(&run, "2DCZ", 'I', &[&value, &own]).await;
        let schema = format!("s{}", self.schema);
        let run = [bind("", "who", &[]), execute("", 0), sync()].concat();
        self.says(&run, "2DCZ", 'I', &[&schema]).await;
    }

    async fn sends_values(&mut self) {
        let number = self.number.to_string();
        let sql = "select $1::text || ' of ' || $2::int";
        let run = [extended(sql, &[Some("value"), Some(&number)]), sync()].concat();
        self.says(&run, "12TDCZ", 'I', &[&format!("value of {number}")]).await;
    }

    async fn pipelines(&mut self) {
        let queries: Vec<Vec<u8>> = (0..5)
            .map(|n| query(&format!("select 'turn {n} of {}'", self.number)))
            .collect();
        self.wire.send(&queries.concat()).await;
        for (n, asked) in queries.iter().enumerate() {
            let expected = format!("turn {n} of {}", self.number);
            self.hears(asked, "TDCZ", 'I', &[&expected]).await;
        }
    }

    async fn takes_many_rows(&mut self) {
        let from = self.number * 1000;
        let sql = format!("select g from generate_series({from}, {from} + 199) g");
        let numbers: Vec<String> = (from..from + 200).map(|n| n.to_string()).collect();
        let values: Vec<&str> = numbers.iter().map(|n| &**n).collect();
        let shape = format!("T{}CZ", "D".repeat(200));
        self.says(&query(&sql), &shape, 'I', &values).await;
    }

    async fn changes_its_path(&mut self) {
        self.schema = self.dice.below(SCHEMAS);
        let schema = format!("s{}", self.schema);
        self.does(&format!("set search_path = {schema}"), 'I').await;
        self.reads("select name from who", 'I', &[&schema]).await;
    }

    async fn changes_its_name(&mut self) {
        self.name = format!("honest {} at step {}", self.number, self.steps);
        let name = self.name.clone();
        self.does(&format!("set application_name = '{name}'"), 'I').await;
        self.reads("show application_name", 'I', &[&name]).await;
    }

    async fn looks_at_its_settings_on_a_standby(&mut self) {
        let (name, schema) = (self.name.clone(), format!("s{}", self.schema));
        let sql = "/* pgsluice: standby */ select current_setting('application_name'), current_setting('search_path'), \
            current_setting('timezone')";
        self.reads(sql, 'I', &[&name, &schema, &zone_of(self.number)]).await;
    }

    async fn reads_in_a_read_only_block(&mut self) {
        let (value, schema) = (self.value.to_string(), format!("s{}", self.schema));
        self.does("begin read only", 'T').await;
        self.reads(&self.select_own(), 'T', &[&value]).await;
        self.reads("select name from who", 'T', &[&schema]).await;
        self.does("commit", 'I').await;
    }

    async fn writes_alone(&mut self) {
        self.value += 1;
        let (id, value) = (self.number.to_string(), self.value.to_string());
        if self.dice.once_in(2) {
            let sql = format!("update public.own set value = {value} where id = {id}");
            self.does(&sql, 'I').await;
        } else {
            let sql = "update public.own set value = $1::int where id = $2::int returning value";
            let run = [extended(sql, &[Some(&value), Some(&id)]), sync()].concat();
            self.says(&run, "12TDCZ", 'I', &[&value]).await;
        }
        self.reads_its_row().await;
    }

    async fn writes_in_a_block(&mut self) {
        let (id, value) = (self.number, (self.value + 1).to_string());
        self.does("begin", 'T').await;
        self.does(&format!("update public.own set value = value + 1 where id = {id}"), 'T')
            .await;
        self.reads(&self.select_own(), 'T', &[&value]).await;
        if self.dice.once_in(3) {
            self.does("rollback", 'I').await;
        } else {
            self.does("commit", 'I').await;
            self.value += 1;
        }
        self.reads_its_row().await;
    }

    async fn takes_back_a_setting(&mut self) {
        let name = self.name.clone();
        self.does("begin", 'T').await;
        self.name = format!("never {}", self.number);
        self.does(&format!("set application_name = 'never {}'", self.number), 'T')
            .await;
        self.name = name.clone();
        self.does("rollback", 'I').await;
        self.reads("show application_name", 'I', &[&name]).await;
    }

    /// Its connection has no lock, channel, temporary table, cursor or setting that somebody has left on it, and nobody listens on it to
    /// what is said.
    async fn looks_for_strangers(&mut self) {
        let sql = "select (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
            (select count(*) from pg_listening_channels()), pg_my_temp_schema(), (select count(*) from pg_cursors where is_holdable),
            (select count(*) from pg_prepared_statements where from_sql), current_setting('work_mem')";
        self.reads(sql, 'I', &["0", "0", "0", "0", "0", "4MB"]).await;
        self.does("notify doomed", 'I').await;
    }
}

/// Waits for all of the clients, and takes a look every now and then. The first that panics ends the wait, and the others.
async fn while_they_work(mut clients: JoinSet<()>, mut look: impl AsyncFnMut()) {
    loop {
        tokio::select! {
            ended = clients.join_next() => match ended {
                None => return,
                Some(ended) => ended.expect("a client that saw what it should"),
            },
            () = tokio::time::sleep(Duration::from_millis(10)) => look().await,
        }
    }
}

/// Counts the server connections of the test's database, as the nodes and as the proxy have them.
struct Census {
    nodes: Vec<Wire>,
    sql: String,
    size: usize,
    /// The most that each node has had.
    most: Vec<usize>,
    looks: usize,
}

impl Census {
    async fn start(scene: &Scene, size: usize) -> Census {
        let mut nodes = Vec::new();
        for node in scene.lab.nodes() {
            nodes.push(Wire::login(node.port(), "postgres").await);
        }
        Census {
            most: vec![0; nodes.len()],
            nodes,
            sql: format!(
                "select count(*) from pg_stat_activity where datname = '{}' and usename = 'postgres'",
                scene.database
            ),
            size,
            looks: 0,
        }
    }

    /// No node may have more than the pool's size.
    async fn look(&mut self, scene: &Scene) {
        self.looks += 1;
        for (node, most) in self.nodes.iter_mut().zip(&mut self.most) {
            let count: usize = node.value(&self.sql).await.parse().expect("a count");
            assert!(
                count <= self.size,
                "{count} server connections, and the pool's size is {}",
                self.size
            );
            *most = count.max(*most);
        }
        for node in scene.proxy.status().nodes {
            let count = node.connections.idle + node.connections.active;
            assert!(count <= self.size as u64, "{}: {:?}", node.name, node.connections);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_clients_share_twenty_connections_and_see_only_their_own() {
    const IDLE: usize = 10_000;
    const BUSY: usize = 200;
    const SIZE: usize = 20;
    room_for_files(IDLE as u64 + BUSY as u64 + 200);
    let scene = Scene::start(&format!(
        "[pool]\nsize = {SIZE}\n{PATIENT_MONITOR}[listen]\nmax_clients = 20000\n"
    ))
    .await;
    furnish(&scene, IDLE + BUSY).await;
    scene.serves().await;
    let mut census = Census::start(&scene, SIZE).await;

    // The proxy's memory per client that has logged in and says nothing, and later per one that has prepared statements and settings.
    let memory = scene.memory_kb();
    let per_idle = |now: u64| (now.saturating_sub(memory)) as f64 / IDLE as f64;
    let begun = Instant::now();
    let silent: Vec<Wire> = stream::iter(0..IDLE)
        .map(|_| scene.wire())
        .buffered(LOGINS_AT_ONCE)
        .collect()
        .await;
    let logged_in = per_idle(scene.memory_kb());
    println!(
        "{IDLE} logins: {:?}, {logged_in:.1} KB for each in the proxy",
        begun.elapsed()
    );
    assert!(logged_in < 16.0, "an idle client costs {logged_in:.1} KB");
    drop(silent);
    until("all have left", async || scene.proxy.status().clients.total == 0).await;

    let idle: Vec<Honest> = stream::iter(0..IDLE)
        .map(|number| Honest::start(&scene, number, Habit::Reads))
        .buffered(LOGINS_AT_ONCE)
        .collect()
        .await;
    let prepared = per_idle(scene.memory_kb());
    println!("{prepared:.1} KB for each with two prepared statements and three settings");
    assert!(prepared < 32.0, "an idle client with statements costs {prepared:.1} KB");
    let mut busy = Vec::new();
    for number in IDLE..IDLE + BUSY {
        let habit = if number % 2 == 0 { Habit::Writes } else { Habit::Reads };
        busy.push(Honest::start(&scene, number, habit).await);
    }
    assert_eq!(scene.proxy.status().clients.total, (IDLE + BUSY) as u64);

    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for mut client in busy {
        clients.spawn(async move {
            for _ in 0..30 {
                client.step().await;
            }
        });
    }
    while_they_work(clients, async || census.look(&scene).await).await;
    println!(
        "{BUSY} busy clients: {:?}, server connections {:?} at most in {} looks",
        begun.elapsed(),
        census.most,
        census.looks
    );
    let (reads, _) = scene.proxy.statements(scene.standby().name());
    assert!(reads > 500, "the standby answered {reads} reads");
    assert_eq!(census.most[0], SIZE, "200 clients fill the pool");

    // None of the idle ones was forgotten, or given anything of the others'.
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for mut client in idle {
        clients.spawn(async move {
            client.runs_its_prepared_statements().await;
            client.looks_at_its_settings_on_a_standby().await;
            if client.number % 10 == 0 {
                client.writes_alone().await;
            }
        });
    }
    while_they_work(clients, async || census.look(&scene).await).await;
    println!("{IDLE} idle clients are back: {:?}", begun.elapsed());
    assert!(census.looks > 10, "only {} looks", census.looks);
    scene.settled().await;
}

/// One thing that a client sends, and the message that answers it.
struct Step {
    bytes: Vec<u8>,
    /// `b'Z'`, or what comes while the server wants more.
    seen: u8,
}

/// What one that will die means to do, of which it does the first part. Committed rows of `pairs` come in twos; those of `never` must not
/// be there at all.
fn intentions(dice: &mut Dice, number: usize) -> Vec<Step> {
    let step = |bytes: Vec<u8>, seen| Step { bytes, seen };
    let does = |sql: &str| step(query(sql), b'Z');
    let pair = format!("insert into pairs select {number} from generate_series(1, 2)");
    let one = format!("insert into pairs values ({number})");
    let never = format!("insert into never values ({number})");
    let line = format!("{number}\n");
    match dice.below(12) {
        0 => vec![does("select 1"), does(&pair), does("select count(*) from pairs")],
        1 => vec![does("begin"), does(&one), does(&one), does("commit")],
        2 => vec![
            does("begin"),
            does(&never),
            does("savepoint s"),
            does("lock table never in row exclusive mode"),
            does("select pg_sleep(0.02)"),
            does("rollback"),
        ],
        3 => vec![
            does("begin read only"),
            does("select count(*) from pairs"),
            does("commit"),
        ],
        4 => {
            let data = step(copy_data(line.as_bytes()), 0);
            let again = step(copy_data(line.as_bytes()), 0);
            let copy = step(query("copy pairs from stdin"), b'G');
            vec![copy, data, again, step(copy_done(), b'Z')]
        }
        5 => {
            let rows = "select repeat('x', 1000) from generate_series(1, 5000)";
            let (sql, seen) = if dice.once_in(2) {
                (format!("copy ({rows}) to stdout"), b'H')
            } else {
                (rows.to_owned(), b'T')
            };
            vec![does("select 1"), step(query(&sql), seen), step(sync(), b'Z')]
        }
        6 => state_of_every_kind(dice, number).iter().map(|sql| does(sql)).collect(),
        7 => {
            let part = |sql: &str| step([extended(sql, &[]), flush()].concat(), b'C');
            vec![part(&never), part("select pg_sleep(0.02)"), part(&never)]
        }
        8 => vec![
            step(
                [
                    parse("many", "select generate_series(1, 100)", &[]),
                    bind("some", "many", &[]),
                    execute("some", 10),
                    flush(),
                ]
                .concat(),
                b's',
            ),
            step([execute("some", 10), flush()].concat(), b's'),
            step(sync(), b'Z'),
        ],
        9 => vec![
            does("set work_mem = '77MB'"),
            does("set search_path = nowhere"),
            does("set application_name = 'doomed'"),
            does("select 1"),
        ],
        10 => vec![
            step(query(&format!("{pair}, (select pg_sleep(0.05)) slept")), b'Z'),
            does("select pg_sleep(0.05)"),
        ],
        _ => vec![step(
            [query("select 1"), query(&pair), query("select 2")].concat().repeat(5),
            b'Z',
        )],
    }
}

/// Whatever would harm the next who gets the connection, in some order.
fn state_of_every_kind(dice: &mut Dice, number: usize) -> Vec<String> {
    let mut all = vec![
        "create temp table mine as select 1".to_owned(),
        format!("select pg_advisory_lock({number})"),
        // Which another of them may hold: some die in a queue on the server.
        "select pg_advisory_lock(0)".to_owned(),
        format!("begin; select pg_advisory_xact_lock({number})"),
        "listen doomed".to_owned(),
        "declare held cursor with hold for select generate_series(1, 100)".to_owned(),
        "prepare theirs as select 1".to_owned(),
        "select set_config('work_mem', '77MB', false)".to_owned(),
        "set work_mem = '78MB'".to_owned(),
        "set role pg_monitor".to_owned(),
    ];
    let count = 1 + dice.below(all.len());
    (0..count).map(|_| all.swap_remove(dice.below(all.len()))).collect()
}

/// Logs in, does a part of what it means to do, and dies: between two messages, within one, or while it is answered.
async fn lives_and_dies(port: u16, database: &str, number: usize) {
    let mut dice = Dice::new(number as u64);
    if dice.once_in(12) {
        // It doesn't come as far as being logged in.
        let hello = startup(0, &[("user", "postgres"), ("database", database)]);
        let mut wire = Wire::open(port).await;
        wire.send(&hello[..1 + dice.below(hello.len())]).await;
        return dies(wire, &mut dice).await;
    }
    let mut wire = Wire::login(port, database).await;
    let intentions = intentions(&mut dice, number);
    let last = dice.below(intentions.len());
    for step in &intentions[..last] {
        wire.send(&step.bytes).await;
        if step.seen == 0 {
            continue;
        }
        loop {
            let message = wire
                .next()
                .await
                .unwrap_or_else(|| panic!("victim {number} was closed"));
            assert_ne!(message.tag, b'E', "victim {number}: {message}");
            if message.tag == step.seen {
                break;
            }
        }
    }
    let bytes = &intentions[last].bytes;
    let whole = dice.once_in(2);
    let end = if whole {
        bytes.len()
    } else {
        1 + dice.below(bytes.len())
    };
    wire.send(&bytes[..end]).await;
    dies(wire, &mut dice).await;
}

async fn dies(mut wire: Wire, dice: &mut Dice) {
    // Not to wait for anything: the time of death is a matter of dice.
    tokio::time::sleep(Duration::from_micros(dice.below(6000) as u64)).await;
    match dice.below(6) {
        0 | 1 => wire.reset(),
        2 => {
            // Half of it is gone at first.
            wire.finish().await;
            tokio::task::yield_now().await;
            wire.vanish();
        }
        3 => {
            let _ = wire.try_send(&terminate()).await;
            wire.vanish();
        }
        _ => wire.vanish(),
    }
}

/// Open files of the proxy's process, but for its idle server connections: a socket each, and another descriptor of it to cut it by.
fn files_in_use(scene: &Scene) -> usize {
    let folder = format!("/proc/{}/fd", scene.proxy.pid());
    let files = std::fs::read_dir(folder).expect("the proxy's process").count();
    let idle: u64 = scene
        .proxy
        .status()
        .nodes
        .iter()
        .map(|node| node.connections.idle)
        .sum();
    files.saturating_sub(2 * idle as usize)
}

/// Nothing of those who died is on the proxy or on a node.
async fn nothing_is_left(scene: &Scene, size: u64, files: usize) {
    scene.settled().await;
    // Closed connections are processes on the nodes for a moment longer.
    until("the nodes have the connections that the pools have", async || {
        let on_nodes = scene.backends("true").await;
        let nodes = scene.proxy.status().nodes;
        nodes.iter().zip(on_nodes).all(|(node, count)| {
            assert!(node.connections.idle <= size, "{}: {:?}", node.name, node.connections);
            node.connections.active == 0 && count == node.connections.idle.to_string()
        })
    })
    .await;
    until("files are closed", async || files_in_use(scene) <= files + 2).await;
    let mut direct = scene.direct().await;
    let locks = "select count(*) from pg_locks where locktype = 'advisory'
        and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(direct.value(locks).await, "0", "advisory locks");
    let temporary = "select count(*) from pg_class where relpersistence = 't'";
    assert_eq!(direct.value(temporary).await, "0", "temporary tables");
    assert_eq!(
        direct.value("select count(*) from never").await,
        "0",
        "rows of blocks without a COMMIT"
    );
    let halves = "select count(*) from (select from pairs group by n having count(*) % 2 <> 0) halves";
    assert_eq!(direct.value(halves).await, "0", "halves of a transaction");
    let (_, metrics) = scene.proxy.get("/metrics").expect("the proxy answers /metrics");
    for gauge in [
        "pgsluice_pins",
        "pgsluice_clients",
        "pgsluice_pool_waiting",
        "pgsluice_held_statements",
    ] {
        for line in metrics.lines().filter(|line| line.starts_with(gauge)) {
            assert!(line.ends_with(" 0"), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_die_at_any_moment_harm_no_other_and_leave_nothing() {
    const HONEST: usize = 16;
    const DOOMED: usize = 400;
    const AT_ONCE: usize = 24;
    const SIZE: usize = 4;
    let scene = Scene::start(&format!("[pool]\nsize = {SIZE}\n{PATIENT_MONITOR}")).await;
    furnish(&scene, HONEST).await;
    scene
        .direct()
        .await
        .run("create table pairs (n int); create table never (n int)")
        .await;
    scene.caught_up().await;
    scene.settled().await;
    let files = files_in_use(&scene);
    let start = scene.memory_kb();
    let mut memory = Vec::new();
    // What grows from one to the next is what the dead have left.
    for round in 0..2 {
        // Sessions know only of their own writes, and these begin with what others have written.
        scene.caught_up().await;
        let begun = Instant::now();
        let over = Arc::new(AtomicBool::new(false));
        let steps = Arc::new(AtomicUsize::new(0));
        let mut honest = JoinSet::new();
        for number in 0..HONEST {
            let habit = if number % 2 == 0 { Habit::Writes } else { Habit::Reads };
            let mut client = Honest::start(&scene, number, habit).await;
            client.value = scene
                .direct()
                .await
                .value(&client.select_own())
                .await
                .parse()
                .expect("a number");
            let (over, steps) = (Arc::clone(&over), Arc::clone(&steps));
            honest.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    client.step().await;
                    steps.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let doomed = async {
            stream::iter(round * DOOMED..(round + 1) * DOOMED)
                .map(|number| lives_and_dies(scene.proxy.port, &scene.database, number))
                .buffer_unordered(AT_ONCE)
                .collect::<Vec<()>>()
                .await;
            over.store(true, Ordering::Relaxed);
        };
        futures_util::future::join(doomed, while_they_work(honest, async || {})).await;
        let took = begun.elapsed();
        nothing_is_left(&scene, SIZE as u64, files).await;
        memory.push(scene.memory_kb());
        let steps = steps.load(Ordering::Relaxed);
        println!(
            "{DOOMED} died in {took:?}, while others took {steps} steps; files {files} before, {} after; memory {start} KB, {memory:?}",
            files_in_use(&scene)
        );
        assert!(steps >= 100, "the others took only {steps} steps");
    }
    assert!(
        memory[0] < start + 32 * 1024,
        "the proxy grew from {start} KB to {memory:?}"
    );
    assert!(
        memory[1] < memory[0] + 8 * 1024,
        "the proxy grew from {start} KB to {memory:?}"
    );
}

/// What each of the clients in a queue does, again and again.
#[derive(Debug, Clone, Copy)]
enum Work {
    Reads,
    Writes,
    Blocks,
    /// Some write alone, some in a block, and some send eight writes at once.
    AllSorts,
}

impl Work {
    /// Does its part, for which it has a connection once: what has come together is carried out together.
    async fn turn(self, wire: &mut Wire, number: usize) {
        let update = format!("update turns set n = n + 1 where id = {number}");
        match (self, number % 3) {
            (Work::Reads, _) => {
                assert_eq!(wire.value(&format!("select {number}")).await, number.to_string());
            }
            (Work::Writes, _) | (Work::AllSorts, 0) => {
                wire.run(&update).await;
            }
            (Work::Blocks, _) | (Work::AllSorts, 1) => {
                wire.run("begin").await;
                wire.run(&update).await;
                wire.run("commit").await;
            }
            (Work::AllSorts, _) => {
                wire.send(&query(&update).repeat(8)).await;
                for answer in wire.answers(8).await {
                    assert_eq!(tags(&answer), "CZ", "{}", show(&answer));
                }
            }
        }
    }
}

/// Clients that all want a connection all the time, until they have had `each` of them on average. Answers how often each had one.
async fn queue(scene: &Scene, work: Work, clients: usize, each: usize) -> Vec<usize> {
    let left = Arc::new(AtomicIsize::new((clients * each) as isize));
    let start = Arc::new(Barrier::new(clients));
    let mut queue = JoinSet::new();
    for number in 0..clients {
        let mut wire = scene.wire().await;
        let (left, start) = (Arc::clone(&left), Arc::clone(&start));
        queue.spawn(async move {
            let mut had = 0;
            within("the others", start.wait()).await;
            while left.load(Ordering::Relaxed) > 0 {
                work.turn(&mut wire, number).await;
                left.fetch_sub(1, Ordering::Relaxed);
                had += 1;
            }
            had
        });
    }
    let mut turns = Vec::new();
    while let Some(had) = queue.join_next().await {
        turns.push(had.expect("a client that was served"));
    }
    turns.sort_unstable();
    turns
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_a_connection_has_as_many_turns_as_the_others() {
    const CLIENTS: usize = 32;
    const EACH: usize = 40;
    for size in [1, 2] {
        let scene = Scene::start(&format!("[pool]\nsize = {size}\n{PATIENT_MONITOR}")).await;
        scene
            .direct()
            .await
            .run(&format!(
                "create table turns as select g as id, 0 as n from generate_series(0, {CLIENTS} - 1) g"
            ))
            .await;
        scene.caught_up().await;
        for work in [Work::Reads, Work::Writes, Work::Blocks, Work::AllSorts] {
            let begun = Instant::now();
            let turns = queue(&scene, work, CLIENTS, EACH).await;
            println!("pool of {size}, {work:?}: {:?}, turns {turns:?}", begun.elapsed());
            let mean = turns.iter().sum::<usize>() / CLIENTS;
            // A client that a busy machine doesn't let run for a while isn't in the queue, either.
            assert!(
                turns[0] * 4 >= mean && turns[CLIENTS - 1] <= mean * 2,
                "pool of {size}, {work:?}: {turns:?}"
            );
        }
        scene.settled().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_too_long_is_told_and_the_client_stays() {
    let limit = Duration::from_secs(1);
    let scene = Scene::start(&format!(
        "[pool]\nsize = 1\ncheckout_timeout = \"1s\"\n{PATIENT_MONITOR}"
    ))
    .await;
    scene.direct().await.run("create table waited (n int)").await;
    scene.caught_up().await;
    let mut waiting = Vec::new();
    for _ in 0..12 {
        waiting.push(scene.wire().await);
    }
    // Both nodes have their one connection taken.
    let (mut primary, mut standby) = (scene.wire().await, scene.wire().await);
    primary.run("begin; insert into waited values (0)").await;
    standby.run("begin read only").await;
    standby.run("select 1").await;
    until("a block on each node", async || {
        let nodes = scene.proxy.status().nodes;
        nodes.iter().all(|node| node.connections.active == 1)
    })
    .await;

    let requests = |number: usize| -> (Vec<u8>, &str, char) {
        match number % 4 {
            0 => (query("insert into waited values (1)"), "EZ", 'I'),
            1 => (query("select n from waited"), "EZ", 'I'),
            2 => {
                let batch = [extended("insert into waited values ($1)", &[Some("1")]), sync()].concat();
                (batch, "EZ", 'I')
            }
            // What it sends next is meant for the block, and must not run alone.
            _ => (query("begin"), "EZ", 'E'),
        }
    };
    // Twice: the first time has taken nothing that the second needs.
    for _ in 0..2 {
        let told = waiting.iter_mut().enumerate().map(async |(number, client)| {
            let (bytes, shape, status) = requests(number);
            let asked = Instant::now();
            let answer = client.ask(&bytes).await;
            let took = asked.elapsed();
            assert_eq!(tags(&answer), shape, "client {number}: {}", show(&answer));
            assert_eq!(codes(&answer), ["53300"], "client {number}: {}", show(&answer));
            assert_eq!(answer[0].field(b'S').as_deref(), Some("ERROR"), "client {number}");
            assert_eq!(answer[1].body, [status as u8], "client {number}");
            assert!(took >= limit, "client {number} was told after {took:?}");
            if status == 'E' {
                assert_eq!(codes(&client.query("insert into waited values (2)").await), ["25P02"]);
                client.run("rollback").await;
            }
            took
        });
        let told = futures_util::future::join_all(told).await;
        println!("told after {:?} to {:?}", told.iter().min(), told.iter().max());
        let status = scene.proxy.status();
        assert_eq!((status.clients.total, status.clients.waiting), (14, 0));
    }
    // A connection that comes in time is taken.
    let comes = waiting[0].query("insert into waited values (3)");
    let frees = async {
        until("it waits", async || scene.proxy.status().clients.waiting > 0).await;
        primary.run("commit").await;
    };
    let (answer, ()) = futures_util::future::join(comes, frees).await;
    assert_eq!(tags(&answer), "CZ", "{}", show(&answer));
    standby.run("commit").await;
    scene.caught_up().await;
    for (number, client) in waiting.iter_mut().enumerate() {
        assert_eq!(
            client.value("select n from waited order by n").await,
            "0",
            "client {number}"
        );
    }
    // Of what was refused nothing ran.
    let rows = firsts(&waiting[0].query("select n from waited order by n").await);
    assert_eq!(rows, ["0", "3"]);
    drop((waiting, primary, standby));
    scene.settled().await;
}

/// Clients of several pools that share `limit`, each of which writes in turn. Answers the server processes that served them.
async fn share(scene: &Scene, limit: &str, pools: [[&str; 2]; 2]) -> BTreeSet<String> {
    const CLIENTS: usize = 8;
    const TURNS: usize = 25;
    let mut clients = JoinSet::new();
    for [user, database] in pools {
        for _ in 0..CLIENTS {
            let parameters = [("user", user), ("database", database)];
            let mut wire = Wire::login_with(scene.proxy.port, &parameters).await;
            clients.spawn(async move {
                let mut served_by = BTreeSet::new();
                for _ in 0..TURNS {
                    // The primary is asked, where a read could go to either node.
                    served_by.insert(wire.value("/* pgsluice: primary */ select pg_backend_pid()").await);
                    wire.value("/* pgsluice: primary */ select pg_sleep(0.005)").await;
                }
                served_by
            });
        }
    }
    // One that has just been closed is still there, but does nothing.
    let most = format!("select count(*) from pg_stat_activity where state = 'active' and {limit}");
    let mut census = Wire::login(scene.primary().port(), "postgres").await;
    let (mut served_by, mut connections) = (BTreeSet::new(), 0);
    while !clients.is_empty() {
        connections = connections.max(census.value(&most).await.parse::<usize>().expect("a count"));
        while let Some(done) = clients.try_join_next() {
            served_by.extend(done.expect("every turn was had"));
        }
    }
    assert!(
        (2..=3).contains(&connections),
        "{connections} connections at work at once, of 3"
    );
    served_by
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_for_a_user_or_a_database_holds_over_its_pools_and_starves_none() {
    for key in ["max_per_user", "max_per_database", "max_per_node"] {
        // The monitor has a connection of its own, which no limit holds for.
        let scene = Scene::start(&format!("[pool]\nsize = 20\n{key} = 3\n{PATIENT_MONITOR}")).await;
        let (one, two) = (format!("{}_one", scene.database), format!("{}_two", scene.database));
        let mut direct = scene.direct().await;
        direct.run(&format!("create role {one} login")).await;
        direct.run(&format!("create role {two} login")).await;
        let database = &*scene.database;
        let (limit, pools) = match key {
            "max_per_user" => (format!("usename = '{one}'"), [[&*one, database], [&one, "postgres"]]),
            _ => (
                format!("usename in ('{one}', '{two}')"),
                [[&*one, database], [&two, database]],
            ),
        };
        let served_by = share(&scene, &limit, pools).await;
        println!("{key}: {} server processes", served_by.len());
        // Connections stay where they are needed, instead of being opened anew for each turn.
        assert!(served_by.len() <= 40, "{key}: {served_by:?}");
        // Whoever is alone again may have all of them.
        let served_by = share(&scene, &limit, [pools[1], pools[1]]).await;
        assert!(served_by.len() >= 2, "{key}: {served_by:?}");
        scene.settled().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statement_pooling_refuses_blocks_and_nothing_else() {
    let scene = Scene::start("[pool]\nmode = \"statement\"\n").await;
    let mut client = scene.wire().await;
    client.run("create table stated (n int)").await;
    for begin in [
        query("begin"),
        query("start transaction read only"),
        [extended("begin", &[]), sync()].concat(),
    ] {
        let answer = client.ask(&begin).await;
        assert_eq!(codes(&answer), ["0A000"], "{}", show(&answer));
        // What was meant for the block doesn't run alone.
        assert_eq!(codes(&client.query("insert into stated values (1)").await), ["25P02"]);
        client.run("rollback").await;
    }
    // Several statements in one message are one transaction, and so is a block that ends in the message that it begins in.
    client
        .run("insert into stated values (2); insert into stated values (3)")
        .await;
    client.run("begin; insert into stated values (4); commit").await;
    client.run("set application_name = 'stated'").await;
    assert_eq!(client.value("show application_name").await, "stated");
    let batch = [extended("insert into stated values ($1)", &[Some("5")]), sync()].concat();
    assert_eq!(codes(&client.ask(&batch).await), Vec::<String>::new());
    assert_eq!(
        client
            .value("select string_agg(n::text, ',' order by n) from stated")
            .await,
        "2,3,4,5"
    );
    // A block that nobody could see coming ends with its session.
    let mut careless = scene.wire().await;
    careless
        .send(&query(
            "insert into stated values (6); begin; insert into stated values (7)",
        ))
        .await;
    let told = careless.rest().await;
    assert_eq!(codes(&told), ["0A000"], "{}", show(&told));
    assert_eq!(client.value("select count(*) from stated where n in (6, 7)").await, "0");
    drop((client, careless));
    scene.settled().await;
}
