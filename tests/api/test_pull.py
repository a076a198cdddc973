"""What pull gives: from where, until when, through resets and deletions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import pytest
import trio

from dnpipefs import (
    Dnp,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    Message,
    NotFound,
    PullStart,
    TopicGone,
)
from dnpipefs.api import PAGE_BYTES
from dnpipefs.log.appender import BATCH_LIMIT

WITHIN_S = 20.0


async def pulled(dnp: Dnp, topic: str, start: PullStart = "first") -> list[bytes]:
    return [message.data async for message in dnp.pull(topic, start=start)]


async def following(messages: AsyncGenerator[Message, None]) -> bytes:
    with trio.fail_after(WITHIN_S):
        return (await anext(messages)).data


async def test_a_push_that_returned_anywhere_is_seen(dnp: Dnp, other: Dnp) -> None:
    assert await dnp.ls() == []
    for number in range(20):
        await other.push("t", str(number))
        assert (await pulled(dnp, "t"))[-1] == b"%d\n" % number


async def test_offsets_and_times(dnp: Dnp) -> None:
    before = datetime.now(UTC)
    await dnp.push("t", "a", "bc")
    await dnp.push("t", "d")
    messages = [message async for message in dnp.pull("t")]
    assert [(message.offset, message.data) for message in messages] == [
        (0, b"a\n"),
        (2, b"bc\n"),
        (5, b"d\n"),
    ]
    assert before.timestamp() * 1e9 <= messages[0].time_ns + 1000
    assert messages[0].time_ns == messages[1].time_ns <= messages[2].time_ns


async def test_the_last_ones(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("t", *map(str, range(10)))
    for last, expected in ((0, []), (1, [b"9\n"]), (4, [b"6\n", b"7\n", b"8\n", b"9\n"])):
        assert [message.data async for message in other.pull("t", last=last)] == expected
    assert len([message async for message in other.pull("t", last=100)]) == 10
    async with aclosing(other.pull("t", last=1, follow=True)) as messages:
        assert await following(messages) == b"9\n"
        await dnp.push("t", "10")
        assert await following(messages) == b"10\n"
    await dnp.push("empty")
    assert [message async for message in dnp.pull("empty", last=3)] == []
    with pytest.raises(InvalidArgument, match="the last -1 messages"):
        await anext(dnp.pull("t", last=-1))


async def test_it_ends_where_the_topic_ended_when_it_began(dnp: Dnp) -> None:
    await dnp.push("t", "a", "b")
    got = []
    async for message in dnp.pull("t"):
        got.append(message.data)
        await dnp.push("t", "later")
    assert got == [b"a\n", b"b\n"]


async def test_it_ends_when_the_topic_is_reset(dnp: Dnp) -> None:
    half = b"x" * (BATCH_LIMIT - 1)
    await dnp.push("t", half, half)
    async with aclosing(dnp.pull("t")) as messages:
        await anext(messages)
        await dnp.reset("t")
        await dnp.push("t", half, half, half)
        with pytest.raises(StopAsyncIteration):
            await anext(messages)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("first", [b"one\n", b"two\n", b"three\n"]),
        ("last", []),
        (0, [b"one\n", b"two\n", b"three\n"]),
        (4, [b"two\n", b"three\n"]),
        (5, [b"three\n"]),
        (14, []),
        (1000, []),
    ],
)
async def test_where_it_begins(dnp: Dnp, start: PullStart, expected: list[bytes]) -> None:
    await dnp.push("t", "one", "two", "three")
    assert await pulled(dnp, "t", start) == expected


async def test_it_begins_at_a_time(dnp: Dnp) -> None:
    for text in ("one", "two", "three"):
        await dnp.push("t", text)
    times = [message.time_ns async for message in dnp.pull("t")]
    second = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=times[1] // 1000)
    assert (await pulled(dnp, "t", second))[-2:] == [b"two\n", b"three\n"]
    assert await pulled(dnp, "t", datetime.now() - timedelta(hours=1)) == [b"one\n", b"two\n", b"three\n"]
    assert await pulled(dnp, "t", datetime.now(UTC) + timedelta(hours=1)) == []


async def test_a_time_that_is_met_later_only(dnp: Dnp) -> None:
    await dnp.push("t", "early")
    start = datetime.now(UTC)
    async with aclosing(dnp.pull("t", start=start, follow=True)) as messages, trio.open_nursery() as nursery:
        nursery.start_soon(dnp.push, "t", "late")
        assert await following(messages) == b"late\n"


async def test_following_goes_on_with_what_comes(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("t", "old")
    async with aclosing(dnp.pull("t", follow=True)) as messages:
        assert await following(messages) == b"old\n"
        for text in (b"new\n", b"newer\n"):
            await other.push("t", text)
            assert await following(messages) == text


async def test_following_from_the_end_begins_with_what_comes_next(dnp: Dnp) -> None:
    await dnp.push("t", "old")
    end = (await dnp.stat("t")).size
    async with aclosing(dnp.pull("t", start=end, follow=True)) as messages:
        await dnp.push("t", "new")
        assert await following(messages) == b"new\n"


async def test_following_from_behind_the_end_waits_for_that_offset(dnp: Dnp) -> None:
    await dnp.push("t", "abc")
    async with aclosing(dnp.pull("t", start=6, follow=True)) as messages, trio.open_nursery() as nursery:
        nursery.start_soon(dnp.push, "t", "d", "e", "f")
        assert await following(messages) == b"e\n"


async def test_following_begins_again_after_a_reset(dnp: Dnp, other: Dnp) -> None:
    """The new beginning is as long as what was there: the length alone does not tell."""
    await dnp.push("t", "a")
    async with aclosing(dnp.pull("t", follow=True)) as messages:
        assert await following(messages) == b"a\n"
        for text in (b"b\n", b"c\n"):
            await other.reset("t")
            await other.push("t", text)
            assert await following(messages) == text


async def test_following_ends_with_the_topic(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("t", "a")
    async with aclosing(dnp.pull("t", follow=True)) as messages:
        await following(messages)
        await other.remove("t")
        with pytest.raises(TopicGone):
            await following(messages)


async def test_a_topic_made_anew_is_the_one_that_is_pulled(dnp: Dnp, other: Dnp) -> None:
    for number in range(10):
        await other.push("t", str(number))
        assert await pulled(dnp, "t") == [b"%d\n" % number]
        await other.remove("t")


async def test_pages_are_of_limited_size(dnp: Dnp) -> None:
    await dnp.push("t", *[b"x" * 1000] * 5000)
    sizes = [sum(len(message.data) for message in page) async for page in dnp.pull_pages("t")]
    assert sum(sizes) == 5000 * 1001
    assert max(sizes) <= PAGE_BYTES + BATCH_LIMIT


async def test_what_cannot_be_pulled(dnp: Dnp) -> None:
    await dnp.mkdir("team")
    for path, start, error in [
        ("missing", "first", NotFound),
        ("missing/t", "first", NotFound),
        ("team", "first", IsADirectory),
        ("t@workers", "first", InvalidName),
        ("t", -1, InvalidArgument),
        ("t", "frist", InvalidArgument),
    ]:
        with pytest.raises(error):
            await pulled(dnp, path, start)  # type: ignore[arg-type]
