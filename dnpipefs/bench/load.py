"""The load of files: a program that opens, writes and reads topics of a mount when it is told to.

It is started by its path and uses the standard library only: no gRPC, no trio, so that its writers are
cheap, honest `write(2)` loops in forked processes, and forking is safe. One JSON object a line comes in,
one a line goes out; it ends when its standard input does. Times are of CLOCK_MONOTONIC, which all
processes of a machine share: seconds where they say when, nanoseconds where they say how long.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

STAMP_DIGITS = 20
"""A message that carries the time it was sent begins with it, in nanoseconds; zero ends the stream."""
CONSUME_BYTES = 64 << 10
"""The same of a worker, which reads a message at a time: the kernel pins the whole buffer for each read."""
PATIENCE_S = 20.0
"""How long a reader waits for the message that ends the stream."""
READ_BYTES = 1 << 20

_OUTCOME = struct.Struct("iQi")  # writer's number, operations, errno
_PERIOD = struct.Struct("dd")  # start, end

Reply = dict[str, Any]


def line(size: int) -> bytes:
    """Return a message of *size* bytes, its newline included."""
    return b"x" * (size - 1) + b"\n"


def stamped(nanoseconds: int, size: int) -> bytes:
    """Return a message of *size* bytes that says when it was sent."""
    return (b"%0*d" % (STAMP_DIGITS, nanoseconds)).ljust(size - 1, b"x") + b"\n"


def wait_until(moment: float) -> None:
    """Sleep until *moment*, or not at all if it has passed."""
    time.sleep(max(0.0, moment - time.monotonic()))


class Writers:
    """Forked processes with an open topic each, which write when they are told to."""

    def __init__(self, inherited: list[int]) -> None:
        self._inherited = inherited
        """Ends of pipes of this process that no other child may keep open."""
        self._controls: list[int] = []
        self._outcomes, self._report = os.pipe()
        inherited.append(self._outcomes)
        self.pids: list[int] = []

    def join(self, path: str, size: int) -> None:
        """Start one more writer; return when it has opened *path* and written once."""
        control, ours = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                for fd in (*self._inherited, ours):
                    os.close(fd)
                _write_when_told(control, self._report, len(self._controls), path, size)
            finally:
                os._exit(1)
        os.close(control)
        self._inherited.append(ours)
        self._controls.append(ours)
        self.pids.append(pid)
        self._outcome()

    def run(self, start: float, end: float) -> list[int]:
        """Let all write from *start* to *end*; return how many writes each completed."""
        for control in self._controls:
            os.write(control, _PERIOD.pack(start, end))
        counts = dict(self._outcome() for _ in self._controls)
        return [counts[number] for number in sorted(counts)]

    def end(self) -> None:
        """Close the topics and end the processes."""
        for control in self._controls:
            os.close(control)
            self._inherited.remove(control)
        for pid in self.pids:
            os.waitpid(pid, 0)
        self._inherited.remove(self._outcomes)
        os.close(self._outcomes)
        os.close(self._report)

    def _outcome(self) -> tuple[int, int]:
        number, count, code = _OUTCOME.unpack(os.read(self._outcomes, _OUTCOME.size))
        if code:
            raise OSError(code, os.strerror(code))
        return number, count


def _write_when_told(control: int, report: int, number: int, path: str, size: int) -> None:
    data = line(size)

    def tell(count: int, code: int = 0) -> None:
        os.write(report, _OUTCOME.pack(number, count, code))

    try:
        fd = _open_for_writing(path)
        os.write(fd, data)
        tell(1)
        while period := os.read(control, _PERIOD.size):
            start, end = _PERIOD.unpack(period)
            wait_until(start)
            tell(_write_until(fd, data, end))
    except OSError as error:
        tell(0, error.errno or -1)
        os._exit(1)
    os._exit(0)


def _consume(path: str, report: int, number: int) -> None:
    """Count the messages that this process gets, and end it."""
    count = code = 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        while os.read(fd, CONSUME_BYTES):
            count += 1
    except BlockingIOError:
        pass
    except OSError as error:
        code = error.errno or -1
    os.write(report, _OUTCOME.pack(number, count, code))
    os._exit(0)


def _write_until(fd: int, data: bytes, end: float) -> int:
    count = 0
    while True:
        os.write(fd, data)
        if time.monotonic() >= end:
            return count
        count += 1


def _open_for_writing(path: str) -> int:
    """Open as a shell's `>` does."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)


