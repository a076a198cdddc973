"""The upkeep of a real embedded etcd, small enough to be filled: by whom, from where, after which death."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from dnpipefs.etcd import AlarmKind, Ambiguous, Client, SpaceExceeded, open_client, upkeep_plan
from dnpipefs.etcd.server import EmbeddedServer
from dnpipefs.etcd.upkeep import STATE_NAME, Upkeep
from dnpipefs.etcd.upkeep_plan import State, target_size
from tests.embedded.conftest import Enter, Lines

ENOUGH = 20.0
QUOTA = 16 << 20
VALUE = b"x" * (1 << 18)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look ten times as often as real ones do."""
    for name in ("PAUSE_S", "FULL_PAUSE_S", "DISARM_PAUSE_S", "KEPT_S"):
        monkeypatch.setattr(upkeep_plan, name, getattr(upkeep_plan, name) / 10)


@pytest.fixture
async def server(enter: Enter) -> AsyncIterator[EmbeddedServer]:
    async with enter(quota_bytes=QUOTA) as server:
        yield server


@pytest.fixture
async def client(server: EmbeddedServer) -> AsyncIterator[Client]:
    async with open_client([server.endpoint], timeout=ENOUGH) as client:
        yield client


@pytest.fixture
def said(lines: Lines, caplog: pytest.LogCaptureFixture) -> Lines:
    """The lines of the upkeep's own log."""
    logger = logging.getLogger("dnpipefs.etcd.upkeep")
    caplog.set_level(logging.DEBUG, logger.name)
    logger.addHandler(lines)
    return lines


def upkeep(client: Client, server: EmbeddedServer) -> Upkeep:
    return Upkeep(client, server.endpoint, server.data_dir)


@asynccontextmanager
async def kept(client: Client, server: EmbeddedServer, users: int = 1) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for _ in range(users):
            await nursery.start(upkeep(client, server).run)
        yield
        nursery.cancel_scope.cancel()


async def fill(client: Client) -> None:
    for number in range(1000):
        try:
            await client.put(b"large/%d" % number, VALUE)
        except SpaceExceeded:
            return
    raise AssertionError("there is no end of it")


async def fill_and_empty(client: Client) -> None:
    await fill(client)
    await client.delete(b"large/", b"large0")


async def until_it_takes_puts(client: Client) -> None:
    with trio.fail_after(ENOUGH):
        while True:
            try:
                await client.put(b"small", b"")
            except SpaceExceeded:
                await trio.sleep(0.01)  # what another task does: there is no event to wait for
            else:
                return


async def test_what_was_full_is_not_any_more_at_the_start(client: Client, server: EmbeddedServer) -> None:
    """So the first push of a short command works."""
    await fill_and_empty(client)
    async with kept(client, server):
        await client.put(b"small", b"")
    assert (await client.status()).db_size < QUOTA / 8


async def test_what_is_emptied_while_it_is_kept(client: Client, server: EmbeddedServer, said: Lines) -> None:
    await fill(client)
    async with kept(client, server, users=3):
        for _ in range(3):
            await said.until("etcd is full (")
            await client.delete(b"large/", b"large0")
            await until_it_takes_puts(client)
            said.lines.clear()
            await fill(client)


async def test_several_users_are_one_at_a_time(client: Client, server: EmbeddedServer, said: Lines) -> None:
    await fill_and_empty(client)
    async with kept(client, server, users=5):
        await client.put(b"small", b"")
        await fill_and_empty(client)
        await until_it_takes_puts(client)
    assert said.count("etcd is full (") == said.count("etcd has room again") == 2
    assert said.count("defragmented etcd's file") == 2


@pytest.mark.parametrize("steps", range(6))
async def test_a_death_after_each_step(client: Client, server: EmbeddedServer, steps: int) -> None:
    await fill_and_empty(client)
    dying = upkeep(client, server)
    for _ in range(steps):
        await dying._step()
    async with kept(client, server):
        await client.put(b"small", b"")


async def test_a_death_while_it_waits_for_etcd(client: Client, server: EmbeddedServer) -> None:
    await fill_and_empty(client)
    for moment in range(20):
        with trio.move_on_after(moment / 500):
            await upkeep(client, server).run()
    async with kept(client, server):
        await client.put(b"small", b"")


async def test_too_little_room_is_told_once_and_nothing_is_disarmed(
    client: Client, server: EmbeddedServer, said: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much of the file is free when etcd is full differs from run to run, so half of it is wanted."""
    monkeypatch.setattr(upkeep_plan, "ROOM_SHARE", 2)
    await fill(client)
    async with kept(client, server):
        for number in range(3):
            await client.delete(b"large/%d" % number)
            await said.until("upkeep: Settle", number + 1)
        assert {alarm.kind for alarm in await client.alarms()} == {AlarmKind.NOSPACE}
        with pytest.raises(SpaceExceeded):
            await client.put(b"small", b"")
    assert said.count("etcd is full (") == 1
    assert said.count("upkeep: Disarm") == 0
    assert said.count("upkeep: Defragment") == 0


async def test_history_does_not_fill_it(client: Client, server: EmbeddedServer, said: Lines) -> None:
    """Four times the quota is written, a quarter of a MiB of it live."""
    value = VALUE[: 1 << 16]  # the KEPT_REVISIONS are less than half of the quota
    async with kept(client, server):
        for number in range(4 * QUOTA // len(value)):
            await client.put(b"replaced/%d" % (number % 4), value)
            await trio.sleep(0.005)  # no faster, for a quota this small, than looks are frequent
    assert said.count("upkeep: Compact") > 3
    assert said.count("etcd is full") == 0


async def test_the_next_process_remembers(client: Client, server: EmbeddedServer) -> None:
    async with kept(client, server):
        pass
    first = State.decode((server.data_dir / STATE_NAME).read_text())
    await client.put(b"large", VALUE)
    async with kept(client, server):
        pass
    second = State.decode((server.data_dir / STATE_NAME).read_text())
    assert first.base is not None
    assert second.base == first.base


async def test_a_broken_memory_is_no_reason_to_fail(
    client: Client, server: EmbeddedServer, said: Lines
) -> None:
    (server.data_dir / STATE_NAME).write_text("{")
    await fill_and_empty(client)
    async with kept(client, server):
        await client.put(b"small", b"")
    assert said.count("beginning anew") == 1
    State.decode((server.data_dir / STATE_NAME).read_text())


async def test_what_fails_is_told_once_and_tried_again(
    client: Client, server: EmbeddedServer, said: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnpipefs.etcd.upkeep.FAILED_PAUSE_S", 0.01)
    await fill_and_empty(client)
    defragment, failures = client.defragment, 3

    async def failing(endpoint: str, *, timeout: float | None = None) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Ambiguous("planted")
        await defragment(endpoint, timeout=timeout)

    monkeypatch.setattr(client, "defragment", failing)
    async with kept(client, server):
        await until_it_takes_puts(client)
    assert said.count("the upkeep of etcd failed, trying again: planted") == 1
    assert (await client.status()).db_size < target_size(QUOTA)
