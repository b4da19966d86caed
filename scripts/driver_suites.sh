#!/usr/bin/env bash
# The test suites that drivers bring along, each at the primary itself and through the proxy, which pools by transaction and spreads reads over
# two standbys. Counts the tests that pass both ways, and shows those that pass only directly. Sets up what is missing (the suites come with the
# packages' sources, and are kept in target/driver_suites), brings up a cluster of three and a proxy in a folder of their own, and takes them
# down again, also when it fails. tests/drivers/suites_known.txt names the tests that are known to differ, and why; the exit status is 0 if no
# other test differs.
#
#   scripts/driver_suites.sh                      those that take a minute each: asyncpg, psycopg2 and PyGreSQL
#   scripts/driver_suites.sh sqlalchemy django    what builds on drivers, for many minutes: its tests of PostgreSQL, on psycopg 3
#   scripts/driver_suites.sh --keep               leave the folder with outputs and logs
#   PGSLUICE=target/release/pgsluice scripts/driver_suites.sh      another build than target/debug
set -euo pipefail

cd "$(dirname "$0")/.."
PATH="$PATH:${HOME:-/root}/.cargo/bin"
wanted=$PWD/tests/drivers/suites.txt
known=$PWD/tests/drivers/suites_known.txt
cache=$PWD/target/driver_suites
python=$cache/venv/bin/python

all=(asyncpg psycopg2 pygresql sqlalchemy django)
quick_ones=(asyncpg psycopg2 pygresql)
# Django's suite is of thousands of tests that need no database; these are of its tests of the ORM and of PostgreSQL.
django_apps=(aggregation annotations async backends basic bulk_create constraints db_functions delete expressions expressions_window
    get_or_create indexes inspectdb introspection lookup migrations multiple_database postgres_tests prefetch_related queries raw_query
    schema select_for_update serializers transaction_hooks transactions update)
# A suite that takes longer than this hangs, and so does a single test that takes longer than the second.
limit=3000
test_limit=60

say() { printf 'driver_suites: %s\n' "$*" >&2; }
fail() { printf 'driver_suites: %s\n' "$@" >&2; exit 1; }

# ---- what was asked for

suites=()
keep=
while [ $# -gt 0 ]; do
    case $1 in
        --keep) keep=1 ;;
        -*) fail "unknown option $1" ;;
        *) case " ${all[*]} " in
            *" $1 "*) suites+=("$1") ;;
            *) fail "unknown suite $1; there are: ${all[*]}" ;;
           esac ;;
    esac
    shift
