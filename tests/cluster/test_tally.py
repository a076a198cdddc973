"""The figures of a siege are those of its history."""

import pytest

from tests.cluster.history import History, Write
from tests.cluster.judge_groups import GroupsVerdict
from tests.cluster.tally import Strike, Tally
from tests.support.messages import Outcome

SECOND = 10**9


def pushes(mount: str, *moments: float) -> list[Write]:
    """Return pushes of two messages each that ended then, seconds."""
    return [
        Write(
            client="w",
            mount=f"/{mount}/mnt",
            began=int(moment * SECOND) - 1,
            ended=int(moment * SECOND),
            ino=1,
            writer="w",
            first=2 * number,
            count=2,
        )
        for number, moment in enumerate(moments)
    ]


def tallied(*calls: Write, strikes: tuple[Strike, ...] = ()) -> Tally:
    tally = Tally(seed=7)
    tally.add(History(list(calls)), GroupsVerdict(), strikes)
    return tally


def test_operations_and_messages_are_counted_by_outcome() -> None:
    failed, short = pushes("m1", 1, 2)
    failed.outcome = Outcome.UNKNOWN
    short.whole = 1
    tally = tallied(failed, short, *pushes("m2", 3))
    assert tally.operations == {("write", Outcome.UNKNOWN): 1, ("write", Outcome.OK): 2}
    assert tally.acknowledged == 3


@pytest.mark.parametrize(
    ("struck", "expected"),
    [
        (set(), 6.0),
        ({"m2"}, 4.0),
    ],
)
def test_the_longest_gap_is_that_of_mounts_that_were_not_struck(struck: set[str], expected: float) -> None:
    """It counts from the push before the fault, and ends when all push again."""
    strike = Strike(("leader killed",), struck, 10 * SECOND, 13 * SECOND, 16 * SECOND)
    calls = [*pushes("m1", 1, 9, 13, 16, 30), *pushes("m2", 10, 16, 60)]
    tally = tallied(*calls, strikes=(strike,))
    effect = tally.effects["leader killed"]
    assert effect.gap_s == pytest.approx(expected, abs=1e-6)
    assert (effect.times, effect.lasted_s, effect.live_s) == (1, 3.0, 3.0)


def test_mixes_are_counted_by_their_size() -> None:
    strike = Strike(("loss", "delay"), set(), 0, 1, 2)
    assert list(tallied(strikes=(strike, strike)).effects) == ["2 at once"]


def test_the_tables_have_all_figures_in_both_forms() -> None:
    tally = tallied(*pushes("m1", 1), strikes=(Strike(("delay",), set(), 0, 1, 2),))
    tally.anomalies.append("round 0: something")
    assert "| messages acknowledged | 2 |" in tally.markdown()
    assert "| anomalies | 1 |" in tally.markdown()
    for word in ("seed", "write", "delay"):
        assert word in tally.text()
        assert f"| {word} |" in tally.markdown()
