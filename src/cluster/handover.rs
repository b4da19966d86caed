//! The servers of a handover: what the primary that is left, and the one that follows, are asked and told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::lsn::Lsn;
use super::node::NodeId;
use super::probe::{CHANNEL, LOCK, SOMEBODY_SWITCHES};
use super::probe_connection::{AskError, ProbeConnection, Row};
use super::promotion::LOOK_EVERY;
use super::reading::ServerState;
use super::switchover::SwitchoverError;
use super::targets::Targets;
use crate::wire::sqlstate::SqlState;

/// How long the new primary may take to replay what it lacks once writes are held.
pub(super) const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a transaction may take to end that was told to.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// So long the other proxies have to hear of it.
const FOR_THE_OTHERS: Duration = Duration::from_millis(100);

/// Other clients' transactions that are under way, or have ended and not said so yet. The monitors' own are none.
const UNDER_WAY: &str = "FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend' \
AND pid <> pg_catalog.pg_backend_pid() AND (xact_start IS NOT NULL OR state = 'active') \
AND NOT (application_name = 'pgsluice monitor' AND backend_xid IS NULL)";

/// Nobody's transaction was seen so often in a row.
const QUIET_LOOKS: u32 = 3;

/// A connection to one of the two, for as long as it takes.
pub(super) struct Side {
    pub(super) name: Arc<str>,
    connection: ProbeConnection,
    /// For one question.
    limit: Duration,
    /// It was told to take no writes.
    pub(super) is_read_only: bool,
    /// What an operator should know.
    pub(super) warnings: Vec<String>,
}

impl Side {
    /// Logs in to a node.
    pub(super) async fn open(targets: &Targets, node: NodeId, name: &Arc<str>) -> Result<Side, SwitchoverError> {
        let lost = |why: String| SwitchoverError::Lost {
            node: Arc::clone(name),
            why,
        };
        let target = targets.of(node).ok_or_else(|| lost("it is no node any more".into()))?;
        let connection = ProbeConnection::open(&target)
            .await
            .map_err(|failure| lost(failure.message.to_string()))?;
        Ok(Side {
            name: Arc::clone(name),
            connection,
            limit: target.timeout,
            is_read_only: false,
            warnings: Vec::new(),
        })
    }

    async fn ask(&mut self, question: &str) -> Result<Vec<Row>, SwitchoverError> {
        let answer = timeout(self.limit, self.connection.query(question)).await;
        let late = || AskError::Lost(format!("no answer within {:?}", self.limit));
        answer.unwrap_or_else(|_| Err(late())).map_err(|error| match error {
            AskError::Sql {
                code: SqlState::INSUFFICIENT_PRIVILEGE,
                message,
            } => self.refused(&message),
            other => self.lost(other.to_string()),
        })
    }

    fn lost(&self, why: String) -> SwitchoverError {
        SwitchoverError::Lost {
            node: Arc::clone(&self.name),
            why,
        }
    }

    fn refused(&self, why: &str) -> SwitchoverError {
        SwitchoverError::Refused {
            node: Arc::clone(&self.name),
            why: why.to_owned(),
        }
    }

    async fn is_true(&mut self, condition: &str) -> Result<bool, SwitchoverError> {
        let rows = self.ask(&format!("SELECT {condition}")).await?;
        Ok(rows.first().and_then(|row| row.first()).and_then(Option::as_deref) == Some(b"t"))
    }

    pub(super) async fn can_be_promoted(&mut self) -> Result<(), SwitchoverError> {
        let may = "pg_catalog.has_function_privilege('pg_catalog.pg_promote(boolean,integer)', 'EXECUTE')";
        if self.is_true(may).await? {
            return Ok(());
        }
        Err(self.refused(
            "the monitor's role may not promote it; GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO the role",
        ))
    }

    /// Claims the right to leave it, and sees that what is to be done can be done.
    pub(super) async fn can_be_left(&mut self) -> Result<(), SwitchoverError> {
        if !self.is_true("pg_catalog.pg_has_role('pg_monitor', 'USAGE')").await? {
            return Err(self.refused(
                "the monitor's role doesn't see whether transactions are under way; GRANT pg_monitor TO the role",
            ));
        }
        if self
            .is_true("pg_catalog.current_setting('default_transaction_read_only') OPERATOR(pg_catalog.=) 'on'")
            .await?
        {
            return Err(SwitchoverError::Unfit(format!(
                "{} takes no writes by its own configuration (default_transaction_read_only = on)",
                self.name
            )));
        }
        let claim = format!(
            "CASE WHEN {SOMEBODY_SWITCHES} THEN false ELSE pg_catalog.pg_try_advisory_lock({}, {}) END",
            LOCK.0, LOCK.1
        );
        if self.is_true(&claim).await? {
            Ok(())
        } else {
            Err(SwitchoverError::Elsewhere)
        }
    }

    /// Tells the other proxies, and gives them a moment to hold their clients' writes: what they send after it is refused.
    pub(super) async fn tell_the_others(&mut self) -> Result<(), SwitchoverError> {
        self.ask(&format!("SELECT pg_catalog.pg_notify('{CHANNEL}', '')"))
            .await?;
        sleep(FOR_THE_OTHERS).await;
        Ok(())
    }

