//! What becomes of a server connection whose client went away in the middle of something. The server process finds out only when it has
//! done what it was told; until then it is one of those that the pool may have, and keeps its place there.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::worker::Worker;
use crate::auth::server_login;
use crate::pool::Lease;

/// A request to cancel that came between two statements is repeated after this long, and ever more rarely.
const REPEAT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What is to become of what the server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfinished {
    /// Nobody misses it, or it is undone by the end of its block.
    Cancel,
    /// It may have to be done as a whole.
    LetEnd,
}

/// Says goodbye to the server, and holds the connection's place until the server does so too. In the background: the session is over.
pub(super) fn abandon(worker: &Rc<Worker>, lease: Lease, unfinished: Unfinished) {
    drop(tokio::task::spawn_local(see_off(Rc::clone(worker), lease, unfinished)));
}

async fn see_off(worker: Rc<Worker>, mut lease: Lease, unfinished: Unfinished) {
    let Some(address) = lease.link().address() else {
        return; // Its connections are cut.
    };
    let conn = lease.conn();
    let (pid, secret) = (conn.pid, Arc::clone(&conn.secret));
    if conn.stream.shutdown().await.is_err() {
        return;
    }
    let mut scrap = worker.buffers.take();
    let mut pause = REPEAT.0;
    loop {
        if unfinished == Unfinished::Cancel {
            let _ = server_login::cancel(&address, &worker.shared.node_tls, pid, &secret).await;
        }
        let ended = read_to_end(&mut lease, &mut scrap);
        match unfinished {
            Unfinished::LetEnd => ended.await,
            Unfinished::Cancel if tokio::time::timeout(pause, ended).await.is_err() => {
                pause = REPEAT.1.min(pause * 2);
                continue;
            }
            Unfinished::Cancel => {}
        }
        break;
    }
    worker.buffers.give(scrap);
}

/// Throws away what the server still says. Dropping it loses nothing that anybody wants.
async fn read_to_end(lease: &mut Lease, scrap: &mut BytesMut) {
    while lease.conn().stream.read_buf(scrap).await.is_ok_and(|count| count > 0) {
        scrap.clear();
    }
}
