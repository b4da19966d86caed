//! sqlx, directly and through the proxy: a line per check, as the other drivers' scripts in `tests/drivers` print.
//!
//! `scripts/drivers.sh` gives it a cluster and a proxy by DRIVERS_* variables.

use std::collections::HashSet;
use std::env;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use futures_util::future::{join_all, try_join_all};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgAdvisoryLock, PgConnectOptions, PgListener, PgPool, PgPoolOptions, PgSslMode};
use sqlx::types::{Json, Uuid};
use sqlx::{ConnectOptions, Connection, Error, Executor, PgConnection, Row};
use tokio::task::{LocalSet, spawn_local};

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
    secure: (u16, String),
    quick: bool,
}

impl Target {
    fn is_proxy(&self) -> bool {
        self.label == "proxy"
    }

    /// How often to repeat something: a quarter of it in a quick run.
    fn rounds(&self, full: i32) -> i32 {
        if self.quick { (full / 4).max(1) } else { full }
    }

    fn options(&self, port: u16) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(port)
            .username("postgres")
            .database(&self.database)
            .ssl_mode(PgSslMode::Disable)
    }

    async fn open(&self) -> PgConnection {
        self.options(self.port).connect().await.expect("a connection")
    }

    async fn pool(&self, size: u32) -> PgPool {
        let options = PgPoolOptions::new().max_connections(size);
        options.connect_with(self.options(self.port)).await.expect("a pool")
    }

    /// A connection that is never through the proxy, to look on.
    async fn direct(&self) -> PgConnection {
        self.options(self.primary).connect().await.expect("a connection")
    }

    /// Waits until the standbys have replayed all that is committed.
    async fn caught_up(&self) {
        let lsn: String = one(&mut self.direct().await, "select pg_current_wal_flush_lsn()::text").await;
        for port in &self.standbys {
            let mut standby = self.options(*port).connect().await.expect("a connection");
            until(&mut standby, &format!("select pg_last_wal_replay_lsn() >= '{lsn}'")).await;
        }
    }

    /// Makes what every client sees on every node.
    async fn make(&self, sql: &str) {
        let sql = format!("set client_min_messages = error; {sql}");
        self.direct().await.execute(&*sql).await.expect("what the check needs");
        self.caught_up().await;
    }

    async fn table(&self, name: &str, columns: &str) {
        self.make(&format!("drop table if exists {name}; create table {name} ({columns})"))
            .await;
    }
}

/// The only value of the only row.
async fn one<T>(client: &mut PgConnection, sql: &str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    sqlx::query_scalar(sql).fetch_one(client).await.expect("one row")
}

