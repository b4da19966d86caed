//! The EndpointSlices of a Kubernetes service, kept up to date by the events of a watch, and the nodes that they make. Pure.
//!
//! Every endpoint is a node, ready or not: readiness is somebody else's opinion about traffic, and a primary that fails its probe
//! under load must not be dropped for it. What a server is, and whether it serves, the monitors find out. Of a service with addresses
//! of both families the IPv4 ones count, or every pod would be two nodes.
//! Kubernetes' manual: "EndpointSlices"; "Kubernetes API Concepts", "Efficient detection of changes".

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::merge::{Answer, Found};
use crate::config::NodeAddress;

/// A service has no more of them that count.
const MOST_SLICES: usize = 200;
/// What the port is called if it isn't said, where there are several.
const USUAL_PORT: &str = "postgresql";

/// The slices as of some version of them.
#[derive(Debug, Default)]
pub(super) struct Slices {
    by_name: BTreeMap<String, Slice>,
    /// From here on a watch tells what is new.
    pub(super) version: String,
}

/// What an event asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Look at the nodes again.
    Changed,
    /// Only the version is newer.
    Bookmark,
    /// The watch's version is no longer kept: list anew.
    Expired,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Slice {
    metadata: Metadata,
    #[serde(default)]
    address_type: String,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    resource_version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
    hostname: Option<String>,
    target_ref: Option<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
}

impl Slices {
    /// Reads the answer to a list.
    pub(super) fn from_list(body: &[u8]) -> Result<Slices, String> {
        #[derive(Deserialize)]
        struct List {
            metadata: Metadata,
            items: Option<Vec<Slice>>,
        }
        let List { metadata, items } =
            serde_json::from_slice(body).map_err(|error| format!("not a list of EndpointSlices: {error}"))?;
        let items = items.into_iter().flatten().take(MOST_SLICES);
        Ok(Slices {
            by_name: items.map(|slice| (slice.metadata.name.clone(), slice)).collect(),
            version: metadata.resource_version,
        })
    }

    /// Takes one line of a watch.
    pub(super) fn take(&mut self, line: &[u8]) -> Result<Event, String> {
        #[derive(Deserialize)]
        struct Line {
            r#type: String,
            object: Value,
        }
        #[derive(Deserialize)]
        struct Status {
            code: Option<u16>,
            message: Option<String>,
        }
        let bad = |error: serde_json::Error| format!("not an event of a watch: {error}");
        let Line { r#type, object } = serde_json::from_slice(line).map_err(bad)?;
        if r#type == "ERROR" {
            let Status { code, message } = serde_json::from_value(object).map_err(bad)?;
            return match code {
                Some(410) => Ok(Event::Expired),
                _ => Err(message.unwrap_or_else(|| "an error without a message".to_owned())),
            };
        }
        let slice: Slice = serde_json::from_value(object).map_err(bad)?;
        self.version.clone_from(&slice.metadata.resource_version);
        match &*r#type {
            "ADDED" | "MODIFIED" => {
                let name = slice.metadata.name.clone();
                if self.by_name.len() < MOST_SLICES || self.by_name.contains_key(&name) {
                    self.by_name.insert(name, slice);
                }
            }
            "DELETED" => drop(self.by_name.remove(&slice.metadata.name)),
            "BOOKMARK" => return Ok(Event::Bookmark),
            other => return Err(format!("an event of the type {other:?}")),
        }
        Ok(Event::Changed)
    }

    /// The nodes, at the port of this name or number. Slices without it have none; it is an error if no slice has it.
    pub(super) fn answer(&self, port: Option<&str>) -> Result<Answer, String> {
        let (mut nodes, mut failure) = (Vec::new(), None);
        for slice in self.by_name.values().filter(|slice| self.counts(slice)) {
            match slice.port(port) {
                Ok(port) => nodes.extend(slice.nodes(port)),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            Some(error) if nodes.is_empty() => Err(error),
            Some(_) | None => Ok(Answer::all(nodes)),
        }
    }

    fn counts(&self, slice: &Slice) -> bool {
        let has_v4 = |slice: &Slice| slice.address_type == "IPv4" && !slice.endpoints().is_empty();
        slice.address_type != "IPv6" || !self.by_name.values().any(has_v4)
    }
}

impl Slice {
    fn endpoints(&self) -> &[Endpoint] {
        self.endpoints.as_deref().unwrap_or_default()
    }

    fn port(&self, wanted: Option<&str>) -> Result<u16, String> {
        if let Some(number) = wanted.and_then(|port| port.parse().ok()) {
            return Ok(number);
        }
        let ports = self.ports.as_deref().unwrap_or_default();
        let found = match (wanted, ports) {
            (None, [only]) => Some(only),
            (name, ports) => {
                let name = name.unwrap_or(USUAL_PORT);
                ports.iter().find(|port| port.name.as_deref() == Some(name))
            }
        };
        found.and_then(|port| port.port).ok_or_else(|| {
            let names: Vec<&str> = ports.iter().filter_map(|port| port.name.as_deref()).collect();
            let wanted = wanted.unwrap_or(USUAL_PORT);
            format!("the service has no port {wanted:?}; it has {names:?}: set kubernetes.port")
        })
    }

    /// Of several addresses of one endpoint any is as good as the others.
    fn nodes(&self, port: u16) -> impl Iterator<Item = Found> + '_ {
        self.endpoints().iter().filter_map(move |endpoint| {
            let address = NodeAddress::new(endpoint.addresses.first()?, port)?;
            Some(Found {
                name: endpoint.name().map(str::to_owned),
                ..Found::at(address)
            })
        })
    }
}

