"""top."""

from __future__ import annotations

import logging
import math
import os

import click

from dnpipefs.api import Dnp
from dnpipefs.cli.options import Connection, connection_options, format_option
from dnpipefs.cli.running import run_connected, write_output
from dnpipefs.top.report import as_json, as_text
from dnpipefs.top.tables import SORTABLE, choices
from dnpipefs.top.watcher import SHORTEST_INTERVAL_S, look_twice


def _check_interval(_ctx: click.Context, _option: click.Parameter, value: float) -> float:
    if not (value == 0 or SHORTEST_INTERVAL_S <= value < math.inf):
        raise click.BadParameter(f"a number of seconds from {SHORTEST_INTERVAL_S:g} on is needed")
    return value


@click.command()
@click.option(
    "--interval",
    type=float,
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    callback=_check_interval,
    help="How often to look; with --once the time rates are measured over, 0 for none.",
)
@click.option("--once", is_flag=True, help="Print what there is, once: for scripts.")
@format_option("With --once. json: one object with everything, see docs/top.md.")
@click.option(
    "--sort",
    type=click.Choice(SORTABLE),
    metavar="COLUMN",
    help=f"What to sort by, where a table has it: {', '.join(SORTABLE)}.  [default: rate, lag, else name]",
)
@click.option("--reverse", is_flag=True, help="Sort the other way round.")
@click.option(
    "--filter",
    "matching",
    default="",
    metavar="TEXT|PATTERN",
    help="Show only topics and groups whose names have that in them, or are like a pattern with * ? [.",
)
@connection_options
def top(
    connection: Connection,
    *,
    interval: float,
    once: bool,
    form: str,
    sort: str | None,
    reverse: bool,
    matching: str,
) -> None:
    """Watch topics, consumer groups, hosts and etcd in the terminal.

    ? shows the keys, q ends it. With --once print it, with rates measured over --interval.
    """
    chosen = choices(matching, sort, reverse=reverse)
    if once:

        async def tell(dnp: Dnp) -> None:
            picture = await look_twice(dnp, interval)
            render = as_json if form == "json" else as_text
            await write_output(render(picture, chosen).encode())

        run_connected(connection, tell)
        return
    if form != "text":
        raise click.UsageError("--format needs --once")
    if not interval:
        raise click.UsageError("--interval 0 needs --once")
    if not (os.isatty(0) and os.isatty(1)) or os.environ.get("TERM", "dumb") == "dumb":
        raise click.UsageError("this is no terminal that can be drawn on: use --once")
    from dnpipefs.top.screen import LastWarning, Screen  # what draws takes time to import

    warning = LastWarning()
    if os.isatty(2):
        logging.basicConfig(level=(connection.log_level or "warning").upper(), handlers=[warning])

    async def show(dnp: Dnp) -> None:
        await Screen(dnp, chosen, interval_s=interval, warning=warning).run()

    run_connected(connection, show)
