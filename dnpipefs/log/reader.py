"""Reading a topic by byte offset: linearizable at open and at end of file, from the view in between.

A read that begins after an append or reset returned elsewhere and comes to the end of what the view
holds asks etcd whether that is the end (`Barrier`) before it says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from dnpipefs.core.batch import Batch
from dnpipefs.core.names import NO_GENERATION, Offset, Revision
from dnpipefs.core.view import TailEntry, TopicView
from dnpipefs.errors import CorruptData
from dnpipefs.log.barrier import Barrier, Position
from dnpipefs.log.content import BatchCache
from dnpipefs.log.failures import deadline
from dnpipefs.log.views import LiveView


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it stands in a topic."""

    offset: Offset
    """Of its first byte."""
    time_ns: int
    """When its batch was appended, nanoseconds since 1970 UTC, by the appending host's clock."""
    data: bytes


class Reader:
    """Reads one topic. Made by `Log.reader`, valid while its live view is held."""

    def __init__(self, live: LiveView, barrier: Barrier, content: BatchCache, *, op_timeout: float) -> None:
        self._live: Final = live
        self._barrier: Final = barrier
        self._content: Final = content
        self._op_timeout: Final = op_timeout

    async def confirm(self) -> TopicView:
        """Return the view once it holds everything that had been acknowledged before the call.

        Raises TopicGone, TimedOut.
        """
        position = await self._barrier.topic(self._live.topic)
        with deadline(self._op_timeout):
            return await self._live.wait(lambda view: holds(view, position))

    async def read(self, offset: Offset, size: int) -> bytes:
        """Return up to *size* bytes from *offset*; empty only at the confirmed end of the topic.

        A read before the first retained byte continues at it. Raises TopicGone, TimedOut.
        """
        view = await self.view()
        confirmed = False
        while True:
            offset = max(offset, view.first)
            entries = view.locate(offset, size)
            if entries:
                batches = await self._fetch(entries, view.generation)
                if batches is not None:
                    return _slice(entries, batches, offset, size)
            elif confirmed:
                return b""
            view = await self.confirm()
            confirmed = True

    async def view(self) -> TopicView:
        """Return the view as this host has it; a live object, so look before you await again."""
        return await self._live.wait(lambda _: True)

    async def messages(self, offset: Offset, size: int) -> tuple[Iterator[Message], Offset]:
        """Return the whole messages of some batches from the batch at *offset* on, and the offset behind.

        *size* bounds the bytes by whole batches (at least one is returned). No messages and *offset*
        itself at the end of what the view holds. The messages are cut from the batches as they are
        taken: a megabyte of empty lines would be a hundred as objects.
        """
        while True:
            view = await self.view()
            entries = view.locate(max(offset, view.first), size)
            if not entries:
                return iter(()), offset
            batches = await self._fetch(entries, view.generation)
            if batches is not None:
                found = _messages(zip(entries, batches, strict=True))
                return (message for message in found if message.offset >= offset), entries[-1].end

    async def _fetch(self, entries: list[TailEntry], generation: Revision) -> list[Batch] | None:
        """Return the contents of *entries*; None if the topic was reset meanwhile."""
        batches = await self._content.fetch(self._live.topic, entries)
        if batches is None and (await self.confirm()).generation == generation:
            raise CorruptData("a batch of the topic is missing in etcd")
        return batches

    async def wait_beyond(self, offset: Offset, generation: Revision) -> TopicView:
        """Wait until the topic is longer than *offset* or was reset since *generation*."""
        return await self._live.wait(lambda view: view.end > offset or view.generation != generation)


def holds(view: TopicView, position: Position) -> bool:
    """Tell whether a view shows nothing older than what there was when etcd said *position*."""
    if view.revision < position.newest:
        return False
    if view.ended:  # a generation that ended since then leaves nothing to be seen either
        return True
    if position.generation == NO_GENERATION:
        return view.generation > position.newest  # else it is the one that has ended
    return view.generation >= position.generation


def _slice(entries: list[TailEntry], batches: list[Batch], offset: Offset, size: int) -> bytes:
    skip = offset - entries[0].start
    if len(batches) == 1:
        data = batches[0].data
        return data if skip == 0 and len(data) <= size else data[skip : skip + size]
    pieces: list[bytes | memoryview] = [memoryview(batches[0].data)[skip:]]
    pieces += [batch.data for batch in batches[1:-1]]
    pieces.append(memoryview(batches[-1].data)[: offset + size - entries[-1].start])
    return b"".join(pieces)


def _messages(batches: Iterable[tuple[TailEntry, Batch]]) -> Iterator[Message]:
    for entry, batch in batches:
        position = entry.start
        for data in batch.split():
            yield Message(position, batch.time_ns, data)
            position = Offset(position + len(data))
