"""How large etcd lets its database grow: its flag --quota-backend-bytes.

Owns how to find that out and how long to believe it. A flag that was set is in the status from etcd 3.6
on; 3.4 and 3.5 tell it among their metrics only, at /metrics of the address that clients use. The answer
is for people who look at `df`: what cannot be found out is no error, but etcd's default.
"""

import logging
import math
import re
import ssl
from functools import partial
from typing import Final

import trio

from dnpipefs.etcd.endpoint import Address, Tls
from dnpipefs.etcd.http import HttpFailed, OpenStream, http_get

logger: Final = logging.getLogger(__name__)

ETCD_DEFAULT_BYTES: Final = 2 * 1024**3
"""The quota of an etcd that was given none."""

NO_QUOTA_BYTES: Final = 1 << 60
"""What is answered for an etcd whose quota is switched off (a negative one): 1 EiB."""

ASK_TIMEOUT_S: Final = 1.0
"""Seconds the metrics may take; whoever asked goes on without them then."""

BELIEVED_S: Final = 60.0
"""Seconds between two looks at the metrics: an etcd that is full may be restarted with a larger quota."""

METRICS_LIMIT_BYTES: Final = 4 * 1024**2
"""Metrics larger than this are not read; etcd's are about 0.1 MiB."""

_GAUGE: Final = re.compile(rb"^etcd_server_quota_backend_bytes (\S+)\r?\n", re.MULTILINE)


class Quota:
    """The quota of one cluster, as its clients see it; `tls` is what they connect with."""

    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls or Tls()
        self._flag = 0
        self._believed_until = -math.inf
        self._asking = trio.Lock()
        self._complained = False

    async def ask(self, address: Address, told: int) -> int:
        """Return the quota in bytes of the server at `address`, whose status told `told` (0: nothing).

        Takes at most ASK_TIMEOUT_S, and that once in BELIEVED_S. While metrics cannot be read, the last
        ones count; if there were none the answer is etcd's default, and one line in the log says why.
        """
        if told:
            return _bytes(told)
        async with self._asking:
            if trio.current_time() >= self._believed_until:
                try:
                    with trio.fail_after(ASK_TIMEOUT_S):
                        self._flag = await _read_flag(address, self._tls)
                except (HttpFailed, trio.TooSlowError) as error:
                    self._complain(address, str(error) or f"no answer in {ASK_TIMEOUT_S:g} s")
                self._believed_until = trio.current_time() + BELIEVED_S
        return _bytes(self._flag)

    def _complain(self, address: Address, said: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning(
                "etcd at %s does not tell its quota (%s): df shows %s",
                address.text,
                said,
                "the last one known" if self._flag else f"etcd's default, {ETCD_DEFAULT_BYTES >> 30} GiB",
            )


def _bytes(flag: int) -> int:
    """Return what a value of the flag means."""
    return NO_QUOTA_BYTES if flag < 0 else flag or ETCD_DEFAULT_BYTES


async def _read_flag(address: Address, tls: Tls) -> int:
    """Return the flag as the metrics tell it; 0 is etcd's default. Raises `HttpFailed`."""
    open_stream, host = _way(address, tls)
    metrics = await http_get(open_stream, "/metrics", host=host, limit_bytes=METRICS_LIMIT_BYTES)
    found = _GAUGE.search(metrics)
    if found is None:
        return 0
    try:
        return int(float(found[1]))
    except (ValueError, OverflowError):
        raise HttpFailed(f"/metrics has a quota of {found[1]!r}") from None


def _way(address: Address, tls: Tls) -> tuple[OpenStream, str]:
    """Return how to connect to where gRPC connects, and the name to ask for there."""
    if address.target.startswith("unix:"):
        return partial(trio.open_unix_socket, address.target.removeprefix("unix:")), "localhost"
    place = address.target.removeprefix("dns:///")
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    if not address.tls:
        return partial(trio.open_tcp_stream, host, int(port)), place

    async def connect() -> trio.SSLStream[trio.SocketStream]:
        context = ssl.create_default_context(cafile=tls.cacert)
        if tls.cert is not None:
            context.load_cert_chain(tls.cert, tls.key)
        # Like a browser: the document ends where the connection does.
        return await trio.open_ssl_over_tcp_stream(
            host, int(port), https_compatible=True, ssl_context=context
        )

    return connect, place
