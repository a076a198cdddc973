"""A cluster of three hosts under systemd, made by what docs/systemd.md tells an administrator to type."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Network
from tests.cluster.leftovers import clear_abandoned, guarded, own_lab
from tests.docs.documents import SYSTEMD
from tests.support.mounts import REPOSITORY
from tests.support.waiting import eventually
from tests.systemd.image import image, wheels
from tests.systemd.machines import Machine, boot_all

NAMES = ("node1", "node2", "node3")
RECOVERY_S = 120.0
"""How long all may need to be well again: members are elected, daemons start, and the machine is busy."""


class Nodes:
    """The cluster; and the checkout from which its hosts are made, as they have it."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = list(machines)

    def provision(self) -> None:
        """Do what the guide says: certificates, then each node."""
        first = self.machines[0]
        made_of = wheels()
        for machine in self.machines:
            put_checkout(machine, made_of)
        first.shell(f"cd dnpipefs; {SYSTEMD.labelled('certificates')}")
        made = first.root / "root/dnpipefs/certificates"
        for machine in self.machines[1:]:
            shutil.copytree(made, machine.root / "root/dnpipefs/certificates")
        with ThreadPoolExecutor() as administrators:
            for said in administrators.map(provision, self.machines):
                assert "is mounted as soon as" in said
        self.wait_well()

    def wait_well(self) -> None:
        """Wait until all of them serve /dnp, and with an answering etcd."""
        eventually(lambda: all(map(is_well, self.machines)), within_s=RECOVERY_S)

    def put_right(self) -> None:
        """Start what a test has stopped."""
        for machine in self.machines:
            machine.thaw()
            if machine.init is not None:
                machine.try_run("systemctl", "start", "--no-block", "etcd", "dnpipefs")

    def logs(self) -> str:
        """Return the ends of all journals."""
        shown = "journalctl --no-pager --lines 40 --unit etcd --unit dnpipefs --unit dnp.mount"
        return "\n".join(f"{machine.name}:\n{machine.says(shown)}" for machine in self.machines)


def put_checkout(machine: Machine, wheels: Path) -> None:
    """Give a host what provisioning is done with, as a clone; and wheels, since it reaches no index."""
    checkout = machine.root / "root/dnpipefs"
    parts = {name: REPOSITORY / name for name in ("scripts", "systemd")} | {"wheels": wheels}
    for name, source in parts.items():
        shutil.rmtree(checkout / name, ignore_errors=True)
        shutil.copytree(source, checkout / name)


def provision(machine: Machine) -> str:
    """Type what the guide says for a node; the hosts have no network to install from."""
    line = SYSTEMD.labelled("node").rstrip().replace("--name node1", f"--name {machine.name}")
    return machine.shell(f"cd dnpipefs; {line} --wheels wheels")


def is_well(machine: Machine) -> bool:
    """Whether it serves /dnp, and its etcd answers."""
    told = status(machine)
    return told is not None and bool(told.get("etcd", {}).get("answers") and told["session"]["healthy"])


def status(machine: Machine, mountpoint: str = "/dnp") -> dict[str, Any] | None:
    """Return what `dnpipefs status` tells of a mount, None if there is none."""
    done = machine.try_run("dnpipefs", "status", mountpoint, "--format", "json")
    if not done.stdout.startswith("{"):
        return None
    told: dict[str, Any] = json.loads(done.stdout)["mounts"][0]
    return told


def daemon(machine: Machine, unit: str = "dnpipefs") -> int:
    """Return the pid of a unit's daemon as the host has it, 0 if there is none."""
    return int(machine.run("systemctl", "show", "--property=MainPID", "--value", unit))


@contextmanager
def running_machines(
    make_directory: Callable[[str], Path], names: Sequence[str], *, immutable: bool = True
) -> Iterator[list[Machine]]:
    """Boot hosts from the image while the block runs. Raises Missing if there is no image."""
    clear_abandoned()
    base, lab = image(), own_lab()
    directory = make_directory(lab.name)
    with guarded(lab):
        network = Network(lab, names)
        machines = [
            Machine(lab, host, base, directory / host.name, immutable=immutable) for host in network.hosts
        ]
        try:
            network.create()
            boot_all(machines)
            yield machines
        finally:
            lab.clear()
            for machine in machines:
                machine.join()
            shutil.rmtree(directory)
