"""What /proc tells of real processes: at the close of a file of a real mount, and as they stand."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from dnpipefs.fuse import processes
from dnpipefs.fuse.processes import Fate, Opener, fate, interrupted, resolve, waiting
from tests.fuse.conftest import MountMaker
from tests.support.blocking_mount import BlockingMount
from tests.support.waiting import WITHIN_S, eventually

PYTHON = f"exec {sys.executable} -I -c"
NOBODY = 65534


# Fates, as the last close(2) of a file sees them


@pytest.mark.parametrize(
    ("command", "fate"),
    [
        ("exec 3<FILE; exit 0", "ENDED_WELL"),
        ("exec 3<FILE; exit 3", "FAILED"),
        ("exec 3<FILE; kill -9 $$", "FAILED"),
        ("exec 3<FILE; ulimit -c 0; kill -SEGV $$", "FAILED"),
        ("exec 3<FILE; exec 3<&-; exit 3", "ALIVE"),
        ("sh -c 'exec head -c1' <FILE", "ALIVE"),  # coreutils close what they read, then exit
        ("exec sh -c 'read line <&3; exit 0' 3<FILE", "ENDED_WELL"),
        ("head -c1 FILE; exit 3", "ALIVE"),
        ("exec 3<FILE; (exit 3); exit 0", "ENDED_WELL"),
        ("exec 3<FILE; (exit 0); exit 3", "FAILED"),
        ("exec 3<FILE; sh -c 'kill -9 $$'; exit 0", "ENDED_WELL"),
        ("exec 3<FILE; exec sh -c 'exit 4'", "FAILED"),
    ],
)
def test_the_fate_of_an_opener(blocking: BlockingMount, command: str, fate: str) -> None:
    name = re.sub(r"\W+", "-", command)
    blocking.push(name, "x\n")
    blocking.start(command.replace("FILE", name)).wait(WITHIN_S)
    assert blocking.last_fate(name) == fate


@pytest.mark.parametrize(
    ("ending", "fate"),
    [
        ("os._exit(0)", "ENDED_WELL"),
        ("os._exit(3)", "FAILED"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "FAILED"),
    ],
)
@pytest.mark.parametrize("main_thread", ["lives", "has ended"])
def test_a_process_of_several_threads_ends_as_a_whole(
    blocking: BlockingMount, ending: str, fate: str, main_thread: str
) -> None:
    """Whoever ends it; the main thread may have ended long before, which is no end of the process."""
    name = f"threads-{ending}-{main_thread}".replace(" ", "-")
    script = f"""if True:
        import ctypes, os, signal, threading, time
        def end():
            while {main_thread == "has ended"} and ") Z" not in open("/proc/self/stat").read():
                time.sleep(0.001)
            os.dup2(os.dup(file), 100)
            os.close(100)
            {ending}
        file = os.open({name!r}, os.O_RDONLY)
        for other in range(3):
            threading.Thread(target=time.sleep, args=[60]).start()
        threading.Thread(target=end).start()
        if {main_thread == "has ended"}:
            ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone
    """
    assert os.uname().machine == "x86_64", "60 is exit(2) there"
    blocking.start([sys.executable, "-I", "-c", script]).wait(WITHIN_S)
    assert blocking.last_fate(name) == fate
    flushes = [event[2] for event in blocking.events if event[:2] == ["flush", name]]
    assert flushes[0] == "ALIVE"


@pytest.mark.parametrize(
    ("ending", "fate"), [("exit 0", "UNKNOWN"), ("exit 3", "UNKNOWN"), ("kill -9 $$", "UNKNOWN")]
)
def test_an_exit_status_that_may_not_be_seen_is_no_success(
    make_blocking_mount: MountMaker, ending: str, fate: str
) -> None:
    """The daemon serves as nobody, the reader is root."""
    if os.geteuid() != 0:
        pytest.skip("only root can have a daemon of another user")
    mount = make_blocking_mount(uid=NOBODY)
    mount.start(f"exec 3<file; {ending}").wait(WITHIN_S)
    assert mount.last_fate("file") == fate
    # Signals are for everybody to see.
    reader = mount.start_reading(["cat", "other"], "other")
    reader.terminate()
    assert reader.wait(WITHIN_S) == -signal.SIGTERM


# Processes as they stand


@contextmanager
def process(command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell that has run the command up to `echo`."""
    with subprocess.Popen(
        ["bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    ) as shell:
        assert shell.stdout is not None
        try:
            shell.stdout.readline()
            yield shell
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


def opener_of(pid: int) -> Opener:
    found = resolve(pid)
    assert found is not None
    return found


def end(child: subprocess.Popen[bytes]) -> None:
    """Wait for a child to end, and leave it a zombie."""
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_a_thread_is_resolved_to_its_process() -> None:
    found: list[Opener | None] = []
    thread = threading.Thread(target=lambda: found.append(resolve(threading.get_native_id())))
    thread.start()
    thread.join()
    assert found == [opener_of(os.getpid())]
    assert found[0] is not None
    assert found[0].pid == os.getpid()


def test_another_pid_namespaces_process_is_nobody() -> None:
    assert resolve(0) is None


def test_a_process_that_is_gone_is_nobody() -> None:
    with process("echo; read line") as shell:
        opener = opener_of(shell.pid)
        assert fate(opener) is Fate.ALIVE
    assert resolve(shell.pid) is None
    assert fate(opener) is Fate.UNKNOWN
    assert interrupted(opener) is None


def test_a_later_process_of_the_same_number_is_another() -> None:
    with process("echo; read line") as shell:
        own = opener_of(shell.pid)
        earlier = Opener(own.pid, own.started - 1)
        assert fate(earlier) is Fate.UNKNOWN
        assert interrupted(earlier) is None
        assert interrupted(own) is False


@pytest.mark.parametrize(("status", "expected"), [(0, Fate.ENDED_WELL), (1, Fate.FAILED)])
def test_a_zombie_still_tells(status: int, expected: Fate) -> None:
    with process(f"exec 1>&-; exit {status}") as shell:
        end(shell)
        opener = opener_of(shell.pid)
        assert fate(opener) is expected
        assert interrupted(opener) is None


def test_nobody_may_see_how_roots_process_ended() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with process("exec 1>&-; exit 0") as well, process("exec 1>&-; kill -9 $$") as badly:
        end(well)
        end(badly)
        openers = opener_of(well.pid), opener_of(badly.pid)
        assert as_nobody(lambda: [fate(opener).name for opener in openers]) == "['UNKNOWN', 'UNKNOWN']"


def as_nobody(question: Callable[[], object]) -> str:
    """Return the answer that another user gets."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.write(writing, str(question()).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def test_a_blocked_signal_that_waits_is_no_interruption() -> None:
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"
    with process(f"{PYTHON} '{block}; print(flush=True); input()'") as program:
        program.terminate()
        eventually(lambda: int(field(program.pid, "ShdPnd"), 16))
        assert interrupted(opener_of(program.pid)) is False


def test_a_stopped_process_is_not_interrupted() -> None:
    """Signals wait for it until it goes on, but no call of it blocks: an answer would end another's read."""
    with process("echo; read line") as shell:
        shell.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, shell.pid, os.WSTOPPED | os.WNOWAIT)
        shell.terminate()
        eventually(lambda: int(field(shell.pid, "ShdPnd"), 16))
        assert interrupted(opener_of(shell.pid)) is False


FAMILIES = {
    "itself": "exec cat FILE",
    "a child": "exec 3<FILE; cat <&3; exit",
    "a grandchild": "exec 3<FILE; (cat <&3; exit); exit",
    "a thread": """exec SCRIPT 'if True:
        import os, threading
        file = os.open("FILE", os.O_RDONLY)
        threading.Thread(target=os.read, args=[file, 1]).start()
    '""",
    "a thread's child": """exec SCRIPT 'if True:
        import os, subprocess, threading
        threading.Thread(target=subprocess.run, args=[["cat"]], kwargs={"stdin": open("FILE")}).start()
    '""",
}


@pytest.mark.parametrize("whose", FAMILIES)
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP])
def test_a_signal_for_one_of_the_family_is_seen(
    careless: BlockingMount, monkeypatch: pytest.MonkeyPatch, whose: str, listed: bool, how: signal.Signals
) -> None:
    """Also where the kernel does not list children."""
    if not listed:
        monkeypatch.setattr(processes, "_kernel_lists_children", lambda: False)
        processes._by_parent.cache_clear()
    name = f"{whose.replace(' ', '-')}-{listed}-{how}".replace("'", "")
    command = FAMILIES[whose].replace("FILE", name).replace("SCRIPT", f"{sys.executable} -I -c")
    program = careless.start_reading(command, name)
    opener = opener_of(program.pid)
    reader = eventually(lambda: reader_below(program.pid) or 0)
    assert interrupted(opener) is False
    assert waiting(opener)
    os.kill(reader, how)
    eventually(lambda: interrupted(opener))
    careless.push(name, "x")
    with suppress(ProcessLookupError):  # the first signal may have ended it by now
        os.kill(reader, signal.SIGKILL)
    careless.push(name, "x")
    careless.saw("release", name)


@pytest.fixture(scope="module")
def careless(make_blocking_mount: MountMaker) -> BlockingMount:
    """A mount whose reads no signal ends."""
    return make_blocking_mount(looks=False)


def reader_below(pid: int) -> int | None:
    """Return which process below `pid`, or itself, waits for a FUSE daemon."""
    listed = subprocess.run(
        ["ps", "-eLo", "pid=,ppid=,wchan:40="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    family = {str(pid)}
    for _ in range(3):
        family |= {own for own, parent, _ in rows if parent in family}
    return next(
        (int(own) for own, _, where in rows if own in family and where == "request_wait_answer"), None
    )


def field(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/status") as lines:
        return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{name}:"))
