//! Talks with a console whose operator only notes what it is told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::conversation::{After, Conversation, Interrupt, Interruption};
use super::*;
use crate::admin::status::{NodeStatus, Status};
use crate::cluster::{Switched, Timeline};
use crate::config::{Config, Overrides};
use crate::session::request::gather;
use crate::wire::error_response::ErrorView;
use crate::wire::frame::{HEADER, header};
use crate::wire::frontend::{FLUSH, SYNC, put_bind_head, put_parse, put_query, put_statement};
use crate::wire::rows::row_values;

/// It knows the nodes `node1` and `node2`.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<String>>,
    /// A switchover waits for this, if it is to wait at all.
    gate: Option<Notify>,
    finished: AtomicUsize,
}

impl Operator for Fake {
    fn status(&self) -> Status {
        let node = |name: &str| NodeStatus {
            name: name.to_owned(),
            ..NodeStatus::default()
        };
        Status {
            version: "1.2.3".to_owned(),
            nodes: vec![node("node1"), node("node2")],
            ..Status::default()
        }
    }

    fn config(&self) -> Arc<Config> {
        let text = "[cluster]\nnodes = [\"127.0.0.1:1\"]\n";
        Arc::new(Config::parse(text, "test", &Overrides::default()).expect("a configuration"))
    }

    async fn reload(&self) -> Result<Vec<&'static str>, ErrorFields> {
        self.asked.lock().push("reload".to_owned());
        Ok(vec!["admin.http", "listen.threads"])
    }

    async fn switchover(&self, to: Option<&str>) -> Result<Switched, ErrorFields> {
        self.asked.lock().push(format!("switchover to {to:?}"));
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        self.finished.fetch_add(1, Ordering::Relaxed);
        match to {
            Some("node1") => {
                Err(ErrorFields::error(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "it lags").with_hint("Wait."))
            }
            _ => Ok(Switched {
                from: "node1".into(),
                to: to.unwrap_or("node2").into(),
                timeline: Timeline(7),
                held: Duration::from_millis(1500),
                ended: 3,
                warnings: vec!["node1 runs on".to_owned()],
            }),
        }
    }
}

/// Comes at once, or never.
struct Comes(Option<Interrupt>);

impl Interruption for Comes {
    async fn interrupted(&mut self) -> Interrupt {
        match self.0 {
            Some(interrupt) => interrupt,
            None => std::future::pending().await,
        }
    }
}

struct Talk {
    fake: Arc<Fake>,
    conversation: Conversation<Fake>,
}

impl Talk {
    fn with(fake: Fake) -> Talk {
        let fake = Arc::new(fake);
        Talk {
            conversation: Conversation::new(&fake, "ops".to_owned()),
            fake,
        }
    }

    async fn say(&mut self, bytes: &[u8], interrupt: Option<Interrupt>) -> (String, After) {
        let Ok(Gathered::Unit(unit)) = gather(bytes) else {
            panic!("no unit");
        };
        assert_eq!(unit.len, bytes.len(), "one unit");
        let mut out = Vec::new();
        let after = self
            .conversation
            .answer(&unit, bytes, &mut out, &mut Comes(interrupt))
            .await;
        (told(&out), after)
    }

    async fn query(&mut self, sql: &str) -> String {
        let mut bytes = Vec::new();
        put_query(&mut bytes, sql.as_bytes());
        let (told, after) = self.say(&bytes, None).await;
        assert_eq!(after, After::Listen);
        told
    }
}

/// What came back, a word for each message: its tag, and what is in it.
fn told(mut bytes: &[u8]) -> String {
    let mut words = Vec::new();
    while let Some((tag, length)) = header(bytes) {
        let body = &bytes[HEADER..=length as usize];
        bytes = &bytes[length as usize + 1..];
        let tag = char::from(tag);
        words.push(match tag {
            'E' | 'N' => format!("{tag}:{}", ErrorView::parse(body).expect("fields").code),
            'D' => {
                let values = row_values(bytes::Bytes::copy_from_slice(body)).expect("a row");
                let texts = values.iter().map(|value| match value {
                    Some(value) => String::from_utf8_lossy(value).into_owned(),
                    None => "NULL".to_owned(),
                });
                format!("D:{}", texts.collect::<Vec<_>>().join("|"))
            }
            'C' => format!("C:{}", String::from_utf8_lossy(&body[..body.len() - 1])),
            'Z' => format!("Z:{}", char::from(body[0])),
            _ => tag.to_string(),
        });
    }
    assert!(bytes.is_empty(), "a message is cut");
    words.join(" ")
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_parse(&mut out, name.as_bytes(), sql.as_bytes(), &[0, 0]);
    out
}

fn bind(portal: &str, statement: &str, rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bind_head(&mut out, portal.as_bytes(), statement.as_bytes(), rest.len());
    out.extend_from_slice(rest);
    out
}

