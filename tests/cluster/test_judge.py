"""The judge finds each planted anomaly and names it, and nothing where nothing is wrong."""

import errno
import itertools
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cluster.history import (
    Call,
    Create,
    Delete,
    Died,
    Final,
    Hear,
    History,
    HistoryWriter,
    Listing,
    Nemesis,
    Open,
    Read,
    Rename,
    Truncate,
    Write,
    read_history,
)
from tests.cluster.judge import Anomaly, Kind, Limits, judge
from tests.cluster.judge_names import FULL
from tests.cluster.model import LAG, Model, Sizes
from tests.support.messages import Outcome, message
from tests.support.topic_log import NEVER

SECOND = 1_000_000_000
LIMITS = Limits(op_timeout=30.0, name_lag=LAG / 1000)
LAG_MS = int(LAG)
OPERATIONS = int(os.environ.get("DNPIPEFS_TEST_CLUSTER_OPERATIONS", "30000"))
PER_MINUTE = 500_000
SEEDS = 2
FAULTS = {
    "lose": {Kind.LOST},
    "double": {Kind.DOUBLED},
    "double unknown": {Kind.DOUBLED},
    "tear": {Kind.TORN},
    "reorder": {Kind.REORDERED},
    "mix batch": {Kind.REORDERED},
    "diverge": {Kind.DIVERGING},
    "apply failed": {Kind.PHANTOM},
    "stale open": {Kind.STALE, Kind.NON_MONOTONIC},
    "stale end": {Kind.STALE, Kind.NON_MONOTONIC},
    "survive": {Kind.RESURRECTED},
    "resurrect": {Kind.RESURRECTED},
    "reset twice": {Kind.LOST, Kind.STALE, Kind.NON_MONOTONIC},
    "accept deleted": {Kind.DELETED},
    "early": {Kind.EARLY},
    "skip": {Kind.LOST},
    "repeat": {Kind.DOUBLED},
    "swap": {Kind.REORDERED},
    "dry": {Kind.LOST},
    "stale name": {Kind.STALE_NAME},
    "missing name": {Kind.MISSING_NAME},
    "hide": {Kind.MISSING_NAME},
    "show": {Kind.STALE_NAME},
}
"""What the model can do wrong, and what the judge is to call it."""


def kinds(anomalies: list[Anomaly]) -> set[Kind]:
    return {anomaly.kind for anomaly in anomalies}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1 << 32),
    unknown=st.sampled_from([1e-9, 0.03, 0.3]),
    resetters=st.sampled_from([0, 1, 2]),
    resetting=st.sampled_from([100.0, 800.0]),
    short_reads=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_right_histories_pass(
    seed: int, unknown: float, resetters: int, resetting: float, short_reads: float
) -> None:
    sizes = Sizes(
        until=2000, unknown=unknown, resetters=resetters, resetting=resetting, short_reads=short_reads
    )
    assert judge(Model(seed, sizes).run(), LIMITS) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str) -> None:
    planted = (model for seed in itertools.count() if (model := lived(seed, fault)).planted)
    for model in itertools.islice(planted, SEEDS):
        found = judge(History(model.calls), LIMITS)
        named = [a for a in found if a.kind in FAULTS[fault] and model.planted in a.text]
        assert named, (model.planted, found)
        assert len({a.text.split()[1] for a in found if a.text.startswith("topic ")}) <= 1, found


def lived(seed: int, fault: str) -> Model:
    model = Model(seed, fault=fault)
    model.run()
    return model


def test_a_judgement_needs_no_order_of_calls_and_survives_the_disk(tmp_path: Path) -> None:
    model = lived(3, "lose")
    history = History(model.calls)
    history.write(tmp_path)
    again = read_history(tmp_path)
    assert sorted(map(repr, again.calls)) == sorted(map(repr, history.calls))
    assert sorted(judge(again, LIMITS), key=str) == sorted(judge(history, LIMITS), key=str)
    assert Kind.LOST in kinds(judge(again, LIMITS))


