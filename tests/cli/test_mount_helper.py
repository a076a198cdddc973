"""mount.dnpipefs: what it makes of its arguments, and how mount(8) runs it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dnpipefs.cli import mount_helper
from tests.cli.conftest import Command
from tests.support.etcd_process import EtcdProcess, free_port
from tests.support.mounts import REPOSITORY, why_no_mounts
from tests.support.processes import mounts_below

FSTAB = REPOSITORY / "systemd" / "examples" / "fstab"
FROM_FSTAB = "rw,noexec,nosuid,nodev,user=me,_netdev,nofail,relatime,x-systemd.automount,comment=x"
IN_A_NAMESPACE = """
mount -t tmpfs none /mnt
mkdir /mnt/sbin
printf '#!/bin/sh\\nexec "$PYTHON" -m dnpipefs.cli.mount_helper "$@"\\n' > /mnt/sbin/mount.dnpipefs
chmod +x /mnt/sbin/mount.dnpipefs
mount -t overlay -o lowerdir=/mnt/sbin:/usr/sbin none /usr/sbin
"""
"""Puts the helper where mount(8) looks, for this namespace of mounts only."""


def line_of(capfd: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Return the command that a call of the helper comes to."""
    assert mount_helper.run_helper([*arguments, "-fv"]) == 0
    return shlex.split(capfd.readouterr().out)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("etcd1:2379", ["--endpoints", "etcd1:2379"]),
        ("e1:2379,e2:2379/team", ["--endpoints", "e1:2379,e2:2379", "--prefix", "/team/"]),
        ("e1:2379/a/b/", ["--endpoints", "e1:2379", "--prefix", "/a/b/"]),
        ("https://e1:2379,https://e2:2379/", ["--endpoints", "https://e1:2379,https://e2:2379"]),
        ("[::1]:2379/dnp", ["--endpoints", "[::1]:2379", "--prefix", "/dnp/"]),
        ("unix:/run/etcd.sock", ["--endpoints", "unix:/run/etcd.sock"]),
        ("none", []),
    ],
)
def test_what_is_mounted(capfd: pytest.CaptureFixture[str], spec: str, expected: Sequence[str]) -> None:
    said = line_of(capfd, spec, "/dnp")
    assert said == ["dnpipefs", "mount", "--source", spec, *expected, "--", "/dnp"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (FROM_FSTAB, []),
        ("cacert=/ca.crt,cache_size=1MiB,rw", ["--cacert", "/ca.crt", "--cache-size", "1MiB"]),
        ("allow_other,read_stale", ["--allow-other", "--read-stale"]),
        ("no_allow_other,guard_mountpoint", ["--no-allow-other", "--guard-mountpoint"]),
        ("user=me,etcd_user=dnp,password_file=/p", ["--user", "dnp", "--password-file", "/p"]),
        ("config=/etc/other.toml", ["--config", "/etc/other.toml"]),
    ],
)
def test_options(capfd: pytest.CaptureFixture[str], options: str, expected: Sequence[str]) -> None:
    said = line_of(capfd, "none", "/dnp", "-o", options)
    assert said == ["dnpipefs", "mount", "--source", "none", *expected, "--", "/dnp"]


def test_an_option_that_is_not_known_may_be_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    assert "--unheard-of" not in line_of(capfd, "-s", "none", "/dnp", "-o", "unheard_of=1")


def test_the_lines_of_the_example(capfd: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in FSTAB.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 2
    for spec, directory, kind, options, *_ in lines:
        assert kind == "dnpipefs"
        assert line_of(capfd, spec, directory, "-o", options)[-1] == "/dnp"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none", "/dnp", "-o", "cache_sise=1"], "no option 'cache_sise'; there are allow_other, "),
        (["none", "/dnp", "-o", "ro"], "there is no read-only mount"),
        (["none", "/dnp", "-o", "remount,rw"], "unmount, and mount again"),
        (["none", "/dnp", "-o", "cacert"], "the option cacert needs a value: cacert=…"),
        (["none", "/dnp", "-o", "read_stale=1"], "the option read_stale takes no value"),
        ([",", "/dnp"], "',' is not HOST:PORT,HOST:PORT…/PREFIX, nor none"),
        (["none"], "Missing argument 'DIRECTORY'"),
        (["e:2379", "/dnp", "-o", "foreground"], "there is no option 'foreground'"),
    ],
)
def test_a_call_that_is_wrong(capfd: pytest.CaptureFixture[str], arguments: Sequence[str], said: str) -> None:
    assert mount_helper.run_helper(arguments) == 1
    told = capfd.readouterr()
    assert told.err.startswith("mount.dnpipefs: ")
    assert said in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_a_mount_that_cannot_be(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    assert mount_helper.run_helper([nowhere, str(tmp_path / "missing")]) == 32
    assert "mkdir -p" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a namespace of mounts for mount(8)")
@pytest.mark.skipif(why_no_mounts() is not None, reason=why_no_mounts() or "")
def test_mount_and_umount(dnp: Command, shared_server: EtcdProcess, tmp_path: Path) -> None:
    """By the real mount(8), which looks in /sbin: in a namespace of mounts of its own."""
    point = tmp_path / "mnt"
    point.mkdir()
    (tmp_path / "fstab").write_text(f"none {point} dnpipefs _netdev,nofail,config={tmp_path}/toml\n")
    (tmp_path / "toml").write_text(
        f'endpoints = "{shared_server.endpoint}"\nprefix = "{dnp.options[-1]}"\n'
        f'[mount]\nlog_file = "{tmp_path}/log"\n'
    )
    address = shared_server.endpoint.removeprefix("http://")
    script = f"""
        {IN_A_NAMESPACE}
        mount -t dnpipefs -o noexec,log_file={tmp_path}/log {address}{dnp.options[-1].rstrip("/")} {point}
        echo pushed > {point}/t; cat {point}/t
        findmnt --noheadings --output SOURCE,FSTYPE {point}
        umount {point}
        mount --fstab {tmp_path}/fstab -a; mount --fstab {tmp_path}/fstab -a
        cat {point}/t
        umount {point}
        ! mount -t dnpipefs -o op_timeout=1,log_file={tmp_path}/log 127.0.0.1:{free_port()} {point} || exit 99
        ! mount -t dnpipefs -o unheard_of none {point}
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-ec", script],
        env=os.environ | {"PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    source = f"{address}{dnp.options[-1].rstrip('/')}"
    assert done.stdout.split() == ["pushed", source, "fuse.dnpipefs", "pushed"]
    first, second = done.stderr.splitlines()
    assert "check that etcd runs and listens there" in first
    assert "there is no option 'unheard_of'" in second
    assert mounts_below(point) == []
