r"""Line framing: which bytes of the writes on one handle are complete messages.

::

    state   input                          state   pieces
    ------  -----------------------------  ------  ---------------------------
    ""      "a\nb\nc"                      "c"     "a\nb\n"
    "c"     "d\n"                          ""      "cd\n"
    "c"     (flush)                        ""      "c"
    "c"     a line that grows over limit   skip    MessageTooLarge
    skip    "rest\nnext\n"                 ""      "next\n"

Invariants:

1. The concatenation of all pieces and the held part is the concatenation of all accepted input.
2. A piece ends at a message's end; only the piece of a flush may lack its newline.
3. A message above the limit is in no piece, not even in part; messages before it are.
4. `feed` changes nothing: the caller takes over the new state when the pieces are committed, so a
   failed write leaves the handle as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Piece(NamedTuple):
    """Complete messages, and how much of the input they and all before them used up."""

    data: bytes
    consumed: int
    """Bytes of the input, from its start, that are settled once this piece is committed."""


@dataclass(frozen=True, slots=True)
class LineFramer:
    """The held part of one handle."""

    limit: int
    """Largest message, bytes, newline included."""
    held: bytes = b""
    skipping: bool = False
    """A message above the limit was refused and its end has not come yet."""

    def feed(self, data: bytes) -> Framed:
        """Return what *data* completes. *data* may be of any size; pieces are at most `limit` large."""
        if data.endswith(b"\n") and not self.held and not self.skipping and len(data) <= self.limit:
            return Framed((Piece(data, len(data)),), self, len(data), too_large=False)  # the usual case
        start = 0
        if self.skipping:
            start = data.find(b"\n") + 1
            if not start:
                return Framed((), self, len(data), too_large=False)
        pieces: list[Piece] = []
        held = self.held
        position = start
        while True:
            end = self._last_newline(data, position, len(held))
            if end == 0:
                break
            pieces.append(Piece(held + data[position:end] if held else data[position:end], end))
            held, position = b"", end
        remains = len(data) - position
        unterminated = data.find(b"\n", position) < 0
        if unterminated and len(held) + remains <= self.limit:
            held += data[position:]
            return Framed(tuple(pieces), LineFramer(self.limit, held), len(data), too_large=False)
        if position:  # a short write first; the program comes again with the message that is too large
            return Framed(tuple(pieces), LineFramer(self.limit), position, too_large=False)
        return Framed((), LineFramer(self.limit, skipping=unterminated), 0, too_large=True)

    def _last_newline(self, data: bytes, position: int, held: int) -> int:
        """Return the end of the last message that still fits a piece, or 0."""
        return data.rfind(b"\n", position, position + self.limit - held) + 1

    def flush(self) -> tuple[bytes, LineFramer]:
        """Return the held part as the last message (empty if there is none) and the new state."""
        return self.held, LineFramer(self.limit)


class Framed(NamedTuple):
    """The answer of `LineFramer.feed`."""

    pieces: tuple[Piece, ...]
    state: LineFramer
    """State once all pieces are committed and the answer is given."""
    consumed: int
    """Bytes of the input accepted; fewer than given when a message behind them is too large."""
    too_large: bool
    """The first message is above the limit: report it; nothing was accepted."""
