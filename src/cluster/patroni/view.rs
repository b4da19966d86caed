//! What Patroni says its cluster is: the answer to `GET /cluster`, as far as it is of interest. Pure.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::config::{ApiUrl, MAX_NODES, NodeAddress};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cluster) struct View {
    pub(in crate::cluster) members: Vec<Member>,
}

/// A server that Patroni looks after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cluster) struct Member {
    /// What Patroni calls it.
    pub(in crate::cluster) name: String,
    /// Where the server is; not known while it is being made.
    pub(in crate::cluster) address: Option<NodeAddress>,
    /// Where Patroni itself can be asked.
    pub(in crate::cluster) url: Option<ApiUrl>,
    /// Patroni takes it for the leader.
    pub(in crate::cluster) leads: bool,
    pub(in crate::cluster) timeline: Option<u32>,
    /// It is to take its share of reads.
    pub(in crate::cluster) takes_reads: bool,
    /// It is not to lead.
    pub(in crate::cluster) never_leads: bool,
    /// It has all that was acknowledged, where Patroni sees to it that some do.
    pub(in crate::cluster) is_synchronous: bool,
}

impl View {
    /// Reads an answer.
    pub(in crate::cluster) fn read(body: &[u8]) -> Result<View, String> {
        let AsWritten { members } =
            serde_json::from_slice(body).map_err(|error| format!("not what Patroni answers: {error}"))?;
        Ok(View {
            members: members.into_iter().map(Member::from).collect(),
        })
    }

    /// Whom Patroni takes for the leader.
    pub(in crate::cluster) fn leader(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.leads)
    }

    /// Where members can be asked.
    pub(in crate::cluster) fn urls(&self) -> impl Iterator<Item = &ApiUrl> {
        self.members
            .iter()
            .filter_map(|member| member.url.as_ref())
            .take(MAX_NODES)
    }

    /// Whether Patroni would make this one the leader of its own accord.
    pub(in crate::cluster) fn may_lead(&self, member: &Member) -> bool {
        let some_are_synchronous = self.members.iter().any(|member| member.is_synchronous);
        !member.never_leads && (member.is_synchronous || !some_are_synchronous)
    }
}

/// The answer as Patroni writes it.
#[derive(Deserialize)]
struct AsWritten {
    members: Vec<MemberAsWritten>,
}

#[derive(Deserialize)]
struct MemberAsWritten {
    name: String,
    #[serde(default)]
    role: String,
    host: Option<String>,
    port: Option<u16>,
    api_url: Option<String>,
    timeline: Option<u32>,
    #[serde(default)]
    tags: HashMap<String, Value>,
}

impl From<MemberAsWritten> for Member {
    fn from(written: MemberAsWritten) -> Member {
        Member {
            address: written.address(),
            url: written.url(),
            leads: matches!(&*written.role, "leader" | "standby_leader" | "master" | "primary"),
            timeline: written.timeline,
            takes_reads: !written.has_tag("noloadbalance"),
            never_leads: written.has_tag("nofailover"),
            is_synchronous: matches!(&*written.role, "sync_standby" | "quorum_standby"),
            name: written.name,
        }
    }
}

impl MemberAsWritten {
    fn address(&self) -> Option<NodeAddress> {
        NodeAddress::new(self.host.as_deref()?, self.port?)
    }

    /// Tags are written by people, who quote.
    fn has_tag(&self, tag: &str) -> bool {
        match self.tags.get(tag) {
            Some(Value::Bool(set)) => *set,
            Some(Value::String(text)) => matches!(&*text.to_lowercase(), "true" | "yes" | "on" | "1"),
            Some(_) | None => false,
        }
    }

    /// Members say `http://host:port/patroni`, which is another name for their own state.
    fn url(&self) -> Option<ApiUrl> {
        let mut url: ApiUrl = self.api_url.as_deref()?.parse().ok()?;
        url.prefix.clear();
        Some(url)
    }
}

/// As Patroni 3.0.2 wrote it.
#[cfg(test)]
pub(in crate::cluster) const ANSWER: &str = r#"{"members": [
    {"name": "pg1", "role": "leader", "state": "running", "api_url": "http://10.0.0.1:8008/patroni", "host": "10.0.0.1",
     "port": 5432, "timeline": 2},
    {"name": "pg2", "role": "replica", "state": "running", "api_url": "https://db2.example.com:8008/patroni",
     "host": "db2.example.com", "port": 5433, "timeline": 2, "tags": {"noloadbalance": true, "clonefrom": true}, "lag": 0},
    {"name": "pg3", "role": "sync_standby", "state": "stopped", "api_url": "http://[2001:db8::3]:8008/patroni",
     "host": "2001:db8::3", "port": 5432, "timeline": 1, "tags": {"noloadbalance": "no", "nofailover": "yes"}, "lag": "unknown"},
    {"name": "pg4", "role": "replica", "state": "creating replica", "api_url": "http://10.0.0.4:8008/patroni", "lag": "unknown"}
    ], "scheduled_switchover": {"at": "2026-11-26T05:00:00+00:00", "from": "pg1"}}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_with_their_addresses_and_tags() {
        let view = View::read(ANSWER.as_bytes()).unwrap();
        let members: Vec<(&str, String, bool, bool)> = view
            .members
            .iter()
            .map(|member| {
                let address = member.address.as_ref().map_or("none".to_owned(), ToString::to_string);
                (&*member.name, address, member.takes_reads, member.never_leads)
            })
            .collect();
        let expected = [
            ("pg1", "10.0.0.1:5432".to_owned(), true, false),
            ("pg2", "db2.example.com:5433".to_owned(), false, false),
            ("pg3", "[2001:db8::3]:5432".to_owned(), true, true),
            ("pg4", "none".to_owned(), true, false),
        ];
        assert_eq!(members, expected);
        let urls: Vec<String> = view.urls().map(ToString::to_string).collect();
        let expected = [
            "http://10.0.0.1:8008",
            "https://db2.example.com:8008",
            "http://[2001:db8::3]:8008",
            "http://10.0.0.4:8008",
        ];
        assert_eq!(urls, expected);
        let leader = view.leader().map(|leader| (&*leader.name, leader.timeline));
        assert_eq!(leader, Some(("pg1", Some(2))));
    }

    #[test]
    fn only_a_synchronous_standby_leads_where_there_is_one() {
        let who = |text: &str| {
            let view = View::read(text.as_bytes()).unwrap();
            let may = view.members.iter().filter(|member| view.may_lead(member));
            may.map(|member| member.name.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(who(ANSWER), "");
        assert_eq!(who(&ANSWER.replace(", \"nofailover\": \"yes\"", "")), "pg3");
        assert_eq!(who(&ANSWER.replace("sync_standby", "replica")), "pg1 pg2 pg4");
    }

    #[test]
    fn what_is_not_patronis_is_refused_and_what_cannot_be_an_address_left_out() {
        for text in [
            "",
            "{}",
            "[]",
            "{\"members\": 1}",
            "{\"members\": [{\"host\": \"a\"}]}",
            "<html>",
        ] {
            assert!(View::read(text.as_bytes()).is_err(), "{text}");
        }
        for (host, port) in [
            ("\"/tmp\"", "5432"),
            ("\"a b\"", "5432"),
            ("\"\"", "5432"),
            ("\"a\"", "0"),
            ("null", "null"),
        ] {
            let text = format!("{{\"members\": [{{\"name\": \"a\", \"host\": {host}, \"port\": {port}}}]}}");
            assert_eq!(View::read(text.as_bytes()).unwrap().members[0].address, None, "{text}");
        }
    }
}
