"""How pyfuse3 waits for requests: many at a time, and without a detour when there is one already.

pyfuse3 takes a lock, arms epoll and waits, for each single request; under load that costs as much as
answering it. It looks trio up in its own module, and lets that be replaced (this is how its asyncio
mode works). `install` puts a stand-in there; everything but `Lock` and `lowlevel.wait_readable` is
trio's own.

A task that asks for the next request looks (`poll`) whether there is one and takes it at once. If
there is none, one task waits for the descriptor as trio does, the others are parked. Whoever finds a
request wakes WAKE_MORE of the parked, so that a burst of requests is taken in few turns of the
scheduler. Only one thread ever reads the descriptor, and between the look and the read nothing
else runs: what was seen is there to be read.

While `Intake` is full nobody takes another one: what callers write is in memory from there on.

It also shows when the kernel tells of a signal for the caller of a request (FUSE_INTERRUPT). libfuse keeps
that for itself: a request is taken, and no handler is asked for. `install` takes what to call then. The few
requests that libfuse refuses itself look the same, such as an ioctl, by which Python's `open` asks whether
a file is a terminal.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, cast

import pyfuse3
import trio

from dnpipefs.vfs.intake import Intake

IN_A_ROW: Final = 32
"""Requests taken without yielding before other tasks get their turn."""
WAKE_MORE: Final = 2
"""Parked tasks to wake for each request that was there without waiting."""


class _NoLock:
    """In the place of the lock around the wait: `wait_readable` below sees to the order itself."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class _LowLevel:
    """trio.lowlevel with a `wait_readable` for the one descriptor that pyfuse3 waits for."""

    def __init__(self, on_silent: Callable[[], None], intake: Intake) -> None:
        self._on_silent: Final = on_silent
        self._intake: Final = intake
        self.unclaimed = False
        """A request was taken, and no handler asked for so far."""
        self._poll: Final = select.poll()
        self._registered: int | None = None
        self._waiting = False
        self._closing = False
        self._parked: Final = trio.lowlevel.ParkingLot()
        self._in_a_row = 0

    async def wait_readable(self, fd: int) -> None:
        self._notice_silence()
        if self._registered != fd:
            self._register(fd)
        if self._in_a_row >= IN_A_ROW:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        while self._intake.full or not self._poll.poll(0):
            if self._closing:
                raise trio.ClosedResourceError("the mount ends")
            if self._intake.full:
                await self._intake.room()
            elif self._waiting:
                await self._parked.park()
            else:
                await self._wait(fd)
            self._notice_silence()  # of a task that has ended after it
        self._in_a_row += 1
        self.unclaimed = True
        if self._parked:
            self._parked.unpark(count=WAKE_MORE)

    def _notice_silence(self) -> None:
        # A task runs without a break from taking a request to asking for its handler or for the next request.
        if self.unclaimed:
            self.unclaimed = False
            self._on_silent()

    async def _wait(self, fd: int) -> None:
        self._waiting = True
        self._in_a_row = 0
        try:
            await trio.lowlevel.wait_readable(fd)
        except trio.ClosedResourceError:  # pyfuse3.terminate
            self._closing = True
            self._parked.unpark_all()
            raise
        finally:
            self._waiting = False
            self._parked.unpark()  # if this task ends here, another one has to wait in its place

    def _register(self, fd: int) -> None:
        if self._registered is not None:
            self._poll.unregister(self._registered)
        self._poll.register(fd, select.POLLIN)
        self._registered = fd
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class _Trio:
    """trio, except for what is said above."""

    Lock = _NoLock

    def __init__(self, on_silent: Callable[[], None], intake: Intake) -> None:
        self.lowlevel: Final = _LowLevel(on_silent, intake)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


class _Watched:
    """Operations whose every use is noticed."""

    def __init__(self, operations: pyfuse3.Operations, lowlevel: _LowLevel) -> None:
        self._operations: Final = operations
        self._lowlevel: Final = lowlevel

    def __getattr__(self, name: str) -> Any:
        self._lowlevel.unclaimed = False
        return getattr(self._operations, name)


def install(
    operations: pyfuse3.Operations, on_silent: Callable[[], None], intake: Intake
) -> pyfuse3.Operations:
    """Let pyfuse3 wait this way from the next `pyfuse3.init` on, which is to be given what this returns.

    *on_silent* is called, soon after, for each request that asked for no handler. While *intake* is full no
    request is taken.
    """
    stand_in = _Trio(on_silent, intake)
    pyfuse3.trio = stand_in  # type: ignore[attr-defined]
    return cast(pyfuse3.Operations, _Watched(operations, stand_in.lowlevel))
