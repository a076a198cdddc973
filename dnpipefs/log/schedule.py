"""When topics are sealed and trimmed, and by which host.

Any host may seal any topic, and two at the same topic do no harm, but it is wasted work. So:

- A host looks at a topic when it has appended much to it, or when it has appended to it or follows it and
  nothing has come for a while (`core/tails.py`).
- The *duty* is that of the host which wrote the oldest batch of the tail. Another host takes over if it
  has found the same oldest batch PATIENCE_S ago.
- Tails that nobody living has written to or follows are found in rounds, by one of the hosts.

Tasks: those of `SealSchedule.run`. SEALERS of them seal; each holds one topic.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Final, NamedTuple

import trio

from dnpipefs import etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, SessionId
from dnpipefs.core.tails import Due, Tails
from dnpipefs.core.view import TailEntry, TopicView
from dnpipefs.errors import DnpError, TopicGone
from dnpipefs.log.sealer import Sealer
from dnpipefs.log.session import SessionKeeper
from dnpipefs.log.snapshot import read_topic, view_of
from dnpipefs.log.views import Views

logger: Final = logging.getLogger(__name__)

TAIL_BATCHES: Final = 1_000
"""A tail of so many batches is sealed though it is written to."""
TAIL_BYTES: Final = 1 << 20
"""Likewise, bytes of message data that do not lie beside it."""
PATIENCE_S: Final = 3.0
"""How long the host whose duty it is may take."""
FAILED_S: Final = 30.0
"""After a failure (etcd may be full) a topic is left alone for so long."""
LOOK_S: Final = 0.25
"""Between two looks at what is due."""
SEALERS: Final = 2
"""Topics sealed at once."""
ROUND_S: Final = 60.0
"""Between two rounds: for what has grown too old, and for tails that nobody seals."""
PAGE_KEYS: Final = 1_000
"""Keys read at once in a round."""
PAUSE_S: Final = 0.01
"""Pause after each idle topic and each page of a round, so that writers get their turn."""


class _Oldest(NamedTuple):
    """The oldest batch of a tail, and when it was found to be that."""

    session: SessionId
    sequence: int
    found_at: float


class SealSchedule:
    """Seals what it is this host's turn to seal."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        sealer: Sealer,
        sessions: SessionKeeper,
        tails: Tails,
        views: Views,
        aging: Callable[[], Iterable[FileId]],
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._sealer: Final = sealer
        self._sessions: Final = sessions
        self._tails: Final = tails
        self._views: Final = views
        self._aging: Final = aging
        self._waited_for: dict[FileId, _Oldest] = {}
        """Tails of other hosts that shall have some time to do their duty."""
        self._left_over: set[tuple[FileId, SessionId, int]] = set()
        """What the last round found: topics with the lowest key of their tail."""

    async def run(self) -> None:
        """Seal and trim until cancelled."""
        send, receive = trio.open_memory_channel[Due](0)
        async with trio.open_nursery() as nursery:
            for _ in range(SEALERS):
                nursery.start_soon(self._seal_forever, receive)
            nursery.start_soon(self._round_forever)
            while True:
                for due in self._tails.take_due(trio.current_time()):
                    await send.send(due)
                await trio.sleep(LOOK_S)

    async def _seal_forever(self, receive: trio.MemoryReceiveChannel[Due]) -> None:
        async for due in receive:
            try:
                await self._look(due)
            except TopicGone:
                self._forget(due.topic)
            except DnpError as error:
                # Nobody waits for it: what is not sealed is read from the tail.
                logger.info("topic %x is not sealed yet: %s", due.topic, error)
                self._tails.again(due.topic, trio.current_time() + FAILED_S)
            except Exception:
                # A fault of ours in one topic must not take the others along.
                logger.exception("topic %x: sealing it failed unexpectedly", due.topic)
                self._tails.again(due.topic, trio.current_time() + FAILED_S)
            if due.idle:
                await trio.sleep(PAUSE_S)

    async def _look(self, due: Due) -> None:
        topic = due.topic
        view = self._views.peek(topic)
        if view is None or view.entries:
            state = await read_topic(self._client, self._keys, topic)
            view = view_of(state)
            if view.entries and not (due.idle or _is_long(view)):
                return
            if view.entries and not self._is_our_turn(topic, view.entries[0]):
                self._tails.again(topic, trio.current_time() + PATIENCE_S)
                return
            if view.entries:
                await self._sealer.seal_step(topic, state, view)
                await self._sealer.seal(topic, down_to=0 if due.idle else TAIL_BATCHES // 2)
                await self._sealer.trim(topic)
        self._waited_for.pop(topic, None)
        if due.idle:
            self._tails.settled(topic)

    def _is_our_turn(self, topic: FileId, oldest: TailEntry) -> bool:
        session, sequence, now = oldest.key.session, oldest.key.sequence, trio.current_time()
        if session == self._sessions.current():
            return True
        waited_for = self._waited_for.get(topic)
        if waited_for is None or waited_for[:2] != (session, sequence):
            self._waited_for[topic] = _Oldest(session, sequence, now)
            return False
        return now - waited_for.found_at >= PATIENCE_S

    def _forget(self, topic: FileId) -> None:
        self._tails.forget(topic)
        self._waited_for.pop(topic, None)

    async def _round_forever(self) -> None:
        while True:
            await trio.sleep(ROUND_S)
            try:
                if await self._is_first_session():
                    await self.round()
            except DnpError as error:  # the next round comes
                logger.info("a round through all topics broke off: %s", error)

    async def round(self) -> None:
        """Trim what has grown too old, and seal tails that are as the last round found them."""
        for topic in list(self._aging()):
            with _one_of_many(topic):
                await self._sealer.trim(topic)
            await trio.sleep(PAUSE_S)
        left_over: set[tuple[FileId, SessionId, int]] = set()
        async with aclosing(self._first_batches()) as batches:
            async for found in batches:
                if found not in self._left_over:
                    left_over.add(found)
                    continue
                with _one_of_many(found[0]):
                    await self._sealer.seal(found[0])
        self._left_over = left_over

    async def _first_batches(self) -> AsyncGenerator[tuple[FileId, SessionId, int], None]:
        """Yield each topic that has a tail, with the lowest key in it."""
        start, end = self._keys.all_tails.start, self._keys.all_tails.end
        while True:
            result = await self._client.range(start, end, limit=PAGE_KEYS, keys_only=True)
            for kv in result.kvs:
                if kv.key < start:
                    continue  # of a topic that was yielded
                topic = self._keys.parse_tail_topic(kv.key)
                key = self._keys.parse_tail(topic, kv.key)
                if key is not None:
                    yield topic, key.session, key.sequence
                    start = self._keys.tail(topic).end
            if not result.more:
                return
            start = max(start, result.kvs[-1].key + b"\0")
            await trio.sleep(PAUSE_S)

    async def _is_first_session(self) -> bool:
        """Tell whether the rounds are this host's: one host's are enough, two do no harm."""
        sessions = self._keys.sessions
        result = await self._client.range(sessions.start, sessions.end, limit=1, keys_only=True)
        own = self._sessions.current()
        return own is not None and bool(result.kvs) and result.kvs[0].key == self._keys.session(own)


@contextmanager
def _one_of_many(topic: FileId) -> Iterator[None]:
    """Go on with the next topic if there is something wrong with this one, but not if there is with etcd."""
    try:
        yield
    except etcd.EtcdError:
        raise
    except TopicGone:
        pass
    except DnpError as error:
        logger.info("topic %x is not sealed or trimmed: %s", topic, error)


def _is_long(view: TopicView) -> bool:
    small = sum([entry.size for entry in view.entries if entry.body is None])
    return len(view.entries) >= TAIL_BATCHES or small >= TAIL_BYTES
