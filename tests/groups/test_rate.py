"""How fast readers are said to be, and what hosts that share a group claim for it."""

import pytest

from dnpipefs.core.group import share
from dnpipefs.groups.rate import PAUSE_S, Rate

BOUND = 10_000


def test_it_is_what_was_counted_lately() -> None:
    rate = Rate(0.0)
    for tenth in range(1, 11):
        for _ in range(50):
            rate.count(tenth / 10)
        rate.measure(tenth / 10)
    assert rate.per_second == pytest.approx(500, rel=0.01)
    assert rate.measure(10.0) == 0.0


def test_waiting_for_something_to_count_is_left_out() -> None:
    rate, now = Rate(0.0), 0.0
    for _ in range(150):  # a millisecond each, and nine of waiting for the next one
        now += 0.001
        rate.pause(now)
        now += 0.009
        rate.count(now)
        rate.measure(now)
    assert rate.per_second == pytest.approx(1_000, rel=0.05)


def test_a_pause_that_is_measured_in_between_is_left_out_once() -> None:
    rate = Rate(0.0)
    for step in range(1, 101):
        rate.count(step / 1_000)
    rate.pause(0.1)
    rate.measure(0.2)
    rate.measure(0.3)
    rate.count(0.4)
    for step in range(1, 101):
        rate.count(0.4 + step / 1_000)
    assert rate.measure(0.5) == pytest.approx(1_000, rel=0.05)


def test_after_a_long_pause_nothing_is_known() -> None:
    for measured in (False, True):
        rate = Rate(0.0)
        for step in range(1, 101):
            rate.count(step / 1_000)
        assert rate.measure(0.1) > 0
        rate.pause(0.1)
        if measured:
            rate.measure(0.1 + PAUSE_S)
        else:
            rate.count(0.1 + PAUSE_S)
        assert rate.per_second == 0.0


def test_what_takes_no_time_has_a_rate_all_the_same() -> None:
    rate = Rate(0.0)
    rate.pause(0.0)
    for _ in range(10):
        rate.count(0.1)
        rate.pause(0.1)
    assert 0 < rate.measure(0.1) <= 50_000


@pytest.mark.parametrize("claim_s", [0.001, 0.02, 0.1])
def test_hosts_that_wait_long_for_a_claim_claim_more_at_once(claim_s: float) -> None:
    """Else the more hosts share a group, the less each of them claims, and the longer each waits."""
    rate, now, left, claims = Rate(0.0), 0.0, 1_000, 0
    while left:
        rate.pause(now)
        now += claim_s
        claimed = share(left, waiting=1, in_stock=0, per_second=rate.measure(now), bound=BOUND)
        claims += 1
        for _ in range(claimed):
            rate.count(now)
            now += 0.001  # of work on it
        left -= claimed
    assert claims < 60
