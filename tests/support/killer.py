"""Kills the workers of a consumer group, and the hosts that they are on, by a schedule from a seed.

A `Plan` is what is to happen, and pure; `Siege` lets it happen: it starts workers anew when they have ended,
and hosts some time after they were killed or frozen. What was done is kept for `group_checker`.
"""

import enum
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

from tests.support.checker import Outcome
from tests.support.etcd_http import values_below
from tests.support.group_checker import Fault, FaultKind, Reader, Refusal, Rewind
from tests.support.mounts import Mount
from tests.support.waiting import eventually
from tests.support.workers import Form, Habits, Worker, wall_ahead_ns

WORKERS: Final = 4
"""On each host."""
TTL_S: Final = 2
"""Of the hosts' sessions."""
UP_WITHIN_S: Final = 30.0
LONG_S: Final = 8.0
"""From then on a plan includes the command."""
TICK_S: Final = 0.01


class Action(enum.Enum):
    """What the killer does."""

    KILL_WORKER = "worker SIGKILL"
    TERMINATE_WORKER = "worker SIGTERM"
    KILL_COMMAND = "command SIGKILL"
    INTERRUPT_COMMAND = "command SIGINT"
    KILL_HOST = "daemon SIGKILL"
    STOP_HOST = "daemon SIGTERM"
    FREEZE = "daemon SIGSTOP, long"
    PAUSE = "daemon SIGSTOP, short"
    REWIND = "rewind"


@dataclass(frozen=True)
class Event:
    """One thing that is done, some seconds after the beginning."""

    at: float
    action: Action
    host: int = 0
    slot: int = 0
    lasts: float = 0.0
    """Until the host is started or resumed."""


@dataclass(frozen=True)
class Plan:
    """What is to happen in one siege; the same for the same arguments."""

    seed: int
    seconds: float
    hosts: int
    events: tuple[Event, ...]
    visibility_ms: int | None

    @classmethod
    def of(cls, seed: int, seconds: float, hosts: int) -> "Plan":
        """Kill about three workers a second, and do something to some host nearly all the time."""
        random = Random(seed)
        events: list[Event] = []
        at = 0.5
        while (at := at + random.expovariate(3.0)) < seconds:
            action = random.choice([Action.KILL_WORKER, Action.KILL_WORKER, Action.TERMINATE_WORKER])
            events.append(Event(at, action, random.randrange(hosts), random.randrange(WORKERS)))
        free = [1.0] * hosts
        ways = [Action.KILL_HOST, Action.FREEZE, Action.STOP_HOST, Action.PAUSE]
        at = 1.0
        first = random.sample(range(hosts), 2)  # for a kill and a freeze in every round
        for number, action in enumerate(ways[:2] + random.choices(ways, weights=[4, 2, 2, 2], k=64)):
            host = first[number] if number < 2 else random.randrange(hosts)
            at = max(at + random.uniform(0.3, 2.0), free[host])
            lasts = {
                Action.KILL_HOST: random.uniform(0.0, 2 * TTL_S),
                Action.STOP_HOST: random.uniform(0.0, 1.0),
                Action.FREEZE: TTL_S + random.uniform(1.5, 2.5),
                Action.PAUSE: random.uniform(0.1, 1.0),
            }[action]
            if at + lasts > seconds:
                break
            events.append(Event(at, action, host, lasts=lasts))
            free[host] = at + lasts + 3.0
        if random.random() < 0.5:
            events.append(Event(random.uniform(0.3, 0.9) * seconds, Action.REWIND, random.randrange(hosts)))
        # What a command had comes again after 10 s only: one that is killed late makes the drain long.
        command = random.choice([Action.KILL_COMMAND, Action.INTERRUPT_COMMAND])
        if seconds >= LONG_S:
            events.append(Event(random.uniform(2.0, 4.0), command))
        events.sort(key=lambda event: event.at)
        return cls(seed, seconds, hosts, tuple(events), 1500 if random.random() < 0.5 else None)


@dataclass
class _Span:
    """A session of a process, and between which moments it was seen for certain."""

    key: str
    first: int
    last: int


