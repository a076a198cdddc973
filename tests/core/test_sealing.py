"""What is sealed and trimmed, as planned: any tail is sealed to its end within etcd's limits."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from dnpipefs.core import sealing
from dnpipefs.core.keys import Beside, TailKey
from dnpipefs.core.names import Offset, Revision, SessionId
from dnpipefs.core.records import Head, SegmentInfo
from dnpipefs.core.sealing import (
    LARGE_BYTES,
    SEGMENT_BYTES,
    STEP_BATCHES,
    STEP_LARGE,
    STEP_MERGED,
    STEP_WRITERS,
    Keep,
    Merge,
    Retention,
    SealPlan,
    plan_seal,
    plan_trim,
)
from dnpipefs.core.view import Appended, Entry, Sealed, Snapshot, TopicView, Trimmed

BIRTH = Revision(10)
SECOND_NS = 10**9


@dataclass(slots=True)
class Log:
    """A topic whose plans are carried out at once, without contents."""

    view: TopicView = field(default_factory=lambda: TopicView(Snapshot(BIRTH, BIRTH, Head(), 0, [])))
    now_ns: int = 0
    sequences: Counter[SessionId] = field(default_factory=Counter)
    written: int = 0
    """Bytes of message data that were written into segments."""

    def append(self, size: int, *, session: int = 1, messages: int = 1, large: bool = False) -> None:
        key = SessionId(session)
        self.sequences[key] += 1
        beside = Beside(self.sequences[key], size + 48) if large else None
        batch = TailKey(key, self.sequences[key], size, messages, beside)
        self.view.apply(Revision(self.view.revision + 1), [Appended(batch, BIRTH, self.now_ns)])

    def plan(self, retention: Retention = sealing.KEEP_ALL, *, mergeable: int = 64) -> SealPlan | None:
        return plan_seal(self.view, retention, mergeable=mergeable, now_ns=self.now_ns)

    def carry_out(self, plan: SealPlan) -> None:
        infos = []
        for outcome in plan.outcomes:
            if isinstance(outcome, Keep):
                entry = outcome.entry
                infos.append(SegmentInfo(entry.size, entry.stored, 1, self.now_ns, self.now_ns, entry.body))
            else:
                self.written += outcome.size
                oldest = min((entry.info.oldest_ns for entry in plan.replaced), default=self.now_ns)
                infos.append(
                    SegmentInfo(outcome.size, outcome.size + 48, outcome.messages, oldest, self.now_ns)
                )
        sealed = Sealed(plan.start, plan.first_message, infos)
        self.view.apply(Revision(self.view.revision + 1), [sealed])

    def seal(self, retention: Retention = sealing.KEEP_ALL) -> int:
        """Seal to the end; return in how many steps."""
        steps = 0
        while (plan := self.plan(retention)) is not None:
            self.carry_out(plan)
            steps += 1
        return steps


def entries_of(plan: SealPlan) -> list[Entry]:
    return [
        entry
        for outcome in plan.outcomes
        for entry in (outcome.entries if isinstance(outcome, Merge) else [outcome.entry])
    ]


def random_log(draw: random.Random) -> Log:
    log = Log()
    writers, larges = draw.choice((1, 3, 200)), draw.choice((0.0, 0.02, 0.5, 1.0))
    sizes = draw.choice(((1,), (0, 10, 100), (50, 5_000, 200_000)))
    for _ in range(draw.choice((1, 50, 3_000))):
        if draw.random() < larges:
            size = draw.choice((LARGE_BYTES, SEGMENT_BYTES, 5 * SEGMENT_BYTES))
            log.append(size, session=draw.randrange(writers), large=True)
        else:
            log.append(draw.choice(sizes), session=draw.randrange(writers), messages=draw.choice((1, 7)))
    return log


def test_any_tail_is_sealed_to_its_end_in_steps_that_etcd_takes() -> None:
    """Invariants 1, 2 and 3 of sealing."""
    seen = Counter[str]()
    for seed in range(60):
        draw = random.Random(seed)
        log = random_log(draw)
        end, messages, stored = log.view.end, log.view.messages, log.view.stored
        while log.view.entries:
            plan = log.plan()
            assert plan is not None
            tail, sealed = list(log.view.entries), list(log.view.sealed)
            covered: list[Entry] = [*plan.replaced, *plan.batches]
            assert entries_of(plan) == covered
            assert list(plan.batches) == tail[: len(plan.batches)] != []
            assert list(plan.replaced) == sealed[len(sealed) - len(plan.replaced) :]
            assert (plan.start, plan.end) == (covered[0].start, covered[-1].end)
            assert (plan.first_message, plan.end_message) == (
                covered[0].first_message,
                covered[-1].end_message,
            )
            merges = [outcome for outcome in plan.outcomes if isinstance(outcome, Merge)]
            keeps = [outcome for outcome in plan.outcomes if isinstance(outcome, Keep)]
            through = plan.sealed_through()
            # Segment, page, head, mark, last; the deletions of what is merged, and of each writer's batches.
            assert len(merges) <= 1
            assert len(plan.replaced) <= STEP_MERGED
            assert len(through) <= STEP_WRITERS
            assert 1 + 4 + STEP_MERGED + STEP_WRITERS <= 128
            assert len(keeps) <= STEP_LARGE
            assert len(plan.batches) <= STEP_BATCHES
            for merge in merges:  # a segment above the limit has nothing in it that could be left out
                assert merge.size <= SEGMENT_BYTES or len(merge.entries) == 1
            for session, sequence in through.items():
                left = [
                    entry.key.sequence for entry in tail[len(plan.batches) :] if entry.key.session == session
                ]
                assert min(left, default=sequence + 1) > sequence
            log.carry_out(plan)
            seen["merged with segments"] += bool(plan.replaced)
            seen["kept"] += len(keeps)
            seen["more writers than a step takes"] += len(through) == STEP_WRITERS
            seen["steps"] += 1
        assert (log.view.end, log.view.messages) == (end, messages), "offsets do not move"
        assert log.view.stored <= stored + 48 * len(log.view.sealed)
    assert seen["steps"] > 500
    assert min(seen.values()) > 20, seen


def small_segments(log: Log) -> int:
    return sum(entry.size < SEGMENT_BYTES // 2 for entry in log.view.sealed)


@pytest.mark.parametrize("size", [10, 100])
def test_a_topic_that_is_sealed_after_each_line_has_few_small_segments(size: int) -> None:
    """The rule of the binary counter: about log2 small segments, and each byte is written log2 times."""
    log, lines = Log(), 100_000
    most = 0
    for _ in range(lines):
        log.append(size)
        assert log.seal() == 1
        most = max(most, small_segments(log))
    doublings = math.log2(min(SEGMENT_BYTES, lines * size) / size)
    assert 5 < most <= doublings + 1
    assert len(log.view.sealed) <= most + 2 * lines * size / SEGMENT_BYTES + 1
    assert log.written <= lines * size * (doublings + 1)


def test_segments_are_few_however_lines_come() -> None:
    """What cannot be merged any more, since both would be too large, is half full in the mean."""
    for seed in range(20):
        draw, log = random.Random(seed), Log()
        sizes = draw.choice(((1, 10), (10, 1_000, 100_000), (5,)))
        together = draw.choice((1, 5, 50))
        for _ in range(1_000):
            for _ in range(draw.randrange(1, together + 1)):
                log.append(draw.choice(sizes))
            log.seal()
        assert len(log.view.sealed) <= 22 + 2 * log.view.end / SEGMENT_BYTES


def test_large_batches_are_not_written_again() -> None:
    log = Log()
    for _ in range(50):
        log.append(SEGMENT_BYTES, large=True)
    assert log.seal() == 1
    assert log.written == 0
    assert [entry.body is not None for entry in log.view.sealed] == [True] * 50


def test_what_is_not_in_the_head_is_not_merged() -> None:
    log = Log()
    for _ in range(8):
        log.append(100)
        plan = log.plan(mergeable=0)
        assert plan is not None
        log.carry_out(plan)
    log.append(100_000)
    plan = log.plan(mergeable=3)
    assert plan is not None
    assert [entry.start for entry in plan.replaced] == [500, 600, 700]


@pytest.mark.parametrize(
    "retention",
    [
        Retention(bytes=100_000),
        Retention(messages=80),
        Retention(age_ns=100 * SECOND_NS),
        Retention(bytes=60_000, messages=500),
        Retention(bytes=0),
        Retention(messages=1),
    ],
)
def test_retention_keeps_what_it_shall_and_little_more(retention: Retention) -> None:
    """Invariant 4 of sealing, and segments are small where retention keeps little."""
    draw, log = random.Random(1), Log()
    removed = 0
    for _ in range(3_000):
        log.now_ns += SECOND_NS // 2
        log.append(draw.choice((10, 500, 3_000)))
        log.seal(retention)
        old = plan_trim(log.view, retention, now_ns=log.now_ns)
        assert list(old) == list(log.view.sealed[: len(old)])
        if not old:
            continue
        removed += len(old)
        behind = old[-1]
        log.view.apply(Revision(log.view.revision + 1), [Trimmed(behind.end, behind.end_message)])
        _must_keep(log, retention, behind.info)
        assert plan_trim(log.view, retention, now_ns=log.now_ns) == []
    assert removed > 5
    kept = log.view.end - log.view.first
    if retention.bytes is not None:
        assert kept <= retention.bytes + max(retention.bytes // 8, 4 << 10) + 3_000
    if retention.messages is not None:
        assert log.view.messages - log.view.first_message <= 1.2 * retention.messages + 1
    if retention.age_ns is not None:
        assert log.now_ns - log.view.sealed[0].info.oldest_ns <= 1.2 * retention.age_ns


@pytest.mark.parametrize("retention", [Retention(messages=5), Retention(bytes=1_000)])
def test_what_retention_removes_at_once_is_sealed_in_few_steps(retention: Retention) -> None:
    """Each step reads the whole tail: a step for each of many batches would never catch up."""
    log = Log()
    for _ in range(1_900):
        log.append(100)
    assert log.seal(retention) <= 15
    assert len(plan_trim(log.view, retention, now_ns=log.now_ns)) >= 1
    kept = log.view.sealed[len(plan_trim(log.view, retention, now_ns=log.now_ns)) :]
    assert 5 <= sum(entry.info.messages for entry in kept) <= 55


def _must_keep(log: Log, retention: Retention, trimmed: SegmentInfo) -> None:
    kept, messages = log.view.end - log.view.first, log.view.messages - log.view.first_message
    reasons: Sequence[bool] = (
        retention.bytes is not None and kept >= retention.bytes,
        retention.messages is not None and messages >= retention.messages,
        retention.age_ns is not None and trimmed.newest_ns < log.now_ns - retention.age_ns,
    )
    assert any(reasons), f"{kept} bytes, {messages} messages are left"


def test_without_retention_nothing_is_trimmed() -> None:
    log = Log()
    for _ in range(100):
        log.append(100_000)
        log.seal()
    assert plan_trim(log.view, sealing.KEEP_ALL, now_ns=10**30) == []


def test_the_tail_is_never_trimmed() -> None:
    log = Log()
    log.append(100)
    assert plan_trim(log.view, Retention(bytes=0), now_ns=0) == []
    assert log.view.locate(Offset(0), 1) == list(log.view.entries)


def test_the_older_half_moves_when_the_head_is_full() -> None:
    info = SegmentInfo(1, 1, 1, 0, 0)
    assert sealing.spill([info] * sealing.HEAD_SEGMENTS) == 0
    for more in (1, 200):
        moved = sealing.spill([info] * (sealing.HEAD_SEGMENTS + more))
        assert moved == sealing.HEAD_SEGMENTS // 2 + more
