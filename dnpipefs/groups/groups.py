"""The consumer groups that this host takes part in, and what can be done to any of them.

Tasks, in the nursery of `Groups.run`: of each member the one that makes its changes (`Member.run`), one that
follows its topic, two that watch its shared records, and one that looks for hosts that are gone; one
watches all sessions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

import trio

from dnpipefs import etcd
from dnpipefs.core.config import Start, TopicConfig
from dnpipefs.core.group import Cursor, DeadLetter, Held, Returned, Term
from dnpipefs.core.group_records import decode_cursor, decode_held, decode_returned
from dnpipefs.core.intervals import Stretches
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Offset, Revision, SessionId
from dnpipefs.core.places import Place, nanoseconds
from dnpipefs.core.view import TopicView
from dnpipefs.errors import CorruptData, DnpError, NotFound, TopicGone
from dnpipefs.groups.delivery import Delivery
from dnpipefs.groups.member import PATIENCE_S, Member
from dnpipefs.groups.records import GroupKeys, Redriven
from dnpipefs.log.failures import TRANSIENT, Backoff, deadline, timed_out
from dnpipefs.log.log import Log
from dnpipefs.log.reader import Reader
from dnpipefs.log.views import LiveView
from dnpipefs.metrics import Deliveries

logger: Final = logging.getLogger(__name__)

LINGER_S: Final = 5.0
"""How long a member outlives its last reader: a shell loop that opens it again and again pays for one."""

Bury = Callable[[FileId, bytes, Delivery], Awaitable[None]]
"""Puts a message that was delivered too often where dead letters go; then it is taken as done."""


SURVEY_KEYS: Final = 2_000
"""Keys of groups read at once."""

_Parts = dict[bytes, etcd.KeyValue]
"""A group's keys by what they are, such as ``cursor``."""


class Extent(Protocol):
    """Which messages a topic has."""

    @property
    def generation(self) -> Revision:
        """The topic's; NO_GENERATION if it has none."""

    @property
    def first_message(self) -> int:
        """How many messages have been removed by retention."""

    @property
    def messages(self) -> int:
        """How many there are, with the removed ones."""


class GroupState(NamedTuple):
    """Where a group stands, in messages."""

    name: bytes
    message: int
    """How many messages come before what is claimed next, retained or not."""
    lag: int
    """Messages that are not acknowledged: those nobody has had, those in somebody's hand, those returned."""
    pending: int
    """Messages that members have claimed and not acknowledged."""
    returned: int
    """Messages that came back and wait for another reader."""
    redeliveries: int
    """Messages that were claimed again after a reader had had them, since the group began or was rewound."""
    members: tuple[SessionId, ...]
    """Sessions of the hosts that have claimed something."""


class GroupFacts(NamedTuple):
    """What is known of a group: its state, and the offset that goes with it."""

    name: bytes
    offset: Offset
    """What lies before it has been claimed."""
    message: int
    lag: int
    pending: int
    returned: int
    redeliveries: int
    members: tuple[SessionId, ...]

    def described(self) -> dict[str, Any]:
        """Return it as JSON takes it, for programs."""
        return {
            "group": os.fsdecode(self.name),
            "lag": self.lag,
            "pending": self.pending,
            "returned": self.returned,
            "redeliveries": self.redeliveries,
            "members": [f"{session:x}" for session in self.members],
            "offset": self.offset,
            "message": self.message,
        }


