"""Directories and topics by name: listing, making, moving, removing, resetting."""

import time

import pytest

from dnpipefs import AlreadyExists, Dnp, InvalidArgument, IsADirectory, NotADirectory, NotEmpty, NotFound


async def test_ls_shows_what_is_in_a_directory(dnp: Dnp, other: Dnp) -> None:
    await other.mkdir("team", 0o750)
    await other.push("team/b", "12345")
    await other.push("team/a")
    await other.mkdir("team/c")
    entries = await dnp.ls("team")
    assert [(entry.name, entry.is_directory, entry.size) for entry in entries] == [
        ("a", False, 0),
        ("b", False, 6),
        ("c", True, 0),
    ]
    (team,) = await dnp.ls()
    assert (team.name, team.mode) == ("team", 0o750)


async def test_the_time_of_a_topic_is_that_of_its_last_push_or_reset(dnp: Dnp) -> None:
    await dnp.push("t")
    created = (await dnp.stat("t")).mtime_ns
    await dnp.push("t", "x")
    pushed = (await dnp.stat("t")).mtime_ns
    await dnp.reset("t")
    assert created < pushed < (await dnp.stat("t")).mtime_ns <= time.time_ns()


async def test_ls_of_a_topic_is_the_topic(dnp: Dnp) -> None:
    await dnp.push("t", "x")
    assert await dnp.ls("t") == [await dnp.stat("t")]
    assert [(entry.name, entry.size) for entry in await dnp.ls("t", sizes=False)] == [("t", 0)]


async def test_ls_of_many_topics(dnp: Dnp) -> None:
    names = [f"{number:03}" for number in range(100)]
    for name in names:
        await dnp.push(name, name)
    assert [(entry.name, entry.size) for entry in await dnp.ls()] == [(name, 4) for name in names]
    assert [entry.name for entry in await dnp.ls(sizes=False)] == names


async def test_reset_removes_all_messages(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("t", "x")
    await other.reset("t")
    assert [message async for message in dnp.pull("t")] == []
    with pytest.raises(NotFound):
        await dnp.reset("missing")
    with pytest.raises(IsADirectory):
        await dnp.reset("")


async def test_remove(dnp: Dnp) -> None:
    await dnp.mkdir("team")
    await dnp.push("team/t", "x")
    with pytest.raises(NotEmpty):
        await dnp.remove("team")
    await dnp.remove("team/t")
    await dnp.remove("team")
    assert await dnp.ls() == []
    with pytest.raises(NotFound, match="'team'"):
        await dnp.remove("team")
    with pytest.raises(InvalidArgument, match="root"):
        await dnp.remove("/")


async def test_rename(dnp: Dnp) -> None:
    await dnp.mkdir("team")
    await dnp.push("a", "a")
    await dnp.push("b", "b")
    await dnp.rename("a", "team/c")
    assert [message.data async for message in dnp.pull("team/c")] == [b"a\n"]
    with pytest.raises(AlreadyExists):
        await dnp.rename("b", "team/c", replace=False)
    await dnp.rename("b", "team/c")
    assert [message.data async for message in dnp.pull("team/c")] == [b"b\n"]
    for source, target, error in [
        ("missing", "x", NotFound),
        ("team", "no/where", NotFound),
        ("team", "team/c/x", NotADirectory),
        ("team", "team/x", InvalidArgument),
        ("/", "x", InvalidArgument),
    ]:
        with pytest.raises(error):
            await dnp.rename(source, target)


async def test_mkdir(dnp: Dnp) -> None:
    await dnp.mkdir("team")
    with pytest.raises(AlreadyExists):
        await dnp.mkdir("team")
    with pytest.raises(InvalidArgument):
        await dnp.mkdir("/")
    with pytest.raises(NotFound, match="no directory 'no'"):
        await dnp.mkdir("no/where")
