"""Hosts on one machine: network namespaces joined by a bridge, itself in a namespace of its own.

Owns names, addresses and rules of the packet filter. Nothing is added to the machine's own network: links,
addresses and rules live in the namespaces, and go with them. A namespace's name begins with its lab's, which
tells whose it is (`leftovers.py`). Knows nothing of etcd.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which
from socket import AF_INET, SocketKind, socket

from tests.cluster.leftovers import NAMESPACES, Lab, own_lab

_CLONE_NEWNET = 0x40000000
_SWITCH = "switch"


@cache
def why_no_hosts() -> str | None:
    """Say what this machine lacks for namespaces, None if nothing."""
    if os.geteuid() != 0:
        return "no network namespaces: only root makes them"
    missing = [program for program in ("ip", "nsenter", "setpriv") if which(program) is None]
    if missing:
        return f"no network namespaces: no {missing[0]} (packages iproute2 and util-linux)"
    lab = own_lab()
    made = subprocess.run(["ip", "netns", "add", f"{lab.name}-probe"], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no network namespaces: ip netns add is refused: {made.stderr.strip()}"
    lab.clear()
    return None


class CommandFailed(AssertionError):
    """A command has told that it failed."""


def output_of(*command: str | Path, given: str | None = None) -> str:
    """Run a command, and return what it prints; CommandFailed if it does not succeed."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(map(str, command))}: {done.stderr}{done.stdout}")
    return done.stdout


@dataclass(frozen=True)
class Host:
    """A network namespace with one address."""

    name: str
    address: str
    namespace: str

    @property
    def inside(self) -> tuple[str, ...]:
        """Return what to put before a command that is to run here.

        Not `ip netns exec`: that gives the command mounts of its own, and a FUSE mount made there
        would be out of sight.
        """
        return ("nsenter", f"--net={NAMESPACES / self.namespace}")

    def run(self, *command: str | Path, given: str | None = None) -> str:
        """Run a command here, and return what it prints."""
        return output_of(*self.inside, *command, given=given)

    def open_socket(self, kind: SocketKind) -> socket:
        """Make a socket of this host: it stays here, whoever uses it."""
        with ThreadPoolExecutor(1) as thread:  # which is in this namespace until it ends
            return thread.submit(self._open, kind).result()

    def _open(self, kind: SocketKind) -> socket:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
        with (NAMESPACES / self.namespace).open() as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        return socket(AF_INET, kind)


class Rule:
    """A rule of iptables on one host."""

    def __init__(self, host: Host, chain: str, *rule: str) -> None:
        self._host = host
        self._rule = (chain, *rule)

    def add(self) -> "Rule":
        self._host.run("iptables", "--wait", "-A", *self._rule)
        return self

    def remove(self) -> None:
        self._host.run("iptables", "--wait", "-D", *self._rule)


class Network:
    """Some hosts that reach one another, and the operator's, which nobody cuts off."""

    def __init__(self, lab: Lab, names: Sequence[str]) -> None:
        self._lab = lab
        self.hosts = [
            Host(name, f"10.0.0.{number}", f"{lab.name}-{name}") for number, name in enumerate(names, 1)
        ]
        self.operator = Host(_SWITCH, "10.0.0.254", f"{lab.name}-{_SWITCH}")

    def create(self) -> None:
        """Make namespaces and links."""
        switch = self.operator.namespace
        _ip([f"netns add {host.namespace}" for host in [*self.hosts, self.operator]])
        _ip(
            [
                f"link add name {host.name} netns {switch} type veth peer name eth0 netns {host.namespace}"
                for host in self.hosts
            ]
        )
        _ip(
            [
                "link add name bridge type bridge forward_delay 0",
                f"addr add {self.operator.address}/24 dev bridge",
                *(f"link set dev {host.name} master bridge up" for host in self.hosts),
                "link set dev bridge up",
                "link set dev lo up",
            ],
            switch,
        )
        for host in self.hosts:
            _ip(
                [f"addr add {host.address}/24 dev eth0", "link set dev eth0 up", "link set dev lo up"],
                host.namespace,
            )


def both_ways(some: Iterable[Host], others: Iterable[Host]) -> list[tuple[Host, Host]]:
    """Return the ways between two sets of hosts, as (sender, receiver)."""
    others = list(others)
    pairs = [(a, b) for a in some for b in others if a != b]
    return pairs + [(b, a) for a, b in pairs]


def _ip(commands: Sequence[str], namespace: str | None = None) -> None:
    where = () if namespace is None else ("-n", namespace)
    output_of("ip", *where, "-batch", "-", given="\n".join(commands) + "\n")
