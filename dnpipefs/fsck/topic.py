"""Reads one topic at one moment and has it judged: records, sealed part, tail, groups, leftovers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import Final

from dnpipefs.core.check_groups import GroupCheck
from dnpipefs.core.check_leftovers import Pending, judge_generations, judge_pending
from dnpipefs.core.check_records import Records, TopicState, judge_newest, judge_records
from dnpipefs.core.check_sealed import SealedCheck, judge_orphan_body, name_of
from dnpipefs.core.check_tail import TailCheck
from dnpipefs.core.findings import Finding, Rule, Stored
from dnpipefs.core.keys import BodyKey, KeyRange, KeySchema, TailKey
from dnpipefs.core.names import FileId, Revision
from dnpipefs.core.records import Inode
from dnpipefs.core.tree import Entry
from dnpipefs.core.view import SegmentEntry
from dnpipefs.errors import CorruptData
from dnpipefs.fsck.reading import KEYS, LARGE_VALUES, Moment, groups

BodyName = tuple[int, int, int]
"""Session, sequence and attempt of a large batch."""


class TopicReader:
    """One topic at one moment."""

    def __init__(self, moment: Moment, keys: KeySchema, topic: FileId, now_ns: int) -> None:
        self._moment: Final = moment
        self._keys: Final = keys
        self._topic: Final = topic
        self._now_ns: Final = now_ns
        self._findings: list[Finding] = []
        self._referred: set[BodyName] = set()
        """Large batches that index, tail or orders refer to."""
        self._garbage: list[bytes] = []
        """The first key of each kind that is of an older generation."""
        self._first: dict[KeyRange, Stored | None] = {}
        """The first key of each range that is to be read: of most topics most are empty."""

    async def inspect(self, entry: Entry) -> list[Finding]:
        """Return what is wrong; nothing if the topic is deleted by now. Raises EtcdError."""
        keys, topic = self._keys, self._topic
        records = await self._look()
        if records.last is None and not await self._is_named(entry):
            return []
        state, self._findings = judge_records(keys, topic, records, self._now_ns)
        if not state.sound:  # nothing of it can be read, and so nothing be judged
            return self._findings
        await self._probe(state.generation)
        if state.generation and state.head is not None:
            await self._inspect_sealed(state)
        tail = await self._inspect_tail(state)
        self._findings += judge_newest(keys, topic, records, state.head, tail.newest, self._now_ns)
        # Where anything else is wrong, how many messages there are is not certain.
        certain = state.head is not None and not self._findings
        messages = state.head.messages + tail.messages if state.head is not None and certain else None
        await self._inspect_groups(state, messages)
        await self._inspect_leftovers(state, records)
        return self._findings

    async def _is_named(self, entry: Entry) -> bool:
        key = self._keys.entry(entry.parent, entry.name)
        [stored] = await self._moment.get([key])
        if stored is None:
            return False
        try:
            return Inode.decode(key, stored.value).id == self._topic
        except CorruptData:  # the namespace's business
            return False

    async def _look(self) -> Records:
        """Read the small keys, and what there is besides."""
        keys, topic = self._keys, self._topic
        ranges = [
            keys.writers(topic),
            keys.all_pending_of(topic),
            keys.groups(topic),
            *self._of_generations(),
        ]
        values, first = await self._moment.look(record_keys(keys, topic), ranges)
        self._first = dict(zip(ranges, first, strict=True))
        return Records(*values)

    async def _probe(self, generation: Revision) -> None:
        """See of which generations it is."""
        parts: list[KeyRange] = []
        for family in self._of_generations():
            split = (
                KeySchema.before_generation(family, generation),
                KeySchema.of_generation(family, generation),
                KeySchema.after_generation(family, generation),
            )
            if self._first[family] is not None:
                parts += split
            self._first |= dict.fromkeys(split)
        self._first |= dict(zip(parts, await self._moment.first(parts), strict=True))

    def _of_generations(self) -> tuple[KeyRange, ...]:
        """Return the ranges whose keys have the generation behind the topic, but for the orders."""
        keys, topic = self._keys, self._topic
        return keys.segments(topic), keys.index(topic), keys.bodies(topic)

    async def _scan(
        self, part: KeyRange, *, limit: int = KEYS, keys_only: bool = False
    ) -> AsyncGenerator[Stored, None]:
        """Yield all keys of a range that was probed."""
        if self._first[part] is not None:
            async with aclosing(self._moment.scan(part, limit=limit, keys_only=keys_only)) as found:
                async for stored in found:
                    yield stored

    def _firsts(self, parts: Iterable[KeyRange]) -> list[bytes]:
        """Return the first key of each range that was probed, if there is one."""
        return [first.key for part in parts if (first := self._first[part]) is not None]

    # ------------------------------------------------------------------ the sealed part

    async def _inspect_sealed(self, state: TopicState) -> None:
        if state.head is None:
            return
        check = SealedCheck(self._keys, self._topic, state, state.head, self._now_ns)
        pages = KeySchema.of_generation(self._keys.index(self._topic), state.generation)
        async with aclosing(self._scan(pages)) as stored_pages:
            async for stored in stored_pages:
                check.page(stored)
        check.finish_index()
        await self._read_segments(check, state.generation)
        for entry in check.entries:
            if entry.body is not None:
                self._referred.add(_name(entry.body))
                check.body(entry, entry.body, await self._read_body(state.generation, entry.body))
        self._findings += check.finish()

    async def _read_segments(self, check: SealedCheck, generation: Revision) -> None:
        """Walk the segments in the order of their keys, side by side with the entries of the index."""
        everything = KeySchema.of_generation(self._keys.segments(self._topic), generation)
        wanted = sorted((entry for entry in check.entries if entry.body is None), key=lambda entry: entry[0])
        start, done = everything.start, 0
        for count in groups([entry.stored for entry in wanted]):
            group = wanted[done : done + count]
            done += count
            expected = {self._segment_key(generation, entry): entry for entry in group}
            end = everything.end if done == len(wanted) else max(expected) + b"\0"
            await self._read_stretch(check, KeyRange(start, end), expected)
            start = end
        if not wanted and self._first[everything] is not None:
            await self._read_stretch(check, everything, {})

    async def _read_stretch(
        self, check: SealedCheck, part: KeyRange, expected: dict[bytes, SegmentEntry]
    ) -> None:
        if part.start >= part.end:  # entries that overlap
            return
        limit = max(len(expected), 1) + 1
        async with aclosing(self._moment.scan(part, limit=limit)) as segments:
            async for stored in segments:
                entry = expected.pop(stored.key, None)
                if entry is None:
                    check.unreferenced(stored)
                else:
                    check.segment(entry, stored)
        for entry in expected.values():
            check.segment(entry, None)

    def _segment_key(self, generation: Revision, entry: SegmentEntry) -> bytes:
        return self._keys.segment(self._topic, generation, entry.start, entry.size)

    async def _read_body(self, generation: Revision, body: BodyKey) -> list[Stored | None]:
        parts: list[Stored | None] = []
        for key in self._keys.body_parts(self._topic, generation, body):
            parts += await self._moment.get([key])
        return parts

    # ------------------------------------------------------------------ the tail

    async def _inspect_tail(self, state: TopicState) -> TailCheck:
        """Judge the tail and the writers; return what was seen of it."""
        check = TailCheck(self._keys, self._topic, state)
        batches: list[tuple[TailKey, Stored]] = []
        async with aclosing(self._moment.scan(self._keys.tail(self._topic), keys_only=True)) as found:
            async for stored in found:
                key = check.key(stored)
                if key is not None:
                    batches.append((key, stored))
                if len(batches) >= LARGE_VALUES * 16:
                    await self._read_batches(check, state, batches)
                    batches.clear()
        await self._read_batches(check, state, batches)
        if check.old is not None:
            self._garbage.append(check.old)
        async with aclosing(self._scan(self._keys.writers(self._topic))) as writers:
            async for stored in writers:
                lives = await self._lives(stored)
                check.writer(stored, session_lives=lives)
        self._findings += check.finish()
        return check

    async def _lives(self, writer: Stored) -> bool:
        try:
            session = self._keys.parse_writer(self._topic, writer.key)
        except CorruptData:
            return True  # to be left alone
        return writer.lease == session or await self._moment.exists(self._keys.session(session))

    async def _read_batches(
        self, check: TailCheck, state: TopicState, batches: Sequence[tuple[TailKey, Stored]]
    ) -> None:
        done = 0
        for count in groups([0 if key.beside else key.size for key, _ in batches]):
            group = batches[done : done + count]
            done += count
            values = await self._moment.get([stored.key for _, stored in group])
            for (key, _), stored in zip(group, values, strict=True):
                if stored is None:
                    continue  # not at one revision
                check.batch(key, stored)
                if key.beside is not None:
                    body = BodyKey(key.session, key.sequence, key.beside)
                    self._referred.add(_name(body))
                    check.body(key, stored.revision, await self._read_body(state.generation, body))

    # ------------------------------------------------------------------ groups

    async def _inspect_groups(self, state: TopicState, messages: int | None) -> None:
        """Judge the groups one by one: a group's keys lie together."""
        keys, topic = self._keys, self._topic
        check: GroupCheck | None = None
        name = b""
        async with aclosing(self._scan(keys.groups(topic))) as found:
            async for stored in found:
                try:
                    its, _ = keys.parse_group(topic, stored.key)
                except CorruptData as error:
                    self._findings.append(Finding(Rule.UNKNOWN_KEY, stored.key, str(error), topic))
                    continue
                if check is None or its != name:
                    self._findings += check.finish(messages) if check is not None else []
                    check, name = GroupCheck(keys, topic, state, its), its
                check.add(stored, session_lives=await self._member_lives(stored.key))
        self._findings += check.finish(messages) if check is not None else []

    async def _member_lives(self, key: bytes) -> bool:
        """Tell whether a key of a group is that of a member whose session lives."""
        if b"/member/" not in key:
            return False
        try:
            session = self._keys.parse_member(key)
        except CorruptData:
            return False
        return await self._moment.exists(self._keys.session(session))

    # ------------------------------------------------------------------ what nothing refers to

    async def _inspect_leftovers(self, state: TopicState, records: Records) -> None:
        keys, topic, generation = self._keys, self._topic, state.generation
        pendings = []
        if self._first[keys.all_pending_of(topic)] is not None:
            pendings = await read_pendings(self._moment, keys, topic)
        for pending in pendings:
            self._findings += judge_pending(keys, pending, ordered=state.ordered)
        covered = _covered(keys, pendings)
        if generation and state.head is not None:
            await self._inspect_bodies(state, covered)
        families, bodies = (keys.segments(topic), keys.index(topic)), keys.bodies(topic)
        later: list[bytes] = []
        if generation:
            older = [KeySchema.before_generation(family, generation) for family in families]
            newer = [KeySchema.after_generation(family, generation) for family in families]
            later += self._firsts(newer)
            # A host that does not know the generation yet puts parts below another number, with an order.
            later += await self._uncovered_body(KeySchema.after_generation(bodies, generation), covered)
            bodies = KeySchema.before_generation(bodies, generation)
        else:
            older = list(families)
        self._garbage += self._firsts(older)
        self._garbage += await self._uncovered_body(bodies, covered)
        self._findings += judge_generations(topic, state, self._garbage, later, records.trash, self._now_ns)

    async def _inspect_bodies(self, state: TopicState, covered: set[tuple[Revision, BodyName]]) -> None:
        """Look for large batches of this generation that nothing refers to."""
        bodies = KeySchema.of_generation(self._keys.bodies(self._topic), state.generation)
        mendable = not self._findings  # what index and tail refer to is known
        orphans: list[tuple[BodyName, Stored]] = []
        async with aclosing(self._scan(bodies, limit=LARGE_VALUES, keys_only=True)) as parts:
            async for stored in parts:
                try:
                    name = name_of(self._keys.parse_body_part(self._topic, stored.key))
                except CorruptData as error:
                    self._findings.append(Finding(Rule.UNKNOWN_KEY, stored.key, str(error), self._topic))
                    continue
                if name not in self._referred and (state.generation, name) not in covered:
                    orphans.append((name, stored))
        for _, group in groupby(orphans, key=lambda orphan: orphan[0]):
            found = [stored for _, stored in group]
            self._findings.append(judge_orphan_body(self._keys, self._topic, state, found, mendable=mendable))

    async def _uncovered_body(self, part: KeyRange, covered: set[tuple[Revision, BodyName]]) -> list[bytes]:
        """Return the first key in a range of large batches that no order is about, if there is one."""
        async with aclosing(self._scan(part, limit=LARGE_VALUES, keys_only=True)) as parts:
            async for stored in parts:
                try:
                    found = self._keys.parse_body_part(self._topic, stored.key)
                except CorruptData:
                    return [stored.key]
                if (found.generation, name_of(found)) not in covered:
                    return [stored.key]
        return []


