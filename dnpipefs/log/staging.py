"""Batches too large for one transaction: their parts are put first, then one transaction commits them.

With the first part comes an order (`pending/…`) to remove all parts, and every later step requires that
this order is still there. The commit deletes it. So whoever finds one can remove it together with the
parts, in one transaction, at any time: afterwards the batch cannot be committed, and if it was committed
there is no order to be found. Nobody reads parts that no key in the tail refers to.

That a committed batch has no order must also hold when a put of the first part arrives late, after the
same put was sent again and the batch committed. So it requires what the append requires, which is over
once that is committed; and that the session lives, since with its lease the writer key goes, and an
absent one looks like that of a session's first append.

Tasks: whoever commits, and `Stager.run`, which removes what could not be removed in the callers' time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core.keys import BodyKey, KeyRange, KeySchema
from dnpipefs.core.names import FileId, Revision
from dnpipefs.log.pushes import Batch

logger: Final = logging.getLogger(__name__)

CLEAR_TIMEOUT_S: Final = 5.0
"""How long callers of a batch that failed wait for its parts to be removed; and between two tries later."""


class Stager:
    """Puts the parts of large batches."""

    def __init__(self, client: etcd.Client, keys: KeySchema) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._left: Final[set[tuple[FileId, Revision, BodyKey]]] = set()
        """What is to be removed; at the latest it is swept when the session has ended."""
        self._later: Final = trio.lowlevel.ParkingLot()
        """The task that removes it, when there is nothing."""

    async def stage(self, batch: Batch, *, timeout: Callable[[], float]) -> None:
        """Put what is not there yet. Raises EtcdError; a part that went unanswered is put again.

        If the batch cannot be committed any more, or somebody has removed the order, the commit finds out.
        *timeout*: how long the next part may take, seconds.
        """
        order, parts = batch.pending(self._keys), batch.parts(self._keys)
        while batch.parts_put < len(parts):
            key, value = parts[batch.parts_put]
            guards, puts = [etcd.compare_version(order) > 0], [etcd.put(key, value)]
            if batch.parts_put == 0:
                guards, puts = self._still_open(batch), [etcd.put(order, b"{}"), *puts]
                batch.orders.add((batch.fence.generation, batch.body))
            result = await self._client.transaction(guards, puts, timeout=timeout())
            if not result.succeeded:
                return
            batch.parts_put += 1

    def _still_open(self, batch: Batch) -> list[etcd.Compare]:
        keys, fence = self._keys, batch.fence
        return [
            etcd.compare_mod_revision(batch.writer.epoch_key) == fence.generation,
            etcd.compare_version(batch.writer.fence_key) == fence.sequence - 1,
            etcd.compare_version(keys.session(batch.session)) > 0,
        ]

    async def clear(self, batch: Batch) -> None:
        """Remove what was put for a settled batch and is not committed; later, if its callers' time is up."""
        if not all(push.settled for push in batch.pushes):
            return  # cut short: the process ends, its session with it, and the sweeper removes them
        topic = batch.writer.topic
        self._left.update((topic, generation, body) for generation, body in batch.orders)
        if not self._left:
            return
        with trio.move_on_at(min(trio.current_time() + CLEAR_TIMEOUT_S, batch.deadline), shield=True):
            await self._clear()
        if self._left:
            self._later.unpark()

    async def run(self) -> None:
        """Remove what could not be removed at once, until cancelled."""
        while True:
            if not self._left:
                await self._later.park()
            await self._clear()
            if self._left:
                await trio.sleep(CLEAR_TIMEOUT_S)

    async def _clear(self) -> None:
        try:
            while self._left:
                order = next(iter(self._left))
                await remove_pending(self._client, self._keys, *order)
                self._left.discard(order)
        except etcd.EtcdError as error:
            logger.info("parts of a push that failed are not removed yet: %s", error)


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
