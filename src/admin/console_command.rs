//! `pgsluice console` and `pgsluice switchover`: one text to a running proxy's console, and its answer for a terminal.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::console_client::{Access, Reply, Table, ask};
use super::text_table::{plain, table};
use crate::auth::secret::NodeSecret;
use crate::auth::userlist::UserList;
use crate::config::{Config, NodeAddress};

/// Where the console is and who asks, as far as that is given.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// The host.
    pub host: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// The admin user.
    pub user: Option<String>,
    /// The console's name.
    pub database: Option<String>,
}

/// Has the console carry a text out. Answers what to print, and what to print as warnings.
///
/// # Errors
/// What to tell instead.
pub async fn run(given: Given, config: Option<&Config>, sql: &str) -> Result<(String, String), String> {
    let reply = reply(given, config, sql).await?;
    Ok((
        reply.tables.iter().map(render).collect::<Vec<_>>().join("\n"),
        warnings(&reply),
    ))
}

/// Has the console switch over. Answers what has happened, and what to print as warnings.
///
/// # Errors
/// What to tell instead.
pub async fn switchover(given: Given, config: Option<&Config>, to: Option<&str>) -> Result<(String, String), String> {
    let reply = reply(given, config, &switchover_statement(to)).await?;
    let told = reply
        .tables
        .first()
        .and_then(told)
        .ok_or("the console hasn't said how it ended")?;
    Ok((told, warnings(&reply)))
}

async fn reply(given: Given, config: Option<&Config>, sql: &str) -> Result<Reply, String> {
    let access = access(given, config, |name| std::env::var(name).ok())?;
    ask(&access, sql).await.map_err(|error| error.to_string())
}

fn switchover_statement(to: Option<&str>) -> String {
    match to {
        Some(node) => format!("SWITCHOVER TO \"{}\"", node.replace('"', "\"\"")),
        None => "SWITCHOVER".to_owned(),
    }
}

/// The row of a switchover as sentences.
fn told(table: &Table) -> Option<String> {
    let (node, timeline) = (table.first("primary")?, table.first("timeline")?);
    let (previous, held) = (table.first("previous")?, table.first("held_seconds")?);
    let ended = match table.first("ended_transactions")? {
        "0" => "no transaction had to be ended".to_owned(),
        "1" => "1 transaction had to be ended".to_owned(),
        count => format!("{count} transactions had to be ended"),
    };
    Some(
        plain(&format!(
            "{node} has taken over from {previous}, on timeline {timeline}; writes waited for {held} s, and {ended}"
        )) + "\n",
    )
}

fn render(of: &Table) -> String {
    let header: Vec<&str> = of.columns.iter().map(String::as_str).collect();
    let rows = of.rows.iter().map(|row| {
        let cells = row.iter();
        cells
            .map(|cell| cell.clone().unwrap_or_else(|| "-".to_owned()))
            .collect()
    });
    table(&header, rows)
}

fn warnings(reply: &Reply) -> String {
    reply
        .notices
        .iter()
        .map(|notice| format!("warning: {}\n", plain(&notice.message)))
        .collect()
}

/// What is given counts first, then the configuration, then libpq's variables. Only the password is taken from its variable first: that is
/// where a person has one.
fn access(given: Given, config: Option<&Config>, variable: impl Fn(&str) -> Option<String>) -> Result<Access, String> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let listens = config.and_then(|config| config.listen.addresses.first());
    let host = given.host.or_else(|| Some(reachable(*listens?).to_string()));
    let port = match given.port.or_else(|| listens.map(SocketAddr::port)) {
        Some(0) => return Err("the proxy listens on a port that the kernel chose: give --port".to_owned()),
        Some(port) => port,
        None => match variable("PGPORT") {
            Some(text) => text.parse().map_err(|_| format!("PGPORT is no port: {text:?}"))?,
            None => 5432,
        },
    };
    let users = config.map(|config| &config.admin.users);
    let user = match (given.user, users) {
        (Some(user), _) => user,
        (None, Some(users)) => {
            let first = users.first();
            first
                .cloned()
                .ok_or("[admin] users names nobody: the console lets no one in")?
        }
        (None, None) => variable("PGUSER")
            .or_else(|| variable("USER"))
            .ok_or("who asks? give --user, or -c FILE with the proxy's configuration")?,
    };
    let secret = match variable("PGPASSWORD") {
        Some(password) => Some(NodeSecret::plain(&password)),
        None => match config.and_then(|config| config.auth.users.as_ref()) {
            Some(file) => UserList::load(file)
                .map_err(|error| error.to_string())?
                .node_secret(&user),
            None => None,
        },
    };
    let database = given.database.or_else(|| Some(config?.admin.database.clone()));
    Ok(Access {
        address: NodeAddress {
            host: host
                .or_else(|| variable("PGHOST"))
                .unwrap_or_else(|| "127.0.0.1".to_owned()),
            port,
        },
        user,
        database: database.unwrap_or_else(|| "pgsluice".to_owned()),
        secret,
    })
}

