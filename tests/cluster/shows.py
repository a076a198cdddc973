"""How to see that a fault is there, for each fault: a generator that goes on when it is healed."""

import errno
import os
import shutil
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import SOCK_DGRAM, SOCK_STREAM
from statistics import median

from tests.cluster.cluster import Cluster, ClusterMount
from tests.cluster.fault import Fault
from tests.cluster.faults_of_processes import OutOfMemory
from tests.cluster.hosts import Host
from tests.cluster.members import CLIENT_PORT, Member, Status
from tests.cluster.recovery import Recovery
from tests.support.refusal import refused
from tests.support.waiting import eventually

PROBE_PORT = 9999
PROBES = 200
PROBE_WITHIN_S = 1.0
FULL_WITHIN_S = 90.0
FOLLOWS_CLOCK_S = 3000


@dataclass(frozen=True)
class Scene:
    """A fault that has begun, writers on all mounts, and what members said before."""

    cluster: Cluster
    fault: Fault
    recovery: Recovery
    before: Mapping[str, Status]

    def member(self) -> Member:
        """Return the one member that is struck."""
        (victim,) = self.fault.victims
        assert isinstance(victim, Member)
        return victim

    def mount(self) -> ClusterMount:
        """Return the one mount that is struck."""
        (victim,) = self.fault.victims
        assert isinstance(victim, ClusterMount)
        return victim

    def was_leader(self, member: Member) -> bool:
        said = self.before[member.name]
        return said.leader == said.id

    def others_go_on(self) -> None:
        """Wait until the mounts that are not struck push on."""
        self.recovery.progress(without=self.fault.victims)


def state_of(pid: int) -> str:
    """Return how the kernel names a process's state: R, S, D, T …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Processes


def killed(scene: Scene, *, leader: bool) -> Iterator[None]:
    victim = scene.member()
    assert scene.was_leader(victim) == leader
    assert not victim.alive
    assert scene.cluster.leader() is not victim
    scene.others_go_on()
    yield
    assert victim.alive


def two_killed(scene: Scene) -> Iterator[None]:
    victims = list(scene.fault.victims)
    assert [victim.alive for victim in victims] == [False, False]
    eventually(lambda: scene.cluster.operator.leader() is None)
    before = [writer.ok for writer in scene.recovery.writers]
    (left,) = scene.cluster.running_members()
    eventually(lambda: scene.cluster.operator.status()[left.name].leader == 0)
    assert [writer.ok for writer in scene.recovery.writers] == before
    yield
    assert [victim.alive for victim in victims] == [True, True]


def frozen_member(scene: Scene, *, leader: bool) -> Iterator[None]:
    victim = scene.member()
    assert scene.was_leader(victim) == leader
    assert state_of(victim.pid) == "T"
    assert scene.cluster.leader() is not victim
    scene.others_go_on()
    yield
    assert state_of(victim.pid) != "T"


def killed_mount(scene: Scene) -> Iterator[None]:
    victim = scene.mount()
    with refused(errno.ENOTCONN):
        os.listdir(victim.path)
    scene.others_go_on()
    eventually(lambda: victim.pid not in scene.cluster.sessions())
    yield
    assert os.listdir(victim.path)


def frozen_mount(scene: Scene) -> Iterator[None]:
    """For longer than its session lives."""
    victim = scene.mount()
    assert state_of(victim.pid) == "T"
    eventually(lambda: victim.pid not in scene.cluster.sessions())
    scene.others_go_on()
    yield
    assert "was lost: its lease ran out" in victim.log


def out_of_memory(scene: Scene) -> Iterator[None]:
    fault = scene.fault
    assert isinstance(fault, OutOfMemory)
    (victim,) = fault.victims
    assert not victim.alive
    assert fault.kills_of_the_kernel > 0
    scene.others_go_on()
    yield
    assert victim.alive


def jumped_clock(scene: Scene, *, ahead: bool) -> Iterator[None]:
    victim = scene.mount()
    (victim.path / "hours").mkdir()

    def off_s() -> float:
        """Push to a new topic each time: a topic's own time does not go back."""
        pushed = Path("hours", str(time.monotonic_ns()))
        (victim.path / pushed).write_text("a push\n")
        return (scene.cluster.mounts[0].path / pushed).stat().st_mtime - time.time()

    eventually(lambda: off_s() > FOLLOWS_CLOCK_S if ahead else off_s() < -FOLLOWS_CLOCK_S)
    scene.recovery.progress()
    session = victim.pid in scene.cluster.sessions()
    yield
    assert session, "leases do not hang on a wall clock"
    eventually(lambda: abs(off_s()) < FOLLOWS_CLOCK_S)
    shutil.rmtree(victim.path / "hours")


