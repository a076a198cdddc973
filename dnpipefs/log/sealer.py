"""Sealing and trimming, carried out: the transactions that turn a tail into segments, and remove old ones.

What is done is planned in `core/sealing.py`; when is `schedule.py`'s business. Each step begins with a
consistent read of the topic and ends with one transaction that compares its epoch and head, so it is
done entirely or not at all: who loses the race against another host, a reset or its own death has done
nothing. An answer that is lost needs no settling: the next step looks again.

Tasks: whoever calls. Nothing is held across awaits but what was read.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from dnpipefs import etcd
from dnpipefs.core import batch
from dnpipefs.core.keys import PART_BYTES, KeySchema
from dnpipefs.core.names import FileId, Offset, SessionId
from dnpipefs.core.records import Head, Index, Mark, SegmentInfo
from dnpipefs.core.sealing import (
    KEPT_WRITERS,
    SEGMENT_BYTES,
    Keep,
    Merge,
    Outcome,
    Policy,
    SealPlan,
    plan_seal,
    plan_trim,
    spill,
)
from dnpipefs.core.segment import Block, merge
from dnpipefs.core.view import Entry, SegmentEntry, TopicView
from dnpipefs.errors import CorruptData
from dnpipefs.log.clock import Clock
from dnpipefs.log.content import Content, Vanished, places
from dnpipefs.log.failures import TRANSIENT
from dnpipefs.log.snapshot import TopicState, read_topic, view_of

logger: Final = logging.getLogger(__name__)

REQUEST_S: Final = 30.0
"""How long each request of a step may take: nobody waits for it, and what is given up is begun anew."""
TRIM_STEP: Final = 40
"""Segments removed in one transaction, so that writers get their turn."""
SESSIONS_LOOKED_AT: Final = 120
"""Below etcd's 128 operations a transaction."""


class Step(enum.Enum):
    """Where a step of sealing is; tests stop it there."""

    LOOKED = "the topic was read"
    FETCHED = "the batches and segments were read"
    ENCODED = "the transaction is about to be sent"
    DONE = "it was answered"


async def _go_on(_step: Step) -> None:
    pass


