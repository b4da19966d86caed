//! Patroni's REST API: `GET /cluster` on any member names all members.
//!
//! The member that answered last is asked first; if it doesn't, all others are asked at once, the ones that the file names and those
//! that the last answer did, and the first good answer counts. Whom Patroni takes for the leader decides nothing: roles come from
//! the servers themselves. But when it changes the nodes are asked at once. An answer that knows of no leader forgets nobody:
//! Patroni's own store may just be losing, or regaining, its memory.
//! Patroni's manual: "Patroni REST API", "Monitoring endpoint".

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::merge::{Answer, Found, Lacking};
use super::{AskNodes, Source};
use crate::config::{self, ApiUrl, MAX_NODES, NodeAddress};
use crate::wire::http_client::Request;
use crate::wire::tls;

/// For one member's answer. Patroni asks its own store for it, and waits as long as its `retry_timeout`.
const LIMIT: Duration = Duration::from_secs(5);
/// For the one that answered last, before the others are asked as well.
const LIMIT_OF_FIRST: Duration = Duration::from_secs(2);
/// No answer is longer.
const MAX_BYTES: usize = 1 << 20;

/// Asks Patroni.
pub(super) struct Patroni {
    settings: config::Patroni,
    ask_nodes: AskNodes,
    /// The members' own URLs, from the last answer.
    learned: Vec<ApiUrl>,
    /// Who answered last.
    answered: Option<ApiUrl>,
    leader: Option<Leader>,
    /// For `https`; read again after a failure, as a certificate may have been renewed.
    tls: Option<Arc<ClientConfig>>,
}

/// Whom Patroni takes for the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leader {
    name: String,
    timeline: Option<u32>,
}

impl Patroni {
    pub(super) fn new(settings: config::Patroni, ask_nodes: AskNodes) -> Patroni {
        Patroni {
            settings,
            ask_nodes,
            learned: Vec::new(),
            answered: None,
            leader: None,
            tls: None,
        }
    }

    /// Everyone who may know, each once.
    fn urls(&self) -> Vec<ApiUrl> {
        let mut urls = self.settings.urls.clone();
        for url in &self.learned {
            if !urls.contains(url) {
                urls.push(url.clone());
            }
        }
        urls
    }

    /// The first good answer, and who gave it.
    async fn first_answer(&self) -> Result<(ApiUrl, View), String> {
        let tls = self.tls.as_ref();
        if let Some(url) = &self.answered
            && let Ok(view) = ask(url, tls, LIMIT_OF_FIRST).await
        {
            return Ok((url.clone(), view));
        }
        let mut asked = JoinSet::new();
        for url in self.urls() {
            let tls = tls.cloned();
            asked.spawn(async move {
                let answer = ask(&url, tls.as_ref(), LIMIT).await;
                (url, answer)
            });
        }
        let mut failures = Vec::new();
        while let Some(ended) = asked.join_next().await {
            match ended {
                Ok((url, Ok(view))) => return Ok((url, view)),
                Ok((url, Err(error))) => failures.push(format!("{url}: {error}")),
                Err(_) => {}
            }
        }
        failures.sort();
        Err(failures.join("; "))
    }

