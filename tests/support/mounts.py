"""Real mounts as children of the tests: several "hosts" on one machine, to stop, kill, freeze and look at."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import BinaryIO

from tests.support.processes import mounts_below
from tests.support.waiting import eventually

REPOSITORY = Path(__file__).parents[2]
OP_TIMEOUT_S = 20.0
TEST_LIMIT_S = 90.0
"""After that a test's daemons are killed, so that whatever hangs in the kernel for them fails instead."""


def why_no_mounts() -> str | None:
    """Say what this machine lacks for mounts, None if nothing."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no usable /dev/fuse: real mounts need the fuse kernel module and access to its device"
    if which("fusermount3") is None:
        return "no fusermount3: real mounts need the package fuse3"
    return None


class Mount:
    """One host: a mount daemon in a process of its own. Dies with the tests."""

    def __init__(
        self,
        directory: Path,
        *,
        endpoints: Sequence[str],
        prefix: str,
        op_timeout: float = OP_TIMEOUT_S,
        session_ttl: int = 10,
        faulty: bool = False,
        traced: bool = False,
        **settings: int | str | dict[str, str],
    ) -> None:
        """`settings` are further fields of `Settings`, such as those of an embedded etcd, or `tls`."""
        directory.mkdir(exist_ok=True)
        self.path = directory / "mnt"
        self.path.mkdir(exist_ok=True)
        self.log_file = directory / "log"
        self.prefix = prefix
        self.endpoints = tuple(endpoints)
        self._settings = {
            "endpoints": list(endpoints),
            "prefix": prefix,
            "mountpoint": str(self.path),
            "op_timeout": op_timeout,
            "session_ttl": session_ttl,
            "faulty": faulty,
            "traced": traced,
            "settings": settings,
        }
        self.wrapper: Sequence[str] = ()
        """What runs the daemon, if it is not to run as it is; to be set before the start."""
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: BinaryIO | None = None

    def start(self) -> None:
        """Mount; return once the mount answers. To be called in a thread that lives as long as the mount."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the daemon without waiting for it, so that several can start at once."""
        reading, writing = os.pipe()
        command = [sys.executable, "-W", "error", "-m", "tests.support.mount_daemon"]
        arguments = json.dumps({**self._settings, "ready_fd": writing})
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.wrapper, *command, arguments],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
            )
        os.close(writing)
        if self._ready is not None:  # nobody has waited for one that ended
            self._ready.close()
        self._ready = open(reading, "rb")  # noqa: SIM115 - `wait_ready` closes it

    def wait_ready(self) -> None:
        assert self._ready is not None, "the mount was not started"
        with self._ready:
            report = self._ready.read(len(b"ready"))  # not to the end: a wrapper keeps it open
        assert report == b"ready", f"no mount:\n{self.log}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the mount was not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def mounted(self) -> bool:
        """Whether the kernel has a mount there, served or not."""
        return str(self.path) in mounts_below(self.path)

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask the daemon to end and return its exit status."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        """Wait for the daemon to end and return its exit status."""
        return self.process.wait(timeout=20)

    def kill(self) -> None:
        """End the daemon the way a crash does; the kernel's mount stays, dead."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Freeze the daemon: who uses its mount waits."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)  # every thread of it

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def saw(self, text: str) -> None:
        """Wait until the daemon's log has `text`."""
        eventually(lambda: text in self.log)

    def clear(self) -> None:
        """Leave neither daemon nor mount behind, whatever state they are in."""
        if self._process is not None and self.alive:
            self.resume()
            self.kill()
        for point in mounts_below(self.path):
            subprocess.run(["fusermount3", "-u", "-z", point], check=False)


class Mounts:
    """The hosts of one test (or of all that share some)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mounts: list[Mount] = []

    def make(
        self,
        *,
        endpoints: Sequence[str],
        prefix: str,
        op_timeout: float = OP_TIMEOUT_S,
        session_ttl: int = 10,
        faulty: bool = False,
        traced: bool = False,
        **settings: int | str,
    ) -> Mount:
        """Return another host, not started yet."""
        mount = Mount(
            self._directory / f"host{len(self._mounts)}",
            endpoints=endpoints,
            prefix=prefix,
            op_timeout=op_timeout,
            session_ttl=session_ttl,
            faulty=faulty,
            traced=traced,
            **settings,
        )
        self._mounts.append(mount)
        return mount

    @property
    def alive(self) -> list[Mount]:
        """Those that run."""
        return [mount for mount in self._mounts if mount.alive]

    def clear(self) -> None:
        for mount in self._mounts:
            mount.clear()

    def logs(self) -> dict[str, str]:
        """Return what each host's daemon has logged."""
        return {mount.path.parent.name: mount.log for mount in self._mounts}

    @contextmanager
    def guarded(self, limit_s: float = TEST_LIMIT_S) -> Iterator[None]:
        """Kill the daemons when the block takes too long: what waits in the kernel has no other end."""
        timer = threading.Timer(limit_s, self._end_daemons)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _end_daemons(self) -> None:
        for mount in self._mounts:
            if mount.alive:
                mount.resume()
                mount.process.kill()
