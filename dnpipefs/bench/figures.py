"""Samples into figures: percentiles, medians over rounds, ratios, verdicts. Pure.

A *round* runs every *arm* of a measurement once, one after another: the file system's and raw etcd's.
A ratio is taken within each round, so that a machine that is slow for a while is slow for both, and
the median over the rounds is what counts; lowest and highest show how far to trust it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """What one arm did in one round."""

    operations: int
    seconds: float
    latencies_ns: Sequence[int] = ()
    """Of the single operations, where they were taken."""
    bytes: int = 0
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    """CPU time used meanwhile by each role of process of the benchmark."""
    others_cpus: float = 0.0
    """How many CPUs everything else on the machine kept busy meanwhile."""
    value: float = math.nan
    """What was measured besides: bytes of memory, or a share of a CPU."""


class Quantity(enum.Enum):
    """What a figure is, in units a reader has a feeling for."""

    P50 = "p50 ms"
    P99 = "p99 ms"
    RATE = "/s"
    THROUGHPUT = "MB/s"
    SECONDS = "s"
    MEMORY = "MB"
    SHARE = "% of a CPU"

    def of(self, sample: Sample) -> float:
        """Return the figure of a sample; NaN if there is nothing in it to tell from."""
        match self:
            case Quantity.P50:
                return percentile(sample.latencies_ns, 0.50) / 1e6
            case Quantity.P99:
                return percentile(sample.latencies_ns, 0.99) / 1e6
            case Quantity.RATE:
                return sample.operations / sample.seconds if sample.seconds else math.nan
            case Quantity.THROUGHPUT:
                return sample.bytes / sample.seconds / 1e6 if sample.seconds else math.nan
            case Quantity.SECONDS:
                return sample.seconds
            case Quantity.MEMORY:
                return sample.value / 1e6
            case Quantity.SHARE:
                return sample.value * 100


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure is held against: a ratio to raw etcd unless `absolute` says the figure itself."""

    limit: float
    at_most: bool
    absolute: bool = False
    binding: bool = True
    """False: shown, but not yet promised by this release."""

    def met(self, value: float) -> bool:
        """Tell whether *value* is on the right side; NaN never is."""
        return value <= self.limit if self.at_most else value >= self.limit


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the report: which figure of which arm, against which."""

    what: str
    quantity: Quantity
    arm: str
    against: str | None = None
    bar: Bar | None = None


class Verdict(enum.Enum):
    """How a line stands to its bar."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    BELOW = "below"
    """A bar that is not binding yet is not reached."""
    NONE = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over the rounds."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Result:
    """A line with its figures."""

    measurement: str
    line: Line
    figure: Spread
    raw: Spread | None
    ratio: Spread | None

    @property
    def verdict(self) -> Verdict:
        """Compare with the bar."""
        bar = self.line.bar
        judged = self.figure if bar is not None and bar.absolute else self.ratio
        if bar is None or judged is None:
            return Verdict.NONE
        if bar.met(judged.median):
            return Verdict.PASS
        return Verdict.FAIL if bar.binding else Verdict.BELOW


def evaluate(measurement: str, line: Line, samples: Mapping[str, Sequence[Sample]]) -> Result:
    """Make a line's result from the samples of its arms, one a round each, in the order of the rounds."""
    figures = [line.quantity.of(sample) for sample in samples[line.arm]]
    if line.against is None:
        return Result(measurement, line, spread(figures), None, None)
    raw = [line.quantity.of(sample) for sample in samples[line.against]]
    ratios = [ours / theirs if theirs else math.nan for ours, theirs in zip(figures, raw, strict=True)]
    return Result(measurement, line, spread(figures), spread(raw), spread(ratios))


def cpu_per_operation(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the microseconds of CPU that an operation cost each role of process, over all rounds."""
    operations = sum(sample.operations for sample in samples)
    roles = {role: None for sample in samples for role in sample.cpu_seconds}
    if not operations:
        return {}
    return {
        role: sum(sample.cpu_seconds.get(role, 0.0) for sample in samples) / operations * 1e6
        for role in roles
    }


def spread(values: Sequence[float]) -> Spread:
    """Return median, lowest and highest of at least one value; NaN if any is."""
    if any(math.isnan(value) for value in values):
        return Spread(math.nan, math.nan, math.nan)
    return Spread(percentile(values, 0.5), min(values), max(values))


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the value below which *fraction* of the values lie, between neighbours linearly; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
