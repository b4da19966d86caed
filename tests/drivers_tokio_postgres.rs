//! tokio-postgres, directly and through the proxy: a line per check, as the other drivers' scripts in `tests/drivers` print.
//!
//! `scripts/drivers.sh` gives it a cluster and a proxy by DRIVERS_* variables; under plain `cargo test` it brings up its own.

mod support;

use std::collections::HashSet;
use std::env;
use std::future::Future;
use std::pin::{Pin, pin};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::{join_all, poll_fn};
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use pgsluice::lab::LabGuard;
use support::Proxy;
use tokio::sync::mpsc;
use tokio_postgres::binary_copy::{BinaryCopyInWriter, BinaryCopyOutStream};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Error, IsolationLevel, NoTls, SimpleQueryMessage};

/// Server connections that the proxy may hold per node and database: many fewer than the clients of some checks.
const POOL_SIZE: usize = 3;
const CLIENTS: usize = 8;
const LIMIT: Duration = Duration::from_secs(60);

/// Where a check runs: the primary itself, or the proxy in front of the cluster.
#[derive(Debug, Clone)]
struct Target {
    label: &'static str,
    port: u16,
    database: String,
    primary: u16,
    standbys: Vec<u16>,
    /// Port and password of a proxy that asks for one.
    secure: Option<(u16, String)>,
    quick: bool,
}

impl Target {
    fn is_proxy(&self) -> bool {
        self.label == "proxy"
    }

    /// How often to repeat something: a quarter of it in a quick run.
    fn rounds(&self, full: usize) -> usize {
        if self.quick { (full / 4).max(1) } else { full }
    }

    fn config(&self, port: u16) -> Config {
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(port)
            .user("postgres")
            .dbname(&self.database);
        config
    }

    async fn open(&self) -> Client {
        open(&self.config(self.port)).await
    }

    async fn open_many(&self, count: usize) -> Vec<Client> {
        join_all((0..count).map(|_| self.open())).await
    }

    /// A connection that is never through the proxy, to look on.
    async fn direct(&self) -> Client {
        open(&self.config(self.primary)).await
    }

    /// Waits until the standbys have replayed all that is committed.
    async fn caught_up(&self) {
        let lsn: String = one(&self.direct().await, "select pg_current_wal_flush_lsn()::text", &[]).await;
        for port in &self.standbys {
            let standby = open(&self.config(*port)).await;
            until(&standby, &format!("select pg_last_wal_replay_lsn() >= '{lsn}'")).await;
        }
    }

    /// Makes what every client sees on every node.
    async fn make(&self, sql: &str) {
        let client = self.direct().await;
        client.batch_execute(sql).await.expect("what the check needs");
        self.caught_up().await;
    }

    async fn table(&self, name: &str, columns: &str) {
        self.make(&format!(
            "set client_min_messages = error; drop table if exists {name}; create table {name} ({columns})"
        ))
        .await;
    }
}

async fn open(config: &Config) -> Client {
    try_open(config).await.expect("a connection")
}

