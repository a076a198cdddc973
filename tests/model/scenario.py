"""A random life of a cluster: everything that can happen to it, in any order, and a judge after each step.

A step opens one gate (a request, a delivery of a watch, a step of sealing), or begins, ends or breaks
something; then it waits until every task stands at a gate again. So each step is one moment of the
cluster. Everything is drawn from one seed. Whether the store is in memory or a real etcd the scenario
does not know.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio
from trio.testing import MockClock

from dnpipefs import etcd
from dnpipefs.core import generation
from dnpipefs.core.batch import Chunk
from dnpipefs.core.names import FileId, Revision
from dnpipefs.core.records import encode_time
from dnpipefs.core.sealing import Policy, Retention
from dnpipefs.core.view import Entry, TopicView
from dnpipefs.errors import DnpError, OutOfSpace, TimedOut, TopicGone, UnknownOutcome
from tests.model.hosts import (
    CLOCKS_DIFFER_S,
    EPOCH_NS,
    FAULTS,
    OP_TIMEOUT_S,
    SECOND_NS,
    Cluster,
    Complaints,
    Host,
)
from tests.model.oracle import Shown, Topic
from tests.model.reads import Reading
from tests.model.scale import IN_THE_TAIL, PART_BYTES
from tests.support.network import Fate, Request, WatchGate

HOSTS: Final = 3
TOPICS: Final = 2
REST_S: Final = 140.0
"""Two rounds through all topics (`log/schedule.py`) and some."""
PATIENCE: Final = 40
"""Half seconds in which must come what must come."""

_MORE_OR_LESS: Final = (0, 0.3, 1, 1, 1, 3)
_KINDS: Final = (("lines", 50), ("no newline", 10), ("message", 12), ("large", 10), ("parts", 8))
_RETENTIONS: Final = (
    Retention(),
    Retention(),
    Retention(bytes=0),
    Retention(bytes=300),
    Retention(bytes=1500),
    Retention(messages=1),
    Retention(messages=10),
    Retention(messages=40),
    Retention(age_ns=SECOND_NS),
    Retention(age_ns=20 * SECOND_NS),
    Retention(bytes=900, age_ns=30 * SECOND_NS, messages=30),
)


@dataclass(slots=True, eq=False)
class Push:
    """One append and what its caller was told."""

    topic: Topic
    messages: list[bytes]
    """All different, so each can be told from any other."""
    began: int
    """The store's revision when it was called."""
    fate: str = "under way"


