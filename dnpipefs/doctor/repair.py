"""Making room: compact, defragment one member after the other with the leader last, disarm.

`plan` (pure) says what is worth it, `repair` does it and tells of each step. Nothing of it loses data:
compaction drops what was replaced or removed before, which watchers that are behind replace by a snapshot.
The CORRUPT alarm is for people.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.cluster import Settings
from dnpipefs.doctor.examination import open_endpoints
from dnpipefs.doctor.facts import Endpoint, Facts, Server
from dnpipefs.doctor.judgement import MUCH_FREE, MUCH_FREE_BYTES, NEAR_QUOTA
from dnpipefs.etcd.space import size_text
from dnpipefs.etcd.upkeep import LONG_TIMEOUT_S
from dnpipefs.etcd.upkeep_plan import target_size

KEPT_REVISIONS: Final = 1000
"""History that stays while etcd is not full, so that hardly a watcher needs a new snapshot."""
BACK_S: Final = 30.0
"""How long a member may take to answer after its defragmentation, before the next one is begun."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: compact before a revision (0: nothing), then defragment these members in this order."""

    compact: int
    defragment: tuple[Endpoint, ...]
    disarm: bool


def plan(facts: Facts) -> Plan:
    """Return what would win room; nothing if there is enough of it."""
    full = any(alarm.kind is etcd.AlarmKind.NOSPACE for alarm in facts.alarms or ())
    chosen = [
        (bool(server.leads), endpoint)
        for endpoint, server in facts.answered
        if server.member_id is not None and (full or _much_to_win(server))
    ]
    order = tuple(endpoint for _, endpoint in sorted(chosen, key=lambda each: each[0]))
    newest = max((server.revision or 0 for server in facts.servers), default=0)
    revision = newest - (0 if full else KEPT_REVISIONS)
    return Plan(revision if order and revision > 0 else 0, order, full)


def _much_to_win(server: Server) -> bool:
    if server.size is None or server.in_use is None:
        return False
    if server.quota is not None and server.size >= NEAR_QUOTA * server.quota:
        return True
    return server.size - server.in_use >= max(MUCH_FREE * server.size, MUCH_FREE_BYTES)


async def repair(settings: Settings, facts: Facts) -> AsyncGenerator[str, None]:
    """Carry out the plan; yield a line for each step that was taken.

    Raises EtcdError when a step fails, such as PermissionDenied without the root role: what was done by
    then stays done, and doing it again does no harm.
    """
    steps = plan(facts)
    names = [endpoint.name for endpoint in facts.endpoints if endpoint.server is not None]
    if not steps.defragment:
        if steps.disarm:
            raise etcd.PermissionDenied("making room needs etcd's root role: give --user one that has it")
        return
    async with open_endpoints(settings, names) as client:
        if steps.compact:
            yield await _compact(client, steps.compact)
        over = []
        for endpoint in steps.defragment:
            done = await _defragment(settings, endpoint, anyhow=steps.disarm)
            if not done.room:
                over.append(endpoint.name)
            yield str(done)
        if over and steps.disarm:
            yield (
                f"the alarm stays on, since {', '.join(over)} has no room yet: remove or reset topics, "
                "or raise --quota-backend-bytes, then do this again"
            )
        elif steps.disarm:
            unseen = _unseen(facts, steps.defragment)
            left = []
            for alarm in await client.alarms():
                if alarm.kind is not etcd.AlarmKind.NOSPACE:
                    continue
                if alarm.member_id in unseen:
                    left.append(unseen[alarm.member_id])
                else:
                    await client.disarm_alarm(alarm)
            if left:
                yield (
                    f"the alarm of {', '.join(left)} stays on, since it does not answer and may be full: "
                    "bring it back, or remove it from etcd, then do this again"
                )
            else:
                yield "disarmed the NOSPACE alarm: pushes work again"


def _unseen(facts: Facts, seen: Sequence[Endpoint]) -> dict[int, str]:
    """Return the members that were not looked at: their names, or addresses, by id."""
    ids = {endpoint.server.member_id for endpoint in seen if endpoint.server is not None}
    return {
        member.id: member.name or ", ".join(member.client_urls)
        for member in facts.members or ()
        if member.id not in ids
    }


async def _compact(client: etcd.Client, revision: int) -> str:
    try:
        await client.compact(revision, physical=True, timeout=LONG_TIMEOUT_S)
    except etcd.Compacted:
        return f"history before revision {revision} was compacted already"
    return f"compacted the history before revision {revision}"


@dataclass(frozen=True, slots=True)
class Defragmented:
    """What came of one member's defragmentation; sizes in bytes."""

    name: str
    before: int
    after: int
    quota: int | None
    took_s: float | None
    """None if it was left as it is."""

    @property
    def room(self) -> bool:
        """Whether the file is well below the quota, or, if that is not known, below where it was."""
        return self.after <= target_size(self.quota if self.quota is not None else self.before)

    def __str__(self) -> str:
        if self.took_s is None:
            return f"left {self.name} as it is: next to nothing of its {size_text(self.before)} is free"
        sizes = f"{size_text(self.before)} became {size_text(self.after)}"
        return f"defragmented {self.name} in {self.took_s:.1f} s: {sizes}"


async def _defragment(settings: Settings, endpoint: Endpoint, *, anyhow: bool) -> Defragmented:
    """Defragment a member and wait until it answers again.

    If little of its file is free it is left alone, unless `anyhow`: a full etcd may not know what is free.
    """
    quota = endpoint.server.quota if endpoint.server is not None else None
    async with open_endpoints(settings, [endpoint.name]) as client:
        before = await client.status(endpoint.name)
        if not anyhow and before.db_size_in_use > target_size(before.db_size):
            return Defragmented(endpoint.name, before.db_size, before.db_size, quota, None)
        begun = trio.current_time()
        await client.defragment(endpoint.name, timeout=LONG_TIMEOUT_S)
        took = trio.current_time() - begun
        after = await client.status(endpoint.name, timeout=BACK_S)
    return Defragmented(endpoint.name, before.db_size, after.db_size, quota, took)
