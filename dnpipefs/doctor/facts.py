"""What an examination found, as values. None always means: cannot be told, and so it is no fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnpipefs.core.records import SessionRecord
from dnpipefs.etcd import Alarm, Member
from dnpipefs.etcd.metrics import flag


@dataclass(frozen=True, slots=True)
class Server:
    """A member of etcd, as it answered at one address. Sizes in bytes."""

    version: str
    """Empty if it does not tell."""
    member_id: int | None = None
    leads: bool | None = None
    revision: int | None = None
    size: int | None = None
    """Of the database file, which is what the quota is for."""
    in_use: int | None = None
    quota: int | None = None
    compacted: int | None = None
    """History before this revision is gone; -1 or 0 if it was never compacted."""
    command: Sequence[str] | None = None
    """Its command line."""
    fsync_s: float | None = None
    """Mean time of an fsync of its log since it was started, seconds."""
    ahead_s: float | None = None
    """How much its clock is ahead of ours, seconds, to the second."""

    def flag(self, name: str) -> str | None:
        """Return a flag of its command line; None if it is not there, or the line is not known."""
        return flag(self.command, name) if self.command is not None else None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and who answered there, or why nobody did."""

    name: str
    given: bool
    """Whether the user named it; else a member says that it is to be found there."""
    server: Server | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Prefix:
    """What lies under the prefix, and what this user may do there."""

    name: str
    format_failure: str | None = None
    """Why the data is not to be used by this release."""
    in_use: bool = True
    """Whether there is anything."""
    read_failure: str | None = None
    write_failure: str | None = None
    denied: bool = False
    """Whether these failures are for want of a role."""
    reads_s: tuple[float, ...] = ()
    """How long linearizable reads took: to etcd and back, and a round among its members."""
    writes_s: tuple[float, ...] = ()
    """How long writes took: as a read, and a majority's fsync."""
    sessions: tuple[SessionRecord, ...] = ()
    orders_age_s: tuple[float, ...] = ()
    """How long ago the orders to remove old keys were given."""
    behind_s: tuple[float, ...] = ()
    """Of the pushes seen while listening: our time of arrival less the time their hosts gave them."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it."""

    endpoints: tuple[Endpoint, ...]
    embedded: bool = False
    """Whether the etcd is one of our own, which is kept by those who use it."""
    user: str | None = None
    members: tuple[Member, ...] | None = None
    alarms: tuple[Alarm, ...] | None = None
    prefix: Prefix | None = None
    """None if no endpoint could be used."""

    @property
    def answered(self) -> list[tuple[Endpoint, Server]]:
        """The members that answered, each once, with one address of it."""
        found: dict[int | str, tuple[Endpoint, Server]] = {}
        for endpoint in self.endpoints:
            if endpoint.server is not None:
                member = endpoint.server.member_id
                key = endpoint.name if member is None else member
                found.setdefault(key, (endpoint, endpoint.server))
        return list(found.values())

    @property
    def servers(self) -> list[Server]:
        """The members that answered, each once."""
        return [server for _, server in self.answered]
