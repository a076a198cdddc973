"""What a worker has written down is read as what it had; the killer's plans are what they should be."""

from itertools import pairwise

import pytest

from tests.support.group_checker import Ending, Reader, Refusal, Taken
from tests.support.killer import WORKERS, Action, Plan
from tests.support.workers import GRACE_NS, read_history

LATE = 10 * GRACE_NS


def told(history: bytes, *, status: int = 0, killed_at: int | None = None) -> list[Reader]:
    readers, _ = read_history(history, "w1", "host0", status=status, killed_at=killed_at)
    return readers


def reader(*taken: Taken, ending: Ending, ended: int) -> Reader:
    return Reader("w1", "host0", list(taken), ending, ended)


def test_one_open_that_ends_well() -> None:
    assert told(b"O 1 \nG 2 a 0\nD 3 \nG 4 b\nD 5 \nX 6 0\n") == [
        reader(Taken(b"a 0\n", 2, 3), Taken(b"b\n", 4, 5), ending=Ending.WELL, ended=6)
    ]


def test_a_failure_in_the_middle_of_a_message() -> None:
    history = b"O 1 \nG 2 a\nX 3 3\n"
    assert told(history, status=3) == [reader(Taken(b"a\n", 2), ending=Ending.FAILED, ended=3)]
    assert told(history, status=3, killed_at=4) == told(history, status=3), "the signal came too late"


@pytest.mark.parametrize("torn", [b"", b"D", b"D 3", b"G 3 half of"])
def test_a_killed_worker_ended_when_the_signal_was_sent(torn: bytes) -> None:
    assert told(b"O 1 \nG 2 a\n" + torn, status=-9, killed_at=7) == [
        reader(Taken(b"a\n", 2), ending=Ending.KILLED, ended=7)
    ]


def test_a_worker_that_nobody_has_killed_is_a_fault_of_the_test() -> None:
    with pytest.raises(AssertionError, match="somebody else"):
        told(b"O 1 \n", status=-11)


def test_a_bad_end_right_after_a_close_undoes_it() -> None:
    history = b"O 1 \nG 2 a\nD 3 \nC 4 \n"
    taken = Taken(b"a\n", 2, 3)
    assert told(history, status=-9, killed_at=6) == [reader(taken, ending=Ending.KILLED, ended=6)]
    assert told(history, status=-9, killed_at=LATE) == [reader(taken, ending=Ending.WELL, ended=4)]
    first, second = told(history + b"O 5 \n", status=-9, killed_at=6)
    assert (first.ending, second.ending) == (Ending.WELL, Ending.KILLED), "it has opened again"


def test_a_pipe_that_is_cut_is_no_message() -> None:
    def lines(killed_at: int) -> list[bytes]:
        readers, _ = read_history(
            b"G 1 a\nD 2 \nC 3 \nG 8 torn b''\n",
            "w1",
            "w1",
            status=130,
            killed_at=killed_at,
            by_pipe=True,
        )
        return [taken.line for reader in readers for taken in reader.taken]

    assert lines(killed_at=7) == [b"a\n"]
    assert lines(killed_at=9) == [b"a\n", b"torn b''\n"]


def test_a_close_counts_when_the_next_open_has_brought_a_message() -> None:
    first, second = told(b"O 1 \nG 2 a\nD 3 \nC 4 \nO 5 \nG 6 b\nX 7 3\n", status=3)
    assert (first.ending, second.ending) == (Ending.WELL, Ending.FAILED)


def test_commands_are_each_by_themselves() -> None:
    failed, done = told(b"G 1 a\nF 2 \nG 3 b\nD 4 \nC 5 \n", status=130, killed_at=LATE)
    assert (failed.ending, done.ending) == (Ending.FAILED, Ending.WELL)


def test_errors_are_told() -> None:
    assert read_history(
        b"O 11 \nE 12 107\nX 13 4\n", "w1", "host0", status=4, killed_at=None, ahead_ns=10
    ) == (
        [reader(ending=Ending.FAILED, ended=3)],
        [Refusal("w1", "host0", 107, 2)],
    )


@pytest.mark.parametrize("seed", range(30))
def test_a_plan_comes_from_its_seed_and_harms_every_kind_of_thing(seed: int) -> None:
    plan = Plan.of(seed, 10.0, 3)
    assert plan == Plan.of(seed, 10.0, 3)
    assert plan != Plan.of(seed + 1, 10.0, 3)
    actions = {event.action for event in plan.events}
    assert {Action.KILL_HOST, Action.FREEZE} <= actions
    assert actions & {Action.KILL_WORKER, Action.TERMINATE_WORKER}
    assert all(event.at > 0 and event.at + event.lasts <= 10.0 for event in plan.events)
    assert all(event.slot < WORKERS for event in plan.events)
    for host in range(3):
        times = [(event.at, event.at + event.lasts) for event in plan.events if event.host == host]
        long = [(began, ended) for began, ended in times if began != ended]
        assert all(ended < began for (_, ended), (began, _) in pairwise(long)), "one thing at a time"