async fn until(client: &mut PgConnection, sql: &str) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !one::<bool>(client, sql).await {
        assert!(Instant::now() < deadline, "not within 15 s: {sql}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[track_caller]
fn fails<T>(outcome: Result<T, Error>, wanted: &str) {
    match outcome {
        Err(Error::Database(error)) => assert_eq!(error.code().as_deref(), Some(wanted), "{error}"),
        Err(error) => panic!("{error}, instead of {wanted}"),
        Ok(_) => panic!("no error, instead of {wanted}"),
    }
}

// ---- connecting

async fn connects(target: Arc<Target>) {
    target
        .make("drop schema if exists elsewhere cascade; create schema elsewhere; create table elsewhere.found as select 42 as n")
        .await;
    let options = target
        .options(target.port)
        .application_name("drivers sqlx")
        .options([("search_path", "elsewhere,public"), ("statement_timeout", "250")]);
    let mut client = options.connect().await.expect("a connection");
    let mut other = target.open().await;
    for _ in 0..5 {
        assert_eq!(one::<i32>(&mut client, "select n from found").await, 42);
        assert_eq!(
            one::<String>(&mut client, "show application_name").await,
            "drivers sqlx"
        );
        fails(other.execute("select n from found").await, "42P01");
    }
    fails(client.execute("select pg_sleep(10)").await, "57014");
    client.ping().await.expect("it goes on");
    client.close().await.expect("a goodbye");
}

async fn passwords(target: Arc<Target>) {
    if !target.is_proxy() {
        return;
    }
    let (port, password) = &target.secure;
    let options = target.options(*port).ssl_mode(PgSslMode::Require);
    let mut client = options.clone().password(password).connect().await.expect("a login");
    assert_eq!(one::<i32>(&mut client, "select 1").await, 1);
    fails(options.password("wrong").connect().await, "28P01");
}

// ---- statements and values

#[derive(Debug, PartialEq, sqlx::Type)]
#[sqlx(type_name = "mood", rename_all = "lowercase")]
enum Mood {
    Glad,
    Sad,
}

#[derive(Debug, PartialEq, sqlx::FromRow)]
struct Values {
    big: Option<i64>,
    real: Option<f64>,
    long: Option<String>,
    yes: Option<bool>,
    bytes: Option<Vec<u8>>,
    document: Option<Json<serde_json::Value>>,
    key: Option<Uuid>,
    several: Option<Vec<i32>>,
    feeling: Option<Mood>,
}

async fn values(target: Arc<Target>) {
    target
        .make(
            "drop type if exists mood cascade; create type mood as enum ('glad', 'sad'); drop table if exists many_types; \
             create table many_types (big int8, real float8, long text, yes bool, bytes bytea, document jsonb, key uuid, several int[], \
             feeling mood)",
        )
        .await;
    let mut client = target.open().await;
    let full = || Values {
        big: Some(i64::MAX),
        real: Some(1e-300),
        long: Some("grüße, 世界 🐍 'quoted' \\ ? $1 \n".into()),
        yes: Some(true),
        bytes: Some((0..=255).collect()),
        document: Some(Json(serde_json::json!({"a": [1, null, {"b": "c"}]}))),
        key: Some(Uuid::from_u128(0x1234_5678_1234_5678_1234_5678_1234_5678)),
        several: Some(vec![1, 2, -3]),
        feeling: Some(Mood::Sad),
    };
    let none = || Values {
        big: None,
        real: None,
        long: None,
        yes: None,
        bytes: None,
        document: None,
        key: None,
        several: None,
        feeling: None,
    };
    for row in [full(), none()] {
        sqlx::query("insert into many_types values ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
            .bind(row.big)
            .bind(row.real)
            .bind(row.long)
            .bind(row.yes)
            .bind(row.bytes)
            .bind(row.document)
            .bind(row.key)
            .bind(row.several)
            .bind(row.feeling)
            .execute(&mut client)
            .await
            .expect("a row");
    }
    let read = sqlx::query_as("select * from many_types order by big");
    let rows: Vec<Values> = read.fetch_all(&mut client).await.expect("rows");
    assert_eq!(rows, [full(), none()]);
    let glad: Mood = one(&mut client, "select 'glad'::mood").await;
    assert_eq!(glad, Mood::Glad);
    let large = vec![7_u8; 10 << 20];
    let back: Vec<u8> = sqlx::query_scalar("select $1::bytea")
        .bind(&large)
        .fetch_one(&mut client)
        .await
        .expect("10 MB");
    assert!(back == large, "10 MB are other bytes now");
}

async fn texts_without_parameters(target: Arc<Target>) {
    target.table("simple", "n int").await;
    let mut client = target.open().await;
    let several = "insert into simple values (1); insert into simple values (2), (3); select n from simple order by n";
    let rows = sqlx::raw_sql(several).fetch_all(&mut client).await.expect("rows");
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1, 2, 3]);
    fails(
        sqlx::raw_sql("insert into simple values (4); select 1 / 0")
            .execute(&mut client)
            .await,
        "22012",
    );
    assert_eq!(one::<i64>(&mut client, "select count(*) from simple").await, 3);
    for n in 0..target.rounds(100) {
        let text = format!("select {n} + $1");
        let query = sqlx::query_scalar(&text).bind(1).persistent(false);
        assert_eq!(query.fetch_one(&mut client).await.ok(), Some(n + 1));
    }
}

/// More texts than the driver keeps prepared, by clients that change servers.
async fn statements_come_and_go(target: Arc<Target>) {
    let work = |client: i32| {
        let target = Arc::clone(&target);
        async move {
            let options = target.options(target.port).statement_cache_capacity(10);
            let mut connection = options.connect().await?;
            for n in 0..target.rounds(400) {
                let text = format!("select $1::int + {}", n % 15);
                let query = sqlx::query_scalar(&text).bind(client);
                let sum: i32 = query.fetch_one(&mut connection).await?;
                assert_eq!(sum, client + n % 15);
            }
            assert!(connection.cached_statements_size() <= 10);
            connection.clear_cached_statements().await?;
            assert_eq!(one::<i32>(&mut connection, "select 1").await, 1);
            Ok::<_, Error>(())
        }
    };
    try_join_all((0..CLIENTS as i32).map(work)).await.expect("all of it");
}

async fn changed_tables(target: Arc<Target>) {
    target.table("reshaped", "a int").await;
    let mut client = target.open().await;
    for text in [
        "select * from reshaped where a = $1",
        "insert into reshaped values ($1) returning *",
    ] {
        let run = || sqlx::query(text).bind(1);
        let insert = sqlx::query("insert into reshaped values ($1)").bind(1);
        insert.execute(&mut client).await.expect("a row");
        let columns = run().fetch_one(&mut client).await.expect("a row").len();
        target.make(&format!("alter table reshaped add b{columns} int")).await;
        fails(run().fetch_one(&mut client).await, "0A000");
        client.clear_cached_statements().await.expect("none is left");
        assert_eq!(run().fetch_one(&mut client).await.expect("a row").len(), columns + 1);
    }
}

async fn rows_as_a_stream(target: Arc<Target>) {
    let mut client = target.open().await;
    let all = "select generate_series(1, 5000)";
    for leave_at in [10, 5000] {
        let mut rows = sqlx::query_scalar::<_, i32>(all).fetch(&mut client);
        let mut seen = 0;
        while let Some(n) = rows.try_next().await.expect("a row") {
            seen += 1;
            assert_eq!(n, seen);
            if n == leave_at {
                break;
            }
        }
        drop(rows);
        // What was left is read over.
        assert_eq!(one::<i32>(&mut client, "select 1").await, 1);
    }
}

async fn errors(target: Arc<Target>) {
    target.table("unique_ones", "n int unique").await;
    let mut client = target.open().await;
    for (state, sql) in [
        ("42P01", "select * from no_such_table where $1 = 1"),
        ("22012", "select $1 / 0"),
        ("42601", "selec $1"),
        ("22P02", "select 'x'::int + $1"),
    ] {
        fails(sqlx::query(sql).bind(1).execute(&mut client).await, state);
        assert_eq!(one::<i32>(&mut client, "select 1").await, 1);
    }
    let insert = || sqlx::query("insert into unique_ones values ($1)").bind(1);
    insert().execute(&mut client).await.expect("the first");
    let error = insert().execute(&mut client).await.expect_err("the second");
    let error = error.as_database_error().expect("the server's");
    assert!(error.is_unique_violation());
    assert_eq!(error.constraint(), Some("unique_ones_n_key"));
}

// ---- transactions

async fn own_writes(target: Arc<Target>) {
    target.table("own", "id serial, n int").await;
    let mut client = target.open().await;
    for n in 0..target.rounds(100) {
        let insert = sqlx::query_scalar("insert into own (n) values ($1) returning id").bind(n);
        let id: i32 = insert.fetch_one(&mut client).await.expect("a row");
        let read = || sqlx::query_scalar::<_, i32>("select n from own where id = $1").bind(id);
        assert_eq!(read().fetch_one(&mut client).await.ok(), Some(n));
        let update = sqlx::query("update own set n = n + 1 where id = $1").bind(id);
        assert_eq!(update.execute(&mut client).await.expect("done").rows_affected(), 1);
        assert_eq!(read().fetch_one(&mut client).await.ok(), Some(n + 1));
    }
}

async fn transactions(target: Arc<Target>) {
    target.table("kept", "n int primary key").await;
    let (mut client, mut looker) = (target.open().await, target.direct().await);
    let insert = |n: i32| sqlx::query("insert into kept values ($1)").bind(n);
    let mut outer = client.begin().await.expect("a block");
    insert(1).execute(&mut *outer).await.expect("done");
    let mut inner = outer.begin().await.expect("a savepoint");
    fails(insert(1).execute(&mut *inner).await, "23505");
    inner.rollback().await.expect("back");
    let mut inner = outer.begin().await.expect("a savepoint");
    insert(2).execute(&mut *inner).await.expect("done");
    inner.commit().await.expect("released");
    assert_eq!(one::<i64>(&mut looker, "select count(*) from kept").await, 0);
    outer.commit().await.expect("committed");
    // One that is dropped is rolled back before the connection does anything else.
    let mut dropped = client.begin().await.expect("a block");
    insert(3).execute(&mut *dropped).await.expect("done");
    drop(dropped);
    assert_eq!(one::<i64>(&mut client, "select count(*) from kept").await, 2);
    for (begin, isolation) in [
        ("begin isolation level serializable read only", "serializable"),
        ("begin isolation level repeatable read read only", "repeatable read"),
        ("begin read only", "read committed"),
    ] {
        let mut block = client.begin_with(begin).await.expect("a block");
        assert_eq!(one::<String>(&mut block, "show transaction_isolation").await, isolation);
        assert_eq!(one::<i64>(&mut block, "select count(*) from kept").await, 2);
        fails(insert(4).execute(&mut *block).await, "25006");
        block.rollback().await.expect("back");
    }
}

// ---- pools

async fn many_clients(target: Arc<Target>) {
    target.table("many", "client int, n int").await;
    let pool = target.pool(CLIENTS as u32).await;
    let work = |client: i32| {
        let (target, pool) = (Arc::clone(&target), pool.clone());
        async move {
            let mut servers = HashSet::new();
            for n in 0..target.rounds(60) {
                let mut block = pool.begin().await?;
                let insert = sqlx::query("insert into many values ($1, $2)").bind(client).bind(n);
                insert.execute(&mut *block).await?;
                let count = sqlx::query_scalar("select count(*) from many where client = $1").bind(client);
                let count: i64 = count.fetch_one(&mut *block).await?;
                assert_eq!(count, i64::from(n) + 1);
                servers.insert(one::<i32>(&mut block, "select pg_backend_pid()").await);
                block.commit().await?;
                let sum = sqlx::query_scalar("select $1::int + $2::int").bind(client).bind(n);
                assert_eq!(sum.fetch_one(&pool).await.ok(), Some(client + n));
            }
            Ok::<_, Error>(servers)
        }
    };
    let servers = try_join_all((0..CLIENTS as i32).map(work)).await.expect("all of it");
    let servers: HashSet<i32> = servers.into_iter().flatten().collect();
    if target.is_proxy() {
        assert!(servers.len() <= POOL_SIZE, "more servers than the pool has");
    }
}

async fn given_up_queries(target: Arc<Target>) {
    let pool = target.pool(2).await;
    for n in 0..target.rounds(12) {
        let sleeps = pool.execute("select pg_sleep(0.3)");
        let outcome = tokio::time::timeout(Duration::from_millis(50), sleeps).await;
        assert!(outcome.is_err(), "it was to be left half-way");
        let query = sqlx::query_scalar("select $1::int").bind(n);
        assert_eq!(query.fetch_one(&pool).await.ok(), Some(n));
    }
}

async fn lost_connections(target: Arc<Target>) {
    let (pool, mut looker) = (target.pool(1).await, target.direct().await);
    for n in 0..target.rounds(12) {
        let query = sqlx::query_scalar("select $1::int").bind(n);
        assert_eq!(query.fetch_one(&pool).await.ok(), Some(n));
        let kill = "select pg_terminate_backend(pid, 5000) from pg_stat_activity \
                    where datname = current_database() and pid <> pg_backend_pid()";
        looker.execute(kill).await.expect("done");
    }
}

// ---- state of a session

/// sqlx holds an advisory lock while it migrates.
async fn migrations(target: Arc<Target>) {
    target.make("drop table if exists people, _sqlx_migrations").await;
    let migration = |version: i64, kind: MigrationType, sql: &'static str| {
        Migration::new(
            version,
            format!("number {version}").into(),
            kind,
            sql.into(),
            sql.starts_with("-- no"),
        )
    };
    let migrations = vec![
        migration(
            1,
            MigrationType::ReversibleUp,
            "create table people (id serial primary key); insert into people default values",
        ),
        migration(1, MigrationType::ReversibleDown, "drop table people"),
        migration(2, MigrationType::ReversibleUp, "alter table people add data jsonb"),
        migration(2, MigrationType::ReversibleDown, "alter table people drop column data"),
        migration(3, MigrationType::ReversibleUp, "-- no-transaction\nvacuum people"),
        migration(3, MigrationType::ReversibleDown, "-- no-transaction\nvacuum people"),
    ];
    let migrator = Migrator {
        migrations: migrations.into(),
        ..Migrator::DEFAULT
    };
    let mut client = target.open().await;
    for _ in 0..2 {
        // Two at once: the second waits, and finds nothing to do.
        let (one_pool, other_pool) = (target.pool(1).await, target.pool(1).await);
        for outcome in join_all([migrator.run(&one_pool), migrator.run(&other_pool)]).await {
            outcome.expect("migrated");
        }
        let mut one_of_them = one_pool.acquire().await.expect("a connection");
        let count: i64 = one(&mut one_of_them, "select count(*) from people where data is null").await;
        assert_eq!(count, 1);
        migrator.undo(&mut client, 0).await.expect("undone");
        fails(client.execute("select * from people").await, "42P01");
    }
}

