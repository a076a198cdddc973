"""The options that all commands share, which cluster, how long to wait, how much to log; and those of mounts.

Each can also be given by a file and by the environment (`configuration.py`).
"""

from __future__ import annotations

import functools
import logging
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click

from dnpipefs import etcd
from dnpipefs.cli.configuration import (
    CONFIG_VARIABLE,
    NO_FILE,
    PASSWORD_VARIABLE,
    ConfigOption,
    ConfigurationError,
    Kind,
    Origin,
    configure,
    origin_of,
    without_variables,
)
from dnpipefs.cli.logs import LogFormat, start_logging
from dnpipefs.cluster import Settings, default_data_dir
from dnpipefs.core.addresses import ListenAddress
from dnpipefs.core.config import parse_size
from dnpipefs.core.keys import DEFAULT_PREFIX, KeySchema
from dnpipefs.errors import InvalidArgument, InvalidSetting, SetupError
from dnpipefs.log.failures import DEFAULT_OP_TIMEOUT_S

logger: Final = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., None])

LINE_END: Final = "\r\n"
"""No part of a password that comes from a file or a variable."""
LOG_NAME: Final = "dnpipefs.log"
_PASSWORD: Final = "password"  # noqa: S105 - a name
_ALTERNATIVES: Final = (("endpoints", "discovery_srv"), ("password_file", _PASSWORD))
"""Options that say the same in two ways: of two from different places the one that counts more is used."""
_ORIGINS: Final = "dnpipefs.origins"
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


class MountPoint(click.ParamType[Path]):
    """A mount point. click's own type looks at it, and hangs if its daemon is frozen."""

    name = "directory"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Take it as it is."""
        return Path(str(value))


class HandedOver(NamedTuple):
    """What a process has to be started with."""

    arguments: list[str]
    environment: dict[str, str]
    descriptors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Connection:
    """The values of the shared options; a field `op_timeout` is the option `--op-timeout`."""

    endpoints: tuple[str, ...]
    discovery_srv: str | None
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
    password: str | None = field(repr=False)
    """As the environment says it; a file's is read when it is needed."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise click.UsageError("--cert and --key go together")
        if (self.user is None) != (self.password_file is None and self.password is None):
            raise click.UsageError(
                f"--user and --password-file go together; {PASSWORD_VARIABLE} can stand for the file"
            )

    @classmethod
    def taken_from(cls, context: click.Context, values: dict[str, Any]) -> Connection:
        """Take the shared options out of all those that a command has got. Raises ClickException."""
        given = {option.parameter: values.pop(option.parameter) for option in CONNECTION_OPTIONS}
        return cls(**_settle(context, given))

    def settings(self) -> Settings:
        """Return how to reach the cluster. Raises SetupError for a password file that cannot be read."""
        tls = None
        if self.cacert is not None or self.cert is not None:
            tls = etcd.Tls(self.cacert, self.cert, self.key)
        return Settings(
            self.endpoints,
            self.prefix,
            self.data_dir,
            tls,
            self._credentials(),
            op_timeout=self.op_timeout,
            discovery_srv=self.discovery_srv,
        )

    def _credentials(self) -> etcd.Credentials | None:
        if self.user is None:
            return None
        password = self.password
        if self.password_file is not None:
            password = _read_password(self.password_file)
        return etcd.Credentials(self.user, password or "")

    @contextmanager
    def handed_over(self) -> Iterator[HandedOver]:
        """Give what starts another process with these very values, wherever it runs.

        It reads no file and no variable for them again. A password that is in no file goes through a pipe,
        so it is among neither its arguments nor its variables.
        """
        arguments = ["--config", str(NO_FILE)]
        for name in (each.name for each in fields(self) if each.name != _PASSWORD):
            value = getattr(self, name)
            if isinstance(value, Path):
                value = value.absolute()
            elif isinstance(value, tuple):
                value = ",".join(value) or None
            if value is not None:
                arguments += ["--" + name.replace("_", "-"), str(value)]
        environment = without_variables(OPTIONS)
        if self.password is None:
            yield HandedOver(arguments, environment, ())
            return
        reading, writing = os.pipe()
        try:
            with open(writing, "w") as pipe:  # which has room for any password
                pipe.write(self.password)
            arguments += ["--password-file", f"/dev/fd/{reading}"]
            yield HandedOver(arguments, environment, (reading,))
        finally:
            os.close(reading)

    def start_logging(self, default: str = "warning") -> None:
        """Log to standard error, at the level asked for or *default*."""
        start_logging(self.log_level or default, LogFormat(self.log_format))


