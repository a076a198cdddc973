"""What /proc tells of the processes that read: who opened a file, what wakes it, how it ends.

The only module that reads /proc/PID. It knows nothing of files, requests and what anybody does with
the answers; each is a look at one moment, without waiting, and may be outdated when it is used.

The kernel gives the thread that opens, and no process at all for a read. So a read that blocks is the
opener's or one of its descendants', which have inherited the descriptor; of whom these are, too, the
parents know only as long as they live.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache, lru_cache
from signal import Signals
from typing import Final

FAMILY_LIMIT: Final = 64
"""Processes looked at for one opener, itself included. The opener of a login shell's redirection has many."""
THREADS_LIMIT: Final = 256
"""Threads looked at of one process. Of a signal that ends the process the kernel tells every thread."""
SCAN_FRESH_S: Final = 0.25
"""How long the table of all processes is used, on kernels that do not list a thread's children."""

_EXITING: Final = 0x4
"""PF_EXITING of Linux' sched.h."""
_FUSE_WAITS: Final = frozenset(
    {b"request_wait_answer", b"__fuse_request_send", b"__fuse_simple_request", b"fuse_simple_request"}
)
"""Where in the kernel a thread waits for an answer of a FUSE daemon; which, is up to the compiler."""


def _mask(*signals: Signals) -> int:
    return sum(1 << signal - 1 for signal in signals)


_ALWAYS: Final = _mask(Signals.SIGKILL, Signals.SIGSTOP)
_IGNORED_BY_DEFAULT: Final = _mask(Signals.SIGCHLD, Signals.SIGURG, Signals.SIGWINCH, Signals.SIGCONT)


@dataclass(frozen=True, slots=True)
class Opener:
    """A process, told from a later one of the same number."""

    pid: int
    started: int
    """Clock ticks after boot."""


class Fate(Enum):
    """How a process ends."""

    ALIVE = "alive"
    ENDED_WELL = "ended well"
    """It exits with status 0."""
    FAILED = "failed"
    """It dies from a signal, or exits with another status."""
    UNKNOWN = "unknown"
    """It is gone, or its exit status is not for this daemon to see."""


def resolve(tid: int) -> Opener | None:
    """Return the process of a thread. None if there is none: 0 stands for all of other PID namespaces."""
    if not tid:
        return None
    text = _read(f"{tid}/status")
    if text is None:
        return None
    pid = int(_field(text, b"Tgid"))
    stat = _stat(str(pid))
    return None if stat is None else Opener(pid, stat.started)


def fate(opener: Opener) -> Fate:
    """Say how a process ends. To be asked while it closes its files: it is gone soon after.

    A process exits when its last thread does. Without the permission to trace it the exit status reads 0
    and is not believed. PF_SIGNALED, which everybody sees, does not help: when one thread ends the process
    with status 0 the others have it, too.
    """
    traceable = _may_trace(opener.pid)  # first: one that is gone after this is not found below either
    process = _stat(str(opener.pid))
    if process is None or process.started != opener.started:
        return Fate.UNKNOWN
    threads = [process]
    if process.threads > 1:
        threads += filter(None, (_stat(f"{opener.pid}/task/{tid}") for tid in _thread_ids(opener.pid)))
    # A main thread that has ended before the others is a zombie in a process that lives.
    if not all(thread.flags & _EXITING for thread in threads[1:] or threads):
        return Fate.ALIVE
    if not traceable:
        return Fate.UNKNOWN
    # Linux before 5.18 says of each thread how that one ended; later ones how the process did.
    return Fate.FAILED if any(thread.exit_code for thread in threads) else Fate.ENDED_WELL


def interrupted(opener: Opener) -> bool | None:
    """Whether a signal waits for the opener, or a descendant, to leave its system call.

    None if it cannot be told, since the opener is gone: who inherited the descriptor may live on.
    """
    living = 0
    for pid, process in _family(opener):
        if any(_disturbed(thread) for thread in _threads(pid, process)):
            return True
        living += 1
        exiting = process.flags & _EXITING
    if not living:
        return None
    return bool(living == 1 and exiting)  # stuck in its own exit, by a read in the background


