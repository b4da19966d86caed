//! From what the sources say to one list of nodes. Pure: time is an argument.
//!
//! The nodes of the file come first and never go. What sources have found follows in the order in which it was found, so that
//! answers in another order are no change. An address is one node, however many sources name it, and keeps its name for as long
//! as it is there: metrics and logs go by it.
//!
//! Silence changes nothing, and neither does an answer without any node: a source that has lost its memory would otherwise take
//! all servers out of service. What a good answer lacks is gone, at once or later, as the source says ([`Lacking`]).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::{MAX_NODES, NodeAddress, NodeConfig};

/// A node that a source names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it listens.
    pub(super) address: NodeAddress,
    /// What the source calls it, if it has names.
    pub(super) name: Option<String>,
    /// Its share of reads.
    pub(super) weight: u32,
}

impl Found {
    /// A node of which nothing but the address is known.
    pub(super) fn at(address: NodeAddress) -> Found {
        Found {
            address,
            name: None,
            weight: 1,
        }
    }
}

/// What a source has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// The nodes in it.
    pub(super) nodes: Vec<Found>,
    /// What about those that it had named before and that aren't in it.
    pub(super) lacking: Lacking,
    /// Addresses that have turned out to lead to the same server as another one: none of their own, from now on.
    pub(super) twins: Vec<NodeAddress>,
}

impl Answer {
    /// That these are all.
    pub(super) fn all(nodes: Vec<Found>) -> Answer {
        Answer {
            nodes,
            lacking: Lacking::Gone,
            twins: Vec::new(),
        }
    }

    /// Whether it says that there are no nodes at all, which nobody who is asked can mean.
    pub(super) fn is_implausible(&self) -> bool {
        self.nodes.is_empty() && self.lacking == Lacking::Gone
    }
}

/// What an answer says about the nodes that it lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lacking {
    /// They are gone: the answer names all that there are.
    Gone,
    /// They are gone if every answer has lacked them for so long.
    GoneAfter(Duration),
    /// Nothing: the answer comes from one who doesn't know all.
    Unknown,
}

/// Which source: its place in the order in which their names for a node count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SourceId(pub(super) usize);

/// The list, and all that it is made of.
pub(super) struct Merge {
    fixed: Vec<NodeConfig>,
    /// Where the proxy listens itself: never a node.
    own: Vec<SocketAddr>,
    sources: Vec<Source>,
    /// What was found, in the order in which it was.
    order: Vec<NodeAddress>,
    names: HashMap<NodeAddress, String>,
}

#[derive(Default)]
struct Source {
    /// It has answered, or failed to.
    was_heard: bool,
    listed: Vec<Listed>,
}

struct Listed {
    found: Found,
    /// Since then every answer has lacked it.
    missing_since: Option<Instant>,
}

impl Merge {
    /// The nodes of the file, and so many sources that weren't heard yet.
    pub(super) fn new(fixed: Vec<NodeConfig>, own: Vec<SocketAddr>, sources: usize) -> Merge {
        Merge {
            fixed,
            own,
            sources: (0..sources).map(|_| Source::default()).collect(),
            order: Vec::new(),
            names: HashMap::new(),
        }
    }

    /// The file names these from now on.
    pub(super) fn set_fixed(&mut self, fixed: Vec<NodeConfig>) {
        self.fixed = fixed;
        let fixed = &self.fixed;
        self.order
            .retain(|address| fixed.iter().all(|node| node.address != *address));
        // A name of the file's is the file's.
        self.names.retain(|_, name| fixed.iter().all(|node| node.name != *name));
        self.arrange();
    }

    /// A source has answered.
    pub(super) fn take(&mut self, source: SourceId, answer: &Answer, now: Instant) {
        let Some(source) = self.sources.get_mut(source.0) else {
            return;
        };
        source.was_heard = true;
        if !answer.is_implausible() {
            source.take(answer, now);
            self.arrange();
        }
    }

