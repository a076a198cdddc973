"""The values of the small keys: JSON objects, one dataclass each, parsed strictly at this border.

JSON, so that ``etcdctl get --prefix`` explains itself. Unknown fields are ignored on reading (a
later release may add some); missing or mistyped ones raise CorruptData naming the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

from dnpipefs.core.names import START, FileId, Kind, Offset
from dnpipefs.errors import CorruptData, UnsupportedFormat

FORMAT_VERSION: Final = 1


def _dump(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _load(key: bytes, raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CorruptData(f"{key!r} does not hold a JSON object")
    return value


def _integer(key: bytes, value: Mapping[str, Any], name: str) -> int:
    number = value.get(name)
    if type(number) is not int:
        raise CorruptData(f"{key!r}: field {name!r} is missing or not a whole number")
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
        return _dump({"format": self.format, "cluster": self.cluster})

    @classmethod
    def decode(cls, key: bytes, raw: bytes) -> Meta:
        """Parse; UnsupportedFormat when a later release wrote it."""
        value = _load(key, raw)
        version = _integer(key, value, "format")
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
    config: Mapping[str, Any] = field(default_factory=dict)
    """Topic configuration, kept as it is by releases that do not know a setting."""

    def encode(self) -> bytes:
        """Return the value of the entry's key."""
        return _dump(
            {
                "id": f"{self.id:x}",
                "kind": self.kind.value,
                "mode": f"{self.mode:04o}",
                "uid": self.uid,
                "gid": self.gid,
                "mtime": self.mtime_ns,
                "ctime": self.ctime_ns,
                "config": dict(self.config),
            }
        )

    @classmethod
    def decode(cls, key: bytes, raw: bytes) -> Inode:
        """Parse the value of an entry's key."""
        value = _load(key, raw)
        try:
            return cls(
                id=FileId(int(_text(key, value, "id"), 16)),
                kind=Kind(_text(key, value, "kind")),
                mode=int(_text(key, value, "mode"), 8),
                uid=_integer(key, value, "uid"),
                gid=_integer(key, value, "gid"),
                mtime_ns=_integer(key, value, "mtime"),
                ctime_ns=_integer(key, value, "ctime"),
                config=_object(key, value, "config"),
            )
        except ValueError as error:
            raise CorruptData(f"{key!r}: {error} in a directory entry") from None

    def changed(self, ctime_ns: int, **changes: Any) -> Inode:
        """Return a copy with *changes* and a new status-change time."""
        return replace(self, ctime_ns=ctime_ns, **changes)


@dataclass(frozen=True, slots=True)
class Head:
    """Where the sealed part of a topic's log ends."""

    offset: Offset = START
    messages: int = 0
    first: Offset = START
    """First retained byte."""
    writers: Mapping[str, int] = field(default_factory=dict)
    """Last sealed sequence number of each writer, by session in hexadecimal."""

    def encode(self) -> bytes:
        """Return the value of the head key."""
        return _dump(
            {
                "offset": self.offset,
                "messages": self.messages,
                "first": self.first,
                "writers": dict(self.writers),
            }
        )

    @classmethod
    def decode(cls, key: bytes, raw: bytes) -> Head:
        """Parse the value of a head key.

        UnsupportedFormat when something was sealed: this release does not read segments yet and
        must not show a topic without its beginning.
        """
        value = _load(key, raw)
        writers = _object(key, value, "writers")
        head = cls(
            Offset(_integer(key, value, "offset")),
            _integer(key, value, "messages"),
            Offset(_integer(key, value, "first")),
            {name: _integer(key, writers, name) for name in writers},
        )
        if head.offset:
            raise UnsupportedFormat(f"{key!r}: the topic has sealed segments; upgrade dnpipefs on this host")
        return head


@dataclass(frozen=True, slots=True)
class Mark:
    """What happened to a topic besides appends, told inside the range that views watch."""

    kind: str
    time_ns: int

    RESET: ClassVar[str] = "reset"

    def encode(self) -> bytes:
        """Return the value of the mark key."""
        return _dump({"kind": self.kind, "time": self.time_ns})

    @classmethod
    def decode(cls, key: bytes, raw: bytes) -> Mark:
        """Parse; UnsupportedFormat for a kind of a later release."""
        value = _load(key, raw)
        kind = _text(key, value, "kind")
        if kind != cls.RESET:
            raise UnsupportedFormat(f"{key!r}: mark of kind {kind!r}; upgrade dnpipefs on this host")
        return cls(kind, _integer(key, value, "time"))


EMPTY_HEAD_VALUE: Final = Head().encode()
"""The head of a topic of which nothing is sealed."""


def encode_time(time_ns: int) -> bytes:
    """Return the value of the epoch and last keys: when, in nanoseconds since 1970 UTC."""
    return b'{"time":%d}' % time_ns  # JSON like the rest, in the hot path of every append


def decode_time(key: bytes, raw: bytes) -> int:
    """Parse the value of an epoch or last key."""
    if raw.startswith(b'{"time":') and raw.endswith(b"}") and (digits := raw[8:-1]).isdigit():
        return int(digits)  # as `encode_time` makes it: some thousands are read for a listing
    return _integer(key, _load(key, raw), "time")


def encode_session(*, host: str, pid: int, mountpoint: str | None, version: str) -> bytes:
    """Return the value of a session key."""
    return _dump({"host": host, "pid": pid, "mountpoint": mountpoint, "version": version})
