"""Where the value of an option may come from besides the command line: files and the environment.

Owns the order (flag, environment, file, default), the names of keys and variables, and the errors about
them. Which options there are `options.py` says.
"""

from __future__ import annotations

import enum
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

SYSTEM_FILE: Final = Path("/etc/dnpipefs.toml")
USER_FILE: Final = "dnpipefs.toml"
"""Its name in $XDG_CONFIG_HOME; read after the system's file, for everybody but root."""
NO_FILE: Final = Path(os.devnull)
"""Named as the configuration file it says nothing, and no other file is read."""

VARIABLES: Final = "DNPIPEFS_"
CONFIG_VARIABLE: Final = "DNPIPEFS_CONFIG"
PASSWORD_VARIABLE: Final = "DNPIPEFS_PASSWORD"  # noqa: S105 - a name
TEST_VARIABLES: Final = "DNPIPEFS_TEST_"
"""What begins so is for the project's tests, and nothing to a command."""

_META: Final = "dnpipefs.configuration"
_KINDS: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list of strings",
}


class ConfigurationError(click.ClickException):
    """A file or a variable that cannot be used; the text names it, and the key."""


class Kind(enum.IntEnum):
    """Where a value comes from; of two the later one counts."""

    DEFAULT = 0
    FILE = 1
    ENVIRONMENT = 2
    FLAG = 3


class Origin(NamedTuple):
    """Which place a value comes from; of two the greater one counts."""

    kind: Kind
    file: int = 0
    """Which of the files, in the order read."""
    where: str = ""
    """The path of the file, the variable, the option; empty for a default."""

    @property
    def rank(self) -> tuple[int, int]:
        """What to compare."""
        return self.kind, self.file


class ConfigOption(click.Option):
    """An option that files and the environment can set, too.

    `takes` are the types that its value may have in a file, `table` is the table of the file that has it.
    """

    def __init__(
        self,
        *declarations: Any,
        takes: Sequence[type] | None = None,
        table: str | None = None,
        **attributes: Any,
    ) -> None:
        super().__init__(*declarations, **attributes)
        self.table: Final = table
        self.takes: Final = takes or self._usual_types()
        self.envvar = VARIABLES + self.key.replace(".", "_").upper()

    def _usual_types(self) -> Sequence[type]:
        if self.is_flag:
            return (bool,)
        if isinstance(self.type, type(click.INT)):
            return (int,)
        return (float, int) if isinstance(self.type, type(click.FLOAT)) else (str,)

    @property
    def parameter(self) -> str:
        """The name of the parameter that commands get."""
        assert self.name is not None  # noqa: S101 - of options, always
        return self.name

    @property
    def key(self) -> str:
        """The name in files, with that of its table: `mount.cache_size`."""
        return f"{self.table}.{self.parameter}" if self.table else self.parameter

    @property
    def variable(self) -> str:
        """The environment variable."""
        assert isinstance(self.envvar, str)  # noqa: S101 - as __init__ has set it
        return self.envvar

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Convert a value. One that cannot be is reported by the place where it stands."""
        try:
            if isinstance(value, str) and not isinstance(self.type, click.Path):
                _refuse_bytes(value)
            return super().process_value(ctx, value)
        except click.BadParameter as error:
            origin = origin_of(ctx, self)
            if origin.kind is Kind.FILE:
                raise ConfigurationError(f"{origin.where}: {self.key}: {error.message}") from None
            if origin.kind is Kind.ENVIRONMENT:
                raise ConfigurationError(f"{origin.where}: {error.message}") from None
            raise


def _refuse_bytes(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("the value is not text") from None


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the files say."""

    files: tuple[Path, ...] = ()
    """Those that were read, in the order in which later ones count more."""
    values: Mapping[str, tuple[Any, int]] = field(default_factory=dict)
    """By key: the value, in the form of a command line where that is another, and the number of its file."""


def configuration(context: click.Context) -> Configuration:
    """Return what the files said to a command."""
    found: Configuration = context.meta.get(_META, Configuration())
    return found


def origin_of(context: click.Context, option: ConfigOption) -> Origin:
    """Return where the value of an option comes from."""
    source = context.get_parameter_source(option.parameter)
    if source is click.core.ParameterSource.COMMANDLINE:
        is_off = option.is_flag and context.params.get(option.parameter) is False
        return Origin(Kind.FLAG, where=(option.secondary_opts if is_off else option.opts)[0])
    if source is click.core.ParameterSource.ENVIRONMENT:
        return Origin(Kind.ENVIRONMENT, where=option.variable)
    if source is click.core.ParameterSource.DEFAULT_MAP:
        read = configuration(context)
        _, number = read.values[option.key]
        return Origin(Kind.FILE, number, str(read.files[number]))
    return Origin(Kind.DEFAULT)


