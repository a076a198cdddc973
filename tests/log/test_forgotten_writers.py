"""Hosts that have pushed to more topics than they remember: still each push once, in order."""

import random
from collections.abc import AsyncIterator
from itertools import count

import pytest
import trio

import dnpipefs
from dnpipefs import Dnp
from dnpipefs.core.batch import Chunk
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Revision, SessionId
from dnpipefs.log import appender
from dnpipefs.log.committing import NOT_REMEMBERED
from dnpipefs.log.pushes import Push, Writer
from tests.etcd.conftest import proxy, server, shared_server
from tests.support.etcd_process import EtcdProcess
from tests.support.tcp_proxy import Mode, TcpProxy

__all__ = ["proxy", "server", "shared_server"]

REMEMBERED = 3
TOPICS = [f"topic{number}" for number in range(8)]
S1, S2 = SessionId(1), SessionId(2)

_numbers = count()


@pytest.fixture(autouse=True)
def remember_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "WRITERS_LIMIT", REMEMBERED)


@pytest.fixture
async def dnp(shared_server: EtcdProcess) -> AsyncIterator[Dnp]:
    async with dnpipefs.connect(shared_server.endpoint, prefix=f"/writers/{next(_numbers)}/") as dnp:
        yield dnp


def remembered(dnp: Dnp) -> int:
    return len(dnp._log._appender._writers)


async def lines(dnp: Dnp, topic: str) -> list[bytes]:
    return [message.data async for message in dnp.pull(topic)]


async def test_invariant_7_writers_are_few_and_every_push_is_there_once(dnp: Dnp) -> None:
    """Also after resets, of which a forgotten writer does not know."""
    dice = random.Random(3)
    expected: dict[str, list[bytes]] = {topic: [] for topic in TOPICS}
    for number in range(150):
        topic = dice.choice(TOPICS)
        if dice.random() < 0.1 and expected[topic]:
            await dnp.reset(topic)
            expected[topic].clear()
        await dnp.push(topic, str(number))
        expected[topic].append(b"%d\n" % number)
        assert remembered(dnp) <= REMEMBERED
    for topic in TOPICS:
        assert await lines(dnp, topic) == expected[topic]


async def test_writers_at_work_are_not_forgotten(dnp: Dnp) -> None:
    for topic in TOPICS:
        await dnp.push(topic, "first")

    dice = random.Random(4)
    numbers = range(40)
    work = [(topic, number) for topic in TOPICS for number in numbers]
    dice.shuffle(work)
    waiting = iter(work)

    async def push() -> None:
        for topic, number in waiting:
            await dnp.push(topic, str(number))

    async with trio.open_nursery() as nursery:
        for _ in range(2 * len(TOPICS)):
            nursery.start_soon(push)
    for topic in TOPICS:
        first, *others = await lines(dnp, topic)
        assert first == b"first\n"
        assert sorted(others) == sorted(b"%d\n" % number for number in numbers)
    await dnp.push("another", "line")
    assert remembered(dnp) <= len(TOPICS) + 1


async def test_a_number_is_looked_up_over_a_bad_network(proxy: TcpProxy) -> None:
    async with dnpipefs.connect(proxy.endpoint, prefix="/writers/proxy/", op_timeout=20) as dnp:
        for topic in TOPICS:
            await dnp.push(topic, "first")
        proxy.become(Mode.SWALLOW_ANSWERS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dnp.push, TOPICS[0], "second")
            await proxy.swallowed.wait()
            proxy.heal()
        assert await lines(dnp, TOPICS[0]) == [b"first\n", b"second\n"]


def writer() -> Writer:
    keys, topic = KeySchema(), FileId(7)
    return Writer(topic, Revision(1), keys.epoch(topic), keys.last(topic), session=S1, sequence=4)


def test_a_writer_is_idle_when_nothing_of_it_is_under_way_or_in_doubt() -> None:
    assert writer().idle(S1)
    for attribute, value in (("busy", True), ("ready", True)):
        working = writer()
        setattr(working, attribute, value)
        assert not working.idle(S1)
    queued = writer()
    queued.queue.append(Push(Chunk.of_lines(b"x\n"), 1.0))
    assert not queued.idle(S1)
    in_doubt = writer()
    in_doubt.abandoned = 5
    assert not in_doubt.idle(S1)
    assert in_doubt.idle(S2), "what a lost session left cannot be applied any more"
    never_found = writer()
    never_found.sequence = NOT_REMEMBERED
    assert never_found.idle(S1)
    in_doubt.sequence = 5
    assert in_doubt.idle(S1), "its number is taken"
