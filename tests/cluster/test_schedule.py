"""A siege's schedule follows from its seed, and asks nothing of a cluster that no cluster can bear."""

from itertools import chain, pairwise

import pytest

from tests.cluster.faults import FAULTS
from tests.cluster.schedule import (
    ALONE_SHARE,
    NEED_MEMBERS,
    OF_MOUNTS,
    ROUND_S,
    SLOW,
    compatible,
    rounds,
    schedule,
)

NAMES = [make().name for make in FAULTS]
SOAK_S = 1800.0


def test_the_faults_it_knows_of_are_there() -> None:
    assert set(NAMES) >= OF_MOUNTS | NEED_MEMBERS | SLOW


def test_a_seed_repeats_it_and_another_one_does_not() -> None:
    assert schedule(1, SOAK_S, NAMES) == schedule(1, SOAK_S, NAMES)
    assert schedule(1, SOAK_S, NAMES) != schedule(2, SOAK_S, NAMES)


@pytest.mark.parametrize("seed", range(5))
def test_each_fault_comes_alone_before_there_are_mixes(seed: int) -> None:
    episodes = schedule(seed, SOAK_S, NAMES)
    alone, mixes = episodes[: len(NAMES)], episodes[len(NAMES) :]
    assert sorted(name for episode in alone for name in episode.faults) == sorted(NAMES)
    assert {len(episode.faults) for episode in mixes} == {1, 2, 3}
    assert all(compatible(episode.faults) for episode in episodes)


@pytest.mark.parametrize("duration_s", [1.0, 180.0, SOAK_S])
def test_it_takes_the_time_it_is_given(duration_s: float) -> None:
    episodes = schedule(3, duration_s, NAMES)
    longest = max(episode.about_s for episode in episodes)
    assert duration_s <= sum(episode.about_s for episode in episodes) <= duration_s + longest
    first_mix = next((n for n, e in enumerate(episodes) if len(e.faults) > 1), len(episodes))
    assert (
        sum(e.about_s for e in episodes[:first_mix]) <= max(duration_s * ALONE_SHARE, longest) + 3 * longest
    )


def test_rounds_are_the_schedule_in_parts() -> None:
    episodes = schedule(4, SOAK_S, NAMES)
    parts = list(rounds(episodes))
    assert list(chain(*parts)) == episodes
    assert all(sum(e.about_s for e in part) >= ROUND_S for part, _ in pairwise(parts))
    assert len(parts) > SOAK_S / ROUND_S / 2


def test_what_would_cost_a_majority_its_memory_does_not_come_together() -> None:
    assert compatible(["member replaced", "mount killed"])
    assert not compatible(["member replaced", "follower killed"])
    assert not compatible(["loss", "loss"])
    assert not compatible(["full etcd", "full disk"])
    assert compatible(["leader killed", "mount frozen", "loss"])
