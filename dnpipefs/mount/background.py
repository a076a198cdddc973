"""Starting a mount in the background: a detached child that reports when it is ready or why it is not.

The child is a new process, not a fork: gRPC does not survive one. It reports one line through a
pipe whose descriptor it finds in the environment.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from dnpipefs.errors import SetupError

READY_FD_VARIABLE: Final = "_DNPIPEFS_READY_FD"
"""Not one of those that users set: they begin with DNPIPEFS_."""
_READY: Final = b"ready"


def start_in_background(
    command: Sequence[str], log_file: Path, environment: Mapping[str, str], descriptors: Sequence[int] = ()
) -> None:
    """Start *command* (a mount in the foreground) detached, and return when its mount answers.

    It has *environment*, and of what is open here *descriptors*. Its output goes to *log_file*, which only
    its owner can read if it is new. Raises SetupError with the reason that the child gave.
    """
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = open(log_file, "ab", opener=_private)  # noqa: SIM115 - closed below
    except OSError as error:
        raise SetupError(f"the log file {log_file} cannot be written: {error.strerror}") from None
    reading, writing = os.pipe()
    with log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(writing, *descriptors),
            env={**environment, READY_FD_VARIABLE: str(writing)},
            cwd="/",
        )
    os.close(writing)
    with open(reading, "rb") as pipe:
        report = pipe.read().strip()
    if report == _READY:
        child.returncode = 0  # it outlives us on purpose: no warning about an unawaited child
        return
    child.wait()
    reason = report.decode(errors="replace") or f"the mount ended while starting; see {log_file}"
    raise SetupError(reason)


def _private(path: str, flags: int) -> int:
    """Open a file that is nobody else's business if this is what creates it."""
    return os.open(path, flags, 0o600)


def report_ready() -> None:
    """Tell the starting process that the mount answers; nothing if there is none."""
    _report(_READY)


def report_failure(text: str) -> None:
    """Tell the starting process why there is no mount; nothing if there is none."""
    _report(" ".join(text.split()).encode())


def _report(line: bytes) -> None:
    number = os.environ.pop(READY_FD_VARIABLE, None)
    if number is not None:
        with open(int(number), "wb") as pipe:
            pipe.write(line)
