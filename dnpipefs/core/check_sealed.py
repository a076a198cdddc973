"""Checks the sealed part of a topic: the index, segments, large batches. Rules S1 to S10. Pure.

The caller brings first the pages of the index, in order of their keys, then what is stored, piece by
piece; of each only a line of figures is kept. Where the index is wrong but every byte from the first
retained one to the head's offset was found in segments that verify, the index can be derived from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from dnpipefs.core import batch, segment
from dnpipefs.core.check_records import TopicState, telling
from dnpipefs.core.findings import REPAIR_KEYS, Finding, Repair, Rule, Stored, unchanged
from dnpipefs.core.keys import BodyKey, BodyPart, KeyRange, KeySchema
from dnpipefs.core.names import FileId, Offset
from dnpipefs.core.records import Head, Index, SegmentInfo
from dnpipefs.core.sealing import HEAD_SEGMENTS
from dnpipefs.core.view import SegmentEntry
from dnpipefs.errors import CorruptData, UnsupportedFormat

PAGE_ENTRIES: Final = 320
"""Entries in a page of an index that is derived."""
INDEX_LIMIT: Final = 1_000_000
"""Bytes of all pages of one: what a transaction takes, with room to spare."""
_INDEX_RULES: Final = {Rule.INDEX_PAGE, Rule.INDEX_GAP, Rule.INDEX_COUNTS}


class SealedCheck:
    """What is sealed of a topic in its present generation."""

    def __init__(self, keys: KeySchema, topic: FileId, state: TopicState, head: Head, now_ns: int) -> None:
        self._keys: Final = keys
        self._topic: Final = topic
        self._state: Final = state
        self._head: Final = head
        self._now_ns: Final = now_ns
        self._end: Offset | None = None
        """Where the index ends so far; None before its first entry."""
        self._messages: int | None = None
        self._verified: dict[Offset, SegmentInfo] = {}
        self._spare: dict[Offset, list[tuple[Stored, SegmentInfo]]] = {}
        """Segments that verify, and that the index does not refer to."""
        self._orphans: list[Stored] = []
        self._findings: list[Finding] = []
        self.entries: list[SegmentEntry] = []
        """The retained entries of the index, in order."""

    # ------------------------------------------------------------------ the index

    def page(self, stored: Stored) -> None:
        """Take in a page of the index."""
        try:
            _, start = self._keys.parse_index_page(self._topic, stored.key)
            index = Index.decode(stored.key, stored.value, start)
        except CorruptData as error:
            self._find(Rule.INDEX_PAGE, stored.key, str(error))
            return
        self._follow(stored.key, index)

    def finish_index(self) -> None:
        """Take in the entries in the head, after all pages."""
        head_key = self._keys.head(self._topic)
        self._follow(head_key, self._head.newest)
        begins = self.entries[0].start if self.entries else self._head.offset
        if begins > self._head.first:
            self._gap(head_key, self._head.first, begins)

    def _follow(self, key: bytes, index: Index) -> None:
        if self._end is not None and index.start > self._end:
            self._gap(key, max(self._end, self._head.first), index.start)
        elif self._end is not None and index.start < self._end:
            self._find(Rule.INDEX_GAP, key, f"it begins at {index.start}, before {self._end} where it should")
        elif self._messages is not None and index.first_message != self._messages:
            self._count(key, index.start, index.first_message, self._messages)
        start, messages = index.start, index.first_message
        for info in index.segments:
            entry = SegmentEntry(start, messages, info)
            if entry.end > self._head.first:
                if not self.entries and entry.start <= self._head.first:
                    self._judge_first(entry)
                self.entries.append(entry)
            start, messages = entry.end, entry.end_message
        self._end, self._messages = start, messages

    def _judge_first(self, entry: SegmentEntry) -> None:
        first, key = self._head.first, self._keys.head(self._topic)
        if entry.start < first:
            self._find(Rule.INDEX_GAP, key, f"the first retained byte {first} is inside of an entry")
        elif entry.first_message != self._head.first_message:
            self._count(key, first, self._head.first_message, entry.first_message)

    def _gap(self, key: bytes, start: Offset, end: Offset) -> None:
        what = f"the index says nothing of bytes {start} to {end}: the topic cannot be read"
        self._find(Rule.INDEX_GAP, key, what, (start, end))

    def _count(self, key: bytes, offset: Offset, said: int, counted: int) -> None:
        what = f"{said} messages before offset {offset}; the entries before say {counted}"
        self._find(Rule.INDEX_COUNTS, key, what)

    # ------------------------------------------------------------------ what it refers to

    def segment(self, entry: SegmentEntry, stored: Stored | None) -> None:
        """Judge a segment; None if there is none."""
        key = self._keys.segment(self._topic, self._state.generation, entry.start, entry.size)
        if stored is None:
            self._find(Rule.SEGMENT_MISSING, key, _lost(entry), _span(entry))
            return
        try:
            found = self._measure(stored)
        except (CorruptData, UnsupportedFormat) as error:
            self._find(Rule.SEGMENT_DAMAGED, key, f"{error}: {_lost(entry)}", _span(entry))
            return
        self._compare(key, entry, found)

    def body(self, entry: SegmentEntry, body: BodyKey, parts: Sequence[Stored | None]) -> None:
        """Judge a large batch by its parts."""
        findings, time_ns = judge_body(
            self._keys, self._topic, self._state, body, parts, (entry.size, entry.info.messages)
        )
        for rule, key, what in findings:
            self._find(rule, key, f"{what}: {_lost(entry)}", _span(entry))
        if time_ns is not None:
            key = self._keys.head(self._topic)
            self._compare(key, entry, entry.info._replace(oldest_ns=time_ns, newest_ns=time_ns))

    def unreferenced(self, stored: Stored) -> None:
        """Take in a segment of this generation that no entry refers to."""
        try:
            _, start, _ = self._keys.parse_segment(self._topic, stored.key)
            info = self._measure(stored)
        except (CorruptData, UnsupportedFormat):
            self._orphans.append(stored._replace(value=b""))
            return
        self._spare.setdefault(start, []).append((stored._replace(value=b""), info))

    def _measure(self, stored: Stored) -> SegmentInfo:
        """Return the entry that the index should have of a segment. Raises CorruptData."""
        generation, start, size = self._keys.parse_segment(self._topic, stored.key)
        found = segment.decode(stored.value)
        segment.verify(found)
        if (found.generation, found.offset, len(found.data)) != (generation, start, size):
            raise CorruptData(
                f"it says generation {found.generation}, offset {found.offset}, {len(found.data)} bytes"
            )
        times = [time_ns for _, time_ns in found.runs]
        return SegmentInfo(size, len(stored.value), found.messages, min(times), max(times))

    def _compare(self, key: bytes, entry: SegmentEntry, found: SegmentInfo) -> None:
        self._verified[entry.start] = found
        names = ("size", "stored", "messages", "oldest", "newest")
        wrong = [
            f"{name} {said}, is {is_}"
            for name, said, is_ in zip(names, entry.info[:5], found[:5], strict=True)
            if said != is_
        ]
        if wrong:
            self._find(Rule.INDEX_COUNTS, key, f"the entry at offset {entry.start}: {'; '.join(wrong)}")

    # ------------------------------------------------------------------ the end

    def finish(self) -> list[Finding]:
        """Return all findings, with repairs where there are any."""
        index_wrong = any(finding.rule in _INDEX_RULES for finding in self._findings)
        repair = self._derive_index() if index_wrong else None
        findings = [
            replace(finding, repair=repair, lost=finding.lost if repair is None else None)
            if finding.rule in _INDEX_RULES
            else finding
            for finding in self._findings
        ]
        if repair is None:  # else they may be what the index lacks
            self._orphans += [stored for spare in self._spare.values() for stored, _ in spare]
            guards = self._state.guards
            for stored in self._orphans:
                what = "no entry of the index refers to it"
                mend = None
                if not findings:  # all bytes are accounted for
                    mend = Repair("remove it", (*unchanged(stored), *guards), deletes=(stored.key,))
                findings.append(Finding(Rule.SEGMENT_ORPHAN, stored.key, what, self._topic, repair=mend))
        return findings

    def _derive_index(self) -> Repair | None:
        """Return the repair that writes the index anew; None unless every byte was found."""
        found: list[SegmentInfo] = []
        at, head = self._head.first, self._head
        while at < head.offset:
            spare = [info for _, info in self._spare.get(at, ())]
            choice = [self._verified[at]] if at in self._verified else spare
            if len(choice) != 1 or not choice[0].size:
                return None
            found += choice
            at = Offset(at + choice[0].size)
        if at != head.offset:
            return None
        if head.first == 0:
            head = replace(head, first_message=0)
        kept = found[-HEAD_SEGMENTS // 2 :]
        messages = head.first_message + sum([info.messages for info in found])
        head = replace(head, messages=messages, segments=kept)
        pages = self._pages(found[: len(found) - len(kept)], head)
        if len(pages) * 2 > REPAIR_KEYS or sum(len(value) for _, value in pages) > INDEX_LIMIT:
            return None
        what = "derive the index from the segments"
        told = telling(self._keys, self._topic, head, self._state.guards, what, self._now_ns)
        every = KeySchema.of_generation(self._keys.index(self._topic), self._state.generation)
        edges = [every.start, *(key for key, _ in pages), every.end]
        ranges = [
            KeyRange(start if index == 0 else start + b"\0", end)
            for index, (start, end) in enumerate(pairwise(edges))
        ]
        head_key = self._keys.head(self._topic)
        puts = (*told.puts, *pages, (head_key, head.encode()))
        return replace(told, puts=puts, ranges=tuple(ranges), touches=(self._keys.last(self._topic),))

    def _pages(self, entries: Sequence[SegmentInfo], head: Head) -> list[tuple[bytes, bytes]]:
        pages = []
        start, messages = head.first, head.first_message
        for first in range(0, len(entries), PAGE_ENTRIES):
            index = Index(start, messages, entries[first : first + PAGE_ENTRIES])
            key = self._keys.index_page(self._topic, self._state.generation, start)
            pages.append((key, index.encode()))
            start, messages = index.end, messages + sum([info.messages for info in index.segments])
        return pages

    def _find(self, rule: Rule, key: bytes, what: str, lost: tuple[Offset, Offset] | None = None) -> None:
        self._findings.append(Finding(rule, key, what, self._topic, lost))


def judge_body(
    keys: KeySchema,
    topic: FileId,
    state: TopicState,
    body: BodyKey,
    parts: Sequence[Stored | None],
    expected: tuple[int, int],
) -> tuple[list[tuple[Rule, bytes, str]], int | None]:
    """Judge a large batch of *expected* bytes and messages by its parts.

    Returns what is wrong (rule, key, what), and its time, None if something is.
    """
    names = keys.body_parts(topic, state.generation, body)
    missing = [key for key, part in zip(names, parts, strict=True) if part is None]
    if missing:
        return [(Rule.BODY_MISSING, missing[0], f"{len(missing)} of {len(names)} parts are missing")], None
    try:
        raw = b"".join([part.value for part in parts if part is not None])
        return [], _check_body(state, body, raw, expected).time_ns
    except (CorruptData, UnsupportedFormat) as error:
        return [(Rule.BODY_DAMAGED, names[0], str(error))], None


def _check_body(state: TopicState, body: BodyKey, raw: bytes, expected: tuple[int, int]) -> batch.Batch:
    found = batch.decode(raw)
    batch.verify(found)
    says = (found.generation, found.session, found.sequence, len(found.data), found.messages, len(raw))
    if says != (state.generation, body.session, body.sequence, *expected, body.beside.stored):
        raise CorruptData(
            f"it says generation {says[0]}, append {says[2]} of session {says[1]:x}, {says[3]} bytes, "
            f"{says[4]} messages, {says[5]} bytes stored"
        )
    return found


def judge_orphan_body(
    keys: KeySchema, topic: FileId, state: TopicState, parts: Sequence[Stored], *, mendable: bool
) -> Finding:
    """Return the finding for parts of one large batch that neither index, tail nor an order refer to."""
    repair = None
    if mendable and len(parts) + len(state.guards) <= REPAIR_KEYS:
        guards = (*unchanged(*parts), *state.guards)
        repair = Repair("remove it", guards, deletes=tuple(part.key for part in parts))
    what = f"neither the index nor the tail refers to these {len(parts)} parts"
    return Finding(Rule.BODY_ORPHAN, parts[0].key, what, topic, repair=repair)


def name_of(part: BodyPart) -> tuple[int, int, int]:
    """Return what names the large batch of a part within its generation."""
    return part.session, part.sequence, part.attempt


def _lost(entry: SegmentEntry) -> str:
    messages = entry.info.messages
    return f"bytes {entry.start} to {entry.end}, {messages} messages, are lost"


def _span(entry: SegmentEntry) -> tuple[Offset, Offset]:
    return entry.start, entry.end
