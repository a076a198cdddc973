"""A real terminal: a shell in a window of tmux, typed into and looked at, as a user does."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.support.waiting import WITHIN_S, eventually

PROMPT = "ready>"
_numbers = itertools.count()


def why_no_terminal() -> str | None:
    """Return why there is none to be had."""
    return (
        None if shutil.which("tmux") else "tmux is not installed: scripts/setup.sh --tests does that, as root"
    )


class Terminal:
    """One window, with a server of its own."""

    def __init__(self, directory: Path, *, columns: int = 80, lines: int = 24) -> None:
        self._socket = directory / f"tmux{next(_numbers)}"
        shell = "env PS1=ready\\> LC_ALL=C.UTF-8 bash --norc --noprofile"
        size = ["-x", str(columns), "-y", str(lines)]
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, shell)
        self.until(PROMPT)

    def _tmux(self, *arguments: str) -> str:
        environment = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            ["tmux", "-S", str(self._socket), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=WITHIN_S,
        ).stdout

    def screen(self) -> str:
        """Return what is to be seen."""
        return self._tmux("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        """Press keys by their names in tmux, such as Enter, C-c, Down or x."""
        self._tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type text as it is."""
        self._tmux("send-keys", "-l", text)

    def resize(self, columns: int, lines: int) -> None:
        """Make the window larger or smaller."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def until(self, *patterns: str, within_s: float = WITHIN_S) -> str:
        """Wait until the screen has all of these regular expressions; return it."""
        seen = ""

        def shown() -> bool:
            nonlocal seen
            seen = self.screen()
            return all(re.search(pattern, seen, re.MULTILINE) for pattern in patterns)

        try:
            eventually(shown, within_s=within_s)
        except AssertionError:
            raise AssertionError(f"{patterns} did not come, but:\n{seen}") from None
        return seen

    def end(self) -> None:
        """Close the window; what runs in it gets SIGHUP."""
        subprocess.run(["tmux", "-S", str(self._socket), "kill-server"], check=False, capture_output=True)
