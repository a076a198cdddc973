"""The names of the cluster: the tree in memory, fed by a watch, changed by guarded transactions.

A name that is not found is confirmed with etcd before anybody hears "no such file"; a name that is
found is as fresh as the watch, milliseconds.

Task: one, `Namespace.run`, owns the tree and alone changes it. A caller that changes the namespace
holds nothing but its own plan across awaits, and plans again if the tree has moved on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Final

import trio

from dnpipefs import etcd
from dnpipefs.core.config import DEFAULTS, TopicConfig, parse_change
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Kind, Revision, check_component
from dnpipefs.core.records import Inode
from dnpipefs.core.tree import (
    Entry,
    EntryDeleted,
    EntryPut,
    EntryUnreadable,
    Mutation,
    Planner,
    Tree,
    TreeEvent,
    parse_inode,
    parse_name,
)
from dnpipefs.errors import CorruptData, DnpError, NotFound, Outdated, OutOfSpace, TopicGone
from dnpipefs.log.barrier import Barrier
from dnpipefs.log.clock import Clock
from dnpipefs.log.failures import TRANSIENT, Backoff, deadline

logger: Final = logging.getLogger(__name__)

ENTRIES_LIMIT: Final = 1_000_000
"""Topics and directories of a cluster. Every host has all of them in memory, at some 550 bytes each."""
PATIENCE_S: Final = 2.0
"""How long the watch may be behind what etcd has before all entries are read again."""
COMPLAINTS_LIMIT: Final = 100
"""Entries that cannot be read and are named in the log; fsck names all."""
LOAD_ENTRIES: Final = 20_000
"""Entries asked for in one read when all of them are: some 5 MiB."""


class Namespace:
    """Looks names up and changes them."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        clock: Clock,
        barrier: Barrier,
        *,
        op_timeout: float,
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._clock: Final = clock
        self._barrier: Final = barrier
        self._op_timeout: Final = op_timeout
        self._planner: Final = Planner(keys)
        self._tree: Tree | None = None
        self._following = trio.CancelScope()
        """Of the watch; who waits for it in vain ends it."""
        self._complaints: dict[bytes, int] = {}
        """Entries that cannot be read, by key, with the revisions of which that was said."""
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def tree(self) -> Tree:
        """The tree as this host has it now; changes at the next await."""
        assert self._tree is not None  # noqa: S101 - `run` has started
        return self._tree

    async def sync(self) -> Tree:
        """Return the tree once it holds every change that returned before the call. Raises TimedOut."""
        with deadline(self._op_timeout):
            return await self._catch_up(await self._barrier.namespace())
        raise AssertionError("unreachable: the deadline raises")

    async def sync_to_read(self) -> Tree:
        """Likewise, or as this host has it if that may be stale and etcd does not answer. Raises TimedOut."""
        with deadline(self._op_timeout):
            revision = await self._barrier.namespace_if_answered()
            return self.tree if revision is None else await self._catch_up(revision)
        raise AssertionError("unreachable: the deadline raises")

    async def lookup(self, parent: FileId, name: bytes, *, to_change: bool = False) -> Entry:
        """Return a directory's entry. Raises NotFound, NotADirectory, NameTooLong, TimedOut.

        *to_change*: what is said to be missing is so in etcd, whatever readers get.
        """
        check_component(name)
        entry = self.tree.find(parent, name)
        if entry is not None:
            return entry
        return (await (self.sync() if to_change else self.sync_to_read())).lookup(parent, name)

    async def resolve(self, path: Sequence[bytes], start: FileId) -> Entry:
        """Return the entry of a path of names below *start*. Raises as `lookup` does."""
        entry = self.tree.get(start)
        for name in path:
            entry = await self.lookup(entry.id, name)
        return entry

    async def entry(self, file: FileId) -> Entry:
        """Return the entry of an id. Raises TopicGone (confirmed with etcd), TimedOut."""
        try:
            return self.tree.get(file)
        except NotFound:
            try:
                return (await self.sync_to_read()).get(file)
            except NotFound:
                raise TopicGone("the topic or directory was deleted") from None

    def config_of(self, topic: FileId, unknown: TopicConfig = DEFAULTS) -> TopicConfig:
        """Return the settings in effect, as this host has them now; *unknown* for an id that is not there.

        The same object until the entry changes, for callers that look often.
        """
        entry = self.tree.find_id(topic)
        return entry.inode.config.effective if entry is not None else unknown

    def retained(self) -> list[FileId]:
        """Return the topics that do not keep everything."""
        return [
            entry.id
            for entry in self.tree
            if not entry.is_directory and entry.inode.config.effective.keeps_some
        ]

    async def create(
        self, parent: FileId, name: bytes, kind: Kind, *, mode: int, uid: int, gid: int
    ) -> Entry:
        """Make a topic or an empty directory, with its directory's settings, and return its entry.

        Raises AlreadyExists, InvalidName, NotFound, NotADirectory, TimedOut, OutOfSpace (also at
        ENTRIES_LIMIT).
        """
        now_ns = self._clock.now_ns()
        tried: list[FileId] = []
        """An id of its own for each try: what one made may have been moved, or deleted, by another host."""

        def found(tree: Tree) -> Iterator[Entry]:
            return (entry for file in tried if (entry := tree.find_id(file)) is not None)

        def plan(tree: Tree) -> Mutation:
            inode = Inode(self._clock.new_file_id(), kind, mode & 0o7777, uid, gid, now_ns, now_ns)
            tried.append(inode.id)
            mutation = self._planner.create(tree, parent, name, inode)
            if len(tree) >= ENTRIES_LIMIT:
                raise OutOfSpace(
                    f"there are {len(tree)} topics and directories, as many as a host keeps in memory: "
                    "remove some, or use another --prefix"
                )
            return mutation

        tree = await self._mutate(plan, lambda tree: any(found(tree)))
        return next(found(tree), None) or tree.get(tried[-1])

    async def change(self, file: FileId, **changes: Any) -> Entry:
        """Change fields of an inode (mode, uid, gid, mtime_ns) and return the entry."""
        return await self._change(file, lambda _: changes)

    async def configure(self, file: FileId, texts: Mapping[str, str | None]) -> Entry:
        """Change settings, from what users write for them (None: back to the default); return the entry.

        Effective here when this returns. Raises InvalidSetting, ReadOnlySetting, TopicGone, TimedOut,
        OutOfSpace.
        """
        change = parse_change(texts)
        await self.sync()
        entry = await self.entry(file)
        if entry.inode.config.changed(change) == entry.inode.config:
            return entry  # so a copy of all attributes by cp -a costs little
        return await self._change(file, lambda inode: {"config": inode.config.changed(change)})

    async def _change(self, file: FileId, changes: Callable[[Inode], Mapping[str, Any]]) -> Entry:
        now_ns = self._clock.now_ns()

        def changed(tree: Tree) -> Inode:
            inode = tree.get(file).inode
            return inode.changed(now_ns, **changes(inode))

        tree = await self._mutate(
            lambda tree: self._planner.change(tree, file, changed(tree)),
            lambda tree: tree.get(file).inode == changed(tree),
        )
        return tree.get(file)

    async def unlink(self, parent: FileId, name: bytes, *, known: FileId | None = None) -> FileId:
        """Delete a topic and return its id, also when etcd is full.

        Raises NotFound, IsADirectory; Outdated if it is another one than the caller has *known*.
        """
        return await self._remove(parent, name, self._planner.unlink, known)

    async def rmdir(self, parent: FileId, name: bytes, *, known: FileId | None = None) -> None:
        """Remove an empty directory, also when etcd is full.

        Raises NotFound, NotADirectory, NotEmpty; Outdated if it is another one than the caller has *known*.
        """
        await self._remove(parent, name, self._planner.rmdir, known)

    async def rename(
        self,
        source: tuple[FileId, bytes],
        target: tuple[FileId, bytes],
        *,
        replace: bool,
        known: tuple[FileId | None, FileId | None] = (None, None),
    ) -> FileId | None:
        """Move an entry, atomically replacing what stands at the target; return a topic that this ended.

        Raises NotFound, AlreadyExists (without *replace*), IsADirectory, NotADirectory, NotEmpty,
        InvalidArgument (a directory into itself), NameTooLong (a directory to a place too deep); Outdated if
        the caller has *known* something at the source, or the target, that is not there.
        """
        entry = await self.lookup(*source, to_change=True)
        doomed: FileId | None = None

        def plan(tree: Tree) -> Mutation | None:
            nonlocal entry, doomed
            mutation = self._planner.rename(tree, source, target, self._clock.now_ns(), replace=replace)
            _check_known(tree.find(*source), known[0])
            _check_known(tree.find(*target), known[1])
            entry = tree.lookup(*source)  # it may be another one than in a tree that was behind
            doomed = mutation.doomed if mutation is not None else None
            return mutation

        def moved(tree: Tree) -> bool:
            found = tree.find(*target)
            return found is not None and found.id == entry.id

        await self._mutate(plan, moved)
        return doomed

    async def _remove(
        self,
        parent: FileId,
        name: bytes,
        planned: Callable[[Tree, FileId, bytes, int], Mutation],
        known: FileId | None = None,
    ) -> FileId:
        entry = await self.lookup(parent, name, to_change=True)

        def plan(tree: Tree) -> Mutation:
            nonlocal entry
            mutation = planned(tree, parent, name, self._clock.now_ns())
            entry = tree.lookup(parent, name)  # as above
            _check_known(entry, known)
            return mutation

        def gone(tree: Tree) -> bool:
            found = tree.find(parent, name)
            return found is None or found.id != entry.id

        await self._mutate(plan, gone)
        return entry.id

    async def _mutate(self, plan: Callable[[Tree], Mutation | None], done: Callable[[Tree], bool]) -> Tree:
        """Plan against the tree and carry it out, again if others were faster.

        `done` says, of a synced tree, whether an unanswered transaction was applied after all.
        Returns a tree that holds the change.

        Of a removal without puts (etcd was full) no host is told but by its watch, a moment later:
        also here a synced tree may be one that the removal is still to come to.
        """
        unanswered = full = False
        tree = self.tree
        with deadline(self._op_timeout):
            backoff = Backoff()
            while True:
                try:
                    mutation = plan(tree)
                except DnpError:
                    # The tree may be behind, or our own unanswered try may be what is in the way.
                    if unanswered and done(tree):
                        return tree
                    if tree.revision >= (newest := await self._barrier.namespace()):
                        raise
                    tree = await self._catch_up(newest)
                    if unanswered and done(tree):
                        return tree
                    continue
                if mutation is None:
                    return tree
                if full:
                    mutation = mutation.without_puts()
                planned = tree.revision
                try:
                    result = await self._client.transaction(*self._transaction(mutation))
                except etcd.SpaceExceeded:
                    tree = await self.sync()
                    if done(tree):
                        return tree
                    if full or not mutation.removal:
                        raise
                    logger.info("etcd is full: removing by deletions only")
                    full = True
                    continue
                except TRANSIENT as error:
                    logger.info(
                        "a change of the namespace went unanswered, looking what became of it: %s", error
                    )
                    unanswered |= isinstance(error, etcd.Ambiguous)
                    await backoff.wait()
                    result = None
                if result is not None and result.succeeded:
                    return await self._catch_up(Revision(result.revision))
                tree = await self.sync()
                if unanswered and done(tree):
                    return tree
                if tree.revision == planned:  # what was in the way is a removal without puts
                    await backoff.wait()
        raise AssertionError("unreachable: the deadline raises")

    def _transaction(self, mutation: Mutation) -> tuple[list[etcd.Compare], list[etcd.Op]]:
        compare = [etcd.compare_mod_revision(guard.key) == guard.revision for guard in mutation.guards]
        compare += [
            etcd.compare_create_revision(part.start, part.end) == 0 for part in mutation.must_be_empty
        ]
        operations = [etcd.put(key, value) for key, value in mutation.puts]
        operations += [etcd.delete(key) for key in mutation.deletes]
        return compare, operations

    async def _catch_up(self, revision: Revision) -> Tree:
        with deadline(self._op_timeout):
            while self.tree.revision < revision:
                with trio.move_on_after(PATIENCE_S) as patience:
                    await self._changed.park()
                if patience.cancelled_caught and self.tree.revision < revision:
                    # Somebody has put `last/ns` by hand, perhaps: then no watch will ever bring it.
                    self._following.cancel()
        return self.tree

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the tree current until cancelled; started once there is a tree.

        Raises what makes the first snapshot impossible, such as CorruptData or a PermissionDenied.
        """
        backoff = Backoff()
        while self._tree is None:
            try:
                await self._load()
            except etcd.Compacted:
                logger.info("the namespace was compacted while it was read; reading it again")
                await backoff.wait()
        task_status.started()
        backoff = Backoff()
        while True:
            try:
                with trio.CancelScope() as self._following:
                    await self._follow(self.tree)
                logger.warning("the watch of the namespace is late; taking a new snapshot")
            except etcd.Compacted:
                logger.info("the watch of the namespace was compacted; taking a new snapshot")
            except DnpError as error:
                logger.warning("the namespace cannot be watched, trying again: %s", error)
                await backoff.wait()
            try:
                await self._load()
                backoff = Backoff()
            except DnpError as error:
                logger.warning("the namespace cannot be read, trying again: %s", error)
                await backoff.wait()

    async def _load(self) -> None:
        """Read all entries at one revision, page by page: together they can be hundreds of megabytes."""
        names = self._keys.namespace
        start, revision = names.start, 0
        entries: list[Entry] = []
        unreadable: list[EntryUnreadable] = []
        while True:
            page = await self._client.range(
                start, names.end, revision=revision, limit=LOAD_ENTRIES, timeout=self._op_timeout
            )
            for kv in page.kvs:
                match self._read(kv):
                    case EntryPut(key, inode):
                        entries.append(Entry(key.parent, key.name, inode, Revision(kv.mod_revision)))
                    case EntryUnreadable() as lost:
                        unreadable.append(lost)
            if not page.more:
                break
            start, revision = page.kvs[-1].key + b"\0", revision or page.revision
        self._tree = Tree(Revision(revision or page.revision), entries, unreadable)
        self._changed.unpark_all()

    def _read(self, kv: etcd.KeyValue) -> EntryPut | EntryUnreadable | None:
        """Return what an entry's key has; None if no path leads to it. What does not parse is said once."""
        try:
            key = parse_name(self._keys, kv.key)
        except CorruptData as error:
            self._complain(kv, error)
            return None
        try:
            return EntryPut(key, parse_inode(key, kv.key, kv.value))
        except CorruptData as error:
            self._complain(kv, error)
            return EntryUnreadable(key, str(error))

    def _complain(self, kv: etcd.KeyValue, error: CorruptData) -> None:
        if self._complaints.get(kv.key) != kv.mod_revision and len(self._complaints) < COMPLAINTS_LIMIT:
            self._complaints[kv.key] = kv.mod_revision
            logger.warning("%s; the rest is served, dnpipefs fsck tells more", error)

    async def _follow(self, tree: Tree) -> None:
        names = self._keys.namespace
        async with self._client.watch(names.start, names.end, start_revision=tree.revision + 1) as watch:
            async for batch in watch:
                for revision, events in groupby(batch.events, key=lambda event: event.kv.mod_revision):
                    tree.apply(Revision(revision), self._translate(events), self._clock.now_ns())
                self._changed.unpark_all()

    def _translate(self, events: Iterable[etcd.Event]) -> list[TreeEvent]:
        translated: list[TreeEvent] = []
        for event in events:
            if event.kind is etcd.EventKind.DELETE:
                with suppress(CorruptData):  # said when it came
                    translated.append(EntryDeleted(parse_name(self._keys, event.kv.key)))
            elif (found := self._read(event.kv)) is not None:
                translated.append(found)
                if isinstance(found, EntryPut):
                    for complaint in found.inode.config.complaints:
                        logger.warning("%s: %s", event.kv.key.decode(errors="backslashreplace"), complaint)
        return translated


def _check_known(entry: Entry | None, known: FileId | None) -> None:
    if known is not None and (entry is None or entry.id != known):
        raise Outdated("another host has put something else in its place")
