"""The messages of a topic one by one, from wherever a claim begins.

Claims mostly follow on one another, and a block of the log holds thousands of messages: what was cut from it
and not taken is kept for the next claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final

from dnpipefs.core.names import NO_GENERATION, START, Offset, Revision
from dnpipefs.log.reader import Message, Reader

READ_BYTES: Final = 256 << 10
"""How much is taken from the log at once, by whole blocks."""


class Feed:
    """Cuts messages from the log. One task at a time."""

    def __init__(self, reader: Reader) -> None:
        self._reader: Final = reader
        self._generation: Revision = NO_GENERATION
        self._messages: Iterator[Message] = iter(())
        self._at: Offset = START
        """Where the next of `_messages` begins, or a gap before it."""
        self._end: Offset = START
        """Behind the last of them."""

    async def take(
        self, generation: Revision, start: Offset, end: Offset, *, count: int, size: int
    ) -> list[Message]:
        """Return the messages from *start* on that lie before *end*: at most *count*, of about *size* bytes.

        At least one if there is any. Raises TopicGone, TimedOut, and as reading does. Of another generation
        than *generation* there is none.
        """
        found: list[Message] = []
        while len(found) < count and size > 0:
            message = await self._next(generation, start)
            if message is None or message.offset >= end:
                if message is not None:
                    self._put_back(message)
                break
            found.append(message)
            start = Offset(message.offset + len(message.data))
            size -= len(message.data)
        return found

    async def _next(self, generation: Revision, start: Offset) -> Message | None:
        while True:
            if self._generation != generation or not self._at <= start < self._end:
                await self._read(generation, start)
            if self._generation != generation:
                return None
            for message in self._messages:
                self._at = Offset(message.offset + len(message.data))
                if message.offset >= start:
                    return message
            self._generation = NO_GENERATION

    async def _read(self, generation: Revision, start: Offset) -> None:
        """Read from *start* on; if there is nothing of *generation*, nothing is known afterwards."""
        self._generation = NO_GENERATION
        messages, end = await self._reader.messages(start, READ_BYTES)
        first = next(messages, None)
        if first is not None and (await self._reader.view()).generation == generation:
            self._generation, self._messages = generation, chain((first,), messages)
            self._at, self._end = start, end

    def _put_back(self, message: Message) -> None:
        self._messages = chain((message,), self._messages)
        self._at = message.offset
