"""Sealing and trimming, planned: what of a tail becomes which segments, and what retention removes.

`plan_seal` looks at a view and says what one transaction shall do: take the oldest batches of the tail,
in order; merge the small ones among them into one segment, together with newest segments that are
small themselves; and enter the large ones into the index as they lie, without writing them again.

::

    before   segments  [ 900 K ][ 30 K ]      tail  5K 7K 2K [ 1 M beside ] 3K 1K
    step 1   segments  [ 900 K ][ 44 K ][ 1 M beside ]        tail  3K 1K
    step 2   segments  [ 900 K ][ 44 K ][ 1 M beside ][ 4 K ] tail  -

Merging follows the rule of a binary counter: a newest segment is merged if it is at most twice as large
as what comes to it. So a topic that gets a message a minute, sealed each time, has about log2 small
segments, and each byte is written about log2(SEGMENT_BYTES / message) times in all.

Invariants:

1. A plan covers a prefix of the tail, and a suffix of the segments; the bytes of its outcome are those
   bytes, in their order.
2. A plan's transaction stays within etcd's limits, whatever the tail holds.
3. `seal_all` of it ends: each plan that is not None makes the tail shorter.
4. Retention removes whole segments from the front, and none while what is left would be less than what
   the topic shall keep.

Pure: the time is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dnpipefs.core.names import Offset, SessionId
from dnpipefs.core.records import SegmentInfo
from dnpipefs.core.view import Entry, SegmentEntry, TailEntry, TopicView

SEGMENT_BYTES: Final = 1 << 20
"""What a segment grows to, bytes of message data; at most a batch more."""
LARGE_BYTES: Final = 256 << 10
"""A batch of that size or more lies beside the tail and is sealed as it is."""
STEP_BATCHES: Final = 2_000
"""Batches sealed in one transaction: their keys' deletion takes a few milliseconds."""
STEP_WRITERS: Final = 60
"""Writers in one transaction: each is a deletion, and there is room below etcd's 128 operations."""
STEP_LARGE: Final = 200
"""Batches entered into the index as they lie, in one transaction."""
STEP_MERGED: Final = 30
"""Segments merged in one transaction: a deletion each."""
HEAD_SEGMENTS: Final = 64
"""Entries of the index in the head; when there are more, the older half moves to a page."""
KEPT_WRITERS: Final = 32
"""A table of writers in the head above that is looked through for sessions that are gone."""
SPAN_PARTS: Final = 8
"""A segment is at most this part of what retention keeps, so that removing one removes little."""
MIN_SEGMENT_BYTES: Final = 4 << 10


class Retention(NamedTuple):
    """How much of a topic shall be kept; None: all of it."""

    bytes: int | None = None
    age_ns: int | None = None
    messages: int | None = None


KEEP_ALL: Final = Retention()


class Merge(NamedTuple):
    """Entries that become one segment."""

    entries: Sequence[Entry]

    @property
    def start(self) -> Offset:
        """Offset of its first byte."""
        return self.entries[0].start

    @property
    def size(self) -> int:
        """Bytes of message data."""
        return self.entries[-1].end - self.entries[0].start

    @property
    def messages(self) -> int:
        """How many there are."""
        return self.entries[-1].end_message - self.entries[0].first_message


class Keep(NamedTuple):
    """A large batch that goes into the index as it lies."""

    entry: TailEntry


Outcome = Merge | Keep


@dataclass(frozen=True, slots=True)
class SealPlan:
    """What one transaction shall do. Its outcomes follow on one another."""

    outcomes: Sequence[Outcome]
    batches: Sequence[TailEntry]
    """What leaves the tail, in order."""
    replaced: Sequence[SegmentEntry]
    """Newest segments that are merged, in order."""

    @property
    def start(self) -> Offset:
        """Where the index changes."""
        return (self.replaced or self.batches)[0].start

    @property
    def first_message(self) -> int:
        """How many messages come before that."""
        return (self.replaced or self.batches)[0].first_message

    @property
    def end(self) -> Offset:
        """Where the tail begins afterwards."""
        return self.batches[-1].end

    @property
    def end_message(self) -> int:
        """How many messages are sealed afterwards."""
        return self.batches[-1].end_message

    def sealed_through(self) -> dict[SessionId, int]:
        """Return the last sequence number of each writer that leaves the tail."""
        return {entry.key.session: entry.key.sequence for entry in self.batches}


