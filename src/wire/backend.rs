//! Following a server's replies without decoding them.
//!
//! [`ReplyScanner`] walks over whatever has arrived and names each message once. Rows and copy data are passed over in runs; of the rest
//! somebody looks inside (a SQLSTATE, a parameter, a transaction status). All are waited for until they are whole, unless they are too
//! large for that: then the front has to do, and the rest is passed on in parts.

use super::frame::{HEADER, header};
use super::frontend::c_string;

/// A message longer than this is named as soon as its front is there and passed on in parts.
const WAIT_LIMIT: usize = 16 * 1024;
/// A description of columns or parameters is waited for whole: what is told of a statement must be compared. A server's is never longer
/// (1664 columns with names of 64 bytes, or 65,535 parameters).
const DESCRIPTION_LIMIT: usize = 512 * 1024;
/// How much of such a message's front is waited for: severity and SQLSTATE stand first in an error.
const FRONT: usize = 256;

/// Keeps its place in one server's stream of replies.
#[derive(Debug, Default)]
pub struct ReplyScanner {
    /// Bytes still to come of a message that has been named already.
    skip: usize,
}

/// One step over the bytes at hand.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Rows, copy data, or more of a message named before: bytes up to `end` concern only the client.
    Opaque {
        /// One past the last byte.
        end: usize,
    },
    /// A message, named once. `body` is all of it, or its front if it is very long.
    Message {
        /// Its type byte.
        tag: u8,
        /// What follows the header.
        body: &'a [u8],
        /// One past the last of its bytes that are here.
        end: usize,
    },
    /// Nothing more can be said of the bytes from here on until more arrive.
    Incomplete,
    /// The bytes are no message; the stream can't be followed.
    Malformed,
}

impl ReplyScanner {
    /// Looks at `bytes[at..]`.
    pub fn step<'a>(&mut self, bytes: &'a [u8], at: usize) -> Step<'a> {
        if self.skip > 0 {
            let here = self.skip.min(bytes.len() - at);
            if here == 0 {
                return Step::Incomplete;
            }
            self.skip -= here;
            return Step::Opaque { end: at + here };
        }
        let mut pos = at;
        loop {
            let rest = &bytes[pos..];
            let Some((tag, length)) = header(rest) else {
                return if pos > at {
                    Step::Opaque { end: pos }
                } else {
                    Step::Incomplete
                };
            };
            let length = length as usize;
            if length < 4 || !tag.is_ascii_alphanumeric() {
                return if pos > at {
                    Step::Opaque { end: pos }
                } else {
                    Step::Malformed
                };
            }
            let total = length + 1;
            if tag == b'D' || tag == b'd' {
                if total <= rest.len() {
                    pos += total;
                    continue;
                }
                if total <= WAIT_LIMIT {
                    // Passed on whole or not at all, so that a server that is lost leaves nothing half said.
                    return if pos > at {
                        Step::Opaque { end: pos }
                    } else {
                        Step::Incomplete
                    };
                }
                self.skip = total - rest.len();
                return Step::Opaque { end: bytes.len() };
            }
            if pos > at {
                return Step::Opaque { end: pos };
            }
            if total <= rest.len() {
                return Step::Message {
                    tag,
                    body: &rest[HEADER..total],
                    end: pos + total,
                };
            }
            let limit = match tag {
                b'T' | b't' => DESCRIPTION_LIMIT,
                _ => WAIT_LIMIT,
            };
            if total <= limit || rest.len() < FRONT {
                return Step::Incomplete;
            }
            self.skip = total - rest.len();
            return Step::Message {
                tag,
                body: &rest[HEADER..],
                end: bytes.len(),
            };
        }
    }

    /// Whether the bytes so far ended with a message's end.
    pub fn at_boundary(&self) -> bool {
        self.skip == 0
    }
}

/// The transaction status in a `ReadyForQuery`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    /// Not in a transaction block.
    Idle,
    /// In a transaction block.
    InBlock,
    /// In a failed transaction block: everything but its end is refused.
    Failed,
}

impl TransactionStatus {
    /// Reads the body of a `ReadyForQuery`.
    pub fn parse(body: &[u8]) -> Option<TransactionStatus> {
        match body {
            b"I" => Some(TransactionStatus::Idle),
            b"T" => Some(TransactionStatus::InBlock),
            b"E" => Some(TransactionStatus::Failed),
            _ => None,
        }
    }

    /// As it stands in a `ReadyForQuery`.
    pub fn byte(self) -> u8 {
        match self {
            TransactionStatus::Idle => b'I',
            TransactionStatus::InBlock => b'T',
            TransactionStatus::Failed => b'E',
        }
    }
}

/// Name and value in a `ParameterStatus` body.
pub fn parameter_status(body: &[u8]) -> Option<(&str, &str)> {
    let (name, rest) = c_string(body)?;
    let (value, _) = c_string(rest)?;
    Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
}

