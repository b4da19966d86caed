#!/usr/bin/env bash
# The drivers that applications use, each against the primary itself and through the proxy: a line per check, and at the end
# "N passed, N failed". Sets up what is missing, brings up a cluster of three and a proxy in a folder of their own, and takes them down
# again, also when a check fails.
#
#   scripts/drivers.sh                    all drivers
#   scripts/drivers.sh psycopg jdbc       some of them
#   scripts/drivers.sh --quick            fewer rounds, and only drivers that need no large installation, for CI
#   scripts/drivers.sh --only 'COPY'      only the checks whose name has this in it
#   scripts/drivers.sh --keep             leave the folder with the logs
#   PGSLUICE=target/release/pgsluice scripts/drivers.sh      another build than target/debug
set -euo pipefail

cd "$(dirname "$0")/.."
PATH="$PATH:${HOME:-/root}/.cargo/bin"
here=tests/drivers
tools=$PWD/target/drivers
all=(psycopg asyncpg psycopg2 sqlalchemy django pg postgres-js knex prisma jdbc tokio-postgres sqlx libpq perl php ruby go odbc failovers)
# What --quick takes: those that need no large installation.
quick_ones=(psycopg asyncpg psycopg2 sqlalchemy django pg postgres-js knex jdbc tokio-postgres libpq perl failovers)
# A driver that takes longer than this hangs.
limit=600

say() { printf 'drivers: %s\n' "$*" >&2; }
fail() { printf 'drivers: %s\n' "$@" >&2; exit 1; }

# ---- what was asked for

drivers=()
quick=${QUICK:-}
keep=
only=
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=1 ;;
        --keep) keep=1 ;;
        --only) only=${2:?--only takes a part of a name}; shift ;;
        -*) fail "unknown option $1" ;;
        *) case " ${all[*]} " in
            *" $1 "*) drivers+=("$1") ;;
            *) fail "unknown driver $1; there are: ${all[*]}" ;;
           esac ;;
    esac
    shift
