"""How long a caller waits for an etcd that does not answer: as long as was said, whoever it waits with."""

from __future__ import annotations

from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from dnpipefs import etcd
from dnpipefs.core.batch import Chunk
from dnpipefs.errors import OutOfSpace, TimedOut
from dnpipefs.log.failures import deadline
from tests.log.conftest import Hosts
from tests.model.hosts import Host
from tests.model.oracle import Topic
from tests.support.network import Fate

OP_TIMEOUT_S: Final = 30.0


class Told:
    """What became of pushes, by name."""

    def __init__(self, hosts: Hosts, host: Host, topic: Topic) -> None:
        self._hosts = hosts
        self._host = host
        self._topic = topic
        self.outcomes: dict[str, str] = {}

    async def push(self, name: str) -> None:
        try:
            await self._hosts.append(self._host, self._topic, f"{name}\n".encode())
        except TimedOut:
            self.outcomes[name] = "timed out"
        else:
            self.outcomes[name] = "ok"


async def outage(hosts: Hosts, seconds: float) -> None:
    """Let time pass with an etcd that takes no commit."""
    hosts.cluster.network.open = False
    for _ in range(round(seconds / 0.5)):
        await hosts.pass_time(0.5)
        for gate in await hosts.gates("commit"):
            gate.open(Fate.REFUSE)


async def recovery(hosts: Hosts) -> None:
    hosts.cluster.network.open = True
    for gate in await hosts.gates():
        gate.open()
    await hosts.pass_time(10, steps=20)


async def test_a_push_does_not_wait_for_what_came_later_into_its_batch(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    host, topic = await hosts.start(), await hosts.topic()
    told = Told(hosts, host, topic)
    await told.push("before")
    hosts.cluster.network.open = False
    host.nursery.start_soon(told.push, "first")
    await outage(hosts, OP_TIMEOUT_S - 10)
    host.nursery.start_soon(told.push, "second")
    await outage(hosts, 9)
    host.nursery.start_soon(told.push, "third")
    await outage(hosts, 3)  # a commit may pause when its time is up
    assert told.outcomes == {"before": "ok", "first": "timed out"}, "and the other two are one batch"
    await outage(hosts, OP_TIMEOUT_S - 10)
    assert told.outcomes == {"before": "ok", "first": "timed out", "second": "timed out"}
    await recovery(hosts)
    assert told.outcomes["third"] == "ok"


async def test_a_push_that_is_part_of_a_longer_call_waits_for_what_is_left(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    host, topic = await hosts.start(), await hosts.topic()
    await hosts.append(host, topic, b"before\n")
    began = trio.current_time()
    ended: list[float] = []

    async def push() -> None:
        born = topic.generations[0].began
        with pytest.raises(TimedOut):
            await host.log.append(topic.id, Chunk.of_message(b"line\n"), born=born, since=began)
        ended.append(trio.current_time() - began)

    await outage(hosts, 20)
    host.nursery.start_soon(push)
    await outage(hosts, 13)
    assert len(ended) == 1
    assert OP_TIMEOUT_S <= ended[0] <= OP_TIMEOUT_S + 2
    await recovery(hosts)


async def test_a_deadline_bounds_those_within_it(autojump_clock: object) -> None:
    began = trio.current_time()

    async def wait_for_three_things() -> None:
        with deadline(30):
            for _ in range(3):
                with deadline(30):
                    await trio.sleep(20)

    with pytest.raises(TimedOut):
        await wait_for_three_things()
    assert trio.current_time() - began == pytest.approx(30)


async def test_a_push_does_not_fail_with_one_that_has_less_time(hosts: Hosts, mock_clock: MockClock) -> None:
    """They are of one batch; that of the longer call has begun earlier."""
    host, topic = await hosts.start(), await hosts.topic()
    await hosts.append(host, topic, b"before\n")
    born = topic.generations[0].began
    outcomes: dict[str, str] = {}

    async def push(name: str, since: float) -> None:
        chunk = Chunk.of_lines(name.encode() + b"\n")
        try:
            await host.log.append(topic.id, chunk, born=born, since=since)
        except TimedOut:
            outcomes[name] = "timed out"
        else:
            outcomes[name] = "ok"

    hosts.cluster.network.open = False
    for name, ago in (("first", 0.0), ("fresh", 0.0), ("part", 28.0)):
        host.nursery.start_soon(push, name, trio.current_time() - ago)
        await hosts.cluster.network.settle()
    [first] = await hosts.gates("commit")
    first.open()
    await outage(hosts, 5)
    assert outcomes == {"first": "ok", "part": "timed out"}
    await recovery(hosts)
    assert outcomes["fresh"] == "ok"


async def test_a_push_whose_session_is_lost_is_told_that_there_is_no_room_for_another(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    host, topic = await hosts.start(), await hosts.topic()
    await hosts.append(host, topic, b"before\n")
    failed: list[float] = []

    async def full(*_: Any, **__: Any) -> None:
        raise etcd.SpaceExceeded("database space exceeded")

    async def push() -> None:
        with pytest.raises(OutOfSpace):
            await hosts.append(host, topic, b"x\n")
        failed.append(trio.current_time())

    host._ways.lease_grant = full  # type: ignore[method-assign, assignment]
    session = host.sessions.current()
    assert session is not None
    await hosts.cluster.store.lease_revoke(session)
    began = trio.current_time()
    host.nursery.start_soon(push)
    await hosts.pass_time(3, steps=6)
    assert failed
    assert failed[0] - began < 3


@pytest.mark.parametrize("applied", [False, True])
async def test_what_became_of_a_push_is_asked_again_when_its_session_is_lost(
    hosts: Hosts, mock_clock: MockClock, applied: bool
) -> None:
    """Etcd has just come back, and goes away once more: there is time left to find out."""
    host, topic = await hosts.start(), await hosts.topic()
    await hosts.append(host, topic, b"before\n")
    told, network = Told(hosts, host, topic), hosts.cluster.network
    network.open = False
    host.nursery.start_soon(told.push, "push")
    [commit] = await hosts.gates("commit")
    commit.open(Fate.LOSE_ANSWER if applied else Fate.LOSE_REQUEST)
    await network.settle()
    session = host.sessions.current()
    assert session is not None
    await hosts.cluster.store.lease_revoke(session)
    await hosts.pass_time(0.1)
    [again] = await hosts.gates("commit")
    again.open()  # it is refused
    [look] = await hosts.gates("read")
    look.open()  # and the session is gone
    for _ in range(3):
        [look] = await hosts.gates("read")
        look.open(Fate.REFUSE)
        await network.settle()
        await hosts.pass_time(1.0)
    await recovery(hosts)
    assert told.outcomes == {"push": "ok"}
    assert (await hosts.shown(topic)).messages == 2
