"""Watches against a real server that is killed, restarted, compacted and flooded."""

import time
from pathlib import Path

import pytest
import trio

from dnpipefs.etcd import Client, Compacted, EventKind, Watch, open_client, prefix_end, put, watch_stream
from dnpipefs.etcd import watch as watch_module
from tests.support.etcd_process import EtcdProcess
from tests.support.tcp_proxy import Mode, TcpProxy, open_proxy

MIB = 2**20
ENOUGH = 20.0


async def read_until(watch: Watch, revision: int) -> list[tuple[bytes, int]]:
    """Return key and revision of every event up to `revision`; the last batch must end with it."""
    events = []
    with trio.fail_after(ENOUGH):
        async for batch in watch:
            events += [(event.kv.key, event.kv.mod_revision) for event in batch.events]
            assert batch.revision <= revision
            if batch.revision == revision:
                return events
    raise AssertionError("a watch does not end")


async def test_history_and_what_comes(client: Client, prefix: bytes) -> None:
    first = await client.put(prefix + b"a", b"1")
    async with client.watch(prefix, prefix_end(prefix), start_revision=first) as watch:
        second = await client.put(prefix + b"b", b"2")
        deleted = await client.delete(prefix + b"a")
        await client.put(prefix[:-1], b"not in the range")
        assert await read_until(watch, deleted.revision) == [
            (prefix + b"a", first),
            (prefix + b"b", second),
            (prefix + b"a", deleted.revision),
        ]


async def test_kinds_and_values(client: Client, prefix: bytes) -> None:
    async with client.watch(prefix) as watch:
        put_at = await client.put(prefix, b"value")
        (event,) = (await watch.__anext__()).events
        assert event.kind is EventKind.PUT
        assert event.kv == (prefix, b"value", put_at, put_at, 1, 0)
        deleted = await client.delete(prefix)
        (event,) = (await watch.__anext__()).events
        assert event.kind is EventKind.DELETE
        assert (event.kv.key, event.kv.value, event.kv.mod_revision) == (prefix, b"", deleted.revision)


async def test_without_a_start_it_begins_when_entered(client: Client, prefix: bytes) -> None:
    await client.put(prefix, b"before")
    async with client.watch(prefix) as watch:
        after = await client.put(prefix, b"after")
        assert await read_until(watch, after) == [(prefix, after)]


async def test_start_in_the_future(client: Client, prefix: bytes) -> None:
    now = await client.put(prefix, b"")
    async with client.watch(prefix, start_revision=now + 3) as watch:
        revisions = [await client.put(prefix, b"") for _ in range(4)]
        got = await read_until(watch, revisions[-1])
        assert got == [(prefix, revision) for revision in revisions if revision >= now + 3]


async def test_a_revision_is_never_split(client: Client, prefix: bytes) -> None:
    """More than etcd sends in one piece, in revisions of many keys: fragments are joined."""
    async with client.watch(prefix, prefix_end(prefix)) as live:
        revisions = []
        for number in range(6):
            ops = [put(prefix + b"%d/%d" % (number, key), bytes(10 * 1024)) for key in range(100)]
            revisions.append((await client.transaction([], ops)).revision)
        async with client.watch(prefix, prefix_end(prefix), start_revision=revisions[0]) as late:
            for watch in (live, late):
                seen: list[int] = []
                with trio.fail_after(ENOUGH):
                    while seen[-1:] != revisions[-1:]:
                        batch = await watch.__anext__()
                        for revision in sorted({event.kv.mod_revision for event in batch.events}):
                            assert sum(event.kv.mod_revision == revision for event in batch.events) == 100
                            seen.append(revision)
                assert seen == revisions
    await client.delete(prefix, prefix_end(prefix))


async def test_nothing_lost_or_doubled_when_the_server_is_killed(server: EtcdProcess) -> None:
    async with open_client([server.endpoint], timeout=ENOUGH) as client:
        written = [await client.put(b"key", b"0")]
        async with client.watch(b"key", start_revision=written[0]) as watch:
            for _ in range(3):
                written += [await client.put(b"key", b"") for _ in range(20)]
                server.kill()
                await trio.to_thread.run_sync(server.start)
                written += [await client.put(b"key", b"") for _ in range(20)]
            got = [revision for _, revision in await read_until(watch, written[-1])]
        assert got == written


async def test_events_that_come_while_disconnected(server: EtcdProcess, proxy: TcpProxy) -> None:
    async with (
        open_client([server.endpoint], timeout=ENOUGH) as writer,
        open_client([proxy.endpoint], timeout=ENOUGH) as client,
        client.watch(b"key") as watch,
    ):
        first = await writer.put(b"key", b"")
        assert await read_until(watch, first) == [(b"key", first)]
        proxy.become(Mode.REFUSE)
        second = await writer.put(b"key", b"")
        third = (await writer.delete(b"key")).revision
        proxy.become(Mode.PASS)
        assert await read_until(watch, third) == [(b"key", second), (b"key", third)]


