"""How the members of a cluster are: who answers, who leads, how full they are. Asked again and again.

Owns which members are asked, at which of their addresses, and what of their answers stays true for a
while. Nothing of it is an error: what is not answered, or not for this user, is told as that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import trio

from dnpipefs.errors import SetupError
from dnpipefs.etcd.client import Client
from dnpipefs.etcd.errors import EtcdError, PermissionDenied
from dnpipefs.etcd.maintenance import NOBODY
from dnpipefs.etcd.metrics import Metrics
from dnpipefs.etcd.model import Alarm, AlarmKind, Member, Status
from dnpipefs.etcd.space import BELIEVED_S, QUOTA_METRIC, SIZE_METRIC, quota_of

logger: Final = logging.getLogger(__name__)

ANSWER_S: Final = 2.0
"""How long a member has to answer."""

IN_USE_METRIC: Final = "etcd_mvcc_db_total_size_in_use_in_bytes"
LEADS_METRIC: Final = "etcd_server_is_leader"
REVISION_METRIC: Final = "etcd_debugging_mvcc_current_revision"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MemberState:
    """What a member says of itself; None is what it does not tell (this user). Sizes in bytes."""

    version: str
    """Such as ``3.5.30``; empty if it does not tell."""
    member_id: int | None = None
    leads: bool | None = None
    revision: int | None = None
    size: int | None = None
    """Of the database file, which is what the quota is for."""
    in_use: int | None = None
    """How much of it is not free."""
    quota: int | None = None
    raft_term: int | None = None
    raft_index: int | None = None
    is_learner: bool | None = None


@dataclass(frozen=True, slots=True)
class MemberHealth:
    """A member of the cluster, asked at one of its addresses."""

    endpoint: str
    """The address, as the user wrote it or as the member says."""
    name: str = ""
    """Its name in the cluster; empty if that cannot be told."""
    state: MemberState | None = None
    """None if it does not answer."""
    latency_s: float | None = None
    """How long its answer took, seconds."""
    failure: str = ""
    """Why it does not answer."""
    alarms: tuple[AlarmKind, ...] = ()
    """Those it has raised, be it that it answers or not."""

    @property
    def answers(self) -> bool:
        """Whether it answers."""
        return self.state is not None


@dataclass(frozen=True, slots=True)
class Health:
    """All members, and whether they work together."""

    members: tuple[MemberHealth, ...]
    """By name. Of members that never answered there can be one for each address."""
    alarms: tuple[AlarmKind, ...]
    """Those that are armed, whoever has raised them; with NOSPACE nothing can be pushed."""
    read_s: float | None
    """How long a linearizable read took, to which a majority is needed, seconds; None if there was none."""
    failure: str = ""
    """Why there was none."""

    @property
    def leader(self) -> MemberHealth | None:
        """The member that leads, if it is among those that answer."""
        return next((member for member in self.members if member.state and member.state.leads), None)


def read_state(version: str, status: Status | None, metrics: Metrics) -> MemberState:
    """Put together what a member's status and its metrics say; either may say nothing."""
    quota = metrics.whole(QUOTA_METRIC)
    if status is None:
        leads = metrics.told(LEADS_METRIC)
        return MemberState(
            version,
            leads=None if leads is None else leads == 1,
            revision=metrics.whole(REVISION_METRIC),
            size=metrics.whole(SIZE_METRIC),
            in_use=metrics.whole(IN_USE_METRIC),
            quota=None if quota is None else quota_of(quota),
        )
    if status.db_size_quota:
        quota = status.db_size_quota
    return MemberState(
        version,
        status.member_id,
        status.leader == status.member_id,
        status.revision,
        status.db_size,
        status.db_size_in_use,
        None if quota is None else quota_of(quota),
        status.raft_term,
        status.raft_index,
        status.is_learner,
    )


async def told(ask: Callable[[], Awaitable[T]]) -> T | None:
    """Return an answer, None if there is none for this user, here, or now."""
    try:
        return await ask()
    except EtcdError as error:
        logger.info("not told: %s", error)
        return None


