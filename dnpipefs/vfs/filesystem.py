"""The tree of topics and directories as a POSIX file system sees it."""

from __future__ import annotations

import logging
import stat
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import trio

from dnpipefs.cluster import Cluster
from dnpipefs.core.names import ROOT, FileId, Kind
from dnpipefs.core.sizes import FRESH_S
from dnpipefs.core.tree import Entry
from dnpipefs.errors import DnpError, InvalidArgument, IsADirectory, NotFound, NotPermitted, TopicGone
from dnpipefs.exposition import Exposition
from dnpipefs.log.budget import Budget
from dnpipefs.log.failures import deadline
from dnpipefs.log.log import TopicStat
from dnpipefs.metrics import Requests
from dnpipefs.namespace import ENTRIES_LIMIT
from dnpipefs.vfs.attributes import Attributes
from dnpipefs.vfs.control import (
    ControlDirectory,
    ControlHandle,
    ControlListing,
    is_control,
    is_control_name,
    refuse,
)
from dnpipefs.vfs.handles import HELD_LIMIT, OpenTopic, TopicHandle
from dnpipefs.vfs.intake import Intake
from dnpipefs.vfs.listings import Listing, Listings
from dnpipefs.vfs.reports import Here, Reports
from dnpipefs.vfs.views import (
    GroupHandle,
    RewindHandle,
    SubscriptionHandle,
    View,
    ViewHandle,
    ViewTable,
    parse_view,
)
from dnpipefs.vfs.xattrs import ExtendedAttributes

logger: Final = logging.getLogger(__name__)

BLOCK: Final = 512
"""The unit of st_blocks."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What statfs(2) shows."""

    total: int
    """Bytes."""
    free: int
    files: int
    files_free: int


OpenHandle = TopicHandle | ViewHandle | ControlHandle
"""An open(2) of whatever can be opened."""


