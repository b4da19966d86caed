//! A way to a server that can be cut as a network is: nothing comes through in either direction, nobody is told, and what was under way
//! arrives when the way is mended.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Whether anything comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Cut,
}

/// Listens on a port of its own for one server. Ends with the test.
pub struct Forwarder {
    /// Where it listens.
    pub port: u16,
    way: watch::Sender<Way>,
    accepting: JoinHandle<()>,
}

impl Forwarder {
    /// In front of the server on this port. Open.
    pub async fn to(server: u16) -> Forwarder {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let (way, seen) = watch::channel(Way::Open);
        Forwarder {
            port,
            way,
            accepting: tokio::spawn(accept(listener, server, seen)),
        }
    }

    /// From now on nothing comes through. Connections stay; new ones are accepted, as far as can be seen, and get no answer.
    pub fn cut(&self) {
        self.way.send_replace(Way::Cut);
    }

    /// Everything comes through again, what was sent meanwhile first.
    pub fn mend(&self) {
        self.way.send_replace(Way::Open);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, server: u16, way: watch::Receiver<Way>) {
    while let Ok((near, _)) = listener.accept().await {
        tokio::spawn(connect(near, server, way.clone()));
    }
}

async fn connect(near: TcpStream, server: u16, mut way: watch::Receiver<Way>) {
    if until_open(&mut way).await.is_none() {
        return;
    }
    // A server that isn't there refuses, and so the client finds its connection closed.
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else {
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::spawn(carry(near_in, far_out, way.clone()));
    carry(far_in, near_out, way).await;
}

/// One direction, to its end.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        // What has come may not go on, the news of the end included.
        if until_open(&mut way).await.is_none() {
            return;
        }
        match read {
            Ok(count) if count > 0 => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            Ok(_) | Err(_) => {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}

/// Waits for the way to be open; `None` if there is no way any more.
async fn until_open(way: &mut watch::Receiver<Way>) -> Option<()> {
    way.wait_for(|way| *way == Way::Open).await.ok().map(drop)
}