def _password_of_environment() -> str | None:
    password = os.environ.get(PASSWORD_VARIABLE, "").rstrip(LINE_END)
    try:
        password.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{PASSWORD_VARIABLE}: it is not text") from None
    return password or None


def _read_password(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            logger.warning("other users can read the password in %s: chmod 600 it", path)
        return path.read_text().rstrip(LINE_END)
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


def _parse_size(_ctx: click.Context, _option: click.Parameter, value: str) -> int:
    try:
        return parse_size(value)
    except InvalidSetting as error:
        raise click.BadParameter(str(error)) from None


def _parse_listen_address(
    _ctx: click.Context, _option: click.Parameter, value: str | None
) -> ListenAddress | None:
    if value is None or value == "none":
        return None
    try:
        return ListenAddress.parse(value)
    except InvalidArgument as error:
        raise click.BadParameter(str(error)) from None


CONNECTION_OPTIONS: Final = (
    ConfigOption(
        ["--endpoints"],
        takes=(list, str),
        metavar="URL,URL…",
        callback=_parse_endpoints,
        help="The etcd cluster: http://HOST:PORT, https://… or unix:/PATH. Without it, an etcd of its own.",
    ),
    ConfigOption(
        ["--discovery-srv"],
        metavar="DOMAIN",
        help="Find the etcd cluster by DNS: SRV records _etcd-client-ssl._tcp.DOMAIN (TLS) or, if there are "
        "none, _etcd-client._tcp.DOMAIN.",
    ),
    ConfigOption(
        ["--prefix"],
        default=DEFAULT_PREFIX,
        show_default=True,
        callback=_check_prefix,
        help="Where in etcd everything lies.",
    ),
    ConfigOption(
        ["--data-dir"],
        type=click.Path(file_okay=False, path_type=Path),
        default=default_data_dir,
        metavar="DIR",
        help="Data of the own etcd, shared by all commands that name it.  [default: "
        "$XDG_STATE_HOME/dnpipefs or ~/.local/state/dnpipefs, for root /var/lib/dnpipefs]",
    ),
    ConfigOption(["--cacert"], type=_FILE, metavar="FILE", help="Authority of the servers' certificates."),
    ConfigOption(["--cert"], type=_FILE, metavar="FILE", help="Certificate to show to etcd."),
    ConfigOption(["--key"], type=_FILE, metavar="FILE", help="Key of that certificate."),
    ConfigOption(["--user"], metavar="NAME", help="User of etcd; a role on the prefix is enough."),
    ConfigOption(["--password-file"], type=_FILE, metavar="FILE", help="File with that user's password."),
    ConfigOption(
        ["--op-timeout"],
        type=float,
        default=DEFAULT_OP_TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        callback=_check_seconds,
        help="How long to wait for etcd.",
    ),
    ConfigOption(
        ["--log-level"],
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="What to log to standard error.  [default: warning; info for mount]",
    ),
    ConfigOption(
        ["--log-format"],
        type=click.Choice([form.value for form in LogFormat]),
        default=LogFormat.AUTO.value,
        help="How.  [default: auto: with fields to the journal if standard error goes there, else text]",
    ),
)
MOUNT_OPTIONS: Final = (
    ConfigOption(
        ["--allow-other/--no-allow-other"],
        table="mount",
        default=lambda: os.geteuid() == 0,
        help="Let other users in, as far as modes and owners of topics do.  [default: on for root]",
    ),
    ConfigOption(
        ["--log-file"],
        table="mount",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help=f"Log of a mount in the background.  [default: {LOG_NAME} in the data directory]",
    ),
    ConfigOption(
        ["--cache-size"],
        table="mount",
        takes=(str, int),
        default="64MiB",
        show_default=True,
        metavar="SIZE",
        callback=_parse_size,
        help="Memory for messages that were read or followed, shared by all readers.",
    ),
    ConfigOption(
        ["--read-stale/--no-read-stale"],
        table="mount",
        default=False,
        help="While etcd does not answer, show what this host has instead of waiting; "
        "`dnpipefs status` tells.",
    ),
    ConfigOption(
        ["--guard-mountpoint/--no-guard-mountpoint"],
        table="mount",
        default=False,
        help="As root: make the bare directory immutable: what is written while nothing is mounted fails.",
    ),
    ConfigOption(
        ["--metrics"],
        table="mount",
        metavar="ADDRESS:PORT",
        callback=_parse_listen_address,
        help="Serve metrics to Prometheus at http://ADDRESS:PORT/metrics; none: only as .dnp/metrics.  "
        "[default: none]",
    ),
)
OPTIONS: Final = CONNECTION_OPTIONS + MOUNT_OPTIONS


def _read_configuration(ctx: click.Context, _option: click.Parameter, value: Path | None) -> None:
    configure(ctx, value, OPTIONS)
    if _password_of_environment() is not None and ctx.default_map is not None:
        # Not looked at then: the file that the system's configuration names may be for root only.
        ctx.default_map.pop("password_file", None)


_CONFIG: Final = click.Option(
    ["--config"],
    type=click.Path(path_type=Path),
    envvar=CONFIG_VARIABLE,
    is_eager=True,  # before those that it gives values to
    expose_value=False,
    callback=_read_configuration,
    metavar="FILE",
    help="Values of options, instead of those in /etc/dnpipefs.toml.",
)


def connection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it gets them as its first argument, a `Connection`."""

    @functools.wraps(command)
    def with_connection(**values: Any) -> None:
        connection = Connection.taken_from(click.get_current_context(), values)
        command(connection, **values)

    return _with_options(with_connection, (*CONNECTION_OPTIONS, _CONFIG))


def format_option(help: str | None = None) -> Callable[[Command], Command]:  # noqa: A002 - as click has it
    """Give a command `--format`, text or json, as its argument `form`."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help=help,
    )


