//! The bank's clients: tellers that book transfers in every shape that a driver might send them in, and do what an application does about
//! an error; readers that add up all balances; and sessions that do nothing. None of them ever connects again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::ledger::{Attempt, Ending, History, Look, Reach, Try};
use super::support::dice::Dice;
use super::support::wire::{Message, Wire, bind, codes, execute, firsts, parse, query, show, sync};

pub const ACCOUNTS: usize = 24;
pub const OPENING: i64 = 1000;

/// The ledger has no unique key: what is booked twice shows as two rows, and not as one more error.
pub const SCHEMA: &str = "
    create table account (id int primary key, balance bigint not null);
    insert into account select n, 1000 from generate_series(0, 23) n;
    create table transfer (id bigint not null, try int not null, giver int not null, taker int not null, amount bigint not null,
        booked timestamptz not null default clock_timestamp());
    create index on transfer (id);
    create index on transfer (booked);
    create function pay(id bigint, try int, giver int, taker int, amount bigint) returns void language plpgsql as $$
        begin
            perform from account where account.id in (giver, taker) order by account.id for update;
            update account set balance = balance - amount where account.id = giver;
            update account set balance = balance + amount where account.id = taker;
            insert into transfer values (id, try, giver, taker, amount);
        end $$;";

/// How a transfer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A block, a Query for each statement.
    Block,
    /// A block of prepared statements.
    PreparedBlock,
    /// A block, all of its requests at once, each with its Sync.
    Pipeline,
    /// A block, all in one batch.
    Batch,
    /// A block, all in one Query.
    OneText,
    /// Three statements in one Query, without a block.
    ImplicitText,
    /// Three statements in one batch, without a block.
    ImplicitBatch,
    /// A function, by Query.
    Function,
    /// A function, by the unnamed statement.
    BoundFunction,
    /// One statement that does it all, prepared.
    PreparedStatement,
}

const SHAPES: [Shape; 10] = [
    Shape::Block,
    Shape::PreparedBlock,
    Shape::Pipeline,
    Shape::Batch,
    Shape::OneText,
    Shape::ImplicitText,
    Shape::ImplicitBatch,
    Shape::Function,
    Shape::BoundFunction,
    Shape::PreparedStatement,
];

/// What tellers prepare at their beginning.
const STATEMENTS: [(&str, &str); 5] = [
    ("begin", "begin"),
    (
        "add",
        "update account set balance = balance + $2::bigint where id = $1::int",
    ),
    (
        "book",
        "insert into transfer values ($1::bigint, $2::int, $3::int, $4::int, $5::bigint)",
    ),
    ("commit", "commit"),
    (
        "whole",
        "with locked as materialized (select id from account where id in ($3::int, $4::int) order by id for update), \
         moved as (update account set balance = balance + case account.id when $3::int then - $5::bigint else $5::bigint end \
         from locked where account.id = locked.id) \
         insert into transfer select $1::bigint, $2::int, $3::int, $4::int, $5::bigint from (select count(*) from locked) l",
    ),
];

/// What all clients share.
#[derive(Default)]
pub struct Bank {
    next: AtomicU64,
    closing: AtomicBool,
}

impl Bank {
    /// Nobody begins anything new.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }
}

/// Money on its way.
#[derive(Debug, Clone, Copy)]
struct Transfer {
    id: u64,
    from: usize,
    to: usize,
    amount: i64,
}

impl Transfer {
    /// What to add to which account, in the order in which everybody locks them.
    fn moves(self) -> [(usize, i64); 2] {
        let (gives, takes) = ((self.from, -self.amount), (self.to, self.amount));
        if self.from < self.to {
            [gives, takes]
        } else {
            [takes, gives]
        }
    }

    fn values(self, number: u32) -> [String; 5] {
        let Transfer { id, from, to, amount } = self;
        [id as i64, number.into(), from as i64, to as i64, amount].map(|value| value.to_string())
    }
}

/// What became of one try.
struct Told {
    ending: Ending,
    reach: Reach,
    at: &'static str,
}

/// An answer up to ReadyForQuery.
struct Answer(Vec<Message>);

impl Answer {
    /// `I`, `T` or `E`; `None` if the connection was closed instead.
    fn status(&self) -> Option<u8> {
        let last = self.0.last().filter(|message| message.tag == b'Z')?;
        last.body.first().copied()
    }

