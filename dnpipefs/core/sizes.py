"""Sizes of topics that this host writes or stats but does not read: known without watching them.

A view costs a watch, and a watch brings a host its own pushes back as events, which for a host
that only writes is half the work. But each append can say, in the same transaction, which revision
of the topic came before it: if that is the one whose size is known, the new size is known, too.

======================  ==============================  ===========================
event                   known before                    known after
======================  ==============================  ===========================
learned (a snapshot)    anything                        what it says
appended, on top of     the size at that revision       that size and the batch
the known revision
appended, on top of     anything                        nothing: others write, too
another revision
confirmed               the size at that revision       the same, fresh again
forget (reset, delete)  anything                        nothing, nor what a snapshot
                                                        says that began before
======================  ==============================  ===========================

Invariants:

1. A known size was the topic's size at some moment from `as_of` to `confirmed_at`.
2. At most `limit` topics are known; the one asked for longest ago goes first.
3. A snapshot under way while the topic is forgotten does not bring the old size back.

Pure: the time (seconds, monotonic) is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dnpipefs.core.names import NO_GENERATION, START, FileId, Offset, Revision

FRESH_S: Final = 0.01
"""How long a known size is as good as a view's: about what a watch takes to bring the news."""
WANTED_S: Final = 1.0
"""How long after it was asked for a size is kept up by appends."""
FORGOTTEN_LIMIT: Final = 1000
"""Topics of which it is remembered one by one when they were forgotten."""


@dataclass(slots=True)
class KnownSize:
    """The size of a topic and when it was that."""

    end: Offset
    messages: int
    modified_ns: int
    generation: Revision
    newest: Revision
    """mod_revision of the topic's newest append or reset."""
    as_of: float
    """When etcd was asked: what had changed the topic before is in it."""
    confirmed_at: float
    """When it was known: later than `as_of`, if an own append told of it."""
    asked_at: float
    """When somebody here wanted to know it."""
    first: Offset = START
    """First retained byte."""
    first_message: int = 0
    """How many messages came before it."""
    stored: int = 0
    """Bytes that what is retained takes in etcd, as far as this host knows."""


class KnownSizes:
    """What is known, by topic."""

    def __init__(self, limit: int) -> None:
        self._limit: Final = limit
        self._known: OrderedDict[FileId, KnownSize] = OrderedDict()
        self._forgotten: OrderedDict[FileId, float] = OrderedDict()
        """When topics were forgotten, the last ones."""
        self._forgotten_before = float("-inf")
        """When the newest of those was forgotten that are not among them any more."""

    def __len__(self) -> int:
        return len(self._known)

    def knows_any(self, topics: Iterable[FileId]) -> bool:
        """Tell whether the size of at least one of *topics* is known, fresh or not."""
        return not self._known.keys().isdisjoint(topics)

    def learned(self, topic: FileId, size: KnownSize) -> None:
        """Take what a snapshot says, unless an append, a reset or the end has overtaken it meanwhile."""
        if size.confirmed_at <= self._forgotten.get(topic, self._forgotten_before):
            return
        known = self._known.get(topic)
        if known is not None and known.newest > size.newest:
            return
        self._known[topic] = size
        self._known.move_to_end(topic)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def ask(self, topic: FileId, now: float) -> KnownSize | None:
        """Return what is known, and keep it up for a while."""
        size = self._known.get(topic)
        if size is not None:
            size.asked_at = now
            self._known.move_to_end(topic)
        return size

    def fresh(self, topic: FileId, now: float, within: float = FRESH_S) -> KnownSize | None:
        """As `ask`, but only what was confirmed within so many seconds. Asked for each entry of a listing."""
        size = self._known.get(topic)
        if size is None or now - size.confirmed_at > within:
            return None
        size.asked_at = now
        self._known.move_to_end(topic)
        return size

    def since(self, topic: FileId, moment: float, now: float) -> KnownSize | None:
        """As `ask`, but only what etcd was asked for at that moment or later."""
        size = self._known.get(topic)
        return self.ask(topic, now) if size is not None and size.as_of >= moment else None

    def wanted(self, topic: FileId, now: float) -> bool:
        """Tell whether an append should say what came before it."""
        size = self._known.get(topic)
        return size is not None and now - size.asked_at <= WANTED_S

    def appended(
        self,
        topic: FileId,
        *,
        previous: Revision | None,
        revision: Revision,
        size: int,
        stored: int,
        messages: int,
        time_ns: int,
        sent_at: float,
        now: float,
    ) -> None:
        """This host appended; *previous* is the topic's newest revision before, None if not asked."""
        known = self._known.get(topic)
        if known is None:
            return
        if previous != known.newest:
            del self._known[topic]
            return
        known.end = Offset(known.end + size)
        known.messages += messages
        known.stored += stored
        known.modified_ns = time_ns
        known.newest = revision
        known.as_of, known.confirmed_at = sent_at, now

    def confirmed(self, topic: FileId, newest: Revision, generation: Revision, now: float) -> bool:
        """Etcd says where the topic stands; False (and forgotten) if that is not what is known."""
        known = self._known.get(topic)
        if known is None or (known.newest, known.generation) != (newest, generation):
            self._known.pop(topic, None)
            return False
        known.as_of = known.confirmed_at = now
        return True

    def unchanged(self, topic: FileId, newest: Revision, now: float) -> bool:
        """Etcd says what changed the topic last, and that it has a generation; False if that is not known.

        It is the generation known: beginning another one would have changed the topic.
        """
        known = self._known.get(topic)
        if known is None or known.newest != newest or known.generation == NO_GENERATION:
            return False
        known.as_of = known.confirmed_at = now
        return True

    def forget(self, topic: FileId, now: float) -> None:
        """The topic was reset or deleted, or what became of an append is not known."""
        self._known.pop(topic, None)
        self._forgotten[topic] = now
        self._forgotten.move_to_end(topic)
        if len(self._forgotten) > FORGOTTEN_LIMIT:
            _, self._forgotten_before = self._forgotten.popitem(last=False)
