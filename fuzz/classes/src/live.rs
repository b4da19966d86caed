//! Runs what both call a read on a standby and on its primary: the server has the last word.
//!
//! On the standby, in READ ONLY autocommit, nothing may be refused that the primary would do. On the primary, in a block that is rolled back,
//! nothing may have drawn a transaction id, taken an advisory lock, or left a cursor or a prepared statement.

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::compare::compare;
use crate::dice::Dice;
use crate::facts::Facts;
use crate::mutate;
use crate::seeds::Seeds;

/// Where it runs, all on 127.0.0.1.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) standby: u16,
    pub(crate) primary: u16,
    pub(crate) user: String,
}

/// What texts may name. The function, the domain and the operator write.
const SCHEMA: &str = "
    create table if not exists t (id int, a int, b text, c int, d text);
    create table if not exists written (at timestamptz default now());
    create sequence if not exists s;
    create or replace function vf() returns int language plpgsql as 'begin insert into written default values; return 1; end';
    create or replace function vf(int) returns int language sql as 'select vf()';
    create or replace function vf(int, int) returns int language sql as 'select vf()';
    do 'begin if not exists (select from pg_type where typname = ''d'') then create domain d as int check (vf(value) > 0); end if; end';
";

/// What leaves something behind on the primary.
const TRACES: &str = "select coalesce(pg_current_xact_id_if_assigned()::text, '')
    || (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())
    || (select count(*) from pg_cursors) || (select count(*) from pg_prepared_statements)";
const NO_TRACES: &str = "000";

/// What a standby says to something that isn't for it (25006, 55000 and 0A000), and what any server says to much else.
const REFUSALS: &[&str] = &["25006", "55000", "0A000", "XX000"];

#[derive(Debug, Default)]
struct Counts {
    run: u64,
    done: u64,
    misses: u64,
    errors: BTreeMap<String, u64>,
}

/// Tries `numbers`, from those seeds that run on the standby as they are.
pub(crate) fn run(cluster: &Cluster, seed: u64, numbers: Range<u64>, seeds: Seeds, facts: &Facts) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let counts = runtime
        .expect("a runtime")
        .block_on(sample(cluster, seed, numbers, seeds, facts));
    match counts {
        Ok(counts) => {
            println!(
                "{} run on the standby, {} without an error, {} misses",
                counts.run, counts.done, counts.misses
            );
            println!("errors: {:?}", counts.errors);
            if counts.misses == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("live: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn connect(port: u16, user: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user(user).dbname("postgres");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    client
        .batch_execute("set statement_timeout = '300ms'; set client_min_messages = error")
        .await?;
    Ok(client)
}

async fn sample(
    cluster: &Cluster,
    seed: u64,
    numbers: Range<u64>,
    mut seeds: Seeds,
    facts: &Facts,
) -> Result<Counts, tokio_postgres::Error> {
    let mut primary = connect(cluster.primary, &cluster.user).await?;
    primary.batch_execute(SCHEMA).await?;
    let mut standby = connect(cluster.standby, &cluster.user).await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while standby.batch_execute("select null::d").await.is_err() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    standby.batch_execute("set default_transaction_read_only = on").await?;
    seeds.statements = running(&standby, std::mem::take(&mut seeds.statements), facts).await;
    eprintln!("{} seeds run on the standby", seeds.statements.len());
    let mut counts = Counts::default();
    for number in numbers {
        let text = mutate::mutant(&seeds, &mut Dice::new(seed, number));
        let comparison = compare(&text, facts);
        if !comparison.is_read() || comparison.opinion.is_none() || comparison.perhaps().is_some() || is_copy(&text) {
            continue;
        }
        counts.run += 1;
        if let Some(miss) = on_standby(&standby, &primary, &text, &mut counts).await {
            counts.misses += 1;
            println!("MISS {miss} (seed {seed}, try {number})\n    {text}");
        } else if let Some(traces) = on_primary(&primary, &text).await {
            counts.misses += 1;
            println!("MISS leaves {traces} on the primary (seed {seed}, try {number})\n    {text}");
            // What it holds is gone with its connection.
            primary = connect(cluster.primary, &cluster.user).await?;
        }
        if standby.is_closed() {
            standby = connect(cluster.standby, &cluster.user).await?;
            standby.batch_execute("set default_transaction_read_only = on").await?;
        }
        if primary.is_closed() {
            primary = connect(cluster.primary, &cluster.user).await?;
        }
    }
    Ok(counts)
}

/// COPY speaks another protocol.
fn is_copy(text: &str) -> bool {
    text.to_lowercase().contains("copy")
}

/// Those seeds that are reads and run as they are.
async fn running(standby: &Client, statements: Vec<Vec<String>>, facts: &Facts) -> Vec<Vec<String>> {
    let mut running = Vec::new();
    for pieces in statements {
        let text = pieces.join(" ");
        if compare(&text, facts).is_read() && !is_copy(&text) && standby.simple_query(&text).await.is_ok() {
            running.push(pieces);
        }
    }
    running
}

fn sqlstate(error: &tokio_postgres::Error) -> String {
    error
        .code()
        .map_or_else(|| "closed".to_owned(), |code| code.code().to_owned())
}

/// What a standby refuses that the primary doesn't.
async fn on_standby(standby: &Client, primary: &Client, text: &str, counts: &mut Counts) -> Option<String> {
    let error = match standby.simple_query(text).await {
        Ok(_) => {
            counts.done += 1;
            return None;
        }
        Err(error) => error,
    };
    let code = sqlstate(&error);
    *counts.errors.entry(code.clone()).or_default() += 1;
    if !REFUSALS.contains(&code.as_str()) {
        return None;
    }
    let there = primary.simple_query(&format!("begin; {text}\n; rollback")).await;
    if there.is_err() {
        let _ = primary.batch_execute("rollback").await;
    }
    match there {
        Err(other) if sqlstate(&other) == code => None,
        _ => Some(format!("{code} on the standby alone")),
    }
}

/// What is left on the primary.
async fn on_primary(primary: &Client, text: &str) -> Option<String> {
    primary.batch_execute("begin").await.ok()?;
    let mut traces = None;
    if primary.simple_query(text).await.is_ok() {
        let answer = primary.simple_query(TRACES).await.unwrap_or_default();
        traces = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
    }
    let _ = primary.batch_execute("rollback").await;
    traces.filter(|traces| traces != NO_TRACES)
}
