//! A client that sends whatever bytes a test wants, and sees the bytes that come back: protocol 3 with nothing in between.
//!
//! Every wait has [`PATIENCE`] as its deadline, so that a proxy that owes an answer fails the test and doesn't hang it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::PATIENCE;

/// One message of the server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type byte.
    pub tag: u8,
    /// What follows the length.
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an error or a notice, by its letter.
    pub fn field(&self, letter: u8) -> Option<String> {
        let mut rest = &self.body[..];
        while let [kind, tail @ ..] = rest
            && *kind != 0
        {
            let end = tail.iter().position(|&byte| byte == 0)?;
            if *kind == letter {
                return Some(String::from_utf8_lossy(&tail[..end]).into_owned());
            }
            rest = &tail[end + 1..];
        }
        None
    }

    /// The SQLSTATE of an error or a notice.
    pub fn code(&self) -> String {
        assert!(matches!(self.tag, b'E' | b'N'), "no error: {self}");
        self.field(b'C').expect("an error has a code")
    }

    /// The values of a DataRow, as text.
    pub fn cells(&self) -> Vec<Option<String>> {
        assert_eq!(self.tag, b'D', "no row: {self}");
        let count = u16::from_be_bytes([self.body[0], self.body[1]]);
        let mut rest = &self.body[2..];
        (0..count)
            .map(|_| {
                let (length, tail) = rest.split_first_chunk::<4>().expect("a length");
                rest = tail;
                let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
                let (value, tail) = rest.split_at(length);
                rest = tail;
                Some(String::from_utf8_lossy(value).into_owned())
            })
            .collect()
    }

    /// The text of a CommandComplete.
    pub fn command(&self) -> &str {
        assert_eq!(self.tag, b'C', "no command: {self}");
        std::str::from_utf8(&self.body[..self.body.len() - 1]).expect("a command's tag is ASCII")
    }

    /// As it was on the wire.
    pub fn encode(&self) -> Vec<u8> {
        message(self.tag, &self.body)
    }
}

impl std::fmt::Display for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.body[..self.body.len().min(300)];
        write!(f, "{}[{}]", char::from(self.tag), shown.escape_ascii())
    }
}

/// All of them, for a failed assertion.
pub fn show(messages: &[Message]) -> String {
    let lines: Vec<String> = messages.iter().map(Message::to_string).collect();
    lines.join("\n  ")
}

/// The type bytes of an answer, in order.
pub fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

/// The SQLSTATEs in an answer, in order.
pub fn codes(messages: &[Message]) -> Vec<String> {
    messages
        .iter()
        .filter(|message| message.tag == b'E')
        .map(Message::code)
        .collect()
}

/// The rows of an answer.
pub fn rows(messages: &[Message]) -> Vec<Vec<Option<String>>> {
    messages
        .iter()
        .filter(|message| message.tag == b'D')
        .map(Message::cells)
        .collect()
}

/// The first value of each row of an answer; the text `NULL` where there is none.
pub fn firsts(messages: &[Message]) -> Vec<String> {
    rows(messages)
        .into_iter()
        .map(|mut cells| cells.swap_remove(0).unwrap_or_else(|| "NULL".into()))
        .collect()
}

/// A connection of bytes.
pub struct Wire {
    tcp: TcpStream,
    received: Vec<u8>,
    /// Where what isn't taken yet begins in `received`.
    taken: usize,
    /// What BackendKeyData said: a process id, and a key.
    pub key: (i32, Vec<u8>),
    /// What came before the first ReadyForQuery.
    pub greeting: Vec<Message>,
}

impl Wire {
    /// A connection on which nothing has been said.
    pub async fn open(port: u16) -> Wire {
        let tcp = within("connecting", TcpStream::connect(("127.0.0.1", port)))
            .await
            .unwrap_or_else(|error| panic!("port {port}: {error}"));
        tcp.set_nodelay(true).expect("a socket option");
        Wire {
            tcp,
            received: Vec::new(),
            taken: 0,
            key: (0, Vec::new()),
            greeting: Vec::new(),
        }
    }

    /// A session of user `postgres` with this database.
    pub async fn login(port: u16, database: &str) -> Wire {
        Wire::login_with(port, &[("user", "postgres"), ("database", database)]).await
    }

    /// A session with these start-up parameters.
    pub async fn login_with(port: u16, parameters: &[(&str, &str)]) -> Wire {
        let mut wire = Wire::open(port).await;
        wire.send(&startup(0, parameters)).await;
        wire.greeted().await;
        wire
    }

