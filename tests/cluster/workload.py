"""A workload of many client processes on the mounts of one cluster, and its history.

The test that starts it breaks things meanwhile, and says so by `nemesis`; then it heals them, stops the
workload, lets all mounts be read to the end, and judges:

    workload = Workload(mounts=[one, other], directory=tmp_path / "history", seed=1)
    workload.prepare()
    with workload.running():
        ...
    workload.final_read()
    assert judge(workload.collect()) == []

The mounts are any directories that show the same files.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.clients import GROUP, Plan
from tests.cluster.history import Create, Died, Final, History, HistoryWriter, Nemesis, read_history

REPOSITORY = Path(__file__).parents[2]
FINAL_WITHIN_S = 30.0
"""After everything healed, all mounts agree."""
DRAINERS = 2
"""On each mount."""
DRAIN_RATE = 20.0


@dataclass(frozen=True)
class Crew:
    """How many clients of each kind there are on each mount, and how fast they are."""

    push: int = 3
    read: int = 1
    follow: int = 1
    subscribe: int = 1
    listen: int = 1
    reset: int = 1
    churn: int = 1
    consume: int = 1
    rates: tuple[tuple[str, float], ...] = (
        ("push", 100.0),
        ("read", 10.0),
        ("follow", 20.0),
        ("subscribe", 100.0),
        ("listen", 100.0),
        ("reset", 0.5),
        ("churn", 5.0),
        ("consume", 10.0),
    )
    """Operations a second of one client, at most."""
    kept: int = 2
    reset_topics: int = 2


class Progress:
    """How many messages a pusher has got acknowledged, as its history grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._begun: dict[int, int] = {}
        self.acknowledged = 0

    def look(self) -> None:
        """Read what is new."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        for line in data[:whole].splitlines():
            values = json.loads(line)
            if values.get("call") == "write":
                self._begun[values["n"]] = values["count"]
            elif "call" not in values and "n" in values:
                count = self._begun.pop(values["n"], 0)
                self.acknowledged += 0 if "errno" in values else values.get("whole", count)


class Workload:
    """Client processes on mounts."""

    def __init__(
        self,
        *,
        mounts: Sequence[Path],
        directory: Path,
        seed: int,
        crew: Crew | None = None,
        below: str = "work",
        op_timeout: float = 30.0,
    ) -> None:
        """`directory` is where the histories are written, `below` where the topics are on each mount."""
        self.mounts = list(mounts)
        self.crew = crew or Crew()
        self.kept = tuple(f"kept{n}" for n in range(self.crew.kept))
        self.names = (*self.kept, *(f"reset{n}" for n in range(self.crew.reset_topics)))
        self._seed = seed
        self.below = below
        self._op_timeout = op_timeout
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._clients: list[subprocess.Popen[bytes]] = []
        self._round = 0
        self._progress: dict[Path, Progress] = {}
        self._logs: dict[Path | None, HistoryWriter] = {
            mount: HistoryWriter(directory / f"parent{n}.jsonl", f"parent{n}", str(mount))
            for n, mount in enumerate(self.mounts)
        }
        self._logs[None] = HistoryWriter(directory / "parent.jsonl", "parent", "")

    def prepare(self) -> None:
        """Make the topics, through the first mount."""
        mount = self.mounts[0]
        (mount / self.below).mkdir()
        for name in self.names:
            number = self._logs[mount].begin(Create, name=name)
            fd = os.open(mount / self.below / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
            ino = os.fstat(fd).st_ino
            os.close(fd)
            self._logs[mount].end(number, ino=ino)

    def start(self) -> None:
        """Start all clients."""
        for n, mount in enumerate(self.mounts):
            for role, rate in self.crew.rates:
                for k in range(getattr(self.crew, role)):
                    self._clients.append(self._client(role, f"m{n}-{role}{k}", mount, rate=rate))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the clients live for the time of the block."""
        try:
            self.start()
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Tell all clients to end; those that hang for longer than a call may take are killed."""
        for client in self._clients:
            assert client.stdin is not None
            with suppress(BrokenPipeError):
                client.stdin.close()
        deadline = time.monotonic() + self._op_timeout + 10
        for client in self._clients:
            try:
                client.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                # Its last call has no end in the history, which goes on long enough to show it.
                client.kill()
                with suppress(subprocess.TimeoutExpired):  # it may be stuck in the kernel
                    client.wait(timeout=1)
                self._logs[None].begin(Nemesis, what=f"killed a client that hung: {client.args!r}")
        failed = [c.returncode for c in self._clients if c.returncode not in (0, None, -signal.SIGKILL)]
        self._clients = []
        assert not failed, f"clients failed: {failed}"

    def acknowledged(self, mount: Path | None = None) -> int:
        """Return how many messages were acknowledged so far: on a mount, or (None) on all."""
        which = "*" if mount is None else f"m{self.mounts.index(mount)}"
        paths = list(self._directory.glob(f"{which}-push*.jsonl"))
        for path in paths:
            self._progress.setdefault(path, Progress(path)).look()
        return sum(self._progress[path].acknowledged for path in paths)

    @contextmanager
    def nemesis(self, mount: Path | None, what: str, *, since: int | None = None) -> Iterator[None]:
        """Say what is done to a mount (None: to all) during the block, or since before it.

        "kill" or "stop": its daemon ends, and is back at the end of the block; "pause"; or anything else.
        """
        number = self._logs[mount].begin(Nemesis, at=since, what=what)
        try:
            yield
        finally:
            self._logs[mount].end(number)

    def died(self, mount: Path, status: int) -> None:
        """Say that the daemon of a mount was found to have ended."""
        self._logs[mount].end(self._logs[mount].begin(Died, status=status))

    def final_read(self, *, within_s: float = FINAL_WITHIN_S) -> bool:
        """Let all topics be read on all mounts until all agree; the judge knows if they do not in time."""
        log = self._logs[None]
        number = log.begin(Final, mounts=[str(mount) for mount in self.mounts], names=self.names)
        deadline = time.monotonic() + within_s
        while True:
            found = self._read_all(max(1.0, deadline - time.monotonic()))
            if found is not None:
                log.end(number, names=found, round=self._round)
                return True
            if time.monotonic() > deadline:
                log.end(number, errno.ETIMEDOUT)
                return False

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Let workers that never fail take what is left in the groups of kept topics, during the block.

        `lag` tells when nothing is.
        """
        try:
            self._clients += [
                self._client("drain", f"m{n}-drain{k}", mount, rate=DRAIN_RATE, names=self.kept)
                for n, mount in enumerate(self.mounts)
                for k in range(DRAINERS)
            ]
            yield
        finally:
            self.stop()

    def lag(self) -> float:
        """Return how many messages of kept topics are not acknowledged, as the slowest mount sees it.

        Infinity while nobody has read as a group yet, since there is none then.
        """
        try:
            return max(
                sum(
                    int(os.getxattr(mount / self.below / f"{name}@{GROUP}", "user.dnp.lag"))
                    for name in self.kept
                )
                for mount in self.mounts
            )
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return math.inf

    def collect(self) -> History:
        """Return the history so far."""
        return read_history(self._directory)

    def _read_all(self, within_s: float) -> list[str] | None:
        """Read everything once on all mounts; return the names if all agree."""
        self._round += 1
        readers = [
            self._client("final", f"m{n}-final{self._round}", mount, round=self._round)
            for n, mount in enumerate(self.mounts)
        ]
        reports: list[dict[str, Any] | None] = []
        deadline = time.monotonic() + within_s
        for reader in readers:
            try:
                out, _ = reader.communicate(timeout=max(0.1, deadline - time.monotonic()))
                reports.append(json.loads(out) if reader.returncode == 0 else None)
            except subprocess.TimeoutExpired:
                reader.kill()
                reports.append(None)
        first = reports[0]
        if first is None or not first["listed"] or any(report != first for report in reports):
            return None
        if any(end < 0 for _, end in first["found"].values()):
            return None
        return list(first["found"])

    def _client(
        self,
        role: str,
        client: str,
        mount: Path,
        *,
        rate: float = 1.0,
        round: int = 0,  # noqa: A002
        names: tuple[str, ...] = (),
    ) -> subprocess.Popen[bytes]:
        plan = Plan(
            role=role,
            client=client,
            mount=str(mount),
            directory=str(mount / self.below),
            history=str(self._directory / f"{client}.jsonl"),
            seed=self._seed,
            names=names or self.names,
            rate=rate,
            round=round,
        )
        command = [sys.executable, "-W", "error", "-m", "tests.cluster.clients", plan.encode()]
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if role == "final" else subprocess.DEVNULL,
        )
