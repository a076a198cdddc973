"""Faults that are planted into the services, to show that the scenarios find such faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from dnpipefs import etcd
from dnpipefs.core import sealing, segment
from dnpipefs.core.batch import Batch
from dnpipefs.core.keys import BodyKey, KeyRange, KeySchema
from dnpipefs.core.names import FileId, Offset, Revision, SessionId
from dnpipefs.core.records import Head, Mark
from dnpipefs.core.sealing import SealPlan
from dnpipefs.core.segment import Block
from dnpipefs.core.view import SegmentEntry, TopicView
from dnpipefs.log import barrier, committing, content, pushes, reader, sealer, staging, views
from dnpipefs.log.snapshot import TopicState

Mutant = Callable[[pytest.MonkeyPatch], None]


def seals_without_comparing_the_head(patch: pytest.MonkeyPatch) -> None:
    async def guarded(self: Any, topic: FileId, state: TopicState, operations: Sequence[etcd.Op]) -> bool:
        guard = etcd.compare_mod_revision(self._keys.epoch(topic)) == state.snapshot.generation
        return bool((await self._client.transaction([guard], operations)).succeeded)

    patch.setattr(sealer.Sealer, "_guarded", guarded)


def seals_without_comparing_the_epoch(patch: pytest.MonkeyPatch) -> None:
    async def guarded(self: Any, topic: FileId, state: TopicState, operations: Sequence[etcd.Op]) -> bool:
        guard = etcd.compare_mod_revision(self._keys.head(topic)) == state.head_revision
        return bool((await self._client.transaction([guard], operations)).succeeded)

    patch.setattr(sealer.Sealer, "_guarded", guarded)


def seals_one_batch_too_many(patch: pytest.MonkeyPatch) -> None:
    def batches_through(self: KeySchema, topic: FileId, session: SessionId, sequence: int) -> KeyRange:
        return self.batches_between(topic, session, 0, sequence + 1)

    patch.setattr(KeySchema, "batches_through", batches_through)


def forgets_writers_silently(patch: pytest.MonkeyPatch) -> None:
    genuine = sealer.Sealer._with_writers

    async def with_writers(self: sealer.Sealer, head: Head, state: TopicState, plan: SealPlan) -> Head:
        return replace(await genuine(self, head, state, plan), forgotten=state.snapshot.head.forgotten)

    patch.setattr(sealer.Sealer, "_with_writers", with_writers)


def never_forgets_writers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sealer, "KEPT_WRITERS", 1000)


def does_not_ask_what_was_forgotten(patch: pytest.MonkeyPatch) -> None:
    class Forgetful(Head):
        @classmethod
        def decode(cls, key: bytes, raw: bytes) -> Head:
            return replace(Head.decode(key, raw), forgotten=Revision(0))

    patch.setattr(committing, "Head", Forgetful)


def trims_into_an_entry(patch: pytest.MonkeyPatch) -> None:
    genuine = sealer.Sealer._told

    def told(self: sealer.Sealer, topic: FileId, head: Head, mark: Mark) -> list[etcd.Op]:
        if mark.kind == Mark.TRIM:
            first = Offset(head.first - 1)
            head, mark = replace(head, first=first), replace(mark, start=first)
        return genuine(self, topic, head, mark)

    patch.setattr(sealer.Sealer, "_told", told)


def trims_and_moves_the_end(patch: pytest.MonkeyPatch) -> None:
    genuine = sealer.Sealer._told

    def told(self: sealer.Sealer, topic: FileId, head: Head, mark: Mark) -> list[etcd.Op]:
        if mark.kind == Mark.TRIM:
            head = replace(head, offset=Offset(head.offset - 1))
        return genuine(self, topic, head, mark)

    patch.setattr(sealer.Sealer, "_told", told)


def trims_one_too_many(patch: pytest.MonkeyPatch) -> None:
    def plan(view: TopicView, *arguments: Any, **options: Any) -> Sequence[SegmentEntry]:
        old = sealing.plan_trim(view, *arguments, **options)
        return view.sealed[: len(old) + 1] if old else old

    patch.setattr(sealer, "plan_trim", plan)


def puts_first_parts_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(staging.Stager, "_still_open", lambda *_: [])


def commits_without_the_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(etcd.Transaction, "compare_exists", lambda *_: None)


def names_parts_without_attempt(patch: pytest.MonkeyPatch) -> None:
    genuine = KeySchema.body_parts

    def body_parts(self: KeySchema, topic: FileId, generation: Revision, body: BodyKey) -> list[bytes]:
        nameless = body._replace(beside=body.beside._replace(attempt=0))
        return genuine(self, topic, generation, nameless)

    patch.setattr(KeySchema, "body_parts", body_parts)


def leaves_parts_of_failed_batches(patch: pytest.MonkeyPatch) -> None:
    async def clear(_self: staging.Stager, _batch: pushes.Batch) -> None:
        pass

    patch.setattr(staging.Stager, "clear", clear)


def counts_the_crossing_of_the_quota_as_unsent(patch: pytest.MonkeyPatch) -> None:
    genuine = committing.Committer._settle_out_of_space

    async def settle(self: Any, batches: Any, error: Any, *, sent: bool) -> None:
        await genuine(self, batches, error, sent=False)

    patch.setattr(committing.Committer, "_settle_out_of_space", settle)


def reads_at_the_end_without_asking(patch: pytest.MonkeyPatch) -> None:
    async def confirm(self: reader.Reader) -> TopicView:
        return await self.view()

    patch.setattr(reader.Reader, "confirm", confirm)


def takes_any_snapshot_for_its_own(patch: pytest.MonkeyPatch) -> None:
    """A reader believes that its topic was read since it came."""
    patch.setattr(
        views.LiveView, "snapshot", property(lambda _: 10**9, lambda _, number: None), raising=False
    )


def holds_any_position(patch: pytest.MonkeyPatch) -> None:
    def holds(view: TopicView, position: barrier.Position) -> bool:
        return view.revision >= position.newest

    patch.setattr(reader, "holds", holds)


def names_segments_by_offset_only(patch: pytest.MonkeyPatch) -> None:
    genuine = KeySchema.segment

    def segment_key(
        self: KeySchema, topic: FileId, generation: Revision, offset: Offset, _size: int
    ) -> bytes:
        return genuine(self, topic, generation, offset, 0)

    patch.setattr(KeySchema, "segment", segment_key)


def caches_by_offset_only(patch: pytest.MonkeyPatch) -> None:
    genuine = content.Content._get

    def get(self: content.Content, key: bytes) -> Any:
        alike = key.rpartition(b"-")[0] if b"/seg/" in key else key
        return next((genuine(self, held) for held in self._blocks if held.startswith(alike)), None)

    patch.setattr(content.Content, "_get", get)


def merges_without_times(patch: pytest.MonkeyPatch) -> None:
    def merge(blocks: Sequence[Block], **options: Any) -> bytes:
        same = [replace(block, time_ns=0) if isinstance(block, Batch) else block for block in blocks]
        return segment.merge(same, **options)

    patch.setattr(sealer, "merge", merge)


ALL: Final[dict[str, Mutant]] = {
    mutant.__name__: mutant
    for mutant in (
        seals_without_comparing_the_head,
        seals_without_comparing_the_epoch,
        seals_one_batch_too_many,
        forgets_writers_silently,
        never_forgets_writers,
        does_not_ask_what_was_forgotten,
        trims_into_an_entry,
        trims_and_moves_the_end,
        trims_one_too_many,
        puts_first_parts_late,
        commits_without_the_order,
        names_parts_without_attempt,
        leaves_parts_of_failed_batches,
        counts_the_crossing_of_the_quota_as_unsent,
        reads_at_the_end_without_asking,
        takes_any_snapshot_for_its_own,
        holds_any_position,
        names_segments_by_offset_only,
        caches_by_offset_only,
        merges_without_times,
    )
}

RARE: Final = frozenset(
    {
        "puts_first_parts_late",
        "caches_by_offset_only",
        "commits_without_the_order",
        "does_not_ask_what_was_forgotten",
        "holds_any_position",
        "names_parts_without_attempt",
    }
)
"""Which take hundreds of scenarios to be found."""
