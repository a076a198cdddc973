"""Consumer groups while workers and whole daemons are killed at random: invariant 6, and docs/groups.md.

Some seconds of it run with the other tests; `make soak-groups` runs it for ten minutes. The schedule of each
round comes from a seed that is printed: DNPIPEFS_TEST_GROUP_SEED repeats the schedule, though not what the
processes make of it. DNPIPEFS_TEST_GROUP_KILLS_S says for how many seconds another round is begun.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.mount.conftest import complain
from tests.support.checker import History, Outcome, parse
from tests.support.etcd_process import EtcdProcess
from tests.support.group_checker import SECOND, GroupHistory, GroupKind, Verdict
from tests.support.killer import TTL_S, UP_WITHIN_S, Action, Host, Plan, Sessions, Siege
from tests.support.mounts import Mounts
from tests.support.waiting import eventually
from tests.support.workers import wall_ahead_ns
from tests.support.writers import Writer, observe, running

SECONDS: Final = float(os.environ.get("DNPIPEFS_TEST_GROUP_KILLS_S", "0"))
"""How long to begin another round; there is one in any case."""
SEED: Final = int(os.environ.get("DNPIPEFS_TEST_GROUP_SEED") or random.randrange(10**6))
ROUND_S: Final = 10.0
"""How long there are faults in one round; then it drains."""
HOSTS: Final = 3
PAUSE_S: Final = 0.02
"""Of each pusher after each message."""
DRAINED_S: Final = 60.0
STEPPED_NS: Final = 20_000_000
"""How much the wall clock may be set during a round: bash has no other one to write down."""


@dataclass
class Tally:
    """What all rounds together have seen."""

    seconds: float = 0.0
    rounds: int = 0
    pushed: Counter[Outcome] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    sessions_lost: int = 0
    refused: int = 0
    drains: list[float] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)

    def add(self, verdict: Verdict) -> None:
        self.verdict.anomalies += verdict.anomalies
        self.verdict.deliveries += verdict.deliveries
        self.verdict.redelivered += verdict.redelivered
        self.verdict.late += verdict.late
        self.verdict.undone_ns = max(self.verdict.undone_ns, verdict.undone_ns)

    def table(self) -> str:
        """Return it for people to read."""
        rows: list[tuple[str, object]] = [
            ("seconds", f"{self.seconds:.0f}"),
            ("rounds", self.rounds),
            ("pushed: ok", self.pushed[Outcome.OK]),
            ("pushed: unknown", self.pushed[Outcome.UNKNOWN]),
            ("deliveries", self.verdict.deliveries),
            ("redeliveries", self.verdict.redelivered.total()),
            *((f"  by: {reason.value}", n) for reason, n in self.verdict.redelivered.most_common()),
            ("oldest acknowledgement undone, ms", self.verdict.undone_ns // 10**6),
            ("first deliveries out of order", self.verdict.late),
            ("sessions lost", self.sessions_lost),
            ("errors at workers", self.refused),
            *((f"done: {what}", n) for what, n in sorted(self.done.items())),
            ("longest drain, s", f"{max(self.drains, default=0):.1f}"),
            ("anomalies", len(self.verdict.anomalies)),
        ]
        return "\n".join(f"{value:>9} {name}" for name, value in rows)


class Cluster:
    """Hosts that live through all rounds, unless somebody kills them."""

    def __init__(self, directory: Path, etcd: EtcdProcess) -> None:
        self.directory = directory
        self.mounts = Mounts(directory)
        self.sessions = Sessions(etcd.endpoint, "/kills/")
        self.hosts = [
            Host(
                self.mounts.make(endpoints=[etcd.endpoint], prefix="/kills/", session_ttl=TTL_S),
                self.sessions,
            )
            for _ in range(HOSTS)
        ]
        self.connection = ["--endpoints", etcd.endpoint, "--prefix", "/kills/"]

    @contextmanager
    def mounted(self, limit_s: float) -> Iterator[None]:
        try:
            with self.mounts.guarded(limit_s), self.sessions.watched():
                for host in self.hosts:
                    host.mount.start()
                yield
        finally:
            self.mounts.clear()


def test_invariant_6_while_workers_and_daemons_are_killed(own_etcd: EtcdProcess, tmp_path: Path) -> None:
    cluster, tally, began = Cluster(tmp_path, own_etcd), Tally(), time.monotonic()
    seed = SEED
    try:
        with cluster.mounted(SECONDS + 4 * DRAINED_S):
            while not tally.rounds or time.monotonic() - began < SECONDS:
                print(f"round {tally.rounds}: DNPIPEFS_TEST_GROUP_SEED={seed}", flush=True)
                play(cluster, Plan.of(seed, ROUND_S, HOSTS), tally)
                found = [f"{anomaly.kind.value}: {anomaly.text}" for anomaly in tally.verdict.anomalies]
                assert not found, "\n".join([f"with seed {seed}, histories in {tmp_path}:", *found[:20]])
                seed += 1
    finally:
        tally.seconds = time.monotonic() - began
        print(tally.table(), flush=True)
    complain(cluster.mounts, [])
    assert enough(tally) == {}, "too seldom, so it proves little"


def test_messages_acknowledged_too_early_are_found_to_be_lost(own_etcd: EtcdProcess, tmp_path: Path) -> None:
    """A planted fault: the topic's setting says that what is handed out is done."""
    cluster, tally = Cluster(tmp_path, own_etcd), Tally()
    with cluster.mounted(2 * DRAINED_S):
        for seed in range(SEED, SEED + 5):
            play(cluster, Plan.of(seed, 3.0, HOSTS), tally, ack=b"delivery")
            kinds = {anomaly.kind for anomaly in tally.verdict.anomalies}
            assert kinds <= {GroupKind.LOST, GroupKind.UNDELIVERED}, tally.verdict.anomalies
            if GroupKind.LOST in kinds:
                return
    pytest.fail(f"not found in {tally.rounds} rounds")


