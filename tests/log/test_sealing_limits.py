"""The largest steps of sealing and trimming there can be, carried out: etcd takes each of them.

The store in memory refuses what etcd refuses: 128 operations, 1.5 MiB, a key put and deleted at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from trio.testing import MockClock

from dnpipefs import etcd
from dnpipefs.core.batch import Chunk, Payload
from dnpipefs.core.keys import PART_BYTES, Beside, BodyKey
from dnpipefs.core.names import Revision, SessionId
from dnpipefs.core.records import Head, encode_time
from dnpipefs.core.sealing import HEAD_SEGMENTS, KEPT_WRITERS, LARGE_BYTES, STEP_BATCHES, Policy, Retention
from tests.log.conftest import Hosts
from tests.model.hosts import watched_log
from tests.model.oracle import Topic
from tests.model.runs import cluster_in_memory, hosts_of

WRITERS = 200
NOISE = random.Random(5).randbytes(LARGE_BYTES)


class Tail:
    """Appends of many sessions, made as hosts make them but without hosts."""

    def __init__(self, hosts: Hosts, topic: Topic) -> None:
        self._hosts = hosts
        self._topic = topic
        self._sequences = Counter[int]()

    async def gone_sessions(self) -> None:
        """Let all sessions come and go before they have appended: what they left is to be forgotten."""
        store, keys = self._hosts.cluster.store, self._hosts.cluster.keys
        for session in range(1, WRITERS + 1):
            await store.put(keys.session(SessionId(session << 40)), b"{}")
            await store.delete(keys.session(SessionId(session << 40)))

    async def append(self, session: int, chunk: Chunk, time_ns: int) -> None:
        store, keys, topic = self._hosts.cluster.store, self._hosts.cluster.keys, self._topic
        generation, writer = topic.generations[-1].began, SessionId(session << 40)
        self._sequences[session] += 1
        sequence = self._sequences[session]
        payload = Payload.of([chunk])
        beside = Beside(7, payload.stored) if payload.size >= LARGE_BYTES else None
        encoding = {"generation": generation, "time_ns": time_ns, "session": writer, "sequence": sequence}
        key = keys.batch(topic.id, writer, sequence, payload.size, payload.messages, beside)
        value = payload.encode(**encoding, beside=beside is not None)  # type: ignore[arg-type]
        puts = [etcd.put(key, value), etcd.put(keys.last(topic.id), encode_time(time_ns))]
        if beside is not None:
            [body] = keys.body_parts(topic.id, generation, BodyKey(writer, sequence, beside))
            puts.append(etcd.put(body, payload.encode(**encoding)))  # type: ignore[arg-type]
        await store.transaction((), puts)


@pytest.fixture
async def memory(mock_clock: MockClock) -> AsyncIterator[Hosts]:
    """Hosts whose store is in memory, with the limits of a real one."""
    cluster = cluster_in_memory(random.Random(0))
    cluster.network.open = True
    cluster.cache_bytes = 64 << 20
    cluster.judges_each = False
    cluster.oracle.kept_writers = KEPT_WRITERS
    with watched_log() as complaints:
        async with hosts_of(cluster) as nursery:
            yield Hosts(cluster, nursery, mock_clock, complaints)
    assert complaints.found == []


async def sealed_to_the_end(memory: Hosts, topic: Topic) -> None:
    host = await memory.start()
    before = [*topic.generations[0].messages]
    view = await host.log.sealer.seal(topic.id)
    assert not view.entries
    assert topic.generations[0].messages == before
    await memory.shown(topic)


@pytest.mark.parametrize("size", [0, 1, 100, 5_000])
async def test_more_writers_and_batches_than_a_step_takes(
    memory: Hosts, mock_clock: MockClock, size: int
) -> None:
    topic, draw = await memory.topic(), random.Random(size)
    tail = Tail(memory, topic)
    await tail.gone_sessions()
    for number in range(STEP_BATCHES + 500 if size < 1_000 else 600):
        # Lengths instead of newlines, and times that differ by much: the largest tables there are.
        chunk = Chunk.of_message(b"%d" % (number % 10) + bytes(size))
        await tail.append(draw.randrange(1, WRITERS + 1), chunk, draw.randrange(2**62))
    await memory.cluster.catch_up()
    await sealed_to_the_end(memory, topic)


async def test_messages_smaller_than_what_describes_them(memory: Hosts, mock_clock: MockClock) -> None:
    """Of a megabyte of them the table is larger than what etcd takes."""
    topic, draw = await memory.topic(), random.Random(1)
    tail = Tail(memory, topic)
    few = LARGE_BYTES - 1
    for number in range(6):
        newlines = Chunk(b"\n" * few, few, (1,) * few)
        await tail.append(1, newlines, draw.randrange(2**62))
        await tail.append(2, Chunk.of_message(b"%d" % number), draw.randrange(2**62))
    await memory.cluster.catch_up()
    await sealed_to_the_end(memory, topic)
    shown = await memory.shown(topic)
    assert all(entry.stored <= PART_BYTES for entry in shown.sealed)
    assert len(shown.sealed) >= 2


async def test_hundreds_of_large_batches_and_their_removal(memory: Hosts, mock_clock: MockClock) -> None:
    topic = await memory.topic(Policy(Retention(messages=1)))
    tail = Tail(memory, topic)
    await tail.gone_sessions()
    for number in range(300):
        chunk = Chunk.of_message(b"%d " % number + NOISE)
        await tail.append(1 + number % WRITERS, chunk, 2**62)
    await memory.cluster.catch_up()
    await sealed_to_the_end(memory, topic)
    head = Head.decode(b"", memory.cluster.oracle.store[memory.cluster.keys.head(topic.id)][1])
    assert len(head.segments) <= HEAD_SEGMENTS
    assert len(memory.keys(b"index")) >= 2
    [host] = memory.cluster.hosts
    assert await host.log.sealer.trim(topic.id) == 299
    shown = await memory.shown(topic)
    assert (len(shown.sealed), shown.messages, shown.first_message) == (1, 300, 299)
    assert len(memory.keys(b"body")) == 1
    assert len(memory.keys(b"index")) <= 1


async def test_the_table_of_writers_stays_small(memory: Hosts, mock_clock: MockClock) -> None:
    topic = await memory.topic()
    tail = Tail(memory, topic)
    await tail.gone_sessions()
    host = await memory.start()
    for round_ in range(4):
        for session in range(1, WRITERS + 1):
            await tail.append(session, Chunk.of_lines(b"%d\n" % round_), 1)
        await memory.cluster.catch_up()
        await host.log.sealer.seal(topic.id)
        await memory.shown(topic)
        head = Head.decode(b"", memory.cluster.oracle.store[memory.cluster.keys.head(topic.id)][1])
        assert len(head.writers) <= KEPT_WRITERS
        assert head.forgotten > Revision(0)


async def test_a_table_of_many_living_writers_is_looked_through_by_and_by(
    hosts: Hosts, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them live than one step asks for; those that have ended stand behind them, and leave."""
    monkeypatch.setattr("dnpipefs.log.sealer.SESSIONS_LOOKED_AT", 3)
    monkeypatch.setattr("dnpipefs.log.sealer.KEPT_WRITERS", 4)
    hosts.cluster.oracle.kept_writers = WRITERS  # not all at once, as it expects otherwise
    store, keys = hosts.cluster.store, hosts.cluster.keys
    topic, host = await hosts.topic(), await hosts.start()
    tail = Tail(hosts, topic)
    await tail.gone_sessions()
    living, ended = range(1, 11), range(11, 16)
    for session in living:
        await store.put(keys.session(SessionId(session << 40)), b"{}")
    for session in (*living, *ended):
        await tail.append(session, Chunk.of_lines(b"first\n"), 1)

    async def left() -> set[int]:
        await host.log.sealer.seal(topic.id)
        await hosts.shown(topic)
        head = Head.decode(b"", hosts.cluster.oracle.store[keys.head(topic.id)][1])
        assert head.forgotten or len(head.writers) == len(living) + len(ended)
        return {int(name, 16) >> 40 for name in head.writers}

    seals = 0
    while True:
        seals += 1
        writers = await left()
        assert writers >= set(living), "a writer that lives was forgotten"
        assert seals < 30, "a writer that has ended stays"
        if writers == set(living):
            break
        await tail.append(1, Chunk.of_lines(b"next\n"), 1)
    assert seals > 1
