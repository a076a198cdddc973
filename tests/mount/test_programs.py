"""The programs people use, on topics of a real mount: shells, coreutils, editors of files, databases."""

import ctypes
import os
import random
import selectors
import sqlite3
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dnpipefs.etcd.server import DEFAULT_QUOTA_BYTES
from dnpipefs.namespace import ENTRIES_LIMIT
from tests.mount.conftest import Hosts
from tests.support.waiting import WITHIN_S, eventually


def shell(script: str, cwd: Path, expect: int = 0) -> str:
    """Run a bash script in `cwd` and return what it printed."""
    done = subprocess.run(
        ["bash", "-c", script], cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == expect, f"{done.returncode}: {done.stderr}"
    return done.stdout


class Follower:
    """A program whose output is read as it comes."""

    def __init__(self, *command: str | Path) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._seen = b""

    def expect(self, wanted: bytes) -> None:
        """Wait until the output since the last call is `wanted`."""
        deadline = time.monotonic() + WITHIN_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while self._seen != wanted:
                left = deadline - time.monotonic()
                assert left > 0, f"{self._seen!r} instead of {wanted!r}"
                if selector.select(left):
                    data = os.read(self._output.fileno(), 1 << 16)
                    assert data, "it ended"
                    self._seen += data
        self._seen = b""

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()


@contextmanager
def following(*command: str | Path) -> Iterator[Follower]:
    follower = Follower(*command)
    try:
        yield follower
    finally:
        follower.end()


def test_redirections_and_pipes_push(here: Path, hosts: Hosts) -> None:
    shell(
        "set -e; echo one > topic; echo two > topic; echo three >> topic; echo four | tee topic > tee-said;"
        "printf 'five\\nsix\\n' | cat > topic; printf 'no newline' > topic; { echo a; echo b; } >> topic",
        here,
    )
    assert hosts.read_there() == b"one\ntwo\nthree\nfour\nfive\nsix\nno newlinea\nb\n"
    assert hosts.read_there("tee-said") == b"four\n"


def test_a_producer_without_a_message_wipes_nothing(here: Path, hosts: Hosts) -> None:
    shell("echo precious > topic; false > topic; cat /nonexistent > topic 2> /dev/null; true", here)
    assert hosts.read_there() == b"precious\n"


def test_truncate_resets(here: Path, hosts: Hosts) -> None:
    shell("set -e; echo old > topic; truncate -s 0 topic; echo new > topic", here)
    assert hosts.read_there() == b"new\n"
    shell("truncate -s 2 topic 2> /dev/null", here, expect=1)
    assert hosts.read_there() == b"new\n"


def test_programs_that_read(here: Path, there: Path) -> None:
    text = "".join(f"line {n} of a topic\n" for n in range(50_000))
    (here / "topic").write_text(text)
    lines = text.splitlines(keepends=True)
    assert shell("cat topic", there) == text
    assert shell("head -n 3 topic", there) == "".join(lines[:3])
    assert shell("tail -n 3 topic", there) == "".join(lines[-3:])
    assert shell("tail -c 7 topic", there) == text[-7:]
    assert shell("tail -n +49999 topic", there) == "".join(lines[-2:])
    assert shell("wc -l < topic", there).strip() == "50000"
    assert shell("grep -c 'line 4999[0-9]' topic", there).strip() == "10"
    assert shell("sort -r topic | tail -n 1", there) == "line 0 of a topic\n"


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_a_large_file_is_copied_in_and_out(here: Path, there: Path, tmp_path: Path, kind: str) -> None:
    numbers = random.Random(3)
    data = numbers.randbytes(5 << 20)
    if kind == "text":
        data = b"\n".join(data[n : n + 40].hex().encode() for n in range(0, len(data) // 2, 40))
    original = tmp_path / "original"
    original.write_bytes(data)
    shell(f"set -e; cp {original} copied; cat {original} > cat; cmp {original} copied", here)
    shell(f"set -e; cmp {original} copied; cmp {original} cat; cp copied {tmp_path}/back", there)
    assert (tmp_path / "back").read_bytes() == data


@pytest.mark.parametrize("size", ["7", "511", "4093", "65537", "300001"])
def test_dd_with_odd_block_sizes(here: Path, there: Path, tmp_path: Path, size: str) -> None:
    data = b"".join(b"%d %s\n" % (n, b"." * (n % 120)) for n in range(int(size) // 40 + 60))
    original = tmp_path / "original"
    original.write_bytes(data)
    shell(f"set -e; dd if={original} of=topic bs={size} 2> /dev/null", here)
    shell(f"set -e; dd if={original} of=topic bs={size} oflag=append conv=notrunc 2> /dev/null", here)
    shell(f"dd if=topic of={tmp_path}/back bs={size} 2> /dev/null", there)
    assert (tmp_path / "back").read_bytes() == data + data


def test_tail_f_shows_history_and_what_comes_and_goes_on_after_a_reset(here: Path, there: Path) -> None:
    (here / "topic").write_bytes(b"one\ntwo\n")
    with following("tail", "-n", "+1", "-s", "0.05", "-f", there / "topic") as follower:
        follower.expect(b"one\ntwo\n")
        shell("echo three > topic", here)
        follower.expect(b"three\n")
        shell("truncate -s 0 topic", here)
        eventually(lambda: (there / "topic").stat().st_size == 0)
        shell("echo new > topic", here)
        follower.expect(b"new\n")


def test_a_while_read_loop(here: Path, there: Path) -> None:
    shell("seq 1 300 > topic", here)
    assert shell("while read -r n; do echo $((n * 2)); done < topic", there).split() == [
        str(2 * n) for n in range(1, 301)
    ]


def test_pythons_append_mode(topic: Path, hosts: Hosts) -> None:
    with topic.open("a") as first, topic.open("a") as second:
        for n in range(3):
            print(f"first {n}", file=first, flush=True)
            print(f"second {n}", file=second)
    assert hosts.read_there() == b"first 0\nfirst 1\nfirst 2\nsecond 0\nsecond 1\nsecond 2\n"


def test_a_database_on_a_topic_fails_loudly(here: Path) -> None:
    with (
        closing(sqlite3.connect(here / "database")) as database,
        pytest.raises(sqlite3.OperationalError),
    ):
        database.execute("create table t (n integer)")


def test_find_and_ls(here: Path, there: Path) -> None:
    shell("set -e; mkdir -p a/b; echo 12345 > a/b/topic; touch a/empty; chmod 640 a/empty", here)
    assert sorted(shell("find . -mindepth 1 -printf '%y %P\\n'", there).splitlines()) == [
        "d a",
        "d a/b",
        "f a/b/topic",
        "f a/empty",
    ]
    assert shell("cat a/b/topic; find . -type f -size +0", there) == "12345\n./a/b/topic\n"
    listing = shell("ls -lan a", there).splitlines()[1:]
    assert [line.split()[0] for line in listing] == ["drwxr-xr-x", "drwxr-xr-x", "drwxr-xr-x", "-rw-r-----"]
    assert [line.split()[-1] for line in listing] == [".", "..", "b", "empty"]
    assert shell("ls -lan a/b", there).splitlines()[-1].split()[4] == "6"
    assert shell("stat -c '%h %F' a a/b a/empty", there).splitlines() == [
        "3 directory",
        "2 directory",
        "1 regular empty file",
    ]


def test_df_shows_etcds_quota_and_use(here: Path) -> None:
    total, used = (int(field) for field in shell("df -B1 --output=size,used .", here).splitlines()[1].split())
    assert total == DEFAULT_QUOTA_BYTES
    assert 0 < used < total
    limit, left = (int(field) for field in shell("df --output=itotal,iavail .", here).splitlines()[1].split())
    assert limit == ENTRIES_LIMIT
    assert 0 < left < limit


def test_a_changed_file_may_be_moved_into_place(here: Path, there: Path) -> None:
    shell("set -e; echo old > topic; sed -i s/old/new/ topic", here)
    assert (there / "topic").read_bytes() == b"new\n"


IN_MODIFY = 2


def test_inotify_tells_of_local_writes(topic: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    topic.touch()
    fd = libc.inotify_init1(os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(fd, os.fsencode(topic), IN_MODIFY) > 0
        with topic.open("ab", buffering=0) as file:
            file.write(b"line\n")
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            assert selector.select(WITHIN_S)
        _, mask, _, _ = struct.unpack_from("iIII", os.read(fd, 4096))
        assert mask & IN_MODIFY
    finally:
        os.close(fd)
