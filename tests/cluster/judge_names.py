"""What names mean: create, rename, delete, lookup and listing.

Names are changed by one client each, one change after another, and no more once an outcome is unknown. So
what a name means has a history of its own, and others may find what it meant at some time during their call.

1. stale name: an open finds a topic which the name has ceased to mean more than the watch's lag before
   (and before what a test did to the mount, which may hold the watch up),
   or (for reading, which asks etcd) one whose deletion had returned; a listing, which asks, shows a name
   that was gone, or lacks one that was there. But what was removed while etcd was full, which takes nothing
   that would tell of it, is told by the watch.
2. missing name: an open says ENOENT, which is confirmed with etcd, of a name that was there all the time.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

from tests.cluster.history import Call, Create, Delete, History, Listing, Nemesis, Open, Rename
from tests.support.messages import Outcome
from tests.support.topic_log import LONG_AGO, NEVER, Anomaly, Kind

FULL: Final = "full etcd"
"""What the fault is called in a history."""


class Change(NamedTuple):
    """From some time between `began` and `ended` on a name means topic `ino`, 0 for none."""

    began: int
    ended: int
    ino: int
    sure: bool


class Name:
    """The history of one name."""

    def __init__(self, changes: list[Change]) -> None:
        self._changes = [Change(LONG_AGO, LONG_AGO, 0, True), *sorted(changes)]
        self._began = [change.began for change in self._changes]
        self.topics = {change.ino for change in changes}

    def meanings(self, began: int, ended: int) -> set[int]:
        """Return the topics that it may have meant at some time between two times."""
        found = set()
        for change in reversed(self._changes[: bisect_right(self._began, ended)]):
            found.add(change.ino)
            if change.sure and change.ended < began:
                break
        return found


class Troubles:
    """What tests did to mounts on purpose."""

    def __init__(self, history: History) -> None:
        self._all = sorted(history.of(Nemesis), key=lambda nemesis: nemesis.began, reverse=True)

    def away(self, call: Call) -> bool:
        """Tell whether there may have been no mount: a name is looked up in the directory below it then."""
        return any(
            n.what in ("kill", "stop")
            and n.mount == call.mount
            and n.began < call.ended
            and call.began < n.ended
            for n in self._all
        )

    def seen_since(self, call: Call, lag: int) -> int:
        """Return from when on the mount may show what it has seen."""
        since = call.began - lag
        for n in self._all:
            if n.mount in ("", call.mount) and n.began < call.ended and n.ended > since:
                since = min(since, n.began - lag)
        return since

    def removals_seen_since(self, call: Call, lag: int) -> int:
        """Return from when on the mount may show what was removed."""
        full = any(n.what == FULL and n.began < call.ended and n.ended > call.began - lag for n in self._all)
        return call.began - lag if full else call.began


def names(history: History) -> dict[str, Name]:
    """Return the history of each name."""
    changes: dict[str, list[Change]] = defaultdict(list)

    def change(name: str, call: Call, ino: int) -> None:
        if call.outcome is not Outcome.FAILED:
            ended = call.ended if call.ok else NEVER
            changes[name].append(Change(call.began, ended, ino, call.ok))

    unknown = -1
    for call in history.calls:
        match call:
            case Create(name=name, ino=ino):
                change(name, call, ino or unknown)
            case Delete(name=name):
                change(name, call, 0)
            case Rename(name=name, target=target, ino=ino):
                change(name, call, 0)
                change(target, call, ino)
            case _:
                pass
    return {name: Name(found) for name, found in changes.items()}


def check_names(history: History, lag: int) -> Iterator[Anomaly]:
    """Judge every open and listing; `lag` in nanoseconds."""
    known = names(history)
    gone = _deletions(history)
    troubles = Troubles(history)
    for opened in history.of(Open):
        name = known.get(opened.name)
        if name is None:
            continue
        if opened.ok:
            meanings = name.meanings(troubles.seen_since(opened, lag), opened.ended)
            if opened.ino not in meanings and -1 not in meanings:
                text = f"{opened}: {opened.name} was topic {opened.ino:x}"
                yield Anomaly(Kind.STALE_NAME, f"{text}, not one of {[f'{ino:x}' for ino in meanings]}")
            elif opened.mode == "read" and gone.get(opened.ino, NEVER) < opened.began:
                text = f"{opened}: {opened.name} was topic {opened.ino:x}"
                yield Anomaly(Kind.STALE_NAME, f"{text}, whose deletion had returned")
        elif opened.errno == errno.ENOENT:
            yield from _check_missing(opened, opened.name, known, troubles)
    changes: list[Delete | Rename] = [*history.of(Delete), *history.of(Rename)]
    for change in changes:
        if change.errno == errno.ENOENT:
            yield from _check_missing(change, change.name, known, troubles)
    for create in history.of(Create):
        if create.errno == errno.EEXIST and _meanings(create, create.name, known) == {0}:
            yield Anomaly(Kind.STALE_NAME, f"{create}: {create.name} was not there")
    for listing in history.of(Listing):
        if listing.ok:
            yield from _check_listing(listing, known, troubles.removals_seen_since(listing, lag))


def _meanings(call: Call, name: str, known: dict[str, Name]) -> set[int]:
    return known[name].meanings(call.began, call.ended) if name in known else {0}


def _check_missing(call: Call, name: str, known: dict[str, Name], troubles: Troubles) -> Iterator[Anomaly]:
    if 0 not in _meanings(call, name, known) and not troubles.away(call):
        yield Anomaly(Kind.MISSING_NAME, f"{call}: {name} was there all the time")


def _check_listing(listing: Listing, known: dict[str, Name], since: int) -> Iterator[Anomaly]:
    listed = set(listing.names)
    for text, name in known.items():
        if text in listed and name.meanings(since, listing.ended) == {0}:
            yield Anomaly(Kind.STALE_NAME, f"{listing} shows {text}, which was gone")
        if text not in listed and 0 not in name.meanings(listing.began, listing.ended):
            yield Anomaly(Kind.MISSING_NAME, f"{listing} lacks {text}, which was there all the time")


def _deletions(history: History) -> dict[int, int]:
    """Return when the deletion of each topic had returned."""
    gone: dict[int, int] = {}
    for delete in history.of(Delete):
        if delete.ok:
            gone[delete.ino] = delete.ended
    for rename in history.of(Rename):
        if rename.ok and rename.replaced:
            gone[rename.replaced] = rename.ended
    return gone
