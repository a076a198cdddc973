"""The stand-in for trio in pyfuse3, on a socket pair in the place of /dev/fuse: one byte is a request."""

import itertools
import socket
from collections.abc import Iterator
from typing import cast

import pyfuse3
import pytest
import trio
import trio.testing

from dnpipefs.fuse.readiness import IN_A_ROW, _Trio, install
from dnpipefs.vfs.intake import COUNTED_BYTES, WRITES_LIMIT, Intake


@pytest.fixture
def kernel() -> Iterator[socket.socket]:
    """The end that sends requests; its other end is `kernel.peer`."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    _PEERS[ours.fileno()] = theirs
    with ours, theirs:
        yield ours
        del _PEERS[ours.fileno()]


_PEERS: dict[int, socket.socket] = {}


class Workers:
    """Tasks that take requests as pyfuse3's do: wait, then read at once what must be there."""

    def __init__(self, kernel: socket.socket) -> None:
        self.device = _PEERS[kernel.fileno()]
        self.silent = 0
        self.intake = Intake()
        self.trio = _Trio(self.count_silent, self.intake)
        self.taken: list[int] = []
        self.ended = 0
        self.answer = trio.Event()

    def count_silent(self) -> None:
        self.silent += 1

    async def work(self) -> None:
        lock = self.trio.Lock()
        try:
            while True:
                async with lock:
                    await self.trio.lowlevel.wait_readable(self.device.fileno())
                self.taken += self.device.recv(1)  # BlockingIOError if there is none: the worker's death
                await self.answer.wait()
        except trio.ClosedResourceError:
            self.ended += 1


async def test_a_burst_is_taken_by_as_many_tasks_as_there_are(kernel: socket.socket) -> None:
    workers = Workers(kernel)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(workers.work)
        await trio.testing.wait_all_tasks_blocked()
        kernel.send(bytes(range(50)))
        await trio.testing.wait_all_tasks_blocked()
        assert workers.taken == list(range(20)), "each task holds one, unanswered"
        workers.answer.set()
        await trio.testing.wait_all_tasks_blocked()
        assert workers.taken == list(range(50))
        kernel.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert workers.taken[-1:] == list(b"x")
        nursery.cancel_scope.cancel()


async def test_no_request_is_taken_beyond_the_limit_of_what_is_written(kernel: socket.socket) -> None:
    """Invariant 7: callers wait, and go on in time."""
    workers = Workers(kernel)
    workers.answer.set()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(workers.work)
        with workers.intake.counting(WRITES_LIMIT - COUNTED_BYTES):
            kernel.send(b"a")
            await trio.testing.wait_all_tasks_blocked()
            assert workers.taken == list(b"a")
            with workers.intake.counting(COUNTED_BYTES):
                kernel.send(b"bcdefghij")
                await trio.testing.wait_all_tasks_blocked()
                assert workers.taken == list(b"a")
            await trio.testing.wait_all_tasks_blocked()
            assert workers.taken == list(b"abcdefghij")
        nursery.cancel_scope.cancel()


async def test_other_tasks_get_their_turn_during_a_flood(kernel: socket.socket) -> None:
    workers = Workers(kernel)
    workers.answer.set()
    turns: list[int] = []

    async def bystander() -> None:
        while len(workers.taken) < 4 * IN_A_ROW:
            turns.append(len(workers.taken))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        kernel.send(bytes(4 * IN_A_ROW))
        nursery.start_soon(workers.work)
        nursery.start_soon(bystander)
        with trio.fail_after(5):
            while len(workers.taken) < 4 * IN_A_ROW:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    gaps = [later - earlier for earlier, later in itertools.pairwise(turns)]
    assert max(gaps, default=0) <= IN_A_ROW


async def test_all_tasks_end_when_the_mount_does(kernel: socket.socket) -> None:
    workers = Workers(kernel)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(workers.work)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(workers.device.fileno())
    assert workers.ended == 5


async def test_a_cancelled_waiter_hands_its_place_over(kernel: socket.socket) -> None:
    workers = Workers(kernel)
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def cancelled() -> None:
            with first:
                await workers.work()

        nursery.start_soon(cancelled)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(workers.work)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        kernel.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert workers.taken == list(b"x")
        nursery.cancel_scope.cancel()


async def test_a_request_that_asks_for_no_handler_is_noticed(kernel: socket.socket) -> None:
    workers = Workers(kernel)
    workers.answer.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.work)
        await trio.testing.wait_all_tasks_blocked()
        assert workers.silent == 0
        kernel.send(b"xyz")
        await trio.testing.wait_all_tasks_blocked()
        assert workers.silent == 3
        nursery.cancel_scope.cancel()


async def test_a_request_that_asks_for_a_handler_is_not(
    kernel: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyfuse3, "trio", trio)  # to be put back
    workers = Workers(kernel)
    operations = install(pyfuse3.Operations(), workers.count_silent, workers.intake)
    workers.trio = cast(_Trio, pyfuse3.trio)  # type: ignore[attr-defined]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.work)
        await trio.testing.wait_all_tasks_blocked()
        kernel.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert operations.read is not None
        workers.answer.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (workers.taken, workers.silent) == (list(b"x"), 0)
        nursery.cancel_scope.cancel()


async def test_it_is_noticed_by_others_if_its_task_ends(kernel: socket.socket) -> None:
    """As pyfuse3's do when many are idle."""
    workers = Workers(kernel)

    async def work_once() -> None:
        await workers.trio.lowlevel.wait_readable(workers.device.fileno())
        workers.device.recv(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work_once)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(workers.work)
        await trio.testing.wait_all_tasks_blocked()
        kernel.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert workers.silent == 1
        nursery.cancel_scope.cancel()
