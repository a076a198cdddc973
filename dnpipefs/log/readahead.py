"""Read-ahead: what a sequential reader will want next is fetched while it still reads.

Owns when and how much. Nobody waits for it: what it cannot fetch, whoever reads it will ask for again and be
told why.

Tasks: at most one fetch a reader, in the nursery of `ReadAhead.run`.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from dnpipefs.core.names import Offset
from dnpipefs.core.view import Entry, TopicView
from dnpipefs.errors import DnpError
from dnpipefs.log.content import Content, Vanished
from dnpipefs.log.views import LiveView

logger: Final = logging.getLogger(__name__)

WINDOW: Final = 8 << 20
"""Bytes fetched ahead of a sequential reader."""
SHARE: Final = 4
"""But at most this part of the cache, so that several readers do not take it from one another."""


class ReadAhead:
    """The fetches under way ahead of this host's readers."""

    def __init__(self, content: Content) -> None:
        self._content: Final = content
        self._nursery: trio.Nursery | None = None

    @property
    def window(self) -> int:
        """Bytes to fetch ahead."""
        return min(WINDOW, self._content.limit // SHARE)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def start(self, cursor: Cursor, entries: list[Entry]) -> None:
        """Fetch *entries* for a reader that has no fetch under way."""
        if self._nursery is not None:
            cursor.busy = True
            self._nursery.start_soon(self._fetch, cursor, entries)

    async def _fetch(self, cursor: Cursor, entries: list[Entry]) -> None:
        live = cursor.live
        try:
            if live.view is not None:
                await self._content.fetch(live.topic, live.view.generation, entries)
        except (DnpError, Vanished) as error:  # the reader comes to it and is told
            logger.debug("topic %x is not read ahead: %r", live.topic, error)
        finally:
            cursor.busy = False


class Cursor:
    """Where one reader is, and whether it reads in sequence."""

    def __init__(self, ahead: ReadAhead, content: Content, live: LiveView) -> None:
        self._ahead: Final = ahead
        self._content: Final = content
        self.live: Final = live
        self.busy = False
        """A fetch ahead is under way."""
        self._next = -1

    def moved(self, view: TopicView, start: Offset, end: Offset) -> None:
        """The reader has read from *start* to *end*; fetch ahead if that was in sequence."""
        sequential, self._next = start == self._next, end
        if self.busy or not sequential:
            return
        window = self._ahead.window
        topic, generation = self.live.topic, view.generation
        missing = [
            entry for entry in view.locate(end, window) if not self._content.holds(topic, generation, entry)
        ]
        if missing and missing[0].start < end + window // 2:
            self._ahead.start(self, missing)
