#!/usr/bin/env bash
# The differential fuzz of the classes (fuzz/classes): mutated statements, judged by pgsluice and by PostgreSQL's own grammar. Sets up what it
# takes to build the grammar, and builds it in a folder of its own. The exit status is 0 if they agree.
#
#   scripts/fuzz.sh                       a million tries over all cores
#   scripts/fuzz.sh 10000000 --seed 7     others, and more
#   scripts/fuzz.sh --seed 7 --only 42    one try, and what both say of it
#   scripts/fuzz.sh --live 20000          what is called a read runs on a standby too, and on its primary; brings up a cluster
set -euo pipefail

cd "$(dirname "$0")/.."
PATH="$PATH:${HOME:-/root}/.cargo/bin"

say() { printf 'fuzz: %s\n' "$*" >&2; }
fail() { printf 'fuzz: %s\n' "$@" >&2; exit 1; }
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

live=
arguments=()
for argument in "$@"; do
    if [ "$argument" = --live ]; then live=1; else arguments+=("$argument"); fi
done

# The C library is built by make and a C compiler; its bindings are made by libclang, and its messages by protoc.
missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v make >/dev/null || missing+=(make)
command -v protoc >/dev/null || missing+=(protobuf-compiler)
ldconfig -p | grep -q 'libclang[-.0-9]*\.so' || missing+=(libclang-dev)
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || fail "this machine lacks ${missing[*]}, and has no apt-get: install them, and start again"
    say "installing ${missing[*]}"
    as_root apt-get update -q </dev/null >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" </dev/null >&2
fi
PROTOC=$(command -v protoc)
export PROTOC
# Without --locked: a change of the product's dependencies is no reason to fail.
(cd fuzz/classes && cargo build --release)
fuzz=fuzz/classes/target/release/fuzz-classes

if [ -z "$live" ]; then exec "$fuzz" ${arguments[@]+"${arguments[@]}"}; fi

pgsluice=${PGSLUICE:-target/debug/pgsluice}
[ -x "$pgsluice" ] || cargo build --locked
dir=$(mktemp -d "${TMPDIR:-/tmp}/pgsluice-fuzz.XXXXXX")
chmod 755 "$dir"
lab=$dir/lab
finish() {
    local status=$?
    trap - EXIT
    if [ -e "$lab" ]; then "$pgsluice" lab down --dir "$lab" >/dev/null 2>&1 || status=1; fi
    rm -rf "$dir"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# shellcheck source=scripts/cluster.sh
. scripts/cluster.sh
start_lab 3
user=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["user"])' "$dir/lab.json")
"$fuzz" --user "$user" --primary "$base" --standby $((base + 1)) ${arguments[@]+"${arguments[@]}"}
