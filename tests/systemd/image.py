"""What the hosts under systemd are made from, kept in .cache: a Debian in a directory, wheels of dnpipefs."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from shutil import which

from tests.cluster.hosts import why_no_hosts
from tests.support.mounts import REPOSITORY, why_no_mounts
from tests.systemd.machines import unified_hierarchy

CACHE = REPOSITORY / ".cache" / "systemd"
SUITE = "bookworm"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
PACKAGES = (
    "systemd,systemd-sysv,dbus,fuse3,python3,python3-venv,etcd-server,etcd-client,procps,iproute2,"
    "openssl,e2fsprogs"
)
"""What a node needs, so that provisioning asks no mirror: the hosts reach one another only."""
LIMIT_S = 600.0


class Missing(Exception):
    """What the hosts are made from cannot be had here."""


@cache
def why_no_machines() -> str | None:
    """Say what this machine lacks to run hosts under systemd, None if nothing."""
    reason = why_no_mounts() or why_no_hosts()
    if reason is not None:
        return reason
    missing = [program for program in ("debootstrap", "systemd-nspawn") if which(program) is None]
    if missing:
        return f"no hosts under systemd: no {missing[0]} (scripts/setup.sh --systemd installs it)"
    if unified_hierarchy() is None:
        return "no hosts under systemd: this machine has no control groups of version 2 to freeze them with"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        return "no hosts under systemd: this kernel has no overlay file system"
    return None


def image() -> Path:
    """Return the root directory of a Debian that systemd boots, and that nobody writes to. Raises Missing."""
    made = CACHE / f"image-{hashlib.sha256(f'{SUITE} {PACKAGES}'.encode()).hexdigest()[:12]}"
    with _alone():
        if not made.exists():
            for older in CACHE.glob("image-*"):
                shutil.rmtree(older)
            partial = CACHE / "image-partial"
            options = ("--variant=minbase", f"--include={PACKAGES}")
            _run("debootstrap", *options, SUITE, partial, MIRROR)
            shutil.rmtree(partial / "var/lib/etcd" / "default", ignore_errors=True)
            (partial / "etc/machine-id").unlink(missing_ok=True)  # each host has its own
            (partial / "etc/hostname").unlink(missing_ok=True)
            # There is no network to wait for, and no mirror.
            for unit in (
                "systemd-networkd-wait-online.service",
                "apt-daily.timer",
                "apt-daily-upgrade.timer",
            ):
                (partial / "etc/systemd/system" / unit).symlink_to("/dev/null")
            partial.rename(made)
    version = _run("chroot", made, "python3", "-c", "import sys; print(*sys.version_info[:2])").split()
    own = [str(part) for part in sys.version_info[:2]]
    if version != own:
        raise Missing(f"wheels made here are for Python {'.'.join(own)}, {SUITE} has {'.'.join(version)}")
    return made


def wheels() -> Path:
    """Return a directory with wheels of this checkout and of all that it depends on. Raises Missing."""
    dependencies = hashlib.sha256((REPOSITORY / "pyproject.toml").read_bytes()).hexdigest()
    directory = CACHE / "wheels"
    with _alone():
        stamp = directory / "made-for"
        complete = stamp.exists() and stamp.read_text() == dependencies
        if not complete:
            shutil.rmtree(directory, ignore_errors=True)
        make_wheel(REPOSITORY, directory, alone=complete)
        stamp.write_text(dependencies)
    return directory


def newer_wheels(directory: Path, version: str) -> Path:
    """Return a directory with the same wheels, but dnpipefs says it is of that version. Raises Missing."""
    source = directory / "source"
    source.mkdir()
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(
        REPOSITORY / "dnpipefs", source / "dnpipefs", ignore=shutil.ignore_patterns("__pycache__")
    )
    settings = (source / "pyproject.toml").read_text()
    changed = settings.replace('\nversion = "', f'\nversion = "{version}" # "', 1)
    assert changed != settings
    (source / "pyproject.toml").write_text(changed)
    made = shutil.copytree(wheels(), directory / "wheels")
    make_wheel(source, made, alone=True)
    return made


def make_wheel(source: Path, directory: Path, *, alone: bool) -> None:
    """Put the wheel of a checkout into a directory, with those of all it depends on unless *alone*."""
    for older in directory.glob("dnpipefs-*.whl"):
        older.unlink()
    options = ["--no-deps"] if alone else []
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", *options, "--wheel-dir", directory, source)


@contextmanager
def _alone() -> Iterator[None]:
    """Let one test run at a time make what several use."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        ["nice", "-n", "19", *command], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"{Path(command[0]).name} failed: {said[-1] if said else done.returncode}")
    return done.stdout
