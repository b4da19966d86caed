//! A client of the simple protocol that shows what drivers keep to themselves: a command's tag, the transaction status, the last words
//! before the connection is closed.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::PATIENCE;

/// One logged-in client. It blocks its thread, for no longer than [`PATIENCE`].
pub struct Simple {
    tcp: TcpStream,
}

/// An answer, up to ReadyForQuery or the connection's end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Tags of the commands that were completed.
    pub commands: Vec<String>,
    /// SQLSTATEs of the errors.
    pub codes: Vec<String>,
    /// `I`, `T` or `E` as ReadyForQuery has it; `None` if the connection was closed instead.
    pub status: Option<char>,
}

impl Simple {
    /// A session of user `postgres` with database `postgres`.
    pub fn login(port: u16) -> Simple {
        let tcp = TcpStream::connect(("127.0.0.1", port)).expect("the proxy listens");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        let mut simple = Simple { tcp };
        let mut body = 196_608_i32.to_be_bytes().to_vec();
        body.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        simple.write(&[&length(&body)[..], &body].concat());
        assert_eq!(simple.hear().status, Some('I'), "a login");
        simple
    }

    /// Sends a query and takes its answer.
    pub fn say(&mut self, sql: &str) -> Said {
        self.send(sql);
        self.hear()
    }

    /// Sends a query.
    pub fn send(&mut self, sql: &str) {
        let body = [sql.as_bytes(), b"\0"].concat();
        self.write(&[b"Q", &length(&body)[..], &body].concat());
    }

    /// Takes an answer.
    pub fn hear(&mut self) -> Said {
        let mut said = Said::default();
        while let Some((tag, body)) = self.message() {
            match tag {
                b'C' => said.commands.push(text(&body)),
                b'E' => said.codes.push(code(&body)),
                b'Z' => {
                    said.status = body.first().map(|&byte| char::from(byte));
                    return said;
                }
                _ => {}
            }
        }
        said
    }

    fn write(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).expect("the proxy reads");
    }

    /// The next message; `None` at the connection's end.
    fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        match self.tcp.read_exact(&mut header) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                panic!("no answer within {PATIENCE:?}")
            }
            Err(_) => return None,
        }
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; length - 4];
        self.tcp.read_exact(&mut body).ok()?;
        Some((header[0], body))
    }
}

fn length(body: &[u8]) -> [u8; 4] {
    u32::try_from(body.len() + 4).expect("short messages").to_be_bytes()
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim_end_matches('\0').to_owned()
}

fn code(body: &[u8]) -> String {
    let mut fields = body.split(|&byte| byte == 0);
    let code = fields.find_map(|field| field.strip_prefix(b"C"));
    text(code.expect("an error has a code"))
}
