"""What push stores: messages, newlines, order, sizes, topics that come into being."""

import os
import random
from collections.abc import Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs import (
    Dnp,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    MessageTooLarge,
    NotADirectory,
    NotFound,
    TimedOut,
    TopicGone,
    connect,
    writer,
)
from dnpipefs.core.config import DEFAULTS
from tests.support.etcd_process import EtcdProcess


async def pulled(dnp: Dnp, topic: str) -> list[bytes]:
    return [message.data async for message in dnp.pull(topic)]


async def test_a_message_gets_the_newline_that_echo_would_write(dnp: Dnp) -> None:
    await dnp.push("t", "text", b"bytes", "has one\n", "", "ümläut")
    assert await pulled(dnp, "t") == [b"text\n", b"bytes\n", b"has one\n", b"\n", "ümläut\n".encode()]


async def test_a_message_with_newlines_inside_stays_one(dnp: Dnp) -> None:
    await dnp.push("t", "before", "two\nlines", "after")
    assert await pulled(dnp, "t") == [b"before\n", b"two\nlines\n", b"after\n"]


async def test_bytes_that_are_not_text_survive_as_arguments_do(dnp: Dnp) -> None:
    await dnp.push("t", os.fsdecode(b"\xff\xfe"))
    assert await pulled(dnp, "t") == [b"\xff\xfe\n"]
    with pytest.raises(InvalidArgument, match="not text"):
        await dnp.push("t", "\ud800")


async def test_many_messages_arrive_in_order(dnp: Dnp) -> None:
    messages = [b"%d %s\n" % (number, b"x" * 200) for number in range(15_000)]  # three batches
    await dnp.push("t", *messages)
    assert await pulled(dnp, "t") == messages


async def test_too_large_a_message_is_refused_whole_and_what_came_before_it_is_stored(dnp: Dnp) -> None:
    largest = b"x" * (DEFAULTS.max_message - 1)
    with pytest.raises(MessageTooLarge, match=str(DEFAULTS.max_message)):
        await dnp.push("t", "before", largest, largest + b"x", "behind")
    assert await pulled(dnp, "t") == [b"before\n", largest + b"\n"]


async def test_no_message_makes_an_empty_topic(dnp: Dnp) -> None:
    await dnp.push("t")
    assert await pulled(dnp, "t") == []


async def test_a_missing_topic_is_created_with_what_the_umask_leaves(dnp: Dnp) -> None:
    old = os.umask(0o027)
    try:
        await dnp.push("t", "x")
    finally:
        os.umask(old)
    found = await dnp.stat("t")
    assert (found.mode, found.uid, found.gid) == (0o640, os.geteuid(), os.getegid())


async def test_a_missing_directory_is_not_created(dnp: Dnp) -> None:
    with pytest.raises(NotFound, match=r"no directory 'team'.*mkdir"):
        await dnp.push("team/t", "x")
    await dnp.mkdir("team")
    await dnp.push("/team/t", "x")
    assert await pulled(dnp, "team/t") == [b"x\n"]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("t@", InvalidName),
        ("t@group", InvalidName),
        (".dnp", InvalidName),
        ("x" * 256, InvalidName),
        ("..", InvalidName),
        ("", IsADirectory),
        ("team", IsADirectory),
        ("topic/t", NotADirectory),
    ],
)
async def test_names_that_cannot_be_pushed_to(dnp: Dnp, path: str, error: type[Exception]) -> None:
    await dnp.mkdir("team")
    await dnp.push("topic")
    with pytest.raises(error):
        await dnp.push(path, "x")


async def test_any_bytes_are_a_name(dnp: Dnp) -> None:
    await dnp.push(b"\xff\xfe", "x")
    assert [entry.name for entry in await dnp.ls()] == [os.fsdecode(b"\xff\xfe")]


async def test_a_writer_pushes_lines_as_they_are_completed(dnp: Dnp) -> None:
    async with dnp.writer("t") as writer:
        await writer.write(b"one\ntw")
        assert await pulled(dnp, "t") == [b"one\n"]
        await writer.write(b"o\nthree")
        assert await pulled(dnp, "t") == [b"one\n", b"two\n"]
    assert await pulled(dnp, "t") == [b"one\n", b"two\n", b"three"]


async def test_a_writer_that_fails_pushes_no_half_line(dnp: Dnp) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is the point
        async with dnp.writer("t") as writer:
            await writer.write(b"whole\nhalf")
            raise ZeroDivisionError
    assert await pulled(dnp, "t") == [b"whole\n"]


async def test_a_writer_refuses_too_large_a_line_and_goes_on_behind_it(dnp: Dnp) -> None:
    async with dnp.writer("t") as writer:
        await writer.write(b"before\n")
        with pytest.raises(MessageTooLarge):
            await writer.write(b"x" * (DEFAULTS.max_message + 1))
        await writer.write(b"rest of it\nbehind\n")
    assert await pulled(dnp, "t") == [b"before\n", b"behind\n"]


async def test_a_topic_deleted_before_the_first_message_is_made_anew(dnp: Dnp, other: Dnp) -> None:
    async with dnp.writer("t") as writer:
        await other.remove("t")
        await writer.write(b"x\n")
    assert await pulled(other, "t") == [b"x\n"]


async def test_a_topic_deleted_between_messages_is_gone(dnp: Dnp, other: Dnp) -> None:
    async with dnp.writer("t") as writer:
        await writer.write(b"x\n")
        await other.remove("t")
        with pytest.raises(TopicGone):
            await writer.write(b"y\n")
    with pytest.raises(NotFound):
        await pulled(other, "t")


@pytest.fixture(scope="module")
def small_limit() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "BATCH_LIMIT", 16)
        yield 16


@given(st.lists(st.text("ab\n", max_size=15)))
def test_chunks_hold_the_messages_in_order_and_within_the_limit(small_limit: int, texts: list[str]) -> None:
    chunks = list(writer.gather(texts, small_limit))
    messages: list[bytes] = []
    for chunk in chunks:
        assert 0 < len(chunk.data) <= small_limit
        parts = chunk.data.splitlines(keepends=True) if chunk.lengths is None else [chunk.data]
        assert chunk.messages == len(parts)
        messages += parts
    assert messages == [(text if text.endswith("\n") else text + "\n").encode() for text in texts]


async def test_a_message_of_several_parts_waits_no_longer_than_others(server: EtcdProcess) -> None:
    """Removing its parts, which takes an answer, too, is left to later."""
    async with connect(server.endpoint, op_timeout=1) as dnp:
        await dnp.push("t", "x")
        server.pause()
        with trio.CancelScope(deadline=trio.current_time() + 5) as scope, pytest.raises(TimedOut):
            await dnp.push("t", random.Random(1).randbytes(4 << 20).replace(b"\n", b""))
        assert not scope.cancel_called, "it does not let itself be cancelled, but its time was up"
        server.resume()
