"""The life of a mount: made, served by as many tasks as there are requests, taken away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

import pyfuse3
import trio

from dnpipefs.fuse import readiness
from dnpipefs.fuse.adapter import Adapter
from dnpipefs.fuse.interrupts import Interrupts
from dnpipefs.vfs import FileSystem

logger: Final = logging.getLogger(__name__)

MIN_IDLE_TASKS: Final = 64
STOP_GRACE_S: Final = 3.0
"""How long a stopping mount waits for requests under way."""
MAX_TASKS: Final = 10_000
"""Requests under way at once; beyond it the whole mount waits, so fewer reads may wait (`BLOCKED_LIMIT`)."""


async def serve(
    files: FileSystem,
    mountpoint: str,
    options: Iterable[str],
    *,
    ready: Callable[[], None],
    stop: trio.Event,
) -> None:
    """Mount, call *ready*, and answer requests until unmounted, or *stop* is set; then unmount.

    On *stop* blocked reads end (EINTR) and requests under way are answered, for at most STOP_GRACE_S; what
    has not been answered by then fails at its caller (a write that was not acknowledged may be in the
    topic, once).
    Lines without newline that open handles hold are committed.

    Raises RuntimeError when the kernel refuses the mount.
    """
    interrupts = Interrupts()
    adapter = Adapter(files, interrupts)
    operations = readiness.install(adapter, on_silent=interrupts.hint, intake=files.intake)
    pyfuse3.init(operations, mountpoint, {*pyfuse3.default_options, *options})
    try:
        ready()
        async with trio.open_nursery() as nursery:

            async def end_on_stop() -> None:
                await stop.wait()
                interrupts.close()
                pyfuse3.terminate()
                await trio.sleep(STOP_GRACE_S)
                files.give_up()
                nursery.cancel_scope.cancel()

            adapter.nursery = nursery
            nursery.start_soon(interrupts.run)
            nursery.start_soon(end_on_stop)
            await pyfuse3.main(min_tasks=MIN_IDLE_TASKS, max_tasks=MAX_TASKS)
            await adapter.all_closed()
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(STOP_GRACE_S, shield=True) as last_chance:
            await files.flush()
        if last_chance.cancelled_caught:
            logger.warning("etcd did not take the lines without newline of all open handles in time")
        pyfuse3.close(unmount=True)  # libfuse sees to it that nothing else is unmounted
