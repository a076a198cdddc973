"""Members and mounts that are killed, frozen or run out of memory, and clocks that jump."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.cluster.cluster import Cluster, ClusterMount, why_no_clocks
from tests.cluster.fault import Fault, OfMembers, draw_mount
from tests.cluster.leftovers import CONTROL_GROUPS
from tests.cluster.members import Member
from tests.support.processes import has_exited
from tests.support.waiting import eventually

OOM_WITHIN_S = 20.0
OOM_LIMIT_BYTES = 32 << 20


class KilledMembers(OfMembers):
    """`kill -9`; healed by starting them again with the data they had."""

    def begin(self, cluster: Cluster, draw: Random) -> None:
        for member in self.draw_members(cluster, draw):
            self.victims.append(member)
            member.kill()

    def heal(self, cluster: Cluster) -> None:
        cluster.launch(*self.victims)
        self.victims.clear()


class FrozenMembers(OfMembers):
    """SIGSTOP: connections stay and nothing is answered."""

    def begin(self, cluster: Cluster, draw: Random) -> None:
        for member in self.draw_members(cluster, draw):
            self.victims.append(member)
            member.pause()

    def heal(self, cluster: Cluster) -> None:
        for member in self.victims:
            if member.alive:
                member.resume()
        self.victims.clear()


class KilledMount(Fault):
    """`kill -9` of a daemon: its files answer ENOTCONN until it is unmounted and mounted again."""

    def begin(self, cluster: Cluster, draw: Random) -> None:
        for mount in draw_mount(cluster, draw):
            self.victims.append(mount)
            mount.kill()

    def heal(self, cluster: Cluster) -> None:
        cluster.launch(*self.victims)
        self.victims.clear()


class FrozenMount(Fault):
    """SIGSTOP of a daemon: who uses its files waits. Its session ends after the time to live."""

    def begin(self, cluster: Cluster, draw: Random) -> None:
        for mount in draw_mount(cluster, draw):
            self.victims.append(mount)
            mount.pause()

    def heal(self, cluster: Cluster) -> None:
        for mount in self.victims:
            if mount.alive:
                mount.resume()
        self.victims.clear()


class ClockJump(Fault):
    """A mount's wall clock jumps, and jumps back."""

    def __init__(self, name: str, ahead_s: int) -> None:
        super().__init__(name)
        self._ahead_s = ahead_s

    def why_not(self) -> str | None:
        return why_no_clocks()

    def begin(self, cluster: Cluster, draw: Random) -> None:
        for mount in draw_mount(cluster, draw):
            self.victims.append(mount)
            mount.set_clock(self._ahead_s)

    def heal(self, cluster: Cluster) -> None:
        for mount in self.victims:
            assert isinstance(mount, ClusterMount)
            mount.set_clock(0)
        self.victims.clear()


_GLUTTON = """
import os, sys
group, victim = sys.argv[1:]
with open(f"/proc/{victim}/oom_score_adj", "w") as score:
    score.write("1000")  # whom the kernel ends first
for pid in ("self", victim):
    with open(group + "/cgroup.procs", "w") as members:
        members.write("0" if pid == "self" else pid)
eaten = []
while True:
    eaten.append(bytearray(os.urandom(1 << 20)))
"""


class _MemoryGroup:
    """A control group with little memory, of version 1 or 2."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        self.path.mkdir()
        for limit in ("memory.max", "memory.limit_in_bytes"):
            if (self.path / limit).exists():
                (self.path / limit).write_text(str(OOM_LIMIT_BYTES))
        with suppress(FileNotFoundError, PermissionError):  # where there is no swap there is no such file
            (self.path / "memory.swap.max").write_text("0")

    def kills(self) -> int:
        """Return how many processes the kernel has ended here."""
        for file in ("memory.events", "memory.oom_control"):
            if (self.path / file).exists():
                told = dict(line.split() for line in (self.path / file).read_text().splitlines())
                return int(told["oom_kill"])
        raise AssertionError(f"{self.path} does not tell what the kernel has ended")

    @staticmethod
    def parent() -> Path | None:
        """Return where such groups can be made, None if nowhere."""
        for parent, mark in (
            (CONTROL_GROUPS, "memory.max"),
            (CONTROL_GROUPS / "memory", "memory.limit_in_bytes"),
        ):
            probe = parent / f"dnptest-probe-{os.getpid()}"
            try:
                probe.mkdir()
            except OSError:
                continue
            try:
                if (probe / mark).exists():
                    return parent
            finally:
                probe.rmdir()
        return None


class OutOfMemory(Fault):
    """The kernel ends a member or a mount, because its control group has no memory left."""

    def __init__(self, name: str, *, member: bool) -> None:
        super().__init__(name)
        self._member = member
        self.kills_of_the_kernel = 0

    def why_not(self) -> str | None:
        return None if _MemoryGroup.parent() else "no control groups for memory, or they cannot be written"

    def begin(self, cluster: Cluster, draw: Random) -> None:
        running = cluster.running_members()
        chosen: list[Member | ClusterMount] = (
            [*draw.sample(running, min(1, len(running)))] if self._member else [*draw_mount(cluster, draw)]
        )
        for victim in chosen:
            self.victims.append(victim)
            self._exhaust(cluster, victim)

    def _exhaust(self, cluster: Cluster, victim: Member | ClusterMount) -> None:
        parent = _MemoryGroup.parent()
        assert parent is not None
        group = _MemoryGroup(parent / cluster.lab.name)
        group.make()
        glutton = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", _GLUTTON, group.path, str(victim.pid)]
        )
        try:
            killed = has_exited(victim.pid, OOM_WITHIN_S)
            assert killed, f"{victim.name} lives on with no memory; the glutton: {glutton.poll()}"
        finally:
            glutton.kill()
            glutton.wait()
            victim.kill()  # waits for it, too
            self.kills_of_the_kernel = group.kills()
            eventually(lambda: _removed(group.path))

    def heal(self, cluster: Cluster) -> None:
        cluster.launch(*self.victims)
        self.victims.clear()


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True
