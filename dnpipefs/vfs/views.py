"""Views of topics, ``topic@`` and ``topic@group``: which there are, and what an open one does.

A view exists wherever its topic exists, and is listed nowhere. Its id is this host's own: above all ids of
topics, and the same for the same view as long as it is remembered.

==========================  =====================================  ======================================
an open view                ``topic@``                             ``topic@group``
==========================  =====================================  ======================================
read                        waits for what is pushed after the     waits for a message for this reader;
                            open                                   acknowledges those before the offset
read, not to wait           WouldBlock                             WouldBlock, confirmed with etcd
write                       AccessDenied                           AccessDenied
last close                                                         acknowledges or gives back (`ack`)
==========================  =====================================  ======================================
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from typing import Final, NamedTuple

import trio

from dnpipefs.core.config import Ack, TopicConfig
from dnpipefs.core.names import MAX_FILE_ID, START, VIEW_SEPARATOR, FileId, Offset
from dnpipefs.errors import AccessDenied, InvalidArgument, TopicGone, WouldBlock
from dnpipefs.groups import Delivery, Groups, Member
from dnpipefs.log.log import Log
from dnpipefs.log.reader import Reader
from dnpipefs.log.views import LiveView
from dnpipefs.vfs.handles import SPLIT_SIZE

VIEWS_LIMIT: Final = 100_000
"""Views whose ids are remembered; of those beyond, the one looked up longest ago has to be looked up."""
_FIRST_ID: Final = 2 * MAX_FILE_ID
"""Aliases of topics (`fuse/nodes.py`) lie between the topics and the views."""


class View(NamedTuple):
    """A view of a topic."""

    topic: FileId
    group: bytes | None
    """None: a subscription, ``topic@``."""


def parse_view(name: bytes) -> tuple[bytes, bytes | None] | None:
    """Return the topic's name and the group's that a file name means; None if it is no view's."""
    topic, at, group = name.partition(VIEW_SEPARATOR)
    if not at or not topic or VIEW_SEPARATOR in group:
        return None
    return topic, group or None


class ViewTable:
    """The views that somebody on this host has looked up."""

    def __init__(self) -> None:
        self._views: OrderedDict[FileId, View] = OrderedDict()

    def id_of(self, view: View) -> FileId:
        """Return a view's id, and remember it."""
        text = b"%x@%b" % (view.topic, b"" if view.group is None else b"@" + view.group)
        digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        number = FileId(_FIRST_ID + digest % _FIRST_ID)
        while self._views.get(number, view) != view:
            number = FileId(number + 1)
        self._views[number] = view
        self._views.move_to_end(number)
        if len(self._views) > VIEWS_LIMIT:
            self._views.popitem(last=False)
        return number

    def get(self, file: FileId) -> View | None:
        """Return the view of an id; None if it is a topic's or directory's. Raises TopicGone if forgotten."""
        if file < _FIRST_ID:
            return None
        found = self._views.get(file)
        if found is None:
            raise TopicGone("the view was not used for long; open it again")
        return found


def _short(size: int) -> int:
    """Return how much may answer a read of *size* so that the kernel takes it for the end of a read(2).

    A read(2) of more than 1 MiB comes in pieces, the next one as soon as one was filled: it would wait for
    more while the process has not got what there was yet, and tell that it has.
    """
    return size - 1 if size > SPLIT_SIZE else size


class SubscriptionHandle:
    """One open(2) of ``topic@``."""

    blocking: Final = True
    in_hand: Final = False
    size: Final = 0

    def __init__(self, log: Log, reader: Reader, live: LiveView, *, wait: bool) -> None:
        self._log: Final = log
        self._reader: Final = reader
        self._live: Final = live
        self._wait: Final = wait
        view = live.view
        assert view is not None  # noqa: S101 - the reader has confirmed it
        self._generation = view.generation
        self._base: int = view.end
        """Offset in the topic of the handle's offset 0."""
        self._read_to: int = view.end
        """Where the last read ended in the topic."""

    @property
    def readable(self) -> bool:
        """Whether a read at the end of what was read would return at once."""
        view = self._live.view
        if self._live.failure is not None or view is None:
            return self._live.failure is not None
        return view.end > (self._read_to if view.generation == self._generation else START)

    async def until_readable(self) -> None:
        """Wait until `readable`. Raises TopicGone."""
        await self._live.wait(lambda _: self.readable)

    async def look(self) -> None:
        """Let `readable` tell of all that had been pushed before the call. Raises TopicGone, TimedOut."""
        await self._reader.confirm()

    async def read(self, offset: Offset, size: int) -> bytes:
        """Return bytes that were pushed since the open; wait for some. Raises TopicGone, WouldBlock."""
        while True:
            view = await self._reader.view()
            if view.generation != self._generation:
                # What was pushed after the reset is new to everybody.
                self._generation, self._base = view.generation, START - offset
                self._read_to = START
            start = Offset(max(self._base + offset, START))
            if view.end > start:
                span = await self._reader.read(start, _short(size))
                if span.data and (await self._reader.view()).generation == self._generation:
                    self._base += span.offset - start  # retention was faster
                    self._read_to = span.offset + len(span.data)
                    return span.data
                continue
            if not self._wait:
                before = view.end, view.generation
                view = await self._reader.confirm()
                if (view.end, view.generation) == before:
                    raise WouldBlock("nothing was pushed since the last read")
                continue
            await self._reader.wait_beyond(start, self._generation)

    async def write(self, offset: int, data: bytes) -> int:
        """Refuse."""
        raise AccessDenied("a subscription cannot be written to: write to the topic")

    async def flush(self) -> None:
        """Nothing is held."""

    async def close(self, *, well: bool) -> None:
        """Let go of the topic."""
        self._log.close_reader(self._live)