    /// Transactions that begin from now on are read-only, whoever begins them, unless they say otherwise.
    pub(super) async fn take_no_new_writes(&mut self) -> Result<(), SwitchoverError> {
        // From here on it may be so, whatever becomes of the answer.
        self.is_read_only = true;
        match self.ask("ALTER SYSTEM SET default_transaction_read_only = on").await {
            Ok(_) => {}
            // Our own clients are held back anyway.
            Err(SwitchoverError::Refused { why, .. }) => {
                self.is_read_only = false;
                self.warnings.push(format!(
                    "clients of {} that don't connect through this proxy were not held back: what they wrote in these moments may be \
                     lost ({why}; GRANT ALTER SYSTEM ON PARAMETER default_transaction_read_only TO the monitor's role)",
                    self.name
                ));
                return Ok(());
            }
            Err(other) => return Err(other),
        }
        self.reload().await
    }

    async fn reload(&mut self) -> Result<(), SwitchoverError> {
        if self.is_true("pg_catalog.pg_reload_conf()").await? {
            Ok(())
        } else {
            Err(self.lost("pg_reload_conf() could not signal the server".into()))
        }
    }

    /// Undoes [`Side::take_no_new_writes`].
    pub(super) async fn take_writes_again(&mut self) -> Result<(), SwitchoverError> {
        if std::mem::take(&mut self.is_read_only) {
            self.ask("ALTER SYSTEM RESET default_transaction_read_only").await?;
            self.reload().await?;
        }
        self.ask(&format!("SELECT pg_catalog.pg_advisory_unlock({}, {})", LOCK.0, LOCK.1))
            .await?;
        Ok(())
    }

    /// Waits until nobody's transaction is under way; ends those that take longer than `patience`. Answers how many.
    pub(super) async fn until_quiet(&mut self, patience: Duration) -> Result<usize, SwitchoverError> {
        let left = self.quiet_within(patience).await?;
        if left == 0 {
            return Ok(0);
        }
        let end = format!("SELECT count(*) FILTER (WHERE pg_catalog.pg_terminate_backend(pid)) {UNDER_WAY}");
        match self.count(&end).await {
            Ok(_) | Err(SwitchoverError::Refused { .. }) => {}
            Err(other) => return Err(other),
        }
        match self.quiet_within(END_TIMEOUT).await? {
            0 => Ok(left),
            still => Err(SwitchoverError::NeverQuiet(still)),
        }
    }

    /// Waits until nobody's transaction is under way, for so long. Answers how many are still.
    pub(super) async fn quiet_within(&mut self, patience: Duration) -> Result<usize, SwitchoverError> {
        let began = Instant::now();
        // The reload takes a moment to arrive, and so does a statement that was sent.
        let mut quiet = 0;
        loop {
            let left = self.count(&format!("SELECT count(*) {UNDER_WAY}")).await?;
            quiet = if left == 0 { quiet + 1 } else { 0 };
            if quiet == QUIET_LOOKS || (left > 0 && began.elapsed() >= patience) {
                return Ok(left);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Has the server write out what it has changed.
    pub(super) async fn checkpoint(mut self, longest: Duration) -> Result<(), SwitchoverError> {
        self.limit = longest;
        self.ask("CHECKPOINT").await.map(drop)
    }

    async fn count(&mut self, question: &str) -> Result<usize, SwitchoverError> {
        let rows = self.ask(question).await?;
        let text = rows.first().and_then(|row| row.first()).and_then(Option::as_deref);
        let number = text.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        number.ok_or_else(|| self.lost("an unexpected answer".into()))
    }

    async fn state(&mut self) -> Result<ServerState, SwitchoverError> {
        let answer = timeout(self.limit, self.connection.ask()).await;
        let answer = answer.unwrap_or_else(|_| Err(AskError::Lost("no answer in time".into())));
        answer
            .map(|answer| answer.state)
            .map_err(|error| self.lost(error.to_string()))
    }

    pub(super) async fn position(&mut self) -> Result<Lsn, SwitchoverError> {
        match self.state().await? {
            ServerState::Primary { insert, .. } => Ok(insert),
            ServerState::Standby { .. } => Err(self.lost("it is in recovery".into())),
        }
    }

    pub(super) async fn until_replayed(&mut self, goal: Lsn) -> Result<(), SwitchoverError> {
        let began = Instant::now();
        loop {
            match self.state().await? {
                ServerState::Standby { replayed, .. } if replayed >= Some(goal) => return Ok(()),
                ServerState::Standby { .. } if began.elapsed() < CATCH_UP_TIMEOUT => sleep(LOOK_EVERY).await,
                ServerState::Standby { .. } => {
                    return Err(SwitchoverError::Behind {
                        node: Arc::clone(&self.name),
                    });
                }
                ServerState::Primary { .. } => return Err(self.lost("it has left recovery already".into())),
            }
        }
    }
}