async fn try_open(config: &Config) -> Result<Client, Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn one<T: for<'a> FromSql<'a>>(client: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> T {
    client.query_one(sql, parameters).await.expect("one row").get(0)
}

async fn until(client: &Client, sql: &str) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !one::<bool>(client, sql, &[]).await {
        assert!(Instant::now() < deadline, "not within 15 s: {sql}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[track_caller]
fn fails<T>(outcome: Result<T, Error>, wanted: &SqlState) -> Error {
    let error = outcome
        .err()
        .unwrap_or_else(|| panic!("no error, instead of {wanted:?}"));
    assert_eq!(error.code(), Some(wanted), "{error}");
    error
}

// ---- connecting

async fn connects(target: Arc<Target>) {
    let mut config = target.config(target.port);
    config
        .application_name("drivers tokio-postgres")
        .target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    let client = open(&config).await;
    assert_eq!(
        one::<String>(&client, "show application_name", &[]).await,
        "drivers tokio-postgres"
    );
    assert!(!one::<bool>(&client, "select pg_is_in_recovery()", &[]).await);
    assert_eq!(
        one::<String>(&client, "select current_database()::text", &[]).await,
        target.database
    );
}

async fn options_at_login(target: Arc<Target>) {
    target
        .make("drop schema if exists elsewhere cascade; create schema elsewhere; create table elsewhere.found as select 42 as n")
        .await;
    let mut config = target.config(target.port);
    config.options("-c search_path=elsewhere -c statement_timeout=250");
    let (client, other) = (open(&config).await, target.open().await);
    for _ in 0..3 {
        assert_eq!(one::<i32>(&client, "select n from found", &[]).await, 42);
        assert_eq!(one::<String>(&client, "show statement_timeout", &[]).await, "250ms");
        fails(
            other.query("select n from found", &[]).await,
            &SqlState::UNDEFINED_TABLE,
        );
    }
    fails(
        client.query("select pg_sleep(10)", &[]).await,
        &SqlState::QUERY_CANCELED,
    );
    assert_eq!(one::<i32>(&client, "select n from found", &[]).await, 42);
}

async fn refused_logins(target: Arc<Target>) {
    let mut config = target.config(target.port);
    config.dbname("no_such_database");
    fails(try_open(&config).await, &SqlState::UNDEFINED_DATABASE);
    let mut config = target.config(target.port);
    config.options("-c no_such_setting=1");
    fails(try_open(&config).await, &SqlState::UNDEFINED_OBJECT);
}

/// The driver itself has no TLS, so this is by password alone.
async fn passwords(target: Arc<Target>) {
    let Some((port, password)) = target.secure.clone().filter(|_| target.is_proxy()) else {
        return;
    };
    let mut config = target.config(port);
    let client = open(config.password(&password)).await;
    assert_eq!(one::<i32>(&client, "select 1", &[]).await, 1);
    fails(try_open(config.password("wrong")).await, &SqlState::INVALID_PASSWORD);
}

async fn reconnects(target: Arc<Target>) {
    for number in 0..target.rounds(100) as i32 {
        let client = target.open().await;
        assert_eq!(one::<i32>(&client, "select $1::int", &[&number]).await, number);
    }
}

async fn lost_connection(target: Arc<Target>) {
    let (mut client, looker) = (target.open().await, target.direct().await);
    client.batch_execute("begin").await.expect("a block");
    let pid: i32 = one(&client, "select pg_backend_pid()", &[]).await;
    looker
        .query("select pg_terminate_backend($1)", &[&pid])
        .await
        .expect("its end");
    until(
        &looker,
        &format!("select count(*) = 0 from pg_stat_activity where pid = {pid}"),
    )
    .await;
    let error = client.simple_query("select 1").await.expect_err("a lost transaction");
    if target.is_proxy() {
        assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{error}");
        client.batch_execute("rollback").await.expect("a rollback");
    } else {
        client = target.open().await;
    }
    assert_eq!(one::<i32>(&client, "select 1", &[]).await, 1);
}

async fn vanished_client(target: Arc<Target>) {
    target.table("vanished", "n int primary key").await;
    let (client, connection) = target.config(target.port).connect(NoTls).await.expect("a connection");
    let driving = tokio::spawn(connection);
    client
        .batch_execute("begin; insert into vanished values (1)")
        .await
        .expect("a block");
    // The socket closes without a Terminate.
    driving.abort();
    let other = target.open().await;
    other
        .batch_execute("set lock_timeout = '10s'; insert into vanished values (1)")
        .await
        .expect("no lock");
}

// ---- queries and values

async fn simple_queries(target: Arc<Target>) {
    let client = target.open().await;
    let messages = client
        .simple_query("select 1; select 2; select 3")
        .await
        .expect("three");
    let rows: Vec<&str> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    assert_eq!(rows, ["1", "2", "3"]);
    client.batch_execute("").await.expect("nothing");
    client.batch_execute("-- nothing").await.expect("nothing");
    assert!(client.query("", &[]).await.expect("nothing").is_empty());
    let many = client
        .query("select generate_series(1, 20000), repeat('x', 50)", &[])
        .await;
    assert_eq!(many.expect("rows").len(), 20000);
}

async fn echo<T>(client: &Client, type_: &str, value: T)
where
    T: ToSql + Sync + PartialEq + std::fmt::Debug + for<'a> FromSql<'a>,
{
    let sql = format!("select $1::{type_}");
    let found: T = one(client, &sql, &[&value]).await;
    assert_eq!(found, value, "{type_}");
    let found: Option<T> = one(client, &sql, &[&None::<T>]).await;
    assert_eq!(found, None, "{type_} null");
}

async fn parameters(target: Arc<Target>) {
    let client = target.open().await;
    echo(&client, "smallint", i16::MIN).await;
    echo(&client, "int", i32::MAX).await;
    echo(&client, "bigint", i64::MIN).await;
    echo(&client, "float8", 1e-300).await;
    echo(&client, "bool", true).await;
    echo(&client, "text", "grüße, 世界 \u{1F40D} 'quoted' \\ \n\t".to_owned()).await;
    echo(&client, "varchar(10)", String::new()).await;
    echo(&client, "bytea", (0..=255).collect::<Vec<u8>>()).await;
    echo(
        &client,
        "timestamptz",
        UNIX_EPOCH + Duration::from_micros(1_709_251_199_000_001),
    )
    .await;
    echo(&client, "int[]", vec![Some(1), None, Some(-3)]).await;
    echo(
        &client,
        "text[]",
        vec![Some("a".to_owned()), Some("b,c\"".to_owned()), None],
    )
    .await;
    echo(&client, "timestamptz[]", vec![SystemTime::UNIX_EPOCH]).await;
    for (type_, text) in [
        ("numeric", "-12345678901234567890.123456789"),
        ("jsonb", "{\"a\": [1, null]}"),
        ("uuid", "12345678-1234-5678-1234-567812345678"),
        ("interval", "3 days 00:00:04"),
    ] {
        let found: String = one(&client, &format!("select $1::text::{type_}::text"), &[&text]).await;
        assert_eq!(found, text);
    }
    let numbers: Vec<i32> = (0..100).collect();
    let sql: Vec<String> = (1..=100).map(|n| format!("${n}::int")).collect();
    let parameters: Vec<&(dyn ToSql + Sync)> = numbers.iter().map(|number| number as &(dyn ToSql + Sync)).collect();
    let row = client
        .query_one(&format!("select {}", sql.join(", ")), &parameters)
        .await
        .expect("a row");
    assert!((0..100).all(|n| row.get::<_, i32>(n) == numbers[n]));
}

async fn types_of_ones_own(target: Arc<Target>) {
    target
        .make("drop type if exists pair; drop type if exists mood; create type mood as enum ('sad', 'glad'); create type pair as (m mood, n int)")
        .await;
    let clients = target.open_many(CLIENTS).await;
    for _ in 0..target.rounds(8) {
        for client in &clients {
            let statement = client.prepare("select $1::mood, $2::pair").await.expect("a statement");
            assert_eq!(statement.params()[0].name(), "mood");
            assert_eq!(statement.params()[1].name(), "pair");
        }
    }
}

async fn large_values(target: Arc<Target>) {
    target.table("large", "b bytea, t text").await;
    let client = target.open().await;
    let data: Vec<u8> = (0..10 * 1024 * 1024_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let text = "x".repeat(data.len());
    client
        .execute("insert into large values ($1, $2)", &[&data, &text])
        .await
        .expect("an insert");
    let row = client.query_one("select b, t from large", &[]).await.expect("a row");
    assert!(row.get::<_, &[u8]>(0) == data && row.get::<_, &str>(1) == text);
    assert!(one::<Vec<u8>>(&client, "select $1::bytea", &[&data]).await == data);
    // As one simple query.
    client
        .batch_execute(&format!("insert into large values (null, '{text}')"))
        .await
        .expect("an insert");
}

// ---- prepared statements

async fn named_statements(target: Arc<Target>) {
    target.table("counted", "id int primary key, n int").await;
    target
        .make(&format!(
            "insert into counted select n, 0 from generate_series(0, {}) n",
            CLIENTS - 1
        ))
        .await;
    let clients = target.open_many(CLIENTS).await;
    let mut own = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        own.push((
            client.prepare("select $1::int + $2::int").await.expect("a statement"),
            client
                .prepare(&format!("select $1::int * 2 as c{number}"))
                .await
                .expect("a statement"),
            client
                .prepare("update counted set n = n + 1 where id = $1 returning n")
                .await
                .expect("a statement"),
            client.prepare("select pg_backend_pid()").await.expect("a statement"),
        ));
    }
    let mut servers = vec![HashSet::new(); CLIENTS];
    let mut updates = [0; CLIENTS];
    for round in 0..target.rounds(60) {
        let chosen: HashSet<usize> = (0..POOL_SIZE)
            .map(|k| (round * POOL_SIZE + k * (1 + round % 3)) % CLIENTS)
            .collect();
        for &client in &chosen {
            clients[client].batch_execute("begin").await.expect("a block");
        }
        for &number in &chosen {
            let (client, (add, double, update, pid)) = (&clients[number], &own[number]);
            let (round, id) = (round as i32, number as i32);
            let sum: i32 = client.query_one(add, &[&round, &id]).await.expect("a sum").get(0);
            assert_eq!(sum, round + id);
            let doubled: i32 = client.query_one(double, &[&id]).await.expect("a double").get(0);
            assert_eq!(doubled, id * 2);
            updates[number] += 1;
            let updated: i32 = client.query_one(update, &[&id]).await.expect("an update").get(0);
            assert_eq!(updated, updates[number]);
            let pid: i32 = client.query_one(pid, &[]).await.expect("a process").get(0);
            servers[number].insert(pid);
        }
        for &client in &chosen {
            clients[client].batch_execute("commit").await.expect("a commit");
        }
    }
    if target.is_proxy() {
        assert!(
            servers.iter().filter(|pids| pids.len() > 1).count() >= CLIENTS / 2,
            "{servers:?}"
        );
        let all: HashSet<i32> = servers.into_iter().flatten().collect();
        assert!(all.len() <= POOL_SIZE, "{all:?}");
    }
}

async fn statements_come_and_go(target: Arc<Target>) {
    let clients = target.open_many(CLIENTS).await;
    join_all(clients.iter().map(async |client| {
        for number in 0..target.rounds(150) as i32 {
            // Dropping a statement closes it on the server, in the background.
            let statement = client
                .prepare_typed(&format!("select $1 + {}", number % 11), &[Type::INT4])
                .await
                .expect("a statement");
            let sum: i32 = client.query_one(&statement, &[&number]).await.expect("a sum").get(0);
            assert_eq!(sum, number + number % 11);
        }
    }))
    .await;
    // By the unnamed statement, without a round trip for its types.
    for number in 0..target.rounds(100) as i32 {
        let rows = clients[0].query_typed("select $1 + 1", &[(&number, Type::INT4)]).await;
        assert_eq!(rows.expect("a sum")[0].get::<_, i32>(0), number + 1);
    }
}

async fn changed_tables(target: Arc<Target>) {
    target.table("reshaped", "a int").await;
    let (client, other) = (target.open().await, target.open().await);
    client
        .batch_execute("insert into reshaped values (7)")
        .await
        .expect("a row");
    let star = client.prepare("select * from reshaped").await.expect("a statement");
    assert_eq!(client.query_one(&star, &[]).await.expect("a row").get::<_, i32>(0), 7);
    target.caught_up().await;
    assert_eq!(client.query_one(&star, &[]).await.expect("a row").get::<_, i32>(0), 7);
    other
        .batch_execute("alter table reshaped alter a type bigint")
        .await
        .expect("a change");
    target.caught_up().await;
    for _ in 0..5 {
        fails(client.query(&star, &[]).await, &SqlState::FEATURE_NOT_SUPPORTED);
    }
    let again = client.prepare("select * from reshaped").await.expect("a statement");
    for _ in 0..5 {
        assert_eq!(client.query_one(&again, &[]).await.expect("a row").get::<_, i64>(0), 7);
    }
}

async fn many_requests_in_flight(target: Arc<Target>) {
    target.table("piped", "n int").await;
    let client = target.open().await;
    let add = client.prepare("select $1::int + 1").await.expect("a statement");
    let insert = client
        .prepare("insert into piped values ($1)")
        .await
        .expect("a statement");
    let count = client.prepare("select count(*) from piped").await.expect("a statement");
    for round in 0..target.rounds(20) as i32 {
        // Polled in order, so sent in order; each has its own Sync.
        let (sums, (inserted, found), failed) = futures_util::future::join3(
            join_all((0..100).map(async |n| client.query_one(&add, &[&n]).await.expect("a sum").get::<_, i32>(0))),
            futures_util::future::join(client.execute(&insert, &[&round]), client.query_one(&count, &[])),
            client.query("select 1 / $1::int", &[&0]),
        )
        .await;
        assert_eq!(sums, (1..=100).collect::<Vec<i32>>());
        assert_eq!(inserted.expect("an insert"), 1);
        assert_eq!(
            found.expect("a count").get::<_, i64>(0),
            i64::from(round) + 1,
            "own write in a pipeline"
        );
        fails(failed, &SqlState::DIVISION_BY_ZERO);
    }
}

// ---- transactions

async fn own_writes(target: Arc<Target>) {
    target.table("own_writes", "client int, n int").await;
    let clients = target.open_many(CLIENTS).await;
    join_all(clients.iter().enumerate().map(async |(number, client)| {
        let own = number as i32;
        for n in 0..target.rounds(100) as i64 {
            client
                .execute("insert into own_writes values ($1, $2::bigint)", &[&own, &n])
                .await
                .expect("an insert");
            let found: i64 = one(client, "select count(*) from own_writes where client = $1", &[&own]).await;
            assert_eq!(found, n + 1, "own writes of client {own}");
        }
    }))
    .await;
}

async fn transactions(target: Arc<Target>) {
    target.table("kept", "n int primary key").await;
    let (mut client, looker) = (target.open().await, target.direct().await);
    let block = client.transaction().await.expect("a block");
    block
        .execute("insert into kept values ($1)", &[&1])
        .await
        .expect("a row");
    assert_eq!(one::<i64>(&looker, "select count(*) from kept", &[]).await, 0);
    block.commit().await.expect("a commit");
    assert_eq!(one::<i64>(&looker, "select count(*) from kept", &[]).await, 1);
    {
        let dropped = client.transaction().await.expect("a block");
        dropped
            .execute("insert into kept values (2)", &[])
            .await
            .expect("a row");
    }
    let mut block = client.transaction().await.expect("a block");
    block.execute("insert into kept values (3)", &[]).await.expect("a row");
    let mut outer = block.savepoint("first_point").await.expect("a savepoint");
    outer.execute("insert into kept values (4)", &[]).await.expect("a row");
    let inner = outer.transaction().await.expect("a savepoint");
    inner.execute("insert into kept values (5)", &[]).await.expect("a row");
    fails(
        inner.execute("insert into kept values (5)", &[]).await,
        &SqlState::UNIQUE_VIOLATION,
    );
    fails(inner.query("select 1", &[]).await, &SqlState::IN_FAILED_SQL_TRANSACTION);
    inner.rollback().await.expect("a rollback");
    outer.commit().await.expect("a release");
    block.commit().await.expect("a commit");
    let rows = client.query("select n from kept order by n", &[]).await.expect("rows");
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1, 3, 4]);
}

async fn errors_and_after(target: Arc<Target>) {
    target
        .table("unique_numbers", "n int constraint unique_numbers_key primary key")
        .await;
    let client = target.open().await;
    client
        .batch_execute("insert into unique_numbers values (1)")
        .await
        .expect("a row");
    for (sql, code) in [
        ("insert into unique_numbers values (1)", SqlState::UNIQUE_VIOLATION),
        ("select * from no_such_table", SqlState::UNDEFINED_TABLE),
        ("select no_such_function()", SqlState::UNDEFINED_FUNCTION),
        ("select 1/0", SqlState::DIVISION_BY_ZERO),
        ("selec 1", SqlState::SYNTAX_ERROR),
        ("select 'x'::int", SqlState::INVALID_TEXT_REPRESENTATION),
    ] {
        for _ in 0..2 {
            fails(client.query(sql, &[]).await, &code);
            fails(client.batch_execute(sql).await, &code);
            assert_eq!(one::<i64>(&client, "select count(*) from unique_numbers", &[]).await, 1);
        }
    }
    let error = fails(
        client.execute("insert into unique_numbers values ($1)", &[&1]).await,
        &SqlState::UNIQUE_VIOLATION,
    );
    let details = error.as_db_error().expect("the server's error");
    assert_eq!(details.constraint(), Some("unique_numbers_key"));
    assert!(details.detail().is_some_and(|detail| detail.contains("(n)=(1)")));
}

async fn read_only_and_isolation(target: Arc<Target>) {
    target.table("untouched", "n int").await;
    let mut client = target.open().await;
    for _ in 0..target.rounds(8) {
        for (level, name) in [
            (IsolationLevel::ReadCommitted, "read committed"),
            (IsolationLevel::RepeatableRead, "repeatable read"),
            (IsolationLevel::Serializable, "serializable"),
        ] {
            for read_only in [true, false] {
                let block = client.build_transaction().isolation_level(level).read_only(read_only);
                let block = block.start().await.expect("a block");
                let shown: String = block
                    .query_one("show transaction_isolation", &[])
                    .await
                    .expect("a level")
                    .get(0);
                assert_eq!(shown, name);
                let count: i64 = block
                    .query_one("select count(*) from untouched", &[])
                    .await
                    .expect("a count")
                    .get(0);
                assert_eq!(count, 0);
                let written = block.execute("insert into untouched values (1)", &[]).await;
                if read_only {
                    fails(written, &SqlState::READ_ONLY_SQL_TRANSACTION);
                } else {
                    assert_eq!(written.expect("a row"), 1);
                }
                block.rollback().await.expect("a rollback");
            }
        }
    }
}

async fn serialization_failure(target: Arc<Target>) {
    target.table("contended", "n int").await;
    let (mut first, second) = (target.open().await, target.open().await);
    first
        .batch_execute("insert into contended values (0)")
        .await
        .expect("a row");
    let block = first
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead);
    let block = block.start().await.expect("a block");
    block.query("select n from contended", &[]).await.expect("a row");
    second
        .batch_execute("update contended set n = n + 1")
        .await
        .expect("an update");
    fails(
        block.execute("update contended set n = n + 1", &[]).await,
        &SqlState::T_R_SERIALIZATION_FAILURE,
    );
    block.rollback().await.expect("a rollback");
    assert_eq!(one::<i32>(&first, "select n from contended", &[]).await, 1);
}

