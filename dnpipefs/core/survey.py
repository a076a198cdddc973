"""Sizes of many topics at once: what one look at their `last` keys settles, and which have to be read.

A look is one read, at one revision, of the `last` keys of some topics, and of their `epoch` keys or how
many there are. As every push, seal and reset puts `last`, it settles most topics of a large directory:

=============================  ======================================  =========================
`last/<t>`                     `epoch/<t>`                             the topic
=============================  ======================================  =========================
absent                                                                 was deleted
changed as last known          exists                                  has the size it had
put once, with the epoch       changed with it                         is as it was created: empty
otherwise                                                              has to be read
=============================  ======================================  =========================

Counting is enough to see that each has an `epoch`: there are as many as topics. Where one is missing (a
reset while etcd was full deletes it and leaves `last`), all topics of the look are read. A `last` that was
put once need not be as it was created: it may have been lost, and put anew by a push, or by fsck.

Pure: the time (seconds, monotonic) is an argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from dnpipefs.core.names import START, FileId, Revision
from dnpipefs.core.sizes import KnownSize, KnownSizes

RANGE_TOPICS: Final = 250
"""Topics of one look by range: an answer of some ten thousand bytes for each of its keys' kinds."""
POINT_TOPICS: Final = 40
"""Topics of one look key by key: three reads for each stay below etcd's 128 operations a transaction."""
DENSE: Final = 4
"""A range is read where at least every so many-th topic in it is asked for: a key by itself costs four times
as much as one in a range (measured: 66 µs and 17 µs a topic)."""


class Last(NamedTuple):
    """What a `last` key says."""

    newest: Revision
    """Its mod_revision: the topic's newest append, seal or reset."""
    puts: int
    """How often it was put."""
    time_ns: int


class Look(NamedTuple):
    """The `last` keys of some topics at one revision."""

    revision: Revision
    lasts: Mapping[FileId, Last]
    all_have_epochs: bool
    """As many `epoch` keys were counted there as `last` keys."""
    generations: Mapping[FileId, Revision]
    """The mod_revisions of `epoch` keys, of topics whose `last` was put once, where they were read."""


def is_dense(asked: int, among: int) -> bool:
    """Tell whether to read *asked* topics out of *among* in a range."""
    return asked * DENSE >= among


def groups(topics: Sequence[FileId], *, dense: bool) -> Iterator[list[FileId]]:
    """Divide topics into those of one look each; by range in the order of their ids."""
    ordered = sorted(topics) if dense else topics
    size = RANGE_TOPICS if dense else POINT_TOPICS
    for first in range(0, len(ordered), size):
        yield list(ordered[first : first + size])


def settle(sizes: KnownSizes, topics: Sequence[FileId], look: Look, now: float) -> list[FileId]:
    """Take into *sizes* what a look, asked for at *now*, settles; return the topics that have to be read."""
    left: list[FileId] = []
    for topic in topics:
        last = look.lasts.get(topic)
        if last is None:  # deleted
            continue
        if not look.all_have_epochs:
            left.append(topic)
        elif sizes.unchanged(topic, last.newest, now):
            continue
        elif last.puts == 1 and look.generations.get(topic) == last.newest:
            sizes.learned(topic, KnownSize(START, 0, last.time_ns, last.newest, last.newest, now, now, now))
        else:
            left.append(topic)
    return left
