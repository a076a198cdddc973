"""Surveys of a real etcd's topics, whatever has become of them, against the stat of each by itself."""

import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from itertools import count

import pytest
import trio

from dnpipefs import etcd
from dnpipefs.bench.fill import fill_directory
from dnpipefs.cluster import Cluster, Settings, open_cluster
from dnpipefs.core import generation
from dnpipefs.core.batch import Chunk
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId
from dnpipefs.core.records import encode_time
from dnpipefs.errors import CorruptData, TopicGone
from dnpipefs.log import schedule, survey
from dnpipefs.log.log import TopicStat
from tests.etcd.conftest import server, shared_server
from tests.support.counting import Transactions
from tests.support.etcd_process import EtcdProcess

__all__ = ["server", "shared_server"]

TOPICS = 300
A_WHILE = 60.0
"""Longer than a test takes."""
A_MOMENT = 0.1
"""Longer than looking through what a survey found, shorter than what happens between two of them."""

_numbers = count()


@pytest.fixture
def nobody_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody seals while sizes are compared: what is stored would change meanwhile."""
    monkeypatch.setattr(schedule, "LOOK_S", 10**9)


@pytest.fixture
def settings(shared_server: EtcdProcess) -> Settings:
    return Settings(endpoints=(shared_server.endpoint,), prefix=f"/survey/{next(_numbers)}/")


@pytest.fixture
async def cluster(settings: Settings, nobody_seals: None) -> AsyncIterator[Cluster]:
    async with open_cluster(settings) as cluster:
        yield cluster


@pytest.fixture
async def other(settings: Settings, cluster: Cluster) -> AsyncIterator[Cluster]:
    """Another host, which does things to the topics."""
    async with open_cluster(settings) as other:
        yield other


async def fill(cluster: Cluster, count: int = TOPICS) -> list[FileId]:
    return list(await fill_directory(cluster, b"d", count=count))


class Fates:
    """What can become of a topic, as another host makes it or as it lies in etcd."""

    def __init__(self, cluster: Cluster, dice: random.Random) -> None:
        self.cluster = cluster
        self.keys = KeySchema(cluster.settings.prefix)
        self.dice = dice

    async def pushed(self, topic: FileId) -> None:
        for _ in range(self.dice.randrange(1, 4)):
            size = self.dice.randrange(1, 200)
            born = self.cluster.namespace.tree.get(topic).revision
            await self.cluster.log.append(topic, Chunk.of_lines(b"x" * size + b"\n"), born=born)

    async def reset(self, topic: FileId) -> None:
        await self.cluster.log.reset(topic)

    async def reset_and_pushed(self, topic: FileId) -> None:
        await self.reset(topic)
        await self.pushed(topic)

    async def reset_and_not_swept(self, topic: FileId) -> None:
        await self.pushed(topic)
        puts = generation.begin(self.keys, topic, 12)
        await self.cluster.client.transaction((), [etcd.put(key, value) for key, value in puts])

    async def reset_by_deletion(self, topic: FileId) -> None:
        await self.pushed(topic)
        gone = generation.end(self.keys, topic)
        await self.cluster.client.transaction((), [etcd.delete(key) for key in gone])

    async def deleted(self, topic: FileId) -> None:
        gone = generation.end_topic(self.keys, topic)
        await self.cluster.client.transaction((), [etcd.delete(key) for key in gone])

    async def corrupt(self, topic: FileId) -> None:
        await self.cluster.client.put(self.keys.head(topic), b"no head")

    async def another_time(self, topic: FileId) -> None:
        await self.cluster.client.put(self.keys.last(topic), b'{ "time": 17, "new": 1 }')

    async def corrupt_time(self, topic: FileId) -> None:
        await self.cluster.client.put(self.keys.last(topic), encode_time(3)[:-2])


FATES = [name for name in vars(Fates) if not name.startswith("_")]


async def surveyed(cluster: Cluster, topics: list[FileId], *, among: int) -> dict[FileId, TopicStat]:
    """Return what a survey has found."""
    began = trio.current_time()
    await cluster.log.survey(topics, among=among).wait()
    within = trio.current_time() - began + A_MOMENT
    found = {topic: cluster.log.peek(topic, within) for topic in topics}
    return {topic: stat for topic, stat in found.items() if stat is not None}


async def one_by_one(settings: Settings, topics: list[FileId]) -> dict[FileId, TopicStat]:
    """Return what each topic's own stat shows on a host that knows nothing yet, where it shows something."""
    found = {}
    async with open_cluster(settings) as fresh:
        for topic in topics:
            with suppress(TopicGone, CorruptData):
                found[topic] = await fresh.log.stat(topic)
    return found


DENSE, SPARSE = TOPICS, 100 * TOPICS


