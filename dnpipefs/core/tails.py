"""Which topics a host should look at, to see whether their tails want sealing. Only counts; pure.

======================  =======================================================================
event                   the topic is due
======================  =======================================================================
appended                IDLE_S after the last one; at once when much has come since the last look
noticed                 IDLE_S after the last one
again                   at the time it says, or earlier by the above; whether others were waited for
                        until then, and whether the tail was heavy, is told with it
settled                 not any more, unless something was appended since it was taken
======================  =======================================================================

Invariants:

1. What is due is returned by `take_due` once, and not again before `settled` or `again` or another append.
2. At most `limit` topics are remembered; the one touched longest ago goes first.

The time (seconds, monotonic) is an argument.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

from dnpipefs.core.names import FileId

LOOK_BYTES: Final = 1 << 20
"""Appended by this host since it last looked: bytes of message data that lie in the tail."""
LOOK_BATCHES: Final = 1_000
"""Likewise, batches."""
IDLE_S: Final = 5.0
"""A topic that nobody has appended to for so long is idle."""


class Due(NamedTuple):
    """A topic to look at."""

    topic: FileId
    idle: bool
    """Nothing has come for IDLE_S, as far as this host knows."""
    heavy: bool = False
    """LOOK_BYTES have come."""
    waited: bool = False
    """Others were given the time to seal it."""


@dataclass(slots=True)
class _Tail:
    touched: float
    batches: int = 0
    bytes: int = 0
    taken: bool = False
    """It was returned as idle, and nothing has come since."""
    waited: bool = False
    """Since the last look others are given time."""
    heavy: bool = False
    """That look was at LOOK_BYTES."""


class Tails:
    """Topics that were appended to and not looked at since, by when that was."""

    def __init__(self, limit: int) -> None:
        self._limit: Final = limit
        self._tails: OrderedDict[FileId, _Tail] = OrderedDict()
        """The one touched longest ago first."""
        self._full: dict[FileId, bool] = {}
        """Where much has come, and whether that is many bytes."""
        self._later: list[tuple[float, FileId]] = []

    def __len__(self) -> int:
        return len(self._tails)

    def appended(self, topic: FileId, size: int, now: float) -> None:
        """This host has appended a batch with *size* bytes in the tail (0 if it lies beside it)."""
        tail = self._touch(topic, now)
        tail.batches += 1
        tail.bytes += size
        if tail.batches >= LOOK_BATCHES or tail.bytes >= LOOK_BYTES:
            self._full[topic] = tail.bytes >= LOOK_BYTES

    def noticed(self, topic: FileId, now: float) -> None:
        """This host follows a topic and has seen an append."""
        self._touch(topic, now)

    def forget(self, topic: FileId) -> None:
        """The topic was deleted."""
        self._tails.pop(topic, None)
        self._full.pop(topic, None)

    def take_due(self, now: float) -> list[Due]:
        """Return the topics to look at now."""
        due = {topic: Due(topic, idle=False, heavy=heavy) for topic, heavy in self._full.items()}
        self._full.clear()
        while self._later and self._later[0][0] <= now:
            _, topic = heapq.heappop(self._later)
            if topic in self._tails:
                due[topic] = Due(topic, idle=now - self._tails[topic].touched >= IDLE_S)
        for topic, tail in self._tails.items():
            if now - tail.touched < IDLE_S:
                break
            if not tail.taken:
                due[topic] = Due(topic, idle=True)
        return [self._taken(found) for found in due.values()]

    def _taken(self, due: Due) -> Due:
        tail = self._tails[due.topic]
        due = due._replace(heavy=due.heavy or tail.heavy, waited=tail.waited)
        tail.taken, tail.batches, tail.bytes = tail.taken or due.idle, 0, 0
        tail.waited = tail.heavy = False
        return due

    def settled(self, topic: FileId) -> None:
        """The tail was found empty, or made so."""
        tail = self._tails.get(topic)
        if tail is not None and tail.taken and not tail.batches:
            del self._tails[topic]

    def again(self, topic: FileId, at: float, *, waiting: bool = False, heavy: bool = False) -> None:
        """Look once more at a time; *waiting*: others may seal it until then, and it is *heavy* or not."""
        tail = self._tails.get(topic)
        if tail is not None:
            tail.waited, tail.heavy = waiting, heavy
            heapq.heappush(self._later, (at, topic))

    def _touch(self, topic: FileId, now: float) -> _Tail:
        tail = self._tails.get(topic)
        if tail is None:
            tail = self._tails[topic] = _Tail(now)
            if len(self._tails) > self._limit:
                oldest, _ = self._tails.popitem(last=False)
                self._full.pop(oldest, None)
        else:
            tail.touched, tail.taken = now, False
            self._tails.move_to_end(topic)
        return tail
