"""How much was pushed lately, found in what is stored: in the tail, in segments, at their borders."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from dnpipefs.core.names import START
from dnpipefs.log.recency import messages_since
from tests.log.conftest import Hosts
from tests.model.hosts import Host
from tests.model.oracle import Topic


async def times(host: Host, topic: Topic) -> list[int]:
    """Return when each message was pushed, in order."""
    found, offset = [], START
    async with host.log.reader(topic.id) as reader:
        while True:
            messages, behind = await reader.messages(offset, 1 << 20)
            found += [message.time_ns for message in messages]
            if behind == offset:
                return found
            offset = behind


async def check(hosts: Hosts, host: Host, topic: Topic) -> None:
    """Compare with counting, for each moment at which something was pushed, and those beside it."""
    pushed = await times(host, topic)
    async with host.log.reader(topic.id) as reader:
        for moment in sorted({time_ns + beside for time_ns in pushed for beside in (-1, 0, 1)}):
            counted = sum(time_ns >= moment for time_ns in pushed)
            assert await messages_since(reader, moment) == counted


async def test_it_is_what_counting_says(hosts: Hosts, mock_clock: MockClock) -> None:
    host, topic = await hosts.start(), await hosts.topic()
    async with host.log.reader(topic.id) as reader:
        assert await messages_since(reader, 0) == 0

    async def push(count: int) -> None:
        for number in range(count):
            await hosts.append(host, topic, *[b"line\n"] * (1 + number % 3))
            await hosts.pass_time(0.1)

    with trio.fail_after(3600):
        await push(17)
        await check(hosts, host, topic)
        for _ in range(2):
            await hosts.pass_time(60, steps=60)
            assert all(key.endswith(b"mark") for key in hosts.keys(b"tail")), "all is sealed"
            await check(hosts, host, topic)
            await push(9)
            await check(hosts, host, topic)
        await host.log.reset(topic.id)
        async with host.log.reader(topic.id) as reader:
            assert await messages_since(reader, 0) == 0
        await push(3)
        await check(hosts, host, topic)
