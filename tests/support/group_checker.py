"""Judges what the workers of a consumer group had: the promises of docs/groups.md as a predicate.

A history is what pushers were told (`Push`), what the topic holds in the end, what each reader had and how
it ended (`Reader`), and what was done to the hosts and the group meanwhile (`Fault`, `Rewind`), all by one
monotonic clock. It ends when nothing was left in the group. With it:

1. undelivered: a message of the topic is gone from the group, and nobody ever had it.
2. lost: somebody had it, but nobody came to its end.
3. shared: a message was handed out while a living reader that had not failed had it in hand.
4. redelivered: likewise after a reader had acknowledged it, and nothing explains why it came back.
5. torn: what a reader had is not a whole message.
6. phantom: a message nobody pushed, or whose push failed in a way that proves it was not applied.
7. reordered: of two messages that nobody had had before, one reader got the later one of the topic first.
8. refused: a call of a reader failed, and nothing had happened to its host.

An *acknowledgement* is the next read, or the end, of a reader that lives or ends well. Its host knows of it
at once, etcd a moment later. So what comes back is

- what a reader that was killed or failed had in hand, also if it had just come to the end of it;
- what a host has not put into etcd before it is killed, stopped, or loses its session;
- what a reader has had longer than the visibility timeout;
- everything, when the group is rewound.

Of a session that is lost, or a rewind, the host learns last: until then what it hands out is *stale*,
somebody else's already. What a host had claimed and nobody had seen when something happened to it comes
late; that explains an order, but no second delivery.

What lies between an event and its line in a history is not known, only that it is not more than `slack_ns`.
No clock, no I/O, no randomness.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final, NamedTuple

from tests.support.checker import MessageId, Outcome, Push, parse

SECOND: Final = 10**9


class Ending(enum.Enum):
    """How a reader ended."""

    WELL = "well"
    """It closed its file and did not fail within the mount's grace, or ended with status 0."""
    FAILED = "failed"
    """It ended with another status."""
    KILLED = "killed"
    """A signal ended it."""


@dataclass(frozen=True)
class Taken:
    """One message that a reader had; times in nanoseconds."""

    line: bytes
    """With its newline."""
    got: int
    """Just after the read returned."""
    done: int | None = None
    """Just before the reader went on; None if it did not come to the end of it."""


@dataclass(frozen=True)
class Reader:
    """One open of the group, from its first message to its end."""

    name: str
    host: str
    taken: Sequence[Taken]
    ending: Ending | None = None
    """None: it waits for the next message still."""
    ended: int | None = None
    """Not after the end: when the signal was sent, or what the reader itself noted before."""


class FaultKind(enum.Enum):
    """What can be done to a host."""

    DAEMON_KILLED = "daemon killed"
    DAEMON_STOPPED = "daemon stopped"
    SESSION_LOST = "session lost"
    FROZEN = "daemon frozen"
    """But not long enough to lose its session: it undoes nothing, it only takes time."""


@dataclass(frozen=True)
class Fault:
    """Something that was done to a host."""

    kind: FaultKind
    host: str
    began: int
    ended: int
    """From then on the host hands out nothing that it had claimed before."""
    back: int
    """From then on it answers."""


@dataclass(frozen=True)
class Rewind:
    """The group was told to begin anew."""

    outcome: Outcome
    began: int
    ended: int


@dataclass(frozen=True)
class Refusal:
    """A call of a reader failed."""

    reader: str
    host: str
    error: int
    at: int


class Reason(enum.Enum):
    """Why a message comes again."""

    WORKER_KILLED = "worker killed"
    WORKER_FAILED = "worker failed"
    DAEMON_KILLED = "daemon killed"
    DAEMON_STOPPED = "daemon stopped"
    SESSION_LOST = "session lost"
    EXPIRED = "visibility timeout"
    REWOUND = "group rewound"


_REASON_OF_FAULT: Final = {
    FaultKind.DAEMON_KILLED: Reason.DAEMON_KILLED,
    FaultKind.DAEMON_STOPPED: Reason.DAEMON_STOPPED,
    FaultKind.SESSION_LOST: Reason.SESSION_LOST,
}
_REASON_OF_ENDING: Final = {Ending.KILLED: Reason.WORKER_KILLED, Ending.FAILED: Reason.WORKER_FAILED}


class GroupKind(enum.Enum):
    """What can be wrong."""

    UNDELIVERED = "undelivered"
    LOST = "lost"
    SHARED = "shared"
    REDELIVERED = "redelivered"
    TORN = "torn"
    PHANTOM = "phantom"
    REORDERED = "reordered"
    REFUSED = "refused"


class GroupAnomaly(NamedTuple):
    """One thing that is wrong."""

    kind: GroupKind
    text: str


@dataclass
class Verdict:
    """What a history comes to."""

    anomalies: list[GroupAnomaly] = field(default_factory=list)
    deliveries: int = 0
    redelivered: Counter[Reason] = field(default_factory=Counter)
    """How often a message came again, by what explains it."""
    late: int = 0
    """Messages that came out of order, and may have."""
    undone_ns: int = 0
    """The longest that an acknowledgement had been known to its host when a fault undid it, at least."""


