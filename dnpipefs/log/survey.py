"""Sizes of many topics in few reads: for whoever lists a directory and stats what is in it.

What a look settles and what is left is `core/survey.py`'s business; this module reads. A survey only
saves reads: a topic whose size it does not bring (it was deleted, its records do not parse, etcd does
not answer) is asked for, and complained of, by the stat that wants it.

Tasks: READERS of `Surveyor.run`; each holds one group of topics across its reads.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core import survey
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import NO_GENERATION, FileId, Revision
from dnpipefs.core.records import EMPTY_HEAD_VALUE, Head, decode_time
from dnpipefs.core.sizes import KnownSize, KnownSizes
from dnpipefs.core.survey import Last, Look
from dnpipefs.core.view import Snapshot, measure
from dnpipefs.errors import CorruptData, DnpError

logger: Final = logging.getLogger(__name__)

READERS: Final = 3
"""Groups of topics read at once: etcd looks for keys while we take answers apart."""
PATIENCE_S: Final = 2.0
"""How long a survey is waited for: the stats that follow have their own time to wait."""
TAIL_KEYS: Final = 5_000
"""Keys of batches asked for in one range read."""
NOTHING_SEALED: Final = Head()


class Survey:
    """A survey under way: what is left of it, and who waits."""

    def __init__(self, groups: int) -> None:
        self._left = groups
        self._done = trio.Event()
        if not groups:
            self._done.set()

    @property
    def done(self) -> bool:
        """Whether everything has been read that could be."""
        return self._done.is_set()

    async def wait(self) -> None:
        """Wait until everything has been read that could be, but not for an etcd that does not answer."""
        with trio.move_on_after(PATIENCE_S):
            await self._done.wait()

    def finish_one(self) -> None:
        """A group of topics has been read."""
        self._left -= 1
        if not self._left:
            self._done.set()


class Surveyor:
    """Reads the sizes of many topics into what is known of this host's."""

    def __init__(self, client: etcd.Client, keys: KeySchema, sizes: KnownSizes, *, op_timeout: float) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._sizes: Final = sizes
        self._op_timeout: Final = op_timeout
        self._queue: deque[tuple[Survey, list[FileId], bool]] = deque()
        self._work: Final = trio.lowlevel.ParkingLot()

    def begin(self, topics: Sequence[FileId], *, among: int) -> Survey:
        """Begin to read the sizes of *topics*, out of *among* topics between the first and the last id."""
        dense = survey.is_dense(len(topics), among)
        groups = list(survey.groups(topics, dense=dense))
        begun = Survey(len(groups))
        self._queue.extend((begun, group, dense) for group in groups)
        self._work.unpark(count=len(groups))
        return begun

    async def run(self) -> None:
        """Read until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(self._read_forever)

    async def _read_forever(self) -> None:
        while True:
            while not self._queue:
                await self._work.park()
            begun, topics, dense = self._queue.popleft()
            try:
                await self._read(topics, dense=dense)
            except DnpError as error:
                logger.info(
                    "a listing's sizes are not known beforehand, each stat asks for itself: %s", error
                )
            except Exception:  # a fault of ours must not end the mount for what is only to save reads
                logger.exception("a survey failed unexpectedly")
            finally:
                begun.finish_one()

    async def _read(self, topics: Sequence[FileId], *, dense: bool) -> None:
        now = trio.current_time()
        if dense and not self._sizes.knows_any(topics):  # most will have to be read: at once, then
            await self._read_unknown(topics, now)
            return
        look = await (self._look_by_range(topics) if dense else self._look_by_key(topics))
        left = survey.settle(self._sizes, topics, look, now)
        if not left:
            return
        if dense and survey.is_dense(len(left), len(look.lasts)):
            await self._measure_by_range(left, look, now)
            return
        for group in survey.groups(left, dense=False):
            await self._measure_by_key(group, look, now)

    async def _read_unknown(self, topics: Sequence[FileId], now: float) -> None:
        result = await self._transaction([self._get_lasts(topics), *self._get_parts(topics)])
        lasts, epochs, heads, tail = _ranges(result)
        look = self._look(topics, result.revision, lasts.kvs, epochs.count, epochs.kvs)
        left = survey.settle(self._sizes, topics, look, now)
        self._measure(left, look, now, epochs, heads, await self._whole_tail(tail, topics, look))

    async def _look_by_range(self, topics: Sequence[FileId]) -> Look:
        keys = self._keys
        epochs = etcd.get(keys.epoch(topics[0]), keys.epoch(topics[-1]) + b"\0", count_only=True)
        result = await self._transaction([self._get_lasts(topics), epochs])
        lasts, counted = _ranges(result)
        return self._look(topics, result.revision, lasts.kvs, counted.count)

    async def _look_by_key(self, topics: Sequence[FileId]) -> Look:
        keys = self._keys
        reads = [etcd.get(keys.last(topic)) for topic in topics]
        reads += [etcd.get(keys.epoch(topic), keys_only=True) for topic in topics]
        result = await self._transaction(reads)
        found = [[*one.kvs] for one in _ranges(result)]
        lasts, epochs = list(chain(*found[: len(topics)])), list(chain(*found[len(topics) :]))
        return self._look(topics, result.revision, lasts, len(epochs), epochs)

    def _look(
        self,
        topics: Sequence[FileId],
        revision: int,
        lasts: Sequence[etcd.KeyValue],
        counted: int,
        epochs: Sequence[etcd.KeyValue] = (),
    ) -> Look:
        keys = self._keys
        wanted = {keys.last(topic): topic for topic in topics}
        generation_of = {kv.key: Revision(kv.mod_revision) for kv in epochs}
        found: dict[FileId, Last] = {}
        for kv in lasts:
            topic = wanted.get(kv.key)
            if topic is None:  # of another directory
                continue
            try:
                found[topic] = Last(Revision(kv.mod_revision), kv.version, decode_time(kv.key, kv.value))
            except CorruptData as error:
                _leave(topic, error)
        generations = {
            topic: generation_of[key]
            for topic, last in found.items()
            if last.puts == 1 and (key := keys.epoch(topic)) in generation_of
        }
        return Look(Revision(revision), found, counted == len(lasts), generations)

    async def _measure_by_range(self, topics: Sequence[FileId], look: Look, now: float) -> None:
        parts = self._get_parts(topics, look.revision)
        epochs, heads, tail = _ranges(await self._transaction(parts))
        self._measure(topics, look, now, epochs, heads, await self._whole_tail(tail, topics, look))

    def _get_lasts(self, topics: Sequence[FileId]) -> etcd.Op:
        return etcd.get(self._keys.last(topics[0]), self._keys.last(topics[-1]) + b"\0")

    def _get_parts(self, topics: Sequence[FileId], revision: int = 0) -> list[etcd.Op]:
        """Return the reads of epochs, heads and tails between the first topic and the last."""
        keys, first, last = self._keys, topics[0], topics[-1]
        tail_start, tail_end = keys.tail(first).start, keys.tail(last).end
        return [
            etcd.get(keys.epoch(first), keys.epoch(last) + b"\0", keys_only=True, revision=revision),
            etcd.get(keys.head(first), keys.head(last) + b"\0", revision=revision),
            etcd.get(tail_start, tail_end, keys_only=True, limit=TAIL_KEYS, revision=revision),
        ]

    async def _whole_tail(
        self, page: etcd.RangeResult, topics: Sequence[FileId], look: Look
    ) -> list[etcd.KeyValue]:
        """Return the keys of the tails, of which *page* has the first."""
        tail, end = page.kvs, self._keys.tail(topics[-1]).end
        while page.more:
            page = await self._client.range(
                tail[-1].key + b"\0",
                end,
                revision=look.revision,
                limit=TAIL_KEYS,
                keys_only=True,
                timeout=self._op_timeout,
            )
            tail += page.kvs
        return tail

    def _measure(
        self,
        topics: Sequence[FileId],
        look: Look,
        now: float,
        epochs: etcd.RangeResult,
        heads: etcd.RangeResult,
        tail: Iterable[etcd.KeyValue],
    ) -> None:
        keys = self._keys
        epoch_of = {kv.key: kv for kv in epochs.kvs}
        head_of = {kv.key: kv for kv in heads.kvs}
        tail_of = {prefix: list(kvs) for prefix, kvs in groupby(tail, lambda kv: keys.tail_prefix_of(kv.key))}
        for topic in topics:
            epoch, head = epoch_of.get(keys.epoch(topic)), head_of.get(keys.head(topic))
            self._learn(topic, look, now, epoch, head, tail_of.get(keys.tail_prefix(topic), ()))

    async def _measure_by_key(self, topics: Sequence[FileId], look: Look, now: float) -> None:
        keys, revision = self._keys, look.revision
        reads = []
        for topic in topics:
            tail = keys.tail(topic)
            reads.append(etcd.get(keys.epoch(topic), keys_only=True, revision=revision))
            reads.append(etcd.get(keys.head(topic), revision=revision))
            reads.append(etcd.get(tail.start, tail.end, keys_only=True, revision=revision))
        found = _ranges(await self._transaction(reads))
        for topic, epoch, head, batches in zip(topics, found[::3], found[1::3], found[2::3], strict=True):
            self._learn(topic, look, now, _first(epoch), _first(head), batches.kvs)

    def _learn(
        self,
        topic: FileId,
        look: Look,
        now: float,
        epoch: etcd.KeyValue | None,
        head: etcd.KeyValue | None,
        batches: Iterable[etcd.KeyValue],
    ) -> None:
        """Take in one topic."""
        if head is None:
            return
        newest, _, modified_ns = look.lasts[topic]
        generation = Revision(epoch.mod_revision) if epoch is not None else NO_GENERATION
        parse = self._keys.parse_tail
        try:
            sealed = NOTHING_SEALED if head.value == EMPTY_HEAD_VALUE else Head.decode(head.key, head.value)
            tail = [
                (Revision(kv.mod_revision), key)
                for kv in batches
                if (key := parse(topic, kv.key)) is not None
            ]
        except DnpError as error:
            _leave(topic, error)
            return
        found = measure(Snapshot(look.revision, generation, sealed, modified_ns, tail))
        if found is not None:
            size = KnownSize(
                found.end,
                found.messages,
                modified_ns,
                generation,
                newest,
                now,
                now,
                now,
                found.first,
                found.first_message,
                found.stored,
            )
            self._sizes.learned(topic, size)

    async def _transaction(self, reads: Sequence[etcd.Op]) -> etcd.TransactionResult:
        return await self._client.transaction((), reads, timeout=self._op_timeout)


def _leave(topic: FileId, error: Exception) -> None:
    """Leave a topic whose records do not fit to the stat that wants it: it raises that."""
    logger.debug("topic %x: %s; its stat will say so", topic, error)


def _ranges(result: etcd.TransactionResult) -> list[etcd.RangeResult]:
    return [response for response in result.responses if isinstance(response, etcd.RangeResult)]


def _first(result: etcd.RangeResult) -> etcd.KeyValue | None:
    return result.kvs[0] if result.kvs else None
