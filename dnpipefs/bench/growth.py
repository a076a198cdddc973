"""P7 of the design: what it costs that there is much: a long topic, many topics, many who wait.

Here an arm stands beside another one of dnpipefs, or alone: raw etcd has neither topics nor listings.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from dnpipefs.bench.figures import NS, Bar, Line, Quantity, Sample
from dnpipefs.bench.measurements import MESSAGE_BYTES, Arm, Arms, Measurement, Scale, timed
from dnpipefs.bench.stage import MeasurementFailed, Stage

MOST_ROUNDS: Final = 5
"""Each round mounts four times and reads the long topic through."""
IDLE_S: Final = 2.0
"""For how long those who wait are watched."""
LONG, SHORT, MANY = "long", "short", "many"


def _lines(scale: Scale) -> list[Line]:
    many, long = f"{scale.topics:,} topics", f"{scale.messages:,} messages"
    return [
        Line(f"write to {long}, p50, beside none", Quantity.P50, "long", "short", Bar(1.1, at_most=True)),
        _alone(f"mount's first tail -n 10 of {long}", Quantity.P50, "tail", 200),
        _alone(f"mount's first ls -l of {many}", Quantity.SECONDS, "cold list", 3),
        _alone(f"ls -l of {many} again", Quantity.SECONDS, "list", 3),
        _alone(f"memory, all {long} read", Quantity.MEMORY, "replay", 300),
        _alone(f"CPU of {scale.readers:,} waiting readers", Quantity.SHARE, "wait", 2),
    ]


def _alone(what: str, quantity: Quantity, arm: str, limit: float) -> Line:
    return Line(what, quantity, arm, bar=Bar(limit, at_most=True, absolute=True))


@asynccontextmanager
async def _arms(stage: Stage, scale: Scale) -> AsyncIterator[Arms]:
    client, held = stage.client, stage.mount
    size = (await client.ask("fill", topic=LONG, messages=scale.messages, size=MESSAGE_BYTES))["bytes"]
    await client.ask("fill_directory", path=MANY, topics=scale.topics)
    async with (
        stage.start.load() as load,
        stage.start.client("reader") as readers,
        AsyncExitStack() as mounted,
    ):
        fresh = held

        async def mount_anew() -> None:
            nonlocal fresh
            await mounted.aclose()
            fresh = await mounted.enter_async_context(stage.start.mount())

        def write(topic: str) -> Callable[[float], Awaitable[Sample]]:
            return lambda seconds: timed(load, "write", seconds, path=str(held / topic))

        def program(*arguments: str, lines: int) -> Callable[[float], Awaitable[Sample]]:
            async def run(_seconds: float) -> Sample:
                *options, path = arguments
                reply = await load.ask("run_program", arguments=[*options, str(fresh / path)])
                if reply["lines"] != lines:
                    raise MeasurementFailed(f"{arguments} printed {reply['lines']} lines, not {lines}")
                return Sample(1, reply["nanoseconds"] / NS, [reply["nanoseconds"]])

            return run

        async def replay(_seconds: float) -> Sample:
            reply = await load.ask("read_all", path=str(fresh / LONG))
            if reply["bytes"] < size:
                raise MeasurementFailed(f"{reply['bytes']} bytes were read of {size}")
            peak = stage.start.peak_memory(fresh)
            return Sample(1, reply["nanoseconds"] / NS, bytes=reply["bytes"], value=peak)

        async def wait(_seconds: float) -> Sample:
            reply = await readers.ask("wait", topic=SHORT, readers=scale.readers, seconds=IDLE_S)
            return Sample(1, reply["seconds"], value=reply["cpu_seconds"] / reply["seconds"])

        yield {
            "short": Arm(write(SHORT)),
            "long": Arm(write(LONG)),
            "tail": Arm(program("tail", "-n", "10", LONG, lines=10), mount_anew),
            "cold list": Arm(program("ls", "-l", MANY, lines=scale.topics + 1), mount_anew),
            "list": Arm(program("ls", "-l", MANY, lines=scale.topics + 1)),
            "replay": Arm(replay, mount_anew),
            "wait": Arm(wait),
        }


GROWTH: Final = Measurement("P7", "growth", _lines, _arms, most_rounds=MOST_ROUNDS, keep_order=True)
