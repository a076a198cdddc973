"""The view against histories of a whole cluster: a snapshot anywhere and the events after it agree."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from dnpipefs.core import view as view_module
from dnpipefs.core.keys import TailKey
from dnpipefs.core.names import NO_GENERATION, Offset, Revision, SessionId
from dnpipefs.core.records import Head, Index, SegmentInfo
from dnpipefs.core.view import (
    Appended,
    Ended,
    Measures,
    Reset,
    SegmentEntry,
    Snapshot,
    TailEntry,
    TailEvent,
    TopicView,
    ViewBroken,
    measure,
)

ONE, TWO = SessionId(1), SessionId(2)
BIRTH = Revision(10)


@dataclass(slots=True)
class State:
    """What a topic is at one revision, kept by the test's own bookkeeping."""

    revision: Revision
    generation: Revision
    modified_ns: int
    log: tuple[tuple[Revision, TailKey], ...]
    tail: dict[TailKey, Revision]
    """What is in etcd's key range: the log and leftovers of old generations."""

    def snapshot(self, draw: random.Random) -> Snapshot:
        tail = [(revision, key) for key, revision in self.tail.items()]
        draw.shuffle(tail)
        return Snapshot(self.revision, self.generation, Head(), self.modified_ns, tail)

    def entries(self) -> list[TailEntry]:
        """Invariant 2 of view, by its definition."""
        return [
            TailEntry(
                revision,
                Offset(sum(before.size for _, before in self.log[:index])),
                sum(before.messages for _, before in self.log[:index]),
                key,
            )
            for index, (revision, key) in enumerate(self.log)
        ]