def test_a_torn_last_line_and_calls_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer = HistoryWriter(path, "a", "m")
    first = writer.begin(Write, ino=1, writer="a", first=0, count=1)
    writer.end(first, errno.ESTALE)
    writer.begin(Write, ino=1, writer="a", first=1, count=1)
    third = writer.begin(Read, handle=1, ino=1, name="t", offset=0)
    writer.end(third, data=b"\xff\n" * 2000, sizes=[4000, 0], last_began=0)
    writer.close()
    with path.open("ab") as file:
        file.write(b'{"n":2,"t":17')
    failed, read, unknown = read_history(tmp_path).calls
    assert (failed.outcome, failed.errno) == (Outcome.FAILED, errno.ESTALE)
    assert isinstance(read, Read)
    assert (read.data, read.sizes) == (b"\xff\n" * 2000, (4000, 0))
    assert (unknown.outcome, unknown.ended) == (Outcome.UNKNOWN, NEVER)


# What the model does not do wrong, in the middle of a history in which nothing else is

TOPIC = 0x9000
AT = 2 * SECOND
OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN


@pytest.fixture(scope="module")
def rest() -> list[Call]:
    return Model(11).run().calls


def pushed(number: int, at: int, outcome: Outcome = OK, *, count: int = 1, whole: int = -1) -> Write:
    return Write(
        client="w",
        mount="m0",
        began=AT + at,
        ended=AT + at + 5,
        outcome=outcome,
        ino=TOPIC,
        writer="w",
        first=number,
        count=count,
        whole=whole,
    )


def reset(at: int, outcome: Outcome) -> Truncate:
    return Truncate(client="x", mount="m0", began=AT + at, ended=AT + at + 5, outcome=outcome, ino=TOPIC)


def read(numbers: list[int], at: int, *, opened_at: int | None = None, client: str = "r") -> list[Call]:
    """Open and read to the end."""
    data = b"".join(message("w", number) for number in numbers)
    began = AT + (at if opened_at is None else opened_at)
    return [
        Open(
            client=client,
            mount="m1",
            began=began,
            ended=began + 1,
            name="t",
            mode="read",
            handle=at,
            ino=TOPIC,
            size=len(data) if opened_at is None else 1000,
        ),
        Read(
            client=client,
            mount="m1",
            began=AT + at + 2,
            ended=AT + at + 4,
            handle=at,
            ino=TOPIC,
            name="t",
            offset=0,
            data=data,
            sizes=(len(data), 0),
            last_began=AT + at + 3,
        ),
    ]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([pushed(0, 0, UNKNOWN), *read([], 100), *read([0], 200)], set()),
        ([pushed(0, 0, UNKNOWN), *read([0], 100), *read([], 200)], {Kind.NON_MONOTONIC}),
        ([pushed(0, 0, FAILED), *read([0], 100)], {Kind.PHANTOM}),
        ([pushed(0, 100), *read([0], 0)], {Kind.PHANTOM}),
        ([pushed(0, 0, count=3, whole=1), *read([0], 100)], set()),
        ([pushed(0, 0, count=3, whole=1), *read([0, 1, 2], 100)], set()),
        ([pushed(0, 0, count=3, whole=2), *read([0], 100)], {Kind.LOST}),
        ([pushed(0, 0, count=3), *read([0, 2, 1], 100)], {Kind.REORDERED}),
        ([pushed(0, 0), pushed(1, 2), *read([0, 1], 100), *read([1, 0], 101, client="s")], {Kind.DIVERGING}),
        ([pushed(0, 0), pushed(1, 20), *read([1, 0], 100)], {Kind.REORDERED}),
        ([pushed(0, 0), reset(20, OK), *read([], 100)], set()),
        ([pushed(0, 0), reset(20, OK), *read([0], 100)], {Kind.RESURRECTED}),
        ([pushed(0, 0), reset(20, OK), *read([0], 100, opened_at=10)], set()),
        ([pushed(0, 0), reset(20, OK), pushed(1, 40), *read([0, 1], 100, opened_at=10)], {Kind.RESURRECTED}),
        ([pushed(0, 0), reset(20, OK), pushed(1, 40), *read([], 100)], {Kind.LOST}),
        ([pushed(0, 0), reset(20, FAILED), *read([], 100)], {Kind.LOST}),
        ([pushed(0, 0), *read([0], 10), reset(20, FAILED), *read([], 100)], {Kind.STALE}),
        ([pushed(0, 0), reset(20, UNKNOWN), *read([], 100)], set()),
        ([pushed(0, 0), reset(20, UNKNOWN), pushed(1, 40), pushed(2, 80), *read([2], 100)], set()),
        ([pushed(0, 0), reset(20, UNKNOWN), pushed(1, 40), pushed(2, 80), *read([0, 2], 100)], {Kind.LOST}),
        (
            [
                *(pushed(number, 20 * number) for number in range(6)),
                reset(1, UNKNOWN),
                *read([0, 1, 2, 3], 75),
                *read([0, 1], 78, client="s"),  # at 78 the generation lived that has 0 and 5
                *read([0, 1, 2, 3, 4, 5], 200),
            ],
            {Kind.STALE},
        ),
    ],
)
def test_small_stories(rest: list[Call], calls: list[Call], expected: set[Kind]) -> None:
    assert kinds(judge(History([*rest, *calls]), LIMITS)) == expected


