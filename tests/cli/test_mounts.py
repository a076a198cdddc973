"""mount and umount as commands; what the mounted files do is tested elsewhere."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import WITHIN_S, Capture, Command
from tests.support.etcd_process import free_port
from tests.support.mounts import why_no_mounts
from tests.support.processes import mounts_below
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(why_no_mounts() is not None, reason=why_no_mounts() or "")


@pytest.fixture
def mountpoint(tmp_path: Path, embedded: Command) -> Iterator[Path]:
    directory = tmp_path / "mnt"
    directory.mkdir()
    yield directory
    if mounts_below(directory):
        embedded.run("umount", directory)


def unmount(command: Command, directory: Path) -> None:
    assert Command([]).out("umount", directory) == b""
    assert mounts_below(directory) == []


def test_a_mount_in_the_background(embedded: Command, mountpoint: Path) -> None:
    embedded.out("push", "t", "pushed")
    embedded.out("mount", mountpoint)
    assert (mountpoint / "t").read_bytes() == b"pushed\n"
    with (mountpoint / "t").open("a") as topic:
        topic.write("written\n")
    assert embedded.out("pull", "t") == b"pushed\nwritten\n"
    assert f"{mountpoint} is mounted already" in embedded.fails(1, "mount", mountpoint)
    log = (Path(embedded.options[1]) / "dnpipefs.log").read_text()
    assert f"mounted on {mountpoint}" in log
    unmount(embedded, mountpoint)
    assert embedded.out("pull", "t") == b"pushed\nwritten\n"


def test_a_data_directory_made_beforehand_becomes_private(embedded: Command, mountpoint: Path) -> None:
    data = Path(embedded.options[1])
    data.mkdir(mode=0o755)
    embedded.out("mount", mountpoint)
    assert data.stat().st_mode & 0o777 == 0o700
    unmount(embedded, mountpoint)


def test_options_reach_the_mount(dnp: Command, mountpoint: Path, tmp_path: Path) -> None:
    dnp.out("push", "t", "x")
    log = tmp_path / "here.log"
    dnp.out("mount", mountpoint, "--log-file", log, "--log-level", "debug", "--op-timeout", "7")
    assert (mountpoint / "t").read_bytes() == b"x\n"
    unmount(dnp, mountpoint)
    assert "INFO" in log.read_text()


def test_a_mount_by_a_file(
    dnp: Command, mountpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is read once, by the command and not by its daemon: that works in another directory."""
    endpoint, prefix = dnp.options[1::2]
    (tmp_path / "given.toml").write_text(
        f"endpoints = '{endpoint}'\nprefix = '{prefix}'\nop_timeout = 7\n"
        "mount.log_file = 'here.log'\nmount.read_stale = true\nmount.cache_size = 1048576\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNPIPEFS_CONFIG", "given.toml")
    monkeypatch.setenv("DNPIPEFS_OP_TIMEOUT", "8")
    Command([]).out("mount", mountpoint, "--no-read-stale")
    told = mount_told(mountpoint)
    assert (told["prefix"], told["op_timeout"], told["read_stale"]) == (prefix, 8, False)
    daemon = Path(f"/proc/{told['pid']}")
    assert b"--cache-size\x001048576" in (daemon / "cmdline").read_bytes()
    assert b"DNPIPEFS_CONFIG" not in (daemon / "environ").read_bytes()
    assert f"mounted on {mountpoint}" in (tmp_path / "here.log").read_text()
    unmount(dnp, mountpoint)


def test_a_mount_that_fails_in_the_background_says_why(mountpoint: Path, tmp_path: Path) -> None:
    command = Command(["--endpoints", f"127.0.0.1:{free_port()}", "--data-dir", str(tmp_path / "data")])
    assert "check that etcd runs and listens there" in command.fails(1, "mount", mountpoint)
    assert mounts_below(mountpoint) == []


def test_a_mount_without_an_etcd(embedded: Command, mountpoint: Path, no_programs: dict[str, str]) -> None:
    assert "apt-get install etcd-server" in embedded.fails(1, "mount", mountpoint, env=no_programs)


