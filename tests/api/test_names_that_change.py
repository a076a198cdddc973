"""Removals and renames that another host is faster than: they do, and tell of, what stands there then."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from dnpipefs import etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import ROOT, FileId, Kind
from dnpipefs.errors import NotFound, Outdated
from dnpipefs.log.barrier import Barrier
from dnpipefs.log.clock import SystemClock
from dnpipefs.log.format import ensure_format
from dnpipefs.namespace import Namespace
from tests.api.conftest import Connect
from tests.support.etcd_process import EtcdProcess

OP_TIMEOUT_S = 20.0


class SlowClient:
    """A client before whose next transaction something happens elsewhere; answers may get lost."""

    def __init__(self, client: etcd.Client) -> None:
        self._client = client
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        self.answers_to_lose = 0
        self.then: Callable[[], Awaitable[object]] | None = None
        """What happens elsewhere once an answer was lost."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def transaction(self, *arguments: Any, **options: Any) -> etcd.TransactionResult:
        if (happens := self.meanwhile) is not None:
            self.meanwhile = None
            await happens()
        result = await self._client.transaction(*arguments, **options)
        if result.succeeded and self.answers_to_lose:
            self.answers_to_lose -= 1
            if self.then is not None:
                await self.then()
            raise etcd.Ambiguous("lost")
        return result


class Pair:
    """A slow host and a fast one."""

    def __init__(self, slow: Namespace, client: SlowClient, fast: Namespace) -> None:
        self.slow, self.client, self.fast = slow, client, fast

    async def make(self, name: bytes, kind: Kind) -> FileId:
        made = (await self.fast.create(ROOT, name, kind, mode=0o755, uid=0, gid=0)).id
        await self.slow.sync()
        return made

    def replace_meanwhile(self, name: bytes, kind: Kind) -> None:
        """Let the fast one move what it is away, and put another one there, before the slow one acts."""

        async def replace() -> None:
            await self.fast.rename((ROOT, name), (ROOT, b"elsewhere"), replace=False)
            await self.fast.create(ROOT, name, kind, mode=0o755, uid=0, gid=0)

        self.client.meanwhile = replace


@pytest.fixture
async def pair(connect: Connect, shared_server: EtcdProcess) -> AsyncIterator[Pair]:
    keys = KeySchema(connect.keywords["prefix"])  # type: ignore[attr-defined]
    async with etcd.open_client([shared_server.endpoint]) as client, trio.open_nursery() as nursery:
        await ensure_format(client, keys, SystemClock(), uid=0, gid=0)
        barrier = Barrier(client, keys, op_timeout=OP_TIMEOUT_S)
        slow: Any = SlowClient(client)
        names = [
            Namespace(each, keys, SystemClock(), barrier, op_timeout=OP_TIMEOUT_S) for each in (slow, client)
        ]
        nursery.start_soon(barrier.run)
        for each in names:
            await nursery.start(each.run)
        yield Pair(names[0], slow, names[1])
        nursery.cancel_scope.cancel()


async def test_the_topic_that_is_deleted_is_the_one_told(pair: Pair) -> None:
    kept = await pair.make(b"t", Kind.TOPIC)
    pair.replace_meanwhile(b"t", Kind.TOPIC)
    assert await pair.slow.unlink(ROOT, b"t") != kept
    assert (await pair.slow.lookup(ROOT, b"elsewhere")).id == kept


async def test_a_topic_whose_deletion_was_not_answered_is_the_one_told(pair: Pair) -> None:
    kept = await pair.make(b"t", Kind.TOPIC)
    pair.replace_meanwhile(b"t", Kind.TOPIC)
    pair.client.answers_to_lose = 1
    assert await pair.slow.unlink(ROOT, b"t") != kept


async def test_a_rename_that_was_not_answered_is_done(pair: Pair) -> None:
    kept = await pair.make(b"t", Kind.TOPIC)
    pair.replace_meanwhile(b"t", Kind.TOPIC)
    pair.client.answers_to_lose = 1
    await pair.slow.rename((ROOT, b"t"), (ROOT, b"u"), replace=False)
    assert (await pair.slow.lookup(ROOT, b"u")).id != kept


async def test_a_directory_that_nobody_meant_is_not_removed(pair: Pair) -> None:
    known = await pair.make(b"d", Kind.DIRECTORY)
    pair.replace_meanwhile(b"d", Kind.DIRECTORY)
    with pytest.raises(Outdated):
        await pair.slow.rmdir(ROOT, b"d", known=known)
    assert (await pair.slow.lookup(ROOT, b"d")).is_directory


@pytest.mark.parametrize("kind", list(Kind))
async def test_what_was_made_without_an_answer_and_moved_is_not_made_twice(pair: Pair, kind: Kind) -> None:
    async def move() -> None:
        await pair.fast.sync()
        await pair.fast.rename((ROOT, b"new"), (ROOT, b"elsewhere"), replace=False)

    pair.client.answers_to_lose, pair.client.then = 1, move
    made = await pair.slow.create(ROOT, b"new", kind, mode=0o755, uid=0, gid=0)
    assert (await pair.slow.lookup(ROOT, b"elsewhere")).id == made.id
    with pytest.raises(NotFound):
        await pair.slow.lookup(ROOT, b"new")


async def test_what_was_made_without_an_answer_and_deleted_is_made_anew(pair: Pair) -> None:
    """With another id: what is left of the deleted one is yet to be swept."""
    deleted: list[FileId] = []

    async def delete() -> None:
        await pair.fast.sync()
        deleted.append(await pair.fast.unlink(ROOT, b"new"))

    pair.client.answers_to_lose, pair.client.then = 1, delete
    made = await pair.slow.create(ROOT, b"new", Kind.TOPIC, mode=0o755, uid=0, gid=0)
    assert [made.id] != deleted
    assert (await pair.slow.lookup(ROOT, b"new")).id == made.id
