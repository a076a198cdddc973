"""How this host stands with its cluster: for `dnpipefs status`, and the file ``/dnp/.dnp/status``.

Told at once, or after ANSWER_S with the answer that etcd gives none.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import trio

from dnpipefs.cluster import VERSION, Cluster
from dnpipefs.etcd import MemberHealth, MemberState
from dnpipefs.log.staleness import STALE_AFTER_S

ANSWER_S: Final = STALE_AFTER_S
"""How long it takes at most."""


async def status_of(cluster: Cluster) -> dict[str, Any]:
    """Return it as JSON takes it; the names are told in docs/observability.md."""
    answers, health = False, None
    patience_s = min(ANSWER_S, cluster.settings.op_timeout / 2)

    async def ask() -> None:
        nonlocal answers
        with trio.move_on_after(patience_s):
            answers = await cluster.barrier.answers()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        with trio.move_on_after(patience_s):
            health = await cluster.health()
    sessions, staleness, content = cluster.log.sessions, cluster.barrier.staleness, cluster.log.content
    session = sessions.current()
    return {
        "version": VERSION,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "prefix": cluster.settings.prefix,
        "op_timeout": cluster.settings.op_timeout,
        "session": {
            "id": None if session is None else f"{session:x}",
            "healthy": sessions.healthy,
            "failure": None if sessions.failure is None else str(sessions.failure),
        },
        "etcd": {
            "answers": answers,
            "endpoints": [
                {"endpoint": name, "failure": None if failure is None else str(failure)}
                for name, failure in cluster.client.endpoints()
            ],
            "members": None if health is None else [_member(member) for member in health.members],
            "leader": None if health is None or health.leader is None else health.leader.name,
            "alarms": None if health is None else [alarm.name for alarm in health.alarms],
        },
        "caches": {
            "bytes": content.size,
            "limit": content.limit,
            "hits": content.use.hits,
            "misses": content.use.misses,
            "topics_followed": cluster.log.followed,
            "names": len(cluster.namespace.tree),
        },
        "read_stale": staleness.allowed,
        "stale_since": None if staleness.since is None else _wall_clock(staleness.since),
    }


def _member(member: MemberHealth) -> dict[str, Any]:
    """Return what is known of a member of etcd, sizes in bytes."""
    state = member.state or MemberState("")
    return {
        "name": member.name,
        "endpoint": member.endpoint,
        "failure": None if member.answers else member.failure,
        "version": state.version,
        "leads": state.leads,
        "size": state.size,
        "in_use": state.in_use,
        "quota": state.quota,
        "revision": state.revision,
        "alarms": [alarm.name for alarm in member.alarms],
        "latency_ms": None if member.latency_s is None else round(member.latency_s * 1000, 3),
    }


def _wall_clock(moment: float) -> str:
    """Return a moment of trio's clock as people write it."""
    ago = timedelta(seconds=trio.current_time() - moment)
    return (datetime.now(UTC) - ago).isoformat(timespec="seconds")
