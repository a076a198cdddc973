"""An etcd that goes back to an earlier revision, as when it is restored from a backup while clients live."""

import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import trio

from dnpipefs.etcd import Client, HistoryLost, delete, get, open_client, put
from tests.support.etcd_process import EtcdProcess

ENOUGH = 20.0
"""Seconds for what etcd does when it has started again."""


@contextmanager
def goes_back(server: EtcdProcess) -> Iterator[None]:
    """Let a server lose what it is told in the block."""
    data, backup = server.directory / "data", server.directory / "backup"
    server.stop()
    shutil.copytree(data, backup)
    server.start()
    yield
    server.kill()
    shutil.rmtree(data)
    backup.rename(data)
    server.start()


async def put_some(client: Client) -> None:
    for number in range(5):
        await client.put(b"key", b"%d" % number, timeout=ENOUGH)


READS: list[Callable[[Client], Awaitable[object]]] = [
    lambda client: client.range(b"key"),
    lambda client: client.get(b"key"),
    lambda client: client.get_prefix(b"k"),
    lambda client: client.transaction((), [get(b"key")]),
]


@pytest.mark.parametrize("read", READS)
async def test_a_read_tells_and_then_there_are_no_more_calls(
    server: EtcdProcess, read: Callable[[Client], Awaitable[object]]
) -> None:
    async with open_client([server.endpoint], timeout=ENOUGH) as client:
        with goes_back(server):
            await put_some(client)
        with pytest.raises(HistoryLost, match="was at revision 6 and is at 1 now") as lost:
            await read(client)
        with pytest.raises(HistoryLost):
            await client.put(b"other", b"")
        with pytest.raises(HistoryLost) as told:
            await client.end_if_lost()
        assert str(told.value) == str(lost.value)
    async with open_client([server.endpoint], timeout=ENOUGH) as another:
        assert await another.get(b"other") is None, "it was not sent"


@pytest.mark.parametrize("way", ["put", "delete", "transaction"])
async def test_a_write_that_tells_was_applied_and_says_so(server: EtcdProcess, way: str) -> None:
    async with open_client([server.endpoint], timeout=ENOUGH) as client:
        with goes_back(server):
            await put_some(client)
        match way:
            case "put":
                assert await client.put(b"key", b"after") == 2
            case "delete":
                assert (await client.delete(b"key")).deleted == 0
            case _:
                assert (await client.transaction((), [put(b"key", b"after"), delete(b"x")])).succeeded
        with pytest.raises(HistoryLost):
            await client.get(b"key")


async def test_watches_are_not_taken_up_again(server: EtcdProcess) -> None:
    """They would go on at the revision that they had reached, without what comes before it now."""
    seen: list[bytes] = []

    async def follow() -> None:
        async with client.watch(b"key", start_revision=1) as watch:
            async for batch in watch:
                seen.extend(event.kv.value for event in batch.events)

    async with open_client([server.endpoint], timeout=ENOUGH) as client, trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        with goes_back(server):
            await put_some(client)
        with trio.fail_after(ENOUGH), pytest.raises(HistoryLost):
            await client.end_if_lost()
        async with open_client([server.endpoint], timeout=ENOUGH) as another:
            for number in range(10):
                await another.put(b"key", b"new %d" % number)
        assert set(seen) <= {b"%d" % number for number in range(5)}
        nursery.cancel_scope.cancel()


async def test_what_is_asked_for_at_once_tells_nothing_by_its_order(server: EtcdProcess) -> None:
    """An answer may come behind a newer one: what counts is what had come before the question."""
    async with open_client([server.endpoint], timeout=ENOUGH) as client, trio.open_nursery() as nursery:

        async def work(number: int) -> None:
            for _ in range(50):
                await client.put(b"key %d" % number, b"")
                await client.range(b"k", b"l")
                await client.get(b"key", serializable=True)

        for number in range(20):
            nursery.start_soon(work, number)
