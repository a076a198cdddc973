"""The cache of batches: its limit counts what it takes, not only the bytes of messages."""

import tracemalloc
from typing import cast

import pytest

from dnpipefs import etcd
from dnpipefs.core.batch import Chunk, decode, encode
from dnpipefs.core.keys import KeySchema, TailKey
from dnpipefs.core.names import FileId, Offset, Revision, SessionId
from dnpipefs.core.records import SegmentInfo
from dnpipefs.core.segment import merge
from dnpipefs.core.view import Entry, SegmentEntry, TailEntry
from dnpipefs.log.content import ENTRY_OVERHEAD, Content

KEYS, TOPIC, SESSION = KeySchema(), FileId(7), SessionId(9)


class Absent:
    """An etcd that has nothing and counts who asks."""

    def __init__(self) -> None:
        self.asked = 0

    async def transaction(self, *_: object, **__: object) -> object:
        self.asked += 1
        raise etcd.PermissionDenied("nobody is to ask")


def raw(number: int, size: int) -> bytes:
    chunk = Chunk.of_lines(b"x" * (size - 1) + b"\n")
    return encode([chunk], generation=Revision(1), time_ns=0, session=SESSION, sequence=number)


def entry(number: int, size: int) -> TailEntry:
    return TailEntry(Revision(number), Offset(0), 0, TailKey(SESSION, number, size, 1))


@pytest.mark.parametrize("size", [2, 1000])
async def test_the_limit_holds_and_the_least_lately_read_goes_first(size: int) -> None:
    absent = Absent()
    cache = Content(cast("etcd.Client", absent), KEYS, op_timeout=1, limit=10 * (size + 48 + ENTRY_OVERHEAD))
    for number in range(1, 11):
        cache.add(KEYS.batch(TOPIC, *entry(number, size).key), raw(number, size))
    found = await cache.fetch(TOPIC, Revision(1), [entry(1, size)])
    assert len(found[0].data) == size
    for number in range(11, 16):
        cache.add(KEYS.batch(TOPIC, *entry(number, size).key), raw(number, size))
        assert cache.size <= 10 * (size + 48 + ENTRY_OVERHEAD)
    await cache.fetch(TOPIC, Revision(1), [entry(1, size), entry(15, size)])
    assert absent.asked == 0
    with pytest.raises(etcd.PermissionDenied):
        await cache.fetch(TOPIC, Revision(1), [entry(2, size)])


class Stored:
    """An etcd that has one value."""

    def __init__(self, value: bytes) -> None:
        kv = etcd.KeyValue(b"", value, *range(1, len(etcd.KeyValue._fields) - 1))
        self.responses = [etcd.RangeResult([kv], *range(1, len(etcd.RangeResult._fields)))]

    async def transaction(self, *_: object, **__: object) -> object:
        return self


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("message", [1, 7, 300])
async def test_invariant_7_tables_of_lengths_count(message: int, sealed: bool) -> None:
    """Of messages of a byte the table is as large as what they say; as numbers it was eight times that."""
    count = 300_000 // message
    size = count * message
    raw = encode(
        [Chunk(b"\0" * size, count, (message,) * count)],
        generation=Revision(1),
        time_ns=0,
        session=SESSION,
        sequence=1,
    )
    block: Entry = TailEntry(Revision(1), Offset(0), 0, TailKey(SESSION, 1, size, count))
    if sealed:
        raw = merge([decode(raw)], offset=Offset(0), compress=False)
        block = SegmentEntry(Offset(0), 0, SegmentInfo(size, len(raw), count, 0, 0))
    client = Stored(raw)
    cache = Content(cast("etcd.Client", client), KEYS, op_timeout=1)
    tracemalloc.start()
    try:
        await cache.fetch(TOPIC, Revision(1), [block])
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken * 0.9 < cache.size < 2.2 * size + ENTRY_OVERHEAD
