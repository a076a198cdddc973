"""Random lives of consumer groups: the steps of `scenario.py`, and readers that work or fail.

A host's groups, their members and its log are the real ones. At the end all faults stop, and then every
message must be acknowledged, with one reader a group; `group_oracle.py` judges all the way.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import trio

from dnpipefs import etcd
from dnpipefs.core import places
from dnpipefs.core.config import Start, TopicConfig
from dnpipefs.core.names import FileId, SessionId
from dnpipefs.core.sealing import Policy, Retention
from dnpipefs.errors import (
    DnpError,
    NotFound,
    OutOfSpace,
    TimedOut,
    TopicGone,
)
from dnpipefs.groups import Delivery, Groups, Member
from tests.model.group_oracle import Asking, GroupOracle, Place, Receipt
from tests.model.hosts import CLOCKS_DIFFER_S, SECOND_NS, Cluster, Complaints, Host
from tests.model.scale import small_scale
from tests.model.scenario import HOSTS, Scenario
from tests.support.network import Gate, GatedClient, Network, Request

GROUPS: Final = (b"a", b"b")
READERS: Final = 8
NO_PROGRESS_S: Final = 15.0
"""The longest time, when all faults have stopped, in which nothing may be acknowledged though all is not."""
MEET: Final = (OutOfSpace, TimedOut, TopicGone)
"""What a reader may be told."""

_MORE_OR_LESS: Final = (0, 0.3, 1, 1, 1, 3)
_RETENTIONS: Final = (Retention(), Retention(), Retention(messages=6), Retention(bytes=200))
_LIMITS: Final = {
    "groups.member.STOCK_MESSAGES": 12,
    "groups.feed.STOCK_BYTES": 150,
    "groups.feed.READ_BYTES": 200,
    "core.group.CHUNK_S": 1.0,
    "core.group.RETURNED_STRETCHES": 3,
    "core.group.HELD_STRETCHES": 5,
}


@contextmanager
def small_groups() -> Iterator[pytest.MonkeyPatch]:
    """Scale down until the block ends."""
    with small_scale() as patch:
        for name, value in _LIMITS.items():
            patch.setattr(f"dnpipefs.{name}", value)
        yield patch


class SlowClient(GatedClient):
    """A way to etcd on which some answers are overtaken: by what watches bring, above all."""

    def __init__(self, inner: etcd.Client, network: Network, host: str) -> None:
        super().__init__(inner, network, host)
        self._answers = itertools.count(1)
        self.overtaken = 0
        """Every so manieth answer is; none if zero."""

    async def _fulfil(self, request: Request) -> object:
        result = await super()._fulfil(request)
        if not self.dead and self.overtaken and next(self._answers) % self.overtaken == 0:
            await self.network.pass_gate(Gate(self.host, "answer"))
            if self.dead:
                raise etcd.Unreachable("this host is dead")
        return result


class GroupHost(Host):
    """One host's services, its groups included."""

    def __init__(self, name: str, scenario: GroupScenario, cluster: Cluster, skew_s: float) -> None:
        super().__init__(name, cluster, skew_s, SlowClient)
        self._scenario: Final = scenario
        assert isinstance(self.client, SlowClient)
        self.client.overtaken = scenario.draw.choice((0, 0, 3, 8))
        self.groups: Final = Groups(
            self.client,
            cluster.keys,
            self.log,
            lambda topic: scenario.configs[topic],
            self._bury,
            op_timeout=cluster.op_timeout,
        )

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            nursery.start_soon(self.sessions.run)
            nursery.start_soon(self._barrier.run)
            await nursery.start(self.log.run)
            await nursery.start(self.groups.run)
            task_status.started()
            await trio.sleep_forever()

    def kill(self) -> None:
        self._scenario.oracle.killed.add(self.name)
        super().kill()

    async def _bury(self, topic: FileId, name: bytes, delivery: Delivery) -> None:
        member = self.groups._members[topic, name]
        session = member._session
        await self._cluster.network.pass_gate(Gate(self.name, "bury"))
        if not self._cluster.network.open and self._scenario.chance(0.2):
            raise TimedOut("the dead letters cannot be reached")
        assert session is not None
        place = Place(topic, name, delivery.term, delivery.number)
        self._scenario.oracle.acks.setdefault(place, set()).add(session)
        self._cluster.seen["buried"] += 1