async fn advisory_locks(target: Arc<Target>) {
    let lock = PgAdvisoryLock::new("drivers sqlx");
    for _ in 0..target.rounds(8) {
        let (mut one_client, mut other) = (target.open().await, target.open().await);
        let held = lock.acquire(&mut one_client).await.expect("the lock");
        let refused = lock.try_acquire(&mut other).await.expect("an answer");
        assert!(refused.right().is_some(), "two have it");
        held.release_now().await.expect("released");
        let held = lock
            .try_acquire(&mut other)
            .await
            .expect("an answer")
            .left()
            .expect("free");
        held.release_now().await.expect("released");
    }
}

async fn listen_notify(target: Arc<Target>) {
    let pool = target.pool(3).await;
    let mut listener = PgListener::connect_with(&pool).await.expect("a listener");
    listener.listen_all(["news", "weather"]).await.expect("listening");
    for n in 0..target.rounds(12) {
        let payload = format!("n{n}");
        let notify = sqlx::query("select pg_notify('news', $1)").bind(&payload);
        notify.execute(&pool).await.expect("sent");
        let heard = tokio::time::timeout(Duration::from_secs(10), listener.recv()).await;
        let heard = heard.expect("in time").expect("a notification");
        assert_eq!((heard.channel(), heard.payload()), ("news", &*payload));
    }
    listener.unlisten_all().await.expect("done");
}

