"""Checks one consumer group of a topic. Rules G1 to G9 of `findings.py`, invariants of `group.py`. Pure.

The caller brings the group's keys in order: the cursor comes first, dead letters are judged as they come,
members and what was returned together at the end.

Repairs keep every message of the group: what is in doubt is delivered again rather than lost. A record
that cannot be read is removed only if it is older than the topic's generation, and so void whatever it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from dnpipefs.core.check_records import TopicState
from dnpipefs.core.findings import REPAIR_KEYS, Finding, Repair, Rule, Stored, absent, removal, unchanged
from dnpipefs.core.group import Cursor, Held, Records, Returned, Term
from dnpipefs.core.group_records import (
    decode_cursor,
    decode_dead_letter,
    decode_held,
    decode_returned,
    encode_cursor,
    encode_held,
    encode_returned,
)
from dnpipefs.core.intervals import Stretch, Stretches
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId
from dnpipefs.core.tree import Guard
from dnpipefs.errors import CorruptData


class _Record(NamedTuple):
    """A member's record or what was returned, as it is stored."""

    stored: Stored
    record: Held | Returned
    lives: bool
    """Somebody keeps it up to date: its session lives."""

    def encode(self, stretches: Stretches) -> bytes:
        """Return the value with other stretches."""
        if isinstance(self.record, Held):
            return encode_held(replace(self.record, stretches=stretches))
        return encode_returned(replace(self.record, stretches=stretches))