class HealthGauge:
    """Looks at all members, as often as it is asked to.

    Members that the user has not named are asked where they say they are, without encryption only by a
    client that sends no token.
    """

    def __init__(self, client: Client, key: bytes) -> None:
        """*key*: one that this client's user may read."""
        self._client: Final = client
        self._key: Final = key
        self._members: Sequence[Member] = ()
        """As they were told last; while nobody answers, it is they who do not."""
        self._ids: Final[dict[str, int]] = {}
        """Who answered at an address."""
        self._quotas: Final[dict[str, tuple[float, int | None]]] = {}
        """When the metrics at an address were asked for the quota, and what they said."""

    async def look(self) -> Health:
        """Ask all members, side by side; takes at most twice ANSWER_S and the time of an HTTP answer."""
        alarms: Sequence[Alarm] = ()
        read_s, failure = None, ""
        found: dict[str, MemberHealth] = {}

        async def read() -> None:
            nonlocal read_s, failure
            begun = trio.current_time()
            try:
                await self._client.get(self._key, timeout=ANSWER_S)
                read_s = trio.current_time() - begun
            except EtcdError as error:
                failure = str(error)

        async def ask_for_members() -> None:
            self._members = await told(lambda: self._client.members(timeout=ANSWER_S)) or self._members

        async def ask_for_alarms() -> None:
            nonlocal alarms
            alarms = await told(lambda: self._client.alarms(timeout=ANSWER_S)) or ()

        async def ask(endpoint: str) -> None:
            found[endpoint] = await self._ask(endpoint)

        named = [name for name, _ in self._client.endpoints()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(ask_for_members)
            nursery.start_soon(ask_for_alarms)
            for endpoint in named:
                nursery.start_soon(ask, endpoint)
        members = self._members
        together = self._by_member(found, members)

        async def ask_beside(member: Member) -> None:
            health = await self._ask_beside(member)
            if health.answers or member.id not in together:
                together[member.id] = health

        async with trio.open_nursery() as nursery:
            for member in members:
                if member.id not in together or not together[member.id].answers:
                    nursery.start_soon(ask_beside, member)
        names = {member.id: member.name for member in members}
        raised = [alarm for alarm in alarms if alarm.member_id != NOBODY]
        described = [
            replace(
                health,
                name=names.get(member_id, "") if isinstance(member_id, int) else "",
                alarms=tuple(alarm.kind for alarm in raised if alarm.member_id == member_id),
            )
            for member_id, health in together.items()
        ]
        described.sort(key=lambda health: (health.name, health.endpoint))
        return Health(tuple(described), tuple(dict.fromkeys(alarm.kind for alarm in raised)), read_s, failure)

    def _by_member(
        self, found: Mapping[str, MemberHealth], members: Sequence[Member]
    ) -> dict[int | str, MemberHealth]:
        """Return what was found, once for each member; by address where it is not known whose that is."""
        ids = {url: member.id for member in members for url in member.client_urls}
        together: dict[int | str, MemberHealth] = {}
        for endpoint, health in found.items():
            key = self._ids.get(endpoint) or ids.get(endpoint) or endpoint
            if key not in together or health.answers:
                together[key] = health
        return together

    async def _ask_beside(self, member: Member) -> MemberHealth:
        """Ask a member that nobody has named, where it says it is; no token goes there in the open."""
        schemes = ("https://",) if self._client.authenticates else ("https://", "http://")
        endpoint = next((url for url in member.client_urls if url.startswith(schemes)), None)
        if endpoint is None:
            said = ", ".join(member.client_urls) or "none"
            return MemberHealth(said, failure=f"it has no address to be asked at: {said}")
        self._client.add_member(endpoint)
        health = await self._ask(endpoint)
        if health.state is not None and health.state.member_id != member.id:
            return MemberHealth(endpoint, failure=f"another member may be who answers at {endpoint}")
        return health

    async def _ask(self, endpoint: str) -> MemberHealth:
        begun = trio.current_time()
        status: Status | None = None
        try:
            status = await self._client.status(endpoint, timeout=ANSWER_S)
        except PermissionDenied:
            latency_s = trio.current_time() - begun
            metrics = await told(lambda: self._client.metrics(endpoint)) or Metrics(b"")
            state = read_state(await self._client.release(endpoint), None, metrics)
        except (EtcdError, SetupError) as error:  # the latter for one that DNS has taken back meanwhile
            return MemberHealth(endpoint, failure=str(error))
        else:
            latency_s = trio.current_time() - begun
            self._ids[endpoint] = status.member_id
            state = read_state(status.version, status, Metrics(b""))
            if state.quota is None:
                state = replace(state, quota=await self._quota(endpoint))
        return MemberHealth(endpoint, state=state, latency_s=latency_s)

    async def _quota(self, endpoint: str) -> int:
        """Return a quota that a status does not tell; etcd's default if nobody does."""
        asked_at, quota = self._quotas.get(endpoint, (-math.inf, None))
        if trio.current_time() >= asked_at + BELIEVED_S:
            metrics = await told(lambda: self._client.metrics(endpoint)) or Metrics(b"")
            quota = metrics.whole(QUOTA_METRIC) or quota
            self._quotas[endpoint] = trio.current_time(), quota
        return quota_of(quota or 0)