    /// Takes what comes up to the first ReadyForQuery.
    pub async fn greeted(&mut self) {
        self.greeting = self.answer().await;
        let last = tags(&self.greeting);
        assert!(last.ends_with('Z'), "no login: {}", show(&self.greeting));
        if let Some(key) = self.greeting.iter().find(|message| message.tag == b'K') {
            let (pid, secret) = key.body.split_first_chunk::<4>().expect("a process id");
            self.key = (i32::from_be_bytes(*pid), secret.to_vec());
        }
    }

    /// What the greeting said of a parameter.
    pub fn parameter(&self, name: &str) -> Option<String> {
        parameter(&self.greeting, name)
    }

    /// Sends bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            within("sending", self.tcp.write_all(bytes))
                .await
                .unwrap_or_else(|error| panic!("{caller}: {error}"));
        }
    }

    /// Sends bytes to a peer that may have had enough.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        within("sending", self.tcp.write_all(bytes)).await
    }

    /// Says that no more will be sent.
    pub async fn finish(&mut self) {
        let _ = self.tcp.shutdown().await;
    }

    /// The next message; `None` at the connection's end, an orderly one or not.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            let here = &self.received[self.taken..];
            if let Some((tag, length)) = header(here)
                && here.len() > length
            {
                let body = here[5..=length].to_vec();
                self.taken += length + 1;
                return Some(Message { tag, body });
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Reads once; `false` at the end.
    async fn fill(&mut self) -> bool {
        self.received.drain(..self.taken);
        self.taken = 0;
        self.received.reserve(64 * 1024);
        matches!(within("an answer", self.tcp.read_buf(&mut self.received)).await, Ok(count) if count > 0)
    }

    /// The next message of a connection that must not end.
    pub async fn expect(&mut self) -> Message {
        self.next().await.expect("the connection has ended")
    }

    /// Messages up to ReadyForQuery, or to the connection's end.
    pub async fn answer(&mut self) -> Vec<Message> {
        self.until(b'Z').await
    }

    /// Messages up to one of this type, or to the connection's end.
    pub async fn until(&mut self, tag: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            let last = message.tag == tag;
            messages.push(message);
            if last {
                break;
            }
        }
        messages
    }

    /// This many answers, each up to its ReadyForQuery.
    pub async fn answers(&mut self, count: usize) -> Vec<Vec<Message>> {
        let mut answers = Vec::new();
        for _ in 0..count {
            answers.push(self.answer().await);
        }
        answers
    }

    /// Sends bytes and takes the answer up to ReadyForQuery.
    pub async fn ask(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.send(bytes).await;
        self.answer().await
    }

    /// A simple query and its answer.
    pub async fn query(&mut self, sql: &str) -> Vec<Message> {
        self.ask(&query(sql)).await
    }

    /// A simple query that must not fail.
    #[track_caller]
    pub fn run(&mut self, sql: &str) -> impl Future<Output = Vec<Message>> {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.query(sql).await;
            assert!(
                codes(&answer).is_empty() && tags(&answer).ends_with('Z'),
                "{caller}: {sql:.200}\n  {}",
                show(&answer)
            );
            answer
        }
    }

    /// The first value of the first row of a query that must not fail.
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.query(sql).await;
            assert!(codes(&answer).is_empty(), "{caller}: {sql:.200}\n  {}", show(&answer));
            firsts(&answer)
                .into_iter()
                .next()
                .unwrap_or_else(|| panic!("{caller}: no row: {sql:.200}\n  {}", show(&answer)))
        }
    }

    /// Everything that comes up to the connection's end.
    pub async fn rest(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            messages.push(message);
        }
        messages
    }

    /// All bytes that come up to the connection's end.
    pub async fn rest_of_bytes(&mut self) -> Vec<u8> {
        while self.fill_more().await {}
        self.received.split_off(self.taken)
    }

    async fn fill_more(&mut self) -> bool {
        self.received.reserve(64 * 1024);
        matches!(within("the end", self.tcp.read_buf(&mut self.received)).await, Ok(count) if count > 0)
    }

    /// Whether nothing has come that isn't taken.
    pub fn is_quiet(&self) -> bool {
        let mut byte = [0];
        self.taken == self.received.len() && self.tcp.try_read(&mut byte).is_err()
    }

    /// Closes without a word, as a process that was killed.
    pub fn vanish(self) {
        drop(self);
    }

    /// Closes so that the peer gets a reset, as when a machine is lost.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
    }

    /// Both directions apart, for a test that writes and reads at once. Nothing may have come that isn't taken.
    pub fn split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        assert_eq!(self.taken, self.received.len(), "something has come already");
        self.tcp.into_split()
    }
}

