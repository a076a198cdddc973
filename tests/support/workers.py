"""Workers of a consumer group that are killed, and what their histories tell afterwards.

Each is a process of its own with a history file of its own (`worker_program.py` says what is in it), which
survives it. A line that is not whole is of a worker that was killed while it wrote it.
"""

import enum
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.support.group_checker import Ending, Fault, FaultKind, Reader, Refusal, Taken

PROGRAM = Path(__file__).with_name("worker_program.py")
GRACE_NS = 500_000_000
"""Within which a bad end after a close undoes it: a quarter of a second in the mount, and some on the way."""
OUTLIVED_NS = 12 * 10**9
"""How long the claims of a command stay after it was killed: the time to live of its session, and some."""

_BASH = """
exec 9>>"$HISTORY"
note() { printf '%s %s %s\\n' "$1" "${EPOCHREALTIME/./}000" "$2" >&9; }
leave() { note X "$1"; exit "$1"; }
n=0
work() {
    note G "$line"
    n=$((n + 1))
    if [ $n = "$FAIL_AT" ]; then leave 3; fi
    sleep "$WORK"
    note D
    if [ $n = "$QUIT_AT" ]; then leave 0; fi
}
"""
_LOOPS = {
    "loop": 'while IFS= read -r line; do work; done < "$VIEW"; leave 4',
    "exec": 'exec 3< "$VIEW" || leave 4; while IFS= read -r line <&3; do work; done; leave 4',
}


class Form(enum.Enum):
    """How a worker reads its group."""

    READ = "read"
    """A Python program that reads on."""
    ONE = "one"
    """One that opens and closes the group for each message, as `head -n 1` does."""
    LOOP = "loop"
    """A `while read` loop of bash with a redirection, which bash closes before it exits."""
    EXEC = "exec"
    """One with a descriptor that is open until bash ends."""
    COMMAND = "command"
    """`dnpipefs pull --group --exec`, a host by itself."""


@dataclass(frozen=True)
class Habits:
    """What a worker does by itself; message numbers count from 1, 0 is never."""

    form: Form
    work_s: float
    fail_at: int = 0
    """At which message it fails in the middle; of a COMMAND, one in how many."""
    quit_at: int = 0
    """After which message it ends well."""
    slow_at: int = 0
    """Which message takes it longer than any visibility timeout."""

    @classmethod
    def at_random(cls, random: Random, *, slow: bool) -> "Habits":
        forms = [Form.READ, Form.READ, Form.ONE, Form.EXEC]
        if sees_statuses():
            forms.append(Form.LOOP)
        form = random.choice(forms)
        fate, when = random.random(), random.randrange(1, 60)
        return cls(
            form,
            round(random.choice([0.001, 0.01, 0.05]) * random.uniform(0.5, 1.5), 4),
            fail_at=when if fate < 0.4 else 0,
            quit_at=when if fate > 0.8 else 0,
            slow_at=random.randrange(2, 40) if slow and random.random() < 0.4 else 0,
        )