    /// A source can't be asked.
    pub(super) fn take_failure(&mut self, source: SourceId) {
        if let Some(source) = self.sources.get_mut(source.0) {
            source.was_heard = true;
            source.forget_absences();
        }
    }

    /// Whether every source has answered or failed at least once.
    pub(super) fn were_all_heard(&self) -> bool {
        self.sources.iter().all(|source| source.was_heard)
    }

    /// The list, one node per address, with unique names.
    pub(super) fn nodes(&self) -> Vec<NodeConfig> {
        let found = self.order.iter().take(self.room()).map(|address| NodeConfig {
            address: address.clone(),
            name: self.names.get(address).cloned().unwrap_or_default(),
            weight: self.first_to_name(address).map_or(1, |found| found.weight),
        });
        self.fixed.iter().cloned().chain(found).collect()
    }

    /// Those that there is no room for.
    pub(super) fn left_out(&self) -> &[NodeAddress] {
        self.order.get(self.room()..).unwrap_or_default()
    }

    fn room(&self) -> usize {
        MAX_NODES.saturating_sub(self.fixed.len())
    }

    /// Takes over what is new, drops what no source names any more, and gives names to those that are in the list and have none.
    fn arrange(&mut self) {
        let sources = &self.sources;
        self.order
            .retain(|address| sources.iter().any(|source| source.find(address).is_some()));
        for address in sources.iter().flat_map(Source::addresses) {
            let is_fixed = self.fixed.iter().any(|node| node.address == *address);
            let is_own = self.own.iter().any(|own| address.reaches(*own));
            if !is_fixed && !is_own && !self.order.contains(address) {
                self.order.push(address.clone());
            }
        }
        let room = self.room();
        let kept = &self.order[..room.min(self.order.len())];
        self.names.retain(|address, _| kept.contains(address));
        for address in kept {
            if !self.names.contains_key(address) {
                let wanted = self.first_to_name(address).and_then(|found| found.name.as_deref());
                let name = self.free_name(address, wanted);
                self.names.insert(address.clone(), name);
            }
        }
    }

    fn first_to_name(&self, address: &NodeAddress) -> Option<&Found> {
        self.sources.iter().find_map(|source| source.find(address))
    }

    /// The source's name for it, its address, or its address with a number, whichever is free.
    fn free_name(&self, address: &NodeAddress, wanted: Option<&str>) -> String {
        let is_free = |name: &str| {
            let mut taken = self.fixed.iter().map(|node| &node.name).chain(self.names.values());
            taken.all(|other| other != name)
        };
        if let Some(name) = wanted.filter(|name| NodeConfig::is_name(name) && is_free(name)) {
            return name.to_owned();
        }
        let address = address.to_string();
        let numbered = (2..).map(|number| format!("{address}-{number}"));
        std::iter::once(address.clone())
            .chain(numbered)
            .find(|name| is_free(name))
            .expect("there are more numbers than nodes")
    }
}

impl Source {
    fn take(&mut self, answer: &Answer, now: Instant) {
        self.listed
            .retain(|listed| !answer.twins.contains(&listed.found.address));
        for listed in &mut self.listed {
            if let Some(found) = answer.nodes.iter().find(|found| found.address == listed.found.address) {
                listed.found = found.clone();
                listed.missing_since = None;
            } else {
                listed.missing_since.get_or_insert(now);
            }
        }
        match answer.lacking {
            Lacking::Gone => self.listed.retain(|listed| listed.missing_since.is_none()),
            Lacking::GoneAfter(limit) => self.listed.retain(|listed| {
                let missing = listed.missing_since.map(|since| now.saturating_duration_since(since));
                missing.is_none_or(|missing| missing < limit)
            }),
            Lacking::Unknown => self.forget_absences(),
        }
        let mut new: Vec<&Found> = answer
            .nodes
            .iter()
            .filter(|found| self.find(&found.address).is_none())
            .collect();
        // Answers come in any order; the list has one.
        new.sort_by_key(|found| (&found.address.host, found.address.port));
        new.dedup_by_key(|found| &found.address);
        self.listed.extend(new.into_iter().cloned().map(|found| Listed {
            found,
            missing_since: None,
        }));
        // Whatever a source says, it takes no more than this of memory.
        self.listed.truncate(4 * MAX_NODES);
    }

