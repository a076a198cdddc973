"""Reading a topic by byte offset: linearizable at open and at end of file, from the view in between.

A read that begins after an append or reset returned elsewhere and comes to the end of what the view
holds asks etcd whether that is the end (`Barrier`) before it says so. A reader that may be stale is told
by the barrier when not to wait for that; what this host has pushed itself it sees all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from dnpipefs.core.names import NO_GENERATION, FileId, Offset, Revision
from dnpipefs.core.segment import Block
from dnpipefs.core.view import Entry, TopicView
from dnpipefs.errors import CorruptData
from dnpipefs.log.barrier import Barrier, Position
from dnpipefs.log.content import Content, Vanished
from dnpipefs.log.failures import deadline
from dnpipefs.log.readahead import Cursor
from dnpipefs.log.views import LiveView


class Span(NamedTuple):
    """Bytes of a topic, and where they really begin."""

    offset: Offset
    data: bytes


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

    def __init__(
        self,
        live: LiveView,
        barrier: Barrier,
        content: Content,
        cursor: Cursor,
        *,
        op_timeout: float,
        own: Callable[[FileId], Revision] | None = None,
    ) -> None:
        """*own*: of a reader that may be stale, which push of this host to a topic was the last."""
        self._live: Final = live
        self._barrier: Final = barrier
        self._content: Final = content
        self._cursor: Final = cursor
        self._op_timeout: Final = op_timeout
        self._own: Final = own

    async def confirm(self) -> TopicView:
        """Return the view once it holds everything that had been acknowledged before the call.

        Raises TopicGone, TimedOut.
        """
        position = await self._barrier.topic(self._live.topic)
        return await self._catch_up(lambda view: holds(view, position))

    async def _confirm_end(self) -> TopicView:
        """Return the view once it may say where the end is."""
        own, topic = self._own, self._live.topic
        if own is None:
            return await self.confirm()
        position = await self._barrier.topic_if_answered(topic)
        newest = own(topic)
        return await self._catch_up(
            lambda view: view.revision >= newest if position is None else holds(view, position)
        )

    async def _catch_up(self, condition: Callable[[TopicView], bool]) -> TopicView:
        """Return the view once it is what *condition* wants."""
        began = trio.current_time()
        with deadline(self._op_timeout):
            view = await self._live.catch_up(condition)
        self._barrier.questions.lag.observe(trio.current_time() - began)
        return view

    async def opened(self) -> None:
        """Wait until what a new reader is to see is there. Raises TopicGone, TimedOut."""
        await self._confirm_end()

    async def read(self, offset: Offset, size: int) -> Span:
        """Return up to *size* bytes from *offset*; none only at the confirmed end of the topic.

        A read before the first retained byte continues at it; one that reaches beyond it is shorter by what
        is not there any more. Raises TopicGone, TimedOut.
        """
        view = await self.view()
        confirmed = False
        vanished: Entry | None = None
        while True:
            start = max(offset, view.first)
            end = offset + size if start < offset + size else start + size
            entries = view.locate(start, end - start)
            try:
                if entries:
                    blocks = await self._content.fetch(self._live.topic, view.generation, entries)
                    data = _slice(entries, blocks, start, end - start)
                    self._cursor.moved(view, start, Offset(start + len(data)))
                    return Span(start, data)
            except Vanished as now:
                vanished = self._note(now, vanished)
                view = await self.confirm()  # etcd does answer
            else:
                if confirmed:
                    return Span(start, b"")
                view = await self._confirm_end()
            confirmed = True

    async def view(self) -> TopicView:
        """Return the view as this host has it; a live object, so look before you await again."""
        return await self._live.wait(lambda _: True)

    async def messages(self, offset: Offset, size: int) -> tuple[Iterator[Message], Offset]:
        """Return the whole messages of some blocks from the one at *offset* on, and the offset behind.

        *size* bounds the bytes by whole blocks (at least one is returned). At the end of what the view
        holds there are no messages, and the offset is *offset* itself, or the first retained one if that
        is behind it. The messages are cut from the blocks as they are taken: a megabyte of empty lines
        would be a hundred as objects.
        """
        found, view = await self._blocks(lambda view: max(offset, view.first), size)
        if not found:
            return iter(()), Offset(max(offset, view.first))
        return (message for message in _messages(found) if message.offset >= offset), found[-1][0].end

    async def numbered(self, number: int, size: int) -> tuple[Iterator[tuple[int, Message]], int]:
        """Return likewise the messages from that *number* on, each with its number, and the number behind.

        None, if there is no such message, now or any more.
        """

        def start(view: TopicView) -> Offset:
            entry = view.holding(number)
            return entry.start if entry is not None else view.end

        found, _ = await self._blocks(start, size)
        if not found:
            return iter(()), number
        counted = enumerate(_messages(found), found[0][0].first_message)
        return (each for each in counted if each[0] >= number), found[-1][0].end_message

    async def _blocks(
        self, start: Callable[[TopicView], Offset], size: int
    ) -> tuple[list[tuple[Entry, Block]], TopicView]:
        """Return what holds the bytes from *start* on, as a view says it, and that view."""
        vanished: Entry | None = None
        while True:
            view = await self.view()
            offset = start(view)
            entries = view.locate(offset, size)
            if not entries:
                return [], view
            try:
                blocks = await self._content.fetch(self._live.topic, view.generation, entries)
            except Vanished as now:
                vanished = self._note(now, vanished)
                await self.confirm()
            else:
                self._cursor.moved(view, offset, entries[-1].end)
                return list(zip(entries, blocks, strict=True)), view

    async def find(self, offset: Offset, since_ns: int = 0) -> tuple[Offset, int]:
        """Return where the first message begins that is at or behind *offset*, and how many come before it.

        *since_ns*: and that was pushed at that time or later, nanoseconds since 1970 UTC. Those that come
        before are the generation's, with what retention has removed. Raises TopicGone, TimedOut.
        """
        start = offset
        while True:
            view = await self.view()
            start = max(start, view.first)
            entries = view.locate(start, 1)
            if not entries:
                return view.end, view.messages
            entry = entries[0]
            messages, _ = await self.messages(entry.start, 1)
            for message, found in enumerate(messages, entry.first_message):
                if message == entry.first_message and found.offset != entry.start:
                    break  # retention has removed the entry meanwhile: these are others, later ones
                if found.offset >= start and found.time_ns >= since_ns:
                    return found.offset, message
            else:
                start = entry.end

    def _note(self, vanished: Vanished, before: Entry | None) -> Entry:
        """Return the entry that has vanished, unless it is what a view says that has caught up since."""
        entry = vanished.entry
        if entry == before:
            raise CorruptData(
                f"the messages from offset {entry.start} of topic {self._live.topic:x} are missing in etcd: "
                "run dnpipefs fsck"
            ) from None
        return entry

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


def _slice(entries: list[Entry], blocks: list[Block], offset: Offset, size: int) -> bytes:
    skip = offset - entries[0].start
    if len(blocks) == 1:
        data = blocks[0].data
        return data if skip == 0 and len(data) <= size else data[skip : skip + size]
    pieces: list[bytes | memoryview] = [memoryview(blocks[0].data)[skip:]]
    pieces += [block.data for block in blocks[1:-1]]
    pieces.append(memoryview(blocks[-1].data)[: offset + size - entries[-1].start])
    return b"".join(pieces)


def _messages(blocks: Iterable[tuple[Entry, Block]]) -> Iterator[Message]:
    for entry, block in blocks:
        position = entry.start
        for time_ns, data in block.timed():
            yield Message(position, time_ns, data)
            position = Offset(position + len(data))
