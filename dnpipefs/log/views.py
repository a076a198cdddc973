"""Live views: the topics that somebody on this host reads or stats, kept current by a watch each.

A view comes into being with its first user, stays LINGER_S after its last (a shell loop that opens
a topic again and again pays for one; there is no new one while answers are stale, so then it stays
longer), and is thrown away and built anew whenever the watch is compacted, breaks, or does not fit
(`ViewBroken`).

Tasks: one `_follow` a live view, in the nursery of `Views.run`. It alone changes the view; between
two awaits everybody else may read it. Waiters are woken after each change.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core.batch import peek_generation, peek_time_ns
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Revision
from dnpipefs.core.records import Mark
from dnpipefs.core.tails import Tails
from dnpipefs.core.view import (
    Appended,
    Ended,
    Reset,
    Sealed,
    TailEvent,
    TopicView,
    Trimmed,
    ViewBroken,
)
from dnpipefs.errors import DnpError, TopicGone
from dnpipefs.log.content import Content
from dnpipefs.log.failures import TRANSIENT, Backoff, deadline, timed_out
from dnpipefs.log.snapshot import TopicState, read_topic, view_of
from dnpipefs.log.staleness import Staleness

logger: Final = logging.getLogger(__name__)

LINGER_S: Final = 5.0
"""How long a view outlives its last user."""
LATE_S: Final = 5.0
"""How long a watch may be behind what etcd has, while somebody waits, before the topic is read anew."""
SNAPSHOT_S: Final = 5.0
"""How long the first try to read a topic may take. One after a failure may take twice as long, up to the time
of an operation: a topic with a long index, or tail, is to be had on a slow line, too."""


class LiveView:
    """A topic's view with its users and waiters."""

    def __init__(self, topic: FileId) -> None:
        self.topic: Final = topic
        self.view: TopicView | None = None
        self.failure: DnpError | None = None
        """Set once: the view is of no use any more."""
        self.snapshot = 0
        """The number of the snapshot that the view began with, see `Views.begun`."""
        self.users = 0
        self.scope = trio.CancelScope()
        self.watching = trio.CancelScope()
        """Of the watch; who waits for it in vain ends it."""
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def ended(self) -> bool:
        """Whether a new user needs another live view."""
        return self.failure is not None or self.scope.deadline <= trio.current_time()

    def wake(self) -> None:
        """Tell all waiters that something changed."""
        self._changed.unpark_all()

    async def wait(self, condition: Callable[[TopicView], bool]) -> TopicView:
        """Wait until there is a view and *condition* holds for it.

        Raises what ended the view, such as TopicGone. The caller sets the deadline.
        """
        while True:
            if self.failure is not None:
                raise self.failure
            if self.view is not None and condition(self.view):
                return self.view
            await self._changed.park()

    async def catch_up(self, condition: Callable[[TopicView], bool]) -> TopicView:
        """Wait likewise for what etcd has, so that a watch should bring it at once.

        Etcd can lose an event (old releases do) or stop sending some, and then only the next one would tell.
        """
        while True:
            with trio.move_on_after(LATE_S):
                return await self.wait(condition)
            self.watching.cancel()


