"""What is asked of etcd for readers: once for all who want it, ahead of those who read on, not for others."""

from __future__ import annotations

import random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from dnpipefs.core.names import Offset, Revision
from dnpipefs.core.segment import Block
from dnpipefs.core.view import Entry
from dnpipefs.errors import TimedOut
from dnpipefs.log.content import Vanished
from tests.log.conftest import Hosts
from tests.model.hosts import Host
from tests.model.oracle import Topic
from tests.support.network import Fate

BLOCK: Final = 300_000
"""Above what lies in the tail: each is an entry of its own."""


async def filled(hosts: Hosts, host: Host, blocks: int) -> Topic:
    """Return a topic of large batches, sealed, that no host has in memory."""
    topic = await hosts.topic()
    noise = random.Random(1).randbytes(BLOCK - 1)
    for _ in range(blocks):
        await hosts.append(host, topic, noise + b"\n")
    await host.log.sealer.seal(topic.id)
    await hosts.shown(topic)
    return topic


async def test_readers_of_the_same_blocks_fetch_them_once(hosts: Hosts, mock_clock: MockClock) -> None:
    writer, host = await hosts.start(), await hosts.start()
    topic = await filled(hosts, writer, 3)
    sealed = (await hosts.shown(topic)).sealed
    generation, network = topic.generations[0].began, hosts.cluster.network
    found: list[list[Block]] = []
    network.open = False

    async def fetch(entries: list[Entry]) -> None:
        found.append(await host.log.content.fetch(topic.id, generation, entries))

    for entries in (sealed[:2], sealed[:2], sealed[1:], sealed[2:], sealed):
        host.nursery.start_soon(fetch, list(entries))
        await hosts.gates("read")  # trio starts tasks in no order
    first, second = await hosts.gates("read")  # of the first two blocks, and of the third
    assert all(host.log.content.holds(topic.id, generation, entry) for entry in sealed)
    second.open()
    assert await hosts.gates("read") == [first]
    first.open()
    assert await hosts.gates("read") == []
    assert sorted(len(blocks) for blocks in found) == [1, 2, 2, 2, 3]
    await host.log.content.fetch(topic.id, generation, sealed)
    assert await hosts.gates("read") == []
    network.open = True


async def test_who_waits_for_a_fetch_that_fails_fetches_himself(hosts: Hosts, mock_clock: MockClock) -> None:
    writer, host = await hosts.start(), await hosts.start()
    topic = await filled(hosts, writer, 1)
    sealed = (await hosts.shown(topic)).sealed
    generation, network = topic.generations[0].began, hosts.cluster.network
    outcomes: list[str] = []
    network.open = False

    async def fetch(scope: trio.CancelScope) -> None:
        with scope:
            try:
                await host.log.content.fetch(topic.id, generation, sealed)
            except TimedOut:
                outcomes.append("timed out")
            else:
                outcomes.append("found")
            return
        outcomes.append("cancelled")

    scopes = [trio.CancelScope() for _ in range(4)]
    for scope in scopes:
        host.nursery.start_soon(fetch, scope)
    [gate] = await hosts.gates("read")
    gate.open(Fate.REFUSE)
    [gate] = await hosts.gates("read")
    assert outcomes == ["timed out"]
    for scope in scopes:  # whoever fetches now among them
        if "cancelled" not in outcomes:
            scope.cancel()
            await network.settle()
    while gates := await hosts.gates("read"):
        assert len(gates) == 1
        gates[0].open()
    assert sorted(outcomes).count("found") >= 1
    assert len(outcomes) == 4
    assert host.log.content.holds(topic.id, generation, sealed[0])
    network.open = True


async def test_a_block_that_is_gone_is_said_to_be(hosts: Hosts, mock_clock: MockClock) -> None:
    host = await hosts.start()
    topic = await filled(hosts, host, 1)
    [entry] = (await hosts.shown(topic)).sealed
    with pytest.raises(Vanished) as vanished:
        await host.log.content.fetch(topic.id, Revision(1), [entry])
    assert vanished.value.entry == entry
    assert not host.log.content.holds(topic.id, Revision(1), entry)