fn named(tag: u8, kind: u8, name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_statement(&mut out, tag, name.as_bytes());
    out[HEADER] = kind;
    out
}

fn execute(portal: &str, most: i32) -> Vec<u8> {
    let body = [portal.as_bytes(), &[0], &most.to_be_bytes()].concat();
    let mut out = vec![b'E'];
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(&body);
    out
}

/// No values, all columns as text.
const PLAIN: &[u8] = &[0; 6];

#[tokio::test]
async fn a_text_is_answered_statement_by_statement_up_to_the_first_error() {
    let mut talk = Talk::with(Fake::default());
    for (sql, expected) in [
        ("show version", "T D:pgsluice 1.2.3 C:SHOW Z:I"),
        ("; -- nothing", "I Z:I"),
        (
            "show version; begin; SHOW VERSION",
            "T D:pgsluice 1.2.3 C:SHOW C:BEGIN T D:pgsluice 1.2.3 C:SHOW Z:I",
        ),
        ("reload", "N:01000 C:RELOAD Z:I"),
        ("switchover", "N:01000 T D:node2|node1|7|1.5|3 C:SWITCHOVER Z:I"),
        (
            "switchover to NODE2",
            "N:01000 T D:node2|node1|7|1.5|3 C:SWITCHOVER Z:I",
        ),
        ("switchover to node1; reload", "E:55000 Z:I"),
        (
            "show version; switchover to node3",
            "T D:pgsluice 1.2.3 C:SHOW E:42704 Z:I",
        ),
        ("reload; nonsense", "E:42601 Z:I"),
    ] {
        assert_eq!(talk.query(sql).await, expected, "{sql}");
    }
    let asked = talk.fake.asked.lock().clone();
    assert_eq!(
        asked,
        [
            "reload",
            "switchover to None",
            "switchover to Some(\"node2\")",
            "switchover to Some(\"node1\")",
        ]
    );
}

#[tokio::test]
async fn a_statement_is_prepared_described_and_run_more_than_once() {
    let mut talk = Talk::with(Fake::default());
    let prepared = [parse("s", "show version"), named(b'D', b'S', "s"), SYNC.to_vec()].concat();
    assert_eq!(talk.say(&prepared, None).await, ("1 t T Z:I".to_owned(), After::Listen));
    for _ in 0..2 {
        let run = [
            bind("", "s", PLAIN),
            named(b'D', b'P', ""),
            execute("", 0),
            named(b'C', b'P', ""),
            SYNC.to_vec(),
        ];
        let (told, _) = talk.say(&run.concat(), None).await;
        assert_eq!(told, "2 T D:pgsluice 1.2.3 C:SHOW 3 Z:I");
    }
    let closed = [named(b'C', b'S', "s"), bind("", "s", PLAIN), SYNC.to_vec()].concat();
    assert_eq!(talk.say(&closed, None).await.0, "3 E:26000 Z:I");
}

#[tokio::test]
async fn what_has_no_rows_and_what_is_empty_say_so() {
    let mut talk = Talk::with(Fake::default());
    for (sql, expected) in [
        ("reload", "1 2 n N:01000 C:RELOAD Z:I"),
        ("begin", "1 2 n C:BEGIN Z:I"),
        ("", "1 2 n I Z:I"),
    ] {
        let batch = [
            parse("", sql),
            bind("", "", PLAIN),
            named(b'D', b'P', ""),
            execute("", 0),
            SYNC.to_vec(),
        ];
        assert_eq!(talk.say(&batch.concat(), None).await.0, expected, "{sql}");
    }
}

#[tokio::test]
async fn rows_are_given_out_in_portions_and_a_portal_ends_with_its_batch() {
    let mut talk = Talk::with(Fake::default());
    let batch = [
        parse("", "show nodes"),
        bind("p", "", PLAIN),
        execute("p", 1),
        execute("p", 1),
        execute("p", 1),
        SYNC.to_vec(),
    ];
    let (told, _) = talk.say(&batch.concat(), None).await;
    let words: Vec<&str> = told.split(' ').map(|word| &word[..word.len().min(7)]).collect();
    assert_eq!(words, ["1", "2", "D:node1", "s", "D:node2", "C:SHOW", "E:55000", "Z:I"]);
    let later = [execute("p", 0), SYNC.to_vec()].concat();
    assert_eq!(talk.say(&later, None).await.0, "E:34000 Z:I");
}

#[tokio::test]
async fn values_come_in_binary_where_that_is_asked_for() {
    let mut talk = Talk::with(Fake::default());
    let all_binary = [0, 0, 0, 0, 0, 1, 0, 1];
    let batch = [
        parse("", "switchover"),
        bind("", "", &all_binary),
        execute("", 0),
        SYNC.to_vec(),
    ]
    .concat();
    let (told, _) = talk.say(&batch, None).await;
    let took = String::from_utf8_lossy(&1.5_f64.to_be_bytes()).into_owned();
    assert_eq!(
        told,
        format!("1 2 N:01000 D:node2|node1|\0\0\0\0\0\0\0\x07|{took}|\0\0\0\0\0\0\0\x03 C:SWITCHOVER Z:I")
    );
}

