"""A small mount whose reads block, in a process of its own. Every name is a file, each write is read once.

It says on standard output what comes to pass, a JSON list each: ["read", "name"] and so on. `BlockingMount`
is the test's end of it.
"""

import errno
import json
import os
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FlagT, InodeT, PollHandle, RequestContext

from dnpipefs.errors import Interrupted
from dnpipefs.fuse import processes, readiness
from dnpipefs.fuse.interrupts import Interrupts
from dnpipefs.fuse.polls import Poll
from dnpipefs.fuse.processes import Opener
from dnpipefs.vfs.intake import Intake
from tests.support.mounts import REPOSITORY
from tests.support.processes import mounts_below
from tests.support.waiting import eventually

LIMIT_S = 60.0
"""After that a daemon ends by itself, so that whoever hangs for it fails instead."""


def tell(*what: str) -> None:
    print(json.dumps(what), flush=True)


@dataclass(eq=False)
class _File:
    name: str
    content: list[bytes] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False)
class _Open:
    file: _File
    opener: Opener | None
    pushes: bool
    """Of a push nothing is told."""
    poll: Poll = field(default_factory=Poll)


class BlockingOperations(pyfuse3.Operations):
    def __init__(self, interrupts: Interrupts) -> None:
        super().__init__()
        self._interrupts = interrupts
        self._files: dict[int, _File] = {}
        self._nodes: dict[bytes, int] = {}
        self._open: dict[int, _Open] = {}
        self._numbers = count(2)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o666 if inode in self._files else stat.S_IFDIR | 0o755)
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        return await self.getattr(inode, ctx)

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        inode = self._nodes.get(name)
        if inode is None:
            inode = self._nodes[name] = next(self._numbers)
            self._files[inode] = _File(name.decode())
        return await self.getattr(InodeT(inode), ctx)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        handle = next(self._numbers)
        self._open[handle] = _Open(
            self._files[inode], processes.resolve(ctx.pid), flags & os.O_ACCMODE == os.O_WRONLY
        )
        return FileInfo(fh=FileHandleT(handle), direct_io=True, keep_cache=False)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        opened = self._open[fh]
        file = opened.file
        tell("read", file.name)

        async def wait() -> bytes:
            while not file.content:
                await file.changed.wait()
            return file.content.pop(0)

        try:
            return await self._interrupts.guard(opened.opener, wait)
        except Interrupted:
            tell("interrupted", file.name)
            raise pyfuse3.FUSEError(errno.EINTR) from None

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        file = self._open[fh].file
        file.content.append(bytes(buf))
        file.changed.set()
        file.changed = trio.Event()
        for opened in self._open.values():
            if opened.file is file:
                opened.poll.notify()
        return len(buf)

    async def poll(
        self, inode: InodeT, fh: FileHandleT, poll_handle: PollHandle | None, ctx: RequestContext
    ) -> int:
        opened = self._open[fh]
        opened.poll.wait(poll_handle)
        ready = bool(opened.file.content)
        tell("poll", opened.file.name, "ready" if ready else "waits" if opened.poll.wanted else "looks")
        return select.POLLOUT | (select.POLLIN if ready else 0)

    async def flush(self, fh: FileHandleT) -> None:
        opened = self._open[fh]
        if not opened.pushes:
            fate = processes.fate(opened.opener).name if opened.opener else "NOBODY"
            tell("flush", opened.file.name, fate)

    async def release(self, fh: FileHandleT) -> None:
        opened = self._open.pop(fh)
        if not opened.pushes:
            tell("release", opened.file.name)


async def _serve(interrupts: Interrupts, *, looks: bool) -> None:
    async with trio.open_nursery() as nursery:

        async def end_on_signal() -> None:
            with trio.open_signal_receiver(signal.SIGTERM) as signals, trio.move_on_after(LIMIT_S):
                async for _ in signals:
                    break
            interrupts.close()
            pyfuse3.terminate()

        nursery.start_soon(end_on_signal)
        if looks:
            nursery.start_soon(interrupts.run)
        await pyfuse3.main(min_tasks=64, max_tasks=10_000)
        nursery.cancel_scope.cancel()


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    interrupts = Interrupts()
    silent = count(1)

    def hint() -> None:
        tell("silent", str(next(silent)))
        if settings["hints"]:
            interrupts.hint()

    operations = readiness.install(BlockingOperations(interrupts), hint, Intake())
    options = {*pyfuse3.default_options} | ({"allow_other"} if os.geteuid() == 0 else set())
    pyfuse3.init(operations, settings["path"], options)
    if settings["uid"]:
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    tell("ready")
    try:
        trio.run(partial(_serve, interrupts, looks=settings["looks"]))
    finally:
        pyfuse3.close(unmount=True)


class BlockingMount:
    """The daemon, what it has told, and the programs that the test runs on it."""

    def __init__(self, path: Path, *, hints: bool = True, looks: bool = True, uid: int = 0) -> None:
        """Without *hints* the daemon hears nothing of signals, without *looks* it cares for none.

        With *uid* it serves as that user.
        """
        path.mkdir(exist_ok=True)
        self.path = path
        self.events: list[list[str]] = []
        self._programs: list[subprocess.Popen[str]] = []
        arguments = json.dumps({"path": str(path), "hints": hints, "looks": looks, "uid": uid})
        self.daemon = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.support.blocking_mount", arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()
        self.saw("ready")

    def _listen(self) -> None:
        assert self.daemon.stdout is not None
        with self.daemon.stdout as lines:
            for line in lines:
                self.events.append(json.loads(line))

    def saw(self, *event: str) -> None:
        """Wait until the daemon has told this."""
        eventually(lambda: list(event) in self.events)

    def told(self, *event: str) -> int:
        """Return how often the daemon has told this."""
        return self.events.count(list(event))

    def start(self, command: Sequence[str] | str) -> subprocess.Popen[str]:
        """Start a program in the mount: a shell's if it is a string."""
        program = subprocess.Popen(
            ["bash", "-c", command] if isinstance(command, str) else command,
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._programs.append(program)
        return program

    def start_reading(self, command: Sequence[str] | str, name: str) -> subprocess.Popen[str]:
        """Start a program, and return once it reads the file."""
        program = self.start(command)
        self.saw("read", name)
        return program

    def push(self, name: str, text: str) -> None:
        descriptor = os.open(
            self.path / name, os.O_WRONLY | os.O_APPEND
        )  # `open` asks for a terminal (ioctl)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def last_fate(self, name: str) -> str:
        """Wait for the file's last close; return the opener's fate as the last close(2) before it saw it."""
        self.saw("release", name)
        return [event[2] for event in self.events if event[:2] == ["flush", name]][-1]

    def stop(self) -> int:
        self.daemon.terminate()
        return self.daemon.wait(timeout=20)

    def clear(self) -> None:
        """Leave nothing behind: what still blocks ends with the daemon."""
        for program in self._programs:
            if program.poll() is None:
                program.kill()
        self.daemon.kill()
        self.daemon.wait()
        for point in mounts_below(self.path):
            subprocess.run(["fusermount3", "-u", "-z", point], check=False)
        for program in self._programs:
            program.communicate(timeout=20)
        self._listener.join()


if __name__ == "__main__":
    main()
