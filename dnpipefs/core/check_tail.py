"""Checks the tail of a topic, and the fences of its writers. Rules B1 to B6. Pure.

The caller brings the keys in order, then each batch's value. What is kept of a batch is its revision
and size, sixteen bytes; order and offsets are worked out at the end.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from dnpipefs.core import batch
from dnpipefs.core.append import decode_writer
from dnpipefs.core.check_records import TopicState
from dnpipefs.core.check_sealed import judge_body
from dnpipefs.core.findings import Finding, Repair, Rule, Stored, absent, unchanged
from dnpipefs.core.keys import BodyKey, KeySchema, TailKey
from dnpipefs.core.names import FileId, Offset, Revision, SessionId
from dnpipefs.errors import CorruptData, UnsupportedFormat


class _Newest(NamedTuple):
    """A session's newest append that was found in the tail."""

    sequence: int
    revision: Revision


class TailCheck:
    """The batches of a topic's present generation that are not sealed."""

    def __init__(self, keys: KeySchema, topic: FileId, state: TopicState) -> None:
        self._keys: Final = keys
        self._topic: Final = topic
        self._state: Final = state
        self._newest: dict[SessionId, _Newest] = {}
        self._revisions = array("q")
        self._sizes = array("q")
        self._findings: list[tuple[Finding, Revision, int]] = []
        """Each with revision and size of the batch that it is about, 0 if about none."""
        self.old: bytes | None = None
        """The first batch of an older generation."""
        self.newest: Revision = Revision(0)
        """The newest revision in the tail."""
        self.batches = 0
        self.messages = 0
        """How many are in them, as their keys say."""

    def key(self, stored: Stored) -> TailKey | None:
        """Take in a key of the tail; return what it says if it is one of this generation's batches."""
        if stored.key == self._keys.mark(self._topic):
            return None
        try:
            key = self._keys.parse_tail(self._topic, stored.key)
        except CorruptData as error:
            self._find(Rule.BATCH_KEY, stored, f"{error}: the topic cannot be read")
            return None
        if key is None or stored.revision < self._state.generation or not self._state.generation:
            self.old = self.old or stored.key
            return None
        self._judge_sequence(key, stored)
        self._newest[key.session] = _Newest(key.sequence, stored.revision)
        self.newest = max(self.newest, stored.revision)
        self._revisions.append(stored.revision)
        self._sizes.append(key.size)
        self.batches += 1
        self.messages += key.messages
        return key

    def _judge_sequence(self, key: TailKey, stored: Stored) -> None:
        before, head = self._newest.get(key.session), self._state.head
        if before is not None:
            known: int | None = before.sequence
        else:
            known = head.writers.get(f"{key.session:x}") if head is not None else None
        if known is not None and key.sequence != known + 1:
            what = f"session {key.session:x} went from append {known} to {key.sequence}"
            if key.sequence > known + 1:
                what += f": what it appended in between is lost, {key.sequence - known - 1} batches"
            self._find(Rule.SEQUENCE, stored, what)
        elif before is not None and stored.revision <= before.revision:
            what = f"append {key.sequence} of session {key.session:x} is not newer than the one before"
            self._find(Rule.SEQUENCE, stored, what)

    def batch(self, key: TailKey, stored: Stored) -> None:
        """Judge what stands in the tail."""
        try:
            if key.beside is None:
                found = batch.decode(stored.value)
                batch.verify(found)
                says = (found.generation, found.session, found.sequence, len(found.data), found.messages)
            else:
                said = batch.decode_reference(stored.value)
                says = (said.generation, said.session, said.sequence, said.size, said.messages)
        except (CorruptData, UnsupportedFormat) as error:
            self._find(Rule.BATCH_DAMAGED, stored, str(error), key.size)
            return
        expected = (self._state.generation, key.session, key.sequence, key.size, key.messages)
        names = ("generation", "session", "sequence", "bytes", "messages")
        wrong = [
            f"{name} {has}, should be {should}"
            for name, has, should in zip(names, says, expected, strict=True)
            if has != should
        ]
        if wrong:
            self._find(Rule.BATCH_MISMATCH, stored, "; ".join(wrong))

    def body(self, key: TailKey, revision: Revision, parts: Sequence[Stored | None]) -> None:
        """Judge a large batch by its parts."""
        if key.beside is None:
            return
        body = BodyKey(key.session, key.sequence, key.beside)
        found, _ = judge_body(self._keys, self._topic, self._state, body, parts, (key.size, key.messages))
        for rule, name, what in found:
            self._findings.append((Finding(rule, name, what, self._topic), revision, key.size))

    def writer(self, stored: Stored, *, session_lives: bool) -> None:
        """Judge the fence of a writer, after all keys of the tail."""
        try:
            session = self._keys.parse_writer(self._topic, stored.key)
            sequence, _ = decode_writer(stored.key, stored.value)
        except CorruptData as error:
            self._find(Rule.WRITER, stored, f"{error}: its session cannot push")
            return
        if stored.lease != session:
            what, repair = f"it is on lease {stored.lease:x}, and so never removed", None
            if not session_lives:
                guards = (*unchanged(stored), *absent(self._keys.session(session)))
                repair = Repair("remove it: its session has ended", guards, deletes=(stored.key,))
            self._find(Rule.WRITER, stored, what, repair=repair)
            return
        in_tail, head = self._newest.get(session), self._state.head
        sealed = head.writers.get(f"{session:x}", 0) if head is not None else sequence
        reached = max(in_tail.sequence if in_tail is not None else 0, sealed)
        if stored.version != sequence or (head is not None and reached > sequence):
            what = f"it says append {sequence}, was put {stored.version} times, append {reached} is there"
            self._find(Rule.WRITER, stored, f"{what}: its session cannot push")
        elif self._is_missing(stored, sequence, sealed, in_tail):
            what = f"append {sequence} of session {session:x} is neither in the tail nor sealed: it is lost"
            self._find(Rule.APPEND_MISSING, stored, what)

    def _is_missing(self, stored: Stored, sequence: int, sealed: int, in_tail: _Newest | None) -> bool:
        """Tell whether the append that a fence stands for is nowhere."""
        ours = self._state.generation and stored.revision >= self._state.generation
        return bool(ours) and sealed < sequence and in_tail != (sequence, stored.revision)

    def finish(self) -> list[Finding]:
        """Return all findings, those of batches that cannot be read with the bytes that are lost."""
        found = []
        for finding, revision, size in self._findings:
            if size and self._state.head is not None:
                start = Offset(self._state.head.offset + self._before(revision))
                end = Offset(start + size)
                what = f"{finding.what}: bytes {start} to {end} are lost"
                finding = replace(finding, what=what, lost=(start, end))
            found.append(finding)
        return found

    def _before(self, revision: Revision) -> int:
        pairs = zip(self._revisions, self._sizes, strict=True)
        return sum(size for other, size in pairs if other < revision)

    def _find(
        self, rule: Rule, stored: Stored, what: str, size: int = 0, repair: Repair | None = None
    ) -> None:
        finding = Finding(rule, stored.key, what, self._topic, repair=repair)
        self._findings.append((finding, stored.revision, size))
