"""Group commit: the pushes of one host, gathered into few transactions, each applied exactly once.

A topic has one transaction under way; what comes meanwhile goes into its next batch, and one
transaction carries the batches of many topics. What becomes of a transaction is `committing.py`'s
business.

Tasks: a commit runs in the task of the caller that finds nobody committing (which saves a lone
writer two switches of tasks), otherwise in one of the COMMITTERS of `Appender.run`; never more than
COMMITTERS at once. Whoever commits holds the batches it has taken (their topics are `busy`) from
taking them until every one is settled, shielded from cancellation; nobody else touches a busy
topic's sequence number. A caller that is cancelled while its chunk is queued takes it back; later
its outcome is unknown to it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from dnpipefs import etcd
from dnpipefs.core.batch import Chunk
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Revision, SessionId
from dnpipefs.core.sizes import KnownSizes
from dnpipefs.core.tails import Tails
from dnpipefs.errors import DnpError
from dnpipefs.log.budget import Budget
from dnpipefs.log.clock import Clock
from dnpipefs.log.committing import Committer
from dnpipefs.log.failures import deadline, timed_out
from dnpipefs.log.pushes import Batch, Patience, Push, Writer
from dnpipefs.log.session import SessionKeeper
from dnpipefs.metrics import Pushes

logger: Final = logging.getLogger(__name__)

COMMITTERS: Final = 4
"""Transactions under way at once on one host, when some are slow."""
NO_SESSION_S: Final = 0.5
"""How often pushes that wait for a session are looked through for those whose time is up."""
QUICK_BYTES: Final = 64 << 10
QUICK_S: Final = 0.01
"""A commit smaller than QUICK_BYTES and younger than QUICK_S is worth waiting for: what gathers meanwhile
goes into one transaction. A larger or older one holds nobody up. Nor does one of no more topics than have
gathered: a second one beside it is as large, and etcd works on it while this host handles the first."""
BATCH_LIMIT: Final = 1_300_000
"""Bytes of message data that pushes are gathered to, a table of lengths included: one transaction. A bit more
than 1 MiB, so that a write of 1 MiB with the beginning of its first line, held since the write before, is
one of them. A single push can be larger; it is staged."""
TOPICS_PER_TRANSACTION: Final = 40
"""Three puts a topic, or three reads to look at it, stay below etcd's 128 operations a transaction."""
WRITERS_LIMIT: Final = 20_000
"""Topics of whose appends something is remembered, at about 1 KiB each; beyond it, those appended to longest
ago are forgotten, and the next push to one of them begins with a read."""
QUEUE_LIMIT: Final = 64 << 20
"""Bytes of pushes waiting on one host; beyond it callers wait before they are queued."""


@dataclass(slots=True, eq=False)
class _Commit:
    """A transaction under way, with all its retries."""

    since: float
    size: int
    topics: int
    shield: trio.CancelScope = field(default_factory=lambda: trio.CancelScope(shield=True))


class Queue(NamedTuple):
    """How much is under way."""

    bytes: int
    """Of pushes whose callers wait."""
    topics: int
    """That wait to be taken along."""
    commits: int
    """Transactions that were sent."""


