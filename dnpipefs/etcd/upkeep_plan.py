"""What an embedded etcd needs next to stay below its quota: the decisions of `upkeep.py`, pure.

`decide(state, look)` takes what was remembered and one look at the server, and returns one command and the
state that holds once the command has been carried out. A command that failed leaves the old state. Time is
part of the look: seconds of the wall clock, since the state outlives processes.

What etcd does, as seen with 3.4.23, 3.5.16 and 3.5.30, and what follows:

* Deleting frees nothing. Compaction frees the pages of what was deleted or replaced before its revision, in
  the background, without making writers wait noticeably (worst put 0.1 s while 900 MB went).
* New data is written to free pages first, so a file that is compacted in time stops growing by itself.
* The quota is compared with the size of the *file*, free pages included. At the quota every put is refused
  and the alarm goes on; switched off too early it is back with the next put.
* Only defragmentation makes the file smaller. It copies what is in use, 6 to 11 s for each GB here, and
  etcd answers nobody meanwhile: puts and gets wait, or run into their time limit.
* Freed pages are counted with a later commit. At the quota nothing may be written, so 3.4 goes on showing
  them as in use until somebody makes it commit (`Settle`).

Invariants:

1. The alarm is disarmed only when the file is a sixteenth below the quota.
2. While it is on, each revision is compacted, settled and defragmented once at most, so what cannot help
   is not done again before somebody has removed something.
3. In normal use nothing is compacted that was written within KEPT_S, unless the quota is near, and never
   the newest KEPT_REVISIONS.
4. In normal use defragmentation is for a file that takes short to copy or is about to reach the quota, at
   most once in DEFRAGMENT_EVERY_S.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

MIB: Final = 1 << 20

HISTORY_BYTES: Final = 256 * MIB
"""What the data in use may grow by, live or history, before history is compacted (less for a small quota)."""
HISTORY_SHARE: Final = 32
"""That growth is at most this part of the quota; a quarter of it near the quota."""

KEPT_S: Final = 10.0
"""History younger than this stays, seconds: a watcher that is further behind takes a new snapshot."""
KEPT_REVISIONS: Final = 100
"""Newest revisions that stay even near the quota (not while the alarm is on: nothing is pushed then)."""

ROOM_SHARE: Final = 16
"""The alarm is disarmed when this part of the quota is free, and a file above it is about to be full."""

CHEAP_BYTES: Final = 128 * MIB
"""Data in use that defragmentation copies in about a second."""
RECLAIM_SHARE: Final = 8
"""Part of the quota that must be free before it is given back to the disk without need."""
DEFRAGMENT_EVERY_S: Final = 600.0
"""Seconds between two defragmentations in normal use."""

PAUSE_S: Final = 2.0
"""Seconds between two looks."""
FULL_PAUSE_S: Final = 0.5
"""Seconds between two looks while the alarm is on: somebody may remove something."""
DISARM_PAUSE_S: Final = 5.0
"""Seconds until an alarm that came back is disarmed again; doubled each time."""
DISARM_PAUSE_LIMIT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Look:
    """A server at one moment; sizes in bytes, time in seconds of the wall clock."""

    now: float
    size: int
    """Of the database file, free pages included: what etcd compares with the quota."""
    in_use: int
    quota: int
    revision: int
    full: bool
    """Whether the NOSPACE alarm is on."""


@dataclass(frozen=True, slots=True)
class Seen:
    """That a revision was the newest at a time."""

    time: float
    revision: int


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered from look to look, and from process to process."""

    base: int | None = None
    """Bytes in use after the last compaction, None if it is yet to be seen."""
    seen: tuple[Seen, ...] = ()
    """Looks of the last KEPT_S, oldest first, and one that is older."""
    compacted: int = 0
    settled: int = 0
    defragmented: int = 0
    """Revisions at which this was done last."""
    defragment_after: float = 0.0
    disarm_after: float = 0.0
    disarm_pause: float = DISARM_PAUSE_S

    def encode(self) -> str:
        """Return it as text, to be kept for the next process."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> State:
        """Parse what `encode` wrote. Raises ValueError for anything else."""
        try:
            stored: dict[str, Any] = json.loads(text)
            seen = tuple(Seen(float(each["time"]), int(each["revision"])) for each in stored.pop("seen"))
            base = stored.pop("base")
            numbers = {name: type(getattr(cls(), name))(value) for name, value in stored.items()}
            return cls(base=None if base is None else int(base), seen=seen, **numbers)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no state of the upkeep: {error}") from error


@dataclass(frozen=True, slots=True)
class Compact:
    """Drop the history before a revision, and wait until it is gone."""

    revision: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Make etcd count the pages that compaction has freed."""


