"""Whether readers get what this host has because etcd does not answer: for a mount with `--read-stale` only.

===========  ===============================================  ===========================================
state        event                                            becomes
===========  ===============================================  ===========================================
fresh        a reader's question is not answered for          stale, with a line in the log
             STALE_AFTER_S
stale        another question of a reader                     stays; the reader gets what is here at once
stale        etcd answers a question, whoever's               fresh, with a line in the log
===========  ===============================================  ===========================================

`Barrier` asks, and goes on asking while the state is stale, whether somebody reads or not.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

logger: Final = logging.getLogger(__name__)

STALE_AFTER_S: Final = 1.0
"""How long a reader waits for etcd before it gets what this host has."""


class Staleness:
    """The state, and waiting for its changes."""

    def __init__(self, *, allowed: bool) -> None:
        self.allowed: Final = allowed
        self.since: float | None = None
        """When readers first got something stale (trio's clock); None while they do not."""
        self._changed: Final = trio.lowlevel.ParkingLot()

    def begin(self, reason: BaseException | None) -> None:
        """Take in that etcd does not answer."""
        if self.since is not None:
            return
        self.since = trio.current_time()
        said = f" ({reason})" if reason is not None else ""
        logger.warning(
            "etcd does not answer%s: from now on readers get what this host has, which may be stale", said
        )
        self._changed.unpark_all()

    def end(self) -> None:
        """Take in that etcd has answered."""
        if self.since is None:
            return
        lasted, self.since = trio.current_time() - self.since, None
        logger.warning(
            "etcd answers again: readers get nothing stale any more, as they did for %.1f s", lasted
        )
        self._changed.unpark_all()

    async def until(self, *, stale: bool) -> None:
        """Wait until the state is that one."""
        while (self.since is not None) is not stale:
            await self._changed.park()
