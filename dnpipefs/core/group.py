"""A consumer group: what etcd holds of it, and which changes its members make.

Three kinds of records (docs/format.md): the *cursor*, how far the log has been claimed; one *member* a host,
what it has claimed and not acknowledged; and what was *returned*, to be claimed again. A change is one
transaction that compares every record it puts with what it was planned from; planning is done here, carrying
out and retrying elsewhere (`groups/member.py`).

A record belongs to a *term*: the topic's generation, and how often the group was rewound in it. A record of
another term than the group's is void: what it holds is claimed by nobody.

Invariants, of all records of the group's term together:

1. No offset is in two records: neither in two members, nor in a member and in what was returned.
2. Everything held or returned lies before the cursor.
3. What lies before the cursor and was not skipped by retention or by a seek is held, returned or
   acknowledged; and only the member that held it has acknowledged it.

Pure: no I/O, clock or randomness.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from dnpipefs.core.intervals import Stretch, Stretches
from dnpipefs.core.names import NO_GENERATION, START, Offset, Revision


class Term(NamedTuple):
    """What a group's records have to agree in."""

    generation: Revision = NO_GENERATION
    rewinds: int = 0


NO_TERM: Final = Term()


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a group has claimed its topic."""

    term: Term = NO_TERM
    offset: Offset = START
    message: int = 0
    """How many messages of the generation come before it."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one member has claimed and not acknowledged."""

    term: Term = NO_TERM
    stretches: Stretches = field(default_factory=Stretches)
    messages: int = 0
    """How many messages these are."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What is to be claimed again."""

    term: Term = NO_TERM
    stretches: Stretches = field(default_factory=Stretches)
    messages: int = 0
    """How many messages these are, at most: what retention removes in the middle of it is counted still."""


@dataclass(frozen=True, slots=True)
class Records:
    """What a member has to know of its group."""

    generation: Revision
    """The topic's; NO_GENERATION if it has none now."""
    cursor: Cursor
    held: Held
    returned: Returned

    def current(self) -> Records:
        """Return them in the group's term of now: a reset of the topic rewinds it, void records are empty."""
        cursor = self.cursor
        if cursor.term.generation != self.generation:
            cursor = Cursor(Term(self.generation))
        term = cursor.term
        held, returned = self.held, self.returned
        if held.term != term:
            held = Held(term)
        if returned.term != term:
            returned = Returned(term)
        return Records(self.generation, cursor, held, returned)

    @property
    def mixed(self) -> bool:
        """Whether what was returned is newer than the rest: of a later term, taken over, behind the cursor.

        Watches bring it before, or without, what it goes with. Nothing may be planned from that.
        """
        held, returned, cursor = self.held, self.returned, self.current().cursor
        term = cursor.term
        if returned.term == term:
            # Behind the cursor that is known: whoever gave it back had claimed it with a newer one.
            behind = any(end > cursor.offset for _, end, _ in returned.stretches)
            return behind or (
                held.term == term
                and any(held.stretches.within(start, end) for start, end, _ in returned.stretches)
            )
        return self.generation != NO_GENERATION and returned.term > term


CHUNK_S: Final = 0.1
"""How much a host claims ahead of its readers, in seconds of what they take."""


class Piece(NamedTuple):
    """Some messages that follow on one another."""

    start: Offset
    end: Offset
    """Behind the last byte."""
    messages: int


class DeadLetter(NamedTuple):
    """A message that was delivered too often and taken out of its group."""

    term: Term
    piece: Piece
    reason: str


class Fresh(NamedTuple):
    """Messages behind the cursor, to be claimed."""

    piece: Piece
    first_message: int
    """How many messages of the generation come before it."""


class GivenBack(NamedTuple):
    """A held piece that goes back to the group."""

    piece: Piece
    delivered: bool
    """A reader had it; otherwise nobody has seen it since it was claimed."""


class NotHeld(Exception):
    """A change of what is not where it was planned to be. Never reaches a user: it is a fault of ours."""


