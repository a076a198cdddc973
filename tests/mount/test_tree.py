"""Names, directories, modes and owners on two real mounts of one cluster."""

import ctypes
import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.refusal import refused
from tests.support.waiting import eventually

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


def renameat2(source: Path, target: Path, flags: int) -> None:
    if LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# Hosts see one another's changes


def test_what_one_host_creates_is_there_on_the_other_at_once(here: Path, there: Path) -> None:
    for n in range(20):
        (here / f"opened{n}").write_bytes(b"%d\n" % n)
        assert (there / f"opened{n}").read_bytes() == b"%d\n" % n
        (here / f"stat{n}").touch()
        assert (there / f"stat{n}").stat().st_size == 0
        (here / f"listed{n}").mkdir()
        assert f"listed{n}" in os.listdir(there)
        (here / f"pushed{n}").touch()
        with (there / f"pushed{n}").open("r+b") as file:
            file.write(b"no need to create it\n")
        assert (here / f"pushed{n}").read_bytes() == b"no need to create it\n"


def test_what_one_host_removes_or_renames_goes_on_the_other(here: Path, there: Path) -> None:
    for name in ("topic", "old"):
        (here / name).write_bytes(b"line\n")
        assert (there / name).read_bytes() == b"line\n"
    (here / "topic").unlink()
    (here / "old").rename(here / "new")
    assert os.listdir(there) == ["new"], "a listing begins after all that had returned before"
    assert (there / "new").read_bytes() == b"line\n"
    for name in ("topic", "old"):
        eventually(lambda name=name: not (there / name).exists())  # type: ignore[misc]


def test_both_hosts_may_create_the_same_name(here: Path, there: Path) -> None:
    def push(path: Path) -> None:
        with path.open("ab") as file:
            file.write(b"line\n")

    with ThreadPoolExecutor(8) as pool:
        for n in range(10):
            list(pool.map(push, [directory / f"topic{n}" for directory in (here, there)] * 4))
            assert (here / f"topic{n}").read_bytes() == b"line\n" * 8
    with ThreadPoolExecutor(8) as pool:

        def exclusively(path: Path) -> bool:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                return False
            return True

        for n in range(10):
            paths = [directory / f"lock{n}" for directory in (here, there)] * 4
            assert sum(pool.map(exclusively, paths)) == 1


# Directories and renaming


def test_directories(here: Path, there: Path) -> None:
    (here / "a" / "b").mkdir(parents=True)
    (there / "a" / "topic").write_bytes(b"line\n")
    with refused(errno.EEXIST):
        (there / "a").mkdir()
    with refused(errno.ENOTEMPTY):
        (there / "a").rmdir()
    with refused(errno.ENOTDIR):
        (here / "a" / "topic").rmdir()
    with refused(errno.ENOTDIR):
        (here / "a" / "topic" / "below").touch()
    with refused(errno.EISDIR):
        (here / "a").unlink()
    with refused(errno.EISDIR):
        os.open(here / "a", os.O_WRONLY)
    (here / "a" / "topic").unlink()
    (there / "a" / "b").rmdir()
    (here / "a").rmdir()
    assert os.listdir(there) == []


def test_renaming_keeps_messages_handles_and_the_inode(here: Path, there: Path) -> None:
    (here / "from").mkdir()
    (here / "to").mkdir()
    (here / "from" / "topic").write_bytes(b"1\n")
    number = (here / "from" / "topic").stat().st_ino
    with (here / "from" / "topic").open("ab", buffering=0) as file:
        (there / "from" / "topic").rename(there / "to" / "renamed")
        file.write(b"2\n")
        (here / "to").rename(here / "from" / "moved")
        file.write(b"3\n")
    assert (there / "from" / "moved" / "renamed").read_bytes() == b"1\n2\n3\n"
    assert (here / "from" / "moved" / "renamed").stat().st_ino == number


def test_renaming_replaces_at_once(here: Path, there: Path) -> None:
    (here / "a").write_bytes(b"a\n")
    (here / "b").write_bytes(b"b\n")
    with (there / "b").open("rb", buffering=0) as replaced:
        (here / "a").rename(here / "b")
        with refused(errno.ESTALE):
            replaced.read()
            replaced.read()
    assert os.listdir(there) == ["b"]
    assert (there / "b").read_bytes() == b"a\n"


def test_what_renaming_must_not_replace(here: Path, there: Path) -> None:
    for name in ("full", "empty", "other"):
        (here / name).mkdir()
    (here / "full" / "topic").touch()
    (here / "topic").write_bytes(b"line\n")
    with refused(errno.ENOTEMPTY):
        (there / "other").rename(there / "full")
    with refused(errno.EISDIR):
        (there / "topic").rename(there / "empty")
    with refused(errno.ENOTDIR):
        (there / "empty").rename(there / "topic")
    (there / "full").rename(there / "empty")
    assert sorted(os.listdir(here)) == ["empty", "other", "topic"]
    assert os.listdir(here / "empty") == ["topic"]


