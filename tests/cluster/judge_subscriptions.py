"""What `topic@` delivers: everything that is pushed after the open, once, in order, and nothing else.

1. early: a message whose push had returned, or which a reader had, before the open began.
2. doubled, torn, phantom: as in a log.
3. reordered: a message behind one that stands behind it in the log.
4. lost: between two messages lie others in the log; or one whose push began after the open had
   returned lies before the first; or a read said that there was nothing (which is confirmed with etcd)
   when a push had returned whose message had not been delivered.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

from tests.cluster.history import Hear, History, Subscribe
from tests.support.messages import MessageId, Outcome
from tests.support.topic_log import LONG_AGO, NEVER, Anomaly, Entry, Kind, Lines, TopicLog


def check_subscriptions(history: History, logs: dict[int, TopicLog], lines: Lines) -> Iterator[Anomaly]:
    """Judge each subscription against the log of its topic."""
    heard: dict[tuple[str, int], list[Hear]] = defaultdict(list)
    for hear in history.of(Hear):
        heard[hear.client, hear.handle].append(hear)
    by_began: dict[int, Pushed] = {}
    for opened in history.of(Subscribe):
        log = logs.get(opened.ino)
        if not opened.ok or log is None:
            continue
        if opened.ino not in by_began:
            by_began[opened.ino] = Pushed(log)
        reads = sorted(heard[opened.client, opened.handle], key=lambda hear: hear.began)
        subscription = Subscription(opened, log, lines)
        yield from subscription.check(reads, by_began[opened.ino])


class Pushed:
    """The acknowledged messages of a topic by when their push began."""

    def __init__(self, log: TopicLog) -> None:
        self._entries = [entry for entry in log.entries.values() if entry.sure != NEVER]
        self._entries.sort(key=lambda entry: entry.push.began)
        self._began = [entry.push.began for entry in self._entries]

    def between(self, after: int, before: int) -> list[Entry]:
        """Return those whose push began between two times."""
        return self._entries[bisect_left(self._began, after + 1) : bisect_left(self._began, before)]


class Subscription:
    """One open of `topic@`."""

    def __init__(self, opened: Subscribe, log: TopicLog, lines: Lines) -> None:
        self._opened = opened
        self._log = log
        self._lines = lines
        self._who = f"{log.name}@: {opened.client} on {opened.mount}, open at {opened.began}-{opened.ended}"
        self._delivered: dict[MessageId, int] = {}
        """The number of the read that delivered each message."""
        self._first: Entry | None = None

    def check(self, reads: list[Hear], pushed: Pushed) -> Iterator[Anomaly]:
        """Judge all its reads."""
        opened = self._opened
        rest, last = b"", None
        cuts: list[int] = []
        until = opened.ended
        for number, hear in enumerate(reads):
            if not hear.data:
                continue
            until = hear.ended
            cuts = [*cuts, len(rest)] if rest else []
            *whole, rest = (rest + hear.data).split(b"\n")
            for line in whole:
                if cuts and self._log.removals.during(opened.began, hear.ended):
                    line = self._without_lost_part(line, cuts)
                cuts = []
                found = self._placed(line + b"\n", hear)
                if isinstance(found, Anomaly):
                    yield found
                    continue
                if found.push.id in self._delivered:
                    yield self._anomaly(Kind.DOUBLED, str(found))
                    continue
                self._delivered[found.push.id] = number
                if last is not None:
                    yield from self._check_step(last, found, hear.ended)
                last = found
                self._first = self._first or found
        yield from self._check_begin(pushed, until)
        yield from self._check_dry(reads, pushed)

    def _anomaly(self, kind: Kind, text: str) -> Anomaly:
        return Anomaly(kind, f"{self._who}: {text}")

    def _without_lost_part(self, line: bytes, cuts: list[int]) -> bytes:
        """Return a line without what may come from another one, whose rest was lost in a reset."""
        for cut in (0, *cuts):
            if self._lines(line[cut:] + b"\n") is not None:
                return line[cut:]
        return line

    def _placed(self, line: bytes, hear: Hear) -> Entry | Anomaly:
        """Return the message of a line, or what is wrong with it."""
        found = self._lines(line)
        if found is None:
            return self._anomaly(Kind.TORN, f"by {hear.ended}: {line[:80]!r}")
        entry = self._log.entries.get(found)
        if entry is None or entry.push.outcome is Outcome.FAILED or entry.push.began > hear.ended:
            what = entry or f"{found.writer} {found.number}, which nobody pushed here"
            return self._anomaly(Kind.PHANTOM, f"{what}, by {hear.ended}")
        if entry.known < self._opened.began:
            return self._anomaly(Kind.EARLY, f"{entry}, known by {entry.known}")
        return entry

    def _check_step(self, last: Entry, found: Entry, time: int) -> Iterator[Anomaly]:
        """Check that a message follows on the one before it in the log."""
        if last.offset < 0 or found.offset < 0:
            return
        if self._log.removals.during(self._opened.began, time) and last.root() is not found.root():
            return
        if found.offset < last.end:
            yield self._anomaly(Kind.REORDERED, f"{found} behind {last}")
        elif found.offset > last.end:
            yield self._anomaly(Kind.LOST, f"what lies between {last} and {found}")

    def _check_begin(self, pushed: Pushed, until: int) -> Iterator[Anomaly]:
        """Check that nothing is missing before the first message."""
        first = self._first
        if first is None or first.offset < 0:
            return
        for entry in pushed.between(self._opened.ended, until):
            if (
                entry.push.id not in self._delivered
                and 0 <= entry.offset < first.offset
                and (not self._log.removals or entry.root() is first.root())
            ):
                yield self._anomaly(Kind.LOST, f"{entry}, before the first, {first}")
                return

    def _check_dry(self, reads: list[Hear], pushed: Pushed) -> Iterator[Anomaly]:
        """Check that what was there was delivered before a read said that there is nothing."""
        dry = [(hear.began, hear.ended, n) for n, hear in enumerate(reads) if hear.ok and not hear.data]
        if not dry:
            return
        for entry in pushed.between(self._opened.ended, dry[-1][0]):
            at = bisect_left(dry, (entry.known + 1, LONG_AGO, LONG_AGO))
            if at == len(dry):
                continue
            began, ended, number = dry[at]
            if self._log.removals.removed_until(ended) >= entry.push.began:
                continue
            if self._delivered.get(entry.push.id, NEVER) > number:
                yield self._anomaly(Kind.LOST, f"{entry}: nothing to read at {began}-{ended}")
                return
