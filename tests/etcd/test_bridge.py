"""The bridge from gRPC's threads, with calls whose end the test decides."""

import threading
from collections.abc import Callable
from typing import cast

import grpc
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dnpipefs.etcd.bridge import Bridge, Inbox
from dnpipefs.etcd.errors import Ambiguous, LeaseNotFound


class Call:
    """Stands for gRPC's multicallable and for the one call made with it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.cancelled = False
        self.status: grpc.StatusCode | None = None
        self.said = ""
        self._finished: list[Callable[[object], None]] = []

    def future(self, request: bytes, timeout: float, metadata: object) -> "Call":
        self.sent.append(request)
        return self

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        self._finished.append(callback)

    def finish(self, status: grpc.StatusCode | None, said: str = "") -> None:
        self.status, self.said = status, said
        for callback in self._finished:
            thread = threading.Thread(target=callback, args=(self,))
            thread.start()
            thread.join()

    def cancel(self) -> None:
        self.cancelled = True

    def code(self) -> grpc.StatusCode | None:
        return self.status

    def details(self) -> str:
        return self.said

    def result(self) -> bytes:
        return b"answer"


async def _make(call: Call, bridge: Bridge) -> bytes:
    return await bridge.call(
        cast("grpc.UnaryUnaryMultiCallable[bytes, bytes]", call), b"request", 1.0, None, "host:1"
    )


async def _make_and_finish(status: grpc.StatusCode | None, said: str = "") -> bytes:
    call, answers = Call(), []
    bridge = Bridge()

    async def make() -> None:
        answers.append(await _make(call, bridge))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make)
        await wait_all_tasks_blocked()
        call.finish(status, said)
    return answers[0]


async def test_answer() -> None:
    assert await _make_and_finish(grpc.StatusCode.OK) == b"answer"


async def test_failure_is_classified() -> None:
    with pytest.RaisesGroup(LeaseNotFound):
        await _make_and_finish(grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")
    with pytest.RaisesGroup(Ambiguous):
        await _make_and_finish(None)


async def test_cancelling_cancels_the_call_and_a_late_answer_does_no_harm() -> None:
    call, bridge = Call(), Bridge()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_make, call, bridge)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert call.cancelled
    call.finish(grpc.StatusCode.OK)
    await wait_all_tasks_blocked()


async def test_a_cancelled_task_sends_nothing() -> None:
    call, bridge = Call(), Bridge()
    with trio.CancelScope() as scope:
        scope.cancel()
        await _make(call, bridge)
    assert call.sent == []


async def test_inbox_keeps_the_order_of_each_thread() -> None:
    got: list[tuple[int, int]] = []
    inbox: Inbox[tuple[int, int]] = Inbox(got.append)

    def post(thread: int) -> None:
        for number in range(1000):
            inbox.post((thread, number))

    async with trio.open_nursery() as nursery:
        for thread in range(4):
            nursery.start_soon(trio.to_thread.run_sync, post, thread)
    await wait_all_tasks_blocked()
    for thread in range(4):
        assert [number for which, number in got if which == thread] == list(range(1000))


def test_inbox_after_the_end_of_trio() -> None:
    got: list[int] = []

    async def make() -> Inbox[int]:
        return Inbox(got.append)

    inbox = trio.run(make)
    inbox.post(1)
    assert got == []
