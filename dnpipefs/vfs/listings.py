"""What directories were found to hold, and reading ahead the sizes that are going to be asked for.

`ls -l` stats each name right after the page of the listing that brought it; `du`, `find -size` and
others read a directory first and stat then. `ls` and `find` stat nothing. Asking etcd for each topic
by itself takes milliseconds, for all of them without need seconds. So sizes are read ahead in
surveys (`log/survey.py`) once somebody stats what a listing shows:

======================================  ================================================
event                                   read ahead
======================================  ================================================
a stat of a size that is not known,     the listing's next topics from there on: FEWEST at
of a topic that a listing shows         first, twice as many as last time if all of them were
                                        used, at most WINDOW; as many as were used in time
a page of that listing from then on     the page's topics and those of the AHEAD pages
                                        after it, before it is answered
======================================  ================================================

A directory of more than BY_NAME entries is listed in the order of ids, which is that of etcd's keys:
so the topics of a page lie in one range that few others are in.

What was read ahead is shown for PAGE_FRESH_S: as long as it takes to come to its end, one after another.
Who reads each file between its stat and the next one (`grep -r`, `cp -r`) comes to a few topics in that
time, and to read ahead of more would take longer than what it saves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from dnpipefs.core.names import FileId
from dnpipefs.core.sizes import FRESH_S
from dnpipefs.core.tree import Entry, Tree
from dnpipefs.log.log import Log
from dnpipefs.log.survey import Survey

BY_NAME: Final = 1_000
"""Entries of the largest directory that is listed in the order of names."""
PAGE: Final = 250
"""Entries shown at once, and whose sizes are read together. The kernel would take thousands, and `ls -l`
would come too late to the last ones: what is shown may be used for milliseconds only."""
WINDOW: Final = PAGE
"""Topics read ahead of a stat, at most: what is asked for by one stat after another while it is fresh."""
FEWEST: Final = 16
"""Topics read ahead of the first stat, and of one that comes much later than the last: one read."""
AHEAD: Final = 3
"""Pages read ahead of the one that is shown, at most: as many as a `Surveyor` reads at once."""
PAGE_FRESH_S: Final = 0.07
"""How old a size may be that a page of a listing shows, or a stat that was expected."""
RECENT_S: Final = 5.0
"""How long after its last page, or the last stat that it expected, a listing tells which ones follow."""
RECENT_LISTINGS: Final = 16
"""Listings that are remembered, one a directory."""


_NAME: Final = attrgetter("name")
_ID: Final = attrgetter("inode.id")


class _Window(NamedTuple):
    """Topics read ahead of a stat."""

    first: int
    """With which entry of the listing it begins."""
    length: int
    survey: Survey
    begun_at: float

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self.first <= index < self.first + self.length

    def next_length(self, index: int, now: float) -> int:
        """Return how many to read ahead of a stat that this window does not serve."""
        used = index - self.first
        if not 0 <= used < 2 * self.length:  # stats do not come in the order of the listing
            return FEWEST
        if used >= self.length and now - self.begun_at <= PAGE_FRESH_S:
            return min(2 * self.length, WINDOW)
        return max(min(used, self.length), FEWEST)


class Listing:
    """The entries of a directory at one moment, and how far their sizes are read ahead."""

    def __init__(self, log: Log, tree: Tree, directory: FileId, now: float) -> None:
        children = tree.children(directory)
        self._log: Final = log
        self._of_all: Final = len(tree)
        self._by_name: Final = len(children) <= BY_NAME
        self.entries: Final = sorted(children.values(), key=_NAME if self._by_name else _ID)
        self.shown_at = now
        """When a page of it was read last, or a stat was expected."""
        self.stats_follow = False
        """Somebody stats what is listed."""
        self._pages: dict[int, tuple[float, Survey]] = {}
        """When the sizes of each were begun to be read, and the survey."""
        self._ahead = AHEAD
        self._window = _Window(0, 0, Survey(0), now)
        """The last one."""

    @property
    def fresh_s(self) -> float:
        """How old the sizes of its topics may be that are shown."""
        return PAGE_FRESH_S if self.stats_follow else FRESH_S

    @property
    def size(self) -> int:
        """Bytes that it takes, about: the entries themselves are those of the tree."""
        return len(self.entries) * 8

    async def page(self, start: int, now: float) -> Sequence[Entry]:
        """Return what a page from entry *start* on may show, with sizes known if stats follow."""
        self.shown_at = now
        number = start // PAGE
        if self.stats_follow:
            await self._read_ahead(number, now).wait()
        return self.entries[start : (number + 1) * PAGE]

    async def expect_stats(self, entry: Entry, now: float) -> None:
        """Read ahead of a stat of an entry whose size is not known."""
        index = self._index(entry)
        if index is None:
            return
        self.shown_at = now
        self.stats_follow = True
        window = self._window
        if window.survey.done or index not in window:
            length = window.next_length(index, now)
            window = self._window = _Window(index, length, self._survey(index, index + length), now)
        await window.survey.wait()

    def _read_ahead(self, page: int, now: float) -> Survey:
        """See to it that a page and those after it are read; those before it are done with."""
        if page in self._pages:
            in_time = now - self._pages[page][0] <= PAGE_FRESH_S
            # What is read early for a slow reader is read twice.
            self._ahead = min(self._ahead + 1, AHEAD) if in_time else max(self._ahead - 1, 0)
            self._pages = {number: each for number, each in self._pages.items() if in_time and number >= page}
        for number in range(page, page + self._ahead + 1):
            if number not in self._pages:
                self._pages[number] = now, self._survey(number * PAGE, (number + 1) * PAGE)
        return self._pages[page][1]

    def _survey(self, start: int, end: int) -> Survey:
        topics = [entry.id for entry in self.entries[start:end] if not entry.is_directory]
        among = self._of_all if self._by_name else self._of_all * len(topics) // len(self.entries)
        return self._log.survey(topics, among=among)

    def _index(self, entry: Entry) -> int | None:
        """Return where an entry stands; None if it is newer than the listing, or was renamed since."""
        key = _NAME if self._by_name else _ID
        index = bisect_left(self.entries, key(entry), key=key)
        return index if index < len(self.entries) and self.entries[index].id == entry.id else None


class Listings:
    """The listings of late, by directory."""

    def __init__(self, log: Log) -> None:
        self._log: Final = log
        self._recent: OrderedDict[FileId, Listing] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recent)

    def open(self, tree: Tree, directory: FileId, now: float) -> Listing:
        """Return what a directory holds now, and remember it for a while."""
        listing = self._recent[directory] = Listing(self._log, tree, directory, now)
        self._recent.move_to_end(directory)
        while self._recent:
            oldest = next(iter(self._recent.values()))
            if len(self._recent) <= RECENT_LISTINGS and now - oldest.shown_at <= RECENT_S:
                break
            self._recent.popitem(last=False)
        return listing

    def showing(self, entry: Entry, now: float) -> Listing | None:
        """Return a listing that has shown an entry lately."""
        listing = self._recent.get(entry.parent)
        return listing if listing is not None and now - listing.shown_at <= RECENT_S else None
