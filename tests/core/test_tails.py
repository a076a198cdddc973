"""Which topics are due: a random life against the table in the module's docstring, told once more."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from dnpipefs.core.names import FileId
from dnpipefs.core.tails import LOOK_BATCHES, LOOK_BYTES, Due, Tails

ONE, TWO = FileId(1), FileId(2)
IDLE_S = 2.0


@pytest.fixture(autouse=True)
def round_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the times below be easy to read."""
    monkeypatch.setattr("dnpipefs.core.tails.IDLE_S", IDLE_S)


def test_a_topic_is_due_when_it_is_idle_and_then_not_again() -> None:
    """Invariant 1 of tails."""
    tails = Tails(10)
    tails.appended(ONE, 5, now=100.0)
    tails.noticed(TWO, now=101.0)
    assert tails.take_due(100.0 + IDLE_S - 0.01) == []
    assert tails.take_due(100.0 + IDLE_S) == [Due(ONE, idle=True)]
    assert tails.take_due(101.0 + IDLE_S) == [Due(TWO, idle=True)]
    assert tails.take_due(1000.0) == []
    tails.settled(ONE)
    assert len(tails) == 1


@pytest.mark.parametrize(("size", "times"), [(1, LOOK_BATCHES), (LOOK_BYTES, 1), (LOOK_BYTES // 4, 4)])
def test_much_is_due_at_once_and_once_more_when_it_is_idle(size: int, times: int) -> None:
    """Invariant 1 of tails: the first look may have found it not long enough to be sealed."""
    tails = Tails(10)
    for number in range(times):
        assert tails.take_due(100.0) == []
        tails.appended(ONE, size, now=100.0 + number / 1000)
    assert tails.take_due(101.0) == [Due(ONE, idle=False, heavy=size > 1)]
    assert tails.take_due(101.1) == []
    assert tails.take_due(103.0) == [Due(ONE, idle=True)]
    assert tails.take_due(110.0) == []


def test_what_comes_meanwhile_keeps_a_topic() -> None:
    tails = Tails(10)
    tails.appended(ONE, 5, now=100.0)
    assert tails.take_due(102.0) == [Due(ONE, idle=True)]
    tails.appended(ONE, 5, now=102.1)
    tails.settled(ONE)  # of what was there before
    assert tails.take_due(104.2) == [Due(ONE, idle=True)]
    tails.settled(ONE)
    assert len(tails) == 0


def test_again_is_at_its_time_and_says_whether_the_topic_is_idle() -> None:
    tails = Tails(10)
    tails.appended(ONE, LOOK_BYTES, now=100.0)
    assert tails.take_due(100.0) == [Due(ONE, idle=False, heavy=True)]
    tails.again(ONE, 103.0)
    tails.appended(ONE, 1, now=101.5)
    assert tails.take_due(102.9) == []
    assert tails.take_due(103.0) == [Due(ONE, idle=False)]
    assert tails.take_due(103.5) == [Due(ONE, idle=True)]
    tails.again(ONE, 106.5)
    assert tails.take_due(106.4) == []
    assert tails.take_due(106.5) == [Due(ONE, idle=True)]
    tails.settled(ONE)
    tails.again(ONE, 107.0)  # it is gone
    assert tails.take_due(200.0) == []


def test_what_is_waited_for_is_told_once_and_goes_with_its_topic() -> None:
    """Invariant 2 of tails: nothing is remembered of a topic besides."""
    tails = Tails(2)
    tails.appended(ONE, LOOK_BYTES, now=100.0)
    assert tails.take_due(100.0) == [Due(ONE, idle=False, heavy=True)]
    tails.again(ONE, 101.0, waiting=True, heavy=True)
    assert tails.take_due(101.0) == [Due(ONE, idle=False, heavy=True, waited=True)]
    tails.again(ONE, 102.0)
    assert tails.take_due(102.0) == [Due(ONE, idle=True)]
    tails.again(ONE, 110.0, waiting=True, heavy=True)
    tails.appended(ONE, 1, now=103.0)
    assert tails.take_due(105.0) == [Due(ONE, idle=True, heavy=True, waited=True)], "though it is earlier"
    for way_out in ("deleted", "forgotten for others"):
        tails.again(ONE, 120.0, waiting=True)
        if way_out == "deleted":
            tails.forget(ONE)
        else:
            tails.noticed(TWO, now=106.0)
            tails.noticed(FileId(3), now=106.0)
        tails.appended(ONE, 1, now=106.0)
        assert tails.take_due(108.0)[-1] == Due(ONE, idle=True)


def test_the_topic_touched_longest_ago_goes_first() -> None:
    """Invariant 2 of tails."""
    tails = Tails(3)
    for topic in (1, 2, 3):
        tails.appended(FileId(topic), LOOK_BYTES, now=float(topic))
    tails.noticed(ONE, now=4.0)
    tails.appended(FileId(9), 1, now=5.0)
    assert len(tails) == 3
    assert {due.topic for due in tails.take_due(5.0)} == {1, 3}  # 2 was full, too


def test_nothing_that_was_appended_is_lost_sight_of() -> None:
    """Invariant 1 of tails, in 100 random lives: the last look at a topic is one at an idle topic."""
    seen = Counter[str]()
    for seed in range(100):
        draw = random.Random(seed)
        tails, now = Tails(1000), 100.0
        open_since: dict[FileId, float] = {}
        """Topics with something appended that no look at an idle topic has found since, and when it came."""
        unsettled: set[FileId] = set()
        for _ in range(400):
            now += draw.choice((0.0, 0.1, 0.3, 1.0))
            topic = FileId(draw.randrange(6))
            chance = draw.random()
            if chance < 0.6:
                size = draw.choice((0, 10, LOOK_BYTES // 3, LOOK_BYTES))
                for _ in range(draw.choice((1, 1, LOOK_BATCHES // 2))):
                    tails.appended(topic, size, now)
                open_since[topic] = now
            elif chance < 0.65:
                tails.forget(topic)
                open_since.pop(topic, None)
                unsettled.discard(topic)
            elif chance < 0.7 and topic in unsettled:
                tails.settled(topic)
                unsettled.discard(topic)
            elif chance < 0.75:
                tails.again(topic, now + draw.choice((0.5, 3.0)))
            due = tails.take_due(now)
            assert len({one.topic for one in due}) == len(due)
            for one in due:
                seen["idle" if one.idle else "full"] += 1
                if one.idle:
                    assert now - open_since.get(one.topic, 0.0) >= IDLE_S
                    open_since.pop(one.topic, None)
                    unsettled.add(one.topic)
            for topic, came in open_since.items():
                assert now - came < IDLE_S, f"topic {topic} is idle for {now - came:g} s and not due"
    assert min(seen["idle"], seen["full"]) > 500, seen
