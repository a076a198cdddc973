"""Judges what readers saw by what writers were told: the guarantees of the log as a predicate.

Messages carry writer, number and a checksum, so each can be told from any other and from a torn one.
A history is what writers were told (`Push`, `Reset`) and what readers saw (`Observation`), each with
when the call began and ended by one monotonic clock of the machine. With it:

1. lost: a push returned success before an observation began, and its message is not in it, although
   no reset can have removed it.
2. doubled: a message is in an observation twice.
3. torn: bytes of an observation are not a whole message.
4. phantom: a message nobody pushed, or whose push failed in a way that proves it was not applied.
5. reordered: a message stands before one whose push had returned before its own began.
6. resurrected: a message is in an observation that began after a reset had returned, although the
   reset began after the push had returned.
7. diverging: of two observations of an unreset topic neither is the beginning of the other.

A push whose outcome is unknown may be there or not; in none of these is it held against anybody.
"""

import enum
import errno
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

DEFINITE_ERRNOS = frozenset(
    {
        errno.EMSGSIZE,
        errno.EINVAL,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ESTALE,
        errno.ESPIPE,
        errno.EACCES,
        errno.EPERM,
        errno.EBADF,
    }
)
"""Errors of open and write that prove that nothing was applied."""


class Outcome(enum.Enum):
    """What a writer was told."""

    OK = enum.auto()
    FAILED = enum.auto()
    UNKNOWN = enum.auto()

    @staticmethod
    def of(error: OSError) -> "Outcome":
        """Say what an error proves; ETIMEDOUT, EIO, ENOTCONN, ECONNABORTED and strangers prove nothing."""
        return Outcome.FAILED if error.errno in DEFINITE_ERRNOS else Outcome.UNKNOWN


class MessageId(NamedTuple):
    """Identity of a message."""

    writer: str
    number: int


@dataclass(frozen=True)
class Push:
    """One message of one write; times in nanoseconds."""

    id: MessageId
    outcome: Outcome
    began: int
    ended: int


@dataclass(frozen=True)
class Reset:
    """One truncate to 0."""

    outcome: Outcome
    began: int
    ended: int


@dataclass(frozen=True)
class Observation:
    """What one reader saw from the start of the topic, opened at `began`."""

    reader: str
    began: int
    data: bytes


class Kind(enum.Enum):
    """What can be wrong."""

    LOST = enum.auto()
    DOUBLED = enum.auto()
    TORN = enum.auto()
    PHANTOM = enum.auto()
    REORDERED = enum.auto()
    RESURRECTED = enum.auto()
    DIVERGING = enum.auto()


class Anomaly(NamedTuple):
    """One thing that is wrong."""

    kind: Kind
    text: str


_FORM = re.compile(rb"([a-z0-9-]+) (\d+) ([0-9a-f]{8}) ([^\n]*)\n")


def message(writer: str, number: int, body: bytes = b"") -> bytes:
    """Return the line of a message; `body` has no newline."""
    tag = b"%b %d" % (writer.encode(), number)
    return b"%b %08x %b\n" % (tag, zlib.crc32(tag + body), body)


def parse(line: bytes) -> MessageId | None:
    """Return whose message a line is, None if it is not whole."""
    form = _FORM.fullmatch(line)
    if form is None:
        return None
    writer, number, checksum, body = form.groups()
    if zlib.crc32(writer + b" " + number + body) != int(checksum, 16):
        return None
    return MessageId(writer.decode(), int(number))


@dataclass
class History:
    """Everything that was done to one topic and seen of it."""

    pushes: list[Push] = field(default_factory=list)
    resets: list[Reset] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        """Return how many pushes ended like that."""
        return sum(push.outcome is outcome for push in self.pushes)

    def check(self) -> list[Anomaly]:
        """Return what is wrong; empty if nothing is."""
        pushes = {push.id: push for push in self.pushes}
        assert len(pushes) == len(self.pushes), "each message is pushed once"
        anomalies: list[Anomaly] = []
        for observation in self.observations:
            anomalies += _check_observation(observation, pushes, self.resets)
        if not self.resets:
            anomalies += _diverging(self.observations)
        return anomalies


def _check_observation(
    observation: Observation, pushes: dict[MessageId, Push], resets: Sequence[Reset]
) -> Iterator[Anomaly]:
    """Check one observation by itself against the pushes and resets."""
    reader = observation.reader
    seen: set[MessageId] = set()
    order: list[Push] = []
    for line in _lines(observation.data):
        found = parse(line)
        if found is None:
            yield Anomaly(Kind.TORN, f"{reader}: {line[:80]!r}")
            continue
        push = pushes.get(found)
        if push is None or push.outcome is Outcome.FAILED:
            yield Anomaly(Kind.PHANTOM, f"{reader}: {found} {push}")
            continue
        if found in seen:
            yield Anomaly(Kind.DOUBLED, f"{reader}: {found}")
            continue
        seen.add(found)
        order.append(push)
    for push in pushes.values():
        if _must_be_seen(push, observation, resets) and push.id not in seen:
            yield Anomaly(Kind.LOST, f"{reader}: {push}")
    for push in order:
        if _must_be_gone(push, observation, resets):
            yield Anomaly(Kind.RESURRECTED, f"{reader}: {push}")
    yield from _reordered(reader, order)


def _lines(data: bytes) -> list[bytes]:
    *whole, rest = data.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _must_be_seen(push: Push, observation: Observation, resets: Sequence[Reset]) -> bool:
    if push.outcome is not Outcome.OK or push.ended > observation.began:
        return False
    # A reset whose outcome is unknown may still happen at any later time.
    return all(
        reset.outcome is Outcome.FAILED or (reset.outcome is Outcome.OK and reset.ended < push.began)
        for reset in resets
    )


def _must_be_gone(push: Push, observation: Observation, resets: Sequence[Reset]) -> bool:
    return push.outcome is Outcome.OK and any(
        reset.outcome is Outcome.OK and reset.ended < observation.began and reset.began > push.ended
        for reset in resets
    )


def _reordered(reader: str, order: Iterable[Push]) -> Iterator[Anomaly]:
    latest: Push | None = None
    for push in order:
        if latest is not None and push.outcome is Outcome.OK and push.ended < latest.began:
            yield Anomaly(Kind.REORDERED, f"{reader}: {push} behind {latest}")
        if latest is None or push.began > latest.began:
            latest = push


def _diverging(observations: Sequence[Observation]) -> Iterator[Anomaly]:
    by_length = sorted(observations, key=lambda observation: len(observation.data))
    for shorter, longer in itertools.pairwise(by_length):
        if not longer.data.startswith(shorter.data):
            yield Anomaly(Kind.DIVERGING, f"{shorter.reader} and {longer.reader}")
