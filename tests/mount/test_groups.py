"""Workers of all kinds on `topic@group`, on a real mount: what is done when they end, what comes again.

When is not said: the kernel tells the daemon of the last close, and lets nobody wait for it. Who reads right
after a worker's end may get the next message first.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnpipefs.fuse.endings import WATCHED_LIMIT
from tests.support.onlooker import Onlooker
from tests.support.programs import Programs, readers, terminal
from tests.support.waiting import WITHIN_S, eventually

PYTHON = sys.executable
ALL = ["1", "2", "3", "4", "5"]


def needs_exit_statuses() -> None:
    """Skip what cannot be seen in time: a status after the process has closed its file."""
    major, minor = os.uname().release.split(".")[:2]
    if (int(major), int(minor)) < (6, 15):
        pytest.skip("before Linux 6.15 a close by a process that is about to fail counts as success")


@pytest.fixture
def view(here: Path) -> Path:
    """A group of a topic with the messages 1 to 5."""
    push(here / "jobs", *ALL)
    return here / "jobs@w"


def push(topic: Path, *messages: object) -> None:
    topic.write_text("".join(f"{message}\n" for message in messages))


@pytest.fixture
def one_close_at_a_time(here: Path, tmp_path: Path) -> Iterator[None]:
    """Let the kernel send only one request at a time of those that no process waits for."""
    if os.geteuid() != 0:
        pytest.skip("only root may set the limits of a FUSE connection")
    subprocess.run(["mount", "-t", "fusectl", "none", tmp_path], check=True)
    limit = tmp_path / str(os.minor(here.stat().st_dev)) / "max_background"
    usual = limit.read_text()
    limit.write_text("1")
    yield
    limit.write_text(usual)
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.usefixtures("one_close_at_a_time")
def test_those_that_close_and_live_on_do_not_wait_for_one_another(
    view: Path, programs: Programs, onlooker: Onlooker
) -> None:
    """It takes a quarter of a second to see that a process lives on: for 70 not 70 times as long."""
    push(view.parent / "jobs", *range(6, 71))
    for _ in range(70):
        programs.start("read -r j < jobs@w; exec tail -f /dev/null")
    eventually(lambda: onlooker.lag(view) == 0)


# Shells

LOOP = "while read -r j; do echo $j; if [ $j = 2 ]; then %s; fi; done < jobs@w"
EXEC_LOOP = "exec 3< jobs@w; while read -r j <&3; do echo $j; if [ $j = 2 ]; then %s; fi; done"
SECOND_IS_DONE, SECOND_COMES_AGAIN = ALL[2:], ALL[1:]


@pytest.mark.parametrize("loop", [LOOP, EXEC_LOOP], ids=["redirected", "exec"])
@pytest.mark.parametrize("shell", ["bash", "dash"])
@pytest.mark.parametrize(
    ("ending", "status", "left"),
    [
        ("break", 0, SECOND_IS_DONE),
        ("exit 0", 0, SECOND_IS_DONE),
        ("exit 3", 3, SECOND_COMES_AGAIN),
        ("set -e; false", 1, SECOND_COMES_AGAIN),
        ("kill -9 $$", -9, SECOND_COMES_AGAIN),
        ("kill -TERM $$", -15, SECOND_COMES_AGAIN),
        ("trap 'true | true' EXIT; exit 3", 3, SECOND_COMES_AGAIN),
        ("(exit 3); sh -c 'exit 4'; true | cat > /dev/null; break", 0, SECOND_IS_DONE),
        ("{ (kill -9 $BASHPID); } 2> /dev/null; break", 0, SECOND_IS_DONE),
    ],
)
def test_a_shell_loop(
    view: Path,
    programs: Programs,
    onlooker: Onlooker,
    shell: str,
    loop: str,
    ending: str,
    status: int,
    left: list[str],
) -> None:
    if shell == "dash" and "BASHPID" in ending:
        pytest.skip("dash has no BASHPID")
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    if loop is LOOP and status > 0:
        needs_exit_statuses()
    assert programs.run([shell, "-c", loop % ending], status) == ["1", "2"]
    assert sorted(onlooker.leftovers(view)) == left


def test_each_read_of_a_shell_has_a_message_in_hand_only_until_its_file_is_closed(
    view: Path, programs: Programs, onlooker: Onlooker
) -> None:
    assert programs.run("for i in 1 2 3; do read -r j < jobs@w; echo $j; done") == ALL[:3]
    assert onlooker.leftovers(view) == ALL[3:]


MANY_LOOPS = """
import os, subprocess, sys
files = [os.open("loops@w", os.O_RDONLY) for _ in range(int(sys.argv[1]))]
for file in files:
    os.read(file, 100)
    os.set_inheritable(file, True)
