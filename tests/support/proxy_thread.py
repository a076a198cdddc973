"""A TcpProxy for tests that block: it runs in a thread of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import trio

from tests.support.tcp_proxy import Mode, TcpProxy, open_proxy


class ProxyThread:
    """Made by `proxy_thread`; the methods are those of TcpProxy, called from outside."""

    def __init__(self, proxy: TcpProxy, token: trio.lowlevel.TrioToken) -> None:
        self.endpoint = proxy.endpoint
        self._proxy = proxy
        self._token = token

    def become(self, mode: Mode) -> None:
        trio.from_thread.run_sync(self._proxy.become, mode, trio_token=self._token)

    def heal(self) -> None:
        trio.from_thread.run_sync(self._proxy.heal, trio_token=self._token)

    def drop(self) -> None:
        trio.from_thread.run_sync(self._proxy.drop, trio_token=self._token)

    def wait_swallowed(self) -> None:
        """Wait until an answer was swallowed since the proxy was told to."""
        trio.from_thread.run(self._proxy.swallowed.wait, trio_token=self._token)


@contextmanager
def proxy_thread(target_port: int) -> Iterator[ProxyThread]:
    made: SimpleQueue[ProxyThread] = SimpleQueue()
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            async with open_proxy(target_port) as proxy:
                made.put(ProxyThread(proxy, trio.lowlevel.current_trio_token()))
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    proxy = made.get(timeout=20)
    try:
        yield proxy
    finally:
        trio.from_thread.run_sync(scope.cancel, trio_token=proxy._token)
        thread.join()
