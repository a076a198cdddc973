"""Blocked reads end with a signal: on a real mount with real programs. When to look: with made-up ones."""

import ctypes
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from dnpipefs.errors import Interrupted, TooManyReaders
from dnpipefs.fuse.interrupts import BLOCKED_LIMIT, LOOKING_S, PAUSE_FACTOR, TICK_S, Interrupts
from dnpipefs.fuse.processes import Opener
from dnpipefs.fuse.serving import MAX_TASKS
from tests.fuse.conftest import MountMaker
from tests.support.blocking_mount import BlockingMount
from tests.support.waiting import WITHIN_S, eventually

PYTHON = [sys.executable, "-I", "-c"]
"""Isolated: every name is a file of the mount, so an import from the working directory would find it."""
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGQUIT]


# Programs


@pytest.mark.parametrize("how", ENDING)
def test_a_signal_ends_a_blocked_read(blocking: BlockingMount, how: signal.Signals) -> None:
    name = f"ended-by-{how}"
    program = blocking.start_reading(["cat", name], name)
    program.send_signal(how)
    assert program.wait(WITHIN_S) == -how
    assert blocking.last_fate(name) == "FAILED"


@pytest.mark.parametrize("how", ENDING)
def test_it_ends_without_a_hint_of_the_kernel_too(deaf: BlockingMount, how: signal.Signals) -> None:
    name = f"ended-by-{how}"
    program = deaf.start_reading(["cat", name], name)
    program.send_signal(how)
    assert program.wait(WITHIN_S) == -how


def test_the_kernel_hints_at_a_signal_once(make_blocking_mount: MountMaker) -> None:
    mount = make_blocking_mount()
    program = mount.start_reading(["cat", "watched"], "watched")
    mount.push("watched", "a message")
    eventually(lambda: mount.told("read", "watched") == 2)
    assert mount.told("silent", "1") == 0
    program.terminate()
    program.wait(WITHIN_S)
    mount.saw("release", "watched")
    assert (mount.told("silent", "1"), mount.told("silent", "2")) == (1, 0)


def test_timeout_ends_a_program(blocking: BlockingMount) -> None:
    assert blocking.start("timeout 0.2 cat timeout").wait(WITHIN_S) == 124


@pytest.mark.parametrize("hints", [True, False])
def test_a_child_that_inherited_the_descriptor_can_be_killed(
    blocking: BlockingMount, deaf: BlockingMount, hints: bool
) -> None:
    mount = blocking if hints else deaf
    shell = mount.start_reading("exec 3<inherited; cat <&3; echo $?; cat /dev/null", "inherited")
    [child] = children(shell.pid)
    os.kill(child, signal.SIGKILL)
    assert shell.communicate(timeout=WITHIN_S)[0].split()[-1] == str(128 + signal.SIGKILL)
    assert mount.last_fate("inherited") == "ENDED_WELL", "the opener's, not the child's"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_shells_own_read_ends(blocking: BlockingMount, how: signal.Signals) -> None:
    name = f"builtin-{how}"
    shell = blocking.start_reading(f"read line < {name}; exit 3", name)
    shell.send_signal(how)
    assert shell.wait(WITHIN_S) == -how


def test_a_reader_whose_opener_is_gone_can_be_killed(blocking: BlockingMount) -> None:
    shell = blocking.start("exec 3<orphan; (sh -c 'echo $$; exec cat' <&3) & exec 3<&-")
    assert shell.stdout is not None
    orphan = int(shell.stdout.readline())
    assert shell.wait(WITHIN_S) == 0
    blocking.saw("read", "orphan")
    os.kill(orphan, signal.SIGTERM)
    blocking.saw("release", "orphan")


