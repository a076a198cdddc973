"""When readers get what a host has without asking etcd, and what is in it all the same."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from dnpipefs.core.names import Offset
from dnpipefs.errors import TimedOut
from dnpipefs.log.barrier import READERS
from dnpipefs.log.reader import Reader
from dnpipefs.log.staleness import STALE_AFTER_S
from dnpipefs.log.views import LINGER_S, LiveView
from tests.log.conftest import Hosts
from tests.model.hosts import Host
from tests.model.oracle import Topic
from tests.support.network import Fate

LINE = b"line\n"
A_MOMENT_S = 0.01


class Case:
    """A host that has a topic open for reading, and a network that waits for the test."""

    def __init__(
        self,
        hosts: Hosts,
        host: Host,
        topic: Topic,
        reader: Reader,
        live: LiveView,
        nursery: trio.Nursery,
    ) -> None:
        self.hosts = hosts
        self.host = host
        self.topic = topic
        self.reader = reader
        self.live = live
        self.nursery = nursery
        self.told: list[bytes] = []
        """What reads behind the first line have returned."""

    @property
    def stale(self) -> bool:
        return self.host.staleness.since is not None

    async def read(self) -> None:
        """Read behind the first line."""
        self.told.append((await self.reader.read(Offset(len(LINE)), 100)).data)

    async def become_stale(self) -> None:
        """Let a reader wait for etcd in vain."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.read)
            await self.hosts.gates()
            await self.hosts.pass_time(STALE_AFTER_S + A_MOMENT_S)
        assert self.stale
        self.told.clear()

    async def answer(self, what: str) -> None:
        """Let etcd answer what it was asked of a kind."""
        for gate in await self.hosts.gates(what):
            gate.open()
        await self.hosts.gates()


@asynccontextmanager
async def case_of(hosts: Hosts, *, read_stale: bool = True) -> AsyncIterator[Case]:
    hosts.cluster.read_stale = read_stale
    host, topic = await hosts.start(), await hosts.topic()
    await hosts.append(host, topic, LINE)
    reader, live = await host.log.open_reader(topic.id, may_be_stale=True)
    network = hosts.cluster.network
    network.open = False
    async with trio.open_nursery() as nursery:
        try:
            yield Case(hosts, host, topic, reader, live, nursery)
        finally:
            network.open = True
            for gate in list(network.waiting):
                gate.open()
            nursery.cancel_scope.cancel()
    await hosts.shown(topic)


async def test_a_reader_waits_for_etcd_and_those_after_it_do_not(hosts: Hosts, mock_clock: MockClock) -> None:
    async with case_of(hosts) as case:
        for _ in range(2):
            case.nursery.start_soon(case.read)
        await hosts.gates()
        await hosts.pass_time(STALE_AFTER_S - A_MOMENT_S)
        assert case.told == []
        assert not case.stale
        await hosts.pass_time(2 * A_MOMENT_S)
        assert case.told == [b"", b""]
        assert case.stale
        await case.read()
        assert case.told == [b"", b"", b""], "no time has passed"


async def test_one_answer_of_etcd_ends_it(hosts: Hosts, mock_clock: MockClock) -> None:
    async with case_of(hosts) as case:
        await case.become_stale()
        for _ in range(5):  # nobody reads any more, and yet it is asked
            for gate in await hosts.gates("read"):
                gate.open(Fate.REFUSE)
            await hosts.pass_time(2)
        assert case.stale
        for _ in range(40):  # who asks may be in a pause between two tries, or have just given one up
            await case.answer("read")
            if not case.stale:
                break
            await hosts.pass_time(0.5)
        assert not case.stale
        case.nursery.start_soon(case.read)
        await hosts.gates()
        assert case.told == [], "it waits as the first one did"
        for _ in range(READERS + 1):  # what was asked before it may be under way still
            if not case.told:
                await case.answer("read")
        assert case.told == [b""]


async def test_what_this_host_has_pushed_is_never_missing(hosts: Hosts, mock_clock: MockClock) -> None:
    """A push may return before the next question of a reader is answered."""
    async with case_of(hosts) as case:
        await case.become_stale()
        case.nursery.start_soon(hosts.append, case.host, case.topic, b"more\n")
        await case.answer("commit")
        case.nursery.start_soon(case.read)
        await hosts.gates()
        assert case.told == [], "the view has it not yet"
        with trio.fail_after(3600):  # the event comes from a real etcd, in its own time
            while not case.told:
                await case.answer("watch")
        assert case.told == [b"more\n"]
        assert case.stale


async def test_who_is_not_to_get_anything_stale_waits(hosts: Hosts, mock_clock: MockClock) -> None:
    async with case_of(hosts) as case:
        await case.become_stale()
        failures: list[TimedOut] = []

        async def open_strictly() -> None:
            with pytest.raises(TimedOut) as failed:
                await case.host.log.open_reader(case.topic.id)
            failures.append(failed.value)

        case.nursery.start_soon(open_strictly)
        await hosts.gates()
        await hosts.pass_time(hosts.cluster.op_timeout - A_MOMENT_S)
        assert failures == []
        await hosts.pass_time(2 * A_MOMENT_S)
        assert len(failures) == 1


async def test_nothing_is_stale_on_a_host_that_was_not_told_so(hosts: Hosts, mock_clock: MockClock) -> None:
    async with case_of(hosts, read_stale=False) as case:
        failures: list[TimedOut] = []

        async def read() -> None:
            with pytest.raises(TimedOut) as failed:
                await case.read()
            failures.append(failed.value)

        case.nursery.start_soon(read)
        await hosts.gates()
        await hosts.pass_time(hosts.cluster.op_timeout - A_MOMENT_S)
        assert failures == []
        await hosts.pass_time(2 * A_MOMENT_S)
        assert len(failures) == 1
        assert case.told == []
        assert not case.stale


async def test_views_are_kept_while_there_would_be_no_new_ones(hosts: Hosts, mock_clock: MockClock) -> None:
    async with case_of(hosts) as case:
        other = await hosts.topic()
        case.hosts.cluster.network.open = True
        _, unused = await case.host.log.open_reader(other.id)
        case.host.log.close_reader(unused)  # before it begins, and the other one after that
        case.hosts.cluster.network.open = False
        await case.become_stale()
        case.host.log.close_reader(case.live)
        await hosts.pass_time(10 * LINGER_S, steps=10)
        views = [case.host.view(topic.id) for topic in (case.topic, other)]
        assert None not in views
        await case.answer("read")
        assert not case.stale
        await hosts.pass_time(LINGER_S + A_MOMENT_S)
        assert [case.host.view(topic.id) for topic in (case.topic, other)] == [None, None]
