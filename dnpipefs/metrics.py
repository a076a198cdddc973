"""Counts and distributions, kept by whoever has something to count.

Plain numbers in plain objects, since they are on the way of each push: what counts is cheap, what tells
(`exposition.py`) does the work. Every part of dnpipefs keeps its own, as public attributes; nothing is
registered anywhere, and who looks finds them through the objects that the composition root has anyway.

Pure: no clock and no I/O. Not for threads: all is counted and read in trio's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

LATENCIES_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Upper bounds of the classes of durations, seconds: from a request that asks nobody to one that gives up."""


class Histogram:
    """How often something had which size, by classes of sizes."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCIES_S) -> None:
        self.bounds: Final = bounds
        """Upper bounds of the classes, each of them included, ascending; a last class has none."""
        self.counts = [0] * (len(bounds) + 1)
        """How many there were in each class."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True)
class Requests:
    """What the kernel asked of a mount. The adapter counts, the control directory tells."""

    took: defaultdict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    """Seconds from taking a request to its answer, by operation; reads that wait for messages left out."""
    failed: Counter[str] = field(default_factory=Counter)
    """Requests that failed, by the class of error in the adapter's table."""
    read_bytes: int = 0
    open_files: int = 0
    blocked_reads: int = 0
    """Reads that wait for messages now."""


@dataclass(slots=True)
class Pushes:
    """What this host has appended to topics."""

    messages: int = 0
    bytes: int = 0
    batches: int = 0
    waited: Histogram = field(default_factory=Histogram)
    """Seconds that each push waited until a transaction took it along."""
    committed: Histogram = field(default_factory=Histogram)
    """Seconds that etcd took for each transaction."""


@dataclass(slots=True)
class Deliveries:
    """What the readers of groups on this host had."""

    delivered: int = 0
    """Messages handed out."""
    again: int = 0
    """Of these, such as a reader had had before."""
    acknowledged: int = 0
    given_back: int = 0
    dead: int = 0
    """Messages that were moved to the dead letters."""


@dataclass(slots=True)
class Calls:
    """Calls to etcd."""

    took: defaultdict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    """Seconds of each, by method, with all its repeats; watches are none."""
    failed: Counter[str] = field(default_factory=Counter)
    """Those that failed, by the class of error."""


@dataclass(slots=True)
class Questions:
    """What readers asked of etcd, and how far behind this host was."""

    answered: Histogram = field(default_factory=Histogram)
    """Seconds until etcd had said where a topic stands."""
    lag: Histogram = field(default_factory=Histogram)
    """Seconds from then until this host's view of the topic had got there, too."""


@dataclass(slots=True)
class CacheUse:
    """Blocks that were wanted of the cache of what is read."""

    hits: int = 0
    misses: int = 0
