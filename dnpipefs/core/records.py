"""The values of the small keys: JSON objects, one dataclass each, parsed strictly at this border.

JSON, so that ``etcdctl get --prefix`` explains itself. Unknown fields are ignored on reading (a
later release may add some); missing or mistyped ones raise CorruptData naming the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, NamedTuple, TypeGuard

from dnpipefs.core.config import StoredConfig
from dnpipefs.core.keys import Beside, BodyKey
from dnpipefs.core.names import MAX_FILE_ID, START, FileId, Kind, Offset, Revision, SessionId
from dnpipefs.errors import CorruptData, UnsupportedFormat

FORMAT_VERSION: Final = 1
_SESSION_NAME: Final = re.compile(r"[0-9a-f]{1,16}")
_USERS: Final = 2**32
"""Exclusive: of numbers of users and groups."""
LIMIT: Final = 2**63
"""Exclusive: of all numbers."""
NOTHING_SET: Final = StoredConfig()
"""Shared by all entries with nothing set, which is most of them."""


def dump(value: Mapping[str, object]) -> bytes:
    """Return a value as JSON, the same bytes for the same content."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def load(key: bytes, raw: bytes) -> dict[str, Any]:
    """Parse a value that is a JSON object. Raises CorruptData."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):  # the latter for brackets in brackets in brackets
        value = None
    if not isinstance(value, dict):
        raise CorruptData(f"{key!r} does not hold a JSON object")
    return value


def integer(key: bytes, value: Mapping[str, Any], name: str) -> int:
    """Return a field that is a whole number of 64 bits. Raises CorruptData."""
    number = value.get(name)
    if not _is_integer(number):
        raise CorruptData(f"{key!r}: field {name!r} is missing or not a whole number of 64 bits")
    return number


def _is_integer(number: object) -> TypeGuard[int]:
    """Tell whether a value is a number that other programs, and the kernel, can take."""
    return type(number) is int and -LIMIT <= number < LIMIT


def count(key: bytes, value: Mapping[str, Any], name: str, *, limit: int = LIMIT) -> int:
    """Return a field that is a whole number, not below zero and below *limit*. Raises CorruptData."""
    number = integer(key, value, name)
    if not 0 <= number < limit:
        raise CorruptData(f"{key!r}: field {name!r} is not from 0 to {limit - 1}")
    return number


def _text(key: bytes, value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise CorruptData(f"{key!r}: field {name!r} is missing or not text")
    return text


def _object(key: bytes, value: Mapping[str, Any], name: str) -> dict[str, Any]:
    content = value.get(name)
    if not isinstance(content, dict):
        raise CorruptData(f"{key!r}: field {name!r} is missing or not an object")
    return content


@dataclass(frozen=True, slots=True)
class Meta:
    """What a prefix holds: the format version and the cluster's identity."""

    cluster: str
    format: int = FORMAT_VERSION

    def encode(self) -> bytes:
        """Return the value of the ``meta`` key."""
        return dump({"format": self.format, "cluster": self.cluster})

    @classmethod
    def decode(cls, key: bytes, raw: bytes) -> Meta:
        """Parse; UnsupportedFormat when a later release wrote it."""
        value = load(key, raw)
        version = integer(key, value, "format")
        if version != FORMAT_VERSION:
            raise UnsupportedFormat(
                f"the data under this prefix has format version {version}, this release knows "
                f"{FORMAT_VERSION}: use a release of dnpipefs that knows it, or another --prefix"
            )
        return cls(_text(key, value, "cluster"), version)


