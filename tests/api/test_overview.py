"""All topics and groups at a glance: the same as topic by topic, in few reads."""

import time
from typing import Any

import pytest
import trio
import trio.testing

from dnpipefs import Dnp, TimedOut, TopicOverview, connect, etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.etcd.pool import Pool
from dnpipefs.groups import GroupFacts, groups
from dnpipefs.log import views
from dnpipefs.log.survey import Surveyor
from tests.api.conftest import Connect
from tests.api.test_groups import taken
from tests.api.test_retention import make
from tests.support.etcd_process import EtcdProcess


async def by_path(dnp: Dnp) -> dict[str, TopicOverview]:
    return {topic.path: topic for topic in await dnp.overview()}


async def both_ways(dnp: Dnp) -> tuple[dict[str, TopicOverview], dict[str, list[GroupFacts]]]:
    """Return all at a glance and topic by topic, of one moment: hosts go on claiming for a while."""
    with trio.fail_after(20):
        while True:
            found = await by_path(dnp)
            facts = {path: await dnp.groups(path) for path in found}
            if await by_path(dnp) == found:
                return found, facts


async def test_nothing(dnp: Dnp) -> None:
    await dnp.mkdir("empty")
    assert await dnp.overview() == []


async def test_topics_of_all_directories_and_their_sizes(dnp: Dnp, other: Dnp) -> None:
    await dnp.mkdir("team")
    await dnp.mkdir("team/deep")
    for path in ("b", "team/deep/x", "a", "team/t"):
        await dnp.push(path, "one", "two of " + path)
    await dnp.reset("b")
    await dnp.push("b")
    found = await by_path(other)
    assert list(found) == ["a", "b", "team/deep/x", "team/t"]
    for path, topic in found.items():
        config = await dnp.config(path)
        assert config.facts is not None
        assert topic.id == config.id
        assert topic.stat is not None
        assert topic.stat.generation == config.facts.generation
        assert (topic.stat.messages, topic.stat.end) == (config.facts.messages, config.facts.end_offset)
        assert 0 <= time.time_ns() - topic.stat.modified_ns < 60 * 10**9
        assert topic.groups == ()
    for number in range(3):
        await dnp.push("a", str(number))
        stat = (await by_path(other))["a"].stat
        assert stat is not None
        assert stat.messages == 3 + number, "what has returned is in it"


async def test_groups_are_as_topic_by_topic(dnp: Dnp, other: Dnp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "SURVEY_KEYS", 2)
    for topic in ("jobs", "none", "reset", "work"):
        await dnp.push(topic, *map(str, range(10)))
    await taken(dnp, "jobs", "a", 3)
    await taken(other, "jobs", "b", 10)
    await taken(other, "reset", "c", 5)
    await dnp.reset("reset")
    await dnp.push("reset", "1")
    async with dnp.consumer("work", "d") as consumer:
        await consumer.take()
        found, facts = await both_ways(other)
        for path, its in found.items():
            assert [tuple(state) for state in its.groups] == [(of.name, *of[2:]) for of in facts[path]]
    assert {path: [(state.name, state.lag) for state in topic.groups] for path, topic in found.items()} == {
        "jobs": [(b"a", 7), (b"b", 0)],
        "none": [],
        "reset": [(b"c", 1)],
        "work": [(b"d", 10)],
    }
    assert found["work"].groups[0].pending >= 1


async def test_groups_of_a_topic_that_was_trimmed(dnp: Dnp, other: Dnp) -> None:
    await make(dnp, retention__messages="100")
    await taken(dnp, "t", "w", 7)
    found, by_topic = await both_ways(other)
    topic, (facts,) = found["t"], by_topic["t"]
    assert topic.stat is not None
    assert topic.stat.first_message > 0
    assert tuple(topic.groups[0]) == (facts.name, *facts[2:])
    assert facts.lag == topic.stat.messages - 7


