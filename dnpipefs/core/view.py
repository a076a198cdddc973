"""The view: a topic's log as one host sees it, a pure function of a snapshot and the events after it.

Input is one consistent read of epoch, head, last and the tail's keys at revision R, then every
event of the tail's key range from R+1 on, whole revisions in order. The tail's order is the order
of the batches' mod_revisions. Batch *contents* are not kept here, only where each lies.

Invariants:

1. Two views of a topic at the same revision are equal, whatever snapshots they began with.
2. Offsets within a generation never change: an entry's start is the sum of the sizes before it.
3. No entry is of another generation than the view's; between generations there are none, though
   batches of old ones may still lie in etcd.
4. Each writer's sequence numbers follow on one another; a gap or repeat means that the watch lost
   or doubled an event (old etcd releases could), raises ViewBroken, and the caller takes a new
   snapshot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dnpipefs.core.keys import TailKey
from dnpipefs.core.names import NO_GENERATION, START, Offset, Revision, SessionId
from dnpipefs.core.records import Head


class ViewBroken(Exception):
    """The events do not fit the view: snapshot again. Never reaches a user."""


@dataclass(frozen=True, slots=True)
class TailEntry:
    """Where one batch lies."""

    revision: Revision
    start: Offset
    first_message: int
    """How many messages of the generation come before it."""
    key: TailKey

    @property
    def end(self) -> Offset:
        """Offset behind its last byte."""
        return Offset(self.start + self.key.size)


@dataclass(frozen=True, slots=True)
class Appended:
    """A batch was put."""

    key: TailKey
    generation: Revision
    time_ns: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The topic was reset by the transaction of this revision: a generation began."""

    time_ns: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The generation ended, either by a reset that only deletes or with the topic."""


TailEvent = Appended | Reset | Ended


class Snapshot(NamedTuple):
    """One consistent read of a topic."""

    revision: Revision
    """The store's revision at the read."""
    generation: Revision
    """NO_GENERATION if there is none."""
    head: Head
    modified_ns: int
    tail: Sequence[tuple[Revision, TailKey]]
    """mod_revision and key of every batch, in any order, batches of old generations included."""


def measure(snapshot: Snapshot) -> tuple[Offset, int]:
    """Return end and number of messages that a view of *snapshot* has, without the pains of making one."""
    if snapshot.generation == NO_GENERATION:
        return START, 0
    end, messages = snapshot.head.offset, snapshot.head.messages
    for revision, key in snapshot.tail:
        if revision >= snapshot.generation:
            end = Offset(end + key.size)
            messages += key.messages
    return end, messages


class TopicView:
    """One topic's log at `revision`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.revision: Revision = snapshot.revision
        self.generation: Revision = snapshot.generation
        self.modified_ns: int = snapshot.modified_ns
        head = Head() if self.ended else snapshot.head
        self.first: Offset = head.first
        self._base: Offset = head.offset
        self._base_messages: int = head.messages
        self._entries: list[TailEntry] = []
        self._starts: list[Offset] = []
        self._sequences: dict[SessionId, int] = {}
        for revision, key in sorted(snapshot.tail):
            if revision >= snapshot.generation and not self.ended:
                self._append(revision, key)

    @property
    def ended(self) -> bool:
        """Whether there is no generation now."""
        return self.generation == NO_GENERATION

    @property
    def end(self) -> Offset:
        """Offset behind the last byte: the size of the file."""
        return self._entries[-1].end if self._entries else self._base

    @property
    def messages(self) -> int:
        """Messages of this generation up to `end`."""
        if not self._entries:
            return self._base_messages
        return self._entries[-1].first_message + self._entries[-1].key.messages

    @property
    def entries(self) -> Sequence[TailEntry]:
        """The tail, in order."""
        return self._entries

    def apply(self, revision: Revision, events: Iterable[TailEvent]) -> None:
        """Take in all events of one revision.

        Raises ViewBroken, after which the view must be thrown away.
        """
        if revision <= self.revision:
            raise ViewBroken(f"revision {revision} came after {self.revision}")
        for event in events:
            match event:
                case Appended(key, generation, time_ns):
                    if generation != self.generation:
                        raise ViewBroken(f"a batch of generation {generation} in {self.generation}")
                    self._append(revision, key)
                    self.modified_ns = time_ns
                case Reset(time_ns):
                    self._begin_generation(revision)
                    self.modified_ns = time_ns
                case Ended():
                    self._begin_generation(NO_GENERATION)
        self.revision = revision

    def locate(self, offset: Offset, size: int) -> list[TailEntry]:
        """Return the entries that hold bytes offset to offset + size, as far as they exist."""
        first = max(0, bisect_right(self._starts, offset) - 1)
        found: list[TailEntry] = []
        for index in range(first, len(self._entries)):
            entry = self._entries[index]
            if entry.start >= offset + size:
                break
            if entry.end > offset and entry.key.size:
                found.append(entry)
        return found

    def _begin_generation(self, generation: Revision) -> None:
        self.generation = generation
        self.first = self._base = START
        self._base_messages = 0
        self._entries = []
        self._starts = []
        # Sequence numbers go on: a session's appends are counted across generations.

    def _append(self, revision: Revision, key: TailKey) -> None:
        known = self._sequences.get(key.session)
        if known is not None and key.sequence != known + 1:
            raise ViewBroken(f"session {key.session:x} went from append {known} to {key.sequence}")
        self._sequences[key.session] = key.sequence
        start = self.end
        self._entries.append(TailEntry(revision, start, self.messages, key))
        self._starts.append(start)
