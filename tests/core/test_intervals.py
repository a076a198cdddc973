"""Stretches against a dictionary that says of each number how often it was delivered."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.core.intervals import Stretch, Stretches

END = 40

Naive = dict[int, int]

naives = st.lists(st.none() | st.integers(0, 2), max_size=END).map(
    lambda cells: {number: count for number, count in enumerate(cells) if count is not None}
)
bounds = st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda pair: (min(pair), max(pair)))


def of(naive: Naive) -> Stretches:
    """Build it of stretches of one message each."""
    return Stretches(Stretch(at, at + 1, count) for at, count in naive.items())


def cells(stretches: Iterable[Stretch]) -> Naive:
    return {at: deliveries for start, end, deliveries in stretches for at in range(start, end)}


@given(naives)
def test_it_holds_what_it_was_given_in_as_few_stretches_as_can_be(naive: Naive) -> None:
    stretches = of(naive)
    assert cells(stretches) == naive
    assert stretches.size == len(naive)
    borders = sum(1 for at, count in naive.items() if naive.get(at - 1) != count)
    assert len(stretches) == borders
    assert list(stretches) == sorted(stretches)


@given(naives, st.randoms(use_true_random=False))
def test_the_order_in_which_it_was_given_does_not_matter(
    naive: Naive,
    draw: "object",
) -> None:
    items = list(of(naive))
    draw.shuffle(items)  # type: ignore[attr-defined]
    assert Stretches(items) == of(naive)


@given(naives, bounds)
def test_within_and_covers(naive: Naive, interval: tuple[int, int]) -> None:
    start, end = interval
    stretches = of(naive)
    found = stretches.within(start, end)
    assert cells(found) == {at: count for at, count in naive.items() if start <= at < end}
    assert all(cut.start < cut.end for cut in found)
    assert stretches.covers(start, end) == all(at in naive for at in range(start, end))


@given(naives, st.lists(bounds, max_size=6))
def test_without_takes_out_wherever_it_lies(naive: Naive, gaps: list[tuple[int, int]]) -> None:
    """Gaps may overlap one another, be empty, and reach beyond what there is."""
    left = of(naive).without(gaps)
    assert left == of({at: n for at, n in naive.items() if not any(a <= at < b for a, b in gaps)})


@given(naives, naives)
def test_added_is_the_union_and_refuses_what_overlaps(one: Naive, other: Naive) -> None:
    if one.keys() & other.keys():
        with pytest.raises(ValueError, match="overlaps"):
            of(one).added(of(other))
    else:
        assert of(one).added(of(other)) == of(one | other)


@pytest.mark.parametrize("end", [5, 4])
def test_an_empty_stretch_is_refused(end: int) -> None:
    with pytest.raises(ValueError, match="empty"):
        Stretches([Stretch(5, end, 0)])
