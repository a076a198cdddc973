"""The cluster on one machine: it comes up, is what it says, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.cluster.cluster import PREFIX, USER, Cluster
from tests.cluster.faults import fault_named
from tests.cluster.leftovers import Lab, clear_abandoned
from tests.cluster.recovery import longest_gap_s, measured
from tests.support.checker import MessageId, Outcome, Push
from tests.support.waiting import eventually


def test_a_message_passes_from_each_mount_to_each_other(cluster: Cluster) -> None:
    for mount in cluster.mounts:
        (mount.path / f"from-{mount.name}").write_text(f"hello from {mount.name}\n")
        for other in cluster.mounts:
            assert (other.path / f"from-{mount.name}").read_text() == f"hello from {mount.name}\n"


def test_each_host_is_one_of_its_own(cluster: Cluster) -> None:
    seen = {host.run("ip", "-brief", "-4", "addr", "show", "dev", "eth0") for host in cluster.network.hosts}
    assert len(seen) == 6
    here = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    assert not any(f"{host.name}@" in here for host in cluster.network.hosts), (
        "nothing of it is the machine's"
    )


def test_etcd_wants_certificates_and_keeps_the_mounts_to_their_prefix(cluster: Cluster) -> None:
    operator = cluster.operator.host
    keys = cluster.authority.ca.parent
    etcdctl = ("env", "ETCDCTL_API=3", "etcdctl", "--endpoints", cluster.members[0].endpoint)
    trusting = ("--cacert", cluster.authority.ca, "--dial-timeout", "1s", "--command-timeout", "1s")
    with pytest.raises(AssertionError, match=r"deadline|certificate"):
        operator.run(*etcdctl, *trusting, "get", "key")
    cluster.authority.issue(USER, host=operator.address)
    as_mount = (*etcdctl, *trusting, "--cert", keys / f"{USER}.crt", "--key", keys / f"{USER}.key")
    assert operator.run(*as_mount, "get", "--keys-only", f"{PREFIX}meta").strip() == f"{PREFIX}meta"
    with pytest.raises(AssertionError, match="permission denied"):
        operator.run(*as_mount, "put", "elsewhere", "value")


def test_invariant_1_when_the_leader_is_killed(cluster: Cluster) -> None:
    fault = fault_named("leader killed")
    with measured(cluster, "leader-killed") as recovery:
        try:
            fault.begin(cluster, Random(1))
            assert cluster.leader() not in fault.victims
            recovery.progress()
        finally:
            fault.heal(cluster)
        cluster.wait_well()
        recovery.progress()
        print(f"leader killed: {recovery.gaps()}")
        assert recovery.errors() == set()


_OWNER_OF_NETWORK = """
import subprocess, sys
from pathlib import Path
from tests.cluster.hosts import Network, output_of
from tests.cluster.leftovers import guarded, own_lab
lab = own_lab()
disk = Path(sys.argv[1]) / lab.name
disk.mkdir()
with guarded(lab):
    network = Network(lab, ["a", "b"])
    network.create()
    output_of("mount", "-t", "tmpfs", "dnpipefs-test", disk)
    subprocess.Popen([*network.hosts[0].inside, "sleep", "1000"])
    print(lab.name, flush=True)
    sys.stdin.read()
"""


_OWNER_OF_CLUSTER = """
import sys
from pathlib import Path
from tests.cluster.cluster import running_cluster
def make_directory(name):
    directory = Path(sys.argv[1]) / name
    directory.mkdir()
    return directory
with running_cluster(make_directory, "etcd") as cluster:
    print(cluster.lab.name, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("guardian", ["guardian lives", "guardian killed"])
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(_OWNER_OF_NETWORK, id="network"),
        pytest.param(_OWNER_OF_CLUSTER, id="cluster", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.usefixtures("make_directory")
def test_nothing_is_left_when_the_owner_is_killed(
    repository: Path, tmp_path: Path, guardian: str, script: str
) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path],
        cwd=repository,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None
        lab = Lab(owner.stdout.readline().strip())
        assert lab.namespaces()
        eventually(lab.processes)  # it enters its namespace after it was started
        assert lab.mounts()
        if guardian == "guardian killed":
            for child in Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split():
                if b"tests.cluster.leftovers" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
    finally:
        owner.kill()
        owner.wait()  # not for the end of its output: the process that it has left has that, too
        for pipe in (owner.stdin, owner.stdout):
            assert pipe is not None
            pipe.close()
    if guardian == "guardian killed":
        assert lab.abandoned
        clear_abandoned()
    eventually(lambda: not (lab.processes() or lab.namespaces() or lab.mounts()))


def test_the_longest_gap_counts_what_was_under_way_and_what_has_not_come_yet() -> None:
    def push(number: int, ended_s: float, outcome: Outcome = Outcome.OK) -> Push:
        return Push(MessageId("writer", number), outcome, 0, round(ended_s * 1e9))

    pushes = [push(0, 1), push(1, 2), push(2, 5), push(3, 6, Outcome.UNKNOWN), push(4, 9), push(5, 10)]
    assert longest_gap_s(pushes, 4_000_000_000, 10_000_000_000) == 4
    assert longest_gap_s(pushes[:3], 2_500_000_000, 5_500_000_000) == 3
    assert longest_gap_s(pushes, 9_000_000_000, 16_000_000_000) == 6
    assert longest_gap_s([], 1_000_000_000, 3_000_000_000) == 2