#[tokio::test]
async fn an_error_in_a_batch_passes_the_rest_over_up_to_its_sync() {
    let mut talk = Talk::with(Fake::default());
    let rest = |batch: &[Vec<u8>]| [batch, &[execute("", 0), SYNC.to_vec()]].concat().concat();
    for (batch, expected) in [
        (vec![parse("", "nonsense")], "E:42601 Z:I"),
        (vec![parse("", "reload; reload")], "E:42601 Z:I"),
        (vec![parse("a", "reload"), parse("a", "reload")], "1 E:42P05 Z:I"),
        (vec![bind("", "none", PLAIN)], "E:26000 Z:I"),
        (vec![named(b'D', b'S', "none")], "E:26000 Z:I"),
        (vec![named(b'D', b'P', "none")], "E:34000 Z:I"),
        (
            vec![parse("", "reload"), bind("", "", &[0, 0, 0, 1, 0, 0, 0, 1, b'x', 0, 0])],
            "1 E:08P01 Z:I",
        ),
        (
            vec![parse("", "show version"), bind("", "", &[0, 0, 0, 0, 0, 2, 0, 0, 0, 0])],
            "1 E:08P01 Z:I",
        ),
        (vec![parse("", "reload"), bind("", "", b"\0")], "1 E:08P01 Z:I"),
        (
            vec![parse("", "reload"), bind("p", "", PLAIN), bind("p", "", PLAIN)],
            "1 2 E:42P03 Z:I",
        ),
        (vec![message(b'F', b"\0\0\0\x01\0\0\0\0\0\0")], "E:0A000 Z:I"),
    ] {
        let is_call = batch[0][0] == b'F';
        let bytes = if is_call { batch.concat() } else { rest(&batch) };
        assert_eq!(talk.say(&bytes, None).await, (expected.to_owned(), After::Listen));
    }
    let open = [parse("", "nonsense"), FLUSH.to_vec()].concat();
    assert_eq!(talk.say(&open, None).await, ("E:42601".to_owned(), After::SkipToSync));
    assert!(talk.fake.asked.lock().is_empty(), "nothing of it was carried out");
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

#[tokio::test]
async fn what_a_client_can_make_it_keep_is_bounded() {
    let mut talk = Talk::with(Fake::default());
    for number in 0..256 {
        let one = [parse(&number.to_string(), "reload"), SYNC.to_vec()].concat();
        assert_eq!(talk.say(&one, None).await.0, "1 Z:I");
    }
    let one_more = [parse("more", "reload"), SYNC.to_vec()].concat();
    assert_eq!(talk.say(&one_more, None).await.0, "E:54000 Z:I");
    assert_eq!(talk.query("discard all").await, "C:DISCARD ALL Z:I");
    assert_eq!(talk.say(&one_more, None).await.0, "1 Z:I");
    let long = [parse(&"n".repeat(2000), "reload"), SYNC.to_vec()].concat();
    assert_eq!(talk.say(&long, None).await.0, "E:54000 Z:I");
    assert_eq!(talk.query(&" ".repeat(20_000)).await, "E:54000 Z:I");
}

#[tokio::test]
async fn a_switchover_that_nobody_waits_for_any_more_goes_on() {
    for (interrupt, expected) in [
        (Interrupt::Cancelled, ("E:57014 Z:I", After::Listen)),
        (Interrupt::Leaving, ("E:57P01", After::Leave)),
        (Interrupt::Gone, ("", After::Leave)),
    ] {
        let mut talk = Talk::with(Fake {
            gate: Some(Notify::new()),
            ..Fake::default()
        });
        let mut bytes = Vec::new();
        put_query(&mut bytes, b"switchover to node2; reload");
        let (told, after) = talk.say(&bytes, Some(interrupt)).await;
        assert_eq!((&*told, after), expected);
        assert_eq!(talk.fake.finished.load(Ordering::Relaxed), 0);
        talk.fake.gate.as_ref().expect("a gate").notify_one();
        let finished = async {
            while talk.fake.finished.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(10), finished).await;
        assert!(in_time.is_ok(), "{interrupt:?} has ended it");
        assert_eq!(*talk.fake.asked.lock(), ["switchover to Some(\"node2\")"]);
    }
}

#[tokio::test]
async fn a_message_that_is_too_long_to_be_one_of_the_consoles_ends_the_talk() {
    let mut talk = Talk::with(Fake::default());
    let mut bytes = message(b'Q', &vec![b' '; crate::session::request::TEXT_CAP]);
    bytes.truncate(crate::session::request::TEXT_CAP);
    assert_eq!(talk.say(&bytes, None).await, ("E:54000".to_owned(), After::Leave));
}
