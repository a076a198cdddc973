"""How much of what callers write is in memory, and whether that is as much as may be.

The kernel hands a write over with its data: once it is taken it takes memory until it is answered. While
there is enough of them `fuse/readiness.py` takes no request, whichever it is, and callers wait in the kernel.

So whatever a write that counts waits for has to come without another request. What an open file holds
of an unfinished line is freed by the next write to that file: who waits for such room does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

WRITES_LIMIT: Final = 128 << 20
"""Bytes of writes under way, at two to three times as much memory; beyond it the whole mount waits. More than
the log queues (`QUEUE_LIMIT`), whose callers wait by themselves."""
COUNTED_BYTES: Final = 4 << 10
"""Smaller writes do not count: as many as there may be requests (`MAX_TASKS`) take 40 MiB."""


class Intake:
    """The writes under way on one mount."""

    def __init__(self) -> None:
        self.full = False
        """No request is to be taken."""
        self._bytes = 0
        self._parked: Final = trio.lowlevel.ParkingLot()

    @contextmanager
    def counting(self, size: int) -> Iterator[None]:
        """Count a write of *size* bytes during a block. They are in memory already, so this does not wait."""
        self._count(size)
        try:
            yield
        finally:
            self._count(-size)

    @contextmanager
    def not_counting(self, size: int) -> Iterator[None]:
        """Do not count a write that is counted, during a block in which it needs others to be taken."""
        self._count(-size)
        try:
            yield
        finally:
            self._count(size)

    def _count(self, size: int) -> None:
        if abs(size) >= COUNTED_BYTES:
            self._bytes += size
            self.full = self._bytes >= WRITES_LIMIT
            if not self.full:
                self._parked.unpark_all()

    async def room(self) -> None:
        """Wait until a request may be taken."""
        while self.full:
            await self._parked.park()
