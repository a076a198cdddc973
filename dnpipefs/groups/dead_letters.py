"""Where messages go that were delivered too often: another topic, so that they do not block their group.

It is the daemon that pushes them, which may do everything; so it looks whether the owner of their topic may:
otherwise whoever owns a topic could push to, and make, topics wherever others keep him out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Final

from dnpipefs.core.batch import Chunk
from dnpipefs.core.config import DEAD_SUFFIX
from dnpipefs.core.names import ROOT, FileId, Kind, parse_path
from dnpipefs.core.tree import Entry
from dnpipefs.errors import AccessDenied, AlreadyExists, IsADirectory, NotFound
from dnpipefs.groups.delivery import Delivery
from dnpipefs.log.log import Log
from dnpipefs.namespace import Namespace

logger: Final = logging.getLogger(__name__)


class DeadLetters:
    """Puts dead letters into topics."""

    def __init__(self, namespace: Namespace, log: Log) -> None:
        self._namespace: Final = namespace
        self._log: Final = log

    async def put(self, topic: FileId, group: bytes, delivery: Delivery) -> None:
        """Push a message to the topic that dead letters of *topic* go to, which is made if there is none.

        Raises NotFound (a directory on the way), IsADirectory, AccessDenied (to the owner of *topic*),
        TimedOut, OutOfSpace.
        """
        source = await self._namespace.entry(topic)
        path = source.inode.config.effective.dead_letter
        if path is None:
            target = await self._find(source.parent, source.name + DEAD_SUFFIX.encode(), source)
        else:
            target = await self._follow(parse_path(path), source)
        name = target.name
        if target.is_directory:
            raise IsADirectory(f"{name!r} is a directory: dead letters need a topic")
        _check(source, target, os.W_OK)
        await self._log.append(target.id, Chunk.of_message(delivery.data), born=target.revision)
        logger.warning(
            "group %s: the message at offset %d was delivered %d times; it is in %s now",
            group.decode(errors="replace"),
            delivery.offset,
            delivery.deliveries,
            os.fsdecode(name),
            extra={"topic": topic, "group": group},
        )

    async def _follow(self, path: Sequence[bytes], source: Entry) -> Entry:
        """Go a path as the owner of *source* would."""
        *directories, name = path
        parent = await self._namespace.entry(ROOT)
        for directory in directories:
            _check(source, parent, os.X_OK)
            parent = await self._namespace.lookup(parent.id, directory)
        _check(source, parent, os.X_OK)
        return await self._find(parent.id, name, source, inside=parent)

    async def _find(
        self, parent: FileId, name: bytes, source: Entry, *, inside: Entry | None = None
    ) -> Entry:
        """Find a topic or make one; *inside* a directory only if the owner of *source* may."""
        inode = source.inode
        try:
            return await self._namespace.lookup(parent, name)
        except NotFound:
            if inside is not None:
                _check(source, inside, os.W_OK)
            try:
                return await self._namespace.create(
                    parent, name, Kind.TOPIC, mode=inode.mode, uid=inode.uid, gid=inode.gid
                )
            except AlreadyExists:
                return await self._namespace.lookup(parent, name)


def _check(source: Entry, target: Entry, wanted: int) -> None:
    """Raise AccessDenied unless the owner of *source* may do that, with the topic's group as the only one."""
    owner = source.inode
    if not target.inode.allows(owner.uid, owner.gid, wanted):
        raise AccessDenied(
            f"uid {owner.uid}, who owns the topic, may not push its dead letters to, or through, "
            f"{os.fsdecode(target.name) or '/'}"
        )
