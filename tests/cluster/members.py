"""Members of an etcd cluster, each on a host of its own, and the operator who looks after them by etcdctl."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.hosts import CommandFailed, Host, output_of
from tests.support.certificates import Authority, Pair
from tests.support.etcd_process import START_TIMEOUT_S, EtcdProcess

CLIENT_PORT = 2379
PEER_PORT = 2380
ROOT = "root"
QUOTA_BYTES = 128 << 20
"""What fills within seconds, and is far above what the tests store."""
ELECTION_MS = 500
SNAPSHOT_ENTRIES = 2000
"""After that many more than 5000 a member that was away gets a snapshot, not what it has missed."""
DISK = "1g"


class Disk:
    """A small file system, which can be made smaller and larger. etcd lays 128 MB out for its log at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        self.path.mkdir(parents=True)
        output_of("mount", "-t", "tmpfs", "-o", f"size={DISK}", "dnpipefs-test", self.path)

    def leave(self, spare_bytes: int) -> None:
        """Make it as small as leaves that much room."""
        now = os.statvfs(self.path)
        self._resize(str((now.f_blocks - now.f_bfree) * now.f_frsize + spare_bytes))

    def grow(self) -> None:
        self._resize(DISK)

    @property
    def spare_bytes(self) -> int:
        now = os.statvfs(self.path)
        return now.f_bavail * now.f_frsize

    def _resize(self, size: str) -> None:
        output_of("mount", "-o", f"remount,size={size}", self.path)


