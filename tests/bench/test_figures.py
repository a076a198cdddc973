"""Figures from samples, without a clock."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.bench.figures import (
    Bar,
    Line,
    Quantity,
    Sample,
    Spread,
    Verdict,
    cpu_per_operation,
    evaluate,
    percentile,
    spread,
)

MS = 1_000_000
RATE = Line("pushes", Quantity.RATE, "ours", "raw", Bar(1.0, at_most=False))
finite = st.floats(min_value=0, max_value=1e9)


def rates(*operations: int) -> list[Sample]:
    return [Sample(count, 1.0) for count in operations]


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [
        ([7.0], 0.99, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0], 0.5, 1.5),
        (list(range(101)), 0.99, 99.0),
        ([1.0, 5.0], 0.0, 1.0),
        ([1.0, 5.0], 1.0, 5.0),
    ],
)
def test_percentile(values: list[float], fraction: float, expected: float) -> None:
    assert percentile(values, fraction) == expected


@given(st.lists(finite, min_size=1), st.floats(0, 1))
def test_a_percentile_lies_among_the_values(values: list[float], fraction: float) -> None:
    assert min(values) <= percentile(values, fraction) <= max(values)


@given(st.lists(finite, min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_percentiles_rise(values: list[float], one: float, other: float) -> None:
    low, high = sorted([one, other])
    assert percentile(values, low) <= percentile(values, high) * (1 + 1e-12)


def test_a_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 0.5))


def test_a_spread_is_median_lowest_and_highest() -> None:
    assert spread([9.0, 1.0, 2.0]) == Spread(2.0, 1.0, 9.0)


def test_a_round_that_measured_nothing_spoils_the_spread_visibly() -> None:
    assert math.isnan(spread([1.0, math.nan, 2.0]).median)


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [(Quantity.P50, 2.0), (Quantity.P99, 2.98), (Quantity.RATE, 1.5), (Quantity.THROUGHPUT, 4.0)],
)
def test_quantities(quantity: Quantity, expected: float) -> None:
    sample = Sample(3, 2.0, [1 * MS, 3 * MS, 2 * MS], bytes=8_000_000)
    assert quantity.of(sample) == pytest.approx(expected)


def test_the_ratio_is_taken_within_each_round() -> None:
    # The machine gets ten times slower in the second round, for both: the ratio does not care.
    result = evaluate("P2", RATE, {"ours": rates(200, 20, 210), "raw": rates(100, 10, 100)})
    assert result.ratio == Spread(2.0, 2.0, 2.1)
    assert result.figure == Spread(200.0, 20.0, 210.0)
    assert result.raw == Spread(100.0, 10.0, 100.0)
    assert result.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("bar", "ours", "verdict"),
    [
        (Bar(1.0, at_most=False), 100, Verdict.PASS),
        (Bar(1.0, at_most=False), 99, Verdict.FAIL),
        (Bar(1.5, at_most=True), 150, Verdict.PASS),
        (Bar(1.5, at_most=True), 151, Verdict.FAIL),
        (Bar(1.0, at_most=False, binding=False), 99, Verdict.BELOW),
        (Bar(120, at_most=False, absolute=True), 120, Verdict.PASS),
        (Bar(121, at_most=False, absolute=True), 120, Verdict.FAIL),
        (None, 1, Verdict.NONE),
    ],
)
def test_verdicts(bar: Bar | None, ours: int, verdict: Verdict) -> None:
    line = Line("pushes", Quantity.RATE, "ours", "raw", bar)
    assert evaluate("P2", line, {"ours": rates(ours), "raw": rates(100)}).verdict is verdict


@pytest.mark.parametrize("at_most", [True, False])
def test_what_is_no_number_meets_no_bar(at_most: bool) -> None:
    line = Line("pushes", Quantity.RATE, "ours", "raw", Bar(1.0, at_most=at_most))
    assert evaluate("P2", line, {"ours": rates(100), "raw": rates(0)}).verdict is Verdict.FAIL


def test_without_something_to_compare_with_there_is_no_ratio() -> None:
    line = Line("again", Quantity.RATE, "ours", bar=Bar(5, at_most=False, absolute=True))
    result = evaluate("P4", line, {"ours": rates(7)})
    assert (result.raw, result.ratio, result.verdict) == (None, None, Verdict.PASS)


def test_cpu_is_told_by_operation_and_role() -> None:
    samples = [
        Sample(100, 1.0, cpu_seconds={"mount": 0.1, "etcd": 0.02}),
        Sample(300, 1.0, cpu_seconds={"mount": 0.3}),
    ]
    assert cpu_per_operation(samples) == pytest.approx({"mount": 1000.0, "etcd": 50.0})


def test_cpu_of_no_operations_is_not_told() -> None:
    assert cpu_per_operation([Sample(0, 1.0, cpu_seconds={"mount": 0.1})]) == {}
