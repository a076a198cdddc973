"""All topics of a cluster with their groups at a glance, in few reads: for whoever watches many of them.

Owns which reads that takes. What sizes and records mean is the log's and the groups' business.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from dnpipefs.cluster import Cluster
from dnpipefs.core.names import ROOT, FileId, Revision
from dnpipefs.core.tree import Tree
from dnpipefs.errors import CorruptData, DnpError, TopicGone
from dnpipefs.groups import GroupState
from dnpipefs.log.log import TopicStat
from dnpipefs.parallel import for_each

SURVEYED_AT_ONCE: Final = 5_000
"""How many topics are asked for together: what is known of them is not old when the last one is."""
STATS_AT_ONCE: Final = 32
"""How many topics are looked at one by one, side by side, of which the survey did not tell."""
A_MOMENT_S: Final = 0.001
"""More than passes between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class TopicOverview:
    """A topic, how large it is, and its consumer groups."""

    path: str
    """Such as ``team/jobs``; bytes that are not UTF-8 are surrogates, as in `os.listdir`."""
    id: FileId
    """It stays when the topic is renamed."""
    stat: TopicStat | None
    """None if its records cannot be read: dnpipefs fsck tells more."""
    groups: tuple[GroupState, ...]
    """By name."""


@dataclass(frozen=True, slots=True)
class _Extent:
    """Which messages a topic has, as groups want to know it."""

    generation: Revision
    first_message: int
    messages: int


async def overview(cluster: Cluster) -> list[TopicOverview]:
    """Return all topics, in the order of their paths' bytes.

    Every push that had returned anywhere before the call is in it. Raises TimedOut, EtcdError.
    """
    tree = await cluster.namespace.sync()
    paths = _paths(tree)
    ids = sorted(paths)  # in the order of etcd's keys: see `Log.survey`
    stats: dict[FileId, TopicStat | None] = {}
    for first in range(0, len(ids), SURVEYED_AT_ONCE):
        some = ids[first : first + SURVEYED_AT_ONCE]
        stats.update(await _stats(cluster, some, among=len(tree) * len(some) // len(ids)))
    extents = {
        topic: _Extent(stat.generation, stat.first_message, stat.first_message + stat.messages)
        for topic, stat in stats.items()
        if stat is not None
    }
    groups = await cluster.groups.survey(extents)
    return [
        TopicOverview(os.fsdecode(path), topic, stats[topic], tuple(groups.get(topic, ())))
        for topic, path in sorted(paths.items(), key=lambda item: item[1])
        if topic in stats
    ]


def _paths(tree: Tree) -> dict[FileId, bytes]:
    """Return the paths of all topics; of those that no path leads to, fsck tells."""
    directories = {ROOT: b""}
    found = {}
    for entry in tree:
        if not entry.is_directory:
            if entry.parent not in directories:
                with suppress(DnpError):
                    directories[entry.parent] = tree.path(entry.parent) + b"/"
            if entry.parent in directories:
                found[entry.id] = directories[entry.parent] + entry.name
    return found


async def _stats(cluster: Cluster, topics: Sequence[FileId], *, among: int) -> dict[FileId, TopicStat | None]:
    """Return the sizes of those topics that are not deleted meanwhile."""
    log, begun = cluster.log, trio.current_time()
    await log.survey(topics, among=among).wait()
    found: dict[FileId, TopicStat | None] = {}
    left: list[FileId] = []
    for topic in topics:
        stat = log.peek(topic, within=trio.current_time() - begun + A_MOMENT_S)
        if stat is not None:
            found[topic] = stat
        else:
            left.append(topic)

    async def look(topic: FileId) -> None:
        with suppress(TopicGone):  # deleted since it was listed
            try:
                found[topic] = await log.stat(topic)
            except CorruptData:
                found[topic] = None

    await for_each(left, look, at_once=min(STATS_AT_ONCE, len(left)))
    return found