class Member(EtcdProcess):
    """An etcd that speaks TLS with clients and peers, and asks both for certificates."""

    cluster: list["Member"]  # type: ignore[assignment]

    def __init__(self, host: Host, directory: Path, authority: Authority, binary: str) -> None:
        super().__init__(directory, binary, name=host.name)
        self.host = host
        self.binary = binary
        self.peer = f"https://{host.address}:{PEER_PORT}"
        self.disk = Disk(directory / "disk")
        self.joins = False
        """Whether it is to be added to a cluster that is there."""
        self.frozen = False
        self._authority = authority
        self.pair = authority.issue(host.name, host=host.address)

    @property
    def endpoint(self) -> str:
        return f"https://{self.host.address}:{CLIENT_PORT}"

    def command(self) -> list[str]:
        authority = str(self._authority.ca)
        pair = ("--cert-file", str(self.pair.cert), "--key-file", str(self.pair.key))
        return [
            *(*self.host.inside, self.binary, "--name", self.name, "--data-dir", str(self.data)),
            *("--logger", "zap", "--log-level", "info"),
            *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
            *("--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer),
            *("--initial-cluster", ",".join(f"{member.name}={member.peer}" for member in self.cluster)),
            *("--initial-cluster-state", "existing" if self.joins else "new"),
            *("--heartbeat-interval", str(ELECTION_MS // 5), "--election-timeout", str(ELECTION_MS)),
            *("--quota-backend-bytes", str(QUOTA_BYTES), "--bcrypt-cost", "4"),
            *("--snapshot-count", str(SNAPSHOT_ENTRIES)),
            *("--client-cert-auth", "--trusted-ca-file", authority, *pair),
            *("--peer-client-cert-auth", "--peer-trusted-ca-file", authority),
            *(f"--peer-{word.removeprefix('--')}" if word.startswith("--") else word for word in pair),
        ]

    @property
    def data(self) -> Path:
        return self.disk.path / "data"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def launch(self) -> None:
        self.frozen = False
        super().launch()

    def pause(self) -> None:
        super().pause()
        self.frozen = True

    def resume(self) -> None:
        super().resume()
        self.frozen = False

    def renew(self) -> Pair:
        """Put another certificate in the place of the present one."""
        self.pair = self._authority.issue(self.name, host=self.host.address)
        return self.pair

    def forget(self) -> None:
        """Lose all data."""
        shutil.rmtree(self.data)


@dataclass(frozen=True)
class Status:
    """What a member says of itself."""

    id: int
    leader: int
    term: int
    applied: int
    database_bytes: int
    used_bytes: int
    version: str


class Operator:
    """Somebody with etcdctl and the certificate of etcd's root, whom no fault cuts off."""

    def __init__(self, host: Host, members: Sequence[Member], authority: Authority) -> None:
        self.host = host
        self._members = members
        self._authority = authority
        self._pair = authority.issue(ROOT, host=host.address)

    def etcdctl(self, *arguments: str, at: Sequence[Member] | None = None, given: str | None = None) -> str:
        """Run etcdctl, against some members or all that run, and return what it prints."""
        members = at if at is not None else [each for each in self._members if each.alive and not each.frozen]
        return self.host.run(
            *("env", "ETCDCTL_API=3", "etcdctl", "--dial-timeout", "2s", "--command-timeout", "10s"),
            *("--endpoints", ",".join(member.endpoint for member in members)),
            *("--cacert", self._authority.ca, "--cert", self._pair.cert, "--key", self._pair.key),
            *arguments,
            given=given,
        )

    def wait_ready(self, members: Sequence[Member]) -> None:
        """Wait until each of them has part in a majority."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.etcdctl("endpoint", "health", "--command-timeout", "1s", at=members)
            except CommandFailed as error:
                dead = [member.name for member in members if not member.alive]
                if dead or time.monotonic() > deadline:
                    logs = "\n".join(f"{member.name}:\n{member.log[-3000:]}" for member in members)
                    raise AssertionError(f"etcd does not come up ({dead} ended): {error}\n{logs}") from None
            else:
                return

    def status(self) -> dict[str, Status]:
        """Return what the members that answer say, by name."""
        running = [member for member in self._members if member.alive and not member.frozen]
        with ThreadPoolExecutor(len(running) or 1) as threads:
            told = zip(running, threads.map(self._status_of, running), strict=True)
            return {member.name: status for member, status in told if status is not None}

    def _status_of(self, member: Member) -> Status | None:
        try:
            told = self.etcdctl(
                "endpoint", "status", "--command-timeout", "1s", "--write-out", "json", at=[member]
            )
        except CommandFailed:
            return None
        found: dict[str, Any] = json.loads(told)[0]["Status"]
        return Status(
            found["header"]["member_id"],
            found.get("leader", 0),
            found.get("raftTerm", 0),
            found.get("raftAppliedIndex", 0),
            found.get("dbSize", 0),
            found.get("dbSizeInUse", 0),
            found["version"],
        )

    def leader(self) -> Member | None:
        """Return whom a majority of members takes for its leader, None if nobody."""
        told = self.status()
        for name, status in told.items():
            followers = [
                other for other in told.values() if other.leader == status.id and other.term == status.term
            ]
            if status.leader == status.id and len(followers) > len(self._members) // 2:
                return next(member for member in self._members if member.name == name)
        return None

    def enable_users(self, user: str, password: str, prefix: str) -> None:
        """Switch authentication on: root, and a user who may use what lies below the prefix only."""
        self.etcdctl("user", "add", ROOT, "--no-password")
        self.etcdctl("user", "grant-role", ROOT, "root")
        self.etcdctl("user", "add", f"{user}:{password}")
        self.etcdctl("role", "add", user)
        self.etcdctl("role", "grant-permission", user, "--prefix=true", "readwrite", prefix)
        self.etcdctl("user", "grant-role", user, user)
        self.etcdctl("auth", "enable")

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below a prefix."""
        return self.etcdctl("get", prefix, "--prefix", "--keys-only").split()

    def revision(self) -> int:
        """Return the store's newest revision."""
        told = json.loads(self.etcdctl("get", "none", "--write-out", "json"))
        revision: int = told["header"]["revision"]
        return revision

    def compact(self) -> int:
        """Let all members forget what is older than now; return the revision."""
        revision = self.revision()
        try:
            self.etcdctl("compaction", str(revision), "--physical=true")
        except CommandFailed as refusal:
            if "has been compacted" not in str(refusal):
                raise
        return revision

    def alarms(self) -> str:
        return self.etcdctl("alarm", "list").strip()

    def make_room(self) -> None:
        """Compact, defragment one member after another, disarm."""
        self.compact()
        for member in self._members:
            if member.alive and not member.frozen:
                self.etcdctl("defrag", at=[member])
        self.etcdctl("alarm", "disarm")

    def look_after(self) -> bool:
        """Do what a sensible operator does with a database that grows, or that has reached its quota.

        A new member applies all that the others' log has, and defragmentations are not in it. So it may
        reach the quota where the others are far from it. False if etcd does not answer.
        """
        try:
            if self.alarms() or any(
                each.database_bytes > QUOTA_BYTES // 2 for each in self.status().values()
            ):
                self.make_room()
        except CommandFailed:
            return False
        return True
