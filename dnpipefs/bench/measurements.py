"""What is measured: P1 to P6 of the design, each as arms that take turns and the lines they make.

An arm does its part for some seconds and returns a sample. Raw etcd's arm goes through the same client
(`dnpipefs.etcd`) on the same server, with new keys: what was put before has to stay, as in a topic.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from dnpipefs.bench.figures import NS, Bar, Line, Quantity, Sample
from dnpipefs.bench.load import Reply
from dnpipefs.bench.stage import Child, MeasurementFailed, Stage, side_by_side

MESSAGE_BYTES: Final = 100
VALUE_BYTES: Final = 1 << 20
"""Of raw etcd's values beside bulk: as large as dnpipefs makes its batches."""
RESOURCES: Final = ("orders", "users", "carts", "sessions", "invoices", "products", "reviews")
LONGEST_LINE: Final = 160
BULK_VALUES_PER_S: Final = 32
"""A bulk round of so many seconds copies that many MiB a second."""
REPLAY_VALUES: Final = 32
"""Largest topic that is replayed, MiB: one that fits a host's cache."""
LEAD_S: Final = 0.05
"""Between an order and its start, so that all who get it start together."""
LONG_LEAD_S: Final = 0.5
"""The same where somebody has to open something first."""
PACE_S: Final = 0.01
"""Between two messages where the delay of each single one is measured: time for all that one message sets
going, also on a slow machine. Else the time in queues would be measured."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    rounds: int = 9
    seconds: float = 0.5
    """Of each arm in each round."""
    writers: int = 64
    hosts: int = 16
    messages: int = 1_000_000
    """Of the long topic of P7."""
    topics: int = 100_000
    """In the directory that P7 lists."""
    readers: int = 1_000
    """Who wait in P7."""


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to do the work."""

    run: Callable[[float], Awaitable[Sample]]
    """Takes the seconds to run; what is measured."""
    prepare: Callable[[], Awaitable[None]] = _nothing
    """Done before each run; not measured."""