done
if [ ${#drivers[@]} -eq 0 ]; then
    if [ -n "$quick" ]; then drivers=("${quick_ones[@]}"); else drivers=("${all[@]}"); fi
fi
if [ -n "$quick" ]; then limit=120; fi

wants() { local one; for one in "${drivers[@]}"; do case " $* " in *" $one "*) return 0 ;; esac; done; return 1; }

# A driver that this machine can't have is left out, and said to be.
skip() {
    say "skipping $1: $2"
    local one left=()
    for one in "${drivers[@]}"; do [ "$one" = "$1" ] || left+=("$one"); done
    drivers=("${left[@]}")
}

# ---- set-up: each step is left out when its result is there

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

apt_updated=
apt_install() {
    command -v apt-get >/dev/null || fail "this machine lacks $*, and has no apt-get: install them, and start again"
    say "installing $*"
    [ -n "$apt_updated" ] || as_root apt-get update -q </dev/null >&2
    apt_updated=1
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" </dev/null >&2
}

setup_python() {
    # Debian's python3 comes without venv.
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then apt_install python3 python3-venv; fi
    local stamp=$tools/venv/requirements.txt
    cmp -s "$here/requirements.txt" "$stamp" && return
    say "installing the Python drivers"
    python3 -m venv "$tools/venv"
    "$tools/venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$stamp"
}

setup_node() {
    command -v node >/dev/null && command -v npm >/dev/null || apt_install nodejs npm
    local stamp=$tools/node/installed.json
    cmp -s "$here/package-lock.json" "$stamp" && return
    say "installing the Node drivers"
    mkdir -p "$tools/node"
    cp "$here/package.json" "$here/package-lock.json" "$tools/node/"
    npm ci --prefix "$tools/node" --no-audit --no-fund --loglevel=error >&2
    cp "$here/package-lock.json" "$stamp"
}

# Its own programs would be fetched from elsewhere; what the checks need is in the packages. The one that `generate` insists on is never run.
setup_prisma() {
    command -v node >/dev/null && command -v npm >/dev/null || apt_install nodejs npm
    node -e 'const [major, minor] = process.versions.node.split("."); process.exit(major > 20 || (major == 20 && minor >= 19) ? 0 : 1)' \
        || { skip prisma "it needs Node 20.19 or newer"; return; }
    local stamp=$tools/prisma/installed
    cat "$here/prisma/package-lock.json" "$here/prisma/schema.prisma" | cmp -s - "$stamp" && return
    say "installing Prisma"
    mkdir -p "$tools/prisma"
    cp "$here/prisma/package.json" "$here/prisma/package-lock.json" "$here/prisma/schema.prisma" "$tools/prisma/"
    npm ci --prefix "$tools/prisma" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
    (cd "$tools/prisma" && CHECKPOINT_DISABLE=1 PRISMA_HIDE_UPDATE_MESSAGE=1 PRISMA_SCHEMA_ENGINE_BINARY=$(type -P true) \
        node node_modules/prisma/build/index.js generate --schema schema.prisma) >&2
    cat "$here/prisma/package-lock.json" "$here/prisma/schema.prisma" >"$stamp"
}

setup_java() {
    command -v javac >/dev/null || apt_install default-jdk-headless
    [ -e "$jdbc_jar" ] || apt_install libpostgresql-jdbc-java
    local classes=$tools/java
    [ "$classes/Jdbc.class" -nt "$here/Jdbc.java" ] && [ "$classes/Failovers.class" -nt "$here/Failovers.java" ] && return
    say "compiling Jdbc.java and Failovers.java"
    mkdir -p "$classes"
    javac -Xlint:all -cp "$jdbc_jar" -d "$classes" "$here/Jdbc.java" "$here/Failovers.java" >&2
}

setup_libpq() {
    if [ ! -e "$(pg_config --includedir 2>/dev/null)/libpq-fe.h" ]; then
        # Of the version that is there, so that no server on this machine is upgraded on the way.
        local version
        version=$(dpkg-query -W -f '${Version}' libpq5 2>/dev/null) || version=
        apt_install "libpq-dev${version:+=$version}" || { skip libpq "no libpq-dev of version $version to be had"; return; }
    fi
    local program=$tools/c/libpq_pipeline
    [ "$program" -nt "$here/libpq_pipeline.c" ] && return
    say "compiling libpq_pipeline.c"
    mkdir -p "$tools/c"
    cc -D_GNU_SOURCE -std=c11 -Wall -Wextra -O1 -I"$(pg_config --includedir)" -o "$program" "$here/libpq_pipeline.c" \
        -L"$(pg_config --libdir)" -lpq >&2
}

setup_odbc() {
    odbc_is_there && return
    apt_install libodbc2 odbc-postgresql || true
    odbc_is_there || skip odbc "no ODBC driver of PostgreSQL to be had from packages"
}
odbc_is_there() {
    "$tools/venv/bin/python" -c 'import pyodbc, sys; sys.exit("PostgreSQL Unicode" not in pyodbc.drivers())' 2>/dev/null
}

# From the distribution's packages, without modules or the network.
setup_go() {
    local sources=/usr/share/gocode
    if ! { command -v go >/dev/null && [ -d "$sources/src/github.com/lib/pq" ]; }; then
        apt_install golang-go golang-github-lib-pq-dev || { skip go "no Go, or no lib/pq, to be had from packages"; return; }
    fi
    local program=$tools/go/checks
    [ "$program" -nt "$here/go_checks.go" ] && return
    say "compiling go_checks.go"
    mkdir -p "$tools/go"
    GO111MODULE=off GOFLAGS='' GOPATH=$sources GOCACHE=$tools/go/cache go build -o "$program" "$here/go_checks.go" >&2 \
        || skip go "go_checks.go doesn't compile with this Go and this lib/pq"
}

# A crate of its own. Cargo knows by itself what is to be done.
setup_sqlx() {
    say "building the checks of sqlx"
    cargo build --locked --quiet --manifest-path "$here/sqlx/Cargo.toml" --target-dir "$tools/sqlx" >&2
}

jdbc_jar=/usr/share/java/postgresql.jar
scripts/setup.sh >&2
command -v openssl >/dev/null || apt_install openssl
if wants psycopg asyncpg psycopg2 sqlalchemy django odbc failovers; then setup_python; fi
if wants pg postgres-js knex; then setup_node; fi
if wants prisma; then setup_prisma; fi
if wants jdbc failovers; then setup_java; fi
if wants libpq; then setup_libpq; fi
if wants odbc; then setup_odbc; fi
if wants go; then setup_go; fi
if wants sqlx; then setup_sqlx; fi
if wants perl && ! perl -MDBD::Pg -e 1 2>/dev/null; then apt_install libdbd-pg-perl; fi
if wants php && ! php -r 'exit((int) !(extension_loaded("pgsql") && extension_loaded("pdo_pgsql")));' 2>/dev/null; then
    apt_install php-cli php-pgsql
fi
if wants ruby && ! ruby -e 'require "pg"' 2>/dev/null; then apt_install ruby ruby-pg; fi

pgsluice=${PGSLUICE:-}
if [ -z "$pgsluice" ]; then
    say "building"
    cargo build --locked --quiet
    pgsluice=$PWD/target/debug/pgsluice
fi
tokio_postgres_test=
if wants tokio-postgres; then
    tokio_postgres_test=$(cargo test --locked --quiet --no-run --test drivers_tokio_postgres --message-format=json-render-diagnostics \
        | sed -n 's/.*"executable":"\([^"]*drivers_tokio_postgres[^"]*\)".*/\1/p' | tail -n 1)
    [ -x "$tokio_postgres_test" ] || fail "the test of tokio-postgres was not built"
fi

# ---- a cluster and a proxy, and their end

# The servers run as `postgres` where this runs as root, so the folder is one that everybody may enter.
dir=$(mktemp -d "${TMPDIR:-/tmp}/pgsluice-drivers.XXXXXX")
chmod 755 "$dir"
lab=$dir/lab
proxies=()
driver=
finish() {
    local status=$?
    trap - EXIT
    # A second Ctrl-C must not leave the servers behind.
    trap '' INT TERM
    if [ -n "$driver" ]; then kill "$driver" 2>/dev/null || true; fi
    local one
    for one in "${proxies[@]}"; do
        kill -KILL "$one" 2>/dev/null || true
        wait "$one" 2>/dev/null || true
    done
    if [ -e "$lab" ]; then "$pgsluice" lab down --dir "$lab" >/dev/null 2>"$dir/down.log" || cat "$dir/down.log" >&2; fi
    if [ -n "$keep" ]; then say "logs are in $dir"; else rm -rf "$dir"; fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

. scripts/cluster.sh

# The pool is far smaller than the checks' numbers of clients, so that clients change servers all the time.
start_proxy() {
    local name=$1 port=$2 admin=$3
    shift 3
    env "$@" PGSLUICE_HTTP="127.0.0.1:$admin" PGSLUICE_CLUSTER_STATE_FILE="$dir/$name.state" \
        PGSLUICE_POOL_SIZE=3 PGSLUICE_POOL_CHECKOUT_TIMEOUT=10s \
        "$pgsluice" serve -c "$lab/pgsluice.toml" --listen "127.0.0.1:$port" >"$dir/$name.log" 2>&1 &
    local pid=$!
    proxies+=("$pid")
    for _ in $(seq 300); do
        kill -0 "$pid" 2>/dev/null || break
        if serves_all "$admin"; then return; fi
        sleep 0.1
    done
    cat "$dir/$name.log" >&2
    fail "the proxy does not serve all three nodes"
}

serves_all() {
    "$pgsluice" status --json --url "http://127.0.0.1:$1" 2>/dev/null | python3 -c '
import json, sys
sys.exit(sum(bool(node["serving"]) for node in json.load(sys.stdin)["nodes"]) < 3)' 2>/dev/null
}

say "bringing up one primary and two standbys"
start_lab 7
say "starting the proxy"
start_proxy proxy "$((base + 3))" "$((base + 4))"

# The second one asks for passwords, and encrypts for those who like.
password="driver's secret"
printf '"postgres" "%s"\n' "$password" >"$dir/users.txt"
chmod 600 "$dir/users.txt"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pgsluice-drivers -addext subjectAltName=IP:127.0.0.1,DNS:localhost \
    -keyout "$dir/server.key" -out "$dir/server.crt" 2>"$dir/openssl.log" || { cat "$dir/openssl.log" >&2; fail "no certificate"; }
start_proxy secure "$((base + 5))" "$((base + 6))" PGSLUICE_AUTH_METHOD=scram-sha-256 PGSLUICE_AUTH_USERS="$dir/users.txt" \
    PGSLUICE_LISTEN_TLS_CERT="$dir/server.crt" PGSLUICE_LISTEN_TLS_KEY="$dir/server.key"

# ---- the drivers

export DRIVERS_DIRECT_PORT=$base DRIVERS_STANDBY_PORTS=$((base + 1)),$((base + 2)) DRIVERS_PROXY_PORT=$((base + 3))
export DRIVERS_SECURE_PORT=$((base + 5)) DRIVERS_PASSWORD=$password DRIVERS_CERTIFICATE=$dir/server.crt
export DRIVERS_QUICK=$quick DRIVERS_ONLY=$only
results=$dir/results
: >"$results"

psql=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["pg_bin"] + "/psql")' "$dir/lab.json")
at() { "$psql" -XAtq -h 127.0.0.1 -p "$1" -U postgres -d postgres -c "$2" </dev/null; }
sql() { at "$base" "$1"; }

# Some checks look at the standbys themselves.
until_replayed() {
    local end port
    end=$(sql 'select pg_current_wal_flush_lsn()')
    for port in $((base + 1)) $((base + 2)); do
        for _ in $(seq 600); do
            [ "$(at "$port" "select pg_last_wal_replay_lsn() >= '$end'")" = t ] && continue 2
            sleep 0.05
        done
        fail "the standby on port $port does not replay"
    done
}

run() {
    local name=$1
    shift
    local database=drivers_${name//-/_} output=$dir/$name.out
    sql "create database ${database}_direct"
    sql "create database ${database}_proxy"
    until_replayed
    : >"$output"
    local began=$SECONDS status=0
    DRIVERS_DATABASE=$database timeout --kill-after=5 "$limit" "$@" </dev/null >>"$output" 2>"$dir/$name.err" &
    driver=$!
    tail -n +1 -f --pid="$driver" "$output" | grep --line-buffered -E '^(ok|FAIL) ' &
    wait "$driver" || status=$?
    driver=
    # The one that prints sees the end of the driver within a second.
    wait $! || true
    grep -E '^(ok|FAIL) ' "$output" >>"$results" || true
    # A script that fails says which check did; one that ended otherwise is a failure of its own.
    if ! grep -q '^done$' "$output"; then
        printf 'FAIL  %-14s ended early, with status %s\n' "$name" "$status" | tee -a "$results"
        tail -n 30 "$dir/$name.err" >&2
    fi
    local one
    for one in "${proxies[@]}"; do
        kill -0 "$one" 2>/dev/null || { tail -n 40 "$dir"/proxy.log "$dir"/secure.log >&2; fail "a proxy ended during $name"; }
    done
    say "$name took $((SECONDS - began)) s"
}

lab_do() { "$pgsluice" lab --dir "$lab" "$@" >>"$dir/failovers.log" 2>&1 || { tail -n 20 "$dir/failovers.log" >&2; fail "lab $*"; }; }

# Commits wait for a standby, so that nothing which was acknowledged is lost with a primary that is killed; or don't, again.
replicate() {
    local port
    for port in "$base" $((base + 1)) $((base + 2)); do
        at "$port" "alter system $1"
        at "$port" 'select pg_reload_conf()' >/dev/null
    done
}

# One primary is lost after another, and comes back as a standby, while applications go on.
fail_over() {
    local count=$1 round mode primary next other received most
    local modes=(kill fast immediate)
    primary=node1
    for round in $(seq "$count"); do
        mode=${modes[round % 3]}
        sleep 0.5
        lab_do stop "$primary" --mode "$mode"
        most=-1
        for other in 1 2 3; do
            [ "node$other" = "$primary" ] && continue
            received=$(at $((base + other - 1)) "select pg_last_wal_receive_lsn() - '0/0'")
            if [ "$received" -gt "$most" ]; then most=$received next=node$other; fi
        done
        lab_do promote "$next"
        lab_do rejoin "$primary"
        primary=$next
        for _ in $(seq 300); do serves_all "$((base + 4))" && continue 2; sleep 0.1; done
        fail "the proxy does not serve all three nodes after failover $round"
    done
    touch "$DRIVERS_STOP"
}

# psycopg and JDBC at once. Last, since others take the first node for the primary.
run_failovers() {
    local count=10 name output began=$SECONDS status pids=()
    [ -z "$quick" ] || count=3
    export DRIVERS_STOP=$dir/stop DRIVERS_FAILOVERS=$count
    for name in psycopg jdbc; do sql "create database drivers_failovers_${name}_proxy"; done
    until_replayed
    replicate "set synchronous_standby_names = 'any 1 (*)'"
    DRIVERS_DATABASE=drivers_failovers_psycopg timeout --kill-after=5 "$limit" "$tools/venv/bin/python" "$here/failovers.py" \
        </dev/null >"$dir/failovers_psycopg.out" 2>"$dir/failovers_psycopg.err" &
    pids+=("$!")
    DRIVERS_DATABASE=drivers_failovers_jdbc timeout --kill-after=5 "$limit" \
        java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$tools/java:$jdbc_jar" Failovers \
        </dev/null >"$dir/failovers_jdbc.out" 2>"$dir/failovers_jdbc.err" &
    pids+=("$!")
    for name in psycopg jdbc; do
        for _ in $(seq 600); do
            grep -q '^\(ready\|done\)$' "$dir/failovers_$name.out" && break
            sleep 0.05
        done
    done
    fail_over "$count"
    for name in psycopg jdbc; do
        status=0
        wait "${pids[0]}" || status=$?
        pids=("${pids[@]:1}")
        output=$dir/failovers_$name.out
        grep -E '^(ok|FAIL) ' "$output" | tee -a "$results" || true
        if ! grep -q '^done$' "$output"; then
            printf 'FAIL  %-14s proxy   failovers ended early, with status %s\n' "$name" "$status" | tee -a "$results"
        fi
        [ "$status" -eq 0 ] || tail -n 30 "$dir/failovers_$name.err" >&2
    done
    replicate "reset synchronous_standby_names"
    say "failovers took $((SECONDS - began)) s"
}

# All of it would pass on a proxy that sends everything to the primary.
standbys_took_reads() {
    local reads
    reads=$("$pgsluice" status --json --url "http://127.0.0.1:$((base + 4))" | python3 -c '
import json, sys
print(*(node["statements_read"] for node in json.load(sys.stdin)["nodes"] if node["role"] == "standby"))')
    case " $reads " in
        *" 0 "* | "  ") printf 'FAIL  %-14s proxy   each standby took reads: %s\n' all "$reads" ;;
        *) printf 'ok    %-14s proxy   each standby took reads: %s\n' all "$reads" ;;
    esac | tee -a "$results"
}

for name in "${drivers[@]}"; do
    case $name in
        psycopg) run psycopg "$tools/venv/bin/python" "$here/psycopg3.py" ;;
        asyncpg) run asyncpg "$tools/venv/bin/python" "$here/asyncpg_checks.py" ;;
        psycopg2) run psycopg2 "$tools/venv/bin/python" "$here/psycopg2_checks.py" ;;
        sqlalchemy) run sqlalchemy "$tools/venv/bin/python" "$here/sqlalchemy_checks.py" ;;
        django) run django "$tools/venv/bin/python" "$here/django_checks.py" ;;
        pg) NODE_PATH="$tools/node/node_modules" run pg node "$here/node_postgres.cjs" ;;
        postgres-js) NODE_PATH="$tools/node/node_modules" run postgres-js node "$here/postgres_js.cjs" ;;
        knex) NODE_PATH="$tools/node/node_modules" run knex node "$here/knex_checks.cjs" ;;
        prisma) NODE_PATH="$tools/prisma/node_modules" run prisma node "$here/prisma_checks.cjs" ;;
        jdbc) run jdbc java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$tools/java:$jdbc_jar" Jdbc ;;
        libpq) run libpq "$tools/c/libpq_pipeline" ;;
        go) run go "$tools/go/checks" ;;
        odbc) run odbc "$tools/venv/bin/python" "$here/odbc_checks.py" ;;
        perl) run perl perl "$here/perl_checks.pl" ;;
        php) run php php "$here/php_checks.php" ;;
        ruby) run ruby ruby "$here/ruby_checks.rb" ;;
        sqlx) run sqlx "$tools/sqlx/debug/sqlx-checks" ;;
        tokio-postgres) run tokio-postgres "$tokio_postgres_test" --nocapture ;;
        failovers) ;; # See below.
    esac
done
if wants failovers && [ -z "$only" ]; then run_failovers; fi
[ -n "$only" ] || standbys_took_reads

# A session that panics closes one connection, which a check may take for something else.
if grep -h -A 2 -E 'panicked| ERROR ' "$dir/proxy.log" "$dir/secure.log" >"$dir/complaints"; then
    head -n 40 "$dir/complaints" >&2
    printf 'FAIL  %-14s proxy   its log has no panic and no error\n' all | tee -a "$results"
fi
passed=$(grep -c '^ok ' "$results" || true)
failed=$(grep -c '^FAIL ' "$results" || true)
if [ "$failed" -gt 0 ]; then
    printf '\nfailed:\n'
    grep '^FAIL ' "$results"
fi
printf '\n%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
