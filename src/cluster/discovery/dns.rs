//! A name in DNS, or in /etc/hosts: each of its addresses is a node.
//!
//! The system's resolver is asked, which caches as long as it should or not at all; times to live aren't looked at. Where a name
//! has addresses of both families the IPv4 ones count: a server that has one of each would be two nodes otherwise. A name that
//! isn't found changes nothing, as any other failure.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

use super::Source;
use super::merge::{Answer, Found};
use crate::config::NodeAddress;

/// A resolver that is silent for this long has failed. It goes on in the background, so this isn't shorter than it usually takes.
const LIMIT: Duration = Duration::from_secs(15);

/// Who knows addresses.
pub(super) trait Resolver: Send {
    /// All addresses of a name.
    fn look_up(&self, name: &NodeAddress) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// The system's.
pub(super) struct System;

impl Resolver for System {
    async fn look_up(&self, name: &NodeAddress) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((&*name.host, name.port)).await?.collect())
    }
}

/// Asks for one name.
pub(super) struct Dns<R> {
    pub(super) name: NodeAddress,
    pub(super) resolver: R,
}

impl<R: Resolver + Sync> Source for Dns<R> {
    async fn ask(&mut self) -> Result<Answer, String> {
        match timeout(LIMIT, self.resolver.look_up(&self.name)).await {
            Ok(Ok(addresses)) => Ok(Answer::all(nodes(addresses, self.name.port))),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
        }
    }
}

/// One node for each address, of one family.
fn nodes(addresses: Vec<SocketAddr>, port: u16) -> Vec<Found> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses
        .into_iter()
        .map(|address| address.ip().to_canonical())
        .partition(IpAddr::is_ipv4);
    let ips = if v4.is_empty() { v6 } else { v4 };
    let at = |ip: IpAddr| {
        Found::at(NodeAddress {
            host: ip.to_string(),
            port,
        })
    };
    ips.into_iter().map(at).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers in turn.
    struct Script(Mutex<Vec<io::Result<Vec<SocketAddr>>>>);

    impl Resolver for Script {
        async fn look_up(&self, _: &NodeAddress) -> io::Result<Vec<SocketAddr>> {
            self.0.lock().unwrap().remove(0)
        }
    }

    fn name(host: &str) -> NodeAddress {
        NodeAddress {
            host: host.to_owned(),
            port: 5433,
        }
    }

    fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn shown(answer: &Answer) -> Vec<String> {
        answer.nodes.iter().map(|found| found.address.to_string()).collect()
    }

    #[tokio::test]
    async fn each_address_is_a_node_and_what_is_not_found_is_a_failure() {
        let mut dns = Dns {
            name: name("pg"),
            resolver: Script(Mutex::new(vec![
                Ok(sockets(&["10.0.0.1:5433", "10.0.0.2:5433"])),
                Err(io::Error::other("no such name")),
                Ok(sockets(&["10.0.0.3:5433"])),
                Ok(Vec::new()),
            ])),
        };
        assert_eq!(shown(&dns.ask().await.unwrap()), ["10.0.0.1:5433", "10.0.0.2:5433"]);
        assert_eq!(dns.ask().await.unwrap_err(), "no such name");
        assert_eq!(shown(&dns.ask().await.unwrap()), ["10.0.0.3:5433"]);
        assert!(dns.ask().await.unwrap().is_implausible());
    }

    #[test]
    fn one_family_counts() {
        for (addresses, expected) in [
            (&["[::1]:0", "127.0.0.1:0"][..], &["127.0.0.1:5433"][..]),
            (&["[::ffff:10.0.0.1]:0"], &["10.0.0.1:5433"]),
            (
                &["[2001:db8::1]:0", "[2001:db8::2]:0"],
                &["[2001:db8::1]:5433", "[2001:db8::2]:5433"],
            ),
        ] {
            let nodes = nodes(sockets(addresses), 5433);
            let shown: Vec<String> = nodes.iter().map(|found| found.address.to_string()).collect();
            assert_eq!(shown, expected);
        }
    }

    #[tokio::test]
    async fn the_system_knows_localhost() {
        let mut dns = Dns {
            name: name("localhost"),
            resolver: System,
        };
        assert_eq!(shown(&dns.ask().await.unwrap()), ["127.0.0.1:5433"]);
        dns.name = name("no-such-name.invalid");
        assert!(dns.ask().await.is_err());
    }
}
