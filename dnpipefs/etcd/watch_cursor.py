"""Where one watcher stands, and what of the stream it gives on: pure, no I/O, no clock.

Owns the promises of a watch. They hold across reconnects, restarts and failover:

W1. Revisions rise strictly from batch to batch: nothing is delivered twice or backwards.
W2. A batch holds every event the watcher has in each of its revisions: never a part of a revision.
W3. `next_revision` is one more than the last delivered event's revision. Only an answer without
    events (created, progress) moves it to a header's revision, because a header that comes with
    events may already carry a newer revision than the events do (a catch-up).

Why W2 needs care: etcd never splits a revision between two responses (`watchBatchMaxRevs` counts
whole revisions), but with `fragment` it splits a response anywhere. Parts are put together again, and
what is complete is given on early, so that a long catch-up does not pile up.
"""

import enum
from collections.abc import Iterable
from typing import NamedTuple

from dnpipefs.etcd.model import KeyValue, key_value
from dnpipefs.etcd.proto import kv_pb2

EVENT_OVERHEAD = 300
"""Bytes an event takes in memory besides its key and value; for the backlog's account."""


class EventKind(enum.Enum):
    """What happened to a key."""

    PUT = kv_pb2.Event.PUT
    DELETE = kv_pb2.Event.DELETE


class Event(NamedTuple):
    """A change of one key. A deleted key's value is empty, its `mod_revision` says when."""

    kind: EventKind
    kv: KeyValue


class WatchBatch(NamedTuple):
    """Events of one or several whole revisions, oldest first; `revision` is the last of them."""

    revision: int
    events: tuple[Event, ...]

    @property
    def size(self) -> int:
        """Bytes it takes in memory, about."""
        return sum(len(event.kv.key) + len(event.kv.value) + EVENT_OVERHEAD for event in self.events)


class Cursor:
    """The state behind W1 to W3. `next_revision` 0 means: from when etcd has created the watcher."""

    __slots__ = ("_partial", "next_revision")

    def __init__(self, start_revision: int) -> None:
        self.next_revision = start_revision
        self._partial: list[Event] = []

    def created(self, header_revision: int) -> None:
        """Etcd has created the watcher at `header_revision`."""
        if self.next_revision == 0:
            self.next_revision = header_revision + 1

    def progressed(self, header_revision: int) -> None:
        """Etcd says, with no events: this watcher has had everything up to `header_revision`."""
        if not self._partial:
            self.next_revision = max(self.next_revision, header_revision + 1)

    def accept(self, events: Iterable[kv_pb2.Event], *, fragment: bool) -> WatchBatch | None:
        """Take a response's events; return what is complete. `fragment`: more of it follows."""
        pending = self._partial
        for event in events:
            if event.kv.mod_revision >= self.next_revision:
                kind = EventKind.PUT if event.type == kv_pb2.Event.PUT else EventKind.DELETE
                pending.append(Event(kind, key_value(event.kv)))
        complete = len(pending)
        if fragment and pending:
            last = pending[-1].kv.mod_revision
            while complete and pending[complete - 1].kv.mod_revision == last:
                complete -= 1
        if not complete:
            return None
        revision = pending[complete - 1].kv.mod_revision
        self.next_revision = revision + 1
        self._partial = pending[complete:]
        return WatchBatch(revision, tuple(pending[:complete]))

    def interrupted(self) -> None:
        """Forget the parts of an unfinished revision: the stream is gone, they will come again."""
        self._partial = []
