"""Judges one topic's log: what readers saw of it, by what writers and resetters were told.

The judge knows no order but what calls prove: what had returned before another call began came before it.
From what was read it puts the log together: where each message lies, and which messages lie in one
generation. One read(2) sees one generation; and of generations known to be alive at one moment there is
one. Times are nanoseconds of one monotonic clock.

1.  torn: bytes are not a whole message.
2.  phantom: a message nobody pushed here, whose push proved that it was not applied, or not begun yet.
3.  doubled: a message lies at two places.
4.  diverging: two readers have a message at different places, or different messages at one place.
5.  reordered: a message lies before one whose push had returned before its own began.
6.  lost: nobody has ever seen a message whose push had returned when an end of file was confirmed, although
    no reset can have removed it; or readers have all that lies around it.
7.  stale: an open or an end of file came before a message whose push had returned before it began.
8.  non-monotonic: the same of a message that another reader had been given before it began.
9.  resurrected: a message from before a reset lies in one generation with one from after it, or is in a
    handle that was opened (or brought up to date by an end of file) after the reset had returned.
10. deleted: a topic is pushed to, opened or read to its end after its deletion had returned.

A push whose outcome is unknown may be there, once, from its beginning on to the end of time, or not.
So may be a reset, from which it follows that after one nothing can be called lost, unless what was seen
around it proves that its generation lived on.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

from tests.support.messages import MessageId, Outcome, parse

NEVER = 1 << 62
"""When a call ends that has not ended."""
LONG_AGO = -1
EACH_LIMIT = 5
"""Anomalies of a kind that are told of one reader at one time: what is shifted is shifted to the end."""


class Kind(enum.Enum):
    """What can be wrong."""

    LOST = enum.auto()
    DOUBLED = enum.auto()
    TORN = enum.auto()
    PHANTOM = enum.auto()
    REORDERED = enum.auto()
    RESURRECTED = enum.auto()
    DIVERGING = enum.auto()
    STALE = enum.auto()
    NON_MONOTONIC = enum.auto()
    DELETED = enum.auto()
    EARLY = enum.auto()
    STALE_NAME = enum.auto()
    MISSING_NAME = enum.auto()
    HUNG = enum.auto()
    DIED = enum.auto()
    UNFINISHED = enum.auto()


class Anomaly(NamedTuple):
    """One thing that is wrong, and where."""

    kind: Kind
    text: str


@dataclass(slots=True)
class Push:
    """One message of one write."""

    id: MessageId
    outcome: Outcome
    began: int
    ended: int


@dataclass(slots=True)
class Reset:
    """One truncate to 0."""

    outcome: Outcome
    began: int
    ended: int


@dataclass(slots=True)
class Scan:
    """What one handle was given by reads from `offset` on, one after the other."""

    reader: str
    fresh: int
    """When the handle was opened, or last began a read that confirmed the end of file."""
    aligned: int
    """`fresh` of when it last read from the beginning; since then its offset is where a message begins."""
    ended: int
    offset: int
    data: bytes
    """What was read; it begins at a message, unless a reset moved everything."""
    end_began: int | None = None
    """When the read began that returned nothing; None if there was none."""
    sizes: Sequence[int] = ()
    """What each read(2) returned; empty: it was one read(2)."""
    base: int = 0
    """So many bytes at `offset` are the same that this reader was given earlier, and left out of `data`."""


@dataclass(slots=True)
class Size:
    """The size that an open for reading showed."""

    reader: str
    began: int
    ended: int
    size: int


class End(NamedTuple):
    """A proof that the topic ended at or before `offset` at some time between `began` and `ended`."""

    began: int
    ended: int
    offset: int
    what: str
    whole: bool = False
    """Everything up to there was read."""


class Resets:
    """What is known of the resets of a topic, to be asked in O(log n)."""

    def __init__(self, resets: Iterable[Reset]) -> None:
        possible = sorted(
            (reset.began, reset.ended if reset.outcome is Outcome.OK else NEVER)
            for reset in resets
            if reset.outcome is not Outcome.FAILED
        )
        self._began = [began for began, _ in possible]
        self._latest_end = list(accumulate((ended for _, ended in possible), max))
        done = sorted((ended, began) for began, ended in possible if ended != NEVER)
        self._done = [ended for ended, _ in done]
        self._latest_begin = list(accumulate((began for _, began in done), max))
        by_began = sorted((began, ended) for ended, began in done)
        self._done_began = [began for began, _ in by_began]
        self._earliest_end = list(accumulate((ended for _, ended in reversed(by_began)), min))[::-1]

    def __bool__(self) -> bool:
        return bool(self._began)

    def removed_until(self, time: int) -> int:
        """Return when what was pushed may last have been removed, as of `time`."""
        count = bisect_left(self._began, time)
        return self._latest_end[count - 1] if count else LONG_AGO

    def gone_before(self, time: int) -> int:
        """Return until when all that had been pushed is removed for who opens the topic at `time`."""
        count = bisect_left(self._done, time)
        return self._latest_begin[count - 1] if count else LONG_AGO

    def between(self, after: int, before: int) -> bool:
        """Tell whether a reset certainly began after `after` and ended before `before`."""
        at = bisect_left(self._done_began, after + 1)
        return at < len(self._done_began) and self._earliest_end[at] < before

    def during(self, began: int, ended: int) -> bool:
        """Tell whether one may have happened between two times."""
        return self.removed_until(ended) > began


class Lines:
    """Whose messages lines are; remembers, since every reader sees every line."""

    def __init__(self) -> None:
        self._known: dict[bytes, MessageId | None] = {}

    def __call__(self, line: bytes) -> MessageId | None:
        try:
            return self._known[line]
        except KeyError:
            found = self._known[line] = parse(line)
            return found


@dataclass(slots=True, eq=False)
class Entry:
    """A message and what is known of its place."""

    push: Push
    sure: int
    """When the push had returned success; NEVER if it has not."""
    offset: int = -1
    end: int = -1
    seen: int = NEVER
    """When a reader first had it for certain."""
    scan: int = -1
    above: Entry | None = None
    """Another one in the same generation; union-find."""

    @property
    def known(self) -> int:
        """Since when it was certainly in the topic."""
        return self.sure if self.sure < self.seen else self.seen

    def root(self) -> Entry:
        """Return the one that stands for its generation."""
        top = self
        while top.above is not None:
            top = top.above
        entry = self
        while entry.above is not None and entry is not top:
            entry.above, entry = top, entry.above
        return top

    def join(self, other: Entry) -> None:
        """Say that both lie in one generation."""
        mine, others = self.root(), other.root()
        if mine is not others:
            others.above = mine

    def __str__(self) -> str:
        at = f" at {self.offset}" if self.offset >= 0 else ""
        push = self.push
        return f"{push.id.writer} {push.id.number}{at} ({push.outcome.name} {push.began}-{push.ended})"


@dataclass
class TopicLog:
    """One topic from its creation on."""

    name: str
    lines: Lines = field(default_factory=Lines)
    pushes: list[Push] = field(default_factory=list)
    resets: list[Reset] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    deletions: list[Reset] = field(default_factory=list)
    """Attempts to delete it."""
    anomalies: list[Anomaly] = field(default_factory=list)
    entries: dict[MessageId, Entry] = field(default_factory=dict)

    def check(self) -> list[Anomaly]:
        """Return what is wrong; empty if nothing is."""
        for push in self.pushes:
            assert push.id not in self.entries, f"each message is pushed once: {push}"
            sure = push.ended if push.outcome is Outcome.OK else NEVER
            self.entries[push.id] = Entry(push, sure)
        self.removals = Resets([*self.resets, *self.deletions])
        self._known = bytearray()
        """What is known of the log of a topic that was never reset."""
        ends = [End(size.began, size.ended, size.size, f"{size.reader}: size at open") for size in self.sizes]
        for number, scan in enumerate(sorted(self.scans, key=lambda scan: scan.ended)):
            self._see(scan, number)
            if scan.end_began is not None:
                length = scan.offset + scan.base + len(scan.data)
                whole = not scan.offset and not self.removals.during(scan.fresh, scan.ended)
                what = f"{scan.reader}: end of file"
                ends.append(End(scan.end_began, scan.ended, length, what, whole or not self.removals))
        spans = self._generations()
        self._check_ends(ends, spans)
        self._check_deletions(ends)
        return self.anomalies

    def say(self, kind: Kind, text: str) -> None:
        """Add an anomaly."""
        self.anomalies.append(Anomaly(kind, f"{self.name}: {text}"))

    # What a scan shows

    def _see(self, scan: Scan, number: int) -> None:
        before = len(self.anomalies)
        at, data = scan.offset + scan.base, scan.data
        if scan.offset and self.removals.during(scan.aligned, scan.ended):
            # The offset may be one of another generation.
            first = data.find(b"\n") + 1
            if first and self.lines(data[:first]) is None:
                scan = replace(scan, base=scan.base + first, data=data[first:])
                at, data = at + first, data[first:]
        if not self.removals:
            skip = self._agreed(at, data)
            self._read(scan, number, at + skip, data[skip:], None)
            if at + skip == len(self._known) and len(self.anomalies) == before:
                self._known += data[skip:]
        elif self.removals.during(scan.fresh, scan.ended) and len(scan.sizes) > 1:
            self._read_across(scan, number, at, data)
        else:
            self._read(scan, number, at, data, None)
        del self.anomalies[before + EACH_LIMIT :]

    def _agreed(self, at: int, data: bytes) -> int:
        """Return how many bytes are as other readers had them, and need no second look."""
        common = len(data[: max(0, len(self._known) - at)])
        if common == 0 or memoryview(self._known)[at : at + common] != memoryview(data)[:common]:
            return 0
        return data.rfind(b"\n", 0, common) + 1

    def _read_across(self, scan: Scan, number: int, at: int, data: bytes) -> None:
        """Look at each read(2) by itself: a reset may have come in between."""
        last: Entry | None = None
        start, edge = 0, -scan.base
        for size in scan.sizes:
            edge += size
            if edge <= start:
                continue
            if at + start > 0 and last is None:
                # The rest of a line that began in another generation.
                first = data.find(b"\n", start) + 1
                if first and self.lines(data[start:first]) is None:
                    start = first
            stop = data.rfind(b"\n", start, max(start, edge)) + 1 or start
            crossing = data[stop : data.find(b"\n", edge) + 1] if stop < edge < len(data) else b""
            joined = bool(crossing) and self.lines(crossing) is not None
            if joined:
                stop += len(crossing)
            last = self._read(scan, number, at + start, data[start:stop], last)
            if not joined:
                start, last = max(start, edge), None
            else:
                start = stop

    def _read(self, scan: Scan, number: int, at: int, data: bytes, last: Entry | None) -> Entry | None:
        """Place the messages of contiguous bytes of one generation."""
        lines, entries, ended = self.lines, self.entries, scan.ended
        gone = self.removals.gone_before(scan.fresh) if self.removals else LONG_AGO
        for line in data.splitlines(keepends=True) if b"\r" not in data else _split(data):
            start, at = at, at + len(line)
            found = lines(line)
            if found is None:
                cut = at == scan.offset + scan.base + len(scan.data) and line[-1:] != b"\n"
                if cut and (scan.end_began is None or self.removals.during(scan.fresh, ended)):
                    continue
                self.say(Kind.TORN, f"{scan.reader}: at {start}: {line[:80]!r}")
                continue
            entry = entries.get(found)
            if entry is None or entry.push.outcome is Outcome.FAILED or entry.push.began > ended:
                what = entry or f"{found.writer} {found.number}, which nobody pushed here"
                self.say(Kind.PHANTOM, f"{scan.reader}: at {start}: {what}, seen by {ended}")
                continue
            if entry.offset < 0:
                entry.offset, entry.end, entry.seen = start, at, ended
            elif entry.offset != start:
                twice = entry.scan == number or (
                    start >= len(self._known)
                    if not self.removals
                    else last is not None and last.root() is entry.root()
                )
                kind = Kind.DOUBLED if twice else Kind.DIVERGING
                self.say(kind, f"{scan.reader}: at {start}: {entry}")
                continue
            if entry.sure < gone:
                text = f"{entry}, reset by {gone}, in what was opened at {scan.fresh}"
                self.say(Kind.RESURRECTED, f"{scan.reader}: {text}")
            entry.scan = number
            if last is not None and self.removals:
                last.join(entry)
            last = entry
        return last

    # What all of them together show

    def _generations(self) -> list[Span]:
        """Tell the generations apart, check each, and return the stretches that are known without a gap."""
        seen = [entry for entry in self.entries.values() if entry.offset >= 0]
        if not self.removals:
            groups = [seen] if seen else []
        else:
            by_root: dict[int, list[Entry]] = {}
            for entry in seen:
                by_root.setdefault(id(entry.root()), []).append(entry)
            groups = self._merged(list(by_root.values()))
        spans = []
        for group in groups:
            group.sort(key=lambda entry: entry.offset)
            self._check_order(group)
            self._check_resets(group)
            spans += _spans(group)
        return spans

    @staticmethod
    def _merged(groups: list[list[Entry]]) -> list[list[Entry]]:
        """Put together what was alive at one time, and so is one generation."""
        alive = sorted(((_alive(group), group) for group in groups), key=lambda pair: pair[0])
        merged: list[list[Entry]] = []
        until = LONG_AGO
        latest: list[Entry] | None = None
        for (since, to), group in alive:
            if latest is not None and since < min(until, to):
                latest[0].join(group[0])
                latest += group
            else:
                merged.append(group)
                if since < to:
                    latest = group
            if since < to:
                until = max(until, to)
        return merged

    def _check_order(self, group: list[Entry]) -> None:
        """Check one generation's messages, in the order of their places."""
        latest: Entry | None = None
        before: Entry | None = None
        numbers: dict[tuple[str, int], int] = {}
        for entry in group:
            push = entry.push
            if before is not None and entry.offset < before.end:
                self.say(Kind.DIVERGING, f"at one place: {before} and {entry}")
            before = entry
            if latest is not None and entry.sure < latest.push.began:
                self.say(Kind.REORDERED, f"{entry} behind {latest}")
            elif numbers.get((push.id.writer, push.began), -1) > push.id.number:
                self.say(Kind.REORDERED, f"{entry} behind later ones of the same write")
            if latest is None or push.began > latest.push.began:
                latest = entry
            numbers[push.id.writer, push.began] = push.id.number

    def _check_resets(self, group: list[Entry]) -> None:
        first = min(group, key=lambda entry: entry.sure)
        last = max(group, key=lambda entry: entry.push.began)
        if self.removals.between(first.sure, last.push.began):
            self.say(Kind.RESURRECTED, f"on both sides of a reset: {first} and {last}")

    def _check_ends(self, ends: list[End], spans: list[Span]) -> None:
        """Check what ends of file and sizes leave out."""
        ends.sort()
        alive = Alive(spans)
        required = Required(entry for entry in self.entries.values() if entry.offset >= 0)
        for end in ends:
            entry = required.until(
                end.began, min(self.removals.removed_until(end.ended), alive.since(end.ended))
            )
            if entry is not None and entry.end > end.offset:
                kind = Kind.STALE if entry.sure < end.began else Kind.NON_MONOTONIC
                self.say(kind, f"{end.what} {end.offset} at {end.began}-{end.ended} without {entry}")
        self._check_lost([end for end in ends if end.whole], alive)

    def _check_lost(self, ends: list[End], alive: Alive) -> None:
        """Check that what nobody has seen may have been removed before anybody could."""
        began = [end.began for end in ends]
        first_ended = ends[:]
        for at in range(len(ends) - 2, -1, -1):
            if first_ended[at + 1].ended < first_ended[at].ended:
                first_ended[at] = first_ended[at + 1]
        for entry in self.entries.values():
            if entry.sure == NEVER or entry.offset >= 0:
                continue
            at = bisect_left(began, entry.sure + 1)
            if at < len(ends) and self.removals.removed_until(first_ended[at].ended) < entry.push.began:
                end = first_ended[at]
                self.say(Kind.LOST, f"{entry}: not before {end.what} {end.offset} at {end.began}-{end.ended}")
            elif alive.around(entry):
                self.say(Kind.LOST, f"{entry}: readers have all that lies around it")

    def _check_deletions(self, ends: list[End]) -> None:
        gone = min((d.ended for d in self.deletions if d.outcome is Outcome.OK), default=NEVER)
        late = [entry for entry in self.entries.values() if entry.sure < NEVER and entry.push.began > gone]
        for entry in late[:EACH_LIMIT]:
            self.say(Kind.DELETED, f"{entry} was acknowledged, though deleted by {gone}")
        for end in [end for end in ends if end.began > gone][:EACH_LIMIT]:
            self.say(Kind.DELETED, f"{end.what} {end.offset} at {end.began}, though deleted by {gone}")


