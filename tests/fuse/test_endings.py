"""How processes end that have closed a file before: real processes, a clock that stands still."""

import os
import subprocess
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from dnpipefs.fuse.endings import GRACE_S, WATCHED_LIMIT, Endings
from dnpipefs.fuse.processes import Fate, Opener, resolve


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Exits with the status that it is told on its standard input."""
    with subprocess.Popen(
        ["sh", "-c", "read status; exit $status"], stdin=subprocess.PIPE, process_group=0
    ) as process:
        yield process


def opener_of(pid: int) -> Opener:
    opener = resolve(pid)
    assert opener is not None
    return opener


@pytest.mark.parametrize(("status", "fate"), [(0, Fate.ENDED_WELL), (3, Fate.FAILED)])
@pytest.mark.parametrize("reaped", [True, False])
async def test_how_it_ends(
    process: subprocess.Popen[bytes],
    mock_clock: trio.testing.MockClock,
    status: int,
    fate: Fate,
    reaped: bool,
) -> None:
    if reaped and tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 15):
        fate = Fate.ALIVE
    endings = Endings()
    ending = endings.watch(opener_of(process.pid))
    assert ending is not None
    process.communicate(b"%d\n" % status) if reaped else _tell(process, status)
    assert await endings.fate(ending) is fate
    endings.forget(ending)


def _tell(process: subprocess.Popen[bytes], status: int) -> None:
    assert process.stdin is not None
    process.stdin.write(b"%d\n" % status)
    process.stdin.close()


@pytest.mark.parametrize("how", ["it opens another file", "it lives on"])
async def test_a_process_that_goes_on(mock_clock: trio.testing.MockClock, how: str) -> None:
    endings, opener = Endings(), opener_of(os.getpid())
    ending = endings.watch(opener)
    assert ending is not None
    endings.opens(opener)
    ending.close()  # what was opened before the last close says nothing
    fates = []

    async def look() -> None:
        fates.append(await endings.fate(ending))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked()
        assert fates == []
        if how == "it lives on":
            mock_clock.jump(GRACE_S)
        else:
            endings.opens(opener)
    assert fates == [Fate.ALIVE]
    endings.forget(ending)


async def test_what_becomes_of_a_process_after_it_has_opened_another_file_does_not_count(
    process: subprocess.Popen[bytes], mock_clock: trio.testing.MockClock
) -> None:
    endings, opener = Endings(), opener_of(process.pid)
    ending = endings.watch(opener)
    assert ending is not None
    fates = []

    async def look() -> None:
        fates.append(await endings.fate(ending))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked()
        endings.opens(opener)
        process.communicate(b"3\n")  # it has failed before anybody looks
    assert fates == [Fate.ALIVE]
    endings.forget(ending)


async def test_what_is_opened_before_the_kernel_tells_of_the_last_close_counts(
    mock_clock: trio.testing.MockClock,
) -> None:
    """It lets nobody wait for it: the process may have gone on by then."""
    endings, opener = Endings(), opener_of(os.getpid())
    ending = endings.watch(opener)
    assert ending is not None
    endings.opens(opener)
    assert await endings.fate(ending) is Fate.ALIVE
    endings.forget(ending)


def test_no_more_are_watched_than_there_may_be() -> None:
    endings, opener = Endings(), opener_of(os.getpid())
    watched = [endings.watch(opener) for _ in range(WATCHED_LIMIT)]
    assert None not in watched
    assert endings.watch(opener) is None
    for ending in watched:
        assert ending is not None
        endings.forget(ending)
    again = endings.watch(opener)
    assert again is not None
    endings.forget(again)