def nemesis(what: str, began: int, ended: int, mount: str = "m1") -> Nemesis:
    return Nemesis(client="parent", mount=mount, began=began * SECOND, ended=ended * SECOND, what=what)


def heard(began: int, ended: int, *, waits: bool = False) -> Hear:
    return Hear(
        client="h", mount="m1", began=began * SECOND, ended=min(ended * SECOND, NEVER), handle=1, waits=waits
    )


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([heard(0, 34)], set()),
        ([heard(0, 36)], {Kind.HUNG}),
        ([heard(0, 36, waits=True)], set()),
        ([heard(0, NEVER), heard(36, 36)], {Kind.HUNG}),
        ([heard(0, NEVER), heard(30, 30)], set()),
        ([nemesis("pause", 5, 15), heard(0, 44)], set()),
        ([nemesis("pause", 5, 15), heard(0, 46)], {Kind.HUNG}),
        ([nemesis("pause", 5, 15, "m0"), heard(0, 44)], {Kind.HUNG}),
        ([nemesis("partition", 5, 15), heard(0, 44)], {Kind.HUNG}),
        ([replace(heard(0, 60), slowest=(5 * SECOND, 39 * SECOND))], set()),
        ([replace(heard(0, 60), slowest=(5 * SECOND, 41 * SECOND))], {Kind.HUNG}),
    ],
)
def test_calls_that_hang(calls: list[Call], expected: set[Kind]) -> None:
    found = judge(History(calls), LIMITS)
    assert kinds(found) == expected
    assert all("hear of h on m1" in anomaly.text for anomaly in found)


def long_write(writer: str, began: int, ended: int, *, ino: int = 1, mount: str = "m1") -> Write:
    return Write(
        client=writer,
        mount=mount,
        began=began * SECOND,
        ended=min(ended * SECOND, NEVER),
        outcome=Outcome.UNKNOWN,
        ino=ino,
        writer=writer,
        first=began,
        count=1,
    )


@pytest.mark.parametrize(
    ("others", "hung"),
    [
        ([], True),
        ([long_write("a", 0, 30)], False),
        ([long_write("a", 0, 30, ino=2)], True),
        ([long_write("a", 0, 30, mount="m2")], True),
        ([long_write("a", 0, 10)], True),
        ([long_write("a", 2, 30)], True),
        ([long_write("a", 0, 30), long_write("b", 30, 31)], False),
    ],
)
def test_a_write_counts_from_its_turn_among_the_writes_of_its_inode(others: list[Call], hung: bool) -> None:
    found = judge(History([*others, long_write("w", 1, 47)]), LIMITS)
    assert [anomaly.kind for anomaly in found] == [Kind.HUNG] * hung


