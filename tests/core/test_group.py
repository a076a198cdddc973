"""The changes of a group, made by several members over shared records, against one message at a time.

The shared records are put under comparison as `groups/records.py` does; a member plans from what it has read
some time ago. The model knows of each message who may acknowledge it and what became of it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dnpipefs.core.group import (
    Cursor,
    DeadLetter,
    GivenBack,
    Held,
    NotHeld,
    Piece,
    Records,
    Returned,
    Term,
    available,
    claim,
    claim_to_come,
    put_back,
    reconcile,
    rewind,
    settle,
    share,
    take_over,
    trim,
)
from dnpipefs.core.group_records import (
    decode_cursor,
    decode_dead_letter,
    decode_held,
    decode_returned,
    encode_cursor,
    encode_dead_letter,
    encode_held,
    encode_returned,
)
from dnpipefs.core.intervals import Stretch, Stretches
from dnpipefs.core.names import NO_GENERATION, Offset, Revision
from dnpipefs.errors import CorruptData

MEMBERS = 3


@dataclass
class Store:
    """A group's records with their revisions."""

    revision: int = 1
    generation: int = 1
    cursor: tuple[int, Cursor] = (1, Cursor(Term(Revision(1))))
    returned: tuple[int, Returned] = (0, Returned())
    held: dict[int, tuple[int, Held]] = field(default_factory=dict)

    def read(self, session: int) -> "Known":
        at, held = self.held.get(session, (0, Held()))
        records = Records(Revision(self.generation), self.cursor[1], held, self.returned[1])
        return Known(records.current(), self.cursor[0], at, self.returned[0])


@dataclass(frozen=True)
class Known:
    records: Records
    cursor_at: int
    held_at: int
    returned_at: int


@dataclass
class Member:
    session: int
    known: Known | None = None
    """What it has read; a change is planned from it."""
    mine: set[int] = field(default_factory=set)
    """Messages it knows it holds."""
    lost: bool = False
    """The answer to its newest change was lost."""


