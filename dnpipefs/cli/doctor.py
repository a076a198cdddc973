"""doctor."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import Final

import click

from dnpipefs.cli.exits import Exit
from dnpipefs.cli.options import Connection, connection_options, format_option
from dnpipefs.cli.running import run_interruptibly, write_output
from dnpipefs.cluster import Settings
from dnpipefs.doctor import Finding, Level, counted, examine, judge, repair
from dnpipefs.errors import SetupError
from dnpipefs.etcd import EtcdError
from dnpipefs.etcd.server import embedded_server
from dnpipefs.top.tables import printable

logger: Final = logging.getLogger(__name__)

_ORDER: Final = (Level.PROBLEM, Level.WARNING, Level.NOTE, Level.OK)


@click.command()
@click.option(
    "--fix",
    is_flag=True,
    help="Make room where that is safe: compact, defragment one member after the other (each answers "
    "nobody for 6 to 11 seconds for each GB in use), disarm the NOSPACE alarm.",
)
@format_option()
@connection_options
def doctor(connection: Connection, *, fix: bool, form: str) -> None:
    """Say what is wrong with the cluster, and what to do about it.

    Looks at each member of etcd and at the prefix; writes nothing but a key of its own, which it removes.
    Exit status: 0 no problem (there may be warnings), 1 problems found, or etcd not to be used.
    """
    connection.start_logging()
    settings = connection.settings()
    findings: list[Finding] = []
    fixed: list[str] = []

    async def operation() -> None:
        async with _endpoints(settings) as endpoints:
            embedded = settings.embedded
            facts = await examine(settings, endpoints, embedded=embedded)
            failures: list[Finding] = []
            if fix:
                try:
                    async with aclosing(repair(settings, facts)) as steps:
                        async for step in steps:
                            fixed.append(step)  # noqa: PERF401 - those before a failure are told, too
                except EtcdError as error:
                    failures.append(Finding(Level.PROBLEM, "fix", str(error), "as it says, then do it again"))
                facts = await examine(settings, endpoints, embedded=embedded)
            findings.extend(sorted(failures + judge(facts), key=lambda finding: _ORDER.index(finding.level)))
        render = _as_json if form == "json" else _as_text
        await write_output(render(findings, fixed).encode())

    run_interruptibly(operation)
    if any(finding.level is Level.PROBLEM for finding in findings):
        raise click.exceptions.Exit(Exit.FAILED)


@asynccontextmanager
async def _endpoints(settings: Settings) -> AsyncIterator[Sequence[str]]:
    """Give the addresses to look at: those named, or found, or that of the etcd of our own, running."""
    if not settings.embedded:
        yield settings.endpoints if settings.discovery is None else await settings.discovery.endpoints()
        return
    if not (settings.data_dir / "etcd").exists():
        raise SetupError(
            f"there is no etcd in {settings.data_dir} yet: name one with --endpoints or --data-dir"
        )
    async with embedded_server(settings.data_dir, quota_bytes=settings.quota, log=logger) as server:
        yield [server.endpoint]


def _as_text(findings: Sequence[Finding], fixed: Sequence[str]) -> str:
    lines = [f"{'fixed':8} {step}" for step in fixed]
    for finding in findings:
        lines.append(f"{finding.level.value:8} {printable(f'{finding.subject}: {finding.meaning}')}")
        if finding.advice:
            lines.append(f"{'':8} -> {finding.advice}")
    levels = [finding.level for finding in findings]
    lines.append(", ".join(counted(levels.count(level), level.value) for level in _ORDER[:3]))
    return "\n".join(lines) + "\n"


def _as_json(findings: Sequence[Finding], fixed: Sequence[str]) -> str:
    rows = [{**asdict(finding), "level": finding.level.value} for finding in findings]
    return json.dumps({"fixed": list(fixed), "findings": rows}) + "\n"
