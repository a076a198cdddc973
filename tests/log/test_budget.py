"""Bytes that tasks share: never more than there are, in the order asked for, none lost by who gives up."""

import random

import pytest
import trio
import trio.testing

from dnpipefs.log.budget import Budget


async def test_who_needs_more_than_is_left_waits_its_turn() -> None:
    budget = Budget(10)
    served: set[str] = set()

    async def take(name: str, size: int) -> None:
        await budget.take(size)
        served.add(name)

    await budget.take(8)
    async with trio.open_nursery() as nursery:
        for name, size in (("large", 5), ("small", 1), ("smaller", 4)):
            nursery.start_soon(take, name, size)
            await trio.testing.wait_all_tasks_blocked()
        assert served == set()
        assert not budget.take_nowait(1), "nobody overtakes"
        for given, by_now in ((2, set()), (1, {"large"}), (5, {"large", "small", "smaller"})):
            budget.give_back(given)
            await trio.testing.wait_all_tasks_blocked()
            assert served == by_now
    assert budget.taken == 10


async def test_more_than_there_is_goes_alone() -> None:
    budget = Budget(10)
    async with trio.open_nursery() as nursery, budget.taking(25):
        nursery.start_soon(budget.take, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert budget.taken == 25
    assert budget.taken == 1


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_or_taken_twice(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    draw, budget = random.Random(seed), Budget(100)
    seen = 0

    async def use() -> None:
        nonlocal seen
        for _ in range(20):
            with trio.move_on_after(draw.choice((0, 0.5, 5))):
                async with budget.taking(draw.choice((1, 30, 99, 300))):
                    assert budget.taken <= 100 or budget.taken == 300
                    seen += 1
                    await trio.sleep(draw.random())

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(use)
    assert budget.taken == 0
    assert seen > 20
