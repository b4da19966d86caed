//! A bank under failovers of every kind: concurrent transfers in every shape, by clients that are never connected anew. Whatever was
//! acknowledged is there, unless PostgreSQL's own replication has lost it; nothing is there twice; every error says what is true; no
//! connection is closed.
//!
//! A round is a way to lose the primary and a way to promote another, drawn by a seed that is printed. `PGSLUICE_BANK_ROUNDS` and
//! `PGSLUICE_BANK_SEED` have it do more of them, or those that failed.

#![allow(unreachable_pub, reason = "its modules are a test's")]

mod ledger;
mod round;
mod teller;

#[path = "../support/mod.rs"]
mod support;

use round::{Bench, Replication};

fn number(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().expect("a number"))
}

async fn rounds(replication: Replication, seed: u64) {
    let mut bench = Bench::open(replication, seed).await;
    for _ in 0..number("PGSLUICE_BANK_ROUNDS", 3) {
        bench.round().await;
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_transfer_is_lost_doubled_or_misreported_by_a_failover() {
    rounds(Replication::Asynchronous, number("PGSLUICE_BANK_SEED", 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_synchronous_replication_nothing_that_was_acknowledged_is_lost() {
    rounds(Replication::Synchronous, number("PGSLUICE_BANK_SEED", 1)).await;
}
