//! Cutting what a client has sent into units that can be carried out. Pure.
//!
//! A unit is one or more whole requests (a Query, a FunctionCall, or a batch of extended-protocol messages up to Sync), or the front of a
//! batch that can't be waited for: because the client asks for an answer (Flush), sends copy data, sends more than [`CAP`] without an end, or
//! sends no end for [`LINGER`].

use std::time::Duration;

use smallvec::SmallVec;

use crate::wire::frame::{BadFrame, HEADER, frontend_header};

/// Bytes of one unit that are waited for before it is carried out piecemeal.
pub const CAP: usize = 256 * 1024;
/// A text is waited for longer: what it does to the session can only be known of a whole one.
pub const TEXT_CAP: usize = 4 * 1024 * 1024;
/// A batch whose statements have been here for this long, and nothing behind them, is carried out without its end: a server wouldn't wait
/// either, and tells of an error at once.
pub const LINGER: Duration = Duration::from_millis(100);
/// Requests taken into one unit at most.
const MOST_REQUESTS: usize = 256;

/// One message's place in the bytes at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameAt {
    /// Its type byte.
    pub tag: u8,
    /// Where it begins.
    pub start: usize,
    /// One past its last byte; beyond the bytes at hand if it is not whole.
    pub end: usize,
}

/// How a unit ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// With a request's end: all that comes back ends in ReadyForQuery.
    Closed,
    /// With a Flush, after nothing but Parse, Describe and Close of statements. Outside of them it changes nothing to have a Sync there, so
    /// that the rest of the batch is free to run elsewhere.
    Prepared,
    /// In the middle of a batch, after a whole message.
    Open,
    /// In the middle of a message, which is the unit's last frame.
    Cut,
}

/// What can be carried out now.
#[derive(Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its messages.
    pub frames: SmallVec<[FrameAt; 8]>,
    /// How it ends.
    pub tail: Tail,
    /// Its bytes that are at hand.
    pub len: usize,
}

/// What the bytes at hand begin with.
#[derive(Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and is never stored"
)]
pub enum Gathered {
    /// Nothing whole yet.
    More,
    /// A unit.
    Unit(Unit),
    /// The client says goodbye.
    Terminate,
    /// A message that means nothing here and is passed over, as the server does: copy data after a COPY that failed, a Flush with nothing
    /// before it. Its length.
    Skip(usize),
}

/// Looks at `bytes`, which begin with a message's first byte.
///
/// # Errors
/// The bytes are not the protocol.
pub fn gather(bytes: &[u8]) -> Result<Gathered, BadFrame> {
    let mut frames = SmallVec::<[FrameAt; 8]>::new();
    let (mut at, mut closed, mut requests) = (0, (0, 0), 0);
    let mut open = false;
    loop {
        let header = match frontend_header(&bytes[at..]) {
            Ok(Some(header)) => header,
            Ok(None) => break,
            // What came before it is carried out first.
            Err(_) if requests > 0 => break,
            Err(bad) => return Err(bad),
        };
        let whole = header.total <= bytes.len() - at;
        match header.tag {
            b'X' if frames.is_empty() => return Ok(Gathered::Terminate),
            b'd' | b'c' | b'f' | b'H' if frames.is_empty() => {
                return Ok(if whole {
                    Gathered::Skip(header.total)
                } else {
                    skip_cut(bytes.len(), header.total)
                });
            }
            // Handled when they come first; here they end what stands before them.
            b'X' | b'd' | b'c' | b'f' => {
                return Ok(if open {
                    Gathered::Unit(Unit {
                        frames,
                        tail: Tail::Open,
                        len: at,
                    })
                } else {
                    until(frames, closed)
                });
            }
            b'p' if requests > 0 => break,
            b'p' => return Err(BadFrame::UnknownTag(b'p')),
            _ => {}
        }
        if !whole {
            if requests > 0 || bytes.len() - at < waits_for(header.tag) {
                break;
            }
            frames.push(FrameAt {
                tag: header.tag,
                start: at,
                end: at + header.total,
            });
            return Ok(Gathered::Unit(Unit {
                frames,
                tail: Tail::Cut,
                len: bytes.len(),
            }));
        }
        frames.push(FrameAt {
            tag: header.tag,
            start: at,
            end: at + header.total,
        });
        at += header.total;
        match header.tag {
            b'Q' | b'F' | b'S' => {
                requests += 1;
                open = false;
                closed = (frames.len(), at);
                if requests == MOST_REQUESTS || at >= CAP {
                    break;
                }
            }
            b'H' if open => {
                let tail = flushed(&frames[closed.0..], bytes);
                return Ok(Gathered::Unit(Unit { frames, tail, len: at }));
            }
            _ => open = true,
        }
    }
    if requests > 0 {
        return Ok(until(frames, closed));
    }
    if open && at >= CAP {
        return Ok(Gathered::Unit(Unit {
            frames,
            tail: Tail::Open,
            len: at,
        }));
    }
    Ok(Gathered::More)
}

