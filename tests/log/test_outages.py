"""What goes on at once when etcd answers again, and what an outage costs: with an etcd that only says so."""

from __future__ import annotations

from typing import Final, cast

import pytest
import trio
from trio.testing import MockClock

from dnpipefs import etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import ROOT, FileId, Kind, Revision
from dnpipefs.core.records import Inode
from dnpipefs.core.tree import Entry, Tree
from dnpipefs.errors import TimedOut
from dnpipefs.log.barrier import TOPICS_PER_READ, Barrier
from dnpipefs.log.clock import Clock
from dnpipefs.log.session import SESSION_TTL_S, SessionKeeper
from dnpipefs.namespace import Namespace

LEASE: Final = 5


class FrozenOnce:
    """Etcd that hangs for `frozen_s` from the first confirmation of a session on."""

    def __init__(self, frozen_s: float) -> None:
        self._frozen_s: Final = frozen_s
        self._thaws_at: float | None = None
        self.confirmed = trio.Event()

    async def lease_grant(self, ttl: int) -> etcd.Lease:
        return etcd.Lease(LEASE, ttl)

    async def put(self, key: bytes, value: bytes, *, lease: int) -> int:
        return 1

    async def lease_revoke(self, lease: int) -> None:
        pass

    async def lease_keepalive_once(self, lease: int, *, timeout: float = 5.0) -> int:
        now = trio.current_time()
        if self._thaws_at is None:
            self._thaws_at = now + self._frozen_s
        if now + timeout < self._thaws_at:
            await trio.sleep(timeout)
            raise etcd.Ambiguous("no answer in time")
        await trio.sleep(max(0.0, self._thaws_at - now))
        self.confirmed.set()
        return SESSION_TTL_S


@pytest.mark.parametrize("frozen_s", [3.0, 5.5, 6.0])
async def test_a_session_outlives_an_outage_that_is_shorter(
    frozen_s: float, autojump_clock: MockClock
) -> None:
    client = FrozenOnce(frozen_s)
    keeper = SessionKeeper(cast(etcd.Client, client), KeySchema(), mountpoint=None, version="0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        with trio.fail_after(SESSION_TTL_S):
            await client.confirmed.wait()
        nursery.cancel_scope.cancel()


class Silent:
    """Etcd that hangs until it is `up`, and then refuses, which is an answer; counts what is asked."""

    def __init__(self) -> None:
        self.up = trio.Event()
        self.asked: list[int] = []

    async def transaction(self, compare: object, reads: list[etcd.Op]) -> None:
        if not self.up.is_set():
            await trio.sleep(5.0)
            raise etcd.Unreachable("no")
        self.asked.append(len(reads))
        raise etcd.PermissionDenied("no")


async def test_after_an_outage_only_those_who_still_wait_are_answered(autojump_clock: MockClock) -> None:
    client = Silent()
    barrier = Barrier(cast(etcd.Client, client), KeySchema(), op_timeout=3.0)

    async def ask(topic: int) -> None:
        with pytest.raises(TimedOut):
            await barrier.topic(FileId(topic))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(barrier.run)
        for _ in range(10):
            async with trio.open_nursery() as asking:
                for topic in range(1, 3 * TOPICS_PER_READ):
                    asking.start_soon(ask, topic)
        client.up.set()
        with pytest.raises(etcd.PermissionDenied):
            await barrier.topic(FileId(1))
        assert client.asked == [3], "for one topic, besides the namespace"
        nursery.cancel_scope.cancel()


class Late:
    """A barrier that answers just in time, with a revision that no watch brings."""

    async def namespace(self) -> Revision:
        await trio.sleep(2.8)
        return Revision(10)

    namespace_if_answered = namespace


@pytest.mark.parametrize("way", ["sync", "sync_to_read"])
async def test_a_name_is_waited_for_as_long_as_was_said(way: str, autojump_clock: MockClock) -> None:
    namespace = Namespace(
        cast(etcd.Client, None), KeySchema(), cast(Clock, None), cast(Barrier, Late()), op_timeout=3.0
    )
    root = Inode(ROOT, Kind.DIRECTORY, 0o755, 0, 0, 1, 1)
    namespace._tree = Tree(Revision(1), [Entry(ROOT, b"", root, Revision(1))])
    began = trio.current_time()
    with pytest.raises(TimedOut):
        await getattr(namespace, way)()
    assert trio.current_time() - began == pytest.approx(3.0)
