"""A TCP proxy that breaks connections the way networks do."""

import enum
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Mode(enum.Enum):
    """What the proxy does with bytes."""

    PASS = enum.auto()
    REFUSE = enum.auto()
    """Connections are closed as soon as they are accepted."""
    BLACK_HOLE = enum.auto()
    """Connections are accepted and stay; nothing goes through in either direction."""
    SWALLOW_ANSWERS = enum.auto()
    """Requests reach the server, its answers do not come back."""


class TcpProxy:
    """Made by `open_proxy`. Assign `mode` through `become`; `heal` also ends what has been mutilated."""

    def __init__(self, target_port: int) -> None:
        self.mode = Mode.PASS
        self.port = 0
        self.accepted = 0
        self._target_port = target_port
        self._connections: set[trio.CancelScope] = set()
        self._passing = trio.Event()
        self._passing.set()
        self.swallowed = trio.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def become(self, mode: Mode) -> None:
        """Change what happens, to existing connections, too."""
        self.mode = mode
        if mode is Mode.PASS:
            self._passing.set()
        else:
            self._passing = trio.Event()
            self.swallowed = trio.Event()
        if mode is Mode.REFUSE:
            self.drop()

    def heal(self) -> None:
        """Close every connection and let new ones through."""
        self.drop()
        self.become(Mode.PASS)

    def drop(self) -> None:
        """Close every connection now."""
        for scope in self._connections:
            scope.cancel()

    async def serve(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        if self.mode is Mode.REFUSE:
            await client.aclose()
            return
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                async with (
                    client,
                    await trio.open_tcp_stream("127.0.0.1", self._target_port) as server,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(self._copy, client, server, False, scope)
                    nursery.start_soon(self._copy, server, client, True, scope)
            except OSError:  # the server does not listen
                await client.aclose()
            finally:
                self._connections.discard(scope)

    async def _copy(
        self, source: trio.SocketStream, sink: trio.SocketStream, answers: bool, scope: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some():
                if self.mode is Mode.BLACK_HOLE:
                    await self._passing.wait()
                if self.mode is Mode.SWALLOW_ANSWERS and answers:
                    self.swallowed.set()
                else:
                    await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def open_proxy(target_port: int) -> AsyncIterator[TcpProxy]:
    async with trio.open_nursery() as nursery:
        proxy = TcpProxy(target_port)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
