"""config-topic."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import click

from dnpipefs.api import Config, Dnp
from dnpipefs.cli.options import Connection, connection_options, format_option
from dnpipefs.cli.running import run_connected, write_output
from dnpipefs.cli.suggestions import changes_of_settings, names_of_settings, topics
from dnpipefs.core.config import READ_ONLY, SETTINGS, format_id, format_value


@click.command("config-topic")
@click.argument("topic", shell_complete=topics)
@click.argument("changes", metavar="[NAME=VALUE]...", nargs=-1, shell_complete=changes_of_settings)
@click.option(
    "--unset",
    metavar="NAME",
    multiple=True,
    shell_complete=names_of_settings,
    help="Take a setting back to its default.",
)
@format_option("json: an object, with sizes in bytes, ages in nanoseconds and null for no limit.")
@connection_options
def config_topic(
    connection: Connection, topic: str, changes: Sequence[str], *, unset: Sequence[str], form: str
) -> None:
    """Show or change the settings of a topic, or those that a directory gives to what is created in it.

    Without changes all settings are printed, and where the topic stands. With changes nothing is printed:
    all of them are made at once or, if one cannot be, none.

    \b
    framing=line|write               what a message is: a line, or what one write(2) brings
    retention.bytes=SIZE|none        keep at least so much: 10MiB, 500KB, 4096
    retention.age=AGE|none           keep at least what is younger: 30s, 15m, 12h, 7d, 2w
    retention.messages=NUMBER|none   keep at least so many
    max_message=SIZE                 refuse larger messages: 1 to 16MiB
    compression=zstd|none            of what is stored, where it helps
    start=first|last                 where a new consumer group begins
    ack=exit-status|next-read|delivery  what tells that a reader of a group is done
    batch=NUMBER                     messages of a group that one read returns
    visibility_timeout=TIME|none     give a message that a reader has for so long to another one
    max_deliveries=NUMBER|none       then a message is a dead letter
    dead_letter=TOPIC|none           where those go; none: to TOPIC.dead beside the topic
    """  # noqa: D301 - click's mark is the letter that \b stands for
    wanted: dict[str, str | None] = dict.fromkeys(unset)
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise click.UsageError(f"{change!r} is not NAME=VALUE")
        if name in wanted:
            raise click.UsageError(f"{name} is given more than once")
        wanted[name] = value

    async def operation(dnp: Dnp) -> None:
        if wanted:
            await dnp.configure(topic, wanted)
        else:
            config = await dnp.config(topic)
            await write_output(os.fsencode(_as_json(config) if form == "json" else _as_text(config)))

    run_connected(connection, operation)


def _as_text(config: Config) -> str:
    rows = [
        (name, format_value(name, config.settings), "(default)" if name in _defaults(config) else "")
        for name in SETTINGS
    ]
    if config.facts is None:
        rows.append(("id", format_id(config.id), "(read-only)"))
    else:
        rows += [(name, config.facts.text(name), "(read-only)") for name in READ_ONLY]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "".join(
        f"{name:<{first}}  {value:<{second}}  {note}".rstrip() + "\n" for name, value, note in rows
    )


def _as_json(config: Config) -> str:
    shown: dict[str, object] = {name: found.of(config.settings) for name, found in SETTINGS.items()}
    shown["defaults"] = _defaults(config)
    if config.facts is not None:
        shown |= config.facts._asdict()
    shown["id"] = format_id(config.id)
    return json.dumps(shown) + "\n"


def _defaults(config: Config) -> list[str]:
    return [name for name, found in SETTINGS.items() if found.of(config.settings) == found.default]
