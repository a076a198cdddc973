#!/usr/bin/env bash
# Mounts dnpipefs at the given directory, pushes a first message through it and reads it back.
# Harmless when it is mounted already.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly mount=${1:?usage: scripts/run.sh MOUNTPOINT [OPTION of dnpipefs mount…]}
shift

fail() { echo "run: $*" >&2; exit 1; }
is_mounted() { findmnt --noheadings --output SOURCE,FSTYPE --mountpoint "$mount" 2>/dev/null | grep -q dnpipefs; }
answers() { ls "$mount" >/dev/null 2>&1; }

if is_mounted && answers; then
    echo "dnpipefs is already mounted at $mount"
else
    [ -e /dev/fuse ] || fail "no /dev/fuse: load the module (modprobe fuse), or give the container the device"
    # A dead daemon's mount can be neither made nor read; `mount` clears it away.
    is_mounted || mkdir -p "$mount" || fail "cannot make $mount: choose another, make run MOUNT=DIR"
    # Not the cluster that this machine may be configured for.
    DNPIPEFS_CONFIG=${DNPIPEFS_CONFIG-/dev/null} .venv/bin/dnpipefs mount "$@" "$mount"

    message="hello from $(uname -n) at $(date +%T)"
    echo "\$ echo '$message' > $mount/greetings"
    echo "$message" >"$mount/greetings"
    echo "\$ cat $mount/greetings"
    cat "$mount/greetings"
    grep -qxF "$message" "$mount/greetings" || fail "the message did not come back from $mount/greetings"
fi

cat <<NEXT

Topics are files in $mount now. In another shell, try
    tail -f $mount/greetings          history and then whatever comes
    date > $mount/greetings           push, from any program
    truncate -s 0 $mount/greetings    reset
and end it with
    make stop MOUNT=$mount
NEXT
