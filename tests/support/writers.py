"""Writers and readers of a topic that keep a history for the checker."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.support.checker import History, MessageId, Observation, Outcome, Push, Reset, message
from tests.support.waiting import eventually

REPOSITORY = Path(__file__).parents[2]
PROGRESS_S = 40.0
"""How long writers may need to go on after a fault: clients back off, leaders are elected."""


class Writer:
    """Pushes one message a write through one open handle, in a process of its own, until stopped.

    After an error it opens the topic again, as a supervised program would. It is a process, because
    a fork of this one would have to close, and so to flush, the handles of writers in threads.
    """

    def __init__(
        self, name: str, topic: Path, *, limit: int | None = None, body: bytes = b"", pause_s: float = 0
    ) -> None:
        """Of messages with that body push at most `limit`, with a pause after each."""
        self.name = name
        self.pushes: list[Push] = []
        self.errors: list[OSError] = []
        self.ok = 0
        """How many pushes were acknowledged."""
        self._arguments = [name, str(topic), str(-1 if limit is None else limit), body.decode(), str(pause_s)]
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._listen, name=name)

    def start(self) -> "Writer":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.writers", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Tell it to stop after the write under way."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()

    def join(self) -> None:
        assert self._process is not None
        self._thread.join()
        assert self._process.wait() == 0, self.name

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as reports:
            for report in reports:
                number, error, began, ended = map(int, report.split())
                if error:
                    self.errors.append(OSError(error, os.strerror(error)))
                if number < 0:  # of open
                    continue
                outcome = Outcome.of(self.errors[-1]) if error else Outcome.OK
                self.pushes.append(Push(MessageId(self.name, number), outcome, began, ended))
                self.ok += outcome is Outcome.OK


def write_until_told(name: str, topic: str, limit: int, body: bytes, pause_s: float) -> None:
    """Be the process of a Writer: report number (-1 for an open), errno and times of each call."""
    stopping = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        stopping.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    number, fd = 0, -1
    while not stopping.is_set() and number != limit:
        try:
            if fd < 0:
                fd = os.open(topic, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            os.write(1, b"-1 %d 0 0\n" % (error.errno or 0))
            stopping.wait(0.05)  # what is down does not come up faster by asking
            continue
        data = message(name, number, body)
        failure = 0
        began = time.monotonic_ns()
        try:
            if os.write(fd, data) != len(data):
                failure = errno.EIO  # cannot be: a message this short is taken whole or not at all
        except OSError as error:
            failure = error.errno or errno.EIO
        os.write(1, b"%d %d %d %d\n" % (number, failure, began, time.monotonic_ns()))
        number += 1
        if failure:
            with suppress(OSError):  # nothing is held: all messages end in a newline
                os.close(fd)
            fd = -1
        if pause_s:
            stopping.wait(pause_s)
    os._exit(0)  # without waiting for the other thread


class Follower:
    """Reads a topic through one open handle, in a thread of its own, as it grows, until told to stop."""

    def __init__(self, name: str, topic: Path) -> None:
        self.name = name
        self.data = b""
        self.errors: list[OSError] = []
        self._topic = topic
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> "Follower":
        self._thread.start()
        return self

    def stop(self) -> None:
        """Tell it to stop."""
        self._stopping.set()

    def join(self) -> None:
        self._thread.join()

    def observed(self) -> Observation:
        """Return what was seen; nothing is required to be in it, only that it is a beginning."""
        return Observation(self.name, 0, self.data)

    def _run(self) -> None:
        fd = os.open(self._topic, os.O_RDONLY)
        try:
            while not self._stopping.wait(0.005):
                try:
                    self.data += os.pread(fd, 1 << 20, len(self.data))
                except OSError as error:
                    self.errors.append(error)
        finally:
            os.close(fd)


@contextmanager
def running(*tasks: Writer | Follower) -> Iterator[None]:
    """Run writers and followers while the block runs."""
    with ExitStack() as stack:
        for task in tasks:
            stack.callback(task.start().join)
        for task in tasks:
            stack.callback(task.stop)
        yield


def progress(writers: Sequence[Writer], count: int) -> None:
    """Wait until each writer has had `count` more pushes acknowledged."""
    wanted = [writer.ok + count for writer in writers]
    eventually(
        lambda: all(writer.ok >= n for writer, n in zip(writers, wanted, strict=True)),
        within_s=PROGRESS_S,
    )


def observe(reader: str, topic: Path) -> Observation:
    """Open and read a topic to its end."""
    began = time.monotonic_ns()
    return Observation(reader, began, topic.read_bytes())


def observe_at_once(reader: str, topic: Path) -> Observation:
    """Open a topic and read it with one read(2), so that no reset comes in between; it has to be short."""
    began = time.monotonic_ns()
    fd = os.open(topic, os.O_RDONLY)
    try:
        data = os.read(fd, 1 << 20)
    finally:
        os.close(fd)
    assert len(data) < 1 << 20, "too long for one read"
    return Observation(reader, began, data)


def reset(truncate: Callable[[], None]) -> Reset:
    """Reset by `truncate` and say what came of it."""
    began = time.monotonic_ns()
    try:
        truncate()
        outcome = Outcome.OK
    except OSError as error:
        outcome = Outcome.of(error)
    return Reset(outcome, began, time.monotonic_ns())


def history(
    writers: Sequence[Writer], observations: Iterable[Observation], resets: Iterable[Reset] = ()
) -> History:
    """Put together what writers and readers kept."""
    pushes = [push for writer in writers for push in writer.pushes]
    return History(pushes, list(resets), list(observations))


if __name__ == "__main__":
    write_until_told(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].encode(), float(sys.argv[5]))