def configure(context: click.Context, named: Path | None, options: Sequence[ConfigOption]) -> None:
    """Let a command have what files say: the one that is named, or those that are there.

    Raises ConfigurationError for a file that cannot be used, and for a variable that is not known.
    """
    check_environment(options)
    files = [named] if named is not None else [path for path in _usual_files() if os.path.exists(path)]
    values: dict[str, tuple[Any, int]] = {}
    for number, path in enumerate(files):
        values |= {key: (value, number) for key, value in read_file(path, options).items()}
    context.meta[_META] = Configuration(tuple(files), values)
    context.default_map = {
        option.parameter: values[option.key][0]
        for option in options
        if option in context.command.params and option.key in values
    }


def _usual_files() -> Iterable[Path]:
    yield SYSTEM_FILE
    if os.geteuid() != 0:
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        yield Path(home) / USER_FILE


def variables(options: Iterable[ConfigOption]) -> set[str]:
    """Return the names of all variables that are looked at."""
    return {CONFIG_VARIABLE, PASSWORD_VARIABLE, *(option.variable for option in options)}


def check_environment(options: Iterable[ConfigOption]) -> None:
    """Raise ConfigurationError if there is a variable that looks like ours and is not."""
    known = variables(options)
    for name in sorted(os.environ):
        if name.startswith(VARIABLES) and not name.startswith(TEST_VARIABLES) and name not in known:
            raise ConfigurationError(f"unknown environment variable {name}: {_nearest(name, known)}")


def without_variables(options: Iterable[ConfigOption]) -> dict[str, str]:
    """Return the environment for a process that is to be told everything by its command line."""
    ours = variables(options)
    return {name: value for name, value in os.environ.items() if name not in ours}


def read_file(path: Path, options: Sequence[ConfigOption]) -> dict[str, Any]:
    """Return the values of a file by key. Raises ConfigurationError for whatever is wrong with it."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested without end
        raise ConfigurationError(f"{path}: this is not TOML: {error}") from None
    known = {option.key: option for option in options}
    tables = {option.table for option in options if option.table is not None}
    values = {}
    for name, value in document.items():
        entries = {name: value}
        if isinstance(value, dict):
            if name not in tables:
                raise ConfigurationError(f"{path}: unknown table [{name}]: {_nearest(name, tables)}")
            entries = {f"{name}.{inner}": content for inner, content in value.items()}
        elif name in tables:
            raise ConfigurationError(f"{path}: {name} has to be a table: write [{name}]")
        for key, content in entries.items():
            if key not in known:
                raise ConfigurationError(f"{path}: {_unknown(key, known)}")
            values[key] = _as_given(path, known[key], content)
    return values


def _as_given(path: Path, option: ConfigOption, value: Any) -> Any:
    """Return a value as a command line has it; relative paths of a file begin where the file is."""
    if type(value) not in option.takes or (
        isinstance(value, list) and not all(isinstance(item, str) for item in value)
    ):
        kinds = [kind for kind in option.takes if kind is not int or float not in option.takes]
        wanted = " or ".join(_KINDS[kind] for kind in kinds)
        raise ConfigurationError(f"{path}: {option.key} has to be {wanted}")
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(option.type, click.Path):
        return str(path.parent.absolute() / value)
    return value


def _unknown(key: str, known: Iterable[str]) -> str:
    """Say what is wrong with a key that there is not, and which one was probably meant."""
    if key.rpartition(".")[2] == "password":
        return f"there is no {key}: name a file of mode 0600 that has it, as password_file"
    for other in known:
        if key.rpartition(".")[2] == other.rpartition(".")[2]:
            table, _, name = other.rpartition(".")
            return f"unknown key {key}: {name} belongs " + (
                f"into the table [{table}]" if table else "to no table: write it above the first [table]"
            )
    return f"unknown key {key}: {_nearest(key, known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib  # here, for those who mistype

    # What all variables have in common makes none of them the nearest.
    names = {each.removeprefix(VARIABLES): each for each in sorted(known)}
    close = difflib.get_close_matches(name.removeprefix(VARIABLES), names, n=1)
    return f"did you mean {names[close[0]]}?" if close else f"there are {', '.join(names.values())}"
