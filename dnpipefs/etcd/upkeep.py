"""Upkeep of the embedded etcd: keeps it below its quota, and brings it back when it was full.

Owns who of the server's users does it, when they look, and what is remembered between processes; what is
to be done is decided in `upkeep_plan.py`. Knows nothing of keys: room is made by whoever removes data.

Who does it: the user that holds ``upkeep.lock`` (``flock``, so a killed process holds nothing) until it
leaves. The others try for the lock at each look. What it remembers lies in ``upkeep.json`` beside it, so
that a chain of short commands does what one long mount would. The file is a memory aid: lost or broken,
history is compacted later than it could be.

Nothing has to be undone after a death in the middle: etcd finishes a compaction or defragmentation whoever
waits for it, and the next holder looks and goes on from there.

Task: one, `Upkeep.run`. It holds nothing that anybody waits for, but a process that joins while etcd is full
and can be helped waits for that at its start.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from dnpipefs.errors import SetupError
from dnpipefs.etcd.client import Client
from dnpipefs.etcd.errors import Compacted, EtcdError
from dnpipefs.etcd.file_lock import try_lock
from dnpipefs.etcd.model import AlarmKind
from dnpipefs.etcd.space import QUOTA_METRIC, quota_of, size_text
from dnpipefs.etcd.upkeep_plan import (
    PAUSE_S,
    Command,
    Compact,
    Defragment,
    Disarm,
    Look,
    Rest,
    Settle,
    State,
    decide,
)

logger: Final = logging.getLogger(__name__)

LOCK_NAME: Final = "upkeep.lock"
STATE_NAME: Final = "upkeep.json"

LONG_TIMEOUT_S: Final = 900.0
"""For compaction and defragmentation of a database of the largest size that makes sense, on a slow disk."""
FAILED_PAUSE_S: Final = 10.0
"""Seconds until the next look after one, or what came of it, failed."""


class Upkeep:
    """The upkeep of one embedded server, by one of its users."""

    def __init__(
        self,
        client: Client,
        endpoint: str,
        data_dir: Path,
        *,
        level: int = logging.WARNING,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`level` is that of the lines that say etcd is full, has room again, or cannot be kept."""
        self._client: Final = client
        self._endpoint: Final = endpoint
        self._directory: Final = data_dir
        self._level: Final = level
        self._clock: Final = clock
        self._state = State()
        self._quota = 0
        self._was_full = False
        self._failure: str | None = None
        self._starting: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the server until cancelled; started once it is not full or cannot be helped.

        Raises `SetupError` for a data directory that cannot be used.
        """
        self._starting = task_status
        with _opened(self._directory / LOCK_NAME) as lock:
            while not try_lock(lock, fcntl.LOCK_EX):
                self._let_start()  # somebody else is at it
                await trio.sleep(PAUSE_S)
            self._state = self._recall()
            try:
                while True:
                    pause = await self._step()
                    if pause is not None:
                        self._let_start()
                        await trio.sleep(pause)
            finally:
                self._remember()

    def _let_start(self) -> None:
        self._starting.started()
        self._starting = trio.TASK_STATUS_IGNORED

    async def _step(self) -> float | None:
        """Look and do one thing; return how long to rest, None if there may be more to do."""
        try:
            look = await self._look()
            self._tell(look)
            if not look.full:
                self._let_start()
            state, command = decide(self._state, look)
            if isinstance(command, Rest):
                self._state = state
                return command.seconds
            await self._carry_out(command, look)
        except EtcdError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                logger.log(self._level, "the upkeep of etcd failed, trying again: %s", error)
            return FAILED_PAUSE_S
        self._failure = None
        self._state = state
        self._remember()
        return None

    async def _look(self) -> Look:
        status = await self._client.status(self._endpoint)
        # Asked for once: a running server's quota does not change, and a restarted one has the same.
        self._quota = status.db_size_quota or self._quota or await self._ask_quota()
        return Look(
            now=self._clock(),
            size=status.db_size,
            in_use=status.db_size_in_use,
            quota=quota_of(self._quota),
            revision=status.revision,
            full=any(AlarmKind.NOSPACE.name in error for error in status.errors),
        )

    async def _ask_quota(self) -> int:
        return int((await self._client.metrics(self._endpoint)).value(QUOTA_METRIC) or 0)

    async def _carry_out(self, command: Command, look: Look) -> None:
        logger.debug("upkeep: %s after %s", command, look)
        begun = trio.current_time()
        match command:
            case Compact(revision):
                with suppress(Compacted):  # by etcd itself
                    await self._client.compact(revision, physical=True, timeout=LONG_TIMEOUT_S)
            case Settle():
                await self._client.settle()
            case Defragment():
                await self._client.defragment(self._endpoint, timeout=LONG_TIMEOUT_S)
                logger.info(
                    "defragmented etcd's file of %s, %s of it in use, in %.1f s",
                    size_text(look.size),
                    size_text(look.in_use),
                    trio.current_time() - begun,
                )
            case Disarm():
                for alarm in await self._client.alarms():
                    if alarm.kind is AlarmKind.NOSPACE:
                        await self._client.disarm_alarm(alarm)

    def _tell(self, look: Look) -> None:
        if look.full and not self._was_full:
            logger.log(
                self._level,
                "etcd is full (%s, its quota is %s): pushes fail until topics are removed or reset (rm, "
                "truncate); the room comes back by itself",
                size_text(look.size),
                size_text(look.quota),
            )
        elif self._was_full and not look.full:
            logger.log(
                self._level, "etcd has room again (%s of %s)", size_text(look.size), size_text(look.quota)
            )
        self._was_full = look.full

    def _recall(self) -> State:
        try:
            return State.decode((self._directory / STATE_NAME).read_text())
        except FileNotFoundError:
            return State()
        except (OSError, ValueError) as error:
            logger.info("%s is not to be used, beginning anew: %s", self._directory / STATE_NAME, error)
            return State()

    def _remember(self) -> None:
        path = self._directory / STATE_NAME
        new = path.with_suffix(".new")
        try:
            new.write_text(self._state.encode())
            new.replace(path)
        except OSError as error:  # such as a full disk, which is no reason to end
            logger.info("cannot write %s: %s", path, error.strerror)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"cannot use {path}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)
