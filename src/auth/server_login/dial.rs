//! From a host and a port to a TCP connection.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use crate::config::NodeAddress;

/// Connects to the first of the host's addresses that answers. Each gets an even share of the time that is left, so that one that
/// answers nothing doesn't keep the others from being tried.
///
/// # Errors
/// The last address's; `TimedOut` when its share is over.
pub(super) async fn reach(address: &NodeAddress, deadline: Instant) -> io::Result<TcpStream> {
    let candidates: Vec<_> = lookup_host((address.host.as_str(), address.port)).await?.collect();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for (index, candidate) in candidates.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(candidates.len() - index).unwrap_or(u32::MAX);
        match timeout_at(Instant::now() + share, TcpStream::connect(candidate)).await {
            Ok(Ok(tcp)) => return tune(tcp),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

/// Small messages leave at once, and a node whose machine vanished is noticed within two minutes even when nothing is sent.
fn tune(tcp: TcpStream) -> io::Result<TcpStream> {
    tcp.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10));
    SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
    Ok(tcp)
}
