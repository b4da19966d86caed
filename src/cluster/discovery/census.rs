//! Which of the addresses that servers name are nodes. Pure: rounds of answers go in, one answer of the source's comes out.
//!
//! An address counts when a server of the cluster has answered there in two rounds in a row and no earlier address leads to the same
//! server. Which server it is shows in when it was started; asked while it restarts, one server looks like two, hence the second
//! round. From then on being named is enough, as is answering: a standby that is fed from an archive is in nobody's list.

use std::collections::HashMap;
use std::time::Duration;

use super::hearsay::{Identity, Told};
use super::merge::{Answer, Found, Lacking};
use crate::cluster::lsn::SystemIdentifier;
use crate::config::{MAX_NODES, NodeAddress};

/// Rounds in which an address must have been another server than those before it.
const ROUNDS_TO_COUNT: u32 = 2;
/// After so many rounds in which it wasn't a node an address is tried only every [`REST`] rounds.
const MISSES_TO_REST: u32 = 15;
/// See there.
const REST: u32 = 15;
/// Addresses that are tried though they may lead nowhere.
const MOST_TRIED: usize = MAX_NODES;

/// What one address has answered in a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) address: NodeAddress,
    /// `None` if nobody did.
    pub(super) told: Option<Told>,
}

/// What is known from the rounds so far.
pub(super) struct Census {
    forget_after: Duration,
    /// Found by this source: they count.
    counted: Vec<NodeAddress>,
    /// Named, but not counted.
    tried: Vec<Tried>,
    last: Round,
}

/// An address that may be a node's.
struct Tried {
    address: NodeAddress,
    /// Rounds in a row in which it was a server of its own.
    rounds: u32,
    /// Rounds in a row in which it wasn't, or wasn't asked.
    misses: u32,
}

impl Tried {
    /// What leads nowhere is tried seldom: it may be a stranger's server, whose log is not for us to fill.
    fn is_due(&self) -> bool {
        self.misses < MISSES_TO_REST || self.misses.is_multiple_of(REST)
    }
}

/// What the last round has shown.
#[derive(Default)]
struct Round {
    /// Somebody has answered.
    was_answered: bool,
    /// One of them was a primary, which knows all standbys that stream from it.
    had_primary: bool,
    /// Of those that count: who is there.
    present: Vec<NodeAddress>,
    /// Of those that counted: who is another address's server.
    twins: Vec<NodeAddress>,
    /// Something was learned that another round would make more of.
    is_open: bool,
}

impl Census {
    pub(super) fn new(forget_after: Duration) -> Census {
        Census {
            forget_after,
            counted: Vec::new(),
            tried: Vec::new(),
            last: Round::default(),
        }
    }

