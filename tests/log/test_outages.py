"""What goes on at once when etcd answers again, and what an outage costs: with an etcd that only says so."""

from __future__ import annotations

from typing import Final, cast

import pytest
import trio
from trio.testing import MockClock

from dnpipefs import etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.log.session import SESSION_TTL_S, SessionKeeper

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