def waiting(opener: Opener) -> bool:
    """Whether the opener or a descendant waits for the answer of a FUSE daemon, as far as may be seen."""
    return any(
        (where := _read(f"{thread}/wchan")) is not None and (where in _FUSE_WAITS or where == b"0")
        for pid, process in _family(opener)
        for thread in _threads(pid, process)
    )


def _disturbed(thread: str) -> bool:
    text = _read(f"{thread}/status")
    if text is None:
        return False
    state = _field(text, b"State")[:1]
    if state in b"TtZX":  # stopped: what waits for it waits for SIGCONT, and no call of it blocks
        return False
    pending = int(_field(text, b"SigPnd"), 16) | int(_field(text, b"ShdPnd"), 16)
    if pending:
        caught = int(_field(text, b"SigCgt"), 16)
        deaf = int(_field(text, b"SigBlk"), 16) | int(_field(text, b"SigIgn"), 16)
        deaf |= _IGNORED_BY_DEFAULT & ~caught
        if pending & (~deaf | _ALWAYS):
            return True
    # Tracers and freezers interrupt without a signal. After an interruption the sleep is a deeper one.
    return state == b"D" and _read(f"{thread}/wchan") in _FUSE_WAITS


@dataclass(frozen=True, slots=True)
class _Stat:
    """Of proc_pid_stat(5)."""

    state: bytes
    parent: int
    flags: int
    threads: int
    started: int
    exit_code: int

    @property
    def lives(self) -> bool:
        return self.state not in b"ZX" or self.threads > 1


def _stat(process: str) -> _Stat | None:
    text = _read(f"{process}/stat")
    if text is None:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before may hold anything
    return _Stat(fields[0], int(fields[1]), int(fields[6]), int(fields[17]), int(fields[19]), int(fields[49]))


def _family(opener: Opener) -> Iterator[tuple[int, _Stat]]:
    """Yield the living among the opener and its descendants; none if the opener is gone."""
    pids, at = [opener.pid], 0
    while at < len(pids):
        pid, at = pids[at], at + 1
        process = _stat(str(pid))
        if pid == opener.pid and (process is None or process.started != opener.started):
            return
        if process is not None and process.lives:
            yield pid, process
            pids += _children(pid, process)[: FAMILY_LIMIT - len(pids)]


def _threads(pid: int, process: _Stat) -> list[str]:
    if process.threads == 1:
        return [str(pid)]
    return [f"{pid}/task/{tid}" for tid in _thread_ids(pid)[:THREADS_LIMIT]]


def _thread_ids(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _children(pid: int, process: _Stat) -> list[int]:
    if not _kernel_lists_children():
        return _by_parent(int(time.monotonic() / SCAN_FRESH_S)).get(pid, [])
    tids = [str(pid)] if process.threads == 1 else _thread_ids(pid)[:THREADS_LIMIT]
    return [int(child) for tid in tids for child in (_read(f"{pid}/task/{tid}/children") or b"").split()]


@cache
def _kernel_lists_children() -> bool:
    return os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


@lru_cache(maxsize=1)
def _by_parent(_moment: int) -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (process := _stat(name)) is not None:
            children.setdefault(process.parent, []).append(int(name))
    return children


def _may_trace(pid: int) -> bool:
    """Whether the kernel shows this daemon the exit status: it asks for the same permission for this link.

    A process that exits has no program any more, which is a different error.
    """
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def _read(name: str) -> bytes | None:
    """Return a file of /proc; None if the process or thread is gone, or hidden."""
    try:
        descriptor = os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, 1 << 16)
        finally:
            os.close(descriptor)
    except OSError:
        return None


def _field(status: bytes, name: bytes) -> bytes:
    start = status.index(b"\n" + name + b":\t") + len(name) + 3
    return status[start : status.index(b"\n", start)]
