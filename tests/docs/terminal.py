"""Terminals as a reader of the documents has them: an interactive bash on a pseudo terminal."""

import os
import re
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.support.waiting import eventually

MARK = "\x01ready\x02"
"""The prompt: nothing that a program prints."""
LIMIT_S = 30.0
"""For a command, on a machine that has other things to do."""

T = TypeVar("T")


class Terminal:
    """One window: commands are typed into it, one after the other, and what it shows is looked at."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._screen = ""
        self._command = "bash"
        self._busy = True
        self._controlling, terminal = os.openpty()
        settings = termios.tcgetattr(terminal)
        settings[1] &= ~termios.ONLCR
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, settings)
        os.set_blocking(self._controlling, False)
        self._shell = subprocess.Popen(
            ["setsid", "--ctty", "bash", "--norc", "--noprofile", "--noediting", "+H", "-i"],
            cwd=directory,
            env={**environment, "PS1": MARK, "PS2": "", "TERM": "dumb", "COLUMNS": "110", "HISTFILE": ""},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        self._until_prompt()

    def type(self, command: str) -> None:
        """Begin a command. One before it that went on has to have ended, and to have shown nothing more."""
        if self._busy:
            left = self._until_prompt()
            assert left == "", f"{self._command}\nhas shown in the end\n{left}"
        self._command = command
        self._busy = True
        os.write(self._controlling, command.encode() + b"\n")

    def finishes(self) -> str:
        """Wait until the command has ended, and return what it has shown since it was last looked at."""
        return self._until_prompt()

    def shows(self, pattern: str) -> None:
        """Wait until the command has shown what begins with *pattern*, and take that away."""
        found = self._until(lambda: re.match(pattern, self._shown()), pattern)
        self._screen = self._screen[found.end() :]

    def opens(self, below: Sequence[Path]) -> None:
        """Wait until the command, which goes on, has opened a file below one of some directories."""
        starts = tuple(f"{directory}/" for directory in below)
        self._until(lambda: self._has_open(starts), f"an open file below {below}")

    def interrupt(self) -> str:
        """Press Ctrl-C, and return what was shown until the prompt came."""
        os.write(self._controlling, b"\x03")
        return self._until_prompt()

    def close(self) -> None:
        """Close the window, with all that runs in it."""
        for pid in self._processes():
            os.kill(pid, signal.SIGKILL)
        self._shell.wait()
        os.close(self._controlling)

    def _shown(self) -> str:
        try:
            while block := os.read(self._controlling, 1 << 16):
                self._screen += re.sub("\x1b\\[[0-9;]*m", "", block.decode(errors="replace"))  # colours
        except BlockingIOError:
            pass
        return self._screen

    def _until_prompt(self) -> str:
        self._until(lambda: MARK in self._shown(), "its end")
        shown, _, self._screen = self._screen.partition(MARK)
        self._busy = False
        return shown

    def _until(self, condition: Callable[[], T | None], wanted: str) -> T:
        found: list[T] = []

        def look() -> bool:
            if value := condition():
                found.append(value)
            return bool(found)

        try:
            eventually(look, within_s=LIMIT_S)
        except AssertionError:
            raise AssertionError(
                f"{self._command}\ndid not come to\n{wanted}\nbut shows\n{self._shown()}"
            ) from None
        return found[0]

    def _processes(self) -> Iterator[int]:
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and os.getsid(int(entry.name)) == self._shell.pid:
                    yield int(entry.name)
            except ProcessLookupError:
                continue

    def _has_open(self, starts: tuple[str, ...]) -> bool:
        for pid in self._processes():
            try:
                links = list(Path(f"/proc/{pid}/fd").iterdir())
                if any(os.readlink(link).startswith(starts) for link in links):
                    return True
            except OSError:  # gone meanwhile
                continue
        return False
