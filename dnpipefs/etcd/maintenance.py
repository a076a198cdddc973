"""Calls about the cluster itself: its members' state, alarms, compaction, defragmentation."""

from contextlib import suppress
from typing import Final

import trio

from dnpipefs.etcd.endpoint import ALARM, COMPACT, DEFRAGMENT, HASH, MEMBERS, STATUS
from dnpipefs.etcd.errors import PermissionDenied
from dnpipefs.etcd.http import HttpSide
from dnpipefs.etcd.metrics import (
    METRICS_LIMIT_BYTES,
    METRICS_PATH,
    VARIABLES_LIMIT_BYTES,
    VARIABLES_PATH,
    Metrics,
    parse_command_line,
)
from dnpipefs.etcd.model import Alarm, AlarmKind, Hash, Member, Space, Status
from dnpipefs.etcd.pool import Pool
from dnpipefs.etcd.proto import rpc_pb2 as pb
from dnpipefs.etcd.releases import ask_release
from dnpipefs.etcd.space import SpaceGauge

NOBODY: Final = 1
"""A member id that no member has: theirs are hashes of 64 bits."""

COMMIT_INTERVAL_S: Final = 0.1
"""How often etcd commits to its file what it has applied."""


def read_status(endpoint: str, response: pb.StatusResponse) -> Status:
    """Copy a status response."""
    return Status(
        endpoint=endpoint,
        version=response.version,
        db_size=response.dbSize,
        db_size_in_use=response.dbSizeInUse,
        db_size_quota=response.dbSizeQuota,
        leader=response.leader,
        member_id=response.header.member_id,
        revision=response.header.revision,
        raft_index=response.raftIndex,
        raft_term=response.raftTerm,
        is_learner=response.isLearner,
        errors=tuple(response.errors),
    )


class MaintenanceCalls:
    """The maintenance part of `Client`. `endpoint` is one of the client's, as it was written."""

    _pool: Pool
    _http: HttpSide
    _gauge: SpaceGauge

    async def status(self, endpoint: str | None = None, *, timeout: float | None = None) -> Status:
        """Return the state of the member at `endpoint`, or of the one in use.

        Current releases of etcd with users raise `PermissionDenied` for one without the root role.
        """
        deadline = self._pool.deadline(timeout)
        target = self._pool.named(endpoint) if endpoint else await self._pool.ready(deadline)
        response = await self._pool.call(STATUS, pb.StatusRequest(), timeout, once=False, endpoint=target)
        return read_status(target.name, response)

    async def space(self, *, timeout: float | None = None) -> Space:
        """Return how full the member in use is.

        The size is etcd's at this moment if it shows its status to this user; `SpaceGauge` says what is
        answered for all it does not tell.
        """
        deadline = self._pool.deadline(timeout)
        target = await self._pool.ready(deadline)
        status: Status | None = None
        with suppress(PermissionDenied):
            left = max(0.0, deadline - trio.current_time())
            status = await self.status(target.name, timeout=left)
        return await self._gauge.read(target.address, status)

    async def metrics(self, endpoint: str) -> Metrics:
        """Return the metrics of the member at `endpoint`. Raises `HttpFailed` where they are not served."""
        address = self._pool.named(endpoint).address
        return Metrics(await self._http.get(address, METRICS_PATH, limit_bytes=METRICS_LIMIT_BYTES))

    async def release(self, endpoint: str) -> str:
        """Return the release of the member at `endpoint`; empty where it does not tell.

        For those to whom etcd refuses its status, which has it, too.
        """
        return await ask_release(self._http, self._pool.named(endpoint).address)

    async def command_line(self, endpoint: str) -> list[str] | None:
        """Return what the member at `endpoint` was started with; None if it does not tell.

        Raises `HttpFailed` where that is not served.
        """
        address = self._pool.named(endpoint).address
        document = await self._http.get(address, VARIABLES_PATH, limit_bytes=VARIABLES_LIMIT_BYTES)
        return parse_command_line(document)

    async def date(self, endpoint: str) -> float:
        """Return what the clock of the member at `endpoint` shows, in whole seconds. Raises `HttpFailed`."""
        return await self._http.date(self._pool.named(endpoint).address)

    async def members(self, *, timeout: float | None = None) -> list[Member]:
        """Return the members of the cluster."""
        response = await self._pool.call(MEMBERS, pb.MemberListRequest(), timeout, once=False)
        return [
            Member(member.ID, member.name, tuple(member.peerURLs), tuple(member.clientURLs), member.isLearner)
            for member in response.members
        ]

    async def alarms(self, *, timeout: float | None = None) -> list[Alarm]:
        """Return the alarms that are armed; empty on a sound cluster."""
        request = pb.AlarmRequest(action=pb.AlarmRequest.GET)
        response = await self._pool.call(ALARM, request, timeout, once=False)
        return [Alarm(alarm.memberID, AlarmKind(alarm.alarm)) for alarm in response.alarms if alarm.alarm]

    async def disarm_alarm(self, alarm: Alarm, *, timeout: float | None = None) -> None:
        """Switch one alarm off; give it as `alarms` returned it, since etcd wants the real member id."""
        request = pb.AlarmRequest(
            action=pb.AlarmRequest.DEACTIVATE,
            memberID=alarm.member_id,
            alarm=pb.NOSPACE if alarm.kind is AlarmKind.NOSPACE else pb.CORRUPT,
        )
        await self._pool.call(ALARM, request, timeout, once=True)

    async def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> None:
        """Drop the history before `revision`; `physical` waits until it is gone from the file.

        Raises `Compacted` when that is done already, `FutureRevision` when it is too early.
        """
        request = pb.CompactionRequest(revision=revision, physical=physical)
        await self._pool.call(COMPACT, request, timeout, once=True)

    async def defragment(self, endpoint: str, *, timeout: float | None = None) -> None:
        """Give free space of one member's file back; the member answers nobody meanwhile."""
        target = self._pool.named(endpoint)
        await self._pool.call(DEFRAGMENT, pb.DefragmentRequest(), timeout, once=True, endpoint=target)

    async def settle(self) -> None:
        """Make etcd count, at its quota, what a compaction has freed; takes half a second.

        Freed pages are counted with a later commit, and where puts are refused none comes (3.4 then goes on
        showing them in use). A NOSPACE alarm in nobody's name may be switched on and off again: two commits
        that change nothing, while the real alarm stays on.
        """
        for action in (pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE):
            request = pb.AlarmRequest(action=action, memberID=NOBODY, alarm=pb.NOSPACE)
            await self._pool.call(ALARM, request, None, once=True)
            await trio.sleep(2 * COMMIT_INTERVAL_S)

    async def hash(self, endpoint: str, revision: int = 0, *, timeout: float | None = None) -> Hash:
        """Return the checksum of a member's keys up to `revision` (0: its newest)."""
        target = self._pool.named(endpoint)
        request = pb.HashKVRequest(revision=revision)
        response = await self._pool.call(HASH, request, timeout, once=False, endpoint=target)
        return Hash(response.hash, response.compact_revision, response.header.revision)
