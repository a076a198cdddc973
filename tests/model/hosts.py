"""The hosts of a cluster under test: real services, with a network and a clock of the test's."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core import generation
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId
from dnpipefs.core.sealing import KEEP_ALL, Policy
from dnpipefs.core.view import TopicView
from dnpipefs.errors import CorruptData, UnsupportedFormat
from dnpipefs.log.barrier import Barrier
from dnpipefs.log.log import Log
from dnpipefs.log.sealer import Step
from dnpipefs.log.session import SessionKeeper
from dnpipefs.log.staleness import Staleness
from tests.model.oracle import Oracle, Topic
from tests.model.scale import CACHE_BYTES, KEPT_WRITERS
from tests.support.network import Gate, GatedClient, Network

SECOND_NS: Final = 10**9
EPOCH_NS: Final = 1_800_000_000 * SECOND_NS
CLOCKS_DIFFER_S: Final = 2
OP_TIMEOUT_S: Final = 7.0

FAULTS: Final = (CorruptData, UnsupportedFormat, etcd.InvalidRequest, etcd.RequestTooLarge)
"""What no scenario may lead to."""

EventSource = Callable[[], Awaitable[list[tuple[int, tuple[etcd.Event, ...]]]]]
"""Gives the revisions that have come since it was asked before, up to the store's newest."""


class SkewedClock:
    """A host's wall clock, off by a bit."""

    def __init__(self, skew_s: float) -> None:
        self._base_ns: Final = EPOCH_NS + int(skew_s * SECOND_NS)
        self._ids: Final = iter(range(1000, 10**9))

    def now_ns(self) -> int:
        return self._base_ns + int(trio.current_time() * SECOND_NS)

    def new_file_id(self) -> FileId:
        return FileId(next(self._ids))


class Host:
    """One host's services."""

    def __init__(
        self, name: str, cluster: Cluster, skew_s: float, way: type[GatedClient] = GatedClient
    ) -> None:
        self.name: Final = name
        self._cluster: Final = cluster
        self.client: Final = way(cluster.store, cluster.network, name)
        # What keeps the session takes no part in the scenario.
        self._ways: Final = GatedClient(cluster.store, cluster.network, name, gated=False)
        keys, clock = cluster.keys, SkewedClock(skew_s)
        self.sessions: Final = SessionKeeper(self._ways, keys, mountpoint=None, version="0", ttl=cluster.ttl)
        self.staleness: Final = Staleness(allowed=cluster.read_stale)
        self._barrier: Final = Barrier(
            self.client, keys, op_timeout=cluster.op_timeout, staleness=self.staleness
        )
        self.log: Final = Log(
            self.client,
            keys,
            clock,
            self.sessions,
            self._barrier,
            op_timeout=cluster.op_timeout,
            cache_limit=cluster.cache_bytes,
            policy=lambda topic: cluster.policies[topic],
            retained=lambda: [
                topic.id for topic in cluster.live_topics() if topic.policy.retention != KEEP_ALL
            ],
        )
        self.log.sealer.at = self._at
        self.nursery: trio.Nursery
        self.without_order: set[FileId] = set()
        """Topics it has deleted while etcd was full: nobody else knows that there is something to sweep."""
        self.judged: dict[FileId, tuple[int, int]] = {}
        """Views that were judged already: which object, at which revision."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            nursery.start_soon(self.sessions.run)
            nursery.start_soon(self._barrier.run)
            await nursery.start(self.log.run)
            task_status.started()
            await trio.sleep_forever()

    def kill(self) -> None:
        """End it as a power cut does: nothing more is sent, what is under way may still arrive."""
        self.client.dead = self._ways.dead = True
        self._cluster.network.cut_off(self.name)
        self.log.give_up()
        self.nursery.cancel_scope.cancel()

    def view(self, topic: FileId) -> TopicView | None:
        """Return the live view of a topic if there is one."""
        return self.log._views.peek(topic)

    async def _at(self, step: Step) -> None:
        if not self.client.dead:
            await self._cluster.network.pass_gate(Gate(self.name, step.name))


class Cluster:
    """The hosts, their network, their store, and the oracle."""

    def __init__(
        self,
        draw: random.Random,
        prefix: str,
        store: etcd.Client,
        events: EventSource,
        compact: Callable[[], Awaitable[None]],
        *,
        ttl: int,
        judge: type[Oracle] = Oracle,
    ) -> None:
        self.draw: Final = draw
        self.keys: Final = KeySchema(prefix)
        self.store: Final = store
        self.compact: Final = compact
        self.ttl: Final = ttl
        self.op_timeout = OP_TIMEOUT_S
        self.read_stale = False
        """Of the hosts that are yet to start."""
        self.cache_bytes = CACHE_BYTES
        self.judges_each = True
        """Each revision, not only the last one of several."""
        self.network: Final = Network()
        self.hosts: Final[list[Host]] = []
        self.policies: Final[dict[FileId, Policy]] = {}
        self.seen: Final = Counter[str]()
        """What has happened how often."""
        self.failure: AssertionError | None = None
        """The first thing that was found wrong, by whichever task."""
        self.oracle: Final = judge(
            self.keys, kept_writers=KEPT_WRITERS, clocks_differ_ns=2 * CLOCKS_DIFFER_S * SECOND_NS
        )
        self._events: Final = events
        self._catching_up: Final = trio.Lock()

    def live_topics(self) -> list[Topic]:
        """Return those that were not deleted."""
        return [
            topic for topic in self.oracle.topics.values() if self.keys.last(topic.id) in self.oracle.store
        ]

    def sessions(self) -> set[int]:
        """Return those whose lease has not ended, of living hosts and dead ones."""
        every = self.keys.sessions
        return {int(key[len(every.start) :], 16) for key in self.oracle.between(every.start, every.end)}

    def living(self) -> set[int]:
        """Return the sessions of the hosts there are."""
        return {session for host in self.hosts if (session := host.sessions.current()) is not None}

    def fail(self, text: str) -> None:
        """Take note of something wrong; the scenario ends with it."""
        self.failure = self.failure or AssertionError(text)

    async def create(self, topic: FileId, policy: Policy) -> Topic:
        """Create a topic; its name is nobody's business here."""
        created = self.oracle.topics[topic] = Topic(topic, policy)
        self.policies[topic] = policy
        writes = generation.begin(self.keys, topic, EPOCH_NS)
        await self.store.transaction((), [etcd.put(key, value) for key, value in writes])
        await self.catch_up()
        return created

    async def catch_up(self) -> None:
        """Let the oracle judge everything that has happened."""
        async with self._catching_up:  # readers want it, too, and revisions must come in order
            now_ns = EPOCH_NS + int(trio.current_time() * SECOND_NS)
            new = await self._events()
            for revision, events in new:
                if self.failure is not None:
                    return
                judge = self.judges_each or revision == new[-1][0]
                try:
                    self.oracle.take(revision, events, now_ns, judge=judge)
                except AssertionError as error:
                    self.failure = error


class Complaints(logging.Handler):
    """Takes note of what the services log and nobody else hears of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        faulty = any(isinstance(argument, FAULTS) for argument in arguments)
        broken = "taking a new snapshot" in record.msg and "compacted" not in record.msg
        if record.levelno >= logging.ERROR or faulty or broken:
            text = record.getMessage()
            self.found.append(f"{text}: {record.exc_info[1]!r}" if record.exc_info else text)


@contextmanager
def watched_log() -> Iterator[Complaints]:
    """Listen to the services' log at its finest."""
    handler, logger = Complaints(), logging.getLogger("dnpipefs")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
