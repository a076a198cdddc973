"""What a full etcd does: the facts that the upkeep of the embedded one, and `dnpipefs doctor`, rest on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dnpipefs.etcd import Alarm, AlarmKind, Client, SpaceExceeded, Status, open_client
from tests.support.etcd_process import EtcdProcess

ENOUGH = 20.0
QUOTA = 16 << 20
VALUE = b"x" * (1 << 19)


@pytest.fixture
def small(tmp_path: Path, etcd_binary: str) -> Iterator[EtcdProcess]:
    """A server with a quota of 16 MiB."""
    server = EtcdProcess(tmp_path / "etcd", etcd_binary, arguments=["--quota-backend-bytes", str(QUOTA)])
    try:
        server.start()
        yield server
    finally:
        server.kill()


async def fill(client: Client) -> int:
    """Put until it is refused; return how often it was not."""
    for number in range(1000):
        try:
            await client.put(b"large/%d" % number, VALUE)
        except SpaceExceeded:
            return number
    raise AssertionError("there is no end of it")


async def fill_and_empty(client: Client) -> Status:
    assert await fill(client) > 10
    await client.delete(b"large/", b"large0")
    full = await client.status()
    assert full.db_size_in_use >= full.db_size * 0.9, "deleting frees nothing"
    await client.compact(full.revision, physical=True)
    return await client.status()


async def test_a_compaction_leaves_the_file_and_the_alarm(small: EtcdProcess) -> None:
    async with open_client([small.endpoint], timeout=ENOUGH) as client:
        compacted = await fill_and_empty(client)
        assert compacted.db_size >= QUOTA * 0.9, "the write that is refused has not grown it"
        with pytest.raises(SpaceExceeded, match="`dnpipefs doctor`"):
            await client.put(b"small", b"")


async def test_an_alarm_disarmed_over_the_quota_is_back_with_the_next_put(small: EtcdProcess) -> None:
    """The quota is compared with the size of the file, however much of it is free."""
    async with open_client([small.endpoint], timeout=ENOUGH) as client:
        compacted = await fill_and_empty(client)
        (alarm,) = await client.alarms()
        assert alarm == Alarm(compacted.member_id, AlarmKind.NOSPACE)
        await client.disarm_alarm(alarm)
        assert (await client.status()).errors == ()
        with pytest.raises(SpaceExceeded):
            await client.put(b"small", b"")
        assert await client.alarms() == [alarm]
        (error,) = (await client.status()).errors
        assert "NOSPACE" in error


async def test_defragmented_and_disarmed_it_takes_puts(small: EtcdProcess) -> None:
    async with open_client([small.endpoint], timeout=ENOUGH) as client:
        await fill_and_empty(client)
        await client.defragment(small.endpoint)
        assert (await client.status()).db_size < QUOTA / 8
        with pytest.raises(SpaceExceeded):
            await client.put(b"small", b"")
        for alarm in await client.alarms():
            await client.disarm_alarm(alarm)
        await client.put(b"small", b"")


async def test_settling_shows_what_a_compaction_has_freed(small: EtcdProcess) -> None:
    """3.4 counts it with the next commit, and none comes where puts are refused."""
    async with open_client([small.endpoint], timeout=ENOUGH) as client:
        await fill_and_empty(client)
        alarms = await client.alarms()
        await client.settle()
        settled = await client.status()
        assert settled.db_size >= QUOTA
        assert settled.db_size_in_use < QUOTA / 8
        assert await client.alarms() == alarms, "the real one, and no other"
        with pytest.raises(SpaceExceeded):
            await client.put(b"small", b"")
