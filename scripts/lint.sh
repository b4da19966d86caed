#!/usr/bin/env bash
# The code as rustfmt writes it, and nothing that clippy would have otherwise.
set -euo pipefail

PATH="$PATH:${HOME:-/root}/.cargo/bin"
for component in rustfmt clippy; do
    tool=${component/rustfmt/fmt}
    if ! cargo "$tool" --version >/dev/null 2>&1; then
        command -v rustup >/dev/null || { echo "lint: cargo $tool is missing" >&2; exit 1; }
        rustup component add "$component"
    fi
done

cargo fmt --check
cargo clippy --all-targets -- -D warnings
