"""Settings of topics: what users write, what is stored for it, and what it means.

A setting has one name everywhere: in the stored object, on the command line, and behind ``user.dnp.``
as an extended attribute. What stands in an inode's ``config`` is in canonical form: words, and whole
numbers of bytes, nanoseconds and messages. What is at its default is not stored.

Invariants:

1. What `format_value` makes of any value, `parse_change` takes for that value.
2. A stored value that does not parse is at its default, and said so once by whoever reads it; it and
   fields that this release does not know stay as they are until they are set anew.
3. Reading a setting in the hot path builds nothing: `StoredConfig.effective` is made with the inode.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from dnpipefs.core.names import FileId, Offset, Revision, check_new_name, parse_path
from dnpipefs.errors import InvalidName, InvalidSetting, ReadOnlySetting

DEAD_SUFFIX: Final = ".dead"
"""Of the name of a topic's dead letters."""
MESSAGE_LIMIT: Final = 16 << 20
"""Bytes that `max_message` can be at most."""
SHOWN_TEXT: Final = 100
"""Characters of a wrong value that an error repeats: any user may set one of 64 KiB, and the log has each."""
PATH_LIMIT: Final = 4096
"""Bytes of a path that is a value, and Linux' of any, exclusive: each topic has a copy of its directory's
settings, which all hosts keep in memory."""
_NUMBER_LIMIT: Final = 2**63
"""Exclusive."""

Value = str | int | None
"""A setting's value in canonical form; None is "no limit"."""


class Framing(enum.StrEnum):
    """What one message is among the bytes that are written to a topic."""

    LINE = "line"
    WRITE = "write"


class Compression(enum.StrEnum):
    """How sealed segments and large batches are stored."""

    ZSTD = "zstd"
    """Compressed where that makes them smaller."""
    NONE = "none"


class Start(enum.StrEnum):
    """Where a consumer group begins that nobody has read yet."""

    FIRST = "first"
    LAST = "last"


class Ack(enum.StrEnum):
    """What tells that a message of a group is done."""

    EXIT_STATUS = "exit-status"
    """The next read, or the last close by a process that lives or ends with status 0."""
    NEXT_READ = "next-read"
    """The next read only."""
    DELIVERY = "delivery"
    """That it was handed out: at most once."""


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """The settings of one topic in effect, or those that a directory hands down."""

    framing: Framing = Framing.LINE
    retention_bytes: int | None = None
    """What of the log is kept at least; None keeps everything, as for the two below."""
    retention_age_ns: int | None = None
    retention_messages: int | None = None
    max_message: int = 8 << 20
    """Bytes of the largest message that is taken, newline included."""
    compression: Compression = Compression.ZSTD
    start: Start = Start.FIRST
    ack: Ack = Ack.EXIT_STATUS
    batch: int = 1
    """Messages of a group that one read returns at most."""
    visibility_timeout_ns: int | None = None
    """How long a reader may have a message of a group before another one gets it; None: while it lives."""
    max_deliveries: int | None = None
    """How often a message of a group is delivered before it is a dead letter."""
    dead_letter: str | None = None
    """The topic for dead letters; None: beside the topic, with its name and DEAD_SUFFIX."""

    @property
    def keeps_some(self) -> bool:
        """Whether retention removes something."""
        return (self.retention_bytes, self.retention_age_ns, self.retention_messages) != (None, None, None)

    @property
    def compress(self) -> bool:
        """Whether segments and large batches are compressed where that makes them smaller."""
        return self.compression is Compression.ZSTD


DEFAULTS: Final = TopicConfig()


class TopicFacts(NamedTuple):
    """What is known of a topic and cannot be set, by the names under which users see it."""

    id: FileId
    generation: Revision
    messages: int
    """How many are retained."""
    first_offset: Offset
    """Of the first byte that is retained."""
    end_offset: Offset
    """Behind the last byte: the size of the file."""
    revision: Revision
    """Of the newest push or reset."""

    def text(self, name: str) -> str:
        """Return one of them as users see it."""
        return format_id(self.id) if name == "id" else str(getattr(self, name))


READ_ONLY: Final = TopicFacts._fields


def format_id(file: FileId) -> str:
    """Return the id of a topic or directory as it stands in etcd's keys."""
    return f"{file:016x}"