def test_rename_flags(here: Path, there: Path) -> None:
    (here / "a").write_bytes(b"a\n")
    (there / "b").write_bytes(b"b\n")
    with refused(errno.EEXIST):
        renameat2(here / "a", here / "b", RENAME_NOREPLACE)
    with refused(errno.EINVAL):
        renameat2(here / "a", here / "b", RENAME_EXCHANGE)
    assert (here / "a").read_bytes() + (here / "b").read_bytes() == b"a\nb\n"
    renameat2(here / "a", here / "c", RENAME_NOREPLACE)
    assert sorted(os.listdir(there)) == ["b", "c"]


def test_a_directory_is_never_moved_into_itself(here: Path, there: Path) -> None:
    (here / "a" / "b").mkdir(parents=True)
    with refused(errno.EINVAL):
        (here / "a").rename(here / "a" / "b" / "a")

    def move(path: Path, target: Path) -> bool:
        try:
            path.rename(target)
        except OSError as error:
            assert error.errno in (errno.EINVAL, errno.ENOENT), error  # noqa: PT017 - one of many
            return False
        return True

    with ThreadPoolExecutor(2) as pool:  # each host alone could allow its own move
        for n in range(20):
            x, y = f"x{n}", f"y{n}"
            (here / x).mkdir()
            (here / y).mkdir()
            one = pool.submit(move, here / x, here / y / x)
            other = pool.submit(move, there / y, there / x / y)
            assert one.result() + other.result() == 1
            found = subprocess.run(
                ["find", ".", "-name", f"[xy]{n}"], cwd=here, capture_output=True, check=True
            )
            assert len(found.stdout.split()) == 2, "nothing hangs in a loop outside the tree"


def test_a_long_listing_is_whole(here: Path, there: Path) -> None:
    names = [f"topic {n:04} {'x' * 200}" for n in range(300)]
    for name in names:
        os.mknod(here / name, 0o644)
    assert sorted(os.listdir(there)) == sorted(os.listdir(here)) == names


def test_a_directory_that_stays_open_is_read_anew_from_its_beginning(here: Path, there: Path) -> None:
    (here / "gone").touch()
    directory = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(directory) == ["gone"]  # and rewinds
        (there / "gone").unlink()
        (there / "new").mkdir()
        assert os.listdir(directory) == ["new"]
    finally:
        os.close(directory)


# Modes and owners


def test_modes_and_times_are_stored(here: Path, there: Path) -> None:
    (here / "topic").touch(mode=0o666)
    assert stat.S_IMODE((there / "topic").stat().st_mode) == 0o666 & ~current_umask()
    (here / "topic").chmod(0o2751)
    eventually(lambda: stat.S_IMODE((there / "topic").stat().st_mode) == 0o2751)
    (here / "directory").mkdir()
    (here / "directory").chmod(0o1777)
    eventually(lambda: stat.S_IMODE((there / "directory").stat().st_mode) == 0o1777)
    future_ns = 4_000_000_000_000_000_001
    os.utime(here / "topic", ns=(future_ns, future_ns))
    eventually(lambda: (there / "topic").stat().st_mtime_ns == future_ns)


@pytest.mark.parametrize("year", ["1600", "2300", "9999"])
def test_a_time_out_of_range_becomes_the_nearest(here: Path, there: Path, year: str) -> None:
    (here / "topic").write_bytes(b"line\n")
    (here / "directory").mkdir()
    for name in ("topic", "directory"):
        subprocess.run(["touch", "-d", f"{year}-01-01", here / name], check=True)
    shown = [directory / name for directory in (here, there) for name in ("topic", "directory")]
    if year != "1600":  # what is older than the last push does not show
        eventually(lambda: all(path.stat().st_mtime_ns == 2**63 - 1 for path in shown))
    (here / "end").touch()
    assert sorted(os.listdir(there)) == ["directory", "end", "topic"]
    assert (there / "topic").read_bytes() == b"line\n"


