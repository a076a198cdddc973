"""Mount points: whether one can be used, clearing what a dead daemon left, unmounting."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

from dnpipefs.errors import SetupError

FILE_SYSTEM_NAME: Final = "dnpipefs"
KIND: Final = f"fuse.{FILE_SYSTEM_NAME}"
"""The type of our mounts; their source may be whatever fstab names."""
_MOUNTS: Final = Path("/proc/self/mounts")
_ASKED: Final = "user.dnp.id"
"""What the daemon answers from memory, though etcd be away, and the kernel not without the daemon."""
_FLAGS: Final = struct.Struct("@l")
_GET_FLAGS: Final = 0x80006601 | _FLAGS.size << 16  # FS_IOC_GETFLAGS
_SET_FLAGS: Final = 0x40006602 | _FLAGS.size << 16  # FS_IOC_SETFLAGS
_IMMUTABLE: Final = 0x10  # FS_IMMUTABLE_FL
DEAD: Final = (b"!103", b"!107")  # ECONNABORTED, ENOTCONN on Linux; errno itself belongs to the adapter
ANSWER_S: Final = 5.0
"""How long a daemon has to answer."""
_ASK: Final = """if True:
    import os, sys
    try:
        sys.stdout.buffer.write(os.getxattr(sys.argv[1], sys.argv[2]))
    except OSError as error:
        sys.stdout.write(f"!{error.errno}")
"""


def prepare_mountpoint(path: Path, *, guard: bool = False) -> Path:
    """Return the real path of a directory that can be mounted on, or that a dead mount of ours is on.

    With *guard* nobody, not even root, can write to the bare directory while nothing is mounted there.
    Raises SetupError if it is missing, not a directory, mounted already, or cannot be guarded.
    """
    path = real(path)
    if guard and path not in (target for target, _ in _mounted()):
        _guard(path)
    if is_mounted(path):
        if not is_dead(path):
            raise SetupError(f"{path} is mounted already; `dnpipefs umount {path}` ends that mount")
    elif not path.exists():
        raise SetupError(f"{path} does not exist; make it: mkdir -p {path}")
    elif not path.is_dir():
        raise SetupError(f"{path} is not a directory; a mount point has to be one")
    return path


def _guard(path: Path) -> None:
    """Make an empty directory, if there is none, and make it immutable (`chattr +i`, which stays).

    Where that cannot be, an empty read-only file system is mounted there, until somebody unmounts that or the
    host ends.
    """
    if os.geteuid() != 0:
        raise SetupError(f"only root can guard {path}: --no-guard-mountpoint does without")
    try:
        path.mkdir(mode=0, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{path} cannot be made: {error.strerror}") from None
    if _make_immutable(path):
        return
    options = "ro,nosuid,nodev,noexec,size=4k,mode=0"
    command = ["mount", "-t", "tmpfs", "-o", options, f"{FILE_SYSTEM_NAME}-guard", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(
            f"{path} can be made neither immutable nor read-only ({' '.join(done.stderr.split())}): "
            "--no-guard-mountpoint does without"
        )


def _make_immutable(path: Path) -> bool:
    """Set the flag that `chattr +i` sets; False if it cannot be had here."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (flags,) = _FLAGS.unpack(fcntl.ioctl(directory, _GET_FLAGS, bytes(_FLAGS.size)))
        fcntl.ioctl(directory, _SET_FLAGS, _FLAGS.pack(flags | _IMMUTABLE))
    except OSError:
        return False
    finally:
        os.close(directory)
    return True


def clear_mountpoint(path: Path) -> None:
    """Unmount what a dead daemon left on a prepared mount point, whoever still has files open there.

    To be called right before the new mount: until then writers get an error, afterwards what they write
    lands in the bare directory. Raises SetupError as `prepare_mountpoint` does.
    """
    if is_mounted(path) and is_dead(path):
        _unmount(path, lazy=True)
    prepare_mountpoint(path)


def unmount(path: Path) -> None:
    """Unmount a dnpipefs; its daemon ends. Raises SetupError if none is mounted or it is in use."""
    path = real(path)
    if not is_mounted(path):
        raise SetupError(f"no dnpipefs is mounted on {path}")
    _unmount(path, lazy=is_dead(path))


def is_mounted(path: Path) -> bool:
    """Tell whether a dnpipefs, alive or dead, is mounted on *path*."""
    return path in mounts()


def mounts() -> list[Path]:
    """Return where a dnpipefs, alive or dead, is mounted on this host."""
    return [target for target, kind in _mounted() if kind == KIND]


def _mounted() -> list[tuple[Path, str]]:
    """Return where anything is mounted on this host, and its type."""
    lines = (line.split(" ") for line in _MOUNTS.read_text(errors="surrogateescape").splitlines())
    return [(Path(_unescape(target)), kind) for _source, target, kind, *_ in lines]


def real(path: Path) -> Path:
    """Return a path as /proc/self/mounts has it; links are followed, also to a dead mount.

    A mount point that is named as it is is not looked at: its daemon may be frozen.
    """
    path = Path(os.path.abspath(path))
    return path if path in mounts() else Path(os.path.realpath(path))


def is_dead(path: Path) -> bool:
    """Tell whether the daemon of a mount is gone. Raises SetupError for one that does not answer."""
    said = answer(ask(path, _ASKED))
    if said is None:
        raise SetupError(
            f"the daemon of {path} does not answer: wait for it, or kill -9 it, then do this again"
        )
    return said in DEAD


def ask(path: Path, attribute: str) -> subprocess.Popen[bytes]:
    """Ask the daemon of a mount for an attribute; see `answer`.

    Another process asks: who asks a daemon that does not answer hangs in the kernel, even when killed.
    """
    command = [sys.executable, "-I", "-S", "-c", _ASK, str(path), attribute]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/")


def answer(child: subprocess.Popen[bytes]) -> bytes | None:
    """Return what was answered, or `!` and the error's number; None if nothing was within ANSWER_S."""
    try:
        said, _ = child.communicate(timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        child.kill()  # takes effect when the daemon answers or ends, so it is not waited for
        child.returncode = 0
        assert child.stdout is not None  # noqa: S101 - it is a pipe
        child.stdout.close()
        return None
    return said


def _unmount(path: Path, *, lazy: bool) -> None:
    options = ["-u", "-z"] if lazy else ["-u"]
    try:
        done = subprocess.run(
            ["fusermount3", *options, "--", path], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise SetupError("no fusermount3 found: install it (Debian/Ubuntu: apt-get install fuse3)") from None
    if done.returncode:
        raise SetupError(f"{path} cannot be unmounted: {done.stderr.strip() or 'fusermount3 failed'}")


def _unescape(target: str) -> str:
    """Undo the octal escapes of /proc/self/mounts."""
    return (
        target.encode("utf-8", "surrogateescape")
        .decode("unicode_escape")
        .encode("latin-1")
        .decode("utf-8", "surrogateescape")
    )