class GroupReader:
    """A reader of a group: it takes messages, has them for a while, acknowledges them or not."""

    def __init__(self, scenario: GroupScenario, host: GroupHost, topic: FileId, group: bytes) -> None:
        self._scenario = scenario
        self.host = host
        self._topic = topic
        self._group = group
        self._cluster = scenario.cluster
        self._oracle = scenario.oracle
        self._draw = random.Random(scenario.draw.random())
        self._faithful = self._draw.random() < 0.3
        self.ends = False
        """It is to close the group when it has done what it does."""
        self.scope = trio.CancelScope()
        self.waits = False

    async def run(self) -> None:
        """Live."""
        seen = self._cluster.seen
        self._scenario.readers.append(self)
        try:
            with self.scope:
                async with self.host.groups.reading(self._topic, self._group) as member:
                    while not self.ends:
                        await self._take_some(member)
                        if not self._cluster.network.open and self._draw.random() < 0.1:
                            break
            seen["reader closed"] += 1
        except MEET as error:
            seen[f"reader: {type(error).__name__}"] += 1
        except AssertionError as error:
            self._cluster.fail(str(error))
        except DnpError as error:
            if self.host.name not in self._oracle.killed:
                self._cluster.fail(f"a reader met {error!r}")
        finally:
            self._scenario.readers.remove(self)

    async def _take_some(self, member: Member) -> None:
        if not self._cluster.network.open and self._draw.random() < 0.2:
            first = await self._take_now(member)
            if first is None:
                await self._pause("nothing")
                return
        else:
            self.waits = True
            try:
                first = await member.take()
            finally:
                self.waits = False
        had = [self._receive(member, first)]
        while self._draw.random() < 0.2 and (more := member.take_more()) is not None:
            had.append(self._receive(member, more))
        await self._cluster.catch_up()
        if self._cluster.failure is not None:
            return  # the oracle has stopped
        for delivery, receipt, place in had:
            self._oracle.handed_out(place, delivery.data, receipt)
        self._cluster.seen["delivered"] += len(had)
        try:
            for delivery, receipt, place in had:
                await self._pause("in hand")
                if self._cluster.network.open or self._faithful or self._draw.random() < 0.7:
                    self._acknowledge(member, delivery, place)
                elif self._draw.random() < 0.8:
                    receipt.over = True
                    # What is given back as not delivered was no delivery, and a limit does not count it.
                    receipt.counts = self._draw.random() < 0.7
                    self._cluster.seen["given back"] += member.give_back(delivery, delivered=receipt.counts)
        finally:
            for delivery, receipt, _ in had:  # as a handle does that is closed
                receipt.over = receipt.over or member.give_back(delivery)

    def _receive(self, member: Member, delivery: Delivery) -> tuple[Delivery, Receipt, Place]:
        session = member._session
        assert session is not None
        place = Place(self._topic, self._group, delivery.term, delivery.number)
        return delivery, Receipt(self.host.name, session, delivery.deadline), place

    def _acknowledge(self, member: Member, delivery: Delivery, place: Place) -> None:
        session = member._session
        if member.acknowledge(delivery):
            assert session is not None
            self._oracle.acks.setdefault(place, set()).add(session)
            self._cluster.seen["reader acknowledged"] += 1
        else:
            self._cluster.seen["late acknowledgement"] += 1

    async def _take_now(self, member: Member) -> Delivery | None:
        await self._cluster.catch_up()
        asking = Asking(self._topic, self._group)
        self._oracle.asking.append(asking)
        asking.saw_nothing = not self._oracle.claimable(self._topic, self._group)
        try:
            first = await member.take_now()
            await self._cluster.catch_up()
        finally:
            self._oracle.asking.remove(asking)
        if first is None:
            self._cluster.seen["nothing now"] += 1
            assert asking.saw_nothing, "there is nothing now, it was said, and there was all the time"
        return first

    async def _pause(self, what: str) -> None:
        await self._cluster.network.pass_gate(Gate(self.host.name, what))


