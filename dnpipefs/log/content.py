"""The contents of batches: a cache with a byte limit in front of etcd, shared by all readers of a host.

A batch never changes, so there is nothing to invalidate: an entry is named by topic and revision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from dnpipefs import etcd
from dnpipefs.core.batch import Batch, decode
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Revision
from dnpipefs.core.view import TailEntry
from dnpipefs.log.failures import TRANSIENT, timed_out

CACHE_LIMIT: Final = 64 << 20
"""Bytes of memory that batches may take."""
ENTRY_OVERHEAD: Final = 600
"""Bytes a batch takes besides its data: objects, its name, its place in the order."""
FETCH_LIMIT: Final = 8 << 20
"""Bytes asked for in one read of etcd."""
FETCH_KEYS: Final = 120
"""Below etcd's 128 operations a transaction."""


class BatchCache:
    """Batches by topic and revision."""

    def __init__(
        self, client: etcd.Client, keys: KeySchema, *, op_timeout: float, limit: int = CACHE_LIMIT
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._op_timeout: Final = op_timeout
        self._limit: Final = limit
        self._batches: OrderedDict[tuple[FileId, Revision], bytes | Batch] = OrderedDict()
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes held, at most the limit (one larger batch excepted)."""
        return self._bytes

    def add(self, topic: FileId, revision: Revision, raw: bytes) -> None:
        """Keep an encoded batch that a watch delivered."""
        self._put((topic, revision), raw)

    async def fetch(self, topic: FileId, entries: Sequence[TailEntry]) -> list[Batch] | None:
        """Return the batches of *entries*; None if one is not in etcd any more (reset or sealed).

        Raises TimedOut, another EtcdError, CorruptData or UnsupportedFormat.
        """
        found: dict[Revision, Batch] = {}
        missing: list[TailEntry] = []
        for entry in entries:
            batch = self._get(topic, entry.revision)
            if batch is None:
                missing.append(entry)
            else:
                found[entry.revision] = batch
        for group in _groups(missing):
            reads = [etcd.get(self._keys.batch(topic, *entry.key)) for entry in group]
            try:
                result = await self._client.transaction((), reads, timeout=self._op_timeout)
            except TRANSIENT as error:
                raise timed_out(self._op_timeout, error) from error
            for entry, response in zip(group, result.responses, strict=True):
                assert isinstance(response, etcd.RangeResult)  # noqa: S101 - the client keeps the order
                if not response.kvs:
                    return None
                batch = decode(response.kvs[0].value)
                self._put((topic, entry.revision), batch)
                found[entry.revision] = batch
        return [found[entry.revision] for entry in entries]

    def _get(self, topic: FileId, revision: Revision) -> Batch | None:
        name = (topic, revision)
        held = self._batches.get(name)
        if held is None:
            return None
        self._batches.move_to_end(name)
        if isinstance(held, bytes):
            batch = self._batches[name] = decode(held)
            self._bytes += _size(batch) - _size(held)
            return batch
        return held

    def _put(self, name: tuple[FileId, Revision], batch: bytes | Batch) -> None:
        if name in self._batches:
            return
        self._batches[name] = batch
        self._bytes += _size(batch)
        while self._bytes > self._limit and len(self._batches) > 1:
            _, old = self._batches.popitem(last=False)
            self._bytes -= _size(old)


def _size(batch: bytes | Batch) -> int:
    return len(batch if isinstance(batch, bytes) else batch.data) + ENTRY_OVERHEAD


def _groups(entries: Sequence[TailEntry]) -> Iterator[list[TailEntry]]:
    group: list[TailEntry] = []
    size = 0
    for entry in entries:
        if group and (len(group) == FETCH_KEYS or size + entry.key.size > FETCH_LIMIT):
            yield group
            group, size = [], 0
        group.append(entry)
        size += entry.key.size
    if group:
        yield group
