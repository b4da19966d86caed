#!/usr/bin/env bash
# PostgreSQL's own regression suite, file by file, by psql: once at the primary itself, and once through the proxy, which pools by
# transaction and spreads reads over two standbys. Counts the files whose output is the same both ways, and shows how the rest differ.
#
# Sets up what is missing (the suite comes from the package archive's source package, and is kept in target/regress), brings up a cluster
# of three and a proxy in a folder of their own, and takes them down again, also when it fails. tests/regress/known.txt names the files
# that are known to differ, and why; the exit status is 0 if no other file differs, and no client was told that a node only reads. Shows how
# many reads a standby refused, and ran again on the primary, and which.
#
# With --isolation it is PostgreSQL's isolation suite instead: what several sessions see of each other, step by step, by isolationtester;
# tests/regress/isolation.txt names what is known of that.
#
#   scripts/regress.sh                    the whole schedule
#   scripts/regress.sh rules plpgsql      only these; what they need first runs at the primary itself
#   scripts/regress.sh --quick            a few files that take less than a minute, for CI
#   scripts/regress.sh --lines 40         so many lines of each difference instead of 12; 0 shows none
#   scripts/regress.sh --isolation        the isolation suite; also with names, --quick and the others
#   scripts/regress.sh --crowd            with other sessions that take the same connections between any two transactions, and leave other
#                                         settings on them; more reads reach the standbys, too
#   scripts/regress.sh --keep             leave the folder with outputs, differences and logs
#   PGSLUICE=target/debug/pgsluice scripts/regress.sh        another build than target/release
set -euo pipefail

cd "$(dirname "$0")/.."
PATH="$PATH:${HOME:-/root}/.cargo/bin"
known=$PWD/tests/regress/known.txt
cache=$PWD/target/regress

# Not run: they are about a cluster of their own (tablespace's folder), about counters that tell how long things took (stats), about how deep
# the server's stack is (infinite_recurse), or wait for replication workers. psql_crosstab is about psql alone.
skipped=(tablespace infinite_recurse stats psql_crosstab publication subscription)
# A bit of everything: types, queries, blocks and savepoints, cursors, functions, COPY.
quick_files=(boolean int4 strings timestamptz select union subselect join portals transactions plpgsql copy2 with rangefuncs returning)
# A file that takes longer than this hangs.
limit=60

say() { printf 'regress: %s\n' "$*" >&2; }
fail() { printf 'regress: %s\n' "$@" >&2; exit 1; }

# ---- what was asked for

asked=()
isolation=
quick=${QUICK:-}
keep=
crowd=
lines=12
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=1 ;;
        --isolation) isolation=1 ;;
        --keep) keep=1 ;;
        --crowd) crowd=1 ;;
        --lines) lines=${2:?--lines takes a number}; shift ;;
        -*) fail "unknown option $1" ;;
        *) asked+=("$1") ;;
    esac
    shift
done
if [ -n "$isolation" ]; then
    known=$PWD/tests/regress/isolation.txt
    skipped=()
    # Serializable, row locks, deadlocks, ON CONFLICT, NOWAIT, SKIP LOCKED, DDL beside them, NOTIFY.
    quick_files=(simple-write-skew deadlock-hard fk-contention eval-plan-qual-trigger insert-conflict-do-update nowait-4 skip-locked-4
        alter-table-3 async-notify inherit-temp)
    limit=180
    # A session of these cancels a process id that another one has stored between two transactions, and that is somebody else's by then.
    [ -z "$crowd" ] || skipped=(detach-partition-concurrently-3 detach-partition-concurrently-4)
