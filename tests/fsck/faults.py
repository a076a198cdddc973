"""Faults planted in what `lay_down` has laid down: one of every rule of docs/fsck.md, by hand, in etcd."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from dnpipefs import etcd
from dnpipefs.core import batch
from dnpipefs.core.batch import Chunk, Payload
from dnpipefs.core.keys import Beside, BodyKey
from dnpipefs.core.names import ROOT, FileId, Kind, Offset, Revision, SessionId
from dnpipefs.core.records import EMPTY_HEAD_VALUE, Index, Inode, Mark, encode_time
from dnpipefs.core.segment import Segment, decode, merge
from dnpipefs.fsck import Verdict
from tests.fsck.conftest import Lab

DEAD = FileId(0xDEAD)
"""An id that no entry names."""
NOBODY = SessionId(0x77)
"""A session that never was."""
LONG_AGO = encode_time(1)

Plant = Callable[[Lab], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """Something wrong, the rules it breaks, and what becomes of it."""

    plant: Plant
    rules: Sequence[str]
    mended: bool = False
    reads: bool = True
    """Whether all messages can be read afterwards (after the repair, if there is one)."""
    about: Callable[[Verdict], bool] = lambda _: True
    """What the finding of the first rule must say."""

    @property
    def name(self) -> str:
        return self.plant.__name__


FAULTS: list[Fault] = []


def fault(
    *rules: str, mended: bool = False, reads: bool = True, about: Callable[[Verdict], bool] = lambda _: True
) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        FAULTS.append(Fault(plant, rules, mended, reads, about))
        return plant

    return register


def loses(start: int, end: int | None = None) -> Callable[[Verdict], bool]:
    """Require that a stretch of the topic is named."""

    def names(verdict: Verdict) -> bool:
        lost = verdict.finding.lost
        return lost is not None and lost[0] == start and (end is None or lost[1] == end)

    return names


def entry_of(file: int, kind: Kind = Kind.TOPIC) -> bytes:
    return Inode(FileId(file), kind, 0o644, 0, 0, 1, 1).encode()


async def put_entry(lab: Lab, key: bytes, value: bytes) -> None:
    """Put an entry and what every change of the namespace puts."""
    await lab.client.transaction((), [etcd.put(key, value), etcd.put(lab.keys.last_namespace, LONG_AGO)])


async def segment_of(lab: Lab, number: int) -> tuple[bytes, Segment]:
    """Return the key of one of the segments, and what is in it."""
    kv = (await lab.all(lab.keys.segments(lab.topic)))[number]
    return kv.key, decode(kv.value)


async def body_of(lab: Lab, stored: bool) -> list[etcd.KeyValue]:
    """Return the parts of a large batch: of the first one that has one part, or of that with several."""
    parts: dict[bytes, list[etcd.KeyValue]] = {}
    for kv in await lab.all(lab.keys.bodies(lab.topic)):
        parts.setdefault(kv.key.rpartition(b"/")[0], []).append(kv)
    return next(found for found in parts.values() if (len(found) > 1) == stored)


# ---------------------------------------------------------------------- the namespace


@fault("M1")
async def no_meta(lab: Lab) -> None:
    await lab.delete(lab.keys.meta)


@fault("N1")
async def an_entry_with_a_bad_key(lab: Lab) -> None:
    await put_entry(lab, lab.keys.namespace.start + b"zzz", entry_of(5))


@fault("N1")
async def an_entry_with_a_bad_name(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(ROOT, b".."), entry_of(5))


@fault("N2")
async def an_entry_that_does_not_parse(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(ROOT, b"broken"), b"{}")


@fault("N2")
async def an_entry_with_an_impossible_id(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(ROOT, b"huge"), entry_of(2**52))


@fault("N3")
async def two_names_of_one_topic(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(ROOT, b"twin"), entry_of(lab.topic))


@fault("N4", mended=True)
async def a_directory_without_a_parent(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(DEAD, b"lost"), entry_of(6, Kind.DIRECTORY))


@fault("N4", mended=True)
async def a_directory_below_a_topic(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(lab.topic, b"lost"), entry_of(6, Kind.DIRECTORY))


@fault("N5", mended=True)
async def directories_inside_each_other(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(FileId(7), b"a"), entry_of(6, Kind.DIRECTORY))
    await put_entry(lab, lab.keys.entry(FileId(6), b"b"), entry_of(7, Kind.DIRECTORY))


@fault("N6", mended=True)
async def no_root(lab: Lab) -> None:
    await lab.delete(lab.keys.root)


@fault("N7", mended=True)
async def no_last_of_the_namespace(lab: Lab) -> None:
    await lab.delete(lab.keys.last_namespace)


@fault("N7", mended=True)
async def a_last_of_the_namespace_that_is_behind(lab: Lab) -> None:
    await lab.client.put(lab.keys.entry(ROOT, b"new"), entry_of(8, Kind.DIRECTORY))


@fault("N7", mended=True)
async def a_last_of_the_namespace_that_does_not_parse(lab: Lab) -> None:
    await lab.client.put(lab.keys.last_namespace, b"soon")


# ---------------------------------------------------------------------- records


@fault("T1")
async def a_name_without_a_topic(lab: Lab) -> None:
    await put_entry(lab, lab.keys.entry(ROOT, b"hollow"), entry_of(5))


@fault("T2", mended=True)
async def no_last(lab: Lab) -> None:
    await lab.delete(lab.keys.last(lab.topic))


@fault("T2", mended=True)
async def a_last_that_does_not_parse(lab: Lab) -> None:
    await lab.put(lab.keys.last(lab.topic), b"now")


@fault("T3", mended=True)
async def a_last_that_is_behind(lab: Lab) -> None:
    newest = (await lab.batches())[-1]
    await lab.client.put(newest.key, newest.value)


@fault("T4", reads=False)
async def no_head(lab: Lab) -> None:
    await lab.delete(lab.keys.head(lab.topic))


@fault("T4", reads=False)
async def a_head_that_does_not_parse(lab: Lab) -> None:
    await lab.put(lab.keys.head(lab.topic), b"{}")


@fault("T4", reads=False)
async def a_head_that_cannot_be(lab: Lab) -> None:
    head = await lab.head()
    await lab.put(lab.keys.head(lab.topic), replace(head, first=Offset(head.offset + 1)).encode())


@fault("T5", mended=True)
async def no_mark(lab: Lab) -> None:
    await lab.delete(lab.keys.mark(lab.topic))


@fault("T5", mended=True)
async def a_mark_that_does_not_parse(lab: Lab) -> None:
    await lab.put(lab.keys.mark(lab.topic), b"[]")


@fault("T5", mended=True)
async def a_mark_that_says_something_else(lab: Lab) -> None:
    await lab.put(lab.keys.mark(lab.topic), Mark(Mark.TRIM, 1, Offset(5), 1).encode())


@fault("T5")
async def a_mark_of_a_later_release(lab: Lab) -> None:
    await lab.put(lab.keys.mark(lab.topic), b'{"kind":"fork","time":1}')


@fault("T6", reads=False)
async def no_epoch(lab: Lab) -> None:
    await lab.delete(lab.keys.epoch(lab.topic))


@fault("T6", reads=False)
async def an_epoch_that_was_put_again(lab: Lab) -> None:
    await lab.put(lab.keys.epoch(lab.topic), LONG_AGO)


# ---------------------------------------------------------------------- the sealed part


@fault("S1", "S2", mended=True)
async def a_page_of_the_index_that_does_not_parse(lab: Lab) -> None:
    page = (await lab.all(lab.keys.index(lab.topic)))[1]
    # What is before the first large batch is all segments.
    await lab.put(page.key, page.value[:-10])


@fault("S2", mended=True, about=lambda verdict: verdict.finding.lost is None)
async def a_page_of_the_index_is_missing(lab: Lab) -> None:
    await lab.delete((await lab.all(lab.keys.index(lab.topic)))[0].key)


@fault("S2", mended=True)
async def a_gap_inside_a_page(lab: Lab) -> None:
    page = (await lab.all(lab.keys.index(lab.topic)))[0]
    _, start = lab.keys.parse_index_page(lab.topic, page.key)
    index = Index.decode(page.key, page.value, start)
    shorter = Index(start, index.first_message, index.segments[:-1])
    await lab.put(page.key, shorter.encode())


@fault("S2", mended=True)
async def pages_that_overlap(lab: Lab) -> None:
    _, second = await lab.all(lab.keys.index(lab.topic))
    generation, start = lab.keys.parse_index_page(lab.topic, second.key)
    index = Index.decode(second.key, second.value, start)
    before = index.first_message + sum(info.messages for info in index.segments[:-1])
    twice = Index(index.end, before, index.segments[-1:])
    begins = Offset(index.end - index.segments[-1].size)
    await lab.put(lab.keys.index_page(lab.topic, generation, begins), twice.encode())


@fault("S2", "S4", "S8", reads=False)
async def segments_are_missing_in_and_behind_a_gap(lab: Lab) -> None:
    """The index cannot be derived, and what would have been a part of it is left where it is."""
    await lab.delete((await lab.all(lab.keys.index(lab.topic)))[0].key)
    await lab.delete((await segment_of(lab, 3))[0])
    await lab.delete((await segment_of(lab, 80))[0])


@fault("S3", mended=True)
async def a_wrong_count_in_a_page(lab: Lab) -> None:
    page = (await lab.all(lab.keys.index(lab.topic)))[0]
    value = json.loads(page.value)
    value["segments"][4][2] += 1
    await lab.put(page.key, json.dumps(value).encode())


@fault("S3", mended=True)
async def a_wrong_sum_in_the_head(lab: Lab) -> None:
    head = await lab.head()
    await lab.put(lab.keys.head(lab.topic), replace(head, messages=head.messages + 7).encode())


@fault("S3", mended=True)
async def a_wrong_size_and_time_in_the_head(lab: Lab) -> None:
    head = await lab.head()
    wrong = [info._replace(stored=1, newest_ns=5) if info.body is None else info for info in head.segments]
    await lab.put(lab.keys.head(lab.topic), replace(head, segments=wrong).encode())


@fault("S4", reads=False, about=loses(0, 6))
async def a_missing_segment(lab: Lab) -> None:
    key, found = await segment_of(lab, 0)
    assert found.data == b"first\n"
    await lab.delete(key)


@fault("S5", reads=False, about=loses(6, 13))
async def a_flipped_bit_in_a_segment(lab: Lab) -> None:
    await lab.flip((await segment_of(lab, 1))[0])


@fault("S5", reads=False, about=loses(6, 13))
async def a_segment_of_another_place(lab: Lab) -> None:
    key, found = await segment_of(lab, 1)
    await lab.put(key, merge([found], offset=Offset(3), compress=False))


@fault("S5", about=loses(6, 13))
async def a_segment_of_another_generation(lab: Lab) -> None:
    key, found = await segment_of(lab, 1)
    foreign = replace(found, generation=Revision(found.generation - 1))
    await lab.put(key, merge([foreign], offset=found.offset, compress=False))


@fault("S5", reads=False)
async def a_segment_whose_tables_do_not_add_up(lab: Lab) -> None:
    """With a checksum that fits: whoever wrote it was wrong."""
    key, found = await segment_of(lab, 1)
    more = replace(found, data=b"x\nline\n")
    value = merge([more], offset=found.offset, compress=False)
    await lab.put(key, value)


@fault("S6", reads=False)
async def a_large_batch_of_the_index_is_missing(lab: Lab) -> None:
    [part] = await body_of(lab, stored=False)
    await lab.delete(part.key)


@fault("S6", reads=False)
async def a_part_of_a_large_batch_is_missing(lab: Lab) -> None:
    await lab.delete((await body_of(lab, stored=True))[1].key)


@fault("S7", reads=False)
async def a_flipped_bit_in_a_large_batch(lab: Lab) -> None:
    await lab.flip((await body_of(lab, stored=True))[2].key)


@fault("S7", reads=False)
async def a_large_batch_that_is_another_one(lab: Lab) -> None:
    [part] = await body_of(lab, stored=False)
    found = batch.decode(part.value)
    payload = Payload.of([Chunk.of_message(found.data[:-1])])
    raw = payload.encode(
        generation=found.generation, time_ns=1, session=found.session, sequence=found.sequence
    )
    await lab.put(part.key, raw)


@fault("S8", mended=True)
async def a_segment_that_nothing_refers_to(lab: Lab) -> None:
    _, found = await segment_of(lab, 5)
    key = lab.keys.segment(lab.topic, found.generation, Offset(found.offset + 1), 3)
    await lab.client.put(key, b"???")


@fault("S8", mended=True)
async def a_sound_segment_that_nothing_refers_to(lab: Lab) -> None:
    _, found = await segment_of(lab, 5)
    wide = replace(found, data=b"wide\n")
    key = lab.keys.segment(lab.topic, found.generation, found.offset, 5)
    await lab.client.put(key, merge([wide], offset=found.offset, compress=False))


@fault("S9", mended=True)
async def a_large_batch_that_nothing_refers_to(lab: Lab) -> None:
    body = BodyKey(NOBODY, 1, Beside(1, 3_000_000))
    for key in lab.keys.body_parts(lab.topic, await lab.generation(), body):
        await lab.client.put(key, b"part")


@fault("S10")
async def a_segment_of_a_generation_to_come(lab: Lab) -> None:
    later = Revision(await lab.generation() + 10**6)
    await lab.client.put(lab.keys.segment(lab.topic, later, Offset(0), 3), b"???")


# ---------------------------------------------------------------------- the tail


@fault("B1", reads=False)
async def a_key_in_the_tail_that_is_no_batch(lab: Lab) -> None:
    await lab.put(lab.keys.tail(lab.topic).start + b"1-2-3", b"?")


@fault("B2", reads=False)
async def a_flipped_bit_in_a_batch(lab: Lab) -> None:
    await lab.flip((await lab.batches())[-1].key)


@fault("B2")
async def a_reference_to_a_large_batch_that_is_none(lab: Lab) -> None:
    batches = await lab.batches()
    await lab.client.transaction((), [etcd.delete(batches[-1].key)])
    lab.messages.pop()
    await lab.put(batches[-2].key, batches[-2].value + b"x")


@fault("B3")
async def a_batch_of_another_generation(lab: Lab) -> None:
    session = await lab.begin_session()
    key = await lab.append(session, 1, b"late\n")
    payload = Payload.of([Chunk.of_message(b"late\n")])
    raw = payload.encode(generation=Revision(1), time_ns=1, session=session, sequence=1)
    lease = await lab.client.get(lab.keys.writer(lab.topic, session))
    assert lease is not None
    await lab.put(key, raw)
    await lab.client.lease_revoke(session)


@fault("B3", reads=False)
async def a_batch_that_counts_wrong(lab: Lab) -> None:
    session = await lab.begin_session()
    key = await lab.append(session, 1, b"late\n")
    payload = Payload.of([Chunk.of_message(b"late")])
    generation = await lab.generation()
    raw = payload.encode(generation=generation, time_ns=1, session=session, sequence=1)
    await lab.put(key, raw)
    await lab.client.lease_revoke(session)


@fault("B4", reads=False)
async def a_batch_is_missing_in_the_tail(lab: Lab) -> None:
    await lab.delete((await lab.batches())[1].key)


@fault("B4", reads=False)
async def the_first_batch_behind_the_sealed_ones_is_missing(lab: Lab) -> None:
    await lab.delete((await lab.batches())[0].key)


@fault("B4", reads=False)
async def a_batch_that_was_put_again(lab: Lab) -> None:
    first = (await lab.batches())[0]
    await lab.put(first.key, first.value)


@fault("B5")
async def a_fence_that_does_not_parse(lab: Lab) -> None:
    session = await lab.begin_session()
    await lab.client.put(lab.keys.writer(lab.topic, session), b"one", lease=session)


@fault("B5")
async def a_fence_that_was_put_by_hand(lab: Lab) -> None:
    session = await lab.begin_session()
    await lab.append(session, 1, b"late\n")
    await lab.client.put(lab.keys.writer(lab.topic, session), b"1:1", lease=session)


@fault("B5", mended=True)
async def a_fence_that_no_lease_holds(lab: Lab) -> None:
    await lab.client.put(lab.keys.writer(lab.topic, NOBODY), b"1:1")


@fault("B6", reads=False)
async def the_newest_batch_is_missing(lab: Lab) -> None:
    session = await lab.begin_session()
    await lab.append(session, 1, b"one\n")
    key = await lab.append(session, 2, b"two\n")
    await lab.delete(key)


# ---------------------------------------------------------------------- leftovers


@fault("L1", mended=True)
async def an_old_segment_without_an_order(lab: Lab) -> None:
    await lab.client.put(lab.keys.segment(lab.topic, Revision(1), Offset(0), 3), b"???")


@fault("L1", mended=True)
async def an_old_page_without_an_order(lab: Lab) -> None:
    await lab.client.put(lab.keys.index_page(lab.topic, Revision(1), Offset(0)), b"{}")


@fault("L1", mended=True)
async def an_old_body_without_an_order(lab: Lab) -> None:
    [key] = lab.keys.body_parts(lab.topic, Revision(1), BodyKey(NOBODY, 1, Beside(1, 5)))
    await lab.client.put(key, b"part")


@fault("L1", mended=True)
async def batches_of_a_topic_that_was_reset_by_deletions(lab: Lab) -> None:
    deletes = [etcd.delete(lab.keys.epoch(lab.topic)), etcd.delete(lab.keys.mark(lab.topic))]
    await lab.client.transaction((), deletes)
    lab.messages.clear()


@fault("L2", mended=True)
async def a_batch_of_a_deleted_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.batch(DEAD, NOBODY, 1, 2, 1), b"?")


@fault("L2", mended=True)
async def a_segment_of_a_deleted_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.segment(DEAD, Revision(1), Offset(0), 3), b"?")


@fault("L2", mended=True)
async def a_page_of_a_deleted_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.index_page(DEAD, Revision(1), Offset(0)), b"?")


@fault("L2", mended=True)
async def a_body_of_a_deleted_topic(lab: Lab) -> None:
    [key] = lab.keys.body_parts(DEAD, Revision(1), BodyKey(NOBODY, 1, Beside(1, 5)))
    await lab.client.put(key, b"part")


@fault("L2", mended=True)
async def a_fence_of_a_deleted_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.writer(DEAD, NOBODY), b"1:1")


@fault("L2", mended=True)
async def a_group_of_a_deleted_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.groups(DEAD).start + b"workers/cursor", b"{}")


@fault("L2", mended=True)
async def a_mark_of_a_deleted_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.mark(DEAD), Mark(Mark.RESET, 1).encode())


@fault("L4", mended=True)
async def a_head_of_a_deleted_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.head(DEAD), EMPTY_HEAD_VALUE)


@fault("L4", mended=True)
async def an_epoch_of_a_deleted_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.epoch(DEAD), LONG_AGO)


@fault("L4", mended=True)
async def a_last_of_a_deleted_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.last(DEAD), LONG_AGO)


@fault("L4")
async def a_part_of_a_topic_that_has_messages(lab: Lab) -> None:
    await lab.client.put(lab.keys.last(DEAD), LONG_AGO)
    await lab.client.put(lab.keys.batch(DEAD, NOBODY, 1, 2, 1), b"?")


@fault("L5", mended=True)
async def parts_of_a_session_that_died(lab: Lab) -> None:
    await plant_pending(lab, lab.topic)


@fault("L5", mended=True)
async def parts_of_a_session_that_died_in_a_deleted_topic(lab: Lab) -> None:
    await plant_pending(lab, DEAD)


async def plant_pending(lab: Lab, topic: FileId, session: SessionId = NOBODY) -> None:
    body, generation = BodyKey(session, 1, Beside(1, 2_000_000)), await lab.generation()
    await lab.client.put(lab.keys.pending(topic, generation, body), b"{}")
    await lab.client.put(lab.keys.body_parts(topic, generation, body)[0], b"part")


@fault("L6", mended=True)
async def an_order_that_is_carried_out(lab: Lab) -> None:
    await lab.client.put(lab.keys.trash(lab.topic), LONG_AGO)


@fault("L6", mended=True)
async def an_order_for_a_deleted_topic_that_is_carried_out(lab: Lab) -> None:
    await lab.client.put(lab.keys.trash(DEAD), LONG_AGO)


@fault("L7", mended=True)
async def an_order_that_does_not_parse(lab: Lab) -> None:
    await lab.client.put(lab.keys.all_trash.start + b"t", LONG_AGO)


@fault("L7", mended=True)
async def an_order_to_remove_parts_that_does_not_parse(lab: Lab) -> None:
    await lab.client.put(lab.keys.all_pending_of(lab.topic).start + b"1", b"{}")


@fault("L7", mended=True)
async def an_order_to_remove_parts_of_no_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.all_pending.start + b"1", b"{}")


@fault("U1")
async def a_key_of_no_family(lab: Lab) -> None:
    await lab.client.put(lab.keys.prefix + b"nobody/knows", b"?")


@fault("U1")
async def a_key_of_no_topic(lab: Lab) -> None:
    await lab.client.put(lab.keys.prefix + b"group/workers", b"?")


@fault("U1")
async def a_key_behind_a_record(lab: Lab) -> None:
    await lab.client.put(lab.keys.head(lab.topic) + b"/x", b"?")
