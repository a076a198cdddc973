"""Faults in what is sealed and in the tail."""

import json
from dataclasses import replace

from dnpipefs import etcd
from dnpipefs.core import batch
from dnpipefs.core.batch import Chunk, Payload
from dnpipefs.core.keys import Beside, BodyKey
from dnpipefs.core.names import Offset, Revision
from dnpipefs.core.records import Index
from dnpipefs.core.segment import merge
from tests.fsck.conftest import Lab
from tests.fsck.faults import NOBODY, body_of, fault, loses, segment_of


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
