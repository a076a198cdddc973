"""How a mount ends, what a dead one leaves, and what a fault in a handler does."""

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dnpipefs.errors import SetupError
from dnpipefs.mount import prepare_mountpoint, unmount
from tests.mount.conftest import MakeMount
from tests.support.etcd_http import keys_below
from tests.support.etcd_process import EtcdProcess
from tests.support.mount_daemon import FAULTY_NAME
from tests.support.mounts import Mount
from tests.support.refusal import refused


def by_sigterm(host: Mount) -> None:
    host.process.send_signal(signal.SIGTERM)


def by_sigint(host: Mount) -> None:
    host.process.send_signal(signal.SIGINT)


def by_sighup(host: Mount) -> None:
    host.process.send_signal(signal.SIGHUP)


def by_umount(host: Mount) -> None:
    if os.geteuid() != 0:
        pytest.skip("umount(8) is root's")
    subprocess.run(["umount", host.path], check=True)


def by_fusermount(host: Mount) -> None:
    subprocess.run(["fusermount3", "-u", host.path], check=True)


def by_dnpipefs(host: Mount) -> None:
    unmount(host.path)


@pytest.mark.parametrize("end", [by_sigterm, by_sigint, by_sighup, by_umount, by_fusermount, by_dnpipefs])
def test_a_mount_ends_cleanly(
    mount: MakeMount, shared_etcd: EtcdProcess, end: Callable[[Mount], None]
) -> None:
    host = mount()
    (host.path / "topic").write_bytes(b"line\n")
    sessions = f"{host.prefix}session/"
    assert len(keys_below(shared_etcd.endpoint, sessions)) == 1
    end(host)
    assert host.wait() == 0
    assert not host.mounted
    assert os.listdir(host.path) == [], "nothing was written below the mount"
    assert keys_below(shared_etcd.endpoint, sessions) == []


@pytest.mark.parametrize("end", [by_sigterm, by_sigint])
def test_a_mount_in_use_ends_when_told_to(mount: MakeMount, end: Callable[[Mount], None]) -> None:
    host = mount()
    topic = host.path / "topic"
    topic.touch()
    writing, reading = os.open(topic, os.O_WRONLY), os.open(topic, os.O_RDONLY)
    os.write(writing, b"line\nheld")
    assert os.read(reading, 5) == b"line\n"
    end(host)
    assert host.wait() == 0
    assert not host.mounted
    with refused(errno.ENOTCONN):
        os.write(writing, b"lost\n")
    with refused(errno.ENOTCONN):
        os.read(reading, 5)
    for fd in (writing, reading):
        with refused(errno.ENOTCONN):
            os.close(fd)
    # The writer had been told that its unfinished line is accepted.
    assert (mount().path / "topic").read_bytes() == b"line\nheld"


def test_a_mount_in_use_is_not_unmounted_by_hand(mount: MakeMount) -> None:
    host = mount()
    with (host.path / "topic").open("wb"), pytest.raises(SetupError, match="busy"):
        unmount(host.path)
    assert host.alive
    assert host.stop() == 0


def test_what_was_pushed_is_there_on_the_next_mount(mount: MakeMount) -> None:
    host = mount()
    (host.path / "directory").mkdir()
    (host.path / "directory" / "topic").write_bytes(b"line\n")
    assert host.stop() == 0
    host.start()
    assert (host.path / "directory" / "topic").read_bytes() == b"line\n"


def test_a_dead_mount_is_cleared_by_the_next(mount: MakeMount) -> None:
    host = mount()
    (host.path / "topic").write_bytes(b"line\n")
    host.kill()
    with refused(errno.ENOTCONN):
        os.listdir(host.path)
    assert host.mounted
    host.start()
    assert (host.path / "topic").read_bytes() == b"line\n"


def test_a_dead_mount_is_cleared_by_hand(mount: MakeMount) -> None:
    host = mount()
    host.kill()
    unmount(host.path)
    assert not host.mounted
    with pytest.raises(SetupError, match="no dnpipefs is mounted"):
        unmount(host.path)


def test_a_mountpoint_that_cannot_be_one(mount: MakeMount, tmp_path: Path) -> None:
    host = mount()
    with pytest.raises(SetupError, match="is mounted already"):
        prepare_mountpoint(host.path)
    with pytest.raises(SetupError, match="does not exist; make it: mkdir -p"):
        prepare_mountpoint(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="is not a directory"):
        prepare_mountpoint(tmp_path / "file")
    (tmp_path / "with space\t").mkdir()
    assert prepare_mountpoint(tmp_path / "with space\t") == tmp_path / "with space\t"


def test_an_unexpected_fault_in_a_handler_is_eio_and_the_mount_lives(
    mount: MakeMount, faults_expected: list[str]
) -> None:
    faults_expected += ["failed unexpectedly; the caller gets EIO", "Traceback"]
    host = mount(faulty=True)
    for _ in range(3):
        with refused(errno.EIO):
            os.stat(os.fsencode(host.path) + b"/" + FAULTY_NAME)
    (host.path / "topic").write_bytes(b"line\n")
    assert (host.path / "topic").read_bytes() == b"line\n"
    log = host.log
    assert log.count("lookup failed unexpectedly") == 3
    assert log.count("ZeroDivisionError: a planted fault") == 3
    assert "in faulty_lookup" in log
