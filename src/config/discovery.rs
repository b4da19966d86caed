//! `[cluster.discovery]`: who is asked which nodes there are.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::check::{node_address, password};
use super::problem::{Place, Unfit};
use super::reader::Reader;
use super::units::parse_address;
use super::{NodeAddress, Secret};

/// The sources of nodes beside `cluster.nodes`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Discovery {
    /// Names in DNS: each of their addresses is a node, at the port that stands with the name.
    pub dns: Vec<NodeAddress>,
    /// Patroni.
    pub patroni: Option<Patroni>,
    /// The servers themselves, about their standbys and about whom they follow.
    pub servers: Option<Servers>,
    /// A Kubernetes service.
    pub kubernetes: Option<Kubernetes>,
    /// Time between two questions to a source.
    pub interval: Duration,
}

impl Discovery {
    /// Whether nodes can be found without knowing one.
    pub fn finds_first_node(&self) -> bool {
        !self.dns.is_empty() || self.patroni.is_some() || self.kubernetes.is_some()
    }

    /// What the sources are called, in the order in which what they say counts.
    pub fn names(&self) -> Vec<String> {
        let patroni = self.patroni.iter().map(|_| "patroni".to_owned());
        let kubernetes = self.kubernetes.iter().map(|_| "kubernetes".to_owned());
        let dns = self.dns.iter().map(|name| format!("dns {name}"));
        let servers = self.servers.iter().map(|_| "servers".to_owned());
        patroni.chain(kubernetes).chain(dns).chain(servers).collect()
    }

    /// Whether there is anybody to ask.
    pub fn is_empty(&self) -> bool {
        self.servers.is_none() && !self.finds_first_node()
    }
}

/// Patroni's REST API.
#[derive(Debug, Clone, PartialEq)]
pub struct Patroni {
    /// Members; any of them knows all. Never empty.
    pub urls: Vec<ApiUrl>,
    /// Trusted roots, PEM. `None` means the system's store.
    pub root_cert: Option<PathBuf>,
    /// As whom it is asked to do something. Being told of its members takes no login.
    pub login: Option<PatroniLogin>,
}

/// Patroni's `restapi.authentication`.
#[derive(Debug, Clone, PartialEq)]
pub struct PatroniLogin {
    /// Without a colon.
    pub user: String,
    /// Whatever it is.
    pub password: Secret,
}

/// `pg_stat_replication` and `pg_stat_wal_receiver`.
#[derive(Debug, Clone, PartialEq)]
pub struct Servers {
    /// Where standbys listen; `None` is the port of the server that tells of them.
    pub standby_port: Option<u16>,
    /// A standby that no primary has listed for this long, and that doesn't answer, is no node any more.
    pub forget_after: Duration,
}

/// The endpoints of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Kubernetes {
    /// Its name.
    pub service: String,
    /// Its namespace; `None` is the pod's own.
    pub namespace: Option<String>,
    /// Name or number of the port; `None` is the only one, or the one called `postgresql`.
    pub port: Option<String>,
    /// The API server; `None` is the one that the pod's environment names.
    pub api: Option<ApiUrl>,
    /// The service account's folder: `token`, `ca.crt` and `namespace`.
    pub account: PathBuf,
}

/// Where an HTTP API is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ApiUrl {
    /// `https`
    pub encrypted: bool,
    /// Host and port.
    pub address: NodeAddress,
    /// What comes before the API's own paths; without a slash at its end.
    pub prefix: String,
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.encrypted { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.address, self.prefix)
    }
}

/// The text isn't the URL of an API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no URL like http://db1:8008")]
pub struct BadUrl(String);

impl FromStr for ApiUrl {
    type Err = BadUrl;

    /// Reads `http://host:port/prefix`. The port may be left out, as may the prefix; user names and queries are refused.
    fn from_str(text: &str) -> Result<ApiUrl, BadUrl> {
        let bad = || BadUrl(text.chars().take(200).collect());
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        let (encrypted, default_port) = match scheme {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return Err(bad()),
        };
        let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
        let address = if has_port {
            node_address(authority)
        } else {
            node_address(&format!("{authority}:{default_port}"))
        };
        let fits = prefix
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/-._~%:".contains(&byte));
        match address {
            Ok(address) if fits => Ok(ApiUrl {
                encrypted,
                address,
                prefix: prefix.trim_end_matches('/').to_owned(),
            }),
            Ok(_) | Err(_) => Err(bad()),
        }
    }
}

/// Reads `[cluster.discovery]`.
pub(super) fn discovery(reader: &mut Reader<'_>) -> Discovery {
    Discovery {
        dns: dns(reader),
        patroni: patroni(reader),
        servers: servers(reader),
        kubernetes: kubernetes(reader),
        interval: reader.duration("cluster.discovery.interval"),
    }
}

fn dns(reader: &mut Reader<'_>) -> Vec<NodeAddress> {
    const KEY: &str = "cluster.discovery.dns";
    let mut names = Vec::new();
    for (place, text) in reader.texts(KEY) {
        match node_address(&text) {
            Ok(name) if names.contains(&name) => {
                reader.refuse_at(place, KEY, Unfit::new(format!("{text:?} stands there twice")));
            }
            Ok(name) => names.push(name),
            Err(unfit) => reader.refuse_at(place, KEY, unfit),
        }
    }
    names
}

