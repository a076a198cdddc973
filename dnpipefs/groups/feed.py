"""The messages of a topic one by one, from whatever number a claim begins with.

Claims mostly follow on one another, and a block of the log holds thousands of messages: what was cut from it
and not taken is kept for the next claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final

from dnpipefs.core.group import Piece, Records, claim
from dnpipefs.core.intervals import Stretch
from dnpipefs.core.names import NO_GENERATION, Revision
from dnpipefs.log.reader import Message, Reader

READ_BYTES: Final = 256 << 10
"""How much is taken from the log at once, by whole blocks."""
STOCK_BYTES: Final = 1 << 20
"""Bytes taken in one claim, at most, or one message."""


class Feed:
    """Cuts messages from the log. One task at a time."""

    def __init__(self, reader: Reader) -> None:
        self._reader: Final = reader
        self._generation: Revision = NO_GENERATION
        self._messages: Iterator[tuple[int, Message]] = iter(())
        self._at = 0
        """Number of the next of `_messages`."""
        self._end = 0
        """Number behind the last of them."""

    async def take(
        self, generation: Revision, start: int, end: int, *, count: int, size: int
    ) -> list[tuple[int, Message]]:
        """Return the messages from number *start* on below *end*: at most *count*, of about *size* bytes.

        They follow on one another; at least one if that one is there. Raises TopicGone, TimedOut, and as
        reading does. Of another generation than *generation* there is none.
        """
        found: list[tuple[int, Message]] = []
        while len(found) < count and size > 0 and start < end:
            message = await self._next(generation, start)
            if message is None:
                break
            found.append((start, message))
            start += 1
            size -= len(message.data)
        return found

    async def claim(
        self, records: Records, first: int, end: int, wanted: int
    ) -> tuple[list[tuple[int, Message, int]], Records]:
        """Claim *wanted* messages of those from number *first* to *end* that there are, returned ones first.

        Returns number, message and how often it was delivered, and what it makes of *records*. It may be
        fewer than wanted: STOCK_BYTES bounds them.
        """
        found: list[tuple[int, Message, int]] = []
        size, cursor = STOCK_BYTES, records.cursor.message
        fresh = max(cursor, first)
        for start, stop, times in [*records.returned.stretches.within(first, end), Stretch(fresh, end, 0)]:
            if wanted <= len(found) or size <= 0:
                break
            for number, message in await self.take(
                records.generation, start, stop, count=wanted - len(found), size=size
            ):
                found.append((number, message, times))
                size -= len(message.data)
        again = [Piece(number, number + 1) for number, _, _ in found if number < cursor]
        behind = [number for number, _, _ in found if number >= cursor]
        return found, claim(records, again, Piece(behind[0], behind[-1] + 1) if behind else None)

    async def _next(self, generation: Revision, number: int) -> Message | None:
        if self._generation != generation or not self._at <= number < self._end:
            await self._read(generation, number)
        for at, message in self._messages:
            self._at = at + 1
            if at == number:
                return message
        self._generation = NO_GENERATION
        return None

    async def _read(self, generation: Revision, number: int) -> None:
        """Read from *number* on; if there is nothing of *generation*, nothing is known afterwards."""
        self._generation, self._messages = NO_GENERATION, iter(())
        messages, end = await self._reader.numbered(number, READ_BYTES)
        first = next(messages, None)
        if first is not None and (await self._reader.view()).generation == generation:
            self._generation, self._messages = generation, chain((first,), messages)
            self._at, self._end = first[0], end
