"""Each fault does what its name says, costs no acknowledged push, and the cluster works when it is healed."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.fault import Fault
from tests.cluster.faults import FAULTS, MakeFault
from tests.cluster.recovery import Recovery, measured
from tests.cluster.shows import SHOWS, Scene

pytestmark = pytest.mark.thorough

_topics = itertools.count()


def test_each_fault_is_shown() -> None:
    assert set(SHOWS) == {make().name for make in FAULTS}


@contextmanager
def healed(cluster: Cluster, *faults: Fault) -> Iterator[None]:
    """Heal what began in the block, also when the block fails."""
    try:
        yield
    finally:
        for fault in faults:
            fault.heal(cluster)


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
        with healed(cluster, fault):
            fault.begin(cluster, Random(7))
            scene = Scene(cluster, fault, recovery, before)
            show = SHOWS[fault.name](scene)
            next(show)
        began = time.monotonic()
        assert fault.victims == []
        fault.heal(cluster)
        cluster.wait_well()
        well_s = time.monotonic() - began
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
            with healed(cluster, *faults):
                for fault in faults:
                    fault.begin(cluster, draw)
            began = time.monotonic()
            cluster.wait_well()
            recovery.progress()
            tell(f"seed {seed}, {faults[0]} and {faults[1]}", recovery, time.monotonic() - began)
