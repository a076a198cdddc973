"""The same for many things: how many side by side, and what becomes of an exception."""

import pytest
import trio

from dnpipefs.parallel import for_each


async def test_so_many_are_under_way_and_no_more() -> None:
    under_way, most, done = 0, 0, []

    async def do(item: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.lowlevel.checkpoint()
        under_way -= 1
        done.append(item)

    await for_each(range(20), do, at_once=3)
    assert most == 3
    assert sorted(done) == list(range(20))


async def test_nothing_to_do_is_done() -> None:
    async def do(item: int) -> None:
        raise AssertionError(item)

    await for_each([], do, at_once=0)


async def test_an_exception_ends_the_others_and_comes_out_alone() -> None:
    begun = []

    async def do(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise KeyError("one")
        await trio.sleep_forever()

    with pytest.raises(KeyError, match="one") as caught:
        await for_each(range(10), do, at_once=3)
    assert caught.value.__context__ is None
    assert set(begun) <= {0, 1, 2}
