"""Scenarios of groups on a store in memory."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from tests.model.group_oracle import GroupOracle
from tests.model.group_scenario import GroupScenario
from tests.model.hosts import watched_log
from tests.model.runs import cluster_in_memory, hosts_of


def groups_in_memory(seed: int, steps: int) -> Counter[str]:
    """Run a scenario; return what happened how often. AssertionError if something was wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        trio._core._run._r.seed(seed)
        return trio.run(_live, seed, steps, clock=MockClock())


async def _live(seed: int, steps: int) -> Counter[str]:
    cluster = cluster_in_memory(random.Random(seed), GroupOracle)
    failure: AssertionError | None = None
    with watched_log() as complaints:
        async with hosts_of(cluster) as nursery:
            try:
                await GroupScenario(cluster, nursery, complaints).live(steps)
            except AssertionError as error:  # not in the group that the hosts' tasks would make of it
                failure = error
    if failure is not None:
        raise failure
    return cluster.seen + cluster.oracle.seen
