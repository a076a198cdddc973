"""A host of the cluster as a process of the benchmark: a mount, or a client that works when it is told to.

The first line of standard input says which (a *setting*), then one JSON object a line comes in and one a
line goes out. It ends, and unmounts, when its standard input does: whatever becomes of the process that
started it. A client does raw etcd's part and the log's through the same connection.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import trio

from dnpipefs import etcd
from dnpipefs.api import Dnp
from dnpipefs.bench.fill import fill_directory
from dnpipefs.bench.load import PATIENCE_S, STAMP_DIGITS, Reply, line, stamped
from dnpipefs.cluster import Cluster, Settings, open_cluster
from dnpipefs.core.batch import Chunk, encode
from dnpipefs.core.names import ROOT, Revision
from dnpipefs.log.appender import TOPICS_PER_TRANSACTION
from dnpipefs.mount import MountOptions, prepare_mountpoint, run_mount

FILL_CHUNKS: Final = (1, 10, 1_000, 10_000)
"""Messages pushed together into a long topic, by turns: some seal into segments, some are large batches."""
SETTLE_S: Final = 2.0
"""For those who begin to wait, before they are watched."""
REMOVED_AT_ONCE: Final = 1000
"""Keys deleted in one step."""
VALUES_AT_ONCE: Final = 8
"""Values of 1 MiB asked for in one raw range read."""


def encode_settings(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON has them."""
    return {**asdict(settings), "data_dir": str(settings.data_dir), "tls": _encode_tls(settings.tls)}


def decode_settings(fields: dict[str, Any]) -> Settings:
    """Undo `encode_settings`."""
    tls, credentials = fields["tls"], fields["credentials"]
    return Settings(
        **{
            **fields,
            "endpoints": tuple(fields["endpoints"]),
            "data_dir": Path(fields["data_dir"]),
            "tls": etcd.Tls(*(None if path is None else Path(path) for path in tls)) if tls else None,
            "credentials": etcd.Credentials(**credentials) if credentials else None,
        }
    )


def _encode_tls(tls: etcd.Tls | None) -> list[str | None] | None:
    if tls is None:
        return None
    return [None if path is None else str(path) for path in asdict(tls).values()]


