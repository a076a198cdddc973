"""A topic file on a real mount: every row of the contract that system calls show."""

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import Hosts
from tests.support.refusal import refused
from tests.support.waiting import eventually

MAX_MESSAGE = 8 << 20


@contextmanager
def opened(path: Path, flags: int = os.O_WRONLY | os.O_CREAT | os.O_APPEND) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write as programs do: come again with what a short write left."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


# Pushing


def test_opening_with_o_trunc_does_not_reset(topic: Path, hosts: Hosts) -> None:
    for line in (b"first\n", b"second\n"):
        with topic.open("wb") as file:
            file.write(line)
    with topic.open("wb"):
        pass  # a producer that fails before its first message
    assert hosts.read_there() == b"first\nsecond\n"


def test_writes_append_whatever_the_handle(topic: Path, hosts: Hosts) -> None:
    with opened(topic) as first, opened(topic) as second:
        os.write(first, b"1\n")
        os.write(second, b"2\n")
        os.write(first, b"3\n")
        assert hosts.read_there() == b"1\n2\n3\n"


def test_a_line_in_pieces_is_one_message_once_its_newline_comes(topic: Path, hosts: Hosts) -> None:
    with opened(topic) as fd:
        for piece in (b"whole\nin ", b"three ", b"pieces"):
            os.write(fd, piece)
        assert hosts.read_there() == b"whole\n"
        os.write(fd, b"\nrest")
        assert hosts.read_there() == b"whole\nin three pieces\n"
    assert hosts.read_there() == b"whole\nin three pieces\nrest"


@pytest.mark.parametrize("commit", [os.fsync, os.fdatasync, lambda fd: os.close(os.dup(fd))])
def test_fsync_and_flush_commit_what_has_no_newline(
    topic: Path, hosts: Hosts, commit: Callable[[int], None]
) -> None:
    with opened(topic) as fd:
        os.write(fd, b"no newline")
        assert hosts.read_there() == b""
        commit(fd)
        assert hosts.read_there() == b"no newline"


def test_parts_of_two_handles_never_mix(topic: Path, hosts: Hosts) -> None:
    with opened(topic) as first, opened(topic) as second:
        for letter in "abc":
            os.write(first, letter.encode())
            os.write(second, letter.upper().encode())
        os.write(second, b"\n")
        os.write(first, b"\n")
    assert hosts.read_there() == b"ABC\nabc\n"


def test_concurrent_writers_tear_no_line(here: Path, there: Path) -> None:
    def write(writer: int) -> None:
        random_pieces = random.Random(writer)
        lines = b"".join(b"%d %d %s\n" % (writer, n, b"x" * (n % 90)) for n in range(200))
        with opened((here, there)[writer % 2] / "topic") as fd:
            while lines:
                piece = random_pieces.randrange(1, 300)
                write_all(fd, lines[:piece])
                lines = lines[piece:]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    content = (here / "topic").read_bytes()
    assert content == (there / "topic").read_bytes()
    for writer in range(8):
        own = [line for line in content.splitlines() if line.startswith(b"%d " % writer)]
        assert own == [b"%d %d %s" % (writer, n, b"x" * (n % 90)) for n in range(200)]


def test_a_positioned_write_elsewhere_fails_loudly(topic: Path, hosts: Hosts) -> None:
    topic.write_bytes(b"0123456789\n")
    with opened(topic, os.O_WRONLY) as fd, refused(errno.ESPIPE):
        os.pwrite(fd, b"x\n", 4)
    with opened(topic, os.O_WRONLY) as fd:
        os.pwrite(fd, b"from 0\n", 0)
        os.pwrite(fd, b"in sequence\n", 7)
        with refused(errno.ESPIPE):
            os.pwrite(fd, b"overwritten\n", 0)
        with refused(errno.ESPIPE):
            os.pwrite(fd, b"far behind\n", 1 << 30)
    assert hosts.read_there() == b"0123456789\nfrom 0\nin sequence\n"


def test_a_write_at_the_end_as_stat_shows_it_appends(topic: Path, hosts: Hosts) -> None:
    topic.write_bytes(b"old\n")
    with opened(topic, os.O_RDWR) as fd:
        os.lseek(fd, 0, os.SEEK_END)
        os.write(fd, b"new\n")
    assert hosts.read_there() == b"old\nnew\n"


