"""What the files of the control directory say: each method makes the content of one file.

Owns the words and their JSON. Where a file stands and who may read it is `control.py`'s business.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from dnpipefs.cluster import Cluster
from dnpipefs.core.config import format_id
from dnpipefs.core.names import ROOT, FileId
from dnpipefs.core.tree import Tree
from dnpipefs.errors import TopicGone
from dnpipefs.log.recency import messages_since
from dnpipefs.log.session import Host
from dnpipefs.status import status_of

RATE_S: Final = 60
"""Over how long the rate of a topic is an average."""


_BLANK: Final = re.compile(rb"[\x00-\x20\\\x7f]")
_NO_BYTE: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Halves of characters that stand for no byte of a name: somebody else has put them into etcd."""


class Here(NamedTuple):
    """Who has a topic open on this host."""

    readers: int = 0
    writers: int = 0


class Reports:
    """Makes contents, from what this host knows and what etcd says at that moment."""

    def __init__(
        self,
        cluster: Cluster,
        here: Callable[[FileId], Here],
        metrics: Callable[[], Awaitable[bytes]],
    ) -> None:
        self._cluster: Final = cluster
        self._here: Final = here
        self.metrics: Final = metrics
        """Returns the metrics of this mount as text; asks nobody."""

    async def status(self) -> bytes:
        """Return how this mount is; waits for etcd a second at most."""
        return _json(await status_of(self._cluster))

    async def hosts(self) -> bytes:
        """Return a line for each mount of the cluster, as etcd says now. Raises EtcdError.

        Six words: host, process, mount point, release, session, since when.
        """
        mounts = [host for host in await self._cluster.hosts() if host.mountpoint is not None]
        return b"".join(_line(mount) for mount in mounts)

    async def topic(self, topic: FileId) -> bytes:
        """Return where a topic stands, as etcd says now. Raises TopicGone, TimedOut."""
        log, path = self._cluster.log, _path(self._cluster.namespace.tree, topic)
        view, revision = await log.look(topic)
        now_ns = time.time_ns()
        since_ns = now_ns - RATE_S * 10**9
        recent = 0
        if view.modified_ns >= since_ns and view.messages > view.first_message:
            async with log.reader(topic) as reader:
                recent = await messages_since(reader, since_ns)
        here = self._here(topic)
        return _json(
            {
                "topic": path,
                "id": format_id(topic),
                "generation": view.generation,
                "revision": revision,
                "modified": _wall_clock(view.modified_ns),
                "end_offset": view.end,
                "first_offset": view.first,
                "messages": view.messages - view.first_message,
                "messages_removed": view.first_message,
                "messages_per_second": round(recent / RATE_S, 3),
                "stored_bytes": view.stored,
                "segments": len(view.sealed),
                "tail": {
                    "batches": len(view.entries),
                    "bytes": sum([entry.size for entry in view.entries]),
                },
                "here": {"readers": here.readers, "writers": here.writers},
            }
        )

    async def group(self, topic: FileId, name: bytes) -> bytes:
        """Return where a group stands, as etcd says now. Raises TopicGone, TimedOut."""
        groups, path = self._cluster.groups, _path(self._cluster.namespace.tree, topic)
        for facts in await groups.facts(topic):
            if facts.name == name:
                here = groups.users(topic, name)
                return _json({"topic": path, **facts.described(), "here": {"readers": here}})
        raise TopicGone("the group was deleted, or its records cannot be read: run dnpipefs fsck")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _line(mount: Host) -> bytes:
    words = (
        mount.host,
        str(mount.pid),
        mount.mountpoint or "",
        mount.version,
        f"{mount.session:x}",
        "-" if mount.since_ns is None else _wall_clock(mount.since_ns),
    )
    encoded = [os.fsencode(_NO_BYTE.sub("\ufffd", word)) for word in words]
    return b" ".join(_BLANK.sub(_octal, word) or b"-" for word in encoded) + b"\n"


def _octal(blank: re.Match[bytes]) -> bytes:
    """Return what stands for a character that would break a line into other words, as in /proc/mounts."""
    return b"\\%03o" % blank[0][0]


def _wall_clock(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 10**9, UTC).isoformat(timespec="milliseconds")


def _path(tree: Tree, file: FileId) -> str:
    """Return a path as users write it; bytes that are not UTF-8 are surrogates, as in `os.listdir`."""
    parts = []
    while file != ROOT:
        entry = tree.get(file)
        parts.append(os.fsdecode(entry.name))
        file = entry.parent
    return "/".join(reversed(parts))
