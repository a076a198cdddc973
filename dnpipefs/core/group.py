"""A consumer group: what etcd holds of it, and which changes its members make.

Messages go by their *numbers*: how many of the generation come before each. There are three kinds of records
(docs/format.md): the *cursor*, how far the log has been claimed; one *member* a host, what it has claimed
and not acknowledged; and what was *returned*, to be claimed again. A change is one transaction that compares
every record it puts with what it was planned from; planning is done here, carrying out and retrying
elsewhere (`groups/member.py`).

A number can be claimed before there is such a message: then it belongs to that host from the moment it is
pushed, and its reader has it without another trip to etcd.

A record belongs to a *term*: the topic's generation, and how often the group was rewound in it. A record of
another term than the group's is void: what it holds is claimed by nobody.

Invariants, of all records of the group's term together:

1. No number is in two records: neither in two members, nor in a member and in what was returned.
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
from dnpipefs.core.names import NO_GENERATION, Offset, Revision


class Term(NamedTuple):
    """What a group's records have to agree in."""

    generation: Revision = NO_GENERATION
    rewinds: int = 0


NO_TERM: Final = Term()


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a group has claimed its topic."""

    term: Term = NO_TERM
    message: int = 0
    """The next number that nobody has claimed; it may be of a message that is not there yet."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one member has claimed and not acknowledged."""

    term: Term = NO_TERM
    stretches: Stretches = field(default_factory=Stretches)


@dataclass(frozen=True, slots=True)
class Returned:
    """What is to be claimed again."""

    term: Term = NO_TERM
    stretches: Stretches = field(default_factory=Stretches)
    redeliveries: int = 0
    """How many messages were claimed again in this term after a reader had had them."""


RETURNED_STRETCHES: Final = 5_000
"""Returned to a group at a time, at most, but by a member that leaves: what would come back beyond them stays
where it is until some are claimed. Each is some 20 bytes of what every claim of them puts, in 1.5 MiB."""
HELD_STRETCHES: Final = 5_000
"""A member that holds as many claims nothing more before some is acknowledged."""


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
    def room(self) -> int:
        """How many stretches may be returned now."""
        return max(0, RETURNED_STRETCHES - len(self.returned.stretches))

    @property
    def scattered(self) -> bool:
        """Whether the member holds too many stretches to claim more."""
        return len(self.held.stretches) >= HELD_STRETCHES

    @property
    def mixed(self) -> bool:
        """Whether what was returned is newer than the rest: of a later term, taken over, behind the cursor.

        Watches bring it before, or without, what it goes with. Nothing may be planned from that.
        """
        held, returned, cursor = self.held, self.returned, self.current().cursor
        term = cursor.term
        if returned.term == term:
            # Behind the cursor that is known: whoever gave it back had claimed it with a newer one.
            behind = any(end > cursor.message for _, end, _ in returned.stretches)
            return behind or (
                held.term == term
                and any(held.stretches.within(start, end) for start, end, _ in returned.stretches)
            )
        return self.generation != NO_GENERATION and returned.term > term


CHUNK_S: Final = 0.1
"""How much a host claims ahead of its readers, in seconds of what they take."""


class Piece(NamedTuple):
    """Some messages that follow on one another, by their numbers."""

    start: int
    end: int
    """Number behind the last one."""


class DeadLetter(NamedTuple):
    """A message that was delivered too often and taken out of its group."""

    term: Term
    message: int
    """Its number."""
    offset: Offset
    """Where it begins in the topic."""
    deliveries: int
    reason: str


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
    held, returned = records.held.stretches, records.returned.stretches
    pieces = [*acknowledged, *(back.piece for back in given_back)]
    for piece in pieces:
        if not held.covers(*piece):
            raise NotHeld(f"{piece} is not held")
    returning = [
        Stretch(cut.start, cut.end, cut.deliveries + delivered)
        for piece, delivered in given_back
        for cut in held.within(*piece)
    ]
    return replace(
        records,
        held=replace(records.held, stretches=held.without(pieces)),
        returned=replace(records.returned, stretches=returned.added(returning)),
    )


