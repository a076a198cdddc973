"""`topic@` on a real mount: what is pushed after the open, to everybody who listens."""

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.programs import Programs
from tests.support.waiting import WITHIN_S, eventually


def push(topic: Path, *messages: object) -> None:
    topic.write_text("".join(f"{message}\n" for message in messages))


@contextmanager
def listening(view: Path) -> Iterator[int]:
    descriptor = os.open(view, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def hear(descriptor: int, size: int = 1 << 16) -> str:
    """Return what has been said since the last call, "" if nothing."""
    heard = b""
    try:
        while len(heard) < size:  # a read may return what this host has, before it asks for more
            heard += os.read(descriptor, size - len(heard))
    except BlockingIOError:
        pass
    return heard.decode()


def test_only_what_is_pushed_after_the_open(topic: Path, there: Path) -> None:
    push(topic, "old")
    with listening(topic.parent / "topic@") as here, listening(there / "topic@") as far:
        assert [hear(here), hear(far)] == ["", ""]
        push(topic, "one")
        push(there / "topic", "two")
        assert [hear(here), hear(far)] == ["one\ntwo\n", "one\ntwo\n"], "the pushes had returned"
        assert [hear(here), hear(far)] == ["", ""]


def test_a_listener_that_waits(topic: Path, there: Path, programs: Programs) -> None:
    push(topic, "old")
    listeners = [programs.reading(["head", "-n", "2", "topic@"]) for _ in range(2)]
    push(there / "topic", "one")
    push(there / "topic", "two")
    for listener in listeners:
        assert listener.communicate(timeout=WITHIN_S)[0] == "one\ntwo\n"


def test_poll_wakes_a_listener_each_time(topic: Path, there: Path) -> None:
    push(topic, "old")
    with listening(topic.parent / "topic@") as descriptor:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        for number in range(10):
            push(there / "topic", number)
            began = time.monotonic()
            assert poll.poll(3 * WITHIN_S * 1000) == [(descriptor, select.POLLIN)]
            assert time.monotonic() - began < WITHIN_S, (
                "it was woken, and did not look when its time was over"
            )
            assert hear(descriptor) == f"{number}\n"


def test_a_listener_polls_in_vain_again_and_again(topic: Path, there: Path) -> None:
    push(topic, "old")
    with listening(topic.parent / "topic@") as descriptor:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        for number in range(5):
            assert poll.poll(10) == []
            size = topic.stat().st_size
            push(there / "topic", number)
            eventually(lambda size=size: topic.stat().st_size > size)  # type: ignore[misc]
            assert hear(descriptor) == f"{number}\n"


def test_it_goes_on_after_a_reset(topic: Path, there: Path, programs: Programs) -> None:
    push(topic, *range(100))
    listener = programs.reading(["head", "-n", "3", "topic@"])
    push(topic, "before")
    assert listener.stdout is not None
    eventually(lambda: int(Path(f"/proc/{listener.pid}/io").read_text().split("rchar: ")[1].split()[0]) > 0)
    os.truncate(there / "topic", 0)
    push(topic, "after")
    push(topic, "again")
    assert listener.communicate(timeout=WITHIN_S)[0] == "before\nafter\nagain\n"


def test_poll_after_a_reset_waits_for_what_is_pushed_then(topic: Path) -> None:
    push(topic, "old")
    with listening(topic.parent / "topic@") as descriptor:
        push(topic, "long" * 100)
        assert hear(descriptor)
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        os.truncate(topic, 0)
        assert poller.poll(0) == [], "there is nothing to read"
        assert hear(descriptor) == ""
        assert poller.poll(0) == []
        push(topic, "new")
        assert poller.poll(1000 * WITHIN_S)
        assert hear(descriptor) == "new\n"


def test_a_slow_reader_loses_nothing(topic: Path) -> None:
    """The log has it, when the reader comes so far."""
    push(topic, "old")
    with listening(topic.parent / "topic@") as descriptor:
        pushed = ""
        for block in range(40):
            text = "".join(f"{block} {line} {'x' * 90}\n" for line in range(2000))
            topic.write_text(text)
            pushed += text
        heard = ""
        while data := hear(descriptor, 100_001):
            heard += data
        assert heard == pushed


def test_a_for_loop_of_python(topic: Path, programs: Programs) -> None:
    push(topic, "old")
    script = (
        'for line in open("topic@"):\n    print(line, end="", flush=True)\n    if line == "end\\n": break'
    )
    listener = programs.reading([sys.executable, "-I", "-c", script])
    for message in ("one", "two", "end"):
        push(topic, message)
    assert listener.communicate(timeout=WITHIN_S)[0] == "one\ntwo\nend\n"


def test_timeout_ends_it(topic: Path, programs: Programs) -> None:
    push(topic, "old")
    assert programs.run("timeout 0.5 cat topic@", 124) == []


@pytest.mark.parametrize("view", ["topic@", "topic@w"])
def test_what_fills_a_piece_of_a_read_is_not_kept_until_more_comes(
    topic: Path, programs: Programs, view: str
) -> None:
    topic.touch()
    reading = f"import mmap; print(open({view!r}, 'rb', 0).readinto(mmap.mmap(-1, 4 << 20)))"
    listener = programs.reading([sys.executable, "-c", reading])
    topic.write_bytes(b"a" * ((1 << 20) - 1) + b"\n")
    assert int(listener.communicate(timeout=WITHIN_S)[0]) == (1 << 20) - 1
