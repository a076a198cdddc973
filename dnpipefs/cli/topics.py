"""push, pull and reset."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import aclosing
from itertools import islice
from typing import Final

import click
from click.shell_completion import CompletionItem

from dnpipefs.api import Dnp, PullStart
from dnpipefs.cli.options import Connection, connection_options
from dnpipefs.cli.running import read_input, run_connected, write_output
from dnpipefs.cli.suggestions import groups_of_topic, topics
from dnpipefs.cli.workers import Work, work
from dnpipefs.core.config import Framing
from dnpipefs.core.places import parse_place, timestamp
from dnpipefs.errors import InvalidArgument
from dnpipefs.log.reader import Message

MESSAGES_AT_ONCE: Final = 4096
"""How many messages are made ready to be written together."""


@click.command()
@click.argument("topic", shell_complete=topics)
@click.argument("messages", metavar="[MSG]...", nargs=-1)
@connection_options
def push(connection: Connection, topic: str, messages: tuple[str, ...]) -> None:
    """Push messages to a topic, which is created if it does not exist.

    Each MSG is one message, with a newline added as echo does. Without MSG each line of standard input is
    one, pushed as it comes, also to a topic with framing "write". When this command returns with success,
    everything is stored.
    """

    async def operation(dnp: Dnp) -> None:
        if messages:
            await dnp.push(topic, *messages)
            return
        async with dnp.writer(topic, framing=Framing.LINE) as writer, aclosing(read_input()) as blocks:
            async for block in blocks:
                await writer.write(block)

    run_connected(connection, operation)


class PlaceType(click.ParamType[PullStart]):
    """Where to begin, from what users write."""

    name = "place"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> PullStart:
        """Parse."""
        try:
            return parse_place(str(value))
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Offer the places that are words."""
        return [CompletionItem(word) for word in ("first", "last") if word.startswith(incomplete)]


@click.command()
@click.argument("topic", shell_complete=topics)
@click.option("-f", "--follow", is_flag=True, help="Go on with whatever comes, until interrupted.")
@click.option(
    "--from",
    "start",
    type=PlaceType(),
    default="first",
    show_default=True,
    metavar="first|last|OFFSET|TIMESTAMP",
    help="Where to begin: at the first message, at the present end, at the first message at or behind a "
    "byte offset, or at the first one pushed at a time (ISO 8601, local time unless it says otherwise) "
    "or later.",
)
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after that many messages.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["raw", "json"]),
    default="raw",
    show_default=True,
    help="raw: the bytes as they are. json: an object a line, with offset, time, and data, or data_base64 "
    "if it is not UTF-8.",
)
@click.option(
    "-g",
    "--group",
    metavar="NAME",
    shell_complete=groups_of_topic,
    help="Share the messages with all readers of a group.",
)
@click.option(
    "--exec",
    "command",
    metavar="CMD",
    help="With --group: run a shell command for each message, with the message as standard input.",
)
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 1000), default=1, help="How many commands to run at once."
)
@click.option("--no-wait", is_flag=True, help="With --group: end when there is no message left.")
@connection_options
def pull(
    connection: Connection,
    topic: str,
    *,
    start: PullStart,
    follow: bool,
    count: int | None,
    form: str,
    group: str | None,
    command: str | None,
    jobs: int,
    no_wait: bool,
) -> None:
    """Print the messages of a topic. They stay there: pulling removes nothing.

    With --group share them with all who read the group, on all hosts: each message goes to one of them, and
    is acknowledged when it is printed, or when CMD ends with status 0. Otherwise it goes to another one.
    """
    if group is not None:
        if follow or start != "first":
            raise click.UsageError("--group goes on where the group is, and waits: see 'dnpipefs seek'")
        work(connection, Work(topic, group, command, jobs, count, wait=not no_wait, render=_RENDER[form]))
        return
    if command is not None or jobs != 1 or no_wait:
        raise click.UsageError("--exec, --jobs and --no-wait need --group")
    render = _RENDER[form]

    async def operation(dnp: Dnp) -> None:
        left = count
        async with aclosing(dnp.pull_pages(topic, start=start, follow=follow)) as pages:
            async for page in pages:
                while block := list(islice(page, _at_once(left))):
                    await write_output(b"".join([render(message) for message in block]))
                    if left is not None and not (left := left - len(block)):
                        return

    run_connected(connection, operation, while_output_is_read=True)


@click.command()
@click.argument("topic", shell_complete=topics)
@connection_options
def reset(connection: Connection, topic: str) -> None:
    """Remove all messages of a topic."""
    run_connected(connection, lambda dnp: dnp.reset(topic))


def _at_once(left: int | None) -> int:
    return MESSAGES_AT_ONCE if left is None else min(left, MESSAGES_AT_ONCE)


def _as_it_is(message: Message) -> bytes:
    return message.data


def _as_json(message: Message) -> bytes:
    record: dict[str, object] = {"offset": message.offset, "time": timestamp(message.time_ns)}
    try:
        record["data"] = message.data.decode()
    except UnicodeDecodeError:
        record["data_base64"] = base64.b64encode(message.data).decode()
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


_RENDER: Final[dict[str, Callable[[Message], bytes]]] = {"raw": _as_it_is, "json": _as_json}
