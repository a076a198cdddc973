#!/usr/bin/env bash
# Unmounts dnpipefs from the given directory; harmless when it is not mounted there.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly mount=${1:?usage: scripts/stop.sh MOUNTPOINT}

if ! findmnt --noheadings --output SOURCE,FSTYPE --mountpoint "$mount" 2>/dev/null | grep -q dnpipefs; then
    echo "dnpipefs is not mounted at $mount"
elif [ -x .venv/bin/dnpipefs ]; then
    .venv/bin/dnpipefs umount "$mount"
else
    fusermount3 -u "$mount"
fi