@dataclass(frozen=True, slots=True)
class Defragment:
    """Give the free pages back."""


@dataclass(frozen=True, slots=True)
class Disarm:
    """Switch the NOSPACE alarm off."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do for that many seconds."""

    seconds: float


Command = Compact | Settle | Defragment | Disarm | Rest


def decide(state: State, look: Look) -> tuple[State, Command]:
    """Return what to do now, and the state that holds when it is done."""
    state = _observe(state, look)
    return _when_full(state, look) if look.full else _in_normal_use(state, look)


def _observe(state: State, look: Look) -> State:
    if max(state.compacted, state.settled, state.defragmented) > look.revision:
        state = State()  # of another database that was here before
    # A clock that was set back makes looks worthless, too, and pauses long.
    defragment_after = min(state.defragment_after, look.now + DEFRAGMENT_EVERY_S)
    disarm_after = min(state.disarm_after, look.now + DISARM_PAUSE_LIMIT_S)
    seen = [each for each in state.seen if each.time <= look.now and each.revision <= look.revision]
    if not seen or look.now - seen[-1].time >= PAUSE_S / 2:
        seen.append(Seen(look.now, look.revision))
    while len(seen) > 1 and seen[1].time <= look.now - KEPT_S:
        del seen[0]
    base = look.in_use if state.base is None else min(state.base, look.in_use)
    return replace(
        state, seen=tuple(seen), base=base, defragment_after=defragment_after, disarm_after=disarm_after
    )


def _when_full(state: State, look: Look) -> tuple[State, Command]:
    if look.size <= target_size(look.quota):
        if look.now < state.disarm_after:
            return state, Rest(min(state.disarm_after - look.now, PAUSE_S))
        pause = min(2 * state.disarm_pause, DISARM_PAUSE_LIMIT_S)
        return replace(
            state, disarm_after=look.now + state.disarm_pause, disarm_pause=pause, base=None
        ), Disarm()
    if state.compacted < look.revision:
        return replace(state, compacted=look.revision), Compact(look.revision)
    if look.in_use > target_size(look.quota):
        if state.settled < look.revision:
            return replace(state, settled=look.revision), Settle()
    elif state.defragmented < look.revision:
        return replace(
            state,
            defragmented=look.revision,
            defragment_after=look.now + DEFRAGMENT_EVERY_S,
            disarm_after=0.0,  # there is room that there was not when the alarm came back
        ), Defragment()
    return state, Rest(FULL_PAUSE_S)


def target_size(quota: int) -> int:
    """Return the size of the file up to which there is room worth the name."""
    return quota - quota // ROOM_SHARE


def _in_normal_use(state: State, look: Look) -> tuple[State, Command]:
    if look.now >= state.disarm_after:
        state = replace(state, disarm_pause=DISARM_PAUSE_S)
    near = look.size > look.quota // 4 * 3
    step = min(HISTORY_BYTES, look.quota // HISTORY_SHARE) // (4 if near else 1)
    if state.base is not None and look.in_use - state.base >= step:
        revision = _compactable(state, look, near=near)
        if revision > state.compacted:
            return replace(state, compacted=revision, base=None), Compact(revision)
    if look.now >= state.defragment_after and _worth_a_stall(look):
        return replace(state, defragment_after=look.now + DEFRAGMENT_EVERY_S), Defragment()
    return state, Rest(PAUSE_S)


def _compactable(state: State, look: Look, *, near: bool) -> int:
    """Return the revision up to which history may go; 0 if none."""
    newest = look.revision - KEPT_REVISIONS
    if near:
        return newest
    old = state.seen[0]
    return min(old.revision, newest) if old.time <= look.now - KEPT_S else 0


def _worth_a_stall(look: Look) -> bool:
    free = look.size - look.in_use
    cheap = look.in_use <= CHEAP_BYTES and free >= look.quota // RECLAIM_SHARE
    needed = look.size > target_size(look.quota) and free >= look.quota // 4
    return cheap or needed