class Group(RuleBasedStateMachine):
    """Invariants 1 to 3 of core/group, whatever its members do."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.sessions = iter(range(1, 10**6))
        self.members = [Member(next(self.sessions)) for _ in range(MEMBERS)]
        self.dead: list[int] = []
        self.first = self.end = 0
        self.acknowledged: set[int] = set()
        self.skipped: set[int] = set()

    @property
    def term(self) -> Term:
        return self.store.read(0).records.cursor.term

    @rule(messages=st.integers(1, 5))
    def push(self, messages: int) -> None:
        self.end += messages

    @rule(who=st.integers(0, MEMBERS - 1))
    def read(self, who: int) -> None:
        """A member reads the records and makes what it knows agree with them."""
        member = self.members[who]
        known = member.known = self.store.read(member.session)
        held = known.records.held
        member.mine = {at for at in member.mine if held.stretches.covers(at, at + 1)}
        orphans = cells(reconcile(held, [(at, at + 1) for at in member.mine]))
        assert not orphans or member.lost, "it holds what it knows nothing of, and no answer was lost"
        assert orphans == cells(held.stretches) - member.mine
        member.mine |= orphans
        member.lost = False

    @rule(
        who=st.integers(0, MEMBERS - 1),
        draw=st.randoms(use_true_random=False),
        fresh=st.integers(0, 4),
        again=st.integers(0, 3),
        to_come=st.integers(0, 3),
        answered=st.booleans(),
    )
    def change(self, who: int, draw: "object", fresh: int, again: int, to_come: int, answered: bool) -> None:
        """A member acknowledges, gives back and claims in one transaction, planned from what it has read."""
        member, known = self.members[who], self.members[who].known
        if known is None:
            return
        before = known.records
        kinds = {at: draw.choice("akb") for at in member.mine if at < self.end}  # type: ignore[attr-defined]
        done = {at for at, kind in kinds.items() if kind == "a"}
        back = {at for at, kind in kinds.items() if kind == "b"}
        after = settle(
            before,
            [one(at) for at in done],
            [GivenBack(one(at), delivered=draw.random() < 0.5) for at in back],  # type: ignore[attr-defined]
        )
        after = trim(after, self.first)
        taken = sorted(cells(after.returned.stretches))[:again]
        start = max(after.cursor.message, self.first)
        end = min(start + fresh, self.end)
        skipped: set[int] = set()
        if known.records.generation == self.store.generation:
            there = available(after, self.first, self.end)
            after = claim(after, [one(at) for at in taken], Piece(start, end) if end > start else None)
            taken += range(start, end)
            assert available(after, self.first, self.end) == there - sum(
                self.first <= at < self.end for at in taken
            )
            if to_come:
                after, ahead = claim_to_come(after, to_come, self.first)
                numbers = sorted(cells(ahead))
                assert len(numbers) == to_come
                assert numbers[0] >= self.first
                taken += numbers
            if after.cursor != before.cursor:
                skipped = set(range(before.cursor.message, start))
        else:
            taken = []
        if self.put(member.session, known, after):
            if known.records.cursor.term == self.term:
                self.acknowledged |= done
                self.skipped |= skipped
                self.trimmed()
            if answered:
                member.mine = member.mine - done - back | set(taken)
                member.known = self.put_as(known, after)
                return
            member.lost = True
        member.known = None  # it has to read before it makes another one

    def put_as(self, known: Known, after: Records) -> Known:
        """What was just put, as its member knows it."""
        moves, returns = after.cursor != known.records.cursor, after.returned != known.records.returned
        at = self.store.revision
        return Known(after, at if moves else known.cursor_at, at, at if returns else known.returned_at)

    def put(self, session: int, known: Known, after: Records) -> bool:
        """What `GroupKeys.change` does."""
        store, before = self.store, known.records
        moves, returns = after.cursor != before.cursor, after.returned != before.returned
        if session in self.dead or store.held.get(session, (0,))[0] != known.held_at:
            return False
        if moves and (store.cursor[0] != known.cursor_at or store.generation != after.generation):
            return False
        if returns and store.returned[0] != known.returned_at:
            return False
        store.revision += 1
        store.held[session] = store.revision, after.held
        if moves:
            store.cursor = store.revision, after.cursor
        if returns:
            store.returned = store.revision, after.returned
        return True

    @rule(who=st.integers(0, MEMBERS - 1))
    def crash(self, who: int) -> None:
        self.dead.append(self.members[who].session)
        self.members[who] = Member(next(self.sessions))

    @rule()
    def take_over_one(self) -> None:
        gone = [session for session in self.dead if session in self.store.held]
        if not gone:
            return
        known, store = self.store.read(gone[0]), self.store
        store.revision += 1
        after, left = take_over(known.records)
        assert not left.stretches
        for stretch in known.records.held.stretches:
            for cut in after.stretches.within(stretch.start, stretch.end):
                assert cut.deliveries == stretch.deliveries + 1
        assert cells(after.stretches) >= cells(known.records.held.stretches)
        if known.records.held.stretches:
            store.returned = store.revision, after
        del store.held[gone[0]]

    @rule(share_of_it=st.floats(0, 1))
    def seek(self, share_of_it: float) -> None:
        known = self.store.read(0)
        message = self.first + int(share_of_it * (self.end - self.first))
        after = rewind(known.records, message)
        assert not after.held.stretches
        assert not after.returned.stretches
        self.store.revision += 1
        self.store.cursor = self.store.revision, after.cursor
        self.acknowledged = set()
        self.skipped = set(range(message))

    @rule()
    def reset(self) -> None:
        self.store.revision += 1
        self.store.generation = self.store.revision
        self.first = self.end = 0
        self.acknowledged, self.skipped = set(), set()

    @rule(messages=st.integers(1, 6))
    def retention(self, messages: int) -> None:
        self.first = min(self.first + messages, self.end)

    def trimmed(self) -> None:
        """What was returned and is removed now can be in no record any more."""
        everywhere = set(self.held_by_all()) | cells(self.store.read(0).records.returned.stretches)
        claimed = min(self.first, self.store.read(0).records.cursor.message)
        self.skipped |= set(range(claimed)) - everywhere - self.acknowledged

    def held_by_all(self) -> list[int]:
        return [
            at
            for _, held in self.store.held.values()
            if held.term == self.term
            for at in cells(held.stretches)
        ]

    @invariant()
    def holds(self) -> None:
        records = self.store.read(0).records
        places = self.held_by_all() + list(cells(records.returned.stretches))
        assert len(set(places)) == len(places), "1: in two records"
        assert all(at < records.cursor.message for at in places), "2: behind the cursor"
        claimed, known = set(range(records.cursor.message)), set(places)
        assert claimed - self.skipped - self.acknowledged == known - self.skipped, "3"
        assert not known & self.acknowledged, "3: acknowledged, and to be delivered again"

    @invariant()
    def members_know_what_they_hold(self) -> None:
        for member in self.members:
            if member.known is not None and member.known.records.cursor.term == self.term:
                at, held = self.store.held.get(member.session, (0, Held()))
                if held.term == self.term and at == member.known.held_at and not member.lost:
                    assert cells(held.stretches) == member.mine


TestGroup = Group.TestCase
TestGroup.settings = settings(max_examples=150, stateful_step_count=50)


def cells(stretches: Iterable[Stretch]) -> set[int]:
    return {at for start, end, _ in stretches for at in range(start, end)}


def one(at: int) -> Piece:
    return Piece(at, at + 1)


def records(held: list[tuple[int, int]], back: list[tuple[int, int]], cursor: int) -> Records:
    def stretches(pairs: list[tuple[int, int]]) -> Stretches:
        return Stretches(Stretch(start, end, 0) for start, end in pairs)

    term = Term(Revision(5))
    return Records(
        Revision(5), Cursor(term, cursor), Held(term, stretches(held)), Returned(term, stretches(back))
    )


def test_nothing_is_acknowledged_by_whom_it_does_not_belong_to() -> None:
    """Invariant 3."""
    known = records([(0, 3)], [(5, 7)], 9)
    for wrong in (Piece(2, 4), Piece(5, 7), Piece(8, 9)):
        with pytest.raises(NotHeld):
            settle(known, [wrong], [])
        with pytest.raises(NotHeld):
            settle(known, [], [GivenBack(wrong, delivered=True)])


def test_nothing_is_claimed_that_was_claimed_or_not_returned() -> None:
    """Invariant 1."""
    known = records([(0, 3)], [(5, 7)], 9)
    for wrong in (Piece(0, 3), Piece(4, 6), Piece(9, 10)):
        with pytest.raises(NotHeld):
            claim(known, [wrong], None)
    with pytest.raises(NotHeld):
        claim(known, [], Piece(8, 10))


def test_a_reset_voids_all_records() -> None:
    known = replace(records([(0, 3)], [(5, 7)], 9), generation=Revision(6)).current()
    assert known == Records(
        Revision(6), Cursor(Term(Revision(6))), Held(Term(Revision(6))), Returned(Term(Revision(6)))
    )


def test_what_is_of_another_term_is_not_taken_over() -> None:
    known = records([(0, 3)], [(5, 7)], 9)
    other = replace(known, held=replace(known.held, term=Term(Revision(5), 1))).current()
    assert take_over(other) == (known.returned, Held(known.held.term))


def test_what_has_no_room_is_not_taken_over_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnpipefs.core.group.RETURNED_STRETCHES", 3)
    known = records([(0, 1), (2, 3), (4, 5)], [(6, 7)], 9)
    after, left = take_over(known)
    assert list(after.stretches) == [Stretch(0, 1, 1), Stretch(2, 3, 1), Stretch(6, 7, 0)]
    assert list(left.stretches) == [Stretch(4, 5, 0)]
    assert take_over(replace(known, held=left, returned=after)) == (after, left)


def test_nothing_is_planned_from_what_watches_brought_out_of_step() -> None:
    known = records([(0, 3)], [(5, 7)], 9)
    assert not known.mixed
    assert records([(0, 3)], [(2, 7)], 9).mixed  # taken over from this member
    assert replace(known, returned=Returned(Term(Revision(5), 1))).mixed  # rewound
    assert replace(known, returned=Returned(Term(Revision(6)))).mixed  # reset
    assert not replace(known, returned=Returned(Term(Revision(4)))).mixed
    assert not replace(known, held=Held(Term(Revision(4)), known.returned.stretches)).mixed


def test_what_is_claimed_before_it_comes_is_the_lowest_that_nobody_has() -> None:
    known = records([(0, 3)], [(5, 7), (8, 9)], 9)
    for count, first, expected in (
        (1, 0, {5}),
        (2, 0, {5, 6}),
        (5, 0, {5, 6, 8, 9, 10}),
        (2, 6, {6, 8}),
        (2, 20, {20, 21}),
    ):
        after, ahead = claim_to_come(known, count, first)
        assert cells(ahead) == expected
        assert cells(after.held.stretches) == {0, 1, 2} | expected
        assert cells(after.returned.stretches) == {5, 6, 8} - expected
        assert after.cursor.message == max(9, *(at + 1 for at in expected))


def test_what_is_claimed_again_before_it_comes_was_delivered_as_often_as_it_was() -> None:
    known = records([], [], 9)
    known = replace(known, returned=replace(known.returned, stretches=Stretches([Stretch(3, 5, 2)])))
    after, ahead = claim_to_come(known, 3, 0)
    assert after.returned.redeliveries == 2
    assert claim(after, [], None).returned.redeliveries == 2
    assert ahead == [Stretch(3, 5, 2), Stretch(9, 10, 0)]


def test_dead_letters_come_back_as_if_they_had_never_been_delivered() -> None:
    after = put_back(records([], [(5, 7)], 20).returned, [3, 9])
    assert list(after.stretches) == [Stretch(3, 4, 0), Stretch(5, 7, 0), Stretch(9, 10, 0)]


counts = st.integers(0, 50)


@given(counts, counts, counts, st.floats(0, 1000), counts)
def test_a_share_serves_those_who_wait_and_leaves_the_rest(
    available: int, waiting: int, in_stock: int, per_second: float, bound: int
) -> None:
    taken = share(available, waiting=waiting, in_stock=in_stock, per_second=per_second, bound=bound)
    assert 0 <= taken <= available
    assert taken == 0 or in_stock + taken <= bound
    needed = max(0, waiting - in_stock)
    assert taken >= min(needed, available, max(0, bound - in_stock))
    assert taken <= max(needed, available // 2)
    if per_second == 0:
        assert taken <= needed


numbers = st.lists(st.integers(0, 10**12), unique=True, max_size=12).map(sorted)
terms = st.builds(Term, st.integers(0, 2**63 - 1).map(Revision), st.integers(0, 10**6))


@st.composite
def stretches_of(draw: st.DrawFn) -> Stretches:
    found = draw(numbers)
    return Stretches(
        Stretch(a, b, draw(st.integers(0, 99))) for a, b in zip(found[::2], found[1::2], strict=False)
    )


@given(terms, st.integers(0, 2**62), st.integers(0, 2**62), st.text(), stretches_of())
def test_records_are_read_as_they_were_written(
    term: Term, message: int, offset: int, reason: str, stretches: Stretches
) -> None:
    cursor = Cursor(term, message)
    assert decode_cursor(b"k", encode_cursor(cursor)) == cursor
    held = Held(term, stretches)
    assert decode_held(b"k", encode_held(held)) == held
    returned = Returned(term, stretches, message)
    assert decode_returned(b"k", encode_returned(returned)) == returned
    letter = DeadLetter(term, message, Offset(offset), 3, reason)
    assert decode_dead_letter(b"k", encode_dead_letter(letter)) == letter


GOOD = {"generation": "1f", "rewinds": 0, "message": 1, "stretches": [[0, 5, 1]], "redeliveries": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"generation": None},
        {"generation": 7},
        {"generation": "xyz"},
        {"generation": "-1"},
        {"rewinds": "0"},
        {"rewinds": True},
        {"rewinds": -1},
        {"message": []},
        {"message": -1},
        {"message": None},
        {"message": 1.5},
        {"redeliveries": -1},
        {"redeliveries": "2"},
        {"stretches": None},
        {"stretches": 5},
        {"stretches": {}},
        {"stretches": [5]},
        {"stretches": [None]},
        {"stretches": ["abc"]},
        {"stretches": [[]]},
        {"stretches": [[0, 5]]},
        {"stretches": [[0, 5, 1, 1]]},
        {"stretches": [[0, 5, "1"]]},
        {"stretches": [[0, 5, True]]},
        {"stretches": [[0, 5, -1]]},
        {"stretches": [[-2, 5, 1]]},
        {"stretches": [[5, 5, 1]]},
        {"stretches": [[6, 5, 1]]},
        {"stretches": [[0, 5, 1], [4, 6, 0]]},
        {"stretches": [[[0], 5, 1]]},
    ],
    ids=json.dumps,
)
def test_a_malformed_value_is_corrupt_data(change: dict[str, object]) -> None:
    raw = json.dumps(GOOD | change).encode()
    [field_name] = change
    if field_name not in ("stretches", "redeliveries"):
        with pytest.raises(CorruptData):
            decode_cursor(b"k", raw)
    if field_name not in ("message", "redeliveries"):
        with pytest.raises(CorruptData):
            decode_held(b"k", raw)
    if field_name != "message":
        with pytest.raises(CorruptData):
            decode_returned(b"k", raw)


@given(
    st.binary(max_size=40)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_no_bytes_do_anything_else_than_not_to_parse(raw: bytes) -> None:
    for decode in (decode_cursor, decode_held, decode_returned, decode_dead_letter):
        with pytest.raises(CorruptData):
            decode(b"k", raw)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_no_list_of_stretches_does_anything_else_than_not_to_parse(value: object) -> None:
    raw = json.dumps(GOOD | {"stretches": value}).encode()
    try:
        decode_held(b"k", raw)
    except CorruptData:
        return
    assert isinstance(value, list)


def test_a_group_of_no_generation_begins_at_the_start() -> None:
    known = Records(NO_GENERATION, Cursor(Term(Revision(5)), 2), Held(), Returned()).current()
    assert known.cursor == Cursor(Term(NO_GENERATION), 0)


def test_what_was_returned_behind_the_known_cursor_is_news_of_a_newer_one() -> None:
    term = Term(Revision(5), 0)
    returned = Returned(term, Stretches([Stretch(1, 2, 1)]))
    assert Records(term.generation, Cursor(term, 1), Held(), returned).mixed
    assert not Records(term.generation, Cursor(term, 2), Held(), returned).mixed
