"""Mounts of users of etcd with the least that suffices; secrets and files that are nobody else's business."""

import errno
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.documents import SECURITY
from tests.support.etcd_process import EtcdProcess
from tests.support.processes import mounts_below
from tests.support.waiting import eventually

PASSWORD = "correct-horse-battery"  # noqa: S105 - of an etcd that lives as long as the test
PROGRAMS = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
LIMIT_S = 30.0
QUIET_S = 6.0
"""How long the log is watched: a mount that may only read asks for a session every 5 s."""


def run(command: str) -> str:
    """Run a command of a shell, as the document says it, and return what it says."""
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PATH": PROGRAMS, "ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


class Guarded:
    """An etcd with the users of docs/security.md, and mounts of theirs by the commands of it."""

    def __init__(self, server: EtcdProcess, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.password = directory / "password"
        self.password.touch(mode=0o600)
        self.password.write_text(PASSWORD + "\n")

    def etcdctl(self, line: str, *, as_root: bool) -> None:
        command = line.partition("#")[0]
        command = re.sub(r"^etcdctl", rf"\g<0> --endpoints {self.server.endpoint}", command)
        command = re.sub("--user root", f"--user root:{PASSWORD}", command)
        if as_root and "--user" not in command:
            command = re.sub(r"^etcdctl", rf"\g<0> --user root:{PASSWORD}", command)
        if " user add " in command:
            command += f" --interactive=false < {self.password}"
        run(command)

    def mount(self, line: str, name: str, options: str = "") -> "Mounted":
        point = self.directory / name
        point.mkdir()
        command = line.replace(" /dnp ", f" {point} ").replace("http://etcd1:2379", self.server.endpoint)
        command = command.replace("/etc/dnpipefs/password", str(self.password))
        log = self.directory / f"{name}.log"
        run(f"{command} --log-file {log} --op-timeout 20 {options}")
        return Mounted(point, log)

    def clear(self) -> None:
        for point in mounts_below(self.directory):
            subprocess.run(["fusermount3", "-u", "-z", point], check=False)


class Mounted:
    def __init__(self, path: Path, log_file: Path) -> None:
        self.path = path
        self.log_file = log_file

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def umount(self) -> None:
        run(f"dnpipefs umount {self.path}")


@pytest.fixture
def guarded(own_etcd: EtcdProcess, tmp_path: Path) -> Iterator[Guarded]:
    guarded = Guarded(own_etcd, tmp_path)
    try:
        yield guarded
    finally:
        guarded.clear()


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match="Permission denied") as caught:
        call()
    assert caught.value.errno == errno.EACCES