// ---- COPY and portals

async fn copies(target: Arc<Target>) {
    target.table("copied", "n int, t text").await;
    let client = target.open().await;
    let count = target.rounds(20000) as u64;
    let sink = client.copy_in("copy copied from stdin").await.expect("a COPY");
    let mut sink = pin!(sink);
    for n in 0..count {
        sink.send(bytes::Bytes::from(format!("{n}\trow {n}\n")))
            .await
            .expect("data");
    }
    assert_eq!(sink.finish().await.expect("its end"), count);
    let out = client
        .copy_out("copy (select * from copied order by n) to stdout")
        .await
        .expect("a COPY");
    let blocks: Vec<bytes::Bytes> = out.try_collect().await.expect("data");
    let text: Vec<u8> = blocks.concat();
    assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count() as u64, count);
    assert!(text.starts_with(b"0\trow 0\n1\trow 1\n"));
    client.batch_execute("truncate copied").await.expect("a truncate");
    let sink = client
        .copy_in("copy copied from stdin (format binary)")
        .await
        .expect("a COPY");
    let writer = BinaryCopyInWriter::new(sink, &[Type::INT4, Type::TEXT]);
    let mut writer = pin!(writer);
    for n in 0..count as i32 {
        writer.as_mut().write(&[&n, &"binary"]).await.expect("a row");
    }
    assert_eq!(writer.finish().await.expect("its end"), count);
    let out = client
        .copy_out("copy (select n from copied order by n) to stdout (format binary)")
        .await
        .expect("a COPY");
    let rows: Vec<_> = BinaryCopyOutStream::new(out, &[Type::INT4])
        .try_collect()
        .await
        .expect("rows");
    assert!(rows.iter().enumerate().all(|(n, row)| row.get::<i32>(0) == n as i32));
    assert_eq!(rows.len() as u64, count);
}

