"""What `pull --group` does: print messages of a group, or run a command for each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import click
import trio

from dnpipefs.api import Dnp
from dnpipefs.cli.options import Connection
from dnpipefs.cli.running import run_connected, write_output
from dnpipefs.consumer import Consumer, Job
from dnpipefs.log.reader import Message

AFTER_FAILURE_S: Final = 1.0
"""Pause of a worker whose command has failed: what fails at once would be tried again at once."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked for."""

    topic: str
    group: str
    command: str | None
    """A shell command for each message; None to print them."""
    jobs: int
    """How many commands run at once."""
    count: int | None
    """After how many messages to end."""
    wait: bool
    """Wait for messages when there are none."""
    render: Callable[[Message], bytes]


def work(connection: Connection, wanted: Work) -> None:
    """Print messages or run commands, until there is no more, or for ever."""

    async def operation(dnp: Dnp) -> None:
        async with dnp.consumer(wanted.topic, wanted.group) as consumer:
            await _Workers(consumer, wanted).run()
            await consumer.settled()

    run_connected(connection, operation, while_output_is_read=wanted.command is None)


class _Workers:
    def __init__(self, consumer: Consumer, wanted: Work) -> None:
        self._consumer: Final = consumer
        self._wanted: Final = wanted
        self._left: int | None = wanted.count

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(self._wanted.jobs):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while self._left is None or self._left > 0:
            if self._left is not None:
                self._left -= 1
            job = await (self._consumer.take() if self._wanted.wait else self._consumer.take_now())
            if job is None:
                return
            await self._do(job)

    async def _do(self, job: Job) -> None:
        if self._wanted.command is None:
            await write_output(self._wanted.render(job.message))
        else:
            # Not through a pipe: of one that is cut, when this process is killed, the command sees an end
            # of file as of a whole message.
            with os.fdopen(os.memfd_create("message"), "w+b") as message:
                message.write(self._wanted.render(job.message))
                message.seek(0)
                done = await trio.run_process(
                    ["/bin/sh", "-c", self._wanted.command], stdin=message.fileno(), check=False
                )
            if done.returncode:
                self._consumer.give_back(job)
                click.echo(f"dnpipefs: {_ended(done)}: offset {job.message.offset} goes back", err=True)
                await trio.sleep(AFTER_FAILURE_S)
                return
        self._consumer.acknowledge(job)


def _ended(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"the command was ended by signal {-done.returncode}"
    return f"the command ended with status {done.returncode}"
