"""How a process ends that has just closed a file, which tells whether the message in its hand was done.

A shell undoes the redirection of a loop before it exits: when `exit 3` in the body closes the file of
`done < jobs@workers`, the process lives, and says with what status it exits a moment later. Python, too,
closes what an exception leaves behind before it exits with 1. So a close by a living process is not success
before the process has gone on for GRACE_S, or has opened something again.

It takes a pidfd, made while the close waits for its answer: it tells of the end, and from Linux 6.15 on of
the status even of a process that its parent has waited for. On older kernels /proc shows the status until
the parent has, which may be too soon; then the close by a living process counts.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

import trio

from dnpipefs.fuse import processes
from dnpipefs.fuse.processes import Fate, Opener

GRACE_S: Final = 0.25
"""For what a shell does between the end of a loop and its own: it may have a trap to run."""
WATCHED_LIMIT: Final = 256
"""Processes watched at once, a descriptor each; of those beyond, a close while they live is success."""

_PIDFD_GET_INFO: Final = 3 << 30 | 64 << 16 | 0xFF << 8 | 11
"""Of Linux' pidfd.h, with its first struct pidfd_info: 64 bytes, the mask first, the exit code last."""
_PIDFD_INFO_EXIT: Final = 1 << 3


class Ending:
    """The end to come of one process."""

    def __init__(self, opener: Opener, pidfd: int) -> None:
        self.opener: Final = opener
        self.pidfd: Final = pidfd
        self.goes_on = trio.Event()
        """The process does something else."""

    def close(self) -> None:
        """Another descriptor is closed: what the process has opened before the last one says nothing."""
        self.goes_on = trio.Event()


class Endings:
    """The processes that somebody wants to see ending."""

    def __init__(self) -> None:
        self._watched: Final[dict[Opener, set[Ending]]] = {}
        self._count = 0

    def watch(self, opener: Opener) -> Ending | None:
        """Begin to watch a process that lives; pair it with `forget`. None if that is not possible."""
        if self._count >= WATCHED_LIMIT:
            return None
        try:
            ending = Ending(opener, os.pidfd_open(opener.pid))
        except OSError:
            return None
        self._watched.setdefault(opener, set()).add(ending)
        self._count += 1
        return ending

    def forget(self, ending: Ending) -> None:
        """End what `watch` began."""
        same = self._watched[ending.opener]
        same.remove(ending)
        if not same:
            del self._watched[ending.opener]
        self._count -= 1
        os.close(ending.pidfd)

    def opens(self, opener: Opener) -> None:
        """A process has opened a file: it has not ended with what it closed before."""
        for ending in self._watched.get(opener, ()):
            ending.goes_on.set()

    async def fate(self, ending: Ending) -> Fate:
        """Return how the process ends within GRACE_S; ALIVE if it does not, or nobody can tell how."""
        with trio.move_on_after(GRACE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_ended, ending.pidfd, nursery.cancel_scope)
                await ending.goes_on.wait()
                nursery.cancel_scope.cancel()
        if ending.goes_on.is_set():
            return Fate.ALIVE  # whatever has become of it since
        seen = processes.fate(ending.opener)
        return _reaped(ending.pidfd) if seen is Fate.UNKNOWN else seen


async def _ended(pidfd: int, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(pidfd)
    scope.cancel()


def _reaped(pidfd: int) -> Fate:
    """Return how a process ended that its parent has waited for."""
    info = bytearray(64)
    struct.pack_into("Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return Fate.ALIVE
    (mask,), (exit_code,) = struct.unpack_from("Q", info, 0), struct.unpack_from("i", info, 60)
    if not mask & _PIDFD_INFO_EXIT:
        return Fate.ALIVE
    return Fate.FAILED if exit_code else Fate.ENDED_WELL