class Groups:
    """All groups, from this host."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        log: Log,
        config_of: Callable[[FileId], TopicConfig],
        dead_letter: Bury,
        *,
        op_timeout: float,
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._log: Final = log
        self._config_of: Final = config_of
        self._dead_letter: Final = dead_letter
        self._op_timeout: Final = op_timeout
        self._members: dict[tuple[FileId, bytes], Member] = {}
        self.counted: Final = Deliveries()
        self._opening: Final = WeakValueDictionary[tuple[FileId, bytes], trio.Lock]()
        """Groups that somebody opens: one that takes long keeps no other waiting."""
        self._nursery: trio.Nursery | None = None
        self._gone = trio.lowlevel.ParkingLot()
        """Who looks for hosts that are gone."""

    async def open(self, topic: FileId, name: bytes) -> Member:
        """Take part in a group, which begins to exist if there was none; pair it with `close`.

        Raises TopicGone, TimedOut, OutOfSpace.
        """
        with deadline(self._op_timeout):  # of all of it: each part would wait as long, and each before it
            opening = self._opening.setdefault((topic, name), trio.Lock())
            async with opening:
                member = self._members.get((topic, name))
                if member is not None and member.ending:
                    await member.over()  # both would keep the one record of this session
                    member = None
                begins = member is None
                if member is None:
                    member = await self._begin(topic, name)
                member.users += 1
                member.scope.deadline = float("inf")
            if not begins:
                try:
                    await member.confirm()
                except BaseException:  # whatever it is, the caller has nothing to close
                    self.close(member)
                    raise
            return member

    def close(self, member: Member) -> None:
        """End what `open` began."""
        member.users -= 1
        if not member.users:
            member.scope.deadline = trio.current_time() + LINGER_S
            member.stir()

    @asynccontextmanager
    async def reading(self, topic: FileId, name: bytes) -> AsyncIterator[Member]:
        """Take part in a group until the block ends."""
        member = await self.open(topic, name)
        try:
            yield member
        finally:
            self.close(member)

    async def rewind(self, topic: FileId, name: bytes, place: Place) -> None:
        """Let a group go on from the first message at or behind a *place*; create it if there is none.

        What its readers have in hand is void: it comes again if it lies there. Raises TopicGone, TimedOut,
        OutOfSpace.
        """
        async with self.reading(topic, name) as member, self._log.reader(topic) as reader:
            view = await reader.view()
            generation, since_ns = view.generation, 0
            if isinstance(place, datetime):
                since_ns = nanoseconds(place)
                start = view.since(since_ns)
            elif isinstance(place, int):
                start = Offset(place)
            else:
                start = view.end if place == "last" else view.first
            _, message = await reader.find(start, since_ns)
            await member.rewind_to(message, generation)

    async def redrive(self, topic: FileId, name: bytes) -> Redriven:
        """Give a group its dead letters again, as if they had never been delivered.

        What it does not get stays among the dead letters. Raises NotFound, TopicGone, TimedOut, OutOfSpace.
        """
        keys = GroupKeys(self._client, self._keys, topic, name)
        async with self.reading(topic, name) as member, self._log.reader(topic) as reader:
            first = (await reader.view()).first_message
            with deadline(self._op_timeout):
                found = await keys.redrive(first)
            member.lost_sight()
        return found

    async def delete(self, topic: FileId, name: bytes) -> None:
        """Delete a group; its readers get TopicGone. Raises NotFound, TimedOut."""
        with deadline(self._op_timeout):
            backoff = Backoff()
            while True:
                try:
                    found = await GroupKeys(self._client, self._keys, topic, name).delete()
                    break
                except TRANSIENT:
                    await backoff.wait()  # done twice it does no harm, but the second one finds nothing
        if not found:
            raise NotFound("there is no such group: it begins to exist when somebody reads from it")

    def users(self, topic: FileId, name: bytes) -> int:
        """Return how many on this host have a group open."""
        member = self._members.get((topic, name))
        return member.users if member is not None else 0

    def lags(self) -> Iterator[int]:
        """Yield how far each group that this host takes part in is behind, as far as this host knows it."""
        return (member.lag for member in self._members.values())

    async def names(self, topic: FileId) -> list[bytes]:
        """Return the names of all groups of a topic, sorted. Raises TimedOut."""
        groups = self._keys.groups(topic)
        try:
            found = await self._client.range(
                groups.start, groups.end, keys_only=True, timeout=self._op_timeout
            )
        except TRANSIENT as error:
            raise timed_out(self._op_timeout, error) from error
        return sorted(name for name, parts in self._by_group(topic, found.kvs).items() if b"cursor" in parts)

    async def facts(self, topic: FileId) -> list[GroupFacts]:
        """Return what is known of all groups of a topic, by name. Raises TopicGone, TimedOut."""
        groups = self._keys.groups(topic)
        async with self._log.reader(topic) as reader:
            view = await reader.view()
            result = await self._client.range(groups.start, groups.end, timeout=self._op_timeout)
            return [
                GroupFacts(state.name, await _offset_of(reader, state.message), *state[1:])
                for state in self._states(topic, result.kvs, view)
            ]

    async def survey(self, extents: Mapping[FileId, Extent]) -> dict[FileId, list[GroupState]]:
        """Return where all groups stand of those topics that have some, in few reads for all of them.

        Each is as its records say at some moment of the call. Raises EtcdError.
        """
        groups = self._keys.all_groups
        start = groups.start
        found: dict[FileId, list[etcd.KeyValue]] = {}
        more = True
        while more:
            page = await self._client.range(start, groups.end, limit=SURVEY_KEYS, timeout=self._op_timeout)
            for kv in page.kvs:
                with suppress(CorruptData):  # of no topic: fsck tells
                    topic = self._keys.parse_topic(groups, kv.key)
                    found.setdefault(topic, []).append(kv)
            more = page.more
            if more:
                start = page.kvs[-1].key + b"\0"
        return {
            topic: list(self._states(topic, kvs, extents[topic]))
            for topic, kvs in found.items()
            if topic in extents
        }

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the members of this host until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._watch_sessions)
            task_status.started()
            await trio.sleep_forever()

    def _states(self, topic: FileId, kvs: Iterable[etcd.KeyValue], extent: Extent) -> Iterator[GroupState]:
        """Yield where the groups of a topic stand, by name, whose keys these are."""
        for name, parts in sorted(self._by_group(topic, kvs).items()):
            if b"cursor" in parts:
                try:
                    yield self._state(name, parts, extent)
                except CorruptData as error:
                    logger.warning("a group is left out, run dnpipefs fsck: %s", error)

    def _by_group(self, topic: FileId, kvs: Iterable[etcd.KeyValue]) -> dict[bytes, _Parts]:
        found: dict[bytes, _Parts] = {}
        for kv in kvs:
            with suppress(CorruptData):  # of no group: fsck tells
                name, part = self._keys.parse_group(topic, kv.key)
                found.setdefault(name, {})[part] = kv
        return found

    def _state(self, name: bytes, parts: _Parts, extent: Extent) -> GroupState:
        cursor = decode_cursor(parts[b"cursor"].key, parts[b"cursor"].value)
        if cursor.term.generation != extent.generation:
            cursor = Cursor(Term(extent.generation))
        kv = parts.get(b"returned")
        returned = decode_returned(kv.key, kv.value) if kv is not None else Returned()
        held = {
            self._keys.parse_member(kv.key): decode_held(kv.key, kv.value)
            for part, kv in parts.items()
            if part.startswith(b"member/")
        }

        def there(record: Held | Returned) -> int:
            """Count what is retained or in a hand, not what was claimed before it was pushed."""
            stretches = record.stretches if record.term == cursor.term else Stretches()
            return sum([cut.end - cut.start for cut in stretches.within(0, extent.messages)])

        pending, came_back = sum([there(one) for one in held.values()]), there(returned)
        message = min(cursor.message, extent.messages)
        fresh = extent.messages - max(message, extent.first_message)
        lag = fresh + pending + came_back
        again = returned.redeliveries if returned.term == cursor.term else 0
        return GroupState(name, message, lag, pending, came_back, again, tuple(held))

    async def _begin(self, topic: FileId, name: bytes) -> Member:
        reader, live = await self._log.open_reader(topic)
        try:
            keys = GroupKeys(self._client, self._keys, topic, name)
            with deadline(self._op_timeout):
                await self._create(keys, reader)
            member = Member(
                keys,
                self._log.sessions,
                reader,
                live,
                lambda: self._config_of(topic),
                lambda delivery: self._bury(member, delivery),
                self.counted,
                op_timeout=self._op_timeout,
            )
        except BaseException:  # whatever it is, there is no member to close it
            self._log.close_reader(live)
            raise
        self._members[topic, name] = member
        assert self._nursery is not None  # noqa: S101 - `run` starts before anybody can ask
        self._nursery.start_soon(self._serve, member, live)
        return member

    async def _create(self, keys: GroupKeys, reader: Reader) -> None:
        backoff = Backoff()
        at_end = self._config_of(keys.topic).start is Start.LAST
        while True:
            try:
                if await keys.read(await self._log.sessions.get(unless_full=True)) is not None:
                    # Else who does not wait would miss what somebody has left just now.
                    with suppress(etcd.SpaceExceeded):  # what is there already can be read all the same
                        await keys.take_over()
                    return
                # The view anew: one that was reset meanwhile, or is deleted, would never do.
                if await keys.create(await reader.view(), at_end=at_end):
                    return
            except etcd.SpaceExceeded:
                raise
            except TRANSIENT as error:
                logger.info("a group is not created yet: %s", error)
            await backoff.wait()

    async def _serve(self, member: Member, live: LiveView) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for key in (member.keys.cursor, member.keys.returned):
                    await nursery.start(self._watch, member, key)
                nursery.start_soon(self._follow, member, live)
                nursery.start_soon(self._take_over, member)
                await member.run()
                nursery.cancel_scope.cancel()
        except Exception as error:  # a fault of ours in one group must not end the others
            member.logger.exception("group %s failed unexpectedly", member.keys.name.decode(errors="replace"))
            member.fail(error if isinstance(error, DnpError) else TopicGone("the group failed; see the log"))
        finally:
            self._log.close_reader(live)
            if member.failure is None:
                member.fail(TopicGone("this host does not take part in the group any more"))
            if self._members.get((member.keys.topic, member.keys.name)) is member:
                del self._members[member.keys.topic, member.keys.name]
            member.end()

    async def _watch(
        self, member: Member, key: bytes, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Tell a member how one of the group's records changes."""
        while True:
            try:
                async with self._client.watch(key) as watch:
                    member.lost_sight()
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    async for batch in watch:
                        for event in batch.events:
                            if event.kind is etcd.EventKind.PUT:
                                member.watched(event.kv)
                            elif key == member.keys.cursor:
                                member.fail(TopicGone("the group was deleted"))
            except etcd.Compacted:
                member.logger.info("what a group did was compacted before it was seen; looking again")
            except DnpError as error:  # what is stored cannot be understood, or may not be seen
                member.logger.warning("group %s ends: %s", member.keys.name.decode(errors="replace"), error)
                member.fail(error)
                task_status.started()
                return

    async def _follow(self, member: Member, live: LiveView) -> None:
        """Tell a member when its topic grows, is trimmed, reset or deleted."""

        def shown(view: TopicView) -> tuple[int, int, int]:
            return view.first_message, view.messages, view.generation

        try:
            while True:
                seen = shown(await live.wait(lambda _: True))
                await member.grown()
                await live.wait(lambda view, seen=seen: shown(view) != seen)  # type: ignore[misc]
        except DnpError as error:
            member.fail(error)

    async def _take_over(self, member: Member) -> None:
        """Return to the group what hosts hold that are gone, whenever one may be."""
        while True:
            try:
                if await member.keys.take_over():
                    member.lost_sight()
            except etcd.EtcdError as error:  # the next look comes, and other members look, too
                member.logger.info("hosts that are gone are not looked for: %s", error)
            with trio.move_on_after(PATIENCE_S):
                await self._gone.park()

    async def _watch_sessions(self) -> None:
        sessions, backoff = self._keys.sessions, Backoff()
        while True:
            try:
                async with self._client.watch(sessions.start, sessions.end) as watch:
                    self._gone.unpark_all()
                    backoff = Backoff()
                    async for batch in watch:
                        if any(event.kind is etcd.EventKind.DELETE for event in batch.events):
                            self._gone.unpark_all()
            except etcd.Compacted:
                continue
            except etcd.EtcdError as error:  # members look by themselves now and then
                logger.warning("the ends of hosts cannot be watched, trying again: %s", error)
                await backoff.wait()

    def _bury(self, member: Member, delivery: Delivery) -> None:
        assert self._nursery is not None  # noqa: S101 - members run in it
        member.users += 1  # it must not leave before what is in this hand is done or given back
        member.scope.deadline = float("inf")
        self._nursery.start_soon(self._bury_one, member, delivery)

    async def _bury_one(self, member: Member, delivery: Delivery) -> None:
        try:
            await self._put_to_dead_letters(member, delivery)
        finally:
            member.buried(delivery)
            self.close(member)

    async def _put_to_dead_letters(self, member: Member, delivery: Delivery) -> None:
        try:
            await self._dead_letter(member.keys.topic, member.keys.name, delivery)
        except Exception as error:  # a fault of ours in one message must not end all groups
            member.logger.warning(
                "a message at offset %d was delivered %d times, and cannot be put to the dead letters: %s",
                delivery.offset,
                delivery.deliveries,
                error if isinstance(error, DnpError) else repr(error),
                exc_info=None if isinstance(error, DnpError) else error,
            )
            await trio.sleep(1)
            member.give_back(delivery, delivered=False)
            return
        self.counted.dead += 1
        if not member.acknowledge(delivery):
            return  # somebody else has it by now, and nothing may be redriven that is in the group
        letter = DeadLetter(
            delivery.term,
            delivery.number,
            delivery.offset,
            delivery.deliveries,
            f"delivered {delivery.deliveries} times without acknowledgement",
        )
        try:
            with deadline(self._op_timeout):
                await member.settled()
                # Only now: what is remembered as dead can be given to the group again.
                await member.keys.remember_dead(letter)
        except DnpError as error:
            member.logger.warning("a dead letter cannot be redriven, what it was is not noted: %s", error)


async def _offset_of(reader: Reader, number: int) -> Offset:
    """Return where a message begins, or the end if it is not there yet, or what is retained if it is not."""
    messages, _ = await reader.numbered(number, 1)
    first = next(messages, None)
    if first is not None:
        return first[1].offset
    view = await reader.view()
    return view.first if number < view.first_message else view.end
