"""How pyfuse3 waits for requests: without a detour through the scheduler when there is one already.

pyfuse3 takes a lock, arms epoll and waits, for each single request; under load that costs as much as
answering it. It looks trio up in its own module, and lets that be replaced (this is how its asyncio
mode works). `install` puts a stand-in there whose `Lock` does not yield when it is free and whose
`wait_readable` looks first. Everything else is trio's own.
"""

from __future__ import annotations

import select
from types import TracebackType
from typing import Any, Final

import pyfuse3
import trio

IN_A_ROW: Final = 32
"""Requests taken without yielding before the other tasks get their turn."""


class _Lock:
    """A fair lock for one waiting place: free means no checkpoint."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: Final = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        if self._held:
            await self._waiting.park()  # the leaving holder hands it over
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held = bool(self._waiting.unpark())


class _LowLevel:
    """trio.lowlevel with a `wait_readable` for the one descriptor that pyfuse3 waits for."""

    def __init__(self) -> None:
        self._poll: Final = select.poll()
        self._registered: int | None = None
        self._in_a_row = 0

    async def wait_readable(self, fd: int) -> None:
        if self._registered != fd:
            if self._registered is not None:
                self._poll.unregister(self._registered)
            self._poll.register(fd, select.POLLIN)
            self._registered = fd
        self._in_a_row += 1
        if self._in_a_row < IN_A_ROW and self._poll.poll(0):
            return
        self._in_a_row = 0
        await trio.lowlevel.wait_readable(fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class _Trio:
    """trio, except for what is said above."""

    Lock = _Lock

    def __init__(self) -> None:
        self.lowlevel: Final = _LowLevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install() -> None:
    """Let pyfuse3 wait this way from the next `pyfuse3.init` on."""
    pyfuse3.trio = _Trio()  # type: ignore[attr-defined]
