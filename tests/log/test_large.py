"""Messages larger than a transaction of etcd: committed whole or not at all, and nothing of them is left."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dnpipefs import etcd
from dnpipefs.core.keys import PART_BYTES
from dnpipefs.core.names import Offset
from dnpipefs.errors import DnpError, OutOfSpace, TimedOut, TopicGone
from dnpipefs.log.staging import CLEAR_TIMEOUT_S
from tests.log.conftest import Hosts
from tests.model.hosts import Host
from tests.model.oracle import Topic
from tests.support.etcd_process import EtcdProcess
from tests.support.network import Fate, Gate

MIB = 1 << 20
NOISE = random.Random(16).randbytes(16 * MIB)
"""Does not become smaller by compression."""


async def message_of(host: Host, topic: Topic) -> bytes:
    """Return the one message of a topic as a host reads it."""
    async with host.log.reader(topic.id) as reader:
        found, _ = await reader.messages(Offset(0), 64 * MIB)
        [message] = list(found)
        return message.data


def push(hosts: Hosts, host: Host, topic: Topic, data: bytes, fates: list[object]) -> None:
    """Begin to push one message; what becomes of it is added to *fates*."""

    async def carry_out() -> None:
        try:
            fates.append(await hosts.append(host, topic, data))
        except DnpError as error:
            fates.append(type(error))

    host.nursery.start_soon(carry_out)


async def let_through(hosts: Hosts, host: Host) -> Gate | None:
    """Let one request of a host through; None if there is none."""
    mine = [gate for gate in await hosts.gates() if gate.host == host.name and gate.what != "watch"]
    if not mine:
        return None
    mine[0].open()
    await hosts.cluster.network.settle()
    return mine[0]


@pytest.mark.parametrize("size", [PART_BYTES, PART_BYTES + 1, 8 * MIB, 16 * MIB])
async def test_a_message_of_many_megabytes_is_one_message(
    hosts: Hosts, mock_clock: MockClock, size: int
) -> None:
    one, two = await hosts.start(), await hosts.start()
    topic = await hosts.topic()
    await hosts.append(one, topic, NOISE[:size])
    shown = await hosts.shown(topic)
    assert (shown.end, shown.messages, len(shown.tail)) == (size, 1, 1)
    assert len(hosts.keys(b"body")) == -(-(size + 48 + 4) // PART_BYTES)
    assert hosts.keys(b"pending") == []
    assert await message_of(two, topic) == NOISE[:size]
    await one.log.sealer.seal(topic.id)
    shown = await hosts.shown(topic)
    assert (shown.end, shown.messages, len(shown.tail)) == (size, 1, 0)
    assert await message_of(two, topic) == NOISE[:size]
    assert await message_of(await hosts.start(), topic) == NOISE[:size]


async def test_a_large_message_that_compresses_well_takes_one_key(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    host = await hosts.start()
    topic, plain = await hosts.topic(), await hosts.topic()
    text = b"the same line again and again\n" * (8 * MIB // 30)
    await hosts.append(host, topic, text)
    await hosts.shown(topic)
    assert len(hosts.keys(b"body")) == 1
    await hosts.append(host, plain, text, compress=False)
    await hosts.shown(plain)
    assert len(hosts.keys(b"body")) == 1 + len(text) // PART_BYTES + 1
    assert await message_of(host, topic) == await message_of(host, plain) == text


async def test_a_reader_never_sees_a_part(hosts: Hosts, mock_clock: MockClock) -> None:
    """Invariant 1: at each request of the push everybody sees what was before, or all of it."""
    writer, other = await hosts.start(), await hosts.start()
    topic = await hosts.topic()
    await hosts.append(other, topic, b"before\n")
    network, fates = hosts.cluster.network, list[object]()
    async with other.log.reader(topic.id) as reader:
        network.open = False
        push(hosts, writer, topic, NOISE, fates)
        requests = 0
        while await let_through(hosts, writer):
            requests += 1
            network.open = True
            for gate in await hosts.gates("watch"):
                gate.open()
            view = await reader.confirm()
            assert view.end in ((7,) if not fates else (7 + len(NOISE),))
            span = await reader.read(Offset(7), 64)
            assert span.data == (NOISE[:64] if fates else b"")
            network.open = False
        network.open = True
        assert requests == 13, "twelve parts and the commit"
        assert len(fates) == 1
        shown = await hosts.shown(topic)
        assert shown.messages == 2


@pytest.mark.parametrize("parts", [1, 5, 12])
async def test_what_a_host_had_put_when_it_died_is_removed(
    hosts: Hosts, mock_clock: MockClock, parts: int
) -> None:
    writer, other = await hosts.start(), await hosts.start()
    session = writer.sessions.current()
    assert session is not None
    topic = await hosts.topic()
    await hosts.append(other, topic, b"before\n")
    hosts.cluster.network.open = False
    push(hosts, writer, topic, NOISE, [])
    for _ in range(parts):
        assert await let_through(hosts, writer)
    await hosts.kill(writer)
    late = list(hosts.cluster.network.late)
    hosts.cluster.network.open = True
    await hosts.shown(topic)
    assert (len(hosts.keys(b"pending")), len(hosts.keys(b"body"))) == (1, parts)
    await hosts.carry_out(other.log.sweeper.sweep_all)
    await hosts.shown(topic)
    assert len(hosts.keys(b"pending")) == 1, "its session lives: it may still go on"
    await hosts.cluster.store.lease_revoke(session)
    await hosts.carry_out(other.log.sweeper.sweep_all)
    for request in late:  # what it had sent before it died
        with suppress(etcd.LeaseNotFound):
            await request.send()
    shown = await hosts.shown(topic)
    assert (hosts.keys(b"pending"), hosts.keys(b"body")) == ([], [])
    assert (shown.end, shown.messages) == (7, 1)


async def test_a_first_part_that_arrives_late_orders_nothing(hosts: Hosts, mock_clock: MockClock) -> None:
    """The same request, sent twice, arrives again when the batch is committed."""
    host, other = await hosts.start(), await hosts.start()
    topic = await hosts.topic()
    network, fates = hosts.cluster.network, list[object]()
    network.open = False
    push(hosts, host, topic, NOISE[: 2 * PART_BYTES], fates)
    [first] = await hosts.gates("transaction")
    first.open(Fate.LOSE_REQUEST)
    await hosts.cluster.network.settle()
    network.open = True
    await hosts.pass_time(1.0, steps=5)
    assert len(fates) == 1
    [late] = network.late
    await late.send()
    await hosts.shown(topic)
    assert hosts.keys(b"pending") == []
    session = host.sessions.current()
    assert session is not None
    await hosts.kill(host)
    await hosts.cluster.store.lease_revoke(session)
    await late.send()  # with the session the writer's key is gone
    await hosts.carry_out(other.log.sweeper.sweep_all)
    assert (await hosts.shown(topic)).messages == 1
    assert await message_of(other, topic) == NOISE[: 2 * PART_BYTES]


async def test_a_part_put_while_its_topic_is_swept_is_swept_too(hosts: Hosts, mock_clock: MockClock) -> None:
    """The topic was deleted while a host is between two parts; the next comes at any moment of the sweep."""
    host, other = await hosts.start(), await hosts.start()
    network, keys = hosts.cluster.network, hosts.cluster.keys
    moments = 0
    while moments < 100:
        topic, fates = await hosts.topic(), list[object]()
        await hosts.append(other, topic, b"before\n")
        network.open = False
        push(hosts, host, topic, NOISE[: 3 * PART_BYTES], fates)
        await let_through(hosts, host)
        ended = [keys.epoch(topic.id), keys.head(topic.id), keys.last(topic.id), keys.mark(topic.id)]
        order = etcd.put(keys.trash(topic.id), b'{"time":1}')
        await hosts.cluster.store.transaction((), [*(etcd.delete(key) for key in ended), order])
        requests = await sweep(hosts, other, host, moments)
        network.open = True
        for gate in await hosts.gates():
            gate.open()
        await hosts.pass_time(1.0, steps=5)
        await hosts.cluster.catch_up()
        assert fates == [TopicGone]
        assert (hosts.keys(b"pending"), hosts.keys(b"body")) == ([], []), f"after {moments} requests"
        moments += 1
        if moments > requests:
            break
    assert moments > 10


async def sweep(hosts: Hosts, sweeping: Host, putting: Host, moment: int) -> int:
    """Let a host sweep, and another put a part after so many requests; return how many there were."""
    swept = trio.Event()

    async def carry_out() -> None:
        await sweeping.log.sweeper.sweep_all()
        swept.set()

    sweeping.nursery.start_soon(carry_out)
    requests = 0
    while not swept.is_set():
        if requests == moment:
            await let_through(hosts, putting)
            moment = -1
        requests += await let_through(hosts, sweeping) is not None
        await hosts.pass_time(0.02)
    return requests


async def test_parts_that_could_not_be_removed_are_removed_later(hosts: Hosts, mock_clock: MockClock) -> None:
    host = await hosts.start()
    topic = await hosts.topic()
    network, fates = hosts.cluster.network, list[object]()
    network.open = False
    push(hosts, host, topic, NOISE[: 3 * PART_BYTES], fates)
    await let_through(hosts, host)
    await let_through(hosts, host)
    for _ in range(40):  # from now on etcd is out of reach
        for gate in await hosts.gates():
            gate.open(Fate.REFUSE)
        await hosts.pass_time(1.0)
    assert fates == [TimedOut]
    await hosts.shown(topic)
    assert (len(hosts.keys(b"pending")), len(hosts.keys(b"body"))) == (1, 2)
    network.open = True
    for gate in await hosts.gates():
        gate.open()
    await hosts.append(host, topic, NOISE[: 2 * PART_BYTES])
    shown = await hosts.shown(topic)
    assert shown.messages == 1
    assert hosts.keys(b"pending") == []
    assert len(hosts.keys(b"body")) == 3


async def test_parts_are_removed_later_though_nothing_more_is_pushed(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    """By the host that has put them, which lives on: nobody else would while its session does."""
    host = await hosts.start()
    topic = await hosts.topic()
    network, fates = hosts.cluster.network, list[object]()
    network.open = False
    push(hosts, host, topic, NOISE[: 3 * PART_BYTES], fates)
    await let_through(hosts, host)
    await let_through(hosts, host)
    for _ in range(60):  # also the first tries of the task that removes them
        for gate in await hosts.gates():
            gate.open(Fate.REFUSE)
        await hosts.pass_time(1.0)
    assert fates == [TimedOut]
    await hosts.shown(topic)
    assert (len(hosts.keys(b"pending")), len(hosts.keys(b"body"))) == (1, 2)
    network.open = True
    for gate in await hosts.gates():
        gate.open(Fate.REFUSE)
    await hosts.pass_time(2 * CLEAR_TIMEOUT_S, steps=4)
    await hosts.shown(topic)
    assert (hosts.keys(b"pending"), hosts.keys(b"body")) == ([], [])


class TestFull:
    """An etcd that has no room for such messages."""

    @pytest.fixture
    def server(self, tmp_path: Path, etcd_binary: str) -> Iterator[EtcdProcess]:
        server = EtcdProcess(
            tmp_path / "etcd", etcd_binary, arguments=["--quota-backend-bytes", str(10 * MIB)]
        )
        try:
            server.start()
            yield server
        finally:
            server.kill()

    async def test_what_does_not_fit_leaves_nothing(self, hosts: Hosts, mock_clock: MockClock) -> None:
        host = await hosts.start()
        topic = await hosts.topic()
        committed, full = 0, False
        while not full:  # etcd counts what it has when it is on its disk, a moment later
            try:
                await hosts.append(host, topic, NOISE)
                committed += 1
            except OutOfSpace:
                full = True
        assert committed < 5
        shown = await hosts.shown(topic)
        assert shown.messages == committed
        assert hosts.keys(b"pending") == []
        assert len(hosts.keys(b"body")) == 12 * committed
