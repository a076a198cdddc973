"""mount.dnpipefs: what mount(8) runs for the type dnpipefs. Its arguments become those of `dnpipefs mount`.

    mount.dnpipefs SPEC DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]

SPEC is `HOST:PORT,HOST:PORT…/PREFIX`, or `none` for what the configuration says. Options are those of
`dnpipefs mount` with `_` for `-`; what mount(8), fstab(5) and systemd need for themselves is left out.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import click

from dnpipefs.cli import streams
from dnpipefs.cli.exits import Ended, Exit, one_line
from dnpipefs.cli.mounts import mount
from dnpipefs.cli.program import run

PROGRAM: Final = "mount.dnpipefs"
CONFIGURED: Final = "none"
"""What stands for a SPEC where the configuration names the cluster. Not `dnpipefs`: mount(8) takes a word for
a path where there is such a file, as there is above a checkout."""
NOT_OURS: Final = re.compile(
    r"defaults|rw|_netdev|nofail|async|silent|loud|comment=.*|user=.*|[xX]-.*"
    r"|(no)?(auto|users?|owner|group|suid|dev|exec)"
    r"|(no)?(atime|diratime|relatime|strictatime|lazytime|iversion)"
)
"""What has a meaning for others only. A mount is nosuid and nodev in any case."""
OTHER_NAMES: Final = {"user": "etcd_user"}
"""Options of `dnpipefs mount` whose name means something else to mount(8)."""
FROM_SPEC: Final = frozenset({"endpoints", "source"})

_SPEC: Final = re.compile(r"(?P<endpoints>(?:https?://)?[^/,]+(?:,(?:https?://)?[^/,]+)*)(?P<prefix>/.*)?")
_FAILURE: Final = 32
_USAGE: Final = 1
"""Exit statuses of mount(8): the mount failed; the call was wrong, or is not allowed."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("spec")
@click.argument("directory")
@click.option("-s", "sloppy", is_flag=True, help="Leave options out that are not known.")
@click.option("-f", "fake", is_flag=True, help="Do everything but mount.")
@click.option("-n", is_flag=True, expose_value=False, help="No meaning here.")
@click.option("-v", "verbose", is_flag=True, help="Show the command that this comes to.")
@click.option("-t", metavar="TYPE", expose_value=False, help="No meaning here.")
@click.option("-o", "options", metavar="OPTIONS", multiple=True, help="Separated by commas.")
def helper(
    spec: str, directory: str, *, sloppy: bool, fake: bool, verbose: bool, options: Sequence[str]
) -> int:
    """Mount the topics as files on a directory, for mount(8)."""
    named = [option for part in options for option in part.split(",") if option]
    arguments = ["mount", *_from_spec(spec), *_from_options(named, sloppy=sloppy), "--", directory]
    if verbose:
        click.echo(shlex.join(("dnpipefs", *arguments)))
    return Exit.OK if fake else run(arguments)


def main() -> NoReturn:
    """Be the program."""
    streams.prepare()
    sys.exit(run_helper(sys.argv[1:]))


def run_helper(arguments: Sequence[str]) -> int:
    """Run it with *arguments*; tell of a failure in one line and return an exit status of mount(8)."""
    try:
        code: int = helper.main(list(arguments), PROGRAM, standalone_mode=False) or Exit.OK
    except click.Abort:
        code = Ended(signal.SIGINT).code
    except click.ClickException as error:
        click.echo(f"{PROGRAM}: {one_line(error)}", err=True)
        code = Exit.USAGE
    if code == Exit.OK:
        return 0
    return _USAGE if code == Exit.USAGE else _FAILURE


def _from_spec(spec: str) -> list[str]:
    shown = ["--source", spec]
    if spec == CONFIGURED:
        return shown
    if spec.startswith("unix:"):
        return [*shown, "--endpoints", spec]
    parts = _SPEC.fullmatch(spec)
    if parts is None:
        raise click.UsageError(f"{spec!r} is not HOST:PORT,HOST:PORT…/PREFIX, nor {CONFIGURED}")
    prefix = (parts["prefix"] or "").strip("/")
    return [*shown, "--endpoints", parts["endpoints"], *(["--prefix", f"/{prefix}/"] if prefix else [])]


def _from_options(options: Sequence[str], *, sloppy: bool) -> list[str]:
    arguments = []
    known = _known()
    for option in options:
        name, equals, value = option.partition("=")
        if NOT_OURS.fullmatch(option):
            continue
        if name == "ro":
            raise click.UsageError("there is no read-only mount: name a user of etcd who may only read")
        if name == "remount":
            raise click.UsageError("a mount cannot be changed: unmount, and mount again")
        if name in known:
            arguments += known[name](value if equals else None)
        elif not sloppy:
            raise click.UsageError(f"there is no option {name!r}; there are {', '.join(sorted(known))}")
    return arguments


_Arguments = Callable[[str | None], list[str]]


def _known() -> dict[str, _Arguments]:
    """Return the options that may be named, and how each becomes arguments of `dnpipefs mount`."""
    known: dict[str, _Arguments] = {}
    for option in mount.params:
        if not isinstance(option, click.Option) or FROM_SPEC & {option.opts[-1].lstrip("-")}:
            continue
        for long in (*option.opts, *option.secondary_opts):
            name = long.removeprefix("--").replace("-", "_")
            if long.startswith("--") and name not in ("foreground", "help"):
                known[OTHER_NAMES.get(name, name)] = _flag(long) if option.is_flag else _valued(long)
    return known


def _flag(long: str) -> _Arguments:
    def arguments(value: str | None) -> list[str]:
        if value is not None:
            raise click.UsageError(f"the option {_name(long)} takes no value")
        return [long]

    return arguments


def _valued(long: str) -> _Arguments:
    def arguments(value: str | None) -> list[str]:
        if not value:
            raise click.UsageError(f"the option {_name(long)} needs a value: {_name(long)}=…")
        return [long, value]

    return arguments


def _name(long: str) -> str:
    return long.removeprefix("--").replace("-", "_")


if __name__ == "__main__":
    main()
