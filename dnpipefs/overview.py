"""All topics of a cluster with their groups at a glance, in few reads: for whoever watches many of them.

Owns which reads that takes. What sizes and records mean is the log's and the groups' business.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from dnpipefs.cluster import Cluster
from dnpipefs.core.names import ROOT, FileId, Revision
from dnpipefs.core.tree import Tree
from dnpipefs.errors import CorruptData, DnpError
from dnpipefs.groups import GroupState
from dnpipefs.log.log import TopicStat


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
    stats = await cluster.log.stats(paths, among=len(tree))
    extents = {
        topic: _Extent(stat.generation, stat.first_message, stat.first_message + stat.messages)
        for topic, stat in stats.items()
        if not isinstance(stat, CorruptData)
    }
    groups = await cluster.groups.survey(extents)
    return [
        TopicOverview(os.fsdecode(path), topic, _readable(stats[topic]), tuple(groups.get(topic, ())))
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


def _readable(stat: TopicStat | CorruptData) -> TopicStat | None:
    return None if isinstance(stat, CorruptData) else stat
