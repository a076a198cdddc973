"""Stretches of messages with how often each was delivered: what a group's members hold and give back.

A stretch is a half-open interval of message numbers. Stretches never overlap; neighbours that were delivered
equally often are one, so a chunk that nobody has acknowledged anything of is one stretch, however many
messages it has.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Stretch(NamedTuple):
    """Some messages that follow on one another."""

    start: int
    """Number of the first one: how many messages of the generation come before it."""
    end: int
    """Number behind the last one."""
    deliveries: int
    """How often each of them was handed to a reader and came back."""


class Stretches:
    """A set of stretches, in the order of their numbers. Immutable: each change makes another."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[Stretch] = ()) -> None:
        """Take *items* in any order. Raises ValueError if one is empty or two overlap."""
        self._items = tuple(_merged(sorted(items)))

    def __iter__(self) -> Iterator[Stretch]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stretches) and self._items == other._items

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Stretches({list(self._items)})"

    @property
    def size(self) -> int:
        """How many messages these are."""
        return sum([stretch.end - stretch.start for stretch in self._items])

    def covers(self, start: int, end: int) -> bool:
        """Tell whether all of an interval is in it."""
        return sum([cut.end - cut.start for cut in self.within(start, end)]) == end - start

    def within(self, start: int, end: int) -> list[Stretch]:
        """Return what of it lies in an interval."""
        first = max(bisect_left(self._items, (start,)) - 1, 0)
        found: list[Stretch] = []
        for stretch in self._items[first:]:
            if stretch.start >= end:
                break
            if stretch.end > start < end:  # an empty interval cuts nothing out
                found.append(Stretch(max(start, stretch.start), min(end, stretch.end), stretch.deliveries))
        return found

    def added(self, items: Iterable[Stretch]) -> Stretches:
        """Return it with more stretches. Raises ValueError if they overlap."""
        return Stretches((*self._items, *items))

    def without(self, intervals: Iterable[tuple[int, int]]) -> Stretches:
        """Return what is left when some intervals are taken out, wherever they lie."""
        gaps = sorted(intervals)
        left: list[Stretch] = []
        gap = 0
        for start, end, deliveries in self._items:
            while gap < len(gaps) and gaps[gap][1] <= start:
                gap += 1
            at = start
            for gap_start, gap_end in gaps[gap:]:
                if gap_start >= end:
                    break
                if gap_start > at:
                    left.append(Stretch(at, gap_start, deliveries))
                at = max(at, gap_end)
            if at < end:
                left.append(Stretch(at, end, deliveries))
        return Stretches(left)


def _merged(items: Iterable[Stretch]) -> Iterator[Stretch]:
    before: Stretch | None = None
    for stretch in items:
        if stretch.start >= stretch.end:
            raise ValueError(f"an empty stretch at {stretch.start}")
        if before is None:
            before = stretch
        elif stretch.start < before.end:
            raise ValueError(f"what begins at {stretch.start} overlaps with what ends at {before.end}")
        elif stretch.start == before.end and stretch.deliveries == before.deliveries:
            before = Stretch(before.start, stretch.end, stretch.deliveries)
        else:
            yield before
            before = stretch
    if before is not None:
        yield before
