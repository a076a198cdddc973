"""Sealing, trimming and large messages as users of a mount see them."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.mount.conftest import Hosts
from tests.support.waiting import eventually

SIZE, COUNT = 100, 3000


def get(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.dnp.{name}").decode()


def put(path: Path, name: str, value: str) -> None:
    os.setxattr(path, f"user.dnp.{name}", value.encode())


def numbered(count: int) -> bytes:
    return b"".join(b"%0*d\n" % (SIZE - 1, number) for number in range(count))


def run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.parametrize(
    ("setting", "value", "least"),
    [
        ("retention.bytes", "80KB", 80_000),
        ("retention.messages", "800", 80_000),
        ("retention.age", "1ns", 0),
    ],
)
def test_retention_removes_the_oldest_and_moves_nothing(
    topic: Path, hosts: Hosts, setting: str, value: str, least: int
) -> None:
    topic.touch()
    put(topic, setting, value)
    lines = numbered(COUNT)
    with topic.open("ab", buffering=0) as file:
        for start in range(0, len(lines), 10 * SIZE):
            file.write(lines[start : start + 10 * SIZE])
    # Then the next segment, an eighth of what is to be kept, must stay.
    eventually(lambda: COUNT * SIZE - int(get(topic, "first_offset")) < max(1, least + least // 8))
    first = int(get(topic, "first_offset"))
    assert first % SIZE == 0
    assert COUNT * SIZE - first >= least
    for path in (topic, hosts.there / topic.name):
        assert path.stat().st_size == int(get(path, "end_offset")) == COUNT * SIZE
        assert int(get(path, "messages")) == COUNT - first // SIZE
        assert run("cat", path) == lines[first:]
        with path.open("rb") as file:
            assert os.pread(file.fileno(), 50, COUNT * SIZE - 150) == lines[-150:-100] if least else True
            assert os.pread(file.fileno(), 50, 7) == lines[first : first + 50], "continues at what is left"
        if least:
            assert run("tail", "-n", "3", path) == lines[-3 * SIZE :]
            assert run("tail", "-c", "250", path) == lines[-250:]
    with topic.open("ab", buffering=0) as file:
        file.write(b"on it goes\n")
    assert (hosts.there / topic.name).read_bytes() == lines[first:] + b"on it goes\n"


def test_an_idle_topic_ends_sealed_and_reads_the_same(topic: Path, hosts: Hosts) -> None:
    """`du` shows what is stored: compressed, once it is sealed."""
    lines = numbered(COUNT)
    with topic.open("ab", buffering=0) as file, (hosts.there / topic.name).open("rb", buffering=0) as reading:
        read = b""
        for start in range(0, len(lines), 5 * SIZE):
            file.write(lines[start : start + 5 * SIZE])
            read += reading.read(1 << 20) or b""
        read += reading.read(1 << 20) or b""
        assert read == lines, "a reader notices nothing of sealing"
        eventually(lambda: topic.stat().st_blocks * 512 < len(lines) // 4)
        assert reading.read(10) == b""
    for path in (topic, hosts.there / topic.name):
        assert path.read_bytes() == lines
        assert run("tail", "-n", "7", path) == lines[-7 * SIZE :]
        assert run("head", "-c", "12345", path) == lines[:12345]
        assert (
            run("dd", f"if={path}", f"bs={SIZE}", "skip=1234", "count=2", "status=none")
            == (lines[1234 * SIZE : 1236 * SIZE])
        )
    draw = random.Random(1)
    with topic.open("rb", buffering=0) as file:
        for _ in range(50):
            offset = draw.randrange(len(lines))
            assert os.pread(file.fileno(), 777, offset) == lines[offset : offset + 777]


def test_compression_can_be_switched_off_and_both_are_read(topic: Path, hosts: Hosts) -> None:
    topic.touch()
    text = numbered(20_000)  # a large batch each
    put(topic, "compression", "none")
    with topic.open("ab", buffering=0) as file:
        file.write(text[: 1 << 20])
        plain = topic.stat().st_blocks
        put(topic, "compression", "zstd")
        file.write(text[: 1 << 20])
        assert plain * 512 >= 1 << 20
        assert (topic.stat().st_blocks - plain) * 512 < 1 << 19
    assert (hosts.there / topic.name).read_bytes() == 2 * text[: 1 << 20]


@pytest.mark.parametrize("size", [1_300_000, 2_900_000, 8 << 20])
def test_a_message_larger_than_a_transaction_is_one_message(topic: Path, hosts: Hosts, size: int) -> None:
    message = random.Random(size).randbytes(size - 1).replace(b"\n", b"\r") + b"\n"
    with topic.open("wb", buffering=0) as file:
        file.write(b"before\n")
        written = 0
        while written < size:
            written += file.write(message[written:])
        file.write(b"behind\n")
    assert (hosts.there / topic.name).read_bytes() == b"before\n" + message + b"behind\n"
    assert get(hosts.there / topic.name, "messages") == "3"
