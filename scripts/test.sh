#!/usr/bin/env bash
# All tests, and one line at the end that counts them: "N passed, N failed". The exit status is cargo's, and a run without any tests
# is a failure too.
set -uo pipefail

PATH="$PATH:${HOME:-/root}/.cargo/bin"
output=$(mktemp)
trap 'rm -f "$output"' EXIT

cargo test --no-fail-fast "$@" 2>&1 </dev/null | tee "$output"
status=${PIPESTATUS[0]}

counts=$(awk '/^test result: / { for (i = 2; i <= NF; i++) { if ($i == "passed;") passed += $(i - 1); if ($i == "failed;") failed += $(i - 1) } }
    END { printf "%d passed, %d failed", passed, failed }' "$output")
printf '\n%s\n' "$counts"
case $counts in
    "0 passed,"*) exit 1 ;;
esac
exit "$status"