# The network


def reaches(sender: Host, receiver: Host) -> bool:
    """Say whether anything of a handful of datagrams arrives."""
    with receiver.open_socket(SOCK_DGRAM) as here, sender.open_socket(SOCK_DGRAM) as there:
        here.bind((receiver.address, PROBE_PORT))
        here.settimeout(PROBE_WITHIN_S)
        for _ in range(5):
            there.sendto(b"probe", (receiver.address, PROBE_PORT))
        with suppress(TimeoutError):
            return here.recv(100) == b"probe"
    return False


def ways(scene: Scene, host: Host, others: list[Host]) -> set[tuple[bool, bool]]:
    """Return, for each other host, whether it hears `host` and whether `host` hears it."""
    return {(reaches(host, other), reaches(other, host)) for other in others}


def cut_off_member(scene: Scene, *, leader: bool, heard: bool = False, hears: bool = False) -> Iterator[None]:
    victim = scene.member()
    assert scene.was_leader(victim) == leader
    others = [host for host in scene.cluster.network.hosts if host != victim.host]
    assert ways(scene, victim.host, others) == {(heard, hears)}
    assert ways(scene, others[0], others[1:]) == {(True, True)}
    if not hears:  # whom nobody hears knows of no new leader; the others do
        eventually(lambda: scene.cluster.operator.leader() not in (None, victim))
    scene.recovery.progress()
    yield
    assert ways(scene, victim.host, others) == {(True, True)}


def cut_off_mount(scene: Scene) -> Iterator[None]:
    victim = scene.mount()
    members = [member.host for member in scene.cluster.members]
    assert ways(scene, victim.host, members) == {(False, False)}
    eventually(lambda: victim.pid not in scene.cluster.sessions())
    scene.others_go_on()
    yield
    assert ways(scene, victim.host, members) == {(True, True)}


def cut_off_from_leader(scene: Scene) -> Iterator[None]:
    victim = scene.mount()
    leader = next(member for member in scene.cluster.members if scene.was_leader(member))
    others = [member.host for member in scene.cluster.members if member is not leader]
    assert ways(scene, victim.host, [leader.host]) == {(False, False)}
    assert ways(scene, victim.host, others) == {(True, True)}
    scene.recovery.progress()
    yield
    assert ways(scene, victim.host, [leader.host]) == {(True, True)}


def probe(sender: Host, receiver: Host) -> list[tuple[int, float]]:
    """Send datagrams, a millisecond apart; return number and seconds under way of those that arrive."""
    arrived: list[tuple[int, float]] = []
    with receiver.open_socket(SOCK_DGRAM) as here, sender.open_socket(SOCK_DGRAM) as there:
        here.bind((receiver.address, PROBE_PORT))
        here.settimeout(0.001)

        def receive() -> bool:
            with suppress(TimeoutError):
                number, sent = here.recv(100).split()
                arrived.append((int(number), time.monotonic() - float(sent)))
                return True
            return False

        for number in range(PROBES):
            there.sendto(b"%d %f" % (number, time.monotonic()), (receiver.address, PROBE_PORT))
            receive()
        here.settimeout(PROBE_WITHIN_S)
        while receive():
            pass
    return arrived


def bad_line(
    scene: Scene, *, at_least_s: float = 0, disordered: bool = False, lossy: bool = False
) -> Iterator[None]:
    (victim,) = scene.fault.victims
    operator = scene.cluster.operator.host
    arrived = probe(victim.host, operator)
    took = [took for _, took in arrived]
    numbers = [number for number, _ in arrived]
    print(
        f"\n{scene.fault} of {victim.name}: {PROBES - len(arrived)} of {PROBES} lost,"
        f" {1000 * min(took):.1f} to {1000 * max(took):.1f} ms, in order: {numbers == sorted(numbers)}"
    )
    assert min(took) >= at_least_s
    if disordered:
        assert numbers != sorted(numbers)
    assert (len(arrived) < PROBES) == lossy
    assert len(arrived) > PROBES // 2
    scene.recovery.progress(20)
    yield
    arrived = probe(victim.host, operator)
    assert len(arrived) == PROBES
    assert median(took for _, took in arrived) < 0.02