async fn copies_that_fail(target: Arc<Target>) {
    target.table("copied_badly", "n int primary key").await;
    let client = target.open().await;
    {
        // Dropped half-way: the driver sends CopyFail.
        let sink = client
            .copy_in::<_, bytes::Bytes>("copy copied_badly from stdin")
            .await
            .expect("a COPY");
        let mut sink = pin!(sink);
        sink.send("1\n2\n".into()).await.expect("data");
    }
    assert_eq!(one::<i64>(&client, "select count(*) from copied_badly", &[]).await, 0);
    for (data, code) in [
        (
            "no number\n".to_owned() + &"1\n".repeat(500_000),
            SqlState::INVALID_TEXT_REPRESENTATION,
        ),
        ("1\n1\n".to_owned(), SqlState::UNIQUE_VIOLATION),
    ] {
        let sink = client
            .copy_in::<_, bytes::Bytes>("copy copied_badly from stdin")
            .await
            .expect("a COPY");
        let mut sink = pin!(sink);
        let data = bytes::Bytes::from(data);
        let mut sent = Ok(());
        for start in (0..data.len()).step_by(8000) {
            sent = sink.send(data.slice(start..data.len().min(start + 8000))).await;
            if sent.is_err() {
                break;
            }
        }
        let outcome = match sent {
            Ok(()) => sink.finish().await.map(drop),
            Err(error) => Err(error),
        };
        // The driver may see the end of its request before the reason of it.
        let error = outcome.expect_err("a failed COPY");
        assert!(error.code().is_none_or(|found| *found == code), "{error}");
        assert_eq!(one::<i64>(&client, "select count(*) from copied_badly", &[]).await, 0);
    }
    // The driver sends one Sync too many here, and takes its answer for the next request's: this connection is of no more use.
    let missing = target.open().await;
    let missing = missing
        .copy_in::<_, bytes::Bytes>("copy no_such_table from stdin")
        .await;
    fails(missing.map(drop), &SqlState::UNDEFINED_TABLE);
    let out = client
        .copy_out("copy (select 1 / (n - 900) from generate_series(1, 1000) n) to stdout")
        .await
        .expect("a COPY");
    fails(out.try_collect::<Vec<_>>().await, &SqlState::DIVISION_BY_ZERO);
    {
        // Left half-way: the driver reads and drops the rest.
        let out = client
            .copy_out("copy (select generate_series(1, 1000000)) to stdout")
            .await
            .expect("a COPY");
        let mut out = pin!(out);
        out.next().await.expect("a block").expect("data");
    }
    assert_eq!(one::<i32>(&client, "select 1", &[]).await, 1);
}

