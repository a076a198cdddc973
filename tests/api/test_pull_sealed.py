"""Pulling what was sealed, merged and trimmed: the same messages, offsets and times as before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trio

from dnpipefs import Dnp, Message
from dnpipefs.core.names import FileId
from dnpipefs.core.sealing import Policy, Retention

WITHIN_S = 20.0


async def topic_of(dnp: Dnp) -> FileId:
    tree = await dnp._namespace.sync()
    [entry] = (entry for entry in tree.children(FileId(1)).values())
    return entry.id


async def seal(dnp: Dnp, *, down_to: int = 0) -> None:
    await dnp._log.sealer.seal(await topic_of(dnp), down_to=down_to)


async def pulled(dnp: Dnp, start: datetime | int | None = None) -> list[Message]:
    if start is None:
        return [message async for message in dnp.pull("t")]
    return [message async for message in dnp.pull("t", start=start)]


async def test_sealing_changes_nothing_that_is_pulled(dnp: Dnp, other: Dnp) -> None:
    """Invariant 4."""
    for text in ("one", "two\nlines", "three", "x" * 500_000, "four"):
        await dnp.push("t", text)
    before = await pulled(other)
    assert [len(message.data) for message in before] == [4, 10, 6, 500_001, 5]
    for down_to in (3, 1, 0):
        await seal(other, down_to=down_to)
        for host in (dnp, other):
            assert await pulled(host) == before
            for message in before:
                assert (await pulled(host, message.offset))[0] == message
                assert (await pulled(host, message.offset + 1))[:1] != [message]


async def test_a_time_is_found_in_the_sealed_part_and_in_the_tail(dnp: Dnp, other: Dnp) -> None:
    for number in range(9):
        await dnp.push("t", f"{number}")
        if number == 3:
            await seal(dnp)
        if number == 6:
            await seal(other, down_to=1)
    every = await pulled(dnp)
    for host in (dnp, other):
        for number, message in enumerate(every):
            moment = datetime.fromtimestamp(message.time_ns // 1000 / 1_000_000, tz=UTC)
            found = await pulled(host, moment)
            assert [one.data for one in found] == [one.data for one in every[number:]]
        assert await pulled(host, datetime.now(tz=UTC) + timedelta(hours=1)) == []


@pytest.mark.parametrize("follow", [False, True])
async def test_a_topic_of_which_nothing_is_retained(dnp: Dnp, other: Dnp, follow: bool) -> None:
    for number in range(3):
        await dnp.push("t", f"{number}")
    await seal(dnp)
    dnp._log.sealer.policy = lambda _: Policy(Retention(bytes=0))  # type: ignore[misc]
    assert await dnp._log.sealer.trim(await topic_of(dnp)) == 1
    with trio.fail_after(WITHIN_S):
        for start in (0, 3, 6):
            assert await pulled(other, start) == []
        if follow:
            messages = other.pull("t", follow=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dnp.push, "t", "next")
                message = await anext(messages)
            assert (message.offset, message.data) == (6, b"next\n")
            await messages.aclose()


async def test_what_is_retained_keeps_its_offsets(dnp: Dnp, other: Dnp) -> None:
    """Invariant 4; and a pull from the start, or from what was trimmed, begins with what is left."""
    dnp._log.sealer.policy = lambda _: Policy(Retention(bytes=7_000))  # type: ignore[misc]
    for number in range(4):
        await dnp.push("t", f"{number}" * 6_000)
        await seal(dnp)
    await dnp.push("t", "tail")
    before = await pulled(other)
    assert await dnp._log.sealer.trim(await topic_of(dnp)) > 0
    after = await pulled(other)
    assert 1 < len(after) < len(before)
    assert after == before[-len(after) :]
    for start in (0, 1, after[0].offset):
        assert await pulled(dnp, start) == after
