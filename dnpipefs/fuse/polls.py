"""select(2), poll(2) and epoll(7) on open files: who is to be woken once a file becomes readable.

The kernel gives a handle with a POLL request only if somebody waits, a new one each time, and any of
them wakes all who wait for that open file. They ask again then, so a notification too many costs a
request, and one too few leaves them asleep.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio
from pyfuse3 import PollHandle

from dnpipefs.errors import DnpError

logger = logging.getLogger(__name__)


class Poll:
    """The poll handle of one open file: at most one."""

    __slots__ = ("_handle", "_waker")

    def __init__(self) -> None:
        self._handle: PollHandle | None = None
        self._waker: trio.CancelScope | None = None
        """Of the task that waits for the file to become readable, while there is one."""

    @property
    def wanted(self) -> bool:
        """Whether somebody waits."""
        return self._handle is not None

    def wait(self, handle: PollHandle | None) -> None:
        """Keep the handle of a POLL request that is answered with "not ready", in the place of the last.

        To be called before looking whether the file is ready, so that what comes in between is not lost.
        """
        if handle is not None:
            self._handle = handle  # pyfuse3 destroys the other when nothing refers to it

    def notify(self) -> None:
        """The file has become readable: wake whoever waits, once."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            handle.notify()
        except OSError as error:  # the mount ends: the kernel wakes them itself
            logger.debug("nobody is woken: %s", error)

    def notify_after(self, until_readable: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Notify when *until_readable* returns, if somebody waits and is not waited for already."""
        if self._handle is not None and self._waker is None:
            self._waker = trio.CancelScope()
            nursery.start_soon(self._wake, until_readable, self._waker)

    def close(self) -> None:
        """Nobody waits any more."""
        if self._waker is not None:
            self._waker.cancel()

    async def _wake(self, until_readable: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        with scope:
            try:
                await until_readable()
            except DnpError as error:  # the read that follows says so
                logger.debug("poll: %s", error)
            self._waker = None  # who is woken and finds nothing needs another one
            self.notify()
