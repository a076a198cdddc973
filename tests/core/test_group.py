"""The changes of a group, made by several members over shared records, against one message at a time.

The shared records are put under comparison as `groups/records.py` does; a member plans from what it has read
some time ago. The model knows of each message who may acknowledge it and what became of it.
"""

import json
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dnpipefs.core.group import (
    Cursor,
    Fresh,
    GivenBack,
    Held,
    NotHeld,
    Piece,
    Records,
    Returned,
    Term,
    claim,
    reconcile,
    rewind,
    settle,
    share,
    take_over,
    trim,
)
from dnpipefs.core.group_records import (
    decode_cursor,
    decode_held,
    decode_returned,
    encode_cursor,
    encode_held,
    encode_returned,
)
from dnpipefs.core.intervals import Stretch, Stretches
from dnpipefs.core.names import NO_GENERATION, START, Offset, Revision
from dnpipefs.errors import CorruptData

MEMBERS = 3
sizes = st.integers(1, 4)


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
    mine: dict[int, int] = field(default_factory=dict)
    """Messages it knows it holds: start and end."""
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
        self.starts = [0]
        self.first = 0
        self.acknowledged: set[int] = set()
        self.skipped: set[int] = set()

    @property
    def end(self) -> int:
        return self.starts[-1]

    @property
    def term(self) -> Term:
        return self.store.read(0).records.cursor.term

    def messages(self, start: int, end: int) -> list[tuple[int, int]]:
        return [(a, b) for a, b in zip(self.starts, self.starts[1:], strict=False) if a >= start and b <= end]

    def pieces(self, stretches: Stretches) -> list[tuple[int, int]]:
        return [each for start, end, _ in stretches for each in self.messages(start, end)]

    @initialize(lengths=st.lists(sizes, max_size=12))
    def begin(self, lengths: list[int]) -> None:
        self.push(lengths)

    @rule(lengths=st.lists(sizes, min_size=1, max_size=5))
    def push_some(self, lengths: list[int]) -> None:
        self.push(lengths)

    def push(self, lengths: list[int]) -> None:
        for length in lengths:
            self.starts.append(self.end + length)

    @rule(who=st.integers(0, MEMBERS - 1))
    def read(self, who: int) -> None:
        """A member reads the records and makes what it knows agree with them."""
        member = self.members[who]
        known = member.known = self.store.read(member.session)
        held = known.records.held
        member.mine = {a: b for a, b in member.mine.items() if held.stretches.covers(Offset(a), Offset(b))}
        orphans = reconcile(held, [(Offset(a), Offset(b)) for a, b in member.mine.items()])
        assert not orphans or member.lost, "it holds what it knows nothing of, and no answer was lost"
        expected = {each for each in self.pieces(held.stretches) if each[0] not in member.mine}
        assert set(self.pieces(orphans)) == expected
        member.mine |= dict(self.pieces(orphans))
        member.lost = False

    @rule(
        who=st.integers(0, MEMBERS - 1),
        draw=st.randoms(use_true_random=False),
        fresh=st.integers(0, 4),
        again=st.integers(0, 3),
        answered=st.booleans(),
    )
    def change(self, who: int, draw: "object", fresh: int, again: int, answered: bool) -> None:
        """A member acknowledges, gives back and claims in one transaction, planned from what it has read."""
        member, known = self.members[who], self.members[who].known
        if known is None:
            return
        before = known.records
        kinds = {start: draw.choice("akb") for start in member.mine}  # type: ignore[attr-defined]
        done = [Piece(Offset(a), Offset(b), 1) for a, b in member.mine.items() if kinds[a] == "a"]
        back = [
            GivenBack(Piece(Offset(a), Offset(b), 1), delivered=draw.random() < 0.5)  # type: ignore[attr-defined]
            for a, b in member.mine.items()
            if kinds[a] == "b"
        ]
        after = trim(settle(before, done, back), Offset(self.first))
        waiting = self.pieces(after.returned.stretches)[:again]
        start = max(after.cursor.offset, self.first)
        taken = self.messages(start, self.end)[:fresh]
        if self.generation_differs(known):
            taken = waiting = []
        skipped = [a for a, _ in self.messages(after.cursor.offset, start)]
        new = None
        if taken:
            piece = Piece(Offset(taken[0][0]), Offset(taken[-1][1]), len(taken))
            new = Fresh(piece, len(self.messages(0, start)))
        after = claim(after, new, [Piece(Offset(a), Offset(b), 1) for a, b in waiting])
        if self.put(member.session, known, after):
            if known.records.cursor.term == self.term:
                self.acknowledged |= {piece.start for piece in done}
                if taken:
                    self.skipped |= set(skipped)
                self.trimmed()
            if answered:
                member.mine = {a: b for a, b in member.mine.items() if kinds[a] == "k"}
                member.mine |= dict(waiting) | dict(taken)
                member.known = self.put_as(known, after)
                return
            member.lost = True
        member.known = None  # it has to read before it makes another one

    def put_as(self, known: Known, after: Records) -> Known:
        """What was just put, as its member knows it."""
        moves, returns = after.cursor != known.records.cursor, after.returned != known.records.returned
        at = self.store.revision
        return Known(after, at if moves else known.cursor_at, at, at if returns else known.returned_at)

    def generation_differs(self, known: Known) -> bool:
        return known.records.generation != self.store.generation

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
        after = take_over(known.records.returned, known.records.held)
        for stretch in known.records.held.stretches:
            for cut in after.stretches.within(stretch.start, stretch.end):
                assert cut.deliveries == stretch.deliveries + 1
        assert after.messages == known.records.returned.messages + known.records.held.messages
        if known.records.held.stretches:
            store.returned = store.revision, after
        del store.held[gone[0]]

    @rule(share_of_it=st.floats(0, 1), ahead=st.integers(0, 3))
    def seek(self, share_of_it: float, ahead: int) -> None:
        known = self.store.read(0)
        later = [at for at in self.starts if at >= self.first]
        offset = later[int(share_of_it * (len(later) - 1))]
        after = rewind(known.records, Offset(offset), self.starts.index(offset))
        assert not after.held.stretches
        assert not after.returned.stretches
        self.store.revision += 1
        self.store.cursor = self.store.revision, after.cursor
        self.acknowledged = set()
        self.skipped = {start for start, _ in self.messages(0, offset)}

    @rule()
    def reset(self) -> None:
        self.store.revision += 1
        self.store.generation = self.store.revision
        self.starts, self.first = [0], 0
        self.acknowledged, self.skipped = set(), set()

    @rule(messages=st.integers(1, 6))
    def retention(self, messages: int) -> None:
        later = [at for at in self.starts if at >= self.first]
        self.first = later[min(messages, len(later) - 1)]

    def trimmed(self) -> None:
        """What was returned and is removed now can be in no record any more."""
        kept = self.store.read(0).records.returned.stretches
        everywhere = {start for start, _ in self.held_by_all()} | {a for a, _ in self.pieces(kept)}
        self.skipped |= {
            start
            for start, _ in self.messages(0, self.first)
            if start not in everywhere and start not in self.acknowledged
        }

    def held_by_all(self) -> list[tuple[int, int]]:
        return [
            each
            for _, held in self.store.held.values()
            if held.term == self.term
            for each in self.pieces(held.stretches)
        ]

    @invariant()
    def holds(self) -> None:
        records = self.store.read(0).records
        held, back = self.held_by_all(), self.pieces(records.returned.stretches)
        places = sorted(held + back)
        assert len(set(places)) == len(places), "1: in two records"
        assert all(end <= records.cursor.offset for _, end in places), "2: behind the cursor"
        claimed = {start for start, _ in self.messages(0, records.cursor.offset)}
        known = {start for start, _ in places}
        assert claimed - self.skipped - self.acknowledged == known - self.skipped, "3"
        assert not known & self.acknowledged, "3: acknowledged, and to be delivered again"
        assert records.cursor.message == self.starts.index(records.cursor.offset), "a count is wrong"
        for _, one in self.store.held.values():
            if one.term == self.term:
                assert one.messages == len(self.pieces(one.stretches)), "a count is wrong"
        if records.returned.stretches:
            assert records.returned.messages >= len(back), "a count is too small: they would never be claimed"
        else:
            assert records.returned.messages == 0, "nothing is counted as something"

    @invariant()
    def members_know_what_they_hold(self) -> None:
        for member in self.members:
            if member.known is not None and member.known.records.cursor.term == self.term:
                at, held = self.store.held.get(member.session, (0, Held()))
                if held.term == self.term and at == member.known.held_at and not member.lost:
                    assert sorted(self.pieces(held.stretches)) == sorted(member.mine.items())