class Views:
    """The live views of this host."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        content: Content,
        tails: Tails,
        staleness: Staleness,
        *,
        op_timeout: float,
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._content: Final = content
        self._tails: Final = tails
        self._staleness: Final = staleness
        self._op_timeout: Final = op_timeout
        self.begun = 0
        """How many snapshots were begun: one with a higher number is younger than this look."""
        self._live: dict[FileId, LiveView] = {}
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._live)

    def peek(self, topic: FileId) -> TopicView | None:
        """Return the view of a topic if one is live, without keeping it."""
        live = self._live.get(topic)
        return live.view if live is not None and not live.ended else None

    def follows(self, topic: FileId) -> bool:
        """Tell whether a view of a topic is live, or about to be: its snapshot may be on its way."""
        live = self._live.get(topic)
        return live is not None and not live.ended

    @asynccontextmanager
    async def using(self, topic: FileId) -> AsyncIterator[LiveView]:
        """Use the view of a topic; on entry it holds a snapshot. Raises as `acquire` does."""
        live = await self.acquire(topic)
        try:
            yield live
        finally:
            self.release(live)

    async def acquire(self, topic: FileId) -> LiveView:
        """Become a user of a topic's view; pair it with `release`.

        Raises TopicGone, TimedOut, or another ClusterError when there is no view to be had.
        """
        live = self._live.get(topic)
        if live is None or live.ended:
            assert self._nursery is not None  # noqa: S101 - `run` starts before anybody can ask
            live = self._live[topic] = LiveView(topic)
            self._nursery.start_soon(self._follow, live)
        live.users += 1
        live.scope.deadline = float("inf")
        try:
            with deadline(self._op_timeout):
                await live.wait(lambda _: True)
        except BaseException:  # whatever it is, the caller has nothing to release
            self.release(live)
            raise
        return live

    def release(self, live: LiveView) -> None:
        """Cease to be a user."""
        live.users -= 1
        if not live.users:
            self._linger(live)

    def _linger(self, live: LiveView) -> None:
        """Let a view that nobody uses end in a while; while answers are stale there would be no other."""
        stale = self._staleness.since is not None
        live.scope.deadline = float("inf") if stale else trio.current_time() + LINGER_S

    async def read(self, topic: FileId) -> TopicState:
        """Return a topic as it is now, without following it.

        Raises TopicGone, TimedOut, or another ClusterError.
        """
        try:
            return await read_topic(self._client, self._keys, topic, timeout=self._op_timeout)
        except TRANSIENT as error:
            raise timed_out(self._op_timeout, error) from error

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow topics until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            stale = False
            while True:
                await self._staleness.until(stale=not stale)
                stale = not stale
                for live in self._live.values():
                    if not (live.users or live.ended):
                        self._linger(live)

    async def _follow(self, live: LiveView) -> None:
        backoff, log = Backoff(), logging.LoggerAdapter(logger, {"topic": live.topic})
        patience_s = SNAPSHOT_S
        with live.scope:
            while live.failure is None:
                try:
                    self.begun += 1
                    number = self.begun
                    live.view = view_of(
                        await read_topic(self._client, self._keys, live.topic, timeout=patience_s)
                    )
                    live.snapshot = number
                    if live.view.entries:
                        self._tails.noticed(live.topic, trio.current_time())
                    live.wake()
                    backoff = Backoff()
                    with trio.CancelScope() as live.watching:
                        if live.view.ended:
                            await self._wait_for_news(live.view, live.topic)
                        else:
                            await self._watch(live, live.view)
                    if live.watching.cancelled_caught:
                        log.warning("topic %x: the watch is late; reading the topic anew", live.topic)
                except etcd.Compacted:
                    log.info("topic %x: the watch was compacted; taking a new snapshot", live.topic)
                except ViewBroken as broken:
                    log.warning("topic %x: %s; taking a new snapshot", live.topic, broken)
                    await backoff.wait()
                except TRANSIENT as error:
                    log.warning("topic %x: %s; trying again", live.topic, error)
                    patience_s = max(SNAPSHOT_S, min(2 * patience_s, self._op_timeout))
                    await backoff.wait()
                except DnpError as error:
                    live.failure = error
                except Exception as error:
                    # A fault of ours in one topic must not take the others along.
                    log.exception("topic %x: following it failed unexpectedly", live.topic)
                    live.failure = DnpError(f"a fault inside dnpipefs: {error!r}")
        if live.failure is None:
            live.failure = TopicGone("the view was closed")  # nobody uses it: only a late waiter sees this
        live.wake()
        if self._live.get(live.topic) is live:
            del self._live[live.topic]

    async def _watch(self, live: LiveView, view: TopicView) -> None:
        """Keep a view current until its generation ends; whether the topic has, a new snapshot tells."""
        tail = self._keys.tail(live.topic)
        async with self._client.watch(tail.start, tail.end, start_revision=view.revision + 1) as watch:
            async for batch in watch:
                for revision, events in groupby(batch.events, key=lambda event: event.kv.mod_revision):
                    view.apply(Revision(revision), self._translate(live.topic, events))
                if view.entries:
                    self._tails.noticed(live.topic, trio.current_time())
                live.wake()
                if view.ended:
                    return

    async def _wait_for_news(self, view: TopicView, topic: FileId) -> None:
        """Wait until a topic without a generation gets one or is deleted: both change its `last` key.

        In the tail's range a deletion would not show, since there the mark is deleted already.
        """
        last = self._keys.last(topic)
        async with self._client.watch(last, start_revision=view.revision + 1) as watch:
            async for batch in watch:
                if batch.events:
                    return

    def _translate(self, topic: FileId, events: Iterable[etcd.Event]) -> list[TailEvent]:
        """Turn etcd's events of one revision into the view's; removals of batches are none of its."""
        translated: list[TailEvent] = []
        for event in events:
            kv = event.kv
            key = self._keys.parse_tail(topic, kv.key)
            deleted = event.kind is etcd.EventKind.DELETE
            if key is not None and not deleted:
                if key.beside is None:
                    self._content.add(kv.key, kv.value)
                translated.append(Appended(key, peek_generation(kv.value), peek_time_ns(kv.value)))
            elif key is None:
                translated.append(Ended() if deleted else _from_mark(Mark.decode(kv.key, kv.value)))
        return translated


def _from_mark(mark: Mark) -> TailEvent:
    match mark.kind:
        case Mark.SEAL:
            return Sealed(mark.start, mark.first_message, mark.segments)
        case Mark.TRIM:
            return Trimmed(mark.start, mark.first_message)
        case _:
            return Reset(mark.time_ns)
