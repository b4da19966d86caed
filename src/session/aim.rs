//! Signals from one client to another: `pg_terminate_backend()` and `pg_cancel_backend()` with a process id that a client of the proxy is
//! known by. Pure.
//!
//! The server decides who may signal whom, so that it must be given a process of its own: that of the connection which the target has, or
//! takes for the purpose. From then on until the sender's statement is answered the target keeps that connection, and after that until the
//! server process has shown that it lives on: a signal which was on its way by then has hit it. So none ever reaches a stranger.

use std::time::{Duration, Instant};

use super::cancel::ServerProcess;
use super::request::FrameAt;
use crate::cluster::NodeId;
use crate::sql::{SignalArgument, SqlContext, signal_argument};
use crate::wire::frame::HEADER;
use crate::wire::frontend::{self, Format};

/// A connection that its session doesn't need isn't kept for longer than this for somebody's statement: it is closed then.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Who aims at a session.
#[derive(Debug, Default)]
pub struct Aimed {
    /// Statements that are to hit it, or are on their way.
    holds: u32,
    /// One of them may have: if the connection is ended by the server, then by that.
    marked: bool,
    /// Nobody waits for the answer to one of them any more, and so it may yet strike.
    doubted: bool,
    /// Where the sender of the last one is.
    near: Option<NodeId>,
    /// The connection that is kept for them between two requests.
    kept: Option<ServerProcess>,
    /// Since when there has always been one.
    since: Option<Instant>,
}

/// What a session has to do for those who aim at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Nobody,
    /// To show a connection; if it has none, one of this node is best.
    Awaited(NodeId),
    /// To keep the connection, until then at most.
    Held(Instant),
    /// To make sure that the server process lives on.
    Released,
}

impl Aimed {
    /// One more aims at it, from a connection to `near`.
    pub fn begin(&mut self, near: NodeId, now: Instant) {
        if self.holds == 0 {
            self.since = Some(now);
        }
        self.holds += 1;
        self.marked = true;
        self.near = Some(near);
    }

    /// One is done. `doubted` says that its statement may still run.
    pub fn end(&mut self, doubted: bool) {
        self.holds -= 1;
        self.doubted |= doubted;
    }

    /// Whether anybody aims at it now.
    pub fn is_held(&self) -> bool {
        self.holds > 0
    }

    /// Whether somebody has aimed at it, and it isn't known yet how that has ended.
    pub fn is_marked(&self) -> bool {
        self.marked
    }

    /// The connection that is kept.
    pub fn kept(&self) -> Option<&ServerProcess> {
        self.kept.as_ref()
    }

    /// This connection is kept from now on.
    pub fn keep(&mut self, process: ServerProcess) {
        self.kept = Some(process);
    }

    /// What there is to do. Nobody is shown a connection that is to be asked whether it lives.
    pub fn standing(&mut self) -> Standing {
        match (self.holds, &self.kept, self.near, self.since) {
            (1.., Some(_), _, Some(since)) => Standing::Held(since + LONGEST),
            (1.., _, Some(near), _) => Standing::Awaited(near),
            _ if self.marked => {
                self.kept = None;
                Standing::Released
            }
            _ => Standing::Nobody,
        }
    }

    /// The server process lives on. Answers whether that settles it.
    pub fn lives(&mut self) -> bool {
        self.marked = self.holds > 0 || self.doubted;
        !self.marked
    }

    /// The connection is gone.
    pub fn part(&mut self) {
        self.kept = None;
        self.doubted = false;
        self.marked = self.holds > 0;
    }
}

/// What a statement is made to signal in place of what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shot {
    /// The process id that the client has given.
    pub told: i32,
    /// The server's.
    pub pid: i32,
}

impl Shot {
    /// The text with the server's process id, if it is one that says the client's.
    pub fn in_text(self, sql: &[u8], context: &SqlContext) -> Option<Vec<u8>> {
        match signal_argument(sql, context)? {
            SignalArgument::Literal { at, number } if number == self.told => {
                let pid = self.pid.to_string();
                Some([&sql[..at.start], pid.as_bytes(), &sql[at.end..]].concat())
            }
            SignalArgument::Literal { .. } | SignalArgument::Parameter(_) => None,
        }
    }

    /// The formats and values of a Bind for this text with the server's process id, if they say the client's.
    pub fn in_values(self, rest: &[u8], sql: &[u8], context: &SqlContext) -> Option<Vec<u8>> {
        let SignalArgument::Parameter(index) = signal_argument(sql, context)? else {
            return None;
        };
        let (format, at) = frontend::value(rest, index)?;
        let value = &rest[at.clone()];
        if integer(format, value) != Some(self.told) {
            return None;
        }
        let instead = match (format, value.len()) {
            (Format::Text, _) => self.pid.to_string().into_bytes(),
            (Format::Binary, 2) => i16::try_from(self.pid).ok()?.to_be_bytes().to_vec(),
            (Format::Binary, 4) => self.pid.to_be_bytes().to_vec(),
            (Format::Binary, _) => i64::from(self.pid).to_be_bytes().to_vec(),
        };
        let length = i32::try_from(instead.len()).ok()?.to_be_bytes();
        Some([&rest[..at.start - 4], &length, &instead, &rest[at.end..]].concat())
    }
}

fn integer(format: Format, value: &[u8]) -> Option<i32> {
    match (format, value) {
        (Format::Text, value) => std::str::from_utf8(value).ok()?.trim().parse().ok(),
        (Format::Binary, value) => match value.len() {
            2 => Some(i16::from_be_bytes(value.try_into().ok()?).into()),
            4 => Some(i32::from_be_bytes(value.try_into().ok()?)),
            8 => i64::from_be_bytes(value.try_into().ok()?).try_into().ok(),
            _ => None,
        },
    }
}

