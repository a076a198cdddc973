"""Hosts on a real etcd of the test's own, with a clock of the test's and every request in its hand."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from dnpipefs.core.batch import Chunk
from dnpipefs.core.names import FileId, Revision
from dnpipefs.core.sealing import KEPT_WRITERS, Policy
from tests.etcd.conftest import server
from tests.model.hosts import Cluster, Complaints, Host, watched_log
from tests.model.oracle import Shown, Topic
from tests.model.runs import cluster_on_etcd, hosts_of
from tests.support.etcd_process import EtcdProcess
from tests.support.network import Gate

__all__ = ["server"]

CACHE_BYTES: Final = 64 << 20


class Hosts:
    """Hosts of one cluster. The oracle of `tests/model` judges everything they do."""

    def __init__(
        self, cluster: Cluster, nursery: trio.Nursery, clock: MockClock, complaints: Complaints
    ) -> None:
        self.cluster: Final = cluster
        self.complaints: Final = complaints
        self._nursery: Final = nursery
        self._clock: Final = clock
        self._names: Final = iter(range(1, 1000))

    async def start(self) -> Host:
        """Start another host."""
        host = Host(f"host{next(self._names)}", self.cluster, 0.0)
        await self._nursery.start(host.run)
        self.cluster.hosts.append(host)
        with trio.fail_after(3600):
            await host.sessions.get()
        return host

    async def kill(self, host: Host) -> None:
        """End a host as a power cut does; its lease lives on."""
        self.cluster.hosts.remove(host)
        host.kill()
        await self.cluster.network.settle()

    async def topic(self, policy: Policy = Policy()) -> Topic:  # noqa: B008 - immutable
        """Create a topic."""
        return await self.cluster.create(FileId(0x100 + next(self._names)), policy)

    async def append(self, host: Host, topic: Topic, *lines: bytes, compress: bool = True) -> Revision:
        """Append each of *lines* by itself; return the revision of the last."""
        revision = Revision(0)
        for line in lines:
            born = topic.generations[0].began
            revision = await host.log.append(topic.id, Chunk.of_message(line), born=born, compress=compress)
        return revision

    async def pass_time(self, seconds: float, *, steps: int = 1) -> None:
        """Let time pass, and all that it brings about."""
        for _ in range(steps):
            self._clock.jump(seconds / steps)
            await self.cluster.network.settle()

    async def carry_out(self, action: Callable[[], Awaitable[object]]) -> None:
        """Do what pauses now and then, and let the time pass for it."""
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def act() -> None:
                await action()
                done.set()

            nursery.start_soon(act)
            while not done.is_set():
                await self.pass_time(0.02)

    async def shown(self, topic: Topic) -> Shown:
        """Return what every view shows now, after a look whether it may."""
        await self.cluster.catch_up()
        if self.cluster.failure is not None:
            raise self.cluster.failure
        shown = topic.shown[-1][1]
        assert shown is not None, "the topic was deleted"
        return shown

    async def gates(self, what: str = "") -> Sequence[Gate]:
        """Return the requests and steps of sealing that wait for the test."""
        await self.cluster.network.settle()
        return [gate for gate in self.cluster.network.waiting if what in ("", gate.what)]

    def keys(self, area: bytes) -> list[bytes]:
        """Return the keys there are in an area of the schema."""
        prefix = self.cluster.keys.prefix + area + b"/"
        return [key for key in self.cluster.oracle.store if key.startswith(prefix)]


@pytest.fixture
async def hosts(server: EtcdProcess, mock_clock: MockClock) -> AsyncIterator[Hosts]:
    """No host yet; requests pass at once until the test closes `cluster.network`."""
    async with cluster_on_etcd(server.endpoint, "/log/", random.Random(0)) as cluster:
        cluster.network.open = True
        cluster.cache_bytes = CACHE_BYTES
        cluster.op_timeout = 30.0
        cluster.oracle.kept_writers = KEPT_WRITERS
        with watched_log() as complaints:
            async with hosts_of(cluster) as nursery:
                yield Hosts(cluster, nursery, mock_clock, complaints)
        assert cluster.failure is None
