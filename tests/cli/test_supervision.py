"""What a mount tells its service manager, and the guard of its mount point."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dnpipefs.mount.supervision import ServiceManager
from tests.cli.conftest import Command
from tests.support.mounts import why_no_mounts
from tests.support.processes import mounts_below
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(why_no_mounts() is not None, reason=why_no_mounts() or "")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root guards a mount point")


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    """A mount point; whatever is mounted or immutable is undone."""
    directory = tmp_path / "mnt"
    yield directory
    while str(directory) in mounts_below(directory):
        subprocess.run(["umount", "--lazy", directory], check=True)
    subprocess.run(["chattr", "-f", "-i", directory], check=False)


class Manager:
    """The other end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(20)

    def told(self) -> list[str]:
        """Wait for a message, and return its assignments."""
        return self.socket.recv(1000).decode().split("\n")

    def told_by_now(self) -> list[str]:
        """Return the messages that are there."""
        self.socket.setblocking(False)
        messages = []
        with suppress(BlockingIOError):
            while True:
                messages.append(self.socket.recv(1000).decode())
        return messages


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    address = f"{tmp_path}/notify" if request.param == "path" else f"@dnpipefs-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    made = Manager(address)
    with made.socket:
        yield made


def test_ready_watchdog_and_stopping(dnp: Command, manager: Manager, point: Path) -> None:
    point.mkdir()
    daemon = dnp.start("mount", "--foreground", str(point))
    assert manager.told() == ["READY=1", f"STATUS=serving {point}"]
    (point / "t").write_bytes(b"pushed\n")
    for _ in range(2):
        assert manager.told() == ["WATCHDOG=1"]
    daemon.send_signal(signal.SIGTERM)
    told = manager.told()
    while told == ["WATCHDOG=1"]:
        told = manager.told()
    assert told == ["STOPPING=1", f"STATUS=unmounting {point}"]
    assert daemon.wait(timeout=20) == 0


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_a_mount_that_does_not_answer_is_not_well(dnp: Command, manager: Manager, point: Path) -> None:
    """The daemon lives, as long as the file is open, and nobody has the mount."""
    point.mkdir()
    daemon = dnp.start("mount", "--foreground", str(point))
    assert manager.told()[0] == "READY=1"
    with (point / "t").open("w"):
        subprocess.run(["umount", "--lazy", point], check=True)
        assert daemon.stderr is not None
        said = b""
        while b"the service manager is not told that all is well" not in said:
            said = daemon.stderr.readline()
            assert said, "the daemon has ended"
        manager.told_by_now()  # what was sent while the mount was there
        said = daemon.stderr.readline()
        assert b"the service manager is not told that all is well" in said
        assert manager.told_by_now() == []
        assert daemon.poll() is None
    assert daemon.wait(timeout=20) == 0


def test_a_manager_is_nobody_elses_business() -> None:
    mine = {
        "NOTIFY_SOCKET": "/s",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    assert ServiceManager.take(mine) == ServiceManager("/s", 3.0)
    assert mine == {"PATH": "/bin"}
    anothers = {"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    assert ServiceManager.take(anothers) == ServiceManager("/s", None)
    assert ServiceManager.take({}) == ServiceManager()


def test_a_mount_in_the_background_leaves_the_session(dnp: Command, point: Path, tmp_path: Path) -> None:
    point.mkdir()
    dnp.out("mount", point, "--log-file", tmp_path / "log", "--source", r"a,b\c")
    pid = int(os.getxattr(point, "user.dnp.status").split(b'"pid": ')[1].split(b",")[0])
    assert os.getsid(pid) == os.getpgid(pid) == pid
    (line,) = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {point} " in line]
    assert line.startswith(r"a,b\134c ")
    assert dnp.run("umount", point).returncode == 2, "it takes no options of the cluster"
    assert Command([]).out("umount", point) == b""


@needs_root
def test_a_guarded_mount_point(dnp: Command, point: Path, tmp_path: Path) -> None:
    log = ("--log-file", tmp_path / "log")
    for _ in range(2):
        dnp.out("mount", point, *log, "--guard-mountpoint")
        (point / "t").write_bytes(b"pushed\n")
        assert Command([]).out("umount", point) == b""
        with pytest.raises(OSError, match=r"not permitted|Read-only file system"):
            (point / "t").write_bytes(b"lost\n")
    assert mounts_below(point) == [] or not os.access(point, os.W_OK)


@needs_root
def test_a_guard_where_nothing_can_be_immutable(dnp: Command, point: Path, tmp_path: Path) -> None:
    options = ["--foreground", "--guard-mountpoint", str(point)]
    without = ["setpriv", "--bounding-set", "-linux_immutable", *dnp.line("mount", *options)]
    for _ in range(2):
        with subprocess.Popen(without, stderr=subprocess.DEVNULL) as daemon:
            eventually(lambda: (point / "t").exists() or mounts_below(point)[1:])
            (point / "t").write_bytes(b"pushed\n")
            daemon.terminate()
        with pytest.raises(OSError, match="Read-only file system"):
            (point / "t").write_bytes(b"lost\n")
        assert mounts_below(point) == [str(point)], "one guard"
