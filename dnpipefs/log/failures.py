"""Which failures of etcd pass by themselves, and what a caller is told when they do not in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.errors import TimedOut

TRANSIENT: Final = (etcd.Ambiguous, etcd.Unreachable, etcd.TooManyRequests)
"""Failures after which asking again makes sense; whether a *write* may be sent again is for its fence."""

DEFAULT_OP_TIMEOUT_S: Final = 30.0
"""How long an operation waits for etcd before it fails with TimedOut."""


def timed_out(op_timeout: float, cause: BaseException | None) -> TimedOut:
    """Return the error for an operation that etcd did not answer in time, with the last known reason."""
    reason = f": {cause}" if cause is not None else "; check that its members are up and reachable"
    return TimedOut(f"no answer from etcd within {op_timeout:g} s{reason}")


class Backoff:
    """Waits before the next try: 50 ms, doubled each time, at most 1 s.

    It also says how long to wait for an answer: what was sent to a leader that is gone has none, and a new
    one is there after a second; but an etcd that is only slow must have the time that it needs.
    """

    def __init__(self) -> None:
        self._next_s = 0.05
        self.answer_s = 1.0
        """How long the next try may take, seconds: doubled each time, at most 5 s."""

    async def wait(self) -> None:
        """Sleep; the next wait is longer, and so may be the next try."""
        await trio.sleep(self._next_s)
        self._next_s = min(1.0, 2 * self._next_s)
        self.answer_s = min(5.0, 2 * self.answer_s)


@contextmanager
def deadline(op_timeout: float, *, since: float | None = None) -> Iterator[None]:
    """Bound a block that waits for etcd; TimedOut when it takes longer.

    *since*, on trio's clock: when the call began that the block is a part of; None: now. A block around
    others bounds them all.
    """
    began = trio.current_time() if since is None else since
    with trio.move_on_at(began + op_timeout) as scope:
        yield
    if scope.cancelled_caught:
        raise timed_out(op_timeout, None)
