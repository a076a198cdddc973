"""One GET to the HTTP side of an etcd, which listens where its gRPC side does.

Owns the exchange of one small document over any stream. Knows neither addresses nor what the
document says. HTTP/1.0, so that the answer comes in one piece and ends with the connection.
"""

from collections.abc import Awaitable, Callable

import trio

from dnpipefs.etcd.errors import EtcdError

OpenStream = Callable[[], Awaitable[trio.abc.Stream]]


class HttpFailed(EtcdError):
    """No document: no connection, another status than 200, or too much. Never raised for lack of time."""


async def http_get(open_stream: OpenStream, path: str, *, host: str, limit_bytes: int) -> bytes:
    """Open a stream, return the document at `path`, and close the stream. Waits without end by itself.

    Raises `HttpFailed`, also when head and document have more than `limit_bytes`.
    """
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
    return document
