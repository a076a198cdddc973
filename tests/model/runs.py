"""Scenarios on a store in memory, and the same ones on a real etcd."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock

from dnpipefs import etcd
from tests.model.hosts import Cluster, watched_log
from tests.model.oracle import Oracle
from tests.model.scenario import Scenario
from tests.support.memory_etcd import MemoryClient, MemoryEtcd

Revisions = list[tuple[int, tuple[etcd.Event, ...]]]


def in_memory(seed: int, steps: int) -> Counter[str]:
    """Run a scenario; return what happened how often. AssertionError if something was wrong."""
    with pytest.MonkeyPatch.context() as patch:
        # trio draws the order in which tasks that can go on do so: the same one for the same seed.
        patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        trio._core._run._r.seed(seed)
        return trio.run(_in_memory, seed, steps, clock=MockClock())


def on_etcd(endpoint: str, seed: int, steps: int) -> Counter[str]:
    """Run a scenario against a real etcd that nobody else uses."""
    return trio.run(_on_etcd, endpoint, seed, steps, clock=MockClock())


async def _in_memory(seed: int, steps: int) -> Counter[str]:
    return await _live(cluster_in_memory(random.Random(seed)), steps)


def cluster_in_memory(draw: random.Random, judge: type[Oracle] = Oracle) -> Cluster:
    """Make a cluster without hosts whose store is in memory."""
    store = MemoryEtcd()
    new: Revisions = []
    store.observers.append(lambda revision, events: new.append((revision, events)))

    async def events() -> Revisions:
        taken = list(new)
        new.clear()
        return taken

    async def compact() -> None:
        store.compact()

    return Cluster(draw, "/model/", MemoryClient(store), events, compact, ttl=10, judge=judge)


async def _on_etcd(endpoint: str, seed: int, steps: int) -> Counter[str]:
    async with cluster_on_etcd(endpoint, f"/model/{seed}/", random.Random(seed)) as cluster:
        return await _live(cluster, steps)


@asynccontextmanager
async def cluster_on_etcd(endpoint: str, prefix: str, draw: random.Random) -> AsyncIterator[Cluster]:
    """Make a cluster without hosts whose store is a real etcd that nobody else uses."""
    async with etcd.open_client([endpoint], timeout=20) as store:
        start, end = prefix.encode(), etcd.prefix_end(prefix.encode())
        first = (await store.range(start, end, limit=1)).revision + 1
        async with store.watch(start, end, start_revision=first) as watch:
            reached = first - 1

            async def events() -> Revisions:
                """Every revision is of this cluster, so the newest one comes on the watch."""
                nonlocal reached
                newest = (await store.range(start, end, limit=1, keys_only=True)).revision
                taken: dict[int, list[etcd.Event]] = {}
                while reached < newest:
                    batch = await anext(watch)
                    reached = batch.revision
                    for event in batch.events:
                        taken.setdefault(event.kv.mod_revision, []).append(event)
                return [(revision, tuple(of_it)) for revision, of_it in taken.items()]

            async def compact() -> None:
                revision = (await store.range(start, end, limit=1, keys_only=True)).revision
                with suppress(etcd.Compacted):  # nothing has happened since it was done before
                    await store.compact(revision)

            # The clock is the test's, etcd's is not: its leases must outlive the test.
            yield Cluster(draw, prefix, store, events, compact, ttl=600)


async def _live(cluster: Cluster, steps: int) -> Counter[str]:
    failure: AssertionError | None = None
    with watched_log() as complaints:
        async with hosts_of(cluster) as nursery:
            try:
                await Scenario(cluster, nursery, complaints).live(steps)
            except AssertionError as error:  # not in the group that the hosts' tasks would make of it
                failure = error
    if failure is not None:
        raise failure
    return cluster.seen + cluster.oracle.seen


@asynccontextmanager
async def hosts_of(cluster: Cluster) -> AsyncIterator[trio.Nursery]:
    """Give the hosts of a cluster a nursery, and kill them at the end."""
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        finally:
            for host in cluster.hosts:
                host.kill()
            nursery.cancel_scope.cancel()
            clock = trio.lowlevel.current_clock()
            assert isinstance(clock, MockClock)
            clock.autojump_threshold = 0  # what is shielded ends when its time is up