class Load:
    """The operations; each takes the fields of a request and returns those of the reply."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._groups: dict[str, Writers] = {}
        self._inherited: list[int] = []
        self._blocked: list[int] = []
        """Pids of those that wait in a read."""

    def write(self, path: str, size: int, start: float, end: float) -> Reply:
        """Write messages on one open handle, one after another."""
        if path not in self._open:
            self._open[path] = _open_for_writing(path)
        fd, data = self._open[path], line(size)
        return self._timed(lambda: os.write(fd, data), start, end)

    def open_write_close(self, path: str, size: int, start: float, end: float) -> Reply:
        """Open, write one message and close, again and again."""
        data = line(size)

        def push() -> None:
            fd = _open_for_writing(path)
            os.write(fd, data)
            os.close(fd)

        return self._timed(push, start, end)

    def join(self, group: str, paths: list[str], size: int) -> Reply:
        """Fork a writer for each path, one after another: each has written before the next one opens."""
        writers = self._groups[group] = Writers(self._inherited)
        for path in paths:
            writers.join(path, size)
        return {"pids": writers.pids}

    def run(self, group: str, start: float, end: float) -> Reply:
        """Let a group's writers write."""
        return {"counts": self._groups[group].run(start, end)}

    def leave(self, group: str) -> Reply:
        """End a group's writers."""
        self._groups.pop(group).end()
        return {}

    def copy(self, source: str, path: str, how: str) -> Reply:
        """Copy a file into a topic with a program of the system."""
        command = {
            "cat": 'exec cat -- "$1" > "$2"',
            "dd": 'exec dd bs=1M status=none if="$1" of="$2" conv=notrunc',
        }[how]
        begun = time.monotonic_ns()
        done = subprocess.run(
            ["sh", "-c", command, "sh", source, path], capture_output=True, text=True, check=False
        )
        took = time.monotonic_ns() - begun
        if done.returncode:
            raise OSError(0, f"{how}: {done.stderr.strip()}")
        return {"nanoseconds": took}

    def run_program(self, arguments: list[str]) -> Reply:
        """Run a program and count the lines it prints."""
        begun = time.monotonic_ns()
        done = subprocess.run(arguments, capture_output=True, check=False)
        took = time.monotonic_ns() - begun
        if done.returncode:
            raise OSError(0, f"{arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
        return {"nanoseconds": took, "lines": done.stdout.count(b"\n")}

    def read_all(self, path: str) -> Reply:
        """Read a topic from its beginning to its end, in large reads."""
        buffer = bytearray(READ_BYTES)
        begun = time.monotonic_ns()
        size = 0
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
        return {"nanoseconds": time.monotonic_ns() - begun, "bytes": size}

    def consume(self, path: str, workers: int) -> Reply:
        """Let processes share a group's messages until nothing is left."""
        outcomes, report = os.pipe()
        begun = time.monotonic_ns()
        pids = []
        for number in range(workers):
            pid = os.fork()
            if not pid:
                _consume(path, report, number)
            pids.append(pid)
        found = [_OUTCOME.unpack(os.read(outcomes, _OUTCOME.size)) for _ in pids]
        took = time.monotonic_ns() - begun
        for pid in pids:
            os.waitpid(pid, 0)
        os.close(outcomes)
        os.close(report)
        for _, _, code in found:
            if code:
                raise OSError(code, os.strerror(code))
        return {"count": sum(count for _, count, _ in found), "nanoseconds": took}

    def block(self, path: str, readers: int) -> Reply:
        """Let processes wait in a read, until `unblock`."""
        waiting, report = os.pipe()
        for _ in range(readers):
            pid = os.fork()
            if not pid:
                fd = os.open(path, os.O_RDONLY)
                os.write(report, b".")
                os.read(fd, CONSUME_BYTES)
                os._exit(1)
            self._blocked.append(pid)
        left = readers
        while left:
            left -= len(os.read(waiting, left))
        os.close(waiting)
        os.close(report)
        return {}

    def unblock(self) -> Reply:
        """End them; all of them have to be waiting still."""
        for pid in self._blocked:
            os.kill(pid, signal.SIGKILL)
        ends = [os.waitpid(pid, 0)[1] for pid in self._blocked]
        self._blocked.clear()
        if stray := sum([not os.WIFSIGNALED(status) for status in ends]):
            raise OSError(0, f"{stray} readers did not wait, but got something")
        return {}

    def take_stamped(self, path: str) -> Reply:
        """Read from a group, a message at a time; tell how long ago what comes was sent."""
        delays: list[int] = []
        with open(path, "rb", buffering=0) as file:
            while True:
                data = file.read(READ_BYTES)
                now = time.monotonic_ns()
                if not data[:STAMP_DIGITS].isdigit():  # the topic's first message
                    continue
                sent = int(data[:STAMP_DIGITS])
                if not sent:
                    return {"delays": delays}
                delays.append(now - sent)

    def write_stamped(self, path: str, size: int, start: float, end: float, interval: float) -> Reply:
        """Write messages that say when they were sent, one every *interval* seconds; then the last one."""
        fd = _open_for_writing(path)
        try:
            count = 0
            for moment in _paced(start, end, interval):
                wait_until(moment)
                os.write(fd, stamped(time.monotonic_ns(), size))
                count += 1
            os.write(fd, stamped(0, size))
        finally:
            os.close(fd)
        return {"count": count}

    def read_stamped(self, path: str, size: int, start: float) -> Reply:
        """Read at the end of the file, again and again; tell how long ago what comes was sent."""
        delays: list[int] = []
        limit = start + PATIENCE_S
        with open(path, "rb", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            while time.monotonic() < limit:
                data = file.read(READ_BYTES)
                now = time.monotonic_ns()
                for index in range(0, len(data), size):
                    sent = int(data[index : index + STAMP_DIGITS])
                    if not sent:
                        return {"delays": delays}
                    delays.append(now - sent)
                if delays:
                    limit = time.monotonic() + PATIENCE_S
        raise TimeoutError("the message that ends the stream did not come")

    def _timed(self, operation: Callable[[], object], start: float, end: float) -> Reply:
        clock = time.monotonic_ns
        latencies: list[int] = []
        stop = int(end * 1e9)
        wait_until(start)
        begun = clock()
        while begun < stop:
            operation()
            ended = clock()
            latencies.append(ended - begun)
            begun = ended
        return {"latencies": latencies}


def _paced(start: float, end: float, interval: float) -> Iterator[float]:
    count = 0
    while (moment := start + count * interval) < end:
        yield moment
        count += 1


def main() -> None:
    """Carry out requests until there are no more."""
    load = Load()
    for request in sys.stdin:
        fields = json.loads(request)
        try:
            reply: Reply = getattr(load, fields.pop("op"))(**fields)
        except Exception as error:  # the other side knows what to do about it
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