class _Part(NamedTuple):
    """A message that was handed out on a handle, and where it stands in the handle's offsets."""

    start: int
    delivery: Delivery

    @property
    def end(self) -> int:
        return self.start + len(self.delivery.data)


class GroupHandle:
    """One open(2) of ``topic@group`` for reading.

    The handle's offsets count the bytes that were read from it, not those of the topic: what is delivered
    again comes out of order.
    """

    blocking: Final = True
    size: Final = 0

    def __init__(self, groups: Groups, member: Member, config: TopicConfig, *, wait: bool) -> None:
        self._groups: Final = groups
        self._member: Final = member
        self._config: Final = config
        self._wait: Final = wait
        self._parts: deque[_Part] = deque()
        """What is in hand, in the order of the handle's offsets."""
        self._end = 0
        self._read_to = 0
        """Where the last read ended."""
        self._lost: int | None = None
        """Of what comes at most once, when its acknowledgement may not be in etcd yet: how many had been lost
        before."""
        self._lock: Final = trio.Lock()

    @property
    def in_hand(self) -> bool:
        """Whether it makes a difference how the last close comes about."""
        return bool(self._parts) and self._config.ack is Ack.EXIT_STATUS

    @property
    def readable(self) -> bool:
        """Whether a read at the end of what was read would return at once."""
        in_hand = bool(self._parts) and self._read_to < self._parts[-1].end
        return in_hand or self._member.readable

    async def until_readable(self) -> None:
        """Wait until `readable`. Raises TopicGone."""
        await self._member.until_readable()

    async def look(self) -> None:
        """Claim a message if there is one for this reader, which makes it `readable`. Raises as `read`."""
        if not self.readable:
            await self._member.look()

    async def read(self, offset: Offset, size: int) -> bytes:
        """Acknowledge what ends at or before *offset*, and return a message, or the rest of one.

        Waits for one. Raises TopicGone, WouldBlock, TimedOut; InvalidArgument for an offset of what is
        acknowledged already, which is not there any more.
        """
        async with self._lock:  # two threads that read at once: one after the other
            if offset < (self._parts[0].start if self._parts else self._end):
                raise InvalidArgument("what was at that offset is acknowledged already")
            self._acknowledge(offset)
            data = await self._read(offset, size)
            while not await self._confirmed():
                data = await self._read(offset, size)
            self._read_to = offset + len(data)
            return data

    async def write(self, offset: int, data: bytes) -> int:
        """Refuse."""
        raise AccessDenied("a consumer group cannot be written to: write to the topic")

    async def flush(self) -> None:
        """Nothing is held that could be written."""

    async def close(self, *, well: bool) -> None:
        """Acknowledge what is in hand if the reader ended *well*, else give it back."""
        done = well and self._config.ack is Ack.EXIT_STATUS
        for part in self._parts:
            if done:
                self._member.acknowledge(part.delivery)
            else:
                self._member.give_back(part.delivery)
        self._parts.clear()
        self._groups.close(self._member)

    async def _read(self, offset: int, size: int) -> bytes:
        if self._parts and self._parts[0].start <= offset:
            return self._in_hand(offset, size)
        first = await self._take()
        if self._config.ack is Ack.DELIVERY:
            self._lost = self._member.lost
        self._end = max(self._end, offset)
        self._add(first)
        data = self._in_hand(offset, size)
        more, room = self._config.batch - 1, _short(size)
        while more and len(data) < room:
            delivery = self._member.take_more()
            if delivery is None:
                break
            self._add(delivery)
            data += delivery.data[: room - len(data)]
            more -= 1
        return data

    async def _take(self) -> Delivery:
        if self._wait:
            return await self._member.take()
        delivery = await self._member.take_now()
        if delivery is None:
            raise WouldBlock("there is no message for this reader now")
        return delivery

    def _add(self, delivery: Delivery) -> None:
        self._parts.append(_Part(self._end, delivery))
        self._end += len(delivery.data)
        if self._config.ack is Ack.DELIVERY:
            self._member.acknowledge(delivery)

    async def _confirmed(self) -> bool:
        """Wait until what comes at most once is acknowledged in etcd; False if it is somebody else's now."""
        if self._lost is None:
            return True
        await self._member.settled()
        lost, self._lost = self._lost, None
        if lost == self._member.lost:
            return True
        self._end = self._parts[0].start
        self._parts.clear()
        return False

    def _acknowledge(self, offset: int) -> None:
        while self._parts and self._parts[0].end <= offset:
            self._member.acknowledge(self._parts.popleft().delivery)

    def _in_hand(self, offset: int, size: int) -> bytes:
        part = next(part for part in self._parts if part.start <= offset < part.end)
        if part.end <= offset + size:  # else the rest belongs to the same read(2), and acknowledges nothing
            size = _short(size)
        return part.delivery.data[offset - part.start : offset - part.start + size]


class RewindHandle:
    """One open(2) of a view that does not read: truncate(1) opens so."""

    blocking: Final = False
    in_hand: Final = False
    readable: Final = False
    size: Final = 0

    async def until_readable(self) -> None:
        """Return: a read fails at once."""

    async def look(self) -> None:
        """There is nothing to read."""

    async def read(self, offset: Offset, size: int) -> bytes:
        """Refuse."""
        raise AccessDenied("this handle was not opened for reading")

    async def write(self, offset: int, data: bytes) -> int:
        """Refuse."""
        raise AccessDenied("a view cannot be written to: write to the topic")

    async def flush(self) -> None:
        """Nothing is held."""

    async def close(self, *, well: bool) -> None:
        """Nothing is held."""


ViewHandle = SubscriptionHandle | GroupHandle | RewindHandle
