"""Each fault does what its name says, costs no acknowledged push, and the cluster works when it is healed."""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from random import Random

import pytest

from tests.cluster.cluster import SESSION_TTL_S, Cluster
from tests.cluster.fault import Fault, heal_all
from tests.cluster.faults import FAULTS, MakeFault
from tests.cluster.hosts import CommandFailed
from tests.cluster.recovery import Recovery, measured
from tests.cluster.shows import SHOWS, Scene
from tests.support.waiting import eventually

pytestmark = pytest.mark.thorough

HELD_PUSHES = 100

_topics = itertools.count()


def test_each_fault_is_shown() -> None:
    assert set(SHOWS) == {make().name for make in FAULTS}


@contextmanager
def healed(cluster: Cluster, faults: Sequence[Fault]) -> Iterator[None]:
    """Heal what began in the block, also when the block fails."""
    try:
        yield
    finally:
        heal_all(cluster, faults)


def hold(recovery: Recovery) -> None:
    """Let faults last until some mount has pushed on, or a session without a host would have run out."""
    before = recovery.acknowledged()
    with suppress(AssertionError):
        eventually(lambda: recovery.acknowledged() > before + HELD_PUSHES, within_s=SESSION_TTL_S + 1)


def tell(what: str, recovery: Recovery, well_s: float) -> None:
    gaps = "  ".join(f"{name} {gap:.1f}" for name, gap in recovery.gaps().items())
    print(f"\n{what}: longest gap without an acknowledged push, s: {gaps}; well {well_s:.1f} s after healing")


@pytest.mark.parametrize("make", FAULTS, ids=lambda make: make().name.replace(" ", "-"))
def test_a_fault(cluster: Cluster, make: MakeFault) -> None:
    fault = make()
    reason = fault.why_not()
    if reason is not None:
        pytest.skip(reason)
    before = cluster.operator.status()
    with measured(cluster, f"topic{next(_topics)}") as recovery:
        with healed(cluster, [fault]):
            fault.begin(cluster, Random(fault.name))
            scene = Scene(cluster, fault, recovery, before)
            show = SHOWS[fault.name](scene)
            next(show)
            began = time.monotonic()
        well_s = time.monotonic() - began
        assert fault.victims == []
        fault.heal(cluster)
        assert next(show, None) is None
        recovery.progress()
        tell(fault.name, recovery, well_s)


@pytest.mark.parametrize("seed", range(4))
def test_some_faults_at_once(cluster: Cluster, seed: int) -> None:
    draw = Random(seed)
    possible = [make for make in FAULTS if make().why_not() is None]
    with measured(cluster, f"topic{next(_topics)}") as recovery:
        for _ in range(3):
            faults = [make() for make in draw.sample(possible, 2)]
            recovery.began_ns = time.monotonic_ns()
            with healed(cluster, faults):
                for fault in faults:
                    with suppress(CommandFailed):  # the first has left it nothing to begin with
                        fault.begin(cluster, draw)
                hold(recovery)
                began = time.monotonic()
            well_s = time.monotonic() - began
            recovery.progress()
            tell(f"seed {seed}, {faults[0]} and {faults[1]}", recovery, well_s)
