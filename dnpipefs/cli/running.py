"""Running one operation on a connection, to its end or to the first reason to end it.

Also the two streams: blocking reads and writes are done in threads, so that the session is kept alive
while a slow reader of our output, or a terminal, keeps us waiting.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final, Protocol

import trio

from dnpipefs.api import Dnp, connect
from dnpipefs.cli.exits import Ended
from dnpipefs.cli.options import Connection
from dnpipefs.cli.streams import STDIN, STDOUT, write_all
from dnpipefs.errors import SetupError

READ_BYTES: Final = 1 << 20
"""How much standard input is asked for at once."""


class Operation(Protocol):
    """What a command does once it is connected."""

    def __call__(self, dnp: Dnp, /) -> Awaitable[None]:
        """Do it."""


def run_connected(
    connection: Connection, operation: Operation, *, while_output_is_read: bool = False
) -> None:
    """Connect and run *operation*; end it in order on SIGINT, SIGTERM or SIGHUP.

    `while_output_is_read` ends it also when nobody reads standard output any more, which an operation
    that waits for messages would not notice. Raises Ended then, and whatever *operation* raises.
    """
    connection.start_logging()
    settings = connection.settings()

    async def connected() -> None:
        async with connect(
            settings.endpoints,
            prefix=settings.prefix,
            data_dir=settings.data_dir,
            tls=settings.tls,
            credentials=settings.credentials,
            op_timeout=settings.op_timeout,
            discovery_srv=settings.discovery_srv,
        ) as dnp:
            await operation(dnp)

    ends = [_signal, _reader_left] if while_output_is_read else [_signal]
    trio.run(_race, connected, ends)


def run_interruptibly(operation: Callable[[], Awaitable[None]]) -> None:
    """Run *operation*; end it in order, with Ended, on SIGINT, SIGTERM or SIGHUP. Raises what it raises."""
    trio.run(_race, operation, [_signal])


async def _race(
    operation: Callable[[], Awaitable[None]], ends: Sequence[Callable[[], Awaitable[Ended]]]
) -> None:
    """Run *operation* until it ends or one of *ends* does; raise why, in no exception group."""
    outcome: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def watch(end: Callable[[], Awaitable[Ended]]) -> None:
            nonlocal outcome
            outcome = await end()
            nursery.cancel_scope.cancel()

        for end in ends:
            nursery.start_soon(watch, end)
        try:
            await operation()
        except Exception as error:  # raised below, alone, not in the nursery's group
            outcome = error
        nursery.cancel_scope.cancel()
    if outcome is not None:
        raise outcome


async def _signal() -> Ended:
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What the shell or nohup has told us to ignore stays ignored.
    heeded = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
    with trio.open_signal_receiver(*heeded) as signals:
        async for number in signals:
            return Ended(number)
    raise AssertionError("unreachable: signals do not end")


async def _reader_left() -> Ended:
    with select.epoll() as poll:
        try:
            poll.register(STDOUT, 0)  # errors and hang-ups are told unasked
        except PermissionError:  # a file
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(poll.fileno())
    return Ended(signal.SIGPIPE)


async def read_input() -> AsyncGenerator[bytes, None]:
    """Yield what comes on standard input, as it comes. Raises SetupError if it cannot be read."""
    while True:
        try:
            data = await trio.to_thread.run_sync(os.read, STDIN, READ_BYTES, abandon_on_cancel=True)
        except OSError as error:
            raise SetupError(f"cannot read standard input: {error.strerror}") from error
        if not data:
            return
        yield data


async def write_output(data: bytes) -> None:
    """Write to standard output, at once. Raises Ended if nobody reads it, SetupError if it fails."""
    await trio.to_thread.run_sync(write_all, data, abandon_on_cancel=True)
