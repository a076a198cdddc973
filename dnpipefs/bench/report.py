"""The report of a run, as a table for people and as JSON for programs. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dnpipefs.bench.figures import Bar, Quantity, Result, Spread, Verdict

_HEADINGS: Final = ("", "what", "dnpipefs", "raw etcd", "ratio", "in the rounds", "bar", "")


@dataclass(frozen=True, slots=True)
class Report:
    """All that one run found."""

    machine: Mapping[str, str]
    """What it ran on and how, in words."""
    results: Sequence[Result]
    cpu: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Microseconds of CPU an operation: measurement, arm, role of process."""

    @property
    def passed(self) -> bool:
        """Whether every binding bar is met."""
        return not any(result.verdict is Verdict.FAIL for result in self.results)


def as_table(report: Report) -> str:
    """Return the report in lines for a terminal."""
    rows = [_HEADINGS, *(_row(result) for result in report.results)]
    cpu = [
        (measurement, arm, *(f"{role} {used:.0f}" for role, used in roles.items()))
        for measurement, arms in report.cpu.items()
        for arm, roles in arms.items()
    ]
    return "\n".join(
        [
            *(f"{name}: {value}" for name, value in report.machine.items()),
            "",
            *_aligned(rows),
            "",
            "CPU, microseconds an operation:",
            *_aligned(cpu),
        ]
    )


def as_json(report: Report) -> str:
    """Return the report as one JSON document."""
    document = {
        "machine": dict(report.machine),
        "passed": report.passed,
        "results": [_record(result) for result in report.results],
        "cpu_us_per_operation": report.cpu,
    }
    return json.dumps(document, indent=2)


def _row(result: Result) -> tuple[str, ...]:
    line, ratio = result.line, result.ratio
    return (
        result.measurement,
        line.what,
        _figure(result.figure.median, line.quantity),
        _figure(result.raw.median, line.quantity) if result.raw is not None else "",
        f"{ratio.median:.2f}" if ratio is not None else "",
        f"{ratio.lowest:.2f}-{ratio.highest:.2f}" if ratio is not None else "",
        _bar(line.bar, line.quantity) if line.bar is not None else "",
        result.verdict.value,
    )


def _record(result: Result) -> dict[str, Any]:
    line, bar = result.line, result.line.bar
    return {
        "id": result.measurement,
        "what": line.what,
        "unit": line.quantity.value,
        "dnpipefs": _spread(result.figure),
        "raw": _spread(result.raw),
        "ratio": _spread(result.ratio),
        "bar": None
        if bar is None
        else {
            "limit": bar.limit,
            "kind": "at most" if bar.at_most else "at least",
            "of": "figure" if bar.absolute else "ratio",
            "binding": bar.binding,
        },
        "verdict": result.verdict.value or None,
    }


def _spread(spread: Spread | None) -> dict[str, float | None] | None:
    if spread is None:
        return None
    values = {"median": spread.median, "lowest": spread.lowest, "highest": spread.highest}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _figure(value: float, quantity: Quantity) -> str:
    match quantity:
        case Quantity.P50 | Quantity.P99:
            return f"{value:.2f} ms"
        case Quantity.RATE:
            return f"{value:,.0f} /s"
        case Quantity.THROUGHPUT:
            return f"{value:,.0f} MB/s"
        case Quantity.SECONDS:
            return f"{value:.2f} s"
        case Quantity.MEMORY:
            return f"{value:,.0f} MB"
        case Quantity.SHARE:
            return f"{value:.1f} %"


def _bar(bar: Bar, quantity: Quantity) -> str:
    sign = "≤" if bar.at_most else "≥"
    limit = _figure(bar.limit, quantity) if bar.absolute else f"{bar.limit:g}"
    return f"{sign} {limit}" if bar.binding else f"({sign} {limit})"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    columns = max((len(row) for row in rows), default=0)
    full = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in full) for column in range(columns)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in full
    ]
