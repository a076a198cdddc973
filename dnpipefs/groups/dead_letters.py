"""Where messages go that were delivered too often: another topic, so that they do not block their group."""

from __future__ import annotations

import logging
import os
from typing import Final

from dnpipefs.core.batch import Chunk
from dnpipefs.core.config import DEAD_SUFFIX
from dnpipefs.core.names import ROOT, FileId, Kind, parse_path
from dnpipefs.core.tree import Entry
from dnpipefs.errors import AlreadyExists, IsADirectory, NotFound
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

        Raises NotFound (a directory on the way), IsADirectory, TimedOut, OutOfSpace.
        """
        source = await self._namespace.entry(topic)
        path = source.inode.config.effective.dead_letter
        parent, name = source.parent, source.name + DEAD_SUFFIX.encode()
        if path is not None:
            *directories, name = parse_path(path)
            parent = ROOT
            for directory in directories:
                parent = (await self._namespace.lookup(parent, directory)).id
        target = await self._find(parent, name, source)
        if target.is_directory:
            raise IsADirectory(f"{name!r} is a directory: dead letters need a topic")
        await self._log.append(target.id, Chunk.of_message(delivery.data), born=target.revision)
        logger.warning(
            "group %s: the message at offset %d was delivered %d times; it is in %s now",
            group.decode(errors="replace"),
            delivery.offset,
            delivery.deliveries,
            os.fsdecode(name),
            extra={"topic": topic, "group": group},
        )

    async def _find(self, parent: FileId, name: bytes, source: Entry) -> Entry:
        inode = source.inode
        try:
            return await self._namespace.lookup(parent, name)
        except NotFound:
            try:
                return await self._namespace.create(
                    parent, name, Kind.TOPIC, mode=inode.mode, uid=inode.uid, gid=inode.gid
                )
            except AlreadyExists:
                return await self._namespace.lookup(parent, name)
