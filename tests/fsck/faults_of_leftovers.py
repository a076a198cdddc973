"""Leftovers that nobody will ever remove."""

from dnpipefs import etcd
from dnpipefs.core.findings import REPAIR_KEYS
from dnpipefs.core.keys import Beside, BodyKey
from dnpipefs.core.names import FileId, Offset, Revision, SessionId
from dnpipefs.core.records import EMPTY_HEAD_VALUE, Mark
from tests.fsck.conftest import Lab
from tests.fsck.faults import DEAD, LONG_AGO, NOBODY, fault


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


@fault("L5", mended=True)
async def more_parts_than_a_transaction_has_operations(lab: Lab) -> None:
    body = BodyKey(NOBODY, 1, Beside(1, 2**28))
    parts = lab.keys.body_parts(lab.topic, await lab.generation(), body)
    assert len(parts) > REPAIR_KEYS
    await lab.client.put(lab.keys.pending(lab.topic, await lab.generation(), body), b"{}")
    await lab.client.put(parts[0], b"part")
    await lab.client.put(parts[-1], b"part")


async def plant_pending(
    lab: Lab, topic: FileId, session: SessionId = NOBODY, generation: Revision | None = None
) -> None:
    generation = generation or await lab.generation()
    body = BodyKey(session, 1, Beside(1, 2_000_000))
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
