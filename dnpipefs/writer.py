"""Pushing from Python: what is one message, and which messages go together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

from dnpipefs.core.batch import Chunk
from dnpipefs.core.config import DEFAULTS, TopicConfig
from dnpipefs.core.framing import begin, follow
from dnpipefs.core.names import FileId
from dnpipefs.core.tree import Entry
from dnpipefs.errors import InvalidArgument, MessageTooLarge, TopicGone
from dnpipefs.log.appender import BATCH_LIMIT
from dnpipefs.log.log import Log


class Writer:
    """Pushes a stream of bytes, a message a line or a `write`; made by `Dnp.writer`."""

    def __init__(
        self,
        log: Callable[[], Log],
        topic: Entry,
        reopen: Callable[[], Awaitable[Entry]],
        config_of: Callable[[FileId, TopicConfig], TopicConfig],
    ) -> None:
        self._log: Final = log
        """Raises UsageError once the connection is closed."""
        self._topic = topic
        self._reopen: Final = reopen
        self._config_of: Final = config_of
        self._begun = False
        self._config = config_of(topic.id, DEFAULTS)
        self._framer = begin(self._config)

    @property
    def config(self) -> TopicConfig:
        """The topic's settings now; of a deleted one its last."""
        return self._config_of(self._topic.id, self._config)

    async def write(self, data: bytes) -> None:
        """Push the messages that *data* completes; return once they are committed. The rest waits here.

        Raises as `Dnp.push` does; after MessageTooLarge the rest of *data* is dropped, too.
        """
        config = self.config
        if config is not self._config:
            self._config, self._framer = config, follow(self._framer, config)
        while data:
            framed = self._framer.feed(data)
            for piece in framed.pieces:
                await self.commit(piece.chunk)
            if framed.too_large:
                limit, self._framer = self._framer.limit, framed.state
                raise too_large(limit)
            self._framer = framed.state
            data = data[framed.consumed :]

    async def flush(self) -> None:
        """Push what has come since the last newline, as a message without one."""
        held, self._framer = self._framer.flush()
        if held is not None:
            await self.commit(held)

    async def commit(self, chunk: Chunk) -> None:
        """Push a chunk of whole messages; see `write` for what this raises."""
        try:
            await self._append(chunk)
        except TopicGone:
            if self._begun:  # as with an open file: what was begun belongs to the topic that is gone
                raise
            self._topic = await self._reopen()
            await self._append(chunk)
        self._begun = True

    async def _append(self, chunk: Chunk) -> None:
        topic, compress = self._topic, self._config.compress
        await self._log().append(topic.id, chunk, born=topic.revision, compress=compress)


def gather(messages: Iterable[str | bytes], limit: int) -> Iterator[Chunk]:
    """Make chunks of messages, newlines added, as few as possible; MessageTooLarge behind what is before.

    *limit*: bytes of the largest message.
    """
    lines: list[bytes] = []
    size = 0

    def gathered() -> Iterator[Chunk]:
        if lines:
            yield Chunk(b"".join(lines), len(lines))
            lines.clear()

    for message in messages:
        data = _encoded(message)
        several = data.find(b"\n") + 1 < len(data)
        if several or len(data) > limit or size + len(data) > BATCH_LIMIT:
            yield from gathered()
            size = 0
        if len(data) > limit:
            raise too_large(limit)
        if several:
            yield Chunk.of_message(data)
        else:
            lines.append(data)
            size += len(data)
    yield from gathered()


def _encoded(message: str | bytes) -> bytes:
    if isinstance(message, str):
        try:
            message = message.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"a message is not text: {error}") from None
    return message if message.endswith(b"\n") else message + b"\n"


def too_large(limit: int) -> MessageTooLarge:
    """Return the error for a message above *limit* bytes."""
    return MessageTooLarge(
        f"a message is larger than {limit} bytes: nothing of it is stored, what came before it is"
    )