async fn portals(target: Arc<Target>) {
    target.table("scrolled", "n int").await;
    target
        .make("insert into scrolled select generate_series(1, 5000)")
        .await;
    let mut client = target.open().await;
    for read_only in [false, true] {
        let block = client.build_transaction().read_only(read_only);
        let block = block.start().await.expect("a block");
        let first = block
            .bind("select n from scrolled where n > $1 order by n", &[&0])
            .await
            .expect("a portal");
        let second = block
            .bind("select -n from scrolled order by n", &[])
            .await
            .expect("a portal");
        let mut wanted = 1;
        loop {
            let (rows, others) = (
                block.query_portal(&first, 70).await.expect("rows"),
                block.query_portal(&second, 70).await.expect("rows"),
            );
            assert_eq!(rows.len(), others.len());
            for (row, other) in rows.iter().zip(&others) {
                assert_eq!((row.get::<_, i32>(0), other.get::<_, i32>(0)), (wanted, -wanted));
                wanted += 1;
            }
            if rows.is_empty() {
                break;
            }
        }
        assert_eq!(wanted, 5001);
        block.commit().await.expect("a commit");
    }
    let rows = client
        .query_raw("select generate_series(1, $1::int)", [20000])
        .await
        .expect("a stream");
    let sum = rows
        .try_fold(0_i64, async |sum, row| Ok(sum + i64::from(row.get::<_, i32>(0))))
        .await;
    assert_eq!(sum.expect("a sum"), 200_010_000);
}

