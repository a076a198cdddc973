"""groups, seek and redrive."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress

import click

from dnpipefs.api import Dnp, PullStart
from dnpipefs.cli.options import Connection, connection_options, format_option
from dnpipefs.cli.running import run_connected, write_output
from dnpipefs.cli.suggestions import groups_of_topic, topics
from dnpipefs.cli.topics import PlaceType
from dnpipefs.errors import CorruptData, IsADirectory, NotADirectory, NotFound, TopicGone
from dnpipefs.groups import GroupFacts

HEADINGS = ("TOPIC", "GROUP", "LAG", "PENDING", "RETURNED", "AGAIN", "MEMBERS", "OFFSET")


@click.command()
@click.argument("topic", required=False, shell_complete=topics)
@format_option("json: an object a line for each group.")
@connection_options
def groups(connection: Connection, topic: str | None, *, form: str) -> None:
    """List the consumer groups of a topic, or of all topics.

    \b
    LAG        messages that are not acknowledged, the following two included
    PENDING    messages that hosts have claimed for their readers
    RETURNED   messages that came back and wait for another reader
    AGAIN      messages that were delivered again so far
    MEMBERS    hosts that have claimed something
    OFFSET     where in the topic the next claim begins
    """  # noqa: D301 - click's mark is the letter that \b stands for

    async def operation(dnp: Dnp) -> None:
        unreadable: list[str] = []
        if topic is not None:
            found = [(topic, facts) for facts in await dnp.groups(topic)]
        else:
            found, unreadable = await _of_all_topics(dnp)
        await write_output(os.fsencode(_as_json(found) if form == "json" else _as_table(found)))
        if unreadable:
            raise CorruptData(f"what is stored of {', '.join(unreadable)} cannot be read: run dnpipefs fsck")

    run_connected(connection, operation)


@click.command()
@click.argument("topic", shell_complete=topics)
@click.argument("group", shell_complete=groups_of_topic)
@click.argument("place", type=PlaceType(), metavar="first|last|OFFSET|TIMESTAMP")
@connection_options
def seek(connection: Connection, topic: str, group: str, *, place: PullStart) -> None:
    """Let a consumer group go on from another place of its topic.

    What its readers have in hand is void: nobody can acknowledge it any more, and it comes again if it lies
    behind that place.
    """
    run_connected(connection, lambda dnp: dnp.seek(topic, group, place))


@click.command()
@click.argument("topic", shell_complete=topics)
@click.argument("group", shell_complete=groups_of_topic)
@connection_options
def redrive(connection: Connection, topic: str, group: str) -> None:
    """Give a consumer group its dead letters again, as if they had never been delivered.

    They stay in the topic of dead letters, too, which is a log like any other. Prints how many there were.
    """

    async def operation(dnp: Dnp) -> None:
        again, gone, waiting = await dnp.redrive(topic, group)
        missing = f"; {gone} are not in the topic any more" if gone else ""
        more = f"; {waiting} more when these are done: redrive again then" if waiting else ""
        await write_output(os.fsencode(f"{again} messages go to {topic}@{group} again{missing}{more}\n"))

    run_connected(connection, operation)


async def _of_all_topics(dnp: Dnp) -> tuple[list[tuple[str, GroupFacts]], list[str]]:
    """Return all groups, each with its topic, and the topics that cannot be read."""
    found, unreadable = [], []
    for topic in await dnp.overview():
        if topic.stat is None:
            unreadable.append(topic.path)
        elif topic.groups:
            with suppress(NotFound, NotADirectory, IsADirectory, TopicGone):  # removed a moment ago
                found += [(topic.path, facts) for facts in await dnp.groups(topic.path)]
    return found, unreadable


def _as_table(found: Sequence[tuple[str, GroupFacts]]) -> str:
    if not found:
        return ""
    rows = [
        (
            name,
            os.fsdecode(facts.name),
            *map(str, (facts.lag, facts.pending, facts.returned, facts.redeliveries)),
            *map(str, (len(facts.members), facts.offset)),
        )
        for name, facts in found
    ]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    return "".join(
        "  ".join(
            f"{cell:{'<' if column < 2 else '>'}{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        + "\n"
        for row in (HEADINGS, *rows)
    )


def _as_json(found: Sequence[tuple[str, GroupFacts]]) -> str:
    return "".join(json.dumps({"topic": name, **facts.described()}) + "\n" for name, facts in found)
