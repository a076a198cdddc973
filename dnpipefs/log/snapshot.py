"""One consistent read of a topic: all that a view begins with, at one revision.

Owns which keys those are. What they mean is `core/view.py`'s knowledge.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnpipefs import etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import NO_GENERATION, FileId, Revision
from dnpipefs.core.records import Head, Index, decode_time
from dnpipefs.core.view import Snapshot, TopicView, ViewBroken
from dnpipefs.errors import CorruptData, TopicGone


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it was at one revision."""

    snapshot: Snapshot
    newest: Revision
    """mod_revision of its newest change."""
    head_revision: Revision
    """mod_revision of its head."""


async def read_topic(
    client: etcd.Client, keys: KeySchema, topic: FileId, *, timeout: float | None = None
) -> TopicState:
    """Read a topic. Raises TopicGone, CorruptData, UnsupportedFormat, or an EtcdError."""
    tail, index = keys.tail(topic), keys.index(topic)
    result = await client.transaction(
        (),
        [
            etcd.get(keys.epoch(topic), keys_only=True),
            etcd.get(keys.head(topic)),
            etcd.get(keys.last(topic)),
            etcd.get(tail.start, tail.end, keys_only=True),
            etcd.get(index.start, index.end),
        ],
        timeout=timeout,
    )
    epoch, head, last, batches, pages = (
        response.kvs for response in result.responses if isinstance(response, etcd.RangeResult)
    )
    if not (head and last):
        raise TopicGone("the topic was deleted")
    generation = Revision(epoch[0].mod_revision) if epoch else NO_GENERATION
    snapshot = Snapshot(
        revision=Revision(result.revision),
        generation=generation,
        head=Head.decode(head[0].key, head[0].value),
        modified_ns=decode_time(last[0].key, last[0].value),
        tail=[
            (Revision(kv.mod_revision), parsed)
            for kv in batches
            if (parsed := keys.parse_tail(topic, kv.key)) is not None
        ],
        pages=_pages(keys, topic, generation, pages),
    )
    return TopicState(snapshot, Revision(last[0].mod_revision), Revision(head[0].mod_revision))


def view_of(state: TopicState) -> TopicView:
    """Return the view that begins with *state*. Raises CorruptData."""
    try:
        return TopicView(state.snapshot)
    except ViewBroken as broken:  # here no watch is to blame: it is so in etcd
        raise CorruptData(f"what is stored of the topic does not fit: {broken}; run dnpipefs fsck") from None


def _pages(keys: KeySchema, topic: FileId, generation: Revision, kvs: list[etcd.KeyValue]) -> list[Index]:
    found = []
    for kv in kvs:
        page_generation, start = keys.parse_index_page(topic, kv.key)
        if page_generation == generation:
            found.append(Index.decode(kv.key, kv.value, start))
    return found
