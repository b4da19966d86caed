//! Questions to a node beyond the monitor's own, as the monitor's role: each on a connection of its own, which it closes.

use std::time::Duration;

use super::book::Book;
use super::node::NodeId;
use super::probe_connection::{AskError, Bounds, ProbeConnection, Row, Target};
use super::reading::Unreachable;
use super::targets::Targets;
use crate::config::Config;
use crate::wire::tls::NodeTlsConnector;

/// An answer is no longer than this a message, and has no more rows.
const BOUNDS: Bounds = Bounds {
    message: 64 << 20,
    rows: 1_000_000,
};

/// Where and as whom to ask.
#[derive(Debug, Clone)]
pub struct Asker {
    targets: Targets,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// There is no such node any more.
    #[error("it is no node any more")]
    Departed,
    /// The node doesn't let us in.
    #[error("{}", .0.message)]
    Unreachable(Unreachable),
    /// The question failed.
    #[error("{0}")]
    Failed(String),
    /// Not in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

impl Asker {
    /// For the nodes of `book`, as `config`'s monitor.
    pub fn new(config: &Config, tls: &NodeTlsConnector, book: Book) -> Asker {
        Asker {
            targets: Targets::new(config, tls, book),
        }
    }

    /// Asks one node's `database` these questions in turn, on one connection. Answers the first column of each row, by question.
    ///
    /// # Errors
    /// [`Unanswered`]
    pub async fn ask(
        &self,
        node: NodeId,
        database: &str,
        questions: &[&str],
        limit: Duration,
    ) -> Result<Vec<Vec<String>>, Unanswered> {
        let target = Target {
            database: database.to_owned(),
            ..self.targets.of(node).ok_or(Unanswered::Departed)?
        };
        let asked = async {
            let connection = ProbeConnection::open(&target).await.map_err(Unanswered::Unreachable)?;
            let mut connection = connection.with_bounds(BOUNDS);
            let mut answers = Vec::new();
            for question in questions {
                let rows = connection.query(question).await.map_err(failed)?;
                answers.push(rows.into_iter().filter_map(first_column).collect());
            }
            Ok(answers)
        };
        let in_time = tokio::time::timeout(limit, asked).await;
        in_time.unwrap_or(Err(Unanswered::TimedOut(limit)))
    }
}

fn failed(error: AskError) -> Unanswered {
    Unanswered::Failed(error.to_string())
}

fn first_column(row: Row) -> Option<String> {
    let column = row.into_iter().next()??;
    Some(String::from_utf8_lossy(&column).into_owned())
}
