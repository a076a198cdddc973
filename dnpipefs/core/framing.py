r"""Framing: which bytes of the writes on one handle are which messages.

Line framing, in which a message ends with its newline::

    state   input                          state   pieces
    ------  -----------------------------  ------  ---------------------------
    ""      "a\nb\nc"                      "c"     "a\nb\n"
    "c"     "d\n"                          ""      "cd\n"
    "c"     (flush)                        ""      "c"
    "c"     a line that grows over limit   skip    MessageTooLarge
    skip    "rest\nnext\n"                 ""      "next\n"

Write framing, in which a message is what one write brings::

    state   input                          state   pieces
    ------  -----------------------------  ------  ---------------------------
    ""      "a\nb\nc"                      ""      "a\nb\nc"
    ""      ""                             ""
    any     a write above the limit        same    MessageTooLarge

The settings of a topic can change while a handle is open (`follow`)::

    state   from, to                       state   what it means
    ------  -----------------------------  ------  ---------------------------
    "c"     line, write                    "c"     a message of its own, in front of the next write
    skip    line, write                    ""      the next write is a message like any other
    "c"     to a limit below len("c")      "c"     the line can only be too large; a flush still takes it

Invariants:

1. The concatenation of all pieces and the held part is the concatenation of all accepted input.
2. A piece ends at a message's end. In line framing only the piece of a flush may lack its newline.
3. A message above the limit is in no piece, not even in part; messages before it are.
4. `feed` changes nothing: the caller takes over the new state when the pieces are committed, so a
   failed write leaves the handle as it was.
5. A piece is at most PIECE_BYTES large, unless it is one message.
6. What is held is copied a bounded number of times, whatever the sizes of the writes that bring it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from dnpipefs.core.batch import Chunk
from dnpipefs.core.config import Framing, TopicConfig

PIECE_BYTES: Final = 1_200_000
"""Bytes of the largest piece that holds more than one message: a write of 1 MiB, and the beginning of its
first line, held since the write before."""
MERGED_BYTES: Final = 64 << 10
"""Parts of a held line are put together up to this size."""


class Piece(NamedTuple):
    """Complete messages, and how much of the input they and all before them used up."""

    chunk: Chunk
    consumed: int
    """Bytes of the input, from its start, that are settled once this piece is committed."""


class Held:
    """The bytes of a message whose end has not come; immutable.

    Kept as they came, but small parts are merged with neighbours of about their size: a message that comes
    a byte at a time has few parts, and each byte of it was copied about once for each doubling.
    """

    __slots__ = ("_parts", "_size")

    def __init__(self, data: bytes = b"") -> None:
        self._parts: tuple[bytes, ...] = (data,) if data else ()
        self._size = len(data)

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)

    def __eq__(self, other: object) -> bool:
        return bytes(self) == bytes(other) if isinstance(other, Held) else NotImplemented

    def __hash__(self) -> int:
        return hash(bytes(self))

    def __repr__(self) -> str:
        return f"Held({bytes(self)!r})"

    def plus(self, data: bytes) -> Held:
        """Return what is held with *data* behind it."""
        if not data:
            return self
        end, size = len(self._parts), len(data)
        while end and len(self._parts[end - 1]) < 2 * size <= 2 * MERGED_BYTES:
            end -= 1
            size += len(self._parts[end])
        more = Held()
        more._parts = (*self._parts[:end], b"".join((*self._parts[end:], data)))
        more._size = self._size + len(data)
        return more

    def with_end(self, end: memoryview) -> bytes:
        """Return what is held and its *end*, copied once."""
        return b"".join((*self._parts, end))


NOTHING_HELD: Final = Held()


@dataclass(frozen=True, slots=True)
class LineFramer:
    """Line framing on one handle."""

    limit: int
    """Largest message, bytes, newline included."""
    held: Held = NOTHING_HELD
    skipping: bool = False
    """A message above the limit was refused and its end has not come yet."""

    def feed(self, data: bytes) -> Framed:
        """Return what *data*, of any size, completes."""
        size = len(data)
        usual = data.endswith(b"\n") and not self.held and not self.skipping
        if usual and size <= self.limit and size <= PIECE_BYTES:
            return Framed((Piece(Chunk.of_lines(data), size),), self, size, too_large=False)
        start = 0
        if self.skipping:
            start = data.find(b"\n") + 1
            if not start:
                return Framed((), self, size, too_large=False)
        pieces: list[Piece] = []
        held, position = self.held, start
        while end := self._piece_end(data, position, len(held)):
            message = held.with_end(memoryview(data)[position:end]) if held else data[position:end]
            pieces.append(Piece(Chunk.of_lines(message), end))
            held, position = NOTHING_HELD, end
        unterminated = data.find(b"\n", position) < 0
        if unterminated and len(held) + size - position <= self.limit:
            held = held.plus(data[position:])
            return Framed(tuple(pieces), LineFramer(self.limit, held), size, too_large=False)
        if position:  # a short write first; the program comes again with the message that is too large
            return Framed(tuple(pieces), LineFramer(self.limit), position, too_large=False)
        return Framed((), LineFramer(self.limit, skipping=unterminated), 0, too_large=True)

    def flush(self) -> tuple[Chunk | None, LineFramer]:
        """Return the held part as the last message (None if there is none) and the new state."""
        return _message(self.held), LineFramer(self.limit)

    def emptied(self) -> LineFramer:
        """Return the state once what was held is committed."""
        return self if not self.held and not self.skipping else LineFramer(self.limit)

    def _piece_end(self, data: bytes, start: int, held: int) -> int:
        """Return the end of the most messages from *start* on that are one piece, 0 if there is none."""
        end = 0
        position, room = start, self.limit - held
        while True:
            stop = min(position + room, start + PIECE_BYTES - held)
            found = data.rfind(b"\n", position, max(position, stop)) + 1
            if not found:
                break
            end, position, room = found, found, self.limit
        if not end and room > 0:  # a message larger than a piece
            end = data.find(b"\n", start, start + room) + 1
        return end


@dataclass(frozen=True, slots=True)
class WriteFramer:
    """Write framing on one handle."""

    limit: int
    """Largest message, bytes."""
    held: Held = NOTHING_HELD
    """A part of a line from when the topic's framing was another."""

    def feed(self, data: bytes) -> Framed:
        """Return *data* as a message, behind what is held."""
        size = len(data)
        if size > self.limit:
            return Framed((), self, 0, too_large=True)
        if not data:
            return Framed((), self, 0, too_large=False)
        piece, before = Piece(Chunk.of_message(data), size), _message(self.held)
        pieces = (piece,) if before is None else (Piece(before, 0), piece)
        return Framed(pieces, self.emptied(), size, too_large=False)

    def flush(self) -> tuple[Chunk | None, WriteFramer]:
        """Return the held part as the last message (None if there is none) and the new state."""
        return _message(self.held), self.emptied()

    def emptied(self) -> WriteFramer:
        """Return the state once what was held is committed."""
        return WriteFramer(self.limit) if self.held else self


Framer = LineFramer | WriteFramer


class Framed(NamedTuple):
    """The answer of `feed`."""

    pieces: tuple[Piece, ...]
    state: Framer
    """State once all pieces are committed and the answer is given."""
    consumed: int
    """Bytes of the input accepted; fewer than given when a message behind them is too large."""
    too_large: bool
    """The first message is above the limit: report it; nothing was accepted."""


def begin(config: TopicConfig, *, largest_write: int | None = None) -> Framer:
    """Return the framer of a new handle; see `follow`."""
    return follow(LineFramer(config.max_message), config, largest_write=largest_write)


def follow(framer: Framer, config: TopicConfig, *, largest_write: int | None = None) -> Framer:
    """Return the framer that goes on with what *framer* holds under settings that may be others.

    `largest_write`: bytes of the largest write that is known to come whole, if there is such a limit.
    """
    limit = config.max_message
    if config.framing is Framing.WRITE:
        return WriteFramer(limit if largest_write is None else min(limit, largest_write), framer.held)
    return LineFramer(limit, framer.held, isinstance(framer, LineFramer) and framer.skipping)


def _message(held: Held) -> Chunk | None:
    return Chunk.of_lines(bytes(held)) if held else None