@dataclass(frozen=True)
class _Delivery:
    """A whole message that was pushed, at one reader."""

    id: MessageId
    taken: Taken
    reader: Reader
    next: int | None
    """When the reader had the next one, which tells that this one was acknowledged."""

    @property
    def got(self) -> int:
        return self.taken.got

    @property
    def held_until(self) -> float:
        """Until when the reader certainly had it in hand."""
        known = [time for time in (self.taken.done, self.next, self.reader.ended) if time is not None]
        return min(known, default=math.inf)

    def __str__(self) -> str:
        reader = self.reader
        ending = f", {reader.ending.value} at {_s(reader.ended)}" if reader.ending is not None else ""
        return (
            f"{reader.name} on {reader.host} from {_s(self.got)} to {_s(self.taken.done)},"
            f" next at {_s(self.next)}{ending}"
        )


@dataclass
class GroupHistory:
    """Everything that was done to one group until nothing was left in it."""

    pushes: Sequence[Push]
    topic: Sequence[MessageId]
    """What the topic holds in the end, in its order."""
    readers: Sequence[Reader]
    faults: Sequence[Fault] = ()
    rewinds: Sequence[Rewind] = ()
    refusals: Sequence[Refusal] = ()
    visibility_ns: int | None = None
    """The topic's visibility timeout."""
    session_ns: int = 2 * SECOND
    """How long the claims of a host outlive it."""
    slack_ns: int = SECOND
    settling_ns: int = 0
    """How long after a trouble a host's acknowledgements may still be on their way to etcd."""

    def judge(self) -> Verdict:
        """Say what is wrong, and how much was seen."""
        verdict = Verdict()
        pushes = {push.id: push for push in self.pushes}
        assert len(pushes) == len(self.pushes), "each message is pushed once"
        topic = set(self.topic)
        deliveries: dict[MessageId, list[_Delivery]] = {}
        for reader in self.readers:
            for delivery in self._deliveries(reader, pushes, verdict):
                deliveries.setdefault(delivery.id, []).append(delivery)
        for several in deliveries.values():
            several.sort(key=lambda delivery: delivery.got)
        for message, push in pushes.items():
            if push.outcome is Outcome.OK or message in deliveries or message in topic:
                self._check_processed(message, deliveries.get(message, []), verdict)
        for message in topic - pushes.keys():
            verdict.anomalies.append(GroupAnomaly(GroupKind.PHANTOM, f"{message} in the topic"))
        for several in deliveries.values():
            self._check_repeated(several, verdict)
        self._check_order({message: several[0] for message, several in deliveries.items()}, verdict)
        verdict.anomalies += self._refused()
        return verdict

    def _deliveries(
        self, reader: Reader, pushes: dict[MessageId, Push], verdict: Verdict
    ) -> Iterator[_Delivery]:
        following = [taken.got for taken in reader.taken[1:]]
        for taken, after in zip_longest(reader.taken, following):
            verdict.deliveries += 1
            message = parse(taken.line)
            if message is None:
                text = f"{reader.name} on {reader.host} at {_s(taken.got)}: {taken.line[:80]!r}"
                verdict.anomalies.append(GroupAnomaly(GroupKind.TORN, text))
                continue
            push = pushes.get(message)
            if push is None or push.outcome is Outcome.FAILED or push.began > taken.got:
                text = f"{message} {push}: {reader.name} on {reader.host} at {_s(taken.got)}"
                verdict.anomalies.append(GroupAnomaly(GroupKind.PHANTOM, text))
                continue
            yield _Delivery(message, taken, reader, after)

    # Nothing is lost

    def _check_processed(self, message: MessageId, deliveries: list[_Delivery], verdict: Verdict) -> None:
        """Look for somebody who came to its end, since the group was rewound for the last time."""
        since = max((r.began for r in self.rewinds if r.outcome is Outcome.OK), default=-math.inf)
        these = [delivery for delivery in deliveries if delivery.got >= since]
        if not these:
            text = f"{message}" + (" since the rewind" if deliveries else "")
            verdict.anomalies.append(GroupAnomaly(GroupKind.UNDELIVERED, text))
        elif all(delivery.taken.done is None for delivery in these):
            text = f"{message}: " + "; ".join(map(str, these))
            verdict.anomalies.append(GroupAnomaly(GroupKind.LOST, text))

    # Nothing comes again without a reason

    def _check_repeated(self, several: list[_Delivery], verdict: Verdict) -> None:
        for index, again in enumerate(several):
            reason = None
            for before in reversed(several[:index]):
                why = self._came_back(before, again, verdict) or self._stale(before, again)
                if why is None:
                    shared = again.got < before.held_until
                    kind = GroupKind.SHARED if shared else GroupKind.REDELIVERED
                    text = f"{before.id}: {before}; then {again}"
                    verdict.anomalies.append(GroupAnomaly(kind, text))
                    break
                reason = reason or why
            else:
                if reason is not None:
                    verdict.redelivered[reason] += 1

    def _came_back(self, before: _Delivery, again: _Delivery, verdict: Verdict) -> Reason | None:
        """Say why *before* may have come back to the group until *again*; None if nothing explains it."""
        for rewind in self.rewinds:
            if before.got <= rewind.ended + self.slack_ns and rewind.began <= again.got:
                return Reason.REWOUND
        known = self._settled(before.reader.host, self._acknowledged(before))
        for fault in self._faults_of(before.reader.host):
            if (
                before.got <= fault.ended + self.slack_ns
                and fault.began <= known + self.slack_ns
                and fault.began < again.got
            ):
                if known < fault.began:
                    verdict.undone_ns = max(verdict.undone_ns, int(fault.began - known))
                return _REASON_OF_FAULT[fault.kind]
        reader = before.reader
        if reader.ending in _REASON_OF_ENDING and known == math.inf:
            assert reader.ended is not None
            if reader.ended <= again.got:
                return _REASON_OF_ENDING[reader.ending]
        if self.visibility_ns is not None:
            least = self.visibility_ns - self.slack_ns / 4
            if again.got - before.got >= least and known - before.got >= least:
                return Reason.EXPIRED
        return None

    def _acknowledged(self, delivery: _Delivery) -> float:
        """Return by when its host knows that it was acknowledged; infinity if it may never have been."""
        reader, done = delivery.reader, delivery.taken.done
        if delivery.next is not None:
            return delivery.next
        if reader.ending is Ending.WELL:
            assert reader.ended is not None
            return reader.ended + self.slack_ns
        if done is None:
            return math.inf
        # It went on to a read that brought it nothing, if it lived long enough.
        known = done + self.slack_ns
        for fault in self.faults:
            if fault.host == reader.host and fault.began <= known and fault.back >= done:
                known = max(known, fault.back + self.slack_ns)
        return known if reader.ended is None or reader.ended > known else math.inf

    def _settled(self, host: str, known: float) -> float:
        """Return by when an acknowledgement that a host knows of is in etcd, but for the slack."""
        troubles = [
            fault.back + self.settling_ns
            for fault in self.faults
            if fault.host == host and fault.began <= known <= fault.back + self.settling_ns
        ]
        return max([known, *troubles]) if self.settling_ns else known

    def _stale(self, before: _Delivery, again: _Delivery) -> Reason | None:
        """Say why *again* may have been handed out by a host that did not know of *before* yet."""
        for fault in self._faults_of(again.reader.host):
            if (
                fault.began <= again.got <= fault.ended + self.slack_ns
                and fault.began <= before.got + self.slack_ns
            ):
                return _REASON_OF_FAULT[fault.kind]
        for rewind in self.rewinds:
            if rewind.began <= again.got <= rewind.ended + self.slack_ns and rewind.began <= before.got:
                return Reason.REWOUND
        return None

    def _faults_of(self, host: str) -> Iterator[Fault]:
        for fault in self.faults:
            if fault.host == host and fault.kind in _REASON_OF_FAULT:
                yield fault

    # Order

    def _check_order(self, first: dict[MessageId, _Delivery], verdict: Verdict) -> None:
        places = {message: place for place, message in enumerate(self.topic)}
        disturbed = sorted(
            [
                *(time for fault in self.faults for time in (fault.began, fault.back)),
                *(rewind.ended for rewind in self.rewinds),
                *(
                    reader.ended
                    for reader in self.readers
                    if reader.ending in _REASON_OF_ENDING and reader.ended is not None
                ),
            ]
        )
        for reader in self.readers:
            latest: _Delivery | None = None
            for taken in reader.taken:
                message = parse(taken.line)
                delivery = first.get(message) if message is not None else None
                if delivery is None or delivery.taken is not taken or delivery.id not in places:
                    continue
                if latest is None or places[delivery.id] > places[latest.id]:
                    latest = delivery
                    continue
                since = latest.got - self.session_ns - self.slack_ns
                if any(since <= time <= delivery.got for time in disturbed):
                    verdict.late += 1
                    continue
                text = f"{delivery.id} behind {latest.id}: {delivery}"
                verdict.anomalies.append(GroupAnomaly(GroupKind.REORDERED, text))

    # Errors

    def _refused(self) -> Iterator[GroupAnomaly]:
        for refusal in self.refusals:
            if not any(
                fault.host == refusal.host and fault.began <= refusal.at <= fault.back + self.slack_ns
                for fault in self.faults
            ):
                text = f"{refusal.reader} on {refusal.host}: error {refusal.error} at {_s(refusal.at)}"
                yield GroupAnomaly(GroupKind.REFUSED, text)


def _s(time_ns: int | None) -> str:
    return "never" if time_ns is None else f"{time_ns / SECOND:.3f}"
