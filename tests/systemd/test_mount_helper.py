"""mount(8), fstab and automount on a host under systemd, as docs/systemd.md has them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import CommandFailed
from tests.docs.documents import SYSTEMD
from tests.support.mounts import REPOSITORY
from tests.support.waiting import eventually
from tests.systemd.image import wheels
from tests.systemd.machines import Machine
from tests.systemd.nodes import RECOVERY_S, Nodes, put_checkout, running_machines

EXAMPLES = REPOSITORY / "systemd" / "examples"
SPEC = "10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/dnp"
KINDS = "cut -d' ' -f2,3 /proc/mounts | grep '^/dnp '"
"""What is mounted on /dnp, bottom first."""

needs_autofs = pytest.mark.skipif(
    not Path("/dev/autofs").exists(), reason="this kernel has no automounter (autofs)"
)


@pytest.fixture
def machine(nodes: Nodes) -> Iterator[Machine]:
    """A node whose /dnp is not mounted by the service."""
    one = nodes.machines[0]
    one.run("systemctl", "disable", "--quiet", "--now", "dnpipefs")
    one.run("cp", "/etc/fstab", "fstab.kept")
    yield one
    one.says("cp fstab.kept /etc/fstab; rm -f /etc/systemd/system/dnp.*; systemctl daemon-reload")
    one.says("systemctl stop dnp.automount dnp.mount; umount --all-targets /dnp; systemctl reset-failed")
    one.run("systemctl", "enable", "--quiet", "--now", "dnpipefs")


def add_to_fstab(machine: Machine, label: str) -> None:
    machine.run("tee", "-a", "/etc/fstab", given=SYSTEMD.labelled(label))
    machine.run("systemctl", "daemon-reload")


def test_mount_and_umount(machine: Machine) -> None:
    mounting, unmounting = SYSTEMD.labelled("mount").splitlines()
    machine.shell(mounting)
    assert machine.shell("findmnt --noheadings --output SOURCE,FSTYPE /dnp").split() == [
        SPEC,
        "fuse.dnpipefs",
    ]
    assert machine.shell("echo pushed > /dnp/mounted; cat /dnp/mounted; rm /dnp/mounted") == "pushed\n"
    machine.shell(unmounting)
    with pytest.raises(CommandFailed, match="Operation not permitted"):
        machine.shell("echo lost > /dnp/lost")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("10.0.0.1:2399 /dnp", 32, "check that etcd runs and listens there"),
        ("-o cache_sise=1MiB none /dnp", 1, "there is no option 'cache_sise'"),
        ("none /missing", 32, "mkdir -p /missing"),
    ],
)
def test_a_mount_that_cannot_be(machine: Machine, arguments: str, status: int, said: str) -> None:
    done = machine.try_run("bash", "-c", f"mount -t dnpipefs {arguments}")
    assert done.returncode == status
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "fuse" not in machine.says(KINDS)


def test_fstab(machine: Machine) -> None:
    add_to_fstab(machine, "fstab")
    machine.run("mount", "-a")
    machine.run("mount", "-a")  # it is mounted: nothing to do
    assert machine.says(KINDS) == "/dnp fuse.dnpipefs\n"
    machine.run("umount", "/dnp")
    machine.run("systemctl", "start", "dnp.mount")
    machine.shell("echo before > /dnp/fstab")
    machine.reboot()
    eventually(lambda: machine.says("cat /dnp/fstab") == "before\n", within_s=RECOVERY_S)
    assert machine.says("systemctl is-active dnp.mount") == "active\n"


@needs_autofs
def test_fstab_with_automount(machine: Machine) -> None:
    machine.shell("mount -t dnpipefs none /dnp; echo before > /dnp/automount; umount /dnp")
    add_to_fstab(machine, "fstab automount")
    machine.run("systemctl", "start", "dnp.automount")
    assert machine.says(KINDS) == "/dnp autofs\n"
    assert machine.shell("cat /dnp/automount") == "before\n", "whoever asks first waits"
    assert machine.says(KINDS) == "/dnp autofs\n/dnp fuse.dnpipefs\n"
    machine.run("systemctl", "stop", "dnp.mount")
    assert machine.shell("cat /dnp/automount") == "before\n"
    machine.reboot()
    eventually(lambda: machine.says("cat /dnp/automount") == "before\n", within_s=RECOVERY_S)


@needs_autofs
def test_the_examples_of_units(machine: Machine) -> None:
    for name in ("dnp.mount", "dnp.automount"):
        text = (EXAMPLES / name).read_text().replace("etcd1:2379,etcd2:2379,etcd3:2379/dnp", SPEC)
        machine.run("tee", f"/etc/systemd/system/{name}", given=text)
    machine.shell("systemctl daemon-reload; systemctl start dnp.mount")
    assert machine.shell("echo pushed > /dnp/unit; cat /dnp/unit") == "pushed\n"
    machine.shell("systemctl stop dnp.mount; systemctl start dnp.automount")
    assert machine.shell("cat /dnp/unit; rm /dnp/unit") == "pushed\n"


def test_a_daemon_of_mount_is_no_business_of_the_console(machine: Machine) -> None:
    machine.shell("mount -t dnpipefs none /dnp")
    told = machine.shell(
        "pgrep --full 'mount --foreground' | xargs ps --no-headers -o pid=,pgid=,sid=,tty= -p"
    ).split()
    assert told[0] == told[1] == told[2]
    assert told[3] == "?"


def test_a_guard_where_nothing_can_be_immutable(make_directory: Callable[[str], Path]) -> None:
    with running_machines(make_directory, ["plain"], immutable=False) as (plain,):
        put_checkout(plain, wheels())
        pip = "/opt/dnpipefs/bin/pip install --quiet --no-index --find-links dnpipefs/wheels"
        plain.shell(f"python3 -m venv /opt/dnpipefs; {pip} dnpipefs")
        plain.shell("cp dnpipefs/systemd/dnpipefs.service /etc/systemd/system; systemctl daemon-reload")
        plain.shell("systemctl stop etcd; systemctl start dnpipefs; echo pushed > /dnp/here; cat /dnp/here")
        for _ in range(2):
            plain.shell("systemctl stop dnpipefs")
            with pytest.raises(CommandFailed, match="Read-only file system"):
                plain.shell("echo lost > /dnp/lost")
            plain.shell("systemctl start dnpipefs")
            assert plain.shell("cat /dnp/here") == "pushed\n"
        assert plain.says(KINDS) == "/dnp tmpfs\n/dnp fuse.dnpipefs\n"