@dataclass(frozen=True, slots=True)
class Inode:
    """A directory entry's value: the inode record of a topic or directory."""

    id: FileId
    kind: Kind
    mode: int
    """Permission bits, 0 to 0o7777."""
    uid: int
    gid: int
    mtime_ns: int
    """Creation, or what utimensat(2) set; a topic shows its last push or reset when that is later."""
    ctime_ns: int
    config: StoredConfig = NOTHING_SET
    """Settings of a topic; of a directory those that it hands down."""

    def allows(self, uid: int, gid: int, wanted: int) -> bool:
        """Tell whether a process of this user and group alone has the permissions *wanted* (`os.R_OK` …)."""
        place = 6 if uid == self.uid else 3 if gid == self.gid else 0
        return uid == 0 or self.mode >> place & wanted == wanted

    def encode(self) -> bytes:
        """Return the value of the entry's key."""
        return dump(
            {
                "id": f"{self.id:x}",
                "kind": self.kind.value,
                "mode": f"{self.mode:04o}",
                "uid": self.uid,
                "gid": self.gid,
                "mtime": self.mtime_ns,
                "ctime": self.ctime_ns,
                "config": dict(self.config.fields),
            }
        )

    @classmethod
    def decode(cls, key: bytes, raw: bytes) -> Inode:
        """Parse the value of an entry's key."""
        value = load(key, raw)
        try:
            return cls(
                id=_file_id(_text(key, value, "id")),
                kind=Kind(_text(key, value, "kind")),
                mode=_mode(_text(key, value, "mode")),
                uid=count(key, value, "uid", limit=_USERS),
                gid=count(key, value, "gid", limit=_USERS),
                mtime_ns=integer(key, value, "mtime"),
                ctime_ns=integer(key, value, "ctime"),
                config=StoredConfig(stored) if (stored := _object(key, value, "config")) else NOTHING_SET,
            )
        except ValueError as error:
            raise CorruptData(f"{key!r}: {error} in a directory entry") from None

    def changed(self, ctime_ns: int, **changes: Any) -> Inode:
        """Return a copy with *changes* and a new status-change time.

        A time that no number of 64 bits can tell becomes the nearest one, as Linux has it: utimensat(2) takes
        any, and an entry with one that `decode` refuses would be lost.
        """
        if "mtime_ns" in changes:
            changes["mtime_ns"] = max(-LIMIT, min(changes["mtime_ns"], LIMIT - 1))
        return replace(self, ctime_ns=ctime_ns, **changes)


def _file_id(text: str) -> FileId:
    file = int(text, 16)
    if not 0 < file < MAX_FILE_ID:
        raise ValueError(f"{text[:20]} is no id")
    return FileId(file)


def _mode(text: str) -> int:
    mode = int(text, 8)
    if not 0 <= mode <= 0o7777:
        raise ValueError(f"{text[:20]} is no mode")
    return mode


class SegmentInfo(NamedTuple):
    """One entry of the index: a stretch of the sealed log, and where it lies."""

    size: int
    """Bytes of message data, uncompressed."""
    stored: int
    """Bytes it takes in etcd."""
    messages: int
    oldest_ns: int
    """Time of its oldest message, nanoseconds since 1970 UTC; by hosts' clocks, so it orders nothing."""
    newest_ns: int
    body: BodyKey | None = None
    """The large batch that it is; None if it is a segment of its own."""


@dataclass(frozen=True, slots=True)
class Index:
    """Consecutive entries of the index of a topic's segments: a page, or the newest ones in the head."""

    start: Offset
    """Of the first entry; the others follow on one another."""
    first_message: int
    """How many messages of the generation come before it."""
    segments: Sequence[SegmentInfo]

    @property
    def end(self) -> Offset:
        """Offset behind the last entry."""
        return Offset(self.start + sum([info.size for info in self.segments]))

    def encode(self) -> bytes:
        """Return the value of a page."""
        return dump({"messages": self.first_message, "segments": _segment_rows(self.segments)})

    @classmethod
    def decode(cls, key: bytes, raw: bytes, start: Offset) -> Index:
        """Parse the value of a page that begins at *start*."""
        value = load(key, raw)
        return cls(start, count(key, value, "messages"), _segments(key, value))


