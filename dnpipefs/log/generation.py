"""The transaction that begins a generation in a topic that has none."""

from __future__ import annotations

from dnpipefs import etcd
from dnpipefs.core import generation
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId
from dnpipefs.core.records import encode_time


async def begin_generation(
    client: etcd.Client, keys: KeySchema, topic: FileId, time_ns: int, *, timeout: float
) -> None:
    """Begin one, unless the topic was deleted or has one by now.

    Applied twice, late, or by several hosts it does no harm: it needs the topic to be there without
    a generation, and leaves it empty. Raises EtcdError.
    """
    writes = generation.begin(keys, topic, time_ns)
    # What the reset has left may not be swept yet: its host may have died.
    writes.append((keys.trash(topic), encode_time(time_ns)))
    await client.transaction(
        [
            etcd.compare_mod_revision(keys.epoch(topic)) == 0,
            etcd.compare_mod_revision(keys.last(topic)) > 0,
        ],
        [etcd.put(key, value) for key, value in writes],
        timeout=timeout,
    )
