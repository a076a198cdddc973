"""What is on its way into the log: callers' pushes, a host's writers of topics, batches of pushes.

Owns how a caller waits for its push, how a batch is encoded and under which keys it lies. What becomes of it
is `committing.py`'s business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

import outcome
import trio

from dnpipefs.core.append import Fence
from dnpipefs.core.batch import Chunk, Payload
from dnpipefs.core.keys import PART_BYTES, Beside, BodyKey, KeySchema
from dnpipefs.core.names import FileId, Revision, SessionId
from dnpipefs.core.sealing import LARGE_BYTES
from dnpipefs.errors import DnpError
from dnpipefs.log.failures import timed_out


@dataclass(slots=True, eq=False)
class Push:
    """A caller's chunk on its way."""

    chunk: Chunk
    deadline: float
    compress: bool = False
    """The topic's large batches are to be compressed where that helps."""
    revision: Revision | None = None
    """Where it was committed."""
    error: DnpError | None = None
    """Why it was not, or may not have been."""
    _caller: trio.lowlevel.Task | None = None
    """The task that waits for it."""

    @property
    def settled(self) -> bool:
        """Whether it is known what became of it."""
        return self.revision is not None or self.error is not None

    def committed(self, revision: Revision) -> None:
        """Tell the caller that it is in the log."""
        self.revision = revision
        self._wake(outcome.Value(None))

    def failed(self, error: DnpError) -> None:
        """Tell the caller what went wrong."""
        self.error = error
        self._wake(outcome.Value(None))

    def overdue(self, error: DnpError) -> None:
        """Let the caller go, though nothing is settled."""
        self._wake(outcome.Error(error))

    async def wait(self) -> None:
        """Wait until it is settled, or raise what `overdue` was given. For one task."""
        if not self.settled:
            self._caller = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._caller = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self, result: outcome.Outcome[None]) -> None:
        caller, self._caller = self._caller, None
        if caller is not None:
            trio.lowlevel.reschedule(caller, result)


class Patience:
    """Lets callers go whose pushes take too long.

    One task looks after all: most pushes settle in a millisecond, and a cancel scope for each would cost
    more than filling its transaction.
    """

    def __init__(self, op_timeout: float) -> None:
        self._op_timeout: Final = op_timeout
        self._waiting: set[Push] = set()
        self._look_at = inf
        self._sooner: Final = trio.lowlevel.ParkingLot()

    async def wait(self, push: Push) -> None:
        """Wait until a push is settled; TimedOut after its deadline."""
        self._waiting.add(push)
        if push.deadline < self._look_at:
            self._sooner.unpark()
        try:
            await push.wait()
        finally:
            self._waiting.discard(push)

    async def run(self) -> None:
        """Look when the first deadline may have passed, until cancelled."""
        while True:
            self._look_at = min([push.deadline for push in self._waiting], default=inf)
            with trio.move_on_at(self._look_at):
                await self._sooner.park()
            now = trio.current_time()
            for push in [push for push in self._waiting if push.deadline <= now]:
                push.overdue(timed_out(self._op_timeout, None))


@dataclass(slots=True, eq=False)
class Writer:
    """This host's appends to one topic."""

    topic: FileId
    generation: Revision
    """The newest known; NO_GENERATION if the next commit has to begin one."""
    epoch_key: bytes
    last_key: bytes
    fence_key: bytes = b""
    """Of `session`; made once, since each commit needs them."""
    session: SessionId | None = None
    sequence: int = 0
    """Last sequence number known to be taken; NOT_REMEMBERED if it has to be looked up."""
    queue: deque[Push] = field(default_factory=deque)
    ready: bool = False
    """It stands in the line of topics to be taken."""
    abandoned: int = 0
    """A sequence number under which a batch went unanswered until its callers gave up; 0 if none."""
    busy: bool = False
    """A committer holds a batch of it."""
    newest: Revision = Revision(0)  # noqa: RUF009 - a NewType of int, immutable
    """Revision of this host's last append."""

    def idle(self, session: SessionId | None) -> bool:
        """Whether nothing is lost by forgetting it, in *session*, that cannot be looked up again."""
        in_doubt = self.abandoned > max(self.sequence, 0) and self.session == session
        return not (self.busy or self.ready or self.queue or in_doubt)


@dataclass(slots=True, eq=False)
class Batch:
    """Pushes that are committed together, with the fence they are sent with."""

    writer: Writer
    pushes: Sequence[Push]
    deadline: float
    """When the last of its callers gives up."""
    payload: Payload
    large: bool
    """It lies beside the tail."""
    staged: bool
    """It is too large for one transaction, so its parts are put before it."""
    session: SessionId
    fence: Fence
    time_ns: int
    floor: Revision
    """A revision that etcd had reached before anything of this batch was sent."""
    previous_at: int | None = None
    """Which response says what the topic's newest revision was before; None if that is not asked."""
    sent_unanswered: bool = False
    parts_put: int = 0
    """How many of its parts are in etcd, with the present fence."""
    orders: set[tuple[Revision, BodyKey]] = field(default_factory=set)
    """Generation and name of what parts may have been put for and is not committed, with this fence and
    earlier ones."""
    failure: DnpError | None = None
    """Why the last try did not settle it."""

    @classmethod
    def of(
        cls,
        writer: Writer,
        pushes: Sequence[Push],
        session: SessionId,
        fence: Fence,
        time_ns: int,
        floor: Revision,
    ) -> Batch:
        """Make a batch of *pushes*, which came in this order."""
        chunks = [push.chunk for push in pushes]
        large = sum([len(chunk.data) for chunk in chunks]) >= LARGE_BYTES
        # Small ones wait for their segment, which compresses better.
        payload = Payload.of(chunks, compress=large and any(push.compress for push in pushes))
        staged = payload.stored > PART_BYTES
        return cls(
            writer,
            pushes,
            max([push.deadline for push in pushes]),
            payload,
            large or staged,
            staged,
            session,
            fence,
            time_ns,
            floor,
        )

    @property
    def beside(self) -> Beside | None:
        """Where it lies if not in the tail."""
        return Beside(self.fence.attempt, self.payload.stored) if self.large else None

    @property
    def body(self) -> BodyKey:
        """Its name if it lies beside the tail."""
        return BodyKey(self.session, self.fence.sequence, Beside(self.fence.attempt, self.payload.stored))

    def key(self, keys: KeySchema) -> bytes:
        """Return the key of the batch in the tail."""
        size, messages = self.payload.size, self.payload.messages
        return keys.batch(self.writer.topic, self.session, self.fence.sequence, size, messages, self.beside)

    def value(self) -> bytes:
        """Encode what stands in the tail: the same bytes for each try with the same fence."""
        return self._encode(beside=self.large)

    def parts(self, keys: KeySchema) -> list[tuple[bytes, bytes]]:
        """Return keys and values of a batch that lies beside the tail, in order."""
        raw = self._encode(beside=False)
        names = keys.body_parts(self.writer.topic, self.fence.generation, self.body)
        return [  # a slice of all of it is no copy
            (name, raw[index * PART_BYTES : (index + 1) * PART_BYTES]) for index, name in enumerate(names)
        ]

    def pending(self, keys: KeySchema) -> bytes:
        """Return the key of the order to remove its parts if it is not committed."""
        return keys.pending(self.writer.topic, self.fence.generation, self.body)

    def _encode(self, *, beside: bool) -> bytes:
        return self.payload.encode(
            generation=self.fence.generation,
            time_ns=self.time_ns,
            session=self.session,
            sequence=self.fence.sequence,
            beside=beside,
        )
