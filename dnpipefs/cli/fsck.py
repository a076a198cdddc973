"""fsck."""

from __future__ import annotations

import enum
import json
from typing import Any, Final

import click

from dnpipefs.cli import suggestions
from dnpipefs.cli.exits import OwnCode
from dnpipefs.cli.options import Connection, connection_options, format_option
from dnpipefs.cli.running import run_interruptibly, write_output
from dnpipefs.cluster import open_etcd
from dnpipefs.core.findings import Finding
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import parse_path
from dnpipefs.errors import DnpError, UsageError
from dnpipefs.fsck import Checker, Report, Verdict
from dnpipefs.log.clock import SystemClock


class FsckExit(enum.IntEnum):
    """Exit statuses of fsck(8)."""

    SOUND = 0
    MENDED = 1
    LEFT = 4
    OPERATIONAL = 8
    USAGE = 16


EPILOG: Final = """\b
Exit status:
  0      nothing is wrong (notes do not count)
  1      what was wrong is mended
  4      errors or warnings are left
  8      the check could not be made: etcd does not answer, no such topic, nothing below the prefix
  16     the command line has no meaning
  70     a fault of dnpipefs itself
  128+N  ended by signal N
"""


class _Fsck(click.Command):
    """Has exit statuses of its own."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.ClickException as error:
            raise OwnCode(error, FsckExit.USAGE) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, UsageError) as error:
            raise OwnCode(error, FsckExit.USAGE) from error
        except DnpError as error:
            raise OwnCode(error, FsckExit.OPERATIONAL) from error


@click.command(cls=_Fsck, epilog=EPILOG)
@click.argument("topics", metavar="[TOPIC]...", nargs=-1, shell_complete=suggestions.topics)
@click.option("--repair", is_flag=True, help="Mend what can be mended without losing a message.")
@format_option("json: an object a line for each finding, and one with the sums at the end.")
@connection_options
def fsck(connection: Connection, topics: tuple[str, ...], *, repair: bool, form: str) -> None:
    """Check what is stored: all of it, or only the topics named and those below directories named.

    Reads everything once, as it was at one moment, so the cluster may be in use. Changes nothing without
    --repair.
    """
    connection.start_logging()
    paths = [parse_path(topic) for topic in topics]
    settings = connection.settings()
    render, sum_up = (_as_json, _sum_as_json) if form == "json" else (_as_text, _sum_as_text)
    report = Report()

    async def tell(verdict: Verdict) -> None:
        await write_output(render(verdict).encode() + b"\n")

    async def check() -> None:
        nonlocal report
        async with open_etcd(settings) as (client, _, _):
            keys, clock = KeySchema(settings.prefix), SystemClock()
            checker = Checker(client, keys, clock, tell, repair=repair, op_timeout=settings.op_timeout)
            report = await checker.run(paths)
        await write_output(sum_up(report).encode() + b"\n")

    run_interruptibly(check)
    click.get_current_context().exit(_status(report))


def _status(report: Report) -> FsckExit:
    if report.errors or report.warnings:
        return FsckExit.LEFT
    return FsckExit.MENDED if report.mended else FsckExit.SOUND


def _as_text(verdict: Verdict) -> str:
    finding, rule = verdict.finding, verdict.finding.rule
    where = f" in topic {_name(verdict)}" if finding.topic is not None else ""
    return (
        f"{rule.severity.value} {rule.code}: {rule.title}{where}: {_text(finding.key)}: {finding.what} "
        f"[{_outcome(verdict)}]"
    )


def _name(verdict: Verdict) -> str:
    number = f"{verdict.finding.topic:x}"
    return f"{verdict.path} (id {number})" if verdict.path is not None else f"id {number}"


def _outcome(verdict: Verdict) -> str:
    repair = verdict.finding.repair
    if repair is None:
        return "not to be mended"
    return f"mended: {repair.what}" if verdict.mended else f"--repair: {repair.what}"


def _sum_as_text(report: Report) -> str:
    return (
        f"{report.topics} topics, {report.directories} directories, {report.bytes} bytes read: "
        f"{report.errors} errors, {report.warnings} warnings, {report.notes} notes; {report.mended} mended"
    )


def _as_json(verdict: Verdict) -> str:
    finding: Finding = verdict.finding
    return json.dumps(
        {
            "rule": finding.rule.code,
            "name": finding.rule.title,
            "severity": finding.rule.severity.value,
            "topic": verdict.path,
            "id": f"{finding.topic:x}" if finding.topic is not None else None,
            "key": _text(finding.key),
            "what": finding.what,
            "lost": list(finding.lost) if finding.lost is not None else None,
            "repair": finding.repair.what if finding.repair is not None else None,
            "mended": verdict.mended,
        }
    )


def _sum_as_json(report: Report) -> str:
    return json.dumps(
        {
            "topics": report.topics,
            "directories": report.directories,
            "bytes": report.bytes,
            "errors": report.errors,
            "warnings": report.warnings,
            "notes": report.notes,
            "mended": report.mended,
        }
    )


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
