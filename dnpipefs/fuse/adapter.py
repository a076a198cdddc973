"""A protocol adapter only: FUSE requests in, calls of the file system, FUSE answers out.

Everything uses direct I/O; what else the kernel may keep, `entries.py` says. Any exception that is not one of
ours is logged with its traceback and answered with EIO; the mount lives on.
"""

from __future__ import annotations

import logging
import math
import os
import select
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Final

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    RequestContext,
    XAttrNameT,
)

from dnpipefs import errors
from dnpipefs.core.names import FileId, Offset
from dnpipefs.fuse import processes
from dnpipefs.fuse.answers import answers, answers_at_length
from dnpipefs.fuse.dentries import Dentries
from dnpipefs.fuse.endings import Ending, Endings
from dnpipefs.fuse.entries import FRESH_S, blank, entry_of, fill, fill_listed
from dnpipefs.fuse.interrupts import Interrupts
from dnpipefs.fuse.nodes import NodeId, NodeTable
from dnpipefs.fuse.polls import Poll
from dnpipefs.fuse.processes import Fate, Opener
from dnpipefs.log.budget import Budget
from dnpipefs.vfs import Attributes, ControlListing, FileSystem, Listing, OpenHandle

logger: Final = logging.getLogger(__name__)

KEPT_LIMIT: Final = 256 << 20
"""Bytes that all open files and directories may take, about; beyond it no more are opened. Any user may take
of it: a file of the control directory is kept whole, a directory with all its entries."""
OPEN_BYTES: Final = 2048
"""What any open file or directory takes, about."""
ASKED_AGAIN_S: Final = 0.1
"""How soon the kernel asks again, at most."""

LOOK_S: Final = 0.1
"""How long a poll that does not wait may take."""
_WRITABLE: Final = select.POLLOUT | select.POLLWRNORM


