"""The key schema: every key dnpipefs has in etcd is built and taken apart here and nowhere else.

Numbers in keys are fixed-width lower-case hexadecimal, so that key order is number order.
`docs/format.md` describes each key and its value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from dnpipefs.core.names import FileId, Offset, Revision, SessionId
from dnpipefs.errors import CorruptData, InvalidArgument

DEFAULT_PREFIX: Final = "/dnp/"
PART_BYTES: Final = 1_400_000
"""Largest value of one key: with its keys and compares a transaction stays below etcd's 1.5 MiB."""


class Beside(NamedTuple):
    """Where a large batch lies: not in the tail but beside it, in keys of its own."""

    attempt: int
    """Of the append, see `core/append.py`: a late put of another attempt must not get in the way."""
    stored: int
    """Bytes of its encoding, all parts together."""

    @property
    def parts(self) -> int:
        """In how many keys it lies."""
        return -(-self.stored // PART_BYTES)


MARK: Final = b"/mark"
"""How the key of a mark ends; that of no batch does."""
_BATCH: Final = re.compile(
    rb"([0-9a-f]{16})/([0-9a-f]{16})-([0-9a-f]{8})-([0-9a-f]{8})(?:-([0-9a-f]{8})-([0-9a-f]{16}))?\Z"
)
"""What stands behind the topic in the key of a batch."""


class TailKey(NamedTuple):
    """What the key of one batch says: who wrote it, as which append, how large it is."""

    session: SessionId
    sequence: int
    size: int
    """Bytes of message data (uncompressed, without the batch header)."""
    messages: int
    beside: Beside | None = None
    """None: the batch is the key's value."""


class BodyKey(NamedTuple):
    """Names a large batch that lies beside the tail, in the generation it was appended in."""

    session: SessionId
    sequence: int
    beside: Beside


class BodyPart(NamedTuple):
    """What the key of one part of a large batch says."""

    generation: Revision
    session: SessionId
    sequence: int
    attempt: int
    part: int


class EntryKey(NamedTuple):
    """What the key of a directory entry says."""

    parent: FileId
    name: bytes


@dataclass(frozen=True, slots=True)
class KeyRange:
    """A half-open range of keys, the form etcd takes: start <= key < end."""

    start: bytes
    end: bytes


def prefix_range(prefix: bytes) -> KeyRange:
    """Return the range of all keys that begin with *prefix* (which must not end in 0xff)."""
    return KeyRange(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))


def _hex(number: int) -> bytes:
    return b"%016x" % number


