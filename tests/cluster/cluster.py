"""Three etcd members and three mounts on six hosts, with TLS and users: started, stopped, asked how it is."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.hosts import CommandFailed, Host, Network
from tests.cluster.leftovers import Lab, clear_abandoned, guarded, leftovers_of_faketime, own_lab
from tests.cluster.members import Member, Operator
from tests.support.certificates import Authority, Pair
from tests.support.mounts import Mount
from tests.support.waiting import eventually

USER = "dnpipefs"
PASSWORD = "a password of the tests"  # noqa: S105 - nobody else's
PREFIX = "/dnp/"
SESSION_TTL_S = 4
OP_TIMEOUT_S = 10.0
"""How long calls wait for etcd: shorter than faults may last."""
RECOVERY_S = 40.0
"""How long all may need to be well again: clients back off, leaders are elected, sessions begin anew."""
LOG_SHOWN = 4000
IN_STEP = 50
"""By how many entries of etcd's log members may differ that are asked one after another."""

_FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


class ClusterMount(Mount):
    """A mount on a host of its own, with a clock of its own where libfaketime is there."""

    def __init__(self, host: Host, directory: Path, members: Sequence[Member], authority: Authority) -> None:
        """The first mount is known by its certificate alone, the others by password, too."""
        by_certificate = host.name == "m1"
        self.host = host
        self.name = host.name
        self._authority = authority
        self._known_as = USER if by_certificate else host.name
        pair = self.renew()
        (directory / host.name).mkdir()
        identity: dict[str, Any] = {
            "tls": {"cacert": str(authority.ca), "cert": str(pair.cert), "key": str(pair.key)}
        }
        if not by_certificate:
            identity["credentials"] = {"user": USER, "password": PASSWORD}
        super().__init__(
            directory / host.name,
            endpoints=[member.endpoint for member in members],
            prefix=PREFIX,
            op_timeout=OP_TIMEOUT_S,
            session_ttl=SESSION_TTL_S,
            **identity,
        )
        self.frozen = False
        self._clock = directory / host.name / "clock"
        self.set_clock(0)
        self.wrapper = [*host.inside, *self._faketime()]

    def renew(self) -> Pair:
        """Put another certificate in the place of the present one."""
        return self._authority.issue(self._known_as, host=self.host.address)

    def _faketime(self) -> list[str]:
        if not _FAKETIME:
            return []
        settings = {
            "LD_PRELOAD": str(_FAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # the same to older releases
        }
        return ["env", *(f"{name}={value}" for name, value in settings.items())]

    def launch(self) -> None:
        """Mount, without waiting; what an earlier daemon has left is unmounted before."""
        self.clear()
        self.frozen = False
        super().launch()

    def comes_up(self) -> bool:
        """Wait until the mount answers; False if the daemon has ended, or does before."""
        if self.alive and self._ready is not None and not self._ready.closed:
            try:
                self.wait_ready()
            except AssertionError:
                self.wait()
        return self.alive

    def wait_ready(self) -> None:
        super().wait_ready()
        for file in leftovers_of_faketime(self.pid):  # it has them open; a kill would leave them behind
            file.unlink(missing_ok=True)

    def set_clock(self, ahead_s: int) -> None:
        """Put its wall clock, not the monotonic one, ahead of the machine's; it sees that within a second."""
        new = self._clock.with_name("clock.new")
        new.write_text(f"{ahead_s:+d}\n")
        new.replace(self._clock)

    def pause(self) -> None:
        super().pause()
        self.frozen = True

    def resume(self) -> None:
        super().resume()
        self.frozen = False


def why_no_clocks() -> str | None:
    """Say what this machine lacks to give mounts clocks of their own, None if nothing."""
    return None if _FAKETIME else "no clock of a mount's own: no libfaketime (package libfaketime)"


class Cluster:
    """The cluster."""

    def __init__(self, lab: Lab, directory: Path, binary: str, starter: ThreadPoolExecutor) -> None:
        self.lab = lab
        self.bad_lines: set[str] = set()
        """Hosts whose packets are queued: there is one queue a host."""
        self._starter = starter
        self.network = Network(lab, ["e1", "e2", "e3", "m1", "m2", "m3"])
        keys = directory / "keys"
        keys.mkdir()
        self.authority = Authority(keys, "authority")
        hosts = self.network.hosts
        self.members = [Member(host, directory / host.name, self.authority, binary) for host in hosts[:3]]
        for member in self.members:
            member.cluster = self.members
        self.operator = Operator(self.network.operator, self.members, self.authority)
        self.mounts = [
            ClusterMount(host, directory, self._from(number), self.authority)
            for number, host in enumerate(hosts[3:])
        ]

    def _from(self, number: int) -> list[Member]:
        """Return the members in an order that lets each mount begin with another."""
        return [*self.members[number:], *self.members[:number]]

    def launch(self, *processes: Member | ClusterMount) -> None:
        """Start members and mounts that do not run, without waiting for them.

        In a thread of the cluster's: the kernel ends what a thread has started when that thread ends.
        """
        for process in processes:
            if not process.alive:
                self._starter.submit(process.launch).result()

    def create(self) -> None:
        """Make hosts, members, users and mounts."""
        self.network.create()
        for member in self.members:
            member.disk.make()
        self.launch(*self.members)
        self.operator.wait_ready(self.members)
        self.operator.enable_users(USER, PASSWORD, PREFIX)
        self.launch(*self.mounts)
        self.wait_well()

    def logs(self) -> str:
        """Return the ends of all logs."""
        processes: list[Member | ClusterMount] = [*self.members, *self.mounts]
        logs = {process.name: process.log for process in processes}
        return "\n".join(f"{name}:\n{log[-LOG_SHOWN:]}" for name, log in logs.items())

    def end_daemons(self) -> None:
        """Kill the mounts' daemons, so that whoever waits for one in the kernel fails."""
        for mount in self.mounts:
            if mount.alive:
                mount.resume()
                mount.process.kill()

    def stop(self) -> None:
        """End all processes."""
        for mount in self.mounts:
            mount.clear()
        for member in self.members:
            member.kill()

    def leader(self) -> Member:
        """Return the leader, once there is one."""
        found = eventually(self.operator.leader, within_s=RECOVERY_S)
        assert found is not None
        return found

    def followers(self) -> list[Member]:
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def running_members(self) -> list[Member]:
        """Return the members that run and are not frozen."""
        return [member for member in self.members if member.alive and not member.frozen]

    def running_mounts(self) -> list[ClusterMount]:
        """Return the mounts that run and are not frozen."""
        return [mount for mount in self.mounts if mount.alive and not mount.frozen]

    def sessions(self) -> dict[int, set[str]]:
        """Return the sessions that etcd has, by the pids of the mounts."""
        told = self.operator.etcdctl("get", f"{PREFIX}session/", "--prefix").splitlines()
        found: dict[int, set[str]] = {}
        for key, value in zip(told[::2], told[1::2], strict=True):
            found.setdefault(json.loads(value)["pid"], set()).add(key)
        return found

    def wait_well(self) -> None:
        """Wait until all members follow one leader and have applied what it has, and mounts have sessions.

        Starts what does not run: a member that could not go on, a mount that could not begin.
        """
        deadline = time.monotonic() + RECOVERY_S
        self.launch(*self.members)
        eventually(self._in_step, within_s=RECOVERY_S)
        eventually(self.operator.look_after, within_s=RECOVERY_S)
        for mount in self.mounts:
            while not mount.comes_up():
                assert time.monotonic() < deadline, f"{mount.name} does not come up:\n{mount.log}"
                self.launch(mount)
        eventually(self._have_sessions, within_s=RECOVERY_S)

    def _have_sessions(self) -> bool:
        try:
            return {mount.pid for mount in self.mounts} <= self.sessions().keys()
        except CommandFailed:
            return False

    def _in_step(self) -> bool:
        told = self.operator.status()
        applied = [status.applied for status in told.values()]
        return (
            len(told) == len(self.members)
            and len({status.leader for status in told.values()} - {0}) == 1
            and max(applied) - min(applied) < IN_STEP
        )


@contextmanager
def running_cluster(make_directory: Callable[[str], Path], binary: str) -> Iterator[Cluster]:
    """Run a cluster while the block runs; `make_directory` makes a directory of a name for it."""
    clear_abandoned()
    lab = own_lab()
    with guarded(lab), ThreadPoolExecutor(1) as starter:
        cluster = Cluster(lab, make_directory(lab.name), binary, starter)
        try:
            cluster.create()
            yield cluster
        finally:
            cluster.stop()
