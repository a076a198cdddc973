"""Pulling what retention has left, of topics that are trimmed meanwhile."""

from contextlib import aclosing
from datetime import UTC, datetime

import pytest
import trio

from dnpipefs import Dnp
from tests.api.test_push import pulled

LINES = [b"%099d\n" % number for number in range(1000)]


async def make(dnp: Dnp, **settings: str) -> None:
    """Make a topic of LINES, sealed and trimmed as *settings* say."""
    await dnp.push("t")
    await dnp.configure("t", {name.replace("__", "."): value for name, value in settings.items()})
    for first in range(0, len(LINES), 50):
        await dnp.push("t", *LINES[first : first + 50])
    await trim(dnp)


async def trim(dnp: Dnp) -> None:
    topic = (await dnp._topic((b"t",))).id
    await dnp._log.sealer.seal(topic)
    await dnp._log.sealer.trim(topic)


@pytest.mark.parametrize("start", ["first", 0, 777, datetime(2020, 1, 1, tzinfo=UTC)])
async def test_a_pull_begins_at_what_is_left(dnp: Dnp, start: object) -> None:
    await make(dnp, retention__messages="100")
    left = [message.data async for message in dnp.pull("t", start=start)]  # type: ignore[arg-type]
    assert 100 <= len(left) < 200
    assert left == LINES[-len(left) :]


async def test_the_last_ones_are_counted_among_what_is_left(dnp: Dnp) -> None:
    await make(dnp, retention__messages="100")
    assert [message.data async for message in dnp.pull("t", last=3)] == LINES[-3:]
    left = len(await pulled(dnp, "t"))
    assert len([message async for message in dnp.pull("t", last=len(LINES))]) == left


async def test_a_topic_of_which_nothing_is_left_is_empty_and_goes_on(dnp: Dnp, other: Dnp) -> None:
    await make(dnp, retention__age="1ns")
    assert await pulled(dnp, "t") == []
    await other.push("t", "new")
    assert await pulled(dnp, "t") == [b"new\n"]
    assert [message.offset async for message in other.pull("t")] == [100 * len(LINES)]


async def test_following_goes_on_behind_what_is_trimmed_under_it(dnp: Dnp, other: Dnp) -> None:
    await make(dnp)
    async with aclosing(dnp.pull("t", follow=True)) as messages:
        first = await anext(messages)
        assert first.data == LINES[0]
        await other.configure("t", {"retention.age": "1ns"})
        await trim(other)
        await other.push("t", "new")
        with trio.fail_after(30):
            while (last := await anext(messages)).data != b"new\n":
                pass
    assert last.offset == 100 * len(LINES)
