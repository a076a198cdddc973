"""How this host stands with its cluster, as it knows itself: for `dnpipefs status`.

Told without etcd, or with the answer that it gives none.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import trio

from dnpipefs.cluster import VERSION, Cluster


async def status_of(cluster: Cluster) -> dict[str, Any]:
    """Return it as JSON takes it; the names are told in docs/semantics.md."""
    answers = await cluster.barrier.answers()
    sessions, staleness = cluster.log.sessions, cluster.barrier.staleness
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
        },
        "read_stale": staleness.allowed,
        "stale_since": None if staleness.since is None else _wall_clock(staleness.since),
    }


def _wall_clock(moment: float) -> str:
    """Return a moment of trio's clock as people write it."""
    ago = timedelta(seconds=trio.current_time() - moment)
    return (datetime.now(UTC) - ago).isoformat(timespec="seconds")
