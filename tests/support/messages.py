"""Messages of tests that can be told from any other and from a torn one, and what a writer's error proves.

A message is a line with its writer, its number and a checksum.
"""

import enum
import errno
import re
import zlib
from typing import NamedTuple

DEFINITE_ERRNOS = frozenset(
    {
        errno.EMSGSIZE,
        errno.EINVAL,
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.ENOSPC,
        errno.ESTALE,
        errno.ESPIPE,
        errno.EACCES,
        errno.EPERM,
        errno.EBADF,
        errno.EAGAIN,
    }
)
"""Errors that prove that nothing was applied."""


class Outcome(enum.Enum):
    """What a caller was told."""

    OK = enum.auto()
    FAILED = enum.auto()
    UNKNOWN = enum.auto()

    @staticmethod
    def of(error: OSError) -> "Outcome":
        """Say what an error proves; ETIMEDOUT, EIO, ENOTCONN, ECONNABORTED and strangers prove nothing."""
        return Outcome.FAILED if error.errno in DEFINITE_ERRNOS else Outcome.UNKNOWN


class MessageId(NamedTuple):
    """Identity of a message."""

    writer: str
    number: int


_FORM = re.compile(rb"([a-z0-9-]+) (\d+) ([0-9a-f]{8}) ([^\n]*)\n")


def message(writer: str, number: int, body: bytes = b"") -> bytes:
    """Return the line of a message; `body` has no newline."""
    tag = b"%b %d" % (writer.encode(), number)
    return b"%b %08x %b\n" % (tag, zlib.crc32(tag + body), body)


def parse(line: bytes) -> MessageId | None:
    """Return whose message a line is, None if it is not whole."""
    form = _FORM.fullmatch(line)
    if form is None:
        return None
    writer, number, checksum, body = form.groups()
    if zlib.crc32(writer + b" " + number + body) != int(checksum, 16):
        return None
    return MessageId(writer.decode(), int(number))
