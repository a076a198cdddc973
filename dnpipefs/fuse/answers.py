"""Which errno a caller gets for what goes wrong, and what of it the log says."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Coroutine
from functools import update_wrapper
from time import perf_counter
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import pyfuse3
from pyfuse3 import FUSEError

from dnpipefs import errors, etcd
from dnpipefs.metrics import Requests

logger: Final = logging.getLogger(__name__)

ERRNO: Final[tuple[tuple[type[Exception], int], ...]] = (
    (errors.NameTooLong, errno.ENAMETOOLONG),
    (errors.InvalidName, errno.EINVAL),
    (errors.InvalidArgument, errno.EINVAL),
    (errors.NotInSequence, errno.ESPIPE),
    (errors.MessageTooLarge, errno.EMSGSIZE),
    (errors.NotPermitted, errno.EPERM),
    (errors.AccessDenied, errno.EACCES),
    (errors.WouldBlock, errno.EAGAIN),
    (errors.NotSupported, errno.EOPNOTSUPP),
    (errors.NoSuchAttribute, pyfuse3.ENOATTR),
    (errors.NotFound, errno.ENOENT),
    (errors.AlreadyExists, errno.EEXIST),
    (errors.NotADirectory, errno.ENOTDIR),
    (errors.IsADirectory, errno.EISDIR),
    (errors.NotEmpty, errno.ENOTEMPTY),
    (errors.TopicGone, errno.ESTALE),
    (errors.Outdated, errno.ESTALE),
    (errors.OutOfSpace, errno.ENOSPC),
    (errors.Interrupted, errno.EINTR),
    (errors.TooManyReaders, errno.ENOBUFS),
    (errors.TooManyFiles, errno.ENFILE),
    (errors.TimedOut, errno.ETIMEDOUT),
    (etcd.PermissionDenied, errno.EACCES),
    (etcd.AuthenticationFailed, errno.EACCES),
    (etcd.RequestTooLarge, errno.EMSGSIZE),
    (etcd.Ambiguous, errno.ETIMEDOUT),
    (etcd.Unreachable, errno.ETIMEDOUT),
    (errors.DnpError, errno.EIO),
)
"""The one table of errors: the first class that fits."""

_QUIET: Final = (
    errors.UsageError,
    errors.NotFound,
    errors.AlreadyExists,
    errors.NotEmpty,
    errors.NotADirectory,
    errors.WouldBlock,
    errors.Outdated,
    errors.Interrupted,
)
"""What a caller did and sees in its errno; not worth a line in the log."""
_SAID: Final = (errors.InvalidSetting,)
"""Yet these are: the errno does not tell what would be allowed."""

UNEXPECTED: Final = "Unexpected"
"""As what metrics count errors that are none of ours."""


class Counting(Protocol):
    """Whose handlers are decorated: it has something to count in."""

    @property
    def requests(self) -> Requests:
        """Where to count."""


P = ParamSpec("P")
S = TypeVar("S", bound=Counting)
T = TypeVar("T")
Handler = Callable[Concatenate[S, P], Coroutine[Any, Any, T]]


def answers(handler: Handler[S, P, T]) -> Handler[S, P, T]:
    """Translate what a handler raises into errno; count that, and how long it takes."""
    operation = handler.__name__

    async def answer(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        began = perf_counter()
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:  # the border: nothing that goes wrong in one call may end the mount
            raise FUSEError(_errno(operation, error, self.requests)) from None
        finally:
            self.requests.took[operation].observe(perf_counter() - began)

    update_wrapper(answer, handler)
    return answer


def answers_at_length(handler: Handler[S, P, T]) -> Handler[S, P, T]:
    """Do likewise for what may wait for other processes: how long it takes tells nothing."""

    async def answer(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:  # as above
            raise FUSEError(_errno(handler.__name__, error, self.requests)) from None

    update_wrapper(answer, handler)
    return answer


def _errno(operation: str, error: Exception, requests: Requests) -> int:
    for kind, number in ERRNO:
        if isinstance(error, kind):
            requests.failed[kind.__name__] += 1
            quiet = isinstance(error, _QUIET) and not isinstance(error, _SAID)
            level = logging.DEBUG if quiet else logging.WARNING
            said = errno.errorcode[number]
            about = {"operation": operation, "errno": said}
            logger.log(level, "%s: %s (%s)", operation, error, said, extra=about)
            return number
    requests.failed[UNEXPECTED] += 1
    logger.error(
        "%s failed unexpectedly; the caller gets EIO",
        operation,
        exc_info=error,
        extra={"operation": operation, "errno": "EIO"},
    )
    return errno.EIO
