//! What an exchange sends, and what goes in front of it.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::super::expect::Checked;
use super::super::outcome::Outcome;
use super::super::translate::put_outdated;
use super::Exchange;
use crate::pool::{ConnError, Settings};
use crate::sql::StatementClass;
use crate::wire::backend::put_parameter_status;

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
}
