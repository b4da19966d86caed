#!/usr/bin/env bash
# What pgsluice needs to be built, tested and shown on this machine. Safe to repeat: what is there is left alone.
#
#   - PostgreSQL's server programs, for the lab (installed with apt-get if there are none)
#   - a C compiler, for the TLS library (likewise)
#   - Rust 1.89 or newer (checked, not installed)
#   - with --tests also Patroni and etcd, which the tests of node discovery run (likewise)
set -euo pipefail

rust_needed=1.89
PATH="$PATH:${HOME:-/root}/.cargo/bin"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

has_postgresql() {
    local initdb
    for initdb in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb \
        "$(command -v initdb || true)" "$(pg_config --bindir 2>/dev/null || true)/initdb"; do
        [ -x "$initdb" ] && return 0
    done
    return 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" </dev/null
}

need_apt() {
    command -v apt-get >/dev/null || fail "this machine lacks $*, and has no apt-get." "Install them, and start again."
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        fail "installing $* takes root, and there is no sudo." "Run this as root: apt-get install $*"
    fi
}

# Debian makes and starts a cluster on port 5432 when it installs a server, and that is where the demo's proxy belongs. So the package
# that decides comes first, and is told not to.
install_postgresql() {
    local conf=/etc/postgresql-common/createcluster.conf
    apt_install postgresql-common
    say "setting create_main_cluster = false in $conf, so that nothing takes port 5432"
    as_root sed -i -E 's/^#?[[:space:]]*create_main_cluster[[:space:]]*=.*/create_main_cluster = false/' "$conf"
    grep -q '^create_main_cluster = false' "$conf" || echo 'create_main_cluster = false' | as_root tee -a "$conf" >/dev/null
    apt_install postgresql
}

# Debian starts an etcd when it installs one. Nobody here needs it: the tests start their own, on ports of their own.
install_etcd() {
    apt_install etcd-server
    if [ -d /run/systemd/system ]; then
        say "disabling the etcd service, which the installation has enabled"
        as_root systemctl disable --now etcd
    fi
}

for_tests=
case ${1:-} in
    "") ;;
    --tests) for_tests=1 ;;
    *) fail "unknown option $1" ;;
esac

packages=()
has_postgresql || packages+=(postgresql)
command -v cc >/dev/null || packages+=(gcc libc6-dev)
if [ -n "$for_tests" ]; then
    command -v patroni >/dev/null || packages+=(patroni)
    command -v etcd >/dev/null || packages+=(etcd-server)
fi

if [ ${#packages[@]} -gt 0 ]; then
    need_apt "${packages[@]}"
    say "installing ${packages[*]}"
    as_root apt-get update -q </dev/null
    for package in "${packages[@]}"; do
        case $package in
            postgresql) install_postgresql ;;
            etcd-server) install_etcd ;;
            *) apt_install "$package" ;;
        esac
    done
    has_postgresql || fail "PostgreSQL was installed, but its initdb is nowhere to be found."
fi

command -v cargo >/dev/null && command -v rustc >/dev/null || fail \
    "Rust is missing: pgsluice is built with Rust $rust_needed or newer." \
    "The Rust project's installer is rustup (on Debian 13 and later: apt-get install rustup && rustup default stable)."
rust_found=$(rustc --version | awk '{ print $2 }')
oldest=$(printf '%s\n%s\n' "$rust_needed" "$rust_found" | sort -V | head -n 1)
[ "$oldest" = "$rust_needed" ] || fail \
    "Rust $rust_found is too old: pgsluice is built with $rust_needed or newer." "With rustup: rustup update stable"

say "ready: Rust $rust_found, and PostgreSQL's server programs"