async def read_records(moment: Moment, keys: KeySchema, topic: FileId) -> Records:
    """Read the small keys of a topic."""
    return Records(*await moment.get(record_keys(keys, topic)))


def record_keys(keys: KeySchema, topic: FileId) -> Sequence[bytes]:
    """Return the small keys of a topic, in the order of the fields of `Records`."""
    return keys.epoch(topic), keys.head(topic), keys.last(topic), keys.mark(topic), keys.trash(topic)


async def read_pendings(moment: Moment, keys: KeySchema, topic: FileId) -> list[Pending]:
    """Read the orders to remove parts of large batches, and whether their sessions live."""
    found = []
    async with aclosing(_pendings(moment, keys, topic)) as pendings:
        async for pending in pendings:
            found.append(pending)  # noqa: PERF401 - closed in time
    return found


async def _pendings(moment: Moment, keys: KeySchema, topic: FileId) -> AsyncGenerator[Pending, None]:
    async with aclosing(moment.scan(keys.all_pending_of(topic), keys_only=True)) as orders:
        async for stored in orders:
            try:
                _, _, body = keys.parse_pending(stored.key)
            except CorruptData:
                yield Pending(stored, session_lives=False)
            else:
                yield Pending(stored, session_lives=await moment.exists(keys.session(body.session)))


def _covered(keys: KeySchema, pendings: Sequence[Pending]) -> set[tuple[Revision, BodyName]]:
    covered = set()
    for pending in pendings:
        try:
            _, generation, body = keys.parse_pending(pending.stored.key)
        except CorruptData:
            continue
        covered.add((generation, _name(body)))
    return covered


def _name(body: BodyKey) -> BodyName:
    return body.session, body.sequence, body.beside.attempt
