"""Calls end in time, and daemons die only when they are killed."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterator

from tests.cluster.history import (
    Call,
    Create,
    Delete,
    Died,
    Final,
    GroupOpen,
    Hear,
    History,
    Listing,
    Nemesis,
    Open,
    Rename,
    Subscribe,
    Truncate,
    Write,
)
from tests.support.topic_log import Anomaly, Kind

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""What the kernel says of a mount without a daemon."""
BY_NAME = Open | Create | Delete | Rename | Truncate | Subscribe | GroupOpen | Listing
"""Calls for which the kernel locks the directory, or may."""
LONG = 10**9
"""Nanoseconds. Others in a directory do not notice that somebody was there for less."""
SEEN_S = 60
"""So long after a kill a death may be found that it explains."""


def check_calls(history: History, limit: int) -> Iterator[Anomaly]:
    """Judge the time of all calls, and each death; `limit` in nanoseconds."""
    pauses: dict[str, list[Nemesis]] = defaultdict(list)
    ends: dict[str, list[Nemesis]] = defaultdict(list)
    for nemesis in history.of(Nemesis):
        if nemesis.what == "pause":
            pauses[nemesis.mount].append(nemesis)
        elif nemesis.what in ("kill", "stop"):
            ends[nemesis.mount].append(nemesis)
    end = history.end
    yield from _check_alive(history, ends)
    for call in history.calls:
        began, ended = call.slowest or (call.began, min(call.ended, end))
        if ended - began <= limit or isinstance(call, Nemesis | Final):
            continue
        if call.ended <= end:
            began = max(began, _let_in(call, history))
        if isinstance(call, Hear) and call.waits:
            continue
        still = sum(max(0, min(ended, pause.ended) - max(began, pause.began)) for pause in pauses[call.mount])
        if ended - began - still > limit:
            yield Anomaly(Kind.HUNG, f"{call} took {(ended - began) / 1e9:.1f} s")
    for died in history.of(Died):
        if not any(n.began < died.began < n.ended + SEEN_S * 10**9 for n in ends[died.mount]):
            yield Anomaly(Kind.DIED, f"the daemon of {died.mount}, by {died.began}, status {died.status}")


def _let_in(call: Call, history: History) -> int:
    """Return when the kernel has let a call in, as far as others show it.

    It takes one write at a time of an inode, in their order; and of what makes, removes or looks up names
    in a directory (all calls are in one) one waits for another that takes long.
    """
    if isinstance(call, Write):
        ahead = [
            other.ended
            for other in history.of(Write)
            if other.mount == call.mount and other.ino == call.ino and other.began < call.began
        ]
    elif isinstance(call, BY_NAME):
        ahead = [
            other.ended
            for other in history.calls
            if other.mount == call.mount and isinstance(other, BY_NAME) and other.ended - other.began > LONG
        ]
    else:
        return 0
    return max((other for other in ahead if other < call.ended), default=0)


def _check_alive(history: History, ends: dict[str, list[Nemesis]]) -> Iterator[Anomaly]:
    """Check that no call says that a daemon is dead which nobody has ended; the first of each mount."""
    told: set[str] = set()
    for call in sorted(history.calls, key=lambda call: call.began):
        if call.errno in DEAD and call.mount not in told:
            # A handle of a daemon that was killed stays dead.
            if not any(nemesis.began < call.ended for nemesis in ends[call.mount]):
                yield Anomaly(Kind.DIED, f"the daemon of {call.mount}, by {call}")
            told.add(call.mount)
