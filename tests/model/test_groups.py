"""Random lives of consumer groups: real services, an etcd in memory, and a judge.

The invariants are those of `core/group` and invariant 6 of the design; `group_oracle.py` and
`group_scenario.py` say which check stands for which. `make properties` runs as many steps of
it as of the log.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

import pytest

from tests.model.group_mutants import ALL, RARE, Mutant
from tests.model.group_runs import groups_in_memory
from tests.model.group_scenario import small_groups
from tests.model.test_scenarios import STEPS, STEPS_OF_ONE, THOROUGH

SCENARIOS: Final = -(-STEPS // STEPS_OF_ONE)
SEARCH: Final = 1500 if THOROUGH else 500
"""Scenarios in which a planted fault must be found."""

LEAST: Final = {
    "acknowledged": 4700,
    "buried": 40,
    "claimed again": 100,
    "claimed before it came": 4000,
    "compacted": 80,
    "delete group: done": 10,
    "deleted": 20,
    "delivered": 5000,
    "delivered again": 100,
    "given back": 100,
    "killed at in hand": 8,
    "killed at transaction": 20,
    "late acknowledgement": 30,
    "late transaction": 100,
    "nothing now": 80,
    "reader cancelled, waiting": 70,
    "reset: done": 100,
    "returned": 100,
    "rewind: done": 100,
    "session lost": 200,
    "skipped by retention": 60,
    "terms": 900,
    "transaction: answer lost": 60,
    "transaction: etcd is full": 200,
    "transaction: not sent": 60,
    "transaction: request delayed, nobody waits for it": 60,
    "trim: done": 400,
    "watch broken": 1,
    "went on at answer": 2300,
    "went on at in hand": 1400,
}
"""How often at least what must have happened in 100,000 steps; about a third of what usually does."""


def test_a_group_keeps_what_it_promises_whatever_happens_to_it() -> None:
    """Invariants 1 to 3 of core/group, invariant 6 of the design; nobody waits in vain."""
    seen, began = Counter[str](), time.monotonic()
    with small_groups():
        for seed in range(SCENARIOS):
            try:
                seen += groups_in_memory(seed, STEPS_OF_ONE)
            except AssertionError as error:
                raise AssertionError(f"scenario {seed}: {error}") from error
    print(f"\n{SCENARIOS * STEPS_OF_ONE} steps in {time.monotonic() - began:.0f} s:")
    for event, times in sorted(seen.items()):
        print(f"{times:9} {event}")
    wanted = {event: int(least * STEPS / 100_000) for event, least in LEAST.items()}
    missing = {event: seen[event] for event, least in wanted.items() if seen[event] < least}
    assert not missing, f"too seldom, so the scenarios prove little of it: {missing}"


@pytest.mark.parametrize(
    "mutant",
    [mutant for mutant in ALL if THOROUGH or mutant not in RARE],
    ids=lambda mutant: mutant.__name__,
)
def test_a_planted_fault_is_found(mutant: Mutant) -> None:
    """The scenarios are sharp enough to show each of these rules to be needed."""
    with small_groups() as patch:
        mutant(patch)
        for seed in range(SEARCH):
            try:
                groups_in_memory(seed, STEPS_OF_ONE)
            except (AssertionError, ExceptionGroup):  # what was promised is not kept; or a host breaks down
                return
    pytest.fail(f"not found in {SEARCH * STEPS_OF_ONE} steps")