async fn copies(target: Arc<Target>) {
    target.table("copied", "n int, said text").await;
    let mut client = target.open().await;
    let lines: String = (0..20_000).map(|n| format!("{n}\tline {n}\n")).collect();
    let mut copy = client.copy_in_raw("copy copied from stdin").await.expect("a copy");
    copy.send(lines.as_bytes()).await.expect("sent");
    assert_eq!(copy.finish().await.expect("the end"), 20_000);
    let rows = client
        .copy_out_raw("copy (select * from copied order by n) to stdout")
        .await;
    let back = rows.expect("a copy").try_fold(Vec::new(), |mut all, piece| async move {
        all.extend_from_slice(&piece);
        Ok(all)
    });
    assert!(
        back.await.expect("all of it") == lines.as_bytes(),
        "other lines came back"
    );
    let mut copy = client.copy_in_raw("copy copied from stdin").await.expect("a copy");
    copy.send(&b"1\tone\n"[..]).await.expect("sent");
    copy.abort("no more of it").await.expect("given up");
    let mut copy = client.copy_in_raw("copy copied from stdin").await.expect("a copy");
    copy.send(&b"x\tone\n"[..]).await.expect("sent");
    fails(copy.finish().await, "22P02");
    assert_eq!(one::<i64>(&mut client, "select count(*) from copied").await, 20_000);
}