class Appender:
    """Appends chunks to topics."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        sessions: SessionKeeper,
        clock: Clock,
        sizes: KnownSizes,
        tails: Tails,
        *,
        op_timeout: float,
    ) -> None:
        self._keys: Final = keys
        self._sessions: Final = sessions
        self._op_timeout: Final = op_timeout
        self._committer: Final = Committer(client, keys, sessions, clock, sizes, tails, op_timeout=op_timeout)
        self._writers: OrderedDict[FileId, Writer] = OrderedDict()
        """In the order of their last appends."""
        self._ready: deque[Writer] = deque()
        self._work = trio.lowlevel.ParkingLot()
        """Committers with nothing to do."""
        self._turn = trio.lowlevel.ParkingLot()
        """The committer that waits until another transaction may be sent."""
        self._room: Final = Budget(QUEUE_LIMIT)
        self._patience: Final = Patience(op_timeout)
        self._commits: set[_Commit] = set()
        self._waiting = False
        """A committer is awake for what is queued, and waits for something else."""

    async def append(
        self,
        topic: FileId,
        chunk: Chunk,
        *,
        born: Revision,
        compress: bool = True,
        since: float | None = None,
    ) -> Revision:
        """Append *chunk* and return the revision once it is committed.

        `born` is the revision the topic was created at: the generation to begin with when this host
        knows no newer one. `compress`: if the chunk is large and that makes it smaller. `since`, on trio's
        clock: when the call began that this is a part of; None: now.

        Raises TopicGone, TimedOut, OutOfSpace, UnknownOutcome or another DnpError; only for
        TimedOut and UnknownOutcome can the chunk be in the log all the same, at most once.
        """
        began = trio.current_time() if since is None else since
        push = Push(chunk, began + self._op_timeout, compress)
        size = len(chunk.data)
        if not self._room.take_nowait(size):
            with deadline(self._op_timeout, since=began):
                await self._room.take(size)
        writer = self._writers.get(topic)
        if writer is None:
            writer = self._new_writer(topic, born)
        self._writers.move_to_end(topic)
        writer.queue.append(push)
        self._line_up(writer)
        try:
            session = self._sessions.current()
            if writer.ready and session is not None and not self._commits:
                await self._commit(session)
            elif not self._waiting:
                self._work.unpark()  # to wait for a session, or for a commit that may not be quick after all
            elif self._turn and self._may_commit():
                self._turn.unpark()
            if not push.settled:
                # Its batch may have callers that wait longer, and is tried for as long as the last does.
                await self._patience.wait(push)
        finally:
            if not push.settled and push in writer.queue:
                writer.queue.remove(push)
            self._room.give_back(size)
        if push.error is not None:
            raise push.error
        assert push.revision is not None  # noqa: S101 - settled means one or the other
        return push.revision

    def _new_writer(self, topic: FileId, born: Revision) -> Writer:
        """Remember one more topic, and forget the one appended to longest ago if there are too many."""
        session, keys = self._sessions.current(), self._keys
        if len(self._writers) >= WRITERS_LIMIT:
            oldest = next((writer for writer in self._writers.values() if writer.idle(session)), None)
            if oldest is not None:
                del self._writers[oldest.topic]
                self._committer.forgot(session)
        writer = self._writers[topic] = Writer(topic, born, keys.epoch(topic), keys.last(topic))
        return writer

    @property
    def queue(self) -> Queue:
        """How much is under way now."""
        return Queue(self._room.taken, len(self._ready), len(self._commits))

    @property
    def pushes(self) -> Pushes:
        """What was pushed so far."""
        return self._committer.pushes

    def newest(self, topic: FileId) -> Revision:
        """Return the revision of this host's last append to a topic, 0 if it made none."""
        writer = self._writers.get(topic)
        return writer.newest if writer is not None else Revision(0)

    def forget(self, topic: FileId) -> None:
        """Drop what is known of a deleted topic."""
        writer = self._writers.get(topic)
        if writer is not None and not writer.busy and not writer.queue:
            del self._writers[topic]  # nobody appends to it again

    def give_up(self) -> None:
        """End the commits under way; their callers get UnknownOutcome. For the end of the process."""
        for commit in self._commits:
            commit.shield.cancel()

    async def run(self) -> None:
        """Commit until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._patience.run)
            nursery.start_soon(self._committer.run)
            for _ in range(COMMITTERS):
                nursery.start_soon(self._commit_forever)

    async def _commit_forever(self) -> None:
        while True:
            session = self._sessions.current()
            if not self._ready or self._waiting:
                await self._work.park()
            elif session is None:
                with self._waiting_at_most(NO_SESSION_S), suppress(etcd.EtcdError):  # they are told below
                    await self._sessions.get()
                self._expire_queued()
            elif not self._may_commit():
                with self._waiting_at_most(QUICK_S):
                    await self._turn.park()
            else:
                await self._commit(session)

    @contextmanager
    def _waiting_at_most(self, seconds: float) -> Iterator[None]:
        """Let one committer wait on behalf of all."""
        self._waiting = True
        try:
            with trio.move_on_after(seconds):
                yield
        finally:
            self._waiting = False

    def _may_commit(self) -> bool:
        now = trio.current_time()
        quick = [
            commit for commit in self._commits if commit.size <= QUICK_BYTES and now - commit.since <= QUICK_S
        ]
        if not quick:
            return len(self._commits) < COMMITTERS
        return len(self._commits) == 1 and len(self._ready) >= quick[0].topics

    async def _commit(self, session: SessionId) -> None:
        """Take what is ready and settle it; then see to it that somebody takes what came meanwhile."""
        now = trio.current_time()
        batches = self._take(session, now)
        size = sum([batch.payload.size for batch in batches])
        commit = _Commit(now, size, len(batches))
        self._commits.add(commit)
        try:
            with commit.shield:
                await self._committer.commit(batches)
        except Exception:
            # A fault of ours must not stop every later push of this host; its callers are told.
            logger.exception("a commit failed unexpectedly")
        finally:
            self._committer.abandon(batches)
            self._commits.discard(commit)
            for batch in batches:
                self._release(batch.writer)
            if self._ready:
                (self._turn or self._work).unpark()

    def _expire_queued(self) -> None:
        """Fail what waited too long for a session, or waits in vain; none of it was sent."""
        reason = self._sessions.failure
        refused = isinstance(reason, etcd.SpaceExceeded) or self._sessions.refused is not None
        now = trio.current_time()
        for writer in list(self._ready):
            while writer.queue and (refused or writer.queue[0].deadline <= now):
                push = writer.queue.popleft()
                push.failed(reason if refused and reason else timed_out(self._op_timeout, reason))
            if not writer.queue:
                self._ready.remove(writer)
                writer.ready = False

    def _take(self, session: SessionId, now: float) -> list[Batch]:
        """Take the next batches of as many topics as fit one transaction."""
        batches: list[Batch] = []
        room, waited = BATCH_LIMIT, self._committer.pushes.waited
        called_at = now + self._op_timeout  # as deadlines tell of it
        while self._ready and len(batches) < TOPICS_PER_TRANSACTION:
            writer = self._ready[0]
            pushes: list[Push] = []
            while writer.queue:
                cost = writer.queue[0].chunk.encoded_limit
                if cost > room and (pushes or batches):
                    break
                push = writer.queue.popleft()
                pushes.append(push)
                waited.observe(called_at - push.deadline)
                room -= cost
            if pushes:
                try:
                    batches.append(self._committer.batch(writer, pushes, session))
                except Exception as error:  # a fault of ours in one topic must not take the others along
                    logger.exception("a commit failed unexpectedly", extra={"topic": writer.topic})
                    for push in pushes:  # nothing of it was sent
                        push.failed(DnpError(f"a fault inside dnpipefs: {error!r}"))
            if writer.queue and not pushes:
                break  # the transaction is full
            self._ready.popleft()
            writer.ready = False
        return batches

    def _release(self, writer: Writer) -> None:
        writer.busy = False
        if writer.queue:
            self._line_up(writer)

    def _line_up(self, writer: Writer) -> None:
        if not (writer.ready or writer.busy):
            writer.ready = True
            self._ready.append(writer)
