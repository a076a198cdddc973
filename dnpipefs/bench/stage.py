"""What a measurement needs, set up and taken down again: etcd, mounts, clients, loads, a directory.

Owns processes and files, knows nothing of what is measured. Every child is a process group of its own
(Ctrl-C reaches the benchmark alone, which ends them in order) and ends by itself when its standard input
does, so nothing outlives a benchmark that is killed but its directory.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from dnpipefs.bench import load
from dnpipefs.bench.host import encode_settings
from dnpipefs.bench.load import Reply
from dnpipefs.cluster import Settings
from dnpipefs.errors import DnpError, SetupError
from dnpipefs.etcd.server import embedded_server
from dnpipefs.mount import unmount

logger: Final = logging.getLogger(__name__)

START_LIMIT_S: Final = 60.0
END_LIMIT_S: Final = 10.0
ANSWER_LIMIT_S: Final = 120.0
WHOLE_MACHINE: Final = "machine"
"""The role in `Starter.cpu` that stands for all processes there are."""
_READ_BYTES: Final = 1 << 16
_IN_MEMORY: Final = ("tmpfs", "ramfs")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_T = TypeVar("_T")


class MeasurementFailed(DnpError):
    """A process of the benchmark did not do its part; what it measured is worth nothing."""


class Child:
    """A process that answers one line of JSON with another."""

    def __init__(self, role: str, process: trio.Process, log_file: Path) -> None:
        self.role: Final = role
        self.pids: list[int] = [process.pid]
        """The process and those it has forked that work for it."""
        self._process: Final = process
        self._log_file: Final = log_file
        self._received = bytearray()

    async def ask(self, op: str, **fields: Any) -> Reply:
        """Let it do something and return its answer. Raises MeasurementFailed."""
        await self.send({"op": op, **fields})
        return await self.answer(ANSWER_LIMIT_S)

    async def send(self, request: Mapping[str, Any]) -> None:
        """Send one line."""
        assert self._process.stdin is not None  # noqa: S101 - `Starter` starts it with pipes
        try:
            await self._process.stdin.send_all(json.dumps(request).encode() + b"\n")
        except trio.BrokenResourceError:
            raise self._failed("ended") from None

    async def answer(self, limit_s: float) -> Reply:
        """Return the next line, decoded. Raises MeasurementFailed if it is an error or does not come."""
        with trio.move_on_after(limit_s):
            line = await self._line()
            reply: Reply = json.loads(line)
            if "error" in reply:
                raise self._failed(reply["error"])
            return reply
        raise self._failed(f"gave no answer for {limit_s:g} s")

    async def _line(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - `Starter` starts it with pipes
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            data = await self._process.stdout.receive_some(_READ_BYTES)
            if not data:
                raise self._failed("ended")
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    async def end(self) -> None:
        """End it in order; kill it if that takes too long."""
        assert self._process.stdin is not None  # noqa: S101 - `Starter` starts it with pipes
        await self._process.stdin.aclose()
        with trio.move_on_after(END_LIMIT_S) as scope:
            await self._process.wait()
        if scope.cancelled_caught:
            logger.warning("a %s process of the benchmark does not end; it is killed", self.role)
            self._process.kill()
            await self._process.wait()
        if self._process.stdout is not None:
            await self._process.stdout.aclose()

    def _failed(self, what: str) -> MeasurementFailed:
        words = self._log_file.read_text(errors="replace").strip().splitlines()
        last = f"; its last words: {words[-1]}" if words else ""
        return MeasurementFailed(f"the {self.role} process of the benchmark: {what}{last}")


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a benchmark runs."""

    settings: Settings
    """Of the cluster; the prefix is the benchmark's own."""
    raw_prefix: str
    """Where raw etcd's part puts its keys."""
    directory: Path
    """For mount points, logs and files; removed afterwards."""
    etcd_pid: int | None
    """None if the server is not ours."""


