"""What it takes to open a topic for reading."""

from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
import trio
import trio.testing

from dnpipefs.bench.fill import fill_directory
from dnpipefs.cluster import Cluster, Settings, open_cluster
from dnpipefs.core.batch import Chunk
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import Offset
from dnpipefs.log import schedule
from dnpipefs.log.snapshot import read_topic
from tests.etcd.conftest import server, shared_server
from tests.support.counting import Transactions
from tests.support.etcd_process import EtcdProcess

__all__ = ["server", "shared_server"]

TOPICS = 30

_numbers = count()


@pytest.fixture
async def cluster(shared_server: EtcdProcess, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """Whose transactions are those of readers: nobody seals."""
    monkeypatch.setattr(schedule, "LOOK_S", 10**9)
    async with open_cluster(
        Settings(endpoints=(shared_server.endpoint,), prefix=f"/opening/{next(_numbers)}/")
    ) as cluster:
        yield cluster


async def test_the_first_reader_of_a_topic_reads_it_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read since the open began need not be confirmed; what was read before it has to be."""
    topics = list(await fill_directory(cluster, b"d", count=TOPICS))
    sent = Transactions(monkeypatch)
    for opens in (1, 2):
        for topic in topics:
            async with cluster.log.reader(topic):
                pass
        assert sent.count == opens * TOPICS, "a snapshot, and then a question"
    born = cluster.namespace.tree.get(topics[0]).revision
    async with cluster.log.reader(topics[0]) as reader:
        await cluster.log.append(topics[0], Chunk.of_lines(b"x\n"), born=born)
        end = (await reader.confirm()).end
        assert (await reader.read(Offset(end - 2), 10)).data == b"x\n"


async def test_invariant_5_a_reset_waits_for_an_open_that_read_before_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open is under way when the reset returns, unless that waits; a read after it shows nothing old."""
    [topic] = await fill_directory(cluster, b"d", count=1)
    read, go_on = trio.Event(), trio.Event()

    async def read_and_wait(*args: Any, **kwargs: Any) -> Any:
        found = await read_topic(*args, **kwargs)
        read.set()
        await go_on.wait()
        return found

    monkeypatch.setattr("dnpipefs.log.views.read_topic", read_and_wait)
    was_reset, shown = trio.Event(), []

    async def open_and_read() -> None:
        async with cluster.log.reader(topic) as reader:
            await was_reset.wait()
            shown.append((await reader.read(Offset(0), 100)).data)

    async def reset() -> None:
        await cluster.log.reset(topic)
        was_reset.set()

    keys = KeySchema(cluster.settings.prefix)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_and_read)
            await read.wait()
            generation = await cluster.client.get(keys.epoch(topic))
            nursery.start_soon(reset)
            while await cluster.client.get(keys.epoch(topic)) == generation:
                pass
            await trio.testing.wait_all_tasks_blocked()  # without a view to wait for, the reset returns now
            go_on.set()
    assert shown == [b""]
