"""How long a fault keeps each mount from pushing: measured while writers go on; printed, not asserted."""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.cluster.cluster import Cluster
from tests.support.checker import Outcome, Push
from tests.support.writers import Writer, history, observe, progress, running


def longest_gap_s(pushes: Sequence[Push], began_ns: int, ended_ns: int) -> float:
    """Return the longest stretch of a time without an acknowledged push.

    The stretch in which it begins counts from the acknowledgement before it, so that what was under way when
    the fault came is in it.
    """
    moments = sorted(push.ended for push in pushes if push.outcome is Outcome.OK)
    before = [moment for moment in moments if moment <= began_ns]
    within = [moment for moment in moments if began_ns < moment < ended_ns]
    marks = [before[-1] if before else began_ns, *within, ended_ns]
    return max(later - earlier for earlier, later in itertools.pairwise(marks)) / 1e9


class Recovery:
    """A writer on each mount, all pushing to one topic, and the time since the fault."""

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self._cluster = cluster
        self._topic = topic
        self.writers = [Writer(mount.name, mount.path / topic) for mount in cluster.mounts]
        self.began_ns = 0

    def progress(self, count: int = 5, *, without: Sequence[object] = ()) -> None:
        """Wait until each writer has that many more pushes acknowledged, but for those on some mounts."""
        names = {mount.name for mount in self._cluster.mounts if mount in without}
        progress([writer for writer in self.writers if writer.name not in names], count)

    def acknowledged(self) -> int:
        """Return how many pushes have been acknowledged, on all mounts."""
        return sum(writer.ok for writer in self.writers)

    def errors(self) -> set[int | None]:
        """Return the errnos that writers were told."""
        return {error.errno for writer in self.writers for error in writer.errors}

    def gaps(self) -> dict[str, float]:
        """Return the longest gap on each mount between the fault and now, seconds."""
        now = time.monotonic_ns()
        return {
            writer.name: longest_gap_s(list(writer.pushes), self.began_ns, now) for writer in self.writers
        }


@contextmanager
def measured(cluster: Cluster, topic: str) -> Iterator[Recovery]:
    """Let writers push on each mount while the block runs, then judge what became of the pushes."""
    (cluster.mounts[0].path / topic).touch()
    recovery = Recovery(cluster, topic)
    with running(*recovery.writers):
        recovery.progress()
        recovery.began_ns = time.monotonic_ns()
        yield recovery
    seen = [observe(mount.name, mount.path / topic) for mount in cluster.mounts]
    assert history(recovery.writers, seen).check() == []
    (cluster.mounts[0].path / topic).unlink()