TestGroup = Group.TestCase
TestGroup.settings = settings(max_examples=150, stateful_step_count=50)


def records(held: list[tuple[int, int]], back: list[tuple[int, int]], cursor: int) -> Records:
    def stretches(pairs: list[tuple[int, int]]) -> Stretches:
        return Stretches(Stretch(Offset(a), Offset(b), 0) for a, b in pairs)

    term = Term(Revision(5))
    return Records(
        Revision(5),
        Cursor(term, Offset(cursor), cursor),
        Held(term, stretches(held), sum(b - a for a, b in held)),
        Returned(term, stretches(back), sum(b - a for a, b in back)),
    )


def piece(start: int, end: int) -> Piece:
    return Piece(Offset(start), Offset(end), end - start)


def test_nothing_is_acknowledged_by_whom_it_does_not_belong_to() -> None:
    """Invariant 3."""
    known = records([(0, 3)], [(5, 7)], 9)
    for wrong in (piece(2, 4), piece(5, 7), piece(8, 9)):
        with pytest.raises(NotHeld):
            settle(known, [wrong], [])
        with pytest.raises(NotHeld):
            settle(known, [], [GivenBack(wrong, delivered=True)])


def test_nothing_is_claimed_that_was_claimed_or_not_returned() -> None:
    """Invariant 1."""
    known = records([(0, 3)], [(5, 7)], 9)
    for wrong in (piece(0, 3), piece(4, 6), piece(9, 10)):
        with pytest.raises(NotHeld):
            claim(known, None, [wrong])
    with pytest.raises(NotHeld):
        claim(known, Fresh(piece(8, 10), 8), [])


