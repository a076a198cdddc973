"""The contents of a log: what its bytes are read from, fetched from etcd, kept in one cache.

All readers of a host share the cache, which has a limit in bytes. What is stored under a key of a batch or
segment never changes, so there is nothing to invalidate: a block is named by its (first) key. Readers that
want the same block at the same time fetch it once.

Tasks: whoever fetches a block that nobody is fetching yet; the others wait for it. A fetch that ends
without the block, whatever the reason, leaves it to the next one who waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core import batch, segment
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Revision
from dnpipefs.core.segment import Block
from dnpipefs.core.view import Entry, SegmentEntry
from dnpipefs.errors import CorruptData
from dnpipefs.log.budget import Budget
from dnpipefs.log.failures import TRANSIENT, deadline, timed_out
from dnpipefs.metrics import CacheUse

CACHE_LIMIT: Final = 64 << 20
"""Bytes of memory that blocks may take, where nobody says otherwise."""
ENTRY_OVERHEAD: Final = 600
"""Bytes a block takes besides its data and tables: objects, its name, its place in the order."""
FETCH_LIMIT: Final = 8 << 20
"""Bytes asked for in one read of etcd, stored or unpacked, whichever is more; one large batch can be more."""
FETCHING_LIMIT: Final = 32 << 20
"""Bytes that all fetches of a host together may be asking for; beyond it they wait for one another."""
FETCH_KEYS: Final = 120
"""Below etcd's 128 operations a transaction."""


