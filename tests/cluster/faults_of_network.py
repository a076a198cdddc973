"""Hosts that are cut off from others, wholly or one way, and bad lines."""

import importlib.util
import subprocess
from collections.abc import Callable
from random import Random
from shutil import which

from tests.cluster.cluster import Cluster, ClusterMount
from tests.cluster.fault import Fault, OfMembers, draw_mount
from tests.cluster.hosts import Host, Rule, both_ways
from tests.cluster.leftovers import REPOSITORY
from tests.cluster.members import Member
from tests.cluster.slow_network import QUEUE, Line

Ways = Callable[[Host, list[Host]], list[tuple[Host, Host]]]
"""Which ways (sender, receiver) are cut between a host and others."""


def apart(host: Host, others: list[Host]) -> list[tuple[Host, Host]]:
    return both_ways([host], others)


def hears_nobody(host: Host, others: list[Host]) -> list[tuple[Host, Host]]:
    return [(other, host) for other in others]


def is_heard_by_nobody(host: Host, others: list[Host]) -> list[tuple[Host, Host]]:
    return [(host, other) for other in others]


class _Cuts:
    """The cuts of one fault."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def cut(self, ways: list[tuple[Host, Host]]) -> None:
        """Let receivers lose all that senders send them."""
        for sender, receiver in ways:
            self._rules.append(Rule(receiver, "INPUT", "-s", sender.address, "-j", "DROP").add())

    def undo(self) -> None:
        while self._rules:
            self._rules.pop().remove()


def _why_no_rules() -> str | None:
    return None if which("iptables") else "no iptables to cut hosts off with (package iptables)"


class MemberCutOff(OfMembers):
    """A member and all other hosts do not reach one another, or one way only."""

    def __init__(self, name: str, ways: Ways = apart, *, leader: bool = False, followers: int = 0) -> None:
        super().__init__(name, leader=leader, followers=followers)
        self._ways = ways
        self._cuts = _Cuts()

    def why_not(self) -> str | None:
        return _why_no_rules()

    def begin(self, cluster: Cluster, draw: Random) -> None:
        for member in self.draw_members(cluster, draw):
            self.victims.append(member)
            others = [host for host in cluster.network.hosts if host != member.host]
            self._cuts.cut(self._ways(member.host, others))

    def heal(self, cluster: Cluster) -> None:
        self._cuts.undo()
        self.victims.clear()


class MountCutOff(Fault):
    """A mount and all members, or the leader only, do not reach one another."""

    def __init__(self, name: str, *, leader_only: bool = False) -> None:
        super().__init__(name)
        self._leader_only = leader_only
        self._cuts = _Cuts()

    def why_not(self) -> str | None:
        return _why_no_rules()

    def begin(self, cluster: Cluster, draw: Random) -> None:
        members = cluster.members
        if self._leader_only:
            leader = cluster.operator.leader()
            members = [] if leader is None else [leader]
        for mount in draw_mount(cluster, draw):
            self.victims.append(mount)
            self._cuts.cut(apart(mount.host, [member.host for member in members]))

    def heal(self, cluster: Cluster) -> None:
        self._cuts.undo()
        self.victims.clear()


class BadLine(Fault):
    """What one host sends is delayed, reordered or lost."""

    def __init__(self, name: str, line: Line) -> None:
        super().__init__(name)
        self._line = line
        self._rules: list[Rule] = []
        self._processes: list[subprocess.Popen[str]] = []

    def why_not(self) -> str | None:
        if importlib.util.find_spec("netfilterqueue") is None:
            return "no bad lines: no NetfilterQueue, which `make setup` installs for root"
        return _why_no_rules()

    def begin(self, cluster: Cluster, draw: Random) -> None:
        chosen: list[Member | ClusterMount] = [*cluster.members, *cluster.mounts]
        victim = draw.choice([each for each in chosen if each.host.name not in cluster.bad_lines])
        cluster.bad_lines.add(victim.host.name)
        self.victims.append(victim)
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *victim.host.inside, *self._line.command()],
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            text=True,
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        where = ("-o", "eth0", "-j", "NFQUEUE", "--queue-num", str(QUEUE), "--queue-bypass")
        self._rules.append(Rule(victim.host, "OUTPUT", *where).add())

    def heal(self, cluster: Cluster) -> None:
        while self._rules:
            self._rules.pop().remove()
        while self._processes:
            process = self._processes.pop()
            process.kill()
            process.communicate()
        for victim in self.victims:
            cluster.bad_lines.discard(victim.host.name)
        self.victims.clear()
