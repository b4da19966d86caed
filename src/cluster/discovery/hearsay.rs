//! What one server says of itself and of others: the statement, and how its rows are read. Pure.

use std::net::IpAddr;

use crate::cluster::lsn::SystemIdentifier;
use crate::cluster::probe::SERVER_IDENTITY;
use crate::cluster::probe_connection::Row;
use crate::cluster::reading::ServerIdentity;
use crate::config::NodeAddress;

/// One row for the server itself, one for each of its walsenders that feeds a standby or could, one for the server that it follows.
///
/// `pg_has_role` tells whether the statistics show more than NULLs. Names are qualified, so that no search path can put others in
/// their place.
pub(super) fn statement() -> String {
    format!(
        "SELECT 'self', (SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system()), \
         {SERVER_IDENTITY}::pg_catalog.text, \
         pg_catalog.pg_is_in_recovery()::pg_catalog.text, pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')::pg_catalog.text \
         UNION ALL \
         SELECT 'standby', pg_catalog.host(client_addr), application_name, NULL, NULL \
         FROM pg_catalog.pg_stat_replication WHERE state OPERATOR(pg_catalog.<>) 'backup' \
         UNION ALL \
         SELECT 'upstream', sender_host, sender_port::pg_catalog.text, NULL, NULL \
         FROM pg_catalog.pg_stat_wal_receiver"
    )
}

/// Which run of which cluster's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) cluster: SystemIdentifier,
    pub(super) server: ServerIdentity,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) identity: Identity,
    pub(super) in_recovery: bool,
    /// Whether the role that asks is shown where others are.
    pub(super) sees_all: bool,
    /// Where its standbys and its upstream seem to be.
    pub(super) names: Vec<NodeAddress>,
}

/// Reads the rows that the server at `asked` has answered. Standbys listen at `standby_port`, or at the port of `asked`, unless they
/// say so themselves: by an `application_name` that is their `host:port`.
pub(super) fn read(rows: &[Row], asked: &NodeAddress, standby_port: Option<u16>) -> Result<Told, String> {
    let mut itself = None;
    let mut names = Vec::new();
    for row in rows {
        let columns: Vec<Option<&str>> = row
            .iter()
            .map(|column| column.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok()))
            .collect();
        match columns[..] {
            [
                Some("self"),
                Some(cluster),
                Some(start),
                Some(in_recovery),
                Some(sees_all),
            ] => {
                itself = Some((identity(cluster, start)?, in_recovery == "true", sees_all == "true"));
            }
            [Some("standby"), host, name, ..] => names.extend(standby(host, name, asked, standby_port)),
            [Some("upstream"), host, Some(port), ..] => names.extend(upstream(host, port, asked)),
            // A walreceiver that isn't connected, or one that isn't shown.
            [Some("upstream"), ..] => {}
            _ => return Err("an answer that isn't the statement's".to_owned()),
        }
    }
    let (identity, in_recovery, sees_all) = itself.ok_or("an answer without the server itself")?;
    if !sees_all {
        names.clear();
    }
    names.retain(|name| name != asked);
    Ok(Told {
        identity,
        in_recovery,
        sees_all,
        names,
    })
}

fn identity(cluster: &str, start: &str) -> Result<Identity, String> {
    let bad = |_| format!("an identity of {cluster:?} and {start:?}");
    // int8 in SQL, unsigned in the control file.
    Ok(Identity {
        cluster: SystemIdentifier(cluster.parse::<i64>().map_err(bad)?.cast_unsigned()),
        server: ServerIdentity(start.parse().map_err(bad)?),
    })
}

fn standby(
    host: Option<&str>,
    name: Option<&str>,
    asked: &NodeAddress,
    standby_port: Option<u16>,
) -> Option<NodeAddress> {
    if let Some(address) = name.and_then(|name| name.parse::<NodeAddress>().ok()) {
        return NodeAddress::new(seen_from_here(Some(&address.host), asked), address.port);
    }
    NodeAddress::new(seen_from_here(host, asked), standby_port.unwrap_or(asked.port))
}

