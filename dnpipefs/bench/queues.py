"""P8 of the design: how fast workers share a topic, and how soon one that waits has a message."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from dnpipefs.bench.figures import NS, Bar, Line, Quantity, Sample
from dnpipefs.bench.measurements import (
    MESSAGE_BYTES,
    Arm,
    Arms,
    Measurement,
    Scale,
    delivered,
    pace,
    period,
    together,
)
from dnpipefs.bench.stage import MeasurementFailed, Stage, side_by_side

WORKERS: Final = 8
HOSTS: Final = 8
MESSAGES_PER_S: Final = 40_000
"""In the topic that is shared, for each second of an arm; each round has a group of its own."""
WORK_S: Final = 0.001
"""How long a host of those that work has each message in hand."""
TOPIC, JOBS, WAITED, EMPTY = "queue", "jobs", "waited", "empty"
BLOCKED_S: Final = 5.0
"""How long blocked readers are looked at."""
SETTLED_S: Final = 3.0
"""After how long all of them wait."""


def _lines(scale: Scale) -> list[Line]:
    workers = f"group of {WORKERS} workers on one mount"
    return [
        Line(workers, Quantity.RATE, "workers", bar=Bar(10_000, at_most=False, absolute=True)),
        Line(f"{HOSTS} hosts that work, beside one", Quantity.RATE, "hosts", "host", Bar(1.0, at_most=False)),
        Line("one host that does nothing else", Quantity.RATE, "idle"),
        Line("push → waiting worker, p50", Quantity.P50, "worker", "raw", Bar(1.5, at_most=True)),
        Line("push → waiting worker, p99", Quantity.P99, "worker", "raw"),
        Line(
            f"CPU of a mount with {scale.readers:,} blocked readers",
            Quantity.SHARE,
            "blocked",
            bar=Bar(2, at_most=True, absolute=True),
        ),
    ]


@asynccontextmanager
async def _arms(stage: Stage, scale: Scale) -> AsyncIterator[Arms]:
    sender, here = stage.client, stage.mount
    count = int(MESSAGES_PER_S * scale.seconds)
    names = (f"group{number}" for number in itertools.count())
    await sender.ask("fill", topic=TOPIC, messages=count, size=MESSAGE_BYTES)
    jobs = int(2 * scale.seconds / WORK_S)
    await sender.ask("fill", topic=JOBS, messages=jobs, size=MESSAGE_BYTES)
    await sender.ask("create", topics=[WAITED])
    await trio.Path(here / EMPTY).touch()
    async with (
        stage.start.load() as load,
        stage.start.load() as writer,
        stage.start.load() as worker,
        stage.start.client("receiver") as receiver,
        stage.start.mount() as there,
        side_by_side([stage.start.client("host") for _ in range(HOSTS)]) as hosts,
    ):

        async def work(_seconds: float) -> Sample:
            path = str(here / f"{TOPIC}@{next(names)}")
            reply = await load.ask("consume", path=path, workers=WORKERS)
            return _all(count, [reply])

        async def share(number: int, seconds: float, topic: str, work_s: float) -> Sample:
            start, _ = period(seconds)
            order = {"topic": topic, "group": next(names), "start": start, "work_s": work_s}
            replies = await together(
                [lambda host=host: host.ask("consume", **order) for host in hosts[:number]]  # type: ignore[misc]
            )
            return _all(count if topic == TOPIC else jobs, replies)

        async def put(seconds: float) -> Sample:
            paced = pace(seconds)
            return await delivered(
                lambda: sender.ask("put_stamped", **paced), lambda: receiver.ask("watch_stamped")
            )

        async def wait(seconds: float) -> Sample:
            paced = pace(seconds)
            return await delivered(
                lambda: writer.ask("write_stamped", path=str(here / WAITED), **paced),
                lambda: worker.ask("take_stamped", path=str(there / f"{WAITED}@worker")),
            )

        async def block(_seconds: float) -> Sample:
            await load.ask("block", path=str(here / f"{EMPTY}@{next(names)}"), readers=scale.readers)
            await trio.sleep(SETTLED_S)
            before = stage.start.cpu_of(here)
            await trio.sleep(BLOCKED_S)
            used = stage.start.cpu_of(here) - before
            await load.ask("unblock")
            return Sample(1, BLOCKED_S, value=used / BLOCKED_S)

        yield {
            "workers": Arm(work),
            "idle": Arm(lambda seconds: share(1, seconds, TOPIC, 0)),
            "host": Arm(lambda seconds: share(1, seconds, JOBS, WORK_S)),
            "hosts": Arm(lambda seconds: share(HOSTS, seconds, JOBS, WORK_S)),
            "raw": Arm(put),
            "worker": Arm(wait),
            "blocked": Arm(block),
        }


def _all(count: int, replies: list[dict[str, object]]) -> Sample:
    taken = sum([int(str(reply["count"])) for reply in replies])
    if taken != count:
        raise MeasurementFailed(f"{taken} messages were taken of {count}")
    return Sample(count, max(float(str(reply["nanoseconds"])) for reply in replies) / NS)


QUEUES: Final = Measurement("P8", "consumer groups", _lines, _arms)
