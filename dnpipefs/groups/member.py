"""This host's part in one consumer group: what it has claimed, who reads it, what is acknowledged.

Readers take messages from the *stock* of what is claimed, and acknowledge or give back what they had. All
changes in etcd are made by one task (`Member.run`), a transaction at a time: what readers did meanwhile goes
into the next one. So slow readers have a claim of one message each, fast ones share a transaction.

What is known here and what etcd holds are made to agree after each change that did not come through
(`_adopt`): what is not held any more was rewound, or taken over since this host's session was lost, and its
readers' acknowledgements mean nothing; what is held and not known is of a claim whose answer was lost, and
goes back.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core.config import TopicConfig
from dnpipefs.core.group import (
    NO_TERM,
    GivenBack,
    Piece,
    Records,
    Term,
    reconcile,
    rewind,
    settle,
    share,
    trim,
)
from dnpipefs.core.names import NO_GENERATION, Offset, SessionId
from dnpipefs.core.view import TopicView
from dnpipefs.errors import DnpError, NotFound, TimedOut, TopicGone
from dnpipefs.groups.delivery import Delivery, claiming
from dnpipefs.groups.feed import Feed
from dnpipefs.groups.records import GroupKeys, Known, moved
from dnpipefs.log.failures import TRANSIENT, Backoff, deadline
from dnpipefs.log.reader import Message, Reader
from dnpipefs.log.session import SessionKeeper
from dnpipefs.log.views import LiveView

logger: Final = logging.getLogger(__name__)

STOCK_MESSAGES: Final = 10_000
"""Messages that a host holds ahead of its readers, at most."""
STOCK_BYTES: Final = 1 << 20
"""Likewise, bytes taken in one claim."""
STOCK_S: Final = 1.0
"""What nobody has taken from the stock for so long goes back to the group."""
GATHER_S: Final = 0.02
"""How long acknowledgements wait for others to go with, when nobody waits for a message."""
PATIENCE_S: Final = 10.0
"""How often a member looks for hosts that are gone, besides when a watch tells of one."""


class Member:
    """One group on this host. `Groups` makes it, runs it, and ends it when nobody uses it."""

    def __init__(
        self,
        keys: GroupKeys,
        sessions: SessionKeeper,
        reader: Reader,
        live: LiveView,
        config: Callable[[], TopicConfig],
        bury: Callable[[Delivery], None],
        *,
        op_timeout: float,
    ) -> None:
        self.keys: Final = keys
        self.users = 0
        self.scope: Final = trio.CancelScope()
        self.failure: DnpError | None = None
        """Set once: the group or its topic was deleted."""
        self.ended: Final = trio.Event()
        """`Groups` sets it when nothing of it is left."""
        self._shown: Final = keys.name.decode(errors="replace")
        self._sessions: Final = sessions
        self._reader: Final = reader
        self._live: Final = live
        self._config: Final = config
        self._bury: Final = bury
        self._op_timeout: Final = op_timeout
        self._feed: Final = Feed(reader)
        self._session: SessionId | None = None
        self._known: Known | None = None
        """None when it has to be read (again)."""
        self._news: dict[bytes, etcd.KeyValue] = {}
        """What watches have brought since the records were read, by key."""
        self._term: Term = NO_TERM
        """Of all that is known here of messages."""
        self._stale = False
        """A watch may have missed something."""
        self._unsettled = False
        """A change may still be applied: another one has to come through before all is known."""
        self._fenced = True
        """No change can come late that was planned when this member had no record yet."""
        self._stock: deque[Delivery] = deque()
        self._stocked_at = 0.0
        self._in_hand: dict[Offset, Delivery] = {}
        self._buried: set[Delivery] = set()
        """Dead letters on their way."""
        self._done: list[Piece] = []
        self._back: list[GivenBack] = []
        self._waiting = 0
        self._ready: Final = trio.lowlevel.ParkingLot()
        """Readers that wait for a message."""
        self._work: Final = trio.lowlevel.ParkingLot()
        """The task that makes changes, when it has nothing to do."""
        self._stirred = False
        self._asked = 0
        """How many callers want to know for certain whether there is something."""
        self._hurried = 0
        """How many callers wait until what was acknowledged is so in etcd."""
        self._looks = 0
        """How often everything was looked at."""
        self._round = 0
        """How often there was nothing to claim."""
        self._rounds: Final = trio.lowlevel.ParkingLot()
        self._taken = 0
        self._per_second = 0.0
        self._measured_at = trio.current_time()

    # For readers

    @property
    def ending(self) -> bool:
        """Whether it serves nobody any more."""
        return self.failure is not None or self.scope.deadline <= trio.current_time()

    @property
    def readable(self) -> bool:
        """Whether a read would return at once."""
        return bool(self._stock) or self.failure is not None

    async def take(self) -> Delivery:
        """Wait for a message and hand it out. Raises TopicGone when there is none to come any more."""
        while not self._stock:
            self._check()
            self._waiting += 1
            self.stir()
            try:
                await self._ready.park()
            finally:
                self._waiting -= 1
        return self._hand_out()

    async def until_readable(self) -> None:
        """Wait until a read would return at once, or would fail."""
        while not self.readable:
            self._waiting += 1
            self.stir()
            try:
                await self._ready.park()
            finally:
                self._waiting -= 1
        self._ready.unpark()  # it was woken in the place of a reader, perhaps

    async def take_now(self) -> Delivery | None:
        """Hand out a message if the group has one that nobody has, anywhere. Raises TopicGone, TimedOut."""
        if not self._stock:
            self._waiting += 1
            try:
                with deadline(self._op_timeout):
                    # The one under way may have begun too early.
                    await self._rounds_to_come(2, until=lambda: bool(self._stock))
            finally:
                self._waiting -= 1
        self._check()
        return self._hand_out() if self._stock else None

    def take_more(self) -> Delivery | None:
        """Hand out another message if there is one in stock."""
        return self._hand_out() if self._stock else None

    def acknowledge(self, delivery: Delivery) -> bool:
        """Take a message as done; False if it is not this reader's any more."""
        if not self._take_back(delivery):
            return False
        self._done.append(delivery.piece)
        self.stir()
        return True

    def give_back(self, delivery: Delivery, *, delivered: bool = True) -> bool:
        """Let another reader have a message; False if it is not this reader's any more."""
        if not self._take_back(delivery):
            return False
        self._back.append(GivenBack(delivery.piece, delivered))
        self.stir()
        return True

    async def settled(self) -> None:
        """Wait until what was acknowledged and given back is so in etcd. The caller sets the deadline."""
        await self._until(lambda: not (self._done or self._back))

    async def quiet(self) -> None:
        """Likewise, and until no dead letter is under way."""
        await self._until(lambda: not (self._done or self._back or self._buried))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._check()
            self._hurried += 1
            self.stir()
            try:
                await self._rounds.park()
            finally:
                self._hurried -= 1

    async def rewind_to(self, offset: Offset, message: int, generation: int) -> None:
        """Begin again at *offset*, which *message* messages come before; all that is in hand is void.

        Raises NotFound if the group is gone, or the topic was reset since *generation*.
        """
        with deadline(self._op_timeout):
            session, backoff = await self._sessions.get(), Backoff()
            while True:
                try:
                    known = await self.keys.read(session)
                    if known is None:
                        raise NotFound("the group was deleted")
                    records = known.records.current()
                    if records.generation != generation:
                        raise TopicGone("the topic was reset meanwhile")
                    if await self.keys.rewind(known, rewind(records, offset, message)):
                        break
                except etcd.SpaceExceeded:
                    raise
                except TRANSIENT:
                    await backoff.wait()  # done twice it does no harm
            # The next read on this host must not get what was in stock: nor what a change claims whose
            # answer is on its way, which may come before the watch tells of the rewind.
            self._stale = True
            wanted = self._looks + 2  # not rounds: while readers are busy, there is always something to claim
            await self._until(lambda: self._looks >= wanted)

    def watched(self, kv: etcd.KeyValue) -> None:
        """Take in what a watch has brought."""
        # While a read or a change is under way what it will return may be older than this.
        self._news[kv.key] = kv
        if self._known is not None:
            self._known = moved(self._known, kv, self.keys)
        self.stir()

    def lost_sight(self) -> None:
        """Take in that a watch has missed something."""
        self._stale = True
        self.stir()

    def stir(self) -> None:
        """Tell the task that there may be something to do."""
        self._stirred = True
        self._work.unpark()

    def fail(self, error: DnpError) -> None:
        """End it: the group or its topic is gone."""
        self.failure = self.failure or error
        self._return_all()
        self.scope.cancel()
        self._ready.unpark_all()
        self._rounds.unpark_all()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def _rounds_to_come(self, count: int, until: Callable[[], bool] = lambda: False) -> None:
        """Let the task look at everything *count* times, or *until* enough is seen. Raises TopicGone."""
        wanted = self._round + count
        self._asked += 1
        try:
            while self._round < wanted and not until():
                self._check()
                self.stir()
                await self._rounds.park()
        finally:
            self._asked -= 1

    def _hand_out(self) -> Delivery:
        delivery = self._stock.popleft()
        self._in_hand[delivery.offset] = delivery
        timeout_ns = self._config().visibility_timeout_ns
        now = trio.current_time()
        delivery.deadline = now + timeout_ns / 1e9 if timeout_ns is not None else float("inf")
        self._stocked_at = now
        self._taken += 1
        if timeout_ns is not None or len(self._stock) * 2 < self._per_second / 10:
            self.stir()
        return delivery

    def _take_back(self, delivery: Delivery) -> bool:
        if self._in_hand.get(delivery.offset) is not delivery:
            return False
        del self._in_hand[delivery.offset]
        return True

    def buried(self, delivery: Delivery) -> None:
        """Tell that a dead letter is where it belongs, or back in the group."""
        self._buried.discard(delivery)
        self.stir()

    # The task

    async def run(self) -> None:
        """Make changes until cancelled; then what is acknowledged is put, and the stock goes back."""
        try:
            with self.scope:
                await self._make_changes()
            await self._leave()
        except BaseException:  # cancelled, or a fault of ours
            with trio.move_on_after(1, shield=True):
                await self._leave()
            raise

    async def _make_changes(self) -> None:
        backoff = Backoff()
        while self.failure is None:
            await self._until_stirred()
            try:
                await self._change()
                backoff = Backoff()
            except (*TRANSIENT, TimedOut) as error:
                self._not_through(error)
                await backoff.wait()
            except DnpError as error:
                if not isinstance(error, TopicGone):
                    logger.warning("group %s ends: %s", self._shown, error)
                self.fail(error)

    async def _until_stirred(self) -> None:
        if not self._stirred:
            wait_s = PATIENCE_S if self._waiting else STOCK_S if self._stock else float("inf")
            first = min((delivery.deadline for delivery in self._in_hand.values()), default=float("inf"))
            with trio.move_on_after(min(wait_s, max(0.0, first - trio.current_time()))):
                await self._work.park()
        urgent = self._asked or self._hurried or self._unsettled or (self._waiting and not self._stock)
        if not urgent and (self._done or self._back):
            with trio.move_on_after(GATHER_S):
                while not ((self._waiting and not self._stock) or self._asked or self._hurried):
                    await self._work.park()
        self._stirred = False

    async def _change(self) -> None:
        """Make one change if there is any to be made."""
        asked = self._asked
        session = await self._sessions.get()
        if session != self._session:
            self._session, self._known = session, None
            self._drop_all()
        view = await (self._reader.confirm() if asked else self._reader.view())
        known = self._known
        if known is None or self._stale or asked or known.records.mixed:
            self._stale = False
            known = await self._adopt(session)
        if not known.alive or known.records.mixed:
            if not known.alive:
                self._sessions.report_lost(session)
            self._known = None
            self.stir()
            return
        if known.records.generation > view.generation:
            # Else what is of the new generation would be taken for void, and written over.
            view = await self._reader.confirm()
        if known.records.generation != view.generation:
            # Either knows of a reset before the other does.
            known = replace(known, records=replace(known.records, generation=view.generation))
            if self._known is not None:
                self._known = replace(
                    self._known, records=replace(self._known.records, generation=view.generation)
                )
        before = known.records.current()
        if before.cursor.term != self._term:
            self._drop_void(before)
        self._expire()
        done, back = self._done[:], self._back[:]
        settled = settle(before, done, back)
        after = trim(settled, view.first)
        trimmed = after is not settled  # or it would be counted as waiting for a reader
        claimed, first = await self._claim(after, view) if view.generation != NO_GENERATION else ([], 0)
        after = claiming(after, claimed, first)
        if not (done or back or claimed or trimmed or self._unsettled):
            self._end_round(empty=True)
            return
        result = await self._put(session, replace(known, records=before), after)
        if result is None:
            self.stir()
            return
        del self._done[: len(done)], self._back[: len(back)]
        self._stock_up(claimed, after.cursor.term)
        if claimed and self._waiting > len(self._stock):
            self.stir()  # large messages, or ones for the dead letters: there is more for the others, perhaps
        self._end_round(empty=not claimed)

    async def _put(self, session: SessionId, before: Known, after: Records) -> Known | None:
        """Put a change; None if it did not come through, and the records have to be read."""
        self._known = None  # until the answer is here
        unsettled, self._unsettled = self._unsettled, True
        try:
            result = await self.keys.change(session, before, after)
        except (etcd.Ambiguous, trio.Cancelled):
            self._fenced = self._fenced and before.held_at > 0
            raise
        except etcd.EtcdError:
            self._unsettled = unsettled
            raise
        if result is None:
            self._unsettled = unsettled  # somebody was faster; an earlier change of ours can still come late
            return None
        for kv in self._news.values():
            result = moved(result, kv, self.keys)
        self._known, self._unsettled = result, False
        return result

    async def _claim(self, records: Records, view: TopicView) -> tuple[list[tuple[Message, int, bool]], int]:
        """Return what to claim: messages, how often each was delivered, whether it is behind the cursor.

        And how many messages of the generation come before the first one behind the cursor.
        """
        config = self._config()
        start = max(records.cursor.offset, view.first)
        # The view lives: what belongs together is read at one moment.
        first_message = view.first_message if start > records.cursor.offset else records.cursor.message
        available = max(0, view.messages - max(records.cursor.message, view.first_message))
        returned = records.returned.messages if records.returned.stretches else 0
        wanted = share(
            available + returned,
            waiting=self._waiting,
            in_stock=len(self._stock),
            # Exact counts of deliveries need claims that are delivered.
            per_second=self._rate() if config.max_deliveries is None else 0.0,
            bound=STOCK_MESSAGES,
        )
        found: list[tuple[Message, int, bool]] = []
        size = STOCK_BYTES
        for stretch in records.returned.stretches:
            if wanted - len(found) <= 0 or size <= 0:
                return found, first_message
            for message in await self._feed.take(
                view.generation, stretch.start, stretch.end, count=wanted - len(found), size=size
            ):
                found.append((message, stretch.deliveries, False))
                size -= len(message.data)
        if wanted - len(found) > 0 and size > 0 and view.end > start:
            fresh = await self._feed.take(
                view.generation, start, view.end, count=wanted - len(found), size=size
            )
            for message in fresh:
                if message.offset != start:  # retention has removed what was between: count anew
                    self.stir()
                    break
                found.append((message, 0, True))
                start = Offset(start + len(message.data))
        return found, first_message

    def _stock_up(self, claimed: list[tuple[Message, int, bool]], term: Term) -> None:
        limit = self._config().max_deliveries
        for message, deliveries, _ in claimed:
            delivery = Delivery(term, message.offset, message.data, message.time_ns, deliveries)
            if limit is not None and deliveries >= limit:
                self._in_hand[delivery.offset] = delivery
                self._buried.add(delivery)
                self._bury(delivery)
            else:
                self._stock.append(delivery)
        if claimed:
            self._stocked_at = trio.current_time()
            self._ready.unpark(count=len(self._stock))

    async def _adopt(self, session: SessionId) -> Known:
        """Read the records, and make what is known here agree with them."""
        self._news.clear()
        known = await self.keys.read(session)
        if known is None:
            raise TopicGone("the group was deleted")
        held = known.records.current().held
        for kv in self._news.values():
            known = moved(known, kv, self.keys)
        self._known = known
        self._drop_void(known.records.current())
        if not known.alive or held.term != known.records.current().held.term:
            return known
        pieces = [
            *(delivery.piece for delivery in (*self._stock, *self._in_hand.values())),
            *self._done,
            *(back.piece for back in self._back),
        ]
        orphans = list(reconcile(held, [(piece.start, piece.end) for piece in pieces]))
        left = held.messages - sum([piece.messages for piece in pieces])
        for index, orphan in enumerate(orphans):
            count = left if index == len(orphans) - 1 else 0
            self._back.append(GivenBack(Piece(orphan.start, orphan.end, count), delivered=False))
        return known

    def _drop_void(self, records: Records) -> None:
        """Forget what is not held any more."""
        term, held = records.cursor.term, records.held.stretches
        self._term = term

        def valid(delivery: Delivery) -> bool:
            start, end, _ = delivery.piece
            return delivery.term == term and held.covers(start, end)

        self._stock = deque(delivery for delivery in self._stock if valid(delivery))
        self._in_hand = {offset: delivery for offset, delivery in self._in_hand.items() if valid(delivery)}
        self._done = [piece for piece in self._done if held.covers(piece.start, piece.end)]
        self._back = [back for back in self._back if held.covers(back.piece.start, back.piece.end)]

    def _drop_all(self) -> None:
        self._stock.clear()
        self._in_hand.clear()
        self._done.clear()
        self._back.clear()

    def _return_stock(self) -> None:
        self._back += [GivenBack(delivery.piece, delivered=False) for delivery in self._stock]
        self._stock.clear()

    def _return_all(self) -> None:
        self._return_stock()
        self._back += [GivenBack(delivery.piece, delivered=True) for delivery in self._in_hand.values()]
        self._in_hand.clear()

    def _expire(self) -> None:
        """Give back what nobody has taken for long, and what readers have had for too long."""
        now = trio.current_time()
        if self._stock and not self._waiting and now - self._stocked_at >= STOCK_S:
            self._return_stock()
        for delivery in [late for late in self._in_hand.values() if late.deadline <= now]:
            del self._in_hand[delivery.offset]
            self._back.append(GivenBack(delivery.piece, delivered=True))

    def _rate(self) -> float:
        """Return how many messages a second readers take, lately."""
        now = trio.current_time()
        elapsed = now - self._measured_at
        if elapsed >= 0.02:
            weight = min(1.0, elapsed / 0.2)
            self._per_second += weight * (self._taken / elapsed - self._per_second)
            self._taken, self._measured_at = 0, now
        return self._per_second

    def _end_round(self, *, empty: bool) -> None:
        self._looks += 1
        self._round += empty
        self._rounds.unpark_all()

    def _not_through(self, error: DnpError) -> None:
        logger.info("group %s: a change did not come through: %s", self._shown, error)
        self._known = None
        self.stir()

    async def _leave(self) -> None:
        """Put what is acknowledged and give the rest back: nobody takes it over while the session lives."""
        backoff = Backoff()
        while (session := self._session) is not None and session == self._sessions.current():
            try:
                if await self._leave_once(session):
                    return
            except TRANSIENT as error:
                logger.info("group %s is not left yet: %s", self._shown, error)
                await backoff.wait()
            except DnpError as error:
                if self.failure is None:
                    logger.info("what was not acknowledged in time is delivered again: %s", error)
                return

    async def _leave_once(self, session: SessionId) -> bool:
        self._return_all()
        known = await self._adopt(session)
        if not known.alive or known.records.mixed:
            return not known.alive
        before = known.records.current()
        after = settle(before, self._done, self._back)
        if self._done or self._back or self._unsettled:
            result = await self._put(session, replace(known, records=before), after)
            if result is None:
                return False
            known = result
            self._drop_all()
        # A change that comes late and was planned without a record must find one.
        if known.held_at and self._fenced:
            await self.keys.leave(session, known)
        return True