def test_a_reader_who_has_left_the_openers_family_can_be_killed(blocking: BlockingMount) -> None:
    command = "exec 3<runaway; ((sh -c 'echo $$; exec cat' <&3) & ); read line; exit"
    shell = subprocess.Popen(
        ["bash", "-c", command], cwd=blocking.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with shell:
        assert shell.stdout is not None
        runaway = int(shell.stdout.readline())
        blocking.saw("read", "runaway")
        os.kill(runaway, signal.SIGTERM)
        blocking.saw("flush", "runaway", "ALIVE")


# Signals that end nothing


@pytest.mark.parametrize("deafness", ["ignored", "blocked"])
def test_a_signal_that_its_process_does_not_take_ends_nothing(blocking: BlockingMount, deafness: str) -> None:
    name = f"deaf-{deafness}"
    deafen = {
        "ignored": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
    }[deafness]
    script = f"import os, signal; {deafen}; print(os.read(os.open({name!r}, os.O_RDONLY), 100))"
    program = blocking.start_reading([*PYTHON, script], name)
    program.terminate()
    program.send_signal(signal.SIGCHLD)
    # Time enough for looks: another reader is ended by one of them.
    other = blocking.start_reading(["cat", f"{name}-other"], f"{name}-other")
    other.terminate()
    other.wait(WITHIN_S)
    blocking.push(name, "a message")
    assert program.communicate(timeout=WITHIN_S)[0] == "b'a message'\n"
    assert (blocking.told("read", name), blocking.told("interrupted", name)) == (1, 0)


def test_a_handler_runs_and_the_program_reads_on(blocking: BlockingMount) -> None:
    """Three alarms; Python calls again after EINTR (PEP 475)."""
    script = """if True:
        import os, signal
        alarms = []
        def alarm(number, frame):
            alarms.append(number)
            print("alarm", flush=True)
            signal.setitimer(signal.ITIMER_REAL, 0.01 if len(alarms) < 3 else 0)
        signal.signal(signal.SIGALRM, alarm)
        file = os.open("alarms", os.O_RDONLY)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        print(os.read(file, 100))
    """
    program = blocking.start_reading([*PYTHON, script], "alarms")
    assert program.stdout is not None
    assert [program.stdout.readline() for _ in range(3)] == ["alarm\n"] * 3
    blocking.push("alarms", "a message")
    assert program.communicate(timeout=WITHIN_S)[0] == "b'a message'\n"


def test_a_stopped_program_stops_and_reads_on(blocking: BlockingMount) -> None:
    program = blocking.start_reading(["cat", "stopped"], "stopped")
    program.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
    program.send_signal(signal.SIGCONT)
    eventually(lambda: blocking.told("read", "stopped") == 2)
    blocking.push("stopped", "a message")
    assert program.stdout is not None
    assert program.stdout.read(9) == "a message"
    program.terminate()


def test_a_tracer_gets_hold_of_a_reader(blocking: BlockingMount) -> None:
    """It interrupts without a signal, as freezers do."""
    program = blocking.start_reading(["cat", "traced"], "traced")
    libc = ctypes.CDLL(None)
    assert libc.ptrace(PTRACE_SEIZE, program.pid, 0, 0) == 0
    assert libc.ptrace(PTRACE_INTERRUPT, program.pid, 0, 0) == 0
    os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
    assert libc.ptrace(PTRACE_DETACH, program.pid, 0, 0) == 0
    eventually(lambda: blocking.told("read", "traced") == 2)
    program.terminate()
    assert program.wait(WITHIN_S) == -signal.SIGTERM


def test_job_control_of_a_shell(blocking: BlockingMount) -> None:
    with terminal(blocking.path) as (keyboard, shows):
        os.write(keyboard, b"cat jobs\n")
        blocking.saw("read", "jobs")
        os.write(keyboard, b"\x1a")  # Ctrl-Z
        shows(r"Stopped +cat jobs")
        os.write(keyboard, b"fg\n")
        eventually(lambda: blocking.told("read", "jobs") == 2)
        blocking.push("jobs", "message-1\n")
        shows("message-1")
        eventually(lambda: blocking.told("read", "jobs") == 3)
        os.write(keyboard, b"\x03")  # Ctrl-C
        blocking.saw("release", "jobs")
        os.write(keyboard, b"echo status $?\n")
        shows(f"status {128 + signal.SIGINT}")


# The end of the mount


def test_unmounting_ends_blocked_reads(make_blocking_mount: MountMaker) -> None:
    mount = make_blocking_mount()
    readers = [mount.start_reading(["cat", f"file-{number}"], f"file-{number}") for number in range(3)]
    assert mount.stop() == 0
    for reader in readers:
        assert reader.wait(WITHIN_S) == 1
    assert [mount.told("interrupted", f"file-{number}") for number in range(3)] == [1, 1, 1]


# When to look

READER = Opener(100, 1)
STRANGER = Opener(101, 1)


class Family:
    """Processes made up: who has a signal, and who is gone; what was looked at."""

    def __init__(self) -> None:
        self.signalled: set[Opener] = set()
        self.gone: set[Opener] = set()
        self.looks: list[Opener] = []
        self.looking_takes = 0.0

    def interrupted(self, opener: Opener) -> bool | None:
        self.looks.append(opener)
        return None if opener in self.gone else opener in self.signalled

    def waiting(self, opener: Opener) -> bool:
        return opener not in self.gone

    def clock(self) -> float:
        """Seconds that looks have taken."""
        return len(self.looks) * self.looking_takes

    def interrupts(self) -> Interrupts:
        return Interrupts(self.interrupted, self.waiting, self.clock)


async def never() -> None:
    await trio.sleep_forever()


async def test_a_result_that_is_there_when_the_signal_comes_is_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    family = Family()
    interrupts = family.interrupts()

    async def taken() -> str:
        interrupts.close()
        return "message"

    assert await interrupts.guard(READER, taken) == "message"


async def test_only_so_many_reads_may_wait(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others must find room among the requests that a mount can have under way."""
    assert BLOCKED_LIMIT < MAX_TASKS
    monkeypatch.setattr("dnpipefs.fuse.interrupts.BLOCKED_LIMIT", 2)
    interrupts = Family().interrupts()
    async with trio.open_nursery() as nursery:
        for opener in (READER, None):
            nursery.start_soon(interrupts.guard, opener, never)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TooManyReaders):
            await interrupts.guard(READER, never)
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.TooSlowError), trio.fail_after(1):
        await interrupts.guard(READER, never)


async def test_a_wait_cleans_up_when_it_ends(autojump_clock: trio.testing.MockClock) -> None:
    family = Family()
    family.signalled.add(READER)
    interrupts = family.interrupts()
    cleaned = False

    async def wait() -> None:
        nonlocal cleaned
        try:
            await trio.sleep_forever()
        finally:
            cleaned = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.run)
        with pytest.raises(Interrupted):
            await interrupts.guard(READER, wait)
        assert cleaned
        nursery.cancel_scope.cancel()


async def test_nothing_is_waited_for_once_the_mount_ends() -> None:
    interrupts = Family().interrupts()
    interrupts.close()
    with pytest.raises(Interrupted):
        await interrupts.guard(READER, never)


async def test_a_wait_that_is_cancelled_from_outside_is_not_interrupted() -> None:
    interrupts = Family().interrupts()
    with trio.move_on_after(0) as scope:
        await interrupts.guard(READER, never)
    assert scope.cancelled_caught


async def test_many_reads_of_one_process_are_one_look(autojump_clock: trio.testing.MockClock) -> None:
    family = Family()
    interrupts = family.interrupts()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.run)
        for _ in range(50):
            nursery.start_soon(interrupts.guard, READER, never)
        await trio.sleep(10 * TICK_S + TICK_S / 2)
        assert len(family.looks) == 10
        nursery.cancel_scope.cancel()


async def test_the_time_spent_on_looking_does_not_grow_with_the_readers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    family = Family()
    family.looking_takes = LOOKING_S / 9.5
    interrupts = family.interrupts()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.run)
        for pid in range(1, 1001):
            nursery.start_soon(interrupts.guard, Opener(pid, 1), never)
        await trio.sleep(100 * TICK_S + TICK_S / 2)
        assert len(family.looks) == 1000
        assert len(set(family.looks)) == 1000, "each in its turn"
        nursery.cancel_scope.cancel()


async def test_nobody_is_looked_at_while_nobody_waits(autojump_clock: trio.testing.MockClock) -> None:
    family = Family()
    interrupts = family.interrupts()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.run)
        interrupts.hint()
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        assert family.looks == []
        nursery.cancel_scope.cancel()


async def test_a_flood_of_hints_leaves_time_for_others(autojump_clock: trio.testing.MockClock) -> None:
    family = Family()
    interrupts = family.interrupts()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.run)
        nursery.start_soon(interrupts.guard, READER, never)
        await trio.testing.wait_all_tasks_blocked()
        family.looking_takes = 1.0
        for _ in range(1000):
            interrupts.hint()
            await trio.sleep(0.01)
        assert 2 <= len(family.looks) <= 1 + 10 / PAUSE_FACTOR
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stranger", [STRANGER, None])
@pytest.mark.parametrize("explained", [True, False])
async def test_a_hint_that_nobody_explains_ends_the_reads_of_strangers(
    autojump_clock: trio.testing.MockClock, stranger: Opener | None, explained: bool
) -> None:
    family = Family()
    family.gone.add(STRANGER)
    interrupts = family.interrupts()
    ended = []

    async def read(opener: Opener | None) -> None:
        try:
            await interrupts.guard(opener, never)
        except Interrupted:
            ended.append(opener)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.run)
        nursery.start_soon(read, READER)
        nursery.start_soon(read, stranger)
        await trio.sleep(1)
        assert ended == []
        if explained:
            family.signalled.add(READER)
        interrupts.hint()
        await trio.sleep(1)
        assert ended == [READER if explained else stranger]
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def deaf(make_blocking_mount: MountMaker) -> BlockingMount:
    """A mount to which nothing hints at signals."""
    return make_blocking_mount(hints=False)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def terminal(directory: Path) -> Iterator[tuple[int, Callable[[str], None]]]:
    """An interactive shell: its keyboard, and a wait for what its screen shows."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    shell = subprocess.Popen(
        ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"],
        cwd=directory,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb", "HISTFILE": "/dev/null"},
    )
    os.close(theirs)
    screen = bytearray()

    def shows(pattern: str) -> None:
        def look() -> re.Match[bytes] | None:
            with suppress(BlockingIOError):
                screen.extend(os.read(ours, 1 << 16))
            return re.search(pattern.encode(), screen)

        eventually(look)

    try:
        yield ours, shows
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
