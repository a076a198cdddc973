"""The history of a cluster under test: what each client asked for, what it was told, and when.

JSON lines. A client writes a line when a call begins and one when it ends, so that a call which never
ended, or whose client was killed, is in the history, too: with unknown outcome. Each client appends to a
file of its own, in whole lines; a last line that is torn counts as not written. Times are nanoseconds of
CLOCK_MONOTONIC, which all processes of the machine share, whatever their network namespace.
"""

from __future__ import annotations

import base64
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from tests.support.messages import Outcome
from tests.support.topic_log import NEVER


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of one client."""

    client: str
    mount: str
    began: int
    ended: int = NEVER
    outcome: Outcome = Outcome.OK
    errno: int = 0
    slowest: tuple[int, ...] = ()
    """Of a call that stands for several system calls, when the slowest began and ended."""

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK

    def __str__(self) -> str:
        ended = "never" if self.ended == NEVER else self.ended
        error = f", {os.strerror(self.errno)}" if self.errno else ""
        return f"{type(self).__name__.lower()} of {self.client} on {self.mount} ({self.began}-{ended}{error})"


@dataclass(slots=True, kw_only=True)
class Open(Call):
    """Opening a topic, and fstat of the handle."""

    name: str
    mode: str
    """"read" or "write"."""
    handle: int = 0
    """Of this client."""
    ino: int = 0
    size: int = 0


@dataclass(slots=True, kw_only=True)
class Write(Call):
    """One write(2) of whole messages, numbered `first` and on."""

    ino: int
    writer: str
    first: int
    count: int
    whole: int = -1
    """How many of them it took, if it was short; -1: all."""


@dataclass(slots=True, kw_only=True)
class Read(Call):
    """Reading on from `offset` until a read(2) returns nothing or fails."""

    handle: int
    ino: int
    name: str
    offset: int
    base: int = 0
    """So many bytes are the same that this client read there before, and are left out of `data`."""
    data: bytes = b""
    sizes: tuple[int, ...] = ()
    """What each read(2) returned."""
    last_began: int = 0
    """When the last of them began."""
    round: int = 0
    """Of final reads."""


@dataclass(slots=True, kw_only=True)
class Truncate(Call):
    """A reset."""

    ino: int


@dataclass(slots=True, kw_only=True)
class Create(Call):
    """open with O_CREAT and O_EXCL.

    Names are changed by one client each, which stops using a name when an outcome is unknown.
    """

    name: str
    ino: int = 0


@dataclass(slots=True, kw_only=True)
class Delete(Call):
    """unlink of a name that its client knows to mean `ino`."""

    name: str
    ino: int


@dataclass(slots=True, kw_only=True)
class Rename(Call):
    """rename of `name`, which is `ino`, to `target`, which was `replaced` (0: nothing)."""

    name: str
    target: str
    ino: int
    replaced: int = 0


@dataclass(slots=True, kw_only=True)
class Listing(Call):
    """A listing of the directory."""

    names: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Subscribe(Call):
    """Opening `topic@`, of a topic that is never renamed or deleted."""

    name: str
    handle: int
    ino: int


@dataclass(slots=True, kw_only=True)
class Hear(Call):
    """One read of a subscription; ok without data: there was nothing (EAGAIN)."""

    handle: int
    data: bytes = b""
    waits: bool = False
    """It is a read that waits until there is something, so it need not end."""


@dataclass(slots=True, kw_only=True)
class GroupOpen(Call):
    """Opening `topic@group`."""

    name: str
    group: str
    handle: int


@dataclass(slots=True, kw_only=True)
class Received(Call):
    """One read of a group that returned a message, or nothing (EAGAIN).

    As it begins, it acknowledges what the handle received before.
    """

    name: str
    group: str
    handle: int
    data: bytes = b""


@dataclass(slots=True, kw_only=True)
class Acknowledged(Call):
    """A close by a worker that lives and does not fail, by which what was in hand is done."""

    name: str
    group: str
    handle: int


@dataclass(slots=True, kw_only=True)
class Failed(Call):
    """A worker decided to end with a status other than 0, its message in hand."""

    name: str
    group: str
    handle: int


@dataclass(slots=True, kw_only=True)
class Killed(Call):
    """A worker decided to kill itself, its message in hand."""

    name: str
    group: str
    handle: int


@dataclass(slots=True, kw_only=True)
class Nemesis(Call):
    """What a test did on purpose, to one mount or to all (mount "").

    "kill" or "stop": the daemon ends, and is not back before the end; "pause": it stands still; anything
    else: calls may fail, but not hang.
    """

    what: str


@dataclass(slots=True, kw_only=True)
class Died(Call):
    """A daemon was found to have ended."""

    status: int = 0


@dataclass(slots=True, kw_only=True)
class Final(Call):
    """The final reads, by which all mounts should agree; ok: they did, in `round`."""

    mounts: tuple[str, ...]
    names: tuple[str, ...]
    round: int = 0


KINDS: dict[str, type[Call]] = {
    kind.__name__.lower(): kind
    for kind in (
        Open,
        Write,
        Read,
        Truncate,
        Create,
        Delete,
        Rename,
        Listing,
        Subscribe,
        Hear,
        GroupOpen,
        Received,
        Acknowledged,
        Failed,
        Killed,
        Nemesis,
        Died,
        Final,
    )
}
COMPRESSED_BYTES = 1000
_TUPLES = {"sizes", "names", "mounts", "slowest"}
_COMMON = {field.name for field in fields(Call)}

T = TypeVar("T", bound=Call)


@dataclass
class History:
    """All calls of all clients."""

    calls: list[Call] = field(default_factory=list)

    def of(self, kind: type[T]) -> list[T]:
        """Return the calls of one kind."""
        return [call for call in self.calls if type(call) is kind]

    @property
    def end(self) -> int:
        """The last time it knows of."""
        return max((max(c.began, c.ended if c.ended != NEVER else 0) for c in self.calls), default=0)

    def write(self, directory: Path) -> None:
        """Write it as its clients would have."""
        writers: dict[tuple[str, str], HistoryWriter] = {}
        for call in self.calls:
            key = call.client, call.mount
            if key not in writers:
                path = directory / f"{call.client}-{len(writers)}.jsonl"
                writers[key] = HistoryWriter(path, call.client, call.mount)
            values = {f.name: getattr(call, f.name) for f in fields(call) if f.name not in _COMMON}
            number = writers[key].begin(type(call), at=call.began, **values)
            if call.ended != NEVER:
                writers[key].end(number, call.errno, at=call.ended)
        for writer in writers.values():
            writer.close()


class HistoryWriter:
    """One client's file."""

    def __init__(self, path: Path, client: str, mount: str, *, first: int = 0) -> None:
        """`first`: above the numbers of calls that the file has already."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number = first
        self._line({"client": client, "mount": mount})

    def begin(self, kind: type[Call], *, at: int | None = None, **values: Any) -> int:
        """Say that a call begins; return its number."""
        self._number += 1
        began = time.monotonic_ns() if at is None else at
        self._line({"n": self._number, "call": kind.__name__.lower(), "t": began, **values})
        return self._number

    def end(self, number: int, errno: int = 0, *, at: int | None = None, **values: Any) -> None:
        """Say that it ended, and what came of it."""
        ended = time.monotonic_ns() if at is None else at
        line = {"n": number, "t": ended, **values}
        if errno:
            line["errno"] = errno
        self._line(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _line(self, values: dict[str, Any]) -> None:
        line = json.dumps(values, separators=(",", ":"), default=_encode).encode() + b"\n"
        assert os.write(self._file, line) == len(line), "no space for the history"


def read_history(directory: Path) -> History:
    """Return what all clients have written below a directory."""
    calls: list[Call] = []
    for path in sorted(directory.glob("*.jsonl")):
        calls += _calls(_lines(path))
    return History(calls)


def _encode(value: bytes) -> str | list[str]:
    """Return bytes for JSON; many of them compressed, since every reader reads the same."""
    if len(value) < COMPRESSED_BYTES:
        return value.decode("latin-1")
    return [base64.b85encode(zlib.compress(value, 1)).decode()]


def _decode(value: str | list[str]) -> bytes:
    if isinstance(value, str):
        return value.encode("latin-1")
    return zlib.decompress(base64.b85decode(value[0]))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # or its writer was killed
                yield json.loads(line)


def _calls(lines: Iterable[dict[str, Any]]) -> list[Call]:
    """Put the two lines of each call together."""
    begun: dict[int, dict[str, Any]] = {}
    calls: list[Call] = []
    client = mount = ""
    for line in lines:
        if "client" in line:
            client, mount = line["client"], line["mount"]
            continue
        number = line.pop("n")
        if "call" in line:
            line["began"] = line.pop("t")
            line["client"], line["mount"] = client, mount
            begun[number] = line
        else:
            line["ended"] = line.pop("t")
            whole = begun.pop(number)
            whole.update(line)
            error = whole.get("errno", 0)
            whole["outcome"] = Outcome.of(OSError(error, "")) if error else Outcome.OK
            calls.append(_call(whole))
    for line in begun.values():
        line["outcome"] = Outcome.UNKNOWN
        calls.append(_call(line))
    return calls


def _call(values: dict[str, Any]) -> Call:
    kind = KINDS[values.pop("call")]
    if "data" in values:
        values["data"] = _decode(values["data"])
    for name in _TUPLES & values.keys():
        values[name] = tuple(values[name])
    return kind(**values)
