"""The namespace: every directory entry of the cluster in memory, and the planning of changes to it.

`Tree` is a pure function of a snapshot of all entries and the events after it, like the view of a
topic. A change is planned against the tree as a `Mutation`: guards (what must still be so) and
writes. etcd carries it out in one transaction if all guards hold; otherwise the tree has fallen
behind, the caller waits for it to catch up and plans again.

Invariants:

1. An id stands under exactly one (parent, name) at every revision; the root under (0, "").
2. Every entry's parent is the root or a directory of the tree, and parents form no cycle: each
   plan guards the entries it relies on (the parent, the replaced entry, all ancestors of a moved
   directory's new parent).
3. A directory is removed or replaced only when it is empty at that very revision.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from dnpipefs.core import generation
from dnpipefs.core.keys import EntryKey, KeyRange, KeySchema
from dnpipefs.core.names import ROOT, FileId, Kind, Revision, check_component, check_new_name
from dnpipefs.core.records import Inode, encode_time
from dnpipefs.errors import (
    AlreadyExists,
    CorruptData,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
)

ABSENT: Final = Revision(0)
"""mod_revision of a key that does not exist, as etcd's compares have it."""
DEEPEST_MOVE: Final = 120
"""Directories above the new place of a directory: all are compared, and etcd compares 128 keys at most."""
_DIRECTORY: Final = Kind.DIRECTORY  # looking up a member of an enumeration takes as long as all the rest


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory entry with its inode, as of mod_revision `revision`."""

    parent: FileId
    name: bytes
    inode: Inode
    revision: Revision

    @property
    def id(self) -> FileId:
        """Identity of the topic or directory."""
        return self.inode.id

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.inode.kind is _DIRECTORY


@dataclass(frozen=True, slots=True)
class EntryPut:
    """An entry was created or changed."""

    key: EntryKey
    inode: Inode


@dataclass(frozen=True, slots=True)
class EntryDeleted:
    """An entry went away (or elsewhere)."""

    key: EntryKey


@dataclass(frozen=True, slots=True)
class EntryUnreadable:
    """What stands under an entry's key does not parse."""

    key: EntryKey
    why: str


TreeEvent = EntryPut | EntryDeleted | EntryUnreadable


@dataclass(frozen=True, slots=True)
class Guard:
    """The key must have this mod_revision, ABSENT if it must not exist."""

    key: bytes
    revision: Revision


@dataclass(frozen=True, slots=True)
class Mutation:
    """One transaction on the namespace."""

    guards: tuple[Guard, ...]
    puts: tuple[tuple[bytes, bytes], ...] = ()
    deletes: tuple[bytes, ...] = ()
    must_be_empty: tuple[KeyRange, ...] = ()
    doomed: FileId | None = None
    """A topic that ends with it; its remaining keys are to be swept."""
    removal: bool = False
    """It is the same change without its puts, which only tell of it."""

    def without_puts(self) -> Mutation:
        """Return the form of a removal that etcd takes when it is full."""
        return replace(self, puts=())


def parse_name(keys: KeySchema, key: bytes) -> EntryKey:
    """Return what the key of an entry says. Raises CorruptData for one that no path can lead to."""
    parsed = keys.parse_entry(key)
    if not _is_root(parsed):
        try:
            check_component(parsed.name)
        except InvalidName as error:
            raise CorruptData(f"{key!r}: {error}") from None
    return parsed


def _is_root(key: EntryKey) -> bool:
    return not (key.name or key.parent)  # as `KeySchema.root` has it; a million are looked at


def parse_inode(name: EntryKey, key: bytes, raw: bytes) -> Inode:
    """Return what stands under the key of an entry, which says *name*. Raises CorruptData."""
    inode = Inode.decode(key, raw)
    if (inode.id == ROOT) != _is_root(name):
        raise CorruptData(f"{key!r}: id 1 is that of the root directory, and of nothing else")
    return inode


