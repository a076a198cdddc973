"""The Python API: push, pull, reset and the namespace as a few async functions, for any trio program.

Beside the mount, the other face of the same services: what is pushed here is read there. Owns paths,
what counts as one message, and how a reader goes on after a reset. Modes and owners of topics are
recorded, not enforced: whoever may use the etcd prefix may do everything (a mount's kernel enforces).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, dropwhile
from pathlib import Path
from typing import Final, TypeVar

import trio

from dnpipefs import etcd
from dnpipefs.cluster import Cluster, Settings, default_data_dir, open_cluster
from dnpipefs.consumer import Consumer
from dnpipefs.core.config import READ_ONLY, SETTINGS, Framing, TopicConfig, TopicFacts
from dnpipefs.core.keys import DEFAULT_PREFIX
from dnpipefs.core.names import (
    ROOT,
    START,
    VIEW_SEPARATOR,
    FileId,
    Kind,
    Offset,
    parse_group,
    parse_path,
)
from dnpipefs.core.places import Place, nanoseconds, parse_place
from dnpipefs.core.tree import Entry
from dnpipefs.core.view import TopicView
from dnpipefs.errors import (
    AlreadyExists,
    CorruptData,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    NotADirectory,
    NotFound,
    TopicGone,
    UsageError,
)
from dnpipefs.groups import GroupFacts, Groups, Redriven
from dnpipefs.log.failures import DEFAULT_OP_TIMEOUT_S
from dnpipefs.log.log import Log, TopicStat
from dnpipefs.log.reader import Message
from dnpipefs.log.session import Host
from dnpipefs.namespace import Namespace
from dnpipefs.overview import TopicOverview, overview
from dnpipefs.writer import Writer, gather

PAGE_BYTES: Final = 256 << 10
"""How much a pull takes from the log at once, bytes; whole batches, so at most one batch more."""

PullStart = Place
"""Where a pull begins."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stat:
    """A topic or directory, as `ls -l` shows it."""

    name: str
    """Last component of its path; bytes that are not UTF-8 are surrogates, as in `os.listdir`."""
    is_directory: bool
    size: int
    """Bytes of the topic since its last reset; 0 for a directory and where it was not asked for."""
    mode: int
    """Permission bits."""
    uid: int
    gid: int
    mtime_ns: int
    """Last push or reset of a topic (its creation where sizes were not asked for), nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a topic or directory, and what is known of it besides."""

    settings: TopicConfig
    """Those in effect; a directory's are handed down to what is created in it later."""
    id: FileId
    facts: TopicFacts | None
    """Where a topic stands; None for a directory."""


@asynccontextmanager
async def connect(
    endpoints: str | Sequence[str] | None = None,
    *,
    prefix: str = DEFAULT_PREFIX,
    data_dir: str | os.PathLike[str] | None = None,
    tls: etcd.Tls | None = None,
    credentials: etcd.Credentials | None = None,
    op_timeout: float = DEFAULT_OP_TIMEOUT_S,
    discovery_srv: str | None = None,
) -> AsyncIterator[Dnp]:
    """Join a cluster until the block ends.

        async with dnpipefs.connect() as dnp:
            await dnp.push("greetings", "hello")

    Without `endpoints` the embedded etcd of `data_dir` is used, and started if it does not run; with the
    domain `discovery_srv` in their place, what DNS says there (SRV records, as etcd's own tools use them).
    `op_timeout` is how long, in seconds, an operation waits for etcd before it raises `TimedOut`.

    Raises SetupError, UnsupportedFormat, or an EtcdError that says why etcd cannot be used.
    """
    if not 0 < op_timeout < math.inf:
        raise InvalidArgument(f"op_timeout {op_timeout}: a number of seconds above 0 is needed")
    settings = Settings(
        endpoints=(endpoints,) if isinstance(endpoints, str) else tuple(endpoints or ()),
        discovery_srv=discovery_srv,
        prefix=prefix,
        data_dir=Path(data_dir) if data_dir is not None else default_data_dir(),
        tls=tls,
        credentials=credentials,
        op_timeout=op_timeout,
    )
    async with open_cluster(settings) as cluster:
        dnp = Dnp(cluster)
        try:
            yield dnp
        finally:
            dnp.close()


