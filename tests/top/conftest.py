"""`dnpipefs top` in a terminal, on a real etcd."""

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command, cluster_options
from tests.etcd.conftest import server, shared_server
from tests.support.etcd_process import EtcdProcess
from tests.support.terminal import PROMPT, Terminal, why_no_terminal

__all__ = ["server", "shared_server"]

needs_terminal = pytest.mark.skipif(why_no_terminal() is not None, reason=why_no_terminal() or "")

OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[OpenTerminal]:
    """Open terminals that are closed at the end of the test."""
    opened: list[Terminal] = []

    def open_one(**size: int) -> Terminal:
        opened.append(Terminal(tmp_path, **size))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.end()


class Top:
    """`dnpipefs top` in a terminal."""

    def __init__(self, terminal: Terminal, command: Command, *arguments: str) -> None:
        self.terminal = terminal
        line = [sys.executable, "-m", "dnpipefs", "top", *command.options, *arguments]
        terminal.type("clear; stty -a > before; " + shlex.join(line) + '; echo "status $?"')
        terminal.press("Enter")

    def ends(self, status: int) -> None:
        """Check that it ends so, and that the terminal is what it was."""
        self.terminal.until(rf"^status {status}$", rf"^{PROMPT}")
        self.terminal.type("clear; stty -a | diff - before && echo as before")
        self.terminal.press("Enter")
        assert "TOPIC" not in self.terminal.until("^as before")


@pytest.fixture
def dnp(shared_server: EtcdProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command on this test's cluster."""
    monkeypatch.chdir(tmp_path)
    return Command(cluster_options(shared_server))
