"""What the service manager is told of a mount: that it answers, that it still does, that it ends.

The protocol of sd_notify(3): datagrams of assignments to the socket that the environment names. The mount
is asked by a process of its own, through the kernel, as any program asks it: a daemon that waits for its own
mount cannot even be killed. Whether etcd answers is not asked: a new daemon would reach it no sooner.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from dnpipefs.mount.mountpoint import ANSWER_S

logger: Final = logging.getLogger(__name__)

ASKS_PER_WATCHDOG: Final = 3
"""How often the mount is asked within the time after which the manager gives the daemon up."""
_ASK: Final = "import os, sys; sys.exit(not os.path.ismount(sys.argv[1]))"
"""The attributes of a mount's root: the daemon has them in memory, the kernel for no time that counts."""


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """Who has started this process as a service, if anybody."""

    address: str | None = None
    """Its socket: a path, or a name that begins with `@`. None: there is no manager."""
    watchdog_s: float | None = None
    """Within that time it wants to hear again that all is well; None if it does not."""

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """Return the one that *environment* names, and remove it there: it does not ask children."""
        address = environment.pop("NOTIFY_SOCKET", None)
        microseconds = environment.pop("WATCHDOG_USEC", None)
        pid = environment.pop("WATCHDOG_PID", None)
        if microseconds is None or pid not in (None, str(os.getpid())):
            return cls(address)
        return cls(address, int(microseconds) / 1e6)

    async def tell(self, *assignments: str) -> None:
        """Send assignments such as `READY=1` at once; nothing without a manager."""
        if self.address is None:
            return
        path = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            try:
                await sending.sendto("\n".join(assignments).encode(), path)
            except OSError as error:  # what comes of it, the manager decides
                logger.warning("the service manager cannot be told %s: %s", assignments[0], error.strerror)


async def supervise(
    manager: ServiceManager, mountpoint: Path, ready: Callable[[], None], stop: trio.Event
) -> None:
    """Call *ready* and tell *manager* once the mount answers, and feed the watchdog while it does.

    Returns when *stop* is set, after telling the manager that.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report, manager, mountpoint, ready)
        await stop.wait()
        nursery.cancel_scope.cancel()
    await manager.tell("STOPPING=1", f"STATUS=unmounting {mountpoint}")


async def _report(manager: ServiceManager, mountpoint: Path, ready: Callable[[], None]) -> None:
    while not await _answers(mountpoint):
        logger.warning("%s does not answer yet", mountpoint)
    ready()
    await manager.tell("READY=1", f"STATUS=serving {mountpoint}")
    while manager.watchdog_s is not None:
        await trio.sleep(manager.watchdog_s / ASKS_PER_WATCHDOG)
        if await _answers(mountpoint):
            await manager.tell("WATCHDOG=1")
        else:
            logger.warning("%s does not answer; the service manager is not told that all is well", mountpoint)


async def _answers(mountpoint: Path) -> bool:
    """Ask the mount; False if it did not answer within ANSWER_S, or is not there."""
    asking = _ask(mountpoint)
    ended = os.pidfd_open(asking.pid)
    try:
        with trio.move_on_after(ANSWER_S) as waiting:
            await trio.lowlevel.wait_readable(ended)
            asking.wait()
        return not waiting.cancelled_caught and asking.returncode == 0
    finally:
        os.close(ended)
        if asking.returncode is None:
            asking.kill()  # takes effect when the mount answers or ends, so it is not waited for
            asking.returncode = 0


def _ask(mountpoint: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _ASK, str(mountpoint)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