/// The process id that `frames`, which stand in `bytes`, signal; `None` if there are several, or it can't be told. `text_of` knows the texts
/// of statements that were prepared before.
pub fn signalled(
    frames: &[FrameAt],
    bytes: &[u8],
    context: &SqlContext,
    text_of: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Option<i32> {
    let mut parsed: Vec<(&[u8], &[u8])> = Vec::new();
    let mut said = None;
    for frame in frames {
        let body = bytes.get(frame.start + HEADER..frame.end)?;
        let number = match frame.tag {
            b'Q' => literal(frontend::query(body)?, context),
            b'P' => {
                let parse = frontend::parse(body)?;
                parsed.push((parse.name, parse.sql));
                None
            }
            b'B' => {
                let bind = frontend::bind(body)?;
                let here = parsed.iter().rev().find(|(name, _)| *name == bind.statement);
                let sql = match here {
                    Some((_, sql)) => sql.to_vec(),
                    None => text_of(bind.statement)?,
                };
                bound(&sql, bind.rest, context)
            }
            _ => None,
        };
        match (said, number) {
            (Some(said), Some(number)) if said != number => return None,
            (_, number) => said = said.or(number),
        }
    }
    said
}

fn literal(sql: &[u8], context: &SqlContext) -> Option<i32> {
    match signal_argument(sql, context)? {
        SignalArgument::Literal { number, .. } => Some(number),
        SignalArgument::Parameter(_) => None,
    }
}

fn bound(sql: &[u8], rest: &[u8], context: &SqlContext) -> Option<i32> {
    match signal_argument(sql, context)? {
        SignalArgument::Literal { number, .. } => Some(number),
        SignalArgument::Parameter(index) => {
            let (format, at) = frontend::value(rest, index)?;
            integer(format, &rest[at])
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const NODE: NodeId = NodeId(1);

    fn process(pid: i32) -> ServerProcess {
        ServerProcess {
            node: NODE,
            pid,
            secret: Arc::from([]),
        }
    }

    #[test]
    fn a_connection_is_kept_until_it_is_known_to_live_on() {
        let now = Instant::now();
        let mut aimed = Aimed::default();
        assert_eq!(aimed.standing(), Standing::Nobody);
        aimed.begin(NODE, now);
        assert_eq!(aimed.standing(), Standing::Awaited(NODE));
        aimed.keep(process(7));
        aimed.begin(NODE, now + LONGEST);
        assert_eq!(aimed.standing(), Standing::Held(now + LONGEST));
        aimed.end(false);
        assert_eq!(aimed.standing(), Standing::Held(now + LONGEST));
        aimed.end(false);
        assert_eq!(aimed.standing(), Standing::Released);
        assert_eq!(aimed.kept(), None, "nobody new aims at it meanwhile");
        assert!(aimed.is_marked() && aimed.lives() && !aimed.is_marked());
        assert_eq!(aimed.standing(), Standing::Nobody);
    }

    #[test]
    fn what_may_yet_strike_leaves_its_mark_until_the_connection_is_gone() {
        let mut aimed = Aimed::default();
        aimed.begin(NODE, Instant::now());
        aimed.keep(process(7));
        aimed.end(true);
        assert_eq!(aimed.standing(), Standing::Released);
        assert!(!aimed.lives());
        aimed.part();
        assert_eq!(aimed.standing(), Standing::Nobody);
    }

    #[test]
    fn values_of_any_width_are_replaced() {
        let shot = Shot {
            told: 0x4000_0001,
            pid: 4242,
        };
        let sql = b"select $1, pg_terminate_backend($2)";
        let rest = |formats: &[i16], value: &[u8]| {
            let mut rest = Vec::new();
            rest.extend_from_slice(&(formats.len() as i16).to_be_bytes());
            formats
                .iter()
                .for_each(|format| rest.extend_from_slice(&format.to_be_bytes()));
            rest.extend_from_slice(&2i16.to_be_bytes());
            rest.extend_from_slice(&(-1i32).to_be_bytes());
            rest.extend_from_slice(&(value.len() as i32).to_be_bytes());
            rest.extend_from_slice(value);
            rest.extend_from_slice(&[0, 0]);
            rest
        };
        for (formats, value, instead) in [
            (&[][..], &b"1073741825"[..], Some(&b"4242"[..])),
            (&[1], &0x4000_0001i32.to_be_bytes(), Some(&4242i32.to_be_bytes())),
            (&[0, 1], &0x4000_0001i64.to_be_bytes(), Some(&4242i64.to_be_bytes())),
            (&[1, 0], b"1073741826", None),
            (&[0, 1], b"1073741825", None),
        ] {
            let replaced = shot.in_values(&rest(formats, value), sql, &SqlContext::default());
            assert_eq!(replaced, instead.map(|instead| rest(formats, instead)));
        }
        assert_eq!(shot.in_values(&[0], sql, &SqlContext::default()), None);
    }

    #[test]
    fn only_the_number_that_was_told_is_replaced() {
        let shot = Shot { told: 12, pid: 4242 };
        let replaced = |sql: &str| {
            let text = shot.in_text(sql.as_bytes(), &SqlContext::default())?;
            String::from_utf8(text).ok()
        };
        assert_eq!(
            replaced("select pg_cancel_backend(12), 12").as_deref(),
            Some("select pg_cancel_backend(4242), 12")
        );
        assert_eq!(replaced("select pg_cancel_backend(13), 12"), None);
    }
}
