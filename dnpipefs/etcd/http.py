"""One GET to the HTTP side of an etcd, which listens where its gRPC side does.

Owns the exchange of one small document over any stream, and how to get a stream to where gRPC connects.
Does not know what the documents say. HTTP/1.0, so that the answer comes in one piece and ends with the
connection. No user and no password is asked for there, and none is sent.
"""

import ssl
from collections.abc import Awaitable, Callable
from email.utils import mktime_tz, parsedate_tz
from functools import partial
from typing import Final

import trio

from dnpipefs.etcd.endpoint import Address, Tls
from dnpipefs.etcd.errors import EtcdError

ANSWER_TIMEOUT_S: Final = 1.0
"""Seconds `HttpSide.get` takes at most; what is asked for there can be done without."""

DATE_LIMIT_BYTES: Final = 4096
"""More than comes with a date, document included."""

OpenStream = Callable[[], Awaitable[trio.abc.Stream]]


class HttpFailed(EtcdError):
    """No document: no connection, another status than 200, too much, or too late (`HttpSide.get` only)."""


class HttpSide:
    """The HTTP sides of one cluster's servers; `tls` is what clients connect with."""

    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls or Tls()

    async def get(self, address: Address, path: str, *, limit_bytes: int) -> bytes:
        """Return the document at `path` of the server that gRPC finds at `address`.

        Raises `HttpFailed`, also after ANSWER_TIMEOUT_S and when there are more than `limit_bytes`.
        """
        open_stream, host = self._way(address)
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                return await http_get(open_stream, path, host=host, limit_bytes=limit_bytes)
        except trio.TooSlowError:
            raise HttpFailed(f"{path}: no answer in {ANSWER_TIMEOUT_S:g} s") from None

    async def date(self, address: Address) -> float:
        """Return the server's time, in whole seconds since 1970. Raises `HttpFailed`, as `get` does."""
        open_stream, host = self._way(address)
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            head, _ = await _exchange(open_stream, "/version", host=host, limit_bytes=DATE_LIMIT_BYTES)
            for line in head.split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"date" and (date := parsedate_tz(value.decode(errors="replace"))):
                    return float(mktime_tz(date))
            raise HttpFailed("/version comes without a date")
        raise HttpFailed(f"/version: no answer in {ANSWER_TIMEOUT_S:g} s")

    def _way(self, address: Address) -> tuple[OpenStream, str]:
        """Return how to connect to where gRPC connects, and the name to ask for there."""
        if address.target.startswith("unix:"):
            return partial(trio.open_unix_socket, address.target.removeprefix("unix:")), "localhost"
        place = address.target.removeprefix("dns:///")
        host, _, port = place.rpartition(":")
        host = host.strip("[]")
        if not address.tls:
            return partial(trio.open_tcp_stream, host, int(port)), place

        async def connect() -> trio.SSLStream[trio.SocketStream]:
            context = ssl.create_default_context(cafile=self._tls.cacert)
            if self._tls.cert is not None:
                context.load_cert_chain(self._tls.cert, self._tls.key)
            # Like a browser: the document ends where the connection does.
            return await trio.open_ssl_over_tcp_stream(
                host, int(port), https_compatible=True, ssl_context=context
            )

        return connect, place


async def http_get(open_stream: OpenStream, path: str, *, host: str, limit_bytes: int) -> bytes:
    """Open a stream, return the document at `path`, and close the stream. Waits without end by itself.

    Raises `HttpFailed`, also when head and document have more than `limit_bytes`.
    """
    _, document = await _exchange(open_stream, path, host=host, limit_bytes=limit_bytes)
    return document


async def _exchange(
    open_stream: OpenStream, path: str, *, host: str, limit_bytes: int
) -> tuple[bytes, bytes]:
    """Return head and document at `path`, as `http_get` does."""
    answer = bytearray()
    try:
        async with await open_stream() as stream:
            await stream.send_all(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            while chunk := await stream.receive_some():
                answer += chunk
                if len(answer) > limit_bytes:
                    raise HttpFailed(f"{path} has more than {limit_bytes} bytes")
    except (OSError, trio.BrokenResourceError) as error:  # trio wraps what TLS has to say
        raise HttpFailed(f"{path}: {error.__cause__ or error or 'connection lost'}") from error
    head, _, document = bytes(answer).partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0]
    if not status.startswith(b"HTTP/1.") or b" 200 " not in status:
        raise HttpFailed(f"{path} is answered with {status[:80].decode(errors='replace')!r}")
    return head, document
