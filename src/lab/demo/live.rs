//! What the nodes are and what the proxy has sent them, now and again: a table that stays in its place on a terminal, and
//! otherwise a line when something changes and every ten seconds.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::lab::lab::Lab;
use crate::lab::status::NodeStatus;

const HTTP_DEADLINE: Duration = Duration::from_secs(2);
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Everything at one moment.
pub(super) struct Sample {
    nodes: Vec<NodeStatus>,
    addresses: Vec<String>,
    /// `None` while the proxy's HTTP doesn't answer.
    statements: Option<Statements>,
}

/// Statements by node, as the metrics name it, and access.
#[derive(Debug, Default, PartialEq)]
struct Statements(BTreeMap<(String, String), f64>);

impl Sample {
    /// Asks the servers and the proxy. Blocks for some milliseconds, or seconds when they don't answer.
    pub(super) fn take(lab: &Lab, admin_port: u16) -> Self {
        Self {
            nodes: lab.status(),
            addresses: lab.nodes().iter().map(|node| node.address()).collect(),
            statements: get(admin_port, "/metrics")
                .ok()
                .map(|metrics| Statements::parse(&metrics)),
        }
    }

    fn count(&self, node: usize, access: &str) -> String {
        match &self.statements {
            Some(statements) => statements
                .count(&[&self.nodes[node].name, &self.addresses[node]], access)
                .to_string(),
            None => "-".to_owned(),
        }
    }

    fn table(&self) -> String {
        let mut text = format!(
            "{:<8} {:>6} {:<22} {:>8} {:>10} {:>10} {:>10}\n",
            "node", "port", "role", "timeline", "lag bytes", "reads", "writes"
        );
        for (index, node) in self.nodes.iter().enumerate() {
            let or_dash = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
            text.push_str(&format!(
                "{:<8} {:>6} {:<22} {:>8} {:>10} {:>10} {:>10}\n",
                node.name,
                node.port,
                node.role.to_string(),
                or_dash(node.timeline.map(u64::from)),
                or_dash(node.lag_bytes),
                self.count(index, "read"),
                self.count(index, "write"),
            ));
        }
        text
    }

    /// What is news when it changes: who is what.
    fn roles(&self) -> Vec<String> {
        let role = |node: &NodeStatus| match node.timeline {
            Some(timeline) => format!("{} {} (timeline {timeline})", node.name, node.role),
            None => format!("{} {}", node.name, node.role),
        };
        self.nodes.iter().map(role).collect()
    }

    fn line(&self) -> String {
        let counts = (0..self.nodes.len()).map(|node| {
            format!(
                "{} {}/{}",
                self.nodes[node].name,
                self.count(node, "read"),
                self.count(node, "write")
            )
        });
        format!(
            "{}; reads/writes: {}",
            self.roles().join(", "),
            counts.collect::<Vec<_>>().join(", ")
        )
    }
}

impl Statements {
    fn parse(metrics: &str) -> Self {
        let mut sums = Self::default();
        for line in metrics.lines() {
            let Some((labels, value)) = line
                .strip_prefix("pgsluice_statements_total{")
                .and_then(|rest| rest.rsplit_once("} "))
            else {
                continue;
            };
            let key = (label(labels, "node"), label(labels, "access"));
            if let ((Some(node), Some(access)), Ok(value)) = (key, value.trim().parse::<f64>()) {
                *sums.0.entry((node, access)).or_default() += value;
            }
        }
        sums
    }

    fn count(&self, names: &[&str], access: &str) -> u64 {
        let of_node = self
            .0
            .iter()
            .filter(|((node, what), _)| names.contains(&node.as_str()) && what == access);
        of_node.map(|(_, count)| count).sum::<f64>() as u64
    }
}

fn label(labels: &str, name: &str) -> Option<String> {
    let value = labels
        .split(',')
        .find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""))?;
    value.strip_suffix('"').map(str::to_owned)
}

/// Writes samples one after the other.
pub(super) enum Live {
    /// On a terminal: how many lines the table took.
    Table { lines: usize },
    /// Elsewhere: what was said last, and when.
    Lines { roles: Vec<String>, said: Option<Instant> },
}

impl Live {
    pub(super) fn new(on_terminal: bool) -> Self {
        match on_terminal {
            true => Self::Table { lines: 0 },
            false => Self::Lines {
                roles: Vec::new(),
                said: None,
            },
        }
    }

    pub(super) fn interval(&self) -> Duration {
        Duration::from_secs(1)
    }

    pub(super) fn show(&mut self, sample: &Sample) {
        let text = match self {
            Self::Table { lines } => {
                let table = sample.table();
                // Up to the table's first line, and clear from there on.
                let back = if *lines > 0 {
                    format!("\x1b[{lines}A\x1b[J")
                } else {
                    String::new()
                };
                *lines = table.lines().count();
                back + &table
            }
            Self::Lines { roles, said } => {
                let due = said.is_none_or(|said| said.elapsed() >= LINE_INTERVAL);
                if !due && *roles == sample.roles() {
                    return;
                }
                (*roles, *said) = (sample.roles(), Some(Instant::now()));
                sample.line() + "\n"
            }
        };
        // Nobody may be reading any more; the demo goes on until it is told to stop.
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }
}

/// The body of a page on this machine. HTTP/1.0, so that it comes in one piece.
fn get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), HTTP_DEADLINE)?;
    stream.set_read_timeout(Some(HTTP_DEADLINE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(1 << 22).read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other("no page")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_summed_by_node_and_access_under_either_of_its_names() {
        let statements = Statements::parse(
            "# TYPE pgsluice_statements_total counter\n\
             pgsluice_statements_total{node=\"node1\",role=\"primary\",access=\"write\"} 3\n\
             pgsluice_statements_total{node=\"node1\",role=\"standby\",access=\"write\"} 2\n\
             pgsluice_statements_total{node=\"127.0.0.1:15433\",role=\"standby\",access=\"read\"} 7\n\
             pgsluice_statements_totally{node=\"node1\"} nonsense\n",
        );
        assert_eq!(statements.count(&["node1", "127.0.0.1:15432"], "write"), 5);
        assert_eq!(statements.count(&["node1", "127.0.0.1:15432"], "read"), 0);
        assert_eq!(statements.count(&["node2", "127.0.0.1:15433"], "read"), 7);
    }
}