async def test_compaction_while_disconnected(server: EtcdProcess, proxy: TcpProxy) -> None:
    async with (
        open_client([server.endpoint], timeout=ENOUGH) as writer,
        open_client([proxy.endpoint], timeout=ENOUGH) as client,
        client.watch(b"key") as watch,
    ):
        first = await writer.put(b"key", b"")
        assert await read_until(watch, first) == [(b"key", first)]
        proxy.become(Mode.REFUSE)
        for _ in range(5):
            last = await writer.put(b"key", b"")
        await writer.compact(last)
        proxy.become(Mode.PASS)
        with trio.fail_after(ENOUGH), pytest.raises(Compacted) as caught:
            await watch.__anext__()
        assert caught.value.compact_revision == last
        with pytest.raises(Compacted):  # and it stays so
            await watch.__anext__()
        async with client.watch(b"key", start_revision=last + 1) as again:
            new = await writer.put(b"key", b"")
            assert await read_until(again, new) == [(b"key", new)]


async def test_deletion_at_the_compacted_revision_is_not_lost(server: EtcdProcess, proxy: TcpProxy) -> None:
    """etcd forgets a deletion at the compaction's own revision, and would let the watch start there."""
    async with (
        open_client([server.endpoint], timeout=ENOUGH) as writer,
        open_client([proxy.endpoint], timeout=ENOUGH) as client,
        client.watch(b"key") as watch,
    ):
        first = await writer.put(b"key", b"")
        assert await read_until(watch, first) == [(b"key", first)]
        proxy.become(Mode.REFUSE)
        deleted = (await writer.delete(b"key")).revision
        await writer.compact(deleted)
        proxy.become(Mode.PASS)
        with trio.fail_after(ENOUGH), pytest.raises(Compacted):
            await watch.__anext__()
        async with client.watch(b"key", start_revision=deleted) as late:  # nor for a new watcher
            with trio.fail_after(ENOUGH), pytest.raises(Compacted):
                await late.__anext__()


async def test_compaction_does_not_touch_a_watch_that_is_up_to_date(server: EtcdProcess) -> None:
    async with open_client([server.endpoint], timeout=ENOUGH) as client, client.watch(b"key") as watch:
        for _ in range(5):
            last = await client.put(b"key", b"")
        await client.compact(last)
        new = await client.put(b"key", b"")
        assert len(await read_until(watch, new)) == 6


async def test_backlog_limit_stops_the_watcher_and_loses_nothing(
    client: Client, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "WATCH_BACKLOG_LIMIT", 64 * 1024)
    async with client.watch(prefix) as watch, client.watch(prefix) as quick:
        written = [await client.put(prefix, bytes(16 * 1024)) for _ in range(20)]
        quick_seen: list[tuple[bytes, int]] = []
        with trio.fail_after(ENOUGH):
            while not watch.paused:
                batch = await quick.__anext__()
                quick_seen += [(event.kv.key, event.kv.mod_revision) for event in batch.events]
        held = await watch.__anext__()
        assert held.size <= 2 * 64 * 1024
        assert held.revision < written[-1]
        got = [event.kv.mod_revision for event in held.events]
        got += [revision for _, revision in await read_until(watch, written[-1])]
        assert got == written


