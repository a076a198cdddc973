"""The control directory ``/dnp/.dnp``: read-only files that say how things are, like ``/proc``.

It exists in the root only and is listed nowhere, so that ``rm -r``, ``cp -a``, ``find`` and ``grep -r`` of
the topics do not walk into it; by its name it is opened as any other.

=========================  ============================================================
``status``                 this mount, as `dnpipefs status` has it (JSON)
``hosts``                  a line for each mount of the cluster
``metrics``                Prometheus text
``topics/PATH``            a topic, as a file at its own path (JSON)
``groups/PATH/GROUP``      a consumer group, in a directory at its topic's path (JSON)
=========================  ============================================================

What a file says is made when it is opened: all reads of a handle see one moment. So nobody knows its size
before, and it is 0, as that of files in ``/proc``.

Modes and owners are those of what is told about, less the right to write: who may not read a topic, or not
enter its directory, does not get to know about it here either. Whatever would change something is
AccessDenied.

Ids are above those of views and made of what a file is about, so they are the same on every host and need no
memory; but those of groups, which are remembered as views are.
"""

from __future__ import annotations

import enum
import hashlib
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from dnpipefs.cluster import Cluster
from dnpipefs.core.names import CONTROL_DIRECTORY, MAX_FILE_ID, ROOT, FileId, Offset
from dnpipefs.core.tree import Entry
from dnpipefs.errors import AccessDenied, IsADirectory, NotADirectory, NotFound, TopicGone
from dnpipefs.log.failures import deadline
from dnpipefs.vfs.attributes import Attributes
from dnpipefs.vfs.reports import Reports

GROUPS_LIMIT: Final = 100_000
"""Groups whose ids are remembered; of those beyond, the one looked up longest ago has to be looked up."""
PAGE: Final = 1_000
"""Entries of a directory shown at once."""
_LISTED_BYTES: Final = 100
"""Of memory for an entry that is listed."""
_FIRST_ID: Final = 16 * MAX_FILE_ID
"""Views (`vfs/views.py`) lie below."""
_FILE_MODE: Final = 0o444
_DIRECTORY_MODE: Final = 0o555


class _Kind(enum.IntEnum):
    """What a node is; the ids of each lie in a range of their own."""

    FIXED = 0
    TOPICS = 1
    """A topic or directory below ``topics``; numbered by its id."""
    GROUPS = 2
    """A topic or directory below ``groups``, each of them a directory; numbered likewise."""
    GROUP = 3


def _id(kind: _Kind, number: int) -> FileId:
    return FileId(_FIRST_ID + kind * MAX_FILE_ID + number)


CONTROL: Final = _id(_Kind.FIXED, 0)
"""The control directory itself."""
_TOPICS: Final = _id(_Kind.TOPICS, ROOT)
_GROUPS: Final = _id(_Kind.GROUPS, ROOT)


def is_control(file: FileId) -> bool:
    """Tell whether an id is one of the control directory or of something below it."""
    return file >= _FIRST_ID


def is_control_name(parent: FileId, name: bytes) -> bool:
    """Tell whether a name is that of the control directory, or of something below it, if there is any."""
    return parent >= _FIRST_ID or (name == CONTROL_DIRECTORY and parent == ROOT)


def refuse() -> NoReturn:
    """Refuse a change of what is in the control directory."""
    raise AccessDenied("the control directory can be read only")


@dataclass(frozen=True, slots=True)
class ControlListing:
    """The entries of a directory at one moment."""

    names: Sequence[bytes]
    attributes_of: Callable[[bytes], Attributes]

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self.names) * _LISTED_BYTES

    def page(self, start: int) -> Iterator[tuple[bytes, Attributes]]:
        """Yield entries from number *start* on; none only if there are no more."""
        return ((name, self.attributes_of(name)) for name in self.names[start : start + PAGE])


class ControlHandle:
    """One open(2): what the file said then."""

    blocking: Final = False
    in_hand: Final = False
    readable: Final = True

    def __init__(self, content: bytes) -> None:
        self._content: Final = content
        self.size: Final = len(content)

    async def until_readable(self) -> None:
        """Return: a read returns at once."""

    async def look(self) -> None:
        """It is readable."""

    async def read(self, offset: Offset, size: int) -> bytes:
        """Return up to *size* bytes."""
        return self._content[offset : offset + size]

    async def write(self, offset: int, data: bytes) -> int:
        """Refuse."""
        refuse()

    async def flush(self) -> None:
        """Nothing is held."""

    async def close(self, *, well: bool) -> None:
        """Nothing is held."""


