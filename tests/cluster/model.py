"""A small model of the system that makes histories: right ones, and wrong ones by a planted fault.

Discrete events on a made-up clock: each client is a generator that yields when it goes on, and what it
does in between is atomic. A call begins, takes effect and ends at three times, so calls overlap. Some have
an unknown outcome: they took effect, will do so after they were given up, or never.

A fault is a name of what the system does wrong, once, when `trouble_at` has passed and the occasion comes.
`planted` then says what the judge has to name.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from tests.cluster.history import (
    Call,
    Create,
    Delete,
    Final,
    Hear,
    History,
    Listing,
    Open,
    Read,
    Rename,
    Subscribe,
    Truncate,
    Write,
)
from tests.support.messages import Outcome, message
from tests.support.topic_log import NEVER

Client = Generator[float, None, None]
LAG = 30.0
"""The longest that a watch takes, in milliseconds like all of the model's times; calls take up to 20."""
UNIT_NS = 1_000_000
EDGE = (bytearray(), bytearray(b"\n"))
"""What stands before a message."""


class Acked(NamedTuple):
    """Where an acknowledged message lies, and when it was pushed."""

    offset: int
    end: int
    began: int
    ended: int


NOTHING = Acked(0, 0, 0, 0)


@dataclass
class Topic:
    """One topic, its generations, and which of them each host sees without asking."""

    ino: int
    kept: bool
    """Never reset."""
    lasting: bool
    """Never reset or deleted."""
    generations: list[bytearray] = field(default_factory=lambda: [bytearray()])
    views: dict[str, int] = field(default_factory=dict)
    deleted: bool = False
    deleted_by: float = math.inf
    """When a deletion had returned."""
    acked: Acked = NOTHING
    """The last message that was acknowledged."""
    read_to: int = 0
    """How much of its newest generation somebody has read."""
    surely_reset: int = -1
    """The newest generation that began with a reset which said so."""
    unsure: bool = False
    """A reset has had an unknown outcome."""

    @property
    def log(self) -> bytearray:
        return self.generations[-1]


@dataclass
class Sizes:
    """How much of everything."""

    hosts: int = 3
    writers: int = 6
    readers: int = 3
    followers: int = 3
    subscribers: int = 3
    resetters: int = 2
    churners: int = 2
    batch: int = 4
    until: float = 4000.0
    unknown: float = 0.03
    reading: float = 60.0
    """The longest pause between reads of whole topics."""
    following: int = 60
    """The most polls of one follower."""
    resetting: float = 800.0
    """The longest pause between resets."""
    short_reads: float = 0.5
    """Of readers, how many are given a few bytes a read."""


