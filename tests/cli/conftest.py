"""The command as users run it: a process of its own, on a real etcd, each test below a prefix of its own."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from dnpipefs.cli import program
from tests.etcd.conftest import client, server, shared_server
from tests.etcd.test_security import guarded
from tests.support.etcd_process import EtcdProcess

__all__ = ["client", "guarded", "server", "shared_server"]

WITHIN_S = 30.0
"""For what should take a second, on a machine that has other things to do."""

Capture = pytest.CaptureFixture[bytes]

_numbers = itertools.count()


class Command:
    """Runs `dnpipefs COMMAND …` with the options for this test's cluster.

    In a process of its own; with `here` given, `out` and `fails` run what needs no standard input in this
    one, which spares most of a second.
    """

    def __init__(self, options: Sequence[str], here: Capture | None = None) -> None:
        self.options = list(options)
        self._here = here
        self._started: list[subprocess.Popen[bytes]] = []

    def line(self, name: str, *arguments: str | bytes | Path) -> list[str | bytes | Path]:
        return [sys.executable, "-m", "dnpipefs", name, *self.options, *arguments]

    def run(
        self,
        name: str,
        *arguments: str | bytes | Path,
        given: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        if self._here is not None and given is None and env is None and name != "mount":
            line = [os.fsdecode(argument) for argument in self.line(name, *arguments)[3:]]
            code = program.run(line)
            return subprocess.CompletedProcess(line, code, *self._here.readouterr())
        return subprocess.run(
            self.line(name, *arguments),
            input=given or b"",
            capture_output=True,
            timeout=WITHIN_S,
            env=env,
            check=False,
        )

    def out(self, name: str, *arguments: str | bytes | Path, given: bytes | None = None) -> bytes:
        """Return the output of a command that succeeds and has nothing to say besides."""
        done = self.run(name, *arguments, given=given)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    def fails(
        self,
        code: int,
        name: str,
        *arguments: str | bytes | Path,
        given: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Return the one line that a command says that ends with `code`."""
        done = self.run(name, *arguments, given=given, env=env)
        assert (done.returncode, done.stdout) == (code, b""), done
        said = done.stderr.decode()
        assert said.startswith("dnpipefs: "), said
        assert said.count("\n") == 1, said
        return said

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self.line(name, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._started.append(process)
        return process

    def shell(self, script: str) -> subprocess.CompletedProcess[bytes]:
        """Run a bash script in which `dnp COMMAND …` is the command."""
        prelude = f'set -o pipefail\ndnp() {{ name=$1; shift; "{sys.executable}" -m dnpipefs "$name" '
        options = " ".join(f"'{option}'" for option in self.options)
        return subprocess.run(
            ["bash", "-c", f'{prelude}{options} "$@"; }}\n{script}'],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WITHIN_S,
            check=False,
        )

    def end(self) -> None:
        for process in self._started:
            with process:
                process.kill()


def cluster_options(server: EtcdProcess) -> list[str]:
    return ["--endpoints", server.endpoint, "--prefix", f"/cli/{next(_numbers)}/"]


@pytest.fixture
def dnp(shared_server: EtcdProcess, capfdbinary: Capture) -> Iterator[Command]:
    command = Command(cluster_options(shared_server), capfdbinary)
    yield command
    command.end()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Command]:
    """With an etcd of its own."""
    command = Command(["--data-dir", str(tmp_path / "data")])
    yield command
    command.end()


@pytest.fixture
def no_programs(tmp_path: Path) -> dict[str, str]:
    """An environment in which no program is found."""
    empty = tmp_path / "bin"
    empty.mkdir()
    return {**os.environ, "PATH": str(empty)}