class Scenario:
    """One life of a cluster."""

    def __init__(self, cluster: Cluster, nursery: trio.Nursery, complaints: Complaints) -> None:
        self._cluster: Final = cluster
        self._draw: Final = cluster.draw
        self._seen: Final = cluster.seen
        self._network: Final = cluster.network
        self._nursery: Final = nursery
        self._complaints: Final = complaints
        self._names: Final = iter(range(1, 10**6))
        self._numbers: Final = iter(range(1, 10**9))
        self._pushes: Final[list[Push]] = []
        self._full = False
        self._without_order: Final[set[FileId]] = set()
        """Deleted while etcd was full, by a host that died before it had removed what was left: fsck's."""
        self._late_orders: Final[set[bytes]] = set()
        """Orders put by requests that nobody waited for: they are carried out when the session ends."""
        self._trouble: Final = self._draw.choice((0.0, 0.05, 0.15, 0.3))
        self._haste = self._draw.choice((0.4, 0.6, 0.8))
        self._weights: Final = self._weigh()
        self._kinds: Final = {kind: weight * self._draw.choice((0.2, 1, 1, 4)) for kind, weight in _KINDS}

    async def live(self, steps: int) -> None:
        """Do that many steps, then let the cluster come to rest. AssertionError if something is wrong."""
        for _ in range(2):
            await self._new_host()
        for _ in range(TOPICS):
            await self._new_topic()
        for _ in range(steps):
            await self._step()
            await self._judge()
        await self._come_to_rest()

    # What can happen

    async def _step(self) -> None:
        if self._network.waiting and self._draw.random() < self._haste:
            await self._open_gate()
            return
        (action,) = self._draw.choices(list(self._weights), list(self._weights.values()))
        await action()

    def _weigh(self) -> dict[Callable[[], Awaitable[None]], float]:
        """Return how often what happens: some things more often in one life, never in another."""
        actions: dict[Callable[[], Awaitable[None]], float] = {
            self._read: 10,
            self._stat: 3,
            self._seal: 10,
            self._trim: 6,
            self._sweep: 3,
            self._wait: 14,
            self._let_late_ones_arrive: 4,
            self._reset: 2.5,
            self._new_host: 1.2,
            self._kill: 1.2,
            self._lose_session: 1,
            self._end_lease: 0.8,
            self._fill_or_free: 0.8,
            self._delete: 0.6,
            self._compact: 0.6,
            self._wait_long: 0.5,
        }
        weights = {action: weight * self._draw.choice(_MORE_OR_LESS) for action, weight in actions.items()}
        return weights | {self._push: 30}

    async def _open_gate(self) -> None:
        gate = self._draw.choice(self._network.waiting)
        fate = Fate.DELIVER
        if isinstance(gate, WatchGate):
            gate.revisions = self._draw.choice((1, 1, 2, 100))
            if self._draw.random() < self._trouble / 4:
                gate.broken = etcd.Compacted("broken by the test", 1)
                self._seen["watch broken"] += 1
        elif isinstance(gate, Request):
            fate = self._fate(gate)
            self._seen[f"{gate.what}: {fate.value}"] += 1
        else:
            self._seen[f"went on at {gate.what}"] += 1
        gate.open(fate)
        await self._network.settle()

    def _fate(self, request: Request) -> Fate:
        if self._full and request.puts:
            return Fate.FULL
        if self._draw.random() >= self._trouble:
            return Fate.DELIVER
        if not request.writes:
            return self._draw.choice((Fate.LOSE_ANSWER, Fate.REFUSE))
        return self._draw.choice((Fate.LOSE_ANSWER, Fate.LOSE_REQUEST, Fate.REFUSE))

    def _host(self) -> Host:
        return self._draw.choice(self._cluster.hosts)

    def _topic(self) -> Topic:
        return self._draw.choice(self._cluster.live_topics())

    async def _new_host(self) -> None:
        if len(self._cluster.hosts) >= HOSTS:
            return
        skew_s = self._draw.uniform(-CLOCKS_DIFFER_S, CLOCKS_DIFFER_S)
        host = Host(f"host{next(self._names)}", self._cluster, skew_s)
        await self._nursery.start(host.run)
        self._cluster.hosts.append(host)
        await self._until(lambda: host.sessions.current() is not None)

    async def _new_topic(self) -> None:
        topic = FileId(0x100 + next(self._numbers))
        policy = Policy(self._draw.choice(_RETENTIONS), self._draw.random() < 0.5)
        await self._cluster.create(topic, policy)

    async def _push(self) -> None:
        host, topic = self._host(), self._topic()
        chunk, messages = self._chunk()
        await self._start_push(host, Push(topic, messages, self._cluster.oracle.revision), chunk)

    def _chunk(self) -> tuple[Chunk, list[bytes]]:
        draw = self._draw
        (kind,) = draw.choices(list(self._kinds), list(self._kinds.values()))
        self._seen[f"push: {kind}"] += 1
        if kind in ("lines", "no newline"):
            sizes = [draw.choice((0, 3, 40, 120)) for _ in range(draw.choice((1, 1, 1, 2, 5)))]
            lines = [self._text(size) + b"\n" for size in sizes]
            if kind == "no newline":
                lines[-1] = lines[-1][:-1]
            return Chunk.of_lines(b"".join(lines)), lines
        if kind == "message":
            one = self._text(draw.randrange(30)) + draw.choice((b"\n", b"\ntwo", b"\n\n"))
        elif kind == "large":
            one = self._text(draw.randrange(IN_THE_TAIL, PART_BYTES - 100)) + b"\n"
        else:
            one = b"%d " % next(self._numbers) + draw.randbytes(draw.randrange(PART_BYTES, 3 * PART_BYTES))
        return Chunk.of_message(one), [one]

    def _text(self, size: int) -> bytes:
        """Return a line's bytes, without newline, unlike any other."""
        filler = self._draw.choice((b"x" * size, self._draw.randbytes(size).replace(b"\n", b"!")))
        return b"%d " % next(self._numbers) + filler

    async def _start_push(self, host: Host, push: Push, chunk: Chunk) -> None:
        self._pushes.append(push)
        host.nursery.start_soon(self._carry_out_push, host, push, chunk)
        await self._network.settle()

    async def _carry_out_push(self, host: Host, push: Push, chunk: Chunk) -> None:
        fate, revision = "unknown", None  # if it is cut short
        try:
            revision = await host.log.append(push.topic.id, chunk, born=push.topic.generations[0].began)
            fate = "committed"
        except TimedOut:
            fate = "timed out"
        except UnknownOutcome:
            pass
        except TopicGone:
            fate = "gone"
        except OutOfSpace:
            fate = "out of space"
        except FAULTS as error:
            self._cluster.fail(f"a push met {error!r}")
        except etcd.Definite:
            fate = "refused"
        finally:
            push.fate = fate
            self._seen[f"push {fate}"] += 1
        if revision is not None:
            await self._must_be_there(push, revision)

    async def _must_be_there(self, push: Push, revision: Revision) -> None:
        """D1: what is acknowledged is there, once, and was not there before it was pushed."""
        await self._cluster.catch_up()
        for message in push.messages:
            found = self._cluster.oracle.found.get(message, [])
            # Of what was sealed before anybody asked only the fact is known, not the revision.
            if len(found) != 1 or (revision and found[0] != revision) or found[0] <= push.began:
                self._cluster.fail(f"D1: {message[:40]!r} was committed at {revision} and stands at {found}")

    async def _read(self) -> None:
        host = self._host()
        host.nursery.start_soon(Reading(self._cluster, host, self._topic()).run)
        await self._network.settle()

    async def _stat(self) -> None:
        host, topic = self._host(), self._topic()

        async def look() -> None:
            stat = await host.log.stat(topic.id)
            await self._cluster.catch_up()
            if topic.shown[-1][1] is None:
                return  # deleted: it shows nothing until its name is gone, too
            # A view may lag behind what others did; what is shown must have been so at one time.
            found = (stat.end, stat.first, stat.messages, stat.generation)
            if not any(
                shown is not None
                and found == (shown.end, shown.first, shown.messages - shown.first_message, shown.generation)
                for _, shown in topic.shown
            ):
                self._cluster.fail(f"stat shows {stat}, which never was")

        await self._begin(host, "stat", look)

    async def _seal(self) -> None:
        host, topic, down_to = self._host(), self._topic(), self._draw.choice((0, 0, 2))
        await self._begin(host, "seal", lambda: host.log.sealer.seal(topic.id, down_to=down_to))

    async def _trim(self) -> None:
        host, topic = self._host(), self._topic()
        await self._begin(host, "trim", lambda: host.log.sealer.trim(topic.id))

    async def _sweep(self) -> None:
        host = self._host()
        await self._begin(host, "sweep", host.log.sweeper.sweep_all)

    async def _reset(self) -> None:
        host, topic = self._host(), self._topic()
        before = topic.current

        async def reset() -> None:
            await host.log.reset(topic.id)
            await self._cluster.catch_up()
            if before is not None and before.ended is None:
                self._cluster.fail("D5: a reset returned and the generation goes on")

        await self._begin(host, "reset", reset)

    async def _begin(self, host: Host, what: str, action: Callable[[], Awaitable[object]]) -> None:
        """Let a host begin something; it goes on at its gates."""

        async def carry_out() -> None:
            try:
                await action()
                self._seen[f"{what}: done"] += 1
            except FAULTS as error:
                self._cluster.fail(f"{what} met {error!r}")
            except DnpError as error:
                self._seen[f"{what}: {type(error).__name__}"] += 1

        host.nursery.start_soon(carry_out)
        await self._network.settle()

    async def _wait(self) -> None:
        await self._pass_time(self._draw.choice((0.02, 0.3, 1.0, 2.5, 4.0)))

    async def _wait_long(self) -> None:
        """Much time passes while nothing gets through: callers give up."""
        await self._pass_time(OP_TIMEOUT_S + 1)

    async def _pass_time(self, seconds: float) -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        clock.jump(seconds)
        await self._network.settle()

    async def _let_late_ones_arrive(self) -> None:
        late = self._network.late
        if late:
            await self._arrive(late.pop(self._draw.randrange(len(late))))

    async def _arrive(self, request: Request) -> None:
        await self._cluster.catch_up()
        before = self._orders()
        try:
            await request.send()
        except FAULTS as error:
            self._cluster.fail(f"a late request met {error!r}")
        except etcd.EtcdError:
            self._seen["late and refused"] += 1
        await self._cluster.catch_up()
        self._late_orders.update(self._orders() - before)
        self._seen[f"late {request.what}"] += 1
        await self._network.settle()

    def _orders(self) -> set[bytes]:
        pending = self._cluster.keys.all_pending
        return set(self._cluster.oracle.between(pending.start, pending.end))

    async def _lose_session(self) -> None:
        """End the lease of a living host: it was cut off for too long."""
        session = self._host().sessions.current()
        if session is not None:
            await self._revoke(session)
            self._seen["session lost"] += 1

    async def _end_lease(self) -> None:
        """End the lease of a host that was killed."""
        dead = sorted(self._cluster.sessions() - self._cluster.living())
        if dead:
            await self._revoke(self._draw.choice(dead))

    async def _revoke(self, session: int) -> None:
        try:
            await self._cluster.store.lease_revoke(session)
        except etcd.LeaseNotFound:
            return
        await self._cluster.catch_up()

    async def _kill(self) -> None:
        if len(self._cluster.hosts) == 1:
            return
        host = self._cluster.hosts.pop(self._draw.randrange(len(self._cluster.hosts)))
        self._seen.update(
            f"killed at {gate.what}" for gate in self._network.waiting if gate.host == host.name
        )
        self._without_order.update(host.without_order)
        host.kill()
        await self._network.settle()

    async def _delete(self) -> None:
        """Delete a topic as unlink does, and create another one."""
        keys, topic, host = self._cluster.keys, self._topic(), self._host()
        deletes = [etcd.delete(key) for key in generation.end_topic(keys, topic.id)]
        order = [] if self._full else [etcd.put(keys.trash(topic.id), encode_time(EPOCH_NS))]
        await self._cluster.store.transaction((), [*deletes, *order])
        await self._cluster.catch_up()
        host.log.forget(topic.id)
        if self._full:
            host.without_order.add(topic.id)
        self._seen["deleted"] += 1
        await self._new_topic()

    async def _fill_or_free(self) -> None:
        self._full = not self._full
        self._seen["full" if self._full else "free again"] += 1
        puts = [gate for gate in self._network.waiting if isinstance(gate, Request) and gate.puts]
        if self._full and puts:
            gate = self._draw.choice(puts)
            self._seen[f"{gate.what}: {Fate.CROSS_QUOTA.value}"] += 1
            gate.open(Fate.CROSS_QUOTA)
            await self._network.settle()

    async def _compact(self) -> None:
        await self._cluster.compact()
        self._seen["compacted"] += 1

    # Judging

    async def _judge(self) -> None:
        await self._cluster.catch_up()
        if self._cluster.failure is not None:
            raise self._cluster.failure
        for host in self._cluster.hosts:
            for topic in self._cluster.live_topics():
                view = host.view(topic.id)
                if view is not None:
                    self._judge_view(host, topic, view)
        assert not self._complaints.found, f"the services complain: {self._complaints.found}"
        assert not self._network.endless, f"{self._network.endless} asks etcd without end"
        for error in self._network.failures:
            assert not isinstance(error, FAULTS), f"etcd refuses what the services send: {error}"
        self._network.failures.clear()

    def _judge_view(self, host: Host, topic: Topic, view: TopicView) -> None:
        """V1: a live view shows what every view shows at its revision."""
        if host.judged.get(topic.id) == (id(view), view.revision):
            return
        expected, shown = topic.at(view.revision), Shown.by(view)
        if view.ended and expected is not None:
            expected = expected._replace(modified_ns=shown.modified_ns)  # a reset by deletion tells no time
        assert shown == expected, f"V1: {host.name} shows {shown}, it is {expected}"
        entries: list[Entry] = [*view.sealed, *view.entries]
        for entry in entries:
            assert view.locate(entry.start, 1) == [entry], f"V2: {entry} is not found at its offset"
        host.judged[topic.id] = id(view), view.revision
        self._seen["view judged"] += 1
        self._seen["view lagging"] += view.revision < self._cluster.oracle.revision

    # The end

    async def _until(self, condition: Callable[[], bool]) -> None:
        for _ in range(PATIENCE):
            await self._network.settle()
            if condition():
                return
            await self._pass_time(0.5)
        raise AssertionError("what must come does not come")

    async def _come_to_rest(self) -> None:
        """Everything gets through again and the dead are forgotten: what is left is what is needed."""
        cluster, network = self._cluster, self._network
        self._full = False
        network.open = True
        while network.waiting:
            for gate in list(network.waiting):
                gate.open()
            await network.settle()
        while network.late:
            await self._arrive(network.late.pop())
        for session in sorted(cluster.sessions() - cluster.living()):
            await self._revoke(session)
        await self._until(lambda: all(host.sessions.current() is not None for host in cluster.hosts))
        for topic in cluster.live_topics():  # a generation begins where there is none, and is swept for
            await self._push_last(cluster.hosts[0], topic, 0)
        for host in cluster.hosts:  # parts that could not be removed are removed with the next large push
            await self._push_last(host, self._topic(), 2 * PART_BYTES)
        await self._judge()
        for _ in range(int(REST_S / 2)):
            await self._pass_time(2.0)
            await self._judge()
        self._judge_pushes()
        self._judge_leftovers()

    async def _push_last(self, host: Host, topic: Topic, size: int) -> None:
        message = b"%d last " % next(self._numbers) + self._draw.randbytes(size)
        push = Push(topic, [message], self._cluster.oracle.revision)
        await self._start_push(host, push, Chunk.of_message(message))
        await self._until(lambda: push.fate == "committed")

    def _judge_pushes(self) -> None:
        """D1, D2: each push is in as often as its caller was told."""
        for push in self._pushes:
            for message in push.messages:
                found = self._cluster.oracle.found.get(message, [])
                told = f"{push.fate}, and appended at {found}"
                if push.fate == "committed":
                    assert len(found) == 1, f"D1: {told}"
                elif push.fate in ("timed out", "unknown", "gone"):
                    assert len(found) <= 1, f"D2: {told}"
                    self._seen[f"{push.fate}, and in"] += bool(found)
                else:
                    assert push.fate in ("refused", "out of space"), f"{push.fate} at the end"
                    assert not found, f"D2: {told}"

    def _judge_leftovers(self) -> None:
        cluster, oracle = self._cluster, self._cluster.oracle
        for topic in cluster.live_topics():
            shown = topic.at(oracle.revision)
            assert shown is not None
            assert not shown.tail, f"an idle topic has a tail: {shown.tail}"
        expected: set[bytes] = set()
        for order in self._late_orders:
            expected |= {order, *cluster.keys.body_parts(*cluster.keys.parse_pending(order))}
        unswept = [b"/%016x/" % topic for topic in self._without_order]
        leftovers = [
            key
            for key in oracle.leftovers(cluster.living())
            if key not in expected and not any(topic in key + b"/" for topic in unswept)
        ]
        assert not leftovers, f"nobody needs, and nobody removes: {leftovers}"
