"""A siege: the workload on all mounts while a schedule of faults happens, then peace, and judgement.

A round is a part of the schedule. It has topics of its own, which are made before it and removed after it:

1. each episode: its faults begin, stay, are healed; within `LIVE_WITHIN_S` each mount must push again;
2. the clients stop; within `LIVE_WITHIN_S` all mounts must have all topics alike, read from start to end;
3. workers empty the groups;
4. the histories are judged.

What comes too late (liveness) is told apart from what is wrong (safety), and both are collected to the end:
one round that is not live ends the siege, since what follows would only repeat it.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.cluster.cluster import OP_TIMEOUT_S, SESSION_TTL_S, Cluster, ClusterMount
from tests.cluster.fault import Fault, heal_each
from tests.cluster.faults import FAULTS, fault_named
from tests.cluster.faults_of_processes import FrozenMount, KilledMount, OutOfMemory
from tests.cluster.faults_of_storage import Compaction, FullEtcd
from tests.cluster.hosts import CommandFailed
from tests.cluster.judge import Limits, judge
from tests.cluster.judge_groups import SESSION_LOST, judge_groups
from tests.cluster.schedule import Episode
from tests.cluster.tally import Strike, Tally
from tests.cluster.vitals import Vitals
from tests.cluster.workload import Crew, Workload
from tests.support.waiting import eventually

LIVE_WITHIN_S: Final = 30.0
"""After everything is healed."""
DRAINED_WITHIN_S: Final = 120.0
PROGRESS: Final = 3
"""Messages that a mount must have got acknowledged to be called live."""
LIMITS: Final = Limits(op_timeout=OP_TIMEOUT_S, hung=5.0)
RATES: Final = (
    ("push", 15.0),
    ("read", 0.5),
    ("follow", 4.0),
    ("subscribe", 8.0),
    ("listen", 8.0),
    ("reset", 0.2),
    ("churn", 3.0),
    ("consume", 10.0),
)
"""Operations a second of one client: moderate, so that what fails does not fail for want of a processor."""
PUSHERS: Final = 2
CONSUMERS: Final = 2
"""On each mount."""


def possible_faults() -> list[str]:
    """Return the names of the faults that this machine can have."""
    return [fault.name for make in FAULTS if (fault := make()).why_not() is None]


def crew(rate: float) -> Crew:
    """Return the clients of a siege, that many times as fast as usual."""
    return Crew(push=PUSHERS, consume=CONSUMERS, rates=tuple((role, each * rate) for role, each in RATES))


@dataclass
class _Blow:
    """A fault of an episode, and what has been told the workload of it."""

    fault: Fault
    mounts: list[ClusterMount]
    """The mounts it has struck."""
    telling: ExitStack


class NotLive(AssertionError):
    """The cluster does not work again in time."""


class Siege:
    """The rounds on one cluster."""

    def __init__(self, cluster: Cluster, directory: Path, *, seed: int, rate: float = 1.0) -> None:
        """`directory`: where histories are kept of rounds in which something was wrong."""
        self._cluster = cluster
        self._directory = directory
        self._seed = seed
        self._crew = crew(rate)
        self._began_s = time.monotonic()
        self.tally = Tally(seed)

    def run(self, rounds: Sequence[Sequence[Episode]]) -> Tally:
        """Go through all rounds; raises nothing for what is wrong, which is in the tally."""
        vitals = Vitals(self._cluster)
        self.tally.vitals = vitals
        self._cluster.wait_well()
        self._began_s = time.monotonic()
        try:
            with vitals.watched():
                for number, episodes in enumerate(rounds):
                    self._round(number, episodes)
                    if self.tally.late:
                        break
        finally:
            self.tally.seconds = time.monotonic() - self._began_s
        return self.tally

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began_s:7.1f} {text}", flush=True)

    def _round(self, number: int, episodes: Sequence[Episode]) -> None:
        directory = self._directory / f"round{number}"
        workload = Workload(
            mounts=[mount.path for mount in self._cluster.mounts],
            directory=directory,
            seed=self._seed + number,
            crew=self._crew,
            below=f"siege{self._seed}-{number}",
            op_timeout=OP_TIMEOUT_S,
        )
        workload.prepare()
        round_ = Round(self._cluster, workload, self.tally, self._say)
        try:
            with workload.running():
                round_.besiege(episodes)
            round_.make_peace()
        except AssertionError as failure:
            self.tally.late.append(f"round {number}: {failure}")
            self._say(f"not live: {failure}")
        began = time.monotonic()
        found = self._judge(number, workload, round_.strikes)
        self._say(f"round {number} judged in {time.monotonic() - began:.1f} s: {found} anomalies")
        if not self.tally.late:
            shutil.rmtree(self._cluster.mounts[0].path / workload.below)
            if not found:
                shutil.rmtree(directory)

    def _judge(self, number: int, workload: Workload, strikes: Sequence[Strike]) -> int:
        """Judge a round; return how much is wrong."""
        history = workload.collect()
        found = [f"{anomaly.kind.name}: {anomaly.text}" for anomaly in judge(history, LIMITS)]
        groups = judge_groups(history, workload.kept, SESSION_TTL_S)
        if not self.tally.late:  # else the groups are not drained, so nothing can be said of them
            found += [f"group, {anomaly.kind.name}: {anomaly.text}" for anomaly in groups.anomalies]
        self.tally.add(history, groups, strikes)
        self.tally.anomalies += [f"round {number}: {each}" for each in found]
        for each in found[:20]:
            self._say(each)
        return len(found)


class Round:
    """One round's faults, and the peace after them."""

    def __init__(
        self, cluster: Cluster, workload: Workload, tally: Tally, say: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._workload = workload
        self._tally = tally
        self._say = say
        self.strikes: list[Strike] = []

    def besiege(self, episodes: Sequence[Episode]) -> None:
        """Let all episodes happen."""
        self._wait_live("at the beginning")
        for episode in episodes:
            self._say(str(episode))
            with self._sessions_told():
                self._play(episode)
                time.sleep(episode.quiet_s)
                self._look_for_dead([])

    def make_peace(self) -> None:
        """Read everything to the end on all mounts, and empty the groups; NotLive if it takes too long."""
        began = time.monotonic()
        if not self._workload.final_read(within_s=LIVE_WITHIN_S):
            raise NotLive(f"the mounts do not agree {LIVE_WITHIN_S:g} s after all was healed")
        self._say(f"all mounts agree after {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        with self._workload.draining():
            try:
                eventually(lambda: self._workload.lag() == 0, within_s=DRAINED_WITHIN_S)
            except AssertionError:
                raise NotLive(f"groups still have {self._workload.lag()} messages") from None
        self._say(f"groups drained after {time.monotonic() - began:.1f} s")
        self._look_for_dead([])

    # One episode

    def _play(self, episode: Episode) -> None:
        """Let faults begin, stay, and be healed, and tell the workload."""
        draw = Random(episode.seed)
        began = time.monotonic_ns()
        blows: list[_Blow] = []
        try:
            blows.extend(self._strike(fault_named(name), draw) for name in episode.faults)
            time.sleep(episode.hold_s)
            self._look_for_dead(blows)
        finally:
            healing = time.monotonic_ns()
            self._heal(blows)
        healed = time.monotonic()
        self._cluster.wait_well()
        for blow in blows:
            blow.telling.close()
        self._wait_live(f"after {', '.join(episode.faults)}", since=healed)
        names = {mount.name for blow in blows for mount in blow.mounts}
        strike = Strike(episode.faults, names, began, healing, time.monotonic_ns())
        self.strikes.append(strike)
        self._say(f"  struck {', '.join(sorted(names)) or 'no mount'}, live {strike.live_s:.1f} s after")

    def _strike(self, fault: Fault, draw: Random) -> _Blow:
        """Let a fault begin. If another one is in its way it may not, which is counted."""
        since = time.monotonic_ns()
        try:
            fault.begin(self._cluster, draw)
        except (AssertionError, subprocess.TimeoutExpired) as failure:
            self._tally.not_begun[fault.name] += 1
            self._say(f"  {fault} did not begin, or not wholly: {str(failure).strip()[-200:]}")
        else:
            strikes_all = isinstance(fault, Compaction | FullEtcd)
            found = self._tally.begun if fault.victims or strikes_all else self._tally.not_begun
            found[fault.name] += 1
        telling = ExitStack()
        mounts = [victim for victim in fault.victims if isinstance(victim, ClusterMount)]
        for mount in mounts:
            what = fault.name
            if isinstance(fault, KilledMount | OutOfMemory):
                what = "kill"
            elif isinstance(fault, FrozenMount):
                what = "pause"
            telling.enter_context(self._workload.nemesis(mount.path, what, since=since))
        if not mounts:
            telling.enter_context(self._workload.nemesis(None, fault.name, since=since))
        return _Blow(fault, mounts, telling)

    def _heal(self, blows: Sequence[_Blow]) -> None:
        """Heal faults. Who was frozen may hang no longer; other troubles last until all is well."""
        for fault in heal_each(self._cluster, [blow.fault for blow in blows]):
            if isinstance(fault, FrozenMount):
                next(blow for blow in blows if blow.fault is fault).telling.close()

    def _wait_live(self, when: str, *, since: float | None = None) -> None:
        """Wait until each mount has pushed on."""
        deadline = (time.monotonic() if since is None else since) + LIVE_WITHIN_S
        for mount in self._cluster.mounts:
            before = self._workload.acknowledged(mount.path)
            try:
                eventually(
                    lambda mount=mount, before=before: (  # type: ignore[misc]
                        self._workload.acknowledged(mount.path) >= before + PROGRESS
                    ),
                    within_s=max(0.0, deadline - time.monotonic()),
                )
            except AssertionError:
                text = (
                    f"{mount.name} has acknowledged nothing {when}, {LIVE_WITHIN_S:g} s after all was healed"
                )
                raise NotLive(text) from None

    def _look_for_dead(self, blows: Sequence[_Blow]) -> None:
        """Tell the workload of daemons that have ended though nobody has killed them."""
        killed = [
            mount
            for blow in blows
            if isinstance(blow.fault, KilledMount | OutOfMemory)
            for mount in blow.mounts
        ]
        for mount in self._cluster.mounts:
            if not mount.alive and mount not in killed:
                self._say(f"  the daemon of {mount.name} is dead: {mount.process.returncode}")
                self._workload.died(mount.path, mount.process.returncode)

    @contextmanager
    def _sessions_told(self) -> Iterator[None]:
        """Tell the workload which mounts have got another session during the block."""
        since = time.monotonic_ns()
        before = self._sessions()
        yield
        after = self._sessions()
        for mount in self._cluster.mounts:
            if not before.get(mount.pid) or before.get(mount.pid) != after.get(mount.pid):
                with self._workload.nemesis(mount.path, SESSION_LOST, since=since):
                    self._tally.sessions_lost += 1

    def _sessions(self) -> dict[int, set[str]]:
        try:
            return self._cluster.sessions()
        except CommandFailed:
            return {}