class Vanished(Exception):
    """An entry's keys are not in etcd (any more): it was sealed, merged, trimmed or reset.

    Catch up with the view and look again. Never reaches a user.
    """

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry)
        self.entry: Final = entry


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A block that is not in memory, and the keys whose values make it up."""

    entry: Entry
    keys: tuple[bytes, ...]


class Content:
    """Blocks (batches and segments) by key."""

    def __init__(
        self, client: etcd.Client, keys: KeySchema, *, op_timeout: float, limit: int = CACHE_LIMIT
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._op_timeout: Final = op_timeout
        self._limit: Final = limit
        self._blocks: OrderedDict[bytes, bytes | Block] = OrderedDict()
        self._bytes = 0
        self.use: Final = CacheUse()
        self._fetching: dict[bytes, trio.Event] = {}
        self._room: Final = Budget(FETCHING_LIMIT)

    @property
    def size(self) -> int:
        """Bytes held, at most the limit (one larger block excepted)."""
        return self._bytes

    @property
    def limit(self) -> int:
        """Bytes that blocks may take."""
        return self._limit

    def add(self, key: bytes, raw: bytes) -> None:
        """Keep an encoded batch that a watch delivered."""
        self._put(key, raw)

    def holds(self, topic: FileId, generation: Revision, entry: Entry) -> bool:
        """Tell whether a block is in memory or on its way there."""
        key = self._places(topic, generation, entry)[0]
        return key in self._blocks or key in self._fetching

    async def fetch(self, topic: FileId, generation: Revision, entries: Sequence[Entry]) -> list[Block]:
        """Return the blocks of *entries*.

        Raises Vanished, TimedOut, another EtcdError, CorruptData or UnsupportedFormat.
        """
        found: dict[bytes, Block] = {}
        places = [self._places(topic, generation, entry) for entry in entries]
        while True:
            missing: list[_Wanted] = []
            others: trio.Event | None = None
            for entry, keys in zip(entries, places, strict=True):
                if keys[0] in found:
                    continue
                block = self._get(keys[0])
                if block is not None:
                    found[keys[0]] = block
                    self.use.hits += 1
                elif keys[0] in self._fetching:
                    others = self._fetching[keys[0]]
                else:
                    missing.append(_Wanted(entry, keys))
            if missing:
                self.use.misses += len(missing)
                await self._fetch_all(missing, found)
            elif others is not None:
                await others.wait()
            else:
                return [found[keys[0]] for keys in places]

    async def _fetch_all(self, missing: Sequence[_Wanted], found: dict[bytes, Block]) -> None:
        arrived = trio.Event()
        for wanted in missing:
            self._fetching[wanted.keys[0]] = arrived
        try:
            for group in _groups(missing):
                cost = sum(map(_cost, group))
                with deadline(self._op_timeout):
                    await self._room.take(cost)
                try:
                    await self._fetch_group(group, found)
                finally:
                    self._room.give_back(cost)
        finally:
            for wanted in missing:
                del self._fetching[wanted.keys[0]]
            arrived.set()

    async def _fetch_group(self, group: Sequence[_Wanted], found: dict[bytes, Block]) -> None:
        reads = [etcd.get(key) for wanted in group for key in wanted.keys]
        try:
            result = await self._client.transaction((), reads, timeout=self._op_timeout)
        except TRANSIENT as error:
            raise timed_out(self._op_timeout, error) from error
        responses = iter(result.responses)
        for wanted in group:
            parts = []
            for _ in wanted.keys:
                response = next(responses)
                assert isinstance(response, etcd.RangeResult)  # noqa: S101 - the client keeps the order
                if not response.kvs:
                    raise Vanished(wanted.entry)
                parts.append(response.kvs[0].value)
            block = decode(wanted.entry, parts[0] if len(parts) == 1 else b"".join(parts))
            self._put(wanted.keys[0], block)
            found[wanted.keys[0]] = block

    def _places(self, topic: FileId, generation: Revision, entry: Entry) -> tuple[bytes, ...]:
        return places(self._keys, topic, generation, entry)

    def _get(self, key: bytes) -> Block | None:
        held = self._blocks.get(key)
        if held is None:
            return None
        self._blocks.move_to_end(key)
        if isinstance(held, bytes):
            block = self._blocks[key] = batch.decode(held)
            self._bytes += _size(block) - _size(held)
            return block
        return held

    def _put(self, key: bytes, block: bytes | Block) -> None:
        if key in self._blocks:
            return
        self._blocks[key] = block
        self._bytes += _size(block)
        while self._bytes > self._limit and len(self._blocks) > 1:
            _, old = self._blocks.popitem(last=False)
            self._bytes -= _size(old)


def places(keys: KeySchema, topic: FileId, generation: Revision, entry: Entry) -> tuple[bytes, ...]:
    """Return the keys whose values, joined, are what *entry* stands for."""
    body = entry.body
    if body is not None:
        return tuple(keys.body_parts(topic, generation, body))
    if isinstance(entry, SegmentEntry):
        return (keys.segment(topic, generation, entry.start, entry.size),)
    return (keys.batch(topic, *entry.key),)


def decode(entry: Entry, raw: bytes) -> Block:
    """Decode what *entry* stands for. Raises CorruptData, also if it is something else."""
    if isinstance(entry, SegmentEntry) and entry.body is None:
        sealed = segment.decode(raw)
        if (sealed.offset, len(sealed.data)) != (entry.start, entry.size):
            raise CorruptData(f"the segment at offset {entry.start} is another one than the index says")
        return sealed
    block = batch.decode(raw)
    if len(block.data) != entry.size:
        raise CorruptData(f"a batch has {len(block.data)} bytes, its key says {entry.size}")
    return block


def _size(block: bytes | Block) -> int:
    return (len(block) if isinstance(block, bytes) else block.held) + ENTRY_OVERHEAD


def _cost(wanted: _Wanted) -> int:
    """Return how much memory it may take to fetch a block, bytes."""
    return max(wanted.entry.stored, wanted.entry.size)


def _groups(wanted: Sequence[_Wanted]) -> Iterator[list[_Wanted]]:
    group: list[_Wanted] = []
    size = keys = 0
    for one in wanted:
        cost = _cost(one)
        if group and (keys + len(one.keys) > FETCH_KEYS or size + cost > FETCH_LIMIT):
            yield group
            group, size, keys = [], 0, 0
        group.append(one)
        size += cost
        keys += len(one.keys)
    if group:
        yield group
