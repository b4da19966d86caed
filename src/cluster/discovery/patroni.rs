//! Patroni's members are nodes.
//!
//! Whom Patroni takes for the leader decides nothing: roles come from the servers themselves. But when it changes the nodes are asked at
//! once. An answer that knows of no leader forgets nobody: Patroni's own store may just be losing, or regaining, its memory. A member
//! that has no address yet, as while it is being made, is left out.

use std::sync::Arc;

use super::merge::{Answer, Found, Lacking};
use super::{AskNodes, Source};
use crate::cluster::patroni::{Member, Patroni, View};

/// Asks Patroni.
pub(super) struct Members {
    patroni: Arc<Patroni>,
    ask_nodes: AskNodes,
    leader: Option<Leader>,
}

/// Whom Patroni takes for the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leader {
    name: String,
    timeline: Option<u32>,
}

impl Members {
    pub(super) fn new(patroni: Arc<Patroni>, ask_nodes: AskNodes) -> Members {
        Members {
            patroni,
            ask_nodes,
            leader: None,
        }
    }

    fn hear_of_leader(&mut self, leader: Option<Leader>) {
        let is_news = leader.is_some() && self.leader.is_some() && leader != self.leader;
        if is_news {
            tracing::debug!(?leader, "patroni has another leader: the nodes are asked at once");
            (self.ask_nodes)();
        }
        self.leader = leader.or(self.leader.take());
    }
}

impl Source for Members {
    async fn ask(&mut self) -> Result<Answer, String> {
        let view = self.patroni.cluster().await?;
        self.hear_of_leader(view.leader().map(|leader| Leader {
            name: leader.name.clone(),
            timeline: leader.timeline,
        }));
        Ok(answer(&view))
    }
}

fn answer(view: &View) -> Answer {
    Answer {
        nodes: view.members.iter().filter_map(found).collect(),
        lacking: match view.leader() {
            Some(_) => Lacking::Gone,
            None => Lacking::Unknown,
        },
        twins: Vec::new(),
    }
}

fn found(member: &Member) -> Option<Found> {
    Some(Found {
        address: member.address.clone()?,
        name: Some(member.name.clone()),
        weight: u32::from(member.takes_reads),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cluster::patroni::ANSWER;
    use crate::config;

    #[test]
    fn members_are_nodes_by_their_names() {
        let answer = answer(&View::read(ANSWER.as_bytes()).unwrap());
        let nodes: Vec<(String, &str, u32)> = answer
            .nodes
            .iter()
            .map(|found| (found.address.to_string(), found.name.as_deref().unwrap(), found.weight))
            .collect();
        let expected = [
            ("10.0.0.1:5432".to_owned(), "pg1", 1),
            ("db2.example.com:5433".to_owned(), "pg2", 0),
            ("[2001:db8::3]:5432".to_owned(), "pg3", 1),
        ];
        assert_eq!(nodes, expected);
        assert_eq!(answer.lacking, Lacking::Gone);
    }

    #[test]
    fn without_a_leader_nobody_is_forgotten() {
        let view = View::read(ANSWER.replace("\"leader\"", "\"replica\"").as_bytes()).unwrap();
        let answer = answer(&view);
        assert_eq!(answer.lacking, Lacking::Unknown);
        assert_eq!(answer.nodes.len(), 3);
    }

    #[test]
    fn only_another_leader_has_the_nodes_asked() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let patroni = Patroni::new(config::Patroni {
            urls: Vec::new(),
            root_cert: None,
            login: None,
        });
        let ask_nodes = Arc::new(move || _ = count.fetch_add(1, Ordering::Relaxed));
        let mut members = Members::new(Arc::new(patroni), ask_nodes);
        let leader = |name: &str, timeline| {
            Some(Leader {
                name: name.to_owned(),
                timeline: Some(timeline),
            })
        };
        for (heard, expected) in [
            (leader("pg1", 1), 0),
            (leader("pg1", 1), 0),
            (None, 0),
            (leader("pg1", 1), 0),
            (leader("pg1", 2), 1),
            (None, 1),
            (leader("pg2", 3), 2),
        ] {
            members.hear_of_leader(heard);
            assert_eq!(asked.load(Ordering::Relaxed), expected);
        }
    }
}