class Host:
    """The operations of a client; each takes the fields of a request and returns those of the reply."""

    def __init__(self, cluster: Cluster, raw_prefix: str) -> None:
        self._cluster: Final = cluster
        self._client: Final = cluster.client
        self._dnp: Final = Dnp(cluster)
        self._raw: Final = raw_prefix.encode()
        self._keys = 0

    async def status(self) -> Reply:
        """Tell the server's version."""
        return {"version": (await self._client.check()).version}

    async def create(self, topics: list[str]) -> Reply:
        """Make topics with one message in each."""
        for topic in topics:
            await self._dnp.push(topic, "first")
        return {}

    async def transactions(self, size: int, start: float, end: float) -> Reply:
        """Raw: transactions of one put, one after another."""
        value = line(size)

        async def put() -> None:
            await self._client.transaction((), (etcd.put(self._new_key(), value),))

        return await _timed(put, start, end)

    async def puts(self, size: int, start: float, end: float, tasks: int = 1) -> Reply:
        """Raw: puts, one after another in each of some tasks."""
        value = line(size)

        async def put() -> None:
            await self._client.put(self._new_key(), value)

        return await _timed(put, start, end, tasks)

    async def appends(self, size: int, start: float, end: float, topics: int) -> Reply:
        """Raw: what the log asks of etcd for a message to each of some topics, two transactions at a time.

        Without mount and log, so no appending by the keys of docs/format.md is faster through this client.
        """
        session = await self._cluster.log.sessions.get()
        chunk, stop, count = Chunk.of_lines(line(size)), int(end * 1e9), 0
        batch = encode([chunk], generation=Revision(1), time_ns=time.time_ns(), session=session, sequence=1)
        base = self._new_key()
        sequences = [0] * topics

        async def append(some: Sequence[int]) -> None:
            transaction = etcd.Transaction()
            for topic in some:
                writer = b"%b/writer/%016x/%016x" % (base, topic, session)
                transaction.compare_mod_revision(b"%b/epoch/%016x" % (base, topic), 0)
                transaction.compare_version(writer, sequences[topic])
                sequences[topic] += 1
                transaction.put(writer, b"%d:1" % sequences[topic], lease=session)
                transaction.put(self._new_key(), batch)
                transaction.put(b"%b/last/%016x" % (base, topic), b"1")
            if not (await self._client.commit(transaction)).succeeded:
                raise AssertionError("nobody else puts these keys")

        async def repeat(mine: Sequence[int]) -> None:
            nonlocal count
            while time.monotonic_ns() < stop:
                for first in range(0, len(mine), TOPICS_PER_TRANSACTION):
                    some = mine[first : first + TOPICS_PER_TRANSACTION]
                    await append(some)
                    if time.monotonic_ns() <= stop:
                        count += len(some)

        await _wait_until(start)
        async with trio.open_nursery() as nursery:
            for half in range(min(2, topics)):
                nursery.start_soon(repeat, range(half, topics, 2))
        return {"count": count}

    async def put_stamped(self, size: int, start: float, end: float, interval: float) -> Reply:
        """Raw: puts that say when they were sent, one every *interval* seconds; then the last one."""
        count = 0
        while (moment := start + count * interval) < end:
            await _wait_until(moment)
            await self._client.put(self._raw + b"stamp", stamped(time.monotonic_ns(), size))
            count += 1
        await self._client.put(self._raw + b"stamp", stamped(0, size))
        return {"count": count}

    async def watch_stamped(self) -> Reply:
        """Raw: watch what `put_stamped` of another host puts; tell how long ago each was sent."""

        async def values() -> AsyncGenerator[bytes, None]:
            async with self._client.watch(self._raw + b"stamp") as watch:
                async for batch in watch:
                    for event in batch.events:
                        yield event.kv.value

        return await _delays(values())

    async def put_values(self, size: int, count: int) -> Reply:
        """Raw: *count* values of *size* bytes, one after another; they are what `get_values` reads."""
        value = os.urandom(size)  # nothing on the way may get smaller
        begun = time.monotonic_ns()
        for number in range(count):
            await self._client.put(self._value_key(number), value)
        return {"nanoseconds": time.monotonic_ns() - begun}

    async def get_values(self, count: int) -> Reply:
        """Raw: read what `put_values` put, in ranges."""
        begun = time.monotonic_ns()
        size = 0
        for number in range(0, count, VALUES_AT_ONCE):
            last = min(number + VALUES_AT_ONCE, count)
            found = await self._client.range(self._value_key(number), self._value_key(last))
            size += sum(len(kv.value) for kv in found.kvs)
        return {"nanoseconds": time.monotonic_ns() - begun, "bytes": size}

    async def append(self, topic: str, size: int, start: float, end: float) -> Reply:
        """Append to a topic, one message after another, through this host's own log."""
        data = line(size)
        async with self._dnp.writer(topic) as writer:
            return await _timed(lambda: writer.write(data), start, end)

    async def follow_stamped(self, topic: str) -> Reply:
        """Wait for messages as a program that uses the Python API; tell how long ago each was sent."""

        async def values() -> AsyncGenerator[bytes, None]:
            async with aclosing(self._dnp.pull(topic, start="last", follow=True)) as messages:
                async for message in messages:
                    yield message.data

        return await _delays(values())

    async def consume(self, topic: str, group: str, start: float, work_s: float) -> Reply:
        """Take what there is in a group and work so long on each message, until nothing is left."""
        await _wait_until(start)
        begun, count = time.monotonic_ns(), 0
        async with self._dnp.consumer(topic, group) as consumer:
            async with aclosing(consumer.messages(wait=False)) as messages:
                async for _ in messages:
                    count += 1
                    if work_s:
                        await trio.sleep(work_s)
            await consumer.settled()
        return {"count": count, "nanoseconds": time.monotonic_ns() - begun}

    async def fill(self, topic: str, messages: int, size: int) -> Reply:
        """Make a long topic: pushes of all sizes, sealed in the end."""
        await self._dnp.push(topic)
        entry = await self._cluster.namespace.lookup(ROOT, topic.encode())
        data, written = line(size), 0
        for count in itertools.cycle(FILL_CHUNKS):
            count = min(count, messages - written)
            await self._cluster.log.append(entry.id, Chunk.of_lines(data * count), born=entry.revision)
            written += count
            if written == messages:
                break
        await self._cluster.log.sealer.seal(entry.id)
        return {"bytes": written * size}

    async def fill_directory(self, path: str, topics: int) -> Reply:
        """Make a directory of many topics."""
        await fill_directory(self._cluster, path.encode(), count=topics)
        return {}

    async def wait(self, topic: str, readers: int, seconds: float) -> Reply:
        """Let many readers wait for messages that do not come; tell what that costs."""

        async def follow() -> None:
            async with aclosing(self._dnp.pull(topic, start="last", follow=True)) as messages:
                async for _ in messages:
                    pass

        async with trio.open_nursery() as nursery:
            for _ in range(readers):
                nursery.start_soon(follow)
            await trio.sleep(SETTLE_S)
            used, begun = time.process_time(), time.monotonic()
            await trio.sleep(seconds)
            used, took = time.process_time() - used, time.monotonic() - begun
            nursery.cancel_scope.cancel()
        return {"cpu_seconds": used, "seconds": took}

    async def remove(self) -> Reply:
        """Remove every key of the benchmark, in steps."""
        for prefix in (self._cluster.settings.prefix.encode(), self._raw):
            while keys := (await self._client.get_prefix(prefix, limit=REMOVED_AT_ONCE, keys_only=True)).kvs:
                await self._client.delete(keys[0].key, keys[-1].key + b"\0")
        return {}

    def _new_key(self) -> bytes:
        self._keys += 1
        return b"%bput/%x/%016x" % (self._raw, os.getpid(), self._keys)

    def _value_key(self, number: int) -> bytes:
        return b"%bvalue/%08x" % (self._raw, number)


