"""What is wrong with one topic is told those who push to it; whose pushes go with theirs are not harmed."""

from __future__ import annotations

from typing import Any, Final

import pytest
from trio.testing import MockClock

from dnpipefs.core.batch import Chunk
from dnpipefs.core.names import FileId
from dnpipefs.errors import CorruptData, DnpError, UnknownOutcome
from dnpipefs.log.pushes import Batch, Writer
from tests.log.conftest import Hosts
from tests.model.hosts import Host
from tests.model.oracle import Topic
from tests.support.network import Fate, Gate


class Pushes:
    """Pushes to two topics that go in one transaction, and what became of them."""

    def __init__(self, hosts: Hosts, host: Host, first: Topic, second: Topic) -> None:
        self._hosts: Final = hosts
        self._host: Final = host
        self._topics: Final = first, second
        self.fates: dict[FileId, type[DnpError] | None] = {}

    async def _push(self, topic: Topic, note: bool) -> None:
        fate = None
        try:
            await self._hosts.append(self._host, topic, b"x\n")
        except DnpError as error:
            fate = type(error)
        if note:
            self.fates[topic.id] = fate

    async def begin(self) -> Gate:
        """Push, and return the transaction with both: they gather while others are under way."""
        others = [await self._hosts.topic(), await self._hosts.topic()]
        self._hosts.cluster.network.open = False
        for topic in others:
            self._host.nursery.start_soon(self._push, topic, False)
            await self._hosts.cluster.network.settle()
        for topic in self._topics:
            self._host.nursery.start_soon(self._push, topic, True)
            await self._hosts.cluster.network.settle()
        under_way = await self._hosts.gates("commit")
        under_way[0].open()
        [both] = [gate for gate in await self._hosts.gates("commit") if gate not in under_way]
        under_way[1].open()
        return both

    async def end(self) -> None:
        """Let everything through."""
        self._hosts.cluster.network.open = True
        for gate in await self._hosts.gates():
            gate.open()
        await self._hosts.pass_time(2, steps=4)


async def damaged_and_whole(hosts: Hosts, host: Host) -> tuple[Topic, Topic]:
    """Return two topics with a message each; the oracle looks no more at the first one."""
    damaged, whole = await hosts.topic(), await hosts.topic()
    for topic in (damaged, whole):
        await hosts.append(host, topic, b"before\n")
    await hosts.shown(damaged)
    del hosts.cluster.oracle.topics[damaged.id]
    return damaged, whole


@pytest.mark.parametrize(("fate", "told"), [(Fate.DELIVER, CorruptData), (Fate.LOSE_REQUEST, UnknownOutcome)])
async def test_a_fence_that_does_not_parse_fails_the_pushes_to_its_topic_only(
    hosts: Hosts, mock_clock: MockClock, fate: Fate, told: type[DnpError]
) -> None:
    host = await hosts.start()
    damaged, whole = await damaged_and_whole(hosts, host)
    session = host.sessions.current()
    assert session is not None
    await hosts.cluster.store.put(hosts.cluster.keys.writer(damaged.id, session), b"damaged")
    pushes = Pushes(hosts, host, damaged, whole)
    (await pushes.begin()).open(fate)
    await pushes.end()
    assert pushes.fates == {damaged.id: told, whole.id: None}
    assert (await hosts.shown(whole)).messages == 2


async def test_a_head_that_does_not_parse_fails_the_pushes_to_its_topic_only(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    """It is needed when the session is lost: is what went unanswered sealed?"""
    host = await hosts.start()
    damaged, whole = await damaged_and_whole(hosts, host)
    session = host.sessions.current()
    assert session is not None
    await hosts.cluster.store.put(hosts.cluster.keys.head(damaged.id), b"damaged")
    pushes = Pushes(hosts, host, damaged, whole)
    (await pushes.begin()).open(Fate.LOSE_REQUEST)
    await hosts.cluster.network.settle()
    await hosts.cluster.store.lease_revoke(session)
    await pushes.end()
    assert pushes.fates == {damaged.id: UnknownOutcome, whole.id: None}
    assert (await hosts.shown(whole)).messages == 2
    hosts.complaints.found.clear()


async def test_a_fault_of_ours_in_one_batch_fails_its_pushes_only(
    hosts: Hosts, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await hosts.start()
    first, second = await hosts.topic(), await hosts.topic()
    make = Batch.of

    def fail_once(writer: Writer, *arguments: Any) -> Batch:
        if writer.topic == first.id:
            monkeypatch.undo()
            raise MemoryError("no room to encode it")
        return make(writer, *arguments)

    monkeypatch.setattr(Batch, "of", fail_once)
    pushes = Pushes(hosts, host, first, second)
    (await pushes.begin()).open()
    await pushes.end()
    assert pushes.fates == {first.id: DnpError, second.id: None}
    born = first.generations[0].began
    await host.log.append(first.id, Chunk.of_message(b"next\n"), born=born)
    assert [(await hosts.shown(topic)).messages for topic in (first, second)] == [1, 1]
    [complaint] = hosts.complaints.found
    assert "a commit failed unexpectedly" in complaint
    hosts.complaints.found.clear()