def mount_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a mount as keyword arguments."""
    return _with_options(command, MOUNT_OPTIONS)


def _with_options(command: Callable[..., None], options: Iterable[click.Option]) -> Callable[..., None]:
    # What click's own decorators do: they cannot be used, since the options are needed besides, as data.
    command.__click_params__ = [  # type: ignore[attr-defined]
        *getattr(command, "__click_params__", []),
        *reversed(list(options)),
    ]
    return command


def origins(context: click.Context) -> Mapping[str, Origin]:
    """Return where a command's options come from, by parameter, and the password."""
    found: Mapping[str, Origin] = context.meta[_ORIGINS]
    return found


def _settle(context: click.Context, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the password; of alternatives keep the one that counts more. Raises UsageError for a tie."""
    password = _password_of_environment()
    values = {**given, _PASSWORD: password}
    found = {
        option.parameter: origin_of(context, option) for option in OPTIONS if option in context.command.params
    }
    found[_PASSWORD] = Origin(Kind.DEFAULT if password is None else Kind.ENVIRONMENT, where=PASSWORD_VARIABLE)
    for pair in _ALTERNATIVES:
        weaker, stronger = sorted(pair, key=lambda name: found[name].rank)
        if found[weaker].kind is Kind.DEFAULT:
            continue
        if found[weaker].rank == found[stronger].rank:
            in_file = found[weaker].kind is Kind.FILE
            place = f"{found[weaker].where}: " if in_file else ""
            names = pair if in_file else [found[name].where for name in pair]
            raise click.UsageError(f"{place}{' and '.join(names)} exclude each other")
        values[weaker], found[weaker] = () if weaker == "endpoints" else None, found[stronger]
    context.meta[_ORIGINS] = found
    return values
