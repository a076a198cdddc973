"""The log of a cluster, as one host uses it: append, read, reset. Composes the parts of this package."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

import trio

from dnpipefs import etcd
from dnpipefs.core import generation
from dnpipefs.core.batch import Chunk
from dnpipefs.core.config import TopicFacts
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import NO_GENERATION, FileId, Offset, Revision
from dnpipefs.core.records import encode_time
from dnpipefs.core.sealing import Policy
from dnpipefs.core.sizes import FRESH_S, KnownSize, KnownSizes
from dnpipefs.core.tails import Tails
from dnpipefs.core.view import TopicView
from dnpipefs.errors import CorruptData, TopicGone
from dnpipefs.log.appender import Appender, Queue
from dnpipefs.log.barrier import Barrier
from dnpipefs.log.clock import Clock
from dnpipefs.log.content import CACHE_LIMIT, Content
from dnpipefs.log.failures import TRANSIENT, Backoff, deadline
from dnpipefs.log.readahead import Cursor, ReadAhead
from dnpipefs.log.reader import Reader, holds
from dnpipefs.log.schedule import SealSchedule
from dnpipefs.log.sealer import Sealer
from dnpipefs.log.session import SessionKeeper
from dnpipefs.log.snapshot import view_of
from dnpipefs.log.survey import Survey, Surveyor
from dnpipefs.log.sweeper import Sweeper
from dnpipefs.log.views import LiveView, Views
from dnpipefs.metrics import Pushes
from dnpipefs.parallel import for_each

logger: Final = logging.getLogger(__name__)

SIZES_LIMIT: Final = 200_000
"""Topics whose size is kept in memory without following them, at about 400 bytes each."""
TAILS_LIMIT: Final = 50_000
"""Topics remembered between an append and the look whether they want sealing; the rounds find the others."""


SURVEYED_AT_ONCE: Final = 5_000
"""Topics that `Log.stats` asks for together: what is known of them is not old when the last one is."""
STATS_AT_ONCE: Final = 32
"""Topics that it looks at one by one, side by side, of which the survey did not tell."""


class TopicStat(NamedTuple):
    """What `stat` shows of a topic's log."""

    end: Offset
    first: Offset
    """First retained byte."""
    messages: int
    """How many there are from `first` on."""
    modified_ns: int
    stored: int
    """Bytes they take in etcd."""
    generation: Revision
    """NO_GENERATION if it has none."""
    first_message: int
    """How many messages came before `first`, which retention has removed."""


def _stat_of(known: TopicView | KnownSize) -> TopicStat:
    return TopicStat(
        known.end,
        known.first,
        known.messages - known.first_message,
        known.modified_ns,
        known.stored,
        known.generation,
        known.first_message,
    )


def _size_of(view: TopicView, newest: Revision, now: float) -> KnownSize:
    return KnownSize(
        view.end,
        view.messages,
        view.modified_ns,
        view.generation,
        newest,
        as_of=now,
        confirmed_at=now,
        asked_at=now,
        first=view.first,
        first_message=view.first_message,
        stored=view.stored,
    )