class GroupCheck:
    """What etcd holds of one group."""

    def __init__(self, keys: KeySchema, topic: FileId, state: TopicState, name: bytes) -> None:
        self._keys: Final = keys
        self._topic: Final = topic
        self._state: Final = state
        self._name: Final = name
        self._cursor_at: Stored | None = None
        self._cursor: Cursor | None = None
        """As it counts now; None if there is none, or one that cannot be read."""
        self._records: list[_Record] = []
        self._unreadable = False
        """Some member or what was returned cannot be read: what it has nobody knows."""
        self._lone: list[Stored] = []
        """What there is though there is no cursor."""
        self._findings: list[Finding] = []

    def add(self, stored: Stored, *, session_lives: bool) -> None:
        """Take in one of the group's keys; *session_lives* is about that of a member."""
        part = stored.key[len(self._keys.group(self._topic, self._name).start) :]
        if part == b"cursor":
            self._add_cursor(stored)
            return
        if self._cursor_at is None:
            self._lone.append(stored)
        if part == b"returned":
            self._add_record(stored, lives=False)
        elif part.startswith(b"member/"):
            self._add_record(stored, lives=session_lives)
        elif part.startswith(b"dead/"):
            self._add_dead_letter(stored)
        else:
            what = "of a later release, or put by hand; it does no harm"
            self._find(Rule.UNKNOWN_KEY, stored.key, what)

    def finish(self, messages: int | None) -> list[Finding]:
        """Return all findings. *messages*: how many the generation has; None if that is not certain."""
        if self._cursor_at is None:
            # What each of them says does not matter: there is no group that it could be of.
            return [self._judge_lone()]
        if self._cursor is not None:
            self._judge_together(self._cursor, messages)
        return self._findings

    # ------------------------------------------------------------------ one by one

    def _add_cursor(self, stored: Stored) -> None:
        generation = self._state.generation
        self._cursor_at = stored
        try:
            cursor = decode_cursor(stored.key, stored.value)
        except CorruptData as error:
            repair = None
            if generation and stored.revision < generation:
                puts = ((stored.key, encode_cursor(Cursor(Term(generation)))),)
                what = "put one at the beginning: it is older than the last reset, which rewinds"
                repair = Repair(what, (*unchanged(stored), *self._state.guards), puts=puts)
            what = f"{error}: how far the group has come nobody knows; rm of the group lets it begin anew"
            self._find(Rule.CURSOR, stored.key, what, repair)
            return
        if generation and cursor.term.generation > generation:
            cursor = Cursor(Term(generation))
            what = f"the topic is in generation {generation}; the group counts as at the beginning"
            puts = ((stored.key, encode_cursor(cursor)),)
            repair = Repair("put it so", (*unchanged(stored), *self._state.guards), puts=puts)
            self._find(Rule.LATER_TERM, stored.key, what, repair)
        self._cursor = Records(generation, cursor, Held(), Returned()).current().cursor

    def _add_record(self, stored: Stored, *, lives: bool) -> None:
        try:
            record = self._decode(stored)
        except CorruptData as error:
            self._unreadable = True
            void = self._state.generation and stored.revision < self._state.generation
            repair = removal("remove it: it is void since the last reset", [stored], *self._state.guards)
            what = f"{error}: nobody can read from the group; rm of the group lets it begin anew"
            self._find(Rule.GROUP_RECORD, stored.key, what, repair if void else None)
            return
        if isinstance(record, Held) and not lives and self._cursor_at is not None:
            what = "its session has ended: whoever reads the group next returns what it holds"
            self._find(Rule.MEMBER_ENDED, stored.key, what)
        self._records.append(_Record(stored, record, lives))

    def _decode(self, stored: Stored) -> Held | Returned:
        if stored.key == self._keys.returned(self._topic, self._name):
            return decode_returned(stored.key, stored.value)
        session = self._keys.parse_member(stored.key)
        if stored.key != self._keys.member(self._topic, self._name, session):
            raise CorruptData(f"{stored.key!r} is the key of no member")
        return decode_held(stored.key, stored.value)

    def _add_dead_letter(self, stored: Stored) -> None:
        try:
            letter = decode_dead_letter(stored.key, stored.value)
            term, number = letter.term, letter.message
            fault = f"{stored.key!r} is about message {number} of generation {term.generation}"
            fits = stored.key == self._keys.dead_letter(self._topic, self._name, term.generation, number)
        except CorruptData as error:
            fault, fits = str(error), False
        if not fits:
            what = f"{fault}: no dead letter of the group can be redriven"
            repair = removal("remove it: the message stays among the dead letters", [stored])
            self._find(Rule.DEAD_NOTE, stored.key, what, repair)

    def _judge_lone(self) -> Finding:
        held = any(record.record.stretches for record in self._records) or self._unreadable
        what, repair = "there is no cursor, and so no group", None
        if held:
            what += ": what it had in hand or back is forgotten; rm of the group removes the rest"
        else:
            guards = absent(self._keys.cursor(self._topic, self._name))
            repair = removal("remove it: nothing was in hand", self._lone, *guards)
        return Finding(Rule.NO_CURSOR, self._lone[0].key, what, self._topic, repair=repair)

    # ------------------------------------------------------------------ together

    def _judge_together(self, cursor: Cursor, messages: int | None) -> None:
        """Judge the group's invariants 1 to 3; one repair for all that breaks them."""
        current = []
        for record in self._records:
            term = record.record.term
            if term == cursor.term:
                current.append(record)
            elif self._state.generation and term > cursor.term:
                # Not without an epoch: then all are of the generation that ended.
                what = f"it is of generation {term.generation}, rewind {term.rewinds}, which is to come"
                repair = removal("remove it: it is void", [record.stored], *self._guards())
                self._find(Rule.LATER_TERM, record.stored.key, what, repair)
        # Who lives keeps what two have: it may be at work on it.
        current.sort(key=lambda one: (not one.lives, not isinstance(one.record, Held), one.stored.key))
        broken: list[tuple[Rule, bytes, str]] = []
        kept: list[tuple[_Record, Stretches]] = []
        taken = Stretches()
        for one in current:
            stretches = one.record.stretches
            end = max([stretch.end for stretch in stretches], default=0)
            if end > cursor.message:
                what = f"up to {end}, but the cursor is at {cursor.message}: it is delivered twice"
                broken.append((Rule.BEHIND_CURSOR, one.stored.key, what))
                stretches = stretches.without([(cursor.message, end)])
            twice = _common(stretches, taken)
            if twice:
                start, stop = twice[0][:2]
                what = f"messages {start} to {stop - 1} are in another record, too: they are delivered twice"
                broken.append((Rule.IN_TWO_RECORDS, one.stored.key, what))
                stretches = stretches.without([(start, stop) for start, stop, _ in twice])
            kept.append((one, stretches))
            taken = taken.added(stretches)
        lost = Stretches()
        if messages is not None and not self._unreadable and messages < cursor.message:
            lost = Stretches([Stretch(messages, cursor.message, 0)]).without(
                [(start, end) for start, end, _ in taken]
            )
        if lost and self._cursor_at is not None:
            start, end, _ = next(iter(lost))
            what = f"messages {start} to {end - 1}, which are still to come, count as done: nobody gets them"
            broken.append((Rule.IN_NO_RECORD, self._cursor_at.key, what))
        repair = self._sorting_out(cursor, kept, lost) if broken else None
        for rule, key, what in broken:
            self._find(rule, key, what, repair)

    def _sorting_out(
        self, cursor: Cursor, kept: Sequence[tuple[_Record, Stretches]], lost: Stretches
    ) -> Repair | None:
        """Return the repair after which no number is in two records, none behind the cursor, none lost."""
        key = self._keys.returned(self._topic, self._name)
        returned = next((one for one in self._records if isinstance(one.record, Returned)), None)
        puts = []
        for one, stretches in kept:
            if one is not returned and stretches != one.record.stretches:
                puts.append((one.stored.key, one.encode(stretches)))
        back = next((stretches for one, stretches in kept if one is returned), Stretches()).added(lost)
        if returned is None or returned.record.term != cursor.term:
            changed = bool(lost)
        else:
            changed = back != returned.record.stretches
        if changed:
            puts.append((key, encode_returned(Returned(cursor.term, back))))
        stored = [one.stored for one, _ in kept]
        if returned is not None and returned.stored not in stored:
            stored.append(returned.stored)
        guards = (*self._guards(), *unchanged(*stored), *(absent(key) if returned is None else ()))
        if len(guards) > REPAIR_KEYS:
            return None
        return Repair(
            "let one record have each: what is in doubt is delivered again", guards, puts=tuple(puts)
        )

    def _guards(self) -> tuple[Guard, ...]:
        assert self._cursor_at is not None  # noqa: S101 - what is judged together has one
        return (*unchanged(self._cursor_at), *self._state.guards)

    def _find(self, rule: Rule, key: bytes, what: str, repair: Repair | None = None) -> None:
        self._findings.append(Finding(rule, key, what, self._topic, repair=repair))


def _common(one: Stretches, other: Stretches) -> list[Stretch]:
    """Return what is in both."""
    return [cut for start, end, _ in other for cut in one.within(start, end)]