async def _timed(
    operation: Callable[[], Awaitable[object]], start: float, end: float, tasks: int = 1
) -> Reply:
    """Repeat an operation until *end* and tell how long each that ended by then took."""
    clock = time.monotonic_ns
    latencies: list[int] = []
    stop = int(end * 1e9)

    async def repeat() -> None:
        begun = clock()
        while True:
            await operation()
            ended = clock()
            if ended > stop:
                return
            latencies.append(ended - begun)
            begun = ended

    await _wait_until(start)
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(repeat)
    return {"latencies": latencies}


async def _delays(values: AsyncGenerator[bytes, None]) -> Reply:
    delays: list[int] = []
    with trio.fail_after(PATIENCE_S) as scope:
        async with aclosing(values):
            async for value in values:
                now = time.monotonic_ns()
                sent = int(value[:STAMP_DIGITS])
                if not sent:
                    break
                delays.append(now - sent)
                scope.deadline = trio.current_time() + PATIENCE_S
    return {"delays": delays}


async def _wait_until(moment: float) -> None:
    await trio.sleep(max(0.0, moment - time.monotonic()))


async def _serve(settings: Settings, raw_prefix: str) -> None:
    async with open_cluster(settings) as cluster:
        host = Host(cluster, raw_prefix)
        _reply({"ready": True})
        while request := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            fields = json.loads(request)
            try:
                reply: Reply = await getattr(host, fields.pop("op"))(**fields)
            except Exception as error:  # the other side knows what to do about it
                reply = {"error": f"{type(error).__name__}: {error}"}
            _reply(reply)


def _mount(settings: Settings, mountpoint: Path) -> None:
    def end_with_input() -> None:
        while sys.stdin.readline():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    def ready() -> None:
        threading.Thread(target=end_with_input, daemon=True).start()
        _reply({"ready": True})

    run_mount(settings, MountOptions(prepare_mountpoint(mountpoint)), ready=ready)


def _reply(reply: Reply) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Be the host that the first line of standard input describes."""
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    setting = json.loads(sys.stdin.readline())
    settings = decode_settings(setting["settings"])
    try:
        if setting["mountpoint"] is not None:
            _mount(settings, Path(setting["mountpoint"]))
        else:
            trio.run(_serve, settings, setting["raw_prefix"])
    except Exception as error:  # the other side waits for a line
        _reply({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