    fn set_up_tls(&mut self) -> Result<(), String> {
        if self.tls.is_none() && self.urls().iter().any(|url| url.encrypted) {
            let config = tls::https_config(self.settings.root_cert.as_deref());
            self.tls = Some(config.map_err(|error| error.to_string())?);
        }
        Ok(())
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

impl Source for Patroni {
    async fn ask(&mut self) -> Result<Answer, String> {
        self.set_up_tls()?;
        let (url, view) = match self.first_answer().await {
            Ok(answer) => answer,
            Err(error) => {
                self.tls = None;
                return Err(error);
            }
        };
        self.answered = Some(url);
        if !view.urls.is_empty() {
            self.learned = view.urls;
        }
        self.hear_of_leader(view.leader);
        Ok(view.answer)
    }
}

async fn ask(url: &ApiUrl, tls: Option<&Arc<ClientConfig>>, limit: Duration) -> Result<View, String> {
    let get = Request {
        url,
        path: "/cluster",
        login: None,
        tls,
        body: None,
    };
    let body = timeout(limit, get.fetch(MAX_BYTES))
        .await
        .map_err(|_| format!("no answer within {} s", limit.as_secs()))?
        .map_err(|error| error.to_string())?;
    read(&body)
}

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
struct View {
    answer: Answer,
    /// Where its members can be asked.
    urls: Vec<ApiUrl>,
    leader: Option<Leader>,
}

/// The answer as Patroni writes it, as far as it is of interest.
#[derive(Deserialize)]
struct AsWritten {
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
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

/// Reads an answer. A member that has no address yet, as while it is being made, is left out.
fn read(body: &[u8]) -> Result<View, String> {
    let AsWritten { members } =
        serde_json::from_slice(body).map_err(|error| format!("not what Patroni answers: {error}"))?;
    let leader = members.iter().find(|member| member.leads()).map(|member| Leader {
        name: member.name.clone(),
        timeline: member.timeline,
    });
    let lacking = match leader {
        Some(_) => Lacking::Gone,
        None => Lacking::Unknown,
    };
    Ok(View {
        answer: Answer {
            nodes: members.iter().filter_map(Member::found).collect(),
            lacking,
            twins: Vec::new(),
        },
        urls: members.iter().filter_map(Member::url).take(MAX_NODES).collect(),
        leader,
    })
}

impl Member {
    fn leads(&self) -> bool {
        matches!(&*self.role, "leader" | "standby_leader" | "master" | "primary")
    }

    fn found(&self) -> Option<Found> {
        Some(Found {
            address: NodeAddress::new(self.host.as_deref()?, self.port?)?,
            name: Some(self.name.clone()),
            weight: u32::from(!self.has_tag("noloadbalance")),
        })
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// As Patroni 3.0.2 wrote it.
    const ANSWER: &str = r#"{"members": [
        {"name": "pg1", "role": "leader", "state": "running", "api_url": "http://10.0.0.1:8008/patroni", "host": "10.0.0.1",
         "port": 5432, "timeline": 2},
        {"name": "pg2", "role": "replica", "state": "running", "api_url": "https://db2.example.com:8008/patroni",
         "host": "db2.example.com", "port": 5433, "timeline": 2, "tags": {"noloadbalance": true, "clonefrom": true}, "lag": 0},
        {"name": "pg3", "role": "sync_standby", "state": "stopped", "api_url": "http://[2001:db8::3]:8008/patroni",
         "host": "2001:db8::3", "port": 5432, "timeline": 1, "tags": {"noloadbalance": "no"}, "lag": "unknown"},
        {"name": "pg4", "role": "replica", "state": "creating replica", "api_url": "http://10.0.0.4:8008/patroni", "lag": "unknown"}
        ], "scheduled_switchover": {"at": "2026-11-26T05:00:00+00:00", "from": "pg1"}}"#;

    #[test]
    fn members_are_nodes_by_their_names() {
        let view = read(ANSWER.as_bytes()).unwrap();
        let nodes: Vec<(String, &str, u32)> = view
            .answer
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
        assert_eq!(view.answer.lacking, Lacking::Gone);
        let urls: Vec<String> = view.urls.iter().map(ToString::to_string).collect();
        let expected = [
            "http://10.0.0.1:8008",
            "https://db2.example.com:8008",
            "http://[2001:db8::3]:8008",
            "http://10.0.0.4:8008",
        ];
        assert_eq!(urls, expected);
        let leader = Leader {
            name: "pg1".to_owned(),
            timeline: Some(2),
        };
        assert_eq!(view.leader, Some(leader));
    }

    #[test]
    fn without_a_leader_nobody_is_forgotten() {
        let view = read(ANSWER.replace("\"leader\"", "\"replica\"").as_bytes()).unwrap();
        assert_eq!((view.leader, view.answer.lacking), (None, Lacking::Unknown));
        assert_eq!(view.answer.nodes.len(), 3);
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
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
        for (host, port) in [
            ("\"/tmp\"", "5432"),
            ("\"a b\"", "5432"),
            ("\"\"", "5432"),
            ("\"a\"", "0"),
            ("null", "null"),
        ] {
            let text = format!("{{\"members\": [{{\"name\": \"a\", \"host\": {host}, \"port\": {port}}}]}}");
            assert_eq!(read(text.as_bytes()).unwrap().answer.nodes, [], "{text}");
        }
    }

    #[test]
    fn only_another_leader_has_the_nodes_asked() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let settings = config::Patroni {
            urls: Vec::new(),
            root_cert: None,
        };
        let mut patroni = Patroni::new(settings, Arc::new(move || _ = count.fetch_add(1, Ordering::Relaxed)));
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
            patroni.hear_of_leader(heard);
            assert_eq!(asked.load(Ordering::Relaxed), expected);
        }
    }
}
