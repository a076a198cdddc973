"""When topics are sealed and trimmed, and by which host.

Any host may seal any topic, and two at the same topic do no harm, but it is wasted work. So:

- A host looks at a topic when it has appended much to it, or when it has appended to it or follows it and
  nothing has come for a while (`core/tails.py`). A look is one small read: how many batches the tail has,
  and which revision changed the topic last.
- An idle topic is sealed by the host that appended to it last; by another one if its tail is still there
  PATIENCE_S later.
- A topic in use is sealed by whichever host comes first: each waits a part of STAGGER_S of its own after
  it has seen that the tail is long, and looks again.
- Tails that nobody living has written to or follows are found in rounds, by one of the hosts.

Tasks: those of `SealSchedule.run`. SEALERS of them seal; each holds one topic.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Final, NamedTuple

import trio

from dnpipefs import etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Revision, SessionId
from dnpipefs.core.sealing import Retention
from dnpipefs.core.tails import Due, Tails
from dnpipefs.errors import CorruptData, DnpError, TopicGone
from dnpipefs.log.sealer import Sealer
from dnpipefs.log.session import SessionKeeper

logger: Final = logging.getLogger(__name__)

TAIL_BATCHES: Final = 2_000
"""A tail of so many batches is sealed though it is written to."""
PATIENCE_S: Final = 3.0
"""How long the host that appended last may take to seal an idle topic."""
STAGGER_S: Final = 1.0
"""Hosts that would begin at the same time begin within so long of one another."""
FAILED_S: Final = 30.0
"""After a failure (etcd may be full) a topic is left alone for so long."""
STAGGER_PARTS: Final = 61
"""Into how many moments it is divided."""
LOOK_S: Final = 0.25
"""Between two looks at what is due."""
SEALERS: Final = 2
"""Topics sealed at once."""
ROUND_S: Final = 60.0
"""Between two rounds: for what retention does not keep any more, and for tails that nobody seals."""
PAGE_KEYS: Final = 1_000
"""Keys read at once in a round."""
PAUSE_S: Final = 0.01
"""Pause after each idle topic and each page of a round, so that writers get their turn."""
TOPICS_AT_ONCE: Final = 100
"""Topics with retention of which it is read together whether they have changed."""
LEFT_OVER_PAUSE_S: Final = 0.1
"""Pause after each tail that nobody has sealed: there may be many, and there is no hurry."""


class _Look(NamedTuple):
    """What one small read tells of a tail."""

    batches: int
    newest: Revision
    """What changed the topic last."""


class SealSchedule:
    """Seals what it is this host's turn to seal."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        sealer: Sealer,
        sessions: SessionKeeper,
        tails: Tails,
        newest: Callable[[FileId], Revision],
        retained: Callable[[], Iterable[FileId]],
    ) -> None:
        """*retained*: the topics of which retention removes something."""
        self._client: Final = client
        self._keys: Final = keys
        self._sealer: Final = sealer
        self._sessions: Final = sessions
        self._tails: Final = tails
        self._newest: Final = newest
        self._retained: Final = retained
        self._right: dict[FileId, tuple[Revision, Retention]] = {}
        """Topics that the last round has trimmed, with what had changed them last and what was to be kept."""
        self._left_over: set[tuple[FileId, SessionId, int]] = set()
        """What the last round found: topics with the lowest key of their tail."""

    async def run(self) -> None:
        """Seal and trim until cancelled."""
        send, receive = trio.open_memory_channel[Due](0)
        async with trio.open_nursery() as nursery:
            for _ in range(SEALERS):
                nursery.start_soon(self._seal_forever, receive)
            nursery.start_soon(self._every_round, self.trim_all)
            nursery.start_soon(self._every_round, self.seal_left_over)
            while True:
                for due in self._tails.take_due(trio.current_time()):
                    await send.send(due)
                await trio.sleep(LOOK_S)

    async def _seal_forever(self, receive: trio.MemoryReceiveChannel[Due]) -> None:
        async for due in receive:
            try:
                await self._look(due)
            except TopicGone:
                self._tails.forget(due.topic)
            except DnpError as error:
                # Nobody waits for it: what is not sealed is read from the tail.
                logger.info("topic %x is not sealed yet: %s", due.topic, error, extra={"topic": due.topic})
                self._look_again(due, FAILED_S, waiting=due.waited)
            except Exception:
                # A fault of ours in one topic must not take the others along.
                logger.exception(
                    "topic %x: sealing it failed unexpectedly", due.topic, extra={"topic": due.topic}
                )
                self._look_again(due, FAILED_S, waiting=due.waited)
            if due.idle:
                await trio.sleep(PAUSE_S)

    async def _look(self, due: Due) -> None:
        topic = due.topic
        if self._sessions.refused is not None:  # who may only read leaves it to others
            self._tails.forget(topic)
            return
        look = await self._read(topic)
        long = due.heavy or look.batches >= TAIL_BATCHES
        if not look.batches:
            self._tails.settled(topic)
        elif (due.waited and (due.idle or long)) or (due.idle and look.newest == self._newest(topic)):
            await self._sealer.seal(topic, down_to=0 if due.idle or due.heavy else TAIL_BATCHES // 2)
            await self._sealer.trim(topic)
            if due.idle:
                self._tails.settled(topic)
        elif due.idle or long:
            self._look_again(due, self._stagger_s() + (PATIENCE_S if due.idle else 0), waiting=True)

    def _look_again(self, due: Due, wait_s: float, *, waiting: bool) -> None:
        self._tails.again(due.topic, trio.current_time() + wait_s, waiting=waiting, heavy=due.heavy)

    async def _read(self, topic: FileId) -> _Look:
        tail = self._keys.tail(topic)
        result = await self._client.transaction(
            (),
            [
                etcd.get(tail.start, tail.end, count_only=True),
                etcd.get(self._keys.mark(topic), count_only=True),
                etcd.get(self._keys.last(topic), keys_only=True),
            ],
        )
        batches, mark, last = (
            response for response in result.responses if isinstance(response, etcd.RangeResult)
        )
        if not last.kvs:
            raise TopicGone("the topic was deleted")
        return _Look(batches.count - mark.count, Revision(last.kvs[0].mod_revision))

    def _stagger_s(self) -> float:
        """Return this host's own part of STAGGER_S."""
        session = self._sessions.current() or 0
        return session % STAGGER_PARTS / STAGGER_PARTS * STAGGER_S

    async def _every_round(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await trio.sleep(ROUND_S)
            try:
                if await self._is_oldest_session():
                    await work()
            except DnpError as error:  # the next round comes
                logger.info("a round through all topics broke off: %s", error)

    async def trim_all(self) -> None:
        """Remove what retention does not keep: what has grown too old, and what no sealing was followed by.

        A topic that has not changed since it was found right is not read again, unless its age counts.
        """
        topics, keys = list(self._retained()), self._keys
        right: dict[FileId, tuple[Revision, Retention]] = {}
        for first in range(0, len(topics), TOPICS_AT_ONCE):
            some = topics[first : first + TOPICS_AT_ONCE]
            reads = [etcd.get(keys.last(topic), keys_only=True) for topic in some]
            found = (await self._client.transaction((), reads)).responses
            for topic, last in zip(some, found, strict=True):
                if not (isinstance(last, etcd.RangeResult) and last.kvs):
                    continue
                retention = self._sealer.policy(topic).retention
                now = (Revision(last.kvs[0].mod_revision), retention)
                if self._right.get(topic) == now and retention.age_ns is None:
                    right[topic] = now
                    continue
                with _one_of_many(topic):
                    await self._sealer.trim(topic)
                    right[topic] = now  # not if that failed
                await trio.sleep(PAUSE_S)
            await trio.sleep(PAUSE_S)
        self._right = right

    async def seal_left_over(self) -> None:
        """Seal the tails that are as this host's last round found them."""
        left_over: set[tuple[FileId, SessionId, int]] = set()
        async with aclosing(self._first_batches()) as batches:
            async for found in batches:
                if found not in self._left_over:
                    left_over.add(found)
                    continue
                with _one_of_many(found[0]):
                    await self._sealer.seal(found[0])
                    await self._sealer.trim(found[0])
                await trio.sleep(LEFT_OVER_PAUSE_S)
        self._left_over = left_over

    async def _first_batches(self) -> AsyncGenerator[tuple[FileId, SessionId, int], None]:
        """Yield each topic that has a tail, with the lowest key in it."""
        start, end = self._keys.all_tails.start, self._keys.all_tails.end
        while True:
            result = await self._client.range(start, end, limit=PAGE_KEYS, keys_only=True)
            for kv in result.kvs:
                if kv.key < start:
                    continue  # of a topic that was yielded
                try:
                    topic = self._keys.parse_tail_topic(kv.key)
                    key = self._keys.parse_tail(topic, kv.key)
                except CorruptData as error:
                    logger.info("a tail is not sealed, run dnpipefs fsck: %s", error)
                    continue
                if key is not None:
                    yield topic, key.session, key.sequence
                    start = self._keys.tail(topic).end
            if not result.more:
                return
            start = max(start, result.kvs[-1].key + b"\0")
            await trio.sleep(PAUSE_S)

    async def _is_oldest_session(self) -> bool:
        """Tell whether the rounds are this host's: one host's are enough, two do no harm.

        Not that of the lowest id: it can be one command after the other, none of which lives for a round.
        """
        sessions = self._keys.sessions
        result = await self._client.range(sessions.start, sessions.end, keys_only=True)
        oldest = min(result.kvs, key=lambda kv: kv.create_revision, default=None)
        own = self._sessions.current()
        return own is not None and oldest is not None and oldest.key == self._keys.session(own)


@contextmanager
def _one_of_many(topic: FileId) -> Iterator[None]:
    """Go on with the next topic if there is something wrong with this one, but not if there is with etcd."""
    try:
        yield
    except (etcd.RequestTooLarge, etcd.InvalidRequest) as error:
        logger.info("topic %x is not sealed or trimmed: %s", topic, error, extra={"topic": topic})
    except etcd.EtcdError:
        raise
    except TopicGone:
        pass
    except DnpError as error:
        logger.info("topic %x is not sealed or trimmed: %s", topic, error, extra={"topic": topic})
    except Exception:  # a fault of ours in one topic must not take the others along
        logger.exception("topic %x: sealing it failed unexpectedly", topic, extra={"topic": topic})