class Sessions:
    """Watches from outside which session each host's process has, and since when."""

    def __init__(self, endpoint: str, prefix: str) -> None:
        self._endpoint, self._prefix = endpoint, f"{prefix}session/"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._seen: dict[int, list[_Span]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.1):
            before = time.monotonic_ns()
            found = values_below(self._endpoint, self._prefix)
            after = time.monotonic_ns()
            for key, value in found.items():
                spans = self._seen.setdefault(json.loads(value)["pid"], [])
                if not spans or spans[-1].key != key:
                    spans.append(_Span(key, after, before))
                spans[-1].last = before

    def has_one(self, pid: int, since_ns: int) -> bool:
        """Whether a process has a session, seen after that time."""
        return any(span.last > since_ns for span in self._seen.get(pid, []))

    def lost(self, pid: int) -> Iterator[tuple[int, int]]:
        """Yield when a process's session was last seen, and when it was first seen with another one."""
        for before, after in pairwise(self._seen.get(pid, [])):
            yield before.last, after.first


@dataclass
class Host:
    """A mount and what was done to it."""

    mount: Mount
    sessions: Sessions
    up: bool = True
    frozen_since: int | None = None
    starting: "Future[None] | None" = None
    down_since: tuple[FaultKind, int, int] | None = None
    faults: list[Fault] = field(default_factory=list)
    frozen: list[tuple[int, int]] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.mount.path.parent.name

    def all_faults(self) -> list[Fault]:
        """Return what was done to it, and what came of it."""
        found = list(self.faults)
        found += [Fault(FaultKind.FROZEN, self.name, began, ended, ended) for began, ended in self.frozen]
        for pid in [*self.pids, self.mount.pid]:
            for last, first in self.sessions.lost(pid):
                while_frozen = [began for began, ended in self.frozen if began <= first and ended >= last]
                began = min([last, *while_frozen])
                found.append(Fault(FaultKind.SESSION_LOST, self.name, began, first, first))
        return found


