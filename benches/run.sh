#!/usr/bin/env bash
# The benchmark: sets up what it needs, builds pgsluice, measures, prints tables. Options are those of bench.py (--help lists them).
#
#   benches/run.sh            all scenarios, some ten minutes
#   benches/run.sh --quick    a minute; fails where something answers with errors: a smoke test
#   benches/run.sh --write    all scenarios, and the tables go into docs/performance.md
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
PATH="$PATH:/usr/sbin:${HOME:-/root}/.cargo/bin"

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# Debian starts a PgBouncer of its own when the package is installed. Only one that was brought in here is stopped; and the one that
# is measured is another process, with its own configuration and a free port.
install_pgbouncer() {
    echo 'bench: installing pgbouncer'
    as_root apt-get update -q </dev/null
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends pgbouncer </dev/null
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --now pgbouncer
    else
        as_root service pgbouncer stop || true
    fi
}

case " $* " in
    *" --help "* | *" -h "*) exec python3 -B "$here/bench.py" --help ;;
esac

"$root/scripts/setup.sh" >&2
command -v python3 >/dev/null || { echo 'bench: python3 is missing' >&2; exit 1; }
command -v pgbouncer >/dev/null || install_pgbouncer >&2
(cd "$root" && cargo build --release --locked) >&2

exec python3 -B "$here/bench.py" --pgsluice "${CARGO_TARGET_DIR:-$root/target}/release/pgsluice" "$@"
