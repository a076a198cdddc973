"""What a topic must look like at every revision, from the appends alone; and whether it does.

The oracle is told each revision's events. It reads a batch once, when it is appended, and remembers the
messages; what sealing, merging, trimming, sweeping make of the keys later is held against that. It
keeps a copy of all keys of its own, so it needs nothing from the store it judges.

What it checks after each revision is numbered as in the design (D), `core/view` (V), `core/sealing` (S).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from dnpipefs.core import batch
from dnpipefs.core.keys import BodyKey, KeySchema
from dnpipefs.core.names import NO_GENERATION, FileId, Offset, Revision, SessionId
from dnpipefs.core.records import Head, Index, Mark, decode_time
from dnpipefs.core.sealing import Policy
from dnpipefs.core.view import Entry, SegmentEntry, Snapshot, TopicView, ViewBroken
from dnpipefs.errors import CorruptData
from dnpipefs.etcd import Event, EventKind
from dnpipefs.log.content import decode, places

Message = tuple[int, bytes]
"""Time and bytes."""


class Appended(NamedTuple):
    """One batch as it was appended."""

    revision: int
    start: int
    session: int
    sequence: int
    messages: tuple[Message, ...]


@dataclass(slots=True)
class Generation:
    """All that was ever appended to a topic between two resets."""

    began: Revision
    log: list[Appended] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    messages: list[tuple[int, int, bytes]] = field(default_factory=list)
    """Offset, time and bytes of each message."""
    starts: dict[int, int] = field(default_factory=dict)
    """Which message begins at an offset (the first one, if some are empty)."""
    ended: int | None = None
    first: int = 0
    """First retained offset."""

    def append(self, revision: int, session: int, sequence: int, messages: Sequence[Message]) -> None:
        self.log.append(Appended(revision, len(self.data), session, sequence, tuple(messages)))
        for time_ns, message in messages:
            self.starts.setdefault(len(self.data), len(self.messages))
            self.messages.append((len(self.data), time_ns, message))
            self.data += message

    def before(self, offset: int) -> int | None:
        """Return how many messages come before an offset, None if it is inside one."""
        return len(self.messages) if offset == len(self.data) else self.starts.get(offset)


class Shown(NamedTuple):
    """All that a view shows: equal at equal revisions on all hosts."""

    generation: int
    first: int
    first_message: int
    end: int
    messages: int
    modified_ns: int
    stored: int
    sealed: tuple[Entry, ...]
    tail: tuple[Entry, ...]

    @classmethod
    def by(cls, view: TopicView) -> Shown:
        return cls(
            view.generation,
            view.first,
            view.first_message,
            view.end,
            view.messages,
            view.modified_ns,
            view.stored,
            tuple(view.sealed),
            tuple(view.entries),
        )


@dataclass(slots=True)
class Topic:
    """One topic's whole life."""

    id: FileId
    policy: Policy
    generations: list[Generation] = field(default_factory=list)
    shown: list[tuple[int, Shown | None]] = field(default_factory=list)
    """By revision, what every view shows from then on; None once it was deleted."""
    head_changed: int = 0
    sealed_at: int = 0

    def at(self, revision: int) -> Shown | None:
        """Return what a view shows at a revision."""
        return next((shown for began, shown in reversed(self.shown) if began <= revision), None)

    @property
    def current(self) -> Generation | None:
        """The generation there is now."""
        last = self.generations[-1] if self.generations else None
        return last if last is not None and last.ended is None else None