@pytest.mark.parametrize(
    ("others", "hung"),
    [
        ([], True),
        ([(0, 30)], False),
        ([(20, 40)], False),
        ([(0, 8)], True),
        ([(29, 30)], True),
        ([(0, 50)], True),
    ],
)
def test_a_call_by_name_counts_from_its_turn_in_the_directory(
    others: list[tuple[int, int]], hung: bool
) -> None:
    def create(client: str, began: int, ended: int) -> Create:
        return Create(
            client=client,
            mount="m1",
            began=began * SECOND,
            ended=ended * SECOND,
            outcome=Outcome.UNKNOWN,
            name=client,
        )

    story = [create(f"other{number}", *times) for number, times in enumerate(others)]
    found = judge(History([*story, create("late", 1, 47)]), LIMITS)
    assert any("create of late" in anomaly.text for anomaly in found) == hung


def test_a_write_that_is_forgotten_is_found_though_others_go_on() -> None:
    others = [long_write("a", second, second + 1) for second in range(60)]
    [anomaly] = judge(History([*others, long_write("w", 1, NEVER)]), LIMITS)
    assert anomaly.kind is Kind.HUNG


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([], {Kind.DIED}),
        ([nemesis("kill", 5, 6)], set()),
        ([nemesis("stop", 5, 15)], set()),
        ([nemesis("kill", 5, 6, "m0")], {Kind.DIED}),
        ([nemesis("kill", 11, 12)], {Kind.DIED}),
        ([nemesis("pause", 5, 15)], {Kind.DIED}),
    ],
)
def test_daemons_that_die(calls: list[Call], expected: set[Kind]) -> None:
    died = Died(client="parent", mount="m1", began=10 * SECOND, ended=10 * SECOND, status=-6)
    assert kinds(judge(History([died, *calls]), LIMITS)) == expected


def test_a_mount_that_nobody_killed_and_is_dead() -> None:
    dead = replace(heard(8, 9), outcome=UNKNOWN, errno=errno.ENOTCONN)
    assert kinds(judge(History([dead]), LIMITS)) == {Kind.DIED}
    assert kinds(judge(History([nemesis("pause", 5, 6), dead]), LIMITS)) == {Kind.DIED}
    assert kinds(judge(History([nemesis("kill", 5, 6), dead]), LIMITS)) == set()


def final(outcome: Outcome = OK, round: int = 1) -> Final:  # noqa: A002
    return Final(
        client="parent",
        mount="",
        began=AT,
        ended=AT + 900,
        outcome=outcome,
        mounts=("m0", "m1"),
        names=("t",),
        round=round,
    )


def finally_read(mount: str, numbers: list[int]) -> list[Call]:
    calls = read(numbers, 100 if mount == "m0" else 200, client=f"final-{mount}")
    for call in calls:
        call.mount = mount
    assert isinstance(calls[1], Read)
    calls[1].round = 1
    return calls


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([*finally_read("m0", [0]), *finally_read("m1", [0]), final()], set()),
        ([*finally_read("m0", [0]), final()], {Kind.UNFINISHED}),
        ([*finally_read("m0", [0]), *finally_read("m1", [0]), final(round=2)], {Kind.UNFINISHED}),
        ([*finally_read("m0", [0]), *finally_read("m1", [0]), final(UNKNOWN)], {Kind.UNFINISHED}),
        ([*finally_read("m0", []), *finally_read("m1", [0]), final()], {Kind.DIVERGING}),
        ([*finally_read("m0", []), *finally_read("m1", []), pushed(1, 0), final()], {Kind.LOST}),
    ],
)
def test_final_reads(calls: list[Call], expected: set[Kind]) -> None:
    # Pushed late and given up: nobody has to see it, but all have to agree.
    assert kinds(judge(History([pushed(0, 0, UNKNOWN), *calls]), LIMITS)) == expected


