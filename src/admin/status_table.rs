//! A [`Status`] as text: a line about the proxy and an aligned table of nodes. Pure; the terminal is `status_command`'s.

use super::status::{EventLevel, NodeStatus, PoolStatus, Status};
use super::text_table::{plain, table};

/// The whole status, each line ended by a newline.
pub fn render(status: &Status) -> String {
    let mut text = headline(status);
    for warning in warnings(status) {
        text.push_str(&format!("! {warning}\n"));
    }
    text.push('\n');
    text.push_str(&nodes_table(&status.nodes));
    if !status.pools.is_empty() {
        text.push('\n');
        text.push_str(&pools_table(&status.pools));
    }
    if !status.events.is_empty() {
        text.push('\n');
        text.push_str(&events_table(status));
    }
    text
}

fn headline(status: &Status) -> String {
    let clients = &status.clients;
    format!(
        "pgsluice {} on {}, up {}: primary {}, timeline {}, epoch {}, {} failovers\n\
         {} clients of {}: {} active ({} pinned), {} idle, {} waiting, {} logging in; {} statements held\n",
        plain(&status.version),
        plain(&status.listen.join(", ")),
        period(status.uptime_seconds),
        plain(status.primary.as_deref().unwrap_or("none")),
        or_dash(status.timeline),
        status.epoch,
        status.failovers,
        clients.total,
        clients.max,
        clients.active,
        clients.pinned,
        clients.idle,
        clients.waiting,
        clients.logging_in,
        status.held_statements,
    )
}

fn warnings(status: &Status) -> Vec<&'static str> {
    [
        (
            status.split_brain,
            "split brain: two nodes are out of recovery on the same timeline",
        ),
        (status.draining, "draining: no new clients are taken"),
        (
            status.primary.is_none(),
            "there is no primary: writes wait, then fail with 57P03",
        ),
    ]
    .into_iter()
    .filter_map(|(holds, warning)| holds.then_some(warning))
    .collect()
}

fn nodes_table(nodes: &[NodeStatus]) -> String {
    const HEADER: [&str; 11] = [
        "NODE",
        "ROLE",
        "SERVES",
        ">LAG",
        ">TIMELINE",
        "WAL",
        ">CONNS",
        ">READS",
        ">SHARE",
        ">WRITES",
        "WHY",
    ];
    let rows = nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            node.role.to_string(),
            if node.serving { "yes" } else { "no" }.to_owned(),
            lag(node),
            or_dash(node.timeline),
            or_dash(node.wal_position.as_ref()),
            format!(
                "{}/{}",
                node.connections.active,
                node.connections.active + node.connections.idle
            ),
            short_count(node.statements_read),
            percent(node.share_of_reads),
            short_count(node.statements_write),
            why(node),
        ]
    });
    table(&HEADER, rows)
}

fn pools_table(pools: &[PoolStatus]) -> String {
    let rows = pools.iter().map(|pool| {
        vec![
            pool.node.clone(),
            pool.database.clone(),
            pool.user.clone(),
            pool.connections.active.to_string(),
            pool.connections.idle.to_string(),
            pool.waiting.to_string(),
            pool.size.to_string(),
        ]
    });
    table(
        &["POOL OF", "DATABASE", "USER", ">ACTIVE", ">IDLE", ">WAITING", ">SIZE"],
        rows,
    )
}

fn events_table(status: &Status) -> String {
    let rows = status.events.iter().map(|event| {
        let level = match event.level {
            EventLevel::Info => "info",
            EventLevel::Warn => "warn",
            EventLevel::Error => "error",
        };
        vec![period(event.seconds_ago), level.to_owned(), event.message.clone()]
    });
    table(&[">AGO", "LEVEL", "EVENT"], rows)
}

fn why(node: &NodeStatus) -> String {
    match &node.last_error {
        Some(error) if !error.is_empty() => format!("{} ({error})", node.why),
        _ => node.why.clone(),
    }
}

fn lag(node: &NodeStatus) -> String {
    match (node.lag_seconds, node.lag_bytes) {
        (None, _) => "-".to_owned(),
        (Some(seconds), None | Some(0)) => short_seconds(seconds),
        (Some(seconds), Some(bytes)) => format!("{} {}", short_seconds(seconds), short_bytes(bytes)),
    }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn short_seconds(seconds: f64) -> String {
    match seconds {
        _ if seconds < 0.9995 => format!("{:.0}ms", seconds * 1000.0),
        _ if seconds < 99.95 => format!("{seconds:.1}s"),
        _ => period(seconds),
    }
}

/// The two largest units of a time that has passed.
fn period(seconds: f64) -> String {
    // Casting a float saturates, and takes NaN for 0.
    let seconds = seconds as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        (_, _, _) => format!("{days}d{hours:02}h"),
    }
}

