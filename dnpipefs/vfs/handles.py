"""An open topic: framing of what is written, sequence of where, reading by offset.

A handle follows the settings of its topic from the next write on.

Task rule: a handle's turn lasts until the commit of a write, so that a flush by another process
that shares the descriptor does not cut a message that is being written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from dnpipefs.core.batch import Chunk
from dnpipefs.core.config import DEFAULTS, TopicConfig
from dnpipefs.core.framing import begin, follow
from dnpipefs.core.names import FileId, Offset, Revision
from dnpipefs.errors import DnpError, MessageTooLarge, NotInSequence, TimedOut, UnknownOutcome
from dnpipefs.log.budget import Budget
from dnpipefs.log.failures import deadline
from dnpipefs.log.log import Log
from dnpipefs.log.reader import Reader
from dnpipefs.log.views import LiveView
from dnpipefs.vfs.intake import COUNTED_BYTES, Intake

SPLIT_SIZE: Final = (1 << 20) - 4096
"""A write above this may be one part of a larger write(2): the kernel cuts those into pages of 1 MiB.
So with write framing it is too large a message."""
HELD_LIMIT: Final = 256 << 20
"""Bytes of unfinished messages that all handles of a host together hold; beyond it writers wait."""
REPORTED_SIZES: Final = 16
"""How many of the sizes last shown by stat are taken for "the end" in a positioned write."""


class OpenTopic:
    """What all handles of one topic share: which sizes its users were shown; and how many there are."""

    def __init__(self) -> None:
        self.handles = self.readers = self.writers = 0
        self.reported: deque[int] = deque(maxlen=REPORTED_SIZES)
        self.shrinks = 0
        """How often they were shown a smaller size than before: the topic was reset."""

    def opened(self, count: int, *, read: bool, write: bool) -> None:
        """Note that *count* more handles are open (or less, if it is negative)."""
        self.handles += count
        self.readers += count * read
        self.writers += count * write

    def report(self, size: int) -> None:
        """Note that *size* is shown to somebody."""
        if self.reported and size < self.reported[-1]:
            self.reported.clear()
            self.shrinks += 1
        self.reported.append(size)


class TopicHandle:
    """One open(2) of a topic."""

    blocking: Final = False
    """A read waits for messages."""
    in_hand: Final = False
    """It makes a difference how the last close comes about."""
    readable: Final = True
    """A read would return at once."""
    size: Final = 0
    """Bytes that it takes beyond what any open file does."""

    async def until_readable(self) -> None:
        """Wait until a read would return at once."""

    async def look(self) -> None:
        """Let `readable` say what is so now, for who does not wait."""

    def __init__(
        self,
        log: Log,
        topic: FileId,
        born: Revision,
        shared: OpenTopic,
        *,
        reading: tuple[Reader, LiveView] | None,
        write: bool,
        append: bool,
        config_of: Callable[[FileId, TopicConfig], TopicConfig],
        room: Budget,
        intake: Intake,
        op_timeout: float,
    ) -> None:
        self.topic: Final = topic
        self._log: Final = log
        self._born: Final = born
        self._shared: Final = shared
        self._reading: Final = reading
        self.writes: Final = write
        self._append: Final = append
        self._op_timeout: Final = op_timeout
        self._room: Final = room
        """For what this host's handles hold."""
        self._room_taken = 0
        self._intake: Final = intake
        self._config_of: Final = config_of
        self._config = config_of(topic, DEFAULTS)
        """The settings that the framer goes by: of a deleted topic its last."""
        self._framer = begin(self._config, largest_write=SPLIT_SIZE)
        self._position: int | None = None
        """Offset the next positioned write must have; None before the first."""
        self._shrinks = shared.shrinks
        """As the topic's at the last write."""
        self._may_be_cut = False
        """The last write may have been the first part of a larger write(2)."""
        self._unheard: DnpError | None = None
        """A failure that the writer may not have been told of."""
        self._in_doubt: DnpError | None = None
        """The held part may be in the log already, with the end that the failed write brought."""
        self._turn: Final = trio.Semaphore(1, max_value=1)
        """Whose turn it is to write; a Lock would keep book of its owner, at the cost of framing a line."""
        self._shift = 0
        """By how much the last read's bytes lie behind the offset it was made at."""
        self._read_end = -1
        """Where the reader is if it reads in sequence."""

    @property
    def reads(self) -> bool:
        """Whether it was opened for reading."""
        return self._reading is not None

    async def read(self, offset: Offset, size: int) -> bytes:
        """Return up to *size* bytes; empty at the confirmed end. Raises TopicGone, TimedOut."""
        assert self._reading is not None  # noqa: S101 - the kernel refuses reads on a write-only descriptor
        # Where retention has removed the beginning, the file goes on with what is left, and a reader that
        # reads on gets what follows, though it counts its offset from where it began.
        shift = self._shift if offset == self._read_end else 0
        with deadline(self._op_timeout):
            span = await self._reading[0].read(Offset(offset + shift), size)
        if span.data:
            self._shift, self._read_end = span.offset - offset, offset + len(span.data)
        return span.data

    async def write(self, offset: int, data: bytes) -> int:
        """Append *data*; return once its complete messages are committed, with the bytes accepted.

        Fewer than given when something behind them could not be taken: the next write says why.
        Raises MessageTooLarge (nothing of that message is stored), NotInSequence, TopicGone,
        TimedOut, OutOfSpace.

        When the kernel cuts one write(2) into parts, the failure of a later part shows as a short
        write, and the program comes again with the rest: in the middle of a message that was
        refused, or with one that may have been applied. So the failure is said once more.
        """
        began = await self._acquire()
        may_be_cut, self._may_be_cut = self._may_be_cut, False
        try:
            if self._unheard is not None:
                error, self._unheard = self._unheard, None
                raise error
            if len(data) < COUNTED_BYTES:  # without the detour, which costs as much as framing a line
                accepted = await self._write(offset, data, began)
            else:
                with self._intake.counting(len(data)):
                    accepted = await self._write(offset, data, began)
        except (MessageTooLarge, TimedOut, UnknownOutcome) as error:
            if may_be_cut:
                self._unheard = error
            raise
        else:
            self._may_be_cut = accepted == len(data) > SPLIT_SIZE
            return accepted
        finally:
            self._turn.release()

    async def _write(self, offset: int, data: bytes, began: float) -> int:
        if not self._append:
            self._check_sequence(offset)
        config = self._config_of(self.topic, self._config)
        if config is not self._config:
            self._config = config
            self._framer = follow(self._framer, config, largest_write=SPLIT_SIZE)
        framed = self._framer.feed(data)
        accepted = 0
        try:
            for piece in framed.pieces:
                await self._push(piece.chunk, began)
                accepted = piece.consumed
                self._framer = self._framer.emptied()
            if framed.state.held:
                with deadline(self._op_timeout, since=began):
                    await self._take_room(len(framed.state.held), len(data))
                    # Nobody looks at the error of the close that will commit this part: take it only
                    # while etcd answers.
                    await self._log.sessions.wait_healthy()
            accepted = framed.consumed
            self._framer = framed.state
            if framed.too_large:
                raise MessageTooLarge(f"a message above {self._framer.limit} bytes; nothing of it is stored")
        except DnpError as error:
            unknown = isinstance(error, (TimedOut, UnknownOutcome))
            if not accepted:
                if unknown and framed.pieces:  # else nothing was sent, and an older doubt is as it was
                    self._in_doubt = error
                raise
            if unknown:
                self._unheard = error
        self._in_doubt = None
        self._give_room_back()
        self._position = offset + accepted
        self._shrinks = self._shared.shrinks
        return accepted

    async def flush(self) -> None:
        """Commit what was written behind the last newline, as a message. Raises as `write` does."""
        if not self._framer.held and self._turn.value:
            return
        began = await self._acquire()
        try:
            # Dropped if this fails: the caller of close or fsync hears of it and nobody would later.
            held, self._framer = self._framer.flush()
            self._give_room_back()
            in_doubt, self._in_doubt = self._in_doubt, None
            if held is not None and in_doubt is not None:
                raise in_doubt  # pushed once more it could be there twice
            if held is not None:
                await self._push(held, began)
        finally:
            self._turn.release()

    async def close(self, *, well: bool = True) -> None:
        """Let go of the topic, whatever becomes of the last flush and of whoever opened it."""
        try:
            await self.flush()
        finally:
            self._give_room_back()
            if self._reading is not None:
                self._log.close_reader(self._reading[1])

    async def _take_room(self, held: int, size: int) -> None:
        more = held - self._room_taken
        if more > 0:
            if not self._room.take_nowait(more):
                with self._intake.not_counting(size):
                    await self._room.take(more)
            self._room_taken = held

    def _give_room_back(self) -> None:
        """Give back what is not needed for what is held now."""
        spare = self._room_taken - len(self._framer.held)
        if spare > 0:
            self._room.give_back(spare)
            self._room_taken -= spare

    async def _acquire(self) -> float:
        """Wait for this handle's turn; return since when."""
        began = trio.current_time()
        try:
            self._turn.acquire_nowait()  # without the detour through the scheduler
        except trio.WouldBlock:
            with deadline(self._op_timeout):
                await self._turn.acquire()
        return began

    def _check_sequence(self, offset: int) -> None:
        position = self._position or 0
        if offset == position:
            return
        # The end, as this writer was shown it; below what it wrote only if a reset came between,
        # else a program that rewrites in place would believe that it worked.
        if offset in self._shared.reported and (offset > position or self._shrinks != self._shared.shrinks):
            return
        raise NotInSequence(f"a write at offset {offset}: topics are append-only")

    async def _push(self, chunk: Chunk, began: float) -> None:
        compress = self._config.compress
        await self._log.append(self.topic, chunk, born=self._born, compress=compress, since=began)