    /// The first error's code, and with one that nobody promises all that it says.
    fn code(&self) -> Option<String> {
        let error = self.0.iter().find(|message| message.tag == b'E')?;
        let code = error.code();
        let promised = matches!(&*code, "40001" | "08007" | "57P03" | "25P02");
        Some(if promised { code } else { show(&self.0) })
    }

    /// Each row as a sum of balances.
    fn totals(&self) -> impl Iterator<Item = i64> {
        let totals = firsts(&self.0).into_iter();
        totals.map(|total| total.parse().expect("a sum of bigints, cast to bigint"))
    }

    /// The last command that was completed.
    fn command(&self) -> Option<&str> {
        let mut completed = self.0.iter().rev().filter(|message| message.tag == b'C');
        completed.next().map(Message::command)
    }
}

/// A client that books transfers.
pub struct Teller {
    wire: Wire,
    number: usize,
    dice: Dice,
    bank: Arc<Bank>,
    done: Arc<AtomicUsize>,
    history: History,
}

impl Teller {
    /// Logs in and prepares its statements. Counts in `done` what it has had acknowledged.
    pub async fn login(port: u16, number: usize, seed: u64, bank: &Arc<Bank>, done: &Arc<AtomicUsize>) -> Teller {
        let mut wire = Wire::login(port, "postgres").await;
        let mut all = Vec::new();
        for (name, sql) in STATEMENTS {
            all.extend(parse(name, sql, &[]));
        }
        all.extend(sync());
        let answer = wire.ask(&all).await;
        assert!(codes(&answer).is_empty(), "{}", show(&answer));
        Teller {
            wire,
            number,
            dice: Dice::new(seed ^ (number as u64 + 1) << 32),
            bank: Arc::clone(bank),
            done: Arc::clone(done),
            history: History::default(),
        }
    }

    /// Books until the bank closes.
    pub async fn work(mut self) -> History {
        while !self.bank.is_closing() && self.tidy().await.is_some() && self.book().await.is_some() {
            let pause = self.dice.below(12) as u64;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.history
    }

    /// One transfer, as often as it takes. `None` if there is no connection any more.
    async fn book(&mut self) -> Option<()> {
        let from = self.dice.below(ACCOUNTS);
        let transfer = Transfer {
            id: self.bank.next.fetch_add(1, Ordering::Relaxed),
            from,
            to: (from + 1 + self.dice.below(ACCOUNTS - 1)) % ACCOUNTS,
            amount: 1 + self.dice.below(9) as i64,
        };
        let mut number = 0;
        loop {
            let what = Try {
                transfer: transfer.id,
                number,
            };
            let shape = self.dice.of(&SHAPES);
            let began = Instant::now();
            let told = self.attempt(shape, transfer, number).await;
            self.history.attempts.push(Attempt {
                what,
                how: format!("teller {}, {shape:?}, at {}", self.number, told.at),
                reach: told.reach,
                began,
                ended: Instant::now(),
                ending: told.ending.clone(),
            });
            match told.ending {
                Ending::Acknowledged => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    if self.dice.once_in(3) && !self.look(what).await? {
                        self.history.unseen.push(transfer.id);
                    }
                    return Some(());
                }
                Ending::Refused(code) if code == "08007" => {
                    let found = self.look(what).await?;
                    self.history.looks.push(Look { after: what, found });
                    if found {
                        return Some(());
                    }
                }
                Ending::Refused(code) if code == "40001" || code == "57P03" => {}
                Ending::Refused(_) | Ending::Absurd(_) => return Some(()),
                Ending::Closed => return None,
            }
            number += 1;
        }
    }

    /// Now and then something that is about the session alone, and that nothing need keep from being done. `None` if there is no connection
    /// any more.
    async fn tidy(&mut self) -> Option<()> {
        const CHORES: [&str; 3] = [
            "set application_name = 'teller'",
            "reset application_name",
            "show work_mem",
        ];
        if !self.dice.once_in(5) {
            return Some(());
        }
        let chore = self.dice.of(&CHORES);
        let answer = self.ask(&query(chore)).await;
        if let Some(code) = answer.code() {
            let told = format!("teller {} was told {code} for {chore}", self.number);
            self.history.failed_reads.push(told);
        }
        if answer.status().is_none() {
            let told = format!("teller {} lost its connection in {chore}", self.number);
            self.history.closed_idle.push(told);
        }
        answer.status().map(drop)
    }

