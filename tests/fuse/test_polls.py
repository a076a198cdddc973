"""select, poll and epoll on a real mount; what is told to whom, with made-up handles."""

import sys
from typing import cast

import pytest
from pyfuse3 import PollHandle

from dnpipefs.fuse.polls import Poll
from tests.support.blocking_mount import BlockingMount
from tests.support.waiting import WITHIN_S

WAYS = {
    "select": "select.select([file], [], [])",
    "poll": "poll = select.poll(); poll.register(file, select.POLLIN); poll.poll()",
    "epoll": "epoll = select.epoll(); epoll.register(file, select.EPOLLIN); epoll.poll()",
    "edge": "epoll = select.epoll(); epoll.register(file, select.EPOLLIN | select.EPOLLET); epoll.poll()",
}


@pytest.mark.parametrize("way", WAYS)
def test_who_waits_is_woken(blocking: BlockingMount, way: str) -> None:
    name = f"wait-{way}"
    script = f"import os, select; file = os.open({name!r}, os.O_RDONLY); {WAYS[way]}; print(os.read(file, 9))"
    program = blocking.start([sys.executable, "-I", "-c", script])
    blocking.saw("poll", name, "waits")
    assert blocking.told("read", name) == 0
    blocking.push(name, "a message")
    assert program.communicate(timeout=WITHIN_S)[0] == "b'a message'\n"


def test_who_does_not_wait_leaves_no_handle(blocking: BlockingMount) -> None:
    script = "import os, select; file = os.open('look', os.O_RDONLY); print(select.select([file], [], [], 0))"
    program = blocking.start([sys.executable, "-I", "-c", script])
    assert program.communicate(timeout=WITHIN_S)[0] == "([], [], [])\n"
    assert blocking.told("poll", "look", "looks") == 1
    assert blocking.told("poll", "look", "waits") == 0


def test_a_wait_that_has_timed_out_is_told_in_vain(blocking: BlockingMount) -> None:
    script = (
        "import os, select; file = os.open('late', os.O_RDONLY); print(select.select([file], [], [], 0.01));"
        "print(os.read(file, 9)); print(select.select([file], [], [], 0))"
    )
    program = blocking.start([sys.executable, "-I", "-c", script])
    blocking.saw("poll", "late", "waits")
    blocking.saw("read", "late")
    blocking.push("late", "a message")
    assert program.communicate(timeout=WITHIN_S)[0] == "([], [], [])\nb'a message'\n([], [], [])\n"


class Handle:
    def __init__(self) -> None:
        self.notified = 0
        self.mount_has_ended = False

    def notify(self) -> None:
        self.notified += 1
        if self.mount_has_ended:
            raise OSError(107, "Transport endpoint is not connected")


def handle() -> PollHandle:
    return cast(PollHandle, Handle())


def notified(handle: PollHandle) -> int:
    return cast(Handle, handle).notified


def test_only_the_newest_handle_is_told_and_once() -> None:
    poll, first, second = Poll(), handle(), handle()
    poll.wait(first)
    poll.wait(second)
    poll.wait(None)  # somebody looks who does not wait
    assert poll.wanted
    poll.notify()
    poll.notify()
    assert not poll.wanted
    assert (notified(first), notified(second)) == (0, 1)


def test_the_end_of_the_mount_is_no_error() -> None:
    poll, last = Poll(), handle()
    cast(Handle, last).mount_has_ended = True
    poll.wait(last)
    poll.notify()
    assert notified(last) == 1
