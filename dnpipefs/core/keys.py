"""The key schema: every key dnpipefs has in etcd is built and taken apart here and nowhere else.

Numbers in keys are fixed-width lower-case hexadecimal, so that key order is number order.
`docs/format.md` describes each key and its value.
"""

from __future__ import annotations

import re
import struct
from binascii import unhexlify
from dataclasses import dataclass
from typing import Final, NamedTuple

from dnpipefs.core.names import FileId, Offset, SessionId
from dnpipefs.errors import CorruptData, InvalidArgument

DEFAULT_PREFIX: Final = "/dnp/"
_BATCH_NAME: Final = re.compile(rb"([0-9a-f]{16})/([0-9a-f]{16})-([0-9a-f]{8})-([0-9a-f]{8})")
_BATCH_NUMBERS: Final = struct.Struct(">QQII")
"""The name of a batch below its topic, and what its digits say."""


class TailKey(NamedTuple):
    """What the key of one batch says: who wrote it, as which append, how large it is."""

    session: SessionId
    sequence: int
    size: int
    """Bytes of message data (uncompressed, without the batch header)."""
    messages: int


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
        self._writer: Final = self.prefix + b"writer/"
        self._group: Final = self.prefix + b"group/"
        self._session: Final = self.prefix + b"session/"
        self._trash: Final = self.prefix + b"trash/"

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
        return self._tail + _hex(topic) + b"/mark"

    def batch(self, topic: FileId, session: SessionId, sequence: int, size: int, messages: int) -> bytes:
        """One batch of the tail."""
        return b"%b%016x/%016x/%016x-%08x-%08x" % (self._tail, topic, session, sequence, size, messages)

    def batches_through(self, topic: FileId, session: SessionId, sequence: int) -> KeyRange:
        """One writer's batches up to and including *sequence*."""
        base = b"%b%016x/%016x/" % (self._tail, topic, session)
        return KeyRange(base, base + _hex(sequence + 1))

    def parse_tail(self, topic: FileId, key: bytes) -> TailKey | None:
        """Take the key of a batch apart; None for the mark. CorruptData if it is neither."""
        prefix = self.tail_prefix(topic)
        if key.startswith(prefix):
            found = _BATCH_NAME.fullmatch(key, len(prefix))
            if found is not None:
                return TailKey._make(_BATCH_NUMBERS.unpack(unhexlify(b"".join(found.groups()))))
            if key == self.mark(topic):
                return None
        raise CorruptData(f"{key!r} is not the key of a batch of topic {topic:x}")

    def segment(self, topic: FileId, offset: Offset) -> bytes:
        """A sealed segment, keyed by its start offset."""
        return self._segment + _hex(topic) + b"/" + _hex(offset)

    def segments(self, topic: FileId) -> KeyRange:
        """All sealed segments of a topic."""
        return prefix_range(self._segment + _hex(topic) + b"/")

    def writer(self, topic: FileId, session: SessionId) -> bytes:
        """Fence of one writer's appends, on the session's lease."""
        return self._writer + _hex(topic) + b"/" + _hex(session)

    def writers(self, topic: FileId) -> KeyRange:
        """The fences of all writers of a topic."""
        return prefix_range(self._writer + _hex(topic) + b"/")

    def groups(self, topic: FileId) -> KeyRange:
        """All state of all consumer groups of a topic."""
        return prefix_range(self._group + _hex(topic) + b"/")

    def session(self, session: SessionId) -> bytes:
        """Who a session is; on its lease."""
        return self._session + _hex(session)

    def trash(self, topic: FileId) -> bytes:
        """Work order: the topic has batches of an old generation, or was deleted; remove its keys."""
        return self._trash + _hex(topic)

    def parse_trash(self, key: bytes) -> FileId:
        """Return the topic whose leftovers *key* orders to remove; CorruptData if it is no such order."""
        if not key.startswith(self._trash):
            raise CorruptData(f"{key!r} is not an order to remove leftovers")
        return FileId(_number(key, len(self._trash), len(key)))


def _number(key: bytes, start: int, end: int) -> int:
    try:
        number = int(key[start:end], 16)
    except ValueError:
        number = -1
    if key[start:end] != _hex(number):
        raise CorruptData(f"{key!r} has no id where one belongs")
    return number
