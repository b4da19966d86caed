//! Having Patroni make a standby the leader: which of its members our nodes are, and what becomes of asking.
//!
//! That it is done is seen at the servers, sooner than Patroni says so (it looks once a second). That it is not is known only if nobody could be
//! asked, if Patroni says no, or if it gives up and the old primary is seen to go on. Whatever else comes of it, nothing has to be held
//! for long: Patroni lets no two lead, and stops the old one before it promotes.

use std::time::{Duration, Instant};

use super::{Promoted, Promoter};
use crate::cluster::lsn::Timeline;
use crate::cluster::node::{NodeId, NodeRole};
use crate::cluster::patroni::{Member, Move, NotMoved, Patroni, View};
use crate::cluster::reading::ServerIdentity;
use crate::cluster::routing_table::{NodeState, RoutingTable};
use crate::cluster::targets::Targets;
use crate::config::NodeAddress;

/// The old primary is asked no longer than this whether it goes on, once Patroni has given up.
const GOES_ON_WITHIN: Duration = Duration::from_secs(2);

/// Patroni's members, as nodes of ours.
pub(in crate::cluster) struct Members {
    view: View,
    nodes: Vec<Known>,
}

/// One of our nodes.
struct Known {
    id: NodeId,
    address: NodeAddress,
    /// The run of its server.
    server: Option<ServerIdentity>,
}

/// Nobody was seen to lead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatroniError {
    /// It certainly didn't happen.
    #[error("{0}")]
    NotMoved(NotMoved),
    /// No member is the node that is meant.
    #[error("{node} is no member of Patroni's; there are {}", members.join(", "))]
    NoMember {
        /// What we call it.
        node: String,
        /// What Patroni calls its own.
        members: Vec<String>,
    },
    /// It may happen yet.
    #[error(
        "Patroni was asked to make {candidate} the leader, and nobody leads on a higher timeline after {waited:?}{}; it may happen yet",
        said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default()
    )]
    Late {
        /// The member.
        candidate: String,
        /// For how long.
        waited: Duration,
        /// Patroni's words.
        said: Option<String>,
    },
}

impl Members {
    /// Asks Patroni for them.
    pub(in crate::cluster) async fn ask(
        patroni: &Patroni,
        table: &RoutingTable,
        targets: &Targets,
    ) -> Result<Members, PatroniError> {
        let view = patroni.cluster().await;
        let view = view.map_err(|why| PatroniError::NotMoved(NotMoved::Unheard(why)))?;
        let known = |node: &NodeState| {
            Some(Known {
                id: node.id,
                address: targets.of(node.id)?.address,
                server: node.server_start,
            })
        };
        Ok(Members {
            view,
            nodes: table.members().filter_map(known).collect(),
        })
    }

    /// The member at a node's address, or at another address of the same server.
    fn member(&self, node: NodeId) -> Option<&Member> {
        let node = self.nodes.iter().find(|known| known.id == node)?;
        let at = |known: &Known| {
            let mut members = self.view.members.iter();
            members.find(|member| member.address.as_ref() == Some(&known.address))
        };
        let is_twin = |other: &&Known| node.server.is_some() && other.server == node.server;
        at(node).or_else(|| self.nodes.iter().filter(is_twin).find_map(at))
    }

    /// What Patroni calls a node; `name` is what we do.
    pub(in crate::cluster) fn name_of(&self, node: NodeId, name: &str) -> Result<&str, PatroniError> {
        let member = self.member(node).map(|member| &*member.name);
        member.ok_or_else(|| PatroniError::NoMember {
            node: name.to_owned(),
            members: self.view.members.iter().map(|member| member.name.clone()).collect(),
        })
    }

    /// Whether Patroni would let the node lead.
    pub(in crate::cluster) fn may_lead(&self, node: NodeId) -> bool {
        self.member(node).is_some_and(|member| self.view.may_lead(member))
    }
}

