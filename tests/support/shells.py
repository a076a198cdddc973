"""A shell at a terminal: keys are pressed, and the shell itself says what its command line has become."""

import os
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

WITHIN_S = 30.0
"""For what should take a second, on a machine that has other things to do."""
TAB, HOME, END = b"\t", b"\x01", b"\x05"


class InteractiveShell:
    """bash or zsh on a pseudo terminal; it starts as no user's, and dies with the terminal."""

    COMMANDS: Mapping[str, list[str]] = {
        "bash": ["bash", "--noprofile", "--norc", "-i"],
        "zsh": ["zsh", "-f", "-i"],
    }

    def __init__(self, name: str, directory: Path, env: Mapping[str, str]) -> None:
        self._master, slave = os.openpty()
        self._process = subprocess.Popen(
            self.COMMANDS[name],
            cwd=directory,
            env={**env, "TERM": "dumb", "HOME": str(directory), "HISTFILE": "", "PS1": "$ "},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._directory = directory
        self._rounds = 0

    def run(self, command: str) -> None:
        """Run a command line to its end."""
        self._press(command.encode())

    def after(self, keys: bytes) -> list[str]:
        """Return the words of the command line that these keys, Tab among them, have made."""
        # The shell takes the keys behind a Tab when it is done with it.
        self._press(keys + HOME + b"printf '%s\\0' " + END + b" > words")
        return (self._directory / "words").read_bytes().decode().split("\0")[:-1]

    def _press(self, keys: bytes) -> None:
        self._rounds += 1
        # Quoted in the middle, so that the echo of this line is not taken for what it says.
        os.write(self._master, keys + b"\necho end-of-''round-%d.\n" % self._rounds)
        end, seen = b"end-of-round-%d." % self._rounds, b""
        deadline = time.monotonic() + WITHIN_S
        while end not in seen:
            readable, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"no answer within {WITHIN_S:g} s, but {seen!r}"
            seen += os.read(self._master, 65536)

    def close(self) -> None:
        with self._process:
            self._process.kill()
        os.close(self._master)
