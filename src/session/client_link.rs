//! The client's side of a session: its socket, what it has sent, and what of that is passed over.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, ready};

use tokio::io::AsyncWriteExt;

use super::inbox::{Buffers, Inbox};
use super::outcome::Left;
use super::request::{CAP, Gathered, Unit, front, gather};
use crate::wire::backend::{TransactionStatus, put_ready};
use crate::wire::error_response::ErrorFields;
use crate::wire::frame::BadFrame;
use crate::wire::stream::Stream;

/// A logged-in client's connection.
#[derive(Debug)]
pub struct ClientLink {
    /// The socket.
    pub stream: Stream,
    /// What it has sent and nobody has taken yet.
    pub inbox: Inbox,
    /// After an error in a batch: everything up to its Sync is passed over, as a server does.
    skip_to_sync: bool,
    /// Bytes still to come of a message that is passed over.
    discard: usize,
}

impl ClientLink {
    /// A connection on which nothing has been asked yet.
    pub fn new(stream: Stream, buffers: Rc<Buffers>) -> ClientLink {
        ClientLink {
            stream,
            inbox: Inbox::new(buffers),
            skip_to_sync: false,
            discard: 0,
        }
    }

    /// What it has sent, from the first byte that isn't passed over.
    ///
    /// # Errors
    /// It isn't the protocol.
    pub fn gather(&mut self) -> Result<Gathered, BadFrame> {
        let here = self.discard.min(self.inbox.bytes().len());
        self.inbox.consume(here);
        self.discard -= here;
        if self.discard > 0 {
            return Ok(Gathered::More);
        }
        gather(self.inbox.bytes())
    }

    /// The front of a batch whose end is waited for, if it runs something.
    pub fn front(&self) -> Option<Unit> {
        let passed_over = self.discard > 0 || self.skip_to_sync;
        if passed_over { None } else { front(self.inbox.bytes()) }
    }

    /// Passes over the next `count` bytes, here or still to come.
    pub fn discard(&mut self, count: usize) {
        self.discard = count;
    }

    /// An error has come in a batch whose Sync is still to come.
    pub fn skip_to_sync(&mut self) {
        self.skip_to_sync = true;
    }

    /// Whether an error in a batch has everything up to its Sync passed over.
    pub fn skips(&self) -> bool {
        self.skip_to_sync
    }

    /// Passes over `unit`, or its part up to a Sync, which is answered.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn skip(&mut self, unit: &Unit, status: TransactionStatus) -> io::Result<()> {
        let Some(sync) = unit.frames.iter().find(|frame| frame.tag == b'S') else {
            let end = unit.frames.last().map_or(unit.len, |frame| frame.end);
            self.inbox.consume(unit.len);
            self.discard = end.saturating_sub(unit.len);
            return Ok(());
        };
        self.inbox.consume(sync.end);
        self.skip_to_sync = false;
        let mut out = Vec::new();
        put_ready(&mut out, status);
        self.say(&out).await
    }

    /// Answers a unit, or what is left of it, with an error.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn refuse(&mut self, error: &ErrorFields, left: Left, status: TransactionStatus) -> io::Result<()> {
        let mut out = Vec::new();
        for _ in 0..left.owed.max(1) {
            error.encode_error(&mut out);
            if left.owed > 0 {
                put_ready(&mut out, status);
            }
        }
        self.skip_to_sync = left.owed == 0;
        self.inbox.consume(left.inbox);
        self.discard = left.cut;
        self.say(&out).await
    }

    /// Waits until the client is gone. What it sends meanwhile is taken in, up to a bound; behind more than that its end isn't seen. Dropping
    /// it loses nothing.
    pub async fn gone(&mut self) {
        poll_fn(|cx| {
            while self.inbox.bytes().len() < CAP {
                match ready!(self.inbox.poll_fill(&mut self.stream, cx)) {
                    Ok(count) if count > 0 => {}
                    Ok(_) | Err(_) => return Poll::Ready(()),
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Sends bytes to the client.
    ///
    /// # Errors
    /// It is gone.
    pub async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }
}
