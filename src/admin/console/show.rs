//! What the console shows: columns, and rows of them. Pure. A column that PgBouncer has too is called as there and means the same.

use super::command::{Command, Topic, VERBS};
use crate::admin::status::{NodeStatus, PoolStatus, Status};
use crate::cluster::Switched;
use crate::config::Config;
use crate::wire::rows::{Column, Type, Value};

/// A row of values.
pub(super) type Row = Vec<Value<'static>>;

const HELP: &[Column<'_>] = &[Column::new("command", Type::Text), Column::new("meaning", Type::Text)];

const NODES: &[Column<'_>] = &[
    Column::new("name", Type::Text),
    Column::new("address", Type::Text),
    Column::new("role", Type::Text),
    Column::new("serving", Type::Bool),
    Column::new("why", Type::Text),
    Column::new("timeline", Type::Int8),
    Column::new("lag_seconds", Type::Float8),
    Column::new("lag_bytes", Type::Int8),
    Column::new("weight", Type::Int8),
    Column::new("connections", Type::Int8),
    Column::new("reads", Type::Int8),
    Column::new("writes", Type::Int8),
    Column::new("error", Type::Text),
];

const POOLS: &[Column<'_>] = &[
    Column::new("database", Type::Text),
    Column::new("user", Type::Text),
    Column::new("node", Type::Text),
    Column::new("cl_waiting", Type::Int8),
    Column::new("sv_active", Type::Int8),
    Column::new("sv_idle", Type::Int8),
    Column::new("maxwait", Type::Int8),
    Column::new("maxwait_us", Type::Int8),
    Column::new("pool_mode", Type::Text),
    Column::new("pool_size", Type::Int8),
];

const VERSION: &[Column<'_>] = &[Column::new("version", Type::Text)];

const SWITCHOVER: &[Column<'_>] = &[
    Column::new("primary", Type::Text),
    Column::new("previous", Type::Text),
    Column::new("timeline", Type::Int8),
    Column::new("held_seconds", Type::Float8),
    Column::new("ended_transactions", Type::Int8),
];

/// The columns of a command's answer; none if it has no rows.
pub(super) fn columns(command: &Command) -> &'static [Column<'static>] {
    match command {
        Command::Show(Topic::Help) => HELP,
        Command::Show(Topic::Nodes) => NODES,
        Command::Show(Topic::Pools) => POOLS,
        Command::Show(Topic::Version) => VERSION,
        Command::Switchover(_) => SWITCHOVER,
        Command::Reload | Command::Courtesy(_) => &[],
    }
}

/// The rows of a `SHOW`.
pub(super) fn rows(topic: Topic, status: &Status, config: &Config) -> Vec<Row> {
    match topic {
        Topic::Help => VERBS
            .iter()
            .map(|verb| vec![Value::text(verb.syntax), Value::text(verb.meaning)])
            .collect(),
        Topic::Nodes => status.nodes.iter().map(node).collect(),
        Topic::Pools => status.pools.iter().map(|one| pool(one, config)).collect(),
        Topic::Version => vec![vec![Value::text(format!("pgsluice {}", status.version))]],
    }
}

fn node(node: &NodeStatus) -> Row {
    vec![
        Value::text(node.name.clone()),
        Value::text(node.address.clone()),
        Value::text(node.role.to_string()),
        Value::Bool(node.serving),
        Value::text(node.why.clone()),
        Value::or_null(node.timeline, Value::count),
        Value::or_null(node.lag_seconds, Value::Float8),
        Value::or_null(node.lag_bytes, Value::count),
        Value::count(node.weight),
        Value::count(node.connections.idle + node.connections.active),
        Value::count(node.statements_read),
        Value::count(node.statements_write),
        Value::or_null(node.last_error.clone(), Value::text),
    ]
}

fn pool(pool: &PoolStatus, config: &Config) -> Row {
    vec![
        Value::text(pool.database.clone()),
        Value::text(pool.user.clone()),
        Value::text(pool.node.clone()),
        Value::count(pool.waiting),
        Value::count(pool.connections.active),
        Value::count(pool.connections.idle),
        Value::count(pool.longest_wait_microseconds / 1_000_000),
        Value::count(pool.longest_wait_microseconds % 1_000_000),
        Value::text(config.pool.mode.name()),
        Value::count(pool.size),
    ]
}

/// The row of a switchover that has succeeded.
pub(super) fn switched(switched: &Switched) -> Row {
    vec![
        Value::text(switched.to.to_string()),
        Value::text(switched.from.to_string()),
        Value::count(switched.timeline.0),
        Value::Float8(switched.held.as_millis() as f64 / 1000.0),
        Value::count(switched.ended),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admin::status::{ConnectionCounts, Role};
    use crate::cluster::Timeline;
    use crate::config::Overrides;

    fn config() -> Config {
        let text = "[cluster]\nnodes = [\"127.0.0.1:1\"]\n[pool]\nmode = \"session\"\n";
        Config::parse(text, "test", &Overrides::default()).expect("a configuration")
    }

    fn by_name(columns: &[Column<'_>], row: &Row, name: &str) -> Value<'static> {
        assert_eq!(columns.len(), row.len());
        let index = columns.iter().position(|column| column.name == name).expect("a column");
        row[index].clone()
    }

    #[test]
    fn nodes_and_pools_are_shown_as_they_are() {
        let status = Status {
            nodes: vec![NodeStatus {
                name: "node1".to_owned(),
                role: Role::StalePrimary,
                weight: 3,
                connections: ConnectionCounts { idle: 2, active: 5 },
                statements_read: 11,
                statements_write: 13,
                lag_bytes: Some(17),
                ..NodeStatus::default()
            }],
            pools: vec![PoolStatus {
                user: "app".to_owned(),
                connections: ConnectionCounts { idle: 2, active: 5 },
                waiting: 7,
                longest_wait_microseconds: 2_000_019,
                size: 20,
                ..PoolStatus::default()
            }],
            ..Status::default()
        };
        let row = &rows(Topic::Nodes, &status, &config())[0];
        for (column, expected) in [
            ("name", Value::text("node1")),
            ("role", Value::text("stale primary")),
            ("serving", Value::Bool(false)),
            ("timeline", Value::Null),
            ("lag_seconds", Value::Null),
            ("lag_bytes", Value::Int8(17)),
            ("weight", Value::Int8(3)),
            ("connections", Value::Int8(7)),
            ("reads", Value::Int8(11)),
            ("writes", Value::Int8(13)),
            ("error", Value::Null),
        ] {
            assert_eq!(by_name(NODES, row, column), expected, "{column}");
        }
        let row = &rows(Topic::Pools, &status, &config())[0];
        for (column, expected) in [
            ("user", Value::text("app")),
            ("cl_waiting", Value::Int8(7)),
            ("sv_active", Value::Int8(5)),
            ("sv_idle", Value::Int8(2)),
            ("maxwait", Value::Int8(2)),
            ("maxwait_us", Value::Int8(19)),
            ("pool_mode", Value::text("session")),
            ("pool_size", Value::Int8(20)),
        ] {
            assert_eq!(by_name(POOLS, row, column), expected, "{column}");
        }
    }

    #[test]
    fn a_switchover_is_a_row() {
        let row = switched(&Switched {
            from: "node1".into(),
            to: "node2".into(),
            timeline: Timeline(2),
            held: Duration::from_micros(1_234_567),
            ended: 1,
            warnings: Vec::new(),
        });
        assert_eq!(by_name(SWITCHOVER, &row, "primary"), Value::text("node2"));
        assert_eq!(by_name(SWITCHOVER, &row, "previous"), Value::text("node1"));
        assert_eq!(by_name(SWITCHOVER, &row, "timeline"), Value::Int8(2));
        assert_eq!(by_name(SWITCHOVER, &row, "held_seconds"), Value::Float8(1.234));
        assert_eq!(by_name(SWITCHOVER, &row, "ended_transactions"), Value::Int8(1));
    }
}
