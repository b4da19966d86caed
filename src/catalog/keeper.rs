//! When a database's names are loaded, and from where.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;

use super::load::{LoadError, load};
use super::{DatabaseNames, Fresh};
use crate::cluster::{Asker, Cluster, NodeId, NodeRole, NodeState};
use crate::sql::Learned;

/// Changes that come together are one.
const SETTLES: Duration = Duration::from_millis(50);
/// However often there are changes, looking takes no more than one part in so many of the time.
const SHARE: u32 = 6;
/// Names that aren't known are no more often a reason to look.
const PUZZLED_AT_MOST: Duration = Duration::from_secs(1);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);
/// A failure that lasts is retried no more often.
const RETRY_AT_MOST: Duration = Duration::from_secs(60);

/// What the keeper needs to know of the configuration.
#[derive(Debug, Clone)]
pub struct Keeping {
    /// How long what was changed past this proxy may go unnoticed.
    pub refresh: Duration,
    /// Functions that are reads because the configuration says so.
    pub read_only_functions: Vec<String>,
}

/// Keeps the names of every database that turns up, for as long as somebody may still send one.
pub async fn keep(
    mut fresh: Fresh,
    asker: Asker,
    cluster: Cluster,
    keeping: impl Fn() -> Keeping + Clone + Send + 'static,
) {
    let mut keepers = JoinSet::new();
    while let Some(names) = fresh.recv().await {
        while keepers.try_join_next().is_some() {}
        let keeper = Keeper {
            names,
            asker: asker.clone(),
            cluster: cluster.clone(),
            hash: None,
            failures: 0,
        };
        let keeping = keeping.clone();
        keepers.spawn(async move { keeper.run(keeping).await });
    }
}

struct Keeper {
    names: Arc<DatabaseNames>,
    asker: Asker,
    cluster: Cluster,
    /// Of what the current names were made of.
    hash: Option<(u64, Vec<String>)>,
    failures: u32,
}

impl Keeper {
    /// Until nobody uses the database any more.
    async fn run(mut self, keeping: impl Fn() -> Keeping) {
        loop {
            let begun = tokio::time::Instant::now();
            let refreshed = self.refresh(&keeping()).await;
            let settles = SETTLES.max(begun.elapsed() * (SHARE - 1));
            let next = match refreshed {
                Ok(()) => {
                    self.failures = 0;
                    keeping().refresh
                }
                // Nobody has answered the monitor yet.
                Err(Failed::NoNode) => SETTLES,
                Err(why) => {
                    self.tell(&why);
                    self.failures = self.failures.saturating_add(1);
                    (RETRY * self.failures.min(100)).min(RETRY_AT_MOST)
                }
            };
            let since = tokio::time::Instant::now();
            tokio::select! {
                () = self.names.changed.notified() => tokio::time::sleep(settles).await,
                () = async {
                    self.names.puzzled.notified().await;
                    tokio::time::sleep_until(since + PUZZLED_AT_MOST).await;
                } => {}
                () = tokio::time::sleep(next) => {}
            }
            if Arc::strong_count(&self.names) == 1 {
                return;
            }
        }
    }

    async fn refresh(&mut self, keeping: &Keeping) -> Result<(), Failed> {
        let changes = self.names.changes.load(Ordering::SeqCst);
        if self.names.changing.load(Ordering::SeqCst) > 0 {
            return Ok(()); // Its end will be told.
        }
        let node = self.node().ok_or(Failed::NoNode)?;
        let loaded = load(&self.asker, node, &self.names.database).await?;
        let of_these = Some((loaded.hash, keeping.read_only_functions.clone()));
        if self.names.current().is_learned() && self.hash == of_these {
            return Ok(());
        }
        let read_only_functions = keeping.read_only_functions.clone();
        let begun = std::time::Instant::now();
        let learning = tokio::task::spawn_blocking(move || Learned::from_rows(&loaded.rows, &read_only_functions));
        let learned = learning
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let (database, count) = (&self.names.database, learned.len());
        if self.names.learn(learned, changes) {
            self.hash = of_these;
            tracing::debug!(%database, count, took_ms = begun.elapsed().as_millis(), "the names of a database are known");
        }
        Ok(())
    }

    /// The primary, which knows first; without one, whoever answers.
    fn node(&self) -> Option<NodeId> {
        let table = self.cluster.table();
        let standby = |node: &&NodeState| node.role == NodeRole::Standby;
        let up = || table.nodes.iter().find(standby).map(|node| node.id);
        table.primary.or_else(up)
    }

    fn tell(&self, why: &Failed) {
        let database = &self.names.database;
        match why {
            Failed::NoNode => {}
            Failed::Load(error) if self.failures == 0 => {
                tracing::warn!(%database, %error, "the database's own functions and views can't be looked at: they are the primary's");
            }
            Failed::Load(error) => tracing::debug!(%database, %error, "the database's names still can't be looked at"),
        }
    }
}

#[derive(Debug)]
enum Failed {
    NoNode,
    Load(LoadError),
}

impl From<LoadError> for Failed {
    fn from(error: LoadError) -> Failed {
        Failed::Load(error)
    }
}