fn short_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1}{name}", bytes as f64 / *unit as f64),
        None => format!("{bytes}B"),
    }
}

fn short_count(count: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)];
    match UNITS.iter().find(|(_, unit)| count >= *unit * 10) {
        Some((name, unit)) => format!("{:.1}{name}", count as f64 / *unit as f64),
        None => count.to_string(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::{ClientCounts, ConnectionCounts, Event, Role};

    fn two_nodes() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            uptime_seconds: 3725.4,
            epoch: 3,
            primary: Some("alpha".to_owned()),
            timeline: Some(2),
            listen: vec!["127.0.0.1:5432".to_owned()],
            clients: ClientCounts {
                total: 12,
                max: 10_000,
                active: 3,
                idle: 8,
                waiting: 1,
                ..Default::default()
            },
            nodes: vec![
                NodeStatus {
                    name: "alpha".to_owned(),
                    role: Role::Primary,
                    serving: true,
                    why: "primary".to_owned(),
                    lag_seconds: Some(0.0),
                    timeline: Some(2),
                    wal_position: Some("0/3000148".to_owned()),
                    connections: ConnectionCounts { idle: 4, active: 1 },
                    statements_write: 41_000,
                    ..Default::default()
                },
                NodeStatus {
                    name: "beta-with-a-long-name".to_owned(),
                    role: Role::Standby,
                    why: "lags behind max_lag".to_owned(),
                    lag_seconds: Some(12.34),
                    lag_bytes: Some(3 << 20),
                    statements_read: 900,
                    share_of_reads: 1.0,
                    last_error: Some("terminating\nconnection\x1b[2J".to_owned()),
                    ..Default::default()
                },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn the_nodes_stand_in_aligned_columns() {
        let expected = "\
pgsluice 0.1.0 on 127.0.0.1:5432, up 1h02m: primary alpha, timeline 2, epoch 3, 0 failovers
12 clients of 10000: 3 active (0 pinned), 8 idle, 1 waiting, 0 logging in; 0 statements held

NODE                   ROLE     SERVES           LAG  TIMELINE  WAL        CONNS  READS  SHARE  WRITES  WHY
alpha                  primary  yes              0ms         2  0/3000148    1/5      0     0%   41.0k  primary
beta-with-a-long-name  standby  no      12.3s 3.0MiB         -  -            0/0    900   100%       0  lags behind max_lag (terminating connection [2J)
";
        assert_eq!(render(&two_nodes()), expected);
    }

    #[test]
    fn what_an_operator_must_see_comes_first() {
        let status = Status {
            primary: None,
            split_brain: true,
            draining: true,
            ..two_nodes()
        };
        let text = render(&status);
        let warnings: Vec<&str> = text.lines().filter(|line| line.starts_with("! ")).collect();
        assert_eq!(warnings.len(), 3, "{text}");
        assert!(warnings[0].contains("split brain"));
    }

    #[test]
    fn pools_and_events_follow_when_there_are_any() {
        let status = Status {
            pools: vec![PoolStatus {
                node: "alpha".to_owned(),
                size: 20,
                ..Default::default()
            }],
            events: vec![Event {
                seconds_ago: 61.0,
                level: EventLevel::Warn,
                message: "beta fell behind".to_owned(),
            }],
            ..two_nodes()
        };
        let text = render(&status);
        assert!(text.contains("POOL OF"), "{text}");
        assert!(text.contains("1m01s  warn   beta fell behind\n"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 0.9996, 59.0, 100.0, 90_000.0].map(short_seconds),
            ["0ms", "1.0s", "59.0s", "1m40s", "1d01h"]
        );
        assert_eq!(
            [0, 1023, 1024, 5 << 30].map(short_bytes),
            ["0B", "1023B", "1.0KiB", "5.0GiB"]
        );
        assert_eq!(
            [0, 9999, 10_000, 12_345_678].map(short_count),
            ["0", "9999", "10.0k", "12.3M"]
        );
        assert_eq!(
            [f64::NAN, -1.0, f64::INFINITY].map(|seconds| period(seconds).is_empty()),
            [false; 3]
        );
    }
}
