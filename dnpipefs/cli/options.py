"""The options that all commands share: which cluster, how long to wait, how much to log."""

from __future__ import annotations

import functools
import logging
import math
import stat
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import click

from dnpipefs import etcd
from dnpipefs.cli.logs import LogFormat, start_logging
from dnpipefs.cluster import Settings, default_data_dir
from dnpipefs.core.keys import DEFAULT_PREFIX, KeySchema
from dnpipefs.errors import InvalidArgument, SetupError
from dnpipefs.log.failures import DEFAULT_OP_TIMEOUT_S

logger: Final = logging.getLogger(__name__)

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Connection:
    """The values of the shared options; a field `op_timeout` is the option `--op-timeout`."""

    endpoints: tuple[str, ...]
    prefix: str
    data_dir: Path
    cacert: Path | None
    cert: Path | None
    key: Path | None
    user: str | None
    password_file: Path | None
    op_timeout: float
    log_level: str | None
    log_format: str

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise click.UsageError("--cert and --key go together")
        if (self.user is None) != (self.password_file is None):
            raise click.UsageError("--user and --password-file go together")

    def settings(self) -> Settings:
        """Return how to reach the cluster. Raises SetupError for a password file that cannot be read."""
        tls = None
        if self.cacert is not None or self.cert is not None:
            tls = etcd.Tls(self.cacert, self.cert, self.key)
        credentials = None
        if self.user is not None and self.password_file is not None:
            credentials = etcd.Credentials(self.user, _read_password(self.password_file))
        return Settings(
            self.endpoints, self.prefix, self.data_dir, tls, credentials, op_timeout=self.op_timeout
        )

    def arguments(self) -> list[str]:
        """Return the options that say the same to another process, wherever it runs."""
        arguments = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path):
                value = value.absolute()
            elif isinstance(value, tuple):
                value = ",".join(value) or None
            if value is not None:
                arguments += ["--" + field.name.replace("_", "-"), str(value)]
        return arguments

    def start_logging(self, default: str = "warning") -> None:
        """Log to standard error, at the level asked for or *default*."""
        start_logging(self.log_level or default, LogFormat(self.log_format))


def _read_password(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            logger.warning("other users can read the password in %s: chmod 600 it", path)
        return path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SetupError(f"cannot read the password file {path}: {reason}") from error


def _parse_endpoints(_ctx: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    endpoints = tuple(part.strip() for part in value.split(","))
    if not all(endpoints):
        raise click.BadParameter("give one or more addresses, separated by commas")
    return endpoints


def _check_prefix(_ctx: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        KeySchema(value)
    except InvalidArgument as error:
        raise click.BadParameter(str(error)) from None
    return value


def _check_seconds(_ctx: click.Context, _option: click.Parameter, value: float) -> float:
    if not (0 < value < math.inf):
        raise click.BadParameter("a number of seconds above 0 is needed")
    return value


_OPTIONS: Final = (
    click.option(
        "--endpoints",
        metavar="URL,URL…",
        callback=_parse_endpoints,
        help="The etcd cluster: http://HOST:PORT, https://… or unix:/PATH. Without it, an etcd of its own.",
    ),
    click.option(
        "--prefix",
        default=DEFAULT_PREFIX,
        show_default=True,
        callback=_check_prefix,
        help="Where in etcd everything lies.",
    ),
    click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_data_dir,
        metavar="DIR",
        help="Data of the own etcd, shared by all commands that name it.  [default: "
        "$XDG_STATE_HOME/dnpipefs or ~/.local/state/dnpipefs, for root /var/lib/dnpipefs]",
    ),
    click.option("--cacert", type=_FILE, metavar="FILE", help="Authority of the servers' certificates."),
    click.option("--cert", type=_FILE, metavar="FILE", help="Certificate to show to etcd."),
    click.option("--key", type=_FILE, metavar="FILE", help="Key of that certificate."),
    click.option("--user", metavar="NAME", help="User of etcd; a role on the prefix is enough."),
    click.option("--password-file", type=_FILE, metavar="FILE", help="File with that user's password."),
    click.option(
        "--op-timeout",
        type=float,
        default=DEFAULT_OP_TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        callback=_check_seconds,
        help="How long to wait for etcd.",
    ),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="What to log to standard error.  [default: warning; info for mount]",
    ),
    click.option(
        "--log-format",
        type=click.Choice([form.value for form in LogFormat]),
        default=LogFormat.AUTO.value,
        help="How.  [default: auto: with fields to the journal if standard error goes there, else text]",
    ),
)


def connection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it gets them as its first argument, a `Connection`."""

    @functools.wraps(command)
    def with_connection(**values: Any) -> None:
        connection = Connection(**{field.name: values.pop(field.name) for field in fields(Connection)})
        command(connection, **values)

    for option in reversed(_OPTIONS):
        with_connection = option(with_connection)
    return with_connection