def append(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


def test_a_mount_that_may_only_read(guarded: Guarded) -> None:
    *administration, mount = SECURITY.labelled("a user of etcd").splitlines()
    for line in administration:
        guarded.etcdctl(line, as_root=False)
    writer = guarded.mount(mount, "writer")
    (writer.path / "team").mkdir()
    (writer.path / "jobs").write_bytes(b"one\ntwo\n")
    assert run(f"head -n 1 {writer.path}/jobs@workers") == "one\n"

    *administration, mount = SECURITY.labelled("a user who may only read").splitlines()
    for line in administration:
        guarded.etcdctl(line, as_root=True)
    reader = guarded.mount(mount, "reader")
    assert sorted(os.listdir(reader.path)) == ["jobs", "team"]
    assert run(f"cat {reader.path}/jobs") == "one\ntwo\n"
    assert (reader.path / "jobs").stat().st_size == 8
    with (
        subprocess.Popen(["tail", "-f", reader.path / "jobs"], stdout=subprocess.PIPE) as tail,
        subprocess.Popen(["cat", f"{reader.path}/jobs@"], stdout=subprocess.PIPE) as subscriber,
    ):
        try:
            assert tail.stdout is not None
            assert subscriber.stdout is not None
            assert tail.stdout.read(8) == b"one\ntwo\n"
            os.set_blocking(subscriber.stdout.fileno(), False)

            def pushed_and_seen() -> bool:
                append(writer.path / "jobs", b"three\n")
                return b"three\n" in (subscriber.stdout.read() or b"") if subscriber.stdout else False

            eventually(pushed_and_seen)
            assert tail.stdout.read(6) == b"three\n"
        finally:
            tail.terminate()
            subscriber.terminate()

    jobs = reader.path / "jobs"
    for write in (
        lambda: append(jobs, b"four\n"),
        lambda: append(jobs, b"without newline"),
        lambda: os.truncate(jobs, 0),
        lambda: jobs.unlink(),
        lambda: jobs.rename(reader.path / "other"),
        lambda: jobs.chmod(0o600),
        lambda: os.utime(jobs),
        lambda: os.setxattr(jobs, "user.dnp.framing", b"write"),
        lambda: (reader.path / "new").touch(),
        lambda: (reader.path / "new").mkdir(),
        lambda: (reader.path / "team").rmdir(),
        lambda: Path(f"{jobs}@workers").read_bytes(),
        lambda: os.truncate(f"{jobs}@workers", 0),
        lambda: os.unlink(f"{jobs}@workers"),
    ):
        refused(write)
    assert b"four" not in jobs.read_bytes()

    said = reader.log.splitlines()
    assert sum("no session yet" in line for line in said) == 1
    seen = leases(guarded)
    with pytest.raises(AssertionError, match="not within"):
        eventually(lambda: len(reader.log.splitlines()) > len(said), within_s=QUIET_S)
    assert leases(guarded) <= seen + 1, "what is granted in vain is given back"
    assert "Traceback" not in reader.log

    guarded.etcdctl("etcdctl role grant-permission look --prefix=true readwrite /dnp/", as_root=True)

    def writes() -> bool:
        try:
            append(jobs, b"five\n")
        except PermissionError:
            return False
        return True

    eventually(writes)
    assert (writer.path / "jobs").read_bytes().endswith(b"five\n")
    reader.umount()
    writer.umount()


def leases(guarded: Guarded) -> int:
    """Return how many leases there are."""
    said = run(f"etcdctl --endpoints {guarded.server.endpoint} --user root:{PASSWORD} lease list")
    return len(said.splitlines()) - 1


def test_a_password_is_nowhere_to_be_seen(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    *administration, mount = SECURITY.labelled("a user of etcd").splitlines()
    for line in administration:
        guarded.etcdctl(line, as_root=False)
    mounted = guarded.mount(mount, "mnt", "--log-level debug")
    (mounted.path / "jobs").write_bytes(b"one\n")
    processes = [
        (pid, (Path("/proc") / pid / "cmdline").read_bytes())
        for pid in os.listdir("/proc")
        if pid.isdigit() and str(mounted.path).encode() in cmdline(pid)
    ]
    assert processes, "the mount's own"
    for pid, shown in processes:
        assert PASSWORD.encode() not in shown, shown
        assert PASSWORD.encode() not in (Path("/proc") / pid / "environ").read_bytes()
    guarded.password.write_text("wrong-horse")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dnpipefs", "push", "jobs", "x", "--log-level", "debug"),
            *("--endpoints", guarded.server.endpoint, "--user", "dnp"),
            *("--password-file", str(guarded.password)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "wrong-horse" not in done.stdout + done.stderr
    mounted.umount()
    assert "DEBUG" in mounted.log
    assert PASSWORD not in mounted.log

    monkeypatch.setenv("DNPIPEFS_PASSWORD", PASSWORD)
    monkeypatch.setenv("DNPIPEFS_USER", "dnp")
    mounted = guarded.mount(re.sub("--user .*", "", mount), "by_environment", "--log-level debug")
    assert (mounted.path / "jobs").read_bytes() == b"one\n"
    daemon = str(json.loads(os.getxattr(mounted.path, "user.dnp.status"))["pid"])
    assert b"--user\0dnp" in cmdline(daemon)
    assert PASSWORD.encode() not in cmdline(daemon)
    assert b"DNPIPEFS_" not in re.sub(b"_DNPIPEFS_|DNPIPEFS_TEST_", b"", environ(daemon))
    assert PASSWORD not in run(f"dnpipefs status {mounted.path} --format json; dnpipefs config")
    mounted.umount()
    assert PASSWORD not in mounted.log


def environ(pid: str) -> bytes:
    return (Path("/proc") / pid / "environ").read_bytes()


def cmdline(pid: str) -> bytes:
    try:
        return (Path("/proc") / pid / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def test_what_is_made_is_private(tmp_path: Path) -> None:
    """Whatever the umask: directory, sockets, locks, logs."""
    data, point = tmp_path / "data", tmp_path / "mnt"
    point.mkdir()
    try:
        run(f"umask 000; dnpipefs mount {point} --data-dir {data} --log-file {tmp_path}/here.log")
        (point / "jobs").write_bytes(b"one\n")
        assert stat.S_IMODE((tmp_path / "here.log").stat().st_mode) == 0o600
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        found = [data, *data.rglob("*")]
        assert any(path.is_socket() for path in found)
        assert any(path.suffix == ".lock" for path in found)
        for path in found:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        run(f"dnpipefs umount {point}")
    finally:
        for left in mounts_below(tmp_path):
            subprocess.run(["fusermount3", "-u", "-z", left], check=False)