@dataclass(slots=True)
class History:
    """States of a topic and the events between them: `events[i]` leads from `states[i]` to the next."""

    states: list[State]
    events: list[tuple[Revision, list[TailEvent]]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


def live(draw: random.Random, steps: int) -> History:
    """Let several sessions come, append, reset (also by deletion) and go."""
    state = State(BIRTH, BIRTH, 1, (), {})
    history = History([state])
    sessions, sequences = [ONE, TWO], Counter[SessionId]()
    for step in range(steps):
        revision = Revision(state.revision + draw.choice((1, 1, 7)))  # other topics have revisions, too
        time_ns = draw.randrange(1000)
        chance = draw.random()
        events: list[TailEvent]
        if chance < 0.75 and state.generation != NO_GENERATION:
            session = draw.choice(sessions)
            sequences[session] += 1
            key = TailKey(session, sequences[session], draw.choice((0, 1, 5, 300)), draw.choice((1, 2, 9)))
            events = [Appended(key, state.generation, time_ns)]
            tail = state.tail | {key: revision}
            state = State(revision, state.generation, time_ns, (*state.log, (revision, key)), tail)
        elif chance < 0.82:
            history.seen["began anew"] += state.generation == NO_GENERATION
            events = [Reset(time_ns)]
            state = State(revision, revision, time_ns, (), state.tail)
        elif chance < 0.85 and state.generation != NO_GENERATION:
            events = [Ended()]
            history.seen["ended with leftovers"] += bool(state.log)
            state = State(revision, NO_GENERATION, state.modified_ns, (), state.tail)
        elif chance < 0.95:  # the sweeper removes one leftover; views do not look at that
            events, tail = [], dict(state.tail)
            old = [key for key, put in tail.items() if not state.log or put < state.log[0][0]]
            history.seen["leftovers"] += bool(old)
            if old:
                del tail[draw.choice(old)]
            state = State(revision, state.generation, state.modified_ns, state.log, tail)
        else:  # a session is lost, a new one comes
            sessions[draw.randrange(2)] = SessionId(step + 100)
            continue
        history.events.append((revision, events))
        history.states.append(state)
        history.seen[type(events[0]).__name__ if events else "swept"] += 1
    return history


def must_equal(view: TopicView, state: State) -> None:
    assert list(view.entries) == state.entries()
    assert (view.revision, view.generation, view.modified_ns, view.ended) == (
        state.revision,
        state.generation,
        state.modified_ns,
        state.generation == NO_GENERATION,
    )
    assert view.first == 0
    assert view.end == sum(key.size for _, key in state.log)
    assert view.messages == sum(key.messages for _, key in state.log)
    assert all(entry.revision > view.generation for entry in view.entries)


def measures(view: TopicView) -> Measures:
    return Measures(view.end, view.messages, view.first, view.first_message, view.stored)


def test_all_views_agree_whatever_snapshot_they_began_with() -> None:
    """Invariants 1, 2 and 3 of view; invariants 3 and 4 of the design."""
    seen = Counter[str]()
    for seed in range(80):
        draw = random.Random(seed)
        history = live(draw, 30)
        seen += history.seen
        for first, state in enumerate(history.states):
            view = TopicView(state.snapshot(draw))
            must_equal(view, state)
            assert measure(state.snapshot(draw)) == measures(view)
            following = zip(history.events[first:], history.states[first + 1 :], strict=True)
            for (revision, events), after in following:
                view.apply(revision, events)
                must_equal(view, after)
    assert min(seen[event] for event in ("Appended", "Reset", "Ended", "swept", "leftovers")) >= 50, seen
    assert min(seen[event] for event in ("began anew", "ended with leftovers")) >= 30, seen


def test_locate_finds_the_entries_that_hold_the_bytes() -> None:
    found = 0
    for seed in range(40):
        draw = random.Random(seed)
        history = live(draw, 25)
        view = follow(history, history.events)
        for _ in range(100):
            offset, size = draw.randrange(view.end + 3), draw.choice((1, 2, 5, 400, 10_000))
            expected = [
                entry
                for entry in view.entries
                if max(entry.start, offset) < min(entry.start + entry.key.size, offset + size)
            ]
            assert view.locate(Offset(offset), size) == expected
            found += len(expected)
        for message in range(-1, view.messages + 2):
            [*holding] = [e for e in view.entries if e.first_message <= message < e.end_message]
            assert view.holding(message) == (holding[0] if holding else None)
    assert found > 1000


def snapshot(*tail: tuple[int, TailKey], head: Head | None = None, revision: int = 50) -> Snapshot:
    return Snapshot(Revision(revision), BIRTH, head or Head(), 1, [(Revision(put), key) for put, key in tail])


def key(session: SessionId, sequence: int, size: int = 4) -> TailKey:
    return TailKey(session, sequence, size, 1)


def test_the_tail_stands_on_the_sealed_part() -> None:
    infos = (SegmentInfo(40, 9, 2, 1, 1), SegmentInfo(60, 9, 5, 1, 1))
    head = Head(Offset(100), 7, Offset(40), 2, segments=infos)
    view = TopicView(snapshot(head=head))
    assert (view.first, view.end, view.messages, list(view.entries)) == (40, 100, 7, [])
    sealed = SegmentEntry(Offset(40), 2, infos[1])
    assert list(view.sealed) == [sealed]
    assert measure(snapshot(head=head)) == measures(view)
    unknown = Head(Offset(100), 7, segments=infos[1:])
    assert measure(snapshot(head=unknown)) is None, "the first 40 bytes are in a page"
    view.apply(Revision(51), [Appended(key(ONE, 3), BIRTH, 9)])
    assert list(view.entries) == [TailEntry(Revision(51), Offset(100), 7, key(ONE, 3))]
    assert (view.first, view.end, view.messages) == (40, 104, 8)
    assert view.locate(Offset(99), 1) == [sealed]
    assert view.holding(sealed.end_message - 1) == sealed
    assert view.holding(sealed.end_message) == view.entries[0]
    assert view.locate(Offset(90), 11) == [sealed, *view.entries]
    assert view.locate(Offset(100), 1) == list(view.entries)
    view.apply(Revision(52), [Reset(11)])
    assert (view.first, view.end, view.messages, view.generation) == (0, 0, 0, 52)
    assert (list(view.sealed), view.stored) == ([], 0)


@pytest.mark.parametrize(
    ("head", "pages"),
    [
        (Head(Offset(100), 7, Offset(40)), ()),  # retained, and no entry says where it lies
        (Head(Offset(100), 7, segments=(SegmentInfo(40, 9, 2, 1, 1),)), ()),  # the beginning is missing
        (Head(Offset(10), 1, Offset(20)), ()),  # nothing is retained that is not there
        (
            Head(Offset(100), 7, segments=(SegmentInfo(40, 9, 2, 1, 1),)),
            (Index(Offset(0), 0, (SegmentInfo(59, 9, 5, 1, 1),)),),  # a gap between page and head
        ),
        (
            Head(Offset(100), 7, segments=(SegmentInfo(40, 9, 2, 1, 1),)),
            (Index(Offset(0), 0, (SegmentInfo(60, 9, 4, 1, 1),)),),  # messages do not add up
        ),
    ],
)
def test_an_index_that_does_not_fit_breaks_the_view(head: Head, pages: tuple[Index, ...]) -> None:
    """Invariants 2 and 4 of view."""
    with pytest.raises(ViewBroken, match="index"):
        TopicView(snapshot(head=head)._replace(pages=pages))


@pytest.mark.parametrize("sequence", [1, 2, 4, 9])
def test_a_gap_or_repeat_of_a_writer_breaks_the_view(sequence: int) -> None:
    """Invariant 4 of view."""
    view = TopicView(snapshot((20, key(ONE, 1)), (21, key(TWO, 7)), (22, key(ONE, 2))))
    event = Appended(key(ONE, sequence), BIRTH, 1)
    with pytest.raises(ViewBroken, match=f"went from append 2 to {sequence}"):
        view.apply(Revision(51), [event])


def test_the_next_of_each_writer_keeps_the_view() -> None:
    """Invariant 4 of view: its other half, across a reset, too."""
    view = TopicView(snapshot((20, key(ONE, 1)), (21, key(TWO, 7))))
    view.apply(Revision(51), [Appended(key(ONE, 2), BIRTH, 1)])
    view.apply(Revision(52), [Reset(1)])
    view.apply(Revision(53), [Appended(key(TWO, 8), Revision(52), 1)])
    assert [entry.key for entry in view.entries] == [key(TWO, 8)]
    with pytest.raises(ViewBroken, match="went from append 2 to 4"):
        view.apply(Revision(54), [Appended(key(ONE, 4), Revision(52), 1)])


def test_of_many_sessions_those_are_remembered_that_appended_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command is a session of its own, and a view may live for months."""
    monkeypatch.setattr(view_module, "SEQUENCES_LIMIT", 3)
    view, revision = TopicView(snapshot()), 60
    for session in (1, 2, 1, 3, 4, 5, 1):
        revision += 1
        known = view._sequences.get(SessionId(session), 0)
        view.apply(Revision(revision), [Appended(key(SessionId(session), known + 1), BIRTH, 1)])
    assert list(view._sequences) == [4, 5, 1]


def test_a_snapshot_with_a_gap_is_broken() -> None:
    """Invariant 4 of view."""
    with pytest.raises(ViewBroken, match="went from append 1 to 3"):
        TopicView(snapshot((20, key(ONE, 1)), (22, key(ONE, 3))))


def test_lost_and_doubled_events_are_noticed_at_the_writers_next_append() -> None:
    """Invariant 4 of view, over whole histories."""
    lost = doubled = 0
    for seed in range(60):
        draw = random.Random(seed)
        history = live(draw, 30)
        appended = [
            (index, event.key)
            for index, (_, events) in enumerate(history.events)
            for event in events
            if isinstance(event, Appended)
        ]
        for index, victim in appended:
            before = any(other.session == victim.session for at, other in appended if at < index)
            after = any(other.session == victim.session for at, other in appended if at > index)
            revision, events = history.events[index]
            if before and after:
                lost += 1
                with pytest.raises(ViewBroken, match="went from append"):
                    follow(history, [*history.events[:index], *history.events[index + 1 :]])
            doubled += 1
            with pytest.raises(ViewBroken, match="came after"):
                follow(history, [*history.events[: index + 1], (revision, events)])
            with pytest.raises(ViewBroken, match="went from append"):
                follow(history, [*history.events[: index + 1], (Revision(revision + 1), events)])
    assert lost > 200
    assert doubled > 200


def follow(history: History, events: list[tuple[Revision, list[TailEvent]]]) -> TopicView:
    view = TopicView(history.states[0].snapshot(random.Random(0)))
    for revision, event in events:
        view.apply(revision, event)
    return view


def test_a_batch_of_another_generation_breaks_the_view() -> None:
    """Invariant 3 of view."""
    view = TopicView(snapshot())
    view.apply(Revision(51), [Reset(1)])
    with pytest.raises(ViewBroken, match="a batch of generation 10 in 51"):
        view.apply(Revision(52), [Appended(key(ONE, 1), BIRTH, 1)])


def test_between_generations_there_is_nothing_whatever_lies_in_etcd() -> None:
    """Invariant 3 of view; invariant 5 of the design: a reset of a full etcd, and the push after it."""
    view = TopicView(snapshot((20, key(ONE, 1)), (21, key(TWO, 7))))
    view.apply(Revision(51), [Ended()])
    left = [(Revision(20), key(ONE, 1)), (Revision(21), key(TWO, 7))]
    opened = TopicView(Snapshot(Revision(51), NO_GENERATION, Head(Offset(9), 2, Offset(3)), 1, left))
    for each in (view, opened):
        assert (each.ended, each.generation, list(each.entries)) == (True, NO_GENERATION, [])
        assert (each.first, each.end, each.messages) == (0, 0, 0)
        with pytest.raises(ViewBroken, match="a batch of generation 10 in 0"):
            each.apply(Revision(52), [Appended(key(TWO, 8), BIRTH, 1)])
        each.apply(Revision(53), [Reset(3)])
        each.apply(Revision(54), [Appended(key(TWO, 8), Revision(53), 4)])
        assert (each.ended, each.generation, each.end) == (False, 53, 4)


@pytest.mark.parametrize("revision", [49, 50])
def test_revisions_only_grow(revision: int) -> None:
    with pytest.raises(ViewBroken, match=f"revision {revision} came after 50"):
        TopicView(snapshot()).apply(Revision(revision), [])
