"""A number of bytes that many tasks share: who needs more than is left waits for its turn.

Whoever takes part of it gives it back, whatever happens. What is larger than the whole budget is let through
when nobody else has anything: otherwise it would wait for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio


@dataclass(slots=True, eq=False)
class _Waiter:
    size: int
    served: trio.Event = field(default_factory=trio.Event)


class Budget:
    """Bytes to be taken and given back, in the order in which they are asked for."""

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self._taken = 0
        self._waiting: deque[_Waiter] = deque()

    @property
    def taken(self) -> int:
        """Bytes that are taken now."""
        return self._taken

    def take_nowait(self, size: int) -> bool:
        """Take *size* bytes if they are there and nobody waits; tell whether that is so."""
        if self._waiting or not self._fits(size):
            return False
        self._taken += size
        return True

    async def take(self, size: int) -> None:
        """Take *size* bytes as soon as they are there. The caller sets the deadline."""
        if self.take_nowait(size):
            return
        waiter = _Waiter(size)
        self._waiting.append(waiter)
        try:
            await waiter.served.wait()
        except BaseException:  # cancelled: what was or would be taken is for others
            if waiter.served.is_set():
                self._taken -= size
            else:
                self._waiting.remove(waiter)
            self._serve()
            raise

    def give_back(self, size: int) -> None:
        """Give *size* bytes back."""
        self._taken -= size
        self._serve()

    @asynccontextmanager
    async def taking(self, size: int) -> AsyncIterator[None]:
        """Hold *size* bytes during a block."""
        await self.take(size)
        try:
            yield
        finally:
            self.give_back(size)

    def _serve(self) -> None:
        while self._waiting and self._fits(self._waiting[0].size):
            waiter = self._waiting.popleft()
            self._taken += waiter.size
            waiter.served.set()

    def _fits(self, size: int) -> bool:
        return not self._taken or self._taken + size <= self.limit
