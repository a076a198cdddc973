"""The program: its commands, and what becomes of their failures."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final, NoReturn

import click

from dnpipefs.cli import streams
from dnpipefs.cli.exits import HELP, Ended, Exit, exit_code, one_line
from dnpipefs.cluster import VERSION

PROGRAM: Final = "dnpipefs"
COMPLETING: Final = "_DNPIPEFS_COMPLETE"
"""The environment variable by which a shell asks, through click, for completions."""
COMMANDS: Final[Mapping[str, str]] = {
    "mount": "dnpipefs.cli.mounts",
    "umount": "dnpipefs.cli.mounts",
    "status": "dnpipefs.cli.status",
    "push": "dnpipefs.cli.topics",
    "pull": "dnpipefs.cli.topics",
    "reset": "dnpipefs.cli.topics",
    "ls": "dnpipefs.cli.listing",
    "config-topic": "dnpipefs.cli.settings",
    "config": "dnpipefs.cli.config",
    "groups": "dnpipefs.cli.groups",
    "seek": "dnpipefs.cli.groups",
    "redrive": "dnpipefs.cli.groups",
    "top": "dnpipefs.cli.top",
    "doctor": "dnpipefs.cli.doctor",
    "fsck": "dnpipefs.cli.fsck",
    "bench": "dnpipefs.cli.bench",
    "completion": "dnpipefs.cli.completion",
}
"""The modules that hold the commands, as functions of their names (`_` for `-`), in the help text's order."""

logger: Final = logging.getLogger(__name__)


class _Group(click.Group):
    """Imports what is asked for: a push in a shell loop need not wait for all that a mount is made of."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(module), cmd_name.replace("-", "_"))
        return command


@click.group(
    cls=_Group,
    epilog=HELP,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, prog_name=PROGRAM)
def program() -> None:
    """Distributed named pipes: every topic of the cluster is a file, on etcd.

    `dnpipefs mount` makes the topics files; push, pull, reset, ls and config-topic do
    the same without a mount.
    """


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    streams.prepare()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; tell of a failure in one line and return the exit status."""
    try:
        if COMPLETING in os.environ:
            import_module("dnpipefs.cli.completion").register()
        # Not standalone: click would end the process itself, in its own words.
        return (
            program.main(list(arguments), PROGRAM, complete_var=COMPLETING, standalone_mode=False) or Exit.OK
        )
    except (click.Abort, KeyboardInterrupt):
        return Ended(signal.SIGINT).code
    except Ended as ended:
        return ended.code
    except Exception as error:  # the border: a line and an exit code
        logger.debug("the command failed", exc_info=error)
        click.echo(f"{PROGRAM}: {one_line(error)}", err=True)
        return exit_code(error)