async def test_many_topics_take_few_reads(
    dnp: Dnp, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(120):
        await dnp.push(f"t{number:03}", *["x"] * (number % 7))
    calls = 0
    call = Pool.call

    async def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return await call(self, *args, **kwargs)

    async with connect() as fresh:
        monkeypatch.setattr(Pool, "call", counted)
        for _ in range(2):
            calls = 0
            found = await fresh.overview()
            assert [topic.stat and topic.stat.messages for topic in found] == [n % 7 for n in range(120)]
            assert [entry.size for entry in await fresh.ls()] == [2 * (n % 7) for n in range(120)]
            assert calls < 60, "not one for each topic; some are of what goes on besides"


async def test_nobody_follows_a_topic_because_its_size_is_asked_for(
    dnp: Dnp, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not if surveys fail, either; and what is followed for another reason does not go on because of it."""
    for number in range(10):
        await dnp.push(f"t{number}", "x")

    async def fail(*_: Any, **__: Any) -> None:
        raise TimedOut("etcd is slow")

    async with connect() as fresh:
        log = fresh._cluster.log
        monkeypatch.setattr(Surveyor, "_read", fail)
        for length in (1, 2):
            assert [topic.stat and topic.stat.messages for topic in await fresh.overview()] == [length] * 10
            assert [entry.size for entry in await fresh.ls()] == [2 * length] * 10
            assert log.followed == 0
            for number in range(10):
                await dnp.push(f"t{number}", "y")
        assert [message async for message in fresh.pull("t0")]
        assert log.followed == 1
        monkeypatch.setattr(views, "LINGER_S", 1e9)  # for whoever becomes a user of it now
        with trio.fail_after(20):
            while log.followed:
                await fresh.overview()


async def test_a_push_whose_answer_comes_late_hides_no_later_one(
    dnp: Dnp, other: Dnp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an append says of the size is as of when it was sent: another host may have pushed since."""
    await dnp.push("t", "1")
    await dnp.overview()
    commit, client = etcd.Client.commit, dnp._cluster.client
    committed, answer = trio.Event(), trio.Event()

    async def answer_late(self: etcd.Client, *args: Any, **kwargs: Any) -> etcd.TransactionResult:
        result = await commit(self, *args, **kwargs)
        if self is client:
            committed.set()
            await answer.wait()
        return result

    async def fail_late(*_: Any, **__: Any) -> None:
        answer.set()
        await trio.testing.wait_all_tasks_blocked()
        raise TimedOut("etcd is slow")

    monkeypatch.setattr(etcd.Client, "commit", answer_late)
    monkeypatch.setattr(Surveyor, "_read", fail_late)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dnp.push, "t", "2")
            await committed.wait()
            await other.push("t", "3")
            [topic] = await dnp.overview()
    assert topic.stat is not None
    assert topic.stat.messages == 3


async def test_records_that_do_not_parse(dnp: Dnp, shared_server: EtcdProcess) -> None:
    await dnp.push("bad", "x")
    await dnp.push("good", "x")
    keys = KeySchema(dnp._cluster.settings.prefix)
    bad, good = [(await dnp.config(name)).id for name in ("bad", "good")]
    async with etcd.open_client([shared_server.endpoint]) as client:
        await client.put(keys.head(bad), b"no head")
        await client.put(keys.all_groups.start + b"nonsense", b"{}")
        await client.put(keys.groups(good).start + b"later", b"{}")
    async with connect(shared_server.endpoint, prefix=dnp._cluster.settings.prefix) as fresh:
        found = await by_path(fresh)
        assert await fresh.groups("good") == []
    assert found["bad"].stat is None
    assert found["good"].stat is not None
    assert found["good"].groups == ()


async def test_etcd_is_away(server: EtcdProcess) -> None:
    async with connect(server.endpoint, op_timeout=1) as dnp:
        await dnp.push("t", "x")
        server.pause()
        with pytest.raises(TimedOut):
            await dnp.overview()
        server.resume()
        assert len(await dnp.overview()) == 1
