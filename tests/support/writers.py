"""Writers and readers of a topic that keep a history for the checker."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.support.checker import History, MessageId, Observation, Outcome, Push, Reset, message


class Writer:
    """Pushes one message a write through one open handle, in a thread of its own, until stopped.

    After an error it opens the topic again, as a supervised program would.
    """

    def __init__(self, name: str, topic: Path, *, limit: int | None = None, body: bytes = b"") -> None:
        self.name = name
        self.pushes: list[Push] = []
        self.errors: list[OSError] = []
        self._topic = topic
        self._limit = limit
        self._body = body
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> "Writer":
        self._thread.start()
        return self

    def stop(self) -> None:
        """Tell it to stop after the write under way."""
        self._stopping.set()

    def join(self) -> None:
        self._thread.join()

    @property
    def ok(self) -> int:
        """How many pushes were acknowledged."""
        return sum(push.outcome is Outcome.OK for push in self.pushes)

    def _run(self) -> None:
        number, fd = 0, -1
        while not self._stopping.is_set() and number != self._limit:
            try:
                if fd < 0:
                    fd = os.open(self._topic, os.O_WRONLY | os.O_APPEND)
            except OSError as error:
                self.errors.append(error)
                self._stopping.wait(0.05)  # what is down does not come up faster by asking
                continue
            data = message(self.name, number, self._body)
            began = time.monotonic_ns()
            try:
                outcome = Outcome.OK if os.write(fd, data) == len(data) else Outcome.UNKNOWN
            except OSError as error:
                self.errors.append(error)
                outcome = Outcome.of(error)
            ended = time.monotonic_ns()
            self.pushes.append(Push(MessageId(self.name, number), outcome, began, ended))
            number += 1
            if outcome is not Outcome.OK:
                fd = _close(fd)
        if fd >= 0:
            _close(fd)


def _close(fd: int) -> int:
    with suppress(OSError):  # nothing is held: all messages end in a newline
        os.close(fd)
    return -1


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


def history(writers: list[Writer], observations: list[Observation]) -> History:
    """Put together what writers and readers kept."""
    return History([push for writer in writers for push in writer.pushes], [], observations)
