"""What it takes to open a topic for reading."""

from collections.abc import AsyncIterator
from itertools import count

import pytest

from dnpipefs.bench.fill import fill_directory
from dnpipefs.cluster import Cluster, Settings, open_cluster
from dnpipefs.core.batch import Chunk
from dnpipefs.core.names import Offset
from dnpipefs.log import schedule
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