// ---- running them

type Run = fn(Arc<Target>) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! checks {
    ($($name:literal => $function:ident,)*) => {
        [$(($name, (|target| Box::pin($function(target))) as Run),)*]
    };
}

fn all() -> [(&'static str, Run); 17] {
    checks! {
        "connects, with a search path and settings at login" => connects,
        "logs in by SCRAM, encrypted" => passwords,
        "values of many types, a type of one's own, 10 MB" => values,
        "several statements in one text, and some that aren't kept prepared" => texts_without_parameters,
        "statements that come and go, by clients that change servers" => statements_come_and_go,
        "a statement whose table has changed is 0A000, and works when prepared again" => changed_tables,
        "rows as a stream, and one that is left half-way" => rows_as_a_stream,
        "errors have their SQLSTATE, and the connection goes on" => errors,
        "each write is seen by the next read" => own_writes,
        "transactions within each other, isolation and read-only" => transactions,
        "a pool of more clients than there are servers" => many_clients,
        "queries that are given up, and the pool goes on" => given_up_queries,
        "the pool outlives its connections" => lost_connections,
        "migrations go forth and back, under their lock" => migrations,
        "advisory locks" => advisory_locks,
        "LISTEN and NOTIFY" => listen_notify,
        "COPY in and out, given up, and refused" => copies,
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: start it with scripts/drivers.sh"))
}

fn port(name: &str) -> u16 {
    variable(name).parse().expect("a port")
}

fn targets() -> [Target; 2] {
    let standbys = variable("DRIVERS_STANDBY_PORTS");
    let standbys: Vec<u16> = standbys.split(',').map(|port| port.parse().expect("a port")).collect();
    let target = |label, port: u16| Target {
        label,
        port,
        database: format!("{}_{label}", variable("DRIVERS_DATABASE")),
        primary: self::port("DRIVERS_DIRECT_PORT"),
        standbys: standbys.clone(),
        secure: (self::port("DRIVERS_SECURE_PORT"), variable("DRIVERS_PASSWORD")),
        quick: env::var("DRIVERS_QUICK").is_ok_and(|quick| !quick.is_empty()),
    };
    [
        target("direct", port("DRIVERS_DIRECT_PORT")),
        target("proxy", port("DRIVERS_PROXY_PORT")),
    ]
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    LocalSet::new().run_until(run_all()).await
}

async fn run_all() -> ExitCode {
    let only = env::var("DRIVERS_ONLY").unwrap_or_default().to_lowercase();
    let panicked = keep_panics();
    let mut code = ExitCode::SUCCESS;
    for target in targets().map(Arc::new) {
        for (name, run) in all()
            .into_iter()
            .filter(|(name, _)| name.to_lowercase().contains(&only))
        {
            let began = Instant::now();
            let problem = match tokio::time::timeout(LIMIT, spawn_local(run(Arc::clone(&target)))).await {
                Ok(Ok(())) => None,
                Ok(Err(_)) => Some(panicked.lock().expect("nobody panics there").clone()),
                Err(_) => Some(format!("not done after {LIMIT:?}")),
            };
            let word = if problem.is_none() { "ok  " } else { "FAIL" };
            if problem.is_some() {
                code = ExitCode::FAILURE;
            }
            let problem = problem.map(|problem| format!(": {problem}")).unwrap_or_default();
            let seconds = began.elapsed().as_secs_f64();
            println!(
                "{word}  {:<14} {:<6}  {name}{problem}  ({seconds:.1} s)",
                "sqlx", target.label
            );
        }
    }
    println!("done");
    code
}
