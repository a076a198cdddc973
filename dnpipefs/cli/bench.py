"""bench."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import click
import trio

from dnpipefs.bench.measurements import Measurement, Scale
from dnpipefs.bench.report import Report, as_json, as_table
from dnpipefs.bench.runner import MEASUREMENTS, run_bench
from dnpipefs.cli.configuration import Kind
from dnpipefs.cli.exits import Ended, Exit
from dnpipefs.cli.options import Connection, connection_options, origins

_BY_ID: Final = {measurement.id: measurement for measurement in MEASUREMENTS}
_USUAL: Final = Scale()
_LIST: Final = "\n".join(f"  {measurement.id}  {measurement.title}" for measurement in MEASUREMENTS)


def _parse_only(_ctx: click.Context, _option: click.Parameter, value: str | None) -> Sequence[Measurement]:
    if value is None:
        return MEASUREMENTS
    names = [name.strip().upper() for name in value.split(",")]
    unknown = [name for name in names if name not in _BY_ID]
    if unknown:
        raise click.BadParameter(f"there is no {', '.join(unknown)}; there are {', '.join(_BY_ID)}")
    return [_BY_ID[name] for name in names]


@click.command(epilog=f"\b\nMeasurements:\n{_LIST}")
@click.option(
    "--only", "measurements", metavar="NAME,…", callback=_parse_only, help="Measure these.  [default: all]"
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=_USUAL.rounds,
    show_default=True,
    help="How often the sides take turns; the median counts.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=_USUAL.seconds,
    show_default=True,
    help="How long each side is measured in each round.",
)
@click.option(
    "--writers",
    type=click.IntRange(min=1),
    default=_USUAL.writers,
    show_default=True,
    help="Concurrent writers of P2.",
)
@click.option(
    "--hosts", type=click.IntRange(min=1), default=_USUAL.hosts, show_default=True, help="Hosts of P6."
)
@click.option(
    "--fill",
    "messages",
    type=click.IntRange(min=1),
    default=_USUAL.messages,
    show_default=True,
    metavar="N",
    help="Messages of 100 bytes in the long topic of P7.",
)
@click.option(
    "--topics",
    type=click.IntRange(min=1),
    default=_USUAL.topics,
    show_default=True,
    metavar="N",
    help="Topics in the directory that P7 lists.",
)
@click.option(
    "--readers",
    type=click.IntRange(min=1),
    default=_USUAL.readers,
    show_default=True,
    metavar="N",
    help="Who wait for messages in P7.",
)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@connection_options
def bench(
    connection: Connection,
    measurements: Sequence[Measurement],
    *,
    rounds: int,
    seconds: float,
    writers: int,
    hosts: int,
    messages: int,
    topics: int,
    readers: int,
    form: str,
) -> None:
    """Measure against raw etcd, on mounts of its own.

    An etcd is started for it in a temporary directory, unless one of the options --endpoints, --discovery-srv
    and --data-dir names another (not a file or a variable: nobody burdens a cluster by accident); in that
    case the keys of the benchmark are its own and removed in the end. Exit status 1: a bar is not met.
    """
    connection.start_logging()
    found = origins(click.get_current_context())
    if Kind.FLAG not in (found["endpoints"].kind, found["discovery_srv"].kind):
        connection = replace(connection, endpoints=(), discovery_srv=None)
    named = bool(connection.endpoints or connection.discovery_srv)
    throwaway = not named and found["data_dir"].kind is not Kind.FLAG
    report: Report | None = None
    ended: Ended | None = None

    async def run() -> None:
        nonlocal report, ended
        async with trio.open_nursery() as nursery:

            async def end_on_signal() -> None:
                nonlocal ended
                with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                    async for number in signals:
                        ended = Ended(number)
                        nursery.cancel_scope.cancel()

            nursery.start_soon(end_on_signal)
            report = await run_bench(
                connection.settings(),
                measurements,
                Scale(rounds, seconds, writers, hosts, messages, topics, readers),
                throwaway=throwaway,
                progress=lambda line: click.echo(line, err=True),
            )
            nursery.cancel_scope.cancel()

    trio.run(run)
    if report is None:
        raise ended or Ended(signal.SIGINT)
    click.echo(as_json(report) if form == "json" else as_table(report))
    if not report.passed:
        raise click.exceptions.Exit(Exit.FAILED)
