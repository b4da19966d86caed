//! What a server says unasked on a connection that a session holds between two requests: notifications, notices, changed parameters, or
//! goodbye.

use std::future::poll_fn;
use std::io;

use bytes::{Buf, BytesMut};

use super::cancel::CancelSlot;
use super::client_link::ClientLink;
use super::inbox::poll_read;
use super::login::Told;
use super::notifiers::Notifiers;
use crate::cluster::{Cluster, Hint};
use crate::pool::BackendConn;
use crate::wire::backend::{ReplyScanner, Step, parameter_status, put_parameter_status};
use crate::wire::error_response::ErrorView;
use crate::wire::sqlstate::SqlState;

/// Notifications as whole messages, with the process ids that clients know each other by.
pub fn in_clients_terms(notifications: &[u8], notifiers: &Notifiers) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(notifications.len()), 0);
    let mut scanner = ReplyScanner::default();
    while let Step::Message { body, end, .. } = scanner.step(notifications, at) {
        match notifiers.in_clients_terms(body) {
            Some(own) => out.extend_from_slice(&own),
            None => out.extend_from_slice(&notifications[at..end]),
        }
        at = end;
    }
    out
}

/// Whether the connection is still good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alive {
    /// It is.
    Yes,
    /// It isn't: the server has closed it, or is about to.
    No,
    /// The server has ended the session, and not itself, with this FATAL error: one of its limits for sessions that do nothing, or somebody
    /// has asked it to.
    Ended(Box<[u8]>),
}

/// Limits of a server's on what a session may leave undone (manual, "Client Connection Defaults"): without a proxy, the client's connection
/// would end.
const TIMEOUTS: [SqlState; 3] = [
    SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    SqlState::TRANSACTION_TIMEOUT,
    SqlState::IDLE_SESSION_TIMEOUT,
];

/// Whom it is for.
pub struct Hearer<'a> {
    /// The client.
    pub client: &'a mut ClientLink,
    /// What it has been told of the server's parameters.
    pub told: &'a mut Told,
    /// Who aims at its session.
    pub slot: &'a CancelSlot,
    /// Who notifies whom.
    pub notifiers: &'a Notifiers,
    /// Who is told of what servers say about themselves.
    pub cluster: &'a Cluster,
}

/// How far to read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// To the end of the last message that has begun to come.
    Whole,
    /// To the ReadyForQuery that answers a Sync.
    Ready,
}

/// Passes on what has arrived in `bytes` to the client, reading on `until` then.
///
/// # Errors
/// The client is gone.
pub async fn overhear(
    bytes: &mut BytesMut,
    until: Until,
    conn: &mut BackendConn,
    hearer: Hearer<'_>,
) -> io::Result<Alive> {
    let Hearer {
        client,
        told,
        slot,
        notifiers,
        cluster,
    } = hearer;
    let mut scanner = ReplyScanner::default();
    let mut owed = until == Until::Ready;
    loop {
        let mut out = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            match scanner.step(bytes, at) {
                Step::Opaque { end } => {
                    out.extend_from_slice(&bytes[at..end]);
                    at = end;
                }
                Step::Incomplete => break,
                Step::Malformed => return Ok(Alive::No),
                Step::Message { tag: b'E', body, end } => {
                    let code = ErrorView::parse(body).map(|error| error.code);
                    let meant = code == Some(SqlState::ADMIN_SHUTDOWN) && slot.is_marked();
                    if meant || code.is_some_and(|code| TIMEOUTS.contains(&code)) {
                        return Ok(Alive::Ended(bytes[at..end].into()));
                    }
                    tracing::debug!(
                        node = conn.node.index(),
                        ?code,
                        "a held connection was ended by its server"
                    );
                    cluster.hint(conn.node, Hint::ShuttingDown);
                    return Ok(Alive::No);
                }
                Step::Message { tag: b'S', body, end } => {
                    at = end;
                    if let Some((name, value)) = parameter_status(body) {
                        conn.note_parameter(name, value);
                        if name == "in_hot_standby" {
                            cluster.hint(conn.node, Hint::InHotStandby(value == "on"));
                        } else if told.note(name, value) {
                            put_parameter_status(&mut out, name, value);
                        }
                    }
                }
                Step::Message { tag: b'A', body, end } => {
                    match notifiers.in_clients_terms(body) {
                        Some(own) => out.extend_from_slice(&own),
                        None => out.extend_from_slice(&bytes[at..end]),
                    }
                    at = end;
                }
                Step::Message { tag: b'Z', end, .. } => (at, owed) = (end, false),
                Step::Message { end, .. } => {
                    out.extend_from_slice(&bytes[at..end]);
                    at = end;
                }
            }
        }
        bytes.advance(at);
        if !out.is_empty() {
            client.say(&out).await?;
        }
        if !owed && bytes.is_empty() && scanner.at_boundary() {
            return Ok(Alive::Yes);
        }
        let read = poll_fn(|cx| poll_read(&mut conn.stream, bytes, cx)).await;
        if !matches!(read, Ok(count) if count > 0) {
            return Ok(Alive::No);
        }
    }
}
