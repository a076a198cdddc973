"""Checks what a topic has besides its messages: epoch, head, last, mark. Rules T1 to T6. Pure.

One transaction begins a generation by putting all four, so none of the other three is older than the
epoch. Where that is not so, the epoch is not the one the messages were written under: what looks like
leftovers of an old generation may be all there is, and is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from dnpipefs.core.findings import Finding, Repair, Rule, Stored, absent, unchanged
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import NO_GENERATION, FileId, Revision
from dnpipefs.core.records import EMPTY_HEAD_VALUE, Head, Mark, decode_time, encode_time
from dnpipefs.core.tree import Guard
from dnpipefs.errors import CorruptData, UnsupportedFormat


class Records(NamedTuple):
    """The small keys of a topic at one revision."""

    epoch: Stored | None
    head: Stored | None
    last: Stored | None
    mark: Stored | None
    trash: Stored | None


@dataclass(frozen=True, slots=True)
class TopicState:
    """What the rest of a topic is judged by."""

    generation: Revision
    head: Head | None
    """None if there is none that can be used."""
    sound: bool
    """Whether what is of older generations is certainly garbage."""
    ordered: bool
    """Whether there is an order to remove that."""
    guards: tuple[Guard, ...] = ()
    """That neither generation nor sealed part have changed."""


def judge_records(
    keys: KeySchema, topic: FileId, records: Records, now_ns: int
) -> tuple[TopicState, list[Finding]]:
    """Judge the records of a topic that has a name."""
    judge = _Judge(keys, topic, records, now_ns)
    return judge.state(), judge.findings


class _Judge:
    def __init__(self, keys: KeySchema, topic: FileId, records: Records, now_ns: int) -> None:
        self._keys: Final = keys
        self._topic: Final = topic
        self._records: Final = records
        self._now_ns: Final = now_ns
        self.findings: list[Finding] = []

    def state(self) -> TopicState:
        epoch, head_kv, last, _, trash = self._records
        keys, topic = self._keys, self._topic
        ordered = trash is not None
        if last is None and head_kv is None and epoch is None:
            what = "it has neither last, head nor epoch: it cannot be opened, but rm removes the name"
            self._find(Rule.TOPIC_MISSING, keys.last(topic), what)
            return TopicState(NO_GENERATION, None, sound=False, ordered=ordered)
        sound = self._judge_epoch()
        head = self._judge_head()
        self._judge_last(head)
        if epoch is not None and sound:
            self._judge_mark(head)
        guards = (
            *(unchanged(epoch) if epoch is not None else absent(keys.epoch(topic))),
            *(unchanged(head_kv) if head_kv is not None else ()),
        )
        generation = Revision(epoch.revision) if epoch is not None else NO_GENERATION
        return TopicState(generation, head, sound=sound, ordered=ordered, guards=guards)

    def _judge_epoch(self) -> bool:
        epoch, head, last, mark, _ = self._records
        key = self._keys.epoch(self._topic)
        if epoch is None:
            if mark is None:
                return True  # reset by deletion
            self._find(Rule.EPOCH, key, "it is missing, though a mark is there: no message can be read")
            return False
        older = [one.key for one in (head, last, mark) if one is not None and one.revision < epoch.revision]
        if older:
            names = b", ".join(older).decode(errors="backslashreplace")
            what = f"it is newer than {names}: what was written before {epoch.revision} cannot be read"
            self._find(Rule.EPOCH, key, what)
            return False
        try:
            decode_time(key, epoch.value)
        except CorruptData as error:  # nobody reads the time but people
            self._find(Rule.EPOCH, key, str(error))
        return True

    def _judge_head(self) -> Head | None:
        epoch, stored, last, mark, _ = self._records
        key = self._keys.head(self._topic)
        try:
            head = _decode_head(key, stored)
        except CorruptData as error:
            repair = None
            if epoch is not None and mark is not None and mark.revision == epoch.revision:
                # The mark of the generation's beginning is still there: nothing was ever sealed.
                guards = unchanged(epoch, mark, *((stored,) if stored is not None else ()))
                guards += absent(key) if stored is None else ()
                what = "put it: nothing was sealed yet"
                empty = Head.decode(key, EMPTY_HEAD_VALUE)
                told = telling(self._keys, self._topic, empty, guards, what, self._now_ns)
                touches = () if last is None else (last.key,)
                repair = replace(told, puts=(*told.puts, (key, EMPTY_HEAD_VALUE)), touches=touches)
            self._find(Rule.HEAD, key, f"{error}; the topic cannot be read", repair)
            return None
        return head

    def _judge_last(self, head: Head | None) -> None:
        epoch, head_kv, last, _, _ = self._records
        key = self._keys.last(self._topic)
        if last is None:
            what, guards = "it is missing: the topic counts as deleted", absent(key)
        else:
            try:
                decode_time(key, last.value)
            except CorruptData as error:
                what, guards = str(error), unchanged(last)
            else:
                return
        repair = None
        if head is not None:
            try:
                time_ns = self._now_ns if epoch is None else decode_time(epoch.key, epoch.value)
            except CorruptData:
                time_ns = self._now_ns
            guards += unchanged(*(one for one in (head_kv, epoch) if one is not None))
            put = (key, encode_time(time_ns))
            told = _telling_again(
                self._keys, self._topic, self._records, head, guards, "put it", self._now_ns
            )
            if told is None:
                repair = Repair("put it", guards, puts=(put,))
            else:
                repair = replace(told, puts=(*told.puts, put), touches=(head_kv.key,) if head_kv else ())
        self._find(Rule.LAST, key, what, repair)

    def _judge_mark(self, head: Head | None) -> None:
        epoch, stored, _, mark, _ = self._records
        key = self._keys.mark(self._topic)
        try:
            _check_mark(key, mark, head)
        except UnsupportedFormat as error:
            self._find(Rule.MARK, key, str(error))
        except CorruptData as error:
            repair = None
            if epoch is not None and stored is not None and head is not None:
                guards = unchanged(epoch, stored) + (absent(key) if mark is None else unchanged(mark))
                repair = telling(self._keys, self._topic, head, guards, "put it", self._now_ns)
            self._find(Rule.MARK, key, str(error), repair)

    def _find(self, rule: Rule, key: bytes, what: str, repair: Repair | None = None) -> None:
        self.findings.append(Finding(rule, key, what, self._topic, repair=repair))


def telling(
    keys: KeySchema, topic: FileId, head: Head, guards: tuple[Guard, ...], what: str, now_ns: int
) -> Repair:
    """Return the repair that puts a mark which says nothing new: hosts that watch go on as they are."""
    mark = Mark(Mark.TRIM, now_ns, head.first, head.first_message)
    touches = (keys.head(topic), keys.last(topic))
    return Repair(what, guards, puts=((keys.mark(topic), mark.encode()),), touches=touches)


def _telling_again(
    keys: KeySchema,
    topic: FileId,
    records: Records,
    head: Head | None,
    guards: tuple[Guard, ...],
    what: str,
    now_ns: int,
) -> Repair | None:
    """Likewise where the mark is sound; None if there is nobody to tell, or another finding is to tell.

    A new revision of `last` is what readers wait for, and only the mark brings it to hosts that watch.
    """
    epoch, stored, _, mark, _ = records
    if epoch is None or stored is None or mark is None or head is None:
        return None
    try:
        _check_mark(mark.key, mark, head)
    except (CorruptData, UnsupportedFormat):
        return None
    guards = tuple(dict.fromkeys((*guards, *unchanged(epoch, stored, mark))))
    return telling(keys, topic, head, guards, what, now_ns)


def judge_newest(
    keys: KeySchema, topic: FileId, records: Records, head: Head | None, newest: Revision, now_ns: int
) -> list[Finding]:
    """Judge whether `last` is as new as the newest change of the topic."""
    last = records.last
    if last is None:
        return []
    newest = max(newest, *(one.revision for one in records[:4] if one is not None))
    if last.revision >= newest:
        return []
    what = f"it is of revision {last.revision}, the newest change of {newest}: readers may miss the end"
    guards = unchanged(last)
    repair = _telling_again(keys, topic, records, head, guards, "touch it", now_ns)
    repair = repair or Repair("touch it", guards, touches=(last.key,))
    return [Finding(Rule.LAST_BEHIND, last.key, what, topic, repair=repair)]


def _check_mark(key: bytes, stored: Stored | None, head: Head | None) -> None:
    if stored is None:
        raise CorruptData("it is missing: hosts do not learn of the next reset")
    mark = Mark.decode(key, stored.value)
    if head is not None and not _fits(mark, head):
        raise CorruptData(f"its {mark.kind} is not what the head says")


def _fits(mark: Mark, head: Head) -> bool:
    """Tell whether a mark is what was put with the head."""
    if mark.kind == Mark.SEAL:
        return mark.start + sum([info.size for info in mark.segments]) == head.offset
    if mark.kind == Mark.TRIM:
        return (mark.start, mark.first_message) == (head.first, head.first_message)
    return head.offset == 0


def _decode_head(key: bytes, stored: Stored | None) -> Head:
    if stored is None:
        raise CorruptData("it is missing")
    head = Head.decode(key, stored.value)
    for session in head.writers:
        try:
            int(session, 16)
        except ValueError:
            raise CorruptData(f"{session!r} is no session") from None
    return head
