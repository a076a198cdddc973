"""One transaction with the batches of many topics: from sending it to knowing what became of each.

The fence (`dnpipefs.core.append`) decides what an unanswered or refused transaction means; this
module asks etcd what the fence has to know, and sends again what has to be sent again. Which pushes
go together, and when, is `appender.py`'s business.

Whoever calls `Committer.commit` holds the batches, and so their topics' sequence numbers, until it
returns: then every push in them is settled.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core import append as fence_rules
from dnpipefs.core.append import UNKNOWN_SEQUENCE, Fence, Observed
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import NO_GENERATION, Revision, SessionId
from dnpipefs.core.records import Head, encode_time
from dnpipefs.core.sizes import KnownSizes
from dnpipefs.core.tails import Tails
from dnpipefs.errors import CorruptData, DnpError, TopicGone, UnknownOutcome
from dnpipefs.log.clock import Clock
from dnpipefs.log.failures import TRANSIENT, Backoff, timed_out
from dnpipefs.log.generation import begin_generation
from dnpipefs.log.pushes import Batch, Push, Writer
from dnpipefs.log.session import SessionKeeper
from dnpipefs.log.staging import Stager
from dnpipefs.metrics import Pushes

logger: Final = logging.getLogger(__name__)

TOPICS_WITH_PREVIOUS: Final = 30
"""In a transaction of so many topics there is room for a read beside the three puts of each."""
NOT_REMEMBERED: Final = UNKNOWN_SEQUENCE - 1
"""In the place of the last sequence number taken, so that the next one is UNKNOWN_SEQUENCE."""
LARGE_SHARE: Final = 16
"""A byte of a large batch counts so much less towards sealing: that writes nothing of it anew, but has to be
done before retention can remove it."""
_SLOWEST_PER_S: Final = 500_000
"""Bytes that etcd takes in a second if it is slow: large transactions have longer to be answered."""


class Committer:
    """Commits batches."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        sessions: SessionKeeper,
        clock: Clock,
        sizes: KnownSizes,
        tails: Tails,
        *,
        op_timeout: float,
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._sessions: Final = sessions
        self._clock: Final = clock
        self._sizes: Final = sizes
        self._tails: Final = tails
        self._op_timeout: Final = op_timeout
        self.pushes: Final = Pushes()
        self._attempts = 0
        self._stager: Final = Stager(client, keys)
        self._seen = Revision(0)
        """The newest revision of a commit."""
        self._forgetful: SessionId | None = None
        """The session in which writers were forgotten."""

    def forgot(self, session: SessionId | None) -> None:
        """Tell that an idle writer was forgotten: from now on a new one may have appended in this session."""
        self._forgetful = session

    def batch(self, writer: Writer, pushes: Sequence[Push], session: SessionId) -> Batch:
        """Make a batch of *pushes*, with the next sequence number; the topic is busy from now on."""
        if writer.session != session:
            new = writer.session is None and session == self._forgetful
            writer.session, writer.sequence = session, NOT_REMEMBERED if new else 0
            writer.fence_key = self._keys.writer(writer.topic, session)
        self._attempts += 1
        fence = Fence(writer.generation, writer.sequence + 1, self._attempts)
        floor = max(self._seen, self._sessions.began)
        batch = Batch.of(writer, pushes, session, fence, self._clock.now_ns(), floor)
        writer.busy = True  # not if that has failed: nobody would release it
        return batch

    async def run(self) -> None:
        """Remove what is left of batches that failed, until cancelled."""
        await self._stager.run()

    async def commit(self, batches: list[Batch]) -> None:
        """Send until every batch is settled: committed, failed, or out of time."""
        staged = [batch for batch in batches if batch.staged]
        try:
            await self._commit(batches)
        finally:
            for batch in staged:
                await self._stager.clear(batch)

    async def _commit(self, batches: list[Batch]) -> None:
        backoff = Backoff()
        refusals = 0
        while batches := self._still_in_time(batches, now := trio.current_time()):
            if NO_GENERATION in [batch.fence.generation for batch in batches]:
                batches = await self._begin_generations(batches, backoff)
                continue
            if UNKNOWN_SEQUENCE in [batch.fence.sequence for batch in batches]:
                batches = await self._look_and_settle(batches)
                if any(batch.failure is not None for batch in batches):
                    await backoff.wait()
                continue
            sent = False
            try:
                for batch in batches:
                    if batch.staged:
                        await self._stager.stage(batch, timeout=partial(self._time_left, batches, backoff))
                        now = trio.current_time()
                sent, timeout = True, self._time_for(batches, backoff, now)
                result = await self._client.commit(self._transaction(batches, now), timeout=timeout)
                answered = trio.current_time()
                self.pushes.committed.observe(answered - now)
            except etcd.SpaceExceeded as error:
                await self._settle_out_of_space(batches, error, sent=sent)
                return
            except etcd.LeaseNotFound:
                batches = await self._settle_lost_session(batches)
                continue
            except TRANSIENT as error:
                for batch in batches:
                    batch.sent_unanswered |= sent and isinstance(error, etcd.Ambiguous)
                    batch.failure = error
                await backoff.wait()
                continue
            except etcd.EtcdError as error:
                for batch in batches:
                    self._refuse(batch, error)
                return
            self._seen = max(self._seen, Revision(result.revision))
            if result.succeeded:
                self._applied(batches, result, now, answered)
                return
            batches = await self._look_and_settle(batches)
            refusals += 1
            if refusals > 2:  # a reset or two in a row are normal, more are not
                await backoff.wait()

    def abandon(self, batches: Sequence[Batch]) -> None:
        """Settle what a commit that was cut short has left open: it may still be applied, once."""
        for batch in batches:
            for push in batch.pushes:
                if not push.settled:
                    # Not the fence's number: it may have been sent under another session since.
                    batch.writer.abandoned = batch.writer.sequence + 1
                    push.failed(UnknownOutcome("the commit was cut short; it may be in the topic, once"))

    def _still_in_time(self, batches: Sequence[Batch], now: float) -> list[Batch]:
        """Abandon what is past its deadline: the fence sees to it that it is applied at most once."""
        for batch in batches:
            if batch.deadline <= now:
                if batch.sent_unanswered:
                    batch.writer.abandoned = batch.fence.sequence
                self._fail(batch, timed_out(self._op_timeout, batch.failure))
        return [batch for batch in batches if batch.deadline > now]

    @staticmethod
    def _time_for(batches: Sequence[Batch], backoff: Backoff, now: float) -> float:
        """Return how long one transaction for *batches* may take, seconds."""
        left = max(0.001, max([batch.deadline for batch in batches]) - now)
        return min(backoff.answer_s + sum([batch.payload.stored for batch in batches]) / _SLOWEST_PER_S, left)

    def _time_left(self, batches: Sequence[Batch], backoff: Backoff) -> float:
        """As `_time_for`, of now."""
        return self._time_for(batches, backoff, trio.current_time())

    async def _begin_generations(self, batches: list[Batch], backoff: Backoff) -> list[Batch]:
        """Give those topics of *batches* a generation that have none; return what is to be sent."""
        try:
            for batch in batches:
                if batch.fence.generation == NO_GENERATION:
                    timeout = self._time_for(batches, backoff, trio.current_time())
                    topic = batch.writer.topic
                    await begin_generation(self._client, self._keys, topic, batch.time_ns, timeout=timeout)
        except etcd.SpaceExceeded as error:
            await self._settle_out_of_space(batches, error, sent=False)
            return []
        except TRANSIENT as error:
            for batch in batches:
                batch.failure = error
            await backoff.wait()
            return batches
        except etcd.EtcdError as error:
            for batch in batches:
                self._refuse(batch, error)
            return []
        return await self._look_and_settle(batches)

    def _transaction(self, batches: Sequence[Batch], now: float) -> etcd.Transaction:
        keys = self._keys
        transaction = etcd.Transaction()
        for batch in batches:
            writer, fence = batch.writer, batch.fence
            transaction.compare_mod_revision(writer.epoch_key, fence.generation)
            transaction.compare_version(writer.fence_key, fence.sequence - 1)
            batch.previous_at = None
            if len(batches) <= TOPICS_WITH_PREVIOUS and self._sizes.wanted(writer.topic, now):
                batch.previous_at = len(transaction)
                transaction.get(writer.last_key, keys_only=True)
            transaction.put(writer.fence_key, fence.encode(), lease=batch.session)
            transaction.put(batch.key(keys), batch.value())
            if batch.staged:  # the parts are there already, unless somebody took them for leftovers
                transaction.compare_exists(batch.pending(keys))
                transaction.delete(batch.pending(keys))
            elif batch.large:
                for key, value in batch.parts(keys):
                    transaction.put(key, value)
            transaction.put(writer.last_key, encode_time(batch.time_ns))
        return transaction

    async def _look_and_settle(self, batches: Sequence[Batch]) -> list[Batch]:
        """Settle batches by what etcd holds; return those that have to be sent (again)."""
        session = batches[0].session
        # Whether the session lives must be read: etcd compares before it looks at the lease, so a
        # lost session shows as a refusal like any other.
        reads = [etcd.get(self._keys.session(session), keys_only=True)]
        for batch in batches:
            reads.append(etcd.get(self._keys.epoch(batch.writer.topic), keys_only=True))
            reads.append(etcd.get(self._keys.last(batch.writer.topic), keys_only=True))
            reads.append(etcd.get(self._keys.writer(batch.writer.topic, session)))
        try:
            found = [_first(response) for response in (await self._client.transaction((), reads)).responses]
        except TRANSIENT as error:
            for batch in batches:
                batch.failure = error
            return list(batches)  # sending them again is always safe
        except etcd.EtcdError as error:
            for batch in batches:
                self._refuse(batch, error)
            return []
        for batch in batches:
            batch.failure = None
        if found[0] is None:
            return await self._settle_lost_session(batches)
        still_open = []
        for batch, epoch, last, writer in zip(batches, found[1::3], found[2::3], found[3::3], strict=True):
            try:
                if self._is_open(batch, _generation(epoch, last), writer):
                    still_open.append(batch)
            except CorruptData as error:  # of this topic: the others are as well as before
                self._refuse(batch, error)
        return still_open

    def _is_open(self, batch: Batch, generation: Revision | None, writer: etcd.KeyValue | None) -> bool:
        """Settle a batch if that can be; tell whether it has to be sent (again). Raises CorruptData."""
        observed = Observed(
            generation,
            fence_rules.decode_writer(writer.key, writer.value) if writer else None,
            session_alive=True,
        )
        match fence_rules.settle(batch.fence, observed):
            case fence_rules.Committed():
                self._sizes.forget(batch.writer.topic, trio.current_time())
                self._succeed(batch, Revision(writer.mod_revision if writer else 0), trio.current_time())
            case fence_rules.Gone():
                self._fail(batch, TopicGone("the topic was deleted"))
            case fence_rules.SessionLost():
                self._fail(batch, UnknownOutcome("the fence of this host's pushes was removed from etcd"))
            case fence_rules.Retry(generation, sequence):
                batch.writer.generation = generation
                batch.writer.sequence = sequence - 1
                fence = Fence(generation, sequence, batch.fence.attempt)
                # What was sent with another fence can not be applied any more.
                batch.sent_unanswered &= fence == batch.fence
                batch.fence = fence
                batch.parts_put = 0
                return True
        return False

    async def _settle_out_of_space(
        self, batches: Sequence[Batch], error: etcd.SpaceExceeded, *, sent: bool
    ) -> None:
        """Find out what became of batches when etcd has answered with "database space exceeded".

        The write that crosses the quota is applied, later ones are refused: only a read tells. `sent`: the
        batches were in that write.
        """
        in_doubt = {batch for batch in batches if batch.sent_unanswered}
        for batch in batches:
            batch.sent_unanswered |= sent
        for batch in await self._look_and_settle(batches):
            # Of what was read to be open only an earlier try can still be applied.
            batch.sent_unanswered &= batch in in_doubt or batch.failure is not None
            self._refuse(batch, error)

    async def _settle_lost_session(self, batches: Sequence[Batch]) -> list[Batch]:
        """Settle batches whose session's lease is gone; return those to send under the new one."""
        lost = batches[0].session
        self._sessions.report_lost(lost)
        still_open = [
            batch for batch in batches if not batch.sent_unanswered or await self._is_open_after_loss(batch)
        ]
        with trio.move_on_at(max(batch.deadline for batch in batches)):
            try:
                session = await self._sessions.get(unless_full=True)
            except etcd.EtcdError as error:
                for batch in still_open:
                    self._refuse(batch, error)
                return []
            return [self._anew(batch, session) for batch in still_open]
        for batch in still_open:
            self._fail(batch, timed_out(self._op_timeout, batch.failure))
        return []

    def _anew(self, batch: Batch, session: SessionId) -> Batch:
        """Return a batch of the same pushes under another session."""
        anew = self.batch(batch.writer, batch.pushes, session)
        anew.orders = batch.orders  # one set: whoever clears the first one clears all
        return anew

    async def _is_open_after_loss(self, batch: Batch) -> bool:
        keys, topic = self._keys, batch.writer.topic
        reads = [
            etcd.get(batch.key(keys)),
            etcd.get(keys.head(topic)),
            etcd.get(keys.epoch(topic), keys_only=True),
            etcd.get(keys.last(topic), keys_only=True),
        ]
        try:
            responses = await self._read_in_time(batch, reads)
            own, head_kv, epoch, last = (_first(response) for response in responses)
            head = Head.decode(head_kv.key, head_kv.value) if head_kv else Head()
        except (etcd.EtcdError, CorruptData) as error:
            self._fail(batch, UnknownOutcome(f"the session was lost, and what became of the push: {error}"))
            return False
        # An abandoned batch may have been applied under the same number and even the same key.
        found = own is not None and own.value == batch.value()
        sealed = head.writers.get(f"{batch.session:x}")
        if sealed is None and own is None and head.forgotten > batch.floor:
            self._fail(batch, UnknownOutcome("the session was lost so long ago that nobody remembers it"))
            return False
        if sealed is not None and sealed >= batch.fence.sequence:
            if batch.writer.abandoned == batch.fence.sequence:
                self._fail(batch, UnknownOutcome("the session was lost; this push or an earlier one is in"))
                return False
            found = True
        match fence_rules.settle_lost(
            batch.fence,
            sent_before=True,
            found=found,
            generation=_generation(epoch, last),
        ):
            case fence_rules.Committed():
                self._sizes.forget(batch.writer.topic, trio.current_time())
                self._succeed(batch, Revision(own.mod_revision if own else 0), trio.current_time())
            case fence_rules.Gone():
                self._fail(batch, TopicGone("the topic was deleted"))
            case fence_rules.Unknown():
                self._fail(batch, UnknownOutcome("the session was lost and the topic was reset meanwhile"))
            case fence_rules.Retry(generation, _):
                batch.writer.generation = generation
                return True
        return False

    async def _read_in_time(self, batch: Batch, reads: Sequence[etcd.Op]) -> Sequence[etcd.OpResult]:
        """Read what tells of a batch, again and again while its callers wait. Raises EtcdError."""
        backoff = Backoff()
        while True:
            try:
                return (await self._client.transaction((), reads)).responses
            except TRANSIENT:
                if trio.current_time() >= batch.deadline:
                    raise
                await backoff.wait()

    def _applied(
        self, batches: Sequence[Batch], result: etcd.TransactionResult, sent_at: float, now: float
    ) -> None:
        revision = Revision(result.revision)
        asked = any(batch.previous_at is not None for batch in batches)
        responses = result.responses if asked else []
        for batch in batches:
            last = _first(responses[batch.previous_at]) if batch.previous_at is not None else None
            self._sizes.appended(
                batch.writer.topic,
                previous=Revision(last.mod_revision) if last else None,
                revision=revision,
                size=batch.payload.size,
                stored=batch.payload.stored,
                messages=batch.payload.messages,
                time_ns=batch.time_ns,
                sent_at=sent_at,
                now=now,
            )
            self._succeed(batch, revision, now)

    def _succeed(self, batch: Batch, revision: Revision, now: float) -> None:
        batch.writer.sequence = batch.fence.sequence
        batch.writer.newest = max(batch.writer.newest, revision)
        pushes, payload = self.pushes, batch.payload
        pushes.batches += 1
        pushes.messages += payload.messages
        pushes.bytes += payload.size
        in_tail = payload.size // LARGE_SHARE if batch.large else payload.size
        self._tails.appended(batch.writer.topic, in_tail, now)
        if batch.staged:
            batch.orders.discard((batch.fence.generation, batch.body))
        for push in batch.pushes:
            push.committed(revision)

    def _refuse(self, batch: Batch, error: DnpError) -> None:
        """Fail a batch that is not to be had into etcd; an earlier try that went unanswered may be in."""
        if batch.sent_unanswered:
            batch.writer.abandoned = batch.fence.sequence
            self._fail(batch, UnknownOutcome(f"{error}; an earlier try may have been applied, once"))
        else:
            self._fail(batch, error)

    def _fail(self, batch: Batch, error: DnpError) -> None:
        for push in batch.pushes:
            push.failed(error)


def _generation(epoch: etcd.KeyValue | None, last: etcd.KeyValue | None) -> Revision | None:
    """Return a topic's generation, None if the topic was deleted."""
    if last is None:
        return None
    return Revision(epoch.mod_revision) if epoch is not None else NO_GENERATION


def _first(response: etcd.OpResult) -> etcd.KeyValue | None:
    assert isinstance(response, etcd.RangeResult)  # noqa: S101 - the client keeps the order of operations
    return response.kvs[0] if response.kvs else None