class Model:
    """A cluster that lives until a time, and its history."""

    def __init__(self, seed: int, sizes: Sizes | None = None, fault: str = "") -> None:
        self.sizes = sizes or Sizes()
        self.random = Random(seed)
        self.calls: list[Call] = []
        self.fault = fault
        self.planted = ""
        self.trouble_at = self.sizes.until / 2
        self.stuck: tuple[str, int] | None = None
        """A host that does not hear of resets of a topic any more."""
        self.spared: Topic | None = None
        """Is not reset any more, so that somebody sees what is wrong in it."""
        self.now = 0.0
        self._last = 0
        self._events: list[tuple[float, int, Client]] = []
        self._order = itertools.count()
        self._inos = itertools.count(0x100)
        self.topics: dict[int, Topic] = {}
        self.names: dict[str, int] = {}
        self.past_names: dict[str, list[tuple[float, int]]] = {}
        self.hosts = [f"m{n}" for n in range(self.sizes.hosts)]

    def run(self) -> History:
        """Let everybody live; return the history, in no order that means anything."""
        for name in ("kept0", "kept1", "reset0", "reset1", "gone"):
            made = Create(client="parent", mount="m0", began=self.at(), ended=self.at(), name=name)
            made.ino = self.make(name, kept=name.startswith("kept"))
            self.calls.append(made)
        ino = self.names["gone"]
        gone = Delete(client="parent", mount="m0", began=self.at(), ended=self.at(), name="gone", ino=ino)
        self.delete("gone")
        self.calls.append(gone)
        sizes = self.sizes
        for kind, count in (
            (self.writer, sizes.writers),
            (self.reader, sizes.readers),
            (self.follower, sizes.followers),
            (self.subscriber, sizes.subscribers),
            (self.resetter, sizes.resetters),
            (self.churner, sizes.churners),
        ):
            for n in range(count):
                self.start(kind(f"{kind.__name__}{n}", self.hosts[n % len(self.hosts)]))
        self._spin()
        self._final()
        self.random.shuffle(self.calls)
        return History(self.calls)

    def _spin(self) -> None:
        while self._events:
            self.now, _, client = heapq.heappop(self._events)
            try:
                until = next(client)
            except StopIteration:
                continue
            heapq.heappush(self._events, (max(until, self.now), next(self._order), client))

    def _final(self) -> None:
        names = sorted(self.names)
        for host in self.hosts:
            for name in names:
                self.start(self._read_once(f"final-{host}", host, name))
        self._spin()
        final = Final(client="parent", mount="", began=0, ended=self.at(), mounts=(), names=())
        final.mounts, final.names, final.round = tuple(self.hosts), tuple(names), 1
        self.calls.append(final)

    # What the system is asked to do

    def start(self, client: Client) -> None:
        heapq.heappush(self._events, (self.now + self.random.random(), next(self._order), client))

    def at(self) -> int:
        """Return the time as histories have it; never the same twice."""
        self._last = max(self._last + 1, int(self.now * UNIT_NS))
        return self._last

    def soon(self, longest: float = 10.0) -> float:
        return self.now + self.random.random() * longest

    def trouble(self, fault: str, text: str = "") -> bool:
        """Tell whether this is the occasion for the fault; `text`: what the judge has to name."""
        if self.fault != fault or self.planted or self.now < self.trouble_at:
            return False
        self.planted = text or fault
        return True

    def make(self, name: str, *, kept: bool) -> int:
        ino = next(self._inos)
        self.topics[ino] = Topic(ino, kept, name.startswith("kept"), views=dict.fromkeys(self.hosts, 0))
        self.bind(name, ino)
        return ino

    def delete(self, name: str) -> None:
        self.topics[self.names[name]].deleted = True
        self.bind(name, 0)

    def bind(self, name: str, ino: int) -> None:
        self.past_names.setdefault(name, [(0.0, 0)]).append((self.now, ino))
        if ino:
            self.names[name] = ino
        else:
            self.names.pop(name, None)

    def find(self, name: str) -> int:
        """Return what a host finds, which may be what the name has just ceased to mean."""
        recent = [ino for since, ino in self.past_names.get(name, [])[-2:-1] if ino and self.names.get(name)]
        stale = [ino for ino in recent if not self.topics[ino].deleted]
        if stale and self.past_names[name][-1][0] > self.now - LAG and self.random.random() < 0.5:
            return stale[0]
        return self.names.get(name, 0)

    def confirm(self, host: str, topic: Topic) -> None:
        self._see(host, topic, len(topic.generations) - 1)

    def _see(self, host: str, topic: Topic, generation: int) -> None:
        if (host, topic.ino) != self.stuck:
            topic.views[host] = max(topic.views[host], generation)

    def append(self, topic: Topic, lines: list[bytes], call: Write) -> None:
        if topic.deleted:
            return
        log = topic.log
        if len(lines) > 1 and call.ok and topic.lasting and self.trouble("mix batch", "of the same write"):
            lines = lines[::-1]
        for line in lines:
            tag = b" ".join(line.split(b" ")[:2]).decode()
            sure = call.ok and topic.lasting
            if sure and self.trouble("lose", tag):
                continue
            if sure and self.trouble("double", tag):
                log += line
            if not call.ok and topic.lasting and self.trouble("double unknown", tag):
                log += line
            if sure and self.trouble("tear", repr(line[:-3])[2:20]):
                log += line[:-3] + b"\n"
                continue
            last = topic.acked
            unread = last.end == len(log) and topic.read_to <= last.offset and last.ended < call.began
            if sure and unread and self.trouble("reorder", f"behind {tag}"):
                log[last.offset : last.offset] = line
                continue
            log += line

    def reset(self, topic: Topic, call: Truncate) -> int:
        """Begin a new generation; return its number."""
        topic.generations.append(bytearray())
        topic.read_to = 0
        topic.acked = NOTHING
        old = topic.generations[-2]
        if call.ok and len(old) > 1000 and self.trouble("survive", "reset"):
            topic.log[:] = old[: old.rfind(b"\n", 0, len(old) // 2 + 80) + 1]
            self.spared = topic
        generation = len(topic.generations) - 1
        for host in self.hosts:
            self.start(self._switch(topic, host, generation, self.soon(LAG)))
        if call.ok and not topic.unsure and self.trouble("reset twice", "reset"):
            self.spared = topic
            self.start(self._late(lambda: topic.generations.append(bytearray()), self.now + 500))
        return generation

    def _switch(self, topic: Topic, host: str, generation: int, time: float) -> Client:
        yield time
        self._see(host, topic, generation)

    def read(self, host: str, topic: Topic, offset: int, length: int = 0) -> bytes:
        """Return what one read(2) does."""
        length = length or self.random.randrange(1, 900)
        topic.read_to = len(topic.log)
        data = topic.generations[topic.views[host]][offset : offset + length]
        if data:
            return bytes(data)
        self.confirm(host, topic)
        return bytes(topic.log[offset : offset + length])

    # Clients

    def _attempt(self, call: Call, effect: Callable[[], None]) -> Client:
        """Let a call that changes something take its course; it may fail, with unknown outcome."""
        self.calls.append(call)
        call.began = self.at()
        yield self.soon()
        fate = self.random.random() / self.sizes.unknown
        if fate >= 1:
            effect()
        else:
            call.outcome, call.errno = Outcome.UNKNOWN, errno.ETIMEDOUT
            if fate < 1 / 3:
                effect()
            elif fate < 2 / 3:
                self.start(self._late(effect, self.soon(200)))
            if fate > 0.9:
                call.errno = 0  # nobody was ever told
                yield self.soon(20)
                return
        yield self.soon()
        call.ended = self.at()

    @staticmethod
    def _late(effect: Callable[[], None], time: float) -> Client:
        yield time
        effect()

    def _some(self) -> Topic:
        return self.topics[self.random.choice(sorted(self.names.values()))]

    def writer(self, client: str, host: str) -> Client:
        number = 0
        topic = self._some()
        while self.now < self.sizes.until:
            if self.random.random() < 0.2:
                topic = self._some()
            count = self.random.choice((1, 1, 1, self.sizes.batch))
            lines = [message(client, number + n, b"x" * self.random.randrange(30)) for n in range(count)]
            call = Write(client=client, mount=host, began=0, ino=topic.ino, writer=client, first=0, count=0)
            call.first, call.count = number, count
            end = 0
            late = topic.deleted_by < self.now

            def effect(
                topic: Topic = topic, lines: list[bytes] = lines, call: Write = call, late: bool = late
            ) -> None:
                nonlocal end
                if topic.deleted:
                    if call.ok and not (late and self.trouble("accept deleted", f"{client} {call.first}")):
                        call.outcome, call.errno = Outcome.FAILED, errno.ESTALE
                    return
                if call.ok and self.random.random() < 0.05:
                    call.outcome, call.errno = Outcome.FAILED, errno.ENOSPC
                    if not (topic.lasting and self.trouble("apply failed", f"{client} {call.first}")):
                        return
                self.append(topic, lines, call)
                end = len(topic.log)

            yield from self._attempt(call, effect)
            if call.ok and end > topic.acked.end and call.ended != NEVER and topic.kept:
                topic.acked = Acked(end - len(lines[-1]), end, call.began, call.ended)
            number += count
            yield self.soon()

    def reader(self, client: str, host: str) -> Client:
        known: dict[int, bytes] = {}
        for handle in itertools.count():
            if self.now > self.sizes.until:
                return
            name = self.random.choice(sorted(self.past_names))
            yield from self._read_once(client, host, name, handle, known)
            if self.random.random() < 0.1:
                yield from self._list(client, host)
            yield self.soon(self.sizes.reading)

    def _read_once(
        self, client: str, host: str, name: str, handle: int = 0, known: dict[int, bytes] | None = None
    ) -> Client:
        """Open, read to the end."""
        opened = Open(client=client, mount=host, began=self.at(), name=name, mode="read", handle=handle)
        self.calls.append(opened)
        yield self.soon()
        opened.ino = self.find(name)
        if name == "gone" and self.trouble("stale name", "gone was topic"):
            opened.ino = self.past_names[name][1][1]
        if name == "kept0" and self.trouble("missing name", name):
            opened.ino = 0
        if not opened.ino:
            opened.outcome, opened.errno = Outcome.FAILED, errno.ENOENT
            opened.ended = self.at()
            return
        topic = self.topics[opened.ino]
        before = topic.generations[-2:-1]
        surely = topic.surely_reset == len(topic.generations) - 1 and len(before[0]) > 300
        if surely and self.trouble("resurrect", "reset"):
            topic.views[host] = len(topic.generations) - 2
            self.stuck = host, topic.ino
        else:
            self.confirm(host, topic)
        opened.size = 0 if self._short(topic, 0, "stale open") else len(topic.log)
        yield self.soon()
        opened.ended = self.at()
        yield from self._scan(client, host, topic, name, handle, 0, known)

    def _short(self, topic: Topic, offset: int, fault: str) -> bool:
        long = topic.lasting and not offset and len(topic.log) > 1000
        return long and self.trouble(fault, "without")

    def _scan(
        self,
        client: str,
        host: str,
        topic: Topic,
        name: str,
        handle: int,
        offset: int,
        known: dict[int, bytes] | None = None,
    ) -> Generator[float, None, int]:
        read = Read(
            client=client, mount=host, began=self.at(), handle=handle, ino=topic.ino, name=name, offset=0
        )
        read.offset, read.round = offset, int(client.startswith("final"))
        self.calls.append(read)
        data, sizes = b"", []
        long = 0 if self.random.random() < self.sizes.short_reads else 1 << 20
        while True:
            read.last_began = self.at()
            yield self.soon(2)
            if topic.deleted:
                read.outcome, read.errno = Outcome.FAILED, errno.ESTALE
                break
            piece = self.read(host, topic, offset + len(data), long)
            if self._short(topic, offset, "stale end"):
                piece = b""
                data = data[: data.rfind(b"\n", 0, 300) + 1]
                sizes = [len(data)]
            sizes.append(len(piece))
            data += piece
            if not piece:
                break
        if topic.lasting and not offset and len(data) > 1000 and self.trouble("diverge", "at "):
            first, second = data.find(b"\n") + 1, data.find(b"\n", data.find(b"\n") + 1) + 1
            data = data[first:second] + data[:first] + data[second:]
        elif known is not None and topic.kept and not offset:
            before = known.get(topic.ino, b"")
            if data.startswith(before):
                known[topic.ino], read.base = data, len(before)
                data = data[len(before) :]
        read.data, read.sizes = data, tuple(sizes)
        yield self.soon(2)
        read.ended = self.at()
        return offset + read.base + len(data) if sizes and not sizes[-1] else -1

    def follower(self, client: str, host: str) -> Client:
        for handle in itertools.count():
            name = self.random.choice([name for name in sorted(self.names) if name[0] in "kr"])
            topic = self.topics[self.names[name]]
            opened = Open(client=client, mount=host, began=self.at(), name=name, mode="read", handle=handle)
            opened.ino = topic.ino
            self.calls.append(opened)
            yield self.soon()
            self.confirm(host, topic)
            opened.size = len(topic.log)
            opened.ended = self.at()
            offset = 0
            for _ in range(self.random.randrange(1, self.sizes.following)):
                if self.now > self.sizes.until:
                    return
                offset = yield from self._scan(client, host, topic, name, handle, offset)
                if offset > len(topic.log):
                    offset = 0
                yield self.soon(20)

    def _list(self, client: str, host: str) -> Client:
        listing = Listing(client=client, mount=host, began=self.at())
        self.calls.append(listing)
        yield self.soon()
        names = sorted(self.names)
        if self.trouble("hide", "lacks kept0"):
            names.remove("kept0")
        if self.trouble("show", "shows gone"):
            names.append("gone")
        listing.names = tuple(names)
        yield self.soon()
        listing.ended = self.at()

    def subscriber(self, client: str, host: str) -> Client:
        for handle in itertools.count():
            if self.now > self.sizes.until:
                return
            name = self.random.choice(("kept0", "kept1", "reset0"))
            topic = self.topics[self.names[name]]
            opened = Subscribe(
                client=client, mount=host, began=self.at(), name=name, handle=handle, ino=topic.ino
            )
            self.calls.append(opened)
            yield self.soon()
            generation, at = len(topic.generations) - 1, len(topic.log)
            cut = topic.log.rfind(b"\n", 0, max(0, topic.acked.offset - 400)) + 1
            if cut and self.trouble("early", "known by"):
                at = cut
            yield self.soon()
            opened.ended = self.at()
            for _ in range(self.random.randrange(1, 200)):
                hear = Hear(client=client, mount=host, began=self.at(), handle=handle)
                self.calls.append(hear)
                there = topic.acked
                yield self.soon(3)
                if generation != len(topic.generations) - 1:
                    generation, at = len(topic.generations) - 1, 0
                data = bytes(topic.log[at : at + self.random.randrange(1, 400)])
                due = there.end > at and there.began > opened.ended and topic.log[at - 1 : at] in EDGE
                if due and self.trouble("dry", "nothing to read"):
                    data = b""
                at += len(data)
                topic.read_to = max(topic.read_to, at)
                hear.data = data
                if topic.kept:
                    self._distort(hear, topic, at)
                yield self.soon(3)
                hear.ended = self.at()
                if not hear.data:
                    yield self.soon(30)

    def _distort(self, hear: Hear, topic: Topic, at: int) -> None:
        """Deliver something wrong."""
        first = hear.data.find(b"\n") + 1
        second = hear.data.find(b"\n", first) + 1
        third = hear.data.find(b"\n", second) + 1
        whole = topic.log[max(0, at - len(hear.data) - 1) : at - len(hear.data)] in EDGE
        if not (whole and 0 < first < second < third):
            return
        one, two, rest = hear.data[:first], hear.data[first:second], hear.data[second:]
        if self.trouble("skip", "lies between"):
            hear.data = one + rest
        elif self.trouble("repeat", b" ".join(one.split()[:2]).decode()):
            hear.data = one + one + two + rest
        elif self.trouble("swap", "behind"):
            hear.data = two + one + rest

    def resetter(self, client: str, host: str) -> Client:
        while self.now < self.sizes.until:
            yield self.soon(self.sizes.resetting)
            topic = self.topics[self.names[self.random.choice(("reset0", "reset1"))]]
            call = Truncate(client=client, mount=host, began=0, ino=topic.ino)
            generation = -1

            def effect(topic: Topic = topic, call: Truncate = call) -> None:
                nonlocal generation
                if topic is not self.spared:
                    generation = self.reset(topic, call)

            if topic is self.spared:
                continue
            yield from self._attempt(call, effect)
            if call.ok:
                topic.surely_reset = generation
            else:
                topic.unsure = True

    def churner(self, client: str, host: str) -> Client:
        """Create, rename, replace, delete names of its own, until an outcome is unknown."""
        for number in itertools.count():
            names = [f"{client}-{number}-{n}" for n in range(3)]
            known = True
            while known:
                known = yield from self._change(client, host, names)
                if self.now > self.sizes.until:
                    return

    def _change(self, client: str, host: str, names: list[str]) -> Generator[float, None, bool]:
        name, other = self.random.sample(names, 2)
        ino, replaced = self.names.get(name, 0), self.names.get(other, 0)
        call: Call
        effect: Callable[[], None]
        if not ino:
            created = Create(client=client, mount=host, began=0, name=name)
            call = created

            def effect() -> None:
                made = self.make(name, kept=True)
                created.ino = made if call.ok else 0
        elif self.random.random() < 0.5:
            call = Delete(client=client, mount=host, began=0, name=name, ino=ino)

            def effect() -> None:
                self.delete(name)
        else:
            call = Rename(client=client, mount=host, began=0, name=name, target=other, ino=ino)
            call.replaced = replaced

            def effect() -> None:
                if replaced:
                    self.delete(other)
                self.bind(name, 0)
                self.bind(other, ino)

        yield from self._attempt(call, effect)
        known = call.ok and call.ended != NEVER
        if known and isinstance(call, Delete):
            self.topics[ino].deleted_by = self.now
        yield self.soon(40)
        return known
