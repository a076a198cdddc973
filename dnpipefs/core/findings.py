"""What a check of the stored data finds: the numbered rules, a finding, and the repair of one. Pure.

The rules are listed in `docs/fsck.md`. Judgement is in `check_names.py`, `check_records.py`,
`check_sealed.py`, `check_tail.py`, `check_groups.py` and `check_leftovers.py`: facts in, findings out. All
facts of one judgement are of one revision of etcd, so a sound cluster that is in use breaks no rule.

Invariants of repairs:

1. A repair removes no message that any reader can or could read, and invents none.
2. It is one transaction that compares all that was judged; if anything has changed, it does nothing.
   (A sweep instead looks for itself what is garbage, as the sweeper always does.)
3. Carried out twice it does no more than once.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dnpipefs.core.keys import KeyRange
from dnpipefs.core.names import FileId, Offset, Revision
from dnpipefs.core.tree import ABSENT, Guard

REPAIR_KEYS: Final = 100
"""Keys a repair may name at most: below etcd's 128 operations and compares a transaction."""


class Stored(NamedTuple):
    """A key as etcd has it."""

    key: bytes
    value: bytes
    """Empty where only the key was asked for."""
    revision: Revision
    """Its mod_revision."""
    version: int
    lease: int


class Severity(enum.Enum):
    """How bad it is."""

    ERROR = "error"
    """Messages are lost, or something cannot be read or used."""
    WARNING = "warning"
    """Something lies around, or says what is not so; all messages are there."""
    NOTE = "note"
    """Nothing is wrong as far as this release knows."""


class Rule(enum.Enum):
    """What must be so; the value is the rule's number, its severity, and what a breach of it is called."""

    META = ("M1", Severity.ERROR, "meta is missing")

    ENTRY_KEY = ("N1", Severity.ERROR, "no directory entry")
    ENTRY_RECORD = ("N2", Severity.ERROR, "unreadable directory entry")
    DUPLICATE_ID = ("N3", Severity.ERROR, "id with two names")
    NO_PARENT = ("N4", Severity.ERROR, "entry without directory")
    CYCLE = ("N5", Severity.ERROR, "directory inside itself")
    ROOT = ("N6", Severity.ERROR, "no root directory")
    LAST_NAMESPACE = ("N7", Severity.ERROR, "last/ns is missing or behind")

    TOPIC_MISSING = ("T1", Severity.ERROR, "name without topic")
    LAST = ("T2", Severity.ERROR, "last is missing or unreadable")
    LAST_BEHIND = ("T3", Severity.ERROR, "last is behind")
    HEAD = ("T4", Severity.ERROR, "head is missing, unreadable or impossible")
    MARK = ("T5", Severity.ERROR, "mark is missing or says something else")
    EPOCH = ("T6", Severity.ERROR, "the generation is lost")

    INDEX_PAGE = ("S1", Severity.ERROR, "unreadable page of the index")
    INDEX_GAP = ("S2", Severity.ERROR, "gap or overlap in the index")
    INDEX_COUNTS = ("S3", Severity.ERROR, "the index counts wrong")
    SEGMENT_MISSING = ("S4", Severity.ERROR, "segment missing")
    SEGMENT_DAMAGED = ("S5", Severity.ERROR, "segment damaged")
    BODY_MISSING = ("S6", Severity.ERROR, "large batch missing")
    BODY_DAMAGED = ("S7", Severity.ERROR, "large batch damaged")
    SEGMENT_ORPHAN = ("S8", Severity.WARNING, "segment that nothing refers to")
    BODY_ORPHAN = ("S9", Severity.WARNING, "large batch that nothing refers to")
    FOREIGN_GENERATION = ("S10", Severity.ERROR, "keys of a generation that never began")

    BATCH_KEY = ("B1", Severity.ERROR, "no key of a batch")
    BATCH_DAMAGED = ("B2", Severity.ERROR, "batch damaged")
    BATCH_MISMATCH = ("B3", Severity.ERROR, "batch and key differ")
    SEQUENCE = ("B4", Severity.ERROR, "appends do not follow on one another")
    WRITER = ("B5", Severity.ERROR, "the fence of a writer does not fit")
    APPEND_MISSING = ("B6", Severity.ERROR, "newest append missing")

    CURSOR = ("G1", Severity.ERROR, "unreadable cursor of a group")
    GROUP_RECORD = ("G2", Severity.ERROR, "unreadable record of a group")
    IN_TWO_RECORDS = ("G3", Severity.ERROR, "message in two records of a group")
    BEHIND_CURSOR = ("G4", Severity.ERROR, "message behind the cursor of a group")
    IN_NO_RECORD = ("G5", Severity.ERROR, "message that no record of a group has")
    LATER_TERM = ("G6", Severity.ERROR, "record of a term that never began")
    NO_CURSOR = ("G7", Severity.ERROR, "records of a group without cursor")
    DEAD_NOTE = ("G8", Severity.ERROR, "unreadable note of a dead letter")
    MEMBER_ENDED = ("G9", Severity.NOTE, "member whose session has ended")

    OLD_GENERATION = ("L1", Severity.WARNING, "leftovers of an old generation")
    DELETED_TOPIC = ("L2", Severity.WARNING, "leftovers of a deleted topic")
    UNNAMED_TOPIC = ("L3", Severity.ERROR, "topic without name")
    LONE_RECORDS = ("L4", Severity.ERROR, "part of a topic without name")
    DEAD_PENDING = ("L5", Severity.WARNING, "parts that a dead session left")
    DONE_ORDER = ("L6", Severity.WARNING, "order that is carried out")
    BAD_ORDER = ("L7", Severity.ERROR, "unreadable order")

    UNKNOWN_KEY = ("U1", Severity.NOTE, "unknown key")

    @property
    def code(self) -> str:
        """Its number, such as S4."""
        return self.value[0]

    @property
    def severity(self) -> Severity:
        """How bad a breach is."""
        return self.value[1]

    @property
    def title(self) -> str:
        """What a breach is called."""
        return self.value[2]


@dataclass(frozen=True, slots=True)
class Repair:
    """One transaction that mends a finding, or the sweeping of a topic."""

    what: str
    """What it does, in words."""
    guards: tuple[Guard, ...] = ()
    puts: tuple[tuple[bytes, bytes], ...] = ()
    deletes: tuple[bytes, ...] = ()
    ranges: tuple[KeyRange, ...] = ()
    """What is deleted besides."""
    touches: tuple[bytes, ...] = ()
    """Existing keys that get a new revision and keep their value."""
    sweep: FileId | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that is broken, and where."""

    rule: Rule
    key: bytes
    what: str
    """What it means, in one line."""
    topic: FileId | None = None
    lost: tuple[Offset, Offset] | None = None
    """Bytes of the topic that cannot be read, from and to."""
    repair: Repair | None = None


def unchanged(*stored: Stored) -> tuple[Guard, ...]:
    """Guard that keys are as they were judged."""
    return tuple(Guard(one.key, one.revision) for one in stored)


def absent(*keys: bytes) -> tuple[Guard, ...]:
    """Guard that keys are not there."""
    return tuple(Guard(key, ABSENT) for key in keys)


def removal(what: str, stored: Sequence[Stored], *guards: Guard) -> Repair | None:
    """Return the repair that deletes keys; None if they are too many for one."""
    if len(stored) + len(guards) > REPAIR_KEYS:
        return None
    return Repair(what, (*unchanged(*stored), *guards), deletes=tuple(one.key for one in stored))
