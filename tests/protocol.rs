//! The protocol in all its shapes: what comes back through the proxy is what comes back from a server itself, byte by byte.

#![allow(
    clippy::type_complexity,
    reason = "tables of cases say in place what their columns are"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::dice::Dice;
use support::scene::{Scene, until};
use support::wire::*;

/// Two sessions that are told the same: one through the proxy, one with the primary itself, each in a database of its own.
struct Twins {
    proxied: Wire,
    direct: Wire,
}

impl Twins {
    /// Runs `schema` first. The databases are copies, down to the OIDs that replies have in them.
    async fn start(scene: &Scene, schema: &str) -> Twins {
        scene.direct().await.run(schema).await;
        let mut other = Wire::login(scene.primary().port(), "postgres").await;
        let copy = format!("create database {0}_twin template {0}", scene.database);
        until("the session that ran the schema has ended", async || {
            codes(&other.query(&copy).await).is_empty()
        })
        .await;
        scene.caught_up().await;
        Twins::again(scene).await
    }

    /// Two new sessions.
    async fn again(scene: &Scene) -> Twins {
        Twins {
            proxied: scene.wire().await,
            direct: Wire::login(scene.primary().port(), &format!("{}_twin", scene.database)).await,
        }
    }

    /// Sends both the same, takes this many answers up to ReadyForQuery, and answers the two streams of messages.
    async fn tell(&mut self, bytes: &[u8], answers: usize) -> (Vec<Message>, Vec<Message>) {
        self.proxied.send(bytes).await;
        self.direct.send(bytes).await;
        let direct = heard(&mut self.direct, answers).await;
        let proxied = heard(&mut self.proxied, answers).await;
        (without_source(proxied), without_source(direct))
    }

    /// [`Twins::tell`]; says how the answers differ.
    async fn compare(&mut self, what: &str, bytes: &[u8], answers: usize) -> Result<Vec<Message>, String> {
        let (proxied, direct) = self.tell(bytes, answers).await;
        if proxied == direct {
            return Ok(direct);
        }
        let same = proxied.iter().zip(&direct).take_while(|(one, other)| one == other);
        let at = same.count();
        let around = |messages: &[Message]| show(&messages[at.saturating_sub(3)..messages.len().min(at + 9)]);
        Err(format!(
            "{what}, message {at}\nproxied:\n  {}\ndirect:\n  {}",
            around(&proxied),
            around(&direct)
        ))
    }

    /// [`Twins::compare`], and they must not.
    async fn same(&mut self, what: &str, bytes: &[u8], answers: usize) -> Vec<Message> {
        let compared = self.compare(what, bytes, answers).await;
        compared.unwrap_or_else(|difference| panic!("{difference}"))
    }
}

/// This many answers; what is there of them, and a message of its own making, if they don't come.
async fn heard(wire: &mut Wire, answers: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    let listen = async {
        let mut left = answers;
        while left > 0 {
            match wire.next().await {
                Some(message) => {
                    left -= usize::from(message.tag == b'Z');
                    messages.push(message);
                }
                None => return Some("the end of the connection"),
            }
        }
        None
    };
    let missing = tokio::time::timeout(support::PATIENCE / 3, listen).await;
    if let Some(instead) = missing.unwrap_or(Some("silence")) {
        messages.push(Message {
            tag: b'?',
            body: instead.into(),
        });
    }
    messages
}

/// What the proxy says in a server's stead has no line of the server's source in it: 25P01 for COMMIT and ROLLBACK outside of a block, for
/// which no server is asked, and 42P05, since statements' names are the proxy's to know.
fn without_source(messages: Vec<Message>) -> Vec<Message> {
    let cut = |message: Message| match message.tag {
        b'E' | b'N' if matches!(&*message.code(), "25P01" | "42P05") => {
            let fields = b"SVCMDHPcton"
                .iter()
                .filter_map(|&letter| Some((letter, message.field(letter)?)));
            let body = fields.flat_map(|(letter, text)| [&[letter], text.as_bytes(), b"\0"].concat());
            Message {
                body: body.collect(),
                ..message
            }
        }
        _ => message,
    };
    messages.into_iter().map(cut).collect()
}

