"""Batches too large for one transaction: their parts are put first, then one transaction commits them.

With the first part comes an order (`pending/…`) to remove all parts, and every later step requires that
this order is still there. The commit deletes it. So whoever finds one can remove it together with the
parts, in one transaction, at any time: afterwards the batch cannot be committed, and if it was committed
there is no order to be found. Nobody reads parts that no key in the tail refers to.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core.keys import BodyKey, KeyRange, KeySchema
from dnpipefs.core.names import FileId, Revision
from dnpipefs.log.pushes import Batch

logger: Final = logging.getLogger(__name__)

CLEAR_TIMEOUT_S: Final = 5.0
"""How long a host tries to remove the parts of a batch that failed; afterwards it is the sweeper's."""


class Stager:
    """Puts the parts of large batches."""

    def __init__(self, client: etcd.Client, keys: KeySchema) -> None:
        self._client: Final = client
        self._keys: Final = keys

    async def stage(self, batch: Batch, *, timeout: float) -> None:
        """Put what is not there yet. Raises EtcdError; a part that went unanswered is put again.

        If somebody has removed the order meanwhile, the commit finds out.
        """
        order, parts = batch.pending(self._keys), batch.parts(self._keys)
        while batch.parts_put < len(parts):
            key, value = parts[batch.parts_put]
            if batch.parts_put == 0:
                await self._client.transaction(
                    (), [etcd.put(order, b"{}"), etcd.put(key, value)], timeout=timeout
                )
            else:
                result = await self._client.transaction(
                    [etcd.compare_version(order) > 0], [etcd.put(key, value)], timeout=timeout
                )
                if not result.succeeded:
                    return
            batch.parts_put += 1

    async def clear(self, batch: Batch) -> None:
        """Remove what was put for a batch that is not committed. Does nothing for one that is."""
        if not batch.parts_put or all(push.error is None for push in batch.pushes):
            return
        topic, generation = batch.writer.topic, batch.fence.generation
        with trio.move_on_after(CLEAR_TIMEOUT_S, shield=True):
            try:
                await remove_pending(self._client, self._keys, topic, generation, batch.body)
            except etcd.EtcdError as error:
                logger.info("parts of a push that failed are left to the sweeper: %s", error)


async def remove_pending(
    client: etcd.Client, keys: KeySchema, topic: FileId, generation: Revision, body: BodyKey
) -> bool:
    """Remove the parts of a batch unless it is committed; return whether it was not. Raises EtcdError.

    Only deletes, so it works when etcd is full.
    """
    order, parts = keys.pending(topic, generation, body), keys.body_parts(topic, generation, body)
    every = KeyRange(parts[0], parts[-1] + b"\0")
    result = await client.transaction(
        [etcd.compare_version(order) > 0], [etcd.delete(order), etcd.delete(every.start, every.end)]
    )
    return result.succeeded
