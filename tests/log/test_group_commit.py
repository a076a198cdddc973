"""What waits for a commit goes out when that is answered, or beside it once there is as much of it."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.log.conftest import Hosts
from tests.model.oracle import Topic


@pytest.mark.parametrize("waiting", [1, 3])
async def test_what_waits_for_a_quick_commit_goes_with_its_answer(
    hosts: Hosts, mock_clock: MockClock, waiting: int
) -> None:
    host, topic = await hosts.start(), await hosts.topic()
    network = hosts.cluster.network
    network.open = False
    host.nursery.start_soon(hosts.append, host, topic, b"first\n")
    for _ in range(3):  # the same again: whoever was woken last stands in another place of the line
        [commit] = await hosts.gates("commit")
        for _ in range(waiting):
            host.nursery.start_soon(hosts.append, host, topic, b"next\n")
            assert await hosts.gates("commit") == [commit], "it gathers what comes meanwhile"
        commit.open()
        await network.settle()
        assert len(await hosts.gates("commit")) == 1, "no time has passed, and the next is on its way"
    await _let_go(hosts)


async def test_as_many_topics_as_are_under_way_go_beside_them(hosts: Hosts, mock_clock: MockClock) -> None:
    host = await hosts.start()
    topics = [await hosts.topic() for _ in range(7)]
    network = hosts.cluster.network

    def append(topic: Topic) -> None:
        host.nursery.start_soon(hosts.append, host, topic, b"line\n")

    network.open = False
    append(topics[0])
    [first] = await hosts.gates("commit")
    append(topics[1])
    assert len(await hosts.gates("commit")) == 2, "one beside one"
    for topic in topics[2:5]:
        append(topic)
        assert len(await hosts.gates("commit")) == 2, "never more than two"
    first.open()
    await network.settle()
    [one, three] = await hosts.gates("commit")  # the second one, and what gathered
    one.open()
    await network.settle()
    for topic in topics[5:]:
        append(topic)
        assert await hosts.gates("commit") == [three], "two are too few beside three"
    append(topics[0])
    assert len(await hosts.gates("commit")) == 2, "three are not"
    await _let_go(hosts)


async def _let_go(hosts: Hosts) -> None:
    network = hosts.cluster.network
    network.open = True
    for gate in await hosts.gates():
        gate.open()
    await network.settle()
