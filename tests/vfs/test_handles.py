"""What a handle does with failures that its writer may not hear of, or whose outcome is unknown."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from dnpipefs.core.batch import Chunk
from dnpipefs.core.config import DEFAULTS, Framing, TopicConfig
from dnpipefs.core.names import FileId, Revision
from dnpipefs.errors import MessageTooLarge, OutOfSpace, TimedOut, TopicGone, UnknownOutcome
from dnpipefs.log.budget import Budget
from dnpipefs.log.log import Log
from dnpipefs.vfs.handles import SPLIT_SIZE, OpenTopic, TopicHandle
from dnpipefs.vfs.intake import Intake

TOPIC = FileId(7)
PART = 1 << 20  # of a large write(2), as the kernel cuts it


class FakeLog:
    """A log that keeps what is pushed and fails as often as it is told to."""

    def __init__(self) -> None:
        self.pushed: list[bytes] = []
        self.failures: list[Exception | None] = []
        self.sessions = SimpleNamespace(wait_healthy=self._healthy)
        self.answers: trio.Event | None = None
        """Nothing is pushed before; None: at once."""

    async def _healthy(self) -> None:
        pass

    async def append(self, topic: FileId, chunk: Chunk, **_: Any) -> Revision:
        if self.answers is not None:
            await self.answers.wait()
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.pushed.append(chunk.data)
        return Revision(1)


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


class Settings:
    """The settings of the topic; None once it is deleted."""

    def __init__(self) -> None:
        self.now: TopicConfig | None = DEFAULTS

    def of(self, topic: FileId, unknown: TopicConfig) -> TopicConfig:
        assert topic == TOPIC
        return self.now or unknown


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def room() -> Budget:
    return Budget(100 << 20)


@pytest.fixture
def handle(log: FakeLog, settings: Settings, room: Budget) -> TopicHandle:
    return handle_of(log, settings, room)


def handle_of(log: FakeLog, settings: Settings, room: Budget, intake: Intake | None = None) -> TopicHandle:
    return TopicHandle(
        cast(Log, log),
        TOPIC,
        Revision(1),
        OpenTopic(),
        reading=None,
        write=True,
        append=True,
        config_of=settings.of,
        room=room,
        intake=intake or Intake(),
        op_timeout=1.0,
    )


UNKNOWN = [TimedOut("planted"), UnknownOutcome("planted")]


@pytest.mark.parametrize("failure", UNKNOWN, ids=["timed out", "unknown"])
async def test_a_failure_hidden_by_a_cut_write_is_said_again(
    handle: TopicHandle, log: FakeLog, failure: Exception
) -> None:
    """Otherwise the program, told of a short write, pushes a second time what may be in the log."""
    lines = b"x" * 1023 + b"\n"
    log.failures = [None, failure]
    assert await handle.write(0, lines * (PART // 1024)) == PART
    with pytest.raises(type(failure)):
        await handle.write(PART, lines)
    with pytest.raises(type(failure)):
        await handle.write(PART, lines)
    assert await handle.write(PART, b"next\n") == 5
    assert log.pushed == [lines * (PART // 1024), b"next\n"]


@pytest.mark.parametrize("failure", UNKNOWN, ids=["timed out", "unknown"])
async def test_a_failure_behind_an_accepted_part_is_said_by_the_next_write(
    handle: TopicHandle, log: FakeLog, failure: Exception
) -> None:
    held, line = b"h" * 1000, b"x" * 99 + b"\n"
    await handle.write(0, held)
    log.failures = [None, failure]
    accepted = await handle.write(1000, line * 12_500)
    assert accepted < 1_250_000
    with pytest.raises(type(failure)):
        await handle.write(1000 + accepted, line)
    assert await handle.write(1000 + accepted, line) == 100


async def test_a_failure_everybody_heard_is_said_once(handle: TopicHandle, log: FakeLog) -> None:
    log.failures = [None, TimedOut("planted")]
    assert await handle.write(0, b"x" * (SPLIT_SIZE - 1) + b"\n") == SPLIT_SIZE
    with pytest.raises(TimedOut):
        await handle.write(SPLIT_SIZE, b"two\n")
    assert await handle.write(SPLIT_SIZE, b"three\n") == 6


@pytest.mark.parametrize("failure", [TopicGone("planted"), OutOfSpace("planted")], ids=["gone", "full"])
async def test_a_definite_failure_may_be_tried_again_at_once(
    handle: TopicHandle, log: FakeLog, failure: Exception
) -> None:
    log.failures = [None, failure]
    assert await handle.write(0, b"x" * (PART - 1) + b"\n") == PART
    with pytest.raises(type(failure)):
        await handle.write(PART, b"next\n")
    assert await handle.write(PART, b"next\n") == 5


async def test_the_rest_of_a_message_too_large_is_not_taken_for_a_message(
    handle: TopicHandle, log: FakeLog, settings: Settings
) -> None:
    settings.now = TopicConfig(max_message=PART)
    assert await handle.write(0, b"x" * PART) == PART
    for _ in range(2):  # the kernel hides the first
        with pytest.raises(MessageTooLarge):
            await handle.write(PART, b"rest\n")
    await handle.close()
    assert log.pushed == []


@pytest.mark.parametrize("failure", UNKNOWN, ids=["timed out", "unknown"])
async def test_a_held_part_in_doubt_is_not_pushed_by_close(
    handle: TopicHandle, log: FakeLog, failure: Exception
) -> None:
    """It may be in the log, completed by the write that failed."""
    await handle.write(0, b"begin")
    log.failures = [failure]
    with pytest.raises(type(failure)):
        await handle.write(5, b" end\n")
    with pytest.raises(type(failure)):
        await handle.flush()
    await handle.close()
    assert log.pushed == []


async def test_a_held_part_in_doubt_is_there_for_a_second_try(handle: TopicHandle, log: FakeLog) -> None:
    await handle.write(0, b"begin")
    log.failures = [TimedOut("planted")]
    with pytest.raises(TimedOut):
        await handle.write(5, b" end\n")
    await handle.write(5, b" end\n")
    await handle.write(10, b"more")
    await handle.close()
    assert log.pushed == [b"begin end\n", b"more"]


async def test_a_held_part_survives_a_definite_failure(handle: TopicHandle, log: FakeLog) -> None:
    await handle.write(0, b"begin")
    log.failures = [OutOfSpace("planted")]
    with pytest.raises(OutOfSpace):
        await handle.write(5, b" end\n")
    await handle.close()
    assert log.pushed == [b"begin"]


async def test_a_held_part_survives_a_write_that_waited_in_vain(
    handle: TopicHandle, log: FakeLog, autojump_clock: object
) -> None:
    """For a healthy session: nothing was sent that could have the part."""
    await handle.write(0, b"begin")
    log.sessions.wait_healthy = trio.sleep_forever
    with pytest.raises(TimedOut):
        await handle.write(5, b" and more")
    await handle.close()
    assert log.pushed == [b"begin"]


@pytest.mark.parametrize("failure", [OutOfSpace("planted"), MessageTooLarge("planted")])
async def test_a_held_part_stays_in_doubt_when_another_write_fails(
    handle: TopicHandle, log: FakeLog, failure: Exception
) -> None:
    await handle.write(0, b"begin")
    log.failures = [TimedOut("planted"), failure]
    with pytest.raises(TimedOut):
        await handle.write(5, b" end\n")
    with pytest.raises(type(failure)):
        await handle.write(5, b" end\n")
    with pytest.raises(TimedOut):
        await handle.close()
    assert log.pushed == []


WRITE = TopicConfig(Framing.WRITE)


async def test_a_handle_follows_the_settings_from_the_next_write_on(
    handle: TopicHandle, log: FakeLog, settings: Settings
) -> None:
    await handle.write(0, b"line\npart")
    settings.now = WRITE
    await handle.write(9, b"two\nlines")
    settings.now = TopicConfig(max_message=4)
    with pytest.raises(MessageTooLarge):
        await handle.write(18, b"long\n")
    await handle.write(18, b"3\n")
    assert log.pushed == [b"line\n", b"part", b"two\nlines", b"3\n"]


async def test_a_held_part_is_pushed_once_when_the_write_behind_it_fails(
    handle: TopicHandle, log: FakeLog, settings: Settings
) -> None:
    await handle.write(0, b"part")
    settings.now = WRITE
    log.failures = [None, OutOfSpace("planted")]
    with pytest.raises(OutOfSpace):
        await handle.write(4, b"whole")
    await handle.write(4, b"whole")
    await handle.close()
    assert log.pushed == [b"part", b"whole"]


async def test_a_held_part_waits_for_close_when_the_write_behind_it_is_too_large(
    handle: TopicHandle, log: FakeLog, settings: Settings
) -> None:
    await handle.write(0, b"part")
    settings.now = TopicConfig(Framing.WRITE, max_message=4)
    with pytest.raises(MessageTooLarge):
        await handle.write(4, b"whole")
    await handle.close()
    assert log.pushed == [b"part"]


async def test_a_write_that_may_be_cut_is_no_message(
    handle: TopicHandle, log: FakeLog, settings: Settings
) -> None:
    settings.now = WRITE
    with pytest.raises(MessageTooLarge):
        await handle.write(0, b"x" * (SPLIT_SIZE + 1))
    assert await handle.write(0, b"x" * SPLIT_SIZE) == SPLIT_SIZE
    assert await handle.write(SPLIT_SIZE, b"") == 0
    await handle.close()
    assert log.pushed == [b"x" * SPLIT_SIZE]


async def test_a_line_of_many_parts_is_one_message(
    handle: TopicHandle, log: FakeLog, settings: Settings
) -> None:
    settings.now = TopicConfig(max_message=3 * PART)
    for number in range(2):
        assert await handle.write(number * PART, b"x" * PART) == PART
    assert await handle.write(2 * PART, b"x" * (PART - 1) + b"\n") == PART
    assert [len(data) for data in log.pushed] == [3 * PART]
    for number in range(3):
        assert await handle.write((3 + number) * PART, b"y" * PART) == PART
    for _ in range(2):  # the kernel hides the first
        with pytest.raises(MessageTooLarge):
            await handle.write(6 * PART, b"y\n")
    await handle.close()
    assert len(log.pushed) == 1


async def test_a_deleted_topic_keeps_its_framing(
    handle: TopicHandle, log: FakeLog, settings: Settings
) -> None:
    """Otherwise a write would be held as a part of a line, and its failure heard by nobody."""
    settings.now = WRITE
    await handle.write(0, b"whole")
    settings.now = None
    log.failures = [TopicGone("planted")]
    with pytest.raises(TopicGone):
        await handle.write(5, b"lost")


async def test_writes_count_as_under_way_unless_they_wait_for_others(
    log: FakeLog, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 7. What frees the room for unfinished lines is the next write of who holds one."""
    monkeypatch.setattr("dnpipefs.vfs.intake.WRITES_LIMIT", 10_000)
    room, intake = Budget(12_000), Intake()
    one, other, third = (handle_of(log, settings, room, intake) for _ in range(3))
    log.answers = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(third.write, 0, b"x" * 9_999 + b"\n")
        await trio.testing.wait_all_tasks_blocked()
        assert intake.full
        log.answers.set()
        await intake.room()
    await one.write(0, b"x" * 11_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.write, 0, b"y" * 11_000)
        await trio.testing.wait_all_tasks_blocked()
        assert not intake.full
        await one.write(11_000, b"\n")
    assert not intake.full
    assert intake._bytes == 0