def test_a_reset_voids_all_records() -> None:
    known = replace(records([(0, 3)], [(5, 7)], 9), generation=Revision(6)).current()
    assert known == Records(
        Revision(6), Cursor(Term(Revision(6))), Held(Term(Revision(6))), Returned(Term(Revision(6)))
    )


def test_what_is_of_another_term_is_not_taken_over() -> None:
    known = records([(0, 3)], [(5, 7)], 9)
    other = replace(known.held, term=Term(Revision(5), 1))
    assert take_over(known.returned, other) == known.returned


def test_nothing_is_planned_from_what_watches_brought_out_of_step() -> None:
    known = records([(0, 3)], [(5, 7)], 9)
    assert not known.mixed
    assert records([(0, 3)], [(2, 7)], 9).mixed  # taken over from this member
    assert replace(known, returned=Returned(Term(Revision(5), 1))).mixed  # rewound
    assert replace(known, returned=Returned(Term(Revision(6)))).mixed  # reset
    assert not replace(known, returned=Returned(Term(Revision(4)))).mixed
    assert not replace(known, held=Held(Term(Revision(4)), known.returned.stretches)).mixed


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


offsets = st.lists(st.integers(0, 10**12), unique=True, max_size=12).map(sorted)
terms = st.builds(Term, st.integers(0, 2**63 - 1).map(Revision), st.integers(0, 10**6))


@st.composite
def stretches_of(draw: st.DrawFn) -> Stretches:
    found = draw(offsets)
    return Stretches(
        Stretch(Offset(a), Offset(b), draw(st.integers(0, 99)))
        for a, b in zip(found[::2], found[1::2], strict=False)
    )


@given(terms, st.integers(0, 2**62), st.integers(0, 2**62), stretches_of())
def test_records_are_read_as_they_were_written(
    term: Term, offset: int, message: int, stretches: Stretches
) -> None:
    cursor = Cursor(term, Offset(offset), message)
    assert decode_cursor(b"k", encode_cursor(cursor)) == cursor
    held = Held(term, stretches, message)
    assert decode_held(b"k", encode_held(held)) == held
    returned = Returned(term, stretches, message)
    assert decode_returned(b"k", encode_returned(returned)) == returned


GOOD = {"generation": "1f", "rewinds": 0, "offset": 3, "message": 1, "messages": 2, "stretches": [[0, 5, 1]]}


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
        {"offset": None},
        {"offset": -1},
        {"offset": 1.5},
        {"message": []},
        {"message": -1},
        {"messages": "2"},
        {"messages": -2},
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
    if field_name not in ("messages", "stretches"):
        with pytest.raises(CorruptData):
            decode_cursor(b"k", raw)
    if field_name not in ("offset", "message"):
        for decode in (decode_held, decode_returned):
            with pytest.raises(CorruptData):
                decode(b"k", raw)


@given(
    st.binary(max_size=40)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_no_bytes_do_anything_else_than_not_to_parse(raw: bytes) -> None:
    for decode in (decode_cursor, decode_held, decode_returned):
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
    known = Records(NO_GENERATION, Cursor(Term(Revision(5)), Offset(7), 2), Held(), Returned()).current()
    assert known.cursor == Cursor(Term(NO_GENERATION), START, 0)


def test_what_was_returned_behind_the_known_cursor_is_news_of_a_newer_one() -> None:
    term = Term(Revision(5), 0)
    returned = Returned(term, Stretches([Stretch(Offset(43), Offset(61), 1)]), 1)
    assert Records(term.generation, Cursor(term, Offset(43), 1), Held(), returned).mixed
    assert not Records(term.generation, Cursor(term, Offset(61), 2), Held(), returned).mixed