class _Choice:
    """One of a few words."""

    def __init__(self, words: type[enum.StrEnum]) -> None:
        self._words: Final = words
        self.words: Final = tuple(words)
        self.allowed: Final = " or ".join(words)

    def parse(self, text: str) -> Value:
        return self._words(text)

    def load(self, stored: object) -> Value:
        return self._words(str(stored))

    def format(self, value: Value) -> str:
        return str(value)


class _Quantity:
    """A whole number above 0, with a unit.

    `units` by name, in lower case or as written; `shown` are those that a number is formatted with, in the
    order of preference: the first that leaves no rest.
    """

    def __init__(
        self,
        allowed: str,
        units: Mapping[str, int],
        shown: tuple[str, ...],
        *,
        largest: int = _NUMBER_LIMIT - 1,
        optional: bool = True,
    ) -> None:
        self.allowed: Final = f"{allowed}, or none" if optional else allowed
        self.words: Final = ("none",) if optional else ()
        self._units: Final = {name.lower(): factor for name, factor in units.items()}
        self._shown: Final = tuple((name, units[name]) for name in shown)
        self._largest: Final = largest
        self._optional: Final = optional

    def parse(self, text: str) -> Value:
        if text in ("", "none"):
            return self.load(None)
        found = re.fullmatch(r"([0-9]{1,19}) ?([a-z]*)", text.lower())
        if found is None or found[2] not in self._units:
            raise ValueError
        return self.load(int(found[1]) * self._units[found[2]])

    def load(self, stored: object) -> Value:
        if stored is None and self._optional:
            return None
        if type(stored) is not int or not 0 < stored <= self._largest:
            raise ValueError
        return stored

    def format(self, value: Value) -> str:
        if not isinstance(value, int):
            return "none"
        return next(f"{value // factor}{name}" for name, factor in self._shown if value % factor == 0)


_SIZES: Final = {"": 1, "B": 1} | {
    f"{letter}{unit}": base ** (power + 1)
    for power, letter in enumerate("KMGT")
    for unit, base in (("B", 1000), ("iB", 1024))
}
_SHOWN_SIZES: Final = ("TiB", "GiB", "MiB", "KiB", "TB", "GB", "MB", "KB", "")
_S: Final = 10**9
_AGES: Final = {
    "ns": 1,
    "ms": 10**6,
    "s": _S,
    "m": 60 * _S,
    "h": 3600 * _S,
    "d": 86_400 * _S,
    "w": 604_800 * _S,
}