impl Endpoint {
    fn name(&self) -> Option<&str> {
        let pod = self.target_ref.as_ref();
        let pod = pod.filter(|target| target.kind.as_deref().is_none_or(|kind| kind == "Pod"));
        pod.and_then(|target| target.name.as_deref())
            .or(self.hostname.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = include_bytes!("../../../tests/data/kubernetes/list.json");
    const WATCH: &str = include_str!("../../../tests/data/kubernetes/watch.jsonl");
    const GONE: &str = include_str!("../../../tests/data/kubernetes/gone.jsonl");

    fn nodes(slices: &Slices, port: Option<&str>) -> Vec<String> {
        let answer = slices.answer(port).unwrap();
        let shown = |found: &Found| format!("{}={}", found.name.as_deref().unwrap_or("-"), found.address);
        answer.nodes.iter().map(shown).collect()
    }

    #[test]
    fn a_service_is_listed_and_followed_from_event_to_event() {
        let mut slices = Slices::from_list(LIST).unwrap();
        assert_eq!(slices.version, "184467");
        // pg-1 isn't ready, and both have an address of the other family.
        assert_eq!(nodes(&slices, None), ["pg-0=10.244.1.17:5432", "pg-1=10.244.2.9:5432"]);
        let (all, three) = (
            &[
                "pg-3=10.244.4.8:5432",
                "pg-0=10.244.1.17:5432",
                "pg-1=10.244.2.9:5432",
                "pg-2=10.244.3.4:5432",
            ][..],
            &["pg-3=10.244.4.8:5432", "pg-0=10.244.1.17:5432", "pg-2=10.244.3.4:5432"],
        );
        let steps = [
            (Event::Changed, "184502", &all[1..]),
            (Event::Changed, "184510", all),
            (Event::Bookmark, "184700", all),
            (Event::Changed, "184702", three),
            (Event::Changed, "184720", &three[1..]),
        ];
        assert_eq!(WATCH.lines().count(), steps.len());
        for (line, (event, version, expected)) in WATCH.lines().zip(steps) {
            assert_eq!(slices.take(line.as_bytes()), Ok(event), "{version}");
            assert_eq!(
                (&*slices.version, nodes(&slices, None)),
                (version, expected.to_vec().iter().map(ToString::to_string).collect())
            );
        }
        assert_eq!(slices.take(GONE.trim_end().as_bytes()), Ok(Event::Expired));
    }

    #[test]
    fn the_port_is_the_named_one_the_only_one_or_a_number() {
        let slices = Slices::from_list(LIST).unwrap();
        assert_eq!(nodes(&slices, Some("metrics"))[0], "pg-0=10.244.1.17:9187");
        assert_eq!(nodes(&slices, Some("6000"))[0], "pg-0=10.244.1.17:6000");
        let error = slices.answer(Some("pg")).unwrap_err();
        assert!(
            error.contains("no port \"pg\"") && error.contains("postgresql"),
            "{error}"
        );
        let one = |ports: &str| {
            let text = format!(
                "{{\"metadata\": {{\"resourceVersion\": \"1\"}}, \"items\": [{{\"metadata\": {{\"name\": \"a\"}}, \
                 \"addressType\": \"IPv6\", \"endpoints\": [{{\"addresses\": [\"fd00::1\", \"fd00::2\"], \"conditions\": {{}}}}], \
                 \"ports\": {ports}}}]}}"
            );
            Slices::from_list(text.as_bytes()).unwrap()
        };
        assert_eq!(
            nodes(&one("[{\"name\": \"\", \"port\": 7000}]"), None),
            ["-=[fd00::1]:7000"]
        );
        for ports in [
            "null",
            "[]",
            "[{\"name\": \"a\", \"port\": 1}, {\"name\": \"b\", \"port\": 2}]",
        ] {
            assert!(one(ports).answer(None).is_err(), "{ports}");
            assert_eq!(nodes(&one(ports), Some("5432")), ["-=[fd00::1]:5432"]);
        }
    }

    #[test]
    fn a_service_without_endpoints_answers_implausibly_and_other_things_are_refused() {
        let empty = |items: &str| {
            let text = format!("{{\"metadata\": {{\"resourceVersion\": \"1\"}}, \"items\": {items}}}");
            Slices::from_list(text.as_bytes()).unwrap()
        };
        let no_endpoints = "[{\"metadata\": {\"name\": \"a\"}, \"addressType\": \"IPv4\", \"endpoints\": null, \"ports\": [{\"name\": \"postgresql\", \"port\": 1}]}]";
        for items in ["[]", "null", no_endpoints] {
            assert!(empty(items).answer(None).unwrap().is_implausible(), "{items}");
        }
        for text in ["", "{}", "[]", "{\"kind\": \"Status\", \"code\": 403}"] {
            assert!(Slices::from_list(text.as_bytes()).is_err(), "{text}");
        }
        let mut slices = empty("[]");
        let forbidden = "{\"type\": \"ERROR\", \"object\": {\"kind\": \"Status\", \"message\": \"no\", \"code\": 500}}";
        for line in [
            "",
            "{}",
            "{\"type\": \"ADDED\"}",
            "{\"type\": \"NEW\", \"object\": {\"metadata\": {}}}",
            forbidden,
        ] {
            assert!(slices.take(line.as_bytes()).is_err(), "{line}");
        }
    }
}
