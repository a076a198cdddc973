"""Types of the domain and the border where raw bytes become names.

Parsed once here, trusted everywhere else.
"""

from __future__ import annotations

import enum
from typing import Final, NewType

from dnpipefs.errors import InvalidName, NameTooLong

FileId = NewType("FileId", int)
"""Identity of a topic or directory, 1 <= id < 2**52; also its inode number on every host."""

SessionId = NewType("SessionId", int)
"""Identity of one host's mount or client while its lease lives: the lease id."""

Revision = NewType("Revision", int)
"""An etcd store revision (or a key's mod_revision): the one order of everything."""

NO_GENERATION: Final = Revision(0)
"""Instead of a generation: the topic is empty, and its next generation has yet to begin."""

Offset = NewType("Offset", int)
"""A byte position in a topic, counted from the first byte of its generation."""

START: Final = Offset(0)
"""Offset of the first byte of a generation."""

ROOT: Final = FileId(1)
MAX_FILE_ID: Final = 2**52
"""Exclusive. Below 2**53, so that JSON readers with floating-point numbers keep ids exact."""

MAX_NAME_BYTES: Final = 255
VIEW_SEPARATOR: Final = b"@"
CONTROL_DIRECTORY: Final = b".dnp"


class Kind(enum.Enum):
    """What a directory entry is."""

    TOPIC = "topic"
    DIRECTORY = "dir"


def check_component(name: bytes) -> bytes:
    """Return *name* if it can be one component of a path, existing or not.

    Raises NameTooLong above 255 bytes and InvalidName for what no path component can be.
    Any other bytes are fine, UTF-8 or not.
    """
    if len(name) > MAX_NAME_BYTES:
        raise NameTooLong(f"name of {len(name)} bytes; at most {MAX_NAME_BYTES} are allowed")
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise InvalidName(f"{name!r} is not a name")
    return name


def check_new_name(name: bytes) -> bytes:
    """Return *name* if a topic or directory of that name may be created.

    Raises InvalidName for reserved names, and as `check_component` does.
    """
    check_component(name)
    if VIEW_SEPARATOR in name:
        raise InvalidName(f"{name!r}: '@' is reserved for views (topic@, topic@group)")
    if name == CONTROL_DIRECTORY:
        raise InvalidName("'.dnp' is reserved for the control directory")
    return name


def parse_group(name: str | bytes) -> bytes:
    """Return the name of a consumer group. Raises InvalidName, NameTooLong."""
    raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    if VIEW_SEPARATOR in raw:
        raise InvalidName(f"{raw!r} is no name of a group: '@' divides it from its topic's")
    return check_component(raw)


def parse_path(path: str | bytes) -> tuple[bytes, ...]:
    """Split a topic path such as ``team/jobs`` (a leading slash is allowed) into components.

    Text is encoded the way Python decodes file names, so any bytes survive. The root is ``()``.
    """
    raw = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    return tuple(check_component(part) for part in raw.split(b"/") if part not in (b"", b"."))