class Oracle:
    """Judges a store by its events."""

    def __init__(self, keys: KeySchema, *, kept_writers: int, clocks_differ_ns: int) -> None:
        self._keys: Final = keys
        self.kept_writers = kept_writers
        self._clocks_differ_ns: Final = clocks_differ_ns
        self.revision = 0
        self.topics: Final[dict[FileId, Topic]] = {}
        self.store: Final[dict[bytes, tuple[int, bytes]]] = {}
        """mod_revision and value by key."""
        self.found: Final[dict[bytes, list[int]]] = {}
        """The revisions that appended a message, by its bytes."""
        self._ended_sessions: Final[dict[int, int]] = {}
        self._touched: Final[dict[FileId, None]] = {}
        self._verified: Final[set[tuple[tuple[bytes, ...], int]]] = set()
        self.seen: Final = Counter[str]()

    def take(self, revision: int, events: Sequence[Event], now_ns: int, *, judge: bool = True) -> None:
        """Take in one revision and check all topics that have changed since the check before.

        AssertionError if something is wrong.
        """
        self.revision = revision
        touched = self._touched
        bodies = {event.kv.key: event.kv.value for event in events if event.kind is EventKind.PUT}
        for event in events:
            key = event.kv.key.removeprefix(self._keys.prefix)
            area, _, rest = key.partition(b"/")
            if area in (b"epoch", b"head", b"last", b"tail", b"seg", b"index", b"body", b"pending"):
                touched[FileId(int(rest[:16], 16))] = None
            if event.kind is EventKind.PUT:
                self._put(area, event, bodies, now_ns)
            else:
                self._deleted(area, event)
        if judge:
            for topic in touched:
                if topic in self.topics:
                    self._check(self.topics[topic])
            touched.clear()

    def _put(self, area: bytes, event: Event, bodies: dict[bytes, bytes], now_ns: int) -> None:
        key, value = event.kv.key, event.kv.value
        if area == b"epoch":
            topic = self.topics[self._topic(key)]
            self._end(topic, event.kv.mod_revision)
            topic.generations.append(Generation(Revision(event.kv.mod_revision)))
        elif area in (b"seg", b"index", b"body") or (area == b"tail" and not key.endswith(b"/mark")):
            old = self.store.get(key)
            assert old is None or old[1] == value, f"D4: {key!r} was written again, with something else"
        self.store[key] = (event.kv.mod_revision, value)
        if area == b"tail":
            topic = self.topics[self._tail_topic(key)]
            if key.endswith(b"/mark"):
                self._marked(topic, Mark.decode(key, value), now_ns)
            else:
                self._appended(topic, event, bodies)

    def _deleted(self, area: bytes, event: Event) -> None:
        key = event.kv.key
        del self.store[key]
        if area == b"epoch":
            self._end(self.topics[self._topic(key)], event.kv.mod_revision)
        elif area == b"session":
            self._ended_sessions[int(key.rpartition(b"/")[2], 16)] = event.kv.mod_revision

    def _topic(self, key: bytes) -> FileId:
        return FileId(int(key[-16:], 16))

    def _tail_topic(self, key: bytes) -> FileId:
        return self._keys.parse_tail_topic(key)

    def _end(self, topic: Topic, revision: int) -> None:
        if topic.generations and topic.generations[-1].ended is None:
            topic.generations[-1].ended = revision

    def _appended(self, topic: Topic, event: Event, bodies: dict[bytes, bytes]) -> None:
        key = self._keys.parse_tail(topic.id, event.kv.key)
        assert key is not None
        generation = topic.current
        assert generation is not None, "D5: an append in no generation"
        raw = event.kv.value
        if key.beside is not None:
            body = BodyKey(key.session, key.sequence, key.beside)
            parts = self._keys.body_parts(topic.id, generation.began, body)
            for part in parts:
                assert part in bodies or part in self.store, f"D1: committed without {part!r}"
            raw = b"".join(bodies[part] if part in bodies else self.store[part][1] for part in parts)
            self.seen["large, in one transaction" if parts[0] in bodies else "large, staged"] += 1
        appended = batch.decode(raw)
        assert appended.generation == generation.began, "D5: an append of another generation"
        assert (appended.session, appended.sequence) == key[:2]
        assert (len(appended.data), appended.messages) == key[2:4]
        messages = list(appended.timed())
        generation.append(event.kv.mod_revision, key.session, key.sequence, messages)
        for _, message in messages:
            self.found.setdefault(message, []).append(event.kv.mod_revision)

    def _marked(self, topic: Topic, mark: Mark, now_ns: int) -> None:
        self.seen[f"mark: {mark.kind}"] += 1
        generation = topic.current
        assert generation is not None, "D5: a mark in no generation"
        if mark.kind == Mark.SEAL:
            topic.sealed_at = self.revision
        if mark.kind == Mark.TRIM:
            self._trimmed(topic, generation, mark, now_ns)

    def _trimmed(self, topic: Topic, generation: Generation, mark: Mark, now_ns: int) -> None:
        """S4: retention removes nothing that shall be kept."""
        assert generation.first < mark.start <= len(generation.data), "S4: trimmed backwards or beyond"
        before = generation.before(mark.start)
        assert before is not None, "S4: trimmed inside a message"
        assert before == mark.first_message, "S4: trimming counts other messages"
        retention = topic.policy.retention
        now_ns += self._clocks_differ_ns
        for number in range(generation.before(generation.first) or 0, before):
            offset, time_ns, message = generation.messages[number]
            reasons = {
                "bytes": retention.bytes is not None
                and len(generation.data) - offset - len(message) >= retention.bytes,
                "messages": retention.messages is not None
                and len(generation.messages) - number - 1 >= retention.messages,
                "age": retention.age_ns is not None and time_ns < now_ns - retention.age_ns,
            }
            assert any(reasons.values()), f"S4: trimmed {message!r} at {offset}; {retention}"
            self.seen.update(f"trimmed by {reason}" for reason, holds in reasons.items() if holds)
        generation.first = mark.start

    def _check(self, topic: Topic) -> None:
        view = self._view(topic)
        if view is None:
            topic.shown.append((self.revision, None))
            return
        generation = topic.current
        shown = Shown.by(view)
        if generation is None:
            assert (shown.generation, shown.end, shown.messages) == (NO_GENERATION, 0, 0), "V3"
        else:
            self._check_log(topic, generation, view)
            self._check_writers(topic, generation)
        topic.shown.append((self.revision, shown))

    def _view(self, topic: Topic) -> TopicView | None:
        """Return what a view begins with now, put together from the keys. None of a deleted topic."""
        keys, store = self._keys, self.store
        if keys.last(topic.id) not in store:
            assert keys.epoch(topic.id) not in store
            return None
        epoch = store.get(keys.epoch(topic.id))
        generation = Revision(epoch[0]) if epoch is not None else NO_GENERATION
        tail, index = keys.tail(topic.id), keys.index(topic.id)
        pages = []
        for key in sorted(self.between(index.start, index.end)):
            began, start = keys.parse_index_page(topic.id, key)
            if began == generation:
                pages.append(Index.decode(key, store[key][1], start))
        batches = [
            (Revision(store[key][0]), parsed)
            for key in self.between(tail.start, tail.end)
            if (parsed := keys.parse_tail(topic.id, key)) is not None
        ]
        last, head = keys.last(topic.id), keys.head(topic.id)
        self.seen["index pages"] += bool(pages)
        try:
            return TopicView(
                Snapshot(
                    Revision(self.revision),
                    generation,
                    Head.decode(head, store[head][1]),
                    decode_time(last, store[last][1]),
                    batches,
                    pages,
                )
            )
        except (ViewBroken, CorruptData) as broken:
            raise AssertionError(f"V4: what is stored does not fit: {broken}") from broken

    def between(self, start: bytes, end: bytes) -> list[bytes]:
        """Return the keys of a range there are."""
        return [key for key in self.store if start <= key < end]

    def _check_log(self, topic: Topic, generation: Generation, view: TopicView) -> None:
        """D4, V2, S1: the bytes, messages, times and offsets are those that were appended."""
        assert view.generation == generation.began
        assert (view.end, view.messages) == (len(generation.data), len(generation.messages)), "D4: the end"
        assert view.first == generation.first, "D4: the first retained offset"
        assert view.first_message == generation.before(view.first), "D4: messages before the first"
        entries: list[Entry] = [*view.sealed, *view.entries]
        for before, after in pairwise(entries):
            assert (before.end, before.end_message) == (after.start, after.first_message), "V2: a gap"
        assert not entries or (entries[0].start, entries[0].first_message) == (
            view.first,
            view.first_message,
        ), "S4: retention left or took part of an entry"
        assert [entry.revision for entry in view.entries] == [
            append.revision for append in generation.log[len(generation.log) - len(view.entries) :]
        ], "S1: not a prefix of the tail was sealed"
        for entry in entries:
            self._check_entry(topic, generation, entry)
        retained = generation.messages[view.first_message :]
        if retained:
            time_ns = retained[len(retained) // 2][1]
            since = view.since(time_ns)
            early = [offset for offset, time, _ in retained if offset < since and time >= time_ns]
            assert not early, f"a time is looked for from {since} on, and there is one at {early[0]}"

    def _check_entry(self, topic: Topic, generation: Generation, entry: Entry) -> None:
        keys = places(self._keys, topic.id, generation.began, entry)
        missing = [key for key in keys if key not in self.store]
        assert not missing, f"D1: {missing[0]!r} is gone, which holds the bytes from {entry.start} on"
        if entry.body is not None:
            order = self._keys.pending(topic.id, generation.began, entry.body)
            assert order not in self.store, f"D1: {order!r} orders to remove what is committed"
        if (keys, entry.start) in self._verified:
            return
        raw = b"".join(self.store[key][1] for key in keys)
        # The key of a batch in the tail does not tell the size of its table of lengths.
        table = 0 if isinstance(entry, SegmentEntry) or entry.body else 3 * entry.key.messages
        assert entry.stored <= len(raw) <= entry.stored + table, "the stored size is another one"
        try:
            block = decode(entry, raw)
        except CorruptData as error:
            raise AssertionError(f"D4: at {entry.start}: {error}") from error
        assert block.data == generation.data[entry.start : entry.end], f"D4: other bytes at {entry.start}"
        expected = generation.messages[entry.first_message : entry.end_message]
        assert list(block.timed()) == [message[1:] for message in expected], (
            f"D4: other messages or times at {entry.start}"
        )
        self._verified.add((keys, entry.start))

    def _check_writers(self, topic: Topic, generation: Generation) -> None:
        """The head's table tells of every writer what of its appends is sealed, or rightly forgets it."""
        key = self._keys.head(topic.id)
        changed, value = self.store[key]
        head = Head.decode(key, value)
        sealed: dict[str, Appended] = {}
        for append in generation.log:
            if append.start + sum(len(data) for _, data in append.messages) > head.offset:
                break
            sealed[f"{append.session:x}"] = append
        for session, append in sealed.items():
            if session in head.writers:
                assert head.writers[session] == append.sequence, "the head's table of writers is wrong"
                continue
            assert int(session, 16) in self._ended_sessions, "a living writer was forgotten"
            assert append.revision <= head.forgotten, "a writer was forgotten without saying so"
            self.seen["writers forgotten"] += 1
        assert set(head.writers) <= set(sealed)
        if topic.sealed_at == self.revision and len(head.writers) > self.kept_writers:
            for name in head.writers:
                ended = self._ended_sessions.get(int(name, 16))
                assert ended is None or ended > topic.head_changed, "gone writers stay in the head"
        topic.head_changed = changed

    def leftovers(self, sessions: Iterable[int]) -> list[bytes]:
        """Return the keys that no living topic or session needs."""
        keys, needed = self._keys, set[bytes]()
        for session in sessions:
            needed.add(keys.session(SessionId(session)))
            needed |= {
                keys.writer(topic.id, SessionId(session))
                for topic in self.topics.values()
                if keys.last(topic.id) in self.store
            }
        for topic in self.topics.values():
            view = self._view(topic)
            if view is None:
                continue
            needed |= {keys.epoch(topic.id), keys.head(topic.id), keys.last(topic.id), keys.mark(topic.id)}
            entries: list[Entry] = [*view.sealed, *view.entries]
            for entry in entries:
                needed.update(places(keys, topic.id, view.generation, entry))
            needed.update(keys.batch(topic.id, *entry.key) for entry in view.entries)
            index = keys.index(topic.id)
            for key in self.between(index.start, index.end):
                page = Index.decode(key, self.store[key][1], Offset(keys.parse_index_page(topic.id, key)[1]))
                if page.end > view.first:
                    needed.add(key)
        return [key for key in self.store if key not in needed]
