"""The standard streams of the process: closed ones kept from others, and what becomes of a failed write.

Blocking, and without trio: `running.py` has the streams for operations.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Final

from dnpipefs.cli.exits import Ended
from dnpipefs.errors import SetupError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDIN, STDOUT, STDERR = 0, 1, 2
_CONTRARY: Final = ((STDIN, os.O_WRONLY), (STDOUT, os.O_RDONLY), (STDERR, os.O_RDONLY))


def prepare() -> None:
    """Make the streams of a new process fit for use; to be called before anything is opened.

    A descriptor that the caller has closed would be given to a file or socket of ours, and messages, or what
    libraries have to say, be written to it. In its place comes one that cannot be used so, as in gnulib's
    stdopen. What `print` and click write from then on raises as `write_all` does.
    """
    for number, contrary in _CONTRARY:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, contrary)  # which gets the lowest number that is free
    # Names need not be UTF-8: they go out as they came in.
    sys.stdout = io.TextIOWrapper(_Output(STDOUT, "w", closefd=False), "utf-8", "surrogateescape")


class _Output(io.FileIO):
    """Standard output without a buffer, so that nothing is left to be written at exit."""

    def write(self, data: ReadableBuffer, /) -> int:
        return write_all(data)


def write_all(data: ReadableBuffer) -> int:
    """Write to standard output; return the number of bytes. Raises Ended if nobody reads it, SetupError."""
    rest = memoryview(data)
    written = len(rest)
    try:
        while rest:
            try:
                rest = rest[os.write(STDOUT, rest) :]
            except BlockingIOError:  # somebody who shares the terminal made it so
                select.select([], [STDOUT], [])
    except BrokenPipeError:
        raise Ended(signal.SIGPIPE) from None
    except OSError as error:
        raise SetupError(f"cannot write to standard output: {error.strerror}") from error
    return written
