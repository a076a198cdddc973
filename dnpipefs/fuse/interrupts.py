"""Reads that block end when a signal waits for their reader.

The kernel waits for the answer of a request, even after SIGKILL: without one its caller hangs. It does
tell the daemon of a signal (FUSE_INTERRUPT), but libfuse keeps that for itself, and nobody tells whom a
read is from. So `Interrupts` looks at the processes that have a blocked read (`processes`):

- all of them when the kernel seems to have told of a signal (`hint`, called by `readiness`), and once
  more RELOOK_S later: the read may have been about to begin. It can be a false alarm; what looking
  may cost then is limited by PAUSE_FACTOR;
- besides, every TICK_S, as many as LOOKING_S allows, in turn. This finds what no hint has told of.

A read whose opener is gone, or of another PID namespace, or of whose opener's family nobody is seen
reading, is *a stranger's*. A hint that explains no other read ends these, since one of them must be meant:
a program that is told EINTR without reason calls again, one that is told nothing could not be killed.

This module owns when to look and which waits end; it knows nothing of what they wait for.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from dnpipefs.errors import Interrupted, TooManyReaders
from dnpipefs.fuse import processes
from dnpipefs.fuse.processes import Opener

BLOCKED_LIMIT: Final = 8_000
"""Reads that may wait at once: below the requests that a mount can have under way, so others find room."""
TICK_S: Final = 0.2
LOOKING_S: Final = 0.001
"""Time a tick may spend on looking: half a percent of a core, however many readers there are."""
RELOOK_S: Final = 0.05
PAUSE_FACTOR: Final = 2
"""After a look at all readers this many times as long passes before the next: 1,000 take 45 ms."""
SLICE_S: Final = 0.005
"""Other tasks get their turn after this long."""

T = TypeVar("T")


class Interrupts:
    """The blocked reads of a mount. `run` is its one task."""

    def __init__(
        self,
        interrupted: Callable[[Opener], bool | None] = processes.interrupted,
        waiting: Callable[[Opener], bool] = processes.waiting,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take as arguments what tests replace: the looks at processes, and what times them."""
        self._interrupted: Final = interrupted
        self._waiting: Final = waiting
        self._clock: Final = clock
        self._waits: Final[dict[Opener | None, set[trio.CancelScope]]] = {}
        """By opener, the one looked at longest ago first: one look is for all its reads."""
        self._count = 0
        self._hinted = False
        self._closed = False
        self._begun = trio.Event()
        """There is a wait."""
        self._alarm = trio.Event()
        """There is a hint."""

    async def guard(self, opener: Opener | None, wait: Callable[[], Awaitable[T]]) -> T:
        """Return what *wait* returns, or cancel it and raise Interrupted when a signal is for its reader.

        *wait* is cancelled as by any cancel scope: what it returns all the same is not lost. Raises
        TooManyReaders if as many as may wait do so.
        """
        if self._closed:
            raise Interrupted("the mount ends")
        if self._count >= BLOCKED_LIMIT:
            raise TooManyReaders(f"{BLOCKED_LIMIT} reads wait on this mount, as many as may: end some")
        scope = trio.CancelScope()
        if not self._waits:
            self._begun.set()
        self._waits.setdefault(opener, set()).add(scope)
        self._count += 1
        try:
            with scope:
                return await wait()
        finally:
            self._count -= 1
            waits = self._waits[opener]
            waits.remove(scope)
            if not waits:
                del self._waits[opener]
        raise Interrupted("the mount ends" if self._closed else "a signal ended the wait")

    def hint(self) -> None:
        """The kernel may have told of a signal: look now."""
        if self._waits:
            self._hinted = True
            self._alarm.set()

    def close(self) -> None:
        """The mount ends: so do all waits, and those to come."""
        self._closed = True
        for opener in self._waits:
            self._end(opener)

    async def run(self) -> None:
        """Look at the processes that wait, until cancelled."""
        while True:
            if not self._waits:
                self._begun = trio.Event()
                await self._begun.wait()
            with trio.move_on_after(TICK_S):
                await self._alarm.wait()
            if self._hinted:
                await self._answer_hints()
            else:
                self._look_at_some()

    async def _answer_hints(self) -> None:
        relook, explained = False, True
        while self._hinted or relook:
            second, relook, self._hinted = relook, self._hinted, False
            self._alarm = trio.Event()
            began = self._clock()
            found = await self._look_at_all()
            if second and not explained and not found:
                await self._end_strangers()
            explained = found
            await trio.sleep(max(RELOOK_S, PAUSE_FACTOR * (self._clock() - began)))

    async def _look_at_all(self) -> bool:
        """Look at everybody; say whether that has ended a wait."""
        found = False
        until = self._clock() + SLICE_S
        for opener in list(self._waits):
            found |= self._look(opener)
            if self._clock() > until:
                await trio.lowlevel.checkpoint()
                until = self._clock() + SLICE_S
        return found

    def _look_at_some(self) -> None:
        until = self._clock() + LOOKING_S
        for opener in list(self._waits):
            if not self._look(opener):
                self._waits[opener] = self._waits.pop(opener)
            if self._clock() > until:
                return

    def _look(self, opener: Opener | None) -> bool:
        if opener is None or opener not in self._waits or not self._interrupted(opener):
            return False
        self._end(opener)
        return True

    async def _end_strangers(self) -> None:
        until = self._clock() + SLICE_S
        for opener in list(self._waits):
            if opener is None or not self._waiting(opener):
                self._end(opener)
            if self._clock() > until:
                await trio.lowlevel.checkpoint()
                until = self._clock() + SLICE_S

    def _end(self, opener: Opener | None) -> None:
        for scope in self._waits.get(opener, ()):
            scope.cancel()
