"""All faults by name, to be drawn from.

    fault = draw.choice(FAULTS)()
    fault.begin(cluster, draw)
    …
    fault.heal(cluster)
    cluster.wait_well()

Several may be there at once. `Fault.why_not` tells what the machine lacks for one.
"""

from collections.abc import Callable
from functools import partial

from tests.cluster.fault import Fault
from tests.cluster.faults_of_network import (
    BadLine,
    MemberCutOff,
    MountCutOff,
    hears_nobody,
    is_heard_by_nobody,
)
from tests.cluster.faults_of_processes import (
    ClockJump,
    FrozenMembers,
    FrozenMount,
    KilledMembers,
    KilledMount,
    OutOfMemory,
)
from tests.cluster.faults_of_storage import (
    Compaction,
    FullDisk,
    FullEtcd,
    NewCertificates,
    ReplacedMember,
)
from tests.cluster.slow_network import Line

MakeFault = Callable[[], Fault]

HOUR_S = 3600

FAULTS: list[MakeFault] = [
    partial(KilledMembers, "follower killed", followers=1),
    partial(KilledMembers, "leader killed", leader=True),
    partial(KilledMembers, "two members killed", leader=True, followers=1),
    partial(FrozenMembers, "follower frozen", followers=1),
    partial(FrozenMembers, "leader frozen", leader=True),
    partial(KilledMount, "mount killed"),
    partial(FrozenMount, "mount frozen"),
    partial(OutOfMemory, "member out of memory", member=True),
    partial(OutOfMemory, "mount out of memory", member=False),
    partial(ClockJump, "clock an hour ahead", HOUR_S),
    partial(ClockJump, "clock an hour behind", -HOUR_S),
    partial(MemberCutOff, "follower cut off", followers=1),
    partial(MemberCutOff, "leader cut off", leader=True),
    partial(MemberCutOff, "leader hears nobody", hears_nobody, leader=True),
    partial(MemberCutOff, "leader is heard by nobody", is_heard_by_nobody, leader=True),
    partial(MountCutOff, "mount cut off"),
    partial(MountCutOff, "mount cut off from the leader", leader_only=True),
    partial(BadLine, "delay", Line(delay_ms=40)),
    partial(BadLine, "jitter", Line(delay_ms=5, jitter_ms=40)),
    partial(BadLine, "loss", Line(loss=0.1)),
    partial(FullDisk, "full disk", followers=1),
    partial(FullEtcd, "full etcd"),
    partial(Compaction, "compaction"),
    partial(ReplacedMember, "member replaced", followers=1),
    partial(NewCertificates, "new certificates"),
]


def fault_named(name: str) -> Fault:
    """Make the fault of that name."""
    return next(fault for make in FAULTS if (fault := make()).name == name)
