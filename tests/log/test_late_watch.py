"""A watch that does not bring what etcd has: lost by an old release of etcd, or held up on its way."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from dnpipefs.core.names import Offset
from dnpipefs.log.views import LATE_S
from tests.log.conftest import Hosts
from tests.model.hosts import Host
from tests.model.oracle import Topic


async def without_watches(hosts: Hosts, seconds: float) -> None:
    """Let time pass, and everything through but what watches bring."""
    for _ in range(round(seconds / 0.5)):
        for gate in await hosts.gates():
            if gate.what != "watch":
                gate.open()
        await hosts.cluster.network.settle()
        await hosts.pass_time(0.5)


async def end_of(host: Host, topic: Topic, found: list[bytes]) -> None:
    async with host.log.reader(topic.id) as reader:
        found.append((await reader.read(Offset(0), 100)).data)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_reader_waits_for_it_no_longer_than_a_while(
    hosts: Hosts, mock_clock: MockClock, reset: bool
) -> None:
    one, two = await hosts.start(), await hosts.start()
    topic, network = await hosts.topic(), hosts.cluster.network
    await hosts.append(two, topic, b"before\n")
    async with one.log.reader(topic.id) as reader:
        assert (await reader.read(Offset(0), 100)).data == b"before\n"
        network.open = False
        done = trio.Event()

        async def change() -> None:
            if reset:
                await two.log.reset(topic.id)
            await hosts.append(two, topic, b"after\n")
            done.set()

        two.nursery.start_soon(change)
        while not done.is_set():
            await without_watches(hosts, 0.5)
        found: list[bytes] = []
        one.nursery.start_soon(end_of, one, topic, found)
        await without_watches(hosts, LATE_S - 1)
        assert found == []
        await without_watches(hosts, 3)
        assert found == [b"after\n" if reset else b"before\nafter\n"]
        network.open = True
        for gate in await hosts.gates():
            gate.open()
        await network.settle()
    assert (await hosts.shown(topic)).end == len(found[0])


async def test_a_stat_shows_this_hosts_own_push_all_the_same(hosts: Hosts, mock_clock: MockClock) -> None:
    host, topic, network = await hosts.start(), await hosts.topic(), hosts.cluster.network
    async with host.log.reader(topic.id):
        network.open = False
        sizes: list[int] = []

        async def push_and_stat() -> None:
            await hosts.append(host, topic, b"line\n")
            sizes.append((await host.log.stat(topic.id)).end)

        host.nursery.start_soon(push_and_stat)
        await without_watches(hosts, LATE_S + 3)
        assert sizes == [5]
        network.open = True
        for gate in await hosts.gates():
            gate.open()
        await network.settle()