class Siege:
    """A group under attack: one plan carried out."""

    def __init__(
        self, plan: Plan, hosts: Sequence[Host], topic: str, directory: Path, connection: list[str]
    ) -> None:
        self._plan = plan
        self._hosts = hosts
        self._view = f"{topic}@workers"
        self._directory = directory
        self._connection = connection
        self._random = Random(f"workers {plan.seed}")
        self._slots: dict[tuple[int, int], Worker] = {}
        self._started = 0
        self.workers: list[Worker] = []
        self.rewinds: list[Rewind] = []
        self.done: Counter[str] = Counter()
        self.stalled_ns = 0
        """The longest that this machine has let somebody wait who wanted to wait for TICK_S."""
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._pool = ThreadPoolExecutor(8)
        self._rewinding: list[Future[None]] = []
        self._peaceful = False

    def run(self) -> None:
        """Carry out the plan; return when all hosts are up again. To be called in the main thread."""
        began = time.monotonic()
        events = list(self._plan.events)
        try:
            while events or self._later or not all(host.up for host in self._hosts):
                now = time.monotonic() - began
                while events and events[0].at <= now:
                    self._do(events.pop(0), now)
                for due in [entry for entry in self._later if entry[0] <= now]:
                    self._later.remove(due)
                    due[1]()
                self.tend()
        finally:
            for host in self._hosts:
                if host.frozen_since is not None:  # or its pushers would never end
                    self._resume(host)
        for rewind in self._rewinding:
            rewind.result(timeout=UP_WITHIN_S)

    def make_peace(self) -> None:
        """From now on nobody fails. Who would by itself is the last one to be killed."""
        for worker in self._slots.values():
            if worker.habits.form is Form.COMMAND:  # killed, it would keep what it has for long
                self._count_kill(worker, signal.SIGINT, Action.INTERRUPT_COMMAND.value)
            elif worker.habits.fail_at:
                self._count_kill(worker, signal.SIGKILL, Action.KILL_WORKER.value)
        self._peaceful = True

    def tend(self) -> None:
        """Start what has ended, after a moment."""
        for host in self._hosts:
            if host.starting is not None and host.starting.done():
                host.starting.result()
                host.starting, host.up = None, True
                if host.down_since is not None:
                    kind, at, ended = host.down_since
                    host.faults.append(Fault(kind, host.name, at, ended, time.monotonic_ns()))
                    host.down_since = None
        for number, host in enumerate(self._hosts):
            for slot in range(WORKERS):
                worker = self._slots.get((number, slot))
                if host.up and (worker is None or not worker.alive):
                    if worker is not None and not worker.killed_at:
                        self.done[f"worker exit {worker.process.returncode}"] += 1
                    self._start(host, (number, slot))
        if (-1, 0) not in self._slots or not self._slots[-1, 0].alive:
            self._start(self._hosts[0], (-1, 0))
        before = time.monotonic_ns()
        threading.Event().wait(TICK_S)
        self.stalled_ns = max(self.stalled_ns, time.monotonic_ns() - before)

    def _start(self, host: Host, place: tuple[int, int]) -> None:
        if place[0] < 0:
            habits = Habits(Form.COMMAND, 0.01, fail_at=0 if self._peaceful else 20)
        else:
            habits = Habits.at_random(self._random, slow=self._plan.visibility_ms is not None)
            if self._peaceful:
                habits = Habits(habits.form, 0.001)
        self._started += 1
        name = f"w{self._started}-{habits.form.value}"
        worker = Worker(
            name, host.name, host.mount.path / self._view, self._directory / name, habits, self._connection
        )
        self._slots[place] = worker
        self.workers.append(worker)

    def _do(self, event: Event, now: float) -> None:
        host = self._hosts[event.host]
        action, name = event.action, event.action.value
        if action in (Action.KILL_WORKER, Action.TERMINATE_WORKER):
            how = signal.SIGKILL if action is Action.KILL_WORKER else signal.SIGTERM
            self._count_kill(self._slots.get((event.host, event.slot)), how, name)
        elif action in (Action.KILL_COMMAND, Action.INTERRUPT_COMMAND):
            how = signal.SIGKILL if action is Action.KILL_COMMAND else signal.SIGINT
            self._count_kill(self._slots.get((-1, 0)), how, name)
        elif not host.up or host.frozen_since is not None:
            self.done["skipped"] += 1
        elif action is Action.REWIND:
            self.done[name] += 1
            self._rewinding.append(self._pool.submit(self._rewind, host))
        elif action in (Action.KILL_HOST, Action.STOP_HOST):
            self.done[name] += 1
            killed = action is Action.KILL_HOST
            kind = FaultKind.DAEMON_KILLED if killed else FaultKind.DAEMON_STOPPED
            began = time.monotonic_ns()
            host.up = False
            host.pids.append(host.mount.pid)
            if killed:
                host.mount.kill()
            else:
                assert host.mount.stop() == 0, host.mount.log
            host.down_since = kind, began, time.monotonic_ns()
            self._later.append((now + event.lasts, lambda: self._start_host(host)))
        else:
            self.done[name] += 1
            host.frozen_since = time.monotonic_ns()
            host.mount.pause()
            self._later.append((now + event.lasts, lambda: self._resume(host)))

    def _count_kill(self, worker: Worker | None, how: signal.Signals, name: str) -> None:
        if worker is not None and worker.kill(how):
            self.done[name] += 1

    def _start_host(self, host: Host) -> None:
        host.mount.launch()
        host.starting = self._pool.submit(host.mount.wait_ready)

    def _resume(self, host: Host) -> None:
        assert host.frozen_since is not None
        host.mount.resume()
        host.frozen.append((host.frozen_since, time.monotonic_ns()))
        host.frozen_since = None

    def _rewind(self, host: Host) -> None:
        began = time.monotonic_ns()
        try:
            os.truncate(host.mount.path / self._view, 0)
            outcome = Outcome.OK
        except OSError as error:
            outcome = Outcome.of(error)
        self.rewinds.append(Rewind(outcome, began, time.monotonic_ns()))

    def end(self) -> None:
        """End all workers: they wait for messages that do not come."""
        for worker in self._slots.values():
            worker.kill(signal.SIGKILL)
        for worker in self._slots.values():
            eventually(lambda worker=worker: not worker.alive)  # type: ignore[misc]

    def clear(self) -> None:
        """Leave no process behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.clear()

    def told(self) -> tuple[list[Reader], list[Refusal]]:
        """Return what the workers' histories tell."""
        ahead = wall_ahead_ns()
        readers: list[Reader] = []
        refusals: list[Refusal] = []
        for worker in self.workers:
            some, refused = worker.told(ahead)
            readers += some
            refusals += refused
        return readers, refusals

    def faults(self, since_ns: int) -> list[Fault]:
        """Return what was done to the hosts since then, the commands included."""
        found = [fault for host in self._hosts for fault in host.all_faults() if fault.back >= since_ns]
        return found + [fault for worker in self.workers if (fault := worker.fault()) is not None]