/// Messages of a batch, end to end.
fn batch(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

const SCHEMA: &str = "
    create table uniq (n int primary key, small int check (small < 10), must text not null default 'x');
    create table child (n int references uniq (n));
    insert into uniq values (1), (2);
    create function fails(int) returns int language plpgsql as $$ begin return 1 / $1; end $$;
    create procedure tells() language plpgsql as $$ begin raise notice 'told %', 42 using hint = 'a hint', detail = 'a detail'; end $$;
    create type mood as enum ('glad', 'sad');
";

/// Requests, and how many answers each gets.
fn requests() -> Vec<(&'static str, Vec<u8>, usize)> {
    let simple = [
        "select 1",
        "select 'a' as one, null as two, 3.5 as three, true as four",
        "select",
        "",
        "  -- only a comment",
        ";;",
        "select 1; select 2; select 3",
        "select 1; select 1/0; select 3",
        "insert into uniq values (50); select 1/0",
        "select n from uniq order by n",
        "selec 1",
        "select 'an umlaut \u{fc}', nowhere from uniq",
        "select * from nowhere",
        "select nothing()",
        "select 1/0",
        "select fails(0)",
        "select 1 / (500 - g) from generate_series(1, 1000) g",
        "insert into uniq values (1)",
        "insert into uniq values (3, 11)",
        "insert into uniq values (3, 1, null)",
        "insert into child values (99)",
        "select 'happy'::mood",
        "select '2000-02-30'::date",
        "insert into uniq values (4, 4, 'four') returning *",
        "update uniq set small = 5 where n = 4 returning small",
        "delete from uniq where n = 4",
        "with gone as (delete from uniq where n = 77 returning n) select count(*) from gone",
        "create table made (n int)",
        "create table made (n int)",
        "create table if not exists made (n int)",
        "drop table made",
        "drop table if exists made",
        "do $$ begin raise notice 'a notice'; raise warning 'a warning'; end $$",
        "do $$ begin raise exception 'all fields' using errcode = 'UE001', detail = 'd', hint = 'h', column = 'c', constraint = 'o', datatype = 't', table = 'b', schema = 's'; end $$",
        "call tells()",
        "begin",
        "begin",
        "insert into uniq values (6)",
        "savepoint s",
        "insert into uniq values (6)",
        "select 1",
        "rollback to s",
        "select count(*) from uniq",
        "rollback",
        "rollback",
        "commit",
        "begin; select 1; commit",
        "begin; select 1/0; commit",
        "rollback",
        "begin isolation level repeatable read; select count(*) from uniq; commit",
        "set datestyle = 'German'",
        "select date '2001-02-03'",
        "show datestyle",
        "reset datestyle",
        "set application_name = 'renamed'",
        "show application_name",
        "reset application_name",
        "set local work_mem = '8MB'",
        "set nonsense = 1",
        "set nonsense.of_mine = 1",
        "show nonsense.of_mine",
        "explain (costs off) select * from uniq where n = 1",
        "explain analyze nonsense",
        "prepare mine(int) as select $1 + 1",
        "execute mine(4)",
        "execute mine('x')",
        "deallocate mine",
        "deallocate mine",
        "begin; declare c cursor for select g from generate_series(1, 10) g; fetch 3 from c; move 2 from c; fetch c; close c; commit",
        "copy (select g, 'v' || g from generate_series(1, 5) g) to stdout",
        "copy (select g, 'v' || g from generate_series(1, 5) g) to stdout (format binary)",
        "copy (select 1 / (3 - g) from generate_series(1, 5) g) to stdout",
        "copy nowhere to stdout",
        "table uniq",
        "values (1, 'a'), (2, 'b')",
        "lock table uniq",
        "vacuum uniq",
        "analyze uniq",
        "begin; vacuum uniq",
        "rollback",
        "truncate child",
        "comment on table uniq is 'unique'",
        "discard plans",
        "select repeat('long', 100000)",
        "select g, repeat('x', 100) from generate_series(1, 2000) g",
    ];
    let mut all: Vec<_> = simple.iter().map(|sql| (*sql, query(sql), 1)).collect();
    let wide: Vec<String> = (0..1000).map(|n| format!("{n} as c{n}")).collect();
    all.push(("1000 columns", query(&format!("select {}", wide.join(","))), 1));
    all.push((
        "unnamed, with parameters",
        batch(&[extended("select $1::int + 1, $2::text", &[Some("41"), None]), sync()]),
        1,
    ));
    all.push(("extended, an error", batch(&[extended("select 1/0", &[]), sync()]), 1));
    all.push((
        "extended, a value that isn't one",
        batch(&[extended("select $1::int", &[Some("x")]), sync()]),
        1,
    ));
    all.push((
        "extended, too few values",
        batch(&[extended("select $1::int", &[]), sync()]),
        1,
    ));
    all.push(("extended, nothing", batch(&[extended("", &[]), sync()]), 1));
    all.push((
        "extended, two statements",
        batch(&[extended("select 1; select 2", &[]), sync()]),
        1,
    ));
    all.push((
        "described and not run",
        batch(&[
            parse("", "select n, must from uniq where n = $1", &[]),
            describe(b'S', ""),
            sync(),
        ]),
        1,
    ));
    all.push((
        "an insert, described",
        batch(&[
            parse("", "insert into uniq values ($1, $2)", &[]),
            describe(b'S', ""),
            sync(),
        ]),
        1,
    ));
    all.push((
        "a parameter's type given",
        batch(&[
            parse("", "select $1", &[20]),
            describe(b'S', ""),
            bind("", "", &[Some("9")]),
            execute("", 0),
            sync(),
        ]),
        1,
    ));
    all.push((
        "a named portal by pieces, in one batch",
        batch(&[
            parse("", "select g from generate_series(1, 5) g", &[]),
            bind("p", "", &[]),
            execute("p", 2),
            execute("p", 2),
            execute("p", 2),
            execute("p", 2),
            close(b'P', "p"),
            sync(),
        ]),
        1,
    ));
    all.push((
        "many statements in one batch",
        batch(&[
            extended("select 1", &[]),
            extended("insert into uniq values (20)", &[]),
            extended("select count(*) from uniq", &[]),
            extended("delete from uniq where n = 20", &[]),
            sync(),
        ]),
        1,
    ));
    all.push((
        "an error in a batch undoes it",
        batch(&[
            extended("insert into uniq values (21)", &[]),
            extended("insert into uniq values (21)", &[]),
            extended("select 1", &[]),
            sync(),
            query("select count(*) from uniq where n = 21"),
        ]),
        2,
    ));
    all.push(("Sync alone", batch(&[sync(), sync()]), 2));
    all.push((
        "Close of what isn't there",
        batch(&[close(b'S', "none"), close(b'P', "none"), sync()]),
        1,
    ));
    all.push((
        "Bind of what isn't there",
        batch(&[bind("", "none", &[]), execute("", 0), sync()]),
        1,
    ));
    all.push((
        "Describe of what isn't there",
        batch(&[describe(b'S', "none"), sync()]),
        1,
    ));
    all.push(("Execute of what isn't there", batch(&[execute("none", 0), sync()]), 1));
    all.push(("a function called", function_call(177, &["40", "2"]), 1));
    all.push(("a function that fails", function_call(154, &["1", "0"]), 1));
    all.push(("a function that isn't", function_call(1, &[]), 1));
    all.push((
        "copy in",
        batch(&[
            query("copy uniq (n) from stdin"),
            copy_data(b"30\n31\n"),
            copy_data(b"32\n"),
            copy_done(),
        ]),
        1,
    ));
    all.push((
        "copy in that fails",
        batch(&[
            query("copy uniq (n) from stdin"),
            copy_data(b"33\nnot a number\n"),
            copy_data(b"34\n"),
            copy_done(),
            query("select 1"),
        ]),
        2,
    ));
    all.push((
        "copy in that the client gives up",
        batch(&[
            query("copy uniq (n) from stdin"),
            copy_data(b"35\n"),
            copy_fail("never mind"),
        ]),
        1,
    ));
    all.push((
        "copy in between others",
        batch(&[
            query("select 1; copy uniq (n) from stdin; select 2"),
            copy_data(b"36\n"),
            copy_done(),
            query("select 3"),
        ]),
        2,
    ));
    all.push((
        "two copies in one query",
        batch(&[
            query("copy uniq (n) from stdin; copy child from stdin"),
            copy_data(b"37\n"),
            copy_done(),
            copy_data(b"37\n"),
            copy_done(),
        ]),
        1,
    ));
    all.push((
        "extended copy in",
        batch(&[
            extended("copy uniq (n) from stdin", &[]),
            copy_data(b"38\n"),
            copy_done(),
            sync(),
        ]),
        1,
    ));
    all.push((
        "extended copy in, with a Sync that is passed over",
        batch(&[
            extended("copy uniq (n) from stdin", &[]),
            sync(),
            copy_data(b"39\n"),
            copy_done(),
            sync(),
        ]),
        1,
    ));
    all.push((
        "extended copy in that fails",
        batch(&[
            extended("copy uniq (n) from stdin", &[]),
            copy_data(b"not a number\n"),
            copy_done(),
            extended("select 1", &[]),
            sync(),
            query("select 2"),
        ]),
        2,
    ));
    all.push((
        "extended copy out",
        batch(&[extended("copy uniq (n) to stdout", &[]), sync()]),
        1,
    ));
    all.push(("what was copied", query("select n from uniq order by n"), 1));
    all.push((
        "a query in the middle of a batch",
        batch(&[parse("", "select 1", &[]), query("select 2"), sync()]),
        2,
    ));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_are_those_of_a_direct_connection() {
    let scene = Scene::start("").await;
    let mut twins = Twins::start(&scene, SCHEMA).await;
    let mut differences = Vec::new();
    for (what, bytes, answers) in requests() {
        if let Err(difference) = twins.compare(what, &bytes, answers).await {
            differences.push(difference);
            twins = Twins::again(&scene).await;
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    drop(twins);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_requests_in_one_write_get_the_same_replies() {
    let scene = Scene::start("").await;
    let mut twins = Twins::start(&scene, SCHEMA).await;
    let (mut bytes, mut answers) = (Vec::new(), 0);
    for (_, more, count) in requests() {
        bytes.extend(more);
        answers += count;
    }
    twins.same("all of them", &bytes, answers).await;
    drop(twins);
    scene.settled().await;
}

/// A statement for a random conversation, and how many parameters it has.
type Statement = (&'static str, usize);

const STATEMENTS: &[Statement] = &[
    ("select 1", 0),
    ("select $1::int + 1", 1),
    ("select 'x'::text, 2 as two", 0),
    ("select g from generate_series(1, 4) g", 0),
    ("select 1 / $1::int", 1),
    ("select n, must from uniq where n = $1", 1),
    ("select count(*) from uniq", 0),
    ("insert into uniq (n) values ($1)", 1),
    ("update uniq set must = must || 'y' where n = $1 returning must", 1),
    ("delete from uniq where n = $1", 1),
    ("", 0),
    ("selec nothing", 0),
    ("select * from nowhere", 0),
    ("begin", 0),
    ("commit", 0),
    ("rollback", 0),
    ("savepoint s", 0),
    ("rollback to s", 0),
    ("show datestyle", 0),
    ("set datestyle = 'German'", 0),
    ("reset datestyle", 0),
];

/// One write of a random conversation: what it says, and how many answers it gets.
struct Saying {
    told: Vec<String>,
    bytes: Vec<u8>,
    answers: usize,
}

/// What random conversations remember of what they have said, so that most of it makes sense.
#[derive(Default)]
struct Memory {
    /// What each name was parsed for last.
    named: std::collections::HashMap<&'static str, Statement>,
}

impl Saying {
    fn say(&mut self, told: String, message: Vec<u8>) {
        self.told.push(told);
        self.bytes.extend(message);
    }

    /// Some messages and a Sync, or more of that.
    fn random(dice: &mut Dice, memory: &mut Memory) -> Saying {
        let mut saying = Saying {
            told: Vec::new(),
            bytes: Vec::new(),
            answers: 0,
        };
        for _ in 0..=dice.below(3) {
            // What a Query or a failed Parse leaves of the unnamed statement nobody should ask; within its batch it is sure.
            let mut unnamed = None;
            for _ in 0..dice.below(7) {
                saying.random_message(dice, memory, &mut unnamed);
            }
            saying.say("Sync".into(), sync());
            saying.answers += 1;
            if dice.once_in(4) {
                let (sql, _) = STATEMENTS[dice.below(STATEMENTS.len())];
                let sql = sql.replace("$1", "7");
                saying.say(format!("Query {sql}"), query(&sql));
                saying.answers += 1;
            }
        }
        saying
    }

    fn random_message(&mut self, dice: &mut Dice, memory: &mut Memory, unnamed: &mut Option<Statement>) {
        const VALUES: [&str; 6] = ["0", "1", "2", "7", "8", "x"];
        let name = dice.of(&["", "a", "b", "c"]);
        let portal = dice.of(&["", "", "p"]);
        let known = match name {
            "" => *unnamed,
            name => memory.named.get(name).copied(),
        };
        match (dice.below(16), known) {
            (0..=3, _) => {
                let mut statement = STATEMENTS[dice.below(STATEMENTS.len())];
                // Which of two faults is told first, a name that is taken or a text that is wrong, is another test's.
                if !name.is_empty() && statement.0.ends_with("nothing") || statement.0.ends_with("nowhere") {
                    statement = STATEMENTS[0];
                }
                match name {
                    "" => *unnamed = Some(statement),
                    name => drop(memory.named.insert(name, statement)),
                }
                self.say(format!("Parse {name:?} {}", statement.0), parse(name, statement.0, &[]));
            }
            (4..=7, Some((sql, count))) => {
                let value = dice.of(&VALUES);
                let values = vec![Some(value); count];
                self.say(
                    format!("Bind {portal:?} {name:?} {value} (lately {sql})"),
                    bind(portal, name, &values),
                );
            }
            (8, Some(_)) => self.say(format!("Describe {name:?}"), describe(b'S', name)),
            (9, _) => self.say(format!("Describe portal {portal:?}"), describe(b'P', portal)),
            (10 | 11, _) => self.say(format!("Execute {portal:?}"), execute(portal, 0)),
            (12, _) => self.say(format!("Execute {portal:?} 1"), execute(portal, 1)),
            (13, _) if !name.is_empty() => self.say(format!("Close {name:?}"), close(b'S', name)),
            (14, _) => self.say(format!("Close portal {portal:?}"), close(b'P', portal)),
            (15, _) => self.say("Flush".into(), flush()),
            _ => {}
        }
    }
}

/// What a client can tell of an answer. In a failed block, a Describe or Bind of a statement that the connection lacks is refused at the
/// Parse that the proxy puts before it: the same error, from another line of the server's source.
/// And of two statements that have one text, an error may name the other.
fn told_alike(messages: &[Message]) -> Vec<(u8, Vec<u8>)> {
    let tell = |message: &Message| match message.tag {
        b'E' if ["25P02", "08P01"].contains(&message.code().as_str()) => (b'E', message.code().into_bytes()),
        tag => (tag, message.body.clone()),
    };
    messages.iter().map(tell).collect()
}

/// Holds one random conversation with both. What went before, and how the answers differ.
async fn converse(scene: &Scene, seed: u64, at_once: bool) -> Result<(), String> {
    let mut twins = Twins::again(scene).await;
    // Another session's writes may not be on a standby yet; behind a write of its own, this one reads where they are.
    twins
        .same("the beginning", &query("delete from uniq where false"), 1)
        .await;
    let mut dice = Dice::new(seed);
    let mut memory = Memory::default();
    let mut told = Vec::new();
    let mut pending = (Vec::new(), 0);
    let count = 6;
    for turn in 0..count {
        let saying = Saying::random(&mut dice, &mut memory);
        told.extend(saying.told);
        pending.0.extend(saying.bytes);
        pending.1 += saying.answers;
        if at_once && turn + 1 < count {
            continue;
        }
        let (bytes, answers) = std::mem::take(&mut pending);
        let (proxied, direct) = twins.tell(&bytes, answers).await;
        if told_alike(&proxied) != told_alike(&direct) {
            return Err(format!(
                "seed {seed}, {}\nsaid:\n  {}\nproxied:\n  {}\ndirect:\n  {}",
                if at_once { "at once" } else { "in turns" },
                told.join("\n  "),
                show(&proxied),
                show(&direct)
            ));
        }
        told.push("-- answered".into());
    }
    twins.same("the end", &query("rollback"), 1).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_conversations_get_a_direct_connections_replies() {
    let scene = Scene::start("[pool]\nsize = 3\n").await;
    drop(Twins::start(&scene, SCHEMA).await);
    let mut differences = Vec::new();
    for seed in 0..150 {
        for at_once in [false, true] {
            if let Err(difference) = converse(&scene, seed, at_once).await {
                differences.push(difference);
            }
        }
        assert!(differences.len() < 8, "{}", differences.join("\n\n"));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    scene.settled().await;
}

/// As `wire`, a query that runs on the primary: statements are prepared and blocks begun on connections of the same pool.
const ON_PRIMARY: &str = "/* pgsluice: primary */";

/// A client that holds one of the pool's connections to the primary until it is dropped.
async fn holder(scene: &Scene) -> Wire {
    let mut holder = scene.wire().await;
    holder.run("begin").await;
    holder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_there_wherever_its_batches_run() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let mut client = scene.wire().await;
    let sql = format!("{ON_PRIMARY} select pg_backend_pid(), $1::int");
    let prepared = client
        .ask(&batch(&[parse("mine", &sql, &[]), describe(b'S', "mine"), sync()]))
        .await;
    assert_eq!(tags(&prepared), "1tTZ");
    let mut processes = std::collections::HashSet::new();
    for round in 0..40 {
        // What is free changes from round to round, and so does where the batch runs.
        let held = if round % 2 == 0 {
            Some(holder(&scene).await)
        } else {
            None
        };
        let other = if round % 3 == 0 && held.is_none() {
            Some(holder(&scene).await)
        } else {
            None
        };
        let number = round.to_string();
        let answer = client
            .ask(&batch(&[bind("", "mine", &[Some(&number)]), execute("", 0), sync()]))
            .await;
        assert_eq!(tags(&answer), "2DCZ", "{}", show(&answer));
        let cells = &rows(&answer)[0];
        assert_eq!(cells[1].as_deref(), Some(&*number));
        processes.extend(cells[0].clone());
        let described = client.ask(&batch(&[describe(b'S', "mine"), sync()])).await;
        assert_eq!(described, prepared[1..], "round {round}");
        drop((held, other));
    }
    assert!(processes.len() > 1, "it ran on one connection only");
    drop(client);
    scene.settled().await;
}

/// Descriptions of so many parameters or columns don't come in one piece. The client sees none of those that the proxy asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_with_long_descriptions_is_there_wherever_it_runs() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let many = |count: usize, item: &dyn Fn(usize) -> String| (1..=count).map(item).collect::<Vec<_>>().join(",");
    let columns = many(1600, &|n| format!("{n} as column_{n:0>50}"));
    let parameters = many(65_535, &|n| format!("${n}::text"));
    let values = vec![None; 65_535];
    for (sql, values) in [
        (format!("{ON_PRIMARY} select {columns}"), &values[..0]),
        (
            format!("{ON_PRIMARY} select cardinality(array[{parameters}])"),
            &values[..],
        ),
    ] {
        let mut client = prepared(&scene, &sql).await;
        for round in 0..4 {
            let held = holder(&scene).await;
            let other = if round % 2 == 0 {
                Some(holder(&scene).await)
            } else {
                None
            };
            drop(held);
            let answer = client
                .ask(&batch(&[bind("", "mine", values), execute("", 0), sync()]))
                .await;
            assert_eq!(tags(&answer), "2DCZ", "round {round}");
            drop(other);
        }
    }
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unnamed_statement_outlives_its_batch() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let mut client = scene.wire().await;
    let mut other = scene.wire().await;
    // Beyond a quarter of a megabyte a message is passed on in parts.
    for size in [0, 10_000, 300_000, 2_000_000] {
        let sql = format!(
            "{ON_PRIMARY} select '{size}'::text, $1::text, length('{}')",
            "x".repeat(size)
        );
        let answer = client.ask(&batch(&[parse("", "select 'before'", &[]), sync()])).await;
        assert_eq!(tags(&answer), "1Z");
        let answer = client.ask(&batch(&[parse("", &sql, &[]), sync()])).await;
        assert_eq!(tags(&answer), "1Z", "{size}: {}", show(&answer));
        for moved in [false, true] {
            let held = if moved { Some(holder(&scene).await) } else { None };
            // Somebody else's unnamed statement on the connection must not be taken for ours.
            let answer = other
                .ask(&batch(&[
                    extended(&format!("{ON_PRIMARY} select 'strange'"), &[]),
                    sync(),
                ]))
                .await;
            assert_eq!(firsts(&answer), ["strange"]);
            let answer = client
                .ask(&batch(&[bind("", "", &[Some("v")]), execute("", 0), sync()]))
                .await;
            let expected = [size.to_string(), "v".into(), size.to_string()].map(Some);
            assert_eq!(rows(&answer), [expected], "{size} {moved}: {}", show(&answer));
            drop(held);
        }
    }
    drop((client, other));
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_text_under_a_name_is_one_clients_only() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let long = |word: &str| format!("{ON_PRIMARY} select '{word}'::text, length('{}')", "x".repeat(400_000));
    let (mut one, mut two) = (scene.wire().await, scene.wire().await);
    let bound = batch(&[bind("", "same", &[]), execute("", 0), sync()]);
    let answer = one.ask(&batch(&[parse("same", &long("one"), &[]), sync()])).await;
    assert_eq!(tags(&answer), "1Z", "{}", show(&answer));
    let answer = two.ask(&bound).await;
    assert_eq!(codes(&answer), ["26000"], "{}", show(&answer));
    let answer = two.ask(&batch(&[parse("same", &long("two"), &[]), sync()])).await;
    assert_eq!(tags(&answer), "1Z", "{}", show(&answer));
    for moved in [false, true] {
        let held = if moved { Some(holder(&scene).await) } else { None };
        assert_eq!(firsts(&one.ask(&bound).await), ["one"]);
        assert_eq!(firsts(&two.ask(&bound).await), ["two"]);
        drop(held);
    }
    drop((one, two));
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_is_answered_without_its_sync() {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    client.run("create table flushed (n int)").await;
    scene.caught_up().await;
    for (sql, complete) in [
        ("select $1::int", "SELECT 1"),
        ("insert into flushed values ($1) returning n", "INSERT 0 1"),
    ] {
        client
            .send(&batch(&[parse("", sql, &[]), describe(b'S', ""), flush()]))
            .await;
        assert_eq!(tags(&client.until(b'T').await), "1tT", "{sql}");
        client
            .send(&batch(&[bind("", "", &[Some("5")]), execute("", 0), flush()]))
            .await;
        let answer = client.until(b'C').await;
        assert_eq!(tags(&answer), "2DC", "{sql}");
        assert_eq!(answer[2].command(), complete);
        assert_eq!(tags(&client.ask(&sync()).await), "Z");
        // What the proxy answers by itself, since the server has the statement already or keeps it.
        let run = [extended(sql, &[Some("5")]), flush()];
        let again = [parse("mine", sql, &[]), flush()];
        let closed = [close(b'S', "mine"), flush()];
        client.ask(&batch(&[parse("mine", sql, &[]), sync()])).await;
        client.ask(&batch(&[close(b'S', "mine"), sync()])).await;
        client.send(&batch(&run)).await;
        assert_eq!(tags(&client.until(b'C').await), "12TDC", "{sql}");
        client.send(&batch(&again)).await;
        assert_eq!(tags(&client.until(b'1').await), "1", "{sql}");
        client.send(&batch(&closed)).await;
        assert_eq!(tags(&client.until(b'3').await), "3", "{sql}");
        assert_eq!(tags(&client.ask(&sync()).await), "Z");
        // The whole batch and its Flush in one write with what follows.
        let answer = client
            .ask(&batch(&[
                extended(sql, &[Some("6")]),
                flush(),
                extended(sql, &[Some("7")]),
                flush(),
                sync(),
            ]))
            .await;
        assert_eq!(tags(&answer), "12TDC12TDCZ", "{sql}: {}", show(&answer));
    }
    assert_eq!(client.value("select count(*) from flushed").await, "4");
    // An error too, wherever in the batch.
    for sent in [
        parse("", "select * from nowhere", &[]),
        parse("", "selec", &[]),
        extended("select * from nowhere", &[]),
        extended("select 1 / $1::int", &[Some("0")]),
        batch(&[
            extended("select 1", &[]),
            extended("insert into flushed values ('x')", &[]),
        ]),
        bind("", "unknown", &[]),
        describe(b'S', "unknown"),
    ] {
        client.send(&batch(&[sent, flush()])).await;
        let answer = client.until(b'E').await;
        assert!(!codes(&answer).is_empty(), "{}", show(&answer));
        client.send(&batch(&[extended("select 2", &[]), flush()])).await;
        assert_eq!(tags(&client.ask(&sync()).await), "Z");
    }
    assert_eq!(client.value("select count(*) from flushed").await, "4");
    drop(client);
    scene.settled().await;
}

/// A server runs each message as it comes, and says at once that one failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_runs_without_its_sync_if_that_does_not_come() {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    client.run("create table lingered (n int primary key)").await;
    client.run("insert into lingered values (1)").await;
    let insert = |n| extended("insert into lingered values ($1)", &[Some(n)]);
    for begins in ["begin", "listen lingered"] {
        client.run(begins).await;
        client.send(&batch(&[insert("2"), insert("1"), insert("3")])).await;
        let answer = client.until(b'E').await;
        assert_eq!(tags(&answer), "12nC12nE", "{begins}: {}", show(&answer));
        assert_eq!(codes(&answer), ["23505"]);
        let answer = client.ask(&batch(&[insert("4"), sync()])).await;
        assert_eq!(tags(&answer), "Z", "{begins}: {}", show(&answer));
        client.run("rollback").await;
        assert_eq!(client.value("select count(*) from lingered").await, "1");
    }
    client.run("unlisten *").await;
    // What it does is done before its Sync comes, and its answer comes with that.
    client.send(&insert("2")).await;
    until("the batch runs", async || {
        scene
            .backends("query like 'insert into lingered%' and state = 'active'")
            .await
            == ["1", "0"]
    })
    .await;
    for read in ["select $1::int", "select count(*) from lingered where n < $1"] {
        let messages = [
            parse("", read, &[]),
            bind("", "", &[Some("5")]),
            describe(b'P', ""),
            execute("", 0),
            sync(),
        ];
        for message in &messages {
            client.send(message).await;
            // Longer than a batch is waited for.
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        let answer = client.answer().await;
        assert!(tags(&answer).ends_with("12TDCZ"), "{read}: {}", show(&answer));
    }
    // A block on a standby waits: what hasn't run can still move to the primary.
    client.run("begin read only").await;
    client.send(&extended("select nextval('lingered_s')", &[])).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let answer = client.ask(&sync()).await;
    assert_eq!(codes(&answer), ["42P01"], "{}", show(&answer));
    client.run("rollback").await;
    assert_eq!(client.value("select count(*) from lingered").await, "2");
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_reads_before_its_flush_may_write_after_it() {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    client.run("create table flushed (n int)").await;
    scene.caught_up().await;
    client.send(&batch(&[extended("select 1", &[]), flush()])).await;
    assert_eq!(tags(&client.until(b'C').await), "12TDC");
    let answer = client
        .ask(&batch(&[extended("insert into flushed values (1)", &[]), sync()]))
        .await;
    assert_eq!(tags(&answer), "12nCZ", "{}", show(&answer));
    assert_eq!(client.value("select count(*) from flushed").await, "1");
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_behind_a_failed_one_run() {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    client.run("create table made (n int)").await;
    let insert = |n: &str| extended("insert into made values ($1::int)", &[Some(n)]);
    let answer = |sql: &str| extended(sql, &[]);
    for round in 0..5 {
        client
            .send(&batch(&[
                insert("1"),
                sync(),
                insert("2"),
                insert("no number"),
                insert("3"),
                sync(),
                insert("4"),
                sync(),
                answer("select 1/0"),
                sync(),
                answer("select count(*) from made"),
                sync(),
            ]))
            .await;
        let answers = client.answers(5).await;
        let seen: Vec<String> = answers.iter().map(|answer| tags(answer)).collect();
        assert_eq!(seen, ["12nCZ", "12nC1EZ", "12nCZ", "1EZ", "12TDCZ"], "{round}");
        assert_eq!(codes(&answers.concat()), ["22P02", "22012"]);
        assert_eq!(firsts(&answers[4]), [(2 * (round + 1)).to_string()]);
    }
    // Three queries in one write, and the one in the middle fails.
    client
        .send(&batch(&[query("select 'a'"), query("select 1/0"), query("select 'b'")]))
        .await;
    let answers = client.answers(3).await;
    assert_eq!(
        (firsts(&answers[0]), codes(&answers[1]), firsts(&answers[2])),
        (vec!["a".into()], vec!["22012".into()], vec!["b".into()])
    );
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_error_passes_over_has_not_happened() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    drop(Twins::start(&scene, SCHEMA).await);
    let mut twins = Twins::again(&scene).await;
    let fails = execute("nope", 0);
    let run = |name: &str| batch(&[bind("", name, &[]), execute("", 0)]);
    let kept = parse("kept", &format!("{ON_PRIMARY} select 'kept'"), &[]);
    twins.same("prepared", &batch(&[kept, sync()]), 1).await;
    let new = || parse("new", &format!("{ON_PRIMARY} select 'new'"), &[]);
    let one_write = [
        (
            "a Parse passed over can be sent again",
            batch(&[fails.clone(), new(), run("new"), sync(), new(), run("new"), sync()]),
        ),
        (
            "a Close passed over leaves the statement",
            batch(&[fails.clone(), close(b'S', "kept"), sync(), run("kept"), sync()]),
        ),
        (
            "a Close passed over, and the name is taken",
            batch(&[
                fails.clone(),
                close(b'S', "kept"),
                sync(),
                parse("kept", "select 'other'", &[]),
                sync(),
                run("kept"),
                sync(),
            ]),
        ),
        (
            "a Bind passed over",
            batch(&[fails.clone(), run("kept"), sync(), run("kept"), sync()]),
        ),
        (
            "a Describe passed over",
            batch(&[
                fails.clone(),
                describe(b'S', "kept"),
                sync(),
                run("kept"),
                describe(b'S', "new"),
                sync(),
            ]),
        ),
    ];
    for (what, bytes) in one_write {
        let answers = bytes_of_sync(&bytes);
        // On a connection that has the statements, and on one that hasn't.
        for moved in [false, true] {
            let held = if moved { Some(holder(&scene).await) } else { None };
            twins.same(&format!("{what}, moved: {moved}"), &bytes, answers).await;
            twins
                .same("new is closed", &batch(&[close(b'S', "new"), sync()]), 1)
                .await;
            drop(held);
        }
    }
    drop(twins);
    scene.settled().await;
}

/// Syncs in a run of messages.
fn bytes_of_sync(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some((tag, length)) = header(bytes) {
        count += usize::from(tag == b'S');
        bytes = &bytes[length + 1..];
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_text_may_have_many_names() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let mut client = scene.wire().await;
    let sql = format!("{ON_PRIMARY} select 'one text'");
    let run = |name: &str| batch(&[bind("", name, &[]), execute("", 0)]);
    let answer = client
        .ask(&batch(&[
            parse("a", &sql, &[]),
            parse("b", &sql, &[]),
            run("a"),
            run("b"),
            close(b'S', "a"),
            run("b"),
            sync(),
        ]))
        .await;
    assert_eq!(tags(&answer), "112DC2DC32DCZ", "{}", show(&answer));
    let answer = client.ask(&batch(&[run("b"), run("a"), sync()])).await;
    assert_eq!(codes(&answer), ["26000"], "{}", show(&answer));
    assert_eq!(firsts(&answer), ["one text"]);
    // The text stays on the connection when its last name is closed, and can be named anew.
    let answer = client
        .ask(&batch(&[
            close(b'S', "b"),
            sync(),
            parse("b", &sql, &[]),
            sync(),
            run("b"),
            sync(),
        ]))
        .await;
    assert_eq!(tags(&answer), "3Z");
    assert_eq!(tags(&client.answers(2).await.concat()), "1Z2DCZ");
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_taken_freed_and_unknown_as_on_a_server() {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    let run = |name: &str| batch(&[bind("", name, &[]), execute("", 0)]);
    let answer = client
        .ask(&batch(&[
            parse("n", "select 'first'", &[]),
            parse("n", "select 'second'", &[]),
            sync(),
        ]))
        .await;
    assert_eq!((tags(&answer), codes(&answer)), ("1EZ".into(), vec!["42P05".into()]));
    let answer = client.ask(&batch(&[run("n"), sync()])).await;
    assert_eq!(firsts(&answer), ["first"]);
    let answer = client
        .ask(&batch(&[
            close(b'S', "n"),
            parse("n", "select 'second'", &[]),
            run("n"),
            sync(),
        ]))
        .await;
    assert_eq!(
        (tags(&answer), firsts(&answer)),
        ("312DCZ".into(), vec!["second".into()])
    );
    client.run("deallocate n").await;
    assert_eq!(codes(&client.ask(&batch(&[run("n"), sync()])).await), ["26000"]);
    assert_eq!(codes(&client.ask(&batch(&[run("never"), sync()])).await), ["26000"]);
    assert_eq!(
        codes(&client.ask(&batch(&[describe(b'S', "never"), sync()])).await),
        ["26000"]
    );
    client.ask(&batch(&[parse("n", "select 'third'", &[]), sync()])).await;
    client.run("deallocate all").await;
    assert_eq!(codes(&client.ask(&batch(&[run("n"), sync()])).await), ["26000"]);
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_name_the_clients_own_statement() {
    let scene = Scene::start("").await;
    drop(Twins::start(&scene, SCHEMA).await);
    let mut twins = Twins::again(&scene).await;
    let prepared = batch(&[parse("mine", "select $1::int", &[]), sync()]);
    twins.same("prepared", &prepared, 1).await;
    let unbound = batch(&[bind("", "mine", &[]), execute("", 0), sync()]);
    twins.same("too few values", &unbound, 1).await;
    drop(twins);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_statements_than_a_connection_keeps_are_all_there() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    let mut client = scene.wire().await;
    let name = |n: usize| format!("s{n}");
    for at in 0..6 {
        let many: Vec<_> = (at * 120..(at + 1) * 120)
            .map(|n| parse(&name(n), &format!("{ON_PRIMARY} select {n}"), &[]))
            .collect();
        let answer = client.ask(&batch(&[many.concat(), sync()])).await;
        assert_eq!(tags(&answer), format!("{}Z", "1".repeat(120)), "{}", show(&answer));
    }
    for n in (0..720).rev().step_by(7).chain(0..5) {
        let answer = client
            .ask(&batch(&[bind("", &name(n), &[]), execute("", 0), sync()]))
            .await;
        assert_eq!(firsts(&answer), [n.to_string()], "{}", show(&answer));
    }
    let kept: usize = client
        .value(&format!("{ON_PRIMARY} select count(*) from pg_prepared_statement()"))
        .await
        .parse()
        .expect("a count");
    // The oldest make room for the next; a batch isn't cut for it.
    assert!(kept <= 500 + 120, "the connection keeps {kept}");
    let all: Vec<_> = (0..720)
        .map(|n| batch(&[bind("", &name(n), &[]), execute("", 0)]))
        .collect();
    let answer = client.ask(&batch(&[all.concat(), sync()])).await;
    let expected: Vec<_> = (0..720).map(|n: i32| n.to_string()).collect();
    assert_eq!(firsts(&answer), expected, "{:?}", codes(&answer));
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_portal_is_read_by_pieces_in_a_block() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let mut client = scene.wire().await;
    client.run("begin").await;
    let open = batch(&[
        parse("", "select g from generate_series(1, 7) g", &[]),
        bind("p", "", &[]),
        describe(b'P', "p"),
        execute("p", 3),
        sync(),
    ]);
    assert_eq!(tags(&client.ask(&open).await), "12TDDDsZ");
    let mut other = scene.wire().await;
    for expected in ["DDDsZ", "DCZ"] {
        assert_eq!(other.value(&format!("{ON_PRIMARY} select 1")).await, "1");
        assert_eq!(tags(&client.ask(&batch(&[execute("p", 3), sync()])).await), expected);
    }
    assert_eq!(tags(&client.ask(&batch(&[describe(b'P', "p"), sync()])).await), "TZ");
    client.run("commit").await;
    let gone = client.ask(&batch(&[execute("p", 3), sync()])).await;
    assert_eq!(codes(&gone), ["34000"]);
    drop((client, other));
    scene.settled().await;
}

/// Rows of 100 bytes that tell which they are.
fn numbered(n: usize) -> String {
    format!("{n:08}{}\n", "x".repeat(91))
}

const TWENTY_MB: usize = 20_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_are_copied_in_and_out_unchanged() {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    client.run("create table big (line text)").await;
    let lines = TWENTY_MB / 100;
    // Lines and messages end in different places.
    let data: Vec<u8> = (0..lines).flat_map(|n| numbered(n).into_bytes()).collect();
    for (extended_copy, piece) in [(false, 8191), (true, 1_000_003), (false, TWENTY_MB)] {
        client.run("truncate big").await;
        let copy = "copy big from stdin";
        if extended_copy {
            client.send(&batch(&[extended(copy, &[]), sync()])).await;
        } else {
            client.send(&query(copy)).await;
        }
        client.until(b'G').await;
        for chunk in data.chunks(piece) {
            client.send(&copy_data(chunk)).await;
        }
        client.send(&copy_done()).await;
        if extended_copy {
            client.send(&sync()).await;
        }
        let answer = client.answer().await;
        assert_eq!(tags(&answer), "CZ", "{}", show(&answer));
        assert_eq!(answer[0].command(), format!("COPY {lines}"));
        let out = if extended_copy {
            batch(&[
                extended("copy (select line from big order by line) to stdout", &[]),
                sync(),
            ])
        } else {
            query("copy (select line from big order by line) to stdout")
        };
        client.send(&out).await;
        client.until(b'H').await;
        let mut at = 0;
        loop {
            let message = client.expect().await;
            if message.tag != b'd' {
                assert_eq!(message.tag, b'c', "{message}");
                break;
            }
            assert!(data[at..].starts_with(&message.body), "at byte {at}");
            at += message.body.len();
        }
        assert_eq!(at, data.len());
        assert_eq!(tags(&client.answer().await), "CZ");
    }
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_given_up_and_the_session_goes_on() {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    client.run("create table copied (n int)").await;
    for extended_copy in [false, true] {
        let begin = if extended_copy {
            batch(&[extended("copy copied from stdin", &[]), flush()])
        } else {
            query("copy copied from stdin")
        };
        let end = if extended_copy { sync() } else { Vec::new() };
        client.send(&begin).await;
        client.until(b'G').await;
        client
            .send(&batch(&[
                copy_data(b"1\n2\n"),
                copy_fail("on second thoughts"),
                end.clone(),
            ]))
            .await;
        let answer = client.answer().await;
        assert_eq!(codes(&answer), ["57014"], "{}", show(&answer));
        assert!(answer[0].field(b'M').expect("words").contains("on second thoughts"));
        // The server fails while more is on its way.
        client.send(&begin).await;
        client.until(b'G').await;
        client.send(&copy_data(b"3\nnot a number\n")).await;
        assert_eq!(client.expect().await.code(), "22P02");
        client
            .send(&batch(&[
                copy_data(&b"4\n".repeat(100_000)),
                copy_data(b"5\n"),
                copy_done(),
                end,
            ]))
            .await;
        assert_eq!(tags(&client.answer().await), "Z");
        assert_eq!(client.value("select count(*) from copied").await, "0");
    }
    drop(client);
    scene.settled().await;
}

/// `length` bytes in hexadecimal, as a bytea's text.
fn hex(length: usize) -> String {
    let mut text = String::with_capacity(2 + 2 * length);
    text.push_str("\\x");
    for n in 0..length {
        let byte = (n * 31 + n / 251) as u8;
        text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
    }
    text
}

/// A bytea of this length goes there and back, as a parameter, in a statement's text, and from a table.
async fn bytea_there_and_back(length: usize) {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    let text = hex(length);
    client.run("create table big (b bytea)").await;
    let answer = client
        .ask(&batch(&[
            extended("insert into big values ($1::bytea) returning b", &[Some(&text)]),
            sync(),
        ]))
        .await;
    assert!(firsts(&answer) == [&*text], "a parameter: {}", show(&answer));
    let answer = client.query(&format!("select '{text}'::bytea")).await;
    assert!(firsts(&answer) == [&*text], "a statement's text: {}", show(&answer));
    let mut values = client.query("select b from big").await;
    assert!(firsts(&values) == [&*text], "a table: {}", show(&values));
    values.clear();
    scene.caught_up().await;
    let answer = client.query("/* pgsluice: standby */ select b from big").await;
    assert!(firsts(&answer) == [&*text], "a standby: {}", show(&answer));
    drop(client);
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_of_bytea_go_there_and_back() {
    bytea_there_and_back(TWENTY_MB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute and two gigabytes"]
async fn two_hundred_megabytes_of_bytea_go_there_and_back() {
    bytea_there_and_back(10 * TWENTY_MB).await;
}

/// Asks for a statement's end, as another connection.
async fn cancel(scene: &Scene, key: &(i32, Vec<u8>)) {
    let mut canceller = Wire::open(scene.proxy.port).await;
    canceller.send(&cancel_request(key)).await;
    assert!(
        canceller.rest_of_bytes().await.is_empty(),
        "a cancel request has no answer"
    );
}

/// Waits until the test's own sleep runs on a node.
#[track_caller]
fn sleeping(scene: &Scene, count: usize) -> impl Future<Output = ()> {
    until("as many sleep as should", async move || {
        let running = scene.backends("query like '%pg_sleep%' and state = 'active'").await;
        running
            .iter()
            .map(|count| count.parse::<usize>().expect("a count"))
            .sum::<usize>()
            == count
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_ends_its_own_clients_statement_only() {
    let scene = Scene::start("").await;
    let (mut client, mut other) = (scene.wire().await, scene.wire().await);
    let right = client.key.clone();
    let mut wrong = right.clone();
    wrong.1[0] ^= 1;
    let mut short = right.clone();
    short.1.pop();
    let mut stranger = right.clone();
    stranger.0 ^= 1;
    for sql in [
        "select pg_sleep(60)",
        "create table asleep as select pg_sleep(60)::text",
    ] {
        client.send(&query(sql)).await;
        other.send(&query("select pg_sleep(60)")).await;
        sleeping(&scene, 2).await;
        for key in [&wrong, &short, &stranger, &(0, vec![0; 4]), &(right.0, Vec::new())] {
            let mut canceller = Wire::open(scene.proxy.port).await;
            canceller.send(&cancel_request(key)).await;
            canceller.rest_of_bytes().await;
        }
        sleeping(&scene, 2).await;
        for one in [&mut client, &mut other] {
            cancel(&scene, &one.key.clone()).await;
            let answer = one.answer().await;
            assert_eq!(codes(&answer), ["57014"], "{sql}: {}", show(&answer));
        }
        sleeping(&scene, 0).await;
        // With nothing under way there is nothing to cancel, now or later.
        cancel(&scene, &right).await;
        assert_eq!(client.value("select 1").await, "1");
    }
    // In a block, and in a batch.
    client.run("begin").await;
    client
        .send(&batch(&[extended("select pg_sleep(60)", &[]), sync()]))
        .await;
    sleeping(&scene, 1).await;
    cancel(&scene, &right).await;
    let answer = client.answer().await;
    assert_eq!(codes(&answer), ["57014"]);
    assert_eq!(answer.last().expect("ready").body, b"E");
    client.run("rollback").await;
    drop((client, other));
    scene.settled().await;
}

/// Servers cut long names with a notice, and change letters that aren't ASCII.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_told_what_the_server_makes_of_the_applications_name() {
    let scene = Scene::start("").await;
    let but_its_key = |wire: &Wire| -> Vec<Message> {
        let greeting = wire.greeting.iter().filter(|message| message.tag != b'K');
        greeting.cloned().collect()
    };
    for name in [
        "short",
        &"x".repeat(63),
        &"y".repeat(64),
        "Bestellungen f\u{fc}r \u{fc}bermorgen",
        "tab\tbed",
    ] {
        let parameters = [
            ("user", "postgres"),
            ("database", &*scene.database),
            ("application_name", name),
        ];
        let direct = Wire::login_with(scene.primary().port(), &parameters).await;
        // The first has a server asked; of the others it is known.
        for _ in 0..3 {
            let mut proxied = Wire::login_with(scene.proxy.port, &parameters).await;
            assert_eq!(but_its_key(&proxied), but_its_key(&direct), "{name:?}");
            let answer = proxied.query("show application_name").await;
            assert_eq!(tags(&answer), "TDCZ", "{}", show(&answer));
            assert_eq!(
                firsts(&answer)[0],
                direct.parameter("application_name").expect("reported")
            );
        }
    }
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_cancel_request_never_hits_the_connections_next_user() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    let mut victim = scene.wire().await;
    let key = victim.key.clone();
    let port = scene.proxy.port;
    let enough = Arc::new(AtomicBool::new(false));
    let shots = tokio::spawn({
        let enough = Arc::clone(&enough);
        async move {
            while !enough.load(Ordering::Relaxed) {
                let mut canceller = Wire::open(port).await;
                let _ = canceller.try_send(&cancel_request(&key)).await;
                canceller.rest_of_bytes().await;
            }
        }
    });
    let mut bystander = scene.wire().await;
    let (mut hits, mut rounds) = (0, 0);
    let deadline = Instant::now() + support::PATIENCE;
    while hits < 20 || rounds < 100 {
        assert!(Instant::now() < deadline, "{hits} hits in {rounds} rounds");
        // The pool's only connection to the primary changes hands with every statement.
        let answer = victim.query(&format!("{ON_PRIMARY} select pg_sleep(0.002)")).await;
        hits += codes(&answer).len();
        bystander.run(&format!("{ON_PRIMARY} select pg_sleep(0.002)")).await;
        rounds += 1;
    }
    enough.store(true, Ordering::Relaxed);
    shots.await.expect("all were sent");
    drop((victim, bystander));
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_protocols_are_spoken_or_negotiated() {
    let scene = Scene::start("").await;
    let own = [("user", "postgres"), ("database", &*scene.database)];
    // Minor version, more parameters, what NegotiateProtocolVersion says if it comes, and the key's length.
    let cases: [(u16, &[(&str, &str)], Option<&[u8]>, usize); 4] = [
        (0, &[], None, 4),
        (2, &[], None, 32),
        (9999, &[], Some(b"\0\x03\0\x02\0\0\0\0"), 32),
        (
            0,
            &[("_pq_.x", "1"), ("_pq_.y", "")],
            Some(b"\0\x03\0\0\0\0\0\x02_pq_.x\0_pq_.y\0"),
            4,
        ),
    ];
    for (minor, more, negotiated, key) in cases {
        let mut client = Wire::open(scene.proxy.port).await;
        client.send(&startup(minor, &[&own[..], more].concat())).await;
        client.greeted().await;
        let said = client.greeting.iter().find(|message| message.tag == b'v');
        assert_eq!(said.map(|message| &*message.body), negotiated, "3.{minor}");
        if said.is_some() {
            assert_eq!(client.greeting[0].tag, b'v', "negotiation comes first");
        }
        assert_eq!(client.key.1.len(), key, "3.{minor}");
        assert_eq!(client.value("select 1").await, "1");
        client.send(&query("select pg_sleep(60)")).await;
        sleeping(&scene, 1).await;
        cancel(&scene, &client.key.clone()).await;
        assert_eq!(codes(&client.answer().await), ["57014"], "3.{minor}");
    }
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_block_stays_on_one_standby_until_it_needs_the_primary() {
    let scene = Scene::start("").await;
    let mut writer = scene.wire().await;
    writer
        .run("create table there (n int); insert into there values (1)")
        .await;
    scene.caught_up().await;
    let place = "/* pgsluice: standby */ select inet_server_port() || ' ' || pg_backend_pid()";
    for begin in [
        "begin read only",
        "begin transaction isolation level read committed read only",
    ] {
        // A session that has written nothing needs nothing newer than what the standby has.
        let mut client = scene.wire().await;
        client.run(begin).await;
        let first = client.value(place).await;
        let port = format!("{} ", scene.standby().port());
        assert!(first.starts_with(&port), "{begin}: {first}");
        for _ in 0..5 {
            assert_eq!(client.value("select n from there").await, "1");
            assert_eq!(client.value(place).await, first);
        }
        assert_eq!(client.value("select pg_is_in_recovery()").await, "f");
        let second = client.value("select inet_server_port()").await;
        assert_eq!(second, scene.primary().port().to_string());
        let refused = client.query("insert into there values (2)").await;
        assert_eq!(codes(&refused), ["25006"], "the block is READ ONLY there too");
        client.run("rollback").await;
    }
    // In one that is left alone the work is the standby's to the end.
    let mut client = scene.wire().await;
    let before = scene.proxy.statements("node1");
    client.run("begin read only").await;
    client.run("select count(*) from there").await;
    client.run("commit").await;
    assert_eq!(scene.proxy.statements("node1"), before, "the primary was asked");
    drop((client, writer));
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_again_with_its_begin_leaves_no_block_behind() {
    let scene = Scene::start("").await;
    let set = async |setting: &str| {
        let mut direct = scene.direct().await;
        direct.run("set default_transaction_read_only = off").await;
        direct
            .run(&format!("alter database {} {setting}", scene.database))
            .await;
        let others = "datname = current_database() and pid <> pg_backend_pid()";
        let end = format!("select pg_terminate_backend(pid) from pg_stat_activity where {others}");
        direct.run(&end).await;
    };
    let begun = |begin: &str, then: &str| batch(&[extended(begin, &[]), extended(then, &[]), sync()]);
    let again = |code: &str| {
        let metric = format!("pgsluice_retries_total{{reason=\"{code}\"}}");
        scene.proxy.metric(&metric)
    };
    scene.direct().await.run("create table there (n int)").await;
    scene.caught_up().await;

    // A standby that may not have the table yet: nobody has written anything that it might lack.
    let (mut client, mut stranger) = (scene.wire().await, scene.wire().await);
    let answer = client.ask(&begun("begin read only", "select * from nowhere")).await;
    assert_eq!(codes(&answer), ["42P01"], "{}", show(&answer));
    assert!(again("42P01") > 0.0, "it didn't run again");
    for _ in 0..5 {
        let read = "/* pgsluice: standby */ select 1";
        assert_eq!(stranger.value(read).await, "1", "in a stranger's block");
    }
    drop(client);

    // A primary that takes no writes: the client hears it once a second look has found no other.
    set("set default_transaction_read_only = on").await;
    let mut client = scene.wire().await;
    for begin in ["begin", "start transaction isolation level repeatable read"] {
        let before = again("25006");
        let answer = client.ask(&begun(begin, "insert into there values (1)")).await;
        assert_eq!(codes(&answer), ["25006"], "{}", show(&answer));
        assert_eq!(tags(&answer), "12nC12nEZ", "{}", show(&answer));
        assert_eq!(again("25006"), before + 1.0);
        let read = "/* pgsluice: primary */ select 1";
        assert_eq!(stranger.value(read).await, "1", "in a stranger's block");
        assert_eq!(codes(&client.query("select 1").await), ["25P02"]);
        client.run("rollback").await;
    }
    set("reset default_transaction_read_only").await;
    assert_eq!(stranger.value("select count(*) from there").await, "0");
    drop((client, stranger));
    scene.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_connection_is_relayed_to_the_primary() {
    let scene = Scene::start("").await;
    let mut walsender = scene
        .wire_with(&[("replication", "database"), ("application_name", "copier")])
        .await;
    let identity = walsender.query("IDENTIFY_SYSTEM").await;
    assert_eq!(
        rows(&identity)[0][1].as_deref(),
        Some("1"),
        "the timeline: {}",
        show(&identity)
    );
    assert_eq!(walsender.value("select not pg_is_in_recovery()").await, "t");
    let mut start = scene.direct().await;
    let from = start.value("select pg_current_wal_flush_lsn()").await;
    walsender.send(&query(&format!("START_REPLICATION {from}"))).await;
    walsender.until(b'W').await;
    start.run("create table streamed (n int)").await;
    walsender.until(b'd').await;
    let seen = "select count(*) from pg_stat_replication where application_name = 'copier'";
    assert_eq!(start.value(seen).await, "1");
    walsender.vanish();
    until("it has ended", async || start.value(seen).await == "0").await;
    let physical = scene.wire_with(&[("replication", "true")]).await;
    drop(physical);
    scene.settled().await;
}

/// Prepares `sql` as `mine`, and has it described.
async fn prepared(scene: &Scene, sql: &str) -> Wire {
    let mut client = scene.wire().await;
    let told = client
        .ask(&batch(&[parse("mine", sql, &[]), describe(b'S', "mine"), sync()]))
        .await;
    assert_eq!(tags(&told), "1tTZ", "{}", show(&told));
    client
}

/// Has `sql` prepared by `name`, and without one, as nothing that was there before can be: both are what it means now.
async fn means_what_it_says(session: &mut Wire, name: &str, sql: &str) {
    let told = |name: &str| batch(&[parse(name, sql, &[]), describe(b'S', name), sync()]);
    let named = session.ask(&told(name)).await;
    assert_eq!(named, session.ask(&told("")).await, "after {name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_prepared_after_a_change_of_the_catalog_is_what_it_means_then() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let (mut changer, mut other) = (scene.wire().await, scene.wire().await);
    let sql = "insert into retyped values ($1)";
    for (round, change) in [
        "create type mood as enum ('fine')",
        "create table retyped (a int)",
        "alter table retyped alter a type text",
        "drop table retyped",
        "create table retyped (a date)",
        "alter table retyped alter a type int using null; alter table retyped alter a type inet using null",
        "alter table retyped alter a type mood using null",
        "drop type mood cascade; create type mood as enum ('fine'); alter table retyped add a mood",
        "begin",
        "alter table retyped alter a type text",
        "commit",
        "begin",
        "alter table retyped alter a type date using null",
        "select 1",
        "rollback",
        "create temporary table retyped (a int)",
        "drop table pg_temp.retyped; create temporary table retyped (a text)",
        "drop table retyped",
        "create temporary table retyped (a date)",
        "drop table retyped",
    ]
    .iter()
    .enumerate()
    {
        // What was prepared before stays in use.
        let name = format!("{round}: {change}");
        let answer = changer.query(change).await;
        assert_eq!(codes(&answer), Vec::<String>::new(), "{change}");
        let in_block = answer.last().is_some_and(|ready| ready.body != b"I");
        means_what_it_says(&mut changer, &name, sql).await;
        // What is locked can't be prepared before it is what it will be.
        if !in_block {
            means_what_it_says(&mut other, &name, sql).await;
        }
    }
    assert_eq!(
        other.value(&format!("{ON_PRIMARY} select count(*) from retyped")).await,
        "0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_never_something_else_than_its_client_was_told() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let mut changer = scene.wire().await;
    changer.run("create table reshaped (a int)").await;
    for (round, sql) in [
        format!("{ON_PRIMARY} select * from reshaped"),
        "insert into reshaped values (1) returning *".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let mut client = prepared(&scene, sql).await;
        // It is described on one connection; it runs on the other.
        let held = holder(&scene).await;
        let run = batch(&[bind("", "mine", &[]), execute("", 0), sync()]);
        assert_eq!(codes(&client.ask(&run).await), Vec::<String>::new());
        drop(held);
        let before = changer
            .value(&format!("{ON_PRIMARY} select count(*) from reshaped"))
            .await;
        changer.run(&format!("alter table reshaped add b{round} int")).await;
        for _ in 0..4 {
            let held = holder(&scene).await;
            assert_eq!(codes(&client.ask(&run).await), ["0A000"], "{sql}");
            let other = holder(&scene).await;
            drop(held);
            // What stands behind it in the batch is passed over, and what comes after is carried out.
            let behind = [
                bind("", "mine", &[]),
                execute("", 0),
                extended("insert into reshaped values (2)", &[]),
                sync(),
            ];
            assert_eq!(codes(&client.ask(&batch(&behind)).await), ["0A000"], "{sql}");
            drop(other);
        }
        // In a block too, which has failed then.
        client.run("begin").await;
        assert_eq!(codes(&client.ask(&run).await), ["0A000"], "{sql}");
        assert_eq!(codes(&client.query("select 1").await), ["25P02"]);
        client.run("rollback").await;
        let after = changer
            .value(&format!("{ON_PRIMARY} select count(*) from reshaped"))
            .await;
        assert_eq!(after, before, "what was refused has not run: {sql}");
        // As drivers do then.
        client.ask(&batch(&[close(b'S', "mine"), sync()])).await;
        let again = client
            .ask(&batch(&[
                parse("mine", sql, &[]),
                bind("", "mine", &[]),
                execute("", 0),
                sync(),
            ]))
            .await;
        assert_eq!(codes(&again), Vec::<String>::new(), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_means_to_each_client_what_its_search_path_says() {
    let scene = Scene::start("[pool]\nsize = 1\n").await;
    let mut maker = scene.wire().await;
    maker.run("create schema one; create schema other").await;
    maker
        .run("create table one.t as select 1 as a; create table other.t as select 2 as b, 3 as c")
        .await;
    scene.caught_up().await;
    let sql = "select * from t";
    let mut clients = Vec::new();
    for (path, columns) in [("one", 1), ("other", 2)] {
        let mut client = scene.wire().await;
        client.run(&format!("set search_path = {path}")).await;
        clients.push((client, columns));
    }
    for round in 0..3 {
        for (client, columns) in &mut clients {
            let name = format!("s{round}");
            let steps = [
                parse(&name, sql, &[]),
                describe(b'S', &name),
                bind("", &name, &[]),
                execute("", 0),
                sync(),
            ];
            let answer = client.ask(&batch(&steps)).await;
            assert_eq!(rows(&answer)[0].len(), *columns, "{}", show(&answer));
        }
    }
    // A temporary table comes first.
    let (client, _) = &mut clients[0];
    client
        .run("create temporary table t as select 1 as x, 2 as y, 3 as z")
        .await;
    let steps = [
        parse("temporary", sql, &[]),
        bind("", "temporary", &[]),
        execute("", 0),
        sync(),
    ];
    let answer = client.ask(&batch(&steps)).await;
    assert_eq!(rows(&answer)[0].len(), 3, "{}", show(&answer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_knows_its_own_notifications() {
    let scene = Scene::start("").await;
    let (mut listener, mut other) = (scene.wire().await, scene.wire().await);
    let own = listener.key.0;
    listener.run("listen news").await;
    let told = listener.query("notify news, 'mine'").await;
    let by = |message: &Message| i32::from_be_bytes(message.body[..4].try_into().expect("a process id"));
    let notified = told.iter().find(|message| message.tag == b'A').expect("a notification");
    assert_eq!(by(notified), own);
    other.run("notify news, 'theirs'").await;
    let theirs = listener.until(b'A').await;
    // And others by the process ids that they were told, whatever connection they shared.
    assert_eq!(by(theirs.last().expect("a notification")), other.key.0);
    let mut third = scene.wire().await;
    third.run("begin; select pg_notify('news', 'in a block'); commit").await;
    let theirs = listener.until(b'A').await;
    assert_eq!(by(theirs.last().expect("a notification")), third.key.0);
    assert_ne!(own, other.key.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deallocate_among_other_statements_is_one_of_them() {
    let scene = Scene::start("").await;
    let mut client = scene.wire().await;
    client.run("create table kept (n int)").await;
    for (round, (text, tags)) in [
        ("insert into kept values (1); deallocate \"S'1\"", "CCZ"),
        ("deallocate prepare \"S'1\"; insert into kept values (2)", "CCZ"),
        ("savepoint s; deallocate \"S'1\"; release s", "CCCZ"),
        ("select 'deallocate \"S''1\"'; DEALLOCATE \"S'1\"; select 2", "TDCCTDCZ"),
        ("deallocate \"S'1\"", "CZ"),
    ]
    .into_iter()
    .enumerate()
    {
        client
            .ask(&batch(&[parse("S'1", &format!("select {round}"), &[]), sync()]))
            .await;
        let in_block = text.starts_with("savepoint");
        if in_block {
            client.run("begin").await;
        }
        let answer = client.query(text).await;
        assert_eq!(support::wire::tags(&answer), tags, "{text}: {}", show(&answer));
        if in_block {
            client.run("commit").await;
        }
        // The name is free, and nobody's.
        let gone = client
            .ask(&batch(&[bind("", "S'1", &[]), execute("", 0), sync()]))
            .await;
        assert_eq!(codes(&gone), ["26000"], "{text}");
    }
    assert_eq!(
        client
            .value("select string_agg(n::text, ',' order by n) from kept")
            .await,
        "1,2"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_notification_is_lost_while_the_proxy_asks_for_itself() {
    let scene = Scene::start("").await;
    let (mut listener, mut teller) = (scene.wire().await, scene.wire().await);
    let mut heard = Vec::new();
    let mut hear = |answer: &[Message]| {
        let payloads = answer.iter().filter(|message| message.tag == b'A').map(|message| {
            let text = String::from_utf8_lossy(&message.body[4..]).into_owned();
            text.split('\0').nth(1).unwrap_or_default().to_owned()
        });
        heard.extend(payloads);
        heard.len()
    };
    for round in 0..60 {
        hear(
            &listener
                .query("begin; listen news; select set_config('app.round', '0', false); commit")
                .await,
        );
        teller.send(&query(&format!("notify news, '{round}'"))).await;
        // After each of these the proxy asks the server: what is still there, and what is set.
        for sql in [
            "begin; listen news; select set_config('app.round', '1', false); commit",
            "select set_config('app.round', '2', false)",
            "begin; create temp table t () on commit drop; commit",
        ] {
            hear(&listener.query(sql).await);
        }
        assert_eq!(codes(&teller.answer().await), Vec::<String>::new());
    }
    while hear(&[]) < 60 {
        let next = [listener.expect().await];
        hear(&next);
    }
    let expected: Vec<String> = (0..60).map(|round| round.to_string()).collect();
    assert_eq!(heard, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_executes_what_the_protocol_has_prepared() {
    let scene = Scene::start("[pool]\nsize = 2\n").await;
    let (mut client, mut other) = (scene.wire().await, scene.wire().await);
    client
        .run("create table executed (n int); insert into executed values (7)")
        .await;
    for (wire, factor) in [(&mut client, 10), (&mut other, 100)] {
        let sql = format!("select n * {factor} * $1 from executed");
        wire.ask(&batch(&[parse("Mine 1", &sql, &[23]), sync()])).await;
    }
    for (wire, product) in [(&mut client, "210"), (&mut other, "2100")] {
        for text in ["execute \"Mine 1\" (3)", "/* again */ EXECUTE\n\"Mine 1\"(3)"] {
            let answer = wire.query(text).await;
            assert_eq!(firsts(&answer), [product], "{text}: {}", show(&answer));
        }
        let answer = wire.query("select 1; execute \"Mine 1\" (3); select 2").await;
        assert_eq!(firsts(&answer), ["1", product, "2"], "{}", show(&answer));
        let answer = wire
            .ask(&batch(&[extended("execute \"Mine 1\" (3)", &[]), sync()]))
            .await;
        assert_eq!(firsts(&answer), [product], "{}", show(&answer));
        let plan = wire.query("explain (costs off) execute \"Mine 1\" (3)").await;
        assert_eq!(firsts(&plan), ["Seq Scan on executed"], "{}", show(&plan));
        let copied = format!("create table copied_{product} as execute \"Mine 1\" (3)");
        assert_eq!(codes(&wire.query(&copied).await), Vec::<String>::new());
    }
    assert_eq!(codes(&client.query("execute mine(3)").await), ["26000"]);
    // What it does to the session is followed.
    client
        .ask(&batch(&[parse("locks", "select pg_advisory_lock(5)", &[]), sync()]))
        .await;
    client.run("execute locks").await;
    assert_eq!(client.value("select pg_advisory_unlock(5)").await, "t");
    drop((client, other));
    scene.settled().await;
}
