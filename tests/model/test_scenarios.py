"""Random lives of whole clusters: real services, an etcd in memory or a real one, and a judge.

The invariants are those of the design, of `core/view` and of `core/sealing`; `oracle.py` and
`scenario.py` say which check stands for which. `make properties` runs 100,000 steps and looks for every
planted fault; DNPIPEFS_TEST_PROPERTY_STEPS chooses another number.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Final

import pytest

from tests.etcd.conftest import server
from tests.model.mutants import ALL, RARE, Mutant
from tests.model.runs import in_memory, on_etcd
from tests.model.scale import small_scale
from tests.support.etcd_process import EtcdProcess

__all__ = ["server"]

STEPS: Final = int(os.environ.get("DNPIPEFS_TEST_PROPERTY_STEPS", "12000"))
THOROUGH: Final = STEPS >= 100_000
STEPS_OF_ONE: Final = 200
"""Steps of one scenario, before it comes to rest."""
SCENARIOS: Final = -(-STEPS // STEPS_OF_ONE)
SEARCH: Final = 1500 if THOROUGH else 500
"""Scenarios in which a planted fault must be found."""
ON_ETCD: Final = 60 if THOROUGH else 8
"""Scenarios on a real etcd."""

LEAST: Final = {
    "commit: answer lost": 100,
    "commit: delivered": 2000,
    "commit: etcd became full by it": 40,
    "commit: etcd is full": 300,
    "commit: not sent": 80,
    "commit: request delayed, nobody waits for it": 80,
    "compacted": 100,
    "delete: delivered": 100,
    "deleted": 80,
    "full": 100,
    "free again": 40,
    "index pages": 400,
    "killed at DONE": 3,
    "killed at ENCODED": 5,
    "killed at FETCHED": 8,
    "killed at LOOKED": 20,
    "killed at commit": 50,
    "killed at range": 40,
    "killed at read": 200,
    "killed at transaction": 20,
    "killed at watch": 20,
    "large, in one transaction": 500,
    "large, staged": 500,
    "late and refused": 4,
    "late commit": 150,
    "late transaction": 100,
    "mark: reset": 600,
    "mark: seal": 1000,
    "mark: trim": 600,
    "push committed": 3000,
    "push gone": 150,
    "push out of space": 400,
    "push timed out": 600,
    "push unknown": 400,
    "push: large": 500,
    "push: lines": 2000,
    "push: message": 700,
    "push: no newline": 600,
    "push: parts": 500,
    "read behind what was trimmed": 40,
    "read bytes": 1500,
    "read messages": 600,
    "read to the end": 1000,
    "read: gone": 80,
    "read: timed out": 400,
    "reset: done": 250,
    "seal: done": 1000,
    "session lost": 150,
    "stat: done": 400,
    "sweep: done": 300,
    "timed out, and in": 30,
    "transaction: answer lost": 40,
    "transaction: request delayed, nobody waits for it": 40,
    "trim: done": 700,
    "trimmed by age": 700,
    "trimmed by bytes": 1000,
    "trimmed by messages": 500,
    "unknown, and in": 80,
    "view judged": 2000,
    "view lagging": 500,
    "watch broken": 15,
    "went on at DONE": 300,
    "went on at ENCODED": 400,
    "went on at FETCHED": 500,
    "went on at LOOKED": 800,
    "writers forgotten": 800,
}
"""How often at least what must have happened in 100,000 steps; about a third of what usually does."""


def test_a_cluster_keeps_what_it_promises_whatever_happens_to_it() -> None:
    """Invariants 1 to 5 of the design, 1 to 4 of the view, 1 to 4 of sealing."""
    seen, began = Counter[str](), time.monotonic()
    with small_scale():
        for seed in range(SCENARIOS):
            try:
                seen += in_memory(seed, STEPS_OF_ONE)
            except AssertionError as error:
                raise AssertionError(f"scenario {seed}: {error}") from error
    print(f"\n{SCENARIOS * STEPS_OF_ONE} steps in {time.monotonic() - began:.0f} s:")
    for event, times in sorted(seen.items()):
        print(f"{times:9} {event}")
    wanted = {event: int(least * STEPS / 100_000) for event, least in LEAST.items()}
    missing = {event: seen[event] for event, least in wanted.items() if seen[event] < least}
    assert not missing, f"too seldom, so the scenarios prove little of it: {missing}"


def test_the_same_on_a_real_etcd(server: EtcdProcess) -> None:
    seen = Counter[str]()
    with small_scale():
        for seed in range(ON_ETCD):
            try:
                seen += on_etcd(server.endpoint, seed, STEPS_OF_ONE)
            except AssertionError as error:
                raise AssertionError(f"scenario {seed} on etcd: {error}") from error
    for event in ("push committed", "mark: seal", "mark: trim", "mark: reset", "read to the end"):
        assert seen[event] >= 5, f"{event}: {seen[event]}"
    for event in (
        "went on at ENCODED",
        "large, staged",
        "session lost",
        "view judged",
        "late commit",
        "deleted",
    ):
        assert seen[event] >= 1, f"{event}: {seen[event]}"


@pytest.mark.parametrize(
    "mutant",
    [mutant for name, mutant in ALL.items() if THOROUGH or name not in RARE],
    ids=lambda mutant: mutant.__name__,
)
def test_a_planted_fault_is_found(mutant: Mutant) -> None:
    """The scenarios are sharp enough to show each of these rules to be needed."""
    with small_scale() as patch:
        mutant(patch)
        for seed in range(SEARCH):
            try:
                in_memory(seed, STEPS_OF_ONE)
            except (AssertionError, ExceptionGroup):  # the latter if a host's task found it
                return
    pytest.fail(f"not found in {SEARCH * STEPS_OF_ONE} steps")
