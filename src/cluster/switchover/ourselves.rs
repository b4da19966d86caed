//! A switchover by `pg_promote()`.
//!
//! ```text
//! look before ─▶ tell the other proxies ─▶ hold writes ─▶ the old primary takes no new writing transactions, from anybody ─▶ those under way end
//!     ─▶ fence it ─▶ the new one has replayed all that it has written ─▶ pg_promote() ─▶ it leads ─▶ release
//! ```
//!
//! Until the fence nothing has happened that can't be taken back, and until `pg_promote()` was sent the old primary simply goes on
//! when a step fails or takes too long.
//!
//! Who hasn't heard that writes are to wait is held off by the old primary's own `default_transaction_read_only`, which a proxy sees with
//! the next answer. It stays so when the writes have moved: pg_rewind and a new base backup bring the new primary's settings.

use std::time::{Duration, Instant};

use super::{Parties, Switched, SwitchoverError, parties};
use crate::cluster::coordinator::Event;
use crate::cluster::handover::Side;
use crate::cluster::lsn::Timeline;
use crate::cluster::promotion::{PROMOTION_TIMEOUT, Promoter, PromotionError, millis};

impl Promoter {
    /// All the steps; ends within some seconds more than the time that transactions under way are given.
    pub(super) async fn switch_over_ourselves(&self, to: Option<&str>) -> Result<Switched, SwitchoverError> {
        let parties = parties(&self.shared.table.load(), to, self.candidate.as_deref(), |_| true)?;
        let mut new = Side::open(&self.targets, parties.new, &parties.new_name).await?;
        new.can_be_promoted().await?;
        let mut old = Side::open(&self.targets, parties.old, &parties.old_name).await?;
        old.can_be_left().await?;
        old.tell_the_others().await?;

        let began = Instant::now();
        self.pause().await?;
        tracing::info!(from = %parties.old_name, to = %parties.new_name, "switchover: writes are held");
        let moved = self.move_writes(&parties, &mut old, &mut new).await;
        match &moved {
            Ok((timeline, _)) => tracing::info!(
                node = %parties.new_name, timeline = timeline.0, took_ms = millis(began), "switchover: done"
            ),
            Err(error @ SwitchoverError::Uncertain(_)) => {
                self.tell(Event::HoldOn).await?;
                tracing::error!(%error, "switchover: outcome unknown");
            }
            Err(error) => {
                let _ = old.take_writes_again().await;
                self.tell(Event::Release).await?;
                tracing::warn!(%error, took_ms = millis(began), "switchover: given up, the primary goes on");
            }
        }
        let (timeline, ended) = moved?;
        let held = began.elapsed();
        let mut warnings = std::mem::take(&mut old.warnings);
        // Left as it is: a proxy that can't reach the new primary, and whoever comes past the proxies, must not write to the old one.
        let takes_none = if old.is_read_only {
            " (default_transaction_read_only = on)"
        } else {
            ""
        };
        warnings.push(format!(
            "{} runs on, as a primary that takes no writes{takes_none}: make it a standby of {} (pg_rewind, standby.signal), and see that \
             other standbys follow",
            parties.old_name, parties.new_name
        ));
        Ok(Switched {
            from: parties.old_name,
            to: parties.new_name,
            timeline,
            held,
            ended,
            warnings,
        })
    }

    /// Answers the new timeline, and how many transactions were ended.
    async fn move_writes(
        &self,
        parties: &Parties,
        old: &mut Side,
        new: &mut Side,
    ) -> Result<(Timeline, usize), SwitchoverError> {
        let began = Instant::now();
        old.take_no_new_writes().await?;
        let ended = old.until_quiet(self.patience).await?;
        tracing::info!(
            took_ms = millis(began),
            ended,
            "switchover: no transaction is under way any more"
        );
        let above = self.hold().await.map_err(|_| SwitchoverError::Stopping)?;
        if above != parties.timeline {
            return Err(SwitchoverError::Unfit(
                "somebody else has promoted a standby meanwhile".into(),
            ));
        }
        // What was on its way to it when it was fenced is over too, one way or the other.
        old.until_quiet(Duration::ZERO).await?;
        let goal = old.position().await?;
        new.until_replayed(goal).await?;
        tracing::info!(lsn = %goal, took_ms = millis(began), "switchover: the new primary has everything");
        self.ask(parties.new, &parties.new_name)
            .await
            .map_err(|error| match error {
                PromotionError::Uncertain { .. } => SwitchoverError::Uncertain(error.to_string()),
                other => SwitchoverError::Unfit(other.to_string()),
            })?;
        let led = self.led_above(above, PROMOTION_TIMEOUT).await;
        let unseen = || SwitchoverError::Uncertain(format!("{} was asked to promote itself", parties.new_name));
        Ok((led.ok_or_else(unseen)?.timeline, ended))
    }
}