    /// Whom to ask in the next round, each once.
    pub(super) fn addresses(&self, known: &[NodeAddress]) -> Vec<NodeAddress> {
        let mut all: Vec<NodeAddress> = known.to_vec();
        let tried = self.tried.iter().filter(|tried| tried.is_due());
        let own = self.counted.iter().chain(tried.map(|tried| &tried.address));
        for address in own {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    /// Takes a round's answers; `known` are the nodes as published.
    pub(super) fn take(&mut self, known: &[NodeAddress], heard: Vec<Heard>) {
        let told: HashMap<&NodeAddress, &Told> = heard
            .iter()
            .filter_map(|heard| Some((&heard.address, heard.told.as_ref()?)))
            .collect();
        let Some(cluster) = most_common_cluster(known, &told) else {
            self.last = Round::default();
            return;
        };
        let ours = |address: &NodeAddress| told.get(address).filter(|told| told.identity.cluster == cluster);
        let named: Vec<&NodeAddress> = told
            .values()
            .filter(|told| told.identity.cluster == cluster)
            .flat_map(|told| &told.names)
            .collect();

        let mut seen: Vec<Identity> = Vec::new();
        let mut round = Round {
            was_answered: true,
            had_primary: told
                .values()
                .any(|told| told.identity.cluster == cluster && !told.in_recovery && told.sees_all),
            ..Round::default()
        };
        // Those that others have found are what they are, and come first; ours follow, and give way to them.
        let others: Vec<&NodeAddress> = known.iter().filter(|address| !self.counted.contains(address)).collect();
        seen.extend(others.iter().filter_map(|address| Some(ours(address)?.identity)));
        // One that is forgotten has to count again.
        self.counted
            .retain(|address| known.contains(address) || named.contains(&address));
        self.counted.retain(|address| match ours(address) {
            Some(told) if seen.contains(&told.identity) => {
                round.twins.push(address.clone());
                false
            }
            Some(told) => {
                seen.push(told.identity);
                round.present.push(address.clone());
                true
            }
            None => {
                if named.contains(&address) {
                    round.present.push(address.clone());
                }
                true
            }
        });

        let mut all = std::mem::take(&mut self.tried);
        all.retain(|tried| named.contains(&&tried.address) && !others.contains(&&tried.address));
        all.sort_by(|one, other| order(&one.address).cmp(&order(&other.address)));
        for mut tried in all {
            match ours(&tried.address) {
                Some(told) if !seen.contains(&told.identity) => {
                    seen.push(told.identity);
                    (tried.rounds, tried.misses) = (tried.rounds + 1, 0);
                }
                Some(_) | None => (tried.rounds, tried.misses) = (0, tried.misses.saturating_add(1)),
            }
            if tried.rounds >= ROUNDS_TO_COUNT {
                round.present.push(tried.address.clone());
                self.counted.push(tried.address);
            } else {
                round.is_open |= tried.rounds > 0;
                self.tried.push(tried);
            }
        }
        self.try_new(&named, &others, &mut round);
        self.last = round;
    }

    fn try_new(&mut self, named: &[&NodeAddress], others: &[&NodeAddress], round: &mut Round) {
        let mut new: Vec<&&NodeAddress> = named
            .iter()
            .filter(|address| {
                let is_tried = self.tried.iter().any(|tried| tried.address == ***address);
                !is_tried && !self.counted.contains(address) && !others.contains(address)
            })
            .collect();
        new.sort_by_key(|address| order(address));
        new.dedup();
        new.truncate(MOST_TRIED.saturating_sub(self.tried.len()));
        round.is_open |= !new.is_empty();
        self.tried.extend(new.into_iter().map(|address| Tried {
            address: (**address).clone(),
            rounds: 0,
            misses: 0,
        }));
    }

    /// Whether another round would tell more, at once.
    pub(super) fn wants_more(&self) -> bool {
        self.last.is_open
    }

    /// The source's answer after the last round.
    pub(super) fn answer(&self) -> Result<Answer, String> {
        if !self.last.was_answered {
            return Err("no server answers".to_owned());
        }
        Ok(Answer {
            nodes: self.last.present.iter().cloned().map(Found::at).collect(),
            lacking: if self.last.had_primary {
                Lacking::GoneAfter(self.forget_after)
            } else {
                Lacking::Unknown
            },
            twins: self.last.twins.clone(),
        })
    }
}

fn order(address: &NodeAddress) -> (&str, u16) {
    (&address.host, address.port)
}

/// What most of the known nodes belong to, the first of them where there are as many.
fn most_common_cluster(known: &[NodeAddress], told: &HashMap<&NodeAddress, &Told>) -> Option<SystemIdentifier> {
    let said: Vec<SystemIdentifier> = known
        .iter()
        .filter_map(|address| Some(told.get(address)?.identity.cluster))
        .collect();
    let votes = |candidate: &SystemIdentifier| said.iter().filter(|other| *other == candidate).count();
    let most = said.iter().map(votes).max()?;
    said.iter().find(|candidate| votes(candidate) == most).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::reading::ServerIdentity;

    const MINUTE: Duration = Duration::from_secs(60);

    fn address(text: &str) -> NodeAddress {
        text.parse().unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<NodeAddress> {
        texts.iter().map(|text| address(text)).collect()
    }

    /// A server of cluster 7 by its start, and whom it names; a primary if it was started at an odd moment.
    fn server(at: &str, start: i64, names: &[&str]) -> Heard {
        Heard {
            address: address(at),
            told: Some(Told {
                identity: Identity {
                    cluster: SystemIdentifier(7),
                    server: ServerIdentity(start),
                },
                in_recovery: start % 2 == 0,
                sees_all: true,
                names: addresses(names),
            }),
        }
    }

    fn foreign(at: &str, start: i64, names: &[&str]) -> Heard {
        let mut heard = server(at, start, names);
        if let Some(told) = &mut heard.told {
            told.identity.cluster = SystemIdentifier(8);
        }
        heard
    }

    fn silent(at: &str) -> Heard {
        Heard {
            address: address(at),
            told: None,
        }
    }

    fn census() -> Census {
        Census::new(10 * MINUTE)
    }

    /// Rounds with the same answers, from those who are asked, until nothing more comes of it.
    fn rounds(census: &mut Census, known: &[&str], world: &[Heard]) -> usize {
        let known = addresses(known);
        for number in 1..20 {
            let asked = census.addresses(&known);
            let heard = world.iter().filter(|heard| asked.contains(&heard.address));
            census.take(&known, heard.cloned().collect());
            if !census.wants_more() {
                return number;
            }
        }
        panic!("it never ends");
    }

    fn found(census: &Census) -> Vec<String> {
        let answer = census.answer().unwrap();
        answer.nodes.iter().map(|found| found.address.to_string()).collect()
    }

    #[test]
    fn the_address_of_any_one_finds_all() {
        // a is the primary; b follows it, c follows b.
        let world = [
            server("a:1", 11, &["b:1"]),
            server("b:1", 12, &["c:1", "a:1"]),
            server("c:1", 14, &["b:1"]),
        ];
        for (known, expected) in [
            ("a:1", ["b:1", "c:1"]),
            ("b:1", ["a:1", "c:1"]),
            ("c:1", ["b:1", "a:1"]),
        ] {
            let mut census = census();
            assert!(rounds(&mut census, &[known], &world) <= 6);
            let mut found = found(&census);
            found.sort();
            let mut expected = expected;
            expected.sort_unstable();
            assert_eq!(found, expected, "{known}");
            assert_eq!(census.answer().unwrap().lacking, Lacking::GoneAfter(10 * MINUTE));
        }
    }

    #[test]
    fn a_subscriber_a_backup_and_another_cluster_are_no_nodes() {
        let world = [
            server("a:1", 11, &["sub:1", "nobody:1", "b:1"]),
            server("b:1", 12, &["a:1"]),
            foreign("sub:1", 21, &["d:1"]),
            silent("nobody:1"),
            server("d:1", 14, &[]),
        ];
        let mut census = census();
        rounds(&mut census, &["a:1"], &world);
        assert_eq!(found(&census), ["b:1"]);
        // They are tried again, ever more seldom: what is silent may be starting.
        let known = addresses(&["a:1", "b:1"]);
        let asked = |census: &mut Census, rounds: usize| {
            let mut count = 0;
            for _ in 0..rounds {
                let asked = census.addresses(&known);
                count += usize::from(asked.contains(&address("nobody:1")));
                let heard = world.iter().filter(|heard| asked.contains(&heard.address));
                census.take(&known, heard.cloned().collect());
            }
            count
        };
        assert!(asked(&mut census, 300) <= 15 + 300 / 15);
        let world = [world[0].clone(), world[1].clone(), server("nobody:1", 16, &[])];
        for _ in 0..16 {
            rounds(&mut census, &["a:1", "b:1"], &world);
        }
        assert_eq!(found(&census), ["b:1", "nobody:1"]);
    }

    #[test]
    fn another_address_of_a_known_server_is_none_of_its_own() {
        let world = [
            server("db1:1", 11, &["10.0.0.2:1"]),
            server("10.0.0.2:1", 12, &["10.0.0.1:1"]),
            server("10.0.0.1:1", 11, &["10.0.0.2:1"]),
        ];
        let mut census = census();
        rounds(&mut census, &["db1:1"], &world);
        assert_eq!(found(&census), ["10.0.0.2:1"]);
        // Two addresses of a server that nobody knows yet: the first in order counts.
        let mut census = self::census();
        let world = [
            server("a:1", 11, &["10.0.0.2:1", "10.0.1.2:1"]),
            server("10.0.0.2:1", 12, &[]),
            server("10.0.1.2:1", 12, &[]),
        ];
        rounds(&mut census, &["a:1"], &world);
        assert_eq!(found(&census), ["10.0.0.2:1"]);
    }

    #[test]
    fn a_server_that_restarts_between_two_questions_is_not_two() {
        let known = addresses(&["db1:1", "b:1"]);
        let others = server("b:1", 12, &["10.0.0.1:1"]);
        let mut census = census();
        census.take(&known, vec![server("db1:1", 11, &[]), others.clone()]);
        // Asked before and after the restart: one round isn't enough.
        census.take(
            &known,
            vec![server("db1:1", 11, &[]), others.clone(), server("10.0.0.1:1", 13, &[])],
        );
        assert!(census.wants_more());
        census.take(
            &known,
            vec![server("db1:1", 13, &[]), others.clone(), server("10.0.0.1:1", 13, &[])],
        );
        assert!(!census.wants_more());
        assert!(found(&census).is_empty());
        // Who was found, and is found to be another's server, goes at once.
        let world = [others, server("10.0.0.1:1", 13, &[]), silent("db1:1")];
        rounds(&mut census, &["db1:1", "b:1"], &world);
        assert_eq!(found(&census), ["10.0.0.1:1"]);
        let known = addresses(&["db1:1", "b:1", "10.0.0.1:1"]);
        census.take(&known, [&world[..2], &[server("db1:1", 13, &[])]].concat());
        assert_eq!(census.answer().unwrap().twins, addresses(&["10.0.0.1:1"]));
        assert!(found(&census).is_empty());
    }

    #[test]
    fn who_counts_is_there_while_it_is_named_or_answers() {
        let mut census = census();
        let (a, b) = (server("a:1", 11, &["b:1"]), server("b:1", 12, &[]));
        rounds(&mut census, &["a:1"], &[a.clone(), b.clone()]);
        let known = addresses(&["a:1", "b:1"]);
        for (a, b, expected) in [
            (a.clone(), silent("b:1"), &["b:1"][..]),
            (server("a:1", 11, &[]), b.clone(), &["b:1"]),
            (server("a:1", 11, &[]), silent("b:1"), &[]),
            (server("a:1", 11, &[]), b, &["b:1"]),
        ] {
            census.take(&known, vec![a, b]);
            assert_eq!(found(&census), expected);
        }
        // Forgotten by those who keep the list: it has to count again.
        census.take(&known[..1], vec![server("a:1", 11, &[]), silent("b:1")]);
        assert_eq!(census.addresses(&known[..1]), known[..1]);
    }

    #[test]
    fn without_a_primary_nobody_is_forgotten_and_silence_is_no_answer() {
        let mut census = census();
        assert!(census.answer().is_err());
        let known = addresses(&["a:1", "b:1"]);
        census.take(&known, vec![silent("a:1"), server("b:1", 12, &["a:1"])]);
        assert_eq!(census.answer().unwrap().lacking, Lacking::Unknown);
        census.take(&known, vec![silent("a:1"), silent("b:1")]);
        assert!(census.answer().is_err());
    }

    #[test]
    fn what_can_be_named_is_bounded() {
        let names: Vec<String> = (0..1000).map(|number| format!("h{number}:1")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut census = census();
        rounds(&mut census, &["a:1"], &[server("a:1", 11, &names)]);
        assert_eq!(census.addresses(&[]).len(), MOST_TRIED);
    }
}