fi
# A few files may have too few reads for two standbys.
few=
[ ${#asked[@]} -eq 0 ] || few=1
if [ -n "$quick" ] && [ ${#asked[@]} -eq 0 ]; then asked=("${quick_files[@]}"); fi

# ---- set-up: each step is left out when its result is there

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

apt_install() {
    command -v apt-get >/dev/null || fail "this machine lacks $*, and has no apt-get: install them, and start again"
    say "installing $*"
    as_root apt-get update -q </dev/null >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" </dev/null >&2
}

# apt with lists and caches of its own, and this machine's sources with source packages added: nothing outside of the cache changes.
apt_prepare() {
    local from
    mkdir -p "$cache/apt/sources" "$cache/apt/lists/partial" "$cache/apt/cache/archives/partial"
    rm -f "$cache/apt/sources"/*
    for from in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -e "$from" ] && sed -n -E 's/^deb([[:space:]])/deb-src\1/p; /^deb[[:space:]]/p' "$from" >"$cache/apt/sources/$(basename "$from" .list).list"
    done
    for from in /etc/apt/sources.list.d/*.sources; do
        [ -e "$from" ] && sed -E 's/^Types:.*/Types: deb deb-src/' "$from" >"$cache/apt/sources/$(basename "$from")"
    done
    apt_options=(-q -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$cache/apt/sources"
        -o "Dir::State::lists=$cache/apt/lists" -o "Dir::Cache=$cache/apt/cache" -o APT::Sandbox::User=root)
    apt-get "${apt_options[@]}" update </dev/null >&2 || say "some package lists are missing; going on without them"
}

# The installed version first; an archive that has moved on may only have another one of the same major, which does as well.
versions_of() {
    { dpkg-query -W -f '${Version}\n' "postgresql-$major" 2>/dev/null || true
        apt-cache "${apt_options[@]}" showsrc "postgresql-$major" | sed -n 's/^Version: //p'; } | awk '!seen[$0]++'
}

download_source() {
    local package=postgresql-$major version
    for version in $(versions_of); do
        say "downloading the source of $package, version $version"
        apt-get "${apt_options[@]}" source --download-only "$package=$version" </dev/null >&2 && return
    done
    fail "the package archive gave no source of $package"
}

# The server's headers are only unpacked: to install them would take the server itself to their version, below whatever runs of it.
download_headers() {
    local package=postgresql-server-dev-$major version
    for version in $(versions_of); do
        say "downloading $package, version $version"
        apt-get "${apt_options[@]}" download "$package=$version" </dev/null >&2 || continue
        dpkg-deb -x "$package"_*.deb headers
        return
    done
    fail "the package archive gave no $package"
}

# isolationtester finds out whether a session waits for another by the process ids that sessions are told at login. Through a pooler a
# session has one server process now and another later, and what it is told at login is only good for cancel requests. So this one asks
# by the sessions' names, which are in application_name, and waits_for() below looks up who works for them at that moment.
compile_isolationtester() {
    local from=$suite/src/test/isolation headers=$suite/download/headers/usr
    local include=$headers/include/postgresql asks='pg_catalog.pg_isolation_test_session_is_blocked($1,' told='psprintf("%d", conns[i].backend_pid)'
    grep -qF "$asks" "$from/isolationtester.c" && grep -qF "$told" "$from/isolationtester.c" ||
        fail "isolationtester asks for blocked sessions in another way than this script knows"
    python3 - "$from/isolationtester.c" "$asks" 'public.waits_for($1,' "$told" 'psprintf("%s", sessionname)' <<'PYTHON'
import sys

file, *pairs = sys.argv[1:]
text = open(file).read()
for old, new in zip(pairs[::2], pairs[1::2]):
    text = text.replace(old, new)
open(file, "w").write(text)
PYTHON
    cc -O1 -w -I"$from" -I"$suite/src/interfaces/libpq" -I"$include/$major/server" -I"$include" -o "$suite/lib/isolationtester" \
        "$from/isolationtester.c" "$from/specparse.c" -L"$headers/lib/postgresql/$major/lib" -lpgcommon -lpgport -l:libpq.so.5 >&2
}

# Modules are loaded by any minor version of the major whose headers they were compiled with.
setup_suite() {
    major=$("$pg_bin/postgres" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
    [ "$major" -ge 15 ] || fail "PostgreSQL $major is too old: before 15, the suite's files must be made from templates"
    suite=$cache/$major
    [ -e "$suite/ready" ] && [ -e "$suite/lib/isolationtester" ] && return
    command -v apt-get >/dev/null || fail "the suite comes from a source package, and this machine has no apt-get"
    command -v dpkg-source >/dev/null || apt_install dpkg-dev
    apt_prepare
    rm -rf "$suite"
    mkdir -p "$suite/download" "$suite/lib"
    (cd "$suite/download" && download_source && download_headers)
    tar xf "$suite"/download/*.orig.tar.* -C "$suite" --strip-components=1 --wildcards \
        '*/src/test/regress/*' '*/src/test/isolation/*' '*/src/interfaces/libpq/*.h' '*/contrib/spi/*'
    say "compiling the suite's modules"
    local include=$suite/download/headers/usr/include/postgresql module
    for module in src/test/regress/regress contrib/spi/autoinc contrib/spi/refint; do
        cc -shared -fPIC -O1 -w -I"$include/$major/server" -I"$include" -I"$suite/src/test/regress" \
            -o "$suite/lib/${module##*/}.so" "$suite/$module.c" >&2
    done
    compile_isolationtester
    rm -rf "$suite/download" "$cache/apt"
    touch "$suite/ready"
}

scripts/setup.sh >&2
command -v python3 >/dev/null || apt_install python3
pgsluice=${PGSLUICE:-}
if [ -z "$pgsluice" ]; then
    say "building"
    cargo build --release --locked --quiet
    pgsluice=target/release/pgsluice
fi
pgsluice=$(realpath "$pgsluice")

# ---- a folder, a cluster and a proxy, and their end

# The servers run as `postgres` where this runs as root, so the folder is one that everybody may enter.
dir=$(mktemp -d "${TMPDIR:-/tmp}/pgsluice-regress.XXXXXX")
chmod 755 "$dir"
lab=$dir/lab
proxy=
running=
crowders=()
finish() {
    local status=$?
    trap - EXIT
    # A second Ctrl-C must not leave the servers running.
    trap '' INT TERM
    if [ -n "$running" ]; then kill "$running" 2>/dev/null || true; fi
    # A crowder is a shell with a psql at its side, and ends with it; psql ends with the proxy.
    local one
    for one in "${crowders[@]}"; do kill "$one" 2>/dev/null || true; done
    if [ -n "$proxy" ]; then
        kill -KILL "$proxy" 2>/dev/null || true
        wait "$proxy" 2>/dev/null || true
    fi
    if [ -e "$lab" ]; then "$pgsluice" lab down --dir "$lab" >/dev/null 2>"$dir/down.log" || cat "$dir/down.log" >&2; fi
    if [ -n "$keep" ]; then say "outputs, differences and logs are in $dir"; else rm -rf "$dir"; fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

. scripts/cluster.sh

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

# One of those that crowd in: it takes a connection to each kind of node many times a second, and leaves other settings on it. It reads no
# tables, and never stays in a block, so that it keeps VACUUM and DDL from nothing.
crowder() {
    local settings=("datestyle = 'German, DMY'" "search_path = pg_catalog" "timezone = 'Asia/Kathmandu'" "enable_seqscan = off"
        "extra_float_digits = -9" "bytea_output = 'escape'" "intervalstyle = 'iso_8601'" "client_min_messages = 'error'")
    while :; do
        printf 'set %s;\n' "${settings[RANDOM % ${#settings[@]}]}"
        printf '/* pgsluice: %s */ select 1;\n' primary standby primary standby primary standby
        sleep 0.005
    done | "$pg_bin/psql" -X -q -h 127.0.0.1 -p "$((base + 3))" -U bench -d bench >/dev/null 2>"$dir/crowder$1.log"
}

start_crowd() {
    local one
    for one in 1 2 3; do
        crowder "$one" &
        crowders+=("$!")
    done
}

say "bringing up one primary and two standbys"
start_lab 5
pg_bin=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["pg_bin"])' "$dir/lab.json")
setup_suite

# The server reads the suite's data and loads its modules, and writes into results/.
schedule=src/test/regress/parallel_schedule
[ -z "$isolation" ] || schedule=src/test/isolation/isolation_schedule
cp -R "$suite/$(dirname "$schedule")" "$dir/suite"
cp -R "$suite/lib" "$dir/lib"
mkdir -p "$dir/build/results" "$dir/diffs"
chmod -R a+rX "$dir/suite" "$dir/lib"
chmod a+rwx "$dir/build" "$dir/build/results"

# ---- what runs, and in which order

# Lines "run NAME" and "first NAME" in the schedule's order. Every file may need the tables of test_setup and create_index; what else one
# needs is told in the schedule's comments: "# psql depends on create_am".
plan() {
    python3 - "$dir/suite/$(basename "$schedule")" "${skipped[*]}" "$@" <<'PYTHON'
import re, sys

schedule, skipped, asked = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
order, needs = [], {}
for line in open(schedule):
    if line.startswith("test:"):
        order += [name for name in line.split()[1:] if name not in skipped]
    elif found := re.match(r"#.*?(\w+) depends on ([\w, ]+)$", line):
        needs[found[1]] = re.findall(r"\w+", found[2])
for name in asked:
    if name in skipped:
        sys.exit(f"regress: {name} is not run, see the script")
    if name not in order:
        sys.exit(f"regress: the schedule has no {name}")

first, left = set(), list(asked)
while left:
    name = left.pop()
    for other in ["test_setup", "create_index"] + needs.get(name, []):
        if other in order and other not in first and order.index(other) < order.index(name):
            first.add(other)
            left.append(other)
for name in order:
    if not asked or name in asked:
        print("run", name)
    elif name in first:
        print("first", name)
PYTHON
}
plan "${asked[@]}" >"$dir/plan"

# ---- one pass over them

sql() { "$pg_bin/psql" -XAtq -h 127.0.0.1 -p "$base" -U bench -d postgres -c "$1" </dev/null; }
"$pg_bin/psql" -Xq -h 127.0.0.1 -p "$base" -U postgres -d postgres -c 'create role bench superuser login' </dev/null
# What one session has written the others are to see at once, wherever they read; the proxy promises that only for a session's own.
if [ -n "$isolation" ]; then
    sql "alter system set synchronous_standby_names = 'FIRST 2 (node2, node3)'"
    sql "alter system set synchronous_commit = remote_apply"
    sql 'select pg_reload_conf()' >/dev/null
    export PGSLUICE_MONITOR_INTERVAL=10ms
fi

# As pg_regress makes it.
new_database() {
    local role setting
    sql 'drop database if exists bench with (force)' 2>&1 | grep -v 'does not exist, skipping' >&2 || true
    for role in $(sql "select quote_ident(rolname) from pg_roles where rolname ~ '^regress'"); do sql "drop role $role"; done
    sql "create database bench template template0 lc_collate 'C' lc_ctype 'C'"
    for setting in lc_messages lc_monetary lc_numeric lc_time; do sql "alter database bench set $setting to 'C'"; done
    sql "alter database bench set bytea_output to 'hex'"
    sql "alter database bench set timezone_abbreviations to 'Default'"
    [ -z "$isolation" ] || waits_for
    wait_for_standbys
}

# Whether a session waits for another, by their names: see compile_isolationtester. A connection that nobody uses still has the name of who
# had it last; it holds no locks then.
waits_for() {
    "$pg_bin/psql" -Xq -h 127.0.0.1 -p "$base" -U bench -d bench <<'SQL'
create function public.waits_for(session text, sessions text[]) returns boolean language sql begin atomic
    select coalesce(bool_or(pg_isolation_test_session_is_blocked(waiting.pid, array(
        select pid from pg_stat_activity where split_part(application_name, '/', 3) = any (sessions)))), false)
    from pg_stat_activity waiting where split_part(application_name, '/', 3) = session and state = 'active';
end
SQL
}

wait_for_standbys() {
    local at
    at=$(sql 'select pg_current_wal_lsn()')
    for _ in $(seq 300); do
        [ "$(sql "select count(*) from pg_stat_replication where replay_lsn >= '$at'")" = 2 ] && return
        sleep 0.1
    done
    fail "the standbys do not follow"
}

# One file, to its output.
run_file() {
    local name=$1 port=$2 out=$3 status=0
    (
        cd "$dir/build"
        export PGHOST=127.0.0.1 PGPORT=$port PGUSER=bench PGTZ=PST8PDT PGDATESTYLE='Postgres, MDY' LC_MESSAGES=C LANG=C
        export PGOPTIONS='-c intervalstyle=postgres_verbose'
        if [ -n "$isolation" ]; then
            # A step that should wait, and isn't seen to, is cancelled so many seconds later.
            export PGISOLATIONTIMEOUT=10 PGAPPNAME=isolation/$name
            exec timeout --kill-after=5 "$limit" "$suite/lib/isolationtester" dbname=bench <"$dir/suite/specs/$name.spec" >"$out" 2>&1
        fi
        export PG_ABS_SRCDIR=$dir/suite PG_ABS_BUILDDIR=$dir/build PG_LIBDIR=$dir/lib PG_DLSUFFIX=.so
        exec timeout --kill-after=5 "$limit" "$pg_bin/psql" -X -a -q -d bench <"$dir/suite/sql/$name.sql" >"$out" 2>&1
    ) &
    running=$!
    wait "$running" || status=$?
    running=
    [ "$status" -eq 0 ] || echo "ended with status $status" >>"$out"
}

pass() {
    local way=$1 port=$2 kind name began=$SECONDS
    mkdir -p "$dir/$way/first"
    new_database
    if [ -n "$crowd" ] && [ "$way" = proxy ]; then start_crowd; fi
    while read -r kind name; do
        case $kind in
            run) run_file "$name" "$port" "$dir/$way/$name.out" ;;
            first) run_file "$name" "$base" "$dir/$way/first/$name.out" ;;
        esac
    done <"$dir/plan"
    say "$(grep -c '^run ' "$dir/plan") files, $way: $((SECONDS - began)) s"
}

# So that their logs tell which errors were whose.
for port in $((base + 1)) $((base + 2)); do
    "$pg_bin/psql" -Xq -h 127.0.0.1 -p "$port" -U postgres -d postgres -c "alter system set log_line_prefix = '%e '" \
        -c 'select pg_reload_conf()' </dev/null >/dev/null
done
pass direct "$base"
say "starting the proxy"
if [ -n "$crowd" ]; then
    # The isolation suite's sessions hold several connections at once.
    export PGSLUICE_POOL_SIZE=$([ -n "$isolation" ] && echo 10 || echo 4) PGSLUICE_MONITOR_INTERVAL=10ms
fi
start_proxy
pass proxy "$((base + 3))"

# ---- what differs

# What differs between any two runs: process ids, temporary schemas' numbers, OIDs. And who notifies, which isolationtester tells by a
# process id, too.
normal() {
    sed -E 's/PID [0-9]+/PID N/; s/(NOTIFY .* from ).*/\1N/; s/pg_temp_[0-9]+/pg_temp_N/g; s/[0-9]{5,}/N/g' "$1"
}

# Why a file is known to differ; what is known with a crowd is no excuse without one.
reason() { sed -n -E "s/^$1[[:space:]]+//p" "$known" | { if [ -n "$crowd" ]; then sed 's/^crowd: //'; else grep -v '^crowd: ' || true; fi; }; }

same=0
known_differ=()
unknown=()
surprises=()
while read -r kind name; do
    [ "$kind" = run ] || continue
    if diff -U 3 --label "$name, direct" --label "$name, through the proxy" \
        <(normal "$dir/direct/$name.out") <(normal "$dir/proxy/$name.out") >"$dir/diffs/$name.diff"; then
        rm "$dir/diffs/$name.diff"
        same=$((same + 1))
        [ -z "$(reason "$name")" ] || surprises+=("$name")
        continue
    fi
    if [ -n "$(reason "$name")" ]; then known_differ+=("$name"); else unknown+=("$name"); fi
    if [ "$lines" -gt 0 ]; then
        printf '\n%s\n' "$name${known_differ[*]:+$([ "${known_differ[-1]}" = "$name" ] && printf ' (known: %s)' "$(reason "$name")")}"
        head -n "$lines" "$dir/diffs/$name.diff" | sed 's/^/    /'
        rest=$(($(wc -l <"$dir/diffs/$name.diff") - lines))
        [ "$rest" -le 0 ] || printf '    … and %s lines more\n' "$rest"
    fi
done <"$dir/plan"

# What the proxy's metric of reads that ran again says, and which texts the standbys refused with these codes.
rescued() {
    python3 - "$lines" "$@" <<'PYTHON'
import collections, re, sys, urllib.request

lines, url, *logs = sys.argv[1:]
metrics = urllib.request.urlopen(url).read().decode()
again = {reason: int(count) for reason, count in re.findall(r'^pgsluice_retries_total\{reason="(\w+)"\} (\d+)', metrics, re.M)}
by_reason = ", ".join(f"{reason} {count}" for reason, count in sorted(again.items()))
print(f"{sum(again.values())} reads ran again on another node" + (f" ({by_reason})" if again else ""))
texts = collections.Counter()
for log in logs:
    entries = re.split(r"^(?=\w{5} [A-Z]+:  )", open(log, errors="replace").read(), flags=re.M)
    for entry, after in zip(entries, entries[1:]):
        code, text = entry[:5], re.match(r"\w{5} STATEMENT:  (.*)", after, re.S)
        if text and code in again and entry[6:].startswith("ERROR:"):
            texts[code, " ".join(text[1].split())[:120]] += 1
for (code, text), count in texts.most_common(int(lines)):
    print(f"    {count} x {code} {text}")
if len(texts) > int(lines) > 0:
    print(f"    … and {len(texts) - int(lines)} texts more")
PYTHON
}

# Files in which more errors through the proxy than directly are those of a node that only reads.
refusals_seen() {
    local kind name way counts
    while read -r kind name; do
        [ "$kind" = run ] || continue
        counts=()
        for way in direct proxy; do
            counts+=("$(grep -cE 'ERROR: .*(in a read-only transaction|during recovery|hot standby)' "$dir/$way/$name.out" || true)")
        done
        [ "${counts[1]}" -le "${counts[0]}" ] || printf '    %s: %s, directly %s\n' "$name" "${counts[1]}" "${counts[0]}"
    done <"$dir/plan"
}

failed=
# All of it would be the same through a proxy that sends everything to the primary.
read -r on_primary on_standbys idle_standbys < <("$pgsluice" status --json --url "http://127.0.0.1:$((base + 4))" | python3 -c '
import json, sys
nodes = json.load(sys.stdin)["nodes"]
standbys = [node["statements_read"] for node in nodes if node["role"] == "standby"]
total = sum(node["statements_read"] + node["statements_write"] for node in nodes)
print(total - sum(standbys), sum(standbys), standbys.count(0))')
printf '\nthe primary took %s statements of the proxy, the standbys %s\n' "$on_primary" "$on_standbys"
[ -n "$few" ] || [ "$idle_standbys" -eq 0 ] || { printf 'FAIL: a standby took none\n'; failed=1; }
# The net below the classifier: what looked like a read, and a standby refused. The standbys' logs have the texts.
rescued "http://127.0.0.1:$((base + 4))/metrics" "$lab/node2/postgresql.log" "$lab/node3/postgresql.log"
refused=$(refusals_seen)
[ -z "$refused" ] || { printf 'FAIL: clients were told what only a standby says\n%s\n' "$refused"; failed=1; }
# A session that panics closes one connection, which psql may survive.
if grep -A 2 -E 'panicked| ERROR ' "$dir/proxy.log" >"$dir/complaints"; then
    printf 'FAIL: the proxy complains\n'
    head -n 40 "$dir/complaints"
    failed=1
fi
[ ${#surprises[@]} -eq 0 ] || printf 'known to differ, but the same now: %s\n' "${surprises[*]}"
[ ${#known_differ[@]} -eq 0 ] || printf 'known to differ: %s\n' "${known_differ[*]}"
[ ${#unknown[@]} -eq 0 ] || printf 'differ: %s\n' "${unknown[*]}"
printf '%s of %s files the same, %s known to differ, %s others differ\n' \
    "$same" "$(grep -c '^run ' "$dir/plan")" "${#known_differ[@]}" "${#unknown[@]}"
[ -z "$failed" ] && [ ${#unknown[@]} -eq 0 ]
