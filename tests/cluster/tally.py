"""What a siege comes to, as figures and as tables for people: text, and Markdown."""

import itertools
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.history import Final, History, Nemesis, Write
from tests.cluster.judge_groups import GroupsVerdict
from tests.cluster.vitals import Spread, Vitals, thirds
from tests.support.group_checker import Reason
from tests.support.messages import Outcome


@dataclass(frozen=True)
class Strike:
    """Faults that were there at once; times of the monotonic clock, nanoseconds."""

    faults: tuple[str, ...]
    mounts: set[str]
    """The names of those that were struck themselves."""
    began: int
    healing: int
    """When healing began."""
    live: int
    """When all mounts pushed again."""

    @property
    def lasted_s(self) -> float:
        return (self.healing - self.began) / 1e9

    @property
    def live_s(self) -> float:
        """How long after healing had begun all was live."""
        return (self.live - self.healing) / 1e9

    @property
    def name(self) -> str:
        """The fault's, or how many there were."""
        return self.faults[0] if len(self.faults) == 1 else f"{len(self.faults)} at once"


@dataclass
class Effect:
    """What a fault did to those that it did not strike, and how long it took; the longest, in seconds."""

    times: int = 0
    gap_s: float = 0.0
    """Without an acknowledged push on a mount that was not struck."""
    lasted_s: float = 0.0
    live_s: float = 0.0


@dataclass
class Tally:
    """The figures of all rounds."""

    seed: int
    seconds: float = 0.0
    rounds: int = 0
    operations: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    acknowledged: int = 0
    begun: Counter[str] = field(default_factory=Counter)
    not_begun: Counter[str] = field(default_factory=Counter)
    effects: dict[str, Effect] = field(default_factory=lambda: defaultdict(Effect))
    deliveries: int = 0
    redelivered: Counter[Reason] = field(default_factory=Counter)
    sessions_lost: int = 0
    anomalies: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """What did not work again in time."""
    vitals: Vitals | None = None

    def add(self, history: History, groups: GroupsVerdict, strikes: Sequence[Strike]) -> None:
        """Add a round."""
        self.rounds += 1
        pushed: dict[str, list[int]] = defaultdict(list)
        for call in history.calls:
            if not isinstance(call, Nemesis | Final):
                self.operations[type(call).__name__.lower(), call.outcome] += 1
            if isinstance(call, Write) and call.ok:
                self.acknowledged += call.count if call.whole < 0 else call.whole
                pushed[Path(call.mount).parent.name].append(call.ended)
        for moments in pushed.values():
            moments.sort()
        for strike in strikes:
            effect = self.effects[strike.name]
            effect.times += 1
            effect.lasted_s = max(effect.lasted_s, strike.lasted_s)
            effect.live_s = max(effect.live_s, strike.live_s)
            for mount in pushed.keys() - strike.mounts:
                effect.gap_s = max(effect.gap_s, _gap_s(pushed[mount], strike.began, strike.live))
        self.deliveries += groups.deliveries
        self.redelivered += groups.redelivered

    def text(self) -> str:
        """Return it for a terminal."""
        return "\n\n".join(_aligned(table) for table in self._tables())

    def markdown(self) -> str:
        """Return it for a document."""
        return "\n\n".join(_markdown(table) for table in self._tables()) + "\n"

    def _tables(self) -> Iterator[list[list[str]]]:
        yield [["what", "figure"], *([name, str(figure)] for name, figure in self._figures())]
        outcomes = (Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN)
        kinds = sorted({kind for kind, _ in self.operations})
        yield [
            ["operation", "done", "failed", "unknown"],
            *([kind, *(f"{self.operations[kind, outcome]:,}" for outcome in outcomes)] for kind in kinds),
        ]
        yield [
            [
                "fault",
                "times",
                "stayed, s",
                "longest gap of pushes on other mounts, s",
                "all live after healing, s",
            ],
            *(
                [
                    name,
                    str(effect.times),
                    f"{effect.lasted_s:.1f}",
                    f"{effect.gap_s:.1f}",
                    f"{effect.live_s:.1f}",
                ]
                for name, effect in sorted(self.effects.items())
            ),
        ]
        if self.vitals is not None and self.vitals.samples:
            yield list(_vitals(self.vitals))

    def _figures(self) -> Iterator[tuple[str, object]]:
        yield "seed", self.seed
        yield "duration", f"{self.seconds:,.0f} s, {self.rounds} rounds"
        yield "operations", f"{self.operations.total():,}"
        yield "messages acknowledged", f"{self.acknowledged:,}"
        yield "faults", f"{self.begun.total()} of {len(self.begun)} kinds"
        yield "faults that other ones kept from beginning", self.not_begun.total()
        yield "sessions lost", self.sessions_lost
        yield "group deliveries", f"{self.deliveries:,}"
        reasons = ", ".join(f"{reason.value} {count:,}" for reason, count in self.redelivered.most_common())
        yield "group redeliveries", f"{self.redelivered.total():,}" + (f" ({reasons})" if reasons else "")
        yield "anomalies", len(self.anomalies)
        yield "not live in time", len(self.late)


def _gap_s(moments: Sequence[int], began: int, ended: int) -> float:
    """Return the longest stretch of a time without any of the moments, as `recovery.longest_gap_s` does."""
    first = bisect_left(moments, began)
    last = bisect_right(moments, ended)
    marks = [moments[first - 1] if first else began, *moments[first:last], ended]
    return max(later - earlier for earlier, later in itertools.pairwise(marks)) / 1e9


def _vitals(vitals: Vitals) -> Iterator[list[str]]:
    yield [
        "daemon",
        "begun",
        "samples",
        "MiB at start, end",
        "MiB, first third: min / median / max",
        "last third",
        "files at start, end",
        "files, first third",
        "last third",
    ]
    for mount in sorted({sample.mount for sample in vitals.samples}):
        samples = vitals.of(mount)
        early, late = thirds(samples)
        yield [
            mount,
            str(len({sample.pid for sample in samples})),
            str(len(samples)),
            f"{samples[0].memory_kib / 1024:.0f}, {samples[-1].memory_kib / 1024:.0f}",
            *(str(Spread.of([sample.memory_kib / 1024 for sample in third])) for third in (early, late)),
            f"{samples[0].files}, {samples[-1].files}",
            *(str(Spread.of([sample.files for sample in third])) for third in (early, late)),
        ]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])