class FileSystem:
    """Operations on names and inodes; opens `TopicHandle`s."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster: Final = cluster
        self._log: Final = cluster.log
        self._namespace: Final = cluster.namespace
        self._listings: Final = Listings(cluster.log)
        self._open: dict[FileId, OpenTopic] = {}
        self._views: Final = ViewTable()
        self.xattrs: Final = ExtendedAttributes(cluster, self._views)
        self._handles: set[TopicHandle] = set()
        self._held: Final = Budget(HELD_LIMIT)
        self.intake: Final = Intake()
        self.requests: Final = Requests()
        """What the adapter is asked; it counts."""
        self.exposition: Final = Exposition(cluster, self.requests)
        reports = Reports(cluster, self._users, self.exposition.text)
        self._control: Final = ControlDirectory(cluster, reports, now_ns=time.time_ns())

    def in_time(self) -> AbstractContextManager[None]:
        """Bound a request that waits for several things: each of them would wait as long."""
        return deadline(self._cluster.settings.op_timeout)

    async def lookup(self, parent: FileId, name: bytes) -> Attributes:
        """Return a name's attributes; a topic's size is left at 0 unless this host has a view of it.

        Raises NotFound (confirmed with etcd), NotADirectory, NameTooLong, TimedOut.
        """
        if is_control_name(parent, name):
            return await self._control.lookup(parent, name)
        if (parsed := parse_view(name)) is not None:
            topic = await self._namespace.lookup(parent, parsed[0])
            if topic.is_directory:
                raise NotFound("directories have no views")
            return self._view_attributes(self._views.id_of(View(topic.id, parsed[1])), topic)
        entry = await self._namespace.lookup(parent, name)
        found = None if entry.is_directory else self._log.peek(entry.id, self._fresh_s(entry))
        if found is not None and (opened := self._open.get(entry.id)) is not None:
            opened.report(found.end)
        return self._attributes(entry, found)

    async def attributes(self, file: FileId) -> Attributes:
        """Return current attributes. Raises TopicGone, TimedOut."""
        if is_control(file):
            return await self._control.attributes(file)
        if (view := self._views.get(file)) is not None:
            return self._view_attributes(file, await self._namespace.entry(view.topic))
        entry = await self._namespace.entry(file)
        if entry.is_directory:
            return self._attributes(entry, None)
        with self.in_time():
            found = self._log.peek(file, self._fresh_s(entry))
            if found is None:
                now = trio.current_time()
                listing = self._listings.showing(entry, now)
                if listing is not None and not self._cluster.stale:
                    await listing.expect_stats(entry, now)
                    found = self._log.peek(file, listing.fresh_s)
            if found is None:
                found = await self._log.stat(file)
        opened = self._open.get(file)
        if opened is not None:
            opened.report(found.end)
        return self._attributes(entry, found)

    async def open_directory(self, directory: FileId) -> Listing | ControlListing:
        """Return a directory's entries; what is created later belongs to the next listing.

        Raises TopicGone, TimedOut.
        """
        if is_control(directory):
            return await self._control.open_directory(directory)
        tree = await self._namespace.sync_to_read()
        return self._listings.open(tree, directory, trio.current_time())

    async def page(self, listing: Listing | ControlListing, start: int) -> Iterable[tuple[bytes, Attributes]]:
        """Return entries of a listing from number *start* on, with sizes where they are known.

        At least one, unless there are no more. If somebody stats what is listed, sizes are read ahead.
        """
        if isinstance(listing, ControlListing):
            return listing.page(start)
        entries = await listing.page(start, trio.current_time())
        peek, fresh_s = self._log.peek, listing.fresh_s
        return (
            (entry.name, self._attributes(entry, None if entry.is_directory else peek(entry.id, fresh_s)))
            for entry in entries
        )

    async def parent(self, directory: FileId) -> Attributes:
        """Return the attributes of the directory that holds *directory*; the root holds itself."""
        if is_control(directory):
            above = await self._control.parent(directory)
            return await self.attributes(ROOT) if above is None else above
        entry = await self._namespace.entry(directory)
        holder = await self._namespace.entry(entry.parent) if entry.parent else entry
        return self._attributes(holder, None)

    async def make_directory(self, parent: FileId, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        """Make a directory. Raises AlreadyExists, InvalidName, NotADirectory, TimedOut, OutOfSpace."""
        self._refuse_control(parent)
        entry = await self._namespace.create(parent, name, Kind.DIRECTORY, mode=mode, uid=uid, gid=gid)
        return self._attributes(entry, None)

    async def make_topic(self, parent: FileId, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        """Make an empty topic; *mode* may carry a file type, of which only regular files are possible.

        Raises NotPermitted for other types, and as `make_directory` does.
        """
        self._refuse_control(parent)
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise NotPermitted("topics and directories only: no FIFOs, devices or sockets")
        entry = await self._namespace.create(parent, name, Kind.TOPIC, mode=mode, uid=uid, gid=gid)
        return self._attributes(entry, None)

    async def unlink(self, parent: FileId, name: bytes, *, known: FileId | None) -> None:
        """Delete a topic, or a consumer group. Raises NotFound; for topics as `Namespace.unlink` does."""
        self._refuse_control(parent, name)
        if (parsed := parse_view(name)) is not None:
            topic = await self._namespace.lookup(parent, parsed[0], to_change=True)
            if parsed[1] is None:
                raise NotPermitted("a subscription is not kept anywhere, so it cannot be removed")
            await self._cluster.groups.delete(topic.id, parsed[1])
            return
        self._log.forget(await self._namespace.unlink(parent, name, known=known))

    async def remove_directory(self, parent: FileId, name: bytes, *, known: FileId | None) -> None:
        """Remove an empty directory. Raises as `Namespace.rmdir` does."""
        self._refuse_control(parent, name)
        await self._namespace.rmdir(parent, name, known=known)

    async def rename(
        self,
        source: tuple[FileId, bytes],
        target: tuple[FileId, bytes],
        *,
        replace: bool,
        known: tuple[FileId | None, FileId | None],
    ) -> None:
        """Move a topic or directory, O(1). Raises as `Namespace.rename` does."""
        self._refuse_control(*source)
        self._refuse_control(*target)
        ended = await self._namespace.rename(source, target, replace=replace, known=known)
        if ended is not None:
            self._log.forget(ended)

    async def change(self, file: FileId, **changes: Any) -> Attributes:
        """Set mode, uid, gid or mtime_ns. Raises TopicGone, TimedOut, OutOfSpace."""
        self._refuse_control(file)
        await self._namespace.change(file, **changes)
        return await self.attributes(file)

    async def truncate(self, topic: FileId, size: int) -> None:
        """Reset a topic (size 0), or do nothing (the current size). Raises InvalidArgument, IsADirectory."""
        self._refuse_control(topic)
        if (view := self._views.get(topic)) is not None:
            await self._rewind(view, size)
            return
        entry = await self._namespace.entry(topic)
        if entry.is_directory:
            raise IsADirectory("a directory cannot be truncated")
        if size == 0:
            await self._log.reset(topic)
        elif size != (await self._log.stat(topic)).end:
            raise InvalidArgument("a topic can be truncated to 0 (reset) only")

    async def open(
        self, topic: FileId, *, read: bool, write: bool, append: bool, wait: bool = True
    ) -> OpenHandle:
        """Open a topic, a view or a file of the control directory.

        For reading, everything acknowledged anywhere before is in a topic.

        *wait*: reads of a view wait for messages. Raises TopicGone, IsADirectory, AccessDenied, TimedOut,
        OutOfSpace.
        """
        if is_control(topic):
            return await self._control.open(topic, write=write)
        if (view := self._views.get(topic)) is not None:
            return await self._open_view(view, read=read, wait=wait)
        entry = await self._namespace.entry(topic)
        if entry.is_directory:
            raise IsADirectory("a directory cannot be opened as a topic")
        try:
            reading = await self._log.open_reader(topic, may_be_stale=True) if read else None
        except TopicGone:
            # A name that this host has not seen change yet: the next lookup must know.
            await self._namespace.sync()
            raise
        shared = self._open.setdefault(topic, OpenTopic())
        shared.opened(1, read=read, write=write)
        shown = self._log.peek(topic)
        if shown is not None:
            shared.report(shown.end)  # the lookup before this open has shown it
        handle = TopicHandle(
            self._log,
            topic,
            entry.revision,
            shared,
            reading=reading,
            write=write,
            append=append,
            config_of=self._namespace.config_of,
            room=self._held,
            intake=self.intake,
            op_timeout=self._cluster.settings.op_timeout,
        )
        self._handles.add(handle)
        return handle

    async def close(self, handle: OpenHandle, *, well: bool = True) -> None:
        """Close a handle. Raises as its last flush does; it is closed all the same.

        *well*: whoever opened it lives, or ends with success.
        """
        if not isinstance(handle, TopicHandle):
            await handle.close(well=well)
            return
        self._handles.discard(handle)
        shared = self._open[handle.topic]
        shared.opened(-1, read=handle.reads, write=handle.writes)
        if not shared.handles:
            del self._open[handle.topic]
        await handle.close()

    async def _open_view(self, view: View, *, read: bool, wait: bool) -> ViewHandle:
        if not read:
            return RewindHandle()
        if view.group is None:
            reader, live = await self._log.open_reader(view.topic)
            return SubscriptionHandle(self._log, reader, live, wait=wait)
        member = await self._cluster.groups.open(view.topic, view.group)
        return GroupHandle(self._cluster.groups, member, self._namespace.config_of(view.topic), wait=wait)

    async def _rewind(self, view: View, size: int) -> None:
        if view.group is None:
            raise InvalidArgument("a subscription cannot be rewound: use a group, topic@NAME")
        await self._cluster.groups.rewind(view.topic, view.group, size)

    def _view_attributes(self, view: FileId, topic: Entry) -> Attributes:
        """Return a view's attributes: the topic's, with no size, since nobody can tell what comes."""
        return self._attributes(topic, None)._replace(id=view, exact=False)

    def _users(self, topic: FileId) -> Here:
        """Return who has a topic open on this host."""
        shared = self._open.get(topic)
        return Here() if shared is None else Here(shared.readers, shared.writers)

    @staticmethod
    def _refuse_control(file: FileId, name: bytes = b"") -> None:
        """Refuse a change of the control directory, or of what is in it. Raises AccessDenied."""
        if is_control_name(file, name):
            refuse()

    async def flush(self) -> None:
        """Commit what open handles hold behind the last newline, before the mount ends.

        A part that cannot be committed is logged: its writer was told that it is accepted.
        """
        for handle in list(self._handles):
            try:
                await handle.flush()
            except DnpError as error:
                logger.warning(
                    "the end of what was written to topic %x is lost: %s",
                    handle.topic,
                    error,
                    extra={"topic": handle.topic},
                )

    def give_up(self) -> None:
        """Wait no longer for writes under way: the mount is about to end."""
        self._log.give_up()

    async def usage(self) -> Usage:
        """Return how full the cluster is: etcd's quota and use."""
        space = await self._cluster.space()
        files = len(self._namespace.tree)
        return Usage(space.quota, max(0, space.quota - space.used), files, max(0, ENTRIES_LIMIT - files))

    def _fresh_s(self, entry: Entry) -> float:
        """Return how old a topic's size may be that is shown."""
        listing = self._listings.showing(entry, trio.current_time())
        return FRESH_S if listing is None else listing.fresh_s

    def _attributes(self, entry: Entry, log: TopicStat | None) -> Attributes:
        inode, directory = entry.inode, entry.is_directory
        nlink, size, blocks, changed_ns = 1, 0, 0, 0
        if directory:
            tree = self._namespace.tree
            nlink, changed_ns = 2 + tree.subdirectories(inode.id), tree.changed_ns(inode.id)
        elif log is not None:
            size, changed_ns = log.end, log.modified_ns
            blocks = -(-log.stored // BLOCK)
        return Attributes(  # by position: once for each entry of a listing
            inode.id,
            directory,
            inode.mode,
            inode.uid,
            inode.gid,
            nlink,
            size,
            blocks,
            changed_ns if changed_ns > inode.mtime_ns else inode.mtime_ns,
            changed_ns if changed_ns > inode.ctime_ns else inode.ctime_ns,
            directory or log is not None,
        )