class Span(NamedTuple):
    """Between two times a generation was alive, and all is known that was pushed then."""

    since: int
    until: int


class Alive:
    """When generations were certainly alive."""

    def __init__(self, spans: list[Span]) -> None:
        spans.sort()
        self._since = [span.since for span in spans]
        self._until = list(accumulate((span.until for span in spans), max))
        self._whole: list[Span] = []
        for span in spans:
            if span.since >= span.until:
                continue
            if self._whole and span.since < self._whole[-1].until:
                last = self._whole.pop()
                span = Span(last.since, max(last.until, span.until))
            self._whole.append(span)
        self._starts = [span.since for span in self._whole]

    def around(self, entry: Entry) -> bool:
        """Tell whether all is known of what was pushed when this one was."""
        at = bisect_left(self._since, entry.push.began)
        return at > 0 and self._until[at - 1] > entry.sure

    def since(self, time: int) -> int:
        """Return since when the generation of `time` was certainly alive; NEVER if that is not known."""
        at = bisect_left(self._starts, time)
        return self._starts[at - 1] if at and self._whole[at - 1].until > time else NEVER


class Required:
    """The last message that must be in sight, asked with growing times.

    A Fenwick tree over when pushes began.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._waiting = sorted(entries, key=lambda entry: entry.known, reverse=True)
        self._began = sorted(entry.push.began for entry in self._waiting)
        self._tree: list[Entry | None] = [None] * (len(self._began) + 1)

    def until(self, time: int, removed: int) -> Entry | None:
        """Return the last one that was there before `time` and whose push began after `removed`."""
        size, tree = len(self._began), self._tree
        while self._waiting and self._waiting[-1].known < time:
            entry = self._waiting.pop()
            at = size - bisect_left(self._began, entry.push.began)
            while at <= size:
                top = tree[at]
                if top is None or top.end < entry.end:
                    tree[at] = entry
                at += at & -at
        at = size - bisect_left(self._began, removed + 1)
        last: Entry | None = None
        while at > 0:
            top = tree[at]
            if top is not None and (last is None or top.end > last.end):
                last = top
            at -= at & -at
        return last


def _split(data: bytes) -> list[bytes]:
    *whole, rest = data.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _alive(group: list[Entry]) -> Span:
    """Return from when to when a generation was certainly alive; it may end before it begins."""
    return Span(min(entry.known for entry in group), max(entry.push.began for entry in group))


def _spans(group: list[Entry]) -> list[Span]:
    """Return the time of each stretch of a generation that is known without a gap."""
    spans, start = [], 0
    for at in range(1, len(group) + 1):
        if at == len(group) or group[at].offset != group[at - 1].end:
            spans.append(_alive(group[start:at]))
            start = at
    return spans
