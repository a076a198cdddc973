"""A worker of a consumer group that writes down what it has, before and after it works on it.

Run as a program, without the packages of the tests, since it is started often. Each note is one write to a
file opened with O_APPEND, so a worker that is killed leaves whole lines: a letter, a time in nanoseconds, and

    O        it has opened the group
    G LINE   it has got a message
    D        it has come to the end of it
    C        it has closed the group, or a command for one message ends with status 0
    F        a command for one message ends with another status
    E ERRNO  a call failed
    X STATUS it is about to exit
"""

import os
import sys
import time

FAILS = 3
"""Exit status of a worker that fails in the middle of a message."""
REFUSED = 4
"""Exit status of a worker that could not go on."""


class Notes:
    """The history of one worker."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, letter: str, rest: bytes = b"") -> None:
        os.write(self._file, b"%b %d %b\n" % (letter.encode(), time.monotonic_ns(), rest))

    def got(self, data: bytes) -> None:
        whole = data.endswith(b"\n") and data.count(b"\n") == 1
        self.note("G", data[:-1] if whole else b"torn " + repr(data).encode())

    def exit(self, status: int) -> None:
        self.note("X", b"%d" % status)
        os._exit(status)


def read_on(
    notes: Notes, view: str, *, one_at_a_time: bool, work_s: float, fail_at: int, quit_at: int, slow_at: int
) -> None:
    """Work on a group; with `one_at_a_time` open it anew for each message."""
    count = 0
    file = -1
    while True:
        try:
            if file < 0:
                file = os.open(view, os.O_RDONLY)
                notes.note("O")
            data = os.read(file, 1 << 16)
        except OSError as error:
            notes.note("E", b"%d" % (error.errno or 0))
            notes.exit(REFUSED)
        notes.got(data)
        count += 1
        if count == fail_at:
            notes.exit(FAILS)
        time.sleep(2.5 if count == slow_at else work_s)  # this is the work
        notes.note("D")
        if count == quit_at:
            notes.exit(0)
        if one_at_a_time:
            os.close(file)
            notes.note("C")
            file = -1


def one(notes: Notes, *, work_s: float, fail_one_in: int) -> None:
    """Work on one message, from standard input."""
    notes.got(sys.stdin.buffer.read())
    time.sleep(work_s)  # this is the work
    if fail_one_in and os.getpid() % fail_one_in == 0:
        notes.note("F")
        os._exit(FAILS)
    notes.note("D")
    notes.note("C")
    os._exit(0)


if __name__ == "__main__":
    form, path, view, work, fail_at, quit_at, slow_at = sys.argv[1:]
    if form == "command":
        one(Notes(path), work_s=float(work), fail_one_in=int(fail_at))
    read_on(
        Notes(path),
        view,
        one_at_a_time=form == "one",
        work_s=float(work),
        fail_at=int(fail_at),
        quit_at=int(quit_at),
        slow_at=int(slow_at),
    )