async def ahead(hosts: Hosts, host: Host, topic: Topic) -> list[int]:
    """Return which blocks of a topic a host has in memory, once nothing is under way any more."""
    await hosts.cluster.network.settle()
    generation = topic.generations[0].began
    sealed = (await hosts.shown(topic)).sealed
    return [
        number for number, entry in enumerate(sealed) if host.log.content.holds(topic.id, generation, entry)
    ]


async def test_a_sequential_reader_is_read_ahead_of_within_a_window(
    hosts: Hosts, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnpipefs.log.readahead.WINDOW", 4 * BLOCK)
    writer, host = await hosts.start(), await hosts.start()
    topic = await filled(hosts, writer, 20)
    async with host.log.reader(topic.id) as reader:
        await reader.read(Offset(0), 1000)
        assert await ahead(hosts, host, topic) == [0], "one read is no sequence"
        await reader.read(Offset(1000), 1000)
        assert await ahead(hosts, host, topic) == [0, 1, 2, 3, 4]
        await reader.read(Offset(2000), 1000)
        assert await ahead(hosts, host, topic) == [0, 1, 2, 3, 4], "the window has not moved enough"
        position, furthest = 3000, 4
        while position < 12 * BLOCK:
            position += len((await reader.read(Offset(position), 100_000)).data)
            present = await ahead(hosts, host, topic)
            furthest = max(present)
            assert present == list(range(furthest + 1))
            assert position + BLOCK < (furthest + 1) * BLOCK <= position + 5 * BLOCK
        assert furthest < 19, "only so far ahead"


async def test_a_reader_that_jumps_is_not_read_ahead_of(hosts: Hosts, mock_clock: MockClock) -> None:
    writer, host = await hosts.start(), await hosts.start()
    topic = await filled(hosts, writer, 12)
    async with host.log.reader(topic.id) as reader:
        for block in (7, 3, 9, 1):
            await reader.read(Offset(block * BLOCK + 5), 1000)
            await reader.read(Offset(block * BLOCK + 5), 1000)  # again is not further
        assert await ahead(hosts, host, topic) == [1, 3, 7, 9]


async def test_a_reader_of_messages_is_read_ahead_of_too(
    hosts: Hosts, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnpipefs.log.readahead.WINDOW", 4 * BLOCK)
    writer, host = await hosts.start(), await hosts.start()
    topic = await filled(hosts, writer, 12)
    async with host.log.reader(topic.id) as reader:
        _, behind = await reader.messages(Offset(0), 1)
        assert await ahead(hosts, host, topic) == [0]
        await reader.messages(behind, 1)
        assert await ahead(hosts, host, topic) == [0, 1, 2, 3, 4, 5]


async def test_what_cannot_be_read_ahead_is_read_when_it_is_wanted(
    hosts: Hosts, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnpipefs.log.readahead.WINDOW", 2 * BLOCK)
    writer, host = await hosts.start(), await hosts.start()
    topic = await filled(hosts, writer, 6)
    network = hosts.cluster.network
    async with host.log.reader(topic.id) as reader:
        await reader.read(Offset(0), 1000)
        network.open = False
        await reader.read(Offset(1000), 1000)
        [gate] = await hosts.gates("read")
        gate.open(Fate.LOSE_ANSWER)
        await network.settle()
        assert await ahead(hosts, host, topic) == [0]
        network.open = True
        span = await reader.read(Offset(BLOCK), 1000)
        assert span.data == topic.generations[0].data[BLOCK : BLOCK + 1000]


async def test_etcd_is_asked_for_nothing_that_is_in_the_cache(hosts: Hosts, mock_clock: MockClock) -> None:
    host = await hosts.start()
    topic = await hosts.topic()
    await hosts.append(host, topic, *[b"%d\n" % number for number in range(10)])
    async with host.log.reader(topic.id) as reader:
        await reader.read(Offset(0), 100)
        hosts.cluster.network.open = False
        with trio.fail_after(1):
            span = await reader.read(Offset(4), 6)
        assert span.data == b"2\n3\n4\n"
        hosts.cluster.network.open = True
