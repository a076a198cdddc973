"""Reads the namespace, and looks for what belongs to no topic of it.

The ids of the topics cut the range of each family of keys into pieces that are empty in a sound cluster, so
that looking for strangers reads nothing of the topics themselves.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Final

from dnpipefs.core.check_leftovers import Stranger, judge_bad_order, judge_stranger
from dnpipefs.core.check_names import Names, lost_and_found
from dnpipefs.core.findings import Finding, Rule, Stored
from dnpipefs.core.keys import KeyRange, KeySchema, prefix_range
from dnpipefs.core.names import ROOT, FileId
from dnpipefs.errors import CorruptData
from dnpipefs.fsck.reading import READS, Moment
from dnpipefs.fsck.topic import read_pendings, read_records

UNKNOWN_LIMIT: Final = 100
"""Unknown keys that are named; what is more is not looked at."""


async def read_names(moment: Moment, keys: KeySchema, now_ns: int) -> Names:
    """Read and judge all directory entries."""
    names = Names(keys, now_ns)
    async with aclosing(moment.scan(keys.namespace)) as entries:
        async for stored in entries:
            names.add(stored)
    [last] = await moment.get([keys.last_namespace])
    names.finish(last)
    return names


class Survey:
    """What lies below the prefix besides the namespace and its topics."""

    def __init__(self, moment: Moment, keys: KeySchema, names: Names, now_ns: int) -> None:
        self._moment: Final = moment
        self._keys: Final = keys
        self._names: Final = names
        self._now_ns: Final = now_ns

    async def strangers(self) -> AsyncGenerator[FileId | Stored, None]:
        """Yield each topic that has keys and no name, once, and each key that has no topic."""
        seen: set[FileId] = set()
        topics = list(self._names.topics)
        for family in self._keys.families:
            gaps = self._gaps(family, topics)
            while batch := list(islice(gaps, READS)):
                for gap, stored in zip(batch, await self._moment.first(batch), strict=True):
                    while stored is not None:
                        start = stored.key + b"\0"
                        try:
                            topic = self._keys.parse_topic(family, stored.key)
                        except CorruptData:
                            if stored.key != self._keys.last_namespace:
                                yield stored
                        else:
                            start = self._keys.of_topic(family, topic).end
                            if topic not in seen:
                                seen.add(topic)
                                yield topic
                        if start >= gap.end:
                            break
                        [stored] = await self._moment.first([KeyRange(start, gap.end)])

    def _gaps(self, family: KeyRange, topics: Sequence[FileId]) -> Iterator[KeyRange]:
        """Yield the pieces of a family that no topic has."""
        start = family.start
        for topic in topics:
            part = self._keys.of_topic(family, topic)
            yield KeyRange(start, part.start)
            start = part.end
        yield KeyRange(start, family.end)

    async def unknown(self) -> list[Finding]:
        """Return what lies outside of all families."""
        keys, known = self._keys, [self._keys.namespace, self._keys.sessions, *self._keys.families]
        known.append(keys.probes)  # of a doctor that is about
        known.append(KeyRange(keys.meta, keys.meta + b"\0"))
        everything = prefix_range(keys.prefix)
        findings: list[Finding] = []
        start = everything.start
        for part in [*sorted(known, key=lambda part: part.start), KeyRange(everything.end, everything.end)]:
            async with aclosing(
                self._moment.scan(KeyRange(start, part.start), limit=10, keys_only=True)
            ) as found:
                async for stored in found:
                    findings.append(unknown_key(stored))
                    if len(findings) == UNKNOWN_LIMIT:
                        return findings
            start = part.end
        return findings

    async def judge(self, stranger: FileId | Stored) -> list[Finding]:
        """Judge what `strangers` has yielded, as it is at this moment."""
        keys = self._keys
        if isinstance(stranger, Stored):
            [stored] = await self._moment.get([stranger.key])
            if stored is None:
                return []
            try:
                if stored.key.startswith(keys.all_trash.start):
                    keys.parse_trash(stored.key)
                elif stored.key.startswith(keys.all_pending.start):
                    keys.parse_pending(stored.key)
            except CorruptData as error:
                return [judge_bad_order(stored, error)]
            return [unknown_key(stored)]
        if await self._moment.exists(keys.entry(ROOT, lost_and_found(stranger))):
            return []  # attached a moment ago
        content = (keys.segments(stranger), keys.bodies(stranger))
        other = (keys.index(stranger), keys.writers(stranger), keys.groups(stranger))
        first = await self._moment.first((*content, *other))
        found = Stranger(
            stranger,
            await read_records(self._moment, keys, stranger),
            [
                one.key
                for one in (await self._first_batch(stranger), *first[: len(content)])
                if one is not None
            ],
            [one for one in first[len(content) :] if one is not None],
            await read_pendings(self._moment, keys, stranger),
        )
        return judge_stranger(keys, self._names, found, self._now_ns)

    async def _first_batch(self, topic: FileId) -> Stored | None:
        tail, mark = self._keys.tail(topic), self._keys.mark(topic)
        before, behind = await self._moment.first(
            [KeyRange(tail.start, mark), KeyRange(mark + b"\0", tail.end)]
        )
        return before or behind


def unknown_key(stored: Stored) -> Finding:
    """Return the note on a key of which this release knows nothing."""
    what = "of a later release, or put by hand; it does no harm"
    return Finding(Rule.UNKNOWN_KEY, stored.key, what)