class Log:
    """Every topic's log. Topics are named by id; their names are the namespace's business."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        clock: Clock,
        sessions: SessionKeeper,
        barrier: Barrier,
        *,
        op_timeout: float,
        cache_limit: int = CACHE_LIMIT,
        policy: Callable[[FileId], Policy] = lambda _: Policy(),
        retained: Callable[[], Iterable[FileId]] = tuple,
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._clock: Final = clock
        self._barrier: Final = barrier
        self._op_timeout: Final = op_timeout
        self.sessions: Final = sessions
        self.content: Final = Content(client, keys, op_timeout=op_timeout, limit=cache_limit)
        self._ahead: Final = ReadAhead(self.content)
        self.sweeper: Final = Sweeper(client, keys)
        self._tails: Final = Tails(TAILS_LIMIT)
        self._views: Final = Views(
            client, keys, self.content, self._tails, barrier.staleness, op_timeout=op_timeout
        )
        self._sizes: Final = KnownSizes(SIZES_LIMIT)
        self._surveyor: Final = Surveyor(client, keys, self._sizes, op_timeout=op_timeout)
        self._appender: Final = Appender(
            client, keys, sessions, clock, self._sizes, self._tails, op_timeout=op_timeout
        )
        self.sealer: Final = Sealer(client, keys, clock, self.content, policy)
        self.schedule: Final = SealSchedule(
            client, keys, self.sealer, sessions, self._tails, self._appender.newest, retained
        )

    async def append(
        self,
        topic: FileId,
        chunk: Chunk,
        *,
        born: Revision,
        compress: bool = True,
        since: float | None = None,
    ) -> Revision:
        """Append whole messages; see `Appender.append`."""
        return await self._appender.append(topic, chunk, born=born, compress=compress, since=since)

    @asynccontextmanager
    async def reader(self, topic: FileId) -> AsyncIterator[Reader]:
        """Open a topic for reading: everything acknowledged before is in it."""
        reader, live = await self.open_reader(topic)
        try:
            yield reader
        finally:
            self.close_reader(live)

    async def open_reader(self, topic: FileId, *, may_be_stale: bool = False) -> tuple[Reader, LiveView]:
        """As `reader`, for callers whose end comes by a call; pair it with `close_reader`.

        *may_be_stale*: if this host allows that, it does not wait for an etcd that does not answer.
        """
        begun = self._views.begun
        with deadline(self._op_timeout):  # of all of it: each part would wait as long
            live = await self._views.acquire(topic)
            reader = self._reader(live, may_be_stale=may_be_stale)
            try:
                if live.snapshot <= begun:  # else it was read since this call, and so holds all that it must
                    await reader.opened()
            except BaseException:  # whatever it is, nobody else lets go of the view
                self._views.release(live)
                raise
        return reader, live

    def close_reader(self, live: LiveView) -> None:
        """End what `open_reader` began."""
        self._views.release(live)

    async def stat(self, topic: FileId) -> TopicStat:
        """Return size and times, this host's own appends included.

        Of a topic that somebody on this host reads, other hosts' appends show when the watch brings
        them, milliseconds later; of others, etcd was asked within FRESH_S. Raises TopicGone, TimedOut.
        """
        newest = self._appender.newest(topic)
        if self._views.peek(topic) is None:
            known = await self._known_size(topic)
            if known is not None and known.newest >= newest:
                return _stat_of(known)
        async with self._views.using(topic) as live:
            with deadline(self._op_timeout):
                return _stat_of(await live.catch_up(lambda view: view.revision >= newest))

    async def _known_size(self, topic: FileId) -> KnownSize | None:
        """Return a topic's size without following it; None if others change it, too: then follow it."""
        now = trio.current_time()
        known = self._sizes.ask(topic, now)
        if known is None:
            known = await self._read_size(topic)
        elif self._sizes.fresh(topic, now) is None:
            position = await self._barrier.topic_if_answered(topic)
            if position is None:
                return known
            if not self._sizes.confirmed(topic, position.newest, position.generation, now):
                return None
        return known

    async def stats(self, topics: Collection[FileId], *, among: int) -> dict[FileId, TopicStat | CorruptData]:
        """Return what `stat` would of many topics, in few reads, out of *among* in the cluster.

        Every push that had returned anywhere before the call is in it. For a topic whose records cannot be
        read there is what is wrong with them, for one that does not exist nothing.

        Raises TimedOut, EtcdError.
        """
        found: dict[FileId, TopicStat | CorruptData] = {}
        ids = sorted(topics)  # in the order of etcd's keys: see `survey`
        for first in range(0, len(ids), SURVEYED_AT_ONCE):
            some = ids[first : first + SURVEYED_AT_ONCE]
            await self._stat_some(some, found, among=among * len(some) // len(ids))
        return found

    async def _stat_some(
        self, topics: Sequence[FileId], found: dict[FileId, TopicStat | CorruptData], *, among: int
    ) -> None:
        began = trio.current_time()
        await self.survey(topics, among=among).wait()
        now = trio.current_time()
        left: list[FileId] = []
        for topic in topics:
            known = self._sizes.since(topic, began, now)
            if known is not None and known.newest >= self._appender.newest(topic):
                found[topic] = _stat_of(known)
            else:
                left.append(topic)

        async def look(topic: FileId) -> None:
            with suppress(TopicGone):
                try:
                    found[topic] = _stat_of(await self._confirmed(topic))
                except CorruptData as error:
                    found[topic] = error

        await for_each(left, look, at_once=min(STATS_AT_ONCE, len(left)))

    async def _confirmed(self, topic: FileId) -> TopicView | KnownSize:
        """Return what is known of a topic, all that was acknowledged before the call included.

        A view that is there serves; but nobody follows a topic, or goes on to, because its size is asked for.
        """
        if self._views.peek(topic) is not None:
            position = await self._barrier.topic(topic)
            view = self._views.peek(topic)
            if view is not None and holds(view, position):
                return view
        return await self._read_size(topic)

    async def _read_size(self, topic: FileId) -> KnownSize:
        """Read a topic's size, and remember it."""
        now = trio.current_time()
        state = await self._views.read(topic)
        size = _size_of(view_of(state), state.newest, now)
        self._sizes.learned(topic, size)
        return size

    def survey(self, topics: Sequence[FileId], *, among: int) -> Survey:
        """Begin to learn the sizes of many topics, out of *among* in the cluster, in few reads.

        `stat` and `peek` know them then, for as long as they are fresh.
        """
        return self._surveyor.begin(topics, among=among)

    def peek(self, topic: FileId, within: float = FRESH_S) -> TopicStat | None:
        """Return what `stat` would if that is known without waiting for anything.

        Of a topic that nobody on this host reads, others' appends can be missing, of the last *within*
        seconds.
        """
        newest = self._appender.newest(topic)
        view = self._views.peek(topic)
        if view is not None:
            return _stat_of(view) if view.revision >= newest else None
        known = self._sizes.fresh(topic, trio.current_time(), within)
        return _stat_of(known) if known is not None and known.newest >= newest else None

    async def facts(self, topic: FileId) -> TopicFacts:
        """Return what can be known of a topic: where it stands, from etcd, and sizes as `stat` has them.

        Raises TopicGone, TimedOut.
        """
        position = await self._barrier.topic(topic)
        found = await self.stat(topic)
        return TopicFacts(topic, position.generation, found.messages, found.first, found.end, position.newest)

    async def look(self, topic: FileId) -> tuple[TopicView, Revision]:
        """Return a topic's view as etcd has it now, which nobody follows, and its last change's revision.

        Raises TopicGone, TimedOut.
        """
        state = await self._views.read(topic)
        return view_of(state), state.newest

    async def reset(self, topic: FileId) -> None:
        """Remove all messages of a topic, atomically for everybody, also when etcd is full.

        Raises TopicGone, TimedOut.
        """
        with deadline(self._op_timeout):
            found = (await self._barrier.topic(topic)).generation
            if found != NO_GENERATION:  # else nothing is in it
                try:
                    await self._guarded(topic, found, self._resetting(topic))
                except etcd.SpaceExceeded:
                    # The write that crosses the quota is applied and answered so all the same.
                    if (await self._barrier.topic(topic)).generation == found:
                        logger.info(
                            "etcd is full: topic %x is reset by deletions only", topic, extra={"topic": topic}
                        )
                        deletes = [etcd.delete(key) for key in generation.end(self._keys, topic)]
                        await self._guarded(topic, found, deletes)
            self._sizes.forget(topic, trio.current_time())
            self.sweeper.wake(topic)
            if self._views.follows(topic):
                async with self.reader(topic):
                    pass  # this host sees its own reset at once

    def _resetting(self, topic: FileId) -> list[etcd.Op]:
        now_ns = self._clock.now_ns()
        writes = [
            *generation.begin(self._keys, topic, now_ns),
            (self._keys.trash(topic), encode_time(now_ns)),
        ]
        return [etcd.put(key, value) for key, value in writes]

    async def _guarded(self, topic: FileId, found: Revision, operations: Sequence[etcd.Op]) -> None:
        """Carry out *operations* if the topic is still in generation *found*.

        If it is not, a reset or the deletion came after we looked, ours whose answer was lost or
        another's; either way what had been pushed before the call is gone.
        """
        guard = [etcd.compare_mod_revision(self._keys.epoch(topic)) == found]
        backoff = Backoff()
        while True:
            try:
                await self._client.transaction(guard, operations)
            except etcd.SpaceExceeded:  # does not pass by itself
                raise
            except TRANSIENT:
                await backoff.wait()
            else:
                return

    def forget(self, topic: FileId) -> None:
        """Tell that a topic was deleted by this host."""
        self._appender.forget(topic)
        self._sizes.forget(topic, trio.current_time())
        self._tails.forget(topic)
        self.sweeper.wake(topic)

    @property
    def queue(self) -> Queue:
        """How much of pushes is under way now."""
        return self._appender.queue

    @property
    def pushes(self) -> Pushes:
        """What this host has pushed so far."""
        return self._appender.pushes

    @property
    def followed(self) -> int:
        """How many topics this host follows."""
        return len(self._views)

    def give_up(self) -> None:
        """Wait no longer for pushes under way: the process is about to end."""
        self._appender.give_up()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the tasks of the log until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._views.run)
            await nursery.start(self._ahead.run)
            nursery.start_soon(self._appender.run)
            nursery.start_soon(self._surveyor.run)
            nursery.start_soon(self.sweeper.run)
            nursery.start_soon(self.schedule.run)
            task_status.started()

    def _reader(self, live: LiveView, *, may_be_stale: bool = False) -> Reader:
        cursor = Cursor(self._ahead, self.content, live)
        own = self._appender.newest if may_be_stale else None
        return Reader(live, self._barrier, self.content, cursor, op_timeout=self._op_timeout, own=own)