def settle(records: Records, acknowledged: Sequence[Piece], given_back: Sequence[GivenBack]) -> Records:
    """Return what acknowledging and giving back make of *records*.

    Raises NotHeld if any of it is not held.
    """
    held, returned = records.held, records.returned
    pieces = [*acknowledged, *(back.piece for back in given_back)]
    for piece in pieces:
        if not held.stretches.covers(piece.start, piece.end):
            raise NotHeld(f"{piece} is not held")
    returning = [
        Stretch(cut.start, cut.end, cut.deliveries + delivered)
        for (start, end, _), delivered in given_back
        for cut in held.stretches.within(start, end)
    ]
    return replace(
        records,
        held=replace(
            held,
            stretches=held.stretches.without([(start, end) for start, end, _ in pieces]),
            messages=held.messages - sum([piece.messages for piece in pieces]),
        ),
        returned=replace(
            returned,
            stretches=returned.stretches.added(returning),
            messages=returned.messages + sum([back.piece.messages for back in given_back]),
        ),
    )


def claim(records: Records, fresh: Fresh | None, again: Sequence[Piece]) -> Records:
    """Return what claiming makes of *records*: what comes *fresh* behind the cursor, and what was returned.

    *fresh* may begin some way behind the cursor, where retention has removed what was between. Raises
    NotHeld if a piece is not there to be claimed.
    """
    cursor, held, returned = records.cursor, records.held, records.returned
    taken: list[Stretch] = []
    for start, end, _ in again:
        if not returned.stretches.covers(start, end):
            raise NotHeld(f"{start} to {end} was not returned")
        taken += returned.stretches.within(start, end)
    left = returned.stretches.without([(start, end) for start, end, _ in again])
    count = sum([piece.messages for piece in again])
    if fresh is not None:
        start, end, messages = fresh.piece
        if start < cursor.offset:
            raise NotHeld(f"what is before {cursor.offset} was claimed")
        taken.append(Stretch(start, end, 0))
        cursor = Cursor(cursor.term, end, fresh.first_message + messages)
    return replace(
        records,
        cursor=cursor,
        held=replace(
            held,
            stretches=held.stretches.added(taken),
            messages=held.messages + count + (fresh.piece.messages if fresh is not None else 0),
        ),
        # What retention removed in the middle was counted until now: nothing is no messages.
        returned=replace(returned, stretches=left, messages=returned.messages - count if left else 0),
    )


def trim(records: Records, first: Offset) -> Records:
    """Return *records* without what retention has removed of what was returned: nobody can deliver it."""
    returned = records.returned
    if not returned.stretches.within(START, first):
        return records
    stretches = returned.stretches.without([(START, first)])
    left = returned.messages if stretches else 0
    return replace(records, returned=replace(returned, stretches=stretches, messages=left))


def rewind(records: Records, offset: Offset, message: int) -> Records:
    """Return what a seek to *offset* makes of *records*: nobody holds anything, all from there is to come.

    *message*: how many messages of the generation come before it.
    """
    term = Term(records.generation, records.cursor.term.rewinds + 1)
    return replace(records, cursor=Cursor(term, offset, message)).current()


def take_over(returned: Returned, held: Held) -> Returned:
    """Return what was returned with all that a host held which is gone.

    How far its readers came nobody knows, so all of it counts as delivered once more.
    """
    if held.term != returned.term:
        return returned
    return replace(
        returned,
        stretches=returned.stretches.added(
            Stretch(start, end, deliveries + 1) for start, end, deliveries in held.stretches
        ),
        messages=returned.messages + held.messages,
    )


def put_back(returned: Returned, pieces: Sequence[Piece]) -> Returned:
    """Return what was returned with dead letters, as if they had never been delivered."""
    return replace(
        returned,
        stretches=returned.stretches.added(Stretch(start, end, 0) for start, end, _ in pieces),
        messages=returned.messages + sum([piece.messages for piece in pieces]),
    )


def reconcile(held: Held, known: Iterable[tuple[Offset, Offset]]) -> Stretches:
    """Return what is *held* and of which its member knows nothing, from a claim whose answer was lost."""
    return held.stretches.without(known)


def share(available: int, *, waiting: int, in_stock: int, per_second: float, bound: int) -> int:
    """Return how many messages to claim now, of *available* that nobody has claimed.

    One for each *waiting* reader that the stock does not serve. Where readers are fast, ahead of them, too:
    CHUNK_S worth of what this host delivers *per_second*, but at most half of what is left, so that at the
    end of the log nobody has a heap while others have nothing. At most *bound*, with what is in stock.
    """
    needed = max(0, waiting - in_stock)
    ahead = max(0, int(per_second * CHUNK_S) - in_stock)
    return min(max(needed, min(ahead, available // 2)), available, max(0, bound - in_stock))
