#!/usr/bin/env bash
# What takes long, with a release build: hundreds of failovers under a bank's transfers, with asynchronous and with synchronous replication;
# how long a write takes after a promotion; drivers through ten failovers. Each part prints what it did, and the seeds with which to do it again.
#
#   scripts/soak.sh                       200 rounds of each kind of replication: half an hour or more
#   scripts/soak.sh --rounds 20           fewer
#   scripts/soak.sh --seconds 3600        as many rounds as fit into an hour for each
#   scripts/soak.sh --seed 17             the rounds of this seed; else of the time
#   scripts/soak.sh bank latency drivers  only these parts
set -euo pipefail

cd "$(dirname "$0")/.."
PATH="$PATH:${HOME:-/root}/.cargo/bin"

fail() { printf 'soak: %s\n' "$*" >&2; exit 1; }

parts=()
rounds=200
seconds=
seed=$(date +%s)
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) rounds=${2:?--rounds takes a number}; shift ;;
        --seconds) seconds=${2:?--seconds takes a number}; shift ;;
        --seed) seed=${2:?--seed takes a number}; shift ;;
        bank | latency | drivers) parts+=("$1") ;;
        *) fail "unknown argument $1" ;;
    esac
    shift
done
if [ ${#parts[@]} -eq 0 ]; then parts=(bank latency drivers); fi

scripts/setup.sh --tests >&2
cargo build --release --locked
failed=()
part() {
    local name=$1
    shift
    case " ${parts[*]} " in *" $name "*) ;; *) return 0 ;; esac
    printf '\n--- %s\n' "$name"
    "$@" </dev/null || failed+=("$name")
}

# One after another, so that they don't take the machine from each other.
bank() {
    local asked=(PGSLUICE_BANK_SEED="$seed")
    if [ -n "$seconds" ]; then asked+=(PGSLUICE_BANK_SECONDS="$seconds"); else asked+=(PGSLUICE_BANK_ROUNDS="$rounds"); fi
    env "${asked[@]}" cargo test --release --locked --test bank -- --nocapture --test-threads 1
}
latency() {
    PGSLUICE_LATENCY_RUNS=20 PGSLUICE_LATENCY_BOUND_MS=100 cargo test --release --locked --test promotion_latency -- --nocapture --test-threads 1
}
drivers() { PGSLUICE=$PWD/target/release/pgsluice scripts/drivers.sh failovers; }

part bank bank
part latency latency
part drivers drivers
printf '\n'
[ ${#failed[@]} -eq 0 ] || fail "failed: ${failed[*]} (seed $seed)"
echo "soak: all passed (seed $seed)"