subprocess.run(["true"], close_fds=False)
for file in files:
    os.read(file, 100)
print("looping", flush=True)
sys.stdin.read()
"""
"""As many loops, each of which has had a message and has called another program, are at their next one."""


def test_loops_that_call_other_programs_keep_nobody_from_failing(
    view: Path, programs: Programs, onlooker: Onlooker
) -> None:
    needs_exit_statuses()
    push(view.with_name("loops"), *range(2 * WATCHED_LIMIT))
    with subprocess.Popen(
        [PYTHON, "-Ic", MANY_LOOPS, str(WATCHED_LIMIT)],
        cwd=view.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as loops:
        assert loops.stdout is not None
        assert loops.stdout.readline() == "looping\n"
        programs.run(["bash", "-c", "while read -r job; do exit 3; done < jobs@w"], expect=3)
        assert onlooker.leftovers(view) == ALL
        loops.kill()


def test_a_child_that_outlives_the_opener_leaves_it_open_how_it_ended(
    view: Path, programs: Programs, onlooker: Onlooker, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "go")
    child = "sh -c 'read x < \"$0\"' " + str(tmp_path / "go")
    shell = programs.start(f"exec 3< jobs@w; read -r j <&3; {{ {child}; }} > /dev/null & exit 0")
    assert shell.wait(WITHIN_S) == 0
    group = onlooker.group(view)
    assert group is not None
    assert group.lag == len(ALL)
    (tmp_path / "go").write_text("go\n")
    assert sorted(onlooker.leftovers(view)) == ALL


def test_children_take_from_the_descriptor_of_their_parent(
    view: Path, programs: Programs, onlooker: Onlooker
) -> None:
    script = "exec 3< jobs@w; for i in 1 2; do bash -c 'read -r j <&3; echo $j; exit 3'; done; exit 0"
    assert programs.run(script) == ["1", "2"]
    assert onlooker.leftovers(view) == SECOND_IS_DONE


# Programs that take some


@pytest.mark.parametrize(
    ("command", "status", "printed", "left"),
    [
        (["head", "-n", "1", "jobs@w"], 0, ALL[:1], ALL[1:]),
        (["head", "-n", "2", "jobs@w"], 0, ALL[:2], ALL[2:]),
        (["dd", "if=jobs@w", "count=2", "status=none"], 0, ALL[:2], ALL[2:]),
        (["grep", "-m", "2", ".", "jobs@w"], 0, ALL[:2], ALL[2:]),
        (["sed", "2q", "jobs@w"], 0, ALL[:2], ALL[2:]),
        (["perl", "-ne", "print; exit 3 if /2/", "jobs@w"], 3, ALL[:2], ALL[1:]),
        (["mawk", "-W", "interactive", "{print} NR == 2 {exit 0}", "jobs@w"], 0, ALL[:2], ALL[2:]),
        (["mawk", "-W", "interactive", "{print} NR == 2 {exit 3}", "jobs@w"], 3, ALL[:2], ALL[1:]),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_program_that_takes_some(
    view: Path,
    programs: Programs,
    onlooker: Onlooker,
    command: list[str],
    status: int,
    printed: list[str],
    left: list[str],
) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    assert programs.run(command, status) == printed
    assert sorted(onlooker.leftovers(view)) == left


@pytest.mark.parametrize(
    ("ending", "status", "left"),
    [
        ("break", 0, SECOND_IS_DONE),
        ("sys.exit(0)", 0, SECOND_IS_DONE),
        ("sys.exit(3)", 3, SECOND_COMES_AGAIN),
        ("1 / 0", 1, SECOND_COMES_AGAIN),
        ("os._exit(3)", 3, SECOND_COMES_AGAIN),
        ("os.kill(os.getpid(), 9)", -9, SECOND_COMES_AGAIN),
    ],
)
def test_pythons_for_loop(
    view: Path, programs: Programs, onlooker: Onlooker, ending: str, status: int, left: list[str]
) -> None:
    """Its buffer holds what one read(2) returned, which is one message."""
    if ending in ("sys.exit(3)", "1 / 0"):
        needs_exit_statuses()
    script = f"""if True:
        import os, sys
        for line in open("jobs@w"):
            print(line, end="", flush=True)
            if line == "2\\n":
                {ending}
    """
    printed = programs.run([PYTHON, "-I", "-c", script], status)
    assert printed[:2] == ["1", "2"]
    assert len(printed) == 2 or "ZeroDivisionError" in printed[-1]
    assert sorted(onlooker.leftovers(view)) == left


# Programs that never have enough: their next read acknowledges


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        (["cat", "jobs@w"], ALL),
        (["jq", "-c", "--unbuffered", ".", "jobs@w"], ALL),
        (["sed", "-u", "", "jobs@w"], ALL),
        (["mawk", "-W", "interactive", "{print; fflush()}", "jobs@w"], ALL),
        (["mawk", "{print; fflush()}", "jobs@w"], []),  # it waits until its buffer is full
        (["sh", "-c", "exec xargs -n1 -P4 echo < jobs@w"], ALL),
        (["parallel", "--will-cite", "-j4", "-a", "jobs@w", "echo"], None),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) and value not in (ALL, []) else None,
)
def test_a_program_that_reads_on(
    view: Path, programs: Programs, onlooker: Onlooker, command: list[str], printed: list[str] | None
) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here: scripts/setup.sh does not install it")
    program = programs.start(command)
    eventually(lambda: readers(program.pid) and onlooker.lag(view) == 0)
    os.killpg(program.pid, signal.SIGTERM)
    output, _ = program.communicate(timeout=WITHIN_S)
    if printed is not None:
        assert sorted(output.split()) == printed
    assert onlooker.leftovers(view) == []


def test_a_worker_that_waits_gets_what_comes(here: Path, programs: Programs, onlooker: Onlooker) -> None:
    push(here / "jobs")
    worker = programs.reading("while read -r j; do echo $j; [ $j = end ] && break; done < jobs@w")
    for message in ("one", "two", "end"):
        push(here / "jobs", message)
    assert worker.communicate(timeout=WITHIN_S)[0].split() == ["one", "two", "end"]
    assert onlooker.leftovers(here / "jobs@w") == []


def test_many_workers_each_message_once(here: Path, programs: Programs, onlooker: Onlooker) -> None:
    push(here / "jobs", *range(200), *["end"] * 4)
    loop = "while read -r j; do [ $j = end ] && break; echo $j; done < jobs@w"
    workers = [programs.start(loop) for _ in range(4)]
    done = [worker.communicate(timeout=WITHIN_S)[0].split() for worker in workers]
    assert sorted(int(message) for one in done for message in one) == list(range(200))
    assert all(one == sorted(one, key=int) for one in done), "each sees them in order"
    assert onlooker.leftovers(here / "jobs@w") == []


# System calls

C_READER = r"""
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static void wake(int number) { (void)number; if (write(1, "woken\n", 6) < 0) _exit(9); }
int main(int count, char **arguments) {
    char buffer[100];
    struct sigaction action = {.sa_handler = wake, .sa_flags = count > 2 ? SA_RESTART : 0};
    sigaction(SIGUSR1, &action, NULL);
    int file = open(arguments[1], O_RDONLY);
    ssize_t got;
    do got = read(file, buffer, sizeof buffer);
    while (got < 0 && errno == EINTR && count > 2);
    if (got < 0) { printf("%s\n", strerror(errno)); return 4; }
    fwrite(buffer, 1, got, stdout);
    return 0;
}
"""


@pytest.fixture(scope="module")
def c_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    directory = tmp_path_factory.mktemp("c")
    (directory / "reader.c").write_text(C_READER)
    subprocess.run(["cc", "-o", directory / "reader", directory / "reader.c"], check=True)
    return directory / "reader"


def test_a_reader_that_takes_eintr_for_an_error_fails_and_loses_nothing(
    here: Path, programs: Programs, onlooker: Onlooker, c_reader: Path
) -> None:
    push(here / "jobs")
    program = programs.reading([c_reader, "jobs@w"])
    program.send_signal(signal.SIGUSR1)
    assert program.communicate(timeout=WITHIN_S)[0] == "woken\nInterrupted system call\n"
    push(here / "jobs", *ALL)
    assert onlooker.leftovers(here / "jobs@w") == ALL


def test_a_reader_that_calls_again_after_eintr_gets_its_message(
    here: Path, programs: Programs, onlooker: Onlooker, c_reader: Path
) -> None:
    """As Go's runtime does, whose scheduler sends signals to its own threads."""
    push(here / "jobs")
    program = programs.reading([c_reader, "jobs@w", "again"])
    assert program.stdout is not None
    for _ in range(3):
        eventually(lambda: readers(program.pid))
        program.send_signal(signal.SIGUSR1)
        assert program.stdout.readline() == "woken\n"
    push(here / "jobs", *ALL)
    assert program.communicate(timeout=WITHIN_S)[0] == "1\n"
    assert onlooker.leftovers(here / "jobs@w") == ALL[1:]