done
if [ ${#suites[@]} -eq 0 ]; then suites=("${quick_ones[@]}"); fi

# ---- set-up: each step is left out when its result is there

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

apt_install() {
    command -v apt-get >/dev/null || fail "this machine lacks $*, and has no apt-get: install them, and start again"
    say "installing $*"
    as_root apt-get update -q </dev/null >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" </dev/null >&2
}

has_headers() { python3 -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; }

# psycopg2 and PyGreSQL come as sources only, and are compiled.
setup_python() {
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then apt_install python3 python3-venv; fi
    has_headers || apt_install python3-dev
    [ -e "$(pg_config --includedir 2>/dev/null)/libpq-fe.h" ] || apt_install libpq-dev
    cmp -s "$wanted" "$cache/venv/suites.txt" && return
    say "installing the drivers"
    rm -rf "$cache"
    python3 -m venv "$cache/venv"
    "$python" -m pip install --quiet --disable-pip-version-check --requirement "$wanted" >&2
    cp "$wanted" "$cache/venv/suites.txt"
}

# A suite is in its package's source, of the version that is installed.
unpack() {
    local package=$1 folder=$cache/$2
    [ -e "$folder" ] && return
    say "downloading the source of $package"
    rm -rf "$cache/download"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest "$cache/download" \
        "$(grep -i "^$package==" "$wanted")" >&2
    mkdir "$cache/download/$2"
    tar xf "$cache"/download/*.tar.gz -C "$cache/download/$2" --strip-components=1
    mv "$cache/download/$2" "$folder"
}

scripts/setup.sh >&2
setup_python
for suite in "${suites[@]}"; do unpack "$suite" "$suite"; done

pgsluice=${PGSLUICE:-}
if [ -z "$pgsluice" ]; then
    say "building"
    cargo build --locked --quiet
    pgsluice=$PWD/target/debug/pgsluice
fi

# ---- a cluster and a proxy, and their end

# The servers run as `postgres` where this runs as root, so the folder is one that everybody may enter.
dir=$(mktemp -d "${TMPDIR:-/tmp}/pgsluice-suites.XXXXXX")
chmod 755 "$dir"
lab=$dir/lab
proxy=
running=
finish() {
    local status=$?
    trap - EXIT
    # A second Ctrl-C must not leave the servers behind.
    trap '' INT TERM
    local one
    for one in $running $proxy; do
        kill "$one" 2>/dev/null || true
        wait "$one" 2>/dev/null || true
    done
    if [ -e "$lab" ]; then "$pgsluice" lab down --dir "$lab" >/dev/null 2>"$dir/down.log" || cat "$dir/down.log" >&2; fi
    if [ -n "$keep" ]; then say "outputs and logs are in $dir"; else rm -rf "$dir"; fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

. scripts/cluster.sh

sql() { "$psql" -XAtq -h 127.0.0.1 -p "${2:-$base}" -U postgres -d "${3:-postgres}" -c "$1" </dev/null; }

# Two-phase commits and replication slots have tests of their own. A standby must allow as many prepared transactions as the primary before
# the primary does.
configure_lab() {
    local at
    for at in 2 1 0; do
        sql "alter system set max_prepared_transactions = 20" $((base + at))
        sql "alter system set wal_level = logical" $((base + at))
        "$pgsluice" lab --dir "$lab" stop "node$((at + 1))" >/dev/null 2>"$dir/restart.log"
        "$pgsluice" lab --dir "$lab" start "node$((at + 1))" >/dev/null 2>>"$dir/restart.log"
    done
    # What one session has written the others are to see at once, wherever they read; the proxy promises that only for a session's own.
    sql "alter system set synchronous_standby_names = 'FIRST 2 (node2, node3)'"
    sql "alter system set synchronous_commit = remote_apply"
    sql 'select pg_reload_conf()' >/dev/null
}

start_proxy() {
    local admin=$((base + 4))
    env PGSLUICE_HTTP="127.0.0.1:$admin" PGSLUICE_CLUSTER_STATE_FILE="$dir/proxy.state" \
        "$pgsluice" serve -c "$lab/pgsluice.toml" --listen "127.0.0.1:$((base + 3))" >"$dir/proxy.log" 2>&1 &
    proxy=$!
    for _ in $(seq 300); do
        kill -0 "$proxy" 2>/dev/null || break
        if "$pgsluice" status --json --url "http://127.0.0.1:$admin" 2>/dev/null | python3 -c '
import json, sys
sys.exit(sum(bool(node["serving"]) for node in json.load(sys.stdin)["nodes"]) < 3)' 2>/dev/null; then return; fi
        sleep 0.1
    done
    cat "$dir/proxy.log" >&2
    fail "the proxy does not serve all three nodes"
}

say "bringing up one primary and two standbys"
start_lab 5
psql=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["pg_bin"] + "/psql")' "$dir/lab.json")
configure_lab
say "starting the proxy"
start_proxy

# ---- one suite, one way

# Their results are in JUnit's form; what a suite prints is for whoever looks into a failure.
pytest_run() {
    timeout --kill-after=10 "$limit" "$python" -m pytest --timeout="$test_limit" --timeout-method=signal -q -p no:cacheprovider \
        --junitxml="$results" "$@"
}

run_asyncpg() {
    # Some of its tests expect the database to be the default one.
    PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres pytest_run -o addopts= --assert=plain --import-mode=importlib tests
}

run_psycopg2() {
    sql 'create extension hstore' "$base" "$database"
    PSYCOPG2_TESTDB=$database PSYCOPG2_TESTDB_HOST=127.0.0.1 PSYCOPG2_TESTDB_PORT=$port PSYCOPG2_TESTDB_USER=postgres \
        PSYCOPG2_TEST_REPL_DSN='' pytest_run --import-mode=importlib tests
}

run_pygresql() {
    sql 'create extension hstore' "$base" "$database"
    PYGRESQL_DB=$database PYGRESQL_HOST=127.0.0.1 PYGRESQL_PORT=$port PYGRESQL_USER=postgres PGUSER=postgres pytest_run tests
}

run_sqlalchemy() {
    local one
    for one in 'create schema test_schema' 'create schema test_schema_2' 'create extension hstore' 'create extension citext' \
        "alter database $database set default_text_search_config = 'pg_catalog.english'"; do
        sql "$one" "$base" "$database"
    done
    pytest_run -p no:logging --maxfail=100000 --backend-only --dburi "postgresql+psycopg://postgres@127.0.0.1:$port/$database" \
        test/dialect/postgresql test/dialect/test_suite.py
}

# Not a pytest suite: its runner tells names, and `compare` reads them.
run_django() {
    sql "create database ${database}_other"
    cat >tests/pgsluice_settings.py <<PYTHON
def database(name):
    return {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": "$port", "USER": "postgres", "NAME": name}

DATABASES = {"default": database("$database"), "other": database("${database}_other")}
SECRET_KEY = "of the tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
PYTHON
    cd tests
    timeout --kill-after=10 "$limit" "$python" runtests.py --settings pgsluice_settings --parallel 1 --noinput -v 2 "${django_apps[@]}" \
        >"$results" 2>&1
}

run() {
    local suite=$1 way=$2 status=0
    local port=$base database=suite_${suite}_$way results=$dir/$suite.$way.xml folder=$dir/$suite.$way
    if [ "$way" = proxy ]; then port=$((base + 3)); fi
    sql "create database $database"
    # Of its own each time, so that nothing is left of the run before; and away from the sources, which lack what was compiled.
    mkdir "$folder"
    cp -r "$cache/$suite"/{tests,test,lib,setup.cfg,tox.ini,pyproject.toml} "$folder" 2>/dev/null || true
    local began=$SECONDS
    (cd "$folder" && "run_$suite") </dev/null >"$dir/$suite.$way.out" 2>&1 &
    running=$!
    wait "$running" || status=$?
    running=
    say "$suite, $way: $((SECONDS - began)) s"
    [ -s "$results" ] || { tail -n 30 "$dir/$suite.$way.out" >&2; fail "$suite ended early, with status $status"; }
    kill -0 "$proxy" 2>/dev/null || { tail -n 40 "$dir/proxy.log" >&2; fail "the proxy ended during $suite"; }
}

# A line "ok", "known" or "FAIL" for each test that passes directly, with its name and a reason.
compare() {
    python3 - "$1" "$dir/$1.direct.xml" "$dir/$1.proxy.xml" "$known" <<'PYTHON'
import re
import sys
import xml.etree.ElementTree

suite, direct, proxy, known = sys.argv[1:]

def of_pytest(file):
    """By each test's name whether it passed; a test may have several results, of its parts."""
    passed = {}
    for case in xml.etree.ElementTree.parse(file).iter("testcase"):
        # Names of parametrized tests may have addresses in them, which differ from run to run.
        name = re.sub("0x[0-9a-f]+", "0x", f"{case.get('classname')}.{case.get('name')}").removeprefix("tests.")
        passed[name] = passed.get(name, True) and not any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
    return passed

def of_unittest(file):
    """The same of what unittest prints: a test's name, perhaps a line of what it is about, and its result."""
    passed, name = {}, None
    for line in open(file, errors="replace"):
        if start := re.match(r"\w+ \((\S+)\)", line):
            name = start[1]
        if name and (end := re.search(r"\.\.\. (ok|expected failure|skipped|FAIL|ERROR)", line)):
            passed[name], name = end[1] == "ok", None
        # Those that failed in tearDown or a part, after their line.
        if late := re.match(r"(?:FAIL|ERROR): \w+ \((\S+)\)", line):
            passed[late[1]] = False
    return passed

def reasons():
    for line in open(known):
        if line.strip() and not line.startswith("#"):
            of, name, reason = line.split(None, 2)
            if of == suite:
                yield name, reason.strip()

read = of_unittest if suite == "django" else of_pytest
through, explained = read(proxy), dict(reasons())
for name, passes in read(direct).items():
    if passes and through.get(name):
        print("ok", suite, name)
    elif passes:
        reason = explained.get(name)
        print("known" if reason else "FAIL", suite, name, f"({reason})" if reason else "")
PYTHON
}

counted() { grep -c "^$1 " "$dir/$suite.compared" || true; }

results=$dir/results
: >"$results"
for suite in "${suites[@]}"; do
    run "$suite" direct
    run "$suite" proxy
    compare "$suite" >"$dir/$suite.compared"
    grep -v '^ok ' "$dir/$suite.compared" || true
    printf '%s: %s pass both ways, %s are known to differ, %s differ\n' "$suite" \
        "$(counted ok)" "$(counted known)" "$(counted FAIL)"
    # A runner that stumbles before its first test passes none.
    grep -q '^ok ' "$dir/$suite.compared" || { tail -n 30 "$dir/$suite.direct.out" >&2; fail "no test of $suite passes"; }
    cat "$dir/$suite.compared" >>"$results"
done

# A session that panics closes one connection, which a test may take for something else.
if grep -h -A 2 -E 'panicked| ERROR ' "$dir/proxy.log" >"$dir/complaints"; then
    head -n 40 "$dir/complaints" >&2
    echo 'FAIL all the log of the proxy has no panic and no error' | tee -a "$results"
fi
passed=$(grep -c '^ok ' "$results" || true)
failed=$(grep -c '^FAIL ' "$results" || true)
printf '\n%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
