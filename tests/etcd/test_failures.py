"""What a client says, and does, when the server or the way to it breaks in the middle."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import trio

from dnpipefs.etcd import (
    AlarmKind,
    Ambiguous,
    Client,
    SpaceExceeded,
    Unreachable,
    compare_version,
    delete,
    get,
    open_client,
    put,
)
from tests.support.etcd_process import EtcdProcess
from tests.support.tcp_proxy import Mode, TcpProxy, open_proxy

SOON = 0.5
"""Seconds a call gets that is going to fail."""
ENOUGH = 20.0
"""Seconds a call gets that is going to succeed."""


async def test_answer_lost_after_the_write_was_applied(server: EtcdProcess, proxy: TcpProxy) -> None:
    async with open_client([proxy.endpoint]) as client:
        await client.put(b"before", b"")
        proxy.become(Mode.SWALLOW_ANSWERS)
        with pytest.raises(Ambiguous):
            await client.put(b"key", b"value", timeout=SOON)
        proxy.heal()
        kv = await client.get(b"key", timeout=ENOUGH)
        assert kv is not None
        assert kv.version == 1


async def test_connection_lost_after_the_write_was_applied(server: EtcdProcess, proxy: TcpProxy) -> None:
    """Not a timeout: the write fails as soon as the connection does, and is not sent again."""
    async with open_client([proxy.endpoint]) as client:
        await client.put(b"before", b"")
        proxy.become(Mode.SWALLOW_ANSWERS)

        async def cut() -> None:
            await proxy.swallowed.wait()
            proxy.heal()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            with pytest.raises(Ambiguous), trio.fail_after(ENOUGH):
                await client.put(b"key", b"value", timeout=10 * ENOUGH)
        kv = await client.get(b"key", timeout=ENOUGH)
        assert kv is None or kv.version == 1


async def _lose_one_answer(proxy: TcpProxy, call: Callable[[], Awaitable[object]]) -> None:
    """Make the call; cut the connection when its answer is on the way, then let everything through."""
    proxy.become(Mode.SWALLOW_ANSWERS)

    async def cut() -> None:
        await proxy.swallowed.wait()
        proxy.heal()

    with trio.fail_after(ENOUGH):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            await call()


async def test_reads_are_repeated_when_the_connection_is_lost(server: EtcdProcess, proxy: TcpProxy) -> None:
    async with open_client([proxy.endpoint], timeout=ENOUGH) as client:
        lease = await client.lease_grant(60)
        reads: list[Callable[[], Awaitable[object]]] = [
            partial(client.get, b"key"),
            partial(client.transaction, [compare_version(b"key") == 0], [get(b"key")]),
            partial(client.lease_keepalive_once, lease.id),
            client.members,
        ]
        for read in reads:
            await client.get(b"connected")
            await _lose_one_answer(proxy, read)


async def test_writes_are_not_repeated(server: EtcdProcess, proxy: TcpProxy) -> None:
    async with open_client([proxy.endpoint], timeout=ENOUGH) as client:
        writes: list[Callable[[], Awaitable[object]]] = [
            partial(client.put, b"key", b""),
            partial(client.transaction, [], [get(b"key"), put(b"key", b"")]),
            partial(client.transaction, [], [get(b"key")], [put(b"key", b"")]),
            partial(client.transaction, [], [delete(b"key")]),
            partial(client.delete, b"key"),
            partial(client.lease_grant, 60),
        ]
        for write in writes:
            await client.get(b"connected")
            with pytest.RaisesGroup(Ambiguous):
                await _lose_one_answer(proxy, write)


async def test_write_that_was_never_sent_is_definite(server: EtcdProcess, proxy: TcpProxy) -> None:
    proxy.become(Mode.REFUSE)
    async with open_client([proxy.endpoint]) as client:
        with pytest.raises(Unreachable):
            await client.put(b"key", b"value", timeout=SOON)
        with pytest.raises(Unreachable):
            await client.check()
        proxy.become(Mode.PASS)
        assert await client.get(b"key", timeout=ENOUGH) is None


async def test_nobody_listens(tmp_path: Path) -> None:
    dead = EtcdProcess(tmp_path / "never")
    async with open_client([dead.endpoint]) as client:
        with pytest.raises(Unreachable, match="Connection refused"):
            await client.put(b"key", b"", timeout=SOON)
        with pytest.raises(Unreachable, match="Connection refused"):
            await client.get(b"key", timeout=SOON)
        with pytest.raises(Unreachable, match="Connection refused"), trio.fail_after(ENOUGH):
            await client.check()


async def test_black_hole(server: EtcdProcess, proxy: TcpProxy) -> None:
    proxy.become(Mode.BLACK_HOLE)
    async with open_client([proxy.endpoint]) as client:
        with pytest.raises(Unreachable):  # nothing was sent: the probe was not answered
            await client.put(b"key", b"", timeout=SOON)
        proxy.heal()
        await client.put(b"key", b"", timeout=ENOUGH)
        proxy.become(Mode.BLACK_HOLE)
        with pytest.raises(Ambiguous):
            await client.put(b"key", b"", timeout=SOON)


async def test_write_waits_for_a_server_that_restarts(server: EtcdProcess) -> None:
    """The connection is known to be gone, so the write is not sent before there is a new one."""
    async with open_client([server.endpoint]) as client:
        await client.put(b"key", b"1")
        server.kill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_restart, server)
            with trio.fail_after(ENOUGH):
                try:
                    await client.put(b"key", b"2", timeout=ENOUGH)
                except Ambiguous:  # it was on its way when the connection was found dead
                    await client.put(b"key", b"2", timeout=ENOUGH)
        kv = await client.get(b"key")
        assert kv is not None
        assert kv.value == b"2"


async def _restart(server: EtcdProcess) -> None:
    await trio.to_thread.run_sync(server.start)


async def test_timeout_of_a_frozen_server_is_ambiguous(server: EtcdProcess) -> None:
    async with open_client([server.endpoint]) as client:
        await client.put(b"key", b"1")
        server.pause()
        with pytest.raises(Ambiguous):
            await client.put(b"key", b"2", timeout=SOON)
        server.resume()
        await client.get(b"key", timeout=ENOUGH)


async def test_no_space(tmp_path: Path, etcd_binary: str) -> None:
    server = EtcdProcess(tmp_path / "e", etcd_binary, arguments=["--quota-backend-bytes", str(2**20)])
    try:
        server.start()
        async with open_client([server.endpoint], timeout=ENOUGH) as client:
            with pytest.raises(SpaceExceeded, match="`dnpipefs doctor`"):
                await _fill(client)
            with pytest.raises(SpaceExceeded):
                await client.transaction([], [put(b"key", b"")])
            await client.transaction([], [delete(b"0", b"\x00")])
            (alarm,) = await client.alarms()
            assert alarm.kind is AlarmKind.NOSPACE
            await client.compact((await client.status()).revision, physical=True)
            await client.defragment(server.endpoint)
            await client.disarm_alarm(alarm)
            await client.put(b"key", b"")
    finally:
        server.kill()


async def _fill(client: Client) -> None:
    for number in range(100):
        await client.put(b"%d" % number, bytes(2**17))


async def _leader(client: Client, members: list[EtcdProcess]) -> EtcdProcess:
    for member in members:
        status = await client.status(member.endpoint)
        if status.leader == status.member_id:
            return member
    raise AssertionError("no leader")


async def test_failover(cluster: list[EtcdProcess]) -> None:
    """A proxy before each member: then a member is lost by its process or by its network."""
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(open_proxy(member.port)) for member in cluster]
        client = await stack.enter_async_context(
            open_client([proxy.endpoint for proxy in proxies], timeout=ENOUGH)
        )
        revision = await client.put(b"key", b"0")
        watch = await stack.enter_async_context(client.watch(b"key", start_revision=revision))
        seen = [event.kv.value for event in (await watch.__anext__()).events]

        # The network of the member in use goes silent: reads move on within their deadline.
        (used,) = [proxy for proxy in proxies if proxy.accepted]
        used.become(Mode.BLACK_HOLE)
        assert (await client.get(b"key", timeout=2)) is not None
        await client.put(b"key", b"1")
        used.heal()

        # The leader dies: writes go on with another one.
        direct = await stack.enter_async_context(open_client([member.endpoint for member in cluster]))
        leader = await _leader(direct, cluster)
        leader.kill()
        value = 2
        with trio.fail_after(ENOUGH):
            while True:
                try:
                    last = await client.put(b"key", b"%d" % value, timeout=1)
                except Ambiguous:
                    value += 1
                else:
                    break
        with trio.fail_after(ENOUGH):
            while (batch := await watch.__anext__()).revision < last:
                seen += [event.kv.value for event in batch.events]
        seen += [event.kv.value for event in batch.events]
        stored = await client.get(b"key")
        assert stored is not None
        assert len(seen) == stored.version
        assert sorted(set(seen)) == sorted(seen)

        # Two of three are gone: nothing can be written, and it is said that there is no majority.
        next(member for member in cluster if member.alive).kill()
        with pytest.raises((Ambiguous, Unreachable)):
            await client.put(b"key", b"lost", timeout=1)
