"""The one place where the services read clocks and draw random numbers, so that tests can set both."""

from __future__ import annotations

import secrets
import time
from typing import Protocol

from dnpipefs.core.names import MAX_FILE_ID, ROOT, FileId


class Clock(Protocol):
    """Wall-clock time and fresh ids."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970-01-01 UTC."""

    def new_file_id(self) -> FileId:
        """Return a random id; that it is unused is for a guard in etcd to confirm."""


class SystemClock:
    """The machine's clock and random numbers."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970-01-01 UTC."""
        return time.time_ns()

    def new_file_id(self) -> FileId:
        """Return a random id above the root's."""
        return FileId(ROOT + 1 + secrets.randbelow(MAX_FILE_ID - ROOT - 1))
