"""The composition root of a mount: cluster, file system, FUSE, signals; from mounting to unmounted."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from dnpipefs.cluster import Settings, open_cluster
from dnpipefs.core.addresses import ListenAddress
from dnpipefs.errors import SetupError
from dnpipefs.fuse.serving import serve
from dnpipefs.mount.mountpoint import FILE_SYSTEM_NAME, clear_mountpoint
from dnpipefs.mount.scrapes import serve_metrics
from dnpipefs.mount.supervision import ServiceManager, supervise
from dnpipefs.vfs import FileSystem

logger: Final = logging.getLogger(__name__)


GARBAGE_THRESHOLD: Final = 100_000
"""Objects made and not yet dropped before the collector looks for cycles among the young ones."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Where and how to mount."""

    mountpoint: Path
    """As `prepare_mountpoint` returned it; what a dead daemon left there is cleared."""
    allow_other: bool = False
    """Other users than the mounting one may use it, as far as modes and owners of topics let them."""
    metrics: ListenAddress | None = None
    """Where metrics are served over HTTP; None: nowhere."""
    source: str = FILE_SYSTEM_NAME
    """What is mounted, as the table of mounts shows it."""

    def fuse_options(self) -> set[str]:
        """Return the options of the kernel's mount."""
        source = self.source.replace("\\", "\\\\").replace(",", "\\,")
        kind = f"subtype={FILE_SYSTEM_NAME}"
        options = {f"fsname={source}", kind, "default_permissions", "nosuid", "nodev"}
        return options | {"allow_other"} if self.allow_other else options


def run_mount(settings: Settings, options: MountOptions, *, ready: Callable[[], None]) -> None:
    """Mount and serve until unmounted, SIGTERM, SIGINT or SIGHUP. Calls *ready* once the mount answers.

    A signal that comes before etcd has been reached ends that: nothing is mounted then.

    The service manager that the environment names, if any, is told, too, and of all else it wants to know.
    Raises SetupError, UnsupportedFormat or an EtcdError when the mount cannot be made.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise SetupError("/dev/fuse cannot be used: install fuse3, load the kernel module (modprobe fuse)")
    if settings.embedded and settings.data_dir.resolve().is_relative_to(options.mountpoint):
        raise SetupError(  # no other command would find the etcd there, and its files would become topics
            f"the data directory {settings.data_dir} lies below {options.mountpoint}, where the mount would "
            "hide it: choose another with --data-dir"
        )
    # Each request makes and drops some dozens of objects, nearly all without cycles: with Python's
    # default the collector looks through everything again and again, a tenth of the daemon's time.
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 50)
    trio.run(_mount, settings, options, ready, ServiceManager.take(os.environ))


async def _mount(
    settings: Settings, options: MountOptions, ready: Callable[[], None], manager: ServiceManager
) -> None:
    stop, joining, joined = trio.Event(), trio.CancelScope(), False

    async def give_up() -> None:
        """End a start that waits for etcd, which it may do for minutes."""
        await stop.wait()
        if not joined:
            joining.cancel()

    def up() -> None:
        logger.info("mounted on %s", options.mountpoint)
        nursery.start_soon(supervise, manager, options.mountpoint, ready, stop)

    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, stop)
        nursery.start_soon(give_up)
        with joining:
            async with open_cluster(settings, mountpoint=str(options.mountpoint)) as cluster:
                joined = True
                files = FileSystem(cluster)
                if options.metrics is not None:
                    await nursery.start(serve_metrics, files.exposition, options.metrics)
                await _serve(files, options, up, stop)
        nursery.cancel_scope.cancel()
    if joined:
        logger.info("unmounted from %s", options.mountpoint)


async def _serve(files: FileSystem, options: MountOptions, up: Callable[[], None], stop: trio.Event) -> None:
    clear_mountpoint(options.mountpoint)  # not before: a mount that cannot be made leaves the dead one
    try:
        await serve(files, str(options.mountpoint), options.fuse_options(), ready=up, stop=stop)
    except RuntimeError as error:
        raise SetupError(f"cannot mount on {options.mountpoint}: {error}") from error


async def _stop_on_signal(
    stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    heeded = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sees to
        heeded.append(signal.SIGHUP)  # of a terminal that is closed: a daemon that dies leaves a dead mount
    with trio.open_signal_receiver(*heeded) as signals:
        task_status.started()
        async for number in signals:
            logger.info("%s: unmounting", signal.Signals(number).name)
            stop.set()
