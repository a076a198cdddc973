"""Kernel node ids: which of them stand for which topic, and how long the kernel remembers each.

The kernel holds an inode's lock for the whole of a write, so writers of one inode go one at a time
and group commit would never see two of them. Therefore a topic may have several inodes in the
kernel: a lookup answers another node id (an *alias*) when a handle that has written is open on
the first one. All of them show the same st_ino.

==========================  ===========================================================
lookup of a topic by a pid  answer
==========================  ===========================================================
has a reservation           the node reserved for it
no writer on the first      the first node, whose id is the topic's own
some alias without writer   that alias, reserved for the pid until it opens
fewer than MAX_ALIASES      a new alias, reserved likewise
otherwise                   the alias with the fewest writers
==========================  ===========================================================

Invariants:

1. A node is known from its first lookup until the kernel has forgotten all lookups of it and its
   writers are closed (FORGET can overtake RELEASE: the kernel has a queue of its own for it).
2. A handle that never writes keeps nobody off the first node, so flock(2) on a topic that nobody
   writes to means one inode for all.
3. A topic never has more than MAX_ALIASES aliases.

Pure: the time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Final, NewType

from dnpipefs.core.names import MAX_FILE_ID, ROOT, FileId

NodeId = NewType("NodeId", int)

MAX_ALIASES: Final = 64
"""Aliases of one topic: as many local writers commit together, more share."""
RESERVATION_S: Final = 1.0
"""How long a lookup keeps an alias for its process: an open follows within microseconds or not at all."""


@dataclass(slots=True, eq=False)
class _Node:
    id: NodeId
    file: FileId
    lookups: int = 0
    writers: int = 0
    """Open handles that have written."""
    reserved_by: int | None = None
    """A pid; 0 is that of any process of another PID namespace."""
    reserved_until: float = 0.0

    def free(self, now: float) -> bool:
        return not self.writers and (self.reserved_by is None or now >= self.reserved_until)


class NodeTable:
    """Node ids known to the kernel."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, _Node] = {NodeId(ROOT): _Node(NodeId(ROOT), ROOT, lookups=1)}
        self._aliases: dict[FileId, list[_Node]] = {}
        """Of topics that have some."""
        self._alias_ids = count(MAX_FILE_ID)

    def __len__(self) -> int:
        return len(self._nodes)

    def file(self, node: NodeId) -> FileId:
        """Return what a node id stands for. KeyError for an id that the kernel cannot know."""
        return self._nodes[node].file

    def looked_up(self, file: FileId, *, pid: int, now: float) -> NodeId:
        """Choose the node for a lookup by *pid* at *now* (seconds, monotonic) and count it."""
        return self._count(self._choose(file, pid, now))

    def listed(self, file: FileId) -> NodeId:
        """Return the first node, counted as a lookup: for directories and directory listings."""
        return self._count(self._first(file))

    def opened(self, node: NodeId, *, pid: int) -> None:
        """The process that looked the node up has opened it."""
        found = self._nodes[node]
        if found.reserved_by == pid:
            found.reserved_by = None

    def began_writing(self, node: NodeId) -> None:
        """A handle on the node has written for the first time."""
        self._nodes[node].writers += 1

    def stopped_writing(self, node: NodeId) -> None:
        """A handle that had written was closed."""
        found = self._nodes[node]
        found.writers -= 1
        self._drop_if_unused(found)

    def forget(self, node: NodeId, lookups: int) -> None:
        """The kernel has dropped *lookups* of its references to a node."""
        found = self._nodes[node]
        found.lookups -= lookups
        self._drop_if_unused(found)

    def _drop_if_unused(self, node: _Node) -> None:
        if node.lookups > 0 or node.writers or node.file == ROOT:
            return
        del self._nodes[node.id]
        if node.id != NodeId(node.file):
            aliases = self._aliases[node.file]
            aliases.remove(node)
            if not aliases:
                del self._aliases[node.file]

    def _count(self, node: _Node) -> NodeId:
        self._nodes[node.id] = node
        node.lookups += 1
        return node.id

    def _first(self, file: FileId) -> _Node:
        """Return the node whose id is the file's own; a new one if the kernel does not know it."""
        return self._nodes.get(NodeId(file)) or _Node(NodeId(file), file)

    def _choose(self, file: FileId, pid: int, now: float) -> _Node:
        aliases = self._aliases.get(file, [])
        for alias in aliases:
            if alias.reserved_by == pid and now < alias.reserved_until:
                return alias
        first = self._first(file)
        if not first.writers:
            return first
        node = next((alias for alias in aliases if alias.free(now)), None)
        if node is None:
            if len(aliases) >= MAX_ALIASES:
                return min(aliases, key=lambda alias: alias.writers)
            node = _Node(NodeId(next(self._alias_ids)), file)
            self._aliases.setdefault(file, aliases).append(node)
        node.reserved_by, node.reserved_until = pid, now + RESERVATION_S
        return node