/// What [`gather`] waits for the end of: the whole messages at hand, if they run something.
pub fn front(bytes: &[u8]) -> Option<Unit> {
    let mut frames = SmallVec::<[FrameAt; 8]>::new();
    let mut at = 0;
    while let Ok(Some(header)) = frontend_header(&bytes[at..])
        && header.total <= bytes.len() - at
    {
        frames.push(FrameAt {
            tag: header.tag,
            start: at,
            end: at + header.total,
        });
        at += header.total;
    }
    let runs = frames.iter().any(|frame| frame.tag == b'E');
    runs.then_some(Unit {
        frames,
        tail: Tail::Open,
        len: at,
    })
}

/// Bytes of a message that are waited for before it is passed on in parts.
pub fn waits_for(tag: u8) -> usize {
    match tag {
        b'Q' | b'P' => TEXT_CAP,
        _ => CAP,
    }
}

/// How a batch ends that a Flush asks an answer for.
fn flushed(batch: &[FrameAt], bytes: &[u8]) -> Tail {
    let prepares = batch.iter().all(|frame| match frame.tag {
        b'P' | b'H' => true,
        // The body's first byte: S is a statement, P a portal.
        b'D' | b'C' => bytes.get(frame.start + HEADER) == Some(&b'S'),
        _ => false,
    });
    if prepares { Tail::Prepared } else { Tail::Open }
}

fn until(mut frames: SmallVec<[FrameAt; 8]>, (count, len): (usize, usize)) -> Gathered {
    frames.truncate(count);
    Gathered::Unit(Unit {
        frames,
        tail: Tail::Closed,
        len,
    })
}

/// A message to pass over of which only a part is here: wait for the rest if it is small, else this is no client that means well.
fn skip_cut(have: usize, total: usize) -> Gathered {
    if have < CAP {
        Gathered::More
    } else {
        Gathered::Skip(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    fn tags(bytes: &[u8]) -> (String, Tail, usize) {
        match gather(bytes).unwrap() {
            Gathered::Unit(unit) => (
                unit.frames.iter().map(|frame| char::from(frame.tag)).collect(),
                unit.tail,
                unit.len,
            ),
            other => panic!("{other:?}"),
        }
    }

    fn stream(tags: &str) -> Vec<u8> {
        tags.bytes().flat_map(|tag| message(tag, b"x\0")).collect()
    }

    #[test]
    fn whole_requests_are_taken_together_and_a_begun_one_is_left() {
        let bytes = stream("QPBESP");
        assert_eq!(tags(&bytes), ("QPBES".into(), Tail::Closed, bytes.len() - 7));
        assert_eq!(gather(&stream("PBE")), Ok(Gathered::More));
        assert_eq!(gather(&bytes[..3]), Ok(Gathered::More));
    }

    #[test]
    fn what_lingers_is_taken_up_to_its_last_whole_message_if_it_runs_something() {
        let bytes = stream("PBEP");
        let unit = front(&bytes[..24]).unwrap();
        assert_eq!((unit.frames.len(), unit.tail, unit.len), (3, Tail::Open, 21));
        assert_eq!(front(&bytes[..20]), None);
        assert_eq!(front(b""), None);
    }

    #[test]
    fn flush_and_copy_data_end_an_open_batch() {
        assert_eq!(tags(&stream("PBEHBES")), ("PBEH".into(), Tail::Open, 28));
        assert_eq!(tags(&stream("PBEdd")), ("PBE".into(), Tail::Open, 21));
        assert_eq!(tags(&stream("Qdd")), ("Q".into(), Tail::Closed, 7));
    }

    #[test]
    fn a_flush_after_mere_preparation_is_told_apart() {
        let prepares = [message(b'P', b"s\0"), message(b'D', b"Ss\0"), message(b'H', b"")].concat();
        assert_eq!(tags(&prepares), ("PDH".into(), Tail::Prepared, prepares.len()));
        let portal = [message(b'P', b"s\0"), message(b'D', b"Pp\0"), message(b'H', b"")].concat();
        assert_eq!(tags(&portal).1, Tail::Open);
    }

    #[test]
    fn what_means_nothing_is_skipped() {
        assert_eq!(gather(&stream("d")), Ok(Gathered::Skip(7)));
        assert_eq!(gather(&stream("HQ")), Ok(Gathered::Skip(7)));
        assert_eq!(gather(&stream("X")), Ok(Gathered::Terminate));
    }

    #[test]
    fn more_than_the_cap_is_not_waited_for() {
        let mut huge = message(b'B', &vec![0; 2 * CAP]);
        assert_eq!(tags(&huge[..CAP]), ("B".into(), Tail::Cut, CAP));
        huge.truncate(CAP / 2);
        assert_eq!(gather(&huge), Ok(Gathered::More));
        let small: Vec<u8> = stream(&"B".repeat(CAP / 7 + 1));
        let (tags, tail, len) = tags(&small);
        assert_eq!((tags.len(), tail, len), (CAP / 7 + 1, Tail::Open, small.len()));
    }

    #[test]
    fn bytes_that_are_not_the_protocol_are_refused() {
        assert!(gather(b"GET / HTTP/1.1\r\n").is_err());
        assert!(gather(b"p\0\0\0\x05x").is_err());
        assert!(gather(b"Q\xff\xff\xff\xff").is_err());
    }
}