@dataclass(frozen=True, slots=True)
class Head:
    """Where the sealed part of a topic's log ends, and what of it is retained."""

    offset: Offset = START
    messages: int = 0
    first: Offset = START
    """First retained byte."""
    first_message: int = 0
    """How many messages came before it."""
    writers: Mapping[str, int] = field(default_factory=dict)
    """Last sealed sequence number of each writer, by session in hexadecimal. Sessions that are gone may
    have been left out, see `forgotten`."""
    forgotten: Revision = Revision(0)  # noqa: RUF009 - a NewType of int, immutable
    """No append after this revision was made by a session that has been left out of `writers`."""
    segments: Sequence[SegmentInfo] = ()
    """The newest entries of the index, up to `offset`; those before are in pages."""

    @property
    def newest(self) -> Index:
        """The entries of the index that stand in the head."""
        return Index(
            Offset(self.offset - sum([info.size for info in self.segments])),
            self.messages - sum([info.messages for info in self.segments]),
            self.segments,
        )

    def encode(self) -> bytes:
        """Return the value of the head key."""
        value: dict[str, object] = {
            "offset": self.offset,
            "messages": self.messages,
            "first": self.first,
            "writers": dict(self.writers),
        }
        if self.first_message:
            value["first_message"] = self.first_message
        if self.forgotten:
            value["forgotten"] = self.forgotten
        if self.segments:
            value["segments"] = _segment_rows(self.segments)
        return dump(value)

    @classmethod
    def decode(cls, key: bytes, raw: bytes) -> Head:
        """Parse the value of a head key. Fields that were 0 or empty may be missing."""
        if raw == EMPTY_HEAD_VALUE:
            return _EMPTY_HEAD
        value = load(key, raw)
        writers = _object(key, value, "writers")
        head = cls(
            Offset(count(key, value, "offset")),
            count(key, value, "messages"),
            Offset(count(key, value, "first")),
            count(key, {"first_message": 0} | value, "first_message"),
            {_session_name(key, name): integer(key, writers, name) for name in writers},
            Revision(count(key, {"forgotten": 0} | value, "forgotten")),
            _segments(key, {"segments": []} | value),
        )
        ordered = head.first <= head.offset and head.first_message <= head.messages
        if not ordered or head.newest.start < 0 or head.newest.first_message < 0:
            raise CorruptData(
                f"{key!r}: bytes {head.first} to {head.offset}, "
                f"messages {head.first_message} to {head.messages}"
            )
        return head


def _session_name(key: bytes, name: str) -> str:
    if not _SESSION_NAME.fullmatch(name):
        raise CorruptData(f"{key!r} has a writer {name!r}, which is no session")
    return name


def _segment_rows(segments: Sequence[SegmentInfo]) -> list[list[object]]:
    rows: list[list[object]] = []
    for info in segments:
        row: list[object] = list(info[:5])
        if info.body is not None:
            session, sequence, beside = info.body
            row += [f"{session:x}", sequence, beside.attempt]
        rows.append(row)
    return rows


def _segments(key: bytes, value: Mapping[str, Any]) -> tuple[SegmentInfo, ...]:
    rows = value.get("segments")
    try:
        segments = [_segment(row) for row in rows] if isinstance(rows, list) else None
    except (TypeError, ValueError):
        segments = None
    if segments is None:
        raise CorruptData(f"{key!r}: field 'segments' is missing or not a list of segments")
    return tuple(segments)


def _segment(row: Sequence[Any]) -> SegmentInfo:
    size, stored, messages, oldest_ns, newest_ns, *more = row
    # The first three stand in keys as well, with eight digits; above all, what is stored tells how many keys.
    if not all(_is_integer(number) and number >= 0 for number in row[:5]) or max(row[:3]) >= 1 << 32:
        raise ValueError
    if not more:
        return SegmentInfo(size, stored, messages, oldest_ns, newest_ns)
    session, sequence, attempt = more
    numbers = (int(session, 16), sequence, attempt)
    if not all(_is_integer(number) and number >= 0 for number in numbers):
        raise ValueError
    body = BodyKey(SessionId(numbers[0]), sequence, Beside(attempt, stored))
    return SegmentInfo(size, stored, messages, oldest_ns, newest_ns, body)


