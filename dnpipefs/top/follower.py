"""Reading on in one topic while somebody watches: its last messages, and whatever comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from typing import Final, NamedTuple

import trio

from dnpipefs.api import PAGE_BYTES, Dnp
from dnpipefs.errors import DnpError
from dnpipefs.log.reader import Message

KEPT: Final = 500
"""How many messages can be looked back at."""
TEXT_LIMIT: Final = 1000
"""How many bytes of a message are kept to be shown."""
BACK_BYTES: Final = 8 << 20
"""About how much is read to begin with, at most."""
REDRAW_S: Final = 0.1
"""How often something new is shown, at most."""
RETRY_S: Final = 1.0


class Line(NamedTuple):
    """A message as it is shown."""

    offset: int
    time_ns: int
    text: str


def line_of(message: Message) -> Line:
    """Return how a message is shown: its beginning, in one line, with what cannot be printed escaped."""
    text = message.data.removesuffix(b"\n")[:TEXT_LIMIT].decode(errors="backslashreplace")
    if not text.isprintable():
        text = "".join(
            sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
        )
    return Line(message.offset, message.time_ns, text)


class Follower:
    """Follows a topic; `changed` is called when there is something new."""

    def __init__(self, dnp: Dnp, topic: str, message_bytes: float, changed: Callable[[], None]) -> None:
        """*message_bytes*: about how large a message is."""
        self._dnp: Final = dnp
        self._changed: Final = changed
        self._last: Final = max(1, min(KEPT, int(BACK_BYTES / max(1.0, message_bytes))))
        self.topic: Final = topic
        self.lines: Final[deque[Line]] = deque(maxlen=KEPT)
        self.seen = 0
        """How many messages there were, with those that are not kept any more."""
        self.failure: DnpError | None = None
        """Why it cannot be read now."""

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self._follow()
            except DnpError as error:
                self.failure = error
            self._changed()
            await trio.sleep(RETRY_S)
            self.lines.clear()  # it is read anew from a little before its end

    async def _follow(self) -> None:
        shown_at = trio.current_time()
        pages = self._dnp.pull_pages(self.topic, last=self._last, follow=True)
        async with aclosing(pages):
            async for page in pages:
                newest: deque[Message] = deque(maxlen=KEPT)
                size = 0
                for message in page:
                    newest.append(message)
                    self.seen += 1
                    size += len(message.data)
                self.lines.extend(line_of(message) for message in newest)
                self.failure = None
                behind = size >= PAGE_BYTES  # a busy topic: go on at once, and show less often
                if not behind or trio.current_time() >= shown_at + REDRAW_S:
                    self._changed()
                    shown_at = trio.current_time()
                if not behind:
                    await trio.sleep(REDRAW_S)
