//! A switchover that Patroni carries out.
//!
//! ```text
//! ask Patroni for its members, look before ─▶ checkpoint ─▶ tell the other proxies ─▶ hold writes ─▶ transactions under way end
//!     ─▶ POST /switchover: Patroni stops the old leader, which sends all that it has written, and promotes ─▶ it leads ─▶ release
//! ```
//!
//! The old leader isn't fenced before, nor made read-only: Patroni may refuse, and when it doesn't it stops the server, who stays in its
//! hands. A write that comes past the proxies until then is replicated as any other. The advisory lock dies with the server; other
//! proxies hold their writes then because nobody leads.
//!
//! Writes wait until a node leads on a higher timeline, also if the old leader merely starts again meanwhile ([`Event::Pause`]). If
//! that takes too long, or doesn't happen, they wait no longer: whom Patroni lets lead, leads.

use std::time::{Duration, Instant};

use super::{Parties, Switched, SwitchoverError, parties};
use crate::cluster::coordinator::Event;
use crate::cluster::handover::Side;
use crate::cluster::patroni::{Move, Patroni};
use crate::cluster::promotion::by_patroni::Members;
use crate::cluster::promotion::{PROMOTION_TIMEOUT, Promoted, Promoter, millis};

/// Patroni gets at least this long: what it has begun it doesn't end because clients wait no longer.
const SHORTEST: Duration = Duration::from_secs(10);
/// How long the checkpoint before may take.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(60);

impl Promoter {
    /// All the steps. Writes are no longer held at its end.
    pub(super) async fn switch_over_by_patroni(
        &self,
        patroni: &Patroni,
        to: Option<&str>,
    ) -> Result<Switched, SwitchoverError> {
        let members = Members::ask(patroni, &self.shared.table.load_full(), &self.targets).await?;
        let candidate = self.candidate.as_deref();
        let look = || parties(&self.shared.table.load(), to, candidate, |node| members.may_lead(node));
        let first = look()?;
        wanted(&members, &first)?;
        self.checkpoint(&first).await;
        // That may have taken a while, and before it nobody was to wait.
        let parties = look()?;
        let wanted = wanted(&members, &parties)?;
        let mut old = Side::open(&self.targets, parties.old, &parties.old_name).await?;
        old.can_be_left().await?;
        old.tell_the_others().await?;

        let began = Instant::now();
        self.pause().await?;
        tracing::info!(from = %parties.old_name, to = %parties.new_name, "switchover: writes are held for Patroni");
        let moved = self.have_it_moved(patroni, &members, wanted, &parties, &mut old).await;
        if moved.is_err() {
            // Where it has been stopped after all, this fails, and does no harm.
            let _ = old.take_writes_again().await;
        }
        self.tell(Event::Release).await?;
        match &moved {
            Ok((promoted, _)) => tracing::info!(
                node = %promoted.node, timeline = promoted.timeline.0, took_ms = millis(began), "switchover: done by Patroni"
            ),
            Err(error) => {
                tracing::warn!(%error, took_ms = millis(began), "switchover: not done; writes go where Patroni has its leader");
            }
        }
        let (promoted, ended) = moved?;
        let another = promoted.node != parties.new_name;
        Ok(Switched {
            warnings: another
                .then(|| {
                    format!(
                        "Patroni has made {} the leader instead of {}",
                        promoted.node, parties.new_name
                    )
                })
                .into_iter()
                .collect(),
            from: parties.old_name,
            to: promoted.node,
            timeline: promoted.timeline,
            held: began.elapsed(),
            ended,
        })
    }

    /// Patroni has the old leader write a checkpoint before it stops, and a second one has little to write: without this writes would
    /// wait for it. A role that may not do it has them wait.
    async fn checkpoint(&self, parties: &Parties) {
        let began = Instant::now();
        let done = match Side::open(&self.targets, parties.old, &parties.old_name).await {
            Ok(side) => side.checkpoint(CHECKPOINT_TIMEOUT).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => tracing::info!(
                took_ms = millis(began),
                "switchover: the old primary has written a checkpoint"
            ),
            Err(error) => {
                tracing::info!(%error, "switchover: no checkpoint before; writes will wait for Patroni's own")
            }
        }
    }

    /// Answers who leads, and how many transactions were under way when Patroni was asked.
    async fn have_it_moved(
        &self,
        patroni: &Patroni,
        members: &Members,
        wanted: Move<'_>,
        parties: &Parties,
        old: &mut Side,
    ) -> Result<(Promoted, usize), SwitchoverError> {
        let began = Instant::now();
        // Those that take longer are ended by the server when it stops.
        let under_way = old.quiet_within(self.patience).await?;
        tracing::info!(took_ms = millis(began), under_way, "switchover: Patroni is asked");
        let longest = self.hold_timeout.clamp(SHORTEST, PROMOTION_TIMEOUT);
        let promoted = self
            .have_patroni(patroni, members, wanted, parties.timeline, longest)
            .await?;
        if promoted.node == parties.old_name {
            return Err(SwitchoverError::Unfit(format!(
                "Patroni has stopped {} and made it the leader again",
                parties.old_name
            )));
        }
        Ok((promoted, under_way))
    }
}

/// What to ask for, if both are members.
fn wanted<'m>(members: &'m Members, parties: &Parties) -> Result<Move<'m>, SwitchoverError> {
    Ok(Move::Switchover {
        leader: members.name_of(parties.old, &parties.old_name)?,
        candidate: members.name_of(parties.new, &parties.new_name)?,
    })
}
