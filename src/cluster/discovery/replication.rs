//! The servers themselves: a primary knows its standbys (`pg_stat_replication`), a standby whom it follows (`pg_stat_wal_receiver`).
//! So the address of any one of them finds all.
//!
//! What a server says of another is hearsay: a walsender's client may be a backup, an archiver or a subscriber, and where a standby
//! listens isn't in the view. So an address becomes a node only when a server of the same cluster has answered there, and one that is
//! no other address's server as well (`census`). Here are the connections: one to each server, kept between rounds.
//! PostgreSQL's manual: "The Statistics Collector", `pg_stat_replication` and `pg_stat_wal_receiver`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Source;
use super::census::{Census, Heard};
use super::hearsay::{Told, read, statement};
use super::merge::Answer;
use crate::cluster::probe_connection::{Bounds, ProbeConnection, Target};
use crate::config::{self, NodeAddress, NodeConfig};

/// A question asks again for what it has just learned, but no more often than this.
const MOST_ROUNDS: usize = 6;
/// An answer has no more rows, and no longer messages.
const BOUNDS: Bounds = Bounds {
    message: 64 * 1024,
    rows: 1000,
};

/// Asks the servers.
pub(super) struct Servers {
    settings: config::Servers,
    login: Target,
    /// The nodes as they were last published.
    known: watch::Receiver<Arc<[NodeConfig]>>,
    connections: HashMap<NodeAddress, ProbeConnection>,
    census: Census,
    /// It was said that the role sees too little.
    said_blind: bool,
}

impl Servers {
    pub(super) fn new(settings: config::Servers, login: Target, known: watch::Receiver<Arc<[NodeConfig]>>) -> Servers {
        Servers {
            census: Census::new(settings.forget_after),
            settings,
            login,
            known,
            connections: HashMap::new(),
            said_blind: false,
        }
    }

    /// Asks everybody once, all at the same time. Those who don't answer within the login's time-out are silent.
    async fn round(&mut self, addresses: Vec<NodeAddress>) -> Vec<Heard> {
        let mut asked = JoinSet::new();
        let limit = self.login.timeout;
        self.connections.retain(|address, _| addresses.contains(address));
        for address in addresses {
            let connection = self.connections.remove(&address);
            let target = Target {
                address,
                ..self.login.clone()
            };
            let standby_port = self.settings.standby_port;
            asked.spawn(async move {
                let answer = timeout(limit, ask(connection, &target, standby_port)).await;
                (
                    target.address,
                    answer.unwrap_or_else(|_| Err("no answer in time".to_owned())),
                )
            });
        }
        let mut heard = Vec::new();
        while let Some(Ok((address, answer))) = asked.join_next().await {
            let told = match answer {
                Ok((told, connection)) => {
                    self.connections.insert(address.clone(), connection);
                    Some(told)
                }
                Err(error) => {
                    tracing::trace!(%address, error, "discovery: the server doesn't answer");
                    None
                }
            };
            heard.push(Heard { address, told });
        }
        heard
    }

    fn look_for_blindness(&mut self, heard: &[Heard]) {
        let blind = heard
            .iter()
            .find(|heard| heard.told.as_ref().is_some_and(|told| !told.sees_all));
        if let Some(heard) = blind.filter(|_| !self.said_blind) {
            self.said_blind = true;
            let (node, user) = (&heard.address, &*self.login.user);
            tracing::warn!(
                %node, user,
                "discovery: the monitor's role may not see where standbys are: GRANT pg_monitor TO it"
            );
        }
    }
}

impl Source for Servers {
    async fn ask(&mut self) -> Result<Answer, String> {
        for _ in 0..MOST_ROUNDS {
            let known: Vec<NodeAddress> = self
                .known
                .borrow_and_update()
                .iter()
                .map(|node| node.address.clone())
                .collect();
            let heard = self.round(self.census.addresses(&known)).await;
            self.look_for_blindness(&heard);
            self.census.take(&known, heard);
            if !self.census.wants_more() {
                break;
            }
        }
        self.census.answer()
    }

    /// Another list of nodes has others to ask.
    async fn is_due(&mut self, interval: Duration) {
        if let Ok(Err(_)) = timeout(interval, self.known.changed()).await {
            // Whoever publishes the list ends this task, too.
            sleep(interval).await;
        }
    }
}

/// Asks on the connection that there is, or on a new one; both again if the old one has ended meanwhile.
async fn ask(
    connection: Option<ProbeConnection>,
    target: &Target,
    standby_port: Option<u16>,
) -> Result<(Told, ProbeConnection), String> {
    if let Some(mut connection) = connection
        && let Ok(rows) = connection.query(&statement()).await
    {
        return Ok((read(&rows, &target.address, standby_port)?, connection));
    }
    let opened = ProbeConnection::open(target).await;
    let mut connection = opened
        .map_err(|unreachable| unreachable.message.to_string())?
        .with_bounds(BOUNDS);
    let rows = connection
        .query(&statement())
        .await
        .map_err(|error| error.to_string())?;
    Ok((read(&rows, &target.address, standby_port)?, connection))
}
