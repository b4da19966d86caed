//! What a database's names mean now, for who asks once.

use super::load::load;
use crate::cluster::{Asker, Book, NodeId};
use crate::config::Config;
use crate::sql::Learned;
use crate::wire::tls::{NodeTlsConnector, TlsError};

/// Why names can't be looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// A certificate or key can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The last node's refusal.
    #[error("{0}")]
    NoNode(String),
}

/// Asks the first node that answers.
///
/// # Errors
/// [`LookUpError`]
pub async fn look_up(config: &Config, database: &str) -> Result<Learned, LookUpError> {
    let asker = Asker::new(
        config,
        &NodeTlsConnector::new(&config.cluster.tls)?,
        Book::of(&config.cluster.nodes),
    );
    let mut refusal = "there are no nodes".to_owned();
    for (index, node) in config.cluster.nodes.iter().enumerate() {
        match load(&asker, NodeId(index as u16), database).await {
            Ok(loaded) => return Ok(Learned::from_rows(&loaded.rows, &config.routing.read_only_functions)),
            Err(error) => refusal = format!("{}: {error}", node.name),
        }
    }
    Err(LookUpError::NoNode(refusal))
}