/// Where one connects to what listens there.
fn reachable(listens: SocketAddr) -> IpAddr {
    match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn config(text: &str) -> Config {
        let text = format!("[cluster]\nnodes = [\"127.0.0.1:1\"]\n{text}");
        Config::parse(&text, "test", &Overrides::default()).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn nothing(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn the_console_is_found_by_flags_then_the_file_then_the_environment() {
        let libpq = |name: &str| match name {
            "PGHOST" => Some("proxy".to_owned()),
            "PGPORT" => Some("6432".to_owned()),
            "PGUSER" => Some("me".to_owned()),
            "PGPASSWORD" => Some("secret".to_owned()),
            _ => None,
        };
        let shown = |access: &Access| format!("{}@{}/{}", access.user, access.address, access.database);
        let file = config(
            "[listen]\naddresses = [\"*:7432\"]\n[auth]\nmethod = \"trust\"\n[admin]\nusers = [\"ops\", \"dba\"]\ndatabase = \"console\"\n",
        );
        let found = access(Given::default(), None, libpq).expect("all is there");
        assert_eq!(shown(&found), "me@proxy:6432/pgsluice");
        assert_eq!(found.secret, Some(NodeSecret::plain("secret")));
        let found = access(Given::default(), Some(&file), libpq).expect("all is there");
        assert_eq!(shown(&found), "ops@127.0.0.1:7432/console");
        let given = Given {
            host: Some("db.example.com".to_owned()),
            port: Some(1),
            user: Some("dba".to_owned()),
            database: Some("pool".to_owned()),
        };
        let found = access(given, Some(&file), nothing).expect("all is there");
        assert_eq!((&*shown(&found), found.secret), ("dba@db.example.com:1/pool", None));
    }

    #[test]
    fn what_is_missing_is_said() {
        let error =
            |config: Option<&Config>| access(Given::default(), config, nothing).expect_err("something is missing");
        assert!(error(None).contains("--user"));
        assert!(error(Some(&config(""))).contains("[admin] users"));
        let chosen = config("[listen]\naddresses = [\"127.0.0.1:0\"]\n[admin]\nusers = [\"a\"]\n");
        assert!(error(Some(&chosen)).contains("--port"));
        let bad = access(Given::default(), None, |name| {
            (name == "PGPORT").then(|| "x".to_owned())
        });
        assert!(bad.expect_err("no port").contains("PGPORT"));
    }

    #[test]
    fn a_node_is_quoted_and_an_outcome_is_a_sentence() {
        assert_eq!(switchover_statement(None), "SWITCHOVER");
        assert_eq!(switchover_statement(Some("a\"b:1")), "SWITCHOVER TO \"a\"\"b:1\"");
        let row = |cut: &str| Table {
            columns: ["primary", "previous", "timeline", "held_seconds", "ended_transactions"]
                .map(str::to_owned)
                .to_vec(),
            rows: vec![
                ["node2", "node1", "3", "1.25", cut]
                    .map(|cell| Some(cell.to_owned()))
                    .to_vec(),
            ],
        };
        for (cut, expected) in [
            ("0", "no transaction had to be ended"),
            ("1", "1 transaction had to be ended"),
            ("12", "12 transactions had to be ended"),
        ] {
            let sentence =
                format!("node2 has taken over from node1, on timeline 3; writes waited for 1.25 s, and {expected}\n");
            assert_eq!(told(&row(cut)), Some(sentence));
        }
        assert_eq!(told(&Table::default()), None);
    }
}
