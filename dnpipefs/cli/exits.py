"""Exit codes: the one table, and the one line that tells a failure."""

from __future__ import annotations

import enum
from typing import Final

import click

from dnpipefs import errors, etcd


class Exit(enum.IntEnum):
    """What the command's exit status says."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNKNOWN = 3
    FAULT = 70


HELP: Final = """\b
Exit status:
  0      done
  1      failed: not found, refused, etcd not to be used; the line on standard error says what to do
  2      the command line, a name in it, or the configuration has no meaning
  3      etcd did not answer in time: a push may have been stored, each message at most once
  70     a fault of dnpipefs itself
  128+N  ended by signal N: 130 Ctrl-C, 141 the reader of the output went away

fsck has exit statuses of its own, those of fsck(8): see dnpipefs fsck --help.
"""

# The first row that fits counts.
_CODES: Final[tuple[tuple[type[BaseException], Exit], ...]] = (
    (click.ClickException, Exit.USAGE),
    (errors.MessageTooLarge, Exit.FAILED),
    (errors.UsageError, Exit.USAGE),
    (errors.OutOfSpace, Exit.FAILED),
    (errors.TimedOut, Exit.UNKNOWN),
    (errors.UnknownOutcome, Exit.UNKNOWN),
    (etcd.Ambiguous, Exit.UNKNOWN),
    (errors.DnpError, Exit.FAILED),
)


class Ended(Exception):
    """The command was ended by a signal: SIGINT, or SIGPIPE when the reader of its output went away."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"ended by signal {signal_number}")
        self.code: Final = 128 + signal_number


class OwnCode(Exception):
    """A failure of a command that has exit codes of its own."""

    def __init__(self, failure: Exception, code: int) -> None:
        super().__init__(str(failure))
        self.failure: Final = failure
        self.code: Final = code


def exit_code(error: BaseException) -> int:
    """Return the exit status for a failure."""
    error = _the_one(error)
    if isinstance(error, (Ended, OwnCode)):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAULT)


def one_line(error: BaseException) -> str:
    """Return the line that tells a user of a failure."""
    error = _the_one(error)
    if isinstance(error, OwnCode):
        error = _the_one(error.failure)
    text = " ".join(
        (error.format_message() if isinstance(error, click.ClickException) else str(error)).split()
    )
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{text} (see {error.ctx.command_path} --help)"
    if exit_code(error) == Exit.FAULT:
        return f"unexpected {type(error).__name__}: {text}; --log-level debug shows the traceback"
    return text


def _the_one(error: BaseException) -> BaseException:
    """Return what a group of one holds: that tasks lay between says nothing to a user."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
