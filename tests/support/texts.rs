//! Texts by which the cost of classification is measured: what applications send, and what is made to be hard.

use super::dice::Dice;

/// What short transactions consist of.
pub const OLTP: &[(&str, &str)] = &[
    ("point_select", "SELECT abalance FROM pgbench_accounts WHERE aid = 4711"),
    (
        "join_order_limit",
        "SELECT o.id, o.placed_at, c.name FROM orders o JOIN customers c ON c.id = o.customer_id WHERE o.state = 'open' \
         ORDER BY o.placed_at DESC LIMIT 20",
    ),
    (
        "join_aggregate",
        "SELECT o.id, o.placed_at, c.name, sum(l.price * l.quantity) AS total FROM orders o JOIN customers c ON c.id = o.customer_id \
         LEFT JOIN lines l ON l.order_id = o.id WHERE o.state = 'open' AND o.placed_at >= '2026-01-01' GROUP BY o.id, c.name \
         ORDER BY o.placed_at DESC LIMIT 20 OFFSET 40",
    ),
    (
        "insert",
        "INSERT INTO orders (customer_id, state, note, placed_at) VALUES (17, 'open', 'by phone', now())",
    ),
    (
        "update_returning",
        "UPDATE accounts SET balance = balance - 25.50, changed_at = now() WHERE id = 17 AND balance >= 25.50 RETURNING id, balance",
    ),
    (
        "select_for_update",
        "SELECT id, payload FROM jobs WHERE state = 'ready' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED",
    ),
    (
        "cte",
        "WITH latest AS (SELECT DISTINCT ON (customer_id) customer_id, id FROM orders ORDER BY customer_id, placed_at DESC) \
         SELECT c.name, coalesce(o.note, '') FROM latest JOIN orders o USING (id) JOIN customers c ON c.id = latest.customer_id \
         WHERE c.region IN ($1, $2, $3)",
    ),
    (
        "orm_select",
        "SELECT \"users\".\"id\", \"users\".\"email\", \"users\".\"created_at\" FROM \"users\" WHERE \"users\".\"email\" = $1 LIMIT $2",
    ),
];

/// Texts of about a megabyte, and the longest ones that are still parsed.
pub fn hard() -> Vec<(&'static str, Vec<u8>)> {
    let list = |length: usize| {
        let values: Vec<String> = (0..).map(|number: u32| number.to_string()).take(length).collect();
        format!("select a from t where b in ({})", values.join(","))
    };
    let nested = |depth: usize| format!("select {}1{}", "(".repeat(depth), ")".repeat(depth));
    vec![
        ("in_list_1mb", list(150_000).into_bytes()),
        ("parentheses_100000", nested(100_000).into_bytes()),
        ("random_bytes_1mb", Dice::new(1).bytes(1 << 20)),
        ("in_list_16kb", list(3300).into_bytes()),
        ("parentheses_1900", nested(1900).into_bytes()),
        (
            "joins_16kb",
            format!("select 1 from a{}", " join a on true".repeat(995)).into_bytes(),
        ),
    ]
}
