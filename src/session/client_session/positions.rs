//! Positions that travel: what a session has come to, and what it is to see that others have done.

use std::time::{Duration, Instant};

use super::super::error::SessionError;
use super::super::own_settings::bad_position;
use super::super::plan::Plan;
use super::super::request::Unit;
use super::{ClientSession, End};
use crate::cluster::{Position, Reach};
use crate::config::Consistency;
use crate::route::decide::Rules;
use crate::sql::{OwnQuery, own_query, position_hint};
use crate::wire::error_response::{ErrorFields, Severity};
use crate::wire::frame::HEADER;
use crate::wire::frontend;
use crate::wire::sqlstate::SqlState;

/// While the primary's position is waited for, it is asked for again this often.
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl ClientSession {
    /// The position that `SHOW pgsluice.position` tells, if the unit asks for it; else nothing.
    pub(super) async fn asked_position(&self, plan: &Plan, unit: &Unit) -> Result<String, SessionError> {
        let context = self.sql_context();
        let asks = |sql: &&[u8]| own_query(sql, &context) == Some(OwnQuery::Show("position"));
        match self.texts(plan, unit).iter().any(asks) {
            true => self
                .position()
                .await
                .map(|position| position.map_or_else(String::new, |it| it.to_string())),
            false => Ok(String::new()),
        }
    }

    /// Behind everything that the session has written and, where its level says so, seen. `None` if there is no such thing.
    async fn position(&self) -> Result<Option<Position>, SessionError> {
        let (cluster, started) = (&self.worker.shared.cluster, Instant::now());
        let config = self.worker.shared.config.load_full();
        let set = self.state.own.min_position.as_deref().copied();
        // What it has written counts at any level: others may ask for more than it does.
        let level = self.consistency(&config).max(Consistency::ReadYourWrites);
        let Some(floor) = self.state.history.moment(level) else {
            return Ok(set);
        };
        let patience = config.failover.hold_timeout;
        let mut news = cluster.published();
        loop {
            let table = cluster.table();
            if let Some(sample) = table.sample
                && table.primary == Some(sample.node)
                && sample.asked_at > floor
            {
                let here = Position {
                    timeline: sample.timeline,
                    lsn: sample.insert,
                    cluster: table.system_identifier,
                };
                let further = set.filter(|set| (set.timeline, set.lsn) > (here.timeline, here.lsn));
                return Ok(Some(further.unwrap_or(here)));
            }
            let waited = started.elapsed();
            if waited >= patience {
                return Err(SessionError::NoPrimary {
                    waited,
                    why: table.why_no_primary,
                });
            }
            drop(table);
            cluster.freshen(Some(floor));
            let _ = tokio::time::timeout(ASK_AGAIN, news.changed()).await;
        }
    }

    /// The rules for a unit, with the position that a comment in it asks for, where that is the later one.
    pub(super) fn with_hinted_position(&self, rules: Rules, plan: &Plan, unit: &Unit) -> Result<Rules, SessionError> {
        if !plan.positioned {
            return Ok(rules);
        }
        let (context, mut rules) = (self.sql_context(), rules);
        let cluster = self.worker.shared.cluster.table().system_identifier;
        for text in self.texts(plan, unit) {
            let Some(hint) = position_hint(text, &context) else {
                continue;
            };
            if let Some(allowed) = bad_position(hint, cluster) {
                return Err(SessionError::BadSetting {
                    name: "pgsluice.min_position".to_owned(),
                    value: hint.to_owned(),
                    allowed,
                });
            }
            let order = |position: &Position| (position.timeline, position.lsn);
            rules.position = rules.position.into_iter().chain(hint.parse().ok()).max_by_key(order);
        }
        Ok(rules)
    }

    /// A position that a failover has lost isn't waited for: the client is told, once for each that it sets.
    pub(super) async fn tell_of_lost_position(&mut self, rules: &Rules, hinted: bool) -> Result<(), End> {
        let Some(position) = rules.position else { return Ok(()) };
        if self.state.told_of_loss && !hinted || position.reach(&self.worker.shared.cluster.table()) != Reach::Lost {
            return Ok(());
        }
        self.state.told_of_loss = true;
        self.worker.shared.counters.lost_position();
        let message = format!(
            "position {position} is behind the end of timeline {}: what was written there was lost in a failover",
            position.timeline
        );
        let mut out = Vec::new();
        ErrorFields::new(Severity::Notice, SqlState::SUCCESSFUL_COMPLETION, message)
            .with_hint("The read sees what the cluster has; do what is missing again.")
            .encode_notice(&mut out);
        self.say(&out).await
    }

    /// The texts of a unit: of its queries, of what it parses, and of the statements that it binds or describes.
    pub(super) fn texts<'a>(&'a self, plan: &Plan, unit: &Unit) -> Vec<&'a [u8]> {
        let (bytes, statements) = (self.client.inbox.bytes(), &self.state.statements);
        let prepared = |name: &[u8]| match name {
            [] => statements.unnamed().map(|unnamed| &unnamed.sql[..]),
            name => statements.named(name).map(|named| &named.prepared.sql[..]),
        };
        let text = |frame: &super::super::request::FrameAt| {
            let body = bytes.get(frame.start + HEADER..frame.end)?;
            match frame.tag {
                b'Q' => frontend::query(body),
                b'P' => frontend::parse(body).map(|parse| parse.sql),
                b'B' => frontend::bind(body).and_then(|bind| prepared(bind.statement)),
                _ => None,
            }
        };
        unit.frames[..plan.frames].iter().filter_map(text).collect()
    }
}