    /// While nobody could tell, nothing was missing.
    fn forget_absences(&mut self) {
        for listed in &mut self.listed {
            listed.missing_since = None;
        }
    }

    fn find(&self, address: &NodeAddress) -> Option<&Found> {
        let mut found = self.listed.iter().map(|listed| &listed.found);
        found.find(|found| found.address == *address)
    }

    fn addresses(&self) -> impl Iterator<Item = &NodeAddress> {
        self.listed.iter().map(|listed| &listed.found.address)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: SourceId = SourceId(0);
    const SECOND: SourceId = SourceId(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn address(text: &str) -> NodeAddress {
        let (host, port) = text.rsplit_once(':').unwrap();
        NodeAddress {
            host: host.to_owned(),
            port: port.parse().unwrap(),
        }
    }

    fn node(text: &str, name: &str) -> NodeConfig {
        NodeConfig {
            address: address(text),
            name: name.to_owned(),
            weight: 1,
        }
    }

    fn found(text: &str, name: &str) -> Found {
        Found {
            name: (!name.is_empty()).then(|| name.to_owned()),
            ..Found::at(address(text))
        }
    }

    fn answer(nodes: &[Found], lacking: Lacking) -> Answer {
        Answer {
            nodes: nodes.to_vec(),
            lacking,
            twins: Vec::new(),
        }
    }

    fn all(nodes: &[&str]) -> Answer {
        Answer::all(nodes.iter().map(|text| found(text, "")).collect())
    }

    fn names(merge: &Merge) -> Vec<String> {
        merge.nodes().into_iter().map(|node| node.name).collect()
    }

    fn merge(fixed: &[NodeConfig]) -> Merge {
        Merge::new(fixed.to_vec(), vec!["127.0.0.1:6432".parse().unwrap()], 2)
    }

    #[test]
    fn the_files_nodes_come_first_and_never_go() {
        let now = Instant::now();
        let mut merge = merge(&[node("a:1", "one")]);
        assert_eq!(names(&merge), ["one"]);
        merge.take(
            FIRST,
            &answer(&[found("a:1", "other"), found("b:1", "two")], Lacking::Gone),
            now,
        );
        assert_eq!(names(&merge), ["one", "two"]);
        merge.take(FIRST, &all(&["c:1"]), now);
        assert_eq!(names(&merge), ["one", "c:1"]);
    }

    #[test]
    fn silence_and_empty_answers_change_nothing() {
        let now = Instant::now();
        let mut merge = merge(&[]);
        merge.take(FIRST, &all(&["a:1", "b:1"]), now);
        merge.take_failure(FIRST);
        merge.take(FIRST, &all(&[]), now);
        assert_eq!(names(&merge), ["a:1", "b:1"]);
        merge.take(FIRST, &all(&["b:1"]), now);
        assert_eq!(names(&merge), ["b:1"]);
    }

    #[test]
    fn another_order_is_no_change() {
        let now = Instant::now();
        let mut merge = merge(&[]);
        merge.take(FIRST, &all(&["b:1", "a:1", "c:1", "a:1"]), now);
        let before = merge.nodes();
        merge.take(FIRST, &all(&["c:1", "b:1", "a:1"]), now);
        assert_eq!(merge.nodes(), before);
        merge.take(FIRST, &all(&["0:1", "c:1", "b:1", "a:1"]), now);
        assert_eq!(names(&merge), ["a:1", "b:1", "c:1", "0:1"]);
    }

    #[test]
    fn what_two_sources_name_is_one_node_and_goes_with_the_last_of_them() {
        let now = Instant::now();
        let mut merge = merge(&[]);
        merge.take(SECOND, &all(&["a:1"]), now);
        merge.take(FIRST, &answer(&[found("a:1", "pg1")], Lacking::Gone), now);
        // It keeps the name that it got first.
        assert_eq!(names(&merge), ["a:1"]);
        merge.take(FIRST, &all(&["b:1"]), now);
        assert_eq!(names(&merge), ["a:1", "b:1"]);
        merge.take(SECOND, &all(&["b:1"]), now);
        assert_eq!(names(&merge), ["b:1"]);
    }

    #[test]
    fn names_are_unique_and_fit() {
        let now = Instant::now();
        let mut merge = merge(&[node("x:1", "pg1"), node("y:1", "d:1")]);
        let nodes = [
            found("a:1", "pg1"),
            found("b:1", "pg2"),
            found("c:1", "a b"),
            found("d:1", ""),
        ];
        merge.take(FIRST, &answer(&nodes, Lacking::Gone), now);
        assert_eq!(names(&merge), ["pg1", "d:1", "a:1", "pg2", "c:1", "d:1-2"]);
        // A member that moves takes its name with it.
        merge.take(FIRST, &answer(&[found("e:1", "pg2")], Lacking::Gone), now);
        assert_eq!(names(&merge), ["pg1", "d:1", "pg2"]);
    }

    #[test]
    fn the_first_source_in_order_gives_the_weight() {
        let now = Instant::now();
        let mut merge = merge(&[]);
        merge.take(SECOND, &all(&["a:1"]), now);
        assert_eq!(merge.nodes()[0].weight, 1);
        let no_reads = Found {
            weight: 0,
            ..found("a:1", "pg1")
        };
        merge.take(FIRST, &answer(&[no_reads], Lacking::Gone), now);
        assert_eq!(merge.nodes()[0].weight, 0);
    }

    #[test]
    fn a_standby_that_is_missing_is_forgotten_late_and_only_if_it_was_missing_all_the_time() {
        let start = Instant::now();
        let later = |minutes: u32| start + minutes * MINUTE;
        let lacking = Lacking::GoneAfter(10 * MINUTE);
        let (both, one) = (
            answer(&[found("a:1", ""), found("b:1", "")], lacking),
            answer(&[found("a:1", "")], lacking),
        );
        let mut merge = merge(&[]);
        merge.take(FIRST, &both, start);
        merge.take(FIRST, &one, later(1));
        merge.take(FIRST, &one, later(10));
        assert_eq!(names(&merge), ["a:1", "b:1"], "9 minutes");
        merge.take(FIRST, &both, later(10));
        merge.take(FIRST, &one, later(11));
        merge.take(FIRST, &one, later(20));
        assert_eq!(names(&merge), ["a:1", "b:1"], "it was there in between");
        merge.take_failure(FIRST);
        merge.take(FIRST, &one, later(30));
        assert_eq!(names(&merge), ["a:1", "b:1"], "nobody could tell in between");
        merge.take(FIRST, &answer(&[found("a:1", "")], Lacking::Unknown), later(35));
        merge.take(FIRST, &one, later(41));
        assert_eq!(
            names(&merge),
            ["a:1", "b:1"],
            "one who doesn't know all was asked in between"
        );
        merge.take(FIRST, &one, later(51));
        assert_eq!(names(&merge), ["a:1"]);
    }

    #[test]
    fn a_twin_goes_at_once_and_no_standby_at_all_is_an_answer_of_the_servers() {
        let now = Instant::now();
        let mut merge = merge(&[]);
        let lacking = Lacking::GoneAfter(MINUTE);
        merge.take(FIRST, &answer(&[found("a:1", ""), found("b:1", "")], lacking), now);
        let twin = Answer {
            twins: vec![address("b:1")],
            ..answer(&[found("a:1", "")], lacking)
        };
        merge.take(FIRST, &twin, now);
        assert_eq!(names(&merge), ["a:1"]);
        merge.take(FIRST, &answer(&[], lacking), now);
        merge.take(FIRST, &answer(&[], lacking), now + MINUTE);
        assert_eq!(merge.nodes(), []);
    }

    #[test]
    fn the_proxy_is_no_node() {
        let mut merge = merge(&[]);
        merge.take(FIRST, &all(&["127.0.0.1:6432", "127.0.0.1:5432"]), Instant::now());
        assert_eq!(names(&merge), ["127.0.0.1:5432"]);
    }

    #[test]
    fn there_is_a_limit_and_what_is_beyond_moves_up() {
        let now = Instant::now();
        let many: Vec<String> = (100..180).map(|number| format!("h{number}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut merge = merge(&[node("x:1", "one")]);
        merge.take(FIRST, &all(&many), now);
        assert_eq!((merge.nodes().len(), merge.left_out().len()), (MAX_NODES, 17));
        assert_eq!(names(&merge).last().unwrap(), "h162:1");
        merge.take(FIRST, &all(&many[1..]), now);
        assert_eq!(names(&merge).last().unwrap(), "h163:1");
    }

    #[test]
    fn the_file_may_change() {
        let now = Instant::now();
        let mut merge = merge(&[node("a:1", "one")]);
        let nodes = [found("a:1", "pg1"), found("b:1", "pg2"), found("c:1", "pg3")];
        merge.take(FIRST, &answer(&nodes, Lacking::Gone), now);
        assert_eq!(names(&merge), ["one", "pg2", "pg3"]);
        merge.set_fixed(vec![node("b:1", "two"), node("d:1", "pg3")]);
        assert_eq!(names(&merge), ["two", "pg3", "c:1", "pg1"]);
    }

    #[test]
    fn all_were_heard_when_each_has_answered_or_failed() {
        let mut merge = merge(&[]);
        assert!(!merge.were_all_heard());
        merge.take(FIRST, &all(&[]), Instant::now());
        assert!(!merge.were_all_heard());
        merge.take_failure(SECOND);
        assert!(merge.were_all_heard());
    }

    /// What a source may say: addresses and names out of a few, which clash.
    fn any_answer() -> impl Strategy<Value = Answer> {
        let found = (0..90u16, 0..4u8).prop_map(|(port, name)| Found {
            name: (name > 0).then(|| format!("pg{name}")),
            ..Found::at(address(&format!("h:{}", port + 1)))
        });
        let lacking = prop_oneof![
            Just(Lacking::Gone),
            Just(Lacking::GoneAfter(MINUTE)),
            Just(Lacking::Unknown)
        ];
        (prop::collection::vec(found, 0..40), lacking).prop_map(|(nodes, lacking)| answer(&nodes, lacking))
    }

    proptest! {
        #[test]
        fn whatever_is_said_the_list_is_one_and_those_who_stay_keep_their_names(
            steps in prop::collection::vec((0..2usize, prop::option::of(any_answer())), 1..20)
        ) {
            let fixed = [node("h:1", "pg1"), node("h:2", "h:3")];
            let mut merge = merge(&fixed);
            let start = Instant::now();
            for (number, (source, said)) in (0..).zip(steps) {
                let before = merge.nodes();
                match &said {
                    Some(answer) => merge.take(SourceId(source), answer, start + number * MINUTE / 2),
                    None => merge.take_failure(SourceId(source)),
                }
                let after = merge.nodes();
                prop_assert_eq!(&after[..2], &fixed[..]);
                prop_assert!(after.len() <= MAX_NODES);
                for (index, node) in after.iter().enumerate() {
                    prop_assert!(after[..index].iter().all(|other| other.address != node.address && other.name != node.name));
                    let was = before.iter().find(|other| other.address == node.address);
                    prop_assert!(was.is_none_or(|was| was.name == node.name));
                }
                if said.is_none_or(|answer| answer.is_implausible()) {
                    prop_assert_eq!(before, after);
                }
            }
        }
    }
}