def current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def as_nobody(script: str, cwd: Path) -> tuple[int, str, str]:
    # Not by `user=`: that forks, which gRPC's threads in this process do not bear.
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    done = subprocess.run(
        [*become, "sh", "-c", script],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@needs_root
def test_permissions_are_enforced(here: Path, there: Path) -> None:
    for mode, reads, writes in [(0o600, 0, 0), (0o644, 1, 0), (0o622, 0, 1), (0o666, 1, 1)]:
        (here / "topic").touch()
        (here / "topic").chmod(mode)
        eventually(lambda: stat.S_IMODE((there / "topic").stat().st_mode) == mode)  # noqa: B023 - now
        for directory in (here, there):
            (here / "topic").write_bytes(b"line\n")
            status, output, complaint = as_nobody("cat topic", directory)
            assert (status == 0, output != "") == (bool(reads), bool(reads)), complaint
            for push in ("echo pushed >> topic", "echo pushed > topic", "truncate -s 0 topic"):
                status, _, complaint = as_nobody(push, directory)
                assert (status == 0) == bool(writes), f"{oct(mode)} {push}: {complaint}"
                assert status == 0 or "Permission denied" in complaint
    status, _, complaint = as_nobody("touch new; rm -f topic; chmod 777 topic", here)
    assert status != 0
    assert sorted(os.listdir(here)) == ["topic"], complaint


@needs_root
def test_a_topic_that_another_host_makes_at_that_moment_is_as_private(here: Path, there: Path) -> None:
    here.chmod(0o1777)
    eventually(lambda: there.stat().st_mode & stat.S_ISVTX)
    rounds = 60
    script = f"""
        import os, sys
        for number in range({rounds}):
            while True:
                try:
                    descriptor = os.open(f"private{{number}}", os.O_CREAT | os.O_RDWR, 0o600)
                except PermissionError:
                    break
                if os.fstat(descriptor).st_uid != {NOBODY}:
                    sys.exit("private to somebody else")
                os.close(descriptor)
                os.unlink(f"private{{number}}")
    """
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with subprocess.Popen([*become, sys.executable, "-c", dedent(script)], cwd=there) as intruder:
        for number in range(rounds):
            while intruder.poll() is None:
                try:
                    os.close(os.open(here / f"private{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                except FileExistsError:
                    continue
                break
    assert intruder.returncode == 0


@needs_root
def test_owners_are_stored(here: Path, there: Path) -> None:
    (here / "theirs").mkdir()
    (here / "theirs").chmod(0o777)
    status, _, complaint = as_nobody("umask 027; echo line > theirs/topic; mkdir theirs/sub", there)
    assert status == 0, complaint
    for name, mode in [("topic", 0o640), ("sub", 0o750)]:
        found = (here / "theirs" / name).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, NOBODY, mode)
    os.chown(here / "theirs" / "topic", 12, 34)
    eventually(lambda: (there / "theirs" / "topic").stat().st_uid == 12)
    assert (there / "theirs" / "topic").stat().st_gid == 34
    assert as_nobody("cat theirs/topic", there)[0] != 0


@needs_root
def test_a_directory_may_hand_its_group_down(here: Path, there: Path) -> None:
    (here / "team").mkdir()
    os.chown(here / "team", -1, 34)
    (here / "team").chmod(0o2777)
    eventually(lambda: (there / "team").stat().st_mode & stat.S_ISGID)
    status, _, complaint = as_nobody("umask 002; echo line > team/topic; mkdir -p team/sub/d", there)
    assert status == 0, complaint
    found = {name: (here / "team" / name).stat() for name in ("topic", "sub", "sub/d")}
    assert {each.st_gid for each in found.values()} == {34}
    assert {each.st_uid for each in found.values()} == {NOBODY}
    modes = [stat.S_IMODE(each.st_mode) for each in found.values()]
    assert modes == [0o664, 0o2775, 0o2775], "directories go on with it"


# What there is not


def test_only_topics_and_directories(here: Path) -> None:
    topic = here / "topic"
    topic.touch()
    with refused(errno.EPERM):
        os.mkfifo(here / "fifo")
    with refused(errno.EPERM):
        os.link(topic, here / "link")
    with refused(errno.EPERM):
        os.symlink("topic", here / "symlink")
    if os.geteuid() == 0:
        with refused(errno.EPERM):
            os.mknod(here / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(here / "by mknod", 0o644)
    assert sorted(os.listdir(here)) == ["by mknod", "topic"]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"with@view", errno.EINVAL),
        (b"@", errno.EINVAL),
        (b".dnp", errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
    ],
)
def test_names_that_are_refused(here: Path, name: bytes, number: int) -> None:
    path = os.fsencode(here) + b"/" + name
    (here / "topic").touch()
    with refused(number):
        os.mkdir(path)
    with refused(number):
        os.open(path, os.O_CREAT | os.O_WRONLY)
    with refused(number):
        os.mknod(path, 0o644)
    with refused(number):
        os.rename(here / "topic", path)
    with refused(errno.ENOENT if number == errno.EINVAL else number):
        os.stat(path)
    assert os.listdir(here) == ["topic"]


@pytest.mark.parametrize(
    "name", [b"\xff\xfe not utf-8 \x80", b"new\nline", "Grüße ☃".encode(), b"x" * 255, b" ", b"-rf", b"\\"]
)
def test_names_that_are_fine(here: Path, there: Path, name: bytes) -> None:
    path = os.fsencode(here) + b"/" + name
    with open(path, "wb") as file:
        file.write(b"line\n")
    assert os.listdir(os.fsencode(there)) == [name]
    with open(os.fsencode(there) + b"/" + name, "rb") as file:
        assert file.read() == b"line\n"
    os.rename(os.fsencode(there) + b"/" + name, os.fsencode(there) + b"/" + name[::-1])
    assert os.listdir(os.fsencode(here)) == [name[::-1]]