// ---- cancelling, notifications, state of a session

async fn cancels(target: Arc<Target>) {
    let clients = target.open_many(POOL_SIZE).await;
    for client in &clients {
        for _ in 0..2 {
            let token = client.cancel_token();
            let cancel = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                token.cancel_query(NoTls).await.expect("a cancel request");
            };
            let (slept, ()) = futures_util::future::join(client.query("select pg_sleep(30)", &[]), cancel).await;
            fails(slept, &SqlState::QUERY_CANCELED);
            for number in 0..20 {
                assert_eq!(one::<i32>(client, "select $1::int", &[&number]).await, number);
            }
        }
    }
    for client in &clients {
        client
            .cancel_token()
            .cancel_query(NoTls)
            .await
            .expect("a cancel request");
    }
    for client in &clients {
        assert_eq!(one::<i32>(client, "select 1", &[]).await, 1);
    }
}

async fn listen_notify(target: Arc<Target>) {
    let (listener, mut connection) = target.config(target.port).connect(NoTls).await.expect("a connection");
    let (heard, mut messages) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = heard.send(notification.payload().to_owned());
            }
        }
    });
    let (other, sender) = (target.open().await, target.open().await);
    // By the extended protocol, and with others at work in between.
    listener.execute("listen news", &[]).await.expect("a LISTEN");
    for number in 0..3 {
        assert_eq!(one::<i32>(&other, "select $1::int", &[&number]).await, number);
        sender
            .execute("select pg_notify('news', $1)", &[&format!("n{number}")])
            .await
            .expect("a NOTIFY");
        let payload = tokio::time::timeout(Duration::from_secs(5), messages.recv()).await;
        assert_eq!(
            payload.expect("a notification").as_deref(),
            Some(format!("n{number}").as_str())
        );
    }
    listener.batch_execute("unlisten *").await.expect("an UNLISTEN");
    sender.batch_execute("notify news, 'unheard'").await.expect("a NOTIFY");
    assert_eq!(one::<i32>(&listener, "select 1", &[]).await, 1);
    assert!(messages.try_recv().is_err());
}

