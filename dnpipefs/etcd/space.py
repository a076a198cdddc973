"""How full etcd is: the size of its database, and its quota (its flag --quota-backend-bytes).

Owns what is read from the metrics where the status does not tell, and how long to believe it. A quota
that was set is in the status from etcd 3.6 on; 3.4 and 3.5 tell it among their metrics only, at /metrics
of the address that clients use. Current releases show the status to etcd users with the root role only;
then the size comes from there, too. The answer is for people who look at `df`: what cannot be found out
is no error, but what was known last, or etcd's default and a size of 0.
"""

import logging
import math
from typing import Final

import trio

from dnpipefs.etcd.endpoint import Address
from dnpipefs.etcd.http import HttpFailed, HttpSide
from dnpipefs.etcd.metrics import METRICS_LIMIT_BYTES, METRICS_PATH, Metrics
from dnpipefs.etcd.model import Space, Status

logger: Final = logging.getLogger(__name__)

ETCD_DEFAULT_BYTES: Final = 2 * 1024**3
"""The quota of an etcd that was given none."""

NO_QUOTA_BYTES: Final = 1 << 60
"""What is answered for an etcd whose quota is switched off (a negative one): 1 EiB."""

BELIEVED_S: Final = 60.0
"""Seconds between two looks at the metrics for the quota (an etcd that is full may be restarted with a
larger one), and after a look that failed."""

SIZE_BELIEVED_S: Final = 1.0
"""Seconds between two looks at the metrics for the size: it grows with each push."""

QUOTA_METRIC: Final = "etcd_server_quota_backend_bytes"
SIZE_METRIC: Final = "etcd_mvcc_db_total_size_in_bytes"


class SpaceGauge:
    """How full the servers of one cluster are, as its clients see it."""

    def __init__(self, http: HttpSide) -> None:
        self._http = http
        self._flag = 0
        self._size = 0
        self._read_at = self._failed_at = -math.inf
        self._asking = trio.Lock()
        self._told = False
        self._complained = False

    async def read(self, address: Address, status: Status | None) -> Space:
        """Return how full the server at `address` is, whose status is `status` (None: it was refused).

        Reads the metrics if the status leaves something open and they were not read lately. While they
        cannot be read, the last ones count. One line in the log says so, or that they are needed.
        """
        if status is None:
            await self._look(address, SIZE_BELIEVED_S, "size and quota")
            if not (self._told or self._complained):
                self._told = True
                logger.info(
                    "etcd at %s shows its status to users with the root role only: "
                    "df takes the size from its metrics",
                    address.text,
                )
            return Space(self._size, quota_of(self._flag))
        if not status.db_size_quota:
            await self._look(address, BELIEVED_S, "quota")
        return Space(status.db_size, quota_of(status.db_size_quota or self._flag))

    async def _look(self, address: Address, believed_s: float, wanted: str) -> None:
        async with self._asking:
            now = trio.current_time()
            if now < max(self._read_at + believed_s, self._failed_at + BELIEVED_S):
                return
            try:
                metrics = Metrics(
                    await self._http.get(address, METRICS_PATH, limit_bytes=METRICS_LIMIT_BYTES)
                )
                self._flag = int(metrics.value(QUOTA_METRIC) or 0)
                self._size = int(metrics.value(SIZE_METRIC) or 0) or self._size
                self._read_at = trio.current_time()
            except HttpFailed as error:
                self._failed_at = trio.current_time()
                self._complain(address, wanted, error)

    def _complain(self, address: Address, wanted: str, error: HttpFailed) -> None:
        if not self._complained:
            self._complained = True
            logger.warning(
                "etcd at %s does not tell its %s (%s): df shows what was known last, or no use and etcd's "
                "default quota, %d GiB",
                address.text,
                wanted,
                error,
                ETCD_DEFAULT_BYTES >> 30,
            )


def quota_of(flag: int) -> int:
    """Return the quota in bytes that a value of etcd's flag --quota-backend-bytes means."""
    return NO_QUOTA_BYTES if flag < 0 else flag or ETCD_DEFAULT_BYTES


def size_text(size: float) -> str:
    """Write a number of bytes for people, such as ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
