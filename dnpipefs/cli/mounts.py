"""mount and umount."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from dnpipefs.cli.exits import one_line
from dnpipefs.cli.options import Connection, connection_options
from dnpipefs.core.config import parse_size
from dnpipefs.errors import InvalidSetting, SetupError
from dnpipefs.mount import (
    ListenAddress,
    MountOptions,
    prepare_mountpoint,
    run_mount,
    start_in_background,
    unmount,
)
from dnpipefs.mount.background import report_failure, report_ready

LOG_NAME: Final = "dnpipefs.log"
_DIRECTORY: Final = click.Path(path_type=Path)


def _parse_cache_size(_ctx: click.Context, _option: click.Parameter, value: str) -> int:
    try:
        return parse_size(value)
    except InvalidSetting as error:
        raise click.BadParameter(str(error)) from None


def _parse_listen_address(
    _ctx: click.Context, _option: click.Parameter, value: str | None
) -> ListenAddress | None:
    if value is None:
        return None
    host, colon, port = value.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    possible = colon and port.isascii() and port.isdigit() and int(port) < 1 << 16
    if not possible or (":" in bare and bare == host):
        raise click.BadParameter("an address and a port are needed, such as 127.0.0.1:9469 or [::1]:9469")
    return ListenAddress(bare, int(port))


@click.command()
@click.argument("mountpoint", type=_DIRECTORY)
@click.option("-f", "--foreground", is_flag=True, help="Stay until unmounted; log to standard error.")
@click.option(
    "--allow-other/--no-allow-other",
    default=lambda: os.geteuid() == 0,
    help="Let other users in, as far as modes and owners of topics do.  [default: on for root]",
)
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"Log of a mount in the background.  [default: {LOG_NAME} in the data directory]",
)
@click.option(
    "--cache-size",
    "cache_limit",
    default="64MiB",
    show_default=True,
    metavar="SIZE",
    callback=_parse_cache_size,
    help="Memory for messages that were read or followed, shared by all readers.",
)
@click.option(
    "--read-stale",
    is_flag=True,
    help="While etcd does not answer, show what this host has instead of waiting; `dnpipefs status` tells.",
)
@click.option(
    "--metrics",
    metavar="ADDRESS:PORT",
    callback=_parse_listen_address,
    help="Serve metrics to Prometheus at http://ADDRESS:PORT/metrics.  [default: only as .dnp/metrics]",
)
@connection_options
def mount(
    connection: Connection,
    mountpoint: Path,
    *,
    foreground: bool,
    allow_other: bool,
    log_file: Path | None,
    cache_limit: int,
    read_stale: bool,
    metrics: ListenAddress | None,
) -> None:
    """Mount the topics as files on a directory.

    Returns when they are there; `dnpipefs umount MOUNTPOINT` ends it.
    """
    connection.start_logging("info" if foreground else "warning")
    settings = replace(connection.settings(), cache_limit=cache_limit, read_stale=read_stale)
    if foreground:
        try:
            options = MountOptions(prepare_mountpoint(mountpoint), allow_other, metrics)
            run_mount(settings, options, ready=report_ready)
        except BaseException as error:
            report_failure(one_line(error))
            raise
        return
    mountpoint = prepare_mountpoint(mountpoint)
    command = [
        *(sys.executable, "-m", "dnpipefs", "mount", "--foreground"),
        *connection.arguments(),
        "--allow-other" if allow_other else "--no-allow-other",
        *("--cache-size", str(cache_limit)),
        *(["--read-stale"] if read_stale else []),
        *(["--metrics", str(metrics)] if metrics is not None else []),
        *("--", str(mountpoint)),
    ]
    start_in_background(command, log_file or _default_log_file(connection.data_dir))


@click.command()
@click.argument("mountpoint", type=_DIRECTORY)
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