def test_a_mount_that_waits_for_its_etcd_ends_when_told_to(
    embedded: Command, mountpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "bin" / "etcd"
    silent.parent.mkdir()
    silent.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    silent.chmod(0o755)
    monkeypatch.setenv("PATH", str(silent.parent), prepend=os.pathsep)
    daemon = embedded.start("mount", "--foreground", str(mountpoint))
    record = Path(embedded.options[1], "etcd.pid")
    server = os.pidfd_open(int(eventually(lambda: record.read_text().split() if record.exists() else [])[0]))
    try:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(WITHIN_S) == 0
        assert select.select([server], [], [], WITHIN_S)[0], "the server ended with it"
    finally:
        os.close(server)
    assert mounts_below(mountpoint) == []


def test_a_mount_does_not_hide_its_own_etcd(embedded: Command, mountpoint: Path) -> None:
    inside = Command(["--data-dir", str(mountpoint / "data")])
    said = inside.fails(1, "mount", mountpoint)
    assert f"the data directory {mountpoint / 'data'} lies below {mountpoint}" in said
    assert mounts_below(mountpoint) == []


def end_daemon(mountpoint: Path) -> None:
    """Kill the daemon of a mount, and wait for its end."""
    pid = mount_told(mountpoint)["pid"]
    ended = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([ended], [], [])
    finally:
        os.close(ended)


def mount_told(mountpoint: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(os.getxattr(mountpoint, "user.dnp.status"))
    return told


def test_status_and_the_return_of_a_dead_mount(dnp: Command, mountpoint: Path) -> None:
    status = Command([])
    assert f"no dnpipefs is mounted on {mountpoint}" in status.fails(1, "status", mountpoint)
    dnp.out("mount", mountpoint, "--read-stale")
    text = status.out("status", mountpoint).decode()
    assert f"{mountpoint}: served\n" in text
    assert "  etcd     answers\n" in text
    assert "stale while it does not answer (--read-stale)" in text
    (mount,) = json.loads(status.out("status", mountpoint, "--format", "json"))["mounts"]
    assert (mount["mountpoint"], mount["state"]) == (str(mountpoint), "served")
    assert (mount["etcd"]["answers"], mount["read_stale"], mount["stale_since"]) == (True, True, None)
    every = json.loads(status.run("status", "--format", "json").stdout)["mounts"]
    assert str(mountpoint) in [each["mountpoint"] for each in every], "beside those of others"
    (mountpoint / "t").write_bytes(b"pushed\n")
    end_daemon(mountpoint)
    dead = status.run("status", mountpoint)
    assert dead.returncode == 1
    assert b"`dnpipefs mount` with its options brings it back" in dead.stdout
    began = time.monotonic()
    dnp.out("mount", mountpoint)
    assert (mountpoint / "t").read_bytes() == b"pushed\n"
    print(f"`dnpipefs mount` after a crash: {time.monotonic() - began:.2f} s")
    assert not mount_told(mountpoint)["read_stale"]
    unmount(dnp, mountpoint)


def test_a_frozen_mount_freezes_no_command(
    dnp: Command, mountpoint: Path, capfdbinary: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dnp.out("mount", mountpoint)
    pid = mount_told(mountpoint)["pid"]
    state = Path(f"/proc/{pid}/stat")
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        silent = subprocess.run(
            [sys.executable, "-m", "dnpipefs", "status", mountpoint],
            stdout=subprocess.PIPE,
            timeout=WITHIN_S,
            check=False,
        )
        assert (silent.returncode, b"it is frozen, or very busy" in silent.stdout) == (1, True)
        monkeypatch.setattr("dnpipefs.mount.mountpoint.ANSWER_S", 0.5)
        said = f"the daemon of {mountpoint} does not answer: wait for it, or kill -9 it"
        assert said in Command([], capfdbinary).fails(1, "umount", mountpoint)
        assert said in dnp.fails(1, "mount", mountpoint)
    finally:
        os.kill(pid, signal.SIGCONT)
    unmount(dnp, mountpoint)


def test_a_dead_mount_stays_if_there_can_be_no_new_one(dnp: Command, mountpoint: Path) -> None:
    dnp.out("mount", mountpoint)
    end_daemon(mountpoint)
    nowhere = Command(["--endpoints", f"127.0.0.1:{free_port()}", *dnp.options[2:]])
    assert "check that etcd runs" in nowhere.fails(1, "mount", mountpoint)
    with pytest.raises(OSError, match="not connected"):  # and nothing is written to the bare directory
        (mountpoint / "t").write_bytes(b"lost\n")
    dnp.out("mount", mountpoint)
    unmount(dnp, mountpoint)


def test_the_cache_of_a_mount_can_be_sized(dnp: Command, mountpoint: Path) -> None:
    assert "'much' is not a size such as 64MiB" in dnp.fails(2, "mount", mountpoint, "--cache-size", "much")
    dnp.out("mount", mountpoint, "--cache-size", "1MiB")
    lines = b"".join(b"%099d\n" % number for number in range(40_000))
    (mountpoint / "t").write_bytes(lines)
    with (mountpoint / "t").open("rb") as one, (mountpoint / "t").open("rb") as other:
        while data := one.read(300_000):  # neither finds in memory what the other has read
            assert other.read(300_000) == data
        assert other.read(1) == b""
    unmount(dnp, mountpoint)
