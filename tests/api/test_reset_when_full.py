"""Topics without a generation: reset while etcd was full, by deletions only.

The tests make them as the format says, so that they need no full etcd; those with one are among the
tests of real mounts.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import trio
import trio.testing

from dnpipefs import Dnp, Message, TopicGone, etcd
from dnpipefs.core import generation
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import NO_GENERATION, FileId, Revision
from dnpipefs.core.records import Head
from dnpipefs.core.view import Snapshot, TopicView
from dnpipefs.log.barrier import Position
from dnpipefs.log.reader import holds
from dnpipefs.log.sweeper import Sweeper
from tests.api.conftest import Connect
from tests.support.etcd_process import EtcdProcess

WITHIN_S = 20.0


class Keys:
    """The keys of the cluster's one topic, seen from outside."""

    def __init__(self, client: etcd.Client, prefix: str) -> None:
        self.client = client
        self.schema = KeySchema(prefix)

    async def topic(self) -> FileId:
        names = self.schema.namespace
        entries = (await self.client.range(names.start, names.end)).kvs
        [found] = [kv.value for kv in entries if b'"topic"' in kv.value]
        return FileId(int(found.split(b'"id":"')[1].split(b'"')[0], 16))

    async def reset(self) -> None:
        deletes = generation.end(self.schema, await self.topic())
        await self.client.transaction((), [etcd.delete(key) for key in deletes])

    async def generation(self) -> int:
        epoch = await self.client.get(self.schema.epoch(await self.topic()))
        return epoch.mod_revision if epoch is not None else 0

    async def batches(self) -> int:
        topic = await self.topic()
        tail = self.schema.tail(topic)
        found = (await self.client.range(tail.start, tail.end, keys_only=True)).kvs
        return len([kv for kv in found if kv.key != self.schema.mark(topic)])


@pytest.fixture
async def keys(connect: Connect, shared_server: EtcdProcess) -> AsyncIterator[Keys]:
    async with etcd.open_client([shared_server.endpoint]) as client:
        yield Keys(client, connect.keywords["prefix"])  # type: ignore[attr-defined]


async def pulled(dnp: Dnp) -> list[bytes]:
    return [message.data async for message in dnp.pull("t")]


async def test_it_is_empty_whatever_is_not_swept_yet(dnp: Dnp, other: Dnp, keys: Keys) -> None:
    """Invariant 5: `dnp` has a view of it, `other` makes its first."""
    await dnp.push("t", "old")
    assert await pulled(dnp) == [b"old\n"]
    await keys.reset()
    assert await keys.batches() == 1
    for host in (dnp, other):
        assert await pulled(host) == []
        assert (await host.stat("t")).size == 0
        assert [(each.name, each.size) for each in await host.ls()] == [("t", 0)]
    await other.reset("t")
    assert await keys.generation() == 0, "there was nothing to reset"


async def test_the_next_push_begins_a_newer_generation(dnp: Dnp, other: Dnp, keys: Keys) -> None:
    """Invariants 1 and 5, again and again; both hosts push at once and one of them begins it."""
    newest = 0
    for number in range(5):
        await dnp.push("t", "old")
        await other.push("t", "old")
        await keys.reset()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dnp.push, "t", f"from here {number}")
            nursery.start_soon(other.push, "t", f"from there {number}")
        expected = {b"from here %d\n" % number, b"from there %d\n" % number}
        assert set(await pulled(dnp)) == set(await pulled(other)) == expected
        before, newest = newest, await keys.generation()
        assert newest > before


async def test_following_goes_on_in_the_next_generation(dnp: Dnp, other: Dnp, keys: Keys) -> None:
    await dnp.push("t", "a")
    async with aclosing(dnp.pull("t", follow=True)) as messages:
        assert await following(messages) == b"a\n"
        for text in (b"b\n", b"c\n", b"d\n"):
            await keys.reset()
            await other.push("t", text)
            assert await following(messages) == text


async def following(messages: AsyncIterator[Message]) -> bytes:
    with trio.fail_after(WITHIN_S):
        return (await anext(messages)).data


@pytest.mark.parametrize(
    ("seen", "epoch", "newest", "position_epoch", "enough"),
    [
        (30, 10, 25, 10, True),
        (24, 10, 25, 10, False),
        (30, 10, 25, NO_GENERATION, False),  # the reset by deletion has yet to come
        (30, NO_GENERATION, 25, NO_GENERATION, True),
        (24, NO_GENERATION, 25, NO_GENERATION, False),  # of an earlier one, and a push came between
        (30, 28, 25, NO_GENERATION, True),  # the next generation has begun meanwhile
        (30, NO_GENERATION, 25, 20, True),  # one was reset since
        (24, NO_GENERATION, 25, 25, False),
        (30, 10, 25, 25, False),
    ],
)
def test_when_a_view_is_as_new_as_etcd(
    seen: int, epoch: int, newest: int, position_epoch: int, *, enough: bool
) -> None:
    """Invariant 5: an open waits until its view holds the reset, and then no longer."""
    view = TopicView(Snapshot(Revision(seen), Revision(epoch), Head(), 1, []))
    position = Position(Revision(newest), Revision(position_epoch))
    assert holds(view, position) == enough


async def test_its_deletion_reaches_whoever_follows_it(dnp: Dnp, other: Dnp, keys: Keys) -> None:
    """The mark, whose deletion tells of a topic's end otherwise, is not there to be deleted."""
    await dnp.push("t", "a")
    await keys.reset()
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            async with aclosing(dnp.pull("t", follow=True)) as messages:
                with pytest.raises(TopicGone):
                    await following(messages)

        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await other.remove("t")
    assert await dnp.ls() == []


async def test_the_sweeper_removes_its_batches_and_no_writers_fence(dnp: Dnp, keys: Keys) -> None:
    for number in range(3):
        await dnp.push("t", str(number))
    await keys.reset()
    sweeper = Sweeper(keys.client, keys.schema)
    await sweeper.sweep_all()
    assert await keys.batches() == 3, "nobody has told it to"
    sweeper.wake(await keys.topic())
    await sweeper.sweep_all()
    assert await keys.batches() == 0
    await dnp.push("t", "new")
    sweeper.wake(await keys.topic())
    await sweeper.sweep_all()
    assert await pulled(dnp) == [b"new\n"]


async def test_who_leaves_sweeps_first_what_nobody_else_would(dnp: Dnp, keys: Keys) -> None:
    for number in range(3):
        await dnp.push("t", str(number))
    await keys.reset()
    sweeper = Sweeper(keys.client, keys.schema)
    sweeper.wake(await keys.topic())
    with trio.CancelScope() as scope:
        scope.cancel()
        await sweeper.run()
    assert await keys.batches() == 0


async def test_what_a_host_that_died_left_is_swept_after_the_next_push(
    dnp: Dnp, other: Dnp, keys: Keys
) -> None:
    await dnp.push("t", "old")
    await keys.reset()
    await other.push("t", "new")
    await Sweeper(keys.client, keys.schema).sweep_all()
    assert await keys.batches() == 1
    assert await pulled(dnp) == [b"new\n"]


async def test_a_key_that_does_not_parse_does_not_end_the_sweeper(
    dnp: Dnp, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    await dnp.push("t", "old")
    await keys.client.put(keys.schema.tail(await keys.topic()).start + b"junk", b"")
    await keys.reset()
    sweeper = Sweeper(keys.client, keys.schema)
    sweeper.wake(await keys.topic())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sweeper.run)
        with trio.fail_after(WITHIN_S):
            while "not swept yet" not in caplog.text:
                await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