@pytest.mark.parametrize("fates", [["pushed", "reset"], FATES], ids=["all in a generation", "all fates"])
@pytest.mark.parametrize("among", [DENSE, SPARSE], ids=["by range", "by key"])
async def test_sizes_and_times_are_those_of_each_stat(
    cluster: Cluster, other: Cluster, among: int, fates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is new, and then what has changed since, also when a range's tails come in several pages."""
    monkeypatch.setattr(survey, "TAIL_KEYS", 50)
    dice = random.Random(1)
    topics = await fill(cluster)
    await other.namespace.sync()
    happen = Fates(other, dice)
    assert await surveyed(cluster, topics, among=among) == await one_by_one(cluster.settings, topics)
    for share in (0.9, 0.05):
        for topic in topics:
            if dice.random() < share:
                with suppress(TopicGone, CorruptData):  # what came before is in its way
                    await getattr(happen, dice.choice(fates))(topic)
        found = await surveyed(cluster, topics, among=among)
        single = await one_by_one(cluster.settings, topics)
        assert found == single
        stats = await cluster.log.stats(topics, among=among)
        assert {topic: stats.get(topic) for topic in single} == single
        assert bool(stats.keys() - single.keys()) == ("corrupt" in fates), "what is wrong with it is told"
        assert len(found) > TOPICS / 4
        assert len({stat.end for stat in found.values()}) > 20


async def test_hundreds_of_topics_take_few_reads(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    topics = await fill(cluster)
    sent = Transactions(monkeypatch)
    assert len(await surveyed(cluster, topics, among=DENSE)) == TOPICS
    assert sent.count == 2, "all at once, in two groups"
    assert len(await surveyed(cluster, topics, among=DENSE)) == TOPICS
    assert sent.count == 4, "nothing has changed: looks settle it"
    assert len(await surveyed(cluster, topics[:60], among=SPARSE)) == 60
    assert sent.count == 6, "by key, 40 topics a look"
    assert len(await cluster.log.stats(topics, among=DENSE)) == TOPICS
    assert sent.count < 20, "those that are looked at last are as fresh as the first"


async def test_this_hosts_own_pushes_and_resets_are_never_missing(cluster: Cluster) -> None:
    """They overtake surveys under way."""
    topics = await fill(cluster)
    ours, happen = topics[:8], Fates(cluster, random.Random(2))
    for number in range(20):
        under_way = cluster.log.survey(topics, among=DENSE)
        topic = ours[number % len(ours)]
        await (happen.reset if number % 5 == 4 else happen.pushed)(topic)
        now = await cluster.log.stat(topic)
        await under_way.wait()
        assert cluster.log.peek(topic, within=A_WHILE) in (now, None)
        assert await cluster.log.stat(topic) == now


async def test_what_a_survey_began_before_an_own_push_is_not_shown(cluster: Cluster) -> None:
    [topic, *_] = await fill(cluster, 1)
    await cluster.log.survey([topic], among=1).wait()
    before = cluster.log._sizes.ask(topic, trio.current_time())
    assert before is not None
    before = replace(before)
    await Fates(cluster, random.Random(1)).pushed(topic)
    cluster.log._sizes._known.clear()
    before.confirmed_at = trio.current_time()  # its answer has only now come
    cluster.log._sizes.learned(topic, before)
    assert cluster.log.peek(topic, within=A_WHILE) is None
    assert (await cluster.log.stat(topic)).end > before.end


async def test_stats_of_what_this_host_follows_are_as_new_as_the_rest(
    cluster: Cluster, other: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view can be behind what has been acknowledged elsewhere: here the survey always is faster."""
    [topic, *_] = await fill(cluster, 1)
    await other.namespace.sync()

    async def at_once(_: survey.Survey) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(survey.Survey, "wait", at_once)
    async with cluster.log.reader(topic):
        for _ in range(10):
            await Fates(other, random.Random(1)).pushed(topic)
            pushed = await other.log.stat(topic)
            assert await cluster.log.stats([topic], among=1) == {topic: pushed}


async def test_a_survey_without_etcd_is_not_waited_for(
    server: EtcdProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", survey.logger.name)
    monkeypatch.setattr(survey, "PATIENCE_S", 0.1)
    async with open_cluster(Settings(endpoints=(server.endpoint,), op_timeout=2)) as cluster:
        server.kill()
        asked = cluster.log.survey([FileId(5)], among=1)
        await asked.wait()
        assert not asked.done
        assert cluster.log.peek(FileId(5), within=A_WHILE) is None
        monkeypatch.setattr(survey, "PATIENCE_S", 60)
        await asked.wait()
        assert asked.done
    assert "each stat asks for itself" in caplog.text