class Tree:
    """All entries at `revision`.

    Where an entry cannot be read there is a name of which nothing is known: it can neither be opened nor
    taken. Everything else goes on.
    """

    def __init__(
        self, revision: Revision, entries: Iterable[Entry], unreadable: Iterable[EntryUnreadable] = ()
    ) -> None:
        self.revision: Revision = revision
        self._by_id: dict[FileId, Entry] = {}
        self._children: dict[FileId, dict[bytes, Entry]] = {}
        self._subdirectories: dict[FileId, int] = {}
        self._changed_ns: dict[FileId, int] = {}
        self._unreadable: dict[EntryKey, str] = {one.key: one.why for one in unreadable}
        for entry in entries:
            if entry.id in self._by_id:
                self._unreadable[EntryKey(entry.parent, entry.name)] = f"id {entry.id:x} has another name"
                continue
            self._insert(entry)
            self.note_change(entry.parent, entry.inode.ctime_ns)
        if ROOT not in self._by_id:
            raise CorruptData("the namespace in etcd has no root directory")

    def __len__(self) -> int:
        return len(self._by_id)

    def apply(self, revision: Revision, events: Iterable[TreeEvent], now_ns: int = 0) -> None:
        """Take in all events of one revision, seen at *now_ns* (for the times of directories)."""
        deleted: list[EntryKey] = []
        for event in events:
            match event:
                case EntryPut(key, inode):
                    self._unreadable.pop(key, None)
                    self._put(Entry(key.parent, key.name, inode, revision))
                case EntryDeleted(key):
                    self._unreadable.pop(key, None)
                    deleted.append(key)
                case EntryUnreadable(key, why):
                    self._lose(key, why)
        for key in deleted:
            entry = self._children.get(key.parent, {}).get(key.name)
            if entry is not None and entry.revision < revision:
                self._remove(entry)
                self._changed_ns.pop(entry.id, None)
            self.note_change(key.parent, now_ns)
        self.revision = revision

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over all entries. A live view: copy before you await."""
        return iter(self._by_id.values())

    def get(self, file: FileId) -> Entry:
        """Return the entry of an id; NotFound if there is none (any more)."""
        try:
            return self._by_id[file]
        except KeyError:
            raise NotFound(f"no topic or directory has id {file:x} any more") from None

    def find_id(self, file: FileId) -> Entry | None:
        """Return the entry of an id, None if there is none (any more)."""
        return self._by_id.get(file)

    def find(self, parent: FileId, name: bytes) -> Entry | None:
        """Return the entry of a name in a directory, None if there is none.

        Raises CorruptData if it cannot be read.
        """
        if self._unreadable and (why := self._unreadable.get(EntryKey(parent, name))) is not None:
            raise CorruptData(f"{why}; dnpipefs fsck tells more")
        return self._children.get(parent, {}).get(name)

    def lookup(self, parent: FileId, name: bytes) -> Entry:
        """Return the entry of a name in a directory; NotFound, NotADirectory."""
        self.directory(parent)
        entry = self.find(parent, name)
        if entry is None:
            raise NotFound(f"no topic or directory {name.decode(errors='backslashreplace')!r}")
        return entry

    def directory(self, file: FileId) -> Entry:
        """Return the entry of a directory; NotFound, NotADirectory."""
        entry = self.get(file)
        if not entry.is_directory:
            raise NotADirectory(f"{entry.name.decode(errors='backslashreplace')!r} is a topic")
        return entry

    def children(self, parent: FileId) -> Mapping[bytes, Entry]:
        """Return a directory's entries by name. A live mapping: copy before you await."""
        return self._children.get(parent, {})

    def is_empty(self, directory: FileId) -> bool:
        """Tell whether a directory has no entry, readable or not."""
        return directory not in self._children and all(key.parent != directory for key in self._unreadable)

    def subdirectories(self, parent: FileId) -> int:
        """How many directories a directory holds."""
        return self._subdirectories.get(parent, 0)

    def changed_ns(self, directory: FileId) -> int:
        """When entries of a directory last came or went, as far as this host has seen; 0 if never."""
        return self._changed_ns.get(directory, 0)

    def note_change(self, directory: FileId, time_ns: int) -> None:
        """Record that entries of *directory* came or went at *time_ns*."""
        if time_ns > self._changed_ns.get(directory, 0):
            self._changed_ns[directory] = time_ns

    def path(self, file: FileId) -> bytes:
        """Return the path of an id from the root, without a leading slash."""
        return b"/".join(reversed([entry.name for entry in self._ancestry(file)]))

    def _ancestry(self, file: FileId) -> Iterator[Entry]:
        seen: set[FileId] = set()
        while file != ROOT:
            if file in seen:
                raise CorruptData(f"directory {file:x} lies below itself; dnpipefs fsck --repair moves it")
            seen.add(file)
            entry = self.get(file)
            yield entry
            file = entry.parent

    def _lose(self, key: EntryKey, why: str) -> None:
        """Know nothing of a name any more; of the root what was known holds, for without it nothing would."""
        entry = self._children.get(key.parent, {}).get(key.name)
        if entry is not None and entry.id == ROOT:
            return
        self._unreadable[key] = why
        if entry is not None:
            self._remove(entry)

    def _put(self, entry: Entry) -> None:
        old = self._by_id.get(entry.id)
        if old is not None:
            self._remove(old)
        self._insert(entry)
        if old is None or (old.parent, old.name) != (entry.parent, entry.name):
            self.note_change(entry.parent, entry.inode.ctime_ns)

    def _insert(self, entry: Entry) -> None:
        replaced = self._children.get(entry.parent, {}).get(entry.name)
        if replaced is not None:
            self._remove(replaced)
            self._changed_ns.pop(replaced.id, None)
        self._by_id[entry.id] = entry
        self._children.setdefault(entry.parent, {})[entry.name] = entry
        if entry.is_directory:
            self._subdirectories[entry.parent] = self._subdirectories.get(entry.parent, 0) + 1

    def _remove(self, entry: Entry) -> None:
        if self._by_id.get(entry.id) is entry:
            del self._by_id[entry.id]
        siblings = self._children[entry.parent]
        del siblings[entry.name]
        if entry.is_directory:
            self._subdirectories[entry.parent] -= 1
        if not siblings:
            del self._children[entry.parent]
            self._subdirectories.pop(entry.parent, None)


