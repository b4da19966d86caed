//! Replication connections (manual, 55.4): relayed as they are to the primary, on a server connection of their own that no pool counts.
//! They end when their server does: a WAL receiver connects again by itself.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::io::AsyncWriteExt;

use super::cancel::{Registered, ServerProcess};
use super::control::Order;
use super::error::SessionError;
use super::placing::Placing;
use super::worker::{Present, Worker};
use crate::cluster::Hint;
use crate::pool::{BackendConn, PrincipalPools};
use crate::wire::backend::{TransactionStatus, put_parameter_status, put_ready};
use crate::wire::startup::StartupParams;
use crate::wire::stream::Stream;

/// A client that replicates from the primary.
pub(super) struct Replication {
    worker: Rc<Worker>,
    present: Present,
    client: Stream,
    conn: Box<BackendConn>,
    registered: Registered,
    /// What the client is to hear first.
    hello: Vec<u8>,
}

/// Logs in to the primary as the client has asked to: `mode` is the value of `replication`.
///
/// # Errors
/// No primary within `hold_timeout`, or one that refuses.
pub(super) async fn open(
    worker: &Rc<Worker>,
    principal: &Arc<PrincipalPools>,
    mode: &str,
    startup: &StartupParams,
) -> Result<Box<BackendConn>, SessionError> {
    let mut parameters = vec![("replication", mode)];
    parameters.extend(startup.parameters.iter().map(|(name, value)| (&**name, &**value)));
    let rules = super::client_session::rules(&worker.shared.config.load());
    Placing::new(worker).connect_apart(principal, &rules, &parameters).await
}

impl Replication {
    pub(super) fn new(
        worker: &Rc<Worker>,
        present: Present,
        client: Stream,
        conn: Box<BackendConn>,
        registered: Registered,
        mut hello: Vec<u8>,
    ) -> Replication {
        for (name, value) in conn.parameters() {
            put_parameter_status(&mut hello, name, value);
        }
        registered.key.encode_backend_key_data(&mut hello);
        put_ready(&mut hello, TransactionStatus::Idle);
        let process = ServerProcess {
            node: conn.node,
            pid: conn.pid,
            secret: Arc::clone(&conn.secret),
        };
        registered.slot.arm(process, Instant::now());
        Replication {
            worker: Rc::clone(worker),
            present,
            client,
            conn,
            registered,
            hello,
        }
    }

    /// Serves it to its end.
    pub(super) async fn run(mut self) {
        if self.client.write_all(&self.hello).await.is_err() || self.client.flush().await.is_err() {
            return;
        }
        let control = &self.present.control;
        let ordered = poll_fn(|cx| match control.listen(cx) {
            Order::Serve => Poll::Pending,
            Order::Drain | Order::Leave => Poll::Ready(()),
        });
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut self.client, &mut self.conn.stream) => {
                self.worker.shared.cluster.hint(self.conn.node, Hint::ConnectionLost);
            }
            // In the middle of a stream there is no place for words.
            () = ordered => {}
        }
        self.registered.slot.disarm();
    }
}
