//! Where and as whom the monitor and its like log in: the same user everywhere, and each node's address.

use std::time::Duration;

use super::book::Book;
use super::node::NodeId;
use super::probe_connection::Target;
use crate::auth::secret::NodeSecret;
use crate::config::{Config, NodeAddress};
use crate::wire::tls::NodeTlsConnector;

/// Every node's [`Target`].
#[derive(Debug, Clone)]
pub(super) struct Targets {
    book: Book,
    any: Target,
}

impl Targets {
    /// For the nodes of `book`.
    pub(super) fn new(config: &Config, tls: &NodeTlsConnector, book: Book) -> Targets {
        // One secret for all, so that what is derived from it is derived once.
        let password = config.monitor.password.as_ref();
        let any = Target {
            address: NodeAddress {
                host: String::new(),
                port: 0,
            },
            user: config.monitor.user.clone(),
            database: config.monitor.database.clone(),
            secret: password.map(|password| NodeSecret::plain(&password.0)),
            tls: tls.clone(),
            timeout: config.monitor.timeout,
        };
        Targets { book, any }
    }

    /// A node's; `None` if there is no such node any more.
    pub(super) fn of(&self, node: NodeId) -> Option<Target> {
        let address = self.book.address(node)?;
        Some(Target {
            address,
            ..self.any.clone()
        })
    }

    /// How to log in anywhere; the address is to be filled in.
    pub(super) fn anywhere(&self) -> &Target {
        &self.any
    }

    /// How long a login and a question may take.
    pub(super) fn timeout(&self) -> Duration {
        self.any.timeout
    }
}