/// Waits, but not for ever.
pub async fn within<T>(what: &str, happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, happens)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Tag and length of a message.
pub fn header(bytes: &[u8]) -> Option<(u8, usize)> {
    let (head, _) = bytes.split_first_chunk::<5>()?;
    Some((
        head[0],
        u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize,
    ))
}

/// The last value of a parameter that these messages report.
pub fn parameter(messages: &[Message], name: &str) -> Option<String> {
    messages
        .iter()
        .rev()
        .filter(|message| message.tag == b'S')
        .find_map(|message| {
            let text = String::from_utf8_lossy(&message.body).into_owned();
            let (known, value) = text.split_once('\0')?;
            (known == name).then(|| value.trim_end_matches('\0').to_owned())
        })
}

/// Any message.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&u32::try_from(body.len() + 4).expect("a short body").to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// StartupMessage for protocol 3.`minor`.
pub fn startup(minor: u16, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0, 3];
    body.extend_from_slice(&minor.to_be_bytes());
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    packet(&body)
}

/// A packet of the start-up phase: a length and a body.
pub fn packet(body: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(body.len() + 4)
        .expect("a short body")
        .to_be_bytes()
        .to_vec();
    out.extend_from_slice(body);
    out
}

/// CancelRequest.
pub fn cancel_request(key: &(i32, Vec<u8>)) -> Vec<u8> {
    let mut body = vec![0x04, 0xD2, 0x16, 0x2E];
    body.extend_from_slice(&key.0.to_be_bytes());
    body.extend_from_slice(&key.1);
    packet(&body)
}

/// Query.
pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

/// Parse, with parameter types.
pub fn parse(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let mut body = [name.as_bytes(), b"\0", sql.as_bytes(), b"\0"].concat();
    body.extend_from_slice(&u16::try_from(types.len()).expect("few types").to_be_bytes());
    for oid in types {
        body.extend_from_slice(&oid.to_be_bytes());
    }
    message(b'P', &body)
}

/// Bind, with all values and results as text.
pub fn bind(portal: &str, statement: &str, values: &[Option<&str>]) -> Vec<u8> {
    let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0", &[0, 0]].concat();
    body.extend_from_slice(&u16::try_from(values.len()).expect("few values").to_be_bytes());
    for value in values {
        match value {
            None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(text) => {
                body.extend_from_slice(&i32::try_from(text.len()).expect("a short value").to_be_bytes());
                body.extend_from_slice(text.as_bytes());
            }
        }
    }
    body.extend_from_slice(&[0, 0]);
    message(b'B', &body)
}

/// Describe of a statement (`b'S'`) or a portal (`b'P'`).
pub fn describe(kind: u8, name: &str) -> Vec<u8> {
    message(b'D', &[&[kind], name.as_bytes(), b"\0"].concat())
}

/// Close of a statement (`b'S'`) or a portal (`b'P'`).
pub fn close(kind: u8, name: &str) -> Vec<u8> {
    message(b'C', &[&[kind], name.as_bytes(), b"\0"].concat())
}

/// Execute; 0 rows are all of them.
pub fn execute(portal: &str, most_rows: i32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &most_rows.to_be_bytes()].concat())
}

/// Sync.
pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// Flush.
pub fn flush() -> Vec<u8> {
    message(b'H', b"")
}

/// Terminate.
pub fn terminate() -> Vec<u8> {
    message(b'X', b"")
}

/// CopyData.
pub fn copy_data(data: &[u8]) -> Vec<u8> {
    message(b'd', data)
}

/// CopyDone.
pub fn copy_done() -> Vec<u8> {
    message(b'c', b"")
}

/// CopyFail.
pub fn copy_fail(why: &str) -> Vec<u8> {
    message(b'f', &[why.as_bytes(), b"\0"].concat())
}

/// FunctionCall, with all values and the result as text.
pub fn function_call(oid: u32, values: &[&str]) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&u16::try_from(values.len()).expect("few values").to_be_bytes());
    for value in values {
        body.extend_from_slice(&u32::try_from(value.len()).expect("a short value").to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    message(b'F', &body)
}

/// Parse, Bind, Describe and Execute of the unnamed statement, without a Sync.
pub fn extended(sql: &str, values: &[Option<&str>]) -> Vec<u8> {
    [
        parse("", sql, &[]),
        bind("", "", values),
        describe(b'P', ""),
        execute("", 0),
    ]
    .concat()
}
