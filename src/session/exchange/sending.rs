//! What an exchange sends, and what goes in front of it.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::super::expect::{Awaited, Checked};
use super::super::outcome::Outcome;
use super::super::request::{CAP, FrameAt, waits_for};
use super::super::translate::put_outdated;
use super::Exchange;
use crate::pool::{ConnError, Settings};
use crate::sql::StatementClass;
use crate::wire::backend::put_parameter_status;
use crate::wire::frame::{BadFrame, HEADER, frontend_header};
use crate::wire::frontend;

impl<C: FnMut(&[u8]) -> Arc<StatementClass>> Exchange<'_, C> {
    /// Sends `prelude` in front of the unit, in one write, and takes its answer. `None` if all is well: [`Exchange::run`] does the rest.
    ///
    /// As unsafe to drop as that.
    pub async fn settle_first(&mut self, prelude: &[u8], wanted: &Arc<Settings>) -> Option<Outcome> {
        let outcome = self.apply_first(prelude, wanted).await;
        if outcome.is_some() {
            self.expect.give_up(self.parties.statements, false);
        }
        outcome
    }

    async fn apply_first(&mut self, prelude: &[u8], wanted: &Arc<Settings>) -> Option<Outcome> {
        let mut all = prelude.to_vec();
        // What must wait for a description waits for the settings too.
        let together = self.stops.is_empty();
        if together {
            all.extend_from_slice(&self.parties.inbox.bytes()[self.raw.0..self.raw.1]);
            all.extend_from_slice(&self.out);
            self.raw.0 = self.raw.1;
            self.out_sent = self.out.len();
            self.clear_sent();
        }
        let conn = &mut *self.parties.conn;
        let heard = async {
            conn.stream.write_all(&all).await?;
            conn.stream.flush().await?;
            let ready = if together { self.owed } else { 0 };
            conn.hear_prelude(&mut self.came_early, wanted, ready).await
        };
        let reported = match heard.await {
            Ok(reported) => reported,
            Err(ConnError::Refused { code, message }) => return Some(Outcome::Unsettled { code, message }),
            Err(ConnError::Lost(_)) => return Some(self.node_lost()),
        };
        let mut told = Vec::new();
        for (name, value) in reported {
            if name != "in_hot_standby" && self.parties.told.note(&name, &value) {
                put_parameter_status(&mut told, &name, &value);
            }
        }
        if !told.is_empty() && self.parties.client.write_all(&told).await.is_err() {
            return Some(self.client_gone());
        }
        None
    }

    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = &mut self.parties.conn.stream;
        let written = if self.raw.0 < self.raw.1 {
            let bytes = &self.parties.inbox.bytes()[self.raw.0..self.raw.1];
            let written = std::task::ready!(pin!(&mut *stream).poll_write(cx, bytes))?;
            self.raw.0 += written;
            written
        } else if self.out_sent < self.out.len() && self.stops.front() != Some(&self.out_sent) {
            let end = self.stops.front().copied().unwrap_or(self.out.len());
            let written = std::task::ready!(pin!(&mut *stream).poll_write(cx, &self.out[self.out_sent..end]))?;
            self.out_sent += written;
            written
        } else {
            std::task::ready!(pin!(&mut *stream).poll_flush(cx))?;
            self.unflushed = false;
            return Poll::Ready(Ok(()));
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed |= stream.is_tls();
        self.clear_sent();
        Poll::Ready(Ok(()))
    }

    pub(super) fn clear_sent(&mut self) {
        if self.out_sent == self.out.len() && self.stops.is_empty() {
            self.out.clear();
            self.out_sent = 0;
        }
    }

    /// The statement for which sending has stopped is there. If it isn't what the client was told, an error goes before the rest, which the
    /// server then passes over.
    pub(super) fn go_on(&mut self, checked: Checked) {
        self.stops.pop_front();
        if checked == Checked::Changed {
            let mut instead = Vec::new();
            put_outdated(&mut instead);
            let rest = self.out.split_off(self.out_sent);
            for stop in &mut self.stops {
                *stop += instead.len();
            }
            self.out.extend_from_slice(&instead);
            self.out.extend_from_slice(&rest);
            self.expect.push_outdated_first();
        }
        self.clear_sent();
    }

    /// A message at the front of the inbox runs something that the plan didn't know of.
    fn note_later(&mut self, tag: u8) {
        let bytes = self.parties.inbox.bytes();
        let body = bytes.get(HEADER..).unwrap_or_default();
        let class = match tag {
            b'B' => frontend::bind(body).and_then(|bind| self.parties.statements.class(bind.statement).cloned()),
            b'Q' => frontend::c_string(body).map(|(sql, _)| (self.classify)(sql)),
            _ => None,
        };
        self.later.extend(class);
    }

    /// Passes on what the server waits for.
    pub(super) fn pass_on(&mut self) -> Result<(), BadFrame> {
        self.leave_unit();
        // A server that reads slowly holds back its client: no more than this is kept for it.
        while self.takes_client() && self.out.len() - self.out_sent < CAP {
            let bytes = self.parties.inbox.bytes();
            if self.cut > 0 {
                let here = self.cut.min(bytes.len());
                if here == 0 {
                    break;
                }
                if !self.drop_cut {
                    self.out.extend_from_slice(&bytes[..here]);
                }
                self.cut -= here;
                self.parties.inbox.consume(here);
                continue;
            }
            let Some(header) = frontend_header(bytes)? else { break };
            let here = header.total.min(bytes.len());
            let in_parts = header.tag == b'd' || bytes.len() >= waits_for(header.tag);
            self.answer.unknown |= in_parts && here < header.total && matches!(header.tag, b'Q' | b'P');
            if here < header.total && !in_parts {
                break;
            }
            self.drop_cut = self.failed_batch && !matches!(header.tag, b'S' | b'X');
            match header.tag {
                _ if self.drop_cut => {}
                b'd' if self.copy_in || self.open => self.out.extend_from_slice(&bytes[..here]),
                b'c' | b'f' => {
                    self.out.extend_from_slice(&bytes[..here]);
                    if !self.expect.is_empty() {
                        self.expect.push(Awaited::CopyEnd);
                    }
                    self.copy_in = false;
                }
                // During COPY the server passes these over, and so answers neither.
                b'S' | b'H' if self.copy_in => {}
                b'X' => return Err(BadFrame::UnknownTag(b'X')),
                tag => {
                    self.note_later(tag);
                    self.translate(FrameAt {
                        tag,
                        start: 0,
                        end: header.total,
                    });
                    if matches!(tag, b'S' | b'Q' | b'F') {
                        self.owed += 1;
                        self.open = false;
                        self.failed_batch = false;
                        self.extended = tag == b'S';
                    }
                }
            }
            self.cut = header.total - here;
            self.parties.inbox.consume(here);
        }
        // An answer of the proxy's own may be due at once.
        self.expect.answer_known(&mut self.client_out);
        Ok(())
    }
}