def enough(tally: Tally) -> dict[str, int]:
    """Return what has happened too seldom."""
    done = tally.done
    wanted = {
        "pushed": (tally.pushed[Outcome.OK], 100),
        "redelivered": (tally.verdict.redelivered.total(), 3),
        "sessions lost": (tally.sessions_lost, 1),
        "workers killed": (done[Action.KILL_WORKER.value] + done[Action.TERMINATE_WORKER.value], 5),
        "workers failed": (done["worker exit 3"], 0.9),
        "daemons killed": (done[Action.KILL_HOST.value], 1),
        "daemons frozen": (done[Action.FREEZE.value], 1),
    }
    return {what: seen for what, (seen, least) in wanted.items() if seen < int(least * tally.rounds)}


def play(cluster: Cluster, plan: Plan, tally: Tally, *, ack: bytes = b"exit-status") -> None:
    """Let one round happen on a topic of its own, and judge it."""
    name, began = f"jobs{tally.rounds}", time.monotonic_ns()
    directory = cluster.directory / name
    directory.mkdir()
    topic = cluster.hosts[0].mount.path / name
    topic.touch()
    os.setxattr(topic, "user.dnp.ack", ack)
    if plan.visibility_ms is not None:
        os.setxattr(topic, "user.dnp.visibility_timeout", b"%dms" % plan.visibility_ms)
    for host in cluster.hosts:
        eventually(lambda host=host: (host.mount.path / name).exists())  # type: ignore[misc]
    ahead = wall_ahead_ns()
    pushers = [Writer(host.name, host.mount.path / name, pause_s=PAUSE_S) for host in cluster.hosts]
    siege = Siege(plan, cluster.hosts, name, directory, cluster.connection)
    try:
        with running(*pushers):
            siege.run()
        siege.make_peace()
        calm = time.monotonic()
        drain(cluster, siege, f"{name}@workers")
        tally.drains.append(time.monotonic() - calm)
        siege.end()
    finally:
        siege.clear()
    assert abs(wall_ahead_ns() - ahead) < STEPPED_NS, "somebody has set the clock: run it again"
    pushes = [push for pusher in pushers for push in pusher.pushes]
    seen = [observe(host.name, host.mount.path / name) for host in cluster.hosts]
    assert History(pushes, [], seen).check() == []
    readers, refusals = siege.told()
    faults = siege.faults(began)
    order = [found for line in seen[0].data.splitlines(keepends=True) if (found := parse(line)) is not None]
    history = GroupHistory(pushes, order, readers, faults, siege.rewinds, refusals)
    if plan.visibility_ms is not None:
        history.visibility_ns = plan.visibility_ms * SECOND // 1000
    history.session_ns = TTL_S * SECOND
    history.slack_ns = SECOND + 2 * siege.stalled_ns
    tally.rounds += 1
    tally.pushed += Counter(push.outcome for push in pushes)
    tally.done += siege.done
    tally.sessions_lost += sum(fault.kind.value == "session lost" for fault in faults)
    tally.refused += len(refusals)
    tally.add(history.judge())


def drain(cluster: Cluster, siege: Siege, view: str) -> None:
    """Wait until nothing is left in the group, as all hosts see it."""
    since = time.monotonic_ns()

    def left() -> list[bytes]:
        siege.tend()
        return [
            os.getxattr(host.mount.path / view, f"user.dnp.{what}")
            for host in cluster.hosts
            for what in ("lag", "pending", "returned")
        ]

    for host in cluster.hosts:
        eventually(
            lambda host=host: cluster.sessions.has_one(host.mount.pid, since),  # type: ignore[misc]
            within_s=UP_WITHIN_S,
        )
    try:
        eventually(lambda: set(left()) == {b"0"}, within_s=DRAINED_S)
    except AssertionError:
        pytest.fail(f"the group is not drained within {DRAINED_S:g} s: {left()}")