Arms = Mapping[str, Arm]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One of P1 to P7."""

    id: str
    title: str
    lines: Callable[[Scale], Sequence[Line]]
    arms: Callable[[Stage, Scale], AbstractAsyncContextManager[Arms]]
    most_rounds: int | None = None
    """For what takes long."""
    keep_order: bool = False
    """An arm relies on what the one before it has left."""


# P1: push latency


def _latency_lines(_scale: Scale) -> list[Line]:
    def both(what: str, arm: str, bar: float) -> list[Line]:
        return [
            Line(f"{what}, p50", Quantity.P50, arm, "raw", Bar(bar, at_most=True)),
            Line(f"{what}, p99", Quantity.P99, arm, "raw"),
        ]

    return [*both("write on an open handle", "write", 1.5), *both("open+write+close", "open", 2.0)]


@asynccontextmanager
async def _latency_arms(stage: Stage, _scale: Scale) -> AsyncIterator[Arms]:
    raw, mount = stage.client, stage.mount
    async with stage.start.load() as load:
        yield {
            "raw": Arm(lambda seconds: timed(raw, "transactions", seconds)),
            "write": Arm(lambda seconds: timed(load, "write", seconds, path=str(mount / "held"))),
            "open": Arm(
                lambda seconds: timed(load, "open_write_close", seconds, path=str(mount / "reopened"))
            ),
        }


# P2: concurrent writers on one host


def _writers_lines(scale: Scale) -> list[Line]:
    many = f"{scale.writers} writers"
    return [
        Line(f"{many}, one topic", Quantity.RATE, "one", "raw", Bar(1.0, at_most=False)),
        Line(f"{many}, {scale.writers} topics", Quantity.RATE, "many", "raw", Bar(2.0, at_most=False)),
        Line("their transactions alone", Quantity.RATE, "bare", "raw"),
    ]


@asynccontextmanager
async def _writers_arms(stage: Stage, scale: Scale) -> AsyncIterator[Arms]:
    raw, mount = stage.client, stage.mount
    async with stage.start.load() as load:
        topics = [str(mount / f"topic{number}") for number in range(scale.writers)]
        await _join(load, "one", [str(mount / "shared")] * scale.writers)
        await _join(load, "many", topics)
        yield {
            "raw": Arm(lambda seconds: timed(raw, "puts", seconds, tasks=scale.writers)),
            "one": Arm(lambda seconds: _written(load, "one", seconds)),
            "many": Arm(lambda seconds: _written(load, "many", seconds)),
            "bare": Arm(lambda seconds: _appended(raw, scale.writers, seconds)),
        }


async def _appended(raw: Child, topics: int, seconds: float) -> Sample:
    start, end = period(seconds)
    reply = await raw.ask("appends", size=MESSAGE_BYTES, start=start, end=end, topics=topics)
    return Sample(reply["count"], seconds)


async def _join(load: Child, group: str, paths: Sequence[str]) -> None:
    """Let one writer after another open its topic and write once.

    The kernel lets only one write at a time into an inode; the mount gives a topic another inode for
    each handle that is opened when all before it have written (docs/benchmarks.md).
    """
    load.pids += (await load.ask("join", group=group, paths=paths, size=MESSAGE_BYTES))["pids"]


async def _written(load: Child, group: str, seconds: float) -> Sample:
    start, end = period(seconds)
    counts = (await load.ask("run", group=group, start=start, end=end))["counts"]
    return Sample(sum(counts), seconds)


# P3: bulk


def _bulk_lines(_scale: Scale) -> list[Line]:
    bar = Bar(0.8, at_most=False)
    return [
        Line("text file, cat", Quantity.THROUGHPUT, "cat", "raw", bar),
        Line("text file, dd bs=1M", Quantity.THROUGHPUT, "dd", "raw", bar),
        Line("random bytes, dd bs=1M", Quantity.THROUGHPUT, "random", "raw"),
    ]


@asynccontextmanager
async def _bulk_arms(stage: Stage, _scale: Scale) -> AsyncIterator[Arms]:
    raw, mount = stage.client, stage.mount
    async with stage.start.load() as load:

        async def put(seconds: float) -> Sample:
            count = _values(seconds)
            reply = await raw.ask("put_values", size=VALUE_BYTES, count=count)
            return _bulk(reply, count * VALUE_BYTES)

        def copy(how: str, make: Callable[[Path, int], Path]) -> Callable[[float], Awaitable[Sample]]:
            async def run(seconds: float) -> Sample:
                source = make(stage.directory / make.__name__, _values(seconds) * VALUE_BYTES)
                topic = mount / f"{how}{time.monotonic_ns()}"  # a new one each time
                reply = await load.ask("copy", source=str(source), path=str(topic), how=how)
                return _bulk(reply, source.stat().st_size)

            return run

        yield {
            "raw": Arm(put),
            "cat": Arm(copy("cat", _text_file)),
            "dd": Arm(copy("dd", _text_file)),
            "random": Arm(copy("dd", _random_file)),
        }


def _values(seconds: float) -> int:
    return max(1, round(seconds * BULK_VALUES_PER_S))


def _bulk(reply: Reply, size: int) -> Sample:
    return Sample(-(-size // VALUE_BYTES), reply["nanoseconds"] / NS, bytes=size)


def _text_file(path: Path, size: int) -> Path:
    """Make a file of lines like those of a log, of *size* bytes at the least.

    Hosts, addresses, identities and durations vary, so that it compresses worse than most logs: to about a
    quarter.
    """
    if not path.exists() or path.stat().st_size < size or path.stat().st_size > size + LONGEST_LINE:
        draw = random.Random(size)  # noqa: S311 - the same file each time
        lines: list[str] = []
        written = 0
        while written < size:
            lines.append(_log_line(draw, len(lines)))
            written += len(lines[-1])
        path.write_text("".join(lines))
    return path


def _random_file(path: Path, size: int) -> Path:
    """Make a file that nothing compresses, of *size* bytes."""
    if not path.exists() or path.stat().st_size != size:
        path.write_bytes(os.urandom(size))
    return path


def _log_line(draw: random.Random, number: int) -> str:
    host, address = draw.randrange(40), draw.getrandbits(12)
    minutes, hundredths = divmod(number, 6000)
    status = draw.choice((200, 200, 200, 200, 204, 301, 404, 503))
    return (
        f"2026-11-21T{minutes // 60 % 24:02}:{minutes % 60:02}:{hundredths / 100:05.2f}Z web{host:02} "
        f"api[{1000 + host}]: 10.{host}.{address >> 8}.{address & 255} GET "
        f"/v1/{draw.choice(RESOURCES)}/{draw.randrange(100_000)} {status} in "
        f"{draw.expovariate(50) * 1000:.1f} ms, request {number}\n"
    )


# P4: replay


def _replay_lines(_scale: Scale) -> list[Line]:
    return [
        Line(
            "first read, cold host",
            Quantity.THROUGHPUT,
            "cold",
            "raw",
            Bar(0.8, at_most=False),
        ),
        Line(
            "read again, warm",
            Quantity.THROUGHPUT,
            "warm",
            bar=Bar(1000, at_most=False, absolute=True),
        ),
    ]


@asynccontextmanager
async def _replay_arms(stage: Stage, scale: Scale) -> AsyncIterator[Arms]:
    count = min(_values(scale.seconds), REPLAY_VALUES)
    source = _text_file(stage.directory / "text", count * VALUE_BYTES)
    raw, current = stage.client, stage.mount
    async with stage.start.load() as load, AsyncExitStack() as mounted:
        await load.ask("copy", source=str(source), path=str(current / "history"), how="dd")
        await raw.ask("put_values", size=VALUE_BYTES, count=count)

        async def mount_anew() -> None:
            nonlocal current
            await mounted.aclose()
            current = await mounted.enter_async_context(stage.start.mount())

        async def read(_seconds: float) -> Sample:
            reply = await load.ask("read_all", path=str(current / "history"))
            if reply["bytes"] != source.stat().st_size:
                raise MeasurementFailed(f"{reply['bytes']} bytes were read of {source.stat().st_size}")
            return _bulk(reply, reply["bytes"])

        async def get(_seconds: float) -> Sample:
            reply = await raw.ask("get_values", count=count)
            return _bulk(reply, reply["bytes"])

        yield {"raw": Arm(get), "cold": Arm(read, mount_anew), "warm": Arm(read)}


# P5: from one host to another


def _delivery_lines(_scale: Scale) -> list[Line]:
    return [
        Line("push → waiting reader, p50", Quantity.P50, "api", "raw", Bar(1.5, at_most=True)),
        Line("push → waiting reader, p99", Quantity.P99, "api", "raw"),
        Line("push → reader that polls, p50", Quantity.P50, "poll", "raw"),
    ]


@asynccontextmanager
async def _delivery_arms(stage: Stage, _scale: Scale) -> AsyncIterator[Arms]:
    sender, here = stage.client, stage.mount
    async with (
        stage.start.client() as receiver,
        stage.start.mount() as there,
        stage.start.load() as writer,
        stage.start.load() as poller,
    ):
        await sender.ask("create", topics=["followed", "polled"])

        async def put(seconds: float) -> Sample:
            paced = pace(seconds)
            return await delivered(
                lambda: sender.ask("put_stamped", **paced), lambda: receiver.ask("watch_stamped")
            )

        async def follow(seconds: float) -> Sample:
            paced = pace(seconds)
            return await delivered(
                lambda: writer.ask("write_stamped", path=str(here / "followed"), **paced),
                lambda: receiver.ask("follow_stamped", topic="followed"),
            )

        async def poll(seconds: float) -> Sample:
            paced = pace(seconds)
            return await delivered(
                lambda: writer.ask("write_stamped", path=str(here / "polled"), **paced),
                lambda: poller.ask(
                    "read_stamped", path=str(there / "polled"), size=MESSAGE_BYTES, start=paced["start"]
                ),
            )

        yield {"raw": Arm(put), "api": Arm(follow), "poll": Arm(poll)}


def pace(seconds: float) -> dict[str, float]:
    """Return when and how often a sender of single messages sends, from a moment on."""
    start = time.monotonic() + LONG_LEAD_S
    return {"size": MESSAGE_BYTES, "start": start, "end": start + seconds, "interval": PACE_S}


async def delivered(send: Callable[[], Awaitable[Reply]], receive: Callable[[], Awaitable[Reply]]) -> Sample:
    """Send and receive at once; return how long each message took. Raises MeasurementFailed."""
    sent, received = await together([send, receive])
    delays = received["delays"]
    if len(delays) != sent["count"]:
        raise MeasurementFailed(f"{sent['count']} messages were sent and {len(delays)} received")
    return Sample(len(delays), len(delays) * PACE_S, delays)


# P6: many hosts on one topic


def _hosts_lines(scale: Scale) -> list[Line]:
    what = f"{scale.hosts} hosts, one topic"
    return [
        Line(f"{what}, commits", Quantity.RATE, "append", "raw", Bar(0.6, at_most=False)),
        Line(f"{what}, p99", Quantity.P99, "append", "raw", Bar(2.0, at_most=True)),
        Line(f"{what}, p50", Quantity.P50, "append", "raw"),
    ]


@asynccontextmanager
async def _hosts_arms(stage: Stage, scale: Scale) -> AsyncIterator[Arms]:
    async with side_by_side([stage.start.client("host") for _ in range(scale.hosts)]) as hosts:
        await hosts[0].ask("create", topics=["shared"])

        async def all_of(op: str, seconds: float, **fields: str) -> Sample:
            start, end = period(seconds, LONG_LEAD_S)
            replies = await together(
                [
                    lambda host=host: host.ask(op, size=MESSAGE_BYTES, start=start, end=end, **fields)  # type: ignore[misc]
                    for host in hosts
                ]
            )
            latencies = [latency for reply in replies for latency in reply["latencies"]]
            return Sample(len(latencies), seconds, latencies)

        yield {
            "raw": Arm(lambda seconds: all_of("puts", seconds)),
            "append": Arm(lambda seconds: all_of("append", seconds, topic="shared")),
        }


def period(seconds: float, lead: float = LEAD_S) -> tuple[float, float]:
    """Return when to start and to end what begins together."""
    start = time.monotonic() + lead
    return start, start + seconds


async def timed(child: Child, op: str, seconds: float, **fields: object) -> Sample:
    """Let a process repeat an operation for some seconds and say how long each one took."""
    start, end = period(seconds)
    reply = await child.ask(op, size=MESSAGE_BYTES, start=start, end=end, **fields)
    return Sample(len(reply["latencies"]), seconds, reply["latencies"])


async def together(calls: Sequence[Callable[[], Awaitable[Reply]]]) -> list[Reply]:
    """Do calls side by side and return their replies in order; the first failure ends all."""
    replies: dict[int, Reply] = {}
    failure: Exception | None = None

    async with trio.open_nursery() as nursery:

        async def call(index: int) -> None:
            nonlocal failure
            try:
                replies[index] = await calls[index]()
            except Exception as error:  # raised below, alone, not in the nursery's group
                failure = failure or error
                nursery.cancel_scope.cancel()

        for index in range(len(calls)):
            nursery.start_soon(call, index)
    if failure is not None:
        raise failure
    return [replies[index] for index in range(len(calls))]


BESIDE_RAW: Final[Sequence[Measurement]] = (
    Measurement("P1", "push latency, one writer", _latency_lines, _latency_arms),
    Measurement("P2", "concurrent writers on one host", _writers_lines, _writers_arms),
    Measurement("P3", "bulk", _bulk_lines, _bulk_arms),
    Measurement("P4", "replay", _replay_lines, _replay_arms),
    Measurement("P5", "push on one host, reader on another", _delivery_lines, _delivery_arms),
    Measurement("P6", "many hosts on one topic", _hosts_lines, _hosts_arms),
)