class Sealer:
    """Seals and trims topics, one step at a time."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        clock: Clock,
        content: Content,
        policy: Callable[[FileId], Policy],
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._clock: Final = clock
        self._content: Final = content
        self.policy: Final = policy
        """What the settings of a topic say of its log."""
        self.at: Callable[[Step], Awaitable[None]] = _go_on
        """Called at each step; for tests."""

    async def seal(self, topic: FileId, *, down_to: int = 0) -> TopicView:
        """Seal until the tail has at most *down_to* batches; return the topic as it was then.

        What comes meanwhile is left: of a topic that is always written to, sealing would never end. Raises
        TopicGone, an EtcdError, or what is wrong with what is stored.
        """
        begun: TopicView | None = None
        while True:
            state = await read_topic(self._client, self._keys, topic, timeout=REQUEST_S)
            view = view_of(state)
            begun = begun or view
            if len(view.entries) <= down_to or view.generation != begun.generation:
                return view
            if view.entries[0].first_message >= begun.messages:
                return view
            await self.seal_step(topic, state, view)

    async def seal_step(self, topic: FileId, state: TopicState, view: TopicView) -> bool:
        """Carry out what `plan_seal` says next of *state*; return whether that was done.

        Raises as `seal` does.
        """
        await self.at(Step.LOOKED)
        head, segment_bytes = state.snapshot.head, SEGMENT_BYTES
        policy = self.policy(topic)
        while True:
            plan = plan_seal(
                view,
                policy.retention,
                mergeable=len(head.segments),
                now_ns=self._clock.now_ns(),
                segment_bytes=segment_bytes,
            )
            if plan is None:
                return False
            material = await self._read(topic, view, plan)
            if material is None:
                await self._must_have_changed(topic, state, plan)
                return False
            await self.at(Step.FETCHED)
            encoded = [_encode(outcome, material, compress=policy.compress) for outcome in plan.outcomes]
            if all(len(value) <= PART_BYTES for value, _ in encoded) or segment_bytes == 1:
                break
            segment_bytes //= 2  # messages so small that their table is larger than they are
        operations = await self._sealing(topic, state, plan, encoded)
        await self.at(Step.ENCODED)
        done = await self._guarded(topic, state, operations)
        await self.at(Step.DONE)
        return done

    async def trim(self, topic: FileId) -> int:
        """Remove what retention does not keep, in small steps; return how many segments that were.

        Raises as `seal` does.
        """
        removed = 0
        while True:
            state = await read_topic(self._client, self._keys, topic, timeout=REQUEST_S)
            view = view_of(state)
            retention = self.policy(topic).retention
            old = plan_trim(view, retention, now_ns=self._clock.now_ns())[:TRIM_STEP]
            if not old:
                return removed
            if await self._guarded(topic, state, self._trimming(topic, state, old)):
                removed += len(old)

    async def _read(self, topic: FileId, view: TopicView, plan: SealPlan) -> _Material | None:
        """Return what the plan needs of its entries; None if some are gone."""
        spans: dict[SessionId, tuple[int, int]] = {}
        for entry in plan.batches:
            session, sequence = entry.key.session, entry.key.sequence
            spans[session] = (spans.get(session, (sequence, 0))[0], sequence)
        reads = []
        for session, (first, last) in spans.items():
            part = self._keys.batches_between(topic, session, first, last)
            reads.append(etcd.get(part.start, part.end))
        result = await self._client.transaction((), reads, timeout=REQUEST_S)
        values = {
            kv.key: kv.value
            for response in result.responses
            if isinstance(response, etcd.RangeResult)
            for kv in response.kvs
        }
        blocks: dict[Entry, Block] = {}
        times: dict[Entry, tuple[int, int]] = {}
        for entry in plan.batches:
            raw = values.get(self._keys.batch(topic, *entry.key))
            if raw is None:
                return None
            times[entry] = (batch.peek_time_ns(raw), batch.peek_time_ns(raw))
            if entry.body is None:
                blocks[entry] = batch.decode(raw)
        try:
            found = await self._content.fetch(topic, view.generation, plan.replaced)
        except Vanished:
            return None
        for replaced, block in zip(plan.replaced, found, strict=True):
            times[replaced] = (replaced.info.oldest_ns, replaced.info.newest_ns)
            blocks[replaced] = block
        return _Material(blocks, times)

    async def _must_have_changed(self, topic: FileId, state: TopicState, plan: SealPlan) -> None:
        """Raise CorruptData if nobody has sealed, trimmed or reset what is gone: it will not come back."""
        head = etcd.get(self._keys.head(topic), keys_only=True)
        if (await self._client.transaction(self._guards(topic, state), [head])).succeeded:
            raise CorruptData(
                f"messages from offset {plan.start} on of topic {topic:x} are missing in etcd: "
                "run dnpipefs fsck"
            )

    async def _sealing(
        self,
        topic: FileId,
        state: TopicState,
        plan: SealPlan,
        encoded: Sequence[tuple[bytes, SegmentInfo]],
    ) -> list[etcd.Op]:
        keys, snapshot = self._keys, state.snapshot
        operations: list[etcd.Op] = []
        infos: list[SegmentInfo] = []
        for outcome, (value, info) in zip(plan.outcomes, encoded, strict=True):
            if isinstance(outcome, Merge):
                key = keys.segment(topic, snapshot.generation, outcome.start, outcome.size)
                operations.append(etcd.put(key, value))
            infos.append(info)
        for entry in plan.replaced:
            (key,) = places(keys, topic, snapshot.generation, entry)
            operations.append(etcd.delete(key))
        for session, sequence in plan.sealed_through().items():
            sealed = keys.batches_through(topic, session, sequence)
            operations.append(etcd.delete(sealed.start, sealed.end))
        old = snapshot.head
        segments = [*old.segments[: len(old.segments) - len(plan.replaced)], *infos]
        head = replace(old, offset=plan.end, messages=plan.end_message, segments=segments)
        if moved := spill(segments):
            page = Index(head.newest.start, head.newest.first_message, segments[:moved])
            page_key = keys.index_page(topic, snapshot.generation, page.start)
            operations.append(etcd.put(page_key, page.encode()))
            head = replace(head, segments=segments[moved:])
        head = await self._with_writers(head, state, plan)
        mark = Mark(Mark.SEAL, self._clock.now_ns(), plan.start, plan.first_message, infos)
        return [*operations, *self._told(topic, head, mark)]

    async def _with_writers(self, head: Head, state: TopicState, plan: SealPlan) -> Head:
        """Enter the writers of the sealed batches; leave out sessions that are gone if there are many."""
        writers = dict(head.writers)
        writers |= {f"{session:x}": sequence for session, sequence in plan.sealed_through().items()}
        if len(writers) <= KEPT_WRITERS:
            return replace(head, writers=writers)
        names = sorted(writers)
        first = state.snapshot.revision % len(names)  # others each time: the first ones may all be alive
        names = [*names[first:], *names[:first]][:SESSIONS_LOOKED_AT]
        reads = [etcd.get(self._keys.session(SessionId(int(name, 16))), keys_only=True) for name in names]
        found = (await self._client.transaction((), reads)).responses
        for name, response in zip(names, found, strict=True):
            if isinstance(response, etcd.RangeResult) and not response.kvs:
                del writers[name]
        # All that this seals, and all that was sealed before, is not newer than the snapshot.
        return replace(head, writers=writers, forgotten=state.snapshot.revision)

    def _trimming(self, topic: FileId, state: TopicState, old: Sequence[SegmentEntry]) -> list[etcd.Op]:
        keys, snapshot = self._keys, state.snapshot
        first, first_message = old[-1].end, old[-1].end_message
        operations = []
        for entry in old:
            stored = places(keys, topic, snapshot.generation, entry)
            operations.append(etcd.delete(stored[0], stored[-1] + b"\0"))
        operations += [
            etcd.delete(keys.index_page(topic, snapshot.generation, page.start))
            for page in snapshot.pages
            if page.end <= first
        ]
        head, start = snapshot.head, snapshot.head.newest.start
        segments = list(head.segments)
        while segments and start + segments[0].size <= first:
            start = Offset(start + segments.pop(0).size)
        head = replace(head, first=first, first_message=first_message, segments=segments)
        mark = Mark(Mark.TRIM, self._clock.now_ns(), first, first_message)
        return [*operations, *self._told(topic, head, mark)]

    def _told(self, topic: FileId, head: Head, mark: Mark) -> list[etcd.Op]:
        keys = self._keys
        return [
            etcd.put(keys.head(topic), head.encode()),
            etcd.put(keys.mark(topic), mark.encode()),
            etcd.touch(keys.last(topic)),
        ]

    def _guards(self, topic: FileId, state: TopicState) -> list[etcd.Compare]:
        return [
            etcd.compare_mod_revision(self._keys.epoch(topic)) == state.snapshot.generation,
            etcd.compare_mod_revision(self._keys.head(topic)) == state.head_revision,
        ]

    async def _guarded(self, topic: FileId, state: TopicState, operations: Sequence[etcd.Op]) -> bool:
        try:
            guards = self._guards(topic, state)
            return (await self._client.transaction(guards, operations, timeout=REQUEST_S)).succeeded
        except (etcd.SpaceExceeded, etcd.TooManyRequests):  # to come again at once would make it worse
            raise
        except TRANSIENT as error:
            logger.debug("topic %x: a step of sealing went unanswered: %s", topic, error)
            return False


class _Material(NamedTuple):
    """What is read for a plan."""

    blocks: Mapping[Entry, Block]
    """Of what is merged."""
    times: Mapping[Entry, tuple[int, int]]
    """Of the oldest and the newest message of each entry."""


def _encode(outcome: Outcome, material: _Material, *, compress: bool) -> tuple[bytes, SegmentInfo]:
    """Return the value of an outcome (nothing if it stays where it lies) and its entry in the index."""
    if isinstance(outcome, Keep):
        entry = outcome.entry
        oldest, newest = material.times[entry]
        return b"", SegmentInfo(entry.size, entry.stored, entry.key.messages, oldest, newest, entry.body)
    value = merge(
        [material.blocks[entry] for entry in outcome.entries], offset=outcome.start, compress=compress
    )
    times = [material.times[entry] for entry in outcome.entries]
    oldest, newest = min(time[0] for time in times), max(time[1] for time in times)
    return value, SegmentInfo(outcome.size, len(value), outcome.messages, oldest, newest)