class Starter:
    """Starts processes."""

    def __init__(self, ground: Ground) -> None:
        self._ground: Final = ground
        self._children: list[Child] = []
        self._mounts: dict[Path, int] = {}
        self._started = 0

    @asynccontextmanager
    async def client(self, role: str = "client") -> AsyncIterator[Child]:
        """Run a host without a mount (see `dnpipefs.bench.host.Host`)."""
        async with self._host(role, None) as child:
            yield child

    @asynccontextmanager
    async def mount(self) -> AsyncIterator[Path]:
        """Run a mount and give its directory."""
        mountpoint = self._new_path("mount")
        mountpoint.mkdir()
        try:
            async with self._host("mount", mountpoint) as child:
                (self._mounts[mountpoint],) = child.pids
                yield mountpoint
        finally:
            with suppress(SetupError):  # not mounted any more, as it should be
                await _in_thread_to_the_end(unmount, mountpoint)

    @asynccontextmanager
    async def load(self) -> AsyncIterator[Child]:
        """Run a process that works on files (see `dnpipefs.bench.load.Load`)."""
        async with self._child("load", [sys.executable, "-I", load.__file__]) as child:
            yield child

    def peak_memory(self, mountpoint: Path) -> float:
        """Return the most memory that a mount's daemon ever had, bytes; NaN if it is gone."""
        try:
            status = Path(f"/proc/{self._mounts[mountpoint]}/status").read_text()
        except OSError:
            return math.nan
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))

    def cpu_of(self, mountpoint: Path) -> float:
        """Return the CPU seconds that a mount's daemon has used so far."""
        return _cpu_seconds(self._mounts[mountpoint])

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds used so far by the processes there are, by role, and the whole machine's."""
        used: dict[str, float] = {}
        for child in self._children:
            used[child.role] = used.get(child.role, 0.0) + sum(map(_cpu_seconds, child.pids))
        if self._ground.etcd_pid is not None:
            used["etcd"] = _cpu_seconds(self._ground.etcd_pid)
        used[WHOLE_MACHINE] = _machine_cpu_seconds()
        return used

    @asynccontextmanager
    async def _host(self, role: str, mountpoint: Path | None) -> AsyncIterator[Child]:
        async with self._child(role, [sys.executable, "-m", "dnpipefs.bench.host"]) as child:
            await child.send(
                {
                    "settings": encode_settings(self._ground.settings),
                    "raw_prefix": self._ground.raw_prefix,
                    "mountpoint": None if mountpoint is None else str(mountpoint),
                }
            )
            await child.answer(START_LIMIT_S)
            yield child

    @asynccontextmanager
    async def _child(self, role: str, command: Sequence[str]) -> AsyncIterator[Child]:
        log_file = self._new_path("log")
        with log_file.open("wb") as log:
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        child = Child(role, process, log_file)
        self._children.append(child)
        try:
            yield child
        finally:
            self._children.remove(child)
            with trio.CancelScope(shield=True):
                await child.end()

    def _new_path(self, kind: str) -> Path:
        self._started += 1
        return self._ground.directory / f"{kind}{self._started}"


@dataclass(frozen=True, slots=True)
class Stage:
    """What all measurements share."""

    start: Starter
    client: Child
    """A host without a mount: raw etcd's part."""
    mount: Path
    directory: Path
    """For files of any size; removed in the end."""


@asynccontextmanager
async def side_by_side(
    contexts: Sequence[AbstractAsyncContextManager[_T]],
) -> AsyncIterator[Sequence[_T]]:
    """Enter all at the same time."""
    async with AsyncExitStack() as stack:
        entered: dict[int, _T] = {}

        async def enter(index: int) -> None:
            entered[index] = await stack.enter_async_context(contexts[index])

        async with trio.open_nursery() as nursery:
            for index in range(len(contexts)):
                nursery.start_soon(enter, index)
        yield [entered[index] for index in range(len(contexts))]


@asynccontextmanager
async def open_stage(settings: Settings, *, throwaway: bool) -> AsyncIterator[tuple[Stage, dict[str, str]]]:
    """Set up; also tell what the benchmark runs on. Raises as `open_cluster` does, and MeasurementFailed.

    *throwaway* means an etcd of the benchmark's own in a temporary directory. Otherwise it is the one that
    *settings* name, and what the benchmark put into it is removed again, in keys of its own.
    """
    name = f"bench-{secrets.token_hex(4)}"
    stem = settings.prefix.rstrip("/")
    raw_prefix = f"{stem}-{name}-raw/"
    async with AsyncExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="dnpipefs-", dir=_durable_directory()))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        settings = replace(settings, prefix=f"{stem}-{name}/")
        etcd_pid = None
        machine = _machine()
        if settings.embedded:
            if throwaway:
                settings = replace(settings, data_dir=directory / "etcd")
            server = await stack.enter_async_context(embedded_server(settings.data_dir, log=logger))
            etcd_pid = server.pid
            machine["storage"] = _file_system(settings.data_dir)
        start = Starter(Ground(settings, raw_prefix, directory, etcd_pid))
        client = await stack.enter_async_context(start.client())
        machine["etcd"] = (await client.ask("status"))["version"]
        try:
            async with start.mount() as mount:
                yield Stage(start, client, mount, directory), machine
        finally:
            if not throwaway:
                with trio.CancelScope(shield=True):
                    await client.ask("remove")


async def _in_thread_to_the_end(function: Any, *arguments: Any) -> None:
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(function, *arguments)


def _cpu_seconds(pid: int) -> float:
    """Return user and system time of a process and the children it has waited for; 0 if it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, after_name[11:15])) / _TICKS


def _machine_cpu_seconds() -> float:
    """Return the CPU seconds of all processes, and those a hypervisor withheld, since the start."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _machine() -> dict[str, str]:
    return {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _durable_directory() -> str:
    """Return where temporary files are on a disk: an etcd in memory would make every figure a dream."""
    usual = tempfile.gettempdir()
    return "/var/tmp" if _file_system(Path(usual)) in _IN_MEMORY else usual  # noqa: S108 - on a disk


def _file_system(path: Path) -> str:
    """Return the type of the file system that holds *path*."""
    resolved = path.resolve()
    found, depth = "unknown", -1
    for line in Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines():
        _, point, kind = line.split(" ")[:3]
        parts = len(Path(point).parts)
        if parts > depth and resolved.is_relative_to(point):
            found, depth = kind, parts
    return found
