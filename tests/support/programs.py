"""Programs that the tests run on a mount: none is left when the test ends, whatever it waits for."""

import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.waiting import WITHIN_S, eventually

FUSE_WAITS = {"request_wait_answer", "__fuse_request_send", "__fuse_simple_request", "fuse_simple_request"}
_READ = {"x86_64": "0", "aarch64": "63"}


class Programs:
    """The programs of one test, each the leader of a process group."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[subprocess.Popen[str]] = []

    def start(self, command: Sequence[str | Path] | str) -> subprocess.Popen[str]:
        """Start a program, or a script of bash, in the directory."""
        program = subprocess.Popen(
            ["bash", "-c", command] if isinstance(command, str) else command,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        self._started.append(program)
        return program

    def reading(self, command: Sequence[str | Path] | str) -> subprocess.Popen[str]:
        """Start a program, and return once it, or a child of it, waits in a read."""
        program = self.start(command)
        eventually(lambda: program.poll() is not None or readers(program.pid))
        assert program.poll() is None, program.communicate()
        return program

    def run(self, command: Sequence[str | Path] | str, expect: int | None = 0) -> list[str]:
        """Let a program end, and return the lines that it has printed."""
        program = self.start(command)
        printed, _ = program.communicate(timeout=WITHIN_S)
        assert expect is None or program.returncode == expect, f"{program.returncode}: {printed}"
        return printed.splitlines()

    def clear(self) -> None:
        for program in self._started:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
        for program in self._started:
            if program.stdout is not None and not program.stdout.closed:
                program.communicate(timeout=WITHIN_S)


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def readers(pid: int) -> list[int]:
    """Return who of a process and its descendants waits in a read(2) of a FUSE file."""
    found = []
    for member in blocked(pid):
        with suppress(OSError):
            call = Path(f"/proc/{member}/syscall").read_text().split()[0]
            if call == _READ[os.uname().machine]:
                found.append(member)
    return found


def blocked(pid: int) -> list[int]:
    """Return who of a process and its descendants waits for an answer of a FUSE file system."""
    found = []
    for member in family(pid):
        with suppress(OSError):
            if Path(f"/proc/{member}/wchan").read_text() in FUSE_WAITS:
                found.append(member)
    return found


class Terminal:
    """An interactive shell on a terminal."""

    def __init__(self, directory: Path) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.shell = subprocess.Popen(
            ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"],
            cwd=directory,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "dumb", "HISTFILE": "/dev/null", "PS1": ""},
        )
        os.close(theirs)
        self._screen = bytearray()

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def shows(self, pattern: str) -> None:
        """Wait until the screen shows it."""

        def look() -> re.Match[bytes] | None:
            with suppress(BlockingIOError):
                self._screen.extend(os.read(self._ours, 1 << 16))
            return re.search(pattern.encode(), self._screen)

        eventually(look)

    def end(self) -> None:
        for pid in reversed(family(self.shell.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.shell.wait()
        os.close(self._ours)


@contextmanager
def terminal(directory: Path) -> Iterator[Terminal]:
    shell = Terminal(directory)
    try:
        yield shell
    finally:
        shell.end()
