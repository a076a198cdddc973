#!/usr/bin/env bash
# Prints the path of an etcd 3.5 server from a newer Debian suite, unpacked into .cache/ and not installed.
#
#     DNPIPEFS_TEST_ETCD=$(scripts/etcd_newer.sh [trixie|sid]) make test
#
# apt checks the archive's signatures as ever, but works on sources, lists and a cache of its own: the
# machine's package state is neither used nor changed. Exits 3, with one line, when there is no getting it.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly suite=${1:-trixie}
readonly mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cache=$(pwd -P)/.cache/etcd-$suite
readonly cache binary=$cache/unpacked/usr/bin/etcd

give_up() { echo "etcd_newer: no newer etcd: $*" >&2; rm -rf "$cache"; exit 3; }
complaint() { grep -m 1 '^E: ' "$cache/log" || tail -n 1 "$cache/log"; }
runs() { "$binary" --version >/dev/null 2>&1; }

if ! runs; then
    command -v apt-get >/dev/null || give_up "this machine has no apt-get"
    [ -r "$keyring" ] || give_up "Debian's keys are missing (apt-get install debian-archive-keyring)"
    mkdir -p "$cache"/{lists,archives}/partial
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$cache/sources.list"
    cat >"$cache/apt.conf" <<CONF
Dir::Etc::SourceList "$cache/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$cache/lists";
Dir::Cache "$cache";
Acquire::Languages "none";
Acquire::Retries "2";
APT::Sandbox::User "";
APT::Update::Post-Invoke "";
CONF
    export APT_CONFIG=$cache/apt.conf
    apt-get update -qq --error-on=any >"$cache/log" 2>&1 || give_up "$(complaint)"
    rm -f "$cache"/*.deb
    (cd "$cache" && apt-get download -qq etcd-server) >"$cache/log" 2>&1 || give_up "$(complaint)"
    rm -rf "$cache/unpacked"
    dpkg-deb -x "$cache"/etcd-server_*.deb "$cache/unpacked" || give_up "the package does not unpack"
    rm -rf "$cache"/{lists,archives} "$cache"/*.bin "$cache"/*.deb
    runs || give_up "$suite's etcd does not run on this machine: $("$binary" --version 2>&1 | tail -n 1)"
fi
echo "$binary"
