"""Linearizable reads of where topics stand, many in one transaction.

A reader that opens a topic or comes to its end asks: what is the newest revision of this topic?
The answer must come from a read that *starts* after the question. Questions that arrive while
reads are under way go together into the next one, so a thousand readers cost a few transactions.

A reader that takes stale answers (`Staleness`) asks with `if_answered`; all others wait for etcd.

Tasks: READERS of `Barrier.run`; each holds the questions of one transaction across its await. One more
that asks while answers are stale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import NO_GENERATION, FileId, Revision
from dnpipefs.errors import TopicGone
from dnpipefs.log.failures import TRANSIENT, Backoff, timed_out
from dnpipefs.log.staleness import STALE_AFTER_S, Staleness
from dnpipefs.metrics import Questions

READERS: Final = 2
"""Transactions under way at once."""
TOPICS_PER_READ: Final = 60
"""Two reads a topic and one for the namespace stay below etcd's 128 operations a transaction."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a topic stood when the read was made."""

    newest: Revision
    """mod_revision of the newest append, seal or reset."""
    generation: Revision
    """NO_GENERATION if it has none: then it is empty, since a moment after `newest`."""


@dataclass(slots=True, eq=False)
class _Question:
    topic: FileId | None
    answered: trio.Event = field(default_factory=trio.Event)
    position: Position | None = None
    namespace: Revision = Revision(0)  # noqa: RUF009 - a NewType of int, immutable
    error: etcd.EtcdError | None = None
    given_up: bool = False


class Barrier:
    """Answers where a topic stands now."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        *,
        op_timeout: float,
        staleness: Staleness | None = None,
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._op_timeout: Final = op_timeout
        self.staleness: Final = staleness or Staleness(allowed=False)
        self.questions: Final = Questions()
        self._asked: list[_Question] = []
        self._wake = trio.lowlevel.ParkingLot()
        self._failure: etcd.EtcdError | None = None

    async def topic(self, topic: FileId) -> Position:
        """Return the topic's position.

        Raises TopicGone when it was deleted, TimedOut when etcd does not answer.
        """
        return _position(await self._ask_until_answered(_Question(topic)))

    async def topic_if_answered(self, topic: FileId) -> Position | None:
        """Likewise for a reader; None if it is to take what this host has, since etcd does not answer."""
        question = _Question(topic)
        return _position(question) if await self._ask_as_reader(question) else None

    async def namespace(self) -> Revision:
        """Return the revision of the newest change of the namespace. Raises TimedOut."""
        return (await self._ask_until_answered(_Question(None))).namespace

    async def namespace_if_answered(self) -> Revision | None:
        """Likewise for a reader; None if it is to take what this host has, since etcd does not answer."""
        question = _Question(None)
        return question.namespace if await self._ask_as_reader(question) else None

    async def answers(self) -> bool:
        """Tell whether etcd answers within STALE_AFTER_S, be it with a no."""
        try:
            return await self._ask(_Question(None), STALE_AFTER_S)
        except etcd.EtcdError:
            return True

    async def _ask_until_answered(self, question: _Question) -> _Question:
        if not await self._ask(question, self._op_timeout):
            raise timed_out(self._op_timeout, self._failure)
        return question

    async def _ask_as_reader(self, question: _Question) -> bool:
        if not self.staleness.allowed:
            await self._ask_until_answered(question)
            return True
        if self.staleness.since is None:
            if await self._ask(question, min(STALE_AFTER_S, self._op_timeout)):
                return True
            self.staleness.begin(self._failure)
        return False

    async def _ask(self, question: _Question, patience: float) -> bool:
        """Return whether it was answered in time. Raises what etcd says against it."""
        self._asked.append(question)
        self._wake.unpark()
        asked_at = trio.current_time()
        try:
            with trio.move_on_after(patience):
                await question.answered.wait()
        finally:
            question.given_up = not question.answered.is_set()
        self.questions.answered.observe(trio.current_time() - asked_at)
        if question.error is not None:
            raise question.error
        return question.answered.is_set()

    async def run(self) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(self._read_forever)
            nursery.start_soon(self._ask_while_stale)

    async def _ask_while_stale(self) -> None:
        while True:
            await self.staleness.until(stale=True)
            await self.answers()

    async def _read_forever(self) -> None:
        backoff = Backoff()
        while True:
            if not self._asked:
                await self._wake.park()
                continue
            # After an outage only those who still wait are answered; nobody else is to be asked for first.
            asked = [question for question in self._asked if not question.given_up]
            questions, self._asked = asked[:TOPICS_PER_READ], asked[TOPICS_PER_READ:]
            if not questions:
                continue
            try:
                await self._read(questions)
                backoff, self._failure = Backoff(), None
                self.staleness.end()
            except TRANSIENT as error:
                # A read has no outcome to lose: ask again for those who still wait.
                self._failure = error
                self._asked = [*questions, *self._asked]
                await backoff.wait()
            except etcd.EtcdError as error:
                self.staleness.end()
                for question in questions:
                    question.error = error
                    question.answered.set()

    async def _read(self, questions: list[_Question]) -> None:
        topics = list({question.topic: None for question in questions if question.topic is not None})
        keys = self._keys
        reads = [etcd.get(keys.last_namespace)]
        for topic in topics:
            reads.append(etcd.get(keys.last(topic)))
            reads.append(etcd.get(keys.epoch(topic)))
        responses = (await self._client.transaction((), reads)).responses
        namespace = _mod_revision(responses[0]) or Revision(0)
        positions: dict[FileId | None, Position] = {}
        for index, topic in enumerate(topics):
            newest = _mod_revision(responses[1 + 2 * index])
            generation = _mod_revision(responses[2 + 2 * index]) or NO_GENERATION
            if newest is not None:
                positions[topic] = Position(newest, generation)
        for question in questions:
            question.namespace = namespace
            question.position = positions.get(question.topic)
            question.answered.set()


def _position(question: _Question) -> Position:
    if question.position is None:
        raise TopicGone("the topic was deleted")
    return question.position


def _mod_revision(response: etcd.OpResult) -> Revision | None:
    assert isinstance(response, etcd.RangeResult)  # noqa: S101 - the client keeps the order of operations
    return Revision(response.kvs[0].mod_revision) if response.kvs else None