async def test_stream_that_falls_silent_moves_to_another_endpoint(
    server: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stays up and says nothing, as behind a partition."""
    monkeypatch.setattr(watch_stream, "PROGRESS_INTERVAL", 0.1)
    monkeypatch.setattr(watch_stream, "SILENCE_LIMIT", 0.4)
    async with (
        open_proxy(server.port) as first,
        open_proxy(server.port) as second,
        open_client([server.endpoint], timeout=ENOUGH) as writer,
        open_client([first.endpoint, second.endpoint], timeout=ENOUGH) as client,
        client.watch(b"key") as watch,
    ):
        one = await writer.put(b"key", b"")
        assert await read_until(watch, one) == [(b"key", one)]
        assert second.accepted == 0
        first.become(Mode.BLACK_HOLE)
        two = await writer.put(b"key", b"")
        assert await read_until(watch, two) == [(b"key", two)]
        assert second.accepted == 1


async def test_idle_stream_is_kept_by_its_progress_answers(
    server: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_stream, "PROGRESS_INTERVAL", 0.02)
    monkeypatch.setattr(watch_stream, "SILENCE_LIMIT", 0.4)
    async with (
        open_proxy(server.port) as first,
        open_proxy(server.port) as second,
        open_client([first.endpoint, second.endpoint], timeout=ENOUGH) as client,
        client.watch(b"key") as watch,
    ):
        with trio.move_on_after(1.0):
            await watch.__anext__()
        assert (first.accepted, second.accepted) == (1, 0)


async def test_inbox_limit_holds_the_stream_and_loses_nothing(
    client: Client, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trio that is busy with something else: the reading thread stops at the limit."""
    monkeypatch.setattr(watch_stream, "INBOX_LIMIT", 64 * 1024)
    written: list[int] = []

    async def write() -> None:
        written.append(await client.put(prefix, bytes(32 * 1024)))

    async with client.watch(prefix) as watch:
        stream = client._watches._stream
        assert stream is not None
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(write)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            deadline = time.monotonic() + ENOUGH
            while stream.unread <= 64 * 1024 and time.monotonic() < deadline:
                time.sleep(0.01)  # noqa: ASYNC251  # keeps trio from looking: this is what the test is about
            time.sleep(0.2)  # noqa: ASYNC251  # time enough for all of them to arrive, if they did
            assert 64 * 1024 < stream.unread < 50 * 32 * 1024 / 2
        got = [revision for _, revision in await read_until(watch, max(written))]
        assert got == sorted(written)
        assert stream.unread == 0


async def test_a_thousand_watchers(client: Client, prefix: bytes) -> None:
    count = 1000
    start = await client.put(prefix, b"") + 1
    seen = []

    async def follow(number: int, task_status: trio.TaskStatus[None]) -> None:
        async with client.watch(prefix + b"%d" % number, start_revision=start) as watch:
            task_status.started()
            (event,) = (await watch.__anext__()).events
            seen.append(event.kv.key)

    with trio.fail_after(ENOUGH):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                await nursery.start(follow, number)
            for base in range(0, count, 100):
                ops = [put(prefix + b"%d" % (base + offset), b"") for offset in range(100)]
                await client.transaction([], ops)
    assert len(set(seen)) == len(seen) == count


async def test_leaving_cancels_the_watcher_at_the_server(server: EtcdProcess) -> None:
    async with open_client([server.endpoint], timeout=ENOUGH) as client, client.watch(b"stay") as stay:
        with trio.move_on_after(0.05):
            async with client.watch(b"key") as watch:
                await watch.__anext__()
        await client.put(b"key", b"")
        revision = await client.put(b"stay", b"")
        assert await read_until(stay, revision) == [(b"stay", revision)]
        assert await _watchers(server) == 1


async def _watchers(server: EtcdProcess) -> int:
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    async with stream:
        await stream.send_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join([data async for data in stream]).decode()
    (line,) = [line for line in text.splitlines() if line.startswith("etcd_debugging_mvcc_watcher_total ")]
    return int(float(line.split()[1]))


async def test_closing_the_client_ends_its_watches(shared_server: EtcdProcess) -> None:
    async with open_client([shared_server.endpoint], timeout=ENOUGH) as client:
        watch = client.watch(b"key")
        await watch.__aenter__()
    with pytest.raises(trio.ClosedResourceError):
        await watch.__anext__()
    with pytest.raises(trio.ClosedResourceError):
        async with client.watch(b"key"):
            pass


async def test_entering_waits_for_a_server(tmp_path: Path, etcd_binary: str) -> None:
    server = EtcdProcess(tmp_path / "e", etcd_binary)
    try:
        async with open_client([server.endpoint], timeout=ENOUGH) as client, trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, server.start)
            with trio.fail_after(ENOUGH):
                async with client.watch(b"key") as watch:
                    revision = await client.put(b"key", b"")
                    assert await read_until(watch, revision) == [(b"key", revision)]
    finally:
        server.kill()


async def test_the_stream_leaves_a_server_that_hangs_as_soon_as_calls_do(
    server: EtcdProcess, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what is read from one server and what is told by the other are seconds apart."""
    monkeypatch.setattr(watch_stream, "SILENCE_LIMIT", 10 * ENOUGH)
    async with open_client([proxy.endpoint, server.endpoint]) as client, client.watch(b"key") as watch:
        await client.put(b"key", b"1")
        assert [event.kv.value for event in (await watch.__anext__()).events] == [b"1"]
        accepted = proxy.accepted
        proxy.become(Mode.BLACK_HOLE)
        assert await client.get(b"key", timeout=2) is not None
        await client.put(b"key", b"2")
        with trio.fail_after(watch_stream.PROGRESS_INTERVAL):
            assert [event.kv.value for event in (await watch.__anext__()).events] == [b"2"]
        # One failed call moves it once, and it stays there.
        assert proxy.accepted == accepted
