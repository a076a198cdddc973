"""A siege of the cluster, by everything at once: no guarantee breaks, and all works again.

Some seconds of it run with the other tests; `make test-cluster` runs 180 s, `make soak` half an hour.

DNPIPEFS_TEST_SIEGE_S        how long there are faults, seconds (180)
DNPIPEFS_TEST_SIEGE_SEED     repeats a schedule, though not what processes make of it; it is printed
DNPIPEFS_TEST_SIEGE_RATE     how many times as fast as usual clients are (1)
DNPIPEFS_TEST_SIEGE_REPORT   a file that gets the figures as Markdown
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.schedule import Episode, rounds, schedule
from tests.cluster.siege import Siege, possible_faults
from tests.cluster.tally import Tally

SECONDS: Final = float(os.environ.get("DNPIPEFS_TEST_SIEGE_S") or 180)
SEED: Final = int(os.environ.get("DNPIPEFS_TEST_SIEGE_SEED") or Random().randrange(10**6))
RATE: Final = float(os.environ.get("DNPIPEFS_TEST_SIEGE_RATE") or 1)
REPORT: Final = os.environ.get("DNPIPEFS_TEST_SIEGE_REPORT")
MARGIN_S: Final = 600.0
"""A siege takes longer than its schedule says; after that and three times its time its daemons are killed."""


@contextmanager
def guarded(cluster: Cluster, about_s: float) -> Iterator[None]:
    """Kill the daemons when the block takes too long: what waits in the kernel has no other end."""
    timer = threading.Timer(3 * about_s + MARGIN_S, cluster.end_daemons)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def besieged(cluster: Cluster, directory: Path, episodes: Sequence[Episode]) -> Tally:
    siege = Siege(cluster, directory, seed=SEED, rate=RATE)
    print(f"\nDNPIPEFS_TEST_SIEGE_SEED={SEED}, {len(episodes)} episodes", flush=True)
    try:
        with guarded(cluster, sum(episode.about_s for episode in episodes)):
            siege.run(list(rounds(episodes)))
    finally:
        print(f"\n{siege.tally.text()}\n", flush=True)
    return siege.tally


def judged(tally: Tally, directory: Path) -> None:
    where = f"with seed {SEED}, histories in {directory}"
    found = tally.anomalies
    assert not found, "\n".join([f"{len(found)} anomalies, {where}:", *found[:20]])
    assert not tally.late, "\n".join([f"not live, {where}:", *tally.late])
    assert tally.acknowledged > 0
    assert tally.deliveries > 0


def test_all_guarantees_hold_in_a_short_siege(shared_cluster: Cluster, tmp_path: Path) -> None:
    names = ("compaction", "new certificates", "leader killed")
    episodes = [Episode(SEED + number, (name,), 1.0, 1.0) for number, name in enumerate(names)]
    tally = besieged(shared_cluster, tmp_path, episodes)
    judged(tally, tmp_path)
    assert tally.begun.total() == len(names)


@pytest.mark.thorough
def test_all_guarantees_hold_under_siege(shared_cluster: Cluster, tmp_path: Path) -> None:
    episodes = schedule(SEED, SECONDS, possible_faults())
    for episode in episodes:
        print(episode)
    tally = besieged(shared_cluster, tmp_path, episodes)
    if REPORT:
        Path(REPORT).write_text(tally.markdown())
    judged(tally, tmp_path)
    assert tally.begun.total() > len(episodes) / 2, "too few faults began, so it proves little"
