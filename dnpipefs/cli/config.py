"""config: which options are in force, and where each comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dnpipefs.cli.configuration import Origin, configuration
from dnpipefs.cli.options import (
    CONNECTION_OPTIONS,
    MOUNT_OPTIONS,
    Connection,
    connection_options,
    format_option,
    mount_options,
    origins,
)
from dnpipefs.core.addresses import ListenAddress

HIDDEN = "(hidden)"


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    value: Any
    """As JSON has it; None if nothing is set."""
    origin: Origin


@click.command()
@format_option("json: an object, with sizes in bytes and null for what is not set.")
@mount_options
@connection_options
def config(connection: Connection, *, form: str, **of_mounts: Any) -> None:
    """Show the options that are in force, and where each comes from; the password is not shown.

    What counts is the command line, else a variable DNPIPEFS_..., else a key of /etc/dnpipefs.toml,
    else the default. Asks nobody: whether etcd is there says `dnpipefs doctor`.
    """
    context = click.get_current_context()
    found = origins(context)
    values = {option: getattr(connection, option.parameter) for option in CONNECTION_OPTIONS}
    values |= {option: of_mounts[option.parameter] for option in MOUNT_OPTIONS}
    rows = [_Row(option.key, _plain(value), found[option.parameter]) for option, value in values.items()]
    if connection.password is not None:
        rows.append(_Row("password", HIDDEN, found["password"]))
    click.echo(_as_json(rows, configuration(context).files) if form == "json" else "\n".join(_as_text(rows)))


def _plain(value: Any) -> Any:
    if isinstance(value, (Path, ListenAddress)):
        return str(value)
    return (list(value) or None) if isinstance(value, tuple) else value


def _as_text(rows: list[_Row]) -> Iterator[str]:
    cells = [(row.key, _shown(row.value), row.origin.where or "default") for row in rows]
    first, second = (max(len(cell[column]) for cell in cells) for column in (0, 1))
    for key, value, where in cells:
        yield f"{key:<{first}}  {value:<{second}}  {where}"


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list():
            return ",".join(value)
    return str(value)


def _as_json(rows: list[_Row], files: tuple[Path, ...]) -> str:
    return json.dumps(
        {
            "files": [str(path) for path in files],
            "options": {
                row.key: {
                    "value": row.value,
                    "source": row.origin.kind.name.lower(),
                    "where": row.origin.where or None,
                }
                for row in rows
            },
        }
    )
