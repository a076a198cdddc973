"""ls."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from collections.abc import Callable, Sequence

import click

from dnpipefs.api import Dnp, Stat
from dnpipefs.cli.options import Connection, connection_options
from dnpipefs.cli.running import run_connected, write_output
from dnpipefs.cli.suggestions import topics


@click.command()
@click.option("-l", "long", is_flag=True, help="Show mode, owner, group, size and time of the last push.")
@click.argument("path", default="", shell_complete=topics)
@connection_options
def ls(connection: Connection, path: str, *, long: bool) -> None:
    """List topics, and directories with a slash after the name."""

    async def operation(dnp: Dnp) -> None:
        entries = await dnp.ls(path, sizes=long)
        lines = _long(entries) if long else [_name(entry) for entry in entries]
        await write_output(b"".join(os.fsencode(line) + b"\n" for line in lines))

    run_connected(connection, operation)


def _long(entries: Sequence[Stat]) -> list[str]:
    rows = [
        (
            stat.filemode((stat.S_IFDIR if entry.is_directory else stat.S_IFREG) | entry.mode),
            _named(lambda uid: pwd.getpwuid(uid).pw_name, entry.uid),
            _named(lambda gid: grp.getgrgid(gid).gr_name, entry.gid),
            str(entry.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime_ns // 10**9)),
            _name(entry),
        )
        for entry in entries
    ]
    owner, group, size = (max((len(row[column]) for row in rows), default=0) for column in (1, 2, 3))
    return [
        f"{mode} {user:<{owner}} {team:<{group}} {length:>{size}} {when} {name}"
        for mode, user, team, length, when, name in rows
    ]


def _named(look_up: Callable[[int], str], number: int) -> str:
    try:
        return look_up(number)
    except KeyError:  # known on another host only
        return str(number)


def _name(entry: Stat) -> str:
    name = entry.name
    if os.isatty(1):  # as ls does: a name is not to play with the terminal
        name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name + "/" if entry.is_directory else name
