"""Serving the metrics of a mount over HTTP, to a Prometheus that comes for them.

One path, no TLS and no passwords: it listens where it is told to and nowhere else. Whoever needs more puts a
proxy before it. What comes is bounded: by connections, by size, and by the time until a connection has been
answered.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Final, NamedTuple

import h11
import trio

from dnpipefs.core.addresses import ListenAddress
from dnpipefs.errors import SetupError
from dnpipefs.exposition import OPEN_METRICS_TYPE, Exposition, Form

logger: Final = logging.getLogger(__name__)

PATH: Final = b"/metrics"
CONNECTIONS: Final = 16
"""How many are served at once; others wait with the kernel, without a descriptor of this process."""
PATIENCE_S: Final = 10.0
"""How long a connection may take in all."""
REQUEST_BYTES: Final = 16 << 10
"""Of a request's line and header fields."""
READ_BYTES: Final = 4096


class _Answer(NamedTuple):
    status: HTTPStatus
    content_type: str = "text/plain; charset=utf-8"
    body: bytes = b""
    more: tuple[tuple[str, str], ...] = ()


class _Listener(trio.abc.Listener[trio.SocketStream]):
    """Takes connections as far as there is room; who has got one frees it in the end."""

    def __init__(self, listener: trio.SocketListener, room: trio.Semaphore) -> None:
        self._listener: Final = listener
        self._room: Final = room

    async def accept(self) -> trio.SocketStream:
        """Wait for room, then for a connection."""
        await self._room.acquire()
        try:
            return await self._listener.accept()
        except BaseException:  # cancelled, or no descriptor left
            self._room.release()
            raise

    async def aclose(self) -> None:
        """Listen no more."""
        await self._listener.aclose()


async def serve_metrics(
    exposition: Exposition,
    address: ListenAddress,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer scrapes until cancelled. Raises SetupError if it cannot listen."""
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host or None)
    except OSError as error:
        raise SetupError(f"cannot serve metrics on {address}: {error.strerror or error}") from error
    # A listener that waits has room for one already.
    room = trio.Semaphore(CONNECTIONS - 1 + len(listeners))

    async def answer(stream: trio.SocketStream) -> None:
        try:
            with trio.move_on_after(PATIENCE_S):
                async with stream:
                    await _answer(stream, exposition)
        except Exception:  # whoever looks must not end the mount
            logger.exception("a scrape of the metrics failed unexpectedly")
        finally:
            room.release()

    logger.info("metrics are served on http://%s%s", address, PATH.decode())
    task_status.started()
    await trio.serve_listeners(answer, [_Listener(listener, room) for listener in listeners])


async def _answer(stream: trio.SocketStream, exposition: Exposition) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)
    try:
        request = await _request(stream, connection)
        if request is None:
            return
        answer = await _answer_to(request, exposition)
    except h11.RemoteProtocolError as error:
        request, answer = None, _Answer(HTTPStatus(error.error_status_hint))
    body = answer.body or f"{answer.status.phrase}\n".encode()
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        *answer.more,
    ]
    head_only = request is not None and request.method == b"HEAD"
    parts: list[h11.Event] = [
        h11.Response(status_code=answer.status.value, reason=answer.status.phrase, headers=headers),
        *([] if head_only else [h11.Data(data=body)]),
        h11.EndOfMessage(),
    ]
    try:
        await stream.send_all(b"".join([connection.send(part) or b"" for part in parts]))
    except trio.BrokenResourceError:
        logger.debug("whoever asked for metrics has left")


async def _request(stream: trio.SocketStream, connection: h11.Connection) -> h11.Request | None:
    """Return what is asked for; None if nothing is. Raises RemoteProtocolError."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        try:
            connection.receive_data(await stream.receive_some(READ_BYTES))
        except trio.BrokenResourceError:
            return None


async def _answer_to(request: h11.Request, exposition: Exposition) -> _Answer:
    if request.target.partition(b"?")[0] != PATH:
        return _Answer(HTTPStatus.NOT_FOUND, body=b"metrics are at %b\n" % PATH)
    if request.method not in (b"GET", b"HEAD"):
        return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, more=(("Allow", "GET, HEAD"),))
    accepted = [value for name, value in request.headers if name == b"accept"]
    form = Form.OPEN_METRICS if any(OPEN_METRICS_TYPE in value for value in accepted) else Form.TEXT
    return _Answer(HTTPStatus.OK, form.value, await exposition.text(form))
