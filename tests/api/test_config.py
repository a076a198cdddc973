"""Settings of topics through the API, and what they do to writers."""

import pytest

from dnpipefs import (
    Compression,
    Dnp,
    Framing,
    InvalidSetting,
    MessageTooLarge,
    NotFound,
    ReadOnlySetting,
    TopicConfig,
)
from dnpipefs.core.config import MESSAGE_LIMIT
from tests.api.test_push import pulled

BINARY = b"two\nlines\0\xff"


async def test_settings_of_a_topic(dnp: Dnp) -> None:
    await dnp.push("t", "one", "two")
    found = await dnp.config("t")
    assert found.settings == TopicConfig()
    assert found.facts is not None
    assert (found.facts.id, found.facts.messages, found.facts.end_offset) == (found.id, 2, 8)
    await dnp.configure("t", framing="write", retention_bytes="10MiB", retention_age="7d", max_message="1KiB")
    await dnp.configure("t", {"retention.messages": "5", "compression": "none", "retention.bytes": None})
    assert (await dnp.config("t")).settings == TopicConfig(
        Framing.WRITE, None, 7 * 86400 * 10**9, 5, 1024, Compression.NONE
    )


async def test_all_changes_are_made_or_none(dnp: Dnp) -> None:
    await dnp.push("t")
    with pytest.raises(InvalidSetting, match=r"max_message.*16MiB"):
        await dnp.configure("t", framing="write", max_message="1GiB")
    with pytest.raises(ReadOnlySetting):
        await dnp.configure("t", framing="write", end_offset="0")
    with pytest.raises(InvalidSetting, match="did you mean framing"):
        await dnp.configure("t", framings="write")
    assert (await dnp.config("t")).settings == TopicConfig()


async def test_a_directory_hands_its_settings_down(dnp: Dnp) -> None:
    await dnp.mkdir("team")
    await dnp.configure("team", framing="write")
    await dnp.configure("", retention_messages="7")
    await dnp.push("team/t", "x")
    await dnp.push("t", "x")
    found = await dnp.config("team")
    assert (found.settings, found.facts) == (TopicConfig(Framing.WRITE), None)
    assert (await dnp.config("team/t")).settings == TopicConfig(Framing.WRITE)
    assert (await dnp.config("t")).settings == TopicConfig(retention_messages=7)


async def test_what_does_not_exist_has_no_settings(dnp: Dnp) -> None:
    with pytest.raises(NotFound, match="no topic or directory 'missing'"):
        await dnp.config("missing")
    with pytest.raises(NotFound, match="no topic or directory 'missing'"):
        await dnp.configure("missing", framing="write")


async def test_settings_of_a_topic_that_was_just_replaced(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("t", "x")
    await other.push("new", "longer")
    await other.rename("new", "t")
    await dnp.configure("t", max_message="9")
    facts = (await other.config("t")).facts
    assert facts is not None
    assert facts.end_offset == 7
    assert (await dnp.config("t")).settings.max_message == 9


async def test_a_writer_pushes_what_it_gets_where_framing_is_write(dnp: Dnp) -> None:
    async with dnp.writer("t") as writer:
        await writer.write(b"part")
        await dnp.configure("t", framing="write")
        await writer.write(BINARY)
        await writer.write(b"")
        await dnp.configure("t", framing="line")
        await writer.write(b"one\ntw")
        await writer.write(b"o")
    assert await pulled(dnp, "t") == [b"part", BINARY, b"one\n", b"two"]


async def test_a_writer_may_insist_on_its_framing(dnp: Dnp) -> None:
    await dnp.push("t")
    await dnp.configure("t", framing="write", max_message="6")
    async with dnp.writer("t", framing=Framing.LINE) as writer:
        await writer.write(b"one\ntw")
        await writer.write(b"o\nthree")
        with pytest.raises(MessageTooLarge, match="6 bytes"):
            await writer.write(b" four\n")
    async with dnp.writer("t") as writer:
        await writer.write(b"a\nb\n")
    assert await pulled(dnp, "t") == [b"one\n", b"two\n", b"a\nb\n"]


async def test_push_adds_the_newline_whatever_the_framing(dnp: Dnp) -> None:
    await dnp.push("t")
    await dnp.configure("t", framing="write")
    await dnp.push("t", "one", "two\nlines")
    assert await pulled(dnp, "t") == [b"one\n", b"two\nlines\n"]


async def test_push_keeps_to_the_topics_limit(dnp: Dnp) -> None:
    await dnp.push("t")
    await dnp.configure("t", max_message="4")
    with pytest.raises(MessageTooLarge, match="larger than 4 bytes"):
        await dnp.push("t", "one", "four", "x")
    assert await pulled(dnp, "t") == [b"one\n"]


@pytest.mark.parametrize("framing", Framing)
async def test_a_writer_keeps_to_the_topics_limit(dnp: Dnp, framing: Framing) -> None:
    await dnp.push("t")
    await dnp.configure("t", framing=framing, max_message="16MiB")
    largest = b"x" * (MESSAGE_LIMIT - 1) + b"\n"
    async with dnp.writer("t") as writer:
        await writer.write(largest)
        with pytest.raises(MessageTooLarge, match=str(MESSAGE_LIMIT)):
            await writer.write(b"x" + largest)
        await dnp.configure("t", max_message="4")
        with pytest.raises(MessageTooLarge, match="4 bytes"):
            await writer.write(b"four\n")
        await writer.write(b"two\n")
    assert await pulled(dnp, "t") == [largest, b"two\n"]


async def test_a_writer_follows_what_another_host_sets(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("t")
    async with other.writer("t") as writer:
        await dnp.configure("t", framing="write")
        while writer.config.framing is not Framing.WRITE:
            await other.push("elsewhere", "time passes")
        await writer.write(BINARY)
    assert await pulled(dnp, "t") == [BINARY]


async def test_looking_settings_up_makes_nothing(dnp: Dnp) -> None:
    """Invariant 3 of settings."""
    namespace = dnp._namespace
    await dnp.push("t")
    await dnp.configure("t", framing="write")
    topic = (await dnp.config("t")).id
    assert namespace.config_of(topic) == TopicConfig(Framing.WRITE)
    assert namespace.config_of(topic) is namespace.config_of(topic)
    await dnp.remove("t")
    assert namespace.config_of(topic) == TopicConfig()