fn upstream(host: Option<&str>, port: &str, asked: &NodeAddress) -> Option<NodeAddress> {
    NodeAddress::new(seen_from_here(host, asked), port.parse().ok()?)
}

/// A Unix socket (no address, or a path) and a loopback address lead to the machine of the one who names them.
fn seen_from_here<'a>(host: Option<&'a str>, asked: &'a NodeAddress) -> &'a str {
    let is_local = |host: &str| {
        let is_loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
        host.is_empty() || host.starts_with(['/', '@']) || host == "localhost" || is_loopback
    };
    match host {
        Some(host) if !is_local(host) => host,
        // As it stands, where the one who names it is here as well.
        Some(host) if !host.is_empty() && !host.starts_with(['/', '@']) && is_local(&asked.host) => host,
        Some(_) | None => &asked.host,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn address(text: &str) -> NodeAddress {
        text.parse().unwrap()
    }

    /// Rows with `|` between columns, an empty one for NULL.
    fn rows(lines: &[&str]) -> Vec<Row> {
        let column = |text: &str| (!text.is_empty()).then(|| Bytes::from(text.to_owned()));
        lines.iter().map(|line| line.split('|').map(column).collect()).collect()
    }

    fn names(asked: &str, standby_port: Option<u16>, lines: &[&str]) -> Vec<String> {
        let lines = [&["self|1|2|false|true"][..], lines].concat();
        let told = read(&rows(&lines), &address(asked), standby_port).unwrap();
        told.names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_server_tells_who_it_is() {
        let told = read(&rows(&["self|-1|1795469808025930|true|true"]), &address("a:1"), None).unwrap();
        assert_eq!(told.identity.cluster, SystemIdentifier(u64::MAX));
        assert_eq!(told.identity.server, ServerIdentity(1795469808025930));
        assert!(told.in_recovery && told.sees_all && told.names.is_empty());
    }

    #[test]
    fn standbys_listen_where_they_say_or_where_the_one_who_lists_them_does() {
        let listed = [
            "standby|10.0.0.2|walreceiver||",
            "standby|10.0.0.3|db3.example.com:5433||",
            "standby|2001:db8::4|pg4||",
            "standby|10.0.0.5|||",
        ];
        assert_eq!(
            names("db1:5432", None, &listed),
            [
                "10.0.0.2:5432",
                "db3.example.com:5433",
                "[2001:db8::4]:5432",
                "10.0.0.5:5432"
            ]
        );
        assert_eq!(
            names("db1:5432", Some(6000), &listed)[..2],
            ["10.0.0.2:6000", "db3.example.com:5433"]
        );
    }

    #[test]
    fn what_is_local_there_is_on_the_machine_that_was_asked() {
        let listed = [
            "standby||pg2||",
            "standby|127.0.0.1|127.0.0.1:5433||",
            "standby|::1|localhost:5434||",
            "upstream|/var/run/postgresql|5435||",
            "upstream|127.0.0.1|5436||",
            "upstream|db9|5437||",
        ];
        // The first would be the server itself.
        let seen = ["db1:5433", "db1:5434", "db1:5435", "db1:5436", "db9:5437"];
        assert_eq!(names("db1:5432", None, &listed), seen);
        let seen = [
            "127.0.0.1:5433",
            "localhost:5434",
            "127.0.0.1:5435",
            "127.0.0.1:5436",
            "db9:5437",
        ];
        assert_eq!(names("127.0.0.1:5432", None, &listed), seen);
    }

    #[test]
    fn a_role_that_sees_nothing_names_nobody() {
        let told = read(
            &rows(&["self|1|2|true|false", "standby||||", "upstream||||"]),
            &address("a:1"),
            Some(7),
        );
        let told = told.unwrap();
        assert!(!told.sees_all && told.names.is_empty());
    }

    #[test]
    fn other_answers_are_refused() {
        for lines in [
            &[][..],
            &["standby|10.0.0.2|a||"],
            &["self|x|2|false|true"],
            &["self|1||false|true"],
            &["self|1|2|false|true", "other||||"],
            &["self|1|2"],
        ] {
            assert!(read(&rows(lines), &address("a:1"), None).is_err(), "{lines:?}");
        }
    }
}