def claim(records: Records, again: Sequence[Piece], fresh: Piece | None) -> Records:
    """Return what claiming makes of *records*: what was returned, and what comes *fresh* behind the cursor.

    *fresh* may begin some way behind the cursor, where retention has removed what was between. Raises
    NotHeld if a piece is not there to be claimed.
    """
    cursor, returned = records.cursor, records.returned.stretches
    taken: list[Stretch] = []
    for piece in again:
        if not returned.covers(*piece):
            raise NotHeld(f"{piece} was not returned")
        taken += returned.within(*piece)
    redelivered = sum([stretch.end - stretch.start for stretch in taken if stretch.deliveries])
    if fresh is not None:
        if fresh.start < cursor.message:
            raise NotHeld(f"what is before {cursor.message} was claimed")
        taken.append(Stretch(*fresh, 0))
        cursor = replace(cursor, message=fresh.end)
    return replace(
        records,
        cursor=cursor,
        held=replace(records.held, stretches=records.held.stretches.added(taken)),
        returned=replace(
            records.returned,
            stretches=returned.without(again),
            redeliveries=records.returned.redeliveries + redelivered,
        ),
    )


def claim_to_come(records: Records, count: int, first: int) -> tuple[Records, list[Stretch]]:
    """Claim *count* numbers, the lowest that nobody has and of which none is below *first*.

    Returns what it makes of *records*, and what was claimed. For when no message is there that nobody has: so
    those that readers wait for are claimed before they come.
    """
    again: list[Stretch] = []
    for stretch in records.returned.stretches.within(first, records.cursor.message):
        again.append(stretch._replace(end=min(stretch.end, stretch.start + count)))
        count -= again[-1].end - again[-1].start
        if not count:
            break
    start = max(first, records.cursor.message)
    fresh = Piece(start, start + count) if count else None
    after = claim(records, [Piece(start, end) for start, end, _ in again], fresh)
    return after, [*again, Stretch(*fresh, 0)] if fresh is not None else again


def trim(records: Records, first: int) -> Records:
    """Return *records* without what is below *first* of what was returned: retention has removed it."""
    returned = records.returned
    if not returned.stretches.within(0, first):
        return records
    return replace(records, returned=replace(returned, stretches=returned.stretches.without([(0, first)])))


def rewind(records: Records, message: int) -> Records:
    """Return what a seek makes of *records*: nobody holds anything, all from *message* on is to come."""
    term = Term(records.generation, records.cursor.term.rewinds + 1)
    return replace(records, cursor=Cursor(term, message)).current()


def take_over(records: Records) -> tuple[Returned, Held]:
    """Return what was returned with what a host held which is gone, and what of that has no room there yet.

    How far its readers came nobody knows, so all of it counts as delivered once more.
    """
    held, returned = list(records.held.stretches), records.returned.stretches
    back, left = held[: records.room], held[records.room :]
    return (
        replace(
            records.returned,
            stretches=returned.added(Stretch(start, end, times + 1) for start, end, times in back),
        ),
        replace(records.held, stretches=Stretches(left)),
    )


def put_back(returned: Returned, messages: Iterable[int]) -> Returned:
    """Return what was returned with dead letters, as if they had never been delivered."""
    return replace(
        returned,
        stretches=returned.stretches.added(Stretch(message, message + 1, 0) for message in messages),
    )


def reconcile(held: Held, known: Iterable[tuple[int, int]]) -> Stretches:
    """Return what is *held* and of which its member knows nothing, from a claim whose answer was lost."""
    return held.stretches.without(known)


def available(records: Records, first: int, end: int) -> int:
    """Return how many messages nobody has claimed, of those from number *first* to *end* that there are."""
    fresh = max(0, end - max(records.cursor.message, first))
    back = records.returned.stretches.within(first, end)
    return fresh + sum([stretch.end - stretch.start for stretch in back])


def backlog(records: Records, first: int, end: int) -> int:
    """Return how many messages are not acknowledged, of those from number *first* to *end* that there are.

    As far as one member's records tell: what others have in hand is not among them.
    """
    held = records.held.stretches.within(first, end)
    return available(records, first, end) + sum([stretch.end - stretch.start for stretch in held])


def share(available: int, *, waiting: int, in_stock: int, per_second: float, bound: int) -> int:
    """Return how many messages to claim now, of *available* that nobody has claimed.

    One for each *waiting* reader that the stock does not serve. Where readers are fast, ahead of them, too:
    CHUNK_S worth of what this host delivers *per_second*, but at most half of what is left, so that at the
    end of the log nobody has a heap while others have nothing. At most *bound*, with what is in stock.
    """
    needed = max(0, waiting - in_stock)
    ahead = max(0, int(per_second * CHUNK_S) - in_stock)
    return min(max(needed, min(ahead, available // 2)), available, max(0, bound - in_stock))
