"""From gRPC's threads to trio: the only place where the two meet.

Owns the hand-over (`Inbox`) and the wait for one call (`Bridge.call`). Knows nothing of etcd.

gRPC completes calls on a thread of its own. What it has to tell is put into a deque, and one
`run_sync_soon` wakes trio for all that has gathered until trio gets to it: under load many answers
share one wake-up.
"""

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc
import outcome
import trio

from dnpipefs.etcd.errors import Ambiguous, classify

Item = TypeVar("Item")
Request = TypeVar("Request")
Response = TypeVar("Response")
Metadata = tuple[tuple[str, str], ...]


class Inbox(Generic[Item]):
    """Hands items from any thread to a callback in the trio thread, in order, many at a time.

    Created in the trio thread. Items that come after the end of the trio run are dropped.
    """

    def __init__(self, deliver: Callable[[Item], None]) -> None:
        self._deliver = deliver
        self._token = trio.lowlevel.current_trio_token()
        self._items: deque[Item] = deque()
        self._scheduled = False

    def post(self, item: Item) -> None:
        """Queue `item`; callable from every thread, never blocks.

        The flag is cleared before the queue is emptied, and set after the item is in it: an item is
        either seen by the wake-up under way or asks for another one. Two wake-ups do no harm.
        """
        self._items.append(item)
        if not self._scheduled:
            self._scheduled = True
            try:
                self._token.run_sync_soon(self._drain)
            except trio.RunFinishedError:
                self._items.clear()

    def _drain(self) -> None:
        self._scheduled = False
        items = self._items
        while items:
            self._deliver(items.popleft())


class _Waiter:
    """A task that waits for a call; `task` is None once it does not wait any more."""

    __slots__ = ("task",)

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task: trio.lowlevel.Task | None = task


def _wake(waiter: _Waiter) -> None:
    task, waiter.task = waiter.task, None
    if task is not None:
        trio.lowlevel.reschedule(task, outcome.Value(None))


class Bridge:
    """Awaits unary gRPC calls; one per client, bound to the trio run it was made in."""

    def __init__(self) -> None:
        self._inbox: Inbox[_Waiter] = Inbox(_wake)

    async def call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout: float,
        metadata: Metadata | None,
        endpoint: str,
    ) -> Response:
        """Send `request` and wait for its answer, at most `timeout` seconds.

        Cancellation before the call begins sends nothing; later it cancels the call, and a write's
        outcome is then unknown. Raises what `errors.classify` says of a status that is not OK.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        call = method.future(request, timeout=timeout, metadata=metadata)
        waiter = _Waiter(trio.lowlevel.current_task())

        def abort(_: object) -> trio.lowlevel.Abort:
            waiter.task = None
            call.cancel()
            return trio.lowlevel.Abort.SUCCEEDED

        call.add_done_callback(lambda _: self._inbox.post(waiter))
        await trio.lowlevel.wait_task_rescheduled(abort)
        code = call.code()
        if code is grpc.StatusCode.OK:
            return call.result()
        if code is None:
            raise Ambiguous(f"etcd at {endpoint}: the call ended without a status")
        raise classify(code, call.details(), endpoint)
