"""The view: a topic's log as one host sees it, a pure function of a snapshot and the events after it.

Input is one consistent read of epoch, head, last, index and the tail's keys at revision R, then every
event of the tail's key range from R+1 on, whole revisions in order. The log is its sealed part, in
segments, and behind it the tail, whose order is the order of the batches' mod_revisions. *Contents*
are not kept here, only where each stretch lies.

Invariants:

1. Two views of a topic at the same revision are equal, whatever snapshots they began with.
2. Offsets within a generation never change: an entry's start is the sum of the sizes before it.
   Sealing puts other entries in the place of those that hold the same bytes; trimming takes entries
   away from the front and moves nothing.
3. No entry is of another generation than the view's; between generations there are none, though
   batches of old ones may still lie in etcd.
4. Each writer's sequence numbers follow on one another; a gap or repeat means that the watch lost
   or doubled an event (old etcd releases could), raises ViewBroken, and the caller takes a new
   snapshot. So does a seal or trim that does not fit what is there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final, NamedTuple

from dnpipefs.core.batch import HEADER_BYTES
from dnpipefs.core.keys import BodyKey, TailKey
from dnpipefs.core.names import NO_GENERATION, START, Offset, Revision, SessionId
from dnpipefs.core.records import Head, Index, SegmentInfo


class ViewBroken(Exception):
    """The events do not fit the view: snapshot again. Never reaches a user."""


class SegmentEntry(NamedTuple):
    """A stretch of the sealed part."""

    start: Offset
    first_message: int
    """How many messages of the generation come before it."""
    info: SegmentInfo

    @property
    def end(self) -> Offset:
        """Offset behind its last byte."""
        return Offset(self.start + self.info.size)

    @property
    def end_message(self) -> int:
        """How many messages of the generation there are up to its end."""
        return self.first_message + self.info.messages

    @property
    def size(self) -> int:
        """Bytes of message data."""
        return self.info.size

    @property
    def stored(self) -> int:
        """Bytes it takes in etcd."""
        return self.info.stored

    @property
    def body(self) -> BodyKey | None:
        """The large batch that it is, None if it is a segment."""
        return self.info.body


class TailEntry(NamedTuple):
    """A batch of the tail."""

    revision: Revision
    start: Offset
    first_message: int
    """How many messages of the generation come before it."""
    key: TailKey

    @property
    def end(self) -> Offset:
        """Offset behind its last byte."""
        return Offset(self.start + self.key.size)

    @property
    def end_message(self) -> int:
        """How many messages of the generation there are up to its end."""
        return self.first_message + self.key.messages

    @property
    def size(self) -> int:
        """Bytes of message data."""
        return self.key.size

    @property
    def stored(self) -> int:
        """Bytes it takes in etcd."""
        return _stored(self.key)

    @property
    def body(self) -> BodyKey | None:
        """Where it lies if it is a large one that lies beside the tail."""
        session, sequence, _, _, beside = self.key
        return BodyKey(session, sequence, beside) if beside is not None else None


Entry = SegmentEntry | TailEntry
"""Where some of a log's bytes lie."""


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


@dataclass(frozen=True, slots=True)
class Sealed:
    """The index has new entries in the place of those from `start` on and of the oldest batches."""

    start: Offset
    first_message: int
    segments: Sequence[SegmentInfo]


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Retention removed what is before `first`."""

    first: Offset
    first_message: int
    """How many messages of the generation come before it."""


TailEvent = Appended | Sealed | Trimmed | Reset | Ended


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
    pages: Sequence[Index] = ()
    """The pages of the generation's index, in order; the newest entries are in the head."""


class Measures(NamedTuple):
    """How large a topic is, as the view's attributes of these names say."""

    end: Offset
    messages: int
    first: Offset
    first_message: int
    stored: int


def measure(snapshot: Snapshot) -> Measures | None:
    """Return what a view of *snapshot* would say, without the pains of making one.

    None if only the pages of the index tell all of it.
    """
    if snapshot.generation == NO_GENERATION:
        return Measures(START, 0, START, 0, 0)
    head = snapshot.head
    end, messages, stored = head.offset, head.messages, 0
    if head.segments or head.first != head.offset:
        start = head.newest.start
        if start > head.first:
            return None
        for info in head.segments:
            start = Offset(start + info.size)
            if start > head.first:
                stored += info.stored
    for revision, key in snapshot.tail:
        if revision >= snapshot.generation:
            end = Offset(end + key.size)
            messages += key.messages
            stored += _stored(key)
    return Measures(end, messages, head.first, head.first_message, stored)


def _stored(key: TailKey) -> int:
    """Return the bytes that a batch of the tail takes in etcd."""
    return HEADER_BYTES + key.size if key.beside is None else key.beside.stored


SEQUENCES_LIMIT: Final = 10_000
"""Sessions of which the last append is remembered, to check what a watch brings."""