@dataclass(frozen=True, slots=True)
class Mark:
    """What happened to a topic besides appends, told inside the range that views watch."""

    kind: str
    time_ns: int
    start: Offset = START
    """SEAL: where the entries of the index begin that are new. TRIM: the first retained byte."""
    first_message: int = 0
    """How many messages of the generation come before `start`."""
    segments: Sequence[SegmentInfo] = ()
    """SEAL: the new entries. They take the place of all entries from `start` on, and of the batches of
    the tail up to their end."""

    RESET: ClassVar[str] = "reset"
    SEAL: ClassVar[str] = "seal"
    TRIM: ClassVar[str] = "trim"

    def encode(self) -> bytes:
        """Return the value of the mark key."""
        value: dict[str, object] = {"kind": self.kind, "time": self.time_ns}
        if self.kind != self.RESET:
            value |= {"start": self.start, "first_message": self.first_message}
        if self.kind == self.SEAL:
            value["segments"] = _segment_rows(self.segments)
        return dump(value)

    @classmethod
    def decode(cls, key: bytes, raw: bytes) -> Mark:
        """Parse; UnsupportedFormat for a kind of a later release."""
        value = load(key, raw)
        kind, time_ns = _text(key, value, "kind"), integer(key, value, "time")
        if kind == cls.RESET:
            return cls(kind, time_ns)
        if kind not in (cls.SEAL, cls.TRIM):
            raise UnsupportedFormat(f"{key!r}: mark of kind {kind!r}; upgrade dnpipefs on this host")
        start = Offset(count(key, value, "start"))
        segments = _segments(key, value) if kind == cls.SEAL else ()
        return cls(kind, time_ns, start, count(key, value, "first_message"), segments)


_EMPTY_HEAD: Final = Head()
EMPTY_HEAD_VALUE: Final = _EMPTY_HEAD.encode()
"""The head of a topic of which nothing is sealed."""


def encode_time(time_ns: int) -> bytes:
    """Return the value of the epoch and last keys: when, in nanoseconds since 1970 UTC."""
    return b'{"time":%d}' % time_ns  # JSON like the rest, in the hot path of every append


def decode_time(key: bytes, raw: bytes) -> int:
    """Parse the value of an epoch or last key."""
    digits = raw[8:-1]
    if len(digits) < 19 and raw.startswith(b'{"time":') and raw.endswith(b"}") and digits.isdigit():
        return int(digits)  # as `encode_time` makes it: some thousands are read for a listing
    return integer(key, load(key, raw), "time")


def encode_session(
    *, host: str, pid: int, mountpoint: str | None, version: str, since_ns: int | None = None
) -> bytes:
    """Return the value of a session key; `since_ns` is left out if it is None."""
    value = {"host": host, "pid": pid, "mountpoint": mountpoint, "version": version}
    return dump(value if since_ns is None else {**value, "since": since_ns})


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """Who a session is, as its key says."""

    host: str
    pid: int
    mountpoint: str | None
    """Where it has its mount; None for a command or a program."""
    version: str
    since_ns: int | None = None
    """When its process joined the cluster, by its clock; None if a release wrote it that did not say."""

    @classmethod
    def decode(cls, key: bytes, raw: bytes) -> SessionRecord:
        """Parse the value of a session key."""
        value = load(key, raw)
        mountpoint = value.get("mountpoint")
        return cls(
            _text(key, value, "host"),
            integer(key, value, "pid"),
            None if mountpoint is None else _text(key, value, "mountpoint"),
            _text(key, value, "version"),
            None if value.get("since") is None else integer(key, value, "since"),
        )
