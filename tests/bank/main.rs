//! A bank under failovers of every kind: concurrent transfers in every shape, by clients that are never connected anew. Whatever was
//! acknowledged is there, unless PostgreSQL's own replication has lost it; nothing is there twice; every error says what is true; no
//! connection is closed.
//!
//! A round is a way to lose the primary and what is done about it. Without further ado each way is taken once. `PGSLUICE_BANK_ROUNDS` and
//! `PGSLUICE_BANK_SECONDS` have it draw as many rounds, or go on for as long, by a seed that is printed and that `PGSLUICE_BANK_SEED` sets:
//! `make soak` does.

#![allow(unreachable_pub, reason = "its modules are a test's")]

mod clients;
mod ledger;
mod patroni;
mod round;
mod teller;

#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use ledger::{Attempt, Ending};
use round::{Bench, Failover, Loss, Promotion, Replication};

/// Servers are replaced after so many rounds: each leaves a timeline and its WAL behind.
const ROUNDS_ON_A_BENCH: u64 = 10;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// As many rounds as were asked for, drawn; or else these.
async fn rounds(replication: Replication, tour: &[Failover]) {
    let (rounds, seconds) = (number("PGSLUICE_BANK_ROUNDS"), number("PGSLUICE_BANK_SECONDS"));
    let seed = number("PGSLUICE_BANK_SEED").unwrap_or(1);
    if rounds.is_none() && seconds.is_none() {
        let mut bench = Bench::open(replication, seed).await;
        for failover in tour {
            bench.carry_out(*failover);
        }
        bench.close().await;
        return;
    }
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut left = rounds.unwrap_or(u64::MAX);
    let is_over = || end.is_some_and(|end| Instant::now() >= end);
    for number in 0.. {
        if left == 0 || is_over() {
            return;
        }
        let mut bench = Bench::open(replication, seed + number).await;
        for _ in 0..left.min(ROUNDS_ON_A_BENCH) {
            if is_over() {
                break;
            }
            let failover = bench.draw();
            bench.carry_out(failover);
            left -= 1;
        }
        bench.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_transfer_is_lost_doubled_or_misreported_by_a_failover() {
    let tour = [
        Failover::new(Loss::Freeze, 0, Promotion::Function),
        Failover::new(Loss::Fast, 100, Promotion::TriggerFile),
        Failover::new(Loss::Cut, 0, Promotion::TriggerFile),
        Failover::new(Loss::Kill, 100, Promotion::Nobody),
        Failover::new(Loss::Immediate, 0, Promotion::Operator),
        Failover::new(Loss::Nothing, 0, Promotion::Function),
        Failover::new(Loss::Nothing, 0, Promotion::Switchover),
    ];
    rounds(Replication::Asynchronous, &tour).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_synchronous_replication_nothing_that_was_acknowledged_is_lost() {
    let tour = [
        Failover::new(Loss::Kill, 0, Promotion::Function),
        Failover::new(Loss::Cut, 100, Promotion::Operator),
        Failover::new(Loss::Freeze, 2500, Promotion::Nobody),
        Failover::new(Loss::Nothing, 0, Promotion::TriggerFile),
    ];
    rounds(Replication::Synchronous, &tour).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_and_a_promotion_a_second_later_cost_only_what_was_under_way() {
    let mut bench = Bench::open(Replication::Asynchronous, 1).await;
    let (kills, killed) = bench.carry_out(Failover::new(Loss::Kill, 1000, Promotion::Function));
    let history = bench.close().await;
    let failed = |attempt: &&Attempt| attempt.ending != Ending::Acknowledged;
    let failed: Vec<&Attempt> = history.attempts.iter().filter(failed).collect();
    let was_under_way = |attempt: &&&Attempt| attempt.began <= killed && attempt.ended >= kills;
    let others: Vec<&&Attempt> = failed.iter().filter(|attempt| !was_under_way(attempt)).collect();
    assert!(others.is_empty(), "{others:#?}");
    // All others that met the time without a primary were held over it.
    let held = |attempt: &&Attempt| attempt.ended - attempt.began >= Duration::from_millis(500);
    let held = history.attempts.iter().filter(held).count();
    println!("{} failed, {held} were held", failed.len());
    assert!(held > 0, "nothing was held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_by_patroni_loses_nothing_where_commits_wait_for_a_standby() {
    use patroni::Loss::{Freeze, Kill, Switchover};
    let soaks = number("PGSLUICE_BANK_ROUNDS").is_some() || number("PGSLUICE_BANK_SECONDS").is_some();
    let losses: &[_] = if soaks {
        &[Kill, Switchover, Freeze, Kill, Freeze, Switchover]
    } else {
        &[Kill]
    };
    patroni::rounds(losses).await;
}