class KeySchema:
    """All keys below one prefix.

    `prefix` ends in a slash; two clusters with different prefixes share an etcd without meeting.
    """

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        if not prefix.endswith("/") or "\0" in prefix:
            raise InvalidArgument(f"prefix {prefix!r} must end with '/'")
        self.prefix: Final = prefix.encode()
        self.meta: Final = self.prefix + b"meta"
        self.last_namespace: Final = self.prefix + b"last/ns"
        self.namespace: Final = prefix_range(self.prefix + b"ns/")
        self.all_trash: Final = prefix_range(self.prefix + b"trash/")
        self.sessions: Final = prefix_range(self.prefix + b"session/")
        self._ns: Final = self.prefix + b"ns/"
        self._epoch: Final = self.prefix + b"epoch/"
        self._head: Final = self.prefix + b"head/"
        self._last: Final = self.prefix + b"last/"
        self._tail: Final = self.prefix + b"tail/"
        self._segment: Final = self.prefix + b"seg/"
        self._index: Final = self.prefix + b"index/"
        self._body: Final = self.prefix + b"body/"
        self._pending: Final = self.prefix + b"pending/"
        self.all_pending: Final = prefix_range(self._pending)
        self.all_tails: Final = prefix_range(self._tail)
        self._writer: Final = self.prefix + b"writer/"
        self._group: Final = self.prefix + b"group/"
        self._session: Final = self.prefix + b"session/"
        self._trash: Final = self.prefix + b"trash/"
        self._probe: Final = self.prefix + b"doctor/"
        self.probes: Final = prefix_range(self._probe)
        self._flat: Final = (self._epoch, self._head, self._last, self._trash)
        """Families with one key a topic."""

    def entry(self, parent: FileId, name: bytes) -> bytes:
        """Directory entry and inode record."""
        return self._ns + _hex(parent) + b"/" + name

    @property
    def root(self) -> bytes:
        """Entry of the root directory: no name in no directory."""
        return self.entry(FileId(0), b"")

    def entries(self, parent: FileId) -> KeyRange:
        """All entries of one directory."""
        return prefix_range(self._ns + _hex(parent) + b"/")

    def parse_entry(self, key: bytes) -> EntryKey:
        """Take the key of a directory entry apart; CorruptData if it is not one."""
        start = len(self._ns)
        if not key.startswith(self._ns) or key[start + 16 : start + 17] != b"/":
            raise CorruptData(f"{key!r} is not the key of a directory entry")
        return EntryKey(FileId(_number(key, start, start + 16)), key[start + 17 :])

    def epoch(self, topic: FileId) -> bytes:
        """Changes only on reset and delete; its mod_revision is the generation."""
        return self._epoch + _hex(topic)

    def head(self, topic: FileId) -> bytes:
        """Where the sealed part of the log ends."""
        return self._head + _hex(topic)

    def last(self, topic: FileId) -> bytes:
        """Put blindly by every append, seal and reset; its mod_revision is the newest of the topic."""
        return self._last + _hex(topic)

    def tail(self, topic: FileId) -> KeyRange:
        """All batches not yet sealed, and the mark: the one range that a view watches."""
        return prefix_range(self.tail_prefix(topic))

    def tail_prefix(self, topic: FileId) -> bytes:
        """What all keys of a topic's tail begin with, and no other's."""
        return b"%b%016x/" % (self._tail, topic)

    def tail_prefix_of(self, key: bytes) -> bytes:
        """Return the `tail_prefix` of the topic that a key of a tail belongs to."""
        return key[: len(self._tail) + 17]

    def mark(self, topic: FileId) -> bytes:
        """Tells views, inside the range they watch, of a reset, a seal or (when deleted) the end."""
        return self._tail + _hex(topic) + MARK

    def batch(
        self,
        topic: FileId,
        session: SessionId,
        sequence: int,
        size: int,
        messages: int,
        beside: Beside | None = None,
    ) -> bytes:
        """One batch of the tail."""
        key = b"%b%016x/%016x/%016x-%08x-%08x" % (self._tail, topic, session, sequence, size, messages)
        return key if beside is None else b"%b-%08x-%016x" % (key, beside.stored, beside.attempt)

    def batches_through(self, topic: FileId, session: SessionId, sequence: int) -> KeyRange:
        """One writer's batches up to and including *sequence*."""
        return self.batches_between(topic, session, 0, sequence)

    def batches_between(self, topic: FileId, session: SessionId, first: int, last: int) -> KeyRange:
        """One writer's batches from sequence number *first* to *last*, both included."""
        base = b"%b%016x/%016x/" % (self._tail, topic, session)
        return KeyRange(base + _hex(first), base + _hex(last + 1))

    def parse_tail_topic(self, key: bytes) -> FileId:
        """Return the topic of a key of some tail; CorruptData if it is none."""
        return FileId(_number(key, len(self._tail), len(self._tail) + 16))

    def parse_tail(self, topic: FileId, key: bytes) -> TailKey | None:
        """Take the key of a batch apart; None for the mark. CorruptData if it is neither."""
        match = _BATCH.match(key, len(self._tail) + 17)
        if match is None or not key.startswith(b"%b%016x/" % (self._tail, topic)):
            if key == self.mark(topic):
                return None
            raise CorruptData(f"{key!r} is not the key of a batch of topic {topic:x}")
        session, sequence, size, messages, stored, attempt = match.groups()
        beside = Beside(int(attempt, 16), int(stored, 16)) if stored is not None else None
        return TailKey(
            SessionId(int(session, 16)), int(sequence, 16), int(size, 16), int(messages, 16), beside
        )

    def segment(self, topic: FileId, generation: Revision, offset: Offset, size: int) -> bytes:
        """A sealed segment, keyed by its first offset; never put twice, since its size is in the key."""
        return b"%b%016x/%016x/%016x-%08x" % (self._segment, topic, generation, offset, size)

    def segments(self, topic: FileId) -> KeyRange:
        """All sealed segments of a topic, of all generations."""
        return prefix_range(self._segment + _hex(topic) + b"/")

    def parse_segment(self, topic: FileId, key: bytes) -> tuple[Revision, Offset, int]:
        """Return generation, first offset and size of a segment; CorruptData if it is none."""
        try:
            generation, rest = key[len(self._segment) + 17 :].split(b"/")
            offset, size = rest.split(b"-")
            parsed = Revision(int(generation, 16)), Offset(int(offset, 16)), int(size, 16)
        except ValueError:
            parsed = None
        if parsed is None or self.segment(topic, *parsed) != key:
            raise CorruptData(f"{key!r} is not the key of a segment of topic {topic:x}")
        return parsed

    def index_page(self, topic: FileId, generation: Revision, offset: Offset) -> bytes:
        """A page of the index of segments, keyed by the offset of its first one."""
        return b"%b%016x/%016x/%016x" % (self._index, topic, generation, offset)

    def parse_index_page(self, topic: FileId, key: bytes) -> tuple[Revision, Offset]:
        """Return generation and first offset of a page of the index; CorruptData if it is none."""
        base = len(self._index) + 17
        parsed = Revision(_number(key, base, base + 16)), Offset(_number(key, base + 17, base + 33))
        if self.index_page(topic, *parsed) != key:
            raise CorruptData(f"{key!r} is not a page of the index of topic {topic:x}")
        return parsed

    def index(self, topic: FileId) -> KeyRange:
        """All pages of a topic's index, of all generations."""
        return prefix_range(self._index + _hex(topic) + b"/")

    def body_parts(self, topic: FileId, generation: Revision, body: BodyKey) -> list[bytes]:
        """The keys that together hold a large batch, in order."""
        session, sequence, beside = body
        return [
            self._body_part(topic, BodyPart(generation, session, sequence, beside.attempt, part))
            for part in range(beside.parts)
        ]

    def parse_body_part(self, topic: FileId, key: bytes) -> BodyPart:
        """Return what the key of a part of a large batch says; CorruptData if it is none."""
        try:
            generation, session, name, part = key[len(self._body) + 17 :].split(b"/")
            sequence, attempt = name.split(b"-")
            parsed = BodyPart(
                Revision(int(generation, 16)),
                SessionId(int(session, 16)),
                int(sequence, 16),
                int(attempt, 16),
                int(part, 16),
            )
        except ValueError:
            parsed = None
        if parsed is None or self._body_part(topic, parsed) != key:
            raise CorruptData(f"{key!r} is not a part of a large batch of topic {topic:x}")
        return parsed

    def _body_part(self, topic: FileId, part: BodyPart) -> bytes:
        return b"%b%016x/%016x/%016x/%016x-%016x/%04x" % (self._body, topic, *part)

    def bodies(self, topic: FileId) -> KeyRange:
        """All large batches of a topic, of all generations, committed or not."""
        return prefix_range(self._body + _hex(topic) + b"/")

    def pending(self, topic: FileId, generation: Revision, body: BodyKey) -> bytes:
        """Order to remove the parts of a large batch if it is not committed; the commit deletes it."""
        session, sequence, beside = body
        return b"%b%016x/%016x/%016x/%016x-%08x-%016x" % (
            *(self._pending, topic, generation, session, sequence),
            *(beside.stored, beside.attempt),
        )

    def parse_pending(self, key: bytes) -> tuple[FileId, Revision, BodyKey]:
        """Return what a pending key orders to remove; CorruptData if it is none."""
        try:
            topic, generation, session, rest = key[len(self._pending) :].split(b"/")
            sequence, stored, attempt = (int(number, 16) for number in rest.split(b"-"))
            parsed = (
                FileId(int(topic, 16)),
                Revision(int(generation, 16)),
                BodyKey(SessionId(int(session, 16)), sequence, Beside(attempt, stored)),
            )
        except ValueError:
            parsed = None
        if parsed is None or self.pending(*parsed) != key:
            raise CorruptData(f"{key!r} is not an order to remove what was not committed")
        return parsed

    def all_pending_of(self, topic: FileId) -> KeyRange:
        """Such orders of one topic, of all generations."""
        return prefix_range(self._pending + _hex(topic) + b"/")

    @staticmethod
    def of_generation(keys: KeyRange, generation: Revision) -> KeyRange:
        """Return the part of `segments`, `index`, `bodies` or `all_pending_of` of one generation."""
        return prefix_range(keys.start + _hex(generation) + b"/")

    @staticmethod
    def before_generation(keys: KeyRange, generation: Revision) -> KeyRange:
        """Return the part of `segments`, `index`, `bodies` or `all_pending_of` of older generations."""
        return KeyRange(keys.start, keys.start + _hex(generation))

    @staticmethod
    def after_generation(keys: KeyRange, generation: Revision) -> KeyRange:
        """Likewise of newer generations."""
        return KeyRange(keys.start + _hex(generation + 1), keys.end)

    def writer(self, topic: FileId, session: SessionId) -> bytes:
        """Fence of one writer's appends, on the session's lease."""
        return self._writer + _hex(topic) + b"/" + _hex(session)

    def writers(self, topic: FileId) -> KeyRange:
        """The fences of all writers of a topic."""
        return prefix_range(self._writer + _hex(topic) + b"/")

    def parse_writer(self, topic: FileId, key: bytes) -> SessionId:
        """Return the session of a fence; CorruptData if it is none."""
        start = len(self._writer) + 17
        session = SessionId(_number(key, start, start + 16))
        if self.writer(topic, session) != key:
            raise CorruptData(f"{key!r} is not the fence of a writer of topic {topic:x}")
        return session

    def groups(self, topic: FileId) -> KeyRange:
        """All state of all consumer groups of a topic."""
        return prefix_range(self._group + _hex(topic) + b"/")

    @property
    def all_groups(self) -> KeyRange:
        """All state of all consumer groups of all topics; one of the `families`."""
        return prefix_range(self._group)

    def group(self, topic: FileId, name: bytes) -> KeyRange:
        """All state of one group."""
        return prefix_range(self._group_base(topic, name))

    def cursor(self, topic: FileId, name: bytes) -> bytes:
        """How far a group has claimed its topic."""
        return self._group_base(topic, name) + b"cursor"

    def returned(self, topic: FileId, name: bytes) -> bytes:
        """What a group's members gave back."""
        return self._group_base(topic, name) + b"returned"

    def member(self, topic: FileId, name: bytes, session: SessionId) -> bytes:
        """What one host has claimed of a group and not acknowledged; not on its lease."""
        return self._group_base(topic, name) + b"member/" + _hex(session)

    def members(self, topic: FileId, name: bytes) -> KeyRange:
        """All members of a group."""
        return prefix_range(self._group_base(topic, name) + b"member/")

    def dead_letter(self, topic: FileId, name: bytes, generation: Revision, message: int) -> bytes:
        """Note of a message that was delivered too often, by its number in the generation."""
        return self._group_base(topic, name) + b"dead/%016x/%016x" % (generation, message)

    def dead_letters(self, topic: FileId, name: bytes) -> KeyRange:
        """All such notes of a group."""
        return prefix_range(self._group_base(topic, name) + b"dead/")

    def parse_group(self, topic: FileId, key: bytes) -> tuple[bytes, bytes]:
        """Return a group's name and what of it the key is, such as ``cursor``. Raises CorruptData."""
        base = self._group + _hex(topic) + b"/"
        name, slash, rest = key[len(base) :].partition(b"/")
        if not key.startswith(base) or not slash:
            raise CorruptData(f"{key!r} is of no group of topic {topic:x}")
        return name, rest

    def parse_member(self, key: bytes) -> SessionId:
        """Return the session of a member's key. Raises CorruptData."""
        return SessionId(_number(key, len(key) - 16, len(key)))

    def _group_base(self, topic: FileId, name: bytes) -> bytes:
        return self._group + _hex(topic) + b"/" + name + b"/"

    def session(self, session: SessionId) -> bytes:
        """Who a session is; on its lease."""
        return self._session + _hex(session)

    def parse_session(self, key: bytes) -> SessionId:
        """Return the session of its key; CorruptData if it is none."""
        if not key.startswith(self._session):
            raise CorruptData(f"{key!r} is not the key of a session")
        return SessionId(_number(key, len(self._session), len(key)))

    def trash(self, topic: FileId) -> bytes:
        """Work order: the topic has batches of an old generation, or was deleted; remove its keys."""
        return self._trash + _hex(topic)

    def probe(self, number: int) -> bytes:
        """A key that means nothing: can keys here be written, and how fast? On a short lease."""
        return self._probe + _hex(number)

    def parse_trash(self, key: bytes) -> FileId:
        """Return the topic whose leftovers *key* orders to remove; CorruptData if it is no such order."""
        if not key.startswith(self._trash):
            raise CorruptData(f"{key!r} is not an order to remove leftovers")
        return FileId(_number(key, len(self._trash), len(key)))

    @property
    def families(self) -> tuple[KeyRange, ...]:
        """The ranges of all keys that belong to topics: the topic's id follows on the start of the range."""
        deep = (self._tail, self._segment, self._index, self._body, self._pending, self._writer, self._group)
        return tuple(prefix_range(stem) for stem in (*self._flat, *deep))

    def of_topic(self, family: KeyRange, topic: FileId) -> KeyRange:
        """Return the part of one of the `families` that belongs to a topic."""
        key = family.start + _hex(topic)
        return KeyRange(key, key + b"\0") if family.start in self._flat else prefix_range(key + b"/")

    def parse_topic(self, family: KeyRange, key: bytes) -> FileId:
        """Return the topic of a key of one of the `families`; CorruptData if it has none."""
        start = len(family.start)
        topic = FileId(_number(key, start, start + 16))
        part = self.of_topic(family, topic)
        if not part.start <= key < part.end:
            raise CorruptData(f"{key!r} does not go on as it should behind the id")
        return topic


def _number(key: bytes, start: int, end: int) -> int:
    try:
        number = int(key[start:end], 16)
    except ValueError:
        number = -1
    if key[start:end] != _hex(number):
        raise CorruptData(f"{key!r} has no id where one belongs")
    return number
