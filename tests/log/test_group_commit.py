"""What waits for a commit goes out when that is answered, not a moment later."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.log.conftest import Hosts


@pytest.mark.parametrize("topics", [1, 2])
@pytest.mark.parametrize("waiting", [1, 3])
async def test_what_waits_for_a_quick_commit_goes_with_its_answer(
    hosts: Hosts, mock_clock: MockClock, topics: int, waiting: int
) -> None:
    host = await hosts.start()
    first, *others = [await hosts.topic() for _ in range(topics)]
    network = hosts.cluster.network
    network.open = False
    host.nursery.start_soon(hosts.append, host, first, b"first\n")
    for _ in range(3):  # the same again: whoever was woken last stands in another place of the line
        [commit] = await hosts.gates("commit")
        for _ in range(waiting):
            host.nursery.start_soon(hosts.append, host, (others or [first])[0], b"next\n")
            assert await hosts.gates("commit") == [commit], "it gathers what comes meanwhile"
        commit.open()
        await network.settle()
        assert len(await hosts.gates("commit")) == 1, "no time has passed, and the next is on its way"
    network.open = True
    for gate in await hosts.gates():
        gate.open()
    await network.settle()
