"""This host's part in one consumer group: what it has claimed, who reads it, what is acknowledged.

Readers take messages from the *stock* of what is claimed, and acknowledge or give back what they had. All
changes in etcd are made by one task (`Member.run`), a transaction at a time: what readers did meanwhile goes
into the next one. So slow readers have a claim of one message each, fast ones share a transaction. When there
is nothing to claim, what readers wait for is claimed before it comes: it is theirs as soon as the view shows
it, without a trip to etcd.

What is known here and what etcd holds are made to agree after each change that did not come through
(`_adopt`): what is not held any more was rewound, or taken over since this host's session was lost, and its
readers' acknowledgements mean nothing; what is held and not known is of a claim whose answer was lost, and
goes back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core.config import TopicConfig
from dnpipefs.core.group import (
    CHUNK_S,
    GivenBack,
    Piece,
    Records,
    available,
    backlog,
    claim_to_come,
    reconcile,
    settle,
    share,
    trim,
)
from dnpipefs.core.intervals import Stretch
from dnpipefs.core.names import NO_GENERATION, SessionId
from dnpipefs.core.view import TopicView
from dnpipefs.errors import CorruptData, DnpError, TimedOut, TopicGone
from dnpipefs.groups.delivery import Delivery
from dnpipefs.groups.feed import Feed
from dnpipefs.groups.holdings import AHEAD_S, STOCK_S, Holdings
from dnpipefs.groups.records import GroupKeys, Known, moved
from dnpipefs.groups.rounds import Rounds
from dnpipefs.log.failures import TRANSIENT, Backoff, deadline
from dnpipefs.log.reader import Message, Reader
from dnpipefs.log.session import SessionKeeper
from dnpipefs.log.views import LiveView
from dnpipefs.metrics import Deliveries

logger: Final = logging.getLogger(__name__)

STOCK_MESSAGES: Final = 10_000
"""Messages that a host holds ahead of its readers, at most."""
AHEAD_MESSAGES: Final = 16
"""How many messages a host claims before they come, at most: they wait for its session's end if it dies."""
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
        counted: Deliveries,
        *,
        op_timeout: float,
    ) -> None:
        self.keys: Final = keys
        self.users = 0
        self.scope: Final = trio.CancelScope()
        self.failure: DnpError | None = None
        """Set once: the group or its topic was deleted."""
        self.ended: Final = trio.Event()
        """Nothing of it is left."""
        self._shown: Final = keys.name.decode(errors="replace")
        self.logger: Final = logging.LoggerAdapter(logger, {"topic": keys.topic, "group": keys.name})
        self._sessions: Final = sessions
        self._reader: Final = reader
        self._live: Final = live
        self._config: Final = config
        self._bury: Final = bury
        self._op_timeout: Final = op_timeout
        self._feed: Final = Feed(reader)
        self._coming: Final = Feed(reader)
        """For what is claimed ahead."""
        self._session: SessionId | None = None
        self._known: Known | None = None
        """None when it has to be read (again)."""
        self._news: dict[bytes, etcd.KeyValue] = {}
        """What watches have brought since the records were read, by key."""
        self._stale = False
        """A watch may have missed something."""
        self._backoff = Backoff()
        self._unsettled = False
        """A change may still be applied: another one has to come through before all is known."""
        self._fenced = True
        """No change can come late that was planned when this member had no record yet."""
        self._mine: Final = Holdings(counted, trio.current_time())
        self._lag = 0
        self._loading = False
        """A task moves what has come from ahead to the stock."""
        self._waiting = 0
        self._ready: Final = trio.lowlevel.ParkingLot()
        """Readers that wait for a message."""
        self._work: Final = trio.lowlevel.ParkingLot()
        """The task that makes changes, when it has nothing to do."""
        self._stirred = False
        self._rounds: Final = Rounds(self._check, self.stir)

    # For readers

    @property
    def ending(self) -> bool:
        """Whether it serves nobody any more."""
        return self.failure is not None or self.scope.deadline <= trio.current_time()

    @property
    def readable(self) -> bool:
        """Whether a read would return at once."""
        failure = self.failure or self._live.failure or self._rounds.claim_refused
        return self._served or failure is not None

    @property
    def _served(self) -> bool:
        """Whether the stock has a message for a reader: what was claimed before a reset is none."""
        return self._live.failure is None and self._mine.serves(self._live.view)

    @property
    def lag(self) -> int:
        """How many messages wait for somebody, or are held here, as far as this host knows."""
        known, view = self._known, self._live.view
        if known is not None and view is not None:  # else a change is under way
            self._lag = backlog(known.records.current(), view.first_message, view.messages)
        return self._lag

    async def over(self) -> None:
        """Wait until nothing of it is left. Raises OutOfSpace when etcd has no room for what is to be put."""
        await self._rounds.until_over(self.ended)

    async def confirm(self) -> None:
        """See the resets that have returned, to hand out nothing of before. Raises TopicGone, TimedOut."""
        await self._reader.confirm()

    async def take(self) -> Delivery:
        """Wait for a message and hand it out.

        Raises TopicGone when there is none to come any more, OutOfSpace when there is one that etcd has no
        room to claim.
        """
        refused = self._rounds.refused
        while not self._served:
            self._check()
            self._rounds.check_room(refused)
            await self._wait()
        return self._hand_out()

    async def until_readable(self) -> None:
        """Wait until a read would return at once, or would fail."""
        while not self.readable:
            await self._wait()
        self._ready.unpark()  # it was woken in the place of a reader, perhaps

    async def _wait(self) -> None:
        """Wait as a reader does."""
        self._mine.nothing_to_take(trio.current_time())
        self._waiting += 1
        self.stir()
        try:
            await self._ready.park()
        finally:
            self._waiting -= 1
            if len(self._mine.ahead) > self._waiting:
                self.stir()

    async def take_now(self) -> Delivery | None:
        """Hand out a message if the group has one that nobody has, anywhere.

        Raises TopicGone, TimedOut; OutOfSpace as `take`.
        """
        await self.look()
        self._check()
        return self._hand_out() if self._served else None

    async def look(self) -> None:
        """Have a message in stock if the group has one that nobody has, anywhere. Raises as `take_now`."""
        if not self._served:
            self._mine.nothing_to_take(trio.current_time())
            with deadline(self._op_timeout):
                await self._rounds.until_empty(unless=lambda: self._served)

    def take_more(self) -> Delivery | None:
        """Hand out another message if there is one in stock."""
        return self._hand_out() if self._served else None

    def acknowledge(self, delivery: Delivery) -> bool:
        """Take a message as done; False if it is not this reader's any more."""
        held = self._mine.acknowledge(delivery)
        if held:
            self.stir()
        return held

    def give_back(self, delivery: Delivery, *, delivered: bool = True) -> bool:
        """Let another reader have a message; False if it is not this reader's any more."""
        held = self._mine.give_back(delivery, delivered=delivered)
        if held:
            self.stir()
        return held

    @property
    def lost(self) -> int:
        """How many acknowledgements came to nothing, as far as this host knows."""
        return self._mine.lost

    async def settled(self) -> None:
        """Wait until what was acknowledged and given back is so in etcd.

        Raises TopicGone, TimedOut; OutOfSpace when etcd has no room for it.
        """
        await self._settled(lambda: False)

    async def quiet(self) -> None:
        """Likewise, and until no dead letter is under way."""
        await self._settled(lambda: bool(self._mine.buried))

    async def _settled(self, busy: Callable[[], bool]) -> None:
        rounds = self._rounds
        wanted = rounds.looks + 2  # what comes meanwhile may never end
        with deadline(self._op_timeout):
            await rounds.until(lambda: not busy() and (rounds.looks >= wanted or not self._mine.to_settle))

    async def rewind_to(self, message: int, generation: int) -> None:
        """Begin again at the *message* of that number; all that is in hand is void.

        Raises NotFound if the group is gone, or the topic was reset since *generation*.
        """
        with deadline(self._op_timeout):
            await self.keys.rewind_to(await self._sessions.get(), message, generation)
            # The next read on this host must not get what was in stock: nor what a change claims whose
            # answer is on its way, which may come before the watch tells of the rewind.
            self._stale = True
            wanted = self._rounds.looks + 2  # not empty ones: there may always be something to claim
            await self._rounds.until(lambda: self._rounds.looks >= wanted)

    async def grown(self) -> None:
        """Take in that the topic has grown, or was trimmed or reset."""
        await self._sessions.wait_healthy()
        try:
            await self._load()
        except (*TRANSIENT, TimedOut) as error:
            self.logger.info("group %s: what came is not read yet: %s", self._shown, error)
        self.stir()

    def watched(self, kv: etcd.KeyValue) -> None:
        """Take in what a watch has brought."""
        self._news[kv.key] = kv  # what a read or change under way returns may be older
        known = self._known
        if known is not None:
            self._known = moved(known, kv, self.keys)
        if known is None or self._known is not known:  # else it is what this member has put
            self.stir()

    def lost_sight(self) -> None:
        """Take in that a watch has missed something."""
        self._stale = True
        self.stir()

    def stir(self) -> None:
        """Tell the task that there may be something to do."""
        self._stirred = True
        self._work.unpark()

    def end(self) -> None:
        """Tell that nothing of it is left."""
        self.ended.set()
        self._rounds.tell()

    def fail(self, error: DnpError) -> None:
        """End it: the group or its topic is gone."""
        self.failure = self.failure or error
        self._mine.return_all()
        self.scope.cancel()
        self._ready.unpark_all()
        self._rounds.tell()

    def _check(self) -> None:
        if (failure := self.failure or self._live.failure) is not None:
            raise failure

    def _hand_out(self) -> Delivery:
        now = trio.current_time()
        delivery = self._mine.hand_out(now)
        timeout_ns = self._config().visibility_timeout_ns
        delivery.deadline = now + timeout_ns / 1e9 if timeout_ns is not None else float("inf")
        if timeout_ns is not None or len(self._mine.stock) * 2 < self._mine.taken.per_second * CHUNK_S:
            self.stir()
        return delivery

    def buried(self, delivery: Delivery) -> None:
        """Tell that a dead letter is where it belongs, or back in the group."""
        self._mine.buried.discard(delivery)
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
        while self.failure is None:
            await self._until_stirred()
            try:
                await self._change()
                self._backoff = Backoff()
            except (*TRANSIENT, TimedOut) as error:
                self._not_through(error)
                if isinstance(error, etcd.SpaceExceeded):
                    self._refuse(error)
                await self._backoff.wait()
            except DnpError as error:
                if not isinstance(error, TopicGone):
                    self.logger.warning("group %s ends: %s", self._shown, error)
                self.fail(error)

    async def _until_stirred(self) -> None:
        if not self._stirred:
            wait_s = PATIENCE_S if self._waiting else STOCK_S if self._mine.stock else float("inf")
            if self._unwanted():
                wait_s = AHEAD_S
            first = min((delivery.deadline for delivery in self._mine.in_hand.values()), default=float("inf"))
            with trio.move_on_after(min(wait_s, max(0.0, first - trio.current_time()))):
                await self._work.park()
        if not (self._urgent() or self._unsettled) and self._mine.to_settle:
            with trio.move_on_after(GATHER_S):
                while not self._urgent():
                    await self._work.park()
        self._stirred = False

    def _urgent(self) -> bool:
        """Tell whether somebody waits for a change."""
        return bool(self._rounds.asked or self._rounds.hurried or self._unserved > len(self._mine.ahead))

    @property
    def _unserved(self) -> int:
        """How many readers wait that the stock does not serve."""
        return max(0, self._waiting - len(self._mine.stock))

    def _unwanted(self) -> int:
        """Return how many of what was claimed ahead no reader waits for."""
        return max(0, len(self._mine.ahead) - self._unserved)

    async def _change(self) -> None:
        """Make one change if there is any to be made."""
        asked = self._rounds.asked
        session = await self._sessions.get(unless_full=True)
        if session != self._session:
            self._session, self._known = session, None
            self._mine.drop_all()
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
        if known.records.generation != view.generation:
            # Either knows of a reset before the other does; afterwards the view does. Else what is of a new
            # generation would be taken for void, or claimed for one that has ended.
            view = await self._reader.confirm()
            known = known.of(view.generation)
            if self._known is not None:
                self._known = self._known.of(view.generation)
        before = known.records.current()
        if before.cursor.term != self._mine.term:
            self._mine.drop_void(before)
        await self._load()
        self._mine.expire(trio.current_time(), waiting=self._waiting, unwanted=self._unwanted())
        done, back = self._mine.done[:], self._mine.back[: before.room]
        settled = settle(before, done, back)
        after = trim(settled, view.first_message)
        trimmed = after is not settled
        claimed, after = await self._claim(after, view)
        left = available(after, view.first_message, view.messages)
        ahead, after = ([], after) if left else self._claim_ahead(after, view, len(claimed))
        self._rounds.left = bool(claimed or left)
        if not (done or back or claimed or ahead or trimmed or self._unsettled):
            self._rounds.end(empty=not self._rounds.left)
            return
        if not await self._put(session, replace(known, records=before), after):
            self.stir()
            return
        self._mine.settled(len(done), len(back))
        self._mine.add_ahead(ahead)
        self._stock_up([Delivery.of(after.cursor.term, *each) for each in claimed])
        if ahead or self._mine.back or (claimed and self._waiting > len(self._mine.stock)):
            # Some of it may have come meanwhile; there may be room for more to go back; after large messages,
            # or ones for the dead letters, there is more for the others, perhaps.
            self.stir()
        self._rounds.end(empty=not self._rounds.left)

    async def _put(self, session: SessionId, before: Known, after: Records) -> bool:
        """Put a change; False if it did not come through."""
        self._known = None  # until the answer is here
        unsettled, self._unsettled = self._unsettled, True
        try:
            timeout = self._backoff.answer_s
            done, known = await self.keys.change(session, before, after, timeout=timeout)
        except (etcd.Ambiguous, trio.Cancelled):
            self._fenced = self._fenced and before.held_at > 0
            raise
        except etcd.EtcdError:
            self._unsettled = unsettled
            raise
        # If not, somebody was faster, and an earlier change of ours can still come late.
        self._unsettled = unsettled and not done
        if known is None or not (done or (known.alive and known.held_at == before.held_at)):
            return False  # it has to be looked at with care
        for kv in self._news.values():
            known = moved(known, kv, self.keys)
        self._known = known
        return done

    async def _claim(
        self, records: Records, view: TopicView
    ) -> tuple[list[tuple[int, Message, int]], Records]:
        """Claim what is there: return number, message and how often it was delivered, and the records."""
        if view.generation == NO_GENERATION:
            return [], records
        # Exact counts of deliveries need claims that are delivered. Who has nothing in hand may have gone.
        waiting, exact = self._waiting + self._rounds.asked, self._config().max_deliveries is not None
        ahead = not exact and (waiting or self._mine.in_hand)
        first, end = view.first_message, view.messages  # of one moment: the view lives
        wanted = share(
            available(records, first, end),
            waiting=waiting,
            in_stock=len(self._mine.stock),
            per_second=self._mine.taken.measure(trio.current_time()) if ahead else 0.0,
            bound=0 if records.scattered else STOCK_MESSAGES,
        )
        return await self._feed.claim(records, first, end, wanted)

    def _claim_ahead(self, records: Records, view: TopicView, claimed: int) -> tuple[list[Stretch], Records]:
        """Claim what readers wait for, when all that is there is claimed: return that, and the records."""
        waiting = min(self._unserved - claimed, AHEAD_MESSAGES) - len(self._mine.ahead)
        # Exact counts of deliveries: a host that dies would have had what nobody has seen.
        exact = self._config().max_deliveries is not None
        if waiting <= 0 or exact or view.generation == NO_GENERATION or records.scattered:
            return [], records
        records, ahead = claim_to_come(records, waiting, view.first_message)
        self._mine.ahead_wanted_at = trio.current_time()
        return ahead, records

    async def _load(self) -> None:
        """Stock what was claimed ahead and has come.

        Not if the session may have ended, after a pause of this host: others have it then.
        """
        if self._loading:
            return  # that task goes on as long as there is more
        mine, sessions, self._loading = self._mine, self._sessions, True
        try:
            while mine.ahead and sessions.healthy and self._session == sessions.current():
                view, term = await self._reader.view(), mine.term
                number, times = next(iter(mine.ahead.items()))
                if view.generation != term.generation or number >= view.messages:
                    break
                found = await self._coming.take(term.generation, number, number + 1, count=1, size=1)
                if mine.term != term or number not in mine.ahead:
                    continue  # void meanwhile
                if found:
                    [(_, message)] = found
                    del mine.ahead[number]
                    self._stock_up([Delivery.of(term, number, message, times)])
                elif number < view.first_message:
                    del mine.ahead[number]
                    mine.done.append(Piece(number, number + 1))  # retention was faster than this host
                else:
                    break  # it is counted and not there, which fsck tells; looking on would never end
        finally:
            self._loading = False

    def _stock_up(self, claimed: list[Delivery]) -> None:
        limit = self._config().max_deliveries
        for delivery in claimed:
            if limit is not None and delivery.deliveries >= limit:
                self._mine.bury(delivery)
                self._bury(delivery)
            else:
                self._mine.stock.append(delivery)
        if claimed:
            self._mine.stocked_at = trio.current_time()
            self._ready.unpark(count=len(self._mine.stock))
            self._rounds.tell()  # who asks whether there is something now has an answer

    async def _adopt(self, session: SessionId) -> Known:
        """Read the records, and make what is known here agree with them."""
        self._news.clear()
        known = await self.keys.read(session)
        if known is None:
            raise TopicGone("the group was deleted")
        if known.records.mixed:
            raise CorruptData(f"the records of group {self._shown} do not fit together: run dnpipefs fsck")
        held = known.records.current().held
        for kv in self._news.values():
            known = moved(known, kv, self.keys)
        self._known = known
        if not known.alive:
            self._mine.drop_all()  # what others have taken over is no more held, and not acknowledged
            return known
        self._mine.drop_void(known.records.current())
        if held.term != known.records.current().held.term:
            return known
        for start, end, _ in reconcile(held, self._mine.pieces()):
            self._mine.back.append(GivenBack(Piece(start, end), delivered=False))
        return known

    def _not_through(self, error: DnpError) -> None:
        self.logger.info("group %s: a change did not come through: %s", self._shown, error)
        self._known = None
        self.stir()

    def _refuse(self, error: etcd.SpaceExceeded) -> None:
        """Take in that etcd has no room for a change. Who waits for what is to come waits on."""
        if self._sessions.current() is None:
            self._rounds.left = True  # nobody can tell
        self._rounds.refuse(error)
        if self._rounds.left:
            self._ready.unpark_all()

    async def _leave(self) -> None:
        """Put what is acknowledged and give the rest back: nobody takes it over while the session lives."""
        while (session := self._session) is not None and session == self._sessions.current():
            try:
                if await self._leave_once(session):
                    return
            except TRANSIENT as error:
                self.logger.info("group %s is not left yet: %s", self._shown, error)
                if isinstance(error, etcd.SpaceExceeded):
                    self._refuse(error)
                await self._backoff.wait()
            except DnpError as error:
                if self.failure is None:
                    self.logger.info("what was not acknowledged in time is delivered again: %s", error)
                return

    async def _leave_once(self, session: SessionId) -> bool:
        mine = self._mine
        mine.return_all()
        known: Known | None = await self._adopt(session)
        assert known is not None  # noqa: S101 - or it has raised
        if not known.alive or known.records.mixed:
            return not known.alive
        if mine.to_settle or self._unsettled:
            before = known.records.current()
            after = settle(before, mine.done, mine.back)
            if not await self._put(session, replace(known, records=before), after):
                return False
            mine.settled(len(mine.done), len(mine.back))
            mine.drop_all()
            known = self._known
        # A change that comes late and was planned without a record must find one.
        if known is not None and known.held_at and self._fenced:
            await self.keys.leave(session, known)
        return True