def test_names_that_are_refused() -> None:
    def at(seconds: int) -> dict[str, Any]:
        return {"began": seconds * SECOND, "ended": seconds * SECOND + 1}

    made = Create(client="c", mount="m0", name="t", ino=TOPIC, **at(1))
    missing = Open(
        client="r", mount="m1", name="t", mode="write", outcome=FAILED, errno=errno.ENOENT, **at(2)
    )
    gone = Delete(client="c", mount="m0", name="t", ino=TOPIC, outcome=FAILED, errno=errno.ENOENT, **at(3))
    again = Create(client="c", mount="m0", name="u", outcome=FAILED, errno=errno.EEXIST, **at(4))
    assert kinds(judge(History([made]), LIMITS)) == set()
    assert kinds(judge(History([made, missing]), LIMITS)) == {Kind.MISSING_NAME}
    assert kinds(judge(History([made, gone]), LIMITS)) == {Kind.MISSING_NAME}
    assert kinds(judge(History([made, again]), LIMITS)) == {Kind.STALE_NAME}
    moved = Rename(client="c", mount="m0", name="t", target="u", ino=TOPIC, **at(2))
    late = Open(client="r", mount="m1", name="t", mode="write", ino=TOPIC, **at(9))
    assert kinds(judge(History([made, moved, late]), LIMITS)) == {Kind.STALE_NAME}
    assert kinds(judge(History([made, moved, late, nemesis("partition", 2, 9)]), LIMITS)) == set()
    assert kinds(judge(History([made, moved, late, nemesis("partition", 2, 9, "")]), LIMITS)) == set()
    assert kinds(judge(History([made, moved, late, nemesis("partition", 2, 9, "m0")]), LIMITS)) == {
        Kind.STALE_NAME
    }
    unmounted = nemesis("kill", 0, 3)
    assert kinds(judge(History([made, missing, unmounted]), LIMITS)) == set(), "there was no mount"


def test_a_removal_from_a_full_etcd_is_told_by_the_watch() -> None:
    def times(milliseconds: int) -> dict[str, Any]:
        return {"began": milliseconds * SECOND // 1000, "ended": milliseconds * SECOND // 1000 + 1}

    def listing(at: int, *names: str) -> Listing:
        return Listing(client="r", mount="m1", names=names, **times(at))

    made = Create(client="c", mount="m0", name="t", ino=TOPIC, **times(1_000))
    gone = Delete(client="c", mount="m0", name="t", ino=TOPIC, **times(2_000))
    full, full_before = nemesis(FULL, 1, 3, ""), nemesis(FULL, 0, 1, "")
    soon, late = listing(2_000 + LAG_MS - 10, "t"), listing(2_000 + LAG_MS + 10, "t")
    for calls, expected in (
        ([full, soon], set()),
        ([full, late], {Kind.STALE_NAME}),
        ([soon], {Kind.STALE_NAME}),
        ([full_before, soon], {Kind.STALE_NAME}),
        ([nemesis("full disk", 1, 3, ""), soon], {Kind.STALE_NAME}),
        ([full, listing(1_500)], {Kind.MISSING_NAME}),
    ):
        assert kinds(judge(History([made, gone, *calls]), LIMITS)) == expected, calls


def test_half_a_million_calls_in_a_minute(tmp_path: Path) -> None:
    """By the processor's time, since others use the machine, too; with the reading of the files."""
    sizes = Sizes(
        until=OPERATIONS / 2.3,
        writers=20,
        readers=4,
        followers=6,
        subscribers=6,
        unknown=0.01,
        reading=OPERATIONS / 100,
        following=100_000,
        resetting=OPERATIONS / 200,
        short_reads=0.0,
    )
    Model(1, sizes, fault="lose").run().write(tmp_path)
    began = time.process_time()
    history = read_history(tmp_path)
    read_in = time.process_time() - began
    found = judge(history, replace(LIMITS, op_timeout=1e9))
    took = time.process_time() - began
    print(f"{len(history.calls)} calls read in {read_in:.1f} s, judged in {took - read_in:.1f} s")
    assert len(history.calls) >= OPERATIONS
    assert kinds(found) == {Kind.LOST}
    assert took < 60 * max(0.5, len(history.calls) / PER_MINUTE)
