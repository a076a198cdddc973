"""A group's handle with a member that has what the test says: what answers a read, what acknowledges."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from dnpipefs.core.config import DEFAULTS, Ack
from dnpipefs.core.group import NO_TERM
from dnpipefs.core.names import Offset
from dnpipefs.errors import InvalidArgument, TimedOut, WouldBlock
from dnpipefs.groups import Delivery, Groups, Member
from dnpipefs.vfs.views import GroupHandle

MIB = 1 << 20


class StockedMember:
    """What a handle needs of a member that has some messages."""

    readable = False

    def __init__(self, *messages: bytes) -> None:
        self.stock = [
            Delivery(NO_TERM, number, Offset(0), data, 0, 0) for number, data in enumerate(messages)
        ]
        self.done: list[int] = []
        self.settled_to = 0
        """How many of these are in etcd."""
        self.fails: list[TimedOut] = []
        """What saying so meets."""
        self.lost = self.loses = 0
        """How often the session was lost, and is to be."""

    async def take_now(self) -> Delivery | None:
        return self.take_more()

    def take_more(self) -> Delivery | None:
        return self.stock.pop(0) if self.stock else None

    def acknowledge(self, delivery: Delivery) -> bool:
        if delivery.number in self.done:
            return False
        self.done.append(delivery.number)
        return True

    async def settled(self) -> None:
        self.settled_to = len(self.done)
        if self.fails:
            raise self.fails.pop()
        if self.loses:
            self.lost, self.loses = self.lost + 1, self.loses - 1


def opened(member: StockedMember, *, batch: int = 1, ack: Ack = Ack.EXIT_STATUS) -> GroupHandle:
    config = replace(DEFAULTS, batch=batch, ack=ack)
    return GroupHandle(cast("Groups", None), cast("Member", member), config, wait=False)


async def read_as_the_kernel(handle: GroupHandle, offset: int, size: int, *, first: int = MIB) -> bytes:
    """Do one read(2): in pieces, for as long as they are filled."""
    data, piece = b"", min(size, first)
    while len(data) < size:
        try:
            answer = await handle.read(Offset(offset + len(data)), piece)
        except WouldBlock:
            if data:
                break
            raise
        data += answer
        if len(answer) < piece:
            break
        piece = min(MIB, size - len(data))
    return data


@pytest.mark.parametrize("first", [MIB, MIB - 4095], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("length", [1000, 1024, 1 << 19, MIB - 4095, MIB - 1, MIB])
async def test_no_read_acknowledges_what_it_returns_itself(first: int, length: int) -> None:
    messages = [bytes([number % 251]) * length for number in range(1, 4 * MIB // length + 1)]
    member = StockedMember(*messages)
    handle = opened(member, batch=5000)
    data = b""
    while len(data) < sum(map(len, messages)):
        before = len(data)
        data += await read_as_the_kernel(handle, before, 2 * MIB, first=first)
        assert len(member.done) == before // length, "only what earlier reads have returned"
    assert data == b"".join(messages)


async def test_a_message_larger_than_a_piece_is_read_at_once() -> None:
    message = b"x" * (2 * MIB + 5)
    member = StockedMember(message, b"next")
    assert await read_as_the_kernel(opened(member, batch=10), 0, 4 * MIB) == message
    assert member.done == []


async def test_what_is_acknowledged_cannot_be_read_again_and_costs_no_message() -> None:
    member = StockedMember(b"one\n", b"two\n", b"three\n")
    handle = opened(member)
    for offset in 0, 4:
        await handle.read(Offset(offset), 100)
    for offset in 0, 3:
        with pytest.raises(InvalidArgument):
            await handle.read(Offset(offset), 100)
    assert await handle.read(Offset(5), 100) == b"wo\n", "it is in hand"
    assert await handle.read(Offset(8), 100) == b"three\n"
    assert member.done == [0, 1]


async def test_nor_when_nothing_is_in_hand() -> None:
    member = StockedMember(b"one\n")
    handle = opened(member)
    await handle.read(Offset(0), 100)
    with pytest.raises(WouldBlock):
        await handle.read(Offset(4), 100)
    member.stock = StockedMember(b"two\n").stock
    with pytest.raises(InvalidArgument):
        await handle.read(Offset(0), 100)
    assert await handle.read(Offset(4), 100) == b"two\n"


async def test_what_was_acknowledged_unread_is_not_readable() -> None:
    handle = opened(StockedMember(b"one\n"))
    await handle.read(Offset(0), 2)
    assert handle.readable, "the rest is in hand"
    with pytest.raises(WouldBlock):
        await handle.read(Offset(4), 100)
    assert not handle.readable


async def test_what_comes_at_most_once_is_acknowledged_in_etcd_before_anybody_has_it() -> None:
    member = StockedMember(b"one\n", b"two\n", b"three\n")
    handle = opened(member, batch=2, ack=Ack.DELIVERY)
    assert await handle.read(Offset(0), 100) == b"one\ntwo\n"
    assert member.settled_to == 2
    assert await handle.read(Offset(8), 100) == b"three\n"
    assert member.settled_to == 3


async def test_nor_is_it_lost_when_that_takes_too_long() -> None:
    member = StockedMember(b"one\n", b"two\n")
    member.fails = [TimedOut("of the test")]
    handle = opened(member, ack=Ack.DELIVERY)
    with pytest.raises(TimedOut):
        await handle.read(Offset(0), 100)
    assert await handle.read(Offset(0), 100) == b"one\n"
    assert member.done == [0]


async def test_what_is_somebody_elses_by_then_is_not_handed_out() -> None:
    member = StockedMember(b"one\n", b"two\n", b"three\n")
    handle = opened(member, ack=Ack.DELIVERY)
    assert await handle.read(Offset(0), 2) == b"on"
    member.loses = 1
    assert await handle.read(Offset(2), 100) == b"e\n", "this it has had"
    assert await handle.read(Offset(4), 100) == b"three\n"
    assert member.lost == 1
