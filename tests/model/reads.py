"""What a reader on a living host is shown, held against what it was promised when it asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from dnpipefs.core.names import Offset
from dnpipefs.core.view import TopicView
from dnpipefs.errors import DnpError, TimedOut, TopicGone
from dnpipefs.log.reader import Reader
from tests.model.hosts import FAULTS, Cluster, Host
from tests.model.oracle import Generation, Topic


class Promise(NamedTuple):
    """What is known of a topic when a read begins: every read must show it."""

    revision: int
    generation: Generation | None
    end: int


class Reading:
    """One reader, from the open to the end of file."""

    def __init__(self, cluster: Cluster, host: Host, topic: Topic) -> None:
        self._cluster = cluster
        self._host = host
        self._topic = topic
        self._draw = random.Random(cluster.draw.random())  # the order in which tasks go on is not drawn

    async def run(self) -> None:
        """Read a topic to its end, some of it as bytes and some as messages."""
        seen = self._cluster.seen
        promise = await self._promise()
        try:
            async with self._host.log.reader(self._topic.id) as reader:
                view = await reader.view()
                await self._must_show(view, promise, "an open")
                offset: Offset | None = Offset(
                    self._draw.choice((0, 0, 0, self._draw.randrange(1 + view.end)))
                )
                while offset is not None:
                    promise = await self._promise()
                    step = self._read_messages if self._draw.random() < 0.3 else self._read_bytes
                    offset = await step(reader, offset, promise)
                seen["read to the end"] += 1
        except TopicGone:
            seen["read: gone"] += 1
        except TimedOut:
            seen["read: timed out"] += 1
        except FAULTS as error:
            self._cluster.fail(f"a reader met {error!r}")
        except DnpError as error:
            seen[f"read: {type(error).__name__}"] += 1

    async def _read_bytes(self, reader: Reader, offset: Offset, promise: Promise) -> Offset | None:
        """Read on; return where to go on, None at the end."""
        found = await reader.read(offset, self._draw.choice((1, 30, 700, 5000)))
        if not found.data:
            view = await reader.view()
            if view.end > found.offset:
                return offset  # it grew, or was reset, a moment ago
            await self._must_show(view, promise, "an end of file")
            return None
        await self._cluster.catch_up()
        if not any(self._held(each, offset, found.offset, found.data) for each in self._topic.generations):
            self._cluster.fail(
                f"D1: a read at {offset} gave {found.data[:40]!r} at {found.offset}, which never stood there"
            )
        self._cluster.seen["read bytes"] += 1
        self._cluster.seen["read behind what was trimmed"] += found.offset > offset
        return Offset(found.offset + len(found.data))

    @staticmethod
    def _held(generation: Generation, asked: int, offset: int, data: bytes) -> bool:
        """Tell whether these bytes stood there, and are what is to be read at the offset asked for."""
        stood = generation.data[offset : offset + len(data)] == data
        return stood and (offset == asked or generation.first >= offset > asked)

    async def _read_messages(self, reader: Reader, offset: Offset, promise: Promise) -> Offset | None:
        """Read on; return where to go on, None at the end."""
        found, behind = await reader.messages(offset, self._draw.choice((1, 100, 2000)))
        messages = [(message.offset, message.time_ns, message.data) for message in found]
        if behind == offset:
            view = await reader.confirm()
            await self._must_show(view, promise, "a confirmation")
            return offset if view.end > offset else None
        await self._cluster.catch_up()
        if messages and not any(_stood(each, messages) for each in self._topic.generations):
            self._cluster.fail(f"D1: a reader was given messages from {messages[0]} that never stood there")
        self._cluster.seen["read messages"] += 1
        await self._read_numbered(reader)
        return behind

    async def _read_numbered(self, reader: Reader) -> None:
        """Read the same messages by their numbers."""
        view = await reader.view()
        wanted = self._draw.randrange(view.messages + 2)
        found, end = await reader.numbered(wanted, self._draw.choice((1, 100, 2000)))
        numbered = [(number, (one.offset, one.time_ns, one.data)) for number, one in found]
        await self._cluster.catch_up()
        first, messages = wanted, [message for _, message in numbered]
        if [number for number, _ in numbered] != list(range(first, end)):
            self._cluster.fail(f"D1: asked for {first} on, a reader was given other numbers up to {end}")
        if messages and not any(
            each.messages[first : first + len(messages)] == messages for each in self._topic.generations
        ):
            self._cluster.fail(f"D1: a reader was given messages from number {first} that never had it")
        self._cluster.seen["read by number"] += bool(messages)

    async def _promise(self) -> Promise:
        await self._cluster.catch_up()
        current = self._topic.current
        end = len(current.data) if current is not None else 0
        return Promise(self._cluster.oracle.revision, current, end)

    async def _must_show(self, view: TopicView, promise: Promise, who: str) -> None:
        """M4, D5: a view that was asked for after the promise holds it."""
        await self._cluster.catch_up()
        promised = promise.generation
        if view.ended:
            if promised is not None and (promised.ended is None or promised.ended > view.revision):
                self._cluster.fail(f"M4: {who} shows an end that had not come")
            return
        known = [each for each in self._topic.generations if each.began == view.generation]
        if not known:
            self._cluster.fail(f"D5: {who} shows generation {view.generation}, which never was")
            return
        [shown] = known
        if shown.ended is not None and shown.ended <= promise.revision:
            self._cluster.fail(f"D5: {who} shows generation {shown.began}, which had ended before")
        if shown is promised and view.end < promise.end:
            self._cluster.fail(f"M4: {who} shows {view.end} bytes, {promise.end} were there before")


def _stood(generation: Generation, messages: Sequence[tuple[int, int, bytes]]) -> bool:
    first = generation.starts.get(messages[0][0])
    return first is not None and generation.messages[first : first + len(messages)] == list(messages)
