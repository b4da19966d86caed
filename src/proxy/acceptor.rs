//! Taking clients in, and dealing them out to the workers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use super::workers::Workers;
use crate::session::worker::Shared;

/// A burst of clients waits here until the acceptor gets to them.
const BACKLOG: i32 = 4096;

/// Listens on one address.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // `[::]` means IPv6; who wants both names both.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until aborted.
pub(super) async fn run(listener: TcpListener, workers: Arc<Workers>, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                shared.clients.fetch_add(1, Ordering::Relaxed);
                let given = tcp.into_std().map(|tcp| workers.give(tcp, peer));
                if !matches!(given, Ok(true)) {
                    shared.clients.fetch_sub(1, Ordering::Relaxed);
                }
            }
            Err(error) => {
                // Out of descriptors, most likely: those who wait in the backlog are served when some are free.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
