"""What a fault is. The kinds are in `faults_of_…`; `faults.py` has the list of all."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Final

from tests.cluster.cluster import Cluster, ClusterMount
from tests.cluster.hosts import CommandFailed
from tests.cluster.members import Member
from tests.support.waiting import eventually

HEALED_WITHIN_S = 60.0


class Fault(ABC):
    """Something that happens to a cluster and passes.

    `begin` draws whom it strikes and returns when it has happened; `heal` undoes it, also when `begin` failed
    half-way, and does nothing more when called again. Neither waits until the cluster works again: another
    fault may still be there. `Cluster.wait_well` does, once all are healed. Those that need etcd raise
    CommandFailed when, because of another fault, it does not answer: what has begun is to be healed all the
    same, and what is not healed is to be tried again (`heal_all`).
    """

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.victims: list[Member | ClusterMount] = []
        """Whom it has struck and `heal` has not yet healed; a fault of the whole cluster names none."""

    def why_not(self) -> str | None:
        """Say what this machine lacks for it, None if nothing."""
        return None

    @abstractmethod
    def begin(self, cluster: Cluster, draw: Random) -> None: ...

    @abstractmethod
    def heal(self, cluster: Cluster) -> None: ...

    def __repr__(self) -> str:
        return self.name


def heal_each(cluster: Cluster, faults: Sequence[Fault]) -> Iterator[Fault]:
    """Heal faults that may keep one another from being healed; return each as it is."""
    left = list(faults)

    def some_are_healed() -> list[Fault]:
        healed = []
        for fault in left:
            with suppress(CommandFailed):
                fault.heal(cluster)
                healed.append(fault)
        return healed

    deadline = time.monotonic() + HEALED_WITHIN_S
    while left:
        for fault in eventually(some_are_healed, within_s=deadline - time.monotonic()):
            left.remove(fault)
            yield fault


def heal_all(cluster: Cluster, faults: Sequence[Fault]) -> None:
    """Heal faults, and wait until all is well."""
    for _ in heal_each(cluster, faults):
        pass
    cluster.wait_well()


class OfMembers(Fault):
    """A fault of members: the leader, or a number of others."""

    def __init__(self, name: str, *, leader: bool = False, followers: int = 0) -> None:
        super().__init__(name)
        self._leader = leader
        self._followers = followers

    def draw_members(self, cluster: Cluster, draw: Random) -> list[Member]:
        """Choose among those that run; fewer than wanted where too few do, or there is no leader."""
        leader = cluster.operator.leader()
        others = [member for member in cluster.running_members() if member is not leader]
        chosen = draw.sample(others, min(self._followers, len(others)))
        return [leader, *chosen] if self._leader and leader is not None else chosen


def draw_mount(cluster: Cluster, draw: Random) -> list[ClusterMount]:
    """Choose a mount that runs, none if none does."""
    running = cluster.running_mounts()
    return [draw.choice(running)] if running else []
