"""Messages of a group on their way from the log to a reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnpipefs.core.group import Fresh, Piece, Records, Term, claim
from dnpipefs.core.names import Offset
from dnpipefs.log.reader import Message


@dataclass(slots=True, eq=False)
class Delivery:
    """A message on its way to a reader."""

    term: Term
    offset: Offset
    data: bytes
    time_ns: int
    """When it was pushed, nanoseconds since 1970 UTC."""
    deliveries: int
    """How often it was handed to a reader before and came back."""
    deadline: float = float("inf")
    """When it goes back to the group though its reader lives."""

    @property
    def piece(self) -> Piece:
        """Where it lies."""
        return Piece(self.offset, Offset(self.offset + len(self.data)), 1)


def claiming(records: Records, claimed: Sequence[tuple[Message, int, bool]], first_message: int) -> Records:
    """Return what claiming messages makes of *records*; *first_message* come before what is fresh."""
    if not claimed:
        return records
    again = [piece_of(message) for message, _, is_fresh in claimed if not is_fresh]
    fresh = [piece_of(message) for message, _, is_fresh in claimed if is_fresh]
    if not fresh:
        return claim(records, None, again)
    return claim(records, Fresh(Piece(fresh[0].start, fresh[-1].end, len(fresh)), first_message), again)


def piece_of(message: Message) -> Piece:
    """Return where a message lies."""
    return Piece(message.offset, Offset(message.offset + len(message.data)), 1)