class Planner:
    """Plans changes of a tree. Each method raises what the file system call would."""

    def __init__(self, keys: KeySchema) -> None:
        self._keys: Final = keys

    def create(self, tree: Tree, parent: FileId, name: bytes, inode: Inode) -> Mutation:
        """Plan a new topic or directory; it takes over its directory's settings.

        And its group, if the directory hands that down (set-group-ID), as on other Linux file systems.
        """
        directory = tree.directory(parent)
        check_new_name(name)
        if tree.find(parent, name) is not None:
            raise AlreadyExists(f"{name.decode(errors='backslashreplace')!r} exists")
        inode = replace(inode, config=directory.inode.config)
        if directory.inode.mode & stat.S_ISGID:
            mode = inode.mode | stat.S_ISGID if inode.kind is Kind.DIRECTORY else inode.mode
            inode = replace(inode, gid=directory.inode.gid, mode=mode)
        guards = [Guard(self._keys.entry(parent, name), ABSENT), *self._guard(directory)]
        puts = [(self._keys.entry(parent, name), inode.encode())]
        if inode.kind is Kind.TOPIC:
            # A fresh random id that is taken after all fails here, and the caller draws another.
            guards.append(Guard(self._keys.last(inode.id), ABSENT))
            puts += generation.begin(self._keys, inode.id, inode.ctime_ns)
        return Mutation(tuple(guards), self._stamped(puts, inode.ctime_ns))

    def change(self, tree: Tree, file: FileId, inode: Inode) -> Mutation:
        """Plan new attributes for an existing entry."""
        entry = tree.get(file)
        key = self._keys.entry(entry.parent, entry.name)
        return Mutation(tuple(self._guard(entry)), self._stamped([(key, inode.encode())], inode.ctime_ns))

    def unlink(self, tree: Tree, parent: FileId, name: bytes, now_ns: int) -> Mutation:
        """Plan the deletion of a topic."""
        entry = tree.lookup(parent, name)
        if entry.is_directory:
            raise IsADirectory(f"{name.decode(errors='backslashreplace')!r} is a directory")
        puts, deletes = self._end_of(entry, now_ns)
        return Mutation(
            tuple(self._guard(entry)),
            self._stamped(puts, now_ns),
            (self._keys.entry(parent, name), *deletes),
            doomed=entry.id,
            removal=True,
        )

    def rmdir(self, tree: Tree, parent: FileId, name: bytes, now_ns: int) -> Mutation:
        """Plan the removal of an empty directory."""
        entry = tree.directory(tree.lookup(parent, name).id)
        if not tree.is_empty(entry.id):
            raise NotEmpty(f"{name.decode(errors='backslashreplace')!r} is not empty")
        return Mutation(
            tuple(self._guard(entry)),
            self._stamped([], now_ns),
            (self._keys.entry(parent, name),),
            (self._keys.entries(entry.id),),
            removal=True,
        )

    def rename(
        self,
        tree: Tree,
        source: tuple[FileId, bytes],
        target: tuple[FileId, bytes],
        now_ns: int,
        *,
        replace: bool,
    ) -> Mutation | None:
        """Plan a move; None if source and target are the same entry (nothing to do).

        Raises AlreadyExists if *replace* is false and the target exists, were it the source itself, and
        NameTooLong for a directory that would lie too deep to be sure that it does not get below itself.
        """
        entry = tree.lookup(*source)
        new_parent = tree.directory(target[0])
        check_new_name(target[1])
        if source == target:
            if not replace:
                raise AlreadyExists(f"{entry.name.decode(errors='backslashreplace')!r} exists")
            return None
        # The transaction compares one key once, so guards are collected by key.
        guards = {guard.key: guard for guard in self._guard(entry)}
        if entry.is_directory:
            for ancestor in tree._ancestry(new_parent.id):
                if ancestor.id == entry.id:
                    raise InvalidArgument("a directory cannot be moved into itself")
                guards |= {guard.key: guard for guard in self._guard(ancestor)}
            if len(guards) > 1 + DEEPEST_MOVE:
                raise NameTooLong(f"a directory cannot be moved below more than {DEEPEST_MOVE} others")
        guards |= {guard.key: guard for guard in self._guard(new_parent)}
        moved = entry.inode.changed(now_ns)
        puts = [(self._keys.entry(*target), moved.encode())]
        deletes = [self._keys.entry(*source)]
        empty: tuple[KeyRange, ...] = ()
        doomed: FileId | None = None
        old = tree.find(*target)
        if old is None:
            guards[self._keys.entry(*target)] = Guard(self._keys.entry(*target), ABSENT)
        else:
            self._check_replaceable(tree, entry, old, replace=replace)
            guards |= {guard.key: guard for guard in self._guard(old)}
            if old.is_directory:
                empty = (self._keys.entries(old.id),)
            else:
                ending, gone = self._end_of(old, now_ns)
                puts += ending
                deletes += gone
                doomed = old.id
        return Mutation(tuple(guards.values()), self._stamped(puts, now_ns), tuple(deletes), empty, doomed)

    @staticmethod
    def _check_replaceable(tree: Tree, entry: Entry, old: Entry, *, replace: bool) -> None:
        name = old.name.decode(errors="backslashreplace")
        if not replace:
            raise AlreadyExists(f"{name!r} exists")
        if old.is_directory and not entry.is_directory:
            raise IsADirectory(f"{name!r} is a directory")
        if entry.is_directory and not old.is_directory:
            raise NotADirectory(f"{name!r} is a topic")
        if not tree.is_empty(old.id):
            raise NotEmpty(f"{name!r} is not empty")

    def _guard(self, entry: Entry) -> list[Guard]:
        """Guard that an entry is still as the tree has it."""
        return [Guard(self._keys.entry(entry.parent, entry.name), entry.revision)]

    def _end_of(self, topic: Entry, now_ns: int) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
        """Return puts and deletes that end a topic; what remains is ordered to be swept."""
        ending = [(self._keys.trash(topic.id), encode_time(now_ns))]
        return ending, generation.end_topic(self._keys, topic.id)

    def _stamped(self, puts: list[tuple[bytes, bytes]], now_ns: int) -> tuple[tuple[bytes, bytes], ...]:
        return (*puts, (self._keys.last_namespace, encode_time(now_ns)))