class ControlDirectory:
    """Looks up, lists and opens what is in the control directory."""

    def __init__(self, cluster: Cluster, reports: Reports, *, now_ns: int) -> None:
        """Take *now_ns*, nanoseconds since 1970: when the files that are about no topic came into being."""
        self._namespace: Final = cluster.namespace
        self._groups: Final = cluster.groups
        self._op_timeout: Final = cluster.settings.op_timeout
        self._reports: Final = reports
        self._began_ns: Final = now_ns
        self._uid, self._gid = os.geteuid(), os.getegid()
        files = {b"status": reports.status, b"hosts": reports.hosts, b"metrics": reports.metrics}
        self._files: Final[Mapping[FileId, Callable[[], Awaitable[bytes]]]] = {
            _id(_Kind.FIXED, number): report for number, report in enumerate(files.values(), 1)
        }
        self._names: Final[Mapping[bytes, FileId]] = {
            **dict(zip(files, self._files, strict=True)),
            b"topics": _TOPICS,
            b"groups": _GROUPS,
        }
        self._known_groups: Final[OrderedDict[FileId, tuple[FileId, bytes]]] = OrderedDict()

    async def lookup(self, parent: FileId, name: bytes) -> Attributes:
        """Return a name's attributes. Raises NotFound, NotADirectory, NameTooLong, TimedOut."""
        if not is_control(parent):
            return self._fixed(CONTROL)
        if parent == CONTROL:
            if name not in self._names:
                raise NotFound("there is no such file in the control directory")
            return await self.attributes(self._names[name])
        kind, number = self._split(parent)
        if kind in (_Kind.FIXED, _Kind.GROUP):
            raise NotADirectory("a file of the control directory is no directory")
        entry = await self._namespace.entry(number)
        if kind is _Kind.GROUPS and not entry.is_directory:
            if name not in await self._groups.names(entry.id):
                raise NotFound("there is no such group: it begins to exist when somebody reads from it")
            return self._of_group(entry, name)
        return self._of(kind, await self._namespace.lookup(entry.id, name))

    async def attributes(self, file: FileId) -> Attributes:
        """Return current attributes. Raises TopicGone, TimedOut."""
        kind, number = self._split(file)
        if kind is _Kind.FIXED:
            return self._fixed(file)
        if kind is _Kind.GROUP:
            topic, name = self._group(file)
            return self._of_group(await self._namespace.entry(topic), name)
        return self._of(kind, await self._namespace.entry(number))

    async def parent(self, directory: FileId) -> Attributes | None:
        """Return the attributes of what holds *directory*; None for the control directory itself."""
        kind, number = self._split(directory)
        if kind is _Kind.FIXED:
            return None
        if number == ROOT:
            return self._fixed(CONTROL)
        entry = await self._namespace.entry(number)
        return self._of(kind, await self._namespace.entry(entry.parent))

    async def open_directory(self, directory: FileId) -> ControlListing:
        """Return what a directory holds now. Raises TopicGone, TimedOut."""
        if directory == CONTROL:
            shown = {name: await self.attributes(file) for name, file in self._names.items()}
            return ControlListing(list(shown), shown.__getitem__)
        kind, number = self._split(directory)
        tree = await self._namespace.sync_to_read()
        entry = await self._namespace.entry(number)
        if not entry.is_directory:
            names = await self._groups.names(entry.id)
            return ControlListing(names, lambda name: self._of_group(entry, name))
        children = dict(tree.children(entry.id))  # as they are now
        return ControlListing(sorted(children), lambda name: self._of(kind, children[name]))

    async def open(self, file: FileId, *, write: bool) -> ControlHandle:
        """Open a file: what it says is made now.

        Raises AccessDenied to who wants to *write*, IsADirectory, TopicGone, TimedOut.
        """
        if write:
            refuse()
        kind, number = self._split(file)
        with deadline(self._op_timeout):
            if kind is _Kind.GROUP:
                topic, name = self._group(file)
                return ControlHandle(await self._reports.group(topic, name))
            if file in self._files:
                return ControlHandle(await self._files[file]())
            if kind is _Kind.TOPICS and not (await self._namespace.entry(number)).is_directory:
                return ControlHandle(await self._reports.topic(number))
        raise IsADirectory("a directory cannot be read as a file")

    @staticmethod
    def _split(file: FileId) -> tuple[_Kind, FileId]:
        """Return what a node is, and the id of the topic or directory that it is about, if it is."""
        kind, number = divmod(file - _FIRST_ID, MAX_FILE_ID)
        return _Kind(kind), FileId(number)

    def _fixed(self, file: FileId) -> Attributes:
        directory = file not in self._files
        mode = _DIRECTORY_MODE if directory else _FILE_MODE
        return _attributes(file, mode, self._uid, self._gid, self._began_ns, directory=directory)

    def _of(self, kind: _Kind, entry: Entry) -> Attributes:
        """Return the attributes of what tells about a topic or directory."""
        inode, file = entry.inode, _id(kind, entry.id)
        if entry.id == ROOT:
            return self._fixed(file)
        mode = inode.mode & (_DIRECTORY_MODE if entry.is_directory else _FILE_MODE)
        directory = entry.is_directory or kind is _Kind.GROUPS
        if directory and not entry.is_directory:
            mode |= mode >> 2  # who may read a topic may look its groups up
        return _attributes(file, mode, inode.uid, inode.gid, inode.mtime_ns, directory=directory)

    def _of_group(self, topic: Entry, name: bytes) -> Attributes:
        inode, file = topic.inode, self._id_of_group(topic.id, name)
        return _attributes(
            file, inode.mode & _FILE_MODE, inode.uid, inode.gid, inode.mtime_ns, directory=False
        )

    def _id_of_group(self, topic: FileId, name: bytes) -> FileId:
        """Return a group's id, and remember it."""
        group = topic, name
        digest = hashlib.blake2b(b"%x@%b" % group, digest_size=8).digest()
        number = int.from_bytes(digest, "big") % MAX_FILE_ID
        while self._known_groups.get(file := _id(_Kind.GROUP, number), group) != group:
            number = (number + 1) % MAX_FILE_ID
        self._known_groups[file] = group
        self._known_groups.move_to_end(file)
        if len(self._known_groups) > GROUPS_LIMIT:
            self._known_groups.popitem(last=False)
        return file

    def _group(self, file: FileId) -> tuple[FileId, bytes]:
        found = self._known_groups.get(file)
        if found is None:
            raise TopicGone("the group was not looked at for long; open it again")
        return found


def _attributes(
    file: FileId, mode: int, uid: int, gid: int, changed_ns: int, *, directory: bool
) -> Attributes:
    return Attributes(
        file,
        directory,
        mode,
        uid,
        gid,
        nlink=1,  # of directories, too: nobody counts
        size=0,
        blocks=0,
        mtime_ns=changed_ns,
        ctime_ns=changed_ns,
        exact=False,
    )