# Whose end nobody sees

NOBODY = "65534"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
class TestOfOthers:
    def test_another_user_works(self, view: Path, programs: Programs, onlooker: Onlooker) -> None:
        """A daemon of root sees how everybody ends."""
        (view.parent / "jobs").chmod(0o644)
        command = ["setpriv", "--reuid", NOBODY, "--clear-groups", "head", "-n", "1", "jobs@w"]
        assert programs.run(command) == ["1"]
        assert onlooker.leftovers(view) == ALL[1:]

    def test_modes_are_enforced(self, view: Path, programs: Programs) -> None:
        (view.parent / "jobs").chmod(0o640)
        command = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
        [said] = programs.run([*command, "cat", "jobs@w"], 1)
        assert "Permission denied" in said
        (view.parent / "jobs").chmod(0o644)
        [said] = programs.run([*command, "truncate", "-s", "0", "jobs@w"], 1)
        assert "Permission denied" in said

    def test_a_worker_of_a_pid_namespace_below(
        self, view: Path, programs: Programs, onlooker: Onlooker
    ) -> None:
        """As in a container on the daemon's host: the daemon sees how it ends."""
        inside = ["unshare", "-pf", "--mount-proc", "bash", "-c"]
        assert programs.run([*inside, "exec 3< jobs@w; read -r j <&3; echo $j; exit 0"]) == ["1"]
        assert programs.run([*inside, "exec 3< jobs@w; read -r j <&3; echo $j; exit 3"], 3) == ["2"]
        assert sorted(onlooker.leftovers(view)) == ALL[1:]