class GroupScenario(Scenario):
    """One life of a cluster with groups."""

    def __init__(self, cluster: Cluster, nursery: trio.Nursery, complaints: Complaints) -> None:
        self.cluster: Final = cluster
        self.draw: Final = cluster.draw
        assert isinstance(cluster.oracle, GroupOracle)
        self.oracle: Final = cluster.oracle
        self.oracle.begin()
        self.configs: Final[dict[FileId, TopicConfig]] = {}
        self.readers: Final[list[GroupReader]] = []
        super().__init__(cluster, nursery, complaints)
        self._haste = self.draw.choice((0.6, 0.75, 0.85))
        for kind in ("large", "parts"):
            self._kinds[kind] = 0

    def chance(self, likely: float) -> bool:
        return self.draw.random() < likely

    def _weigh(self) -> dict[Callable[[], Awaitable[None]], float]:
        actions: dict[Callable[[], Awaitable[None]], float] = {
            self._begin_reader: 12,
            self._end_reader: 3,
            self._cancel_reader: 2,
            self._rewind: 1.5,
            self._delete_group: 0.3,
            self._seal: 3,
            self._trim: 4,
            self._wait: 10,
            self._let_late_ones_arrive: 6,
            self._reset: 1,
            self._new_host: 4,
            self._kill: 1.5,
            self._lose_session: 1.5,
            self._end_lease: 6,
            self._fill_or_free: 0.4,
            self._delete: 0.15,
            self._compact: 0.6,
            self._wait_long: 0.5,
        }
        weights = {action: weight * self.draw.choice(_MORE_OR_LESS) for action, weight in actions.items()}
        return weights | {self._push: 14, self._begin_reader: 20}

    async def _new_host(self) -> None:
        if len(self.cluster.hosts) >= HOSTS:
            return
        skew_s = self.draw.uniform(-CLOCKS_DIFFER_S, CLOCKS_DIFFER_S)
        host = GroupHost(f"host{next(self._names)}", self, self.cluster, skew_s)
        await self._nursery.start(host.run)
        self.cluster.hosts.append(host)
        await self._until(lambda: host.sessions.current() is not None)

    async def _new_topic(self) -> None:
        topic = FileId(0x100 + next(self._numbers))
        config = TopicConfig(
            start=self.draw.choice((Start.FIRST, Start.FIRST, Start.LAST)),
            visibility_timeout_ns=self.draw.choice((None, None, 2 * SECOND_NS)),
            max_deliveries=self.draw.choice((None, None, 1, 2)),
        )
        self.configs[topic] = config
        self.oracle.limits[topic] = config.max_deliveries
        await self.cluster.create(topic, Policy(self.draw.choice(_RETENTIONS), compress=False))

    def _group_host(self) -> GroupHost:
        host = self._host()
        assert isinstance(host, GroupHost)
        return host

    async def _begin_reader(self) -> None:
        if len(self.readers) < READERS:
            await self._read_group(self._group_host(), self._topic().id, self.draw.choice(GROUPS))

    async def _read_group(self, host: GroupHost, topic: FileId, group: bytes) -> None:
        host.nursery.start_soon(GroupReader(self, host, topic, group).run)
        await self._network.settle()

    async def _end_reader(self) -> None:
        if self.readers:
            self.draw.choice(self.readers).ends = True

    async def _cancel_reader(self) -> None:
        if self.readers:
            reader = self.draw.choice(self.readers)
            self._seen["reader cancelled, waiting"] += reader.waits
            reader.scope.cancel()
            await self._network.settle()

    async def _rewind(self) -> None:
        host, topic, group = self._group_host(), self._topic(), self.draw.choice(GROUPS)
        wanted: tuple[places.Place, ...] = ("first", 0, "last", int(self.draw.random() * 500))
        place = self.draw.choice(wanted)

        async def rewind() -> None:
            try:
                await host.groups.rewind(topic.id, group, place)
            except (*MEET, NotFound):
                raise
            except DnpError as error:
                if host.name not in self.oracle.killed:
                    self.cluster.fail(f"a rewind met {error!r}")
                raise

        await self._begin(host, "rewind", rewind)

    async def _delete_group(self) -> None:
        host, topic, group = self._group_host(), self._topic(), self.draw.choice(GROUPS)
        await self._begin(host, "delete group", lambda: host.groups.delete(topic.id, group))

    # The end

    async def _come_to_rest(self) -> None:
        """No more faults: with one reader a group everything is acknowledged, and none waits in vain."""
        cluster, network = self.cluster, self._network
        self._full = False
        network.open = True
        while network.waiting:
            for gate in list(network.waiting):
                gate.open()
            await network.settle()
        late = [] if self.chance(0.5) else network.late[:]
        if late:
            network.late.clear()
        while network.late:
            await self._arrive(network.late.pop())
        for session in sorted(cluster.sessions() - cluster.living()):
            await self._revoke(session)
        await self._until(lambda: all(host.sessions.current() is not None for host in cluster.hosts))
        for reader in self.readers:
            reader.scope.cancel()
        await network.settle()
        if self.chance(0.5):
            for topic in cluster.live_topics():
                await self._push_last(cluster.hosts[0], topic, 0)
        await self._drain()
        for request in late:
            await self._arrive(request)
        await self._drain()
        for topic in cluster.live_topics():  # and whoever waits then is woken by what comes then
            await self._push_last(cluster.hosts[0], topic, 0)
        await self._drain()

    async def _read_all(self) -> None:
        """Let each group have a reader."""
        served = {(reader._topic, reader._group) for reader in self.readers}
        for topic in self.cluster.live_topics():
            for group in GROUPS:
                if (topic.id, group) not in served:
                    await self._read_group(self._group_host(), topic.id, group)

    async def _drain(self) -> None:
        """Let each group have a reader, and wait until all of it is acknowledged."""
        acknowledged, since = -1, trio.current_time()
        while True:
            await self._read_all()  # what arrives late may delete a group, and create it again
            await self._network.settle()
            await self._judge()
            live = {topic.id for topic in self.cluster.live_topics()}
            left = [text for text in self.oracle.unfinished() if int(text.split("@")[0], 16) in live]
            if not left:
                return
            now = self._seen["reader acknowledged"] + self._seen["buried"]
            if now != acknowledged:
                acknowledged, since = now, trio.current_time()
            stuck = trio.current_time() - since > NO_PROGRESS_S
            assert not stuck, f"nothing goes on, and there is {left}; readers: {self._told()}"
            await self._pass_time(0.5)

    def _told(self) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for reader in self.readers:
            member = reader.host.groups._members.get((reader._topic, reader._group))
            session: SessionId | None = member._session if member is not None else None
            found.append((reader.host.name, reader._group, reader.waits, session))
        return found
