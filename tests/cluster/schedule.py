"""Which faults come when in a siege: a pure function of a seed, a time and the faults that are possible.

Each fault comes alone first, as many as the time has room for, in an order of the seed's; then mixes of up to
three that may be there at once. Between them it is quiet. Whom a fault strikes is drawn when it begins, from
the episode's own seed, and depends on who leads then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

ALONE_SHARE: Final = 0.6
"""How much of the time is for faults that come alone, at most."""
ALLOWANCE_S: Final = 5.0
"""What beginning and healing take, about."""
HOLD_S: Final = (2.0, 8.0)
"""How long a fault stays: shorter and longer than a session outlives its host."""
QUIET_S: Final = (1.0, 4.0)
ROUND_S: Final = 180.0
"""After that everything is read to the end and judged, and the next round has topics of its own."""

OF_MOUNTS: Final = frozenset(
    {
        "mount killed",
        "mount frozen",
        "mount out of memory",
        "mount cut off",
        "mount cut off from the leader",
        "clock an hour ahead",
        "clock an hour behind",
    }
)
"""Faults that no member feels."""
NEED_MEMBERS: Final = frozenset({"member replaced"})
"""A member that begins anew has forgotten what it had promised: that is safe while the others are there."""
FILL: Final = frozenset({"full etcd", "full disk"})
SLOW: Final = frozenset({"member replaced", "full etcd", "full disk"})
"""Those that take long are rare in mixes."""
SELDOM: Final = 4


@dataclass(frozen=True)
class Episode:
    """Some faults at once, then quiet."""

    seed: int
    faults: tuple[str, ...]
    hold_s: float
    quiet_s: float

    @property
    def about_s(self) -> float:
        """How long it takes, about."""
        return ALLOWANCE_S + self.hold_s + self.quiet_s

    def __str__(self) -> str:
        return f"{', '.join(self.faults)}: {self.hold_s:.1f} s, then {self.quiet_s:.1f} s quiet"


def compatible(faults: Sequence[str]) -> bool:
    """Say whether a cluster that is well looked after may meet these at once."""
    names = set(faults)
    if names & NEED_MEMBERS and not names <= NEED_MEMBERS | OF_MOUNTS:
        return False
    return len(names) == len(faults) and len(names & FILL) < 2


def schedule(seed: int, duration_s: float, possible: Sequence[str]) -> list[Episode]:
    """Return the episodes of a siege of about that time, one at least."""
    draw = Random(seed)
    episodes: list[Episode] = []
    alone = draw.sample(possible, len(possible))
    spent = 0.0
    while not episodes or spent < duration_s:
        if alone and spent <= duration_s * ALONE_SHARE:
            faults: tuple[str, ...] = (alone.pop(),)
        else:
            faults = _mix(draw, possible)
        episodes.append(Episode(draw.randrange(10**6), faults, draw.uniform(*HOLD_S), draw.uniform(*QUIET_S)))
        spent += episodes[-1].about_s
    return episodes


def rounds(episodes: Sequence[Episode]) -> Iterator[list[Episode]]:
    """Cut a schedule into rounds of about `ROUND_S`."""
    found: list[Episode] = []
    for episode in episodes:
        found.append(episode)
        if sum(each.about_s for each in found) >= ROUND_S:
            yield found
            found = []
    if found:
        yield found


def _mix(draw: Random, possible: Sequence[str]) -> tuple[str, ...]:
    size = draw.randint(1, 3)
    chosen = [name for name in possible for _ in range(1 if name in SLOW else SELDOM)]
    while True:
        mix = tuple(draw.choices(chosen, k=size))
        if compatible(mix):
            return mix