class _Limits(NamedTuple):
    """How large a segment of a topic may be."""

    bytes: int
    messages: float
    span_ns: float

    @classmethod
    def of(cls, retention: Retention, size: int) -> _Limits:
        if retention.bytes is not None:
            size = min(size, max(MIN_SEGMENT_BYTES, retention.bytes // SPAN_PARTS))
        messages = float("inf")
        if retention.messages is not None:
            messages = max(1, retention.messages // SPAN_PARTS)
        span = float("inf") if retention.age_ns is None else max(1, retention.age_ns // SPAN_PARTS)
        return cls(size, messages, span)


def plan_seal(
    view: TopicView,
    retention: Retention = KEEP_ALL,
    *,
    mergeable: int,
    now_ns: int,
    segment_bytes: int = SEGMENT_BYTES,
) -> SealPlan | None:
    """Return what to do next, None if the tail is empty.

    At most the `mergeable` newest segments are merged: those that stand in the head. `now_ns` stands for the
    time of the tail's batches, which are young: it only bounds what is merged with them.
    """
    kept, unlimited = _Limits.of(retention, segment_bytes), _Limits.of(KEEP_ALL, segment_bytes)
    taken: list[TailEntry] = []
    outcomes: list[Outcome] = []
    small: list[TailEntry] = []
    writers: set[SessionId] = set()
    large = size = messages = 0
    merged = False
    for entry in view.entries:
        if len(taken) == STEP_BATCHES or (len(writers) == STEP_WRITERS and entry.key.session not in writers):
            break
        if entry.body is not None:
            if large == STEP_LARGE:
                break
            if small:
                outcomes.append(Merge(small))
                small, merged = [], True
            outcomes.append(Keep(entry))
            large += 1
        else:
            # What retention removes as soon as it is sealed may be large: it goes as a whole.
            limits = unlimited if _is_surplus(view, entry, retention) else kept
            full = small and (
                size + entry.size > limits.bytes
                or messages + entry.key.messages > limits.messages
                or (limits is kept and _is_surplus(view, small[-1], retention))
            )
            if merged or full:
                break
            small.append(entry)
            size += entry.size
            messages += entry.key.messages
        taken.append(entry)
        writers.add(entry.key.session)
    if not taken:
        return None
    if small:
        outcomes.append(Merge(small))
    replaced: list[SegmentEntry] = []
    if isinstance(outcomes[0], Merge):
        newest = view.sealed[-mergeable:] if mergeable else ()
        replaced = _mergeable(newest, kept, size=size, messages=messages, now_ns=now_ns)
        outcomes[0] = Merge([*replaced, *outcomes[0].entries])
    return SealPlan(outcomes, taken, replaced)


def _is_surplus(view: TopicView, entry: TailEntry, retention: Retention) -> bool:
    """Tell whether as much as retention keeps by bytes or messages has come behind an entry."""
    return (retention.bytes is not None and view.end - entry.end >= retention.bytes) or (
        retention.messages is not None and view.messages - entry.end_message >= retention.messages
    )


def _mergeable(
    sealed: Sequence[SegmentEntry], limits: _Limits, *, size: int, messages: int, now_ns: int
) -> list[SegmentEntry]:
    """Return the newest segments that are to be merged with *size* bytes behind them, in order."""
    found: list[SegmentEntry] = []
    for entry in reversed(sealed):
        info = entry.info
        if (
            len(found) == STEP_MERGED
            or info.body is not None
            or info.size > 2 * size
            or info.size + size > limits.bytes
            or info.messages + messages > limits.messages
            or now_ns - info.oldest_ns > limits.span_ns
        ):
            break
        found.append(entry)
        size += info.size
        messages += info.messages
    return found[::-1]


def plan_trim(view: TopicView, retention: Retention, *, now_ns: int) -> Sequence[SegmentEntry]:
    """Return the oldest segments that retention removes now, in order."""
    trimmed: list[SegmentEntry] = []
    for entry in view.sealed:
        too_much = retention.bytes is not None and view.end - entry.end >= retention.bytes
        too_many = retention.messages is not None and view.messages - entry.end_message >= retention.messages
        too_old = retention.age_ns is not None and entry.info.newest_ns < now_ns - retention.age_ns
        if not (too_much or too_many or too_old):
            break
        trimmed.append(entry)
    return trimmed


class Policy(NamedTuple):
    """What a topic's settings say of its log."""

    retention: Retention = KEEP_ALL
    compress: bool = True


def spill(segments: Sequence[SegmentInfo]) -> int:
    """Return how many of the oldest entries in the head are to move to a page of the index."""
    return len(segments) - HEAD_SEGMENTS // 2 if len(segments) > HEAD_SEGMENTS else 0