async fn temporary_tables(target: Arc<Target>) {
    let clients = target.open_many(POOL_SIZE - 1).await;
    let other = target.open().await;
    for (number, client) in clients.iter().enumerate() {
        client
            .execute("create temporary table mine (n int)", &[])
            .await
            .expect("a temporary table");
        client
            .execute("insert into mine values ($1)", &[&(number as i32)])
            .await
            .expect("a row");
    }
    for round in 0..target.rounds(20) as i32 {
        assert_eq!(one::<i32>(&other, "select $1::int", &[&round]).await, round);
        for (number, client) in clients.iter().enumerate() {
            assert_eq!(one::<i32>(client, "select n from mine", &[]).await, number as i32);
        }
    }
    fails(other.query("select n from mine", &[]).await, &SqlState::UNDEFINED_TABLE);
}

async fn settings(target: Arc<Target>) {
    let clients = target.open_many(CLIENTS).await;
    for (number, client) in clients.iter().enumerate() {
        let megabytes = number + 1;
        client
            .execute(&format!("set work_mem = '{megabytes}MB'"), &[])
            .await
            .expect("a SET");
        client
            .batch_execute(&format!("set application_name = 'client {number}'"))
            .await
            .expect("a SET");
    }
    join_all(clients.iter().enumerate().map(async |(number, client)| {
        for _ in 0..target.rounds(30) {
            let megabytes: String = one(client, "show work_mem", &[]).await;
            assert_eq!(megabytes, format!("{}MB", number + 1));
            let name: String = one(client, "show application_name", &[]).await;
            assert_eq!(name, format!("client {number}"));
        }
    }))
    .await;
    for (client, reset) in clients.iter().zip(["reset all", "discard all", "reset work_mem"]) {
        client.batch_execute(reset).await.expect(reset);
        assert_eq!(one::<String>(client, "show work_mem", &[]).await, "4MB");
    }
}

async fn many_clients(target: Arc<Target>) {
    target.table("crowded", "client int, n int").await;
    let count = if target.is_proxy() { 200 } else { 50 };
    let mut clients = Vec::new();
    while clients.len() < count {
        clients.extend(target.open_many(20.min(count - clients.len())).await);
    }
    join_all(clients.iter().enumerate().map(async |(number, client)| {
        let own = number as i32;
        for n in 0..target.rounds(12) as i32 {
            let sum: i32 = one(client, "select $1::int * 1000 + $2::int", &[&own, &n]).await;
            assert_eq!(sum, own * 1000 + n);
            client
                .execute("insert into crowded values ($1, $2)", &[&own, &n])
                .await
                .expect("an insert");
            let found: i64 = one(client, "select count(*) from crowded where client = $1", &[&own]).await;
            assert_eq!(found, i64::from(n) + 1, "own writes of client {own}");
        }
    }))
    .await;
}

// ---- running them

