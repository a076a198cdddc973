"""mount and umount."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import click

from dnpipefs.cli.configuration import PASSWORD_VARIABLE
from dnpipefs.cli.exits import one_line
from dnpipefs.cli.options import LOG_NAME, Connection, MountPoint, connection_options, mount_options
from dnpipefs.cli.suggestions import directories, mountpoints
from dnpipefs.core.addresses import ListenAddress
from dnpipefs.errors import SetupError
from dnpipefs.mount import MountOptions, prepare_mountpoint, run_mount, start_in_background, unmount
from dnpipefs.mount.background import report_failure, report_ready
from dnpipefs.mount.mountpoint import FILE_SYSTEM_NAME


@click.command()
@click.argument("mountpoint", type=MountPoint(), shell_complete=directories)
@click.option("-f", "--foreground", is_flag=True, help="Stay until unmounted; log to standard error.")
@click.option(
    "--source",
    default=FILE_SYSTEM_NAME,
    show_default=True,
    metavar="NAME",
    help="What the table of mounts shows as mounted.",
)
@mount_options
@connection_options
def mount(
    connection: Connection,
    mountpoint: Path,
    *,
    foreground: bool,
    allow_other: bool,
    log_file: Path | None,
    cache_size: int,
    read_stale: bool,
    guard_mountpoint: bool,
    source: str,
    metrics: ListenAddress | None,
) -> None:
    """Mount the topics as files on a directory.

    Returns when they are there; `dnpipefs umount MOUNTPOINT` ends it.
    """
    connection.start_logging("info" if foreground else "warning")
    settings = replace(connection.settings(), cache_limit=cache_size, read_stale=read_stale)
    if foreground:
        os.environ.pop(PASSWORD_VARIABLE, None)  # no business of the programs that the daemon starts
        try:
            mountpoint = prepare_mountpoint(mountpoint, guard=guard_mountpoint)
            options = MountOptions(mountpoint, allow_other, metrics, source)
            run_mount(settings, options, ready=report_ready)
        except BaseException as error:  # who started this process waits for a line, whatever ends it
            report_failure(one_line(error))
            raise
        return
    mountpoint = prepare_mountpoint(mountpoint, guard=guard_mountpoint)
    log = log_file or _default_log_file(connection.data_dir)
    with connection.handed_over() as (arguments, environment, descriptors):
        command = [
            *(sys.executable, "-m", "dnpipefs", "mount", "--foreground"),
            *arguments,
            "--allow-other" if allow_other else "--no-allow-other",
            *("--cache-size", str(cache_size)),
            "--read-stale" if read_stale else "--no-read-stale",
            *("--source", source),
            *(["--metrics", str(metrics)] if metrics is not None else []),
            *("--", str(mountpoint)),
        ]
        start_in_background(command, log, environment, descriptors)


@click.command()
@click.argument("mountpoint", type=MountPoint(), shell_complete=mountpoints)
def umount(mountpoint: Path) -> None:
    """Unmount the topics. What was written to them is stored."""
    unmount(mountpoint)


def _default_log_file(data_dir: Path) -> Path:
    """Return the log's place; make the directory private, as the etcd in it wants it, before it has a log."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(data_dir.stat().st_mode) & 0o077 and not any(data_dir.iterdir()):
            data_dir.chmod(0o700)
    except OSError as error:
        raise SetupError(
            f"data directory {data_dir} is not usable ({error.strerror}): choose another with --data-dir"
        ) from error
    return data_dir / LOG_NAME