# Killed while they wait


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_is_killed_while_it_waits(
    view: Path, programs: Programs, onlooker: Onlooker, how: signal.Signals
) -> None:
    """What it read before is done, as its next read has said."""
    worker = programs.start(["cat", "jobs@w"])
    eventually(lambda: readers(worker.pid) and onlooker.lag(view) == 0)
    worker.send_signal(how)
    assert worker.wait(WITHIN_S) == -how
    push(view.parent / "jobs", "new")
    assert onlooker.leftovers(view) == ["new"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_is_killed_while_it_works(
    view: Path, programs: Programs, onlooker: Onlooker, how: signal.Signals
) -> None:
    worker = programs.start("while read -r j; do echo $j; sleep 1000; done < jobs@w")
    assert worker.stdout is not None
    assert worker.stdout.readline() == "1\n"
    os.killpg(worker.pid, how)
    assert worker.wait(WITHIN_S) == -how
    assert sorted(onlooker.leftovers(view)) == ALL


def test_timeout_ends_a_worker(view: Path, programs: Programs, onlooker: Onlooker) -> None:
    assert programs.run("timeout 0.5 cat jobs@w", 124) == ALL
    assert onlooker.leftovers(view) == []


def test_a_worker_of_a_terminal(view: Path, onlooker: Onlooker) -> None:
    """Ctrl-Z, fg, Ctrl-C."""
    with terminal(view.parent) as shell:
        shell.type("cat jobs@w\n")
        shell.shows("\n5\r")
        eventually(lambda: readers(shell.shell.pid) and onlooker.lag(view) == 0)
        shell.type("\x1a")
        shell.shows("Stopped")
        push(view.parent / "jobs", "stopped")
        shell.type("fg\n")
        shell.shows("\nstopped\r")
        eventually(lambda: readers(shell.shell.pid))
        shell.type("\x03")
        shell.type("echo status-$?\n")
        shell.shows("status-130")
    assert onlooker.leftovers(view) == []


def test_other_files_stay_fast_while_200_readers_wait(here: Path, programs: Programs) -> None:
    push(here / "jobs")
    push(here / "other", "message")
    script = """if True:
        import os, threading
        files = [os.open("jobs@w", os.O_RDONLY) for _ in range(200)]
        for file in files:
            threading.Thread(target=os.read, args=[file, 100]).start()
    """
    program = programs.start([PYTHON, "-I", "-c", script])

    def waiting() -> bool:
        tasks = Path(f"/proc/{program.pid}/task").iterdir()
        return sum((task / "syscall").read_text().startswith("0 ") for task in tasks) == 200

    eventually(waiting)
    assert (
        programs.run("for i in 1 2 3; do ls > /dev/null; stat other > /dev/null; cat other; done")
        == ["message"] * 3
    )
    program.terminate()
    assert program.wait(WITHIN_S) == -signal.SIGTERM
