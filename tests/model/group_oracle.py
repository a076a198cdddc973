"""What a group's records may say at every revision, and to whom a message may be handed.

The records are judged by their changes: between two revisions a message may go from the log to a member, from
a member to what was returned and back, and out of all records only if a reader of that member's host has
acknowledged it, or retention has removed it. The numbers are those of the invariants of `core/group`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from dnpipefs.core.group import Cursor, Held, Returned, Term
from dnpipefs.core.group_records import decode_cursor, decode_held, decode_returned
from dnpipefs.core.names import NO_GENERATION, FileId, Revision, SessionId
from dnpipefs.etcd import Event
from tests.model.oracle import Generation, Oracle

RETURNED: Final = SessionId(0)


class Place(NamedTuple):
    """A message of a group."""

    topic: FileId
    group: bytes
    term: Term
    number: int


@dataclass(slots=True, eq=False)
class Receipt:
    """A message that a reader was handed."""

    host: str
    session: SessionId
    deadline: float
    over: bool = False
    """Its reader gave it back."""
    counts: bool = True
    """It is a delivery, not one that its reader never saw."""


@dataclass(slots=True, eq=False)
class Asking:
    """A reader that asks whether there is something now."""

    topic: FileId
    group: bytes
    saw_nothing: bool = False


@dataclass(slots=True)
class Life:
    """One group since it was created or rewound."""

    term: Term
    cursor: int = 0
    places: dict[int, SessionId] = field(default_factory=dict)
    """Who has what is claimed and not acknowledged; RETURNED: nobody."""
    acknowledged: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)


class GroupOracle(Oracle):
    """Judges groups, besides the log."""

    limits: dict[FileId, int | None]
    """How often a message may be delivered."""

    def begin(self) -> None:
        """Take note of what the constructor of the log's oracle knows nothing of."""
        self.lives: dict[tuple[FileId, bytes], Life] = {}
        self.acks: dict[Place, set[SessionId]] = {}
        self.receipts: dict[Place, list[Receipt]] = {}
        self.killed: set[str] = set()
        self.deleted: set[tuple[FileId, bytes]] = set()
        """Groups that were deleted, and perhaps begun again: all is delivered again then."""
        self.asking: list[Asking] = []
        self.limits = {}

    def take(self, revision: int, events: Sequence[Event], now_ns: int, *, judge: bool = True) -> None:
        super().take(revision, events, now_ns, judge=judge)
        touched: dict[tuple[FileId, bytes], set[bytes]] = {}
        for event in events:
            area, _, rest = event.kv.key.removeprefix(self._keys.prefix).partition(b"/")
            if area == b"group":
                topic = FileId(int(rest[:16], 16))
                name, part = self._keys.parse_group(topic, event.kv.key)
                touched.setdefault((topic, name), set()).add(part)
            elif area == b"epoch":
                topic = FileId(int(rest[:16], 16))
                for known in [known for known in self.lives if known[0] == topic]:
                    touched.setdefault(known, set())
        for (topic, name), parts in touched.items():
            self._judge_group(topic, name, parts)
        for one in self.asking:
            one.saw_nothing = one.saw_nothing or not self.claimable(one.topic, one.group)

    def generation(self, topic: FileId) -> Generation | None:
        return self.topics[topic].current

    def claimable(self, topic: FileId, name: bytes) -> int:
        """Return how many messages of a group nobody has."""
        life, generation = self.lives.get((topic, name)), self.generation(topic)
        if life is None or generation is None:
            return 0
        first, end = _first(generation), len(generation.messages)
        returned = [at for at, who in life.places.items() if who == RETURNED and first <= at < end]
        return len(returned) + max(0, end - max(life.cursor, first))

    def unfinished(self) -> list[str]:
        """Return what of the groups is not acknowledged."""
        found = []
        for (topic, name), life in self.lives.items():
            count, generation = self.claimable(topic, name), self.generation(topic)
            end = len(generation.messages) if generation is not None else 0
            places = {at: who for at, who in life.places.items() if at < end}
            if count or places:
                found.append(f"{topic:x}@{name.decode()}: {count} to claim, {places}")
        return found

    def _judge_group(self, topic: FileId, name: bytes, parts: set[bytes]) -> None:
        keys, store = self._keys, self.store
        stored = store.get(keys.cursor(topic, name))
        if stored is None:
            self.lives.pop((topic, name), None)
            self.deleted.add((topic, name))
            members = keys.members(topic, name)
            assert not self.between(members.start, members.end) or keys.last(topic) not in store, (
                "a group that was deleted has members"
            )
            return
        generation = self.generation(topic)
        began = generation.began if generation is not None else NO_GENERATION
        cursor = decode_cursor(b"cursor", stored[1])
        if cursor.term.generation != began:
            assert b"cursor" not in parts, "the cursor was put for a generation that had ended"
            cursor = Cursor(Term(Revision(began)))
        if b"cursor" in parts:
            self.seen["cursor moved"] += 1
        life = self.lives.get((topic, name))
        if life is None or life.term != cursor.term:
            life = self._begin_life(topic, name, cursor, generation)
        assert life.cursor <= cursor.message, "the cursor went back within a term"
        places = self._places(topic, name, cursor, generation)
        if generation is not None:
            self._judge_changes(topic, name, life, cursor, places, parts, generation)
        life.cursor, life.places = cursor.message, places

    def _begin_life(self, topic: FileId, name: bytes, cursor: Cursor, generation: Generation | None) -> Life:
        life = self.lives[topic, name] = Life(cursor.term, cursor.message)
        if generation is not None:
            life.skipped = set(range(cursor.message))
            self.seen["terms"] += 1
        return life

    def _places(
        self, topic: FileId, name: bytes, cursor: Cursor, generation: Generation | None
    ) -> dict[int, SessionId]:
        """Return who has what; invariants 1 and 2."""
        places: dict[int, SessionId] = {}
        for who, record in self._records(topic, name):
            if record.term != cursor.term:
                continue
            assert generation is not None or not record.stretches, "something is held of nothing"
            for start, end, _ in record.stretches:
                assert end <= cursor.message, f"2: {start} to {end} is behind the cursor"
                for at in range(start, end):
                    assert at not in places, f"1: {at} is in two records"
                    places[at] = who
                    self.seen["claimed before it came"] += generation is not None and at >= len(
                        generation.messages
                    )
        return places

    def _records(self, topic: FileId, name: bytes) -> list[tuple[SessionId, Held | Returned]]:
        keys, found = self._keys, list[tuple[SessionId, Held | Returned]]()
        members = keys.members(topic, name)
        for key in self.between(members.start, members.end):
            found.append((keys.parse_member(key), decode_held(key, self.store[key][1])))
        back = keys.returned(topic, name)
        if back in self.store:
            found.append((RETURNED, decode_returned(back, self.store[back][1])))
        return found

    def _judge_changes(
        self,
        topic: FileId,
        name: bytes,
        life: Life,
        cursor: Cursor,
        places: dict[int, SessionId],
        parts: set[bytes],
        generation: Generation,
    ) -> None:
        """Invariant 3."""
        for at in range(cursor.message):
            before, now = life.places.get(at), places.get(at)
            if now is not None:
                assert at not in life.acknowledged, f"3: {at} was acknowledged, and is there again"
                fresh = before is None and at >= life.cursor
                assert fresh or before is not None or at in life.skipped, f"3: {at} is there again"
                if before is not None and now != before:
                    assert RETURNED in (before, now), f"{at} went from one member to another"
                    self.seen["returned"] += now == RETURNED
                    self.seen["claimed again"] += before == RETURNED
                continue
            if at in life.acknowledged or at in life.skipped:
                continue
            allowed = self.acks.get(Place(topic, name, life.term, at), set())
            if at < _first(generation) and before not in allowed:
                life.skipped.add(at)  # given back and removed at once, perhaps
                self.seen["skipped by retention"] += 1
                continue
            assert before is not None, f"3: {at} is skipped"
            assert before != RETURNED, f"3: {at} was returned, and is skipped"
            assert any(part.startswith(b"member/") for part in parts), f"3: {at} vanished"
            assert before in allowed, f"3: {at} was acknowledged by {before:x}, and no reader there did"
            life.acknowledged.add(at)
            self.seen["acknowledged"] += 1

    # Readers

    def handed_out(self, place: Place, data: bytes, receipt: Receipt) -> None:
        """Judge that a reader was handed a message. AssertionError if it is not its own."""
        found = [g for g in self.topics[place.topic].generations if g.began == place.term.generation]
        assert found, "a message of no generation"
        assert place.number < len(found[0].messages), "there is no such message"
        assert found[0].messages[place.number][2] == data, "other bytes were handed out"
        others = self.receipts.setdefault(place, [])
        now = trio.current_time()
        if place[:2] in self.deleted:
            return
        for other in others:
            explained = (
                other.over
                or receipt.session in self._ended_sessions
                or other.host in self.killed
                or other.session in self._ended_sessions
                or other.deadline <= now
            )
            assert explained, f"{place} was delivered twice, to {other.host} and {receipt.host}"
        if others:
            self.seen["delivered again"] += 1
        others.append(receipt)
        limit = self.limits.get(place.topic)
        times = sum(other.counts for other in others)
        assert limit is None or times <= limit, f"{place} was delivered {times} times"


def _first(generation: Generation) -> int:
    """Return the number of the first message that is retained."""
    return bisect_left(generation.messages, (generation.first,))