    /// Whether a transfer is there. `None` if there is no connection any more.
    async fn look(&mut self, what: Try) -> Option<bool> {
        let sql = format!("select count(*) from transfer where id = {}", what.transfer);
        loop {
            let answer = self.ask(&query(&sql)).await;
            match (answer.status(), answer.code()) {
                (None, _) => {
                    self.history
                        .closed_idle
                        .push(format!("teller {} lost its connection in a look", self.number));
                    return None;
                }
                (Some(_), None) => return Some(firsts(&answer.0) != ["0"]),
                // What had been delivered in part can't run again by itself.
                (Some(_), Some(code)) if code == "40001" && answer.0.first().is_some_and(|first| first.tag == b'T') => {
                }
                (Some(_), Some(code)) => {
                    let told = format!("teller {} looked for {what} and was told {code}", self.number);
                    self.history.failed_reads.push(told);
                    return Some(true);
                }
            }
        }
    }

    async fn attempt(&mut self, shape: Shape, transfer: Transfer, number: u32) -> Told {
        let [id, try_, from, to, amount] = transfer.values(number);
        let all = format!("{id}, {try_}, {from}, {to}, {amount}");
        let texts = transfer.texts(number);
        let values: Vec<Option<&str>> = [&id, &try_, &from, &to, &amount].map(|value| Some(&**value)).to_vec();
        match shape {
            Shape::Block => self.in_steps(texts.map(|(at, sql)| (at, query(&sql)))).await,
            Shape::PreparedBlock => self.in_steps(transfer.prepared(number)).await,
            Shape::Pipeline => {
                let steps = if self.dice.once_in(2) {
                    transfer.prepared(number)
                } else {
                    texts.map(|(at, sql)| (at, query(&sql)))
                };
                self.at_once(steps).await
            }
            Shape::Batch => {
                let parts = texts.map(|(_, sql)| [parse("", &sql, &[]), bind("", "", &[]), execute("", 0)].concat());
                self.alone(&[parts.concat(), sync()].concat(), "COMMIT").await
            }
            Shape::OneText => {
                let text = texts.map(|(_, sql)| sql).join("; ");
                self.alone(&query(&text), "COMMIT").await
            }
            Shape::ImplicitText => {
                let text = texts[1..4].iter().map(|(_, sql)| &**sql).collect::<Vec<_>>().join("; ");
                self.alone(&query(&text), "INSERT 0 1").await
            }
            Shape::ImplicitBatch => {
                let part =
                    |(_, sql): &(&str, String)| [parse("", sql, &[]), bind("", "", &[]), execute("", 0)].concat();
                let parts: Vec<u8> = texts[1..4].iter().flat_map(part).collect();
                self.alone(&[parts, sync()].concat(), "INSERT 0 1").await
            }
            Shape::Function => self.alone(&query(&format!("select pay({all})")), "SELECT 1").await,
            Shape::BoundFunction => {
                let sql = "select pay($1, $2, $3, $4, $5)";
                let batch = [parse("", sql, &[]), bind("", "", &values), execute("", 0), sync()].concat();
                self.alone(&batch, "SELECT 1").await
            }
            Shape::PreparedStatement => {
                let batch = [bind("", "whole", &values), execute("", 0), sync()].concat();
                self.alone(&batch, "INSERT 0 1").await
            }
        }
    }