fn patroni(reader: &mut Reader<'_>) -> Option<Patroni> {
    const KEY: &str = "cluster.discovery.patroni";
    const ROOT_CERT: &str = "cluster.discovery.patroni_root_cert";
    let mut urls: Vec<ApiUrl> = Vec::new();
    for (place, text) in reader.texts(KEY) {
        match api_url(&text) {
            Ok(url) if urls.contains(&url) => {
                reader.refuse_at(place, KEY, Unfit::new(format!("{text:?} stands there twice")));
            }
            Ok(url) => urls.push(url),
            Err(unfit) => reader.refuse_at(place, KEY, unfit),
        }
    }
    let root_cert = reader.file(ROOT_CERT);
    needs(reader, ROOT_CERT, KEY);
    let login = patroni_login(reader);
    (!urls.is_empty()).then_some(Patroni { urls, root_cert, login })
}

fn patroni_login(reader: &mut Reader<'_>) -> Option<PatroniLogin> {
    const USER: &str = "cluster.discovery.patroni_user";
    const PASSWORD: &str = "cluster.discovery.patroni_password";
    const FILE: &str = "cluster.discovery.patroni_password_file";
    let user = reader.text(USER);
    if user.as_ref().is_some_and(|user| user.contains(':')) {
        reader.refuse(USER, Unfit::new("must be without a colon"));
    }
    needs(reader, USER, "cluster.discovery.patroni");
    needs(reader, PASSWORD, USER);
    needs(reader, FILE, USER);
    let password = password(reader, PASSWORD, FILE);
    if reader.has(USER) && !reader.has(PASSWORD) && !reader.has(FILE) {
        reader.refuse(
            USER,
            Unfit::new("means nothing alone").suggest(format!("set {PASSWORD} or {FILE}")),
        );
    }
    Some(PatroniLogin {
        user: user?,
        password: password?,
    })
}

fn servers(reader: &mut Reader<'_>) -> Option<Servers> {
    const KEY: &str = "cluster.discovery.from_primary";
    const PORT: &str = "cluster.discovery.standby_port";
    const FORGET: &str = "cluster.discovery.forget_after";
    let asked = reader.flag(KEY);
    let standby_port = reader.count_if_set(PORT);
    let forget_after = reader.duration(FORGET);
    needs(reader, PORT, KEY);
    needs(reader, FORGET, KEY);
    asked.then_some(Servers {
        standby_port: standby_port.and_then(|port| u16::try_from(port).ok()),
        forget_after,
    })
}

fn kubernetes(reader: &mut Reader<'_>) -> Option<Kubernetes> {
    const SERVICE: &str = "cluster.discovery.kubernetes.service";
    const NAMESPACE: &str = "cluster.discovery.kubernetes.namespace";
    const PORT: &str = "cluster.discovery.kubernetes.port";
    const API: &str = "cluster.discovery.kubernetes.api";
    const ACCOUNT: &str = "cluster.discovery.kubernetes.account";
    let service = name_in_path(reader, SERVICE);
    let namespace = name_in_path(reader, NAMESPACE);
    let port = reader.text(PORT);
    let api = reader.text(API).and_then(|text| match api_url(&text) {
        Ok(url) => Some(url),
        Err(unfit) => {
            reader.refuse(API, unfit);
            None
        }
    });
    let account = reader.file(ACCOUNT).unwrap_or_default();
    for key in [NAMESPACE, PORT, API, ACCOUNT] {
        needs(reader, key, SERVICE);
    }
    Some(Kubernetes {
        service: service?,
        namespace,
        port,
        api,
        account,
    })
}

/// A name as Kubernetes has them (RFC 1123): it becomes part of a URL.
fn name_in_path(reader: &mut Reader<'_>, key: &'static str) -> Option<String> {
    let name = reader.text(key)?;
    let fits = name.len() <= 253
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte));
    if !fits {
        reader.refuse(key, Unfit::new(format!("{name:?} is no name in Kubernetes")));
    }
    fits.then_some(name)
}

/// A key that means nothing without another one.
fn needs(reader: &mut Reader<'_>, key: &'static str, other: &'static str) {
    if matches!(reader.place(key), Place::Line { .. }) && reader.has(key) && !reader.has(other) {
        reader.refuse(key, Unfit::new("means nothing alone").suggest(format!("set {other}")));
    }
}

fn api_url(text: &str) -> Result<ApiUrl, Unfit> {
    text.parse().map_err(|error: BadUrl| {
        let unfit = Unfit::new(error.to_string());
        match parse_address(text) {
            Ok(address) => unfit.suggest(format!("did you mean \"http://{address}\"?")),
            Err(_) => unfit,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown() {
        for (text, shown) in [
            ("http://db1:8008", "http://db1:8008"),
            ("http://10.0.0.1:8008/", "http://10.0.0.1:8008"),
            (
                "https://[2001:db8::1]:8008/patroni",
                "https://[2001:db8::1]:8008/patroni",
            ),
            ("https://[2001:db8::1]", "https://[2001:db8::1]:443"),
            ("http://db1", "http://db1:80"),
            (
                "https://rancher/k8s/clusters/c-1/",
                "https://rancher:443/k8s/clusters/c-1",
            ),
        ] {
            let url: ApiUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse(), Ok(url));
        }
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for text in [
            "",
            "db1:8008",
            "ftp://db1",
            "http://",
            "http://:8008",
            "http://db1:0",
            "http://db1:65536",
            "http://me:secret@db1:8008",
            "http://db1:8008/?a=b",
            "http://db1:8008/a b",
            "http://db1:8008/a\r\nX: y",
        ] {
            assert!(text.parse::<ApiUrl>().is_err(), "{text:?}");
        }
    }
}