@dataclass(slots=True, eq=False)
class _OpenFile:
    node: NodeId
    handle: OpenHandle
    counted: bool = False
    """The node table knows that it has written."""
    opener: Opener | None = None
    """Of a file whose reads wait."""
    poll: Poll = field(default_factory=Poll)
    fate: Fate = Fate.UNKNOWN
    """Of the opener, at the last close of a descriptor; once seen failing it stays so."""
    ending: Ending | None = None
    """Of the opener, watched from a close on until it reads again."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """What a directory holds at one moment."""

    dots: tuple[tuple[bytes, Attributes], tuple[bytes, Attributes]]
    """The directory itself and the one above: of these the kernel takes no reference."""
    listing: Listing | ControlListing


@dataclass(slots=True, eq=False)
class _OpenDirectory:
    file: FileId
    listed: _Listed
    begun: bool = False
    """Somebody has read of it."""


class Adapter(pyfuse3.Operations):
    """The handlers. One task of pyfuse3 runs each request.

    A handler that waits for other processes, as long as it takes, does so under the guard of *interrupts*.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, files: FileSystem, interrupts: Interrupts) -> None:
        super().__init__()
        self.nursery: trio.Nursery | None = None
        """For tasks that outlive a request; it is there before the first one is."""
        self._files: Final = files
        self.requests: Final = files.requests
        self._interrupts: Final = interrupts
        self._endings: Final = Endings()
        self._nodes: Final = NodeTable()
        self._dentries: Final = Dentries()
        self._handles: dict[FileHandleT, _OpenFile] = {}
        self._listings: dict[FileHandleT, _OpenDirectory] = {}
        self._kept: Final = Budget(KEPT_LIMIT)
        self._next_handle: Final = count(1)
        self._unanswered: dict[tuple[InodeT, bytes, int], float] = {}
        """Lookups of the last moment for which etcd gave no answer, and when that was said: the oldest first,
        at most MAX_TASKS at a time, as no more are under way."""
        self._ending = 0
        """Files that are closed when it is known how their openers end."""
        self._ended: Final = trio.lowlevel.ParkingLot()

    # Names

    @answers
    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Answer a name's attributes.

        When a name that it knows could not be confirmed the kernel asks again, on behalf of the same call:
        that has waited as long as it may.
        """
        question = (parent_inode, name, ctx.pid)
        now = trio.current_time()
        if now - self._unanswered.pop(question, -math.inf) < ASKED_AGAIN_S:
            raise errors.TimedOut("etcd has not answered; the kernel asked again")
        parent = self._file(parent_inode)
        self._dentries.forget(parent, name)
        try:
            return self._found(parent, name, await self._files.lookup(parent, name), ctx)
        except errors.TimedOut:
            self._note_unanswered(question)
            raise

    def _note_unanswered(self, question: tuple[InodeT, bytes, int]) -> None:
        """Remember that a lookup got no answer, and forget those that the kernel repeats no more."""
        now = trio.current_time()
        while self._unanswered:
            oldest, at = next(iter(self._unanswered.items()))
            if now - at < ASKED_AGAIN_S:
                break
            del self._unanswered[oldest]
        self._unanswered[question] = now

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """The kernel drops references; it takes no answer."""
        for inode, lookups in inode_list:
            self._nodes.forget(NodeId(inode), lookups)

    @answers
    async def mkdir(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        permissions = mode & ~ctx.umask
        parent = self._file(parent_inode)
        made = await self._files.make_directory(parent, name, permissions, ctx.uid, ctx.gid)
        return self._found(parent, name, made, ctx)

    @answers
    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a topic; anything but a regular file is EPERM."""
        parent = self._file(parent_inode)
        made = await self._files.make_topic(parent, name, mode & ~ctx.umask, ctx.uid, ctx.gid)
        return self._found(parent, name, made, ctx)

    @answers
    async def create(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make and open a topic.

        Without O_EXCL one that another host just made will do, if the caller may open it: the kernel has not
        looked at its mode yet. With ESTALE it does, and opens it as any other.
        """
        parent = self._file(parent_inode)
        with self._files.in_time():
            try:
                made = await self._files.make_topic(parent, name, mode & ~ctx.umask, ctx.uid, ctx.gid)
            except errors.AlreadyExists:
                if flags & os.O_EXCL:
                    raise
                raise errors.Outdated("another host has made it") from None
            entry = self._found(parent, name, made, ctx)
            node = NodeId(entry.st_ino)
            try:
                return await self._open(node, made.id, flags, ctx), entry
            except BaseException:  # the kernel gets no node, and so will not forget it
                self._nodes.forget(node, 1)
                raise

    @answers
    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """Delete a topic."""
        parent = self._file(parent_inode)
        with self._files.in_time():
            await self._files.unlink(parent, name, known=self._dentries.find(parent, name))
        self._dentries.forget(parent, name)

    @answers
    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        parent = self._file(parent_inode)
        with self._files.in_time():
            await self._files.remove_directory(parent, name, known=self._dentries.find(parent, name))
        self._dentries.forget(parent, name)

    @answers
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: bytes,
        parent_inode_new: InodeT,
        name_new: bytes,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Move; RENAME_NOREPLACE is honoured, RENAME_EXCHANGE is EINVAL."""
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise errors.InvalidArgument("two names cannot be exchanged")
        source = self._file(parent_inode_old), name_old
        target = self._file(parent_inode_new), name_new
        with self._files.in_time():
            await self._files.rename(
                source,
                target,
                replace=not flags & pyfuse3.RENAME_NOREPLACE,
                known=(self._dentries.find(*source), self._dentries.find(*target)),
            )
        self._dentries.move(source, target)

    @answers
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Refuse: a topic has one name."""
        raise errors.NotPermitted("topics have no hard links")

    @answers
    async def symlink(
        self, parent_inode: InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Refuse: topics and directories only."""
        raise errors.NotPermitted("there are no symbolic links among topics")

    # Attributes

    @answers
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Answer current attributes."""
        return entry_of(await self._files.attributes(self._file(inode)))

    @answers
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Truncate (which resets), chmod, chown, utimensat."""
        file = self._file(inode)
        changes: dict[str, int] = {}
        if fields.update_mode:
            changes["mode"] = stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            changes["uid"] = attr.st_uid
        if fields.update_gid:
            changes["gid"] = attr.st_gid
        if fields.update_mtime and not fields.update_size:  # a reset has a time of its own
            changes["mtime_ns"] = attr.st_mtime_ns
        with self._files.in_time():
            if fields.update_size:
                await self._files.truncate(file, attr.st_size)
            if changes:
                return entry_of(await self._files.change(file, **changes))
            return entry_of(await self._files.attributes(file))

    # Extended attributes. pyfuse3 itself heeds XATTR_CREATE and XATTR_REPLACE, by a getxattr before.

    @answers
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Answer a value. Never ENOSYS: the kernel would not ask again for any."""
        return await self._files.xattrs.get(self._file(inode), name)

    @answers
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Change a setting."""
        with self._files.in_time():
            await self._files.xattrs.set(self._file(inode), name, value, ctx.uid)

    @answers
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Answer all names."""
        return [XAttrNameT(name) for name in await self._files.xattrs.list(self._file(inode))]

    @answers
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Take a setting back to its default."""
        with self._files.in_time():
            await self._files.xattrs.remove(self._file(inode), name, ctx.uid)

    @answers
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Answer etcd's quota and use."""
        usage = await self._files.usage()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = usage.total // 4096
        answer.f_bfree = answer.f_bavail = usage.free // 4096
        answer.f_files = usage.files + usage.files_free
        answer.f_ffree = answer.f_favail = usage.files_free
        answer.f_namemax = 255
        return answer

    # Open topics

    @answers
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a topic. O_TRUNC does not reset it: `echo message > topic` pushes."""
        node = NodeId(inode)
        with self._files.in_time():
            info = await self._open(node, self._nodes.file(node), flags, ctx)
        if flags & os.O_ACCMODE != os.O_WRONLY:
            # `tail` looks at the size right after the open: not at what was shown to somebody before it.
            pyfuse3.invalidate_inode(inode, attr_only=True)
        return info

    async def _open(self, node: NodeId, topic: FileId, flags: int, ctx: RequestContext) -> FileInfo:
        access = flags & os.O_ACCMODE
        handle = await self._files.open(
            topic,
            read=access != os.O_WRONLY,
            write=access != os.O_RDONLY,
            append=bool(flags & os.O_APPEND),
            wait=not flags & os.O_NONBLOCK,
        )
        try:
            self._keep(handle)
        except errors.TooManyFiles:
            await self._files.close(handle)
            raise
        self._nodes.opened(node, pid=ctx.pid)
        fh = next(self._next_handle)
        opener = processes.resolve(ctx.pid) if handle.blocking else None
        if opener is not None:
            self._endings.opens(opener)
        self._handles[fh] = _OpenFile(node, handle, opener=opener)
        self.requests.open_files += 1
        return FileInfo(fh=fh, direct_io=True, keep_cache=False, nonseekable=False)

    @answers_at_length
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Answer bytes; none only at the confirmed end. A view waits for some."""
        opened, requests = self._handles[fh], self.requests
        handle = opened.handle
        if handle.blocking:
            if opened.ending is not None:  # that was a child of a loop; there are few that can be watched
                self._endings.forget(opened.ending)
                opened.ending = None
            requests.blocked_reads += 1
            try:
                data = await self._interrupts.guard(opened.opener, lambda: handle.read(Offset(off), size))
            except errors.WouldBlock:
                self._wake_when_readable(opened)  # who waits for an edge (EPOLLET) does not ask again
                raise
            finally:
                requests.blocked_reads -= 1
        else:
            began = perf_counter()
            try:
                data = await handle.read(Offset(off), size)
            finally:
                requests.took["read"].observe(perf_counter() - began)
        requests.read_bytes += len(data)
        return data

    @answers
    async def poll(
        self,
        inode: InodeT,
        fh: FileHandleT,
        poll_handle: pyfuse3.PollHandle | None,
        ctx: RequestContext,
    ) -> int:
        """Answer whether a read would return; if not, wake whoever polls once it would."""
        opened = self._handles[fh]
        opened.poll.wait(poll_handle)
        if poll_handle is None and not opened.handle.readable:
            # Who never waits is never waited for: nothing would be claimed that shows as readable.
            with trio.move_on_after(LOOK_S), suppress(errors.DnpError):
                await opened.handle.look()
        if opened.handle.readable:
            return select.POLLIN | select.POLLRDNORM | _WRITABLE
        self._wake_when_readable(opened)
        return _WRITABLE

    def _wake_when_readable(self, opened: _OpenFile) -> None:
        assert self.nursery is not None  # noqa: S101 - see there
        opened.poll.notify_after(opened.handle.until_readable, self.nursery)

    @answers
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Push; answered after the commit."""
        opened = self._handles[fh]
        if not opened.counted:
            opened.counted = True
            self._nodes.began_writing(opened.node)
        return await opened.handle.write(off, buf)

    @answers
    async def flush(self, fh: FileHandleT) -> None:
        """One of maybe many close(2)s of the descriptor: commit the part without newline.

        The kernel lets the process go on when this is answered: until then its fate can be read. What the
        last one before RELEASE shows is what counts, since children inherit descriptors.
        """
        opened = self._handles[fh]
        opener = opened.opener
        if opened.handle.blocking and opened.fate is not Fate.FAILED and opener is not None:
            if opened.ending is not None:
                opened.ending.close()
            elif opened.handle.in_hand:
                opened.ending = self._endings.watch(opener)  # before the look: if it lives then, this is it
            opened.fate = processes.fate(opener)
        await opened.handle.flush()

    @answers
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Commit the part without newline; everything else is durable already."""
        await self._handles[fh].handle.flush()

    @answers
    async def release(self, fh: FileHandleT) -> None:
        """The last close. Nobody waits for its answer, but the kernel sends few at a time without it."""
        opened = self._handles.pop(fh)
        self.requests.open_files -= 1
        self._kept.give_back(OPEN_BYTES + opened.handle.size)
        if opened.counted:
            self._nodes.stopped_writing(opened.node)
        opened.poll.close()
        if opened.ending is None:
            await self._close(opened.handle, opened.fate)
            return
        assert self.nursery is not None  # noqa: S101 - see there
        self._ending += 1
        self.nursery.start_soon(self._close_after, opened, opened.ending)

    async def _close_after(self, opened: _OpenFile, ending: Ending) -> None:
        """Close a file as its opener ends, or when that has gone on."""
        fate = opened.fate
        try:
            if fate is Fate.ALIVE:
                fate = await self._endings.fate(ending)
        finally:
            self._endings.forget(ending)
            with suppress(FUSEError):  # it has been logged
                await self._close(opened.handle, fate)
            self._ending -= 1
            self._ended.unpark_all()

    @answers_at_length
    async def _close(self, handle: OpenHandle, fate: Fate) -> None:
        await self._files.close(handle, well=fate in (Fate.ALIVE, Fate.ENDED_WELL))

    async def all_closed(self) -> None:
        """Wait until what was closed is."""
        while self._ending:
            await self._ended.park()

    # Open directories

    @answers
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Take the listing: what is created meanwhile belongs to the next one."""
        file = self._file(inode)
        listed = await self._list(file)
        self._keep(listed.listing)
        fh = next(self._next_handle)
        self._listings[fh] = _OpenDirectory(file, listed)
        return fh

    @answers
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Fill one reply; rewinddir(3) takes the listing anew."""
        opened = self._listings[fh]
        if not start_id and opened.begun:
            listed = await self._list(opened.file)
            self._keep(listed.listing)
            self._kept.give_back(OPEN_BYTES + opened.listed.listing.size)
            opened.listed = listed
        opened.begun = True
        dots, listing = opened.listed.dots, opened.listed.listing
        entry, now = blank(), trio.current_time()  # one for all: each reply copies it
        for number, (name, attributes) in enumerate(dots[start_id:], start_id + 1):
            pyfuse3.readdir_reply(token, name, fill(entry, attributes, attributes.id), number)
        start = max(start_id, len(dots))
        page = await self._files.page(listing, start - len(dots))
        for number, (name, attributes) in enumerate(page, start + 1):
            if not pyfuse3.readdir_reply(token, name, fill_listed(entry, attributes), number):
                return
            self._nodes.listed(attributes.id)
            self._dentries.tell(opened.file, name, attributes.id, now)

    @answers
    async def releasedir(self, fh: FileHandleT) -> None:
        """Drop the listing."""
        opened = self._listings.pop(fh)
        self._kept.give_back(OPEN_BYTES + opened.listed.listing.size)

    async def _list(self, directory: FileId) -> _Listed:
        with self._files.in_time():
            own, above = await self._files.attributes(directory), await self._files.parent(directory)
            return _Listed(((b".", own), (b"..", above)), await self._files.open_directory(directory))
        raise AssertionError("unreachable: the deadline raises")

    def _keep(self, opened: OpenHandle | Listing | ControlListing) -> None:
        if not self._kept.take_nowait(OPEN_BYTES + opened.size):
            raise errors.TooManyFiles("as much is open on this mount as it keeps: close some, or mount anew")

    def _file(self, inode: InodeT) -> FileId:
        return self._nodes.file(NodeId(inode))

    def _found(
        self, parent: FileId, name: bytes, attributes: Attributes, ctx: RequestContext
    ) -> EntryAttributes:
        now = trio.current_time()
        self._dentries.tell(parent, name, attributes.id, now)
        if attributes.is_directory:
            node = self._nodes.listed(attributes.id)
        else:
            node = self._nodes.looked_up(attributes.id, pid=ctx.pid, now=now)
        entry = entry_of(attributes, node)
        if attributes.is_directory:
            entry.entry_timeout = FRESH_S
        return entry
