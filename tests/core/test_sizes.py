"""Sizes known without a watch, against a model topic that several hosts append to and reset."""

import random

import pytest

from dnpipefs.core.names import NO_GENERATION, FileId, Offset, Revision
from dnpipefs.core.sizes import FORGOTTEN_LIMIT, FRESH_S, WANTED_S, KnownSize, KnownSizes

TOPIC = FileId(7)


class Topic:
    """The truth."""

    def __init__(self) -> None:
        self.revision = self.newest = self.generation = 1
        self.end = self.messages = 0

    def append(self, size: int) -> tuple[Revision, Revision]:
        previous, self.revision = self.newest, self.revision + 1
        self.newest = self.revision
        self.end += size
        self.messages += 1
        return Revision(previous), Revision(self.newest)

    def reset(self) -> None:
        self.revision += 1
        self.newest = self.generation = self.revision
        self.end = self.messages = 0

    def known(self, now: float) -> KnownSize:
        return KnownSize(
            Offset(self.end),
            self.messages,
            0,
            Revision(self.generation),
            Revision(self.newest),
            now,
            now,
            now,
        )


def check(topic: Topic, found: KnownSize | None) -> None:
    assert found is None or (found.end, found.messages) == (topic.end, topic.messages)


@pytest.mark.parametrize("seed", range(50))
def test_invariant_1_a_size_was_true_when_it_was_confirmed(seed: int) -> None:
    dice = random.Random(seed)
    topic, sizes = Topic(), KnownSizes(10)
    now, answers = 0.0, 0
    for _ in range(400):
        now += 1
        match dice.choice(
            ["ours", "ours", "ours", "unasked", "theirs", "reset", "snapshot", "confirm", "look", "forget"]
        ):
            case "ours":
                size = dice.randrange(1, 100)
                previous, revision = topic.append(size)
                sizes.appended(
                    TOPIC,
                    previous=previous,
                    revision=revision,
                    size=size,
                    stored=0,
                    messages=1,
                    time_ns=0,
                    sent_at=now,
                    now=now,
                )
                found = sizes.fresh(TOPIC, now)
                check(topic, found)
                answers += found is not None
            case "unasked":
                _, revision = topic.append(1)
                sizes.appended(
                    TOPIC,
                    previous=None,
                    revision=revision,
                    size=1,
                    stored=0,
                    messages=1,
                    time_ns=0,
                    sent_at=0,
                    now=now,
                )
                assert sizes.ask(TOPIC, now) is None
            case "theirs":
                topic.append(dice.randrange(1, 100))
            case "reset":
                topic.reset()
            case "snapshot":
                sizes.learned(TOPIC, topic.known(now))
            case "confirm":
                if sizes.confirmed(TOPIC, Revision(topic.newest), Revision(topic.generation), now):
                    check(topic, sizes.fresh(TOPIC, now))
                else:
                    assert sizes.ask(TOPIC, now) is None
            case "look":
                if sizes.unchanged(TOPIC, Revision(topic.newest), now):
                    check(topic, sizes.fresh(TOPIC, now))
            case "forget":
                sizes.forget(TOPIC, now)
    assert answers > 5


def test_an_append_on_top_of_somebody_elses_ends_the_knowledge() -> None:
    topic, sizes = Topic(), KnownSizes(10)
    sizes.learned(TOPIC, topic.known(0))
    topic.append(5)
    previous, revision = topic.append(6)
    sizes.appended(
        TOPIC, previous=previous, revision=revision, size=6, stored=0, messages=1, time_ns=0, sent_at=0, now=0
    )
    assert sizes.ask(TOPIC, 0) is None


def test_an_append_is_as_of_when_it_was_sent() -> None:
    topic, sizes = Topic(), KnownSizes(10)
    sizes.learned(TOPIC, topic.known(0))
    previous, revision = topic.append(6)
    sizes.appended(
        TOPIC, previous=previous, revision=revision, size=6, stored=0, messages=1, time_ns=0, sent_at=2, now=9
    )
    assert sizes.since(TOPIC, 2, 9) is not None
    assert sizes.since(TOPIC, 2.5, 9) is None, "what another host pushed then may be missing"
    assert sizes.fresh(TOPIC, 9) is not None


def test_a_size_is_fresh_for_a_while_and_wanted_for_another() -> None:
    topic, sizes = Topic(), KnownSizes(10)
    sizes.learned(TOPIC, topic.known(0))
    assert sizes.fresh(TOPIC, FRESH_S) is not None
    assert sizes.fresh(TOPIC, FRESH_S * 1.1) is None
    assert sizes.ask(TOPIC, 5) is not None
    assert sizes.wanted(TOPIC, 5 + WANTED_S)
    assert not sizes.wanted(TOPIC, 5 + WANTED_S * 1.1)


def test_invariant_2_the_topic_asked_for_longest_ago_goes_first() -> None:
    topic, sizes = Topic(), KnownSizes(2)
    for number in (1, 2):
        sizes.learned(FileId(number), topic.known(0))
    sizes.ask(FileId(1), 1)
    sizes.learned(FileId(3), topic.known(2))
    assert len(sizes) == 2
    assert sizes.ask(FileId(2), 3) is None
    assert sizes.ask(FileId(1), 3) is not None


def test_invariant_3_a_snapshot_under_way_does_not_bring_back_what_was_forgotten() -> None:
    topic, sizes = Topic(), KnownSizes(10)
    under_way = topic.known(1)
    sizes.forget(TOPIC, 2)
    sizes.learned(TOPIC, under_way)
    assert sizes.ask(TOPIC, 2) is None
    sizes.learned(TOPIC, topic.known(3))
    assert sizes.ask(TOPIC, 3) is not None


def test_invariant_3_holds_for_more_topics_than_are_remembered_one_by_one() -> None:
    topic, sizes = Topic(), KnownSizes(10)
    under_way = topic.known(1)
    sizes.forget(TOPIC, 2)
    for number in range(FORGOTTEN_LIMIT):
        sizes.forget(FileId(1000 + number), 3)
    sizes.learned(TOPIC, under_way)
    assert sizes.ask(TOPIC, 3) is None
    sizes.learned(TOPIC, topic.known(4))
    assert sizes.ask(TOPIC, 4) is not None


def test_a_topic_without_a_generation_is_not_known_by_what_changed_it_last() -> None:
    topic, sizes = Topic(), KnownSizes(10)
    topic.generation = NO_GENERATION
    sizes.learned(TOPIC, topic.known(1))
    assert not sizes.unchanged(TOPIC, Revision(topic.newest), 2)
