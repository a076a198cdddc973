"""Removes what no view can see any more: what is of old generations, the keys of deleted topics, leftovers.

The transaction that resets or deletes a topic leaves a work order (`trash/<topic>`). Whoever is
alive carries it out, in small steps, since one large delete stalls every writer of the cluster.
Two hosts at the same order do no harm. When etcd is full there can be no such order: the host that
made the change removes what is left without one, and does it before it leaves. Batches that were never
committed because their host died between their parts have orders of their own (see `staging.py`).

Task: one, `Sweeper.run`. It holds one order at a time.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, NamedTuple

import trio

from dnpipefs import etcd
from dnpipefs.core.keys import KeyRange, KeySchema
from dnpipefs.core.names import FileId, Revision, SessionId
from dnpipefs.errors import CorruptData, DnpError
from dnpipefs.log.staging import remove_pending

logger: Final = logging.getLogger(__name__)

STEP_KEYS: Final = 500
"""Keys removed, or orders read, in one step."""
STEP_VALUES: Final = 50
"""Likewise, of keys with values of up to a megabyte: etcd reads them though it is asked for keys only."""
STEP_PAUSE_S: Final = 0.01
"""Pause between steps, so that writers get their turn."""
ROUND_S: Final = 60.0
"""How often the orders of hosts that died are looked for."""
LEAVE_S: Final = 30.0
"""How long leaving takes at most for the sake of leftovers without an order."""


class _Order(NamedTuple):
    """To sweep a topic."""

    topic: FileId
    key: bytes
    revision: Revision
    """When it was left; a later one is another order."""


class Sweeper:
    """Carries out work orders."""

    def __init__(self, client: etcd.Client, keys: KeySchema) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._own: set[FileId] = set()
        """Topics that this host has reset or deleted, perhaps without leaving an order."""
        self._wake = trio.Event()

    def wake(self, topic: FileId) -> None:
        """Tell that a topic was reset or deleted by this host."""
        self._own.add(topic)
        self._wake.set()

    async def run(self) -> None:
        """Carry out orders as they come, and look for others' once a round, until cancelled."""
        said = ""
        try:
            while True:
                self._wake = trio.Event()
                try:
                    await self.sweep_all()
                except DnpError as error:
                    # Nobody waits for it, and a round from now it may go, or it is a key that does not
                    # parse: a reason to say, not to end.
                    level = logging.DEBUG if str(error) == said else logging.WARNING
                    logger.log(level, "old keys are not swept yet: %s", said := str(error))
                with trio.move_on_after(ROUND_S):
                    await self._wake.wait()
        finally:
            with trio.move_on_after(LEAVE_S, shield=True):
                await self._leave()

    async def _leave(self) -> None:
        """Remove what nobody else would, for want of an order; the rest is for those who stay."""
        try:
            if self._own:
                async with aclosing(self._orders()) as orders:
                    async for order in orders:
                        if not isinstance(order, CorruptData):
                            self._own.discard(order.topic)
                await self._sweep_own()
        except DnpError as error:
            logger.warning("old keys are swept after the next push to their topics only: %s", error)

    async def sweep_all(self) -> None:
        """Carry out all orders there are now.

        Raises CorruptData in the end, if one of them is none, or a topic has a key of which nobody can tell.
        """
        unreadable: CorruptData | None = None
        async with aclosing(self._orders()) as orders:
            async for order in orders:
                if isinstance(order, CorruptData):
                    unreadable = order
                    continue
                try:
                    await self._sweep_whole(order.topic)
                except CorruptData as error:
                    unreadable = error
                    continue
                # Only if nobody reset the topic again meanwhile: that order is a new one.
                done = etcd.compare_mod_revision(order.key) == order.revision
                await self._client.transaction([done], [etcd.delete(order.key)])
        await self._sweep_own()
        if unreadable is not None:
            raise unreadable

    async def _orders(self) -> AsyncGenerator[_Order | CorruptData, None]:
        """Yield the orders, and what is wrong with those that are none. There may be many: page by page."""
        async with aclosing(self._pages(self._keys.all_trash, STEP_KEYS)) as pages:
            async for page in pages:
                for kv in page:
                    try:
                        yield _Order(self._keys.parse_trash(kv.key), kv.key, Revision(kv.mod_revision))
                    except CorruptData as error:
                        yield error

    async def _sweep_own(self) -> None:
        failed: dict[FileId, CorruptData] = {}
        while left := self._own - failed.keys():
            topic = next(iter(left))
            try:
                await self._sweep_whole(topic)
            except CorruptData as error:
                failed[topic] = error
        await self._sweep_pending()
        for unreadable in failed.values():
            raise unreadable

    async def _sweep_whole(self, topic: FileId) -> None:
        """Sweep a topic; if that fails, one of this host's own stays so, though there is an order now.

        The order may be an earlier one, and be carried out by somebody who looked before this host's removal.
        """
        own = topic in self._own
        self._own.discard(topic)  # a removal during the sweep makes it one again
        try:
            await self.sweep(topic)
        except BaseException:  # cancelled, too: it is still ours to sweep
            if own:
                self._own.add(topic)
            raise

    async def _sweep_pending(self) -> None:
        """Remove parts that were put for batches of sessions that are gone, so nobody can commit them."""
        unreadable = None
        alive: dict[SessionId, bool] = {}  # asked once: of one that ends meanwhile the next round knows
        async with aclosing(self._pages(self._keys.all_pending, STEP_KEYS)) as pages:
            async for page in pages:
                for kv in page:
                    try:
                        await self._carry_out_pending(kv.key, alive)
                    except CorruptData as error:
                        unreadable = error
        if unreadable is not None:
            raise unreadable

    async def _carry_out_pending(self, key: bytes, alive: dict[SessionId, bool]) -> None:
        topic, generation, body = self._keys.parse_pending(key)
        session = body.session
        if session not in alive:
            alive[session] = await self._client.get(self._keys.session(session)) is not None
        if not alive[session] and await remove_pending(self._client, self._keys, topic, generation, body):
            logger.info("topic %x: removed what a dead host had not committed", topic, extra={"topic": topic})

    async def sweep(self, topic: FileId) -> None:
        """Remove what is garbage of a topic, if anything is.

        Raises EtcdError; CorruptData in the end, if there is a key of which nobody can tell.
        """
        keys = self._keys
        result = await self._client.transaction(
            (), [etcd.get(keys.epoch(topic), keys_only=True), etcd.get(keys.last(topic), keys_only=True)]
        )
        epoch, last = (
            response.kvs for response in result.responses if isinstance(response, etcd.RangeResult)
        )
        if epoch:
            await self._sweep_generations_before(topic, Revision(epoch[0].mod_revision))
            return
        if last:  # the next generation will be newer than this look
            await self._sweep_generations_before(topic, Revision(result.revision + 1))
            return
        for part in (keys.tail(topic), keys.writers(topic), keys.groups(topic)):
            await self._remove(part, STEP_KEYS)
        for part in self._of_generations(topic):
            await self._remove(part, STEP_VALUES)

    def _of_generations(self, topic: FileId) -> tuple[KeyRange, ...]:
        """Return the ranges whose keys have the generation behind the topic.

        Orders come before the parts they are for: without its order no further part can be put.
        """
        keys = self._keys
        return keys.all_pending_of(topic), keys.segments(topic), keys.bodies(topic), keys.index(topic)

    async def _remove(self, part: KeyRange, step: int) -> None:
        async with aclosing(self._pages(part, step)) as pages:
            async for page in pages:
                await self._client.delete(page[0].key, page[-1].key + b"\0")

    async def _sweep_generations_before(self, topic: FileId, generation: Revision) -> None:
        for part in self._of_generations(topic):
            await self._remove(self._keys.before_generation(part, generation), STEP_VALUES)
        unreadable = None
        async with aclosing(self._pages(self._keys.tail(topic), STEP_KEYS)) as pages:
            async for page in pages:
                # One writer's batches of old generations stand before its newer ones.
                newest: dict[SessionId, int] = {}
                for kv in page:
                    try:
                        key = self._keys.parse_tail(topic, kv.key)
                    except CorruptData as error:
                        unreadable = error
                        continue
                    if key is not None and kv.mod_revision < generation:
                        newest[key.session] = max(key.sequence, newest.get(key.session, 0))
                for session, sequence in newest.items():
                    old = self._keys.batches_through(topic, session, sequence)
                    await self._client.delete(old.start, old.end)
        if unreadable is not None:
            raise unreadable

    async def _pages(self, keys: KeyRange, step: int) -> AsyncGenerator[list[etcd.KeyValue], None]:
        start = keys.start
        while True:
            result = await self._client.range(start, keys.end, limit=step, keys_only=True)
            if not result.kvs:
                return
            yield result.kvs
            start = result.kvs[-1].key + b"\0"
            await trio.sleep(STEP_PAUSE_S)