class _Path:
    """A topic's path."""

    allowed: Final = "the path of a topic such as team/jobs.dead, or none"
    words: Final = ("none",)

    def parse(self, text: str) -> Value:
        return self.load(None if text in ("", "none") else text)

    def load(self, stored: object) -> Value:
        if stored is None:
            return None
        if not isinstance(stored, str):
            raise ValueError  # noqa: TRY004 - as for all values that do not parse
        try:
            *_, name = parse_path(stored)
            check_new_name(name)
            if len(stored.encode("utf-8", "surrogateescape")) >= PATH_LIMIT:
                raise ValueError
        except InvalidName:
            raise ValueError from None
        return stored.strip("/")

    def format(self, value: Value) -> str:
        return "none" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name, and which attribute of `TopicConfig` it is."""

    name: str
    attribute: str
    form: _Choice | _Quantity | _Path

    @property
    def default(self) -> Value:
        """Its value where it is not set."""
        return self.of(DEFAULTS)

    def of(self, config: TopicConfig) -> Value:
        """Return its value in *config*."""
        value: Value = getattr(config, self.attribute)
        return value

    @property
    def words(self) -> tuple[str, ...]:
        """The words among its values, to be offered where one is typed."""
        return self.form.words

    def parse(self, text: str) -> Value:
        """Return the value that users mean by *text*. Raises InvalidSetting."""
        try:
            return self.form.parse(text.strip())
        except ValueError:
            if len(text) > SHOWN_TEXT:
                text = text[:SHOWN_TEXT] + "…"
            raise InvalidSetting(f"{self.name}: {text!r} is not {self.form.allowed}") from None


SETTINGS: Final[Mapping[str, Setting]] = {
    name: Setting(name, attribute, form)
    for name, attribute, form in (
        ("framing", "framing", _Choice(Framing)),
        (
            "retention.bytes",
            "retention_bytes",
            _Quantity("a size such as 10MiB, 500KB or 4096 (bytes)", _SIZES, _SHOWN_SIZES),
        ),
        (
            "retention.age",
            "retention_age_ns",
            _Quantity("an age such as 30s, 15m, 12h, 7d or 2w", _AGES, ("d", "h", "m", "s", "ms", "ns")),
        ),
        ("retention.messages", "retention_messages", _Quantity("a number such as 1000", {"": 1}, ("",))),
        (
            "max_message",
            "max_message",
            _Quantity(
                "a size from 1 to 16MiB, such as 64KiB",
                _SIZES,
                _SHOWN_SIZES,
                largest=MESSAGE_LIMIT,
                optional=False,
            ),
        ),
        ("compression", "compression", _Choice(Compression)),
        ("start", "start", _Choice(Start)),
        ("ack", "ack", _Choice(Ack)),
        (
            "batch",
            "batch",
            _Quantity("a number from 1 to 10000", {"": 1}, ("",), largest=10_000, optional=False),
        ),
        (
            "visibility_timeout",
            "visibility_timeout_ns",
            _Quantity("a time such as 500ms, 30s or 15m", _AGES, ("d", "h", "m", "s", "ms", "ns")),
        ),
        ("max_deliveries", "max_deliveries", _Quantity("a number such as 5", {"": 1}, ("",))),
        ("dead_letter", "dead_letter", _Path()),
    )
}
"""All settings by name, in the order in which they are shown."""


def parse_size(text: str) -> int:
    """Return the bytes that users mean by *text*, such as ``64MiB``. Raises InvalidSetting."""
    form = _Quantity("a size such as 64MiB or 500KB", _SIZES, _SHOWN_SIZES, optional=False)
    try:
        size = form.parse(text.strip())
    except ValueError:
        size = None
    if not isinstance(size, int):
        raise InvalidSetting(f"{text!r} is not {form.allowed}")
    return size


def setting(name: str) -> Setting:
    """Return a setting by its name.

    Raises ReadOnlySetting for what is known of a topic but cannot be set, InvalidSetting for other
    names, with the nearest that exists.
    """
    found = SETTINGS.get(name)
    if found is not None:
        return found
    if name in READ_ONLY:
        raise ReadOnlySetting(f"{name} cannot be set: it says what is so")
    nearest = difflib.get_close_matches(name, SETTINGS, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(SETTINGS)}"
    raise InvalidSetting(f"no setting {name!r}: {hint}")


def format_value(name: str, config: TopicConfig) -> str:
    """Return a setting's value in *config* as users write it."""
    found = SETTINGS[name]
    return found.form.format(found.of(config))


def parse_change(texts: Mapping[str, str | None]) -> dict[str, Value]:
    """Return the values that users mean by *texts*, None being the default.

    Raises InvalidSetting, ReadOnlySetting.
    """
    return {
        name: found.default if text is None else found.parse(text)
        for name, text in texts.items()
        if (found := setting(name))
    }


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """The ``config`` object of an inode."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """As stored, with what this release does not know."""
    effective: TopicConfig = field(init=False, compare=False, default=DEFAULTS)
    complaints: tuple[str, ...] = field(init=False, compare=False, default=())
    """What is stored and does not parse, a line each."""

    def __post_init__(self) -> None:
        if not self.fields:
            return
        known: dict[str, Any] = {}
        complaints = []
        for name in self.fields.keys() & SETTINGS.keys():
            described = SETTINGS[name]
            try:
                known[described.attribute] = described.form.load(self.fields[name])
            except ValueError:
                default = described.form.format(described.default)
                complaints.append(f"setting {name} is stored as {self.fields[name]!r}: {default} holds")
        object.__setattr__(self, "effective", TopicConfig(**known))
        object.__setattr__(self, "complaints", tuple(sorted(complaints)))

    def changed(self, change: Mapping[str, Value]) -> StoredConfig:
        """Return what is stored once settings have the values that `parse_change` returned."""
        kept = {name: value for name, value in self.fields.items() if name not in change}
        new = {name: value for name, value in change.items() if value != SETTINGS[name].default}
        return StoredConfig(kept | new)