    /// Statement by statement, sometimes with a pause in which nothing is under way.
    async fn in_steps(&mut self, steps: [(&'static str, Vec<u8>); 5]) -> Told {
        let last = steps.len() - 1;
        for (index, (at, bytes)) in steps.into_iter().enumerate() {
            if index > 0 && self.dice.once_in(6) {
                let pause = self.dice.below(60) as u64;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            let answer = self.ask(&bytes).await;
            let reach = if index == last { Reach::MayCommit } else { Reach::Inside };
            let told = |ending| Told { ending, reach, at };
            let Some(status) = answer.status() else {
                return told(Ending::Closed);
            };
            if let Some(code) = answer.code() {
                let in_block = status != b'I';
                if in_block != (index < last) {
                    let absurd = format!("{code} and then status {}", char::from(status));
                    return told(Ending::Absurd(absurd));
                }
                return match in_block {
                    true => told(self.roll_back(code).await),
                    false => told(Ending::Refused(code)),
                };
            }
            if index == last && answer.command() != Some("COMMIT") {
                let absurd = format!("COMMIT was answered {:?}", answer.command());
                return told(Ending::Absurd(absurd));
            }
        }
        Told {
            ending: Ending::Acknowledged,
            reach: Reach::MayCommit,
            at: "its end",
        }
    }

    /// All steps without waiting for the first.
    async fn at_once(&mut self, steps: [(&'static str, Vec<u8>); 5]) -> Told {
        let names = steps.each_ref().map(|(at, _)| *at);
        let last = steps.len() - 1;
        if self
            .wire
            .try_send(&steps.map(|(_, bytes)| bytes).concat())
            .await
            .is_err()
        {
            return closed(names[0]);
        }
        let mut first: Option<(usize, String)> = None;
        for (index, at) in names.into_iter().enumerate() {
            let answer = Answer(self.wire.answer().await);
            let Some(status) = answer.status() else {
                return closed(at);
            };
            let reach = if first.as_ref().map_or(index, |(index, _)| *index) == last {
                Reach::MayCommit
            } else {
                Reach::Inside
            };
            let absurd = |told: String| Told {
                ending: Ending::Absurd(told),
                reach,
                at,
            };
            match (answer.code(), &first) {
                (None, None) if index == last && answer.command() != Some("COMMIT") => {
                    return absurd(format!("COMMIT was answered {:?}", answer.command()));
                }
                (None, None) => {}
                (Some(code), None) => first = Some((index, code)),
                // The rest of a block that is lost, to its end.
                (None, Some(_)) if index == last && answer.command() == Some("ROLLBACK") => {}
                (Some(code), Some(_)) if code == "25P02" => {}
                (Some(code), Some((_, before))) if code == *before => {}
                (code, Some((_, before))) => {
                    return absurd(format!("after {before}: {code:?} and {:?}", answer.command()));
                }
            }
            if index < last {
                continue;
            }
            let Some((index, code)) = first else { break };
            let ending = if status == b'I' {
                Ending::Refused(code)
            } else {
                self.roll_back(code).await
            };
            return Told {
                ending,
                reach,
                at: names[index],
            };
        }
        Told {
            ending: Ending::Acknowledged,
            reach: Reach::MayCommit,
            at: "its end",
        }
    }

    /// All of it in one request.
    async fn alone(&mut self, bytes: &[u8], command: &str) -> Told {
        let answer = self.ask(bytes).await;
        let told = |ending| Told {
            ending,
            reach: Reach::MayCommit,
            at: "once",
        };
        match (answer.status(), answer.code()) {
            (None, _) => told(Ending::Closed),
            (Some(b'I'), None) if answer.command() == Some(command) => told(Ending::Acknowledged),
            (Some(_), None) => told(Ending::Absurd(format!("it was answered {:?}", answer.command()))),
            (Some(b'I'), Some(code)) => told(Ending::Refused(code)),
            (Some(_), Some(code)) => told(self.roll_back(code).await),
        }
    }

    /// Ends a block that was refused with `code`.
    async fn roll_back(&mut self, code: String) -> Ending {
        let answer = self.ask(&query("rollback")).await;
        match (answer.status(), answer.code(), answer.command()) {
            (None, _, _) => Ending::Closed,
            (Some(b'I'), None, Some("ROLLBACK")) => Ending::Refused(code),
            (status, code, command) => Ending::Absurd(format!("ROLLBACK was answered {code:?} {command:?} {status:?}")),
        }
    }

    async fn ask(&mut self, bytes: &[u8]) -> Answer {
        match self.wire.try_send(bytes).await {
            Ok(()) => Answer(self.wire.answer().await),
            Err(_) => Answer(Vec::new()),
        }
    }
}

fn closed(at: &'static str) -> Told {
    Told {
        ending: Ending::Closed,
        reach: Reach::MayCommit,
        at,
    }
}

impl Transfer {
    /// A block's statements.
    fn texts(self, number: u32) -> [(&'static str, String); 5] {
        let [first, second] = self
            .moves()
            .map(|(account, amount)| format!("update account set balance = balance + ({amount}) where id = {account}"));
        let values = self.values(number).join(", ");
        [
            ("BEGIN", "begin".to_owned()),
            ("the first UPDATE", first),
            ("the second UPDATE", second),
            ("INSERT", format!("insert into transfer values ({values})")),
            ("COMMIT", "commit".to_owned()),
        ]
    }

    /// The same by prepared statements, each with its Sync.
    fn prepared(self, number: u32) -> [(&'static str, Vec<u8>); 5] {
        let run = |name: &str, values: &[String]| {
            let values: Vec<Option<&str>> = values.iter().map(|value| Some(&**value)).collect();
            [bind("", name, &values), execute("", 0), sync()].concat()
        };
        let [first, second] = self
            .moves()
            .map(|(account, amount)| run("add", &[account.to_string(), amount.to_string()]));
        [
            ("BEGIN", run("begin", &[])),
            ("the first UPDATE", first),
            ("the second UPDATE", second),
            ("INSERT", run("book", &self.values(number))),
            ("COMMIT", run("commit", &[])),
        ]
    }
}

/// A client that adds up all balances, which every snapshot has the same of.
pub struct Reader {
    wire: Wire,
    number: usize,
    dice: Dice,
    bank: Arc<Bank>,
    history: History,
}

const TOTAL: &str = "select sum(balance)::bigint from account";

impl Reader {
    /// Logs in.
    pub async fn login(port: u16, number: usize, seed: u64, bank: &Arc<Bank>) -> Reader {
        let mut wire = Wire::login(port, "postgres").await;
        let answer = wire.ask(&[parse("total", TOTAL, &[]), sync()].concat()).await;
        assert!(codes(&answer).is_empty(), "{}", show(&answer));
        Reader {
            wire,
            number,
            dice: Dice::new(seed ^ (number as u64 + 1) << 40),
            bank: Arc::clone(bank),
            history: History::default(),
        }
    }

    /// Reads until the bank closes.
    pub async fn work(mut self) -> History {
        while !self.bank.is_closing() {
            let read = match self.dice.below(4) {
                0 => self.read(&query(TOTAL)).await,
                1 => {
                    self.read(&[bind("", "total", &[]), execute("", 0), sync()].concat())
                        .await
                }
                2 => self.read(&query(&format!("/* pgsluice: primary */ {TOTAL}"))).await,
                _ => self.read_in_block().await,
            };
            if read.is_none() {
                self.history
                    .closed_idle
                    .push(format!("reader {} lost its connection", self.number));
                break;
            }
            let pause = self.dice.below(20) as u64;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.history
    }

    /// `None` if there is no connection any more; else whether there was an answer.
    async fn read(&mut self, bytes: &[u8]) -> Option<Result<(), String>> {
        if self.wire.try_send(bytes).await.is_err() {
            return None;
        }
        let answer = Answer(self.wire.answer().await);
        answer.status()?;
        let Some(code) = answer.code() else {
            self.history.totals.extend(answer.totals());
            return Some(Ok(()));
        };
        let in_part = answer.0.first().is_some_and(|first| first.tag != b'E');
        if code != "40001" || !in_part {
            self.history
                .failed_reads
                .push(format!("reader {} was told {code}", self.number));
        }
        Some(Err(code))
    }

    /// Twice in a block, which is lost with its server: that is told, and costs nothing.
    async fn read_in_block(&mut self) -> Option<Result<(), String>> {
        for sql in ["begin read only", TOTAL, TOTAL, "commit"] {
            if self.wire.try_send(&query(sql)).await.is_err() {
                return None;
            }
            let answer = Answer(self.wire.answer().await);
            let status = answer.status()?;
            if let Some(code) = answer.code() {
                if code != "40001" {
                    let told = format!("reader {} was told {code} for {sql}", self.number);
                    self.history.failed_reads.push(told);
                }
                if status != b'I' {
                    self.wire.try_send(&query("rollback")).await.ok()?;
                    Answer(self.wire.answer().await).status()?;
                }
                return Some(Err(code));
            }
            self.history.totals.extend(answer.totals());
        }
        Some(Ok(()))
    }
}

/// A session that does nothing: of a failover it must notice nothing at all.
pub struct Idle {
    wire: Wire,
    number: usize,
}

impl Idle {
    /// Logs in, and has used a server once.
    pub async fn login(port: u16, number: usize) -> Idle {
        let mut wire = Wire::login(port, "postgres").await;
        wire.run("select 1 from account").await;
        Idle { wire, number }
    }

    /// Whether nothing has come, and it still works.
    pub async fn wake(mut self) -> History {
        let mut history = History::default();
        if !self.wire.is_quiet() {
            history
                .strange
                .push(format!("idle session {} was told something", self.number));
        }
        let answer = match self.wire.try_send(&query(TOTAL)).await {
            Ok(()) => Answer(self.wire.answer().await),
            Err(_) => Answer(Vec::new()),
        };
        if answer.status().is_none() {
            history.closed_idle.push(format!("idle session {}", self.number));
        }
        history.totals.extend(answer.totals());
        history
    }
}