def test_a_size_that_was_shown_earlier_is_not_the_end(topic: Path, hosts: Hosts) -> None:
    with opened(topic, os.O_RDWR | os.O_CREAT) as fd:
        for n in range(3):
            assert os.fstat(fd).st_size == 2 * n
            os.pwrite(fd, b"%d\n" % n, 2 * n)
        for offset in (0, 2, 4):
            with refused(errno.ESPIPE):
                os.pwrite(fd, b"x\n", offset)
        by_path(topic, 0)
        os.lseek(fd, 0, os.SEEK_END)
        os.write(fd, b"after a reset\n")
    assert hosts.read_there() == b"after a reset\n"


def test_bytes_are_kept(topic: Path, hosts: Hosts) -> None:
    data = random.Random(1).randbytes(300_000)
    topic.write_bytes(data)
    assert topic.read_bytes() == hosts.read_there() == data


def test_a_message_up_to_the_limit_is_taken(topic: Path, hosts: Hosts) -> None:
    lines = b"x" * (MAX_MESSAGE - 1) + b"\n" + b"y" * (MAX_MESSAGE - 1) + b"\n"
    with opened(topic) as fd:
        write_all(fd, lines)
    assert hosts.read_there() == lines


@pytest.mark.parametrize("size", [MAX_MESSAGE + 1, MAX_MESSAGE + 5000, 3 * MAX_MESSAGE // 2])
@pytest.mark.parametrize("before", [b"", b"before\n" * 3], ids=["alone", "behind others"])
@pytest.mark.parametrize("end", [b"\n", b"\nafter\n", b""], ids=["line", "followed", "endless"])
def test_nothing_of_a_message_above_the_limit_is_stored(
    topic: Path, hosts: Hosts, size: int, before: bytes, end: bytes
) -> None:
    """The kernel cuts large writes and hides the error of a later part: programs come again with the rest."""
    with opened(topic) as fd:
        with refused(errno.EMSGSIZE):
            write_all(fd, before + b"x" * size + end)
        assert hosts.read_there() == before
    with opened(topic) as fd:
        os.write(fd, b"life goes on\n")
    assert hosts.read_there() == before + b"life goes on\n"


def test_a_message_that_grows_above_the_limit_is_refused_as_a_whole(topic: Path, hosts: Hosts) -> None:
    with opened(topic) as fd:
        for _ in range(16):
            os.write(fd, b"x" * (MAX_MESSAGE // 16))
        with refused(errno.EMSGSIZE):
            os.write(fd, b"x\n")
        os.write(fd, b"next\n")
    assert hosts.read_there() == b"next\n"


def test_a_write_returns_after_the_commit(here: Path, there: Path) -> None:
    with opened(here / "topic") as writing, opened(there / "topic", os.O_RDONLY) as reading:
        for number in range(100):
            line = b"%d\n" % number
            os.write(writing, line)
            assert os.read(reading, 100) == line, "a read at the end confirms it with etcd"


def test_a_process_that_is_killed_has_pushed_what_it_wrote(topic: Path, hosts: Hosts) -> None:
    script = (
        "import os\n"
        f"fd = os.open({str(topic)!r}, os.O_WRONLY | os.O_CREAT)\n"
        "os.write(fd, b'line\\nrest')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    eventually(lambda: hosts.read_there() == b"line\nrest")


# Reset


def by_path(path: Path, size: int) -> None:
    os.truncate(path, size)


def by_descriptor(path: Path, size: int) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, size)


@pytest.mark.parametrize("truncate", [by_path, by_descriptor])
def test_truncating_to_0_resets_for_everybody(
    here: Path, there: Path, truncate: Callable[[Path, int], None]
) -> None:
    topic, elsewhere = here / "topic", there / "topic"
    topic.write_bytes(b"old\n" * 1000)
    with opened(elsewhere, os.O_RDONLY) as reading:
        assert os.read(reading, 4) == b"old\n"
        truncate(topic, 0)
        assert elsewhere.read_bytes() == b""
        assert elsewhere.stat().st_size == topic.stat().st_size == 0
        assert os.read(reading, 4) == b"", "past the end"
        elsewhere.write_bytes(b"new\n")
        assert os.pread(reading, 100, 0) == topic.read_bytes() == b"new\n"


@pytest.mark.parametrize("truncate", [by_path, by_descriptor])
def test_other_sizes_are_refused(topic: Path, truncate: Callable[[Path, int], None]) -> None:
    topic.write_bytes(b"12345\n")
    for size in (1, 5, 7, 1 << 40):
        with refused(errno.EINVAL):
            truncate(topic, size)
    truncate(topic, 6)
    assert topic.read_bytes() == b"12345\n"


def test_a_handle_writes_on_through_a_reset(here: Path, there: Path) -> None:
    with opened(here / "topic") as fd:
        for n in range(20):
            os.write(fd, b"old %d\n" % n)
        by_path(there / "topic", 0)
        os.write(fd, b"new\n")
        assert (there / "topic").read_bytes() == (here / "topic").read_bytes() == b"new\n"


# Reading


def test_reads_at_any_offset(topic: Path, hosts: Hosts) -> None:
    data = b"".join(b"%06d\n" % n for n in range(20_000))
    topic.write_bytes(data)
    offsets = random.Random(2)
    with opened(hosts.there / "topic", os.O_RDONLY) as fd:
        for _ in range(100):
            offset, size = offsets.randrange(len(data)), offsets.randrange(1, 70_000)
            assert os.pread(fd, size, offset) == data[offset : offset + size]
        assert os.pread(fd, 10, len(data)) == b""
        assert os.pread(fd, 10, len(data) + 1) == b""
        assert os.pread(fd, 10, 1 << 50) == b""
        assert os.lseek(fd, -7, os.SEEK_END) == len(data) - 7
        assert os.read(fd, 100) == b"019999\n"


def test_stat_tells_size_time_and_blocks(topic: Path, hosts: Hosts) -> None:
    topic.write_bytes(b"x" * 999 + b"\n")
    before = topic.stat()
    assert (before.st_size, before.st_blocks, before.st_nlink) == (1000, 3, 1), (
        "what is stored: with a header"
    )
    with opened(topic) as fd:
        os.write(fd, b"more\n")
        after = os.fstat(fd)
    assert after.st_size == 1005
    assert after.st_mtime_ns > before.st_mtime_ns
    by_path(topic, 0)
    reset = topic.stat()
    assert (reset.st_size, reset.st_blocks) == (0, 0)
    assert reset.st_mtime_ns > after.st_mtime_ns
    eventually(lambda: (hosts.there / "topic").stat().st_mtime_ns == reset.st_mtime_ns)


def test_a_writer_sees_its_own_pushes_and_resets_in_the_size_at_once(topic: Path) -> None:
    with opened(topic) as fd:
        for n in range(60):
            if n % 20 == 19:
                by_path(topic, 0)
                assert topic.stat().st_size == os.fstat(fd).st_size == 0
            size = topic.stat().st_size
            os.write(fd, b"line\n")
            assert topic.stat().st_size == size + 5
            os.write(fd, b"line\n")
            assert os.fstat(fd).st_size == os.lseek(fd, 0, os.SEEK_END) == size + 10


def test_the_inode_number_is_the_same_everywhere_and_for_every_local_alias(here: Path, there: Path) -> None:
    topic = here / "topic"
    topic.touch()
    handles = []
    try:
        for n in range(5):  # each later open finds the nodes before it taken by a writer
            handles.append(os.open(topic, os.O_WRONLY))
            os.write(handles[-1], b"%d\n" % n)
        numbers = {os.fstat(fd).st_ino for fd in handles}
        assert numbers == {topic.stat().st_ino} == {(there / "topic").stat().st_ino}
        assert numbers == {entry.inode() for entry in os.scandir(here)}
    finally:
        for fd in handles:
            os.close(fd)


def test_an_open_handle_of_a_deleted_topic_is_stale(here: Path, there: Path) -> None:
    (here / "topic").write_bytes(b"line\n")
    with (
        opened(here / "topic", os.O_RDONLY) as local,
        opened(there / "topic", os.O_RDONLY) as remote,
        opened(there / "topic") as writing,
    ):
        os.write(writing, b"more\n")
        (here / "topic").unlink()
        for fd in (local, remote):
            with refused(errno.ESTALE):
                os.read(fd, 100)
                os.read(fd, 100)  # the first may still be answered from what was read ahead
        with refused(errno.ESTALE):
            os.write(writing, b"lost\n")
    assert not (there / "topic").exists()


def test_a_new_topic_of_a_deleted_name_is_empty(here: Path, there: Path) -> None:
    (here / "topic").write_bytes(b"old\n")
    assert (there / "topic").read_bytes() == b"old\n"
    (there / "topic").unlink()
    (here / "topic").write_bytes(b"new\n")
    assert (there / "topic").read_bytes() == b"new\n"


# Locks


def test_flock_excludes_processes_that_never_write(topic: Path) -> None:
    topic.touch()
    script = (
        "import fcntl, sys\n"
        f"with open({str(topic)!r}) as file:\n"
        "    try:\n"
        "        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    except BlockingIOError:\n"
        "        sys.exit(7)\n"
    )

    def other() -> int:
        return subprocess.run([sys.executable, "-c", script], check=False).returncode

    with topic.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert other() == 7
        fcntl.flock(file, fcntl.LOCK_UN)
        assert other() == 0