/// Appends an ErrorResponse of which the body is at hand, as it came.
pub fn put_error_body(out: &mut Vec<u8>, body: &[u8]) {
    out.push(b'E');
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
}

/// Appends a `ParameterStatus`.
pub fn put_parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(b'S');
    out.extend_from_slice(&((name.len() + value.len() + 6) as u32).to_be_bytes());
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}

/// A whole NotificationResponse with another sender's process id in the body's place for it.
pub fn notification_from(body: &[u8], sender: i32) -> Vec<u8> {
    let behind = body.get(4..).unwrap_or_default();
    let length = behind.len() as u32 + 8;
    [&[b'A'][..], &length.to_be_bytes(), &sender.to_be_bytes(), behind].concat()
}

/// Appends a `BackendKeyData`.
pub fn put_key_data(out: &mut Vec<u8>, pid: i32, secret: &[u8]) {
    out.push(b'K');
    out.extend_from_slice(&((secret.len() + 8) as u32).to_be_bytes());
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(secret);
}

/// Appends a `CommandComplete`.
pub fn put_command_complete(out: &mut Vec<u8>, tag: &str) {
    out.push(b'C');
    out.extend_from_slice(&((tag.len() + 5) as u32).to_be_bytes());
    out.extend_from_slice(tag.as_bytes());
    out.push(0);
}

/// Appends a `ReadyForQuery`.
pub fn put_ready(out: &mut Vec<u8>, status: TransactionStatus) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status.byte()]);
}

/// A `ParseComplete`.
pub const PARSE_COMPLETE: [u8; 5] = [b'1', 0, 0, 0, 4];
/// A `BindComplete`.
pub const BIND_COMPLETE: [u8; 5] = [b'2', 0, 0, 0, 4];
/// A `CloseComplete`.
pub const CLOSE_COMPLETE: [u8; 5] = [b'3', 0, 0, 0, 4];
/// A `PortalSuspended`.
pub const PORTAL_SUSPENDED: [u8; 5] = [b's', 0, 0, 0, 4];
/// An `EmptyQueryResponse`.
pub const EMPTY_QUERY: [u8; 5] = [b'I', 0, 0, 0, 4];
/// A `NoData`.
pub const NO_DATA: [u8; 5] = [b'n', 0, 0, 0, 4];
/// An empty `ParameterDescription`.
pub const NO_PARAMETERS: [u8; 7] = [b't', 0, 0, 0, 6, 0, 0];

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    /// Feeds `bytes` in chunks as a relay does: what is incomplete stays in front of the next chunk.
    fn tags(bytes: &[u8], chunk: usize) -> Vec<(u8, usize)> {
        let (mut scanner, mut held, mut seen) = (ReplyScanner::default(), Vec::new(), Vec::new());
        for piece in bytes.chunks(chunk) {
            held.extend_from_slice(piece);
            let mut at = 0;
            while at < held.len() {
                match scanner.step(&held, at) {
                    Step::Opaque { end } => at = end,
                    Step::Message { tag, body, end } => {
                        seen.push((tag, body.len()));
                        at = end;
                    }
                    Step::Incomplete => break,
                    Step::Malformed => panic!("malformed"),
                }
            }
            held.drain(..at);
        }
        assert!(held.is_empty() && scanner.at_boundary());
        seen
    }

    #[test]
    fn messages_are_named_once_however_the_bytes_are_cut() {
        let mut bytes = message(b'T', &[7; 40]);
        for _ in 0..5 {
            bytes.extend(message(b'D', &[1; 100]));
        }
        bytes.extend(message(b'C', b"SELECT 5\0"));
        bytes.extend(message(b'Z', b"I"));
        for chunk in 1..bytes.len() {
            assert_eq!(
                tags(&bytes, chunk),
                [(b'T', 40), (b'C', 9), (b'Z', 1)],
                "cut in {chunk}"
            );
        }
    }

    #[test]
    fn a_huge_message_is_named_by_its_front() {
        let mut bytes = message(b'E', &[b'x'; 100_000]);
        bytes.extend(message(b'Z', b"I"));
        let seen = tags(&bytes, 8192);
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].0, b'E');
        assert!(seen[0].1 >= FRONT - HEADER);
    }

    #[test]
    fn a_description_is_named_whole() {
        let mut bytes = message(b't', &[1; 200_000]);
        bytes.extend(message(b'T', &[2; 100_000]));
        bytes.extend(message(b'Z', b"I"));
        let seen = tags(&bytes, 8192);
        assert_eq!(seen, [(b't', 200_000), (b'T', 100_000), (b'Z', 1)]);
    }

    #[test]
    fn what_is_no_message_is_said() {
        assert_eq!(ReplyScanner::default().step(b"\0\0\0\0\0\0\0\0", 0), Step::Malformed);
        assert_eq!(ReplyScanner::default().step(b"Z\0\0\0\x03I", 0), Step::Malformed);
    }
}