impl Promoter {
    /// Asks Patroni, and waits until a node leads on a timeline above this one, for no longer than that.
    pub(in crate::cluster) async fn have_patroni(
        &self,
        patroni: &Patroni,
        members: &Members,
        wanted: Move<'_>,
        above: Timeline,
        longest: Duration,
    ) -> Result<Promoted, PatroniError> {
        let mut said = None;
        let led = tokio::select! {
            led = self.led_above(above, longest) => led,
            refusal = self.refusal(patroni.move_leader(wanted, &members.view), above, &mut said) => {
                return Err(PatroniError::NotMoved(refusal));
            }
        };
        led.ok_or_else(|| PatroniError::Late {
            candidate: wanted.candidate().to_owned(),
            waited: longest,
            said,
        })
    }

    /// Ends only if it is certain that nothing happens. What Patroni says otherwise is kept in `said`.
    async fn refusal(
        &self,
        answer: impl Future<Output = Result<(), NotMoved>>,
        above: Timeline,
        said: &mut Option<String>,
    ) -> NotMoved {
        match answer.await {
            Ok(()) => {}
            Err(no @ (NotMoved::Unheard(_) | NotMoved::Forbidden(_) | NotMoved::Refused(_))) => return no,
            Err(NotMoved::GivenUp(words)) => {
                if self.old_goes_on(above).await {
                    return NotMoved::GivenUp(words);
                }
                *said = Some(words);
            }
            Err(NotMoved::Unknown(words)) => *said = Some(words),
        }
        std::future::pending().await
    }

    /// Whether a node that is asked from now on is still out of recovery on this timeline.
    async fn old_goes_on(&self, timeline: Timeline) -> bool {
        let began = Instant::now();
        let asked_at = |node: &NodeState| node.last_seen?.checked_sub(node.round_trip?);
        let goes_on = |node: &NodeState| {
            matches!(node.role, NodeRole::Primary | NodeRole::StalePrimary)
                && node.timeline == Some(timeline)
                && asked_at(node) >= Some(began)
        };
        let look = |table: &RoutingTable| table.members().any(goes_on).then_some(());
        self.wait_for(GOES_ON_WITHIN, look).await.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::patroni::ANSWER;

    fn members(nodes: &[(&str, i64)]) -> Members {
        let known = |(id, (address, server)): (u16, &(&str, i64))| Known {
            id: NodeId(id),
            address: address.parse().expect("an address"),
            server: (*server != 0).then_some(ServerIdentity(*server)),
        };
        Members {
            view: View::read(ANSWER.as_bytes()).expect("members"),
            nodes: (0..).zip(nodes).map(known).collect(),
        }
    }

    #[test]
    fn a_node_is_the_member_at_its_address_or_at_another_address_of_its_server() {
        let members = members(&[
            ("db1:5432", 11),
            ("db2.example.com:5433", 12),
            ("10.0.0.1:5432", 11),
            ("elsewhere:5432", 13),
            ("nobody:5432", 0),
            ("[2001:db8::3]:5432", 0),
        ]);
        let names: Vec<Option<&str>> = (0..7).map(|id| members.name_of(NodeId(id), "").ok()).collect();
        let expected = [Some("pg1"), Some("pg2"), Some("pg1"), None, None, Some("pg3"), None];
        assert_eq!(names, expected);
        let said = members.name_of(NodeId(3), "other").expect_err("no member").to_string();
        assert_eq!(said, "other is no member of Patroni's; there are pg1, pg2, pg3, pg4");
    }

    #[test]
    fn what_may_happen_yet_is_told_with_patronis_words() {
        let late = |said: Option<&str>| {
            let late = PatroniError::Late {
                candidate: "pg2".to_owned(),
                waited: Duration::from_secs(10),
                said: said.map(str::to_owned),
            };
            late.to_string()
        };
        assert_eq!(
            late(Some("status unknown")),
            "Patroni was asked to make pg2 the leader, and nobody leads on a higher timeline after 10s (status unknown); it may happen yet"
        );
        assert!(late(None).contains("10s; it may"), "{}", late(None));
    }
}