def sees_statuses() -> bool:
    """Whether the mount learns the status of a process that closed its file before."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 15)


class Worker:
    """One worker. To be started in a thread that lives longer: it dies with it."""

    def __init__(
        self, name: str, host: str, view: Path, history: Path, habits: Habits, connection: list[str]
    ) -> None:
        """`connection`: the options of a COMMAND, which does not use the mount."""
        self.name = name
        self.host = name if habits.form is Form.COMMAND else host
        self.habits = habits
        self._history = history
        self.killed_at: int | None = None
        self._killed_by = 0
        numbers = [str(n) for n in (habits.work_s, habits.fail_at, habits.quit_at, habits.slow_at)]
        program = [
            sys.executable,
            "-I",
            "-S",
            str(PROGRAM),
            habits.form.value,
            str(history),
            str(view),
            *numbers,
        ]
        environment = dict(os.environ)
        if habits.form is Form.COMMAND:
            topic, group = view.name.split("@")
            work = ["--group", group, "--exec", " ".join(program), *connection]
            program = [sys.executable, "-m", "dnpipefs", "pull", topic, *work]
        elif habits.form.value in _LOOPS:
            program = ["bash", "-c", _BASH + _LOOPS[habits.form.value]]
            environment |= dict(zip(("WORK", "FAIL_AT", "QUIT_AT"), numbers, strict=False))
            environment |= {"VIEW": str(view), "HISTORY": str(history), "LC_ALL": "C"}
        with history.with_suffix(".err").open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *program],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self, how: signal.Signals) -> bool:
        """Send a signal if it lives, to it and not to its children; tell whether it did."""
        if not self.alive:
            return False
        if self.killed_at is None:
            self.killed_at = time.monotonic_ns()
        self.process.send_signal(how)
        return True

    def clear(self) -> None:
        """Leave neither it nor its children behind; those of one that is gone end by themselves."""
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=20)

    def fault(self) -> Fault | None:
        """Return what its end does to a COMMAND, which is a host by itself."""
        if self.habits.form is not Form.COMMAND or self.killed_at is None:
            return None
        at = self.killed_at
        return Fault(FaultKind.DAEMON_KILLED, self.host, at, at, at + OUTLIVED_NS)

    def told(self, wall_ahead: int) -> tuple[list[Reader], list[Refusal]]:
        """Return what its history tells, after its end; bash writes times of the wall clock."""
        if not self._history.exists():
            return [], []
        return read_history(
            self._history.read_bytes(),
            self.name,
            self.host,
            status=self.process.returncode,
            killed_at=self.killed_at,
            ahead_ns=wall_ahead if self.habits.form.value in _LOOPS else 0,
            by_pipe=self.habits.form is Form.COMMAND,
        )


def read_history(
    history: bytes,
    name: str,
    host: str,
    *,
    status: int,
    killed_at: int | None,
    ahead_ns: int = 0,
    by_pipe: bool = False,
) -> tuple[list[Reader], list[Refusal]]:
    """Return what a worker had at each of its opens, and which calls failed.

    It ended with *status*, as subprocess has it, and the first signal was sent to it at *killed_at*. Its
    clock is *ahead_ns* ahead. *by_pipe*: its messages came through a pipe, which is cut when the other end is
    killed; who reads it cannot tell.
    """
    *lines, _torn = history.split(b"\n")
    readers: list[Reader] = []
    refusals: list[Refusal] = []
    taken: list[Taken] = []
    is_open, last, letter = False, 0, b""

    def close(ending: Ending, at: int) -> None:
        nonlocal taken, is_open
        readers.append(Reader(name, host, taken, ending, at))
        taken, is_open = [], False

    for line in lines:
        letter, stamp, rest = line.split(b" ", 2)
        last = int(stamp) - ahead_ns
        if by_pipe and killed_at is not None and last >= killed_at and rest.startswith(b"torn "):
            break
        if letter in b"OG":
            is_open = True
        if letter == b"G":
            taken.append(Taken(rest + b"\n", last))
        elif letter == b"D":
            taken[-1] = Taken(taken[-1].line, taken[-1].got, last)
        elif letter in b"CF":
            close(Ending.WELL if letter == b"C" else Ending.FAILED, last)
        elif letter == b"E":
            refusals.append(Refusal(name, host, int(rest), last))
    if not status:
        ending, ended = Ending.WELL, last
    elif status > 0:
        ending, ended = Ending.FAILED, last
        if killed_at is not None and letter != b"X":  # a command that has caught the signal
            ended = killed_at
    else:
        assert killed_at is not None, f"{name} was ended by somebody else: {status}"
        ending, ended = Ending.KILLED, killed_at
    if not is_open and readers and readers[-1].ending is Ending.WELL and ending is not Ending.WELL:
        # The last close counts for nothing if a bad end follows at once.
        assert readers[-1].ended is not None
        if ended - readers[-1].ended < GRACE_NS:
            taken, is_open = list(readers.pop().taken), True
    if is_open:
        close(ending, ended)
    return readers, refusals


def wall_ahead_ns() -> int:
    """Return by how much the wall clock is ahead of the monotonic one, by the quickest look."""
    looks = []
    for _ in range(20):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        looks.append((after - before, wall - before))
    return min(looks)[1]