class Dnp:
    """A connection to a cluster; made by `connect`. Its methods may be called from many tasks.

    Paths are such as ``team/jobs``; a leading slash is allowed. Every method raises TimedOut when
    etcd does not answer in time, and other ClusterErrors when it answers with a no. Behind the block of
    `connect` they raise UsageError.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._joined: Cluster | None = cluster
        self._op_timeout: Final = cluster.settings.op_timeout

    @property
    def _cluster(self) -> Cluster:
        """What is behind it. Of one that was left nobody does the work: whoever asked it would wait on."""
        if self._joined is None:
            raise UsageError("this connection is closed: use it inside the block of connect()")
        return self._joined

    @property
    def _log(self) -> Log:
        return self._cluster.log

    @property
    def _namespace(self) -> Namespace:
        return self._cluster.namespace

    @property
    def _groups(self) -> Groups:
        return self._cluster.groups

    def close(self) -> None:
        """Let nobody use it any more; `connect` does that."""
        self._joined = None

    async def push(self, topic: str | bytes, *messages: str | bytes) -> None:
        """Append messages, in order; return once all of them are committed.

        Each argument is one message, and like `echo` this adds the newline where one lacks: the files
        then hold exactly what ``echo message > topic`` would have written, whatever the topic's framing
        (`writer` adds nothing). A message that has newlines inside stays one message for `pull` (and for
        consumer groups), though programs that read the file line by line see its lines. A missing topic
        is created, as `>` does, a missing directory is not.

        Raises MessageTooLarge (nothing of that message is stored, those before it are), NotFound,
        IsADirectory, InvalidName, OutOfSpace. Only after TimedOut and UnknownOutcome can messages that
        were not acknowledged be in the topic all the same, each at most once.
        """
        async with self.writer(topic) as writer:
            for chunk in gather(messages, writer.config.max_message):
                await writer.commit(chunk)

    @asynccontextmanager
    async def writer(self, topic: str | bytes, *, framing: Framing | None = None) -> AsyncIterator[Writer]:
        """Open a topic for a stream of bytes, as a program does that writes to the file.

        What a message is says the topic's framing, or else *framing*: a line, or what one `write` gets.
        Leaving the block commits a last line that has no newline, unless an exception leaves it.
        Raises as `push` does.
        """
        parts = parse_path(topic)

        async def reopen() -> Entry:
            await self._namespace.sync()
            return await self._topic(parts, create=True)

        def config_of(topic: FileId, unknown: TopicConfig) -> TopicConfig:
            config = self._namespace.config_of(topic, unknown)
            return config if framing is None else replace(config, framing=Framing(framing))

        writer = Writer(lambda: self._log, await self._topic(parts, create=True), reopen, config_of)
        yield writer
        await writer.flush()

    async def pull(
        self,
        topic: str | bytes,
        *,
        start: PullStart = "first",
        last: int | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[Message, None]:
        """Iterate over a topic's messages, from `start` on.

            async for message in dnp.pull("greetings"): ...

        The topic is opened when the iteration begins, and every push that had returned anywhere
        before is in it. Without `follow` the iteration ends at the end the topic had then, or when the
        topic is reset. With `follow` it goes on with whatever comes, and after a reset from the new
        beginning.

        `start` is ``"first"``, ``"last"`` (from the present end on), a byte offset (begins at the first
        message at or behind it), or a time (at the first message pushed then or later, by the pushing
        hosts' clocks; naive means local time; the index of segments tells about where that is). `last`
        begins with that many messages before the present end instead, or with the first one there is.

        Raises NotFound, IsADirectory, InvalidArgument, and TopicGone when the topic is deleted.
        """
        pulled = self.pull_pages(topic, start=start, last=last, follow=follow)
        async with aclosing(pulled) as pages:
            async for page in pages:
                for message in page:
                    yield message

    async def pull_pages(
        self,
        topic: str | bytes,
        *,
        start: PullStart = "first",
        last: int | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[Iterator[Message], None]:
        """Do what `pull` does, with as many messages at a time as are at hand.

        For callers that do something after each page, such as flushing an output. A page may be empty.
        """
        if isinstance(start, str):
            start = parse_place(start)
        since_ns = nanoseconds(start) if isinstance(start, datetime) else None
        if isinstance(start, int) and start < 0:
            raise InvalidArgument(f"offset {start}: offsets begin at 0")
        if last is not None and last < 0:
            raise InvalidArgument(f"the last {last} messages: a number from 0 on is needed")
        log = self._log
        reader, live = await self._with_topic(topic, lambda entry: log.open_reader(entry.id))
        try:
            view = await reader.view()
            offset = view.end if start == "last" else Offset(start) if isinstance(start, int) else START
            if since_ns is not None:
                offset = view.since(since_ns)
            if last is not None:
                found, _ = await reader.numbered(max(view.first_message, view.messages - last), 1)
                offset = next((message.offset for _, message in found), view.end)
            end, generation = view.end, view.generation
            while follow or offset < end:
                size = PAGE_BYTES if follow else min(PAGE_BYTES, end - offset)
                page, behind = await reader.messages(offset, size)
                view = await reader.view()
                if view.generation != generation:  # what was read is gone, or another generation's
                    if not follow:
                        return
                    offset, generation = START, view.generation
                elif behind == offset:
                    await reader.wait_beyond(offset, generation)
                else:
                    offset = behind
                    if since_ns is not None:
                        page, since_ns = _since(page, since_ns)
                    yield page
                await trio.lowlevel.checkpoint()  # cached pages come without one
        finally:
            log.close_reader(live)

    @asynccontextmanager
    async def consumer(self, topic: str | bytes, group: str | bytes) -> AsyncIterator[Consumer]:
        """Take part in a consumer group, which begins to exist if there was none.

            async with dnp.consumer("jobs", "workers") as consumer:
                async for message in consumer.messages(): ...

        Raises NotFound, IsADirectory, InvalidName.
        """
        groups = self._groups
        member = await self._with_topic(topic, lambda entry: groups.open(entry.id, parse_group(group)))
        consumer = Consumer(member)
        try:
            yield consumer
        finally:
            consumer.close()
            groups.close(member)

    async def group(self, topic: str | bytes, group: str | bytes) -> AsyncGenerator[Message, None]:
        """Iterate over messages for this reader of a group; wait for more for ever.

            async for message in dnp.group("jobs", "workers"): ...

        A message is acknowledged when its body ends and the next one is asked for; a body that raises, or
        is left by `break`, gives it back. Raises as `consumer` does.
        """
        async with self.consumer(topic, group) as consumer, aclosing(consumer.messages()) as messages:
            async for message in messages:
                yield message

    async def groups(self, topic: str | bytes) -> list[GroupFacts]:
        """Return what is known of all consumer groups of a topic, by name. Raises NotFound."""
        return await self._with_topic(topic, lambda entry: self._groups.facts(entry.id))

    async def seek(self, topic: str | bytes, group: str | bytes, place: Place) -> None:
        """Let a group go on from a place; what its readers have in hand is void. Raises NotFound."""
        await self._with_topic(topic, lambda entry: self._groups.rewind(entry.id, parse_group(group), place))

    async def redrive(self, topic: str | bytes, group: str | bytes) -> Redriven:
        """Give a group its dead letters again; return how many it has, how many are gone, how many wait.

        Raises NotFound.
        """
        return await self._with_topic(topic, lambda entry: self._groups.redrive(entry.id, parse_group(group)))

    async def remove_group(self, topic: str | bytes, group: str | bytes) -> None:
        """Delete a consumer group; its readers get TopicGone. Raises NotFound."""
        await self._with_topic(topic, lambda entry: self._groups.delete(entry.id, parse_group(group)))

    async def reset(self, topic: str | bytes) -> None:
        """Remove all messages of a topic, atomically for everybody. Raises NotFound, IsADirectory."""
        await self._with_topic(topic, lambda entry: self._log.reset(entry.id))

    async def stat(self, path: str | bytes) -> Stat:
        """Return what there is to know of a topic or directory, size included. Raises NotFound."""

        async def look() -> Stat:
            return await self._stat(await self._resolve(parse_path(path)))

        return await self._again_if_gone(look)

    async def ls(self, path: str | bytes = "", *, sizes: bool = True) -> list[Stat]:
        """Return the entries of a directory by name, or the one entry if the path is a topic's.

        `sizes` looks at the topics' logs for sizes and times of last pushes, all in few reads; what had
        returned anywhere before the call is in them. Raises NotFound.
        """
        await self._namespace.sync()
        entry = await self._resolve(parse_path(path))
        if not entry.is_directory:
            return [await self.stat(path) if sizes else self._describe(entry)]
        entries = [entry for _, entry in sorted(self._namespace.tree.children(entry.id).items())]
        if not sizes:
            return [self._describe(entry) for entry in entries]
        stats = await self._log.stats(
            [entry.id for entry in entries if not entry.is_directory], among=len(self._namespace.tree)
        )
        found = []
        for entry in entries:
            stat = stats.get(entry.id)
            if isinstance(stat, CorruptData):
                raise stat
            if stat is not None or entry.is_directory:  # else it was deleted since it was listed
                found.append(self._describe(entry, stat))
        return found

    async def config(self, path: str | bytes) -> Config:
        """Return the settings of a topic or directory and where it stands. Raises NotFound."""

        async def look() -> Config:
            entry = await self._resolve(parse_path(path))
            facts = None if entry.is_directory else await self._log.facts(entry.id)
            return Config(entry.inode.config.effective, entry.id, facts)

        return await self._again_if_gone(look)

    async def configure(
        self, path: str | bytes, changes: Mapping[str, str | None] | None = None, /, **more: str | None
    ) -> None:
        """Set settings of a topic, or those that a directory hands down to what is created in it.

            await dnp.configure("jobs", framing="write", retention_bytes="10MiB")
            await dnp.configure("jobs", {"retention.bytes": None})

        Values are what users write, None takes a setting back to its default. As keywords names have an
        underscore where the setting has a dot. All of them are changed at once or, if one cannot be,
        none.

        Raises InvalidSetting, ReadOnlySetting, NotFound, OutOfSpace.
        """
        dotted = {name.replace(".", "_"): name for name in (*SETTINGS, *READ_ONLY)}
        wanted = {**(changes or {}), **{dotted.get(name, name): value for name, value in more.items()}}

        async def change() -> None:
            entry = await self._resolve(parse_path(path))
            await self._namespace.configure(entry.id, wanted)

        await self._again_if_gone(change)

    async def mkdir(self, path: str | bytes, mode: int = 0o777) -> None:
        """Make a directory with `mode` as far as the umask lets it.

        Raises AlreadyExists, NotFound (the one it shall be in), InvalidName.
        """
        await self._create(parse_path(path), Kind.DIRECTORY, mode)

    async def remove(self, path: str | bytes) -> None:
        """Delete a topic or an empty directory. Raises NotFound, NotEmpty."""
        entry = await self._resolve(parse_path(path))
        _refuse_root(entry)
        if entry.is_directory:
            await self._namespace.rmdir(entry.parent, entry.name)
        else:
            self._log.forget(await self._namespace.unlink(entry.parent, entry.name))

    async def rename(self, source: str | bytes, target: str | bytes, *, replace: bool = True) -> None:
        """Move a topic or directory as mv does; `replace` lets it take the place of another.

        Raises NotFound, AlreadyExists, IsADirectory, NotADirectory, NotEmpty, InvalidArgument.
        """
        entry = await self._resolve(parse_path(source))
        _refuse_root(entry)
        parent, name = await self._place(parse_path(target))
        ended = await self._namespace.rename((entry.parent, entry.name), (parent.id, name), replace=replace)
        if ended is not None:
            self._log.forget(ended)

    async def overview(self) -> list[TopicOverview]:
        """Return all topics of the cluster with their sizes and consumer groups, in few reads.

        Every push that had returned anywhere before the call is in it.
        """
        return await overview(self._cluster)

    async def hosts(self) -> list[Host]:
        """Return the mounts, commands and programs of the cluster, by their hosts' names.

        One that died without a word stays in the list until its session runs out, seconds later.
        """
        return await self._cluster.hosts()

    async def health(self) -> etcd.Health:
        """Return how etcd is: its members, who of them answers, who leads, how full they are.

        Members that do not answer are no failure: waits at most some seconds for them, and raises nothing.
        """
        return await self._cluster.health()

    async def _resolve(self, path: Sequence[bytes], *, directory: bool = False) -> Entry:
        """Return the entry of a path, with *directory* of a directory's path.

        NotFound and NotADirectory name the part that is to blame.
        """
        entry = self._namespace.tree.get(ROOT)
        for index, name in enumerate(path):
            try:
                entry = await self._namespace.lookup(entry.id, name)
            except NotFound:
                shown = _shown(path[: index + 1])
                if directory or index + 1 < len(path):
                    raise NotFound(f"no directory {shown}; make it first: mkdir on a mount") from None
                raise NotFound(f"no topic or directory {shown}") from None
            except NotADirectory:
                raise NotADirectory(f"{_shown(path[:index])} is a topic, not a directory") from None
        if directory and not entry.is_directory:
            raise NotADirectory(f"{_shown(path)} is a topic, not a directory")
        return entry

    async def _place(self, path: Sequence[bytes]) -> tuple[Entry, bytes]:
        """Return the directory of a path that need not exist, and the name in it."""
        if not path:
            raise InvalidArgument("this is the root directory")
        return await self._resolve(path[:-1], directory=True), path[-1]

    async def _create(self, path: Sequence[bytes], kind: Kind, mode: int) -> Entry:
        parent, name = await self._place(path)
        return await self._namespace.create(
            parent.id, name, kind, mode=mode & ~_umask(), uid=os.geteuid(), gid=os.getegid()
        )

    async def _topic(self, path: Sequence[bytes], *, create: bool = False) -> Entry:
        if not create and path and VIEW_SEPARATOR in path[-1]:
            raise InvalidName(f"{_shown(path)}: views (topic@, topic@group) are files of a mount")
        while True:
            try:
                entry = await self._resolve(path)
            except NotFound:
                if not create:
                    raise
                try:
                    return await self._create(path, Kind.TOPIC, 0o666)
                except AlreadyExists:  # somebody was faster: that is the topic, then
                    continue
            if entry.is_directory:
                raise IsADirectory(f"{_shown(path)} is a directory, not a topic")
            return entry

    async def _with_topic(self, path: str | bytes, action: Callable[[Entry], Awaitable[_T]]) -> _T:
        parts = parse_path(path)

        async def act() -> _T:
            return await action(await self._topic(parts))

        return await self._again_if_gone(act)

    async def _again_if_gone(self, action: Callable[[], Awaitable[_T]]) -> _T:
        """Do *action*, and again if it met a topic that was deleted or replaced a moment ago."""
        try:
            return await action()
        except TopicGone:
            await self._namespace.sync()
            return await action()

    async def _stat(self, entry: Entry) -> Stat:
        if entry.is_directory:
            return self._describe(entry)
        async with self._log.reader(entry.id) as reader:
            return self._describe(entry, await reader.view())

    def _describe(self, entry: Entry, log: TopicView | TopicStat | None = None) -> Stat:
        inode, size, modified_ns = entry.inode, 0, 0
        if entry.is_directory:
            modified_ns = self._namespace.tree.changed_ns(entry.id)
        elif log is not None:
            size, modified_ns = log.end, log.modified_ns
        return Stat(
            name=os.fsdecode(entry.name),
            is_directory=entry.is_directory,
            size=size,
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            mtime_ns=max(inode.mtime_ns, modified_ns),
        )


def _since(page: Iterator[Message], since_ns: int) -> tuple[Iterator[Message], int | None]:
    """Drop the messages before a time; None instead of the time once one was found."""
    rest = dropwhile(lambda message: message.time_ns < since_ns, page)
    first = next(rest, None)
    return (iter(()), since_ns) if first is None else (chain((first,), rest), None)


def _shown(path: Sequence[bytes]) -> str:
    return repr(b"/".join(path).decode(errors="backslashreplace"))


def _refuse_root(entry: Entry) -> None:
    if entry.id == ROOT:
        raise InvalidArgument("the root directory can be neither moved nor removed")


def _umask() -> int:
    """Return this process's umask without changing it, as os.umask would for all its threads."""
    found = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 8) if found else 0o022
