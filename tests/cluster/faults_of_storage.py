"""What happens to etcd's data: full disks and databases, compaction; members and certificates replaced."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from random import Random

from tests.cluster.cluster import Cluster
from tests.cluster.fault import Fault, OfMembers
from tests.cluster.hosts import CommandFailed
from tests.cluster.members import QUOTA_BYTES, Member

FILLING = "filling/"
"""Where the keys lie that fill etcd, beside all that dnpipefs has."""
_PIECE = "x" * 1_400_000
_OF_EACH_THREAD = 2 * QUOTA_BYTES // len(_PIECE) // 4


class FullDisk(OfMembers):
    """A member's disk has no room for another page. etcd ends when its database needs one."""

    def begin(self, cluster: Cluster, draw: Random) -> None:
        for member in self.draw_members(cluster, draw):
            self.victims.append(member)
            member.disk.leave(spare_bytes=0)

    def heal(self, cluster: Cluster) -> None:
        for victim in self.victims:
            assert isinstance(victim, Member)
            victim.disk.grow()
        cluster.launch(*self.victims)
        self.victims.clear()


class FullEtcd(Fault):
    """Somebody has filled the database up to its quota; healed as its operator does it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._begun = False

    def begin(self, cluster: Cluster, draw: Random) -> None:
        self._begun = True
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda number: self._fill(cluster, number), range(4)))
        assert "NOSPACE" in cluster.operator.alarms()

    def _fill(self, cluster: Cluster, number: int) -> None:
        for piece in itertools.islice(itertools.count(), _OF_EACH_THREAD):
            try:
                cluster.operator.etcdctl("put", f"{FILLING}{number}/{piece}", given=_PIECE)
            except CommandFailed as refusal:
                if "database space exceeded" in str(refusal):
                    return
                raise

    def heal(self, cluster: Cluster) -> None:
        if self._begun:
            cluster.operator.etcdctl("del", FILLING, "--prefix")
            cluster.operator.make_room()
            self._begun = False


class Compaction(Fault):
    """History is compacted up to now, and each member defragmented, during which it answers nobody."""

    def begin(self, cluster: Cluster, draw: Random) -> None:
        cluster.operator.compact()
        members = cluster.running_members()
        for member in draw.sample(members, len(members)):
            cluster.operator.etcdctl("defrag", at=[member])

    def heal(self, cluster: Cluster) -> None:
        """Nothing is left of it."""


class ReplacedMember(OfMembers):
    """A member is lost with its data and taken out of the cluster; healed by a new one on its host."""

    def begin(self, cluster: Cluster, draw: Random) -> None:
        told = cluster.operator.status()
        for member in self.draw_members(cluster, draw):
            self.victims.append(member)
            member.kill()
            member.forget()
            cluster.operator.etcdctl("member", "remove", f"{told[member.name].id:x}")

    def heal(self, cluster: Cluster) -> None:
        for victim in self.victims:
            assert isinstance(victim, Member)
            if victim.peer not in cluster.operator.etcdctl("member", "list"):
                cluster.operator.etcdctl("member", "add", victim.name, f"--peer-urls={victim.peer}")
            victim.joins = True
        cluster.launch(*self.victims)
        self.victims.clear()


class NewCertificates(Fault):
    """All members and mounts get new certificates as they run, and a member is restarted: all meet it."""

    def begin(self, cluster: Cluster, draw: Random) -> None:
        for member in cluster.members:
            member.renew()
        for mount in cluster.mounts:
            mount.renew()
        for member in draw.sample(cluster.running_members(), 1):
            self.victims.append(member)
            member.kill()

    def heal(self, cluster: Cluster) -> None:
        cluster.launch(*self.victims)
        self.victims.clear()
