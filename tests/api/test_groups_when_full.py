"""Consumer groups on an etcd without room: who could have a message is told, and hangs for nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

import dnpipefs
from dnpipefs import Dnp, OutOfSpace
from tests.support.etcd_http import fill, make_room
from tests.support.etcd_process import EtcdProcess

SOON_S = 8.0
"""Less than an operation waits for an etcd that does not answer."""


@pytest.fixture
async def dnp(server: EtcdProcess) -> AsyncIterator[Dnp]:
    async with dnpipefs.connect(server.endpoint) as dnp:
        yield dnp


@contextmanager
def full(server: EtcdProcess) -> Iterator[None]:
    fill(server.endpoint)
    try:
        yield
    finally:
        make_room(server.endpoint)


async def test_who_could_have_a_message_is_told(dnp: Dnp, server: EtcdProcess) -> None:
    await dnp.push("jobs", "1", "2")
    async with dnp.consumer("jobs", "w") as consumer:
        first = await consumer.take()
        with full(server), trio.fail_after(SOON_S):
            for take in consumer.take, consumer.take_now, consumer.take:
                with pytest.raises(OutOfSpace):
                    await take()
            assert consumer._member.readable, "for the next read says so, too"
            assert consumer.acknowledge(first)
            with pytest.raises(OutOfSpace):
                await consumer.settled()
        with trio.fail_after(SOON_S):
            second = await consumer.take()
            assert second.message.data == b"2\n"
            assert consumer.acknowledge(second)
            await consumer.settled()
    [facts] = await dnp.groups("jobs")
    assert facts.lag == 0


async def test_who_waits_for_what_is_to_come_waits_on(dnp: Dnp, server: EtcdProcess) -> None:
    await dnp.push("jobs", "1")
    got: list[bytes] = []
    async with dnp.consumer("jobs", "w") as consumer, trio.open_nursery() as nursery:
        first = await consumer.take()

        async def wait() -> None:
            got.append((await consumer.take()).message.data)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.2)
        with full(server), trio.fail_after(SOON_S):
            assert consumer.acknowledge(first)
            nursery.start_soon(wait)
            assert await consumer.take_now() is None, "there is nothing, though an acknowledgement waits"
            assert not consumer._member.readable
        await dnp.push("jobs", "2", "3")
    assert sorted(got) == [b"2\n", b"3\n"]


async def test_a_group_that_there_is_not_cannot_begin(dnp: Dnp, server: EtcdProcess) -> None:
    await dnp.push("jobs", "1")
    async with dnp.consumer("jobs", "old"):
        pass
    with full(server), trio.fail_after(SOON_S):
        with pytest.raises(OutOfSpace):
            async with dnp.consumer("jobs", "new"):
                pass
        async with dnp.consumer("jobs", "old"):
            pass


async def test_nor_is_one_opened_by_a_host_without_a_session(server: EtcdProcess, dnp: Dnp) -> None:
    await dnp.push("jobs", "1")
    async with dnp.consumer("jobs", "w"):
        pass
    with full(server), trio.fail_after(SOON_S):
        async with dnpipefs.connect(server.endpoint) as other:
            with pytest.raises(OutOfSpace):
                async with other.consumer("jobs", "w"):
                    pass


async def test_what_cannot_be_left_is_not_waited_for(
    dnp: Dnp, server: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group whose last reader has gone a while ago gives back what it had, before it is opened again."""
    monkeypatch.setattr("dnpipefs.groups.groups.LINGER_S", 0.0)
    await dnp.push("jobs", "1")
    async with dnp.consumer("jobs", "w") as consumer:
        await consumer.take()
        fill(server.endpoint)
    with trio.fail_after(SOON_S), pytest.raises(OutOfSpace):
        async with dnp.consumer("jobs", "w"):
            pass
    make_room(server.endpoint)
    with trio.fail_after(SOON_S):
        async with dnp.consumer("jobs", "w") as consumer:
            assert (await consumer.take()).message.data == b"1\n"