# What etcd stores


def full_disk(scene: Scene) -> Iterator[None]:
    victim = scene.member()
    assert victim.disk.spare_bytes == 0
    eventually(lambda: not victim.alive, within_s=FULL_WITHIN_S)
    assert "no space left on device" in victim.log
    scene.others_go_on()
    yield
    assert victim.disk.spare_bytes > 0


def full_etcd(scene: Scene) -> Iterator[None]:
    for writer in scene.recovery.writers:
        eventually(lambda writer=writer: errno.ENOSPC in {error.errno for error in writer.errors})  # type: ignore[misc]
    for mount in scene.cluster.mounts:
        assert os.listdir(mount.path), "reads go on"
    yield
    assert scene.cluster.operator.alarms() == ""


def compaction(scene: Scene) -> Iterator[None]:
    try:
        scene.cluster.operator.etcdctl("get", "key", "--rev", "2")
    except AssertionError as refusal:
        assert "has been compacted" in str(refusal)  # noqa: PT017 - it is not pytest's business
    else:
        raise AssertionError("etcd still knows revision 2")
    scene.recovery.progress(20)
    yield


def replaced(scene: Scene) -> Iterator[None]:
    victim = scene.member()
    assert not victim.data.exists()
    assert len(scene.cluster.operator.etcdctl("member", "list").splitlines()) == 2
    scene.recovery.progress()
    yield
    now = scene.cluster.operator.status()
    assert now[victim.name].id != scene.before[victim.name].id
    assert len(scene.cluster.operator.etcdctl("member", "list").splitlines()) == 3


def shown_certificate(cluster: Cluster, member: Member) -> str:
    """Return the certificate that a member shows now."""
    context = ssl.create_default_context(cafile=str(cluster.authority.ca))
    context.load_cert_chain(member.pair.cert, member.pair.key)
    with cluster.operator.host.open_socket(SOCK_STREAM) as line:
        line.settimeout(PROBE_WITHIN_S)
        line.connect((member.host.address, CLIENT_PORT))
        with context.wrap_socket(line, server_hostname=member.host.address) as secure:
            shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown)


def new_certificates(scene: Scene) -> Iterator[None]:
    for member in scene.cluster.running_members():
        assert shown_certificate(scene.cluster, member).strip() == member.pair.cert.read_text().strip()
    scene.recovery.progress()
    yield
    for member in scene.cluster.members:
        assert shown_certificate(scene.cluster, member).strip() == member.pair.cert.read_text().strip()


SHOWS: dict[str, Callable[[Scene], Iterator[None]]] = {
    "follower killed": lambda scene: killed(scene, leader=False),
    "leader killed": lambda scene: killed(scene, leader=True),
    "two members killed": two_killed,
    "follower frozen": lambda scene: frozen_member(scene, leader=False),
    "leader frozen": lambda scene: frozen_member(scene, leader=True),
    "mount killed": killed_mount,
    "mount frozen": frozen_mount,
    "member out of memory": out_of_memory,
    "mount out of memory": out_of_memory,
    "clock an hour ahead": lambda scene: jumped_clock(scene, ahead=True),
    "clock an hour behind": lambda scene: jumped_clock(scene, ahead=False),
    "follower cut off": lambda scene: cut_off_member(scene, leader=False),
    "leader cut off": lambda scene: cut_off_member(scene, leader=True),
    "leader hears nobody": lambda scene: cut_off_member(scene, leader=True, heard=True),
    "leader is heard by nobody": lambda scene: cut_off_member(scene, leader=True, hears=True),
    "mount cut off": cut_off_mount,
    "mount cut off from the leader": cut_off_from_leader,
    "delay": lambda scene: bad_line(scene, at_least_s=0.035),
    "jitter": lambda scene: bad_line(scene, at_least_s=0.004, disordered=True),
    "loss": lambda scene: bad_line(scene, lossy=True),
    "full disk": full_disk,
    "full etcd": full_etcd,
    "compaction": compaction,
    "member replaced": replaced,
    "new certificates": new_certificates,
}
