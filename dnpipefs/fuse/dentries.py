"""What the kernel has under a name: what it was told of that name last.

It may use what it was told for a moment, so when it asks to remove, replace or move something, another host
may have put something else there:

- of a directory that it asked to remove or replace it would mark *its own* as dead, and if that lives on
  under another name nobody could use it on this host any more;
- where users may remove only what is theirs (sticky bit), it has looked whose *its own* is.

So these requests say what it has, and fail with ESTALE if that is not there: the kernel looks the name up and
tries once more.

Pure: the time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from dnpipefs.core.names import FileId

REMEMBERED_S: Final = 0.5
"""How long at least a name is remembered: many times as long as the kernel may use it."""
NAMES_LIMIT: Final = 50_000
"""Names remembered at once, some 10 MB: more than a listing tells of in that time."""


class Dentries:
    """Topics and directories by the names under which the kernel has them, as far as it was told of late."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[FileId, bytes], tuple[FileId, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._told)

    def tell(self, parent: FileId, name: bytes, file: FileId, now: float) -> None:
        """Note that the kernel is told, *now* (seconds, monotonic), what stands under a name."""
        self._told.pop((parent, name), None)
        self._told[parent, name] = file, now
        while len(self._told) > NAMES_LIMIT or now - next(iter(self._told.values()))[1] > REMEMBERED_S:
            self._told.popitem(last=False)

    def forget(self, parent: FileId, name: bytes) -> None:
        """Note that the kernel has nothing under a name."""
        self._told.pop((parent, name), None)

    def find(self, parent: FileId, name: bytes) -> FileId | None:
        """Return what the kernel has under a name; None if it has nothing, or nobody knows."""
        found = self._told.get((parent, name))
        return found[0] if found is not None else None

    def move(self, source: tuple[FileId, bytes], target: tuple[FileId, bytes]) -> None:
        """Note that the kernel has moved what it has under a name."""
        self._told.pop(target, None)
        if (moved := self._told.pop(source, None)) is not None:
            self._told[target] = moved
