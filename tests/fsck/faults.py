"""Faults planted in what `lay_down` has laid down: one of every rule of docs/fsck.md, by hand, in etcd."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from dnpipefs import etcd
from dnpipefs.core.names import FileId, Kind, SessionId
from dnpipefs.core.records import Inode, encode_time
from dnpipefs.core.segment import Segment, decode
from dnpipefs.fsck import Verdict
from tests.fsck.conftest import Lab

DEAD = FileId(0xDEAD)
"""An id that no entry names."""
NOBODY = SessionId(0x77)
"""A session that never was."""
LONG_AGO = encode_time(1)

Plant = Callable[[Lab], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """Something wrong, the rules it breaks, and what becomes of it."""

    plant: Plant
    rules: Sequence[str]
    mended: bool = False
    reads: bool = True
    """Whether all messages can be read afterwards (after the repair, if there is one)."""
    about: Callable[[Verdict], bool] = lambda _: True
    """What the finding of the first rule must say."""

    @property
    def name(self) -> str:
        return self.plant.__name__


FAULTS: list[Fault] = []


def fault(
    *rules: str, mended: bool = False, reads: bool = True, about: Callable[[Verdict], bool] = lambda _: True
) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        FAULTS.append(Fault(plant, rules, mended, reads, about))
        return plant

    return register


def loses(start: int, end: int | None = None) -> Callable[[Verdict], bool]:
    """Require that a stretch of the topic is named."""

    def names(verdict: Verdict) -> bool:
        lost = verdict.finding.lost
        return lost is not None and lost[0] == start and (end is None or lost[1] == end)

    return names


def entry_of(file: int, kind: Kind = Kind.TOPIC) -> bytes:
    return Inode(FileId(file), kind, 0o644, 0, 0, 1, 1).encode()


async def put_entry(lab: Lab, key: bytes, value: bytes) -> None:
    """Put an entry and what every change of the namespace puts."""
    await lab.client.transaction((), [etcd.put(key, value), etcd.put(lab.keys.last_namespace, LONG_AGO)])


async def segment_of(lab: Lab, number: int) -> tuple[bytes, Segment]:
    """Return the key of one of the segments, and what is in it."""
    kv = (await lab.all(lab.keys.segments(lab.topic)))[number]
    return kv.key, decode(kv.value)


async def body_of(lab: Lab, stored: bool) -> list[etcd.KeyValue]:
    """Return the parts of a large batch: of the first one that has one part, or of that with several."""
    parts: dict[bytes, list[etcd.KeyValue]] = {}
    for kv in await lab.all(lab.keys.bodies(lab.topic)):
        parts.setdefault(kv.key.rpartition(b"/")[0], []).append(kv)
    return next(found for found in parts.values() if (len(found) > 1) == stored)
