"""Callers wait for their pushes until these are settled, or their own time is up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from dnpipefs.core.batch import Chunk
from dnpipefs.core.names import Revision
from dnpipefs.errors import TimedOut
from dnpipefs.log.pushes import Patience, Push

OP_TIMEOUT = 30.0


@asynccontextmanager
async def running() -> AsyncIterator[Patience]:
    patience = Patience(OP_TIMEOUT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patience.run)
        await trio.testing.wait_all_tasks_blocked()
        yield patience
        nursery.cancel_scope.cancel()


def push_until(deadline: float) -> Push:
    return Push(Chunk.of_lines(b"line\n"), deadline)


async def let_go_at(patience: Patience, push: Push, times: dict[float, float]) -> None:
    with pytest.raises(TimedOut, match="within 30 s"):
        await patience.wait(push)
    times[push.deadline] = trio.current_time()


async def test_each_caller_is_let_go_when_its_own_time_is_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    began = trio.current_time()
    times: dict[float, float] = {}
    async with running() as patience, trio.open_nursery() as callers:
        for seconds in (3.0, 9.0, 1.0, 2.0):  # the later ones wait less
            callers.start_soon(let_go_at, patience, push_until(began + seconds), times)
            await trio.testing.wait_all_tasks_blocked()
    assert times == {deadline: pytest.approx(deadline) for deadline in times}
    assert sorted(times) == [pytest.approx(began + seconds) for seconds in (1.0, 2.0, 3.0, 9.0)]


async def test_what_is_settled_in_time_returns_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as patience, trio.open_nursery() as callers:
        push = push_until(trio.current_time() + 5)
        callers.start_soon(patience.wait, push)
        await trio.testing.wait_all_tasks_blocked()
        push.committed(Revision(7))
        await patience.wait(push)  # settled before the wait
        assert (push.settled, push.revision) == (True, 7)


async def test_one_who_was_let_go_is_not_woken_once_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as patience:
        push = push_until(trio.current_time() + 1)
        await let_go_at(patience, push, {})
        assert not push.settled  # its batch is still on its way
        push.committed(Revision(7))
        with trio.move_on_after(2) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught


async def test_one_who_is_cancelled_is_not_woken_once_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as patience:
        push = push_until(trio.current_time() + 5)
        with trio.move_on_after(1) as scope:
            await patience.wait(push)
        assert scope.cancelled_caught
        push.committed(Revision(7))
        with trio.move_on_after(9) as later:  # past its deadline, too
            await trio.sleep_forever()
        assert later.cancelled_caught