class TopicView:
    """One topic's log at `revision`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.revision: Revision = snapshot.revision
        self.generation: Revision = snapshot.generation
        self.modified_ns: int = snapshot.modified_ns
        self._sequences: dict[SessionId, int] = {}
        """The last append of each session, the one that appended longest ago first."""
        self._start_empty()
        if self.ended:
            return
        self._load_sealed(snapshot.head, snapshot.pages)
        for revision, key in sorted(snapshot.tail, key=lambda batch: batch[0]):
            if revision >= snapshot.generation:
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
        """Messages of this generation up to `end`, those that retention removed included."""
        return self._entries[-1].end_message if self._entries else self._base_messages

    @property
    def entries(self) -> Sequence[TailEntry]:
        """The tail, in order."""
        return self._entries

    @property
    def sealed(self) -> Sequence[SegmentEntry]:
        """The sealed part, in order, as far as it is retained."""
        return self._sealed

    @property
    def stored(self) -> int:
        """Bytes that what is retained takes in etcd."""
        return self._stored

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
                case Sealed(start, first_message, segments):
                    self._seal(start, first_message, segments)
                case Trimmed(first, first_message):
                    self._trim(first, first_message)
                case Reset(time_ns):
                    self.generation = revision
                    self._start_empty()
                    self.modified_ns = time_ns
                case Ended():
                    self.generation = NO_GENERATION
                    self._start_empty()
        self.revision = revision

    def locate(self, offset: Offset, size: int) -> list[Entry]:
        """Return the entries that hold bytes offset to offset + size, as far as they exist."""
        found: list[Entry] = []
        for entry in self._from(offset):
            if entry.start >= offset + size:
                break
            if entry.end > offset and entry.size:
                found.append(entry)
        return found

    def holding(self, message: int) -> Entry | None:
        """Return the entry that holds the message of this number, None if there is none."""
        if not self.first_message <= message < self.messages:
            return None
        entries: Sequence[Entry] = self._entries if message >= self._base_messages else self._sealed
        return entries[bisect_right(entries, message, key=_first_message) - 1]

    def since(self, time_ns: int) -> Offset:
        """Return an offset before which no message is of *time_ns* or later, as far as the index tells."""
        for entry in self._sealed:
            if entry.info.newest_ns >= time_ns:
                return entry.start
        return max(self._base, self.first)

    def _from(self, offset: Offset) -> Iterator[Entry]:
        """Yield the entries from the one that holds *offset* on."""
        if offset >= self._base:
            index = max(0, bisect_right(self._starts, offset) - 1)
            return islice(iter(self._entries), index, None)
        index = max(0, bisect_right(self._sealed, offset, key=_start) - 1)
        return chain(islice(self._sealed, index, None), self._entries)

    def _start_empty(self) -> None:
        self.first: Offset = START
        self.first_message = 0
        self._base: Offset = START
        self._base_messages = 0
        self._sealed: list[SegmentEntry] = []
        self._entries: list[TailEntry] = []
        self._starts: list[Offset] = []
        self._stored = 0
        # Sequence numbers go on: a session's appends are counted across generations.

    def _load_sealed(self, head: Head, pages: Iterable[Index]) -> None:
        for page in (*pages, head.newest):
            if self._sealed and (page.start, page.first_message) != (self._base, self._base_messages):
                raise ViewBroken(f"the index has a gap or overlap at offset {self._base}")
            self._base, self._base_messages = page.start, page.first_message
            self._extend(page.segments)
        if (self._base, self._base_messages) != (head.offset, head.messages):
            raise ViewBroken(f"the index ends at offset {self._base}, the head says {head.offset}")
        begins = self._sealed[0].start if self._sealed else self._base
        if not begins <= head.first <= head.offset:
            raise ViewBroken(f"the index does not reach back to the first retained offset {head.first}")
        self._trim(head.first, head.first_message)
        for session, sequence in head.writers.items():
            self._sequences[SessionId(int(session, 16))] = sequence

    def _extend(self, segments: Iterable[SegmentInfo]) -> None:
        for info in segments:
            entry = SegmentEntry(self._base, self._base_messages, info)
            self._sealed.append(entry)
            self._stored += info.stored
            self._base, self._base_messages = entry.end, entry.end_message

    def _seal(self, start: Offset, first_message: int, segments: Sequence[SegmentInfo]) -> None:
        while self._sealed and self._sealed[-1].start >= start:
            replaced = self._sealed.pop()
            self._stored -= replaced.stored
            self._base, self._base_messages = replaced.start, replaced.first_message
        if (self._base, self._base_messages) != (start, first_message):
            raise ViewBroken(f"sealed from offset {start}, where no entry begins")
        end, messages = self.end, self.messages
        self._extend(segments)
        count = 0
        for entry in self._entries:
            if entry.end_message > self._base_messages:
                break
            self._stored -= entry.stored
            count += 1
        reached = self._entries[count - 1] if count else None
        behind = (reached.end, reached.end_message) if reached is not None else None
        if self._entries and behind != (self._base, self._base_messages):
            first = self._entries[0]
            if count or (first.start, first.first_message) != (self._base, self._base_messages):
                raise ViewBroken(f"sealed up to offset {self._base}, where no batch ends")
        del self._entries[:count]
        del self._starts[:count]
        if (self.end, self.messages) != (end, messages):
            raise ViewBroken(f"sealing moved the end from {end} to {self.end}")

    def _trim(self, first: Offset, first_message: int) -> None:
        if first < self.first or first > self._base:
            raise ViewBroken(f"trimmed to offset {first}, outside {self.first} to {self._base}")
        count = bisect_left(self._sealed, first, key=_end)
        while count < len(self._sealed) and self._sealed[count].end <= first:
            count += 1  # also what holds no bytes
        self._stored -= sum([entry.stored for entry in self._sealed[:count]])
        del self._sealed[:count]
        self.first, self.first_message = first, first_message

    def _append(self, revision: Revision, key: TailKey) -> None:
        known = self._sequences.pop(key.session, None)
        if known is not None and key.sequence != known + 1:
            raise ViewBroken(f"session {key.session:x} went from append {known} to {key.sequence}")
        self._sequences[key.session] = key.sequence
        if len(self._sequences) > SEQUENCES_LIMIT:
            del self._sequences[next(iter(self._sequences))]
        entry = TailEntry(revision, self.end, self.messages, key)
        self._entries.append(entry)
        self._starts.append(entry.start)
        self._stored += entry.stored


def _start(entry: SegmentEntry) -> Offset:
    return entry.start


def _first_message(entry: Entry) -> int:
    return entry.first_message


def _end(entry: SegmentEntry) -> Offset:
    return entry.end
