"""Reads of etcd as it was at one revision, in small steps, whatever is written meanwhile.

Every judgement is of one moment, so that a topic that is pushed to, sealed, trimmed, reset and renamed
while it is read looks as it did at that moment. When etcd has compacted the revision, `Compacted` says so,
and the caller begins again with a new moment.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Final

from dnpipefs import etcd
from dnpipefs.core.findings import Stored
from dnpipefs.core.keys import KeyRange
from dnpipefs.core.names import Revision
from dnpipefs.log.failures import TRANSIENT, timed_out

READS: Final = 100
"""Reads in one transaction: below etcd's 128 operations."""
READ_BYTES: Final = 1 << 20
"""Values asked for in one read; one value more at most."""
KEYS: Final = 500
"""Keys read at once where the values are small or not asked for."""
LARGE_VALUES: Final = 16
"""Likewise where values are of up to a megabyte: etcd reads them though it is asked for keys only."""


class Moment:
    """etcd at one revision."""

    def __init__(self, client: etcd.Client, revision: Revision, timeout: float) -> None:
        self._client: Final = client
        self._timeout: Final = timeout
        self.revision: Final = revision
        self.bytes = 0
        """How many bytes of values were read."""

    @classmethod
    async def now(cls, client: etcd.Client, key: bytes, timeout: float) -> Moment:
        """Return the present; *key* is any key that the user may read. Raises TimedOut, EtcdError."""
        moment = cls(client, Revision(0), timeout)
        [found] = await moment._read([etcd.get(key, keys_only=True)])
        return cls(client, Revision(found.revision), timeout)

    def again(self) -> Moment:
        """Return the same moment, of which nothing was read yet."""
        return Moment(self._client, self.revision, self._timeout)

    async def get(self, keys: Sequence[bytes]) -> list[Stored | None]:
        """Return keys, None for each that does not exist. The caller sees to it that they are small."""
        found: list[Stored | None] = []
        for first in range(0, len(keys), READS):
            reads = [etcd.get(key, revision=self.revision) for key in keys[first : first + READS]]
            found += [_first(result) for result in await self._read(reads)]
        return found

    async def look(
        self, keys: Sequence[bytes], ranges: Sequence[KeyRange]
    ) -> tuple[list[Stored | None], list[Stored | None]]:
        """Return what `get` and `first` do, of READS keys and ranges at most, in one read."""
        reads = [etcd.get(key, revision=self.revision) for key in keys]
        reads += [self._first_of(part) for part in ranges]
        found = [_first(result) for result in await self._read(reads)]
        return found[: len(keys)], found[len(keys) :]

    async def exists(self, key: bytes) -> bool:
        """Tell whether a key exists."""
        [found] = await self._read([etcd.get(key, revision=self.revision, keys_only=True)])
        return bool(found.kvs)

    async def first(self, ranges: Sequence[KeyRange]) -> list[Stored | None]:
        """Return the first key of each range, without its value; None for an empty one."""
        found: list[Stored | None] = []
        for start in range(0, len(ranges), READS):
            reads = [self._first_of(part) for part in ranges[start : start + READS]]
            found += [_first(result) for result in await self._read(reads)]
        return found

    async def scan(
        self, part: KeyRange, *, limit: int = KEYS, keys_only: bool = False
    ) -> AsyncGenerator[Stored, None]:
        """Yield all keys of a range, read *limit* at a time."""
        start = part.start
        while True:
            read = etcd.get(start, part.end, revision=self.revision, limit=limit, keys_only=keys_only)
            [result] = await self._read([read])
            for kv in result.kvs:
                yield _stored(kv)
            if not result.more:
                return
            start = result.kvs[-1].key + b"\0"

    def _first_of(self, part: KeyRange) -> etcd.Op:
        return etcd.get(part.start, part.end, revision=self.revision, limit=1, keys_only=True)

    async def _read(self, reads: Sequence[etcd.Op]) -> list[etcd.RangeResult]:
        try:
            result = await self._client.transaction((), reads, timeout=self._timeout)
        except TRANSIENT as error:
            raise timed_out(self._timeout, error) from error
        found = [answer for answer in result.responses if isinstance(answer, etcd.RangeResult)]
        self.bytes += sum([len(kv.value) for answer in found for kv in answer.kvs])
        return found


def groups(sizes: Iterable[int]) -> list[int]:
    """Return how many of what has these sizes to read at once, again and again to the end."""
    counts: list[int] = []
    count = total = 0
    for size in sizes:
        if count and (count == READS or total + size > READ_BYTES):
            counts.append(count)
            count = total = 0
        count += 1
        total += size
    return [*counts, count] if count else counts


def _first(result: etcd.RangeResult) -> Stored | None:
    return _stored(result.kvs[0]) if result.kvs else None


def _stored(kv: etcd.KeyValue) -> Stored:
    return Stored(kv.key, kv.value, Revision(kv.mod_revision), kv.version, kv.lease)