type Run = fn(Arc<Target>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! checks {
    ($($name:literal => $function:ident,)*) => {
        [$(($name, (|target| Box::pin($function(target))) as Run),)*]
    };
}

fn all() -> [(&'static str, Run); 28] {
    checks! {
        "connects, and the server looks like a primary" => connects,
        "options at login set search_path and statement_timeout" => options_at_login,
        "refused logins say why" => refused_logins,
        "logs in by SCRAM" => passwords,
        "reconnects, time after time" => reconnects,
        "a connection that is lost is an error, and the next one works" => lost_connection,
        "a client that vanishes in a transaction leaves no lock behind" => vanished_client,
        "simple queries, several statements in one, and none" => simple_queries,
        "parameters and results in binary, NULL, arrays" => parameters,
        "types of one's own, looked up while a statement is prepared" => types_of_ones_own,
        "a 10 MB bytea goes both ways" => large_values,
        "named statements run hundreds of times by clients that change servers" => named_statements,
        "statements that come and go" => statements_come_and_go,
        "a statement whose table has changed is 0A000, and works when prepared again" => changed_tables,
        "many requests in flight, with an error and a write among them" => many_requests_in_flight,
        "a write is seen by the next read" => own_writes,
        "commit, rollback, savepoints" => transactions,
        "errors have their SQLSTATE and details, and the connection goes on" => errors_and_after,
        "read-only transactions refuse writes with 25006, and each isolation level is that" => read_only_and_isolation,
        "a serialization failure is 40001" => serialization_failure,
        "COPY in and out, text and binary" => copies,
        "COPY that fails half-way, by the client, the data or the server" => copies_that_fail,
        "portals read in pieces inside a transaction, two in turns" => portals,
        "cancel of a running query is 57014, and the connection goes on" => cancels,
        "LISTEN and NOTIFY reach the listener, also while it is idle" => listen_notify,
        "temporary tables live in their session" => temporary_tables,
        "SET stays with its client while others use the pool" => settings,
        "many connections at once" => many_clients,
    }
}

/// The cluster and the proxy of these tests, where nobody has given one.
struct Own {
    _proxy: Proxy,
    _lab: LabGuard,
}

fn targets() -> (Vec<Target>, Option<Own>) {
    let quick = env::var("DRIVERS_QUICK").is_ok_and(|quick| !quick.is_empty());
    let port = |name: &str| env::var(name).ok()?.parse::<u16>().ok();
    let (primary, through, standbys, database, own) = match (
        port("DRIVERS_DIRECT_PORT"),
        port("DRIVERS_PROXY_PORT"),
        env::var("DRIVERS_STANDBY_PORTS"),
    ) {
        (Some(primary), Some(through), Ok(standbys)) => {
            let standbys = standbys.split(',').map(|port| port.parse().expect("a port")).collect();
            let database = env::var("DRIVERS_DATABASE").expect("DRIVERS_DATABASE");
            (primary, through, standbys, database, None)
        }
        _ => {
            let lab = LabGuard::fresh(2).expect("a lab");
            let proxy = Proxy::with(&lab, "[pool]\nsize = 3\n");
            let ports: Vec<u16> = lab.nodes().iter().map(|node| node.port()).collect();
            let database = "drivers_tokio_postgres".to_owned();
            for target in ["direct", "proxy"] {
                let created = Command::new(lab.pg_bin().join("createdb"))
                    .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &ports[0].to_string()])
                    .arg(format!("{database}_{target}"))
                    .status();
                assert!(created.expect("createdb").success());
            }
            support::until_replayed(&lab);
            let through = proxy.port;
            let own = Own {
                _proxy: proxy,
                _lab: lab,
            };
            (ports[0], through, ports[1..].to_vec(), database, Some(own))
        }
    };
    let secure = port("DRIVERS_SECURE_PORT").zip(env::var("DRIVERS_PASSWORD").ok());
    let target = |label, port| Target {
        label,
        port,
        database: format!("{database}_{label}"),
        primary,
        standbys: standbys.clone(),
        secure: secure.clone(),
        quick: quick || own.is_some(),
    };
    (vec![target("direct", primary), target("proxy", through)], own)
}

/// What a check panicked with, and where, on one line.
fn keep_panics() -> Arc<Mutex<String>> {
    let last = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&last);
    std::panic::set_hook(Box::new(move |info| {
        let text = info.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        eprintln!("{text}");
        *kept.lock().expect("nobody panics here") = text;
    }));
    last
}

#[test]
fn tokio_postgres_works_directly_and_through_the_proxy() {
    let only = env::var("DRIVERS_ONLY").unwrap_or_default().to_lowercase();
    let (targets, _own) = targets();
    let panicked = keep_panics();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let failures = AtomicUsize::new(0);
    for target in targets {
        let target = Arc::new(target);
        for (name, run) in all()
            .into_iter()
            .filter(|(name, _)| name.to_lowercase().contains(&only))
        {
            let began = Instant::now();
            let problem = runtime.block_on(async {
                match tokio::time::timeout(LIMIT, tokio::spawn(run(Arc::clone(&target)))).await {
                    Ok(Ok(())) => None,
                    Ok(Err(_)) => Some(panicked.lock().expect("nobody panics there").clone()),
                    Err(_) => Some(format!("not done after {LIMIT:?}")),
                }
            });
            failures.fetch_add(usize::from(problem.is_some()), Ordering::Relaxed);
            let word = if problem.is_none() { "ok  " } else { "FAIL" };
            let problem = problem.map(|problem| format!(": {problem}")).unwrap_or_default();
            println!(
                "{word}  {:<14} {:<6}  {name}{problem}  ({:.1} s)",
                "tokio-postgres",
                target.label,
                began.elapsed().as_secs_f64()
            );
        }
    }
    println!("done");
    let _ = std::panic::take_hook();
    assert_eq!(failures.into_inner(), 0, "failed checks");
}