async def test_what_handles_hold_is_limited(log: FakeLog, settings: Settings, autojump_clock: object) -> None:
    """Invariant 7: writers wait until others have finished their lines, or time is up."""
    room = Budget(1000)

    one, other = (handle_of(log, settings, room) for _ in range(2))
    await one.write(0, b"x" * 900)
    with pytest.raises(TimedOut):
        await other.write(0, b"y" * 200)
    assert room.taken == 900
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.write, 0, b"z" * 200)
        await trio.testing.wait_all_tasks_blocked()
        await one.write(900, b"end\n")
    assert room.taken == 200
    await other.flush()
    assert room.taken == 0
    assert log.pushed == [b"x" * 900 + b"end\n", b"z" * 200]
    await one.write(904, b"left over")
    log.failures = [TopicGone("planted")]
    with pytest.raises(TopicGone):
        await one.close()
    assert room.taken == 0


async def test_a_write_waits_once_for_all_its_parts(
    settings: Settings, room: Budget, autojump_clock: object
) -> None:
    """For its turn behind another write on the same descriptor, and for each piece of what it pushes."""
    began: list[float] = []

    class SlowLog(FakeLog):
        async def append(self, topic: FileId, chunk: Chunk, **how: Any) -> Revision:
            began.append(how["since"])
            await trio.sleep(0.4)
            return Revision(1)

    handle = handle_of(SlowLog(), settings, room)
    large = b"m" * (PART // 2 - 1) + b"\n"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle.write, 0, large * 6)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TimedOut):
            await handle.write(0, b"behind it\n")
        assert trio.current_time() - began[0] == pytest.approx(1.0), "op_timeout, though the other goes on"
    assert len(began) > 2
    assert set(began) == {began[0]}
