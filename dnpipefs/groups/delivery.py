"""Messages of a group on their way from the log to a reader."""

from __future__ import annotations

from dataclasses import dataclass

from dnpipefs.core.group import Piece, Term
from dnpipefs.core.names import Offset
from dnpipefs.log.reader import Message


@dataclass(slots=True, eq=False)
class Delivery:
    """A message on its way to a reader."""

    term: Term
    number: int
    """How many messages of the generation come before it."""
    offset: Offset
    data: bytes
    time_ns: int
    """When it was pushed, nanoseconds since 1970 UTC."""
    deliveries: int
    """How often it was handed to a reader before and came back."""
    deadline: float = float("inf")
    """When it goes back to the group though its reader lives."""

    @classmethod
    def of(cls, term: Term, number: int, message: Message, deliveries: int) -> Delivery:
        """Make one of a message of the log."""
        return cls(term, number, message.offset, message.data, message.time_ns, deliveries)

    @property
    def piece(self) -> Piece:
        """What of the group it is."""
        return Piece(self.number, self.number + 1)
